"""`pubsub info`, `pubsub rate` and `pubsub delay`: what they print, and how they end.

What `info` says where something is wrong is in tests/faults/test_seeing.py, with real faults.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from pubsub import Peer
from pubsub.cli.delay import Delays, Second, clock
from pubsub.cli.info import without_list
from pubsub.cli.speed import Seconds
from pubsub.cli.surveying import AWAY, OLDER, heard, unheard
from pubsub.core.rights import Rights
from pubsub.stats import PubStats, Rates, Stats
from pubsub.stats.why import FAULT
from pubsub.survey import Told
from tests.cli.processes import LONG, Result, Start, execute
from tests.integration.support import free_port

APP = """
import sys, time
from pubsub import Pub
with Pub(sys.argv[1]) as pub:
    print("there", flush=True)
    while True:
        pub.put(bytes(1000))
        time.sleep(0.01)
"""


@pytest.fixture
def published(start: Start, coordinator: str, topic: str) -> str:
    """A topic on which somebody puts something."""
    assert start("python", "-c", APP, topic, coordinator=coordinator).out() == "there"
    return topic


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.lines]


# --- the commands -------------------------------------------------------------------------------


def test_info_shows_who_publishes_and_subscribes(published: str, coordinator: str) -> None:
    with Peer(coordinator, name="model") as peer, peer.sub(published) as sub:
        sub.get(LONG)
        found = json.loads(
            execute("pubsub", "info", published, "--json", coordinator=coordinator).out
        )
        (pub,) = found["publishers"]
        assert pub["topic"] == published
        assert pub["put"] > 0
        assert pub["rate"] > 0
        assert pub["subscribers"] == 1
        (row,) = found["subscribers"]
        assert row["subscriber"].startswith("model (pid ")
        assert row["state"] == "attached"
        assert row["lag"] > 0  # it takes nothing any more
        assert found["not_seen"] == []
        shown = execute("pubsub", "info", "test/*", coordinator=coordinator)
        heads = [line.split() for line in shown.lines if "MSG/S" in line]
        assert [head[:2] for head in heads] == [["TOPIC", "PUBLISHER"], ["PATTERN", "SUBSCRIBER"]]
        assert shown.code == 1
        assert re.search(r"^WRONG  model \(pid .* has taken nothing of ", shown.text, re.MULTILINE)


def test_info_subscribes_nothing(published: str, coordinator: str) -> None:
    found = execute("pubsub", "info", published, "--json", coordinator=coordinator)
    assert json.loads(found.out)["subscribers"] == []
    assert [cause["kind"] for cause in json.loads(found.out)["why"]] == ["unsubscribed"]
    assert found.code == 0  # it may be as it should be


def test_info_of_a_topic_that_nobody_has_says_so_and_what_to_do(coordinator: str) -> None:
    found = execute("pubsub", "info", "not/there", coordinator=coordinator)
    assert found.code == 1
    assert found.lines == ["WRONG  nobody publishes or subscribes 'not/there'"]
    assert found.err == (
        "pubsub: `pubsub doctor 'not/there'` looks further: at credentials, coordinators and ways\n"
    )


def test_rate_adds_up_what_publishers_tell(published: str, coordinator: str) -> None:
    found = execute("pubsub", "rate", published, "x", "-n", "2", "--json", coordinator=coordinator)
    assert (found.code, found.err) == (0, "")
    rows = lines(found)
    assert [row["topic"] for row in rows] == [published, "x"] * 2
    assert all(row["rate"] > 1 for row in rows[::2])
    assert all(1000 <= row["size"] < 1010 for row in rows[::2])
    assert [row["publishers"] for row in rows] == [1, 0] * 2
    assert rows[1]["size"] is None
    shown = execute("pubsub", "rate", published, "-n", "1", coordinator=coordinator)
    assert shown.lines[0].split() == "TIME MSG/S BYTES/S SIZE VARIES PUBS TOPIC".split()
    assert shown.lines[1].endswith(f"    1  {published}")
    assert re.fullmatch(rf"pubsub: {published}: \d+ messages/s over 1 s, \d+ to \d+\n", shown.err)


def test_rate_of_what_nobody_publishes_fails(coordinator: str) -> None:
    found = execute("pubsub", "rate", "not/there", "-n", "1", coordinator=coordinator)
    assert found.code == 1
    assert "nobody publishes any of it (`pubsub info TOPIC` says more)" in found.err


def test_delay_shows_how_long_messages_take(published: str, coordinator: str) -> None:
    found = execute("pubsub", "delay", published, "-n", "2", "--json", coordinator=coordinator)
    assert (found.code, found.err) == (0, "")
    *seconds, account = lines(found)
    assert len(seconds) == 2
    for row in (*seconds, account["all"]):
        assert row["messages"] > 0
        assert 0 <= row["p50"] <= row["p99"] <= row["max"]
        assert row["lost"] == 0
    assert account["clocks"] == []  # of one machine there is one
    shown = execute("pubsub", "delay", published, "-n", "1", coordinator=coordinator)
    assert shown.lines[0].split() == "TIME MESSAGES P50 P99 MAX LOST".split()
    assert re.fullmatch(r"pubsub: \d+ messages, lost 0: p50 .*, p99 .*, max .*\n", shown.err)


def test_delay_where_nothing_comes_fails(coordinator: str) -> None:
    found = execute("pubsub", "delay", "not/there", "-n", "1", coordinator=coordinator)
    assert (found.code, found.err) == (1, "pubsub: nothing came (`pubsub info TOPIC` says why)\n")


@pytest.mark.parametrize("command", ["rate", "delay"])
def test_ctrl_c_ends_it_with_an_account(
    start: Start, published: str, coordinator: str, command: str
) -> None:
    running = start("pubsub", command, published, coordinator=coordinator)
    running.out(), running.out()
    running.interrupt()
    code, _, err = running.end()
    assert code == 130
    assert len(err) == 1
    assert "messages" in err[0]


@pytest.mark.parametrize("command", ["info", "rate", "delay"])
def test_without_a_coordinator_it_fails_at_once(command: str) -> None:
    found = execute("pubsub", command, "t", coordinator=f"127.0.0.1:{free_port()}")
    assert found.code == 1
    assert re.fullmatch(r"pubsub: no coordinator at .* start one with .*\n", found.err)
    assert execute("pubsub", command, "a//b", coordinator="127.0.0.1:1").code == 2
    assert execute("pubsub", command, coordinator="127.0.0.1:1").code == 2


# --- who is asked -------------------------------------------------------------------------------


class Known:
    """A survey that has this."""

    def __init__(self, *told: Told) -> None:
        self.peers = {each.publisher: each for each in told}


class By:
    peer_id = "mine"


def row(peer_id: str, **more: Any) -> dict[str, Any]:
    address = f"{peer_id}:1"
    known = {"peer_id": peer_id, "address": address, "ways": [address], "state": "connected"}
    return {**known, "name": f"{peer_id}.py", "pid": 7, "hostname": "h", **more}


def test_those_that_tell_nothing_are_known_with_why() -> None:
    now = time.monotonic()
    known: Any = Known(
        Told("one:1", Stats("one-and-more"), at=now),
        Told("hangs:1", None, trouble="it is not reached yet"),
        Told("stopped:1", Stats("stopped", "stopped.py", 8, "h"), at=now - 60.0),
        Told("local", Stats("mine"), at=now),
        Told("alone:1", None),
    )
    by: Any = By()
    assert [stats.peer_id for stats in heard(known, by)] == ["one-and-more"]
    rows = [row("one"), row("mine"), row("old"), row("gone", state="away"), row("hangs")]
    found = {each.who: each.trouble for each in unheard(known, rows, by)}
    assert found == {
        "old.py (pid 7 on h)": OLDER,
        "gone.py (pid 7 on h)": AWAY,
        "hangs.py (pid 7 on h)": "it is not reached yet",
        "stopped.py (pid 8 on h)": "it does not answer",
        "alone:1": "it does not answer",
    }


MAY = Rights(publish=("sensors/*",), subscribe=("lamps/**",))
NEITHER = (
    "this certificate may neither subscribe nor publish 'x': it may subscribe 'lamps/**', and may "
    "publish 'sensors/*'"
)
ROWS = [{"topic": "sensors/a", "publishers": 1, "subscribers": 0}]


@pytest.mark.parametrize(
    ("topic", "wrong", "said"),
    [
        ("x", True, [NEITHER]),
        (
            *("sensors/a", False),
            [
                "this certificate may not subscribe 'sensors/a': it may subscribe 'lamps/**'",
                "the coordinator knows 1 publisher and 0 subscribers of 'sensors/a'",
            ],
        ),
        (
            *("lamps/a", True),
            [
                "this certificate may not publish 'lamps/a': it may publish 'sensors/*'",
                "the coordinator knows nobody who publishes or subscribes 'lamps/a'",
            ],
        ),
        ("**", False, ["the coordinator knows 1 publisher and 0 subscribers of '**'"]),
    ],
)
def test_without_the_right_to_list_its_rights_and_the_counts_are_said(
    topic: str, wrong: bool, said: list[str]
) -> None:
    found = without_list(topic, MAY, ROWS)
    assert [cause.sentence for cause in found] == said
    assert any(cause.weight >= FAULT for cause in found) is wrong


# --- figures ------------------------------------------------------------------------------------


def test_the_rate_of_a_pattern_is_that_of_all_its_topics() -> None:
    def told(a_second: float) -> list[Stats]:
        rates = Rates(a_second, 0.0, 0.0)
        size = Rates(a_second * 100, 0.0, 0.0)
        pubs = (PubStats(1, "t/a", rate=rates, byte_rate=size), PubStats(2, "x", rate=rates))
        return [Stats("a", pubs=pubs), Stats("b", pubs=(PubStats(1, "t/b", rate=rates),))]

    seconds = Seconds("t/*")
    assert seconds.add(told(10.0)) == ("t/*", 20.0, 1000.0, 50.0, None, 2)
    assert seconds.add(told(30.0)).varies == 0.5  # 20 and 60
    assert seconds.add([]).rate == 0
    assert seconds.account() == "t/*: 27 messages/s over 3 s, 0 to 60"


def test_delays_of_a_second_and_of_all() -> None:
    delays = Delays()
    for n in range(100):
        delays.take("a#1", n / 1000)
    delays.lose(3)
    assert delays.second() == (100, 0.05, 0.098, 0.099, 3)
    assert delays.second() == Second(0, None, None, None, 0)
    delays.take("a#1", -0.002)
    assert delays.fastest == {"a#1": -0.002}
    assert (delays.taken, delays.lost, len(delays.all)) == (101, 3, 101)


@pytest.mark.parametrize(
    ("fastest", "round_trip", "said"),
    [
        (0.0002, 0.0003, ""),
        (-0.0004, 0.0003, ""),
        (-2.0, 0.001, "is ahead of this one by 2.0 s to 2.0 s: its delays are longer than"),
        (0.3, 0.1, "is behind this one by 200 ms to 300 ms, or all of its messages waited"),
        (-0.5, None, "is ahead of this one by 500 ms or more"),
        (0.5, None, "is not known: it could not be asked"),
    ],
)
def test_what_is_known_of_another_clock(
    fastest: float, round_trip: float | None, said: str
) -> None:
    sentence = clock("w2", fastest, round_trip)
    assert said in sentence
    assert bool(said) == bool(sentence)
