"""Hostile and broken peers: each is cut with a reason, takes bounded memory, and disturbs nobody.

The attacks are in `attacks.py`. Beside each, an honest publisher goes on sending to an honest
subscriber, mostly through the very process that is attacked; after it, all that was put has
arrived, in order, nothing is lost, and their link is the one they had before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pubsub import Message, Peer
from pubsub.config import Settings
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator
from tests.faults.attacks import (
    ON_ANYONE,
    ON_COORDINATOR,
    ON_PUBLISHER,
    ON_SUBSCRIBER,
    Attack,
    HostilePublisher,
    Publishing,
    Target,
)
from tests.integration.support import eventually

pytestmark = pytest.mark.loop

MIB = 1024 * 1024
LIMITS: dict[str, Any] = {"handshake_timeout": 1.0, "max_channels": 1000}


def memory() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Beside:
    """An honest publisher and an honest subscriber, at work."""

    def __init__(self, coordinator: Coordinator, address: str, publisher: Peer, subscriber: Peer):
        self.coordinator = coordinator
        self.address = address
        self.publisher = publisher
        self.subscriber = subscriber
        self.got: list[int] = []
        self.put = 0
        self._stop = False

    async def start(self) -> None:
        self.sub = await self.subscriber.sub("t")
        self.pub = await self.publisher.pub("t")
        self.stream_id = self.pub._publication.stream_id
        self._putting = asyncio.create_task(self._keep_putting())
        self._taking = asyncio.create_task(self._keep_taking())
        await eventually(lambda: self.got)
        self.link = self._link()
        assert self.link is not None

    def _link(self) -> object:
        remote = self.subscriber.runtime._remotes.get(self.publisher.runtime.peer_id)
        return None if remote is None else remote.link

    async def _keep_putting(self) -> None:
        while not self._stop:
            for _ in range(20):
                self.pub.put(self.put)
                self.put += 1
            await asyncio.sleep(0.002)

    async def _keep_taking(self) -> None:
        ours = f"#{self.stream_id}"
        async for event in self.sub.messages():
            if event.publisher.endswith(ours) and event.topic == "t" and event.value != "end":
                self.got.append(event.value)
            elif isinstance(event, Message) and event.value == "end":
                return

    async def noticed_nothing(self) -> None:
        """Check it, at the end."""
        before = len(self.got)
        await eventually(lambda: len(self.got) > before)
        newcomer = await asyncio.wait_for(self.subscriber.sub("t"), 20)
        await newcomer.get(timeout=20)
        await newcomer.close()
        self._stop = True
        await self._putting
        self.pub.put("end")
        await asyncio.wait_for(self._taking, 30)
        assert self.got == list(range(self.put))
        [honest] = [of for at, of in self.sub.publishers.items() if at == self._name()]
        assert honest["lost"] == 0
        assert self._link() is self.link, "the link broke"

    def _name(self) -> str:
        return f"{self.publisher.runtime.address}#{self.stream_id}"


@asynccontextmanager
async def beside(
    registry: Registry | None = None, coordinator: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Beside]:
    """A coordinator, and an honest pair that notices nothing of what happens in the block."""
    loop = asyncio.get_running_loop()
    daemon = Coordinator(
        loop, settings=Settings(**{**LIMITS, **(coordinator or {})}), registry=registry, settle=0.0
    )
    address = str(await daemon.start("127.0.0.1", 0))
    try:
        options = {**LIMITS, **settings}
        async with Peer(address, **options) as one, Peer(address, **options) as other:
            pair = Beside(daemon, address, one, other)
            await pair.start()
            yield pair
            await pair.noticed_nothing()
    finally:
        await daemon.close()


def said(caplog: pytest.LogCaptureFixture, reason: str) -> bool:
    """Whether a warning with this reason was logged."""
    return any(
        reason in record.getMessage() and record.levelno == logging.WARNING
        for record in caplog.records
    )


async def cut(attack: Attack, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    """The attack is over because the victim has ended it, and said why."""
    before = memory()
    goodbye = await asyncio.wait_for(asyncio.to_thread(attack.run, target), 50)
    await eventually(lambda: said(caplog, attack.reason), f"no warning of {attack.reason!r}")
    if goodbye is not None:  # it does not get through a connection that is being flooded
        assert attack.reason in goodbye.reason
    assert memory() - before < 64 * MIB


@asynccontextmanager
async def hostile_publisher(*args: Any, **options: Any) -> AsyncIterator[HostilePublisher]:
    """A `HostilePublisher`, which blocks while it is made and closed."""
    hostile = await asyncio.to_thread(HostilePublisher, *args, **options)
    try:
        yield hostile
    finally:
        await asyncio.to_thread(hostile.close)


# --- one by one --------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [*ON_ANYONE, *ON_PUBLISHER], ids=str)
async def test_a_publisher_under_attack(attack: Attack, caplog: pytest.LogCaptureFixture) -> None:
    async with beside() as pair:
        target = Target(pair.publisher.runtime.address, "peer", pair.stream_id)
        await cut(attack, target, caplog)


@pytest.mark.parametrize("attack", [*ON_ANYONE, *ON_COORDINATOR], ids=str)
async def test_a_coordinator_under_attack(attack: Attack, caplog: pytest.LogCaptureFixture) -> None:
    impatient = {"ping_interval": 0.5, "ping_timeout": 2.0}
    unread = attack.name == "large_answers_that_nobody_reads"
    async with beside(
        Registry(max_registrations=5000), coordinator=impatient if unread else None
    ) as pair:
        await cut(attack, Target(pair.address, "coordinator"), caplog)


@pytest.mark.parametrize("attack", ON_SUBSCRIBER, ids=str)
async def test_a_subscriber_under_attack(
    attack: Publishing, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside() as pair:
        before = memory()
        victim = await pair.subscriber.sub("t", window=65_537)  # nobody reads it
        async with hostile_publisher(
            pair.address, "t", attack.publish, limit=32_768, answer=attack.answer
        ) as hostile:
            await eventually(lambda: said(caplog, attack.reason), attack.reason)
            await eventually(lambda: hostile.goodbyes)
        assert memory() - before < 64 * MIB
        await victim.close()
