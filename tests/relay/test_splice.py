"""Splicing: every byte arrives, in both directions, and no more of them wait here than may."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from pubsub.links import splice as splice_module
from pubsub.links.splice import HIGH_WATER, SPLICE_SCRATCH, End, Scratch, splice
from tests.integration.support import LONG, eventually

pytestmark = pytest.mark.loop


class Spliced:
    """Pairs of connections that are made one; the far ends are the test's."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.scratch = Scratch()
        self.ends: list[End] = []
        self.over: list[End] = []
        self.heard = 0
        self.far: list[socket.socket] = []

    async def _end(self, early: bytes) -> tuple[End, socket.socket]:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        transport, _ = await self.loop.create_connection(asyncio.BufferedProtocol, sock=near)

        def heard() -> None:
            self.heard += 1

        def over() -> None:
            self.over.append(end)

        end = End(
            self.loop,
            transport,
            self.scratch,
            early,
            heard,
            over,
        )
        self.ends.append(end)
        self.far.append(far)
        return end, far

    async def pair(self, early: bytes = b"") -> tuple[socket.socket, socket.socket]:
        one, far = await self._end(early)
        other, away = await self._end(b"")
        splice(one, other)
        return far, away

    def waiting(self) -> int:
        return sum(end._transport.get_write_buffer_size() for end in self.ends)


@pytest.fixture
async def spliced() -> AsyncIterator[Spliced]:
    made = Spliced()
    yield made
    for far in made.far:
        far.close()
    for end in made.ends:
        if end._open:
            end.abort()
    await eventually(lambda: len(made.over) == len(made.ends))


async def read(sock: socket.socket, size: int) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < size:
        data = await asyncio.wait_for(loop.sock_recv(sock, size - len(got)), LONG)
        if not data:
            break
        got += data
    return got


async def test_every_byte_arrives_in_both_directions(spliced: Spliced) -> None:
    one, other = await spliced.pair(b"early ")
    there, back = os.urandom(3_000_000), os.urandom(2_000_000)
    loop = asyncio.get_running_loop()
    _, _, heard, answer = await asyncio.gather(
        *(loop.sock_sendall(one, there), loop.sock_sendall(other, back)),
        *(read(other, 6 + len(there)), read(one, len(back))),
    )
    assert heard == b"early " + there
    assert answer == back
    assert spliced.heard


async def test_one_end_that_does_not_read_stops_the_other_and_little_waits(
    spliced: Spliced,
) -> None:
    one, other = await spliced.pair()
    loop = asyncio.get_running_loop()
    sent = 0
    with contextlib.suppress(asyncio.TimeoutError):
        while sent < 50_000_000:  # what the kernel takes, and what waits here
            await asyncio.wait_for(loop.sock_sendall(one, bytes(64 * 1024)), 0.5)
            sent += 64 * 1024
    assert sent < 50_000_000
    assert 0 < spliced.waiting() <= HIGH_WATER + SPLICE_SCRATCH
    assert len(await read(other, sent)) == sent, "it goes on where that is read"
    await loop.sock_sendall(other, b"back")
    assert await read(one, 4) == b"back"


async def test_what_one_circuit_does_not_take_at_once_no_other_overwrites(spliced: Spliced) -> None:
    """All read into one buffer, of which what waits to be written is a part."""
    loop = asyncio.get_running_loop()
    pairs = [await spliced.pair() for _ in range(8)]
    blobs = [bytes([n]) * 3_000_000 + os.urandom(1_000_000) for n in range(len(pairs))]

    async def read_late(sock: socket.socket) -> bytes:
        await eventually(lambda: spliced.waiting() > 4 * HIGH_WATER)
        return await read(sock, 4_000_000)

    heard = await asyncio.gather(
        *(read_late(away) for _, away in pairs),
        *(loop.sock_sendall(far, blob) for (far, _), blob in zip(pairs, blobs, strict=True)),
    )
    assert heard[: len(blobs)] == blobs


async def test_where_what_came_early_is_not_taken_nothing_more_is_read(spliced: Spliced) -> None:
    early = bytes(4_000_000)
    one, other = await spliced.pair(early)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(asyncio.TimeoutError):
        for _ in range(100):
            await asyncio.wait_for(loop.sock_sendall(one, bytes(64 * 1024)), 0.5)
    assert 0 < spliced.waiting() <= len(early)
    assert len(await read(other, len(early) + 10)) == len(early) + 10, "it goes on"


