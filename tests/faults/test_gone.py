"""Subscribers that are killed, stopped or unreachable: what is held for them, and for how long.

Times here are only bounds: what would be waited for without a mend is far longer than `SOON`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pubsub import Peer, Pub
from pubsub.coordinator.server import Coordinator
from pubsub.links.probing import AGAIN, Answer, Prober
from tests.cli.processes import Start
from tests.faults.flow import flow
from tests.faults.proxy import behind
from tests.faults.worker import Worker, start_worker, until
from tests.integration.support import (
    LONG,
    CoordinatorThread,
    coordinator_in_loop,
    coordinator_in_thread,
    default_guard,
    eventually,
    free_port,
)

SOON = 20.0
"""Seconds in which a busy machine does what takes an idle one less than one."""
PATIENT: dict[str, Any] = {"resume_timeout": 60.0, "join_timeout": 60.0}

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture
def coordinator() -> Iterator[CoordinatorThread]:
    with coordinator_in_thread() as coordinator:
        coordinator.coordinator.registry.grace = 60.0
        yield coordinator


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


def subscriber(
    start: Start, coordinator: CoordinatorThread, peers: int = 1, **options: Any
) -> Worker:
    """A process with a Sub in each of so many peers."""
    worker = start_worker(start, coordinator.address)
    for number in range(peers):
        worker.peer(name=f"a{number}", host="127.0.0.1")
        worker.sub(name=f"a{number}", topic="t", **options)
    return worker


def fill(pub: Pub, count: int = 1_000) -> None:
    """Put many times what its buffer has room for; nobody may make that wait for long."""
    began = time.monotonic()
    for _ in range(count):
        pub.put(b"x" * 100)
    assert time.monotonic() - began < SOON


# --- killed -----------------------------------------------------------------------------


@posix
def test_g8_block_goes_on_at_once_when_its_subscriber_was_killed(
    start: Start, coordinator: CoordinatorThread
) -> None:
    victim = subscriber(start, coordinator)
    with Peer(coordinator.address, **PATIENT) as peer:
        pub = peer.pub("t", overflow="block", buffer=10_000)
        pub.wait_for_subscribers(1, LONG)
        victim.kill()
        fill(pub)
        assert pub.subscribers == {}


@posix
def test_g8_a_killed_subscriber_that_is_started_again_is_served_at_once(
    start: Start, coordinator: CoordinatorThread
) -> None:
    victim = subscriber(start, coordinator)
    with Peer(coordinator.address, **PATIENT) as peer:
        pub = peer.pub("t", overflow="block", buffer=10_000)
        pub.wait_for_subscribers(1, LONG)
        victim.kill()
        again = subscriber(start, coordinator)
        began = time.monotonic()
        for number in range(20_000):
            pub.put(number)
        report = again.reach(name="a0", due={f"{peer.address}#1": 20_000})
        assert time.monotonic() - began < SOON
        assert report["lost"] == 0
        assert len(pub.subscribers) == 1


@posix
def test_g8_a_new_pub_waits_for_nobody_who_was_killed_before(
    start: Start, coordinator: CoordinatorThread
) -> None:
    """Whom the coordinator names to it is there, or may be."""
    victim = subscriber(start, coordinator)
    with Peer(coordinator.address, **PATIENT) as peer:
        victim.kill()
        with peer.pub("t", overflow="block", buffer=10_000) as pub:
            fill(pub)
            assert pub.subscribers == {}


@posix
@pytest.mark.parametrize("observer", [False, True])
def test_g8_an_end_waits_for_nobody_who_was_killed(
    start: Start, coordinator: CoordinatorThread, observer: bool
) -> None:
    victim = subscriber(start, coordinator, observer=observer)
    with Peer(coordinator.address, **PATIENT, linger=60.0) as peer:
        pub = peer.pub("t")
        pub.wait_for_subscribers(1, LONG)
        victim.kill()
        pub.put(1)
        began = time.monotonic()
        pub.close()
        assert time.monotonic() - began < SOON


@posix
def test_g8_many_that_are_killed_at_once_are_forgotten_at_once(
    start: Start, coordinator: CoordinatorThread
) -> None:
    victim = subscriber(start, coordinator, peers=100)
    with Peer(coordinator.address, **PATIENT) as peer:
        pub = peer.pub("t", overflow="block", buffer=10_000)
        pub.wait_for_subscribers(100, LONG)
        victim.kill()
        fill(pub)
        with peer.pub("t", overflow="block", buffer=10_000) as new:
            fill(new)
        until(lambda: not list(coordinator.coordinator.registry.peers())[1:])


# --- publishers -------------------------------------------------------------------------


@posix
def test_g8_a_killed_publisher_that_no_coordinator_lists_is_given_up_at_once(
    start: Start, coordinator: CoordinatorThread
) -> None:
    victim = start_worker(start, coordinator.address)
    victim.peer(name="a", host="127.0.0.1")
    victim.pub(name="a", topic="t")
    with Peer(coordinator.address, **PATIENT) as peer:
        sub = peer.sub("t")
        victim.attached(name="a", n=1)
        began = time.monotonic()
        victim.kill()
        until(lambda: not sub._inbox.streams)
        assert time.monotonic() - began < SOON


@pytest.mark.loop
async def test_g5_a_publisher_that_was_given_up_and_is_back_is_resumed() -> None:
    """It lives; but for a while no coordinator lists it, and its address refuses."""
    coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=default_guard())
    address = str(await coordinator.start("127.0.0.1", 0))
    async with behind(address, **PATIENT) as (here, proxy), Peer(address, **PATIENT) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        async with flow(pub, sub) as flowing:
            await flowing.passes()
            coordinator.push(coordinator.registry.leave(here.peer_id))
            await proxy.down()
            await eventually(lambda: not sub._inbox.streams)
            proxy.up()
            (session,) = here.runtime.sessions
            assert session.link is not None
            session.link.abort()  # it registers everything again
            await flowing.passes()
        assert sub.lost == 0
    await coordinator.close()


# --- alive, and not to be reached -------------------------------------------------------


def answers_of(prober: Prober) -> list[Answer]:
    """All that it finds out from now on."""
    found: list[Answer] = []
    ask = prober._question

    async def question(suspect: Any) -> Answer:
        answer = await ask(suspect)
        found.append(answer)
        return answer

    prober._question = question  # type: ignore[method-assign]
    return found


@pytest.mark.loop
@pytest.mark.usefixtures("only_advertised")
async def test_g5_resets_before_a_live_subscriber_behind_a_rejecting_firewall_lose_nothing(
    address: str,
) -> None:
    """Whoever asks at its address is refused; but it comes back before it is asked twice."""
    nowhere = f"127.0.0.1:{free_port()}"
    async with (
        behind(address, **PATIENT) as (here, proxy),
        Peer(address, advertise=nowhere) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        answers = answers_of(here.runtime.subscribers.prober)
        async with flow(pub, sub) as flowing:
            for _ in range(4):
                await flowing.passes()
                asked = len(answers)
                await proxy.reset()
                await eventually(lambda asked=asked: len(answers) > asked)  # type: ignore[misc]
                await flowing.checked(2 * AGAIN)
        assert answers == [Answer.GONE] * 4
        assert sub.lost == 0


@pytest.mark.loop
@pytest.mark.usefixtures("only_advertised")
async def test_g5_nobody_is_asked_at_an_address_that_may_be_anothers(address: str) -> None:
    """Its link comes from another host than the one that it advertises: an address is translated,
    or a port forwarded. For as long as ever a link is down, its place is held."""
    nowhere = f"127.0.0.2:{free_port()}"
    async with (
        behind(address, **PATIENT) as (here, proxy),
        Peer(address, advertise=nowhere) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        answers = answers_of(here.runtime.subscribers.prober)
        async with flow(pub, sub) as flowing:
            await flowing.passes()
            await proxy.down()
            await eventually(lambda: not here.runtime.subscribers.served)
            await flowing.checked(3 * AGAIN)
            proxy.up()
            await flowing.passes()
        assert answers == []
        assert sub.lost == 0


@pytest.mark.loop
@pytest.mark.usefixtures("only_advertised")
async def test_g3_a_live_subscriber_that_is_taken_for_gone_counts_what_it_missed(
    address: str,
) -> None:
    """Its host rejects whoever asks, and its link is down for longer than the two questions."""
    nowhere = f"127.0.0.1:{free_port()}"
    async with (
        behind(address, **PATIENT) as (here, proxy),
        Peer(address, advertise=nowhere) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        async with flow(pub, sub) as flowing:
            await flowing.passes()
            await proxy.down()
            await eventually(lambda: not pub.subscribers)
            put = flowing.put
            await eventually(lambda: flowing.put > put)
            proxy.up()
            await flowing.passes()
        assert sub.lost == flowing.lost > 0


# --- waits with a name ------------------------------------------------------------------


@pytest.mark.loop
async def test_g8_a_put_that_waits_says_for_whom_and_why(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(address) as here, Peer(address) as there:
        sub = await there.sub("t", window=1)
        pub = await here.pub("t", overflow="block", buffer=5_000)
        await pub.wait_for_subscribers(1, LONG)
        puts = asyncio.ensure_future(pub.put_many([b"x" * 1_000] * 30))
        await eventually(lambda: caplog.messages)
        ((name, how),) = pub.subscribers.items()
        assert how["holds"] is True
        assert how["until"] is None
        (line,) = caplog.messages
        assert line.startswith("Pub('t', overflow='block'): a put has waited ")
        assert f"{name} (has taken nothing for " in line
        assert line.endswith("as long as its link lives)")
        for _ in range(30):
            await sub.get(timeout=LONG)
        await puts
        await eventually(lambda: not any(how["holds"] for how in pub.subscribers.values()))
        assert len(caplog.messages) == 1


@posix
def test_g8_block_says_that_it_waits_for_a_stopped_subscriber_and_until_when(
    start: Start, coordinator: CoordinatorThread, caplog: pytest.LogCaptureFixture
) -> None:
    """First as long as its link lives, and when that is found dead, for `resume_timeout`; but its
    host answers for it, so that it is not taken for gone."""
    beat: dict[str, Any] = {"ping_interval": 1.0, "ping_timeout": 3.0}
    stopped = subscriber(start, coordinator)
    with Peer(coordinator.address, **PATIENT, **beat) as peer:
        pub = peer.pub("t", overflow="block", buffer=10_000)
        pub.wait_for_subscribers(1, LONG)
        pub.put(0)
        stopped.freeze()
        said: list[dict[str, Any]] = []

        async def go_on() -> None:
            await eventually(lambda: "its link broke" in caplog.text)
            ((_, how),) = pub.subscribers.items()
            said.append(how)
            stopped.running.signal(signal.SIGCONT)

        waking = asyncio.run_coroutine_threadsafe(go_on(), peer.runtime.loop)
        for number in range(1, 20_000):
            pub.put(number)
        waking.result(LONG)
        report = stopped.reach(name="a0", due={f"{peer.address}#1": 20_000})
    assert report["lost"] == 0
    lines = [line for line in caplog.messages if "a put has waited" in line]
    assert "has taken nothing for" in lines[0] or "takes slowly" in lines[0]
    assert "(its link broke; until " in lines[-1]
    (how,) = said
    assert how["state"] == "reconnecting"
    assert how["holds"] is True
    assert 20 < how["until"] <= 60
