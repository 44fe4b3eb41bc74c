"""Pub: what a publisher holds.

Here is what its two forms (`asyncpub`, `blockingpub`) share: how values are encoded and gathered
into batches, and how closed batches get into the log. All that is out of the ordinary for a `put`
shows in ``room <= 0``, or in large buffers beside the message: see `_slow`.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
import zlib
from collections import deque
from collections.abc import Iterable
from functools import partial
from math import prod
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pubsub.codec.codecs import codec_of
from pubsub.codec.encoder import LARGE
from pubsub.codec.headers import Headed, Headers, headers_of, pack_headers
from pubsub.codec.numpy_types import array_on
from pubsub.codec.own_codecs import Codec
from pubsub.config import BATCH_BYTES, MIB, whole
from pubsub.core.cursor import Cursor
from pubsub.core.pool import Share
from pubsub.core.publication import Publication
from pubsub.core.standing import Holder, listed
from pubsub.core.topics import check_topic, is_reserved
from pubsub.errors import Closed, MessageTooLarge, TopicError
from pubsub.faces.elsewhere import refuse_inside
from pubsub.faces.face import Face, Weak
from pubsub.faces.foreign import warn_of_foreign_wildcards
from pubsub.faces.peer import Peer
from pubsub.faces.process import default_peer
from pubsub.runtime.lingering import received
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit
from pubsub.wire.buffers import Block, Buffer
from pubsub.wire.frames import BATCH_COST, array_header

__all__ = ["Pub"]

log = logger("pubsub.pub")
log.logger.addFilter(RateLimit())  # of a slow subscriber, every put may have to wait

OVERHEAD = BATCH_COST + len(array_header(0))
"""What a batch counts for beyond its messages."""
HANDOVER_BYTES = 1 * MIB
"""Bytes of closed batches that may wait for the loop's turn. Beyond that, the put of a BlockingPub
lets the loop's thread run, and that of an AsyncPub brings them into the log itself."""
PLAIN = (list, tuple)
"""What can be gone through without running code of others."""
NOTICE = 1.0
"""Seconds after which a put that waits for room says for whom."""

Batch = tuple[int, bytes, tuple[Buffer, ...], float, bytes]
_ONE = array_header(1)
NEVER = float("-inf")


