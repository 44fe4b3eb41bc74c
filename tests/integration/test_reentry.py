"""What signal handlers, destructors and log handlers ask for in the middle of the work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from pubsub import Closed, Peer, WrongContext
from pubsub.peer import _LoopThread
from pubsub.reentry import interrupts_the_core
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
    run_python,
)

pytestmark = pytest.mark.loop


@pytest.fixture
async def coordinator() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


@pytest.fixture
def blocking() -> Iterator[Peer]:
    with coordinator_in_thread() as server, Peer(server.address) as peer:
        yield peer


class Interrupt(BaseException):
    """What a signal handler raises."""


@contextlib.contextmanager
def interrupting(function: str, what: Callable[[], object]) -> Iterator[None]:
    """Does `what` every third time that `function` begins in this thread, at most 20 times: there,
    Python looks for signals, and collects garbage."""
    calls = 0
    busy = False

    def trace(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls, busy
        code = frame.f_code
        if event == "call" and code.co_name == function and "pubsub" in code.co_filename:
            calls += 1
            if not busy and calls % 3 == 0 and calls <= 60:
                busy = True
                try:
                    what()
                finally:
                    busy = False

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("overflow", ["drop", "block"])
@pytest.mark.parametrize(
    "function", ["append", "__init__", "carry", "at", "_hold", "take", "ack", "pump", "receive"]
)
async def test_g1_g2_g3_a_put_in_the_middle_of_the_core_waits_for_its_turn(
    coordinator: str, function: str, overflow: str
) -> None:
    async with (
        Peer(coordinator, ack_delay=0.001) as here,
        Peer(coordinator, ack_delay=0.001) as there,
    ):
        subs = [await there.sub("t"), await here.sub("t")]
        pub = await here.pub("t", overflow=overflow)
        await pub.wait_for_subscribers(2, timeout=LONG)
        put: list[object] = []

        def handler() -> None:
            for value in ("x" * 70_000, "handler"):
                with contextlib.suppress(WrongContext):
                    pub.put(value)
                    put.append(value)

        got: list[list[Any]] = [[], []]

        async def read(sub: Any, into: list[Any]) -> None:
            while not into or into[-1] != "end":
                into.append(await sub.get(LONG))

        readers = [asyncio.ensure_future(read(*pair)) for pair in zip(subs, got, strict=True)]
        with interrupting(function, handler):
            for number in range(200):
                await pub.put([number, "y" * 2_000])
                await asyncio.sleep(0.0002)
        await pub.put("end")
        await asyncio.gather(*readers)
        assert put, "it was never interrupted there"
        for values, sub in zip(got, subs, strict=True):
            assert [value[0] for value in values if type(value) is list] == list(range(200))
            assert [value for value in values if type(value) is str] == [*put, "end"]
            assert sub.lost == 0


def test_who_interrupts_the_core_is_told_from_who_uses_it() -> None:
    assert not interrupts_the_core()
    core = {"__name__": "pubsub.core.log", "call": interrupts_the_core}
    exec("def step(): return call()", core)
    assert core["step"]()  # type: ignore[operator]
    face = {"__name__": "pubsub.pub", "call": interrupts_the_core}
    exec("def put(): return call()", face)
    assert not face["put"]()  # type: ignore[operator]


async def test_g6_what_is_put_at_once_goes_into_the_log_and_not_beside_it(
    coordinator: str,
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", buffer=3_000_000)
        await pub.wait_for_subscribers(1, timeout=LONG)
        for _ in range(100):  # in one turn of the loop
            pub.put(b"x" * 100_000)
            assert pub._ahead() <= 1_200_000
            assert pub._publication.log.size <= 3_000_000
        sub.close()


# --- puts that are cancelled ------------------------------------------------------------


async def test_g6_a_cancelled_put_is_forgotten_and_holds_up_nobody(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", overflow="block", buffer=1_000_000)
        await pub.wait_for_subscribers(1, timeout=LONG)
        for _ in range(9):
            await pub.put(b"x" * 100_000)
        waiting = [asyncio.ensure_future(pub.put(b"x" * 200_000)) for _ in range(4)]
        small = asyncio.ensure_future(pub.put("small"))
        await asyncio.sleep(0.05)
        assert not small.done()
        for put in waiting:
            put.cancel()
        await asyncio.wait_for(small, LONG)  # there was room for it all the time
        assert not pub._queue
        assert pub._queued_bytes == 0
        sub.close()


# --- the thread of the Peer -------------------------------------------------------------


def test_a_put_in_the_thread_of_its_peer_does_not_wait_for_it(blocking: Peer) -> None:
    """By a destructor or a log handler that happens to run there."""
    sub, pub = blocking.sub("t"), blocking.pub("t")
    blocking.call(lambda: [pub.put([i, b"x" * 50_000]) for i in range(100)])
    assert [sub.get(LONG)[0] for _ in range(100)] == list(range(100))


def test_a_put_waits_for_the_thread_of_its_peer_but_not_for_ever(blocking: Peer) -> None:
    """That may want what the caller holds: the lock of a log handler that publishes."""
    sub, pub = blocking.sub("t"), blocking.pub("t")
    held, done = threading.Lock(), threading.Event()

    def log_something() -> None:
        with held:
            done.set()

    with held:
        blocking.call_soon(log_something)
        for i in range(23):  # 1.15 MB: one put more than fits
            pub.put([i, b"x" * 50_000])
        assert not done.is_set()
    assert [sub.get(LONG)[0] for _ in range(23)] == list(range(23))


# --- what is interrupted ----------------------------------------------------------------


def test_an_interrupted_constructor_leaves_no_pub_behind(
    blocking: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Peer, function: Callable[..., Any]) -> None:
        self.call_soon(function)  # it is on its way, and nobody waits for it
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(Peer, "call", interrupted)
        with pytest.raises(Interrupt):
            blocking.pub("t")
    blocking.call(int)
    assert not blocking.runtime._pubs


@pytest.mark.parametrize("ends", ["close", "wait_for_subscribers"])
def test_g9_an_interrupted_close_ends_the_stream_all_the_same(
    blocking: Peer, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    def interrupted(self: _LoopThread, coroutine: Any) -> None:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            future.result(timeout=0.05)
        future.cancel()
        raise Interrupt

    sub = blocking.sub("t", window=1_000)
    pub = blocking.pub("t")
    pub.put_many([b"x" * 100_000] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(_LoopThread, "run", interrupted)
        with pytest.raises(Interrupt):
            pub.close() if ends == "close" else pub.wait_for_subscribers(5)
    if ends == "close":
        assert pub.closed
        deadline = time.monotonic() + LONG
        while blocking.runtime._pubs:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(Closed):
            pub.put(1)
    else:
        pub.put("on it goes")
        pub.close(linger=0)
    sub.close()


async def test_a_pub_belongs_to_the_thread_of_its_loop(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        pub = await peer.pub("t")

        def elsewhere() -> None:
            calls: list[Callable[[], Any]] = [
                lambda: pub.put(1),
                lambda: peer.pub("x"),
                lambda: peer.sub("x"),
            ]
            for call in calls:
                with pytest.raises(WrongContext, match="event loop of another thread"):
                    call()

        await asyncio.to_thread(elsewhere)


def test_who_comes_when_the_peer_is_being_closed_is_told_and_does_not_hang(
    blocking: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pub, closed = blocking.pub("t"), threading.Event()

    def descheduled(self: Peer) -> None:  # after it looked whether the Peer is closed
        closed.wait(LONG)

    monkeypatch.setattr(Peer, "refuse_in_put", descheduled)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(pub.wait_for_subscribers), pool.submit(blocking.pub, "x")]
        time.sleep(0.05)
        monkeypatch.undo()
        blocking.close()
        closed.set()
        for call in calls:
            with pytest.raises(Closed):
                call.result(LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_without_descriptors_leaves_the_child_nothing_of_the_parents() -> None:
    with coordinator_in_thread() as server:
        out = run_python(
            """
            import contextlib, os, resource, sys, warnings
            warnings.simplefilter("ignore")
            from pubsub import Peer, WrongContext
            peer = Peer(sys.argv[1], linger=0)
            sub, pub = peer.sub("t"), peer.pub("t")
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            taken = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            pid = os.fork()
            if not pid:
                for fd in taken:
                    os.close(fd)
                for call in (lambda: pub.put(1), lambda: sub.get(timeout=1)):
                    try:
                        call()
                    except WrongContext as error:
                        assert "fork" in str(error)
                    else:
                        os._exit(1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            pub.put("on it goes")
            print(sub.get(timeout=30))
            """,
            server.address,
        )
    assert out == "on it goes\n"


async def test_a_sub_that_is_closed_in_the_middle_of_the_core_leaves_it_in_its_turn(
    coordinator: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(coordinator) as here:
        pub, stays = await here.pub("t"), await here.sub("t")
        goes = [await here.sub("t") for _ in range(10)]
        with interrupting("enqueue", lambda: goes.pop().close() if goes else None):
            for number in range(60):
                await pub.put(number)
                await asyncio.sleep(0)
        assert not goes
        assert [await stays.get(LONG) for _ in range(60)] == list(range(60))
        await eventually(lambda: list(pub.subscribers) == [f"local#{stays._inbox.sub_id}"])
        assert not caplog.records
