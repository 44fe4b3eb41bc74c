"""A publication: who is owed what, what is dropped or waited for, when a flush is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pubsub.core.cursor import NO_LIMIT, Cursor, SubKey
from pubsub.core.log import Batch
from pubsub.core.publication import MAX_LEAVERS, Leaver, Publication
from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST
from pubsub.wire.messages import Subscribe

ANNE, BERT = SubKey("anne", 1), SubKey("bert", 1)
UNLIMITED = 10**9
JOIN, RESUME = 5.0, 30.0


class Outlet:
    """Where cursors send; it does nothing by itself."""

    address = "subscriber:1"
    way = "direct"
    taken = 0
    lends = False

    def __init__(self) -> None:
        self.queue: list[Cursor] = []
        self.ended: list[tuple[Cursor, int, str, str]] = []
        self.moved: list[Cursor] = []

    def offer(self, cursor: Cursor, batch: Batch) -> bool:
        self.enqueue(cursor)
        return True

    def enqueue(self, cursor: Cursor) -> None:
        self.queue.append(cursor)

    def end(self, cursor: Cursor, final: int, code: str, reason: str) -> None:
        self.ended.append((cursor, final, code, reason))

    def taken_over(self, cursor: Cursor) -> None:
        self.moved.append(cursor)

    def send(self) -> list[int]:
        """Take what all queued cursors may send, as a link does; the first numbers of it."""
        queue, self.queue = self.queue, []
        firsts = []
        for cursor in queue:
            while (batch := cursor.take()) is not None:
                firsts.append(batch.first)
            cursor.queued = False
        return firsts


class Calls:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def publication(
    *, block: bool = False, buffer: int = 10**6, history: int = 0, settled: bool = True
) -> Publication:
    made = Publication(
        7,
        "topic",
        block=block,
        buffer=buffer,
        history=history,
        join_timeout=JOIN,
        resume_timeout=RESUME,
        now=0.0,
    )
    if settled:
        made.answered(0.0)
        made.settle()
    return made


def put(made: Publication, *counts: int, size: int = 1000) -> None:
    """Batches of so many messages, each of `size` bytes in all."""
    for count in counts:
        made.append(count, b"." * (size - BATCH_COST), (), 0.0)


def attach(
    made: Publication,
    key: SubKey = ANNE,
    outlet: Outlet | None = None,
    *,
    resume: int | None = None,
    history: int | None = 0,
    limit: int = UNLIMITED,
    observer: bool = False,
    before: bool = False,
) -> tuple[Cursor, int, int]:
    asked = Subscribe(0, 7, key.sub_id, resume, history, limit, observer, before, NO_LIMIT)
    cursor, answer = made.attach(key, outlet or Outlet(), asked)
    return cursor, answer.due, answer.next


def states(made: Publication) -> dict[SubKey, str]:
    return {cursor.key: state for state, cursor in made.cursors()}


# --- from where ---------------------------------------------------------------------------------


def test_a_new_subscriber_gets_what_is_put_from_now_on() -> None:
    made = publication()
    put(made, 3)
    outlet = Outlet()
    cursor, due, first = attach(made, outlet=outlet)
    assert (due, first) == (3, 3)
    assert cursor.outlet is outlet
    put(made, 2)
    assert outlet.send() == [3]


@pytest.mark.parametrize(
    ("kept", "asked", "first"),
    [(0, None, 6), (3, None, 3), (3, 2, 4), (3, 9, 3), (100, None, 0), (3, 0, 6)],
)
def test_history_goes_back_where_both_sides_asked(kept: int, asked: int | None, first: int) -> None:
    made = publication(history=kept)
    put(made, 1, 1, 1, 1, 2)
    assert attach(made, history=asked)[1:] == (first, first)


def test_history_that_has_left_the_log_is_not_due() -> None:
    made = publication(history=100, buffer=2500)
    put(made, 1, 1, 1, 1)
    assert attach(made, history=None)[1:] == (2, 2)


def test_g4_a_subscriber_that_is_expected_gets_what_is_put_before_it_comes() -> None:
    made = publication()
    put(made, 2)
    made.expect(ANNE, before=False, observer=False, now=10.0)
    put(made, 1, 1)
    outlet = Outlet()
    assert attach(made, outlet=outlet)[1:] == (2, 2)
    assert outlet.send() == [2, 3]


@pytest.mark.parametrize("expected", [True, False], ids=["expected", "faster than its EXPECT"])
def test_g4_a_subscriber_older_than_the_pub_gets_the_first_message(expected: bool) -> None:
    made = publication(settled=False)
    put(made, 1, 1)
    if expected:
        made.expect(ANNE, before=True, observer=False, now=1.0)
        made.answered(0.0)
        made.settle()
    outlet = Outlet()
    assert attach(made, outlet=outlet, before=not expected)[1:] == (0, 0)
    made.expect(ANNE, before=True, observer=False, now=1.0)  # changes nothing any more
    assert outlet.send() == [0, 1]


def test_g4_the_first_messages_are_kept_for_older_subscribers_only_until_it_is_settled() -> None:
    made = publication(settled=False)
    put(made, 1, 1)
    assert not made.settled
    assert len(made.log) == 2
    made.settle()
    assert made.settled
    assert len(made.log) == 0
    made.expect(ANNE, before=True, observer=False, now=1.0)
    assert attach(made, ANNE, before=True)[1:] == (2, 2)
    assert attach(made, BERT, before=True)[1:] == (2, 2)
    made.settle()  # twice does no harm
    made.answered(0.0)


def test_a_younger_subscriber_does_not_get_what_is_kept_for_older_ones() -> None:
    made = publication(settled=False)
    put(made, 1, 1)
    made.expect(ANNE, before=False, observer=False, now=1.0)
    assert attach(made, ANNE)[1:] == (2, 2)
    assert attach(made, BERT)[1:] == (2, 2)


def test_g3_what_an_older_subscriber_missed_is_a_gap() -> None:
    made = publication(settled=False, buffer=2500)
    put(made, 1, 1, 1, 1)
    made.expect(ANNE, before=True, observer=False, now=1.0)
    cursor, due, first = attach(made)
    assert (due, first, cursor.lost) == (0, 2, 2)


def test_g3_what_one_that_was_expected_and_comes_late_missed_is_a_gap() -> None:
    made = publication(settled=False)
    made.expect(ANNE, before=True, observer=False, now=0.0)
    made.settle()
    put(made, 1, 1, 1)
    made.expire(JOIN)  # nobody is waited for any more
    put(made, 1)
    made.expect(ANNE, before=False, observer=False, now=JOIN)  # another coordinator says so later
    assert attach(made)[1:] == (0, 4)
    assert attach(made, BERT)[1:] == (4, 4)


def test_g3_what_one_missed_for_whom_there_was_no_place_is_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pubsub.core.publication.MAX_DETACHED", 0)
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)  # the last that has one
    made.expect(BERT, before=False, observer=False, now=0.0)
    put(made, 1, 1)
    made.expire(JOIN)
    assert attach(made, BERT)[1:] == (0, 2)


def test_g6_of_those_that_come_late_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pubsub.core.publication.MAX_LATE", 1)
    made = publication()
    for key in (ANNE, BERT):
        made.expect(key, before=False, observer=False, now=0.0)
    put(made, 1)
    made.expire(JOIN)
    assert len(made._late) == 1
    assert attach(made, BERT)[1:] == (0, 1)
    assert attach(made, ANNE)[1:] == (1, 1)


@pytest.mark.parametrize("how", ["it is gone", "the Pub is closed"])
def test_one_that_comes_late_is_forgotten(how: str) -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    put(made, 1)
    made.expire(JOIN)
    assert made._late
    if how == "it is gone":
        made.unexpect(ANNE)
    else:
        made.end("closed", "")
    assert not made._late


def test_g4_a_subscriber_whose_answer_was_lost_with_the_link_asks_again() -> None:
    made = publication()
    cursor, due, _ = attach(made)
    put(made, 1)
    made.detach(cursor, 1.0)
    outlet = Outlet()
    assert attach(made, outlet=outlet)[1:] == (due, due) == (0, 0)
    assert outlet.send() == [0]


def test_g5_a_subscriber_resumes_from_where_it_stands() -> None:
    made = publication()
    first_link, second_link = Outlet(), Outlet()
    cursor, _, _ = attach(made, outlet=first_link)
    put(made, 1, 1, 1)
    assert first_link.send() == [0, 1, 2]
    made.ack(cursor, 1, UNLIMITED)
    made.detach(cursor, 1.0)
    put(made, 1)
    again, due, first = attach(made, outlet=second_link, resume=2)
    assert again is cursor
    assert (due, first) == (2, 2)
    assert second_link.send() == [2, 3]
    assert first_link.queue == []


def test_g5_what_has_left_the_log_meanwhile_is_a_gap() -> None:
    made = publication(buffer=2500)
    cursor, _, _ = attach(made)
    made.detach(cursor, 0.0)
    put(made, 1, 1, 1, 1)
    cursor, due, first = attach(made, resume=0)
    assert (due, first, cursor.lost) == (0, 2, 2)


def test_g5_a_subscriber_that_was_given_up_resumes_with_a_gap() -> None:
    made = publication()
    cursor, _, _ = attach(made)
    put(made, 1)
    made.detach(cursor, 0.0)
    made.expire(RESUME)
    put(made, 1)
    cursor, due, first = attach(made, resume=0)
    assert (due, first, cursor.lost) == (0, 2, 2)


def test_g5_a_resume_lets_go_of_what_it_says_has_arrived() -> None:
    made = publication(block=True, buffer=1000)
    cursor, _, _ = attach(made)
    put(made, 1)
    assert cursor.take() is not None
    made.detach(cursor, 0.0)
    room = made.on_room = Calls()
    assert not made.room(1000)
    attach(made, resume=1)
    assert room.count
    assert len(made.log) == 0
    assert made.room(1000)


@pytest.mark.parametrize("known", [True, False])
def test_a_resume_behind_the_end_is_refused(known: bool) -> None:
    made = publication()
    put(made, 2)
    if known:
        attach(made)
    with pytest.raises(ProtocolError, match="a resume at 3 of a stream of 2 messages"):
        attach(made, resume=3)
    assert states(made) == ({ANNE: "attached"} if known else {})


def test_g5_a_subscriber_on_a_new_link_leaves_the_one_that_is_not_yet_known_to_be_broken() -> None:
    made = publication()
    old, new = Outlet(), Outlet()
    cursor, _, _ = attach(made, outlet=old)
    put(made, 1)
    old.send()
    assert attach(made, outlet=new, resume=1)[0] is cursor
    assert old.moved == [cursor]
    put(made, 1)
    assert old.queue == []
    assert new.send() == [1]
    assert made.attached == 1
    made.detach(cursor, 0.0)
    made.detach(cursor, 1.0)  # nothing: it was detached
    assert cursor.deadline == RESUME


# --- how long places are held -------------------------------------------------------------------


def test_places_are_held_until_their_time_is_up() -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=10.0)
    cursor, _, _ = attach(made, BERT)
    made.detach(cursor, 12.0)
    put(made, 1)
    assert states(made) == {ANNE: "expected", BERT: "reconnecting"}
    assert made.expire(14.9) == 15.0
    assert made.expire(15.0) == 42.0
    assert states(made) == {BERT: "reconnecting"}
    assert len(made.log) == 1
    assert made.expire(42.0) is None
    assert states(made) == {}
    assert len(made.log) == 0


def test_an_attached_subscriber_has_all_the_time_it_wants() -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    attach(made)
    assert made.expire(1e9) is None
    assert states(made) == {ANNE: "attached"}


@pytest.mark.parametrize(("block", "heard", "dropped"), [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_first_messages_are_kept_as_long_as_nobody_could_be_asked_unless_puts_would_wait(
    block: bool, heard: bool, dropped: bool
) -> None:
    made = publication(block=bool(block), settled=False)
    if heard:
        made.answered(0.0)
    assert made.expire(JOIN) is None
    assert made.settled == bool(dropped)


def test_the_first_messages_wait_for_the_join_timeout_where_a_coordinator_is_down() -> None:
    made = publication(settled=False)
    made.answered(0.0)
    assert made.expire(1.0) == JOIN


def test_the_first_messages_have_the_join_timeout_from_the_first_answer_on() -> None:
    made = publication(settled=False)
    assert made.expire(100.0) is None
    made.answered(100.0)
    made.answered(103.0)
    assert made.expire(101.0) == 100.0 + JOIN
    assert not made.settled
    made.expire(100.0 + JOIN)
    assert made.settled


def test_who_is_named_twice_or_after_the_end_is_not_expected_again() -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    put(made, 1)
    made.expect(ANNE, before=False, observer=False, now=3.0)
    assert made.expire(0.0) == JOIN
    assert attach(made)[1:] == (0, 0)
    made.end("closed", "")
    made.expect(BERT, before=False, observer=False, now=0.0)
    assert states(made) == {}


def test_who_is_named_gone_is_not_expected_any_longer() -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    put(made, 1)
    made.unexpect(ANNE)
    made.unexpect(ANNE)
    assert states(made) == {}
    assert len(made.log) == 0


def test_g7_what_a_coordinator_says_ends_nothing_that_ever_was_attached() -> None:
    made = publication()
    cursor, _, _ = attach(made)
    made.unexpect(ANNE)
    assert states(made) == {ANNE: "attached"}
    made.detach(cursor, 0.0)
    put(made, 1)
    made.unexpect(ANNE)
    assert states(made) == {ANNE: "reconnecting"}
    assert attach(made, resume=0)[1:] == (0, 0)


def test_g8_a_process_that_is_gone_holds_no_place() -> None:
    """Whether it was there or was only expected; and what is attached is no dead process's."""
    made = publication(block=True, buffer=10)
    cursor, _, _ = attach(made)
    made.detach(cursor, 0.0)
    expected, alive = SubKey(ANNE.peer_id, 2), SubKey(ANNE.peer_id, 3)
    made.expect(expected, before=False, observer=False, now=0.0)
    made.expect(BERT, before=False, observer=False, now=0.0)
    attach(made, alive)
    put(made, 1)
    flushed, room = Calls(), Calls()
    made.on_room = room
    made.when_received(flushed, observers=True)
    assert made.is_away(ANNE.peer_id)
    made.leave(ANNE.peer_id)
    assert room.count
    assert states(made) == {BERT: "expected", alive: "attached"}
    assert not made.is_away(ANNE.peer_id)
    assert made.is_away(BERT.peer_id)
    made.leave(ANNE.peer_id)
    made.leave(BERT.peer_id)
    assert states(made) == {alive: "attached"}
    assert [leaver.how for leaver in made.leavers] == ["away"]  # the others never were there
    assert flushed.count < 1  # one that is there has not received it
    made.remove(made._cursors[alive])
    assert flushed.count
    assert made.room(1)
    assert made.log.holds.total() == 0


