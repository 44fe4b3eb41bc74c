"""What happens where a worker, or the process of the coordinator, is killed and comes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.programs import ENOUGH, run_program
from tests.integration.support import free_port

pytestmark = pytest.mark.timeout(ENOUGH + 30)

BEGIN = """\
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pubsub import Coordinator, Gap, Message, Pub, Sub, connect, new_key

held = []

def hold(name):
    \"\"\"Put one, and keep the Pub open.\"\"\"
    pub = Pub("topic")
    pub.put(name)
    pub.flush(timeout=30)
    held.append(pub)

def die(name):
    hold(name)
    os.kill(os.getpid(), signal.SIGKILL)

def put(name):
    with Pub("topic") as pub:
        pub.put(name)

def shown(entries):
    entry = next(entries)
    print(entry.value if isinstance(entry, Message) else entry.reason)
"""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_worker_of_a_pool_is_a_gap_and_the_next_one_reaches_the_same_sub(
    method: str, tmp_path: Path
) -> None:
    shown = run_program(
        tmp_path,
        f"""{BEGIN}
if __name__ == "__main__":
    coordinator = Coordinator()
    connect(coordinator.address)
    context = multiprocessing.get_context(sys.argv[1])
    with Sub("topic") as sub, context.Pool(1, connect, (coordinator.address,)) as pool:
        entries = sub.messages()
        pool.apply_async(die, ("first",))
        shown(entries)
        shown(entries)
        pool.apply(put, ("second",))
        shown(entries)
""",
        method,
    )
    assert shown == ["first", "vanished", "second"]


def test_an_executor_whose_worker_was_killed_is_broken_and_a_new_one_reaches_the_same_sub(
    tmp_path: Path,
) -> None:
    shown = run_program(
        tmp_path,
        f"""{BEGIN}
if __name__ == "__main__":
    coordinator = Coordinator()
    connect(coordinator.address)
    def executor():
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, connect, (coordinator.address,))
    with Sub("topic") as sub:
        entries = sub.messages()
        with executor() as pool:
            try:
                pool.submit(die, "first").result()
            except BrokenProcessPool:
                print("broken")
        shown(entries)
        shown(entries)
        with executor() as pool:
            pool.submit(put, "second")
            shown(entries)
""",
    )
    assert shown == ["broken", "first", "vanished", "second"]


def test_joblib_starts_new_workers_for_the_next_call_and_they_reach_the_same_sub(
    tmp_path: Path,
) -> None:
    pytest.importorskip("joblib")
    shown = run_program(
        tmp_path,
        f"""{BEGIN}
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

if __name__ == "__main__":
    coordinator = Coordinator()
    connect(coordinator.address)
    with (
        Sub("topic") as sub,
        parallel_config("loky", initializer=connect, initargs=(coordinator.address,)),
    ):
        entries = sub.messages()
        try:
            Parallel(n_jobs=2)(delayed(die)("first") for _ in range(1))
        except TerminatedWorkerError:
            print("terminated")
        shown(entries)
        shown(entries)
        Parallel(n_jobs=2)(delayed(put)("second") for _ in range(1))
        shown(entries)
""",
    )
    assert shown == ["terminated", "first", "vanished", "second"]


def test_what_a_task_put_is_not_lost_with_its_pool_where_it_closed_its_pub(tmp_path: Path) -> None:
    """The end of a `with Pool()` kills the workers."""
    (shown,) = run_program(
        tmp_path,
        f"""{BEGIN}
def put_many(n):
    with Pub("topic", overflow="block") as pub:
        pub.put_many(range(n))

if __name__ == "__main__":
    coordinator = Coordinator()
    connect(coordinator.address)
    context = multiprocessing.get_context("spawn")
    with Sub("topic", window=1_000_000) as sub:
        with context.Pool(2, connect, (coordinator.address,)) as pool:
            pool.map(put_many, [20_000] * 4)
        print(sum(len(sub.get_many(1_000, timeout=30)) for _ in range(80)), sub.lost)
