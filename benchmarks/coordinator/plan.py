"""Who registers what, and how many matches each must be told of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pubsub.core.topics import matches
from pubsub.wire.messages import Expect, Match

__all__ = ["EXTRA", "SITE", "Account", "Entry", "Plan"]

SITE = 100
"""Topics that a pattern matches."""
_SUBS = 1_000_000
_PATTERNS = 2_000_000
EXTRA = 3_000_000
"""Numbers from here on are no part of the plan: registered for a while, beside it."""


class Entry(NamedTuple):
    """A Pub or Sub."""

    id: int
    role: str
    topic: str
    matches: int


@dataclass(frozen=True)
class Plan:
    """So many of each.

    Every topic has one Pub and one Sub, of different peers. The topics are in sites of 100; each
    pattern stands for those of one site, at most one pattern to a site. So the matches of a
    registration do not depend on how many there are of anything.
    """

    peers: int
    topics: int
    patterns: int

    def __post_init__(self) -> None:
        if self.patterns * SITE > self.topics:
            raise ValueError(f"{self.patterns} patterns need {self.patterns * SITE} topics")

    @property
    def registrations(self) -> int:
        """In all."""
        return 2 * self.topics + self.patterns

    def topic(self, number: int) -> str:
        """Of the Pub and the Sub with this number."""
        return f"site-{number // SITE}/machine-{number % SITE}/temp"

    def pattern(self, site: int) -> str:
        """Which stands for all of a site."""
        return f"site-{site}/**" if site % 2 else f"site-{site}/*/temp"

    def publisher(self, number: int) -> int:
        """Which peer has the Pub of this topic."""
        return number % self.peers

    def of(self, peer: int) -> Iterator[Entry]:
        """What a peer has."""
        for number in range(peer, self.topics, self.peers):
            matches = 2 if number // SITE < self.patterns else 1
            yield Entry(number // self.peers, "pub", self.topic(number), matches)
        for number in range((peer - 1) % self.peers, self.topics, self.peers):
            yield Entry(_SUBS + number // self.peers, "sub", self.topic(number), 1)
        for site in range(peer, self.patterns, self.peers):
            yield Entry(_PATTERNS + site, "sub", self.pattern(site), SITE)


class Account:
    """What a peer has, and what it must yet be told."""

    __slots__ = ("_due", "_unanswered", "entries")

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.id: entry for entry in entries}
        self._unanswered: set[int] = set()
        self._due = 0

    def expect_all(self) -> None:
        """Everything is being registered on a new connection: all is to be told."""
        self._unanswered = set(self.entries)
        self._due = len(self.entries) + sum(entry.matches for entry in self.entries.values())

    def told(self, id: int, message: Match | Expect) -> tuple[bool, bool]:
        """Whether that was the end of its answer, and whether nothing is missing any more."""
        told = 0
        if isinstance(message, Match):
            wanted = self.entries[id].topic
            for row in message.added:
                if row.topic != wanted and not matches(wanted, row.topic):
                    raise AssertionError(f"{wanted} is told of {row}")
                told += row.stream_id < EXTRA
        else:
            for sub in message.added:
                told += sub.sub_id < EXTRA
        answered = message.complete and id in self._unanswered
        if answered:
            self._unanswered.discard(id)
        told += answered
        self._due -= told
        if self._due < 0:
            raise AssertionError("told more often than there are matches")
        return answered, told > 0 and not self._due
