"""A way for every pair, wherever the two stand: networks of machines on which not everybody can
dial everybody, and programs on them that lose nothing. docs/networks.md has a picture of each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import LONG, Running, Start
from tests.faults.hosts import Lab, lab

__all__ = ["lab"]  # the fixture

PUT = 300
RATE = 20_000
HEAD = "10.77.1.1:7700"

SUBSCRIBE = """
import json, sys
from pubsub import Peer
from pubsub.runtime import publisher_link
publisher_link.BETTER = 0.5  # a better way is found while we look
with Peer(**json.loads(sys.argv[1])) as peer, peer.sub("t") as sub:
    print("ready", flush=True)
    count, shown = 0, []
    for value, _ in sub:
        if value is not None:
            assert value == count, (value, count)
            count += 1
        if value is None or not count % 100:
            links = peer.runtime.snapshot().links
            ways = [row.way for row in links if row.role == "publisher" and row.up]
            if ways and ways != shown:
                shown = ways
                print(*ways, flush=True)
        if value is None:
            break
    print(count, "lost", sub.lost, flush=True)
"""
PUBLISH = """
import json, sys, threading, time
from pubsub import Peer
subscribers, count, rate, size = map(int, sys.argv[1:5])
told = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
with Peer(**json.loads(sys.argv[5])) as peer, peer.pub("t") as pub:
    pub.wait_for_subscribers(subscribers, timeout=30)
    ways = []
    while len(ways) != subscribers:  # one that was slower may be there for a moment
        ways = [row.way for row in peer.runtime.snapshot().links if row.role == "subscriber"]
        time.sleep(0.01)
    print(*sorted(ways), flush=True)
    begun, n, some = time.monotonic(), 0, bytes(size)
    while n < count if count else not told.is_set():
        step = min(100, count - n) if count else max(1, rate // 200)
        pub.put_many((each, some) for each in range(n, n + step))
        n += step
        if rate:
            time.sleep(max(0.0, begun + n / rate - time.monotonic()))
    pub.put((None, b""))
    pub.flush(timeout=30)
    told.wait()
    print(n, flush=True)
"""


class Machines:
    """Programs on the machines."""

    def __init__(self, start: Start, lab: Lab) -> None:
        self.start = start
        self.lab = lab

    def run(self, host: str, *args: str, coordinator: str | None, **env: str) -> Running:
        return self.start(*args, coordinator=coordinator, prefix=self.lab.on(host), **env)

    def until(self, host: str, said: str, *command: str) -> None:
        """A command says that there."""
        deadline = time.monotonic() + LONG
        while said not in (found := self.lab.run(host, *command)):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def coordinator(self, host: str, *more: str) -> Running:
        process = self.run(
            *(host, "pubsubd", "coordinator", "--host", "::", *more), coordinator=None
        )
        assert process.err().startswith("pubsubd: coordinator on ")
        assert "reach it with PUBSUB_COORDINATOR=" in process.err()
        if "--relay" in more:
            assert process.err().startswith("pubsubd: its relay is process ")
            assert process.err().startswith("pubsubd: relay on ")
        return process

    def relay(self, host: str) -> Running:
        process = self.run(
            *(host, "pubsubd", "relay", "--host", "0.0.0.0", "--port", "0"), coordinator=HEAD
        )
        assert process.err().startswith("pubsubd: relay on ")
        return process

    def sub(self, at: str, /, coordinator: str = HEAD, **settings: Any) -> Running:
        process = self.run(
            *(at, "python", "-c", SUBSCRIBE, json.dumps(settings)), coordinator=coordinator
        )
        assert process.out() == "ready"
        return process

    def pub(
        self, at: str, /, coordinator: str = HEAD, subscribers: int = 1, **settings: Any
    ) -> Running:
        """It puts `PUT` messages, and ends when its input does."""
        return self._pub(at, coordinator, subscribers, PUT, 0, 0, settings)

    def flow(
        self,
        at: str,
        /,
        coordinator: str = HEAD,
        rate: int = 20_000,
        size: int = 0,
        **settings: Any,
    ) -> Running:
        """It puts so many messages a second until its input ends."""
        return self._pub(at, coordinator, 1, 0, rate, size, settings)

    def _pub(self, host: str, coordinator: str, *args: Any) -> Running:
        *numbers, settings = args
        return self.run(
            *(host, "python", "-c", PUBLISH, *map(str, numbers), json.dumps(settings)),
            coordinator=coordinator,
        )


@pytest.fixture
def keyed(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs have a key."""
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    made = start("pubsubd", "key", "new", str(tmp_path / "key"), coordinator=None)
    assert made.end()[0] == 0
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))


