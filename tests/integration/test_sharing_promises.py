"""The promises for large arrays, with shared memory on, off, and mixed: here some, there none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from pubsub import Gap, Peer, Pub, Sub
from pubsub.config import MIB
from pubsub.core.lending import Lending
from pubsub.core.pool import Share
from pubsub.links import memory
from pubsub.wire.buffers import Block
from tests.integration.support import (
    LONG,
    CoordinatorThread,
    break_links,
    coordinator_in_thread,
    eventually,
)

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(not memory.available(), reason="no memory is shared on this system")

SIZE = 100_000
POOLS = {"on": (64 * MIB, 64 * MIB, 64 * MIB), "off": (0, 0, 0), "mixed": (2 * MIB, 0, 64 * MIB)}
"""What the publisher's Peer and those of two subscribers lend at most. 2 MiB have room for 18
arrays: of a Pub that is ahead by more, some are lent, and the others travel between them."""


class World:
    """A coordinator, and Peers: of a publisher, and of two subscribers."""

    def __init__(
        self, mode: str, coordinator: CoordinatorThread, here: Peer, there: Peer, third: Peer
    ) -> None:
        self.mode, self.coordinator = mode, coordinator
        self.here, self.there, self.third = here, there, third

    async def warm(self, pub: Pub, *subs: Sub) -> int:
        """Until the subscribers have mapped memory of the Pub, where it has any; how many were put
        for it."""
        await pub.wait_for_subscribers(len(subs), LONG)
        for count in range(1, 500):
            pub.put(array(0))
            for sub in subs:
                number(await sub.get(LONG))
            lent = self.here.runtime.sharing._lent.values()
            mapped = [bool(lending._mapped) for lending, _ in lent]
            if self.mode == "off" or (len(mapped) == len(subs) and all(mapped)):
                return count
            await asyncio.sleep(0.005)
        raise AssertionError("nothing was mapped")


def array(i: int) -> dict[str, Any]:
    """One that shows which it is in all places."""
    return {"n": i, "array": np.full(SIZE, i % 251, np.uint8)}


def number(value: dict[str, Any]) -> int:
    """Which that is, and it is whole."""
    n: int = value["n"]
    assert value["array"].shape == (SIZE,)
    assert (value["array"] == n % 251).all()
    return n


async def numbers(sub: Sub, count: int) -> list[int]:
    """Of so many that come."""
    return [number(await sub.get(LONG)) for _ in range(count)]


@pytest.fixture(params=sorted(POOLS))
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How much is shared; at the end, whether it was, and whether the pool was full."""
    lent = refused = 0
    lend, block = Lending.lend, Share.block

    def counted(self: Lending, block: Block) -> tuple[int, int] | None:
        nonlocal lent
        loan = lend(self, block)
        lent += loan is not None
        return loan

    def asked(self: Share, size: int) -> Block | None:
        nonlocal refused
        found = block(self, size)
        refused += found is None
        return found

    monkeypatch.setattr(Lending, "lend", counted)
    monkeypatch.setattr(Share, "block", asked)
    yield request.param
    assert (lent > 0) is (request.param != "off")
    assert (refused > 0) is (request.param == "mixed")


@asynccontextmanager
async def world(mode: str) -> AsyncIterator[World]:
    with coordinator_in_thread() as coordinator:
        async with AsyncExitStack() as stack:
            peers = [
                await stack.enter_async_context(
                    Peer(coordinator.address, shared_memory=pool, linger=LONG)
                )
                for pool in POOLS[mode]
            ]
            yield World(mode, coordinator, *peers)


async def test_g1_g2_each_sub_gets_each_array_once_and_in_order(mode: str) -> None:
    async with world(mode) as w:
        pub = await w.here.pub("t")
        subs = [await w.there.sub("t"), await w.third.sub("t")]
        await w.warm(pub, *subs)
        subs.append(await w.here.sub("t"))
        for i in range(200):
            pub.put(array(i))
        assert [await numbers(sub, 200) for sub in subs] == [list(range(200))] * 3
        assert [sub.lost for sub in subs] == [0] * 3


