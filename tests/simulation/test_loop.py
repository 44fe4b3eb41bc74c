"""The simulator itself: it does what asyncio and TCP do, and nothing that they never do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

import pytest

from tests.simulation.loop import Process, SimulatedLoop, Stuck
from tests.simulation.network import Network, Transport

T = TypeVar("T")


class Simulator:
    """A loop, a network and two hosts."""

    def __init__(self, seed: int = 0, chop: float = 0.5) -> None:
        self.loop = SimulatedLoop(Random(seed))  # type: ignore[abstract]
        self.network = Network(self.loop, 0.01, chop)
        self.here = self.loop.process("here", "10.0.0.1")
        self.there = self.loop.process("there", "10.0.0.2")

    def run(self, process: Process, coroutine: Coroutine[Any, Any, T]) -> T:
        async def wait() -> T:
            return await process.spawn(coroutine)

        result: T = self.loop.run_until_complete(wait())
        return result

    def sleep(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


class Recorder(asyncio.BufferedProtocol):
    """Writes down what happens to it."""

    def __init__(self, size: int = 64) -> None:
        self.data = b""
        self.events: list[str] = []
        self.buffer = bytearray(size)
        self.transport: Transport
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Transport)
        self.transport = transport
        self.events.append("made")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert nbytes
        self.data += self.buffer[:nbytes]

    def eof_received(self) -> bool:
        self.events.append("eof")
        return False

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.error = exc


def connect(sim: Simulator) -> tuple[Recorder, Recorder]:
    """A connection from here to there; returns its ends."""
    accepted: list[Recorder] = []

    def accept() -> Recorder:
        accepted.append(Recorder())
        return accepted[-1]

    async def listen() -> None:
        await sim.loop.create_server(accept, "10.0.0.2", 80)

    async def dial() -> Recorder:
        _, protocol = await sim.loop.create_connection(Recorder, "10.0.0.2", 80)
        assert isinstance(protocol, Recorder)
        return protocol

    sim.run(sim.there, listen())
    mine = sim.run(sim.here, dial())
    sim.sleep(1)
    return mine, accepted[0]


def test_time_is_virtual_and_jumps() -> None:
    sim = Simulator()
    before = sim.loop.time()
    sim.sleep(100_000)
    assert sim.loop.time() - before == pytest.approx(100_000, abs=0.01)


def test_callbacks_of_a_process_keep_their_order() -> None:
    sim = Simulator()
    order: list[int] = []

    async def many() -> None:
        for i in range(100):
            sim.loop.call_soon(order.append, i)
        await asyncio.sleep(0)

    sim.run(sim.here, many())
    assert order == list(range(100))


def test_which_process_runs_next_is_drawn() -> None:
    def order(seed: int) -> list[str]:
        sim = Simulator(seed)
        found: list[str] = []

        async def run(name: str) -> None:
            for _ in range(20):
                found.append(name)
                await asyncio.sleep(0)

        sim.here.spawn(run("here"))
        sim.there.spawn(run("there"))
        sim.sleep(1)
        return found

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5


def test_a_killed_process_never_runs_again() -> None:
    sim = Simulator()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        try:
            while True:
                ticks += 1
                await asyncio.sleep(1)
        finally:
            ticks += 1000

    sim.here.spawn(tick())
    sim.sleep(5.5)
    sim.network.kill(sim.here)
    sim.sleep(100)
    assert ticks == 6
    sim.loop.close()


def test_a_stopped_process_goes_on_where_it_was() -> None:
    sim = Simulator()
    times: list[float] = []

    async def tick() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            times.append(sim.loop.time() - 1000)

    sim.here.spawn(tick())
    sim.sleep(1.5)
    sim.here.stopped = True
    sim.sleep(10)
    sim.here.stopped = False
    sim.sleep(5)
    assert times == pytest.approx([1, 11.5, 12.5], abs=0.1)


def test_a_loop_that_waits_for_nothing_is_stuck() -> None:
    sim = Simulator()

    async def forever() -> None:
        await sim.loop.create_future()

    with pytest.raises(Stuck):
        sim.run(sim.here, forever())
    sim.loop.close()


def test_bytes_arrive_whole_and_in_order_whatever_the_pieces() -> None:
    for seed in range(20):
        sim = Simulator(seed)
        mine, theirs = connect(sim)
        sent = b""
        for i in range(200):
            piece = bytes([i]) * (i % 40)
            mine.transport.write(piece)
            sent += piece
        mine.transport.writelines([b"a", b"bc"])
        sim.sleep(60)
        assert theirs.data == sent + b"abc"
        assert not mine.data


def test_the_writer_is_paused_while_the_reader_does_not_read() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    theirs.transport.pause_reading()
    mine.transport.set_write_buffer_limits(high=1000)
    mine.transport.write(b"x" * 3_000_000)
    assert mine.events == ["made", "pause"]
    sim.sleep(10)
    assert mine.events == ["made", "pause"]
    theirs.buffer = bytearray(100_000)
    theirs.transport.resume_reading()
    sim.sleep(1000)
    assert mine.events == ["made", "pause", "resume"]
    assert len(theirs.data) == 3_000_000


def test_closing_sends_what_was_written_first() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    mine.transport.write(b"x" * 100_000)
    mine.transport.close()
    sim.sleep(1000)
    assert len(theirs.data) == 100_000
    assert theirs.events == ["made", "eof", "lost"]
    assert mine.events[-1] == "lost"
    assert mine.error is theirs.error is None
    assert not sim.network.connections


def test_a_half_closed_connection_still_brings_answers() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    theirs.transport.write(b"answer")
    mine.transport.write_eof()
    sim.sleep(10)
    assert mine.data == b"answer"
    assert theirs.events == mine.events == ["made", "eof", "lost"]


def test_closing_over_unread_bytes_resets() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    theirs.transport.pause_reading()
    mine.transport.write(b"never read")
    sim.sleep(1)
    theirs.transport.abort()
    sim.sleep(1)
    assert isinstance(mine.error, ConnectionResetError)


def test_what_is_still_to_be_written_to_one_who_is_gone_keeps_no_connection_open() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    theirs.transport.pause_reading()
    mine.transport.write(b"x" * 3_000_000)
    sim.sleep(1)
    mine.transport.close()
    theirs.transport.abort()
    sim.sleep(10)
    assert isinstance(mine.error, ConnectionResetError)
    assert not sim.network.connections


def test_a_reset_loses_a_drawn_part_of_what_is_on_its_way() -> None:
    arrived = set()
    for seed in range(30):
        sim = Simulator(seed)
        mine, theirs = connect(sim)
        for _ in range(10):
            mine.transport.write(b"0123456789")
        (connection,) = sim.network.connections
        connection.reset()
        sim.sleep(10)
        assert mine.events[-1] == theirs.events[-1] == "lost"
        assert isinstance(theirs.error, ConnectionResetError)
        arrived.add(len(theirs.data))
    assert len(arrived) > 5
    assert any(size % 10 for size in arrived)


def test_a_blocked_path_holds_up_what_is_on_its_way() -> None:
    sim = Simulator()
    mine, theirs = connect(sim)
    sim.network.block("10.0.0.1", "10.0.0.2")
    mine.transport.write(b"held")
    theirs.transport.write(b"not held")
    sim.sleep(100)
    assert (mine.data, theirs.data) == (b"not held", b"")
    sim.network.unblock("10.0.0.1", "10.0.0.2")
    sim.sleep(1)
    assert (mine.data, theirs.data) == (b"not held", b"held")


def test_nobody_listens() -> None:
    sim = Simulator()

    async def dial() -> None:
        await sim.loop.create_connection(Recorder, "10.0.0.2", 81)

    with pytest.raises(ConnectionRefusedError):
        sim.run(sim.here, dial())


def test_the_end_of_a_process_ends_its_connections_and_that_of_its_host_does_not() -> None:
    sim = Simulator()
    mine, _ = connect(sim)
    sim.network.kill(sim.there)
    sim.sleep(1)
    assert mine.events[-1] == "lost"

    sim = Simulator()
    mine, _ = connect(sim)
    sim.network.kill(sim.there, host_too=True)
    sim.sleep(1)
    mine.transport.write(b"is there anybody?")
    sim.sleep(1000)
    assert mine.events == ["made"]
    sim.network.revive("10.0.0.2")
    sim.sleep(1)
    assert isinstance(mine.error, ConnectionResetError)
