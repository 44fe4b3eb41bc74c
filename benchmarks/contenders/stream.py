"""What everybody could write in an hour: an asyncio stream with one packed message per frame.

No topics, no discovery, no acknowledgements, no promises: what is left when everything but the
messages is taken away, and what all the others are compared with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contender import PUBSUB, AsyncContender, Meeting
from benchmarks.packing import packer, unpack

__all__ = ["CONTENDERS"]

_LIMIT = 1024 * 1024

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Publisher:
    def __init__(self, connections: list[_Connection]) -> None:
        self._writers = [writer for _, writer in connections]
        self._pack = packer()

    async def send_all(self, values: Sequence[Any]) -> None:
        pack, writers = self._pack, self._writers
        for value in values:
            data = pack(value)
            frame = len(data).to_bytes(4, "big") + data
            for writer in writers:
                writer.write(frame)
        for writer in writers:
            await writer.drain()

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()


class _Subscriber:
    def __init__(self, connection: _Connection) -> None:
        self._reader, self._writer = connection

    async def drain(self) -> tuple[int, Any]:
        readexactly = self._reader.readexactly
        n, last = 0, None
        while True:
            size = int.from_bytes(await readexactly(4), "big")
            value = unpack(await readexactly(size))
            if not value:
                return n, last
            n += 1
            last = value

    async def each(self, note: Callable[[Any], object]) -> None:
        readexactly = self._reader.readexactly
        while True:
            size = int.from_bytes(await readexactly(4), "big")
            value = unpack(await readexactly(size))
            if not value:
                return
            note(value)

    async def close(self) -> None:
        self._writer.close()


class _Pair:
    def __init__(self, connection: _Connection) -> None:
        self._reader, self._writer = connection
        self._pack = packer()

    async def send(self, value: Any) -> None:
        data = self._pack(value)
        self._writer.write(len(data).to_bytes(4, "big") + data)

    async def receive(self) -> Any:
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        return unpack(await self._reader.readexactly(size))

    async def close(self) -> None:
        self._writer.close()


class Stream(AsyncContender):
    """One TCP connection for each subscriber; a round trip uses both directions of one."""

    name = "stream"
    title = "plain uvloop stream"
    how = (
        "asyncio streams on uvloop, limit 1 MiB, one connection; a frame is a 4-byte length and "
        "one message, packed by a reused msgpack Packer; `write` each and `drain` after each 256 "
        "(large ones: each 1 MiB); `readexactly` twice a frame, `unpackb`."
    )
    kind = "baseline"
    packages = ("uvloop",)
    groups = PUBSUB - {"join", "idle"}

    async def open_publisher(self, meeting: Meeting) -> _Publisher:
        return _Publisher(await _accept(meeting))

    async def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        return _Subscriber(await _connect(meeting))

    async def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        return _Pair((await _accept(meeting))[0] if first else await _connect(meeting))


async def _accept(meeting: Meeting) -> list[_Connection]:
    """The connections of all subscribers."""
    accepted: asyncio.Queue[_Connection] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda reader, writer: accepted.put_nowait((reader, writer)), "127.0.0.1", 0, limit=_LIMIT
    )
    meeting.announce(str(server.sockets[0].getsockname()[1]))
    connections = [await accepted.get() for _ in range(meeting.subscribers)]
    server.close()
    return connections


async def _connect(meeting: Meeting) -> _Connection:
    return await asyncio.open_connection("127.0.0.1", int(meeting.place), limit=_LIMIT)


CONTENDERS = (Stream(),)
