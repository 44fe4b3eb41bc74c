"""Lending: who holds a block, whatever is lent, given back, kept, retired and cut in what order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.lending import MAX_MAPPED, MAX_SEGMENTS, Borrowing, Lending
from pubsub.core.pool import Pool, Segment
from pubsub.core.publication import Publication
from pubsub.core.receiving import Receiving
from pubsub.core.serving import Serving
from pubsub.core.stream import Stream, StreamKey
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Block, Buffer, WholeBuffer
from pubsub.wire.frames import BATCH_COST, BUFFER_PIECE, FrameReader, data_header, lent_frame
from pubsub.wire.messages import (
    MAX_RETURNED,
    Ack,
    Control,
    Lent,
    Mapped,
    Offer,
    Returned,
    Unmap,
    Unsubscribe,
    encode,
)
from tests.core.memory import Fake
from tests.wire.buffers import contents
from tests.wire.sinks import Gathering

MIB = 1024 * 1024
SIZE = 256 * 1024


def frames(written: Sequence[bytes | memoryview]) -> list[Control]:
    return FrameReader(bytearray(4096)).feed(b"".join(written))  # type: ignore[return-value]


class Ends:
    """A pool, and both ends of one link, over which descriptors go when they are told to."""

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool or Pool(64 * MIB, Fake, lambda: None)
        self.share = self.pool.share(lambda: True)
        self.way: deque[Segment] = deque()  # descriptors that are under way
        self.said: list[Control] = []
        self.woken = 0
        self.offers = True
        self.lending = Lending(self.pool, self.offer, self.said.append)
        self.borrowing = Borrowing(self.wake)

    def offer(self, segment: Segment) -> bool:
        if self.offers:
            self.way.append(segment)
        return self.offers

    def wake(self) -> None:
        self.woken += 1

    def put(self, size: int = SIZE) -> Block:
        block = self.share.block(size)
        assert block is not None
        return block

    def pass_on(self) -> None:
        """The descriptors come, and the other end says that it has them."""
        while self.way:
            segment = self.way.popleft()
            self.borrowing.check(segment.number, segment.size)
            memory = Fake(1, write=False)
            memory.view = segment.view.toreadonly()
            self.lending.mapped(self.borrowing.map(segment.number, memory).segment)

    def lend(self, block: Block) -> Block:
        """As the other end has it."""
        lent = self.lending.lend(block)
        if lent is None:
            self.pass_on()
            lent = self.lending.lend(block)
            assert lent is not None
        return self.borrowing.block(*lent, block.start, len(block))

    def settle(self) -> None:
        """What each end has to say reaches the other."""
        while self.pool.departed:
            self.lending.retired(self.pool.departed.popleft())
        while self.said:
            message = self.said.pop(0)
            assert isinstance(message, Unmap)
            self.borrowing.unmap(message.segment)
        for frame in frames(self.borrowing.pump()):
            assert isinstance(frame, Returned)
            self.lending.returned(frame.loans, frame.kept)


def test_a_block_is_lent_once_its_segment_is_mapped_and_comes_back_when_nobody_holds_it() -> None:
    ends = Ends()
    block = ends.put()
    block.room[:4] = b"seen"
    assert ends.lending.lend(block) is None, "it goes by the link"
    assert ends.lending.lend(block) is None
    assert len(ends.way) == 1, "offered once"
    there = ends.lend(block)
    assert bytes(there.view()[:4]) == b"seen"
    again = ends.lend(block)
    assert (ends.lending.loans, ends.borrowing.held) == (2, 2)
    start = block.start
    del block, there
    ends.settle()
    assert ends.share.held == SIZE, "one of two holds it"
    del again
    assert ends.woken == 2
    ends.settle()
    assert (ends.lending.loans, ends.borrowing.held, ends.share.held) == (0, 0, 0)
    assert ends.put().start == start


def test_segments_are_mapped_in_the_order_in_which_they_are_needed() -> None:
    ends = Ends()
    first, second = ends.put(SIZE), ends.put(MIB)
    ends.lend(second)
    ends.lend(first)
    assert ends.borrowing.segments == 2


def test_what_cannot_be_offered_is_asked_for_again() -> None:
    ends = Ends()
    block = ends.put()
    ends.offers = False
    assert ends.lending.lend(block) is None
    ends.offers = True
    ends.lend(block)


def test_a_link_has_a_bound_on_its_segments() -> None:
    ends = Ends(Pool(2**40, lambda size: Fake(1), lambda: None))
    held = []
    for number in range(MAX_SEGMENTS + 1):
        segment = Segment(number, Fake(1), 1, ends.share)
        held.append(Block(segment, 0, 1, 0, lambda block: None))
        ends.lending.lend(held[-1])
    assert len(ends.way) == MAX_SEGMENTS
    ends.pass_on()
    with pytest.raises(ProtocolError, match=f"more than {MAX_SEGMENTS} segments") as caught:
        ends.borrowing.check(MAX_SEGMENTS, 1)
    assert caught.value.code == "limit"


def test_what_a_link_held_when_it_ended_is_never_written_to_again() -> None:
    ends = Ends()
    lent, free = ends.put(), ends.put(MIB)
    there = ends.lend(lent)
    segment = lent.memory
    other = free.memory
    assert isinstance(segment, Segment)
    assert isinstance(other, Segment)
    del lent, free
    ends.lending.end()
    ends.borrowing.end()
    assert (segment.retired, other.retired) == (True, False)
    assert ends.put().memory is not segment
    del there
    assert ends.borrowing.pump() == []
    assert ends.woken == 0, "nobody is told"


@pytest.mark.parametrize("for_rights", [False, True])
def test_who_had_segments_for_a_right_reads_nothing_that_is_put_later(for_rights: bool) -> None:
    """It may be over with the link: its certificate was revoked, or has expired."""
    ends = Ends()
    ends.lending = Lending(ends.pool, ends.offer, ends.said.append, for_rights=for_rights)
    there, never = ends.lend(ends.put()), ends.put(MIB)
    segment, other = ends.pool.segments
    del there
    ends.settle()
    ends.lending.end()
    assert (segment.retired, other.retired) == (for_rights, False)
    del never


def test_a_link_has_a_bound_on_what_is_mapped() -> None:
    """A process has 128 TiB of addresses, or far less, and what is not there takes its part."""
    ends = Ends(Pool(2**40, lambda size: Fake(1), lambda: None))

    class Large(Fake):
        def __len__(self) -> int:
            return MAX_MAPPED // 4

    held = []
    for number in range(6):
        segment = Segment(number, Fake(1), 1, ends.share)
        segment.size = MAX_MAPPED // 4
        held.append(Block(segment, 0, 1, 0, lambda block: None))
        ends.lending.lend(held[-1])
    assert len(ends.way) == 4
    for size in (0, MAX_MAPPED + 1):
        with pytest.raises(ProtocolError, match="more bytes of memory"):
            ends.borrowing.check(1, size)
    memory = Fake(1)
    memory.view = Large(1)  # type: ignore[assignment]
    for number in range(4):
        ends.borrowing.check(number, MAX_MAPPED // 4)
        ends.borrowing.map(number, memory)
    with pytest.raises(ProtocolError, match="1 more bytes of memory") as caught:
        ends.borrowing.check(5, 1)
    assert caught.value.code == "limit"


def test_what_is_held_at_a_fork_is_kept_and_what_goes_meanwhile() -> None:
    ends = Ends()
    before, meanwhile, held = (ends.lend(ends.put()) for _ in range(3))
    del before
    ends.borrowing.forking = True
    del meanwhile
    ends.borrowing.keep()
    ends.borrowing.forking = False
    assert frames(ends.borrowing.pump()) == [Returned((1, 2), True), Returned((0,), False)]
    del held
    assert ends.borrowing.pump() == [], "it was said"
    after = ends.lend(ends.put())
    del after
    assert frames(ends.borrowing.pump()) == [Returned((3,), False)]


def test_what_is_kept_has_its_segment_retired() -> None:
    ends = Ends()
    block = ends.put()
    there = ends.lend(block)
    segment = block.memory
    del block
    ends.borrowing.keep()
    ends.settle()
    assert isinstance(segment, Segment)
    assert segment.retired
    ends.settle()
    assert ends.borrowing.segments == 0
    assert len(there.view()) == SIZE, "views live on"
    assert ends.pool.total == 0


def test_a_segment_that_was_retired_on_its_way_is_unmapped_when_it_is_there() -> None:
    ends = Ends()
    block = ends.put()
    assert ends.lending.lend(block) is None
    assert isinstance(block.memory, Segment)
    ends.pool.retire(block.memory)
    ends.settle()
    ends.pass_on()
    assert ends.said == [Unmap(block.memory.number)]
    ends.settle()
    assert ends.borrowing.segments == 0
    assert ends.lending.lend(block) is None
    assert not ends.way, "it is not offered again"


def test_many_are_returned_in_frames_of_a_bounded_size() -> None:
    ends = Ends()
    block = ends.put()
    there = [ends.lend(block) for _ in range(2 * MAX_RETURNED + 1)]
    there.clear()
    assert ends.woken == 1, "for all of them"
    said = frames(ends.borrowing.pump())
    assert [len(frame.loans) for frame in said if isinstance(frame, Returned)] == [
        *(MAX_RETURNED, MAX_RETURNED, 1)
    ]


# --- a hostile other end -------------------------------------------------------------------------


def mapped_twice(ends: Ends) -> None:
    ends.lending.mapped(1)


def mapped_unoffered(ends: Ends) -> None:
    ends.lending.mapped(2)


def returned_twice(ends: Ends) -> None:
    ends.lending.returned((0, 0), False)


def returned_unlent(ends: Ends) -> None:
    ends.lending.returned((1,), True)


def lent_elsewhere(ends: Ends) -> None:
    ends.borrowing.block(1, 2, 0, 1)


def lent_beyond(ends: Ends) -> None:
    ends.borrowing.block(1, 1, 2 * MIB - 1, 2)


def lent_far_beyond(ends: Ends) -> None:
    ends.borrowing.block(1, 1, 2**64 - 1, 2**64 - 1)


def lent_nothing(ends: Ends) -> None:
    ends.borrowing.block(1, 1, 0, 0)


def lent_again(ends: Ends) -> None:
    ends.borrowing.block(0, 1, 0, 1)


def lent_ahead(ends: Ends) -> None:
    ends.borrowing.block(2, 1, 0, 1)


def unmapped_twice(ends: Ends) -> None:
    ends.borrowing.unmap(1)
    ends.borrowing.unmap(1)


def came_twice(ends: Ends) -> None:
    ends.borrowing.check(1, MIB)


HOSTILE = [
    (mapped_twice, "MAPPED of segment 1"),
    (mapped_unoffered, "MAPPED of segment 2"),
    (returned_twice, "RETURNED of 0, which is not lent"),
    (returned_unlent, "RETURNED of 1, which is not lent"),
    (lent_elsewhere, "LENT of 1 bytes at 0 of segment 2"),
    (lent_beyond, "LENT of 2 bytes"),
    (lent_far_beyond, "LENT of"),
    (lent_nothing, "LENT of 0 bytes"),
    (lent_again, "LENT of number 0 where 1 was due"),
    (lent_ahead, "LENT of number 2 where 1 was due"),
    (unmapped_twice, "UNMAP of segment 1, which is not mapped"),
    (came_twice, "a second segment 1"),
]


@pytest.mark.parametrize(
    ("act", "what"), [pytest.param(*case, id=case[0].__name__) for case in HOSTILE]
)
def test_who_breaks_the_rules_of_lending_is_cut(act: Callable[[Ends], None], what: str) -> None:
    ends = Ends()
    there = ends.lend(ends.put())
    with pytest.raises(ProtocolError, match=what):
        act(ends)
    del there


# --- any order -----------------------------------------------------------------------------------


class Orders(RuleBasedStateMachine):
    """One Pub, its log, two links with a Sub each, and what was forked, in any order. A block holds
    its number; whoever holds it must find that there for as long as he does."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = [Ends()]
        self.ends.append(Ends(self.ends[0].pool))
        self.share = self.ends[0].share
        self.pool = self.ends[0].pool
        self.log: list[tuple[Block, int]] = []
        self.views: list[tuple[int, Block, int]] = []  # which link
        self.children: list[tuple[Segment, int, int]] = []  # what nobody says anything of
        self.number = 0
        self.now = 0.0

    @rule(size=st.sampled_from([SIZE, MIB, 9 * MIB]))
    def put(self, size: int) -> None:
        block = self.share.block(size)
        if block is not None:
            self.number += 1
            block.room[:4] = self.number.to_bytes(4, "big")
            self.log.append((block, self.number))

    @rule(which=st.integers(0, 1), data=st.data())
    def lend(self, which: int, data: st.DataObject) -> None:
        if self.log:
            ends = self.ends[which]
            block, number = self.log[data.draw(st.integers(0, len(self.log) - 1))]
            lent = ends.lending.lend(block)
            if lent is not None:
                there = ends.borrowing.block(*lent, block.start, len(block))
                self.views.append((which, there, number))

    @rule(which=st.integers(0, 1))
    def pass_on(self, which: int) -> None:
        self.ends[which].pass_on()

    @rule()
    def trim(self) -> None:
        del self.log[:1]

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        if self.views:
            del self.views[data.draw(st.integers(0, len(self.views) - 1))]

    @rule(which=st.integers(0, 1))
    def settle(self, which: int) -> None:
        departed = list(self.pool.departed)
        self.ends[which].settle()
        for ends in self.ends:
            if ends is not self.ends[which]:
                for segment in departed:
                    ends.lending.retired(segment)

    @rule(which=st.integers(0, 1))
    def cut(self, which: int) -> None:
        """What the other end holds lives on, and nobody hears of it."""
        old, new = self.ends[which], Ends(self.pool)
        old.lending.end()
        old.borrowing.end()
        self.abandon(which)
        self.views = [view for view in self.views if view[0] != which]
        self.ends[which] = new

    @rule(which=st.integers(0, 1))
    def fork_there(self, which: int) -> None:
        borrowing = self.ends[which].borrowing
        borrowing.forking = True
        self.abandon(which)
        borrowing.keep()
        borrowing.forking = False

    @rule()
    def fork_here(self) -> None:
        self.pool.forking = True
        for block, number in self.log:
            self.remember(block, number)
        self.pool.retire_used()
        self.pool.forking = False

    @rule(later=st.sampled_from([1.0, 10.0]))
    def look(self, later: float) -> None:
        self.now += later
        self.pool.look(self.now)

    def abandon(self, which: int) -> None:
        for of, block, number in self.views:
            if of == which:
                self.remember(block, number)

    def remember(self, block: Block, number: int) -> None:
        """A child sees it for ever."""
        self.children.append((block.memory, block.start, number))  # type: ignore[arg-type]

    @invariant()
    def everybody_sees_what_was_put(self) -> None:
        seen = [(block.memory, block.start, number) for block, number in self.log]
        seen += [(block.memory, block.start, number) for _, block, number in self.views]
        for memory, start, number in [*seen, *self.children]:
            assert bytes(memory.view[start : start + 4]) == number.to_bytes(4, "big")

    @invariant()
    def the_pool_is_bounded(self) -> None:
        assert 0 <= self.pool.total <= self.pool.size

    def teardown(self) -> None:
        self.log.clear()
        self.views.clear()
        for which in (0, 1):
            self.ends[which].pass_on()
            self.settle(which)
        self.pool.look(self.now)
        self.pool.look(self.now + 10.0)
        assert (self.pool.total, self.share.held) == (0, 0)
        assert [ends.lending.loans for ends in self.ends] == [0, 0]


