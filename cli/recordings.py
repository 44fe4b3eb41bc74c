"""``pubsub record``, ``info FILE`` and ``export``: files of what was published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from pubsub.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    UNREACHED,
    Failure,
    after_ctrl_c,
    make_peer,
    say,
)
from pubsub.cli.listing import table
from pubsub.cli.put import Terminated, sigterm
from pubsub.cli.terminal import printable
from pubsub.errors import RecordingError
from pubsub.faces.account import what_is_unknown
from pubsub.stats.words import count, duration, size

if TYPE_CHECKING:
    from pubsub.record import Recorder, Recording

__all__ = ["Wanted", "counted", "info", "lost_in", "needs_mcap", "record"]

UNKNOWN = ("vanished", "unreachable")


@contextmanager
def needs_mcap() -> Iterator[None]:
    """Within: where the package mcap is missing, that is one line."""
    try:
        yield
    except ImportError as error:
        raise Failure(str(error)) from error


# --- record -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What is to be recorded, and how."""

    patterns: Sequence[str]
    path: str
    coordinator: str | None = None
    history: int | Literal["all"] = 0
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    fsync: Literal["never", "chunk"] | float = "never"
    limit_size: int | None = None
    limit_time: float | None = None
    rotate_size: int | None = None
    rotate_time: float | None = None
    overwrite: bool = False
    quiet: bool = False


def record(wanted: Wanted) -> int:
    """Record until something ends it; returns the exit code."""
    with needs_mcap():
        from pubsub.record import Recorder
    code = OK
    with sigterm():
        recorder = None
        try:
            name = f"pubsub record {' '.join(wanted.patterns)}"
            with make_peer(name, wanted.coordinator, None) as peer:
                recorder = Recorder(
                    *(wanted.path, wanted.patterns),
                    peer=peer,
                    history=wanted.history,
                    compression=wanted.compression,
                    fsync=wanted.fsync,
                    limit_size=wanted.limit_size,
                    limit_time=wanted.limit_time,
                    rotate_size=wanted.rotate_size,
                    rotate_time=wanted.rotate_time,
                    overwrite=wanted.overwrite,
                )
                try:
                    recorder.start()
                except (KeyboardInterrupt, Terminated):
                    peer.close(linger=0)  # else it would go on waiting for a coordinator
                    raise
                code = _follow(recorder, quiet=wanted.quiet)
        except RecordingError as error:
            there = error.problem.startswith("it is there already")
            more = " (--force)" if there else ""
            raise Failure(f"{printable(str(error))}{more}") from error
        except KeyboardInterrupt:
            after_ctrl_c()
            return INTERRUPTED
        except Terminated:
            return TERMINATED
    if recorder.lost or any(gap.reason == "vanished" for gap in recorder.unknown):
        return FAILED
    return UNREACHED if recorder.unknown else code


def _follow(recorder: Recorder, *, quiet: bool) -> int:
    """Wait for the end of a Recorder that has begun, and say what it has; returns the exit code."""
    code = OK
    try:
        if not quiet:
            say(f"recording into {recorder.paths[0]}; Ctrl-C ends it")
        while not recorder.wait(0.5):  # a signal that comes as it begins is noticed at its end
            pass
    except KeyboardInterrupt:
        after_ctrl_c()
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    try:
        recorder.close()
    finally:
        if not quiet:
            _account(recorder)
    return code


def _account(recorder: Recorder) -> None:
    batches = sum(row.batches for row in recorder.topics.values())
    text = f"recorded {counted(recorder.messages, batches)}, lost {recorder.lost:,}"
    if recorder.lonely and not recorder.messages:
        text += "; no publisher of it is known (`pubsub doctor TOPIC` says why)"
    fates = [gap.reason for gap in recorder.unknown]
    if fates:
        text += "; " + what_is_unknown(fates.count("vanished"), fates.count("unreachable"))
    paths = recorder.paths
    where = paths[0] if len(paths) == 1 else f"{len(paths)} files, {paths[0]} to {paths[-1]}"
    say(f"{text}: {size(recorder.size)} in {where}")
    if len(recorder.topics) > 1 or recorder.lost:
        for topic, row in sorted(recorder.topics.items()):
            say(
                f"{topic}: {counted(row.messages, row.batches)} of {size(row.size)}, "
                f"lost {row.lost:,}"
            )


