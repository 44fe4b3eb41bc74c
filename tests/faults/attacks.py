"""What a hostile or broken peer does, with plain sockets: each attack is one function.

They know the frames, and nothing of links and runtimes. `python -m tests.faults.attacks NAME
HOST:PORT …` repeats one from a process of its own until it is killed.
"""

from __future__ import annotations

import random
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgpack

from pubsub.config import parse_address
from pubsub.wire.frames import Event, FrameReader, array_header, buffer_header, data_header
from pubsub.wire.messages import (
    Ack,
    Auth,
    Control,
    Gap,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Query,
    Register,
    Subscribe,
    Subscribed,
    Welcome,
    encode,
)
from tests.wire.said import hello, welcome
from tests.wire.sinks import Nowhere

__all__ = [
    "ON_ANYONE",
    "ON_COORDINATOR",
    "ON_PUBLISHER",
    "ON_SUBSCRIBER",
    "Attack",
    "HostilePublisher",
    "Stranger",
    "batch",
    "headed",
]

LONG = 30.0
UNDER = ""
"""What the topics begin with that come in great numbers: whoever may not have them is not served
enough to reach any limit."""
DEEP = b"\x91" * 10_000
"""msgpack: an array in an array in an array …"""


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def packed(*fields: object) -> bytes:
    return framed(msgpack.packb(fields))


def subscribe(channel: int, stream_id: int, resume: int | None = None) -> Subscribe:
    return Subscribe(channel, stream_id, 1, resume, 0, 1, False, False, 2**28)


def register(id_: int, role: str, topic: str) -> Register:
    return Register(id_, role, topic, False, False)


def batch(channel: int, first: int, *values: bytes, count: int | None = None) -> bytes:
    """A DATA frame of values that are msgpack already, or pretend to be."""
    body = array_header(len(values) if count is None else count) + b"".join(values)
    return data_header(channel, first, 0.0, len(body)) + body


def headed(channel: int, first: int, value: bytes, headers: Any) -> bytes:
    """A DATA frame of one value, and of what is in the place of headers."""
    body, behind = array_header(1) + value, bytes(msgpack.packb(headers))
    return data_header(channel, first, 0.0, len(body), len(behind)) + body + behind


def piece(channel: int, total: int, offset: int, payload: bytes) -> bytes:
    return buffer_header(channel, total, offset, len(payload)) + payload


class Stranger(Nowhere):
    """One connection, and what is said on it; DATA and BUFFER are no events, they go nowhere.

    Parameters:
        address: ``host:port`` to dial, or a socket that was accepted.
        deaf: reads nothing, and has as little room for what comes as the system allows.
    """

    def __init__(self, address: str | socket.socket, *, deaf: bool = False) -> None:
        if isinstance(address, str):
            self.socket = socket.socket()
            if deaf:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.socket.settimeout(LONG)
            self.socket.connect(tuple(parse_address(address)))
        else:
            self.socket = address
        self.socket.settimeout(LONG)
        self.reader = FrameReader(bytearray(256 * 1024), self)
        self.reader.max_payload = 2**31
        self.goodbye: Goodbye | None = None
        self._events: Iterator[Event] = iter(())

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes | Control) -> bool:
        """Send; False where the other end has cut us off."""
        data = b"".join(f if isinstance(f, bytes) else encode(f) for f in frames)
        try:
            self.socket.sendall(data)
        except ConnectionError:
            return False
        return True

    def next(self) -> Event | None:
        """The next frame; None at the end of the connection."""
        while True:
            event = next(self._events, None)
            if event is not None:
                if isinstance(event, Goodbye):
                    self.goodbye = event
                return event
            try:
                size = self.socket.recv_into(self.reader.get_buffer())
            except ConnectionError:
                return None
            if not size:
                return None
            self._events = iter(self.reader.received(size))

    def wait_for(self, kind: type[Event]) -> Event:
        while True:
            event = self.next()
            if event is None:
                raise ConnectionError(f"the connection ended before a {kind.__name__} came")
            if isinstance(event, kind):
                return event

    def until_cut(self) -> Goodbye | None:
        """Read until the other end has ended the connection; its GOODBYE, where it got through."""
        while self.next() is not None:
            pass
        return self.goodbye

    def new_id(self) -> str:
        """One that nobody has, and that it may have."""
        return secrets.token_hex(8)

    def hello(self, wants: str, host: str = "", port: int = 0, role: str = "peer") -> str:
        """Shake hands as an honest peer does; returns our identity."""
        identity = self.new_id()
        self.send(hello(role, wants, identity, "", host, port, {"name": "stranger"}))
        self.wait_for(Welcome)
        return identity

    def subscribe(self, channel: int, stream_id: int, limit: int = 2**40, sub_id: int = 1) -> None:
        self.send(Subscribe(channel, stream_id, sub_id, None, 0, limit, False, False, 2**28))


