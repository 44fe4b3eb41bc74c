"""Peers that come back to a coordinator at once: killed, and started again.

Each is a session as a real peer has it, with a handshake in full each time and delays of its own
between its attempts. All of them are in one process beside the coordinator, so on few processors
one handshake takes both ends' time.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.coordinator.crowd import crowd as crowd_of
from benchmarks.coordinator.plan import Plan
from benchmarks.daemons import allow_files, daemon
from benchmarks.stage import Stage

__all__ = ["come_back"]

SPARE = 200
"""File descriptors that are none of a connection."""
SETTLE = 1.0
"""Seconds in which what was set in motion comes to rest."""


def come_back(peers: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """What comes of so many peers, or as many as may have a file descriptor here.

    Parameters:
        environment: the credentials of all.

    Raises:
        Failed: it came to nothing.
    """
    plan = Plan(max(1, min(peers, allow_files(peers + SPARE) - SPARE)), peers, 0)
    with Stage() as stage:
        first = daemon(stage, environment=environment)
        alone = first.memory()
        crowd = stage.start(
            *(crowd_of, first.port, plan.peers, plan.topics, plan.patterns, 0, plan.peers),
            environment=environment,
        )
        before = first.cpu()
        stage.ask(crowd, "connect")
        spent = first.cpu() - before
        time.sleep(SETTLE if plan.peers > 1_000 else 0)
        connected = first.memory()
        stage.ask(crowd, "register", each=0)
        stage.ask(crowd, "recover", "ready")
        first.end()
        start = time.monotonic()
        again = daemon(stage, first.port, environment)
        listening = time.monotonic()
        done = stage.hear(crowd, "answer")
        busy = again.cpu()
    came = sorted(at - listening for at in done["came"])
    failed: Counter[str] = Counter()
    for at, why, count in done["failures"]:
        if at > int(listening * 10) + 1:
            failed[why] += count
    return {
        "seconds": done["end"] - listening,
        "half_after": statistics.median(came),
        "last_after": came[-1],
        "tried_in_vain": failed.total(),
        "connect_cpu_us": spent / plan.peers * 1e6,
        "busy": busy / (done["end"] - start),
        "link_kib": (connected - alone) / plan.peers,
        "peers": plan.peers,
        "why": dict(failed),
    }