@pytest.fixture
def machines(start: Start, lab: Lab, keyed: None) -> Machines:
    lab.host("head", lan=1)
    return Machines(start, lab)


def check(way: str, pub: Running, *subs: Running) -> None:
    """All arrives, in order and by that way."""
    assert pub.out() == " ".join([way] * len(subs))
    for sub in subs:
        assert sub.out() == way
        assert sub.out() == f"{PUT} lost 0"
    pub.close_input()
    for process in (*subs, pub):
        assert process.wait() == 0
        assert process.rest_of_errors() == []


def check_flow(pub: Running, sub: Running) -> None:
    """End it: all that was put has arrived, in order."""
    pub.close_input()
    put = int(pub.out())
    assert put > 0
    assert sub.out() == f"{put} lost 0"
    for process in (sub, pub):
        assert process.wait() == 0


# --- who can dial whom --------------------------------------------------------------------------


def test_g4_on_one_network_the_subscriber_dials(machines: Machines) -> None:
    machines.lab.host("w1", lan=11)
    machines.coordinator("head")
    machines.lab.host("w2", lan=12)
    check("direct", machines.pub("w1", subscribers=2), machines.sub("head"), machines.sub("w2"))


def test_g4_on_one_host_the_subscriber_dials_a_unix_socket(machines: Machines) -> None:
    """The others share its kernel, and not its network namespace."""
    machines.lab.host("w1", lan=11)
    machines.coordinator("head")
    check("unix", machines.pub("w1"), machines.sub("w1"))
    check("direct", machines.pub("w1"), machines.sub("head"))


def test_g4_a_subscriber_that_can_only_dial_out_dials(firewalls: Machines) -> None:
    firewalls.lab.lets_out_only("w1")
    firewalls.coordinator("head")
    check("direct", firewalls.pub("w2"), firewalls.sub("w1"))


def test_g4_a_publisher_that_can_only_dial_out_dials_who_subscribes(firewalls: Machines) -> None:
    firewalls.lab.lets_out_only("w2")
    firewalls.coordinator("head")
    check("reverse", firewalls.pub("w2"), firewalls.sub("w1"))


def test_g4_two_that_can_only_dial_out_meet_at_a_relay(firewalls: Machines) -> None:
    firewalls.lab.lets_out_only("w1")
    firewalls.lab.lets_out_only("w2")
    firewalls.coordinator("head", "--relay")
    check("relay", firewalls.pub("w2"), firewalls.sub("w1"))


def test_g4_two_that_do_not_listen_meet_at_a_relay(firewalls: Machines) -> None:
    firewalls.coordinator("head", "--relay")
    check("relay", firewalls.pub("w2", listen=False), firewalls.sub("w1", listen=False))


@pytest.mark.parametrize(("way", "behind"), [("reverse", ["w2"]), ("relay", ["w1", "w2"])])
def test_g4_a_sub_gets_the_first_message_of_a_pub_that_waits_for_nobody(
    firewalls: Machines, way: str, behind: list[str]
) -> None:
    for host in behind:
        firewalls.lab.lets_out_only(host)
    firewalls.coordinator("head", "--relay")
    sub = firewalls.sub("w1")
    pub = firewalls.pub("w2", subscribers=0)
    assert pub.out() == ""
    assert (sub.out(), sub.out()) == (way, f"{PUT} lost 0")


@pytest.fixture
def firewalls(machines: Machines) -> Machines:
    machines.lab.host("w1", lan=11)
    machines.lab.host("w2", lan=12)
    return machines


# --- several networks ---------------------------------------------------------------------------