def test_in_any_order_who_holds_a_block_finds_what_was_put() -> None:
    run_state_machine_as_test(Orders)


# --- among all other frames ----------------------------------------------------------------------


class Link(Ends):
    """Both ends with their streams, and the bytes between them."""

    def __init__(self, *, window: int = 100 * MIB, max_batch: int = 100 * MIB) -> None:
        super().__init__()
        self.publication = Publication(
            *(1, "topic"),
            block=False,
            buffer=10**9,
            join_timeout=5.0,
            resume_timeout=30.0,
            now=0.0,
        )
        self.publication.answered(0.0)
        self.publication.settle()
        self.serving = Serving(
            "subscriber", "", lambda _: self.publication, lambda: None, max_channels=9
        )
        self.serving.lending = self.lending
        self.tickets: list[bytes] = []
        self.receiving = Receiving(
            lambda: None,
            lambda stream: None,
            borrowing=self.borrowing,
            on_offer=self.tickets.append,
        )
        self.reader = FrameReader(bytearray(65536), self.receiving)
        self.reader.max_payload = 2 * BUFFER_PIECE
        self.inbox = Inbox(7, "topic", window=window)
        self.stream = Stream(self.inbox, StreamKey("publisher", 1), "topic", "", max_batch)
        self.inbox.add(self.stream)
        self.receiving.subscribe(self.stream)
        self.exchange()

    def put_all(self, *buffers: Buffer) -> int:
        return self.publication.append(1, b"\x91\x01", buffers, 1.5).size

    def pump(self) -> bytes:
        return b"".join(self.serving.pump(10**9))

    def read(self, data: bytes) -> None:
        while data:
            room = self.reader.get_buffer()
            size = min(len(room), len(data))
            room[:size], data = data[:size], data[size:]
            for event in self.reader.received(size):
                if isinstance(event, ProtocolError):
                    raise event
                self.receiving.receive(event)

    def exchange(self) -> None:
        for event in frames(self.receiving.pump(0)):
            self.serving.receive(event)
        self.read(self.pump())

    def kinds(self, data: bytes) -> list[str]:
        return [type(event).__name__ for event in Gathering(bytearray(4096), 10**8).feed(data)]


