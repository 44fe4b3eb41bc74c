"""What a runtime knows of the Pubs and Subs of its process, and asks of them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication

__all__ = ["OpenPub", "OpenSub", "Sink", "Source"]


class Sink(Protocol):
    """What drains an inbox: a Sub."""

    def abandon(self, error: Exception) -> None:
        """Refuse every further call, with this error."""


class Source(Sink, Protocol):
    """What feeds a publication: a Pub."""

    def seal(self) -> None:
        """Bring what was put so far into the log. Called in the loop's thread."""

    def count(self) -> int:
        """How many messages were put, with those that are not in the log yet or wait for room."""

    def queued(self) -> asyncio.Future[None] | None:
        """Done when nothing that was put waits for room any more; None: nothing does."""


class OpenPub:
    """What the runtime knows of a Pub."""

    def __init__(self, publication: Publication, source: Source) -> None:
        self.publication = publication
        self.source = source
        self.out_of_reach = False  # for a subscriber, and that was said
        self.apart: dict[SubKey, str] = {}  # who may be; see `Runtime.expected`


class OpenSub:
    """What the runtime knows of a Sub."""

    def __init__(self, inbox: Inbox, sink: Sink) -> None:
        self.inbox = inbox
        self.sink = sink
        self.acknowledged = False
