"""Frames: any cut of the byte stream reads alike, and bad bytes end in one ProtocolError."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pubsub.errors import ProtocolError
from pubsub.wire.frames import (
    BETWEEN_PIECES,
    BUFFER_PIECE,
    Data,
    Event,
    FrameReader,
    array_header,
    buffer_header,
    data_header,
    lent_frame,
)
from pubsub.wire.messages import (
    MAX_PAYLOAD_BEFORE_WELCOME,
    Ack,
    Kind,
    Lent,
    Ping,
    Subscribe,
    Subscribed,
    encode,
    parse,
)
from tests.wire.sinks import Gathering, Piece

SMALLEST_SCRATCH = 41
"""One more than the headers of the longest kind."""


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def foreign(*fields: object) -> bytes:
    """A frame as any msgpack library writes it: every number in its shortest form."""
    return framed(msgpack.packb(fields))


def own_data(
    channel: int, first: int, sent_at: float, values: Sequence[Any], headers: bytes = b""
) -> bytes:
    body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
    return data_header(channel, first, sent_at, len(body), len(headers)) + body + headers


def own_buffer(channel: int, total: int, offset: int, payload: bytes) -> bytes:
    return buffer_header(channel, total, offset, len(payload)) + payload


class Reading:
    """A reader whose events are kept in a form that can be compared.

    `sink`: DATA and BUFFER are handed over as on a link; else DATA is an event.
    """

    def __init__(self, scratch: bytearray, max_payload: int = 2**31, *, sink: bool = True) -> None:
        self.gathering = Gathering(scratch, max_payload)
        self.reader = self.gathering.reader
        if not sink:
            self.reader.sink = None
        self._events: list[Event | Piece] = []

    def take(self, data: bytes) -> None:
        """What a transport does with bytes that came in one read."""
        self._events += self.gathering.feed(data)

    @property
    def events(self) -> list[object]:
        pieces = zip(self.gathering.pieces, map(bytes, self.gathering.memory), strict=True)
        return [self.plain(event, pieces) for event in self._events]

    def plain(
        self, event: Event | Piece, pieces: Iterator[tuple[tuple[int, int, int, int], bytes]]
    ) -> object:
        if isinstance(event, Piece):
            piece, payload = next(pieces)
            assert piece[0] == event.channel
            return (*piece, payload)
        if isinstance(event, Data):
            try:
                values = msgpack.unpackb(event.body)
            except ValueError:  # not the reader's business
                return event._replace(body=bytes(event.body))
            headers = (event.headers,) if event.headers else ()
            return (event.channel, event.first, event.sent_at, values, *headers)
        return event


Expected = tuple[bytes, object]

numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))
values = st.lists(st.one_of(st.integers(), st.binary(max_size=40)), min_size=1, max_size=20).map(
    lambda drawn: [v % 2**63 if isinstance(v, int) else v for v in drawn]
)


@st.composite
def frames(draw: st.DrawFn) -> Expected:
    """A frame, and the event that it is."""
    kinds = ["data", "foreign data", "headed data", "foreign headed data", "later data"]
    kinds += ["buffer", "foreign buffer", "lent", "foreign lent", "control"]
    kind = draw(st.sampled_from(kinds))
    channel = draw(numbers)
    if kind.endswith("lent"):
        wide = numbers | st.integers(0, 2**64 - 1)
        lent = Lent(channel, draw(wide), draw(numbers), draw(wide), draw(wide))
        fields = (lent.channel, lent.loan, lent.segment, lent.start, lent.size)
        return lent_frame(*fields) if kind == "lent" else foreign(32, *fields), lent
    if kind.endswith("data"):
        first = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1)))
        sent_at = draw(st.floats(0, 2e9))
        batch = draw(values)
        of_data: tuple[int, int, float, Any] = (channel, first, sent_at, batch)
        if kind == "data":
            return own_data(*of_data), of_data
        if kind == "foreign data":
            return foreign(7, *of_data), of_data
        headers = {i: {"name": "text", "": b"\0"} for i in range(len(batch)) if draw(st.booleans())}
        packed = msgpack.packb(headers)
        if kind == "headed data":
            return own_data(*of_data, packed), (*of_data, packed)
        more = (draw(st.text(max_size=50)),) if kind == "later data" else ()
        return foreign(7, *of_data, headers, *more), (*of_data, packed)
    if kind.endswith("buffer"):
        payload = draw(st.binary(min_size=1, max_size=200))
        offset = draw(st.just(0) | st.integers(0, 2**40))
        total = offset + len(payload) + draw(st.just(0) | st.integers(0, 2**40))
        if kind == "buffer":
            data = own_buffer(channel, total, offset, payload)
        else:
            data = foreign(8, channel, total, offset, payload)
        return data, (channel, total, offset, len(payload), payload)
    message: Any = draw(
        st.sampled_from(
            [
                Ping(0),
                Ack(channel, 2**64 - 1, 7),
                Subscribe(channel, 1, 2, None, 0, 8, False, True, 9),
                Subscribed(channel, "a topic that is a little long", "msgpack", 0, 0, 1),
            ]
        )
    )
    return encode(message), message


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over."""
    pieces = []
    position = i = 0
    while position < len(data):
        size = sizes[i % len(sizes)]
        pieces.append(data[position : position + size])
        position += size
        i += 1
    return pieces


