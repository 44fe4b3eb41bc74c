"""Metrics for Prometheus: true, complete, bounded, and no count ever goes back."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pubsub import Peer
from pubsub.metrics import METRICS, OTHERS, exposition, register
from pubsub.stats import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PastStats,
    PubStats,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.stats.past import Past
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
    free_port,
    run_python,
)

ROOT = Path(__file__).resolve().parent.parent

FULL = Stats(
    *("abc", "app", 71, "b", "10.0.0.1:7", "0.3", 1000.0, 50.0),
    pubs=(
        PubStats(
            topic="t",
            put=10,
            bytes=100,
            silent=3.0,
            kept=4,
            kept_bytes=40,
            buffer=1000,
            oldest=2.0,
            lost=1,
            waiting=2,
            waited=1.5,
            subscribers=(
                SubscriberStats(state="attached", lag=5, idle=4.0),
                SubscriberStats(state="attached", lag=50, idle=40.0, observer=True),
            ),
        ),
        PubStats(topic="t", put=1, bytes=10, silent=1.0, buffer=1000),
    ),
    subs=(
        SubStats(
            pattern="t/*",
            delivered=7,
            bytes=70,
            silent=2.0,
            lost=9,
            lost_by=(("overflow", 3), ("too large", 1)),
            waiting=2,
            waiting_bytes=20,
            window=500,
            oldest=1.0,
            handling=0.041,
            stuck=5.0,
            streams=(StreamStats(state="attached"), StreamStats(state="vanished")),
        ),
        SubStats(pattern="t/*", delivered=1, lost_by=(("overflow", 30),), observer=True),
    ),
    links=(LinkStats("publisher", "x", True, "unix", round_trip=0.001, paused=2.0),),
    loop=LoopStats(0.1, 0.2, 0.3, 4),
    coordinators=(CoordinatorStats("c:7700", True), CoordinatorStats("d:7700", False, "gone")),
    pool=1,
    pool_size=2,
    past=(PastStats("pub", "t", 100, 1000, 5), PastStats("sub", "old", 6, 60, 2)),
)


def read(text: bytes) -> dict[tuple[str, ...], float]:
    """By the name and the values of the labels, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def own(peer: Peer, limit: int = 1000) -> CollectorRegistry:
    registry = CollectorRegistry()
    register(registry, peer, limit=limit)
    return registry


@contextmanager
def example(port: int, coordinator: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples/metrics.py"), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def counters(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    return {k: v for k, v in read(generate_latest(registry)).items() if k[0].endswith("_total")}


# --- what is told -----------------------------------------------------------------------------


def test_every_metric_is_told_with_its_labels() -> None:
    text = exposition([FULL]).decode()
    found = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == {metric.name: {"program", "host", "pid", *metric.labels} for metric in METRICS}
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.text}" in text


def test_counts_are_summed_and_of_times_and_lags_the_worst_is_told() -> None:
    found = read(exposition([FULL]))
    who = ("b", "71", "app")
    assert found[("pubsub_pubs", *who, "t")] == 2
    assert found[("pubsub_put_messages_total", *who, "t")] == 111
    assert found[("pubsub_put_bytes_total", *who, "t")] == 1110
    assert found[("pubsub_buffer_lost_messages_total", *who, "t")] == 6
    assert found[("pubsub_put_last_timestamp_seconds", *who, "t")] == 999.0
    assert found[("pubsub_put_waiting_seconds", *who, "t")] == 1.5
    assert found[("pubsub_buffer_limit_bytes", *who, "t")] == 2000
    assert found[("pubsub_delivered_messages_total", *who, "t/*")] == 8
    assert found[("pubsub_delivered_messages_total", *who, "old")] == 6
    assert found[("pubsub_received_last_timestamp_seconds", *who, "t/*")] == 998.0
    assert found[("pubsub_handling_seconds", *who, "t/*")] == 0.041
    assert found[("pubsub_publishers", *who, "vanished", "t/*")] == 1
    assert found[("pubsub_publishers", *who, "unreachable", "t/*")] == 0
    assert found[("pubsub_coordinator_up", "c:7700", *who)] == 1
    assert found[("pubsub_coordinator_up", "d:7700", *who)] == 0
    assert found[("pubsub_loop_late_max_seconds", *who)] == 0.3


