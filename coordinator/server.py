"""The coordinator's server: connections and timers around the registry.

It accepts peers and clients, hands what they register to the `Registry`, and writes the pushes
that come back. The pushes of one turn of the loop to one peer go out in one write.

What is asked is not done where it is read. In each turn of the loop some requests are looked at, a
few of each connection that has any; what else comes with the turn (connections to accept,
handshakes, signs of life) does not wait for the rest. Where all peers come back at once, each with
much to register, those at the door would else give up.

A small request may have a large answer. So a connection's next request is looked at only when it
has read most of the answers to those before, and until then no more of them are read; and who
does not read at all what changes is cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from pubsub.config import Address, Settings, unmapped
from pubsub.coordinator.registry import Registry, machine_of
from pubsub.core.rights import EVERYTHING, Rights, held
from pubsub.errors import ProtocolError
from pubsub.links.doors import Doorman
from pubsub.links.link import Link
from pubsub.links.listening import REQUEST_SCRATCH, accept_more, listen, stop_accepting
from pubsub.links.probing import Prober, home
from pubsub.links.renewal import Renewal
from pubsub.support.about import about
from pubsub.support.logs import logger
from pubsub.trust.guard import IMPOSTOR, Guard
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Acceptor, Authenticator, Identity, Other
from pubsub.wire.messages import (
    MAX_REQUEST_PAYLOAD,
    Answer,
    Call,
    Control,
    Load,
    Query,
    Refused,
    Register,
    Revoked,
    Unregister,
    WayRow,
    encode,
)

__all__ = ["SETTLE", "Coordinator"]

log = logger("pubsub.coordinator")

SETTLE = 5.0
"""Seconds after its start in which a coordinator takes peers to be coming back."""
REQUESTS_PER_TURN = 64
"""Requests that are looked at in one turn of the loop: some 2 ms of work."""
REQUESTS_IN_A_RUSH = 16
"""The same, in a turn in which connections were accepted. These are over sooner than all that they
ask for, and have their time limits."""
REQUESTS_AT_ONCE = 32
"""Those of one connection, before it is another's turn."""
REQUESTS_AHEAD = 256
"""Requests that wait to be looked at when no more of that connection are read."""
BACKLOG = 4096
"""Connections that may wait to be accepted."""
ANSWERS_AHEAD = 256 * 1024
"""Bytes of answers that may wait for a connection before its next request is looked at."""
MAX_BEHIND = 32 * 1024 * 1024
"""Bytes of news that may wait for a connection that does not read."""
SHOWN_ID = 8
"""Characters of an identity that strangers are shown."""
ANSWER_ROWS = 500
"""Rows of one ANSWER."""
Request: TypeAlias = Register | Unregister | Query | Call | Load
ASKS: dict[str, tuple[type[Request], ...]] = {
    "peer": (Register, Unregister, Query, Call),
    "client": (Query,),
    "relay": (Load,),
}
"""What each role may ask for."""


