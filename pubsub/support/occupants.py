"""Occupants: which process of this machine listens at a port, for errors that should name it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from pubsub.support.about import plain

__all__ = ["occupant"]

LISTENING = "0A"
SHOWN = 80
"""Characters of a command that are shown."""


def occupant(port: int) -> str:
    """``pid 123 'python app.py'``, where that can be found out (on Linux, for processes that we may
    look at), else a phrase that fits in its place."""
    with suppress(OSError):
        wanted = {f"socket:[{inode}]" for inode in _listening(port)}
        for pid in filter(str.isdigit, os.listdir("/proc") if wanted else ()):
            with suppress(OSError):  # it is another user's, or has ended
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in wanted:
                        return f"pid {pid} '{_command(pid)}'"
    return "the process that listens there"


def _listening(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen at a port."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/net/{table}") as lines:
            for line in lines:
                row = line.split()
                if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port:
                    yield row[9]


def _command(pid: str) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096).decode("utf-8", "replace").rstrip("\0").split("\0")
    words[0] = os.path.basename(words[0])
    return plain(" ".join(words), SHOWN)
