"""Tasks of joblib say how far they are.

python examples/joblib_progress.py
"""

from joblib import Parallel, delayed, parallel_config

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
        parallel_config("loky", initializer=connect, initargs=(coordinator.address,)),
    ):
        results = Parallel(n_jobs=2, return_as="generator")(delayed(work)(n) for n in range(4))
        for _ in range(12):
            print(progress.get(timeout=60))
        print(list(results))


if __name__ == "__main__":
    main()
