"""A snapshot: how the Pubs, Subs, links and coordinators of one process stand, as plain rows.

Nothing is counted for it: the rows are read, when somebody asks, from what the cores keep anyway.
They may be read from any thread; each row is of one moment, and two may be of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pubsub.core.inbox import Inbox
from pubsub.core.publication import Leaver, Publication
from pubsub.core.stream import Stream

__all__ = [
    "CoordinatorRow",
    "LinkRow",
    "PubRow",
    "Snapshot",
    "StreamRow",
    "SubRow",
    "SubscriberRow",
]


class SubscriberRow(NamedTuple):
    """A Sub, as a Pub knows it; see `Pub.subscribers`."""

    name: str
    state: Literal["attached", "expected", "reconnecting"]
    taken: int
    """Every message below this number was taken, or given up."""
    lost: int
    observer: bool


class PubRow(NamedTuple):
    """A Pub; also one that was closed, as long as it is remembered."""

    topic: str
    open: bool
    subscribers: tuple[SubscriberRow, ...]
    leavers: tuple[Leaver, ...]
    """The last that are gone and lacked something."""
    reached: int
    """How many that are gone had received something."""

    @classmethod
    def of(cls, publication: Publication) -> PubRow:
        subscribers = tuple(
            SubscriberRow(cursor.name, state, cursor.acked, cursor.lost, cursor.observer)
            for state, cursor in publication.cursors()
        )
        topic, leavers = publication.topic, tuple(publication.leavers)
        return cls(topic, not publication.ended, subscribers, leavers, publication.reached)


class StreamRow(NamedTuple):
    """A Pub, as a Sub knows it; see `Sub.publishers`."""

    publisher: str
    topic: str
    state: str
    fate: str
    """``vanished`` or ``unreachable``: what it had is not known, or would not be if it were given
    up now; empty: it is attached, or owes nothing."""
    delivered: int
    lost: int
    due: int | None
    """The sequence number that comes next; None: it never was attached."""


class SubRow(NamedTuple):
    """A Sub, and the streams that it gets or that ended without a word."""

    pattern: str
    lost: int
    streams: tuple[StreamRow, ...]

    @classmethod
    def of(
        cls,
        inbox: Inbox,
        in_trouble: Callable[[Stream], bool],
        state_of: Callable[[Stream], str],
    ) -> SubRow:
        rows = tuple(
            StreamRow(
                stream.publisher,
                stream.topic,
                state_of(stream),
                stream.gone if stream.ended or stream.open else stream.fate(in_trouble(stream)),
                stream.delivered,
                stream.lost,
                stream.expected,
            )
            for stream in (*list(inbox.gone.values()), *list(inbox.streams.values()))
        )
        return cls(inbox.pattern, inbox.lost, rows)


class LinkRow(NamedTuple):
    """A link with another peer."""

    role: Literal["publisher", "subscriber"]
    """What the other end is."""
    peer_id: str
    up: bool
    way: str
    """Of which kind the way is that it has, or had last: ``unix``, ``direct``, ``reverse``
    or ``relay``."""


class CoordinatorRow(NamedTuple):
    """A coordinator."""

    address: str
    up: bool
    trouble: str
    """Why it is not up, or of no use, in one short line; empty: it is."""


class Snapshot(NamedTuple):
    """All of it."""

    pubs: tuple[PubRow, ...]
    subs: tuple[SubRow, ...]
    links: tuple[LinkRow, ...]
    coordinators: tuple[CoordinatorRow, ...]
