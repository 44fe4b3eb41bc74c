"""Relays: where a peer meets those whom it cannot dial, and who cannot dial it.

A `RelayLink` is the session with one relay, kept for as long as circuits are wanted of it. Who
wants a stream asks there for a circuit; both ends get a ticket, make a connection to the relay that
begins with it, and have from then on a connection with each other: the one that asked as the side
that dialled, the other one as the side that was dialled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from pubsub.config import Address, Settings, Way
from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.links.dialling import Dialling
from pubsub.links.doors import Doorman
from pubsub.links.keeping import KeptLink, Trouble, connect, dial, explain
from pubsub.links.link import Core, Link
from pubsub.links.patience import Patience
from pubsub.relay.circuits import asked
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Authenticator, Dialler, Identity, Other
from pubsub.wire.messages import Circuit, Join, RelayRow, Ticket, encode

__all__ = ["KEPT", "MAX_JOINING", "MAX_KEPT", "RelayLink", "Relays"]

log = logger("pubsub")

KEPT = 120.0
"""Seconds that a session with a relay is kept in which no circuit was wanted of it."""
MAX_KEPT = 64
"""Sessions with relays, with those that are dialled: a coordinator could name any number."""
MAX_JOINING = 64
"""Connections to relays that are under way at others' wish. Who finds no room asks again."""


class Relays:
    """All sessions with relays of a peer.

    Parameters:
        loop, settings, guard: of the runtime.
        doorman: takes the connections at whose other end is who has asked for it.
        identity: who we are to whom we dial from that address of ours.
        dialling: who has its turn to dial.
        scratch: what links read into.
        random: for the time between attempts.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        guard: Guard,
        doorman: Doorman,
        identity: Callable[[str], Identity],
        dialling: Dialling,
        scratch: bytearray,
        random: Callable[[], float],
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.guard = guard
        self.doorman = doorman
        self.identity = identity
        self.dialling = dialling
        self.kept: dict[str, RelayLink] = {}
        self._scratch = scratch
        self._random = random
        self._joining: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> list[Link]:
        """The sessions' connections, that are open, or about to be."""
        return [kept.link for kept in self.kept.values() if kept.link is not None]

    def meet(self, rows: Sequence[RelayRow], told_by: object) -> None:
        """Somebody wants a circuit with this peer: be at these relays, and stay there for as long
        as any are wanted."""
        for row in rows:
            self._at(row, told_by)

    def _at(self, row: RelayRow, told_by: object = None) -> RelayLink:
        kept = self.kept.get(row.peer_id)
        if kept is None:
            if len(self.kept) >= MAX_KEPT:
                self._make_room()
            kept = RelayLink(self, row.peer_id, self._scratch, self._random)
            self.kept[row.peer_id] = kept
        kept.be_at([Way(way.host, way.port, told_by) for way in row.ways if way.kind == "tcp"])
        return kept

    def _make_room(self) -> None:
        """The oldest goes, of those that were not reached, if there are any. (Circuits go on
        without the session.)"""
        all_kept = list(self.kept.values())
        next((kept for kept in all_kept if not kept.up), all_kept[0]).close()

    async def connect(
        self, link: Link, rows: Sequence[RelayRow], peer_id: str, timeout: float
    ) -> Authenticator:
        """Connect with that peer over the first of these relays that is reached, as `dial` does
        with an address; returns what to ask the other end. Where this raises, the link is to be
        aborted.

        Raises:
            AuthError: these credentials do not go over a relay.
            OSError, PubSubError: no relay is reached, it gives no ticket, or does not take that.
            asyncio.TimeoutError: that takes too long.
        """
        self.guard.context_for_relay()  # or there is nothing to ask for
        end = self.loop.time() + timeout
        troubles: list[str] = []
        for left in range(len(rows), 0, -1):
            relay = self._at(rows[-left])
            try:
                await relay.reached(max(0.0, end - self.loop.time()) / left)
            except (OSError, PubSubError, asyncio.TimeoutError) as error:
                troubles.append(f"the relay at {relay}: {explain(error)}")
                continue
            ticket = await relay.ask(peer_id, end - self.loop.time())
            return await dial(
                *(link, relay.place, max(0.0, end - self.loop.time()), self.guard),
                *(encode(Join(ticket)), self.guard.context_for_relay),
            )
        raise ConnectionError(", nor ".join(troubles) or "there is no relay")

    def accept(self, relay: RelayLink, ticket: bytes) -> None:
        """Somebody asked for a circuit with this peer: be the side that was dialled."""
        try:
            self.guard.context_for_relay()
        except AuthError as error:
            log.warning(
                "a subscriber wants to meet this peer at the relay %s: %s",
                *(relay, error),
                address=relay,
            )
            return
        if len(self._joining) >= MAX_JOINING:
            log.debug("a circuit at %s is not joined: %d are under way", relay, MAX_JOINING)
            return
        task = self.loop.create_task(self._join(relay, ticket), name="pubsub join")
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, relay: RelayLink, ticket: bytes) -> None:
        entry, preface = self.doorman.accept("relay"), encode(Join(ticket))
        try:
            await asyncio.wait_for(
                connect(self.loop, relay.place, entry, preface), self.settings.connect_timeout
            )
        except BaseException as error:
            entry.disown()
            if not isinstance(error, (OSError, asyncio.TimeoutError)):
                raise
            log.debug("a circuit at %s is not joined: %s", relay, explain(error))

    def close(self) -> None:
        """Say GOODBYE to all, and stop."""
        for task in self._joining:
            task.cancel()
        for kept in list(self.kept.values()):
            kept.close()


