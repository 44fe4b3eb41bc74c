"""The publishing end of a link: channels that carry cursors to one subscribing peer.

It answers SUBSCRIBE, UNSUBSCRIBE, ACK and PONG, and says what to write next: control frames at
once, then one batch (or one piece of a large buffer) of each channel in turn, so that neither a
busy topic nor a large message holds up the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pubsub.core.cursor import Cursor, Skip, SubKey
from pubsub.core.lending import Lending
from pubsub.core.log import Batch
from pubsub.core.publication import Publication
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.errors import ProtocolError
from pubsub.wire import messages
from pubsub.wire.buffers import Block
from pubsub.wire.frames import BUFFER_PIECE, Event, buffer_header, data_header, lent_frame
from pubsub.wire.liveness import HEARTBEAT_TOKEN
from pubsub.wire.messages import (
    Ack,
    Control,
    End,
    Mapped,
    Ping,
    Pong,
    Returned,
    Subscribe,
    Unsubscribe,
    encode,
)

__all__ = ["SHARED_PIECE", "Serving"]

SHARED_PIECE = 256 * 1024
"""Bytes of a large buffer that go into one BUFFER where there are other channels, which may pass in
between. (With pieces of 1 MiB a small message waits half as long again, and with these a large one
takes a third longer; a channel that is alone has nobody to delay.)"""
LONE = 4 * 1024
"""Bytes that a batch may count for to be written by itself, and not with others."""
ASKED_BURST = 256
"""SUBSCRIBEs of one stream on one link that may ask, at once, for what was put before: each draws
what the log holds, with a request of 20 bytes. (Each Sub of a process asks once.)"""
ASKED_EVERY = 1.0
"""Seconds after which there may be one more."""
UNANSWERED = 500
"""PINGs that may wait for their PONG; flushes that come then share the next one. However many
channels there are and however often they are flushed, a subscriber that was held up finds no more
than these."""

Chunk = bytes | memoryview


@dataclass(slots=True, eq=False)
class _Channel:
    """One open channel."""

    number: int
    publication: Publication
    cursor: Cursor | None = None
    partial: Batch | None = None
    """The batch whose large buffers are on their way, of which `index` is the next one, from
    `offset` on."""
    index: int = 0
    offset: int = 0


class Serving:
    """The publishing end of one link.

    Parameters:
        peer_id, address: of the subscribing peer.
        find: the publication of a stream number, if there is or was one; called before a cursor
            is opened, so that it can bring in what is pending.
        on_output: called once when there is something to write; `pump` then, but not within the
            call.
        max_channels: how many may be open at once.
        write_now: writes a frame at once, where nothing else is on its way to be written in this
            turn, and a socket is there that takes it; False: it is not written.
        way: of which kind the way to it is (see `Way.kind`).
        rights: of the subscribing peer. Whatever a coordinator has said: what it may not subscribe
            is refused here.
        now: the time.

    Attributes:
        taken: how many ACKs have said that something was taken.
        lending: lends the other end memory, where both are on one host; None: they are not.
    """

    def __init__(
        self,
        peer_id: str,
        address: str,
        find: Callable[[int], Publication | None],
        on_output: Callable[[], None],
        *,
        max_channels: int,
        write_now: Callable[[bytes], bool] = lambda frame: False,
        way: str = "direct",
        rights: Rights = EVERYTHING,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.peer_id = peer_id
        self.address = address
        self.way = way
        self._find = find
        self._on_output = on_output
        self._write_now = write_now
        self._due = False  # it was called, and `pump` was not yet
        self._max_channels = max_channels
        self._rights = rights
        self._now = now
        self._asked: dict[int, float] = {}  # of each stream: when all that was asked has had time
        self.taken = 0
        self.lending: Lending | None = None
        self._channels: dict[int, _Channel] = {}
        self._highest = -1
        self._control: list[Chunk] = []
        self._ready: deque[_Channel] = deque()
        self._confirming: deque[tuple[int, Cursor, int]] = deque()
        self._asking: dict[Cursor, int] = {}  # what the next PING confirms, when it is answered
        self._token = self._answered = HEARTBEAT_TOKEN

    @property
    def lends(self) -> bool:
        """See `Outlet`."""
        return self.lending is not None

    @property
    def channels(self) -> int:
        """How many channels are open."""
        return len(self._channels)

    # --- what came in -------------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Take one frame of the subscriber.

        Raises:
            ProtocolError: it is not one that belongs here.
        """
        if isinstance(event, Ack):
            channel = self._channel(event.channel)
            if channel is not None and channel.cursor is not None:
                self.taken += event.next > channel.cursor.acked
                channel.publication.ack(channel.cursor, event.next, event.limit)
        elif isinstance(event, Pong):
            self._confirmed(event.token)
        elif isinstance(event, Subscribe):
            self._subscribe(event)
        elif isinstance(event, Unsubscribe):
            channel = self._channel(event.channel)
            if channel is not None:
                del self._channels[channel.number]
                if channel.cursor is not None:
                    channel.publication.remove(channel.cursor)
        elif isinstance(event, Returned) and self.lending is not None:
            self.lending.returned(event.loans, event.kept)
        elif isinstance(event, Mapped) and self.lending is not None:
            self.lending.mapped(event.segment)
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where a subscriber speaks")

    def _channel(self, number: int) -> _Channel | None:
        """The channel; None when it was open once (frames may cross its end)."""
        channel = self._channels.get(number)
        if channel is None and number > self._highest:
            raise ProtocolError(f"channel {number} was never opened")
        return channel

    def _subscribe(self, asked: Subscribe) -> None:
        if asked.channel <= self._highest:
            raise ProtocolError(f"channel {asked.channel} was used before")
        self._highest = asked.channel
        if len(self._channels) >= self._max_channels:
            raise ProtocolError(f"more than {self._max_channels} channels", code="limit")
        if len(self._control) > 2 * self._max_channels:
            raise ProtocolError("it asks on and on, and does not read the answers", code="limit")
        publication = self._find(asked.stream_id)
        if publication is None:
            why = f"there is no stream {asked.stream_id} here"
            self.say(End(asked.channel, 0, "unknown", why))
        elif not self._rights.may_subscribe(publication.topic):
            publication.refuse(SubKey(self.peer_id, asked.sub_id))
            may = self._rights.may("subscribe", publication.topic)
            why = f"it may not subscribe this topic: it {may}"
            self.say(End(asked.channel, 0, "refused", why[:1024]))
        elif publication.ended:  # the END itself was lost with the link; its count must not be
            self.say(End(asked.channel, publication.log.next_seq, "closed", "the Pub was closed"))
        else:
            key = SubKey(self.peer_id, asked.sub_id)
            cursor = publication.cursor(key)
            often = self._draws(asked, publication, cursor) and self._asks_too_often(publication)
            if often and asked.resume is None:
                why = (
                    f"it asks for what was put before too often: {ASKED_BURST} times at once, and "
                    f"then once in {ASKED_EVERY:g} s"
                )
                self.say(End(asked.channel, 0, "refused", why))
                return
            channel = self._channels[asked.channel] = _Channel(asked.channel, publication)
            channel.cursor, answer = publication.attach(
                key, self, asked, now=self._now(), from_now=often
            )
            self.say(answer)

    def _draws(self, asked: Subscribe, publication: Publication, cursor: Cursor | None) -> bool:
        """Whether it wants messages from before now, for which no place was held until it came back
        from another link."""
        if asked.resume is None:
            return publication.history > 0 and asked.history != 0
        return cursor is None or cursor.channel < 0 or cursor.outlet is self

    def _asks_too_often(self, publication: Publication) -> bool:
        """A stream that goes on elsewhere is then not refused, but goes on from now: what lies
        between is a gap that its Sub counts."""
        now, stream_id = self._now(), publication.stream_id
        until = max(now, self._asked.get(stream_id, now)) + ASKED_EVERY
        if until > now + ASKED_BURST * ASKED_EVERY:
            return True
        self._asked[stream_id] = until
        return False

    def _confirmed(self, token: int) -> None:
        confirming = self._confirming
        if token == HEARTBEAT_TOKEN:
            return
        if token > self._token:
            raise ProtocolError(f"a PONG for PING {token} that was never sent")
        self._answered = max(self._answered, token)
        while confirming and confirming[0][0] <= token:
            _, cursor, seq = confirming.popleft()
            channel = self._channels.get(cursor.channel)
            if channel is not None and channel.cursor is cursor:
                cursor.arrived(seq)
                channel.publication.progress(cursor)
        if self._asking:
            self._wake()

    # --- the cursors' outlet ------------------------------------------------------------

    def enqueue(self, cursor: Cursor) -> None:
        channel = self._channels.get(cursor.channel)
        if channel is None:
            return  # the link is over, and this cursor is about to hear of it
        self._wake()
        self._ready.append(channel)

    def offer(self, cursor: Cursor, batch: Batch) -> bool:
        """A small batch for one that has all before it, where nothing else is due, takes the short
        road: what `pump` would do in this turn, without the queues between. (A flush that is still
        to be confirmed waits for something before it, or the cursor would be queued.)"""
        size = batch.size
        if (
            size <= LONE
            and not self._due
            and cursor.send == batch.number
            and cursor.sent + size <= cursor.limit
            and size <= cursor.largest
            and not batch.buffers
            and not self._ready
            and cursor.channel in self._channels
        ):
            body, behind = batch.body, batch.headers
            header = data_header(cursor.channel, batch.first, batch.sent_at, len(body), len(behind))
            if self._write_now(header + body + behind if behind else header + body):
                cursor.sent += size  # nothing is called from the write to here
                cursor.send = batch.number + 1
                cursor.next = cursor.sent_until = batch.end
                return False
        self.enqueue(cursor)
        return True

    def end(self, cursor: Cursor, final: int, code: str, reason: str) -> None:
        if self._channels.pop(cursor.channel, None) is not None:
            self.say(End(cursor.channel, final, code, reason))

    def taken_over(self, cursor: Cursor) -> None:
        """The subscriber has subscribed the stream again: by a better way, or because it takes this
        link to be dead. Should it still listen here, it hears of it: it would else wait for ever
        for what comes elsewhere; where that was a link that it has given up since, it subscribes
        once more."""
        if self._channels.pop(cursor.channel, None) is not None:
            why = "its Sub has subscribed the stream again, on another channel"
            self.say(End(cursor.channel, 0, "elsewhere", why))

    # --- what to write ------------------------------------------------------------------

    def say(self, message: Control) -> None:
        """Write that next."""
        self._wake()
        self._control.append(encode(message))

    def _wake(self) -> None:
        """Called before what is to be written is noted: it may raise, and then the next calls."""
        if not self._due:
            self._on_output()
            self._due = True

    def pump(self, budget: int) -> list[Chunk]:
        """The next bytes to write, about `budget` of them; less only when that is all."""
        self._due = False
        out = self._control
        self._control = []
        ready = self._ready
        while ready and budget > 0:
            channel = ready.popleft()
            if self._channels.get(channel.number) is not channel:
                continue  # closed meanwhile, or taken over by another link
            cursor = channel.cursor
            assert cursor is not None
            batch = channel.partial or cursor.take()
            if batch is None:
                cursor.queued = False
                self._confirm(cursor, stalled=True)
                continue
            if isinstance(batch, Skip):
                gap = encode(messages.Gap(channel.number, *batch))
                out.append(gap)
                budget -= len(gap)
            elif batch.buffers:
                channel.partial = batch
                budget -= self._piece(channel, cursor, batch, out)
            else:
                self._write(channel, cursor, batch, out)
                budget -= len(batch.body) + len(batch.headers)
                if cursor.at_end:
                    cursor.queued = False
                    continue
            ready.append(channel)
        if self._asking and self._token - self._answered < UNANSWERED:
            self._ask(out)
        return out

    def _write(self, channel: _Channel, cursor: Cursor, batch: Batch, out: list[Chunk]) -> None:
        body, behind = batch.body, batch.headers
        out.append(data_header(channel.number, batch.first, batch.sent_at, len(body), len(behind)))
        out.append(body)
        if behind:
            out.append(behind)
        self._confirm(cursor)

    def _piece(self, channel: _Channel, cursor: Cursor, batch: Batch, out: list[Chunk]) -> int:
        """Write the next piece of a large buffer, or where it lies, and behind the last one the
        batch."""
        buffer = batch.buffers[channel.index]
        total, offset = len(buffer), channel.offset
        lent = None
        if not offset and self.lending is not None and isinstance(buffer, Block):
            lent = self.lending.lend(buffer)
            start = buffer.start
        if lent is not None:
            out.append(lent_frame(channel.number, *lent, start, total))
            end, size = total, len(out[-1])
        else:
            most = BUFFER_PIECE if len(self._channels) == 1 else SHARED_PIECE
            end = min(total, offset + most)
            size = end - offset
            out.append(buffer_header(channel.number, total, offset, size))
            out.append(buffer.view()[offset:end])
        channel.offset = end
        cursor.pieces += 1
        if end == total:
            channel.index += 1
            channel.offset = 0
            if channel.index == len(batch.buffers):
                channel.partial, channel.index = None, 0
                self._write(channel, cursor, batch, out)
                size += len(batch.body) + len(batch.headers)
        return size

    def _confirm(self, cursor: Cursor, stalled: bool = False) -> None:
        """See that it is asked whether what a flush waits for has arrived, if all is written; or,
        where the window is full (`stalled`), what was written, so that it is known how much."""
        if cursor.confirm is None:
            return
        if cursor.next >= cursor.confirm:
            cursor.confirm = None
        elif not stalled or cursor.next <= cursor.asked:
            return
        self._asking[cursor] = cursor.asked = cursor.next

    def _ask(self, out: list[Chunk]) -> None:
        """One PING, behind the data of all that want to know."""
        self._token += 1
        self._confirming += [(self._token, *asking) for asking in self._asking.items()]
        self._asking.clear()
        out.append(encode(Ping(self._token)))

    # --- the end ------------------------------------------------------------------------

    def broken(self, now: float) -> None:
        """The link broke: cursors hold their places."""
        for publication, cursor in self._take_all():
            publication.detach(cursor, now)

    def closed(self) -> None:
        """The subscribing peer said GOODBYE: its cursors are done."""
        for publication, cursor in self._take_all():
            publication.remove(cursor)

    def _take_all(self) -> list[tuple[Publication, Cursor]]:
        open_ones = self._channels.values()
        taken = [(of.publication, of.cursor) for of in open_ones if of.cursor is not None]
        self._channels.clear()
        self._ready.clear()
        self._confirming.clear()
        self._asking.clear()
        return taken
