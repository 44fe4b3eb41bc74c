"""A lane: the socket of a link, lent to the thread that puts.

Who waits for an answer, and puts, would wake the loop's thread only to have it write. So where one
subscriber alone has all that was put, the loop's thread lends its link to a blocking Pub, whose
next message the putting thread writes itself. What was written so waits beside the log
(`Pub._handover`) until the loop's thread has to do with the link: with each read (`settle`), before
it writes itself, and before anything changes in who is subscribed (`recall`). So nothing is
answered, and nobody comes or goes, before the log has what the subscriber has.
"""

from __future__ import annotations

import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

from pubsub.core.cursor import Cursor
from pubsub.core.serving import LONE
from pubsub.links.link import Link
from pubsub.support.logs import logger
from pubsub.wire.frames import BATCH_COST, data_header

if TYPE_CHECKING:
    from pubsub.faces.blockingpub import BlockingPub

__all__ = ["Lane"]

log = logger("pubsub.pub")

LANE_BYTES = 64 * 1024
"""Bytes that may wait beside the log."""
SETTLE = 16
"""Messages that wait there when the loop's thread is asked to bring them in, which takes it 3 µs
each: while who has put the last one waits for the answer, and not when that comes."""
PATIENCE = 1.0
"""Seconds that the loop's thread waits for who is in the middle of a write, which takes some
microseconds, unless a signal handler interrupts it there."""
FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


class Lane:
    """See the module. Made in the loop's thread, between two turns, where nothing waits to be
    written.

    Attributes:
        count: messages that were written and are not in the log.
    """

    def __init__(self, pub: BlockingPub, cursor: Cursor, link: Link, sock: Any) -> None:
        self.count = 0
        self._pub = weakref.ref(pub)
        self._kept: BlockingPub | None = None  # as long as it has what is not in the log
        self._publication = pub._publication
        self._cursor = cursor
        self._largest = min(LONE, cursor.largest)
        self._link = link
        self._send = sock.send
        self._free = threading.RLock()  # it knows who holds it
        self._next = self._publication.log.next_seq
        self._left = 0
        self._rest = b""  # of a frame that the socket has taken in part
        self._doubtful = False  # whether a frame was written is not known
        self._over = False
        self._grant()
        link.lent = self
        self._publication.on_leave = self.recall

    def _grant(self) -> None:
        self._left = min(LANE_BYTES, self._cursor.limit - self._cursor.sent)

    def write(self, pub: BlockingPub, body: bytes, now: float) -> bool:
        """Write a batch of one message, under the lock of the Pub; False: it is not put."""
        free, size = self._free, BATCH_COST + len(body)
        if free._is_owned():  # type: ignore[attr-defined]  # a signal handler's put, within one
            return False
        try:
            if not free.acquire(blocking=False):
                return False
            handover = pub._handover
            if self._over or size > min(self._left, self._largest) or len(handover) != self.count:
                return False
            append, seq = handover.append, self._next
            frame = data_header(self._cursor.channel, seq, now, len(body)) + body
            item = (size, (1, body, (), now))
            self._kept = pub
            try:
                pub._handed += size  # nothing is called from here to where it is put
                self._left -= size
                self.count += 1
                self._next = seq + 1
                append(item)
                sent = self._send(frame, FLAGS)
                if sent < len(frame):
                    self._rest, self._over = frame[sent:], True
                    pub._wake()
            except OSError:  # it takes nothing now, or is broken: the loop's thread sees to it
                self._next, self._over = seq, True
                pub._wake()
            except BaseException:  # the subscriber, when it comes back, says whether it has it
                self._next, self._doubtful, self._over = seq, True, True
                pub._wake()
                raise
            if self.count == SETTLE:
                pub.peer._call_soon(self.settle)
            return True
        finally:
            try:
                free.release()
            except RuntimeError:  # the loop's thread has it
                pass

    def settle(self) -> None:
        """Bring what was written into the log; in the loop's thread, as all that follows."""
        if not self.count and not self._over:
            return
        pub = self._pub()
        if self._over or pub is None or not self._enter():
            self.recall()
            return
        try:
            self._bring_in(pub)
            self._over = self._over or self._publication.log.next_seq != self._next
            self._grant()
        finally:
            self._free.release()
        if self._over:
            self.recall()

    def recall(self) -> None:
        """Nothing more is written by it."""
        link, pub = self._link, self._pub()
        if link.lent is self:
            link.lent = self._publication.on_leave = None
        if pub is not None and pub._lane is self:
            pub._lane = None
        entered = self._enter()
        try:
            self._over = True
            if not entered:
                self._doubtful = True
            if self._rest:
                link.write(self._rest)
                self._rest = b""
            if self._doubtful:
                log.warning("a put was interrupted while it wrote: the link with %s is cut", link)
                link.abort()
            if pub is not None:
                self._bring_in(pub)
        finally:
            if entered:
                self._free.release()

    def _enter(self) -> bool:
        return self._free.acquire(timeout=PATIENCE)

    def _bring_in(self, pub: BlockingPub) -> None:
        self._cursor.written = max(self._cursor.written, self._next)
        pub._drain()
        self.count = 0
        self._kept = None
