"""Times: of round trips, of messages at a fixed rate, also beside large ones, and until the first
message of one who joins; and what an idle process takes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING, Any

from benchmarks import memory
from benchmarks.roles import Cost, Face, Job, clock, percentiles, prove, role, see_out
from benchmarks.workloads import MIB, small_dict

if TYPE_CHECKING:
    from benchmarks.measuring import Course, Figures

__all__ = ["idle", "joins", "mixed", "paced", "round_trips", "starts"]

TICK = 0.001
"""Seconds between two looks at what is due, at a fixed rate."""
LARGE_EVERY = 0.1
"""Seconds from one large message to the next (mixed)."""
BEHIND_NS = 20_000_000
"""A small message put so long after a large one, or less, counts as behind it."""


# --- round trips ------------------------------------------------------------------------


async def _first_end(face: Face, job: Job) -> Any:
    """The end that opens first: sends, then hears."""
    pair = await face.do(face.it.open_pair, job.meeting, True)
    job.announce(job.place)
    await prove(face, job, pair.send, job.kind.marker)
    await face.do(pair.receive)
    job.say("proven")
    return pair


async def _other_end(face: Face, job: Job) -> Any:
    """The other end: hears, then sends."""
    pair = await face.do(face.it.open_pair, job.meeting, False)
    await face.do(pair.receive)
    job.say("proven")
    await prove(face, job, pair.send, job.kind.marker)
    return pair


@role
async def ping(face: Face, job: Job) -> None:
    pair = await _first_end(face, job)
    count = job.warm_up + job.trips
    cost = Cost()
    if hasattr(pair, "exchange"):  # it takes them from within its callbacks
        taken = await pair.exchange(job.kind.make(0, count))
    else:
        taken = await face.do(_exchange_async if face.is_async else _exchange, pair, job, count)
    await face.do(pair.send, job.kind.marker)
    job.say("trips", **percentiles(taken[job.warm_up :]), **cost.so_far())
    await face.told(job, "over")
    await face.do(pair.close)


def _exchange(pair: Any, job: Job, count: int) -> list[int]:
    taken = []
    for i in range(count):
        (value,) = job.kind.make(i, 1)
        start = clock()
        pair.send(value)
        reply = pair.receive()
        while not reply:  # further probes
            reply = pair.receive()
        taken.append(clock() - start)
        _check_reply(value, reply)
    return taken


async def _exchange_async(pair: Any, job: Job, count: int) -> list[int]:
    taken = []
    for i in range(count):
        (value,) = job.kind.make(i, 1)
        start = clock()
        await pair.send(value)
        reply = await pair.receive()
        while not reply:  # further probes
            reply = await pair.receive()
        taken.append(clock() - start)
        _check_reply(value, reply)
    return taken


def _check_reply(value: Any, reply: Any) -> None:
    if reply != value:
        raise RuntimeError(f"the reply to {value!r} is {reply!r}: a message was lost or changed")


@role
async def pong(face: Face, job: Job) -> None:
    pair = await _other_end(face, job)
    value = await face.do(pair.receive)
    while not value:  # further probes
        value = await face.do(pair.receive)
    cost = Cost()
    if hasattr(pair, "echo"):
        await pair.echo(value)
    else:
        await face.do(_echo_async if face.is_async else _echo, pair, value)
    job.say("cost", **cost.so_far())
    await face.told(job, "over")
    await face.do(pair.close)


def _echo(pair: Any, value: Any) -> None:
    while value:
        pair.send(value)
        value = pair.receive()


async def _echo_async(pair: Any, value: Any) -> None:
    while value:
        await pair.send(value)
        value = await pair.receive()


def round_trips(course: Course) -> Figures:
    """One at a time."""
    effort = course.effort
    how = {"trips": effort.trips, "warm_up": effort.warm_up}
    first, second = course.pair(ping, pong, **how)
    trips = course.hear(first, "trips", 0.01 * (effort.trips + effort.warm_up))
    cost = course.hear(second, "cost")
    course.over(first, second)
    return {**course.times(trips), "first": course.cost(trips), "second": course.cost(cost)}


# --- idle -------------------------------------------------------------------------------


@role
async def rest_first(face: Face, job: Job) -> None:
    await _rest(face, job, await _first_end(face, job))


@role
async def rest_too(face: Face, job: Job) -> None:
    await _rest(face, job, await _other_end(face, job))


async def _rest(face: Face, job: Job, pair: Any) -> None:
    await face.sleep(0.2)
    job.say("idle", rss_kib=memory.now())
    await face.told(job, "over")
    await face.do(pair.close)


def idle(course: Course) -> Figures:
    """Two processes that have heard of each other, and do nothing."""
    both = course.pair(rest_first, rest_too)
    found = [course.hear(child, "idle")["rss_kib"] / 1024 for child in both]
    course.over(*both)
    return {"rss_mib": max(found), "first_mib": found[0], "second_mib": found[1]}


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


@role
async def publish_paced(face: Face, job: Job) -> None:
    publisher = await face.do(face.it.open_publisher, job.meeting)
    job.announce(job.place)
    await prove(face, job, publisher.send_all, [job.kind.marker])
    cost = Cost()
    n, start, end = await _pace(face, job, publisher)
    spent = cost.so_far()
    job.say("sent", messages=n, start=start, end=end)
    await see_out(face, job, publisher.send_all, [job.kind.marker])
    job.say("cost", **spent)
    await face.do(publisher.close)


@role
async def subscribe_noting(face: Face, job: Job) -> None:
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


def paced(course: Course) -> Figures:
    """From just before the put to the subscriber's code."""
    seconds = 2 * course.effort.seconds  # for percentiles of slow ones
    publisher = course.start(publish_paced, seconds=seconds)
    subscriber = course.start(subscribe_noting)
    sent, cost, received = course.flow(publisher, subscriber, seconds, 20)
    cpu = cost["cpu_seconds"] + received["cpu_seconds"]
    return {
        **course.times(received),
        "rate": course.kept(sent),
        "cpu_per_million": cpu / sent["messages"] * 1e6,
        "publisher": course.cost(cost),
        "subscriber": course.cost(received),
    }