@pytest.mark.parametrize("keep", ["all", "latest"])
async def test_g3_g6_what_was_put_is_delivered_or_counted_and_the_buffer_is_the_bound(
    mode: str, keep: str
) -> None:
    async with world(mode) as w:
        pub = await w.here.pub("t", buffer=2 * MIB)
        sub = await w.there.sub("t", window=MIB, keep=keep)
        before = await w.warm(pub, sub)
        for i in range(200):
            pub.put(array(i))
            if i % 10 == 0:
                await asyncio.sleep(0)
                assert pub._publication.log.size <= 2 * MIB
                pool = w.here.runtime.sharing.pool
                assert pool is None or pool.total <= pool.size
        pub.put("last")
        got: list[int] = []
        missed = 0
        async for event in sub.messages():
            if isinstance(event, Gap):
                missed += event.missed
            elif event.value == "last":
                break
            else:
                assert event.seq == before + missed + len(got)
                got.append(number(event.value))
        assert got == sorted(set(got))
        assert len(got) + missed == len(got) + sub.lost == 200
        assert missed > 0


async def test_g4_who_is_older_gets_the_first_one_and_who_comes_late_the_history(mode: str) -> None:
    async with world(mode) as w:
        older = await w.there.sub("t")
        pub = w.here.pub("t", history=20)
        for i in range(100):  # before it is ready
            pub.put(array(i))
        assert await numbers(older, 100) == list(range(100))
        await w.warm(pub, older)
        for i in range(100, 200):
            pub.put(array(i))
        late = await w.third.sub("t", history="all")
        pub.put(array(200))
        assert await numbers(late, 21) == list(range(180, 201))
        assert await numbers(older, 101) == list(range(100, 201))
        assert older.lost == late.lost == 0


async def test_g5_broken_links_lose_nothing_and_change_nothing(mode: str) -> None:
    async with world(mode) as w:
        pub, sub = await w.here.pub("t"), await w.there.sub("t")
        kept = []
        for end in (w.there, w.here, w.there, w.here):
            await w.warm(pub, sub)
            for i in range(30):
                pub.put(array(i))
            for i in range(30):
                if i == 10:
                    break_links(end)
                kept.append(await sub.get(LONG))
                assert number(kept[-1]) == i
        assert sub.lost == 0
        assert [number(value) for value in kept] == [*range(30)] * 4


async def test_g7_while_no_coordinator_is_there_arrays_flow_on(mode: str) -> None:
    async with world(mode) as w:
        pub, sub = await w.here.pub("t"), await w.there.sub("t")
        await w.warm(pub, sub)
        w.coordinator.stop(rudely=True)
        for i in range(50):
            pub.put(array(i))
        assert await numbers(sub, 50) == list(range(50))
        w.coordinator.start()


async def test_g8_who_takes_nothing_delays_nobody_and_costs_nobody_a_message(mode: str) -> None:
    async with world(mode) as w:
        pub = await w.here.pub("t")
        stopped, other = await w.there.sub("t", window=MIB), await w.third.sub("t")
        await w.warm(pub, stopped, other)
        for i in range(200):
            pub.put(array(i))
        assert await numbers(other, 200) == list(range(200))
        assert await numbers(stopped, 200) == list(range(200))
        assert stopped.lost == other.lost == 0


async def test_g8_a_blocking_pub_waits_for_a_window_and_not_for_memory(mode: str) -> None:
    """What a Sub keeps is not what it has yet to take."""
    async with world(mode) as w:
        pub = await w.here.pub("t", overflow="block", buffer=2 * MIB)
        sub = await w.there.sub("t", window=MIB)
        await w.warm(pub, sub)

        async def put() -> None:
            for i in range(200):
                await pub.put(array(i))

        putting = asyncio.create_task(put())
        await eventually(lambda: pub._publication.log.size > MIB)
        assert not putting.done()
        kept = [await sub.get(LONG) for _ in range(200)]
        await putting
        assert [number(value) for value in kept] == list(range(200))
        assert sub.lost == 0


async def test_g9_a_pub_that_ends_has_sent_what_it_put(mode: str) -> None:
    async with world(mode) as w:
        sub = await w.there.sub("t")
        async with w.here.pub("t") as pub:
            await w.warm(pub, sub)
            for i in range(100):
                pub.put(array(i))
            taking = asyncio.create_task(numbers(sub, 100))
        await eventually(lambda: not sub.publishers)
        assert await taking == list(range(100))
        assert sub.lost == 0