class RelayLink(KeptLink):
    """The session with one relay."""

    MISSED = "cannot reach the relay at {trouble}; trying on"
    FOUND = "the relay at {way} is reached now"
    QUIET = 2.0

    def __init__(
        self, owner: Relays, peer_id: str, scratch: bytearray, random: Callable[[], float]
    ) -> None:
        super().__init__(owner.loop, owner.settings, scratch, random, owner.guard)
        self.peer_id = peer_id
        self._owner = owner
        self._told: list[Way] = []
        self._met: Address | None = None  # where it was reached last
        self._missing = False  # it was not reached the last time
        self._waiting: set[asyncio.Future[None]] = set()  # until it is reached
        self._asked: dict[str, deque[asyncio.Future[bytes]]] = {}
        self._unused: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        way = self._way or next(iter(self._told), None)
        return str(way) if way is not None else f"peer {self.peer_id}"

    @property
    def place(self) -> Way:
        """Where it was reached."""
        assert self._way is not None
        return self._way

    def be_at(self, ways: list[Way]) -> None:
        """It is wanted, and said to be there."""
        self._told = ways or self._told
        self._keep()
        if not self.up:
            self._dial()

    def _keep(self) -> None:
        """It is kept from now on for a while."""
        if self._unused is not None:
            self._unused.cancel()
        self._unused = self._loop.call_later(KEPT, self.close)

    async def reached(self, timeout: float) -> None:
        """Wait until it is; raises why not, after the first attempt, or asyncio.TimeoutError."""
        if not self.up:
            await self._within(self._waiting, timeout)

    async def ask(self, peer_id: str, timeout: float) -> bytes:
        """A ticket for a circuit with that peer.

        Raises:
            ConnectionError: there is none, and why.
            asyncio.TimeoutError: no answer in time.
        """
        self._keep()
        if self.link is None or not self.up:
            raise ConnectionError("the relay is gone")
        waiting: asyncio.Future[bytes] = self._loop.create_future()
        asked_for = self._asked.setdefault(peer_id, deque())
        asked_for.append(waiting)
        patience = Patience(self._loop, max(0.0, timeout), lambda: _fail(waiting, None))
        self.link.send(Circuit(peer_id))
        try:
            return await waiting
        finally:
            patience.cancel()  # its ticket may come yet, and is for nobody then

    async def _within(self, waiters: set[asyncio.Future[None]], timeout: float) -> None:
        waiting: asyncio.Future[None] = self._loop.create_future()
        waiters.add(waiting)
        patience = Patience(self._loop, timeout, lambda: _fail(waiting, None))
        try:
            await waiting
        finally:
            patience.cancel()
            waiters.discard(waiting)

    # --- the link that is kept ----------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        return self._told

    async def _connect(self, way: Way, timeout: float) -> None:
        """As publishers are dialled: where it was not met yet, when it has its turn."""
        if way.address == self._met:
            await super()._connect(way, timeout)
            return
        again, self._missing = self._missing, True
        connect = super()._connect
        await self._owner.dialling.dial(
            way.address, self, again, timeout, lambda seconds: connect(way, seconds)
        )
        self._missing = False

    async def _introduce(self, local_host: str, authenticator: Authenticator) -> Dialler:
        return Dialler(self._owner.identity(local_host), "relay", self.peer_id, authenticator)

    def _begin(self, link: Link, other: Other) -> Core:
        self._met = self.place.address
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        return self

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        why = troubles[-1][1] if troubles else ConnectionError("nobody says where it is")
        for waiting in self._waiting:
            _fail(waiting, why)

    def _over(self, link: Link, error: Exception | None) -> None:
        lost = ConnectionError(f"the session with the relay is over: {error or 'it said goodbye'}")
        asked_for, self._asked = self._asked, {}
        for each in asked_for.values():
            for waiting in each:
                _fail(waiting, lost)
        self.close()  # whoever wants a circuit has a coordinator name it again, if it is there

    def close(self) -> None:
        """Say GOODBYE, and stop."""
        if self._unused is not None:
            self._unused.cancel()
        if self._owner.kept.get(self.peer_id) is self:
            del self._owner.kept[self.peer_id]
        for waiting in self._waiting:
            _fail(waiting, ConnectionError("nothing is wanted of it any more"))
        super().close()

    # --- the link's core ----------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if not isinstance(event, Ticket):
            raise ProtocolError(f"a {type(event).__name__.upper()} where a relay speaks")
        if event.ticket and len(event.ticket) != 16:
            raise ProtocolError(f"a ticket of {len(event.ticket)} bytes")
        self._keep()
        if event.ticket and not asked(event.ticket):
            self._owner.accept(self, event.ticket)
            return
        waiting = self._asked.get(event.peer_id)
        if waiting is None:
            return
        first = waiting.popleft()
        if not waiting:
            del self._asked[event.peer_id]
        if not event.ticket:
            _fail(first, ConnectionError(f"the relay at {self}: {event.reason}"))
        elif not first.done():
            first.set_result(event.ticket)

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`: what is asked of a relay is sent at once."""
        return ()


def _fail(future: asyncio.Future[bytes] | asyncio.Future[None], why: Exception | None) -> None:
    """It is in vain; None: it takes too long."""
    if not future.done():
        future.set_exception(why or asyncio.TimeoutError())
