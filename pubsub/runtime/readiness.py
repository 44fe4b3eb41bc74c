"""Readiness: whether a Pub or Sub is ready, and who waits for it."""

from __future__ import annotations

import asyncio

from pubsub.links.patience import Patience

__all__ = ["Ready"]


class Ready:
    """Whether a Pub or Sub is ready, and who waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.done = False
        self.error: Exception | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.timer: Patience | None = None
        self.waited = 0  # how often for a coordinator that does not answer

    def set(self, error: Exception | None = None) -> None:
        """It is, or cannot be for now."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.done = error is None
        self.error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def retry(self) -> None:
        """There is hope again."""
        if not self.done:
            self.error = None

    async def wait(self) -> None:
        """Return when ready.

        Raises:
            CoordinatorUnavailable: no coordinator could be reached in time.
            OSError: this process cannot listen where it should.
        """
        while not self.done:
            if self.error is not None:
                raise self.error
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
