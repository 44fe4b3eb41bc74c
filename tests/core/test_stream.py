"""A stream on its subscribing side: order, gaps, and large buffers put together."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.codec.decoder import MsgpackDecoder
from pubsub.core.inbox import Inbox
from pubsub.core.stream import Entry, Stream, StreamKey
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import WholeBuffer
from pubsub.wire.frames import BATCH_COST, BUFFER_PIECE, SMALLEST_BUFFER
from tests.wire.buffers import contents, whole

WINDOW = 8192


class Route:
    """The way back; remembers."""

    def __init__(self) -> None:
        self.unsubscribed: list[Stream] = []

    def ack(self, stream: Stream) -> None:
        """Nothing: the tests ask for `grant` themselves."""

    def unsubscribe(self, stream: Stream) -> None:
        self.unsubscribed.append(stream)


def fresh(
    *, window: int = WINDOW, max_batch: int = 10**6, inbox: Inbox | None = None
) -> tuple[Inbox, Stream]:
    inbox = inbox or Inbox(1, "topic", window=window)
    key = StreamKey("publisher", len(inbox.streams))
    stream = Stream(inbox, key, "topic", "publisher:1", max_batch)
    inbox.add(stream)
    return inbox, stream


def opened(
    due: int = 0, first: int | None = None, *, window: int = WINDOW, max_batch: int = 10**6
) -> tuple[Inbox, Stream]:
    inbox, stream = fresh(window=window, max_batch=max_batch)
    stream.connect(Route(), 0)
    stream.opened("topic", "msgpack", due, due if first is None else first, 10**9)
    return inbox, stream


def batch(stream: Stream, first: int, count: int = 1, size: int = 1000) -> None:
    """A batch that counts for `size` bytes."""
    stream.batch(first, count, 1.5, b"." * (size - BATCH_COST), ())


def entries(inbox: Inbox) -> list[Entry]:
    return list(iter(inbox.take, None))


def spans(inbox: Inbox) -> list[tuple[int, int, int]]:
    return [(e.first, e.end, e.skip) for e in entries(inbox)]


# --- order, once, gaps --------------------------------------------------------------------------


def test_g1_batches_become_entries_in_order() -> None:
    inbox, stream = opened(5)
    stream.batch(5, 2, 1.5, b"body", ())
    stream.batch(7, 1, 2.5, b"more", whole(b"large"))
    first, second = entries(inbox)
    assert (first.first, first.end, first.skip, first.body) == (5, 7, 0, b"body")
    assert (first.sent_at, first.buffers, first.gaps, first.error) == (1.5, (), (), None)
    assert first.size == BATCH_COST + 4
    assert (second.first, second.end) == (7, 8)
    assert tuple(map(contents, second.buffers)) == (b"large",)
    assert second.size == BATCH_COST + 4 + SMALLEST_BUFFER
    assert stream.expected == 8
    assert stream.lost == 0


def test_g2_what_came_before_is_skipped() -> None:
    inbox, stream = opened(4)
    batch(stream, 2, 4)  # a batch in whose middle the subscription begins
    batch(stream, 4, 2)  # all of it came
    batch(stream, 5, 3)
    assert spans(inbox) == [(4, 6, 2), (6, 8, 1)]
    assert inbox.lost == 0


def test_g3_what_will_never_come_is_a_gap_before_the_next_message() -> None:
    inbox, stream = opened()
    stream.gap(0, 3, "overflow")
    batch(stream, 3)
    batch(stream, 4)
    stream.gap(5, 9, "overflow")
    batch(stream, 9)
    assert [(e.first, e.end, e.gaps) for e in entries(inbox)] == [
        (3, 3, ((3, "overflow"),)),
        (3, 4, ()),
        (4, 5, ()),
        (9, 9, ((4, "overflow"),)),
        (9, 10, ()),
    ]
    assert stream.lost == inbox.lost == 7


def test_g3_what_is_skipped_without_a_word_breaks_the_protocol() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    with pytest.raises(ProtocolError, match="a DATA from 2 where 1 is due"):
        batch(stream, 2)
    with pytest.raises(ProtocolError, match="a GAP from 2 to 5 where 1 is due"):
        stream.gap(2, 5, "too large")
    assert (spans(inbox), inbox.lost, stream.expected) == ([(0, 1, 0)], 0, 1)


def test_g3_what_left_the_log_before_the_subscription_was_answered_is_a_gap() -> None:
    inbox, stream = opened(2, 6)
    assert stream.expected == 6
    [gap] = entries(inbox)
    assert (gap.first, gap.end, gap.gaps, gap.size) == (6, 6, ((4, "overflow"),), 0)
    assert stream.lost == inbox.lost == 4
    assert stream.credit.acked_until == 6


def test_g3_what_did_not_come_before_the_end_is_a_gap() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.end(4)
    assert [(e.first, e.end, e.gaps) for e in entries(inbox)] == [
        (0, 1, ()),
        (4, 4, ((3, "closed"),)),
    ]
    assert stream.ended
    assert not stream.open
    assert inbox.streams == {}
    assert inbox.lost == 3


@pytest.mark.parametrize("final", [0, 1])
def test_an_end_with_nothing_missing_leaves_no_gap(final: int) -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.end(final)
    assert spans(inbox) == [(0, 1, 0)]
    assert inbox.lost == 0


def test_the_end_of_a_stream_that_was_never_opened_owes_nothing() -> None:
    inbox, stream = fresh()
    stream.connect(Route(), 0)
    stream.end(7)
    assert stream.ended
    assert (entries(inbox), inbox.lost) == ([], 0)


def test_a_batch_before_the_answer_is_refused() -> None:
    _, stream = fresh()
    stream.connect(Route(), 0)
    with pytest.raises(ProtocolError, match="a DATA before SUBSCRIBED"):
        batch(stream, 0)
    stream.opened("topic", "msgpack", 0, 0, 1)
    stream.disconnected()
    with pytest.raises(ProtocolError, match="a DATA before SUBSCRIBED"):
        batch(stream, 0)


@pytest.mark.parametrize(("due", "first"), [(3, 2), (2**64 - 1, 0)])
def test_an_answer_with_bad_numbers_is_refused(due: int, first: int) -> None:
    inbox, stream = fresh()
    stream.connect(Route(), 0)
    with pytest.raises(ProtocolError, match="where None is due"):
        stream.opened("topic", "msgpack", due, first, 1)
    assert not stream.open
    assert inbox.lost == 0


@pytest.mark.parametrize("due", [0, 2, 4])
def test_g5_an_answer_that_does_not_go_on_where_the_stream_stands_is_refused(due: int) -> None:
    _, stream = opened()
    batch(stream, 0, 3)
    stream.disconnected()
    stream.connect(Route(), 0)
    with pytest.raises(ProtocolError, match=f"SUBSCRIBED from {due} and 5 where 3 is due"):
        stream.opened("topic", "msgpack", due, 5, 1)


def test_g5_a_stream_goes_on_over_a_new_channel() -> None:
    inbox, stream = opened()
    batch(stream, 0, 3)
    stream.disconnected()
    assert stream.route is None
    assert not stream.open
    route = Route()
    stream.connect(route, 4)
    stream.opened("topic", "msgpack", 3, 5, 1)
    assert stream.route is route
    assert stream.channel == 4
    batch(stream, 5)
    assert spans(inbox) == [(0, 3, 0), (5, 5, 0), (5, 6, 0)]
    assert inbox.lost == 2


def test_g3_what_is_not_sent_is_a_gap_at_once_and_is_acknowledged() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.gap(1, 3, "too large")
    assert (stream.expected, stream.lost, inbox.lost) == (3, 2, 2)
    inbox.take()
    [gap] = entries(inbox)
    assert (gap.first, gap.end, gap.gaps) == (3, 3, ((2, "too large"),))
    assert stream.credit.grant() == (3, WINDOW + 1000 + BATCH_COST)


def test_g3_a_gap_may_stand_behind_another_and_over_what_came() -> None:
    inbox, stream = opened()
    stream.gap(0, 2, "overflow")
    stream.gap(2, 5, "too large")
    stream.gap(4, 6, "too large")
    stream.gap(3, 6, "too large")  # all of it came before
    assert [entry.gaps for entry in entries(inbox)] == [
        ((2, "overflow"),),
        ((3, "too large"),),
        ((1, "too large"),),
    ]
    assert (stream.expected, stream.lost) == (6, 6)
    assert stream.credit.received == stream.credit.consumed == 3 * BATCH_COST


def test_g6_gaps_take_their_part_of_the_window() -> None:
    _, stream = opened(window=2 * BATCH_COST)
    stream.gap(0, 1, "too large")
    stream.gap(1, 2, "too large")
    with pytest.raises(ProtocolError) as it:
        stream.gap(2, 3, "too large")
    assert it.value.code == "limit"


def test_a_batch_may_pass_the_limit_behind_a_gap_that_might() -> None:
    _, stream = opened(window=1)
    stream.gap(0, 2, "overflow")
    with pytest.raises(ProtocolError, match="512 bytes on a channel that may carry 1 for now"):
        stream.gap(2, 3, "overflow")
    _, stream = opened(window=1)
    stream.gap(0, 2, "overflow")
    stream.place(5000, 0, 5000)
    stream.data(2, 1, 0.0, b"body")
    with pytest.raises(ProtocolError):
        batch(stream, 3)


def test_g6_a_batch_may_not_pass_the_limit_behind_a_gap_that_fits_beside_others() -> None:
    _, stream = opened(window=1500)
    batch(stream, 0)
    stream.gap(1, 2, "overflow")
    with pytest.raises(ProtocolError):
        batch(stream, 2)


def test_a_gap_that_may_not_come_now_breaks_the_protocol() -> None:
    _, stream = fresh()
    with pytest.raises(ProtocolError, match="a GAP before SUBSCRIBED"):
        stream.gap(0, 1, "too large")
    _, stream = opened()
    with pytest.raises(ProtocolError, match="a GAP from 1 to 1"):
        stream.gap(1, 1, "too large")
    stream.place(100, 0, 50)
    with pytest.raises(ProtocolError, match="a GAP in the middle of a batch"):
        stream.gap(0, 1, "too large")
    stream.place(100, 50, 50)
    with pytest.raises(ProtocolError, match="a GAP in the middle of a batch"):
        stream.gap(0, 1, "too large")


# --- large buffers ------------------------------------------------------------------------------


def piece(stream: Stream, data: bytes, total: int, offset: int) -> None:
    place = stream.place(total, offset, len(data))
    assert len(place) == len(data)
    place[:] = data


def test_large_buffers_are_put_together_in_place() -> None:
    inbox, stream = opened()
    piece(stream, b"abc", 5, 0)
    piece(stream, b"de", 5, 3)
    piece(stream, b"f", 1, 0)
    stream.data(0, 1, 1.5, b"body")
    stream.data(1, 1, 1.5, b"body")
    first, second = entries(inbox)
    assert tuple(map(contents, first.buffers)) == (b"abcde", b"f")
    assert first.size == BATCH_COST + 4 + 2 * SMALLEST_BUFFER
    assert second.buffers == ()


class Elsewhere:
    """A buffer in memory of another kind, which is read-only once it is there."""

    def __init__(self, total: int, granted: int) -> None:
        self.total = total
        self.granted = granted
        self._memory = bytearray(total)
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def room(self, size: int) -> memoryview:
        start, self._filled = self._filled, self._filled + size
        return memoryview(self._memory)[start : self._filled]

    def view(self) -> memoryview:
        return memoryview(self._memory).toreadonly()

    def take_bytes(self) -> bytes:
        return bytes(self._memory)

    items = view


def test_large_buffers_may_be_put_together_in_memory_of_another_kind() -> None:
    inbox = Inbox(1, "topic", window=WINDOW)
    stream = Stream(inbox, StreamKey("publisher", 1), "topic", "publisher:1", 10**6, Elsewhere)
    inbox.add(stream)
    stream.connect(Route(), 0)
    stream.opened("topic", "msgpack", 0, 0, 10**9)
    piece(stream, b"abc", 5, 0)
    piece(stream, b"de", 5, 3)
    stream.data(0, 1, 1.5, b"\x91\xd6\x0c\0\0\0\0")
    [entry] = entries(inbox)
    [buffer] = entry.buffers
    assert isinstance(buffer, Elsewhere)
    assert buffer.granted == stream.credit.window.share
    assert MsgpackDecoder().decode(entry.body, entry.buffers) == [b"abcde"]


def test_a_buffer_in_one_piece_is_taken_as_it_is() -> None:
    inbox, stream = opened()
    payload = b"abc" * 1000
    stream.whole(WholeBuffer(payload))
    piece(stream, b"de", 2, 0)
    stream.data(0, 1, 1.5, b"body")
    [entry] = entries(inbox)
    assert contents(entry.buffers[0]) is payload
    assert contents(entry.buffers[1]) == b"de"
    assert entry.size == BATCH_COST + 4 + 3000 + SMALLEST_BUFFER


def test_a_buffer_in_one_piece_is_refused_where_another_would_be() -> None:
    _, stream = opened(max_batch=4000, window=2**20)
    with pytest.raises(ProtocolError, match="more than 4,000 bytes"):
        stream.whole(WholeBuffer(b"x" * 4001))
    stream.whole(WholeBuffer(b"x" * 2000))
    with pytest.raises(ProtocolError, match="more than 4,000 bytes"):
        stream.whole(WholeBuffer(b"x" * 2001))
    piece(stream, b"abc", 10, 0)
    with pytest.raises(ProtocolError, match="at 0 of 7 where 3 was due"):
        stream.whole(WholeBuffer(b"defghij"))
    _, stream = opened(window=3000)
    with pytest.raises(ProtocolError, match="on a channel that may carry 3,000"):
        batch(stream, 0)
        stream.whole(WholeBuffer(b"x" * 3000))


@pytest.mark.parametrize(
    ("total", "offset", "what"),
    [
        (10, 2, "at 2 of 10 where 3 was due"),
        (10, 4, "at 4 of 10 where 3 was due"),
        (10, 0, "at 0 of 10 where 3 was due"),
        (11, 3, "at 3 of 11 where 3 was due"),
    ],
)
def test_pieces_that_do_not_follow_are_refused(total: int, offset: int, what: str) -> None:
    _, stream = opened()
    piece(stream, b"abc", 10, 0)
    with pytest.raises(ProtocolError, match=what):
        stream.place(total, offset, 3)


def test_a_buffer_that_does_not_begin_at_its_beginning_is_refused() -> None:
    _, stream = opened()
    with pytest.raises(ProtocolError, match="a BUFFER that begins at 3"):
        stream.place(10, 3, 3)


def test_a_batch_in_the_middle_of_a_buffer_is_refused() -> None:
    _, stream = opened()
    piece(stream, b"abc", 10, 0)
    with pytest.raises(ProtocolError, match="in the middle of a large buffer"):
        stream.data(0, 1, 0.0, b"")


def test_a_message_over_max_batch_is_refused_before_memory_is_taken() -> None:
    _, stream = opened(max_batch=10_000, window=10**6)
    with pytest.raises(ProtocolError, match=r"more than 10,000 bytes \(max_message\)") as it:
        stream.place(2**64 - 1, 0, 1)
    assert it.value.code == "limit"
    piece(stream, b"x" * 6000, 6000, 0)
    with pytest.raises(ProtocolError):
        stream.place(4001, 0, 1)
    stream.place(4000, 0, 1)


def test_many_small_buffers_are_no_way_around_max_batch() -> None:
    _, stream = opened(max_batch=10 * SMALLEST_BUFFER, window=10**6)
    for _ in range(10):
        piece(stream, b"x", 1, 0)
    with pytest.raises(ProtocolError):
        stream.place(1, 0, 1)


def test_g6_many_small_buffers_are_no_way_around_the_window() -> None:
    inbox, stream = opened(window=10 * SMALLEST_BUFFER)
    batch(stream, 0)
    for _ in range(4):
        piece(stream, b"x", 1, 0)
    stream.data(1, 1, 0.0, b"")
    for _ in range(4):
        piece(stream, b"x", 1, 0)
    with pytest.raises(ProtocolError, match="bytes on a channel that may carry"):
        stream.place(1, 0, 1)
    assert inbox.lost == 0


def test_g6_the_memory_of_a_large_buffer_grows_with_what_came() -> None:
    _, stream = opened(max_batch=2**30, window=2**20)
    tracemalloc.start()
    try:
        for offset in range(100):
            piece(stream, b"x", 2**29, offset)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 10_000
        for offset in range(100, 5 * BUFFER_PIECE, BUFFER_PIECE):
            piece(stream, bytes(BUFFER_PIECE), 2**29, offset)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 10 * BUFFER_PIECE, "more than twice of what came"
    finally:
        tracemalloc.stop()


def test_g6_a_buffer_beyond_the_window_is_refused_before_memory_is_taken() -> None:
    inbox, stream = opened(window=3000)
    batch(stream, 0)
    with pytest.raises(ProtocolError, match="6,256 bytes on a channel that may carry 3,000"):
        stream.place(5000, 0, 1)
    entries(inbox)
    stream.credit.grant()
    piece(stream, b"x" * 5000, 5000, 0)
    stream.data(1, 1, 0.0, b"")
    with pytest.raises(ProtocolError):
        stream.place(5000, 0, 1)


def test_the_second_buffer_of_a_message_counts_with_the_first() -> None:
    inbox, stream = opened(window=3000)
    batch(stream, 0)
    piece(stream, b"x" * 1500, 1500, 0)
    with pytest.raises(ProtocolError, match="4,256 bytes"):
        stream.place(1500, 0, 1)
    assert inbox.lost == 0


@pytest.mark.parametrize("how", ["disconnected", "end"])
def test_a_message_that_was_under_way_when_the_link_broke_is_forgotten(how: str) -> None:
    inbox, stream = opened()
    piece(stream, b"whole", 5, 0)
    piece(stream, b"ab", 10, 0)
    if how == "end":
        stream.end(1)
        assert [e.gaps for e in entries(inbox)] == [((1, "closed"),)]
        return
    stream.disconnected()
    stream.connect(Route(), 0)
    stream.opened("topic", "msgpack", 0, 0, 1)
    piece(stream, b"whole", 5, 0)
    stream.data(0, 1, 0.0, b"body")
    [entry] = entries(inbox)
    assert tuple(map(contents, entry.buffers)) == (b"whole",)


# --- all of it ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.integers(1, 4), st.integers(0, 3), st.booleans()),
        max_size=30,
    )
)
def test_whatever_comes_delivered_and_lost_is_what_was_due(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Batches that go back, follow or leap (which a GAP says), with consumption and reconnection
    in between."""
    inbox, stream = opened(10, window=10**9)
    position, delivered, received = 10, 0, 0
    for offset, count, take, reconnect in steps:
        assert stream.expected is not None
        before = stream.expected
        first = max(0, before + offset)
        if first > before:
            stream.gap(before, first, "overflow")
            received += BATCH_COST
        stream.batch(first, count, 0.0, b"", ())
        assert stream.expected == max(before, first + count)
        received += BATCH_COST * (first + count > before)
        if reconnect:
            stream.disconnected()
            assert stream.connect(Route(), 0) == 10**9 - stream.credit.received + (
                stream.credit.consumed
            )
            stream.opened("topic", "msgpack", stream.expected, stream.expected, 1)
        for entry in [e for e in (inbox.take() for _ in range(take)) if e is not None]:
            assert entry.first == position + sum(n for n, _ in entry.gaps)
            position = entry.end
            delivered += entry.end - entry.first
    for entry in entries(inbox):
        assert entry.first == position + sum(n for n, _ in entry.gaps)
        position = entry.end
        delivered += entry.end - entry.first
    assert stream.expected is not None
    assert delivered + inbox.lost == stream.expected - 10
    assert position == stream.expected
    assert stream.credit.received == stream.credit.consumed == received


