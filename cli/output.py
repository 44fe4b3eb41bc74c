"""Standard output, written from a thread of its own.

A reader that stops reading (``| less``, a terminal in which Ctrl-S was pressed) makes a write
wait. In the event loop's thread that would stop the heartbeats too, and the publisher would give
the link up; here it only lets the lines pile up to a bound, which then holds back the Sub.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Output"]

FULL = 1024 * 1024
"""Bytes that may wait to be written."""
PIECE = 64 * 1024
"""Bytes that are written at once: about what a pipe holds. Of a write that waits for the reader
nobody knows how much of it was taken, so it is small beside what may wait."""


class Output:
    """Writes lines to a file descriptor, all that are there at once. To be made in a running event
    loop, and used only there.

    `ended` is called once, when nothing more can be written: with the error, which is a
    BrokenPipeError where the reader has gone.
    """

    def __init__(self, descriptor: int, ended: Callable[[OSError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._ended = ended
        self._lines: list[bytes] = []
        self._size = 0  # bytes not yet written
        self._waiters: list[asyncio.Future[None]] = []
        self._condition = threading.Condition()
        self._handed: list[bytes] = []
        self._writing: list[bytes] = []
        self._left = 0  # bytes of these that are not known to be written
        self._broken = False
        self._given_up = False
        threading.Thread(target=self._write, name="output", daemon=True).start()
        mode = os.fstat(descriptor).st_mode
        if hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            threading.Thread(target=self._watch, name="reader", daemon=True).start()

    def write(self, line: bytes) -> bool:
        """Have a line written as soon as the loop's turn is over; True: wait for `room` before
        the next one."""
        if not self._lines:
            self._loop.call_soon(self._hand_over)
        self._lines.append(line)
        self._size += len(line)
        return self._size > FULL

    async def room(self) -> None:
        """Wait until more may be written, or nothing ever will."""
        while self._size > FULL and not self._broken:
            await self._news()

    async def finish(self) -> int:
        """Wait until all is written, however long the reader takes, or `give_up` was called, or
        nothing more can be written; returns how many lines at most were not."""
        self._hand_over()
        while self._size and not self._broken and not self._given_up:
            await self._news()
        with self._condition:
            count, left = len(self._handed), self._left
            for line in reversed(self._writing):
                if left <= 0:
                    break
                left -= len(line)
                count += 1
        return count

    def give_up(self) -> None:
        """Have `finish` wait no longer."""
        self._given_up = True
        self._wake()

    async def _news(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _hand_over(self) -> None:
        if self._lines:
            with self._condition:
                self._handed += self._lines
                self._condition.notify()
            self._lines = []

    def _written(self, size: int) -> None:
        self._size -= size
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _break(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            self._wake()
            self._ended(error)

    # --- in threads of their own ----------------------------------------------------------

    def _write(self) -> None:
        while True:
            with self._condition:
                while not self._handed:
                    self._condition.wait()
                lines, self._handed = self._handed, []
                data = memoryview(b"".join(lines))
                self._writing, self._left = lines, len(data)
            size = len(data)
            try:
                while data:
                    try:
                        data = data[os.write(self._descriptor, data[:PIECE]) :]
                        self._left = len(data)
                    except BlockingIOError:  # somebody has made it non-blocking
                        select.select([], [self._descriptor], [])
            except OSError as error:
                self._tell(self._break, error)
                return
            self._tell(self._written, size)

    def _watch(self) -> None:
        """See at once that the reader of a pipe has gone, and not at the next line."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        if poll.poll():
            self._tell(self._break, BrokenPipeError(errno.EPIPE, "nobody reads the output"))

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: it is over anyway
            self._loop.call_soon_threadsafe(call, *args)