class Target(NamedTuple):
    """Whom to attack."""

    address: str
    role: str
    stream_id: int = 0


class Attack(NamedTuple):
    """An attack, and what the victim's log has to say of it."""

    name: str
    run: Callable[[Target], Goodbye | None]
    reason: str

    def __str__(self) -> str:
        return self.name


Run = Callable[[Target], "Goodbye | None"]
ON_ANYONE: list[Attack] = []
"""On any process that accepts connections, by one who has not said who it is."""
ON_PUBLISHER: list[Attack] = []
"""On a publishing peer, by one that it takes for a subscribing peer."""
ON_COORDINATOR: list[Attack] = []
"""On a coordinator, by one that it takes for a peer."""


def attack(attacks: list[Attack], reason: str) -> Callable[[Run], Run]:
    def listed(run: Run) -> Run:
        attacks.append(Attack(run.__name__, run, reason))
        return run

    return listed


def saying(attacks: list[Attack], name: str, reason: str, *frames: bytes | Control) -> None:
    """An attack of few words. On a publisher, channel 0 is open by then."""

    def run(target: Target) -> Goodbye | None:
        with Stranger(target.address) as stranger:
            if attacks is not ON_ANYONE:
                stranger.hello(target.role)
                if attacks is ON_PUBLISHER:
                    stranger.subscribe(0, target.stream_id)
                    stranger.wait_for(Subscribed)
            stranger.send(*frames)
            return stranger.until_cut()

    attacks.append(Attack(name, run, reason))


# --- before a word -----------------------------------------------------------------------------


@attack(ON_ANYONE, "no handshake within")
def slow_hello(target: Target) -> Goodbye | None:
    """Slowloris: a HELLO that comes byte by byte and never ends."""
    said = encode(hello("peer", target.role, "slow", info={"x": "y" * 2000}))
    with Stranger(target.address) as stranger:
        for byte in said:
            if not stranger.send(bytes([byte])):
                break
            time.sleep(0.05)
        return stranger.until_cut()