def test_a_segment_that_is_not_mapped_yet_costs_one_buffer_by_the_link() -> None:
    link = Link()
    link.put_all(link.put())
    assert link.kinds(link.pump()) == ["Piece", "Data"]
    link.pass_on()
    link.put_all(link.put())
    assert link.kinds(link.pump()) == ["Lent", "Data"]


def test_a_buffer_that_was_begun_by_the_link_goes_on_by_it() -> None:
    link = Link()
    link.put_all(link.put(3 * MIB))
    first = b"".join(link.serving.pump(1))
    link.pass_on()
    data = first + link.pump()
    assert link.kinds(first) == ["Piece"]
    assert link.kinds(data) == ["Piece", "Piece", "Piece", "Data"]
    link.read(data)
    entry = link.inbox.peek()
    assert entry is not None
    assert [len(buffer) for buffer in entry.buffers] == [3 * MIB]


def test_a_batch_may_have_some_of_its_buffers_lent() -> None:
    link = Link()
    one, two, three = link.put(), link.put(MIB), WholeBuffer(b"x" * SIZE)
    one.room[:3], two.room[:3] = b"one", b"two"
    link.lending.lend(one)
    link.pass_on()
    link.put_all(one, two, three)
    data = link.pump()
    assert link.kinds(data) == ["Lent", "Piece", "Piece", "Data"]
    link.read(data)
    entry = link.inbox.peek()
    assert entry is not None
    assert [bytes(buffer.view()[:3]) for buffer in entry.buffers] == [b"one", b"two", b"xxx"]
    assert [len(buffer) for buffer in entry.buffers] == [SIZE, MIB, SIZE]
    assert link.borrowing.held == 1


