"""The blocking face: the examples of Dask's old Pub and Sub, threads, and the wrong form."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, cast

import pytest

import pubsub.faces.process
from pubsub import (
    Closed,
    CoordinatorUnavailable,
    DecodeError,
    EncodeError,
    MessageTooLarge,
    Peer,
    Pub,
    Sub,
    TopicError,
    WrongContext,
)
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from tests.integration.support import LONG, coordinator_in_thread, free_port, with_little_stack


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with coordinator_in_thread() as coordinator:
        monkeypatch.setenv("PUBSUB_COORDINATOR", coordinator.address)
        yield coordinator.address
        peer = pubsub.faces.process._of_process
        if peer is not None:
            peer.close(linger=0)


def until(condition: Any) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_examples_of_dasks_docstring_run_as_they_stand(coordinator: str) -> None:
    pub = Pub("my-topic")
    sub = Sub("my-topic")
    pub.put([1, 2, 3])
    assert sub.get() == [1, 2, 3]
    for i in range(1000):
        pub.put(i)
    for i, msg in enumerate(sub):
        assert msg == i
        if i == 999:
            break
    assert list(pub.subscribers) == [f"local#{sub._inbox.sub_id}"]

    async def inside() -> None:
        pub = Pub("my-topic-too")
        sub = await Sub("my-topic-too")
        pub.put(123)
        assert await sub.get() == 123
        pub.put(124)
        async for msg in sub:
            assert msg == 124
            break

    asyncio.run(inside())


def test_two_blocking_peers_exchange_over_a_link(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub = there.sub("t")
        pub = here.pub("t")
        for i in range(5_000):
            pub.put(i)
        assert [sub.get(timeout=10) for _ in range(5_000)] == list(range(5_000))
        assert sub.lost == 0


def test_many_threads_put_on_one_pub(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub, pub = there.sub("t"), here.pub("t")

        def put(thread: int) -> None:
            for i in range(500):
                pub.put((thread, i))

        threads = [threading.Thread(target=put, args=(n,)) for n in range(32)]
        for thread in threads:
            thread.start()
        got = [sub.get(timeout=10) for _ in range(32 * 500)]
        for thread in threads:
            thread.join()
        for n in range(32):
            assert [i for thread, i in got if thread == n] == list(range(500))


def test_two_threads_share_what_one_sub_gets(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub, pub = there.sub("t"), here.pub("t")
        got: list[list[int]] = [[], []]

        def take(mine: list[int]) -> None:
            mine.extend(sub)

        threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
        for thread in threads:
            thread.start()
        for i in range(10_000):
            pub.put(i)
        until(lambda: sum(map(len, got)) == 10_000)
        sub.close()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert sorted(got[0] + got[1]) == list(range(10_000))


def test_g9_close_in_another_thread_ends_the_loop(coordinator: str) -> None:
    sub = Sub("t")
    ended = threading.Event()

    def take() -> None:
        for _ in sub:
            pass
        ended.set()

    threading.Thread(target=take, daemon=True).start()
    until(lambda: cast(BlockingSub, sub)._waiting)
    sub.close()
    assert ended.wait(LONG)


def test_block_makes_put_wait_until_there_is_room(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub = there.sub("t", window=10_000)
        pub = here.pub("t", overflow="block", buffer=50_000)
        done = threading.Event()

        def put() -> None:
            for i in range(20_000):
                pub.put(i)
            done.set()

        thread = threading.Thread(target=put)
        thread.start()
        until(lambda: cast(BlockingPub, pub)._queue)
        assert not done.is_set()
        assert pub._publication.log.size <= 50_000
        assert [sub.get(timeout=10) for _ in range(20_000)] == list(range(20_000))
        assert done.wait(LONG)
        thread.join()
        assert sub.lost == 0


def test_g8_a_put_that_fits_but_for_an_observer_waits_for_no_larger_one(coordinator: str) -> None:
    """The larger one, of another thread, needs room that a subscriber holds."""
    with Peer() as here, Peer() as there:
        observer = there.sub("t", window=1, observer=True)
        pub = cast(BlockingPub, here.pub("t", overflow="block", buffer=700_000))
        pub.wait_for_subscribers(1, timeout=LONG)
        value = bytes(70_000)  # alone in its batch
        for _ in range(4):
            pub.put(value)
        sub = there.sub("t", window=1)
        for _ in range(4):
            pub.put(value)
        until(lambda: pub._publication.log.next_seq == 8)
        assert observer.publishers
        larger = threading.Thread(target=pub.put, args=(bytes(500_000),))
        larger.start()
        until(lambda: pub._queue)
        time.sleep(0.1)  # it asks for its room, in vain
        assert pub._publication.log.start == 0
        smaller = threading.Thread(target=pub.put, args=(bytes(200_000),))
        smaller.start()
        smaller.join(LONG)
        assert not smaller.is_alive()
        assert larger.is_alive()
        sizes = [len(sub.get(timeout=LONG)) for _ in range(6)]
        larger.join(LONG)
        assert sizes == [70_000] * 4 + [200_000, 500_000]
        assert sub.lost == 0


@pytest.mark.parametrize("size", [10, 60_000, 70_000])
@pytest.mark.parametrize("overflow", ["drop", "block"])
def test_g3_a_put_too_deep_in_the_stack_fails_alone(
    coordinator: str, overflow: Any, size: int
) -> None:
    """Whatever call of it the stack has no room for: what raises is not put, all else is."""
    with Peer() as here, Peer() as there:
        sub, pub = there.sub("deep"), here.pub("deep", overflow=overflow)
        pub.wait_for_subscribers(1, timeout=LONG)
        put: list[int] = []
        numbers = iter(range(256))

        def one() -> None:
            number = next(numbers)
            pub.put(bytes([number]) * size)
            put.append(number)

        for room in range(60, 0, -1):
            with contextlib.suppress(RecursionError, EncodeError):
                with_little_stack(room, one)
            if room % 3:
                here._call(int)  # the loop's thread has taken it
        one()
        assert 1 < len(put) < 61
        assert [sub.get(timeout=LONG)[0] for _ in put] == put
        with pytest.raises(TimeoutError):
            sub.get(timeout=0)
        assert sub.lost == 0


class Meddler:
    """A value whose encoding does something else first."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        self.what()
        return (str, ("meddled",))


