"""A flow of numbered messages between two peers, whose every message is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pubsub import Gap, Pub, Sub

__all__ = ["Flow", "flow"]

TURN = 0.002
"""Seconds between two bursts of puts."""
LONG = 40.0
"""Seconds after which what must come is taken not to come."""


class Flow:
    """Puts 0, 1, 2, … on a Pub at a steady rate, and checks what its Sub gets.

    Attributes:
        put: messages put.
        got: messages that came; each was checked to be the one that was due.
        lost: messages that gaps stood for.
    """

    def __init__(self, pub: Pub, sub: Sub, rate: float) -> None:
        self.pub = pub
        self.sub = sub
        self.rate = rate
        self.put = self.got = self.lost = 0
        self.gaps: list[Gap] = []
        self._stop = False
        self._putter = asyncio.create_task(self._put())
        self._taker = asyncio.create_task(self._take())

    async def _put(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._stop:
            burst = int((loop.time() - began) * self.rate) - self.put
            if burst > self.rate:  # this machine was away: do not catch up with all of it
                began += burst / self.rate
            else:
                for number in range(self.put, self.put + burst):
                    await self.pub.put(number)
                    self.put = number + 1
            await asyncio.sleep(TURN)

    async def _take(self) -> None:
        async for event in self.sub.messages():
            if isinstance(event, Gap):
                self.lost += event.missed
                self.gaps.append(event)
                continue
            due = self.got + self.lost
            assert event.value == event.seq == due, (event, due, self.gaps)
            self.got += 1

    async def checked(self, seconds: float = 0.0) -> None:
        """Let it run; raise what either side raised."""
        tasks = [self._putter, self._taker]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task

    async def passes(self, messages: int = 1) -> None:
        """Wait until so many of the messages that are put from now on have come."""
        await self.reaches(self.put + messages)

    async def reaches(self, count: int) -> None:
        """Wait until so many messages in all have come or are known to be lost."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LONG
        while self.got + self.lost < count:
            assert loop.time() < deadline, f"{self.got} came, {self.lost} lost, of {count}"
            await self.checked(0.002)

    async def at_rest(self) -> None:
        """Put no more, and wait until all that was put is accounted for."""
        self._stop = True
        await self._putter
        await self.reaches(self.put)

    async def close(self) -> None:
        self._putter.cancel()
        self._taker.cancel()
        await asyncio.wait([self._putter, self._taker])


@asynccontextmanager
async def flow(pub: Pub, sub: Sub, rate: float = 1_000) -> AsyncIterator[Flow]:
    """A `Flow` from one to the other, which has to be at rest at the end."""
    made = Flow(pub, sub, rate)
    try:
        yield made
        await made.at_rest()
        assert (made.got + made.lost, made.lost) == (made.put, sub.lost)
    finally:
        await made.close()
