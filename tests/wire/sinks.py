"""DATA, BUFFER and LENT in tests."""

from __future__ import annotations

from typing import NamedTuple

from pubsub.wire.frames import Data, Event, FrameReader
from pubsub.wire.messages import Lent

__all__ = ["Gathering", "Nowhere", "Piece"]


class Piece(NamedTuple):
    """A BUFFER frame."""

    channel: int


class Nowhere:
    """A sink for what nobody looks at."""

    def data(
        self,
        channel: int,
        first: int,
        messages: int,
        sent_at: float,
        body: bytes | memoryview,
        headers: bytes = b"",
    ) -> None: ...

    def buffer(self, channel: int, payload: bytes) -> None: ...

    def lent(self, channel: int, loan: int, segment: int, start: int, size: int) -> None: ...

    def place(self, channel: int, total: int, offset: int, size: int) -> memoryview | None:
        return None


class Gathering:
    """A reader, and the sink that puts DATA and BUFFER among its events, in the order in which they
    came.

    Attributes:
        pieces: ``(channel, total, offset, size)`` of each BUFFER.
        memory: what came in each; bytes where it was a whole buffer in one piece.
    """

    def __init__(self, scratch: bytearray, max_payload: int | None = None) -> None:
        self.reader = FrameReader(scratch, self)
        if max_payload is not None:
            self.reader.max_payload = max_payload
        self.pieces: list[tuple[int, int, int, int]] = []
        self.memory: list[bytearray | bytes] = []
        self.events: list[Event | Piece] = []

    def data(
        self,
        channel: int,
        first: int,
        messages: int,
        sent_at: float,
        body: bytes | memoryview,
        headers: bytes = b"",
    ) -> None:
        self.events.append(Data(channel, first, sent_at, messages, body, headers))

    def buffer(self, channel: int, payload: bytes) -> None:
        assert type(payload) is bytes
        self.pieces.append((channel, len(payload), 0, len(payload)))
        self.memory.append(payload)
        self.events.append(Piece(channel))

    def lent(self, channel: int, loan: int, segment: int, start: int, size: int) -> None:
        self.events.append(Lent(channel, loan, segment, start, size))

    def place(self, channel: int, total: int, offset: int, size: int) -> memoryview | None:
        memory = bytearray(size)
        self.pieces.append((channel, total, offset, size))
        self.memory.append(memory)
        self.events.append(Piece(channel))
        return memoryview(memory)

    def feed(self, data: bytes) -> list[Event | Piece]:
        """What a transport does with bytes that came in one read; returns what became of them."""
        while data:
            room = self.reader.get_buffer()
            assert len(room)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self.events += self.reader.received(size)
        events, self.events = self.events, []
        return events
