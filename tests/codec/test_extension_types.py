"""The extension types are protocol: these bytes must never change."""

from __future__ import annotations

import decimal
import struct
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest

from pubsub.codec import extension_types
from pubsub.codec.decoder import MsgpackDecoder
from pubsub.codec.encoder import MsgpackEncoder, RawEncoder
from pubsub.codec.extension_types import CONTAINERS, LAYOUTS, NAMES, READERS, Unencodable
from pubsub.errors import DecodeError

BERLIN = ZoneInfo("Europe/Berlin")


def pack(value: Any) -> bytes:
    return MsgpackEncoder("t", 2**30).pack(value)


def read(code: int, payload: bytes) -> Any:
    body = b"\x91" + msgpack.packb(msgpack.ExtType(code, payload))
    return MsgpackDecoder().decode(body, ())[0]


GOLDEN: list[tuple[Any, int, str]] = [
    ((), 1, "90"),
    ((1, "a"), 1, "92 01 a161"),
    ({7}, 2, "91 07"),
    (frozenset({7}), 3, "91 07"),
    (2**64, 4, "01 0000000000000000"),
    (-(2**63) - 1, 4, "ff 7fffffffffffffff"),
    (1.5 - 2j, 5, "3ff8000000000000 c000000000000000"),
    (Decimal("-1.50"), 6, "2d312e3530"),
    (Decimal("sNaN7"), 6, "734e614e37"),
    (UUID("12345678-1234-5678-1234-567812345678"), 7, "12345678123456781234567812345678"),
    (datetime(2024, 2, 29, 23, 59, 58, 1), 8, "07e8 02 1d 17 3b 3a 00000001"),
    (datetime(2024, 2, 29, fold=1), 8, "07e8 02 1d 00 00 00 80000000"),
    (
        datetime(2024, 2, 29, tzinfo=timezone.utc),
        8,
        "07e8 02 1d 00 00 00 00000000  01 0000000000000000",
    ),
    (
        datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-1), "me")),
        8,
        "07e8 02 1d 00 00 00 00000000  01 ffffffff296c5c00 6d65",
    ),
    (
        datetime(2024, 7, 1, tzinfo=BERLIN),
        8,
        "07e8 07 01 00 00 00 00000000  02 00000001ad274800 4575726f70652f4265726c696e",
    ),
    (date(2024, 2, 29), 9, "07e8 02 1d"),
    (time(23, 59, 58, 999_999, fold=1), 10, "17 3b 3a 800f423f"),
    (time(1, tzinfo=timezone.utc), 10, "01 00 00 00000000  01 0000000000000000"),
    (time(1, tzinfo=BERLIN), 10, "01 00 00 00000000  03 4575726f70652f4265726c696e"),
    (timedelta(days=-1, seconds=2, microseconds=3), 11, "ffffffff 00000002 00000003"),
]


@pytest.mark.parametrize(("value", "code", "payload"), GOLDEN, ids=repr)
def test_the_bytes_of_each_type(value: Any, code: int, payload: str) -> None:
    raw = bytes.fromhex(payload)
    assert pack(value) == msgpack.packb(msgpack.ExtType(code, raw))
    found = read(code, raw)
    assert type(found) is type(value)
    assert repr(found) == repr(value)  # which == does not tell: fold, zone, sNaN


def test_every_code_stands_in_all_tables_and_has_golden_bytes_here() -> None:
    plain = {code for code, _ in LAYOUTS.values()}
    assert plain == set(READERS)
    assert plain.isdisjoint(CONTAINERS.values())
    assert {code for _, code, _ in GOLDEN} == plain | set(CONTAINERS.values())
    assert sorted(NAMES) == list(range(1, 18))
    assert (extension_types.BUFFER, extension_types.NDARRAY) == (12, 13)
    assert (extension_types.NDARRAY_OUT_OF_BAND, extension_types.NUMPY_SCALAR) == (14, 15)
    assert (extension_types.OWN, extension_types.CODED) == (16, 17)  # test_own_types, _codecs


def test_the_bytes_of_a_reference_to_a_buffer() -> None:
    enc = RawEncoder("t", 2**30)
    assert enc.pack(bytes(70_000)) == msgpack.packb(msgpack.ExtType(12, b"\0\0\0\0"))
    assert enc.pack(bytes(70_000)) == msgpack.packb(msgpack.ExtType(12, b"\0\0\0\1"))
    assert pack(b"x") == msgpack.packb(b"x")


