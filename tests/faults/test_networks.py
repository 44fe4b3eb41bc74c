"""A way for every pair, wherever the two stand: networks of machines on which not everybody can dial
everybody, and programs on them that lose nothing. docs/networks.md has a picture of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import Running, Start
from tests.faults.hosts import Lab, lab

__all__ = ["lab"]  # the fixture

PUT = 300
HEAD = "10.77.1.1:7700"

SUBSCRIBE = """
import json, sys
from pubsub import Peer
from pubsub.runtime import publisher_link
publisher_link.BETTER = 0.5  # seconds, so that a better way is found while we look
count, settings = int(sys.argv[1]), json.loads(sys.argv[2])
with Peer(**settings) as peer, peer.sub("t") as sub:
    print("ready", flush=True)
    n = 0
    last = None
    while n < count:
        (value,) = sub.get_many(1, timeout=60)
        assert value == n, (value, n)
        n += 1
        if n % 100 == 0:
            links = peer.runtime.snapshot().links
            ways = [row.way for row in links if row.role == "publisher" and row.up]
            if ways and ways != last:
                last = ways
                print(*ways, flush=True)
    print("lost", sub.lost, flush=True)
"""
PUBLISH = """
import json, sys, time
from pubsub import Peer
count, subscribers, rate, settings = *map(int, sys.argv[1:4]), json.loads(sys.argv[4])
with Peer(**settings) as peer, peer.pub("t") as pub:
    pub.wait_for_subscribers(subscribers, timeout=30)
    links = peer.runtime.snapshot().links
    print(*sorted(row.way for row in links if row.role == "subscriber" and row.up), flush=True)
    begun = time.monotonic()
    for n in range(0, count, 100):
        pub.put_many(range(n, min(n + 100, count)))
        time.sleep(max(0.0, begun + n / rate - time.monotonic()))
    pub.flush(timeout=60)
    if sys.stdin.readline():  # until it is told
        pass
"""


class Machines:
    """Programs on the machines."""

    def __init__(self, start: Start, lab: Lab) -> None:
        self.start = start
        self.lab = lab

    def run(self, host: str, *args: str, coordinator: str | None, **env: str) -> Running:
        return self.start(*args, coordinator=coordinator, prefix=self.lab.on(host), **env)

    def coordinator(self, host: str, *more: str) -> Running:
        process = self.run(
            *(host, "pubsubd", "coordinator", "--host", "::", *more), coordinator=None
        )
        assert process.err().startswith("pubsubd: coordinator on ")
        assert "reach it with PUBSUB_COORDINATOR=" in process.err()
        if "--relay" in more:
            assert "relay" in process.err()
        return process

    def sub(self, host: str, coordinator: str = HEAD, put: int = PUT, **settings: Any) -> Running:
        process = self.run(
            *(host, "python", "-c", SUBSCRIBE, str(put), json.dumps(settings)),
            coordinator=coordinator,
        )
        assert process.out() == "ready"
        return process

    def pub(
        self,
        host: str,
        coordinator: str = HEAD,
        subscribers: int = 1,
        put: int = PUT,
        rate: int = 1_000_000,
        **settings: Any,
    ) -> Running:
        args = (str(put), str(subscribers), str(rate), json.dumps(settings))
        return self.run(host, "python", "-c", PUBLISH, *args, coordinator=coordinator)


@pytest.fixture
def machines(
    start: Start, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machines:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    made = start("pubsubd", "key", "new", str(tmp_path / "key"), coordinator=None)
    assert made.end()[0] == 0
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))
    lab.host("head", lan=1)
    return Machines(start, lab)


def check(way: str, pub: Running, *subs: Running) -> None:
    """All has arrived, in order and by that way."""
    for sub in subs:
        assert sub.out() == way
        assert sub.out() == "lost 0"
    assert pub.out() == " ".join([way] * len(subs))
    pub.close_input()
    for process in (*subs, pub):
        assert process.end() == (0, [], [])


def test_g4_on_one_network_the_subscriber_dials(machines: Machines) -> None:
    machines.lab.host("w1", lan=11)
    machines.coordinator("head")
    check("direct", machines.pub("w1", subscribers=2), machines.sub("head"), machines.sub("w1"))


def test_g4_a_subscriber_that_can_only_dial_out_dials(machines: Machines) -> None:
    machines.lab.host("w1", lan=11)
    machines.lab.host("w2", lan=12)
    machines.lab.lets_out_only("w1")
    machines.coordinator("head")
    check("direct", machines.pub("w2"), machines.sub("w1"))


def test_g4_a_publisher_that_can_only_dial_out_is_called(machines: Machines) -> None:
    machines.lab.host("w1", lan=11)
    machines.lab.host("w2", lan=12)
    machines.lab.lets_out_only("w2")
    machines.coordinator("head")
    check("reverse", machines.pub("w2"), machines.sub("w1"))
