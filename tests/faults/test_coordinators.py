"""Coordinators that are killed and come back empty, in the middle of what goes on."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from pubsub import Peer
from pubsub.config import Settings, parse_address
from pubsub.coordinator.server import Coordinator
from pubsub.links import resolving
from tests.cli.processes import Start, daemon
from tests.faults.flow import flow
from tests.faults.proxy import proxy
from tests.faults.worker import Worker, start_worker, until
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    default_guard,
    eventually,
    free_port,
)

HEARTBEAT = 5.0
"""Seconds of the default `ping_interval`, within which new matches work again."""
RATE = 50
ALLOWED = 0.9
"""Seconds for which a busy machine may hold up a process; a stall of a second is none of that."""


@pytest.mark.slow
@pytest.mark.timeout(240)  # it takes 12 s of processor, which it shares with three other tests
def test_g7_a_coordinator_killed_under_50_peers_comes_back_empty(start: Start) -> None:
    """25 publishers and 25 subscribers in 5 processes; each Sub gets 5 of the Pubs."""
    port = free_port()
    coordinator, address = daemon(start, port)
    workers = [start_worker(start, address) for _ in range(5)]
    for worker in workers:
        for n in range(5):
            worker.peer(name=f"sub{n}")
            worker.sub(name=f"sub{n}", topic=f"group{n}/*")
    streams: dict[int, dict[str, tuple[Worker, str]]] = {n: {} for n in range(5)}
    for group, worker in enumerate(workers):
        for n in range(5):
            worker.peer(name=f"pub{n}")
            stream = worker.pub(name=f"pub{n}", topic=f"group{n}/{group}", rate=RATE)
            streams[n][stream] = worker, f"pub{n}"

    def pass_on(messages: int) -> None:
        """Until so many messages that are put from now on have come everywhere."""
        puts = {worker: worker.counts() for worker in workers}
        for n in range(5):
            due = {
                stream: puts[worker][name] + messages
                for stream, (worker, name) in streams[n].items()
            }
            for worker in workers:
                worker.reach(name=f"sub{n}", due=due)

    def flow(event: Callable[[], object] = lambda: None) -> tuple[int, float]:
        """What is put in some time, with an event at its beginning. All of that has come but what
        was put of late. And the longest time for which a Sub took nothing."""
        before = {worker: dict(worker.counts()) for worker in workers}
        for worker in workers:
            worker.silences()
        event()
        time.sleep(1.5)
        after = {worker: worker.counts() for worker in workers}
        silence = max(max(worker.silences().values()) for worker in workers)
        for n in range(5):
            for worker in workers:
                got = worker.report(name=f"sub{n}")["due"]
                for stream, (publisher, name) in streams[n].items():
                    assert got[stream] > after[publisher][name] - RATE * ALLOWED
        puts = [after[w][f"pub{n}"] - before[w][f"pub{n}"] for w in workers for n in range(5)]
        return min(puts), silence

    pass_on(10)
    links = [worker.connections() for worker in workers]
    assert sum(map(len, links)) == 2 * 5 * 5 * 5
    usual, usual_silence = flow()
    puts, silence = flow(coordinator.kill)
    assert puts > usual - RATE * ALLOWED
    assert silence < max(ALLOWED, 3 * usual_silence)
    for worker in workers:
        worker.session(name="sub0", up=False)
        worker.session(name="pub0", up=False)
    pass_on(30)
    assert [worker.connections() for worker in workers] == links
    again, _ = daemon(start, port)
    began = time.monotonic()
    one = start_worker(start, address)
    one.peer(name="new")
    one.sub(name="new", topic="new/*")
    workers[0].sub(name="pub0", topic="new/*")
    found = [
        (one, one.pub(name="new", topic="new/0", rate=100)),
        (workers[1], workers[1].pub(name="sub0", topic="new/1", rate=100)),
    ]
    for _, stream in found:
        one.reach(name="new", due={stream: 1})
        workers[0].reach(name="pub0", due={stream: 1})
    assert time.monotonic() - began < HEARTBEAT + 10  # the machine may be busy
    pass_on(10)
    for worker, before in zip(workers, links, strict=True):
        assert set(before) <= set(worker.connections())
    for worker in workers:
        put = worker.stop()
        for n in range(5):
            name = f"pub{n}"
            (stream,) = [s for s, where in streams[n].items() if where == (worker, name)]
            for other in workers:
                report = other.reach(name=f"sub{n}", due={stream: put[name]})
                assert report["got"][stream] == put[name]
                assert report["lost"] == 0
    again.kill()


def test_g7_a_peer_that_is_made_while_the_coordinator_is_down_works_when_it_is_up(
    start: Start,
) -> None:
    port = free_port()
    coordinator, address = daemon(start, port)
    here, there = start_worker(start, address), start_worker(start, address)
    for worker in (here, there):
        worker.peer(name="a", connect_timeout=60)
        worker.sub(name="a", topic="warm-up")
    coordinator.kill()
    here.session(name="a", up=False)
    there.session(name="a", up=False)
    there.tell("sub", name="a", topic="t")
    here.tell("pub", name="a", topic="t", rate=100)
    daemon(start, port)
    there.answer()
    stream = here.answer()
    there.reach(name="a", due={stream: here.counts()["a"] + 10})


async def test_g7_one_name_means_three_coordinators_and_two_are_replaced_under_flow(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a headless Service: what replaces a pod has another address."""
    port = free_port()
    meant = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]

    def ask(host: str) -> tuple[str, ...]:
        assert host == "coordinators.example"
        return tuple(meant)

    monkeypatch.setattr(resolving, "ask", ask)
    monkeypatch.setattr("pubsub.runtime.coordinator_link.FOLLOW", 0.1)
    name = f"coordinators.example:{port}"
    running = {host: daemon(start, port, "--host", host)[0] for host in meant}

    def hosts(peer: Peer) -> list[str]:
        sessions = [session for session in peer.runtime.sessions if session.up]
        return sorted(session.place.host for session in sessions if session.place is not None)

    async with Peer(name) as here, Peer(name) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        await eventually(lambda: hosts(here) == hosts(there) == meant)
        async with flow(pub, sub, 2_000) as running_flow:
            await running_flow.passes(2_000)
            for gone, new, how in (
                ("127.0.0.1", "127.0.0.4", signal.SIGKILL),
                ("127.0.0.2", "127.0.0.5", signal.SIGTERM),
            ):
                # its address is named for a while after it is gone
                await asyncio.to_thread(running[gone].signal, how)
                await running_flow.passes(1_000)
                meant.remove(gone)
                await running_flow.passes(200)
                await asyncio.to_thread(daemon, start, port, "--host", new)
                meant.append(new)
                await eventually(lambda: hosts(here) == hosts(there) == sorted(meant))
                await running_flow.checked()
            assert len(here.runtime.sessions) == len(there.runtime.sessions) == 3
            # who knows one of the new ones alone finds them, and is found
            async with Peer(f"127.0.0.4:{port}") as one, Peer(f"127.0.0.5:{port}") as two:
                for alone in (one, two):
                    late, early = await alone.sub("t"), await alone.pub("back")
                    assert isinstance(await late.get(timeout=LONG), int)
                    ears = await here.sub("back")
                    await early.put("heard")
                    assert await ears.get(timeout=LONG) == "heard"
                    await early.close()
                    ears.close()
            async with Peer(name) as anew:
                assert isinstance(await (await anew.sub("t")).get(timeout=LONG), int)
                # no answer takes a session down that is up
                meant[:] = ["127.0.0.9"]
                await running_flow.passes(1_000)
                assert hosts(here) == hosts(there) == ["127.0.0.3", "127.0.0.4", "127.0.0.5"]
        assert sub.lost == 0
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text


