"""The coordinator's server: one peer or client is no burden to the others."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

import pubsub.coordinator.registry as registry_module
import pubsub.coordinator.server as server_module
import pubsub.links.link as link_module
from pubsub.config import Settings
from pubsub.coordinator.registry import Push, Registry
from pubsub.coordinator.server import ANSWER_ROWS, Coordinator
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.links.link import Link
from pubsub.links.listening import ACCEPTS
from pubsub.support.ratelimit import RateLimit
from pubsub.trust.guard import Guard
from pubsub.wire.frames import FrameReader
from pubsub.wire.messages import (
    Answer,
    Expect,
    ExpectedSub,
    Goodbye,
    Match,
    Ping,
    Query,
    Refused,
    Register,
    Welcome,
    encode,
)
from tests.integration.support import eventually, free_port
from tests.wire.said import hello, matched

pytestmark = pytest.mark.loop


class Caller:
    """Whoever has connected, with its bytes in its own hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader
        self._frames = FrameReader(bytearray(65536))
        self._frames.max_payload = 10**8
        self._events: list[Any] = []

    async def hear(self) -> Any:
        """The next frame."""
        while not self._events:
            data = await asyncio.wait_for(self._reader.read(65536), 10)
            assert data, "closed"
            self._events += [e for e in self._frames.feed(data) if not isinstance(e, Ping)]
        return self._events.pop(0)


@asynccontextmanager
async def coordinator_with(
    registry: Registry | None = None, *, settle: float = 0.0
) -> AsyncIterator[Coordinator]:
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, registry=registry, settings=Settings(), settle=settle)
    await coordinator.start("127.0.0.1", 0)
    yield coordinator
    await coordinator.close()


@asynccontextmanager
async def caller(
    coordinator: Coordinator, role: str, peer_id: str, host: str = "", at: int = 0
) -> AsyncIterator[Caller]:
    port = coordinator.servers[0].sockets[0].getsockname()[1]
    found = Caller(*await asyncio.open_connection("127.0.0.1", port, limit=1024))
    found.writer.write(encode(hello(role, "coordinator", peer_id, "", host, at)))
    assert isinstance(await found.hear(), Welcome)
    yield found
    found.writer.close()


class Many(Registry):
    """One that has many topics, and notes in which turn of the loop it was asked for each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.turn = 0
        self.asked: Counter[int] = Counter()

    def topics(self, rights: Rights = EVERYTHING) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            self.asked[self.turn] += 1
            yield {"topic": f"topic/{number}", "publishers": 1, "subscribers": 0}

    def tick(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.tick)


async def test_a_long_answer_is_given_in_many_turns_of_the_loop() -> None:
    registry = Many(20 * ANSWER_ROWS)
    async with (
        coordinator_with(registry) as coordinator,
        caller(coordinator, "client", "asking") as client,
    ):
        registry.tick()
        client.writer.write(encode(Query(1, "topics")) + encode(Query(2, "peers")))
        rows: dict[int, list[str]] = {1: [], 2: []}
        open_ = {1, 2}
        while open_:
            answer = await client.hear()
            assert isinstance(answer, Answer)
            rows[answer.token] += [row.get("topic", "") for row in answer.rows]
            if answer.complete:
                open_.discard(answer.token)
    assert rows == {1: [f"topic/{number}" for number in range(registry.count)], 2: []}
    assert max(registry.asked.values()) <= ANSWER_ROWS


class Noting(Registry):
    """One that notes who registers in which turn of the loop, and breaks where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.noted: list[tuple[int, str]] = []

    def register(self, peer_id: str, message: Register, now: float) -> list[Push]:
        self.noted.append((self.turn, peer_id))
        if message.topic == "broken":
            raise RuntimeError("a defect")
        return super().register(peer_id, message, now)

    def tick(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.tick)


def registers(count: int, topic: str = "t") -> bytes:
    return b"".join(encode(Register(id, "sub", topic, False, False)) for id in range(count))


