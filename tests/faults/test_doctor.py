"""`pubsub doctor` on several machines: for each fault that the network between them can have, that
it is named. And what the other commands that look see of machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests.cli.processes import Running, Start
from tests.faults.hosts import Hosts, hosts, ip

__all__ = ["hosts"]  # the fixture

HEAD = "10.77.1.1:7700"
PUT = """
import itertools, sys, time
from pubsub import Pub
with Pub("t") as pub:
    print("ready", flush=True)
    for n in itertools.count():
        pub.put(n)
        time.sleep(0.05)
"""
Run = Callable[..., Running]
Doctor = Callable[..., dict[str, list[str]]]


@pytest.fixture(params=["key", "open"])
def run(
    request: pytest.FixtureRequest,
    start: Start,
    hosts: Hosts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a command on a machine, with TLS between them or with nothing; a coordinator is on
    ``head``."""
    more = []
    if request.param == "key":
        pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
        write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
        monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))
    else:
        monkeypatch.delenv("PUBSUB_KEY_FILE", raising=False)
        monkeypatch.setenv("PUBSUB_INSECURE", "1")
        more = ["--insecure"]

    def run(host: str, *args: str, coordinator: str | None = HEAD, **env: str) -> Running:
        return start(*args, coordinator=coordinator, prefix=hosts.on(host), **env)

    head = run("head", "pubsubd", "coordinator", "--host", "0.0.0.0", *more, coordinator=None)
    assert head.err().startswith("pubsubd: coordinator on 0.0.0.0:7700")
    return run


def publish(run: Run, host: str, **more: str | None) -> str:
    """A publisher there; returns what it is called."""
    process = run(host, "python", "-c", PUT, **more)
    assert process.out() == "ready"
    return f"-c (pid {process.process.pid} on "


def doctor(run: Run, host: str, *args: str) -> dict[str, list[str]]:
    """What it says there, by state."""
    process = run(host, "pubsub", "doctor", "--json", *args)
    found = json.loads(process.rest_of_output())
    said: dict[str, list[str]] = {"ok": [], "note": [], "wrong": []}
    for row in found:
        text = f"{row['subject']}: {row['text']} → {row['way_out']}"
        said[row["state"]].append(text)
    assert process.wait() == bool(said["wrong"]), said
    return said


def one(lines: list[str], begin: str) -> str:
    """The line that begins so."""
    (line,) = (line for line in lines if line.startswith(begin))
    return line


def test_machines_with_nothing_wrong(run: Run) -> None:
    who = publish(run, "w2")
    said = doctor(run, "w1", "t")
    assert said["wrong"] == []
    assert "answers at 10.77.1.12:" in one(said["ok"], who)
    assert "dialled; " in one(said["ok"], f"stream t of {who}")


def test_one_that_listens_on_loopback_only(run: Run) -> None:
    who = publish(run, "head", coordinator="127.0.0.1:7700")
    for host in ("w1", "head"):
        line = one(doctor(run, host)["note"], who)
        assert "listens on loopback (127.0.0.1:" in line
        assert "no program of another machine can dial it" in line
        assert "Peer(host=…)" in line


def test_one_that_listens_on_loopback_is_one_line_where_its_topic_is_asked_for(
    run: Run, hosts: Hosts
) -> None:
    hosts.lets_out_only("w1")  # else it would dial that one
    who = publish(run, "head", coordinator="127.0.0.1:7700")
    said = doctor(run, "w1", "t")
    (line,) = said["wrong"]
    assert line.startswith(who)
    assert "listens on loopback (127.0.0.1:" in line
    assert "'t' is unreachable, for " in line
    assert not any("relay" in line or who in line for line in said["note"])
    there = doctor(run, "head", "t")  # from where it is dialled, it is a note
    assert there["wrong"] == []
    assert "listens on loopback" in one(there["note"], who)
    assert one(there["ok"], f"stream t of {who}")


