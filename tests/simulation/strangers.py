"""Those that have no business in a simulated world: they dial whom they can, and get nothing.

Strangers have no credentials, or other ones. A thief has them, and says that it is a peer that is
there already. Nobody lets either in: that anybody does is a violation (`auth`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pubsub import Closed, CoordinatorUnavailable, Peer
from pubsub.config import Settings, Way, parse_address
from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.faces import peer as faces
from pubsub.links.keeping import dial
from pubsub.links.link import Core, Link
from pubsub.trust.guard import Guard
from pubsub.wire.frames import SCRATCH_SIZE, Event
from pubsub.wire.handshake import Dialler, Identity, Other, tcp

if TYPE_CHECKING:
    from tests.simulation.model import PubRecord, SubRecord
    from tests.simulation.world import World

__all__ = ["Stranger", "Thief", "guarded"]

TOO_EARLY = (
    b"\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"?" * 189,
    b"\x00\x00\x10\x00" + b"\xc1" * 4096,
    b"",
)
"""What one says who knows no better."""


class _Given:
    """In the place of `pubsub.trust.credentials.Credentials`."""

    source = "this world"

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def guard(self) -> Guard:
        return self._guard


def guarded(guard: Guard, addresses: str, **settings: Any) -> Peer:
    """A Peer with that guard, whatever the environment says."""
    with patch.object(faces, "credentials_from", lambda *given: _Given(guard)):
        return Peer(addresses, **settings)


class _Knock:
    """One connection; its endpoint and its core. Who claims to be another is welcomed, and then
    told that it is not: so whether it was let in is known at the end."""

    def __init__(self, over: asyncio.Future[None]) -> None:
        self.over = over
        self.entered = False

    def opened(self, link: Link, other: Other) -> Core:
        self.entered = True
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        if isinstance(error, ProtocolError) and error.code == "auth":
            self.entered = False
        if not self.over.done():
            self.over.set_result(None)

    def receive(self, event: Event) -> None:
        """Whatever it is told."""

    def pump(self, budget: int) -> list[bytes]:
        return []


class _Raw(asyncio.BufferedProtocol):
    """Says something that is no handshake, and listens."""

    def __init__(self, says: bytes, over: asyncio.Future[None]) -> None:
        self._says = says
        self._over = over
        self._buffer = bytearray(1024)

    def connection_made(self, transport: Any) -> None:
        if self._says:
            transport.write(self._says)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Whatever it is told."""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


class _Intruder:
    """A process that dials."""

    def __init__(self, world: World, kind: str) -> None:
        self.world = world
        self.random = world.random
        self.host = world.host()
        self.kind = kind
        self.over = False
        world.strange[self.host] = None
        self.process = world.loop.process(f"{kind} {self.host}", self.host)
        self.guard = self.credentials()
        self.peer: Peer | None = None
        self._scratch = bytearray(SCRATCH_SIZE)
        self._settings = Settings(
            **{n: v for n, v in world.plan.settings.items() if n.startswith("ping")}
        )
        self._mine = world.random.randbytes(16)
        self.process.spawn(self.live())

    def credentials(self) -> Guard:
        raise NotImplementedError

    async def live(self) -> None:
        raise NotImplementedError

    async def knock(self, address: str, peer_id: str, wants: str, expects: str) -> bool:
        """Dial, and say that one is that peer; returns whether one was let in."""
        loop = self.world.loop
        knock = _Knock(loop.create_future())
        link = Link(loop, None, knock, self._settings, self._scratch)
        me = Identity("peer", peer_id, tcp(self.host, 7), {"name": self.kind}, "", self._mine)
        try:
            asks = await dial(link, Way(*parse_address(address)), 2.0, self.guard)
            link.begin(Dialler(me, wants, expects, asks))
            await asyncio.wait({knock.over}, timeout=1.0)
            link.goodbye()
        except (OSError, PubSubError, asyncio.TimeoutError):
            pass
        finally:
            link.abort()
        return knock.entered

    async def leave(self) -> None:
        """End it."""
        self.over = True
        if self.peer is not None:
            await asyncio.wait([self.process.spawn(self._close())], timeout=30.0)

    async def _close(self) -> None:
        assert self.peer is not None
        await self.peer.close(0)


