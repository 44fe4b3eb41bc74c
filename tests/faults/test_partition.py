"""Two machines and a cable that is pulled: network namespaces with a veth pair between them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.processes import Start
from tests.faults.test_signals import BEAT, passes, settle, wait_for
from tests.faults.worker import Worker, start_worker, until

HERE, THERE = "10.213.0.1", "10.213.0.2"


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Cable:
    """Between the namespaces `here` and `there`."""

    def __init__(self) -> None:
        tag = f"ps{os.getpid() % 100_000}"
        self.here, self.there = f"{tag}-h", f"{tag}-t"

    def lay(self) -> None:
        for name in (self.here, self.there):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", self.here, "netns", self.here, "type", "veth",
           "peer", "name", self.there, "netns", self.there)  # fmt: skip
        for name, address in ((self.here, HERE), (self.there, THERE)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")

    def pull(self) -> None:
        """Nothing passes any more, and nobody is told."""
        ip("-n", self.there, "link", "set", self.there, "down")

    def plug(self) -> None:
        ip("-n", self.there, "link", "set", self.there, "up")

    def remove(self) -> None:
        for name in (self.here, self.there):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    cable = Cable()
    try:
        try:
            cable.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield cable
    finally:
        cable.remove()


def machines(start: Start, cable: Cable, **settings: Any) -> tuple[Worker, Worker, str]:
    """The coordinator and a publisher on one, a subscriber on the other; and the stream."""
    inside = ("ip", "netns", "exec")
    coordinator = start(
        *("python", "-m", "pubsub.cli.pubsubd", "coordinator", "--host", HERE, "--port", "7700"),
        prefix=(*inside, cable.here),
    )
    assert "coordinator on" in coordinator.err()
    here = start_worker(start, f"{HERE}:7700", prefix=(*inside, cable.here))
    there = start_worker(start, f"{HERE}:7700", prefix=(*inside, cable.there))
    there.peer(name="a", **{**BEAT, **settings})
    there.sub(name="a", topic="t")
    here.peer(name="a", **{**BEAT, **settings})
    stream = here.pub(name="a", topic="t", rate=1_000)
    here.attached(name="a", n=1)
    return here, there, stream


def test_g5_a_partition_that_outlasts_the_heartbeat_loses_nothing(
    start: Start, cable: Cable
) -> None:
    here, there, stream = machines(start, cable, connect_timeout=0.5)
    for _ in range(2):
        passes(here, there, stream)
        cable.pull()
        wait_for(here, "reconnecting")
        until(lambda: there.report(name="a")["publishers"][stream]["state"] == "reconnecting")
        cable.plug()
        passes(here, there, stream)
        wait_for(here, "attached")
    report = settle(here, there, stream)
    assert report["lost"] == 0
    there.session(name="a", up=True)


def test_g5_a_short_partition_is_not_even_noticed(start: Start, cable: Cable) -> None:
    here, there, stream = machines(start, cable, ping_timeout=60)
    passes(here, there, stream)
    cable.pull()
    put = here.counts()["a"]
    until(lambda: here.counts()["a"] > put + 200)
    cable.plug()
    passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0
    assert there.end() == []


def test_g8_block_waits_for_a_host_that_does_not_answer_and_says_until_when(
    start: Start, cable: Cable
) -> None:
    """As one without power does not: nothing tells a process that is gone from one that comes
    back, and this one does."""
    here, there, _ = machines(start, cable, connect_timeout=0.5)
    here.peer(name="b", **BEAT)
    stream = here.pub(name="b", topic="t", overflow="block", buffer=10_000)
    here.attached(name="b", n=1)
    cable.pull()
    here.tell("puts", name="b", count=20_000)
    # it cannot answer while it puts; but what it logs can be read
    line = here.running.err()
    while "(its link broke; until " not in line:
        line = here.running.err()
    assert "a put has waited" in line
    cable.plug()
    assert here.answer() == 20_000
    assert there.reach(name="a", due={stream: 20_000})["gaps"].get(stream, 0) == 0
