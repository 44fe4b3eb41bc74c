"""Every message of the wire protocol, field by field, with its checks.

A frame is a 4-byte big-endian length and one msgpack array ``[kind, field, …]``; this module
gives each kind a class whose fields are the array's, in that order. `parse` turns an array from
the wire into one of them and refuses, by :class:`~pubsub.errors.ProtocolError`, whatever is not
exactly as documented; fields behind the known ones are ignored, so that a later version may add
some. DATA and BUFFER carry the bulk and are laid out in :mod:`pubsub.wire.frames`. (It is long
because it is a table: nobody who looks up a message should have to look in two places.)
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, TypeAlias

import msgpack

from pubsub.config import MAX_WAYS
from pubsub.errors import ProtocolError

__all__ = [
    "GOODBYE_CODES",
    "MAX_PAYLOAD_BEFORE_WELCOME",
    "MAX_REQUEST_PAYLOAD",
    "MAX_RETURNED",
    "PROTOCOL_VERSION",
    "Ack",
    "Answer",
    "Auth",
    "Call",
    "Called",
    "Circuit",
    "Control",
    "End",
    "Expect",
    "ExpectedSub",
    "Gap",
    "Goodbye",
    "Hello",
    "Join",
    "Kind",
    "Lent",
    "Load",
    "Mapped",
    "Match",
    "MatchedPub",
    "Offer",
    "Ping",
    "Pong",
    "Query",
    "Refused",
    "Register",
    "RelayRow",
    "Returned",
    "Revoked",
    "Subscribe",
    "Subscribed",
    "Ticket",
    "Unmap",
    "Unregister",
    "Unsubscribe",
    "WayRow",
    "Welcome",
    "encode",
    "parse",
]

PROTOCOL_VERSION = 2
MAX_PAYLOAD_BEFORE_WELCOME = 4096
"""Bytes that a frame may have before the other end is known."""
MAX_REQUEST_PAYLOAD = 64 * 1024
"""Bytes that a frame to a publisher or to a coordinator may have: all of them are small."""

MAX_RETURNED = 1024
"""Loans that one RETURNED may name."""

GOODBYE_CODES = {
    "closing": "an orderly end",
    "protocol": "a frame that breaks this page",
    "version": "the other protocol version is not spoken here",
    "limit": "over a limit above, or over the window of a channel",
    "role": "not what was wanted, or not served here",
    "identity": "another peer than the one that was asked for",
    "auth": "who it says that it is, it has not shown",
    "rekey": "the key or certificate that the connection stands on counts no more; dial again",
    "busy": "too many connections without a handshake, or the same peer has connected anew",
    "timeout": "no handshake in time",
    "internal": "a defect of the side that says it",
}
"""Every code of a GOODBYE and what it means, in the words of docs/protocol.md (“this page”)."""

U32 = 2**32 - 1
U64 = 2**64 - 1


class Kind(IntEnum):
    """First element of every frame."""

    HELLO = 1
    AUTH = 2
    WELCOME = 3
    SUBSCRIBE = 4
    SUBSCRIBED = 5
    UNSUBSCRIBE = 6
    DATA = 7
    BUFFER = 8
    ACK = 9
    END = 10
    PING = 11
    PONG = 12
    GOODBYE = 13
    GAP = 14
    REGISTER = 16
    UNREGISTER = 17
    MATCH = 18
    EXPECT = 19
    QUERY = 20
    ANSWER = 21
    REFUSED = 22
    REVOKED = 23
    CALL = 24
    CALLED = 25
    CIRCUIT = 26
    TICKET = 27
    JOIN = 28
    LOAD = 29
    OFFER = 30
    MAPPED = 31
    LENT = 32
    RETURNED = 33
    UNMAP = 34


# --- checks: each returns the value to keep, or raises ValueError with what is wrong ----

Check: TypeAlias = Callable[[Any], Any]


def _uint(limit: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"{_short(value)} is not an integer from 0 to {limit}")
        return value

    return check


def _text(limit: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str:
            raise ValueError(f"{_short(value)} is not a string")
        if len(value) > limit:
            raise ValueError(f"a string of {len(value)} characters, over {limit}")
        return value

    return check


def _shown(limit: int) -> Check:
    """A text that gets into logs and onto terminals: no control characters, no line breaks."""
    text = _text(limit)

    def check(value: Any) -> str:
        checked: str = text(value)
        return checked if checked.isprintable() else repr(checked)[1:-1][:limit]

    return check


def _identity(value: Any) -> str:
    checked: str = _text(64)(value)
    if not checked.isprintable():
        raise ValueError(f"{_short(value)} has control characters")
    return checked


def _bytes(limit: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes:
            raise ValueError(f"{_short(value)} is not binary")
        if len(value) > limit:
            raise ValueError(f"{len(value)} bytes, over {limit}")
        return value

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{_short(value)} is neither true nor false")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e9:
        raise ValueError(f"{_short(value)} is not a number of seconds")
    return float(value)


def _or_nil(check: Check) -> Check:
    def optional(value: Any) -> Any:
        return None if value is None else check(value)

    return optional


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise ValueError(f"{_short(value)} is none of {', '.join(allowed)}")
        return value

    return check


def _table(value: Any) -> dict[str, Any]:
    if type(value) is not dict or any(type(key) is not str for key in value):
        raise ValueError(f"{_short(value)} is not a map with string keys")
    return value


def _rows(make: Callable[[Any], Any]) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ValueError(f"{_short(value)} is not an array")
        return tuple(make(row) for row in value)

    return check


def _loans(value: Any) -> tuple[int, ...]:
    numbers = type(value) is list and not set(map(type, value)) - {int}
    if not numbers or len(value) > MAX_RETURNED or min(value, default=0) < 0:
        raise ValueError(f"{_short(value)} is not an array of at most {MAX_RETURNED} numbers")
    return tuple(value)


def _short(value: Any) -> str:
    """A value for an error message, whatever its size and depth."""
    if type(value) in (str, bytes) and len(value) > 40:
        return f"{value[:40]!r}… ({len(value):,} long)"
    return _repr(value)


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxother = 2, 4, 4, 60
_repr: Callable[[Any], str] = _brief.repr

_channel = _uint(U32)
_number = _uint(U64)
_entity = _uint(U32)
_peer_id = _identity
_topic = _text(1024)
_dials = _one_of("peer", "client", "relay")
_answers = _one_of("peer", "coordinator", "relay")


class WayRow(NamedTuple):
    """One way to a peer."""

    kind: str
    """``tcp``; a later version may have more, which this one passes on and does not use."""
    host: str
    port: int


def _way(row: Any) -> WayRow:
    if type(row) is not list or len(row) < 3:
        raise ValueError(f"{_short(row)} is not [kind, host, port]")
    return WayRow(_shown(32)(row[0]), _shown(255)(row[1]), _uint(65535)(row[2]))


def _ways(value: Any) -> tuple[WayRow, ...]:
    if type(value) is not list:
        raise ValueError(f"{_short(value)} is not an array")
    if len(value) > MAX_WAYS:
        raise ValueError(f"{len(value)} ways, over {MAX_WAYS}")
    return tuple(map(_way, value))


def _field(check: Check, **more: Any) -> Any:
    return field(metadata={"check": check}, **more)


# --- both kinds of connection -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of the side that dialled."""

    KIND: ClassVar[Kind] = Kind.HELLO
    version: int = _field(_uint(U32))
    """`PROTOCOL_VERSION`; always the first field, in every version to come."""
    role: str = _field(_dials)
    """What the dialling side is: ``peer``, ``relay`` (of a coordinator), or ``client`` (asks a
    coordinator, no more)."""
    wants: str = _field(_one_of("peer", "subscriber", "coordinator", "relay"))
    """What it expects to find: ``peer``, ``coordinator`` or ``relay``; ``subscriber``: a peer that
    has called this one, so that who dials is the publisher of this link."""
    peer_id: str = _field(_peer_id)
    """Its identity: random, new for every peer and after every fork."""
    expects: str = _field(_peer_id)
    """The identity it wants to meet, or ``""``; a peer that is another says GOODBYE."""
    nonce: bytes = _field(_bytes(64))
    """Random; empty: it shows no credentials by AUTH, and expects none."""
    claim: bytes = _field(_bytes(64))
    """What only the process with that `peer_id` can say to whom it means (see `Claim`)."""
    ways: tuple[WayRow, ...] = _field(_ways)
    """How it can be reached; none: it cannot be dialled."""
    listens: bool = _field(_flag)
    """Whether it can be dialled at all."""
    host_id: str = _field(_identity)
    """The same for all peers with one kernel, network namespace and key; ``""``: not known."""
    info: dict[str, Any] = _field(_table)
    """For people only: ``name``, ``pid``, ``hostname``, ``library`` (version)."""


