"""Stats: what flows in a process, how fast, and who is slow; see `Stats` and `why`."""

from __future__ import annotations

from pubsub.stats.rows import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PastStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)

__all__ = [
    "CoordinatorStats",
    "LinkStats",
    "LoopStats",
    "PastStats",
    "PubStats",
    "Rates",
    "Stats",
    "StreamStats",
    "SubStats",
    "SubscriberStats",
]
