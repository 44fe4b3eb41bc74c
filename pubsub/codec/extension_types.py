"""The extension types of the wire: which values msgpack lacks, their codes and their layouts.

The codes and layouts are protocol: a code is never given to another type, a layout never
changes, a new type gets the next code. All numbers are big-endian. Every reader takes whatever
bytes come in and raises some `Exception` where they are not what they should be; the decoder
makes a `DecodeError` of it.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo  # imported where one is needed: it takes 0.3 MiB

__all__ = [
    "BUFFER",
    "CODED",
    "CONTAINERS",
    "DATA_IN_BUFFER",
    "LAYOUTS",
    "MAX_NESTING",
    "NAMES",
    "NDARRAY",
    "NDARRAY_OUT_OF_BAND",
    "NUMPY_SCALAR",
    "OWN",
    "READERS",
    "Failed",
    "Unencodable",
]

# code                             payload
TUPLE: Final = 1  #                one msgpack array of the items
SET: Final = 2  #                  one msgpack array of the members, in any order
FROZENSET: Final = 3  #            one msgpack array of the members, in any order
BIGINT: Final = 4  #               two's complement, as many bytes as it needs
COMPLEX: Final = 5  #              f64 real, f64 imaginary
DECIMAL: Final = 6  #              ASCII, as str() writes it: "-1.50", "1E+3", "sNaN"
UUID_: Final = 7  #                its 16 bytes
DATETIME: Final = 8  #             u16 year, u8 month, day, hour, minute, second,
#                                  u32 microsecond | fold << 31, zone (see `_pack_zone`)
DATE: Final = 9  #                 u16 year, u8 month, u8 day
TIME: Final = 10  #                u8 hour, minute, second, u32 microsecond | fold << 31, zone
TIMEDELTA: Final = 11  #           i32 days, u32 seconds, u32 microseconds
BUFFER: Final = 12  #              u32 index among the message's out-of-band buffers: bytes
NDARRAY: Final = 13  #             head and items (see pubsub/codec/numpy_types.py)
NDARRAY_OUT_OF_BAND: Final = 14  # u32 index of the buffer with the items, head
NUMPY_SCALAR: Final = 15  #        dtype and value (see pubsub/codec/numpy_types.py)
OWN: Final = 16  #                 u8 size of name, name in UTF-8, one msgpack value
CODED: Final = 17  #               u32 number of buffers, u32 index of each, data; of a stream whose
#                                  codec is an own one: what that has written. The first bit of
#                                  the number says that the data is u32 index of a buffer, too
# -1, msgpack's own Timestamp, is read (as a datetime in UTC) but never written: it has neither
# zones nor naive datetimes.

DATA_IN_BUFFER: Final = 1 << 31
"""Of CODED: see there."""

CONTAINERS: Final[dict[type, int]] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
"""Types that hold other values: the encoder packs what is in them."""

MAX_NESTING: Final = 32
"""How deep tuples, sets and values of own types may lie in each other: each is packed, and read,
on its own."""


class Unencodable(TypeError):
    """A value that has no form on the wire.

    Attributes:
        problem: goes on from "value['a'] on topic 't' …".
        remedy: what to do about it.
        pickle: whether ``codec="pickle"`` may be another way out.
    """

    def __init__(self, problem: str, remedy: str, *, pickle: bool = True) -> None:
        self.problem = problem
        self.remedy = remedy
        self.pickle = pickle
        super().__init__(f"{problem}: {remedy}")


class Failed(Unencodable):
    """A value for which code of others was called, and failed: another way is no help.

    Attributes:
        culprit: the value.
    """

    def __init__(self, culprit: object, problem: str, remedy: str) -> None:
        self.culprit = culprit
        super().__init__(problem, remedy, pickle=False)


# --- numbers ----------------------------------------------------------------------------

_COMPLEX = struct.Struct(">dd")
_DECIMAL = re.compile(
    rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?Infinity|[+-]?s?NaN[0-9]*"
)


def _pack_bigint(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _read_bigint(payload: bytes) -> int:
    return int.from_bytes(payload, "big", signed=True)


def _pack_complex(value: complex) -> bytes:
    return _COMPLEX.pack(value.real, value.imag)


def _read_decimal(payload: bytes) -> Decimal:
    # Looked at first: with the InvalidOperation trap off, Decimal("garbage") is NaN, no error.
    if _DECIMAL.fullmatch(payload) is None:
        raise ValueError("not a number")
    value = Decimal(payload.decode("ascii"))
    if value.is_nan() and b"NaN" not in payload:
        raise ValueError("out of range")
    return value


# --- dates and times --------------------------------------------------------------------

_DATETIME = struct.Struct(">HBBBBBI")
_DATE = struct.Struct(">HBB")
_TIME = struct.Struct(">BBBI")
_TIMEDELTA = struct.Struct(">iII")
_OFFSET = struct.Struct(">Bq")
_FOLD = 1 << 31
_MICROSECOND = timedelta(microseconds=1)

_FIXED, _NAMED, _NAMED_ONLY = 1, 2, 3
_UTC = _OFFSET.pack(_FIXED, 0)
_KEY = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def _pack_zone(zone: tzinfo | None, offset: timedelta | None) -> bytes:
    """Nothing for naive, else one of::

        u8 1, i64 microseconds east of UTC, the name if one was given    a fixed offset
        u8 2, i64 microseconds east of UTC at that time, key             a zone of the tz database
        u8 3, key                                                        the same, of a bare time

    Names and keys are UTF-8 and go to the end.
    """
    if zone is None:
        return b""
    if zone is timezone.utc:
        return _UTC
    if type(zone) is timezone:
        assert offset is not None
        name = zone.tzname(None)
        if name == timezone(offset).tzname(None):
            name = ""
        return _OFFSET.pack(_FIXED, offset // _MICROSECOND) + name.encode("utf-8")
    zoneinfo = sys.modules.get("zoneinfo")  # never imported: then it is no such zone
    known = type(zone) is getattr(zoneinfo, "ZoneInfo", None)
    named: str | None = getattr(zone, "key", None) if known else None
    if named is not None:
        key = named.encode("utf-8")
        if offset is None:
            return bytes((_NAMED_ONLY,)) + key
        return _OFFSET.pack(_NAMED, offset // _MICROSECOND) + key
    kind = type(zone)
    raise Unencodable(
        f"has a tzinfo of type {kind.__module__}.{kind.__qualname__}, which has no common name",
        "use datetime.timezone or zoneinfo.ZoneInfo (with a key), "
        "such as .astimezone(timezone.utc)",
    )


def _read_zone(payload: bytes) -> tzinfo | None:
    if not payload:
        return None
    if payload == _UTC:
        return timezone.utc
    kind = payload[0]
    if kind == _NAMED_ONLY:
        found = _find_zone(payload[1:].decode("utf-8"))
        if found is None:
            raise ValueError("its time zone is not known here")
        return found
    if kind not in (_FIXED, _NAMED):
        raise ValueError("an unknown kind of time zone")
    _, microseconds = _OFFSET.unpack_from(payload)
    offset = timedelta(microseconds=microseconds)
    name = payload[_OFFSET.size :].decode("utf-8")
    if kind == _NAMED:
        return _find_zone(name) or timezone(offset)
    return timezone(offset, name) if name else timezone(offset)


def _find_zone(key: str) -> ZoneInfo | None:
    """The zone of this key; None where this machine's tz database lacks it."""
    if len(key) > 100 or _KEY.fullmatch(key) is None:  # never a path out of the database
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(key)
    except Exception:  # ZoneInfoNotFoundError, or whatever reading such a file gives
        return None


