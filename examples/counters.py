"""Publish this machine's counters: how busy it is, its memory, its network, ten times a second.

    python examples/counters.py
    pubsub tail 'machine/*/counters'

The counters are those of /proc; where a machine has none, what Python knows of it takes their
place, and the rest is null.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

from pubsub import Pub

PROC = Path("/proc")


class Counters:
    """What happened on this machine since the last time it was asked."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._cpu = cpu_times()
        self._net = net_bytes()

    def read(self) -> dict[str, Any]:
        """A message: rates since the last one, levels now."""
        at, cpu, net = time.monotonic(), cpu_times(), net_bytes()
        seconds = max(1e-3, at - self._at)
        row = {
            "cpu_%": cpu_percent(self._cpu, cpu),
            "mem_MB": memory(),
            "in_kB/s": rate(self._net, net, 0, seconds),
            "out_kB/s": rate(self._net, net, 1, seconds),
            "load": load(),
        }
        self._at, self._cpu, self._net = at, cpu, net
        return row


def cpu_times() -> tuple[int, int] | None:
    """Ticks that the processors were busy, and all of them, since the machine started."""
    try:
        first = (PROC / "stat").read_text().split("\n", 1)[0]
        user, nice, system, idle, iowait, *more = map(int, first.split()[1:9])
    except (OSError, ValueError):
        return None
    busy = user + nice + system + sum(more)
    return busy, busy + idle + iowait


def cpu_percent(before: tuple[int, int] | None, now: tuple[int, int] | None) -> float | None:
    """How busy the processors were between two times."""
    if before is None or now is None:
        return None
    total = now[1] - before[1]
    return round(100 * (now[0] - before[0]) / total, 1) if total > 0 else 0.0


def memory() -> int | None:
    """Memory in use, in MB."""
    found: dict[str, int] = {}
    try:
        for line in (PROC / "meminfo").read_text().splitlines():
            name, _, size = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(size.split()[0]) // 1024
        return found["MemTotal"] - found["MemAvailable"]
    except (OSError, ValueError, KeyError):
        return None


def net_bytes() -> tuple[int, int] | None:
    """Bytes received and sent by all interfaces, the loopback too."""
    try:
        lines = (PROC / "net" / "dev").read_text().splitlines()[2:]
        rows = [line.partition(":")[2].split() for line in lines]
        return sum(int(row[0]) for row in rows), sum(int(row[8]) for row in rows)
    except (OSError, ValueError, IndexError):
        return None


def rate(
    before: tuple[int, int] | None, now: tuple[int, int] | None, which: int, seconds: float
) -> float | None:
    """Kilobytes a second."""
    if before is None or now is None:
        return None
    return round((now[which] - before[which]) / seconds / 1000, 1)


def load() -> float | None:
    """Processes that wanted to run, on average over a minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def topic_of_this_machine() -> str:
    """``machine/<hostname>/counters``."""
    host = re.sub(r"[^\w.-]", "-", socket.gethostname()) or "localhost"
    return f"machine/{host}/counters"


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish this machine's counters.")
    parser.add_argument("--topic", default=topic_of_this_machine())
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second")
    parser.add_argument("--count", type=int, help="end after so many (default: never)")
    args = parser.parse_args()

    counters = Counters()
    with Pub(args.topic) as pub:
        print(f"{args.rate:g} messages a second on {args.topic}; Ctrl-C ends it", flush=True)
        n = 0
        due = time.monotonic()
        while args.count is None or n < args.count:
            due += 1 / args.rate
            time.sleep(max(0.0, due - time.monotonic()))
            pub.put({"n": n, **counters.read()})
            n += 1


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
