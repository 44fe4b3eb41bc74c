"""Clock: the time for what others must do, without what held up the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pubsub.links.patience import HELD_UP

__all__ = ["Clock"]


class Clock:
    """The loop's time, without what it was held up: it stands still where the loop is late.

    Parameters:
        expire: called with the time when something is due; returns when the next is; None: nothing.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, expire: Callable[[float], float | None]
    ) -> None:
        self._loop = loop
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._held_up = 0.0

    def now(self) -> float:
        """The time."""
        time = self._loop.time()
        if self._timer is not None:
            time = min(time, self._look_at + HELD_UP)
        return time - self._held_up

    def arm(self, at: float) -> None:
        """Look then what is due, and often before: only so it can be told that the loop was held
        up."""
        look_at = self._loop.time() + min(at - self.now(), HELD_UP)
        if self._timer is not None and self._look_at <= look_at:
            return
        timer = self._loop.call_at(look_at, self._look)
        self.stop()
        self._look_at, self._timer = look_at, timer

    def _look(self) -> None:
        self._timer = None
        late = self._loop.time() - self._look_at
        if late > HELD_UP:  # what has come meanwhile is to be read first
            self._held_up += late - HELD_UP
            self.arm(self.now() + HELD_UP)
            return
        due = self._expire(self.now())
        if due is not None:
            self.arm(due)

    def stop(self) -> None:
        """Nothing is due any more."""
        if self._timer is not None:
            self._timer.cancel()
