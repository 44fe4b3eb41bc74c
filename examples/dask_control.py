"""A control loop over Dask workers: python examples/dask_control.py

Environments run as tasks, each steered by a Pub of its own; what they observe comes back by one Sub
that all share. (So reinforcement learning was done with Dask's own Pub and Sub.)
"""

from __future__ import annotations

import sys

from distributed import Client, LocalCluster

from pubsub.dask import Pub, PubSubPlugin, Sub


def environment(number: int, target: float) -> float:
    """A value that is to be brought to its target. Returns how far from it the last step was."""
    actions, observations = Sub(f"actions/{number}"), Pub("observations")
    value = 0.0
    observations.put((number, value, target))
    for action in actions:
        if action is None:
            break
        value += action
        observations.put((number, value, target))
    return abs(value - target)


def main(environments: int = 3, steps: int = 50) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(PubSubPlugin())
        observations = Sub("observations")
        actions = [Pub(f"actions/{n}") for n in range(environments)]
        targets = [float(n + 1) for n in range(environments)]
        futures = client.map(environment, range(environments), targets)
        left = dict.fromkeys(range(environments), steps)
        while left:
            number, value, target = observations.get(timeout="30s")
            if left[number]:
                actions[number].put((target - value) / 2)
                left[number] -= 1
            else:
                actions[number].put(None)
                del left[number]
        print(f"{environments} environments, {steps} steps each, off by", client.gather(futures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