# --- what is read -------------------------------------------------------------------------------


@given(
    st.lists(frames(), max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.sampled_from([SMALLEST_SCRATCH, 64, 300, 2**16]),
    st.booleans(),
)
@example(
    [(own_data(1, 2, 3.0, [b"x" * 300]), (1, 2, 3.0, [b"x" * 300]))], [1], SMALLEST_SCRATCH, True
)
def test_any_cut_of_the_stream_reads_alike(
    sent: list[Expected], sizes: list[int], scratch: int, sink: bool
) -> None:
    if not sink:  # then no BUFFER belongs there
        sent = [(data, event) for data, event in sent if data[5] != Kind.BUFFER]
    reading = Reading(bytearray(scratch), sink=sink)
    for piece in cut(b"".join(data for data, _ in sent), sizes):
        reading.take(piece)
    assert reading.events == [event for _, event in sent]
    assert not reading.reader.partial


@given(st.lists(frames(), min_size=1, max_size=5))
def test_single_bytes_read_like_all_at_once(sent: list[Expected]) -> None:
    data = b"".join(data for data, _ in sent)
    at_once, one_by_one = Reading(bytearray(2**16)), Reading(bytearray(SMALLEST_SCRATCH))
    at_once.take(data)
    for byte in data:
        one_by_one.take(bytes([byte]))
    assert at_once.events == one_by_one.events == [event for _, event in sent]


@given(
    st.lists(st.lists(frames(), max_size=4), min_size=2, max_size=4),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from([SMALLEST_SCRATCH, 200]),
)
def test_readers_share_one_scratch_buffer_in_any_interleaving(
    links: list[list[Expected]], sizes: list[int], random: Any, size: int
) -> None:
    scratch = bytearray(size)
    readings = [Reading(scratch) for _ in links]
    pieces = [cut(b"".join(data for data, _ in sent), sizes) for sent in links]
    while any(pieces):
        which = random.choice([i for i, left in enumerate(pieces) if left])
        readings[which].take(pieces[which].pop(0))
    for reading, sent in zip(readings, links, strict=True):
        assert reading.events == [event for _, event in sent]


@given(st.lists(frames(), max_size=4), st.data())
def test_a_stream_cut_short_gives_its_whole_frames_and_no_error(
    sent: list[Expected], data: st.DataObject
) -> None:
    stream = b"".join(frame for frame, _ in sent)
    end = data.draw(st.integers(0, len(stream)))
    whole, ends = [], [0]
    for frame, event in sent:
        ends.append(ends[-1] + len(frame))
        if ends[-1] <= end:
            whole.append(event)
    reading = Reading(bytearray(128))
    reading.take(stream[:end])
    assert reading.events[: len(whole)] == whole
    assert len(reading.events) <= len(whole) + reading.reader.partial  # a place for what comes
    assert reading.reader.partial == (end not in ends)


def test_what_was_handed_out_outlives_the_scratch_buffer() -> None:
    scratch = bytearray(1000)
    reader = FrameReader(scratch)
    [small] = reader.feed(own_data(1, 0, 0.0, [b"small"]))
    [large] = reader.feed(own_data(1, 1, 0.0, [b"large" * 500]))
    scratch[:] = b"\xff" * 1000
    reader.feed(own_data(1, 2, 0.0, [b"other" * 500]))
    assert isinstance(small, Data)
    assert isinstance(large, Data)
    assert msgpack.unpackb(small.body) == [b"small"]
    assert msgpack.unpackb(large.body) == [b"large" * 500]


def test_a_frame_larger_than_the_scratch_buffer_is_read_into_memory_of_its_own() -> None:
    scratch = bytearray(100)
    reader = FrameReader(scratch)
    frame = own_data(1, 0, 0.0, [b"x" * 2000])
    assert reader.feed(frame[:60]) == []
    room = reader.get_buffer()
    assert room.obj is not scratch
    assert len(room) == len(frame) - 60
    assert reader.partial
    room[:] = frame[60:]
    [event] = reader.received(len(room))
    assert isinstance(event, Data)
    assert msgpack.unpackb(event.body) == [b"x" * 2000]
    assert reader.get_buffer().obj is scratch


def test_the_payload_of_a_buffer_is_read_straight_into_its_place() -> None:
    sink = Gathering(bytearray(100), 10_000)
    frame = own_buffer(3, 9000, 4000, b"y" * 3000)
    assert sink.feed(frame[:50]) == [Piece(3)]
    room = sink.reader.get_buffer()
    assert room.obj is sink.memory[0]
    assert len(room) == len(frame) - 50
    assert sink.feed(frame[50:]) == []
    assert not sink.reader.partial
    assert sink.memory == [b"y" * 3000]
    assert sink.pieces == [(3, 9000, 4000, 3000)]


def test_a_whole_buffer_that_comes_in_one_read_is_handed_over_as_bytes() -> None:
    sink = Gathering(bytearray(1000))
    frames = [own_buffer(2, 300, 0, b"x" * 300), own_data(2, 7, 0.0, [b"behind"])]
    piece, data = sink.feed(b"".join(frames))
    assert piece == Piece(2)
    assert isinstance(data, Data)
    assert data.first == 7
    assert type(sink.memory[0]) is bytes
    part = own_buffer(2, 400, 0, b"x" * 300)
    last = own_buffer(2, 400, 300, b"x" * 100)
    assert sink.feed(part + last) == [Piece(2), Piece(2)]
    assert sink.pieces == [(2, 300, 0, 300), (2, 400, 0, 300), (2, 400, 300, 100)]
    assert list(map(type, sink.memory)) == [bytes, bytearray, bytearray]


def test_a_short_buffer_that_is_cut_off_waits_for_its_rest_and_a_long_one_does_not() -> None:
    sink = Gathering(bytearray(1000))
    short, long = own_buffer(2, 400, 0, b"s" * 400), own_buffer(2, 600, 0, b"l" * 600)
    assert sink.feed(short[:390]) == []
    assert len(sink.reader.get_buffer()) == 1000 - 390, "no room for more than the rest of it"
    assert sink.feed(short[390:] + long[:390]) == [Piece(2), Piece(2)]
    assert sink.memory[0] == b"s" * 400
    assert sink.reader.get_buffer().obj is sink.memory[1]
    assert sink.feed(long[390:]) == []
    assert sink.memory[1] == b"l" * 600


@pytest.mark.parametrize("size", [6_000, 10_000])
def test_behind_a_piece_little_is_read_so_that_the_next_goes_to_its_place(size: int) -> None:
    sink = Gathering(bytearray(size), 2**20)
    reader = sink.reader
    first, last = own_buffer(1, 16_000, 0, b"f" * 8000), own_buffer(1, 16_000, 8000, b"l" * 8000)
    assert sink.feed(first) == [Piece(1)]
    assert len(reader.get_buffer()) == BETWEEN_PIECES
    assert sink.feed(last[:BETWEEN_PIECES]) == [Piece(1)]
    assert len(reader.get_buffer()) == len(last) - BETWEEN_PIECES
    assert sink.feed(last[BETWEEN_PIECES:]) == []
    assert len(reader.get_buffer()) == size
    assert sink.memory == [b"f" * 8000, b"l" * 8000]
    assert sink.feed(first) == [Piece(1)]
    assert sink.feed(encode(Ping(1))) == [Ping(1)]
    assert len(reader.get_buffer()) == size, "something else came"


def test_the_sink_is_asked_when_the_frames_before_were_acted_on() -> None:
    """SUBSCRIBED, a batch and the BUFFER behind them mostly come in one read."""
    sink = Gathering(bytearray(1000))
    data = encode(Ping(1)) + own_buffer(1, 3, 0, b"ab") + own_buffer(1, 900, 0, b"c" * 900)
    room = sink.reader.get_buffer()
    room[:100] = data[:100]
    events = iter(sink.reader.received(100))
    assert next(events) == Ping(1)
    assert sink.pieces == []
    assert next(events, None) is None
    assert sink.pieces == [(1, 3, 0, 2), (1, 900, 0, 900)]


def test_a_sink_may_be_given_in_answer_to_an_event() -> None:
    """As where WELCOME and the first batch come in one read."""
    sink = Gathering(bytearray(1000))
    reader, sink.reader.sink = sink.reader, None
    data = encode(Ping(1)) + own_buffer(1, 2, 0, b"ab") + own_data(1, 0, 0.0, [1])
    reader.get_buffer()[: len(data)] = data
    for event in reader.received(len(data)):
        assert event == Ping(1)
        reader.sink = sink
    assert list(map(type, sink.events)) == [Piece, Data]


def test_a_buffer_for_which_there_is_no_place_any_more_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = Gathering(bytearray(100))
    monkeypatch.setattr(sink, "place", lambda channel, total, offset, size: None)
    for frame in (
        own_buffer(5, 20, 0, b"0123456789"),
        own_buffer(5, 2000, 0, b"x" * 1000),
        foreign(8, 5, 20, 0, b"0123456789"),
    ):
        assert sink.feed(frame) == []
    assert sink.feed(encode(Ping(1))) == [Ping(1)]


def test_headers_are_the_documented_msgpack() -> None:
    body = array_header(2) + msgpack.packb(1) + msgpack.packb("b")
    header = data_header(2**32 - 1, 2**63 - 1, 1.5, len(body))
    assert int.from_bytes(header[:4], "big") == len(header) + len(body) - 4
    assert msgpack.unpackb(header[4:] + body) == [7, 2**32 - 1, 2**63 - 1, 1.5, [1, "b"]]
    header = buffer_header(9, 2**64 - 1, 2**63, 3)
    assert int.from_bytes(header[:4], "big") == len(header) + 3 - 4
    assert msgpack.unpackb(header[4:] + b"abc") == [8, 9, 2**64 - 1, 2**63, b"abc"]


def test_values_stay_undecoded_whatever_is_in_them() -> None:
    body = array_header(1) + b"\xc1"  # not msgpack at all: the Sub's business, not the link's
    reader = FrameReader(bytearray(100))
    [event] = reader.feed(data_header(1, 0, 0.0, len(body)) + body)
    assert event == Data(1, 0, 0.0, 1, body)


# --- what is refused ----------------------------------------------------------------------------


def refusal(data: bytes, *, max_payload: int = 10_000_000, scratch: int = 4096) -> ProtocolError:
    """The error in which `data` ends, whether it comes at once or byte by byte."""
    found = []
    for size in (len(data), 1 if len(data) < 10_000 else 997):
        reading = Reading(bytearray(scratch), max_payload)
        for piece in cut(data, [size]):
            reading.take(piece)
        *before, error = reading.events
        assert before == []
        assert isinstance(error, ProtocolError)
        assert not reading.reader.partial
        reading.take(encode(Ping(1)) * 100)
        assert reading.reader.feed(encode(Ping(1))) == []
        assert reading.events == [error], "it goes on after the error"
        found.append(error)
    assert str(found[0]) == str(found[1])
    return found[0]


@pytest.mark.parametrize(
    ("first_bytes", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "text (GET"),
        (b"POST /x HTTP/1.1\r\n", "text (POST"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "text (SSH-"),
        (b"PING\r\n", "text (PING"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
    ],
)
def test_another_protocol_is_called_that(first_bytes: bytes, what: str) -> None:
    error = refusal(first_bytes)
    assert what in str(error)
    assert "another protocol" in str(error)
    assert error.code == "limit"


@pytest.mark.parametrize("announced", [2**32 - 1, 2**31, 4097])
def test_an_announcement_over_the_limit_ends_it_before_memory_is_taken(announced: int) -> None:
    reader = FrameReader(bytearray(2**16))
    tracemalloc.start()
    try:
        [error] = reader.feed(announced.to_bytes(4, "big"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000
    assert isinstance(error, ProtocolError)
    assert error.code == "limit"
    assert f"a frame of {announced:,} bytes, over the 4,096 allowed here" in str(error)


def test_strangers_may_only_send_small_frames() -> None:
    reader = FrameReader(bytearray(2**16))
    assert reader.max_payload == MAX_PAYLOAD_BEFORE_WELCOME
    frame = foreign(7, 1, 0, 0.0, [b"x" * 4080])
    assert len(frame) == 4 + 4096 + 1
    assert refusal(frame, max_payload=reader.max_payload).code == "limit"
    [event] = reader.feed(foreign(7, 1, 0, 0.0, [b"x" * 4079]))
    assert isinstance(event, Data)
    reader.max_payload = 5000
    [event] = reader.feed(frame)
    assert isinstance(event, Data)


def test_a_large_frame_takes_memory_for_what_came_and_not_for_what_it_announced() -> None:
    reader = FrameReader(bytearray(2**16))
    reader.max_payload = 2**31
    tracemalloc.start()
    try:
        assert reader.feed(b"\x40\x00\x00\x00" + own_data(1, 0, 0.0, [1])[4:]) == []
        for _ in range(50):
            assert reader.feed(b"x" * 1000) == []
        _, peak = tracemalloc.get_traced_memory()
        assert peak < BUFFER_PIECE + 50_000
        for _ in range(3_000):
            assert reader.feed(b"x" * 1000) == []
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 3 * 3_050_000
    finally:
        tracemalloc.stop()


def test_a_frame_of_several_megabytes_comes_whole() -> None:
    value = bytes(range(256)) * 12_000
    frame = own_data(1, 0, 0.0, [value])
    for size in (len(frame), 700_001, 2**16):
        reading = Reading(bytearray(2**16))
        for piece in cut(frame + encode(Ping(1)), [size]):
            reading.take(piece)
        assert reading.events == [(1, 0, 0.0, [value]), Ping(1)]


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=300)
def test_garbage_never_raises_and_ends_in_one_error(garbage: bytes, sizes: list[int]) -> None:
    reading = Reading(bytearray(64), 200)
    for piece in cut(garbage, sizes):
        reading.take(piece)
    errors = [event for event in reading.events if isinstance(event, ProtocolError)]
    assert errors == [event for event in reading.events[-1:] if isinstance(event, ProtocolError)]


@given(st.binary(min_size=2, max_size=100), st.sampled_from([64, 4096]))
@example(b"\x95\x07\xce\x00\x00", 64)
@example(b"\x95\x08", 64)
@example(b"\xdc\x00\x05\x07\x01\x01\x01\x91\x01", 64)  # an array of another width than it needs
@settings(max_examples=300)
def test_a_frame_of_garbage_is_one_event(payload: bytes, scratch: int) -> None:
    reading = Reading(bytearray(scratch), 200)
    reading.take(framed(payload))
    assert len(reading.events) == 1


@given(st.lists(frames(), min_size=1, max_size=4), st.data())
def test_events_before_a_bad_byte_are_delivered(sent: list[Expected], data: st.DataObject) -> None:
    """One byte of a good stream is changed: what came before it counts."""
    stream = bytearray(b"".join(frame for frame, _ in sent))
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= data.draw(st.integers(1, 255))
    good, end = [], 0
    for frame, event in sent:
        end += len(frame)
        if end <= position:
            good.append(event)
    reading = Reading(bytearray(64), 4096)
    for piece in cut(bytes(stream), [7, 30]):
        reading.take(piece)
    assert reading.events[: len(good)] == good
    assert not any(isinstance(event, ProtocolError) for event in reading.events[:-1])


@pytest.mark.parametrize("length", [0, 1])
def test_a_frame_too_short_for_a_kind_is_refused(length: int) -> None:
    assert f"a frame of {length} bytes" in str(refusal(bytes([0, 0, 0, length, 0x90])))


def data_with(body: bytes) -> bytes:
    return data_header(1, 0, 0.0, len(body)) + body


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        pytest.param(data_with(b""), "without an array", id="no body"),
        pytest.param(data_with(b"\x01"), "without an array", id="no array"),
        pytest.param(data_with(b"\xdd\x00\x00\x00"), "without an array", id="short array32"),
        pytest.param(data_with(b"\xdc\x00"), "without an array", id="short array16"),
        pytest.param(data_with(b"\x90"), "announces 0", id="no values"),
        pytest.param(data_with(b"\xdc\x00\x00\x01"), "announces 0", id="no values, array16"),
        pytest.param(data_with(array_header(2) + b"\x01"), "2 values in 1 b", id="too many values"),
        pytest.param(
            data_with(array_header(2**32 - 1) + b"\x01"), "4294967295 values", id="4 G values"
        ),
        pytest.param(data_with(b"\x92\x01"), "announces 2", id="too many values, fixarray"),
        pytest.param(
            data_header(1, 2**63, 0.0, 2) + b"\x91\x01", "channel, number or time", id="2**63"
        ),
        pytest.param(foreign(7, 1, 2**63, 0.0, [1]), "channel, number or time", id="foreign 2**63"),
        pytest.param(foreign(7, 2**32, 0, 0.0, [1]), "channel, number or time", id="channel 2**32"),
        pytest.param(foreign(7, -1, 0, 0.0, [1]), "channel, number or time", id="channel -1"),
        pytest.param(foreign(7, True, 0, 0.0, [1]), "channel, number or time", id="channel true"),
        pytest.param(foreign(7, 1, "0", 0.0, [1]), "channel, number or time", id="first text"),
        pytest.param(foreign(7, 1, 0, None, [1]), "channel, number or time", id="time nil"),
        pytest.param(foreign(7, 1, 0, 0.0), "not five fields", id="four fields"),
        pytest.param(own_data(1, 0, 0.0, [1], b"\x81"), "behind its time", id="half a map"),
        pytest.param(own_data(1, 0, 0.0, [1], b"\x80\x80"), "bytes left over", id="two maps"),
        pytest.param(own_data(1, 0, 0.0, [1], b"\xc1"), "behind its time", id="no headers"),
        pytest.param(
            data_header(1, 0, 0.0, 3, 1) + b"\x91\xc1\x01\x80", "behind its time", id="no value"
        ),
        pytest.param(
            data_header(1, 0, 0.0, 1199, 1) + b"\x91" * 1200, "behind its time", id="too deep"
        ),
        pytest.param(foreign(7, 1, 0, 0.0, 1), "without an array", id="foreign, no array"),
        pytest.param(framed(b"\x95\x07"), "malformed DATA (OutOfData)", id="ends after the kind"),
        pytest.param(framed(b"\x95\x07\xc1\x01"), "malformed DATA", id="not msgpack"),
    ],
)
def test_a_malformed_data_is_refused(frame: bytes, what: str) -> None:
    assert what in str(refusal(frame))


