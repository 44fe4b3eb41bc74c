"""An inbox: what has come for one Sub and was not taken yet, of all the streams that it gets.

Batches wait undecoded, in the order in which they came; gaps stand where the messages would
have been. With ``keep="latest"`` only the newest message of each topic waits.

The link's side puts and the Sub's side takes, each in a thread of its own, and neither ever waits
for the other: there is no lock. (With one, a signal handler that interrupts who takes, and waits
for the link's thread, would wait for ever.) What keeps them apart:

- There is one who puts and one who takes; of a deque one uses the right end and the other the left.
- Under the GIL, an operation in C on a list, dict or deque is one step, and so are statements
  between which nothing is called (as ``x += 1``).
- What may be overtaken is claimed first, by one such step: see `_Slot`.

Taking is done in two steps, so that an interrupt between them loses nothing: `peek`, again and
again if need be, and `release` when the messages are where they can be handed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from pubsub.core.stream import Entry, Side, Stream, StreamKey
from pubsub.core.window import Window

__all__ = ["MAX_REPORTS", "MAX_STREAMS", "OVER", "REMEMBERED", "Inbox"]

MAX_REPORTS = 1000
"""Gaps and errors by themselves, which count for nothing in the window, that may wait. Of further
gaps only the sums wait, without the publishers' names; further errors are not told."""

MAX_STREAMS = 100_000
"""Streams that one Sub has at once, and that a coordinator may list for it."""
REMEMBERED = 4096
"""Streams that were given up, of which each Sub remembers what has come, and how to go on."""
OVER = 1000
"""Streams that ended in order, of which each Sub remembers that there is no more to come."""

SEVERAL = "several publishers"
"""Stands for the address of those."""

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Slot:
    """A place in the queue whose entry newer ones take the place of, until the Sub takes it.

    An entry belongs to the side that claims it first. The link's side makes the newer one known
    (`following`) before it claims the older one: the Sub's side, where it comes too late for that,
    need not wait until `entry` is the newer one.
    """

    __slots__ = ("entry", "following")

    def __init__(self, entry: Entry) -> None:
        self.entry = self.following = entry
        entry.slot, entry.claims = self, {}

    def overtake(self, entry: Entry) -> Entry | None:
        """Put a newer entry here; returns the older one, or None: the Sub's side has that, and
        the newer one needs a slot of its own."""
        old = self.entry
        entry.slot, entry.claims = self, {}
        self.following = entry
        if _claim(old, "link") != "link":
            return None
        self.entry = entry
        return old

    def claim(self) -> Entry:
        """The entry, which from now on nothing overtakes."""
        entry = self.entry
        while _claim(entry, "sub") != "sub":
            entry = self.following
        return entry


_TAKEN = Entry(cast(Any, None), 0, 0)
"""What is in a slot that waits no more: the link's side may still know that."""
_TAKEN.claims = {"by": "sub"}


def _claim(entry: Entry, side: Side) -> Side:
    """Whose the entry is: the first to ask has it."""
    assert entry.claims is not None
    return entry.claims.setdefault("by", side)


