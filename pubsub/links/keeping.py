"""Keeping: one connection that is dialled again for as long as it is wanted.

What a session with a coordinator and the link to a publisher have in common: they try the places
where the other end may be, one shortly after the other, the one that worked last first; they wait
longer after each time that none of them answers, say once that there is trouble and once that it is
over, and begin anew when the connection breaks.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from ssl import SSLContext
from typing import cast

from pubsub.config import UNIX, Settings, Way
from pubsub.errors import ProtocolError, PubSubError
from pubsub.links import unix
from pubsub.links.link import Core, Link, State, ends_of
from pubsub.links.patience import Patience
from pubsub.links.racing import STAGGER, race
from pubsub.links.resolving import host_of, resolve
from pubsub.links.tls import TlsLayer, cipher_scratch
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Authenticator, Dialler, Other
from pubsub.wire.liveness import Backoff

__all__ = ["Attempt", "KeptLink", "Unheard", "connect", "dial", "explain"]

log = logger("pubsub")

OURS = "cannot "
"""How the text of an error begins that is this process's own trouble."""

Trouble = tuple[Way, Exception]
"""A place that was tried, and why in vain."""


class Unheard:
    """The core of a link on which nothing is said."""

    def receive(self, event: Event) -> None:
        """See `Core`."""

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`."""
        return ()


class Attempt:
    """One connection that is being made; the endpoint of its link until the handshake is done.

    Parameters:
        seat: says then who takes the frames. It makes another one the endpoint of the link, or ends
            the link.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        scratch: bytearray,
        seat: Callable[[Link, Other], Core],
    ) -> None:
        self._seat = seat
        self._answer: asyncio.Future[None] = loop.create_future()
        self._answer.add_done_callback(_look_at)
        self.link = Link(loop, None, self, settings, scratch)

    async def make(
        self,
        connect: Awaitable[Authenticator],
        introduce: Callable[[str, Authenticator], Awaitable[Dialler]],
    ) -> None:
        """Connect, and say who we are by `introduce`, from that address of ours. Where it raises,
        or is cancelled before the handshake is done, nothing is left of it."""
        link = self.link
        try:
            authenticator = await connect
            link.begin(await introduce(host_of(link.sockname), authenticator))
            await self._answer
        except BaseException:
            if link.endpoint is self:
                link.abort()
            raise

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`."""
        core = self._seat(link, other)
        if not self._answer.done():
            self._answer.set_result(None)
        return core

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("it said goodbye"))


class Changed(ConnectionError):
    """The next attempt, with the new credentials, tells whether there is any trouble."""


class KeptLink:
    """The connection, and the endpoint of its link. Subclasses say what it is for.

    Attributes:
        link: the connection, from its dialling to its end.
        up: connected, handshake done.
    """

    MISSED = "cannot reach {trouble}; trying on"
    FOUND = "{way} is reached now"
    QUIET = 0.0
    """Seconds of trouble of which nobody is told."""
    AT_ONCE = True
    """Whether a link that was stable is dialled again without a delay."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        scratch: bytearray,
        random: Callable[[], float],
        guard: Guard,
    ) -> None:
        self.guard = guard
        self.link: Link | None = None
        self.up = False
        self._loop = loop
        self._settings = settings
        self._scratch = scratch
        self._backoff = Backoff(random)
        self._task: asyncio.Task[None] | None = None
        self._broken_at: float | None = None
        self._opened_at = 0.0
        self._way: Way | None = None  # the one that is dialled, or worked last
        self._worked: tuple[Way, ...] = ()  # of TCP
        self._warned = False
        self._closed = False

    # --- what subclasses say ------------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        """Where the other end may be."""
        raise NotImplementedError

    async def _addresses(self, way: Way) -> Sequence[Way]:
        """The addresses that it means, where its host is a name."""
        if way.kind == UNIX:
            return [way]
        hosts = await resolve(self._loop, way.host, self._settings.connect_timeout / 2)
        return [Way(host, way.port, way) for host in hosts]

    async def _introduce(self, local_host: str, authenticator: Authenticator) -> Dialler:
        """What to say on a connection that was made from that address of ours."""
        raise NotImplementedError

    def _wanted(self) -> bool:
        """Whether to dial, and to dial again."""
        return not self._closed

    def _begin(self, link: Link, other: Other) -> Core:
        """It is up."""
        raise NotImplementedError

    def _failed(self, error: BaseException) -> None:
        """An attempt was in vain."""

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        """All places were tried in vain; none: there is none to try."""

    def _over(self, link: Link, error: Exception | None) -> None:
        """It was up and is not any more; without an error if it ended in order."""

    # --- dialling -----------------------------------------------------------------------

    def _dial(self, delay: float = 0.0) -> None:
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run(delay), name="pubsub dial")

    async def _run(self, delay: float) -> None:
        while True:
            if delay:
                await asyncio.sleep(delay)
            if not self._wanted() or await self._try_all():
                return
            delay = self._backoff.delay()

    async def _try_all(self) -> bool:
        """Dial one place shortly after the other; returns whether nothing is left to do."""
        troubles: list[Trouble] = []
        ways = sorted(self._ways(), key=self._is_new)
        timeout = self._settings.connect_timeout
        stagger = min(STAGGER, timeout / 2 / max(1, len(ways)))
        until = self._loop.time() + timeout  # all of them have no longer than one would
        met = False
        left = list(ways)

        def enough() -> bool:
            return not self._wanted() or not any(map(self._is_better, left))

        async def attempt(which: tuple[Way, bool]) -> Sequence[tuple[Way, bool]]:
            nonlocal met
            way, known = which
            places: Sequence[Way] = ()
            try:
                if not self._is_better(way):
                    pass
                elif not known:
                    places = sorted(await self._addresses(way), key=self._is_new)
                else:
                    await self._connect(way, until - self._loop.time())
                    met = True
            except Exception as error:  # never stop trying
                self._note(troubles, way, error)
            left.remove(way)
            left.extend(places)
            return [(place, True) for place in places]

        await race([(way, False) for way in ways], attempt, enough, stagger)
        if not self.up and not met and self._wanted():  # else it was lost at once
            self._in_vain(troubles)
        return self.up or not self._wanted()

    def _is_better(self, way: Way) -> bool:
        """Whether it has none that is as good."""
        return not self.up or self._way is None or way.rank < self._way.rank

    def _note(self, troubles: list[Trouble], way: Way, error: Exception) -> None:
        if not isinstance(error, (OSError, PubSubError, asyncio.TimeoutError)):
            log.error("internal error while dialling %s", way, exc_info=error)
        troubles.append((way, error))

    def _is_new(self, way: Way) -> bool:
        """Whether it is another than the one that worked last, by TCP."""
        return not any(way.address == worked.address for worked in self._worked)

    async def _connect(self, way: Way, timeout: float) -> None:
        attempt = Attempt(
            self._loop,
            self._settings,
            self._scratch,
            lambda link, other: self.keep(link, way, other),
        )
        link = attempt.link
        if not self.up:
            self.link, self._way = link, way
        try:
            await attempt.make(dial(link, way, timeout, self.guard), self._introduce)
        except BaseException as error:
            if self.link is link and not self.up:
                self.link = None
                self._failed(error)
            raise

    def _in_vain(self, troubles: Sequence[Trouble]) -> None:
        now = self._loop.time()
        if self._broken_at is None:
            self._broken_at = now
        self._missed(troubles)
        changed = any(isinstance(error, Changed) for _, error in troubles)
        if self._warned or not troubles or changed or not self._wanted():
            return
        if now - self._broken_at >= self.QUIET:
            self._complain(troubles)

    def _complain(self, troubles: Sequence[Trouble]) -> None:
        """Say that it cannot be reached."""
        self._warned = True
        text = ", nor at ".join(f"{way}: {explain(error)}" for way, error in troubles)
        log.warning("%s", self.MISSED.format(trouble=text))

    def _cheer(self, way: Way) -> None:
        """It is reached."""
        if self._warned:
            self._warned = False
            log.warning("%s", self.FOUND.format(way=way))

    # --- the link's endpoint ------------------------------------------------------------

    def keep(self, link: Link, way: Way, other: Other) -> Core:
        """A connection is open: it is the one that is kept, unless one that is as good is."""
        if self.up:
            return self._another(link, way, other)
        link.endpoint = self
        self.link, self._way, self.up = link, way, True
        self._opened_at = self._loop.time()
        self._broken_at = None
        self._remember(way)
        self._cheer(way)
        core = self._begin(link, other)
        if self._closed:
            link.goodbye()
        return core

    def _remember(self, way: Way) -> None:
        """It works. That a Unix socket does says nothing of the address that it stands for, and
        does not make what worked before a place as any other."""
        if way.kind != UNIX:
            self._worked = (way, way.told_by) if isinstance(way.told_by, Way) else (way,)

    def _another(self, link: Link, way: Way, other: Other) -> Core:
        """One is kept already."""
        link.goodbye(reason="another connection was faster")
        return Unheard()

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`: of a link that is kept, this was told to its `Attempt`."""
        raise AssertionError("a link opens once")

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if link is not self.link:
            return
        self.link = None
        self.up = False
        self._broken_at = self._loop.time()
        self._over(link, error)
        # one that opens and breaks at once, breaks the protocol or sends us away is dialled with
        # growing delays: two that displace each other have their turns
        unwanted = link.cut or isinstance(error, ProtocolError)
        stable = self._backoff.lived(0.0 if unwanted else self._broken_at - self._opened_at)
        if self._wanted():
            self._dial(0.0 if stable and self.AT_ONCE else self._backoff.delay())

    def close(self) -> None:
        """Say GOODBYE, and stop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self.link is not None:
            self.link.goodbye()


async def dial(
    link: Link,
    way: Way,
    timeout: float,
    guard: Guard,
    preface: bytes = b"",
    choose: Callable[[], SSLContext | None] | None = None,
) -> Authenticator:
    """Connect, by the channel that the guard says; returns what to ask the other end. Where this
    raises, the link is to be aborted.

    `preface`: what is sent before everything else, plain; `choose`: says which channel instead of
    what the guard says of that address.

    Not `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes in the same
    turn as the result. Where the connection is there already, uvloop closes what is cancelled, and
    never tells the link: so it is not cancelled here, and told where others do it (`asyncio.run`
    ends all tasks)."""
    loop = link.loop
    choose = choose or (lambda: guard.context(way.host))
    context = choose()
    layer = None
    if context is not None:
        layer = TlsLayer(
            loop, context, link, server_side=False, grouped=guard.grouped, scratch=cipher_scratch()
        )
    task = loop.create_task(connect(loop, way, layer or link, preface))

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() and link.state is not State.CONNECTING:
            link.connection_lost(None)

    task.add_done_callback(ended)
    expired = loop.create_future()
    patience = Patience(loop, timeout, lambda: expired.set_result(None))
    try:
        await asyncio.wait({task, expired}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise asyncio.TimeoutError
        task.result()
        if choose() is not context:  # it would be taken to stand on what is new
            raise Changed("the credentials of this process changed meanwhile")
        der = None if layer is None else lambda: layer.peer_der
        guard.check_user(link.user)
        return guard.dials(ends_of(link, dialled=True), der)
    finally:
        patience.cancel()
        if not task.done():
            if link.state is State.CONNECTING:  # else the caller aborts it: the task ends by itself
                link.disown()
                task.cancel()
        elif not task.cancelled():
            task.exception()


class _Prefaced(asyncio.BufferedProtocol):
    """Says something first, and leaves the connection to another protocol then."""

    def __init__(self, preface: bytes, then: asyncio.BaseProtocol) -> None:
        self._preface = preface
        self._then = then

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)  # uvloop's has no such base
        plain.write(self._preface)
        plain.set_protocol(self._then)
        self._then.connection_made(transport)


async def connect(
    loop: asyncio.AbstractEventLoop,
    way: Way,
    protocol: asyncio.BaseProtocol,
    preface: bytes = b"",
) -> None:
    """Make the connection of that protocol, with so many bytes sent before it begins."""
    host, port = way.host, way.port
    if preface:
        protocol = _Prefaced(preface, protocol)
    if way.kind == UNIX:
        await unix.connect(loop, way, protocol)
        return
    if "%" not in host or not isinstance(loop, asyncio.BaseEventLoop):
        await loop.create_connection(lambda: protocol, host, port)
        return
    # plain asyncio would ask its executor for an address with a zone
    *_, name = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)[0]
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, name)
        await loop.create_connection(lambda: protocol, sock=sock)
    except BaseException:
        sock.close()
        raise


def _look_at(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting any more for an attempt that failed."""
    if not future.cancelled():
        future.exception()


def explain(error: BaseException) -> str:
    """One short line of why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno:
        text = str(error.strerror or "")
        return text if text.startswith(OURS) else os.strerror(error.errno)
    return str(error) or type(error).__name__
