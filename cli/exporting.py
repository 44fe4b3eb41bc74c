"""``pubsub export``: a recording as a file that other tools show, each message as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pubsub import DecodeError, Gap, Message
from pubsub.cli.command import FAILED, OK, Failure, say
from pubsub.cli.formats import as_json
from pubsub.cli.recordings import needs_mcap

if TYPE_CHECKING:
    from pubsub.record import Recording

__all__ = ["Wanted", "export", "schema_of"]

DEEPEST = 8
"""Levels of a value that its schema describes."""


@dataclass(frozen=True)
class Wanted:
    """What is to be written where."""

    path: str
    to: str
    topics: Sequence[str] = ()
    allow_pickle: bool = False
    overwrite: bool = False


def export(wanted: Wanted) -> int:
    """Write the file; returns the exit code."""
    with needs_mcap():
        from pubsub import record
    to = Path(wanted.to)
    if to.is_dir():
        raise Failure(f"{to}: it is a directory")
    if to.exists() and not wanted.overwrite:
        raise Failure(f"{to}: it is there already: choose another name, or --force")
    part = to.with_name(f".{to.name}.part")  # nobody finds half a file under its name
    allow = wanted.allow_pickle
    try:
        with record.open(wanted.path, topics=wanted.topics, allow_pickle=allow) as recording:
            written, undecodable, missing = _write(recording, part)
        os.replace(part, to)
    except DecodeError as error:
        raise Failure(
            f"the stream of {error.topic!r} from {error.publisher} cannot be decoded without code "
            "of its publisher's choice, or of this program's: leave it out by --topics, or, where "
            "it is a pickle, pass --allow-pickle if who wrote the file may run code here"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()
    text = f"wrote {written:,} messages to {to}"
    if missing:
        text += f"; {missing:,} were lost when it was recorded"
    if undecodable:
        text += f"; {undecodable:,} cannot be decoded"
    say(text)
    return FAILED if undecodable else OK


def _write(recording: Recording, part: Path) -> tuple[int, int, int]:
    """Write all of it; returns how many messages were written, cannot be decoded, and are
    missing."""
    from pubsub.record.batches import GAP_CHANNEL, GAP_SCHEMA, GAP_SCHEMA_NAME, pack_gap
    from pubsub.record.writing import CHUNK, ChunkWriter

    written = undecodable = missing = 0
    with open(part, "wb", buffering=0) as stream:
        writer = ChunkWriter(stream.fileno(), "zstd")
        gap_schema = writer.add_schema(GAP_SCHEMA_NAME, GAP_SCHEMA)
        gaps = writer.add_channel(GAP_CHANNEL, "json", {}, gap_schema)
        channels: dict[str, int] = {}
        for event in recording.events():
            for message in recording.decoded(event):
                if isinstance(message, Gap):
                    writer.add(gaps, 0, event.at, event.at, [pack_gap(message)])
                    undecodable += message.missed if event.stream is not None else 0
                    missing += message.missed if event.stream is None else 0
                    continue
                text = _as_object(message)
                channel = channels.get(message.topic)
                if channel is None:
                    schema = json.dumps(schema_of(json.loads(text))).encode()
                    number = writer.add_schema(message.topic, schema)
                    channel = writer.add_channel(message.topic, "json", {}, number)
                    channels[message.topic] = channel
                sent_at = int(message.sent_at * 1e9) if 0 < message.sent_at < 2**34 else event.at
                writer.add(channel, message.seq & 0xFFFFFFFF, event.at, sent_at, [text])
                written += 1
            if writer.waiting >= CHUNK:
                writer.end_chunk()
        writer.end_chunk()
        writer.finish()
    return written, undecodable, missing


def _as_object(message: Message) -> bytes:
    """A JSON object, which is what such tools take: what is none is its "value"."""
    value = as_json(message.value)
    return value if isinstance(message.value, dict) else b'{"value": ' + value + b"}"


def schema_of(value: Any, deepest: int = DEEPEST) -> dict[str, Any]:
    """A JSON schema of values like this one. (Those that follow may have more, or other types: it
    says what there is to choose from, and forbids nothing.)"""
    if isinstance(value, dict):
        if not deepest:
            return {"type": "object"}
        fields = {key: schema_of(each, deepest - 1) for key, each in value.items()}
        return {"type": "object", "properties": fields}
    if isinstance(value, list):
        if not (value and deepest):
            return {"type": "array"}
        return {"type": "array", "items": schema_of(value[0], deepest - 1)}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, (int, float)):
        return {"type": "number"}
    return {} if value is None else {"type": "string"}
