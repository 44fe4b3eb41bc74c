"""A pool: which slot a block gets, when one is used again, what is given back, and to whom."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pubsub.core.pool import IDLE, LARGEST, SMALLEST, Pool, Segment, Share, slot_for
from pubsub.wire.buffers import Block
from tests.core.memory import Fake

MIB = 1024 * 1024


def pool(size: int = 64 * MIB, make: Callable[[int], Any] = Fake) -> Pool:
    return Pool(size, make, lambda: None)


def segment_of(block: Block | None) -> Segment:
    assert block is not None
    assert isinstance(block.memory, Segment)
    return block.memory


def place(block: Block | None) -> tuple[int, int]:
    segment = segment_of(block)
    assert block is not None
    return segment.number, block.start


@given(st.integers(1, 2**40))
def test_a_slot_is_at_most_a_quarter_larger_than_what_is_put_there(size: int) -> None:
    slot = slot_for(size)
    assert size <= slot <= max(size + size // 4, size + 4095)
    assert not slot % 4096
    assert slot_for(slot) == slot


def test_what_was_freed_last_is_used_first() -> None:
    share = pool().share(lambda: True)
    blocks = [share.block(MIB) for _ in range(2)]
    second = place(blocks[1])
    blocks.pop()
    assert place(share.block(MIB)) == second


def test_a_segment_grows_with_what_its_pub_has_and_takes_one_slot_at_least() -> None:
    for size, grown in ((64 * MIB, [2, 4, 8, 8, 8, 8, 8]), (512 * MIB, [2, 4, 8, 16, 16])):
        share = pool(size).share(lambda: True)
        held = [share.block(MIB) for _ in range(sum(grown))]
        sizes = [segment.size for segment in dict.fromkeys(map(segment_of, held))]
        assert sizes == [mib * MIB for mib in grown]
    assert (SMALLEST, LARGEST) == (2 * MIB, 8 * MIB)
    assert segment_of(pool().share(lambda: True).block(20 * MIB)).size == 20 * MIB


def test_two_pubs_never_share_a_segment() -> None:
    one, two = (both := pool()).share(lambda: True), both.share(lambda: True)
    mine, theirs = one.block(MIB), two.block(MIB)
    assert segment_of(mine) is not segment_of(theirs)
    assert mine is not None
    assert theirs is not None
    assert (one.owns(mine), one.owns(theirs)) == (True, False)


def test_nothing_is_copied_there_for_nobody() -> None:
    lent = False
    share = pool().share(lambda: lent)
    assert share.spare(MIB) is None
    assert not share.refused
    lent = True
    assert share.spare(MIB) is not None


def test_no_pub_has_more_than_half_while_another_has_some_or_waits() -> None:
    shared = pool(16 * MIB)
    wants = True
    one, two = shared.share(lambda: True), shared.share(lambda: wants)
    alone = [one.block(2 * MIB) for _ in range(8)]
    assert None not in alone, "alone, it has all"
    assert two.block(2 * MIB) is None
    alone.pop()
    assert one.block(2 * MIB) is None, "the other one waits"
    wants = False
    alone.append(one.block(2 * MIB))
    assert alone[-1] is not None, "nobody is there any more whom the other would lend it"
    del alone[4:]
    kept = two.block(2 * MIB)
    assert kept is not None
    assert one.block(2 * MIB) is None


def test_what_holds_nothing_makes_room_for_what_is_needed() -> None:
    shared = pool(8 * MIB)
    share = shared.share(lambda: True)
    for size in (MIB, 2 * MIB, 3 * MIB, 8 * MIB):
        block = share.block(size)
        assert block is not None
        assert shared.total <= shared.size
        del block
    assert len(shared.segments) == 1
    assert len(shared.departed) == 3


def test_what_finds_no_room_leaves_what_holds_nothing_where_it_is() -> None:
    many = pool(8 * MIB)
    share = many.share(lambda: True)
    held = [share.block(MIB) for _ in range(4)]
    small = place(share.block(100_000))
    for _ in range(10):
        assert share.block(7 * MIB) is None
        assert place(share.block(100_000)) == small
    assert None not in held


def test_sizes_that_take_turns_in_a_pool_which_is_too_small_do_not_make_memory_each_time() -> None:
    made = []

    def make(size: int) -> Any:
        made.append(size)
        return Fake(size)

    many = pool(8 * MIB, make)
    share = many.share(lambda: True)
    for i in range(1000):
        share.block((i % 13 + 1) * 100_000)
    assert sum(made) <= 2 * many.size
    assert len(made) < 20
    many.look(5.0)
    for i in range(1000):
        share.block((i % 13 + 1) * 110_000)
    assert len(made) < 40


@pytest.mark.parametrize("error", [OSError, MemoryError, ValueError])
def test_where_no_memory_can_be_made_there_is_no_block(error: type[Exception]) -> None:
    def make(size: int) -> Fake:
        if fails:
            raise error
        return Fake(size)

    fails = True
    shared = pool(make=make)
    share = shared.share(lambda: True)
    assert share.block(MIB) is None
    assert (shared.total, share.held, share.refused) == (0, 0, True)
    fails = False
    assert share.block(MIB) is not None


def test_an_interrupt_while_memory_is_made_leaves_the_pool_as_it_was() -> None:
    def make(size: int) -> Fake:
        if fails:
            raise KeyboardInterrupt
        return Fake(size)

    fails = True
    shared = pool(make=make)
    share = shared.share(lambda: True)
    with pytest.raises(KeyboardInterrupt):
        share.block(MIB)
    fails = False
    assert share.block(MIB) is not None


def test_a_segment_is_given_back_when_it_was_idle_for_ten_seconds() -> None:
    shared = pool()
    share = shared.share(lambda: True)
    block = share.block(MIB)
    segment = segment_of(block)
    for now in (0.0, IDLE, 2 * IDLE):
        assert shared.look(now)
    del block
    assert shared.look(100.0)
    share.block(MIB)  # in between it was used
    assert shared.look(100.0 + IDLE)
    assert shared.look(100.0 + IDLE * 1.9)
    assert not shared.look(100.0 + IDLE * 2)
    assert [*shared.departed] == [segment]
    assert shared.total == 0


def test_nothing_is_put_into_a_retired_segment_and_its_memory_counts_until_all_is_back() -> None:
    shared = pool()
    share = shared.share(lambda: True)
    blocks = [share.block(MIB // 2) for _ in range(2)]
    segment = segment_of(blocks[0])
    shared.retire(segment)
    shared.retire(segment)
    assert [*shared.departed] == [segment], "once"
    assert segment_of(share.block(MIB // 2)) is not segment
    blocks.pop()
    assert segment_of(share.block(MIB // 2)) is not segment
    assert shared.total > segment.size
    total = shared.total
    blocks.pop()
    assert shared.total == total - segment.size


def test_what_goes_while_the_process_is_forked_is_retired_before_anybody_has_its_slot() -> None:
    """Another thread may take a slot as soon as it is free."""
    shared = pool()
    share = shared.share(lambda: True)
    block = share.block(MIB)
    segment = segment_of(block)
    kept = share.block(MIB)

    class Watched(list[int]):
        def append(self, start: int) -> None:
            assert segment.retired
            super().append(start)

    segment.free = Watched(segment.free)
    shared.forking = True
    del block
    assert len(segment.free) == 1
    shared.forking = False
    shared.retire_used()
    assert shared.segments == []
    del kept
    assert shared.total == 0


def test_a_fork_retires_what_holds_a_block_and_nothing_else() -> None:
    shared = pool()
    share = shared.share(lambda: True)
    kept, gone = share.block(MIB), share.block(3 * MIB)
    idle = segment_of(gone)
    del gone
    shared.retire_used()
    assert shared.segments == [idle]
    assert segment_of(kept).retired


def test_a_segment_that_is_retired_as_it_is_made_is_not_used() -> None:
    """By a fork in another thread, before its Pub has it on its list."""
    shared = pool()
    share = shared.share(lambda: True)

    class Late(list[Segment]):
        def append(self, segment: Segment) -> None:
            shared.retire(segment)
            super().append(segment)

    among: list[Segment] = Late()
    share._segments[slot_for(MIB)] = among
    first = share.block(MIB)
    assert first is not None
    assert among == []
    del first
    assert shared.total == 0


def in_destructor(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def steps(interrupt: Callable[[], None], call: Callable[[], Any]) -> int:
    """Call again and again, interrupted once in each: where anything is called or returns for the
    first time, the second time, and so on. (There Python looks for signals and other threads.)
    Returns how many places that were."""
    for step in range(1_000):
        left = step

        def profile(*event: Any) -> None:
            nonlocal left
            if event[0].f_code is steps.__code__ or in_destructor(event[0]):
                return  # what is raised in a destructor goes nowhere
            left -= 1
            if left == -1:
                sys.setprofile(None)
                interrupt()

        sys.setprofile(profile)
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        if left >= 0:
            return step
    raise AssertionError("it does not end")


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("grows", [False, True])
def test_a_put_that_is_interrupted_at_any_step_loses_no_slot_and_gives_none_out_twice(
    grows: bool,
) -> None:
    shared = pool()
    share = shared.share(lambda: True)
    kept = share.block(MIB // 2)

    def call() -> None:
        if grows:
            for segment in shared.segments:
                if not segment.used:
                    shared.retire(segment)
        found = share.block(MIB if grows else MIB // 2)
        assert found is not None

    assert steps(ctrl_c, call) > 5
    for segment in shared.segments:
        starts = set(segment.free)
        assert len(starts) == len(segment.free) == segment.size // segment.slot - segment.used
    assert sum(segment.used for segment in shared.segments) == 1
    assert share.held == MIB // 2
    assert shared.total == sum(segment.size for segment in shared.segments)
    assert share.block(MIB) is not None
    del kept


@pytest.mark.usefixtures("uncollected")
def test_no_slot_is_had_of_a_segment_that_is_retired_at_any_step() -> None:
    """By a fork in another thread."""
    shared = pool()
    share = shared.share(lambda: True)
    got: list[Block | None] = []
    gone: list[int] = []

    def retire() -> None:
        for segment in shared.segments:
            shared.retire(segment)
            gone.append(segment.number)

    def call() -> None:
        before = len(gone)
        got.append(share.block(MIB // 2))
        fresh = segment_of(got[-1])
        # either it was had before, or it is of another
        assert fresh.number not in gone[:before]
        got.clear()

    assert steps(retire, call) > 5
    assert shared.total == sum(segment.size for segment in shared.segments)
    assert share.held == 0


def test_what_an_interrupt_has_cost_is_given_back_when_its_pub_is_gone() -> None:
    """A finalizer that Ctrl-C comes into does not say that its slot is free."""
    shared = pool()
    share: Share | None = shared.share(lambda: True)
    assert share is not None
    block = share.block(MIB)
    assert block is not None
    block._gone = lambda block: None
    del block
    shared.look(0.0)
    shared.look(IDLE)
    assert shared.total, "it is taken for used"
    del share
    shared.look(IDLE)
    assert (shared.total, shared.segments) == (0, [])


def test_a_new_segment_is_not_taken_for_an_idle_one() -> None:
    """By another Pub, in another thread, that looks for room before its maker has used it."""
    shared = pool(4 * MIB)
    share = shared.share(lambda: True)
    seen: list[int] = []
    shared.on_changed = lambda: seen.extend(segment.used for segment in shared.segments)
    block = share.block(4 * MIB)
    assert block is not None
    assert seen == [1]


@pytest.mark.parametrize("when", ["counted", "listed"])
def test_other_threads_may_come_in_between(when: str) -> None:
    """Where Python may run another thread, it does: as a block's size is asked, and as the Pubs are
    gone through."""
    shared = pool()
    share = shared.share(lambda: True)
    if when == "counted":
        blocks = [share.block(MIB), share.block(MIB)]

        class Interrupted(Block):
            def __len__(self) -> int:
                if len(blocks) == 2:
                    blocks.pop()
                return MIB

            def __del__(self) -> None: ...

        first = blocks[0]
        assert first is not None
        twin = Interrupted(first.memory, first.start, MIB, 0, share._back)
        share._back(twin)
        assert share.held == 0
        first._gone = lambda block: None
    else:
        made = []

        def wanted() -> bool:
            made.append(shared.share(lambda: True))
            return False

        for _ in range(3):
            made.append(shared.share(wanted))
            made[-1].refused = True
        assert not shared.contested(share)
        assert len(made) == 6


# --- any order -----------------------------------------------------------------------------------


class Orders(RuleBasedStateMachine):
    """Two Pubs, whose blocks are taken and let go in any order, while segments retire."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = pool(16 * MIB)
        self.shares: list[Share] = [self.pool.share(lambda: True) for _ in range(2)]
        self.held: list[tuple[Share, Block, int]] = []
        self.retired: dict[Segment, None] = {}
        self.written = 0

    @rule(which=st.integers(0, 1), size=st.sampled_from([1, 4096, 70_000, MIB, 3 * MIB, 9 * MIB]))
    def take(self, which: int, size: int) -> None:
        share, other = self.shares[which], self.shares[1 - which]
        before = share.held
        contested = bool(other.held or other.refused)
        block = share.block(size)
        if block is None:
            assert share.refused
            return
        assert not contested or before + size <= self.pool.size // 2
        segment = segment_of(block)
        assert not segment.retired
        assert share.owns(block)
        self.written += 1
        block.room[:4] = self.written.to_bytes(4, "big")[-size:].ljust(min(size, 4), b"\0")
        self.held.append((share, block, self.written))

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        if self.held:
            del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        if self.held:
            which = data.draw(st.integers(0, len(self.held) - 1))
            self.pool.retire(segment_of(self.held[which][1]))

    @rule(goes=st.booleans())
    def fork(self, goes: bool) -> None:
        self.pool.forking = True
        if goes and self.held:
            segment = segment_of(self.held[0][1])
            del self.held[0]
            assert segment.retired
        self.pool.retire_used()
        self.pool.forking = False
        assert all(segment_of(block).retired for _, block, _ in self.held)

    @rule(later=st.sampled_from([1.0, IDLE]))
    def look(self, later: float) -> None:
        self.now += later
        self.pool.look(self.now)

    @invariant()
    def nobody_loses_what_he_holds(self) -> None:
        places = [place(block) for _, block, _ in self.held]
        assert len(set(places)) == len(places)
        for _, block, written in self.held:
            size = min(len(block), 4)
            assert bytes(block.room[:4]) == written.to_bytes(4, "big")[-size:].ljust(size, b"\0")

    @invariant()
    def the_accounts_are_right(self) -> None:
        for share in self.shares:
            assert share.held == sum(len(block) for of, block, _ in self.held if of is share)
        counted = {*self.pool.segments, *(segment_of(block) for _, block, _ in self.held)}
        assert self.pool.total == sum(segment.size for segment in counted) <= self.pool.size
        for segment in counted:
            assert segment.used == sum(block.memory is segment for _, block, _ in self.held)

    def teardown(self) -> None:
        self.held.clear()
        self.pool.look(self.now)
        self.pool.look(self.now + IDLE)
        assert self.pool.total == 0
        assert not self.pool.segments