@pytest.mark.parametrize("how", ["attached", "expired", "unexpected", "ended"])
def test_who_is_away_is_known_by_its_process_as_long_as_it_is_away(how: str) -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    assert made.is_away(ANNE.peer_id)
    if how == "attached":
        attach(made)
    elif how == "expired":
        made.expire(JOIN)
    elif how == "unexpected":
        made.unexpect(ANNE)
    else:
        made.end("closed", "")
    assert not made.is_away(ANNE.peer_id)
    assert not made._away


def test_a_subscriber_that_is_done_holds_nothing() -> None:
    made = publication()
    cursor, _, _ = attach(made)
    put(made, 1)
    made.remove(cursor)
    made.remove(cursor)
    assert (len(made.log), made.attached, states(made)) == (0, 0, {})
    again, _, _ = attach(made)
    made.remove(cursor)  # a namesake
    assert states(made) == {ANNE: "attached"}
    assert again is not cursor


# --- what is kept, dropped and waited for -------------------------------------------------------


def test_g6_the_oldest_leave_when_the_buffer_is_full() -> None:
    made = publication(buffer=3000)
    cursor, _, _ = attach(made)
    put(made, *[1] * 5)
    assert made.log.size == 3000
    assert made.log.start == 2
    assert cursor.take() == (0, 2, "overflow")
    assert cursor.take() is next(iter(made.log))
    assert cursor.lost == 2


