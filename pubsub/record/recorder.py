"""Recorder: writes what is published into files, on a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import math
import operator
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pubsub import Closed, Gap, Peer, WrongContext
from pubsub.core.topics import check_pattern, matches
from pubsub.errors import RecordingError
from pubsub.faces.undecoded import Batch, UndecodedSub
from pubsub.record.batches import (
    BATCH_ENCODING,
    GAP_CHANNEL,
    GAP_SCHEMA,
    GAP_SCHEMA_NAME,
    LARGEST,
    pack,
    pack_gap,
)
from pubsub.record.finishing import hold
from pubsub.record.index import Index
from pubsub.record.writing import CHUNK, COMPRESSIONS, MOST_CHANNELS, ChunkWriter

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Recorder", "TopicCount"]

WINDOW: Final = 64 * 1024 * 1024
CHUNK_SECONDS: Final = 1.0
"""Seconds for which what was recorded may wait to be a whole chunk in the file."""


class TopicCount(NamedTuple):
    """What was recorded of a topic."""

    messages: int = 0
    batches: int = 0
    size: int = 0
    """Bytes of the messages, encoded."""
    lost: int = 0

    def plus(self, more: TopicCount) -> TopicCount:
        return TopicCount(*map(operator.add, self, more))


class Recorder:
    """Records topics into a file, from when its ``with`` (or ``async with``) begins to when that
    ends, or a limit is reached.

    It is an observer: no Pub ever waits for it. It takes the batches as they come, and decodes
    none, so that it needs no permission for pickles. Where the disk is slower than what comes, its
    window fills, and what then is lost is counted, and stands in the file as a gap. A chunk of a
    file is written when it has 4 MiB, or after a second: what a killed process leaves can be read
    up to its last whole chunk.

    Parameters:
        path: of the file; with `rotate_size` or `rotate_time` the files are numbered: of
            ``run.mcap`` the first is ``run-0001.mcap``.
        patterns: a topic or pattern, or several.
        peer: a Peer that was made outside event loops; default: the process's own.
        history: how many messages from before are wanted, or ``"all"``, as of a `Sub`.
        window: bytes that may wait to be written. Default 64 MiB.
        compression: of chunks: ``"zstd"`` (default), ``"lz4"`` or ``"none"``.
        fsync: when the disk is made to hold what was written: ``"never"`` (default; the system does
            it within half a minute, and only a machine that fails loses anything), after each
            ``"chunk"``, or every so many seconds.
        limit_size, limit_time: bytes of all files, and seconds, after which it ends.
        rotate_size, rotate_time: bytes of a file, and seconds, after which the next one begins.
        overwrite: True: in the place of a file that is there.

    Attributes:
        paths: of its files.
        topics: what is in them, by topic, up to the last whole chunk.
        unknown: once it has ended, the publishers of which it is not known what they had, as gaps.
        lonely: once it has ended, whether no publisher was ever known.

    Raises:
        RecordingError: the file is there already, or is being recorded.
        TopicError: a pattern is not valid.
        OSError: a file cannot be written to. From `close`, where that was so in between: the file
            is finished with what had its place.

    Example: see `pubsub.record.open`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        patterns: str | Iterable[str],
        *,
        peer: Peer | None = None,
        history: int | Literal["all"] = 0,
        window: int = WINDOW,
        compression: Literal["zstd", "lz4", "none"] = "zstd",
        fsync: Literal["never", "chunk"] | float = "never",
        limit_size: int | None = None,
        limit_time: float | None = None,
        rotate_size: int | None = None,
        rotate_time: float | None = None,
        overwrite: bool = False,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression {compression!r} is none of {', '.join(COMPRESSIONS)}")
        if isinstance(fsync, str) and fsync not in ("never", "chunk"):
            raise ValueError(f'fsync {fsync!r} is neither "never", "chunk" nor a number of seconds')
        wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self.patterns = tuple(dict.fromkeys(map(check_pattern, wanted)))
        if not self.patterns:
            raise ValueError("no topic to record")
        if peer is not None and not peer.blocking:
            raise WrongContext(
                "a Recorder has a thread of its own: give it a Peer that was made outside the "
                "event loop, or none"
            )
        self.path = os.fspath(path)
        self.paths: list[str] = []
        self.topics: dict[str, TopicCount] = {}
        self.unknown: list[Gap] = []
        self.lonely = True
        self._peer = peer
        self._options: dict[str, Any] = {"history": history, "window": window}
        self._compression = compression
        self._fsync = fsync
        self._limit_size = math.inf if limit_size is None else limit_size
        self._limit_time = math.inf if limit_time is None else limit_time
        self._rotates = rotate_size is not None or rotate_time is not None
        self._rotate_size = math.inf if rotate_size is None else rotate_size
        self._rotate_time = math.inf if rotate_time is None else rotate_time
        self._overwrite = overwrite
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        self._stopped_at = math.inf  # wall-clock time from which on nothing is wanted
        self._error: BaseException | None = None
        self._file: _File | None = None
        self._finished_size = 0  # bytes of the files before
        self._first_match: dict[str, int] = {}

    # --- what programs call ---------------------------------------------------------------

    @property
    def messages(self) -> int:
        """How many were recorded."""
        return sum(count.messages for count in list(self.topics.values()))

    @property
    def lost(self) -> int:
        """How many were due and are not in the file."""
        return sum(count.lost for count in list(self.topics.values()))

    @property
    def size(self) -> int:
        """Bytes of all its files, as far as they are written."""
        file = self._file
        return self._finished_size + (0 if file is None else file.size)

    def start(self) -> None:
        """Begin: when it returns, whatever is put from then on is recorded. (``with`` does it.)"""
        if self._thread is not None:
            raise Closed(f"the Recorder of {self.path} was started before")
        self._file = self._open_file()
        self._thread = threading.Thread(target=self._run, name="pubsub recorder", daemon=True)
        atexit.register(self.stop)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended by itself, or for `timeout` seconds; returns whether it has."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End: what was sent until now and has come is recorded, and the file finished. Waits for
        that, and raises nothing."""
        thread = self._thread
        if thread is None:
            return
        self._stopped_at = min(self._stopped_at, time.time())
        self._bell.put(None)
        thread.join()
        atexit.unregister(self.stop)

    def close(self) -> None:
        """The same. May be called again.

        Raises:
            OSError: a file could not be written to.
            PubSubError: no coordinator could be reached, say.
        """
        self.stop()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # that is what is to be told
            self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def __repr__(self) -> str:
        return f"<Recorder {self.path!r}: {self.messages} messages, {self.lost} lost>"

    # --- files ----------------------------------------------------------------------------

    def _open_file(self) -> _File:
        number = len(self.paths) + 1
        path = self.path
        if self._rotates or number > 1:
            whole = Path(path)
            path = str(whole.with_name(f"{whole.stem}-{number:04}{whole.suffix}"))
        file = _File(path, self._compression, self._overwrite)
        self.paths.append(path)
        return file

    def _end_chunk(self, file: _File, *, sync: bool) -> None:
        """Write what waits, and count it."""
        written = False
        try:
            file.end_chunk(sync=sync)
            written = True
        finally:
            for topic, count in file.take_counts().items():
                if not written:
                    count = TopicCount(lost=count.messages + count.lost)
                self.topics[topic] = self.topics.get(topic, TopicCount()).plus(count)

    def _end_file(self) -> None:
        """Write all that is left; where that is too much for the disk, finish what is there."""
        file, self._file = self._file, None
        if file is not None:
            try:
                try:
                    self._end_chunk(file, sync=False)
                finally:
                    file.finish(sync=self._fsync != "never")
            finally:
                self._finished_size += file.size

    # --- in the thread --------------------------------------------------------------------

    def _run(self) -> None:
        subs: list[UndecodedSub] = []
        try:
            for pattern in self.patterns:
                options = {**self._options, "peer": self._peer, "bell": self._bell}
                subs.append(UndecodedSub(pattern, observer=True, **options))
            assert self._file is not None
            self._file.begin()
            self._started.set()
            self._record(subs)
            self._look_who_is_gone(subs)
        except Closed:  # its Peer is: at the end of the process, say
            pass
        except BaseException as error:
            self._error = error
        finally:
            for sub in subs:
                with suppress(Exception):
                    sub.close()
            try:
                self._end_file()
            except Exception as error:
                self._error = self._error or error
            self._started.set()
            self._ended.set()

    def _record(self, subs: list[UndecodedSub]) -> None:
        ends_at = time.monotonic() + self._limit_time
        while self.size < self._limit_size and time.monotonic() < ends_at:
            took = False
            for number, sub in enumerate(subs):
                batch = sub.take()
                if batch is None:
                    continue
                took = True
                if batch.sent_at >= self._stopped_at:
                    return
                if self._first(batch.topic) == number:
                    self._write(batch)
            self._look_at_file()
            if not took:
                if self._stopped_at < math.inf:
                    return
                UndecodedSub.wait(subs, self._bell, self._patience(ends_at))

    def _first(self, topic: str) -> int:
        """Whose topic it is: of the Subs that get it, the first one's."""
        if len(self.patterns) == 1:
            return 0
        first = self._first_match.get(topic)
        if first is None:
            if len(self._first_match) > 100_000:
                self._first_match.clear()
            found = (n for n, pattern in enumerate(self.patterns) if matches(pattern, topic))
            first = self._first_match[topic] = next(found, 0)
        return first

    def _write(self, batch: Batch) -> None:
        assert self._file is not None
        size = batch.size
        gaps, messages = batch.gaps, batch.messages
        if size + 8 * len(batch.buffers) > LARGEST - 1024:
            gaps += (Gap(batch.publisher, batch.topic, messages, "too large"),)
            messages = 0
        self._file.write(batch, gaps, messages, size)

    def _look_who_is_gone(self, subs: list[UndecodedSub]) -> None:
        """Say in the file too of which publishers it is not known what they had, at the end."""
        assert self._file is not None
        for number, sub in enumerate(subs):
            self.lonely = self.lonely and sub.lonely
            for gap, told in sub.unknown():
                if self._first(gap.topic) == number:
                    self.unknown.append(gap)
                    if not told:
                        self._file.write_gaps(gap.topic, (gap,))

    def _look_at_file(self) -> None:
        """Close a chunk that is old, have the disk hold it, begin the next file: what is due."""
        file = self._file
        assert file is not None
        now = time.monotonic()
        if file.writer.waiting >= CHUNK or now >= file.due:
            self._end_chunk(file, sync=self._fsync == "chunk")
        if not isinstance(self._fsync, str) and now >= file.synced_at + self._fsync:
            file.sync()
        if (
            file.size >= self._rotate_size
            or (now >= file.opened_at + self._rotate_time and file.used)
            or len(file.writer.index.channels) >= MOST_CHANNELS
        ):
            self._end_file()
            self._file = self._open_file()
            self._file.begin()

    def _patience(self, ends_at: float) -> float | None:
        """Seconds until something is due; None: nothing ever will be."""
        file = self._file
        assert file is not None
        due = min(file.due, ends_at)
        if file.used:
            due = min(due, file.opened_at + self._rotate_time)
        if not isinstance(self._fsync, str) and file.unsynced:
            due = min(due, file.synced_at + self._fsync)
        return None if due == math.inf else min(max(0.0, due - time.monotonic()), 3600.0)


