"""Descriptors: which files of the process are ours.

None of them has the number of standard input, output or error, and a forked child keeps none of its
parent's open. Whatever opens a connection, a listening socket, or a pipe by which another process
learns of our end, enters here where it does so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["connected", "fill_standard", "leave_to_parent", "listening"]


class Connection(Protocol):
    """What has a socket or pipe, or had one, or will."""

    @property
    def sock(self) -> Any:
        """That one; None: not now."""


_connections: WeakSet[Connection] = WeakSet()
_servers: list[tuple[Any, Any]] = []


def connected(connection: Connection) -> None:
    """A connection may come to be, of any kind."""
    _connections.add(connection)


def listening(loop: Any, server: Any) -> None:
    """A server of that loop listens. (Those that are closed by now go: uvloop's cannot be held
    weakly.)"""
    _servers[:] = [pair for pair in _servers if not pair[0].is_closed() and pair[1].sockets]
    _servers.append((loop, server))


def fill_standard() -> None:
    """Where standard input, output or error was closed (a daemon's, or by ``>&-``), have nothing
    take its number: a socket that did would get what is printed, and libuv aborts at the sight of
    it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def leave_to_parent() -> None:
    """In a child after a fork: let go of all, so that a connection ends when the parent ends it."""
    if ours := list(_numbers()):
        try:
            null = os.open(os.devnull, os.O_RDWR)
        except OSError:  # none is left: the first of ours makes room, and is taken again
            os.close(ours[0])
            null = os.open(os.devnull, os.O_RDWR)
        for fd in ours:
            if fd != null:  # the number stays taken: nothing of ours closes another's file
                os.dup2(null, fd, inheritable=False)
        if null not in ours:
            os.close(null)
    _connections.clear()
    _servers.clear()


def _numbers() -> Iterable[int]:
    sockets = [connection.sock for connection in list(_connections)]
    for loop, server in _servers:
        if not loop.is_closed():  # uvloop's goes on to tell the number, which may be another's
            sockets += server.sockets
    for sock in sockets:
        fd = sock.fileno() if sock is not None else -1
        if fd >= 0:
            yield fd
