"""What systemd is told of a daemon, and how its journal takes lines: nothing where there is none.

Both are a few lines by design: sd_notify(3) is a datagram, and sd-daemon(3) a number before a line.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Formatter", "Notifier", "prefix"]


class Notifier:
    """Tells the service manager that has started this process how it is; made once, as early as
    there is one: what this process starts in turn has nothing to tell."""

    def __init__(self) -> None:
        where = os.environ.pop("NOTIFY_SOCKET", "")
        self._where = f"\0{where[1:]}" if where.startswith("@") else where  # an abstract one
        self._ready = False

    def ready(self, status: str) -> None:
        """It serves; in a few words, where."""
        self._ready = True
        self._tell("READY=1", f"STATUS={status}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Within, it has its files read anew."""
        if self._ready:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        yield
        if self._ready:
            self._tell("READY=1")

    def stopping(self) -> None:
        """It has been told to end."""
        self._tell("STOPPING=1", "STATUS=")

    def _tell(self, *lines: str) -> None:
        if not self._where:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto("\n".join(lines).encode(), self._where)
        except (OSError, AttributeError) as error:  # Windows has no such sockets
            logging.getLogger("pubsub").warning("NOTIFY_SOCKET cannot be told: %s", error)
            self._where = ""


def prefix(level: int) -> str:
    """What stands before a line of that level on standard error, where that is the journal; else
    nothing."""
    if sys.stderr is None:
        return ""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return ""
    # whoever redirects standard error elsewhere leaves the variable as it is
    if os.environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}":
        return ""
    return f"<{_PRIORITIES.get(level, 6)}>"


_PRIORITIES = {logging.DEBUG: 7, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Formatter(logging.Formatter):
    """Lines with their time, or, for the journal, which has its own, with their priority."""

    def __init__(self) -> None:
        self._plain = logging.Formatter("%(name)s: %(message)s")
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        before = prefix(record.levelno)
        if not before:
            return super().format(record)
        return before + self._plain.format(record).replace("\n", f"\n{before}")
