"""Arrays on one host: as fast as it goes, as frames at a fixed rate, and what is left of them when
processes are killed.

The publisher has one array of its own, and stamps it before each send: an element of each page gets
the number of the message, and its head that number and the time. So one that sent the array's
memory without a snapshot would be found out. A subscriber sums one element of each page: an array
that is lost, torn, or comes twice fails the run. (Where arrays are made by the publisher's `empty`,
16 elements of each are stamped and summed, whatever its size: what is measured is the way of it.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.roles import Cost, Face, Job, clock, percentiles, prove, role

if TYPE_CHECKING:
    from benchmarks.measuring import Course, Figures
    from benchmarks.stage import Child

__all__ = ["HEAD", "PAGE", "frames", "killed", "look", "stamp", "throughput"]

HEAD, PAGE, FEW = 16, 4096, 16
LOOK = 0.25
"""Seconds between two looks at the memory of all."""
FLOW = 1.0
"""Seconds that all flows before somebody is killed."""
SHARED = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")
"""How the names of shared memory begin in /proc. (uvloop maps its io_uring, too.)"""
OTHERS = ("iox2_*", "*.zenoh")
"""What is taken away when it has been counted."""
CLEAR = 12.0
"""Seconds in which what a killed process has left must be gone."""


# --- stamps -----------------------------------------------------------------------------


def _step(job: Job) -> int:
    return max(PAGE, job.kind.size // FEW) if job.kind.empty else PAGE


def stamp(array: Any, number: int, step: int) -> None:
    flat = array.reshape(-1)
    flat[HEAD::step] = number % 251
    flat[:HEAD].view("i8")[:] = (number, clock())


def look(array: Any, step: int) -> tuple[int, int]:
    """The number of an array that has just come, and the time since it was put.

    Raises:
        RuntimeError: it is not the one that was put.
    """
    now = clock()
    flat = array.reshape(-1)
    number, put = map(int, flat[:HEAD].view("i8"))
    elements = flat[HEAD::step]
    if int(elements.sum()) != number % 251 * len(elements):
        raise RuntimeError(f"array {number} is torn: not all of its pages have its number")
    return number, now - put


# --- roles ------------------------------------------------------------------------------


@role
async def publish(face: Face, job: Job) -> None:
    import numpy as np

    kind, step = job.kind, _step(job)
    publisher = await face.do(face.it.open_arrays, job.meeting)
    job.announce(job.place)
    array = np.frombuffer(bytearray(b"\7" * kind.size), np.uint8).reshape(kind.shape)
    marker = array.copy()
    stamp(marker, -1, step)
    await prove(face, job, publisher.send, marker)
    n = 0
    cost = Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        if kind.empty:
            array = publisher.empty(kind.shape)
        stamp(array, n, step)
        await face.do(publisher.send, array)
        n += 1
        if kind.rate:
            await face.sleep(max(0, start / 1e9 + n / kind.rate - clock() / 1e9))
    job.say("sent", messages=n, start=start, end=clock())
    await face.do(publisher.send, marker)
    await face.told(job, "over")
    job.say("cost", **cost.so_far())
    await face.do(publisher.close)


@role
async def subscribe(face: Face, job: Job) -> None:
    """Takes and checks all, and keeps none; with `warm_up`, it comes in the midst of them."""
    import numpy  # noqa: F401  (before anything is measured)

    step, due = _step(job), None if job.warm_up else 0
    subscriber = await face.do(face.it.open_array_subscriber, job.meeting)
    look(await face.do(subscriber.take), step)
    cost = Cost()
    job.say("proven")
    taken: list[int] = []
    while True:
        number, latency = look(await face.do(subscriber.take), step)
        if number < 0 and taken:
            break
        if number < 0:  # further probes
            continue
        if number != due and due is not None:
            raise RuntimeError(f"array {number} came where {due} was due")
        taken.append(latency)
        due = number + 1
    job.say("received", messages=len(taken), end=clock(), **percentiles(taken), **cost.so_far())
    await face.told(job, "over")
    await face.do(subscriber.close)


# --- courses ----------------------------------------------------------------------------


def throughput(course: Course) -> Figures:
    """As fast as it goes."""
    return _flow(course, 2 * course.effort.seconds)


def frames(course: Course) -> Figures:
    """At the rate of the workload."""
    return _flow(course, 6 * course.effort.seconds)


def _flow(course: Course, seconds: float) -> Figures:
    publisher = course.start(publish, seconds=seconds)
    subscribers = [course.start(subscribe) for _ in range(course.workload.subscribers)]
    course.meet(publisher, *subscribers)
    with _memory_of(course.stage.children) as most:
        course.prove(publisher, *subscribers)
        sent = course.hear(publisher, "sent", 10 * seconds)
        received = [course.hear(each, "received", 10 * seconds) for each in subscribers]
    course.over(publisher, *subscribers)
    cost = course.hear(publisher, "cost")
    for found in received:
        course.check(sent, found)
    if course.workload.rate:
        course.kept(sent)
    n = sent["messages"]
    spent = (max(found["end"] for found in received) - sent["start"]) / 1e9
    cpu = cost["cpu_seconds"] + sum(found["cpu_seconds"] for found in received)
    worst = max(received, key=lambda found: found["p50"])
    return {
        **course.times(worst),
        "rate": n / spent,
        "messages": n,
        "seconds": spent,
        "cpu_ms": cpu / n * 1000,
        "cpu_share": 100 * cpu / spent,
        "pss_mib": most(),
        "publisher": course.cost(cost),
        "subscriber": course.cost(worst),
    }


@contextmanager
def _memory_of(children: list[Child]) -> Iterator[Callable[[], float]]:
    """MiB that all of them had together at the highest, what they share counted once."""
    most, over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(LOOK):
            most = max(most, sum(child.memory("smaps_rollup", "Pss") for child in children))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield lambda: most / 1024
    finally:
        over.set()
        looking.join()


# --- killed -----------------------------------------------------------------------------


def killed(course: Course) -> Figures:
    """Of all shared memory, what is left after SIGKILL: at the publisher, of a subscriber; at the
    subscribers, of the publisher; in the system, of all of them."""
    before = _in_system()
    publisher = course.start(publish, seconds=600)
    others = [course.start(subscribe) for _ in range(course.workload.subscribers)]
    course.meet(publisher, *others)
    course.prove(publisher, *others)
    usual = []
    until = time.monotonic() + FLOW
    while time.monotonic() < until:  # it may have more at one time than at another
        usual.append(_held(publisher, every=True))
        time.sleep(0.05)
    files, maps = (max(each) for each in zip(*usual, strict=True))
    late = course.start(subscribe, warm_up=1)
    late.say("place", course.met)
    course.hear(late, "proven")
    time.sleep(FLOW)
    late.end()
    left = [_left([publisher], files, maps)]
    publisher.end()
    left.append(_left(others, 0, 0))
    for each in others:
        each.end()
    new = {file: size for file, size in _in_system().items() if file not in before}
    for file in new:
        if any(map(file.match, OTHERS)):
            file.unlink(missing_ok=True)
    return {
        "shm_kib": sum(new.values()) / 1024,
        "descriptors": sum(files for files, _ in left),
        "mappings": sum(maps for _, maps in left),
    }


def _left(children: list[Child], files: int, maps: int) -> tuple[int, int]:
    """How many descriptors and mappings more than these they have, once that does not change."""
    deadline = time.monotonic() + CLEAR
    while True:
        held = [_held(child, every=bool(files)) for child in children]
        more = (
            max(0, sum(one for one, _ in held) - files),
            max(0, sum(other for _, other in held) - maps),
        )
        if not any(more) or time.monotonic() > deadline:
            return more
        time.sleep(0.05)


def _held(child: Child, every: bool) -> tuple[int, int]:
    """How many descriptors of shared memory, or at all, and how many shared mappings it has."""
    folder = Path(f"/proc/{child.process.pid}")
    files = 0
    for link in (folder / "fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:  # closed by now
            continue
        files += every or target.startswith(SHARED)
    lines = (folder / "maps").read_text().splitlines()
    return files, sum(" /" in line and line[line.index("/") :].startswith(SHARED) for line in lines)


def _in_system() -> dict[Path, int]:
    """The bytes of each file in shared memory."""
    found = {}
    for file in Path("/dev/shm").rglob("*"):
        try:
            found[file] = file.lstat().st_blocks * 512
        except OSError:  # gone by now
            continue
    return found
