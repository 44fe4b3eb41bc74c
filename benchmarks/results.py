"""Medians, ratios, and the goals that they are held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Literal

__all__ = ["FLOOR", "Goal", "Result", "Verdict", "judge", "medians"]


@dataclass
class Result:
    """What came of one contender with one workload.

    Attributes:
        rounds: the figures of each round that worked.
        failures: what went wrong in those that did not. One is enough to have no figure.
        remarks: what its processes wrote.
    """

    workload: str
    contender: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float | None:
        """Over the rounds; None when any of them failed."""
        if self.failures or not self.rounds:
            return None
        return float(median(each[figure] for each in self.rounds))

    def ratio(self, figure: str, to: Result | None) -> float | None:
        """Of the medians; None when there is none of either."""
        mine, theirs = self.median(figure), to.median(figure) if to is not None else None
        return mine / theirs if mine is not None and theirs else None


def medians(result: Result) -> dict[str, float]:
    """Of every figure that is a number."""
    if result.failures or not result.rounds:
        return {}
    names = [name for name, value in result.rounds[0].items() if isinstance(value, (int, float))]
    return {name: found for name in names if (found := result.median(name)) is not None}


@dataclass(frozen=True)
class Goal:
    """A ratio to reach.

    Attributes:
        title: what it is about.
        workload, figure: what is compared, by name.
        against: the contender to compare with.
        bound: ``"least"`` or ``"most"``: which side of `factor` is good.
        faces: ``"best"``: one of our faces has to reach it; ``"each"``: all of them.
    """

    title: str
    workload: str
    figure: str
    against: str
    bound: Literal["least", "most"]
    factor: float
    faces: Literal["best", "each"] = "best"

    def met_by(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.factor if self.bound == "least" else ratio <= self.factor


FLOOR: Final = (
    Goal("small dicts", "small-dict", "rate", "stream", "least", 3.0),
    Goal("round trip, p50", "round-trip", "p50", "stream", "most", 1.6),
)


@dataclass(frozen=True)
class Verdict:
    """What became of a goal.

    Attributes:
        ratios: of each of our faces that was measured.
        met: None when it could not be judged.
    """

    goal: Goal
    ratios: dict[str, float]
    met: bool | None


def judge(goal: Goal, results: dict[tuple[str, str], Result], ours: list[str]) -> Verdict:
    """Hold a goal against the results, which go by workload and contender."""
    against = results.get((goal.workload, goal.against))
    ratios = {}
    for name in ours:
        result = results.get((goal.workload, name))
        ratio = result.ratio(goal.figure, against) if result is not None else None
        if ratio is not None:
            ratios[name] = ratio
    met = None
    if ratios:
        every = [goal.met_by(ratio) for ratio in ratios.values()]
        met = any(every) if goal.faces == "best" else all(every) and len(ratios) == len(ours)
    return Verdict(goal, ratios, met)
