"""What begins and ends with a cluster: registering, workers that come and go, restarts, the end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

import dask
from distributed import Client, LocalCluster, wait
from distributed.protocol.pickle import dumps, loads

from pubsub import Closed, CoordinatorUnavailable
from pubsub.dask import Pub, PubSubPlugin, Sub, homes, info, places, plugin
from tests.dask import tasks
from tests.dask.commands import Running
from tests.dask.tasks import LONG
from tests.integration.support import free_port


def eventually(true: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + LONG
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


@contextmanager
def cluster(**options: Any) -> Iterator[tuple[Any, Any]]:
    """A cluster without the plugin, and its client."""
    given = {"n_workers": 1, "processes": False, "dashboard_address": ":0", **options}
    with LocalCluster(**given) as made, Client(made) as client:
        yield made, client


def works(client: Any, name: str) -> None:
    sub = Sub(name, client=client)
    client.submit(tasks.put, name, 1, pure=False).result()
    assert sub.get(timeout=LONG) == 1


def coordinators(client: Any) -> str:
    return str(client.run_on_scheduler(info)["coordinator"])


def topics(client: Any) -> dict[Any, dict[str, int]]:
    found: dict[Any, dict[str, int]] = client.run_on_scheduler(info)["topics"]
    return found


def test_without_the_plugin_it_says_what_to_write_at_once() -> None:
    for processes in (False, True):
        with cluster(processes=processes) as (_, client):
            before = time.monotonic()
            with pytest.raises(CoordinatorUnavailable, match="register_plugin"):
                Sub("x", client=client)
            with pytest.raises(CoordinatorUnavailable, match="register_plugin"):
                client.submit(tasks.put, "x", 1).result()
            assert time.monotonic() - before < 5


def test_registered_twice_or_by_two_clients_or_by_another_version_it_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cluster(processes=True) as (made, client), Client(made) as other:
        both = [
            threading.Thread(target=each.register_plugin, args=[PubSubPlugin()])
            for each in (client, other)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        first = coordinators(client)
        works(client, "x")
        newer = PubSubPlugin()
        newer.options["of a later version"] = True
        client.register_plugin(newer)
        client.unregister_scheduler_plugin("pubsub")
        client.register_plugin(PubSubPlugin(port=0))
        assert coordinators(client) == first
        works(other, "y")


@pytest.mark.parametrize("option", ["port", "relay"])
def test_what_is_no_port_is_said_with_its_option(option: str) -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        plugin = PubSubPlugin(**{option: "seven"})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^{option} 'seven' of PubSubPlugin"):
            client.register_plugin(plugin)


def test_a_worker_without_pubsub_is_said_and_the_plugin_can_be_registered_later(
    monkeypatch: Any,
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise Exception("ModuleNotFoundError(\"No module named 'pubsub'\")")  # as Dask does

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(made.scheduler, "register_worker_plugin", fails)
            with pytest.raises(RuntimeError, match="on all workers"):
                client.register_plugin(PubSubPlugin())
        with pytest.raises(CoordinatorUnavailable, match="has no PubSubPlugin"):
            Pub("x", client=client)
        client.register_plugin(PubSubPlugin())
        Pub("x", client=client)


def test_a_pickled_plugin_has_no_key_and_a_place_shows_none() -> None:
    key = "secret-key"
    assert key not in repr(places.Place("id", "host", 1, key, None))
    again = loads(dumps(PubSubPlugin(port=1, relay=False)))
    assert again.options == {"port": 1, "relay": False}


def test_the_end_of_a_cluster_is_the_end_of_all_of_it() -> None:
    gc.collect()
    before = {thread.name for thread in threading.enumerate() if "pubsub" in thread.name}
    homes_before = len(homes.homes())
    for processes in (False, True):
        with cluster(processes=processes) as (_, client):
            client.register_plugin(PubSubPlugin())
            sub, pub = Sub("x", client=client), Pub("x", client=client)
            assert len(sub.buffer) == 0
            works(client, "y")
        with pytest.raises(Closed, match="has ended"):
            sub.get(timeout=LONG)
        with pytest.raises(Closed, match="has ended"):
            pub.put(1)
        assert list(sub) == []
    assert len(homes.homes()) <= homes_before
    eventually(
        lambda: (
            {thread.name for thread in threading.enumerate() if "pubsub" in thread.name} <= before
        )
    )


def test_a_cluster_that_is_closed_under_its_client_ends_what_waits() -> None:
    with cluster() as (made, client):
        client.register_plugin(PubSubPlugin())
        sub = Sub("x", client=client)
        (home,) = [home for home in homes.homes() if home.place == places.where(client)]
        made.close()
        assert home.closed
        with pytest.raises(Closed, match="has ended"):
            sub.get(timeout=LONG)


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2), reason="starts no thread in an exit function"
)
def test_a_cluster_that_python_closes_at_its_end_ends_without_an_error() -> None:
    code = """