def test_a_link_that_breaks_between_a_buffer_and_its_message_loses_and_keeps_nothing() -> None:
    link = Link()
    block = link.put()
    link.lending.lend(block)
    link.pass_on()
    link.put_all(block)
    link.read(link.pump()[: len(lent_frame(0, 0, 1, 0, 1))])
    assert link.borrowing.held == 1
    link.receiving.broken()
    assert link.stream._buffers == []
    assert link.receiving.pump(0) == []
    link.lending.end()
    assert isinstance(block.memory, Segment)
    assert block.memory.retired
    assert link.publication.log.size, "it comes over the next link"


def test_what_is_lent_to_a_channel_that_is_over_goes_back_and_is_bounded() -> None:
    link = Link(window=2 * MIB, max_batch=2 * MIB)
    block = link.put(MIB)
    link.lending.lend(block)
    link.pass_on()
    link.put_all(block)
    data = link.pump()
    link.receiving.unsubscribe(link.stream)
    link.read(data)
    said = frames(link.receiving.pump(0))
    assert said[-2:] == [Unsubscribe(0), Returned((0,), False)]
    loans = [link.lending.lend(block) for _ in range(200)]
    with pytest.raises(ProtocolError, match="channels that are over") as caught:
        for loan in loans:
            assert loan is not None
            link.receiving.lent(0, *loan, block.start, MIB)
    assert caught.value.code == "limit"