# --- joining ----------------------------------------------------------------------------


@role
async def publish_ticks(face: Face, job: Job) -> None:
    publisher = await face.do(face.it.open_publisher, job.meeting)
    job.announce(job.place)
    marker = [job.kind.marker]
    while not job.told("over"):
        await face.do(publisher.send_all, marker)
        await face.sleep(TICK)
    await face.do(publisher.close)


@role
async def join(face: Face, job: Job) -> None:
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


@role
async def start(face: Face, job: Job) -> None:
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


def joins(course: Course) -> Figures:
    """Of subscribers."""
    return _joins(course, join, course.effort.joins, 0.2)


def starts(course: Course) -> Figures:
    """Of processes."""
    return _joins(course, start, max(3, course.effort.joins // 4), 5.0)


def _joins(course: Course, joining: Any, count: int, patience: float) -> Figures:
    publisher, joiner = course.start(publish_ticks), course.start(joining, joins=count)
    course.meet(publisher, joiner)
    joined = course.hear(joiner, "joined", patience * count)
    course.over(publisher)
    return {**course.times(joined), "cold": joined["cold"]}


# --- large ones beside small ones -------------------------------------------------------


@role
async def publish_both(face: Face, job: Job) -> None:
    meetings = [job.meeting_at(f"{job.topic}/{size}") for size in ("small", "large")]
    small, large = [await face.do(face.it.open_publisher, meeting) for meeting in meetings]
    job.announce(job.place)
    await prove(face, job, small.send_all, [job.kind.marker])
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
    await see_out(face, job, small.send_all, [job.kind.marker])
    job.say("cost")
    await face.do(small.close)
    await face.do(large.close)


@role
async def subscribe_both(face: Face, job: Job) -> None:
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


def mixed(course: Course) -> Figures:
    """What a large message costs a small one."""
    from statistics import median

    seconds = max(0.6, 4 * course.effort.seconds)  # several large ones
    publisher = course.start(publish_both, seconds=seconds)
    subscriber = course.start(subscribe_both)
    _, _, received = course.flow(publisher, subscriber, seconds, 20)
    starts = course.hear(publisher, "starts")["starts"]
    if received["large"] != len(starts):
        lost = len(starts) - received["large"]
        course.fail(f"{lost} of {len(starts)} large messages were lost")
    behind, alone = _sorted_out(json.loads(received["taken"]), starts)
    if not behind or not alone:
        course.fail("too short to tell small messages behind large ones from the others")
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


def _sorted_out(taken: list[tuple[int, int]], starts: list[int]) -> tuple[list[int], list[int]]:
    """The latencies of small messages that were put right after a large one, and of others."""
    behind: list[int] = []
    alone: list[int] = []
    for put, latency in taken:
        near = any(start <= put <= start + BEHIND_NS for start in starts)
        (behind if near else alone).append(latency)
    return behind, alone
