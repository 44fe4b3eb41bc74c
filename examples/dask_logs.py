"""The log of all Dask workers, live: python examples/dask_logs.py

A handler on each worker publishes its records. The client reads them with `async for`, beside all
else that its event loop does.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from distributed import Client, LocalCluster, WorkerPlugin

from pubsub.dask import Pub, PubSubPlugin, Sub


class Published(logging.Handler):
    """Publishes what is logged."""

    def __init__(self, pub: Pub) -> None:
        super().__init__()
        self.pub = pub

    def emit(self, record: logging.LogRecord) -> None:
        self.pub.put((record.levelname, record.getMessage()))


class PublishLogs(WorkerPlugin):
    """Has each worker publish what the logger "job" is told."""

    def setup(self, worker: object) -> None:
        log = logging.getLogger("job")
        log.setLevel(logging.INFO)
        log.addHandler(Published(Pub("logs", worker=worker)))


def job(number: int) -> None:
    log = logging.getLogger("job")
    log.info("job %d begins", number)
    if number % 3 == 2:
        log.warning("job %d is odd", number)
    log.info("job %d is done", number)


async def main(jobs: int = 6) -> None:
    async with (
        LocalCluster(n_workers=2, asynchronous=True, dashboard_address=":0") as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.register_plugin(PubSubPlugin())
        await client.register_plugin(PublishLogs())
        logs = Sub("logs")
        await logs.ready()
        futures = client.map(job, range(jobs))
        done = 0
        async for level, text in logs:
            print(f"{level:8}{text}")
            done += text.endswith("done")
            if done == jobs:
                break
        await client.gather(futures)
        print(f"{done} jobs, lost: {logs.lost}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