def test_a_time_may_be_a_whole_number() -> None:
    assert FrameReader(bytearray(99)).feed(foreign(7, 1, 0, 5, [1])) == [
        Data(1, 0, 5.0, 1, b"\x91\x01")
    ]


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        pytest.param(own_buffer(1, 5, 0, b""), "0 bytes at 0 of 5", id="empty"),
        pytest.param(own_buffer(1, 5, 3, b"abc"), "3 bytes at 3 of 5", id="beyond its end"),
        pytest.param(
            own_buffer(1, 2**64 - 1, 0, b"x" * (BUFFER_PIECE + 1)), "1048577 bytes", id="overlong"
        ),
        pytest.param(foreign(8, 1, 5, 3, b"abc"), "3 bytes at 3 of 5", id="foreign beyond its end"),
        pytest.param(
            foreign(8, 1, 2**40, 0, b"x" * (BUFFER_PIECE + 1)), "1048577 bytes", id="foreign long"
        ),
        pytest.param(foreign(8, -1, 5, 0, b"a"), "a malformed BUFFER", id="negative channel"),
        pytest.param(foreign(8, 1, True, 0, b"a"), "a malformed BUFFER", id="total true"),
        pytest.param(foreign(8, 1, 5, 0.0, b"a"), "a malformed BUFFER", id="offset float"),
        pytest.param(foreign(8, 1, 5, 0, "a"), "a malformed BUFFER", id="text"),
        pytest.param(foreign(8, 1, 5, 0), "malformed BUFFER (ValueError)", id="four fields"),
        pytest.param(framed(b"\x95\x08\xc1\x01"), "a malformed BUFFER", id="not msgpack"),
        pytest.param(
            framed(own_buffer(1, 5, 0, b"abcd")[4:] + b"e"), "malformed BUFFER", id="more behind"
        ),
    ],
)
def test_a_malformed_buffer_is_refused(frame: bytes, what: str) -> None:
    assert what in str(refusal(frame))


