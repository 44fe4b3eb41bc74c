"""An MCAP file as it is written: chunk by chunk, each whole or not there for who reads it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Final

from pubsub import __version__
from pubsub.record.extra import (
    Channel,
    Chunk,
    ChunkIndex,
    Header,
    MessageIndex,
    Opcode,
    Schema,
    lz4,
    zstandard,
)
from pubsub.record.index import MAGIC, Index, packed, summary_of

__all__ = ["CHUNK", "COMPRESSIONS", "MOST_CHANNELS", "ChunkWriter"]

CHUNK: Final = 4 * 1024 * 1024
"""Bytes, not yet compressed, after which a chunk is closed."""
MOST_CHANNELS: Final = 60_000
"""Channels of one file; MCAP counts them in 16 bits."""

COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
    "lz4": lambda data: lz4.compress(data),
    "none": lambda data: data,
}

_MESSAGE: Final = struct.Struct("<BQHIQQ")
_BEFORE_LENGTH: Final = 9  # opcode and length, which a record's length does not count


class ChunkWriter:
    """Writes one file. What raises leaves it as it was at ``index.end``; then `finish` alone may
    still be called.

    Parameters:
        descriptor: of the file, which is empty.
        compression: one of `COMPRESSIONS`.

    Attributes:
        index: what is in the file, as far as whole chunks go.
        waiting: bytes of the chunk that is not closed yet.
    """

    def __init__(self, descriptor: int, compression: str) -> None:
        self.index = Index()
        self.waiting = 0
        self._descriptor = descriptor
        self._compression = "" if compression == "none" else compression
        self._compress = COMPRESSIONS[compression]
        self._parts: list[bytes | memoryview] = []
        self._indices: dict[int, MessageIndex] = {}
        self._times: list[int] = []
        self._write(MAGIC, packed(Header("", f"pubsubd {__version__}")))

    def add_schema(self, name: str, data: bytes) -> int:
        """A JSON schema; returns its number."""
        number = len(self.index.schemas) + 1
        schema = Schema(id=number, data=data, encoding="jsonschema", name=name)
        self.index.schemas[number] = schema
        self._add(packed(schema))
        return number

    def add_channel(
        self, topic: str, encoding: str, metadata: dict[str, str], schema: int = 0
    ) -> int:
        """A channel; returns its number."""
        number = len(self.index.channels) + 1
        channel = Channel(
            id=number, topic=topic, message_encoding=encoding, metadata=metadata, schema_id=schema
        )
        self.index.channels[number] = channel
        self._add(packed(channel))
        return number

    def add(
        self,
        channel: int,
        sequence: int,
        log_time: int,
        publish_time: int,
        parts: Iterable[bytes | memoryview],
    ) -> None:
        """A message, of a channel that was added; times are nanoseconds since 1970."""
        parts = list(parts)
        size = _MESSAGE.size - _BEFORE_LENGTH + sum(map(len, parts))
        index = self._indices.get(channel)
        if index is None:
            index = self._indices[channel] = MessageIndex(channel_id=channel, records=[])
        index.records.append((log_time, self.waiting))
        self._times.append(log_time)
        numbers = Opcode.MESSAGE, size, channel, sequence, log_time, publish_time
        self._add(_MESSAGE.pack(*numbers), *parts)

    def _add(self, *parts: bytes | memoryview) -> None:
        self._parts += parts
        self.waiting += sum(map(len, parts))

    def end_chunk(self) -> None:
        """Write what waits, if there are messages in it.

        Raises:
            OSError: it cannot be written. What waited is gone, and the file as it was.
        """
        if not self._times:
            return
        data = b"".join(self._parts)
        indices, times = self._indices, self._times
        self._parts, self._indices, self._times, self.waiting = [], {}, [], 0
        compressed = self._compress(data)
        start, end = min(times), max(times)
        chunk = Chunk(
            compression=self._compression,
            data=compressed,
            message_end_time=end,
            message_start_time=start,
            uncompressed_crc=zlib.crc32(data),
            uncompressed_size=len(data),
        )
        index = self.index
        at = index.end
        chunk_bytes = packed(chunk)
        offset = at + len(chunk_bytes)
        offsets, behind = {}, []
        for channel, one in indices.items():
            offsets[channel] = offset
            behind.append(packed(one))
            offset += len(behind[-1])
        self._write(chunk_bytes, *behind)
        index.chunks.append(
            ChunkIndex(
                chunk_length=len(chunk_bytes),
                chunk_start_offset=at,
                compression=self._compression,
                compressed_size=len(compressed),
                message_end_time=end,
                message_index_length=sum(map(len, behind)),
                message_index_offsets=offsets,
                message_start_time=start,
                uncompressed_size=len(data),
            )
        )
        for channel, one in indices.items():
            index.batches[channel] = index.batches.get(channel, 0) + len(one.records)

    def finish(self) -> None:
        """Write what comes behind the last chunk: the file is finished.

        Raises:
            OSError: it cannot be. It can be read up to the last chunk.
        """
        self._write(summary_of(self.index))

    def sync(self) -> None:
        """Have the disk hold what was written."""
        os.fsync(self._descriptor)

    def _write(self, *parts: bytes) -> None:
        """All of it, or nothing."""
        try:
            for part in parts:
                data = memoryview(part)
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except BaseException:
            os.ftruncate(self._descriptor, self.index.end)
            os.lseek(self._descriptor, self.index.end, os.SEEK_SET)
            raise
        self.index.end += sum(map(len, parts))
