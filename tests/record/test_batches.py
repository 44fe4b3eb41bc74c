"""The bytes of batches and gaps in a recording."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub import Gap
from pubsub.codec.decoder import MsgpackDecoder
from pubsub.record.batches import Stored, gap_of, pack, pack_gap, sizes_of, unpack

numbers = st.integers(0, 2**32 - 1)
blobs = st.binary(max_size=50)


def packed(batch: Stored) -> bytes:
    return b"".join(pack(*batch))


@given(
    first=st.integers(0, 2**64 - 1),
    sent_at=st.floats(allow_nan=False),
    messages=st.integers(1, 2**32 - 1),
    skip=numbers,
    headers=blobs,
    body=blobs,
    buffers=st.lists(blobs, max_size=4),
)
def test_a_batch_comes_back_as_it_was(
    first: int,
    sent_at: float,
    messages: int,
    skip: int,
    headers: bytes,
    body: bytes,
    buffers: list[bytes],
) -> None:
    batch = Stored(first, sent_at, messages, skip, headers, memoryview(body), buffers)
    data = packed(batch)
    assert unpack(data) == batch
    assert sizes_of(data) == (messages, len(headers) + len(body) + sum(map(len, buffers)))


def test_the_bytes_are_those_of_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/recording.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```batch\n(.*?)^```$", page, re.M | re.S)
    data = bytes.fromhex(example)
    batch = unpack(data)
    assert batch[:5] == (7, 1_500_000_000.0, 1, 0, b"")
    assert batch.buffers == []
    assert MsgpackDecoder().decode(batch.body) == [{"x": 1}]
    assert packed(batch) == data


def test_each_part_has_its_place() -> None:
    data = packed(Stored(7, 1.5, 2, 1, b"\x80", memoryview(b"\x93\x01\x02\x03"), [b"ab"]))
    assert data == (
        struct.pack(">Q", 7)
        + struct.pack(">d", 1.5)
        + bytes([0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1])
        + struct.pack(">Q", 2)
        + b"\x80\x93\x01\x02\x03ab"
    )


@given(st.binary(max_size=80))
def test_any_bytes_are_a_batch_or_a_value_error(data: bytes) -> None:
    try:
        batch = unpack(data)
    except ValueError:
        return
    assert packed(batch) == data


def test_a_batch_cannot_announce_buffers_that_are_not_there() -> None:
    data = struct.pack(">QdIIIII", 0, 0.0, 1, 0, 0, 0, 2**32 - 1)
    with pytest.raises(ValueError, match="buffers"):
        unpack(data)


@pytest.mark.parametrize("missed", [0, 12])
def test_a_gap_comes_back_as_it_was(missed: int) -> None:
    gap = Gap("host:1#2", "ünï/code", missed, "overflow")
    assert gap_of(pack_gap(gap)) == gap


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"1", b"{}", b"[" * 100_000),
        b'{"topic": 1, "publisher": "a", "missed": 1, "reason": "b"}',
        b'{"topic": "t", "publisher": "a", "missed": -1, "reason": "b"}',
    ],
)
def test_what_is_no_gap_is_a_value_error(data: Any) -> None:
    with pytest.raises(ValueError, match="gap"):
        gap_of(data)
