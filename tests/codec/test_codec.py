"""Codecs: the same value and the same type come back; nothing but DecodeError out of bad bytes.

These tests need no numpy; tests/codec/test_numpy_types.py has those that do.
"""

from __future__ import annotations

import math
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.codec.codecs import CODECS, codec_of, decoder_of
from pubsub.codec.decoder import MsgpackDecoder, PickleDecoder, RawDecoder
from pubsub.codec.encoder import LARGE, Encoder
from pubsub.codec.extension_types import BUFFER, DATETIME, SET, TUPLE
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge
from pubsub.wire.buffers import Buffer, WholeBuffer
from tests.wire.buffers import arrived, contents, whole

ROOT = Path(__file__).resolve().parent.parent
MAX_MESSAGE = 256 * 1024 * 1024
BIG = bytes(range(256)) * (LARGE // 256)  # exactly LARGE


def encoder(
    codec: str = "msgpack",
    max_message: int = MAX_MESSAGE,
) -> Encoder:
    return codec_of(codec).encoder("jobs", max_message)


def packed(enc: Encoder, value: Any, *, out_of_band: bool = False) -> tuple[bytes, list[Buffer]]:
    """A body of this one value, and its buffers."""
    body = b"\x91" + (enc.pack_out_of_band if out_of_band else enc.pack)(value)
    buffers = list(enc.buffers)
    enc.buffers.clear()
    return body, buffers


def round_trip(value: Any, codec: str = "msgpack", *, out_of_band: bool = False) -> Any:
    body, buffers = packed(encoder(codec), value, out_of_band=out_of_band)
    [found] = decoder_of(codec, allow_pickle=True).decode(body, buffers)
    return found


def ext(code: int, payload: bytes) -> bytes:
    """A value of this extension type."""
    found: bytes = msgpack.packb(msgpack.ExtType(code, payload))
    return found


def nested_ext(code: int, depth: int) -> bytes:
    """Containers of one code in each other, an empty one innermost."""
    value = b"\x90"
    for _ in range(depth):
        value = b"\x91\xc9" + struct.pack(">IB", len(value), code) + value
    return value


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all through, and by the bit where Python's == is not enough."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other) or one != one != other != other
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, (set, frozenset)):
        return one == other and Counter(map(type, one)) == Counter(map(type, other))
    if isinstance(one, (datetime, time)):
        zone, other_zone = one.tzinfo, other.tzinfo
        return (
            one.replace(tzinfo=None) == other.replace(tzinfo=None)
            and one.fold == other.fold
            and type(zone) is type(other_zone)
            and getattr(zone, "key", None) == getattr(other_zone, "key", None)
            and (not isinstance(zone, timezone) or repr(zone) == repr(other_zone))
        )
    return bool(one == other)


# --- what comes back ---------------------------------------------------------------------------