# --- the end without a word ---------------------------------------------------------------------


def state(stream: Stream) -> str:
    return stream.state


@pytest.mark.parametrize("trouble", [False, True])
def test_g3_a_stream_that_was_open_vanishes_once_and_says_so_behind_what_came(
    trouble: bool,
) -> None:
    inbox, stream = opened(3)
    batch(stream, 3, 2)
    stream.disconnected()
    assert state(stream) == "reconnecting"
    stream.vanish(trouble)
    stream.vanish(trouble)
    assert stream.ended
    assert state(stream) == stream.gone == "vanished"
    assert inbox.streams == {}
    assert inbox.gone == {stream.key: stream}
    first, last = entries(inbox)
    assert (first.first, first.end, first.gaps) == (3, 5, ())
    assert (last.first, last.end, last.size, last.gaps) == (5, 5, 0, ((0, "vanished"),))
    assert (stream.lost, inbox.lost) == (0, 0)


@pytest.mark.parametrize(
    ("before", "trouble", "fate"),
    [
        (True, False, "unreachable"),  # it was due the first message
        (False, True, "unreachable"),
        (False, False, ""),  # it ended just before it was to be reached
    ],
)
def test_g3_a_stream_that_never_was_open_is_unreachable_where_it_owes_something(
    before: bool, trouble: bool, fate: str
) -> None:
    inbox, stream = fresh()
    stream.before = before
    assert state(stream) == "connecting"
    stream.vanish(trouble)
    assert stream.ended
    assert stream.gone == fate
    assert bool(inbox.gone) == bool(fate)
    assert [entry.gaps for entry in entries(inbox)] == ([((0, fate),)] if fate else [])
    assert not inbox.over(stream.key)  # whoever lists it again may be right


