"""Pictures: what is told of them, what of changes alone, and how much that is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the dashboard is served by aiohttp")

from pubsub.dashboard.moments import MOST_EDGES, PAGES, SECONDS, Moment, Past
from pubsub.dashboard.pictures import Page, Picture
from pubsub.stats import PubStats, Rates, Stats, SubStats
from pubsub.survey import Told
from tests.dashboard.staging import crowd

TOPICS = Page("topics")


class Viewer:
    """Has what it was told, as the page in the browser has."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.seen = 0
        self.rows: dict[str, Any] = {}
        self.told: dict[str, Any] = {}

    def see(self, picture: Picture) -> Viewer:
        event = picture.write(self.page, self.seen)
        assert event.startswith(b"data: {")
        assert event.endswith(b"}\n\n")
        assert event.count(b"\n") == 2
        self.told = json.loads(event[6:])
        self.seen = self.told["n"]
        if self.told["full"]:
            self.rows = {}
        for key in self.told["gone"]:
            del self.rows[key]
        self.rows.update(self.told["rows"])
        return self


class Show:
    """Pictures, one after the other."""

    def __init__(self) -> None:
        self.past = Past()
        self.last: Picture | None = None

    def show(self, told: list[Told], now: float | None = None, **more: Any) -> Picture:
        number = 1 if self.last is None else self.last.number + 1
        now = max((each.at for each in told), default=0.0) if now is None else now
        moment = Moment(told, now=now, at=1e9 + now, past=self.past, **more)
        found = Picture(number, moment, self.last)
        if self.last is not None:
            self.last.age()
        self.last = found
        return found


def full(picture: Picture, page: Page) -> dict[str, Any]:
    return Viewer(page).see(picture).rows


@pytest.mark.parametrize("kind", PAGES)
def test_changes_come_to_the_same_as_all(kind: str) -> None:
    names = {"topic": "room 3/sensor 3", "peer": "a:4001"}
    page = Page(kind, names.get(kind, ""))
    show, viewer = Show(), Viewer(page)
    for turn in range(6):
        told = crowd(10 + turn % 3, 6, turn)
        picture = show.show(told[: 4 + turn % 3])
        viewer.see(picture)
        assert viewer.rows == full(picture, page)
        assert viewer.told["full"] == (turn == 0)
    assert viewer.rows


def test_who_has_missed_a_picture_is_told_all() -> None:
    show, slow = Show(), Viewer(TOPICS)
    slow.see(show.show(crowd(10, 4)))
    show.show(crowd(10, 4, 1))
    slow.see(show.show(crowd(10, 4, 2)))
    assert slow.told["full"]
    assert len(slow.rows) == 10


def test_a_picture_is_written_once_for_all_and_keeps_only_the_one_before() -> None:
    show = Show()
    first = show.show(crowd(10, 4))
    assert first.write(TOPICS, 0) is first.write(TOPICS, 0)
    second = show.show(crowd(10, 4, 1))
    assert second._before is first
    third = show.show(crowd(10, 4, 2))
    befores = [picture._before for picture in (first, second, third)]
    assert befores == [None, None, second]


def test_of_what_stands_still_nothing_is_told() -> None:
    show, viewer = Show(), Viewer(TOPICS)
    idle = Stats("a", "app.py", 1, "h", pubs=(PubStats(1, "quiet", silent=60.0),))
    for now in (0.0, 1.0, 2.0):
        stats = idle._replace(pubs=(idle.pubs[0]._replace(silent=60.2 + now),))
        viewer.see(show.show([Told("h:1", stats, at=now)]))
    assert viewer.told["rows"] == {}
    assert viewer.rows["quiet"]["put_at"] == round(1e9 - 60.2)


def test_curves_have_the_last_minute_and_forget_what_is_gone() -> None:
    show = Show()
    for turn in range(SECONDS + 5):
        picture = show.show(crowd(3, 2, turn))
    past = Viewer(TOPICS).see(picture).told["past"]
    assert {len(values) for values in past.values()} == {SECONDS}
    assert Viewer(TOPICS).see(show.show(crowd(2, 2))).told["past"].keys() == {
        "room 0/sensor 0",
        "room 1/sensor 1",
    }