ZONES = st.one_of(
    st.none(),
    st.just(timezone.utc),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]).map(ZoneInfo),
    st.timedeltas(
        min_value=-timedelta(hours=24) + timedelta(microseconds=1),
        max_value=timedelta(hours=24) - timedelta(microseconds=1),
    ).map(timezone),
    st.just(timezone(timedelta(hours=1), "mine")),
)
FOLDS = st.sampled_from([0, 1])
DATETIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.datetimes(),
    ZONES,
    FOLDS,
)
TIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), ZONES, FOLDS
)
HASHABLE_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.decimals(allow_nan=False),
    st.uuids(),
    DATETIMES,
    st.dates(),
    TIMES,
    st.timedeltas(),
)
HASHABLE = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
LEAVES = st.one_of(
    HASHABLE_LEAVES,
    st.floats(),
    st.complex_numbers(),
    st.sampled_from([Decimal("NaN"), Decimal("-sNaN12"), Decimal("-0E-7"), Decimal("1E+999999")]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=20,
)


@given(VALUES)
def test_the_same_value_and_types_come_back(value: Any) -> None:
    assert same(round_trip(value), value)


@given(st.lists(VALUES, max_size=5))
def test_a_batch_comes_back_in_order(values: list[Any]) -> None:
    enc = encoder()
    body = msgpack.Packer().pack_array_header(len(values)) + b"".join(map(enc.pack, values))
    found = MsgpackDecoder().decode(body, ())
    assert same(found, values)
    assert same(MsgpackDecoder().decode_each(body, ()), values)
    assert same(MsgpackDecoder().decode(memoryview(bytearray(body)), ()), values)


@given(VALUES)
def test_pack_out_of_band_packs_the_same_when_nothing_is_large(value: Any) -> None:
    enc = encoder()
    assert enc.pack_out_of_band(value) == enc.pack(value)
    assert enc.buffers == []


@given(VALUES)
def test_pickle_brings_back_anything_msgpack_does(value: Any) -> None:
    assert same(round_trip(value, "pickle"), value)


@given(st.binary())
def test_raw_passes_bytes_through(value: bytes) -> None:
    for given_value in (value, bytearray(value), memoryview(value)):
        assert same(round_trip(given_value, "raw"), value)


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**4000, -(10**4000)),
        *(True, False, None, -0.0, math.inf, -math.inf, math.nan, 5e-324),
        *("", "\0", "\U0010ffff", b"", (), [], {}, set(), frozenset(), ((((),),),)),
        {(1, "a"): 1, frozenset({2}): 2, None: 3, 1.5: 4, b"k": 5, date(2020, 1, 2): 6},
        {1: "int", "1": "str"},
        *(datetime.min, datetime.max, timedelta.min, timedelta.max, date.min, date.max),
        datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        time(2, 30, fold=1),
        datetime(1, 1, 1, tzinfo=ZoneInfo("Asia/Kathmandu")),
        time(1, tzinfo=ZoneInfo("UTC")),
        time(1, tzinfo=ZoneInfo("Europe/Berlin")),
        UUID(int=0),
        (2**70, [Decimal("0.10")], {"t": (1,)}),
    ],
)
def test_edges_come_back(value: Any) -> None:
    assert same(round_trip(value), value)
    assert same(round_trip(value, out_of_band=True), value)


def test_a_named_fixed_offset_keeps_its_name() -> None:
    value = datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET"))
    assert round_trip(value).tzname() == "CET"
    assert round_trip(datetime(2020, 1, 1, tzinfo=timezone.utc)).tzinfo is timezone.utc


@pytest.mark.parametrize("size", [3, LARGE, 2 * LARGE])
@pytest.mark.parametrize("out_of_band", [False, True])
def test_bytearray_and_memoryview_come_back_as_bytes_whatever_their_size(
    size: int, out_of_band: bool
) -> None:
    value = [bytearray(size), memoryview(bytes(size))]
    found = round_trip(value, out_of_band=out_of_band)
    assert found == value
    assert list(map(type, found)) == [bytes, bytes]


def test_a_memoryview_of_wider_items_comes_back_as_its_memory() -> None:
    view = memoryview(bytes(range(16))).cast("I")
    assert round_trip(view) == bytes(range(16))
    assert round_trip(view, "raw") == bytes(range(16))
    large = memoryview(bytes(2 * LARGE)).cast("Q")
    assert round_trip(large, out_of_band=True) == bytes(2 * LARGE)
    assert round_trip(memoryview(b"abcdef")[::2], "raw") == b"ace"


def test_the_timestamp_of_a_foreign_writer_is_a_datetime_in_utc() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)
    body = msgpack.packb([moment, msgpack.Timestamp(-1, 500_000_000)], datetime=True)
    assert MsgpackDecoder().decode(body, ()) == [
        moment,
        datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=timezone.utc),
    ]


# --- the fast path -------------------------------------------------------------------------------


def test_pack_of_msgpack_is_the_packers_own_method() -> None:
    assert type(encoder().pack.__self__) is msgpack.Packer  # type: ignore[attr-defined]


def test_each_codec_stands_in_the_table_under_its_name() -> None:
    assert list(CODECS) == ["msgpack", "pickle", "raw"]


@pytest.mark.parametrize("name", ["json", "", None, []])
def test_an_encoder_of_an_unknown_codec_is_refused_by_name(name: Any) -> None:
    with pytest.raises(ValueError) as raised:
        encoder(name)
    assert str(raised.value) == (
        f"codec {name!r} is none of 'msgpack', 'pickle', 'raw', and no pubsub.Codec"
    )


