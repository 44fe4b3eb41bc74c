"""The texts of EncodeError: which part, where, why, and the way out."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections import ChainMap, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest

from pubsub.codec.codecs import codec_of
from pubsub.codec.encoder import MsgpackEncoder
from pubsub.errors import EncodeError

SAY = ", name, to_wire, from_wire"
PICKLE = 'or use Pub(..., codec="pickle") with Sub(..., allow_pickle=True)'


def register(name: str, more: str = "") -> str:
    return f"teach both sides pubsub.register({name}{more})"


class Thing:
    pass


class Color(enum.IntEnum):
    RED = 1


class Shape(enum.Enum):
    ROUND = 1


class Point(NamedTuple):
    x: int
    y: int


Pair = namedtuple("Pair", "a b")  # the old kind, too


@dataclasses.dataclass
class Record:
    x: int


class Model:  # a real one: test_own_types.py
    def model_dump(self) -> dict[str, int]:
        return {}


class Frame:
    def to_dict(self) -> dict[str, int]:
        return {}


class Words(str):
    __slots__ = ()


class Moment(datetime):
    pass


def error_of(value: Any, codec: str = "msgpack") -> EncodeError:
    enc = codec_of(codec).encoder("jobs", 2**28)
    try:
        enc.pack(value)
    except Exception as cause:
        error = enc.error(cause, value)
        assert isinstance(error, EncodeError)
        assert error.topic == "jobs"
        return error
    raise AssertionError("it was packed")


def test_the_whole_text() -> None:
    error = error_of({"a": [1, 2, 3, Thing()]})
    assert str(error) == (
        f"value['a'][3] on topic 'jobs' is a {__name__}.Thing, which msgpack cannot carry: "
        f"convert it, {register('Thing', SAY)}, {PICKLE}"
    )
    assert error.type_name == f"{__name__}.Thing"


def test_the_whole_text_for_a_subclass() -> None:
    error = error_of(OrderedDict(a=1))
    assert str(error) == (
        "value on topic 'jobs' is a collections.OrderedDict, which would come back as a dict: "
        f"convert it with dict(...), {PICKLE}"
    )
    assert error.type_name == "collections.OrderedDict"


def test_the_whole_text_for_raw() -> None:
    error = error_of({"a": 1}, "raw")
    assert str(error) == (
        "value on topic 'jobs' is a dict, and codec=\"raw\" carries only bytes, bytearray and "
        'memoryview: encode it first, or use Pub(..., codec="msgpack")'
    )
    assert error.type_name == "dict"


def test_the_whole_text_for_pickle() -> None:
    error = error_of({"a": [1, {"b": threading.Lock()}]}, "pickle")
    assert str(error) == (
        "value['a'][1]['b'] on topic 'jobs' is a _thread.lock, which cannot be pickled "
        "(TypeError: cannot pickle '_thread.lock' object): "
        "leave it out, or teach its class to be pickled"
    )
    assert error.type_name == "_thread.lock"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Thing(), "value"),
        ([Thing()], "value[0]"),
        ((1, [2, (3, Thing())]), "value[1][1][1]"),
        ({"a": {1: {None: Thing()}}}, "value['a'][1][None]"),
        ({"a": {Thing(): 1}}, "a key of value['a']"),
        ({(1, Thing()): 1}, "(a key of value)[1]"),
        ([{1, Thing}], "a member of value[0]"),
        ({frozenset({Thing}): 1}, "a member of (a key of value)"),
        ({b"k": Thing()}, "value[b'k']"),
        ({(1, 2): Thing()}, "value[<tuple>]"),
        ({"x" * 50: Thing()}, f"value['{'x' * 40}'…]"),
        ({2**200: Thing()}, "value[<int>]"),
    ],
)
def test_the_place(value: Any, place: str) -> None:
    assert str(error_of(value)).startswith(f"{place} on topic 'jobs' is a ")


def test_the_first_that_packing_meets_is_named() -> None:
    assert error_of([(1, {2: Thing()}), OrderedDict()]).type_name == f"{__name__}.Thing"
    assert error_of([OrderedDict(), Thing()]).type_name == "collections.OrderedDict"


def generate() -> Iterator[int]:
    yield 1


async def wait() -> None:
    pass


@pytest.mark.parametrize(
    ("value", "base", "remedy"),
    [
        (Color.RED, "an int", f"send its .value, {register('Color')}"),
        (Point(1, 2), "a tuple", "convert it with tuple(...) or ._asdict()"),
        (Pair(1, 2), "a tuple", "convert it with tuple(...) or ._asdict()"),
        (defaultdict(int), "a dict", "convert it with dict(...)"),
        (Words("x"), "a str", "convert it with str(...)"),
        (Moment(2020, 1, 1), "a datetime.datetime", "convert it to a datetime.datetime"),
    ],
)
def test_a_subclass_would_come_back_as_its_base(value: Any, base: str, remedy: str) -> None:
    text = str(error_of([value]))
    assert f", which would come back as {base}: {remedy}, {PICKLE}" in text


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (Shape.ROUND, f"send its .value, {register('Shape')}"),
        (Record(1), f"convert it with dataclasses.asdict(...), {register('Record')}"),
        (Model(), f"convert it with .model_dump(), {register('Model', SAY)}"),
        (Path("a"), "convert it with str(...)"),
        (PureWindowsPath("a"), "convert it with str(...)"),
        (Frame(), f"convert it with .to_dict(), {register('Frame', SAY)}"),
        (Mock(), f"convert it, {register('Mock', SAY)}"),
        (ChainMap(), "convert it with dict(...)"),
        (MappingProxyType({}), "convert it with dict(...)"),
        (deque(), "convert it with list(...)"),
        (range(3), "convert it with list(...)"),
        (Thing, "convert it"),
    ],
)
def test_what_to_do_instead(value: Any, remedy: str) -> None:
    assert str(error_of(value)).endswith(f", which msgpack cannot carry: {remedy}, {PICKLE}")


@pytest.mark.parametrize("value", [generate(), {}.keys(), {}.values(), {}.items(), iter([])])
def test_pickle_is_not_the_way_out_for_an_iterator(value: Any) -> None:
    text = str(error_of(value))
    assert text.endswith(", which msgpack cannot carry: convert it with list(...)")


@pytest.mark.parametrize("value", [lambda: 1, test_the_whole_text])
def test_pickle_is_not_the_way_out_for_a_function(value: Any) -> None:
    assert str(error_of(value)).endswith(
        "is a function, which msgpack cannot carry: send its name, or give Pub and Sub "
        "codec=pubsub.Codec.cloudpickle()"
    )


def test_a_coroutine_that_was_not_awaited() -> None:
    value = wait()
    text = str(error_of(value))
    value.close()
    assert text == (
        "value on topic 'jobs' is a coroutine, which msgpack cannot carry: await it first"
    )


def test_a_list_that_contains_itself() -> None:
    value: dict[str, Any] = {"name": "x", "children": []}
    value["children"].append({"parent": value})
    assert str(error_of(value)) == (
        "value['children'][0]['parent'] on topic 'jobs' is a dict that contains itself: "
        f"break the cycle, {PICKLE}"
    )


def test_the_same_object_twice_is_no_cycle() -> None:
    shared = [1]
    enc = MsgpackEncoder("jobs", 2**28)
    enc.pack([shared, {"a": shared}, (shared, shared)])
    assert error_of([shared, shared, Thing()]).type_name == f"{__name__}.Thing"


@pytest.mark.parametrize("levels", [1100, 100_000])
def test_lists_nested_too_deep(levels: int) -> None:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    text = str(error_of({"tree": value}))
    assert text.startswith("value['tree'][0]")
    assert text.endswith(
        "…[0][0][0][0][0][0][0][0][0][0] on topic 'jobs' is a list nested more than 1,024 levels "
        "deep: flatten it"
    )
    assert len(text) < 300
    while value:  # piece by piece: freeing such a value at one go is deep as well
        value = value.pop()


def test_tuples_nested_too_deep() -> None:
    value: Any = ()
    for _ in range(32):
        value = (value,)
    assert str(error_of({"t": value})) == (
        f"value['t']{'[0]' * 32} on topic 'jobs' is a tuple within more than 32 tuples, sets "
        f"and own types: use lists, {PICKLE}"
    )


def test_a_lone_surrogate() -> None:
    assert str(error_of({"name": "ab\ud800"})) == (
        "value['name'] on topic 'jobs' is a str with a lone surrogate at index 2, which UTF-8 "
        f'cannot carry: clean it with .encode("utf-8", "replace").decode(), {PICKLE}'
    )
    assert "a key of value on topic 'jobs' is a str with a lone" in str(error_of({"\udfff": 1}))


def test_a_memoryview_with_holes() -> None:
    assert str(error_of([memoryview(b"abcd")[::2]])) == (
        "value[0] on topic 'jobs' is a memoryview of memory that is not contiguous: "
        "convert it with bytes(...)"
    )


def test_a_memoryview_that_was_released() -> None:
    view = memoryview(b"abcd")
    view.release()
    assert str(error_of([view])).startswith(
        "value[0] on topic 'jobs' is a memoryview that cannot be packed (ValueError: "
    )


def test_what_cannot_be_pickled_is_found_in_every_container() -> None:
    lock = threading.Lock()
    for value, place in [
        (lock, "value"),
        ((1, lock), "value[1]"),
        ({lock: 1}, "a key of value"),
        ({lock}, "a member of value"),
    ]:
        assert str(error_of(value, "pickle")).startswith(
            f"{place} on topic 'jobs' is a _thread.lock"
        )


def test_a_value_too_deep_to_pickle() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    text = str(error_of(value, "pickle"))
    assert "is a list, which cannot be pickled (RecursionError" in text
    assert len(text) < 500
    while value:
        value = value.pop()


class Liar:
    """Raises whatever it is asked."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


def test_an_object_that_raises_when_it_is_looked_at_is_still_an_encode_error() -> None:
    error = error_of([Liar()])
    assert "cannot be" in str(error)


def test_a_nameless_type() -> None:
    kind = type("", (), {})
    assert "value on topic 'jobs' is a " in str(error_of(kind()))
