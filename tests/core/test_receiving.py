"""The subscribing end of a link: what it asks for, what it hands on, whom it cuts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import msgpack
import pytest

from pubsub.core.inbox import Inbox
from pubsub.core.receiving import Receiving
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.stream import Entry, Stream, StreamKey
from pubsub.errors import ProtocolError
from pubsub.wire.frames import (
    BATCH_COST,
    BUFFER_PIECE,
    Event,
    FrameReader,
    array_header,
    buffer_header,
    data_header,
)
from pubsub.wire.messages import (
    Ack,
    Control,
    End,
    Gap,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    encode,
)
from tests.wire.buffers import contents
from tests.wire.said import welcome

WINDOW = 8192
MAX_BATCH = 100_000


class End_:
    """A Receiving that is fed bytes, and what it writes as the publisher reads it."""

    def __init__(self, rights: Rights = EVERYTHING) -> None:
        self.dirty = False
        self.settled: list[Stream] = []
        self.refused: list[tuple[Stream, str]] = []
        self.receiving = Receiving(
            self.on_output,
            self.settled.append,
            rights=rights,
            on_refused=lambda stream, why: self.refused.append((stream, why)),
        )
        self.reader = FrameReader(bytearray(4096), self.receiving)
        self.reader.max_payload = 2 * BUFFER_PIECE

    def on_output(self) -> None:
        self.dirty = True

    def read(self, *frames: bytes) -> None:
        """All of it in as few reads as the scratch buffer allows."""
        data = b"".join(frames)
        while data:
            room = self.reader.get_buffer()
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            for event in self.reader.received(size):
                if isinstance(event, ProtocolError):
                    raise event
                self.receiving.receive(event)

    def hear(self, *messages: Control) -> None:
        self.read(*map(encode, messages))

    def said(self) -> list[Event]:
        chunks = self.receiving.pump(0)
        self.dirty = False
        return FrameReader(bytearray(4096)).feed(b"".join(chunks))


def stream_of(inbox: Inbox, number: int = 1) -> Stream:
    stream = Stream(inbox, StreamKey("publisher", number), "topic", "publisher:1", MAX_BATCH)
    inbox.add(stream)
    return stream


def inbox_of(sub_id: int = 7, *, window: int = WINDOW) -> Inbox:
    return Inbox(sub_id, "topic", window=window)


def opened(end: End_, *, due: int = 0, window: int = WINDOW) -> Stream:
    """A stream whose subscription was answered."""
    stream = stream_of(inbox_of(window=window))
    end.receiving.subscribe(stream)
    end.said()
    end.hear(subscribed(stream.channel, due))
    return stream


def subscribed(channel: int, due: int = 0, first: int | None = None) -> Subscribed:
    return Subscribed(channel, "topic", "msgpack", due, due if first is None else first, 10**6)


def data(channel: int, first: int, *values: object) -> bytes:
    body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
    return data_header(channel, first, 1.5, len(body)) + body


def buffer(channel: int, total: int, offset: int, payload: bytes) -> bytes:
    return buffer_header(channel, total, offset, len(payload)) + payload


def entries(stream: Stream) -> list[Entry]:
    return list(iter(stream.inbox.take, None))


def values(stream: Stream) -> list[object]:
    return [value for entry in entries(stream) for value in msgpack.unpackb(entry.body)]


# --- what it asks for ---------------------------------------------------------------------------


def test_streams_are_asked_for_on_channels_that_rise() -> None:
    end = End_()
    inbox = Inbox(7, "topic", window=1000, history=None, observer=True)
    end.receiving.subscribe(stream_of(inbox, 3))
    second = stream_of(inbox, 4)
    second.before = True
    end.receiving.subscribe(second)
    assert end.dirty
    assert end.said() == [
        Subscribe(0, 3, 7, None, None, 1000, True, False, MAX_BATCH),
        Subscribe(1, 4, 7, None, None, 500, True, True, MAX_BATCH),
    ]
    assert end.said() == []
    assert end.receiving.streams == list(inbox.streams.values())


def test_g3_a_gap_is_the_streams_and_one_that_crossed_its_end_nobodys() -> None:
    end = End_()
    stream = opened(end)
    end.hear(Gap(0, 0, 2, "too large"))
    assert stream.lost == 2
    end.receiving.unsubscribe(stream)
    end.hear(Gap(0, 2, 4, "too large"))
    assert stream.lost == 2


def test_g5_a_stream_is_asked_for_from_where_it_stands() -> None:
    first, second = End_(), End_()
    stream = opened(first)
    first.read(data(0, 0, "a", "b"))
    assert first.receiving.broken() == [stream]
    assert first.receiving.broken() == []
    assert first.receiving.streams == []
    second.receiving.subscribe(stream)
    limit = WINDOW - stream.credit.received
    assert second.said() == [Subscribe(0, 1, 7, 2, 0, limit, False, False, MAX_BATCH)]
    second.hear(subscribed(0, 2))
    second.read(data(0, 2, "c"))
    assert values(stream) == ["a", "b", "c"]
    assert stream.lost == 0


def test_an_answer_settles_it_either_way() -> None:
    end = End_()
    streams = [stream_of(inbox_of()) for _ in range(4)]
    for stream in streams:
        end.receiving.subscribe(stream)
    end.hear(subscribed(0))
    assert end.settled == streams[:1]
    assert streams[0].open
    end.hear(End(1, 0, "unknown", "there is none"), End(2, 5, "refused", "no"))
    assert end.settled == streams[:3]
    assert streams[1].ended
    assert streams[2].ended
    streams[3].inbox.accepts = lambda stream: ValueError("no")
    end.said()
    end.hear(subscribed(3))
    assert end.settled == streams
    assert streams[3].ended
    assert end.said() == [Unsubscribe(3)]


def test_the_answer_names_codec_and_pace() -> None:
    end = End_()
    stream = stream_of(inbox_of())
    end.receiving.subscribe(stream)
    end.hear(Subscribed(0, "topic", "raw", 3, 5, 100))
    assert (stream.topic, stream.codec, stream.credit.ack_every) == ("topic", "raw", 100)
    assert (stream.expected, stream.lost) == (5, 2)


def test_acks_are_said_when_there_is_something_new() -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a"))
    end.receiving.ack(stream)
    assert end.said() == []
    assert not end.dirty
    entries(stream)
    end.receiving.ack(stream)
    assert end.dirty
    assert end.said() == [Ack(0, 1, WINDOW + stream.credit.received)]


def test_an_unsubscription_is_said_once_and_frames_may_cross_it() -> None:
    end = End_()
    stream = opened(end)
    end.receiving.unsubscribe(stream)
    end.receiving.unsubscribe(stream)
    assert end.said() == [Unsubscribe(0)]
    end.read(
        data(0, 0, "a"),
        buffer(0, 900, 0, b"x" * 900),
        buffer(0, 9000, 0, b"x" * 9000),
        encode(End(0, 5, "closed", "")),
        encode(subscribed(0)),
    )
    assert entries(stream) == []
    assert not stream.ended
    assert end.receiving.streams == []


@pytest.mark.parametrize("over", ["unsubscribed", "refused", "ended"])
@pytest.mark.parametrize("what", ["batches", "buffers", "pieces", "gaps"])
def test_what_crosses_the_end_of_a_channel_is_bounded(over: str, what: str) -> None:
    """All that was allowed may have been under way; a publisher that goes on for ever is cut."""
    end = End_()
    stream = stream_of(inbox_of())
    end.receiving.subscribe(stream)
    if over == "refused":
        end.hear(Subscribed(0, "another", "msgpack", 0, 0, 10**6))
    else:
        end.hear(subscribed(0))
        if over == "ended":
            end.hear(End(0, 5, "closed", ""))
        else:
            end.receiving.unsubscribe(stream)
    assert end.receiving.streams == []
    end.read(data(0, 0, b"x" * (WINDOW - 300)))  # all of the window,
    end.read(buffer(0, MAX_BATCH, 0, b"x" * MAX_BATCH), data(0, 1, b""))  # and the one beyond
    frame = {
        "batches": data(0, 2, b"x" * 2000),
        "buffers": buffer(0, 2000, 0, b"x" * 2000),
        "pieces": buffer(0, 2**40, 7, b"x" * 9000),
        "gaps": encode(Gap(0, 2, 3, "overflow")),
    }[what]
    came = 0
    with pytest.raises(ProtocolError, match="on channels that are over") as raised:
        for _ in range(2000):
            end.read(frame)
            came += len(frame)
    assert raised.value.code == "limit"
    assert came < 2 * MAX_BATCH


def test_each_channel_that_is_over_may_have_had_its_window_under_way() -> None:
    end = End_()
    streams = [opened(end) for _ in range(20)]
    other = opened(end)
    for stream in streams:
        end.receiving.unsubscribe(stream)
    for number in range(20):
        end.read(data(number, 0, b"x" * (WINDOW - 300)))
        end.read(buffer(number, MAX_BATCH, 0, b"x" * MAX_BATCH), data(number, 1, b""))
    end.read(data(other.channel, 0, "goes on"))
    assert values(other) == ["goes on"]


# --- what it hands on ---------------------------------------------------------------------------


def test_batches_go_to_their_streams() -> None:
    end = End_()
    one, two = opened(end), opened(end, due=5)
    end.read(data(0, 0, "a", "b"), data(1, 5, "c"), data(0, 2, "d"))
    assert values(one) == ["a", "b", "d"]
    assert values(two) == ["c"]


@pytest.mark.parametrize("read", [1, 40, 10**6])
def test_a_message_with_large_buffers_may_come_right_behind_the_answer(read: int) -> None:
    end = End_()
    stream = stream_of(inbox_of(window=10**6))
    end.receiving.subscribe(stream)
    wire = b"".join(
        [
            encode(subscribed(0)),
            data(0, 0, "a"),
            buffer(0, 300, 0, b"x" * 200),
            buffer(0, 300, 200, b"x" * 100),
            buffer(0, 5000, 0, b"y" * 5000),
            data(0, 1, "b"),
            buffer(0, 1, 0, b"z"),
            data(0, 2, "c"),
        ]
    )
    for position in range(0, len(wire), read):
        end.read(wire[position : position + read])
    first, second, third = entries(stream)
    assert first.buffers == ()
    assert tuple(map(contents, second.buffers)) == (b"x" * 300, b"y" * 5000)
    assert tuple(map(contents, third.buffers)) == (b"z",)


def test_the_pieces_of_two_channels_may_be_interleaved() -> None:
    end = End_()
    one, two = opened(end), opened(end)
    end.read(
        buffer(0, 4, 0, b"ab"),
        buffer(1, 4, 0, b"AB"),
        buffer(0, 4, 2, b"cd"),
        buffer(1, 4, 2, b"CD"),
        data(1, 0, "two"),
        data(0, 0, "one"),
    )
    assert [list(map(contents, entry.buffers)) for entry in entries(one)] == [[b"abcd"]]
    assert [list(map(contents, entry.buffers)) for entry in entries(two)] == [[b"ABCD"]]


def test_g3_the_end_of_a_stream_shows_what_did_not_come() -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a"), encode(End(0, 3, "closed", "the Pub was closed")))
    assert [entry.gaps for entry in entries(stream)] == [(), ((2, "closed"),)]
    assert stream.ended
    assert end.receiving.streams == []
    assert end.receiving.broken() == []


@pytest.mark.parametrize("code", ["unknown", "refused"])
def test_a_stream_that_is_not_there_any_more_owes_nothing(code: str) -> None:
    end = End_()
    stream = opened(end)
    end.hear(End(0, 3, code, ""))
    assert stream.ended
    assert stream.inbox.lost == 0


# --- hostile publishers -------------------------------------------------------------------------

LARGE = buffer(0, 6, 0, b"abc")

HOSTILE: Sequence[object] = [
    pytest.param([data(2, 0, 1)], "channel 2 was never opened", id="data, unknown channel"),
    pytest.param([buffer(2, 1, 0, b"x")], "channel 2 was never opened", id="buffer, unknown"),
    pytest.param([subscribed(2)], "channel 2 was never opened", id="answer, unknown channel"),
    pytest.param([End(2, 0, "closed", "")], "channel 2 was never opened", id="end, unknown"),
    pytest.param([data(1, 0, 1)], "a DATA before SUBSCRIBED", id="data too early"),
    pytest.param([buffer(1, 1, 0, b"x")], "a BUFFER before SUBSCRIBED", id="buffer too early"),
    pytest.param([subscribed(0)], "a second SUBSCRIBED on channel 0", id="answered twice"),
    pytest.param([subscribed(1, 5, 4)], "SUBSCRIBED from 5 and 4", id="answer going back"),
    pytest.param([LARGE, LARGE], "at 0 of 6 where 3 was due", id="buffer again"),
    pytest.param([LARGE, buffer(0, 6, 4, b"e")], "at 4 of 6 where 3 was due", id="buffer hole"),
    pytest.param([LARGE, buffer(0, 7, 3, b"d")], "at 3 of 7 where 3", id="buffer of another size"),
    pytest.param([buffer(0, 6, 3, b"d")], "a BUFFER that begins at 3", id="buffer from its middle"),
    pytest.param([LARGE, data(0, 1, 1)], "in the middle of a large buffer", id="data in a buffer"),
    pytest.param([buffer(0, 2, 0, b"abc")], "3 bytes at 0 of 2", id="buffer overlong"),
    pytest.param(
        [buffer(0, MAX_BATCH + 1, 0, b"x")], "more than 100,000 bytes", id="over max_batch"
    ),
    pytest.param(
        [buffer(0, 60_000, 0, b"x" * 60_000), buffer(0, 60_000, 0, b"x")],
        "60,524 bytes on a channel that may carry 8,192",
        id="a large buffer in a small window that is in use",
    ),
    pytest.param([buffer(0, 2**64 - 1, 0, b"x")], "max_message", id="2**64 bytes"),
    pytest.param(
        [data(0, 1, b"x" * 4000), data(0, 2, b"x" * 5000)],
        "bytes on a channel that may carry 8,192 for now",
        id="more than the window",
    ),
    pytest.param(
        [data(0, 1, b"x" * 9000), data(0, 2, b"x")], "on a channel that may", id="over it again"
    ),
    pytest.param(
        [data(0, 1, b"x" * 4000), buffer(0, 5000, 0, b"x")],
        "on a channel that may carry 8,192 for now",
        id="a buffer over the window",
    ),
    pytest.param([Ack(0, 0, 0)], "ACK where a publisher speaks", id="an ack"),
    pytest.param([Pong(3)], "a PONG where a publisher speaks", id="a pong never asked for"),
    pytest.param([Ping(3)], "a PING where", id="a ping, which the link answers"),
    pytest.param([Unsubscribe(0)], "UNSUBSCRIBE where", id="an unsubscription"),
    pytest.param([welcome("peer", "x")], "a WELCOME where", id="a welcome"),
    pytest.param([b"GET / HTTP/1.1\r\n"], "this is another protocol", id="another protocol"),
    pytest.param([data_header(0, 2**63, 0.0, 2) + b"\x91\x01"], "malformed DATA", id="seq 2**63"),
]


@pytest.mark.parametrize(("frames", "what"), HOSTILE)
def test_a_publisher_that_breaks_the_protocol_is_cut_and_nothing_else_is_harmed(
    frames: list[Control | bytes], what: str
) -> None:
    end = End_()
    stream = opened(end)
    waiting = stream_of(inbox_of())
    end.receiving.subscribe(waiting)
    end.read(data(0, 0, "before"))
    with pytest.raises(ProtocolError, match=what):
        end.read(*[f if isinstance(f, bytes) else encode(f) for f in frames])
    end.receiving.broken()  # what the link does then
    assert stream.inbox.lost == 0
    again = End_()
    again.receiving.subscribe(stream)
    again.receiving.subscribe(waiting)
    assert stream.expected is not None
    again.hear(subscribed(0, stream.expected), subscribed(1, 4))
    entries(stream)
    again.read(data(0, stream.expected, "after"), data(1, 4, "other"))
    assert values(stream) == ["after"]
    assert values(waiting) == ["other"]


def test_g5_an_answer_that_leaves_messages_out_is_refused() -> None:
    first, second = End_(), End_()
    stream = opened(first)
    first.read(data(0, 0, "a"))
    first.receiving.broken()
    second.receiving.subscribe(stream)
    with pytest.raises(ProtocolError, match="SUBSCRIBED from 3 and 3 where 1 is due"):
        second.hear(subscribed(0, 3))


def test_events_that_no_frame_makes_are_refused() -> None:
    end = End_()
    with pytest.raises(ProtocolError, match="channel 0 was never opened"):
        end.receiving.data(0, 0, 1, 0.0, b"\x91\x01")


def test_the_largest_numbers_of_the_wire_still_can_be_acknowledged_and_resumed() -> None:
    """What a publisher says must not make us say what cannot be said."""
    end = End_()
    stream = opened(end, due=2**64 - 1)
    entries(stream)
    end.read(data(0, 2**63 - 1, "repeated"))
    end.receiving.ack(stream)
    end.said()
    end.receiving.broken()
    other = opened(end, due=2**63 - 1)
    end.read(data(1, 2**63 - 1, *range(1000)))
    entries(other)
    end.receiving.ack(other)
    [ack] = end.said()
    assert isinstance(ack, Ack)
    assert ack.next == 2**63 + 999
    end.receiving.broken()
    again = End_()
    again.receiving.subscribe(stream)
    again.receiving.subscribe(other)
    one, two = again.said()
    assert isinstance(one, Subscribe)
    assert isinstance(two, Subscribe)
    assert (one.resume, two.resume) == (2**64 - 1, 2**63 + 999)


def test_g6_what_a_hostile_publisher_can_make_us_hold_is_bounded() -> None:
    end = End_()
    stream = opened(end, window=50_000)
    frames = [data(0, seq, b"x" * 400) for seq in range(200)]
    frames += [buffer(0, 1, 0, b"x")] * 5000
    tracemalloc.start()
    try:
        for frame in frames:
            try:
                end.read(frame)
            except ProtocolError:
                continue
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stream.credit.received <= 50_000
    assert peak < 150_000


def test_a_batch_counts_for_more_than_its_bytes() -> None:
    """Many tiny batches are many objects: the window counts these too."""
    end = End_()
    stream = opened(end, window=BATCH_COST * 10)
    with pytest.raises(ProtocolError, match="may carry 2,560"):
        end.read(*[data(0, seq, 1) for seq in range(20)])
    assert stream.expected == 9


# --- ends without END ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unknown", "refused"])
def test_g3_a_publisher_that_knows_nothing_of_a_stream_any_more_says_no_count(code: str) -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a"))
    end.receiving.broken()
    end.receiving.subscribe(stream)
    end.hear(End(1, 9, code, "there is none"))
    assert (stream.gone, stream.lost) == ("vanished", 0)
    assert [entry.gaps for entry in entries(stream)] == [(), ((0, "vanished"),)]


@pytest.mark.parametrize(
    ("code", "before", "gone"),
    [
        ("unknown", False, ""),  # it ended before this Sub was there
        ("unknown", True, "unreachable"),
        ("refused", False, "unreachable"),
    ],
)
def test_g3_a_first_answer_that_brings_nothing(code: str, before: bool, gone: str) -> None:
    end = End_()
    stream = stream_of(inbox_of())
    stream.before = before
    end.receiving.subscribe(stream)
    end.hear(End(0, 9, code, "no"))
    assert stream.ended
    assert stream.gone == gone
    assert [entry.gaps for entry in entries(stream)] == ([((0, gone),)] if gone else [])


def test_g3_a_goodbye_ends_the_streams_that_are_open_and_the_others_are_not_known() -> None:
    end = End_()
    here = opened(end)
    asked = stream_of(inbox_of())
    end.receiving.subscribe(asked)
    end.receiving.closed()
    assert end.receiving.streams == []
    assert here.ended
    assert here.inbox.over(here.key)
    assert not asked.ended
    assert asked.state == "connecting"
    assert entries(here) == []


def test_what_was_taken_is_said_before_an_unsubscription() -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a"), data(0, 1, "b"))
    stream.inbox.take()
    end.receiving.unsubscribe(stream)
    ack, last = end.said()
    assert isinstance(ack, Ack)
    assert ack.next == 1
    assert last == Unsubscribe(0)


def test_g3_an_acknowledgement_that_could_not_be_asked_for_is_given_with_the_next() -> None:
    inbox = Inbox(7, "t", window=WINDOW)
    stream = Stream(inbox, StreamKey("peer", 1), "t", "host:1#1", MAX_BATCH)
    inbox.add(stream)
    end = End_()
    end.receiving.subscribe(stream)
    end.said()
    end.hear(Subscribed(0, "t", "msgpack", 0, 0, 10**6))
    end.said()
    end.read(data_header(0, 0, 1.5, 6) + array_header(1) + b"\x01")
    works = end.receiving._on_output

    def raises() -> None:
        end.receiving._on_output = works
        raise RecursionError

    inbox.take()
    end.receiving._on_output = raises
    with pytest.raises(RecursionError):
        end.receiving.ack(stream)
    end.receiving.ack(stream)
    assert end.dirty
    [said] = end.said()
    assert isinstance(said, Ack)
    assert said.next == 1
    end.dirty = False
    end.receiving.ack(stream)
    assert not end.dirty, "who has nothing to say asks for nothing"


# --- rights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "rights", "why"),
    [
        (
            "another/topic",
            EVERYTHING,
            "a coordinator has told its topic as 'topic', and it says 'another/topic'",
        ),
        ("topic", Rights(["x"], ["topic"]), "it may not publish this topic: it may publish 'x'"),
        ("topic", Rights(), "it may not publish this topic: it may publish nothing"),
    ],
)
def test_a_stream_is_given_up_that_its_publisher_may_not_have(
    topic: str, rights: Rights, why: str
) -> None:
    end = End_(rights)
    stream = stream_of(inbox_of())
    end.receiving.subscribe(stream)
    end.said()
    end.hear(Subscribed(0, topic, "msgpack", 0, 0, 10**6))
    assert end.said() == [Unsubscribe(0)]
    assert (end.refused, end.settled) == ([(stream, why)], [stream])
    assert stream.ended
    assert stream.state == "unreachable"
    end.read(buffer(0, 70_000, 0, bytes(70_000)), data(0, 0, "false"))
    (entry,) = entries(stream)
    assert (entry.gaps, entry.end) == (((0, "unreachable"),), 0), "what it sends is not heard"


@pytest.mark.parametrize(("pattern", "topic"), [("kitchen/a", "attic/a"), ("kitchen/*", "attic/a")])
def test_a_stream_is_given_up_that_the_sub_has_never_asked_for(pattern: str, topic: str) -> None:
    """A coordinator may tell the true topic of a Pub to a Sub of another one."""
    end = End_()
    inbox = Inbox(1, pattern, window=1_000_000)
    stream = Stream(inbox, StreamKey("peer", 0), topic, "host:1#0", 10**6)
    inbox.add(stream)
    end.receiving.subscribe(stream)
    end.said()
    end.hear(Subscribed(0, topic, "msgpack", 0, 0, 10**6))
    assert end.said() == [Unsubscribe(0)]
    why = "a coordinator has named it, and its topic is not what this Sub is for"
    assert end.refused == [(stream, why)]
    assert stream.ended


def test_a_stream_that_lost_its_right_is_given_up_where_it_stands() -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a", "b"))
    end.receiving.broken()
    late = End_(Rights(["x"]))
    late.receiving.subscribe(stream)
    late.hear(subscribed(0, 2))
    assert stream.state == "vanished"
    assert [entry.gaps for entry in entries(stream)] == [(), ((0, "vanished"),)]


def test_a_publisher_with_the_right_is_taken_beside_one_stream_it_has_none_to() -> None:
    end = End_(Rights(["topic"]))
    good, bad = (
        stream_of(inbox_of(), 1),
        Stream(inbox_of(8), StreamKey("publisher", 2), "other", "publisher:1", MAX_BATCH),
    )
    bad.inbox.add(bad)
    end.receiving.subscribe(good)
    end.receiving.subscribe(bad)
    end.hear(subscribed(0), Subscribed(1, "other", "msgpack", 0, 0, 10**6))
    end.read(data(0, 0, "a"))
    assert [stream for stream, _ in end.refused] == [bad]
    assert values(good) == ["a"]


def test_an_end_that_refuses_says_why() -> None:
    end = End_()
    stream = stream_of(inbox_of())
    end.receiving.subscribe(stream)
    end.hear(End(0, 0, "refused", "it may not subscribe this topic"))
    assert end.refused == [(stream, "it may not subscribe this topic")]


def test_g5_a_stream_that_has_moved_goes_on_by_the_new_link_alone() -> None:
    old, new = End_(), End_()
    stream = opened(old)
    old.read(data(0, 0, "a"))
    old.receiving.release(stream)
    new.receiving.subscribe(stream)
    (asked,) = new.said()
    assert isinstance(asked, Subscribe)
    assert asked.resume == 1
    old.read(data(0, 1, "b"))  # was under way
    old.hear(End(0, 0, "elsewhere", "…"))
    new.hear(subscribed(stream.channel, 1))
    new.read(data(stream.channel, 1, "b"))
    assert [(entry.first, entry.end) for entry in entries(stream)] == [(0, 1), (1, 2)]
    assert old.said() == [], "nothing is asked for there"


def test_what_is_under_way_where_a_stream_has_left_is_bounded() -> None:
    old = End_()
    stream = opened(old)
    old.receiving.release(stream)
    with pytest.raises(ProtocolError, match="more on channels that are over"):
        for first in range(10**6):
            old.read(data(0, first, b"x" * 1000))


def test_g5_a_channel_that_is_taken_by_a_link_that_was_given_up_is_subscribed_again() -> None:
    end = End_()
    stream = opened(end)
    end.read(data(0, 0, "a"))
    end.hear(End(0, 0, "elsewhere", "…"))
    (asked,) = end.said()
    assert isinstance(asked, Subscribe)
    assert (asked.channel, asked.resume) == (1, 1)
    assert stream.state == "reconnecting"
    end.hear(subscribed(1, 1))
    end.read(data(1, 1, "b"))
    assert [(entry.first, entry.end) for entry in entries(stream)] == [(0, 1), (1, 2)]
    assert end.refused == []
