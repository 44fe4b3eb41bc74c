"""The past: what Pubs and Subs that are over had counted, so that no sum goes back at an end."""

from __future__ import annotations

from pubsub.stats.rows import PastStats, Stats

__all__ = ["MOST", "Past"]

MOST = 1_000
"""Topics that have a row of their own; the others have one together."""


class Past:
    """The sums, by topic. It is added to in one thread, and may be read from any."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], tuple[PastStats, float]] = {}
        """With when the first of each was made."""

    def add(self, row: PastStats, now: float) -> None:
        """One more is over, or some are.

        Parameters:
            row: what it had counted, and its age.
            now: the time, by any clock.
        """
        key = (row.role, row.topic)
        if key not in self._rows and len(self._rows) >= MOST:
            key = (row.role, "")
        before, made = self._rows.get(key, (PastStats(*key), now))
        summed = PastStats(
            *key,
            messages=before.messages + row.messages,
            bytes=before.bytes + row.bytes,
            lost=before.lost + row.lost,
        )
        self._rows[key] = summed, min(made, now - row.age)

    def take(self, stats: Stats) -> None:
        """A whole process, or what a Peer was of one, is over."""
        for row in stats.counted():
            self.add(row, stats.time)

    def rows(self, now: float) -> tuple[PastStats, ...]:
        """One for each topic."""
        return tuple(row._replace(age=now - made) for row, made in list(self._rows.values()))
