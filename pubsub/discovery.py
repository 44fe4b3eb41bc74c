"""Discovery: a peer's sessions with its coordinators.

One `Session` per configured coordinator keeps a connection, registers everything again whenever
it is connected anew, and passes on what is pushed. Coordinators know nothing of each other.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from pubsub.config import Address, Settings
from pubsub.core.frames import Event
from pubsub.core.handshake import Dialler, Identity, Other
from pubsub.core.liveness import Backoff
from pubsub.core.messages import Control, Expect, Match, Register, encode
from pubsub.errors import AuthError, ProtocolError
from pubsub.link import Link, dial
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


class Session:
    """The connection to one coordinator, kept up for as long as the peer lives.

    Parameters:
        address: of the coordinator.
        embed: where nothing was configured: starts a coordinator at the address in this process
            and returns True if it did; tried when nothing listens there.

    Attributes:
        up: connected, handshake done.
        link: the connection, from its dialling to its end.
        tried: at least one attempt has ended, well or not.
        failure: why the last attempt failed; None while up.
        hopeless: what listens there is no coordinator; trying on is only for the case that this
            changes.
    """

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
        self.address = address
        self.up = False
        self.tried = False
        self.failure: Exception | None = None
        self.hopeless = False
        self.settled_at = 0.0
        self._loop = loop
        self._directed = directed
        self._settings = settings
        self._scratch = scratch
        self._embed = embed
        self._backoff = Backoff(random)
        self._opened_at = 0.0
        self.link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._warned = False
        self._established: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._task = self._loop.create_task(self._run(), name=f"pubsub session {self.address}")

    def revive(self) -> None:
        if self._task is not None and self._task.done() and not self.up and not self._closed:
            self.start()

    async def _run(self) -> None:
        while not self._closed:
            over = self._over = self._loop.create_future()
            try:
                await self._connect()
            except (OSError, ProtocolError, AuthError, asyncio.TimeoutError) as error:
                if not self._closed:
                    self._failed(error)
            except Exception as error:  # never stop trying
                log.exception("internal error in the session with %s", self.address)
                self._failed(error)
            else:
                await over
                self._backoff.lived(self._loop.time() - self._opened_at)
            if not self._closed:
                await asyncio.sleep(self._backoff.delay())

    async def _connect(self) -> None:
        """One attempt: connect, learn our own address, shake hands, register all."""
        timeout = self._settings.connect_timeout
        try:
            await self._dial(timeout)
        except ConnectionRefusedError:
            if self._embed is None or not await self._embed(self.address):
                raise
            await self._dial(timeout)  # now it is us, or whoever was faster

    async def _dial(self, timeout: float) -> None:
        self._established = self._loop.create_future()
        self._established.add_done_callback(_look_at)
        link = Link(self._loop, None, self, self._settings, self._scratch)
        self.link = link
        try:
            transport = await dial(link, self.address.host, self.address.port, timeout)
            # which address of ours others can reach depends on how we reach the coordinator
            local = transport.get_extra_info("sockname")
            link.begin(
                Dialler(await self._directed.identify(local[0] if local else ""), "coordinator")
            )
            await self._established
        except BaseException:
            link.abort()
            raise

    # --- the link's endpoint ------------------------------------------------------------

    def opened(self, link: Link, other: Other) -> Session:
        """See `Endpoint`."""
        self.up = self.tried = True
        self.failure = None
        self.hopeless = False
        if self._warned:
            self._warned = False
            log.warning("the coordinator at %s answers now", self.address)
        self._opened_at = self._loop.time()
        self.settled_at = self._opened_at + other.settle
        self._directed.connected(self, other.settle)
        frames = [encode(message) for message in self._directed.registrations(self)]
        if frames:
            link.transport.write(b"".join(frames))
        if self._established is not None and not self._established.done():
            self._established.set_result(None)
        return self

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

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if link is not self.link:
            return
        self.link = None
        was_up, self.up = self.up, False
        established, over = self._established, self._over
        if established is not None and not established.done():
            established.set_exception(
                error
                if isinstance(error, (OSError, ProtocolError, AuthError))
                else ProtocolError(
                    str(error or "it said goodbye"), code=getattr(error, "code", "closing")
                )
            )
        if was_up:
            if not self._closed:
                log.info("the coordinator at %s is gone (%s)", self.address, error or "goodbye")
            self.failure = error or ConnectionError("it said goodbye")
            if over is not None and not over.done():
                over.set_result(None)
            if not self._closed:
                self._directed.disconnected(self)

    def _failed(self, error: Exception) -> None:
        self.tried = True
        self.failure = error
        self.hopeless = isinstance(error, AuthError) or (
            isinstance(error, ProtocolError) and error.code not in _PASSING
        )
        if not self._warned:
            self._warned = True
            log.warning("no coordinator at %s: %s; trying on", self.address, explain(error))
        self._directed.disconnected(self)

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

    def close(self) -> None:
        """Say GOODBYE and stop."""
        self._closed = True
        if self.link is not None:
            self.link.goodbye()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if self._established is not None and not self._established.done():
            self._established.cancel()
        if self._task is not None:
            self._task.cancel()


def _look_at(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting any more for an attempt that failed."""
    if not future.cancelled():
        future.exception()


def explain(error: Exception) -> str:
    """One short line of why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
