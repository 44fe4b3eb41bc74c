"""The figures of docs/guarantees.md and docs/scaling.md: what slow and many subscribers cost.

``python -m benchmarks.guarantees [isolation] [memory] [deliveries] [--seconds S]
[--subscribers N]``

- *isolation*: a publisher at full speed (``overflow="drop"``, a dict with 1 KiB of bytes in it,
  default buffer) and six subscribers, each a process; then the same with two more, of which one
  is stopped by SIGSTOP and one takes a message a second. Compared is what the six get per second.
  The publisher's memory is its highest resident size, above what it had before the first message.
- *memory*: one Pub and 1,000 Subs, as 1,000 peers with a connection each, and as 10 peers with 100
  Subs each. Compared is the publisher's resident size without subscribers, with all of them
  attached, and after each of them has taken 1,000 messages.
- *deliveries*: one Pub and 100 Subs, with a connection each, and all on one connection. Messages
  are put one at a time with pauses, so that each is a batch of its own, acknowledged on its own:
  the dearest way. Compared is the publisher's processor time with and without the Subs.

Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import memory as mine
from benchmarks.child import Control, obey
from benchmarks.loops import run, usual_guard
from benchmarks.machine import describe
from benchmarks.stage import Child, Stage
from pubsub import Peer
from pubsub.config import MIB
from pubsub.coordinator.server import Coordinator

__all__ = ["deliveries", "isolation", "main", "memory"]

TOPIC = "guarantees"
BUFFER = 64 * MIB
PATIENCE = 120.0


# --- the children: each obeys orders, which are its methods ---------------------------------------


def coordinate(control: Control) -> None:
    async def serve() -> None:
        coordinator = Coordinator(asyncio.get_running_loop(), guard=usual_guard())
        control.say("at", place=str(await coordinator.start("127.0.0.1", 0)))
        await asyncio.Event().wait()

    run(serve())


class _Publisher:
    def __init__(self, pub: Any) -> None:
        self._pub = pub

    async def begin(self) -> dict[str, Any]:
        for i in range(1000):  # what a publisher has touched once in any case
            self._pub.put({"id": i, "v": 3.14, "s": "sensor-7"})
        await asyncio.sleep(0.1)
        return {"resident": mine.now()}

    async def wait(self, subscribers: int) -> dict[str, Any]:
        await self._pub.wait_for_subscribers(subscribers, timeout=PATIENCE)
        return {"resident": mine.now()}

    async def put(self, count: int) -> dict[str, Any]:
        for i in range(count):
            await self._pub.put({"id": i, "v": 3.14, "s": "sensor-7"})
        await self._pub.flush(PATIENCE)
        return {"resident": mine.now()}

    async def batches(self, count: int, size: int, every: float) -> dict[str, Any]:
        value = {"id": 1, "v": 3.14, "s": bytes(size)}
        before = time.process_time()
        for _ in range(count):
            self._pub.put(value)
            await asyncio.sleep(every)
        await self._pub.flush(PATIENCE)
        return {"cpu": time.process_time() - before}

    async def flow(self, seconds: float) -> dict[str, Any]:
        payload = bytes(1024)
        end = time.monotonic() + seconds
        n = 0
        while time.monotonic() < end:
            for _ in range(64):
                await self._pub.put({"id": n, "v": 3.14, "s": payload})
                n += 1
        return {"put": n, "highest": mine.most()}


def publish(control: Control, coordinator: str) -> None:
    async def serve() -> None:
        async with Peer(coordinator) as peer:
            await obey(control, _Publisher(await peer.pub(TOPIC, buffer=BUFFER)))

    run(serve())


class _Subscriber:
    def __init__(self, sub: Any, every: float) -> None:
        self._sub, self._every = sub, every
        self._got = 0
        self._task = asyncio.create_task(self._take())

    async def _take(self) -> None:
        if self._every:
            while True:
                await self._sub.get()
                self._got += 1
                await asyncio.sleep(self._every)
        async for _ in self._sub:
            self._got += 1

    async def count(self) -> dict[str, Any]:
        return {"got": self._got, "lost": self._sub.lost}


def subscribe(control: Control, coordinator: str, every: float) -> None:
    async def serve() -> None:
        async with Peer(coordinator) as peer:
            subscriber = _Subscriber(await peer.sub(TOPIC), every)
            control.say("ready")
            await obey(control, subscriber)

    run(serve())


def crowd(control: Control, coordinator: str, peers: int, subs: int) -> None:
    """So many peers in this process, with so many Subs each."""

    async def ready(sub: Any) -> Any:
        return await sub

    async def take(sub: Any) -> None:
        async for _ in sub:
            pass

    async def serve() -> None:
        all_subs = []
        for peer in [Peer(coordinator) for _ in range(peers)]:
            all_subs += await asyncio.gather(*(ready(peer.sub(TOPIC)) for _ in range(subs)))
        control.say("ready")
        await asyncio.gather(*map(take, all_subs))

    run(serve())


# --- the parent ---------------------------------------------------------------------------------


@contextmanager
def _publishing() -> Iterator[tuple[Stage, str, Any, int]]:
    """A stage with a coordinator, which is there, and a publisher; how to ask this, and its KiB
    without subscribers."""
    with Stage(PATIENCE) as stage:
        at = stage.hear(stage.start(coordinate), "at")["place"]
        ask = partial(stage.ask, stage.start(publish, at))
        yield stage, at, ask, ask("begin")["resident"]


def isolation(seconds: float = 4.0, rounds: int = 3) -> dict[str, Any]:
    """See the module: what six subscribers get, without and with two slow ones beside them."""
    shares, alone, beside, highest = [], [], [], 0
    for _ in range(rounds):
        with _publishing() as (stage, at, ask, before):

            def ready(*every: int) -> list[Child]:
                started = [stage.start(subscribe, at, each) for each in every]
                for child in started:
                    stage.hear(child, "ready")
                return started

            good = ready(*(0,) * 6)
            ask("wait", subscribers=6)
            first, _ = _delivered(stage, ask, good, seconds)
            slow = ready(0, 1)
            ask("wait", subscribers=8)
            slow[0].process.send_signal(signal.SIGSTOP)
            second, most = _delivered(stage, ask, good, seconds)
            alone.append(first)
            beside.append(second)
            shares.append(second / first)
            highest = max(highest, most - before)
    return {
        "rate_alone": round(statistics.median(alone)),
        "rate_beside_slow_ones": round(statistics.median(beside)),
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "publisher_growth_mib": round(highest / 1024, 1),
        "buffer_mib": BUFFER // MIB,
        "seconds": seconds,
    }


def _delivered(stage: Stage, ask: Any, good: list[Child], seconds: float) -> tuple[float, int]:
    """Messages a second to all of these together, while it publishes; its highest memory."""
    publisher: Child = ask.args[0]
    before = sum(stage.ask(child, "count")["got"] for child in good)
    start = time.monotonic()
    stage.order(publisher, "flow", seconds=seconds)
    time.sleep(seconds)
    after = sum(stage.ask(child, "count")["got"] for child in good)
    rate = (after - before) / (time.monotonic() - start)
    return rate, stage.hear(publisher, "answer")["highest"]


def memory(subscribers: int = 1000) -> dict[str, Any]:
    """See the module: KiB of the publisher for each subscriber."""
    found: dict[str, Any] = {"subscribers": subscribers}
    for name, peers, subs in (
        ("a_connection_each", subscribers, 1),
        ("a_hundred_to_a_connection", max(1, subscribers // 100), min(100, subscribers)),
    ):
        with _publishing() as (stage, at, ask, before):
            stage.hear(stage.start(crowd, at, peers, subs), "ready")
            attached = ask("wait", subscribers=peers * subs)["resident"]
            after = ask("put", count=1000)["resident"]
            found[name] = {
                "attached_kib": round((attached - before) / (peers * subs), 2),
                "after_messages_kib": round((after - before) / (peers * subs), 2),
            }
    return found


def deliveries(subscribers: int = 100, batches: int = 500) -> dict[str, Any]:
    """See the module: microseconds of the publisher for a batch and subscriber."""
    found: dict[str, Any] = {"subscribers": subscribers, "batches": batches}
    sizes = (8, 60_000)
    for name, peers, subs in (
        ("a_connection_each", subscribers, 1),
        ("all_on_one_connection", 1, subscribers),
    ):
        with _publishing() as (stage, at, ask, _):

            def costs() -> list[float]:
                how = {"count": batches, "every": 0.01}
                return [ask("batches", size=size, **how)["cpu"] for size in sizes]

            alone = costs()
            stage.hear(stage.start(crowd, at, peers, subs), "ready")
            ask("wait", subscribers=subscribers)
            found[name] = {
                f"us_with_{size}_bytes": round(1e6 * (cost - before) / (batches * subscribers), 2)
                for size, cost, before in zip(sizes, costs(), alone, strict=True)
            }
    return found


def main() -> None:
    """The command line: see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guarantees", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", nargs="*", help="isolation, memory, deliveries (default: all)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each flow (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="of isolation (default 3)")
    parser.add_argument("--subscribers", type=int, default=1000, help="default 1000")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    known = ["isolation", "memory", "deliveries"]
    wanted = args.what or known
    unknown = set(wanted) - set(known)
    if unknown:
        parser.error(f"there is no {unknown.pop()!r}; there are {', '.join(known)}")
    results: dict[str, Any] = {"machine": describe(("msgpack", "uvloop"))}
    if "isolation" in wanted:
        results["isolation"] = isolation(args.seconds, args.rounds)
    if "memory" in wanted:
        results["memory"] = memory(args.subscribers)
    if "deliveries" in wanted:
        results["deliveries"] = deliveries()
    print(json.dumps(results, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
