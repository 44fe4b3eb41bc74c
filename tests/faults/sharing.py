"""Shared memory under kills: processes that put and take large values, and one that ends them.

``python -m tests.faults.sharing --kills 1000`` is the soak: one publisher and three subscribers,
of which one after the other is killed, stopped, forked, cut off or closed in the middle of it. Each
page of a value has the value's number: a view is checked when it comes and when it is let go. What
is left at the end, in any process that lives, is told.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pubsub import Gap, Peer
from tests.cli.processes import LONG, Running, Start, daemon, processes
from tests.integration.support import break_links, eventually

__all__ = ["Figures", "soak"]

PAGE = 4096
SIZES = (64 * 1024, 200_000, 1_000_000, 3_000_000, 10 * 1024 * 1024)
RARE = (20, 10, 5, 2, 1)
SHARED = 48 * 1024 * 1024


def value_of(number: int, size: int, room: Any = None) -> Any:
    """An array, each page of which has that number."""
    array = np.empty(size // 8, np.int64) if room is None else room
    array[:] = number
    return array


def check(array: Any, number: int) -> None:
    seen = array[:: PAGE // 8]
    assert (seen == number).all(), f"{number} shows {set(seen.tolist())}"
    assert array[-1] == number


def mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:pubsubd" in line for line in lines)


class Process:
    """One that is told what to do by lines; each line that it says is JSON."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.chance = random.Random(os.getpid())
        self.stop = False
        self.sub: Any = None
        self.number = self.got = self.lost = self.forks = 0
        self.due: dict[str, int] = {}
        self.kept: list[tuple[Any, int]] = []
        self.children: list[int] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with Peer(shared_memory=self.options["shared"]) as peer:
            self.peer = peer
            role = self._put if self.options["role"] == "pub" else self._take
            task = asyncio.create_task(role())
            async for line in reader:
                await getattr(self, line.decode().strip())(task)
            self.stop = True

    async def _put(self) -> None:
        pub = await self.peer.pub("t", overflow="block", **self.options.get("pub", {}))
        self.pub = pub
        while not self.stop:
            size = self.chance.choices(SIZES, RARE)[0] // 8 * 8
            room = pub.empty(size // 8, np.int64) if self.chance.random() < 0.3 else None
            value = value_of(self.number, size, room)
            form: Any = value.tobytes() if self.chance.random() < 0.2 else value
            await pub.put({"n": self.number, "v": form})
            self.number += 1
            del value, room, form
            if not self.number % 8:
                await asyncio.sleep(0.005)

    async def _take(self) -> None:
        while not self.stop:
            self.sub = sub = await self.peer.sub("t", window=16 * 1024 * 1024)
            async for event in sub.messages():
                if isinstance(event, Gap):
                    self.lost += event.missed
                    if event.missed and event.publisher in self.due:
                        self.due[event.publisher] += event.missed
                    continue
                due = self.due.setdefault(event.publisher, event.seq)
                number = event.value["n"]
                assert number == event.seq == due, (number, event.seq, due)
                self.due[event.publisher] = due + 1
                value = event.value["v"]
                array = np.frombuffer(value, np.int64) if type(value) is bytes else value
                check(array, number)
                self.got += 1
                if self.chance.random() < 0.2:
                    self.kept.append((array[self.chance.randrange(100) :], number))
                while len(self.kept) > 8 or (self.kept and self.chance.random() < 0.2):
                    check(*self.kept.pop(self.chance.randrange(len(self.kept))))
                del value, array, event
            self.due.clear()  # it was closed

    # --- what it is told --------------------------------------------------------------------

    async def cut(self, task: Any) -> None:
        break_links(self.peer)

    async def anew(self, task: Any) -> None:
        if self.sub is not None:  # else it has just begun
            await self.sub.close()

    async def fork(self, task: Any) -> None:
        """A child that looks at its views for a while."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(writing)
                os.read(reading, 1)
                for view, number in self.kept:
                    check(view, number)
                code = 0
            finally:
                os._exit(code)
        os.close(reading)
        self.children.append(pid)
        asyncio.get_running_loop().call_later(0.3, os.close, writing)

    async def say(self, task: Any) -> None:
        """How far it is; raises where something was wrong."""
        if task.done():
            await task
        print(json.dumps({"n": self.number, "got": self.got, "lost": self.lost}), flush=True)

    async def rest(self, task: Any) -> None:
        """Put and hold nothing any more, and tell what is left."""
        self.stop = True
        if task.done():
            await task
        sharing = self.peer.runtime.sharing
        if self.options["role"] == "pub":
            await asyncio.wait_for(task, LONG)
            await self.pub.flush(LONG)
        else:
            await asyncio.sleep(0.5)
            for view, number in self.kept:
                check(view, number)
            self.kept.clear()
            await self.sub.close()
            await asyncio.wait_for(task, LONG)
        for pid in self.children:
            assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        pool = sharing.pool

        def idle() -> bool:
            gc.collect()
            loans = sum(lending.loans for lending, _ in sharing._lent.values())
            held = sum(borrowing.held for borrowing in sharing._borrowed)
            used = sum(segment.used for segment in pool.segments) if pool is not None else 0
            return not (loans or held or used)

        await eventually(idle, "something is held")
        if pool is not None:
            for share in [found() for found in pool._shares.valuerefs()]:
                assert share is None or share.held == 0, share.held
            for segment in pool.segments:
                assert len(set(segment.free)) == segment.size // segment.slot
                pool.retire(segment)
            await eventually(lambda: pool.total == 0)
        print(json.dumps({"n": self.number, "got": self.got, "lost": self.lost}), flush=True)

    async def left(self, task: Any) -> None:
        """Once all are at rest."""
        gc.collect()
        await eventually(lambda: not mappings(), "memory is mapped still")
        print(json.dumps(len(os.listdir("/proc/self/fd"))), flush=True)


class Figures:
    """What a soak has done."""

    def __init__(self) -> None:
        self.killed = {"pub": 0, "sub": 0}
        self.faults: dict[str, int] = {}
        self.messages = 0
        self.put = 0

    def __str__(self) -> str:
        return f"killed {self.killed}, faults {self.faults}, at least {self.messages:,} messages"


def begin(start: Start, coordinator: str, role: str, shared: int = SHARED) -> Running:
    options = json.dumps({"role": role, "shared": shared})
    return start("python", "-m", "tests.faults.sharing", "--role", options, coordinator=coordinator)


def asked(process: Running, what: str) -> Any:
    process.send(what + "\n")
    return json.loads(process.out())


def soak(kills: int, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Figures:
    """Kill so many of them, in the middle of it."""
    chance, figures = random.Random(seed), Figures()
    shm = set(os.listdir("/dev/shm"))
    with processes() as start:
        coordinator = daemon(start)[1]
        pub = begin(start, coordinator, "pub")
        subs = [begin(start, coordinator, "sub", SHARED if i else 0) for i in range(3)]

        def flows(sub: Running) -> None:
            """Wait until it gets something more."""
            before, deadline = asked(sub, "say")["got"], time.monotonic() + LONG
            while (now := asked(sub, "say"))["got"] <= before:
                assert time.monotonic() < deadline, now
                time.sleep(0.02)

        for done in range(kills):
            flows(chance.choice(subs))
            fault = chance.choice(["", "cut", "anew", "fork", "stop", "pub cut", "pub fork", ""])
            figures.faults[fault] = figures.faults.get(fault, 0) + 1
            other = chance.choice(subs)
            if fault == "stop":
                other.signal(signal.SIGSTOP)
            elif fault:
                (pub if fault.startswith("pub") else other).send(fault.split()[-1] + "\n")
            time.sleep(chance.random() * 0.1)
            i = chance.randrange(-1, len(subs))
            victim = pub if i < 0 else subs[i]
            if fault == "stop" and victim is not other:
                other.signal(signal.SIGCONT)
            victim.process.kill()
            victim.process.wait()
            victim.kill()
            if i < 0:
                figures.killed["pub"] += 1
                pub = begin(start, coordinator, "pub")
            else:
                figures.killed["sub"] += 1
                subs[i] = begin(start, coordinator, "sub", SHARED if i else 0)
            if not (done + 1) % 50:
                say(f"{done + 1} kills: {figures}")
        for sub in subs:
            flows(sub)
        # what of those that were killed is still waited for, goes in its time
        told = [asked(process, "say") for process in subs]
        figures.messages = sum(one["got"] for one in told)
        assert not any(one["lost"] for one in told), told
        for sub in subs:
            asked(sub, "rest")
        figures.put = asked(pub, "rest")["n"]
        for process in (pub, *subs):
            asked(process, "left")
            process.close_input()
        for process in (pub, *subs):
            code, _, err = process.end()
            assert code == 0, err
            assert not any("Traceback" in line for line in err), err
    assert set(os.listdir("/dev/shm")) <= shm
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if options.role is None:
        print(f"python -m tests.faults.sharing --kills {options.kills} --seed {options.seed}")
        print(soak(options.kills, options.seed, lambda text: print(text, flush=True)))
        return
    process = Process(json.loads(options.role))
    try:
        import uvloop
    except ImportError:
        asyncio.run(process.run())
    else:
        uvloop.run(process.run())


if __name__ == "__main__":
    main()