def test_g6_one_batch_is_admitted_whatever_its_size() -> None:
    made = publication(buffer=10)
    attach(made)
    put(made, 1, 1)
    assert (len(made.log), made.log.start) == (1, 1)


def test_what_everybody_has_consumed_leaves() -> None:
    made = publication()
    outlet = Outlet()
    anne, _, _ = attach(made, ANNE, outlet)
    bert, _, _ = attach(made, BERT, outlet)
    put(made, 1, 1)
    outlet.send()
    made.ack(anne, 2, UNLIMITED)
    assert len(made.log) == 2
    made.ack(bert, 1, UNLIMITED)
    assert len(made.log) == 1
    made.ack(bert, 2, UNLIMITED)
    assert len(made.log) == 0


def test_without_subscribers_only_history_stays() -> None:
    made = publication(history=2)
    put(made, *[1] * 5)
    assert made.log.start == 3


def test_g8_a_dropping_pub_never_waits() -> None:
    made = publication(buffer=10)
    attach(made)
    put(made, 1)
    assert made.room(10**9)
    assert len(made.log) == 1


def test_a_blocking_pub_waits_for_those_that_are_behind() -> None:
    made = publication(block=True, buffer=3000)
    outlet = Outlet()
    cursor, _, _ = attach(made, outlet=outlet)
    put(made, 1, 1, 1)
    room = made.on_room = Calls()
    assert not made.room(1)
    outlet.send()
    made.ack(cursor, 1, UNLIMITED)
    assert room.count == 1
    assert made.room(1000)
    assert not made.room(1001)
    put(made, 1)
    assert made.log.start == 1
    assert cursor.lost == 0