def test_a_wrong_advertise(run: Run, request: pytest.FixtureRequest) -> None:
    who = publish(run, "w2", PUBSUB_ADVERTISE="10.77.1.11:1")
    said = doctor(run, "w1")
    if "[key]" in request.node.name:
        line = one(said["note"], who)
        assert "at 10.77.1.11:1 nothing listens there (connection refused)" in line
        assert "PUBSUB_ADVERTISE" in line
        return
    # who has shown nothing has nobody dial another machine; said where the program runs
    assert "10.77.1.11:1" not in one(said["ok"], who)
    process = run("w2", "pubsub", "doctor", PUBSUB_ADVERTISE="10.77.1.11:1")
    out = process.rest_of_output().decode()
    assert process.wait() == 1
    assert "WRONG  what a program is told here: " in out
    assert "nobody is told to dial 10.77.1.11:1" in out


@pytest.mark.parametrize("run", ["key"], indirect=True)
def test_a_peer_that_advertises_names(run: Run) -> None:
    who = publish(run, "w2", PUBSUB_ADVERTISE="w2,nobody")
    line = one(doctor(run, "w1")["note"], who)
    assert "answers at 10.77.1.12:" in line
    assert "at nobody:" in line
    assert "its name cannot be resolved" in line


def test_a_coordinator_beside_the_configured_one(run: Run) -> None:
    tail = run("w1", "pubsub", "tail", "t", coordinator=None)  # no coordinator: it becomes one
    publish(run, "w1", coordinator=None)
    tail.out()  # a message has come
    line = one(doctor(run, "w1")["wrong"], "coordinator 127.0.0.1:7700: another one, ")
    assert "is on this machine beside what is configured" in line
    assert f"set PUBSUB_COORDINATOR={HEAD} for all programs" in line
    assert doctor(run, "w2")["wrong"] == []  # it is not on that one


def test_a_way_that_loses_large_packets(run: Run, hosts: Hosts) -> None:
    who = publish(run, "w2")
    for host in ("w1", "w2"):  # packets as they are on a cable
        ip("-n", hosts.namespace(host), "link", "set", "e0", "gso_max_segs", "1")
    assert doctor(run, "w1")["wrong"] == []
    ip("-n", hosts.namespace("br"), "link", "set", "w2", "mtu", "1000")  # and says nothing
    line = one(doctor(run, "w1")["wrong"], who)
    assert "large packets are lost on the way" in line
    assert "lower the MTU" in line


def test_a_machine_that_drops_what_comes(run: Run, hosts: Hosts) -> None:
    who = publish(run, "w2")
    ip("-n", hosts.namespace("w2"), "route", "add", "blackhole", "10.77.1.11/32")
    said = doctor(run, "w1", "t")
    line = one(said["note"], who)
    assert "no answer within 3 s, not even a refusal" in line
    assert "pass the firewall between" in line
    (line,) = said["wrong"]  # no way is left
    assert line.startswith(f"stream t of {who}")


def test_a_firewall_that_lets_out_is_nothing_wrong(run: Run, hosts: Hosts) -> None:
    who = publish(run, "w2")
    hosts.lets_out_only("w2")
    said = doctor(run, "w1", "t")
    assert said["wrong"] == []
    assert "it is met if it can dial this machine, or at a relay" in one(said["note"], who)
    assert "it has dialled us" in one(said["ok"], f"stream t of {who}")


def test_between_machines_delays_are_shown_with_what_is_known_of_the_clocks(run: Run) -> None:
    publish(run, "w2")
    process = run("w1", "pubsub", "delay", "t", "-n", "2", "--json")
    *seconds, account = map(json.loads, process.rest_of_output().splitlines())
    assert process.wait() == 0
    assert [row["messages"] > 0 for row in seconds] == [True, True]
    assert account["all"]["p50"] < 1
    assert account["clocks"] == []  # they have one clock, and it was asked for
    line = json.loads(run("w1", "pubsub", "info", "t", "--json").rest_of_output())["publishers"][0]
    assert line["address"].startswith("10.77.1.12:")
