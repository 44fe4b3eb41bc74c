"""What uvloop can do at its best: a bare protocol that answers from within its callback.

No future, no task and no queue lies between the socket and the code that takes a message. This is
the reference for latencies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contender import AsyncContender, Meeting
from benchmarks.packing import packer, unpack

__all__ = ["CONTENDERS"]

clock = time.monotonic_ns


class _Wire(asyncio.BufferedProtocol):
    """Frames of a 4-byte length and one packed message; `take` is called with each message."""

    def __init__(self, connected: Callable[[_Wire], None] | None = None) -> None:
        self._connected = connected
        self._buffer = bytearray(256 * 1024)
        self._view = memoryview(self._buffer)
        self._end = 0
        self._pack = packer()
        self._transport: Any = None
        self._early: list[Any] = []
        self.take: Callable[[Any], None] = self._early.append

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._connected is not None:
            self._connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        buffer, view = self._buffer, self._view
        at, end = 0, self._end + nbytes
        while end - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if end - at < 4 + size:
                break
            value = unpack(view[at + 4 : at + 4 + size])
            at += 4 + size
            self.take(value)
        rest = end - at
        if at and rest:
            view[:rest] = view[at:end]
        self._end = rest

    def write(self, value: Any) -> None:
        data = self._pack(value)
        self._transport.write(len(data).to_bytes(4, "big") + data)

    def write_all(self, values: Sequence[Any]) -> None:
        pack = self._pack
        parts: list[bytes] = []
        for value in values:
            data = pack(value)
            parts += (len(data).to_bytes(4, "big"), data)
        self._transport.write(b"".join(parts))

    async def until_false(self, note: Callable[[Any], object]) -> None:
        """Note each message until there is a false one."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(value: Any) -> None:
            if value:
                note(value)
            elif not done.done():
                done.set_result(None)
                self.take = self._early.append

        early, self._early = self._early, []
        self.take = take
        for value in early:
            self.take(value)
        await done

    async def close(self) -> None:
        self._transport.close()


class _Publisher(_Wire):
    async def send_all(self, values: Sequence[Any]) -> None:
        self.write_all(values)


class _Subscriber(_Wire):
    async def drain(self) -> tuple[int, Any]:
        found: list[Any] = []
        await self.until_false(found.append)
        return len(found), found[-1] if found else None

    async def each(self, note: Callable[[Any], object]) -> None:
        await self.until_false(note)


class _Pair(_Wire):
    async def send(self, value: Any) -> None:
        self.write(value)

    async def receive(self) -> Any:
        if self._early:
            return self._early.pop(0)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(value: Any) -> None:
            self.take = self._early.append
            got.set_result(value)

        self.take = take
        return await got

    async def exchange(self, values: Sequence[Any]) -> list[int]:
        """Round trips with these, one after the other; nanoseconds of each."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        taken: list[int] = []
        row = iter(values)
        value, start = next(row), 0

        def take(reply: Any) -> None:
            nonlocal value, start
            if not reply:  # further probes
                return
            taken.append(clock() - start)
            if reply != value:
                done.set_exception(RuntimeError(f"the reply to {value!r} is {reply!r}"))
                return
            value = next(row, None)
            if value is None:
                done.set_result(None)
                return
            start = clock()
            self.write(value)

        self.take = take
        start = clock()
        self.write(value)
        await done
        return taken

    async def echo(self, value: Any) -> None:
        """Send this back, and whatever comes, until it is false."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(value: Any) -> None:
            if value:
                self.write(value)
            elif not done.done():
                done.set_result(None)

        self.take = take
        self.write(value)
        await done


class Raw(AsyncContender):
    """One TCP connection, used in both directions."""

    name = "protocol"
    title = "raw uvloop protocol"
    how = (
        "an `asyncio.BufferedProtocol` on uvloop, one connection; a frame is a 4-byte length and "
        "one message, packed by a reused msgpack Packer. Round trips are answered and taken in "
        "`buffer_updated`, without futures."
    )
    kind = "ceiling"
    packages = ("uvloop",)
    groups = frozenset(("latency", "rate"))

    async def open_publisher(self, meeting: Meeting) -> _Publisher:
        publisher: _Publisher = await _accept(meeting, _Publisher)
        return publisher

    async def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        subscriber: _Subscriber = await _connect(meeting, _Subscriber)
        return subscriber

    async def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        pair: _Pair = await (_accept if first else _connect)(meeting, _Pair)
        return pair


async def _accept(meeting: Meeting, kind: Any) -> Any:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Any] = loop.create_future()
    server = await loop.create_server(lambda: kind(accepted.set_result), "127.0.0.1", 0)
    meeting.announce(str(server.sockets[0].getsockname()[1]))
    connection = await accepted
    server.close()
    return connection


async def _connect(meeting: Meeting, kind: Any) -> Any:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(kind, "127.0.0.1", int(meeting.place))
    return protocol


CONTENDERS = (Raw(),)