OWN_LENT = lent_frame(1, 2, 3, 4, 5)


def test_a_lent_is_read_without_unpacking_and_is_the_message_of_that_name() -> None:
    assert OWN_LENT[4:] == (
        b"\x96\x20"
        b"\xce\x00\x00\x00\x01\xcf" + bytes(7) + b"\x02\xce\x00\x00\x00\x03"
        b"\xcf" + bytes(7) + b"\x04\xcf" + bytes(7) + b"\x05"
    )
    fields = msgpack.unpackb(OWN_LENT[4:])
    assert parse(fields) == Lent(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(foreign(32, -1, 2, 3, 4, 5), id="negative channel"),
        pytest.param(foreign(32, 2**32, 2, 3, 4, 5), id="channel too large"),
        pytest.param(foreign(32, 1, True, 3, 4, 5), id="loan true"),
        pytest.param(foreign(32, 1, 2, 2**32, 4, 5), id="segment too large"),
        pytest.param(foreign(32, 1, 2, 3, 4.0, 5), id="start float"),
        pytest.param(foreign(32, 1, 2, 3, 4), id="five fields"),
        pytest.param(framed(OWN_LENT[4:] + b"e"), id="more behind"),
        *(
            pytest.param(framed(OWN_LENT[4:end]), id=f"cut at {end}")
            for end in range(5, len(OWN_LENT))
        ),
        *(
            pytest.param(OWN_LENT[:at] + b"\xc0" + OWN_LENT[at + 1 :], id=f"another mark at {at}")
            for at in (6, 11, 20, 25, 34)
        ),
    ],
)
def test_a_malformed_lent_is_refused(frame: bytes) -> None:
    error = refusal(frame)
    assert error.code == "protocol"


