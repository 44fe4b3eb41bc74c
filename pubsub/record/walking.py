"""An MCAP file as it is read: record by record, chunk by chunk; nothing in it is trusted.

No more memory is taken than what is there, and of what is compressed no more than `LARGEST` and
some; whatever is wrong with a file is a `RecordingError` that says where.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeVar

from pubsub.errors import RecordingError
from pubsub.record.batches import BATCH_ENCODING, LARGEST, gap_of, sizes_of
from pubsub.record.extra import (
    Channel,
    Chunk,
    ChunkIndex,
    Footer,
    McapError,
    McapRecord,
    Message,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Opcode,
    ReadDataStream,
    Schema,
    Statistics,
    lz4,
    zstandard,
)
from pubsub.record.index import MAGIC, TOTALS, Index, packed
from pubsub.record.writing import CHUNK

__all__ = ["File"]

_HEAD: Final = struct.Struct("<BQ")
_FOOTER: Final = _HEAD.size + 20
_MOST: Final = LARGEST + 2 * CHUNK  # bytes of a chunk: with one of the largest batches at its end
_MESSAGE: Final = struct.Struct("<HIQQ")

T = TypeVar("T", bound=McapRecord)

_BROKEN = (
    *(McapError, struct.error, ValueError, KeyError, OverflowError, MemoryError, RuntimeError),
    zstandard.ZstdError,
)
"""What parsing raises for bytes that are not what they seem (lz4 raises RuntimeError)."""


class File:
    """A file that is open to be read.

    Parameters:
        path: names it in errors.
        file: its bytes.

    Attributes:
        index: what is in it.
        finished: it ends as a finished file does.
        behind: bytes behind what is whole, of one that is not finished.
        broken: why what is behind is not merely the beginning of what was being written; empty: it
            is.

    Raises:
        RecordingError: it is no MCAP file.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.broken = ""
        if file.read(len(MAGIC)) != MAGIC:
            raise self._error("it is no recording (MCAP), by its first bytes")
        index = self._summary()
        self.finished = index is not None
        self.index = index if index is not None else self._scan()
        self.behind = 0 if self.finished else self.size - self.index.end

    def _error(self, problem: str) -> RecordingError:
        return RecordingError(self._path, problem)

    def _read(self, at: int, size: int) -> bytes:
        if size < 0 or at < 0 or at + size > self.size:
            raise self._error(f"it is broken: {size:,} bytes at {at:,} are not there")
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) != size:
            raise self._error("it became shorter while it was read")
        return data

    def _heads(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The opcode of each record, where what is in it begins, and its length; up to the first
        that is not all there."""
        while at + _HEAD.size <= end:
            opcode, length = _HEAD.unpack(self._read(at, _HEAD.size))
            at += _HEAD.size
            if length > end - at:
                return
            yield opcode, at, length
            at += length

    # --- the summary ----------------------------------------------------------------------

    def _summary(self) -> Index | None:
        """What a finished file says of itself; None: it is not finished."""
        at = self.size - len(MAGIC) - _FOOTER
        if at < len(MAGIC):
            return None
        tail = self._read(at, _FOOTER + len(MAGIC))
        if tail[:9] != _HEAD.pack(Opcode.FOOTER, 20) or tail[_FOOTER:] != MAGIC:
            return None
        footer = parse(Footer.read, tail[9:_FOOTER])
        if footer.summary_start == 0:
            return self._scan()
        start = footer.summary_start
        if not len(MAGIC) <= start <= at:
            raise self._error("it is broken: its summary is not in it")
        if footer.summary_crc:
            summary = self._read(start, at - start)
            if zlib.crc32(tail[: _FOOTER - 4], zlib.crc32(summary)) != footer.summary_crc:
                raise self._error("it is broken: the checksum of its summary is another one")
        try:
            index = self._index(start, at)
        except _BROKEN as error:
            raise self._error(f"it is broken: its summary cannot be read ({error!r})") from error
        if not index.streams() and not all(map(index.is_gaps, index.channels.values())):
            raise self._error("it is MCAP, but no recording of pubsubd")
        return index

    def _index(self, start: int, end: int) -> Index:
        index = Index()
        for opcode, at, length in self._heads(start, end):
            if opcode == Opcode.SCHEMA:
                schema = parse(Schema.read, self._read(at, length))
                index.schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                channel = parse(Channel.read, self._read(at, length))
                index.channels[channel.id] = channel
            elif opcode == Opcode.CHUNK_INDEX:
                index.chunks.append(parse(ChunkIndex.read, self._read(at, length)))
            elif opcode == Opcode.STATISTICS:
                statistics = parse(Statistics.read, self._read(at, length))
                index.batches = statistics.channel_message_counts
            elif opcode == Opcode.METADATA_INDEX:
                found = parse(MetadataIndex.read, self._read(at, length))
                if found.name == TOTALS:
                    metadata = self._read(found.offset, found.length)
                    index.take(parse(Metadata.read, metadata[_HEAD.size :]))
        index.chunks.sort(key=lambda chunk: chunk.chunk_start_offset)
        return index

    # --- without one ----------------------------------------------------------------------

    def _scan(self) -> Index:
        """Go over all of it, up to the last whole chunk."""
        index = Index(end=len(MAGIC))
        present: list[set[int]] = []  # the channels of each chunk
        for opcode, at, length in self._heads(len(MAGIC), self.size):
            if opcode in (Opcode.DATA_END, Opcode.FOOTER, Opcode.METADATA):
                break  # of a summary that was being written
            try:
                if opcode == Opcode.CHUNK:
                    present.append(self._add_chunk(index, at - _HEAD.size, length))
                elif opcode == Opcode.MESSAGE_INDEX and index.chunks:
                    self._add_message_index(index.chunks[-1], at, length)
                elif opcode != Opcode.HEADER:
                    raise ValueError("it is none")
            except (RecordingError, *_BROKEN) as error:
                # Where nothing follows, it is what was being written, or the disk was to write,
                # when its machine went.
                if any(self._read_pieces(at + length)):
                    problem = error.problem if isinstance(error, RecordingError) else repr(error)
                    self.broken = f"the record at byte {at - _HEAD.size:,} is broken ({problem})"
                break
            index.end = at + length
        for chunk, channels in zip(index.chunks, present, strict=True):
            if (
                chunk.message_index_offsets.keys() != channels
            ):  # not all of them are there, or right
                chunk.message_index_offsets.clear()
        return index

    def _read_pieces(self, at: int) -> Iterator[bool]:
        """Whether each piece of the rest has anything but zeros."""
        while at < self.size:
            piece = self._read(at, min(1 << 20, self.size - at))
            yield bool(piece.strip(b"\0"))
            at += len(piece)

    def _add_chunk(self, index: Index, at: int, length: int) -> set[int]:
        """A whole chunk is there; returns the channels that it has messages of."""
        chunk, data = self._chunk(at, _HEAD.size + length)
        found = Index(schemas=dict(index.schemas), channels=dict(index.channels))
        for opcode, start, size in _records(data):
            record = data[start : start + size]
            if opcode == Opcode.SCHEMA:
                schema = parse(Schema.read, record)
                found.schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                channel = parse(Channel.read, record)
                found.channels[channel.id] = channel
            elif opcode == Opcode.MESSAGE:
                number = _MESSAGE.unpack_from(record)[0]
                channel = found.channels[number]
                if channel.message_encoding == BATCH_ENCODING:
                    found.count(number, *sizes_of(record[_MESSAGE.size :]))
                elif found.is_gaps(channel):
                    found.count_gap(gap_of(record[_MESSAGE.size :]))
                found.batches[number] = found.batches.get(number, 0) + 1
        index.add(found)
        index.chunks.append(
            ChunkIndex(
                chunk_length=_HEAD.size + length,
                chunk_start_offset=at,
                compression=chunk.compression,
                compressed_size=len(chunk.data),
                message_end_time=chunk.message_end_time,
                message_index_length=0,
                message_index_offsets={},
                message_start_time=chunk.message_start_time,
                uncompressed_size=chunk.uncompressed_size,
            )
        )
        return set(found.batches)

    def _add_message_index(self, chunk: ChunkIndex, at: int, length: int) -> None:
        message_index = parse(MessageIndex.read, self._read(at, length))
        chunk.message_index_offsets[message_index.channel_id] = at - _HEAD.size
        chunk.message_index_length += _HEAD.size + length

    # --- what is in it --------------------------------------------------------------------

    def messages(self, chunk_index: ChunkIndex) -> Iterator[Message]:
        """The messages of a chunk, as they came.

        Raises:
            RecordingError: it is broken.
        """
        at = chunk_index.chunk_start_offset
        try:
            _, data = self._chunk(at, chunk_index.chunk_length)
            for opcode, start, size in _records(data):
                if opcode == Opcode.MESSAGE:
                    channel, sequence, log_time, publish_time = _MESSAGE.unpack_from(data, start)
                    content = data[start + _MESSAGE.size : start + size]
                    yield Message(channel, log_time, content, publish_time, sequence)
        except _BROKEN as error:
            if isinstance(error, RecordingError):
                raise
            raise self._error(f"it is broken: the chunk at byte {at:,} ({error!r})") from error

    def _chunk(self, at: int, length: int) -> tuple[Chunk, bytes]:
        """A chunk, and what is in it.

        Raises:
            RecordingError, or any of `_BROKEN`: it is broken.
        """
        if length > _MOST + 1024:
            raise self._error(f"the chunk at byte {at:,} has {length:,} bytes: at most {_MOST:,}")
        record = self._read(at, length)
        if record[:9] != _HEAD.pack(Opcode.CHUNK, length - _HEAD.size):
            raise ValueError("no chunk")
        chunk = parse(Chunk.read, record[_HEAD.size :])
        data = _decompressed(chunk)
        if len(data) != chunk.uncompressed_size:
            raise ValueError(f"{len(data):,} bytes where it has {chunk.uncompressed_size:,}")
        if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
            raise ValueError("its checksum is another one")
        return chunk, data

    def message_index(self, chunk_index: ChunkIndex) -> bytes:
        """The message indices of a chunk, made anew."""
        _, data = self._chunk(chunk_index.chunk_start_offset, chunk_index.chunk_length)
        found: dict[int, MessageIndex] = {}
        for opcode, start, _ in _records(data):
            if opcode == Opcode.MESSAGE:
                channel, _, log_time, _ = _MESSAGE.unpack_from(data, start)
                one = found.setdefault(channel, MessageIndex(channel_id=channel, records=[]))
                one.records.append((log_time, start - _HEAD.size))
        offset = chunk_index.chunk_start_offset + chunk_index.chunk_length
        records = b""
        chunk_index.message_index_offsets = {}
        for channel, one in found.items():
            chunk_index.message_index_offsets[channel] = offset + len(records)
            records += packed(one)
        chunk_index.message_index_length = len(records)
        return records


def parse(read: Callable[[ReadDataStream], T], data: bytes) -> T:
    """A record; where what it announces is not there, it has less or raises."""
    return read(ReadDataStream(io.BytesIO(data)))


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The opcode of each record in a chunk, where what is in it begins, and its length."""
    at = 0
    while at < len(data):
        opcode, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        least = _MESSAGE.size if opcode == Opcode.MESSAGE else 0
        if not least <= length <= len(data) - at:
            raise ValueError(f"a record of {length:,} bytes at {at:,} of {len(data):,}")
        yield opcode, at, length
        at += length


def _decompressed(chunk: Chunk) -> bytes:
    size = chunk.uncompressed_size
    if size > _MOST:
        raise ValueError(f"it would have {size:,} bytes: at most {_MOST:,}")
    data: Any = chunk.data
    if chunk.compression == "zstd":
        if zstandard.get_frame_parameters(data).content_size > size:
            raise ValueError("it has more bytes than it announces")
        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size + 1)
    elif chunk.compression == "lz4":
        data = lz4.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    elif chunk.compression:
        raise ValueError(f"it is compressed by {chunk.compression[:20]!r}, which is unknown")
    return bytes(data)
