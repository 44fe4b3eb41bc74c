"""A network in memory: TCP as programs see it, with everything that it may do to them.

A connection is two pipes. What is written goes, as far as there is room, onto its way, arrives in
order after a drawn delay, and waits until the reader takes it, in pieces of drawn sizes. Closing
sends an end of file behind what was written; closing with bytes unread, or a byte that comes
after it, sends a reset, which may overtake what is still unread, as on Linux. Paths between two
hosts can be blocked in one direction or both; what is on its way then waits until they are open
again, and so do connection attempts.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from tests.simulation.loop import Process, SimulatedLoop

__all__ = ["Connection", "Listener", "Network", "Transport"]

Name = tuple[str, int]

END, RESET = "end", "reset"


class _Socket:
    """What `get_extra_info("socket")` and `Server.sockets` give."""

    def __init__(self, name: Name) -> None:
        self._name = name

    def getsockname(self) -> Name:
        return self._name

    def fileno(self) -> int:
        return -1

    def dup(self) -> nullcontext[_Socket]:
        return nullcontext(self)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """The network of a simulation has no buffers that one could set."""


class Listener(asyncio.AbstractServer):
    """A listening socket."""

    def __init__(
        self, network: Network, process: Process, factory: Callable[[], Any], name: Name
    ) -> None:
        self.network = network
        self.process = process
        self.factory = factory
        self.name = name
        self.sockets = [_Socket(name)]

    def close(self) -> None:
        if self.network.listeners.get(self.name) is self:
            del self.network.listeners[self.name]
        self.process.listeners.pop(self, None)

    def is_serving(self) -> bool:
        return self.network.listeners.get(self.name) is self

    async def wait_closed(self) -> None:
        """It is closed at once."""


class Pipe:
    """One direction of a connection."""

    def __init__(self, connection: Connection, source: Transport, target: Transport) -> None:
        self.connection = connection
        self.network = connection.network
        self.source = source
        self.target = target
        self.way: deque[tuple[float, bytes | str]] = deque()
        self.room = connection.capacity
        self.owed = 0  # room that the source was not told of, because the way back is blocked
        self.finished = False  # an end or a reset is on its way, or has come
        self._last = 0.0
        self._due: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether anything gets through."""
        return not self.connection.stalled and not self.network.is_blocked(
            self.source.process.host, self.target.process.host
        )

    def carry(self, what: bytes | str) -> None:
        """Put something on its way. A reset goes even behind an end."""
        if self.finished and what != RESET:
            return
        if isinstance(what, str):
            self.finished = True
        else:
            self.room -= len(what)
        self._last = max(self._last, self.network.loop.time() + self.connection.delay())
        self.way.append((self._last, what))
        self._schedule()

    def cut(self) -> None:
        """Lose a drawn part of what is on its way, from some byte on, and send a reset behind."""
        random = self.network.random
        while self.way and random.random() < 0.5:
            self.way.pop()
        if self.way and random.random() < 0.5:
            at, what = self.way.pop()
            if not isinstance(what, str) and len(what) > 1:
                self.way.append((at, what[: self.network.between(1, len(what))]))
        self.carry(RESET)

    def _schedule(self) -> None:
        if self._due is None and self.way:
            loop = self.network.loop
            at = max(self.way[0][0], loop.time())
            context = loop.outside.context
            self._due = loop.call_at(at, self._arrive, context=context)

    def kick(self) -> None:
        """The way may be open again."""
        if not self.open:
            return
        if self.owed and self.connection.back(self).open:
            owed, self.owed = self.owed, 0
            self.free(owed)
        self._schedule()

    def _arrive(self) -> None:
        self._due = None
        if not self.open:
            return  # until a kick
        now = self.network.loop.time()
        while self.way and self.way[0][0] <= now:
            self.target._arrived(self.way.popleft()[1])
        self._schedule()

    def taken(self, size: int) -> None:
        """The target has read so much: there is room for more."""
        if self.connection.back(self).open:
            self.free(size)
        else:
            self.owed += size

    def free(self, size: int) -> None:
        self.room += size
        self.source._roomy()


