"""The relay's server: sessions with peers and coordinators, and the circuits around `Circuits`.

A connection to it begins in one of two ways: as any other one, by TLS or HELLO, of a peer that
keeps a session; or with a JOIN, of one end of a circuit. What comes on a circuit is passed on, and
nothing of it is looked at or kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from pubsub.config import Address, Settings, Way
from pubsub.core.rights import Rights, held
from pubsub.errors import AuthError, ProtocolError
from pubsub.links.doors import Doors
from pubsub.links.keeping import KeptLink
from pubsub.links.link import Core, Link
from pubsub.links.listening import REQUEST_SCRATCH
from pubsub.links.renewal import Renewal
from pubsub.links.splice import End, Scratch, splice
from pubsub.relay.circuits import Circuit, Circuits, Push
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.trust.guard import IMPOSTOR, Guard
from pubsub.wire import messages
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Authenticator, Dialler, Other
from pubsub.wire.messages import MAX_REQUEST_PAYLOAD, Load, Revoked

__all__ = ["LOAD_EVERY", "MAX_SESSIONS", "Relay"]

log = logger("pubsub.relay")

LOAD_EVERY = 1.0
"""Seconds between two words to a coordinator of how busy the relay is."""
EXPIRE_EVERY = 1.0
"""Seconds between two looks for what has waited in vain."""
MAX_SESSIONS = 10_000
"""Peers that may be here at once."""


class Relay:
    """One relay.

    Parameters:
        loop: to run in.
        coordinators: by which it is found.
        settings: where it listens, what it tells of that, times.
        guard: how its connections are secured; None: all are open.

    Attributes:
        on_found: called with a coordinator's address when it has let the relay in for the first
            time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coordinators: Sequence[Address],
        *,
        settings: Settings | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.loop = loop
        self.settings = settings or Settings()
        self.guard = guard = guard or Guard()
        self.on_found: Callable[[Address], object] = lambda address: None
        entropy = this_host().entropy
        self.peer_id = guard.new_id()
        self.circuits = Circuits(entropy)
        self.sessions: dict[str, _Session] = {}
        self._links: dict[Link, None] = {}
        self._ends: dict[End, Circuit] = {}
        self._splice_scratch = Scratch()
        scratch = bytearray(REQUEST_SCRATCH)
        self.doors = Doors(
            *(loop, self.settings, scratch, self.peer_id, lambda other: _Session(self), guard),
            *(self._admit, "relay"),
        )
        self.doors.doorman.on_join = self._join
        random = Random(entropy(8)).random
        self.coordinators = [
            _AtCoordinator(self, address, scratch, random) for address in coordinators
        ]
        self.renewal = Renewal(loop, lambda: [guard], lambda: self.links)
        self._expiry: asyncio.TimerHandle | None = None
        self._load: asyncio.TimerHandle | None = None

    async def start(self) -> list[Address]:
        """Listen, and begin to tell the coordinators; returns where.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        await self.doors.identify("")
        self.doors.identities.clear()  # what others are told depends on who they are
        servers = self.doors.servers.values()
        addresses = [Address(*server.sockets[0].getsockname()[:2]) for server in servers]
        log.info("relaying on %s", " and ".join(map(str, addresses)))
        self.renewal.start()
        for each in self.coordinators:
            each.start()
        self._expire()
        return addresses

    @property
    def links(self) -> list[Link]:
        """All connections whose handshake is done, or that are dialled; ends of circuits are none
        of them."""
        mine = [each.link for each in self.coordinators if each.link is not None]
        return [*self._links, *mine]

    async def close(self) -> None:
        """Say GOODBYE to everyone, close all circuits, and stop."""
        self.renewal.stop()
        for timer in (self._expiry, self._load):
            if timer is not None:
                timer.cancel()
        links = self.links
        for each in self.coordinators:
            each.close()
        for link in list(self._links):
            link.goodbye(reason="the relay is being stopped")
        for end in list(self._ends):
            end.abort()
        for link in (*links, *await self.doors.close(links)):
            await link.gone()

    # --- sessions -----------------------------------------------------------------------

    def _admit(self, other: Other) -> None:
        """Raise ProtocolError where it is not the one that is here under its identity."""
        known = self.sessions.get(other.peer_id)
        if known is not None and known.who != other.who:
            raise ProtocolError(IMPOSTOR, code="auth")
        if known is None and len(self.sessions) >= MAX_SESSIONS:
            raise ProtocolError(
                f"this relay has {MAX_SESSIONS:,} peers, and takes no more", code="limit"
            )

    def joined(self, session: _Session, link: Link, other: Other) -> None:
        """A peer is here."""
        self._links[link] = None
        before = self.sessions.get(other.peer_id)
        self.sessions[other.peer_id] = session
        self._tell(self.circuits.come(other.peer_id, session.rights, self.loop.time()))
        if before is not None and before.link is not None:
            before.link.goodbye("busy", "the peer has connected anew")

    def left(self, session: _Session, link: Link) -> None:
        """A session is over."""
        self._links.pop(link, None)
        if self.sessions.get(session.peer_id) is session:
            del self.sessions[session.peer_id]
            self.circuits.go(session.peer_id)
            self._tell_load()

    def ask(self, peer_id: str, other: str) -> None:
        """A peer asks for a circuit with another one."""
        self._tell(self.circuits.ask(peer_id, other, self.loop.time()))
        self._tell_load()

    def _tell(self, pushes: Sequence[Push]) -> None:
        for peer_id, ticket in pushes:
            session = self.sessions.get(peer_id)
            if session is not None:
                session.send(ticket)

    # --- circuits -----------------------------------------------------------------------

    def _join(self, transport: Any, ticket: bytes, early: bytes) -> None:
        """A connection begins with a ticket."""
        now = self.loop.time
        try:
            circuit = self.circuits.join(ticket, None, now())
        except ProtocolError as error:
            log.debug("a connection is closed: %s", error)
            transport.abort()
            return

        def heard() -> None:
            circuit.heard = now()

        end = End(
            *(self.loop, transport, self._splice_scratch, early, heard),
            lambda: self._over(end, circuit),
        )
        circuit.ends[ticket] = end
        self._ends[end] = circuit
        if circuit.whole:
            splice(*circuit.ends.values())

    def _over(self, end: End, circuit: Circuit) -> None:
        """One end of a circuit is gone. The other one may have some last bytes to take, and counts
        for as long as it takes: who opens circuits and never reads them has no more than others."""
        self._ends.pop(end, None)
        if circuit.whole and any(each in self._ends for each in circuit.ends.values()):
            return
        self.circuits.end(circuit)  # where it was not whole, the other ticket is for nothing
        self._tell_load()

    def _expire(self) -> None:
        self._expiry = self.loop.call_later(EXPIRE_EVERY, self._expire)
        pushes, over = self.circuits.expire(self.loop.time())
        self._tell(pushes)
        for circuit in over:
            log.debug("a circuit of %s with %s is over: nothing came", *circuit.peers)
            for end in list(circuit.ends.values()):
                end.abort()
        if over:
            self._tell_load()

    def _tell_load(self) -> None:
        """Tell the coordinators how busy this relay is, soon, and once for many changes."""
        if self._load is None:
            self._load = self.loop.call_later(LOAD_EVERY, self._say_load)

    def _say_load(self) -> None:
        self._load = None
        for each in self.coordinators:
            each.tell_load()


class _Session:
    """One peer's session: endpoint and core."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.link: Link | None = None
        self.peer_id = ""
        self.who: tuple[str, bytes] = ("", b"")
        self.rights: Rights = held(None)

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`."""
        link.reader.max_payload = MAX_REQUEST_PAYLOAD
        self.link, self.peer_id, self.who = link, other.peer_id, other.who
        self.rights = held(other.standing.rights)
        self._relay.joined(self, link, other)
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if self.link is not None:
            self.link = None
            self._relay.left(self, link)

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if not isinstance(event, messages.Circuit):
            raise ProtocolError(f"a {type(event).__name__.upper()} where a peer asks a relay")
        self._relay.ask(self.peer_id, event.peer_id)

    def send(self, message: messages.Ticket) -> None:
        """Tell the peer."""
        if self.link is not None:
            if self.link.paused:
                self.link.fail(ProtocolError("it does not read what it is told", code="limit"))
            else:
                self.link.send(message)

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`: what a relay has to say is sent at once."""
        return ()


class _AtCoordinator(KeptLink):
    """The session with one coordinator: there the relay is found."""

    MISSED = "not found through the coordinator at {trouble}; trying on"
    FOUND = "the coordinator at {way} answers now"
    AT_ONCE = False

    def __init__(self, relay: Relay, address: Address, scratch: bytearray, random: Any) -> None:
        super().__init__(relay.loop, relay.settings, scratch, random, relay.guard)
        self._relay = relay
        self._address = address
        self._told = 0
        self._found = False

    def start(self) -> None:
        """Begin to connect."""
        self._dial()

    def _ways(self) -> Sequence[Way]:
        return (Way(*self._address),)

    async def _introduce(self, local_host: str, authenticator: Authenticator) -> Dialler:
        me = await self._relay.doors.identify(local_host)
        return Dialler(me, "coordinator", authenticator=authenticator)

    def _begin(self, link: Link, other: Other) -> Core:
        self._told = 0
        self.tell_load()
        if not self._found:
            self._found = True
            self._relay.on_found(self._address)
        return self

    def tell_load(self) -> None:
        """Say how many circuits there are, where that is another number than was said last."""
        circuits = len(self._relay.circuits)
        if self.up and self.link is not None and circuits != self._told:
            self._told = circuits
            self.link.send(Load(circuits))

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if isinstance(event, messages.Refused):
            log.warning("the coordinator at %s: %s", self._address, event.reason)
        elif isinstance(event, Revoked):
            try:
                newer = self.guard.learn(event.list)
            except AuthError as error:
                raise ProtocolError(str(error)) from None
            if newer:
                self._relay.renewal.review()
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where a coordinator speaks")

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`: what a relay has to say is sent at once."""
        return ()