class Stranger(_Intruder):
    """One without credentials that count here."""

    def credentials(self) -> Guard:
        return self.world.credentials.strange(self.kind, self.host)

    async def live(self) -> None:
        world, random = self.world, self.random
        if self.kind == "raw":
            while not self.over:
                await asyncio.sleep(random.expovariate(1.0))
                await self._babble()
            return
        addresses = ",".join(c.address for c in world.coordinators)
        self.peer = guarded(self.guard, addresses, name=self.kind, **world.plan.settings)
        self.process.spawn(self._read())
        self.process.spawn(self._publish())
        while not self.over:
            await asyncio.sleep(random.expovariate(1.0))
            wants, address, peer_id = self._target()
            if address and await self.knock(address, self.peer.peer_id, wants, peer_id):
                world.fail("auth", f"{self.process} was let in by the {wants} at {address}")

    def _target(self) -> tuple[str, str, str]:
        """Whom to dial: its role, address, and who is to be there."""
        world, random = self.world, self.random
        if random.random() < 0.3:
            return "coordinator", random.choice(world.coordinators).address, ""
        peer = random.choice(world.peers)
        if not peer.begun.done():
            return "peer", "", ""
        return "peer", peer.peer.address, peer.peer.peer_id

    async def _babble(self) -> None:
        loop = self.world.loop
        _, address, _ = self._target()
        if not address:
            return
        over = loop.create_future()
        says = self.random.choice(TOO_EARLY)
        host, port = parse_address(address)
        task = asyncio.ensure_future(loop.create_connection(lambda: _Raw(says, over), host, port))
        await asyncio.wait({task}, timeout=2.0)
        if not task.done():
            task.cancel()
        elif task.exception() is None:
            await asyncio.wait({over}, timeout=self.random.choice((0.1, 8.0)))
            task.result()[0].abort()

    async def _read(self) -> None:
        """A Sub of everything, that gets nothing."""
        assert self.peer is not None
        sub = self.peer.sub("**", history="all")
        while not self.over:
            try:
                value = await sub.get(1.0)
            except (AuthError, CoordinatorUnavailable):
                await asyncio.sleep(1.0)
            except TimeoutError:
                pass
            except Closed:
                return
            else:
                if value[0] >= 0:  # else it is its own
                    self.world.fail("auth", f"{self.process} has read {value}")

    async def _publish(self) -> None:
        """A Pub that reaches nobody. (Its message would be nobody's in the model.)"""
        assert self.peer is not None
        pub = self.peer.pub("t/a", history=1)
        try:
            pub.put([-1, 0, b""])
            await pub
        except (AuthError, CoordinatorUnavailable, Closed):
            return
        self.world.fail("auth", f"a Pub of {self.process} is ready")


class Thief(_Intruder):
    """One that belongs here, and says that it is another that does."""

    def credentials(self) -> Guard:
        return self.world.credentials.guard(self.host)

    async def live(self) -> None:
        world, random = self.world, self.random
        while not self.over:
            await asyncio.sleep(random.expovariate(2.0))
            self.guard.renew(world.credentials.found(self.host))
            if random.random() < 0.3:
                await self._pose_at_a_coordinator()
            else:
                pairs = [p for p in world.model.pairs() if p[0].peer is not p[1].peer]
                if pairs:
                    await self._pose(*random.choice(pairs))

    async def _pose_at_a_coordinator(self) -> None:
        world = self.world
        coordinator, peer = self.random.choice(world.coordinators), self.random.choice(world.peers)
        if not peer.begun.done():
            return
        if peer.peer.peer_id not in coordinator.coordinator.registry._peers:
            return  # whoever comes first is believed
        entered = await self.knock(coordinator.address, peer.peer.peer_id, "coordinator", "")
        if entered and not peer.peer.runtime.closing:  # one that ended meanwhile is nobody any more
            world.fail("auth", f"{coordinator.address} took {self.process} for {peer.process}")

    async def _pose(self, pub: PubRecord, sub: SubRecord) -> None:
        """As a subscriber that is connected."""
        world = self.world
        stream = sub.sub._inbox.streams.get(pub.key)
        if stream is None or not stream.open:
            return
        publisher, name = pub.peer.peer, sub.peer.peer.peer_id
        entered = await self.knock(publisher.address, name, "peer", publisher.peer_id)
        if entered and pub.state == sub.state == "open":
            world.fail("auth", f"{pub.peer.process} took {self.process} for {sub.peer.process}")
