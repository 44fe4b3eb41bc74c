"""What a coordinator knows, and whom it tells what: peers, their Pubs and Subs, who matches whom.

Pure: every call takes the time, where it matters, and returns the messages to send. All state is
soft; peers bring it back after a restart. How it stays true:

- A registration is *current* when its peer is connected and has registered it on this very
  connection. Only for current ones are messages sent, so the first that a peer gets for a Pub or
  Sub on a connection is the whole answer to its REGISTER, and from then on each change.
- A registration whose peer is away, or is back and has not registered it again yet, still counts
  for all others: they are told of it, and that it is gone only when its time is up. A peer that
  was cut off for a moment thereby keeps its revisions, and nobody else hears of it.
- A revision orders all changes. Those of a Sub and a Pub say which was there first, and so
  whether the Sub is due the Pub's first message.

Work and messages of a call grow with the matches of what it changes, not with what is known. What
goes with one peer may be much: it is taken away piece by piece (`sweep`), and counts for all others
until its turn has come. What an address of loopback means: see docs/architecture.md, "Discovery".

A Pub and a Sub are told of each other only where both have the right to the topic; who has none to
what it registers is refused, and keeps its connection. A registration counts with the rights that
its peer had when it came: with others, it is another registration.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, TypeAlias

from pubsub.config import Address, is_loopback
from pubsub.coordinator.records import (
    NOWHERE,
    Departed,
    Peer,
    Registration,
    in_order,
    pubs_for,
    refused,
    row,
)
from pubsub.coordinator.relays import Relays, ways_for
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.topics import (
    STATS_STREAM,
    PatternIndex,
    TopicIndex,
    check_pattern,
    check_topic,
    is_pattern,
    is_reserved,
    matches,
)
from pubsub.errors import ProtocolError, TopicError
from pubsub.wire.messages import (
    Call,
    Called,
    Expect,
    Match,
    Refused,
    Register,
    WayRow,
)

__all__ = [
    "GRACE",
    "MAX_ALL",
    "MAX_PEERS",
    "MAX_REGISTRATIONS",
    "ROWS_PER_FRAME",
    "SWEEP",
    "Push",
    "Registry",
    "machine_of",
]

GRACE = 5.0
"""Seconds that the registrations of a peer outlive its connection."""
MAX_REGISTRATIONS = 200_000
"""Pubs and Subs that one peer may have."""
MAX_SEGMENTS = 1_000_000
"""Segments that their topics and patterns may have in all: each is an entry in an index."""
MAX_PEERS = 100_000
"""Peers that are known at once, with those that are away and those that are being taken away."""
MAX_ALL = 2_000_000
"""Pubs and Subs that all of them may have together."""
ROWS_PER_FRAME = 500
"""Rows that one MATCH or EXPECT may have, so that no long answer holds up the others."""
SWEEP = 250
"""Registrations, and matches of them, that one `sweep` takes away: a few milliseconds."""

Push: TypeAlias = tuple[str, Match | Expect | Refused]
"""The peer to send to, and the message."""
_Lost: TypeAlias = "dict[Registration, list[tuple[str, int]]]"
"""Who must be told of what is gone."""


class Registry:
    """Every call that may change what others should know returns the messages to send, in order.

    Args:
        grace: seconds that a peer's registrations are kept after its connection broke, and, once
            it is back, until it has registered them again (counted from the last one it did).
        max_registrations, max_segments, max_peers, max_all: see `MAX_REGISTRATIONS` and so on.
    """

    def __init__(
        self,
        grace: float = GRACE,
        max_registrations: int = MAX_REGISTRATIONS,
        max_segments: int = MAX_SEGMENTS,
        max_peers: int = MAX_PEERS,
        max_all: int = MAX_ALL,
    ) -> None:
        self.grace = grace
        self._max_registrations = max_registrations
        self._max_segments = max_segments
        self._max_peers = max_peers
        self._max_all = max_all
        self.relays = Relays()
        self._registered = 0  # by all peers
        self._revision = 0
        self._peers: dict[str, Peer] = {}
        self._pubs: TopicIndex[Registration] = TopicIndex()
        self._subs: PatternIndex[Registration] = PatternIndex()
        self._due: OrderedDict[Peer, float] = OrderedDict()
        """When each peer with something to lose loses it: the earliest first, because time never
        goes back and each is put last when it is set."""
        self._going: dict[str, tuple[Peer, Iterator[Registration]]] = {}
        """Peers that have left, with those of their registrations that are yet to be taken away."""
        self.settling = False
        """Whether peers may still come back to a coordinator that was there before this one."""
        self._departed = Departed()
        self._stale: deque[tuple[int, Registration]] = deque()
        """What was not registered again in time in this session of its peer, and is to be taken
        away, unless it comes again before its turn."""

    # --- connections --------------------------------------------------------------------

    def knows(self, peer_id: str, who: tuple[str, bytes]) -> bool:
        """Whether that is the one that came under this identity before, or nobody did."""
        peer = self._peers.get(peer_id)
        if peer is None and peer_id in self._going:  # and still counts for all others
            peer, _ = self._going[peer_id]
        return peer is None or peer.who == who

    def connect(
        self,
        peer_id: str,
        ways: tuple[WayRow, ...],
        info: dict[str, Any],
        now: float,
        *,
        who: tuple[str, bytes] = ("", b""),
        listens: bool = True,
        host_id: str = "",
        source: str = "",
        met_at: Address = NOWHERE,
        rights: Rights = EVERYTHING,
    ) -> list[Push]:
        """A peer has connected: a new one, one that was away, or one whose old connection this
        one replaces. What it had registered is kept until it should have come again.

        `ways` say where it can be dialled, `who` what only it can show, `source` is the address
        from which its connection comes, and `met_at` the one of the coordinator that it dialled.

        Raises:
            ProtocolError: there are too many peers, and it is not known yet. Nothing has changed.
        """
        peer = self._peers.get(peer_id)
        if peer is None:
            full = len(self._peers) + len(self._going) >= self._max_peers
            if full and peer_id not in self._going:
                raise ProtocolError(
                    f"this coordinator knows {self._max_peers:,} peers, and takes no more",
                    code="limit",
                )
            # One that is not all gone is only away, lest the same be told as new and then as gone.
            going = self._going.pop(peer_id, None)
            peer = self._peers[peer_id] = Peer(peer_id, who) if going is None else going[0]
        peer.connected = True
        peer.session += 1
        peer.stale = len(peer.registrations)
        peer.describe(info)
        peer.who, peer.listens, peer.host_id = who, listens, host_id
        machine = machine_of(source, met_at)
        if (peer.ways, peer.machine) != (ways, machine):
            peer.ways, peer.machine = ways, machine
            peer.local = bool(ways) and all(is_loopback(way.host) for way in ways)
            peer.moved = peer.session
        peer.met_at = met_at
        peer.rights = rights
        self._set_due(peer, now)
        return []

    def lose(self, peer_id: str, now: float) -> list[Push]:
        """A connection broke without a goodbye: the peer may be back within the grace.

        Not to be called for a connection that another one of the same peer has replaced.
        """
        peer = self._peers.get(peer_id)
        if peer is not None and peer.connected:
            peer.connected = False
            self._set_due(peer, now)
        return []

    def leave(self, peer_id: str) -> list[Push]:
        """A peer has said goodbye: all it had goes, in this and the next calls of `sweep`."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return []
        under_way = self.sweeping
        self._forget(peer)
        return [] if under_way else self.sweep()

    def expire(self, now: float) -> list[Push]:
        """Drop what did not come back in time, in this and the next calls of `sweep`; to be called
        at `next_expiry` or later."""
        under_way = self.sweeping
        while self._due:
            peer, due = next(iter(self._due.items()))
            if due > now:
                break
            if peer.connected:
                del self._due[peer]
                session = peer.session
                self._stale += [
                    (session, r) for r in peer.registrations.values() if r.session != session
                ]
            else:
                self._forget(peer)
        return [] if under_way else self.sweep()

    def sweep(self) -> list[Push]:
        """Take away some of what is to go; to be called, with time for others in between, for as
        long as there is any (`sweeping`)."""
        lost: _Lost = {}
        work = 0
        for registration in self._to_go():
            work += 1 + self._remove(registration, lost)
            if work >= SWEEP:
                break
        return self._tell_lost(lost)

    @property
    def sweeping(self) -> bool:
        """Whether something is yet to be taken away."""
        return bool(self._going or self._stale)

    def _to_go(self) -> Iterator[Registration]:
        while self._stale:
            session, registration = self._stale.popleft()
            peer = registration.peer
            known = peer.registrations.get(registration.id) is registration
            if known and peer.session == session != registration.session:
                yield registration
        while self._going:
            peer_id = next(iter(self._going))
            peer, registrations = self._going[peer_id]
            for registration in registrations:  # some were stale, too, and have gone as such
                if peer.registrations.get(registration.id) is registration:
                    yield registration
            del self._going[peer_id]

    def next_expiry(self) -> float | None:
        """When `expire` has something to do, unless it is seen to before; None: nothing waits."""
        return next(iter(self._due.values()), None)

    # --- registrations ------------------------------------------------------------------

    def register(self, peer_id: str, message: Register, now: float) -> list[Push]:
        """A connected peer has a Pub or Sub. It is told its matches, and these are told of it.

        The same one may come again: it is answered, and on a new connection is current again.
        Another topic, role or observer flag under the same id replaces what was there, and so does
        the same one where the peer's rights are others now. One that it has no right to is REFUSED,
        and nothing is there under its id then. So is a new one where all peers together have too
        many: what its peer has already stays. One that comes again, to a coordinator that has not
        known it, is not refused, which would end it: for its peer it is as if the coordinator were
        down.

        Raises:
            ProtocolError: the topic or pattern is not valid, the peer has too many (or all have,
                and it comes again), or it is not connected. Nothing has changed then.
        """
        peer = self._peers.get(peer_id)
        if peer is None or not peer.connected:
            raise ProtocolError(f"peer {peer_id!r} registers and is not connected")
        known = peer.registrations.get(message.id)
        if known is not None and known.is_same(message):
            if known.rights == peer.rights:
                return self._renew(known, now)
            self._set_due(peer, now)
        try:
            check = check_topic if message.role == "pub" else check_pattern
            topic = check(message.topic)
        except TopicError as error:
            raise ProtocolError(f"{message.role} {message.id}: {error.problem}") from None
        refusal = refused(peer, message, topic)
        if refusal is not None:
            lost = [] if known is None else self._remove_one(known)
            return [*lost, (peer_id, refusal)]
        counts = _counts(message.id)
        replaced = 0 if known is None else _segments(known.id, known.topic)
        segments = _segments(message.id, topic)
        beyond = ""
        registered = len(peer.registrations) - (STATS_STREAM in peer.registrations)
        if known is None and counts and registered >= (most := self._max_registrations):
            beyond = (
                f" would be one more than the {most:,} Pubs and Subs that one peer may register"
            )
        elif peer.segments - replaced + segments > (most := self._max_segments):
            beyond = f": the topics that one peer registers may have {most:,} segments in all"
        if beyond:
            what = f"{message.role} {message.id} on {topic[:60]!r}"
            raise ProtocolError(what + beyond, code="limit")
        if known is None and counts and self._registered >= self._max_all:
            why = f"this coordinator has {self._max_all:,} Pubs and Subs, and takes no more"
            if message.renewed:
                raise ProtocolError(why, code="limit")
            return [(peer_id, Refused(message.id, "limit", why))]
        pushes = [] if known is None else self._remove_one(known)
        self._revision += 1
        new = Registration(peer, message, topic, self._revision)
        peer.registrations[new.id] = new
        self._registered += counts
        peer.pubs += new.is_pub
        peer.segments += segments
        self._index(new).add(new.topic, new)
        matching = self._matching(new)
        pushes += self._answer(new, matching)
        pushes += self._announce(new, matching)
        if self.settling and new.renewed and not new.is_pub:
            pushes += self._tell_departed(new)
        return pushes

    def settled(self) -> None:
        """Whoever was to come back has."""
        self.settling = False
        self._departed = Departed()

    def _tell_departed(self, sub: Registration) -> list[Push]:
        """A Sub has come back that was due what is gone already: it is told of each that it was
        there, and that it is gone, and so counts what it missed."""
        pushes = []
        for part in _parts(self._departed.due_to(sub)):
            added = tuple(row(pub, sub) for pub in part)
            gone = tuple((pub.peer.peer_id, pub.id) for pub in part)
            pushes += [self._push(sub, True, added, ()), self._push(sub, True, (), gone)]
        return pushes

    def unregister(self, peer_id: str, id: int) -> list[Push]:
        """A Pub or Sub was closed. One that is not known is no mistake: it may have expired."""
        peer = self._peers.get(peer_id)
        known = peer.registrations.get(id) if peer is not None else None
        return [] if known is None else self._remove_one(known)

    def _renew(self, known: Registration, now: float) -> list[Push]:
        peer = known.peer
        matching = self._matching(known)
        pushes = self._answer(known, matching)
        if known.session != peer.session:
            moved = known.session < peer.moved
            known.session = peer.session
            peer.stale -= 1
            self._set_due(peer, now)
            if moved and known.is_pub:
                pushes += self._announce(known, matching)
            elif moved:  # which of them it can reach may have changed
                pushes += self._announce(known, [pub for pub in matching if pub.peer.local])
        return pushes

    def _remove_one(self, registration: Registration) -> list[Push]:
        lost: _Lost = {}
        self._remove(registration, lost)
        return self._tell_lost(lost)

    def _remove(self, registration: Registration, lost: _Lost) -> int:
        """Take a registration away and note it for those that it matched; returns how many."""
        peer = registration.peer
        del peer.registrations[registration.id]
        self._registered -= _counts(registration.id)
        peer.pubs -= registration.is_pub
        peer.segments -= _segments(registration.id, registration.topic)
        if registration.session != peer.session:
            peer.stale -= 1
            if peer.connected and not peer.stale:
                self._due.pop(peer, None)
        self._index(registration).discard(registration.topic, registration)
        self._revision += 1
        if self.settling:
            self._departed.add(registration)
        matching = self._matching(registration)
        for other in matching:
            if other.is_current():
                lost.setdefault(other, []).append((peer.peer_id, registration.id))
        return len(matching)

    def _tell_lost(self, lost: _Lost) -> list[Push]:
        """What was taken away, each once for all of it."""
        return [
            self._push(other, True, (), part)
            for other, rows in lost.items()
            for part in _parts(rows)
        ]

    def _forget(self, peer: Peer) -> None:
        """Take away a peer; with all it had, as soon as may be."""
        peer.connected = False
        self._due.pop(peer, None)
        del self._peers[peer.peer_id]
        if peer.registrations:
            self._going[peer.peer_id] = (peer, iter(list(peer.registrations.values())))

    def _set_due(self, peer: Peer, now: float) -> None:
        if peer.connected and not peer.stale:
            self._due.pop(peer, None)
        else:
            self._due[peer] = now + self.grace
            self._due.move_to_end(peer)

    def _index(self, one: Registration) -> TopicIndex[Registration] | PatternIndex[Registration]:
        return self._pubs if one.is_pub else self._subs

    # --- calls --------------------------------------------------------------------------

    def call(self, peer_id: str, call: Call, now: float) -> list[tuple[str, Called]]:
        """A subscriber cannot dial a publisher. Where both are here, and match with all that rights
        say, the publisher is told where the subscriber is; or, of relays, both are told the same
        ones; where there is none, the subscriber alone. Else nobody is told anything: the
        subscriber asks again."""
        sub, pub = self._find(peer_id, call.sub_id), self._find(call.peer_id, call.stream_id)
        if sub is None or pub is None or sub.is_pub or not pub.is_pub or sub.peer is pub.peer:
            return []
        if not matches(sub.topic, pub.topic) or not sub.may_hear(pub.topic):
            return []
        caller, called = sub.peer, pub.peer
        if call.relay:
            mine, theirs = self.relays.best(caller.machine, called.machine)
            if not mine:
                return [(peer_id, Called(called.peer_id, (), ()))]
            if not called.may_be_called((peer_id, True), now):
                return []
            return [
                (caller.peer_id, Called(called.peer_id, (), mine)),
                (called.peer_id, Called(caller.peer_id, (), theirs)),
            ]
        ways = ways_for(caller.ways, caller.machine, called.machine)
        if not ways or not called.may_be_called((peer_id, False), now):
            return []
        return [(called.peer_id, Called(caller.peer_id, ways, ()))]

    def _find(self, peer_id: str, id: int) -> Registration | None:
        """The registration of a peer that is connected, and has made it on this connection."""
        peer = self._peers.get(peer_id)
        known = peer.registrations.get(id) if peer is not None else None
        return known if known is not None and known.is_current() else None

    # --- messages -----------------------------------------------------------------------

    def _matching(self, registration: Registration) -> list[Registration]:
        """Those of the other role, the oldest first: sets have no order that would be the same in
        another run."""
        if not registration.is_pub:
            return pubs_for(registration, self._pubs)
        topic = registration.topic
        subs = self._subs.match(topic)
        return in_order({sub for sub in subs if not sub.limited or sub.may_hear(topic)})

    def _answer(self, to: Registration, matching: list[Registration]) -> list[Push]:
        """All its matches for one registration."""
        *first, last = _parts([row(other, to) for other in matching]) or [()]
        pushes = [self._push(to, False, part, ()) for part in first]
        return [*pushes, self._push(to, True, last, ())]

    def _announce(self, new: Registration, matching: list[Registration]) -> list[Push]:
        """One registration for all its matches."""
        return [
            self._push(other, True, (row(new, other),), ())
            for other in matching
            if other.is_current()
        ]

    def _push(
        self, to: Registration, complete: bool, added: Any, removed: tuple[tuple[str, int], ...]
    ) -> Push:
        message = Expect if to.is_pub else Match
        return to.peer.peer_id, message(to.id, self._revision, complete, added, removed)

    # --- what people ask ----------------------------------------------------------------

    def topics(self, rights: Rights = EVERYTHING) -> Iterator[dict[str, Any]]:
        """A row for each topic and pattern that is within those rights, sorted: ``topic``,
        ``publishers``, ``subscribers``.

        Subscribers of a topic are counted with those whose pattern matches it; the publishers of
        a pattern are those that match it, its subscribers only its own. Each row is made when it
        is asked for, so that a coordinator with many topics can serve others in between.
        """
        for topic in sorted({*self._pubs, *self._subs}):
            if not self._pubs.count(topic) and not self._subs.count(topic):
                continue  # it went while we waited
            if is_reserved(topic) or not rights.may_see(topic):
                continue
            if is_pattern(topic):
                subscribers = self._subs.count(topic)
            else:
                subscribers = sum(sub.may_hear(topic) for sub in self._subs.match(topic))
            yield {
                "topic": topic,
                "publishers": len(self._pubs.match(topic)),
                "subscribers": subscribers,
            }

    def peers(self, rights: Rights = EVERYTHING) -> Iterator[dict[str, Any]]:
        """A row for each peer, sorted by name and id, each made when it is asked for:
        ``peer_id``, ``address`` (empty: it cannot be dialled), ``ways`` (all its addresses, this
        one first), ``name``, ``pid``, ``hostname``, ``pubs``, ``subs`` and ``state``, which is
        ``connected`` or ``away``.

        Raises:
            ProtocolError: whoever has those rights may not list them.
        """
        _check_may_list(rights)
        return self._peer_rows()

    def relay_rows(self, rights: Rights = EVERYTHING) -> Iterator[dict[str, Any]]:
        """The same of relays; see `Relays.rows`."""
        _check_may_list(rights)
        return self.relays.rows()

    def _peer_rows(self) -> Iterator[dict[str, Any]]:
        for peer in sorted(self._peers.values(), key=attrgetter("name", "peer_id")):
            own = STATS_STREAM in peer.registrations  # it tells of itself: no Pub of its program
            ways = [str(Address(way.host, way.port)) for way in peer.ways if way.kind == "tcp"]
            yield {
                "peer_id": peer.peer_id,
                "address": ways[0] if ways else "",
                "ways": ways,
                "name": peer.name,
                "pid": peer.pid,
                "hostname": peer.hostname,
                "pubs": peer.pubs - own,
                "subs": len(peer.registrations) - peer.pubs,
                "state": "connected" if peer.connected else "away",
            }


def machine_of(source: str, met_at: Address) -> str:
    """On which machine one is that comes from there; empty: on the coordinator's. Whoever dials an
    address of its own machine does so from that same address, or loopback."""
    return "" if is_loopback(source) or source == met_at.host else source


def _check_may_list(rights: Rights) -> None:
    if not rights.list:
        raise ProtocolError(
            "only a certificate that says so may list the peers: issue it with "
            "`pubsubd cert issue … --list`",
            code="auth",
        )


def _counts(id: int) -> bool:
    """Whether it counts against the limits: what each peer tells of itself does not, which is one
    Pub beside those that its program makes."""
    return id != STATS_STREAM


def _segments(id: int, topic: str) -> int:
    """Of its topic, as far as it counts."""
    return (topic.count("/") + 1) * _counts(id)


def _parts(rows: list[Any]) -> list[tuple[Any, ...]]:
    starts = range(0, len(rows), ROWS_PER_FRAME)
    return [tuple(rows[start : start + ROWS_PER_FRAME]) for start in starts]
