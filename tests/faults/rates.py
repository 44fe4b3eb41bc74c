"""``python -m tests.faults.rates``: what an honest subscriber gets before and during each attack.

A publisher puts 20,000 messages of 100 bytes a second; publisher, subscriber, coordinator and
attacker are processes of their own. For each attack a line: messages delivered a second and the
longest time that one took, before it and while it is repeated without a pause.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from pubsub import Peer
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from tests.faults.attacks import (
    ON_ANYONE,
    ON_COORDINATOR,
    ON_PUBLISHER,
    ON_SUBSCRIBER,
    HostilePublisher,
)

RATE = 20_000
SECONDS = 2


async def coordinate() -> None:
    """Open: strangers speak."""
    daemon = Coordinator(asyncio.get_running_loop(), settings=Settings(), settle=0.0)
    print(await daemon.start("127.0.0.1", 0), flush=True)
    await asyncio.Event().wait()


async def publish(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        pub = await peer.pub("t")
        print(peer.runtime.address, pub._publication.stream_id, flush=True)
        began, put = time.monotonic(), 0
        while True:
            due = (time.monotonic() - began) * RATE
            while put < due:
                pub.put([time.monotonic(), b"." * 88])
                put += 1
            await asyncio.sleep(0.001)


async def subscribe(coordinator: str, publisher: str) -> None:
    async with Peer(coordinator) as peer:
        sub = await peer.sub("t")
        count, worst, until = 0, 0.0, time.monotonic() + 0.5
        async for message in sub.messages():
            if message.publisher != publisher:
                continue
            now = time.monotonic()
            count += 1
            worst = max(worst, now - message.value[0])
            if now >= until:
                print(count, worst, sub.lost, flush=True)
                count, worst, until = 0, 0.0, until + 0.5


class Process:
    """One role, and what it printed."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-m", *args]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PUBSUB_INSECURE": "1"},
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def first(self) -> list[str]:
        while not self.lines:
            time.sleep(0.01)
        return self.lines[0].split()

    def memory(self) -> float:
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096 / 2**20

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def observe(subscriber: Process) -> tuple[float, float]:
    """Messages a second, and the longest delay in ms."""
    time.sleep(0.6)
    subscriber.lines.clear()
    time.sleep(SECONDS)
    rows = [line.split() for line in list(subscriber.lines)]
    if not rows:
        return 0.0, float("inf")
    return sum(int(row[0]) for row in rows) / (len(rows) * 0.5), max(
        float(r[1]) for r in rows
    ) * 1e3


def main() -> None:
    """Measure all, or those whose names are given."""
    me = "tests.faults.rates"
    coordinator = Process(me, "coordinator")
    address = coordinator.first()[0]
    publisher = Process(me, "publisher", address)
    where, stream_id = publisher.first()
    subscriber = Process(me, "subscriber", address, f"{where}#{stream_id}")
    subscriber.first()
    attacks: list[tuple[str, Callable[[], Process | HostilePublisher], Process]] = []
    for role, target, victim, found in (
        ("publisher", where, publisher, [*ON_ANYONE, *ON_PUBLISHER]),
        ("coordinator", address, coordinator, ON_COORDINATOR),
    ):
        for attack in found:
            args = ("tests.faults.attacks", attack.name, "peer" if role == "publisher" else role)
            attacks.append(
                (
                    f"{role}: {attack.name}",
                    lambda args=args, to=target: Process(*args, to, stream_id),  # type: ignore[misc]
                    victim,
                )
            )
    attacks += [
        (
            f"subscriber: {bad.name}",
            lambda bad=bad: Process(me, "hostile", address, bad.name),  # type: ignore[misc]
            subscriber,
        )
        for bad in ON_SUBSCRIBER
    ]
    wanted = sys.argv[1:]
    print(f"{'attack':52} {'before':>14} {'during':>20}   victim's memory")
    for name, start, victim in attacks:
        if wanted and not any(word in name for word in wanted):
            continue
        before = observe(subscriber)
        memory = victim.memory()
        attacker = start()
        during = observe(subscriber)
        grown = victim.memory()
        attacker.end() if isinstance(attacker, Process) else attacker.close()
        print(
            f"{name:52} {before[0]:7,.0f} {before[1]:4.0f} ms {during[0]:11,.0f} "
            f"{during[1]:5.0f} ms   {memory:.0f} → {grown:.0f} MiB",
            flush=True,
        )
    print("lost:", subscriber.lines[-1].split()[2])
    for process in (subscriber, publisher, coordinator):
        process.end()


def hostile(coordinator: str, name: str) -> None:
    """A Pub that attacks whoever subscribes to it."""
    attack = next(attack for attack in ON_SUBSCRIBER if attack.name == name)
    HostilePublisher(coordinator, "t", attack.publish, answer=attack.answer)
    threading.Event().wait()


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "coordinator":
        asyncio.run(coordinate())
    elif role == "publisher" and len(sys.argv) == 3:
        asyncio.run(publish(sys.argv[2]))
    elif role == "subscriber" and len(sys.argv) == 4:
        asyncio.run(subscribe(*sys.argv[2:4]))
    elif role == "hostile" and len(sys.argv) == 4:
        hostile(*sys.argv[2:4])
    else:
        main()
