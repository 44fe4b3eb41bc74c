"""Sharing: the memory that a process lends to others on its host, and what it has of theirs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from pubsub.config import LOCALHOST, UNIX, Settings, Way
from pubsub.core.lending import Borrowing, Lending
from pubsub.core.pool import IDLE, Pool, Share
from pubsub.core.serving import Serving
from pubsub.links import memory, unix
from pubsub.links.link import Link
from pubsub.wire.messages import Offer

__all__ = ["Sharing"]

_all: WeakValueDictionary[int, Sharing] = WeakValueDictionary()


class Sharing:
    """See the module. Used in the loop's thread, where nothing else is said.

    Attributes:
        pool: from which large values are lent; None: nothing is.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self.pool: Pool | None = None
        if settings.shared_memory and memory.available():
            self.pool = Pool(settings.shared_memory, memory.make, self._wake)
        self._loop = loop
        self._lent: dict[Serving, tuple[Lending, memory.Passing]] = {}
        self._tickets: dict[bytes, memory.Passing] = {}
        self._borrowed: dict[Borrowing, memory.Catching] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        _all[id(self)] = self

    def share(self, wanted: Callable[[], bool]) -> Share | None:
        """What one Pub has of the pool; see `Pool.share`."""
        return None if self.pool is None else self.pool.share(wanted)

    # --- what others are lent -----------------------------------------------------------

    def lend(self, link: Link, serving: Serving) -> None:
        """That link may lend memory, if its other end is on this host."""
        if self.pool is None or link.kind != UNIX:
            return

        def announce(ticket: bytes) -> None:
            self._tickets[ticket] = passing
            serving.say(Offer(ticket))

        passing = memory.Passing(announce)
        serving.lending = Lending(self.pool, passing.offer, serving.say)
        self._lent[serving] = serving.lending, passing

    def joined(self, transport: Any, ticket: bytes, rest: bytes) -> None:
        """A connection begins with a ticket: descriptors are to be passed there."""
        passing = self._tickets.pop(ticket, None)
        sock = transport.get_extra_info("socket")
        try:
            if passing is not None and not rest and unix.is_unix(sock):
                own = socket.socket(fileno=os.dup(sock.fileno()))
                own.setblocking(False)
                passing.joined(own)
        except OSError:  # no descriptor is left: all goes by the link
            pass
        finally:
            transport.abort()

    def lend_no_more(self, serving: Serving) -> None:
        """The link is over."""
        lent = self._lent.pop(serving, None)
        if lent is not None:
            lending, passing = lent
            lending.end()
            passing.end()
            for ticket in [key for key, of in self._tickets.items() if of is passing]:
                del self._tickets[ticket]

    def _wake(self) -> None:
        """The pool has changed. In any thread, and at any place."""
        try:
            self._loop.call_soon_threadsafe(self._changed)
        except RuntimeError:
            pass  # the loop is closed, and with it every link

    def _changed(self) -> None:
        pool = self.pool
        if pool is None or self._closed:
            return
        while pool.departed:
            segment = pool.departed.popleft()
            for lending, passing in self._lent.values():
                passing.retired(segment)
                lending.retired(segment)
        if self._timer is None and pool.segments:
            self._timer = self._loop.call_later(IDLE / 2, self._look)

    def _look(self) -> None:
        self._timer = None
        assert self.pool is not None
        self.pool.look(self._loop.time())
        self._changed()

    # --- what others lend ---------------------------------------------------------------

    def borrow(self, link: Link, way: Way, output: Callable[[], None]) -> Borrowing | None:
        """Take what the other end of that link lends; None: it can lend nothing."""
        if link.kind != UNIX or not memory.available():
            return None

        def wake() -> None:
            try:
                self._loop.call_soon_threadsafe(output)
            except RuntimeError:
                pass  # the loop is closed

        name = way.host.removesuffix(LOCALHOST)
        borrowing = Borrowing(wake)
        self._borrowed[borrowing] = memory.Catching(
            *(self._loop, name, borrowing, link.send, link.fail)
        )
        return borrowing

    def come(self, borrowing: Borrowing, ticket: bytes) -> None:
        """The publisher offers memory."""
        self._borrowed[borrowing].come(ticket)

    def borrow_no_more(self, borrowing: Borrowing) -> None:
        """The link is over."""
        catching = self._borrowed.pop(borrowing, None)
        if catching is not None:
            catching.end()
            borrowing.end()

    # --- the end, and forks -------------------------------------------------------------

    def close(self) -> None:
        """Nothing is put into the pool any more, and what goes is told to nobody. What nobody holds
        of it goes now, though the Peer itself may be kept."""
        self._closed = True
        if self.pool is not None:
            self.pool.close()
        if self._timer is not None:
            self._timer.cancel()

    def before_fork(self) -> None:
        """What goes from now on may be in the child."""
        if self.pool is not None:
            self.pool.forking = True
        for borrowing in list(self._borrowed):
            borrowing.forking = True

    def after_fork(self) -> None:
        """The child has what this process has now: none of it may change any more."""
        if self.pool is not None:
            self.pool.retire_used()
            self.pool.forking = False
        for borrowing in list(self._borrowed):
            borrowing.keep()
            borrowing.forking = False

    def abandon_after_fork(self) -> None:
        """In the child: nobody is told of anything."""
        self._closed = True
        if self.pool is not None:
            self.pool.close()
        for borrowing in self._borrowed:
            borrowing.end()


def _standing() -> list[Sharing]:
    """All of this process, in one step: another thread may make one meanwhile."""
    return [sharing for found in _all.valuerefs() if (sharing := found()) is not None]


def _before_fork() -> None:
    for sharing in _standing():
        sharing.before_fork()


def _after_fork() -> None:
    for sharing in _standing():
        sharing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)
