"""``pubsub info TOPIC``: who publishes and subscribes a topic, how fast, and why it is slow."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from pubsub.cli.command import FAILED, OK, say
from pubsub.cli.doctor import MARKS
from pubsub.cli.findings import known
from pubsub.cli.listing import table
from pubsub.cli.surveying import Asked, heard, peer_to_ask_with, unheard
from pubsub.cli.terminal import printable
from pubsub.core.rights import Rights
from pubsub.core.topics import is_pattern
from pubsub.errors import AuthError, PubSubError
from pubsub.stats import Stats, SubscriberStats, SubStats
from pubsub.stats.ends import Ends, Pair
from pubsub.stats.why import FAULT, Cause, causes
from pubsub.stats.words import count, duration, rate, size
from pubsub.survey import Survey

__all__ = ["info", "without_list"]

SETTLE = 3.0
"""Seconds for rates: each is measured for a second."""
LONGER = 2.5
"""Seconds more where something waits: so long is looked whether it goes on."""
ON_THE_WAY = 0.5
"""Seconds whose messages may be on the way, or in a batch, where all is well."""


class _Seen(NamedTuple):
    """What there is to say."""

    ends: Ends
    why: list[Cause]


async def info(topic: str, coordinator: str | None, as_json: bool) -> int:
    """Look for a few seconds, and print what is seen; returns the exit code."""
    for name in ("pubsub", "asyncio"):  # what they have to tell, a cause says
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    asked = Asked(coordinator)
    topics = await asked.rows("topics")
    peer = peer_to_ask_with(f"pubsub info {topic}", asked)
    try:
        try:
            seen = await _look(topic, asked, peer)
        except AuthError as error:
            say(f"who publishes and subscribes is not seen: {error}")
            seen = _Seen(Ends([], topic), without_list(topic, asked.guard.rights, topics))
    finally:
        await peer.close(0.0)
    if as_json:
        click.echo(json.dumps(_as_json(seen), indent=2, ensure_ascii=False))
    else:
        for line in _lines(seen):
            click.echo(printable(line))
    return _end(seen, topic, as_json)


async def _look(topic: str, asked: Asked, peer: Any) -> _Seen:
    async with Survey(peer) as survey:
        await survey.settled(SETTLE, rates=True)
        if any(_lags(stats, topic) for stats in heard(survey, peer)):
            await asyncio.sleep(LONGER)
        try:
            rows = await asked.rows("peers")
        except PubSubError as error:
            say(f"the peers that tell nothing are not known by name: {error}")
            rows = []
        told = heard(survey, peer)
        mute = unheard(survey, rows, peer)
    return _Seen(Ends(told, topic, mute), causes(told, topic, mute=mute))


def _lags(stats: Stats, topic: str) -> bool:
    return any(
        pub.waiting or any(row.lag > pub.rate.ten * ON_THE_WAY for row in pub.subscribers)
        for _, pub in Ends([stats], topic).pubs
    )


def without_list(topic: str, rights: Rights, topics: Sequence[dict[str, Any]]) -> list[Cause]:
    """What one may know that has no right to list: its own rights, and how many there are."""
    why = []
    covered = bool(rights.part(topic)) if is_pattern(topic) else rights.may_subscribe(topic)
    publishes = not is_pattern(topic) and rights.may_publish(topic)
    if not covered and not publishes:
        may = f"it {rights.may('subscribe')}, and {rights.may('publish')}"
        text = f"this certificate may neither subscribe nor publish {topic!r}: {may}"
        why.append(Cause("rights", text, FAULT, topic))
    elif not covered or not (publishes or is_pattern(topic)):
        verb = "publish" if covered else "subscribe"
        text = f"this certificate may not {verb} {topic!r}: it {rights.may(verb)}"
        why.append(Cause("rights", text, FAULT - 1, topic))
    pubs, subs = known(topic, topics)
    if pubs or subs:
        both = f"{count(pubs, 'publisher')} and {count(subs, 'subscriber')}"
        why.append(Cause("counts", f"the coordinator knows {both} of {topic!r}", 0.0, topic))
    elif covered or publishes:
        text = f"the coordinator knows nobody who publishes or subscribes {topic!r}"
        why.append(Cause("unpublished", text, FAULT, topic))
    return why


# --- for people -----------------------------------------------------------------------------------


def _lines(seen: _Seen) -> list[str]:
    shown: list[str] = []
    several = is_pattern(seen.ends.topic or "")
    pubs, subs = _publishers(seen.ends), _subscribers(seen.ends)
    if pubs:
        columns = ("topic", "publisher", "msg/s", "bytes/s", "put", "last put", "buffer", "subs")
        shown += [*table(columns if several else columns[1:], map(_pub_in_words, pubs)), ""]
    if subs:
        columns = (
            *("pattern", "subscriber", "way", "msg/s", "lag", "lost", "last", "per message"),
        )
        alike = not several and all(row["pattern"] == seen.ends.topic for row in subs)
        shown += [*table(columns[1:] if alike else columns, map(_sub_in_words, subs)), ""]
    for cause in seen.why:
        shown.append(f"{MARKS[_state(cause)]}  {cause.sentence}")
    return shown if seen.why else shown[:-1]


def _state(cause: Cause) -> str:
    return "wrong" if cause.weight >= FAULT else "note" if cause.kind != "counts" else "ok"


def _end(seen: _Seen, topic: str, as_json: bool) -> int:
    wrong = sum(cause.weight >= FAULT for cause in seen.why)
    if as_json:
        return FAILED if wrong else OK
    for mute in seen.ends.mute:
        say(f"not seen: what {mute.who or mute.address} does, as {mute.trouble}")
    left_out = sum(stats.left_out for stats in seen.ends.processes.values())
    if left_out:
        say(f"not seen: {count(left_out, 'row')} of processes that have too many to tell")
    if not wrong and seen.ends.processes:
        many = len(seen.ends.processes)
        notes = "; see the notes" if seen.why else ""
        tell = "processes tell" if many > 1 else "process tells"
        say(f"nothing is wrong, as far as {many} {tell}{notes}")
    elif any(cause.kind in ("unpublished", "unreachable", "rights") for cause in seen.why):
        say(f"`pubsub doctor {topic!r}` looks further: at credentials, coordinators and ways")
    return FAILED if wrong else OK


def _pub_in_words(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "msg/s": rate(row["rate"]),
        "bytes/s": size(row["byte_rate"]),
        "put": f"{row['put']:,}",
        "last put": None if row["silent"] is None else f"{duration(row['silent'])} ago",
        "buffer": f"{row['kept_bytes'] / row['buffer']:.0%}" if row["buffer"] else None,
        "subs": row["subscribers"],
    }


def _sub_in_words(row: dict[str, Any]) -> dict[str, Any]:
    kept, lost = row["keep"] == "latest", row["lost"]
    return {
        **row,
        "way": ", ".join(row["ways"]) or row["state"],  # no way: why
        "msg/s": "?" if row["rate"] is None else rate(row["rate"]),
        "lag": f"{row['lag']:,}",
        "lost": f"{lost:,}" + (" (latest)" if kept and lost else ""),
        "last": None if row["silent"] is None else f"{duration(row['silent'])} ago",
        "per message": None if row["handling"] is None else duration(row["handling"]),
    }


# --- for programs ---------------------------------------------------------------------------------


def _as_json(seen: _Seen) -> dict[str, Any]:
    return {
        "topic": seen.ends.topic,
        "publishers": _publishers(seen.ends),
        "subscribers": _subscribers(seen.ends),
        "why": [{**cause._asdict(), "wrong": cause.weight >= FAULT} for cause in seen.why],
        "not_seen": [mute._asdict() for mute in seen.ends.mute],
    }


def _publishers(ends: Ends) -> list[dict[str, Any]]:
    return [
        {
            "topic": pub.topic,
            "publisher": stats.who,
            "address": f"{stats.address}#{pub.stream_id}",
            "rate": pub.rate.ten,
            "byte_rate": pub.byte_rate.ten,
            "put": pub.put,
            "silent": pub.silent,
            "overflow": pub.overflow,
            "waiting": pub.waiting,
            "kept": pub.kept,
            "kept_bytes": pub.kept_bytes,
            "buffer": pub.buffer,
            "lost": pub.lost,
            "subscribers": len(pub.subscribers),
        }
        for stats, pub in sorted(ends.pubs, key=lambda each: (each[1].topic, each[0].who))
    ]


def _subscribers(ends: Ends) -> list[dict[str, Any]]:
    """A row for each Sub, also of those that only Pubs tell of."""
    pairs: dict[tuple[str, int], list[Pair]] = {}
    for stats, sub in ends.subs:
        pairs[stats.peer_id, sub.sub_id] = []
    for pair in ends.pairs:
        pairs.setdefault(pair.sub_id, []).append(pair)
    subs = {(stats.peer_id, sub.sub_id): (stats.who, sub) for stats, sub in ends.subs}
    rows = [
        _subscriber(subs.get(key) or (ends.subscriber(those[0]), None), those)
        for key, those in pairs.items()
    ]
    return sorted(rows, key=lambda row: (row["pattern"] or "", row["subscriber"]))


def _subscriber(of: tuple[str, SubStats | None], pairs: Sequence[Pair]) -> dict[str, Any]:
    who, sub = of
    told: list[SubscriberStats] = [pair.row for pair in pairs if pair.row is not None]
    ends_of = [pair.stream or pair.row for pair in pairs]
    return {
        "pattern": sub.pattern if sub else _only({pair.topic for pair in pairs}),
        "subscriber": who,
        "state": _only({each.state for each in ends_of if each}),
        "ways": sorted({each.way for each in ends_of if each and each.way}),
        "rate": sub.rate.ten if sub else None,
        "lag": max(sum(row.lag for row in told), sub.waiting if sub else 0),
        "unsent": sum(row.unsent for row in told),
        "lost": max(sub.lost if sub else 0, sum(pair.lost for pair in pairs)),
        "silent": sub.silent if sub else None,
        "handling": sub.handling if sub else None,
        "keep": sub.keep if sub else None,
        "observer": sub.observer if sub else all(row.observer for row in told),
    }


def _only(found: set[str]) -> str | None:
    return found.pop() if len(found) == 1 else None
