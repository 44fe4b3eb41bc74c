"""The turn: what is due is collected while the loop runs callbacks, and done at their end: one
batch per Pub, one write per link. Acknowledgements are collected over a longer time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from pubsub.core.local import Local
from pubsub.core.window import Credit
from pubsub.links.link import Link
from pubsub.support.apart import nothing
from pubsub.support.logs import logger

__all__ = ["Turn"]

log = logger("pubsub")

TURN_BYTES = 1024 * 1024
"""Bytes that all Pubs of a loop together may be granted in one turn before who awaits its puts
lets the loop run. (Each alone may fill a batch. With a thousand topics that would be 64 MiB of
small objects, which are cold when their turn comes, and a long wait for all.)"""
RETRY = 1.0
"""Seconds until a batch is tried again that could not be closed."""


class Puts(Protocol):
    """A Pub with messages that are not in the log yet. (The Pub itself: until they are, the turn
    keeps it alive.)"""

    def _collect(self) -> None:
        """Bring them into the log. What is being put at this very moment, in another thread, may
        wait for a later turn."""


class Turn:
    """See the module. Used in the loop's thread only.

    Asking the loop for a call may raise, where the program puts deep in its stack or memory is
    short. So nothing is noted before it was asked: where that raises, the one put fails, and the
    next asks again.

    Parameters:
        peer_id: of the peer whose Pubs and Subs meet in `local`.
        ack_delay: seconds that an acknowledgement that nobody waits for may wait.

    Attributes:
        lone: a single Pub is collected, so that what it writes need not wait for others' (to be
            taken back by who has written).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer_id: str, ack_delay: float) -> None:
        self.local = Local(peer_id, self._local_output)
        self._loop = loop
        self._context = nothing()  # of what is begun in a turn: not of who put, or took, in it
        self._ack_delay = ack_delay
        self.lone = False  # one Pub alone is being collected, and has written nothing yet
        self._scheduled = False  # `run` will be called
        self._hastened = False  # since then, `hasten` has done what was due
        self._local_dirty = False
        self._dirty: list[Link] = []
        self._sources: list[Puts] = []
        self._incoming: deque[Puts] = deque()  # from other threads
        self._call = [True]  # of `_take_in`, the last that was asked for: whether it was made
        self._granted = 0
        self._slow_acks: list[Credit] = []
        self._ack_timer: asyncio.TimerHandle | None = None

    def pending(self, source: Puts) -> bool:
        """A Pub has messages that are not in the log yet. Returns whether it is the only one."""
        if not self._scheduled:
            self._loop.call_soon(self.run, context=self._context)
            self._scheduled = True
        self._sources.append(source)
        return len(self._sources) == 1

    def grant(self, size: int) -> bool:
        """A Pub may put so many bytes more in this turn; True: it is time for the loop to run."""
        self._granted += size
        return self._granted > TURN_BYTES

    def pending_elsewhere(self, source: Puts) -> None:
        """The same as `pending`, from any thread. However many call, they make one callback."""
        self._incoming.append(source)
        if self._call[0]:  # else it is still to come, and takes this one too
            call = [False]
            try:
                self._loop.call_soon_threadsafe(self._take_in, call, context=self._context)
            except RuntimeError:
                if self._loop.is_closed():
                    return
                raise
            self._call = call  # not before: no other thread relies on a call that cannot be made

    def _take_in(self, call: list[bool]) -> None:
        call[0] = True  # before it looks: what comes later calls again
        incoming = self._incoming
        while incoming:
            self._sources.append(incoming.popleft())
        if not self._scheduled:  # nothing else is going on in this turn of the loop
            self.run()

    def touch(self, link: Link) -> None:
        """A link has something to write."""
        if not self._scheduled:
            self._loop.call_soon(self.run, context=self._context)
            self._scheduled = True
        self._dirty.append(link)

    def _local_output(self) -> None:
        if not self._scheduled:
            self._loop.call_soon(self.run, context=self._context)
            self._scheduled = True
        self._local_dirty = True

    def hasten(self) -> None:
        """Do now what is due at the end of the turn, because the caller is about to wait: a reply
        leaves at once, and not when the loop has looked around first (a round trip of 127 µs took
        86 to 92 then). Only once in a turn, so that what many do in one still leaves together."""
        if self._scheduled and not self._hastened:
            self._hastened = True
            self._context.run(self._work)

    def run(self) -> None:
        """Do what is due."""
        self._hastened = False
        if not (self._sources or self._local_dirty or self._dirty):  # `hasten` has done it
            self._granted = 0
            self._scheduled = False
            return
        try:
            self._scheduled = True  # also where nobody has asked for it
            self._work()
        finally:
            self._scheduled = False
            if self._sources or self._local_dirty or self._dirty:
                self._loop.call_soon(self.run, context=self._context)
                self._scheduled = True

    def _work(self) -> None:
        """What one step makes due for the next is done in the same turn."""
        self._granted = 0
        if self._sources:
            sources, self._sources = self._sources, []
            self.lone = len(sources) == 1
            rest = iter(sources)
            for source in rest:
                try:
                    source._collect()
                except Exception:  # one Pub's trouble is no other's
                    log.exception("internal error while a batch was closed")
                    self._loop.call_later(RETRY, self.pending, source)
                except BaseException:  # a signal handler's: their turn is still to come
                    self.lone = False
                    self._sources[:0] = [source, *rest]
                    raise
            self.lone = False
        if self._local_dirty:
            self._local_dirty = False
            self.local.pump()
        dirty = self._dirty
        if dirty:
            self._dirty = []
            for link in dirty:
                try:
                    link.flush()
                except Exception:
                    log.exception("internal error while writing to %s", link)
                    link.abort()

    def consumed(self, credit: Credit, stage: int) -> None:
        """A Sub took messages: acknowledge now (2) or within `ack_delay` (1)."""
        if stage == 2:
            credit.acknowledge()
            return
        self._slow_acks.append(credit)
        if self._ack_timer is None:
            self._ack_timer = self._loop.call_later(self._ack_delay, self._ack_now)

    def _ack_now(self) -> None:
        self._ack_timer = None
        credits, self._slow_acks = self._slow_acks, []
        for credit in credits:
            credit.acknowledge()

    def close(self) -> None:
        """Nothing more is acknowledged by itself."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