def test_a_blocking_pub_admits_one_batch_whatever_its_size_when_the_log_is_empty() -> None:
    made = publication(block=True, buffer=10)
    attach(made)
    assert made.room(10**6)
    put(made, 1)
    assert not made.room(1)


def test_a_blocking_pub_lets_nothing_go_that_is_needed() -> None:
    """Its caller asked for room; a batch that grew beyond what was asked does not make it drop."""
    made = publication(block=True, buffer=1500)
    attach(made)
    put(made, 1, 1)
    assert len(made.log) == 2


def test_a_blocking_pub_lets_history_go_for_new_messages() -> None:
    made = publication(block=True, buffer=3000, history=100)
    put(made, 1, 1, 1)
    assert made.room(2000)
    assert made.log.start == 2
    put(made, 1, 1, 1)
    assert made.log.start == 3


def test_g8_an_observer_never_makes_a_pub_wait() -> None:
    made = publication(block=True, buffer=2000)
    made.expect(BERT, before=False, observer=True, now=0.0)
    cursor, _, _ = attach(made, observer=True)
    put(made, 1, 1)
    assert made.room(1000)
    put(made, 1)
    assert cursor.take() == (0, 1, "overflow")
    assert cursor.take() is next(iter(made.log))
    assert cursor.lost == 1


def test_g3_what_waits_for_room_takes_nothing_from_an_observer() -> None:
    """It may never be put: its Pub may be closed before there is room."""
    made = publication(block=True, buffer=3000)
    outlet, observed = Outlet(), Outlet()
    attach(made, observer=True, outlet=observed)
    put(made, 1)
    firm, _, _ = attach(made, key=BERT, outlet=outlet)
    put(made, 1, 1)
    assert not made.room(2000)  # the observer's one batch would not be enough
    assert made.log.start == 0
    assert observed.send() == [0, 1, 2]
    assert made.room(1000)
    assert made.log.start == 1
    assert outlet.send() == [1, 2]
    made.ack(firm, 2, UNLIMITED)
    assert made.room(2000)
    assert made.log.start == 2
    made.ack(firm, 3, UNLIMITED)
    assert made.room(10**9)
    assert not len(made.log)


@pytest.mark.parametrize("how", ["expired", "removed", "settled", "unexpected", "ended"])
def test_whoever_waits_for_room_hears_when_a_place_is_given_up(how: str) -> None:
    made = publication(block=True, buffer=10, settled=how != "settled")
    if how == "removed":
        cursor, _, _ = attach(made)
    else:
        made.expect(ANNE, before=False, observer=True, now=0.0)
        made.expect(BERT, before=False, observer=False, now=0.0)
    put(made, 1)
    room = made.on_room = Calls()
    if how == "expired":
        made.expire(JOIN)
    elif how == "removed":
        made.remove(cursor)
    elif how == "settled":
        made.settle()
        made.unexpect(BERT)
    elif how == "unexpected":
        made.unexpect(BERT)
    else:
        made.end("closed", "")
    assert room.count
    assert made.room(1)


# --- queueing -----------------------------------------------------------------------------------


def test_a_cursor_is_queued_once_until_its_outlet_says_otherwise() -> None:
    made = publication()
    outlet = Outlet()
    cursor, _, _ = attach(made, outlet=outlet, limit=1)
    put(made, 1, 1)
    assert outlet.queue == [cursor]
    assert outlet.send() == [0]
    put(made, 1)
    assert outlet.queue == [cursor]
    outlet.send()
    made.ack(cursor, 0, 5000)
    assert outlet.queue == [cursor]
    made.ack(cursor, 0, 5001)
    assert outlet.queue == [cursor]
    assert outlet.send() == [1, 2]
    made.ack(cursor, 3, 9000)
    assert outlet.queue == []  # there is nothing to send


