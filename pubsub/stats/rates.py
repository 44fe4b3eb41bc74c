"""Rates: what has changed over the last seconds, from counts that are noted once a second.

What is counted costs nothing meanwhile: the counts are there anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from pubsub.stats.rows import LoopStats, Rates

__all__ = ["Lately", "Lateness", "Ring", "Standing"]

SPANS = (1.0, 10.0, 60.0)
"""Seconds over which `Rates` are means."""
SLACK = 0.1
"""Seconds that a second may be shorter: a timer is never exact."""

Counts = Mapping[Hashable, tuple[float, ...]]


class _Sample(NamedTuple):
    at: float
    counts: Counts


class Lately(NamedTuple):
    """The samples that are so many seconds old, or the oldest where none is; see `Ring.lately`."""

    now: float
    samples: tuple[_Sample, ...]

    def rates(self, key: Hashable, which: int, count: float, made: float) -> Rates:
        """How fast a count has grown.

        Parameters:
            key: of whose count it is.
            which: of its counts.
            count: as it is now.
            made: when it was 0: what was made since a sample is in none.
        """
        if not self.samples:
            mean = _mean(count, self.now - made)
            return Rates(mean, mean, mean)
        return Rates(*(self._rate(sample, key, which, count, made) for sample in self.samples))

    def _rate(self, sample: _Sample, key: Hashable, which: int, count: float, made: float) -> float:
        counts = sample.counts.get(key)
        if counts is None:
            return _mean(count, self.now - made)
        return _mean(count - counts[which], self.now - sample.at)

    def grown(self, key: Hashable, which: int, count: float) -> tuple[float, float]:
        """By how much it has grown over the last 10 s, and over how many seconds that was; where
        nothing is known of it, all of it and 0."""
        counts = self.samples[1].counts.get(key) if self.samples else None
        if counts is None:
            return count, 0.0
        return count - counts[which], self.now - self.samples[1].at


def _mean(count: float, seconds: float) -> float:
    return max(0.0, count / seconds) if seconds > 0 else 0.0


class Ring:
    """The counts of the last minute, one sample a second."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=round(SPANS[-1]) + 1)

    def note(self, now: float, counts: Counts) -> None:
        """A second has passed."""
        self._samples.append(_Sample(now, counts))

    def clear(self) -> None:
        """Nobody asks any more: what is noted next is not to be compared with what was before."""
        self._samples.clear()

    def lately(self, now: float) -> Lately:
        """What there is to compare with now. May be called from any thread."""
        samples = list(self._samples)
        found = []
        for span in SPANS:
            due = now - span + SLACK
            old = (sample for sample in reversed(samples) if sample.at <= due)
            found.append(next(old, samples[0] if samples else None))
        chosen = tuple(sample for sample in found if sample is not None and sample.at < now)
        return Lately(now, chosen if len(chosen) == len(SPANS) else ())

    def since(self, now: float) -> float:
        """Seconds for which it has been noted; 0: it was not."""
        samples = list(self._samples)
        return now - samples[0].at if samples else 0.0


class Standing:
    """For how long something has not changed, as long as was looked."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def look(self, now: float, marks: Mapping[Hashable, object]) -> None:
        """So they are now; what is not among them is forgotten."""
        before = self._seen
        self._seen = {
            key: before[key] if key in before and before[key][0] == mark else (mark, now)
            for key, mark in marks.items()
        }

    def seconds(self, key: Hashable, mark: object, now: float) -> float:
        """For how long it has been so. May be called from any thread."""
        seen = self._seen.get(key)
        return now - seen[1] if seen is not None and seen[0] == mark else 0.0


class Lateness:
    """How late a timer was, over the last `most` times."""

    def __init__(self, most: int) -> None:
        self._late: deque[float] = deque(maxlen=most)

    def note(self, seconds: float) -> None:
        self._late.append(max(0.0, seconds))

    def clear(self) -> None:
        self._late.clear()

    def stats(self) -> LoopStats:
        """May be called from any thread."""
        late = sorted(self._late)
        if not late:
            return LoopStats()
        last = len(late) - 1
        return LoopStats(late[last // 2], late[round(last * 0.99)], late[-1], len(late))