class Connection:
    """Two transports and the pipes between them."""

    def __init__(self, network: Network, client: Process, listener: Listener, name: Name) -> None:
        random = network.random
        self.network = network
        self.stalled = False
        self._latency = network.latency * random.choice((0.3, 1.0, 1.0, 2.0))
        slow = int(self._latency * network.slowest)
        self.capacity = max(slow, network.least, random.choice((700, 5_000, 65_536, 1_000_000)))
        self.client = Transport(self, client, name, listener.name)
        self.server = Transport(self, listener.process, listener.name, name)
        self.forth = self.client.out = self.server.into = Pipe(self, self.client, self.server)
        self.forward = self.forth
        self.backward = self.server.out = self.client.into = Pipe(self, self.server, self.client)

    def delay(self) -> float:
        """Seconds that the next bytes take."""
        random = self.network.random
        if random.random() < 0.05:
            return min(0.2, self._latency * random.uniform(1, 10))
        return self._latency * random.uniform(0.5, 1.5)

    def back(self, pipe: Pipe) -> Pipe:
        return self.backward if pipe is self.forward else self.forward

    def reset(self) -> None:
        """Break it, in the middle of whatever is on its way."""
        for pipe in (self.forward, self.backward):
            if not pipe.target.gone:
                pipe.cut()

    def __str__(self) -> str:
        one, other = (t.get_extra_info("sockname") for t in (self.client, self.server))
        return f"{one[0]}:{one[1]} to {other[0]}:{other[1]}"

    @property
    def over(self) -> bool:
        return self.client.gone and self.server.gone


