"""Standard input, so read that a signal ends the wait for it, whenever it comes.

A signal that arrives between Python's last look for signals and the ``read`` that then blocks is
noticed only when the next line comes, which may be never. Here the signal wakes a `poll` that
waits for either.
"""

from __future__ import annotations

import io
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interruptible"]


@contextmanager
def interruptible(descriptor: int) -> Iterator[io.BufferedReader]:
    """A stream that reads this descriptor; to be used in the main thread."""
    if not hasattr(select, "poll"):  # Windows
        with open(descriptor, "rb", closefd=False) as stream:
            yield stream
        return
    woken, wake = socket.socketpair()
    with woken, wake:
        woken.setblocking(False)
        wake.setblocking(False)
        before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            yield io.BufferedReader(_Interruptible(descriptor, woken), 64 * 1024)
        finally:
            signal.set_wakeup_fd(before)


class _Interruptible(io.RawIOBase):
    def __init__(self, descriptor: int, woken: socket.socket) -> None:
        self._descriptor = descriptor
        self._woken = woken
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(woken, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            ready = [number for number, _ in self._poll.poll()]
            if self._woken.fileno() in ready:
                self._woken.recv(4096)  # by now the signal's own handler has run, or raised
            if self._descriptor in ready:
                return os.readv(self._descriptor, [buffer])
