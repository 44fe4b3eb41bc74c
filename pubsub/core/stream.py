"""A stream on its subscribing side: what one Sub has got, is owed and has given up of one Pub.

It hands whole batches, not decoded, to its inbox. How much may come, its `Credit` knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from pubsub.core.window import Credit
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Allocator, Arriving, Buffer, LargeBuffer
from pubsub.wire.frames import BATCH_COST, SMALLEST_BUFFER, buffers_cost
from pubsub.wire.messages import Subscribe

if TYPE_CHECKING:
    from pubsub.core.inbox import Inbox

__all__ = ["Entry", "Fate", "Route", "Side", "Stream", "StreamKey"]

Side: TypeAlias = Literal["link", "sub"]
"""Who claims an entry."""

Fate: TypeAlias = Literal["", "vanished", "unreachable"]
"""What became of a stream that ended without END, and that owed something; else empty."""


class StreamKey(NamedTuple):
    """Which Pub, anywhere."""

    peer_id: str
    stream_id: int


class Route(Protocol):
    """The way back to the publisher: a link, or the publication in the same process."""

    def ack(self, stream: Stream) -> None:
        """Tell the publisher what `stream.credit.grant()` says."""

    def unsubscribe(self, stream: Stream) -> None:
        """The Sub is closed, or cannot read this stream."""


@dataclass(slots=True, eq=False)
class Entry:
    """What an inbox holds: messages of one stream, in one batch, behind what was lost of it."""

    stream: Stream
    first: int
    end: int
    """``first <= seq < end`` are the messages to deliver."""
    skip: int = 0
    """How many values of `body` come before `first`."""
    sent_at: float = 0.0
    body: bytes | memoryview = b""
    buffers: tuple[Buffer, ...] = ()
    gaps: tuple[tuple[int, str], ...] = ()
    """``(count, reason)`` of messages that will never come, all before `first`; a count of 0, with
    the stream's `Stream.gone`: nobody knows how many; with ``reached``: that is known again."""
    size: int = 0
    """Bytes that the window counts for it."""
    error: Exception | None = None
    """Why the Sub cannot read this stream; then there are no messages."""
    slot: object = None
    """Where it waits, if others may take its place in the inbox."""
    claims: dict[str, Side] | None = None
    """Whose it is then."""
    headers: bytes = b""
    """One msgpack map of the headers of `body`'s messages; empty: none has any."""


