"""The turn: what is done when, and how often the loop is called for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest

from pubsub import EncodeError, Peer, WrongContext
from pubsub.coordinator.server import Coordinator
from pubsub.faces.asyncpub import FIRST_GRANT, AsyncPub
from pubsub.runtime.turn import TURN_BYTES, Turn
from tests.integration.support import (
    coordinator_in_loop,
    coordinator_in_thread,
    default_guard,
    run_python,
    with_little_stack,
)


class Source:
    """Stands for a Pub."""

    def __init__(self, journal: list[str], name: str) -> None:
        self._collect: Callable[[], None] = lambda: journal.append(name)

    def seal(self) -> None: ...

    def count(self) -> int:
        return 0

    def queued(self) -> None:
        return None

    def abandon(self, error: Exception) -> None: ...


async def test_what_is_due_is_done_once_at_the_end_of_the_turn() -> None:
    turn, journal = Turn(asyncio.get_running_loop(), "peer", 0.02), list[str]()
    assert turn.pending(Source(journal, "a"))
    assert not turn.pending(Source(journal, "b"))
    assert journal == []
    await asyncio.sleep(0)
    assert journal == ["a", "b"]
    assert turn.pending(Source(journal, "c"))


async def test_who_is_about_to_wait_has_it_done_at_once_and_only_once_in_a_turn() -> None:
    turn, journal = Turn(asyncio.get_running_loop(), "peer", 0.02), list[str]()
    turn.hasten()
    assert journal == []
    turn.pending(Source(journal, "a"))
    turn.hasten()
    assert journal == ["a"]
    turn.pending(Source(journal, "b"))
    turn.pending(Source(journal, "c"))
    turn.hasten()
    assert journal == ["a"], "what many do in one turn goes out together"
    await asyncio.sleep(0)
    assert journal == ["a", "b", "c"]
    turn.pending(Source(journal, "d"))
    turn.hasten()
    assert journal[-1] == "d"


async def test_only_what_a_single_pub_puts_in_a_turn_is_written_by_itself() -> None:
    turn = Turn(asyncio.get_running_loop(), "peer", 0.02)
    seen: list[bool] = []
    source = Source([], "a")
    source._collect = lambda: seen.append(turn.lone)
    turn.pending(source)
    turn.hasten()
    assert (seen, turn.lone) == ([True], False)
    turn.pending(source)
    turn.pending(source)
    await asyncio.sleep(0)
    assert (seen, turn.lone) == ([True, False, False], False)


async def test_what_other_threads_bring_takes_one_callback() -> None:
    loop = asyncio.get_running_loop()
    turn, journal = Turn(loop, "peer", 0.02), list[str]()
    calls = 0
    threadsafe = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return threadsafe(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]  # it will use it

    def bring() -> None:
        for i in range(100):
            turn.pending_elsewhere(Source(journal, str(i)))

    thread = threading.Thread(target=bring)
    thread.start()
    thread.join()  # the loop does not run meanwhile
    assert calls == 1
    await asyncio.sleep(0.001)
    assert journal == [str(i) for i in range(100)]
    turn.pending_elsewhere(Source(journal, "later"))
    assert calls == 2


async def test_a_call_that_was_interrupted_does_not_keep_the_next_from_calling() -> None:
    loop = asyncio.get_running_loop()
    turn, journal = Turn(loop, "peer", 0.02), list[str]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setattr(loop, "call_soon_threadsafe", interrupted)
        except AttributeError:
            pytest.skip("this loop's methods cannot be replaced")
        with pytest.raises(KeyboardInterrupt):
            turn.pending_elsewhere(Source(journal, "a"))
    turn.pending_elsewhere(Source(journal, "b"))
    await asyncio.sleep(0.001)
    assert journal == ["a", "b"]


class FailingLoop:
    """Stands for a loop: `fail` calls raise, as where the stack is too deep for them."""

    def __init__(self, fail: int) -> None:
        self.fail = fail
        self.calls: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[..., None], *args: Any, context: Any = None) -> None:
        if self.fail:
            self.fail -= 1
            raise RecursionError("maximum recursion depth exceeded")
        self.calls.append(lambda: call(*args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.call_soon(call, *args)

    def is_closed(self) -> bool:
        return False

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Writing:
    """Stands for a link."""

    def __init__(self, journal: list[str]) -> None:
        self.flush = lambda: journal.append("link")


@pytest.mark.parametrize("way", ["pending", "pending_elsewhere", "touch", "local"])
def test_g3_a_wake_up_that_raises_is_asked_for_again_by_the_next(way: str) -> None:
    loop, journal = FailingLoop(fail=1), list[str]()
    turn = Turn(cast(Any, loop), "peer", 0.02)
    turn.local.pump = lambda: journal.append("local")  # type: ignore[method-assign]
    ask: Callable[[], object] = {
        "pending": lambda: turn.pending(Source(journal, "pub")),
        "pending_elsewhere": lambda: turn.pending_elsewhere(Source(journal, "pub")),
        "touch": lambda: turn.touch(cast(Any, Writing(journal))),
        "local": turn._local_output,
    }[way]
    with pytest.raises(RecursionError):
        ask()
    ask()
    loop.run()
    assert journal
    journal.clear()
    ask()
    loop.run()
    assert len(journal) == 1, "and it goes on as before"


def test_g3_what_one_thread_cannot_ask_for_another_asks_for_itself() -> None:
    """While one thread asks for a call in vain, others rely on no call of its."""
    loop, journal = FailingLoop(fail=0), list[str]()
    turn = Turn(cast(Any, loop), "peer", 0.02)
    ask = loop.call_soon

    def meanwhile(call: Callable[..., None], *args: Any, context: Any = None) -> None:
        loop.call_soon_threadsafe = ask  # type: ignore[method-assign]  # the other thread's works
        turn.pending_elsewhere(Source(journal, "b"))
        raise MemoryError

    loop.call_soon_threadsafe = meanwhile  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        turn.pending_elsewhere(Source(journal, "a"))
    loop.run()
    assert "b" in journal


def test_g3_a_batch_that_cannot_be_closed_is_tried_again_and_holds_up_no_other() -> None:
    loop, journal = FailingLoop(fail=0), list[str]()
    turn = Turn(cast(Any, loop), "peer", 0.02)
    stumbling = Source(journal, "a")
    works = stumbling._collect

    def fails() -> None:
        stumbling._collect = works
        raise MemoryError

    stumbling._collect = fails
    turn.pending(stumbling)
    turn.pending(Source(journal, "b"))
    loop.run()
    assert journal == ["b"]
    loop.run()  # the timer
    loop.run()
    assert journal == ["b", "a"]

    def interrupted() -> None:
        stumbling._collect = works
        raise KeyboardInterrupt

    stumbling._collect = interrupted
    turn.pending(stumbling)
    turn.pending(Source(journal, "c"))
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.run()
    assert journal == ["b", "a", "a", "c"]


@pytest.mark.loop
@pytest.mark.parametrize("overflow", ["drop", "block"])
@pytest.mark.parametrize("size", [10, 60_000, 70_000])
async def test_g3_a_put_too_deep_in_the_stack_fails_alone(overflow: Any, size: int) -> None:
    """Whatever call of it the stack has no room for: what raises is not put, all else is."""
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, settle=0.0, guard=default_guard())
    at = str(await coordinator.start("127.0.0.1", 0))
    async with Peer(at) as peer, Peer(at) as other:
        sub = await other.sub("deep")
        pub = await AsyncPub("deep", peer=peer, overflow=overflow)
        await pub.wait_for_subscribers(1, timeout=30)
        put: list[int] = []
        numbers = iter(range(256))

        def one() -> None:
            number = next(numbers)
            pub.put(bytes([number]) * size)
            put.append(number)

        for room in range(60, 2, -1):
            with suppress(RecursionError, EncodeError):
                with_little_stack(room, one)
            if room % 3:
                await asyncio.sleep(0)
        one()
        assert 1 < len(put) < 58
        got = [(await sub.get(timeout=30))[0] for _ in put]
        assert got == put
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0)
        assert sub.lost == 0
    await coordinator.close()


@pytest.mark.loop
@pytest.mark.parametrize("size", [10, 70_000])
async def test_g3_a_batch_that_does_not_get_into_the_log_waits_on(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, settle=0.0, guard=default_guard())
    at = str(await coordinator.start("127.0.0.1", 0))
    async with Peer(at) as peer:
        pub, sub = await AsyncPub("t", peer=peer), await peer.sub("t")
        works = pub._publication.append

        def fails(*args: Any) -> Any:
            monkeypatch.setattr(pub._publication, "append", works)
            raise MemoryError

        monkeypatch.setattr(pub._publication, "append", fails)
        pub.put(b"1" * size)
        await asyncio.sleep(0)
        pub.put(b"2" * size)
        assert [(await sub.get(timeout=30))[:1] for _ in range(2)] == [b"1", b"2"]
        assert sub.lost == 0
    await coordinator.close()


def test_g3_what_belongs_to_one_loop_is_refused_in_another() -> None:
    """In the same thread: what is put there would wait until the first loop runs again."""
    with coordinator_in_thread() as coordinator:
        one, two = asyncio.new_event_loop(), asyncio.new_event_loop()

        async def make() -> tuple[Peer, AsyncPub, Any]:
            peer = Peer(coordinator.address)
            return peer, await peer.pub("t"), await peer.sub("t")

        peer, pub, sub = one.run_until_complete(make())
        pub.put(1)  # between two runs
        calls: dict[str, Callable[[], Any]] = {
            "put": lambda: pub.put(2),
            "put_many": lambda: pub.put_many([2]),
            "flush": lambda: pub.flush(1),
            "wait_for_subscribers": lambda: pub.wait_for_subscribers(1, 1),
            "await pub": lambda: pub.__await__().__next__(),
            "close": lambda: pub.close(),
            "get": lambda: sub.get(timeout=1),
            "get_many": lambda: sub.get_many(timeout=1),
            "async for": lambda: anext_(sub),
            "messages": lambda: anext_(sub.messages()),
            "await sub": lambda: sub.__await__().__next__(),
            "peer.pub": lambda: peer.pub("t"),
            "peer.sub": lambda: peer.sub("t"),
            "peer.close": lambda: peer.close(),
        }

        async def refused(call: Callable[[], Any]) -> str:
            with pytest.raises(WrongContext) as raised:
                await call()
            return str(raised.value)

        async def get() -> Any:
            return await sub.get(timeout=30)

        assert one.run_until_complete(get()) == 1
        for name, call in calls.items():
            error = two.run_until_complete(refused(call))
            assert "belongs to another event loop: use it there" in error, name
        pub.put(3)
        assert one.run_until_complete(get()) == 3
        assert sub.lost == 0
        one.run_until_complete(close(peer))
        for loop in (one, two):
            loop.close()


async def anext_(of: Any) -> Any:
    return await of.__aiter__().__anext__()


async def close(peer: Peer) -> None:
    await peer.close()


@pytest.mark.loop
def test_a_pub_of_a_loop_that_has_ended_is_refused() -> None:
    """Whether the Peer heard of its end, as of asyncio's own loops, or not."""
    with coordinator_in_thread() as coordinator:
        code = """
            import asyncio, os
            from pubsub import Closed, Peer, WrongContext

            try:
                from uvloop import new_event_loop
            except ImportError:
                from asyncio import new_event_loop

            async def make():
                peer = Peer()
                return peer, await peer.pub("t"), await peer.sub("t")

            async def use(call):
                return await call()

            loop = new_event_loop()
            peer, pub, sub = loop.run_until_complete(make())
            loop.close()
            for call in (lambda: pub.put(1), sub.get, pub.flush, lambda: peer.pub("t")):
                try:
                    asyncio.run(use(call))
                except (WrongContext, Closed) as error:
                    print(error, flush=True)
            os._exit(0)
        """
        said = run_python(code, PUBSUB_COORDINATOR=coordinator.address)
    assert said.count("has ended") == said.count("make a new one in the loop that runs now") == 4


