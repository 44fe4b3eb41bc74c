"""Publisher and subscriber as two coroutines of one event loop.

    python examples/asynchronous.py

In a loop the same classes are awaited. (In two processes it would look just the same: nothing
here knows where the other side is.)
"""

from __future__ import annotations

import asyncio
import math

from pubsub import Pub, Sub


async def measure(place: str, n: int = 5) -> None:
    async with Pub(f"sensors/{place}/temp") as pub:
        await pub.wait_for_subscribers(timeout=30)
        for i in range(n):
            pub.put(round(20 + 3 * math.sin(i), 2))  # returns at once: no await needed
            await asyncio.sleep(0.05)


async def watch(readings: int) -> None:
    async with Sub("sensors/*/temp") as sub:  # "*": any one segment
        async for message in sub.messages():  # with where each comes from, and any gap
            print(message)
            readings -= 1
            if not readings:
                return


async def main() -> None:
    await asyncio.gather(watch(10), measure("kitchen"), measure("attic"))


if __name__ == "__main__":
    asyncio.run(main())