class Coordinator:
    """One coordinator.

    Parameters:
        loop: to run in.
        settings: times and limits; `ping_interval` and `ping_timeout` bound how long a peer that
            vanished stays listed.
        registry: what it knows; a fresh one where none is given.
        settle: see `SETTLE`.
        guard: how its connections are secured; None: all are open.
        trust_advertise: whatever a peer says where it is reached is told to the others.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        settle: float = SETTLE,
        guard: Guard | None = None,
        trust_advertise: bool = False,
    ) -> None:
        self.trust_advertise = trust_advertise
        self.loop = loop
        self.settings = settings or Settings()
        self.registry = registry or Registry()
        self.guard = guard = guard or Guard()
        self.peer_id = guard.new_id()
        self.servers: list[asyncio.Server] = []
        self.addresses: list[Address] = []
        """Where it listens: a name may stand for several."""
        self._connections: dict[str, _Connection] = {}
        self._relays: dict[str, _Connection] = {}
        self._links: dict[Link, None] = {}
        self._scratch = bytearray(REQUEST_SCRATCH)
        self._doorman = Doorman(
            *(loop, self.settings, self._scratch, self._greet),
            *(lambda other: _Connection(self), guard),
        )
        self._prober = Prober(loop, self.peer_id, self.settings, self._scratch, guard)
        self._host_id = guard.host_id()
        self.renewal = Renewal(loop, lambda: [guard], lambda: self._links)
        self._revoked = guard.revoked
        self.renewal.on_review = self.tell_revoked
        self._settle = settle
        self._started = loop.time()
        self.registry.settling = settle > 0
        self._settling: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._sweeping = False
        self._dirty: list[_Connection] = []
        self._rush = False
        """Connections were accepted since requests were looked at."""
        self._asking: deque[_Connection] = deque()
        """Those with requests to look at."""
        self._closing = False

    async def start(self, host: str, port: int) -> Address:
        """Listen; returns where: the first of `addresses`.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        servers = await listen(self.loop, self._doorman.accept, host, port, BACKLOG)
        self.servers += servers
        self.servers += await accept_more(self.loop, self._doorman.accept, servers, BACKLOG)
        self.addresses = [Address(*server.sockets[0].getsockname()[:2]) for server in servers]
        if self.registry.settling:
            ends = self._started + self._settle + self.registry.grace
            self._settling = self.loop.call_at(ends, self.registry.settled)
        log.info("listening on %s", " and ".join(map(str, self.addresses)))
        return self.addresses[0]

    @property
    def links(self) -> list[Link]:
        """All connections whose handshake is done."""
        return list(self._links)

    async def close(self) -> None:
        """Say GOODBYE to everyone and stop."""
        self.renewal.stop()
        self._closing = True
        try:
            await stop_accepting(self.loop, self.servers)
        finally:
            links = list(self._links)
            for link in links:
                link.goodbye(reason="the coordinator is being stopped")
            self._stop_timers()
            links += self._prober.close()
            links += self._doorman.abort_all_but(links)
        for link in links:
            await link.gone()

    def cut(self) -> None:
        """Stop without a word to anyone, and wait for nothing."""
        self._closing = True
        for server in self.servers:
            server.close()
        self._prober.close()
        self._doorman.abort_all_but(())
        self._stop_timers()

    def _stop_timers(self) -> None:
        for timer in (self._expiry, self._settling):
            if timer is not None:
                timer.cancel()

    def _greet(self, authenticator: Authenticator) -> Acceptor:
        self._rush = True
        settle = max(0.0, self._started + self._settle - self.loop.time())
        me = Identity("coordinator", self.peer_id, info=about(), host_id=self._host_id)
        return Acceptor(me, ("peer", "client", "relay"), settle, authenticator, self._admit)

    def _admit(self, other: Other) -> None:
        """Raise ProtocolError where it is not the one that has come under its identity before."""
        known = self.registry.relays if other.role == "relay" else self.registry
        if other.role != "client" and not known.knows(other.peer_id, other.who):
            raise ProtocolError(IMPOSTOR, code="auth")

    # --- what connections ask for -------------------------------------------------------

    def joined(self, connection: _Connection, link: Link, other: Other) -> None:
        """The handshake is done.

        Raises:
            ProtocolError: it is one peer too many.
        """
        if other.role != "client" and not self._closing:
            here, there = link.sockname, link.peername
            source = unmapped(there[0]) if there else ""
            met_at = Address(unmapped(here[0]), here[1]) if here else Address("", 0)
            ways, objections = self._judge(other, source)
        if other.role == "relay" and not self._closing:
            name = other.info.get("name")
            self.registry.relays.connect(
                *(other.peer_id, ways, machine_of(source, met_at)),
                *(name if isinstance(name, str) else "", other.who),
            )
        if other.role == "peer" and not self._closing:
            pushes = self.registry.connect(
                *(other.peer_id, ways, other.info, self.loop.time()),
                who=other.who,
                listens=other.listens,
                host_id=other.host_id,
                source=source,
                met_at=met_at,
                rights=connection.rights,
            )
        self._links[link] = None
        if self._closing:
            link.goodbye(reason="the coordinator is being stopped")
            return
        if other.role == "client":
            return
        log.debug("%s has joined (%s %s)", link, other.role, other.peer_id, of=link)
        connections = self._of(connection)
        before = connections.get(other.peer_id)
        connections[other.peer_id] = connection
        if other.role == "peer":
            connection.home = home(link, other)
            self._prober.clear(other.peer_id)
            self.push(pushes)
        if self.guard.revoked:
            link.send(Revoked(self.guard.revoked))
        for objection in objections:
            log.info("%s: %s", link, objection, of=link)
            link.send(Refused(0, "auth", objection))
        if before is not None and before.link is not None:
            before.link.goodbye("busy", f"the {other.role} has connected anew")

    def _of(self, connection: _Connection) -> dict[str, _Connection]:
        """Those of the same role: a relay's identity is no peer's."""
        return self._relays if connection.role == "relay" else self._connections

    def _judge(self, other: Other, source: str) -> tuple[tuple[WayRow, ...], list[str]]:
        """Which of its ways others are told, and why not the rest."""
        told, objections = [], []
        for way in other.ways:
            why = ""
            if way.kind == "tcp" and not self.trust_advertise:
                why = self.guard.objection(way.host, source, other.standing)
            if why:
                at = Address(way.host, way.port)
                objections.append(f"nobody is told to dial {at}, as you come from {source}: {why}")
            else:
                told.append(way)
        return tuple(told), objections

    def tell_revoked(self) -> None:
        """Hand the newest list of revoked certificates to all."""
        if self.guard.revoked != self._revoked:
            self._revoked = self.guard.revoked
            for connection in (*self._connections.values(), *self._relays.values()):
                if connection.link is not None:
                    connection.link.send(Revoked(self._revoked))

    def left(self, connection: _Connection, link: Link, *, orderly: bool) -> None:
        """A connection is gone."""
        self._links.pop(link, None)
        peer_id = connection.peer_id
        connections = self._of(connection)
        if connections.get(peer_id) is not connection:
            return
        del connections[peer_id]
        how = "has left" if orderly else "is away"
        log.debug("%s %s (%s %s)", link, how, connection.role, peer_id, of=link)
        if connection.role == "relay":
            self.registry.relays.lose(peer_id)
            return
        if orderly:
            self.push(self.registry.leave(peer_id))
        else:
            self.push(self.registry.lose(peer_id, self.loop.time()))
            if connection.home is not None:
                self._prober.suspect(peer_id, connection.home, self.registry.grace, self._is_gone)
        self._arm()

    def _is_gone(self, peer_id: str) -> None:
        """A peer has ended without a goodbye: nobody expects it any more."""
        log.debug("peer %s is gone without a goodbye", peer_id, peer=peer_id)
        self.push(self.registry.leave(peer_id))
        self._arm()

    def push(self, pushes: Iterable[tuple[str, Control]]) -> None:
        """Have messages written at the end of this turn."""
        for peer_id, message in pushes:
            connection = self._connections.get(peer_id)
            if connection is not None:
                self.touch(connection)
                connection.put(encode(message))

    def look_at(self, connection: _Connection) -> None:
        """It has asked for something."""
        if not connection.asking:
            if not self._asking:
                self.loop.call_soon(self._look)  # first: where it raises, the next one calls
            connection.asking = True
            self._asking.append(connection)

    def _look(self) -> None:
        """Look at some of what was asked for."""
        left = REQUESTS_IN_A_RUSH if self._rush else REQUESTS_PER_TURN
        self._rush = False
        asking = self._asking
        try:
            while asking and left > 0:
                connection = asking[0]
                try:
                    left -= connection.work(min(left, REQUESTS_AT_ONCE))
                finally:
                    asking.popleft()
                if connection.asking:
                    asking.append(connection)
        finally:
            if asking:
                self.loop.call_soon(self._look)

    def touch(self, connection: _Connection) -> None:
        """It has something to write."""
        if not connection.dirty:
            if not self._dirty:
                self.loop.call_soon(self._write)
            connection.dirty = True
            self._dirty.append(connection)

    def _write(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.dirty = False
            link = connection.link
            if link is None:
                continue
            try:
                link.flush()
                if connection.waiting > MAX_BEHIND:
                    link.fail(ProtocolError("it does not read what it is told", code="limit"))
            except Exception:  # one connection's trouble is no other's
                log.exception("internal error while writing to %s", link)
                link.abort()

    def _arm(self) -> None:
        if self.registry.sweeping and not self._sweeping and not self._closing:
            self.loop.call_soon(self._sweep)
            self._sweeping = True
        due = self.registry.next_expiry()
        if due is not None and self._expiry is None and not self._closing:
            self._expiry = self.loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        try:
            self.push(self.registry.expire(self.loop.time()))
        finally:
            self._arm()

    def _sweep(self) -> None:
        """Some more of what has gone: in each turn a little, so that others are heard."""
        self._sweeping = False
        try:
            self.push(self.registry.sweep())
        finally:
            self._arm()


class _Connection:
    """Endpoint of one connection."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.link: Link | None = None
        self.peer_id = ""
        self.role = ""
        self.rights: Rights = EVERYTHING
        self.home: Address | None = None
        """Where the peer lives, if that is known."""
        self.dirty = False
        self.asking = False
        self.output: list[bytes] = []
        self.waiting = 0
        """Bytes in `output`."""
        self._requests: deque[Request] = deque()
        self._answers: list[Iterator[bytes]] = []

    def put(self, frame: bytes) -> None:
        """Have a frame written."""
        self.output.append(frame)
        self.waiting += len(frame)

    def opened(self, link: Link, other: Other) -> _Connection:
        """See `Endpoint`."""
        self.role = other.role
        self.peer_id = "" if other.role == "client" else other.peer_id
        self.rights = held(other.standing.rights)
        link.reader.max_payload = MAX_REQUEST_PAYLOAD
        self.link = link
        try:
            self.coordinator.joined(self, link, other)
        except ProtocolError:
            self.link = None  # it never was one of ours
            raise
        return self

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if isinstance(event, ASKS[self.role]):
            self._requests.append(event)
            self.coordinator.look_at(self)
            if len(self._requests) == REQUESTS_AHEAD:
                assert self.link is not None
                self.link.listen(False)
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where a {self.role} speaks")

    def work(self, most: int) -> int:
        """Look at so many of the requests that came, or fewer where answers to them wait to be
        read; returns how many. Leaves `asking` true if there are more to look at."""
        self.asking = False
        link = self.link
        if link is None or link.closing:
            return 0
        requests = self._requests
        done = 0
        try:
            while requests and self.waiting < ANSWERS_AHEAD and not link.paused:
                if done == most:
                    self.asking = True
                    break
                done += 1
                self._act(requests.popleft())
        except ProtocolError as error:
            self.asking = False
            link.fail(error)
        except Exception as error:
            self.asking = False
            log.exception("internal error over a request of %s", link, of=link)
            link.fail(ProtocolError(f"internal error: {error!r}", code="internal"))
        else:
            link.listen(not requests)
        return done

    def _act(self, request: Request) -> None:
        coordinator = self.coordinator
        if isinstance(request, Register):
            now = coordinator.loop.time()
            coordinator.push(coordinator.registry.register(self.peer_id, request, now))
            coordinator._arm()
        elif isinstance(request, Unregister):
            coordinator.push(coordinator.registry.unregister(self.peer_id, request.id))
        elif isinstance(request, Call):
            now = coordinator.loop.time()
            pushes = coordinator.registry.call(self.peer_id, request, now)
            if not pushes:
                log.debug("%s: %r is passed to nobody", self.link, request)
            coordinator.push(pushes)
        elif isinstance(request, Load):
            coordinator.registry.relays.load(self.peer_id, request.circuits)
        else:
            if len(self._answers) >= 16:
                raise ProtocolError("too many questions at once", code="limit")
            self._answers.append(self._answer(request, self._rows(request.what)))
            coordinator.touch(self)

    def _rows(self, what: str) -> Iterator[dict[str, Any]]:
        """Where everybody may ask, no whole identity is told: who has it could come under it,
        somewhere, before its owner does."""
        registry = self.coordinator.registry
        if what == "topics":
            return registry.topics(self.rights)
        rows = (registry.peers if what == "peers" else registry.relay_rows)(self.rights)
        if not self.coordinator.guard.open:
            return rows
        return ({**row, "peer_id": row["peer_id"][:SHOWN_ID]} for row in rows)

    def _answer(self, query: Query, rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
        while True:
            part = tuple(islice(rows, ANSWER_ROWS))
            complete = len(part) < ANSWER_ROWS
            yield encode(Answer(query.token, complete, part))
            if complete:
                return

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`."""
        output, self.output = self.output, []
        self.waiting = 0
        if self._requests:
            self.coordinator.look_at(self)
        if self._answers and budget > 0:
            if not output:
                frame = next(self._answers[0], None)
                if frame is None:
                    del self._answers[0]
                else:
                    output.append(frame)
            if self._answers:  # the next part in a turn of its own, so that others are heard
                self.coordinator.touch(self)
        return output

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if self.link is not None:
            self.link = None
            self._requests.clear()
            self.coordinator.left(self, link, orderly=error is None or link.cut)
