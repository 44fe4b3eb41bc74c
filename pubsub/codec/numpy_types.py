"""How numpy arrays and scalars travel: dtype, shape, order and items. numpy itself is optional.

Payloads (numbers are big-endian, except in the items)::

    array    u8 flags (1: Fortran order), u8 dimensions, u64 each dimension,
             u32 size of dtype, dtype, items (in a buffer of their own when out of band)
    scalar   u32 size of dtype, dtype, value

The dtype is msgpack: numpy's own notation for the simple ones (``"<f8"``, ``">M8[ns]"``), and::

    ["struct", itemsize, [[name, dtype, offset, title or nil], …]]
    ["record", itemsize, […]]     the same as numpy.record
    ["array", dtype, [dimension, …]]                   a field that is an array itself

Scalars have two more: ``"U"``, a str_ whose value is UTF-8, and ``"S"``, a bytes_.

Items are the array's memory, so a dtype is checked before anything is built on it: one that
holds pointers (``object``, numpy's StringDType) must never be read from a wire.
"""

from __future__ import annotations

import re
import struct
from functools import cache, lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal

import msgpack

from pubsub.codec.explain import with_article
from pubsub.codec.extension_types import Unencodable
from pubsub.wire.buffers import Block, Buffer

if TYPE_CHECKING:
    from types import ModuleType

    import numpy
    import numpy.typing

    Array = numpy.typing.NDArray[Any]
    DType = numpy.dtype[Any]

__all__ = [
    "array_head",
    "array_on",
    "block_of",
    "build_array",
    "fill",
    "freeze",
    "pack_scalar",
    "read_array",
    "read_scalar",
]

_SIZE = struct.Struct(">I")
_FORTRAN: Final = 1
_LARGEST_ITEM: Final = 2**31 - 1
_DEEPEST_DTYPE: Final = 32
_UNIT = r"\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]"
_SIMPLE = re.compile(rf"[<>|](?:b1|[iufc][0-9]{{1,2}}|[mM]8(?:{_UNIT})?|[SUV]([0-9]{{1,10}}))")
_STR: Final[bytes] = msgpack.packb("U")
_BYTES: Final[bytes] = msgpack.packb("S")

# A dtype is a tree of msgpack: nothing of ours in it, so no hooks, and little of it.
_unpack_dtype = partial(msgpack.unpackb, strict_map_key=True)


@cache
def _numpy() -> ModuleType:
    try:
        import numpy
    except ImportError as error:
        raise ValueError(f"numpy cannot be imported here: {error}") from None
    return numpy


# --- dtypes -----------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _pack_dtype(dtype: DType, record: bool) -> bytes:
    """The dtype's msgpack. `record` is for the cache: a dtype of numpy.record equals the plain."""
    packed: bytes = msgpack.packb(_spec_of(dtype))
    try:
        same = _read_dtype(packed) == dtype
    except Exception:
        same = False
    if not same:  # made by another library, such as bfloat16 of ml_dtypes
        raise Unencodable(
            f"has the numpy dtype {dtype}, which another process could not rebuild",
            "convert it with .astype(...) or .view(...)",
        )
    return packed


def _spec_of(dtype: DType) -> Any:
    if dtype.hasobject:
        name, remedy = "object", "convert it with .tolist() or .astype(...)"
        if dtype.char == "T":
            name, remedy = "StringDType", "convert it with .astype(str) or .tolist()"
        raise Unencodable(f"has the numpy dtype {name}, whose items are pointers", remedy)
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ["array", _spec_of(base), list(shape)]
    if dtype.fields is not None:
        fields = []
        for name in dtype.names or ():
            field, offset, *title = dtype.fields[name]
            fields.append([name, _spec_of(field), offset, title[0] if title else None])
        kind = "record" if _is_record(dtype) else "struct"
        return [kind, dtype.itemsize, fields]
    return dtype.str


def _is_record(dtype: DType) -> bool:
    return dtype.type.__name__ == "record"


