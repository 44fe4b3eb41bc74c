"""What the tests run on workers."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

__all__ = ["Counter", "collect", "collect_async", "echo", "put", "put_after", "put_from_timer"]

LONG = 30.0


def put(name: Any, *values: Any) -> str:
    """Publish, as a task does that is over at once; returns the worker's address."""
    from distributed import get_worker

    from pubsub.dask import Pub

    pub = Pub(name)
    for value in values:
        pub.put(value)
    return str(get_worker().address)


def put_from_timer(name: Any, value: Any) -> None:
    """Publish from a thread that the task has started, and that outlives it."""
    from pubsub.dask import Pub

    threading.Timer(0.1, lambda: Pub(name).put(value)).start()


def collect(name: Any, count: int, ready: Any = None) -> list[Any]:
    """Subscribe, say so on another name, and return what comes."""
    from pubsub.dask import Pub, Sub

    sub = Sub(name)
    if ready is not None:
        Pub(ready).put("ready")
    return [sub.get(timeout=LONG) for _ in range(count)]


async def collect_async(name: Any, count: int, ready: Any = None) -> list[Any]:
    from pubsub.dask import Pub, Sub

    sub = Sub(name)
    await sub.ready()
    if ready is not None:
        Pub(ready).put("ready")
    found = []
    async for value in sub:
        found.append(value)
        if len(found) == count:
            return found
    raise AssertionError("closed")


def echo(name: Any, ready: Any) -> None:
    """Send back what comes until it is None."""
    from pubsub.dask import Pub, Sub

    sub, pub = Sub(name), Pub(ready)
    pub.put("ready")
    while (value := sub.get(timeout=LONG)) is not None:
        pub.put(value)


class Counter:
    """An actor with a Sub and a Pub of its own."""

    def __init__(self, name: Any) -> None:
        from pubsub.dask import Pub, Sub

        self.sub, self.pub = Sub(name), Pub([name])
        self.total = 0

    def ready(self) -> bool:
        return True

    async def add(self, count: int) -> int:
        for _ in range(count):
            self.total += await self.sub.get(timeout=LONG)
        self.pub.put(self.total)
        return self.total

    async def patient(self) -> int:
        """A get that is given up loses nothing."""
        with_nothing = 0
        while True:
            try:
                value: int = await asyncio.wait_for(self.sub.get(), 0.01)
            except asyncio.TimeoutError:
                with_nothing += 1
                if with_nothing == 5:
                    return self.total
            else:
                self.total += value


def put_after(first: Any, name: Any, value: Any) -> None:
    """Publish, where that other task ran, or where the work is stolen to."""
    import time

    from pubsub.dask import Pub

    time.sleep(0.05)
    Pub(name).put(value)
