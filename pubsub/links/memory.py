"""Memory that processes of one host share: how it is made, and how it comes to another one.

A segment is a memfd: it has no name, so that nothing of it is left when the last process that has
it is gone, whatever way that ended. It is sealed: nobody can make it shorter under who reads it
(which would kill that one by SIGBUS), and nobody but its maker can write to it.

Its descriptor goes over a connection of its own beside the link, to the same Unix socket, which
says JOIN with a ticket that the link has carried. (What the transports of event loops read from a
link's own socket comes without the descriptors that came with it.)
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from pubsub.core.lending import Borrowing
from pubsub.core.pool import Segment
from pubsub.errors import ProtocolError
from pubsub.links import descriptors, unix
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.wire.messages import Join, Mapped, encode

__all__ = ["Catching", "Mapping", "Passing", "available", "make"]

log = logger("pubsub.memory")

_HEAD = struct.Struct(">IQ")
"""What goes with a descriptor: number and size of the segment."""
ADD_SEALS, GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_FUTURE_WRITE = 1, 2, 4, 16
"""Of fcntl.h; Python's own `fcntl` has not all of them."""
LARGEST = 2**40
AT_ONCE = 8
"""Descriptors that are taken in one turn of the loop."""


def available() -> bool:
    """Whether this system has what it takes."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and unix.available()


class Mapping:
    """Memory that is mapped; see `Memory`. Its pages go back to the system when the last process
    that has it mapped is gone, or has let it go.

    Attributes:
        sock: itself, for `descriptors`, where it has a descriptor to pass on; else None.
    """

    def __init__(self, fd: int, size: int, *, write: bool) -> None:
        prot = mmap.PROT_READ | mmap.PROT_WRITE if write else mmap.PROT_READ
        kept: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        self._map = mmap.mmap(fd, size, prot=prot, **kept)
        self.view = memoryview(self._map)
        self._fd = fd if write else -1
        self._address = 0

    @property
    def sock(self) -> Mapping | None:
        return self if self._fd >= 0 else None

    def fileno(self) -> int:
        """Of its descriptor."""
        return self._fd

    @property
    def address(self) -> int:
        """See `Memory`."""
        if not self._address:
            import numpy

            interface = numpy.frombuffer(self.view, numpy.uint8).__array_interface__
            self._address = interface["data"][0]
        return self._address

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def _leave_some(fd: int) -> None:
    """Leave the last quarter of the descriptors to what knows no other way: new connections.

    Raises:
        OSError: that one is among them.
    """
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= most - most // 4 <= fd:  # -1: there is no limit
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def make(size: int) -> Mapping:
    """New memory of this process, which others can map, and only read.

    Raises:
        OSError: there is none.
    """
    import fcntl

    fd = os.memfd_create("pubsubd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _leave_some(fd)
        os.ftruncate(fd, size)
        made = Mapping(fd, size, write=True)
    except BaseException:
        os.close(fd)
        raise
    # ours stands; later ones can only read
    fcntl.fcntl(fd, ADD_SEALS, SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE | SEAL_SEAL)
    descriptors.connected(made)
    return made


def take(fd: int, size: int) -> Mapping:
    """Map what another process has made; the descriptor is closed.

    Raises:
        ProtocolError: it is not what it should be.
        OSError: it cannot be mapped.
    """
    import fcntl

    try:
        try:
            seals = fcntl.fcntl(fd, GET_SEALS)
        except OSError:
            seals = 0
        if not seals & SEAL_SHRINK:  # before any other question: a file system may not answer
            raise ProtocolError("a descriptor that is no sealed memory: it could be made shorter")
        found = os.fstat(fd)
        if found.st_size != size or not 0 < size <= LARGEST:
            raise ProtocolError(f"memory of {found.st_size:,} bytes, announced as {size:,}")
        _leave_some(fd)
        return Mapping(fd, size, write=False)
    finally:
        os.close(fd)


class Passing:
    """The publishing end: offers segments to the other end of one link.

    Parameters:
        announce: says an `Offer` with that ticket on the link, and lets in who comes with it.
    """

    def __init__(self, announce: Callable[[bytes], None]) -> None:
        self._announce = announce
        self._ticket = b""
        self._waiting: dict[int, Segment] = {}
        self.sock: socket.socket | None = None
        """See `descriptors.Connection`."""
        self._over = False

    def offer(self, segment: Segment) -> bool:
        """Send its descriptor, at once or when the other end has come for it; returns False where
        none can be sent."""
        if self._over:
            return False
        if self.sock is not None:
            return self._send(segment)
        self._waiting[segment.number] = segment
        if not self._ticket:
            self._ticket = this_host().entropy(16)
            self._announce(self._ticket)
        return True

    def joined(self, sock: socket.socket) -> None:
        """The other end has come."""
        if self._over or self.sock is not None:
            sock.close()
            return
        self.sock = sock
        descriptors.connected(self)
        waiting, self._waiting = self._waiting, {}
        for segment in waiting.values():
            if not self._send(segment):  # it is gone again
                break

    def retired(self, segment: Segment) -> None:
        """That one need not be sent any more."""
        self._waiting.pop(segment.number, None)

    def _send(self, segment: Segment) -> bool:
        memory, sock = segment.memory, self.sock
        assert isinstance(memory, Mapping)
        assert sock is not None
        fds = array.array("i", [memory.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            sock.sendmsg([_HEAD.pack(segment.number, segment.size)], ancillary)
        except OSError as error:  # it is gone, or does not read: all goes by the link
            log.debug("no memory is shared with a subscriber any more: %s", error)
            self.end()
            return False
        return True

    def end(self) -> None:
        """The link is over, or nothing can be passed."""
        self._over = True
        self._waiting.clear()
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Catching:
    """The subscribing end: fetches descriptors for one link.

    Parameters:
        name: of the publisher's socket (see `unix`).
        borrowing: gets what was mapped.
        say: writes a frame on the link.
        fail: cuts it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        borrowing: Borrowing,
        say: Callable[[Mapped], None],
        fail: Callable[[ProtocolError], None],
    ) -> None:
        self.sock: socket.socket | None = None
        """See `descriptors.Connection`."""
        self._loop = loop
        self._name = name
        self._borrowing = borrowing
        self._say = say
        self._fail = fail

    def come(self, ticket: bytes) -> None:
        """The publisher has something to pass."""
        if self.sock is not None:
            self._fail(ProtocolError("a second OFFER"))
            return
        try:
            sock = unix.dialled(self._name)
        except OSError as error:
            log.debug("no memory is shared with a publisher: %s", error)
            return
        self.sock = sock
        descriptors.connected(self)
        try:
            sock.send(encode(Join(ticket)))
        except OSError:
            self.end()
            return
        self._loop.add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(AT_ONCE):
            if self.sock is None or not self._take(self.sock):
                return

    def _take(self, sock: socket.socket) -> bool:
        """Take one; returns whether there may be more."""
        flags, room = socket.MSG_CMSG_CLOEXEC, socket.CMSG_SPACE(4 * 4)
        try:
            data, ancillary, told, _ = sock.recvmsg(_HEAD.size, room, flags)
        except BlockingIOError:
            return False
        except OSError:
            data, ancillary, told = b"", [], 0
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data and not fds:
            self.end()  # nothing more is passed; what is mapped stays
            return False
        if told & socket.MSG_CTRUNC and not fds:
            return True  # no descriptor is left here: all goes by the link
        try:
            if len(fds) != 1 or len(data) != _HEAD.size:
                raise ProtocolError(f"{len(fds)} descriptors with {len(data)} bytes")
            number, size = _HEAD.unpack(data)
            self._borrowing.check(number, size)
            memory = take(fds.pop(), size)
        except ProtocolError as error:
            self.end()
            self._fail(error)
            return False
        except OSError as error:  # no descriptors or mappings are left: all goes by the link
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                log.warning("memory of a publisher cannot be mapped: %s", error)
            return True
        finally:
            for fd in fds:
                os.close(fd)
        self._say(self._borrowing.map(number, memory))
        return True

    def end(self) -> None:
        """The link is over."""
        if self.sock is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self.sock.fileno())
            self.sock.close()
            self.sock = None