class Inbox:
    """The receiving end of one Sub.

    Parameters:
        sub_id: its number in this peer.
        pattern: the topic or pattern.
        latest: True: keep only the newest message of each topic.
        window: its size in bytes (see `Window`).
        history: how many messages from before now are wanted; None: all there are.
        observer: True: never make a Pub wait.

    Attributes:
        window: how much may wait here, and of which stream.
        streams: those that may still bring something.
        gone: those that were given up without END, the last `REMEMBERED` of them.
        delivered: messages that were taken, of all streams that ever were.
        lost: messages that were due to this Sub and will never be delivered, in all.
        lost_by: why, as far as there is a reason: that of the `Gap`. (None is said of what a Sub
            gives up itself, by closing.)
        crowded: it was said that there are more than `MAX_STREAMS`.
        discarding: the Sub takes nothing any more: what comes is lost.
        on_entry: called when there is something to take (from the link's side).
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
    ) -> None:
        self.sub_id = sub_id
        self.pattern = pattern
        self.latest = latest
        self.window = Window(window)
        self.history = history
        self.observer = observer
        self.streams: dict[StreamKey, Stream] = {}
        self.gone: dict[StreamKey, Stream] = {}
        self._over: dict[StreamKey, None] = {}
        self.delivered = 0
        self.lost = 0
        self.lost_by: dict[str, int] = {}
        self.crowded = False
        self.discarding = False
        self.on_entry: Callable[[], None] = lambda: None
        self.accepts: Callable[[Stream], Exception | None] = lambda stream: None
        self._reports = 0  # entries that count for nothing in the window
        self._others = Stream(self, StreamKey("", 0), pattern, SEVERAL, 0)
        self._entries: deque[Entry] = deque()
        # with `latest`: what was passed over, by stream, and the newest message of each topic
        self._passed: deque[_Slot] = deque()
        self._newest: deque[_Slot] = deque()
        self._passed_of: dict[Stream, _Slot] = {}
        self._newest_of: dict[str, _Slot] = {}

    # --- streams ------------------------------------------------------------------------

    def add(self, stream: Stream) -> None:
        """A stream begins."""
        self.streams[stream.key] = stream
        self.window.add(stream.credit)

    def over(self, key: StreamKey) -> bool:
        """Whether a stream has ended in order: who still lists it is late, and to ask for it again
        would count again what has come."""
        return key in self._over

    def returned(self, key: StreamKey) -> Stream | None:
        """A stream that was given up may be had after all: it goes on where it stood, with its
        counts. None: it is not remembered."""
        stream = self.gone.pop(key, None)
        if stream is not None:
            stream.gone = ""
            stream.ended = False
            self.add(stream)
        return stream

    @property
    def lonely(self) -> bool:
        """Whether no publisher was ever known."""
        return not (self.streams or self.gone or self._over)

    def stream_opened(self, stream: Stream) -> None:
        """SUBSCRIBED told the codec: refuse the stream if this Sub cannot read it."""
        error = self.accepts(stream)
        if error is not None and stream.route is not None:
            assert stream.expected is not None
            stream.route.unsubscribe(stream)
            stream.finish()
            self.put(Entry(stream, stream.expected, stream.expected, error=error))

    def stream_ended(self, stream: Stream, over: bool) -> None:
        """A stream is over; what waits of it stays, and takes its part of the window."""
        if over:
            _remember(self._over, stream.key, None, OVER)
        elif stream.gone:
            _remember(self.gone, stream.key, stream, REMEMBERED)
        if self.streams.get(stream.key) is stream:
            del self.streams[stream.key]
            self.window.remove(stream.credit)

    def lose(self, stream: Stream, count: int, reason: str) -> None:
        """Messages that will not come, or came and could not be delivered."""
        self.lost += count
        stream.lost += count
        self.lost_by[reason] = self.lost_by.get(reason, 0) + count

    # --- what comes ---------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Something came."""
        if self.latest and entry.error is None:
            if not self.discarding:
                self._keep_newest(entry)
                self.on_entry()
                return
        elif not self.discarding:  # nothing is called from here to the append
            if entry.size:
                self._entries.append(entry)
            elif self._reports < MAX_REPORTS:
                self._reports += 1
                self._entries.append(entry)
            elif entry.gaps:
                self._report(self._others, entry.gaps)
            self.on_entry()
            return
        self.lost += entry.end - entry.first

    def _keep_newest(self, entry: Entry) -> None:
        """Newer messages take the place of older ones; what they overtake is counted by stream,
        so that nothing grows while nobody looks."""
        stream = entry.stream
        gaps, entry.gaps = entry.gaps, ()
        if entry.first == entry.end:
            if entry.size:
                self._pass_over(entry)
        else:
            overtaken = entry.end - 1 - entry.first
            if overtaken:
                self.lose(stream, overtaken, "conflated")
                gaps = (*gaps, (overtaken, "conflated"))
                entry.skip += overtaken
                entry.first += overtaken
            slot = self._newest_of.get(stream.topic)
            old = None if slot is None else slot.overtake(entry)
            if old is not None:
                self.lose(old.stream, 1, "conflated")
                self._report(old.stream, ((1, "conflated"),))
                self._pass_over(old)
            else:
                _add(self._newest, self._newest_of, stream.topic, entry)
        if gaps:
            self._report(stream, gaps)

    def _report(self, stream: Stream, gaps: tuple[tuple[int, str], ...]) -> None:
        """Have the Sub told of gaps, together with what it was not told yet of that stream."""
        slot = self._passed_of.get(stream)
        if slot is None and len(self._passed) >= MAX_REPORTS + len(self.streams):
            stream = self._others
            slot = self._passed_of.get(stream)
        seq = stream.expected or 0
        if slot is not None:
            reasons: dict[str, int] = {}
            for count, reason in (*slot.entry.gaps, *gaps):
                reasons[reason] = reasons.get(reason, 0) + count
            together = tuple((count, reason) for reason, count in reasons.items())
            if slot.overtake(Entry(stream, seq, seq, gaps=together)) is not None:
                return
        _add(self._passed, self._passed_of, stream, Entry(stream, seq, seq, gaps=gaps))

    def _pass_over(self, entry: Entry) -> None:
        """Nobody takes it: its part of the window is free."""
        credit = entry.stream.credit
        credit.took(entry.end, entry.size)
        credit.announce()

    # --- what is taken ------------------------------------------------------------------

    def peek(self) -> Entry | None:
        """The next entry, which stays the next one until it is released; None: nothing waits."""
        if self._entries:
            return self._entries[0]
        if self._passed:
            return self._passed[0].claim()
        if self._newest:
            return self._newest[0].claim()
        return None

    def release(self, entry: Entry, again: bool = False) -> None:
        """An entry that was peeked at is the Sub's now, which has counted it (`Credit.took`): it
        waits no more, and is acknowledged. May be called `again` where it was interrupted."""
        slot = entry.slot
        if slot is None:
            entries = self._entries
            if entries and entries[0] is entry:
                if not entry.size:
                    self._reports -= 1  # nothing is called between this
                entries.popleft()  # and this
        else:
            for queue in (self._passed, self._newest):
                if queue and queue[0] is slot:
                    queue[0].entry = queue[0].following = _TAKEN
                    queue.popleft()
        if entry.size:
            entry.stream.credit.announce(again)

    def take(self) -> Entry | None:
        """The next entry, peeked at, counted and released; None: nothing waits."""
        entry = self.peek()
        if entry is not None:
            entry.stream.credit.took(entry.end, entry.size)
            self.release(entry)
        return entry

    def waiting(self) -> list[Entry]:
        """What was not taken yet. Called by the Sub's side."""
        return [*self._entries, *(slot.entry for slot in (*self._passed, *self._newest))]

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._entries and not self._newest and not self._passed

    # --- the end ------------------------------------------------------------------------

    def close(self) -> list[Stream]:
        """The Sub is closed. Returns the streams, whose routes are still to be told."""
        self.on_entry()
        return list(self.streams.values())

    def discard(self) -> None:
        """Give up what waits, and whatever may still come: it is lost. Called by the Sub's side."""
        self.discarding = True
        while self._entries:
            entry = self._entries[0]
            self.lost += entry.end - entry.first  # nothing is called between this
            self._entries.popleft()  # and this
        while self._newest:
            entry = self._newest[0].claim()
            self.lost += entry.end - entry.first
            self._newest.popleft()
        self._passed.clear()


def _add(queue: deque[_Slot], slots: dict[_Key, _Slot], key: _Key, entry: Entry) -> None:
    """Put an entry in a slot of its own, at the end of the queue."""
    slot = _Slot(entry)
    if len(slots) > 2 * len(queue) + 64:  # most of them were taken
        waiting = set(queue)
        for other in [other for other, of in slots.items() if of not in waiting]:
            del slots[other]
    slots[key] = slot
    queue.append(slot)


def _remember(table: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Keep it, and of all that are kept the last ones."""
    table[key] = value
    if len(table) > most:
        del table[next(iter(table))]