@dataclass(frozen=True, slots=True)
class Auth:
    """Between HELLO and WELCOME: first from the side that was dialled, then from the other; each
    shows that it has the key."""

    KIND: ClassVar[Kind] = Kind.AUTH
    role: str = _field(_one_of("peer", "coordinator", "client", "relay"))
    """What this side is."""
    peer_id: str = _field(_peer_id)
    """Its identity."""
    nonce: bytes = _field(_bytes(64))
    """Random, from the side that was dialled; empty in the answer."""
    proof: bytes = _field(_bytes(64))
    """See docs/protocol.md."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to HELLO; from here on both sides may send anything their roles allow."""

    KIND: ClassVar[Kind] = Kind.WELCOME
    version: int = _field(_uint(U32))
    role: str = _field(_answers)
    """What the answering side is: ``peer``, ``coordinator`` or ``relay``."""
    peer_id: str = _field(_peer_id)
    """Its identity; a coordinator's is new at each start."""
    claim: bytes = _field(_bytes(64))
    """As in HELLO, to whoever has dialled."""
    host_id: str = _field(_identity)
    """As in HELLO."""
    settle: float = _field(_seconds)
    """Of a coordinator that started a moment ago: seconds in which peers may still be coming
    back to it, during which a Pub keeps its first messages for them. Otherwise 0."""
    info: dict[str, Any] = _field(_table)


