"""What is fuzzed: functions that take any bytes, and fail where a stranger's bytes do harm.

Each turns its bytes into what the other end of a connection may do (frames that are right, nearly
right, or garbage; in any order and cut anywhere) and does it to the real cores, with our own side's
turns in between. Only the documented error may come out, `ProtocolError` (`DecodeError` of values),
and what is held must stay within the limits. `test_fuzz.py` runs them with hypothesis,
``python -m tests.fuzz`` with atheris.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgpack

from pubsub.codec.codecs import decoder_of
from pubsub.codec.decoder import Decoder, MsgpackDecoder
from pubsub.codec.extension_types import CODED, OWN
from pubsub.codec.headers import BatchHeaders
from pubsub.codec.own_codecs import Codec
from pubsub.codec.own_types import register
from pubsub.config import Settings
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator, _Connection
from pubsub.core.cursor import SubKey
from pubsub.core.directory import Directory
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication
from pubsub.core.receiving import Receiving
from pubsub.core.serving import Serving
from pubsub.core.stream import Stream, StreamKey
from pubsub.errors import AuthError, DecodeError, ProtocolError
from pubsub.links.link import GOODBYE_GRACE, MAX_PINGS, Link
from pubsub.wire.frames import (
    BATCH_COST,
    BUFFER_PIECE,
    Event,
    FrameReader,
    array_header,
    buffer_header,
    data_header,
)
from pubsub.wire.handshake import Acceptor, Dialler, Identity, Other, Refused, tcp
from pubsub.wire.messages import (
    _CHECKS,
    Ack,
    Control,
    End,
    Goodbye,
    Kind,
    Match,
    Ping,
    Pong,
    Query,
    Register,
    Subscribe,
    Subscribed,
    Unregister,
    Unsubscribe,
    encode,
    parse,
)
from tests.fuzz.transport import Clock, Transport
from tests.wire.buffers import arrived, whole
from tests.wire.said import hello
from tests.wire.sinks import Nowhere

__all__ = ["TARGETS"]


class Choices:
    """Reads decisions from bytes; when they are used up, every decision is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """0 <= n < below."""
        size = 1 if below <= 256 else 2 if below <= 65_536 else 8
        return int.from_bytes(self.take(size), "big") % below

    def one_of(self, *things: Any) -> Any:
        return things[self.number(len(things))]

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def rest(self) -> bytes:
        found = self._data[self._at :]
        self._at = len(self._data)
        return found


NUMBERS = (0, 1, 2, 3, 7, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "",
    "t",
    "a/b",
    "**",
    "a/*",
    "a//b",
    "pub",
    "sub",
    "peer",
    "coordinator",
    "client",
    "topics",
    "peers",
    "closed",
    "closing",
    "msgpack",
    "a\nb",
    "\x1b[2J",
    "x" * 64,
    "é" * 1024,
    "a/" * 63 + "a",
    "**/" * 60 + "a",
)


def anything(choices: Choices, depth: int = 0) -> Any:
    """Some value that msgpack can carry."""
    kind = choices.number(12 if depth < 4 else 9)
    if kind <= 2:
        return choices.one_of(*NUMBERS)
    if kind == 3:
        return choices.number(2**64)
    if kind == 4:
        return choices.one_of(None, True, False, -1, 1.5, float("nan"), float("inf"))
    if kind <= 6:
        return choices.one_of(*WORDS)
    if kind == 7:
        return choices.take(choices.number(40))
    if kind == 8:
        return msgpack.ExtType(choices.number(20), choices.take(choices.number(20)))
    if kind == 9:
        return {choices.one_of(*WORDS): anything(choices, depth + 1)}
    return [anything(choices, depth + 1) for _ in range(choices.number(8))]