@pytest.mark.parametrize(
    "frame",
    [own_buffer(1, 1, 0, b"x"), own_buffer(1, 200, 0, b"x" * 200), foreign(8, 1, 1, 0, b"x")],
)
def test_a_connection_without_buffers_refuses_them(frame: bytes) -> None:
    reader = FrameReader(bytearray(64))
    [error] = reader.feed(frame)
    assert isinstance(error, ProtocolError)
    assert "where none belongs" in str(error)


@pytest.mark.parametrize("method", ["data", "buffer", "lent", "place"])
def test_a_sink_may_refuse(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*fields: object) -> None:
        raise ProtocolError("too much", code="limit")

    frames = {
        "data": [
            own_data(1, 0, 0.0, [1]),
            own_data(1, 0, 0.0, [b"x" * 200]),
            foreign(7, 1, 0, 0.0, [1]),
        ],
        "lent": [OWN_LENT],
        "buffer": [own_buffer(1, 1, 0, b"x"), foreign(8, 1, 1, 0, b"x")],
        "place": [
            own_buffer(1, 2, 0, b"x"),
            own_buffer(1, 200, 0, b"x" * 200),
            foreign(8, 1, 2, 0, b"x"),
        ],
    }
    for frame in frames[method]:
        sink = Gathering(bytearray(64))
        monkeypatch.setattr(sink, method, refuse)
        [ping, error] = sink.feed(encode(Ping(1)) + frame)
        assert ping == Ping(1)
        assert isinstance(error, ProtocolError)
        assert error.code == "limit"
        assert not sink.reader.partial


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1\xc1",  # never used in msgpack
        b"\x92\x0b",  # a PING without its token
        b"\x93\x0b\xa3abc\xff",  # text for a token
        b"\x92\x0b\x01\x01",  # bytes behind
        b"\x92\x0b" + b"\x91" * 3000,  # deeper than any stack
        b"\x92\x0b\xa2\xff\xff",  # not UTF-8
        b"\xdd\xff\xff\xff\xff\x0b",  # 4 G fields
        struct.pack(">BBB", 0x92, 0x63, 0x01),  # an unknown kind
    ],
)
def test_a_malformed_control_frame_is_refused(payload: bytes) -> None:
    refusal(framed(payload))
