"""Pub and Sub as Dask had them: wherever code runs in a cluster, of processes and of threads."""

from __future__ import annotations

import asyncio
import builtins
import doctest
import gc
import pickle
import threading
import time
from datetime import timedelta
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

import distributed
from distributed import Client, LocalCluster

from pubsub import Closed, Codec, WrongContext
from pubsub.dask import Pub, PubSubPlugin, Sub, homes, info, names, peer, places, topic_of
from pubsub.dask.names import name_of
from tests.dask import tasks
from tests.dask.tasks import LONG
from tests.integration.support import run_python


def test_from_worker_to_client(client: Any, name: str) -> None:
    sub = Sub(name)
    client.submit(tasks.put, name, 1, {"a": [2]}, "three", pure=False).result()
    assert [sub.get(timeout=LONG) for _ in range(3)] == [1, {"a": [2]}, "three"]


@pytest.mark.parametrize("collect", [tasks.collect, tasks.collect_async])
def test_from_client_to_worker(client: Any, name: str, collect: Any) -> None:
    ready = Sub("ready")
    found = client.submit(collect, name, 3, "ready", pure=False)
    ready.get(timeout=LONG)
    pub = Pub(name)
    for n in range(3):
        pub.put(n)
    assert found.result(timeout=LONG) == [0, 1, 2]


def test_from_worker_to_worker_and_to_itself(client: Any, name: str) -> None:
    one, two = client.scheduler_info()["workers"]
    ready = Sub(("ready", name))
    found = [
        client.submit(tasks.collect, name, 2, ("ready", name), workers=[each], pure=False)
        for each in (one, two)
    ]
    for _ in found:
        ready.get(timeout=LONG)
    client.submit(tasks.put, name, "x", "y", workers=[one], pure=False).result()
    assert client.gather(found) == [["x", "y"], ["x", "y"]]


def test_there_and_back(client: Any, name: str) -> None:
    back = Sub([name])
    echo = client.submit(tasks.echo, name, [name], pure=False)
    assert back.get(timeout=LONG) == "ready"
    pub = Pub(name)
    for n in range(50):
        pub.put(n)
        assert back.get(timeout=LONG) == n
    pub.put(None)
    echo.result(timeout=LONG)


def test_from_a_thread_that_a_task_has_started(processes: Any, name: str) -> None:
    sub = Sub(name, client=processes)
    processes.submit(tasks.put_from_timer, name, 1, pure=False).result()
    assert sub.get(timeout=LONG) == 1


@pytest.mark.parametrize("processes", [True, False])
def test_in_an_actor(processes: bool) -> None:
    # In a process of its own: Dask's actors go by the process's last client, and here are several.
    said = run_python(f"""
        from distributed import Client, LocalCluster
        from pubsub.dask import Pub, PubSubPlugin, Sub
        from tests.dask.tasks import LONG, Counter

        if __name__ == "__main__":
            with (
                LocalCluster(n_workers=2, processes={processes}, dashboard_address=":0") as made,
                Client(made) as client,
            ):
                client.register_plugin(PubSubPlugin())
                results, pub = Sub(["x"]), Pub("x")
                actor = client.submit(Counter, "x", actor=True).result()
                actor.ready().result()
                for n in (1, 2, 3):
                    pub.put(n)
                print(actor.add(3).result(), results.get(timeout=LONG))
                pub.put(10)
                while (total := actor.patient().result()) < 16:
                    pass
                print(total)
    """)
    assert "6 6\n16\n" in said


@pytest.mark.parametrize("timeout", [0.05, "50ms", timedelta(milliseconds=50)])
@pytest.mark.parametrize(
    "kind", [builtins.TimeoutError, asyncio.TimeoutError, distributed.TimeoutError]
)
def test_a_timeout_is_of_all_three_kinds(client: Any, name: str, timeout: Any, kind: Any) -> None:
    sub = Sub(name)
    before = time.monotonic()
    with pytest.raises(kind):
        sub.get(timeout=timeout)
    with pytest.raises(kind):
        sub.next(timeout)
    assert time.monotonic() - before >= 0.1
    assert len(sub.buffer) == 0  # from here on it is taken by a thread
    with pytest.raises(kind):
        sub.get(timeout)