@dataclass(frozen=True, slots=True)
class Ping:
    """Sent when nothing came for `ping_interval`, and behind data to learn that it arrived."""

    KIND: ClassVar[Kind] = Kind.PING
    token: int = _field(_number)


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to PING, in its place in the stream of frames."""

    KIND: ClassVar[Kind] = Kind.PONG
    token: int = _field(_number)


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Last frame before closing. Without it a closed connection is a broken one."""

    KIND: ClassVar[Kind] = Kind.GOODBYE
    code: str = _field(_shown(32))
    """One of `GOODBYE_CODES`; a later version may have more."""
    reason: str = _field(_shown(1024))
    """A sentence for people."""

    @classmethod
    def because(cls, code: str, reason: str) -> Goodbye:
        """One that may be sent at any time, whatever the reason quotes: cut to 1,024 bytes, so
        that it fits into a frame before WELCOME too."""
        brief = reason.encode(errors="replace")[:1024].decode(errors="ignore")
        return cls(code[:32], brief)


# --- peer link: the subscribing peer dialled --------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscriber → publisher: open `channel` for one Sub on one stream."""

    KIND: ClassVar[Kind] = Kind.SUBSCRIBE
    channel: int = _field(_channel)
    """Chosen by the subscriber; on one link each number is used once, rising."""
    stream_id: int = _field(_entity)
    """The Pub's number in its peer, as MATCH told it."""
    sub_id: int = _field(_entity)
    """The Sub's number in its peer, as it was registered."""
    resume: int | None = _field(_or_nil(_number))
    """The first sequence number that is wanted, after a link broke; nil on the first time."""
    history: int | None = _field(_or_nil(_number))
    """How many of the messages before now are wanted; nil: all that the Pub keeps."""
    limit: int = _field(_number)
    """Bytes that may be sent on this channel for now (see ACK)."""
    observer: bool = _field(_flag)
    """True: this Sub must never make the Pub wait."""
    before: bool = _field(_flag)
    """True: the Sub is older than the Pub and due its first message (as MATCH told it), if the
    Pub still keeps it for such Subs."""
    max_batch: int = _field(_number)
    """Bytes of the largest batch (DATA's array and its large buffers) that it takes. A larger one
    is a GAP."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Publisher → subscriber: the channel is open; every message from `next` on will be sent."""

    KIND: ClassVar[Kind] = Kind.SUBSCRIBED
    channel: int = _field(_channel)
    topic: str = _field(_topic)
    codec: str = _field(_text(32))
    """``msgpack``, ``pickle`` or ``raw``."""
    due: int = _field(_number)
    """The first sequence number that this Sub had a right to."""
    next: int = _field(_number)
    """The first one it will get; ``next - due`` have left the log and are a gap."""
    ack_every: int = _field(_number)
    """Acknowledge at the latest when so many bytes were consumed."""


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Subscriber → publisher: the Sub was closed; the channel is done."""

    KIND: ClassVar[Kind] = Kind.UNSUBSCRIBE
    channel: int = _field(_channel)


@dataclass(frozen=True, slots=True)
class Ack:
    """Subscriber → publisher: everything below `next` was consumed; send up to `limit`."""

    KIND: ClassVar[Kind] = Kind.ACK
    channel: int = _field(_channel)
    next: int = _field(_number)
    """Cumulative: all sequence numbers below it are consumed or given up."""
    limit: int = _field(_number)
    """Bytes of batches, counted from the channel's opening, that may be sent in all. One batch
    may pass it when less was sent and all that was sent is acknowledged. It may become less."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Publisher → subscriber: in the place of what is skipped, which no DATA will bring."""

    KIND: ClassVar[Kind] = Kind.GAP
    channel: int = _field(_channel)
    first: int = _field(_number)
    """The first number that is skipped: the one that is due."""
    next: int = _field(_number)
    """The one behind the last."""
    reason: str = _field(_text(64))
    """As in `pubsub.Gap`: ``overflow`` or ``too large``."""


