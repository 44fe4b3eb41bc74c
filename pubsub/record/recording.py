"""Recording: what a program reads of a file."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from pubsub import Codec, DecodeError, Gap, Message
from pubsub.core.topics import check_pattern, matches
from pubsub.errors import RecordingError
from pubsub.faces.undecoded import BatchHeaders, Decoders, headed
from pubsub.record.batches import Stored, gap_of, unpack
from pubsub.record.extra import Channel
from pubsub.record.index import Index
from pubsub.record.walking import File

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Event", "Recording", "StreamInfo", "open"]


class StreamInfo(NamedTuple):
    """One stream of a recording: what one Pub has put."""

    topic: str
    publisher: str
    name: str
    """Of the publisher's certificate; empty: none was used."""
    codec: str
    messages: int
    batches: int
    size: int
    """Bytes of the messages, encoded."""


class Event(NamedTuple):
    """A batch or a gap, and when it was recorded."""

    at: int
    """Nanoseconds since 1970, by the recorder's clock; they never go back."""
    stream: StreamInfo | None
    """None: `what` is a gap."""
    what: Stored | Gap


class Recording:
    """A recording that is open, to be gone over as one goes over a `Sub`: iteration gives plain
    values, each time from the beginning, and `messages` gives them with where they come from.

    A finished file is opened by its index. One whose recorder was killed is gone over once, up to
    its last whole chunk.

    Parameters:
        path: of the file.
        topics: a topic or pattern, or several: only messages and gaps of these. Default: all.
        start, end: only what was recorded at or after, and before this; seconds since 1970.
        copy: numpy arrays come as copies that can be written to.
        allow_pickle: True: decode streams with ``codec="pickle"``, or with one of `codec` that runs
            code. Unpickling runs code of the choice of who has written the file.
        codec: a `Codec`, or several, whose streams it decodes too.

    Attributes:
        path: of the file.
        streams: what is in it, of the topics that are wanted; of all times.
        finished: False: its recorder was killed, or records still.
        behind: bytes behind the last whole chunk, of one that is not finished.
        broken: why these are not merely what was being written; empty: they are.
        file_size: bytes of the file.

    Raises:
        RecordingError: it is no recording, or it is broken.
        OSError: it cannot be read.
        TopicError: of `topics`, one is not valid.

    Example:
        >>> import pubsub, tempfile
        >>> from pubsub import record
        >>> path = tempfile.mkdtemp() + "/run.mcap"
        >>> with record.Recorder(path, "numbers/**"), pubsub.Pub("numbers/odd") as pub:
        ...     pub.wait_for_subscribers(timeout=5)
        ...     pub.put_many([1, 3, 5])
        ...     pub.close()
        >>> with record.open(path) as recording:
        ...     list(recording)
        [1, 3, 5]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        topics: str | Iterable[str] = (),
        start: float | None = None,
        end: float | None = None,
        copy: bool = False,
        allow_pickle: bool = False,
        codec: Codec | Iterable[Codec] = (),
    ) -> None:
        self.path = os.fspath(path)
        wanted = (topics,) if isinstance(topics, str) else tuple(topics)
        self._patterns = tuple(map(check_pattern, wanted))
        self._since = None if start is None else int(start * 1e9)
        self._until = None if end is None else int(end * 1e9)
        self._decoders = Decoders(codec, allow_pickle=allow_pickle, copy=copy)
        self._stream = builtins.open(self.path, "rb")  # noqa: SIM115 # `close` does
        try:
            file = self._file = File(self.path, self._stream)
            index = file.index
            self._streams = {
                number: _info(index, channel)
                for number, channel in index.streams().items()
                if self._wants(channel.topic)
            }
        except BaseException:
            self._stream.close()
            raise
        self._gaps = {n for n, channel in index.channels.items() if index.is_gaps(channel)}
        self.streams = tuple(self._streams.values())
        self.finished = file.finished
        self.behind = file.behind
        self.broken = file.broken
        self.file_size = file.size

    def _wants(self, topic: str) -> bool:
        return not self._patterns or any(matches(pattern, topic) for pattern in self._patterns)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics of which something was recorded, sorted."""
        return tuple(sorted({stream.topic for stream in self.streams}))

    @property
    def start(self) -> float:
        """When the first batch was recorded, in seconds since 1970; 0: there is none."""
        return self._file.index.start / 1e9

    @property
    def end(self) -> float:
        """When the last one was."""
        return self._file.index.last / 1e9

    @property
    def gaps(self) -> dict[str, dict[str, int]]:
        """What is missing: by reason (see `Gap`) and topic, how many messages; with the reasons
        ``vanished``, ``unreachable`` and ``reached`` how often that was said."""
        found: dict[str, dict[str, int]] = {}
        for reason, topics in self._file.index.gaps.items():
            for topic, missed in topics.items():
                if self._wants(topic):
                    found.setdefault(reason, {})[topic] = missed
        return found

    def __iter__(self) -> Iterator[Any]:
        for event in self.messages():
            if isinstance(event, Message):
                yield event.value

    def messages(self) -> Iterator[Message | Gap]:
        """The messages with where they come from, and each gap in its place.

        Raises:
            DecodeError: a stream may not be decoded: see `allow_pickle`, `codec` and `topics`.
            RecordingError: the file is broken.
        """
        for event in self.events():
            yield from self.decoded(event)

    def decoded(self, event: Event) -> Iterator[Message | Gap]:
        """What `messages` gives of one of the `events`.

        Raises: DecodeError as `messages` does.
        """
        stream, batch = event.stream, event.what
        if stream is None or isinstance(batch, Gap):
            assert isinstance(batch, Gap)
            yield batch
            return
        why = self._decoders.why_not(stream.codec)
        if why:
            raise DecodeError(
                f"{self.path}: the stream of {stream.topic!r} from {stream.publisher} {why}: "
                "leave it out by topics=, or pass allow_pickle=True (where who wrote the file may "
                "run code here) or codec=",
                topic=stream.topic,
                publisher=stream.publisher,
            )
        seq = batch.first
        headers = None
        if batch.headers:
            number = seq - batch.skip
            headers = BatchHeaders(batch.headers, number, stream.topic, stream.publisher)
        undecodable = 0
        for value in self._decoders.decode(
            stream.codec, batch.body, batch.buffers, batch.skip, batch.messages
        ):
            if isinstance(value, DecodeError):
                undecodable += 1
            else:
                if undecodable:
                    yield Gap(stream.publisher, stream.topic, undecodable, "undecodable")
                    undecodable = 0
                yield headed(
                    Message(
                        *(value, stream.topic, stream.publisher, seq, batch.sent_at),
                        name=stream.name,
                    ),
                    headers,
                )
            seq += 1
        if undecodable:
            yield Gap(stream.publisher, stream.topic, undecodable, "undecodable")

    def events(self) -> Iterator[Event]:
        """The batches, not decoded, and the gaps, with when each was recorded.

        Raises:
            RecordingError: the file is broken.
        """
        since, until = self._since, self._until
        wanted = {*self._streams, *self._gaps}
        for chunk in self._file.index.chunks:
            if since is not None and chunk.message_end_time < since:
                continue
            if until is not None and chunk.message_start_time >= until:
                continue
            if chunk.message_index_offsets and wanted.isdisjoint(chunk.message_index_offsets):
                continue
            for message in self._file.messages(chunk):
                at = message.log_time
                if (since is not None and at < since) or (until is not None and at >= until):
                    continue
                stream = self._streams.get(message.channel_id)
                try:
                    if stream is not None:
                        yield Event(at, stream, unpack(message.data))
                    elif message.channel_id in self._gaps:
                        gap = gap_of(message.data)
                        if self._wants(gap.topic):
                            yield Event(at, None, gap)
                except ValueError as error:
                    raise RecordingError(self.path, f"it is broken: {error}") from error

    def close(self) -> None:
        """Close the file. May be called again."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        messages = sum(stream.messages for stream in self.streams)
        return f"<Recording {self.path!r}: {messages} messages, {len(self.topics)} topics>"


open = Recording  # what one does with a file


def _info(index: Index, channel: Channel) -> StreamInfo:
    said = channel.metadata.get
    messages, size = index.totals.get(channel.id, (0, 0))
    return StreamInfo(
        *(channel.topic, said("publisher", ""), said("name", ""), said("codec", "msgpack")),
        *(messages, index.batches.get(channel.id, 0), size),
    )
