"""The lane: a thread that puts and waits writes to the socket itself, and nobody can tell."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pubsub import Peer
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.faces.lane import SETTLE, Lane
from pubsub.links.link import Lost, State
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from pubsub.wire.liveness import HEARTBEAT_TOKEN
from pubsub.wire.messages import Pong
from tests.integration.support import LONG, break_links, coordinator_in_thread


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Peer, Peer]]:
    with coordinator_in_thread() as coordinator:
        monkeypatch.setenv("PUBSUB_COORDINATOR", coordinator.address)
        with Peer() as here, Peer() as there:
            yield here, there


needs_a_lane = pytest.mark.skipif(
    os.environ.get("PUBSUB_TEST_TRUST") == "tls", reason="no link with TLS is lent"
)


class Pair:
    """Questions from here, which are echoed there, and the answers."""

    def __init__(self, here: Peer, there: Peer) -> None:
        self.answers = cast(BlockingSub, here.sub("answers"))
        self.questions = cast(BlockingSub, there.sub("questions"))
        self.pub = cast(BlockingPub, here.pub("questions"))
        self.echo = cast(BlockingPub, there.pub("answers"))
        self.heard: list[Any] = []
        self.pub.wait_for_subscribers(1, timeout=LONG)
        self.echo.wait_for_subscribers(1, timeout=LONG)
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def _answer(self) -> None:
        for value in self.questions:
            self.heard.append(value)
            self.echo.put(value)

    def trip(self, value: Any) -> None:
        self.pub.put(value)
        while self.answers.get(timeout=LONG) != value:
            pass

    def lane(self) -> Lane:
        """The lane that its Pub has after some trips."""
        deadline = time.monotonic() + LONG
        while self.pub._lane is None or not self.pub._lane.count:
            assert time.monotonic() < deadline, "no link was ever lent"
            self.trip("warm")
        self.pub._runtime.turn.awaited = True  # an answer that was faster leaves it as it was
        return self.pub._lane


@pytest.fixture
def pair(peers: tuple[Peer, Peer]) -> Pair:
    return Pair(*peers)


def test_a_link_with_tls_is_never_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("PUBSUB_ENCRYPT", "1")
    with coordinator_in_thread() as coordinator:
        monkeypatch.setenv("PUBSUB_COORDINATOR", coordinator.address)
        with Peer() as here, Peer() as there:
            pair = Pair(here, there)
            for i in range(100):
                pair.trip(i)
            assert [one["way"] for one in pair.pub.subscribers.values()] == ["unix"]
            (served,) = here.runtime.subscribers.served
            assert served.link is not None
            assert served.link.lent is None
            assert not served.link.is_idle


@needs_a_lane
def test_who_waits_for_each_answer_does_not_wake_the_loops_thread_to_write(pair: Pair) -> None:
    lane = pair.lane()
    woken = 0
    turn = pair.pub._runtime.turn
    usual = turn.pending_elsewhere

    def count(source: Any) -> None:
        nonlocal woken
        woken += 1
        usual(source)

    turn.pending_elsewhere = count  # type: ignore[method-assign]
    for i in range(400):
        pair.trip(i)
    assert woken < 40
    assert pair.heard[-400:] == list(range(400))
    pair.pub.flush(timeout=LONG)
    assert pair.pub._publication.log.next_seq == len(pair.heard)
    assert lane._link.state is State.OPEN, "and its subscriber has nothing to object to"


@needs_a_lane
def test_a_row_of_puts_is_gathered_in_batches_all_the_same(pair: Pair) -> None:
    lane = pair.lane()
    written = 0
    send = lane._send

    def count(frame: bytes, flags: int) -> int:
        nonlocal written
        written += 1
        return cast(int, send(frame, flags))

    lane._send = count
    for i in range(2000):
        pair.pub.put(i)
    pair.pub.flush(timeout=LONG)
    while pair.answers.get(timeout=LONG) != 1999:
        pass
    assert written <= 1, "one at the most, of who has waited before"
    assert pair.heard[-2000:] == list(range(2000))


@needs_a_lane
def test_the_order_holds_under_threads_the_loop_and_links_that_break(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread puts and waits, another one puts rows on the same Pub and, over the same link, on
    another; meanwhile Subs come and go, puts are flushed, and links break."""
    here, there = peers
    written = 0
    write = Lane.write

    def count(lane: Lane, pub: BlockingPub, body: bytes, now: float) -> bool:
        nonlocal written
        done = write(lane, pub, body, now)
        written += done
        return done

    monkeypatch.setattr(Lane, "write", count)
    pair = Pair(here, there)
    beside = cast(BlockingPub, here.pub("beside"))
    other = cast(BlockingSub, there.sub("beside"))
    chance = random.Random(7)
    over = threading.Event()
    rows = 0

    def put_rows() -> None:
        nonlocal rows
        while not over.is_set():
            for _ in range(chance.choice((1, 1, 1, 30))):
                pair.pub.put(("row", rows))
                beside.put(rows)
                rows += 1
            time.sleep(chance.choice((0, 0.001, 0.003)))

    def disturb() -> None:
        while not over.is_set():
            what = chance.randrange(4)
            if what == 0:
                there.sub("questions", observer=True).close()
            elif what == 1:
                pair.pub.flush(timeout=LONG)
            elif what == 2:
                there._call(break_links, there)
            time.sleep(chance.choice((0.001, 0.02, 0.06)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=what) for what in (put_rows, disturb)]
    for thread in threads:
        thread.start()
    try:
        trips = 0
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            pair.trip(("trip", trips))
            trips += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    pair.pub.flush(timeout=LONG)
    pair.trip("end")
    assert [i for kind, i in pair.heard[:-1] if kind == "trip"] == list(range(trips))
    assert [i for kind, i in pair.heard[:-1] if kind == "row"] == list(range(rows))
    assert [other.get(timeout=LONG) for _ in range(rows)] == list(range(rows))
    assert (pair.questions.lost, other.lost) == (0, 0)
    assert written > 50, "else nothing was shown"


