"""A Pub and a Sub in one process: the way of the messages without a link."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pubsub.core.cursor import Cursor, Skip, SubKey
from pubsub.core.log import Batch
from pubsub.core.publication import Publication
from pubsub.core.stream import Stream

__all__ = ["Local"]


class Local:
    """Outlet of all local cursors and route of all local streams of one peer."""

    def __init__(self, peer_id: str, on_output: Callable[[], None]) -> None:
        self.peer_id = peer_id
        self.address = self.way = "local"
        self.lends = False  # it hands over what there is
        self.taken = 0
        self._on_output = on_output
        self._pairs: dict[Cursor, tuple[Publication, Stream]] = {}
        self._cursors: dict[Stream, Cursor] = {}
        self._ready: deque[Cursor] = deque()

    def join(self, publication: Publication, stream: Stream) -> None:
        """Subscribe a local Sub to a local Pub; whichever is younger calls for it at once, so
        that a Sub older than the Pub gets its first message."""
        asked = stream.subscribe(self, 0)
        cursor, said = publication.attach(SubKey(self.peer_id, asked.sub_id), self, asked)
        self._pairs[cursor] = (publication, stream)
        self._cursors[stream] = cursor
        stream.opened(said.topic, said.codec, said.due, said.next, said.ack_every)

    # --- outlet -------------------------------------------------------------------------

    def enqueue(self, cursor: Cursor) -> None:
        self._on_output()  # first: where it raises, the cursor is not queued
        self._ready.append(cursor)

    def offer(self, cursor: Cursor, batch: Batch) -> bool:
        self.enqueue(cursor)
        return True

    def end(self, cursor: Cursor, final: int, code: str, reason: str) -> None:
        pair = self._pairs.get(cursor)
        if pair is not None:
            self.taken_over(cursor)
            pair[1].end(final)

    def taken_over(self, cursor: Cursor) -> None:
        pair = self._pairs.pop(cursor, None)
        if pair is not None:
            self._cursors.pop(pair[1], None)  # its `join` may have been interrupted between the two

    def pump(self) -> None:
        """Hand over what is ready, as far as the windows allow."""
        ready = self._ready
        for _ in range(len(ready)):
            cursor = ready.popleft()
            pair = self._pairs.get(cursor)
            if pair is None:
                continue
            publication, stream = pair
            while not stream.ended:
                batch = cursor.take()
                if batch is None:
                    break
                if isinstance(batch, Skip):
                    stream.gap(*batch)
                    continue
                stream.batch(
                    *(batch.first, batch.count, batch.sent_at),
                    *(batch.body, batch.buffers, batch.headers),
                )
            cursor.arrived(cursor.next)
            cursor.confirm = None
            publication.progress(cursor)  # still queued: a flush that waits on does not ask again
            cursor.queued = False

    # --- route --------------------------------------------------------------------------

    def ack(self, stream: Stream) -> None:
        cursor = self._cursors.get(stream)
        granted = stream.credit.grant()
        if granted is not None and cursor is not None:
            self._pairs[cursor][0].ack(cursor, *granted)

    def unsubscribe(self, stream: Stream) -> None:
        self.ack(stream)
        cursor = self._cursors.pop(stream, None)
        if cursor is not None:
            publication, _ = self._pairs.pop(cursor)
            publication.remove(cursor)
