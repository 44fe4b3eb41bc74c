"""Who calls: a program, or something that interrupts this package in the middle of its work.

Signal handlers, destructors and log handlers run wherever Python happens to be, also between two
steps of the core (docs/architecture.md, "Threads"). Nobody has to say on each way into the core
that it is at work, which would cost something for every frame: the call stack tells.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["INNER", "calls_of", "interrupts_the_core", "running_loop"]

running_loop = asyncio._get_running_loop
"""The loop that runs in this thread, or None. (asyncio documents the function for loops' use; the
public one raises where there is none, which costs ten times as much.)"""

INNER = ("pubsub.runtime.", "pubsub.links.", "pubsub.core.", "pubsub.wire.")
"""The folders whose work is not to be interrupted by itself."""


def interrupts_the_core() -> bool:
    """Whether the calling code runs in the middle of a step of the core or of the runtime. (Some
    microseconds: to be asked when something is out of the ordinary.)"""
    return any(module.startswith(INNER) for module, _ in _calls())


def calls_of(module: str) -> Iterator[Any]:
    """Whose methods, of that module, call the calling code, whatever lies between."""
    for name, frame in _calls():
        if name == module and "self" in frame.f_code.co_varnames:
            yield frame.f_locals.get("self")


def _calls() -> Iterator[tuple[str, FrameType]]:
    """The calls around this moment, the innermost first, each with its module."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame
        frame = frame.f_back
