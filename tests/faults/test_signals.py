"""Processes that are killed, or stopped for a while."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from tests.cli.processes import Start, daemon
from tests.faults.worker import Worker, start_worker, until

BEAT: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.6, "handshake_timeout": 0.6}

MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def pair(
    start: Start, address: str, *, buffer: int = 2**26, **settings: Any
) -> tuple[Worker, Worker, str]:
    """A publishing and a subscribing process, and the name of the stream between them."""
    there = start_worker(start, address)
    there.peer(name="a", **{**BEAT, **settings})
    there.sub(name="a", topic="t")
    here = start_worker(start, address)
    here.peer(name="a", **{**BEAT, **settings})
    stream = here.pub(name="a", topic="t", rate=2_000, buffer=buffer)
    here.attached(name="a", n=1)
    return here, there, stream


def settle(here: Worker, there: Worker, stream: str) -> dict[str, Any]:
    """Put no more; what the Sub got when all is accounted for."""
    put = here.stop()["a"]
    report: dict[str, Any] = there.reach(name="a", due={stream: put})
    assert report["got"][stream] + report["lost"] == put
    assert sum(report["gaps"].values()) == report["lost"]
    return report


def wait_for(here: Worker, state: str) -> None:
    """Until that is how the one subscriber stands."""
    until(lambda: [how["state"] for how in here.subscribers(name="a").values()] == [state])


def passes(here: Worker, there: Worker, stream: str) -> None:
    """Wait until what is put next has come."""
    there.reach(name="a", due={stream: here.counts()["a"] + 1})


def test_g5_a_subscriber_that_is_stopped_for_a_moment_loses_nothing(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address, ping_timeout=30)
    for _ in range(5):
        passes(here, there, stream)
        there.freeze()
        put = here.counts()["a"]
        until(lambda put=put: here.counts()["a"] > put + 200)  # type: ignore[misc]
        there.thaw()
    assert settle(here, there, stream)["lost"] == 0


def test_g5_a_subscriber_that_is_stopped_until_it_seems_dead_resumes(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address)
    for _ in range(2):
        passes(here, there, stream)
        there.freeze()
        wait_for(here, "reconnecting")
        there.thaw()
        passes(here, there, stream)
        wait_for(here, "attached")
    assert settle(here, there, stream)["lost"] == 0
    assert any("no sign of life for 0.6 s" in line for line in here.end())


def test_g3_a_subscriber_that_is_stopped_for_too_long_counts_what_it_missed(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address, resume_timeout=0.3, buffer=20_000)
    passes(here, there, stream)
    there.freeze()
    until(lambda: not here.subscribers(name="a"))
    here.puts(name="a", count=20_000)  # the first messages of a new Pub are kept a little longer
    there.thaw()
    report = settle(here, there, stream)
    assert report["lost"] > 0
    assert set(report["reasons"]) == {"overflow"}


def test_g5_a_publisher_that_is_stopped_until_it_seems_dead_is_resumed(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address)
    for _ in range(2):
        passes(here, there, stream)
        here.freeze()
        until(lambda: there.report(name="a")["publishers"][stream]["state"] == "reconnecting")
        here.thaw()
        passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0


def test_g8_a_killed_subscriber_is_forgotten_and_disturbs_no_other(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address, resume_timeout=0.3)
    victim = start_worker(start, address)
    victim.peer(name="b", **BEAT)
    victim.sub(name="b", topic="t")
    assert len(here.subscribers(name="a")) == 2
    victim.kill()
    until(lambda: len(here.subscribers(name="a")) == 1)
    passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0


def test_block_goes_on_after_its_subscriber_was_killed(start: Start, address: str) -> None:
    there = start_worker(start, address)
    there.peer(name="a", **BEAT)
    there.sub(name="a", topic="t")
    here = start_worker(start, address)
    here.peer(name="a", **BEAT, resume_timeout=0.5, join_timeout=0.5)
    here.pub(name="a", topic="t", overflow="block", buffer=10_000)
    here.attached(name="a", n=1)
    there.kill()
    assert here.puts(name="a", count=20_000) == 20_000
    assert here.subscribers(name="a") == {}


def test_g8_block_waits_for_a_stopped_subscriber_and_drop_does_not(
    start: Start, address: str
) -> None:
    there = start_worker(start, address)
    there.peer(name="a")
    there.sub(name="a", topic="t/*", window=10_000)
    here = start_worker(start, address)
    here.peer(name="a")
    here.peer(name="b", join_timeout=0.5)
    drop = here.pub(name="a", topic="t/drop", buffer=10_000)
    block = here.pub(name="b", topic="t/block", overflow="block", buffer=10_000)
    here.attached(name="a", n=1)
    here.attached(name="b", n=1)
    there.freeze()
    assert here.puts(name="a", count=200_000) == 200_000  # at once
    here.tell("puts", name="b", count=200_000)
    there.thaw()
    assert here.answer() == 200_000
    report = there.reach(name="a", due={drop: 200_000, block: 200_000})
    assert report["got"][block] == 200_000
    assert report["got"][drop] + report["gaps"][drop] == 200_000
    assert report["lost"] == report["gaps"][drop] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_g6_a_publisher_at_full_speed_holds_its_buffer_for_a_stopped_subscriber(
    start: Start, address: str
) -> None:
    buffer = 32 * MIB
    there = start_worker(start, address)
    there.peer(name="a")
    there.sub(name="a", topic="t")
    here = start_worker(start, address)
    here.peer(name="a")
    stream = here.pub(name="a", topic="t", buffer=buffer)
    here.attached(name="a", n=1)
    there.reach(name="a", due={stream: here.puts(name="a", count=50_000)})
    before = here.memory()
    there.freeze()
    here.flood(name="a", count=200_000, size=1024)
    grown = here.memory("VmHWM") - before
    assert buffer - 8 * MIB < grown <= buffer + 20 * MIB
    ((_, how),) = here.subscribers(name="a").items()
    assert how["lag"] > 150_000
    there.kill()


def test_g3_what_a_killed_publisher_sent_is_delivered_and_the_next_one_begins_at_0(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address)
    passes(here, there, stream)
    here.stop()
    sent = here.puts(name="a", count=1_000)
    there.reach(name="a", due={stream: sent})  # it came; a kill takes nothing of it back
    here.kill()
    again = start_worker(start, address)
    again.peer(name="a", **BEAT)
    new = again.pub(name="a", topic="t")
    put = again.puts(name="a", count=1_000)
    report = there.reach(name="a", due={new: put})
    assert report["got"] == {stream: sent, new: put}
    assert report["due"] == {stream: sent, new: put}
    assert report["gaps"] == {}
    assert report["lost"] == 0
    until(lambda: there.report(name="a")["publishers"][stream]["state"] == "vanished")
    report = there.report(name="a")
    assert report["reasons"] == ["vanished"]
    assert report["publishers"][stream]["delivered"] == sent
    assert report["publishers"][new]["state"] == "attached"


def test_g7_a_stopped_coordinator_holds_up_nothing_that_runs(start: Start) -> None:
    daemon_process, address = daemon(start)
    here, there, stream = pair(start, address)
    passes(here, there, stream)
    daemon_process.signal(signal.SIGSTOP)
    here.session(name="a", up=False)
    there.session(name="a", up=False)
    passes(here, there, stream)
    daemon_process.signal(signal.SIGCONT)
    here.session(name="a", up=True)
    there.session(name="a", up=True)
    passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0
