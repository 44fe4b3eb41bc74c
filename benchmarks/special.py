"""The roles of what is neither plain throughput nor a round trip.

Each is written once, as a coroutine, for both forms of contenders: a `Face` awaits what an async
contender returns, and calls a blocking one. The coroutine of a blocking contender never suspends,
and runs without an event loop.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks import memory
from benchmarks.contender import AsyncContender, Contender
from benchmarks.roles import PROBE_EVERY, Cost, Job, clock, percentiles
from benchmarks.workloads import MIB, small_dict

__all__ = ["LARGE_EVERY", "ROLES", "Face", "enter"]

TICK = 0.001
"""Seconds between two looks at what is due, at a fixed rate."""
LARGE_EVERY = 0.1
"""Seconds from one large message to the next (mixed)."""


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


Special = Callable[[Face, "Job"], Coroutine[Any, Any, None]]


def enter(role: Special) -> Callable[[Contender, Job], Coroutine[Any, Any, None] | None]:
    """The role, as `child` runs it."""

    def begin(contender: Contender, job: Job) -> Coroutine[Any, Any, None] | None:
        face = Face(contender)
        course = role(face, job)
        if face.is_async:
            return course
        _drive(course)
        return None

    return begin


def _drive(course: Coroutine[Any, Any, None]) -> None:
    try:
        course.send(None)
    except StopIteration:
        return
    raise RuntimeError("a blocking contender awaited something")


async def _prove(face: Face, job: Job, publisher: Any) -> None:
    """Send probes until one has come through."""
    marker = [job.kind.marker]
    while not job.told("proven"):
        await face.do(publisher.send_all, marker)
        await face.sleep(PROBE_EVERY)


async def _see_out(face: Face, job: Job, publisher: Any) -> None:
    """Send markers until the subscribers are through."""
    marker = [job.kind.marker]
    while not job.told("over"):
        await face.do(publisher.send_all, marker)
        await face.sleep(PROBE_EVERY)


# --- a fixed rate -----------------------------------------------------------------------


async def _pace(face: Face, job: Job, publisher: Any) -> tuple[int, int, int]:
    """Send at the rate of the workload; how many, from when to when."""
    rate = job.kind.rate
    total, n = int(rate * job.seconds), 0
    send_all = publisher.send_all
    start = clock()
    while n < total:
        due = min(total, int((clock() - start) * rate / 1e9) + 1)
        if due > n:
            now = clock()
            await face.do(send_all, [small_dict(now) for _ in range(due - n)])
            n = due
        # uvloop's timers count whole milliseconds: it would take less for none, and spin
        pause = TICK if rate * TICK > 1 else start / 1e9 + n / rate - clock() / 1e9
        await face.sleep(max(pause, 0))
    return n, start, clock()


async def _publish_paced(face: Face, job: Job) -> None:
    publisher = await face.do(face.it.open_publisher, job.meeting)
    job.announce(job.place)
    await _prove(face, job, publisher)
    cost = Cost()
    n, start, end = await _pace(face, job, publisher)
    spent = cost.so_far()
    job.say("sent", messages=n, start=start, end=end)
    await _see_out(face, job, publisher)
    job.say("cost", **spent)
    await face.do(publisher.close)


async def _subscribe_noting(face: Face, job: Job) -> None:
    subscriber = await face.do(face.it.open_subscriber, job.meeting)
    await face.do(subscriber.drain)
    job.say("proven")
    taken: list[int] = []
    cost = Cost()
    append = taken.append

    def note(value: Any) -> None:
        append(clock() - value["id"])

    while not job.told("sent"):  # further probes
        await face.do(subscriber.each, note)
    await face.do(subscriber.each, note)
    job.say("received", messages=len(taken), **cost.so_far(), **percentiles(taken))
    await face.told(job, "over")
    await face.do(subscriber.close)


# --- many topics ------------------------------------------------------------------------


async def _publish_topics(face: Face, job: Job) -> None:
    kind = job.kind
    publisher = await face.do(face.it.open_topics, job.meeting)
    job.announce(job.place)
    everywhere = list(range(kind.topics))
    chunk = kind.chunk
    cycle = max(1, kind.topics * kind.run // chunk)  # chunks until the topics come round again
    rows = [
        [number // kind.run % kind.topics for number in range(i * chunk, (i + 1) * chunk)]
        for i in range(cycle)
    ]
    markers = [kind.marker] * kind.topics
    while not job.told("proven"):
        await face.do(publisher.send_to, everywhere, markers)
        await face.sleep(0.05)
    n = 0
    cost = Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        await face.do(publisher.send_to, rows[n // chunk % cycle], kind.make(n, chunk))
        n += chunk
    spent = cost.so_far()
    job.say("sent", messages=n, start=start, end=clock())
    while not job.told("over"):
        await face.do(publisher.send_to, everywhere, markers)
        await face.sleep(0.05)
    job.say("cost", **spent)
    await face.do(publisher.close)


async def _subscribe_topics(face: Face, job: Job) -> None:
    """Nothing orders the topics among each other: it has got all when it has got so many."""
    subscriber = await face.do(face.it.open_topics_subscriber, job.meeting)
    await face.do(subscriber.drain)
    job.say("proven")
    cost = Cost()
    n, end = 0, 0
    expected: int | None = None
    while n != expected:
        if expected is None and job.told("sent"):
            expected = job.control.wait("sent")
            continue
        more, _ = await face.do(subscriber.drain)
        if more:
            n += more
            end = clock()
    job.say("received", messages=n, end=end, last_is_right=True, **cost.so_far())
    await face.told(job, "over")
    await face.do(subscriber.close)


# --- joining ----------------------------------------------------------------------------


async def _publish_ticks(face: Face, job: Job) -> None:
    publisher = await face.do(face.it.open_publisher, job.meeting)
    job.announce(job.place)
    marker = [job.kind.marker]
    while not job.told("over"):
        await face.do(publisher.send_all, marker)
        await face.sleep(TICK)
    await face.do(publisher.close)


async def _join(face: Face, job: Job) -> None:
    """One subscriber after the other: each counts from before it is made to its first message."""
    taken = []
    for _ in range(1 + job.joins):
        start = clock()
        subscriber = await face.do(face.it.open_subscriber, job.meeting)
        await face.do(subscriber.drain)
        taken.append(clock() - start)
        await face.do(subscriber.close)
        await face.sleep(0.01)
    job.say("joined", cold=taken[0] / 1000, **percentiles(taken[1:]))


async def _start(face: Face, job: Job) -> None:
    """One process after the other: each counts from before it is started to its first message."""
    command = face.it.program(job.meeting)
    taken = []
    for _ in range(1 + job.joins):
        start = clock()
        done = await asyncio.to_thread(
            subprocess.run, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )
        taken.append(int(done.stdout) - start)
    job.say("joined", cold=taken[0] / 1000, **percentiles(taken[1:]))


# --- idle -------------------------------------------------------------------------------


async def _idle(face: Face, job: Job) -> None:
    """The end that opens first: sends, then hears."""
    pair = await face.do(face.it.open_pair, job.meeting, True)
    job.announce(job.place)
    while not job.told("proven"):
        await face.do(pair.send, job.kind.marker)
        await face.sleep(PROBE_EVERY)
    await face.do(pair.receive)
    job.say("proven")
    await face.sleep(0.2)
    job.say("idle", rss_kib=memory.now())
    await face.told(job, "over")
    await face.do(pair.close)


async def _idle_too(face: Face, job: Job) -> None:
    """The other end: hears, then sends."""
    pair = await face.do(face.it.open_pair, job.meeting, False)
    await face.do(pair.receive)
    job.say("proven")
    while not job.told("proven"):
        await face.do(pair.send, job.kind.marker)
        await face.sleep(PROBE_EVERY)
    await face.sleep(0.2)
    job.say("idle", rss_kib=memory.now())
    await face.told(job, "over")
    await face.do(pair.close)


# --- large ones beside small ones -------------------------------------------------------


async def _publish_both(face: Face, job: Job) -> None:
    meetings = [job.meeting_at(f"{job.topic}/{size}") for size in ("small", "large")]
    small, large = [await face.do(face.it.open_publisher, meeting) for meeting in meetings]
    job.announce(job.place)
    await _prove(face, job, small)
    body = bytes(range(256)) * (8 * MIB // 256)
    starts: list[int] = []
    through = False

    async def send_small() -> None:
        nonlocal through
        n, start, end = await _pace(face, job, small)
        through = True
        job.say("sent", messages=n, start=start, end=end)

    async def send_large() -> None:
        while not through:
            await face.sleep(LARGE_EVERY)
            starts.append(clock())
            await face.do(large.send_all, [body])

    await face.beside(send_small(), send_large())
    job.say("starts", starts=starts)
    await face.do(large.send_all, [b""])
    await _see_out(face, job, small)
    await face.do(small.close)
    await face.do(large.close)


async def _subscribe_both(face: Face, job: Job) -> None:
    meetings = [job.meeting_at(f"{job.topic}/{size}") for size in ("small", "large")]
    small, large = [await face.do(face.it.open_subscriber, meeting) for meeting in meetings]
    await face.do(small.drain)
    job.say("proven")
    taken: list[tuple[int, int]] = []
    found: list[int] = []

    def note(value: Any) -> None:
        taken.append((value["id"], clock() - value["id"]))

    async def take_small() -> None:
        while not job.told("sent"):
            await face.do(small.each, note)
        await face.do(small.each, note)

    async def take_large() -> None:
        found.append((await face.do(large.drain))[0])

    await face.beside(take_small(), take_large())
    job.say("received", messages=len(taken), large=found[0], taken=json.dumps(taken))
    await face.told(job, "over")
    await face.do(small.close)
    await face.do(large.close)


# --- a codec alone ----------------------------------------------------------------------


async def _alone(face: Face, job: Job) -> None:
    job.announce(job.place)
    encoding, decoding = face.it.alone(job.kind, job.seconds)
    job.say("alone", encoding=encoding, decoding=decoding)


ROLES: dict[str, Special] = {
    "publish-paced": _publish_paced,
    "subscribe-noting": _subscribe_noting,
    "publish-topics": _publish_topics,
    "subscribe-topics": _subscribe_topics,
    "publish-ticks": _publish_ticks,
    "join": _join,
    "start": _start,
    "idle": _idle,
    "idle-too": _idle_too,
    "publish-both": _publish_both,
    "subscribe-both": _subscribe_both,
    "alone": _alone,
}
