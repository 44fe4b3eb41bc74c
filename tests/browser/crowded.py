"""A dashboard of a made-up crowd, for a browser to be measured with: ``python -m
tests.browser.crowded TOPICS PROCESSES``; prints its link."""

from __future__ import annotations

import asyncio
import sys
from time import monotonic, perf_counter

from pubsub import Peer
from pubsub.dashboard import Access, Dashboard
from pubsub.dashboard.moments import PAGES, Past
from pubsub.dashboard.pictures import Page
from tests.dashboard.staging import TOKEN, crowd
from tests.integration.support import coordinator_in_loop


async def main(topics: int, processes: int) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator, linger=0) as peer:
        dashboard = Dashboard(peer, Access(TOKEN, ["localhost"]))
        ((_, port),) = await dashboard.start("127.0.0.1", 0)
        watching = dashboard._watching
        watching._task = asyncio.ensure_future(asyncio.sleep(1e6))
        print(f"http://127.0.0.1:{port}/?token={TOKEN}", flush=True)
        past, turn, before = Past(), 0, None
        while True:
            told = crowd(topics, processes, turn, slow=turn % 20 < 10)
            for each, old in zip(told, before or told, strict=True):
                each.at, each.before = monotonic(), old.stats
            began = perf_counter()
            watching._show(past, told)
            for kind in PAGES:
                watching._picture.write(Page(kind), turn)  # type: ignore[union-attr]
            print(f"{(perf_counter() - began) * 1000:.0f} ms for all pages", flush=True)
            before = told
            await asyncio.sleep(1)
            turn += 1


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