async def test_one_who_asks_for_much_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUESTS_PER_TURN", 4)
    monkeypatch.setattr(server_module, "REQUESTS_IN_A_RUSH", 1)
    monkeypatch.setattr(server_module, "REQUESTS_AT_ONCE", 2)
    registry = Noting()
    async with (
        coordinator_with(registry) as coordinator,
        caller(coordinator, "peer", "greedy") as greedy,
        caller(coordinator, "peer", "modest") as modest,
    ):
        registry.tick()
        greedy.writer.write(registers(500))
        assert isinstance(await greedy.hear(), Match)
        modest.writer.write(registers(3))
        for caller_, count in ((modest, 3), (greedy, 499)):
            for _ in range(count):
                assert isinstance(await caller_.hear(), Match)
        coordinator._rush = True
        rush = registry.turn + 1
        modest.writer.write(registers(3))
        for _ in range(3):
            assert isinstance(await modest.hear(), Match)
    first = next(turn for turn, _ in registry.noted if turn >= rush)
    assert [turn for turn, _ in registry.noted].count(first) == 1, "others are at the door"
    order = [peer_id for _, peer_id in registry.noted]
    assert order.count("modest") == 6
    assert order[-4] == "greedy", "it has not had all before the other had anything"
    assert max(Counter(turn for turn, _ in registry.noted).values()) <= 4


async def test_a_defect_over_a_request_ends_one_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        coordinator_with(Noting()) as coordinator,
        caller(coordinator, "peer", "unlucky") as unlucky,
        caller(coordinator, "peer", "other") as other,
    ):
        unlucky.writer.write(registers(2, "broken"))
        other.writer.write(registers(20))
        goodbye = await unlucky.hear()
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code == "internal"
        for id in range(20):
            assert (await other.hear()).sub_id == id
    assert "internal error over a request" in caplog.text


async def test_a_peer_that_does_not_read_is_cut_off_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "MAX_BEHIND", 100_000)
    monkeypatch.setattr(link_module, "GOODBYE_GRACE", 30.0)
    monkeypatch.setattr(link_module.log.logger, "filters", [])
    row = matched("x" * 64, "y" * 255, 1, 1, "z" * 1000, False)
    match = Match(1, 1, True, (row,) * 100, ())
    async with (
        coordinator_with() as coordinator,
        caller(coordinator, "peer", "slow") as slow,
        caller(coordinator, "peer", "quick") as quick,
    ):
        pushed = 0
        with caplog.at_level(logging.WARNING, logger="pubsub"):
            while "slow" in coordinator._connections:
                coordinator.push([("slow", match), ("quick", match)])
                pushed += 1
                assert await quick.hear() == match
        assert "it does not read what it is told" in caplog.text
        assert list(coordinator._connections) == ["quick"]
        for _ in range(3):
            coordinator.push([("slow", match), ("quick", match)])
            assert await quick.hear() == match
        heard = 0
        while (event := await slow.hear()) == match:  # what was written came through
            heard += 1
        assert heard <= pushed
        assert isinstance(event, Goodbye)
        assert event.code == "limit"


async def test_a_peer_with_much_goes_in_many_turns_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 10)
    count = 100
    async with (
        coordinator_with() as coordinator,
        caller(coordinator, "peer", "rich") as rich,
        caller(coordinator, "peer", "other") as other,
    ):
        other.writer.write(encode(Register(1, "sub", "*", False, False)))
        await other.hear()
        for id in range(count):
            rich.writer.write(encode(Register(id, "pub", f"topic-{id}", False, False)))
        here: set[tuple[str, int]] = set()
        while len(here) < count:
            here |= {(row.peer_id, row.stream_id) for row in (await other.hear()).added}
        rich.writer.write(encode(Goodbye("closing", "")))
        while here:
            news = await other.hear()
            assert 0 < len(news.removed) <= 5
            here -= set(news.removed)
        assert not coordinator.registry.sweeping


