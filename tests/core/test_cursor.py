"""A cursor: what it sends next, how far its window lets it, what it holds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pubsub.core.cursor import Cursor, Skip, SubKey
from pubsub.core.log import Batch, Log
from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST

KEY = SubKey("subscriber", 1)
UNLIMITED = 10**9


def put(log: Log, *counts: int, size: int = 100) -> None:
    """Batches of so many messages, each of `size` bytes in all."""
    for count in counts:
        log.append(count, b"." * (size - BATCH_COST), (), 0.0)


def opened(log: Log, seq: int = 0, *, limit: int = UNLIMITED, observer: bool = False) -> Cursor:
    cursor = Cursor(KEY, log, seq, observer=observer)
    cursor.limit = limit
    return cursor


def taken(cursor: Cursor) -> list[int | Skip]:
    """All that may be sent now: the numbers of batches, and what is skipped between them."""
    found: list[int | Skip] = []
    while (what := cursor.take()) is not None:
        found.append(what if isinstance(what, Skip) else what.number)
    return found


class Nowhere:
    """An outlet that sends nothing."""

    address = way = ""
    taken = 0
    lends = False

    def enqueue(self, cursor: Cursor) -> None: ...

    def offer(self, cursor: Cursor, batch: Batch) -> bool:
        return True

    def end(self, cursor: Cursor, final: int, code: str, reason: str) -> None: ...

    def taken_over(self, cursor: Cursor) -> None: ...


# --- sending ------------------------------------------------------------------------------------


def test_g1_batches_are_sent_in_order_each_once() -> None:
    log = Log()
    cursor = opened(log)
    assert taken(cursor) == []
    put(log, 2, 3)
    assert taken(cursor) == [0, 1]
    assert cursor.next == cursor.sent_until == 5
    put(log, 1)
    assert taken(cursor) == [2]
    assert cursor.take() is None


def test_it_starts_in_the_middle_of_a_batch_with_the_whole_batch() -> None:
    log = Log()
    put(log, 3, 3)
    cursor = opened(log, 4)
    assert cursor.next == 4
    batch = cursor.take()
    assert isinstance(batch, Batch)
    assert (batch.first, batch.end) == (3, 6)


def test_g6_the_window_closes_at_its_limit() -> None:
    log = Log()
    cursor = opened(log, limit=700)
    put(log, 1, 1, 1, 1, size=300)
    assert taken(cursor) == [0, 1]
    assert cursor.sent == 600
    cursor.ack(1, 1000)
    assert taken(cursor) == [2]
    cursor.ack(2, 1199)  # one byte short
    assert taken(cursor) == []
    cursor.ack(2, 1200)
    assert taken(cursor) == [3]


def test_it_is_full_where_something_waits_and_its_window_has_no_room() -> None:
    log = Log()
    cursor = opened(log, limit=700)
    put(log, 1, 1, 1, size=300)
    assert not cursor.full  # it is attached nowhere
    cursor.outlet = Nowhere()
    assert not cursor.full  # what waits fits
    assert taken(cursor) == [0, 1]
    assert cursor.full
    cursor.ack(1, 1000)
    assert not cursor.full
    assert taken(cursor) == [2]
    assert not cursor.full  # nothing waits
    put(log, 1, size=5000)
    assert cursor.full
    cursor.ack(3, 1000)
    assert not cursor.full  # one may pass the limit
    while len(log):
        log.drop_first()
    assert not cursor.full  # what was to be sent has left


def test_one_batch_may_pass_the_limit_when_nothing_else_is_in_flight() -> None:
    log = Log()
    cursor = opened(log, limit=10)
    put(log, 1, 1, size=5000)
    assert taken(cursor) == [0]
    cursor.ack(1, 5000)  # all is acknowledged, but as much was sent as may be
    assert taken(cursor) == []
    cursor.ack(1, 5001)
    assert taken(cursor) == [1]


def test_none_may_pass_the_limit_while_something_is_in_flight() -> None:
    log = Log()
    cursor = opened(log, limit=500)
    put(log, 1, size=300)
    put(log, 1, size=5000)
    assert taken(cursor) == [0]
    cursor.ack(0, 600)
    assert taken(cursor) == []
    cursor.ack(1, 600)
    assert taken(cursor) == [1]


def test_a_limit_may_become_less() -> None:
    log = Log()
    cursor = opened(log, limit=1000)
    put(log, 1, 1, size=300)
    assert taken(cursor) == [0, 1]
    cursor.ack(0, 100)
    put(log, 1, size=300)
    assert taken(cursor) == []


def test_a_limit_of_0_sends_nothing() -> None:
    log = Log()
    cursor = opened(log, limit=0)
    put(log, 1)
    assert taken(cursor) == []


# --- falling off the tail -----------------------------------------------------------------------


def test_g3_what_left_the_log_before_it_was_sent_is_counted() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3, 1)
    log.drop_first()
    log.drop_first()
    assert taken(cursor) == [Skip(0, 5, "overflow"), 2]
    assert cursor.lost == 5
    assert cursor.sent == 2 * BATCH_COST


def test_g3_a_gap_that_its_subscriber_never_heard_of_counts_once() -> None:
    """Nor is forgotten what was sent before it, did not arrive, and has left meanwhile."""
    log = Log()
    cursor = opened(log)
    put(log, *[1] * 10)
    assert [cursor.take() is not None for _ in range(4)] == [True] * 4  # 0 to 3
    for _ in range(6):
        log.drop_first()
    assert (cursor.take(), cursor.lost) == (Skip(4, 6, "overflow"), 2)
    batch = cursor.take()
    assert isinstance(batch, Batch)
    assert batch.first == 6
    log.drop_first()
    log.drop_first()
    for _ in range(2):  # it was cut off, again and again, with 0 and 1 in its hands
        cursor.place(2)
        assert cursor.next == 8
        cursor.miss(2)
        assert cursor.lost == 6
    assert cursor.take() is not None
    cursor.ack(9, UNLIMITED)
    assert not cursor.gaps
    assert cursor.lost == 6


def test_g3_everything_may_have_left() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3)
    log.drop_first()
    log.drop_first()
    assert taken(cursor) == []
    assert (cursor.lost, cursor.next) == (5, 5)
    put(log, 1)
    assert taken(cursor) == [Skip(0, 5, "overflow"), 2]


def test_g3_a_gap_that_is_told_again_counts_once() -> None:
    """The subscriber was cut off before it heard of it, and comes back to where it stood."""
    log = Log()
    cursor = opened(log)
    put(log, 2, 3, 1)
    log.drop_first()
    assert taken(cursor) == [Skip(0, 2, "overflow"), 1, 2]
    assert cursor.lost == 2
    log.drop_first()
    cursor.place(0)
    cursor.miss(0)
    assert cursor.lost == 5  # what was sent, did not arrive and has left since is lost as well
    cursor.place(0)
    cursor.miss(0)
    assert cursor.lost == 5


def test_what_was_sent_and_then_dropped_is_not_lost() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3)
    assert cursor.take() is not None
    log.drop_first()
    assert taken(cursor) == [1]
    assert cursor.lost == 0


def test_g3_a_skip_that_waits_for_the_window_is_said_once_and_counts_at_once() -> None:
    log = Log()
    cursor = opened(log, limit=10)
    put(log, 1, size=300)
    assert taken(cursor) == [0]
    put(log, 1, size=300)
    log.drop_first()
    for lost in range(1, 1000):
        put(log, 1, size=300)
        log.drop_first()
        assert cursor.take() is None
        assert cursor.lost == lost
        assert len(cursor.gaps) == 1
        assert not cursor.at_end
    cursor.ack(0, 300 + BATCH_COST + 299)  # room for the GAP, but not for the batch behind it
    assert taken(cursor) == []
    cursor.ack(0, 300 + BATCH_COST + 300)
    assert taken(cursor) == [Skip(1, 1000, "overflow"), 1000]
    cursor.ack(1001, 10_000)
    assert not cursor.gaps


def test_g3_a_skip_passes_the_limit_with_the_batch_behind_it() -> None:
    """Else the batch might have left, each time, before the skip is acknowledged."""
    log = Log()
    cursor = opened(log, limit=10)
    put(log, 1, 1, 1, size=300)
    log.drop_first()
    assert taken(cursor) == [Skip(0, 1, "overflow"), 1]
    cursor.ack(2, 300 + BATCH_COST)
    assert taken(cursor) == []
    cursor.ack(2, 301 + BATCH_COST)
    assert taken(cursor) == [2]


def test_a_batch_passes_no_limit_of_another_channel_than_the_skip_before_it() -> None:
    log = Log()
    cursor = opened(log, limit=10)
    put(log, 1, 1, size=300)
    log.drop_first()
    assert cursor.take() == Skip(0, 1, "overflow")
    cursor.place(1)
    assert cursor.take() is None  # as much was sent as may be


def test_g3_what_is_skipped_behind_a_skip_waits_for_the_window() -> None:
    for refused in (False, True):
        log = Log()
        cursor = opened(log, limit=10)
        put(log, 1, 1, 1, size=300)
        log.drop_first()
        if refused:
            cursor.largest = 299
        assert cursor.take() == Skip(0, 1, "overflow")
        if not refused:
            log.drop_first()
        assert cursor.take() is None
        cursor.ack(1, BATCH_COST + 1)
        assert cursor.take() == Skip(1, 2, "too large" if refused else "overflow")


# --- acknowledgements ---------------------------------------------------------------------------


def test_an_ack_lets_go_of_whole_batches() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3, 1)
    assert taken(cursor) == [0, 1, 2]
    held = []
    for seq in range(7):
        cursor.ack(seq, UNLIMITED)
        held.append(cursor.held)
    assert held == [0, 0, 1, 1, 1, 2, 3]
    assert log.holds.at(3) == log.firm.at(3) == log.holds.total() == 1
    assert cursor.lag == 0


def test_lag_is_what_is_in_the_log_and_not_consumed() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3)
    assert cursor.lag == 5
    assert taken(cursor) == [0, 1]
    assert cursor.lag == 5
    cursor.ack(2, UNLIMITED)
    assert cursor.lag == 3


@pytest.mark.parametrize("seq", [3, 4, 2**64 - 1])
def test_an_ack_of_what_was_never_sent_is_refused(seq: int) -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3)
    assert cursor.take() is not None
    with pytest.raises(ProtocolError, match=f"an ACK of {seq} where it is between 0 and 2"):
        cursor.ack(seq, 5)
    assert (cursor.acked, cursor.limit) == (0, UNLIMITED)


def test_an_ack_that_goes_back_is_refused() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 2, 3)
    assert taken(cursor) == [0, 1]
    cursor.ack(3, UNLIMITED)
    with pytest.raises(ProtocolError, match="an ACK of 2 where it is between 3 and 5"):
        cursor.ack(2, UNLIMITED)
    cursor.ack(3, UNLIMITED)


def test_what_is_acknowledged_has_arrived_and_arrivals_do_not_go_back() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 4)
    assert taken(cursor) == [0]
    cursor.ack(2, UNLIMITED)
    assert cursor.received == 2
    cursor.arrived(4)
    cursor.arrived(3)
    cursor.ack(3, UNLIMITED)
    assert cursor.received == 4


def test_an_ack_after_the_log_has_dropped_what_was_sent() -> None:
    log = Log()
    cursor = opened(log)
    put(log, 1, 1, 1)
    assert cursor.take() is not None
    assert cursor.take() is not None
    log.drop_first()
    log.drop_first()
    cursor.ack(1, UNLIMITED)
    cursor.ack(2, UNLIMITED)
    assert log.holds.at(2) == log.holds.total() == 1
    assert taken(cursor) == [2]


# --- places -------------------------------------------------------------------------------------


def test_g5_placed_back_it_sends_again_and_holds_what_it_sends() -> None:
    log = Log()
    log.holds.add(0)
    put(log, 2, 3, 1)
    cursor = opened(log, 6)
    cursor.place(3)
    assert (cursor.next, cursor.acked, cursor.received, cursor.sent_until) == (3, 3, 3, 3)
    assert log.holds.at(1) == 1
    assert taken(cursor) == [1, 2]


def test_g5_placed_on_it_lets_go() -> None:
    log = Log()
    put(log, 2, 3, 1)
    cursor = opened(log, 0)
    cursor.place(6)
    assert log.holds.at(3) == log.holds.total() == 1
    assert taken(cursor) == []


def test_g5_what_left_the_log_cannot_be_gone_back_to() -> None:
    log = Log()
    put(log, 2, 3, 1)
    log.drop_first()
    cursor = opened(log, 6)
    cursor.place(0)
    assert cursor.next == 2
    assert taken(cursor) == [1, 2]


def test_released_it_holds_nothing() -> None:
    log = Log()
    put(log, 1, 1)
    cursors = [opened(log, 0), opened(log, 1), opened(log, 0, observer=True)]
    log.drop_first()
    for cursor in cursors:
        cursor.release()
    assert log.holds.total() == log.firm.total() == 0


def test_g8_an_observer_is_not_firm() -> None:
    log = Log()
    put(log, 1)
    cursor = opened(log, 0, observer=True)
    assert log.holds.total() == 1
    assert log.firm.total() == 0
    assert taken(cursor) == [0]
    cursor.ack(1, UNLIMITED)
    cursor.place(0)
    assert log.firm.total() == 0


class Places(RuleBasedStateMachine):
    """One log, several cursors, and for each a list of what it should have been given."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.batches: list[Batch] = []
        self.cursors: list[Cursor] = []
        self.position: list[int] = []  # sent or lost below it
        self.skipped: list[int] = []  # said to be lost below it
        self.sent: list[list[tuple[int, int]]] = []  # (end, size), since the last placing

    @initialize(observers=st.lists(st.booleans(), min_size=1, max_size=3))
    def begin(self, observers: list[bool]) -> None:
        for i, observer in enumerate(observers):
            self.cursors.append(Cursor(SubKey("s", i), self.log, 0, observer=observer))
            self.position.append(0)
            self.skipped.append(0)
            self.sent.append([])

    @rule(count=st.integers(1, 3), size=st.integers(0, 400))
    def put(self, count: int, size: int) -> None:
        self.batches.append(self.log.append(count, b"." * size, (), 0.0))

    @precondition(lambda self: len(self.log) > 0)
    @rule()
    def drop(self) -> None:
        self.log.drop_first()

    @rule(history=st.integers(0, 3))
    def trim(self, history: int) -> None:
        needed = {max(c.held, self.log.first_number) for c in self.cursors}
        self.log.trim(history)
        assert all(number >= self.log.first_number for number in needed)

    @rule(which=st.integers(0, 2))
    def take(self, which: int) -> None:
        which %= len(self.cursors)
        cursor, sent = self.cursors[which], self.sent[which]
        start = max(self.position[which], self.log.start)
        due = next((b for b in self.batches if b.end > start), None)
        lost = cursor.lost
        what = cursor.take()
        assert cursor.lost - lost == start - self.position[which]
        self.position[which] = start
        skips = start > self.skipped[which]
        if what is None:
            used = sum(size for _, size in sent)
            idle = not sent or cursor.acked >= sent[-1][0]
            size = 0 if due is None else due.size + BATCH_COST * skips
            full = used + size > cursor.limit and not (idle and used < cursor.limit)
            assert due is None or (full and cursor.admitted != due.number)
            return
        assert due is not None
        if skips:
            assert what == (self.skipped[which], start, "overflow")
            sent.append((start, BATCH_COST))
        else:
            assert what is due
            sent.append((due.end, due.size))
        assert cursor.sent == sum(size for _, size in sent)
        self.position[which] = self.skipped[which] = sent[-1][0]

    @rule(which=st.integers(0, 2), back=st.integers(0, 4), limit=st.integers(0, 3000))
    def ack(self, which: int, back: int, limit: int) -> None:
        cursor = self.cursors[which % len(self.cursors)]
        cursor.ack(max(cursor.acked, cursor.sent_until - back), limit)
        assert cursor.limit == limit

    @rule(which=st.integers(0, 2), back=st.integers(0, 6))
    def place(self, which: int, back: int) -> None:
        which %= len(self.cursors)
        cursor = self.cursors[which]
        seq = max(0, self.log.next_seq - back)
        cursor.place(seq)
        cursor.sent = 0
        self.sent[which] = []
        self.position[which] = self.skipped[which] = max(seq, self.log.start)
        assert cursor.next == self.position[which]

    @invariant()
    def holds_are_where_the_cursors_are(self) -> None:
        first = self.log.first_number
        assert self.log.holds._at == Counter(max(c.held, first) for c in self.cursors)
        assert self.log.firm._at == Counter(
            max(c.held, first) for c in self.cursors if not c.observer
        )

    @invariant()
    def what_is_not_acknowledged_is_held(self) -> None:
        for cursor in self.cursors:
            held = max(cursor.held, self.log.first_number)
            assert held <= max(self.log.locate(cursor.acked), self.log.first_number)
            assert cursor.acked <= cursor.sent_until <= cursor.next <= self.log.next_seq
            assert cursor.acked <= cursor.received


TestPlaces = Places.TestCase
TestPlaces.settings = settings(max_examples=100)