def test_a_lent_buffer_counts_with_its_full_size_in_windows_and_buffer() -> None:
    link = Link(window=2 * MIB)
    blocks = [link.put(MIB) for _ in range(4)]
    for block in blocks:
        link.lending.lend(block)
    link.pass_on()
    sizes = [link.put_all(block) for block in blocks]
    assert sizes == [BATCH_COST + 2 + MIB] * 4
    data = link.pump()
    sent = link.kinds(data).count("Lent")
    assert 0 < sent < 4, "what its window holds"
    link.read(data)
    received = link.stream.credit.window.received
    assert received == sum(sizes[:sent])
    cursor = link.publication.cursor(SubKey("subscriber", 7))
    assert cursor is not None
    assert link.publication.log.size == sum(sizes)


@pytest.mark.parametrize("limit", ["max_batch", "window"])
def test_a_lent_buffer_beyond_what_may_come_is_refused(limit: str) -> None:
    link = Link(**{limit: MIB + 4096})
    block = link.put(MIB)
    link.lending.lend(block)
    link.pass_on()
    loans = [link.lending.lend(block) for _ in range(2)]
    assert None not in loans
    first, second = (loan for loan in loans if loan is not None)
    link.receiving.lent(0, *first, block.start, MIB)
    if limit == "window":  # of which one batch is always let in
        link.read(data_header(0, 0, 1.5, 2) + b"\x91\x01")
    with pytest.raises(ProtocolError, match=r"more than|may carry") as caught:
        link.receiving.lent(0, *second, block.start, MIB)
    assert caught.value.code in ("limit", "protocol")


