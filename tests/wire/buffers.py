"""Large buffers in tests."""

from __future__ import annotations

from pubsub.wire.buffers import Buffer, LargeBuffer, WholeBuffer

__all__ = ["arrived", "contents", "whole"]


def contents(buffer: Buffer) -> bytes:
    """The bytes of a buffer, however it came."""
    return buffer.take_bytes()


def whole(*data: bytes) -> tuple[Buffer, ...]:
    """Buffers as they are put."""
    return tuple(map(WholeBuffer, data))


def arrived(data: bytes | Buffer) -> LargeBuffer:
    """A buffer as it comes over a link: in pieces."""
    data = data if isinstance(data, bytes) else data.take_bytes()
    buffer = LargeBuffer(len(data))
    half = len(data) // 2
    for piece in filter(None, (data[:half], data[half:])):
        buffer.room(len(piece))[:] = piece
    return buffer