def fitting(choices: Choices, check: Callable[[Any], Any]) -> Any:
    """A value for a field, mostly one that passes its check."""
    candidates: tuple[Any, ...] = (
        *(choices.one_of(*NUMBERS[:5]), choices.one_of(*WORDS), choices.one_of(*NUMBERS)),
        *(True, False, None, 1.5, {}, []),
        [["p", "127.0.0.1", 1, choices.number(4), "t", True], ["p", 1, False, True], ["p", 2]],
    )
    start = choices.number(len(candidates))
    for i in range(len(candidates)):
        candidate = candidates[(start + i) % len(candidates)]
        try:
            check(candidate)
        except ValueError:
            continue
        return candidate
    return [[row] for row in candidates]


def frame(choices: Choices, kinds: tuple[int, ...]) -> bytes:
    """A frame of one of these kinds, mostly; right or not."""
    luck = choices.number(16)
    if luck == 0:
        return choices.take(choices.number(60))
    if luck == 1:
        payload = choices.take(choices.number(60))
    elif luck == 2:
        payload = msgpack.packb([choices.number(24), *(anything(choices) for _ in range(8))])
    else:
        kind = choices.one_of(*kinds) if luck < 15 else choices.number(24)
        if kind == Kind.DATA:
            return data(choices)
        if kind == Kind.BUFFER:
            size = choices.one_of(1, 2, 3, 100, 1000)
            total = choices.one_of(size, size, 100, 2000, 10_000, 2**28, 2**63, 2**64 - 1)
            offset = choices.one_of(0, 0, 0, 1, 100, 1000, 2**63)
            return buffer_header(choices.number(4), total, offset, size) + bytes(size)
        known = _CHECKS.get(kind)
        if known is None:
            payload = msgpack.packb([kind, *(anything(choices) for _ in range(3))])
        else:
            fields = [fitting(choices, check) for _, check in known[1]]
            if kind == Kind.HELLO or kind == Kind.WELCOME:
                fields[0] = 1
            if luck == 14 and fields:
                fields[choices.number(len(fields))] = anything(choices)
            payload = msgpack.packb([kind, *fields])
    if luck == 3 and payload:
        at = choices.number(len(payload))
        payload = payload[:at] + choices.take(1) + payload[at + 1 :]
    length = len(payload) if luck != 4 else choices.number(2**32)
    return length.to_bytes(4, "big") + payload


def data(choices: Choices, channel: int | None = None, first: int | None = None) -> bytes:
    """A DATA frame."""
    values = [msgpack.packb(anything(choices, 3)) for _ in range(choices.number(6))]
    if choices.number(8) == 0:
        values.append(choices.take(choices.number(30)))
    if first is not None:
        values.append(msgpack.packb(bytes(choices.one_of(0, 10, 300, 2000))))
    right = first is not None or choices.number(8)
    count = len(values) if right else choices.one_of(0, 1, 100, 2**32 - 1)
    body = array_header(count) + b"".join(values)
    if first is None:
        first = choices.one_of(0, 1, 2, 3, 5, 8, 2**62, 2**63 - 1)
    if channel is None:
        channel = choices.number(4)
    if choices.number(10) == 0:
        payload = msgpack.packb([7, channel, first, 1.5, [1] * len(values)])
        return len(payload).to_bytes(4, "big") + cast(bytes, payload)
    behind = headers_field(choices, count) if choices.number(4) == 1 else b""
    return data_header(channel, first, 1.5, len(body), len(behind)) + body + behind


def headers_field(choices: Choices, count: int) -> bytes:
    """The headers of a batch, right or not."""
    luck = choices.number(8)
    if luck == 0:
        return choices.take(1 + choices.number(30))
    if luck == 1:
        return cast(bytes, msgpack.packb(anything(choices)))
    of_each: dict[Any, Any] = {}
    for _ in range(choices.number(4)):
        number = choices.number(max(count, 1) + (luck == 2))
        of_each[number] = {choices.one_of(*WORDS): choices.one_of(*WORDS, b"", b"\xff")}
        if luck == 3:
            of_each[number] = anything(choices)
    return cast(bytes, msgpack.packb(of_each))


