"""A relay, and peers that meet there: their doors and sessions, without what they publish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

from pubsub.config import Address, Settings
from pubsub.links.dialling import Dialling
from pubsub.links.doors import Doors
from pubsub.links.link import Core, Link
from pubsub.relay.server import Relay
from pubsub.runtime.relay_link import Relays
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Dialler, Other, tcp
from pubsub.wire.messages import Ping, RelayRow
from tests.integration.support import LONG

__all__ = ["Door", "Heard", "a_relay", "meeting", "row"]


class Heard:
    """One end of a link: what comes on it, and how it ends."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.other: Other | None = None
        self.events: list[Any] = []
        self.ended: list[Exception | None] = []
        self.opening = asyncio.get_running_loop().create_future()

    def opened(self, link: Link, other: Other) -> Core:
        self.link, self.other = link, other
        if not self.opening.done():
            self.opening.set_result(other)
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        self.ended.append(error)
        if not self.opening.done():
            self.opening.set_exception(error or ConnectionError("it said goodbye"))
            self.opening.exception()

    def receive(self, event: Any) -> None:
        self.events.append(event)

    def pump(self, budget: int) -> tuple[()]:
        return ()


class Door:
    """What a peer needs to meet others at relays."""

    def __init__(self, guard: Guard, settings: Settings | None = None) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.guard = guard
        self.settings = settings or Settings()
        self.peer_id = guard.new_id()
        self.served: list[Heard] = []
        self.scratch = bytearray(256 * 1024)
        self.doors = Doors(
            *(loop, self.settings, self.scratch, self.peer_id, self._seat, guard),
        )
        random = Random(1).random
        self.relays = Relays(
            *(loop, self.settings, guard, self.doors.doorman, self.doors.identity),
            *(Dialling(loop, random), self.scratch, random),
        )

    def _seat(self, other: Other) -> Heard:
        self.served.append(Heard())
        return self.served[-1]

    async def reach(
        self, other: Door, *rows: RelayRow, timeout: float = LONG, expects: str | None = None
    ) -> Heard:
        """Make a link with that peer over the first of these relays."""
        end = Heard()
        link = Link(self.loop, None, end, self.settings, self.scratch)
        try:
            asks = await self.relays.connect(link, rows, other.peer_id, timeout)
            whom = other.peer_id if expects is None else expects
            link.begin(Dialler(self.doors.me(), "peer", whom, asks))
            await asyncio.wait_for(asyncio.shield(end.opening), LONG)
        except BaseException:
            link.abort()
            raise
        return end

    async def close(self) -> None:
        self.relays.close()
        await self.doors.close(())
        await asyncio.sleep(0.01)


@asynccontextmanager
async def a_relay(
    guard: Guard, coordinators: tuple[Address, ...] = (), settings: Settings | None = None
) -> AsyncIterator[Relay]:
    settings = settings or Settings(host="127.0.0.1")
    relay = Relay(asyncio.get_running_loop(), coordinators, settings=settings, guard=guard)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()


def row(relay: Relay, port: int = 0) -> RelayRow:
    """Where it is; `port`: somewhere in between."""
    (server,) = relay.doors.servers.values()
    host, there = server.sockets[0].getsockname()[:2]
    return RelayRow(relay.peer_id, tcp(host, port or there))


@asynccontextmanager
async def meeting(
    make: Callable[[], Guard] = Guard,
    subscriber: Guard | None = None,
    publisher: Guard | None = None,
) -> AsyncIterator[tuple[Relay, Door, Door]]:
    """A relay, and two peers."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(a_relay(make()))
        s, p = Door(subscriber or make()), Door(publisher or make())
        stack.push_async_callback(s.close)
        stack.push_async_callback(p.close)
        yield relay, s, p


PING = Ping(7)