def test_packing_within_packing_leaves_the_value_around_it_whole() -> None:
    value = ["x" * 5000, (["y" * 5000, ({"z": "z" * 5000},), {1, 2}], "u"), "v" * 5000]
    enc = encoder()
    for _ in range(3):
        [found] = MsgpackDecoder().decode(*packed(enc, value))
        assert same(found, value)


def test_an_encoder_goes_on_after_errors_at_any_depth() -> None:
    enc = encoder()
    bad: Any = object()
    for _ in range(5):
        for value in (bad, [1, (2, (3, bad))], {"a": {bad}}, (enc,)):
            with pytest.raises(TypeError) as caught:
                enc.pack(value)
            assert isinstance(enc.error(caught.value, value), EncodeError)
            assert same(MsgpackDecoder().decode(*packed(enc, (1, (2,)))), [(1, (2,))])


def test_a_large_value_does_not_stay_in_the_encoder() -> None:
    enc = encoder()
    tracemalloc.start()
    try:
        for value in (["x" * 10_000_000], ("x" * 10_000_000,)):
            enc.pack(value)
            packed_again = enc.pack_out_of_band(value)
            enc.let_go(len(packed_again))
            del packed_again, value
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 11_000_000  # one of the values is still alive in the tuple of the loop


# --- out of band ---------------------------------------------------------------------------------


def test_large_bytes_are_taken_out_without_a_copy_at_both_ends() -> None:
    enc = encoder()
    value = {"a": [1, BIG, (BIG + b"2",)], "b": b"small", "c": {"d": BIG + b"3"}}
    body, buffers = packed(enc, value, out_of_band=True)
    assert contents(buffers[0]) is BIG
    assert [len(buffer) - LARGE for buffer in buffers] == [0, 1, 1]
    assert len(body) < 100
    [found] = MsgpackDecoder().decode(body, buffers)
    assert same(found, value)
    assert found["a"][1] is BIG
    [found] = MsgpackDecoder().decode(body, list(map(arrived, buffers)))
    assert same(found, value)


def test_packing_out_of_band_leaves_the_value_as_it_was() -> None:
    value = {"a": [BIG, (BIG,)], "b": [1]}
    again = {"a": [BIG, (BIG,)], "b": [1]}
    packed(encoder(), value, out_of_band=True)
    assert value == again


@pytest.mark.parametrize("make", [bytearray, lambda data: memoryview(bytearray(data))])
def test_what_happens_to_mutable_bytes_after_packing_changes_nothing(
    make: Callable[[bytes], bytearray],
) -> None:
    value = make(BIG)
    for codec in ("msgpack", "raw"):
        body, buffers = packed(encoder(codec), value, out_of_band=True)
        value[0] = 99
        assert buffers[0].view().readonly
        assert decoder_of(codec).decode(body, buffers) == [BIG]
        value[0] = BIG[0]


def test_bytes_just_below_large_stay_in_the_body() -> None:
    enc = encoder()
    _, buffers = packed(enc, [BIG[1:], bytearray(BIG[1:])], out_of_band=True)
    assert buffers == []


def test_pack_out_of_band_begins_anew() -> None:
    enc = encoder()
    for _ in range(2):
        enc.pack_out_of_band([BIG])
    assert list(map(contents, enc.buffers)) == [BIG]


@pytest.mark.parametrize("codec", ["pickle", "raw"])
def test_large_values_of_pickle_and_raw_travel_out_of_band_by_themselves(codec: str) -> None:
    for method in ("pack", "pack_out_of_band"):
        enc = encoder(codec)
        body = b"\x92" + enc.pack(b"small") + getattr(enc, method)(BIG)
        [buffer] = enc.buffers
        assert len(body) < 50
        decoder = decoder_of(codec, allow_pickle=True)
        for received in (buffer, arrived(buffer)):
            assert same(decoder.decode(body, [received]), [b"small", BIG])
            assert same(decoder.decode_each(body, [received]), [b"small", BIG])


def test_raw_gives_the_very_buffer_that_came() -> None:
    body, buffers = packed(encoder("raw"), BIG)
    assert contents(buffers[0]) is BIG
    assert RawDecoder().decode(body, buffers)[0] is BIG


