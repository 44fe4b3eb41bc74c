"""A TCP proxy that does to a connection what networks do: delay, throttle, cut, swallow, stall.

It stands between real peers: a publishing Peer advertises the proxy's address (`behind`), so its
subscribers dial the proxy, and the proxy dials the Peer.

Why not one from a package: the maintained ones that run inside Python only delay and throttle;
those that also reset and stall (toxiproxy) are programs of their own in another language, which a
fresh machine does not have; and none resets a connection after an exact number of bytes, or goes
half-open, which the promises are mostly about.

It uses plain sockets, not transports, because a reset has to be a reset (``SO_LINGER`` 0, so the
kernel sends RST) and a stalled reader must really leave its bytes in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal
from unittest.mock import patch

from pubsub import Peer
from pubsub.config import Settings, parse_address
from pubsub.links import unix
from pubsub.links.doors import Doors
from tests.integration.support import default_guard, free_port, told_only
from tests.relay.meeting import a_relay

__all__ = ["BOTH", "Connection", "Proxy", "behind", "proxy"]

WAY = os.environ.get("PUBSUB_TEST_WAY", "direct")
"""``direct``: by TCP; ``relay``: see `behind`; ``unix``: those that no proxy lies between have Unix
sockets, as they have outside of tests."""
Direction = Literal["down", "up"]
"""``down``: from the publishing peer to who subscribed; ``up``: the other way."""
BOTH: tuple[Direction, Direction] = ("down", "up")

_RESET = struct.pack("ii", 1, 0)
CHUNK = 64 * 1024
AHEAD = 16
"""Chunks that wait in the proxy for their time; then it reads no more."""


class Connection:
    """One connection through the proxy, and what happens to it now.

    Attributes:
        passed: bytes that went through, by direction.
        swallow: in these directions all that comes goes nowhere, and not even an end is passed on.
        reset_at: reset once exactly so many bytes have gone down; None: never.
    """

    def __init__(self, owner: Proxy, dialler: socket.socket) -> None:
        self.passed: dict[Direction, int] = {"down": 0, "up": 0}
        self.swallow: set[Direction] = set(BOTH if owner.blackhole else ())
        self.reset_at = owner.reset_at
        self._owner = owner
        self._dialler = dialler
        self._target: socket.socket | None = None
        self._flows: dict[Direction, asyncio.Event] = {
            "down": asyncio.Event(),
            "up": asyncio.Event(),
        }
        for flow in self._flows.values():
            flow.set()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._finished)

    def stall(self, direction: Direction) -> None:
        """Read no more from the side that sends: its bytes pile up in the kernel."""
        self._flows[direction].clear()

    def resume(self, direction: Direction) -> None:
        """Read on."""
        self._flows[direction].set()

    def reset(self) -> None:
        """Cut it: both ends get a reset."""
        self._task.cancel()

    async def gone(self) -> None:
        """Wait until both sockets are closed."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._target = socket.socket()
        self._target.setblocking(False)
        if len(self.swallow) == 2:
            await self._drain(self._dialler)
        await loop.sock_connect(self._target, self._owner.target())
        for sock in (self._dialler, self._target):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [
            asyncio.ensure_future(way)
            for way in (
                *self._pass("up", self._dialler, self._target),
                *self._pass("down", self._target, self._dialler),
            )
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Close both: in order, or by a reset where one side was reset or is not there."""
        self._owner.resets += task.cancelled()
        for sock in (self._dialler, self._target):
            if sock is not None:
                if task.cancelled() or task.exception() is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
        self._owner.connections.discard(self)

    async def _drain(self, sock: socket.socket) -> None:
        """Read and throw away, for ever; an end changes nothing."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while await loop.sock_recv(sock, CHUNK):
                pass
        await loop.create_future()

    def _pass(
        self, way: Direction, source: socket.socket, sink: socket.socket
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)
        return self._read(way, source, waiting), self._write(way, waiting, sink)

    async def _read(
        self, way: Direction, source: socket.socket, waiting: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            await self._flows[way].wait()
            data = await loop.sock_recv(source, CHUNK)
            if way in self.swallow:
                await self._drain(source)
            await waiting.put((loop.time() + self._owner.latency, data))

    async def _write(
        self, way: Direction, waiting: asyncio.Queue[tuple[float, bytes]], sink: socket.socket
    ) -> None:
        loop = asyncio.get_running_loop()
        owner = self._owner
        while True:
            due, data = await waiting.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            size = owner.piece or len(data)
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                if way == "down" and self.reset_at is not None:
                    piece = piece[: self.reset_at - self.passed["down"]]
                if way in self.swallow:
                    break
                await loop.sock_sendall(sink, piece)
                self.passed[way] += len(piece)
                owner.passed[way] += len(piece)
                if way == "down" and self.passed["down"] == self.reset_at:
                    self.reset()
                    await loop.create_future()
                if owner.piece:
                    await asyncio.sleep(0)  # so that whoever reads gets it by itself
                if owner.bandwidth:
                    await asyncio.sleep(len(piece) / owner.bandwidth)


class Proxy:
    """Listens on a port of its own and passes connections on to `target`.

    Parameters:
        target: says where to pass a connection on to, when one comes.

    Attributes:
        latency: seconds that each byte takes, in each direction.
        bandwidth: bytes a second, in each direction of each connection; 0: as fast as it goes.
        piece: largest number of bytes that are passed on at once; 0: as they come.
        reset_at: connections that come are reset once so many bytes have gone down; None: never.
        blackhole: connections that come are swallowed.
        accepted, resets, passed: counts.
    """

    def __init__(self, target: Callable[[], tuple[str, int]]) -> None:
        self.target = target
        self.latency = 0.0
        self.bandwidth = 0.0
        self.piece = 0
        self.reset_at: int | None = None
        self.blackhole = False
        self.accepted = self.resets = 0
        self.passed: dict[Direction, int] = {"down": 0, "up": 0}
        self.connections: set[Connection] = set()
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self.port = free_port()

    @property
    def address(self) -> str:
        """``host:port``, which stays the same when it is `down` and `up` again."""
        return f"127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen."""
        sock = self._listening = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", self.port))
        sock.listen(1024)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(sock))

    async def down(self) -> None:
        """Cut everything, and refuse whoever dials."""
        assert self._listening is not None
        assert self._accepting is not None
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listening.close()
        await self.reset()

    async def reset(self) -> int:
        """Cut every connection; returns how many there were."""
        found = list(self.connections)
        for connection in found:
            connection.reset()
        for connection in found:
            await connection.gone()
        return len(found)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            sock.setblocking(False)
            self.accepted += 1
            self.connections.add(Connection(self, sock))


@asynccontextmanager
async def proxy(target: Callable[[], tuple[str, int]]) -> AsyncIterator[Proxy]:
    """A `Proxy` that listens, and is gone at the end."""
    made = Proxy(target)
    made.up()
    try:
        yield made
    finally:
        if made._accepting is not None and not made._accepting.done():
            await made.down()


@asynccontextmanager
async def behind(
    coordinator: str, *, detour: bool = False, **settings: Any
) -> AsyncIterator[tuple[Peer, Proxy]]:
    """A Peer that others reach only through a proxy, and the proxy. `detour`: it may dial others
    itself. With ``PUBSUB_TEST_WAY=relay`` it is reached at a relay, and the proxy is between that
    and all others."""

    def target() -> tuple[str, int]:
        (server,) = (doors or peer.runtime.doors).servers.values()
        host, port = server.sockets[0].getsockname()[:2]
        return host, port

    doors: Doors | None = None
    async with AsyncExitStack() as stack:
        stack.enter_context(patch.object(Doors, "told", told_only))
        stack.enter_context(patch.object(unix, "available", lambda: False))
        made = await stack.enter_async_context(proxy(target))
        way: dict[str, Any] = {"advertise": made.address}
        if WAY == "relay" and not detour:
            relay = a_relay(
                default_guard(),
                (parse_address(coordinator),),
                Settings(host="127.0.0.1", advertise=made.address),
            )
            doors = (await stack.enter_async_context(relay)).doors
            way = {"listen": False}
        peer = await stack.enter_async_context(Peer(coordinator, **way, **settings))
        if not detour:
            peer.runtime.callbacks.called = lambda *what: None  # type: ignore[method-assign]
        yield peer, made