saying(ON_ANYONE, "silence", "no handshake within")
saying(ON_ANYONE, "http", "another protocol", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
saying(
    ON_ANYONE,
    "tls",
    "it speaks TLS where plain belongs",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
)
saying(ON_ANYONE, "noise", "over the 4,096 allowed", random.Random(1).randbytes(5000))
saying(ON_ANYONE, "four_gigabytes", "over the 4,096 allowed", b"\xff\xff\xff\xff\x95\x07")
saying(ON_ANYONE, "deep_hello", "not msgpack", framed(b"\x9c\x01\x02" + DEEP[:3000]))
saying(ON_ANYONE, "ping_first", "a PING where HELLO belongs", Ping(1))
saying(ON_ANYONE, "auth", "AUTH where HELLO belongs", Auth("peer", "x", b"", b""))
saying(ON_ANYONE, "version", "speaks version 99", packed(1, 99))
saying(
    ON_ANYONE,
    "forged_lines",
    "malformed HELLO",
    packed(1, 2, "peer", "peer", "a\nb"),
)


# --- on a publisher ----------------------------------------------------------------------------

saying(ON_PUBLISHER, "acknowledges_what_was_never_sent", "an ACK of", Ack(0, 2**60, 2**50))
saying(ON_PUBLISHER, "acknowledges_another_channel", "never opened", Ack(7, 0, 2**50))
saying(ON_PUBLISHER, "confirms_what_was_never_asked", "a PONG for PING", Pong(2**40))
saying(ON_PUBLISHER, "a_channel_twice", "was used before", subscribe(0, 1))
saying(
    ON_PUBLISHER,
    "resumes_the_future",
    "a resume at",
    subscribe(1, 1, 2**62),
)
saying(ON_PUBLISHER, "four_gigabytes_later", "over the 65,536 allowed", b"\xff\xff\xff\xff\x95\x07")
saying(ON_PUBLISHER, "deep_frame", "not msgpack", framed(b"\x92\x0b" + DEEP))
saying(
    ON_PUBLISHER, "data_to_a_publisher", "a DATA where a subscriber speaks", batch(0, 0, b"\x01")
)
saying(ON_PUBLISHER, "buffer_to_a_publisher", "where none belongs", piece(0, 100, 0, b"x"))
saying(
    ON_PUBLISHER,
    "registers_at_a_publisher",
    "a REGISTER where",
    register(1, "pub", "t"),
)
saying(ON_PUBLISHER, "unknown_kind", "unknown kind 99", packed(99))
saying(ON_PUBLISHER, "hello_again", "a HELLO where", hello("peer", "peer", "x"))


@attack(ON_PUBLISHER, "more than 1000 channels")
def very_many_channels(target: Target) -> Goodbye | None:
    """A subscription to the same stream, over and over."""
    with Stranger(target.address) as stranger:
        stranger.hello("peer")
        for channel in range(2_000):
            stranger.subscribe(channel, target.stream_id, 0, sub_id=channel)
        return stranger.until_cut()


@attack(ON_PUBLISHER, "does not read the answers")
def asks_and_never_reads(target: Target) -> Goodbye | None:
    """Subscriptions to streams that do not exist; the answers pile up at the victim."""
    with Stranger(target.address, deaf=True) as stranger:
        stranger.hello("peer")
        channel = 0
        while stranger.send(*(subscribe(channel + i, 2**31) for i in range(1_000))):
            channel += 1_000
        return stranger.until_cut()


@attack(ON_PUBLISHER, "waits for no answer")
def ping_flood(target: Target) -> Goodbye | None:
    """PING after PING, and the answers are not read."""
    many = encode(Ping(1)) * 10_000
    with Stranger(target.address, deaf=True) as stranger:
        stranger.hello(target.role)
        while stranger.send(many):
            pass
        return stranger.until_cut()


# --- on a coordinator --------------------------------------------------------------------------

ON_COORDINATOR.append(ON_PUBLISHER[-1])
saying(ON_COORDINATOR, "bad_topic", "has an empty segment", register(1, "pub", "a//b"))
saying(ON_COORDINATOR, "deep_topic", "over 64", register(1, "sub", "a/" * 400 + "a"))
saying(ON_COORDINATOR, "pattern_of_a_pub", "has a wildcard", register(1, "pub", "**"))
saying(
    ON_COORDINATOR,
    "subscribes_at_a_coordinator",
    "a SUBSCRIBE where",
    subscribe(0, 1),
)
saying(ON_COORDINATOR, "large_request", "over the 65,536 allowed", framed(bytes(65_537)))
saying(ON_COORDINATOR, "noise_later", "a frame", random.Random(2).randbytes(100_000))


@attack(ON_COORDINATOR, "Pubs and Subs that one peer may register")
def very_many_topics(target: Target) -> Goodbye | None:
    """A million registrations, or as many as are taken."""
    with Stranger(target.address) as stranger:
        stranger.hello("coordinator")
        reading = threading.Thread(target=stranger.until_cut, daemon=True)
        reading.start()
        for start in range(0, 1_000_000, 1_000):
            if not stranger.send(
                *(register(start + i, "pub", f"{UNDER}flood/{start + i}") for i in range(1_000))
            ):
                break
        reading.join()
        return stranger.goodbye


@attack(ON_COORDINATOR, "segments in all")
def very_deep_topics(target: Target) -> Goodbye | None:
    """Topics that are as deep as they may be, and have nothing in common."""
    with Stranger(target.address) as stranger:
        stranger.hello("coordinator")
        reading = threading.Thread(target=stranger.until_cut, daemon=True)
        reading.start()
        for i in range(1_000_000):
            topic = UNDER + "/".join(f"{i}.{j}" for j in range(64 - UNDER.count("/")))
            if not stranger.send(register(i, "pub", topic)):
                break
        reading.join()
        return stranger.goodbye


@attack(ON_COORDINATOR, "too many questions")
def many_questions(target: Target) -> Goodbye | None:
    with Stranger(target.address, deaf=True) as stranger:
        stranger.hello("coordinator")
        stranger.send(*(register(i, "pub", f"{UNDER}{f'flood/{i}' * 9}") for i in range(4_000)))
        while stranger.send(*(Query(1, "topics") for _ in range(1_000))):
            pass
        return stranger.until_cut()


@attack(ON_COORDINATOR, "no sign of life")
def large_answers_that_nobody_reads(target: Target) -> Goodbye | None:
    """Each of these Subs matches thousands of Pubs."""
    with Stranger(target.address, deaf=True) as stranger:
        stranger.hello("coordinator")
        stranger.send(*(register(i, "pub", f"{UNDER}flood/{i}") for i in range(4_000)))
        stranger.send(*(register(i, "sub", "**") for i in range(4_000, 4_900)))
        while stranger.send(Ping(0)):  # no more than an honest peer might: they are not the point
            time.sleep(0.05)
        return stranger.until_cut()


# --- on a subscriber ---------------------------------------------------------------------------

Publish = Callable[[Stranger, int], None]


class HostilePublisher:
    """Registers a Pub on a topic, answers SUBSCRIBE, and then does what it is told to.

    Parameters:
        coordinator: where to register.
        topic: of the Pub.
        publish: called for each subscription, with the connection and the channel.
        limit: leave alone the subscriptions with another first window.
        answer: send SUBSCRIBED before `publish` is called.
    """

    def __init__(
        self,
        coordinator: str,
        topic: str,
        publish: Publish,
        *,
        limit: int | None = None,
        answer: bool = True,
    ) -> None:
        self.topic = topic
        self.publish = publish
        self.limit = limit
        self.answer = answer
        self.connections: list[Stranger] = []
        self.goodbyes: list[Goodbye | None] = []
        """How each connection ended."""
        self.server = socket.create_server(("127.0.0.1", 0))
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        self.session = Stranger(coordinator)
        port = self.server.getsockname()[1]
        self.peer_id = self.session.hello("coordinator", "127.0.0.1", port)
        self.session.send(register(1, "pub", topic))

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with Stranger(connection) as stranger:
                self.connections.append(stranger)
                try:
                    self._serve(stranger)
                except OSError:
                    pass
                self.goodbyes.append(stranger.goodbye)

    def _serve(self, stranger: Stranger) -> None:
        stranger.wait_for(Hello)
        stranger.send(welcome("peer", self.peer_id))
        while True:
            event = stranger.next()
            if event is None:
                return
            if isinstance(event, Subscribe) and self.limit in (None, event.limit):
                if self.answer:
                    due = event.resume or 0
                    stranger.send(
                        Subscribed(event.channel, self.topic, "msgpack", due, due, 1 << 20)
                    )
                self.publish(stranger, event.channel)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.session.send(Goodbye("closing", ""))
        self.session.socket.close()
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for stranger in self.connections:
            try:
                stranger.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join()

    def __enter__(self) -> HostilePublisher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Publishing(NamedTuple):
    """An attack on a subscriber, and what its log has to say of it."""

    name: str
    publish: Publish
    reason: str
    answer: bool = True

    def __str__(self) -> str:
        return self.name


def _sending(
    name: str, reason: str, *frames: Callable[[int], bytes | Control], answer: bool = True
) -> Publishing:
    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(*(frame(channel) for frame in frames))

    return Publishing(name, publish, reason, answer)


def _beyond_the_window(stranger: Stranger, channel: int) -> None:
    first = 0
    value = b"\xc6" + (30_000).to_bytes(4, "big") + bytes(30_000)
    while stranger.send(batch(channel, first, value)):
        first += 1


def _ping_flood(stranger: Stranger, channel: int) -> None:
    many = encode(Ping(1)) * 10_000
    while stranger.send(many):
        pass


ON_SUBSCRIBER = [
    _sending("another_channel", "never opened", lambda c: batch(c + 1000, 0, b"\x01")),
    _sending(
        "data_first", "a DATA before SUBSCRIBED", lambda c: batch(c, 0, b"\x01"), answer=False
    ),
    _sending("buffer_first", "a BUFFER before", lambda c: piece(c, 9, 0, b"x"), answer=False),
    _sending(
        "subscribed_twice",
        "a second SUBSCRIBED",
        lambda c: Subscribed(c, "t", "msgpack", 0, 0, 1),
    ),
    _sending(
        "subscribed_backwards",
        "SUBSCRIBED from 5 and 3",
        lambda c: Subscribed(c, "t", "msgpack", 5, 3, 1),
        answer=False,
    ),
    _sending(
        "skips_in_silence",
        "a DATA from 5 where 1 is due",
        lambda c: batch(c, 0, b"\x01"),
        lambda c: batch(c, 5, b"\x01"),
    ),
    _sending(
        "a_gap_behind_what_is_due",
        "a GAP from 3 to 4 where 0 is due",
        lambda c: Gap(c, 3, 4, "overflow"),
    ),
    _sending("a_buffer_of_2_63", "a batch of more than", lambda c: piece(c, 2**63, 0, b"x")),
    _sending(
        "overlapping_pieces",
        "where 3 was due",
        lambda c: piece(c, 90_000, 0, b"abc"),
        lambda c: piece(c, 90_000, 1, b"abc"),
    ),
    _sending("a_buffer_from_the_middle", "begins at 5", lambda c: piece(c, 90_000, 5, b"abc")),
    _sending(
        "another_total",
        "of 80000 where 3 was due",
        lambda c: piece(c, 90_000, 0, b"abc"),
        lambda c: piece(c, 80_000, 3, b"abc"),
    ),
    _sending(
        "an_unfinished_buffer",
        "in the middle of a large buffer",
        lambda c: piece(c, 90_000, 0, b"abc"),
        lambda c: batch(c, 0, b"\x01"),
    ),
    _sending("four_gigabytes", "over the", lambda c: b"\xff\xff\xff\xff\x95\x07"),
    _sending("more_than_there_are", "announces 9999", lambda c: batch(c, 0, b"\x01", count=9999)),
    _sending("no_values", "announces 0", lambda c: batch(c, 0)),
    _sending("deep_frame", "not msgpack", lambda c: framed(b"\x92\x0b" + DEEP)),
    _sending(
        "registers_at_a_subscriber",
        "a REGISTER where",
        lambda c: register(1, "pub", "t"),
    ),
    _sending("noise", "a frame", lambda c: random.Random(3).randbytes(100_000)),
    Publishing("beyond_the_window", _beyond_the_window, "bytes on a channel that may carry"),
    Publishing("ping_flood", _ping_flood, "waits for no answer"),
]
"""On a subscribing peer, by one whose Pub matches."""


def main() -> None:
    """Repeat an attack for ever."""
    name, role, address, stream_id = sys.argv[1:5]
    attacks = {a.name: a for a in (*ON_ANYONE, *ON_PUBLISHER, *ON_COORDINATOR)}
    target = Target(address, role, int(stream_id))
    while True:
        try:
            attacks[name].run(target)
        except OSError:
            time.sleep(0.01)


if __name__ == "__main__":
    main()