def deep(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


def test_a_value_too_deep_to_be_searched_for_bytes_is_packed_as_it_is() -> None:
    value = deep(1000, BIG)
    enc = encoder()
    assert enc.pack_out_of_band(value) == enc.pack(value)
    assert enc.buffers == []


@pytest.mark.parametrize("value", [BIG, [BIG], [BIG[1:], BIG[1:]], bytearray(BIG), (1, [BIG])])
def test_too_large_is_found_before_the_copy(value: Any) -> None:
    enc = encoder(max_message=LARGE - 1)
    if value == [BIG[1:], BIG[1:]]:
        enc.pack_out_of_band(value)  # each alone is fine: the caller sees the sum
        return
    with pytest.raises(MessageTooLarge) as caught:
        enc.pack_out_of_band(value)
    assert (caught.value.topic, caught.value.size, caught.value.limit) == (
        "jobs",
        LARGE,
        LARGE - 1,
    )
    assert enc.error(caught.value, value) is caught.value
    assert enc.buffers == []


def test_several_buffers_are_too_large_together() -> None:
    enc = encoder(max_message=3 * LARGE - 1)
    for _ in range(2):  # what counts is one message
        enc.pack_out_of_band([BIG, BIG])
        enc.buffers.clear()
    with pytest.raises(MessageTooLarge) as caught:
        enc.pack_out_of_band([BIG, BIG, BIG])
    assert caught.value.size == 3 * LARGE


@pytest.mark.parametrize("codec", ["pickle", "raw"])
def test_too_large_for_pickle_and_raw(codec: str) -> None:
    enc = encoder(codec, max_message=LARGE - 1)
    for value in (BIG, bytearray(BIG)):
        with pytest.raises(MessageTooLarge) as caught:
            enc.pack(value)
        assert enc.error(caught.value, value) is caught.value


# --- errors of the encoder (their texts: tests/codec/test_explain.py) -------------------------


def error_of(value: Any, codec: str = "msgpack", max_message: int = MAX_MESSAGE) -> Exception:
    enc = encoder(codec, max_message)
    try:
        enc.pack(value)
    except Exception as error:
        found = enc.error(error, value)
        assert enc.buffers == []
        return found
    raise AssertionError(f"{value!r} was packed")


def test_encode_error_carries_topic_and_type() -> None:
    error = error_of({"a": [1, OrderedDict()]})
    assert isinstance(error, EncodeError)
    assert error.topic == "jobs"
    assert error.type_name == "collections.OrderedDict"


def test_a_failed_pack_leaves_no_buffers_behind() -> None:
    enc = encoder()
    with pytest.raises(TypeError) as caught:
        enc.pack_out_of_band([BIG, object()])
    assert isinstance(enc.error(caught.value, [BIG, object()]), EncodeError)
    assert enc.buffers == []
    body, buffers = packed(enc, [BIG], out_of_band=True)
    assert MsgpackDecoder().decode(body, buffers) == [[BIG]]


def test_the_size_of_what_msgpack_refuses_is_told() -> None:
    """As where more than 4 GiB make msgpack fail: what is over the limit is the reason given."""
    value = ["x" * 200, object()]
    error = error_of(value, max_message=100)
    assert isinstance(error, MessageTooLarge)
    assert error.size == 200


def test_an_error_that_nothing_in_the_value_explains_is_told_as_it_is() -> None:
    error = encoder().error(RuntimeError("dictionary changed size during iteration"), {"a": 1})
    assert isinstance(error, EncodeError)
    assert str(error) == (
        "value on topic 'jobs' cannot be encoded "
        "(RuntimeError: dictionary changed size during iteration)"
    )
    assert error.type_name == "dict"
    assert "(MemoryError)" in str(encoder().error(MemoryError(), {"a": 1}))


# --- codecs of a stream --------------------------------------------------------------------------


def test_a_decoder_of_an_unknown_codec_is_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        decoder_of("json")
    assert str(caught.value) == (
        "this stream uses the codec 'json', which this Sub does not know (msgpack, pickle, raw): "
        "give it that one too, with Sub(..., codec=…)"
    )


def test_pickle_needs_consent() -> None:
    with pytest.raises(DecodeError) as caught:
        PickleDecoder()
    assert str(caught.value) == (
        'this stream is pickled (codec="pickle"), which lets its publisher run code here: '
        "use Sub(..., allow_pickle=True) if you trust every publisher of this topic"
    )


RAN: list[str] = []


def run(where: str) -> None:
    RAN.append(where)


class Dangerous:
    """Its pickle runs code at the receiver."""

    def __reduce__(self) -> Any:
        return run, ("here",)


def test_nothing_is_unpickled_without_consent() -> None:
    data = pickle.dumps(Dangerous())
    bodies = [
        b"\x91" + msgpack.packb(data),
        b"\x91" + msgpack.packb(msgpack.ExtType(0x7F, data)),
        data,
    ]
    for codec in ("msgpack", "raw"):
        for body in bodies:
            for decode in (decoder_of(codec).decode, decoder_of(codec).decode_each):
                try:
                    decode(body, [])
                except DecodeError:
                    pass
    assert RAN == []
    PickleDecoder(allow_pickle=True).decode(bodies[0], [])
    assert RAN == ["here"]


def test_a_broken_pickle_costs_only_its_own_message() -> None:
    good = pickle.dumps({"a": 1})
    body = msgpack.packb([good, b"not a pickle", good, 5, b""])
    decoder = PickleDecoder(allow_pickle=True)
    with pytest.raises(DecodeError, match="a message that cannot be unpickled"):
        decoder.decode(body, ())
    found = decoder.decode_each(body, ())
    assert [found[0], found[2]] == [{"a": 1}, {"a": 1}]
    assert [type(found[index]) for index in (1, 3, 4)] == [DecodeError] * 3
    assert str(found[3]) == "a message that is not a pickle"


def test_raw_takes_nothing_but_bytes_from_the_wire() -> None:
    decoder = RawDecoder()
    body = msgpack.packb([b"ok", "text", msgpack.ExtType(TUPLE, b"\x90")])
    with pytest.raises(DecodeError, match="unknown type"):
        decoder.decode(body, ())
    with pytest.raises(DecodeError, match="not bytes"):
        decoder.decode(msgpack.packb(["text"]), ())
    found = decoder.decode_each(body, ())
    assert found[0] == b"ok"
    assert [type(value) for value in found[1:]] == [DecodeError, DecodeError]


# --- one bad message -----------------------------------------------------------------------------

BAD = ext(DATETIME, b"x")


def test_a_bad_message_costs_only_itself() -> None:
    body = b"\x94" + msgpack.packb({"a": 1}) + BAD + msgpack.packb([2]) + ext(99, b"")
    decoder = MsgpackDecoder()
    with pytest.raises(DecodeError):
        decoder.decode(body, ())
    found = decoder.decode_each(body, ())
    assert [found[0], found[2]] == [{"a": 1}, [2]]
    assert str(found[1]).startswith("a message with a broken datetime (")
    assert str(found[3]) == "a message with a value of an unknown type (extension 99)"
    assert found[1].__traceback__ is None
    assert found[1].__cause__ is None


def test_where_the_structure_breaks_the_rest_are_errors() -> None:
    body = b"\x95" + msgpack.packb(1) + BAD + msgpack.packb("two") + b"\xc1\xc1\xc1"
    found = MsgpackDecoder().decode_each(body, ())
    assert [found[0], found[2]] == [1, "two"]
    assert len(found) == 5
    assert [str(found[3]), str(found[4])] == ["a batch that is broken from here on"] * 2


def test_a_batch_that_announces_more_than_it_has_room_for_is_refused_whole() -> None:
    decoder = MsgpackDecoder()
    for decode in (decoder.decode, decoder.decode_each):
        with pytest.raises(DecodeError):
            decode(b"\xdd\xff\xff\xff\xff" + b"\x00" * 5000, ())
    with pytest.raises(DecodeError) as caught:
        decoder.decode_each(b"\xdd\x00\x01\x00\x00", ())
    assert str(caught.value) == "a batch that announces 65,536 values in 5 bytes"


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x81\x01\x02", b"\xdc", b"\xc1", b"\xa1x"])
def test_a_body_that_is_no_array_is_refused(body: bytes) -> None:
    decoder = MsgpackDecoder()
    for decode in (decoder.decode, decoder.decode_each):
        with pytest.raises(DecodeError):
            decode(body, ())


@pytest.mark.parametrize("size", [1, 3000])
def test_bytes_after_the_array_are_refused_but_cost_no_message(size: int) -> None:
    body = msgpack.packb(["x" * size]) + b"\x00"
    decoder = MsgpackDecoder()
    with pytest.raises(DecodeError):
        decoder.decode(body, ())
    assert decoder.decode_each(body, ()) == ["x" * size]


def test_a_buffer_is_given_out_once() -> None:
    decoder = MsgpackDecoder()
    reference = ext(BUFFER, b"\0\0\0\0")
    with pytest.raises(DecodeError, match="its buffer is missing"):
        decoder.decode(b"\x92" + reference + reference, whole(BIG))
    found = decoder.decode_each(b"\x92" + reference + reference, whole(BIG))
    assert found[0] is BIG
    assert isinstance(found[1], DecodeError)


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0" * 5])
def test_a_buffer_that_is_not_there_is_an_error(payload: bytes) -> None:
    body = b"\x91" + ext(BUFFER, payload)
    for codec in CODECS:
        decoder = decoder_of(codec, allow_pickle=True)
        for buffers in ((), whole(BIG)):
            with pytest.raises(DecodeError, match="a message with a broken buffer"):
                decoder.decode(body, buffers)


def test_buffers_that_belong_to_no_value_are_an_error() -> None:
    decoder = MsgpackDecoder()
    with pytest.raises(DecodeError, match="buffers that belong to no value"):
        decoder.decode(b"\x91\x01", whole(BIG))
    assert decoder.decode_each(b"\x91\x01", whole(BIG)) == [1]


def test_buffers_do_not_outlive_their_batch() -> None:
    decoder = MsgpackDecoder()
    reference = b"\x91" + ext(BUFFER, b"\0\0\0\0")
    with pytest.raises(DecodeError):
        decoder.decode(b"\x92" + BAD + reference, whole(BIG))
    with pytest.raises(DecodeError):
        decoder.decode(reference, ())
    assert isinstance(decoder.decode_each(reference, ())[0], DecodeError)


# --- hostile bytes -------------------------------------------------------------------------------


def peak_of(action: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(body: bytes, buffers: list[Buffer] | None = None) -> int:
    """Asserts that it is, and returns the memory that this took."""

    def decode() -> None:
        with pytest.raises(DecodeError):
            MsgpackDecoder().decode(body, buffers or [])

    def decode_each() -> None:
        try:
            found = MsgpackDecoder().decode_each(body, buffers or [])
        except DecodeError:
            return
        assert len(found) <= len(body)

    return max(peak_of(decode), peak_of(decode_each))


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_decode_error(body: bytes) -> None:
    for codec in CODECS:
        decoder = decoder_of(codec, allow_pickle=codec == "pickle")
        for decode in (decoder.decode, decoder.decode_each):
            try:
                found = decode(body, [])
            except DecodeError:
                continue
            assert type(found) is list


@given(
    st.recursive(
        st.binary(max_size=40) | VALUES.map(encoder().pack),
        lambda inner: st.builds(
            lambda code, parts: ext(code, bytes((0x90 | len(parts),)) + b"".join(parts)),
            st.integers(0, 20),
            st.lists(inner, max_size=3),
        ),
        max_leaves=4,
    ),
    st.integers(0, 20),
    st.lists(st.binary(max_size=20).map(WholeBuffer), max_size=2),
)
def test_random_extensions_raise_nothing_but_decode_error(
    payload: bytes, code: int, buffers: list[Buffer]
) -> None:
    body = b"\x91" + ext(code, payload)
    decoder = MsgpackDecoder()
    try:
        decoder.decode(body, buffers)
    except DecodeError:
        pass
    assert len(decoder.decode_each(body, buffers)) == 1
    assert same(decoder.decode(b"\x91" + encoder().pack((1, (2,))), ()), [(1, (2,))])


@given(st.data())
def test_flipped_bytes_raise_nothing_but_decode_error(data: st.DataObject) -> None:
    body = bytearray(b"\x91" + encoder().pack(data.draw(VALUES)))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decoder = MsgpackDecoder()
    for decode in (decoder.decode, decoder.decode_each):
        try:
            decode(body, [])
        except DecodeError:
            pass


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x01", b"\xdc\x00\x01", b"\xdf\0\0\0\1\1"])
@pytest.mark.parametrize("depth", [1025, 10_000, 100_000])
def test_nesting_without_end_is_refused(opening: bytes, depth: int) -> None:
    assert refused(b"\x91" + opening * depth + b"\x00") < 16 * len(opening) * depth + 1_000_000


@pytest.mark.parametrize("code", [TUPLE, SET])
def test_extensions_in_extensions_without_end_are_refused(code: int) -> None:
    body = b"\x91" + nested_ext(code, 10_000)
    assert refused(body) < 80 * len(body) + 2_000_000


def test_a_large_value_in_extensions_in_extensions_takes_no_more_than_empty_lists_do() -> None:
    """Each depth holds its payload twice: at most 64 times the bytes, as msgpack's `[]`."""
    body = msgpack.packb([b"x" * 1_000_000])
    for _ in range(33):
        body = b"\x91" + ext(TUPLE, body)
    assert refused(body) < 72 * len(body)


def test_extensions_in_extensions_are_refused_in_a_small_thread_too() -> None:
    """The C stack is not what limits them: 256 KiB are enough."""
    body = b"\x91" + nested_ext(TUPLE, 10_000)
    deepest: Any = ()
    for _ in range(31):
        deepest = (deepest,)
    results: list[Any] = []

    def decode() -> None:
        results.append(same(round_trip(deepest), deepest))
        try:
            MsgpackDecoder().decode(body, ())
        except DecodeError as error:
            results.append(str(error))

    size = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert results == [True, "a message with tuples, sets and own types nested too deep"]


def test_tuples_nest_as_deep_at_the_decoder_as_at_the_encoder() -> None:
    value: Any = ()
    for _ in range(31):
        value = (value,)
    assert same(round_trip(value), value)
    assert "within more than 32 tuples, sets and own types" in str(error_of((value,)))


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("fill", [0, 100, 5000])
def test_lengths_that_are_not_there_take_no_memory(header: bytes, fill: int) -> None:
    body = b"\x91" + header + b"\x00" * fill
    assert refused(body) < 300_000
    assert refused(b"\x91" + ext(TUPLE, header + b"\x00" * fill)) < 300_000
    assert refused(b"\x91\xc9\xff\xff\xff\xff" + bytes((TUPLE,)) + b"\x00" * fill) < 300_000


@pytest.mark.parametrize("size", [1000, 10_000, 1_000_000])
def test_arrays_in_arrays_that_announce_what_is_not_there_take_little_memory(size: int) -> None:
    """Each would make a list of `size` slots before the next is looked at."""
    header = b"\xdd" + struct.pack(">I", size)
    body = (header * 1000 + b"\x00" * size)[:size]
    limit = 20 * size + 4_000_000
    assert refused(body) < limit
    assert refused(b"\x91" + ext(TUPLE, body)) < limit
    for _ in range(20):
        body = b"\x91" + ext(TUPLE, body)
    assert refused(body) < 64 * size + 4_000_000


def test_a_hundred_thousand_bad_messages_share_their_errors() -> None:
    body = b"\xdd" + struct.pack(">I", 100_000) + ext(99, b"x") * 100_000
    found: list[Any] = []

    def decode() -> None:
        found.extend(MsgpackDecoder().decode_each(body, ()))

    assert peak_of(decode) < 16 * len(body) + 1_000_000
    assert len(found) == 100_000
    assert len(set(map(id, found))) == 1


def test_bad_messages_of_many_kinds_share_their_errors_after_a_while() -> None:
    unknown = [bytes((0xD4, code, 0)) for code in range(20, 250)]
    body = msgpack.Packer().pack_array_header(10 * len(unknown)) + b"".join(unknown) * 10
    found = MsgpackDecoder().decode_each(body, ())
    assert len(found) == 10 * len(unknown)
    assert len(set(map(id, found))) == 101
    assert str(found[-1]) == "a message that cannot be decoded"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({}, id="dict in a set"),
        pytest.param([], id="list in a set"),
    ],
)
def test_what_cannot_be_hashed_is_no_member(value: Any) -> None:
    refused(b"\x91" + ext(SET, msgpack.packb([value])))


