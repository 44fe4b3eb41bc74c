"""Batches that are counted and not looked into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pubsub import Gap, Peer
from pubsub.faces.asyncpub import AsyncPub
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.undecoded import undecoded
from tests.integration.support import coordinator_in_loop

pytestmark = pytest.mark.loop


@pytest.fixture
async def coordinator() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


async def test_g3_every_message_is_counted_or_in_a_gap(coordinator: str) -> None:
    async with Peer(coordinator) as one, Peer(coordinator, max_message=1_000_000) as other:
        sub = AsyncSub("t", peer=other, allow_pickle="anyone")
        await sub
        pub = AsyncPub("t", peer=one, codec="pickle")
        await pub.wait_for_subscribers(1)
        for _ in range(10):
            pub.put_many([b"x" * 100] * 1000)
        pub.put(b"x" * 2_000_000)  # more than the Sub's Peer takes
        await asyncio.sleep(0)
        pub.put("last")
        messages = size = missed = 0
        async for batch in undecoded(sub):
            assert batch.topic == "t"
            messages += batch.messages
            size += batch.size
            for gap in batch.gaps:
                assert isinstance(gap, Gap)
                missed += gap.missed
            if messages + missed == 10_002:
                break
        assert (missed, sub.lost) == (1, 1)
        assert 1_000_000 < size < 1_300_000
        (state,) = sub.publishers.values()
        assert state["delivered"] == messages
        await pub.flush(timeout=20)
        pub.close()


async def test_large_buffers_count_with_what_is_in_them(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        sub, pub = AsyncSub("t", peer=peer), AsyncPub("t", peer=peer)
        await sub
        await pub.wait_for_subscribers(1)
        pub.put(b"x" * 1_000_000)
        async for batch in undecoded(sub):
            assert batch.messages == 1
            assert 1_000_000 <= batch.size < 1_001_000
            break


async def test_closing_the_sub_ends_it(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        sub = AsyncSub("t", peer=peer)
        await sub

        async def count() -> int:
            return sum([batch.messages async for batch in undecoded(sub)])

        counting = asyncio.ensure_future(count())
        await asyncio.sleep(0)
        sub.close()
        assert await asyncio.wait_for(counting, 20) == 0


async def test_a_coordinator_that_is_not_there_is_an_error() -> None:
    async with Peer("127.0.0.1:1", connect_timeout=0.1) as peer:
        with pytest.raises(ConnectionError):
            async for _ in undecoded(AsyncSub("t", peer=peer)):
                pass
