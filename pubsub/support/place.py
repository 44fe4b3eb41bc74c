"""The place of what belongs to an event loop: where it may be used."""

from __future__ import annotations

import asyncio
from threading import get_ident

from pubsub.errors import WrongContext
from pubsub.support.reentry import running_loop

__all__ = ["check_place"]


def check_place(loop: asyncio.AbstractEventLoop, thread: int, what: str) -> None:
    """Raise `WrongContext` where something that belongs to that loop is used elsewhere: it would
    not be done, or not before the loop runs again. In its thread it may be used while no loop runs
    there, as between two runs of this one."""
    running = running_loop()
    if running is loop:
        return
    if loop.is_closed():
        whose = "an event loop that has ended: make a new one in the loop that runs now"
    elif get_ident() != thread:
        whose = "the event loop of another thread: use it there, or make one outside of any loop, "
        whose += "which all threads may use"
    elif running is not None:
        whose = "another event loop: use it there, or make a new one in the loop that runs now"
    else:
        return
    raise WrongContext(f"{what} belongs to {whose}")
