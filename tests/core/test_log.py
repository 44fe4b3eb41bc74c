"""The log: a ring that drops at its old end, and says who still needs what."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pubsub.core.log import Batch, Holds, Log
from pubsub.wire.frames import BATCH_COST, SMALLEST_BUFFER
from tests.wire.buffers import whole


def filled(*counts: int) -> Log:
    """A log of batches of so many messages each."""
    log = Log()
    for count in counts:
        log.append(count, b"..", (), 0.0)
    return log


def test_a_batch_counts_its_bytes_and_what_holds_them() -> None:
    batch = Batch(3, 10, 2, b"12345", whole(b"x" * 5000, b"y" * 50), 7.5)
    assert batch.size == BATCH_COST + 5 + 5000 + SMALLEST_BUFFER
    assert (batch.first, batch.end, batch.count) == (10, 12, 2)
    assert (batch.number, batch.sent_at) == (3, 7.5)


def test_messages_are_numbered_from_0_without_a_hole() -> None:
    log = filled(2, 1, 3)
    assert [(b.number, b.first, b.end) for b in map(log.batch, range(3))] == [
        (0, 0, 2),
        (1, 2, 3),
        (2, 3, 6),
    ]
    assert log.next_seq == 6
    assert log.next_number == 3
    assert len(log) == 3
    assert next(iter(log)) is log.batch(0)


def test_numbers_stay_when_batches_go() -> None:
    log = filled(2, 1, 3)
    dropped = log.drop_first()
    assert (dropped.first, dropped.end) == (0, 2)
    assert log.start == 2
    assert log.first_number == 1
    assert log.batch(1).first == 2
    log.drop_first()
    log.drop_first()
    assert (len(log), log.size) == (0, 0)
    assert log.start == log.next_seq == 6
    assert log.first_number == log.next_number == 3
    assert log.append(1, b"", (), 0.0).first == 6


def test_locate_finds_the_batch_of_each_message() -> None:
    log = filled(2, 1, 3)
    assert [log.locate(seq) for seq in range(8)] == [0, 0, 1, 2, 2, 2, 3, 3]
    log.drop_first()
    assert [log.locate(seq) for seq in range(8)] == [1, 1, 1, 2, 2, 2, 3, 3]
    log.drop_first()
    log.drop_first()
    assert [log.locate(seq) for seq in range(8)] == [3] * 8


def test_holds_count_and_are_carried_on_when_a_batch_is_dropped_under_them() -> None:
    holds = Holds()
    for number in (1, 1, 2):
        holds.add(number)
    assert (holds.at(1), holds.at(2), holds.at(3), holds.total()) == (2, 1, 0, 3)
    holds.carry(1)
    assert (holds.at(1), holds.at(2), holds.total()) == (0, 3, 3)
    holds.carry(0)
    holds.remove(2)
    assert (holds.at(2), holds.total()) == (2, 2)
    holds.remove(2)
    holds.remove(2)
    assert holds.total() == 0
    with pytest.raises(KeyError):
        holds.remove(2)


def test_trim_stops_at_what_a_cursor_needs() -> None:
    log = filled(1, 1, 1)
    log.holds.add(1)
    assert log.trim(0)
    assert log.first_number == 1
    assert not log.trim(0)
    log.holds.remove(1)
    assert log.trim(0)
    assert len(log) == 0


@pytest.mark.parametrize(("history", "start"), [(0, 6), (1, 3), (3, 3), (4, 2), (5, 0), (6, 0)])
def test_trim_keeps_whole_batches_of_history(history: int, start: int) -> None:
    log = filled(2, 1, 3)
    log.trim(history)
    assert log.start == start


class Ring(RuleBasedStateMachine):
    """A log beside a plain list of all batches and a plain list of places."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.batches: list[Batch] = []
        self.gone = 0
        self.places: list[int] = []

    @rule(count=st.integers(1, 4), size=st.integers(0, 9), buffers=st.lists(st.just(b"xy")))
    def append(self, count: int, size: int, buffers: list[bytes]) -> None:
        self.batches.append(self.log.append(count, b"." * size, whole(*buffers), 0.0))

    @rule(back=st.integers(0, 5))
    def hold(self, back: int) -> None:
        place = max(len(self.batches) - back, self.gone)
        self.places.append(place)
        self.log.holds.add(place)

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 5))
    def release(self, which: int) -> None:
        self.log.holds.remove(self.places.pop(which % len(self.places)))

    @precondition(lambda self: len(self.log) > 0)
    @rule()
    def drop_first(self) -> None:
        assert self.log.drop_first() is self.batches[self.gone]
        self.gone += 1
        self.places = [max(place, self.gone) for place in self.places]

    @rule(history=st.integers(0, 6))
    def trim(self, history: int) -> None:
        before = self.gone
        put = sum(batch.count for batch in self.batches)
        while (
            self.gone < len(self.batches)
            and self.gone not in self.places
            and put - self.batches[self.gone].end >= history
        ):
            self.gone += 1
        assert self.log.trim(history) == (self.gone > before)

    @invariant()
    def alike(self) -> None:
        log, here = self.log, self.batches[self.gone :]
        put = sum(batch.count for batch in self.batches)
        assert len(log) == len(here)
        assert log.size == sum(batch.size for batch in here)
        assert log.next_seq == put
        assert (log.first_number, log.next_number) == (self.gone, len(self.batches))
        assert log.start == (here[0].first if here else put)
        for number, batch in enumerate(here, self.gone):
            assert log.batch(number) is batch
            assert {log.locate(seq) for seq in range(batch.first, batch.end)} == {number}
        assert log.holds._at == Counter(self.places)
        assert log.holds.total() == len(self.places)


TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=50)
