"""A link: one connection, by TCP or a Unix socket, as bytes and timers around the cores.

It reads into the shared scratch buffer, runs the handshake and the heartbeat, answers PING, says
and hears GOODBYE, and writes what its endpoint has, as fast as the socket takes it. What a frame
means is the endpoint's business. The same class serves both ends of peer links and of connections
to a coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from enum import Enum
from logging import DEBUG, INFO, WARNING
from typing import Any, Protocol, cast

from pubsub.config import UNIX, Address, Settings
from pubsub.errors import ProtocolError
from pubsub.links import descriptors, unix
from pubsub.links.patience import Patience
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit
from pubsub.wire.frames import Event, FrameReader
from pubsub.wire.handshake import Acceptor, Dialler, Other
from pubsub.wire.liveness import HEARTBEAT_TOKEN, Heartbeat, Pulse
from pubsub.wire.messages import Control, Goodbye, Hello, Ping, Pong, encode

__all__ = ["TRANSITIONS", "Core", "Endpoint", "Gate", "Link", "Lost", "State", "ends_of"]

log = logger("pubsub.link")
log.logger.addFilter(RateLimit())  # whoever can connect can make it speak

WRITE_HIGH_WATER = 256 * 1024
"""Bytes the transport may hold before the endpoint is asked for no more."""
PUMP_BUDGET = 256 * 1024
"""Bytes asked of the endpoint at a time."""
JOIN_BELOW = 16 * 1024
"""Chunks of together less than this are copied into one write; more go to the socket as they
are. (A copy of this size costs less than a longer writev.)"""
GOODBYE_GRACE = 1.0
"""Seconds that the other end may take to close after our GOODBYE."""
READ_TURN = 1024 * 1024
"""Bytes that are read until the loop has to run. (uvloop reads 32 times before it does, which is 8
MiB and more in which nobody takes what has come.)"""
UNSENT = 128 * 1024
"""Bytes that the kernel takes beyond what it can send, where several channels share a link: what
waits there, nothing overtakes. What is under way does not count, so that this slows down no
network."""
MAX_PINGS = 1_000
"""PINGs that may come before one of them could be answered: twice what a publisher sends without
an answer (`UNANSWERED`), because each interval has its heartbeat too. Whoever counts by time cuts
off the honest when they or their PINGs were held up."""
FRAME_SLACK = 1024
"""What a frame may have beyond `max_batch`: its header."""


class State(Enum):
    """What a link is at."""

    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    OPEN = "open"
    LEAVING = "leaving"
    """Its end was said, by either side, and told to the endpoint: nothing is sent or listened to
    any more; what comes is read all the same, so that closing sends no reset over what we wrote."""
    CLOSED = "closed"


CONNECTING, HANDSHAKE, OPEN, LEAVING, CLOSED = State

TRANSITIONS: dict[State, frozenset[State]] = {
    CONNECTING: frozenset({HANDSHAKE, CLOSED}),
    HANDSHAKE: frozenset({OPEN, LEAVING}),
    OPEN: frozenset({LEAVING}),
    LEAVING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}
"""What may follow what. (docs/architecture.md has the picture.)"""


class Lost(ConnectionError):
    """A connection that broke: reset, end of file without GOODBYE, or no sign of life."""


class Core(Protocol):
    """What the frames of a link mean."""

    def receive(self, event: Event) -> None:
        """A frame came. May raise ProtocolError, which cuts the link with a GOODBYE."""

    def pump(self, budget: int) -> Sequence[bytes | memoryview]:
        """What to write next, about `budget` bytes; less only when that is all there is."""


class Endpoint(Protocol):
    """Who a link is for."""

    def opened(self, link: Link, other: Other) -> Core:
        """The handshake is done: who takes and gives the frames from here on."""

    def closed(self, link: Link, error: Exception | None) -> None:
        """The link is gone; `error` is None after a GOODBYE of either side that said
        ``closing``. Called exactly once, whether or not it was ever opened."""


class Gate(Protocol):
    """Who keeps account of accepted links."""

    def enter(self, link: Link) -> None:
        """It was accepted."""

    def lost(self, link: Link) -> None:
        """Its socket is closed."""


class Link(asyncio.BufferedProtocol):
    """One connection.

    Parameters:
        loop: whose transport it is.
        handshake: our side of it; None on a dialled connection until `begin`.
        endpoint: gets the frames.
        settings: times and sizes.
        scratch: the loop's read buffer (see `FrameReader`).
        gate: set on accepted connections.

    Attributes:
        state: where it is between its beginning and its end.
        other: who is at the other end, once that is known.
        kind: of which kind the way is by which it was made (see `Way.kind`).
        peername, sockname: the address of the other end and of this one, as the socket has them;
            None: not known.
        user: at the other end of a Unix socket; None: not known.
        made: when, by the loop's time.
        bytes_in, bytes_out: that were read, and given to the socket to write.
        round_trip: seconds that the last heartbeat and its answer took; None: there was none.
        cut: the other end broke the protocol, and this one has ended the link: nobody keeps
            anything for whoever does that.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshake: Dialler | Acceptor | None,
        endpoint: Endpoint,
        settings: Settings,
        scratch: bytearray,
        gate: Gate | None = None,
    ) -> None:
        self.loop = loop
        self.endpoint = endpoint

        self.reader = FrameReader(scratch)
        self.get_buffer = self.reader.get_buffer  # type: ignore[method-assign]  # a call less
        self.state = CONNECTING
        self.other: Other | None = None
        self.kind = "direct"
        self.cut = False
        self.bytes_in = self.bytes_out = 0
        self.round_trip: float | None = None
        self.transport: Any = None
        self.peername: Any = None
        self.sockname: Any = None
        self.user: int | None = None
        self.veiled = False  # TLS was begun, and does not show yet who the other end is
        self._core: Core | None = None
        self._handshake = handshake
        self._settings = settings
        self._gate = gate
        self.made = loop.time()
        self._heartbeat = Heartbeat(settings.ping_interval, settings.ping_timeout)
        self._timer: asyncio.TimerHandle | Patience | None = None  # of the state that it is in
        self._next_tick = 0.0
        self._paused = False  # the socket takes no more
        self._paused_at = self._paused_for = 0.0  # since when, and how long before
        self._pinged = 0.0  # when the last heartbeat left
        self._reading = True
        self._read = 0  # bytes in this turn of the loop
        self._pong: int | None = None
        self._pings = 0  # since the last PONG
        self._gone: asyncio.Future[None] | None = None
        descriptors.connected(self)

    # --- the transport's side -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.state is CLOSED:  # disowned
            cast(asyncio.Transport, transport).abort()
            return
        self.transport = transport
        # now: uvloop's does not know them any more once it is closed, and says so by AttributeError
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")
        sock = transport.get_extra_info("socket")
        if unix.is_unix(sock):
            self.peername, self.sockname = unix.end_of(self.peername), unix.end_of(self.sockname)
            self.kind, self.user = UNIX, unix.prepare(sock)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._change(HANDSHAKE)
        if self._gate is not None:
            self._gate.enter(self)
            if self.state is LEAVING:
                return
        self._timer = Patience(self.loop, self._settings.handshake_timeout, self._too_slow)
        if self._handshake is not None:
            self.begin(self._handshake)

    def begin(self, handshake: Dialler | Acceptor) -> None:
        """Start the handshake, on a connection that waited for it."""
        self._handshake = handshake
        if not self.veiled:
            self._open(handshake)

    def unveil(self) -> None:
        """TLS shows who the other end is: only now it is told who this one is."""
        self.veiled = False
        if self._handshake is not None and not self.closing:
            self._open(self._handshake)

    def _open(self, handshake: Dialler | Acceptor) -> None:
        try:
            opening = handshake.opening()
        except ProtocolError as error:
            self.fail(error)
            return
        if opening is not None:
            self._send(opening)

    def buffer_updated(self, nbytes: int) -> None:
        self._heartbeat.silent = 0
        self.bytes_in += nbytes
        self._read += nbytes
        if self._read >= READ_TURN:
            self._read_later()
        if self.state is LEAVING:
            return
        try:
            for event in self.reader.received(nbytes):
                self._event(event)
                if self.state is LEAVING:
                    return
        except ProtocolError as error:
            self.fail(error)
            return
        except Exception as error:
            log.exception("internal error on the link with %s", self, of=self)
            self.fail(ProtocolError(f"internal error: {error!r}", code="internal"))
            return
        if self._pong is not None:
            self._send_pong()

    def _read_later(self) -> None:
        """Let the loop run before more is read."""
        self._read = 0
        if self._reading and not self.transport.is_closing():
            self.loop.call_soon(self._read_on)  # first: else nobody would
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        return False  # the transport closes itself; `connection_lost` tells the endpoint

    def pause_writing(self) -> None:
        self._paused = True
        self._paused_at = self.loop.time()

    def resume_writing(self) -> None:
        self._paused = False
        self._paused_for += self.loop.time() - self._paused_at
        self._heartbeat.silent = 0  # it reads: it lives
        # soon: a write that fails in here has plain asyncio end the connection twice, and log that
        self.loop.call_soon(self._write_on)

    def _write_on(self) -> None:
        if self._pong is not None:
            self._send_pong()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.state is CLOSED:
            return
        try:
            self._end(exc or Lost("the connection was closed without a goodbye"))
        finally:
            self._change(CLOSED)
            if self._timer is not None:
                self._timer.cancel()
            if self._gone is not None and not self._gone.done():
                self._gone.set_result(None)
            self.reader.close()
            if self._gate is not None:
                self._gate.lost(self)

    # --- events -------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        if isinstance(event, ProtocolError):
            raise event
        core = self._core
        if core is None:
            self._welcome(event)
        elif isinstance(event, Ping):
            self._pong = max(self._pong or 0, event.token)  # cumulative: the highest says it all
            self._pings += 1
            if self._pings > MAX_PINGS:
                raise ProtocolError(
                    f"{self._pings:,} PINGs, and it waits for no answer", code="limit"
                )
        elif isinstance(event, Pong) and event.token == HEARTBEAT_TOKEN:
            self.round_trip = self.loop.time() - self._pinged
        elif isinstance(event, Goodbye):
            self._heard_goodbye(event)
        else:
            if self._pong is not None and not self._paused:
                self._send_pong()
            core.receive(event)

    def _welcome(self, event: Event) -> None:
        if self._handshake is None:
            if isinstance(event, Goodbye):  # it has no time for us
                self._heard_goodbye(event)
                return
            raise ProtocolError("it spoke before it was spoken to")
        try:
            answer, other = self._handshake.receive(event)
        except ProtocolError:
            raise
        except Exception as error:  # refused: they have said GOODBYE
            self._end(error)
            return
        if answer is not None:
            self._send(answer)
        if other is None:
            return
        self.other = other
        self._change(OPEN)
        if self._timer is not None:
            self._timer.cancel()
        self._next_tick = self.loop.time()
        self._arm()
        self.reader.max_payload = self._settings.max_batch + FRAME_SLACK
        self._core = self.endpoint.opened(self, other)
        self.flush()

    def _heard_goodbye(self, goodbye: Goodbye) -> None:
        error: Exception | None = None
        if goodbye.code != "closing":
            error = ProtocolError(f"the other end closed: {goodbye.reason}", code=goodbye.code)
            if goodbye.code == "rekey":  # it is to be dialled again at once
                error = Lost(goodbye.reason)
            level = INFO if goodbye.code in ("busy", "rekey") else WARNING
            log.log(
                level,
                "%s closed the connection (%s): %s",
                *(self, goodbye.code, goodbye.reason),
                of=self,
            )
        self._end(error)

    # --- time ---------------------------------------------------------------------------

    def _too_slow(self) -> None:
        seconds = self._settings.handshake_timeout
        self.fail(ProtocolError(f"no handshake within {seconds:g} s", code="timeout"))

    def _tick(self) -> None:
        if not self._reading and not self._paused:
            self._heartbeat.silent = 0  # it is we who do not listen
        pulse = self._heartbeat.tick()
        if pulse is Pulse.DEAD:
            seconds = self._settings.ping_timeout
            log.warning(
                "%s: no sign of life for %g s, the link is given up",
                *(self, seconds),
                of=self,
            )
            self.abort()
            self._end(Lost(f"no sign of life for {seconds:g} s"))
            return
        self._arm()
        if pulse is Pulse.PING and not self._paused:
            self._pinged = self.loop.time()
            self._send(Ping(HEARTBEAT_TOKEN))

    def _arm(self) -> None:
        """Each link keeps to the times that its beginning gave it. If the next tick were counted
        from a late one, a loop with many links that is held up once would from then on have the
        ticks of all of them in one turn."""
        every = self._heartbeat.tick_every
        self._next_tick += every
        late = self.loop.time() - self._next_tick
        if late >= 0:
            self._next_tick += every * (late // every + 1)
        self._timer = self.loop.call_at(self._next_tick, self._tick)

    # --- writing ------------------------------------------------------------------------

    def send(self, message: Control) -> None:
        """Write a message now, whatever the state of the socket: for few and small ones."""
        if self.transport is not None:
            self._send(message)

    def write(self, frames: bytes) -> None:
        """Write frames now, whatever the state of the socket."""
        if self.state is OPEN and not self.transport.is_closing():
            self.transport.write(frames)
            self.bytes_out += len(frames)

    def write_now(self, frame: bytes) -> bool:
        """Write a frame of the endpoint's by itself, if the socket may take it; False: it is not
        written."""
        if self._paused or self.state is not OPEN or self.transport.is_closing():
            return False
        self.transport.write(frame)
        self.bytes_out += len(frame)
        return True

    def _send(self, message: Control | Hello) -> None:
        """Nothing is written any more behind a GOODBYE, and its end of file."""
        if (
            self.state is not LEAVING and not self.transport.is_closing()
        ):  # uvloop's raises on a closed one
            self.transport.write(encode(message))

    def _send_pong(self) -> None:
        if not self._paused and self._pong is not None:
            token, self._pong = self._pong, None
            self._pings = 0
            self._send(Pong(token))

    @property
    def paused(self) -> bool:
        """Whether the socket takes no more for now."""
        return self._paused

    def pauses(self) -> tuple[float, float]:
        """Seconds for which the socket has taken no more now, and all such seconds together."""
        now = self.loop.time() - self._paused_at if self._paused else 0.0
        return now, now + self._paused_for

    def listen(self, on: bool) -> None:
        """Read on, or leave for now what comes; to be called whenever something was done about
        what was read, since nothing is heard of the other end meanwhile."""
        self._heartbeat.silent = 0
        if on != self._reading and not self.transport.is_closing():
            self._reading = on
            if on:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def keep_short(self) -> None:
        """Have the kernel take no more than it can soon send, so that what is written next is not
        far behind."""
        level, option = socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", None)
        size = UNSENT
        sock = self.transport.get_extra_info("socket")
        if unix.is_unix(sock):
            level, option, size = socket.SOL_SOCKET, socket.SO_SNDBUF, unix.SHORT
        if option is not None and sock is not None:
            with contextlib.suppress(OSError), sock.dup() as same:  # uvloop's cannot set options
                same.setsockopt(level, option, size)

    def flush(self) -> None:
        """Write what the endpoint has, as far as the socket takes it."""
        core = self._core
        if self.state is not OPEN or core is None or self.transport.is_closing():
            return
        while not self._paused and self.state is OPEN:
            chunks = core.pump(PUMP_BUDGET)
            if not chunks or self._write(chunks) < PUMP_BUDGET:
                return

    def _write(self, chunks: Sequence[bytes | memoryview]) -> int:
        size = sum(map(len, chunks))
        if size < JOIN_BELOW:
            self.transport.write(b"".join(chunks))
        else:
            self.transport.writelines(chunks)
        self.bytes_out += size
        return size

    # --- ending -------------------------------------------------------------------------

    def fail(self, error: ProtocolError) -> None:
        """The other end broke the protocol: say so, and cut it off."""
        if self.closing:
            return
        said = self._gate is None and error.code in ("timeout", "auth", "identity")  # by who dials
        log.log(
            DEBUG if said else WARNING,
            "%s: %s; the connection is cut",
            *(self, error),
            of=self,
        )
        self.cut = error.code != "internal"
        self._end(error, Goodbye.because(error.code, str(error)))

    def goodbye(
        self,
        code: str = "closing",
        reason: str = "the process is done",
        error: Exception | None = None,
    ) -> None:
        """End the link in order: what the endpoint has to say at once, GOODBYE, end of file; the
        other end closes. `error`: what the endpoint is told, if that is to be no orderly end."""
        if self.state is HANDSHAKE:  # nobody to say it to
            self.abort()
        elif self.state is OPEN:
            chunks = self._core.pump(0) if self._core is not None else ()
            if chunks and not self.transport.is_closing():
                self._write(chunks)
            self._end(error, Goodbye.because(code, reason), close=False)

    def renew(self) -> None:
        """What it stands on counts no more: end it, so that who dialled dials again."""
        why = "the key or certificate that this connection stands on counts no more"
        if self.state is OPEN:
            self._end(Lost(why), Goodbye.because("rekey", why), close=False)

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def disown(self) -> None:
        """Nobody waits any more for the connection that is being made: should it come, it is closed
        at once, and nobody is told."""
        self._change(CLOSED)

    def let_go(self) -> Any:
        """The connection turned out to be no link: this one is over without a word, and the
        connection, which is returned, goes on without it."""
        transport = self.transport
        self._change(LEAVING)
        self.endpoint.closed(self, None)
        self.connection_lost(None)
        self.transport = None
        return transport

    def _end(
        self, error: Exception | None, last: Goodbye | None = None, *, close: bool = True
    ) -> None:
        """Whatever ends a link ends it here, and the first to do so has said why: the last word is
        written, the endpoint told. Close when what was written is gone, or (`close` is False) have
        the other end close; after `GOODBYE_GRACE`, close all the same."""
        if self.state is LEAVING:
            return
        if last is not None:
            self._send(last)
        self._change(LEAVING)
        if self._timer is not None:
            self._timer.cancel()
        transport = self.transport
        # also where it is closing: it waits for what was written to go, which may never be
        self._timer = self.loop.call_later(GOODBYE_GRACE, self.abort)
        if not transport.is_closing():
            if close:
                transport.close()
            elif transport.can_write_eof():
                with contextlib.suppress(OSError):  # the other end has reset it meanwhile
                    transport.write_eof()
        self.endpoint.closed(self, error)

    def _change(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{state} after {self.state}"
        log.debug("%s: %s", self, state.value, of=self)
        self.state = state

    async def gone(self) -> None:
        """Wait until the connection is closed."""
        if self.state not in (CONNECTING, CLOSED):
            if self._gone is None:
                self._gone = self.loop.create_future()
            await asyncio.shield(self._gone)

    @property
    def closing(self) -> bool:
        """Whether the link is over or about to be."""
        return self.state is LEAVING or self.state is CLOSED

    # --- the socket ---------------------------------------------------------------------

    @property
    def sock(self) -> Any:
        """See `descriptors.Connection`."""
        if self.transport is None or self.state is CLOSED or self.loop.is_closed():
            return None  # uvloop goes on to tell the number, which may be another's by now
        return self.transport.get_extra_info("socket")

    @property
    def fields(self) -> dict[str, object]:
        """Of a log record that is about it."""
        other, name = self.other, self.peername
        if other is not None and other.port:
            return {"address": str(Address(other.host, other.port)), "peer": other.peer_id}
        address = str(Address(name[0], name[1])) if name and self.kind != UNIX else ""
        return {"address": address, "peer": "" if other is None else other.peer_id}

    def __str__(self) -> str:
        if self.other is not None and self.other.port:
            return f"{self.other.role} at {Address(self.other.host, self.other.port)}"
        name = self.peername
        if self.kind == UNIX:
            return "a process of this host"
        return str(Address(name[0], name[1])) if name else "a connection"


def ends_of(link: Link, *, dialled: bool) -> tuple[Any, Any]:
    """The addresses of its connection: of who dialled, and of who was dialled."""
    here, there = link.sockname, link.peername
    return (here, there) if dialled else (there, here)