def _pack_datetime(value: datetime) -> bytes:
    low = value.microsecond | _FOLD if value.fold else value.microsecond
    day = value.year, value.month, value.day
    moment = _DATETIME.pack(*day, value.hour, value.minute, value.second, low)
    zone = value.tzinfo
    return moment if zone is None else moment + _pack_zone(zone, value.utcoffset())


def _read_datetime(payload: bytes) -> datetime:
    year, month, day, hour, minute, second, low = _DATETIME.unpack_from(payload)
    zone = _read_zone(payload[_DATETIME.size :])
    fold = low >> 31
    return datetime(year, month, day, hour, minute, second, low & ~_FOLD, zone, fold=fold)


def _pack_date(value: date) -> bytes:
    return _DATE.pack(value.year, value.month, value.day)


def _pack_time(value: time) -> bytes:
    low = value.microsecond | _FOLD if value.fold else value.microsecond
    moment = _TIME.pack(value.hour, value.minute, value.second, low)
    return moment + _pack_zone(value.tzinfo, value.utcoffset())


def _read_time(payload: bytes) -> time:
    hour, minute, second, low = _TIME.unpack_from(payload)
    zone = _read_zone(payload[_TIME.size :])
    return time(hour, minute, second, low & ~_FOLD, zone, fold=low >> 31)


def _pack_timedelta(value: timedelta) -> bytes:
    return _TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


# Of every type that holds no other values, numpy's apart: its code, its layout, the way back.
_PLAIN: Final[tuple[tuple[type, int, Callable[[Any], bytes], Callable[[bytes], Any]], ...]] = (
    (int, BIGINT, _pack_bigint, _read_bigint),  # the packer asks only for those beyond 64 bits
    (complex, COMPLEX, _pack_complex, lambda payload: complex(*_COMPLEX.unpack(payload))),
    (Decimal, DECIMAL, lambda value: str(value).encode("ascii"), _read_decimal),
    (UUID, UUID_, lambda value: value.bytes, lambda payload: UUID(bytes=payload)),
    (datetime, DATETIME, _pack_datetime, _read_datetime),
    (date, DATE, _pack_date, lambda payload: date(*_DATE.unpack(payload))),
    (time, TIME, _pack_time, _read_time),
    (timedelta, TIMEDELTA, _pack_timedelta, lambda payload: timedelta(*_TIMEDELTA.unpack(payload))),
)

LAYOUTS: Final = {kind: (code, pack) for kind, code, pack, _ in _PLAIN}
READERS: Final = {code: read for _, code, _, read in _PLAIN}
NAMES: Final = {
    **{code: kind.__name__ for kind, code in CONTAINERS.items()},
    **{code: kind.__name__ for kind, code, _, _ in _PLAIN},
    BUFFER: "buffer",
    **dict.fromkeys((NDARRAY, NDARRAY_OUT_OF_BAND), "numpy array"),
    NUMPY_SCALAR: "numpy scalar",
    OWN: "value of an own type",
    CODED: "value of an own codec",
}
"""For people."""