class Pub(Face, blocking=None):
    """Publishes messages on a topic, straight to every subscriber.

    Made where no event loop runs, it belongs to the process's default `Peer` and its calls block;
    made inside a running event loop, it belongs to that loop, and what waits is awaited. One Pub
    is one stream: its messages arrive at each Sub in the order of the puts.

    Parameters:
        topic: segments split by ``/``, such as ``"sensors/kitchen/temp"``; no wildcards.
        peer: the Peer to belong to; default: the process's, or the running loop's, own.
        overflow: what happens when `buffer` is full. ``"drop"``: the oldest messages go, and are
            counted as lost by each Sub that had not got them; a put never waits. ``"block"``:
            a put waits until there is room (in an event loop: ``await pub.put(...)``). It waits
            as long as a subscriber is connected and takes nothing, also where its process is
            stopped; for one that was killed at most a second where its host answers, and where
            that does not, for `Peer`'s `resume_timeout` (30 s) from when its link is found
            dead. After a second a warning says for whom, why and until when.
        buffer: bytes of encoded messages to keep for subscribers that are behind. Default 64 MiB.
        history: how many past messages to keep for Subs that ask for them. Default 0.
        codec: ``"msgpack"`` (default), ``"pickle"`` (any object, and only to a
            ``Sub(allow_pickle=True)``), ``"raw"`` (bytes only), or a `Codec` of your own (only to
            a Sub that was given it).

    Raises:
        TopicError: the topic is not valid.
        CoordinatorUnavailable: blocking only, when no coordinator was ever reached; in an event
            loop ``await pub`` (or ``async with pub``) raises it. Also, in the places of AuthError,
            when one takes no more Pubs and Subs.
        AuthError: in the same places, and in every call from then on, when a coordinator says that
            this process has no right to publish the topic.
        OSError: in the same places, when the Peer cannot listen on its ``host`` and ``port``.
        WrongContext: no place for it: in the middle of the work of a Peer (in a signal handler,
            say), with another face than its `peer`, where threads are replaced (gevent, eventlet),
            or where Python is ending and starts no thread any more.

    Example:
        >>> from pubsub import Pub, Sub
        >>> sub = Sub("greetings")
        >>> with Pub("greetings") as pub:
        ...     pub.put({"hello": "world"})
        >>> sub.get(timeout=5)
        {'hello': 'world'}
        >>> sub.close()
    """

    _kind = "Pub"
    _plain: ClassVar[tuple[type, ...]] = PLAIN
    """What `put_many` may put without calling `put` for each."""
    _publication: Publication
    _share: Share | None  # of the memory that others on this host see
    _queue: dict[Any, Any]  # puts that wait for room, the oldest first

    def __init__(
        self,
        topic: str,
        *,
        peer: Peer | None = None,
        overflow: Literal["drop", "block"] = "drop",
        buffer: int = 64 * MIB,
        history: int = 0,
        codec: Literal["msgpack", "pickle", "raw"] | Codec = "msgpack",
    ) -> None:
        refuse_inside("Pub")
        self._dead: Exception | None = None
        self._room: float = 0
        self.topic = check_topic(topic)
        if is_reserved(self.topic):
            raise TopicError(topic, f"topic {topic!r} begins with '$': that is the runtime's own")
        warn_of_foreign_wildcards(self.topic)
        if overflow not in ("drop", "block"):
            raise ValueError(f'overflow {overflow!r} is neither "drop" nor "block"')
        encoder = codec_of(codec).encoder
        self.overflow = overflow
        self.buffer = whole("buffer", buffer, 1)
        self.history = whole("history", history, 0)
        self.codec = codec.name if isinstance(codec, Codec) else codec
        self.peer = peer if peer is not None else default_peer(Peer)
        self._block = overflow == "block"
        self._wall_clock = this_host().wall_clock
        self._max_message = self.peer.settings.max_message
        self._batch_bytes = max(1, min(BATCH_BYTES, self.buffer // 4, self._max_message))
        self._encoder = encoder(self.topic, self._max_message)
        self._parts: list[bytes] = []
        self._headed = False  # whether any message that was put ever had headers
        self._more = 0  # bytes that the batch may have beyond `_room`, once they are granted
        self._done: Any = None  # what `put` returns when there is nothing to wait for
        self._handover: deque[tuple[int, Batch]] = deque()  # closed batches, with the size of each
        self._handed = 0  # bytes ever handed over
        self._taken = 0  # of these, in the log: written by the loop's thread
        self._used = 0  # bytes in the log, as last seen by the loop's thread
        self._draining = False
        self._notice = Notice(self)
        self._open()

    def _enter(self, weak: Weak) -> None:
        self._publication, self._ready = self._runtime.add_pub(
            weak,
            self.topic,
            codec=self.codec,
            block=self._block,
            buffer=self.buffer,
            history=self.history,
        )
        publication = self._publication
        self._share = share = self._runtime.sharing.share(lambda: publication.lends)
        if share is not None:
            self._encoder.memory, self._encoder.owns = share.spare, share.owns
            if os.environ.get("PUBSUB_CHECK"):
                share.on_back = partial(check_unchanged, self.topic)
        self._when_dropped(self._runtime.drop_pub, publication.stream_id)

    # --- putting ------------------------------------------------------------------------

    def put(self, value: Any, headers: Headers | None = None) -> Any:
        """Publish a message.

        The value is encoded now: what happens to it later changes nothing. A Pub that was made in
        an event loop is used in that loop's thread only, any other in every thread.

        Parameters:
            value: whatever the codec carries.
            headers: a dict of names to texts or bytes, at most 64 KiB, for who gets the message and
                its `Message.headers`: where it comes from, what it is part of. They count as the
                value does. Nobody pays for them who looks at values only.

        Returns:
            in an event loop an awaitable, which is worth awaiting only with
            ``overflow="block"`` (then it must be); else None. Cancelling one that waits for room
            puts nothing; one that was put already stays put.

        Raises:
            EncodeError: the codec cannot carry the value, or the headers are no dict of str to str
                or bytes. Nothing was put.
            MessageTooLarge: it is above the Peer's `max_message`, or its headers are above 64 KiB.
                Nothing was put.
            Closed: the Pub is closed.
            WrongContext: another put on this Pub is encoding its value, and this one interrupts
                it (from a signal handler, a destructor, or the value's own code); or with
                ``overflow="block"`` in an event loop as much as `buffer` (at least 1 MiB) waits
                for room already, and nobody awaits it. Nothing was put.
        """

    def empty(self, shape: int | tuple[int, ...], dtype: Any = float) -> Any:
        """A numpy array to fill and `put`, which is then copied nowhere. **Not to be written to
        once it was put**: not by a view of it that was made before, nor by another library that
        has its memory, for every Sub of this host sees that (with ``PUBSUB_CHECK=1`` in the
        environment the log says so).

        It lies in the Peer's `shared_memory`, where Subs of this host see it. `put` makes it, and
        what it is a view of, read-only. Put again, it is sent again, still without a copy; a part
        of it is copied as any other array is. One that is never put gives its memory back when it
        is collected. Where there is no room, it is an ordinary array, which `put` copies.

        Parameters:
            shape: as numpy's; what is in it is anything.
            dtype: as numpy's, but for objects.

        Raises:
            ImportError: there is no numpy here.
            TypeError: the dtype holds objects.
            Closed: the Pub is closed.
        """
        self._check()
        return self._empty(shape, dtype)

    def _empty(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        import numpy

        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"dtype={dtype!r} has objects, which no other process can see")
        given: Any = (shape,) if isinstance(shape, Integral) else shape
        sizes = tuple(whole("shape", size, 0) for size in given)
        size = prod(sizes) * kind.itemsize
        block = None if self._share is None or size < LARGE else self._share.block(size)
        return numpy.empty(sizes, kind) if block is None else array_on(block, sizes, kind)

    def put_many(self, values: Iterable[Any]) -> Any:
        """Publish many messages, as `put` does one by one, in order.

        An error leaves the messages before it put, and those behind it not.
        """

    def flush(self, timeout: float | None = None) -> Any:
        """Wait until every Sub that is connected, expected or reconnecting has received what was
        put so far (observers are not waited for). To be awaited in an event loop.

        Parameters:
            timeout: seconds to wait; None: for ever.

        Raises:
            TimeoutError: `timeout` seconds were not enough.
            Closed: the Pub was closed before.
        """

    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> Any:
        """Wait until `n` Subs are connected. To be awaited in an event loop.

        Parameters:
            timeout: seconds to wait; None: for ever.

        Raises:
            TimeoutError: after `timeout` seconds there were fewer.
            Closed: the Pub was closed meanwhile.
        """

    def close(self, linger: float | None = None) -> Any:
        """Close: wait up to `linger` seconds (default: the Peer's) until every Sub has received
        what was put, then end the stream; who has not received it then is named in a warning. May
        be called again. In an event loop it begins at once, and is to be awaited for the end; from
        elsewhere than its thread, and from within a put that blocks (in a destructor, say), it
        begins in the loop's next turn.
        """

    if TYPE_CHECKING:  # of either form

        def _slow(self, data: bytes, value: Any, buffers: tuple[Buffer, ...]) -> Any: ...
        def _seal(self) -> None: ...  # see `Source`

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
                data, buffers = self._encode_again(error, value)
                pack = encoder.pack
            encoder.pack = pack
            room = self._room - len(data)
            if room > 0 and not buffers:
                self._room = room
                self._parts.append(data)
            else:
                later = self._slow(data, value, buffers)
                if later is not done:
                    return later
        return None

    def _encode_headed(self, value: Any, headers: Headers) -> tuple[bytes, tuple[Buffer, ...], int]:
        """A message with headers: what to put, and what it counts for. (That is a call, which a
        signal handler's put may follow: so it comes before a look at `_room`.)"""
        encoder = self._encoder
        packed = pack_headers(headers, self.topic) if headers else b""
        pack, encoder.pack = encoder.pack, encoder.refuse
        try:
            data = pack(value)
            buffers = encoder.take() if encoder.buffers else ()
        except BaseException as error:
            encoder.pack = pack
            data, buffers = self._encode_again(error, value)
            pack = encoder.pack
        encoder.pack = pack
        if packed:
            self._headed = True
            data = Headed(data, packed)
        return data, buffers, len(data)

    def _encode_again(self, error: BaseException, value: Any) -> tuple[bytes, tuple[Buffer, ...]]:
        """What to put for a value for which this was raised. Mostly it is an error to raise."""
        encoder = self._encoder
        if isinstance(error, Exception):
            return encoder.pack_again(error, value), encoder.take()
        encoder.error(error, value)
        raise error  # KeyboardInterrupt, say: no fault of the value's

    def _encode_large(
        self, data: bytes, value: Any, buffers: tuple[Buffer, ...]
    ) -> tuple[bytes, tuple[Buffer, ...], int]:
        """A message whose encoding is large, or already left buffers aside: take its large bytes
        out of band, and check its size, which is returned, too."""
        encoder = self._encoder
        headed = data if type(data) is Headed else None
        packed = len(data)
        if not buffers and packed >= LARGE:
            pack, encoder.pack = encoder.pack, encoder.refuse
            try:
                data = encoder.pack_out_of_band(value, data)
                buffers = encoder.take()
            except BaseException as error:
                encoder.pack = pack
                data, buffers = self._encode_again(error, value)
                pack = encoder.pack
            encoder.pack = pack
            if headed is not None and data is not headed:
                data = Headed(data, headed.headers)
        encoder.let_go(max(packed, len(data)))
        encoder.expect_large(bool(buffers))  # who puts something large puts more of it
        size = len(data) + sum(map(len, buffers))
        if size > self._max_message:
            raise MessageTooLarge(topic=self.topic, size=size, limit=self._max_message)
        if self._share is not None and self._share.on_back is not None:
            note_checksums(buffers)
        return data, buffers, size

    def _first_put(self) -> object | None:
        """The put that has waited for room for longest; None: none waits. For any thread."""
        return next(iter(list(self._queue)), None)

    def _hand_over(self) -> None:
        """Close the pending batch. Its messages are let go when it is there: an exception from a
        signal handler takes nothing with it that was put, and a handler's put may come between."""
        while self._parts:
            parts = self._parts
            count = len(parts)
            body = body_of(parts, count)
            headers = headers_of(parts, count) if self._headed else b""
            batch = count, body, (), self._wall_clock(), headers
            append, item = self._handover.append, (len(body) + len(headers) + BATCH_COST, batch)
            if self._parts is parts:  # else a signal handler's put has handed them over meanwhile
                # Nothing is called from here to the end: Python looks for signals after calls.
                self._handed += item[0]
                self._room = self._more = 0
                self._parts = parts[count:]
                append(item)

    def _close_full(self) -> None:
        """The batch is full. Its last message is put, whatever goes wrong now: `collect` is called
        soon, and closes the batch."""
        try:
            self._hand_over()
        except Exception:
            pass

    def _ahead(self) -> int:
        """Bytes handed over and not in the log yet; at least."""
        return self._handed - self._taken

    def _hand_large(self, data: bytes, buffers: tuple[Buffer, ...], size: int) -> None:
        """Close a batch for a large message alone: who refuses it gets those before it."""
        if self._parts:
            self._hand_over()
        headers = headers_of((data,), 1)
        batch = 1, _ONE + data, buffers, self._wall_clock(), headers
        append, item = self._handover.append, (size + OVERHEAD, batch)
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
                put = publication.log.next_seq
                size, batch = handover.popleft()
                taken += size
                publication.append(*batch)
        except BaseException:
            if publication.log.next_seq == put:  # the log does not have it
                handover.appendleft((size, batch))
                taken -= size
            raise
        finally:
            self._used = publication.log.size  # before `_taken`: see `_held`
            self._taken = taken
            self._draining = False

    def _count_all(self) -> int:
        """How many messages were put, with those that wait for room."""
        return self._count()

    def _queued(self) -> asyncio.Future[None] | None:
        """See `Source`."""
        return None

    def _abandon(self, error: Exception) -> None:
        """See `Source`."""
        self._dead = error
        self._room = NEVER
        self._parts = []

    # --- for people ---------------------------------------------------------------------

    @property
    def subscribers(self) -> dict[str, dict[str, Any]]:
        """The Subs that get this stream: address → how each stands.

        The address is ``host:port#n``, with the Sub's number in its process, or ``peer id#n`` of
        one that is only expected yet, or that nobody can dial. Of each: ``state`` (``attached``,
        ``expected`` or ``reconnecting``), ``lag`` (messages that it has not yet taken), ``lost``
        (messages that left the buffer before they could be sent, or were too large for it),
        ``observer``,
        ``holds`` (the oldest message of the buffer is kept for it; with ``overflow="block"`` a put
        that waits for room waits for these, but for observers), ``until`` (seconds for which its
        place is still held; None: as long as it is attached), ``way`` (``unix``: it has dialled
        our Unix socket, on this host; ``direct``: it has dialled us; ``reverse``: it was dialled;
        ``relay``: both have dialled one; ``local``: it is in this process; empty: it is not
        attached) and ``failed`` (why better ways failed, as far as that is known at this end, each
        in a line; `Sub.publishers` there knows all).
        """
        now = self._runtime.clock.now()
        return {
            cursor.name: {
                "state": state,
                "lag": cursor.lag,
                "lost": cursor.lost,
                "observer": cursor.observer,
                "holds": self._publication.holds(cursor),
                "until": cursor.held_for(now),
                **self._runtime.subscribers.way_of(cursor),
            }
            for state, cursor in self._publication.cursors()
        }

    def _count(self) -> int:
        """How many messages were put, as far as can be seen from any thread."""
        under_way = sum(batch[0] for _, batch in tuple(self._handover))
        return self._publication.log.next_seq + under_way + len(self._parts)

    def __repr__(self) -> str:
        if self._dead is not None:
            return f"<Pub {self.topic!r}: closed>"
        subscribers = self._publication.attached
        return f"<Pub {self.topic!r}: {self._count()} put, {subscribers} subscribers>"


class Notice:
    """Says for whom a put waits for room, once it has waited for a second; in the loop's thread."""

    __slots__ = ("_acked", "_began", "_pub", "_put", "_timer", "_told")

    _put: object  # the one that has waited for longest
    _began: float
    _acked: dict[Cursor, int]  # what those for whom it waits had taken then
    _told: set[tuple[Cursor, str]]

    def __init__(self, pub: Pub) -> None:
        self._pub = weakref.ref(pub)
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A put waits."""
        pub = self._pub()
        if self._timer is None and pub is not None:
            self._put = pub._first_put()
            self._began = pub._runtime.loop.time()
            self._acked = {holder.cursor: holder.acked for holder in _holding(pub)}
            self._told = set()
            self._timer = pub._runtime.loop.call_later(NOTICE, self._look)

    def _look(self) -> None:
        self._timer = None
        pub = self._pub()
        if pub is None or (put := pub._first_put()) is None:
            return
        if put is not self._put:
            self.begin()
            return
        holding = _holding(pub)
        # once for all of them, and again where a link breaks while its subscriber is waited for
        new = {(h.cursor, h.state) for h in holding if not self._told or h.held_for is not None}
        if new - self._told:
            self._told |= {(h.cursor, h.state) for h in holding}
            self._say(pub, holding)
        self._timer = pub._runtime.loop.call_later(NOTICE, self._look)

    def _say(self, pub: Pub, holding: list[Holder]) -> None:
        now, waited = pub._wall_clock(), pub._runtime.loop.time() - self._began

        def clock(left: float) -> str:
            return time.strftime("%H:%M:%S", time.localtime(now + left))

        log.warning(
            "Pub(%r, overflow='block'): a put has waited %.0f s for room, because the buffer is "
            "kept for %s",
            pub.topic,
            waited,
            listed(
                h.why(waited if self._acked.get(h.cursor) == h.acked else None, clock)
                for h in holding
            ),
            topic=pub.topic,
        )


def _holding(pub: Pub) -> list[Holder]:
    return pub._publication.holding(pub._runtime.clock.now())


def note_checksums(buffers: Iterable[Buffer]) -> None:
    """Have it noticed where what is put changes afterwards."""
    for buffer in buffers:
        if isinstance(buffer, Block):
            buffer.check = zlib.crc32(buffer.room)


def check_unchanged(topic: str, block: Block) -> None:
    """Nobody holds that block any more: say so where it was changed."""
    if block.check is not None and zlib.crc32(block.room) != block.check:
        log.error(
            "Pub(%r): an array of %s bytes was written to after it was put, and Subs have seen "
            "that: by a view of it, or by another library that has its memory",
            *(topic, f"{len(block):,}"),
            topic=topic,
        )


def body_of(parts: list[bytes], count: int) -> bytes:
    """The first `count` messages as the body of a batch."""
    return _ONE + parts[0] if count == 1 else b"".join((array_header(count), *parts[:count]))


async def wait_attached(pub: Pub, n: int, timeout: float | None) -> None:
    """See `Pub.wait_for_subscribers`."""
    publication = pub._publication
    n = whole("n", n, 0)
    changed = asyncio.Event()
    late = False

    def time_out() -> None:
        nonlocal late
        late = True
        changed.set()

    publication.watchers.append(changed.set)
    timer = None if timeout is None else pub._runtime.loop.call_later(timeout, time_out)
    try:
        while publication.attached < n:
            if publication.ended:
                raise Closed(f"Pub({pub.topic!r}) is closed")
            if late:
                raise TimeoutError(
                    f"{publication.attached} of {n} subscribers on {pub.topic!r} after "
                    f"{timeout:g} s"
                )
            changed.clear()
            await changed.wait()
    finally:
        if changed.set in publication.watchers:
            publication.watchers.remove(changed.set)
        if timer is not None:
            timer.cancel()


async def flush(pub: Pub, timeout: float | None, *, observers: bool = False) -> None:
    """See `Pub.flush`."""
    pub._seal()
    publication, loop = pub._publication, pub._runtime.loop
    if not publication.ended and await received(loop, publication, timeout, observers=observers):
        return
    if publication.ended:
        raise Closed(f"Pub({pub.topic!r}) was closed before its flush was done")
    raise TimeoutError(
        f"flush of {pub.topic!r}: after {timeout:g} s and not all has been received: "
        + (publication.behind(publication.log.next_seq) or "subscribers are still to come")
    )
