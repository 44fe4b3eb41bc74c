"""Progress from many Dask tasks, as it happens: python examples/dask_feed.py

Each task publishes how far it is; the client shows it while it waits for the results.
"""

from __future__ import annotations

import sys
import time

from distributed import Client, LocalCluster

from pubsub.dask import Pub, PubSubPlugin, Sub

STEPS = 20


def work(number: int) -> int:
    progress = Pub("progress")
    total = 0
    for step in range(1, STEPS + 1):
        time.sleep(0.01)  # what takes its time
        total += number * step
        progress.put((number, step))
    return total


def main(tasks: int = 4) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(PubSubPlugin())
        progress = Sub("progress")  # ready: it misses nothing of what begins from here on
        futures = client.map(work, range(tasks))
        done = dict.fromkeys(range(tasks), 0)
        while sum(done.values()) < tasks * STEPS:
            number, done_steps = progress.get(timeout="30s")
            done[number] = done_steps
            print("\r" + "  ".join(f"{n}: {100 * d // STEPS:3} %" for n, d in done.items()), end="")
        print("\nresults:", client.gather(futures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
