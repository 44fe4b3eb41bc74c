"""Large buffers: put, or written in place as they arrive; given out without a copy.

All else sees them as a `Buffer`, wherever their bytes lie. And the memory they lie in, which is to
be used again: see `reuse_memory`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, Protocol, TypeAlias

__all__ = [
    "FOR_BATCHES",
    "FOR_LARGE",
    "Allocator",
    "Arriving",
    "Block",
    "Buffer",
    "LargeBuffer",
    "Memory",
    "WholeBuffer",
    "reuse_memory",
]

FOR_BATCHES = 4 * 1024 * 1024
FOR_LARGE = 31 * 1024 * 1024
"""glibc takes no more than 32 MiB for its threshold."""


@cache
def reuse_memory(largest: int) -> None:
    """Have malloc use freed memory again, for blocks below this size; the first call does it.

    Without a hint, glibc gives memory back to the kernel as soon as 128 KiB at the end of its heap
    are free, and takes every block above that from the kernel. Each page of it then costs a fault,
    0.25 to 2.5 µs: up to twice the time of all else for a buffer of 8 MiB. It takes the hint from
    the first block of its own that is freed: below the size of that, blocks come from the heap from
    then on, and twice as much stays there. This is such a block; no page of it is ever touched
    (of a bytearray all would be). Other allocators do not mind.
    """
    with contextlib.suppress(MemoryError):  # where a process may have but little
        bytes(largest)


class Buffer(Protocol):
    """Bytes that travel beside their message."""

    def __len__(self) -> int:
        """Bytes that have their place by now."""

    def view(self) -> memoryview:
        """All of it; to be written to only by its one reader, unless it is read-only."""

    def take_bytes(self) -> bytes:
        """All of it, for its one reader: nothing is to be written there any more."""

    def items(self) -> Any:
        """The same for numpy, which builds an array on it: what keeps the array's memory."""


class Arriving(Buffer, Protocol):
    """A buffer that comes in pieces."""

    total: int
    """Its size, as announced."""

    def room(self, size: int) -> memoryview:
        """Where the next `size` bytes belong. To be let go before the next call."""


Allocator: TypeAlias = Callable[[int, int], Arriving]
"""``allocate(total, granted)``: memory for a buffer that arrives (see `LargeBuffer`)."""


class WholeBuffer:
    """Bytes that are all there: as they were put, or came in one piece."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def view(self) -> memoryview:
        return memoryview(self._data)

    def take_bytes(self) -> bytes:
        return self._data

    def items(self) -> bytes:
        return self._data


class _Memory(BytesIO):
    """A file that is not closed when it is collected: its memory may still be lent out then, by a
    view that is garbage as well, and closing it fails (which Python 3.13 and later print)."""

    __slots__ = ()

    def __del__(self) -> None: ...


class LargeBuffer:
    """Bytes that come in pieces, as `bytes` or as memory that may be written to.

    A BytesIO owns a bytes object and hands that out itself as long as nobody else writes to it,
    which is the one way to fill a bytes object in place. (For 8 MiB, copying a bytearray into a
    new bytes object takes twenty times as long as all the rest.)

    Parameters:
        total: its size, as announced.
        granted: up to this size its memory is taken at once, since the other end may fill so much
            anyway. Above that it grows with what came, by doubling: to move much of it, and to
            fill it with zeros in one go, takes milliseconds in which nothing else is received.
    """

    __slots__ = ("_file", "_filled", "_room", "total")

    def __init__(self, total: int, granted: int = 0) -> None:
        self.total = total
        self._filled = 0
        self._room = total if total <= granted else 0
        self._file = _Memory(bytes(self._room))

    def __len__(self) -> int:
        return self._filled

    def room(self, size: int) -> memoryview:
        start, end = self._filled, self._filled + size
        if end > self._room:
            self._room = max(end, min(self.total, 2 * self._room))
            self._file.seek(self._room - 1)
            self._file.write(b"\0")
        self._filled = end
        return self._file.getbuffer()[start:end]

    def view(self) -> memoryview:
        return self._file.getbuffer()

    def take_bytes(self) -> bytes:
        return self._file.getvalue()

    items = view


class Memory(Protocol):
    """Memory that several processes have mapped: one segment of a pool."""

    @property
    def view(self) -> memoryview:
        """All of it; read-only where it is another process's."""

    @property
    def address(self) -> int:
        """Where it lies, for numpy."""


class Block:
    """A part of such memory, which one message has for as long as anybody holds the block, or an
    array that is built on it.

    numpy keeps what has an `__array_interface__` as the base of the array, and of all views of it
    (of a memoryview it would keep only what that is a view of): so this object is gone when the
    last of them is.

    Parameters:
        memory: of which it is a part.
        start, size: which one, in bytes.
        number: what `gone` knows it by.
        gone: called with it when nobody holds it any more, in any thread and at any place; it must
            not keep it.
    """

    __slots__ = ("__weakref__", "_gone", "_size", "check", "memory", "number", "start")

    def __init__(
        self, memory: Memory, start: int, size: int, number: int, gone: Callable[[Block], None]
    ) -> None:
        self.memory = memory
        self.start = start
        self._size = size
        self.number = number
        self.check: int | None = None
        """Checksum of what was put, where that is asked for."""
        self._gone = gone

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        try:
            gone = self._gone
        except AttributeError:  # it was interrupted while it was made
            return
        gone(self)

    @property
    def room(self) -> memoryview:
        """To be filled by its one writer."""
        return self.memory.view[self.start : self.start + self._size]

    def view(self) -> memoryview:
        if self.memory.view.readonly:  # another process's: only looked at while we are held
            return self.room
        # A view of ours keeps us: it may wait in a transport when the log has let us go, and what
        # is put next would be sent in our place. (A slice of the mapping would keep that alone.)
        from ctypes import c_char

        held = (c_char * self._size).from_buffer(self.room)
        held.block = self  # type: ignore[attr-defined]
        return memoryview(held).cast("B").toreadonly()

    def take_bytes(self) -> bytes:
        return bytes(self.room)

    def items(self) -> Block:
        return self

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As bytes; numpy lets nobody write there whose memory is read-only."""
        readonly = self.memory.view.readonly
        place = self.memory.address + self.start, readonly
        return {"version": 3, "shape": (self._size,), "typestr": "|u1", "data": place}