MOMENT = bytes.fromhex("07e8 07 01 00 00 00 00000000")


def named(kind: int, microseconds: int, key: bytes) -> bytes:
    return MOMENT + struct.pack(">Bq", kind, microseconds) + key


@pytest.mark.parametrize(
    "key",
    [
        b"Mars/Olympus",
        b"",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"Europe/../Europe/Berlin",
        b"Europe",
        b"x" * 1000,
        b"a\0b",
        b"tzdata.zoneinfo",
    ],
)
def test_a_zone_that_is_unknown_here_becomes_its_offset(key: bytes) -> None:
    found = read(8, named(2, 7_200_000_000, key))
    assert found == datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2)))
    assert type(found.tzinfo) is timezone


def test_a_bare_time_in_an_unknown_zone_cannot_be_read() -> None:
    with pytest.raises(DecodeError, match="its time zone is not known here"):
        read(10, bytes(7) + b"\x03Mars/Olympus")


BROKEN: list[tuple[int, bytes]] = [
    (5, b""),
    (5, bytes(15)),
    (5, bytes(17)),
    *(
        (6, text)
        for text in (b"", b"garbage", b"1_0", b" 1", b"1\n", b"NaN-1", b"0x1", b"\xd9\xa1")
    ),
    (6, b"1e99999999999999999999"),
    (7, bytes(15)),
    (7, bytes(17)),
    (8, b""),
    (8, MOMENT[:-1]),
    (8, b"\0\0" + MOMENT[2:]),  # the year 0
    (8, MOMENT[:2] + b"\x0d" + MOMENT[3:]),  # the 13th month
    (8, MOMENT[:-4] + b"\x7f\xff\xff\xff"),
    (8, MOMENT + b"\x01"),
    (8, MOMENT + b"\x04" + bytes(8)),
    (8, named(1, 86_400_000_000, b"")),
    (8, named(1, 2**63 - 1, b"")),
    (8, named(2, -(2**63), b"Mars/Olympus")),
    (8, named(1, 0, b"\xff")),
    (9, b""),
    (9, bytes(4)),
    (9, b"\x07\xe8\x02\x1e"),  # 30 February
    (9, b"\xff\xff\x01\x01"),
    (10, b""),
    (10, b"\x18" + bytes(6)),
    (10, bytes(7) + b"\x03\xff"),
    (11, bytes(11)),
    (11, b"\x7f\xff\xff\xff" + bytes(8)),
]


@pytest.mark.parametrize(("code", "payload"), BROKEN)
def test_a_broken_payload_is_a_decode_error_that_names_the_type(code: int, payload: bytes) -> None:
    with pytest.raises(DecodeError, match=f"^a message with a broken {NAMES[code]} "):
        read(code, payload)


@pytest.mark.parametrize("text", [b"garbage", b"1e99999999999999999999"])
def test_garbage_is_no_decimal_under_any_decimal_context(text: bytes) -> None:
    with decimal.localcontext() as context:
        context.clear_traps()
        with pytest.raises(DecodeError):
            read(6, text)
        assert read(6, b"NaN").is_nan()
        assert read(6, b"-sNaN12").is_snan()


def test_a_signalling_nan_is_no_key() -> None:
    with pytest.raises(DecodeError, match="hash"):
        read(2, b"\x91" + pack(Decimal("sNaN")))


def test_an_int_is_binary_and_may_have_a_million_digits() -> None:
    assert read(4, b"") == 0
    assert read(4, b"\xff") == -1
    assert read(4, b"\x01" + bytes(500_000)) == 1 << 4_000_000


class Odd(tzinfo):
    """A time zone of the user's own."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None


def test_a_zone_that_has_no_common_name_is_refused() -> None:
    for zone in (Odd(), unnamed_zone()):
        for value in (datetime(2020, 1, 1, tzinfo=zone), time(1, tzinfo=zone)):
            with pytest.raises(Unencodable, match="which has no common name"):
                pack(value)


def unnamed_zone() -> ZoneInfo:
    """A ZoneInfo without a key."""
    import io

    data = b"TZif" + b"\0" * 16 + struct.pack(">6I", 0, 0, 0, 0, 1, 4)
    return ZoneInfo.from_file(io.BytesIO(data + struct.pack(">iBB", 0, 0, 0) + b"ABC\0"))
