"""Publishers: the peers that Subs of ours want streams of, and what is said of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pubsub.config import Address, Settings, Way
from pubsub.core.directory import Directory
from pubsub.core.inbox import MAX_STREAMS, Inbox
from pubsub.core.stream import Stream, StreamKey
from pubsub.errors import ProtocolError
from pubsub.links import unix
from pubsub.links.dialling import Dialling
from pubsub.links.doors import Doorman
from pubsub.links.keeping import Unheard
from pubsub.links.link import Core, Link
from pubsub.runtime.coordinator_link import Session
from pubsub.runtime.publisher_link import Remote
from pubsub.runtime.readiness import Readiness
from pubsub.runtime.relay_link import Relays
from pubsub.runtime.sharing import Sharing
from pubsub.runtime.snapshot import LinkRow
from pubsub.runtime.turn import Turn
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Identity, Other, place_of
from pubsub.wire.messages import Match, MatchedPub

__all__ = ["Publishers"]

log = logger("pubsub")
TROUBLE = 2.0
"""Seconds after which a publisher that is not reached is in trouble. One that ended just when it
was to be reached is not: it is soon listed no more."""
CALL_COUNTS = 60.0
"""Seconds for which one that was asked to dial us may do so."""


class Publishers:
    """All peers that publish what Subs of ours want, and what the coordinators say of them.

    Parameters:
        loop, settings, turn, readiness: of the runtime.
        identity: who we are to whom we dial from that address of ours.
        scratch: what links read into.
        random: for the time between attempts.
        guard: how links are secured.
        doorman: lets in who is met at a relay.
        sharing: what memory they lend.

    Attributes:
        remotes: by the id of the peer.
        directory: which publishers the coordinators list, and where.
        dialling: who has its turn to dial.
        relays: where publishers are met that cannot be dialled.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        turn: Turn,
        readiness: Readiness,
        identity: Callable[[str], Identity],
        scratch: bytearray,
        random: Callable[[], float],
        guard: Guard,
        doorman: Doorman,
        sharing: Sharing,
    ) -> None:
        self.loop = loop
        self.sharing = sharing
        self.guard = guard
        self.settings = settings
        self.turn = turn
        self.readiness = readiness
        self.identity = identity
        self.remotes: dict[str, Remote] = {}
        self.directory = Directory(MAX_STREAMS, guard.host_id() if unix.available() else "")
        self.dialling = Dialling(loop, random)
        self.relays = Relays(
            *(loop, settings, guard, doorman, identity, self.dialling, scratch, random)
        )
        self._scratch = scratch
        self._random = self.random = random
        self._called: dict[str, float] = {}  # who may dial us, and until when; the oldest first

    def rows(self) -> list[LinkRow]:
        """The links."""
        return [
            LinkRow("publisher", r.peer_id, r.up, r.address.kind)
            for r in list(self.remotes.values())
        ]

    def matched(self, session: Session, match: Match, inbox: Inbox, own_id: str) -> None:
        """A coordinator says which publishers there are, and are no more, for a Sub of ours. (Those
        of our own peer, which has that id, it gets without a link.)"""
        gone = self.directory.match(session, match)
        for row in match.added:
            if row.peer_id != own_id:
                self._want(session, inbox, row)
        for key in gone:
            stream = inbox.streams.get(key)
            if (
                stream is not None
                and stream.route is None
                and stream.expected is None
                and not stream.before  # its process, if that lives, says how much it has put
            ):
                self.give_up(stream)  # it never was there, and now it need not be

    def _want(self, session: Session, inbox: Inbox, row: MatchedPub) -> None:
        """A publisher matches: have its stream, unless we do."""
        key = StreamKey(row.peer_id, row.stream_id)
        if inbox.over(key):
            return
        way = Way(*place_of(row.ways), session)
        remote = self.remotes.get(row.peer_id)
        who = str(way) if way.host else self._in_words(row, remote)
        publisher = f"{who}#{row.stream_id}"
        if len(inbox.streams) >= MAX_STREAMS and key not in inbox.streams:
            if not inbox.crowded:
                inbox.crowded = True
                log.warning(
                    "Sub(%r) has %d streams, and more publishers match: the others are not "
                    "subscribed",
                    *(inbox.pattern, MAX_STREAMS),
                    topic=inbox.pattern,
                )
            self._leave_out(inbox, key, row, publisher)
            return
        if remote is None:
            remote = self.remotes[row.peer_id] = Remote(
                self, row.peer_id, way, self._scratch, self._random
            )
        if not way.host:
            remote.who = who
        if remote.nowhere and row.listens:
            remote.is_out_of_reach(who, row.topic, session.reached)
        if key in inbox.streams:
            return
        if remote.streams >= self.settings.max_channels:
            remote.refuse()
            self._leave_out(inbox, key, row, publisher)
            return
        stream = inbox.returned(key)
        if stream is None:
            stream = self._stream(inbox, key, row, publisher)
            inbox.add(stream)
        stream.publisher = publisher
        self.readiness.wait_for(stream)
        remote.add(stream)

    def _in_words(self, row: MatchedPub, remote: Remote | None) -> str:
        """What one is called that is nowhere: which process it is; and by its id too, where another
        one says the same of itself (each container's first process has the same number)."""
        if remote is not None and remote.who:
            return remote.who
        if row.who and all(other.who != row.who for other in self.remotes.values()):
            return row.who
        return f"{row.who} peer {row.peer_id}".lstrip()

    def _stream(self, inbox: Inbox, key: StreamKey, row: MatchedPub, publisher: str) -> Stream:
        stream = Stream(inbox, key, row.topic, publisher, self.settings.max_batch)
        stream.before = row.before
        stream.since = self.loop.time()
        return stream

    def _leave_out(self, inbox: Inbox, key: StreamKey, row: MatchedPub, publisher: str) -> None:
        """One more than may be: its Sub is told that it does not get it."""
        if key not in inbox.gone:
            self._stream(inbox, key, row, publisher).vanish(trouble=True)

    def ways(self, peer_id: str) -> list[Way]:
        """Where the coordinators say that a peer is."""
        return [_in_zone(way) for way in self.directory.ways(peer_id)]

    def admit(self, other: Other) -> None:
        """Raise ProtocolError where that is none that we have called, or another one than we met
        before."""
        if self._called.get(other.peer_id, 0.0) < self.loop.time():
            raise ProtocolError("nobody here has called this publisher", code="role")
        remote = self.remotes.get(other.peer_id)
        if remote is not None:
            remote.check(other)

    def arrived(self, other: Other) -> Arrival:
        """A publisher that was called is here; it may be wanted no more."""
        return Arrival(self.remotes.get(other.peer_id))

    def calling(self, peer_id: str) -> None:
        """It is asked to dial us, and may do so for a while."""
        now = self.loop.time()
        self._called.pop(peer_id, None)
        self._called[peer_id] = now + CALL_COUNTS
        while self._called[first := next(iter(self._called))] < now:
            del self._called[first]

    def met(self, peer_id: str) -> Address | None:
        """Where that peer was reached last, if we have to do with it."""
        remote = self.remotes.get(peer_id)
        return None if remote is None else remote.met

    def listed(self, stream: Stream) -> bool:
        """Whether any coordinator still knows of this stream."""
        return self.directory.listed(stream.inbox.sub_id, stream.key)

    def in_trouble(self, stream: Stream) -> bool:
        """Whether its publisher has not been connected for longer than that takes, or cannot be."""
        remote = self.remotes.get(stream.key.peer_id)
        if remote is not None and remote.nowhere:
            return True
        return stream.since is not None and self.loop.time() - stream.since >= TROUBLE

    def state_of(self, stream: Stream) -> str:
        """How it stands, for people: one for which all ways failed is not just connecting."""
        remote = self.remotes.get(stream.key.peer_id)
        unreached = stream.state == "connecting" and remote is not None and remote.in_vain
        return "unreachable" if unreached else stream.state

    def way_of(self, stream: Stream) -> dict[str, Any]:
        """By which way it comes, and why better ones failed."""
        remote = self.remotes.get(stream.key.peer_id)
        if remote is None:
            return {"way": "local" if stream.open else "", "failed": []}
        return {"way": remote.address.kind if remote.up else "", "failed": remote.troubles()}

    def give_up(self, stream: Stream) -> None:
        """A publisher is gone for good, as far as we can tell."""
        remote = self.remotes.get(stream.key.peer_id)
        stream.vanish(self.in_trouble(stream))
        if remote is not None:
            remote.give_up(stream)
        self.readiness.settled(stream)

    def remove(self, stream: Stream) -> None:
        """A Sub wants it no more."""
        remote = self.remotes.get(stream.key.peer_id)
        if remote is not None:
            remote.remove(stream)

    def forget(self, remote: Remote) -> None:
        """Nothing is wanted of that peer any more."""
        if self.remotes.get(remote.peer_id) is remote:
            del self.remotes[remote.peer_id]


def _in_zone(way: Way) -> Way:
    """An address that counts on one network only is on the one where its coordinator is."""
    zone = way.told_by.zone if isinstance(way.told_by, Session) else ""
    if zone and way.host.lower().startswith("fe80:") and "%" not in way.host:
        return way._replace(host=f"{way.host}%{zone}")
    return way


class Arrival:
    """The endpoint of a link that a publisher has dialled, as long as it takes to seat it."""

    def __init__(self, remote: Remote | None) -> None:
        self._remote = remote

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`."""
        if self._remote is None:
            link.goodbye(reason="nothing is wanted of it any more")
            return Unheard()
        host, port = link.peername[:2]
        core = self._remote.keep(link, Way(host, port, kind="reverse"), other)
        link.loop.call_soon(link.reader.read_into, self._remote.scratch)
        return core

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