def test_it_is_iterated_shown_and_has_a_buffer(client: Any, name: str) -> None:
    sub, pub = Sub(name), Pub(name)
    assert (repr(pub), str(sub)) == (f"<Pub: {name}>", f"<Sub: {name}>")
    for n in range(10):
        pub.put(n)
    assert [value for value, _ in zip(sub, range(3), strict=False)] == [0, 1, 2]
    assert next(sub) == 4  # zip had taken one
    deadline = time.monotonic() + LONG
    while len(sub.buffer) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sub.buffer.clear()
    pub.put("after")
    assert sub.get(timeout=LONG) == "after"
    assert len(pub.subscribers) == 1
    assert sub.lost == 0
    (row,) = sub.publishers.values()
    assert row["topic"] == topic_of(name)


NAMES = [
    *("", "a b", "a/b", "/", "*", "**", "a/*/b", "%", "%41", "é∞", "\x00\n", "\ud800", "n" * 5000),
    *(1, 1.5, None, True, b"\xff", ("a", 1), ("a", ("b", 2)), ["list"], {"k": 1}),
]


@pytest.mark.parametrize("given", NAMES, ids=range(len(NAMES)))
def test_a_name_may_be_anything(given: Any, threads: Any) -> None:
    topic = topic_of(given)
    if given != "n" * 5000:
        assert name_of(topic) == given
    with threads.as_current():
        sub = Sub(given)
        Pub(given).put(given if given != "\ud800" else "surrogate")
        assert sub.get(timeout=LONG) == (given if given != "\ud800" else "surrogate")


def test_no_two_names_are_one_topic() -> None:
    names = [*NAMES, "1", "1.5", "None", "n" * 5001, "%:1", "%-", "%#", "a%2Fb"]
    assert len({topic_of(name) for name in names}) == len(names)


def test_the_examples_of_the_names_are_true() -> None:
    assert doctest.testmod(names) == (0, 3)


def test_what_cannot_be_pickled_is_refused_and_the_next_arrives(client: Any, name: str) -> None:
    sub, pub = Sub(name), Pub(name)
    for bad in (threading.Lock(), iter(sub), {"deep": [threading.Lock()]}):
        with pytest.raises(TypeError):
            pub.put(bad)
    pub.put("next")
    assert sub.get(timeout=LONG) == "next"


