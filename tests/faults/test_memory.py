"""Hostile peers and the memory that processes of a host share: whoever lies about it loses its own
link. Nobody dies of SIGBUS, and nobody else loses a message, a descriptor or memory.

The liars are honest Peers, of which one step is replaced. Beside each, an honest one sends to, or
hears, the very process that is lied to.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from pubsub import Peer
from pubsub.config import MIB
from pubsub.core.lending import Borrowing, Lending
from pubsub.core.serving import Serving
from pubsub.links import memory, unix
from pubsub.wire.messages import Control, Join, Lent, Mapped, Offer, Returned, Unmap, encode
from tests.faults.attacks import Stranger
from tests.integration.support import LONG, coordinator_in_loop, eventually
from tests.integration.test_sharing import descriptors

np = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.loop,
    pytest.mark.usefixtures("by_unix"),
    pytest.mark.skipif(not memory.available(), reason="no memory is shared on this system"),
]

SIZE = 200_000
HEAD = struct.Struct(">IQ")


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pubsub.link", "pubsub.memory"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])


class Three:
    """A liar, its victim, and an honest peer; all have to do with the topic."""

    def __init__(self, liar: Peer, victim: Peer, honest: Peer) -> None:
        self.liar, self.victim, self.honest = liar, victim, honest
        self.pub: Any = None
        self.subs: dict[Peer, Any] = {}
        self.pubs: dict[Peer, Any] = {}

    def serving(self, at: Peer, to: Peer) -> Serving:
        """What one publishes to the other."""
        [found] = [
            serving for serving in at.runtime.sharing._lent if serving.peer_id == to.runtime.peer_id
        ]
        return found

    def link(self, at: Peer, to: Peer) -> Any:
        """By which one hears the other."""
        remote = at.runtime.publishers.remotes.get(to.runtime.peer_id)
        return None if remote is None else remote.link

    def lies(self, message: Control | bytes) -> None:
        """The liar, who subscribes, says that to the victim."""
        link = self.link(self.liar, self.victim)
        link.write(message if isinstance(message, bytes) else encode(message))

    def borrowing(self, at: Peer) -> Borrowing:
        [found] = at.runtime.sharing._borrowed
        return found

    async def flow(self, count: int = 10) -> None:
        """What an honest publisher puts comes to an honest subscriber, by the link there was."""
        to, of = (self.honest, self.victim) if self.pub else (self.victim, self.honest)
        pub, sub = self.pub or self.pubs[self.honest], self.subs[to]
        before = self.link(to, of)
        for i in range(count):
            pub.put(np.full(SIZE + 1, i, np.uint8))
            while True:
                value = await asyncio.wait_for(sub.get(), LONG)
                if type(value) is np.ndarray and value.size == SIZE + 1:
                    break
            assert set(value.tolist()) == {i}
            del value
        assert sub.lost == 0 or not self.pub
        assert self.link(to, of) is before is not None


@asynccontextmanager
async def peers(**options: Any) -> AsyncIterator[Three]:
    async with (
        coordinator_in_loop() as address,
        Peer(address, shared_memory=32 * MIB, linger=0) as liar,
        Peer(address, shared_memory=32 * MIB, linger=0, **options) as victim,
        Peer(address, shared_memory=32 * MIB, linger=0) as honest,
    ):
        yield Three(liar, victim, honest)


@asynccontextmanager
async def a_publisher_as_victim() -> AsyncIterator[Three]:
    async with peers() as three:
        three.pub = await three.victim.pub("t")
        for peer in (three.liar, three.honest):
            three.subs[peer] = await peer.sub("t", keep="latest")
        await three.pub.wait_for_subscribers(2, LONG)
        await warm(three)
        yield three
        await three.flow()


def nothing_is_out(lent: list[Lending]) -> bool:
    return not any(lending.loans for lending in lent)


async def warm(three: Three) -> None:
    """Until both have mapped memory of the victim, and nothing is lent."""
    for _ in range(200):
        three.pub.put(np.zeros(SIZE, np.uint8))
        for sub in three.subs.values():
            await sub.get(LONG)
        lent = [lending for lending, _ in three.victim.runtime.sharing._lent.values()]
        if all(lending._mapped for lending in lent):
            three.pub.put(None)
            for sub in three.subs.values():
                assert await sub.get(LONG) is None
            await eventually(partial(nothing_is_out, lent))
            return
    raise AssertionError("nothing was mapped")


@asynccontextmanager
async def a_subscriber_as_victim(
    lie: Callable[[Three], None] = lambda three: None,
) -> AsyncIterator[Three]:
    """`lie` is called before the liar has a Pub."""
    async with peers() as three:
        three.subs[three.victim] = await three.victim.sub("t")
        three.pubs[three.honest] = await three.honest.pub("t")
        await three.pubs[three.honest].wait_for_subscribers(1, LONG)
        await three.flow()
        lie(three)
        three.pubs[three.liar] = await three.liar.pub("t")
        await three.pubs[three.liar].wait_for_subscribers(1, LONG)
        yield three
        await three.flow()


def warned(caplog: pytest.LogCaptureFixture, reason: str) -> bool:
    return any(
        reason in record.getMessage() and record.levelno == logging.WARNING
        for record in caplog.records
    )


# --- a subscriber that lies -------------------------------------------------------------------

LIES: dict[str, tuple[Callable[[Three], list[Control | bytes]], str]] = {
    "returns what is not lent": (lambda t: [Returned((2**40,), False)], "which is not lent"),
    "returns it twice": (lambda t: [Returned((0,), False)], "a RETURNED of 0"),
    "keeps what is not lent": (lambda t: [Returned((2**63,), True)], "which is not lent"),
    "returns too many at once": (
        lambda t: [b"\x00\x00\x20\x00\x93\x21" + bytes(0x2000 - 2)],
        "frame",
    ),
    "has mapped nothing": (lambda t: [Mapped(2**31)], "not on its way"),
    "has mapped it twice": (
        lambda t: [Mapped(next(iter(t.borrowing(t.liar)._segments)))],
        "not on its way",
    ),
    "lends": (lambda t: [Lent(0, 0, 1, 0, 1)], "a LENT where a subscriber speaks"),
    "offers": (lambda t: [Offer(bytes(16))], "an? OFFER where a subscriber speaks"),
    "unmaps": (lambda t: [Unmap(1)], "UNMAP where a subscriber speaks"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_subscriber_that_lies_loses_its_link(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    say, reason = LIES[lie]
    async with a_publisher_as_victim() as three:
        serving = three.serving(three.victim, three.liar)
        for message in say(three):
            three.lies(message)
        reason = reason.removeprefix("an? ")
        await eventually(lambda: warned(caplog, reason), reason)
        await eventually(lambda: serving not in three.victim.runtime.sharing._lent)


async def test_a_subscriber_that_returns_nothing_costs_no_message_and_no_more_than_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_publisher_as_victim() as three:
        liars = three.borrowing(three.liar)
        monkeypatch.setattr(liars, "pump", list)
        pool = three.victim.runtime.sharing.pool
        assert pool is not None
        for _ in range(30):
            await three.flow(10)
            await three.subs[three.liar].get(LONG)
            assert pool.total <= pool.size
        assert liars._returned
        lending = three.serving(three.victim, three.liar).lending
        assert lending is not None
        assert lending.loans > 5
        await three.liar.close()
        await eventually(lambda: len(three.victim.runtime.sharing._lent) == 1)
        await eventually(lambda: all(segment.used <= 2 for segment in pool.segments))


@pytest.mark.parametrize("way", ["never maps", "never reads", "sends", "never comes"])
async def test_a_subscriber_that_does_not_take_memory_gets_all_by_its_link(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers() as three:
        catching = memory.Catching
        if way == "never maps":
            monkeypatch.setattr(catching, "_take", lambda self, sock: False)
        elif way == "never comes":
            monkeypatch.setattr(catching, "come", lambda self, ticket: None)
        else:
            come = catching.come

            def deaf(self: Any, ticket: bytes) -> None:
                come(self, ticket)
                self._loop.remove_reader(self.sock.fileno())
                if way == "sends":
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            self.sock.send(bytes(4096))

            monkeypatch.setattr(catching, "come", deaf)
        three.pub = await three.victim.pub("t")
        sub = three.subs[three.honest] = await three.honest.sub("t")
        await three.pub.wait_for_subscribers(1, LONG)
        gc.collect()
        for i in range(30):
            three.pub.put(np.full(SIZE, i, np.uint8))
            assert set((await sub.get(LONG)).tolist()) == {i}
        serving = three.serving(three.victim, three.honest)
        assert serving.lending is not None
        assert serving.lending.loans == 0
        before = descriptors()
        now = asyncio.get_running_loop().time()
        pool = three.victim.runtime.sharing.pool
        assert pool is not None
        for second in range(40):  # segments go, and others are made
            pool.look(now + 20 * second)
            pool.look(now + 20 * second + 10)
            await three.flow(1)
        assert descriptors() <= before + 4
        await three.flow()


@pytest.mark.parametrize("what", ["wrong", "used", "behind it more", "by TCP"])
async def test_a_wrong_ticket_opens_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets: list[bytes] = []
    come = memory.Catching.come

    def seen(self: Any, ticket: bytes) -> None:
        tickets.append(ticket)
        if what in ("wrong", "used"):
            come(self, ticket)

    monkeypatch.setattr(memory.Catching, "come", seen)
    async with peers() as three:
        three.pub = await three.victim.pub("t")
        sub = three.subs[three.honest] = await three.honest.sub("t")
        await three.pub.wait_for_subscribers(1, LONG)
        while not tickets:
            three.pub.put(np.zeros(SIZE, np.uint8))
            await sub.get(LONG)
        await asyncio.sleep(0)
        said = encode(Join(bytes(16) if what == "wrong" else tickets[0]))
        if what in ("wrong", "used"):
            await warm(three)
        link = three.link(three.honest, three.victim)
        if what == "by TCP":
            stranger = Stranger(three.victim.runtime.address)
        else:
            catching = three.honest.runtime.sharing._borrowed[three.borrowing(three.honest)]
            stranger = Stranger(unix.dialled(catching._name))

        def ask() -> bytes:
            with stranger:
                stranger.send(said + (b"x" if what == "behind it more" else b""))
                try:
                    return stranger.socket.recv(100)
                except ConnectionError:
                    return b""

        assert await asyncio.to_thread(ask) == b""
        await three.flow()
        assert three.link(three.honest, three.victim) is link


async def test_a_flood_of_joins_takes_no_memory_and_no_descriptor() -> None:
    async with a_publisher_as_victim() as three:
        sharing = three.honest.runtime.sharing
        name = next(iter(sharing._borrowed.values()))._name
        gc.collect()
        before = descriptors()

        def flood() -> None:
            for i in range(2_000):
                try:
                    with unix.dialled(name) as sock:
                        sock.send(encode(Join(i.to_bytes(16, "big"))))
                except BlockingIOError:  # as many wait as may
                    pass

        flooding = asyncio.ensure_future(asyncio.to_thread(flood))
        while not flooding.done():
            await three.flow(1)
        await flooding
        await three.flow()
        await eventually(lambda: descriptors() <= before + 2)
        assert not three.victim.runtime.sharing._tickets


# --- a publisher that lies --------------------------------------------------------------------


def memfd(size: int = 2 * MIB, seals: int = 2, flags: int = 0) -> int:
    fd = os.memfd_create("pubsubd-test", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, memory.ADD_SEALS, seals)
    return fd


def write_only() -> int:
    fd = memfd()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    finally:
        os.close(fd)


def fifo() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def plain_file() -> int:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 2 * MIB)
    return fd


def path_only() -> int:
    fd = memfd()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    finally:
        os.close(fd)


GOOD = HEAD.pack(1000, 2 * MIB)
PASSED: dict[str, tuple[Callable[[], list[int]], bytes, str]] = {
    "a file": (lambda: [plain_file()], GOOD, "no sealed memory"),
    "a directory": (lambda: [os.open("/tmp", os.O_RDONLY)], GOOD, "no sealed memory"),
    "a pipe": (lambda: [fifo()], GOOD, "no sealed memory"),
    "a device": (lambda: [os.open("/dev/zero", os.O_RDWR)], GOOD, "no sealed memory"),
    "a name": (lambda: [path_only()], GOOD, "no sealed memory"),
    "not sealed": (lambda: [memfd(seals=0)], GOOD, "no sealed memory"),
    "sealed against growing": (lambda: [memfd(seals=4)], GOOD, "no sealed memory"),
    "shorter": (lambda: [memfd(2 * MIB - 1)], GOOD, "announced as 2,097,152"),
    "longer": (lambda: [memfd(4 * MIB)], GOOD, "announced as 2,097,152"),
    "empty": (lambda: [memfd(0)], HEAD.pack(1000, 0), "0 more bytes"),
    "huge": (lambda: [memfd(2**40)], HEAD.pack(1000, 2**40), "more bytes of memory"),
    "of 2**64": (lambda: [memfd()], HEAD.pack(1000, 2**64 - 1), "more bytes of memory"),
    "two": (lambda: [memfd(), memfd()], GOOD, "2 descriptors"),
    "ten": (lambda: [memfd() for _ in range(10)], GOOD, "descriptors with 12 bytes"),
    "253": (lambda: [memfd() for _ in range(253)], GOOD, "descriptors with 12 bytes"),
    "none": (list, GOOD, "0 descriptors"),
    "with one byte": (lambda: [memfd()], b"x", "1 descriptors with 1 bytes"),
    "write-only": (lambda: [write_only()], GOOD, "cannot be mapped"),
}


def pass_on(passing: Any, fds: list[int], head: bytes) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        passing.sock.sendmsg([head], rights)
    finally:
        for fd in fds:
            os.close(fd)


async def passing_of(three: Three) -> Any:
    """The liar's, once the victim has come for it."""
    pub = three.pubs[three.liar]
    [(_, passing)] = three.liar.runtime.sharing._lent.values()
    for _ in range(1_000):
        if passing.sock is not None:
            return passing
        pub.put(np.zeros(SIZE, np.uint8))
        await asyncio.sleep(0.01)
    raise AssertionError("nobody came")


