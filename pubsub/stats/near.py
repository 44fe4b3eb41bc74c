"""Which topics may have been meant, where one is written that nobody has."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["near"]

NAMED = 3
"""So many are named."""
ALIKE = 0.75
"""How like each other two names are, of which one may be meant by the other: one letter in six may
be wrong, and two that are exchanged in ``temp``."""


def near(name: str, topics: Iterable[str]) -> list[str]:
    """Those that are written like it, the likest first.

    >>> near("Sensors.Kitchen.tmep", ["sensors/kitchen/temp", "lamps/kitchen", "sensors/attic"])
    ['sensors/kitchen/temp']
    """
    flat = {topic: _flat(topic) for topic in topics if topic != name}
    alike = get_close_matches(_flat(name), sorted(set(flat.values())), NAMED, ALIKE)
    return [topic for like in alike for topic in sorted(flat) if flat[topic] == like][:NAMED]


def _flat(name: str) -> str:
    """Without what is often written otherwise."""
    return name.casefold().replace(".", "/").replace("-", "_").strip("/")
