"""Results and files from a training on Dask workers, while it runs: python examples/dask_results.py

Each rank sends metrics, and checkpoints as bytes, by one Pub; the client writes them into a folder,
as dask-pytorch-ddp's results handler does. Nothing needs a shared file system. (It needs numpy.)
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from pubsub.dask import Pub, PubSubPlugin, Sub

EPOCHS = 3


def train(rank: int) -> str:
    results = Pub("results")

    def submit(path: str, data: bytes) -> None:
        results.put({"rank": rank, "path": path, "data": data})

    weights = np.zeros(1000)
    for epoch in range(EPOCHS):
        weights += rank + 1  # what a training step does
        loss = 1 / (1 + epoch)
        submit(
            f"rank {rank}/metrics.jsonl",
            json.dumps({"epoch": epoch, "loss": loss}).encode() + b"\n",
        )
        if epoch == EPOCHS - 1:
            submit(f"rank {rank}/weights.pickle", pickle.dumps(weights))
    results.put({"rank": rank, "path": None})
    return f"rank {rank} is done"


def collect(results: Any, folder: Path, ranks: int) -> None:
    """Write what comes until every rank is done."""
    while ranks:
        result = results.get(timeout="60s")
        if result["path"] is None:
            ranks -= 1
            continue
        path = folder / result["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(result["data"])


def main(ranks: int = 2) -> None:
    with (
        LocalCluster(n_workers=ranks, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        client.register_plugin(PubSubPlugin())
        results = Sub("results")
        futures = client.map(train, range(ranks))
        collect(results, Path(folder), ranks)
        print(*client.gather(futures), sep="\n")
        for path in sorted(Path(folder).rglob("*.*")):
            print(f"{path.relative_to(folder)}: {path.stat().st_size:,} bytes")
        print("lost:", results.lost)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