def test_a_detached_cursor_is_not_queued() -> None:
    made = publication()
    outlet = Outlet()
    cursor, _, _ = attach(made, outlet=outlet)
    outlet.send()
    made.detach(cursor, 0.0)
    put(made, 1)
    assert outlet.queue == []
    made.ack(cursor, 0, 1)
    assert outlet.queue == []


# --- the end ------------------------------------------------------------------------------------


def test_the_end_is_told_to_all_that_are_attached_and_everything_is_let_go() -> None:
    made = publication()
    outlet = Outlet()
    anne, _, _ = attach(made, ANNE, outlet)
    made.expect(BERT, before=False, observer=False, now=0.0)
    put(made, 2, 1)
    watcher, flushed = Calls(), Calls()
    made.watchers.append(watcher)
    assert made.when_received(flushed, observers=False) is not None
    made.end("closed", "the Pub was closed")
    assert outlet.ended == [(anne, 3, "closed", "the Pub was closed")]
    assert made.ended
    assert (len(made.log), made.log.holds.total(), made.log.firm.total()) == (0, 0, 0)
    assert (watcher.count, flushed.count, made.attached) == (1, 1, 0)
    assert made.log.next_seq == 3
    made.remove(anne)
    made.unexpect(BERT)
    assert made.expire(1e9) is None


# --- flushing -----------------------------------------------------------------------------------


def flush(made: Publication, *, observers: bool = False) -> tuple[Calls, bool]:
    """A flush, and whether it waits."""
    calls = Calls()
    return calls, made.when_received(calls, observers=observers) is not None


def test_a_flush_without_subscribers_is_done() -> None:
    made = publication()
    put(made, 1)
    assert flush(made)[1] is False


def test_a_flush_waits_until_all_have_received_what_was_put() -> None:
    made = publication()
    outlet = Outlet()
    anne, _, _ = attach(made, ANNE, outlet)
    bert, _, _ = attach(made, BERT, outlet)
    put(made, 1)
    calls, waits = flush(made)
    assert waits
    assert anne.confirm == bert.confirm == 1
    put(made, 1)  # is not waited for
    outlet.send()
    anne.arrived(1)
    made.progress(anne)
    assert calls.count == 0
    made.ack(bert, 1, UNLIMITED)  # consumed is received
    assert calls.count == 1
    made.ack(bert, 2, UNLIMITED)
    made.ack(anne, 2, UNLIMITED)
    assert calls.count == 1
    assert flush(made)[1] is False


@pytest.mark.parametrize("state", ["stands", "goes on", "writes pieces", "breaks", "is expected"])
def test_g9_a_close_waits_for_an_observer_as_long_as_it_takes(state: str) -> None:
    made = publication()
    outlet = Outlet()
    if state == "is expected":
        made.expect(ANNE, before=False, observer=True, now=0.0)
        (cursor,) = [cursor for _, cursor in made.cursors()]
    else:
        cursor, _, _ = attach(made, ANNE, outlet, observer=True)
    for _ in range(100):
        put(made, 1)
    calls, patient = Calls(), Calls()
    assert made.when_received(calls, observers=True, hurries=True) is not None
    assert made.when_received(patient, observers=True) is not None
    made.hurry(0.0, named=True)
    if state == "breaks":
        made.detach(cursor, 0.0)
        assert (made.unreceived(100), made.behind(100)) == (0, ""), "it is due nothing now"
    for time in range(1, 40):
        if state == "goes on":
            cursor.arrived(time)
            made.progress(cursor)
        elif state == "writes pieces":
            cursor.pieces += 1
        made.hurry(time / 4, named=True)
        if calls.count:
            break
    gave_up_after = {"stands": 4, "is expected": 4, "breaks": 1}
    assert time == gave_up_after.get(state, 39)
    assert patient.count == 0, "a flush that hurries nobody waits on"
    if state == "stands":
        assert made.unreceived(100) == 100
        assert made.behind(100) == "subscriber:1#1 (attached, 100 behind)"


def test_g9_a_close_waits_for_who_is_no_observer_however_it_stands() -> None:
    made = publication()
    outlet = Outlet()
    attach(made, ANNE, outlet)
    bert, _, _ = attach(made, BERT, outlet)
    made.detach(bert, 0.0)
    put(made, 3)
    calls = Calls()
    waiter = made.when_received(calls, observers=True, hurries=True)
    for time in range(100):
        made.hurry(time, named=False)
    assert waiter is not None
    assert [cursor.key for cursor in waiter.pending] == [ANNE, BERT]
    assert (calls.count, made.unreceived(5)) == (0, 5)


def test_g9_a_close_waits_for_names_only_where_a_coordinator_may_give_them() -> None:
    made = publication(settled=False)
    put(made, 3)
    calls = Calls()
    assert made.when_received(calls, observers=True, hurries=True) is not None
    made.hurry(0.0, named=True)
    assert calls.count == 0
    made.hurry(0.25, named=False)
    assert calls.count == 1
    assert (made.unreceived(3), made.behind(3)) == (3, ""), "it is not known who they are"
    made.answered(1.0)
    assert made.unreceived(3) == 0


