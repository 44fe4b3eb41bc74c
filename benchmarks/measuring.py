"""The course of one measurement, as its parent process directs it.

Throughput::

    publisher               parent                 subscriber
    at (where I am)  ─────▶        ─────▶  place
    probes ═══════════════════════════════▶ the first
                                   ◀─────  proven
                     ◀─────  proven
    start; messages, end marker ══════════▶ counts; end
    sent             ─────▶        ◀─────  received
                     ◀─────  over
    cost             ─────▶        ─────▶  over

A round trip goes the same way with two ends, each of which proves what it hears from the other.
Several subscribers each go the way of the one. `COURSES` says which course a group of workloads
takes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.circuits import cost_of_circuits
from benchmarks.contender import Contender, environment_of
from benchmarks.returning import come_back
from benchmarks.stage import Child, Failed, Stage
from benchmarks.strangers import cost_of_strangers
from benchmarks.workloads import Workload

__all__ = ["Effort", "NoRate", "measure"]

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
    with Stage(contender, effort.patience) as stage:
        course = Course(stage, workload, place, effort)
        run = _alone if hasattr(contender, "alone") else COURSES[workload.measured_as]
        figures = run(course)
        return figures, stage.finish()


class Course:
    """What the courses have in common.

    Parameters:
        stage: where the children are.
        workload: what they send.
        place: what the contender's service announced.
        effort: how much.
    """

    def __init__(self, stage: Stage, workload: Workload, place: str, effort: Effort) -> None:
        self.stage = stage
        self.workload = workload
        self.place = place
        self.effort = effort
        self.hear = stage.hear
        self.topic = f"benchmark/{os.getpid()}/{next(_number)}"

    def start(self, role: str, **job: Any) -> Child:
        """A child with this role."""
        return self.stage.start(role, topic=self.topic, workload=self.workload.name, **job)

    def meet(self, first: Child, *others: Child) -> None:
        """Have the first open, and tell the others where it is."""
        first.say("place", self.place)
        place = self.hear(first, "at")["place"]
        for other in others:
            other.say("place", place)

    def prove(self, publisher: Child, *subscribers: Child) -> None:
        """Wait until every subscriber has got a probe."""
        for subscriber in subscribers:
            self.hear(subscriber, "proven", 0.5 * (len(subscribers) - 1))
        publisher.say("proven")

    def check(self, sent: Figures, received: Figures) -> None:
        """Every message has come.

        Raises:
            Failed, NoRate: it has not.
        """
        lost = sent["messages"] - received["messages"]
        if lost > 0 and self.stage.contender.lossy:
            raise NoRate(f"lost {lost / sent['messages']:.0%}")
        if lost > 0:
            raise Failed(
                f"{lost} of {sent['messages']} messages were lost, and a rate with loss is no rate"
            )
        if lost < 0:
            raise Failed(f"{-lost} messages more than the {sent['messages']} sent")
        if not received.get("last_is_right", True):
            raise Failed("the last message was not the last one sent")


def _throughput(course: Course) -> Figures:
    effort, workload, hear = course.effort, course.workload, course.hear
    publisher = course.start("publish", seconds=effort.seconds)
    subscribers = [course.start("subscribe") for _ in range(workload.subscribers)]
    course.meet(publisher, *subscribers)
    course.prove(publisher, *subscribers)
    sent = hear(publisher, "sent", effort.seconds)
    # There may be a long queue.
    received = [hear(s, "received", 10 * effort.seconds * len(subscribers)) for s in subscribers]
    publisher.say("over")
    cost = hear(publisher, "cost")
    for subscriber, found in zip(subscribers, received, strict=True):
        subscriber.say("over")
        course.check(sent, found)
    return _rate(sent, cost, received, workload)


def _rate(sent: Figures, cost: Figures, received: list[Figures], workload: Workload) -> Figures:
    """Deliveries a second, all subscribers together, and what they cost."""
    n = sum(found["messages"] for found in received)
    seconds = (max(found["end"] for found in received) - sent["start"]) / 1e9
    cpu = cost["cpu_seconds"] + sum(found["cpu_seconds"] for found in received)
    return {
        "rate": n / seconds,
        **({"mb_per_second": n * workload.size / seconds / 1e6} if workload.size else {}),
        "messages": n,
        "seconds": seconds,
        "seconds_sending": (sent["end"] - sent["start"]) / 1e9,
        "cpu_per_million": cpu / n * 1e6,
        "growth_mib": cost["growth_kib"] / 1024,
        "publisher": _cost(cost),
        "subscriber": _cost(received[0]),
    }


def _cost(said: Figures) -> Figures:
    return {name: said[name] for name in ("cpu_seconds", "max_rss_kib", "growth_kib")}


def _trips(said: Figures) -> Figures:
    return {name: said[name] for name in ("p50", "p99", "p999", "count")}


def _round_trips(course: Course) -> Figures:
    effort, hear = course.effort, course.hear
    how = {"trips": effort.trips, "warm_up": effort.warm_up}
    ping, pong = course.start("ping", **how), course.start("pong", **how)
    course.meet(ping, pong)
    course.prove(ping, pong)
    course.prove(pong, ping)
    trips = hear(ping, "trips", 0.01 * (effort.trips + effort.warm_up))
    cost = hear(pong, "cost")
    ping.say("over")
    pong.say("over")
    return {**_trips(trips), "first": _cost(trips), "second": _cost(cost)}


def _paced(course: Course) -> Figures:
    effort, workload, hear = course.effort, course.workload, course.hear
    seconds = 2 * effort.seconds  # for percentiles of slow ones
    publisher = course.start("publish-paced", seconds=seconds)
    subscriber = course.start("subscribe-noting")
    course.meet(publisher, subscriber)
    course.prove(publisher, subscriber)
    sent = hear(publisher, "sent", 20 * seconds)
    subscriber.say("sent")
    received = hear(subscriber, "received", 10 * seconds)
    publisher.say("over")
    cost = hear(publisher, "cost")
    subscriber.say("over")
    course.check(sent, received)
    seconds = (sent["end"] - sent["start"]) / 1e9
    rate = sent["messages"] / seconds
    if rate < 0.9 * workload.rate and effort.seconds >= 0.5:
        raise NoRate(f"only {rate:,.0f} a second")
    cpu = cost["cpu_seconds"] + received["cpu_seconds"]
    return {
        **_trips(received),
        "rate": rate,
        "cpu_per_million": cpu / sent["messages"] * 1e6,
        "publisher": _cost(cost),
        "subscriber": _cost(received),
    }


def _topics(course: Course) -> Figures:
    effort, hear = course.effort, course.hear
    publisher = course.start("publish-topics", seconds=effort.seconds)
    subscriber = course.start("subscribe-topics")
    course.meet(publisher, subscriber)
    course.prove(publisher, subscriber)
    sent = hear(publisher, "sent", effort.seconds)
    subscriber.say("sent", sent["messages"])
    received = hear(subscriber, "received", 10 * effort.seconds)
    publisher.say("over")
    cost = hear(publisher, "cost")
    subscriber.say("over")
    course.check(sent, received)
    return _rate(sent, cost, [received], course.workload)


def _joins(course: Course) -> Figures:
    effort, hear = course.effort, course.hear
    publisher = course.start("publish-ticks")
    subscriber = course.start("join", joins=effort.joins)
    course.meet(publisher, subscriber)
    joined = hear(subscriber, "joined", 0.2 * effort.joins)
    publisher.say("over")
    return {**_trips(joined), "cold": joined["cold"]}


def _starts(course: Course) -> Figures:
    effort, hear = course.effort, course.hear
    joins = max(3, effort.joins // 4)
    publisher = course.start("publish-ticks")
    starter = course.start("start", joins=joins)
    course.meet(publisher, starter)
    joined = hear(starter, "joined", 5.0 * joins)
    publisher.say("over")
    return {**_trips(joined), "cold": joined["cold"]}


def _return(course: Course) -> Figures:
    _, *credentials = course.place.split()
    return come_back(course.effort.peers, environment_of(credentials))


def _strangers(course: Course) -> Figures:
    _, *credentials = course.place.split()
    return cost_of_strangers(min(300, course.effort.peers), environment_of(credentials))


def _circuits(course: Course) -> Figures:
    return cost_of_circuits(min(200, course.effort.peers))


def _idle(course: Course) -> Figures:
    first, second = course.start("idle"), course.start("idle-too")
    course.meet(first, second)
    course.prove(first, second)
    course.prove(second, first)
    found = [course.hear(child, "idle")["rss_kib"] / 1024 for child in (first, second)]
    first.say("over")
    second.say("over")
    return {"rss_mib": max(found), "first_mib": found[0], "second_mib": found[1]}


def _mixed(course: Course) -> Figures:
    effort, hear = course.effort, course.hear
    seconds = max(0.6, 4 * effort.seconds)  # several large ones
    publisher = course.start("publish-both", seconds=seconds)
    subscriber = course.start("subscribe-both")
    course.meet(publisher, subscriber)
    course.prove(publisher, subscriber)
    sent = hear(publisher, "sent", 20 * seconds)
    starts = hear(publisher, "starts")["starts"]
    subscriber.say("sent")
    received = hear(subscriber, "received", 10 * seconds)
    publisher.say("over")
    subscriber.say("over")
    course.check(sent, received)
    if received["large"] != len(starts):
        raise Failed(f"{len(starts) - received['large']} of {len(starts)} large messages were lost")
    behind, alone = _sorted_out(json.loads(received["taken"]), starts)
    if not behind or not alone:
        raise Failed("too short to tell small messages behind large ones from the others")
    usual = median(alone)
    behind.sort()
    return {
        "alone_p50": usual / 1000,
        "behind_p50": median(behind) / 1000,
        "delay_p99": (behind[int(0.99 * len(behind))] - usual) / 1000,
        "delay_most": (behind[-1] - usual) / 1000,
        "behind": len(behind),
        "large": len(starts),
    }


BEHIND_NS = 20_000_000
"""A small message put so long after a large one, or less, counts as behind it."""


def _sorted_out(taken: list[tuple[int, int]], starts: list[int]) -> tuple[list[int], list[int]]:
    """The latencies of small messages that were put right after a large one, and of others."""
    behind: list[int] = []
    alone: list[int] = []
    for put, latency in taken:
        near = any(start <= put <= start + BEHIND_NS for start in starts)
        (behind if near else alone).append(latency)
    return behind, alone


def _alone(course: Course) -> Figures:
    """A codec without a network: two processes could go no faster than the slower half."""
    child = course.start("alone", seconds=course.effort.seconds)
    child.say("place", course.place)
    found = course.hear(child, "alone", course.effort.seconds)
    rate = min(found["encoding"], found["decoding"])
    size = course.workload.size
    return {
        "rate": rate,
        **({"mb_per_second": rate * size / 1e6} if size else {}),
        "encoding": found["encoding"],
        "decoding": found["decoding"],
        "cpu_per_million": 1e6 / found["encoding"] + 1e6 / found["decoding"],
    }


COURSES: dict[str, Callable[[Course], Figures]] = {
    "throughput": _throughput,
    "latency": _round_trips,
    "fan-out": _throughput,
    "rate": _paced,
    "topics": _topics,
    "join": _joins,
    "start": _starts,
    "return": _return,
    "strangers": _strangers,
    "circuits": _circuits,
    "idle": _idle,
    "mixed": _mixed,
}
