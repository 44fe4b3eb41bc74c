"""Collecting: the rows of `Stats`, read from what the cores and links of a runtime count.

Everything here may be called from any thread: each row is of one moment, and two may be of two.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from pubsub.core.cursor import Cursor
from pubsub.core.publication import Publication
from pubsub.core.stream import Stream
from pubsub.core.topics import is_reserved
from pubsub.links.link import Link
from pubsub.runtime.members import OpenPub, OpenSub
from pubsub.stats.rates import Lately, Standing
from pubsub.stats.rows import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PastStats,
    PubStats,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.support.about import about

if TYPE_CHECKING:
    from pubsub.runtime.runtime import Runtime

__all__ = ["counts", "pub_is_over", "stats", "sub_is_over"]

MOST = 5_000
"""Rows of subscribers, and of streams, that are told at most, with those of their Pubs and Subs."""


def counts(
    runtime: Runtime,
) -> tuple[dict[Hashable, tuple[float, ...]], dict[Hashable, object]]:
    """What is counted, to be compared later; and what may stand still."""
    counted: dict[Hashable, tuple[float, ...]] = {}
    marks: dict[Hashable, object] = {}
    for pub in list(runtime.pubs.values()):
        publication = pub.publication
        counted["pub", publication.stream_id] = (publication.log.next_seq, publication.log.total)
        marks["put", publication.stream_id] = pub.source.waiting()[1]
        for _, cursor in publication.cursors():
            if cursor.lag:
                marks[_place(publication, cursor)] = cursor.acked
    for sub in list(runtime.subs.values()):
        inbox, effort = sub.inbox, sub.sink.effort()
        taken = max(0, inbox.delivered - effort.left)
        marks["sub", inbox.sub_id] = taken
        counted["sub", inbox.sub_id] = (
            *(taken, inbox.window.consumed, effort.messages, effort.seconds),
        )
    for _, _, link in _links(runtime):
        if link is not None:
            counted[link] = (link.bytes_in, link.bytes_out, link.pauses()[1])
    return counted, marks


def stats(
    runtime: Runtime,
    lately: Lately,
    standing: Standing,
    loop: LoopStats,
    *,
    wall: float,
    age: float,
    watched: float,
) -> Stats:
    """All of it."""
    who = about(runtime.settings.name)
    with runtime.ending:
        pubs, subs = list(runtime.pubs.values()), list(runtime.subs.values())
        past = runtime.past.rows(lately.now)
    subs = [sub for sub in subs if not is_reserved(sub.inbox.pattern)]
    room, room_for_subs = [MOST], [MOST]
    pubs = [pub for pub in pubs if _spare(room, 1)]  # before the subscribers of the first of them
    subs = [sub for sub in subs if _spare(room_for_subs, 1)]
    told_pubs = [_pub(runtime, pub, lately, standing, wall, room) for pub in pubs]
    told_subs = [_sub(runtime, sub, lately, standing, wall, room_for_subs) for sub in subs]
    pool = runtime.sharing.pool
    return Stats(
        peer_id=runtime.peer_id,
        name=who["name"],
        pid=who["pid"],
        host=who["hostname"],
        address=runtime.address,
        library=who["library"],
        time=wall,
        age=age,
        watched=watched,
        pubs=tuple(told_pubs),
        subs=tuple(told_subs),
        links=tuple(_link(*row, lately) for row in _links(runtime)),
        loop=loop,
        coordinators=tuple(
            CoordinatorStats(str(session), session.up, "" if session.up else session.trouble)
            for session in list(runtime.sessions)
        ),
        pool=0 if pool is None else pool.total,
        pool_size=0 if pool is None else pool.size,
        left_out=-min(0, room[0]) - min(0, room_for_subs[0]),
        past=past,
    )


def pub_is_over(pub: OpenPub, now: float) -> PastStats:
    """What is kept of one that ends: all that was put is in its log."""
    publication, log = pub.publication, pub.publication.log
    lost = _lost_at(publication)
    return PastStats("pub", publication.topic, log.next_seq, log.total, lost, now - pub.made)


def sub_is_over(sub: OpenSub, now: float) -> PastStats:
    """What is kept of one that ends."""
    inbox = sub.inbox
    lost = 0 if inbox.observer else sum(inbox.lost_by.values())
    taken = max(0, inbox.delivered - sub.sink.effort().left)
    return PastStats("sub", inbox.pattern, taken, inbox.window.consumed, lost, now - sub.made)


def _put(pub: OpenPub) -> int:
    """Without those that wait. (A Pub that nobody holds any more cannot be asked.)"""
    return max(pub.publication.log.next_seq, pub.source.count() - pub.source.waiting()[0])


def _lost_at(publication: Publication) -> int:
    return publication.missed + sum(cursor.lost for _, cursor in publication.cursors())


def _spare(room: list[int], rows: int) -> bool:
    """Whether there is room for so many rows more; what has none is counted all the same."""
    room[0] -= rows
    return room[0] >= 0


def _place(publication: Publication, cursor: Cursor) -> Hashable:
    return publication.stream_id, cursor.key


def _pub(
    runtime: Runtime,
    pub: OpenPub,
    lately: Lately,
    standing: Standing,
    wall: float,
    room: list[int],
) -> PubStats:
    publication = pub.publication
    log, stream_id, clock = publication.log, publication.stream_id, runtime.clock.now()
    waiting, first = pub.source.waiting()
    waits_for: tuple[str, ...] = ()
    if waiting:
        waits_for = tuple(
            holder.why(
                _idle(publication, holder.cursor, standing, lately.now),
                lambda left: time.strftime("%H:%M:%S", time.localtime(wall + left)),
            )
            for holder in publication.holding(clock)
        )
    cursors = [each for each in publication.cursors() if _spare(room, 1)]
    return PubStats(
        stream_id=stream_id,
        topic=publication.topic,
        codec=publication.codec,
        overflow="block" if publication.block else "drop",
        put=_put(pub),
        bytes=log.total,
        rate=lately.rates(("pub", stream_id), 0, log.next_seq, pub.made),
        byte_rate=lately.rates(("pub", stream_id), 1, log.total, pub.made),
        silent=None if log.last is None else max(0.0, wall - log.last),
        kept=log.next_seq - log.start,
        kept_bytes=log.size,
        buffer=publication.buffer,
        oldest=None if log.oldest is None else max(0.0, wall - log.oldest),
        lost=_lost_at(publication),
        waiting=waiting,
        waited=standing.seconds(("put", stream_id), first, lately.now) if waiting else 0.0,
        waits_for=waits_for,
        age=lately.now - pub.made,
        subscribers=tuple(
            SubscriberStats(
                name=cursor.name,
                peer_id=cursor.key.peer_id,
                sub_id=cursor.key.sub_id,
                state=state,
                way=runtime.subscribers.way_of(cursor)["way"],
                observer=cursor.observer,
                lag=max(0, cursor.lag),
                unsent=max(0, log.next_seq - cursor.sent_until),
                lost=cursor.lost,
                full=cursor.full,
                holds=publication.holds(cursor),
                idle=_idle(publication, cursor, standing, lately.now),
            )
            for state, cursor in cursors
        ),
    )


def _idle(publication: Publication, cursor: Cursor, standing: Standing, now: float) -> float | None:
    """Seconds for which it has taken nothing; None where that is less than two looks can tell."""
    idle = standing.seconds(_place(publication, cursor), cursor.acked, now) if cursor.lag else 0.0
    return idle if idle >= 1.0 else None


def _streams(sub: OpenSub) -> Iterator[Stream]:
    yield from list(sub.inbox.gone.values())
    yield from list(sub.inbox.streams.values())


def _sub(
    runtime: Runtime,
    sub: OpenSub,
    lately: Lately,
    standing: Standing,
    wall: float,
    room: list[int],
) -> SubStats:
    inbox, effort = sub.inbox, sub.sink.effort()
    key = ("sub", inbox.sub_id)
    streams = list(_streams(sub))
    taken = max(0, inbox.delivered - effort.left)
    consumed = inbox.window.consumed
    waiting = inbox.waiting()
    waits = sum(entry.end - entry.first for entry in waiting) + effort.left
    stuck = standing.seconds(key, taken, lately.now) if waits else 0.0
    handled, _ = lately.grown(key, 2, effort.messages)
    seconds, _ = lately.grown(key, 3, effort.seconds)
    if not handled:  # of none within that time: what it is at, or all that it ever did
        handled, seconds = effort.messages, effort.seconds
    last = max((stream.last for stream in streams if stream.last is not None), default=None)
    oldest = effort.oldest
    if oldest is None:
        oldest = min((entry.sent_at for entry in waiting if entry.end > entry.first), default=None)
    told = [stream for stream in streams if _spare(room, 1)]
    return SubStats(
        sub_id=inbox.sub_id,
        pattern=inbox.pattern,
        keep="latest" if inbox.latest else "all",
        observer=inbox.observer,
        delivered=taken,
        bytes=consumed,
        rate=lately.rates(key, 0, taken, sub.made),
        byte_rate=lately.rates(key, 1, consumed, sub.made),
        silent=None if last is None else max(0.0, wall - last),
        lost=inbox.lost,
        lost_by=tuple(inbox.lost_by.copy().items()),
        waiting=waits,
        waiting_bytes=max(0, inbox.window.received - consumed),
        window=inbox.window.size,
        oldest=None if oldest is None else max(0.0, wall - oldest),
        takes=effort.waits,
        handling=seconds / handled if handled else None,
        stuck=stuck if stuck >= 1.0 else None,
        age=lately.now - sub.made,
        streams=tuple(
            StreamStats(
                publisher=stream.publisher,
                peer_id=stream.key.peer_id,
                stream_id=stream.key.stream_id,
                topic=stream.topic,
                state=runtime.publishers.state_of(stream),
                way=runtime.publishers.way_of(stream)["way"],
                delivered=stream.delivered,
                lost=stream.lost,
                silent=None if stream.last is None else max(0.0, wall - stream.last),
            )
            for stream in told
        ),
    )


def _links(runtime: Runtime) -> Iterator[tuple[str, tuple[str, bool, str], Link | None]]:
    """Of each: what the other end is; who, whether it is up and by which way; and the link."""
    for remote in list(runtime.publishers.remotes.values()):
        yield "publisher", (remote.peer_id, remote.up, remote.address.kind), remote.link
    for served in list(runtime.subscribers.served):
        yield "subscriber", (served.peer_id, True, served.way), served.link


def _link(role: str, who: tuple[str, bool, str], link: Link | None, lately: Lately) -> LinkStats:
    peer_id, up, way = who
    if link is None:
        return LinkStats(role, peer_id, up, way)
    paused, pauses = link.pauses()
    grown, seconds = lately.grown(link, 2, pauses)
    return LinkStats(
        role=role,
        peer_id=peer_id,
        up=up,
        way=way,
        bytes_in=link.bytes_in,
        bytes_out=link.bytes_out,
        in_rate=lately.rates(link, 0, link.bytes_in, link.made),
        out_rate=lately.rates(link, 1, link.bytes_out, link.made),
        round_trip=link.round_trip,
        paused=paused,
        pausing=min(1.0, max(0.0, grown / seconds)) if seconds else 0.0,
    )
