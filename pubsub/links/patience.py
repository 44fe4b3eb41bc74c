"""Patience: how long to wait for others, where it may be this process that does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["HELD_UP", "Patience"]

TICKS = 5
"""Parts of a wait, and how many of them may be repeated."""
HELD_UP = 0.25
"""Seconds by which a timer is late that tell of a loop that did not run."""


class Patience:
    """A timer for what others must do.

    Where a call blocks the loop for longer than the whole wait, or the process is stopped, an
    ordinary timer is due before what they sent is read. So this one waits for several timers, one
    after the other, and one that is very late does not count.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._step = seconds / TICKS
        self._left = self._spare = TICKS
        self._wait(loop.time() + self._step)

    def _wait(self, until: float) -> None:
        self._until = until
        self._timer = self._loop.call_at(until, self._tick)

    def _tick(self) -> None:
        now, due = self._loop.time(), self._until + self._step
        if due < now and self._spare:
            self._spare -= 1
        else:
            self._left -= 1
        if self._left:
            self._wait(due if due > now else now + self._step)
        else:
            self._callback()

    def cancel(self) -> None:
        """It was done in time."""
        self._timer.cancel()
