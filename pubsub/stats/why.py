"""Why slow, why nothing: from what several processes tell of themselves, who is the cause.

Each cause is a sentence that names the process, and the numbers that show it. Where nothing is the
matter, there is none. The limits below say from when on a number is worth a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pubsub.stats.cause import FAULT, YOUNG, Cause, listed, made, one
from pubsub.stats.ends import Ends, Mute, Pair
from pubsub.stats.meeting import silent, unmatched, unpublished, unsubscribed
from pubsub.stats.rows import PubStats, Stats, SubStats
from pubsub.stats.words import count, duration, rate, size

__all__ = ["FAULT", "Cause", "Mute", "causes"]

LATE = 1.0
"""Seconds that a message, or a put, may wait: less is a batch, or a processor that is busy."""
IDLE = 2.0
"""Seconds for which a subscriber may take nothing: two looks at it, one after the other, and one
that may fall into its pause."""
BLOCKED = 0.25
"""Seconds by which a loop may be late: a collection of garbage, or a busy machine, makes a tenth.
(Where a timer is so late, the runtime too takes it that the loop did not run; see `patience`.)"""
PAUSING = 0.2
"""Part of the time in which a link may take nothing: below, one burst fills it now and then."""
BUSY = 0.5
"""Part of its time that a consumer spends on messages, above which it is these that it is slow
with."""


def causes(
    told: Sequence[Stats], topic: str | None = None, *, mute: Sequence[Mute] = ()
) -> list[Cause]:
    """Who keeps messages from coming, or makes them late; the most important first.

    Parameters:
        told: what processes tell of themselves, each once, and each of the last few seconds.
        topic: the topic or pattern that is asked for; None: whatever there is. Only of what is
            asked for it is said that nobody subscribes it, or that nothing is put on it.
        mute: those that are known, and tell nothing.

    Example:
        >>> from pubsub.stats import PubStats, Stats
        >>> app = Stats("a", "app.py", 71, "host", pubs=(PubStats(1, "lamp/on", age=60.0),))
        >>> for cause in causes([app], "lamp/no"):
        ...     print(cause.sentence)
        nobody publishes or subscribes 'lamp/no': perhaps 'lamp/on' is meant
    """
    ends = Ends(told, topic, mute)
    found = {*_of_pairs(ends), *_of_subs(ends), *_of_pubs(ends), *_of_processes(ends)}
    found |= {*unmatched(ends), *unpublished(ends)}
    if topic is not None:
        found |= {*unsubscribed(ends), *silent(ends)}
    return sorted(found, key=lambda cause: (-cause.weight, cause.sentence))


# --- one Pub and one Sub ------------------------------------------------------------------------


def _of_pairs(ends: Ends) -> Iterator[Cause]:
    apart: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in ends.pairs:
        state = pair.stream.state if pair.stream else pair.row.state if pair.row else ""
        who = ends.publisher(pair), ends.subscriber(pair)
        if state in ("vanished", "unreachable", "connecting", "reconnecting", "expected"):
            if pair.stream is None or state in ("vanished", "unreachable") or _is_old(pair):
                whose = who[0] if state in ("vanished", "unreachable") else " ".join(who)
                apart.setdefault((state, pair.topic, whose), []).append(pair)
        elif pair.subscriber is None:
            yield from _stopped_subscriber(pair, *who)
        elif pair.publisher is None:
            yield from _stopped_publisher(ends, pair, *who)
        else:
            yield from _network(pair, *who)
    for (state, topic, _), pairs in apart.items():
        yield _apart(ends, state, topic, pairs)


def _is_old(pair: Pair) -> bool:
    return pair.sub is None or pair.sub.age >= YOUNG


def _stopped_subscriber(pair: Pair, publisher: str, subscriber: str) -> Iterator[Cause]:
    """It tells nothing; does it take?"""
    row = pair.row
    if row is None:
        return
    idle, waiting = row.idle or 0.0, max(0, row.lag - pair.untold)
    if row.lag and idle >= IDLE:
        yield made(
            "stopped",
            f"{subscriber} has taken nothing of {pair.topic!r} for at least {duration(idle)}, and "
            "does not answer: it hangs, or was stopped (Ctrl-Z, a debugger); "
            f"{_waits(waiting)} for it",
            *(pair.topic, publisher, subscriber),
            seconds=idle,
            observer=row.observer,
        )
    elif row.lag and pair.pub is not None and (behind := _time_for(row.lag, pair.pub)) >= LATE:
        yield made(
            "slow",
            f"{subscriber} is {duration(behind)} behind with {pair.topic!r}, and does not answer: "
            "its event loop hardly runs, because it computes, sleeps or waits without await; "
            f"{_waits(waiting)} for it",
            *(pair.topic, publisher, subscriber),
            seconds=behind,
            observer=row.observer,
        )


def _waits(messages: int) -> str:
    return f"{count(messages, 'message')} wait{'s' if messages == 1 else ''}"


def _stopped_publisher(ends: Ends, pair: Pair, publisher: str, subscriber: str) -> Iterator[Cause]:
    stream = pair.stream
    assert stream is not None
    mute = ends.silent(stream.peer_id, stream.publisher)
    if mute is not None and (stream.silent is None or stream.silent >= IDLE):
        last = "nothing" if stream.silent is None else f"nothing for {duration(stream.silent)}"
        yield made(
            "stopped",
            f"{publisher}, which publishes {pair.topic!r}, does not answer: it hangs, or was "
            f"stopped (Ctrl-Z, a debugger); {subscriber} has got {last}",
            *(pair.topic, publisher, subscriber),
            seconds=stream.silent or 0.0,
        )


def _network(pair: Pair, publisher: str, subscriber: str) -> Iterator[Cause]:
    """What waits on the way, and not for a program."""
    pub, row, link, sub = pair.pub, pair.row, pair.link, pair.sub
    if pub is None or row is None or link is None or sub is None or not row.lag:
        return
    if row.full and sub.waiting:
        return  # it is full of what its program does not take; else of what is on the way
    if pair.subscriber is not None and pair.subscriber.loop.most >= BLOCKED:
        return  # it reads late; see `_of_processes`
    idle = row.idle or 0.0
    waits = pub.oldest or 0.0 if row.holds else _time_for(row.unsent, pub)
    if idle >= IDLE and not sub.waiting:
        yield made(
            "network",
            f"the network from {publisher} to {subscriber} has let nothing through for "
            f"{duration(idle)}: {row.lag:,} of {pair.topic!r} wait for it",
            *(pair.topic, publisher, subscriber),
            seconds=idle,
            observer=sub.observer,
        )
    elif (
        row.unsent
        and waits >= LATE
        and (row.full or link.pausing >= PAUSING or link.paused >= LATE)
    ):
        yield made(
            "network",
            f"the network from {publisher} to {subscriber} takes {size(link.out_rate.ten)} a "
            f"second, and {row.unsent:,} of {pair.topic!r} wait for it",
            *(pair.topic, publisher, subscriber),
            seconds=waits,
            observer=sub.observer,
        )


def _time_for(messages: int, pub: PubStats) -> float:
    """Seconds for which so many have waited, about: it took that long to put them."""
    return messages / pub.rate.ten if pub.rate.ten > 0 else pub.silent or 0.0


def _apart(ends: Ends, state: str, topic: str, pairs: Sequence[Pair]) -> Cause:
    """They have no link now."""
    first = pairs[0]
    publisher, subscriber = ends.publisher(first), ends.subscriber(first)
    seen_by = listed(ends.subscriber(pair) for pair in pairs)
    silent = max((pair.stream.silent or 0.0 for pair in pairs if pair.stream), default=0.0)
    if state == "vanished" or (state == "unreachable" and first.publisher is None):
        how = "has vanished without a goodbye" if state == "vanished" else "is not reached"
        why = "it was killed, or its machine or network is gone"
        others = [pair for pair in ends.pairs if pair.topic == topic and _flows(pair)]
        if others and state == "vanished":
            text = f"{publisher}, which published {topic!r}, {how}; others publish it"
            return made("replaced", text, topic, publisher, subscriber)
        text = f"{publisher}, which published {topic!r}, {how}: {why} (says {seen_by})"
        return made(state, text, topic, publisher, subscriber, seconds=silent)
    if state == "unreachable":
        text = (
            f"no way leads from {seen_by} to {publisher}, which lives and publishes {topic!r}: "
            "see `pubsub doctor` there"
        )
        return made(state, text, topic, publisher, subscriber)
    if state == "expected":
        text = f"a coordinator says that {seen_by} subscribes {topic!r} of {publisher}, and it "
        return made("reconnecting", f"{text}has not come yet", topic, publisher, subscriber)
    has = "is not there yet" if state == "connecting" else "broke, and it is made again"
    text = f"the link from {publisher} to {seen_by} for {topic!r} {has}"
    return made("reconnecting", text, topic, publisher, subscriber)


def _flows(pair: Pair) -> bool:
    return pair.stream is not None and pair.stream.state == "attached"


# --- one Sub --------------------------------------------------------------------------------------


def _of_subs(ends: Ends) -> Iterator[Cause]:
    pairs_of: dict[tuple[str, int], list[Pair]] = {}
    for pair in ends.pairs:
        pairs_of.setdefault(pair.sub_id, []).append(pair)
    for process, sub in ends.subs:
        pairs = pairs_of.get((process.peer_id, sub.sub_id), [])
        yield from _taking(ends, process, sub, pairs)
        lost = sum(messages for reason, messages in sub.lost_by if reason != "conflated")
        if lost:
            yield _lost(ends, process, sub, pairs)
        if conflated := sum(n for reason, n in sub.lost_by if reason == "conflated"):
            yield made(
                "conflated",
                f"{process.who} takes the latest of {sub.pattern!r} alone, as it asked for "
                f"(keep='latest'): {count(conflated, 'message')} were overtaken",
                *(sub.pattern, "", process.who),
            )


def _taking(ends: Ends, process: Stats, sub: SubStats, pairs: Sequence[Pair]) -> Iterator[Cause]:
    """Whether its program takes what comes."""
    rows = [pair.row for pair in pairs if pair.row is not None]
    oldest = sub.oldest or 0.0
    if not sub.waiting or sub.takes or oldest < LATE:
        return
    waiting = max(sub.waiting, sum(pair.row.lag - pair.untold for pair in pairs if pair.row))
    wait = f"{_waits(waiting)}, the oldest for {duration(oldest)}"
    who, topic = process.who, one((pair.topic for pair in pairs), sub.pattern)
    at = topic, one((ends.publisher(pair) for pair in pairs), ""), who
    if not sub.rate.ten and not sub.rate.second:
        idle = max([row.idle or 0.0 for row in rows], default=0.0) or min(process.watched, oldest)
        if not sub.delivered:
            text = f"{who} has not taken a message of {topic!r} yet: {wait}"
        elif idle < IDLE:
            return
        else:
            text = f"{who} has taken nothing of {topic!r} for at least {duration(idle)}: {wait}"
        yield made("stuck", text, *at, seconds=oldest, observer=sub.observer)
    elif sub.keep != "latest":
        takes = sub.rate.ten
        put = [pair.pub.rate.ten for pair in pairs if pair.pub is not None]
        of = f" of the {rate(sum(put))} that are put" if len(put) == len(pairs) and put else ""
        spent = "" if sub.handling is None else duration(sub.handling)
        if sub.handling is not None and sub.handling * takes >= BUSY:
            text = f"{who} spends {spent} in its code per message, and takes {rate(takes)} a second"
        else:
            text = f"{who} takes {rate(takes)} messages of {topic!r} a second"
            of += f", though it spends but {spent} on each: it does other things" if spent else ""
        text = f"{text}{of}: {wait}"
        yield made("slow", text, *at, seconds=oldest, observer=sub.observer)


LOST = {
    "overflow": "they had left the buffer before it took them",
    "closed": "the Pub was closed before it could send them",
    "too large": "they are larger than its max_message",
    "undecodable": "it cannot decode them",
}
"""By the reason of a `Gap`."""


def _lost(ends: Ends, process: Stats, sub: SubStats, pairs: Sequence[Pair]) -> Cause:
    why = [
        f"{messages:,} because {LOST.get(reason, reason)}"
        for reason, messages in sorted(sub.lost_by, key=lambda by: -by[1])
        if reason != "conflated" and messages
    ]
    lost = sum(messages for reason, messages in sub.lost_by if reason != "conflated")
    if len(why) == 1:
        why = [why[0].partition("because ")[2]]
    by = [ends.publisher(pair) for pair in pairs if pair.stream is not None and pair.stream.lost]
    of = f" of {listed(by)}" if by else ""
    return made(
        "lost",
        f"{process.who} has lost {count(lost, 'message')} of {sub.pattern!r}{of}: {', '.join(why)}",
        *(sub.pattern, one(by, ""), process.who),
        observer=sub.observer,
    )


# --- one Pub --------------------------------------------------------------------------------------


def _of_pubs(ends: Ends) -> Iterator[Cause]:
    pairs_of: dict[tuple[str, int], list[Pair]] = {}
    for pair in ends.pairs:
        pairs_of.setdefault(pair.pub_id, []).append(pair)
    for process, pub in ends.pubs:
        held = [row for row in pub.subscribers if row.holds and row.lag]
        room = f"its buffer of {size(pub.buffer)}"
        if pub.waiting and pub.waited >= LATE:
            names = {row.name: ends.name(row.peer_id, row.name) for row in pub.subscribers}
            whom = listed(_named(text, names) for text in pub.waits_for) or "a subscriber"
            puts = count(pub.waiting, "put")
            waits = f"{puts} on {pub.topic!r} wait" + ("s" if pub.waiting == 1 else "")
            yield made(
                "full",
                f"{waits} in {process.who} for room in {room}, for at least "
                f"{duration(pub.waited)}, because of {whom}",
                *(pub.topic, process.who, one((names[row.name] for row in held), "")),
                seconds=pub.waited,
            )
        lost = [
            pair
            for pair in pairs_of.get((process.peer_id, pub.stream_id), ())
            if pair.untold and not (pair.stream and pair.stream.lost)  # else `_lost` says so
        ]
        if lost:
            whom = listed(ends.subscriber(pair) for pair in lost)
            many = count(sum(pair.untold for pair in lost), "message")
            yield made(
                "lost",
                f"{whom} lost {many} of {pub.topic!r} "
                f"at {process.who}: they left {room} before they could be sent, or were too large",
                *(pub.topic, process.who, whom if len(lost) == 1 else ""),
                observer=all(pair.row.observer for pair in lost if pair.row),
            )


def _named(text: str, names: dict[str, str]) -> str:
    """``host:port#n (why)``, with the process for the address."""
    called, bracket, why = text.partition(" (")
    return f"{names.get(called, called)}{bracket}{why}"


# --- one process ----------------------------------------------------------------------------------


def _of_processes(ends: Ends) -> Iterator[Cause]:
    concerned = {stats.peer_id: stats for stats, _ in (*ends.pubs, *ends.subs)}
    down: dict[tuple[str, str], list[Stats]] = {}
    for stats in concerned.values():
        if stats.loop.most >= BLOCKED:
            publishes = any(each is stats for each, _ in ends.pubs)
            yield made(
                "loop",
                f"the event loop of {stats.who} was blocked for up to {duration(stats.loop.most)} "
                "in the last minute: it computed, slept or waited without await, or was stopped",
                *("", stats.who if publishes else "", "" if publishes else stats.who),
                seconds=stats.loop.most,
                observer=not publishes and all(sub.observer for sub in stats.subs),
            )
        for coordinator in stats.coordinators:
            if not coordinator.up:
                down.setdefault(coordinator[::2], []).append(stats)
    for (address, trouble), who in down.items():
        yield made(
            "coordinator",
            f"{listed(each.who for each in who)} cannot reach the coordinator at {address} "
            f"({trouble or 'it is not connected'}): streams go on, and new ones are not found "
            "by it",
        )
