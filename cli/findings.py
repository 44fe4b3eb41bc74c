"""What `pubsub doctor` says: from what was seen, which sentence, and what to do about it.

Nothing here asks anybody anything: each function gets what was seen, and returns findings. (It is
long because it is a list of sentences: whoever changes one looks in one place.)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from pubsub.config import Address, is_loopback, is_wildcard
from pubsub.core.topics import is_pattern, matches
from pubsub.faces.foreign import foreign_wildcard
from pubsub.stats.near import near
from pubsub.support.about import plain

__all__ = [
    "Fault",
    "Finding",
    "Met",
    "Seen",
    "beside",
    "called",
    "coordinator",
    "credentials",
    "descriptors",
    "environment",
    "foreign_topics",
    "is_alone",
    "known",
    "needs_relay",
    "not_reached",
    "peer",
    "places",
    "relays",
    "same",
    "stream",
    "topic",
    "who_is",
]

VARIABLES = {
    "PUBSUB_COORDINATOR": True,
    "PUBSUB_ADVERTISE": True,
    "PUBSUB_KEY_FILE": True,
    "PUBSUB_KEY": False,
    "PUBSUB_CERT": True,
    "PUBSUB_INSECURE": True,
    "PUBSUB_ENCRYPT": True,
}
"""Those that mean something, and whether they may be shown."""
SPARE = 128
"""File descriptors that a program should have beside one for each peer."""
ENDS_SOON = 7 * 86400.0
"""Seconds before the end of a certificate in which that is worth a word."""
CLOCK = 1.0
"""Seconds by which two clocks may differ, or a message may be late, before that is said."""
WAYS = {
    "": "not reached now",
    "unix": "dialled at its Unix socket",
    "direct": "dialled",
    "reverse": "it has dialled us",
    "relay": "met at a relay",
}


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "note", "wrong"]
    """``note``: it may be as it should be, or not."""
    text: str
    way_out: str = ""
    """What to do; empty: nothing."""


class Met(NamedTuple):
    """Who answered where somebody was dialled."""

    at: Address
    peer_id: str
    info: Mapping[str, Any]
    seconds: float
    """For a small question and its answer."""
    settle: float = 0.0
    large: bool = True
    """Whether a large question was answered too."""


class Fault(NamedTuple):
    """Why somebody was dialled in vain."""

    at: Address
    kind: str
    """``own`` (trouble of this side, with its way out), ``auth``, ``large`` (only what is small is
    answered), ``mute`` (a connection, and no answer), ``name`` (it cannot be resolved),
    ``foreign`` (another program), ``other``, ``refused``, ``silent`` (not even a connection)."""
    text: str


PASSABLE = ("other", "refused", "silent")
"""What a firewall or address translation does, on purpose: another way may go past it."""
TELLING = ("own", "auth", "large", "mute", "name", "foreign", "other", "refused", "silent")
"""What is wrong with several addresses of one peer: the first of these says the most."""


def _telling(each: Met | Fault) -> int:
    if isinstance(each, Met):
        return -2 if each.large else -1
    return TELLING.index(each.kind)


class Seen(NamedTuple):
    """A stream, as a Sub saw it for a while."""

    publisher: str
    topic: str
    state: str
    way: str
    failed: Sequence[str]
    """Why better ways failed, or all of them."""
    seconds: float
    """How long that was; of one that is not attached, for how long it has not been."""
    taken: int
    lost: int
    delay: float | None = None
    """Seconds from the last put to the arrival, by the two clocks; None: nothing came."""
    silent: float | None = None
    """Seconds since the last message was put, if one has come."""


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def who_is(info: Mapping[str, Any]) -> str:
    """A process in words, by what it says of itself."""
    name = plain(info.get("name"), 100) or "a program without a name"
    return f"{name} (pid {info.get('pid') or '?'} on {plain(info.get('hostname'), 100) or '?'})"


def _each(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# --- this process -----------------------------------------------------------------------


def environment(environ: Mapping[str, str], versions: str) -> list[Finding]:
    """The variables that are set."""
    ours = {name: value for name, value in sorted(environ.items()) if name.startswith("PUBSUB_")}
    said = []
    for name, value in ours.items():
        if name in VARIABLES:
            said.append(f"{name}={plain(value)}" if VARIABLES[name] else f"{name} is set")
    variables = ", ".join(said) or "no variable of it is set"
    found = [Finding("environment", "ok", f"{versions}; {variables}")]
    for name in ours:
        if name not in VARIABLES:
            text = f"{name} means nothing here"
            known = {variable.removeprefix("PUBSUB_"): variable for variable in VARIABLES}
            near = get_close_matches(name.removeprefix("PUBSUB_"), known, 1)
            if near:
                found.append(Finding("environment", "wrong", text, f"write {known[near[0]]}"))
            else:  # it may be another program's
                found.append(Finding("environment", "note", text))
    return found


def credentials(
    kind: str,
    value: str = "",
    source: str = "",
    *,
    keys: Sequence[str] = (),
    name: str = "",
    until: float = 0.0,
    rights: str = "",
    now: float = 0.0,
) -> Finding:
    """Those in use. `keys`: their ids, which are no secret; the rest is of a certificate."""
    subject = "credentials"
    if kind == "insecure":
        return Finding(
            subject,
            "note",
            f"none ({source}): everybody who can connect may read and publish everything",
            "make a key by `pubsubd key new FILE`, and set PUBSUB_KEY_FILE to it everywhere",
        )
    if kind == "cert":
        end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until))
        text = f"the certificate of {name!r} ({value}), until {end}: it {rights}"
        if until - now < ENDS_SOON:
            days = f"{(until - now) / 86400:.1f}"
            way_out = f"renew it: `pubsubd cert issue DIR {name}`, and copy the file again"
            return Finding(subject, "note", f"{text}; it ends in {days} days", way_out)
        return Finding(subject, "ok", text)
    if kind == "secret":
        return Finding(
            subject, "ok", "the secret of this user: for their programs on this machine alone"
        )
    first, *more = keys
    also = f", and trusts also {', '.join(more)}" if more else ""
    where = source if kind == "key" else f"{source} {value}"
    return Finding(subject, "ok", f"uses the key {first} ({where}){also}")


def descriptors(soft: int, hard: int, peers: int = 0) -> Finding:
    """How many files this process may have open; ``-1``: any number."""
    subject, needed = "file descriptors", SPARE + peers
    text = f"a program may have {soft:,}" if soft >= 0 else "a program may have any number"
    if soft < 0 or soft >= needed:
        return Finding(subject, "ok", text)
    with_peers = f", and {_each(peers, 'peer')} are known" if peers > 1 else ""
    most = max(4096, 2 * needed)
    way_out = f"`ulimit -n {most}` before the programs start"
    if 0 <= hard < most:
        way_out = (
            f"more than {hard:,} needs the administrator: nofile in /etc/security/limits.conf, or "
            f"LimitNOFILE= of the service"
        )
    return Finding(
        subject, "wrong", f"{text} in this shell; each connection takes one{with_peers}", way_out
    )


# --- coordinators -----------------------------------------------------------------------

_PORT = "let what comes to port {port} pass the firewall between"
_ALIKE = (
    "run `pubsub doctor` as that program is run, and compare the lines on credentials: both ends "
    "need the same key, or certificates of one CA"
)


def coordinator(
    named: Address, found: Sequence[Met | Fault], *, version: str, configured: bool
) -> list[Finding]:
    """One coordinator, dialled at all addresses that its name means."""
    subject = f"coordinator {named}"
    met = any(isinstance(each, Met) for each in found)
    findings = []
    for each in found:
        at = f"at {each.at.host}, " if each.at != named else ""
        if isinstance(each, Met):
            findings.append(_coordinator(subject, at, each, version))
        elif met:
            findings.append(
                Finding(subject, "note", f"{at}{each.text}; another of its addresses answers")
            )
        elif each.kind == "refused" and not configured:
            findings.append(
                Finding(
                    subject,
                    "note",
                    "none runs for this user, so no other program is there that uses the default",
                    "start the others; the first of them starts a coordinator in itself. For those "
                    "that were told another one, set PUBSUB_COORDINATOR here, too",
                )
            )
        else:
            findings.append(Finding(subject, "wrong", f"{at}{each.text}", _to_coordinator(each)))
    return findings


def _coordinator(subject: str, at: str, met: Met, version: str) -> Finding:
    theirs = plain(met.info.get("library"), 40) or "?"
    text = f"{at}{who_is(met.info)}, version {theirs}, answers in {_ms(met.seconds)}"
    if not met.large:
        return Finding(subject, "wrong", f"{text}; {_LARGE}", _MTU)
    if met.settle >= 1:
        return Finding(
            subject,
            "note",
            f"{text}; it has just started, and peers may be coming back to it for another "
            f"{met.settle:.0f} s",
            "ask again then",
        )
    if theirs != version:
        return Finding(subject, "note", f"{text}, where this one is {version}")
    return Finding(subject, "ok", text)


_LARGE = "but where much is sent at once, nothing comes back"
_MTU = (
    "large packets are lost on the way: let ICMP (“fragmentation needed”) pass the firewall, or "
    "lower the MTU of this machine to what the way carries (`ip link set dev … mtu 1400`)"
)


def _to_coordinator(fault: Fault) -> str:
    if fault.kind == "refused":
        way_out = (
            "start one there with `pubsubd coordinator`, or set PUBSUB_COORDINATOR to where it runs"
        )
        if not is_loopback(fault.at.host):
            way_out += "; one without --host listens for its own machine only"
        return way_out
    if fault.kind in ("foreign", "other"):
        return "set PUBSUB_COORDINATOR to where it runs"
    return _dialled_in_vain(fault)


def _dialled_in_vain(fault: Fault) -> str:
    if fault.kind == "large":
        return _MTU
    if fault.kind == "silent":
        return f"see that the machine is up, and {_PORT.format(port=fault.at.port)}"
    if fault.kind == "mute":
        return "the program hangs or was stopped (Ctrl-Z, a debugger): look at it there"
    if fault.kind == "auth":
        return _ALIKE
    if fault.kind == "name":
        return "write it as /etc/hosts or the name server has it, or as a number"
    return ""


def same(found: Sequence[tuple[Address, Sequence[Met | Fault]]]) -> list[Finding]:
    """Addresses that were named as two coordinators, and are one."""
    by_id: dict[str, list[str]] = {}
    for named, answers in found:
        for peer_id in {each.peer_id for each in answers if isinstance(each, Met)}:
            by_id.setdefault(peer_id, []).append(str(named))
    return [
        Finding(
            "coordinators",
            "note",
            f"{' and '.join(names)} are one coordinator",
            "name it once: two are of use where one of them may go",
        )
        for names in by_id.values()
        if len(names) > 1
    ]


def beside(met: Met, known: Iterable[str], named: Iterable[Address]) -> Finding | None:
    """A coordinator where programs look that were told of none; None: it is one of those that are
    in use."""
    if met.peer_id in set(known):
        return None
    return Finding(
        f"coordinator {met.at}",
        "wrong",
        f"another one, {who_is(met.info)}, is on this machine beside what is configured: programs "
        "that were told of none meet there, and nobody else",
        f"set PUBSUB_COORDINATOR={','.join(map(str, named))} for all programs of this machine, and "
        "start that one anew",
    )


# --- peers ------------------------------------------------------------------------------


def places(row: Mapping[str, Any], zone: str = "") -> list[Address]:
    """Where a peer or relay is, as its row says. An address that counts on one network only is in
    that zone, where its coordinator is."""
    found = []
    for way in row.get("ways") or [row.get("address") or ""]:
        host, _, port = str(way).rpartition(":")
        host = host.strip("[]")
        if zone and host.lower().startswith("fe80:") and "%" not in host:
            host = f"{host}%{zone}"
        if port.isdecimal():
            found.append(Address(host, int(port)))
    return found


def peer(row: Mapping[str, Any], found: Sequence[Met | Fault], *, exposed: bool) -> Finding:
    """A peer that a coordinator lists, dialled at all its addresses but those that are of use on
    another machine only.

    Parameters:
        exposed: programs of several machines use the coordinator.
    """
    subject = who_is(row)
    ways = list(map(str, places(row)))
    away = row.get("state") == "away"
    if not ways:
        text = "cannot be dialled (listen=False): it dials others, or meets them at a relay"
        return Finding(subject, "note" if away else "ok", f"{_AWAY}; {text}" if away else text)
    hosts = [place.host for place in places(row)]
    if wild := next((way for way, host in zip(ways, hosts, strict=True) if is_wildcard(host)), ""):
        return Finding(
            subject,
            "wrong",
            f"it says that it is reached at {wild}, which is no address that anybody can dial",
            "start it with Peer(advertise=…) or PUBSUB_ADVERTISE and the address of its machine",
        )
    met = [each for each in found if isinstance(each, Met)]
    faults = [each for each in found if isinstance(each, Fault)]
    alone = is_alone(row, exposed=exposed)
    for each in met:
        if not each.large:
            text = f"answers at {each.at} in {_ms(each.seconds)}, {_LARGE}"
            return Finding(subject, "wrong", text, _MTU)
    strangers = [each for each in met if not each.peer_id.startswith(str(row.get("peer_id")))]
    if alone:
        return Finding(
            subject,
            "note",
            f"listens on loopback ({', '.join(ways)}): no program of another machine can dial it, "
            "and it gets through to those alone that it can dial itself",
            "start it with PUBSUB_COORDINATOR=the address by which other machines reach the "
            "coordinator, or with Peer(host=…)",
        )
    if strangers and len(strangers) == len(met):
        other = strangers[0]
        return Finding(
            subject,
            "wrong",
            f"at {other.at} answers another one, {who_is(other.info)}",
            "its PUBSUB_ADVERTISE or Peer(advertise=…) names the address of another program: "
            "correct that",
        )
    not_reached = "; ".join(f"at {fault.at} {fault.text}" for fault in faults)
    telling = sorted(faults, key=_telling)
    way_out = _to_peer(telling[0]) if telling else ""
    if met:
        best = min((each for each in met if each not in strangers), key=lambda each: each.seconds)
        text = f"answers at {best.at} in {_ms(best.seconds)}"
        passable = all(fault.kind in PASSABLE for fault in faults)
        if faults and not (passable and faults == [found[-1]]):  # the last is its own, of inside
            if passable:
                way_out = f"nothing, if programs elsewhere reach it there; else {way_out}"
            return Finding(subject, "note", f"{text}; {not_reached}", way_out)
        return Finding(subject, "ok", f"{text}; {not_reached}" if faults else text)
    if away:
        return Finding(subject, "note", f"{_AWAY}; {not_reached}")
    if all(fault.kind in PASSABLE for fault in faults) and not all(map(is_loopback, hosts)):
        text = f"{not_reached}: it is met if it can dial this machine, or at a relay"
        way_out = f"nothing, if its streams come (`pubsub doctor TOPIC`); else {way_out}"
        return Finding(subject, "note", text, way_out)
    return Finding(subject, "wrong", not_reached, way_out)


def is_alone(row: Mapping[str, Any], *, exposed: bool) -> bool:
    """Whether a peer listens on loopback, where programs of several machines use its
    coordinator."""
    hosts = [place.host for place in places(row)]
    return exposed and bool(hosts) and all(map(is_loopback, hosts))


def not_reached(finding: Finding, seen: Sequence[Seen]) -> Finding:
    """What is said of a peer that listens on loopback, with its streams that do not come for that:
    one line for one cause."""
    each = ", ".join(f"{s.topic!r} is {s.state}, for {s.seconds:.0f} s now" for s in seen)
    return finding._replace(state="wrong", text=f"{finding.text}: {each}")


_AWAY = "has lost its coordinator a moment ago, or was killed"


def called(publisher: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """What the lines on peers call whom `sub.publishers` calls by the address that others are told
    first. (One that has none is called so there, too.)"""
    place, number, n = publisher.rpartition("#")
    for row in rows:
        if place == str(next(iter(places(row)), "")):
            return f"{who_is(row)}{number}{n}"
    return publisher


def needs_relay(found: Sequence[Met | Fault]) -> bool:
    """Whether a relay may be the only way to a peer that was dialled so."""
    return all(
        not each.large if isinstance(each, Met) else each.kind not in ("own", "auth", "mute")
        for each in found
    )


def _to_peer(fault: Fault) -> str:
    if fault.kind in ("refused", "foreign", "other", "name"):
        return (
            "see that its PUBSUB_ADVERTISE, or Peer(host=…, advertise=…), names an address at "
            "which it can be dialled from here"
        )
    if fault.kind == "silent":
        return (
            f"{_PORT.format(port=fault.at.port)} (Peer(port=…) makes it a fixed one), or see that "
            "its PUBSUB_ADVERTISE names an address that leads there from here"
        )
    return _dialled_in_vain(fault)


def relays(
    found: Sequence[tuple[Mapping[str, Any], Sequence[Met | Fault]]], *, needed: bool
) -> list[Finding]:
    """Those that the coordinators know, each dialled at all its addresses: one that answers is
    enough, the others may be on networks that this machine is not on.

    Parameters:
        needed: there is a peer to which a relay may be the only way.
    """
    findings = []
    for row, answers in found:
        each = min(answers, key=_telling)
        subject = f"relay {plain(row.get('name'), 100) or each.at}"
        if isinstance(each, Met):
            count = _each(row.get("circuits") or 0, "circuit")
            text = f"answers at {each.at} in {_ms(each.seconds)}, with {count}"
            if each.large:
                findings.append(Finding(subject, "ok", text))
            else:
                findings.append(Finding(subject, "wrong", f"{text}; {_LARGE}", _MTU))
        else:
            text = "; ".join(f"at {a.at} {a.text}" for a in answers if isinstance(a, Fault))
            way_out = _dialled_in_vain(each) or (
                f"see that it runs, and that {each.at} leads there from here"
            )
            findings.append(Finding(subject, "wrong", text, way_out))
    if not found and needed:
        findings.append(
            Finding(
                "relays",
                "note",
                "there is none: two programs of which neither can dial the other do not meet",
                "start one where both can dial it: `pubsubd relay`; one that runs has not got "
                "through to the coordinator, and says there why",
            )
        )
    return findings


# --- topics -----------------------------------------------------------------------------


def foreign_topics(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Subscriptions that look as if they were another system's wildcards, and get nothing."""
    return [
        Finding(f"topic {row['topic']}", "wrong", f"somebody waits for it in vain: {sentence}")
        for row in rows
        if not row["publishers"] and (sentence := foreign_wildcard(row["topic"]))
    ]


