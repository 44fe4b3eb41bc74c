"""The tables of ``pubsub top``: which columns each has, and how a value is written in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from pubsub.cli.terminal import printable
from pubsub.stats import PubStats, Stats, SubStats, views
from pubsub.stats.cause import Cause
from pubsub.stats.ends import Mute
from pubsub.stats.views import LinkRow, PeerRow, StreamRow, TopicRow
from pubsub.stats.words import duration, rate, size
from pubsub.survey import Told

__all__ = [
    "ENDS",
    "LINKS",
    "PEERS",
    "STREAMS",
    "TOPICS",
    "Column",
    "Ends",
    "Kind",
    "Picture",
    "about",
    "order",
]

R = TypeVar("R")
Value = float | str | None


class Picture(NamedTuple):
    """What was known at one moment.

    Attributes:
        told: of each process.
        causes: what ails them, most important first.
        now: when that was, by the clock of `Told.at`.
        mute: who is known besides, and tells nothing.
    """

    told: Sequence[Told] = ()
    causes: Sequence[Cause] = ()
    now: float = 0.0
    mute: Sequence[Mute] = ()


class Column(NamedTuple):
    """A column of a table, for rows of one kind.

    Attributes:
        head: what stands above it.
        value: by what it is sorted; None stands last in any order.
        write: how a value is shown, which is not None; default: text, to the left.
        means: what it shows, for the help.
        style: of what kind its text is: ``""``, ``bad`` or ``why``.
        none: what is shown for None.
    """

    head: str
    value: Callable[[Any], Value]
    write: Callable[[Any], str] | None
    means: str
    style: str = ""
    none: str = "-"

    def text(self, row: Any) -> str:
        """What stands in it."""
        value = self.value(row)
        if value is None:
            return self.none
        return printable(str(value)) if self.write is None else self.write(value)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A table.

    Attributes:
        name: what its rows are.
        columns: from left to right.
        key: what tells a row from all others of the table, and stays as it is.
        trouble: why the row is as it should not be; empty: it is not.
        detail: what is said of one row in whole sentences, a line each.
    """

    name: str
    columns: Sequence[Column]
    key: Callable[[R], Any]
    trouble: Callable[[R], str]
    detail: Callable[[R], list[str]]


def order(rows: Iterable[R], column: Column, *, reverse: bool) -> list[R]:
    """Sorted by a column; rows of which it is not known last, and else as they were."""
    known: list[R] = []
    unknown: list[R] = []
    for row in rows:
        (unknown if column.value(row) is None else known).append(row)
    return sorted(known, key=column.value, reverse=reverse) + unknown  # type: ignore[arg-type]


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _some(number: float) -> str:
    """Where 0 is how it should be."""
    return _count(number) if number else "-"


def _bytes(number: float) -> str:
    return size(number).replace("bytes", "B") if number else "-"


def _rate(number: float) -> str:
    return rate(number) if number else "-"


def _part(whole: tuple[int, int]) -> str:
    return f"{_bytes(whole[0])} of {_bytes(whole[1])}" if whole[1] else "-"


def _trouble(row: Any) -> str | None:
    return row.why or row.trouble or None


def _sentences(*pairs: tuple[str, str]) -> list[str]:
    return [f"{head}: {printable(text)}" for head, text in pairs if text]


# --- topics ---------------------------------------------------------------------------------------


def _lost_by(row: TopicRow) -> str:
    return ", ".join(f"{who or 'subscribers that are gone'} {n:,}" for who, n in row.lost_by)


TOPICS: Kind[TopicRow] = Kind(
    "topics",
    (
        Column("TOPIC", lambda r: r.topic, None, "the topic; of Subs without a Pub their pattern"),
        Column("PUBS", lambda r: r.publishers, _some, "Pubs that are there"),
        Column("SUBS", lambda r: r.subscribers, _some, "Subs, with observers"),
        Column("MSG/S", lambda r: r.rate.second, _rate, "messages put in the last second"),
        Column("BYTES/S", lambda r: r.byte_rate.second, _bytes, "bytes put in the last second"),
        Column("LAG", lambda r: r.lag, _some, "messages that the slowest Sub has not taken"),
        Column("LOST", lambda r: r.lost, _some, "messages that a Sub will never get", "bad"),
        Column("SILENT", lambda r: r.silent, duration, "since the last put"),
        Column("WHY", _trouble, None, "what is the matter", "why", ""),
    ),
    key=lambda r: r.topic,
    trouble=lambda r: r.trouble,
    detail=lambda r: _sentences(
        ("topic", r.topic), ("trouble", r.trouble), ("why", r.why), ("lost by", _lost_by(r))
    ),
)


