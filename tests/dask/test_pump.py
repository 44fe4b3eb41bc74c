"""The thread that takes for event loops: who is woken, and who hands that on."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

from pubsub import Closed
from pubsub.dask.pump import AHEAD, Pump
from tests.dask.tasks import LONG


class Given:
    """A source of what a test gives."""

    topic = "t"
    sub = object()
    ended = False

    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.taken = 0
        self.publishers = {"a": {"state": "attached"}, "b": {"state": "unreachable"}}

    def get_many(self, most: int) -> list[Any]:
        found = self.queue.get()
        if isinstance(found, Exception):
            raise found
        self.taken += len(found)
        return list(found)

    def close(self) -> None: ...


@pytest.fixture
def given() -> Iterator[Given]:
    """One whose thread, that another test might take for one of its own, ends with the test."""
    given = Given()
    yield given
    given.ended = True
    given.queue.put([])


def has_taken(given: Given, count: int) -> None:
    deadline = time.monotonic() + LONG
    while given.taken < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.05)  # and woken who waits


@pytest.mark.parametrize("other", ["task", "thread"])
async def test_who_is_cancelled_when_it_was_woken_passes_that_on(given: Given, other: str) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    first = asyncio.ensure_future(pump.aget(None))
    await asyncio.sleep(0)
    found: list[Any] = []
    if other == "task":
        second: Any = asyncio.ensure_future(pump.aget(LONG))
    else:
        second = asyncio.ensure_future(asyncio.to_thread(pump.get, LONG))
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if len(pump._waiters) == 2:
            break
    given.queue.put(["only"])
    has_taken(given, 1)  # the loop stands still: the first is woken, and does not run yet
    first.cancel()
    found.append(await asyncio.wait_for(second, LONG / 2))
    assert found == ["only"]
    assert first.cancelled()


def test_it_takes_no_more_than_it_may_ahead(given: Given) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    for _ in range(4):
        given.queue.put(range(AHEAD))
    has_taken(given, AHEAD)
    assert given.taken == len(pump) == AHEAD
    assert [pump.get(LONG) for _ in range(4 * AHEAD)] == [*range(AHEAD)] * 4


def test_its_end_is_told_to_all_who_wait_after_what_came(given: Given) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    ended: list[Any] = []

    def wait() -> None:
        try:
            ended.append(pump.get(None))
        except Closed:
            ended.append("closed")

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    given.queue.put(["last"])
    given.queue.put(Closed("it is over"))
    for thread in waiting:
        thread.join(LONG)
    assert sorted(ended) == ["closed", "closed", "last"]


def test_its_end_told_again_keeps_no_more_each_time(given: Given) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    given.queue.put(Closed("it is over"))
    lengths = []
    for _ in range(3):
        with pytest.raises(Closed) as caught:
            pump.get(LONG)
        lengths.append(len(caught.traceback))
    assert lengths[1] == lengths[2]  # the first may have waited


def test_it_is_gone_with_its_sub_and_waits_for_no_garbage_collection(given: Given) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    gone = weakref.ref(pump)
    gc.disable()
    try:
        del pump
        given.queue.put(Closed("it is over"))
        deadline = time.monotonic() + LONG / 3
        while gone() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()


async def test_a_timeout_tells_who_is_connected(given: Given) -> None:
    pump = Pump(given)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError, match=r"nothing came on 't' .*connected: 1 of 2\)"):
        pump.get(0.01)
    with pytest.raises(asyncio.TimeoutError, match=r"nothing came on 't' .*connected: 1 of 2\)"):
        await pump.aget(0.01)
    with pytest.raises(TimeoutError, match="nothing waits on 't'"):
        pump.get(0)
