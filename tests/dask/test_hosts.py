"""A cluster on three machines, with Dask's own commands and the preload; some cannot be dialled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")
pytest.importorskip("cryptography", reason="TLS needs the extra pubsubd[tls]")

from tests.dask.commands import Running
from tests.dask.tasks import LONG
from tests.faults.hosts import HOSTS, Hosts, hosts

__all__ = ["hosts"]  # the fixture

pytestmark = pytest.mark.slow

SCHEDULER = "tcp://10.77.1.1:8786"

CLIENT = """
import sys
import numpy as np
from distributed import Client
from pubsub.dask import Pub, Sub, info
from tests.dask.tasks import LONG, collect, put
if __name__ == "__main__":
    with Client(sys.argv[1]) as client:
        client.wait_for_workers(2, timeout=LONG)
        by_host = {worker.split("/")[2].split(":")[0]: worker
                   for worker in client.scheduler_info()["workers"]}
        one, two = [by_host[host] for host in sys.argv[2:4]]
        sub, ready = Sub("x"), Sub("ready")
        client.submit(put, "x", np.arange(1e6), "done", workers=[one], pure=False).result()
        print(sub.get(timeout=LONG).sum(), sub.get(timeout=LONG), sub.lost)
        print("way", *{row["way"] for row in sub.publishers.values()})
        found = client.submit(collect, "y", 2, "ready", workers=[two], pure=False)
        ready.get(timeout=LONG)
        client.submit(put, "y", "from a worker", workers=[one], pure=False).result()
        Pub("y").put("from the client")
        print(sorted(found.result()))
        for row in client.run_on_scheduler(info)["peers"]:
            print("peer", row["address"].rpartition(":")[0], row["name"].partition(" at ")[0])
"""


@contextmanager
def cluster(hosts: Hosts, *workers: str, **env: str) -> Iterator[Running]:
    """`dask scheduler` on the head node, and `dask worker` on these; yields the former."""
    preload = ("--no-dashboard", "--preload", "pubsub.dask")
    running = [Running("dask_scheduler", *preload, prefix=hosts.on("head"), **env)]
    try:
        running[0].said("Scheduler at")
        for host in workers:
            args = (SCHEDULER, "--nthreads", "2", *preload)
            running.append(Running("dask_worker", *args, prefix=hosts.on(host), **env))
        yield running[0]
    finally:
        for each in reversed(running):
            each.end()


def client(hosts: Hosts, host: str, one: str, two: str) -> list[str]:
    addresses = [f"10.77.1.{HOSTS[each]}" for each in (one, two)]
    run = subprocess.run(
        [*hosts.on(host), sys.executable, "-c", CLIENT, SCHEDULER, *addresses],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_on_three_hosts_each_reaches_each(hosts: Hosts) -> None:
    with cluster(hosts, "w1", "w2") as scheduler:
        lines = client(hosts, "head", "w1", "w2")
        assert lines[0] == f"{sum(range(1_000_000)):.1f} done 0"
        assert lines[1] == "way direct"
        assert lines[2] == "['from a worker', 'from the client']"
        assert {line.split()[1] for line in lines[3:]} == {"10.77.1.1", "10.77.1.11", "10.77.1.12"}
        scheduler.said("not encrypted")


def test_who_can_reach_the_schedulers_machine_alone_goes_over_its_relay(hosts: Hosts) -> None:
    hosts.cut("w2", "10.77.1.11")
    hosts.cut("w1", "10.77.1.12")
    with cluster(hosts, "w1", "head") as scheduler:
        scheduler.said("relay on")
        lines = client(hosts, "w2", "w1", "head")
        assert lines[0] == f"{sum(range(1_000_000)):.1f} done 0"
        assert lines[1] == "way relay"
        assert lines[2] == "['from a worker', 'from the client']"


def test_with_a_key_file_no_key_travels(hosts: Hosts, tmp_path: str) -> None:
    key = os.path.join(tmp_path, "key")
    subprocess.run([sys.executable, "-m", "pubsub.cli.pubsubd", "key", "new", key], check=True)
    env = {"DASK_PUBSUB__KEY_FILE": key, "DASK_PUBSUB__PORT": "7800"}
    with cluster(hosts, "w1", "w2", **env) as scheduler:
        lines = client(hosts, "head", "w1", "w2")
        assert lines[0].endswith("done 0")
        assert "on 0.0.0.0:7801" in scheduler.said("relay on")
        assert not [line for line in scheduler.lines if "not encrypted" in line]
