"""Views: from what all processes tell, the rows of tables, of topics, streams and processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from pubsub.stats.cause import Cause
from pubsub.stats.ends import Ends, Mute, Pair
from pubsub.stats.rows import Rates, Stats
from pubsub.stats.viewrows import LinkRow, PeerRow, Process, StreamRow, TopicRow

__all__ = [
    "LinkRow",
    "PeerRow",
    "Process",
    "StreamRow",
    "TopicRow",
    "links",
    "peers",
    "streams",
    "topics",
]

MUTE = 5.0
"""Seconds without a word after which a process, which tells once a second, is said to be mute."""


class Teller(Protocol):
    """A peer and what it has told: see `pubsub.survey.Told`."""

    @property
    def publisher(self) -> str: ...
    @property
    def stats(self) -> Stats | None: ...
    @property
    def at(self) -> float: ...
    @property
    def trouble(self) -> str: ...


def topics(
    told: Iterable[Teller],
    causes: Sequence[Cause] = (),
    now: float | None = None,
    mute: Sequence[Mute] = (),
) -> list[TopicRow]:
    """All topics, in alphabetical order.

    Parameters:
        told: what is known of each peer: the values of `Survey.peers`.
        causes: what ails them, most important first.
        now: by the clock of `Told.at`; None: whoever has told something is there.
        mute: those that are known besides, and tell nothing.
    """
    found: dict[str, list[StreamRow]] = defaultdict(list)
    for row in _Processes(told, now, mute).streams(None):
        found[row.topic].append(row)
    blame = _Blame(causes)
    return [_topic(topic, rows, blame) for topic, rows in sorted(found.items())]


def streams(
    told: Iterable[Teller],
    topic: str,
    causes: Sequence[Cause] = (),
    now: float | None = None,
    mute: Sequence[Mute] = (),
) -> list[StreamRow]:
    """The streams of a topic, by who publishes and who subscribes.

    Parameters:
        told, causes, now, mute: as those of `topics`.
        topic: a topic; or a pattern, for those of all that it matches.
    """
    blame = _Blame(causes)
    rows = [
        row._replace(why=blame.of(row.topic, {row.publisher.who}, {row.subscriber.who}))
        for row in _Processes(told, now, mute).streams(topic)
    ]
    return sorted(rows, key=lambda row: (row.publisher.who, row.subscriber.who, row.key))


def peers(
    told: Iterable[Teller],
    causes: Sequence[Cause] = (),
    now: float | None = None,
    mute: Sequence[Mute] = (),
) -> list[PeerRow]:
    """All processes, by name.

    Parameters:
        told, causes, now, mute: as those of `topics`.
    """
    known = _Processes(told, now, mute)
    blame = _Blame(causes)
    rows = [_peer(process, stats, blame) for process, stats in known.rows]
    return sorted(rows, key=lambda row: (row.process.who, row.process.key))


def links(
    told: Iterable[Teller],
    peer_id: str,
    now: float | None = None,
    mute: Sequence[Mute] = (),
) -> list[LinkRow]:
    """The links of one process, by who is at the other end.

    Parameters:
        told, now, mute: as those of `topics`.
        peer_id: of whom.
    """
    known = _Processes(told, now, mute)
    rows = [
        LinkRow(known.of(link.peer_id, ""), link)
        for process, stats in known.rows
        if process.peer_id == peer_id and stats is not None
        for link in stats.links
    ]
    return sorted(rows, key=lambda row: (row.other.who, row.link.role))


class _Processes:
    """Those that are known, and who is meant by an identity.

    Attributes:
        rows: each, with what it told last; None: nothing.
    """

    def __init__(self, told: Iterable[Teller], now: float | None, mute: Sequence[Mute]) -> None:
        self.rows = [(self._process(each, now), each.stats) for each in told]
        self._by_key = {process.key: process for process, _ in self.rows}
        self._by_id = {process.peer_id: process for process, _ in self.rows if process.peer_id}
        for each in mute:
            if not self._has_told(each):
                process = Process(each.address, each.peer_id, each.who, each.trouble)
                self.rows = [row for row in self.rows if row[0].key != each.address]
                self.rows.append((process, None))
                self._by_key[each.address] = process

    @staticmethod
    def _process(told: Teller, now: float | None) -> Process:
        trouble, stats = told.trouble, told.stats
        if stats is None:
            return Process(told.publisher, "", told.publisher, trouble)
        if not trouble and now is not None and now - told.at > MUTE:
            trouble = f"it has told nothing for {now - told.at:.0f} s"
        return Process(told.publisher, stats.peer_id, stats.who, trouble)

    def _has_told(self, mute: Mute) -> bool:
        """Whether it has, before. Of an identity coordinators tell only how it begins."""
        if self._by_key.get(mute.address, Process()).peer_id:
            return True
        return bool(mute.peer_id) and any(each.startswith(mute.peer_id) for each in self._by_id)

    def of(self, peer_id: str, name: str) -> Process:
        """Whose identity it is; of one that has told nothing, what another calls it."""
        found = self._by_id.get(peer_id)
        if found is None:
            key = name.rpartition("#")[0] or name
            known = self._by_key.get(key) or Process(key, who=key or peer_id[:8])
            found = self._by_id[peer_id] = known._replace(peer_id=peer_id)
        return found

    def streams(self, topic: str | None) -> Iterator[StreamRow]:
        """Those of a topic or pattern, or all; and the Pubs and Subs that have none."""
        ends = Ends([stats for _, stats in self.rows if stats is not None], topic)
        heard, hearing = set(), set()
        for pair in ends.pairs:
            heard.add(pair.pub_id)
            hearing.add(pair.sub_id)
            yield self._stream(pair)
        for stats, pub in ends.pubs:
            if (stats.peer_id, pub.stream_id) not in heard:
                end = self._by_id[stats.peer_id]
                yield StreamRow(pub.topic, publisher=end, stream_id=pub.stream_id, pub=pub)
        for stats, sub in ends.subs:
            if (stats.peer_id, sub.sub_id) not in hearing:
                end = self._by_id[stats.peer_id]
                yield StreamRow(sub.pattern, subscriber=end, sub_id=sub.sub_id, sub=sub)

    def _stream(self, pair: Pair) -> StreamRow:
        (pub_peer, stream_id), (sub_peer, sub_id) = pair.pub_id, pair.sub_id
        return StreamRow(
            topic=pair.topic,
            publisher=self.of(pub_peer, pair.stream.publisher if pair.stream else ""),
            subscriber=self.of(sub_peer, pair.row.name if pair.row else ""),
            stream_id=stream_id,
            sub_id=sub_id,
            pub=pair.pub,
            sub=pair.sub,
            cursor=pair.row,
            stream=pair.stream,
        )


def _topic(topic: str, rows: Sequence[StreamRow], blame: _Blame) -> TopicRow:
    pubs = {(r.publisher.peer_id, r.stream_id): r for r in rows if r.publisher.peer_id}
    subs: dict[tuple[str, int], list[StreamRow]] = defaultdict(list)
    for row in rows:
        if row.subscriber.peer_id:
            subs[row.subscriber.peer_id, row.sub_id].append(row)
    lags = [[r.lag for r in own if r.lag is not None] for own in subs.values()]
    silent = [row.silent for row in rows if row.silent is not None]
    lost_by = _lost_by(topic, pubs.values(), subs.values())
    return TopicRow(
        topic=topic,
        publishers=len({key for key in pubs if pubs[key].state != "vanished"}),
        subscribers=len(subs),
        rate=_sum(row.put_rate for row in pubs.values()),
        byte_rate=_sum(row.byte_rate for row in pubs.values()),
        lag=max((sum(each) for each in lags if each), default=None),
        lost=sum(lost_by.values()),
        lost_by=tuple(sorted(lost_by.items(), key=lambda each: (-each[1], each[0]))),
        silent=min(silent, default=None),
        why=blame.of(topic, {r.publisher.who for r in rows}, {r.subscriber.who for r in rows}),
        trouble=next((row.trouble for row in rows if row.trouble), ""),
    )


def _lost_by(
    topic: str, pubs: Iterable[StreamRow], subs: Iterable[Sequence[StreamRow]]
) -> dict[str, int]:
    lost: dict[str, int] = defaultdict(int)
    for rows in subs:
        first = rows[0]
        count = sum(row.lost for row in rows)
        if first.sub is not None and first.sub.pattern == topic:  # with that of ended streams
            count = max(count, first.sub.lost)
        lost[first.subscriber.who] += count
    for row in pubs:
        if row.pub is not None:  # the row says so of one Sub, the Pub of all
            lost[""] += max(0, row.pub.lost - sum(each.lost for each in row.pub.subscribers))
    return {who: count for who, count in lost.items() if count}


def _peer(process: Process, told: Stats | None, blame: _Blame) -> PeerRow:
    stats = told or Stats()
    there = Stats() if process.trouble else stats  # what is over goes at no rate
    return PeerRow(
        process=process,
        stats=told,
        put_rate=_sum(pub.rate for pub in there.pubs),
        take_rate=_sum(sub.rate for sub in there.subs),
        in_rate=_sum(link.in_rate for link in there.links),
        out_rate=_sum(link.out_rate for link in there.links),
        lag=max((cursor.lag for pub in stats.pubs for cursor in pub.subscribers), default=0),
        lost=sum(sub.lost for sub in stats.subs),
        loop=stats.loop,
        links_up=sum(link.up for link in there.links),
        coordinators_up=sum(each.up for each in there.coordinators),
        why=blame.of_process(process.who),
    )


def _sum(rates: Iterable[Rates]) -> Rates:
    return Rates(*map(sum, zip(*rates, strict=True)))


class _Blame:
    """The causes, by what they are about."""

    def __init__(self, causes: Sequence[Cause]) -> None:
        self._by_topic: dict[str, list[tuple[int, Cause]]] = defaultdict(list)
        self._by_who: dict[str, list[tuple[int, Cause]]] = defaultdict(list)
        for ranked in enumerate(causes):
            _, cause = ranked
            if cause.topic:
                self._by_topic[cause.topic].append(ranked)
            for who in {cause.publisher, cause.subscriber} - {""}:
                self._by_who[who].append(ranked)

    def of(self, topic: str, publishers: set[str], subscribers: set[str]) -> str:
        """What is most to blame on a topic between these."""
        ends = (publishers | subscribers) - {""}
        near = [each for who in ends for each in self._by_who.get(who, ()) if not each[1].topic]
        fits = [
            (rank, cause.sentence)
            for rank, cause in (*self._by_topic.get(topic, ()), *near)
            if cause.publisher in ("", *publishers) and cause.subscriber in ("", *subscribers)
        ]
        return min(fits)[1] if fits else ""

    def of_process(self, who: str) -> str:
        """What is most to blame in a process."""
        ranked = self._by_who.get(who)
        return ranked[0][1].sentence if ranked else ""
