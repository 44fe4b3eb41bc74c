"""Two processes in plain, blocking code: one counts, the other adds up.

    python examples/blocking.py            both, as two processes
    python examples/blocking.py publish    one of them; start the other where you like
    python examples/blocking.py subscribe

No daemon is needed on one machine: the first process starts a coordinator in itself.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context

from pubsub import Pub, Sub


def publish(n: int = 5) -> None:
    with Pub("numbers") as pub:
        pub.wait_for_subscribers(timeout=30)
        for i in range(n):
            pub.put({"i": i, "square": i * i})
        pub.put("that was all")


def subscribe() -> None:
    total = 0
    with Sub("numbers") as sub:
        for message in sub:
            if message == "that was all":
                break
            total += message["square"]
            print(f"{message['i']} squared is {message['square']}", flush=True)
    print(f"together {total}", flush=True)


def both() -> None:
    other = get_context("spawn").Process(target=publish)
    other.start()
    subscribe()
    other.join()


if __name__ == "__main__":
    {"publish": publish, "subscribe": subscribe}.get("".join(sys.argv[1:]), both)()
