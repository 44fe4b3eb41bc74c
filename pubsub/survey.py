"""A survey: what every peer says of itself, once a second, for as long as somebody looks.

Each peer has a stream of its own `Stats`, on the topic ``$stats``. It says nothing, and measures
nothing, while nobody subscribes it. A `Survey` does, as an observer: by the ways, with the trust
and the rights (``--list``) of any other stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pubsub import Gap, Message, Peer, Sub
from pubsub.core.topics import STATS
from pubsub.errors import DecodeError
from pubsub.faces.process import all_stats
from pubsub.stats import Stats

__all__ = ["Survey", "Told", "here"]

TROUBLE = {
    "connecting": "it is not reached yet",
    "reconnecting": "its link broke, and it is dialled again",
    "vanished": "it has vanished without a goodbye",
    "unreachable": "no way leads to it",
}
"""By the state of its stream, and the reason of a `Gap`: why it says nothing."""
AWAY = frozenset(TROUBLE.values())
UNREADABLE = "it tells what cannot be read"
LOOK = 1.0
"""Seconds, at most, for which `Survey.peers` has who is gone."""
PART = 0.1
"""Of the time, that reading what one peer tells may take: it may tell too much, and too often."""
WINDOW = 64 * 1024 * 1024
"""Bytes that may wait of all peers together."""


def here() -> list[Stats]:
    """What each Peer of this process tells of itself, and last, without a peer_id, what those had
    counted that are over. May be called from any thread.

    Example:
        >>> from pubsub import Peer
        >>> from pubsub.survey import here
        >>> with Peer() as peer:
        ...     peer.pub("numbers").put(1)
        ...     sum(row.messages for stats in here() for row in stats.counted())
        1
    """
    return all_stats()


@dataclass
class Told:
    """What is known of one peer.

    Attributes:
        publisher: its name as `Message.publisher` has it, without the number of a stream.
        stats: what it said last; None: nothing yet.
        before: what it said before that; None: nothing.
        at: when it said so, by the clock of `time.monotonic`.
        trouble: why it says nothing now; empty: it does, or is about to.
        rest: until when, by that clock, nothing more is read of it.
    """

    publisher: str
    stats: Stats | None = None
    before: Stats | None = None
    at: float = 0.0
    trouble: str = ""
    rest: float = 0.0

    @property
    def peer_id(self) -> str:
        """Its identity; empty: it has said nothing yet."""
        return "" if self.stats is None else self.stats.peer_id


class Survey:
    """Asks all peers that the coordinators know, in an event loop.

    Use it by ``async with``; meanwhile `peers` is kept up to date.

    Parameters:
        peer: who asks; its coordinators say whom. What it may see is what its key or certificate
            may: the right to list.

    Attributes:
        peers: what each has told, by its `Told.publisher`. One that has ended is there no more; one
            that vanished, or cannot be reached, stays, with its trouble.

    Example:
        >>> import asyncio, os
        >>> from pubsub import Peer
        >>> from pubsub.survey import Survey
        >>> async def main():
        ...     async with Peer() as peer, Survey(peer) as survey:
        ...         await survey.settled()
        ...         return [told.stats.pid for told in survey.peers.values() if told.stats]
        >>> asyncio.run(main()) == [os.getpid()]  # there is no other
        True
    """

    def __init__(self, peer: Peer) -> None:
        self.peers: dict[str, Told] = {}
        self._peer = peer
        self._sub: Any = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._ids: dict[str, str] = {}  # by `Message.publisher`, which process it is
        self._looked = 0.0

    async def __aenter__(self) -> Survey:
        self._sub = Sub(STATS, peer=self._peer, observer=True, window=WINDOW)
        self._task = asyncio.ensure_future(self._listen())
        try:
            await self._sub
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        try:
            await asyncio.wait([self._task])
        finally:
            if self._task.done() and not self._task.cancelled():
                self._task.exception()  # whoever looked at `peers` was told
            await self._sub.close()

    async def _listen(self) -> None:
        try:
            while not self._sub.closed:
                with suppress(DecodeError):  # a stream in a codec that is not ours: it is left
                    async for event in self._sub.messages():
                        self._take(event)
        finally:
            self._news.set()

    def _take(self, event: Message | Gap) -> None:
        if event.publisher not in self._ids or monotonic() - self._looked > LOOK:
            self._look_around()
        key = _process(event.publisher)
        told = self.peers.get(key)
        if told is None:
            return  # it has ended meanwhile
        if isinstance(event, Gap):
            if event.reason in TROUBLE:
                told.trouble = TROUBLE[event.reason]
            elif event.reason in ("undecodable", "too large"):
                told.trouble = f"{UNREADABLE}: {event.reason}"
        else:
            self._hear(told, event)
        self._news.set()

    def _hear(self, told: Told, message: Message) -> None:
        began = monotonic()
        if began < told.rest:
            return
        try:
            stats = Stats.from_rows(message.value)
            if stats.peer_id != self._ids.get(message.publisher):
                raise ValueError("it says that it is another peer")
        except ValueError as error:
            told.trouble = f"{UNREADABLE}: {error}"
        else:
            told.before, told.stats = told.stats, stats
            told.at, told.trouble = began, ""
        told.rest = began + (monotonic() - began) / PART

    def _check(self) -> bool:
        """Whether anybody can still be heard; raises why it ended, unless by its Peer's end."""
        assert self._task is not None
        if not self._task.done():
            return True
        self._task.result()
        return False

    def _look_around(self) -> None:
        """Who has ended is told no more, and who is known and tells nothing is said to."""
        self._looked = monotonic()
        known = {}
        self._ids = {}
        for publisher, row in self._sub.publishers.items():
            known[_process(publisher)] = row
            self._ids[publisher] = row["peer_id"]
        for key in [key for key in self.peers if key not in known]:
            del self.peers[key]
        for key, row in known.items():
            told = self.peers.setdefault(key, Told(key))
            if row["state"] == "attached":
                told.trouble = "" if told.trouble in AWAY else told.trouble
            else:
                told.trouble = TROUBLE[row["state"]]

    async def settled(self, timeout: float = 3.0, *, rates: bool = False) -> None:
        """Wait until every peer that is known has told something, at most so many seconds.

        Parameters:
            timeout: seconds.
            rates: wait until each has been watched for a second, so that the rates are of now.

        Raises:
            PubSubError: nobody can be asked any more: the right to it was taken, say.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while self._check():
            self._news.clear()
            self._look_around()
            told = self.peers.values()
            if all(
                each.trouble or (each.stats and (each.stats.watched or not rates)) for each in told
            ):
                return
            left = until - loop.time()
            if left <= 0:
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    async def changes(self) -> AsyncIterator[None]:
        """Goes on whenever something was told or a second has passed, ten times a second at most;
        meanwhile `peers` is brought up to date. It ends with the Peer, and raises as `settled`."""
        while self._check():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), 1.0)
            self._news.clear()
            self._look_around()
            yield
            await asyncio.sleep(0.1)


def _process(publisher: str) -> str:
    """Of a `Message.publisher`, without the number of the stream."""
    return publisher.rpartition("#")[0] or publisher
