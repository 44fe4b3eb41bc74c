"""Doors: where a process listens, who is let in, and by which addresses others know it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection
from functools import partial
from logging import INFO, WARNING
from typing import Any

from pubsub.config import (
    Address,
    Settings,
    is_loopback,
    is_wildcard,
    name_here,
    parse_advertise,
    unmapped,
)
from pubsub.errors import AuthError, ProtocolError
from pubsub.links import unix
from pubsub.links.keeping import OURS
from pubsub.links.link import Core, Endpoint, Link, State, ends_of
from pubsub.links.listening import listen, listen_at_socket, stop_accepting
from pubsub.links.tls import TLS_HANDSHAKE, TlsLayer, cipher_scratch
from pubsub.support.about import about
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Acceptor, Authenticator, Identity, Other, tcp
from pubsub.wire.messages import Join, encode

__all__ = ["Doorman", "Doors"]

log = logger("pubsub.link")

BACKLOG = 1024
"""Connections that may wait to be accepted at one of a peer's addresses."""

SHAKING = 320
"""TLS handshakes that go on at once; the others wait. A stranger in the midst of one may take 190
KiB: a whole handshake of OpenSSL, and the 100 KiB that its certificates may announce. One that
waits, or speaks plain, takes 8 KiB, so that all who have not said who they are stay below 128
MiB."""
FIRST = 2 * 1024
"""Bytes that one that waits may have sent. (A ClientHello has 250 to 1,600.)"""
HASTE = 1.0
"""Seconds after which a TLS handshake has to go for one that waits."""


JOIN_SIZE = len(encode(Join(bytes(16))))
JOIN_BEGIN = JOIN_SIZE - 16
JOIN = encode(Join(bytes(16)))[:JOIN_BEGIN]
"""How a JOIN begins, whatever its ticket: nothing else that is said first does."""


class Entry(asyncio.BufferedProtocol):
    """Takes the first bytes of an accepted connection: they say what it speaks, and so which
    channel it has from there on."""

    def __init__(self, doorman: Doorman, link: Link) -> None:
        self._doorman = doorman
        self._link = link
        self._transport: Any = None
        self._head = b""  # what may be the beginning of a JOIN
        self.get_buffer = link.reader.get_buffer  # type: ignore[method-assign]
        self.eof_received = link.eof_received  # type: ignore[method-assign]
        self.pause_writing = link.pause_writing  # type: ignore[method-assign]
        self.resume_writing = link.resume_writing  # type: ignore[method-assign]
        self.connection_lost = link.connection_lost  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._link.connection_made(transport)

    def disown(self) -> None:
        """Its connection was to be made, and is not: a loop may close it, and tell nobody."""
        link = self._link
        if link.state is State.CONNECTING:
            link.disown()
        else:
            link.connection_lost(None)

    def buffer_updated(self, nbytes: int) -> None:
        link = self._link
        if link.state is State.LEAVING:
            link.buffer_updated(nbytes)
            return
        first = link.reader.get_buffer()
        if self._doorman.on_join is not None:
            self._head += first[:nbytes]
            if self._head[:JOIN_BEGIN] == JOIN[: len(self._head)]:
                if len(self._head) >= JOIN_SIZE:
                    ticket, rest = self._head[JOIN_BEGIN:JOIN_SIZE], self._head[JOIN_SIZE:]
                    self._doorman.on_join(link.let_go(), ticket, rest)
                return
            nbytes = len(self._head)
            first[:nbytes] = self._head
        try:
            if first[0] == TLS_HANDSHAKE:
                self._doorman.take_tls(link, self._transport, bytes(first[:nbytes]))
                return
            self._doorman.take(link)
        except AuthError as error:
            link.fail(ProtocolError(str(error), code="auth"))
            return
        self._transport.set_protocol(link)
        link.buffer_updated(nbytes)


