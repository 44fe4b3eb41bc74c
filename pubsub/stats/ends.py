"""Both ends: which Pub and which Sub belong together, in what several processes tell of themselves.

Each end tells of the other what it knows. Where one of the two tells nothing, because it hangs, was
stopped or is of an older version, a pair has what the other one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pubsub.core.topics import hears, is_pattern, matches
from pubsub.stats.rows import LinkStats, PubStats, Stats, StreamStats, SubscriberStats, SubStats

__all__ = ["Ends", "Mute", "Pair"]


class Mute(NamedTuple):
    """A process that is known to coordinators, and tells nothing of itself."""

    peer_id: str = ""
    """The whole of it, or its first digits: who has shown no key could pose by the whole."""
    who: str = ""
    """As `Stats.who`."""
    address: str = ""
    """``host:port``, as others name it."""
    trouble: str = ""
    """Why, as far as is known: see `Told.trouble`."""


class Pair(NamedTuple):
    """A Pub and a Sub of it. What is None, nobody tells."""

    publisher: Stats | None = None
    pub: PubStats | None = None
    subscriber: Stats | None = None
    sub: SubStats | None = None
    row: SubscriberStats | None = None
    """What the Pub says of the Sub."""
    stream: StreamStats | None = None
    """What the Sub says of the Pub."""
    link: LinkStats | None = None
    """By which the Pub's process sends, as it sees it."""

    @property
    def topic(self) -> str:
        """Of the Pub."""
        return self.pub.topic if self.pub else self.stream.topic if self.stream else ""

    @property
    def lost(self) -> int:
        """Messages of this Pub that the Sub will never get. Of two ends, one hears of it later."""
        return max(self.row.lost if self.row else 0, self.stream.lost if self.stream else 0)

    @property
    def untold(self) -> int:
        """Those of them that the Pub knows of, and the Sub does not: it takes nothing, or tells
        nothing. They are part of its lag, and wait for nobody."""
        return self.lost - (self.stream.lost if self.stream else 0)

    @property
    def pub_id(self) -> tuple[str, int]:
        """Which Pub it is: its process, and its number there."""
        if self.publisher is not None and self.pub is not None:
            return self.publisher.peer_id, self.pub.stream_id
        return (self.stream.peer_id, self.stream.stream_id) if self.stream else ("", 0)

    @property
    def sub_id(self) -> tuple[str, int]:
        """Which Sub it is: its process, and its number there."""
        if self.subscriber is not None and self.sub is not None:
            return self.subscriber.peer_id, self.sub.sub_id
        return (self.row.peer_id, self.row.sub_id) if self.row else ("", 0)


class Ends:
    """The Pubs and Subs of a topic, and who gets what of whom.

    Parameters:
        told: what processes tell of themselves, each once.
        topic: a topic or pattern; None: all of them.
        mute: those that tell nothing.

    Attributes:
        processes: who tells, by identity.
        pubs, subs: those of the topic, each with its process.
        pairs: those that belong together, whether or not they have met.
        published: all topics on which somebody has a Pub, not only those asked for.
    """

    def __init__(
        self, told: Sequence[Stats], topic: str | None = None, mute: Sequence[Mute] = ()
    ) -> None:
        self.topic = topic
        self.mute = tuple(mute)
        self.processes = {stats.peer_id: stats for stats in told}
        processes = self.processes.values()
        self.published = {pub.topic for stats in processes for pub in stats.pubs}
        self.pubs = [
            (stats, pub) for stats in processes for pub in stats.pubs if self.wants(pub.topic)
        ]
        self.subs = [(stats, sub) for stats in processes for sub in stats.subs if self._hears(sub)]
        self.pairs = self._pairs()

    def wants(self, topic: str) -> bool:
        """Whether a topic is one of those asked for."""
        asked = self.topic
        return asked is None or topic == asked or (is_pattern(asked) and matches(asked, topic))

    def _hears(self, sub: SubStats) -> bool:
        asked, pattern = self.topic, sub.pattern
        if asked is None or asked == pattern or any(self.wants(s.topic) for s in sub.streams):
            return True
        if not is_pattern(asked):
            return hears(pattern, asked)
        return self.wants(pattern) or any(hears(pattern, pub.topic) for _, pub in self.pubs)

    def _pairs(self) -> list[Pair]:
        found: dict[tuple[str, int, str, int], Pair] = {}
        pubs = {(stats.peer_id, pub.stream_id): pub for stats, pub in self.pubs}
        subs = {(stats.peer_id, sub.sub_id): sub for stats, sub in self.subs}
        links = {
            (stats.peer_id, link.peer_id): link
            for stats in self.processes.values()
            for link in stats.links
            if link.role == "subscriber"
        }
        for publisher, pub in self.pubs:
            for row in pub.subscribers:
                found[publisher.peer_id, pub.stream_id, row.peer_id, row.sub_id] = Pair(
                    *(publisher, pub, self.processes.get(row.peer_id)),
                    sub=subs.get((row.peer_id, row.sub_id)),
                    row=row,
                    link=links.get((publisher.peer_id, row.peer_id)),
                )
        for subscriber, sub in self.subs:
            for stream in sub.streams:
                if self.wants(stream.topic):
                    key = (stream.peer_id, stream.stream_id, subscriber.peer_id, sub.sub_id)
                    pair = found.get(key)
                    if pair is None:
                        pub_there = pubs.get((stream.peer_id, stream.stream_id))
                        there = self.processes.get(stream.peer_id)
                        pair = Pair(there, pub_there, subscriber, sub)
                    found[key] = pair._replace(stream=stream)
        return list(found.values())

    def silent(self, peer_id: str, called: str) -> Mute | None:
        """That one of `mute`, by its identity or by what others call it."""
        place = called.rpartition("#")[0] or called
        for each in self.mute:
            if (each.peer_id and peer_id.startswith(each.peer_id)) or place == each.address != "":
                return each
        return None

    def name(self, peer_id: str, called: str) -> str:
        """Which process that is, for people; of one that tells nothing, as others call it."""
        if peer_id in self.processes:
            return self.processes[peer_id].who
        mute = self.silent(peer_id, called)
        return (mute and mute.who) or called.rpartition("#")[0] or called or "a process"

    def publisher(self, pair: Pair) -> str:
        """The process of its Pub, for people."""
        if pair.publisher is not None:
            return pair.publisher.who
        return self.name(pair.stream.peer_id, pair.stream.publisher) if pair.stream else ""

    def subscriber(self, pair: Pair) -> str:
        """The process of its Sub, for people."""
        if pair.subscriber is not None:
            return pair.subscriber.who
        return self.name(pair.row.peer_id, pair.row.name) if pair.row else ""