@dataclass(slots=True, eq=False)
class Stream:
    """One Sub × one stream."""

    inbox: Inbox
    key: StreamKey
    topic: str
    publisher: str
    max_batch: int
    allocate: Allocator = LargeBuffer
    """Gives memory for large buffers that come in pieces."""
    codec: str = "msgpack"
    name: str = ""
    """Of the publisher's certificate; empty: it has none."""
    vouched: bool = False
    """The publisher has shown that it belongs here, or is this very process."""
    before: bool = False
    """The Sub is older than the Pub, and due its first message."""
    expected: int | None = None
    """The sequence number that comes next; None before the first SUBSCRIBED."""
    lost: int = 0
    """Messages that were due and will never be delivered."""
    delivered: int = 0
    last: float | None = None
    """When the newest batch that has come was put, by the publisher's clock; None: none has."""
    credit: Credit = field(init=False)
    """Its part of the Sub's window."""
    open: bool = False
    """The publisher has acknowledged the subscription and a route is there."""
    ended: bool = False
    """Nothing more will come."""
    gone: Fate = ""
    """What that means, where its publisher did not say END."""
    since: float | None = None
    """The runtime's time since when it is not open; None: it is, or is of this process."""
    route: Route | None = None
    channel: int = -1
    _said: Fate = ""  # to the Sub, since it was open last
    _assembling: Arriving | None = None
    _buffers: list[Buffer] = field(default_factory=list)
    _pending: int = 0  # what these count for

    def __post_init__(self) -> None:
        self.credit = Credit(self.inbox.window)

    # --- opening and closing ------------------------------------------------------------

    def connect(self, route: Route, channel: int) -> int:
        """A channel is being opened for it; returns the bytes that may be sent on it at first."""
        self.route = route
        self.channel = channel
        return self.credit.connect()

    def subscribe(self, route: Route, channel: int) -> Subscribe:
        """The same; returns what to ask for: the stream from the start or from where it stands."""
        limit = self.connect(route, channel)
        return Subscribe(
            channel,
            self.key.stream_id,
            self.inbox.sub_id,
            self.expected,
            self.inbox.history,
            limit,
            self.inbox.observer,
            self.before,
            self.max_batch,
        )

    def opened(self, topic: str, codec: str, due: int, first: int, ack_every: int) -> None:
        """SUBSCRIBED came.

        Raises:
            ProtocolError: it does not go on where this stream stands.
        """
        if first < due or (self.expected is not None and due != self.expected):
            raise ProtocolError(f"SUBSCRIBED from {due} and {first} where {self.expected} is due")
        self.topic = topic
        self.codec = codec
        assert self.route is not None
        if self.expected is None:
            self.credit.consumed_until = due
        self.expected = due
        if first > due:
            self._miss(first, "overflow")
        self.open = True
        self.since = None
        if self._said == "unreachable" and not self.gone:
            self.inbox.put(Entry(self, first, first, gaps=((0, "reached"),)))
        self._said = ""
        self.credit.open(first, ack_every, partial(self.route.ack, self))
        self.inbox.stream_opened(self)

    def disconnected(self) -> None:
        """Its link broke: what waits in the inbox stays, the rest is asked for again."""
        self.open = False
        self.route = None
        self.channel = -1
        self.credit.close()
        self._clear()

    def end(self, final: int) -> None:
        """END came: what did not arrive of `final` messages never will."""
        if self.expected is None and self.before:
            self.expected = 0
        if self.expected is not None and final > self.expected:
            self._miss(final, "closed")
        self.finish()

    def fate(self, trouble: bool) -> Fate:
        """What giving it up now means: it brought something, or might have, and may have more; or
        it never was reached, though its first message was due, or there was `trouble` with that
        (now, or when it was given up before). Empty: it owes nothing, as one that ended before it
        was to be reached."""
        if self.expected is not None:
            return "vanished"
        return "unreachable" if self.before or trouble or self._said else ""

    def out_of_reach(self) -> None:
        """No way leads to its publisher for now: what it puts may not come."""
        if self.expected is None and not self.ended and not self._said:
            self._said = "unreachable"
            self.inbox.put(Entry(self, 0, 0, gaps=((0, self._said),)))

    def vanish(self, trouble: bool) -> None:
        """Its publisher is gone without END, as far as can be told: see `fate`."""
        if not self.ended:
            self.gone = self.fate(trouble)
            self.finish(over=False)
            if self.gone and self.gone != self._said:
                self._said = self.gone
                seq = self.expected or 0
                self.inbox.put(Entry(self, seq, seq, gaps=((0, self.gone),)))

    def finish(self, *, over: bool = True) -> None:
        """Nothing more comes; `over`: nor ever will."""
        self.ended = True
        self.open = False
        self.route = None
        self.credit.close()
        self._clear()
        self.inbox.stream_ended(self, over)

    def _clear(self) -> None:
        self._assembling = None
        self._buffers = []
        self._pending = 0

    def _miss(self, until: int, reason: str, size: int = 0) -> None:
        """Everything before `until` that has not come is lost."""
        assert self.expected is not None
        count = until - self.expected
        self.expected = until
        self.inbox.lose(self, count, reason)
        self.inbox.put(Entry(self, until, until, gaps=((count, reason),), size=size))

    # --- what comes ---------------------------------------------------------------------

    def place(self, total: int, offset: int, size: int) -> memoryview:
        """Where `size` bytes at `offset` of a large buffer of `total` bytes belong.

        Raises:
            ProtocolError: they do not follow what came, or are more than may be sent.
        """
        if self._assembling is None:
            if offset:
                raise ProtocolError(f"a BUFFER that begins at {offset}")
            self._check_buffer(total)
            self._assembling = self.allocate(total, self.credit.window.share)
        buffer = self._assembling
        filled = len(buffer)
        if offset != filled or total != buffer.total:
            raise ProtocolError(f"a BUFFER at {offset} of {total} where {filled} was due")
        if filled + size == total:
            self._buffers.append(buffer)
            self._pending += max(total, SMALLEST_BUFFER)
            self._assembling = None
        return buffer.room(size)

    def whole(self, buffer: Buffer) -> None:
        """A large buffer came in one piece, or lies where it is.

        Raises:
            ProtocolError: it does not belong here, or is more than may be sent.
        """
        total = len(buffer)
        if self._assembling is not None:
            raise ProtocolError(f"a BUFFER at 0 of {total} where {len(self._assembling)} was due")
        self._pending = self._check_buffer(total)
        self._buffers.append(buffer)

    def _check_buffer(self, total: int) -> int:
        """What the buffers of the message count for with one more; raises if they may not."""
        pending = self._pending + max(total, SMALLEST_BUFFER)
        if pending > self.max_batch:
            raise ProtocolError(
                f"a batch of more than {self.max_batch:,} bytes (max_message)", code="limit"
            )
        self.credit.check(pending + BATCH_COST, self.expected)
        return pending

    def data(
        self,
        first: int,
        count: int,
        sent_at: float,
        body: bytes | memoryview,
        headers: bytes = b"",
    ) -> None:
        """A batch came over the wire, behind its buffers.

        Raises:
            ProtocolError: it is no message that may come now.
        """
        buffers: tuple[Buffer, ...] = ()
        if self._buffers or self._assembling is not None:
            if self._assembling is not None:
                raise ProtocolError("a DATA in the middle of a large buffer")
            buffers = tuple(self._buffers)
            self._clear()
        self.batch(first, count, sent_at, body, buffers, headers)

    def batch(
        self,
        first: int,
        count: int,
        sent_at: float,
        body: bytes | memoryview,
        buffers: tuple[Buffer, ...],
        headers: bytes = b"",
    ) -> None:
        """A whole batch is here.

        Raises:
            ProtocolError: it may not come now, or what it skips was not said.
        """
        expected = self.expected
        if expected is None or not self.open:
            raise ProtocolError("a DATA before SUBSCRIBED")
        size = BATCH_COST + len(body) + len(headers)
        if buffers:
            size += buffers_cost(buffers)
        credit = self.credit
        if credit.received + size > credit.limit:
            credit.check(size, expected)
        end = first + count
        skip = expected - first
        if skip:
            if skip < 0:
                raise ProtocolError(f"a DATA from {first} where {expected} is due")
            if end <= expected:  # all of it came before: it never counted
                credit.repeated(size)
                return
        credit.receive(size)
        self.expected = end
        self.last = sent_at
        entry = Entry(self, first + skip, end, skip, sent_at, body, buffers, (), size)
        if headers:
            entry.headers = headers
        self.inbox.put(entry)

    def gap(self, first: int, end: int, reason: str) -> None:
        """GAP came, in the place of what is skipped.

        Raises:
            ProtocolError: it may not come now.
        """
        expected = self.expected
        if expected is None or not self.open:
            raise ProtocolError("a GAP before SUBSCRIBED")
        if self._assembling is not None or self._buffers:
            raise ProtocolError("a GAP in the middle of a batch")
        if not first < end or first > expected:
            raise ProtocolError(f"a GAP from {first} to {end} where {expected} is due")
        self.credit.skip(expected, end)
        if end > expected:
            self._miss(end, reason, BATCH_COST)

    @property
    def state(self) -> Literal["attached", "connecting", "reconnecting"] | Fate:
        """How it stands, for people."""
        if self.gone:
            return self.gone
        if self.open:
            return "attached"
        return "connecting" if self.expected is None else "reconnecting"
