"""What is known of a file without reading it: its channels, its chunks and what they hold in all.

MCAP has it at the end of a finished file, its summary; of another one it is found by going over it.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Final

from pubsub import Gap
from pubsub.record.batches import BATCH_ENCODING, GAP_SCHEMA_NAME
from pubsub.record.extra import (
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    McapRecord,
    Metadata,
    MetadataIndex,
    Opcode,
    RecordBuilder,
    Schema,
    Statistics,
    SummaryOffset,
)

__all__ = ["MAGIC", "TOTALS", "Index", "packed", "summary_of"]

MAGIC: Final = b"\x89MCAP0\r\n"
TOTALS: Final = "pubsubd-totals/1"
"""The name of the metadata that say what is in the file in all."""


@dataclass
class Index:
    """What is in a file, as far as it is whole."""

    end: int = 0
    """Where the last whole chunk ends, with the message indices behind it."""
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    batches: dict[int, int] = field(default_factory=dict)
    """MCAP messages of each channel."""
    totals: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Messages of each channel, and their bytes."""
    gaps: dict[str, dict[str, int]] = field(default_factory=dict)
    """By reason and topic: messages that are missing; where that is not known, how often it was
    said."""

    def is_gaps(self, channel: Channel) -> bool:
        """Whether gaps are in it."""
        schema = self.schemas.get(channel.schema_id)
        return schema is not None and schema.name == GAP_SCHEMA_NAME

    def streams(self) -> dict[int, Channel]:
        """The channels of batches."""
        return {n: c for n, c in self.channels.items() if c.message_encoding == BATCH_ENCODING}

    def count(self, channel: int, messages: int, size: int) -> None:
        """A batch is in it."""
        before = self.totals.get(channel, (0, 0))
        self.totals[channel] = before[0] + messages, before[1] + size

    def count_gap(self, gap: Gap) -> None:
        """A gap is in it."""
        topics = self.gaps.setdefault(gap.reason, {})
        topics[gap.topic] = topics.get(gap.topic, 0) + (gap.missed or 1)

    def add(self, more: Index) -> None:
        """A further chunk is written, or was read."""
        self.schemas.update(more.schemas)
        self.channels.update(more.channels)
        for channel, count in more.totals.items():
            self.count(channel, *count)
        for channel, batches in more.batches.items():
            self.batches[channel] = self.batches.get(channel, 0) + batches
        for reason, topics in more.gaps.items():
            known = self.gaps.setdefault(reason, {})
            for topic, missed in topics.items():
                known[topic] = known.get(topic, 0) + missed

    @property
    def start(self) -> int:
        """When the first batch was recorded, in nanoseconds since 1970; 0: there is none."""
        return min((chunk.message_start_time for chunk in self.chunks), default=0)

    @property
    def last(self) -> int:
        """The same of the last one."""
        return max((chunk.message_end_time for chunk in self.chunks), default=0)

    def metadata(self) -> Metadata:
        """`totals` and `gaps` as a record."""
        totals = {str(channel): count for channel, count in self.totals.items()}
        return Metadata(TOTALS, {"channels": json.dumps(totals), "gaps": json.dumps(self.gaps)})

    def take(self, metadata: Metadata) -> None:
        """The same back.

        Raises:
            ValueError: these are other ones.
        """
        try:
            totals = json.loads(metadata.metadata["channels"])
            gaps = json.loads(metadata.metadata["gaps"])
            self.totals = {int(n): (int(count), int(size)) for n, (count, size) in totals.items()}
            self.gaps = {
                str(reason): {str(topic): int(missed) for topic, missed in topics.items()}
                for reason, topics in gaps.items()
            }
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"its totals are broken ({error!r})") from error


def packed(*records: McapRecord) -> bytes:
    """Records as bytes."""
    builder = RecordBuilder()
    for record in records:
        record.write(builder)
    data: bytes = builder.end()  # type: ignore[no-untyped-call]
    return data


def summary_of(index: Index) -> bytes:
    """All that comes behind the last chunk of a finished file, to stand at ``index.end``."""
    metadata = packed(index.metadata())
    found = MetadataIndex(offset=index.end, length=len(metadata), name=TOTALS)
    data_end = packed(DataEnd(0))
    start = index.end + len(metadata) + len(data_end)
    groups: list[tuple[Opcode, list[McapRecord]]] = [
        (Opcode.SCHEMA, [*index.schemas.values()]),
        (Opcode.CHANNEL, [*index.channels.values()]),
        (Opcode.STATISTICS, [_statistics(index)]),
        (Opcode.CHUNK_INDEX, [*index.chunks]),
        (Opcode.METADATA_INDEX, [found]),
    ]
    summary = b""
    offsets: list[McapRecord] = []
    for opcode, records in groups:
        group = packed(*records)
        if group:
            offsets.append(
                SummaryOffset(
                    group_opcode=opcode, group_start=start + len(summary), group_length=len(group)
                )
            )
        summary += group
    offset_start = start + len(summary)
    summary += packed(*offsets)
    # the checksum goes over the summary and over all of the footer that comes before it
    footer = packed(Footer(start, offset_start, 0))
    crc = zlib.crc32(footer[:-4], zlib.crc32(summary))
    return b"".join((metadata, data_end, summary, packed(Footer(start, offset_start, crc)), MAGIC))


def _statistics(index: Index) -> Statistics:
    return Statistics(
        attachment_count=0,
        channel_count=len(index.channels),
        channel_message_counts=dict(index.batches),
        chunk_count=len(index.chunks),
        message_count=sum(index.batches.values()),
        metadata_count=1,
        message_start_time=index.start,
        message_end_time=index.last,
        schema_count=len(index.schemas),
    )
