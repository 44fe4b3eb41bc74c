"""Unix-domain sockets: how two peers of one host have their link, beside TCP.

The name of a peer's socket is made of its `peer_id` (`config.name_here`), so that none travels. On
Linux it is abstract: it leaves no file, belongs to one network namespace, and nobody else has it
while it is in use. Elsewhere it is a file in a directory that only its user can enter.

Links know the two ends of such a connection as they know those of TCP, by a host and a port: the
host is a name below `localhost`, made of the socket's, and the port is 0. So all that holds on
loopback holds here, the proof of the two ends above all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any

from pubsub.config import LOCALHOST, Way
from pubsub.support.host import this_host

__all__ = ["available", "bound", "connect", "dialled", "end_of", "forget", "is_unix", "prepare"]

FAMILY = getattr(socket, "AF_UNIX", -1)
BUFFER = 2 * 1024 * 1024
"""Bytes that the kernel takes of who writes before who reads has them; it doubles that, for what
keeping them costs, and gives no more than net.core.wmem_max (208 KiB, as Linux before 6.18 ships
it). Who writes is woken when three quarters have been read: with little, both sides sleep in turns,
and a wake-up takes as long as to copy some 100 KiB."""
SHORT = 208 * 1024
"""The same, where several channels share a link: what waits there, nothing overtakes."""
STARTING = 60.0
"""Seconds for which a file that nobody listens at may be that of a process that begins to."""


def available() -> bool:
    """Whether there are any here."""
    return bool(this_host().socket_of("-"))


def is_unix(sock: Any) -> bool:
    """Whether that is one."""
    return getattr(sock, "family", None) == FAMILY


def end_of(name: str | bytes | None) -> tuple[str, int]:
    """An end of a connection, as links know it: the same for both sides, whatever the name is that
    a stranger has given to his."""
    raw = name if isinstance(name, bytes) else os.fsencode(name or "")
    return (f"{hashlib.sha256(raw).hexdigest()[:32]}{LOCALHOST}" if raw else "localhost"), 0


def bound(name: str) -> socket.socket:
    """A socket of that name, at which nobody listens yet.

    Raises:
        OSError: somebody has it, or there can be none.
    """
    address = _address(name)
    if not _is_abstract(address):
        Path(address).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(Path(address).parent)
        _sweep(Path(address))
    sock = socket.socket(FAMILY, socket.SOCK_STREAM)
    try:
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(
    loop: asyncio.AbstractEventLoop, way: Way, protocol: asyncio.BaseProtocol
) -> None:
    """Make the connection of that protocol. It is there at once, or refused at once: nothing waits.

    The socket has a name of its own (on Linux), which the proof covers as it does the port of one
    who dials by TCP. Without one, all connections to a name would look the same, and who took that
    name from a process that ends could pass on a proof between two of them.
    """
    sock = dialled(way.host.removesuffix(LOCALHOST))
    try:
        await loop.create_unix_connection(lambda: protocol, sock=sock)
    except BaseException:
        sock.close()
        raise


def dialled(name: str) -> socket.socket:
    """A connection to the socket of that name.

    Raises:
        OSError: there is none.
    """
    address = _address(name)
    sock = socket.socket(FAMILY, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            if _is_abstract(address):
                sock.bind(f"\0pubsubd-{this_host().entropy(16).hex()}")
            else:
                _check(Path(address).parent)
            sock.connect(address)
        except FileNotFoundError:
            raise ConnectionRefusedError from None
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: Any) -> int | None:
    """Have a connection carry large messages well; returns the user at its other end. None: this
    system does not tell; only the one whose directory it is can be there.

    The loop's own socket may not set options (uvloop's). What does it here has the same descriptor
    and not a duplicate: where none is left for that, nobody could say who the user is."""
    option = getattr(socket, "SO_PEERCRED", None)
    same = socket.socket(FAMILY, socket.SOCK_STREAM, fileno=sock.fileno())
    try:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        if option is not None:
            found = same.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
            return int(struct.unpack("3i", found)[1])
    except OSError:  # nothing is known of who is there: then it is nobody
        return -1
    finally:
        same.detach()
    return None


def forget(name: str) -> None:
    """Nobody listens there any more: a file that was its name goes."""
    address = this_host().socket_of(name)
    if address and not _is_abstract(address):
        Path(address).unlink(missing_ok=True)


def _address(name: str) -> str:
    address = this_host().socket_of(name)
    if not address:
        raise ConnectionRefusedError
    return address


def _is_abstract(address: str) -> bool:
    return address.startswith("\0")


def _check(directory: Path) -> None:
    """Raise PermissionError where others may have a socket in that directory."""
    found = directory.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise PermissionError(f"{directory} is not this user's alone (chmod 700)")


def _sweep(ours: Path) -> None:
    """Remove what processes of this host have left that were killed: those of another one, on which
    the same directory is mounted, begin otherwise."""
    begin = ours.name.partition("-")[0]
    for path in ours.parent.glob(f"{begin}-*"):
        with contextlib.suppress(OSError), socket.socket(FAMILY, socket.SOCK_STREAM) as probe:
            if time.time() - path.lstat().st_mtime < STARTING:
                continue
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
