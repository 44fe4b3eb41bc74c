"""``pubsub delay``: how long messages take from where they are put to here, by both clocks.

It subscribes as an observer, so that no publisher waits for it. What the clocks of two machines
differ by is in every delay: it is bounded by the fastest message, and by how long a question and
its answer take, in which that message must have come.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import click

from pubsub import DecodeError, Gap, Sub
from pubsub.cli.command import FAILED, OK, end_signals, make_peer, say
from pubsub.cli.findings import Met
from pubsub.cli.knocking import knock
from pubsub.cli.surveying import Asked
from pubsub.cli.terminal import printable
from pubsub.config import is_loopback, parse_address
from pubsub.stats.words import count, duration
from pubsub.trust.guard import Guard

__all__ = ["Delays", "clock", "delay", "quantile"]

KEPT = 1_000_000
"""Delays of which the quantiles at the end are."""
ASKED = 20
"""Processes on other machines whose clocks are compared with the one here."""
HEAD = f"{'TIME':8}  {'MESSAGES':>9}  {'P50':>8}  {'P99':>8}  {'MAX':>8}  {'LOST':>6}"
FINE = 0.001
"""Seconds by which clocks may differ without a word: so well are they set at best."""


def quantile(ordered: Sequence[float], part: float) -> float:
    """That which so large a part of them does not exceed. They are in order.

    >>> quantile([1.0, 2.0, 3.0], 0.5), quantile([1.0, 2.0, 3.0], 0.99)
    (2.0, 3.0)
    """
    return ordered[round((len(ordered) - 1) * part)]


class Second(NamedTuple):
    """What came in one; the delays in seconds, None: none did."""

    messages: int
    p50: float | None
    p99: float | None
    max: float | None
    lost: int

    @classmethod
    def of(cls, delays: Sequence[float], lost: int) -> Second:
        """What has these delays."""
        if not delays:
            return cls(0, None, None, None, lost)
        ordered = sorted(delays)
        p50, p99 = (quantile(ordered, part) for part in (0.5, 0.99))
        return cls(len(ordered), p50, p99, ordered[-1], lost)


@dataclass
class Delays:
    """What has come, and how late."""

    now: list[float] = field(default_factory=list)
    """Of this second."""
    all: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    taken: int = 0
    lost: int = 0
    lost_now: int = 0
    fastest: dict[str, float] = field(default_factory=dict)
    """By publisher."""

    def take(self, publisher: str, seconds: float) -> None:
        """A message has come."""
        self.taken += 1
        self.now.append(seconds)
        self.all.append(seconds)
        self.fastest[publisher] = min(seconds, self.fastest.get(publisher, seconds))

    def lose(self, messages: int) -> None:
        """So many will not come."""
        self.lost += messages
        self.lost_now += messages

    def second(self) -> Second:
        """A second has passed."""
        found = Second.of(self.now, self.lost_now)
        self.now, self.lost_now = [], 0
        return found


def clock(whose: str, fastest: float, round_trip: float | None) -> str:
    """What is known of another machine's clock, in a sentence; empty: that it goes as ours does.

    Parameters:
        fastest: seconds of its fastest message, by both clocks.
        round_trip: seconds of a question and its answer; None: it was not asked.
    """
    ahead = -fastest
    if round_trip is None:
        if ahead > 0:
            return f"the clock of {whose} is ahead of this one by {duration(ahead)} or more"
        return f"how the clock of {whose} goes is not known: it could not be asked"
    most = ahead + round_trip  # the message took no longer than that
    if ahead > FINE:
        return (
            f"the clock of {whose} is ahead of this one by {duration(ahead)} to {duration(most)}: "
            "its delays are longer than they seem"
        )
    if most < -FINE:
        return (
            f"the clock of {whose} is behind this one by {duration(-most)} to {duration(-ahead)}, "
            "or all of its messages waited for so long"
        )
    return ""


async def delay(topic: str, coordinator: str | None, lines: int | None, as_json: bool) -> int:
    """Show a line a second until `lines` were shown, or a signal comes; returns the exit code."""
    asked = Asked(coordinator)
    await asked.rows("topics")  # there is one that answers
    end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    delays = Delays()
    peer = make_peer(f"pubsub delay {topic}", asked.given, None)
    sub = Sub(topic, peer=peer, observer=True)
    with end_signals(lambda code: None if end.done() else end.set_result(code)):
        await sub
        following = asyncio.ensure_future(_follow(sub, delays))
        showing = asyncio.ensure_future(_show(delays, lines, as_json))
        try:
            ends: set[asyncio.Future[Any]] = {following, showing, end}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
            code = end.result() if end.done() else OK
            clocks = await _clocks(sub, delays, asked.guard)
        finally:
            for task in (following, showing):
                task.cancel()
            await asyncio.wait({following, showing})
            await peer.close(0.0)
    if as_json:
        all_of_it = Second.of(delays.all, delays.lost)
        click.echo(json.dumps({"all": all_of_it._asdict(), "clocks": clocks}, ensure_ascii=False))
    else:
        say(_account(delays))
        for sentence in clocks:
            say(sentence)
    return code if delays.taken or code else FAILED


async def _follow(sub: Sub, delays: Delays) -> None:
    wall = time.time
    while True:
        try:
            async for event in sub.messages():
                if isinstance(event, Gap):
                    delays.lose(event.missed)
                else:
                    delays.take(event.publisher, wall() - event.sent_at)
        except DecodeError as error:  # how long it took, it would tell: but it was not taken
            say(str(error))


async def _show(delays: Delays, lines: int | None, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    if not as_json:
        click.echo(HEAD)
    due, shown = loop.time(), 0
    while shown != lines:
        due, shown = due + 1.0, shown + 1
        await asyncio.sleep(max(0.0, due - loop.time()))
        row, now = delays.second(), datetime.now().astimezone()
        if as_json:
            at = {"time": now.isoformat(timespec="milliseconds")}
            click.echo(json.dumps({**at, **row._asdict()}))
        else:
            took = ("-" if each is None else _took(each) for each in row[1:4])
            words = "  ".join(f"{each:>8}" for each in took)
            click.echo(f"{now:%H:%M:%S}  {row.messages:>9,}  {words}  {row.lost:>6,}")


def _took(seconds: float) -> str:
    return duration(seconds) if seconds >= 0 else f"-{duration(-seconds)}"


def _account(delays: Delays) -> str:
    if not delays.taken:
        return "nothing came (`pubsub info TOPIC` says why)"
    row = Second.of(delays.all, delays.lost)
    assert row.p50 is not None
    assert row.p99 is not None
    assert row.max is not None
    return (
        f"{count(delays.taken, 'message')}, lost {delays.lost:,}: p50 {_took(row.p50)}, p99 "
        f"{_took(row.p99)}, max {_took(row.max)}"
    )


async def _clocks(sub: Sub, delays: Delays, guard: Guard) -> list[str]:
    """What is to be said of the clocks of other machines."""
    elsewhere: dict[str, float] = {}
    for publisher, row in sub.publishers.items():
        place = publisher.rpartition("#")[0]
        if publisher in delays.fastest and row["way"] not in ("unix", "local"):
            fastest = delays.fastest[publisher]
            elsewhere[place] = min(fastest, elsewhere.get(place, fastest))
    places = list(elsewhere)[:ASKED]
    found = await asyncio.gather(*(_ask(place, elsewhere[place], guard) for place in places))
    return [printable(sentence) for sentence in found if sentence]


async def _ask(place: str, fastest: float, guard: Guard) -> str:
    try:
        at = parse_address(place)
    except ValueError:  # it cannot be dialled, and is called otherwise
        return clock(place, fastest, None)
    if is_loopback(at.host):
        return ""
    met, link = await knock(at, "peer", guard)
    await link.gone()
    if not isinstance(met, Met):
        return clock(place, fastest, None)
    return clock(str(met.info.get("hostname") or at.host), fastest, met.seconds)
