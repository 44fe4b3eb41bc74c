"""A survey: what every peer says of itself, once a second, for as long as somebody looks.

Each peer has a stream of its own `Stats`, on the topic ``$stats``. It says nothing, and measures
nothing, while nobody subscribes it. A `Survey` does, as an observer: by the ways, with the trust
and the rights (``--list``) of any other stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pubsub import Peer, Sub
from pubsub.stats import Stats

__all__ = ["Survey", "Told"]

WINDOW = 64 * 1024 * 1024
"""Bytes that may wait of all peers together."""


@dataclass
class Told:
    """What is known of one peer.

    Attributes:
        publisher: its name as `Message.publisher` has it, without the number of a stream.
        stats: what it said last; None: nothing yet.
        before: what it said before that; None: nothing.
        at: when it said so, by the clock of `time.monotonic`.
        trouble: why it says nothing now; empty: it does, or is about to.
    """

    publisher: str
    stats: Stats | None = None
    before: Stats | None = None
    at: float = 0.0
    trouble: str = ""

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
        >>> import asyncio
        >>> from pubsub import Peer
        >>> from pubsub.survey import Survey
        >>> async def main():
        ...     async with Peer() as peer, Survey(peer) as survey:
        ...         await survey.settled()
        ...         return [told.stats.who for told in survey.peers.values() if told.stats]
        >>> asyncio.run(main())
        []
    """

    def __init__(self, peer: Peer) -> None:
        self.peers: dict[str, Told] = {}
        self._peer = peer
        self._sub: Sub | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Survey:
        raise NotImplementedError

    async def __aexit__(self, *exc: object) -> None:
        raise NotImplementedError

    async def settled(self, timeout: float = 3.0, *, rates: bool = False) -> None:
        """Wait until every peer that is known has told something, at most so many seconds.

        Parameters:
            timeout: seconds.
            rates: wait until each has been watched for a second, so that the rates are of now.
        """
        raise NotImplementedError

    def changes(self) -> AsyncIterator[None]:
        """Goes on whenever something was told, at most ten times a second."""
        raise NotImplementedError