def topic(name: str, told: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Finding]:
    """Who publishes and subscribes a topic or pattern, by the rows of each coordinator."""
    subject = f"topic {name}"
    counts = {where: known(name, rows) for where, rows in told.items()}
    pubs = max((pubs for pubs, _ in counts.values()), default=0)
    subs = max((subs for _, subs in counts.values()), default=0)
    foreign = foreign_wildcard(name)
    found = [Finding(subject, "wrong", foreign)] if foreign and not pubs else []
    if pubs and subs and not any(pubs and subs for pubs, subs in counts.values()):
        publish, subscribe = (
            " and ".join(where for where, count in counts.items() if count[n]) for n in (0, 1)
        )
        found.append(
            Finding(
                subject,
                "wrong",
                f"{publish} knows who publishes it and {subscribe} who subscribes it: they never "
                "meet",
                "give the same PUBSUB_COORDINATOR to all of them",
            )
        )
    elif pubs:
        who = f"published by {pubs:,}, subscribed by {subs:,}"
        found.append(Finding(subject, "ok" if subs else "note", who))
    elif not foreign:
        text = f"nobody publishes it (subscribed by {subs:,})"
        way_out = (
            "start what publishes it, with the same coordinator and credentials as here; if it "
            "runs, it hangs, was stopped, or uses another coordinator"
        )
        if near := _near(name, told):
            way_out = f"perhaps {near} was meant"
        found.append(Finding(subject, "wrong", text, way_out))
    return found


