"""One measurement, as its parent process directs it: what all courses have in common, and the
table of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from benchmarks.contender import Contender, environment_of
from benchmarks.courses import arrays, flows, times
from benchmarks.courses.circuits import cost_of_circuits
from benchmarks.courses.returning import come_back
from benchmarks.courses.strangers import cost_of_strangers
from benchmarks.stage import Child, Failed, Stage
from benchmarks.workloads import Workload

__all__ = ["COURSES", "Course", "Effort", "Figures", "NoRate", "measure"]

_number = itertools.count()

Figures = dict[str, Any]


class NoRate(Exception):
    """A contender did what it is made to do, and that gives no figure: it dropped messages, or
    could not keep to a rate. The text is short, for a table."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: of everything.
        seconds: that a publisher sends.
        trips, warm_up: round trips that count, and that come before.
        joins: subscribers that are made, one after the other; of processes, a quarter of that.
        peers: that come back to a coordinator.
        patience: seconds to wait for whatever should take less than one.
    """

    rounds: int
    seconds: float
    trips: int
    warm_up: int
    joins: int = 50
    peers: int = 10_000
    patience: float = 30.0


def measure(
    contender: Contender, workload: Workload, place: str, effort: Effort
) -> tuple[Figures, str]:
    """One measurement in fresh processes.

    Returns:
        its figures, and what the processes wrote.

    Raises:
        Failed: anything went wrong, a lost message included.
        NoRate: nothing went wrong, but there is no figure.
    """
    with Stage(effort.patience) as stage:
        course = Course(stage, contender, workload, place, effort)
        run = flows.alone if hasattr(contender, "alone") else COURSES[workload.measured_as]
        figures = run(course)
        return figures, stage.finish()


class Course:
    """What the courses have in common.

    Parameters:
        stage: where the children are.
        contender: whose roles they play.
        workload: what they send.
        place: what the contender's service announced.
        effort: how much.
    """

    def __init__(
        self, stage: Stage, contender: Contender, workload: Workload, place: str, effort: Effort
    ) -> None:
        self.stage = stage
        self.contender = contender
        self.workload = workload
        self.place = place
        self.effort = effort
        self.hear = stage.hear
        self.topic = f"benchmark/{os.getpid()}/{next(_number)}"

    def start(self, role: Callable[..., None], **job: Any) -> Child:
        """A child with this role; it gets going when it is told the ``place``."""
        name = self.contender.name
        return self.stage.start(
            *(role, type(self.contender).__module__, name),
            called=f"{name} ({role.__name__})",
            topic=self.topic,
            workload=self.workload.name,
            **job,
        )

    def meet(self, first: Child, *others: Child) -> None:
        """Have the first open, and tell the others where it is."""
        first.say("place", self.place)
        self.met = self.hear(first, "at")["place"]
        for other in others:
            other.say("place", self.met)

    def prove(self, publisher: Child, *subscribers: Child) -> None:
        """Wait until every subscriber has got a probe."""
        for subscriber in subscribers:
            self.hear(subscriber, "proven", 0.5 * (len(subscribers) - 1))
        publisher.say("proven")

    def pair(self, one: Callable[..., None], other: Callable[..., None], **how: Any) -> Any:
        """Two ends that have heard of each other."""
        first, second = self.start(one, **how), self.start(other, **how)
        self.meet(first, second)
        self.prove(first, second)
        self.prove(second, first)
        return first, second

    def over(self, *children: Child) -> None:
        """They may go."""
        for child in children:
            child.say("over")

    def flow(
        self, publisher: Child, subscriber: Child, seconds: float, patience: float = 1
    ) -> tuple[Figures, Figures, Figures]:
        """One sends to the other, which knows the last by what is told of it; what was sent, what
        that cost, and what was received."""
        self.meet(publisher, subscriber)
        self.prove(publisher, subscriber)
        sent = self.hear(publisher, "sent", patience * seconds)
        subscriber.say("sent", sent["messages"])
        received = self.hear(subscriber, "received", 10 * seconds)
        publisher.say("over")
        cost = self.hear(publisher, "cost")
        subscriber.say("over")
        self.check(sent, received)
        return sent, cost, received

    def check(self, sent: Figures, received: Figures) -> None:
        """Every message has come.

        Raises:
            Failed, NoRate: it has not.
        """
        lost = sent["messages"] - received["messages"]
        if lost > 0 and self.contender.lossy:
            raise NoRate(f"lost {lost / sent['messages']:.0%}")
        if lost > 0:
            self.fail(
                f"{lost} of {sent['messages']} messages were lost, and a rate with loss is no rate"
            )
        if lost < 0:
            self.fail(f"{-lost} messages more than the {sent['messages']} sent")
        if not received.get("last_is_right", True):
            self.fail("the last message was not the last one sent")

    def kept(self, sent: Figures) -> float:
        """The rate at which it was sent.

        Raises:
            NoRate: that is not the one of the workload.
        """
        rate: float = sent["messages"] / (sent["end"] - sent["start"]) * 1e9
        if rate < 0.9 * self.workload.rate and self.effort.seconds >= 0.5:
            raise NoRate(f"only {rate:,.0f} a second")
        return rate

    def fail(self, why: str) -> NoReturn:
        """It came to nothing."""
        raise Failed(why)

    def cost(self, said: Figures) -> Figures:
        """What a child said of its `Cost`."""
        return {name: said[name] for name in ("cpu_seconds", "max_rss_kib", "growth_kib")}

    def times(self, said: Figures) -> Figures:
        """What a child said of its `percentiles`."""
        return {name: said[name] for name in ("p50", "p99", "p999", "count")}

    @property
    def credentials(self) -> dict[str, str]:
        """Those that the service has announced behind its place."""
        return environment_of(self.place.split()[1:])


COURSES: dict[str, Callable[[Course], Figures]] = {
    "throughput": flows.throughput,
    "latency": times.round_trips,
    "fan-out": flows.throughput,
    "rate": times.paced,
    "topics": flows.topics,
    "join": times.joins,
    "start": times.starts,
    "idle": times.idle,
    "mixed": times.mixed,
    "frames": arrays.frames,
    "arrays": arrays.throughput,
    "killed": arrays.killed,
    "return": lambda course: come_back(course.effort.peers, course.credentials),
    "strangers": lambda course: cost_of_strangers(
        min(300, course.effort.peers), course.credentials
    ),
    "circuits": lambda course: cost_of_circuits(min(200, course.effort.peers)),
}
