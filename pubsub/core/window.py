"""A Sub's window: how many bytes may wait for it, and what each of its streams may bring of them.

The streams share the window. Each has a `Credit`: what its publisher was told that it may send,
what has come and what was taken of it, and so what the next ACK says.

The Sub's side takes in a thread of its own, without a lock (see `inbox`): it counts what it took,
and announces it. All else is done by the link's side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST

__all__ = ["Credit", "Window"]


class Window:
    """What the streams of one Sub share.

    Parameters:
        size: bytes that may wait, over all streams (one batch a stream is always admitted).

    Attributes:
        share: bytes of it that each stream may use, if others leave it so much.
        received, consumed: bytes of all batches that ever came, and that were taken.
        promised: what `received` may become.
        on_consumed: called with a credit and 2 (`Credit.acknowledge` now) or 1 (soon), from
            whichever side took something.
    """

    def __init__(self, size: int) -> None:
        self.size = self.share = size
        self.received = self.consumed = self.promised = 0
        self.on_consumed: Callable[[Credit, int], None] = lambda credit, stage: None
        self._live: dict[Credit, None] = {}
        self._starved: dict[Credit, None] = {}  # those that have less than their share
        self._leaving: dict[Credit, None] = {}  # those that ended, and of which something waits
        self._spreading = False

    def add(self, credit: Credit) -> None:
        """A stream begins, or goes on after all; the window is shared anew."""
        self._leaving.pop(credit, None)
        self._live[credit] = None
        self._divide()

    def remove(self, credit: Credit) -> None:
        """A stream has ended. What waits of it takes its part of the window until it is taken."""
        self._live.pop(credit, None)  # its beginning may have been interrupted
        self._starved.pop(credit, None)
        self._leaving[credit] = None
        credit.ack_every = 0  # whatever is taken of it is told at once
        self.freed(credit)
        self._divide()

    def freed(self, credit: Credit) -> None:
        """Something was taken of a stream that has no way to its publisher."""
        if credit in self._leaving:
            credit.ack_stage = 0
            if credit.consumed >= credit.received:
                del self._leaving[credit]
            self.spread()

    def _divide(self) -> None:
        """Each stream's share: the window over the number of streams, rounded to a power of two
        so that it rarely changes."""
        share = max(1, self.size >> max(0, len(self._live) - 1).bit_length())
        if share != self.share:
            self.share = share
            for credit in self._live:
                credit.lower()

    def room_for(self, credit: Credit) -> int:
        """Bytes that a stream may have here, with what waits of it: its share, as far as there is
        room for it beside what the others may have, and what waits of those that ended."""
        own = max(credit.limit, credit.received) - credit.consumed
        room = self.size - (self.promised - self.consumed - own)
        if room >= self.share:
            self._starved.pop(credit, None)
            return self.share
        self._starved[credit] = None
        if room > 0:
            return room
        # Where none is, one message is let through of each stream of which nothing waits; but a
        # row of Pubs that come, put one and go would be a way around the window.
        full = self.received - self.consumed >= self.size
        return 0 if full and self._leaving else 1

    def spread(self) -> None:
        """There may be more room: those that have less than their share may have more."""
        if self._spreading or not self._starved:
            return
        self._spreading = True
        try:
            for credit in list(self._starved):
                room = self.size - (self.promised - self.consumed)
                if room <= 0:
                    break
                if credit.tell is not None:
                    has = credit.limit - credit.consumed
                    if has <= 0 or min(room, self.share - has) >= self.share // 4:
                        credit.tell()
        finally:
            self._spreading = False


@dataclass(slots=True, eq=False)
class Credit:
    """What one stream may bring, on all channels that it ever had."""

    window: Window
    received: int = 0
    """Bytes of its batches that came."""
    consumed: int = 0
    """Bytes that the Sub has taken."""
    acked: int = 0
    """Bytes of which the publisher was told that."""
    limit: int = 0
    """What `received` may become."""
    consumed_until: int = 0
    """The sequence number below which all was taken."""
    acked_until: int = 0
    """That below which the publisher was told so."""
    ack_every: int = 0
    """When so many bytes are taken and not told of, it is time to."""
    ack_stage: int = 0
    """That an ACK is on its way, as `Window.on_consumed` was told; 0: none is."""
    tell: Callable[[], None] | None = None
    """Has its route say what `grant` gives; None: there is no open channel."""
    _base: int = 0  # of `received`, where the present channel's count began
    _announced_limit: int = 0  # that the publisher knows, or will with the next ACK
    _allowed: int = 0  # the highest limit of this channel: what was sent before a lower one
    _behind_gap: int = -1  # where a batch begins that may pass the limit, as its GAP might

    # --- the channel --------------------------------------------------------------------

    def connect(self) -> int:
        """A channel is being opened; returns the bytes that may be sent on it at first."""
        self._base = self.received
        self._set_limit(self.consumed + self.window.room_for(self))
        self._announced_limit = self._allowed = self.limit
        self._behind_gap = -1
        return max(0, self.limit - self._base)

    def open(self, first: int, ack_every: int, tell: Callable[[], None]) -> None:
        """The channel is open, and begins with message `first`."""
        self.acked_until = first
        self.ack_every = max(1, min(ack_every, self.window.share // 4))
        self.tell = tell
        self.ack_stage = 0  # what was taken while there was no way to say so is said now
        if self.consumed + self.window.share != self._announced_limit:
            self.window.on_consumed(self, 2)

    def close(self) -> None:
        """Nothing more comes on this channel."""
        self.tell = None
        self._set_limit(self.received)

    def lower(self) -> None:
        """The share has changed. It may not have more than that; its publisher is to be told."""
        share = self.window.share
        self._set_limit(min(self.limit, self.consumed + share))
        if self.tell is not None:
            self.ack_every = max(1, min(self.ack_every, share // 4))
            self.window.on_consumed(self, 2)

    def _set_limit(self, limit: int) -> None:
        """What `received` may become; the window knows what is promised in all."""
        received = self.received
        self.window.promised += max(limit, received) - max(self.limit, received)
        self.limit = limit

    # --- what comes ---------------------------------------------------------------------

    def check(self, size: int, expected: int | None) -> None:
        """One batch may pass the limit when all before it (what is below `expected`) is
        acknowledged and less has come, or was so before the GAP in front of it.

        Raises:
            ProtocolError: a batch of `size` bytes may not come now.
        """
        if (
            self.received + size > self._allowed
            and (self.acked_until != expected or self.received >= self._allowed)
            and self._behind_gap != expected
        ):
            raise ProtocolError(
                f"{self.received + size - self._base:,} bytes on a channel that may carry "
                f"{self._allowed - self._base:,} for now",
                code="limit",
            )

    @property
    def under_way(self) -> int:
        """Bytes that may still come on this channel, beside one batch that may pass the limit."""
        return max(0, self._allowed - self.received)

    def receive(self, size: int) -> None:
        """So many bytes more have come."""
        window = self.window
        before = self.received
        self.received = now = before + size
        window.received += size
        if now > self.limit:  # the one batch that may pass it
            window.promised += now - max(before, self.limit)

    def skip(self, expected: int, end: int) -> None:
        """GAP came, where `expected` was due. It takes its part of the window like a batch, so that
        it is acknowledged, and so that a flood of them is bounded.

        Raises:
            ProtocolError: it may not come now.
        """
        self._behind_gap = -1
        self.check(BATCH_COST, expected)
        if end <= expected:
            self.repeated(BATCH_COST)
            return
        if self.acked_until == expected and self.received < self._allowed:
            self._behind_gap = end
        self.receive(BATCH_COST)

    def repeated(self, size: int) -> None:
        """So many bytes of this channel are of what came before: they count for nothing."""
        self._base -= size

    # --- what is taken ------------------------------------------------------------------

    def took(self, end: int, size: int) -> None:
        """The Sub has taken all below `end`, in a batch of `size` bytes. (It does the same in its
        own code: see `Sub._advance`.)"""
        if size:  # else it is but word of a gap, which nobody waits to hear of
            if end > self.consumed_until:
                self.consumed_until = end
            self.consumed += size
            self.window.consumed += size

    def announce(self, again: bool = False) -> None:
        """Something was taken: an ACK is due now or soon, unless one is on its way that is as soon;
        `again`: even so. Runs where the Sub is used, possibly in another thread."""
        stage = 2 if self.consumed - self.acked >= self.ack_every else 1
        if stage > self.ack_stage or again:
            self.ack_stage = stage
            self.window.on_consumed(self, stage)

    def acknowledge(self) -> None:
        """The ACK that was due is: of a stream that has ended, others have the room."""
        if self.tell is not None:
            self.tell()
        else:
            self.window.freed(self)

    def grant(self, ready: Callable[[], None] = lambda: None) -> tuple[int, int] | None:
        """What the next ACK says, ``(next, limit)``; None when there is nothing new. `ready` is
        called before that counts as told: where it raises, the next one says it."""
        self.ack_stage = 0  # before the counts are read: what is taken later asks again
        consumed_until, consumed = self.consumed_until, self.consumed
        if self.tell is None:
            return None
        limit = consumed + self.window.room_for(self)
        news = consumed_until > self.acked_until or limit != self._announced_limit
        if news:
            ready()
        self._set_limit(limit)
        if not news:
            return None
        self.acked_until = max(self.acked_until, consumed_until)
        self.acked = consumed
        self._announced_limit = limit
        self._allowed = max(self._allowed, limit)
        self.window.spread()
        return self.acked_until, max(0, limit - self._base)
