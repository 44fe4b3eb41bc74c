"""All contenders, one module each."""

from __future__ import annotations

import importlib
from typing import Final

from benchmarks.contender import Contender

__all__ = ["MODULES", "load"]

MODULES: Final = (
    "benchmarks.contenders.ours",
    "benchmarks.contenders.channels",
    "benchmarks.contenders.ways",
    "benchmarks.contenders.pyzmq",
    "benchmarks.contenders.zenoh",
    "benchmarks.contenders.iceoryx",
    "benchmarks.contenders.cyclone",
    "benchmarks.contenders.brokers",
    "benchmarks.contenders.stream",
    "benchmarks.contenders.protocol",
    "benchmarks.contenders.sockets",
    "benchmarks.contenders.codec",
    "benchmarks.contenders.bare",
)
"""Each has ``CONTENDERS``, a tuple of instances, and can be imported where what it measures is
not installed."""


def load(module: str) -> dict[str, Contender]:
    """The contenders of a module, by name."""
    found: tuple[Contender, ...] = importlib.import_module(module).CONTENDERS
    return {contender.name: contender for contender in found}
