"""The roles of a measurement: publisher, subscriber, the two ends of a round trip, a service.

Each comes in a blocking and an async form, line by line alike. What they tell the parent, and
wait for from it, is in `measuring`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks import memory
from benchmarks.contender import AsyncContender, BlockingContender, Contender, Meeting
from benchmarks.workloads import KIB, WORKLOADS, Workload

if TYPE_CHECKING:
    from benchmarks.child import Control

__all__ = ["PROBE_EVERY", "Cost", "Job", "clock", "find", "percentiles"]

PROBE_EVERY = 0.005
"""Seconds between two probes, and before an end marker is repeated."""

clock = time.monotonic_ns


@dataclass
class Job:
    """What a role is to do.

    Attributes:
        control: the line to the parent.
        place: see `Meeting`.
        topic: see `Meeting`.
        workload: by name.
        seconds: how long to send (throughput, rate).
        trips, warm_up: how many round trips to take, and how many before that (latency).
        joins: how many subscribers to make (join).
    """

    control: Control
    place: str
    topic: str = ""
    workload: str = ""
    seconds: float = 0.0
    trips: int = 0
    warm_up: int = 0
    joins: int = 0
    _announced: bool = field(default=False, init=False)

    @property
    def kind(self) -> Workload:
        """The workload itself."""
        return next(workload for workload in WORKLOADS if workload.name == self.workload)

    @property
    def meeting(self) -> Meeting:
        """The same for the contender."""
        return self.meeting_at(self.topic)

    def meeting_at(self, topic: str) -> Meeting:
        """The same for another topic."""
        kind = self.kind
        large = kind.size >= 64 * KIB
        return Meeting(self.place, topic, kind.subscribers, self.announce, large, kind.topics)

    def announce(self, place: str) -> None:
        """Tell the others where to go."""
        if not self._announced:
            self._announced = True
            self.control.say("at", place=place)

    def told(self, word: str) -> bool:
        """Whether the parent has said this."""
        return self.control.told(word)

    def say(self, word: str, **what: Any) -> None:
        """Tell the parent."""
        self.control.say(word, **what)


class Cost:
    """What a process spends while it is measured."""

    def __init__(self) -> None:
        self._rss = memory.now()
        self._before = time.process_time()

    def so_far(self) -> dict[str, float]:
        """CPU seconds; resident memory at its highest, and how much that is above the start."""
        cpu = time.process_time() - self._before
        most = memory.most()
        return {
            "cpu_seconds": round(cpu, 6),
            "max_rss_kib": most,
            "growth_kib": max(0, most - self._rss),
        }


# --- throughput -------------------------------------------------------------------------


def _publish(contender: BlockingContender, job: Job) -> None:
    make, marker, chunk = job.kind.make, [job.kind.marker], job.kind.chunk
    make(0, chunk)  # imports, and memory that is touched for the first time
    publisher = contender.open_publisher(job.meeting)
    job.announce(job.place)
    while not job.told("proven"):
        publisher.send_all(marker)
        time.sleep(PROBE_EVERY)
    n = 0
    cost = Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        publisher.send_all(make(n, chunk))
        n += chunk
    publisher.send_all(marker)
    job.say("sent", messages=n, start=start, end=clock())
    while not job.told("over"):
        time.sleep(PROBE_EVERY)
        publisher.send_all(marker)
    job.say("cost", **cost.so_far())
    publisher.close()


async def _publish_async(contender: AsyncContender, job: Job) -> None:
    make, marker, chunk = job.kind.make, [job.kind.marker], job.kind.chunk
    make(0, chunk)  # imports, and memory that is touched for the first time
    publisher = await contender.open_publisher(job.meeting)
    job.announce(job.place)
    while not job.told("proven"):
        await publisher.send_all(marker)
        await asyncio.sleep(PROBE_EVERY)
    n = 0
    cost = Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        await publisher.send_all(make(n, chunk))
        n += chunk
    await publisher.send_all(marker)
    job.say("sent", messages=n, start=start, end=clock())
    while not job.told("over"):
        await asyncio.sleep(PROBE_EVERY)
        await publisher.send_all(marker)
    job.say("cost", **cost.so_far())
    await publisher.close()


def _subscribe(contender: BlockingContender, job: Job) -> None:
    job.kind.make(0, 1)  # imports
    subscriber = contender.open_subscriber(job.meeting)
    subscriber.drain()
    cost = Cost()
    job.say("proven")
    n, last = 0, None
    while not n:  # further probes
        n, last = subscriber.drain()
    _report(job, n, last, clock(), cost)
    job.control.wait("over")
    subscriber.close()


async def _subscribe_async(contender: AsyncContender, job: Job) -> None:
    job.kind.make(0, 1)  # imports
    subscriber = await contender.open_subscriber(job.meeting)
    await subscriber.drain()
    cost = Cost()
    job.say("proven")
    n, last = 0, None
    while not n:  # further probes
        n, last = await subscriber.drain()
    _report(job, n, last, clock(), cost)
    await asyncio.to_thread(job.control.wait, "over")
    await subscriber.close()


def _report(job: Job, n: int, last: Any, end: int, cost: Cost) -> None:
    spent = cost.so_far()
    (expected,) = job.kind.make(n - 1, 1)
    job.say("received", messages=n, end=end, last_is_right=job.kind.same(last, expected), **spent)


# --- round trips ------------------------------------------------------------------------


def _ping(contender: BlockingContender, job: Job) -> None:
    make, marker = job.kind.make, job.kind.marker
    pair = contender.open_pair(job.meeting, True)
    job.announce(job.place)
    while not job.told("proven"):
        pair.send(marker)
        time.sleep(PROBE_EVERY)
    pair.receive()
    job.say("proven")
    taken = []
    cost = Cost()
    for i in range(job.warm_up + job.trips):
        (value,) = make(i, 1)
        start = clock()
        pair.send(value)
        reply = pair.receive()
        while not reply:  # further probes
            reply = pair.receive()
        taken.append(clock() - start)
        _check_reply(value, reply)
    pair.send(marker)
    job.say("trips", **percentiles(taken[job.warm_up :]), **cost.so_far())
    job.control.wait("over")
    pair.close()


async def _ping_async(contender: AsyncContender, job: Job) -> None:
    make, marker = job.kind.make, job.kind.marker
    pair = await contender.open_pair(job.meeting, True)
    job.announce(job.place)
    while not job.told("proven"):
        await pair.send(marker)
        await asyncio.sleep(PROBE_EVERY)
    await pair.receive()
    job.say("proven")
    taken = []
    cost = Cost()
    if hasattr(pair, "exchange"):  # it takes them from within its callbacks
        taken = await pair.exchange(make(0, job.warm_up + job.trips))
    else:
        for i in range(job.warm_up + job.trips):
            (value,) = make(i, 1)
            start = clock()
            await pair.send(value)
            reply = await pair.receive()
            while not reply:  # further probes
                reply = await pair.receive()
            taken.append(clock() - start)
            _check_reply(value, reply)
    await pair.send(marker)
    job.say("trips", **percentiles(taken[job.warm_up :]), **cost.so_far())
    await asyncio.to_thread(job.control.wait, "over")
    await pair.close()


def _pong(contender: BlockingContender, job: Job) -> None:
    pair = contender.open_pair(job.meeting, False)
    pair.receive()
    job.say("proven")
    while not job.told("proven"):
        pair.send(job.kind.marker)
        time.sleep(PROBE_EVERY)
    value = pair.receive()
    while not value:  # further probes
        value = pair.receive()
    cost = Cost()
    while value:
        pair.send(value)
        value = pair.receive()
    job.say("cost", **cost.so_far())
    job.control.wait("over")
    pair.close()


async def _pong_async(contender: AsyncContender, job: Job) -> None:
    pair = await contender.open_pair(job.meeting, False)
    await pair.receive()
    job.say("proven")
    while not job.told("proven"):
        await pair.send(job.kind.marker)
        await asyncio.sleep(PROBE_EVERY)
    value = await pair.receive()
    while not value:  # further probes
        value = await pair.receive()
    cost = Cost()
    if hasattr(pair, "echo"):
        await pair.echo(value)
    else:
        while value:
            await pair.send(value)
            value = await pair.receive()
    job.say("cost", **cost.so_far())
    await asyncio.to_thread(job.control.wait, "over")
    await pair.close()


def _check_reply(value: Any, reply: Any) -> None:
    if reply != value:
        raise RuntimeError(f"the reply to {value!r} is {reply!r}: a message was lost or changed")


def percentiles(taken: Sequence[int]) -> dict[str, float]:
    """Of times in nanoseconds, in microseconds."""
    ordered = sorted(taken)
    last = len(ordered) - 1

    def at(share: float) -> float:
        return ordered[min(last, int(share * len(ordered)))] / 1000

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "count": len(ordered)}


# --- which ------------------------------------------------------------------------------

Role = Callable[[Any, Job], "Coroutine[Any, Any, None] | None"]

_BLOCKING: dict[str, Role] = {
    "publish": _publish,
    "subscribe": _subscribe,
    "ping": _ping,
    "pong": _pong,
}
_ASYNC: dict[str, Role] = {
    "publish": _publish_async,
    "subscribe": _subscribe_async,
    "ping": _ping_async,
    "pong": _pong_async,
}


def _serve(contender: Contender, job: Job) -> None:
    contender.serve(job.announce)


def find(name: str, contender: Contender) -> Role:
    """The form of a role that the contender has."""
    if name == "serve":
        return _serve
    return (_ASYNC if isinstance(contender, AsyncContender) else _BLOCKING)[name]