@dataclass(frozen=True, slots=True)
class End:
    """Publisher → subscriber: nothing more comes on this channel."""

    KIND: ClassVar[Kind] = Kind.END
    channel: int = _field(_channel)
    final: int = _field(_number)
    """The number of messages that were put in all; those that did not come are a gap."""
    code: str = _field(_one_of("closed", "unknown", "refused", "elsewhere"))
    """``closed`` (the Pub was), ``unknown`` (there is no such stream), ``refused``, or
    ``elsewhere``: its Sub has subscribed it again, on another channel."""
    reason: str = _field(_shown(1024))


# --- coordinator ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Peer → coordinator: I have this Pub or Sub. Answered by EXPECT or MATCH."""

    KIND: ClassVar[Kind] = Kind.REGISTER
    id: int = _field(_entity)
    """The Pub's or Sub's number in its peer; one numbering for both."""
    role: str = _field(_one_of("pub", "sub"))
    topic: str = _field(_topic)
    """A Pub's topic, a Sub's topic or pattern."""
    renewed: bool = _field(_flag)
    """True: it comes again, because a coordinator or the connection to it was lost. A Sub: a
    coordinator had answered it before. A Pub: it does not keep its first messages any more."""
    observer: bool = _field(_flag)


@dataclass(frozen=True, slots=True)
class Unregister:
    """Peer → coordinator: this Pub or Sub was closed."""

    KIND: ClassVar[Kind] = Kind.UNREGISTER
    id: int = _field(_entity)