def read(reader: FrameReader, choices: Choices, stream: bytes, act: Callable[[Event], None]) -> int:
    """Hand bytes to a reader as a transport does, in any pieces; returns how many."""
    given = 0
    while given < len(stream):
        room = reader.get_buffer()
        assert len(room)
        size = min(len(room), len(stream) - given, 1 + choices.number(256))
        room[:size] = stream[given : given + size]
        del room
        given += size
        for event in reader.received(size):
            if isinstance(event, ProtocolError):
                raise event
            act(event)
    return given


def _sayable(error: ProtocolError) -> None:
    """Whether it can be said in a GOODBYE that the other end takes."""
    message = Goodbye(error.code[:32], str(error)[:1000])
    assert parse(msgpack.unpackb(encode(message)[4:])) is not None
    assert len(encode(message)) <= 4100
    assert "\n" not in str(error)


def hostile(choices: Choices) -> bool:
    """Whether the next frame is not to be one that an honest peer could send now."""
    return choices.number(16) == 1


# --- the targets -------------------------------------------------------------------------------


class _Places(Nowhere):
    """A sink that has a place for most pieces."""

    def place(self, channel: int, total: int, offset: int, size: int) -> memoryview | None:
        return None if offset % 3 == 1 else memoryview(bytearray(size))


def frames(raw: bytes) -> None:
    """FrameReader: any bytes become events and at most one error, in memory that they pay for."""
    choices = Choices(raw)
    sink = choices.one_of(None, _Places())
    reader = FrameReader(bytearray(choices.one_of(41, 64, 300, 4096)), sink)
    reader.max_payload = choices.one_of(200, 4096, 2**20, 2**31)
    kinds = tuple(int(kind) for kind in Kind)
    fed = 0
    try:
        while choices:
            stream = frame(choices, kinds)
            fed += read(reader, choices, stream, lambda event: None)
            target = 0 if reader._target is None else len(reader._target)
            assert target <= 2 * fed + BUFFER_PIECE
            assert len(reader._rest) <= fed
    except ProtocolError as error:
        _sayable(error)
        if reader.partial or reader.feed(encode(Ping(1))):
            raise AssertionError("it goes on after the error") from error


def handshakes(raw: bytes) -> None:
    """Acceptor and Dialler: whatever comes first is welcomed or refused."""
    choices = Choices(raw)
    me = Identity("peer", "me", tcp("127.0.0.1", 1), {"name": "x"})
    machine: Acceptor | Dialler
    if choices.number(2):
        machine = Acceptor(me, choices.one_of(("peer",), ("peer", "client")))
        kinds = (Kind.HELLO, Kind.AUTH)
    else:
        machine = Dialler(me, choices.one_of("peer", "coordinator"), choices.one_of("", "p"))
        kinds = (Kind.WELCOME, Kind.GOODBYE)

    def act(event: Event) -> None:
        answer, other = machine.receive(event)
        if answer is not None:
            encode(answer)
        assert other is not None
        assert other.peer_id.isprintable()
        assert other.host.isprintable()
        registry = Registry()
        registry.connect(other.peer_id, other.ways, other.info, 0.0)
        for row in registry.peers():
            msgpack.packb(row)

    try:
        read(FrameReader(bytearray(4096)), choices, frame(choices, kinds), act)
    except ProtocolError as error:
        _sayable(error)
    except (Refused, AuthError):
        pass


