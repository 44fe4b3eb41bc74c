"""Moments: what all processes tell, as the rows of each page of the browser."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pubsub.stats import Stats
from pubsub.stats.cause import FAULT, Cause
from pubsub.stats.ends import Mute
from pubsub.stats.rows import Rates, SubStats
from pubsub.stats.views import MUTE, PeerRow, StreamRow, links, peers, streams, topics
from pubsub.stats.why import causes
from pubsub.survey import Told

__all__ = ["PAGES", "Moment", "Past", "Row", "Rows"]

SECONDS = 60
"""Pictures, one a second, of which the curves of rates are made."""
MOST_CAUSES = 100
"""Of what is wrong, so much is told."""
MOST_EDGES = 2000
"""Of the graph, so many connections are told: those that are in trouble, and those with most
messages."""
STEADY = 2.5
"""Seconds by which the time of a last put may seem to change, for it is told as an age."""

HEALTH = ("idle", "ok", "warn", "bad")
"""How something is: nothing flows, all is well, something is to be said, something is wrong."""

Row = dict[str, Any]
Rows = dict[str, Row]


class Past:
    """What the pictures before have shown, as far as this one needs it."""

    def __init__(self) -> None:
        self.rates: dict[str, deque[float]] = {}
        self._put_at: dict[str, int] = {}

    def note(self, rates: Mapping[str, float]) -> None:
        """How many messages a second each topic has now; what is not among them is forgotten."""
        for topic in self.rates.keys() - rates.keys():
            del self.rates[topic]
            self._put_at.pop(topic, None)
        for topic, rate in rates.items():
            self.rates.setdefault(topic, deque(maxlen=SECONDS)).append(rate)

    def put_at(self, topic: str, at: float) -> int:
        """When something was put last: the same time as before, where it is about the same."""
        before = self._put_at.get(topic)
        if before is None or abs(at - before) > STEADY:
            before = self._put_at[topic] = round(at)
        return before


class Moment:
    """What all processes tell at one moment.

    Parameters:
        told: what is known of each process.
        now: by the clock of `Told.at`.
        at: the same moment in seconds since 1970.
        past: is brought up to date.
        own: identity of the process that looks.
        trouble: why nothing is known; empty: something is.
    """

    def __init__(
        self,
        told: Iterable[Told],
        *,
        now: float,
        at: float,
        past: Past,
        own: str = "",
        trouble: str = "",
    ) -> None:
        self.at = at
        self.past = past
        self._told = [*told]
        self._counted = [replace(each, stats=_counted(each.stats)) for each in self._told]
        self._now = now
        self._own = next(
            (each.stats.who for each in self._told if each.stats and each.peer_id == own), ""
        )
        self._trouble = trouble
        past.note({row.topic: _short(row.rate.second) for row in self._topics})

    @property
    def stats(self) -> list[Stats]:
        """Of all that tell."""
        return [told.stats for told in self._told if told.stats is not None and self._tells(told)]

    # --- what every page has ----------------------------------------------------------------

    def _tells(self, told: Told) -> bool:
        return not told.trouble and self._now - told.at <= MUTE

    @cached_property
    def _causes(self) -> list[Cause]:
        return causes(self.stats, mute=self._mute)

    @cached_property
    def _mute(self) -> list[Mute]:
        """Those that are known, and tell nothing."""
        found = []
        for told in self._told:
            if (told.stats is not None or told.trouble) and not self._tells(told):
                who = told.publisher if told.stats is None else told.stats.who
                trouble = told.trouble or "it does not answer"
                found.append(Mute(told.peer_id, who, told.publisher, trouble))
        return found

    @cached_property
    def _faults(self) -> set[str]:
        return {cause.sentence for cause in self._causes if cause.weight >= FAULT}

    @cached_property
    def _topics(self) -> Sequence[Any]:
        return topics(self._counted, self._causes, self._now)

    @cached_property
    def _peers(self) -> list[PeerRow]:
        return peers(self._counted, self._causes, self._now)

    @cached_property
    def head(self) -> Row:
        """What every page shows."""
        wrong = [cause for cause in self._causes if cause.weight >= FAULT]
        up: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        trouble: dict[str, str] = {}
        for stats in self.stats:
            for each in stats.coordinators:
                asked[each.address] += 1
                up[each.address] += each.up
                if each.trouble:
                    trouble[each.address] = each.trouble
        return {
            "trouble": self._trouble,
            "wrong": [self._cause(cause) for cause in wrong[:MOST_CAUSES]],
            "wrong_count": len(wrong),
            "topic_count": len(self._topics),
            "peer_count": len(self._told),
            "mute_count": len(self._mute),
            "rate": _short(sum(row.rate.second for row in self._topics)),
            "bytes": _short(sum(row.byte_rate.second for row in self._topics)),
            "lost": sum(row.lost for row in self._topics),
            "coordinators": [
                {"address": each, "up": up[each], "of": asked[each], "why": trouble.get(each, "")}
                for each in sorted(asked)
            ],
        }

    @cached_property
    def _keys(self) -> dict[str, str]:
        """`Told.publisher` by `Stats.who`."""
        return {each.stats.who: each.publisher for each in self._told if each.stats is not None}

    def _cause(self, cause: Cause) -> Row:
        return {
            "text": cause.sentence,
            "fault": cause.weight >= FAULT,
            "topic": cause.topic,
            "peer": self._keys.get(cause.subscriber) or self._keys.get(cause.publisher, ""),
        }

    def _health(self, why: str, trouble: str, busy: bool) -> str:
        """One of `HEALTH`."""
        if trouble or why in self._faults:
            return "bad"
        return "warn" if why else "ok" if busy else "idle"

    # --- pages ------------------------------------------------------------------------------

    def topics_page(self, _: str) -> tuple[Rows, Row]:
        """A row for each topic, by its name."""
        rows: Rows = {}
        for row in self._topics:
            rows[row.topic] = {
                "health": self._health(row.why, row.trouble, row.rate.ten > 0),
                "pubs": row.publishers,
                "subs": row.subscribers,
                "now": _short(row.rate.second),
                "rate": _short(row.rate.ten),
                "bytes": _short(row.byte_rate.ten),
                "lag": row.lag,
                "lost": row.lost,
                "put_at": self._put_at(row.topic, row.silent),
                "why": row.why or row.trouble,
            }
        return rows, {}

    def _put_at(self, topic: str, silent: float | None) -> int | None:
        return None if silent is None else self.past.put_at(topic, self.at - silent)

    def topic_page(self, name: str) -> tuple[Rows, Row]:
        """The streams of a topic."""
        rows: Rows = {}
        found = causes(self.stats, name, mute=self._mute) if name else []
        # What is overtaken in a peek is no news to who peeks.
        own = [each for each in found if each.kind != "conflated" or each.subscriber != self._own]
        bad = {cause.sentence for cause in own if cause.weight >= FAULT}
        for row in streams(self._counted, name, own, self._now):
            there = row.sub is not None or row.cursor is not None
            health = "bad" if row.trouble or row.why in bad else "warn" if row.why else "ok"
            rows["/".join(map(str, row.key))] = {
                "health": health,
                "from": row.publisher.who,
                "from_key": row.publisher.key,
                "to": row.subscriber.who if there else "",
                "to_key": row.subscriber.key if there else "",
                "state": row.state,
                "way": row.way,
                "observer": row.observer,
                "put": _short(row.put_rate.ten),
                "take": _short(row.take_rate.ten),
                "lag": row.lag,
                "unsent": row.unsent,
                "lost": row.lost,
                "oldest": _oldest(row),
                "handling": _short(row.handling),
                "trip": _short(self._trips.get((row.publisher.key, row.subscriber.peer_id))),
                "why": row.why or row.trouble,
            }
        more: Row = {"causes": [self._cause(cause) for cause in own]}
        all_of_it = next((row for row in self._topics if row.topic == name), None)
        if all_of_it is not None:
            more.update(
                now=_short(all_of_it.rate.second),
                rates=_rates(all_of_it.rate),
                byte_rates=_rates(all_of_it.byte_rate),
                lag=all_of_it.lag,
                lost=all_of_it.lost,
                lost_by=[*all_of_it.lost_by],
                put_at=self._put_at(name, all_of_it.silent),
                pubs=all_of_it.publishers,
                subs=all_of_it.subscribers,
            )
        return rows, more

    @cached_property
    def _trips(self) -> dict[tuple[str, str], float]:
        """Seconds that a heartbeat and its answer took, of a process and one that subscribes it."""
        return {
            (told.publisher, link.peer_id): link.round_trip
            for told in self._told
            if told.stats is not None
            for link in told.stats.links
            if link.round_trip is not None and link.role == "subscriber"
        }

    def peers_page(self, _: str) -> tuple[Rows, Row]:
        """A row for each process, by its `Told.publisher`."""
        rows: Rows = {}
        for row in self._peers:
            stats = row.stats or Stats()
            busy = row.put_rate.ten > 0 or row.take_rate.ten > 0
            rows[row.process.key] = {
                "health": self._health(row.why, row.process.trouble, busy),
                "who": row.process.who,
                "host": stats.host,
                "pubs": len(stats.pubs),
                "subs": len(stats.subs),
                "put": _short(row.put_rate.ten),
                "take": _short(row.take_rate.ten),
                "in": _short(row.in_rate.ten),
                "out": _short(row.out_rate.ten),
                "lag": row.lag,
                "lost": row.lost,
                "loop": _short(row.loop.most if row.loop.measured else None),
                "links": row.links_up,
                "why": row.why or row.process.trouble,
            }
        return rows, {}

    def peer_page(self, name: str) -> tuple[Rows, Row]:
        """The Pubs, Subs and links of a process."""
        row = next((row for row in self._peers if row.process.key == name), None)
        if row is None:
            return {}, {}
        stats, who = row.stats or Stats(), row.process.who
        rows: Rows = {}
        for pub in stats.pubs:
            rows[f"p{pub.stream_id}"] = {
                "topic": pub.topic,
                "rate": _short(pub.rate.ten),
                "bytes": _short(pub.byte_rate.ten),
                "put": pub.put,
                "kept": pub.kept_bytes,
                "buffer": pub.buffer,
                "overflow": pub.overflow,
                "lost": pub.lost,
                "subs": len(pub.subscribers),
                "lag": max((each.lag for each in pub.subscribers), default=0),
                "waits": "; ".join(pub.waits_for) if pub.waiting else "",
            }
        for sub in stats.subs:
            rows[f"s{sub.sub_id}"] = {
                "topic": sub.pattern,
                "keep": sub.keep,
                "observer": sub.observer,
                "rate": _short(sub.rate.ten),
                "bytes": _short(sub.byte_rate.ten),
                "taken": sub.delivered,
                "waiting": sub.waiting,
                "waiting_bytes": sub.waiting_bytes,
                "window": sub.window,
                "oldest": _short(sub.oldest),
                "handling": _short(sub.handling),
                "lost": sub.lost,
                "lost_by": [*sub.lost_by],
                "pubs": len(sub.streams),
            }
        for number, (other, link) in enumerate(links(self._told, stats.peer_id, self._now)):
            rows[f"l{number}"] = {
                "who": other.who,
                "key": other.key,
                "role": link.role,
                "up": link.up,
                "way": link.way,
                "in": _short(link.in_rate.ten),
                "out": _short(link.out_rate.ten),
                "trip": _short(link.round_trip),
                "pausing": _short(link.pausing),
            }
        mine = [cause for cause in self._causes if who in (cause.publisher, cause.subscriber)]
        return rows, {
            "who": who,
            "trouble": row.process.trouble,
            "told": row.stats is not None,
            "address": stats.address,
            "library": stats.library,
            "since": round(self.at - stats.age),
            "loop": [_short(each) for each in stats.loop[:3]] if stats.loop.measured else None,
            "pool": [stats.pool, stats.pool_size],
            "coordinators": [list(each) for each in stats.coordinators],
            "left_out": stats.left_out,
            "causes": [self._cause(cause) for cause in mine],
        }

    def graph_page(self, _: str) -> tuple[Rows, Row]:
        """Who sends to whom: a row for each two processes between which there are streams, and for
        each process."""
        rows: Rows = {}
        for process in self._peers:
            health = self._health(process.why, process.process.trouble, True)
            rows[f"n{process.process.key}"] = {"who": process.process.who, "health": health}
        passed = self._passed
        edges: dict[tuple[str, str], Row] = {}
        for row in streams(self._counted, "**", self._causes, self._now):
            ends = row.publisher.key, row.subscriber.key
            if not all(ends):
                continue
            edge = edges.setdefault(
                ends,
                {"from": ends[0], "to": ends[1], "rate": 0.0, "lag": 0, "lost": 0, "streams": 0}
                | {"health": "idle", "topic": row.topic, "why": ""},
            )
            edge["rate"] += passed.get(row.key, row.put_rate.ten if row.sub is None else 0.0)
            edge["lag"] += row.lag or 0
            edge["lost"] += row.lost
            edge["streams"] += 1
            health = self._health(row.why, row.trouble, edge["rate"] > 0)
            if HEALTH.index(health) > HEALTH.index(edge["health"]):
                edge["health"], edge["why"] = health, row.why or row.trouble
        for edge in edges.values():
            edge["rate"] = _short(edge["rate"])
        ranked = sorted(edges.values(), key=lambda edge: (edge["health"] != "bad", -edge["rate"]))
        for edge in ranked[:MOST_EDGES]:
            rows[f"e{edge['from']} {edge['to']}"] = edge
            for end in (edge["from"], edge["to"]):  # one of which nothing is told but by others
                rows.setdefault(f"n{end}", {"who": end, "health": "idle"})
        return rows, {"left_out": max(0, len(ranked) - MOST_EDGES)}

    @cached_property
    def _passed(self) -> dict[tuple[str, int, str, int], float]:
        """Messages a second that each stream has brought, from what its Sub told, and before."""
        found = {}
        for told in self._told:
            now, before = told.stats, told.before
            if now is None or before is None or not self._tells(told) or now.time <= before.time:
                continue
            had = {
                (stream.peer_id, stream.stream_id, before.peer_id, sub.sub_id): stream.delivered
                for sub in before.subs
                for stream in sub.streams
            }
            for sub in now.subs:
                for stream in sub.streams:
                    key = stream.peer_id, stream.stream_id, now.peer_id, sub.sub_id
                    grown = stream.delivered - had.get(key, 0)
                    found[key] = max(0.0, grown / (now.time - before.time))
        return found


PAGES: dict[str, Callable[[Moment, str], tuple[Rows, Row]]] = {
    "topics": Moment.topics_page,
    "topic": Moment.topic_page,
    "peers": Moment.peers_page,
    "peer": Moment.peer_page,
    "graph": Moment.graph_page,
}
"""What there is to look at."""


def _counted(stats: Stats | None) -> Stats | None:
    """Without what was overtaken where only the latest is wanted: nobody has lost that."""
    if stats is None or not any(sub.keep == "latest" and sub.lost for sub in stats.subs):
        return stats
    return stats._replace(subs=tuple(map(_of_latest, stats.subs)))


def _of_latest(sub: SubStats) -> SubStats:
    if sub.keep != "latest":
        return sub
    lost_by = tuple((reason, count) for reason, count in sub.lost_by if reason != "conflated")
    lost = sum(count for _, count in lost_by)
    streams = tuple(each._replace(lost=min(each.lost, lost)) for each in sub.streams)
    return sub._replace(lost=lost, lost_by=lost_by, streams=streams)


def _oldest(row: StreamRow) -> Any:
    """Seconds for which a message has waited: at the Sub, or, where it lags, at the Pub."""
    waits = [row.sub.oldest] if row.sub is not None else []
    if row.cursor is not None and row.cursor.lag and row.pub is not None:
        waits.append(row.pub.oldest if row.cursor.holds else None)
    return _short(max((each for each in waits if each is not None), default=None))


def _rates(rates: Rates) -> list[Any]:
    return [_short(each) for each in rates]


def _short(number: float | None) -> Any:
    """As exact as people read it, so that less of it changes."""
    return None if number is None else float(f"{number:.3g}") if number else 0
