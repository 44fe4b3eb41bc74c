"""Discovery: a peer's sessions with its coordinators.

One `Session` per coordinator keeps a connection, registers everything again whenever it is
connected anew, and passes on what is pushed. Coordinators know nothing of each other.

A name that has several addresses means all of them: the first session makes others, one for each
address, and all that have the name follow what it means as time goes by. Where two sessions turn
out to have reached the same coordinator, which is known by its identity, one of them rests for as
long as the other is up. A coordinator cuts off the older of two connections of one peer; so it is
the newer one that stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from pubsub.config import Address, Settings, Way, unmapped
from pubsub.errors import AuthError, ProtocolError
from pubsub.links.keeping import OURS, KeptLink, Trouble, explain
from pubsub.links.link import Link, State
from pubsub.links.patience import Patience
from pubsub.links.resolving import host_of, numeric
from pubsub.support.logs import logger
from pubsub.support.occupants import occupant
from pubsub.trust.guard import Guard, is_auth
from pubsub.wire import messages
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Authenticator, Dialler, Identity, Other, Refused
from pubsub.wire.messages import Called, Control, Expect, Match, Register, Revoked, encode

__all__ = ["MOST", "PORTS", "Directed", "Session", "is_foreign", "most_of"]

log = logger("pubsub")

P = TypeVar("P", str, Way, Address)

_PASSING = ("busy", "closing", "timeout", "rekey")
"""Why a coordinator may say GOODBYE, or be cut off, and be tried again with hope."""


FOLLOW = 30.0
"""Seconds after which a name is asked for again while a session with one of its addresses is up."""
MOST = 16
"""Addresses of a name that are used: a peer registers with each of them."""
HEAD_START = 0.5
"""Seconds that the other addresses of a name have to answer, once one has."""
PORTS = 10
"""Where nothing is configured: ports from the default one on, of which the first is used that
belongs to this user. (Others of the machine may have come first.)"""
FOREIGN = ("protocol", "limit", "role")
"""What is wrong with what comes from a program that is no coordinator."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""No descriptor is left: that passes when something was closed."""


def is_foreign(error: Exception) -> bool:
    """Whether what listens at one of the `PORTS` is another user's, or another program. One that is
    silent, or closes, may be our coordinator, busy or about to end: two would not know of each
    other."""
    foreign = isinstance(error, ProtocolError) and error.code in FOREIGN
    return foreign or is_auth(error)


def most_of(places: Sequence[P]) -> Sequence[P]:
    """Those of the addresses of a name that are used: the same on all machines, however a name
    server turns them, or two peers would have no coordinator in common."""
    return places if len(places) <= MOST else sorted(places)[:MOST]


class Directed(Protocol):
    """What a session serves: the peer."""

    sessions: list[Session]

    async def identify(self, local_host: str) -> Identity:
        """Who we are, for a coordinator that we reach from that address of ours."""

    def registrations(self, session: Session) -> Iterable[Register]:
        """All Pubs and Subs."""

    def connected(self, session: Session, settle: float) -> None:
        """A session is up; all is being registered."""

    def matched(self, session: Session, match: Match) -> None:
        """A MATCH came."""

    def expected(self, session: Session, expect: Expect) -> None:
        """An EXPECT came."""

    def refused(self, session: Session, refused: messages.Refused) -> None:
        """A REFUSED came: that Pub or Sub may not be."""

    def revoked(self, revoked: Revoked) -> None:
        """A REVOKED came. Raises ProtocolError where it is not to be believed."""

    def called(self, session: Session, called: Called) -> None:
        """A CALLED came: a way to that peer."""

    def disconnected(self, session: Session) -> bool:
        """A session is down, could not be brought up, or is not to be waited for any longer;
        returns whether all that there is raises why."""

    def replaced(self, session: Session, by: Session | None) -> None:
        """What that session was told counts until its twin was told it again; without one, no
        longer."""