@pytest.fixture
def two_networks(start: Start, lab: Lab, keyed: None) -> Machines:
    """The head node is on both, and each other machine on one; it is no router."""
    lab.network("far", "10.77.2.")
    lab.host("head", lan=1, far=1)
    lab.host("w1", lan=11)
    lab.host("w2", far=12)
    return Machines(start, lab)


FAR = "10.77.2.1:7700"


def test_g4_two_networks_with_a_router_between_them_are_one(two_networks: Machines) -> None:
    lab = two_networks.lab
    lab.forwards("head")
    lab.route("w1", "default", "via", "10.77.1.1")
    lab.route("w2", "default", "via", "10.77.2.1")
    two_networks.coordinator("head")
    check("direct", two_networks.pub("w2", FAR), two_networks.sub("w1"))


def test_g4_two_networks_without_a_router_meet_at_a_relay(two_networks: Machines) -> None:
    two_networks.coordinator("head", "--relay")
    check("relay", two_networks.pub("w2", FAR), two_networks.sub("w1"))


def test_g4_a_machine_on_two_networks_hears_both_and_is_heard_on_both(
    two_networks: Machines,
) -> None:
    two_networks.coordinator("head")
    pub, near, far = (
        two_networks.pub("head", subscribers=2),
        two_networks.sub("w1"),
        two_networks.sub("w2", FAR),
    )
    assert pub.out() == "direct reverse"  # it is told as it reaches the coordinator
    assert (near.out(), near.out()) == ("direct", f"{PUT} lost 0")
    assert (far.out(), far.out()) == ("reverse", f"{PUT} lost 0")
    pub.close_input()
    assert [each.wait() for each in (pub, near, far)] == [0] * 3
    check("direct", two_networks.pub("w1"), two_networks.sub("head", FAR))
    check("direct", two_networks.pub("w2", FAR), two_networks.sub("head"))


def test_g4_ipv6_only_and_ipv4_only_meet_at_a_relay_of_both(
    start: Start, lab: Lab, keyed: None
) -> None:
    lab.network("four", "10.77.4.")
    lab.network("six", ipv6="fd77:6::")
    lab.host("head", four=1, six=1)
    lab.host("w4", four=11)
    lab.host("w6", six=11)
    machines = Machines(start, lab)
    machines.coordinator("head", "--relay")
    check("relay", machines.pub("w4", "10.77.4.1:7700"), machines.sub("w6", "[fd77:6::1]:7700"))
    check("relay", machines.pub("w6", "[fd77:6::1]:7700"), machines.sub("w4", "10.77.4.1:7700"))


# --- containers ---------------------------------------------------------------------------------

FORWARDED: dict[str, Any] = {"port": 7800, "advertise": "10.77.1.20:7800"}


@pytest.fixture
def containers(machines: Machines) -> Machines:
    """``c1`` and ``c2`` on a network of their own; a host gives them a way out."""
    lab = machines.lab
    lab.network("inner", "172.18.0.")
    lab.host("gateway", lan=2, inner=1)
    lab.translates("gateway", "inner", "lan", "10.77.1.20", p7800=("172.18.0.2", 7800))
    lab.host("w1", lan=11)
    for number in (1, 2):
        lab.host(f"c{number}", inner=number + 1)
        lab.route(f"c{number}", "default", "via", "172.18.0.1")
    return machines


def test_g4_a_container_with_a_forwarded_port_is_dialled_from_inside_and_outside(
    containers: Machines,
) -> None:
    containers.coordinator("head")
    pub = containers.pub("c1", subscribers=2, **FORWARDED)
    check("direct", pub, containers.sub("c2"), containers.sub("w1"))


def test_g4_a_container_without_one_dials_its_subscribers_and_its_publishers(
    containers: Machines,
) -> None:
    containers.coordinator("head")
    check("reverse", containers.pub("c2"), containers.sub("w1"))
    check("direct", containers.pub("w1"), containers.sub("c2"))


def test_g4_containers_of_two_hosts_meet_at_a_relay(containers: Machines) -> None:
    lab = containers.lab
    lab.network("other", "172.18.0.")  # the same addresses, as it happens
    lab.host("gateway2", lan=3, other=1)
    lab.translates("gateway2", "other", "lan", "10.77.1.30")
    lab.host("d1", other=2)
    lab.route("d1", "default", "via", "172.18.0.1")
    containers.coordinator("head", "--relay")
    check("relay", containers.pub("c1"), containers.sub("d1"))


