"""`pubsub doctor`: for each fault that one machine can have, that it is named, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from pubsub import Peer
from pubsub.cli.asking import ask
from pubsub.config import Settings, parse_address
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.support.host import Host, on_host
from pubsub.trust.credentials import credentials_from
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests.cli.processes import LONG, Result, Start, daemon, execute
from tests.integration.support import free_port

PUT = """
import itertools, sys, time
from pubsub import Pub
with Pub(sys.argv[1]) as pub:
    print("ready", flush=True)
    for n in itertools.count():
        pub.put(n)
        time.sleep(0.05)
"""


def rows(result: Result, state: str) -> dict[str, str]:
    """What it says of what is in that state: the text, and what to do."""
    found = json.loads(result.out)
    assert result.code == any(row["state"] == "wrong" for row in found), result.err
    return {
        row["subject"]: f"{row['text']} → {row['way_out']}"
        for row in found
        if row["state"] == state
    }


def wrong(result: Result, subject: str) -> str:
    """The one thing that is wrong, which is this."""
    found = rows(result, "wrong")
    assert list(found) == [subject], found
    return found[subject]


def doctor(*args: str, coordinator: str | None = None, **env: str) -> Result:
    return execute("pubsub", "doctor", "--json", *args, coordinator=coordinator, **env)


def test_nothing_is_wrong(start: Start, coordinator: str, topic: str) -> None:
    pub = start("python", "-c", PUT, topic, coordinator=coordinator)
    assert pub.out() == "ready"
    with Peer(coordinator, name="a subscriber") as peer:
        sub = peer.sub(topic)
        result = execute("pubsub", "doctor", topic, coordinator=coordinator)
        del sub
    assert result.code == 0, result.text
    assert result.err.startswith("pubsub: nothing is wrong, as far as can be seen from here")
    assert ("see the notes" in result.err) == ("note " in result.text)
    assert not [line for line in result.lines if line.startswith("WRONG")]
    ok = "\n".join(line for line in result.lines if line.startswith("ok "))
    assert f"PUBSUB_COORDINATOR={coordinator}" in ok
    assert f"ok     a subscriber (pid {os.getpid()} on " in ok
    assert f"ok     topic {topic}: published by 1, subscribed by 1" in ok
    assert f"ok     stream {topic} of -c (pid {pub.process.pid} on " in ok
    assert "ok     a Pub and a Sub of its own: a message goes there and back in " in ok
    pub.interrupt()
    _, _, errors = pub.end()
    # the one who was asked has nothing to say of that but its own Ctrl-C
    assert not [line for line in errors if line.startswith("pubsub")], errors


def test_it_says_it_all_as_json_too(coordinator: str) -> None:
    result = doctor(coordinator=coordinator)
    assert (result.code, result.err) == (0, "")
    for row in json.loads(result.out):
        assert list(row) == ["subject", "state", "text", "way_out"]
        assert row["state"] in ("ok", "note")


def test_no_coordinator() -> None:
    where = f"127.0.0.1:{free_port()}"
    said = wrong(doctor("t", coordinator=where), f"coordinator {where}")
    assert said.startswith("nothing listens there (connection refused) → start one there with")


def test_none_is_configured_and_none_runs(tmp_path: Path) -> None:
    result = doctor(XDG_CONFIG_HOME=str(tmp_path))  # a user of whom nobody else has the secret
    (said,) = (s for s in rows(result, "note").values() if "none runs for this user" in s)
    assert result.code == 0
    assert "the first of them starts a coordinator" in said
    assert "a Pub and a Sub of its own" in rows(result, "ok")


def test_something_else_listens_there(coordinator: str) -> None:
    with Peer(coordinator) as peer:
        sub = peer.sub("t")
        said = wrong(doctor(coordinator=peer.address), f"coordinator {peer.address}")
        del sub
    assert "this is a peer, not a coordinator → set PUBSUB_COORDINATOR" in said


@pytest.mark.by_hand
def test_the_wrong_key(start: Start, tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("one", "two")]
    for path in keys:
        write_file(path, f"{Key.new().text()}\n".encode())
    _, where = daemon(start, 0, "--key-file", str(keys[0]))
    result = doctor("--key-file", str(keys[1]), coordinator=where)
    said = wrong(result, f"coordinator {where}")
    theirs, mine = (Key.parse(path.read_text().strip()).id for path in keys)
    assert f"it does not have the key {theirs}" in said or f"key {mine}" in said
    assert "compare the lines on credentials" in said
    assert f"uses the key {mine}" in rows(result, "ok")["credentials"]


@pytest.mark.by_hand
def test_a_key_of_the_environment_is_used_and_not_shown(start: Start) -> None:
    key = Key.new()
    _, where = daemon(start, 0)
    result = doctor(coordinator=where, PUBSUB_KEY=key.text())
    assert key.text() not in result.text
    assert rows(result, "ok")["credentials"] == f"uses the key {key.id} (PUBSUB_KEY) → "
    assert "PUBSUB_KEY is set" in rows(result, "ok")["environment"]


@pytest.mark.by_hand
def test_an_expired_certificate(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    from pubsub.trust.issuing import init, issue

    with on_host(Host(wall_clock=lambda: time.time() - 10 * 86400)):
        init(tmp_path / "ca")
        lamp = issue(tmp_path / "ca", "lamp", EVERYTHING, days=1)
    said = wrong(doctor("--cert", str(lamp.path), coordinator="127.0.0.1:1"), "credentials")
    assert "expired at " in said
    assert "renew it" in said


@pytest.mark.by_hand
def test_what_a_certificate_may_not_ask_is_said(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    from pubsub.trust.issuing import init, issue

    init(tmp_path / "ca")
    head = issue(tmp_path / "ca", "head", Rights(coordinator=True), days=30)
    lamp = issue(tmp_path / "ca", "lamp", Rights(["a/*", "x/**"], ["x/*/**"]), days=30)
    mute = issue(tmp_path / "ca", "mute", Rights((), ["x/**"]), days=1)
    _, where = daemon(start, 0, "--cert", str(head.path))
    result = execute("pubsub", "doctor", "--cert", str(lamp.path), coordinator=where)
    assert result.code == 0, result.text
    assert "the certificate of 'lamp'" in result.text
    for what in ("peers", "relays"):
        assert f"its {what} could not be asked for: " in result.text
    assert "pubsubd cert issue … --list" in result.text
    assert "ok     a Pub and a Sub of its own: a message goes there" in result.text
    result = doctor("a/b", "--cert", str(mute.path), coordinator=where)
    assert "it ends in 1.0 days → renew it" in rows(result, "note")["credentials"]
    assert "not tried out" in rows(result, "note")["a Pub and a Sub of its own"]
    assert "'mute' may not subscribe 'a/b'" in rows(result, "wrong")["topic a/b"]


def test_a_topic_that_is_spelt_wrong(coordinator: str) -> None:
    with Peer(coordinator) as peer:
        pub = peer.pub("sensors/kitchen/temp")
        said = wrong(doctor("sensors/kitchen/tmep", coordinator=coordinator), WRONG_TOPIC)
        del pub
    assert said.startswith("nobody publishes it (subscribed by 0) → perhaps 'sensors/kitchen/temp'")


WRONG_TOPIC = "topic sensors/kitchen/tmep"


@pytest.mark.parametrize("asked", [[], ["sensors/kitchen"]])
def test_a_foreign_wildcard(start: Start, asked: list[str]) -> None:
    _, where = daemon(start)
    with Peer(where) as peer:
        sub, pub = peer.sub("sensors/#"), peer.pub("sensors/kitchen")
        said = wrong(doctor(*asked, coordinator=where), "topic sensors/#")
        del sub, pub
    assert "somebody waits for it in vain: 'sensors/#': '#' is no wildcard here" in said
    assert "write 'sensors/**'" in said


@pytest.mark.skipif(os.name != "posix", reason="needs limits of POSIX")
def test_few_file_descriptors(start: Start, coordinator: str) -> None:
    low = ("sh", "-c", 'ulimit -n 60; exec "$@"', "sh")
    process = start("pubsub", "doctor", "--json", coordinator=coordinator, prefix=low)
    out = process.rest_of_output()
    said = wrong(Result(process.wait(), out, ""), "file descriptors")
    assert "a program may have 60 in this shell" in said


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals of POSIX")
def test_a_publisher_that_hangs(start: Start, topic: str) -> None:
    _, where = daemon(start)
    pub = start("python", "-c", PUT, topic, coordinator=where)
    assert pub.out() == "ready"
    pub.signal(signal.SIGSTOP)
    began = time.monotonic()
    result = execute("pubsub", "doctor", topic, coordinator=where)
    assert time.monotonic() - began < 25  # each wait is bounded
    assert result.code == 1
    (line,) = (line for line in result.lines if "takes the connection, and does not" in line)
    assert line.startswith(f"WRONG  -c (pid {pub.process.pid} on ")
    assert "hangs or was stopped (Ctrl-Z, a debugger)" in result.text
    assert f"WRONG  stream {topic} of -c (pid {pub.process.pid} on " in result.text
    assert "relays: " not in result.text  # none would help
    assert "pubsub: waiting for the peers that do not answer (at most " in result.err


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(5, "s ahead of this one → set both clocks"), (-5, "messages wait on the way, or the clocks")],
)
def test_a_publisher_whose_clock_is_wrong(
    start: Start, coordinator: str, topic: str, seconds: int, says: str
) -> None:
    clock = f"on_host(Host(wall_clock=lambda: time.time() + {seconds}))"
    code = f"import time\nfrom pubsub.support.host import *\nwith {clock}:\n    exec({PUT!r})"
    pub = start("python", "-c", code, topic, coordinator=coordinator)
    assert pub.out() == "ready"
    found = rows(doctor(topic, coordinator=coordinator), "note")
    (said,) = (text for subject, text in found.items() if subject.startswith(f"stream {topic} "))
    assert says in said


@pytest.mark.by_hand
def test_a_relay(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    key = ("--key-file", str(tmp_path / "key"))
    _, where = daemon(start, 0, *key)
    relay = start("pubsubd", "relay", "--port", "0", *key, coordinator=where)
    at = relay.err().removeprefix("pubsubd: relay on ").split(",")[0]
    wait_for_relay(where, *key)
    found = rows(doctor(*key, coordinator=where), "ok")
    (said,) = (text for subject, text in found.items() if subject.startswith("relay "))
    assert said.startswith(f"answers at {at} in ")
    assert said.endswith("with 0 circuits → ")
    relay.signal(signal.SIGSTOP)
    found = rows(doctor(*key, coordinator=where), "wrong")
    (said,) = found.values()
    assert said.startswith(f"at {at} takes the connection, and does not answer within 3 s → the pr")


def wait_for_relay(where: str, *key: str) -> None:
    """Until the coordinator knows of it."""
    guard = credentials_from(Settings(key_file=key[-1]), {}).guard()
    deadline = time.monotonic() + LONG
    while not ask(parse_address(where), "relays", guard):
        assert time.monotonic() < deadline, "no relay is known"
        time.sleep(0.02)


def test_several_coordinators_of_which_each_side_knows_another(start: Start, topic: str) -> None:
    (_, one), (_, two) = daemon(start), daemon(start)
    with Peer(one) as here, Peer(two) as there:
        pub, sub = here.pub(topic), there.sub(topic)
        said = wrong(doctor(topic, coordinator=f"{one},{two}"), f"topic {topic}")
        del pub, sub
    assert f"{one} knows who publishes it and {two} who subscribes it: they never meet" in said


def test_what_it_is_given_and_cannot_use() -> None:
    assert doctor("a//b").code == 2
    result = doctor(PUBSUB_KEY_FILE="/nowhere/key")
    assert "/nowhere/key" in wrong(result, "credentials")