class MatchedPub(NamedTuple):
    """A row of MATCH: a stream, and where it is."""

    peer_id: str
    ways: tuple[WayRow, ...]
    """None: nowhere that this subscriber could dial."""
    listens: bool
    host_id: str
    stream_id: int
    topic: str
    before: bool
    """True: the Sub was registered before this Pub was; it is due the first message."""
    who: str = ""
    """Of one that this subscriber cannot dial: which process it is, for people."""


class ExpectedSub(NamedTuple):
    """A row of EXPECT: a subscription that will come, and whether it is older than the Pub."""

    peer_id: str
    sub_id: int
    before: bool
    """True: registered before the Pub was; it is due the first message."""
    observer: bool
    elsewhere: str = ""
    """Of one on another machine, where the publisher listens on its own only, and which the
    publisher cannot dial either: ``host:port`` at which that machine reaches the coordinator. It
    will not come, unless they meet at a relay."""


def _row(cls: Any, *checks: Check) -> Check:
    named = tuple(zip(cls._fields, checks, strict=True))
    needed = named[: len(named) - len(cls._field_defaults)]

    def make(row: Any) -> Any:
        if type(row) is not list:
            raise ValueError(f"{_short(row)} is not an array")
        return cls(*_checked(named if len(row) >= len(named) else needed, row))

    return make


_matched_pub = _row(
    *(MatchedPub, _peer_id, _ways, _flag, _identity, _entity, _topic, _flag, _shown(255))
)
_expected_sub = _row(ExpectedSub, _peer_id, _entity, _flag, _flag, _shown(300))


def _pair(row: Any) -> tuple[str, int]:
    if type(row) is not list or len(row) < 2:
        raise ValueError(f"{_short(row)} is not [peer_id, id]")
    return _peer_id(row[0]), _entity(row[1])


@dataclass(frozen=True, slots=True)
class Match:
    """Coordinator → subscribing peer: these publishers match your Sub."""

    KIND: ClassVar[Kind] = Kind.MATCH
    sub_id: int = _field(_entity)
    revision: int = _field(_number)
    """The coordinator's count of changes when this was true."""
    complete: bool = _field(_flag)
    """True: with this frame the Sub has been told every publisher known at `revision`. Always
    true but for the first parts of a long first answer."""
    added: tuple[MatchedPub, ...] = _field(_rows(_matched_pub))
    removed: tuple[tuple[str, int], ...] = _field(_rows(_pair))
    """``[peer_id, stream_id]`` of publishers that are gone. Ends no healthy link."""


@dataclass(frozen=True, slots=True)
class Expect:
    """Coordinator → publishing peer: these subscriptions match your Pub and will come."""

    KIND: ClassVar[Kind] = Kind.EXPECT
    stream_id: int = _field(_entity)
    revision: int = _field(_number)
    complete: bool = _field(_flag)
    added: tuple[ExpectedSub, ...] = _field(_rows(_expected_sub))
    removed: tuple[tuple[str, int], ...] = _field(_rows(_pair))
    """``[peer_id, sub_id]`` that need not be expected any longer."""


@dataclass(frozen=True, slots=True)
class Query:
    """Client → coordinator: tell me what you know. Answered by ANSWER with the same token."""

    KIND: ClassVar[Kind] = Kind.QUERY
    token: int = _field(_number)
    what: str = _field(_one_of("topics", "peers", "relays"))


@dataclass(frozen=True, slots=True)
class Answer:
    """Coordinator → client: rows of an answer, in one or more frames."""

    KIND: ClassVar[Kind] = Kind.ANSWER
    token: int = _field(_number)
    complete: bool = _field(_flag)
    rows: tuple[dict[str, Any], ...] = _field(_rows(_table))


