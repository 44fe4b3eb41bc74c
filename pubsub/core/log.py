"""A Pub's log: one byte-bounded, sequence-numbered ring of encoded batches, shared by all cursors.

Moving a cursor, appending and trimming are O(1) whatever the number of cursors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator

from pubsub.wire.buffers import Buffer
from pubsub.wire.frames import BATCH_COST, buffers_cost

__all__ = ["Batch", "Holds", "Log"]


class Batch:
    """Messages that were put together: encoded once, written by every channel.

    Attributes:
        number: of the batch in its log.
        first, end: sequence numbers ``first <= seq < end``.
        body: one msgpack array of the values.
        buffers: large buffers of the last value, which travel before the body.
        headers: one msgpack map of the messages' headers, which travels behind the body; empty:
            none has any.
        size: bytes it counts for.
        sent_at: wall-clock time, in seconds since 1970.
    """

    __slots__ = ("body", "buffers", "end", "first", "headers", "number", "sent_at", "size")

    def __init__(
        self,
        number: int,
        first: int,
        count: int,
        body: bytes,
        buffers: tuple[Buffer, ...],
        sent_at: float,
        headers: bytes = b"",
    ) -> None:
        self.number = number
        self.first = first
        self.end = first + count
        self.body = body
        self.buffers = buffers
        self.headers = headers
        self.size = BATCH_COST + len(body) + len(headers)
        if buffers:
            self.size += buffers_cost(buffers)
        self.sent_at = sent_at

    @property
    def count(self) -> int:
        """Messages in it."""
        return self.end - self.first


class Holds:
    """How many cursors stand at each batch number (the first batch that they still need)."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[int, int] = {}

    def add(self, number: int) -> None:
        self._at[number] = self._at.get(number, 0) + 1

    def remove(self, number: int) -> None:
        rest = self._at[number] - 1
        if rest:
            self._at[number] = rest
        else:
            del self._at[number]

    def carry(self, number: int) -> None:
        """The batch is dropped under those that stand at it: they now need the next."""
        moved = self._at.pop(number, 0)
        if moved:
            self._at[number + 1] = self._at.get(number + 1, 0) + moved

    def at(self, number: int) -> int:
        return self._at.get(number, 0)

    def total(self) -> int:
        return sum(self._at.values())


class Log:
    """The ring.

    Attributes:
        next_seq: the sequence number that the next message gets.
        size: bytes of all batches in it.
        total: bytes of all messages that ever were put, encoded.
        last: when the newest was put, in seconds since 1970; None: there was none.
        first_number, next_number: batch numbers ``first_number <= n < next_number`` are here.
        holds: the places of all cursors.
        firm: the places of those cursors for which a blocking Pub waits.
    """

    __slots__ = (
        *("_batches", "firm", "first_number", "holds", "last", "next_number", "next_seq"),
        *("size", "total"),
    )

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self.next_seq = 0
        self.size = self.total = 0
        self.last: float | None = None
        self.first_number = 0
        self.next_number = 0
        self.holds = Holds()
        self.firm = Holds()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    @property
    def start(self) -> int:
        """The first sequence number that is still here (or `next_seq` when it is empty)."""
        batches = self._batches
        if not batches:
            return self.next_seq
        try:
            return batches[0].first
        except IndexError:  # another thread looks on, and it has left meanwhile
            return self.next_seq

    @property
    def oldest(self) -> float | None:
        """When the oldest that is still here was put; None: none is. From any thread."""
        try:
            return self._batches[0].sent_at
        except IndexError:
            return None

    def append(
        self,
        count: int,
        body: bytes,
        buffers: tuple[Buffer, ...],
        sent_at: float,
        headers: bytes = b"",
    ) -> Batch:
        """Put a batch of `count` messages at the end."""
        batch = Batch(self.next_number, self.next_seq, count, body, buffers, sent_at, headers)
        self.next_number += 1  # nothing is called between this and the last step
        self.next_seq = batch.end
        self.size += batch.size
        self.total += batch.size - BATCH_COST
        self.last = sent_at
        self._batches.append(batch)
        return batch

    def batch(self, number: int) -> Batch:
        """The batch of that number, which must be here."""
        return self._batches[number - self.first_number]

    def locate(self, seq: int) -> int:
        """The number of the batch that holds message `seq`; `next_number` for `next_seq`."""
        if seq >= self.next_seq:
            return self.next_number
        index = bisect_right(self._batches, seq, key=lambda batch: batch.first) - 1
        return self.first_number + max(index, 0)

    def drop_first(self) -> Batch:
        """Let the oldest batch go, needed or not."""
        batch = self._batches.popleft()
        self.size -= batch.size
        self.holds.carry(batch.number)
        self.firm.carry(batch.number)
        self.first_number = batch.number + 1
        return batch

    def trim(self, history: int) -> bool:
        """Let go what no cursor needs and what is older than the last `history` messages."""
        batches, holds = self._batches, self.holds
        trimmed = False
        while (
            batches
            and not holds.at(self.first_number)
            and self.next_seq - batches[0].end >= history
        ):
            self.drop_first()
            trimmed = True
        return trimmed