def publisher(raw: bytes) -> None:
    """Serving and two publications: no subscriber breaks them, or makes them hold more."""
    choices = Choices(raw)
    now = 0.0
    buffer = 3000
    publications = {
        number: Publication(
            number,
            "t",
            block=number == 2,
            buffer=buffer,
            history=number * 3,
            join_timeout=5.0,
            resume_timeout=30.0,
            now=now,
        )
        for number in (1, 2)
    }
    serving = Serving("them", "them", publications.get, lambda: None, max_channels=5)
    reader = FrameReader(bytearray(4096))
    reader.max_payload = 65_536
    kinds = (Kind.SUBSCRIBE, Kind.SUBSCRIBE, Kind.UNSUBSCRIBE, Kind.ACK, Kind.ACK, Kind.PONG)
    largest = 0
    deaf = not choices.number(3)  # it reads nothing

    def ask() -> bytes:
        """What an honest subscriber may send now."""
        channels = list(serving._channels.values())
        if not channels or choices.number(4) == 0:
            number = 1 + choices.number(2)
            resume = choices.number(publications[number].log.next_seq + 1)
            return encode(
                Subscribe(
                    serving._highest + 1,
                    number,
                    choices.number(3),
                    choices.one_of(None, None, resume),
                    choices.one_of(0, None, 2),
                    choices.one_of(0, 1, 500, 4000, 2**40),
                    bool(choices.number(2)),
                    bool(choices.number(2)),
                    choices.one_of(0, 1000, 2**28),
                )
            )
        channel = choices.one_of(*channels)
        cursor = channel.cursor
        what = choices.number(8)
        if what == 0:
            return encode(Unsubscribe(channel.number))
        if what == 1:
            return encode(Pong(choices.number(serving._token + 1)))
        assert cursor is not None
        consumed = cursor.acked + choices.number(cursor.sent_until - cursor.acked + 1)
        return encode(Ack(channel.number, consumed, cursor.sent + choices.one_of(0, 500, 9000)))

    try:
        while choices:
            step = choices.number(8)
            publication = publications[1 + choices.number(2)]
            if step == 0:
                size = choices.number(1500)
                large = tuple(bytes(choices.number(2000)) for _ in range(choices.number(3)))
                largest = max(largest, BATCH_COST + 5 + size + 3 * 2000)
                if publication.room(BATCH_COST + 5 + size) and not publication.ended:
                    body = array_header(1) + bytes(size)
                    publication.append(1, body, whole(*large), now)
            elif step == 1 and not deaf:
                for _ in range(choices.number(4)):
                    serving.pump(choices.one_of(0, 1, 4096, 10**6))
            elif step == 2:
                now += choices.one_of(0.1, 6.0, 40.0)
                publication.expire(now)
                publication.when_received(lambda: None, observers=True)
            elif step == 3:
                key = SubKey("them", choices.number(3))
                publication.expect(key, before=bool(choices.number(2)), observer=False, now=now)
            elif hostile(choices):
                read(reader, choices, frame(choices, kinds), serving.receive)
            else:
                read(reader, choices, ask(), serving.receive)
            assert serving.channels <= 5
            assert len(serving._control) <= 2 * 5 + 2
            for publication in publications.values():
                assert publication.log.size <= buffer + largest
            if choices.number(16) == 0:
                _acknowledge_too_much(choices, serving)
    except ProtocolError:
        serving.closed()
    else:
        serving.broken(now)
    for publication in publications.values():
        publication.expire(now + 100)
        assert not list(publication.cursors())
        held = publication.log.holds.total()
        assert held == (0 if publication.settled else 1)
        publication.end("closed", "")
        assert publication.log.size == 0


def _acknowledge_too_much(choices: Choices, serving: Serving) -> None:
    """An ACK above what was sent is refused, and changes nothing."""
    channels = list(serving._channels.values())
    if not channels:
        return
    channel = choices.one_of(*channels)
    cursor = channel.cursor
    assert cursor is not None
    before = cursor.acked, cursor.limit, cursor.sent_until
    above = cursor.sent_until + 1 + choices.one_of(0, 1, choices.number(2**62))
    try:
        serving.receive(Ack(channel.number, above, 2**40))
    except ProtocolError:
        assert (cursor.acked, cursor.limit, cursor.sent_until) == before
    else:
        raise AssertionError(f"an ACK of {above} where {cursor.sent_until} was sent")