def test_flushes_are_asked_for_one_after_the_other() -> None:
    made = publication()
    outlet = Outlet()
    cursor, _, _ = attach(made, outlet=outlet)
    put(made, 1)
    first, _ = flush(made)
    put(made, 1)
    second, _ = flush(made)
    assert cursor.confirm == 1
    outlet.send()
    cursor.confirm = None
    cursor.arrived(1)
    made.progress(cursor)
    assert (first.count, second.count) == (1, 0)
    assert cursor.confirm == 2
    assert outlet.queue == [cursor]
    cursor.arrived(2)
    made.progress(cursor)
    assert (first.count, second.count) == (1, 1)


def test_a_flush_waits_for_the_expected_and_the_reconnecting_as_long_as_they_have_time() -> None:
    made = publication()
    made.expect(ANNE, before=False, observer=False, now=0.0)
    cursor, _, _ = attach(made, BERT)
    made.detach(cursor, 0.0)
    put(made, 1)
    calls, waits = flush(made)
    assert waits
    made.expire(JOIN)
    assert calls.count == 0
    made.expire(RESUME)
    assert calls.count == 1


@pytest.mark.parametrize("expected", [False, True])
def test_a_flush_waits_for_who_joins_meanwhile_and_is_due_what_was_put_before(
    expected: bool,
) -> None:
    made = publication(history=10, settled=False)
    put(made, 1)
    calls, waits = flush(made)
    assert waits  # for who may be older
    if expected:
        made.expect(ANNE, before=False, observer=False, now=0.0)
    cursor, due, _ = attach(made, history=None)
    made.answered(0.0)
    assert (due, calls.count) == (0, 0)
    cursor.take()
    made.ack(cursor, 1, UNLIMITED)
    assert calls.count == 1


def test_a_flush_goes_on_over_a_broken_link() -> None:
    made = publication()
    outlet = Outlet()
    cursor, _, _ = attach(made)
    put(made, 1)
    calls, _ = flush(made)
    assert cursor.take() is not None
    cursor.confirm = None  # the question was asked, and lost with the link
    made.detach(cursor, 0.0)
    attach(made, outlet=outlet, resume=0)
    assert cursor.confirm == 1
    assert outlet.send() == [0]
    assert calls.count == 0
    made.detach(cursor, 0.0)
    attach(made, resume=1)  # a resume says what has arrived
    assert calls.count == 1


def test_a_flush_waits_for_observers_where_it_is_told_to() -> None:
    made = publication()
    cursor, _, _ = attach(made, observer=True)
    put(made, 1)
    assert flush(made)[1] is False
    calls, waits = flush(made, observers=True)
    assert waits
    made.remove(cursor)
    assert calls.count == 1


def test_a_flush_waits_until_the_coordinators_have_named_the_subscribers() -> None:
    made = publication(settled=False)
    put(made, 1)
    calls, waits = flush(made)
    assert waits
    made.expect(ANNE, before=True, observer=False, now=0.0)
    made.answered(0.0)
    assert calls.count == 0  # it waits for Anne now
    cursor, _, _ = attach(made)
    assert cursor.take() is not None
    made.ack(cursor, 1, UNLIMITED)
    assert calls.count == 1
    put(made, 1)
    made.ack(cursor, 1, UNLIMITED)
    made.remove(cursor)
    assert flush(made)[1] is False


def test_a_flush_that_was_given_up_is_not_called() -> None:
    made = publication()
    cursor, _, _ = attach(made)
    put(made, 1)
    calls = Calls()
    waiter = made.when_received(calls, observers=False)
    assert waiter is not None
    made.forget_waiter(waiter)
    made.forget_waiter(waiter)
    made.remove(cursor)
    assert calls.count == 0


def test_a_flush_may_begin_another_one_when_it_is_done() -> None:
    made = publication()
    cursor, _, _ = attach(made)
    put(made, 1)
    order: list[str] = []

    def again() -> None:
        order.append("first")
        put(made, 1)
        made.when_received(lambda: order.append("second"), observers=False)

    made.when_received(again, observers=False)
    cursor.arrived(1)
    made.progress(cursor)
    assert order == ["first"]
    made.remove(cursor)
    assert order == ["first", "second"]


# --- for people ---------------------------------------------------------------------------------


def test_watchers_hear_of_every_subscriber_and_may_leave_meanwhile() -> None:
    made = publication()
    calls = Calls()

    def once() -> None:
        made.watchers.remove(once)
        calls()

    callbacks: list[Callable[[], None]] = [once, calls]
    made.watchers.extend(callbacks)
    attach(made, ANNE)
    assert calls.count == 2
    attach(made, BERT)
    assert calls.count == 3


def test_subscribers_are_named_with_how_they_stand_and_the_newborn_is_none() -> None:
    made = publication(settled=False)
    assert states(made) == {}
    made.expect(ANNE, before=False, observer=True, now=0.0)
    cursor, _, _ = attach(made, BERT)
    assert states(made) == {ANNE: "expected", BERT: "attached"}
    assert made.attached == 1
    made.detach(cursor, 0.0)
    assert states(made)[BERT] == "reconnecting"
    assert made.attached == 0


