"""What users do to a Pub and a Sub from many threads, and from tasks that are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from pubsub import Closed, Peer
from pubsub.support.host import on_host, this_host
from tests.faults.proxy import behind
from tests.faults.worker import until
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
)

THREADS = 32


@pytest.fixture
def coordinator() -> Iterator[str]:
    with coordinator_in_thread() as coordinator:
        yield coordinator.address


@pytest.mark.parametrize("overflow", ["drop", "block"])
def test_g1_32_threads_put_on_one_pub(coordinator: str, overflow: Any) -> None:
    """Small and large messages; each thread's own order holds, and the total is exact."""
    each = 500
    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = there.sub("t"), here.pub("t", overflow=overflow, buffer=4_000_000)
        pub.wait_for_subscribers(1, timeout=LONG)
        start = threading.Barrier(THREADS)

        def put(thread: int) -> None:
            chance = random.Random(thread)
            start.wait()
            for i in range(each):
                pub.put([thread, i, b"x" * (100_000 if chance.random() < 0.02 else 1)])
                if chance.random() < 0.01:
                    pub.flush(LONG)

        threads = [threading.Thread(target=put, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        last = [-1] * THREADS
        got = 0
        while got + sub.lost < THREADS * each:
            thread_, i, _ = sub.get(timeout=LONG)
            assert i > last[thread_]
            if overflow == "block":
                assert i == last[thread_] + 1
            last[thread_] = i
            got += 1
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        with pytest.raises(TimeoutError):
            sub.get(timeout=0.05)
        if overflow == "block":
            assert sub.lost == 0
        assert got + sub.lost == THREADS * each


def test_g2_many_threads_take_from_one_sub_and_none_gets_anothers(coordinator: str) -> None:
    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = there.sub("t"), here.pub("t")
        got: list[list[int]] = [[] for _ in range(8)]

        def by_loop(mine: list[int]) -> None:
            mine.extend(sub)

        def by_get(mine: list[int]) -> None:
            with contextlib.suppress(Closed):
                while True:
                    mine.append(sub.get(timeout=LONG))

        threads = [
            threading.Thread(target=by_get if n % 2 else by_loop, args=(mine,))
            for n, mine in enumerate(got)
        ]
        for thread in threads:
            thread.start()
        for i in range(20_000):
            pub.put(i)
        pub.flush(LONG)
        until(lambda: sum(map(len, got)) == 20_000)
        sub.close()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert sorted(chain(*got)) == list(range(20_000))
        for mine in got:
            assert mine == sorted(mine)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1])
