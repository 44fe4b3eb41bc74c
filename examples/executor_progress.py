"""Workers of a ProcessPoolExecutor say how far they are.

python examples/executor_progress.py
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from pubsub import Coordinator, Pub, Sub, connect


def work(n: int) -> int:
    with Pub("progress") as progress:
        for step in (1, 2, 3):
            progress.put({"task": n, "step": step})
    return n * n


def main() -> None:
    coordinator = Coordinator()  # as long as this process lives
    connect(coordinator.address)
    with (
        Sub("progress") as progress,
        ProcessPoolExecutor(
            2,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=connect,
            initargs=(coordinator.address,),
        ) as pool,
    ):
        results = pool.map(work, range(4))
        for _ in range(12):
            print(progress.get(timeout=60))
        print(list(results))


if __name__ == "__main__":
    main()
