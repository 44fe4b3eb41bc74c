"""All faults of lane two, over and over, for as long as asked; nothing may be lost, or grow.

``python -m tests.faults.soak --minutes 30``. A steady flow goes through the proxy, and another one
past it. Every few seconds comes another fault. At the end: every message delivered, none lost, and
the peaks of memory, file descriptors, tasks and log of the last quarter not above those of the
minutes after the first ones.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np

from pubsub import Peer, Pub, Sub
from pubsub.config import parse_address
from tests.faults.flow import LONG, Flow, flow
from tests.faults.proxy import BOTH, Proxy, behind, proxy
from tests.integration.support import coordinator_in_loop, eventually

__all__ = ["Sample", "grown", "soak"]


class Sample(NamedTuple):
    """What must not grow. `rss` in bytes."""

    at: float
    rss: int
    descriptors: int
    tasks: int
    objects: int


def sample(began: float) -> Sample:
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(
        time.monotonic() - began,
        rss,
        len(os.listdir("/proc/self/fd")),
        len(asyncio.all_tasks()),
        len(gc.get_objects()),
    )


ALLOWED = {"rss": 16 * 2**20, "descriptors": 10, "tasks": 10, "objects": 20_000}
"""How far the peak of the last quarter may be above that of the second."""


def grown(samples: list[Sample]) -> list[str]:
    """What has grown from the second quarter to the last."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    for name, allowed in ALLOWED.items():
        before = max((getattr(s, name) for s in second), default=0)
        after = max((getattr(s, name) for s in last), default=0)
        if after > before + allowed:
            found.append(f"{name} grew from {before:,} to {after:,}")
    return found


class Faults:
    """What happens to the link, one after the other; each ends with the link as it was."""

    def __init__(self, link: Proxy, session: Proxy, chance: random.Random) -> None:
        self.link = link
        self.session = session
        self.chance = chance

    async def resets(self) -> None:
        for _ in range(25):
            await asyncio.sleep(0.2)
            await self.link.reset()

    async def resets_at_any_byte(self) -> None:
        for _ in range(5):
            self.link.reset_at = self.chance.randrange(1, 300_000)
            await self.link.reset()
            await asyncio.sleep(0.5)
        self.link.reset_at = None

    async def half_open(self) -> None:
        for connection in self.link.connections:
            connection.swallow.update(self.chance.choice([BOTH, BOTH[:1], BOTH[1:]]))
        await asyncio.sleep(2)

    async def down(self) -> None:
        await self.link.down()
        await asyncio.sleep(2)
        self.link.up()

    async def stalled(self) -> None:
        for connection in list(self.link.connections):
            connection.stall("down")
        await asyncio.sleep(1)
        for connection in list(self.link.connections):
            connection.resume("down")

    async def slow(self) -> None:
        self.link.latency, self.link.bandwidth, self.link.piece = 0.05, 2e6, 10_000
        await asyncio.sleep(3)
        self.link.latency, self.link.bandwidth, self.link.piece = 0, 0, 0

    async def no_session(self) -> None:
        for _ in range(10):
            await self.session.reset()
            await asyncio.sleep(0.2)

    def next(self) -> Callable[[], Awaitable[None]]:
        return self.chance.choice(
            [
                self.resets,
                self.resets_at_any_byte,
                self.half_open,
                self.down,
                self.stalled,
                self.slow,
                self.no_session,
            ]
        )


async def large(pub: Pub, sub: Sub, stop: asyncio.Event) -> int:
    """Now and then a large array and what comes back of it; how many."""
    count = 0
    value = np.arange(300_000)
    while not stop.is_set():
        pub.put({"n": count, "array": value})
        got = await sub.get(timeout=LONG)
        assert got["n"] == count
        assert np.array_equal(got["array"], value)
        count += 1
        await asyncio.sleep(0.05)
    return count


async def churn(here: Peer, there: Peer, stop: asyncio.Event) -> int:
    """Pubs and Subs that come and go; how many."""
    count = 0
    while not stop.is_set():
        sub = await there.sub(f"churn/{count}")
        pub = here.pub(f"churn/{count}")
        pub.put(count)
        assert await sub.get(timeout=LONG) == count
        await asyncio.gather(pub.close(), sub.close())
        count += 1
    return count


async def soak(
    seconds: float, rate: float = 5_000, seed: int = 0, say: Callable[[str], None] = print
) -> list[Sample]:
    """Run; returns a sample for each second.

    Raises:
        AssertionError: a message was lost, came twice or out of order, or did not come.
    """
    beat: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.6, "handshake_timeout": 1.0}
    chance = random.Random(seed)
    began = time.monotonic()
    samples: list[Sample] = []
    stop = asyncio.Event()
    async with (
        coordinator_in_loop() as address,
        proxy(lambda: parse_address(address)) as session,
        behind(session.address, **beat) as (here, link),
        Peer(session.address, **beat) as there,
        Peer(address) as third,
    ):
        faults = Faults(link, session, chance)
        far, near = await there.sub("flow"), await third.sub("near")
        pub, beside = await here.pub("flow"), await third.pub("near")
        arrays, array_pub = await there.sub("large"), await here.pub("large")
        async with flow(pub, far, rate) as flowing, flow(beside, near, rate) as other:
            extra = [
                asyncio.create_task(large(array_pub, arrays, stop)),
                asyncio.create_task(churn(here, there, stop)),
            ]
            running: asyncio.Task[None] | None = None
            while time.monotonic() - began < seconds:
                if running is None or running.done():
                    if running is not None:
                        await running
                    fault = faults.next()
                    running = asyncio.ensure_future(_one(fault, flowing))
                await flowing.checked(1)
                await other.checked(0)
                for task in extra:
                    if task.done():
                        await task
                samples.append(sample(began))
                if len(samples) % 60 == 0:
                    s = samples[-1]
                    say(
                        f"{s.at / 60:6.1f} min  {flowing.got:12,} messages  "
                        f"{link.resets:6,} resets  {s.rss / 2**20:6.1f} MiB  "
                        f"{s.descriptors} descriptors  {s.tasks} tasks  {s.objects:,} objects"
                    )
            if running is not None:
                await running
            stop.set()
            counts = await asyncio.wait_for(asyncio.gather(*extra), 2 * LONG)
        assert flowing.lost == other.lost == arrays.lost == 0
        await pub.flush(LONG)
        await eventually(lambda: pub._publication.log.size == 0)
    say(
        f"{flowing.got:,} + {other.got:,} messages, {counts[0]:,} large arrays, {counts[1]:,} Pubs "
        f"that came and went; {link.resets:,} resets; nothing lost"
    )
    return samples


async def _one(fault: Callable[[], Awaitable[None]], flowing: Flow) -> None:
    await fault()
    await flowing.passes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=5_000, help="messages a second")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"python -m tests.faults.soak --minutes {options.minutes:g} --seed {options.seed}")
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    samples = run(soak(options.minutes * 60, options.rate, options.seed))
    worse = grown(samples)
    print("\n".join(worse) or "nothing grew")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
