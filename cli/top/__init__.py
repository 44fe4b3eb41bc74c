"""``pubsub top``: what flows where, live on a terminal."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from pubsub import Peer
from pubsub.cli.command import OK, Failure, end_signals, say
from pubsub.cli.listing import table
from pubsub.cli.surveying import Asked, heard, peer_to_ask_with, unheard
from pubsub.cli.top.tables import TOPICS, Picture
from pubsub.errors import PubSubError
from pubsub.stats.views import topics
from pubsub.stats.why import causes
from pubsub.survey import Survey

if TYPE_CHECKING:
    from pubsub.cli.top.app import Top

__all__ = ["new_loop", "top"]

SETTLE = 3.0
"""Seconds for rates, where one table is printed: each is measured for a second."""
ASK_AGAIN = 10.0
"""Seconds between two questions to the coordinators, for those that tell nothing."""


def new_loop() -> asyncio.AbstractEventLoop:
    """In which it runs. From Python 3.12 on, textual has a loop begin each task at once, which
    uvloop cannot in all versions; and nothing here needs to be fast."""
    return asyncio.new_event_loop()


async def top(coordinator: str | None) -> int:
    """Show it until somebody has enough; where there is no terminal, once. Returns the exit code.

    Raises:
        Failure: there is a terminal, but not what draws on it.
    """
    make = _program() if _is_terminal() else None
    for name in ("pubsub", "asyncio"):  # what they have to tell would be written into the tables
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    asked = Asked(coordinator)
    rows = await asked.rows("peers")
    peer = peer_to_ask_with("pubsub top", asked)
    try:
        async with Survey(peer) as survey:
            looking = _Looking(survey, peer, rows)
            return await (_once(looking) if make is None else _live(looking, asked, make))
    finally:
        await peer.close(0.0)


def _is_terminal() -> bool:
    """Whether there is one that can show a table and take keys."""
    ends = (sys.stdin, sys.stdout, sys.stderr)  # the last is what it draws on
    return os.environ.get("TERM") != "dumb" and all(e is not None and e.isatty() for e in ends)


def _program() -> type[Top]:
    try:
        from pubsub.cli.top.app import Top
    except ImportError as error:
        raise Failure(
            f"pubsub top needs the package `textual`, which cannot be imported here ({error}): "
            "pip install 'pubsubd[top]', or see `pubsub top | cat`, which needs none"
        ) from error
    return Top


class _Looking:
    """What is known.

    Parameters:
        survey: who listens.
        peer: who asks.
        rows: the peers that coordinators know.
    """

    def __init__(self, survey: Survey, peer: Peer, rows: Sequence[dict[str, Any]]) -> None:
        self.survey = survey
        self.rows = rows
        self._peer = peer

    def picture(self) -> Picture:
        """How it is now; it stays so, whatever comes."""
        told = tuple(replace(each) for each in self.survey.peers.values())
        heard_of = heard(self.survey, self._peer)
        mute = unheard(self.survey, self.rows, self._peer)
        return Picture(told, causes(heard_of, mute=mute), monotonic(), mute)


async def _once(looking: _Looking) -> int:
    await looking.survey.settled(SETTLE, rates=True)
    picture = looking.picture()
    columns = [column.head for column in TOPICS.columns]
    rows = [{c.head: c.text(row) for c in TOPICS.columns} for row in topics(*picture)]
    if rows:
        for line in table(columns, rows):
            click.echo(line)
    else:
        known = len(picture.told)
        say(f"no topics: {known} process{'' if known == 1 else 'es'} told of no Pub and no Sub")
    return OK


async def _live(looking: _Looking, asked: Asked, make: type[Top]) -> int:
    program = make(looking.picture, looking.survey.changes)
    asking = asyncio.ensure_future(_ask_again(looking, asked))
    try:
        with end_signals(program.exit):
            code = await program.run_async()
    finally:
        asking.cancel()
        await asyncio.wait([asking])
    if program.return_code:  # it failed, and has shown where
        return program.return_code
    return OK if code is None else code


async def _ask_again(looking: _Looking, asked: Asked) -> None:
    while True:
        await asyncio.sleep(ASK_AGAIN)
        with suppress(PubSubError):  # each process tells how its coordinators are
            looking.rows = await asked.rows("peers")
