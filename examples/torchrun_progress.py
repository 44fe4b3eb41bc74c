"""Ranks that torchrun starts say how far they are.

pubsubd key new ~/pubsub.key                   (once; copy it to each machine)
export PUBSUB_KEY_FILE=~/pubsub.key            (on each machine)
torchrun --nproc-per-node 2 examples/torchrun_progress.py
"""

import os

from pubsub import Coordinator, Pub, Sub, connect

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1

if rank == 0:  # it runs at MASTER_ADDR
    coordinator = Coordinator("0.0.0.0", port)  # as long as this process lives
    connect((host, port))
    with Sub("progress") as progress:
        for _ in range(3 * (size - 1)):
            print(progress.get(timeout=60))
else:
    connect((host, port), connect_timeout=60)  # rank 0 may come later
    with Pub("progress") as progress:
        progress.wait_for_subscribers(1, timeout=60)  # so may its Sub
        for step in (1, 2, 3):
            progress.put({"task": rank, "step": step})
