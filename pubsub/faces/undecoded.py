"""Batches as they travel: taken without being decoded, decoded later, put again. For who counts
messages, or keeps them meanwhile (see `pubsub.record`), and looks into none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgpack

from pubsub.codec.codecs import CODECS, by_name, decoder_of
from pubsub.codec.decoder import Decoder
from pubsub.codec.headers import BatchHeaders
from pubsub.codec.own_codecs import Codec
from pubsub.core.stream import Entry, Stream, StreamKey
from pubsub.errors import Closed, DecodeError, MessageTooLarge
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.faces.message import Gap, Message
from pubsub.faces.pub import HANDOVER_BYTES, OVERHEAD
from pubsub.wire.buffers import Buffer, WholeBuffer
from pubsub.wire.frames import BATCH_COST, array_header

__all__ = [
    "Batch",
    "BatchHeaders",
    "Decoders",
    "UndecodedPub",
    "UndecodedSub",
    "headed",
    "headers_without_first",
    "undecoded",
    "without_first",
]


class Batch(NamedTuple):
    """A batch of one stream, behind what was lost before it."""

    stream: StreamKey
    """Which Pub it is of, anywhere."""
    topic: str
    publisher: str
    name: str
    """Of the publisher's certificate; empty: none is used."""
    codec: str
    gaps: tuple[Gap, ...]
    first: int
    """The number of its first message in the stream."""
    messages: int
    """How many are to be delivered; 0: there is nothing but gaps."""
    skip: int
    """How many values of `body` come before these."""
    sent_at: float
    body: bytes | memoryview
    """One msgpack array of the values."""
    buffers: tuple[Buffer, ...]
    """The large buffers of its last value."""
    headers: bytes
    """Those of its messages, one msgpack map; empty: none has any."""

    @classmethod
    def of(cls, entry: Entry) -> Batch:
        """What a Sub has taken of its inbox."""
        stream = entry.stream
        return cls(
            stream.key,
            stream.topic,
            stream.publisher,
            stream.name,
            stream.codec,
            tuple(Gap(stream.publisher, stream.topic, *gap) for gap in entry.gaps),
            entry.first,
            entry.end - entry.first,
            entry.skip,
            entry.sent_at,
            entry.body,
            entry.buffers,
            entry.headers,
        )

    @property
    def size(self) -> int:
        """Bytes of the encoded values and headers."""
        return len(self.body) + len(self.headers) + sum(map(len, self.buffers))


async def undecoded(sub: AsyncSub) -> AsyncGenerator[Batch, None]:
    """Take all that comes for a Sub, batch by batch, until it is closed; nobody else may take of
    it.

    Raises:
        DecodeError: a publisher's codec is not allowed here; begun again, it goes on.
        CoordinatorUnavailable: none could be reached.
    """
    while True:
        if sub._long_enough():
            await asyncio.sleep(0)
        if isinstance(sub._dead, Closed):
            return
        sub._check()
        entry = sub._inbox.take()
        if entry is None:
            await sub._arrival()
            continue
        if entry.error is not None:
            raise entry.error
        entry.stream.delivered += entry.end - entry.first
        yield Batch.of(entry)


class UndecodedSub(BlockingSub, blocking=True):
    """A Sub of streams of any codec, of which one thread takes whole batches (and nothing by `get`
    or iteration).

    Parameters:
        topic, options: as of a `Sub`.
        bell: rings when there is something to take: see `wait`. Several Subs may share one.
    """

    def __init__(self, topic: str, *, bell: SimpleQueue[None], **options: Any) -> None:
        super().__init__(topic, **options)
        self._arrived = bell

    def _acceptance(self) -> Callable[[Stream], Exception | None]:
        return lambda stream: None

    def take(self) -> Batch | None:
        """The next batch; None: nothing waits.

        Raises:
            Closed: the Sub is closed.
            CoordinatorUnavailable: none could be reached.
            AuthError: this process has no right to the topic.
        """
        self._check()
        entry = self._inbox.take()
        if entry is None:
            return None
        entry.stream.delivered += entry.end - entry.first
        return Batch.of(entry)

    def unknown(self) -> list[tuple[Gap, bool]]:
        """The publishers of which it is not known what they had for this Sub, or would not be if it
        were closed now, as gaps of unknown size; and whether `take` has given that gap already."""
        in_trouble = self._runtime.publishers.in_trouble
        inbox = self._inbox
        found = []
        for stream in (*list(inbox.gone.values()), *list(inbox.streams.values())):
            fate = stream.gone if stream.ended or stream.open else stream.fate(in_trouble(stream))
            if fate:
                found.append((Gap(stream.publisher, stream.topic, 0, fate), bool(stream.gone)))
        return found

    @property
    def lonely(self) -> bool:
        """Whether no publisher was ever known."""
        return self._inbox.lonely

    @staticmethod
    def wait(subs: Iterable[UndecodedSub], bell: SimpleQueue[None], timeout: float | None) -> None:
        """Wait until there may be something to take of one of them, the bell was rung by somebody
        else, or `timeout` seconds have passed."""
        for sub in subs:
            sub._waiting = True
        with suppress(Empty):
            if all(sub._inbox.empty and sub._dead is None for sub in subs):
                bell.get(timeout=timeout)
            while True:  # it may have been rung for each of them
                bell.get_nowait()