@lru_cache(maxsize=256)
def _read_dtype(packed: bytes) -> DType:
    dtype: DType = _build_dtype(_numpy(), _unpack_dtype(packed), 0)
    if dtype.hasobject:  # none of the forms below can say so; it must not depend on that alone
        raise ValueError("a dtype with pointers")
    if dtype.subdtype is not None:
        raise ValueError("a dtype that is an array itself")
    return dtype


def _build_dtype(np: ModuleType, spec: Any, depth: int) -> Any:
    if depth > _DEEPEST_DTYPE:
        raise ValueError("a dtype nested too deep")
    if type(spec) is str:
        match = _SIMPLE.fullmatch(spec) if len(spec) <= 40 else None
        # numpy 1.23 takes a length that overflows.
        if match is None or int(match[1] or 0) * 4 > _LARGEST_ITEM:
            raise ValueError(f"the dtype {spec[:40]!r}")
        return np.dtype(spec)
    if type(spec) is not list or len(spec) != 3:
        raise ValueError("a dtype of unknown form")
    kind, second, third = spec
    if kind == "array":
        base = _build_dtype(np, second, depth + 1)
        shape = tuple(map(_natural, third))
        if prod(shape) * base.itemsize > _LARGEST_ITEM:
            raise ValueError("a dtype too large")
        return np.dtype((base, shape))
    if kind not in ("struct", "record"):
        raise ValueError("a dtype of unknown form")
    itemsize = _natural(second)
    names, formats, offsets, titles = [], [], [], []
    for name, field, offset, title in third:
        if type(name) is not str or not (title is None or type(title) is str):
            raise ValueError("a dtype with a field without a name")
        names.append(name)
        titles.append(title)
        offsets.append(_natural(offset))
        formats.append(_build_dtype(np, field, depth + 1))
        if offsets[-1] + formats[-1].itemsize > itemsize:
            raise ValueError("a dtype with a field outside it")
    fields = {"names": names, "formats": formats, "offsets": offsets, "titles": titles}
    dtype = np.dtype({**fields, "itemsize": itemsize})
    if kind == "record":
        dtype = np.dtype((np.record, dtype))
    if dtype.itemsize != itemsize:
        raise ValueError("a dtype whose size is not what it says")
    return dtype


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number <= _LARGEST_ITEM:
        raise ValueError("a size that is none")
    return number


# --- arrays -----------------------------------------------------------------------------


def array_head(array: Array) -> tuple[bytes, Literal["C", "F"]]:
    """All of an array but its items, and the order that they go in.

    Raises:
        Unencodable: its dtype cannot travel.
    """
    dtype = _pack_dtype(array.dtype, _is_record(array.dtype))
    fortran = not array.flags.c_contiguous and array.flags.f_contiguous
    shape = array.shape
    flags = _FORTRAN if fortran else 0
    head = struct.pack(f">BB{len(shape)}QI", flags, len(shape), *shape, len(dtype)) + dtype
    return head, "F" if fortran else "C"


def read_array(payload: bytes, *, copy: bool = False) -> Array:
    """The array of a head with its items after it; `copy`: it can be written to."""
    dtype, shape, order, end = _read_head(payload, 0)
    items = bytearray(memoryview(payload)[end:]) if copy else payload[end:]
    return _build(dtype, shape, order, items)


def build_array(payload: bytes, start: int, buffer: Buffer, *, copy: bool = False) -> Array:
    """The array of a head (from `start` on) with its items elsewhere, where they stay; `copy`: it
    can be written to, where others have the same memory as a copy."""
    dtype, shape, order, end = _read_head(payload, start)
    if end != len(payload):
        raise ValueError("more than a head")
    items = buffer.items()
    if type(items) is Block:
        items = _numpy().asarray(items)
        items.flags.writeable = False  # it is so already where the memory is another process's
    array = _build(dtype, shape, order, items)
    if copy:
        return array if array.flags.writeable else array.copy(order="K")
    array.flags.writeable = False
    return array


def fill(room: memoryview, array: Array, order: Literal["C", "F"]) -> None:
    """Copy an array there, in that order."""
    _numpy().ndarray(array.shape, array.dtype, room, order=order)[...] = array