import threading
from distributed import Client, LocalCluster
from pubsub.dask import PubSubPlugin, Sub
if __name__ == "__main__":
    client = Client(LocalCluster(n_workers=1, processes=False, dashboard_address=":0"))
    client.register_plugin(PubSubPlugin())
    threading.Thread(target=Sub("x").get, daemon=True).start()
    client.submit(lambda: Sub("y").name).result()
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.returncode == 0
    assert "Traceback" not in run.stderr, run.stderr


def test_a_client_that_is_closed_leaves_nothing_though_the_cluster_goes_on() -> None:
    with cluster(processes=True) as (made, client):
        client.register_plugin(PubSubPlugin())
        port = int(coordinators(client).rpartition(":")[2])
        code = f"""
import threading, time
from distributed import Client
from pubsub.dask import Sub, homes
if __name__ == "__main__":
    with Client({made.scheduler_address!r}) as client:
        sub = Sub("x")
        assert homes.homes()[0].place.port == {port}
    end = time.monotonic() + 20
    while homes.homes() or any("pubsub" in t.name for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)
    print("nothing")
"""
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
        )
        assert run.stdout.strip() == "nothing", run.stderr


@pytest.mark.parametrize("restart", ["client.restart()", "nanny", "retire_workers"])
def test_workers_that_are_restarted_or_retired_publish_and_subscribe_again(restart: str) -> None:
    with cluster(n_workers=2, processes=True) as (_, client):
        client.register_plugin(PubSubPlugin())
        sub, pub = Sub("x", client=client), Pub("y", client=client)
        works(client, "z")
        client.submit(tasks.put, "x", "before", pure=False).result()
        assert sub.get(timeout=LONG) == "before"
        workers = set(client.scheduler_info()["workers"])
        if restart == "client.restart()":
            client.restart()
        elif restart == "nanny":
            client.restart_workers([min(workers)])
        else:
            client.retire_workers([min(workers)])
        client.submit(tasks.put, "x", "after", pure=False).result(timeout=LONG)
        assert sub.get(timeout=LONG) == "after"
        ready = Sub("ready", client=client)
        found = client.submit(tasks.collect, "y", 1, "ready", pure=False)
        ready.get(timeout=LONG)
        pub.put(1)
        assert found.result(timeout=LONG) == [1]
        assert sub.lost == 0
        eventually(lambda: len(client.run_on_scheduler(info)["peers"]) <= 3)


def test_a_worker_that_comes_later_takes_part() -> None:
    with cluster(n_workers=1, processes=True) as (made, client):
        client.register_plugin(PubSubPlugin())
        works(client, "x")
        made.scale(2)
        client.wait_for_workers(2, timeout=LONG)
        sub = Sub("y", client=client)
        for worker in client.scheduler_info()["workers"]:
            client.submit(tasks.put, "y", worker, workers=[worker], pure=False).result()
            assert sub.get(timeout=LONG) == worker