class Transport(asyncio.Transport):
    """One end of a connection, as a protocol sees it."""

    into: Pipe
    out: Pipe

    def __init__(self, connection: Connection, process: Process, name: Name, peer: Name) -> None:
        super().__init__({"sockname": name, "peername": peer, "socket": _Socket(name)})
        self.connection = connection
        self.process = process
        self.gone = False  # the socket is closed
        self._protocol: Any = None
        self._unread = bytearray()
        self._mark: str | None = None
        self._buffer = bytearray()
        self._high, self._low = 65_536, 16_384
        self._paused = False
        self._closing = False
        self._eof = False
        self._losing = False
        self._read_scheduled = False
        self._write_scheduled = False
        self._reading = False
        process.transports[self] = None

    # --- for the network ----------------------------------------------------------------

    def attach(self, protocol: Any, then: Callable[[], None] | None = None) -> None:
        """Begin, in the process's own time: as asyncio does, connection_made comes first."""
        self._protocol = protocol

        def made() -> None:
            if not self._losing:
                protocol.connection_made(self)

        def read() -> None:
            self._reading = True
            self._wake_reader()
            if then is not None:
                then()

        self.process.call_soon(made)
        self.process.call_soon(read)

    def _arrived(self, what: bytes | str) -> None:
        if self.gone:
            if not isinstance(what, str):
                self.out.carry(RESET)
            return
        if isinstance(what, str):
            self._mark = what
            if what == RESET and self.connection.network.random.random() < 0.5:
                self._unread.clear()
            if what == RESET and self._closing:  # what it was still to write goes nowhere
                self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        else:
            self._unread += what
        self._wake_reader()

    def _wake_reader(self) -> None:
        if (
            self._reading
            and not self._read_scheduled
            and not self._closing
            and (self._unread or self._mark)
        ):
            self._read_scheduled = True
            self.process.call_soon(self._read)

    def _read(self) -> None:
        self._read_scheduled = False
        if self._closing or self.gone or not self._reading:
            return
        if self._unread:
            network = self.connection.network
            view = self._protocol.get_buffer(-1)
            size = min(len(view), len(self._unread))
            if getattr(self._protocol, "up", True):
                size = network.chunk(size)
                network.loop.note(self.process.number, size)
            view[:size] = self._unread[:size]
            del self._unread[:size]
            self.into.taken(size)
            self._protocol.buffer_updated(size)
            self._wake_reader()
        elif self._mark == RESET:
            self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        elif self._mark == END:
            if not self._protocol.eof_received():
                self.close()
            else:
                self._reading = False

    def _roomy(self) -> None:
        if (self._buffer or self._paused) and not self._write_scheduled and not self.gone:
            self._write_scheduled = True
            self.process.call_soon(self._write_ready)

    def _write_ready(self) -> None:
        self._write_scheduled = False
        if self.gone or self._losing:
            return
        self._push()
        if self._paused and len(self._buffer) <= self._low:
            self._paused = False
            self._protocol.resume_writing()
        if not self._buffer and self._closing:
            self._lose(None)

    def _push(self) -> None:
        size = min(self.out.room, len(self._buffer))
        if size > 0:
            self.out.carry(bytes(self._buffer[:size]))
            del self._buffer[:size]
        if self._eof and not self._buffer:
            self.out.carry(END)

    def _lose(self, error: Exception | None) -> None:
        if self._losing:
            return
        self._losing = self._closing = True
        self._reading = False
        self._buffer.clear()
        self.process.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self.vanish()

    def vanish(self) -> None:
        """The socket is closed, by `close` or with its process."""
        if self.gone:
            return
        self.gone = self._losing = self._closing = True
        self.process.transports.pop(self, None)
        if self._mark == RESET:
            pass
        elif self._unread:
            if self.connection.network.random.random() < 0.5:
                self.out.cut()
            else:
                self.out.carry(RESET)
        else:
            self.out.carry(END)
        self._unread.clear()
        if self.connection.over:
            self.connection.network.connections.pop(self.connection, None)

    # --- for the protocol ---------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("write() after write_eof()")
        if self.gone:
            raise RuntimeError("write() on a transport that is closed")  # as uvloop does
        if self._closing:
            return
        if not self._buffer and self.out.room >= len(data):
            if data:
                self.out.carry(bytes(data))
            return
        self._buffer += data
        self._push()
        if len(self._buffer) > self._high and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self.gone:
            raise RuntimeError("write_eof() on a transport that is closed")
        if not self._eof and not self._closing:
            self._eof = True
            self._push()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._reading = False
        if not self._buffer:
            self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65_536 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._wake_reader()

    def is_reading(self) -> bool:
        return self._reading


