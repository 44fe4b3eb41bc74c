"""Workers of a multiprocessing.Pool say how far they are.

python examples/multiprocessing_progress.py
"""

import multiprocessing

from pubsub import Coordinator, Pub, Sub, connect


def work(n: int) -> int:
    with Pub("progress") as progress:  # its end waits until all has arrived
        for step in (1, 2, 3):
            progress.put({"task": n, "step": step})
    return n * n


def main() -> None:
    context = multiprocessing.get_context("spawn")
    coordinator = Coordinator()  # as long as this process lives
    connect(coordinator.address)
    with (
        Sub("progress") as progress,
        context.Pool(2, initializer=connect, initargs=(coordinator.address,)) as pool,
    ):
        results = pool.map_async(work, range(4))
        for _ in range(12):
            print(progress.get(timeout=60))
        print(results.get())


if __name__ == "__main__":
    main()
