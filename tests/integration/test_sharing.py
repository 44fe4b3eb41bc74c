"""Shared memory: what a Sub hands out, and who holds what, over real links of one host."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import logging
import os
import pickle
import resource
import signal
import socket
import weakref
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pubsub import Peer, Pub, Sub
from pubsub.config import MIB
from pubsub.core.pool import IDLE, Pool
from pubsub.links import memory, unix
from pubsub.wire.buffers import Block
from tests.integration.support import LONG, break_links, coordinator_in_loop, eventually

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(not memory.available(), reason="no memory is shared on this system")

SIZE = 200_000
WAYS = ("memory", "socket", "tcp", "local")


class Pair:
    """A Pub and a Sub, and the peers that they belong to."""

    def __init__(self, here: Peer, there: Peer, pub: Pub, sub: Sub) -> None:
        self.here, self.there, self.pub, self.sub = here, there, pub, sub

    @property
    def pool(self) -> Pool:
        pool = self.here.runtime.sharing.pool
        assert pool is not None
        return pool

    @property
    def loans(self) -> int:
        """Blocks that are lent to others."""
        return sum(lending.loans for lending, _ in self.here.runtime.sharing._lent.values())

    @property
    def held(self) -> int:
        """Blocks that somebody holds there."""
        return sum(borrowing.held for borrowing in self.there.runtime.sharing._borrowed)

    @property
    def used(self) -> int:
        """Blocks that are not free."""
        return sum(segment.used for segment in self.pool.segments)

    async def warm(self, *values: Any, kept: int = 0) -> None:
        """Until what is put lies in memory that the other end has mapped, while so many blocks are
        not free."""
        for _ in range(100):
            for value in values or (np.zeros(SIZE, np.uint8),):
                self.pub.put(value)
                await self.sub.get(LONG)
            self.pub.put(None)
            await self.sub.get(LONG)
            await eventually(lambda: self.used <= kept)
            there = {segment.number for segment in self.pool.segments if segment.free}
            if there and all(
                there <= lending._mapped for lending, _ in self.here.runtime.sharing._lent.values()
            ):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was mapped")

    async def at_rest(self) -> None:
        """Until nothing is held, but what the Sub handed out last."""
        gc.collect()
        try:
            await eventually(lambda: self.loans <= 1 and self.held <= 1 and self.used <= 1)
        except AssertionError:
            print("REST", self.loans, self.held, self.used)
            raise


@asynccontextmanager
async def pair(way: str = "memory", **options: Any) -> AsyncIterator[Pair]:
    """Over that way."""
    shared = 0 if way == "socket" else options.pop("shared_memory", 64 * MIB)
    of_sub = {key: options.pop(key) for key in ("copy", "keep", "window") if key in options}
    async with (
        coordinator_in_loop() as address,
        Peer(address, shared_memory=shared) as here,
        Peer(address) as there,
    ):
        there = here if way == "local" else there
        sub = await there.sub("t", **of_sub)
        pub = await here.pub("t", **options)
        await pub.wait_for_subscribers(1, LONG)
        yield Pair(here, there, pub, sub)


def base_of(array: Any) -> Any:
    """What holds the memory of an array."""
    while type(array) is np.ndarray:
        array = array.base
    return array


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Of shared memory of ours that this process has."""
    with open("/proc/self/maps") as lines:
        return sum("memfd:pubsubd" in line for line in lines)


# --- what a Sub hands out --------------------------------------------------------------------


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "tcp":
        request.getfixturevalue("by_tcp")
    return str(request.param)