def test_who_has_no_memory_on_a_link_refuses_its_frames() -> None:
    link = Link()
    link.serving.lending = None
    bare = Receiving(lambda: None, lambda stream: None)
    for message in (Returned((), False), Mapped(1)):
        with pytest.raises(ProtocolError, match="where a subscriber speaks"):
            link.serving.receive(message)
    for said in (Unmap(1), Lent(0, 0, 1, 0, 1), Mapped(1)):
        with pytest.raises(ProtocolError):
            bare.receive(said)


def test_the_ticket_of_an_offer_is_handed_on() -> None:
    link = Link()
    link.read(encode(Offer(b"ticket")))
    assert link.tickets == [b"ticket"]


def test_a_view_that_waits_to_be_written_keeps_its_block() -> None:
    """A transport has what is not written yet, when the log has let it go."""
    ends = Ends()
    block = ends.put()
    block.room[:5] = b"first"
    start = block.start
    piece = block.view()[0:5]
    assert piece.readonly
    del block
    other = ends.put()
    assert other.start != start
    other.room[:5] = b"later"
    assert bytes(piece) == b"first"
    del piece
    assert ends.put().start == start


def test_an_ack_says_nothing_of_what_is_held() -> None:
    link = Link()
    block = link.put()
    link.lending.lend(block)
    link.pass_on()
    link.put_all(block)
    del block
    link.read(link.pump())
    entry = link.inbox.take()
    assert entry is not None
    taken = entry.buffers[0]
    del entry
    link.receiving.ack(link.stream)
    said = frames(link.receiving.pump(0))
    assert [type(event) for event in said] == [Ack]
    link.serving.receive(said[0])
    assert len(link.publication.log) == 0
    assert link.lending.loans == 1
    assert contents(taken)
    del taken
    link.exchange()
    assert (link.lending.loans, link.share.held) == (0, 0)
