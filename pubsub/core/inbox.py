"""An inbox: what has come for one Sub and was not taken yet, of all the streams that it gets.

Batches wait undecoded, in the order in which they came; gaps stand where the messages would
have been. With ``keep="latest"`` only the newest message of each topic waits.

All methods may be called from the link's side and from the Sub's at once: what both touch is
behind `lock`, which its owner passes in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from pubsub.core.stream import Entry, Stream, StreamKey

__all__ = ["Inbox"]


class Inbox:
    """The receiving end of one Sub.

    Parameters:
        sub_id: its number in this peer.
        pattern: the topic or pattern.
        latest: True: keep only the newest message of each topic.
        window: bytes that may wait here, over all streams (one batch a stream is always
            admitted).
        history: how many messages from before now are wanted; None: all there are.
        observer: True: never make a Pub wait.
        lock: see above; not needed where everything runs in one thread.

    Attributes:
        streams: those that may still bring something.
        lost: messages that were due to this Sub and will never be delivered, in all.
        on_entry: called when there is something to take (from the link's side).
        on_consumed: called with a stream and 2 (acknowledge now) or 1 (soon), from whichever side
            took something.
        share: bytes of the window that each stream may use.
    """

    def __init__(
        self,
        sub_id: int,
        pattern: str,
        *,
        latest: bool = False,
        window: int,
        history: int | None = 0,
        observer: bool = False,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.sub_id = sub_id
        self.pattern = pattern
        self.latest = latest
        self.window = window
        self.history = history
        self.observer = observer
        self.lock: AbstractContextManager[object] = lock or nullcontext()
        self.streams: dict[StreamKey, Stream] = {}
        self.share = window
        self.closed = False
        self.on_entry: Callable[[], None] = _nothing
        self.on_consumed: Callable[[Stream, int], None] = _ignore
        self.accepts: Callable[[Stream], Exception | None] = _accept
        self._lost_before = 0  # by streams that have ended
        self._entries: deque[Entry] = deque()
        self._newest: dict[str, Entry] = {}
        self._passed: dict[Stream, dict[str, int]] = {}

    # --- streams ------------------------------------------------------------------------

    def add(self, stream: Stream) -> None:
        """A stream begins; the window is shared anew."""
        with self.lock:
            self.streams[stream.key] = stream
        self._divide()

    def stream_opened(self, stream: Stream) -> None:
        """SUBSCRIBED told the codec: refuse the stream if this Sub cannot read it."""
        error = self.accepts(stream)
        if error is not None and stream.route is not None:
            assert stream.expected is not None
            stream.route.unsubscribe(stream)
            stream.finish()
            self.put(Entry(stream, stream.expected, stream.expected, error=error))

    def stream_ended(self, stream: Stream) -> None:
        """A stream is over; what waits of it stays."""
        if self.streams.get(stream.key) is stream:
            with self.lock:
                del self.streams[stream.key]
                self._lost_before += stream.lost
            self._divide()

    def _divide(self) -> None:
        """Each stream's share: the window over the number of streams, rounded to a power of two
        so that it rarely changes."""
        streams = len(self.streams)
        share = max(1, self.window >> max(0, (streams - 1)).bit_length())
        if share != self.share:
            self.share = share
            for stream in self.streams.values():
                if stream.open:
                    stream.ack_every = max(1, min(stream.ack_every, share // 4))
                    self.on_consumed(stream, 2)

    @property
    def lost(self) -> int:
        """Messages lost, of all streams that there ever were."""
        with self.lock:
            return self._lost_before + sum(s.lost for s in self.streams.values())

    def lose(self, stream: Stream, count: int) -> None:
        """Messages that came but could not be delivered."""
        with self.lock:
            self._count_lost(stream, count)

    # --- entries ------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Something came."""
        with self.lock:
            if self.closed:
                return
            if self.latest:
                self._keep_newest(entry)
            else:
                self._entries.append(entry)
        self.on_entry()

    def _keep_newest(self, entry: Entry) -> None:
        """Newer messages take the place of older ones; what they overtake is counted by stream,
        so that nothing grows while nobody looks."""
        stream = entry.stream
        if entry.error is not None:
            self._entries.append(entry)
            return
        for count, reason in entry.gaps:
            self._pass_over(stream, count, reason)
        entry.gaps = ()
        if entry.first == entry.end:
            if entry.size:
                self._taken(entry)
            return
        overtaken = entry.end - 1 - entry.first
        if overtaken:
            self._count_lost(stream, overtaken)
            self._pass_over(stream, overtaken, "conflated")
            entry.skip += overtaken
            entry.first += overtaken
        old = self._newest.pop(stream.topic, None)
        if old is not None:
            self._count_lost(old.stream, 1)
            self._pass_over(old.stream, 1, "conflated")
            self._taken(old)
        self._newest[stream.topic] = entry

    def _count_lost(self, stream: Stream, count: int) -> None:
        if stream.ended:
            self._lost_before += count
        else:
            stream.lost += count

    def _pass_over(self, stream: Stream, count: int, reason: str) -> None:
        reasons = self._passed.setdefault(stream, {})
        reasons[reason] = reasons.get(reason, 0) + count

    def _taken(self, entry: Entry) -> None:
        stage = entry.stream.take(entry)
        if stage:
            self.on_consumed(entry.stream, stage)

    def take(self) -> Entry | None:
        """The next entry; None when nothing waits. Taking it is what is acknowledged."""
        with self.lock:
            if self._entries:
                entry = self._entries.popleft()
            elif self._passed:
                stream = next(iter(self._passed))
                seq = stream.expected or 0
                return Entry(
                    stream,
                    seq,
                    seq,
                    gaps=tuple(
                        (count, reason) for reason, count in self._passed.pop(stream).items()
                    ),
                )
            elif self._newest:
                entry = self._newest.pop(next(iter(self._newest)))
            else:
                return None
            if entry.size:
                stage = entry.stream.take(entry)
                if stage:
                    self.on_consumed(entry.stream, stage)
        return entry

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._entries and not self._newest and not self._passed

    def close(self) -> list[Stream]:
        """The Sub is closed: what waits is given up and counted as lost. Returns the streams,
        whose routes are still to be told."""
        with self.lock:
            self.closed = True
            for entry in (*self._entries, *self._newest.values()):
                self._lost_before += entry.end - entry.first
            self._entries.clear()
            self._newest.clear()
            self._passed.clear()
        self.on_entry()
        return list(self.streams.values())


def _nothing() -> None:
    pass


def _ignore(stream: Stream, stage: int) -> None:
    pass


def _accept(stream: Stream) -> Exception | None:
    return None
