"""What the roles of all measurements have: the child's side.

A role is written once, as a coroutine, for both forms of contenders: a `Face` awaits what an async
contender returns, and calls a blocking one. The coroutine of a blocking contender never suspends,
and runs without an event loop. The parent's side of the same measurement stands below it, in
`courses`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from benchmarks import contenders, memory
from benchmarks.child import Control
from benchmarks.contender import AsyncContender, Meeting
from benchmarks.loops import run
from benchmarks.workloads import KIB, WORKLOADS, Workload

__all__ = [
    "PROBE_EVERY",
    "Cost",
    "Face",
    "Job",
    "clock",
    "percentiles",
    "prove",
    "role",
    "see_out",
    "serve",
]

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
        seconds: how long to send.
        trips, warm_up: how many round trips to take, and how many before that (latency).
        joins: how many subscribers to make (join).
    """

    control: Control
    place: str
    topic: str
    workload: str
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
        kind, announce = self.kind, self.announce
        large = kind.size >= 64 * KIB
        place, shape = self.place, kind.shape
        return Meeting(place, topic, kind.subscribers, announce, large, kind.topics, shape)

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


class Face:
    """A contender whose calls are awaited, whichever form it has."""

    def __init__(self, contender: Any) -> None:
        self.it = contender
        self.is_async = isinstance(contender, AsyncContender)

    async def do(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call it; wait for it."""
        result = call(*args)
        return await result if self.is_async else result

    async def sleep(self, seconds: float) -> None:
        """Do nothing."""
        if self.is_async:
            await asyncio.sleep(seconds)
        elif seconds > 0:
            time.sleep(seconds)  # noqa: ASYNC251  (no event loop runs there)

    async def told(self, job: Job, word: str) -> Any:
        """Wait until the parent says this."""
        if self.is_async:
            return await asyncio.to_thread(job.control.wait, word)
        return job.control.wait(word)

    async def beside(
        self, one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]
    ) -> None:
        """Both at once: as tasks, or in a thread each."""
        if self.is_async:
            await asyncio.gather(one, other)
            return
        thread = threading.Thread(target=_drive, args=(other,))
        thread.start()
        await one
        thread.join()


def role(course: Callable[[Face, Job], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine what `Stage.start` can start: with a contender, at the place that the
    parent says."""

    @wraps(course)
    def begin(control: Control, module: str, contender: str, **job: Any) -> None:
        face = Face(contenders.load(module)[contender])
        running = course(face, Job(control, control.wait("place"), **job))
        if face.is_async:
            run(running)
        else:
            _drive(running)

    return begin


def serve(control: Control, module: str, contender: str) -> None:
    """Be what has to stand beside a contender's publishers and subscribers."""
    contenders.load(module)[contender].serve(lambda place: control.say("at", place=place))


def _drive(course: Coroutine[Any, Any, None]) -> None:
    try:
        course.send(None)
    except StopIteration:
        return
    raise RuntimeError("a blocking contender awaited something")


async def prove(face: Face, job: Job, send: Callable[..., Any], *probe: Any) -> None:
    """Send probes until one has come through."""
    while not job.told("proven"):
        await face.do(send, *probe)
        await face.sleep(PROBE_EVERY)


async def see_out(face: Face, job: Job, send: Callable[..., Any], *marker: Any) -> None:
    """Send markers until the subscribers are through."""
    while not job.told("over"):
        await face.sleep(PROBE_EVERY)
        await face.do(send, *marker)


def percentiles(taken: Sequence[int]) -> dict[str, float]:
    """Of times in nanoseconds, in microseconds."""
    ordered = sorted(taken)
    last = len(ordered) - 1

    def at(share: float) -> float:
        return ordered[min(last, int(share * len(ordered)))] / 1000

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "count": len(ordered)}