# --- the streams of a topic -----------------------------------------------------------------------


def _who(end: views.Process) -> str | None:
    return end.who or None


def _state(row: StreamRow) -> str | None:
    """Of one end that has no other, none; an observer is told from others."""
    if row.state == "attached" and row.observer:
        return "observes"
    return row.state or None


STREAMS: Kind[StreamRow] = Kind(
    "streams",
    (
        Column("PUBLISHER", lambda r: _who(r.publisher), None, "who puts", none="nobody"),
        Column("SUBSCRIBER", lambda r: _who(r.subscriber), None, "who takes", none="nobody"),
        Column("STATE", _state, None, "how the stream stands"),
        Column("WAY", lambda r: r.way or None, None, "by which way it comes"),
        Column("PUT/S", lambda r: r.put_rate.second, _rate, "messages that the Pub puts"),
        Column(
            "TAKEN/S", lambda r: r.take_rate.second, _rate, "that the Sub takes, of all its Pubs"
        ),
        Column("LAG", lambda r: r.lag, _some, "messages put that it has not taken"),
        Column("UNSENT", lambda r: r.unsent, _some, "those of them that were not sent yet"),
        Column("LOST", lambda r: r.lost, _some, "messages that it will never get", "bad"),
        Column("HANDLING", lambda r: r.handling, duration, "its program's time for a message"),
        Column("SILENT", lambda r: r.silent, duration, "since the last put"),
        Column("WHY", _trouble, None, "what is the matter", "why", ""),
    ),
    key=lambda r: r.key,
    trouble=lambda r: r.trouble,
    detail=lambda r: _sentences(
        ("publisher", r.publisher.who or "nobody"),
        ("subscriber", r.subscriber.who or "nobody"),
        ("trouble", r.trouble),
        ("why", r.why),
    ),
)


# --- processes ------------------------------------------------------------------------------------


def _told(value: Callable[[PeerRow], Value]) -> Callable[[PeerRow], Value]:
    """What is known of it only where it has told something."""
    return lambda row: None if row.stats is None else value(row)


PEERS: Kind[PeerRow] = Kind(
    "processes",
    (
        Column("PROCESS", lambda r: r.process.who, None, "which it is"),
        Column("PUBS", _told(lambda r: len(r.stats.pubs) if r.stats else 0), _some, "its Pubs"),
        Column("SUBS", _told(lambda r: len(r.stats.subs) if r.stats else 0), _some, "its Subs"),
        Column("PUT/S", _told(lambda r: r.put_rate.second), _rate, "messages that it puts"),
        Column("TAKEN/S", _told(lambda r: r.take_rate.second), _rate, "messages that it takes"),
        Column("IN/S", _told(lambda r: r.in_rate.second), _bytes, "bytes that it reads"),
        Column("OUT/S", _told(lambda r: r.out_rate.second), _bytes, "bytes that it writes"),
        Column("LAG", _told(lambda r: r.lag), _some, "messages that its slowest Sub has not taken"),
        Column("LOST", _told(lambda r: r.lost), _some, "messages that its Subs lost", "bad"),
        Column(
            *("LOOP", lambda r: r.loop.p99 if r.loop.measured else None, duration),
            "how late its event loop is, of 99 in 100 times at most, over a minute",
        ),
        Column(
            *("WHY", lambda r: r.process.trouble or r.why or None, None),
            *("what is the matter", "why", ""),
        ),
    ),
    key=lambda r: r.process.key,
    trouble=lambda r: r.process.trouble,
    detail=lambda r: _sentences(
        ("process", r.process.who),
        ("address", r.stats.address if r.stats else r.process.key),
        ("trouble", r.process.trouble),
        ("why", r.why),
    ),
)


# --- one process ----------------------------------------------------------------------------------


