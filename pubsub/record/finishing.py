"""The end of a file whose recorder was killed: it gets the index that a finished one has."""

from __future__ import annotations

import os

from pubsub import __version__
from pubsub.record.extra import Header
from pubsub.record.index import MAGIC, packed, summary_of
from pubsub.record.walking import File

try:
    import fcntl
except ImportError:  # Windows: nobody can tell whether a file is being recorded
    fcntl = None  # type: ignore[assignment]

__all__ = ["BUSY", "finish", "hold"]

BUSY = "it is being recorded"


def hold(descriptor: int) -> bool | None:
    """Show that this process writes the file, until it is closed; False: another one does; None: it
    cannot be told here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def finish(path: str) -> str:
    """Cut off what is behind the last whole chunk, and write the index behind that. Everything
    before stays where it is, so that a file of any size is finished at once, and one that is
    interrupted at this can be finished again.

    Returns:
        why it was left as it is; empty: it is finished now.

    Raises:
        OSError: it cannot be written to.
        RecordingError: it is no recording.
    """
    with open(path, "r+b") as stream:
        mine = hold(stream.fileno())
        if not mine:
            return BUSY if mine is False else "whether it is being recorded cannot be told here"
        file = File(path, stream)
        if file.finished:
            return ""
        if file.broken:
            return file.broken
        index = file.index
        if index.chunks:
            last = index.chunks[-1]
            index.end = last.chunk_start_offset + last.chunk_length
            more = file.message_index(last)
        else:
            index.end = len(MAGIC)
            more = packed(Header("", f"pubsubd {__version__}"))
        stream.truncate(index.end)
        stream.seek(index.end)
        index.end += len(more)
        stream.write(more + summary_of(index))
        stream.flush()
        os.fsync(stream.fileno())
    return ""
