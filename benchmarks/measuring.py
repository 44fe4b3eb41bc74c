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
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

from benchmarks.contender import Contender
from benchmarks.stage import Failed, Stage
from benchmarks.workloads import Workload

__all__ = ["Effort", "measure"]

_number = itertools.count()


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: of everything.
        seconds: that a publisher sends.
        trips, warm_up: round trips that count, and that come before.
        patience: seconds to wait for whatever should take less than one.
    """

    rounds: int
    seconds: float
    trips: int
    warm_up: int
    patience: float = 30.0


def measure(
    contender: Contender, workload: Workload, place: str, effort: Effort
) -> tuple[dict[str, Any], str]:
    """One measurement in fresh processes.

    Returns:
        its figures, and what the processes wrote.

    Raises:
        Failed: anything went wrong, a lost message included.
    """
    topic = f"benchmark/{os.getpid()}/{next(_number)}"
    with Stage(contender, effort.patience) as stage:
        course = _throughput if workload.group == "throughput" else _round_trips
        figures = course(stage, workload, place, topic, effort)
        return figures, stage.finish()


def _throughput(
    stage: Stage, workload: Workload, place: str, topic: str, effort: Effort
) -> dict[str, Any]:
    job = {"topic": topic, "workload": workload.name, "seconds": effort.seconds}
    publisher, subscriber = stage.start("publish", **job), stage.start("subscribe", **job)
    publisher.say("place", place)
    subscriber.say("place", stage.hear(publisher, "at")["place"])
    stage.hear(subscriber, "proven")
    publisher.say("proven")
    sent = stage.hear(publisher, "sent", effort.seconds)
    received = stage.hear(subscriber, "received", 10 * effort.seconds)  # there may be a long queue
    publisher.say("over")
    cost = stage.hear(publisher, "cost")
    subscriber.say("over")
    lost = sent["messages"] - received["messages"]
    if lost or not received["last_is_right"]:
        raise Failed(
            f"{lost} of {sent['messages']} messages were lost, and a rate with loss is no rate"
            if lost > 0
            else f"{-lost} messages more than the {sent['messages']} sent"
            if lost
            else "the last message was not the last one sent"
        )
    seconds = (received["end"] - sent["start"]) / 1e9
    return {
        "rate": received["messages"] / seconds,
        "messages": received["messages"],
        "seconds": seconds,
        "seconds_sending": (sent["end"] - sent["start"]) / 1e9,
        "publisher": _cost(cost),
        "subscriber": _cost(received),
    }


def _cost(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("cpu_seconds", "max_rss_kib")}


def _round_trips(
    stage: Stage, workload: Workload, place: str, topic: str, effort: Effort
) -> dict[str, Any]:
    job = {
        "topic": topic,
        "workload": workload.name,
        "trips": effort.trips,
        "warm_up": effort.warm_up,
    }
    ping, pong = stage.start("ping", **job), stage.start("pong", **job)
    ping.say("place", place)
    pong.say("place", stage.hear(ping, "at")["place"])
    stage.hear(pong, "proven")
    ping.say("proven")
    stage.hear(ping, "proven")
    pong.say("proven")
    trips = stage.hear(ping, "trips", 0.01 * (effort.trips + effort.warm_up))
    cost = stage.hear(pong, "cost")
    ping.say("over")
    pong.say("over")
    return {
        **{name: trips[name] for name in ("p50", "p99", "p999", "trips")},
        "first": _cost(trips),
        "second": _cost(cost),
    }
