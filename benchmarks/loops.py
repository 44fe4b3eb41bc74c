"""What the processes of a measurement have: an event loop, uvloop where it is installed, and the
usual credentials."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from pubsub.config import Settings
from pubsub.trust.credentials import credentials_from
from pubsub.trust.guard import Guard

__all__ = ["run", "usual_guard"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop if possible."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def usual_guard() -> Guard:
    """That of a coordinator, as each `Peer` has it of which nobody says otherwise."""
    return credentials_from(Settings(), os.environ).guard()