async def test_a_coordinator_that_is_busy_or_slow_is_tried_again() -> None:
    """What passes is no proof that there is no coordinator: `connect_timeout` decides."""
    coordinator = Coordinator(
        asyncio.get_running_loop(),
        settings=Settings(max_unauthenticated=0),
        guard=default_guard(),
    )
    address = str(await coordinator.start("127.0.0.1", 0))
    async with Peer(address, connect_timeout=LONG) as peer:
        pub = peer.pub("t")
        ready = asyncio.ensure_future(pub._ready.wait())
        (session,) = peer.runtime.sessions
        await eventually(lambda: session.tried)
        coordinator._doorman.limit = 1
        await asyncio.wait_for(ready, LONG)
    await coordinator.close()
    async with (
        coordinator_in_loop() as address,
        proxy(lambda: parse_address(address)) as between,
        Peer(between.address, connect_timeout=LONG, handshake_timeout=0.1) as peer,
    ):
        between.blackhole = True
        pub = peer.pub("t")
        ready = asyncio.ensure_future(pub._ready.wait())
        (other,) = peer.runtime.sessions
        await eventually(lambda: other.tried)
        between.blackhole = False
        await asyncio.wait_for(ready, LONG)


def test_g7_when_the_process_with_the_embedded_coordinator_is_killed_another_takes_over(
    start: Start,
) -> None:
    port = free_port()

    def worker(name: str) -> Worker:
        made = start_worker(start)
        made.default_coordinator(port=port)
        made.peer(name=name)
        return made

    first = worker("first")
    first.sub(name="first", topic="nothing")
    assert first.embedded(name="first")
    there = worker("there")
    there.sub(name="there", topic="t")
    here = worker("here")
    stream = here.pub(name="here", topic="t", rate=1_000)
    there.reach(name="there", due={stream: 100})
    first.kill()
    until(lambda: here.embedded(name="here") or there.embedded(name="there"))
    here.session(name="here", up=True)
    there.session(name="there", up=True)
    assert here.embedded(name="here") is not there.embedded(name="there")
    late = worker("late")
    new = late.pub(name="late", topic="t", rate=1_000)
    report: dict[str, Any] = there.reach(name="there", due={new: 100})
    assert report["due"][new] == report["got"][new]  # from its first message on
    put = here.stop()["here"]
    report = there.reach(name="there", due={stream: put})
    assert report["got"][stream] == put
    assert report["lost"] == 0