class Anteroom:
    """Where those who speak TLS wait until there is room for another handshake: many peers that
    come back at once are not in each other's way, and those that stop in the midst of a handshake
    keep nobody out for long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._shaking: dict[Link, float] = {}
        """Since when."""
        self._waiting: dict[Link, Callable[[], None]] = {}
        """What begins the handshake."""
        self._timer: asyncio.TimerHandle | None = None

    def enter(
        self, link: Link, transport: asyncio.Transport, first: bytes, begin: Callable[[], None]
    ) -> None:
        """Begin the handshake of this one, at once or when it is its turn.

        Raises:
            AuthError: it has sent too much to be let wait.
        """
        if len(self._shaking) < SHAKING:
            self._begin(link, begin)
            return
        if len(first) > FIRST:
            raise AuthError(f"it begins with more than {FIRST:,} bytes of TLS, and others wait")
        transport.pause_reading()

        def later() -> None:
            if not transport.is_closing():
                transport.resume_reading()
                begin()

        self._waiting[link] = later
        self._hurry()

    def leave(self, link: Link) -> None:
        """Its handshake is over, or it is gone."""
        self._waiting.pop(link, None)
        if self._shaking.pop(link, None) is not None and self._waiting:
            first = next(iter(self._waiting))
            self._begin(first, self._waiting.pop(first))

    def _begin(self, link: Link, begin: Callable[[], None]) -> None:
        self._shaking[link] = self._loop.time()
        begin()

    def _hurry(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(HASTE, self._make_room)

    def _make_room(self) -> None:
        self._timer = None
        enough = self._loop.time() - HASTE
        late = [link for link, since in self._shaking.items() if since <= enough]
        for link in late[: len(self._waiting)]:
            link.fail(ProtocolError("others wait, and its TLS handshake is slow", code="busy"))
        if self._waiting:
            self._hurry()


class Doorman:
    """Lets connections in. He is the endpoint of each until it has said who it is; that decides who
    serves it, and not that the other end dialled.

    When too many have not said it, the oldest has to go: an honest peer says HELLO at once, so that
    a crowd of those who say nothing does not keep it out.

    Parameters:
        greet: makes our side of a handshake.
        guard: says which channels are taken, and what is asked.
        seat: makes the endpoint that serves whoever it turned out to be.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        scratch: bytearray,
        greet: Callable[[Authenticator], Acceptor],
        seat: Callable[[Other], Endpoint],
        guard: Guard,
    ) -> None:
        self.guard = guard
        self.limit = settings.max_unauthenticated
        self.on_join: Callable[[Any, bytes, bytes], None] | None = None
        """Of a relay: takes a connection that begins with a JOIN, its ticket, and what came behind
        it."""
        self._loop = loop
        self._settings = settings
        self._scratch = scratch
        self._greet = greet
        self._seat = seat
        self._waiting: dict[Link, None] = {}
        self._open: dict[Link, None] = {}
        self._anteroom = Anteroom(loop)

    def __len__(self) -> int:
        """How many have not said who they are."""
        return len(self._waiting)

    def accept(self, kind: str = "direct") -> Entry:
        """What a server calls for each connection."""
        link = Link(self._loop, None, self, self._settings, self._scratch, self)
        link.kind = kind
        return Entry(self, link)

    def take(self, link: Link) -> None:
        """It speaks plain."""
        self.guard.check_user(link.user)
        link.begin(self._greet(self.guard.takes(ends_of(link, dialled=False), None)))

    def take_tls(self, link: Link, transport: asyncio.Transport, first: bytes) -> None:
        """It speaks TLS, and these are its first bytes.

        Raises:
            AuthError: nobody here does.
        """
        if self.guard.takes_tls() is None:
            raise AuthError(
                "it speaks TLS where plain belongs: here no key or certificate is set (or "
                "--insecure is)"
            )
        self._anteroom.enter(link, transport, first, lambda: self._shake(link, transport, first))

    def _shake(self, link: Link, transport: asyncio.Transport, first: bytes) -> None:
        context = self.guard.takes_tls()  # of now: while it waited, credentials may have changed
        assert context is not None
        layer = TlsLayer(
            self._loop,
            context,
            link,
            server_side=True,
            grouped=self.guard.grouped,
            scratch=cipher_scratch(),
        )
        link.begin(
            self._greet(self.guard.takes(ends_of(link, dialled=False), lambda: layer.peer_der))
        )
        layer.take_over(transport, first)

    def enter(self, link: Link) -> None:
        """See `Gate`."""
        self._open[link] = None
        self._waiting[link] = None
        if len(self._waiting) > self.limit:
            oldest = next(iter(self._waiting))
            oldest.fail(ProtocolError("too many connections that say nothing", code="busy"))

    def lost(self, link: Link) -> None:
        """See `Gate`."""
        self._open.pop(link, None)

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`."""
        self._waiting.pop(link, None)
        self._anteroom.leave(link)
        link.endpoint = self._seat(other)
        return link.endpoint.opened(link, other)

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        self._waiting.pop(link, None)
        self._anteroom.leave(link)
        if isinstance(error, AuthError):  # where nothing is configured, other users try our port
            level = INFO if self.guard.local else WARNING
            log.log(level, "%s: %s; it is not let in", link, error, of=link)

    def abort_all_but(self, links: Collection[Link]) -> list[Link]:
        """At the end: close those that nobody has in his books, because they were cut off a moment
        ago or have not yet said who they are. Returns them; they are gone in the next turn."""
        others = [link for link in self._open if link not in links]
        for link in others:
            link.abort()
        return others


class Doors:
    """Where a peer, or a relay, listens, and what it says of that.

    Parameters:
        scratch: the read buffer of accepted connections.
        peer_id: its own.
        seat: see `Doorman`.
        role: what it is to others.

    Attributes:
        servers: by the address at which each listens.
        here: the server at the Unix socket, for the peers of this host; None: there is none.
        identities: who it is to others, by the host that each tells them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        scratch: bytearray,
        peer_id: str,
        seat: Callable[[Other], Endpoint],
        guard: Guard,
        admit: Callable[[Other], None] = lambda other: None,
        role: str = "peer",
    ) -> None:
        self.role = role
        self.doorman = Doorman(
            *(loop, settings, scratch),
            lambda authenticator: Acceptor(
                self.me(), ("peer",), authenticator=authenticator, admit=admit
            ),
            *(seat, guard),
        )
        self.servers: dict[str, asyncio.Server] = {}
        self.here: asyncio.Server | None = None
        self.identities: dict[str, Identity] = {}
        self._loop = loop
        self._settings = settings
        self.peer_id = peer_id
        self._host_id = guard.host_id()
        self._secret = this_host().entropy(16)
        self._listening: dict[str, asyncio.Task[Address]] = {}
        self._closed = self._tried_here = False

    def me(self, *places: Address) -> Identity:
        """Who this process is, and that it listens there."""
        ways = tuple(way for place in dict.fromkeys(places) for way in tcp(*place))
        info = about(self._settings.name)
        return Identity(self.role, self.peer_id, ways, info, self._host_id, self._secret)

    @property
    def address(self) -> str:
        """``host:port`` that others are told; empty before a coordinator was reached."""
        for identity in self.identities.values():
            return str(Address(*identity.place))
        return ""

    def told_to_others(self) -> str:
        """Where they are told to dial, in words."""
        if not self._settings.listen:
            return "nothing, because it does not listen"
        ways = [way for identity in self.identities.values() for way in identity.ways]
        places = dict.fromkeys(str(Address(way.host, way.port)) for way in ways)
        return " or ".join(places) or "nothing, because no coordinator was reached yet"

    def identity(self, local_host: str) -> Identity:
        """Who we are to a publisher that we dial from that address of ours: one on another machine
        is not told that we are at its own loopback."""
        local_host = unmapped(local_host).partition("%")[0]
        here = [self.identities.get(local_host), *self.identities.values()]
        for identity in here:
            if identity and (is_loopback(local_host) or not is_loopback(identity.place[0])):
                return identity
        return self.me()

    async def identify(self, local_host: str) -> Identity:
        """Listen where the other peers of a coordinator can reach us that we reach from that
        address of ours; returns who we are to it and to them.

        Raises:
            OSError: this process cannot listen there.
        """
        if not self._settings.listen:
            return self.me()
        if self._closed:
            raise ConnectionError("this Peer is closed, and listens nowhere any more")
        reached = unmapped(local_host) or "127.0.0.1"
        host = reached if self._settings.host is None else self._settings.host
        if is_wildcard(host) and ":" in reached and host and ":" not in host:
            host = reached  # 0.0.0.0 is all of IPv4 and nothing else
        advertised = (reached if is_wildcard(host) else host).partition("%")[0]  # a zone is ours
        known = self.identities.get(advertised)
        if known is not None:
            return known
        listening = self._listening.get(host)
        if listening is None:  # in a task of its own: whoever asks first may be cancelled
            listening = self._loop.create_task(self._listen(host), name="pubsub listen")
            self._listening[host] = listening
            listening.add_done_callback(partial(self._listened, host))
        at = await asyncio.shield(listening)
        if is_loopback(at.host):  # a name may be known elsewhere as another address
            advertised = at.host
        told = self.told(Address(advertised, at.port))
        return self.identities.setdefault(advertised, self.me(*told))

    def told(self, place: Address) -> list[Address]:
        """What others are told of one that listens there."""
        text = self._settings.advertise  # first: it is what people read
        return [*(parse_advertise(text, place.port) if text else ()), place]

    def _listened(self, host: str, listening: asyncio.Task[Address]) -> None:
        """Where that failed, whoever asks next tries again."""
        if listening.cancelled() or listening.exception() is not None:
            del self._listening[host]

    async def _listen(self, host: str) -> Address:
        """Listen; returns where."""
        port = self._settings.port
        try:
            servers = await listen(self._loop, self.doorman.accept, host, port, BACKLOG)
        except (OSError, ValueError) as error:
            raise _cannot_listen(error, host, port) from None
        places = []
        for server in servers:
            place = Address(*server.sockets[0].getsockname()[:2])
            places.append(place)
            self.servers[str(place)] = server
        if self.role == "peer" and not self._tried_here:
            self._tried_here = True
            await self.listen_here()
        return min(places, key=lambda place: is_loopback(place.host))  # the best for others

    async def listen_here(self) -> None:
        """Listen at a Unix socket, too. Where that fails, the peers of this host come by TCP."""
        if not unix.available():
            return
        try:
            sock = unix.bound(self._name)
            self.here = await listen_at_socket(self._loop, self.doorman.accept, sock, BACKLOG)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "somebody else has taken its name" if taken else error.strerror or str(error)
            log.log(
                WARNING if taken else INFO,
                "no Unix socket for the peers of this host, which come by TCP instead: %s",
                why,
            )

    @property
    def _name(self) -> str:
        return name_here(self._host_id, self.peer_id)

    def _all(self) -> list[asyncio.Server]:
        return [*self.servers.values(), *([self.here] if self.here is not None else ())]

    async def close(self, links: Collection[Link]) -> list[Link]:
        """Let nobody in any more; returns the connections beside those links, which are closed."""
        self._listen_no_more()
        await stop_accepting(self._loop, self._all())
        return self.doorman.abort_all_but(links)

    def cut(self) -> None:
        """The same for all, at once. (Plain asyncio may leave the socket of a connection open that
        comes in now, until it is collected.)"""
        self._listen_no_more()
        for server in self._all():
            server.close()
        self.doorman.abort_all_but(())

    def _listen_no_more(self) -> None:
        self._closed = True
        for listening in self._listening.values():
            listening.cancel()
        if self.here is not None:
            unix.forget(self._name)


def _cannot_listen(error: Exception, host: str, port: int) -> OSError:
    """The same, saying what is wrong and that it is this process's own matter."""
    number: int = getattr(error, "errno", None) or 0
    if number > 0:
        why = os.strerror(number)
    else:  # of the name: what its trouble is called by a resolver is no number of an error
        number, why = errno.EINVAL, getattr(error, "strerror", None) or str(error)
    way_out = "choose an address of this machine: Peer(host=…)"
    if number == errno.EADDRINUSE:
        why, way_out = "it is in use", "choose another port, or Peer(port=0) for any that is free"
    elif number == errno.EACCES:
        way_out = "choose a port above 1023, or Peer(port=0) for any that is free"
    return OSError(number, f"{OURS}listen on {Address(host, port)}: {why}; {way_out}")