def test_a_put_in_the_middle_of_a_put_harms_neither(coordinator: str) -> None:
    """From a destructor or a signal handler, say: refused while a value is being encoded,
    and done where that is possible."""
    with Peer() as peer:
        pub = peer.pub("t", codec="pickle")
        sub = peer.sub("t", allow_pickle=True)
        with pytest.raises(WrongContext, match="from within another put"):
            pub.put(Meddler(lambda: pub.put("inner")))

        def meddle() -> None:
            with contextlib.suppress(WrongContext):
                pub.put("inner")

        pub.put("before")
        pub.put(Meddler(meddle))
        pub.put("after")
        assert [sub.get(timeout=10) for _ in range(3)] == ["before", "meddled", "after"]
        with pub._lock:  # as in a handler that interrupts a put between two of its steps
            pub.put("handler")
        assert sub.get(timeout=10) == "handler"


def interrupted(function: str, what: Callable[[], object]) -> Callable[..., Any]:
    """A trace function that does `what` once, where `function` is about to begin: there, Python
    looks for signals."""
    waiting = [what]

    def trace(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == function and waiting:
            waiting.pop()()

    return trace


@pytest.mark.parametrize("function", ["_default", "_slow", "_with_size", "_hand_over"])
@pytest.mark.parametrize("many", [False, True])
def test_a_signal_handler_that_puts_mixes_and_loses_nothing(
    coordinator: str, function: str, many: bool
) -> None:
    with Peer() as peer:
        pub, sub = peer.pub("t"), peer.sub("t")
        put: list[object] = []

        def handler() -> None:
            for value in ("x" * 70_000, "handler"):
                with contextlib.suppress(WrongContext):
                    pub.put(value)
                    put.append(value)

        values = [(number, "y" * 1_000) for number in range(200)]
        before = sys.gettrace()
        sys.settrace(interrupted(function, handler))
        try:
            if many:
                pub.put_many(values)
            else:
                for value in values:
                    pub.put(value)
        finally:
            sys.settrace(before)
        got = [sub.get(timeout=10) for _ in range(len(values) + len(put))]
        assert [value for value in got if type(value) is tuple] == values
        assert [value for value in got if type(value) is str] == put
        with pytest.raises(TimeoutError):
            sub.get(timeout=0.05)
        assert sub.lost == 0


def test_a_call_that_waits_is_refused_in_the_middle_of_a_put(coordinator: str) -> None:
    def meddle(*calls: Callable[[], object]) -> None:
        for call in calls:
            with pytest.raises(WrongContext, match="from within a put of the same Peer"):
                call()

    with Peer() as peer, Peer() as other:
        pub, sub = peer.pub("t", codec="pickle"), peer.sub("t", allow_pickle=True)
        calls = (pub.flush, peer.close, lambda: peer.sub("t"))
        pub.put(Meddler(lambda: meddle(*calls)))
        pub.put_many([Meddler(lambda: meddle(*calls))])
        pub.put(Meddler(lambda: other.sub("t").close()))  # another Peer's thread waits for nobody
        assert sub.get_many(3, timeout=LONG)
        pub.close()


def test_g9_a_close_in_the_middle_of_a_put_is_done_soon(coordinator: str) -> None:
    """By a destructor, say: the end would wait for that put, and it for the end."""
    with Peer() as peer:
        pub, sub = peer.pub("t", codec="pickle"), peer.sub("t", allow_pickle=True)
        pub.put("before")
        pub.put(Meddler(pub.close))
        assert [sub.get(timeout=10) for _ in range(2)] == ["before", "meddled"]
        until(lambda: not sub.publishers)
        assert pub.closed
        assert sub.lost == 0
        with pytest.raises(Closed):
            pub.put("too late")


def test_a_new_pub_looks_at_no_other(coordinator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4,000 of them, each one more took 4 ms to find that the caller puts on none."""
    asked: list[BlockingPub] = []

    def putting(self: BlockingPub) -> bool:
        asked.append(self)
        return False

    monkeypatch.setattr(BlockingPub, "_putting", putting)
    with Peer() as peer:
        others = {peer.pub(f"t/{number}") for number in range(20)}
        asked.clear()
        peer.pub("one/more").flush(LONG)
        peer.sub("t/*")
        assert not others & set(asked)


def test_a_pub_may_be_closed_in_the_thread_of_its_peer(coordinator: str) -> None:
    """By a destructor that the collector happens to run there."""
    with Peer() as peer:
        pub, sub = peer.pub("t"), peer.sub("t")
        pub.put(1)
        peer._call(pub.close)
        assert sub.get(timeout=10) == 1
        until(lambda: not sub.publishers)


def test_gaps_do_not_make_a_timeout_longer(coordinator: str) -> None:
    with Peer() as here, Peer(max_message=100_000) as there:
        sub, pub = there.sub("t"), here.pub("t")
        done = threading.Event()

        def put() -> None:
            while not done.wait(0.1):
                pub.put(b"x" * 300_000)  # a gap there

        thread = threading.Thread(target=put)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            sub.get(timeout=0.5)
        took = time.monotonic() - began
        done.set()
        thread.join()
        assert took < LONG / 2


def test_an_interrupt_while_a_value_is_encoded_loses_only_that_value(coordinator: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Peer() as peer:
        pub = peer.pub("t", codec="pickle")
        sub = peer.sub("t", allow_pickle=True)
        pub.put(1)
        with pytest.raises(KeyboardInterrupt):
            pub.put(Meddler(interrupt))
        pub.put(b"x" * 200_000)
        assert sub.get(timeout=10) == 1
        assert sub.get(timeout=10) == b"x" * 200_000
        assert sub.lost == 0


def test_flush_waits_for_receipt_and_says_who_is_behind(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub = there.sub("t", window=1_000)
        pub = here.pub("t")
        pub.put(1)
        pub.flush(timeout=10)
        assert not sub._inbox.empty
        for i in range(10):
            pub.put(b"x" * 100_000 + bytes([i]))
        with pytest.raises(TimeoutError, match=r"flush of 't': after 0\.05 s and .* behind"):
            pub.flush(timeout=0.05)


def test_a_flush_of_a_pub_that_is_closed_meanwhile_says_so(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub = there.sub("t", window=1_000)
        pub = here.pub("t")
        for _ in range(3):
            pub.put(b"x" * 100_000)
        assert sub.get(timeout=10) == b"x" * 100_000
        errors: list[Exception] = []

        def flush() -> None:
            try:
                pub.flush()
            except Closed as error:
                errors.append(error)

        thread = threading.Thread(target=flush)
        thread.start()
        until(lambda: pub._publication._waiters)
        pub.close(linger=0)
        thread.join()
        assert [str(error) for error in errors] == ["Pub('t') was closed before its flush was done"]


def test_every_close_of_a_pub_waits_for_the_one_end(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        sub = there.sub("t", window=1_000)
        pub = here.pub("t")
        pub.put(b"x" * 100_000)
        pub.put("end")
        first = threading.Thread(target=pub.close)
        first.start()
        until(lambda: pub.closed)
        second = threading.Thread(target=pub.close)
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert [sub.get(timeout=10) for _ in range(2)] == [b"x" * 100_000, "end"]
        first.join(LONG)
        second.join(LONG)
        assert not second.is_alive()


def test_wait_for_subscribers(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        pub = here.pub("t")
        with pytest.raises(TimeoutError, match=r"0 of 1 subscribers on 't' after 0\.01 s"):
            pub.wait_for_subscribers(1, timeout=0.01)
        subs = [there.sub("t"), there.sub("t")]
        pub.wait_for_subscribers(2, timeout=10)
        assert len(pub.subscribers) == len(subs)


def test_get_many_takes_what_is_there(coordinator: str) -> None:
    pub, sub = Pub("t"), Sub("t")
    pub.put_many(range(10))
    pub.flush(10)
    assert sub.get_many(4) == [0, 1, 2, 3]
    assert sub.get_many() == [4, 5, 6, 7, 8, 9]
    with pytest.raises(TimeoutError):
        sub.get_many(timeout=0)


def test_a_bad_value_is_refused_and_harms_no_other(coordinator: str) -> None:
    pub, sub = Pub("t"), Sub("t")
    pub.put(1)
    with pytest.raises(EncodeError, match="object"):
        pub.put({"a": object()})
    pub.put(2)
    assert [sub.get(timeout=10), sub.get(timeout=10)] == [1, 2]


def test_a_message_over_max_message_is_refused_and_harms_no_other(coordinator: str) -> None:
    with Peer(max_message=1_000) as here, Peer() as there:
        pub, sub = here.pub("t"), there.sub("t")
        pub.put(1)
        with pytest.raises(MessageTooLarge, match=r"max_message \(1,000 bytes\)"):
            pub.put(b"x" * 1_001)
        with pytest.raises(MessageTooLarge):
            pub.put(b"x" * 1_000_000)
        pub.put(b"y" * 990)
        pub.put(2)
        assert [sub.get(timeout=10) for _ in range(3)] == [1, b"y" * 990, 2]


def test_bad_topics_and_options_are_refused(coordinator: str) -> None:
    with pytest.raises(TopicError, match="topic 'a//b' has an empty segment"):
        Pub("a//b")
    with pytest.raises(TopicError):
        Pub("a/*")
    with pytest.raises(TopicError):
        Sub("sens*")
    with pytest.raises(ValueError, match="overflow 'wait' is neither"):
        Pub("t", overflow="wait")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codec 'json' is none of"):
        Pub("t", codec="json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window=0 is below 1"):
        Sub("t", window=0)
    with pytest.raises(TypeError, match="Peer has no setting 'lingr'"):
        Peer(lingr=1)
    with pytest.raises(ValueError, match="is not host:port"):
        Peer("nowhere")


def test_pickle_reaches_only_who_allows_it(coordinator: str) -> None:
    class_of_its_own = complex(1, 2), slice(1, 2)
    pub = Pub("t", codec="pickle")
    no, yes = Sub("t"), Sub("t", allow_pickle=True)
    pub.put(class_of_its_own)
    assert yes.get(timeout=10) == class_of_its_own
    with pytest.raises(DecodeError, match="allow_pickle=True"):
        no.get(timeout=10)
    with pytest.raises(TimeoutError):
        no.get(timeout=0.01)


def test_raw_passes_bytes_through(coordinator: str) -> None:
    pub, sub = Pub("t", codec="raw"), Sub("t")
    pub.put(b"\xff\x00")
    pub.put(memoryview(b"abc"))
    assert [sub.get(timeout=10), sub.get(timeout=10)] == [b"\xff\x00", b"abc"]
    with pytest.raises(EncodeError):
        pub.put("text")


def test_a_second_close_is_harmless_and_use_after_close_says_so(coordinator: str) -> None:
    pub, sub = Pub("t"), Sub("t")
    for _ in range(2):
        pub.close()
        sub.close()
    with pytest.raises(Closed, match=r"Pub\('t'\) is closed"):
        pub.put(1)
    with pytest.raises(Closed):
        pub.flush()
    with pytest.raises(Closed, match=r"Sub\('t'\) is closed"):
        sub.get(timeout=1)
    assert list(sub) == []
    assert "closed" in repr(pub)
    assert "closed" in repr(sub)
    peer = Peer()
    peer.close()
    peer.close()
    with pytest.raises(Closed, match="this Peer is closed"):
        peer.pub("t")


def test_what_says_again_that_it_is_closed_keeps_no_more_each_time(coordinator: str) -> None:
    """A traceback that grew would keep the frames of all who have called, and what they had."""
    with Peer(coordinator) as peer:
        pub, sub = peer.pub("t"), peer.sub("t")
        pub.close()
        sub.close()
    for call in (sub.get, partial(pub.put, 1), partial(peer.pub, "t")):
        lengths = []
        for _ in range(3):
            with pytest.raises(Closed) as caught:
                call()
            lengths.append(len(caught.traceback))
        assert lengths[0] == lengths[2]


def test_the_blocking_form_in_a_loop_names_the_right_one(coordinator: str) -> None:
    pub, sub = Pub("t"), Sub("t")

    async def inside() -> None:
        with pytest.raises(WrongContext, match="inside the loop"):
            sub.get(timeout=1)
        with pytest.raises(WrongContext, match="inside the loop"):
            pub.flush()
        with pytest.raises(WrongContext, match="iterate it by `for`"):
            async for _ in sub:
                pass
        with pytest.raises(WrongContext):
            await sub
        pub.put("a plain put is fine")

    asyncio.run(inside())
    assert sub.get(timeout=10) == "a plain put is fine"


def test_the_async_form_names_the_right_one(coordinator: str) -> None:
    async def inside() -> tuple[Any, Any]:
        pub, sub = Pub("t"), Sub("t")
        with pytest.raises(WrongContext, match="`async for`"):
            for _ in sub:
                pass
        with pytest.raises(WrongContext, match="`async with`"), sub:
            pass
        with pytest.raises(WrongContext, match="`async with`"), pub:
            pass
        with pytest.raises(WrongContext, match="`async with`"), Peer():
            pass
        await asyncio.gather(pub, sub)
        return pub, sub

    pub, _ = asyncio.run(inside())
    with pytest.raises((WrongContext, Closed)):
        pub.put(1)


def test_a_dropped_sub_unsubscribes_and_a_dropped_pub_ends(coordinator: str) -> None:
    with Peer() as here, Peer() as there:
        subs = [there.sub("t")]
        pub = here.pub("t")
        pub.wait_for_subscribers(1, timeout=10)
        pub.put(1)
        del pub
        gc.collect()
        assert subs[0].get(timeout=10) == 1
        until(lambda: not subs[0].publishers)
        pub = here.pub("t")
        pub.wait_for_subscribers(1, timeout=10)
        subs.clear()
        gc.collect()
        until(lambda: not pub.subscribers)


def test_no_coordinator_is_said_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with Peer(f"127.0.0.1:{port}", connect_timeout=1.0) as peer:
        with pytest.raises(
            CoordinatorUnavailable, match=rf"127\.0\.0\.1:{port}: nothing listens there"
        ) as caught:
            peer.sub("t")
        assert caught.value.addresses == (f"127.0.0.1:{port}",)
        with pytest.raises(CoordinatorUnavailable, match="pubsubd coordinator"):
            peer.pub("t")