def test_an_observer_makes_nobody_lag_and_what_it_missed_is_no_loss() -> None:
    found = read(exposition([FULL]))
    who = ("b", "71", "app")
    assert found[("pubsub_subscribers", *who, "attached", "t")] == 1
    assert found[("pubsub_subscriber_lag_messages", *who, "t")] == 5
    assert found[("pubsub_subscriber_idle_seconds", *who, "t")] == 4.0
    # nor is what the Sub gave up itself, by closing: 9 - (3 + 1)
    assert found[("pubsub_lost_messages_total", *who, "t/*")] == 4
    assert found[("pubsub_lost_messages_total", *who, "old")] == 2


def test_what_was_never_so_is_not_told() -> None:
    bare = Stats("x", "app", 1, "h", pubs=(PubStats(topic="t"),), subs=(SubStats(pattern="t"),))
    names = {name for name, *_ in read(exposition([bare]))}
    assert not names & {
        *("pubsub_put_last_timestamp_seconds", "pubsub_received_last_timestamp_seconds"),
        *("pubsub_handling_seconds", "pubsub_loop_late_max_seconds"),
    }


def test_the_peers_of_one_process_are_one_and_those_of_two_are_not() -> None:
    stats = [
        Stats("x", "app", 1, "h", pubs=(PubStats(topic="t", put=1),)),
        Stats("y", "app", 1, "h", pubs=(PubStats(topic="t", put=2),)),
        Stats("z", "app", 2, "h", pubs=(PubStats(topic="t", put=4),)),
    ]
    found = read(exposition(stats))
    assert found["pubsub_put_messages_total", "h", "1", "app", "t"] == 3
    assert found["pubsub_put_messages_total", "h", "2", "app", "t"] == 4
    assert found["pubsub_peers", "h", "1", "app"] == 2


def test_texts_of_others_come_back_as_they_are_and_add_no_line() -> None:
    evil = 'a"} 1\npubsub_evil{x="\\'
    stats = Stats("x", evil, 1, evil, pubs=(PubStats(topic=evil, put=1),))
    found = read(exposition([stats]))
    assert found["pubsub_put_messages_total", evil, "1", evil, evil] == 1
    assert "pubsub_evil" not in {name for name, *_ in found}