@pytest.mark.loop
async def test_awaited_puts_on_many_topics_let_the_loop_run() -> None:
    """Each alone could fill its batch; together they may put `TURN_BYTES`, and twice as much where
    each was granted just more than it has put."""
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, settle=0.0, guard=default_guard())
    at = str(await coordinator.start("127.0.0.1", 0))
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(count)

    async with Peer(at) as peer:
        pubs = [AsyncPub(f"many/{i}", peer=peer, overflow="block") for i in range(100)]
        for pub in pubs:
            await pub
        loop.call_soon(count)
        most, before, put = 0, 0, 0
        for _ in range(40):
            for pub in pubs:
                for _ in range(10):
                    await pub.put(b"x" * 100)
                    put += 103
                    if turns != before:
                        before = turns
                        most, put = max(most, put), 0
        assert before > 3
        assert TURN_BYTES / 4 < most <= TURN_BYTES + 2 * FIRST_GRANT
    await coordinator.close()


@pytest.mark.loop
async def test_what_put_returns_says_little_at_a_prompt() -> None:
    async with coordinator_in_loop() as at, Peer(at, linger=0) as peer:
        sub = await peer.sub("one", window=1)
        pub = await AsyncPub("one", peer=peer, overflow="block", buffer=2_000)
        done = [pub.put(b"x" * size) for size in (1, 400, 1)] + [peer.pub("two").put_many([1])]
        assert {repr(one) for one in done} == {"<put: done>"}
        for _ in range(5):
            waits = pub.put(b"x" * 1_000)
        assert repr(waits) == "<put: waits for room>"
        asyncio.ensure_future(waits).cancel()
        assert repr(waits) == "<put: cancelled>"
        assert repr(sub.close()) == "<closed>"