def subscriber(raw: bytes) -> None:
    """Receiving, streams and an inbox: no publisher makes them hold more than window and message,
    and what is counted adds up."""
    choices = Choices(raw)
    window, max_message = 4000, 20_000
    latest = bool(choices.number(2))
    inbox = Inbox(1, "t", latest=latest, window=window)
    receiving = Receiving(lambda: None, lambda stream: None)
    inbox.window.on_consumed = lambda credit, stage: credit.acknowledge()
    streams = [Stream(inbox, StreamKey("p", n), "t", f"p#{n}", max_message) for n in range(2)]
    for stream in streams:
        inbox.add(stream)
        receiving.subscribe(stream)
    reader = FrameReader(bytearray(4096), receiving)
    reader.max_payload = max_message + 1024
    kinds = (Kind.SUBSCRIBED, Kind.DATA, Kind.DATA, Kind.DATA, Kind.BUFFER, Kind.BUFFER, Kind.END)
    decoder = MsgpackDecoder()
    lazy = not choices.number(3)  # nobody takes anything
    delivered = dict.fromkeys(streams, 0)
    start: dict[Stream, int] = {}
    fed = 0

    def take() -> bool:
        entry = inbox.take()
        if entry is None:
            return False
        delivered[entry.stream] += entry.end - entry.first
        try:
            decoder.decode(entry.body, entry.buffers)
        except DecodeError:
            for value in _each(decoder, entry.body, entry.buffers):
                assert not isinstance(value, Exception) or isinstance(value, DecodeError)
        return True

    def bring() -> bytes:
        """What an honest publisher may send now, but for the window."""
        stream = choices.one_of(*(receiving.streams or streams))
        channel = max(stream.channel, 0)
        if not stream.open:
            due = stream.expected or choices.number(3)
            return encode(Subscribed(channel, "t", "msgpack", due, due + choices.number(2), 1000))
        buffer = stream._assembling
        if buffer is not None:
            size = min(buffer.total - len(buffer), choices.one_of(1, 1000, 10_000))
            return buffer_header(channel, buffer.total, len(buffer), size) + bytes(size)
        what = choices.number(16)
        if what == 0:
            return encode(End(channel, (stream.expected or 0) + choices.number(3), "closed", ""))
        if what <= 3:
            total = choices.one_of(1, 1000, 3000, 19_000)
            size = min(total, choices.one_of(1, 700, 20_000))
            return buffer_header(channel, total, 0, size) + bytes(size)
        first = max(0, (stream.expected or 0) + choices.one_of(0, 0, 0, 0, 1, -1, -3))
        return data(choices, channel, first)

    def act(event: Event) -> None:
        receiving.receive(event)
        for stream in streams:
            if stream.expected is not None and stream not in start:
                start[stream] = stream.credit.consumed_until

    try:
        while choices:
            if not lazy and choices.number(4) == 0:
                for _ in range(choices.number(4)):
                    take()
                receiving.pump(10**6)
            elif hostile(choices):
                fed += read(reader, choices, frame(choices, kinds), act)
            else:
                fed += read(reader, choices, bring(), act)
            entries = (*inbox._entries, *(slot.entry for slot in inbox._newest))
            sizes = [entry.size for entry in entries]
            assert sum(sizes) <= window + sum(sorted(sizes)[-2:])  # one may pass, of each stream
            for stream in streams:
                held = sum(map(len, stream._buffers)) + len(stream._assembling or b"")
                assert held <= max_message
                assert held <= 2 * fed + 2048
            assert len(inbox.streams) <= 2
    except ProtocolError as error:
        _sayable(error)
    for stream in receiving.broken():
        assert not stream.open
    while take():
        pass
    due = sum((stream.expected or 0) - first for stream, first in start.items())
    assert sum(delivered.values()) + inbox.lost == due, "not delivered, and not counted as lost"


def _each(decoder: Decoder, body: Any, buffers: Any) -> list[Any]:
    try:
        return decoder.decode_each(body, buffers)
    except DecodeError:
        return []


