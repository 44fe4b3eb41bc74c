"""What came of the measurements: medians and ratios."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["Result", "Results", "medians"]


@dataclass
class Result:
    """What came of one contender with one workload.

    Attributes:
        rounds: the figures of each round that worked.
        failures: what went wrong in those that did not. One is enough to have no figure.
        no_rate: why there is no figure of other rounds, though nothing failed: messages that it is
            made to drop, for example. One is enough, too.
        remarks: what its processes wrote.
    """

    workload: str
    contender: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    no_rate: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float | None:
        """Over the rounds; None when any of them failed."""
        if self.failures or self.no_rate or not self.rounds:
            return None
        found = [each[figure] for each in self.rounds if figure in each]
        return float(median(found)) if found else None

    def ratio(self, figure: str, to: Result | None) -> float | None:
        """Of the medians; None when there is none of either."""
        mine, theirs = self.median(figure), to.median(figure) if to is not None else None
        return mine / theirs if mine is not None and theirs else None


def medians(result: Result) -> dict[str, float]:
    """Of every figure that is a number."""
    if not result.rounds:
        return {}
    names = [name for name, value in result.rounds[0].items() if isinstance(value, (int, float))]
    return {name: found for name in names if (found := result.median(name)) is not None}


Results = dict[tuple[str, str], Result]
"""By workload and contender."""
