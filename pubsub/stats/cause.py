"""Cause: why something is slow, or does not come, in a sentence; how much that explains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["FAULT", "YOUNG", "Cause", "listed", "made", "one"]

YOUNG = 3.0
"""Seconds in which what was just made may still find the others."""
NAMED = 3
"""Processes that one sentence names."""

FAULT = 40.0
"""From this `Cause.weight` on something is wrong; below, it may be as it should be."""
WEIGHTS = {
    "stopped": 95,
    "vanished": 90,
    "unreachable": 85,
    "unmatched": 80,
    "unpublished": 75,
    "stuck": 70,
    "slow": 65,
    "loop": 60,
    "network": 60,
    "reconnecting": 55,
    "full": 50,
    "coordinator": 45,
    "lost": 42,
    "replaced": 35,
    "unsubscribed": 30,
    "silent": 20,
    "conflated": 5,
}
"""By kind. What a kind explains (a buffer is full because a consumer is slow) stands behind it."""


class Cause(NamedTuple):
    """Why something is slow, or does not come."""

    kind: str
    """One of `WEIGHTS`."""
    sentence: str
    """For people: who, what, and by how much."""
    weight: float
    """The larger, the more it explains; from `FAULT` on something is wrong."""
    topic: str = ""
    """Of the Pub or Sub; empty: it is about a process."""
    publisher: str = ""
    """`Stats.who` of the publishing process; empty: none is named."""
    subscriber: str = ""
    """The same of the subscribing one."""


def made(
    kind: str,
    sentence: str,
    topic: str = "",
    publisher: str = "",
    subscriber: str = "",
    *,
    seconds: float = 0.0,
    observer: bool = False,
) -> Cause:
    """A `Cause`. `seconds`: how bad it is, among those of its kind. `observer`: it ails one that
    only looks on, and nobody else: a pager in which a tail was left may be as it should be."""
    seconds = min(max(seconds, 0.0), 1e9)  # as others say it
    weight = WEIGHTS[kind] + 4.0 * seconds / (seconds + 10.0)
    return Cause(kind, sentence, weight / 4 if observer else weight, topic, publisher, subscriber)


def listed(names: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def one(names: Iterable[str], otherwise: str) -> str:
    """The only one of them, or, where there are none or several, the other."""
    found = set(names)
    return found.pop() if len(found) == 1 else otherwise
