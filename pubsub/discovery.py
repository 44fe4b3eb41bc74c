"""Discovery: a peer's sessions with its coordinators.

One `Session` per configured coordinator keeps a connection, registers everything again whenever
it is connected anew, and passes on what is pushed. Coordinators know nothing of each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from pubsub.config import Address, Settings, Way
from pubsub.core.frames import Event
from pubsub.core.handshake import Dialler, Identity, Other, Refused
from pubsub.core.messages import Control, Expect, Match, Register, encode
from pubsub.errors import AuthError, ProtocolError
from pubsub.keeping import KeptLink, Trouble, explain
from pubsub.link import Link
from pubsub.logs import logger

__all__ = ["Directed", "Session"]

log = logger("pubsub")

_PASSING = ("busy", "closing", "timeout")
"""Why a coordinator may say GOODBYE, or be cut off, and be tried again with hope."""


class Directed(Protocol):
    """What a session serves: the peer."""

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

    def disconnected(self, session: Session) -> None:
        """A session is down, or could not be brought up."""


class Session(KeptLink):
    """The connection to one coordinator, kept up for as long as the peer lives.

    Parameters:
        address: of the coordinator.
        embed: where nothing was configured: starts a coordinator at the address in this process
            and returns True if it did; tried when nothing listens there.

    Attributes:
        tried: at least one attempt has ended, well or not.
        failure: why the last attempt failed; None while up.
        hopeless: what listens there is no coordinator; trying on is only for the case that this
            changes.
    """

    WHO = "the coordinator"
    MISSED = "no coordinator at {trouble}; trying on"
    FOUND = "{who} at {where} answers now"
    AT_ONCE = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        directed: Directed,
        settings: Settings,
        scratch: bytearray,
        random: Callable[[], float],
        embed: Callable[[Address], Awaitable[bool]] | None = None,
    ) -> None:
        super().__init__(loop, settings, scratch, random)
        self.address = address
        self.tried = False
        self.failure: Exception | None = None
        self.hopeless = False
        self.settled_at = 0.0
        self._directed = directed
        self._embed = embed

    def start(self) -> None:
        """Begin to connect, in the background; also where all tasks were cancelled meanwhile."""
        if not self.up and not self._closed:
            self._dial()

    def _ways(self) -> Sequence[Way]:
        return (Way(*self.address),)

    async def _introduce(self, local_host: str) -> Dialler:
        # which address of ours others can reach depends on how we reach the coordinator
        return Dialler(await self._directed.identify(local_host), "coordinator")

    async def _connect(self, way: Way) -> None:
        try:
            await super()._connect(way)
        except ConnectionRefusedError:
            if self._embed is None or not await self._embed(self.address):
                raise
            await super()._connect(way)  # now it is us, or whoever was faster

    def _begin(self, link: Link, other: Other) -> Session:
        self.tried = True
        self.failure = None
        self.hopeless = False
        self.settled_at = self._opened_at + other.settle
        self._directed.connected(self, other.settle)
        frames = [encode(message) for message in self._directed.registrations(self)]
        if frames:
            link.transport.write(b"".join(frames))
        return self

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        self.tried = True
        self.failure = error = troubles[-1][1]
        self.hopeless = isinstance(error, AuthError) or (
            isinstance(error, (ProtocolError, Refused)) and error.code not in _PASSING
        )
        self._directed.disconnected(self)

    def _over(self, link: Link, error: Exception | None) -> None:
        self.failure = error or ConnectionError("it said goodbye")
        if not self._closed:
            log.info("the coordinator at %s is gone (%s)", self.address, error or "goodbye")
            self._directed.disconnected(self)

    # --- the link's core ----------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if isinstance(event, Match):
            self._directed.matched(self, event)
        elif isinstance(event, Expect):
            self._directed.expected(self, event)
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
    def trouble(self) -> str:
        """One short line of why it is not up."""
        if self.failure is not None:
            return explain(self.failure)
        if self.link is not None and self.link.transport is not None:
            return "something listens there, but it has not answered as a coordinator does"
        return "no answer yet"
