"""Large buffers in tests."""

from __future__ import annotations

from pubsub.wire.buffers import LargeBuffer

__all__ = ["arrived", "contents"]


def contents(buffer: bytes | LargeBuffer) -> bytes:
    """The bytes of a buffer, however it came."""
    return buffer if isinstance(buffer, bytes) else buffer.take_bytes()


def arrived(data: bytes) -> LargeBuffer:
    """A buffer as it comes over a link: in pieces."""
    buffer = LargeBuffer(len(data))
    half = len(data) // 2
    for piece in filter(None, (data[:half], data[half:])):
        buffer.room(len(piece))[:] = piece
    return buffer