def test_g8_those_for_whom_a_put_waits_are_known_with_why_and_until_when() -> None:
    made = publication(block=True, buffer=10, settled=False)
    slow, _, _ = attach(made, SubKey("slow", 1))
    broken, _, _ = attach(made, SubKey("broken", 1))
    attach(made, SubKey("observer", 1), observer=True)
    made.expect(ANNE, before=True, observer=False, now=0.0)
    assert made.holding(0.0) == []  # nothing is kept for anybody
    put(made, 1, 1)
    made.detach(broken, now=1.0)
    fast, _, _ = attach(made, BERT, resume=2)
    holding = {holder.cursor.key: holder for holder in made.holding(2.0)}
    assert {key.peer_id: (h.state, h.held_for) for key, h in holding.items()} == {
        "": ("unnamed", JOIN - 2),
        "slow": ("attached", None),
        "broken": ("reconnecting", RESUME - 1),
        "anne": ("expected", JOIN - 2),
    }
    assert not made.holds(fast)

    def clock(left: float) -> str:
        return f"{left:g} past noon"

    assert [holder.why(3.2, clock) for holder in holding.values()] == [
        "subscribers (a coordinator may still name some that are older than the Pub; until 3 past "
        "noon, for 3 s)",
        "subscriber:1#1 (has taken nothing for 3 s; as long as its link lives)",
        "subscriber:1#1 (its link broke; until 29 past noon, for 29 s)",
        "peer anne#1 (a coordinator says that it comes; until 3 past noon, for 3 s)",
    ]
    assert holding[slow.key].why(None, clock).startswith("subscriber:1#1 (takes slowly; as long")


def test_g6_places_are_held_for_so_many_that_are_away_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pubsub.core.publication.MAX_DETACHED", 3)
    made = publication()
    for number in range(10):  # who come and go under ever new names
        cursor, _, _ = attach(made, SubKey("stranger", number))
        made.detach(cursor, now=0.0)
        made.expect(SubKey("rumour", number), before=False, observer=False, now=0.0)
    assert len(states(made)) <= 4
    assert made.log.holds.total() == len(states(made))
    here, _, _ = attach(made, ANNE)  # whoever is there is no matter of this
    assert states(made)[ANNE] == "attached"
    made.remove(here)
    made.expire(RESUME)
    assert not states(made)
    assert made.log.holds.total() == 0


# --- who is gone --------------------------------------------------------------------------------


def test_who_left_with_messages_not_taken_is_remembered() -> None:
    made = publication()
    outlets = Outlet(), Outlet()
    anne = attach(made, ANNE, outlets[0])[0]
    bert = attach(made, BERT, outlets[1], observer=True)[0]
    put(made, 3, 2)
    for outlet in outlets:
        outlet.send()
    made.ack(anne, 3, UNLIMITED)
    made.ack(bert, 5, UNLIMITED)
    made.remove(anne)
    made.remove(bert)
    assert list(made.leavers) == [("subscriber:1#1", "closed", 2, 0, False)]
    assert made.reached == 2


def test_who_was_lost_or_never_came_is_remembered() -> None:
    made = publication()
    attach(made, ANNE)
    made.expect(BERT, before=False, observer=False, now=0.0)
    nobody = SubKey("nobody", 1)
    made.expect(nobody, before=False, observer=False, now=0.0)
    put(made, 3)
    made.unexpect(nobody)  # it was closed before it came, and is owed nothing
    (anne,) = (cursor for state, cursor in made.cursors() if state == "attached")
    made.detach(anne, 0.0)
    made.expire(RESUME)
    assert sorted(made.leavers) == [
        ("peer bert#1", "absent", 3, 0, False),
        ("subscriber:1#1", "away", 3, 0, False),
    ]
    assert made.reached == 0


def test_whose_process_is_known_to_be_gone_is_remembered_where_it_was_there() -> None:
    made = publication()
    cursor = attach(made, ANNE)[0]
    made.expect(BERT, before=False, observer=False, now=0.0)
    put(made, 3)
    made.detach(cursor, 0.0)
    made.leave("anne")
    made.leave("bert")
    assert list(made.leavers) == [("subscriber:1#1", "away", 3, 0, False)]


def test_at_the_end_who_has_not_received_all_of_it_is_remembered() -> None:
    made = publication(buffer=2000)
    outlet = Outlet()
    anne = attach(made, ANNE, outlet)[0]
    bert = attach(made, BERT)[0]
    put(made, 1, 1)
    outlet.send()
    anne.arrived(2)
    put(made, 1)  # the first leaves, before Bert has it
    outlet.send()
    anne.arrived(3)
    bert.take()
    made.end("closed", "the Pub was closed")
    assert list(made.leavers) == [("subscriber:1#1", "end", 3, 1, False)]
    assert made.reached == 1


def test_g6_of_those_who_left_the_last_are_remembered() -> None:
    made = publication()
    for number in range(MAX_LEAVERS + 5):
        cursor = attach(made, SubKey("anne", number))[0]
        put(made, 1)
        made.remove(cursor)
    assert [leaver.name for leaver in made.leavers] == [
        f"subscriber:1#{number}" for number in range(5, MAX_LEAVERS + 5)
    ]
    assert made.reached == 0


