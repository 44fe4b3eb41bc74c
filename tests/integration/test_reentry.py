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

from pubsub import Closed, Peer, Pub, Sub, WrongContext
from pubsub.runtime.thread import LoopThread
from pubsub.support.reentry import interrupts_the_core
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
    run_python,
)
from tests.test_layers import layer_of, sources

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


@pytest.mark.parametrize("module", sorted(sources()))
def test_who_interrupts_the_core_is_told_from_who_uses_it(module: str) -> None:
    """By where the modules lie: none that an interrupt must not enter twice is left out."""
    code = {"__name__": module, "call": interrupts_the_core}
    exec("def step(): return call()", code)
    inner = layer_of(module) in ("runtime", "links", "core", "wire")
    assert code["step"]() is (inner and "." in module.removeprefix("pubsub."))  # type: ignore[operator]


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


# --- constructors -----------------------------------------------------------------------


@pytest.mark.parametrize("function", ["add_sub", "join", "attach", "enqueue", "connect"])
async def test_nothing_is_made_in_the_middle_of_the_core(
    coordinator: str, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    """Who loops over the tables there goes on, and nothing half made is left for the end."""
    async with Peer(coordinator) as peer:
        pubs = [await peer.pub(f"t/{number}") for number in range(3)]
        makers: list[Callable[[], object]] = [
            lambda: peer.pub("t/x"),
            lambda: peer.sub("t/*"),
            lambda: Pub("t/x"),
            lambda: Sub("t/*"),
            lambda: Peer(coordinator),
        ]
        told: list[str] = []

        def handler() -> None:
            for make in makers:
                with pytest.raises(WrongContext, match="flag") as caught:
                    make()
                told.append(str(caught.value))

        with interrupting(function, handler):
            subs = [peer.sub("t/*") for _ in range(6)]
            for pub in pubs:
                await pub.put(1)
        assert told, "it was never interrupted there"
        assert len(peer.runtime.pubs) == 3
        assert len(peer.runtime.subs) == 6
        for sub in subs:
            assert [await sub.get(LONG) for _ in pubs] == [1, 1, 1]
    assert not caplog.records


def test_nothing_is_made_in_the_thread_of_a_peer(blocking: Peer) -> None:
    """By a destructor or a log handler that happens to run there: nobody would close it."""
    for make in (lambda: Pub("t"), lambda: Sub("t"), Peer, lambda: blocking.pub("t")):
        with pytest.raises(WrongContext, match="in the middle of the work of a Peer"):
            blocking._call(make)


@pytest.mark.parametrize("face", ["blocking", "async"])
def test_who_interrupts_the_making_of_the_default_peer_is_told(face: str) -> None:
    with coordinator_in_thread() as server:
        out = run_python(
            """
            import asyncio, faulthandler, signal, sys
            import pubsub.faces.peer
            from pubsub import Pub, Sub, WrongContext, connect
            faulthandler.dump_traceback_later(20, exit=True)
            def handler(*_):
                for make in (Pub, Sub, lambda topic: connect("head:7700")):
                    try:
                        make("t")
                    except WrongContext as error:
                        print("is being made at this moment" in str(error))
            signal.signal(signal.SIGUSR1, handler)
            class Runtime(pubsub.faces.peer.Runtime):
                def __init__(self, *args, **options):
                    signal.raise_signal(signal.SIGUSR1)
                    super().__init__(*args, **options)
            pubsub.faces.peer.Runtime = Runtime
            def blocking():
                sub, pub = Sub("t"), Pub("t")
                pub.put("on it goes")
                print(sub.get(timeout=15))
            async def main():
                sub, pub = await Sub("t"), await Pub("t")
                pub.put("on it goes")
                print(await sub.get(timeout=15))
            blocking() if sys.argv[1] == "blocking" else asyncio.run(main())
            """,
            face,
            PUBSUB_COORDINATOR=server.address,
        )
    assert out == "True\nTrue\nTrue\non it goes\n"


def test_an_interrupted_making_of_a_peer_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with coordinator_in_thread() as server:
        outside = set(threading.enumerate())
        monkeypatch.setattr("pubsub.faces.peer.Runtime.start", lambda self: _interrupt())
        with pytest.raises(Interrupt):
            Peer(server.address)
        assert set(threading.enumerate()) == outside
    assert set(threading.enumerate()) == before


def _interrupt() -> None:
    raise Interrupt


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", ["pub", "sub"])
async def test_an_interrupted_constructor_in_an_event_loop_leaves_nothing(
    coordinator: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A Sub that nobody has would take nothing, and every Pub with ``overflow="block"`` wait for
    it."""
    async with Peer(coordinator) as peer:
        others = await peer.pub("t"), await peer.sub("t")
        before = set(peer.runtime.pubs), set(peer.runtime.subs)
        number, cursors = 0, len(others[0].subscribers)
        files = ("runtime.py", "pub.py", "sub.py", "face.py", "local.py")
        spared = ("undo", "end_pub", "close_sub", "_seal")  # a batch has a test of its own
        while True:
            left = number

            def trace(frame: FrameType, event: str, arg: object) -> Any:
                nonlocal left
                if not frame.f_code.co_filename.endswith(files):
                    return None
                if event == "line" and frame.f_code.co_name not in spared:
                    left -= 1
                    if left == -1:
                        raise Interrupt
                return trace

            made, tracing = None, sys.gettrace()
            sys.settrace(trace)
            try:
                made = peer.pub("t") if kind == "pub" else peer.sub("t")
            except Interrupt:
                pass
            finally:
                sys.settrace(tracing)
            if made is not None:
                await made.close()
            assert (set(peer.runtime.pubs), set(peer.runtime.subs)) == before, number
            assert len(others[0].subscribers) == cursors, number
            await others[0].put(number)
            assert await others[1].get(LONG) == number
            if made is not None:
                break
            number += 1
        assert number > 20
    assert not caplog.records


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", ["pub", "sub"])
async def test_what_is_left_half_made_stops_no_other(
    coordinator: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where the undoing is interrupted, too, as by a second Ctrl-C."""
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        await there.pub("t")
        tell = here.runtime._tell

        def tell_and_interrupt(message: Any) -> None:
            tell(message)
            raise Interrupt

        await here.pub("other")
        with monkeypatch.context() as patch:
            patch.setattr(here.runtime, "_tell", tell_and_interrupt)
            patch.setattr(here.runtime, "undo", lambda made_for: _interrupt())
            with pytest.raises(Interrupt):
                here.pub("t") if kind == "pub" else here.sub("t")
        pub, sub = await here.pub("u"), await there.sub("u")
        await pub.put(1)
        assert await sub.get(LONG) == 1
    assert not caplog.records


# --- the end ----------------------------------------------------------------------------


async def test_g9_one_that_raises_at_the_end_of_its_peer_stops_no_other(
    coordinator: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Peer(coordinator) as there:
        here = Peer(coordinator)
        for broken in (await here.pub("t"), await here.sub("t")):
            monkeypatch.setattr(broken, "_abandon", lambda error: 1 / 0)
        bad = await here.pub("t")
        monkeypatch.setattr(bad, "_queued", lambda: 1 / 0)
        pub, sub = await here.pub("t"), await there.sub("t")
        ours = await here.sub("t")
        await pub.wait_for_subscribers(2, timeout=LONG)
        pub.put_many(range(1_000))
        try:
            await here.close()
        finally:
            for server in here.runtime.doors.servers.values():  # else a loop might never close
                server.close()
        assert [await sub.get(LONG) for _ in range(1_000)] == list(range(1_000))
        assert ours.closed
        assert pub.closed
        assert not here.runtime.pubs
        assert not here.runtime.subs
    raised = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert raised == [ZeroDivisionError] * 3


@pytest.mark.parametrize("what", ["get", "for", "messages"])
async def test_a_sub_that_is_closed_in_another_thread_ends_its_waits_at_once(
    coordinator: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with Peer(coordinator) as peer:
        sub = await peer.sub("t")

        async def wait() -> None:
            if what == "get":
                with pytest.raises(Closed):
                    await sub.get()
            else:
                assert not [_ async for _ in (sub if what == "for" else sub.messages())]

        waiting = asyncio.ensure_future(wait())
        await eventually(lambda: sub._waiting)
        woken: list[int] = []
        wake = sub._wake

        def watched() -> None:
            woken.append(threading.get_ident())
            wake()

        monkeypatch.setattr(sub, "_wake", watched)
        closing = threading.Thread(target=sub.close)
        closing.start()
        await asyncio.wait_for(waiting, LONG)
        assert set(woken) == {threading.get_ident()}, "from there, it wakes nobody"
        assert sub.closed
        closing.join()


@pytest.mark.parametrize("what", ["pub", "sub", "peer"])
async def test_g9_a_close_in_another_event_loop_waits_for_the_end(
    coordinator: str, what: str
) -> None:
    async with Peer(coordinator) as there, Peer(coordinator) as here:
        got, pub, sub = await there.sub("t"), await here.pub("t"), await here.sub("t")
        await pub.wait_for_subscribers(2, timeout=LONG)
        pub.put_many(range(100))
        one: Any = {"pub": pub, "sub": sub, "peer": here}[what]
        ended: list[bool] = []

        async def end() -> None:
            await one.close()
            known = here.runtime.pubs if what == "pub" else here.runtime.subs
            ended.append(one.closed and (what == "peer" or not known))

        thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(end(), LONG)))
        thread.start()
        await eventually(lambda: not thread.is_alive())
        assert ended == [True]
        assert [await got.get(LONG) for _ in range(100)] == list(range(100))


async def test_g3_a_pub_that_is_closed_in_the_middle_of_the_core_ends_in_its_turn(
    coordinator: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(coordinator) as here:
        pub, sub = await here.pub("t"), await here.sub("t")
        goes = [await here.pub("t") for _ in range(10)]

        def handler() -> None:
            if goes:
                goes[-1].put("last")
                goes.pop().close()

        with interrupting("append", handler):
            for number in range(60):
                await pub.put(number)
                await asyncio.sleep(0)
        assert not goes
        got = [await sub.get(LONG) for _ in range(70)]
        assert [value for value in got if value != "last"] == list(range(60))
        await eventually(lambda: len(here.runtime.pubs) == 1)
        assert sub.lost == 0
    assert not caplog.records


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
    blocking._call_soon(lambda: [pub.put([i, b"x" * 50_000]) for i in range(100)])
    assert [sub.get(LONG)[0] for _ in range(100)] == list(range(100))


def test_a_put_waits_for_the_thread_of_its_peer_but_not_for_ever(blocking: Peer) -> None:
    """That may want what the caller holds: the lock of a log handler that publishes."""
    sub, pub = blocking.sub("t"), blocking.pub("t")
    held, done = threading.Lock(), threading.Event()

    def log_something() -> None:
        with held:
            done.set()

    with held:
        blocking._call_soon(log_something)
        for i in range(23):  # 1.15 MB: one put more than fits
            pub.put([i, b"x" * 50_000])
        assert not done.is_set()
    assert [sub.get(LONG)[0] for _ in range(23)] == list(range(23))


# --- what is interrupted ----------------------------------------------------------------


def test_an_interrupted_constructor_leaves_no_pub_behind(
    blocking: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Peer, function: Callable[..., Any], *args: Any) -> None:
        self._call_soon(function, *args)  # it is on its way, and nobody waits for it
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(Peer, "_call", interrupted)
        with pytest.raises(Interrupt):
            blocking.pub("t")
    blocking._call(int)
    assert not blocking.runtime.pubs


@pytest.mark.parametrize("ends", ["close", "wait_for_subscribers"])
def test_g9_an_interrupted_close_ends_the_stream_all_the_same(
    blocking: Peer, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    def interrupted(self: LoopThread, coroutine: Any) -> None:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            future.result(timeout=0.05)
        future.cancel()
        raise Interrupt

    sub = blocking.sub("t", window=1_000)
    pub = blocking.pub("t")
    pub.put_many([b"x" * 100_000] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(LoopThread, "run", interrupted)
        with pytest.raises(Interrupt):
            pub.close() if ends == "close" else pub.wait_for_subscribers(5)
    if ends == "close":
        assert pub.closed
        deadline = time.monotonic() + LONG
        while blocking.runtime.pubs:
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

    monkeypatch.setattr(Peer, "_refuse_inside", descheduled)
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