class _Endpoint:
    """Who has something to say now and then, and does not like all that it hears."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.opened_by: list[Other] = []
        self.ended: list[Exception | None] = []
        self.larger = 0

    def opened(self, link: Link, other: Other) -> _Endpoint:
        self.opened_by.append(other)
        return self

    def receive(self, event: Event) -> None:
        assert not self.ended, "a frame behind the end"
        if self.choices.number(8) == 0:
            raise ProtocolError("it is not liked here")

    def pump(self, budget: int) -> list[bytes]:
        if not self.larger:
            return []
        self.larger -= 1
        return [data_header(0, 0, 1.5, 30_005), array_header(30_000) + bytes(30_000)]

    def closed(self, link: Link, error: Exception | None) -> None:
        self.ended.append(error)


def link(raw: bytes) -> None:
    """A link on a transport: whatever the other end, the socket and the clock do, it writes whole
    frames and none behind its GOODBYE, answers each PING that it can, tells its endpoint of the end
    once, ends a silent connection in time, and leaves no timer."""
    choices = Choices(raw)
    clock = Clock()
    endpoint = _Endpoint(choices)
    settings = Settings()
    identity = Identity("peer", "me", tcp("127.0.0.1", 1))
    made = Link(
        cast(Any, clock),
        Acceptor(identity, ("peer",)),
        cast(Any, endpoint),
        settings,
        bytearray(choices.one_of(41, 300, 4096)),
    )
    transport = Transport(clock)
    transport.link = made
    made.connection_made(cast(Any, transport))
    kinds = (Kind.PING, Kind.PING, Kind.PONG, Kind.GOODBYE, Kind.ACK)
    silent_since = 0.0

    def hear(stream: bytes) -> None:
        nonlocal silent_since
        given = 0
        while given < len(stream) and transport.reading:
            room = made.reader.get_buffer()
            size = min(len(room), len(stream) - given, 1 + choices.number(256))
            room[:size] = stream[given : given + size]
            given += size
            silent_since = clock.now
            made.buffer_updated(size)

    if choices.number(8):
        hear(encode(hello("peer", "peer", "them")))
    while choices and not transport.lost:
        step = choices.number(16)
        if step <= 3:
            asked = [choices.number(100) for _ in range(choices.one_of(1, 1, 2, 30))]
            before = len(transport.written)
            able = endpoint.opened_by and not (made.closing or made.paused or made.reader.partial)
            hear(b"".join(encode(Ping(token)) for token in asked))
            if able and not made.closing and not made.paused and transport.reading:
                highest = encode(Pong(max(asked)))
                assert highest in transport.written[before:], "a PING without an answer"
        elif step == 4:
            hear(b"".join(encode(Ping(7)) for _ in range(choices.one_of(1, MAX_PINGS + 300))))
        elif step == 5:
            hear(frame(choices, kinds))
        elif step == 6:
            hear(encode(Ack(0, 0, 0)) * choices.number(5))
        elif step == 7:
            transport.stuck = True
        elif step == 8:
            transport.unstick()
        elif step == 9:
            endpoint.larger = choices.number(40)
            made.flush()
        elif step <= 12:
            clock.run(clock.now + choices.one_of(0.1, 1.0, 3.0, 7.0))
        elif step == 13 and not transport.closing and endpoint.opened_by:
            made.listen(bool(choices.number(2)))
        elif step == 14:
            what = choices.number(8)
            if what <= 2:
                made.goodbye()
            elif what == 3:
                made.fail(ProtocolError("enough"))
            elif what == 4:
                made.abort()
            elif what == 5:
                made.send(Ping(3))
            else:
                hear(encode(Goodbye("closing", "")))
        elif step == 15 and choices.number(8) == 0:
            transport.lose(choices.one_of(None, OSError("reset")))
        tick = made._heartbeat.tick_every
        if made._reading or made.paused:
            quiet = clock.now - silent_since
            assert made.closing or transport.closing or quiet <= settings.ping_timeout + 2 * tick
        else:
            silent_since = clock.now
    assert len(endpoint.ended) <= 1
    assert len(endpoint.opened_by) <= 1
    if not transport.lost:
        made.goodbye()
        clock.run(clock.now + GOODBYE_GRACE)
        assert transport.lost
    clock.run(clock.now)
    assert len(endpoint.ended) == 1, "it did not say once that it is over"
    assert not clock.set(), "a timer is left"
    reader = FrameReader(bytearray(4096))
    reader.max_payload = 2**20
    said = list(reader.feed(bytes(transport.written)))
    assert not any(isinstance(event, ProtocolError) for event in said)
    assert not reader.partial
    assert not any(isinstance(event, Goodbye) for event in said[:-1]), "words behind GOODBYE"


class _Loop:
    """As much of a loop as a coordinator needs to serve connections."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.soon.append((call, args))

    def call_at(self, at: float, call: Callable[..., None]) -> object:
        return object()

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for call, args in soon:
            call(*args)


