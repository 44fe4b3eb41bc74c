"""Ranks of an MPI job say how far they are.

mpiexec -n 3 python examples/mpi_progress.py
"""

import socket

from mpi4py import MPI

from pubsub import Coordinator, Pub, Sub, connect, new_key

world = MPI.COMM_WORLD

if world.rank == 0:
    key = new_key()
    coordinator = Coordinator("0.0.0.0", key=key)  # as long as this process lives
    address = f"{socket.gethostname()}:{coordinator.port}"
    connect(address, key)
    with Sub("progress") as progress:  # before the others know where
        world.bcast((address, key))
        for _ in range(3 * (world.size - 1)):
            print(progress.get(timeout=60))
else:
    connect(*world.bcast(None))
    with Pub("progress") as progress:
        for step in (1, 2, 3):
            progress.put({"task": world.rank, "step": step})
