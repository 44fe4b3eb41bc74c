"""The roles of a measurement: publisher, subscriber, the two ends of a round trip, a service.

Each comes in a blocking and an async form, line by line alike. What they tell the parent, and
wait for from it, is in `measuring`.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.contender import AsyncContender, BlockingContender, Contender, Meeting
from benchmarks.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from benchmarks.child import Control

__all__ = ["CHUNK", "Job", "find"]

CHUNK = 256
"""Messages between two looks at the clock."""
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
        subscribers: how many there will be.
        seconds: how long to send (throughput).
        trips, warm_up: how many round trips to take, and how many before that (latency).
    """

    control: Control
    place: str
    topic: str = ""
    workload: str = ""
    subscribers: int = 1
    seconds: float = 0.0
    trips: int = 0
    warm_up: int = 0
    _announced: bool = field(default=False, init=False)

    @property
    def kind(self) -> Workload:
        """The workload itself."""
        return next(workload for workload in WORKLOADS if workload.name == self.workload)

    @property
    def meeting(self) -> Meeting:
        """The same for the contender."""
        return Meeting(self.place, self.topic, self.subscribers, self.announce)

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


class _Cost:
    """What a process spends while it is measured."""

    def __init__(self) -> None:
        self._before = time.process_time()

    def so_far(self) -> dict[str, float]:
        return {
            "cpu_seconds": round(time.process_time() - self._before, 6),
            "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


# --- throughput -------------------------------------------------------------------------


def _publish(contender: BlockingContender, job: Job) -> None:
    make, marker = job.kind.make, [job.kind.marker]
    publisher = contender.open_publisher(job.meeting)
    job.announce(job.place)
    while not job.told("proven"):
        publisher.send_all(marker)
        time.sleep(PROBE_EVERY)
    n = 0
    cost = _Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        publisher.send_all(make(n, CHUNK))
        n += CHUNK
    publisher.send_all(marker)
    job.say("sent", messages=n, start=start, end=clock())
    while not job.told("over"):
        time.sleep(PROBE_EVERY)
        publisher.send_all(marker)
    job.say("cost", **cost.so_far())
    publisher.close()


async def _publish_async(contender: AsyncContender, job: Job) -> None:
    make, marker = job.kind.make, [job.kind.marker]
    publisher = await contender.open_publisher(job.meeting)
    job.announce(job.place)
    while not job.told("proven"):
        await publisher.send_all(marker)
        await asyncio.sleep(PROBE_EVERY)
    n = 0
    cost = _Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        await publisher.send_all(make(n, CHUNK))
        n += CHUNK
    await publisher.send_all(marker)
    job.say("sent", messages=n, start=start, end=clock())
    while not job.told("over"):
        await asyncio.sleep(PROBE_EVERY)
        await publisher.send_all(marker)
    job.say("cost", **cost.so_far())
    await publisher.close()


def _subscribe(contender: BlockingContender, job: Job) -> None:
    subscriber = contender.open_subscriber(job.meeting)
    subscriber.drain()
    cost = _Cost()
    job.say("proven")
    n, last = 0, None
    while not n:  # further probes
        n, last = subscriber.drain()
    _report(job, n, last, clock(), cost)
    job.control.wait("over")
    subscriber.close()


async def _subscribe_async(contender: AsyncContender, job: Job) -> None:
    subscriber = await contender.open_subscriber(job.meeting)
    await subscriber.drain()
    cost = _Cost()
    job.say("proven")
    n, last = 0, None
    while not n:  # further probes
        n, last = await subscriber.drain()
    _report(job, n, last, clock(), cost)
    await asyncio.to_thread(job.control.wait, "over")
    await subscriber.close()


def _report(job: Job, n: int, last: Any, end: int, cost: _Cost) -> None:
    (expected,) = job.kind.make(n - 1, 1)
    job.say("received", messages=n, end=end, last_is_right=last == expected, **cost.so_far())


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
    cost = _Cost()
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
    job.say("trips", **_percentiles(taken[job.warm_up :]), **cost.so_far())
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
    cost = _Cost()
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
    job.say("trips", **_percentiles(taken[job.warm_up :]), **cost.so_far())
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
    cost = _Cost()
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
    cost = _Cost()
    while value:
        await pair.send(value)
        value = await pair.receive()
    job.say("cost", **cost.so_far())
    await asyncio.to_thread(job.control.wait, "over")
    await pair.close()


def _check_reply(value: Any, reply: Any) -> None:
    if reply != value:
        raise RuntimeError(f"the reply to {value!r} is {reply!r}: a message was lost or changed")


def _percentiles(taken: Sequence[int]) -> dict[str, float]:
    """Of times in nanoseconds, in microseconds."""
    ordered = sorted(taken)
    last = len(ordered) - 1

    def at(share: float) -> float:
        return ordered[min(last, int(share * len(ordered)))] / 1000

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "trips": len(ordered)}


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
