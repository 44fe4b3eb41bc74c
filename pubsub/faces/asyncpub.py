"""The face of a Pub inside an event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Generator, Iterable
from typing import Any

from pubsub.codec.headers import Headers, headers_of
from pubsub.config import MIB, seconds
from pubsub.errors import Closed, WrongContext
from pubsub.faces.elsewhere import begin, elsewhere
from pubsub.faces.face import InLoop
from pubsub.faces.pub import HANDOVER_BYTES, OVERHEAD, Pub, body_of, flush, wait_attached
from pubsub.support.logs import logger
from pubsub.support.reentry import interrupts_the_core, running_loop
from pubsub.wire.buffers import Buffer

__all__ = ["AsyncPub"]

log = logger("pubsub.pub")

UNAWAITED = 1 * MIB
"""Bytes that may wait for room in an AsyncPub with nobody awaiting them, if its `buffer` is not
more."""
FIRST_GRANT = 64
"""Bytes that a batch may have at first, where other Pubs put in the same turn too."""

Waiting = tuple[bytes, tuple[Buffer, ...], int]  # to be put; how much of the buffer it needs


class _LetRun:
    """What `put` returns in an event loop when it has filled a batch: awaiting it lets the loop
    run once, so that a long row of awaited puts holds up nobody."""

    def __await__(self) -> Generator[None, None, None]:
        yield

    def __repr__(self) -> str:
        return "<put: done>"


_LET_RUN = _LetRun()


class _Put(asyncio.Future[None]):
    """What `put` returns: a future that says little at a prompt, which shows it."""

    def __repr__(self) -> str:
        state = "waits for room" if not self.done() else "cancelled" if self.cancelled() else "done"
        return f"<put: {state}>"


class _Place(_Put):
    """What `put` returns when it has to wait for room: done when the message was put."""

    def __init__(self, pub: AsyncPub, message: Waiting) -> None:
        super().__init__(loop=pub._runtime.loop)
        self.message: Waiting | None = message  # None: nothing any more
        self.awaited = False  # somebody waits for it
        self._pub = pub

    def cancel(self, msg: Any = None) -> bool:
        if cancelled := super().cancel(msg):
            self._pub._withdraw(self)
        return cancelled

    def __await__(self) -> Generator[Any, None, None]:
        self.awaited = True
        return super().__await__()

    __iter__ = __await__


class AsyncPub(InLoop, Pub, blocking=False):
    """A Pub inside an event loop."""

    _done: _Put

    def _open(self) -> None:
        self._grant = 0  # bytes that `_room` last grew by
        self._queue: OrderedDict[_Place, None] = OrderedDict()
        self._queued_bytes = 0
        self._emptied: asyncio.Future[None] | None = None  # what waits for the queue to be empty
        self._closing: asyncio.Task[None] | None = None
        self._done = _Put(loop=self.peer.runtime.loop)
        self._done.set_result(None)
        super()._open()

    def put(self, value: Any, headers: Headers | None = None) -> Awaitable[None]:
        if headers is not None:
            return self._put_headed(value, headers)
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
            return self._slow(data, value, buffers)
        self._room = room
        self._parts.append(data)
        return self._done

    def _put_headed(self, value: Any, headers: Headers) -> Awaitable[None]:
        data, buffers, size = self._encode_headed(value, headers)
        room = self._room - size
        if room <= 0 or buffers:
            return self._slow(data, value, buffers)
        self._room = room
        self._parts.append(data)
        return self._done

    def _slow(self, data: bytes, value: Any, buffers: tuple[Buffer, ...]) -> Awaitable[None]:
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # as `Face._check`
        runtime = self._runtime
        if (  # the first message of a batch, and nothing else to think of
            not (self._parts or buffers or self._block)
            and len(data) < self._batch_bytes
            and running_loop() is runtime.loop
        ):
            self._encoder.expect_large(False)
            turn, size = runtime.turn, self._batch_bytes
            if not turn.pending(self):
                self._more, self._grant = size, FIRST_GRANT // 2
                return _LET_RUN if self._append(data) else self._done
            time_to_run = turn.grant(size)
            self._more, self._grant, self._room = 0, size, size - len(data)
            self._parts.append(data)
            return _LET_RUN if time_to_run else self._done
        full = bool(self._parts)  # or out of what it was granted
        if full and not buffers and len(data) < self._room + self._more:
            return _LET_RUN if self._append(data) else self._done
        if running_loop() is not self._runtime.loop:
            self._check_place()
        if buffers or len(data) >= self._batch_bytes:
            data, buffers, size = self._encode_large(data, value, buffers)
        else:
            size = len(data)
            self._encoder.expect_large(False)
        if self._block and (self._queue or not self._fits(size + OVERHEAD)):
            return self._enqueue((data, buffers, size + OVERHEAD))
        time_to_run = self._admit(data, buffers, size) or (full and not buffers)
        return _LET_RUN if time_to_run else self._done

    def _enqueue(self, message: Waiting) -> Awaitable[None]:
        """Have a put wait for room. Those who await their puts hold one each; what nobody awaits
        must have an end."""
        queue, size = self._queue, message[2]
        most = max(self.buffer, UNAWAITED)
        if queue and self._queued_bytes + size > most and not next(reversed(queue)).awaited:
            raise WrongContext(
                f"{len(queue):,} puts on Pub({self.topic!r}, overflow='block') wait for room, and "
                "nobody waits for them: `await pub.put(...)`. This one was not put"
            )
        if not queue:
            self._runtime.turn.pending(self)  # there may be room already, but not at this moment
        place = _Place(self, message)
        queue[place] = None
        self._queued_bytes += size
        self._publication.on_room = self._room_opened
        self._notice.begin()
        return place

    def _leave(self, place: _Place) -> None:
        """It waits no longer."""
        if place.message is not None:
            self._queued_bytes -= place.message[2]
            place.message = None
            del self._queue[place]
        if not self._queue:
            self._publication.on_room = None
            if self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def _withdraw(self, place: _Place) -> None:
        """It was cancelled, and is not put. What it held up may go now."""
        self._leave(place)
        if self._queue:
            self._runtime.turn.pending(self)

    def _fits(self, size: int) -> bool:
        """Whether there is room for so much more."""
        if self._parts:
            self._hand_over()
        if self._publication.log.size + self._ahead() + size <= self.buffer:
            return True
        return not interrupts_the_core() and self._make_room(size)

    def _make_room(self, size: int) -> bool:
        self._seal()
        return self._publication.room(size)

    def _admit(self, data: bytes, buffers: tuple[Buffer, ...], size: int) -> bool:
        """Put what there is room for, of that size in all; True: it has filled the batch."""
        runtime = self._runtime
        if buffers or len(data) >= self._batch_bytes or self._dead is not None:
            if not self._parts and not self._handover:
                runtime.turn.pending(self)
            self._hand_large(data, buffers, size)
            self._keep_up()
            return not buffers or runtime.turn.grant(size)
        if not self._parts:
            alone = runtime.turn.pending(self)
            self._more = self._batch_bytes
            if self._block:
                room = self.buffer - self._publication.log.size - self._ahead() - OVERHEAD
                self._more = min(self._more, max(1, room))
            self._grant = self._more if alone else FIRST_GRANT // 2
        time_to_run = self._append(data)
        if self._room <= 0:
            self._close_full()
            return True
        return time_to_run

    def _close_full(self) -> None:
        try:
            self._hand_over()
            self._keep_up()
        except Exception:
            pass

    def _keep_up(self) -> None:
        """Who puts very much in one turn of the loop keeps it in the log, where it may be dropped,
        and not beside it."""
        if self._ahead() > HANDOVER_BYTES and not interrupts_the_core():
            self._drain()

    def _append(self, data: bytes) -> bool:
        """Add to the batch, which is granted more of its room as it grows: twice as much each
        time, so that a turn knows by half what all Pubs together put in it. True: it is time to
        let the loop run."""
        needed = len(data)
        room = self._room - needed
        time_to_run = False
        if room <= 0 and self._more:
            size = min(self._more, max(2 * self._grant, 1 - int(room)))
            time_to_run = self._runtime.turn.grant(size)
            self._grant = size
            self._more -= size
            room += size
        self._room = room
        self._parts.append(data)  # last: where something raises, the message is not put
        return time_to_run

    def _room_opened(self) -> None:
        """Put what waited, as far as there is room; one that was cancelled is not put."""
        queue = self._queue
        while queue:
            place = next(iter(queue))
            if place.message is not None and not place.done():
                data, buffers, size = place.message
                if not self._make_room(size):
                    return
                self._admit(data, buffers, size - OVERHEAD)
                place.set_result(None)
            self._leave(place)

    def put_many(self, values: Iterable[Any]) -> Awaitable[None]:
        if self._block:
            return self._put_each(values)
        if type(values) in self._plain:
            rest = iter(values)
            while self._put_run(rest) is not None:
                pass
        else:
            for value in values:
                self.put(value)
        return self._done

    async def _put_each(self, values: Iterable[Any]) -> None:
        if type(values) in self._plain:
            rest = iter(values)
            while (later := self._put_run(rest)) is not None:
                await later
        else:
            for value in values:
                await self.put(value)

    def _seal(self) -> None:
        """See `Source`. Nearly always there is one batch, which goes straight into the log: with a
        thousand topics, one more deque to touch for each is one more that is not in the cache."""
        if not self._handover and not self._draining:
            self._draining = True
            try:
                parts = self._parts
                if parts:
                    count = len(parts)
                    publication, now = self._publication, self._wall_clock()
                    put = publication.log.next_seq
                    body = body_of(parts, count)
                    headers = headers_of(parts, count) if self._headed else b""
                    if self._parts is parts:  # else a signal handler's put has closed the batch
                        self._room = self._more = 0
                        self._parts = parts[count:]
                        try:
                            publication.append(count, body, (), now, headers)
                        except BaseException:
                            if publication.log.next_seq == put:  # the log does not have it
                                self._parts[:0] = parts[:count]
                            raise
            finally:
                self._draining = False
        if self._parts:  # what a signal handler has put meanwhile
            self._hand_over()
        if self._handover:
            self._drain()

    def _collect(self) -> None:
        self._seal()
        if self._queue:
            self._room_opened()

    def _count_all(self) -> int:
        return self._count() + len(self._queue)

    def _queued(self) -> asyncio.Future[None] | None:
        if not self._queue:
            return None
        if self._emptied is None or self._emptied.done():
            self._emptied = self._runtime.loop.create_future()
        return self._emptied

    def _abandon(self, error: Exception) -> None:
        if not isinstance(error, WrongContext):
            self._seal()
        super()._abandon(error)
        forgotten = 0
        for place in list(self._queue):
            if not place.done() and not self._runtime.exiting:  # else who waits stays where it is
                place.set_exception(error)
                place.exception()  # one warning for all of them, not one for each
                forgotten += not place.awaited
            self._leave(place)
        if forgotten:
            log.warning(
                "%d messages of Pub(%r, overflow='block') were never put: they waited for room, "
                "and nobody waited for them (`await pub.put(...)`)",
                forgotten,
                self.topic,
                topic=self.topic,
            )

    async def flush(self, timeout: float | None = None) -> None:
        self._check()
        self._check_place()
        await flush(self, seconds("timeout", timeout))

    async def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> None:
        self._check()
        self._check_place()
        await wait_attached(self, n, seconds("timeout", timeout))

    def close(self, linger: float | None = None) -> Awaitable[None]:
        linger = seconds("linger", linger)
        if self._dead is not None and self._closing is None:  # its Peer is closed, or was forked
            return self._done
        runtime = self._runtime
        if self._closing is None or not self._closing.done():
            if elsewhere(runtime.loop, runtime.thread):
                return begin(runtime.loop, self.close, linger)
            self._check_place()
        if self._dead is None:
            self._seal()
            self._closing = runtime.loop.create_task(self._end(linger))
            super()._abandon(Closed(f"Pub({self.topic!r}) is closed"))  # what waits for room may go
            self._finalizer.detach()
        assert self._closing is not None
        return asyncio.shield(self._closing)

    async def _end(self, linger: float | None) -> None:
        await self._runtime.close_pub(self._publication.stream_id, linger)