class Unwalked(dict[SubKey, Cursor]):
    """A dict that nobody goes over."""

    def __iter__(self) -> Iterator[SubKey]:
        raise AssertionError("all were walked over")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_who_is_attached_is_not_looked_at_for_who_is_away() -> None:
    """A thousand others, four times a second, for one link that broke."""
    holding: dict[Publication, None] = {}
    made = Publication(
        7, "t", buffer=10**6, join_timeout=JOIN, resume_timeout=RESUME, now=0.0, holding=holding
    )
    assert list(holding) == [made], "for those who are older and still to be named"
    made.answered(0.0)
    made.settle()
    assert not holding
    outlet = Outlet()
    cursors = [attach(made, key, outlet)[0] for key in (ANNE, BERT)]
    made._cursors, made._attached = Unwalked(made._cursors), Unwalked(made._attached)
    made.detach(cursors[0], 1.0)
    assert list(holding) == [made]
    assert made.expire(2.0) == 1.0 + RESUME
    assert made.expire(1.0 + RESUME) is None
    assert not holding
    made.expect(ANNE, before=False, observer=False, now=50.0)
    assert list(holding) == [made]
    made.unexpect(ANNE)
    assert not holding
    made.detach(cursors[1], 60.0)
    attach(made, BERT, outlet, resume=0, history=None)
    assert not holding


# --- who lets nothing be sent to it -------------------------------------------------------------


class Shut:
    """A blocking Pub, full, and somebody whose first window is `limit`."""

    def __init__(self, limit: int = 0, *, block: bool = True, observer: bool = False) -> None:
        self.holding: dict[Publication, None] = {}
        self.made = publication(block=block, buffer=2000)
        self.made._holding = self.holding
        self.due: list[float] = []
        self.gone: list[Leaver] = []
        self.made.on_due = self.due.append
        self.made.on_shut = self.gone.append
        self.outlet = Outlet()
        self.cursor = self.attach(limit, observer=observer)
        put(self.made, 1, 1)
        self.outlet.send()

    def attach(self, limit: int, *, now: float = 0.0, observer: bool = False) -> Cursor:
        asked = Subscribe(0, 7, 1, None, 0, limit, observer, False, NO_LIMIT)
        return self.made.attach(ANNE, self.outlet, asked, now=now)[0]

    @property
    def waits(self) -> bool:
        return not self.made.room(1000)


def test_g8_who_lets_nothing_be_sent_to_it_is_cut_off_from_a_pub_that_waits() -> None:
    shut = Shut()
    assert shut.due == [RESUME]
    assert shut.holding == {shut.made: None}, "or nobody would look"
    assert shut.waits
    assert shut.cursor.held_for(10.0) == RESUME - 10.0
    assert shut.made.expire(RESUME - 0.1) == RESUME
    assert shut.waits
    assert shut.made.expire(RESUME) is None
    assert not shut.waits
    [(cursor, final, code, reason)] = shut.outlet.ended
    assert (cursor, final, code) == (shut.cursor, 0, "refused")
    assert "has let nothing be sent to it for 30 s" in reason
    assert shut.gone == [("subscriber:1#1", "shut", 2, 0, False)]
    assert not shut.holding
    assert not list(shut.made.cursors())


@pytest.mark.parametrize("how", ["by its first window", "by an ACK", "before its link broke"])
def test_g8_who_is_slow_is_waited_for_as_long_as_it_lives(how: str) -> None:
    shut = Shut(0 if how == "by an ACK" else 1)
    if how == "by an ACK":
        shut.made.ack(shut.cursor, 0, 1)
    elif how == "before its link broke":
        shut.made.detach(shut.cursor, 5.0)
        assert shut.attach(0, now=6.0) is shut.cursor
    shut.outlet.send()
    assert shut.cursor.held_for(0.0) is None
    assert shut.made.expire(1000.0) is None
    assert shut.waits
    assert not shut.outlet.ended
    assert not shut.holding


def test_g8_who_lets_nothing_be_sent_and_comes_again_and_again_has_no_more_time() -> None:
    shut = Shut()
    shut.attach(0, now=20.0)
    assert shut.outlet.moved == [shut.cursor]
    shut.made.detach(shut.cursor, 25.0)
    shut.attach(0, now=26.0)
    assert shut.made.expire(RESUME) is None
    assert shut.gone


def test_g8_who_has_no_room_yet_and_takes_messages_of_other_streams_is_spared() -> None:
    shut = Shut()
    shut.outlet.taken += 1
    assert shut.made.expire(RESUME) == 2 * RESUME
    assert shut.waits
    assert not shut.gone
    shut.made.expire(2 * RESUME)
    assert shut.gone, "it took nothing more"


@pytest.mark.parametrize("options", [{"block": False}, {"observer": True}], ids=str)
def test_who_holds_up_nobody_may_let_nothing_be_sent(options: dict[str, bool]) -> None:
    shut = Shut(**options)
    assert (shut.due, shut.holding) == ([], {})
    shut.made.expire(1000.0)
    assert not shut.outlet.ended


def test_who_lets_nothing_be_sent_where_nothing_is_put_is_not_cut_off() -> None:
    made = publication(block=True)
    outlet = Outlet()
    asked = Subscribe(0, 7, 1, None, 0, 0, False, False, NO_LIMIT)
    made.attach(ANNE, outlet, asked, now=0.0)
    assert made.expire(RESUME) == 2 * RESUME
    assert not outlet.ended
    put(made, 1)
    made.expire(2 * RESUME)
    assert outlet.ended


@pytest.mark.parametrize("how", ["unsubscribes", "ends", "breaks"])
def test_nobody_looks_for_one_that_let_nothing_be_sent_and_is_gone(how: str) -> None:
    shut = Shut()
    if how == "unsubscribes":
        shut.made.remove(shut.cursor)
    elif how == "ends":
        shut.made.end("closed", "")
    else:
        shut.made.detach(shut.cursor, 1.0)
        shut.made.expire(1.0 + RESUME)
    assert shut.made.expire(1000.0) is None
    assert not shut.holding
    assert not shut.gone