def test_workers_that_come_and_go_under_flow_lose_nothing() -> None:
    with cluster(n_workers=1, processes=True, threads_per_worker=1) as (made, client):
        client.register_plugin(PubSubPlugin())
        sub = Sub("flow", client=client)
        sent = 0
        for workers in (3, 1, 3, 1):
            made.scale(workers)
            if workers > 1:
                client.wait_for_workers(workers, timeout=LONG)
            futures = client.map(tasks.put, ["flow"] * 30, range(sent, sent + 30), pure=False)
            sent += 30
            wait(futures, timeout=LONG)
            client.gather(futures)  # those of a worker that went are run again
        found: set[Any] = set()
        while len(found) < sent:
            found.add(sub.get(timeout=LONG))
        assert found == set(range(sent))
        assert sub.lost == 0


def test_adaptive_scaling_up_and_down_under_flow_loses_nothing() -> None:
    with cluster(n_workers=1, processes=True, threads_per_worker=1) as (made, client):
        client.register_plugin(PubSubPlugin())
        sub = Sub("flow", client=client)
        made.adapt(minimum=1, maximum=3, interval="100ms", wait_count=2, target_duration="200ms")
        sent, most = 0, 1
        for _ in range(2):
            futures = client.map(
                tasks.put_after, [None] * 60, ["flow"] * 60, range(sent, sent + 60), pure=False
            )
            sent += 60
            while not all(future.done() for future in futures):
                most = max(most, len(made.workers))
                time.sleep(0.02)
            client.gather(futures)
            del futures
            eventually(lambda: len(client.scheduler_info()["workers"]) == 1)
        assert most > 1
        found: set[Any] = set()
        while len(found) < sent:
            found.add(sub.get(timeout=LONG))
        assert found == set(range(sent))
        assert sub.lost == 0


def test_work_is_stolen_while_a_sub_is_held() -> None:
    with cluster(n_workers=2, processes=True, threads_per_worker=1) as (_, client):
        client.register_plugin(PubSubPlugin())
        ready, sub = Sub("ready", client=client), Sub("out", client=client)
        held = client.submit(tasks.collect, "in", 1, "ready", pure=False)
        ready.get(timeout=LONG)
        first = client.submit(tasks.put, "out", -1, pure=False)
        tasks_after = [
            client.submit(tasks.put_after, first, "out", n, pure=False) for n in range(20)
        ]
        found = {sub.get(timeout=LONG) for _ in range(21)}
        assert found == set(range(-1, 20))
        Pub("in", client=client).put("done")
        assert held.result(timeout=LONG) == ["done"]
        client.gather(tasks_after)