def known(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many publish and subscribe a topic or pattern, by the rows of a coordinator."""
    for row in rows:
        if row["topic"] == name:
            return row["publishers"], row["subscribers"]
    if is_pattern(name):
        own = [row for row in rows if not is_pattern(row["topic"]) and matches(name, row["topic"])]
        return sum(row["publishers"] for row in own), 0
    wide = [row for row in rows if is_pattern(row["topic"]) and matches(row["topic"], name)]
    return 0, sum(row["subscribers"] for row in wide)


def _near(name: str, told: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Topics that are published and are written like that one."""
    published = {
        row["topic"]
        for rows in told.values()
        for row in rows
        if row["publishers"] and not is_pattern(row["topic"])
    }
    return " or ".join(map(repr, near(name, published)))


def stream(seen: Seen) -> Finding:
    """A stream, as a Sub of ours saw it."""
    subject = f"stream {seen.topic} of {seen.publisher}"
    failed = f" ({'; '.join(seen.failed)})" if seen.failed else ""
    if seen.state != "attached":
        return Finding(
            subject,
            "wrong",
            f"{seen.state}, for {seen.seconds:.0f} s now{failed}",
            "the lines above on its process and on relays say what to do",
        )
    count = _each(seen.taken, "message")
    text = f"{WAYS[seen.way]}{failed}; {count} in {seen.seconds:.0f} s, lost {seen.lost:,}"
    if seen.silent is not None:
        text += f", the last one {_ms(max(0.0, seen.silent))} ago"
    if seen.delay is not None:
        text += f", {_ms(max(0.0, seen.delay))} after it was put"
        if seen.delay < -CLOCK:
            return Finding(
                subject,
                "note",
                f"{text}; the clock of its machine is {-seen.delay:.1f} s ahead of this one",
                "set both clocks (chrony, ntpd): certificates and `sent_at` depend on them",
            )
        if seen.delay > CLOCK:
            return Finding(
                subject,
                "note",
                f"{text}: messages wait on the way, or the clocks differ by that",
                "look at `pub.subscribers` there, and at both clocks",
            )
    if seen.lost:
        return Finding(subject, "note", text, "see `reason` of the Gaps in `sub.messages()`")
    if not seen.taken:
        return Finding(subject, "note", f"{text}: it is silent, as long as nothing is put on it")
    return Finding(subject, "ok", text)
