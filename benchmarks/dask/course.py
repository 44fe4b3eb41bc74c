"""The program: ``python course.py MODULE`` measures ``MODULE.Pub`` and ``MODULE.Sub`` on a
`LocalCluster` of two processes, and prints what it found as JSON.

It imports nothing of this project by itself, so that it runs where that is not installed. Messages
go in bursts, each of which its taker answers: nothing is in the way of a Pub that holds only so
much, nor does one that holds any number win by it. A burst's time is that from before its first
`put` until after its last `get`, by the clock of the machine that both run on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from typing import Any

SMALL = "small objects"
ARRAYS = "1 MiB arrays"
TRIP = "round trip"
HANGS = 10.0
"""Seconds after which nothing comes any more: the old one sometimes hangs at its start."""
ATTEMPTS = 5


def value_of(kind: str, number: int) -> Any:
    """The message of that number."""
    if kind == ARRAYS:
        import numpy as np

        return np.full(1 << 20, number % 251, dtype="u1")
    return {"step": number, "loss": 0.25, "name": "worker-1"}


def check(kind: str, number: int, value: Any) -> None:
    """Raise where it is not the message of that number."""
    right = value["step"] == number if kind != ARRAYS else value[0] == value[-1] == number % 251
    if not right:
        raise AssertionError(f"another message than number {number} of {kind}: {value!r:.60}")


def keep(module: Any, these: tuple[Any, Any]) -> None:
    """Have them live as long as the process: the old ones, unsubscribing late, take the client's
    connection to the scheduler with them."""
    vars(module).setdefault("_kept", []).append(these)


def send(module: str, topic: str, kind: str, bursts: int, size: int) -> list[float]:
    """Put that many bursts; when each began."""
    here = importlib.import_module(module)
    pub, answers = kept = here.Pub(f"{topic}-there"), here.Sub(f"{topic}-back")
    keep(here, kept)
    until = time.monotonic() + HANGS
    while True:  # until both find each other
        if time.monotonic() > until:
            raise TimeoutError("nobody has answered")
        pub.put("hello")
        try:
            while answers.get(timeout=0.1) != "ready":
                pass
            break
        except TimeoutErrors:
            continue
    pub.put("begin")
    number, began = 0, []
    for _ in range(bursts):
        values = [value_of(kind, number + each) for each in range(size)]
        began.append(time.time())
        for value in values:
            pub.put(value)
        number += size
        while answers.get(timeout=HANGS) != number:
            pass
    return began


def take(module: str, topic: str, kind: str, bursts: int, size: int) -> list[float]:
    """Get that many bursts; when each was over."""
    here = importlib.import_module(module)
    sub, answers = kept = here.Sub(f"{topic}-there"), here.Pub(f"{topic}-back")
    keep(here, kept)
    while (word := sub.get(timeout=HANGS)) != "begin":
        if word == "hello":
            answers.put("ready")
    number, ended = 0, []
    for _ in range(bursts):
        for _ in range(size):
            value = sub.get(timeout=HANGS)
            check(kind, number, value)
            number += 1
        ended.append(time.time())
        answers.put(number)
    return ended


try:
    from asyncio import TimeoutError as _Async

    from distributed import TimeoutError as _Dask

    TimeoutErrors: Any = (TimeoutError, _Async, _Dask)
except ImportError:  # it is looked at, and not run
    TimeoutErrors = (TimeoutError,)


def one(client: Any, module: str, kind: str, taker: str, bursts: int, size: int) -> dict[str, Any]:
    """Measure one kind between a worker and another, or a worker and the client."""
    for hung in range(ATTEMPTS):
        try:
            return {**attempt(client, module, kind, taker, bursts, size), "hung": hung}
        except TimeoutErrors as error:
            print(f"{module}: {kind}, worker to {taker}: {error!r}", file=sys.stderr)
            time.sleep(HANGS)  # so that the other end has given up, too
    raise SystemExit(f"{module}: {kind}, worker to {taker}: hangs, {ATTEMPTS} times out of as many")


def attempt(
    client: Any, module: str, kind: str, taker: str, bursts: int, size: int
) -> dict[str, Any]:
    """The same, once."""
    first, second = sorted(client.scheduler_info()["workers"])
    topic = f"{kind}-{taker}-{time.time()}".replace(" ", "-")
    given = (module, topic, kind, bursts, size)
    sending = client.submit(send, *given, workers=[first], pure=False)
    if taker == "worker":
        taken = client.submit(take, *given, workers=[second], pure=False)
        ended = taken.result()
    else:
        ended = take(*given)
    times = [end - begin for begin, end in zip(sending.result(), ended, strict=True)]
    half = times[len(times) // 4 :]  # the first ones warm up
    return {"median": statistics.median(half), "size": size}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of messages")
    asked = parser.parse_args()
    import distributed

    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    )
    found: dict[str, Any] = {"distributed": distributed.__version__}
    with cluster, distributed.Client(cluster) as client:
        if asked.module != "distributed":
            client.register_plugin(importlib.import_module(asked.module).PubSubPlugin())
        for taker in ("worker", "client"):
            for kind, bursts, size in ((SMALL, 12, 5_000), (ARRAYS, 12, 32), (TRIP, 400, 1)):
                bursts = max(4, int(bursts * asked.scale))
                result = one(client, asked.module, kind, taker, bursts, size)
                found[f"{kind}, worker to {taker}"] = result
    print(json.dumps(found))


if __name__ == "__main__":
    main()