def test_a_scraper_that_wants_openmetrics_gets_it_with_units() -> None:
    async def scrape() -> str:
        async with coordinator_in_loop() as address, Peer(address) as peer:
            await peer.pub("t")
            text: bytes = openmetrics.generate_latest(own(peer))  # type: ignore[no-untyped-call]
            return text.decode()

    text = asyncio.run(scrape())
    families = {family.name: family for family in read_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["pubsub_put_bytes"].unit == "bytes"
    assert families["pubsub_put_waiting_seconds"].unit == "seconds"
    assert families["pubsub_put_messages"].type == "counter"


# --- bounded ----------------------------------------------------------------------------------


def test_topics_beyond_the_limit_are_one_and_the_oldest_are_not_among_them() -> None:
    pubs = tuple(PubStats(topic=f"t{i}", put=1, age=100.0 - i) for i in range(10))
    found = read(exposition([Stats(time=1.0, pubs=pubs)], limit=3))
    put = {key[-1]: n for key, n in found.items() if key[0] == "pubsub_put_messages_total"}
    assert put == {"t0": 1, "t1": 1, "t2": 1, OTHERS: 7}
    assert found["pubsub_topics_left_out", "", "0", ""] == 7


def test_a_limit_that_is_no_number_of_topics_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=-1"):
        exposition([], limit=-1)


def test_no_count_goes_back_whatever_opens_and_closes() -> None:
    chance = random.Random(7)
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        registry = own(peer, limit=3)
        open_: list[Any] = []
        before: dict[tuple[str, ...], float] = {}
        put = taken = 0
        for step in range(150):
            what = chance.random()
            topic = f"t/{chance.randrange(6)}"
            if what < 0.4 or not open_:
                open_.append(peer.pub(topic) if chance.random() < 0.7 else peer.sub(topic))
            elif what < 0.7:
                one = open_.pop(chance.randrange(len(open_)))
                one.close()
            else:
                for one in open_:
                    if hasattr(one, "put"):
                        one.put(step)
                        put += 1
                    else:
                        with suppress(TimeoutError):
                            taken += len(one.get_many(5, timeout=0))
            now = counters(registry)
            for key, value in before.items():
                assert now[key] >= value, key
            before = now
        names = {key[1] for key in before}
        assert len(names) == 4
        assert OTHERS in names
        totals = {
            name: sum(value for key, value in before.items() if key[0] == name)
            for name in ("pubsub_put_messages_total", "pubsub_delivered_messages_total")
        }
        assert totals == {
            "pubsub_put_messages_total": put,
            "pubsub_delivered_messages_total": taken,
        }


def test_who_scrapes_while_a_pub_ends_sees_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        coordinator_in_thread() as coordinator,
        Peer(coordinator.address) as peer,
        ThreadPoolExecutor() as scraper,
    ):
        scrapes: list[Future[int]] = []
        add = Past.add

        def scraped_meanwhile(past: Past, row: PastStats, now: float) -> None:
            for before_and_after in (True, False):
                scrapes.append(
                    scraper.submit(lambda: sum(row.messages for row in peer.stats().counted()))
                )
                wait(scrapes, timeout=0.1)  # as long as it would take, if nothing held it up
                if before_and_after:
                    add(past, row, now)

        monkeypatch.setattr(Past, "add", scraped_meanwhile)
        pub, other = peer.pub("t"), peer.pub("t")
        pub.put_many(range(10))
        other.put_many(range(5))
        pub.close()
        assert [each.result(LONG) for each in scrapes] == [15, 15]


def test_who_scrapes_while_a_pub_is_made_is_told_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        old = peer.pub("old")
        old.put(1)
        scrapes: list[list[int]] = []
        add = peer.runtime.readiness.add

        def scraped_meanwhile(*args: Any) -> Any:
            scrapes.append([pub.put for pub in peer.stats().pubs])
            return add(*args)

        monkeypatch.setattr(peer.runtime.readiness, "add", scraped_meanwhile)
        made = peer.pub("new"), peer.sub("new")  # and held, or they are closed
        assert scrapes == [[1, 0], [1, 0]]
        assert made


# --- of a process -----------------------------------------------------------------------------


async def test_a_blocked_event_loop_is_scraped_all_the_same() -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub = await peer.pub("t")
        pub.put(1)
        found: list[dict[tuple[str, ...], float]] = []
        thread = threading.Thread(target=lambda: found.append(counters(own(peer))))
        thread.start()
        thread.join(LONG)  # and nothing runs in this loop meanwhile
        assert found[0]["pubsub_put_messages_total", "t"] == 1


async def test_a_loss_is_a_metric_of_both_ends() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t", buffer=1_000)
        sub = await there.sub("t", window=1_000)
        at_pub, at_sub = own(here), own(there)
        assert counters(at_sub)["pubsub_lost_messages_total", "t"] == 0  # before the first
        for _ in range(100):
            pub.put(bytes(100))
            await asyncio.sleep(0)  # a batch of its own
        pub.put("last")
        taken = 1
        while await sub.get(timeout=LONG) != "last":
            taken += 1
        assert sub.lost
        await eventually(
            lambda: counters(at_pub)["pubsub_buffer_lost_messages_total", "t"] == sub.lost
        )
        found = counters(at_sub)
        assert found["pubsub_lost_messages_total", "t"] == sub.lost
        assert found["pubsub_delivered_messages_total", "t"] == taken == 101 - sub.lost