@pytest.mark.parametrize("key", [b"\x90", b"\x80", ext(SET, b"\x90"), ext(TUPLE, b"\x91\x90")])
def test_what_cannot_be_hashed_is_no_key(key: bytes) -> None:
    refused(b"\x91\x81" + key + b"\x01")


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x80", b"\x90\x90", b"\x91", b"\xc1"])
def test_a_tuple_that_is_no_array_is_refused(payload: bytes) -> None:
    refused(b"\x91" + ext(TUPLE, payload))


def test_text_that_is_not_utf_8_is_refused() -> None:
    refused(b"\x91\xa2\xff\xff")
    refused(b"\x91\xa3\xed\xa0\x80")


@pytest.mark.parametrize(
    "stamp",
    [b"", b"\0" * 3, b"\0\0\0\0\x7f" + b"\xff" * 7, b"\0\0\0\0\x80" + b"\0" * 7],
)
def test_a_timestamp_out_of_range_is_refused(stamp: bytes) -> None:
    refused(b"\x91\xc7" + bytes((len(stamp), 0xFF)) + stamp)


def test_a_million_digits_come_back_quickly() -> None:
    value = 1 << 4_000_000
    assert round_trip(value) == value


def test_the_body_may_be_any_kind_of_bytes_but_not_of_wider_items() -> None:
    decoder = MsgpackDecoder()
    assert decoder.decode(memoryview(b"\x91\x01"), ()) == [1]
    with pytest.raises(DecodeError):
        decoder.decode(memoryview(b"\x91\x01").cast("H"), ())


