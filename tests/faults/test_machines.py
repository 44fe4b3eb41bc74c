"""README's section on several machines, followed to the letter on several machines: everything
arrives, or both sides say why it cannot."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cli.processes import Running, Start
from tests.faults.hosts import HOSTS, Hosts, hosts

__all__ = ["hosts"]  # the fixture

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("### Several machines")[2].partition("\n#")[0]

PUT = 200

PUBLISH = """
import sys
from pubsub import Peer, Pub
who, put, expected, *host = sys.argv[1:]
peer = Peer(host=host[0]) if host else None
with Pub("t", peer=peer) if peer else Pub("t") as pub:
    pub.wait_for_subscribers(int(expected), timeout=30)
    pub.put_many([who, n] for n in range(int(put)))
"""
SUBSCRIBE = """
import sys
from collections import Counter
from pubsub import Peer, Sub
peer = Peer(listen=False) if sys.argv[2:] else None
with Sub("t", peer=peer) if peer else Sub("t") as sub:
    print("ready", flush=True)
    got = Counter(sub.get(timeout=30)[0] for _ in range(int(sys.argv[1])))
    print(sorted(got.items()), "lost", sub.lost, flush=True)
"""
OUT_OF_REACH = (
    r"the publisher \S.* \(pid \d+ on \S+\) on 't' can be reached on its own machine only, because "
    r"it listens on loopback: start it with PUBSUB_COORDINATOR=10\.77\.1\.1:7700, or with "
    r"Peer\(host=…\)"
)
CANNOT_COME = (
    r"a subscriber on another machine wants 't', and this Peer can be reached on its own machine "
    r"only, because it listens on 127\.0\.0\.1: "
)


def command(pattern: str) -> str:
    """The line of README's section that has this form."""
    (found,) = re.findall(rf"^    {pattern}$", SECTION, re.MULTILINE)
    return str(found)


class Machines:
    """Programs on the machines."""

    def __init__(self, start: Start, hosts: Hosts) -> None:
        self.start = start
        self.hosts = hosts

    def run(self, host: str, *args: str, coordinator: str | None) -> Running:
        return self.start(*args, coordinator=coordinator, prefix=self.hosts.on(host))

    def coordinator(self, line: str) -> str:
        """Start it on the head node; returns what it says how to reach it."""
        process = self.run("head", *line.split(), coordinator=None)
        assert process.err().endswith(":7700")
        return process.err()

    def sub(
        self, host: str, messages: int, coordinator: str | None, *, listen: bool = True
    ) -> Running:
        more = () if listen else ("unheard",)
        process = self.run(
            *(host, "python", "-c", SUBSCRIBE, str(messages), *more), coordinator=coordinator
        )
        assert process.out() == "ready"
        return process

    def tail(self, host: str, messages: int, coordinator: str | None) -> Running:
        return self.run(
            *(host, "pubsub", "tail", "t", "-n", str(messages), "--format", "repr"),
            coordinator=coordinator,
        )

    def pub(self, host: str, subscribers: int, coordinator: str | None, *more: str) -> Running:
        args = ("python", "-c", PUBLISH, host, str(PUT), str(subscribers), *more)
        return self.run(host, *args, coordinator=coordinator)