@contextmanager
def preloaded(port: int) -> Iterator[list[Running]]:
    """A scheduler with the preload, and a worker that is started again when its scheduler is."""
    running = []
    try:
        running += [
            Running(
                *("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
                *("--preload", "pubsub.dask"),
            ),
            Running(
                *("dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "2", "--no-dashboard"),
                *("--preload", "pubsub.dask", "--no-nanny", "--death-timeout", "20"),
            ),
        ]
        yield running
    finally:
        for each in running:
            each.end(kill=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_preloaded_it_survives_a_restarted_scheduler_with_the_subs_that_are_held(
    kill: bool,
) -> None:
    port = free_port()
    with preloaded(port) as before, Client(f"tcp://127.0.0.1:{port}") as client:
        client.wait_for_workers(1, timeout=LONG)
        sub, pub, idle = Sub("x"), Pub("y"), Sub("idle")
        works(client, "before")
        first = coordinators(client)
        taken: list[Any] = []
        thread = threading.Thread(target=lambda: taken.append(idle.get(timeout=LONG)))
        thread.start()  # it waits through all of it
        for each in before:
            each.end(kill)
        with preloaded(port):
            eventually(lambda: client.status == "running" and client.scheduler_info()["workers"])
            assert coordinators(client) != first
            client.submit(tasks.put, "x", "after", pure=False).result(timeout=LONG)
            client.submit(tasks.put, "idle", "after", pure=False).result(timeout=LONG)
            # What was held moves within some seconds, and hears all that is put from then on.
            eventually(lambda: topics(client).get("x", {}).get("subscribers"))
            client.submit(tasks.put, "x", "later", pure=False).result(timeout=LONG)
            assert sub.get(timeout=LONG) in ("after", "later")
            client.submit(tasks.put, "idle", "later", pure=False).result(timeout=LONG)
            thread.join(LONG)
            assert taken
            ready = Sub("ready")
            found = client.submit(tasks.collect, "y", 1, "ready", pure=False)
            ready.get(timeout=LONG)
            pub.put(1)
            assert found.result(timeout=LONG) == [1]


def test_where_nothing_but_dasks_connection_passes_it_says_which_port_to_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cluster(processes=True) as (_, client):
        client.register_plugin(PubSubPlugin())
        port = int(coordinators(client).rpartition(":")[2])
        place = places.where(client)
        monkeypatch.setattr(homes, "where", lambda member: place._replace(host="10.255.255.1"))
        monkeypatch.setattr(homes, "host_of", lambda address: "10.255.255.2")
        before = time.monotonic()
        with pytest.raises(CoordinatorUnavailable, match=f"10.255.255.1 the port {port}"):
            Sub("x", client=client)
        assert time.monotonic() - before < 6


def test_the_key_in_the_clear_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with cluster(host="0.0.0.0", processes=True) as (_, client):
        client.register_plugin(PubSubPlugin())
        client.register_plugin(PubSubPlugin())
        works(client, "x")
        warnings = [r for r in caplog.records if "not encrypted" in r.getMessage()]
        assert len(warnings) == 1


def test_the_key_is_in_no_dump_of_the_cluster_and_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster(host="0.0.0.0", processes=True) as (_, client):
        client.register_plugin(PubSubPlugin())
        works(client, "x")
        key = places.where(client).key
        assert key is not None
        client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
        (dump,) = tmp_path.glob("dump*")
        assert "pubsub" in dump.read_text()
        for text in (dump.read_text(), caplog.text, str(client.run_on_scheduler(info))):
            assert key not in text


def test_over_tls_there_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    from distributed.security import Security

    security = Security.temporary()
    with (
        LocalCluster(
            n_workers=1, host="tls://0.0.0.0", security=security, dashboard_address=":0"
        ) as made,
        Client(made, security=security) as client,
    ):
        client.register_plugin(PubSubPlugin())
        works(client, "x")
        assert not [r for r in caplog.records if "not encrypted" in r.getMessage()]


def test_options_come_from_dasks_configuration_for_a_preload() -> None:
    port = free_port()
    with dask.config.set({"pubsub.port": port}), cluster() as (_, client):
        client.register_plugin(PubSubPlugin())
        assert coordinators(client) == f"127.0.0.1:{port}"


def test_a_port_that_is_in_use_is_told_to_who_registers_and_harms_nobody() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, cluster() as (_, client):
        with pytest.raises(OSError, match="in use"):
            client.register_plugin(PubSubPlugin(port=taken.getsockname()[1]))
        assert client.submit(sum, [1, 2]).result() == 3
        client.register_plugin(PubSubPlugin())
        works(client, "x")


@pytest.mark.parametrize("callback", ["setup", "teardown"])
async def test_a_callback_of_ours_that_fails_closes_no_worker(
    callback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        failed.append(1)
        raise RuntimeError("of ours")

    failed: list[int] = []
    monkeypatch.setattr(plugin.Introduction, callback, fail)
    async with (
        LocalCluster(
            n_workers=1, processes=False, asynchronous=True, dashboard_address=":0"
        ) as made,
        Client(made, asynchronous=True) as client,
    ):
        await client.register_plugin(PubSubPlugin())
        made.scale(2)
        await client.wait_for_workers(2, timeout=LONG)
        assert await client.submit(sum, [1, 2]) == 3
        await asyncio.wait_for(client.retire_workers([min(made.scheduler.workers)]), LONG)
        assert await client.submit(sum, [1, 2, 3]) == 6
    assert failed