def test_a_process_has_the_metrics_of_all_its_peers_and_of_those_that_are_over() -> None:
    code = """
import asyncio, gc, os
from prometheus_client import REGISTRY
from pubsub import Peer, Pub
from pubsub.metrics import register

def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)

register()
print(value("pubsub_peers"), value("pubsub_put_messages_total", topic="t"))
pub = Pub("t")
pub.put_many(range(10))
print(value("pubsub_peers"), value("pubsub_put_messages_total", topic="t"))
with Peer() as second:
    second.pub("t").put(1)
    print(value("pubsub_peers"), value("pubsub_put_messages_total", topic="t"))
del second
gc.collect()

async def main():
    async with Pub("t") as pub:
        pub.put(1)
        return value("pubsub_put_messages_total", topic="t")

for _ in range(3):  # a Peer for each loop, which ends with it
    print(asyncio.run(main()), end=" ")
print(value("pubsub_put_messages_total", topic="t"))
if not os.fork():
    print(value("pubsub_put_messages_total", topic="t"), flush=True)  # the child has put nothing
    os._exit(0)
os.wait()
"""
    with coordinator_in_thread() as coordinator:
        said = run_python(code, PUBSUB_COORDINATOR=coordinator.address)
    assert said.splitlines() == [
        "None None",
        "1 10",
        "2 11",
        "12 13 14 14",
        "None",
    ]


def test_to_register_twice_is_refused_and_to_unregister_is_possible() -> None:
    registry = CollectorRegistry()
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        collector = register(registry, peer)
        with pytest.raises(ValueError, match="metrics of pubsub already"):
            register(registry, peer)
        registry.unregister(collector)
        register(registry, peer)


def test_without_prometheus_client_a_line_says_what_to_install() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
try:
    import pubsub.metrics
except ImportError as error:
    print(error)
"""
    assert run_python(code).strip() == (
        "pubsub.metrics needs prometheus_client: python -m pip install 'pubsubd[metrics]'"
    )


def test_the_example_exposes_what_it_does() -> None:
    port = free_port()
    with coordinator_in_thread() as coordinator, example(port, coordinator.address) as process:
        assert process.stdout is not None
        assert "metrics at" in process.stdout.readline()
        where = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(where, timeout=LONG) as answer:
            found = read(answer.read())
        assert found["pubsub_pubs", "sensors/kitchen/temp"] == 1
        assert found["pubsub_subs", "sensors/*/temp"] == 1


ASK = """
import asyncio

async def ask(method, path):
    said = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        said.append(message)

    request = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
        **{"method": method, "path": path, "raw_path": path.encode(), "root_path": ""},
        **{"scheme": "http", "query_string": b"", "headers": [], "server": ("h", 80)},
    }
    await app(request, receive, send)
    return said[0]["status"], b"".join(each.get("body", b"") for each in said).decode()

async def main():
    async with lifespan(app):
        print((await ask("POST", "/orders/7"))[0])
        status, body = await ask("GET", "/metrics/")
        print(status, *(x for x in body.splitlines() if x.startswith("pubsub_put_messages")))

asyncio.run(main())
"""


def test_the_fastapi_program_of_the_page_exposes_what_it_does() -> None:
    pytest.importorskip("fastapi", reason="it is no extra of pubsubd")
    page = (ROOT / "docs/seeing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (source,) = (block for block in blocks if "fastapi" in block)
    with coordinator_in_thread() as coordinator:
        said = run_python(source + ASK, PUBSUB_COORDINATOR=coordinator.address)
    assert said.splitlines() == ["200", '200 pubsub_put_messages_total{topic="orders"} 1.0']
