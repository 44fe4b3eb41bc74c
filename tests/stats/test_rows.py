"""The rows that a process tells of itself, and how those of others are read."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.stats import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PastStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)

FULL = Stats(
    *("abc", "model.py", 71, "b", "10.0.0.1:7", "0.3", 1e9, 5.0, 2.5),
    pubs=(
        PubStats(
            1, "t", rate=Rates(1.0, 2.0, 3.0), subscribers=(SubscriberStats("x#1", idle=2.0),)
        ),
    ),
    subs=(SubStats(2, "t/*", lost_by=(("overflow", 3),), streams=(StreamStats("y#1"),)),),
    links=(LinkStats("publisher", "abc", True, "unix", round_trip=0.001),),
    loop=LoopStats(0.1, 0.2, 0.3, 4),
    coordinators=(CoordinatorStats("127.0.0.1:7700", True),),
    pool=1,
    past=(PastStats("pub", "old", 3, age=1.0),),
)


def travelled(stats: object) -> Any:
    return msgpack.unpackb(msgpack.packb(stats))


def test_what_one_process_tells_another_reads() -> None:
    assert Stats.from_rows(travelled(FULL)) == FULL
    assert FULL.who == "model.py (pid 71 on b)"


def test_what_an_older_version_does_not_say_has_its_default() -> None:
    rows = travelled(FULL)[:10]
    rows[9] = [[7, "t"]]
    assert Stats.from_rows(rows).pubs == (PubStats(7, "t"),)
    assert Stats.from_rows(rows).links == ()


def test_what_a_newer_version_says_besides_is_passed_over() -> None:
    rows = [*travelled(FULL), "news"]
    rows[9][0] += ["news", {"more": 1}]
    assert Stats.from_rows(rows) == FULL


def nested(depth: int) -> list[Any]:
    rows: list[Any] = []
    for _ in range(depth):
        rows = [rows]
    return rows


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (7, "a Stats is an array"),
        ({}, "a Stats is an array"),
        ([1], "peer_id is str, not 1"),
        (["", "", -1], "pid is int"),
        (["", "", True], "pid is int"),
        (["", "", 0, "", "", "", float("nan")], "time is float"),
        ([*[""] * 2, 0, *[""] * 3, 0, 0, 0, 5], "pubs is an array"),
        ([*[""] * 2, 0, *[""] * 3, 0, 0, 0, [5]], "a PubStats is an array"),
        (["", "", 10**5000], "pid is int, not one of more than 64 bits"),
        (["", "", 0, "", "", "", -(10**400)], "time is float, not one of more than 64 bits"),
        (["", "", 0, "", "", "", 1e300], "time is float, not 1e.300"),
        ([nested(5000)], "peer_id is str, not a list"),
        ([*[""] * 2, 0, *[""] * 3, 0, 0, 0, [[]] * 1_000_000], "at most 500,000 values"),
        ([[[0] * 1000] * 1000], "at most 500,000 values"),
    ],
)
def test_what_is_no_row_is_refused_and_named(rows: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Stats.from_rows(rows)


def test_no_text_of_another_process_reaches_a_terminal_as_it_is() -> None:
    stats = Stats.from_rows(["id", "\x1b[2Jevil\n", 1, "ho\u202est"])
    assert stats.name == "\\x1b[2Jevil\\n"
    assert stats.host == "ho\\u202est"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(anything, max_size=20), st.integers(0, len(Stats._fields) - 1), anything)
def test_whatever_comes_is_a_row_or_a_ValueError(rows: list[Any], place: int, odd: Any) -> None:
    almost = list(travelled(FULL))
    almost[place] = odd
    for each in (rows, almost):
        try:
            assert isinstance(Stats.from_rows(each), Stats)
        except ValueError:
            pass