async def test_g8_a_peer_that_is_gone_is_expected_no_more() -> None:
    """One that went without a goodbye, and at whose address nothing listens any more."""
    async with (
        coordinator_with(Registry(grace=300.0)) as coordinator,
        caller(coordinator, "peer", "other") as other,
        caller(coordinator, "peer", "killed", "127.0.0.1", free_port()) as killed,
    ):
        other.writer.write(encode(Register(1, "pub", "t", False, False)))
        assert isinstance(await other.hear(), Expect)
        killed.writer.write(encode(Register(7, "sub", "t", False, False)))
        assert (await other.hear()).added == (ExpectedSub("killed", 7, False, False),)
        killed.writer.transport.abort()
        assert (await other.hear()).removed == (("killed", 7),)
        assert [row["peer_id"] for row in coordinator.registry.peers()] == ["other"]


@pytest.mark.parametrize("host", ["", "127.0.0.2"])
async def test_one_that_does_not_listen_or_not_where_it_is_has_the_grace(host: str) -> None:
    """Nobody is asked at an address that may be another's."""
    async with (
        coordinator_with() as coordinator,
        caller(coordinator, "peer", "away", host, free_port() if host else 0) as away,
    ):
        away.writer.transport.abort()
        await eventually(lambda: not coordinator._connections)
        assert not coordinator._prober._suspects
        assert [row["state"] for row in coordinator.registry.peers()] == ["away"]


async def test_g7_one_that_is_back_while_it_is_asked_for_is_not_gone() -> None:
    async with coordinator_with() as coordinator:
        where = "127.0.0.1", free_port()
        async with caller(coordinator, "peer", "cut", *where) as cut:
            cut.writer.transport.abort()
            await eventually(lambda: coordinator._prober._suspects)
        async with caller(coordinator, "peer", "cut", *where):
            assert not coordinator._prober._suspects
            assert [row["state"] for row in coordinator.registry.peers()] == ["connected"]


async def test_several_who_wait_at_the_door_are_let_in_in_one_turn() -> None:
    async with coordinator_with() as coordinator:
        address = coordinator.servers[0].sockets[0].getsockname()[:2]
        with ExitStack() as stack:
            for _ in range(10 * ACCEPTS):  # the kernel takes them meanwhile
                stack.enter_context(socket.create_connection(address))
            inside, most = 0, 0
            while inside < 10 * ACCEPTS:
                await asyncio.sleep(0)
                most = max(most, len(coordinator._doorman) - inside)
                inside = len(coordinator._doorman)
    assert ACCEPTS <= most <= 2 * ACCEPTS