def counted(messages: int, batches: int) -> str:
    """``5 messages (1 batch)``."""
    return f"{count(messages, 'message')} ({batches:,} batch{'' if batches == 1 else 'es'})"


# --- info -------------------------------------------------------------------------------------


def info(path: str, *, as_json: bool) -> int:
    """Say what is in a file; one whose recorder was killed gets its index first."""
    with needs_mcap():
        from pubsub import record
        from pubsub.record.finishing import BUSY, finish
    with record.open(path) as recording:
        finished, behind = recording.finished, recording.behind
    left = ""
    if not finished:
        try:
            left = finish(path)
        except OSError as error:
            left = f"it cannot be written to ({error.strerror})"
    with record.open(path) as recording:
        if as_json:
            click.echo(json.dumps(_facts(recording), indent=2, ensure_ascii=False))
        else:
            _print(recording)
    if not finished:
        what = f"{path} was not finished: its last {size(behind)} were no whole chunk"
        if not left:
            say(f"{what}, and were cut off; it is indexed now")
        elif left == BUSY:
            say(f"{path} is being recorded: this is what is in it by now")
        else:
            say(f"{what}; it is left as it is, and gone over each time it is opened: {left}")
    return OK


def lost_in(recording: Recording) -> dict[str, int]:
    """How many messages of each topic are missing."""
    lost: dict[str, int] = {}
    for reason, topics in recording.gaps.items():
        if reason not in (*UNKNOWN, "reached"):
            for topic, missed in topics.items():
                lost[topic] = lost.get(topic, 0) + missed
    return lost


def _facts(recording: Recording) -> dict[str, Any]:
    return {
        "path": recording.path,
        "size": recording.file_size,
        "finished": recording.finished,
        "start": recording.start,
        "end": recording.end,
        "streams": [stream._asdict() for stream in recording.streams],
        "gaps": recording.gaps,
    }


def _print(recording: Recording) -> None:
    lost = lost_in(recording)
    messages = sum(stream.messages for stream in recording.streams)
    total = sum(stream.size for stream in recording.streams)
    click.echo(f"file      {printable(recording.path)}")
    click.echo(f"size      {size(recording.file_size)}, of {size(total)} of messages")
    if recording.end:
        begin, end = (_local(at) for at in (recording.start, recording.end))
        seconds = recording.end - recording.start
        click.echo(f"recorded  {begin} to {end} ({duration(seconds)})")
    click.echo(f"messages  {messages:,}, lost {sum(lost.values()):,}{_unknown(recording)}")
    if not recording.streams:
        return
    click.echo()
    rows = []
    for topic in recording.topics:
        streams = [stream for stream in recording.streams if stream.topic == topic]
        rows.append(
            {
                "topic": topic,
                "messages": sum(stream.messages for stream in streams),
                "batches": sum(stream.batches for stream in streams),
                "bytes": sum(stream.size for stream in streams),
                "lost": lost.pop(topic, 0),
                "publishers": len({stream.publisher for stream in streams}),
                "codec": ", ".join(sorted({stream.codec for stream in streams})),
            }
        )
    rows += [{"topic": topic, "messages": 0, "lost": missed} for topic, missed in lost.items()]
    columns = ("topic", "messages", "batches", "bytes", "lost", "publishers", "codec")
    for line in table(columns, rows):
        click.echo(line)


def _unknown(recording: Recording) -> str:
    counts = [sum(recording.gaps.get(reason, {}).values()) for reason in UNKNOWN]
    text = what_is_unknown(*counts)
    return f"; {text}" if text else ""


def _local(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", timespec="milliseconds")
