"""The package `mcap` and what compresses for it, as far as they are used here.

Whoever needs them imports them from this module: where they are missing, that raises an ImportError
that says what to install.
"""

from __future__ import annotations

try:
    import lz4.frame as lz4
    import zstandard
    from mcap.data_stream import ReadDataStream, RecordBuilder
    from mcap.exceptions import McapError
    from mcap.opcode import Opcode
    from mcap.records import (
        Channel,
        Chunk,
        ChunkIndex,
        DataEnd,
        Footer,
        Header,
        McapRecord,
        Message,
        MessageIndex,
        Metadata,
        MetadataIndex,
        Schema,
        Statistics,
        SummaryOffset,
    )
except ImportError as error:
    raise ImportError(
        f'recordings need the package mcap ({error}): pip install "pubsubd[record]"'
    ) from error

__all__ = [
    "Channel",
    "Chunk",
    "ChunkIndex",
    "DataEnd",
    "Footer",
    "Header",
    "McapError",
    "McapRecord",
    "Message",
    "MessageIndex",
    "Metadata",
    "MetadataIndex",
    "Opcode",
    "ReadDataStream",
    "RecordBuilder",
    "Schema",
    "Statistics",
    "SummaryOffset",
    "lz4",
    "zstandard",
]
