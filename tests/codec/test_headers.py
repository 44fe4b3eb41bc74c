"""Headers: what was put comes back, and whatever else comes is refused when it is asked for."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub import DecodeError, EncodeError, Message, MessageTooLarge
from pubsub.codec.headers import MAX_HEADERS, BatchHeaders, Headed, headers_of, pack_headers

headers_of_one = st.dictionaries(st.text(max_size=20), st.text(max_size=20) | st.binary(max_size=9))


def came(raw: bytes, first: int = 0) -> BatchHeaders:
    return BatchHeaders(raw, first, "t", "10.0.0.7:4711#0")


def packed(*batch: dict[str, str | bytes] | None) -> bytes:
    """Those of a batch; None: the message has none."""
    return headers_of(
        [b"\1" if each is None else Headed(b"\1", pack_headers(each, "t")) for each in batch],
        len(batch),
    )


@given(st.lists(st.none() | headers_of_one, max_size=9), st.integers(0, 2**63 - 10))
def test_the_headers_of_each_message_come_back(batch: list[Any], first: int) -> None:
    raw = packed(*batch)
    assert bool(raw) is any(each is not None for each in batch)
    if raw:
        found = came(raw, first)
        assert [found.of(first + i) for i in range(len(batch))] == [each or {} for each in batch]


def test_a_batch_without_headers_has_no_byte_of_them() -> None:
    assert packed() == packed(None, None) == b""


def test_on_the_wire_they_are_one_map_in_fixed_widths() -> None:
    raw = packed(None, {"a": "b"}, None, {"c": b"d"})
    assert msgpack.unpackb(raw, strict_map_key=False) == {1: {"a": "b"}, 3: {"c": b"d"}}
    assert raw[:10] == b"\xdf\0\0\0\2\xce\0\0\0\1"


def test_only_the_messages_of_the_batch_count() -> None:
    parts = [b"\1", Headed(b"\1", pack_headers({"a": "b"}, "t"))]
    assert headers_of(parts, 1) == b""


@given(headers_of_one)
def test_a_message_counts_for_at_least_what_it_takes_on_the_wire(headers: Any) -> None:
    message = Headed(b"value", pack_headers(headers, "t"))
    assert len(message) == 5 + len(packed(headers))
    assert b"".join((b"[", message, b"]")) == b"[value]"
    assert len(packed(*[headers] * 5)) <= 5 * (len(message) - 5)


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType])
def test_any_mapping_will_do(kind: Any) -> None:
    assert pack_headers(kind({"a": "b"}), "t") == pack_headers({"a": "b"}, "t")


class Text(str):
    """A str, and not a str."""


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ([("a", "b")], "headers on topic 't' are a list: give a dict"),
        ("a=b", "headers on topic 't' are a str: give a dict"),
        ({1: "b"}, "the header 1 on topic 't' has an int for a name"),
        ({b"a": "b"}, "the header b'a' on topic 't' has a bytes for a name"),
        ({Text("a"): "b"}, "Text for a name"),
        ({"a": 1}, "the header 'a' on topic 't' is an int: a header is str or bytes"),
        ({"a": None}, "the header 'a' on topic 't' is a NoneType"),
        ({"a": Text("b")}, "Text: a header is str or bytes"),
        ({"a": bytearray(b"b")}, "the header 'a' on topic 't' is a bytearray"),
        ({"a": "\ud800"}, "no text (UnicodeEncodeError"),
        ({"\ud800": "a"}, "no text (UnicodeEncodeError"),
    ],
)
def test_what_is_no_header_is_refused_by_name(headers: Any, what: str) -> None:
    with pytest.raises(EncodeError) as caught:
        pack_headers(headers, "t")
    assert what in str(caught.value)
    assert caught.value.topic == "t"
    assert pack_headers({"a": "b"}, "t") == b"\x81\xa1a\xa1b"  # nothing of it is left


@pytest.mark.parametrize(
    "headers",
    [{"a": "x" * MAX_HEADERS}, {"é" * MAX_HEADERS: ""}, {str(n): b"" for n in range(20_000)}],
)
def test_too_much_is_refused(headers: dict[str, str | bytes]) -> None:
    with pytest.raises(MessageTooLarge, match=r"where a message may have 65,536 bytes") as caught:
        pack_headers(headers, "t")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.topic, error.limit, error.headers) == ("t", MAX_HEADERS, len(headers))
    assert error.size > MAX_HEADERS


def test_as_much_as_may_be_is_taken() -> None:
    most = {"a": "x" * (MAX_HEADERS - 6)}
    assert len(pack_headers(most, "t")) == MAX_HEADERS
    with pytest.raises(MessageTooLarge):
        pack_headers({"a": most["a"] + "x"}, "t")


# --- what a stranger sends --------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\xc1", b"\x90", b"\xc0", b"\x81", b"\x80\x80", b"\xdf\xff\xff\xff\xff"),
        msgpack.packb({"0": {"a": "b"}}),
        msgpack.packb({0: {"a": "b"}, True: {}, b"1": {}}),
        msgpack.packb({0: []}),
        msgpack.packb({0: [1]}),
        msgpack.packb({0: "a"}),
        msgpack.packb({0: {"a": 1}}),
        msgpack.packb({0: {"a": None}}),
        msgpack.packb({0: {"a": {"b": "c"}}}),
        msgpack.packb({0: {1: "c"}}),
        msgpack.packb({0: {b"a": "c"}}),
        msgpack.packb({0: {"a": msgpack.ExtType(1, b"")}}),
        msgpack.packb({0: {"a": msgpack.ExtType(1, b"x" * 500)}}),
        msgpack.packb({0: {"a": msgpack.Timestamp(1)}}),
        b"\x81\x00\x81\xa1a\xa1\xff",  # no UTF-8
        b"\x81\x00" * 2000 + b"\xc0",
        b"\x81\x80\x80",  # a map for a key
    ],
)
def test_what_is_no_header_raises_when_it_is_asked_for_and_names_who_sent_it(raw: bytes) -> None:
    found = came(raw, 40)
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            found.of(40)
        assert "the headers of message 40 from 10.0.0.7:4711#0 on 't' cannot" in str(caught.value)
        assert (caught.value.topic, caught.value.publisher) == ("t", "10.0.0.7:4711#0")


def test_what_is_wrong_with_one_message_leaves_the_others() -> None:
    found = came(msgpack.packb({0: {"a": 1}, 2: {"a": "b"}, 7: {"of": "none"}, -1: 5}))
    assert found.of(2) == {"a": "b"}
    assert found.of(1) == {}
    with pytest.raises(DecodeError):
        found.of(0)


@given(st.binary(max_size=200))
def test_of_any_bytes_come_headers_or_a_decode_error(raw: bytes) -> None:
    found = came(raw)
    for seq in range(3):
        try:
            headers = found.of(seq)
        except DecodeError:
            continue
        assert all(type(name) is str for name in headers)
        assert all(type(value) in (str, bytes) for value in headers.values())


def test_what_announces_more_than_is_there_takes_no_memory() -> None:
    raw = b"\xdf\0\0\x20\0" + b"\xdd\0\0\x40\0" * 8000  # arrays of 16,384 items, in each other
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            came(raw).of(0)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# --- a Message --------------------------------------------------------------------------------

FIVE = (21.5, "temp", "10.0.0.7:4711#0", 3, 1.5)


def test_a_message_is_a_tuple_of_five_and_the_rest_has_names() -> None:
    message = Message(*FIVE, name="kitchen", headers={"unit": "C"})
    value, topic, publisher, seq, sent_at = message
    assert (value, topic, publisher, seq, sent_at) == FIVE == message
    assert len(message) == 5
    assert message._fields == ("value", "topic", "publisher", "seq", "sent_at")
    assert (message.name, message.headers) == ("kitchen", {"unit": "C"})
    assert (Message(*FIVE).name, Message(*FIVE).headers) == ("", {})
    for name in ("value", "name", "headers"):
        with pytest.raises(AttributeError):
            setattr(message, name, "else")


@pytest.mark.parametrize("more", [{}, {"name": "n"}, {"headers": {"a": b"b"}}])
def test_a_message_survives_copies_and_pickling(more: dict[str, Any]) -> None:
    message = Message(*FIVE, **more)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(message, protocol))
        assert type(again) is Message
        assert again == message
        assert again.headers == message.headers
    for again in (copy.copy(message), copy.deepcopy(message), message._replace()):
        assert (again, again.name, again.headers) == (message, message.name, message.headers)
    assert message._replace(value=1) == Message(1, *FIVE[1:], **more)
    assert message._replace(headers={"c": "d"}).headers == {"c": "d"}


def test_messages_are_equal_where_all_of_them_is() -> None:
    plain, headed = Message(*FIVE), Message(*FIVE, headers={"a": "b"})
    assert headed == Message(*FIVE, headers={"a": "b"})
    assert hash(headed) == hash(Message(*FIVE, headers={"a": "b"}))
    assert headed != plain
    assert plain != Message(*FIVE, name="n")
    assert plain == FIVE
    assert plain != (*FIVE[:4], 2.0)


def test_a_message_shows_what_it_has() -> None:
    assert repr(Message(*FIVE)) == (
        "Message(value=21.5, topic='temp', publisher='10.0.0.7:4711#0', seq=3, sent_at=1.5)"
    )
    shown = repr(Message(*FIVE, name="n", headers={"a": b"b"}))
    assert shown.endswith("sent_at=1.5, name='n', headers={'a': b'b'})")


def test_headers_that_cannot_be_decoded_are_shown_as_such() -> None:
    message = Message(*FIVE)
    message._headers = came(b"\xc1", 3)
    assert "headers=<the headers of message 3 from" in repr(message)
    with pytest.raises(DecodeError):
        message.headers  # noqa: B018


def test_the_headers_of_a_message_are_its_own() -> None:
    given: dict[str, str | bytes] = {"a": "b"}
    message = Message(*FIVE, headers=given)
    given["a"] = "c"
    assert message.headers == {"a": "b"}
    assert message.headers is message.headers
