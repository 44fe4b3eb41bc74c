"""Racing: several places, of which nobody knows which answers first (as RFC 8305 has it)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

__all__ = ["STAGGER", "race"]

T = TypeVar("T")

STAGGER = 0.25
"""Seconds that one place has before the next one is tried beside it."""


async def race(
    places: Iterable[T],
    attempt: Callable[[T], Awaitable[Sequence[T]]],
    enough: Callable[[], bool],
    stagger: float = STAGGER,
) -> None:
    """Try one place after the other, each so many seconds behind the one before, or at once when
    an attempt has ended, until it is enough or all attempts have ended.

    Parameters:
        attempt: tries one; returns what is to be tried next, before the others: a name means
            several addresses. It does not raise.
        enough: nothing more is to be tried. What is under way then is cancelled.
    """
    waiting = deque(places)
    running: set[asyncio.Future[Sequence[T]]] = set()
    try:
        while (waiting or running) and not enough():
            if waiting:
                running.add(asyncio.ensure_future(attempt(waiting.popleft())))
            timeout = stagger if waiting else None
            done, running = await asyncio.wait(
                running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                waiting.extendleft(reversed(task.result()))
    finally:
        for task in running:
            task.cancel()
