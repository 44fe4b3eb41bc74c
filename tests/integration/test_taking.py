"""What interrupts whoever takes from a Sub, and closes or uses the Sub meanwhile.

Python runs signal handlers, and other threads, at certain moments: after a call, at the begin of a
function and at the end of a loop's turn. `at` does something at one of these moments, and the tests
go through all of them, one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import itertools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from math import nan
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import pubsub
from pubsub import Closed, Message, Peer, WrongContext
from pubsub.core.stream import Stream
from tests.integration.support import LONG, coordinator_in_loop, coordinator_in_thread

HERE = Path(pubsub.__file__).parent
TAKING = {
    *(
        str(HERE / f"faces/{name}.py")
        for name in ("face", "message", "sub", "asyncsub", "blockingsub")
    ),
    *(str(HERE / f"core/{name}.py") for name in ("inbox", "stream", "window")),
    *(str(HERE / f"codec/{name}.py") for name in ("codecs", "decoder", "encoder")),
}
assert all(map(os.path.exists, TAKING))
ON_ITS_WAY = ("get", "get_many", "_event", "message_of", "messages", "_each_event")
"""Where one message may be in the hands of functions that an interrupt ends."""
pytestmark = pytest.mark.usefixtures("uncollected")
KEEP = pytest.mark.parametrize("keep", ["all", "latest"])


class Interrupt(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


def interrupt() -> None:
    raise Interrupt


class Moment:
    """The moment at which something is done, in the thread that made this.

    Attributes:
        where: the function that it came in; None: it never came.
    """

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self.where: str | None = None
        self._left = number
        self._action = action
        self._thread = threading.get_ident()
        self._before: dict[FrameType, str] = {}  # the last operation of each frame

    def _here(self, code: CodeType) -> None:
        if code.co_filename in TAKING and threading.get_ident() == self._thread:
            self._left -= 1
            if self._left < 0 and self.where is None:
                self.where = code.co_name
                self._action()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Have it come."""
        monitoring: Any = getattr(sys, "monitoring", None)
        if monitoring is None:
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(before)
                self._before.clear()  # it keeps alive what frames refer to
            return
        tool, events = 4, monitoring.events  # from Python 3.12
        callbacks = {
            events.PY_START: lambda code, offset: self._here(code),
            events.C_RETURN: lambda code, offset, function, argument: self._here(code),
            events.JUMP: lambda code, offset, to: self._here(code) if to < offset else None,
        }
        monitoring.use_tool_id(tool, "moments")
        try:
            for event, callback in callbacks.items():
                monitoring.register_callback(tool, event, callback)
            monitoring.set_events(tool, events.PY_START | events.CALL | events.JUMP)
            yield
        finally:
            monitoring.set_events(tool, 0)
            for event in callbacks:
                monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in TAKING:
            return None
        if event == "call":
            frame.f_trace_opcodes = True
        elif event == "opcode":
            before = self._before.get(frame, "RESUME")
            self._before[frame] = operations(frame.f_code)[frame.f_lasti]
            if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                self._here(frame.f_code)
        elif event == "return":
            self._before.pop(frame, None)
        return self._trace


_operations: dict[CodeType, dict[int, str]] = {}


def operations(code: CodeType) -> dict[int, str]:
    if code not in _operations:
        _operations[code] = {one.offset: one.opname for one in dis.get_instructions(code)}
    return _operations[code]


@contextmanager
def at(number: int, action: Callable[[], object]) -> Iterator[Moment]:
    """Do this at that moment of what follows."""
    moment = Moment(number, action)
    with moment.watch():
        yield moment


def in_a_thread(action: Callable[[], object]) -> Callable[[], None]:
    """Do it in another thread, at this moment, and all of it."""

    def run() -> None:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive(), "it waits for who waits for it"

    return run


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with coordinator_in_thread() as coordinator, Peer(coordinator.address, linger=0) as peer:
        yield peer


