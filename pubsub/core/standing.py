"""For whom a put waits, why and until when: in words for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from pubsub.core.cursor import Cursor

__all__ = ["NAMED", "Holder", "State", "listed"]

NAMED = 5
"""Subscribers that a message for people names at most."""

State = Literal["attached", "expected", "reconnecting", "unnamed"]
"""How a subscriber stands; ``unnamed``: all those in one that coordinators may still name."""
_WHY = {
    "attached": "it lets nothing be sent to it",
    "expected": "a coordinator says that it comes",
    "reconnecting": "its link broke",
    "unnamed": "a coordinator may still name some that are older than the Pub",
}


class Holder(NamedTuple):
    """A subscriber for whom the oldest batch is kept, as it stands now."""

    state: State
    cursor: Cursor
    held_for: float | None
    """Seconds for which it holds its place; None: as long as its link lives."""
    acked: int
    """`Cursor.acked`, to see later whether it has taken something."""

    def why(self, idle: float | None, clock: Callable[[float], str]) -> str:
        """Who it is, why it is waited for and until when.

        Parameters:
            idle: seconds for which it has taken nothing, at least; None: it takes.
            clock: the time of day in so many seconds.
        """
        name = "subscribers" if self.state == "unnamed" else self.cursor.name
        if self.held_for is None:
            does = "takes slowly" if idle is None else f"has taken nothing for {idle:.0f} s"
            return f"{name} ({does}; as long as its link lives)"
        until = f"until {clock(self.held_for)}, for {self.held_for:.0f} s"
        return f"{name} ({_WHY[self.state]}; {until})"


def listed(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    found = list(names)
    more = len(found) - NAMED
    return ", ".join(found[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
