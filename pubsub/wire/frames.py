"""Frames: the layout of DATA and BUFFER, and a reader that turns arriving bytes into events.

The reader lends out the buffer that bytes are read into (`FrameReader.get_buffer`) and is told
how many came (`FrameReader.received`), which is the shape of `asyncio.BufferedProtocol`. Its
strategy:

- All links of one loop share one scratch buffer: what is left of an unfinished frame moves into
  a small string of its own after each read, so a quiet link costs next to nothing.
- DATA is not decoded here. Its header has a fixed layout; the values are copied out once, and go
  straight to `data` where that is set: per batch there is one call and no object.
- A frame larger than the scratch buffer gets memory of its own, which grows with the bytes that
  came and not by what was announced. The payload of a long BUFFER is read straight into the place
  that `place` names. A short one is cut out of the scratch buffer like DATA, and goes to `buffer`
  if it is all of its buffer: the copy costs less than a read of its own.
- Bad bytes never raise: the last event is the `ProtocolError`, and the reader is done.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgpack

from pubsub.errors import ProtocolError
from pubsub.wire.buffers import LargeBuffer
from pubsub.wire.messages import MAX_PAYLOAD_BEFORE_WELCOME, Control, Kind, parse

__all__ = [
    "BATCH_COST",
    "BUFFER_PIECE",
    "SCRATCH_SIZE",
    "SMALLEST_BUFFER",
    "Data",
    "Event",
    "FrameReader",
    "Piece",
    "array_header",
    "buffer_header",
    "buffers_cost",
    "data_header",
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
# length | fixarray 5, kind | uint32 channel | uint64 first | float64 sent_at
_DATA = struct.Struct(">IBBBIBQBd")
# the same, and the head of the array that follows it: array32
_DATA_AND_ARRAY = struct.Struct(">IBBBIBQBdBI")
_DATA_FIELDS = struct.Struct(">BBBIBQBd")
# length | fixarray 5, kind | uint32 channel | uint64 total | uint64 offset | bin32 size
_BUFFER = struct.Struct(">IBBBIBQBQBI")
_BUFFER_FIELDS = struct.Struct(">BBBIBQBQBI")
_ARRAY = struct.Struct(">BI")
_FIVE, _U32, _U64, _F64, _BIN32, _ARRAY32 = 0x95, 0xCE, 0xCF, 0xCB, 0xC6, 0xDD
_BUFFER_MARKS = (_FIVE, _U32, _U64, _U64, _BIN32)
_MAX_SEQ = 2**63  # so that what follows a batch still is a number of the wire
_DATA_KIND, _BUFFER_KIND = int(Kind.DATA), int(Kind.BUFFER)
_DATA_SIZE = _DATA_FIELDS.size
_SHORTEST_DATA = _DATA_AND_ARRAY.size
_BUFFER_SIZE = _BUFFER_FIELDS.size


def data_header(channel: int, first: int, sent_at: float, body_size: int) -> bytes:
    """What goes before the body of a batch: length, kind, channel, first number, time."""
    return _DATA.pack(
        _DATA_SIZE + body_size, _FIVE, _DATA_KIND, _U32, channel, _U64, first, _F64, sent_at
    )


def buffer_header(channel: int, total: int, offset: int, size: int) -> bytes:
    """What goes before a piece of a large buffer."""
    return _BUFFER.pack(
        _BUFFER_SIZE + size,
        _FIVE,
        _BUFFER_KIND,
        _U32,
        channel,
        _U64,
        total,
        _U64,
        offset,
        _BIN32,
        size,
    )


def buffers_cost(buffers: Sequence[bytes | LargeBuffer]) -> int:
    """What the large buffers of a batch count for in windows and buffers."""
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


class Piece(NamedTuple):
    """A BUFFER frame whose bytes are in the place that was named for them."""

    channel: int


Event: TypeAlias = Data | Piece | Control | ProtocolError
TakeData: TypeAlias = Callable[[int, int, int, float, "bytes | memoryview"], None]
"""``data(channel, first, messages, sent_at, body)``: the fields of `Data`. May raise
ProtocolError."""
TakeBuffer: TypeAlias = Callable[[int, bytes], None]
"""``buffer(channel, payload)``: all of a large buffer. May raise ProtocolError."""
Place: TypeAlias = Callable[[int, int, int, int], "memoryview | None"]
"""``place(channel, total, offset, size)``: where these bytes belong; None: nowhere any more.
May raise ProtocolError."""


def no_place(channel: int, total: int, offset: int, size: int) -> memoryview | None:
    """The `place` of a connection that carries no BUFFER frames."""
    raise ProtocolError("a BUFFER frame where none belongs")


def _count_of(body: bytes | memoryview) -> int:
    """How many values the array announces, for which there must at least be room."""
    head = body[0] if len(body) else 0
    if head == _ARRAY32 and len(body) >= 5:
        count = int.from_bytes(body[1:5], "big")
        room = len(body) - 5
    elif head == 0xDC and len(body) >= 3:
        count = int.from_bytes(body[1:3], "big")
        room = len(body) - 3
    elif 0x90 <= head <= 0x9F:
        count = head & 0x0F
        room = len(body) - 1
    else:
        raise ProtocolError("a DATA frame without an array of values")
    if not 0 < count <= room:
        raise ProtocolError(f"a DATA frame that announces {count} values in {room} bytes")
    return count


class FrameReader:
    """Bytes in, events out.

    Parameters:
        scratch: the buffer to read into; may be shared by all readers whose `get_buffer` and
            `received` are called in direct succession.
        place: see `Place`.

    Attributes:
        max_payload: bytes a frame may announce; raised when the other end is known.
        data: takes DATA frames as they come; None: they are events, as all others are.
        buffer: takes large buffers that came whole in one frame, where `data` is set; None: they
            go to their `place`, as all others do.
    """

    __slots__ = (
        "_broken",
        "_frame",
        "_got",
        "_length",
        "_more",
        "_piece",
        "_place",
        "_rest",
        "_target",
        "_view",
        "buffer",
        "data",
        "max_payload",
    )

    def __init__(self, scratch: bytearray, place: Place = no_place) -> None:
        self.max_payload = MAX_PAYLOAD_BEFORE_WELCOME
        self.data: TakeData | None = None
        self.buffer: TakeBuffer | None = None
        self._view = memoryview(scratch)
        self._place = place
        self._rest = b""
        self._target: memoryview | None = None  # what the next bytes go into, if not scratch
        self._got = 0
        self._more = False  # another piece is likely to be next
        self._piece: Piece | None = None  # the target is a BUFFER's place, else a whole frame
        self._frame: memoryview | None = None
        self._length = 0  # of the frame, which may not have all of its memory yet
        self._broken = False

    @property
    def place(self) -> Place:
        """Who names the place of BUFFER payloads."""
        return self._place

    @place.setter
    def place(self, place: Place) -> None:
        self._place = place

    @property
    def partial(self) -> bool:
        """True in the middle of a frame."""
        return bool(self._rest) or self._target is not None

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

        Act on each before taking the next: `place` and `data` are called when the turn of a
        BUFFER or DATA comes, and what they answer depends on the frames before it.
        """
        if self._broken:
            return ()
        if self._target is None:
            self._more = False
        end = len(self._rest) + size
        if self.data is None or self._target is not None:
            return self._events(0, end, size)
        try:
            position = self._take_data(self.data, end)
        except ProtocolError as error:
            self.close()
            return (error,)
        if position == end:
            self._rest = b""
            return ()
        return self._events(position, end, 0)

    def _take_data(self, data: TakeData, end: int) -> int:
        """Hand over what comes in the flow of messages, whole DATA frames of our own layout;
        returns where something else begins."""
        view = self._view
        position = 0
        while end - position > _SHORTEST_DATA:
            length, five, kind, u32, channel, u64, first, f64, sent_at, array32, messages = (
                _DATA_AND_ARRAY.unpack_from(view, position)
            )
            stop = position + 4 + length
            if (
                kind != _DATA_KIND
                or stop > end
                or five != _FIVE
                or u32 != _U32
                or u64 != _U64
                or f64 != _F64
                or array32 != _ARRAY32
                or not 0 < messages <= length - _DATA_SIZE - 5
                or first >= _MAX_SEQ
                or length > self.max_payload
            ):
                if kind != _BUFFER_KIND or stop > end or length > self.max_payload:
                    break
                if not self._take_buffer(position, length):
                    break
                position = stop
                continue
            body = bytes(view[position + 4 + _DATA_SIZE : stop])
            data(channel, first, messages, sent_at, body)
            position = stop
        return position

    def _take_buffer(self, position: int, length: int) -> bool:
        """Hand over a whole BUFFER frame of our own layout, if it is all of a large buffer."""
        if self.buffer is None:
            return False
        _, five, _, u32, channel, t1, total, t2, offset, b32, size = _BUFFER.unpack_from(
            self._view, position
        )
        if (
            size != total
            or offset
            or size != length - _BUFFER_SIZE
            or not 0 < size <= BUFFER_PIECE
            or (five, u32, t1, t2, b32) != _BUFFER_MARKS
        ):
            return False
        start = position + _BUFFER.size
        self.buffer(channel, bytes(self._view[start : start + size]))
        return True

    def _events(self, position: int, end: int, size: int) -> Iterator[Event]:
        """The rest: from `position` to `end` in the scratch buffer, or `size` more bytes of what
        goes elsewhere."""
        try:
            if self._target is not None:
                found = self._fill(self._target, size)
                events = iter(()) if found is None else iter((found,))
            else:
                events = self._parse(position, end)
            for event in events:
                if self.data is not None and type(event) is Data:
                    channel, first, sent_at, messages, body = event
                    self.data(channel, first, messages, sent_at, body)
                else:
                    yield event
        except ProtocolError as error:
            self.close()
            yield error

    def close(self) -> None:
        """Nothing more is read: let go of the memory that the next bytes would have gone to. (Views
        of it that became garbage in a cycle would crash CPython 3.12.0 and 3.12.1, and have 3.13
        print that a file cannot be closed: gh-111049, gh-111331.)"""
        self._broken = True
        self._target = self._frame = None
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

    def _fill(self, target: memoryview, size: int) -> Event | None:
        self._got += size
        if self._got < len(target):
            return None
        if self._frame is not None and self._got < self._length:
            grown = memoryview(bytearray(min(self._length, 2 * self._got)))
            grown[: self._got] = target
            self._target = self._frame = grown
            return None
        self._target = None
        piece, frame = self._piece, self._frame
        self._piece = self._frame = None
        return piece if frame is None else self._whole(frame, own=True)

    def _parse(self, position: int, end: int) -> Iterator[Event]:
        view = self._view
        while end - position >= 4:
            (length,) = _LENGTH.unpack_from(view, position)
            if length > self.max_payload:
                raise ProtocolError(
                    _too_long(view, position, length, self.max_payload), code="limit"
                )
            if length < 2:
                raise ProtocolError(f"a frame of {length} bytes")
            start = position + 4
            stop = start + length
            if stop <= end:
                yield self._whole(view[start:stop], own=False)
                position = stop
                continue
            if self._begin_large(view[start:end], length):
                self._rest = b""
                return
            break
        self._rest = bytes(view[position:end])

    def _begin_large(self, head: memoryview, length: int) -> bool:
        """Take a frame that will not fit the scratch buffer, or a BUFFER, into its own place."""
        if len(head) >= 2 and head[1] == _BUFFER_KIND and 2 * length > len(self._view):
            if len(head) < _BUFFER_SIZE:
                return False  # decided when the header is there
            if _is_fixed_buffer(head, length):
                target, channel = self._find_place(head)
                here = head[_BUFFER_SIZE:]
                target[: len(here)] = here
                self._target, self._got = target, len(here)
                self._piece = Piece(channel)
                return True
        if length + 4 <= len(self._view):
            return False
        frame = memoryview(bytearray(min(length, max(BUFFER_PIECE, 2 * len(head)))))
        frame[: len(head)] = head
        self._target, self._got, self._frame, self._length = frame, len(head), frame, length
        return True

    def _find_place(self, head: memoryview) -> tuple[memoryview, int]:
        _, _, _, channel, _, total, _, offset, _, size = _BUFFER_FIELDS.unpack_from(head)
        _check_piece(total, offset, size)
        place = self._place(channel, total, offset, size)
        self._more = offset + size < total
        return (memoryview(bytearray(size)) if place is None else place), channel

    def _whole(self, frame: memoryview, own: bool) -> Event:
        """The event of a whole frame; `own`: its memory is not the scratch buffer's."""
        kind = frame[1] if frame[0] & 0xF0 == 0x90 else -1
        if kind == _DATA_KIND:
            if len(frame) >= _DATA_SIZE:
                five, _, u32, channel, u64, first, f64, sent_at = _DATA_FIELDS.unpack_from(frame)
                if (
                    five == _FIVE
                    and u32 == _U32
                    and u64 == _U64
                    and f64 == _F64
                    and first < _MAX_SEQ
                ):
                    body = frame[_DATA_SIZE:] if own else bytes(frame[_DATA_SIZE:])
                    return Data(channel, first, sent_at, _count_of(body), body)
            return _foreign_data(frame)
        if kind == _BUFFER_KIND:
            if len(frame) >= _BUFFER_SIZE and _is_fixed_buffer(frame, len(frame)):
                target, channel = self._find_place(frame)
                target[:] = frame[_BUFFER_SIZE:]
                return Piece(channel)
            return self._foreign_buffer(frame)
        try:
            array = msgpack.unpackb(frame)
        except Exception as error:  # whatever msgpack makes of hostile bytes
            raise ProtocolError(f"a frame that is not msgpack ({type(error).__name__})") from None
        return parse(array)

    def _foreign_buffer(self, frame: memoryview) -> Event:
        """A BUFFER written with other widths than ours."""
        try:
            _, channel, total, offset, payload = msgpack.unpackb(frame)
        except Exception as error:
            raise ProtocolError(f"a malformed BUFFER ({type(error).__name__})") from None
        if (
            not all(type(n) is int and n >= 0 for n in (channel, total, offset))
            or type(payload) is not bytes
        ):
            raise ProtocolError("a malformed BUFFER")
        _check_piece(total, offset, len(payload))
        place = self._place(channel, total, offset, len(payload))
        if place is not None:
            place[:] = payload
        return Piece(channel)