class Rest:
    """What a Sub still has."""

    def __init__(self, sub: Any) -> None:
        self.values: list[Any] = []
        try:
            while True:
                self.values.append(sub.get(timeout=0))
        except (TimeoutError, Closed):
            pass


FORMS: dict[str, Callable[[Any], list[int]]] = {
    "get": lambda sub: [sub.get(timeout=LONG)],
    "for": lambda sub: [next(iter(sub))],
    "messages": lambda sub: [next(one for one in sub.messages() if type(one) is Message).value],
    "get_many": lambda sub: sub.get_many(100, timeout=LONG),
}
FORM = pytest.mark.parametrize("form", FORMS)


def feed(peer: Peer, sub: Any, pub: Any, count: int) -> None:
    """Three batches, which wait in the inbox; of tuples, which call Python while they decode."""
    for first in range(0, count, 3):
        pub.put_many([(i,) for i in range(first, first + 3)])
        peer._call(pub._seal)
        peer._call(peer.runtime.turn.run)


@FORM
def test_g3_an_interrupt_of_who_takes_takes_nothing_with_it(peer: Peer, form: str) -> None:
    """But the one message that is on its way to the caller; what `get_many` had counts as lost."""
    number = 0
    while True:
        sub, pub = peer.sub("t"), peer.pub("t")
        feed(peer, sub, pub, 9)
        got: list[Any] = []
        with at(number, interrupt) as moment:
            try:
                got += FORMS[form](sub)
            except Interrupt:
                pass
        assert not sub._taking._is_owned(), moment.where
        got += Rest(sub).values
        values = [i for (i,) in got]
        assert values == sorted(set(values))
        missing = 9 - len(values) - sub.lost
        on_its_way = moment.where in ON_ITS_WAY
        assert missing <= on_its_way, moment.where
        if form != "get_many":
            assert sub.lost == 0, moment.where
        until_acknowledged(peer, pub)
        sub.close()
        pub.close(linger=0)
        if moment.where is None:
            break
        number += 1
    assert number > 40


class Alarm(Exception):
    """What the user's signal handler raises: an error like those of values that are broken."""


def alarm() -> None:
    raise Alarm