class Network:
    """All hosts, and what lies between them.

    Parameters:
        latency: seconds that bytes take, about.
        chop: how often a read gets less than there is.

    Attributes:
        slowest: bytes a second that every connection carries at least, about.
        least: bytes that have room on every connection.
        uneven: handshakes have other lengths in each run, and nothing may depend on these.
    """

    def __init__(self, loop: SimulatedLoop, latency: float = 0.001, chop: float = 0.3) -> None:
        self.loop = loop
        self.random = loop.random
        self.latency = latency
        self.chop = chop
        self.slowest = 100_000
        self.least = 0
        self.uneven = False
        self.listeners: dict[Name, Listener] = {}
        self.connections: dict[Connection, None] = {}
        self.walls: Callable[[str, str], str] = lambda source, target: ""
        self._blocked: dict[tuple[str, str], int] = {}
        self._down: dict[str, None] = {}
        self._waiting: list[Callable[[], None]] = []
        self._port = 10_000
        loop.network = self

    def chunk(self, most: int) -> int:
        """How many bytes a read gets."""
        random = self.random
        if most < 2 or random.random() >= self.chop:
            return most
        if random.random() < 0.2:
            return random.randint(1, min(8, most))
        return random.randint(max(1, most // 10), most)

    def between(self, first: int, end: int) -> int:
        """A number in a range. (`randrange` draws the more often the less luck it has.)"""
        if self.uneven:
            return first + int(self.random.random() * (end - first))
        return self.random.randrange(first, end)

    # --- connections --------------------------------------------------------------------

    def listen(
        self, process: Process, factory: Callable[[], Any], host: str, port: int
    ) -> Listener:
        if port == 0:
            self._port += 1
            port = self._port
        if (host, port) in self.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = Listener(self, process, factory, (host, port))  # type: ignore[abstract]
        self.listeners[host, port] = listener
        process.listeners[listener] = None
        return listener

    async def connect(
        self, process: Process, factory: Callable[[], Any], name: Name
    ) -> tuple[Transport, Any]:
        loop = self.loop
        answer: asyncio.Future[Transport] = loop.create_future()
        self._port += 1
        mine = (process.host, self._port)
        outside = loop.outside.context

        def knock() -> None:
            if answer.done() or not process.alive:
                return
            wall = self.walls(process.host, name[0])
            if wall:  # for good; one that drops is silent
                if wall == "refuse":
                    process.call_soon(refuse)
                return
            if self.is_blocked(process.host, name[0]) or self.is_blocked(name[0], process.host):
                self._waiting.append(knock)
                return
            loop.call_later(self.latency * self.random.uniform(0.5, 3), arrive, context=outside)

        def arrive() -> None:
            if answer.done() or not process.alive:
                return
            listener = self.listeners.get(name)
            if listener is None:
                process.call_soon(refuse)
                return
            connection = Connection(self, process, listener, mine)
            self.connections[connection] = None
            listener.process.call_soon(accept, listener, connection.server)
            loop.call_later(
                self.latency * self.random.uniform(0.5, 1.5),
                process.call_soon,
                opened,
                connection.client,
                context=outside,
            )

        def accept(listener: Listener, transport: Transport) -> None:
            if listener.is_serving():
                transport.attach(listener.factory())
            else:
                transport.vanish()

        def opened(transport: Transport) -> None:
            if answer.done():
                transport.vanish()
            else:
                answer.set_result(transport)

        def refuse() -> None:
            if not answer.done():
                answer.set_exception(
                    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
                )

        knock()
        try:
            transport = await answer
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                answer.result().vanish()  # it came in the same turn
            raise
        protocol = factory()
        ready: asyncio.Future[None] = loop.create_future()

        def begun() -> None:
            if not ready.done():
                ready.set_result(None)

        transport.attach(protocol, begun)
        try:
            await ready
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    # --- faults -------------------------------------------------------------------------

    def is_blocked(self, source: str, target: str) -> bool:
        """Whether what goes from one host to another waits."""
        if source == target:
            return False
        return (
            bool(self._blocked.get((source, target)))
            or source in self._down
            or target in self._down
        )

    def block(self, source: str, target: str) -> None:
        """Let nothing through in that direction. May be done several times over."""
        self._blocked[source, target] = self._blocked.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        self._blocked[source, target] -= 1
        self._reopen()

    def _reopen(self) -> None:
        for connection in list(self.connections):
            connection.forward.kick()
            connection.backward.kick()
        waiting, self._waiting = self._waiting, []
        for knock in waiting:
            knock()

    def kill(self, process: Process, *, host_too: bool = False) -> None:
        """End a process. Its kernel closes its sockets; with its host too, nobody does, and
        nothing answers there until `revive`."""
        process.kill()
        for listener in list(process.listeners):
            listener.close()
        if host_too:
            self._down[process.host] = None
        for transport in list(process.transports):
            if host_too:
                transport.out.way.clear()
            transport.vanish()
            link = getattr(transport._protocol, "_link", transport._protocol)  # under TLS
            reader = getattr(link, "reader", None)
            if reader is not None:
                reader.close()  # memory goes with a process: see `FrameReader.close`
            if host_too:
                transport.out.way.clear()  # once it is back, it answers by a reset

    def revive(self, host: str) -> None:
        """The host is up again; it knows nothing of what was."""
        self._down.pop(host, None)
        self._reopen()
