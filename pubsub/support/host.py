"""The host: what a process finds around it, where a simulation gives it something else.

Clocks for the time of a wait are not here: they are those of the event loop or, for a thread that
blocks, the operating system's.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import NamedTuple

__all__ = ["Host", "on_host", "this_host"]


def _source_of(address: str) -> str:
    """Nothing is sent: to connect a datagram socket only chooses."""
    try:
        *_, name = socket.getaddrinfo(address, 9, flags=socket.AI_NUMERICHOST)[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(name)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _socket_of(name: str) -> str:
    if sys.platform == "linux":
        return f"\0pubsubd-{name}"  # abstract: it leaves no file
    if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
        return ""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pubsubd", name)


class Host(NamedTuple):
    """A machine, and a process on it. Whoever asks often keeps the function under a name."""

    wall_clock: Callable[[], float] = time.time
    """Seconds since 1970, as others are told."""
    stopwatch: Callable[[], float] = time.monotonic
    """Seconds that code takes."""
    entropy: Callable[[int], bytes] = os.urandom
    process_id: Callable[[], int] = os.getpid
    name: Callable[[], object] = lambda: socket.gethostname()
    program: Callable[[], object] = lambda: sys.argv[0]
    source_of: Callable[[str], str] = _source_of
    """The address of ours from which that one would be dialled; empty: no way leads there."""
    socket_of: Callable[[str], str] = _socket_of
    """The address of the Unix socket of that name; empty: this host has none."""
    context: Callable[[], Context] = Context
    """Makes an empty context for what outlives a call; see `apart`."""


_here = Host()


def this_host() -> Host:
    """The one that this process runs on."""
    return _here


@contextmanager
def on_host(host: Host) -> Iterator[None]:
    """Run on another one, for a while."""
    global _here
    before, _here = _here, host
    try:
        yield
    finally:
        _here = before
