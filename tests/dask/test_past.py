"""What killed Dask's own Pub and Sub, and must not come back. Each test names it, with the number
of the issue in dask/distributed where there was one."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

from pubsub.dask import Pub, PubSubPlugin, Sub, homes, info
from tests.dask import tasks
from tests.dask.conftest import made
from tests.dask.tasks import LONG
from tests.integration.support import run_python


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A cluster of two processes, which are the same in the end."""
    for client in made(threads_per_worker=2):
        pids = client.run(os.getpid)
        with client.as_current():
            yield client
        assert client.run(os.getpid) == pids


def eventually(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONG
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def threads_of_ours() -> int:
    return sum("pubsub" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("first", ["sub", "pub", "both at once"])
def test_2723_neither_order_hangs_at_start_up(workers: Any, first: str) -> None:
    for n in range(10):
        name, ready = f"2723 {first} {n}", Sub(f"ready {first} {n}")
        if first == "pub":
            pub = Pub(name)
            found = workers.submit(tasks.collect, name, 1, ready.name, pure=False)
            ready.get(timeout=LONG)
            pub.put(n)
        else:
            found = workers.submit(tasks.collect, name, 1, ready.name, pure=False)
            if first == "sub":
                ready.get(timeout=LONG)
            else:
                ready.get(timeout=LONG)
            workers.submit(tasks.put, name, n, pure=False)
        assert found.result(timeout=LONG) == [n]


def subscribe_and_leave(name: str, times: int) -> int:
    got = 0
    for n in range(times):
        sub = Sub(name)
        if n % 3 == 0:
            got += sub.get(timeout=LONG) is not None
        if n % 3 == 1:
            len(sub.buffer)
        del sub
        if n % 10 == 0:
            gc.collect()
    return got


def test_3276_8334_8685_leaving_late_or_often_harms_nobody(workers: Any) -> None:
    stop = threading.Event()
    pub, steady = Pub("leaving"), Sub("leaving")

    def publish() -> None:
        n = 0
        while not stop.is_set():
            pub.put(n)
            n += 1
            time.sleep(0.001)
        pub.put(None)

    publisher = threading.Thread(target=publish)
    publisher.start()
    found = [workers.submit(subscribe_and_leave, "leaving", 60, pure=False) for _ in range(4)]
    assert workers.gather(found) == [20] * 4
    stop.set()
    publisher.join()
    got = list(iter(lambda: steady.get(timeout=LONG), None))
    assert got == list(range(len(got)))
    assert steady.lost == 0
    eventually(lambda: workers.run_on_scheduler(info)["topics"]["leaving"]["subscribers"] == 1)


def test_4120_a_value_that_is_changed_after_put_arrives_as_it_was(workers: Any) -> None:
    sub, pub = Sub("4120"), Pub("4120")
    small, large, listed = np.zeros(3), np.zeros(1_000_000), [1, [2]]
    for value in (small, large, listed):
        pub.put(value)
    small[:] = large[:] = 7
    listed.append(3)
    listed[1].append(4)  # type: ignore[attr-defined]
    assert not sub.get(timeout=LONG).any()
    assert not sub.get(timeout=LONG).any()
    assert sub.get(timeout=LONG) == [1, [2]]


def test_4242_a_second_run_of_the_same_script_gets_nothing_twice(workers: Any) -> None:
    script = f"""
        from distributed import Client
        from pubsub.dask import PubSubPlugin, Sub
        from tests.dask.tasks import LONG, put
        if __name__ == "__main__":
            with Client({workers.scheduler.address!r}) as client:
                client.register_plugin(PubSubPlugin())
                sub = Sub("4242")
                client.gather(client.map(put, ["4242"] * 20, range(20), pure=False))
                found = sorted(sub.get(timeout=LONG) for _ in range(20))
                try:
                    found.append(sub.get(timeout=0.5))
                except TimeoutError:
                    pass
                print(found == list(range(20)), found)
    """
    for _ in range(2):
        assert run_python(script).startswith("True")


def die_holding_a_sub(name: str, ready: str) -> None:
    sub = Sub(name)
    Pub(ready).put("ready")
    sub.get(timeout=LONG)
    os._exit(1)


def test_a_dead_subscriber_starves_nobody_behind_it() -> None:
    for client in made(n_workers=3, threads_per_worker=1):
        ready, pub = Sub("ready"), Pub("starving")
        dying = client.submit(die_holding_a_sub, "starving", "ready", pure=False, retries=0)
        others = [
            client.submit(tasks.collect, "starving", 200, "ready", pure=False) for _ in range(2)
        ]
        for _ in range(3):
            ready.get(timeout=LONG)
        for n in range(200):
            pub.put(n)
            time.sleep(0.001)
        assert client.gather(others) == [list(range(200))] * 2
        dying.cancel(force=True)


class Explodes:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_value_that_fails_at_the_receiver_costs_itself_alone(
    workers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sub, pub = Sub("fails"), Pub("fails")
    for value in (1, Explodes(), 2, [Explodes()], 3):
        pub.put(value)
    assert [sub.get(timeout=LONG) for _ in range(2)] == [1, 2]
    assert len(sub.buffer) <= 1  # from here on through the thread
    assert sub.get(timeout=LONG) == 3
    assert sub.lost == 2
    eventually(lambda: "a Sub of 'fails' has lost" in caplog.text)  # for who looks at nothing else
    pub.put(4)
    assert sub.get(timeout=LONG) == 4


def test_collection_races_with_registration_and_nothing_is_left(workers: Any) -> None:
    def make_and_drop(n: int) -> None:
        for turn in range(50):
            face: Any = (Pub, Sub)[(n + turn) % 2](f"race {turn % 5}")
            if isinstance(face, Pub):
                face.put(turn)
            cycle = [face]
            cycle.append(cycle)
            del face, cycle
            if turn % 7 == n % 7:
                gc.collect()

    made_here = [threading.Thread(target=make_and_drop, args=[n]) for n in range(6)]
    for thread in made_here:
        thread.start()
    for thread in made_here:
        thread.join()
    gc.collect()
    eventually(lambda: not any(_held(home, "race") for home in homes.homes()))


def _held(home: Any, name: str) -> list[Any]:
    """What is held of these names, and not only kept for a while."""
    return [
        row
        for topic, row in home.topics().items()
        if name in topic and (row["subscribers"] or topic not in home._idle)
    ]


def count_of_ours() -> tuple[int, int, int]:
    gc.collect()
    (home,) = homes.homes()
    return threads_of_ours(), len(home._pubs), len(home._sources)


def hasten() -> None:
    homes.IDLE = 0.1


@pytest.mark.slow
def test_ten_thousand_tasks_that_put_once_leave_nothing_behind(workers: Any) -> None:
    sub = Sub("10,000")
    workers.run(hasten)
    workers.submit(tasks.put, "other", 0, pure=False).result()
    workers.gather(workers.map(tasks.put, ["10,000"] * 100, [-1] * 100, pure=False))
    before = workers.run(threads_of_ours)
    for start in range(0, 10_000, 2_000):
        names = ["10,000"] * 2_000
        workers.gather(workers.map(tasks.put, names, range(start, start + 2_000), pure=False))
    found = Counter(sub.get(timeout=LONG) for _ in range(10_100))
    assert found.pop(-1) == 100
    assert found == Counter(range(10_000))
    assert sub.lost == 0
    nothing = {worker: (threads, 0, 0) for worker, threads in before.items()}
    eventually(lambda: workers.run(count_of_ours) == nothing)
    eventually(lambda: workers.run_on_scheduler(info)["topics"]["10,000"]["publishers"] == 0)


def test_the_puts_of_one_thread_arrive_in_order_though_each_task_has_its_pub(workers: Any) -> None:
    (worker, _) = workers.scheduler_info()["workers"]
    sub = Sub("order")

    def in_turn(name: str, count: int) -> None:
        for n in range(count):
            tasks.put(name, n)

    workers.submit(in_turn, "order", 200, workers=[worker], pure=False).result()
    assert [sub.get(timeout=LONG) for _ in range(200)] == list(range(200))


def test_registering_anew_after_all_that_changes_nothing(workers: Any) -> None:
    before = workers.run_on_scheduler(info)["coordinator"]
    workers.register_plugin(PubSubPlugin())
    assert workers.run_on_scheduler(info)["coordinator"] == before