async def test_g3_10_000_cancelled_gets_lose_nothing(seed: int) -> None:
    """At any moment: before it waits, while it does, when it was just woken; by a cancellation
    or its own timeout; one or several at once; over a link that is reset meanwhile."""
    chance = random.Random(seed)
    async with (
        coordinator_in_loop() as address,
        behind(address) as (here, proxy),
        Peer(address) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        loop = asyncio.get_running_loop()
        got: list[int] = []
        put = cancelled = 0

        def note(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and task.exception() is None:
                got.append(task.result())

        while cancelled < 10_000:
            timeout = chance.choice([None, None, 0, 0.0001, 1])
            tasks = [
                loop.create_task(sub.get(timeout) if chance.random() < 0.7 else first(sub))
                for _ in range(chance.choice([1, 1, 1, 3]))
            ]
            for task in tasks:
                task.add_done_callback(note)
            for _ in range(chance.randrange(3)):
                pub.put(put)
                put += 1
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                await asyncio.sleep(0.001 * chance.random())
            if chance.random() < 0.002:
                await proxy.reset()
            for task in tasks:
                cancelled += task.cancel()
            await asyncio.wait(tasks)
        while len(got) < put:
            got.append(await sub.get(timeout=LONG))
        assert sorted(got) == list(range(put))
        assert sub.lost == 0
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0.01)


async def first(sub: Any) -> Any:
    return await anext(aiter(sub))


@pytest.mark.loop
async def test_cancelled_puts_flushes_and_closes_leave_the_pub_whole() -> None:
    """A blocking put that is cancelled has put its message or has not; the rest goes on. A close
    that nobody waits for any more ends as one that somebody does."""
    chance = random.Random(3)
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub = await there.sub("t", window=5_000)
        pub = await here.pub("t", overflow="block", buffer=5_000)
        await pub.wait_for_subscribers(1, timeout=LONG)
        got: list[int] = []

        async def take() -> None:
            async for value in sub:
                if value == -1:
                    return
                got.append(value)
                if chance.random() < 0.01:
                    await asyncio.sleep(0)

        taker = asyncio.create_task(take())
        done: list[int] = []
        cancelled: list[int] = []

        async def put(number: int) -> None:
            await pub.put(number)

        for number in range(0, 4_000, 4):
            tasks = {asyncio.create_task(put(number + n)): number + n for n in range(4)}
            waits = [
                asyncio.create_task(pub.flush()),
                asyncio.create_task(pub.wait_for_subscribers(2)),  # there is one
            ]
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            for task in (*tasks, waits[0]):
                if chance.random() < 0.5:
                    task.cancel()
            await asyncio.wait(tasks)
            assert not waits[1].done()
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            for task, n in tasks.items():
                (cancelled if task.cancelled() else done).append(n)
        await pub.put(-1)
        await asyncio.wait_for(taker, LONG)
        assert cancelled
        assert len(got) == len(set(got))
        assert set(done) <= set(got)
        assert sub.lost == 0
        assert not pub._publication.watchers
        assert not pub._publication._waiters
        late = asyncio.create_task(pub.wait_for_subscribers(2, timeout=LONG))
        async with there.sub("t"):
            await late
        await cancel_closes(pub, sub)


async def cancel_closes(pub: Any, sub: Any) -> None:
    """Close a Pub whose Sub does not take what is there, over and over, and wait for the last."""
    putting = [asyncio.ensure_future(pub.put([n, b"x" * 900])) for n in range(20)]
    await asyncio.sleep(0)
    assert not all(put.done() for put in putting)  # it has to wait for room, and for the Sub

    async def close() -> None:
        await pub.close(LONG)

    for turns in range(50):
        closing = asyncio.create_task(close())
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
    assert pub.closed
    with pytest.raises(Closed):
        pub.put("too late")
    closing = asyncio.create_task(close())
    for n in range(20):
        assert (await sub.get(timeout=LONG))[0] == n
    await asyncio.wait_for(closing, LONG)
    await asyncio.gather(*putting)
    await eventually(lambda: not sub.publishers)
    assert sub.lost == 0


class Interrupt(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


class Once:
    """In place of a function: does something else first, the next time it is called."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.first: Any = None

    def __call__(self, *args: Any) -> Any:
        first, self.first = self.first, None
        if first is not None:
            first()
        return self.function(*args)


def interrupt() -> None:
    raise Interrupt


@pytest.fixture
def clock() -> Iterator[Once]:
    """The clock that a Pub reads while it closes a batch."""
    clock = Once(time.time)
    with on_host(this_host()._replace(wall_clock=clock)):
        yield clock


def test_g3_an_interrupt_while_a_batch_is_closed_takes_nothing_with_it(
    coordinator: str, clock: Once
) -> None:
    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = there.sub("t"), here.pub("t")
        pub.wait_for_subscribers(1, timeout=LONG)
        put = 0
        for i in range(200):
            if i % 20 == 19:
                clock.first = interrupt
            try:
                pub.put([i, b"x" * 30_000])
                put += 1
            except Interrupt:
                pass
            clock.first = None
        pub.put(None)
        got = []
        while (value := sub.get(timeout=LONG)) is not None:
            got.append(value[0])
        assert put <= len(got) <= 200, "what was put arrives; what was interrupted may"
        assert got == sorted(set(got))
        assert sub.lost == 0


async def test_g3_an_interrupt_in_an_event_loop_takes_nothing_with_it(clock: Once) -> None:
    async with (
        coordinator_in_loop() as coordinator,
        Peer(coordinator) as here,
        Peer(coordinator) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        for i in range(3):
            pub.put(i)
        clock.first = interrupt
        with pytest.raises(Interrupt):
            pub._seal()
        assert [await sub.get(timeout=LONG) for _ in range(3)] == [0, 1, 2]


def test_an_interrupt_while_the_loop_is_woken_keeps_no_later_put_back(
    coordinator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = there.sub("t"), here.pub("t")
        pub.wait_for_subscribers(1, timeout=LONG)
        wake = Once(pub._wake)
        wake.first = interrupt
        monkeypatch.setattr(pub, "_wake", wake)
        with pytest.raises(Interrupt):
            pub.put("interrupted")
        pub.put("later")
        assert sub.get(timeout=LONG) == "later"


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("inner", [10, 100_000])
def test_a_signal_handler_puts_in_the_middle_of_a_put(
    coordinator: str, clock: Once, size: int, inner: int
) -> None:
    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = there.sub("t"), here.pub("t")
        pub.wait_for_subscribers(1, timeout=LONG)
        for i in range(20):
            clock.first = lambda: pub.put(["handler", b"y" * inner])  # called now
            pub.put([i, b"x" * size])
            pub.put([i, b"z" * 70_000])  # which closes the batch, too
        pub.put(None)
        got = []
        while (value := sub.get(timeout=LONG)) is not None:
            got.append(value[0])
        assert [i for i in got if i != "handler"] == [i for i in range(20) for _ in range(2)]
        assert got.count("handler") == 20
        assert sub.lost == 0


def test_a_thread_that_encodes_all_the_time_does_not_keep_back_what_it_put(
    coordinator: str,
) -> None:
    """It has the Pub's lock nearly always; the batch that it puts into is never full."""

    class Slow:
        def __reduce__(self) -> Any:
            time.sleep(0.005)
            return str, ("slow",)

    with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = there.sub("t", allow_pickle="anyone")
        pub = here.pub("t", codec="pickle")
        pub.wait_for_subscribers(1, timeout=LONG)
        over = threading.Event()

        def put() -> None:
            while not over.is_set():
                pub.put(Slow())

        thread = threading.Thread(target=put)
        thread.start()
        for _ in range(5):
            assert sub.get(timeout=LONG) == "slow"
        over.set()
        thread.join(LONG)
        assert pub._publication.log.next_seq < 500, "not when the batch was full"
