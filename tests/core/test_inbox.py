"""An inbox: what waits for one Sub, and what is conflated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.core.inbox import MAX_REPORTS, OVER, REMEMBERED, Inbox
from pubsub.core.stream import Entry, Stream, StreamKey
from pubsub.wire.frames import BATCH_COST


class Route:
    """The way back; remembers."""

    def __init__(self) -> None:
        self.unsubscribed: list[Stream] = []

    def ack(self, stream: Stream) -> None:
        stream.credit.grant()

    def unsubscribe(self, stream: Stream) -> None:
        self.unsubscribed.append(stream)


def opened(inbox: Inbox, number: int = 1, topic: str = "topic", due: int = 0) -> Stream:
    stream = Stream(inbox, StreamKey("publisher", number), topic, "publisher:1", 10**6)
    inbox.add(stream)
    stream.connect(Route(), number)
    stream.opened(topic, "msgpack", due, due, 10**9)
    return stream


def batch(stream: Stream, first: int, count: int = 1, size: int = BATCH_COST) -> None:
    """A batch, behind the GAP that says what it skips."""
    if stream.expected is not None and stream.expected < first:
        stream.gap(stream.expected, first, "overflow")
    stream.batch(first, count, 0.0, b"." * (size - BATCH_COST), ())


def rest(inbox: Inbox) -> Iterator[Entry]:
    return iter(inbox.take, None)


# --- waiting ------------------------------------------------------------------------------------


def test_entries_wait_in_the_order_in_which_they_came() -> None:
    inbox = Inbox(1, "*", window=10**6)
    one, two = opened(inbox, 1), opened(inbox, 2)
    assert inbox.empty
    batch(one, 0)
    batch(two, 0)
    batch(one, 1)
    assert not inbox.empty
    assert [(e.stream, e.first) for e in rest(inbox)] == [(one, 0), (two, 0), (one, 1)]
    assert inbox.empty
    assert inbox.take() is None


def test_whoever_waits_hears_of_every_entry() -> None:
    inbox = Inbox(1, "*", window=10**6)
    seen: list[bool] = []
    inbox.on_entry = lambda: seen.append(inbox.empty)
    stream = opened(inbox)
    batch(stream, 0)
    stream.end(2)
    assert seen == [False, False]


def test_a_gap_by_itself_is_nothing_to_acknowledge() -> None:
    inbox = Inbox(1, "topic", window=10**6)
    calls: list[int] = []
    inbox.window.on_consumed = lambda credit, stage: calls.append(stage)
    stream = opened(inbox)
    stream.end(2)
    [gap] = rest(inbox)
    assert gap.gaps == ((2, "closed"),)
    assert calls == []


def test_a_gap_in_the_place_of_a_batch_is_acknowledged() -> None:
    for latest in (False, True):
        inbox = Inbox(1, "topic", window=10**6, latest=latest)
        calls: list[int] = []
        inbox.window.on_consumed = lambda credit, stage, calls=calls: calls.append(stage)  # type: ignore[misc]
        stream = opened(inbox)
        stream.gap(0, 2, "too large")
        assert [entry.gaps for entry in rest(inbox)] == [((2, "too large"),)]
        assert calls == [1]
        assert stream.credit.grant() == (2, 10**6 + BATCH_COST)


def test_defaults_do_nothing() -> None:
    inbox = Inbox(1, "topic", window=4)
    stream = opened(inbox)
    batch(stream, 0)
    assert inbox.take() is not None
    assert (inbox.history, inbox.observer, inbox.latest) == (0, False, False)


def test_a_stream_that_cannot_be_read_is_refused_and_shown_as_an_error() -> None:
    inbox = Inbox(1, "topic", window=10**6)
    error = ValueError("pickle is not allowed")
    inbox.accepts = lambda stream: error if stream.codec == "pickle" else None
    readable = opened(inbox, 1)
    route = Route()
    refused = Stream(inbox, StreamKey("publisher", 2), "topic", "publisher:1", 10**6)
    inbox.add(refused)
    refused.connect(route, 2)
    refused.opened("topic", "pickle", 3, 3, 1)
    assert route.unsubscribed == [refused]
    assert refused.ended
    assert list(inbox.streams.values()) == [readable]
    [entry] = rest(inbox)
    assert (entry.error, entry.first, entry.end, entry.gaps) == (error, 3, 3, ())
    assert inbox.lost == 0


# --- counting -----------------------------------------------------------------------------------


def test_g3_losses_are_counted_over_all_streams_also_ended_ones() -> None:
    inbox = Inbox(1, "*", window=10**6)
    one, two = opened(inbox, 1), opened(inbox, 2)
    batch(one, 3)
    batch(two, 5)
    assert inbox.lost == 8
    one.end(6)
    assert inbox.lost == 10
    inbox.lose(one, 1, "undecodable")  # found undecodable later
    inbox.lose(two, 1, "overflow")
    assert inbox.lost == 12
    assert (one.lost, two.lost) == (6, 6)
    two.finish()
    two.finish()
    assert inbox.lost == 12


def test_g3_what_waits_when_the_sub_is_closed_counts_as_lost() -> None:
    inbox = Inbox(1, "*", window=10**6)
    one, two = opened(inbox, 1), opened(inbox, 2)
    batch(one, 2, 3)
    batch(two, 0, 1)
    woken: list[bool] = []
    inbox.on_entry = lambda: woken.append(True)
    assert inbox.close() == [one, two]
    assert woken == [True]
    inbox.discard()
    assert inbox.lost == 6
    assert inbox.take() is None
    batch(one, 5)
    assert inbox.lost == 7, "what came meanwhile"
    assert woken == [True]
    for stream in (one, two):
        stream.finish()
    assert inbox.lost == 7


@pytest.mark.parametrize("latest", [True, False])
def test_g3_an_entry_waits_until_it_is_released(latest: bool) -> None:
    """Whoever is interrupted before it has what it needs of an entry looks at the same again."""
    inbox = Inbox(1, "*", latest=latest, window=10**6)
    calls: list[int] = []
    inbox.window.on_consumed = lambda credit, stage: calls.append(stage)
    stream = opened(inbox)
    batch(stream, 0)
    entry = inbox.peek()
    assert entry is not None
    batch(stream, 1)  # nothing overtakes what was looked at
    assert inbox.peek() is entry
    assert calls == []
    assert inbox.lost == 0
    stream.credit.took(entry.end, entry.size)
    inbox.release(entry)
    inbox.release(entry, True)  # interrupted, once more
    assert calls == [1, 1]
    following = inbox.peek()
    assert following is not None
    assert following.first == 1
    inbox.release(entry, True)
    assert inbox.peek() is following
    assert inbox.take() is following
    assert inbox.empty


def test_g3_the_newest_message_is_had_by_the_sub_or_overtaken_and_never_both() -> None:
    """In the middle of overtaking, when the older message is lost, the Sub finds the newer."""
    inbox = Inbox(1, "*", latest=True, window=10**6)
    stream = opened(inbox)
    batch(stream, 0)
    [slot] = inbox._newest
    newer = Entry(stream, 1, 2, size=BATCH_COST)
    older = slot.entry
    newer.slot, newer.claims = slot, {}
    slot.following = newer  # this is how far the link's thread has come
    assert older.claims is not None
    older.claims["by"] = "link"
    assert inbox.take() is newer
    assert inbox.empty
    stream.expected = 2
    batch(stream, 2)
    assert [entry.first for entry in rest(inbox)] == [2]


def test_slots_that_were_taken_are_forgotten() -> None:
    inbox = Inbox(1, "**", latest=True, window=10**9)
    for number in range(1000):
        stream = opened(inbox, number, f"topic/{number}")
        batch(stream, 1)
        stream.finish()
        assert len(list(rest(inbox))) == 2
    assert len(inbox._newest_of) < 100
    assert len(inbox._passed_of) < 100


# --- what nobody looks at ----------------------------------------------------------------------


def test_g6_gaps_that_nobody_looks_at_take_no_memory() -> None:
    inbox = Inbox(1, "*", window=1000)
    streams = 3 * MAX_REPORTS
    for number in range(streams):
        opened(inbox, number).end(2)
    assert inbox.lost == 2 * streams
    gaps = [entry.gaps for entry in rest(inbox)]
    assert len(gaps) == MAX_REPORTS + 1
    assert gaps[-1] == ((2 * (streams - MAX_REPORTS), "closed"),), "of several publishers"
    opened(inbox, streams).end(1)
    assert [(e.gaps, e.stream.publisher) for e in rest(inbox)] == [
        (((1, "closed"),), "publisher:1")
    ]


def test_g6_newest_messages_that_were_passed_over_take_no_memory() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**9)
    streams = 2 * MAX_REPORTS
    for number in range(streams):
        stream = opened(inbox, number)
        batch(stream, 0, 2)
        stream.finish()
    assert inbox.lost == 2 * streams - 1
    assert len(inbox._passed) <= MAX_REPORTS + 2
    assert sum(count for e in rest(inbox) for count, _ in e.gaps) == inbox.lost


def test_g6_errors_that_nobody_looks_at_take_no_memory() -> None:
    inbox = Inbox(1, "*", window=1000)
    inbox.accepts = lambda stream: ValueError("no")
    for number in range(2 * MAX_REPORTS):
        opened(inbox, number)
    assert len(list(rest(inbox))) == MAX_REPORTS


# --- keep="latest" ------------------------------------------------------------------------------


def test_only_the_newest_message_of_each_topic_waits() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**6)
    one, two, three = opened(inbox, 1, "a"), opened(inbox, 2, "b"), opened(inbox, 3, "a")
    batch(one, 0, 3)
    batch(two, 0)
    batch(three, 0)
    batch(two, 1)
    passed = [next(rest(inbox)) for _ in range(2)]
    assert [(e.stream, e.first, e.end, e.gaps) for e in passed] == [
        (one, 3, 3, ((3, "conflated"),)),
        (two, 2, 2, ((1, "conflated"),)),
    ]
    newest = list(rest(inbox))
    assert [(e.stream, e.first, e.end, e.skip) for e in newest] == [
        (three, 0, 1, 0),
        (two, 1, 2, 0),
    ]
    assert inbox.lost == 4
    assert inbox.empty


def test_the_newest_message_stands_at_the_end_of_its_batch() -> None:
    inbox = Inbox(1, "topic", latest=True, window=10**6)
    stream = opened(inbox, due=2)
    stream.batch(0, 6, 0.0, b"body", ())
    gap, entry = rest(inbox)
    assert gap.gaps == ((3, "conflated"),)
    assert (entry.first, entry.end, entry.skip, entry.gaps) == (5, 6, 5, ())


def test_what_was_overtaken_is_acknowledged() -> None:
    inbox = Inbox(1, "topic", latest=True, window=4000)
    calls: list[int] = []
    inbox.window.on_consumed = lambda credit, stage: calls.append(stage)
    stream = opened(inbox)
    batch(stream, 0, size=1500)
    assert calls == []
    batch(stream, 1, size=1500)
    assert calls == [2]
    assert stream.credit.grant() == (1, 5500)
    assert inbox.take() is not None  # the gap
    assert stream.credit.grant() is None
    assert inbox.take() is not None
    assert stream.credit.grant() == (2, 7000)


def test_what_is_passed_over_while_nobody_looks_takes_no_memory() -> None:
    inbox = Inbox(1, "topic", latest=True, window=10**6)
    inbox.window.on_consumed = lambda credit, stage: credit.grant() and None
    stream = opened(inbox)
    for seq in range(0, 1000, 2):
        batch(stream, seq)
    assert len(inbox._entries) == 0
    gap, entry = rest(inbox)
    assert {reason: count for count, reason in gap.gaps} == {
        "conflated": 499,
        "overflow": 499,
    }
    assert entry.first == 998
    assert inbox.lost == 998


def test_gaps_are_shown_also_where_no_message_waits() -> None:
    inbox = Inbox(1, "topic", latest=True, window=10**6)
    stream = opened(inbox)
    assert inbox.empty
    stream.end(3)
    assert not inbox.empty
    [gap] = rest(inbox)
    assert (gap.gaps, gap.first, gap.end) == (((3, "closed"),), 3, 3)
    assert inbox.lost == 3


def test_the_newest_message_stays_when_its_stream_ends() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**6)
    one = opened(inbox, 1, "a")
    batch(one, 0)
    one.end(1)
    two = opened(inbox, 2, "a")
    batch(two, 0)
    assert inbox.lost == 1  # counted for a stream that is over
    assert [(e.stream, e.gaps) for e in rest(inbox)] == [(one, ((1, "conflated"),)), (two, ())]


def test_a_stream_that_cannot_be_read_is_shown_first() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**6)
    batch(opened(inbox, 1), 0)
    inbox.accepts = lambda stream: ValueError("no")
    opened(inbox, 2)
    first, second = rest(inbox)
    assert first.error is not None
    assert (second.first, second.error) == (0, None)


def test_g3_the_newest_message_counts_as_lost_when_the_sub_is_closed() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**6)
    stream = opened(inbox)
    batch(stream, 1, 3)
    assert inbox.lost == 3
    inbox.close()
    inbox.discard()
    assert inbox.lost == 4
    assert inbox.empty
    batch(stream, 4)
    assert inbox.lost == 5


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # which stream, or take
            st.integers(0, 2),  # how much it leaps
            st.integers(1, 3),
            st.integers(0, 3),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_delivered_and_lost_is_what_came_and_the_last_one_is_the_newest(
    steps: list[tuple[int, int, int, int]], latest: bool
) -> None:
    inbox = Inbox(1, "*", latest=latest, window=10**9)
    streams = [opened(inbox, number, f"topic {number % 2}") for number in range(3)]
    delivered: list[tuple[Stream, int]] = []
    gaps = 0

    def take() -> bool:
        nonlocal gaps
        entry = inbox.take()
        if entry is None:
            return False
        gaps += sum(count for count, _ in entry.gaps)
        delivered.extend((entry.stream, seq) for seq in range(entry.first, entry.end))
        return True

    newest: dict[str, tuple[Stream, int]] = {}
    for which, leap, count, takes in steps:
        stream = streams[which]
        first = (stream.expected or 0) + leap
        batch(stream, first, count)
        newest[stream.topic] = (stream, first + count - 1)
        for _ in range(takes):
            take()
    while take():
        pass
    due = sum(stream.expected or 0 for stream in streams)
    assert len(delivered) + inbox.lost == due
    assert gaps == inbox.lost
    for stream in streams:
        mine = [seq for of, seq in delivered if of is stream]
        assert mine == sorted(set(mine))
    for topic, last in newest.items():
        assert [d for d in delivered if d[0].topic == topic][-1] == last


# --- who is gone --------------------------------------------------------------------------------


def test_g6_streams_that_are_gone_are_remembered_up_to_a_bound_and_the_last_ones() -> None:
    inbox = Inbox(1, "*", window=10**6)
    assert inbox.lonely
    vanished = [opened(inbox, number) for number in range(REMEMBERED + 10)]
    for stream in vanished:
        stream.vanish(False)
    assert list(inbox.gone.values()) == vanished[10:]
    ended = [opened(inbox, -number) for number in range(1, OVER + 11)]
    for stream in ended:
        stream.end(0)
    assert [stream for stream in ended if inbox.over(stream.key)] == ended[10:]
    assert inbox.streams == {}
    assert not inbox.lonely


def test_g3_of_more_who_vanish_than_anybody_looks_at_the_last_are_told_together() -> None:
    inbox = Inbox(1, "*", window=10**6)
    for number in range(MAX_REPORTS + 5):
        opened(inbox, number).vanish(False)
    told = list(rest(inbox))
    assert len(told) == MAX_REPORTS + 1
    assert told[-1].stream.publisher == "several publishers"
    assert told[-1].gaps == ((0, "vanished"),)


def test_g3_the_newest_message_stays_when_its_publisher_vanishes() -> None:
    inbox = Inbox(1, "*", latest=True, window=10**6)
    stream = opened(inbox)
    batch(stream, 0)
    batch(stream, 1)
    stream.vanish(False)
    word, newest = rest(inbox)
    assert word.gaps == ((1, "conflated"), (0, "vanished"))
    assert (newest.first, newest.end) == (1, 2)
    assert inbox.lost == 1
