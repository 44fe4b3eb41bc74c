"""Elsewhere: a Pub, Sub or Peer of an event loop is told to end by who must not touch it.

That is another thread, or a signal handler, destructor or log handler that interrupts the runtime.
The end is begun in the loop's next turn then, and who waits there is woken at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from threading import get_ident
from typing import Any

from pubsub.support.reentry import interrupts_the_core

__all__ = ["DONE", "begin", "elsewhere"]


class _Done:
    """What a close() returns that has nothing to wait for, so that it may be awaited."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield

    def __repr__(self) -> str:
        return "<closed>"


DONE = _Done()


def elsewhere(loop: asyncio.AbstractEventLoop, thread: int) -> bool:
    """Whether the caller must not touch what belongs to that loop, which runs in that thread."""
    strange = get_ident() != thread or interrupts_the_core()
    return strange and loop.is_running()  # else nothing runs there that it could disturb


def begin(
    loop: asyncio.AbstractEventLoop, end: Callable[..., Awaitable[None]], *args: Any
) -> Awaitable[None]:
    """Have that loop call `end`. What this returns is done when it has ended, where the caller runs
    in an event loop, and where it does not, at once."""

    async def run() -> None:
        await end(*args)

    coroutine = run()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop has been closed meanwhile, and with it everything
        coroutine.close()
        return DONE
    here = asyncio._get_running_loop()
    return DONE if here is None else asyncio.wrap_future(future, loop=here)
