"""Who does not meet: what of Pubs and Subs that should, and know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pubsub.core.topics import hears, is_pattern
from pubsub.stats.cause import YOUNG, Cause, listed, made, one
from pubsub.stats.ends import Ends
from pubsub.stats.near import near
from pubsub.stats.rows import PubStats, Stats, SubStats
from pubsub.stats.words import count, duration

__all__ = ["silent", "unmatched", "unpublished", "unsubscribed"]

SILENT = 30.0
"""Seconds without a put after which that is said of a topic that is asked for."""


def unmatched(ends: Ends) -> Iterator[Cause]:
    """A Pub and a Sub of one topic that know nothing of each other."""
    met = {(pair.pub_id, pair.sub_id) for pair in ends.pairs}
    pubs: dict[str, list[tuple[Stats, PubStats]]] = {}
    for publisher, pub in ends.pubs:
        if pub.age >= YOUNG and not publisher.left_out:
            pubs.setdefault(pub.topic, []).append((publisher, pub))
    for subscriber, sub in ends.subs:
        if sub.age < YOUNG or subscriber.left_out:
            continue
        pattern, here = sub.pattern, (subscriber.peer_id, sub.sub_id)
        topics = [t for t in pubs if hears(pattern, t)] if is_pattern(pattern) else [pattern]
        missed = [
            (publisher, pub)
            for topic in topics
            for publisher, pub in pubs.get(topic, ())
            if ((publisher.peer_id, pub.stream_id), here) not in met
        ]
        if missed:
            yield _missed(subscriber, sub, missed)


def _missed(subscriber: Stats, sub: SubStats, missed: Sequence[tuple[Stats, PubStats]]) -> Cause:
    """A Sub gets nothing of these; said of the first."""
    publisher, pub = missed[0]
    there, here = _coordinators(publisher), _coordinators(subscriber)
    if there and here and not there & here:
        why = (
            f"they ask different coordinators ({listed(sorted(here))} and "
            f"{listed(sorted(there))}): give both the same PUBSUB_COORDINATOR"
        )
    else:
        why = (
            "it has no right to it, or has not heard of it: see `pubsubd cert show` of its "
            "certificate, and what it has logged"
        )
    more = f" (and of {count(len(missed) - 1, 'other Pub')})" if missed[1:] else ""
    return made(
        "unmatched",
        f"{subscriber.who} subscribes {sub.pattern!r}, and gets nothing of {pub.topic!r} from "
        f"{publisher.who}{more}: {why}",
        *(pub.topic, publisher.who, subscriber.who),
    )


def _coordinators(stats: Stats) -> set[str]:
    return {each.address for each in stats.coordinators if each.up}


def unpublished(ends: Ends) -> Iterator[Cause]:
    """Topics that somebody waits for, or is asked for, and nobody publishes."""
    topic = ends.topic
    waiting: dict[str, list[str]] = {}
    for stats, sub in ends.subs:
        if sub.age >= YOUNG and not sub.streams:
            waiting.setdefault(sub.pattern, []).append(stats.who)
    if topic is not None:
        if ends.pubs or any(pair.stream for pair in ends.pairs):
            return
        meant = _meant(near(topic, ends.published))
        others = listed(each.who or each.address for each in ends.mute)
        unless = f" (unless {others} does, which does not answer)" if others else ""
        subscribers = [stats.who for stats, _ in ends.subs]
        if subscribers:
            text = f"nobody publishes {topic!r}, which {listed(subscribers)} subscribes"
        else:
            text = f"nobody publishes or subscribes {topic!r}"
        yield made("unpublished", f"{text}{unless}{meant}", topic, "", one(subscribers, ""))
        return
    for pattern, who in waiting.items():
        alike = [] if is_pattern(pattern) else near(pattern, ends.published)
        if alike and not any(hears(pattern, each) for each in ends.published):
            text = f"nobody publishes {pattern!r}, which {listed(who)} subscribes{_meant(alike)}"
            yield made("unpublished", text, pattern, "", one(who, ""))


def _meant(alike: Sequence[str]) -> str:
    return f": perhaps {' or '.join(map(repr, alike))} is meant" if alike else ""


def unsubscribed(ends: Ends) -> Iterator[Cause]:
    """Nobody is there for what is put on the topic that is asked for."""
    topic = ends.topic
    assert topic is not None
    if ends.pubs and not ends.subs and not ends.pairs:
        waiting = {
            sub.pattern
            for stats in ends.processes.values()
            for sub in stats.subs
            if not sub.streams and not is_pattern(sub.pattern)
        }
        alike = near(topic, waiting)
        meant = f"; {' and '.join(map(repr, alike))} is subscribed, in vain" if alike else ""
        who = [stats.who for stats, _ in ends.pubs]
        text = f"nobody subscribes {topic!r}, which {listed(who)} publishes{meant}"
        yield made("unsubscribed", text, topic, one(who, ""))


def silent(ends: Ends) -> Iterator[Cause]:
    """Nothing is put on the topic that is asked for."""
    topic = ends.topic
    if not ends.pubs:
        return
    silences = [pub.age if pub.silent is None else pub.silent for _, pub in ends.pubs]
    never = all(pub.silent is None for _, pub in ends.pubs)
    if min(silences) < (YOUNG if never else SILENT) or any(pub.waiting for _, pub in ends.pubs):
        return
    who = [stats.who for stats, _ in ends.pubs]
    what = f"nothing was put on {topic!r}"
    if never:
        text = f"{what} yet, since {listed(who)} made its Pub {duration(max(silences))} ago"
    else:
        text = f"{what} for {duration(min(silences))} (by {listed(who)})"
    yield made("silent", text, topic or "", one(who, ""), seconds=min(silences))