def test_g4_a_wrong_advertise_is_not_the_only_way(containers: Machines) -> None:
    containers.coordinator("head")
    nobody, other_port = "10.77.1.99:7800", "10.77.1.20:7801"
    check("direct", containers.pub("w1", advertise=nobody), containers.sub("head"))
    check("reverse", containers.pub("c1", advertise=other_port), containers.sub("w1"))


# --- changes under flow -------------------------------------------------------------------------

QUICK: dict[str, Any] = {"ping_interval": 0.5, "ping_timeout": 1.5, "connect_timeout": 1.0}


def test_g5_the_way_changes_under_flow_and_nothing_is_lost(firewalls: Machines) -> None:
    lab = firewalls.lab
    firewalls.coordinator("head", "--relay")
    pub = firewalls.flow("w2", **QUICK)
    sub = firewalls.sub("w1", **QUICK)
    assert (pub.out(), sub.out()) == ("direct", "direct")
    lab.cut("w1", "10.77.1.12")
    lab.cut("w2", "10.77.1.11")
    assert sub.out() == "relay"
    lab.mend("w1", "10.77.1.12")
    lab.mend("w2", "10.77.1.11")
    assert sub.out() == "direct"
    check_flow(pub, sub)


def test_g5_a_relay_that_is_killed_is_replaced_by_one_elsewhere(firewalls: Machines) -> None:
    for host in ("w1", "w2"):
        firewalls.lab.lets_out_only(host)
    firewalls.lab.host("w3", lan=13)
    firewalls.coordinator("head")
    relay = firewalls.relay("head")
    pub = firewalls.flow("w2", **QUICK)
    sub = firewalls.sub("w1", **QUICK)
    assert (pub.out(), sub.out()) == ("relay", "relay")
    relay.kill()
    firewalls.relay("w3")
    check_flow(pub, sub)


def test_g7_a_coordinator_that_is_killed_starts_elsewhere_under_its_name(
    firewalls: Machines,
) -> None:
    lab, hub = firewalls.lab, "hub:7700"
    lab.names(hub="10.77.1.1")
    before = firewalls.coordinator("head")
    pub = firewalls.flow("w2", hub, **QUICK)
    sub = firewalls.sub("w1", hub, **QUICK)
    assert (pub.out(), sub.out()) == ("direct", "direct")
    before.kill()
    lab.names(hub="10.77.1.12")
    firewalls.coordinator("w2")
    late = firewalls.run(
        *("head", "pubsub", "tail", "t", "-n", "1", "--format", "repr"), coordinator=hub
    )
    assert late.out().startswith("(")
    check_flow(pub, sub)


def test_g5_a_path_that_takes_less_in_one_packet_than_before_is_no_trouble(
    two_networks: Machines,
) -> None:
    lab = two_networks.lab
    lab.forwards("head")
    lab.route("w1", "default", "via", "10.77.1.1")
    lab.route("w2", "default", "via", "10.77.2.1")
    two_networks.coordinator("head")
    pub = two_networks.flow("w1", rate=2_000, size=3_000, **QUICK)
    sub = two_networks.sub("w2", FAR, **QUICK)
    assert (pub.out(), sub.out()) == ("direct", "direct")
    lab.run("head", "ip", "link", "set", "far", "mtu", "1280")
    two_networks.until("w1", "mtu 1280", "ip", "route", "get", "10.77.2.12")
    check_flow(pub, sub)


def test_g5_a_path_that_swallows_large_packets_is_gone_around(firewalls: Machines) -> None:
    """As where a router says nothing of what it cannot pass on."""
    firewalls.coordinator("head", "--relay")
    pub = firewalls.flow("w2", rate=2_000, size=3_000, **QUICK)
    sub = firewalls.sub("w1", **QUICK)
    assert (pub.out(), sub.out()) == ("direct", "direct")
    firewalls.lab.swallows_large("w1", "10.77.1.12")
    assert sub.out() == "relay"
    check_flow(pub, sub)
