"""Shared memory: what a publisher passes that is not what it should be."""

from __future__ import annotations

import array
import os
import socket
import tempfile

import pytest

from pubsub.errors import ProtocolError
from pubsub.links import memory

pytestmark = pytest.mark.skipif(
    not memory.available(), reason="no memory is shared on this system"
)


def memfd(size: int, seals: int = memory.SEAL_SHRINK) -> int:
    import fcntl

    fd = os.memfd_create("pubsubd", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, memory.ADD_SEALS, seals)
    return fd


class Catcher:
    """The subscribing end of a connection for descriptors, of which the test has the other."""

    def __init__(self) -> None:
        from pubsub.core.lending import Borrowing

        self.said: list[object] = []
        self.failed: list[ProtocolError] = []
        self.borrowing = Borrowing(lambda: None)
        loop = type("Loop", (), {"is_closed": lambda _: True})()
        self.catching = memory.Catching(
            loop,
            "",
            self.borrowing,
            self.said.append,
            self.failed.append,
        )
        self.liar, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self.catching.sock = ours

    def lie(self, data: bytes, *fds: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.liar.sendmsg([data], ancillary if fds else [])
        self.catching._read()

    def close(self) -> None:
        self.liar.close()
        self.catching.end()


HEAD = memory._HEAD.pack
LIES = ("a file", "a pipe", "not sealed", "shorter", "longer", "empty", "ten", "none", "cut short")


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_sealed_memory_of_the_size_that_was_said_cuts_the_link(lie: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    catcher = Catcher()
    size = 2**20
    fds: list[int] = []
    data = HEAD(1, size)
    if lie == "a file":
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            fds = [os.dup(file.fileno())]
    elif lie == "a pipe":
        fds = [*os.pipe()]
    elif lie == "not sealed":
        fds = [memfd(size, memory.SEAL_GROW)]
    elif lie in ("shorter", "longer", "empty"):
        real = {"shorter": size - 4096, "longer": size + 4096, "empty": 0}[lie]
        fds = [memfd(real)]
        data = HEAD(1, 0) if lie == "empty" else data
    elif lie == "ten":
        fds = [memfd(size) for _ in range(10)]
    elif lie == "cut short":
        fds, data = [memfd(size)], data[:5]
    catcher.lie(data, *(fds[:1] if lie == "a pipe" else fds))
    for fd in fds:
        os.close(fd)
    assert len(catcher.failed) == 1
    assert catcher.borrowing.segments == 0
    assert catcher.said == []
    catcher.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_memory_that_was_taken_cannot_be_made_shorter_under_who_reads_it() -> None:
    catcher = Catcher()
    fd = memfd(2**20)
    catcher.lie(HEAD(1, 2**20), fd)
    assert catcher.borrowing.segments == 1
    block = catcher.borrowing.block(0, 1, 2**20 - 10, 10)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    assert block.take_bytes() == bytes(10)
    catcher.close()


def test_thousands_of_segments_cut_the_link_and_leave_nothing() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    catcher = Catcher()
    for number in range(1_000):
        fd = memfd(4096)
        try:
            catcher.lie(HEAD(number, 4096), fd)
        except OSError:
            break  # it has hung up
        finally:
            os.close(fd)
        if catcher.failed:
            break
    assert catcher.borrowing.segments <= 256
    assert len(catcher.failed) == 1
    catcher.close()
    catcher.borrowing.end()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("loan", "segment", "start", "size"),
    [
        (0, 1, 2**20, 1),
        (0, 1, 0, 2**20 + 1),
        (0, 1, 2**64 - 1, 2),
        (0, 1, 0, 0),
        (0, 1, 0, 2**64 - 1),
        (0, 2, 0, 1),
        (1, 1, 0, 1),
    ],
)
def test_a_lent_of_what_is_not_there_is_refused(
    loan: int, segment: int, start: int, size: int
) -> None:
    catcher = Catcher()
    fd = memfd(2**20)
    catcher.lie(HEAD(1, 2**20), fd)
    os.close(fd)
    with pytest.raises(ProtocolError):
        catcher.borrowing.block(loan, segment, start, size)
    assert catcher.borrowing.held == 0
    catcher.close()


@pytest.mark.parametrize("seals", [0, memory.SEAL_SHRINK])
def test_a_file_system_that_does_not_answer_is_not_asked(
    seals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of FUSE, as a hostile publisher's own: to ask for its size would stop the loop."""
    asked: list[int] = []
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        asked.append(fd)
        return real(fd)

    catcher = Catcher()
    fd = memfd(2**20, seals or memory.SEAL_GROW)
    monkeypatch.setattr(os, "fstat", fstat)
    catcher.lie(HEAD(1, 2**20), fd)
    monkeypatch.undo()
    os.close(fd)
    assert bool(asked) is bool(seals)
    catcher.close()
