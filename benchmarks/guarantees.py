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
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.loops import run, usual_guard
from benchmarks.machine import describe
from pubsub import Peer
from pubsub.config import MIB
from pubsub.coordinator.server import Coordinator

__all__ = ["deliveries", "isolation", "main", "memory"]

TOPIC = "guarantees"
BUFFER = 64 * MIB
PATIENCE = 120.0


def resident(field: str = "VmRSS") -> int:
    """KiB of this process; ``VmHWM``: the most that it ever had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


# --- the children: told by lines of JSON on standard input, they answer on standard output ------


async def _told(reader: asyncio.StreamReader) -> dict[str, Any]:
    line = await reader.readline()
    if not line:
        os._exit(1)  # the parent is gone
    told: dict[str, Any] = json.loads(line)
    return told


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def _coordinate() -> None:
    orders = await _stdin()
    coordinator = Coordinator(asyncio.get_running_loop(), guard=usual_guard())
    _say(at=str(await coordinator.start("127.0.0.1", 0)))
    await _told(orders)


async def _publish(coordinator: str) -> None:
    orders = await _stdin()
    payload = bytes(1024)
    async with Peer(coordinator) as peer:
        pub = await peer.pub(TOPIC, buffer=BUFFER)
        for i in range(1000):  # what a publisher has touched once in any case
            pub.put({"id": i, "v": 3.14, "s": "sensor-7"})
        await asyncio.sleep(0.1)
        _say(before=resident())
        while True:
            told = await _told(orders)
            if "wait" in told:
                await pub.wait_for_subscribers(told["wait"], timeout=PATIENCE)
            elif "put" in told:
                for i in range(told["put"]):
                    await pub.put({"id": i, "v": 3.14, "s": "sensor-7"})
                await pub.flush(PATIENCE)
            elif "batches" in told:
                value = {"id": 1, "v": 3.14, "s": bytes(told["size"])}
                before = time.process_time()
                for _ in range(told["batches"]):
                    pub.put(value)
                    await asyncio.sleep(told["every"])
                await pub.flush(PATIENCE)
                _say(cpu=time.process_time() - before)
                continue
            elif "seconds" in told:
                end = time.monotonic() + told["seconds"]
                n = 0
                while time.monotonic() < end:
                    for _ in range(64):
                        await pub.put({"id": n, "v": 3.14, "s": payload})
                        n += 1
                _say(put=n, highest=resident("VmHWM"))
                continue
            else:
                os._exit(0)
            _say(resident=resident())


async def _subscribe(coordinator: str, every: float) -> None:
    orders = await _stdin()
    async with Peer(coordinator) as peer:
        sub = await peer.sub(TOPIC)
        _say(ready=True)
        got = 0

        async def take() -> None:
            nonlocal got
            if every:
                while True:
                    await sub.get()
                    got += 1
                    await asyncio.sleep(every)
            async for _ in sub:
                got += 1

        task = asyncio.create_task(take())
        while "count" in await _told(orders):
            _say(got=got, lost=sub.lost)
        task.cancel()
        os._exit(0)


async def _crowd(coordinator: str, peers: int, subs: int) -> None:
    """So many peers in this process, with so many Subs each."""
    orders = await _stdin()
    made = [Peer(coordinator) for _ in range(peers)]
    all_subs = []
    for peer in made:
        all_subs += await asyncio.gather(*(_ready(peer.sub(TOPIC)) for _ in range(subs)))
    _say(ready=True)

    async def take(sub: Any) -> None:
        async for _ in sub:
            pass

    tasks = [asyncio.create_task(take(sub)) for sub in all_subs]
    await _told(orders)
    del tasks
    os._exit(0)


async def _ready(sub: Any) -> Any:
    return await sub


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "coordinate": lambda: _coordinate(),
    "publish": lambda at: _publish(at),
    "subscribe": lambda at, every: _subscribe(at, float(every)),
    "crowd": lambda at, peers, subs: _crowd(at, int(peers), int(subs)),
}


# --- the parent ---------------------------------------------------------------------------------


class _Child:
    def __init__(self, role: str, *args: str) -> None:
        self.role = role
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.guarantees", "--role", role, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> Any:
        try:
            return json.loads(self._lines.get(timeout=PATIENCE))[word]
        except queue.Empty:
            raise RuntimeError(f"{self.role}: no {word!r} in {PATIENCE:g} s") from None

    def ask(self, word: str, **what: Any) -> Any:
        self.tell(**what)
        return self.hear(word)


@contextmanager
def _stage() -> Iterator[tuple[list[_Child], str]]:
    children = [_Child("coordinate")]
    try:
        yield children, children[0].hear("at")
    finally:
        for child in reversed(children):
            child.end()


def isolation(seconds: float = 4.0, rounds: int = 3) -> dict[str, Any]:
    """See the module: what six subscribers get, without and with two slow ones beside them."""
    shares, alone, beside, highest = [], [], [], 0
    for _ in range(rounds):
        with _stage() as (children, at):
            publisher = _Child("publish", at)
            children.append(publisher)
            before = publisher.hear("before")
            good = [_Child("subscribe", at, "0") for _ in range(6)]
            children += good
            for child in good:
                child.hear("ready")
            publisher.ask("resident", wait=6)
            first = _delivered(publisher, good, seconds)
            slow = [_Child("subscribe", at, "0"), _Child("subscribe", at, "1")]
            children += slow
            for child in slow:
                child.hear("ready")
            publisher.ask("resident", wait=8)
            slow[0].process.send_signal(signal.SIGSTOP)
            second = _delivered(publisher, good, seconds)
            alone.append(first[0])
            beside.append(second[0])
            shares.append(second[0] / first[0])
            highest = max(highest, second[1] - before)
    return {
        "rate_alone": round(statistics.median(alone)),
        "rate_beside_slow_ones": round(statistics.median(beside)),
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "publisher_growth_mib": round(highest / 1024, 1),
        "buffer_mib": BUFFER // MIB,
        "seconds": seconds,
    }


def _delivered(publisher: _Child, good: list[_Child], seconds: float) -> tuple[float, int]:
    """Messages a second to all of these together, while it publishes; its highest memory."""
    before = sum(child.ask("got", count=True) for child in good)
    start = time.monotonic()
    publisher.tell(seconds=seconds)
    time.sleep(seconds)
    after = sum(child.ask("got", count=True) for child in good)
    rate = (after - before) / (time.monotonic() - start)
    return rate, _highest(publisher)


def _highest(publisher: _Child) -> int:
    highest: int = publisher.hear("highest")
    return highest


def memory(subscribers: int = 1000) -> dict[str, Any]:
    """See the module: KiB of the publisher for each subscriber."""
    found: dict[str, Any] = {"subscribers": subscribers}
    for name, peers, subs in (
        ("a_connection_each", subscribers, 1),
        ("a_hundred_to_a_connection", max(1, subscribers // 100), min(100, subscribers)),
    ):
        with _stage() as (children, at):
            publisher = _Child("publish", at)
            children.append(publisher)
            before = publisher.hear("before")
            crowd = _Child("crowd", at, str(peers), str(subs))
            children.append(crowd)
            crowd.hear("ready")
            attached = publisher.ask("resident", wait=peers * subs)
            after = publisher.ask("resident", put=1000)
            found[name] = {
                "attached_kib": round((attached - before) / (peers * subs), 2),
                "after_messages_kib": round((after - before) / (peers * subs), 2),
            }
    return found


def deliveries(subscribers: int = 100, batches: int = 500) -> dict[str, Any]:
    """See the module: microseconds of the publisher for a batch and subscriber."""
    found: dict[str, Any] = {"subscribers": subscribers, "batches": batches}
    for name, peers, subs in (
        ("a_connection_each", subscribers, 1),
        ("all_on_one_connection", 1, subscribers),
    ):
        with _stage() as (children, at):
            publisher = _Child("publish", at)
            children.append(publisher)
            publisher.hear("before")
            alone = {}
            for size in (8, 60_000):
                alone[size] = publisher.ask("cpu", batches=batches, size=size, every=0.01)
            crowd = _Child("crowd", at, str(peers), str(subs))
            children.append(crowd)
            crowd.hear("ready")
            publisher.ask("resident", wait=subscribers)
            found[name] = {
                f"us_with_{size}_bytes": round(
                    1e6
                    * (publisher.ask("cpu", batches=batches, size=size, every=0.01) - alone[size])
                    / (batches * subscribers),
                    2,
                )
                for size in (8, 60_000)
            }
    return found


def main() -> None:
    """The command line: see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guarantees", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", nargs="*", help="isolation, memory, deliveries (default: all)")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each flow (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="of isolation (default 3)")
    parser.add_argument("--subscribers", type=int, default=1000, help="default 1000")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.role:
        run(ROLES[args.role](*args.what))
        return
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
