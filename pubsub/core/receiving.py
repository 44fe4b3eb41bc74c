"""The subscribing end of a link: channels that bring the streams of one publishing peer."""

from __future__ import annotations

from collections.abc import Callable

from pubsub.core.lending import Borrowing
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.stream import Stream
from pubsub.core.topics import hears
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Buffer, WholeBuffer
from pubsub.wire.frames import BATCH_COST, Event
from pubsub.wire.messages import (
    Ack,
    End,
    Gap,
    Lent,
    Offer,
    Subscribe,
    Subscribed,
    Unmap,
    Unsubscribe,
    encode,
)

__all__ = ["Receiving"]

CONTROL = 4 * BATCH_COST
"""What may come beside the bytes of messages when a channel ends: SUBSCRIBED, END, a GAP in front
of the batch that may pass the limit, and what that batch counts for."""


class Receiving:
    """The subscribing end of one link; the route of its streams.

    Parameters:
        on_output: called once when there is something to write; `pump` then, but not within the
            call.
        on_settled: called with a stream when its SUBSCRIBE was answered, either way.
        rights: of the publishing peer. What it may not publish is given up, whoever has said that
            it does.
        on_refused: called with a stream that is given up over rights, and why.
        name, vouched: of the publishing peer, for its streams (see `Stream`).
        borrowing: what of the other end's memory this one has; None: it takes none.
        on_offer: called with the ticket of an `Offer`.
    """

    def __init__(
        self,
        on_output: Callable[[], None],
        on_settled: Callable[[Stream], None],
        *,
        rights: Rights = EVERYTHING,
        on_refused: Callable[[Stream, str], None] = lambda stream, why: None,
        name: str = "",
        vouched: bool = False,
        borrowing: Borrowing | None = None,
        on_offer: Callable[[bytes], None] = lambda ticket: None,
    ) -> None:
        self._borrowing = borrowing
        self._on_offer = on_offer
        self._name = name
        self._vouched = vouched
        self._on_output = on_output
        self._on_settled = on_settled
        self._rights = rights
        self._on_refused = on_refused
        self._channels: dict[int, Stream] = {}
        self._next_channel = 0
        self._out: list[bytes | memoryview] = []
        self._crossing = 0  # bytes that may still come on channels that are over

    def subscribe(self, stream: Stream) -> None:
        """Ask for a stream, from the start or from where it stands."""
        channel = self._next_channel
        self._next_channel += 1
        self._channels[channel] = stream
        self._say(stream.subscribe(self, channel))

    def release(self, stream: Stream) -> None:
        """It goes on by another link: what still comes of it here is passed over."""
        if stream.channel in self._channels:
            self._leave(stream.channel)
            stream.disconnected()

    def ack(self, stream: Stream) -> None:
        granted = stream.credit.grant(self._wake)
        if granted is not None:
            self._out.append(encode(Ack(stream.channel, *granted)))

    def unsubscribe(self, stream: Stream) -> None:
        """Said before is what was taken: the publisher is to know what was not."""
        if stream.channel in self._channels:
            self.ack(stream)
            self._leave(stream.channel)
            self._say(Unsubscribe(stream.channel))

    def receive(self, event: Event) -> None:
        """Take one frame of the publisher.

        Raises:
            ProtocolError: it is not one that belongs here.
        """
        if not isinstance(event, (Subscribed, Gap, End)):
            self._receive_of_memory(event)
            return
        stream = self._channel(event.channel)
        if stream is None:
            self._cross(BATCH_COST)
            return
        if isinstance(event, Gap):
            stream.gap(event.first, event.next, event.reason)
            return
        if isinstance(event, Subscribed):
            if stream.open:
                raise ProtocolError(f"a second SUBSCRIBED on channel {event.channel}")
            why = self._objection(stream, event.topic)
            if why:
                self._leave(event.channel)
                self._say(Unsubscribe(event.channel))
                self._refuse(stream, why)
            else:
                stream.name, stream.vouched = self._name, self._vouched
                stream.opened(event.topic, event.codec, event.due, event.next, event.ack_every)
        else:
            self._leave(event.channel)
            if event.code == "elsewhere":  # by what was under way on a link that is given up
                stream.disconnected()
                self.subscribe(stream)
                return
            if event.code == "closed":
                stream.end(event.final)
            elif event.code == "refused":  # kept from us: what was put meanwhile is not said
                self._refuse(stream, event.reason)
            else:  # forgotten: nor is it here
                stream.vanish(False)
        self._on_settled(stream)

    def _receive_of_memory(self, event: Event) -> None:
        if isinstance(event, Lent):
            self.lent(event.channel, event.loan, event.segment, event.start, event.size)
        elif isinstance(event, Unmap) and self._borrowing is not None:
            self._borrowing.unmap(event.segment)
        elif isinstance(event, Offer):
            self._on_offer(event.ticket)
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where a publisher speaks")

    def _objection(self, stream: Stream, topic: str) -> str:
        """Why a stream of that topic is not taken for the one that was asked for; empty: it is."""
        if topic != stream.topic:
            return f"a coordinator has told its topic as {stream.topic!r}, and it says {topic!r}"
        if not hears(stream.inbox.pattern, topic):
            return "a coordinator has named it, and its topic is not what this Sub is for"
        if not self._rights.may_publish(topic):
            return f"it may not publish this topic: it {self._rights.may('publish')}"
        return ""

    def _refuse(self, stream: Stream, why: str) -> None:
        """A stream cannot be had. Nothing is known of what is missed."""
        stream.vanish(True)
        self._on_refused(stream, why)

    def data(
        self,
        channel: int,
        first: int,
        messages: int,
        sent_at: float,
        body: bytes | memoryview,
        headers: bytes = b"",
    ) -> None:
        """A batch came (see `frames.Sink`)."""
        stream = self._channels.get(channel)
        if stream is not None:
            stream.data(first, messages, sent_at, body, headers)
        else:
            self._channel(channel)  # was it ever opened?
            self._cross(BATCH_COST + len(body) + len(headers))

    def buffer(self, channel: int, payload: bytes) -> None:
        """A large buffer came in one piece (see `frames.Sink`)."""
        self._whole(channel, WholeBuffer(payload))

    def lent(self, channel: int, loan: int, segment: int, start: int, size: int) -> None:
        """A large buffer lies in memory that this end has mapped (see `frames.Sink`)."""
        if self._borrowing is None:
            raise ProtocolError("a LENT, and no memory is mapped here")
        self._whole(channel, self._borrowing.block(loan, segment, start, size))

    def _whole(self, channel: int, buffer: Buffer) -> None:
        stream = self._open_stream(channel)
        if stream is not None:
            stream.whole(buffer)
        else:
            self._cross(len(buffer))

    def place(self, channel: int, total: int, offset: int, size: int) -> memoryview | None:
        """Where a piece of a large buffer belongs (see `frames.Sink`)."""
        stream = self._open_stream(channel)
        if stream is None:
            self._cross(size)
            return None
        return stream.place(total, offset, size)

    def _open_stream(self, channel: int) -> Stream | None:
        stream = self._channel(channel)
        if stream is not None and not stream.open:
            raise ProtocolError("a BUFFER before SUBSCRIBED")
        return stream

    def _channel(self, number: int) -> Stream | None:
        """The stream of a channel; None when it was open once (frames may cross its end)."""
        if number >= self._next_channel:
            raise ProtocolError(f"channel {number} was never opened")
        return self._channels.get(number)

    def _leave(self, channel: int) -> None:
        """The channel is over. What its publisher was allowed to send before it hears of that may
        be under way, and nothing else ever comes: it would cost time without a bound."""
        stream = self._channels.pop(channel)
        batch = 2 * stream.max_batch  # a body and large buffers
        self._crossing += stream.credit.under_way + batch + CONTROL

    def _cross(self, size: int) -> None:
        """So many bytes came on a channel that is over. All those of a link have one account, so
        that nothing has to be kept of each."""
        self._crossing -= size
        if self._crossing < 0:
            raise ProtocolError(
                "more on channels that are over than can have been under way", code="limit"
            )

    def _say(self, message: Subscribe | Unsubscribe) -> None:
        self._wake()
        self._out.append(encode(message))

    def _wake(self) -> None:
        if not self._out:
            self._on_output()

    def pump(self, budget: int) -> list[bytes | memoryview]:
        """All that is to be written, whatever the budget: it is small."""
        out = self._out
        self._out = []
        if self._borrowing is not None:
            out += self._borrowing.pump()
        return out

    @property
    def streams(self) -> list[Stream]:
        """Those that have a channel."""
        return list(self._channels.values())

    def closed(self) -> None:
        """The publisher said GOODBYE: what was to come on the channels that are open has come."""
        for stream in self.streams:
            if stream.open:
                del self._channels[stream.channel]
                stream.finish()
        self.broken()

    def broken(self) -> list[Stream]:
        """The link is gone; returns the streams that had a channel on it."""
        if self._borrowing is not None:
            self._borrowing.end()
        streams = self.streams
        self._channels.clear()
        for stream in streams:
            stream.disconnected()
        return streams