def _is_fixed_buffer(head: memoryview, length: int) -> bool:
    five, _, u32, _, t1, _, t2, _, b32, size = _BUFFER_FIELDS.unpack_from(head)
    return bool(
        five == _FIVE
        and u32 == _U32
        and t1 == _U64
        and t2 == _U64
        and b32 == _BIN32
        and size == length - _BUFFER_SIZE
    )


def _check_piece(total: int, offset: int, size: int) -> None:
    if size < 1 or size > BUFFER_PIECE or offset + size > total:
        raise ProtocolError(f"a BUFFER of {size} bytes at {offset} of {total}")


def _foreign_data(frame: memoryview) -> Data:
    """A DATA frame written with other widths than ours."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame)
    try:
        if unpacker.read_array_header() != 5:
            raise ProtocolError("a malformed DATA: not five fields")
        _, channel, first, sent_at = (unpacker.unpack() for _ in range(4))
        offset = unpacker.tell()
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
    body = bytes(frame[offset:])
    return Data(channel, first, float(sent_at), _count_of(body), body)


def _too_long(view: memoryview, position: int, length: int, limit: int) -> str:
    """What to say of an announced length: other protocols' first bytes look like huge ones."""
    first = bytes(view[position : position + 4])
    if all(32 <= byte < 127 for byte in first) or first[:1] == b"\x16":
        what = "TLS" if first[:1] == b"\x16" else f"text ({first.decode('ascii', 'replace')}…)"
        return f"{what} where a frame was expected: this is another protocol"
    return f"a frame of {length:,} bytes, over the {limit:,} allowed here"
