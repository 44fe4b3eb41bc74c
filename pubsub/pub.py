"""Pub: what a publisher holds.

`Pub(...)` gives one of two faces of the same thing. `AsyncPub` lives in an event loop: `put`
encodes and appends, and the loop's turn ends with the batch in the log. `BlockingPub` belongs to
a Peer on a background thread and may be used from any thread: `put` does the same under a lock,
and hands whole batches over to the loop's thread.

The fast path of `put` is one C call (encode), one subtraction and one append. Everything that
can be out of the ordinary (first message of a batch, batch full, large message, buffer full,
closed, forked) shows in ``left <= 0``, or in large buffers beside the message: see `_slow`.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from itertools import chain, islice
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pubsub.codec import CODECS, LARGE, Encoder
from pubsub.config import BATCH_BYTES, MIB, seconds
from pubsub.core.frames import BATCH_COST, array_header
from pubsub.core.publication import Publication
from pubsub.core.topics import check_topic
from pubsub.errors import Closed, MessageTooLarge, WrongContext
from pubsub.logs import logger
from pubsub.peer import Peer, cannot_travel, check_peer, default_peer, faces, running_loop
from pubsub.reentry import interrupts_the_core

if TYPE_CHECKING:
    from typing_extensions import Self

    from pubsub.ready import Ready
    from pubsub.runtime import Runtime

__all__ = ["AsyncPub", "BlockingPub", "Pub"]

log = logger("pubsub.pub")

OVERHEAD = BATCH_COST + len(array_header(0))
"""What a batch counts for beyond its messages."""
HANDOVER_BYTES = 1 * MIB
"""Bytes that a BlockingPub may be ahead of its loop's thread; then `put` lets that run."""

UNAWAITED = 1 * MIB
"""Bytes that may wait for room in an AsyncPub with nobody awaiting them, if its `buffer` is not
more."""

PATIENCE = 1.0
"""Seconds that a put waits for the loop's thread to catch up."""

FIRST_GRANT = 64
"""Bytes that a batch may have at first, where other Pubs put in the same turn too."""

LOOK_AGAIN = 0.001
"""Seconds until the loop's thread looks again for a batch that was being put into."""

LOOKS = 5
LOCK_WAIT = 0.02
"""It waits for so long for whoever puts, after so many looks in vain."""

LOCKED_PUTS = 255
"""Messages of one put_many that a BlockingPub puts without letting other threads in between."""
_PLAIN = (list, tuple)
"""What can be gone through without running code of others."""

Batch = tuple[int, bytes, tuple[bytes, ...], float]