def array_on(block: Block, shape: tuple[int, ...], dtype: DType) -> Array:
    """An array whose memory is that block, to be written to."""
    array: Array = _numpy().ndarray(shape, dtype, _numpy().asarray(block))
    return array


def block_of(array: Array) -> Block | None:
    """The block of a pool of this process that is the array's memory, all of it and nothing else;
    None: there is none."""
    base: Any = array.base
    kind = type(array)
    while type(base) is kind:
        base = base.base
    if (
        type(base) is not Block
        or base.memory.view.readonly
        or array.nbytes != len(base)
        or not (array.flags.c_contiguous or array.flags.f_contiguous)
        or array.__array_interface__["data"][0] != base.memory.address + base.start
    ):
        return None
    return base


def freeze(array: Array) -> None:
    """Let nobody write to it any more, nor to what it is a view of."""
    kind, base = type(array), array
    while type(base) is kind:
        base.flags.writeable = False
        base = base.base  # type: ignore[assignment]  # an array, or the end of the loop


def _read_head(payload: bytes, start: int) -> tuple[DType, tuple[int, ...], str, int]:
    flags, dimensions = payload[start], payload[start + 1]
    if flags & ~_FORTRAN:
        raise ValueError("unknown flags")
    shape = struct.unpack_from(f">{dimensions}Q", payload, start + 2)
    packed, end = _dtype_bytes(payload, start + 2 + 8 * dimensions)
    return _read_dtype(packed), shape, "F" if flags else "C", end


def _dtype_bytes(payload: bytes, start: int) -> tuple[bytes, int]:
    """The dtype there, not read, and where it ends."""
    (size,) = _SIZE.unpack_from(payload, start)
    start += _SIZE.size
    end = start + size
    if end > len(payload):
        raise ValueError("no dtype")
    return payload[start:end], end


def _build(dtype: DType, shape: tuple[int, ...], order: str, items: Any) -> Array:
    if prod(shape) * dtype.itemsize != len(items):  # exact: Python's numbers do not overflow
        raise ValueError(
            f"{len(items)} bytes for the shape {shape} of items of {dtype.itemsize} bytes"
        )
    array: Array = _numpy().ndarray(shape, dtype, items, order=order)
    return array


# --- scalars ----------------------------------------------------------------------------


_PLAIN_CHARS: Final = frozenset("?bBhHiIlLqQefdgFDG")
_SCALAR_HEADS: Final[dict[type, bytes]] = {}
"""For types that have one dtype only: numpy.float64 has, numpy.datetime64 has not. It saves two
thirds of the time."""


def pack_scalar(scalar: Any) -> bytes:
    """A scalar, its dtype before it.

    Raises:
        Unencodable: its type is not one of numpy's own.
    """
    kind = type(scalar)
    head = _SCALAR_HEADS.get(kind)
    if head is None:
        dtype = scalar.dtype
        if kind is not dtype.type:
            name = f"numpy.{dtype.type.__name__}"
            raise Unencodable(
                f"is {with_article(kind)}, which would come back as a {name}",
                f"convert it with {name}(...)",
            )
        # As text: in an array's item, NULs at the end are padding.
        if isinstance(scalar, str):
            return _SIZE.pack(len(_STR)) + _STR + scalar.encode("utf-8")
        if isinstance(scalar, bytes):
            return _SIZE.pack(len(_BYTES)) + _BYTES + scalar
        packed = _pack_dtype(dtype, _is_record(dtype))
        head = _SIZE.pack(len(packed)) + packed
        if dtype.char in _PLAIN_CHARS:
            _SCALAR_HEADS[kind] = head
    value: bytes = scalar.tobytes()
    return head + value


def read_scalar(payload: bytes) -> Any:
    """The scalar of `pack_scalar`."""
    packed, end = _dtype_bytes(payload, 0)
    if packed == _STR:
        return _numpy().str_(payload[end:].decode("utf-8"))
    if packed == _BYTES:
        return _numpy().bytes_(payload[end:])
    items = bytearray(memoryview(payload)[end:])  # a structured scalar is a view of it
    return _build(_read_dtype(packed), (), "C", items)[()]
