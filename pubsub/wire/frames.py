"""Frames: the layout of DATA, BUFFER and LENT, and a reader that turns arriving bytes into events.

The reader lends out the buffer that bytes are read into (`FrameReader.get_buffer`) and is told
how many came (`FrameReader.received`), which is the shape of `asyncio.BufferedProtocol`.

- What is left of an unfinished frame moves into a small string of its own after each read, so a
  quiet link costs next to nothing.
- DATA and BUFFER go to a `Sink`, with no object made of them; all other frames are events.
- A frame larger than the scratch buffer gets memory of its own, which grows with the bytes that
  came and not by what was announced. A short BUFFER is cut out of the scratch buffer like DATA:
  the copy costs less than a read of its own.
- A frame in other widths than the layout's is read too, by msgpack and more slowly; so is a DATA
  with headers, whose values msgpack skips to find them.
- Bad bytes never raise: the last event is the `ProtocolError`, and the reader is done.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import msgpack

from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Buffer
from pubsub.wire.messages import MAX_PAYLOAD_BEFORE_WELCOME, Control, Kind, parse

__all__ = [
    "BATCH_COST",
    "BUFFER_PIECE",
    "SCRATCH_SIZE",
    "SMALLEST_BUFFER",
    "Data",
    "Event",
    "FrameReader",
    "Sink",
    "array_header",
    "buffer_header",
    "buffers_cost",
    "data_header",
    "lent_frame",
]

SCRATCH_SIZE = 256 * 1024
BETWEEN_PIECES = 4 * 1024
"""Bytes to read behind a piece of a large buffer, if it is not the last: the header of the next
one, mostly, whose payload is then read straight to its place."""
BUFFER_PIECE = 1024 * 1024
"""Bytes of a large buffer that may be in one BUFFER frame, so that others may pass in between."""
BATCH_COST = 256
"""What a batch counts for in windows and buffers beyond its bytes: the objects that hold it."""
SMALLEST_BUFFER = 1024
"""Bytes that a large buffer counts for at least: each is an object too."""

_LENGTH = struct.Struct(">I")
# The layouts, each with its marks: the first byte of a field of msgpack says its type and width.
# length | fixarray 5, kind | uint32 channel | uint64 first | float64 sent_at
_DATA = struct.Struct(">IHBIBQBd")
# the same, and the head of the array that follows it: array32
_DATA_AND_ARRAY = struct.Struct(">IHBIBQBdBI")
# length | fixarray 5, kind | uint32 channel | uint64 total | uint64 offset | bin32 size
_BUFFER = struct.Struct(">IHBIBQBQBI")
# length | fixarray 6, kind | uint32 channel | uint64 loan | uint32 segment | uint64 start, size
_LENT = struct.Struct(">IHBIBQBIBQBQ")
_ARRAY = struct.Struct(">BI")
_DATA_KIND, _BUFFER_KIND = int(Kind.DATA), int(Kind.BUFFER)
_DATA_MARK, _BUFFER_MARK = 0x9500 | _DATA_KIND, 0x9500 | _BUFFER_KIND
_HEADED_MARK = 0x9600 | _DATA_KIND
_LENT_MARK = 0x9600 | int(Kind.LENT)
_U32, _U64, _F64, _BIN32, _ARRAY32 = 0xCE, 0xCF, 0xCB, 0xC6, 0xDD
_LENT_MARKS = (_U32, _U64, _U32, _U64, _U64)
_BUFFER_MARKS = (_U32, _U64, _U64, _BIN32)
_HEADER_SIZE = _BUFFER.size  # and that of a DATA with the head of its array
_LENT_REST = _LENT.size - _LENGTH.size
_DATA_REST, _BUFFER_REST = _DATA.size - _LENGTH.size, _BUFFER.size - _LENGTH.size
_MAX_SEQ = 2**63  # so that what follows a batch still is a number of the wire


def data_header(
    channel: int, first: int, sent_at: float, body_size: int, headers_size: int = 0
) -> bytes:
    """What goes before the body of a batch, and the headers behind that, if there are any: length,
    kind, channel, first number, time."""
    mark = _HEADED_MARK if headers_size else _DATA_MARK
    size = _DATA_REST + body_size + headers_size
    return _DATA.pack(size, mark, _U32, channel, _U64, first, _F64, sent_at)


def buffer_header(channel: int, total: int, offset: int, size: int) -> bytes:
    """What goes before a piece of a large buffer."""
    return _BUFFER.pack(
        *(_BUFFER_REST + size, _BUFFER_MARK, _U32, channel, _U64, total, _U64, offset, _BIN32, size)
    )


def lent_frame(channel: int, loan: int, segment: int, start: int, size: int) -> bytes:
    """A large buffer that lies in a segment."""
    return _LENT.pack(
        *(_LENT_REST, _LENT_MARK, _U32, channel, _U64, loan, _U32, segment),
        *(_U64, start, _U64, size),
    )


def buffers_cost(buffers: Sequence[Buffer]) -> int:
    """What the large buffers of a batch count for in windows and buffers."""
    if len(buffers) == 1:  # mostly
        size = len(buffers[0])
        return size if size > SMALLEST_BUFFER else SMALLEST_BUFFER
    return sum(max(len(buffer), SMALLEST_BUFFER) for buffer in buffers)


def array_header(count: int) -> bytes:
    """The head of a batch's body: an array of so many values."""
    return _ARRAY.pack(_ARRAY32, count)