def test_a_pub_and_a_sub_that_are_dropped_are_gone(client: Any, name: str) -> None:
    sub, pub = Sub(name), Pub(name)
    assert len(sub.buffer) == 0  # with a thread of its own
    assert any(thread.name == "pubsub.dask sub" for thread in threading.enumerate())
    del sub
    gc.collect()
    deadline = time.monotonic() + LONG
    while pub.subscribers or any(t.name == "pubsub.dask sub" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_info_tells_topics_peers_and_loss(client: Any, name: str) -> None:
    sub = Sub(name)
    client.submit(tasks.put, name, 1, pure=False).result()
    assert sub.get(timeout=LONG) == 1
    found = client.run_on_scheduler(info)
    assert found["topics"][name] == {"publishers": 1, "subscribers": 1}
    assert any(row["name"].startswith("dask ") for row in found["peers"])
    here = info()
    assert here["topics"][name]["subscribers"] == 1
    assert here["lost"] == 0
    assert found["coordinator"] in here["coordinator"]
    assert set(client.run(info)) == set(client.scheduler_info()["workers"])


def test_the_peer_serves_plain_pubs_and_subs(client: Any, name: str) -> None:
    sub = peer().sub(topic_of(name), codec=Codec.cloudpickle())
    client.submit(tasks.put, name, 1, pure=False).result()
    assert sub.get(timeout=LONG) == 1
    sub.close()


def test_without_a_client_it_says_so() -> None:
    said = run_python("""
        from pubsub.dask import Pub
        try:
            Pub("x")
        except ValueError as error:
            print(error)
    """)
    assert "make a Client first" in said


async def test_in_an_async_client(name: str) -> None:
    async with (
        LocalCluster(
            n_workers=2, processes=False, asynchronous=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.register_plugin(PubSubPlugin())
        began = time.monotonic()
        sub, pub = Sub(name), Pub(name)
        assert time.monotonic() - began < 2
        await sub.ready()
        with pytest.raises(asyncio.TimeoutError):
            await sub.get(timeout="20ms")
        await client.submit(tasks.put, name, 1, 2, pure=False)
        assert [await sub.get(timeout=LONG), await sub.get()] == [1, 2]
        found = client.submit(tasks.collect_async, name, 3, [name], pure=False)
        ready = Sub([name])
        await ready.get(timeout=LONG)
        for n in range(3):
            pub.put(n)
        assert await found == [0, 1, 2]
        assert [await anext(sub) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Closed, match="has ended"):
        await sub.get(timeout=LONG)
    assert [value async for value in sub] == []


async def test_cancelled_awaits_lose_nothing(name: str) -> None:
    async with (
        LocalCluster(
            n_workers=1, processes=False, asynchronous=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.register_plugin(PubSubPlugin())
        sub, pub = Sub(name), Pub(name)
        await sub.ready()
        found: list[int] = []

        async def take() -> None:
            found.append(await sub.get())

        for n in range(300):
            waiting = [asyncio.ensure_future(take()) for _ in range(3)]
            if n % 3:
                await asyncio.sleep(0)
            pub.put(n)
            if n % 2:
                await asyncio.sleep(0.0005)
            waiting[n % 3].cancel()
            waiting[(n + 1) % 3].cancel()
            await asyncio.sleep(0)
            waiting[(n + 2) % 3].cancel()
            await asyncio.wait(waiting)
        while len(found) < 300:
            found.append(await sub.get(timeout=LONG))
        assert found == list(range(300))


async def test_a_client_that_blocks_does_so_beside_a_loop_as_in_a_notebook(
    processes: Any, name: str
) -> None:
    with processes.as_current():
        sub = Sub(name)
        Pub(name).put(1)
        assert sub.get(timeout=LONG) == 1
        with pytest.raises(TimeoutError):
            sub.get(timeout=0.01)


def test_a_pub_whose_next_home_is_closed_too_drops_nothing_there(client: Any, name: str) -> None:
    """What it drops it must have held: else another one's Pub is given up there."""

    def closed(*_: Any) -> None:
        raise Closed("it is")

    after = SimpleNamespace(pub=closed, dropped=SimpleQueue())
    before = SimpleNamespace(successor=after, dropped=SimpleQueue())
    pub = Pub(name, client=client)
    there, pub._home = pub._home, before  # type: ignore[assignment]
    there.dropped.put(topic_of(name))
    pub._pub = SimpleNamespace(put=closed)  # type: ignore[assignment]
    with pytest.raises(Closed):
        pub.put(1)
    del pub
    gc.collect()
    assert (before.dropped.qsize(), after.dropped.qsize()) == (1, 0)


def test_a_destructor_that_publishes_in_the_middle_of_our_work_is_waited_for_by_nobody(
    threads: Any, name: str
) -> None:
    """Python collects garbage wherever it happens to be: where a lock of ours is held, and in the
    threads that who holds it waits for."""
    sub = Sub(name, client=threads)
    home = homes.home_of(threads)
    found: list[Any] = []

    def make() -> None:
        try:
            Pub([name], client=threads)
        except WrongContext:
            found.append("refused")

    def run() -> None:
        with homes._lock, home._making, home._lock:
            Pub(name, client=threads).put(1)
        with home._making:
            home.peer._call(make)
        with homes._lock:
            home.peer._call(make)
            places.in_thread(make)
        found.append("done")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG / 3)
    assert found == ["refused", "refused", "refused", "done"]
    assert sub.get(timeout=LONG) == 1


async def test_a_for_in_an_event_loop_says_async_for(name: str) -> None:
    async with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=":0", asynchronous=True
        ) as made,
        Client(made, asynchronous=True) as client,
    ):
        await client.register_plugin(PubSubPlugin())
        with pytest.raises(WrongContext, match="async for"):
            iter(Sub(name, client=client))


@pytest.mark.parametrize("kind", [Pub, Sub])
def test_a_face_that_is_handed_to_a_task_says_what_to_do(client: Any, name: str, kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"make a {kind.__name__} in the task: {kind.__name__}\('"):
        pickle.dumps(kind(name))
