"""Large buffers as they arrive, and the memory that is used again for them."""

from __future__ import annotations

import platform
import sys
import tracemalloc

import pytest

from pubsub.buffers import LargeBuffer, reuse_memory

MIB = 1024 * 1024


@pytest.mark.parametrize("sizes", [[1], [3, 5, 1], [1, 1, 1, 1, 1], [1000, 1], [7] * 100])
def test_pieces_become_one_bytes_object_or_writable_memory(sizes: list[int]) -> None:
    for memory in (False, True):
        buffer = LargeBuffer(sum(sizes))
        expected = b""
        for number, size in enumerate(sizes):
            assert len(buffer) == len(expected)
            piece = bytes([number]) * size
            room = buffer.room(size)
            assert len(room) == size
            room[:] = piece
            room.release()
            expected += piece
        if memory:
            view = buffer.take_memory()
            assert view == expected
            assert not view.readonly
        else:
            assert buffer.take_bytes() == expected


def test_g6_memory_is_at_most_twice_what_came() -> None:
    buffer = LargeBuffer(2**40)
    tracemalloc.start()
    try:
        for came in range(MIB, 6 * MIB, MIB):
            buffer.room(MIB).release()
            size, _ = tracemalloc.get_traced_memory()
            assert size < 2 * came + 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
def test_freed_memory_is_used_again() -> None:
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    pages_of_8_mib = 8 * MIB // resource.getpagesize()
    before = faults()
    reuse_memory.__wrapped__()
    assert faults() - before < pages_of_8_mib / 4, "the block itself is not to be touched"
    if platform.libc_ver()[0] != "glibc":
        return  # its allocator may do what it likes
    b"x" * (8 * MIB)
    before = faults()
    for _ in range(10):
        b"x" * (8 * MIB)
    assert faults() - before < pages_of_8_mib
