"""Large buffers as they arrive: written in place, and given out without a copy."""

from __future__ import annotations

from io import BytesIO

__all__ = ["LargeBuffer"]


class LargeBuffer:
    """Bytes that come in pieces, as `bytes` or as memory that may be written to.

    A BytesIO owns a bytes object and hands that out itself as long as nobody else writes to it,
    which is the one way to fill a bytes object in place. (For 8 MiB, copying a bytearray into a
    new bytes object takes twenty times as long as all the rest.)

    Its memory grows with what came, not by what was announced.
    """

    __slots__ = ("_file", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._file = BytesIO()

    def __len__(self) -> int:
        """Bytes that have their place by now."""
        return self._file.seek(0, 2)

    def room(self, size: int) -> memoryview:
        """Where the next `size` bytes belong. To be let go before the next call."""
        start = len(self)
        self._file.seek(start + size - 1)
        self._file.write(b"\0")
        return self._file.getbuffer()[start:]

    def take_bytes(self) -> bytes:
        """All of it; the buffer is not to be used any more."""
        return self._file.getvalue()

    def take_memory(self) -> memoryview:
        """All of it, to be written to; the buffer is not to be used any more."""
        return self._file.getbuffer()