class Session(KeptLink):
    """The connection to one coordinator, kept up for as long as the peer lives.

    Parameters:
        address: of the coordinator, as it was configured.
        embed: where nothing was configured: starts a coordinator at the address in this process
            and returns True if it did; tried when nothing listens there.
        place: which of the addresses that a name means; None: is to be found out.

    Attributes:
        tried: at least one attempt has ended, well or not, or another session of the same name is
            up and had a head start.
        failure: why the last attempt failed; None while up.
        not_a_coordinator: what listens there is none, or this process cannot listen; trying on is
            only for the case that this changes.
        own: the failure is this process's own: it cannot listen, say.
        twin: a session that is up and has reached the same coordinator.
        zone: of the addresses of ours and theirs that count on one network only (IPv6).
    """

    MISSED = "no coordinator at {trouble}; trying on"
    FOUND = "the coordinator at {way} answers now"
    AT_ONCE = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        directed: Directed,
        settings: Settings,
        scratch: bytearray,
        random: Callable[[], float],
        guard: Guard,
        embed: Callable[[Address], Awaitable[bool]] | None = None,
        place: Way | None = None,
    ) -> None:
        super().__init__(loop, settings, scratch, random, guard)
        self.address = address
        self.tried = False
        self.failure: Exception | None = None
        self.not_a_coordinator = False
        self.own = False
        self._told = False
        self.twin: Session | None = None
        self.identity = ""
        self.zone = ""
        self.settled_at = 0.0
        self.place = place
        self._directed = directed
        self._make: Callable[[Way], Session] = lambda place: Session(
            loop, address, directed, settings, scratch, random, guard, embed, place
        )
        self._embed = embed
        self._here = False  # it is on this machine
        self._outdated = True  # what its name means is to be looked up
        self._look_again: asyncio.TimerHandle | None = None
        self._head_start: Patience | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, in the background; also where all tasks were cancelled meanwhile."""
        if not self.up and self._wanted():
            self._dial()

    def __str__(self) -> str:
        return str(self.place or self.address)

    # --- which of the addresses ---------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        return (Way(*self.address),)

    def _wanted(self) -> bool:
        return not self._closed and self.twin is None

    def _family(self) -> list[Session]:
        """All that have the same name."""
        return [s for s in self._directed.sessions if s.address == self.address]

    @property
    def awaited(self) -> bool:
        """Not up, and nothing is in its place: another session with the same coordinator, or with
        another of the same name, once both had time."""
        if self.up or self.twin is not None:
            return False
        return not (self.tried and any(session.up for session in self._family()))

    async def _addresses(self, way: Way) -> Sequence[Way]:
        if self._outdated or not any(session.up for session in self._family()):
            self._share(await super()._addresses(way))
            self._outdated = False
        return () if self._closed or self.place is None else (self.place,)

    def _share(self, places: Sequence[Way]) -> None:
        """The name means these: have a session with each. One that is not connected, and whose
        address the name does not mean any more, takes another, or goes."""
        if len(places) > MOST:
            log.info(
                "%s means %s addresses; %s are used",
                *(self.address, len(places), MOST),
                address=self.address,
            )
            places = most_of(places)
        family = self._family()
        missing = [p for p in places if p not in [session.place for session in family]]
        for session in sorted(family, key=lambda session: session is not self):
            if session.up or session.place in places:
                continue
            if missing and session.twin is None:  # one that rests would not dial it
                session.place = missing.pop(0)
            elif any(other.up for other in family):
                self._directed.sessions.remove(session)
                session.close()
                self._directed.replaced(session, None)
        for place in missing:
            session = self._make(place)
            self._directed.sessions.append(session)
            session.start()

    async def _follow(self) -> None:
        """See what the name means now."""
        with contextlib.suppress(OSError):
            self._share(await super()._addresses(self._ways()[0]))

    def _follow_soon(self) -> None:
        self._look_again = self._loop.call_later(FOLLOW, self._follow_soon)
        first = next((session for session in self._family() if session.up), None)
        if first is self and (self._looking is None or self._looking.done()):
            self._looking = self._loop.create_task(self._follow(), name="pubsub resolve")

    # --- the connection that is kept ----------------------------------------------------

    async def _introduce(self, local_host: str, authenticator: Authenticator) -> Dialler:
        # which address of ours others can reach depends on how we reach the coordinator
        self.zone = local_host.partition("%")[2]
        if self.link is not None:
            self._here = host_of(self.link.peername) == local_host
        try:
            me = await self._directed.identify(local_host)
        except OSError:
            self.own = True
            raise
        return Dialler(me, "coordinator", authenticator=authenticator)

    async def _connect(self, way: Way, timeout: float) -> None:
        self.own = False
        try:
            if self._embed is None:
                await super()._connect(way, timeout)
            else:
                await self._find(way, timeout, self._embed)
        except OSError as error:
            if self.own or error.errno not in EXHAUSTED:
                raise
            self.own = True
            why = f"{OURS}open a connection: {os.strerror(error.errno)}"
            raise OSError(
                error.errno, f"{why}; raise what this process may have (ulimit -n)"
            ) from None

    async def _find(
        self, way: Way, timeout: float, embed: Callable[[Address], Awaitable[bool]]
    ) -> None:
        """Connect to the first coordinator from that port on that is one of ours; where none is,
        start it at the first that is free, unless somebody is faster there."""
        places = [way._replace(port=port) for port in range(way.port, way.port + PORTS)]
        failure: Exception = AuthError("")
        for _ in places:
            free: Way | None = None
            for place in places:
                try:
                    await super()._connect(place, timeout)
                    return
                except ConnectionRefusedError as error:
                    free, failure = free or place, error
                except (AuthError, ProtocolError) as error:
                    if not is_foreign(error):
                        raise
                    failure = error
            if free is None or not await embed(free.address):
                break
        raise failure

    def _begin(self, link: Link, other: Other) -> Session:
        self.tried = True
        self.failure = None
        self.not_a_coordinator = False
        self.identity = other.peer_id
        self.place = self._way
        self.settled_at = self._opened_at + other.settle
        self._directed.connected(self, other.settle)
        for session in self._directed.sessions:
            if session is not self and session.identity == self.identity:
                session.rest(self)
        frames = [encode(message) for message in self._directed.registrations(self)]
        if frames:
            link.write(b"".join(frames))
        if not numeric(self.address.host):
            self._look_again = self._loop.call_later(FOLLOW, self._follow_soon)
            self._head_start = Patience(self._loop, HEAD_START, self._wait_for_no_other)
        return self

    def rest(self, twin: Session) -> None:
        """This one has reached the same coordinator before: only one of two can stay."""
        log.info("the coordinator at %s is the same as the one at %s", self, twin, address=self)
        self.twin = twin
        self.tried = True
        self.failure = ConnectionError(f"it is the same coordinator as the one at {twin}")
        self.not_a_coordinator = False
        self._directed.replaced(self, twin)
        if self._task is not None:
            self._task.cancel()
            self._task = None  # or the twin, lost before that is done, would have nobody dial
        if self.link is not None:
            self.link.goodbye()

    def _wait_for_no_other(self) -> None:
        """An address that does not answer holds up nobody who has reached another of the name."""
        for session in self._family():
            if not session.tried:
                session.tried = True
                self._directed.disconnected(session)

    def _complain(self, troubles: Sequence[Trouble]) -> None:
        if self.own:
            self._warned = True
            log.warning("%s; trying on", explain(troubles[-1][1]), address=self)
            return
        if self.mute:
            self.complain_of_silence()
            return
        if self._told:  # by the error that all Pubs and Subs raise
            return
        if is_auth(troubles[-1][1]) and not all(s.tried for s in self._directed.sessions):
            return  # where these refuse us too, that error says it
        family = self._family()
        if not any(s.up or s.twin or s._warned or not s.tried for s in family):
            super()._complain(
                [(s.place or way, s.failure or error) for s in family for way, error in troubles]
            )

    def _cheer(self, way: Way) -> None:
        for session in self._family():
            if session._warned:
                session._warned, self._warned = False, True
        super()._cheer(way)

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if link is self.link and error is not None:
            self.failure = error
        super().closed(link, error)

    def _failed(self, error: BaseException) -> None:
        if isinstance(
            error, Exception
        ):  # it is known from now on, and not a turn of the loop later
            self.failure = error

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        self.tried = True
        self.failure = error = troubles[-1][1]
        self.not_a_coordinator = (
            (self.own and getattr(error, "errno", None) not in EXHAUSTED)
            or is_auth(error)
            or (isinstance(error, (ProtocolError, Refused)) and error.code not in _PASSING)
        )
        self._told = self._directed.disconnected(self) and is_auth(error)

    def _over(self, link: Link, error: Exception | None) -> None:
        self._outdated = True
        for timer in (self._look_again, self._head_start):
            if timer is not None:
                timer.cancel()
        if self._closed:
            return
        if self.twin is None:
            self.failure = error or ConnectionError("it said goodbye")
            log.info("the coordinator at %s is gone (%s)", self, error or "goodbye", address=self)
        self._directed.disconnected(self)
        for session in list(self._directed.sessions):
            if session.twin is self:
                session.twin = None
                session._dial(self._backoff.delay())

    def close(self) -> None:
        """Say GOODBYE and stop."""
        super().close()
        for handle in (self._look_again, self._head_start, self._looking):
            if handle is not None:
                handle.cancel()

    # --- the link's core ----------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if self._warned:  # that it did not answer
            self._cheer(self.place or Way(*self.address))
        if isinstance(event, Match):
            self._directed.matched(self, event)
        elif isinstance(event, Expect):
            self._directed.expected(self, event)
        elif isinstance(event, messages.Refused):
            self._directed.refused(self, event)
        elif isinstance(event, Revoked):
            self._directed.revoked(event)
        elif isinstance(event, Called):
            self._directed.called(self, event)
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where a coordinator speaks")

    def pump(self, budget: int) -> Sequence[bytes | memoryview]:
        """See `Core`: what a peer tells a coordinator is sent at once."""
        return ()

    # --- for the peer -------------------------------------------------------------------

    def send(self, message: Control) -> None:
        """Tell the coordinator, if it is there; if not, it will be told when it is."""
        if self.up and self.link is not None:
            self.link.send(message)

    @property
    def reached(self) -> Address:
        """Its address as the connection has it: a number, and no name that may have another meaning
        on another machine."""
        name = self.link.peername if self.link is not None else None
        return Address(unmapped(name[0]), name[1]) if name else self.address

    @property
    def mute(self) -> bool:
        """Whether something has accepted the connection, and does not answer (or has not been asked
        yet)."""
        if self.not_a_coordinator:
            return False
        if self.link is not None and self.link.state is not State.CONNECTING:
            return True
        return isinstance(self.failure, ProtocolError) and self.failure.code == "timeout"

    @property
    def trouble(self) -> str:
        """One short line of why it is not up, or of no use."""
        if self.mute:
            what = "it is connected, and" if self.up else "something listens there, but it"
            return f"{what} has not answered as a coordinator does: {self._busy()}"
        return "no answer yet" if self.failure is None else explain(self.failure)

    def complain_of_silence(self) -> None:
        """It is mute, and waited for."""
        if not self._warned:
            self._warned = True
            log.warning(
                "the coordinator at %s has accepted the connection and does not answer for %g s: "
                "%s; waiting on",
                self,
                self._settings.connect_timeout,
                self._busy(),
                address=self,
            )

    def _busy(self) -> str:
        who = occupant(self.address.port) if self._here else "the process that listens there"
        return f"it is busy or stopped ({who})"