@needs_a_lane
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_interrupt_in_the_middle_of_a_write_takes_no_message_and_doubles_none(
    pair: Pair, before: bool
) -> None:
    lane = pair.lane()
    send = lane._send

    def interrupted(frame: bytes, flags: int) -> int:
        if not before:
            send(frame, flags)
        raise KeyboardInterrupt

    lane._send = interrupted
    n = len(pair.heard)
    with pytest.raises(KeyboardInterrupt):
        pair.pub.put("doubtful")
    pair.trip("next")
    pair.trip("and next")
    assert pair.heard[n:] == ["doubtful", "next", "and next"]
    assert pair.questions.lost == 0


@needs_a_lane
@pytest.mark.parametrize("taken", [0, 1, 31], ids=["nothing", "a byte", "the header"])
def test_what_a_full_socket_does_not_take_follows_in_its_place(pair: Pair, taken: int) -> None:
    lane = pair.lane()
    send = lane._send

    def full(frame: bytes, flags: int) -> int:
        if not taken:
            raise BlockingIOError
        return cast(int, send(frame[:taken], flags))

    lane._send = full
    n = len(pair.heard)
    for i in range(5):
        pair.trip(i)
    assert pair.heard[n:] == list(range(5))
    assert pair.questions.lost == 0
    assert lane._link.state is State.OPEN, "nobody had to come back for it"


@needs_a_lane
def test_what_was_handed_to_the_loops_thread_before_is_not_overtaken(pair: Pair) -> None:
    lane = pair.lane()
    pair.pub.peer._call_soon(time.sleep, 0.2)
    large = bytes(100_000)
    pair.pub.put(large)
    pair.pub._runtime.turn.awaited = True
    pair.trip("small")
    assert pair.heard[-2:] == [large, "small"]
    assert lane is not pair.pub._lane


@needs_a_lane
def test_nothing_is_written_while_the_loops_thread_brings_in_what_was(pair: Pair) -> None:
    lane = pair.lane()
    entered, leave = threading.Event(), threading.Event()

    def bring_in() -> None:
        with lane._free:
            entered.set()
            leave.wait(LONG)

    thread = threading.Thread(target=bring_in)
    thread.start()
    entered.wait(LONG)
    before = lane._next
    pair.pub.put("meanwhile")
    assert lane._next == before
    leave.set()
    thread.join()
    pair.trip("next")
    assert pair.heard[-2:] == ["meanwhile", "next"]


@needs_a_lane
@pytest.mark.parametrize("how", ["write", "_write", "write_now", "send", "_end", "abort"])
def test_whoever_else_writes_on_a_link_or_ends_it_takes_it_back(pair: Pair, how: str) -> None:
    lane = pair.lane()
    link = lane._link
    args: dict[str, Any] = {"_write": ([b""],), "send": (Pong(HEARTBEAT_TOKEN),), "abort": ()}
    args["_end"] = (Lost("for a test"),)

    def write() -> bool:
        getattr(link, how)(*args.get(how, (b"",)))
        return lane._over and link.lent is None and pair.pub._lane is None

    assert pair.pub.peer._call(write)
    pair.trip("on")


@needs_a_lane
def test_nothing_is_written_for_one_that_has_left(pair: Pair) -> None:
    lane = pair.lane()
    pair.questions.close()
    until(lambda: not pair.pub.subscribers)
    assert lane._over
    assert pair.pub._lane is None


@needs_a_lane
def test_what_is_beside_the_log_counts_as_lag_and_as_put(pair: Pair) -> None:
    lane = pair.lane()
    pair.questions.close()
    pair.thread.join()
    sub = pair.echo.peer.sub("questions")
    pair.pub.wait_for_subscribers(1, timeout=LONG)
    assert lane is not pair.pub._lane, "that was the other one's"
    until(lambda: [one["lag"] for one in pair.pub.subscribers.values()] == [0])
    turn = pair.pub._runtime.turn
    for i in range(SETTLE):
        turn.awaited = True  # as though it waited in between
        pair.pub.put(i)
        until(lambda: not pair.pub._parts)
    assert [one["lag"] for one in pair.pub.subscribers.values()] == [SETTLE]
    assert pair.pub._lane is not None
    assert [sub.get(timeout=LONG) for _ in range(SETTLE)] == list(range(SETTLE))


@needs_a_lane
def test_a_pub_that_nobody_holds_goes_though_a_link_was_lent_to_it(pair: Pair) -> None:
    lane = pair.lane()
    until(lambda: not lane.count)
    assert lane._link.lent is lane
    pub, pair.pub = weakref.ref(pair.pub), cast(Any, None)
    until(lambda: gc.collect() >= 0 and pub() is None)
    pair.questions.close()


@needs_a_lane
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_keeps_nothing_of_a_link_that_was_lent(pair: Pair) -> None:
    lane = pair.lane()
    fd = cast(Any, lane._send).__self__.fileno()
    ends, their = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(their, os.readlink(f"/proc/self/fd/{fd}").encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(ends, 100) == os.devnull.encode()
    os.close(ends)
    os.close(their)
    pair.trip("on")


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
