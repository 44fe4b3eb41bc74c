"""What a recording holds: batches and gaps as the bytes of MCAP messages, and back.

A batch (``message_encoding`` ``pubsubd-batch/1``) is, numbers in network byte order:

======  =====  =======================================================================
offset  bytes  field
======  =====  =======================================================================
0       8      first: the number of its first message in the stream, u64
8       8      sent_at: when it was closed, by its publisher's clock, f64 seconds since 1970
16      4      messages: how many are delivered, u32, above 0
20      4      skip: how many values come before these, u32
24      4      H: bytes of the headers, u32; 0: there are none
28      4      V: bytes of the values, u32
32      4      B: how many large buffers there are, u32
36      8 × B  the size of each, u64
…       H      the headers as on the wire: one msgpack map
…       V      the values as on the wire: one msgpack array of ``skip + messages``
…       …      the large buffers of the last value, one behind the other, up to the end
======  =====  =======================================================================

A gap is JSON, by the schema `GAP_SCHEMA`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pubsub import Gap

__all__ = [
    "BATCH_ENCODING",
    "GAP_CHANNEL",
    "GAP_SCHEMA",
    "GAP_SCHEMA_NAME",
    "LARGEST",
    "Stored",
    "gap_of",
    "pack",
    "pack_gap",
    "sizes_of",
    "unpack",
]

BATCH_ENCODING: Final = "pubsubd-batch/1"
GAP_CHANNEL: Final = "pubsubd.gaps"
"""The MCAP topic of the channel of gaps."""
GAP_SCHEMA_NAME: Final = "pubsubd.Gap"
GAP_SCHEMA: Final = json.dumps(
    {
        "type": "object",
        "properties": {
            "topic": {"type": "string"},
            "publisher": {"type": "string"},
            "missed": {"type": "integer"},
            "reason": {"type": "string"},
        },
    }
).encode()
LARGEST: Final = 2**29
"""Bytes of the largest batch that is recorded, and about those that a reader takes at once."""

_HEAD: Final = struct.Struct(">QdIIIII")


class Stored(NamedTuple):
    """A batch of a file."""

    first: int
    sent_at: float
    messages: int
    skip: int
    headers: bytes
    body: memoryview
    buffers: list[bytes]


def pack(
    first: int,
    sent_at: float,
    messages: int,
    skip: int,
    headers: bytes,
    body: bytes | memoryview,
    buffers: Sequence[bytes],
) -> list[bytes | memoryview]:
    """A batch as the parts of an MCAP message."""
    head = _HEAD.pack(first, sent_at, messages, skip, len(headers), len(body), len(buffers))
    sizes = [struct.pack(">Q", len(buffer)) for buffer in buffers]
    return [head, *sizes, headers, body, *buffers]


def unpack(data: bytes) -> Stored:
    """The batch of an MCAP message.

    Raises:
        ValueError: it is none.
    """
    try:
        first, sent_at, messages, skip, headers, values, count = _HEAD.unpack_from(data)
        at = _HEAD.size
        if count * 8 > len(data) - at:
            raise ValueError(f"a batch that announces {count:,} buffers")
        sizes = struct.unpack_from(f">{count}Q", data, at)
    except struct.error as error:
        raise ValueError("a batch that is too short") from error
    at += 8 * count
    if at + headers + values + sum(sizes) != len(data) or not messages:
        raise ValueError("a batch whose sizes do not fit")
    view = memoryview(data)
    head, at = data[at : at + headers], at + headers
    body, at = view[at : at + values], at + values
    buffers = []
    for size in sizes:
        buffers.append(data[at : at + size])
        at += size
    return Stored(first, sent_at, messages, skip, head, body, buffers)


def sizes_of(data: bytes) -> tuple[int, int]:
    """How many messages are in the batch of an MCAP message, and their bytes.

    Raises:
        ValueError: it is no batch.
    """
    if len(data) < _HEAD.size:
        raise ValueError("a batch that is too short")
    _, _, messages, _, _, _, count = _HEAD.unpack_from(data)
    return messages, max(0, len(data) - _HEAD.size - 8 * count)


def pack_gap(gap: Gap) -> bytes:
    """A gap as an MCAP message."""
    fields = {
        "topic": gap.topic,
        "publisher": gap.publisher,
        "missed": gap.missed,
        "reason": gap.reason,
    }
    return json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass")


def gap_of(data: bytes) -> Gap:
    """The gap of an MCAP message.

    Raises:
        ValueError: it is none.
    """
    try:
        fields: dict[str, Any] = json.loads(data)
        gap = Gap(fields["publisher"], fields["topic"], fields["missed"], fields["reason"])
        right = all(type(text) is str for text in (gap.publisher, gap.topic, gap.reason))
        if not right or type(gap.missed) is not int or gap.missed < 0:
            raise ValueError("its fields have other types")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"a gap that is none ({error})") from error
    return gap