@pytest.fixture
def machines(
    start: Start, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machines:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = map(os.path.expanduser, command("(pubsubd key new .*)").split())  # as a shell does
    assert start(*words, coordinator=None).end()[0] == 0
    variable, _, path = command("export (PUBSUB_KEY_FILE=.*)").partition("=")
    monkeypatch.setenv(variable, os.path.expanduser(path))
    return Machines(start, hosts)


def check_all_arrives(machines: Machines, where: dict[str, str], *more: str) -> None:
    """Each machine publishes, and each subscribes, to all of them and in two ways."""
    total = PUT * len(HOSTS)
    subs = [machines.sub(host, total, where[host]) for host in HOSTS]
    tails = [machines.tail(host, total, where[host]) for host in HOSTS]
    pubs = [machines.pub(host, len(subs + tails), where[host], *more) for host in HOSTS]
    for sub in subs:
        assert sub.out() == f"{sorted((host, PUT) for host in HOSTS)} lost 0"
        assert sub.end() == (0, [], [])
    for tail in tails:
        code, out, err = tail.end()
        assert (code, len(out), err) == (0, total, [f"pubsub: received {total}, lost 0"])
    for pub in pubs:
        assert pub.end() == (0, [], [])


def test_g3_readme_followed_on_several_machines_loses_nothing(machines: Machines) -> None:
    variable = command(r"export (PUBSUB_COORDINATOR=\S+)")
    assert machines.coordinator(command("(pubsubd coordinator .*)")) == (
        f"pubsubd: programs on this machine and others reach it with {variable}"
    )
    check_all_arrives(machines, dict.fromkeys(HOSTS, variable.partition("=")[2]))
    check_all_arrives(machines, dict.fromkeys(HOSTS, "head:7700"))  # as it may be written, too


@pytest.mark.parametrize("peer_host", [(), ("0.0.0.0",), ("::",)])
def test_g3_machines_of_ipv4_and_ipv6_meet_and_wildcards_are_told_to_nobody(
    machines: Machines, peer_host: tuple[str, ...]
) -> None:
    line = machines.coordinator(command("(pubsubd coordinator .*)").replace("0.0.0.0", "::"))
    assert line.endswith("PUBSUB_COORDINATOR=10.77.1.1:7700; or at [fd77:1::1]:7700")
    where = {"head": "[fd77:1::1]:7700", "w1": "head6:7700", "w2": "head:7700"}
    check_all_arrives(machines, where, *peer_host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_g3_a_program_of_the_head_node_without_the_variable_is_heard_everywhere(
    machines: Machines, host: str
) -> None:
    machines.coordinator(command("(pubsubd coordinator .*)").replace("0.0.0.0", host))
    where = "head:7700"
    subs = [machines.sub("head", 2 * PUT, each) for each in (None, where)]
    subs.append(machines.sub("w1", 2 * PUT, where))  # which it dials
    pubs = [machines.pub("head", 0, None), machines.pub("w2", 0, where)]  # they wait for nobody
    for sub in subs:
        assert sub.out() == f"{[('head', PUT), ('w2', PUT)]} lost 0"
    for process in (*subs, *pubs):
        assert process.end() == (0, [], [])


def test_g3_where_it_cannot_be_heard_both_say_so_and_what_to_do(machines: Machines) -> None:
    machines.coordinator(command("(pubsubd coordinator .*)"))
    there = machines.sub("w1", PUT, "head:7700", listen=False)
    hidden = machines.pub("head", 1, None)
    assert re.fullmatch(OUT_OF_REACH, there.err())
    assert re.fullmatch(
        rf"{CANNOT_COME}start it with PUBSUB_COORDINATOR=10\.77\.1\.1:7700, or with Peer\(host=…\)",
        hidden.err(),
    )
    here = machines.sub("head", 2 * PUT, "head:7700")
    heard = machines.pub("w2", 2, "head:7700")
    assert here.out() == f"{[('head', PUT), ('w2', PUT)]} lost 0"
    assert there.out() == f"{[('w2', PUT)]} lost 0"
    for process in (there, here, hidden, heard):
        assert process.end()[0] == 0


def test_g3_the_commands_say_it_too(machines: Machines) -> None:
    machines.coordinator(command("(pubsubd coordinator .*)"))
    machines.hosts.lets_out_only("w1")
    machines.pub("head", 1, None)
    tail = machines.tail("w1", 1, "head:7700")
    assert re.fullmatch(f"pubsub: {OUT_OF_REACH}", tail.err())
    hidden = machines.run("head", "pubsub", "put", "t", "1", coordinator=None)
    assert hidden.end() == (
        *(1, []),
        ["pubsub: the subscribers of 't' did not come: nobody has received it"],
    )
    heard = machines.run("head", "pubsub", "put", "t", "1", coordinator="head:7700")
    assert heard.end() == (0, [], [])
    code, out, errors = tail.end()
    assert (code, out) == (4, ["1"])
    assert errors[-1] == (
        "pubsub: received 1, lost 0; 2 publishers were never reached: what they put is not known"
    )


def test_a_name_of_two_families_is_said_as_both_addresses_with_one_port(machines: Machines) -> None:
    process = machines.run(
        *("head", "pubsubd", "coordinator", "--host", "localhost", "--port", "0"), coordinator=None
    )
    line = process.err()
    said = line.removeprefix("pubsubd: coordinator on ").split(" and ")
    assert {address.rpartition(":")[0] for address in said} == {"127.0.0.1", "[::1]"}
    assert len({address.rpartition(":")[2] for address in said}) == 1
    for address in said:
        put = machines.run("head", "pubsub", "put", "t", "1", coordinator=address)
        assert put.end() == (0, [], ["pubsub: nobody was listening on 't'"])
