"""What is known of a peer and of each of its Pubs and Subs, also of those that have gone too soon,
and what is told of one to another.

Pure, as the `registry` is that keeps them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from pubsub.config import Address, is_loopback
from pubsub.coordinator.relays import ways_for
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.topics import TopicIndex, is_pattern, matches
from pubsub.wire.messages import ExpectedSub, MatchedPub, Refused, Register, WayRow

__all__ = [
    "NOWHERE",
    "Departed",
    "Peer",
    "Registration",
    "in_order",
    "pubs_for",
    "refused",
    "row",
]

CALLS = 32
"""Calls that are passed to one publisher at once, as when it has just come, or its network has."""
CALLS_A_SECOND = 8
"""Those that it is passed from then on: each has it dial somebody."""
SAME_CALL = 0.5
"""Seconds until the same one is passed again: a caller that never stops leaves room for others.
(Who has called in vain waits longer by itself.)"""
MAX_DEPARTED = 10_000
"""Pubs that have come and gone while peers come back that are remembered for these."""
NOWHERE = Address("", 0)
"""Where a peer reached the coordinator whose connection does not tell that."""


@dataclass(slots=True, eq=False)
class Peer:
    """A peer, as it said who it is and where it can be dialled, and what it has registered."""

    peer_id: str
    who: tuple[str, bytes]  # what only it can show
    ways: tuple[WayRow, ...] = ()
    listens: bool = False
    host_id: str = ""
    local: bool = False  # only its own machine can dial it
    machine: str = ""  # the address from which it came; empty: on the coordinator's machine
    met_at: Address = NOWHERE  # where it reached the coordinator
    connected: bool = False
    session: int = 0  # counts its connections
    moved: int = 0  # the session in which its ways, or its machine, last changed
    registrations: dict[int, Registration] = field(default_factory=dict)
    pubs: int = 0  # how many of the registrations are Pubs
    segments: int = 0  # of their topics and patterns
    stale: int = 0  # how many of them were not registered in this session
    name: str = ""
    hostname: str = ""
    pid: int = 0
    rights: Rights = EVERYTHING
    calls: float = CALLS  # that it may still be passed, at that time
    counted_at: float = 0.0
    callers: dict[tuple[str, bool], float] = field(default_factory=dict)  # when each was passed

    def describe(self, info: dict[str, Any]) -> None:
        name, hostname, pid = info.get("name"), info.get("hostname"), info.get("pid")
        self.name = name if isinstance(name, str) else ""
        self.hostname = hostname if isinstance(hostname, str) else ""
        self.pid = pid if isinstance(pid, int) else 0

    def may_be_called(self, caller: tuple[str, bool], now: float) -> bool:
        """Whether it is to be bothered once more by that one (and whether to meet it at a relay),
        and count that."""
        while self.callers and next(iter(self.callers.values())) <= now - SAME_CALL:
            del self.callers[next(iter(self.callers))]
        if caller in self.callers:
            return False
        more = (now - self.counted_at) * CALLS_A_SECOND
        self.calls, self.counted_at = min(CALLS, self.calls + more), now
        if self.calls < 1:
            return False
        self.calls -= 1
        self.callers[caller] = now
        return True

    def in_words(self) -> str:
        """Which process it is, for people who are to find it."""
        name = self.name[:100] or "a program without a name"
        return f"{name} (pid {self.pid} on {self.hostname[:100] or '?'})"


class Registration:
    """A Pub or a Sub of a peer."""

    __slots__ = (
        "id",
        "is_pub",
        "limited",
        "observer",
        "peer",
        "renewed",
        "revision",
        "rights",
        "session",
        "topic",
    )

    def __init__(self, peer: Peer, message: Register, topic: str, revision: int) -> None:
        self.peer = peer
        self.id = message.id
        self.is_pub = message.role == "pub"
        self.topic = sys.intern(topic)  # often the topic of many
        self.renewed = message.renewed
        self.observer = message.observer
        self.revision = revision
        self.session = peer.session
        """The session of its peer in which it was last registered."""
        self.rights = peer.rights
        self.limited = is_pattern(topic) and "**" not in self.rights.subscribe
        """Whether it may match what it has no right to. (No topic that was registered does.)"""

    def may_hear(self, topic: str) -> bool:
        """Whether a Sub that matches a topic may be told of it."""
        return not self.limited or self.rights.may_subscribe(topic)

    def is_current(self) -> bool:
        return self.peer.connected and self.session == self.peer.session

    def is_same(self, message: Register) -> bool:
        # `renewed` is left out: what counts is how this coordinator first heard of it.
        asked = (message.topic, message.role == "pub", message.observer)
        return (self.topic, self.is_pub, self.observer) == asked


def refused(peer: Peer, message: Register, topic: str) -> Refused | None:
    """Why a peer has no right to what it registers; None: it has. A pattern is refused only where
    nothing could ever match both."""
    rights = peer.rights
    if message.role == "pub":
        verb, allowed = "publish", rights.may_publish(topic)
    elif is_pattern(topic):
        verb, allowed = "subscribe", bool(rights.part(topic))
    else:
        verb, allowed = "subscribe", rights.may_subscribe(topic)
    if allowed:
        return None
    who = repr(peer.who[0][:100]) if peer.who[0] else "this peer"
    shown = repr(topic if len(topic) <= 200 else f"{topic[:200]}…")
    reason = f"{who} may not {verb} {shown}: it {rights.may(verb, topic)}"
    return Refused(message.id, "auth", reason if len(reason) <= 1024 else f"{reason[:1023]}…")


def row(of: Registration, to: Registration) -> MatchedPub | ExpectedSub:
    """What is told of one registration to another that it matches."""
    peer = of.peer
    if of.is_pub:
        ways = ways_for(peer.ways, peer.machine, to.peer.machine)
        return MatchedPub(
            *(peer.peer_id, ways, peer.listens, peer.host_id, of.id, of.topic, _is_before(to, of)),
            "" if ways else peer.in_words(),
        )
    apart = to.peer.local and peer.machine != to.peer.machine
    elsewhere = ""
    # it cannot dial the publisher, nor that one it; one of both has dialled an address that means
    # the same to all
    if apart and not ways_for(peer.ways, peer.machine, to.peer.machine):
        elsewhere = str(to.peer.met_at if is_loopback(peer.met_at.host) else peer.met_at)
    return ExpectedSub(peer.peer_id, of.id, _is_before(of, to), of.observer, elsewhere)


def _is_before(sub: Registration, pub: Registration) -> bool:
    """Whether a Sub is due the first message of a Pub.

    One that another coordinator process had already acknowledged is older than a Pub that is new
    now, whichever of them came to this coordinator first.
    """
    return sub.revision < pub.revision or (sub.renewed and not pub.renewed)


_by_revision = attrgetter("revision")


def in_order(found: set[Registration]) -> list[Registration]:
    """The oldest first."""
    return sorted(found, key=_by_revision) if len(found) > 1 else list(found)


def pubs_for(sub: Registration, pubs: TopicIndex[Registration]) -> list[Registration]:
    """Those of these Pubs that a Sub matches and has a right to, the oldest first."""
    topic = sub.topic
    if not sub.limited:
        return in_order(pubs.match(topic))
    # what it has a right to may be little of what it matches
    parts = [pubs.match(part) for part in sub.rights.part(topic)]
    return in_order({pub for part in parts for pub in part if matches(topic, pub.topic)})


class Departed:
    """New Pubs that have come and gone while peers come back, `MAX_DEPARTED` at most."""

    def __init__(self) -> None:
        self._pubs: TopicIndex[Registration] = TopicIndex()
        self._count = 0

    def add(self, gone: Registration) -> None:
        """One has gone, of whatever kind."""
        if gone.is_pub and not gone.renewed and self._count < MAX_DEPARTED:
            self._count += 1
            self._pubs.add(gone.topic, gone)

    def due_to(self, sub: Registration) -> list[Registration]:
        """Those that a Sub that comes back has missed."""
        # where its peer has another one under its number, that one is meant by it
        return [pub for pub in pubs_for(sub, self._pubs) if pub.id not in pub.peer.registrations]