def test_g3_a_stream_that_ends_in_order_is_neither_and_is_not_asked_for_again() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.end(1)
    stream.vanish(True)
    assert (stream.gone, inbox.gone) == ("", {})
    assert inbox.over(stream.key)
    assert [entry.gaps for entry in entries(inbox)] == [()]


def test_g3_a_stream_that_comes_back_goes_on_with_its_counts() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.disconnected()
    stream.since = 12.5
    stream.vanish(False)
    assert inbox.returned(stream.key) is stream
    assert inbox.returned(stream.key) is None
    assert (state(stream), stream.since, inbox.gone) == ("reconnecting", 12.5, {})
    assert inbox.streams == {stream.key: stream}
    stream.connect(Route(), 1)
    stream.opened("topic", "msgpack", 1, 4, 10**9)
    assert state(stream) == "attached"
    assert not stream.since
    batch(stream, 4)
    assert [(e.first, e.end, e.gaps) for e in entries(inbox)] == [
        (0, 1, ()),
        (1, 1, ((0, "vanished"),)),
        (4, 4, ((3, "overflow"),)),
        (4, 5, ()),
    ]
    assert (stream.lost, inbox.lost, stream.expected) == (3, 3, 5)
    assert stream.credit.received == stream.credit.consumed == inbox.window.consumed == 2_000


