"""The rows of tables: both ends of a stream joined, and what only one of them knows."""

from __future__ import annotations

from dataclasses import dataclass

from pubsub.stats import (
    CoordinatorStats,
    LinkStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.stats.cause import Cause
from pubsub.stats.ends import Mute
from pubsub.stats.views import Process, links, peers, streams, topics


@dataclass
class Told:
    publisher: str
    stats: Stats | None = None
    at: float = 0.0
    trouble: str = ""


def blamed(sentence: str, topic: str = "", publisher: str = "", subscriber: str = "") -> Cause:
    return Cause("loop", sentence, 50.0, topic, publisher, subscriber)


APP, MODEL, TAIL = (
    Stats(peer_id=name, name=f"{name}.py", pid=n, host="b")
    for n, name in enumerate(("app", "model", "tail"), 1)
)


def telling(*all_stats: Stats) -> list[Told]:
    return [Told(f"b:{stats.pid}", stats, at=100.0) for stats in all_stats]


def rate(messages: float) -> Rates:
    return Rates(messages, messages, messages)


def to(whom: Stats, sub_id: int = 1, **more: object) -> SubscriberStats:
    row = SubscriberStats(f"b:{whom.pid}#{sub_id}", whom.peer_id, sub_id, "attached", "unix")
    return row._replace(**more)  # type: ignore[arg-type]


def of(whom: Stats, topic: str, stream_id: int = 1, **more: object) -> StreamStats:
    row = StreamStats(f"b:{whom.pid}#{stream_id}", whom.peer_id, stream_id, topic, "attached")
    return row._replace(**more)  # type: ignore[arg-type]


def publishing(who: Stats, *pubs: PubStats) -> Stats:
    return who._replace(pubs=pubs)


def subscribing(who: Stats, *subs: SubStats) -> Stats:
    return who._replace(subs=subs)


SENDS = publishing(
    APP,
    PubStats(
        *(1, "orders", "msgpack", "drop", 90),
        rate=rate(30),
        byte_rate=rate(300),
        silent=0.5,
        lost=2,
        subscribers=(to(MODEL, lag=7, unsent=3, lost=2), to(TAIL, observer=True)),
    ),
)
TAKES = subscribing(
    MODEL,
    SubStats(
        *(1, "orders"),
        rate=rate(20),
        handling=0.04,
        lost=1,
        streams=(of(APP, "orders", lost=1, silent=0.7, way="unix"),),
    ),
)


def test_two_ends_of_a_stream_are_one_row() -> None:
    other, row = streams(telling(SENDS, TAKES), "orders")
    assert (row.publisher.who, row.subscriber.who) == (
        "app.py (pid 1 on b)",
        "model.py (pid 2 on b)",
    )
    assert (row.state, row.way, row.trouble) == ("attached", "unix", "")
    assert (row.put_rate, row.take_rate, row.handling) == (rate(30), rate(20), 0.04)
    assert (row.lag, row.unsent, row.silent) == (7, 3, 0.5)
    assert row.lost == 2, "the Sub has not heard of the second yet"
    assert (other.subscriber.who, other.observer, other.sub) == ("b:3", True, None)


def test_what_only_one_end_tells_is_there_all_the_same() -> None:
    (row,) = streams(telling(TAKES), "orders")
    assert (row.publisher.who, row.subscriber.who) == ("b:1", "model.py (pid 2 on b)")
    assert (row.lag, row.lost, row.silent) == (None, 1, 0.7)
    (topic,) = topics(telling(TAKES))
    assert topic[:3] == ("orders", 1, 1)
    assert (topic.lag, topic.lost, topic.silent, topic.rate) == (None, 1, 0.7, Rates())


def test_a_topic_sums_its_pubs_and_says_who_lost() -> None:
    second = publishing(
        APP._replace(peer_id="app2", pid=9),
        PubStats(
            *(1, "orders"), rate=rate(5), byte_rate=rate(50), silent=9.0, lost=4,
            subscribers=(to(MODEL, lag=10),),
        ),
    )  # fmt: skip
    (row,) = topics(telling(SENDS, TAKES, second))
    assert row[:5] == ("orders", 2, 2, rate(35), rate(350))
    assert (row.lag, row.silent) == (17, 0.5), "the model lags behind both"
    assert row.lost == 6
    assert row.lost_by == (("", 4), ("model.py (pid 2 on b)", 2))


def test_a_sub_of_nobody_stands_under_its_pattern() -> None:
    lonely = subscribing(MODEL, SubStats(3, "order"), SubStats(4, "ord/*"))
    rows = topics(telling(SENDS, lonely))
    assert [row[:3] for row in rows] == [("ord/*", 0, 1), ("order", 0, 1), ("orders", 1, 2)]
    (row,) = streams(telling(lonely), "order")
    assert (row.publisher, row.subscriber.who) == (Process(), "model.py (pid 2 on b)")
    assert (row.state, row.pub, row.stream) == ("", None, None)


def test_a_pub_and_a_sub_of_one_topic_that_do_not_meet_are_two_rows() -> None:
    alone = publishing(APP, PubStats(1, "orders", rate=rate(3)))
    deaf = subscribing(MODEL, SubStats(1, "orders"))
    assert topics(telling(alone, deaf))[0][:4] == ("orders", 1, 1, rate(3))
    first, second = streams(telling(alone, deaf), "orders")
    assert (first.publisher.who, first.subscriber.who) == ("", "model.py (pid 2 on b)")
    assert (second.publisher.who, second.subscriber.who) == ("app.py (pid 1 on b)", "")


def test_a_sub_with_a_pattern_is_a_row_of_each_topic_that_it_gets() -> None:
    wide = subscribing(
        MODEL, SubStats(1, "o/*", streams=(of(APP, "o/a", 1), of(APP, "o/b", 2)), lost=9)
    )
    assert [row[:3] for row in topics(telling(wide))] == [("o/a", 1, 1), ("o/b", 1, 1)]
    assert [row.lost for row in topics(telling(wide))] == [0, 0], "nobody knows of which"


def test_what_a_sub_lost_of_streams_that_have_ended_is_lost_on_its_topic() -> None:
    sub = subscribing(MODEL, SubStats(1, "orders", lost=9, streams=(of(APP, "orders", lost=1),)))
    (row,) = topics(telling(sub))
    assert row.lost_by == (("model.py (pid 2 on b)", 9),)


def test_a_publisher_that_vanished_is_none_and_its_trouble_is_told() -> None:
    left = subscribing(MODEL, SubStats(1, "orders", streams=(of(APP, "orders", state="vanished"),)))
    (row,) = topics(telling(left))
    assert (row.publishers, row.subscribers, row.trouble) == (0, 1, "b:1: vanished")


def test_who_is_in_trouble_says_so_everywhere_and_goes_at_no_rate() -> None:
    told = telling(SENDS, TAKES)
    told[0].trouble = "its link broke"
    (row,) = topics(told)
    assert (row.rate, row.trouble) == (Rates(), "app.py (pid 1 on b): its link broke")
    app, model = peers(told)
    assert (app.process.trouble, app.put_rate) == ("its link broke", Rates())
    assert (model.process.trouble, model.take_rate) == ("", rate(20))


def test_who_tells_nothing_any_more_is_said_to_be_mute() -> None:
    told = telling(SENDS, TAKES)
    assert peers(told, now=104.0)[0].process.trouble == ""
    assert peers(told, now=109.0)[0].process.trouble == "it has told nothing for 9 s"


def test_who_was_never_reached_is_there_with_why() -> None:
    told = [Told("b:1", trouble="no way leads to it"), *telling(TAKES)]
    (row, _) = peers(told)
    assert row.process == Process("b:1", "", "b:1", "no way leads to it")
    assert row.stats is None
    (stream,) = streams(told, "orders")
    assert stream.publisher == Process("b:1", "app", "b:1", "no way leads to it")


def test_a_process_sums_its_pubs_subs_and_links() -> None:
    busy = SENDS._replace(
        links=(
            LinkStats("subscriber", "model", True, in_rate=rate(1), out_rate=rate(9)),
            LinkStats("publisher", "gone", False, in_rate=rate(2)),
        ),
        coordinators=(CoordinatorStats("a:1", True), CoordinatorStats("b:2", False, "refused")),
    )
    row = peers(telling(busy))[0]
    assert (row.put_rate, row.in_rate, row.out_rate) == (rate(30), rate(3), rate(9))
    assert (row.links_up, row.coordinators_up, row.lag) == (1, 1, 7)
    named, unnamed = sorted(links(telling(busy, TAKES), "app"), key=lambda each: each.link.role)[
        ::-1
    ]
    assert named.other.who == "model.py (pid 2 on b)"
    assert unnamed.other.who == "gone"


def test_each_row_has_the_most_important_of_its_causes() -> None:
    causes = [
        blamed("the loop of 'app.py' was blocked", publisher="app.py (pid 1 on b)"),
        blamed("'model.py' is slow", "orders", subscriber="model.py (pid 2 on b)"),
        blamed("nothing was put", "other"),
    ]
    told = telling(SENDS, TAKES, publishing(TAIL, PubStats(1, "other")))
    orders, less = topics(told, causes), topics(told, causes[1:])
    assert [(row.topic, row.why) for row in orders] == [
        ("orders", "the loop of 'app.py' was blocked"),
        ("other", "nothing was put"),
    ]
    assert less[0].why == "'model.py' is slow"
    by_sub = {row.subscriber.who: row.why for row in streams(told, "orders", causes[1:])}
    assert by_sub == {"model.py (pid 2 on b)": "'model.py' is slow", "tail.py (pid 3 on b)": ""}
    assert [row.why for row in peers(told, causes)] == [
        "the loop of 'app.py' was blocked", "'model.py' is slow", "",
    ]  # fmt: skip


def test_who_is_known_and_tells_nothing_is_a_process_with_a_name() -> None:
    mute = [
        Mute("old", "old.py (pid 4 on b)", "b:4", "it is of an older version"),
        Mute("ap", "app.py (pid 1 on b)", "b:1", "it does not answer"),
        Mute("mod", "model.py (pid 2 on b)", "b:9", "of no matter: it has told something"),
    ]
    told = [Told("b:1", trouble="no way leads to it"), *telling(TAKES)]
    app, model, old = peers(told, mute=mute)
    assert app.process == Process("b:1", "ap", "app.py (pid 1 on b)", "it does not answer")
    assert (model.process.trouble, model.stats) == ("", TAKES)
    assert (old.process.who, old.stats) == ("old.py (pid 4 on b)", None)
    (stream,) = streams(told, "orders", mute=mute)
    assert stream.publisher == app.process._replace(peer_id="app")


def test_nothing_told_is_no_row() -> None:
    assert not any((topics([]), streams([], "t"), peers([]), links([], "x")))