class Ends(NamedTuple):
    """A Pub or a Sub of one process."""

    end: PubStats | SubStats

    @property
    def handling(self) -> float | None:
        return self.end.handling if isinstance(self.end, SubStats) else None

    @property
    def topic(self) -> str:
        return self.end.topic if isinstance(self.end, PubStats) else self.end.pattern

    @property
    def topics(self) -> set[str]:
        """Those that it has to do with."""
        if isinstance(self.end, PubStats):
            return {self.end.topic}
        return {stream.topic for stream in self.end.streams} or {self.end.pattern}

    @property
    def key(self) -> tuple[str, int]:
        if isinstance(self.end, PubStats):
            return "Pub", self.end.stream_id
        return "Sub", self.end.sub_id

    @property
    def others(self) -> int:
        if isinstance(self.end, PubStats):
            return len(self.end.subscribers)
        return sum(stream.state != "vanished" for stream in self.end.streams)

    @property
    def lag(self) -> int:
        if isinstance(self.end, PubStats):
            return max((each.lag for each in self.end.subscribers), default=0)
        return self.end.waiting

    @property
    def held(self) -> tuple[int, int]:
        if isinstance(self.end, PubStats):
            return self.end.kept_bytes, self.end.buffer
        return self.end.waiting_bytes, self.end.window

    @property
    def trouble(self) -> str:
        """What it waits for, or cannot reach."""
        if isinstance(self.end, PubStats):
            return "; ".join(self.end.waits_for)
        away = [each for each in self.end.streams if each.state != "attached"]
        return "; ".join(f"{each.publisher} of {each.topic} is {each.state}" for each in away)


ENDS: Kind[Ends] = Kind(
    "Pubs and Subs",
    (
        Column("", lambda r: r.key[0], None, "Pub or Sub"),
        Column("TOPIC", lambda r: r.topic, None, "its topic or pattern"),
        Column("OTHERS", lambda r: r.others, _some, "Subs of a Pub, Pubs of a Sub"),
        Column("MSG/S", lambda r: r.end.rate.second, _rate, "messages put, or taken"),
        Column("BYTES/S", lambda r: r.end.byte_rate.second, _bytes, "bytes of them"),
        Column(
            "LAG",
            lambda r: r.lag,
            _some,
            "messages that a Pub's slowest Sub has not taken, or that wait in a Sub",
        ),
        Column("LOST", lambda r: r.end.lost, _some, "messages that a Sub will never get", "bad"),
        Column("HELD", lambda r: r.held, _part, "bytes in a Pub's buffer, or a Sub's window"),
        Column("HANDLING", lambda r: r.handling, duration, "its program's time for a message"),
        Column("SILENT", lambda r: r.end.silent, duration, "since the last put"),
        Column("TROUBLE", lambda r: r.trouble or None, None, "what it waits for", "why", ""),
    ),
    key=lambda r: r.key,
    trouble=lambda r: "",
    detail=lambda r: _sentences((r.key[0], r.topic), ("trouble", r.trouble)),
)


LINKS: Kind[LinkRow] = Kind(
    "links",
    (
        Column("LINK WITH", lambda r: r.other.who, None, "who is at the other end"),
        Column("ROLE", lambda r: r.link.role, None, "what the other end is"),
        Column("WAY", lambda r: r.link.way if r.link.up else None, None, "which way it has"),
        Column("IN/S", lambda r: r.link.in_rate.second, _bytes, "bytes that come"),
        Column("OUT/S", lambda r: r.link.out_rate.second, _bytes, "bytes that go"),
        Column("ROUND TRIP", lambda r: r.link.round_trip, duration, "of the last heartbeat"),
        Column(
            "PAUSED",
            lambda r: r.link.pausing or None,
            "{:.0%}".format,
            "how much of the time it takes nothing",
        ),
        Column("TROUBLE", lambda r: r.other.trouble or None, None, "of the other end", "why", ""),
    ),
    key=lambda r: (r.other.peer_id, r.other.key, r.link.role),
    trouble=lambda r: r.other.trouble if r.link.up else "down",
    detail=lambda r: _sentences(("link with", r.other.who), ("trouble", r.other.trouble)),
)


def about(row: PeerRow | None) -> list[str]:
    """What is said of one process above its tables."""
    if row is None:
        return ["it has ended"]
    stats = row.stats or Stats()
    lines = _sentences(("trouble", row.process.trouble), ("why", row.why))
    if row.stats is None:
        return [row.process.who, *lines]
    loop = stats.loop
    late = (
        f"loop late by {duration(loop.p50)}, p99 {duration(loop.p99)}, most {duration(loop.most)}"
        if loop.measured
        else "loop not measured yet"
    )
    held = _part((stats.pool, stats.pool_size))
    where = stats.address or "cannot be dialled"
    shown = [
        f"{row.process.who}  {where}  pubsubd {stats.library}  up {duration(stats.age)}",
        f"{late}  shared memory {held}" if stats.pool_size else late,
    ]
    shown += [
        f"coordinator {each.address}: {'up' if each.up else each.trouble or 'down'}"
        for each in stats.coordinators
    ]
    if stats.left_out:
        shown.append(f"{stats.left_out:,} Pubs, Subs and streams more than it tells of")
    return [*map(printable, shown), *lines]
