"""numpy arrays and scalars: dtype, shape, order and bits come back; hostile ones are refused."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.codec.decoder import MsgpackDecoder
from pubsub.codec.encoder import LARGE, Encoder, MsgpackEncoder
from pubsub.codec.extension_types import NDARRAY, NDARRAY_OUT_OF_BAND, NUMPY_SCALAR
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge
from pubsub.wire.buffers import Buffer
from tests.wire.buffers import arrived, contents

np = pytest.importorskip("numpy")
hnp = pytest.importorskip("hypothesis.extra.numpy")

PICKLE = 'or use Pub(..., codec="pickle") with Sub(..., allow_pickle=True)'


def encoder(max_message: int = 2**28) -> Encoder:
    return MsgpackEncoder("jobs", max_message)


def packed(value: Any) -> tuple[bytes, list[Buffer]]:
    enc = encoder()
    return b"\x91" + enc.pack(value), enc.buffers


def round_trip(value: Any) -> Any:
    body, buffers = packed(value)
    [found] = MsgpackDecoder().decode(body, buffers)
    [again] = MsgpackDecoder().decode(body, list(map(arrived, buffers)))
    if isinstance(value, np.ndarray):
        assert_same(again, found)
    return found


def assert_same(found: Any, array: Any, *, writeable: bool = False) -> None:
    assert type(found) is np.ndarray
    assert found.dtype == array.dtype
    assert found.dtype.type is array.dtype.type
    assert found.shape == array.shape
    if array.flags.c_contiguous or array.flags.f_contiguous:
        assert found.flags.c_contiguous == array.flags.c_contiguous
        assert found.flags.f_contiguous == array.flags.f_contiguous
    assert found.flags.writeable is writeable
    assert found.tobytes() == array.tobytes()


DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes(),
    hnp.nested_dtypes(),
)
ARRAYS = hnp.arrays(dtype=DTYPES, shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))


@given(ARRAYS, st.sampled_from(["C", "F", "reversed"]))
def test_any_array_comes_back(array: Any, order: str) -> None:
    if order == "reversed":
        array = array[(*(slice(None, None, -1),) * array.ndim, ...)]
    else:
        array = array.copy(order=order)
    found = round_trip(array)
    assert_same(found, array)


@given(hnp.scalar_dtypes().flatmap(lambda dtype: hnp.from_dtype(dtype)))
def test_any_scalar_comes_back(scalar: Any) -> None:
    found = round_trip(scalar)
    assert type(found) is type(scalar)
    assert found.dtype == scalar.dtype
    assert found.tobytes() == scalar.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.arange(10)[::3],
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.array(3.5),
        np.zeros((0, 3)),
        np.zeros((2**40, 0)),
        np.arange(3, dtype=">i4"),
        np.array([1, 2], dtype="<f2"),
        np.array([1 + 2j], dtype=">c16"),
        np.array([True, False]),
        np.array(["a", "bcd", ""]),
        np.array([b"a", b"bcd\0x"]),
        np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
        np.array([1, -1], dtype=">m8[25us]"),
        np.frombuffer(b"abcdef", dtype="V3"),
        np.ndarray((3,), dtype="S0", buffer=bytearray()),
        np.ndarray((3,), dtype="U0", buffer=bytearray()),
        np.ndarray((3,), dtype="V0", buffer=bytearray()),
        np.array([(1, 2.0, "x")], dtype=[("i", "<i4"), ("f", ">f8"), ("s", "U3")]),
        np.zeros(2, dtype=[("a", "i2", (2, 3)), ("b", [("c", "u1"), ("d", "M8[ns]", 2)])]),
        np.zeros(2, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.zeros(2, dtype=[(("title", "name"), "f4")]),
        np.zeros(
            2,
            dtype={"names": ["b", "a"], "formats": ["u1", "i4"], "offsets": [6, 0], "itemsize": 9},
        ),
        np.zeros(
            2, dtype={"names": ["a", "b"], "formats": ["i4", "u2"], "offsets": [0, 2]}
        ),  # they overlap
        np.zeros(2, dtype=[]),
        np.zeros(2, dtype=np.dtype((np.record, [("a", "i4")]))),
        np.zeros((1,) * 32),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}"[:60],
)
def test_particular_arrays(array: Any) -> None:
    assert_same(round_trip(array), array)
    assert_same(round_trip([{"a": (array,)}])[0]["a"][0], array)


@pytest.mark.parametrize(
    "scalar",
    [
        *(np.float64(0.1), np.float32(0.1), np.float16(0.1), np.longdouble("0.1")),
        *(np.float64("nan"), np.float64("-inf"), np.float64(-0.0)),
        *(np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.bool_(False)),
        *(np.complex64(1 + 2j), np.complex128(1 + 2j)),
        *(np.datetime64("2020-01-01T00:00:00.123456789"), np.datetime64("NaT", "s")),
        *(np.timedelta64(5, "h"), np.timedelta64("NaT", "ns")),
        *(np.str_("a\0"), np.str_(""), np.str_("\U0001f600"), np.bytes_(b"a\0\0"), np.bytes_(b"")),
        np.zeros(1, dtype=[("a", "i4"), ("b", "U3")])[0],
        np.zeros(1, dtype=np.dtype((np.record, [("a", "i4")])))[0],
        np.void(b"abc"),
    ],
    ids=repr,
)
def test_particular_scalars(scalar: Any) -> None:
    for _ in range(2):  # the second time by what the first has left
        found = round_trip(scalar)
        assert type(found) is type(scalar)
        assert found.dtype == scalar.dtype
        assert found.tobytes() == scalar.tobytes()
        assert repr(found) == repr(scalar)


def test_a_structured_scalar_can_be_written_to() -> None:
    found = round_trip(np.zeros(1, dtype=[("a", "i4")])[0])
    found["a"] = 7
    assert found["a"] == 7


def test_scalars_are_keys_and_members() -> None:
    value = {np.int64(1): "a", (np.str_("x"),): {np.float32(2)}}
    found = round_trip(value)
    assert found == value
    assert list(map(type, found)) == [np.int64, tuple]


# --- out of band ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_travels_out_of_band_and_is_not_copied_by_the_receiver(order: str) -> None:
    enc = MsgpackEncoder("jobs", 2**28)
    array = np.arange(LARGE // 8, dtype="i8").reshape(2, -1).copy(order=order)
    body = b"\x91" + enc.pack({"a": (array,), "b": array})
    assert [len(buffer) for buffer in enc.buffers] == [LARGE, LARGE]
    assert all(buffer.view().readonly for buffer in enc.buffers)
    array[0, 0] = 99  # what was put is what it was then
    received = list(map(arrived, enc.buffers))
    [found] = MsgpackDecoder().decode(body, received)
    array[0, 0] = 0
    assert_same(found["a"][0], array)
    assert_same(found["b"], array)
    received[0].view()[0] = 7
    assert found["a"][0][0, 0] == 7
    assert found["b"][0, 0] == 0


@pytest.mark.parametrize("size", [LARGE // 8 - 1, LARGE // 8])
@pytest.mark.parametrize("came", ["over a link", "in the process"])
def test_arrays_are_read_only_unless_they_are_copies(size: int, came: str) -> None:
    enc = MsgpackEncoder("jobs", 2**28)
    array = np.arange(size, dtype="i8")
    body = b"\x91" + enc.pack([array, (array,)])
    buffers = enc.take()
    assert len(buffers) == (2 if array.nbytes >= LARGE else 0)

    def decoded(decoder: MsgpackDecoder) -> list[Any]:
        come = [arrived(contents(b)) for b in buffers] if came == "over a link" else buffers
        [[plain, (nested,)]] = decoder.decode(body, come)
        return [plain, nested]

    for found in decoded(MsgpackDecoder()):
        assert_same(found, array)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1
    for found in decoded(MsgpackDecoder(copy=True)):
        assert_same(found, array, writeable=True)
        found[0] = 99  # it is nobody else's
    for found in decoded(MsgpackDecoder()):
        assert_same(found, array)


def test_an_array_below_large_stays_in_the_body() -> None:
    enc = encoder()
    enc.pack(np.zeros(LARGE - 1, dtype="u1"))
    assert enc.buffers == []


def test_arrays_and_bytes_go_out_together() -> None:
    enc = encoder()
    value = {"a": np.zeros(LARGE), "b": bytes(LARGE), "c": [np.ones(LARGE), bytes(LARGE)]}
    enc.pack(value)
    assert len(enc.buffers) == 2
    body = b"\x91" + enc.pack_out_of_band(value)
    assert len(enc.buffers) == 4
    [found] = MsgpackDecoder().decode(body, enc.buffers)
    assert_same(found["a"], value["a"])
    assert_same(found["c"][0], cast("list[Any]", value["c"])[0])
    assert found["b"] == value["b"]


def test_an_array_above_max_message_is_refused_before_it_is_copied() -> None:
    enc = encoder(max_message=1_000_000)
    array = np.zeros(20_000_000, dtype="u1")
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge) as caught:
            enc.pack([array])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.size == 20_000_000
    assert enc.error(caught.value, [array]) is caught.value
    enc.pack([array[:900_000]])
    assert len(enc.buffers) == 1


def test_explaining_an_error_sets_no_array_aside() -> None:
    enc = MsgpackEncoder("jobs", 2**28)
    value = [np.zeros(LARGE), object()]
    with pytest.raises(TypeError) as caught:
        enc.pack(value)
    assert str(enc.error(caught.value, value)).startswith("value[1] on topic 'jobs' is an object")
    assert enc.buffers == []


# --- what is refused at put ----------------------------------------------------------------------


def error_of(value: Any) -> str:
    enc = encoder()
    with pytest.raises(TypeError) as caught:
        enc.pack(value)
    error = enc.error(caught.value, value)
    assert isinstance(error, EncodeError)
    return str(error)


def test_an_array_of_objects_is_refused() -> None:
    assert error_of({"a": np.array([None])}) == (
        "value['a'] on topic 'jobs' has the numpy dtype object, whose items are pointers: "
        f"convert it with .tolist() or .astype(...), {PICKLE}"
    )
    assert "has the numpy dtype object" in error_of(np.zeros(1, dtype=[("a", [("b", "O")])]))
    assert "has the numpy dtype object" in error_of(np.zeros(1, dtype=[("a", "O")])[0])


def test_an_array_of_numpys_own_strings_is_refused() -> None:
    if not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"):
        pytest.skip("a numpy before 2")
    assert error_of(np.array(["a"], dtype=np.dtypes.StringDType())) == (
        "value on topic 'jobs' has the numpy dtype StringDType, whose items are pointers: "
        f"convert it with .astype(str) or .tolist(), {PICKLE}"
    )


class Matrix(np.ndarray):  # type: ignore[misc,name-defined]  # np may be missing
    pass


class Float(np.float64):  # type: ignore[misc,name-defined]
    pass


def test_subclasses_are_refused() -> None:
    array = np.zeros(1).view(Matrix)
    assert error_of(array) == (
        f"value on topic 'jobs' is a {__name__}.Matrix, which would come back as a "
        f"numpy.ndarray: convert it with numpy.asarray(...), {PICKLE}"
    )
    assert "numpy.ndarray" in error_of(np.ma.masked_array([1], mask=[True]))
    assert error_of(Float(1)) == (
        f"value on topic 'jobs' is a {__name__}.Float, which would come back as a "
        f"numpy.float64: convert it with numpy.float64(...), {PICKLE}"
    )


def test_a_dtype_that_another_process_would_not_rebuild_is_refused() -> None:
    dtype = np.dtype("i4")
    for _ in range(40):
        dtype = np.dtype([("a", dtype)])
    text = error_of(np.zeros(1, dtype=dtype))
    assert text.startswith("value on topic 'jobs' has the numpy dtype [('a', [('a',")
    assert text.endswith(
        ", which another process could not rebuild: "
        f"convert it with .astype(...) or .view(...), {PICKLE}"
    )


# --- what is refused at get ----------------------------------------------------------------------


def dtype_bytes(dtype: Any) -> bytes:
    data = dtype if type(dtype) is bytes else msgpack.packb(dtype)
    return len(data).to_bytes(4, "big") + data


def head(dtype: Any, *shape: int, flags: int = 0) -> bytes:
    sizes = b"".join(size.to_bytes(8, "big") for size in shape)
    return bytes((flags, len(shape))) + sizes + dtype_bytes(dtype)


def decode(code: int, payload: bytes, *buffers: Buffer) -> Any:
    body = b"\x91" + msgpack.packb(msgpack.ExtType(code, payload))
    return MsgpackDecoder().decode(body, buffers)[0]


def test_the_bytes_of_an_array_and_of_a_scalar() -> None:
    array = np.array([[1, 2, 3]], dtype="<u2")
    payload = bytes.fromhex(
        "00 02 0000000000000001 0000000000000003 00000004 a33c7532 010002000300"
    )
    assert encoder().pack(array) == msgpack.packb(msgpack.ExtType(NDARRAY, payload))
    assert payload == head("<u2", 1, 3) + array.tobytes()
    large = np.zeros((LARGE, 2), dtype="u1", order="F")
    payload = bytes(4) + head("|u1", LARGE, 2, flags=1)
    assert encoder().pack(large) == msgpack.packb(msgpack.ExtType(NDARRAY_OUT_OF_BAND, payload))
    scalar = np.array(1.5, dtype="<f8")[()]
    payload = bytes.fromhex("00000004 a33c6638 000000000000f83f")
    assert encoder().pack(scalar) == msgpack.packb(msgpack.ExtType(NUMPY_SCALAR, payload))
    payload = bytes.fromhex("00000002 a155 c3a4")
    assert encoder().pack(np.str_("ä")) == msgpack.packb(msgpack.ExtType(NUMPY_SCALAR, payload))
    payload = bytes.fromhex("00000002 a153 6100")
    assert encoder().pack(np.bytes_(b"a\0")) == msgpack.packb(
        msgpack.ExtType(NUMPY_SCALAR, payload)
    )


HOSTILE_DTYPES: list[Any] = [
    # numpy makes a dtype of "<M8[0s]", and the process dies when it is compared with another
    *("O", "|O", "|O8", "<O8", "T", "|T16", "object", "p", "i4,O", "(2,3)O", "(99,99)f8"),
    *(
        "<i3",
        "<f3",
        "|b2",
        "=i4",
        "f8",
        "",
        "<M8[0s]",
        "<M8[00s]",
        "<M8[9999999999s]",
        "<M8[",
        "i8[",
    ),
    *("<U9999999999", "|V9999999999", "<i8\0", "<i8 ", "\u0661", "<f8" + "x" * 100_000),
    *(None, 5, [], {}, ["struct"], ["struct", 8], ["void", 8, []], ["struct", 8, 5]),
    ["struct", 8, [["a", "|O8", 0, None]]],
    ["struct", 8, [["a", ["struct", 8, [["b", "O", 0, None]]], 0, None]]],
    ["struct", 8, [["a", "<i8", 1, None]]],  # its end lies outside
    ["struct", 8, [["a", "<i8", -8, None]]],
    ["struct", 8, [["a", "<i8", 2**40, None]]],
    ["struct", -1, []],
    ["struct", 2**31, []],
    ["struct", 2**63, []],
    ["struct", 8, [["a", "<i4", 0, None], ["a", "<i4", 4, None]]],
    ["struct", 8, [[5, "<i4", 0, None]]],
    ["struct", 8, [["a", "<i4", 0, 5]]],
    ["struct", 8, [["a", "<i4", "0", None]]],
    ["struct", 8, [["a", "<i4"]]],
    ["struct", True, []],
    ["array", "<i8", [2]],  # only a field may be an array
    ["array", "<i8", [-1]],
    ["array", "<i8", [2**31]],
    ["struct", 8, [["a", ["array", "<i8", [2**20, 2**20]], 0, None]]],
    ["struct", 8, [["a", ["array", "<i8", [-1]], 0, None]]],
    ["struct", 8, [["a", ["array", "<i8", 1], 0, None]]],
    ["struct", 8, [["a", ["array", "<i8", [1] * 100], 0, None]]],
    ["record", 8, [["a", "|O8", 0, None]]],
    b"",
    b"\xc1",
    b"\xa3<i8\x00",
    b"\x91" * 5000,
]


@pytest.mark.parametrize("dtype", HOSTILE_DTYPES, ids=lambda dtype: repr(dtype)[:40])
def test_a_hostile_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(DecodeError):
        decode(NDARRAY, head(dtype, 1) + bytes(8))
    with pytest.raises(DecodeError):
        decode(NDARRAY, head(dtype, 0))
    with pytest.raises(DecodeError):
        decode(NDARRAY_OUT_OF_BAND, bytes(4) + head(dtype, 1), arrived(bytes(8)))
    with pytest.raises(DecodeError):
        decode(NUMPY_SCALAR, dtype_bytes(dtype) + bytes(8))


def test_a_dtype_nested_without_end_is_refused() -> None:
    dtype: Any = "<i8"
    for _ in range(200):
        dtype = ["struct", 8, [["a", dtype, 0, None]]]
    with pytest.raises(DecodeError, match="a dtype nested too deep"):
        decode(NDARRAY, head(dtype, 1) + bytes(8))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1,), 0),
        ((2,), 8),
        ((0,), 8),
        ((), 0),
        ((), 16),
        ((2**61,), 0),  # times 8 is 2**64, which is 0 in 64 bits
        ((2**61 + 1,), 8),
        ((2**32, 2**32), 0),
        ((2**63, 2), 0),
        ((2**64 - 1,), 8),
        ((2**64 - 1, 0), 0),
        ((2**62, 2**62, 0), 0),
        ((1,) * 100, 8),
        ((0,) * 255, 0),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(DecodeError, match=r"^a message with a broken numpy array"):
        decode(NDARRAY, head("<i8", *shape) + bytes(size))
    with pytest.raises(DecodeError, match=r"^a message with a broken numpy array"):
        decode(NDARRAY_OUT_OF_BAND, bytes(4) + head("<i8", *shape), arrived(bytes(size)))


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\2\0", b"\0\1", b"\0\0\xff\xff\xff\xff", b"\0\xff"]
)
def test_a_head_that_ends_too_early_is_refused(payload: bytes) -> None:
    for code, before in ((NDARRAY, b""), (NDARRAY_OUT_OF_BAND, bytes(4)), (NUMPY_SCALAR, b"")):
        with pytest.raises(DecodeError):
            decode(code, before + payload, arrived(b""))


def test_out_of_band_items_are_given_out_once() -> None:
    reference = msgpack.packb(msgpack.ExtType(NDARRAY_OUT_OF_BAND, bytes(4) + head("<i8", 1)))
    with pytest.raises(DecodeError, match="its buffer is missing"):
        MsgpackDecoder().decode(b"\x92" + reference + reference, [arrived(bytes(8))])
    with pytest.raises(DecodeError, match="more than a head"):
        decode(NDARRAY_OUT_OF_BAND, bytes(4) + head("<i8", 1) + b"x", arrived(bytes(8)))


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80"])
def test_a_str_that_is_not_utf_8_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(NUMPY_SCALAR, dtype_bytes("U") + text)


@given(st.binary(max_size=60), st.sampled_from([NDARRAY, NDARRAY_OUT_OF_BAND, NUMPY_SCALAR]))
def test_random_payloads_raise_nothing_but_decode_error(payload: bytes, code: int) -> None:
    try:
        decode(code, payload, arrived(bytes(16)))
    except DecodeError:
        pass


@given(ARRAYS, st.data())
def test_flipped_bytes_raise_nothing_but_decode_error(array: Any, data: st.DataObject) -> None:
    body, buffers = packed(array)
    flipped = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(1, len(flipped) - 1))] = data.draw(st.integers(0, 255))
    try:
        MsgpackDecoder().decode(flipped, buffers)
    except DecodeError:
        pass
