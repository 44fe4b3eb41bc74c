"""Hostile and broken peers: each is cut with a reason, takes bounded memory, and disturbs nobody.

The attacks are in `attacks.py`. Beside each, an honest publisher goes on sending to an honest
subscriber, mostly through the very process that is attacked; after it, all that was put has
arrived, in order, nothing is lost, and their link is the one they had before.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pubsub import Gap, Message, Peer
from pubsub.config import Settings, parse_address
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator
from pubsub.errors import DecodeError
from pubsub.support.ratelimit import RateLimit
from pubsub.wire.frames import array_header, data_header
from pubsub.wire.messages import Subscribed
from tests.faults.attacks import (
    ON_ANYONE,
    ON_COORDINATOR,
    ON_PUBLISHER,
    ON_SUBSCRIBER,
    Attack,
    HostilePublisher,
    Publishing,
    Stranger,
    Target,
    batch,
    headed,
    piece,
    register,
)
from tests.integration.support import default_guard, eventually

pytestmark = pytest.mark.loop

LIMITED = [logging.getLogger("pubsub.link"), logging.getLogger("pubsub.sub")]
MIB = 1024 * 1024
LIMITS: dict[str, Any] = {"handshake_timeout": 1.0, "max_channels": 1000}


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks are many, and would share one limit of warnings."""
    for log in LIMITED:
        monkeypatch.setattr(log, "filters", [])


def memory() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Beside:
    """An honest publisher and an honest subscriber, at work."""

    def __init__(self, coordinator: Coordinator, address: str, publisher: Peer, subscriber: Peer):
        self.coordinator = coordinator
        self.address = address
        self.publisher = publisher
        self.subscriber = subscriber
        self.got: list[int] = []
        self.put = 0
        self._stop = False

    async def start(self) -> None:
        self.sub = await self.subscriber.sub("t")
        self.pub = await self.publisher.pub("t")
        self.stream_id = self.pub._publication.stream_id
        self._putting = asyncio.create_task(self._keep_putting())
        self._taking = asyncio.create_task(self._keep_taking())
        await eventually(lambda: self.got)
        self.link = self._link()
        assert self.link is not None

    def _link(self) -> object:
        remote = self.subscriber.runtime.publishers.remotes.get(self.publisher.runtime.peer_id)
        return None if remote is None else remote.link

    async def _keep_putting(self) -> None:
        while not self._stop:
            for _ in range(20):
                self.pub.put(self.put)
                self.put += 1
            await asyncio.sleep(0.002)

    async def _keep_taking(self) -> None:
        ours = f"#{self.stream_id}"
        async for event in self.sub.messages():
            if isinstance(event, Gap) and not event.missed:
                continue  # a hostile publisher is gone
            if event.publisher.endswith(ours) and event.topic == "t" and event.value != "end":
                self.got.append(event.value)
            elif isinstance(event, Message) and event.value == "end":
                return

    async def noticed_nothing(self) -> None:
        """Check it, at the end."""
        before = len(self.got)
        await eventually(lambda: len(self.got) > before)
        newcomer = await asyncio.wait_for(self.subscriber.sub("t"), 20)
        await newcomer.get(timeout=20)
        await newcomer.close()
        self._stop = True
        await self._putting
        self.pub.put("end")
        await asyncio.wait_for(self._taking, 30)
        assert self.got == list(range(self.put))
        [honest] = [of for at, of in self.sub.publishers.items() if at == self._name()]
        assert honest["lost"] == 0
        assert self._link() is self.link, "the link broke"

    def _name(self) -> str:
        return f"{self.publisher.runtime.address}#{self.stream_id}"


@asynccontextmanager
async def beside(
    registry: Registry | None = None, coordinator: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Beside]:
    """A coordinator, and an honest pair that notices nothing of what happens in the block."""
    loop = asyncio.get_running_loop()
    daemon = Coordinator(
        loop,
        settings=Settings(**{**LIMITS, **(coordinator or {})}),
        registry=registry,
        settle=0.0,
        guard=default_guard(),
    )
    address = str(await daemon.start("127.0.0.1", 0))
    try:
        options = {**LIMITS, **settings}
        async with Peer(address, **options) as one, Peer(address, **options) as other:
            pair = Beside(daemon, address, one, other)
            await pair.start()
            yield pair
            await pair.noticed_nothing()
    finally:
        await daemon.close()