def test_in_any_order_no_slot_is_used_while_it_is_held() -> None:
    run_state_machine_as_test(Orders)


# --- any thread ----------------------------------------------------------------------------------


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they may."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_threads_take_and_let_go_while_segments_retire() -> None:
    """Two for each of two Pubs take, write, look and let go; others fork, look for idle ones and
    make Pubs. Nobody finds what another one wrote, and all counts come back to nothing."""
    shared = pool(16 * MIB)
    shares = [shared.share(lambda: True) for _ in range(2)]
    over = threading.Event()
    faults: list[BaseException] = []

    def puts(share: Share, mark: int) -> None:
        held: list[Block] = []
        for turn in range(1500):
            block = share.block((4096, 70_000, MIB)[turn % 3])
            if block is not None:
                block.room[:1] = bytes([mark])
                held.append(block)
            del block
            if len(held) > 4 or turn % 11 == 0:
                assert all(bytes(block.room[:1]) == bytes([mark]) for block in held)
                held.clear()

    def upsets() -> None:
        now = 0.0
        while not over.is_set():
            shared.forking = True
            shared.retire_used()
            shared.forking = False
            now += IDLE
            shared.look(now)
            made = [shared.share(lambda: True) for _ in range(20)]
            made[0].block(MIB)
            assert shared.total <= shared.size

    def guarded(work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:
            faults.append(error)

    putting = [
        threading.Thread(target=guarded, args=(puts, shares[i % 2], i + 1)) for i in range(4)
    ]
    upsetting = threading.Thread(target=guarded, args=(upsets,))
    for thread in (*putting, upsetting):
        thread.start()
    for thread in putting:
        thread.join()
    over.set()
    upsetting.join()
    assert faults == []
    assert [share.held for share in shares] == [0, 0]
    shared.look(1e9)
    shared.look(1e9 + IDLE)
    assert (shared.segments, shared.total) == ([], 0)
    for share in shares:
        assert not any(share._segments.values()), "no segment is kept that is not in the pool"