@pytest.mark.parametrize("size", [0, 10, 65_535, 65_536, 3_000_000])
@pytest.mark.parametrize("copy", [False, True])
async def test_what_a_sub_hands_out_does_not_depend_on_the_way_or_the_size(
    way: str, size: int, copy: bool
) -> None:
    array = np.arange(size, dtype=np.uint8)
    value = {
        "array": array,
        "fortran": np.asfortranarray(np.ones((size // 8 // 4, 4))),
        "every other": np.arange(2 * size, dtype=np.uint8)[::2],
        "times": np.zeros(size // 8, "datetime64[ns]"),
        "bytes": bytes(array),
        "bytearray": bytearray(array),
        "number": 1,
    }
    async with pair(way, copy=copy) as p:
        if way == "memory" and size >= 65_536:
            await p.warm(value)
        p.pub.put(value)
        back = await p.sub.get(LONG)
        assert list(back) == list(value)
        assert type(back["bytes"]) is type(back["bytearray"]) is bytes
        assert back["bytes"] == back["bytearray"] == value["bytes"]
        for name in "array", "fortran", "every other", "times":
            found, put = back[name], value[name]
            assert type(found) is np.ndarray
            assert found.dtype == put.dtype
            assert found.shape == put.shape
            assert (found == put).all()
            assert found.flags.writeable is copy
            assert found.flags.aligned
            if copy and size:
                found[:1] = found[-1:]
            elif way == "memory" and size >= 65_536:
                with pytest.raises(ValueError):
                    found.flags.writeable = True
            again = pickle.loads(pickle.dumps(found))
            assert (again == found).all()
            assert again.flags.writeable
        if way == "memory" and size >= 65_536:
            assert p.held == (0 if copy else 4)


async def test_one_array_is_one_block_for_all_subs_of_a_host_and_their_processes() -> None:
    async with pair() as p:
        await p.warm()
        other = await p.there.sub("t")
        p.pub.put(np.full(SIZE, 7, np.uint8))
        mine = await p.sub.get(LONG)
        theirs = await other.get(LONG)
        assert mine.sum() == theirs.sum() == 7 * SIZE
        await eventually(lambda: p.used == 1)
        assert p.loans == p.held == 2
        del mine, theirs


async def test_a_link_maps_segments_in_whatever_order_they_are_due_on_it() -> None:
    async with pair() as p:
        first = p.pub.empty(MIB, np.uint8)
        full = [p.pub.empty(MIB, np.uint8) for _ in range(3)]
        await p.warm(np.zeros(MIB, np.uint8), kept=4)
        (lending, _) = next(iter(p.here.runtime.sharing._lent.values()))
        assert min(lending._mapped) > first.base.base.memory.number
        p.pub.put(first)
        p.pub.put(full[0])
        del first, full
        assert (await p.sub.get(LONG)).size == (await p.sub.get(LONG)).size == MIB
        await p.warm(np.zeros(MIB, np.uint8))
        assert len(p.here.runtime.sharing._lent) == 1
        assert p.here.runtime.sharing._lent[next(iter(p.here.runtime.sharing._lent))][0] is lending


async def test_bytes_are_copied_out_and_hold_nothing() -> None:
    async with pair() as p:
        await p.warm(bytes(SIZE))
        kept = []
        for i in range(50):
            p.pub.put(bytes([i]) * SIZE)
            kept.append(await p.sub.get(LONG))
        assert [value[0] for value in kept] == list(range(50))
        await eventually(lambda: p.held == p.loans == p.used == 0)


# --- who holds what --------------------------------------------------------------------------


async def test_a_block_is_not_used_again_while_any_view_of_it_lives() -> None:
    async with pair() as p:
        await p.warm()
        kept, sums = [], []
        for i in range(300):
            p.pub.put(np.full(SIZE, i % 251, np.uint8))
            array = await p.sub.get(LONG)
            if i % 7 == 0:
                kept.append(array[i : i + 1000][::3].reshape(-1, 2)[:, 1])
                sums.append(i % 251)
            del array
        assert [set(view.tolist()) for view in kept] == [{value} for value in sums]
        assert p.held >= len(kept)
        kept.clear()
        await p.at_rest()


async def test_a_full_pool_makes_nobody_wait_and_costs_no_message() -> None:
    """A Sub that keeps arrays for ever."""
    async with pair(shared_memory=3 * MIB, overflow="block") as p:
        await p.warm()
        kept = []
        for i in range(100):
            await p.pub.put(np.full(SIZE, i, np.uint8))
            kept.append(await p.sub.get(LONG))
        assert [int(array[-1]) for array in kept] == list(range(100))
        assert p.sub.lost == 0
        assert p.pool.total <= p.pool.size
        assert 0 < p.held < 20, "those that it has no room for came by the socket"
        kept.clear()
        await p.at_rest()


async def test_a_sub_that_takes_nothing_fills_its_window_and_no_more() -> None:
    async with pair(window=MIB, buffer=4 * MIB) as p:
        await p.warm()
        for _ in range(100):
            p.pub.put(np.zeros(SIZE, np.uint8))
            await asyncio.sleep(0)
        await eventually(lambda: p.held >= 4)
        await asyncio.sleep(0.1)
        assert p.held <= MIB // SIZE + 1
        assert p.used <= 5 * MIB // SIZE + 2
        await p.sub.close()
        await eventually(lambda: p.held == p.loans == p.used == 0)


async def test_what_keep_latest_overtakes_gives_its_block_back_at_once() -> None:
    async with pair(keep="latest") as p:
        await p.warm()
        for _ in range(50):
            p.pub.put(np.zeros(SIZE, np.uint8))
            await p.pub.flush(LONG)
        await eventually(lambda: p.held <= 2 and p.used <= 2)


async def test_what_leaves_the_history_gives_its_block_back() -> None:
    async with pair(history=3) as p:
        for _ in range(20):
            p.pub.put(np.zeros(SIZE, np.uint8))
            await p.sub.get(LONG)
        await eventually(lambda: 3 <= p.used <= 4)


async def test_a_segment_that_is_idle_is_given_back_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.collect()
    before = mappings()
    async with pair() as p:
        await p.warm()
        assert mappings() > before
        p.pub.put(1)
        await p.sub.get(LONG)
        gc.collect()
        await eventually(lambda: p.used == 0)
        now = asyncio.get_running_loop().time()
        p.pool.look(now)
        p.pool.look(now + IDLE)
        await eventually(lambda: mappings() <= before)
        assert p.pool.total == 0
        await p.warm()  # and made again when it is needed
        assert p.pool.total > 0


async def test_views_live_on_when_the_link_the_publisher_and_the_sub_are_gone() -> None:
    async with pair() as p:
        await p.warm()
        p.pub.put(np.full(SIZE, 9, np.uint8))
        view = (await p.sub.get(LONG))[10:]
        break_links(p.there)
        await eventually(lambda: p.loans == 0)
        assert not any(segment.used for segment in p.pool.segments), "retired"
        for _ in range(20):
            p.pub.put(np.full(SIZE, 1, np.uint8))
            await p.sub.get(LONG)
        assert set(view.tolist()) == {9}
    gc.collect()
    assert set(view.tolist()) == {9}


async def test_no_descriptor_mapping_or_block_is_left_of_links_that_ended() -> None:
    gc.collect()
    others = mappings()
    async with coordinator_in_loop() as address, Peer(address) as here:
        pool = here.runtime.sharing.pool
        assert pool is not None
        pub = await here.pub("t")
        before = 0
        for i in range(30):
            async with Peer(address) as there:
                sub = await there.sub("t")
                await pub.wait_for_subscribers(1, LONG)
                for _ in range(4):
                    pub.put(np.full(SIZE, i, np.uint8))
                    assert (await sub.get(LONG))[5] == i
                    await asyncio.sleep(0.002)
            del sub, there
            gc.collect()
            await eventually(lambda: not here.runtime.subscribers.served)
            now = asyncio.get_running_loop().time()
            pool.look(now)
            pool.look(now + IDLE)
            await eventually(lambda: mappings() <= others)
            assert pool.total == 0
            before = before or descriptors()
        await eventually(lambda: descriptors() == before)


async def test_a_closed_sub_holds_nothing_of_what_it_handed_out() -> None:
    async with pair() as p:
        await p.warm()
        events = p.sub.messages()
        p.pub.put(np.zeros(SIZE, np.uint8))
        held = weakref.ref(base_of((await anext(events)).value))
        await p.sub.close()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        await eventually(lambda: held() is None)


async def test_who_keeps_a_closed_peer_keeps_no_memory() -> None:
    gc.collect()
    before = mappings()
    async with pair() as p:
        await p.warm()
        assert mappings() > before
        p.pub.put(np.full(SIZE, 3, np.uint8))
        view = await p.sub.get(LONG)
        pool = p.pool
        p.pub.empty(5 * MIB, np.uint8)  # its segment is idle
    assert set(view.tolist()) == {3}
    del view
    await eventually(lambda: gc.collect() or mappings() <= before)
    assert pool.total == 0
    assert not pool.departed


async def test_a_child_keeps_what_it_shows_and_no_other_memory_of_its_parent() -> None:
    gc.collect()
    before = mappings()  # of what other tests have left
    async with pair() as p:
        await p.warm()
        array = p.pub.empty(SIZE, np.uint8)
        array[:] = 4
        view = p.pub.empty(5 * MIB, np.uint8)
        del view  # its segment is idle
        assert mappings() > before + 2

        def few() -> bool:
            return mappings() <= before + 1 and bool((array == 4).all())

        assert exit_code(in_child(few)) == 0


async def test_the_last_quarter_of_the_descriptors_is_left_to_connections() -> None:
    async with pair() as p:
        pubs = [p.here.pub(f"t/{i}") for i in range(40)]
        subs = [await p.there.sub(f"t/{i}") for i in range(40)]
        for pub in pubs:
            await pub.wait_for_subscribers(1, LONG)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 80, limits[1]))
        try:
            arrays = [pub.empty(SIZE, np.uint8) for pub in pubs]
            for pub, sub, array in zip(pubs, subs, arrays, strict=True):
                array[:] = 6
                pub.put(array)
                assert (await sub.get(LONG)).sum() == 6 * SIZE
            async with Peer(p.there.coordinators[0]) as other:
                late = await other.sub("t/3")
                await pubs[3].wait_for_subscribers(2, LONG)
                pubs[3].put(np.full(SIZE, 7, np.uint8))
                assert (await late.get(LONG)).sum() == 7 * SIZE
            assert 10 < len(p.pool.segments) < 40
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_subscriber_that_is_gone_when_memory_is_passed_fails_nothing() -> None:
    """It was killed on its way, and several segments wait for it."""
    passing = memory.Passing(lambda ticket: None)
    pool = Pool(64 * MIB, memory.make, lambda: None)
    share = pool.share(lambda: True)
    blocks = [share.block(MIB), share.block(2 * MIB)]
    assert [passing.offer(segment) for segment in pool.segments] == [True, True]
    ours, theirs = socket.socketpair()
    theirs.close()
    passing.joined(ours)
    assert passing.sock is None
    assert not passing.offer(pool.segments[0])
    del blocks


# --- pub.empty -------------------------------------------------------------------------------


async def test_an_array_from_empty_is_sent_without_a_copy_and_is_read_only_then() -> None:
    async with pair() as p:
        await p.warm()
        frame = p.pub.empty((100, 500, 4), np.uint8)
        view = frame[0]
        frame[...] = 3
        where = frame.__array_interface__["data"][0]
        p.pub.put({"frame": frame, "n": 1})
        back = await p.sub.get(LONG)
        assert back["frame"].shape == (100, 500, 4)
        assert (back["frame"] == 3).all()
        await eventually(lambda: p.used == 1, "it is the same block")
        with pytest.raises(ValueError):
            frame[0] = 1
        with pytest.raises(ValueError):
            frame.flags.writeable = True
        view[0] = 77  # what the docstring warns of
        assert back["frame"][0, 0, 0] == 77
        p.pub.put(frame)
        p.pub.put(frame[1:])
        whole, part = await p.sub.get(LONG), await p.sub.get(LONG)
        await eventually(lambda: p.used == 2, "a part is copied")
        assert (part == 3).all()
        assert whole[0, 0, 0] == 77
        assert frame.__array_interface__["data"][0] == where
        del back, whole, part, frame, view
        p.pub.put(1)
        await p.sub.get(LONG)
        await p.at_rest()


async def test_an_array_of_one_pub_is_copied_by_another() -> None:
    """Who is lent it could read all that lies beside it, of a topic that he may not subscribe."""
    async with pair() as p:
        await p.warm()
        array = p.pub.empty(SIZE, np.uint8)
        array[:] = 5
        other = p.here.pub("other")
        sub = await p.there.sub("other")
        await other.wait_for_subscribers(1, timeout=LONG)
        for _ in range(2):  # the first goes by the link
            await other.put(array)
            found = await sub.get(LONG)
            assert (found == 5).all()
        assert array.flags.writeable, "it was copied"


async def test_an_array_from_empty_that_is_never_put_goes_back() -> None:
    async with pair() as p:
        arrays = [p.pub.empty(SIZE, np.uint8) for _ in range(10)]
        assert p.used == 10
        arrays.clear()
        assert p.used == 0
        small = p.pub.empty(10)
        assert (small.dtype, p.used) == (float, 0)


async def test_empty_gives_ordinary_memory_where_the_pool_is_full() -> None:
    async with pair(shared_memory=MIB) as p:
        arrays = [p.pub.empty(SIZE, np.uint8) for _ in range(20)]
        for i, array in enumerate(arrays):
            array[:] = i
            p.pub.put(array)
            assert set((await p.sub.get(LONG)).tolist()) == {i}
        assert p.pool.total <= MIB
        assert sum(array.flags.writeable for array in arrays) >= 14


async def test_a_put_that_fails_leaves_the_array_to_be_written_to() -> None:
    async with pair() as p:
        array = p.pub.empty(SIZE, np.uint8)
        with pytest.raises(TypeError):
            p.pub.put({"a": array, "b": object()})
        array[0] = 1


async def test_empty_says_what_it_cannot_make() -> None:
    async with pair() as p:
        with pytest.raises(TypeError, match="has objects"):
            p.pub.empty(3, object)
        with pytest.raises(ValueError, match="shape"):
            p.pub.empty(-1)
        await p.pub.close()
        with pytest.raises(Exception, match="closed"):
            p.pub.empty(3)


@pytest.mark.parametrize("changes", [False, True])
async def test_pubsub_check_names_the_pub_whose_array_was_written_to(
    changes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PUBSUB_CHECK", "1")
    async with pair() as p:
        await p.warm()
        array = p.pub.empty(SIZE, np.uint8)
        view = array[:10]
        p.pub.put(array)
        await p.sub.get(LONG)
        if changes:
            view[0] ^= 1
        del array, view
        p.pub.put(1)
        await p.sub.get(LONG)
        await p.at_rest()
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(said) == changes
    assert all("Pub('t')" in text for text in said)


# --- where nothing can be shared -------------------------------------------------------------


Spoil = Callable[[pytest.MonkeyPatch], None]


def no_memfd(patch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise OSError(24, "Too many open files")

    patch.setattr(os, "memfd_create", fail)


def no_mapping(patch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, size: int) -> None:
        os.close(fd)
        raise OSError(12, "Cannot allocate memory")

    patch.setattr(memory, "take", fail)


def no_connection(patch: pytest.MonkeyPatch) -> None:
    """The link is there already."""

    def fail(name: str) -> None:
        raise ConnectionRefusedError

    patch.setattr(unix, "dialled", fail)


@pytest.mark.parametrize("spoil", [no_memfd, no_mapping, no_connection])
async def test_where_memory_cannot_be_had_all_travels_by_the_link(
    spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as p:
        spoil(monkeypatch)
        for i in range(20):
            p.pub.put(np.full(SIZE, i, np.uint8))
            assert set((await p.sub.get(LONG)).tolist()) == {i}
        assert p.held == p.loans == 0
        assert p.sub.publishers[next(iter(p.sub.publishers))]["way"] == "unix"


# --- forks -----------------------------------------------------------------------------------


def in_child(check: Callable[[], bool]) -> int:
    """Fork, and have the child see whether that holds; its process id."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return pid


def exit_code(pid: int) -> int:
    """Wait for that child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("holder", ["subscriber", "publisher"])
async def test_views_of_parent_and_child_keep_what_they_show_through_100_forks(holder: str) -> None:
    """Of what others lend to the process that forks, and of its own pool, of which nothing is lent
    then: there, nobody but itself can tell."""
    async with pair(copy=holder == "publisher") as p:
        await p.warm()
        sub = p.sub if holder == "subscriber" else await p.here.sub("t")
        kept: list[tuple[Any, int]] = []
        waiting: list[int] = []
        i = shared = 0

        async def flow(n: int) -> None:
            nonlocal i, shared
            for _ in range(n):
                i += 1
                p.pub.put(np.full(SIZE, i % 251, np.uint8))
                array = await sub.get(LONG)
                if sub is not p.sub:
                    await p.sub.get(LONG)
                shared += type(base_of(array)) is Block
                if i % 3 == 0:
                    kept.append((array[5:], zlib.crc32(array[5:])))
                if len(kept) > 8:
                    kept.pop(i % 8)

        for fork in range(100):
            await flow(3)
            reading, writing = os.pipe()

            def same(reading: int = reading, writing: int = writing) -> bool:
                os.close(writing)
                os.read(reading, 1)  # until the parent has gone on for a while
                return all(zlib.crc32(view) == crc for view, crc in kept)

            waiting.append(in_child(same))
            os.close(reading)
            own = list(kept)
            if fork % 2:
                kept.clear()  # the child has them still
            await flow(5)
            os.close(writing)
            assert all(zlib.crc32(view) == crc for view, crc in own)
            del own
        assert [exit_code(pid) for pid in waiting] == [0] * 100
        assert sub.lost == p.sub.lost == 0
        assert shared > i // 2, "the others came by the link, or were not lent"
        kept.clear()
        await flow(5)
        kept.clear()
        await p.at_rest()


async def test_who_passes_over_numpys_flag_and_writes_ends_its_own_process_alone() -> None:
    """As PyTorch does, whose tensors know no read-only memory (see docs/arrays.md)."""
    async with pair() as p:
        await p.warm()
        p.pub.put(np.full(SIZE, 5, np.uint8))
        view = await p.sub.get(LONG)

        def write() -> bool:
            faulthandler.disable()
            ctypes.memset(view.__array_interface__["data"][0], 0, 1)
            return True

        assert exit_code(in_child(write)) == -signal.SIGSEGV
        assert set(view.tolist()) == {5}


async def test_a_child_has_no_say_over_what_its_parent_holds() -> None:
    async with pair() as p:
        await p.warm()
        p.pub.put(np.full(SIZE, 5, np.uint8))
        kept = [await p.sub.get(LONG)]

        def drop() -> bool:
            kept.clear()
            gc.collect()
            return True

        assert exit_code(in_child(drop)) == 0
        for _ in range(30):
            p.pub.put(np.full(SIZE, 6, np.uint8))
            await p.sub.get(LONG)
        assert set(kept[0].tolist()) == {5}