class _Link:
    """As much of a link as a connection of a coordinator needs."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self.sockname = self.peername = None  # from nowhere
        self.kind = "direct"
        self.reader = FrameReader(bytearray(4096))
        self.paused = False
        self.closing = False
        self.cut = False
        self.listening = True
        self.written = 0

    def hear(self, event: Event) -> None:
        if not self.closing:
            self.connection.receive(event)

    def listen(self, on: bool) -> None:
        self.listening = on

    def send(self, message: Control) -> None:
        self.written += len(encode(message))

    def flush(self) -> None:
        while not self.paused and not self.closing:
            chunks = self.connection.pump(10**6)
            if not chunks:
                return
            self.written += sum(map(len, chunks))

    def fail(self, error: ProtocolError) -> None:
        self.cut = self.closing = True
        self.connection.closed(cast(Link, self), error)

    def goodbye(self, code: str = "", reason: str = "") -> None:
        self.closing = True
        self.connection.closed(cast(Link, self), None)


def request(choices: Choices) -> bytes:
    """What an honest peer may ask of a coordinator at any time."""
    what = choices.number(6)
    if what == 0:
        return encode(Unregister(choices.number(5)))
    if what == 1:
        return encode(Query(choices.number(9), choices.one_of("topics", "peers")))
    flags = bool(choices.number(2)), bool(choices.number(2))
    topic = choices.one_of("t", "a/b", "a/c", "x/y/z")
    if choices.number(2):
        return encode(Register(choices.number(5), "pub", topic, *flags))
    pattern = choices.one_of(topic, "**", "a/*", "*/b", "**/z")
    return encode(Register(choices.number(5), "sub", pattern, *flags))


def coordinator(raw: bytes) -> None:
    """A coordinator's connections and registry: no peer breaks it for the others."""
    choices = Choices(raw)
    loop = _Loop()
    server = Coordinator(
        cast(Any, loop), settings=Settings(), registry=Registry(max_registrations=6), settle=0.0
    )
    links: list[_Link] = []
    kinds = (Kind.REGISTER, Kind.REGISTER, Kind.REGISTER, Kind.UNREGISTER, Kind.QUERY)
    while choices:
        step = choices.number(8)
        if (step == 0 and len(links) < 5) or not links:
            connection = _Connection(server)
            link = _Link(connection)
            role, name = choices.one_of("peer", "peer", "client"), choices.one_of("p", "q", "r")
            connection.opened(cast(Link, link), Other(role, name, tcp("h", 1), {}, 0.0))
            links.append(link)
            continue
        link = choices.one_of(*links)
        if step == 1:
            link.paused = not link.paused
            link.flush()
        elif step == 2:
            loop.now += choices.one_of(0.1, 6.0)
            server._expire()
        elif step == 3:
            loop.turn()
        elif step == 4:
            link.closing = True
            link.connection.closed(cast(Link, link), choices.one_of(None, OSError()))
        elif link.listening:
            try:
                stream = frame(choices, kinds) if hostile(choices) else request(choices)
                read(link.reader, choices, stream, link.hear)
            except ProtocolError as error:
                _sayable(error)
                link.fail(error)
        links = [link for link in links if not link.closing]
        for link in links:
            assert len(link.connection._answers) <= 16
            assert len(link.connection._requests) <= 200
    for _ in range(300):
        for link in links:
            link.paused = False
            link.flush()
        loop.turn()
    links = [link for link in links if not link.closing]
    assert all(not link.connection._requests and link.listening for link in links)
    for link in links:
        link.goodbye()
    loop.now += 10.0
    server._expire()
    assert not list(server.registry.peers())
    assert not list(server.registry.topics())


