"""Tasks of Ray say how far they are.

python examples/ray_progress.py
"""

from typing import Any

import ray

from pubsub import Coordinator, Pub, Sub, connect, new_key


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Head:
    def __init__(self, key: str, port: int = 0) -> None:
        self.key = key
        self.coordinator = Coordinator("0.0.0.0", port, key=key)

    def where(self) -> tuple[str, str]:
        return f"{ray.util.get_node_ip_address()}:{self.coordinator.port}", self.key


@ray.remote
def work(n: int, head: Any) -> int:
    connect(*ray.get(head.where.remote()))
    with Pub("progress") as progress:
        for step in (1, 2, 3):
            progress.put({"task": n, "step": step})
    return n * n


def main() -> None:
    ray.init()
    head = Head.remote(new_key())
    connect(*ray.get(head.where.remote()))
    with Sub("progress") as progress:
        results = [work.remote(n, head) for n in range(4)]
        for _ in range(12):
            print(progress.get(timeout=60))
        print(ray.get(results))


if __name__ == "__main__":
    main()