class Clock:
    """A loop, as far as a heartbeat needs one."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[float] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, what: object) -> None:
        self.due.append(when)


def test_a_tick_that_comes_late_moves_none_of_those_after_it() -> None:
    """Else one busy moment would bring the ticks of all connections into one turn for ever."""
    clock: Any = Clock()
    settings = Settings(ping_interval=3.0, ping_timeout=15.0)
    endpoint: Any = None
    link = Link(clock, None, endpoint, settings, bytearray(64))
    link._next_tick = 100.0
    for now in (100.0, 103.0, 106.5, 111.9, 112.0, 140.0):
        clock.now = now
        link._arm()
    assert clock.due == [103.0, 106.0, 109.0, 112.0, 115.0, 142.0]


async def test_connections_that_break_the_protocol_do_not_flood_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module.log.logger, "filters", [RateLimit(most=3)])
    with caplog.at_level(logging.WARNING, logger="pubsub"):
        async with coordinator_with() as coordinator:
            port = coordinator.servers[0].sockets[0].getsockname()[1]
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await asyncio.wait_for(reader.read(), 10)
                writer.close()
    assert caplog.text.count("this is another protocol") == 3


async def test_without_descriptors_it_listens_under_fewer_and_leaves_none_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = socket.fromfd, 0

    def scarce(*args: Any) -> socket.socket:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args)

    monkeypatch.setattr(socket, "fromfd", scarce)
    coordinator = Coordinator(asyncio.get_running_loop())
    address = await coordinator.start("127.0.0.1", 0)
    await coordinator.close()
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1).close()


async def test_a_wake_up_that_raises_is_asked_for_again_by_the_next() -> None:
    class Loop:
        """Stands for one whose calls raise once, as where memory is short."""

        def __init__(self) -> None:
            self.calls: list[Any] = []
            self.fails = True

        def time(self) -> float:
            return 0.0

        def call_soon(self, call: Any, *args: Any) -> None:
            if self.fails:
                self.fails = False
                raise MemoryError
            self.calls.append(call)

        call_at = call_soon

    loop: Any = Loop()
    coordinator = Coordinator(loop)
    connection = server_module._Connection(coordinator)
    ways: list[tuple[Any, Any]] = [
        (coordinator.touch, coordinator._write),
        (coordinator.look_at, coordinator._look),
    ]
    for ask, work in ways:
        loop.fails, loop.calls = True, []
        with pytest.raises(MemoryError):
            ask(connection)
        ask(connection)
        assert loop.calls == [work]


async def test_one_peer_too_many_hears_why_and_one_that_is_known_comes_back() -> None:
    async with (
        coordinator_with(Registry(max_peers=1)) as coordinator,
        caller(coordinator, "peer", "first") as first,
    ):
        async with caller(coordinator, "peer", "second") as second:
            goodbye = await second.hear()
            assert isinstance(goodbye, Goodbye)
            assert goodbye.code == "limit"
            assert "knows 1 peers, and takes no more" in goodbye.reason
        async with caller(coordinator, "client", "who only asks") as client:
            client.writer.write(encode(Query(1, "peers")))
            [row] = (await client.hear()).rows
            assert row["peer_id"] == "first"
        first.writer.transport.abort()
        await eventually(lambda: not coordinator._connections)
        async with caller(coordinator, "peer", "first") as again:
            again.writer.write(encode(Register(1, "pub", "t", False, False)))
            assert isinstance(await again.hear(), Expect)
        await eventually(lambda: not coordinator._links)  # nothing is left of who was refused


async def test_no_whole_identity_is_told_where_everybody_may_ask() -> None:
    class Closed(Guard):
        open = False

    whole = "0123456789abcdef"
    for guard, told in ((Guard(), whole[:8]), (Closed(), whole)):
        loop = asyncio.get_running_loop()
        coordinator = Coordinator(loop, settings=Settings(), settle=0.0, guard=guard)
        await coordinator.start("127.0.0.1", 0)
        async with (
            caller(coordinator, "peer", whole),
            caller(coordinator, "client", "asking") as client,
        ):
            client.writer.write(encode(Query(1, "peers")))
            [row] = (await client.hear()).rows
            assert row["peer_id"] == told
        await coordinator.close()


async def test_an_address_that_is_not_told_is_said_to_its_peer_and_the_registration_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Guard, "objection", lambda *args: "say so by --trust-advertise")
    async with coordinator_with() as coordinator:
        for trusted in (False, True):
            coordinator.trust_advertise = trusted
            name = f"camera {trusted}"
            async with caller(coordinator, "peer", name, "10.9.9.9", 9) as camera:
                if not trusted:
                    refused = await camera.hear()
                    assert isinstance(refused, Refused)
                    assert refused.id == 0
                    assert refused.reason == (
                        "nobody is told to dial 10.9.9.9:9, as you come from 127.0.0.1: "
                        "say so by --trust-advertise"
                    )
                camera.writer.write(encode(Register(1, "pub", "t", False, False)))
                assert isinstance(await camera.hear(), Expect)
                async with caller(coordinator, "peer", f"display {trusted}") as display:
                    display.writer.write(encode(Register(1, "sub", "t", False, False)))
                    told = await display.hear()
                    assert isinstance(told, Match)
                    rows = [row for row in told.added if row.peer_id == name]
                    assert [len(row.ways) for row in rows] == [int(trusted)]


async def test_who_is_gone_is_remembered_only_while_peers_come_back() -> None:
    async with coordinator_with(Registry(grace=0.1), settle=0.1) as coordinator:
        assert coordinator.registry.settling
        await eventually(lambda: not coordinator.registry.settling)
        # uvloop counts in milliseconds
        assert coordinator.loop.time() - coordinator._started >= 0.198
    async with coordinator_with() as coordinator:
        assert not coordinator.registry.settling  # nobody is waited for
