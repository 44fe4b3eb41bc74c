"""The rows of tables of topics, streams and processes: what there is to be shown of each."""

from __future__ import annotations

from typing import NamedTuple

from pubsub.stats.ends import Pair
from pubsub.stats.rows import (
    LinkStats,
    LoopStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)

__all__ = ["LinkRow", "PeerRow", "Process", "StreamRow", "TopicRow"]


class Process(NamedTuple):
    """One end of a stream."""

    key: str = ""
    """As `Told.publisher`, ``host:port``; empty: there is nobody at this end."""
    peer_id: str = ""
    who: str = ""
    """For people; of one that has told nothing its key."""
    trouble: str = ""
    """Why it tells nothing now; empty: it does."""


class StreamRow(NamedTuple):
    """A Pub and a Sub that gets its messages; or one of them, where there is no other."""

    topic: str
    """Of a Sub without a Pub its pattern."""
    publisher: Process = Process()
    subscriber: Process = Process()
    stream_id: int = 0
    sub_id: int = 0
    pub: PubStats | None = None
    sub: SubStats | None = None
    cursor: SubscriberStats | None = None
    """The Sub, as its Pub knows it."""
    stream: StreamStats | None = None
    """The Pub, as its Sub knows it."""
    why: str = ""
    """What is most to blame; empty: nothing is known to be."""

    @property
    def key(self) -> tuple[str, int, str, int]:
        """Of all streams of a topic this is the only one with it."""
        return self.publisher.peer_id, self.stream_id, self.subscriber.peer_id, self.sub_id

    @property
    def state(self) -> str:
        """As `StreamStats.state`, or that of its `SubscriberStats`; empty: one end is missing."""
        if self.stream is not None:
            return self.stream.state
        return "" if self.cursor is None else self.cursor.state

    @property
    def way(self) -> str:
        """As `SubscriberStats.way`."""
        return (self.stream.way if self.stream else "") or (self.cursor.way if self.cursor else "")

    @property
    def observer(self) -> bool:
        """Whether the Sub only looks on."""
        return (self.sub or self.cursor or SubStats()).observer

    @property
    def put_rate(self) -> Rates:
        """Messages a second that the Pub puts, for all its Subs."""
        return self.pub.rate if self.pub is not None and not self.publisher.trouble else Rates()

    @property
    def byte_rate(self) -> Rates:
        """Bytes a second that it puts."""
        return self.pub.byte_rate if self.pub and not self.publisher.trouble else Rates()

    @property
    def take_rate(self) -> Rates:
        """Messages a second that the Sub takes, of all its Pubs."""
        return self.sub.rate if self.sub is not None and not self.subscriber.trouble else Rates()

    @property
    def lag(self) -> int | None:
        """Messages put that the Sub has not taken; None: the Pub does not tell."""
        return None if self.cursor is None else self.cursor.lag

    @property
    def unsent(self) -> int | None:
        """Those of them that were not sent to it yet; None: the Pub does not tell."""
        return None if self.cursor is None else self.cursor.unsent

    @property
    def lost(self) -> int:
        """Messages of this Pub that the Sub will never get. Of two ends, one hears of it later."""
        return Pair(row=self.cursor, stream=self.stream).lost

    @property
    def silent(self) -> float | None:
        """Seconds since the last put; None: there was none, or none is known of."""
        if self.stream is not None and (self.pub is None or self.publisher.trouble):
            return self.stream.silent
        return None if self.pub is None else self.pub.silent

    @property
    def handling(self) -> float | None:
        """As `SubStats.handling`."""
        return None if self.sub is None else self.sub.handling

    @property
    def trouble(self) -> str:
        """Which end is not there, and why; empty: both are."""
        ends = (self.publisher, self.subscriber)
        if self.state not in ("", "attached"):
            away = self.publisher if self.stream is not None else self.subscriber
            return f"{away.who}: {away.trouble or self.state}"
        return next((f"{end.who}: {end.trouble}" for end in ends if end.trouble), "")


class TopicRow(NamedTuple):
    """A topic; or a pattern of Subs that get messages of nobody."""

    topic: str
    publishers: int = 0
    """Pubs; one that its Subs have given up is none."""
    subscribers: int = 0
    """Subs, with observers."""
    rate: Rates = Rates()
    """Messages a second that all Pubs put together."""
    byte_rate: Rates = Rates()
    lag: int | None = None
    """Messages put that the Sub that is furthest behind has not taken; None: nobody tells."""
    lost: int = 0
    """Messages, counted once for each Sub that will not get them."""
    lost_by: tuple[tuple[str, int], ...] = ()
    """Who will not get how many, most first; an empty name: Subs that are gone."""
    silent: float | None = None
    """Seconds since the last put; None: there was none, or none is known of."""
    why: str = ""
    """As `StreamRow.why`."""
    trouble: str = ""
    """As that of one of its streams."""


class PeerRow(NamedTuple):
    """A process, with sums over its Pubs, Subs and links."""

    process: Process
    stats: Stats | None = None
    """None: it has told nothing."""
    put_rate: Rates = Rates()
    take_rate: Rates = Rates()
    in_rate: Rates = Rates()
    out_rate: Rates = Rates()
    """Bytes a second on its links."""
    lag: int = 0
    """Messages put that the slowest Sub of one of its Pubs has not taken."""
    lost: int = 0
    """Messages that its Subs lost."""
    loop: LoopStats = LoopStats()
    links_up: int = 0
    coordinators_up: int = 0
    why: str = ""
    """As `StreamRow.why`."""


class LinkRow(NamedTuple):
    """A link of a process, and who is at the other end."""

    other: Process
    link: LinkStats
