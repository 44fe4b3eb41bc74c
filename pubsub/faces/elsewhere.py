"""Elsewhere: a Pub, Sub or Peer of an event loop is told to end by who must not touch it: another
thread, or a signal handler, destructor or log handler that interrupts the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from threading import get_ident
from typing import Any

from pubsub.errors import WrongContext
from pubsub.runtime.thread import in_one
from pubsub.support.reentry import interrupts_the_core, running_loop

__all__ = ["DONE", "begin", "elsewhere", "refuse_inside"]


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
    here = running_loop()
    return DONE if here is None else asyncio.wrap_future(future, loop=here)


def refuse_inside(what: str) -> None:
    """Raise `WrongContext` where nothing can be made, because the code that asks for it interrupts
    the work of a Peer, or runs in the middle of it. (Outside of event loops, that work is done in
    another thread.)"""
    if in_one() or (running_loop() is not None and interrupts_the_core()):
        raise WrongContext(
            f"a {what} cannot be made here, in the middle of the work of a Peer (by a signal "
            "handler, a destructor or a log handler): have it noted here (set a flag, or "
            "loop.call_soon_threadsafe), and made outside"
        )
