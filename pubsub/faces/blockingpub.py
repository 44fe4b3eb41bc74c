"""The face of a Pub outside event loops, for any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from pubsub.codec.headers import Headers
from pubsub.config import seconds
from pubsub.errors import Closed, WrongContext
from pubsub.faces.face import Blocking
from pubsub.faces.pub import HANDOVER_BYTES, NEVER, OVERHEAD, Pub, flush, wait_attached
from pubsub.support.reentry import interrupts_the_core, running_loop
from pubsub.wire.buffers import Buffer

__all__ = ["BlockingPub"]

PATIENCE = 1.0
"""Seconds that a put waits for the loop's thread to catch up."""
LOOK_AGAIN = 0.001
"""Seconds until the loop's thread looks again for a batch that was being put into."""
LOOKS = 5
LOCK_WAIT = 0.02
"""It waits for so long for whoever puts, after so many looks in vain."""
LOCKED_PUTS = 255
"""Messages of one put_many that a BlockingPub puts without letting other threads in between."""


class BlockingPub(Blocking, Pub, blocking=True):
    """A Pub outside event loops, for any thread."""

    def _open(self) -> None:
        self._make_locks()
        self._looks_again = False  # the loop's thread, for the unfinished batch
        self._missed = 0  # looks in a row that found the lock taken
        self._queue: dict[object, int] = {}  # with the bytes of each
        super()._open()

    def _make_locks(self) -> None:
        self._lock = threading.RLock()  # a signal handler may put, in the middle of a put
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._roomy = threading.Condition(self._lock)
        self._closing = threading.RLock()

    def put(self, value: Any, headers: Headers | None = None) -> None:
        if headers is not None:
            return self._put_headed(value, headers)
        try:  # `with` costs twice as much; inside `try`, no interrupt leaves the lock behind
            self._acquire()
            encoder = self._encoder
            pack, encoder.pack = encoder.pack, encoder.refuse
            try:
                data = pack(value)
                buffers = encoder.take() if encoder.buffers else ()
            except BaseException as error:
                encoder.pack = pack
                data, buffers = self._encode_again(error, value)
                pack = encoder.pack
            encoder.pack = pack
            room = self._room - len(data)
            if room <= 0 or buffers:
                self._slow(data, value, buffers)
            else:
                self._room = room
                self._parts.append(data)
        finally:
            try:
                self._release()
            except RuntimeError:  # it was interrupted while it waited for the lock
                pass

    def _put_headed(self, value: Any, headers: Headers) -> None:
        with self._lock:
            data, buffers, size = self._encode_headed(value, headers)
            room = self._room - size
            if room <= 0 or buffers:
                self._slow(data, value, buffers)
            else:
                self._room = room
                self._parts.append(data)

    def put_many(self, values: Iterable[Any]) -> None:
        if type(values) in self._plain:
            rest = iter(values)
            for first in rest:
                with self._lock:  # not for all of them: others want to put too
                    self._put_run(chain((first,), islice(rest, LOCKED_PUTS)))
        else:
            for value in values:
                self.put(value)

    def _slow(self, data: bytes, value: Any, buffers: tuple[Buffer, ...]) -> None:
        """A put that is out of the ordinary; under the lock."""
        self._check()
        if buffers or len(data) >= self._batch_bytes:
            data, buffers, size = self._encode_large(data, value, buffers)
        else:
            size = len(data)
            self._encoder.expect_large(False)
        if self._block:
            self._wait_for_room(size + OVERHEAD)
        elif self._ahead() > HANDOVER_BYTES:
            self._let_it_catch_up()
        if buffers or len(data) >= self._batch_bytes:
            self._wake()
            self._hand_large(data, buffers, size)
            return
        if not self._parts:
            room: float = self._batch_bytes
            if self._block:
                room = min(room, max(1, self.buffer - self._held() - OVERHEAD))
            self._wake()  # before `_room` lets the next put do without: it may be interrupted
            if not self._parts:  # a signal handler's put may have begun the batch
                self._room = room
        needed = len(data)
        room = self._room - needed
        self._room = room
        self._parts.append(data)
        if self._room <= 0:
            self._close_full()

    def _putting(self) -> bool:
        """Whether the calling thread is in the middle of a put (as in a signal handler)."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]  # both kinds have it

    def _held(self) -> int:
        """Bytes of the buffer that are in use. What passes into the log meanwhile counts twice
        rather than not at all."""
        return self._ahead() + self._used

    def _wake(self) -> None:
        """Have the loop's thread call `collect`."""
        self._runtime.turn.pending_elsewhere(self)

    def _let_it_catch_up(self) -> None:
        """Wait until the loop's thread has taken most of what was handed over. Not for ever: it may
        want something that we hold (the lock of a log handler that publishes, say)."""
        if not self.peer._here:
            self._wait(lambda: self._ahead() <= HANDOVER_BYTES, patience=PATIENCE)
        elif not interrupts_the_core():  # else it will do so when it goes on
            self._take_over()

    def _wait(self, done: Callable[[], bool], size: int = 0, patience: float | None = None) -> None:
        """Wait, under the lock, until it is done, the Pub is closed, or for `patience` seconds
        nothing was said."""
        put = object()
        self._queue[put] = size
        asked = False
        try:
            while not done():
                if not asked:  # not each time: `seal` wakes us again
                    asked = True
                    self._wake()
                if not self._roomy.wait(patience):
                    return
                self._check()
        finally:
            del self._queue[put]

    def _wait_for_room(self, size: int) -> None:
        if self._parts:
            self._hand_over()  # what waits for room must not wait for us

        def roomy() -> bool:
            used = self._held()
            return used == 0 or used + size <= self.buffer

        if not roomy():
            if running_loop() is not None:
                raise WrongContext(
                    f"Pub({self.topic!r}, overflow='block') would have to block the event loop: "
                    "make it inside the loop, and await pub.put(...)"
                )
            self._wait(roomy, size)

    def _seal(self) -> None:
        with self._lock:
            self._hand_over()
        self._take_over()

    def _collect(self) -> None:
        """See `Puts`. Full batches are taken without the lock, and the unfinished one where
        nobody puts at this moment: a thread that puts all the time has the lock nearly all the
        time, and each of its puts would have to wake us if we waited for it. So we wait for it only
        after several looks in vain."""
        self._looks_again = False
        missed = self._missed = self._missed + 1
        if self._acquire(timeout=0 if missed < LOOKS else LOCK_WAIT):
            self._missed = 0
            try:
                if self._parts:
                    self._hand_over()
            finally:
                self._release()
        else:
            self._runtime.loop.call_later(LOOK_AGAIN, self._look_again)
            self._looks_again = True
        self._take_over()

    def _look_again(self) -> None:
        if self._looks_again:
            self._runtime.turn.pending(self)

    def _take_over(self) -> None:
        """Bring what was handed over into the log, and let go those who waited for that."""
        self._drain()
        if self._queue or self._publication.on_room is not None:
            self._room_opened()

    def _room_opened(self) -> None:
        """See how full the log is, and let go those who can."""
        publication = self._publication
        with self._lock:
            if self._block:
                if self._queue:
                    # lets go what nobody waits for: for the largest that it makes room for
                    any(map(publication.room, sorted(set(self._queue.values()), reverse=True)))
                    publication.on_room = self._room_opened
                    self._notice.begin()
                else:
                    publication.on_room = None
            self._used = publication.log.size
            if self._queue:
                self._roomy.notify_all()

    def _abandon(self, error: Exception) -> None:
        if isinstance(error, WrongContext):  # after a fork: whoever held the lock is not here
            self._make_locks()
        with self._lock:
            self._hand_over()  # put is put: it goes into the log before the end
            super()._abandon(error)
            self._roomy.notify_all()

    def flush(self, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        self.peer._refuse_in_loop("flush()")
        self.peer._wait(flush(self, timeout))

    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        self.peer._refuse_in_loop("wait_for_subscribers()")
        self.peer._wait(wait_attached(self, n, timeout))

    def close(self, linger: float | None = None) -> None:
        linger = seconds("linger", linger)
        stream_id = self._publication.stream_id
        if self._dead is None and self.peer._inside():  # the end would wait for the caller
            self._runtime.drop_pub(stream_id)
            return
        with self._closing:  # whoever comes second waits for the end
            with self._lock:
                if self._dead is not None:
                    return
                self._hand_over()
                self._dead = Closed(f"Pub({self.topic!r}) is closed")
                self._room = NEVER
                self._roomy.notify_all()
            self._finalizer.detach()
            try:
                self.peer._wait(self._runtime.close_pub(stream_id, linger))
            except Closed:
                pass  # the Peer is being closed: that ends this too
            except BaseException:  # interrupted: no more lingering
                self.peer._call_soon(self._runtime.cut_pub, stream_id)
                raise
