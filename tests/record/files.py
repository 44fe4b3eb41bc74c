"""Recordings for tests, written without any Peer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from pubsub import Gap
from pubsub.codec.encoder import MsgpackEncoder
from pubsub.record.batches import (
    BATCH_ENCODING,
    GAP_CHANNEL,
    GAP_SCHEMA,
    GAP_SCHEMA_NAME,
    pack,
    pack_gap,
)
from pubsub.record.index import Index
from pubsub.record.writing import ChunkWriter
from pubsub.wire.frames import array_header

__all__ = ["PUBLISHER", "Written", "body_of", "write"]

PUBLISHER = "127.0.0.1:5000#1"
SECOND = 1_000_000_000


class Written(NamedTuple):
    """A file, and what is in it."""

    path: Path
    values: list[list[Any]]
    """Of each chunk."""
    ends: list[int]
    """Where each chunk ends, without its message indices."""


def body_of(values: list[Any]) -> bytes:
    """The body of a batch."""
    pack = MsgpackEncoder("t", 2**30).pack
    return array_header(len(values)) + b"".join(map(pack, values))


def write(
    path: Path,
    chunks: int = 4,
    *,
    compression: str = "zstd",
    codec: str = "msgpack",
    topics: tuple[str, ...] = ("a/x", "a/y"),
    finish: bool = True,
) -> Written:
    """A file of so many chunks, each of a batch of each topic, a second later than the one before;
    a gap stands before the first of each chunk but the first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        writer = ChunkWriter(descriptor, compression)
        gaps = writer.add_channel(
            GAP_CHANNEL, "json", {}, writer.add_schema(GAP_SCHEMA_NAME, GAP_SCHEMA)
        )
        channels = [
            writer.add_channel(topic, BATCH_ENCODING, {"publisher": PUBLISHER, "codec": codec})
            for topic in topics
        ]
        values: list[list[Any]] = []
        for number in range(chunks):
            at = (number + 1) * SECOND
            more = Index()
            if number:
                gap = Gap(PUBLISHER, topics[0], 2, "overflow")
                writer.add(gaps, 0, at, at, [pack_gap(gap)])
                more.count_gap(gap)
            values.append([])
            for channel in channels:
                batch = [{"n": number, "channel": channel, "i": i} for i in range(3)]
                body = body_of(batch)
                parts = pack(5 * number, at / 1e9, 3, 0, b"", body, [])
                writer.add(channel, 5 * number, at, at, parts)
                more.count(channel, 3, len(body))
                values[-1] += batch
            writer.end_chunk()
            writer.index.add(more)
        ends = [c.chunk_start_offset + c.chunk_length for c in writer.index.chunks]
        if finish:
            writer.finish()
    finally:
        os.close(descriptor)
    return Written(path, values, ends)