@pytest.mark.parametrize("form", ["get", "for"])
def test_g3_an_exception_of_a_signal_handler_while_messages_are_decoded_is_no_fault_of_theirs(
    peer: Peer, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    number = 0
    while True:
        sub, pub = peer.sub("t"), peer.pub("t")
        feed(peer, sub, pub, 9)
        got: list[Any] = []
        raised = False
        with at(number, alarm) as moment:
            try:
                got += FORMS[form](sub)
            except Alarm:
                raised = True
        assert raised == (moment.where is not None), moment.where
        got += Rest(sub).values
        missing = 9 - len(got)
        assert missing <= (moment.where in ON_ITS_WAY)
        assert sub.lost == 0
        sub.close()
        pub.close(linger=0)
        if moment.where is None:
            break
        number += 1
    assert number > 40
    assert not caplog.records


def test_g3_a_signal_handler_raises_while_a_batch_with_a_broken_message_is_decoded(
    peer: Peer,
) -> None:
    """The others are delivered, and the broken one alone is lost."""

    class Broken:
        def __reduce__(self) -> Any:
            return int, ("broken",)

    number = 0
    while True:
        sub, pub = peer.sub("t", allow_pickle=True), peer.pub("t", codec="pickle")
        pub.put_many([(0,), Broken(), (2,)])
        peer._call(pub._seal)
        peer._call(peer.runtime.turn.run)
        with at(number, alarm) as moment, contextlib.suppress(Alarm):
            sub._refill(0)
        assert Rest(sub).values == [(0,), (2,)], moment.where
        assert sub.lost == 1
        sub.close()
        pub.close(linger=0)
        if moment.where is None:
            break
        number += 1
    assert number > 40


@pytest.mark.parametrize("timeout", [1e10, float("inf")])
async def test_a_timeout_may_be_longer_than_any_clock_lasts(peer: Peer, timeout: float) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as mine:
        sub, pub = await mine.sub("t"), await mine.pub("t")
        waiting = asyncio.ensure_future(sub.get(timeout=timeout))
        await asyncio.sleep(0)
        pub.put(1)
        assert await asyncio.wait_for(waiting, LONG) == 1

    def block() -> None:
        sub, pub = peer.sub("t"), peer.pub("t")
        thread = threading.Timer(0.05, pub.put, [1])
        thread.start()
        assert sub.get(timeout=timeout) == 1
        sub.close()
        pub.close()

    await asyncio.to_thread(block)


BAD_TAKES: list[tuple[str, tuple[Any, ...], type[Exception]]] = [
    *(("get_many", (max,), TypeError) for max in (2.5, None, "3", True)),
    *(("get_many", (max,), ValueError) for max in (0, -1)),
    *((call, args, TypeError) for call, args in (("get", ("5",)), ("get_many", (3, "5")))),
    *((call, args, ValueError) for call, args in (("get", (nan,)), ("get_many", (3, nan)))),
    ("get", (True,), TypeError),
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("call", "args", "error"), BAD_TAKES)
async def test_g3_a_wrong_argument_takes_nothing(
    peer: Peer, call: str, args: tuple[Any, ...], error: type[Exception], begun: bool
) -> None:
    """Whether the messages wait in the inbox, or some of their batch were taken."""

    def block() -> None:
        sub, pub = peer.sub("t"), peer.pub("t")
        pub.put_many(range(4))
        pub.flush(LONG)
        taken = [sub.get(timeout=LONG)] if begun else []
        with pytest.raises(error, match=r"^(max|timeout)="):
            getattr(sub, call)(*args)
        assert taken + sub.get_many(np.int64(9), timeout=Fraction(LONG)) == [0, 1, 2, 3]
        assert sub.lost == 0
        sub.close()
        pub.close()

    await asyncio.to_thread(block)
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as mine:
        sub, pub = await mine.sub("t"), await mine.pub("t")
        await pub.put_many(range(4))
        await pub.flush(LONG)
        taken = [await sub.get(timeout=LONG)] if begun else []
        with pytest.raises(error, match=r"^(max|timeout)="):
            await getattr(sub, call)(*args)
        assert taken + await sub.get_many(np.int64(9), timeout=Fraction(LONG)) == [0, 1, 2, 3]
        assert sub.lost == 0


async def test_g3_what_an_interrupted_get_many_had_gathered_counts_in_an_event_loop() -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        pub.put_many([1, 2])
        await pub.flush(LONG)
        pub.put_many([3, 4])
        await pub.flush(LONG)
        advance, batches = sub._advance, iter(range(2))

        def interrupted() -> bool:
            if next(batches) == 1:
                sub._advance = advance
                raise KeyboardInterrupt
            done: bool = advance()
            return done

        sub._advance = interrupted
        with pytest.raises(KeyboardInterrupt):
            # not awaited: an event loop is not to be told of it
            sub.get_many(10, timeout=0).send(None)
        assert sub.lost == 2
        assert await sub.get_many(10, timeout=LONG) == [3, 4]


def until_acknowledged(peer: Peer, pub: Any) -> None:
    """An interrupt must not have stopped the acknowledgements."""
    pub.flush(LONG)
    peer._call(peer.runtime.turn._ack_now)
    [cursor] = pub.subscribers.values()
    assert cursor["lag"] == 0


@pytest.mark.parametrize("form", ["get", "for", "messages"])
async def test_g3_an_interrupt_of_who_takes_in_an_event_loop_takes_nothing_with_it(
    form: str,
) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as peer:
        number = 0
        while True:
            sub, pub = await peer.sub("t"), await peer.pub("t")
            for first in range(0, 9, 3):
                pub.put_many([(i,) for i in range(first, first + 3)])
                pub._seal()
            peer.runtime.turn.run()
            got = []
            with at(number, interrupt) as moment:
                try:
                    if form == "get":
                        got.append(await sub.get(timeout=LONG))
                    elif form == "for":
                        got.append(await anext(aiter(sub)))
                    else:
                        got.append((await anext(sub.messages())).value)
                except Interrupt:
                    pass
            while len(got) < 9:
                try:
                    got.append(await sub.get(timeout=0.01))
                except TimeoutError:
                    break
            missing = 9 - len(got)
            on_its_way = moment.where in ON_ITS_WAY
            assert missing <= on_its_way, moment.where
            assert got == sorted(set(got))
            assert sub.lost == 0
            await sub.close()
            await pub.close(linger=0)
            if moment.where is None:
                break
            number += 1
        assert number > 20


@FORM
@KEEP
@pytest.mark.parametrize("how", ["by a signal handler", "by another thread"])
def test_g3_a_sub_that_is_closed_while_it_is_read_counts_exactly(
    peer: Peer, form: str, keep: Any, how: str
) -> None:
    """And nothing is handed out when it says that it is closed."""
    number = 0
    while True:
        sub, pub = peer.sub("t", keep=keep), peer.pub("t")
        feed(peer, sub, pub, 9)
        got: list[Any] = []
        with at(number, sub.close if "signal" in how else in_a_thread(sub.close)) as moment:
            try:
                got += FORMS[form](sub)
            except (Closed, StopIteration):
                pass
        if moment.where is not None:
            assert sub.closed
            assert Rest(sub).values == []
            assert len(got) + sub.lost == 9, moment.where
            assert list(sub) == []
        sub.close()
        pub.close(linger=0)
        if moment.where is None:
            break
        number += 1
    assert number > 40


def test_a_call_that_waits_from_a_signal_handler_within_a_get_has_its_answer(peer: Peer) -> None:
    """Neither of the two threads ever waits for the one that takes."""
    number = 0
    sub, pub = peer.sub("t"), peer.pub("t")
    while True:
        feed(peer, sub, pub, 3)

        def handler() -> None:
            peer.sub("other").close()
            peer.pub("other").close(linger=0)

        with at(number, in_a_thread(handler) if number % 5 else handler) as moment:
            got = [sub.get(timeout=LONG) for _ in range(3)]
        assert got == [(0,), (1,), (2,)]
        if moment.where is None:
            break
        number += 1
    assert number > 40


def test_a_get_from_within_a_get_is_refused_where_it_would_have_to_wait(peer: Peer) -> None:
    sub, pub = peer.sub("t"), peer.pub("t")
    number = refused = 0
    while True:
        feed(peer, sub, pub, 3)
        got: list[Any] = []

        def handler(got: list[Any] = got) -> None:
            nonlocal refused
            try:
                got.append(sub.get(timeout=0))
            except WrongContext as error:
                refused += "within another get" in str(error)

        with at(number, handler) as moment:
            got.append(sub.get(timeout=LONG))
        got += Rest(sub).values
        assert sorted(got) == [(0,), (1,), (2,)], moment.where
        if moment.where is None:
            break
        number += 1
    assert refused


def test_messages_have_their_own_numbers_while_others_get(peer: Peer) -> None:
    sub, pub = peer.sub("t"), peer.pub("t")
    number = put = 0
    while True:
        pub.put_many([(i,) for i in range(put, put + 3)])
        pub.flush(LONG)
        put += 3
        others: list[Any] = []

        def get(others: list[Any] = others) -> None:
            with contextlib.suppress(TimeoutError):
                others.append(sub.get(timeout=0))

        with at(number, in_a_thread(get)) as moment:
            message = next(sub.messages())
        assert message.value == (message.seq,)
        assert others == sorted(others)
        Rest(sub)
        if moment.where is None:
            break
        number += 1


def test_g8_a_sub_that_a_signal_handler_closes_within_a_put_is_closed(peer: Peer) -> None:
    """No Pub waits for it for ever."""
    sub, far = peer.sub("slow", window=1_000), peer.pub("slow", overflow="block", buffer=1_000)
    out = peer.pub("out")
    with out._lock:  # as within a put
        assert out._putting()
        sub.close()
    assert sub.closed
    for _ in range(10):
        far.put(b"x" * 500)
    assert sub._inbox.sub_id not in peer.runtime.subs


def test_a_sub_that_is_closed_in_the_thread_of_its_peer_is_closed_soon(peer: Peer) -> None:
    """As by a destructor that the collector runs there, in the middle of something else."""
    sub = peer.sub("t")

    def destructor() -> bool:
        sub.close()
        return sub._inbox.sub_id in peer.runtime.subs

    assert peer._call(destructor), "not in the middle of something else"
    assert peer._call(lambda: sub._inbox.sub_id not in peer.runtime.subs)
    with pytest.raises(Closed):
        sub.get()


def test_an_interrupted_close_may_be_called_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = peer.sub("t")
    with monkeypatch.context() as patch:
        patch.setattr(type(peer), "_call", lambda *args: interrupt())
        with pytest.raises(Interrupt):
            sub.close()
    assert not sub.closed
    sub.close()
    assert sub.closed
    assert sub._inbox.sub_id not in peer.runtime.subs


@pytest.mark.filterwarnings("ignore:coroutine 'Ready.wait' was never awaited")
@pytest.mark.parametrize("kind", ["pub", "sub"])
def test_an_interrupted_constructor_leaves_nothing_in_the_peer(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def known() -> set[int]:
        return {*peer.runtime.pubs, *peer.runtime.subs}

    make = peer.pub if kind == "pub" else peer.sub
    before = known()
    number = 0
    while True:
        made = None
        with at(number, interrupt) as moment, contextlib.suppress(Interrupt):
            made = make("t")
        if made is not None:
            made.close()
        del made
        gc.collect()
        peer._call(lambda: None)
        assert peer._call(known) == before, moment.where
        if moment.where is None:
            break
        number += 1
    assert number > 5
    assert peer._thread is not None
    call = type(peer._thread).call

    def interrupted(thread: Any, function: Any, *args: Any) -> None:
        """What was called is done all the same."""
        thread.loop.call_soon_threadsafe(function, *args)
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(peer._thread), "call", interrupted)
        with pytest.raises(Interrupt):
            make("t")
    assert type(peer._thread).call is call
    peer._call(lambda: None)
    assert peer._call(known) == before


@pytest.mark.filterwarnings(  # a loop that was made and reached nobody: collecting it closes it
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_interrupted_constructor_of_a_peer_leaves_no_thread(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("faces/peer.py", "runtime/runtime.py", "runtime/thread.py", "faces/process.py")
    here = {*TAKING, *(str(HERE / name) for name in more)}
    monkeypatch.setattr(sys.modules[__name__], "TAKING", here)
    coordinator = str(peer.coordinators[0])
    threads = set(threading.enumerate())
    number = 0
    while True:
        made = None
        with at(number, interrupt) as moment, contextlib.suppress(Interrupt):
            made = Peer(coordinator)
        if moment.where is None:
            break
        assert made is None
        assert set(threading.enumerate()) == threads, moment.where
        number += 1
    assert number > 30
    assert made is not None
    made.close()
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("form", ["for", "messages"])
async def test_a_cancelled_wait_does_not_end_an_iteration(form: str) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        events = aiter(sub) if form == "for" else sub.messages()
        for i in range(3):
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            pub.put(i)
            event = await asyncio.wait_for(anext(events), LONG)
            assert event == i if form == "for" else event.value == i
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        await sub.close()
        async for _ in events:
            raise AssertionError("it was closed")


async def batches(pub: Any, count: int) -> None:
    """Put so many numbers, a few in each batch."""
    for i in range(count):
        pub.put(i)
        if i % 7 == 0:
            await asyncio.sleep(0)
    await pub.flush()


WAYS = ("for", "messages", "get", "get_many")


@pytest.mark.parametrize(
    "forms", list(itertools.combinations_with_replacement(WAYS, 2)), ids=" and ".join
)
async def test_g3_several_tasks_take_from_one_sub(
    monkeypatch: pytest.MonkeyPatch, forms: tuple[str, str]
) -> None:
    """Each message goes to one of them, whenever they let each other run."""
    monkeypatch.setattr("pubsub.faces.asyncsub.TAKE_SLICE_SECONDS", 0.0)  # before each batch
    count = 5_000
    chance = random.Random(5)
    async with coordinator_in_loop() as coordinator, Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        await batches(pub, count)
        got: tuple[list[int], list[int]] = ([], [])
        complete = asyncio.Event()

        async def took(mine: list[int], *values: int) -> None:
            mine.extend(values)
            if sum(map(len, got)) == count:
                complete.set()
            if chance.random() < 0.1:
                await asyncio.sleep(0)

        async def take(form: str, mine: list[int]) -> None:
            if form == "for":
                async for value in sub:
                    await took(mine, value)
            elif form == "messages":
                async for event in sub.messages():
                    await took(mine, event.value)
            elif form == "get":
                while True:
                    await took(mine, await sub.get())
            else:
                while True:
                    await took(mine, *await sub.get_many(5))

        tasks = [asyncio.ensure_future(take(*what)) for what in zip(forms, got, strict=True)]
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(complete.wait(), LONG)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert sorted(got[0] + got[1]) == list(range(count))
        for mine in got:
            assert mine == sorted(mine)
        assert sub.lost == 0


async def test_g3_a_get_within_the_loop_over_its_sub_has_the_next_message() -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        await batches(pub, 1_000)
        got: list[int] = []
        async for value in sub:
            got.append(value)
            if value % 3 == 1:
                got.append(await sub.get())
            if got[-1] == 999:
                break
        assert got == list(range(1_000))


def test_g3_a_get_within_the_loop_over_a_blocking_sub_has_the_next_message(peer: Peer) -> None:
    sub, pub = peer.sub("t"), peer.pub("t")
    for i in range(1_000):
        pub.put(i)
        if i % 7 == 0:
            pub.flush()
    got: list[int] = []
    for value in sub:
        got.append(value)
        if value % 3 == 1:
            got.append(sub.get(timeout=LONG))
        if got[-1] == 999:
            break
    assert got == list(range(1_000))
    sub.close()
    pub.close()


async def test_a_get_that_may_not_wait_walks_over_no_publishers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 4,096 that were gone, each empty one took 0.7 ms in place of 3 µs."""
    looked: list[Stream] = []
    async with coordinator_in_loop() as coordinator, Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        monkeypatch.setattr(Stream, "state", property(looked.append))
        for take in (sub.get, partial(sub.get_many, 10)):
            for timeout in (0, 0.0, -1):
                with pytest.raises(TimeoutError, match=r"^nothing waits on 't'$"):
                    await take(timeout=timeout)
        assert looked == []
        with pytest.raises(TimeoutError, match=r"^nothing came on 't' within 0\.01 s "):
            await sub.get(timeout=0.01)
        assert looked != []


def test_a_blocking_get_that_may_not_wait_walks_over_no_publishers(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Stream] = []
    sub, pub = peer.sub("t"), peer.pub("t")
    pub.put(1)
    assert sub.get(timeout=LONG) == 1
    monkeypatch.setattr(Stream, "state", property(looked.append))
    for take in (sub.get, partial(sub.get_many, 10)):
        with pytest.raises(TimeoutError, match=r"^nothing waits on 't'$"):
            take(timeout=0)
    assert looked == []
    sub.close()
    pub.close()