def directory(raw: bytes) -> None:
    """What a peer does with MATCH and EXPECT."""
    choices = Choices(raw)
    known = Directory()
    reader = FrameReader(bytearray(4096))
    reader.max_payload = 2**20

    def act(event: Event) -> None:
        if isinstance(event, Match):
            source = choices.number(2)
            for key in known.match(source, event):
                assert not known.listed(event.sub_id, key)
            if choices.number(4) == 0:
                known.restart(source)
                known.drop(event.sub_id)

    try:
        while choices:
            read(reader, choices, frame(choices, (Kind.MATCH, Kind.EXPECT)), act)
    except ProtocolError:
        pass


class Known:
    """An own type, for what comes under its name."""


def _known(wire: Any) -> Known:
    if type(wire) is not list:
        raise KeyError("a stranger's bytes run into it")
    return Known()


def _loads(data: bytes, buffers: Any = ()) -> Any:
    if data[:1] == b"\1":
        raise RecursionError(data)
    return data, [bytes(buffer) for buffer in buffers]


OWN_CODECS = {
    "beside": Codec("beside", bytes, _loads, beside_msgpack=True, buffers=True),
    "whole": Codec("whole", bytes, _loads),
}


def _ext(code: int, payload: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, payload))
    return packed


def values(raw: bytes) -> None:
    """Decoder: of any body and buffers come values or DecodeError."""
    register(Known, "fuzz", lambda known: [], _known)
    choices = Choices(raw)
    codec = choices.one_of("msgpack", "msgpack", "raw", "beside", "whole")
    decoder = decoder_of(codec, OWN_CODECS)
    buffers = tuple(arrived(bytes(choices.number(100))) for _ in range(choices.number(3)))
    parts = [msgpack.packb(anything(choices)) for _ in range(choices.number(5))]
    for _ in range(choices.number(3)):
        depth = choices.one_of(1, 30, 40, 600, 1100)
        array = b"\x91" * depth + b"\xc0"
        as_tuple = b"\xc9" + len(array).to_bytes(4, "big") + b"\x01" + array
        parts.append(choices.one_of(array, as_tuple))
    for _ in range(choices.number(3)):
        name = choices.one_of(b"\4fuzz", b"\4fuzz", b"\5fuzz", b"\4fuz?", b"\0", b"")
        parts.append(
            _ext(OWN, name + choices.one_of(msgpack.packb(anything(choices)), *parts[-1:]))
        )
        head = choices.one_of(0, 1, 2, 2**31, 2**31 + 1, 2**32 - 1).to_bytes(4, "big")
        indices = b"".join(choices.number(3).to_bytes(4, "big") for _ in range(choices.number(4)))
        parts.append(_ext(CODED, head + indices + choices.take(choices.number(20))))
    body = array_header(len(parts)) + b"".join(parts) + choices.rest()
    try:
        decoder.decode(body, buffers)
    except DecodeError:
        for value in _each(decoder, body, buffers):
            assert not isinstance(value, Exception) or isinstance(value, DecodeError)


def headers(raw: bytes) -> None:
    """BatchHeaders: of any bytes come names and texts, or a DecodeError that names the sender."""
    choices = Choices(raw)
    count = choices.one_of(1, 2, 5)
    found = BatchHeaders(headers_field(choices, count) + choices.rest(), 7, "t", "them#0")
    for seq in range(7, 7 + count):
        try:
            of_one = found.of(seq)
        except DecodeError as error:
            if error.publisher != "them#0" or "them#0" not in str(error):
                raise AssertionError("it does not say whose fault it is") from error
            continue
        assert {*map(type, of_one)} <= {str}
        assert {*map(type, of_one.values())} <= {str, bytes}


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        frames,
        handshakes,
        publisher,
        subscriber,
        link,
        coordinator,
        directory,
        values,
        headers,
    )
}