class _File:
    """One file that is being written. What is there under its name stays until `begin`."""

    writer: ChunkWriter

    def __init__(self, path: str, compression: str, overwrite: bool) -> None:
        if os.path.isdir(path):
            raise RecordingError(path, "it is a directory")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._made = not os.path.exists(path)
        try:
            self._descriptor = os.open(path, flags | (0 if overwrite else os.O_EXCL), 0o666)
        except FileExistsError:
            raise RecordingError(
                path, "it is there already: choose another name, or have it overwritten"
            ) from None
        if hold(self._descriptor) is False:
            os.close(self._descriptor)
            raise RecordingError(path, "it is being recorded by another process")
        self.path = path
        self._compression = compression
        self._begun = False
        self._channels: dict[object, int] = {}
        self._waiting = Index()  # what the chunk adds to that of the file
        self._counts: dict[str, TopicCount] = {}
        self._epoch = time.time_ns() - time.monotonic_ns()  # so that times never go back
        self.opened_at = self.synced_at = time.monotonic()
        self.due = math.inf  # when the chunk is to be closed
        self.unsynced = False

    def begin(self) -> None:
        """Empty it, and write its head."""
        os.ftruncate(self._descriptor, 0)
        self.writer = ChunkWriter(self._descriptor, self._compression)
        schema = self.writer.add_schema(GAP_SCHEMA_NAME, GAP_SCHEMA)
        self._gaps = self.writer.add_channel(GAP_CHANNEL, "json", {}, schema)
        self._begun = True

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return self.writer.index.end if self._begun else 0

    @property
    def used(self) -> bool:
        """Whether anything was recorded into it."""
        return bool(self.writer.index.chunks or self.due < math.inf)

    def write(self, batch: Batch, gaps: tuple[Gap, ...], messages: int, size: int) -> None:
        """Have a batch in the chunk, behind what was lost before it."""
        if gaps:
            self.write_gaps(batch.topic, gaps)
        if messages:
            now = self._now()
            channel = self._channel(batch)
            buffers = [buffer.take_bytes() for buffer in batch.buffers]
            parts = pack(
                *(batch.first, batch.sent_at, messages, batch.skip),
                *(batch.headers, batch.body, buffers),
            )
            sent_at = int(batch.sent_at * 1e9) if 0 < batch.sent_at < 2**34 else now
            self.writer.add(channel, batch.first & 0xFFFFFFFF, now, sent_at, parts)
            self._waiting.count(channel, messages, size)
            self._count(batch.topic, TopicCount(messages, 1, size))

    def write_gaps(self, topic: str, gaps: tuple[Gap, ...]) -> None:
        """Have what is missing of a stream in the chunk."""
        now = self._now()
        for gap in gaps:
            self.writer.add(self._gaps, 0, now, now, [pack_gap(gap)])
            self._waiting.count_gap(gap)
        self._count(topic, TopicCount(lost=sum(gap.missed for gap in gaps)))

    def _now(self) -> int:
        if self.due == math.inf:
            self.due = time.monotonic() + CHUNK_SECONDS
        return self._epoch + time.monotonic_ns()

    def _count(self, topic: str, more: TopicCount) -> None:
        self._counts[topic] = self._counts.get(topic, TopicCount()).plus(more)

    def _channel(self, batch: Batch) -> int:
        key = batch.stream, batch.topic, batch.publisher, batch.codec
        channel = self._channels.get(key)
        if channel is None:
            said = {
                "codec": batch.codec,
                "name": batch.name,
                "publisher": batch.publisher,
                "stream": f"{batch.stream.peer_id}#{batch.stream.stream_id}",
            }
            channel = self.writer.add_channel(batch.topic, BATCH_ENCODING, said)
            self._channels[key] = channel
        return channel

    def take_counts(self) -> dict[str, TopicCount]:
        """What was given to `write` since this was called last, by topic."""
        counts, self._counts = self._counts, {}
        return counts

    def end_chunk(self, *, sync: bool) -> None:
        """Write the chunk, if there is anything in it."""
        if self.due < math.inf:
            self.due = math.inf
            self.unsynced = True
            waiting, self._waiting = self._waiting, Index()
            self.writer.end_chunk()
            self.writer.index.add(waiting)
            if sync:
                self.sync()

    def sync(self) -> None:
        """Have the disk hold it."""
        if self.unsynced:
            self.unsynced = False
            self.writer.sync()
        self.synced_at = time.monotonic()

    def finish(self, *, sync: bool) -> None:
        """Write what is behind the last chunk, and close it. One that was never begun is as it was
        before."""
        try:
            if self._begun:
                self.writer.finish()
                if sync:
                    self.writer.sync()
            elif self._made:
                os.unlink(self.path)
        finally:
            os.close(self._descriptor)