def test_what_is_wrong_is_said_on_each_page_and_where_it_is() -> None:
    picture = Show().show(crowd(10, 4, slow=True))
    for kind in PAGES:
        wrong = Viewer(Page(kind)).see(picture).told["wrong"]
        assert any("model 0.py" in cause["text"] for cause in wrong)
    topic = "room 0/sensor 0"
    rows = full(picture, TOPICS)
    assert rows[topic]["health"] == "bad"
    assert "model 0.py" in rows[topic]["why"]
    assert {row["health"] for key, row in rows.items() if key != topic} == {"ok"}
    (stream,) = full(picture, Page("topic", topic)).values()
    assert stream["health"] == "bad"
    graph = full(picture, Page("graph"))
    assert graph["ea:4000 b:5000"]["health"] == "bad"
    assert graph["nb:5000"]["health"] == "bad"


def test_where_nothing_is_wrong_nothing_is_said_to_be() -> None:
    picture = Show().show(crowd(10, 4))
    told = Viewer(TOPICS).see(picture).told
    assert (told["wrong"], told["wrong_count"], told["lost"]) == ([], 0, 0)


def test_who_tells_nothing_any_more_is_in_trouble() -> None:
    told = crowd(4, 4)
    told[1] = replace(told[1], trouble="it has vanished without a goodbye")
    rows = full(Show().show(told), Page("peers"))
    assert rows[told[1].publisher]["health"] == "bad"
    assert rows[told[1].publisher]["why"]
    late = full(Show().show(crowd(4, 4), now=60.0), Page("peers"))
    assert {row["health"] for row in late.values()} == {"bad"}


def test_what_is_overtaken_where_the_latest_is_wanted_is_not_lost() -> None:
    sub = SubStats(1, "a", "latest", lost=12, lost_by=(("conflated", 10), ("overflow", 2)))
    told = [Told("h:1", Stats("a", "app.py", 1, "h", subs=(sub,)))]
    assert full(Show().show(told), TOPICS)["a"]["lost"] == 2


def test_the_rate_between_two_processes_is_what_has_come() -> None:
    before, now = crowd(2, 2, 0), crowd(2, 2, 1)
    for old, new in zip(before, now, strict=True):
        new.before = old.stats
    edge = full(Show().show(now), Page("graph"))["ea:4000 b:5000"]
    assert edge["streams"] == 2
    assert edge["rate"] == 200.0  # each has brought 100 in the second between


def test_the_graph_is_bounded_and_shows_what_is_wrong_first() -> None:
    told = crowd(9_000, 100, slow=True)
    picture = Show().show(told)
    rows = full(picture, Page("graph"))
    edges = [key for key in rows if key.startswith("e")]
    assert len(edges) <= MOST_EDGES
    assert "ea:4000 b:5000" in edges


def test_names_of_others_are_only_ever_text() -> None:
    hostile = "</script>\n\ndata: {}\n\n<img src=x onerror=alert(1)>\u202e\u2028\ud800"
    stats = Stats("a", hostile, 1, hostile, pubs=(PubStats(1, hostile, rate=Rates(1, 1, 1)),))
    picture = Show().show([Told(hostile, stats)])
    for kind in PAGES:
        assert Viewer(Page(kind, hostile)).see(picture).told["peer_count"] == 1


@pytest.mark.parametrize("kind", PAGES)
def test_pages_of_what_is_not_there_are_empty(kind: str) -> None:
    viewer = Viewer(Page(kind, "no such thing")).see(Show().show([], trouble="no right to list"))
    assert viewer.rows == {}
    assert viewer.told["trouble"] == "no right to list"


def test_a_process_that_has_told_nothing_has_a_page() -> None:
    picture = Show().show([Told("h:1", trouble="no way leads to it")])
    viewer = Viewer(Page("peer", "h:1")).see(picture)
    assert viewer.rows == {}
    assert viewer.told["more"]["trouble"] == "no way leads to it"