class _Turn:
    """What `put` returns in an event loop when it has filled a batch: awaiting it lets the loop
    run once, so that a long row of awaited puts holds up nobody."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield

    def __repr__(self) -> str:
        return "<put: done>"


_TURN = _Turn()
_ONE = array_header(1)
_NEVER = float("-inf")


class Pub:
    """Publishes messages on a topic, straight to every subscriber.

    Made where no event loop runs, it belongs to the process's default `Peer` and its calls block;
    made inside a running event loop, it belongs to that loop, and what waits is awaited. One Pub
    is one stream: its messages arrive at each Sub in the order of the puts.

    Parameters:
        topic: segments split by ``/``, such as ``"sensors/kitchen/temp"``; no wildcards.
        peer: the Peer to belong to; default: the process's, or the running loop's, own.
        overflow: what happens when `buffer` is full. ``"drop"``: the oldest messages go, and are
            counted as lost by each Sub that had not got them; a put never waits. ``"block"``:
            a put waits until there is room (in an event loop: ``await pub.put(...)``).
        buffer: bytes of encoded messages to keep for subscribers that are behind. Default 64 MiB.
        history: how many past messages to keep for Subs that ask for them. Default 0.
        codec: ``"msgpack"`` (default), ``"pickle"`` (any object, and only to a
            ``Sub(allow_pickle=True)``) or ``"raw"`` (bytes only).

    Raises:
        TopicError: the topic is not valid.
        CoordinatorUnavailable: blocking only, when no coordinator was ever reached; in an event
            loop ``await pub`` (or ``async with pub``) raises it.

    Example:
        >>> from pubsub import Pub, Sub
        >>> sub = Sub("greetings")
        >>> with Pub("greetings") as pub:
        ...     pub.put({"hello": "world"})
        >>> sub.get(timeout=5)
        {'hello': 'world'}
        >>> sub.close()
    """

    _runtime: Runtime
    _publication: Publication
    _ready: Ready

    def __new__(cls, *args: Any, peer: Peer | None = None, **kwargs: Any) -> Pub:
        """The face that fits: blocking or async."""
        if cls is Pub:
            blocking = running_loop() is None if peer is None else check_peer(peer).blocking
            cls = BlockingPub if blocking else AsyncPub
        return object.__new__(cls)

    def __init__(
        self,
        topic: str,
        *,
        peer: Peer | None = None,
        overflow: Literal["drop", "block"] = "drop",
        buffer: int = 64 * MIB,
        history: int = 0,
        codec: Literal["msgpack", "pickle", "raw"] = "msgpack",
    ) -> None:
        self._dead: Exception | None = None
        self._left: float = 0
        self.topic = check_topic(topic)
        if overflow not in ("drop", "block"):
            raise ValueError(f'overflow {overflow!r} is neither "drop" nor "block"')
        if codec not in CODECS:
            raise ValueError(f"codec {codec!r} is none of {', '.join(map(repr, CODECS))}")
        self.overflow = overflow
        self.buffer = _whole("buffer", buffer, 1)
        self.history = _whole("history", history, 0)
        self.codec = codec
        self.peer = peer if peer is not None else default_peer()
        self._block = overflow == "block"
        self._max_message = self.peer.settings.max_message
        self._batch_bytes = max(1, min(BATCH_BYTES, buffer // 4, self._max_message))
        self._encoder = Encoder(codec, self.topic, self._max_message)
        self._parts: list[bytes] = []
        self._more = 0  # bytes that the batch may have beyond `_left`, once they are granted
        self._done: Any = None  # what `put` returns when there is nothing to wait for
        self._handover: deque[tuple[int, Batch]] = deque()  # closed batches, with the size of each
        self._handed = 0  # bytes ever handed over
        self._taken = 0  # of these, in the log: written by the loop's thread
        self._used = 0  # bytes in the log, as last seen by the loop's thread
        self._draining = False
        self._open()

    def _open(self) -> None:
        raise NotImplementedError

    if TYPE_CHECKING:  # of either face: what is awaited in an event loop returns at once elsewhere

        def __enter__(self) -> Self: ...
        def __exit__(self, *exc: object) -> None: ...
        def __await__(self) -> Generator[Any, Any, Self]: ...
        def __aenter__(self) -> Coroutine[Any, Any, Self]: ...
        def __aexit__(self, *exc: object) -> Coroutine[Any, Any, None]: ...

    # --- putting ------------------------------------------------------------------------

    def put(self, value: Any) -> Any:
        """Publish a message.

        The value is encoded now: what happens to it later changes nothing. A Pub that was made in
        an event loop is used in that loop's thread only, any other in every thread.

        Returns:
            in an event loop an awaitable, which is worth awaiting only with
            ``overflow="block"`` (then it must be); else None. Cancelling one that waits for room
            puts nothing; one that was put already stays put.

        Raises:
            EncodeError: the codec cannot carry the value. Nothing was put.
            MessageTooLarge: it is above the Peer's `max_message`. Nothing was put.
            Closed: the Pub is closed.
            WrongContext: another put on this Pub is encoding its value, and this one interrupts
                it (from a signal handler, a destructor, or the value's own code); or with
                ``overflow="block"`` in an event loop as much as `buffer` (at least 1 MiB) waits
                for room already, and nobody awaits it. Nothing was put.
        """
        raise NotImplementedError

    def put_many(self, values: Iterable[Any]) -> Any:
        """Publish many messages, as `put` does one by one, in order.

        An error leaves the messages before it put, and those behind it not.
        """
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> Any:
        """Wait until every Sub that is connected, expected or reconnecting has received what was
        put so far (observers are not waited for). To be awaited in an event loop.

        Parameters:
            timeout: seconds to wait; None: for ever.

        Raises:
            TimeoutError: `timeout` seconds were not enough.
            Closed: the Pub was closed before.
        """
        raise NotImplementedError

    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> Any:
        """Wait until `n` Subs are connected. To be awaited in an event loop.

        Parameters:
            timeout: seconds to wait; None: for ever.

        Raises:
            TimeoutError: after `timeout` seconds there were fewer.
            Closed: the Pub was closed meanwhile.
        """
        raise NotImplementedError

    def close(self, linger: float | None = None) -> Any:
        """Close: wait up to `linger` seconds (default: the Peer's) until every Sub has received
        what was put, then end the stream; who has not received it then is named in a warning. May
        be called again. In an event loop it begins at once, and is to be awaited for the end.
        """
        raise NotImplementedError

    def _slow(self, data: bytes, value: Any, buffers: tuple[bytes, ...]) -> Any:
        """A put that is out of the ordinary."""
        raise NotImplementedError

    def _put_run(self, values: Iterable[Any]) -> Any:
        """Put these, up to and with the first whose put has something to wait for: returns that,
        and None at the end. Taking the next value must run no code of others: it might put."""
        encoder, done = self._encoder, self._done
        for value in values:
            pack, encoder.pack = encoder.pack, encoder.refuse
            try:
                data = pack(value)
                buffers = encoder.take() if encoder.buffers else ()
            except BaseException as error:
                encoder.pack = pack
                self._encode_failed(error, value)
            encoder.pack = pack
            left = self._left - len(data)
            if left > 0 and not buffers:
                self._left = left
                self._parts.append(data)
            else:
                later = self._slow(data, value, buffers)
                if later is not done:
                    return later
        return None

    def _encode_failed(self, error: BaseException, value: Any) -> NoReturn:
        explained = self._encoder.error(error, value)
        if not isinstance(error, Exception):  # KeyboardInterrupt, say: no fault of the value's
            raise error
        raise explained from None

    def _encode_large(
        self, data: bytes, value: Any, buffers: tuple[bytes, ...]
    ) -> tuple[bytes, tuple[bytes, ...]]:
        """A message whose encoding is large, or already left buffers aside: take its large bytes
        out of band, and check its size."""
        encoder = self._encoder
        if not buffers and len(data) >= LARGE:
            packed = len(data)
            pack, encoder.pack = encoder.pack, encoder.refuse
            try:
                data = encoder.pack_out_of_band(value, data)
                buffers = encoder.take()
            except BaseException as error:
                encoder.pack = pack
                self._encode_failed(error, value)
            encoder.pack = pack
            encoder.let_go(packed)
        encoder.look(bool(buffers))  # who puts something large puts more of it
        size = len(data) + sum(map(len, buffers))
        if size > self._max_message:
            raise MessageTooLarge(topic=self.topic, size=size, limit=self._max_message)
        return data, buffers

    def seal(self) -> None:
        """See `Source`: called in the loop's thread."""
        raise NotImplementedError

    def collect(self) -> None:
        """See `Source`: called in the loop's thread."""
        self.seal()

    def putting(self) -> bool:
        """See `Source`."""
        return False

    def _hand_over(self) -> None:
        """Close the pending batch. Its messages are let go when it is there: an exception from a
        signal handler takes nothing with it that was put, and a handler's put may come between."""
        while self._parts:
            parts = self._parts
            count = len(parts)
            body = _body_of(parts, count)
            append, item = self._handover.append, _with_size((count, body, (), time.time()))
            if self._parts is parts:  # else a signal handler's put has handed them over meanwhile
                # Nothing is called from here to the end: Python looks for signals after calls.
                self._handed += item[0]
                self._left = self._more = 0
                self._parts = parts[count:]
                append(item)

    def _ahead(self) -> int:
        """Bytes handed over and not in the log yet; at least."""
        return self._handed - self._taken

    def _hand(self, batch: Batch) -> None:
        """Add a batch behind those that are closed."""
        append, item = self._handover.append, _with_size(batch)
        self._handed += item[0]
        append(item)

    def _drain(self) -> None:
        """Bring what was handed over into the log; in the loop's thread. No put does this by
        itself where it interrupts the core (from a signal handler, say), whose books may not agree
        at that moment."""
        if self._draining:
            return  # we interrupt it, and it will go on
        self._draining = True
        handover, publication = self._handover, self._publication
        taken = self._taken
        try:
            while handover:
                size, batch = handover.popleft()
                taken += size
                publication.append(*batch)
        finally:
            self._used = publication.log.size  # before `_taken`: see `_held`
            self._taken = taken
            self._draining = False

    def queued(self) -> asyncio.Future[None] | None:
        """See `Source`."""
        return None

    def abandon(self, error: Exception) -> None:
        """See `Source`."""
        self._dead = error
        self._left = _NEVER
        self._parts = []

    def _check(self) -> None:
        if self._dead is not None:
            raise self._dead

    # --- for people ---------------------------------------------------------------------

    @property
    def subscribers(self) -> dict[str, dict[str, Any]]:
        """The Subs that get this stream: address → how each stands.

        The address is ``host:port#n``, with the Sub's number in its process, or ``peer id#n`` of
        one that is only expected yet. Of each: ``state`` (``attached``, ``expected`` or
        ``reconnecting``), ``lag`` (messages that it has not yet taken), ``lost`` (messages that
        left the buffer before they could be sent, or were too large for it), ``observer``.
        """
        found = {}
        for state, cursor in self._publication.cursors():
            found[cursor.name] = {
                "state": state,
                "lag": cursor.lag,
                "lost": cursor.lost,
                "observer": cursor.observer,
            }
        return found

    def _count(self) -> int:
        """How many messages were put, as far as can be seen from any thread."""
        under_way = sum(batch[0] for _, batch in tuple(self._handover))
        return self._publication.log.next_seq + under_way + len(self._parts)

    @property
    def closed(self) -> bool:
        """Whether the Pub is closed."""
        return self._dead is not None

    def __reduce__(self) -> NoReturn:
        raise cannot_travel(self)

    def __repr__(self) -> str:
        if self._dead is not None:
            return f"<Pub {self.topic!r}: closed>"
        subscribers = self._publication.attached
        return f"<Pub {self.topic!r}: {self._count()} put, {subscribers} subscribers>"


class _Place(asyncio.Future[None]):
    """What `put` returns when it has to wait for room: done when the message was put.

    Attributes:
        message: what is to be put, and how much of the buffer it needs; None: nothing any more.
        awaited: somebody waits for it.
    """

    def __init__(self, pub: AsyncPub, message: tuple[bytes, tuple[bytes, ...], int]) -> None:
        super().__init__(loop=pub._runtime.loop)
        self.message: tuple[bytes, tuple[bytes, ...], int] | None = message
        self.awaited = False
        self._pub = pub

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._pub._withdraw(self)
        return cancelled

    def __await__(self) -> Generator[Any, None, None]:
        self.awaited = True
        return super().__await__()

    __iter__ = __await__


class AsyncPub(Pub):
    """A Pub inside an event loop."""

    def _open(self) -> None:
        if self.peer.blocking:
            raise WrongContext(
                "this Peer runs on a thread of its own: Pub(peer=…) made with it is blocking"
            )
        self._runtime = runtime = self.peer.runtime
        self._grant = 0  # bytes that `_left` last grew by
        self._queue: OrderedDict[_Place, None] = OrderedDict()  # puts that wait for room
        self._queued_bytes = 0
        self._emptied: asyncio.Future[None] | None = None  # what waits for the queue to be empty
        self._closing: asyncio.Task[None] | None = None
        self._done = runtime.loop.create_future()
        self._done.set_result(None)
        self._publication, self._ready = runtime.add_pub(
            _WeakSource(self),
            self.topic,
            codec=self.codec,
            block=self._block,
            buffer=self.buffer,
            history=self.history,
        )
        self._finalizer = weakref.finalize(
            self, _drop_pub, weakref.ref(runtime), self._publication.stream_id
        )
        self._finalizer.atexit = False

    def put(self, value: Any) -> Awaitable[None]:
        encoder = self._encoder
        pack, encoder.pack = encoder.pack, encoder.refuse
        try:
            data = pack(value)
            buffers = encoder.take() if encoder.buffers else ()
        except BaseException as error:
            encoder.pack = pack
            self._encode_failed(error, value)
        encoder.pack = pack
        left = self._left - len(data)
        if left <= 0 or buffers:
            return self._slow(data, value, buffers)
        self._left = left
        self._parts.append(data)
        return self._done  # type: ignore[no-any-return]  # a future

    def _slow(self, data: bytes, value: Any, buffers: tuple[bytes, ...]) -> Awaitable[None]:
        """A put that is out of the ordinary."""
        if self._dead is not None:
            raise self._dead
        full = bool(self._parts)  # or out of what it was granted
        if full and not buffers and len(data) < self._left + self._more:
            return self._later(self._append(data))
        if buffers or len(data) >= self._batch_bytes:
            data, buffers = self._encode_large(data, value, buffers)
        else:
            self._encoder.look(False)
        if self._block:
            size = len(data) + sum(map(len, buffers)) + OVERHEAD
            if self._queue or not self._fits(size):
                return self._enqueue((data, buffers, size))
        return self._later(self._admit(data, buffers) or (full and not buffers))

    def _enqueue(self, message: tuple[bytes, tuple[bytes, ...], int]) -> Awaitable[None]:
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

    def _later(self, now: bool) -> Awaitable[None]:
        """What `put` returns; `now`: it is time to let the loop run."""
        done: Awaitable[None] = self._done
        return _TURN if now else done

    def _fits(self, size: int) -> bool:
        """Whether there is room for so much more."""
        if self._parts:
            self._hand_over()
        if self._publication.log.size + self._ahead() + size <= self.buffer:
            return True
        return not interrupts_the_core() and self._make_room(size)

    def _make_room(self, size: int) -> bool:
        self.seal()
        return self._publication.room(size)

    def _admit(self, data: bytes, buffers: tuple[bytes, ...]) -> bool:
        """Put what there is room for; True: it has filled the batch."""
        runtime = self._runtime
        if get_ident() != runtime.thread:
            raise WrongContext(
                f"Pub({self.topic!r}) belongs to the event loop of another thread: use it "
                "there, or make a Pub outside of any loop, which all threads may use"
            )
        if buffers or len(data) >= self._batch_bytes or self._dead is not None:
            body = _body_of([data], 1)
            if not self._parts and not self._handover:
                runtime.turn.pending(self)
            self._hand_over()  # it is alone in its batch: who refuses it gets the others
            self._hand((1, body, buffers, time.time()))
            self._keep_up()
            return not buffers or runtime.turn.grant(sum(map(len, buffers)))
        if not self._parts:
            alone = runtime.turn.pending(self)
            self._more = self._batch_bytes
            if self._block:
                room = self.buffer - self._publication.log.size - self._ahead() - OVERHEAD
                self._more = min(self._more, max(1, room))
            self._grant = self._more if alone else FIRST_GRANT // 2
        time_to_run = self._append(data)
        if self._left <= 0:
            self._hand_over()
            self._keep_up()
            return True
        return time_to_run

    def _keep_up(self) -> None:
        """Who puts very much in one turn of the loop keeps it in the log, where it may be dropped,
        and not beside it."""
        if self._ahead() > HANDOVER_BYTES and not interrupts_the_core():
            self._drain()

    def _append(self, data: bytes) -> bool:
        """Add to the batch, which is granted more of its room as it grows: twice as much each
        time, so that a turn knows by half what all Pubs together put in it. True: it is time to
        let the loop run."""
        self._parts.append(data)
        left = self._left - len(data)
        time_to_run = False
        if left <= 0 and self._more:
            self._grant = size = min(self._more, max(2 * self._grant, 1 - int(left)))
            self._more -= size
            left += size
            time_to_run = self._runtime.turn.grant(size)
        self._left = left
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
                self._admit(data, buffers)
                place.set_result(None)
            self._leave(place)

    def put_many(self, values: Iterable[Any]) -> Awaitable[None]:
        if self._block:
            return self._put_each(values)
        if type(values) in _PLAIN:
            rest = iter(values)
            while self._put_run(rest) is not None:
                pass
        else:
            for value in values:
                self.put(value)
        done: Awaitable[None] = self._done
        return done

    async def _put_each(self, values: Iterable[Any]) -> None:
        if type(values) in _PLAIN:
            rest = iter(values)
            while (later := self._put_run(rest)) is not None:
                await later
        else:
            for value in values:
                await self.put(value)

    def seal(self) -> None:
        """See `Source`."""
        if self._parts:
            self._hand_over()
        self._drain()

    def collect(self) -> None:
        """See `Source`."""
        self.seal()
        if self._queue:
            self._room_opened()

    def queued(self) -> asyncio.Future[None] | None:
        """See `Source`."""
        if not self._queue:
            return None
        if self._emptied is None or self._emptied.done():
            self._emptied = self._runtime.loop.create_future()
        return self._emptied

    def abandon(self, error: Exception) -> None:
        """See `Source`."""
        if not isinstance(error, WrongContext):
            self.seal()
        super().abandon(error)
        forgotten = 0
        for place in list(self._queue):
            if not place.done():
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
            )

    async def flush(self, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        await flush(self, self._runtime, self._publication, timeout)

    async def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        await wait_attached(self._runtime, self._publication, n, timeout)

    def close(self, linger: float | None = None) -> Awaitable[None]:
        linger = seconds("linger", linger)
        if self._dead is None:
            self.seal()
            super().abandon(Closed(f"Pub({self.topic!r}) is closed"))  # what waits for room may go
            self._finalizer.detach()
            self._closing = self._runtime.loop.create_task(self._end(linger))
        done: Awaitable[None] = self._done
        return done if self._closing is None else asyncio.shield(self._closing)

    async def _end(self, linger: float | None) -> None:
        await self._runtime.close_pub(self._publication.stream_id, linger)

    def __await__(self) -> Generator[Any, Any, Self]:
        """Wait until it is ready: the coordinators have named the Subs that are there.

        Raises:
            CoordinatorUnavailable: none could be reached in time.
        """
        yield from self._ready.wait().__await__()
        return self

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __enter__(self) -> NoReturn:
        raise WrongContext("in an event loop a Pub is entered by `async with`, not `with`")

    def __exit__(self, *exc: object) -> None: ...


class BlockingPub(Pub):
    """A Pub outside event loops, for any thread."""

    def _open(self) -> None:
        if not self.peer.blocking:
            raise WrongContext("this Peer belongs to an event loop: make the Pub inside it")
        self._make_locks()
        self._looks_again = False  # the loop's thread, for the unfinished batch
        self._missed = 0  # looks in a row that found the lock taken
        self._waiting: list[int] = []  # bytes that each put has that waits
        self._runtime = self.peer.runtime
        try:
            self.peer.call(self._add)  # there, so that all is set before the loop's thread needs it
            self._finalizer = weakref.finalize(
                self, _drop_pub, weakref.ref(self._runtime), self._publication.stream_id
            )
            self._finalizer.atexit = False
            self.peer.wait(self._ready.wait())
        except BaseException:
            self.peer.call_soon(self._undo)
            raise

    def _make_locks(self) -> None:
        self._lock = threading.RLock()  # a signal handler may put, in the middle of a put
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._roomy = threading.Condition(self._lock)
        self._closing = threading.RLock()

    def _add(self) -> None:
        self._publication, self._ready = self._runtime.add_pub(
            _WeakSource(self),
            self.topic,
            codec=self.codec,
            block=self._block,
            buffer=self.buffer,
            history=self.history,
        )

    def _undo(self) -> None:
        """The constructor was interrupted, maybe while `_add` was still to run."""
        publication = getattr(self, "_publication", None)
        if publication is not None:
            self.abandon(Closed(f"Pub({self.topic!r}) was not made"))
            self._runtime.end_pub(publication.stream_id)

    def put(self, value: Any) -> None:
        try:  # `with` costs twice as much; inside `try`, no interrupt leaves the lock behind
            self._acquire()
            encoder = self._encoder
            pack, encoder.pack = encoder.pack, encoder.refuse
            try:
                data = pack(value)
                buffers = encoder.take() if encoder.buffers else ()
            except BaseException as error:
                encoder.pack = pack
                self._encode_failed(error, value)
            encoder.pack = pack
            left = self._left - len(data)
            if left <= 0 or buffers:
                self._slow(data, value, buffers)
            else:
                self._left = left
                self._parts.append(data)
        finally:
            try:
                self._release()
            except RuntimeError:  # it was interrupted while it waited for the lock
                pass

    def put_many(self, values: Iterable[Any]) -> None:
        if type(values) in _PLAIN:
            rest = iter(values)
            for first in rest:
                with self._lock:  # not for all of them: others want to put too
                    self._put_run(chain((first,), islice(rest, LOCKED_PUTS)))
        else:
            for value in values:
                self.put(value)

    def _slow(self, data: bytes, value: Any, buffers: tuple[bytes, ...]) -> None:
        """A put that is out of the ordinary; under the lock."""
        self._check()
        if buffers or len(data) >= self._batch_bytes:
            data, buffers = self._encode_large(data, value, buffers)
        else:
            self._encoder.look(False)
        size = len(data) + sum(map(len, buffers)) + OVERHEAD
        if self._block:
            self._wait_for_room(size)
        elif self._ahead() > HANDOVER_BYTES:
            self._let_it_catch_up()
        if buffers or len(data) >= self._batch_bytes:
            self._wake()
            body = _body_of([data], 1)
            self._hand_over()  # a large message is alone in its batch: who refuses it gets the rest
            self._hand((1, body, buffers, time.time()))
            return
        if not self._parts:
            left: float = self._batch_bytes
            if self._block:
                left = min(left, max(1, self.buffer - self._held() - OVERHEAD))
            self._wake()  # before `_left` lets the next put do without: it may be interrupted
            if not self._parts:  # a signal handler's put may have begun the batch
                self._left = left
        left = self._left - len(data)
        self._left = left
        self._parts.append(data)
        if self._left <= 0:
            self._hand_over()

    def putting(self) -> bool:
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
        if not self.peer.here:
            self._wait(lambda: self._ahead() <= HANDOVER_BYTES, patience=PATIENCE)
        elif not interrupts_the_core():  # else it will do so when it goes on
            self._take_over()

    def _wait(
        self, there: Callable[[], bool], size: int = 0, patience: float | None = None
    ) -> None:
        """Wait, under the lock, until it is so, the Pub is closed, or for `patience` seconds
        nothing was said."""
        self._waiting.append(size)
        asked = False
        try:
            while not there():
                if not asked:  # not each time: `seal` wakes us again
                    asked = True
                    self._wake()
                if not self._roomy.wait(patience):
                    return
                self._check()
        finally:
            self._waiting.remove(size)

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

    def seal(self) -> None:
        """See `Source`."""
        with self._lock:
            if self._parts:
                self._hand_over()
        self._take_over()

    def collect(self) -> None:
        """See `Source`. Full batches are taken without the lock, and the unfinished one where
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
            self._looks_again = True
            self._runtime.loop.call_later(LOOK_AGAIN, self._look_again)
        self._take_over()

    def _look_again(self) -> None:
        if self._looks_again:
            self._runtime.turn.pending(self)

    def _take_over(self) -> None:
        """Bring what was handed over into the log, and let go those who waited for that."""
        self._drain()
        if self._waiting or self._publication.on_room is not None:
            with self._lock:
                self._look()

    def _look(self) -> None:
        """See how full the log is, and let go those who can; under the lock."""
        publication = self._publication
        if self._block:
            if self._waiting:
                # lets go what nobody waits for: for the largest that it makes room for
                any(map(publication.room, sorted(set(self._waiting), reverse=True)))
                publication.on_room = self._room_opened
            else:
                publication.on_room = None
        self._used = publication.log.size
        if self._waiting:
            self._roomy.notify_all()

    def _room_opened(self) -> None:
        with self._lock:
            self._look()

    def abandon(self, error: Exception) -> None:
        """See `Source`."""
        if isinstance(error, WrongContext):  # after a fork: whoever held the lock is not here
            self._make_locks()
        with self._lock:
            if self._parts:
                self._hand_over()  # put is put: it goes into the log before the end
            super().abandon(error)
            self._roomy.notify_all()

    def flush(self, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        self.peer.refuse_in_loop("flush()")
        self.peer.wait(flush(self, self._runtime, self._publication, timeout))

    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> None:
        self._check()
        timeout = seconds("timeout", timeout)
        self.peer.refuse_in_loop("wait_for_subscribers()")
        self.peer.wait(wait_attached(self._runtime, self._publication, n, timeout))

    def close(self, linger: float | None = None) -> None:
        linger = seconds("linger", linger)
        if self._dead is None:
            self.peer.refuse_in_put()  # the end would wait for that put
        with self._closing:  # whoever comes second waits for the end
            with self._lock:
                if self._dead is not None:
                    return
                if self._parts:
                    self._hand_over()
                self._dead = Closed(f"Pub({self.topic!r}) is closed")
                self._left = _NEVER
                self._roomy.notify_all()
            self._finalizer.detach()
            stream_id = self._publication.stream_id
            if self.peer.here:  # in a destructor, say, that the collector runs in this thread
                self._runtime.drop_pub(stream_id)
                return
            try:
                self.peer.wait(self._runtime.close_pub(stream_id, linger))
            except Closed:
                pass  # the Peer is being closed: that ends this too
            except BaseException:  # interrupted: no more lingering
                self.peer.call_soon(self._runtime.end_pub, stream_id)
                raise

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __await__(self) -> NoReturn:
        raise WrongContext(
            "this Pub was made outside an event loop and blocks: make it inside the loop to await"
        )

    async def __aenter__(self) -> NoReturn:
        self.__await__()

    async def __aexit__(self, *exc: object) -> None: ...


class _WeakSource:
    """A Pub as the runtime holds it: the runtime alone keeps no Pub alive."""

    __slots__ = ("_pub",)

    def __init__(self, pub: AsyncPub | BlockingPub) -> None:
        self._pub = weakref.ref(pub)

    def putting(self) -> bool:
        pub = self._pub()
        return pub is not None and pub.putting()

    def seal(self) -> None:
        pub = self._pub()
        if pub is not None:
            pub.seal()

    def collect(self) -> None:
        pub = self._pub()
        if pub is not None:
            pub.collect()

    def queued(self) -> asyncio.Future[None] | None:
        pub = self._pub()
        return None if pub is None else pub.queued()

    def abandon(self, error: Exception) -> None:
        pub = self._pub()
        if pub is not None:
            pub.abandon(error)


def _drop_pub(runtime_ref: weakref.ref[Runtime], stream_id: int) -> None:
    """A Pub was dropped without close(): end its stream, in the background."""
    runtime = runtime_ref()
    if runtime is not None:
        runtime.drop_pub(stream_id)


def _body_of(parts: list[bytes], count: int) -> bytes:
    """The first `count` messages as the body of a batch."""
    return _ONE + parts[0] if count == 1 else b"".join((array_header(count), *parts[:count]))


def _with_size(batch: Batch) -> tuple[int, Batch]:
    """A batch behind what it counts for in a buffer."""
    return len(batch[1]) + sum(map(len, batch[2])) + BATCH_COST, batch


async def wait_attached(
    runtime: Runtime, publication: Publication, n: int, timeout: float | None
) -> None:
    """See `Pub.wait_for_subscribers`."""
    _whole("n", n, 0)
    changed: asyncio.Future[None] | None = None
    late = False

    def wake() -> None:
        if changed is not None and not changed.done():
            changed.set_result(None)

    def time_out() -> None:
        nonlocal late
        late = True
        wake()

    publication.watchers.append(wake)
    timer = None if timeout is None else runtime.loop.call_later(timeout, time_out)
    try:
        while publication.attached < n:
            if publication.ended:
                raise Closed(f"Pub({publication.topic!r}) is closed")
            if late:
                raise TimeoutError(
                    f"{publication.attached} of {n} subscribers on {publication.topic!r} after "
                    f"{timeout:g} s"
                )
            changed = runtime.loop.create_future()
            await changed
    finally:
        publication.watchers.remove(wake)
        if timer is not None:
            timer.cancel()


async def flush(
    pub: Pub, runtime: Runtime, publication: Publication, timeout: float | None
) -> None:
    """See `Pub.flush`."""
    pub.seal()
    if not publication.ended and await runtime.received(publication, timeout):
        return
    if publication.ended:
        raise Closed(f"Pub({pub.topic!r}) was closed before its flush was done")
    raise TimeoutError(
        f"flush of {pub.topic!r}: after {timeout:g} s and not all has been received: "
        + (publication.behind() or "subscribers are still to come")
    )


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is not a whole number")
    if value < least:
        raise ValueError(f"{name}={value!r} is below {least}")
    return value


faces["pub"] = Pub