async def test_the_end_of_one_direction_is_passed_on_and_the_other_goes_on(
    spliced: Spliced,
) -> None:
    one, other = await spliced.pair()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(one, b"last")
    one.shutdown(socket.SHUT_WR)
    assert await read(other, 100) == b"last"  # and the end
    await loop.sock_sendall(other, b"answer")
    assert await read(one, 6) == b"answer"
    assert not spliced.over
    other.shutdown(socket.SHUT_WR)
    assert await read(one, 1) == b""
    await eventually(lambda: len(spliced.over) == 2)


async def test_the_last_bytes_arrive_before_the_end(spliced: Spliced) -> None:
    one, other = await spliced.pair()
    await asyncio.get_running_loop().sock_sendall(one, bytes(150_000))
    one.close()
    assert len(await read(other, 200_000)) == 150_000


async def test_a_connection_that_is_reset_cuts_the_other() -> None:
    made = Spliced()
    server = socket.create_server(("127.0.0.1", 0))
    ends = []
    for _ in range(2):
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
        near.setblocking(False)
        transport, _ = await made.loop.create_connection(asyncio.BufferedProtocol, sock=near)
        made.far.append(far)
        over = asyncio.Event()
        end = End(made.loop, transport, made.scratch, b"", lambda: None, over.set)
        ends.append((end, over))
    splice(ends[0][0], ends[1][0])
    made.far[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.far[0].close()
    for _, over in ends:
        await asyncio.wait_for(over.wait(), LONG)
    made.far[1].setblocking(False)
    with contextlib.suppress(ConnectionError):
        assert await read(made.far[1], 1) == b""
    made.far[1].close()
    server.close()


async def test_one_that_does_not_take_its_last_bytes_is_cut(
    spliced: Spliced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice_module, "GRACE", 0.2)
    one, other = await spliced.pair()
    other.shutdown(socket.SHUT_WR)
    assert await read(one, 1) == b""
    while not spliced.waiting():
        one.send(bytes(4096))
        await asyncio.sleep(0.001)
    one.close()
    await eventually(lambda: len(spliced.over) == 2)


async def test_one_that_reads_nothing_is_cut_when_its_sender_is_gone(
    spliced: Spliced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the end of the sender is heard at once, or lies behind what is not read of it."""
    monkeypatch.setattr(splice_module, "GRACE", 0.2)
    one, _ = await spliced.pair()
    one.send(b"last")
    one.close()
    await eventually(lambda: len(spliced.over) == 2)
    monkeypatch.setattr(splice_module, "STALLED", 0.2)
    one, _ = await spliced.pair()
    with contextlib.suppress(asyncio.TimeoutError):
        while True:
            data = asyncio.get_running_loop().sock_sendall(one, bytes(64 * 1024))
            await asyncio.wait_for(data, 0.1)
    one.close()
    await eventually(lambda: len(spliced.over) == 4)


async def test_one_that_takes_its_last_bytes_slowly_gets_them_all(
    spliced: Spliced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice_module, "GRACE", 0.5)
    one, other = await spliced.pair()
    for sock in (one, spliced.ends[1]._transport.get_extra_info("socket")):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    size = 0
    while size < 150_000:
        with contextlib.suppress(BlockingIOError):
            size += one.send(bytes(8192))
        await asyncio.sleep(0)
        if spliced.waiting() > HIGH_WATER:
            break
    one.close()
    other.shutdown(socket.SHUT_WR)
    loop, began, got = asyncio.get_running_loop(), asyncio.get_running_loop().time(), 0
    while data := await asyncio.wait_for(loop.sock_recv(other, 4096), LONG):
        got += len(data)
        await asyncio.sleep(0.1)
    assert got == size
    assert loop.time() - began > 2 * splice_module.GRACE


async def test_a_circuit_at_rest_holds_no_more_than_64_kib(spliced: Spliced) -> None:
    """What Python holds, and what waits to be written."""
    import tracemalloc

    pairs = [await spliced.pair() for _ in range(5)]
    loop = asyncio.get_running_loop()
    gc.collect()
    tracemalloc.start()
    before = _resident()
    pairs += [await spliced.pair() for _ in range(200)]
    for one, other in pairs:  # each was busy once
        await loop.sock_sendall(one, bytes(100_000))
        assert len(await read(other, 100_000)) == 100_000
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 200 < 64 * 1024
    assert (_resident() - before) / 200 < 64 * 1024
    assert spliced.waiting() == 0


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # another system than Linux
        return 0