class UndecodedPub(BlockingPub, blocking=True):
    """A Pub that is given whole batches, encoded as its codec does.

    Parameters:
        topic, options: as of a `Pub`.
        codec: the name of any codec, also of one that this process does not have.
    """

    def __init__(self, topic: str, *, codec: str, **options: Any) -> None:
        how = codec if codec in CODECS else Codec(codec, _encodes_nothing, _encodes_nothing)
        super().__init__(topic, codec=how, **options)  # type: ignore[arg-type]  # one of CODECS

    def put_batch(
        self, messages: int, body: bytes, buffers: Sequence[bytes], headers: bytes = b""
    ) -> None:
        """Publish a batch; waits for room as `put` does.

        Parameters:
            messages: how many are in it.
            body: one msgpack array of their values.
            buffers: the large buffers of its last value.
            headers: those of its messages, one msgpack map; empty: none has any.

        Raises:
            ValueError: the body is no array of so many values, or the headers are no map.
            MessageTooLarge: it is above the Peer's `max_message`. Nothing was put.
            Closed: the Pub is closed.
        """
        if not messages or not body.startswith(array_header(messages)):
            raise ValueError(f"a batch that is no array of {messages} values")
        if headers:  # who receives it has to find them behind the body
            _check_whole(body)
            _headers(headers)
        size = len(body) + len(headers) + sum(map(len, buffers))
        if size > self._max_message:
            raise MessageTooLarge(topic=self.topic, size=size, limit=self._max_message)
        with self._lock:
            self._check()
            if self._block:
                self._wait_for_room(size + OVERHEAD)
            elif self._ahead() > HANDOVER_BYTES:
                self._let_it_catch_up()
            for buffer in buffers:  # into memory that others on this host see, where there is room
                self._encoder._put_out(buffer)
            batch = messages, body, self._encoder.take(), self._wall_clock(), headers
            self._wake()
            self._handed += size + BATCH_COST
            self._handover.append((size + BATCH_COST, batch))


def _encodes_nothing(value: Any) -> Any:
    raise TypeError("this Pub is given batches alone")


def without_first(body: bytes | memoryview, skip: int, messages: int) -> bytes:
    """The body of a batch without its first `skip` values, of which `messages` are left.

    Raises:
        ValueError: there are not so many.
    """
    if not skip:
        return bytes(body)
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), read_size=max(len(body), 1))
    try:
        unpacker.feed(body)
        if unpacker.read_array_header() != skip + messages:
            raise ValueError("not as many values as announced")
        for _ in range(skip):
            unpacker.skip()
    except msgpack.UnpackException as error:
        raise ValueError("a batch that ends too early") from error
    return array_header(messages) + body[unpacker.tell() :]


def headers_without_first(headers: bytes, skip: int) -> bytes:
    """The headers of such a batch, once its first `skip` values are left out.

    Raises:
        ValueError: they are no map.
    """
    if not (headers and skip):
        return headers
    left = {number - skip: of for number, of in _headers(headers).items() if number >= skip}
    packed: bytes = msgpack.packb(left) if left else b""
    return packed


def _check_whole(body: bytes) -> None:
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), read_size=len(body))
    unpacker.feed(body)
    try:
        unpacker.skip()
    except msgpack.UnpackException as error:
        raise ValueError("a batch that ends too early") from error
    if unpacker.tell() != len(body):
        raise ValueError("a batch with bytes left over")


def _headers(headers: bytes) -> dict[int, Any]:
    try:
        found = msgpack.unpackb(headers, strict_map_key=False, max_array_len=0, max_ext_len=0)
    except Exception as error:  # whatever msgpack makes of hostile bytes
        raise ValueError(f"headers that are none ({type(error).__name__})") from error
    if type(found) is not dict or set(map(type, found)) - {int}:
        raise ValueError("headers that are no map of numbers to headers")
    return found


def headed(message: Message, headers: BatchHeaders | None) -> Message:
    """The message, with what the headers of its batch say of it once somebody asks."""
    message._headers = headers
    return message


class Decoders:
    """Decodes batches of streams of several codecs.

    Parameters:
        codec, copy: as of a `Sub`.
        allow_pickle: True: also of codecs that run code of the sender's choice.
    """

    def __init__(
        self, codec: Codec | Iterable[Codec], *, allow_pickle: bool, copy: bool = False
    ) -> None:
        self._own = by_name(codec)
        self._allow_pickle = allow_pickle
        self._copy = copy
        self._decoders: dict[str, Decoder] = {}

    def why_not(self, codec: str) -> str:
        """Why streams of this codec are not decoded; empty: they are."""
        own = self._own.get(codec)
        if own is None and codec not in CODECS:
            return f"has the codec {codec!r}, which is not known here"
        if not self._allow_pickle and (codec == "pickle" if own is None else own.runs_code):
            return f"has the codec {codec!r}, which runs code of the publisher's choice"
        return ""

    def decode(
        self, codec: str, body: bytes | memoryview, buffers: Sequence[bytes], skip: int, wanted: int
    ) -> list[Any]:
        """The values of a batch behind the first `skip`, in number as `wanted`; in place of each
        that cannot be decoded, a DecodeError."""
        decoder = self._decoders.get(codec)
        if decoder is None:
            decoder = self._decoders[codec] = decoder_of(
                codec, self._own, allow_pickle=self._allow_pickle, copy=self._copy
            )
        held = tuple(map(WholeBuffer, buffers))
        try:
            values = decoder.decode(body, held)
            if len(values) == skip + wanted:
                return values[skip:] if skip else values
            error = DecodeError("not as many values as announced")
            values = []
        except DecodeError as broken:
            error, values = broken.with_traceback(None), []
            with suppress(DecodeError):
                values = decoder.decode_each(body, held)[skip:][:wanted]
        return values + [error] * (wanted - len(values))
