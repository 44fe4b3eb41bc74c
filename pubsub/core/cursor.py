"""A cursor: one subscriber's place in a log, with its flow-control window."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pubsub.core.log import Batch, Log
from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST

__all__ = ["NO_LIMIT", "Cursor", "Outlet", "Skip", "SubKey"]

NO_LIMIT = 2**64 - 1
"""The `Cursor.largest` of a subscriber that takes batches of any size."""


class SubKey(NamedTuple):
    """Which Sub, anywhere."""

    peer_id: str
    sub_id: int


class Skip(NamedTuple):
    """What is not sent, and said by a GAP in its place: ``first <= seq < end``."""

    first: int
    end: int
    reason: Literal["overflow", "too large"]


class Outlet(Protocol):
    """Where an attached cursor sends; owned by the link (or the process) that carries it."""

    address: str
    """``host:port`` of the subscribing peer, for people."""
    way: str
    """Of which kind the way there is, for people; see `Pub.subscribers`."""
    taken: int
    """Rises when it has taken something, of whatever stream."""

    @property
    def lends(self) -> bool:
        """Whether it can lend what lies in the pool, and need not copy it."""

    def enqueue(self, cursor: Cursor) -> None:
        """The cursor may have something to send; it is queued until the outlet says otherwise,
        which is not before this returns. Where this raises, it is not queued."""

    def offer(self, cursor: Cursor, batch: Batch) -> bool:
        """The same, of one that is not queued, and behind whose log this batch was put just now.
        Returns whether it is queued now: not, where the batch is on its way already."""

    def end(self, cursor: Cursor, final: int, code: str, reason: str) -> None:
        """Nothing more comes; `final` messages were put in all."""

    def taken_over(self, cursor: Cursor) -> None:
        """The cursor belongs to another outlet now."""


@dataclass(slots=True, eq=False)
class Cursor:
    """One subscriber's place."""

    key: SubKey
    log: Log
    due: int
    """The first sequence number that the subscriber had a right to when it was expected."""
    observer: bool = field(kw_only=True)
    outlet: Outlet | None = None
    channel: int = -1
    """The present or the last one at an outlet; -1: it never was attached."""
    address: str = ""
    """Of that outlet, for people; empty: it never was attached."""
    deadline: float | None = None
    """Until when it holds its place; None: as long as its link lives."""
    granted: bool = False
    """It has let something be sent to it, on this channel or one before."""
    shut_until: float | None = None
    """Until when it may let nothing be sent to it, where a Pub waits for that."""
    queued: bool = False
    confirm: int | None = None
    """A flush waits until everything below it is known to have arrived; None: none does."""
    lost: int = 0
    """Messages that left the log before they could be sent, or were too large."""
    gaps: deque[tuple[int, int]] = field(default_factory=deque)
    """``(first, end)`` of what is in `lost` and was not acknowledged."""
    largest: int = NO_LIMIT
    """Size of the largest batch that the subscriber takes."""
    limit: int = 0
    """Bytes that may be sent on the present channel."""
    sent: int = 0
    """Bytes that have been."""
    pieces: int = 0
    """Of large buffers, that have been sent."""
    asked: int = 0
    """On the present channel, everything below it was asked for, whether it has arrived."""
    held: int = field(init=False)
    """The first batch that the subscriber still needs."""
    next: int = field(init=False)
    """The sequence number to send next, which is in batch `send`."""
    send: int = field(init=False)
    acked: int = field(init=False)
    """Everything below it was consumed."""
    received: int = field(init=False)
    """Everything below it is known to have arrived (see `Outlet`, PING behind data)."""
    sent_until: int = field(init=False)
    """Everything below it was sent, or said to be skipped; in flight is ``acked <= seq <
    sent_until``. What lies between it and `next` is still to be said."""
    admitted: int = field(init=False)
    """The batch for which there was room when what is skipped before it was said."""

    def __post_init__(self) -> None:
        self.held = self.log.locate(self.due)
        self.log.holds.add(self.held)
        if not self.observer:
            self.log.firm.add(self.held)
        self._stand(self.due)

    def _stand(self, seq: int) -> None:
        """Everything from `seq` on is to be sent, as far as the log still has it."""
        log = self.log
        self.next = self.sent_until = self.acked = self.received = max(seq, log.start)
        self.send = log.locate(self.next)
        self.admitted = -1

    def place(self, seq: int) -> None:
        """Move to `seq`, forward or back; `next` is the first number that will really be sent.

        A subscriber that was cut off before it heard of a gap comes back for it: what was missed
        from there on counts when it is missed again.
        """
        while self.gaps and self.gaps[-1][1] > seq:
            first, end = self.gaps.pop()
            self.lost -= end - max(first, seq)
            if first < seq:
                self.gaps.append((first, seq))
        self._stand(seq)
        self._hold(self.send)

    def _hold(self, number: int) -> None:
        log = self.log
        held = max(self.held, log.first_number)  # holds are carried when batches are dropped
        if number != held:
            log.holds.remove(held)
            log.holds.add(number)
            if not self.observer:
                log.firm.remove(held)
                log.firm.add(number)
        self.held = number

    def release(self) -> None:
        """Need nothing any more."""
        held = max(self.held, self.log.first_number)
        self.log.holds.remove(held)
        if not self.observer:
            self.log.firm.remove(held)

    def take(self) -> Batch | Skip | None:
        """What to send now; None when there is nothing or the window is closed.

        What has left the log before it was sent is skipped, and so is a batch above `largest`. A
        `Skip` counts for `BATCH_COST` bytes. What has left is said with the batch behind it, when
        there is room for both: so it is said once, and the batch has not left before its turn.
        """
        log = self.log
        number = self.send
        skipped = 0
        if number < log.first_number:
            due, self.next = self.next, log.start
            self.miss(due)
            number = log.first_number
            skipped = BATCH_COST
        if number == log.next_number:
            return None
        batch = log.batch(number)
        size = batch.size
        refused = size > self.largest
        if refused:
            size = BATCH_COST
        if (
            self.sent + skipped + size > self.limit
            and (self.acked < self.sent_until or self.sent >= self.limit)
            and number != self.admitted
        ):
            return None  # one batch may pass the limit, when nothing else is in the window
        if skipped:
            self.admitted = -1 if refused else number
            return self._skip(self.next, number, "overflow")
        if refused:
            return self._skip(batch.end, number + 1, "too large")
        self.sent += size
        self.send = number + 1
        self.next = self.sent_until = batch.end
        return batch

    def _skip(self, end: int, send: int, reason: Literal["overflow", "too large"]) -> Skip:
        """Go on at `end`, in batch `send`."""
        skip = Skip(self.sent_until, end, reason)
        due, self.next = self.next, end
        self.miss(due)
        self.sent += BATCH_COST
        self.send = send
        self.sent_until = end
        return skip

    def miss(self, due: int) -> None:
        """What lies between `due` and `next` is not sent."""
        if due < self.next:
            self.lost += self.next - due
            first = due
            if self.gaps and self.gaps[-1][1] == due:  # one that waits to be said takes one place
                first, _ = self.gaps.pop()
            self.gaps.append((first, self.next))

    def ack(self, seq: int, limit: int) -> None:
        """The subscriber consumed everything below `seq` and takes up to `limit` bytes.

        Raises:
            ProtocolError: it acknowledges what was never sent, or less than before.
        """
        if not self.acked <= seq <= self.sent_until:
            raise ProtocolError(
                f"an ACK of {seq} where it is between {self.acked} and {self.sent_until}"
            )
        self.limit = limit
        if seq == self.acked:
            return
        self.acked = seq
        while self.gaps and self.gaps[0][1] <= seq:
            self.gaps.popleft()
        if seq > self.received:
            self.received = seq
        log = self.log
        number = max(self.held, log.first_number)
        while number < self.send and log.batch(number).end <= seq:
            number += 1
        self._hold(number)

    def arrived(self, seq: int) -> None:
        """Everything below `seq` is known to have reached the subscriber."""
        if seq > self.received:
            self.received = seq

    @property
    def name(self) -> str:
        """For people: ``host:port#n``, or ``peer id#n`` of one that never was attached."""
        return f"{self.address or f'peer {self.key.peer_id}'}#{self.key.sub_id}"

    def held_for(self, now: float) -> float | None:
        """Seconds for which it holds its place; None: as long as its link lives."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    @property
    def at_end(self) -> bool:
        """Whether all that is in the log was sent."""
        return self.send == self.log.next_number

    @property
    def full(self) -> bool:
        """Whether something waits to be sent, and its window has no room for it. May be called from
        any thread."""
        log, number = self.log, self.send
        if self.outlet is None or number >= log.next_number:
            return False
        try:
            size = log.batch(max(number, log.first_number)).size
        except IndexError:  # it has left meanwhile
            return False
        over = self.sent + size > self.limit
        return over and (self.acked < self.sent_until or self.sent >= self.limit)

    @property
    def lag(self) -> int:
        """Messages in the log that the subscriber has not consumed."""
        return self.log.next_seq - self.acked
