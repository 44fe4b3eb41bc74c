"""Large buffers as they arrive, and the memory that is used again for them."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import tracemalloc

import pytest

from pubsub.wire.buffers import LargeBuffer, reuse_memory

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
            view = buffer.view()
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


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 1), reason="CPython crashes: gh-111049"
)
def test_a_half_filled_buffer_is_collected_in_silence(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """As when a link is lost in the middle of it, and a cycle holds all of that."""
    for memory in (False, True):
        buffer = LargeBuffer(100, 100)
        cycle: list[object] = [buffer, buffer.view() if memory else buffer.room(10)]
        cycle.append(cycle)
        del buffer, cycle
        gc.collect()
    assert capsys.readouterr().err == ""
    assert not recwarn.list


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again() -> None:
    code = """if True:
        import resource
        from pubsub.wire.buffers import FOR_LARGE, reuse_memory
        count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        size = 8 * 1024 * 1024
        zero = count()
        reuse_memory(FOR_LARGE)
        one = count()
        b"x" * size
        two = count()
        for _ in range(10):
            b"x" * size
        print(one - zero, count() - two, size // resource.getpagesize())
    """
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    touched, again, pages = map(int, out.stdout.split())
    assert touched < pages / 10, "the block itself is not to be touched"
    assert again < pages, "ten values in the pages of the first"


def test_g6_what_is_granted_is_taken_at_once_and_not_copied() -> None:
    tracemalloc.start()
    try:
        buffer = LargeBuffer(4 * MIB, granted=4 * MIB)
        for _ in range(4):
            buffer.room(MIB).release()
        buffer.take_bytes()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 4 * MIB <= peak < 4 * MIB + 10_000


def test_a_process_that_may_have_but_little_memory_goes_without_the_hint() -> None:
    reuse_memory(2**62)
