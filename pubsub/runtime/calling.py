"""Calling back: subscribers that cannot dial this process, and have a coordinator ask it to dial
them. From then on it is a link as any other: whoever dialled, HELLO says which side publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pubsub.config import Settings, Way
from pubsub.links.dialling import Dialling
from pubsub.links.keeping import Attempt, dial, explain
from pubsub.links.link import Core, Link
from pubsub.links.racing import race
from pubsub.runtime.subscriber_link import Served, Subscribers
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import SUBSCRIBER, Authenticator, Dialler, Identity, Other, tcp
from pubsub.wire.messages import WayRow

__all__ = ["Callbacks"]

log = logger("pubsub")

MOST = 256
"""Subscribers that are dialled, or wait for their turn, at once; who calls beyond has to call
again."""


class Callbacks:
    """All that are under way.

    Parameters:
        loop, settings, guard: of the runtime.
        subscribers: who serves them then.
        dialling: whose turn it is to dial.
        identity: who we are to whom we dial from that address of ours.
        scratch: what the links read into.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        guard: Guard,
        subscribers: Subscribers,
        dialling: Dialling,
        identity: Callable[[str], Identity],
        scratch: bytearray,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._guard = guard
        self._subscribers = subscribers
        self._dialling = dialling
        self._identity = identity
        self._scratch = scratch
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._links: dict[Link, None] = {}

    def called(self, peer_id: str, ways: Sequence[WayRow]) -> None:
        """A subscriber that is at one of these wants to be dialled."""
        if peer_id not in self._tasks and len(self._tasks) < MOST:
            places = [Way(way.host, way.port) for way in ways if way.kind == "tcp"]
            task = self._loop.create_task(self._dial(peer_id, places), name="pubsub call back")
            self._tasks[peer_id] = task
            task.add_done_callback(lambda task: self._done(peer_id, task))

    def _done(self, peer_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[peer_id]
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "internal error while a subscriber was called back", exc_info=task.exception()
            )

    async def _dial(self, peer_id: str, places: Sequence[Way]) -> None:
        reached = False
        troubles: list[str] = []
        whose = object()  # of this call alone: an address that was named for others in vain waits

        async def attempt(way: Way) -> Sequence[Way]:
            nonlocal reached
            try:
                await self._turn(peer_id, way, whose)
                reached = True
            except Exception as error:  # it asks again, as long as it wants anything
                troubles.append(f"{way}: {explain(error)}")
                log.info("the subscriber at %s called, and cannot be reached", troubles[-1])
            return ()

        await race(places, attempt, lambda: reached)
        self._subscribers.called_back(peer_id, "" if reached else ", ".join(troubles))

    async def _turn(self, peer_id: str, way: Way, whose: object) -> None:
        async def connect(timeout: float) -> None:
            made = Attempt(
                self._loop,
                self._settings,
                self._scratch,
                lambda link, other: self._seat(link, way, other),
            )
            made.link.kind = "reverse"
            self._links[made.link] = None
            try:
                await made.make(dial(made.link, way, timeout, self._guard), introduce)
            finally:
                del self._links[made.link]

        async def introduce(local_host: str, authenticator: Authenticator) -> Dialler:
            return Dialler(self._identity(local_host), SUBSCRIBER, peer_id, authenticator)

        timeout = self._settings.connect_timeout
        await self._dialling.dial(way.address, whose, True, timeout, connect)

    def _seat(self, link: Link, way: Way, other: Other) -> Core:
        """It is here."""
        other = other._replace(ways=tcp(*way.address))
        self._subscribers.admit(other)
        served = link.endpoint = Served(self._subscribers)
        return served.opened(link, other)

    def close(self) -> list[Link]:
        """Dial nobody any more; returns the links that are closing."""
        for task in list(self._tasks.values()):
            task.cancel()
        links = list(self._links)
        for link in links:
            link.abort()
        return links
