"""``pubsub rate``: how many messages and bytes are put on topics, second by second.

It adds up what the publishing processes tell of themselves: no message is subscribed, so looking
changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean, pstdev
from typing import NamedTuple

import click

from pubsub import Peer
from pubsub.cli.command import FAILED, OK, Failure, end_signals, say
from pubsub.cli.surveying import Asked, heard, peer_to_ask_with, unheard
from pubsub.cli.terminal import printable
from pubsub.errors import AuthError
from pubsub.stats import Stats
from pubsub.stats.ends import Ends
from pubsub.stats.words import rate as per_second
from pubsub.stats.words import size
from pubsub.survey import Survey

__all__ = ["Seconds", "rate"]

SETTLE = 3.0
"""Seconds for those that are known to be measured for a second."""
LATELY = 10
"""Seconds over which it is said how much a rate varies."""
HEAD = f"{'TIME':8}  {'MSG/S':>9}  {'BYTES/S':>9}  {'SIZE':>9}  {'VARIES':>6}  {'PUBS':>4}  TOPIC"


class Second(NamedTuple):
    """What a topic or pattern had in one."""

    topic: str
    rate: float
    """Messages."""
    byte_rate: float
    size: float | None
    """Bytes of a message; None: there was none."""
    varies: float | None
    """By how much the rate varied lately: its standard deviation over its mean."""
    publishers: int


@dataclass
class Seconds:
    """What one topic or pattern had, second by second."""

    topic: str
    rates: list[float] = field(default_factory=list)
    lately: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))

    def add(self, told: Sequence[Stats]) -> Second:
        """One more has passed."""
        pubs = [pub for _, pub in Ends(told, self.topic).pubs]
        messages = sum(pub.rate.second for pub in pubs)
        size = sum(pub.byte_rate.second for pub in pubs)
        self.rates.append(messages)
        self.lately.append(messages)
        mean = fmean(self.lately)
        varies = pstdev(self.lately) / mean if mean and len(self.lately) > 1 else None
        each = size / messages if messages else None
        return Second(self.topic, messages, size, each, varies, len(pubs))

    def account(self) -> str:
        """All of it in a sentence."""
        rates = self.rates
        mean, least, most = (per_second(each) for each in (fmean(rates), min(rates), max(rates)))
        lines = "1 s" if len(rates) == 1 else f"{len(rates):,} s"
        return f"{self.topic}: {mean} messages/s over {lines}, {least} to {most}"


async def rate(
    topics: Sequence[str], coordinator: str | None, lines: int | None, as_json: bool
) -> int:
    """Show a line a second of each topic until `lines` were shown, or a signal comes; returns the
    exit code."""
    asked = Asked(coordinator)
    await asked.rows("topics")  # there is one that answers
    end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    seconds = [Seconds(topic) for topic in dict.fromkeys(topics)]
    peer = peer_to_ask_with(f"pubsub rate {' '.join(topics)}", asked)
    with end_signals(lambda code: None if end.done() else end.set_result(code)):
        showing = asyncio.ensure_future(_show(peer, asked, seconds, lines, as_json))
        try:
            await asyncio.wait({showing, end}, return_when=asyncio.FIRST_COMPLETED)
            if not showing.done():
                return end.result()
            return showing.result()
        except AuthError as error:
            raise Failure(f"{error}; `pubsub tail --rate` counts what may be subscribed") from error
        finally:
            showing.cancel()
            await asyncio.wait({showing})
            await peer.close(0.0)
            if not as_json:
                for each in seconds:
                    if each.rates:
                        say(each.account())


async def _show(
    peer: Peer, asked: Asked, seconds: Sequence[Seconds], lines: int | None, as_json: bool
) -> int:
    known = 0
    async with Survey(peer) as survey:
        await survey.settled(SETTLE, rates=True)
        for mute in unheard(survey, await asked.rows("peers"), peer):
            say(f"not seen: what {mute.who or mute.address} does, as {mute.trouble}")
        if not as_json:
            click.echo(HEAD)
        due, shown = asyncio.get_running_loop().time(), 0
        while shown != lines:
            if shown:
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            due, shown = due + 1.0, shown + 1
            told, now = heard(survey, peer), datetime.now().astimezone()
            for each in seconds:
                row = each.add(told)
                known += bool(row.publishers)
                click.echo(_json(now, row) if as_json else _line(now, row))
    if not known:
        say("nobody publishes any of it (`pubsub info TOPIC` says more)")
    return OK if known else FAILED


def _json(now: datetime, row: Second) -> str:
    at = {"time": now.isoformat(timespec="milliseconds")}
    return json.dumps({**at, **row._asdict()}, ensure_ascii=False)


def _line(now: datetime, row: Second) -> str:
    each = "-" if row.size is None else size(row.size)
    varies = "-" if row.varies is None else f"{row.varies:.0%}"
    return printable(
        f"{now:%H:%M:%S}  {per_second(row.rate):>9}  {size(row.byte_rate):>9}  {each:>9}  "
        f"{varies:>6}  {row.publishers:>4}  {row.topic}"
    )