class Data(NamedTuple):
    """A DATA frame, its values not decoded."""

    channel: int
    first: int
    sent_at: float
    messages: int
    """How many values the body announces."""
    body: bytes | memoryview
    """One msgpack array."""
    headers: bytes = b""
    """One msgpack value, which nobody has looked at; empty: the frame has none."""


Event: TypeAlias = Data | Control | ProtocolError


class Sink(Protocol):
    """Where DATA and BUFFER go, each when its turn comes. All of it may raise ProtocolError."""

    def data(
        self,
        channel: int,
        first: int,
        messages: int,
        sent_at: float,
        body: bytes | memoryview,
        headers: bytes = b"",
    ) -> None:
        """A batch came: the fields of `Data`."""

    def buffer(self, channel: int, payload: bytes) -> None:
        """A large buffer came in one piece."""

    def lent(self, channel: int, loan: int, segment: int, start: int, size: int) -> None:
        """A large buffer lies in a segment: the fields of `Lent`."""

    def place(self, channel: int, total: int, offset: int, size: int) -> memoryview | None:
        """Where these bytes of a large buffer belong, which are filled in before the next frame is
        looked at; None: nowhere any more."""


class FrameReader:
    """Bytes in, events out.

    Parameters:
        scratch: the buffer to read into; may be shared by all readers whose `get_buffer` and
            `received` are called in direct succession.

    Attributes:
        max_payload: bytes a frame may announce; raised when the other end is known.
        sink: takes DATA and BUFFER; None: no BUFFER belongs here, and DATA is an event.
    """

    __slots__ = (
        "_broken",
        "_got",
        "_more",
        "_rest",
        "_target",
        "_view",
        "_whole",
        "max_payload",
        "sink",
    )

    def __init__(self, scratch: bytearray, sink: Sink | None = None) -> None:
        self.max_payload = MAX_PAYLOAD_BEFORE_WELCOME
        self.sink = sink
        self._view = memoryview(scratch)
        self._rest = b""
        self._target: memoryview | None = None  # what the next bytes go into, if not scratch
        self._got = 0
        self._more = False  # another piece is likely to be next
        self._whole = 0  # the size of the frame that it is for; 0: it is a BUFFER's place
        self._broken = False

    @property
    def partial(self) -> bool:
        """True in the middle of a frame."""
        return bool(self._rest) or self._target is not None

    def read_into(self, scratch: bytearray) -> None:
        """Have what comes next read into that. Not to be called while what came is looked at."""
        self._view = memoryview(scratch)

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._target is not None:
            return self._target[self._got :]
        rest = self._rest
        if rest:
            self._view[: len(rest)] = rest
            return self._view[len(rest) :]
        return self._view[:BETWEEN_PIECES] if self._more else self._view

    def received(self, size: int) -> Iterable[Event]:
        """The events that become whole by the `size` bytes just read into the buffer.

        Act on each before taking the next: the sink is called when the turn of a BUFFER or DATA
        comes, and what it answers depends on the frames before it.
        """
        if self._broken:
            return ()
        if self._target is None:
            self._more = False
            view, end = self._view, len(self._rest) + size
        else:
            frame = self._fill(self._target, size)
            if frame is None:
                return ()
            view, end = frame, len(frame)
        position = 0
        if self.sink is not None:
            try:
                position = self._flow(self.sink, view, 0, end)
            except ProtocolError as error:
                self.close()
                return (error,)
            if position == end:
                self._rest = b""
                return ()
        return self._events(view, position, end)

    def _flow(self, sink: Sink, view: memoryview, position: int, end: int) -> int:
        """Hand over what comes in the flow of messages, DATA and BUFFER of our own layout; returns
        where something else begins."""
        own = view is not self._view  # then the sink may keep it
        while end - position >= _HEADER_SIZE:
            length, mark, u32, channel, u64, first, f64, sent_at, array32, messages = (
                _DATA_AND_ARRAY.unpack_from(view, position)
            )
            stop = position + 4 + length
            if (
                mark != _DATA_MARK
                or stop > end
                or u32 != _U32
                or u64 != _U64
                or f64 != _F64
                or array32 != _ARRAY32
                or not 0 < messages <= length - _DATA_REST - 5
                or first >= _MAX_SEQ
                or length > self.max_payload
            ):
                if mark == _LENT_MARK and length == _LENT_REST and stop <= end:
                    _, _, t1, channel, t2, loan, t3, segment, t4, start, t5, size = (
                        _LENT.unpack_from(view, position)
                    )
                    if (t1, t2, t3, t4, t5) != _LENT_MARKS:
                        break
                    sink.lent(channel, loan, segment, start, size)
                    position = stop
                    continue
                if mark != _BUFFER_MARK or length > self.max_payload:
                    break
                begin, position = position, self._take_buffer(sink, view, position, end)
                if position == begin:
                    break
                continue
            body = view[position + 4 + _DATA_REST : stop]
            sink.data(channel, first, messages, sent_at, body if own else bytes(body))
            position = stop
        return position

    def _take_buffer(self, sink: Sink, view: memoryview, position: int, end: int) -> int:
        """Hand over a BUFFER of our own layout, or as much of a long one as is here; returns where
        the next frame begins, or the same position if it is neither."""
        length, _, u32, channel, t1, total, t2, offset, b32, size = _BUFFER.unpack_from(
            view, position
        )
        if (u32, t1, t2, b32) != _BUFFER_MARKS or size != length - _BUFFER_REST:
            return position
        start = position + _BUFFER.size
        stop: int = start + size
        self._more = offset + size < total
        if stop <= end:
            _bring(sink, channel, total, offset, view[start:stop])
            return stop
        if 2 * length <= len(self._view):
            return position
        _check_piece(total, offset, size)
        place = sink.place(channel, total, offset, size)
        target = memoryview(bytearray(size)) if place is None else place
        target[: end - start] = view[start:end]
        self._target, self._got, self._whole = target, end - start, 0
        return end

    def _events(self, view: memoryview, position: int, end: int) -> Iterator[Event]:
        """What is not in the flow, and what follows it."""
        try:
            while end - position >= 4:
                (length,) = _LENGTH.unpack_from(view, position)
                if length > self.max_payload:
                    raise ProtocolError(
                        _too_long(view, position, length, self.max_payload), code="limit"
                    )
                if length < 2:
                    raise ProtocolError(f"a frame of {length} bytes")
                stop = position + 4 + length
                if stop > end:
                    if stop - position > len(self._view) and end - position >= _HEADER_SIZE:
                        self._begin(view[position:end], stop - position)
                        position = end
                    break
                event = self._event(view[position + 4 : stop])
                if event is not None:
                    yield event
                position = stop
                if self.sink is not None:
                    position = self._flow(self.sink, view, position, end)
            self._rest = bytes(view[position:end])
        except ProtocolError as error:
            self.close()
            yield error

    def close(self) -> None:
        """Nothing more is read: let go of the memory that the next bytes would have gone to. (Views
        of it that became garbage in a cycle would crash CPython 3.12.0 and 3.12.1, and have 3.13
        print that a file cannot be closed: gh-111049, gh-111331.)"""
        self._broken = True
        self._target = None
        self._rest = b""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The same for bytes that are already somewhere else (tests, simulations)."""
        events: list[Event] = []
        view = memoryview(data)
        while view and not self._broken:
            room = self.get_buffer()
            size = min(len(room), len(view))
            room[:size] = view[:size]
            view = view[size:]
            events += self.received(size)
        return events

    def _begin(self, head: memoryview, size: int) -> None:
        """Take a frame that will not fit the scratch buffer into memory of its own."""
        target = memoryview(bytearray(min(size, max(BUFFER_PIECE, 2 * len(head)))))
        target[: len(head)] = head
        self._target, self._got, self._whole = target, len(head), size

    def _fill(self, target: memoryview, size: int) -> memoryview | None:
        """So many bytes more came there; returns the frame that is whole by them, if it is one."""
        self._got += size
        if self._got < len(target):
            return None
        if self._got < self._whole:  # it grows with what comes
            grown = memoryview(bytearray(min(self._whole, 2 * self._got)))
            grown[: self._got] = target
            self._target = grown
            return None
        self._target = None
        return target if self._whole else None

    def _event(self, frame: memoryview) -> Event | None:
        """The event of a whole frame; None: it went to the sink, in other widths than ours."""
        kind = frame[1] if frame[0] & 0xF0 == 0x90 else -1
        sink = self.sink
        if kind == _DATA_KIND:
            found = _data_of(frame)
            if sink is None:
                return found
            channel, first, sent_at, messages, body, headers = found
            sink.data(channel, first, messages, sent_at, body, headers)
            return None
        if kind == _BUFFER_KIND:
            if sink is None:
                raise ProtocolError("a BUFFER frame where none belongs")
            _bring(sink, *_piece_of(frame))
            return None
        try:
            array = msgpack.unpackb(frame)
        except Exception as error:  # whatever msgpack makes of hostile bytes
            raise ProtocolError(f"a frame that is not msgpack ({type(error).__name__})") from None
        return parse(array)


def _bring(sink: Sink, channel: int, total: int, offset: int, payload: bytes | memoryview) -> None:
    """Hand over a piece of a large buffer that is here."""
    size = len(payload)
    _check_piece(total, offset, size)
    if size == total:
        sink.buffer(channel, bytes(payload))
    else:
        place = sink.place(channel, total, offset, size)
        if place is not None:
            place[:] = payload


def _check_piece(total: int, offset: int, size: int) -> None:
    if size < 1 or size > BUFFER_PIECE or offset + size > total:
        raise ProtocolError(f"a BUFFER of {size} bytes at {offset} of {total}")


def _piece_of(frame: memoryview) -> tuple[int, int, int, bytes]:
    """A BUFFER in any widths: channel, total, offset, payload."""
    try:
        _, channel, total, offset, payload = msgpack.unpackb(frame)
    except Exception as error:
        raise ProtocolError(f"a malformed BUFFER ({type(error).__name__})") from None
    if (
        not all(type(n) is int and n >= 0 for n in (channel, total, offset))
        or type(payload) is not bytes
    ):
        raise ProtocolError("a malformed BUFFER")
    return channel, total, offset, payload


def _data_of(frame: memoryview) -> Data:
    """A DATA in any widths, or with more than its values."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame)
    try:
        fields = unpacker.read_array_header()
        if fields < 5:
            raise ProtocolError("a malformed DATA: not five fields")
        _, channel, first, sent_at = (unpacker.unpack() for _ in range(4))
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a malformed DATA ({type(error).__name__})") from None
    if (
        type(channel) is not int
        or not 0 <= channel < 2**32
        or type(first) is not int
        or not 0 <= first < _MAX_SEQ
        or type(sent_at) not in (int, float)
    ):
        raise ProtocolError("a malformed DATA: channel, number or time")
    start = unpacker.tell()
    try:
        count = unpacker.read_array_header()
    except Exception:
        raise ProtocolError("a DATA frame without an array of values") from None
    room = len(frame) - unpacker.tell()
    if not 0 < count <= room:
        raise ProtocolError(f"a DATA frame that announces {count} values in {room} bytes")
    if fields == 5:
        return Data(channel, first, float(sent_at), count, bytes(frame[start:]))
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame[start:])
    try:
        unpacker.skip()
        middle = start + unpacker.tell()
        unpacker.skip()
        end = start + unpacker.tell()
    except Exception as error:
        raise ProtocolError(f"a malformed DATA behind its time ({type(error).__name__})") from None
    if fields == 6 and end != len(frame):  # what a later version adds is not looked at
        raise ProtocolError("a DATA frame with bytes left over")
    body, headers = bytes(frame[start:middle]), bytes(frame[middle:end])
    return Data(channel, first, float(sent_at), count, body, headers)


def _too_long(view: memoryview, position: int, length: int, limit: int) -> str:
    """What to say of an announced length: other protocols' first bytes look like huge ones."""
    first = bytes(view[position : position + 4])
    if all(32 <= byte < 127 for byte in first) or first[:1] == b"\x16":
        what = "TLS" if first[:1] == b"\x16" else f"text ({first.decode('ascii', 'replace')}…)"
        return f"{what} where a frame was expected: this is another protocol"
    return f"a frame of {length:,} bytes, over the {limit:,} allowed here"
