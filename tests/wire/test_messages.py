"""Wire messages: each comes back as it was sent, and nothing else passes as one."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pubsub.config import MAX_WAYS
from pubsub.errors import ProtocolError
from pubsub.wire.handshake import tcp
from pubsub.wire.messages import (
    MAX_PAYLOAD_BEFORE_WELCOME,
    MAX_RETURNED,
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Auth,
    Call,
    Called,
    Circuit,
    Control,
    End,
    Expect,
    ExpectedSub,
    Gap,
    Goodbye,
    Hello,
    Join,
    Kind,
    Lent,
    Load,
    Mapped,
    Match,
    MatchedPub,
    Offer,
    Ping,
    Pong,
    Query,
    Refused,
    Register,
    RelayRow,
    Returned,
    Revoked,
    Subscribe,
    Subscribed,
    Ticket,
    Unmap,
    Unregister,
    Unsubscribe,
    WayRow,
    Welcome,
    encode,
    parse,
)
from tests.wire.said import matched

few = settings(max_examples=30)
"""For what runs once for each kind."""

U32 = 2**32 - 1
U64 = 2**64 - 1


def text(limit: int) -> st.SearchStrategy[str]:
    encodable = st.characters(exclude_categories=["Cs"])
    short = st.text(encodable, max_size=min(limit, 20))
    return short | st.sampled_from(["", "x" * limit, "é" * limit, "\U0001f600" * limit])


def shown(limit: int) -> st.SearchStrategy[str]:
    return text(limit).filter(str.isprintable)


def uint(limit: int) -> st.SearchStrategy[int]:
    return st.integers(0, limit) | st.sampled_from([0, limit])


u16, u32, u64 = uint(65535), uint(U32), uint(U64)
flag = st.booleans()
id_ = shown(64)
topic = text(1024)
seconds = st.floats(0, 999_999_999, allow_nan=False)
dials = st.sampled_from(["peer", "client", "relay"])
answers = st.sampled_from(["peer", "coordinator", "relay"])
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), U64)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(5), inner, max_size=3),
    max_leaves=8,
)
table = st.dictionaries(text(8), anything, max_size=3)
nullable = st.none() | u64
pairs = st.lists(st.tuples(id_, u32), max_size=3).map(tuple)
short = st.binary(max_size=64)
way = st.builds(WayRow, shown(32), shown(255), u16)
ways = st.lists(way, max_size=3).map(tuple) | st.just((WayRow("tcp", "::1", 1),) * MAX_WAYS)
relays = st.lists(st.builds(RelayRow, id_, ways), max_size=3).map(tuple)
ticket = st.binary(max_size=16)
loans = st.lists(u64, max_size=3).map(tuple) | st.just(tuple(range(MAX_RETURNED)))
matched_pub = st.builds(MatchedPub, id_, ways, flag, id_, u32, topic, flag, shown(255))

# Each kind's fields, in their order on the wire: how to draw one.
FIELDS: dict[type[Any], dict[str, st.SearchStrategy[Any]]] = {
    Hello: {
        "version": st.just(PROTOCOL_VERSION),
        "role": dials,
        "wants": answers | st.just("subscriber"),
        "peer_id": id_,
        "expects": id_,
        "nonce": short,
        "claim": short,
        "ways": ways,
        "listens": flag,
        "host_id": id_,
        "info": table,
    },
    Auth: {
        "role": st.sampled_from(["peer", "coordinator", "client", "relay"]),
        "peer_id": id_,
        "nonce": short,
        "proof": short,
    },
    Welcome: {
        "version": u32,
        "role": answers,
        "peer_id": id_,
        "claim": short,
        "host_id": id_,
        "settle": seconds,
        "info": table,
    },
    Ping: {"token": u64},
    Pong: {"token": u64},
    Goodbye: {"code": shown(32), "reason": shown(1024)},
    Subscribe: {
        "channel": u32,
        "stream_id": u32,
        "sub_id": u32,
        "resume": nullable,
        "history": nullable,
        "limit": u64,
        "observer": flag,
        "before": flag,
        "max_batch": u64,
    },
    Subscribed: {
        "channel": u32,
        "topic": topic,
        "codec": text(32),
        "due": u64,
        "next": u64,
        "ack_every": u64,
    },
    Unsubscribe: {"channel": u32},
    Ack: {"channel": u32, "next": u64, "limit": u64},
    Gap: {"channel": u32, "first": u64, "next": u64, "reason": text(64)},
    End: {
        "channel": u32,
        "final": u64,
        "code": st.sampled_from(["closed", "unknown", "refused", "elsewhere"]),
        "reason": shown(1024),
    },
    Register: {
        "id": u32,
        "role": st.sampled_from(["pub", "sub"]),
        "topic": topic,
        "renewed": flag,
        "observer": flag,
    },
    Unregister: {"id": u32},
    Match: {
        "sub_id": u32,
        "revision": u64,
        "complete": flag,
        "added": st.lists(matched_pub, max_size=3).map(tuple),
        "removed": pairs,
    },
    Expect: {
        "stream_id": u32,
        "revision": u64,
        "complete": flag,
        "added": st.lists(st.builds(ExpectedSub, id_, u32, flag, flag, shown(300)), max_size=3).map(
            tuple
        ),
        "removed": pairs,
    },
    Query: {"token": u64, "what": st.sampled_from(["topics", "peers", "relays"])},
    Answer: {"token": u64, "complete": flag, "rows": st.lists(table, max_size=3).map(tuple)},
    Refused: {"id": u32, "code": shown(32), "reason": shown(1024)},
    Revoked: {"list": st.binary(max_size=20) | st.just(bytes(4 << 20))},
    Call: {"sub_id": u32, "peer_id": id_, "stream_id": u32, "relay": flag},
    Called: {"peer_id": id_, "ways": ways, "relays": relays},
    Circuit: {"peer_id": id_},
    Ticket: {"peer_id": id_, "ticket": ticket, "reason": shown(1024)},
    Join: {"ticket": ticket},
    Load: {"circuits": u32},
    Offer: {"ticket": ticket},
    Mapped: {"segment": u32},
    Lent: {"channel": u32, "loan": u64, "segment": u32, "start": u64, "size": u64},
    Returned: {"loans": loans, "kept": flag},
    Unmap: {"segment": u32},
}

KINDS = pytest.mark.parametrize("cls", FIELDS, ids=lambda cls: cls.__name__)


def drawn(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **FIELDS[cls])


def sent(message: Control) -> list[Any]:
    """The array of a message, as the other side unpacks it."""
    array = msgpack.unpackb(encode(message)[4:])
    assert type(array) is list
    return array


# --- what is sent comes back ----------------------------------------------------------------------


@KINDS
@given(data=st.data())
@few
def test_every_message_comes_back_as_it_was_sent(cls: type[Any], data: st.DataObject) -> None:
    message = data.draw(drawn(cls))
    frame = encode(message)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    back = parse(msgpack.unpackb(frame[4:]))
    assert type(back) is cls
    assert back == message
    for one, two in zip(values(back), values(message), strict=True):
        assert type(one) is type(two)
    assert encode(back) == frame


def values(message: Control) -> list[Any]:
    return [getattr(message, name) for name in FIELDS[type(message)]]


@KINDS
@given(data=st.data())
@few
def test_the_array_is_the_kind_and_the_fields_in_their_documented_order(
    cls: type[Any], data: st.DataObject
) -> None:
    message = data.draw(drawn(cls))
    assert [field.name for field in dataclasses.fields(cls)] == list(FIELDS[cls])
    array = sent(message)
    assert array[0] == cls.KIND
    assert plain(array[1:]) == plain(values(message))


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_every_kind_but_those_of_the_bulk_has_a_message() -> None:
    assert {cls.KIND for cls in FIELDS} == set(Kind) - {Kind.DATA, Kind.BUFFER}


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (Ping(1), "00000003 92 0b 01"),
        (Goodbye("closing", ""), "0000000b 93 0d a7636c6f73696e67 a0"),
        (
            Subscribe(1, 2, 3, None, 0, 8, False, True, 9),
            "0000000b 9a 04 01 02 03 c0 00 08 c2 c3 09",
        ),
        (Register(7, "sub", "a/*", True, False), "0000000d 96 10 07 a3737562 a3612f2a c3 c2"),
        (Match(1, 2, True, (), (("p", 3),)), "0000000b 96 12 01 02 c3 90 91 92a17003"),
        (Refused(7, "auth", "no"), "0000000b 94 16 07 a461757468 a26e6f"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_bytes_on_the_wire_stay_what_they_are(message: Control, frame: str) -> None:
    assert encode(message) == bytes.fromhex(frame)
    assert parse(msgpack.unpackb(bytes.fromhex(frame)[4:])) == message


@KINDS
@given(data=st.data())
@few
def test_fields_of_a_later_version_are_ignored(cls: type[Any], data: st.DataObject) -> None:
    message = data.draw(drawn(cls))
    more = data.draw(st.lists(anything, min_size=1, max_size=3))
    assert parse([*sent(message), *more]) == message


@given(
    matched_pub,
    st.lists(anything, max_size=3),
)
def test_rows_of_a_later_version_may_have_more_fields(row: MatchedPub, more: list[Any]) -> None:
    def later(row: MatchedPub) -> list[Any]:
        ways = [[*way, *more] for way in row.ways]
        return [row.peer_id, ways, *row[2:]]

    assert parse([18, 1, 2, True, [[*later(row), *more]], [["p", 3, *more]]]) == (
        Match(1, 2, True, (row,), (("p", 3),))
    )
    assert parse([19, 1, 2, True, [["p", 3, True, False, "x:1", *more]], []]) == (
        Expect(1, 2, True, (ExpectedSub("p", 3, True, False, "x:1"),), ())
    )


def test_rows_of_an_earlier_version_lack_what_was_added_since() -> None:
    assert parse([18, 1, 2, True, [["p", [["tcp", "host", 1]], True, "", 3, "t", False]], []]) == (
        Match(1, 2, True, (matched("p", "host", 1, 3, "t", False),), ())
    )
    assert parse([19, 1, 2, True, [["p", 3, True, False]], []]) == (
        Expect(1, 2, True, (ExpectedSub("p", 3, True, False, ""),), ())
    )


@pytest.mark.parametrize("cls", [Hello, Welcome], ids=lambda cls: cls.__name__)
def test_a_handshake_with_the_longest_fields_fits_into_its_frame(cls: type[Any]) -> None:
    ids = dict.fromkeys(("peer_id", "expects", "host_id"), "x" * 64)
    shown = dict.fromkeys(("nonce", "claim"), bytes(64))
    longest = {**ids, **shown, "ways": tcp("x" * 255, 65535), "listens": True}
    info = {"name": "x" * 255, "pid": 2**22, "hostname": "x" * 255, "library": "1.0"}
    fields = {"version": 1, "role": "coordinator", "wants": "coordinator", "settle": 1.5}
    message = cls(**{name: ({**longest, **fields, "info": info})[name] for name in FIELDS[cls]})
    assert len(encode(message)) - 4 <= MAX_PAYLOAD_BEFORE_WELCOME


@pytest.mark.parametrize("reason", ["x" * 5000, "é" * 5000, "🙂" * 5000, "a\udcffb", "", "why"])
def test_a_goodbye_may_be_sent_at_any_time_whatever_its_reason_quotes(reason: str) -> None:
    goodbye = Goodbye.because("c" * 40, reason)
    frame = encode(goodbye)
    assert len(frame) - 4 <= MAX_PAYLOAD_BEFORE_WELCOME
    assert parse(msgpack.unpackb(frame[4:])) == goodbye
    assert goodbye.code == "c" * 32
    assert goodbye.reason == reason.replace("\udcff", "?")[: len(goodbye.reason)]
    assert len(goodbye.reason.encode()) >= min(len(reason), 1021)


# --- what is not as documented is refused ---------------------------------------------------------


def never(kept: Callable[[Any], bool]) -> st.SearchStrategy[Any]:
    """Values that msgpack carries and a field does not."""
    return (anything | st.sampled_from(ODD)).filter(lambda value: not kept(value))


ODD: list[Any] = [
    *(None, True, False, -1, 0.0, 0.5, 1.0, math.nan, math.inf, U32 + 1, U64, -(2**63)),
    *("", "peer", b"", b"peer", [], [[]], [None], {}, {1: 2}, {"a": 1}, {b"a": 1}),
    *(msgpack.ExtType(1, b""), msgpack.Timestamp(1, 0), 65536, 10**9, 1e9),
]


def is_uint(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= limit


def is_text(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and len(value) <= limit


def is_table(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def is_bool(value: Any) -> bool:
    return type(value) is bool


def is_nullable(value: Any) -> bool:
    return value is None or is_uint(U64)(value)


def is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def is_in(*words: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and value in words


def is_rows(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        type(value) is list
        and all(
            type(row) is list
            and len(row) >= len(checks)
            and all(check(item) for check, item in zip(checks, row, strict=False))
            for row in value
        )
    )


is_dialling = is_in("peer", "client", "relay")
is_answering = is_in("peer", "coordinator", "relay")
is_wanted = is_in("peer", "subscriber", "coordinator", "relay")
is_id, is_topic, is_entity = is_text(64), is_text(1024), is_uint(U32)
is_pairs = is_rows(is_id, is_entity)
is_way_rows = is_rows(is_text(32), is_text(255), is_uint(65535))


def is_short(value: Any) -> bool:
    return type(value) is bytes and len(value) <= 64


def is_ticket(value: Any) -> bool:
    return type(value) is bytes and len(value) <= 16


def is_ways(value: Any) -> bool:
    return is_way_rows(value) and len(value) <= MAX_WAYS


# Each kind's fields once more, as the documentation has them: what may be taken.
TAKEN: dict[type[Any], list[Callable[[Any], bool]]] = {
    Hello: [
        *(lambda value: value == PROTOCOL_VERSION and type(value) is int, is_dialling),
        *(is_wanted, is_id, is_id, is_short, is_short, is_ways, is_bool, is_id, is_table),
    ],
    Auth: [is_in("peer", "coordinator", "client", "relay"), is_id, is_short, is_short],
    Welcome: [is_entity, is_answering, is_id, is_short, is_id, is_seconds, is_table],
    Ping: [is_uint(U64)],
    Pong: [is_uint(U64)],
    Goodbye: [is_text(32), is_text(1024)],
    Subscribe: [
        *(is_entity, is_entity, is_entity, is_nullable, is_nullable, is_uint(U64), is_bool),
        *(is_bool, is_uint(U64)),
    ],
    Subscribed: [is_entity, is_topic, is_text(32), is_uint(U64), is_uint(U64), is_uint(U64)],
    Unsubscribe: [is_entity],
    Ack: [is_entity, is_uint(U64), is_uint(U64)],
    Gap: [is_entity, is_uint(U64), is_uint(U64), is_text(64)],
    End: [
        is_entity,
        is_uint(U64),
        is_in("closed", "unknown", "refused", "elsewhere"),
        is_text(1024),
    ],
    Register: [is_entity, is_in("pub", "sub"), is_topic, is_bool, is_bool],
    Unregister: [is_entity],
    Match: [
        *(is_entity, is_uint(U64), is_bool),
        *(is_rows(is_id, is_ways, is_bool, is_id, is_entity, is_topic), is_pairs),
    ],
    Expect: [
        *(is_entity, is_uint(U64), is_bool, is_rows(is_id, is_entity, is_bool, is_bool), is_pairs),
    ],
    Query: [is_uint(U64), is_in("topics", "peers", "relays")],
    Answer: [
        *(is_uint(U64), is_bool),
        lambda value: type(value) is list and all(is_table(row) for row in value),
    ],
    Refused: [is_entity, is_text(32), is_text(1024)],
    Revoked: [lambda value: type(value) is bytes and len(value) <= 4 << 20],
    Call: [is_entity, is_id, is_entity, is_bool],
    Called: [is_id, is_ways, is_rows(is_id, is_ways)],
    Circuit: [is_id],
    Ticket: [is_id, is_ticket, is_text(1024)],
    Join: [is_ticket],
    Load: [is_entity],
    Offer: [is_ticket],
    Mapped: [is_entity],
    Lent: [is_entity, is_uint(U64), is_entity, is_uint(U64), is_uint(U64)],
    Returned: [
        lambda value: (
            type(value) is list and len(value) <= MAX_RETURNED and all(map(is_uint(U64), value))
        ),
        is_bool,
    ],
    Unmap: [is_entity],
}


@KINDS
@given(data=st.data())
@settings(max_examples=60)
def test_any_wrong_value_in_any_field_is_a_protocol_error_that_names_it(
    cls: type[Any], data: st.DataObject
) -> None:
    array = sent(data.draw(drawn(cls)))
    place = data.draw(st.integers(0, len(TAKEN[cls]) - 1))
    array[place + 1] = data.draw(never(TAKEN[cls][place]))
    with pytest.raises(ProtocolError) as caught:
        parse(array)
    if (cls, place) == (Hello, 0) and array[1] != PROTOCOL_VERSION:
        assert caught.value.code == "version"
    else:
        assert str(caught.value).startswith(f"a malformed {cls.KIND.name}: {[*FIELDS[cls]][place]}")
        assert caught.value.code == "protocol"
    assert len(str(caught.value)) <= 1024, "it must fit into GOODBYE"


@KINDS
@given(data=st.data())
@few
def test_a_message_that_ends_early_is_a_protocol_error(cls: type[Any], data: st.DataObject) -> None:
    array = sent(data.draw(drawn(cls)))
    kept = data.draw(st.integers(1, len(array) - 1))
    with pytest.raises(ProtocolError, match="fields where"):
        parse(array[:kept])


TOO_LONG = [
    ([1, 2, "peer", "peer", "x" * 65, "", b"", b"", [], False, "", {}], "peer_id"),
    ([1, 2, "peer", "peer", "", "x" * 65, b"", b"", [], False, "", {}], "expects"),
    ([1, 2, "peer", "peer", "", "", bytes(65), b"", [], False, "", {}], "nonce"),
    ([1, 2, "peer", "peer", "", "", b"", bytes(65), [], False, "", {}], "claim"),
    ([1, 2, "peer", "peer", "", "", b"", b"", [["x" * 33, "", 0]], False, "", {}], "ways"),
    ([1, 2, "peer", "peer", "", "", b"", b"", [["tcp", "x" * 256, 0]], False, "", {}], "ways"),
    ([1, 2, "peer", "peer", "", "", b"", b"", [["tcp", "", 65536]], False, "", {}], "ways"),
    ([1, 2, "peer", "peer", "", "", b"", b"", [["tcp", "", 1]] * 9, False, "", {}], "ways"),
    ([1, 2, "peer", "peer", "", "", b"", b"", [], False, "x" * 65, {}], "host_id"),
    ([2, "peer", "x" * 65, b"", b""], "peer_id"),
    ([2, "peer", "", bytes(65), b""], "nonce"),
    ([2, "peer", "", b"", bytes(65)], "proof"),
    ([3, 2, "peer", "", b"", "", 1e9, {}], "settle"),
    ([4, U32 + 1, 0, 0, None, None, 0, False, False, 0], "channel"),
    ([5, 0, "x" * 1025, "raw", 0, 0, 0], "topic"),
    ([5, 0, "x", "x" * 33, 0, 0, 0], "codec"),
    ([13, "x" * 33, ""], "code"),
    ([13, "x", "x" * 1025], "reason"),
    ([16, 0, "pub", "x" * 1025, False, False], "topic"),
    ([18, 0, 0, True, [["x" * 65, [], False, "", 0, "", False]], []], "added: peer_id"),
    ([18, 0, 0, True, [["x", [], False, "", 0, "x" * 1025, False]], []], "added: topic"),
    ([18, 0, 0, True, [], [["x" * 65, 0]]], "removed"),
    ([19, 0, 0, True, [["x", U32 + 1, True, True]], []], "added: sub_id"),
]


@pytest.mark.parametrize(("array", "field"), TOO_LONG, ids=[field for _, field in TOO_LONG])
def test_what_is_one_too_long_is_refused(array: list[Any], field: str) -> None:
    with pytest.raises(ProtocolError, match=f": {field}: "):
        parse(array)


@pytest.mark.parametrize("place", ["added", "removed"])
@pytest.mark.parametrize("kind", [18, 19])
@given(data=st.data())
def test_any_wrong_row_is_a_protocol_error(kind: int, place: str, data: st.DataObject) -> None:
    good: dict[str, list[Any]] = {
        "added": ["p", [["tcp", "h", 1]], True, "", 2, "t"]
        if kind == 18
        else ["p", 1, True, False],
        "removed": ["p", 1],
    }
    taken = {
        "added": (is_id, is_ways, is_bool, is_id, is_entity, is_topic)
        if kind == 18
        else (is_id, is_entity, is_bool, is_bool),
        "removed": (is_id, is_entity),
    }
    row = good[place]
    column = data.draw(st.integers(0, len(row)))
    if column == len(row):
        wrong: Any = data.draw(never(lambda value: type(value) is list) | st.just(row[:-1]))
    else:
        wrong = [*row]
        wrong[column] = data.draw(never(taken[place][column]))
    rows = [row, wrong, row]
    array = [kind, 1, 2, True, rows, []] if place == "added" else [kind, 1, 2, True, [], rows]
    with pytest.raises(ProtocolError, match=f"^a malformed {Kind(kind).name}: {place}: "):
        parse(array)


@pytest.mark.parametrize("version", [0, 1, 99, U64, -1, "2", None, b"2", 2.5, True, [2]])
def test_another_version_is_told_both_even_where_all_else_differs(version: Any) -> None:
    with pytest.raises(ProtocolError, match=r"speaks version .* this one version 2") as caught:
        parse([1, version])
    assert caught.value.code == "version"


def test_a_version_must_be_an_integer() -> None:
    with pytest.raises(ProtocolError, match="a malformed HELLO: version"):
        parse([1, 2.0, "peer", "peer", "", "", b"", b"", [], False, "", {}])


def test_a_hello_of_version_1_is_told_that_it_is_of_another_version() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse([1, 1, "peer", "peer", "me", "", "10.0.0.7", 40123, {"name": "app.py"}])
    assert caught.value.code == "version"
    assert str(caught.value) == (
        "the other end speaks version 1 of the protocol, this one version 2"
    )


@pytest.mark.parametrize(
    "loans", [[*range(MAX_RETURNED + 1)], [-1], [1.0], [True], ["1"], [[1]], 1, None, {}]
)
def test_what_is_returned_is_a_bounded_array_of_numbers(loans: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^a malformed RETURNED: loans: "):
        parse([int(Kind.RETURNED), loans, False])


@given(st.integers(-(2**63), U64).filter(lambda kind: kind not in {c.KIND for c in FIELDS}))
def test_an_unknown_kind_is_a_protocol_error(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown kind {kind}$"):
        parse([kind])


@given(anything | st.sampled_from(ODD))
def test_what_is_no_array_that_starts_with_a_kind_is_a_protocol_error(value: Any) -> None:
    if type(value) is list and value and type(value[0]) is int:
        value = {"kind": value}
    with pytest.raises(ProtocolError, match="a frame that is no message"):
        parse(value)


@given(
    st.sampled_from([*Kind]).map(int) | anything,
    st.lists(anything | st.sampled_from(ODD), max_size=9),
)
@settings(max_examples=500)
def test_any_array_is_a_message_or_a_protocol_error(kind: Any, fields: list[Any]) -> None:
    refused = message = None
    try:
        message = parse([kind, *fields])
    except ProtocolError as error:
        refused = error
    if message is not None:
        again = parse(sent(message))
        assert [*map(repr, values(again))] == [*map(repr, values(message))]
    else:
        assert 0 < len(str(refused)) <= 1024, "it must fit into GOODBYE"


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_any_bytes_that_msgpack_reads_are_a_message_or_a_protocol_error(payload: bytes) -> None:
    try:
        array = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError):  # TypeError: a map's key that cannot be one
        return
    try:
        parse(array)
    except ProtocolError:
        pass


@KINDS
@given(data=st.data())
@few
def test_flipped_bytes_of_a_message_do_no_other_harm(cls: type[Any], data: st.DataObject) -> None:
    payload = bytearray(encode(data.draw(drawn(cls)))[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] ^= data.draw(st.integers(1, 255))
    try:
        array = msgpack.unpackb(bytes(payload), strict_map_key=False)
    except (ValueError, TypeError):
        return
    try:
        parse(array)
    except ProtocolError:
        pass


def nested(depth: int, shape: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if shape == "array" else {"a": value}
    return value


@pytest.mark.parametrize("shape", ["array", "map"])
@pytest.mark.parametrize("depth", [10, 500, 1000])
def test_deep_nesting_is_a_protocol_error_like_any_other(depth: int, shape: str) -> None:
    deep = nested(depth, shape)  # 1,000: msgpack unpacks up to 1,024
    frames = [deep, *([int(cls.KIND), *[deep] * 8] for cls in FIELDS)]
    for frame in frames:
        with pytest.raises(ProtocolError) as caught:
            parse(frame)
        assert len(str(caught.value)) <= 1024


@pytest.mark.parametrize("value", [b"x" * 10_000_000, "x" * 10_000_000], ids=["bin", "str"])
def test_a_huge_wrong_value_is_not_copied_into_its_error(value: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            parse([int(Kind.PING), value])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["\n", "a\r\nb", "\x1b[2J", "\u2028", "\x00"])
def test_text_for_people_forges_no_lines_in_logs_and_commands_no_terminal(text: str) -> None:
    goodbye = parse([13, "x" + text, "because" + text])
    assert isinstance(goodbye, Goodbye)
    assert goodbye.reason == "because" + repr(text)[1:-1]
    assert (goodbye.code + goodbye.reason).isprintable()
    long = parse([13, (text * 32)[:32], (text * 1024)[:1024]])
    assert isinstance(long, Goodbye)
    assert len(long.code) == 32
    assert len(long.reason) <= 1024
    way = ["t" + text, "ho" + text + "st", 1]
    hello = [1, 2, "peer", "peer", "id", "", b"", b"", [way], True, "", {}]
    parsed = parse(hello)
    assert isinstance(parsed, Hello)
    assert (parsed.ways[0].kind + parsed.ways[0].host).isprintable()
    hello[4] = "id" + text
    with pytest.raises(ProtocolError, match="control characters"):
        parse(hello)
