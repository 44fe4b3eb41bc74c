"""What a runtime knows of the Pubs and Subs of its process, and asks of them."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication

__all__ = ["Effort", "OpenPub", "OpenSub", "Sink", "Source"]


class Effort(NamedTuple):
    """What a program has done with the messages that it took of a Sub."""

    messages: int = 0
    seconds: float = 0.0
    """That it spent on them: from the taking of a batch to that of the next, without waits."""
    left: int = 0
    """How many of the batch that it is at it has not taken yet."""
    oldest: float | None = None
    """When that was put, in seconds since 1970."""
    waits: bool = False
    """It waits for the next one now."""


class Sink(Protocol):
    """What drains an inbox: a Sub."""

    def effort(self) -> Effort:
        """What was done with what it took. May be called from any thread."""

    def abandon(self, error: Exception) -> None:
        """Refuse every further call, with this error."""


class Source(Protocol):
    """What feeds a publication: a Pub."""

    def abandon(self, error: Exception) -> None:
        """Refuse every further call, with this error."""

    def waiting(self) -> tuple[int, object | None]:
        """How many puts wait for room, and the first of them. May be called from any thread."""

    def seal(self) -> None:
        """Bring what was put so far into the log. Called in the loop's thread."""

    def count(self) -> int:
        """How many messages were put, with those that are not in the log yet or wait for room."""

    def queued(self) -> asyncio.Future[None] | None:
        """Done when nothing that was put waits for room any more; None: nothing does."""


class OpenPub:
    """What the runtime knows of a Pub."""

    def __init__(self, publication: Publication, source: Source, made: float) -> None:
        self.publication = publication
        self.made = made  # the loop's time
        self.source = source
        self.out_of_reach = False  # for a subscriber, and that was said
        self.apart: dict[SubKey, str] = {}  # who may be; see `Runtime.expected`


class OpenSub:
    """What the runtime knows of a Sub."""

    def __init__(self, inbox: Inbox, sink: Sink, made: float) -> None:
        self.inbox = inbox
        self.made = made  # the loop's time
        self.sink = sink
        self.acknowledged = False
