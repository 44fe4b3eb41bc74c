"""Patience with others, in a loop that does not always run."""

from __future__ import annotations

import asyncio
import time

from pubsub.links.patience import Patience


async def test_patience_ends_after_its_seconds() -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    began = loop.time()
    Patience(loop, 0.5, lambda: ended.set_result(loop.time()))
    assert await asyncio.wait_for(ended, 10) >= began + 0.499


async def test_patience_that_is_cancelled_does_not_end() -> None:
    ended: list[int] = []
    patience = Patience(asyncio.get_running_loop(), 0.05, lambda: ended.append(1))
    await asyncio.sleep(0.03)
    patience.cancel()
    await asyncio.sleep(0.1)
    assert ended == []


async def test_time_in_which_the_loop_is_blocked_does_not_count() -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    began = loop.time()
    Patience(loop, 1.0, lambda: ended.set_result(loop.time()))
    time.sleep(2.0)  # noqa: ASYNC251  # as a user's code does
    assert await asyncio.wait_for(ended, 10) >= began + 2.999
