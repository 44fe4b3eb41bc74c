"""What is put when: recordings as batches to publish again, each at its time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from pubsub import Gap
from pubsub.errors import RecordingError
from pubsub.faces.undecoded import UndecodedPub, headers_without_first, without_first
from pubsub.record.batches import Stored
from pubsub.record.recording import Recording

__all__ = ["Ahead", "Due", "Key", "due", "keys", "put"]

T = TypeVar("T")
AHEAD: Final = 16 * 1024 * 1024
"""Bytes that are read before they are due."""


class Key(NamedTuple):
    """Which Pub a batch is for."""

    topic: str
    codec: str


class Due(NamedTuple):
    """A batch to put."""

    at: float
    """Seconds after the first one."""
    key: Key
    batch: Stored


def keys(recordings: Iterable[Recording], topics: Mapping[str, str]) -> list[Key]:
    """The Pubs that it takes to publish these again; `topics` says which have another topic now."""
    found = (
        Key(topics.get(stream.topic, stream.topic), stream.codec)
        for recording in recordings
        for stream in recording.streams
    )
    return list(dict.fromkeys(found))


def due(
    recordings: Iterable[Recording], topics: Mapping[str, str], rate: float
) -> Iterator[Due | Gap]:
    """Their batches, one recording behind the other, and the gaps between them.

    Parameters:
        rate: how many times as fast as they were recorded; infinite: all are due at once.

    Raises:
        RecordingError: one is broken.
    """
    first: int | None = None
    for recording in recordings:
        for at, stream, what in recording.events():
            if stream is None:
                assert isinstance(what, Gap)
                yield what
                continue
            assert isinstance(what, Stored)
            first = at if first is None else first
            key = Key(topics.get(stream.topic, stream.topic), stream.codec)
            yield Due((at - first) / 1e9 / rate, key, what)


def put(pub: UndecodedPub, batch: Stored, path: str) -> int:
    """Publish a batch; returns its bytes.

    Raises:
        RecordingError: it is none.
        MessageTooLarge: it is above the Peer's `max_message`.
    """
    try:
        body = without_first(batch.body, batch.skip, batch.messages)
        headers = headers_without_first(batch.headers, batch.skip)
        pub.put_batch(batch.messages, body, batch.buffers, headers)
    except ValueError as error:
        raise RecordingError(path, f"message {batch.first} of {pub.topic!r}: {error}") from error
    return len(body) + sum(map(len, batch.buffers))


class Ahead(Generic[T]):
    """Goes over something in a thread of its own, a little ahead: what it takes to have the next
    one then delays nothing.

    Parameters:
        source: what to go over.
        size: how much one of them counts for, in bytes.
        most: how many bytes may wait; one is always let in.
    """

    def __init__(self, source: Iterable[T], size: Callable[[T], int], most: int = AHEAD) -> None:
        self._source = source
        self._size = size
        self._most = most
        self._found: deque[tuple[T, int]] = deque()
        self._waiting = 0
        self._over = False
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="reading ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for one in self._source:
                size = self._size(one)
                with self._news:
                    while self._waiting and self._waiting + size > self._most and not self._over:
                        self._news.wait()
                    if self._over:
                        return
                    self._found.append((one, size))
                    self._waiting += size
                    self._news.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._news:
                while not (self._found or self._over):
                    self._news.wait(0.2)  # a signal that comes as it begins is noticed at its end
                if not self._found:
                    if self._error is not None:
                        raise self._error
                    return
                one, size = self._found.popleft()
                self._waiting -= size
                self._news.notify_all()
            yield one

    def close(self) -> None:
        """Go over no more of it."""
        with self._news:
            self._over = True
            self._found.clear()
            self._news.notify_all()
        self._thread.join()