@dataclass(frozen=True, slots=True)
class Refused:
    """Coordinator → peer: your Pub or Sub is not registered, because you have no right to it, or
    there are too many; or others are not told of one of your ways."""

    KIND: ClassVar[Kind] = Kind.REFUSED
    id: int = _field(_entity)
    """Of the REGISTER; 0: it is about a way of the HELLO."""
    code: str = _field(_shown(32))
    """``auth`` (there is no right to it) or ``limit`` (there are too many)."""
    reason: str = _field(_shown(1024))
    """A sentence for people: who may not do what, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """Coordinator → peer: the newest list of revoked certificates, on which both ends of a link
    act."""

    KIND: ClassVar[Kind] = Kind.REVOKED
    list: bytes = _field(_bytes(4 * 1024 * 1024))
    """As PEM, signed by the CA."""


# --- ways beside dialling the publisher ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """Subscribing peer → coordinator: I cannot dial the publisher of this stream; have it dial me,
    or have both of us meet at a relay."""

    KIND: ClassVar[Kind] = Kind.CALL
    sub_id: int = _field(_entity)
    """The Sub for which it is wanted."""
    peer_id: str = _field(_peer_id)
    """The publishing peer."""
    stream_id: int = _field(_entity)
    relay: bool = _field(_flag)
    """True: over a relay. Answered by CALLED, to both; otherwise only the publisher is told."""


class RelayRow(NamedTuple):
    """A relay."""

    peer_id: str
    ways: tuple[WayRow, ...]


_relay_row = _row(RelayRow, _peer_id, _ways)


@dataclass(frozen=True, slots=True)
class Called:
    """Coordinator → peer: that peer is to be reached in this way. (No address comes from whoever
    called: it is where the coordinator knows the caller to be.)"""

    KIND: ClassVar[Kind] = Kind.CALLED
    peer_id: str = _field(_peer_id)
    """With whom: the subscriber that called, or (to the caller, of relays) the publisher."""
    ways: tuple[WayRow, ...] = _field(_ways)
    """Where the subscriber listens: dial it; none: meet it at a relay."""
    relays: tuple[RelayRow, ...] = _field(_rows(_relay_row))
    """The least busy first; with neither these nor ways, there is no relay."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """Peer → relay: connect me with that peer, which keeps a session with this relay, too. Answered
    by TICKET, to both."""

    KIND: ClassVar[Kind] = Kind.CIRCUIT
    peer_id: str = _field(_peer_id)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Relay → peer: a circuit with that peer is agreed."""

    KIND: ClassVar[Kind] = Kind.TICKET
    peer_id: str = _field(_peer_id)
    ticket: bytes = _field(_bytes(16))
    """What a new connection has to begin with (see JOIN), once and soon; empty: there is none."""
    reason: str = _field(_shown(1024))
    """Why there is none; else empty."""


@dataclass(frozen=True, slots=True)
class Join:
    """First and only frame of one end of a circuit; what follows goes to the other end, and what
    that sends comes back, byte for byte."""

    KIND: ClassVar[Kind] = Kind.JOIN
    ticket: bytes = _field(_bytes(16))


@dataclass(frozen=True, slots=True)
class Load:
    """Relay → coordinator: how busy it is."""

    KIND: ClassVar[Kind] = Kind.LOAD
    circuits: int = _field(_entity)