# --- without numpy -------------------------------------------------------------------------------

WITHOUT_NUMPY = """
import sys
blocked = sys.argv[1] == "blocked"
if blocked:
    sys.modules["numpy"] = None
from pubsub.codec.decoder import MsgpackDecoder
from pubsub.codec.encoder import MsgpackEncoder
from pubsub.errors import DecodeError, EncodeError
assert blocked or "numpy" not in sys.modules, "the codec imports numpy"
enc = MsgpackEncoder("t", 2**20)
value = {"a": (1, {2}, 2**70), "b": [1j]}
assert MsgpackDecoder().decode(b"\\x91" + enc.pack(value), ()) == [value]
try:
    enc.pack([object()])
except TypeError as error:
    assert isinstance(enc.error(error, [object()]), EncodeError)
else:
    raise AssertionError
assert blocked or "numpy" not in sys.modules, "the codec imports numpy"
array = bytes.fromhex("c713" "0d" "0001" "0000000000000001" "00000004" "a37c6231" "01")
scalar = bytes.fromhex("c709" "0f" "00000004" "a37c6231" "01")
for body in (array, scalar):
    try:
        found = MsgpackDecoder().decode(b"\\x91" + body, ())
    except DecodeError as error:
        print(error)
    else:
        print(found)
"""