""",
    )
    assert shown == "80000 0"


def test_the_coordinators_process_comes_again_and_who_was_there_is_found(tmp_path: Path) -> None:
    """With the same port and key: streams go on meanwhile, and an older Sub finds newer Pubs."""
    shown = run_program(
        tmp_path,
        f"""{BEGIN}
def head(port, key, ready):
    coordinator = Coordinator(port=port, key=key)
    ready.set()
    signal.pause()

if __name__ == "__main__":
    port, key = int(sys.argv[1]), new_key()
    context = multiprocessing.get_context("spawn")
    def start():
        ready = context.Event()
        process = context.Process(target=head, args=(port, key, ready), daemon=True)
        process.start()
        assert ready.wait(30)
        return process
    first = start()
    connect(f"127.0.0.1:{{port}}", key, connect_timeout=30)
    with Sub("topic") as sub, context.Pool(1, connect, (f"127.0.0.1:{{port}}", key)) as pool:
        entries = sub.messages()
        pool.apply(hold, ("before",))
        shown(entries)
        first.kill()
        first.join()
        pool.apply(again, ("meanwhile",))
        shown(entries)
        second = start()
        pool.apply(put_to_it, ("after",))
        shown(entries)
        second.kill()
        second.join()
""".replace(
            "def put(name)",
            """def again(name):
    held[0].put(name)

def put_to_it(name):
    with Pub("topic") as pub:
        pub.wait_for_subscribers(1, timeout=30)
        pub.put(name)

def put(name)""",
        ),
        str(free_port()),
    )
    assert shown == ["before", "meanwhile", "after"]


def test_an_actor_of_ray_comes_again_and_who_was_there_is_found(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    shown = run_program(
        tmp_path,
        """
import socket, sys, time
import ray
from ray_progress import Head, work
from pubsub import Pub, Sub, connect, new_key

@ray.remote
def put_to_it(head):
    connect(*ray.get(head.where.remote()))
    with Pub("progress") as progress:
        progress.wait_for_subscribers(1, timeout=30)
        progress.put("after")

def wait_until_gone(address):
    host, port = address.split(":")
    try:
        while True:
            socket.create_connection((host, int(port)), 1).close()
            time.sleep(0.01)
    except OSError:
        pass

if __name__ == "__main__":
    ray.init(num_cpus=2)
    head = Head.remote(new_key(), int(sys.argv[1]))
    address, key = ray.get(head.where.remote())
    connect(address, key)
    with Sub("progress") as progress:
        ray.get(work.remote(1, head))
        print(*(progress.get(timeout=60)["task"] for _ in range(3)))
        ray.kill(head, no_restart=False)
        wait_until_gone(address)
        ray.get(put_to_it.remote(head))
        print(progress.get(timeout=60))
""",
        str(free_port()),
    )
    assert [line for line in shown if line in ("1 1 1", "after")] == ["1 1 1", "after"]


def test_a_task_that_ray_runs_again_puts_again_and_the_first_ones_end_is_a_gap(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    shown = run_program(
        tmp_path,
        """
import os
from pathlib import Path
import ray
from ray_progress import Head
from pubsub import Message, Pub, Sub, connect, new_key

@ray.remote(max_retries=1)
def die_once(mark, head):
    connect(*ray.get(head.where.remote()))
    with Pub("topic") as pub:
        pub.put("put")
        pub.flush(timeout=30)
        if not os.path.exists(mark):
            Path(mark).touch()
            os._exit(1)
    return "returned"

if __name__ == "__main__":
    ray.init(num_cpus=2)
    head = Head.remote(new_key())
    connect(*ray.get(head.where.remote()))
    with Sub("topic") as sub:
        entries = sub.messages()
        print(ray.get(die_once.remote(os.path.abspath(__file__ + ".mark"), head)))
        for _ in range(3):
            entry = next(entries)
            print(entry.value if isinstance(entry, Message) else entry.reason)
""",
    )
    found = [line for line in shown if line in ("returned", "put", "vanished")]
    assert found[0] == "returned"
    assert sorted(found[1:]) == ["put", "put", "vanished"]
    assert found[1] == "put"