# --- memory that two peers of one host share ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """Publisher → subscriber: connect to this peer's Unix socket once more, and say JOIN with this
    ticket there; descriptors come on that connection."""

    KIND: ClassVar[Kind] = Kind.OFFER
    ticket: bytes = _field(_bytes(16))


@dataclass(frozen=True, slots=True)
class Mapped:
    """Subscriber → publisher: the segment whose descriptor came is mapped."""

    KIND: ClassVar[Kind] = Kind.MAPPED
    segment: int = _field(_entity)


@dataclass(frozen=True, slots=True)
class Lent:
    """Publisher → subscriber: in the place of BUFFERs, a large buffer that lies in a segment."""

    KIND: ClassVar[Kind] = Kind.LENT
    channel: int = _field(_channel)
    loan: int = _field(_number)
    """Its number on this link: from 0, each one more than the last."""
    segment: int = _field(_entity)
    start: int = _field(_number)
    """Where in the segment it begins."""
    size: int = _field(_number)
    """How many bytes it has."""


@dataclass(frozen=True, slots=True)
class Returned:
    """Subscriber → publisher: nobody there holds these any more."""

    KIND: ClassVar[Kind] = Kind.RETURNED
    loans: tuple[int, ...] = _field(_loans)
    """At most `MAX_RETURNED`, each that is lent and was not returned."""
    kept: bool = _field(_flag)
    """True: somebody holds them for a time that nobody knows, such as a child after a fork. Their
    memory must not be written to any more."""


@dataclass(frozen=True, slots=True)
class Unmap:
    """Publisher → subscriber: nothing more is lent of this segment."""

    KIND: ClassVar[Kind] = Kind.UNMAP
    segment: int = _field(_entity)


Control: TypeAlias = (
    Hello
    | Auth
    | Welcome
    | Ping
    | Pong
    | Goodbye
    | Subscribe
    | Subscribed
    | Unsubscribe
    | Ack
    | Gap
    | End
    | Register
    | Unregister
    | Match
    | Expect
    | Query
    | Answer
    | Refused
    | Revoked
    | Call
    | Called
    | Circuit
    | Ticket
    | Join
    | Load
    | Offer
    | Mapped
    | Lent
    | Returned
    | Unmap
)

_CONTROL: tuple[Any, ...] = Control.__args__
_CHECKS: dict[int, tuple[Any, tuple[tuple[str, Check], ...]]] = {
    int(cls.KIND): (
        cls,
        tuple(
            (f.name, f.metadata["check"]) for f in cls.__dataclass_fields__.values() if f.metadata
        ),
    )
    for cls in _CONTROL
}
_VALUES: dict[Any, Callable[[Any], Any]] = {
    cls: attrgetter("KIND", *(name for name, _ in checks)) for cls, checks in _CHECKS.values()
}


def _checked(checks: tuple[tuple[str, Check], ...], values: Sequence[Any]) -> list[Any]:
    if len(values) < len(checks):
        raise ValueError(f"{len(values)} fields where {len(checks)} belong")
    try:
        return [check(value) for (_, check), value in zip(checks, values, strict=False)]
    except ValueError:
        for (name, check), value in zip(checks, values, strict=False):  # which one was it?
            try:
                check(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        raise


def parse(array: Any) -> Control:
    """The message that an array from the wire is.

    Raises:
        ProtocolError: it is no array, of no known kind, or a field is not as documented.
    """
    if type(array) is not list or not array or type(array[0]) is not int:
        raise ProtocolError(f"a frame that is no message: {_short(array)}")
    known = _CHECKS.get(array[0])
    if known is None:
        raise ProtocolError(f"a frame of the unknown kind {array[0]}")
    cls, checks = known
    if cls is Hello and len(array) > 1 and array[1] != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the other end speaks version {_short(array[1])} of the protocol, "
            f"this one version {PROTOCOL_VERSION}",
            code="version",
        )
    try:
        return cls(*_checked(checks, array[1:]))  # type: ignore[no-any-return]  # from the table
    except ValueError as error:
        raise ProtocolError(f"a malformed {cls.KIND.name}: {error}") from None


# One for all: to make one for each message takes longer than to pack it (0.7 of 1.0 µs). No other
# thread comes in between, since packing what messages are made of runs no Python code; but where
# msgpack itself is in Python, it does.
_pack = msgpack.packb if msgpack.Packer.__module__ == "msgpack.fallback" else msgpack.Packer().pack


def encode(message: Control) -> bytes:
    """The whole frame of a message, length included."""
    payload = _pack(_VALUES[type(message)](message))
    return len(payload).to_bytes(4, "big") + payload  # type: ignore[no-any-return]  # bytes