def run_without_numpy(how: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMPY, how],
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_without_numpy_all_else_works_and_an_array_is_a_decode_error() -> None:
    lines = run_without_numpy("blocked")
    assert len(lines) == 2
    assert lines[0].startswith(
        "a message with a broken numpy array (ValueError: numpy cannot be imported here"
    )
    assert lines[1].startswith(
        "a message with a broken numpy scalar (ValueError: numpy cannot be imported here"
    )


def test_numpy_is_imported_only_when_an_array_arrives() -> None:
    pytest.importorskip("numpy")
    lines = run_without_numpy("unused")
    assert lines[0] == "[array([ True])]"


# --- the pure-Python msgpack ---------------------------------------------------------------------


def test_the_pure_python_msgpack_speaks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on PyPy, or with MSGPACK_PUREPYTHON."""
    from msgpack import fallback

    value = {"a": (1, {2}, 2**70, [Decimal(1)]), "b": [BIG, b"x"], (1, 2): "k" * 3000}
    expected = packed(encoder(), value, out_of_band=True)
    for name in ("Packer", "Unpacker", "unpackb"):
        monkeypatch.setattr(msgpack, name, getattr(fallback, name))
    body, buffers = packed(encoder(), value, out_of_band=True)
    assert (body, list(map(contents, buffers))) == (expected[0], list(map(contents, expected[1])))
    decoder = MsgpackDecoder()
    assert same(decoder.decode(body, buffers), [value])
    assert same(decoder.decode_each(body, buffers), [value])
    with pytest.raises(DecodeError):
        decoder.decode(b"\x92" + BAD + b"\x01", ())
    assert decoder.decode_each(b"\x92" + BAD + b"\x01", ())[1] == 1
    assert "is a collections.OrderedDict" in str(error_of([OrderedDict()]))
