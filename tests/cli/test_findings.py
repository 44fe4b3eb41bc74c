"""Every sentence of `pubsub doctor`: from what was seen, what is said, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from pubsub.cli import findings
from pubsub.cli.findings import Fault, Finding, Met, Seen
from pubsub.config import Address

AT = Address("10.0.0.1", 7700)
HEAD = {"name": "head", "pid": 7, "hostname": "h1", "library": "1.0"}
OTHER = {"name": "another", "pid": 8, "hostname": "h2"}
NOW = 1_800_000_000.0
DAY = 86_400.0


def met(at: Address = AT, peer_id: str = "abcdefgh12", **more: Any) -> Met:
    return Met(at, peer_id, HEAD, 0.0012, **more)


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def check(finding: Finding, state: str, text: str, way_out: str = "") -> None:
    assert (finding.state, text in finding.text) == (state, True), finding
    assert way_out in finding.way_out, finding
    assert bool(way_out) == bool(finding.way_out), finding


# --- this process -----------------------------------------------------------------------


def test_the_environment_is_shown_but_for_the_key() -> None:
    environ = {"PUBSUB_KEY": "psk1secret", "PUBSUB_ADVERTISE": "a\x1b[2J", "HOME": "/root"}
    finding = only(findings.environment(environ, "pubsubd 1.0"))
    check(finding, "ok", "pubsubd 1.0; PUBSUB_ADVERTISE=a\\x1b[2J, PUBSUB_KEY is set")
    assert "secret" not in str(finding)
    check(only(findings.environment({}, "pubsubd 1.0")), "ok", "no variable of it is set")


def test_a_variable_that_means_nothing_is_wrong_and_the_right_one_is_named() -> None:
    _, finding = findings.environment({"PUBSUB_CORDINATOR": "x:1"}, "")
    check(finding, "wrong", "PUBSUB_CORDINATOR means nothing here", "write PUBSUB_COORDINATOR")
    _, finding = findings.environment({"PUBSUB_EMULATOR_HOST": ""}, "")
    check(finding, "note", "PUBSUB_EMULATOR_HOST means nothing here")


def test_credentials() -> None:
    check(findings.credentials("secret"), "ok", "the secret of this user")
    insecure = findings.credentials("insecure", "1", "PUBSUB_INSECURE")
    check(insecure, "note", "none (PUBSUB_INSECURE): everybody", "pubsubd key new")
    key = findings.credentials("key_file", "/k", "PUBSUB_KEY_FILE", keys=["aa", "bb"])
    check(key, "ok", "uses the key aa (PUBSUB_KEY_FILE /k), and trusts also bb")
    key = findings.credentials("key", "the key itself", "PUBSUB_KEY", keys=["aa"])
    check(key, "ok", "uses the key aa (PUBSUB_KEY)")
    assert "itself" not in key.text


@pytest.mark.parametrize(("days", "state"), [(30.0, "ok"), (2.0, "note")])
def test_a_certificate_and_until_when(days: float, state: str) -> None:
    finding = findings.credentials(
        "cert", "/c", name="lamp", until=NOW + days * DAY, rights="may publish 'a'", now=NOW
    )
    assert "the certificate of 'lamp' (/c), until 2027-" in finding.text
    assert "it may publish 'a'" in finding.text
    check(finding, state, "", "pubsubd cert issue DIR lamp" if state == "note" else "")


def test_file_descriptors() -> None:
    check(findings.descriptors(1024, 4096), "ok", "a program may have 1,024")
    check(findings.descriptors(-1, -1, 10**6), "ok", "any number")
    low = findings.descriptors(64, 524_288)
    check(low, "wrong", "a program may have 64 in this shell; each connection", "`ulimit -n 4096`")
    many = findings.descriptors(1024, -1, 3000)
    check(many, "wrong", "and 3,000 peers are known", "`ulimit -n 6256`")
    bound = findings.descriptors(64, 256)
    check(bound, "wrong", "a program may have 64", "more than 256 needs the administrator")


# --- coordinators -----------------------------------------------------------------------


def coordinator(*found: Met | Fault, named: Address = AT, configured: bool = True) -> list[Finding]:
    return findings.coordinator(named, found, version="1.0", configured=configured)


def test_a_coordinator_that_answers() -> None:
    finding = only(coordinator(met()))
    assert finding.subject == "coordinator 10.0.0.1:7700"
    check(finding, "ok", "head (pid 7 on h1), version 1.0, answers in 1.2 ms")
    named = only(coordinator(met(), named=Address("head", 7700)))
    check(named, "ok", "at 10.0.0.1, head (pid 7")


def test_a_coordinator_that_answers_and_something_is_the_matter() -> None:
    started = only(coordinator(met(settle=3.0)))
    check(started, "note", "it has just started, and peers may be coming", "ask again")
    other = only(findings.coordinator(AT, [met()], version="2.0", configured=True))
    check(other, "note", "version 1.0, answers in 1.2 ms, where this one is 2.0")
    large = only(coordinator(met(large=False)))
    check(large, "wrong", "where much is sent at once, nothing comes back", "MTU")


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("refused", "one without --host listens for its own machine only"),
        ("silent", "let what comes to port 7700 pass the firewall"),
        ("mute", "hangs or was stopped"),
        ("large", "lower the MTU"),
        ("auth", "compare the lines on credentials"),
        ("name", "/etc/hosts"),
        ("foreign", "set PUBSUB_COORDINATOR to where it runs"),
        ("other", "set PUBSUB_COORDINATOR to where it runs"),
        ("own", ""),
    ],
)
def test_a_coordinator_that_is_not_reached(kind: str, way_out: str) -> None:
    check(only(coordinator(Fault(AT, kind, "it is so"))), "wrong", "it is so", way_out)


def test_a_coordinator_that_is_not_there() -> None:
    here = Fault(Address("127.0.0.1", 7700), "refused", "nothing listens there")
    finding = only(coordinator(here, named=here.at))
    check(finding, "wrong", "nothing listens there", "pubsubd coordinator")
    assert "--host" not in finding.way_out
    default = only(coordinator(here, named=here.at, configured=False))
    check(default, "note", "none runs for this user", "the first of them starts a coordinator")


def test_a_coordinator_of_which_one_address_answers() -> None:
    other = Fault(Address("fd00::1", 7700), "silent", "no answer")
    _, finding = coordinator(met(), other, named=Address("head", 7700))
    check(finding, "note", "at fd00::1, no answer; another of its addresses answers")


def test_one_coordinator_under_two_names() -> None:
    head, number = Address("head", 7700), AT
    finding = only(findings.same([(head, [met()]), (number, [met()])]))
    check(finding, "note", "head:7700 and 10.0.0.1:7700 are one coordinator", "name it once")
    assert findings.same([(head, [met()]), (number, [met(peer_id="other")])]) == []
    assert findings.same([(head, [met(), met(Address("fd00::1", 7700))])]) == []


def test_a_coordinator_beside_the_configured_one() -> None:
    here = Met(Address("127.0.0.1", 7700), "x", OTHER, 0.001)
    assert findings.beside(here, ["x"], [AT]) is None
    finding = findings.beside(here, ["y"], [AT])
    assert finding is not None
    check(
        finding,
        "wrong",
        "another one, another (pid 8 on h2), is on this machine beside what is configured",
        "PUBSUB_COORDINATOR=10.0.0.1:7700 for all programs",
    )


# --- peers ------------------------------------------------------------------------------


def peer(*found: Met | Fault, exposed: bool = True, **row: Any) -> Finding:
    listed = {**HEAD, "peer_id": "abcdefgh", "ways": [str(AT)], "state": "connected", **row}
    return findings.peer(listed, found, exposed=exposed)


def test_a_peer_that_answers() -> None:
    finding = peer(met())
    assert finding.subject == "head (pid 7 on h1)"
    check(finding, "ok", "answers at 10.0.0.1:7700 in 1.2 ms")
    check(peer(met(large=False)), "wrong", "nothing comes back", "MTU")
    check(peer(ways=[]), "ok", "cannot be dialled (listen=False)")
    gone = "has lost its coordinator a moment ago, or was killed; cannot be dialled"
    check(peer(ways=[], state="away"), "note", gone)


def test_where_a_peer_is_said_to_be() -> None:
    row = {"address": "h:1", "ways": ["h:1", "[fe80::1]:2", "[fe80::1%x]:3", "nonsense"]}
    assert findings.places(row) == [("h", 1), ("fe80::1", 2), ("fe80::1%x", 3)]
    assert findings.places(row, "e0")[1:] == [("fe80::1%e0", 2), ("fe80::1%x", 3)]
    assert findings.places({"address": "h:1"}) == [("h", 1)]
    assert findings.places({"address": "", "ways": []}) == []


def test_a_peer_that_answers_at_one_of_its_addresses() -> None:
    text = "answers at 10.0.0.1:7700 in 1.2 ms; at 10.0.0.9:1 no answer"
    fault = Fault(Address("10.0.0.9", 1), "silent", "no answer")
    # a forwarded port, seen from outside, where its own address leads nowhere; and from inside
    check(peer(met(), fault), "ok", text)
    check(peer(fault, met()), "note", text, "nothing, if programs elsewhere reach it there; else")
    check(peer(met(), fault, fault), "note", text, "port 1 ")
    check(peer(met(), fault._replace(kind="auth")), "note", text, "compare the lines")


@pytest.mark.parametrize("way", ["0.0.0.0:1", "[::]:1"])
def test_a_peer_that_advertises_a_wildcard(way: str) -> None:
    check(peer(ways=[way]), "wrong", f"reached at {way}, which is no address", "advertise=")


def test_a_peer_on_loopback_where_others_use_the_coordinator() -> None:
    here = Address("127.0.0.1", 1)
    finding = peer(met(here), ways=[str(here)])
    check(finding, "note", "listens on loopback (127.0.0.1:1)", "Peer(host=…)")
    check(peer(met(here), ways=[str(here)], exposed=False), "ok", "answers at 127.0.0.1:1")


def test_another_program_at_the_address_of_a_peer() -> None:
    finding = peer(Met(AT, "stranger", OTHER, 0.001))
    text = "at 10.0.0.1:7700 answers another one, another (pid 8 on h2)"
    check(finding, "wrong", text, "PUBSUB_ADVERTISE")


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("refused", "PUBSUB_ADVERTISE, or Peer(host=…, advertise=…)"),
        ("foreign", "PUBSUB_ADVERTISE, or Peer(host=…, advertise=…)"),
        ("name", "PUBSUB_ADVERTISE, or Peer(host=…, advertise=…)"),
        ("other", "PUBSUB_ADVERTISE, or Peer(host=…, advertise=…)"),
        ("silent", "let what comes to port 7700 pass the firewall"),
        ("mute", "hangs or was stopped"),
        ("large", "lower the MTU"),
        ("auth", "compare the lines on credentials"),
        ("own", ""),
    ],
)
def test_a_peer_that_is_not_reached(kind: str, way_out: str) -> None:
    fault = Fault(AT, kind, "it is so")
    state = "note" if kind in ("refused", "other", "silent") else "wrong"  # another way may do
    check(peer(fault), state, "at 10.0.0.1:7700 it is so", way_out)
    check(peer(fault, ways=["127.0.0.1:1"], exposed=False), "wrong", "it is so", way_out)
    away = peer(fault, state="away")
    check(away, "note", "a moment ago, or was killed; at 10.0.0.1:7700 it is so")


def test_of_several_troubles_the_one_that_says_most_has_the_way_out() -> None:
    faults = [Fault(AT, kind, kind) for kind in ("silent", "refused", "auth")]
    check(peer(*faults), "wrong", "silent; at", "credentials")


def test_who_may_need_a_relay() -> None:
    assert findings.needs_relay([])  # it does not listen
    silent, hangs = Fault(AT, "silent", ""), Fault(AT, "mute", "")
    assert findings.needs_relay([silent, met(large=False)])
    assert not findings.needs_relay([silent, met()])
    assert not findings.needs_relay([silent, hangs])


def test_a_stream_is_of_the_process_that_is_named_above() -> None:
    rows = [{**HEAD, "ways": ["h:1", "h:2"]}, {**OTHER, "ways": [], "peer_id": "abc"}]
    assert findings.called("h:1#2", rows) == "head (pid 7 on h1)#2"
    assert findings.called("another (pid 8 on h2)#1", rows) == "another (pid 8 on h2)#1"
    assert findings.called("h:2#1", rows) == "h:2#1"


def test_relays() -> None:
    row = {"name": "r1", "circuits": 2}
    finding = only(findings.relays([(row, [met()])], needed=False))
    assert finding.subject == "relay r1"
    check(finding, "ok", "answers at 10.0.0.1:7700 in 1.2 ms, with 2 circuits")
    large = only(findings.relays([(row, [met(large=False)])], needed=True))
    check(large, "wrong", "nothing comes back", "MTU")
    gone = only(findings.relays([(row, [Fault(AT, "refused", "nothing listens")])], needed=True))
    check(gone, "wrong", "at 10.0.0.1:7700 nothing listens", "see that it runs")
    mute = only(findings.relays([(row, [Fault(AT, "mute", "no answer")])], needed=True))
    check(mute, "wrong", "no answer", "hangs or was stopped")
    # of its addresses, one on a network of this machine is enough
    apart = Fault(Address("10.9.9.9", 1), "other", "Network is unreachable")
    check(only(findings.relays([(row, [apart, met()])], needed=True)), "ok", "answers at 10.0.0.1")
    both = only(findings.relays([(row, [apart, Fault(AT, "mute", "no answer")])], needed=True))
    check(both, "wrong", "10.9.9.9:1 Network is unreachable; at 10.0.0.1:7700 no", "hangs")
    assert findings.relays([], needed=False) == []
    check(only(findings.relays([], needed=True)), "note", "there is none", "pubsubd relay")


# --- topics -----------------------------------------------------------------------------


def row(topic: str, publishers: int, subscribers: int) -> dict[str, Any]:
    return {"topic": topic, "publishers": publishers, "subscribers": subscribers}


def test_a_foreign_wildcard_for_which_somebody_waits() -> None:
    rows = [row("sensors/#", 0, 1), row("c/+", 1, 1), row("**", 0, 1), row("plain", 0, 1)]
    finding = only(findings.foreign_topics(rows))
    assert finding.subject == "topic sensors/#"
    check(finding, "wrong", "somebody waits for it in vain: 'sensors/#': '#' is no wildcard here")


def test_a_topic_and_its_counts() -> None:
    rows = [row("a/b", 2, 3), row("a/*", 1, 1), row("q/*", 0, 4)]
    check(only(findings.topic("a/b", {"c": rows})), "ok", "published by 2, subscribed by 3")
    check(only(findings.topic("a/*", {"c": rows})), "ok", "published by 1, subscribed by 1")
    check(only(findings.topic("**", {"c": rows})), "note", "published by 2, subscribed by 0")
    nobody = only(findings.topic("q/x", {"c": rows}))
    check(nobody, "wrong", "nobody publishes it (subscribed by 4)", "start what publishes it")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("sensors/kitchen/tmp", "'sensors/kitchen/temp'"),
        ("Sensors/Kitchen/Temp", "'sensors/kitchen/temp'"),
        ("sensors.kitchen.temp", "'sensors/kitchen/temp'"),
        ("sensors/kitchen/temp/", "'sensors/kitchen/temp'"),
    ],
)
def test_a_topic_that_was_written_otherwise(asked: str, meant: str) -> None:
    rows = [row("sensors/kitchen/temp", 1, 0), row("sensors/kitchen/tmq", 0, 1), row("x", 1, 0)]
    finding = only(findings.topic(asked, {"c": rows}))
    check(finding, "wrong", "nobody publishes it", f"perhaps {meant} was meant")


def test_a_foreign_wildcard_that_is_asked_for() -> None:
    finding = only(findings.topic("a.>", {"c": []}))
    check(finding, "wrong", "'a.>': '>' is no wildcard here, write 'a/**'")


def test_a_topic_whose_both_sides_use_different_coordinators() -> None:
    told = {"one": [row("t", 1, 0)], "two": [row("t", 0, 1)]}
    finding = only(findings.topic("t", told))
    check(
        finding,
        "wrong",
        "one knows who publishes it and two who subscribes it: they never meet",
        "the same PUBSUB_COORDINATOR",
    )
    assert only(findings.topic("t", {**told, "three": [row("t", 1, 1)]})).state == "ok"


def seen(**more: Any) -> Finding:
    usual: dict[str, Any] = {
        "state": "attached",
        "way": "direct",
        "failed": [],
        "taken": 5,
        "lost": 0,
        "delay": 0.0004,
        "silent": 0.1,
    }
    return findings.stream(Seen("h:1#1", "t", seconds=2.0, **{**usual, **more}))


def test_a_stream() -> None:
    assert seen().subject == "stream t of h:1#1"
    text = "dialled; 5 messages in 2 s, lost 0, the last one 100.0 ms ago, 0.4 ms after it was put"
    check(seen(), "ok", text)
    check(seen(way="reverse"), "ok", "it has dialled us; 5 messages")
    relay = seen(way="relay", failed=["direct: h:1: no", "reverse: no"])
    check(relay, "ok", "met at a relay (direct: h:1: no; reverse: no); 5 messages")
    check(seen(lost=3), "note", "lost 3", "`reason` of the Gaps")
    check(seen(taken=0, delay=None, silent=None), "note", "0 messages in 2 s, lost 0: it is silent")
    check(seen(delay=-5.0), "note", "its machine is 5.0 s ahead of this one", "set both clocks")
    check(seen(delay=5.0), "note", "messages wait on the way, or the clocks differ", "both clocks")
    gone = seen(state="unreachable", failed=["direct: h:1: no"])
    check(gone, "wrong", "unreachable, for 2 s now (direct: h:1: no)", "above on its process")
