"""Watching: a survey of all processes while somebody looks, and a picture of it each second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from time import monotonic, time

from pubsub import Peer
from pubsub.dashboard.moments import Moment, Past
from pubsub.dashboard.pictures import Picture
from pubsub.errors import PubSubError
from pubsub.stats import Stats
from pubsub.survey import Survey, Told

__all__ = ["Watching"]

log = logging.getLogger("pubsub.dashboard")

EVERY = 1.0
"""Seconds from one picture to the next."""
SLACK = 0.15
"""Seconds by which it may come early: what is told comes in bursts."""
KEPT = 60.0
"""Seconds for which it goes on when nobody looks any more: a page that is loaded again has its
curves, and who scrapes metrics each few seconds starts nothing anew."""
AGAIN = 2.0
"""Seconds until a survey that has failed is tried again."""


class Watching:
    """What is seen of all processes. They measure nothing while nobody looks.

    Parameters:
        peer: that asks them.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._looking = 0
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._number = 0
        self._picture: Picture | None = None
        self._new: asyncio.Event = asyncio.Event()

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Within, there are pictures."""
        self._looking += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._task is None:
            self._task = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            self._looking -= 1
            if not self._looking and self._task is not None:
                loop = asyncio.get_running_loop()
                self._ending = loop.call_later(KEPT, self._task.cancel)

    async def next(self, seen: int) -> Picture:
        """A picture that is newer than that; the one that there is, where it is."""
        while self._picture is None or self._picture.number <= seen:
            await self._new.wait()
        return self._picture

    async def stats(self) -> list[Stats]:
        """What all tell, once they have."""
        async with self.looking():
            return (await self.next(0)).stats

    async def close(self) -> None:
        """Look no more."""
        if self._ending is not None:
            self._ending.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        past = Past()
        try:
            while True:
                try:
                    await self._survey(past)
                except PubSubError as error:
                    log.debug("the survey has ended: %s", error)
                    self._show(past, trouble=str(error))
                    await asyncio.sleep(AGAIN)
        finally:
            self._task = self._picture = None

    async def _survey(self, past: Past) -> None:
        async with Survey(self._peer) as survey:
            await survey.settled()
            last = 0.0
            async for _ in survey.changes():
                if monotonic() - last < EVERY - SLACK:
                    continue
                last = monotonic()
                self._show(past, survey.peers.values())

    def _show(self, past: Past, told: Iterable[Told] = (), trouble: str = "") -> None:
        before, self._number = self._picture, self._number + 1
        own = self._peer.peer_id
        moment = Moment(told, now=monotonic(), at=time(), past=past, own=own, trouble=trouble)
        self._picture = Picture(self._number, moment, before)
        if before is not None:
            before.age()
        self._new.set()
        self._new = asyncio.Event()