@pytest.mark.loop
async def test_one_topic_alone_is_granted_its_whole_batch() -> None:
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, settle=0.0, guard=default_guard())
    at = str(await coordinator.start("127.0.0.1", 0))
    async with Peer(at) as peer:
        pub = await AsyncPub("one", peer=peer)
        slow = 0
        slowly = pub._slow

        def counted(*args: Any) -> Any:
            nonlocal slow
            slow += 1
            return slowly(*args)

        pub._slow = counted  # type: ignore[method-assign,assignment]  # how often is the question
        for _ in range(600):
            pub.put(b"x" * 100)
        assert slow == 1
        await asyncio.sleep(0)
        assert pub._publication.log.next_number == 1
    await coordinator.close()


async def test_a_sub_of_another_loop_is_refused_before_anything_is_written_there() -> None:
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, settle=0.0, guard=default_guard())
    at = str(await coordinator.start("127.0.0.1", 0))
    async with Peer(at) as peer:
        sub = await peer.sub("t")
        turn, journal = peer.runtime.turn, list[str]()
        turn.pending(Source(journal, "due"))

        refused: list[str] = []

        def elsewhere() -> None:
            try:
                asyncio.run(sub.get())
            except WrongContext as error:
                refused.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()  # the loop does not run meanwhile
        assert len(refused) == 1
        assert refused[0].startswith("Sub('t') belongs to the event loop of another thread: use it")
        assert journal == []
    await coordinator.close()
