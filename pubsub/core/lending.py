"""Lending: what each end of a link knows of the memory that one has lent to the other.

The publishing end offers a segment of its `Pool` when something in it is due on the link; until the
other end has it, buffers go by the socket. Then each is *lent*: the link's LENT says where it
lies, and has a number of its own. The subscribing end has it for as long as anybody there holds the
buffer, or an array that is built on it, and RETURNED says when that is over, for several at a time.

What is not given back when the link ends, whatever way, is given up with its segment: nobody knows
for how long views of it live on. The same is asked for at a fork, for all that a process holds: a
child has each view, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from pubsub.core.pool import Pool, Segment
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Block, Memory
from pubsub.wire.messages import (
    MAX_RETURNED,
    Control,
    Mapped,
    Returned,
    Unmap,
    encode,
)

__all__ = ["MAX_MAPPED", "MAX_SEGMENTS", "Borrowing", "Lending"]

MAX_SEGMENTS = 256
"""Segments of a link that the subscribing end maps at once."""
MAX_MAPPED = 2**36
"""Bytes of them together: they need not be there, but take the room for addresses of a process."""


class Lending:
    """The publishing end.

    Parameters:
        pool: where the blocks lie.
        offer: have the other end map a segment; returns whether that could be begun.
        say: writes a frame, in the order of all others.
        for_rights: the other end has the segments for a right, which may be at an end with the
            link: it could still read what is put there.
    """

    def __init__(
        self,
        pool: Pool,
        offer: Callable[[Segment], bool],
        say: Callable[[Control], None],
        *,
        for_rights: bool = False,
    ) -> None:
        self._for_rights = for_rights
        self._pool = pool
        self._offer = offer
        self._say = say
        self._offered: dict[int, int] = {}  # bytes
        self._over: set[int] = set()  # of these: retired on their way
        self._mapped: set[int] = set()
        self._loans: dict[int, Block] = {}
        self._next = 0

    @property
    def loans(self) -> int:
        """How many are out."""
        return len(self._loans)

    def lend(self, block: Block) -> tuple[int, int] | None:
        """Lend a block: the number of the loan, which is to be said at once, and that of its
        segment; None: the other end does not have that, or not yet."""
        segment = block.memory
        assert isinstance(segment, Segment)
        number = segment.number
        if number not in self._mapped:
            new = number not in self._offered and not segment.retired
            if new and self._may_have(segment.size) and self._offer(segment):
                self._offered[number] = segment.size
            return None
        loan = self._next
        self._next = loan + 1
        self._loans[loan] = block
        return loan, number

    def _may_have(self, size: int) -> bool:
        offered = self._offered
        return len(offered) < MAX_SEGMENTS and sum(offered.values()) + size <= MAX_MAPPED

    def mapped(self, number: int) -> None:
        """The other end has the segment.

        Raises:
            ProtocolError: it was not offered.
        """
        if number not in self._offered or number in self._mapped:
            raise ProtocolError(f"a MAPPED of segment {number}, which is not on its way")
        if number in self._over:
            self._unmap(number)
        else:
            self._mapped.add(number)

    def returned(self, loans: Iterable[int], kept: bool) -> None:
        """The other end holds these no more; `kept`: or what it has of them is to stay as it is.

        Raises:
            ProtocolError: it has not got one of them.
        """
        out = self._loans
        for loan in loans:
            block = out.pop(loan, None)
            if block is None:
                raise ProtocolError(f"a RETURNED of {loan}, which is not lent")
            if kept:
                self._retire(block)

    def retired(self, segment: Segment) -> None:
        """Nothing more is lent of it; where it is mapped, that is over when all was given back."""
        number = segment.number
        if number in self._mapped:
            self._unmap(number)
        elif number in self._offered:
            self._over.add(number)

    def _unmap(self, number: int) -> None:
        self._mapped.discard(number)
        self._over.discard(number)
        del self._offered[number]
        self._say(Unmap(number))

    def _retire(self, block: Block) -> None:
        segment = block.memory
        assert isinstance(segment, Segment)
        self._pool.retire(segment)

    def end(self) -> None:
        """The link is over."""
        loans, self._loans = self._loans, {}
        for block in loans.values():
            self._retire(block)
        if self._for_rights:
            for segment in self._pool.segments:
                if segment.number in self._offered:
                    self._pool.retire(segment)
        self._offered.clear()
        self._over.clear()
        self._mapped.clear()


class Borrowing:
    """The subscribing end.

    Parameters:
        wake: called once, in any thread and at any place, when `pump` has something to say.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._due = False
        self._segments: dict[int, Memory] = {}
        self._held: dict[int, None] = {}
        self._returned: deque[int] = deque()
        self._kept: deque[int] = deque()
        self._next_loan = 0
        self._open = True
        self.forking = False
        """From before a fork until behind it: what goes in that time may be in the child."""

    @property
    def held(self) -> int:
        """How many blocks somebody holds here."""
        return len(self._held)

    @property
    def segments(self) -> int:
        """How many are mapped."""
        return len(self._segments)

    def check(self, number: int, size: int) -> None:
        """Raise ProtocolError where a segment of that number may not come now."""
        if number in self._segments:
            raise ProtocolError(f"a second segment {number}")
        if len(self._segments) >= MAX_SEGMENTS:
            raise ProtocolError(f"more than {MAX_SEGMENTS} segments of memory", code="limit")
        if not 0 < size <= MAX_MAPPED - sum(len(one.view) for one in self._segments.values()):
            raise ProtocolError(f"{size:,} more bytes of memory", code="limit")

    def map(self, number: int, memory: Memory) -> Mapped:
        """A segment is here; returns what to say."""
        self._segments[number] = memory
        return Mapped(number)

    def unmap(self, number: int) -> None:
        """Nothing more is lent of it. The views of it keep it for as long as they live."""
        if self._segments.pop(number, None) is None:
            raise ProtocolError(f"an UNMAP of segment {number}, which is not mapped")

    def block(self, loan: int, number: int, start: int, size: int) -> Block:
        """A buffer is lent.

        Raises:
            ProtocolError: there is no such memory here.
        """
        memory = self._segments.get(number)
        if memory is None or size < 1 or start + size > len(memory.view):
            raise ProtocolError(f"a LENT of {size} bytes at {start} of segment {number}")
        if loan != self._next_loan:
            raise ProtocolError(f"a LENT of number {loan} where {self._next_loan} was due")
        self._next_loan = loan + 1
        self._held[loan] = None
        return Block(memory, start, size, loan, self._back)

    def _back(self, block: Block) -> None:
        """Nobody holds it any more. In any thread, and at any place."""
        if self._open and self._held.pop(block.number, 0) is None:
            (self._kept if self.forking else self._returned).append(block.number)
            self._say()

    def keep(self) -> None:
        """What is held here now is in a child, too: it must not change any more."""
        for loan in list(self._held):
            if self._held.pop(loan, 0) is None:
                self._kept.append(loan)
        if self._kept:
            self._say()

    def _say(self) -> None:
        if not self._due:
            self._due = True
            self._wake()

    def pump(self) -> list[bytes]:
        """What is to be said of it."""
        self._due = False  # before it looks: what comes later wakes again
        out = []
        for loans, kept in (self._kept, True), (self._returned, False):
            while loans:
                some = [loans.popleft() for _ in range(min(len(loans), MAX_RETURNED))]
                out.append(encode(Returned(tuple(some), kept)))
        return out

    def end(self) -> None:
        """The link is over. What is held stays, and nobody is told when it goes: an array that is
        kept for long keeps no more of us alive than this."""
        self._open = False
        self._wake = lambda: None
        self._segments.clear()
