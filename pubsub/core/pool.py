"""A pool: where the large buffers of a process lie that others on its host see without a copy.

It has segments, each a piece of memory that is cut into slots of one size; a slot holds one
`Block`. Sizes are rounded up to one of four steps in each octave, so that slots fit again. What was
freed last is used first: its memory is warm, and to touch new memory costs six times as much as to
copy into it. A segment belongs to one Pub: who is lent any of it can read all of it.

A slot is free when nobody holds its block: the log, who reads it here, and those to whom it is lent
(see `lending`). It is never written to again where that cannot be known: then the whole segment is
*retired*, serves what still lies in it, and is replaced when there is need.

Blocks are taken by whoever puts, in any thread, and come back in any thread, without a lock (see
`inbox` for what that rests on); all else is done in the loop's thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary, ref

from pubsub.wire.buffers import Block, Memory

__all__ = ["IDLE", "Pool", "Segment", "Share", "slot_for"]

SMALLEST = 2 * 1024 * 1024
LARGEST = 8 * 1024 * 1024
"""Bytes of the first segment of a Pub, and of later ones, where one slot is not larger, and the
pool is not: memory is given back to the system only as a whole, and each one is a descriptor."""
MOST = 32
"""Segments that a pool has, about; those of a larger one are larger."""
PAGE = 4096
IDLE = 10.0
"""Seconds after which a segment that nobody used is given back."""


def slot_for(size: int) -> int:
    """The size of the slots for a buffer of that size: at most a quarter more."""
    step = max(PAGE, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


class Segment:
    """One piece of memory of a pool.

    Attributes:
        number: of the segment, never given to another one.
        memory: where its slots lie.
        owner: whose it is, weakly.
        slot: the size of each.
        size: of all.
        free: where those begin that hold no block; the last freed is the last.
        used: how many hold one.
        counted: it counts for the size of the pool.
        retired: no block is put here any more.
        idle_since: since when it was seen without a block; None: it was not.
    """

    __slots__ = (
        *("counted", "free", "idle_since", "memory", "number"),
        *("owner", "retired", "size", "slot", "used", "view"),
    )

    def __init__(self, number: int, memory: Memory, slot: int, owner: Share) -> None:
        self.number = number
        self.memory = memory
        self.view = memory.view
        """See `Memory`."""
        self.owner = ref(owner)
        self.slot = slot
        self.size = len(memory.view)
        self.free = list(range(self.size - slot, -1, -slot))
        self.used = 0
        self.counted = True
        self.retired = False
        self.idle_since: float | None = None

    @property
    def address(self) -> int:
        """See `Memory`."""
        return self.memory.address


class Pool:
    """See the module.

    Parameters:
        size: bytes that all segments together may have.
        make: memory of that size; may raise OSError where there is none.
        on_changed: called, in any thread, when there is a new segment, or something in `departed`.

    Attributes:
        forking: the process is being forked: what goes now may be in the child.
        total: bytes of the segments that hold something, or may.
        departed: segments that are retired, and of which others are to be told.
    """

    def __init__(
        self, size: int, make: Callable[[int], Memory], on_changed: Callable[[], None]
    ) -> None:
        self.size = size
        self.total = 0
        self.forking = False
        self.departed: deque[Segment] = deque()
        self._make = make
        self.on_changed = on_changed
        self._segments: dict[int, Segment] = {}
        self._shares: WeakValueDictionary[int, Share] = WeakValueDictionary()
        self._numbers = 0
        self._growing = False  # somebody adds a segment
        # Bytes that may make room for others before the next look. New memory costs more than a
        # socket: sizes, or Pubs, that take turns in a pool which is too small would all be slower.
        self._movable = size

    @property
    def segments(self) -> list[Segment]:
        """Those that blocks are put in. May be called from any thread."""
        return list(self._segments.values())

    def share(self, wanted: Callable[[], bool]) -> Share:
        """What one Pub may have of it; `wanted`: whether anybody is lent what it puts there."""
        made = Share(self, wanted)
        self._shares[id(made)] = made
        return made

    def back(self, segment: Segment, start: int) -> None:
        """Nobody holds that block any more. In any thread, and at any place."""
        if self.forking:  # before anybody can have the slot: the child may have a view of it
            self.retire(segment)
        segment.used -= 1
        segment.free.append(start)
        if segment.retired and not segment.used:
            self._uncount(segment)

    def _uncount(self, segment: Segment) -> None:
        if segment.counted:
            segment.counted = False
            self.total -= segment.size

    def grow(self, slot: int, owner: Share, among: list[Segment], block: Block) -> bool:
        """A new segment with slots of that size, among those that its owner has, with that block in
        it; False: there is no room for one, or it cannot be made."""
        if self._growing:  # somebody else does, and we do not wait
            return False
        self._growing = True
        try:
            size = min(SMALLEST << len(among), max(LARGEST, self.size // MOST))
            size = slot * max(1, size // slot)
            size = size if self.total + size <= self.size else slot
            idle = [other for other in self.segments if not other.used]
            if self.total + size - self.size > min(sum(o.size for o in idle), self._movable):
                return False  # else what does not fit would take the room of what does
            for other in idle:  # those that hold nothing go first
                if self.total + size <= self.size:
                    break
                if not other.used:
                    self._movable -= other.size
                    self.retire(other)
            if self.total + size > self.size:
                return False
            try:
                memory = self._make(size)
            except (OSError, ValueError, MemoryError):
                return False
            self._numbers += 1
            segment = Segment(self._numbers, memory, slot, owner)
            owner.place(block, segment)  # first: so nobody takes it for an idle one
            self._segments[self._numbers] = segment
            self.total += size
            among.append(segment)
            if segment.retired:  # in this moment, where it was not there to be dropped yet
                owner.drop(segment)
            self.on_changed()
            return True
        finally:
            self._growing = False

    def retire(self, segment: Segment) -> None:
        """Put nothing there any more. What lies there stays, for as long as somebody holds it."""
        if segment.retired:
            return
        segment.retired = True
        self._segments.pop(segment.number, None)
        owner = segment.owner()
        if owner is not None:
            owner.drop(segment)
        if not segment.used:
            self._uncount(segment)
        self.departed.append(segment)
        self.on_changed()

    def retire_used(self) -> None:
        """The process is being forked: what the child has of these blocks must not change."""
        for segment in self.segments:
            if segment.used:
                self.retire(segment)

    def close(self) -> None:
        """Nothing is put here any more, and nobody is told what goes."""
        self.size = 0
        self.on_changed = lambda: None
        for segment in self.segments:
            self.retire(segment)
        self.departed = deque(maxlen=0)

    def look(self, now: float) -> bool:
        """Give back what was not used for `IDLE` seconds, or whose owner is gone; returns whether
        anything is left. To be called from time to time."""
        self._movable = self.size
        for segment in self.segments:
            if segment.owner() is None:  # its blocks would keep it: there are none,
                segment.used = 0  # whatever a finalizer did not get to say that was interrupted
                self.retire(segment)
            if segment.used:
                continue
            if segment.idle_since is None:
                segment.idle_since = now
            elif now - segment.idle_since >= IDLE:
                self.retire(segment)
        return bool(self._segments)

    def contested(self, share: Share) -> bool:
        """Whether others have something of it, or would."""
        for other in [found() for found in self._shares.valuerefs()]:
            if other is not None and other is not share and (other.held or other.waits):
                return True
        return False


class _Nowhere:
    """The memory of a block that has no slot."""

    view = memoryview(b"")
    address = 0


_NOWHERE = _Nowhere()


class Share:
    """What one Pub has of a pool: not more than half, where others need some, too.

    Attributes:
        held: bytes of its blocks.
        refused: it had none when it asked last.
        on_back: called with each block that comes back, before it is used again.
    """

    __slots__ = ("__weakref__", "_pool", "_segments", "_wanted", "held", "on_back", "refused")

    def __init__(self, pool: Pool, wanted: Callable[[], bool]) -> None:
        self.held = 0
        self.refused = False
        self.on_back: Callable[[Block], None] | None = None
        self._pool = pool
        self._wanted = wanted
        # by the size of their slots, the oldest first: so the others may go idle
        self._segments: dict[int, list[Segment]] = {}

    @property
    def waits(self) -> bool:
        """Whether it had none, and somebody would still be lent it."""
        return self.refused and self._wanted()

    def owns(self, block: Block) -> bool:
        """Whether that is one of its own: who is lent one of another Pub's could read all that
        lies beside it, of a topic that is perhaps not for him."""
        segment = block.memory
        return isinstance(segment, Segment) and segment.owner() is self

    def spare(self, size: int) -> Block | None:
        """A block for what is to be copied; None: there is none, or nobody would be lent it."""
        return self.block(size) if self._wanted() else None

    def block(self, size: int) -> Block | None:
        """A block of that size; None: there is none, and the buffer goes another way."""
        pool = self._pool
        over = self.held + size > pool.size // 2
        block = Block(_NOWHERE, 0, size, 0, self._back)
        placed = not (over and pool.contested(self)) and self._take(slot_for(size), block)
        self.refused = not placed
        return block if placed else None

    def _take(self, slot: int, block: Block) -> bool:
        segments = self._segments.setdefault(slot, [])
        for segment in segments:
            if self.place(block, segment):
                return True
        return self._pool.grow(slot, self, segments, block)

    def place(self, block: Block, segment: Segment) -> bool:
        """Give the block a slot there; returns whether there is one."""
        size, free = len(block), segment.free
        # Nothing is called from here on: what interrupts (Python looks for signals, and for other
        # threads, after calls) would lose the slot, or have it given out twice.
        if not free or segment.retired:
            return False
        block.start = free[-1]
        del free[-1]
        segment.used += 1
        segment.idle_since = None
        self.held += size
        block.memory = segment
        return True

    def _back(self, block: Block) -> None:
        if block.memory is _NOWHERE:
            return
        if self.on_back is not None:
            self.on_back(block)
        size = len(block)  # before `held` is read: another thread may come in between
        self.held -= size
        segment = block.memory
        assert isinstance(segment, Segment)
        self._pool.back(segment, block.start)

    def drop(self, segment: Segment) -> None:
        """That one is retired."""
        with contextlib.suppress(ValueError):
            self._segments.get(segment.slot, []).remove(segment)
