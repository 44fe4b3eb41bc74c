"""Own types: what is registered comes back as itself; what is not is said, and never imported."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.codec import own_types
from pubsub.codec.codecs import codec_of
from pubsub.codec.decoder import MsgpackDecoder
from pubsub.codec.encoder import LARGE, MsgpackEncoder
from pubsub.codec.extension_types import BUFFER, OWN
from pubsub.codec.own_types import register
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge
from pubsub.wire.buffers import Buffer
from tests.codec.test_codec import VALUES, same
from tests.wire.buffers import contents

BIG = bytes(range(256)) * (LARGE // 256)
MAX_MESSAGE = 2**28


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    """The table is the process's own: each test leaves it as it was."""
    tables: tuple[dict[Any, Any], ...] = (own_types.BY_TYPE, own_types.BY_NAME)
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


class Box:
    """Holds whatever it is given; travels as that."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return type(other) is Box and same(self.inner, other.inner)

    def __hash__(self) -> int:
        return 1


register_box = partial(register, Box, "box", lambda box: box.inner, Box)


def packed(value: Any, max_message: int = MAX_MESSAGE) -> tuple[bytes, list[Buffer]]:
    enc = MsgpackEncoder("jobs", max_message)
    body = b"\x91" + enc.pack(value)
    return body, list(enc.take())


def round_trip(value: Any) -> Any:
    [found] = MsgpackDecoder().decode(*packed(value))
    return found


def error_of(value: Any, enc: MsgpackEncoder | None = None) -> EncodeError:
    enc = enc or MsgpackEncoder("jobs", MAX_MESSAGE)
    with pytest.raises(Exception) as caught:
        enc.pack(value)
    found = enc.error(caught.value, value)
    assert isinstance(found, EncodeError)
    assert enc.buffers == []
    return found


def refused(payload: bytes) -> str:
    body = b"\x91" + msgpack.packb(msgpack.ExtType(OWN, payload))
    decoder = MsgpackDecoder()
    with pytest.raises(DecodeError) as caught:
        decoder.decode(body)
    [found] = decoder.decode_each(body)
    assert str(found) == str(caught.value)
    return str(found)


# --- there and back --------------------------------------------------------------------


def test_the_bytes_of_an_own_type() -> None:
    """They are protocol, and must never change."""
    register_box()
    body, buffers = packed(Box([1, "a"]))
    assert body == b"\x91" + msgpack.packb(msgpack.ExtType(OWN, b"\x03box\x92\x01\xa1a"))
    assert buffers == []


@given(
    st.recursive(
        VALUES,
        lambda inner: st.one_of(
            inner.map(Box),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3) | st.integers().map(Box), inner, max_size=3),
        ),
        max_leaves=5,
    )
)
def test_an_own_type_comes_back_wherever_it_lies(value: Any) -> None:
    register_box()
    body, buffers = packed(value)
    assert same(MsgpackDecoder().decode(body, buffers), [value])
    assert same(MsgpackDecoder().decode_each(body, buffers), [value])


def test_it_stands_for_what_msgpack_would_refuse_alone() -> None:
    """A subclass of a built-in type, which would come back as its base."""

    class Words(str):
        __slots__ = ()

    register(Words, "words", str, Words)
    found = round_trip([Words("a"), "a"])
    assert list(map(type, found)) == [Words, str]

    class More(Words):
        __slots__ = ()

    assert "would come back as a str" in str(error_of(More("a")))


def test_large_bytes_and_arrays_in_it_travel_out_of_band() -> None:
    np = pytest.importorskip("numpy")
    register_box()
    array = np.arange(LARGE)
    value = {"a": Box({"b": [BIG, 1]}), "c": Box(Box((BIG + b"2", array))), "d": Box(BIG + b"3")}
    body, buffers = packed(value)
    assert len(body) < 200
    assert contents(buffers[0]) is BIG
    assert list(map(len, buffers)) == [LARGE, LARGE + 1, array.nbytes, LARGE + 1]
    [found] = MsgpackDecoder().decode(body, buffers)
    assert found["a"] == value["a"]
    assert found["a"].inner["b"][0] is BIG
    assert found["d"] == value["d"]
    back = found["c"].inner.inner
    assert back[0] == BIG + b"2"
    assert (back[1] == array).all()


def test_its_large_bytes_count_for_the_largest_message() -> None:
    register_box()
    with pytest.raises(MessageTooLarge):
        packed(Box(BIG), max_message=LARGE - 1)


def test_what_is_too_deep_to_look_for_large_bytes_leaves_no_buffers_behind() -> None:
    register_box()
    deep: list[Any] = [BIG]
    for _ in range(400):
        deep = [deep]
    limit = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 200)
    try:
        body, buffers = packed(Box([BIG, deep]))
    finally:
        sys.setrecursionlimit(limit)
    assert buffers == []
    [found] = MsgpackDecoder().decode(body, buffers)
    assert found.inner[0] == BIG


def test_own_types_nest_as_deep_as_tuples_and_not_deeper() -> None:
    register_box()
    value: Any = 1
    for _ in range(32):
        value = Box(value)
    assert round_trip(value) == value
    text = str(error_of([Box(value)]))
    assert "is a tests.codec.test_own_types.Box within more than 32 tuples, sets and own" in text
    wire = b"\x01"
    for _ in range(33):
        wire = msgpack.packb(msgpack.ExtType(OWN, b"\x03box" + wire))
    with pytest.raises(DecodeError, match="own types nested too deep"):
        MsgpackDecoder().decode(b"\x91" + wire)
    around = [value]
    around[0].inner = around  # within itself
    assert "that contains itself" in str(error_of(around))


# --- what goes wrong -------------------------------------------------------------------


def test_a_to_wire_that_raises_names_type_place_and_topic() -> None:
    register(Box, "box", lambda box: getattr(box, "gone"), Box)  # noqa: B009
    enc = MsgpackEncoder("jobs", MAX_MESSAGE)
    error = error_of({"a": [1, (Box(1),)]}, enc)
    assert str(error) == (
        f"value['a'][1][0] on topic 'jobs' is a {__name__}.Box, whose to_wire raised "
        "AttributeError: 'Box' object has no attribute 'gone': mend it, or leave the value out"
    )
    assert (error.topic, error.type_name) == ("jobs", f"{__name__}.Box")
    assert enc.pack((1, (2,))) == MsgpackEncoder("jobs", 2**20).pack((1, (2,)))

    class Outer:
        pass

    register(Outer, "outer", lambda outer: {"box": Box(1)}, lambda wire: Outer())
    assert str(error_of([Outer()])).startswith("value[0].to_wire()['box'] on topic 'jobs' is a ")


def test_what_to_wire_gives_is_named_with_its_place() -> None:
    register_box()
    error = error_of([Box(1), Box({"k": [object()]})])
    assert str(error).startswith(
        "value[1].to_wire()['k'][0] on topic 'jobs' is an object, which msgpack cannot carry"
    )
    assert error.type_name == "object"


def test_a_from_wire_that_raises_costs_its_message_alone() -> None:
    def open_box(wire: Any) -> Box:
        return Box(10 // wire)

    register(Box, "box", lambda box: box.inner, open_box)
    enc = MsgpackEncoder("jobs", MAX_MESSAGE)
    body = b"\x93" + enc.pack((Box(5),)) + enc.pack([Box(0)]) + enc.pack("x")
    decoder = MsgpackDecoder()
    with pytest.raises(DecodeError):
        decoder.decode(body)
    found = decoder.decode_each(body)
    assert found[::2] == [(Box(2),), "x"]
    assert isinstance(found[1], DecodeError)
    assert str(found[1]) == (
        "a message with a 'box' whose from_wire raised ZeroDivisionError: "
        "integer division or modulo by zero"
    )


@pytest.mark.parametrize("name", ["os.system", "tests.codec.unknown_module.X", "é\n"])
def test_an_unknown_name_is_told_and_never_imported(name: str) -> None:
    encoded = name.encode()
    before = set(sys.modules)
    text = refused(bytes((len(encoded),)) + encoded + b"\x01")
    assert text == (
        f"a message with a value of the type {name!r}, which is not known here: "
        f"pubsub.register(..., {name!r}) before it comes"
    )
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\x03", b"\x03bo", b"\x04box\x01", b"\x03box", b"\x03box\xc1", b"\x03box\x01\x02"),
        *(b"\x03box\x92\x01", b"\x03box\xdd\xff\xff\xff\xff", b"\x00\x01", b"\x02\xff\xfe\x01"),
        b"\x03box" + msgpack.packb(msgpack.ExtType(BUFFER, b"\0\0\0\0")),
    ],
)
def test_broken_bytes_of_an_own_type_are_a_decode_error(payload: bytes) -> None:
    register_box()
    assert refused(payload).startswith(("a message with a broken", "a message with a value of"))


# --- the table -------------------------------------------------------------------------


def test_registering_the_same_again_is_harmless() -> None:
    for _ in range(2):
        register_box()
    assert round_trip(Box(1)) == Box(1)


def test_one_name_for_two_types_and_two_names_for_one_are_refused() -> None:
    class Other:
        pass

    register_box()
    with pytest.raises(ValueError) as caught:
        register(Other, "box", vars, lambda wire: Other())
    assert str(caught.value) == (
        f"the name 'box' is that of {__name__}.Box, and cannot be that of "
        f"{__name__}.{Other.__qualname__} as well"
    )
    with pytest.raises(ValueError) as caught:
        register(Box, "chest", vars, Box)
    assert str(caught.value) == (
        f"{__name__}.Box is registered as 'box', and cannot be 'chest' as well"
    )
    assert round_trip(Box(1)) == Box(1)


def test_a_class_that_is_defined_again_takes_the_place_of_the_one_before() -> None:
    source = "import enum, pubsub\n@pubsub.register\nclass P(enum.Enum):\n  A = 1"
    first: dict[str, Any] = {"__name__": "notebook"}
    second: dict[str, Any] = {"__name__": "notebook"}
    exec(source, first)
    exec(source, second)
    assert type(round_trip(second["P"].A)) is second["P"]
    assert type(round_trip(first["P"].A)) is second["P"]  # it is the same to others

    def make() -> type:
        return dataclasses.make_dataclass("Made", ["x"], namespace={"__qualname__": "f.<locals>.M"})

    register(make())
    with pytest.raises(ValueError, match="is that of"):
        register(make())


@pytest.mark.parametrize(
    "kind", [int, str, type(None), list, dict, tuple, set, bytearray, msgpack.ExtType]
)
def test_what_has_a_form_already_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="has a form on the wire already"):
        register(kind, "mine", repr, eval)


def test_what_has_a_form_already_is_refused_of_numpy_too() -> None:
    np = pytest.importorskip("numpy")
    for kind in (np.ndarray, np.float64, np.datetime64, np.str_):
        with pytest.raises(TypeError, match="has a form on the wire already"):
            register(kind, "mine", repr, eval)

    class Matrix(np.ndarray):  # type: ignore[misc, name-defined]
        pass

    register(Matrix, "matrix", np.asarray, lambda array: array.view(Matrix))
    assert type(round_trip(np.zeros(3).view(Matrix))) is Matrix

    class Metres(np.float64):  # type: ignore[misc, name-defined]
        pass

    register(Metres, "metres", float, Metres)
    assert type(round_trip(Metres(1.5))) is Metres


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
def test_names_have_1_to_255_bytes(name: str) -> None:
    with pytest.raises(ValueError, match="not 1 to 255"):
        register(Box, name, vars, Box)
    register(Box, "é" * 127, lambda box: box.inner, Box)
    assert round_trip(Box(1)) == Box(1)


def test_what_is_not_right_is_refused() -> None:
    wrong: Any
    for wrong in (Box(1), "Box", list[int]):
        with pytest.raises(TypeError, match="takes a class"):
            register(wrong, "box", vars, Box)
    for wrong in (1, b"box"):
        with pytest.raises(TypeError, match="is no str"):
            register(Box, wrong, vars, Box)
    with pytest.raises(TypeError, match="needs both ways: register"):
        register(Box, "box", vars)
    with pytest.raises(TypeError) as caught:
        register(Box)
    assert str(caught.value) == (
        f"{__name__}.Box is no dataclass, Enum, pydantic model or attrs class, so say how it "
        "travels: register(Box, name, to_wire, from_wire)"
    )
    assert Box not in own_types.BY_TYPE


# --- kinds that need no converter ------------------------------------------------------


def test_a_dataclass_by_its_fields_and_nested_ones_by_theirs() -> None:
    @register
    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        y: Any = None
        size: int = dataclasses.field(init=False, default=0)

        def __post_init__(self) -> None:
            object.__setattr__(self, "size", self.x * 2)

    value = Point(1, {"p": Point(2, (Point(3),))})
    assert round_trip(value) == value
    assert own_types.BY_TYPE[Point].name == f"{__name__}.{Point.__qualname__}"

    @dataclasses.dataclass
    class Unknown:
        z: int = 0

    assert "pubsub.register(Unknown), or" in str(error_of(Point(1, Unknown())))


def test_a_dataclass_that_is_made_of_more_than_its_fields_says_so() -> None:
    @dataclasses.dataclass
    class Opened:
        path: dataclasses.InitVar[str]
        size: int

    with pytest.raises(TypeError, match=r"not made of its fields alone \(path\)"):
        register(Opened)

    @dataclasses.dataclass(init=False)
    class Own:
        x: int

        def __init__(self, both: int) -> None:
            self.x = both

    with pytest.raises(TypeError, match=r"not made of its fields alone \(both, x\)"):
        register(Own)


def test_a_dataclass_refuses_what_does_not_fit_it() -> None:
    @partial(register, name="point")
    @dataclasses.dataclass
    class Point:
        x: int

    assert "whose from_wire raised TypeError" in refused(b"\x05point" + msgpack.packb({"z": 1}))
    assert "whose from_wire raised TypeError" in refused(b"\x05point" + msgpack.packb([1]))


def test_an_enum_by_name_and_a_flag_by_value() -> None:
    @register
    class Color(enum.Enum):
        RED = object()

    @register
    class Level(enum.IntEnum):
        LOW = 1

    @register
    class Mode(enum.Flag):
        READ = 1
        WRITE = 2

    both = Mode.READ | Mode.WRITE
    found = round_trip([Color.RED, Level.LOW, both, {Level.LOW: 1}])
    assert found == [Color.RED, Level.LOW, both, {Level.LOW: 1}]
    assert found[0] is Color.RED
    assert type(found[1]) is Level
    assert type(found[2]) is Mode
    name = own_types.BY_TYPE[Color].head
    assert "whose from_wire raised KeyError: 'GREEN'" in refused(name + msgpack.packb("GREEN"))


def test_a_pydantic_model_by_its_fields_with_all_types_kept() -> None:
    pydantic = pytest.importorskip("pydantic")

    @register
    class Inner(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        a: int = pydantic.Field(alias="A")

    @register
    class Wider(Inner):
        b: int = 3

    @register
    class Outer(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        model_config = pydantic.ConfigDict(extra="allow", strict=True)
        inner: Inner
        pair: tuple[int, ...] = (1, 2)

        @pydantic.computed_field  # type: ignore[prop-decorator, untyped-decorator]
        @property
        def double(self) -> int:
            return 2

    value = Outer(inner=Wider(A=1, b=5), more={1})
    found = round_trip(value)
    assert found == value
    assert type(found.inner) is Wider
    assert found.more == {1}

    @register
    class Numbers(pydantic.RootModel[list[int]]):  # type: ignore[misc, name-defined]
        pass

    assert round_trip(Numbers([1, 2])) == Numbers([1, 2])
    wire = msgpack.packb({"inner": 1})
    assert "whose from_wire raised ValidationError" in refused(own_types.BY_TYPE[Outer].head + wire)

    class Strange(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        pass

    text = str(error_of(Strange()))
    assert "convert it with .model_dump(), teach both sides pubsub.register(Strange), or" in text


def test_an_attrs_class_by_the_arguments_that_it_takes() -> None:
    attrs = pytest.importorskip("attrs")

    @register
    @attrs.define
    class Reading:
        _x: int
        y: Any = 1
        z: int = attrs.field(init=False, default=4)

    value = Reading(3, Reading(4))  # type: ignore[call-arg]
    assert round_trip(value) == value

    @attrs.define
    class Strange:
        x: int

    text = str(error_of(Strange(1)))  # type: ignore[call-arg]
    assert (
        "convert it with attrs.asdict(...), teach both sides pubsub.register(Strange), or" in text
    )


def test_neither_pydantic_nor_attrs_is_imported_for_it() -> None:
    from tests.integration.support import run_python

    run_python(
        """
        import sys, dataclasses, pubsub
        @pubsub.register
        @dataclasses.dataclass
        class P: x: int
        try:
            pubsub.register(object)
        except TypeError:
            pass
        unwanted = {"pydantic", "attr", "attrs", "numpy", "cloudpickle", "pickle"}
        assert not unwanted & set(sys.modules)
        """
    )


def test_other_codecs_do_without_it() -> None:
    register_box()
    enc = codec_of("raw").encoder("jobs", MAX_MESSAGE)
    with pytest.raises(TypeError):
        enc.pack(Box(b""))