def said(caplog: pytest.LogCaptureFixture, reason: str) -> bool:
    """Whether a warning with this reason was logged."""
    return any(
        reason in record.getMessage() and record.levelno == logging.WARNING
        for record in caplog.records
    )


async def cut(attack: Attack, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    """The attack is over because the victim has ended it, and said why."""
    before = memory()
    goodbye = await asyncio.wait_for(asyncio.to_thread(attack.run, target), 50)
    await eventually(lambda: said(caplog, attack.reason), f"no warning of {attack.reason!r}")
    if goodbye is not None:  # it does not get through a connection that is being flooded
        assert attack.reason in goodbye.reason
    assert memory() - before < 64 * MIB


@asynccontextmanager
async def hostile_publisher(*args: Any, **options: Any) -> AsyncIterator[HostilePublisher]:
    """A `HostilePublisher`, which blocks while it is made and closed."""
    hostile = await asyncio.to_thread(HostilePublisher, *args, **options)
    try:
        yield hostile
    finally:
        await asyncio.to_thread(hostile.close)


# --- one by one --------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [*ON_ANYONE, *ON_PUBLISHER], ids=str)
async def test_a_publisher_under_attack(attack: Attack, caplog: pytest.LogCaptureFixture) -> None:
    async with beside() as pair:
        target = Target(pair.publisher.runtime.address, "peer", pair.stream_id)
        await cut(attack, target, caplog)
        places = pair.pub._publication.cursors()
        assert [state for state, _ in places] == ["attached"]  # none is held for who was cut


@pytest.mark.parametrize("attack", [*ON_ANYONE, *ON_COORDINATOR], ids=str)
async def test_a_coordinator_under_attack(attack: Attack, caplog: pytest.LogCaptureFixture) -> None:
    impatient = {"ping_interval": 0.5, "ping_timeout": 2.0}
    unread = attack.name == "large_answers_that_nobody_reads"
    async with beside(
        Registry(max_registrations=5000, max_segments=50_000),
        coordinator=impatient if unread else None,
    ) as pair:
        await cut(attack, Target(pair.address, "coordinator"), caplog)
        if not unread:
            assert len(list(pair.coordinator.registry.peers())) == 2


@pytest.mark.parametrize("attack", ON_SUBSCRIBER, ids=str)
async def test_a_subscriber_under_attack(
    attack: Publishing, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside() as pair:
        before = memory()
        victim = await pair.subscriber.sub("t", window=65_537)  # nobody reads it
        async with hostile_publisher(
            pair.address, "t", attack.publish, limit=32_768, answer=attack.answer
        ) as hostile:
            await eventually(lambda: said(caplog, attack.reason), attack.reason)
            await eventually(lambda: hostile.goodbyes)
        assert memory() - before < 64 * MIB
        await victim.close()


# --- crowds ------------------------------------------------------------------------------------


async def crowd(address: str, size: int) -> list[socket.socket]:
    """Connections that say nothing."""
    loop = asyncio.get_running_loop()
    found: list[socket.socket] = []
    while len(found) < size:
        more = [socket.socket() for _ in range(min(100, size - len(found)))]
        for sock in more:
            sock.setblocking(False)
        found += more
        await asyncio.gather(*(loop.sock_connect(s, tuple(parse_address(address))) for s in more))
    return found


async def silent_crowd(size: int, at_once: int, caplog: pytest.LogCaptureFixture) -> None:
    waiting: dict[str, Any] = {"max_unauthenticated": at_once, "handshake_timeout": 2.0}
    async with beside(coordinator=waiting, **waiting) as pair:
        before = memory()
        for address in (pair.publisher.runtime.address, pair.address):
            sockets = await crowd(address, size)
            try:
                newcomer = await asyncio.wait_for(pair.subscriber.sub("t"), 20)
                async with Peer(pair.address, connect_timeout=20) as stranger:  # one more gets in
                    other = await asyncio.wait_for(stranger.sub("t"), 20)
                    await other.get(timeout=20)
                await newcomer.get(timeout=20)
                await newcomer.close()
                assert len(pair.publisher.runtime.doors.doorman) <= at_once
                assert len(pair.coordinator._doorman) <= at_once
                await eventually(lambda: not len(pair.publisher.runtime.doors.doorman))
                await eventually(lambda: not len(pair.coordinator._doorman))
            finally:
                for sock in sockets:
                    sock.close()
        assert said(caplog, "too many connections that say nothing")
        assert said(caplog, "no handshake within")
        # with the strangers' own ends, and what was logged of them
        assert memory() - before < 64 * MIB + size * 10 * 1024


async def test_a_crowd_that_says_nothing_keeps_nobody_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await silent_crowd(400, 100, caplog)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_ten_thousand_connections_that_say_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 21_000
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    size = min(10_000, wanted - 1_500)  # most of the victim's ends are cut soon
    if size < 10_000:
        pytest.skip(f"{hard:,} descriptors are too few for 10,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        await silent_crowd(size, 1_024, caplog)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_attacker_in_a_loop_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for log in LIMITED:
        monkeypatch.setattr(log, "filters", [RateLimit()])
    attack = next(attack for attack in ON_ANYONE if attack.name == "http")
    async with beside() as pair:
        target = Target(pair.publisher.runtime.address, "peer")
        for _ in range(300):
            await asyncio.to_thread(attack.run, target)
    assert 0 < len(caplog.records) < 100


async def test_a_publisher_of_garbage_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for log in LIMITED:
        monkeypatch.setattr(log, "filters", [RateLimit()])

    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(*(batch(channel, i, b"\xc1") for i in range(300)))

    async with beside() as pair:
        sub = await pair.subscriber.sub("bad", keep="all")
        async with hostile_publisher(pair.address, "bad", publish):
            missed = 0
            async for event in sub.messages():
                missed += event.missed
                if missed == 300:
                    break
            assert sub.lost == 300
    assert 0 < len(caplog.records) < 100


async def test_more_streams_than_a_link_may_carry_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def silent(stranger: Stranger, channel: int) -> None:
        pass

    def standing(pair: Beside) -> Counter[str]:
        return Counter(how["state"] for how in pair.sub.publishers.values())

    # those that it has answered are waited for, because they may come back
    async with beside(resume_timeout=1.0) as pair:
        async with hostile_publisher(pair.address, "t", silent) as hostile:
            hostile.session.send(*(register(i, "pub", "t") for i in range(2, 3_000)))
            await eventually(lambda: said(caplog, "more than 1000 streams"))
            await eventually(lambda: standing(pair)["unreachable"] == 3_000 - 1 - 1_000)
            assert len(pair.sub._inbox.streams) == 1_001
            await asyncio.to_thread(hostile.close)
        await eventually(lambda: len(pair.sub._inbox.streams) == 1)
        assert standing(pair)["attached"] == 1


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["buffer", "frame"])
async def test_g6_what_is_announced_and_does_not_come_takes_no_memory(what: str) -> None:
    announced = 200 * MIB

    def promise(stranger: Stranger, channel: int) -> None:
        if what == "buffer":
            stranger.send(piece(channel, announced, 0, bytes(1000)))
        else:
            stranger.send(data_header(channel, 0, 0.0, announced) + array_header(1) + bytes(1000))

    async with beside() as pair:
        before = memory()
        crowd = [
            await asyncio.to_thread(HostilePublisher, pair.address, "t", promise) for _ in range(5)
        ]
        try:
            await eventually(lambda: len(pair.sub.publishers) == 6)
            await eventually(lambda: all(hostile.connections for hostile in crowd))
            honest = len(pair.got)
            await eventually(lambda: len(pair.got) > honest + 1_000)
            assert memory() - before < 64 * MIB
        finally:
            for hostile in crowd:
                await asyncio.to_thread(hostile.close)


# --- values ------------------------------------------------------------------------------------

BAD_VALUES = {
    "an unknown extension type": msgpack.packb(msgpack.ExtType(99, b"?")),
    "a broken extension type": msgpack.packb(msgpack.ExtType(8, b"no datetime")),
    "a buffer that is not there": msgpack.packb(msgpack.ExtType(12, bytes(4))),
    "nested 10,000 deep": b"\x91" * 10_000 + b"\xc0",
    "tuples nested 10,000 deep": b"",  # made below
    "no msgpack": b"\xc1",
    "no UTF-8": b"\xa2\xff\xff",
    "a list as key of a map": b"\x81\x90\x01",
    "an array of 4 G values": b"\xdd\xff\xff\xff\xff",
    "cut short": b"\xda\xff\xff",
}


def _nested_tuples(depth: int) -> bytes:
    value = b"\xc0"
    for _ in range(depth):
        array = b"\x91" + value
        value = b"\xc9" + len(array).to_bytes(4, "big") + b"\x01" + array
    return value


BAD_VALUES["tuples nested 10,000 deep"] = _nested_tuples(10_000)


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES.keys())
async def test_a_value_that_cannot_be_decoded_is_a_gap_and_the_stream_goes_on(
    bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(
            batch(channel, 0, b"\x00"),
            batch(channel, 1, b"\x01", bad),
            batch(channel, 3, bad, b"\x04"),
            batch(channel, 5, b"\x05"),
        )

    async with beside() as pair:
        sub = await pair.subscriber.sub("bad")
        async with hostile_publisher(pair.address, "bad", publish) as hostile:
            events = []
            async for event in sub.messages():
                events.append(event)
                if isinstance(event, Message) and event.value == 5:
                    break
            values = [event.value for event in events if isinstance(event, Message)]
            gaps = [event for event in events if isinstance(event, Gap)]
            assert [value for value in values if value != 4] == [0, 1, 5]  # 4: if it can be found
            assert {gap.reason for gap in gaps} == {"undecodable"}
            assert sub.lost == sum(gap.missed for gap in gaps) == 6 - len(values)
            assert len(hostile.connections) == 1  # the link stays
            assert not hostile.goodbyes
            assert said(caplog, "cannot be decoded")


async def test_headers_that_are_none_raise_where_they_are_looked_at_and_the_values_come() -> None:
    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(
            headed(channel, 0, b"\x00", {0: 5}),
            headed(channel, 1, b"\x01", {0: {"a": 1}}),
            headed(channel, 2, b"\x02", ["no map"]),
            headed(channel, 3, b"\x03", {0: {"a": "b"}}),
        )

    async with beside() as pair:
        sub = await pair.subscriber.sub("bad")
        async with hostile_publisher(pair.address, "bad", publish) as hostile:
            async for event in sub.messages():
                assert isinstance(event, Message)
                assert event.value == event.seq
                if event.value == 3:
                    assert event.headers == {"a": "b"}
                    break
                with pytest.raises(DecodeError) as caught:
                    event.headers  # noqa: B018
                assert event.publisher in str(caught.value)
                assert caught.value.publisher == event.publisher
            assert len(hostile.connections) == 1
            assert sub.lost == 0


async def test_values_and_headers_that_cannot_be_parted_end_the_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(headed(channel, 0, b"\x00", {}), headed(channel, 1, b"\xc1", {}))

    async with beside() as pair:
        sub = await pair.subscriber.sub("bad")
        async with hostile_publisher(pair.address, "bad", publish) as hostile:
            assert await sub.get(timeout=20) == 0
            await eventually(lambda: hostile.goodbyes)
            assert said(caplog, "a malformed DATA behind its time")


async def test_a_stream_in_an_unknown_codec_is_an_error_that_names_it() -> None:
    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(Subscribed(channel, "bad", "x" * 32, 0, 0, 1), batch(channel, 0, b"\x01"))

    async with beside() as pair:
        sub = await pair.subscriber.sub("bad")
        async with hostile_publisher(pair.address, "bad", publish, answer=False):
            with pytest.raises(DecodeError, match="codec 'xxxx") as caught:
                await sub.get(timeout=20)
            assert caught.value.topic == "bad"


@pytest.mark.parametrize("host", ["\x00", "a" * 255, "ä..b", "-", "256.256.256.256"])
async def test_an_address_that_is_none_is_only_that_publishers_trouble(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside() as pair:
        with Stranger(pair.address) as stranger:
            await asyncio.to_thread(stranger.hello, "coordinator", host, 1)
            stranger.send(register(1, "pub", "t"))
            await eventually(lambda: said(caplog, "cannot reach the publisher"))
    assert not any("internal error" in record.getMessage() for record in caplog.records)