@pytest.mark.parametrize("what", PASSED)
async def test_what_a_publisher_passes_is_looked_at(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, head, reason = PASSED[what]
    async with a_subscriber_as_victim() as three:
        passing = await passing_of(three)
        gc.collect()
        pass_on(passing, make(), head)
        await eventually(lambda: warned(caplog, reason), reason)
        left = await asyncio.to_thread(in_maps, "pubsubd-test")
        assert left == (0, 0)


def in_maps(name: str) -> tuple[int, int]:
    """Mappings of what has that name, and descriptors."""
    with open("/proc/self/maps") as lines:
        maps = sum(name in line for line in lines)
    fds = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fds += name in os.readlink(f"/proc/self/fd/{fd}")
    return maps, fds


async def test_large_pages_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """One that is missing when it is read is a SIGBUS, however the file is sealed."""
    try:
        fd = memfd(flags=os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no large pages here: {error}")
    async with a_subscriber_as_victim() as three:
        passing = await passing_of(three)
        pass_on(passing, [fd], GOOD)
        await eventually(lambda: warned(caplog, "memory of large pages"))


async def test_what_has_been_passed_cannot_be_made_shorter_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_subscriber_as_victim() as three:
        passing = await passing_of(three)
        [lending] = [lending for lending, _ in three.liar.runtime.sharing._lent.values()]
        monkeypatch.setattr(lending, "mapped", lambda number: None)
        fd = memfd()
        pass_on(passing, [os.dup(fd)], GOOD)
        borrowings = three.victim.runtime.sharing._borrowed
        await eventually(lambda: any(1000 in one._segments for one in borrowings))
        with pytest.raises(OSError) as caught:
            os.ftruncate(fd, 0)
        assert caught.value.errno == errno.EPERM
        os.close(fd)


async def test_thousands_of_segments_are_a_few_hundred(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_subscriber_as_victim() as three:
        passing = await passing_of(three)
        [lending] = [lending for lending, _ in three.liar.runtime.sharing._lent.values()]
        monkeypatch.setattr(lending, "mapped", lambda number: None)
        before = descriptors()
        for number in range(1_000, 3_000):
            while passing.sock is not None:
                try:
                    pass_on(passing, [memfd(4096)], HEAD.pack(number, 4096))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                except OSError:
                    break
            if warned(caplog, "segments of memory"):
                break
            await asyncio.sleep(0)
        await eventually(lambda: warned(caplog, "more than 256 segments of memory"))
        await eventually(lambda: in_maps("pubsubd-test")[0] == 0)
        await eventually(lambda: descriptors() <= before)


BAD_LOANS: dict[str, tuple[Callable[[int, int], list[Control]], str]] = {
    "before it is mapped": (lambda c, n: [Lent(c, 0, 2**20, 0, 65_536)], "a LENT of"),
    "out of bounds": (lambda c, n: [Lent(c, n, 1, 2**21 - 1, 65_536)], "a LENT of"),
    "far out": (lambda c, n: [Lent(c, n, 1, 2**64 - 1, 2**64 - 1)], "a LENT of"),
    "of nothing": (lambda c, n: [Lent(c, n, 1, 0, 0)], "a LENT of 0 bytes"),
    "by a wrong number": (lambda c, n: [Lent(c, n + 7, 1, 0, 65_536)], "was due"),
    "of what was unmapped": (lambda c, n: [Unmap(1), Lent(c, n, 1, 0, 65_536)], "a LENT of"),
    "unmapped twice": (lambda c, n: [Unmap(1), Unmap(1)], "UNMAP of segment 1"),
    "more than may come": (
        lambda c, n: [Lent(c, n + i, 1, 0, 2**20) for i in range(3_000)],
        "bytes",
    ),
    "on another channel": (lambda c, n: [Lent(c + 1000, n, 1, 0, 65_536)], "never opened"),
    "a second offer": (lambda c, n: [Offer(bytes(16))], "a second OFFER"),
}


@pytest.mark.parametrize("what", BAD_LOANS)
async def test_what_a_publisher_lends_is_looked_at(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = BAD_LOANS[what]
    async with a_subscriber_as_victim() as three:
        await passing_of(three)
        serving = three.serving(three.liar, three.victim)
        lending = serving.lending
        assert lending is not None
        await eventually(lambda: 1 in lending._mapped)
        pub = three.pubs[three.liar]
        pub.put(np.zeros(SIZE, np.uint8))
        await pub.flush(LONG)
        await eventually(lambda: not serving._ready)
        [channel] = serving._channels
        for message in make(channel, lending._next):
            serving.say(message)
        await eventually(lambda: warned(caplog, reason), reason)


async def test_memory_that_changes_while_it_is_read_harms_who_has_it_alone() -> None:
    """What is read twice may be different: so bytes are copied once, and only then looked at."""
    async with a_subscriber_as_victim() as three:
        await passing_of(three)
        pub = three.pubs[three.liar]
        for i in range(50):
            value = pub.empty(SIZE, np.uint8)
            view = value[:]
            pub.put({"array": value, "bytes": bytes(SIZE)})
            view[:] = i
            await asyncio.sleep(0)
        del value, view


# --- rights -----------------------------------------------------------------------------------


async def test_a_segment_has_what_one_pub_puts_and_nothing_else() -> None:
    async with peers() as three:
        pubs = [await three.victim.pub(topic) for topic in ("mine", "yours")]
        subs = [
            await peer.sub(topic) for peer, topic in ((three.liar, "mine"), (three.honest, "yours"))
        ]
        for i in range(30):
            for pub, sub in zip(pubs, subs, strict=True):
                await pub.wait_for_subscribers(1, LONG)
                pub.put(np.full(SIZE, 77 if pub is pubs[1] else 1, np.uint8))
                await sub.get(LONG)
            await asyncio.sleep(0.002 * (i < 5))
        seen = three.borrowing(three.liar)._segments
        assert seen
        for found in seen.values():
            assert set(bytes(found.view)) <= {0, 1}
