"""Splicing: two connections become one, byte for byte, with nothing looked at.

What one end sends is written to the other as it is read. Where that takes no more, no more is read:
so little waits here, however much faster one end is. The end of one direction is passed on, and the
other direction goes on for as long as anything moves; where one connection is lost, the other one
is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from pubsub.links import descriptors

__all__ = ["SPLICE_SCRATCH", "End", "Scratch", "splice"]

SPLICE_SCRATCH = 128 * 1024
"""Bytes that are read at a time, for all that share the buffer. (With 64 KiB a relay carries a
fifth less, and with 256 KiB no more.)"""
HIGH_WATER = 32 * 1024
"""Bytes that may wait to be written before no more are read of the other end; and above which what
is read is written as it lies there: to copy it costs more than the turn of a view."""
GRACE = 10.0
"""Seconds in which something has to move where one end has said its last."""
STALLED = 60.0
"""Seconds in which something has to move where one end takes no more: that the other one is gone is
not heard as long as nothing is read of it. (Two that live part sooner, by their heartbeat.)"""


class Scratch:
    """What all ends of a loop read into, one after the other."""

    __slots__ = ("view",)

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """What was read last is another's now."""
        self.view = memoryview(bytearray(SPLICE_SCRATCH))


class End(asyncio.BufferedProtocol):
    """One of the two connections.

    Parameters:
        transport: its connection, of which nothing more is read until it is spliced.
        scratch: what all ends of a loop read into.
        early: what has come on it already.
        heard: called when something comes.
        over: called when it is closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        scratch: Scratch,
        early: bytes,
        heard: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport: Any = transport
        self._scratch = scratch
        self._early = early
        self._heard = heard
        self._over = over
        self._other: End | None = None
        self._ended = False  # it has said its last
        self._open = True
        self._full = False  # it takes no more for now
        self._ending = False  # nothing new comes for it
        self._moved = 0  # bytes that have come from it
        self._timer: asyncio.TimerHandle | None = None
        descriptors.connected(self)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        transport.set_protocol(self)
        transport.pause_reading()

    def begin(self, other: End) -> None:
        """What has come goes there, and what comes from now on."""
        early, self._early = self._early, b""
        if early:
            other.write(early)
        if self._ended:
            other.end()
        elif not other._full:  # what came early may have been too much already
            self.listen(True)

    def close(self) -> None:
        """Close it when it has taken what is written; at once, when it takes nothing any more."""
        if self._open:
            self._transport.close()
            self._end_soon()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    # --- what the other end has it do ---------------------------------------------------

    def write(self, data: bytes | memoryview) -> bool:
        """Send it; returns whether the transport may hold it still."""
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(data)
        return bool(transport.get_write_buffer_size())

    def end(self) -> None:
        """Nothing more comes from the other end; when neither says anything more, it is over."""
        if self._ended:
            self.close()
            assert self._other is not None
            self._other.close()
        elif not self._transport.is_closing():
            with contextlib.suppress(OSError):  # it was reset meanwhile
                self._transport.write_eof()
            self._end_soon()

    def listen(self, on: bool) -> None:
        """Read, or leave what comes where it is."""
        if not self._transport.is_closing() and not self._ended:
            if on:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # --- whether anything moves ---------------------------------------------------------

    def _end_soon(self) -> None:
        if not self._ending:
            self._ending = True
            if self._timer is not None:
                self._timer.cancel()
            self._watch()

    def _watch(self) -> None:
        seconds = GRACE if self._ending else STALLED
        self._timer = self._loop.call_later(seconds, self._look, self._how_far())

    def _how_far(self) -> tuple[int, ...]:
        """It changes when one of both says or takes something."""
        both = [end for end in (self, self._other) if end is not None]
        return tuple(n for e in both for n in (e._moved, e._transport.get_write_buffer_size()))

    def _look(self, before: tuple[int, ...]) -> None:
        self._timer = None
        if not self._full and not self._ending:
            return
        if self._how_far() != before:
            self._watch()
            return
        for end in (self, self._other):
            if end is not None and end._open:
                end.abort()

    # --- the transport's side -----------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return self._scratch.view

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._heard()
        self._moved += nbytes
        data = self._scratch.view[:nbytes]
        if self._other is None:  # it was read before reading could be paused
            self._early += data
        elif nbytes <= HIGH_WATER:
            self._other.write(bytes(data))
        elif self._other.write(data):  # what is not sent at once is kept as a view
            self._scratch.renew()

    def eof_received(self) -> bool:
        """See `asyncio.BufferedProtocol`."""
        self._ended = True
        if self._other is not None:
            self._other.end()
        return True

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._full = True
        if self._timer is None:
            self._watch()
        if self._other is not None:
            self._other.listen(False)

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._full = False
        if self._other is not None:
            self._other.listen(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        other = self._other
        if other is not None and other._open:
            if exc is None:
                other.close()
            else:
                other.abort()
        self._over()

    @property
    def sock(self) -> Any:
        """See `descriptors.Connection`."""
        if not self._open or self._loop.is_closed():
            return None
        return self._transport.get_extra_info("socket")


def splice(one: End, other: End) -> None:
    """Make one of both."""
    one._other, other._other = other, one
    one.begin(other)
    other.begin(one)