def test_g3_one_that_is_given_up_again_is_told_again_only_when_it_was_there_between() -> None:
    inbox, stream = opened()
    for _ in range(3):
        stream.vanish(False)
        assert inbox.returned(stream.key) is stream
    assert len(entries(inbox)) == 1
    stream.connect(Route(), 1)
    stream.opened("topic", "msgpack", 0, 0, 10**9)
    stream.vanish(False)
    assert [entry.gaps for entry in entries(inbox)] == [((0, "vanished"),)]


def test_g3_a_sub_that_is_older_than_the_pub_lacks_all_of_a_stream_that_it_finds_ended() -> None:
    inbox, stream = fresh()
    stream.before = True
    stream.connect(Route(), 0)
    stream.end(7)
    assert [entry.gaps for entry in entries(inbox)] == [((7, "closed"),)]
    assert inbox.lost == 7
    inbox, stream = fresh()
    stream.connect(Route(), 0)
    stream.end(7)  # they were put before this Sub was there
    assert inbox.lost == 0


def test_what_waits_of_a_stream_that_comes_back_takes_its_part_of_the_window() -> None:
    inbox, stream = opened(window=4_000)
    batch(stream, 0, size=3_000)
    stream.vanish(False)
    other = fresh(inbox=inbox)[1]
    assert inbox.returned(stream.key) is stream
    assert other.connect(Route(), 0) == 1_000
    assert stream.connect(Route(), 1) <= 1
    entries(inbox)
    assert stream.credit.grant() is None  # it is not open
    assert inbox.window.promised - inbox.window.consumed <= 4_000


def test_g3_one_that_was_unreachable_once_stays_so_until_it_is_reached() -> None:
    inbox, stream = fresh()
    stream.vanish(True)
    assert inbox.returned(stream.key) is stream
    stream.vanish(False)
    assert inbox.gone == {stream.key: stream}
    assert len(entries(inbox)) == 1
