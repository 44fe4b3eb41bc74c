"""Messages a second: to one subscriber, to several, over many topics; and of a codec alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.roles import Cost, Face, Job, clock, prove, role, see_out

if TYPE_CHECKING:
    from benchmarks.measuring import Course, Figures

__all__ = ["alone", "rate_of", "throughput", "topics"]


# --- one topic --------------------------------------------------------------------------


@role
async def publish(face: Face, job: Job) -> None:
    make, marker, chunk = job.kind.make, [job.kind.marker], job.kind.chunk
    make(0, chunk)  # imports, and memory that is touched for the first time
    publisher = await face.do(face.it.open_publisher, job.meeting)
    job.announce(job.place)
    await prove(face, job, publisher.send_all, marker)
    n = 0
    cost = Cost()
    start = clock()
    end = start + int(job.seconds * 1e9)
    while clock() < end:
        await face.do(publisher.send_all, make(n, chunk))
        n += chunk
    await face.do(publisher.send_all, marker)
    job.say("sent", messages=n, start=start, end=clock())
    await see_out(face, job, publisher.send_all, marker)
    job.say("cost", **cost.so_far())
    await face.do(publisher.close)


@role
async def subscribe(face: Face, job: Job) -> None:
    job.kind.make(0, 1)  # imports
    subscriber = await face.do(face.it.open_subscriber, job.meeting)
    await face.do(subscriber.drain)
    cost = Cost()
    job.say("proven")
    n, last = 0, None
    while not n:  # further probes
        n, last = await face.do(subscriber.drain)
    end = clock()
    spent = cost.so_far()
    (expected,) = job.kind.make(n - 1, 1)
    job.say("received", messages=n, end=end, last_is_right=job.kind.same(last, expected), **spent)
    await face.told(job, "over")
    await face.do(subscriber.close)


def throughput(course: Course) -> Figures:
    """One publisher, and as many subscribers as the workload says."""
    seconds, hear = course.effort.seconds, course.hear
    publisher = course.start(publish, seconds=seconds)
    subscribers = [course.start(subscribe) for _ in range(course.workload.subscribers)]
    course.meet(publisher, *subscribers)
    course.prove(publisher, *subscribers)
    sent = hear(publisher, "sent", seconds)
    # There may be a long queue.
    received = [hear(s, "received", 10 * seconds * len(subscribers)) for s in subscribers]
    publisher.say("over")
    cost = hear(publisher, "cost")
    for subscriber, found in zip(subscribers, received, strict=True):
        subscriber.say("over")
        course.check(sent, found)
    return rate_of(course, sent, cost, received)


def rate_of(course: Course, sent: Figures, cost: Figures, received: list[Figures]) -> Figures:
    """Deliveries a second, all subscribers together, and what they cost."""
    size = course.workload.size
    n = sum(found["messages"] for found in received)
    seconds = (max(found["end"] for found in received) - sent["start"]) / 1e9
    cpu = cost["cpu_seconds"] + sum(found["cpu_seconds"] for found in received)
    return {
        "rate": n / seconds,
        **({"mb_per_second": n * size / seconds / 1e6} if size else {}),
        "messages": n,
        "seconds": seconds,
        "seconds_sending": (sent["end"] - sent["start"]) / 1e9,
        "cpu_per_million": cpu / n * 1e6,
        "growth_mib": cost["growth_kib"] / 1024,
        "publisher": course.cost(cost),
        "subscriber": course.cost(received[0]),
    }


# --- many topics ------------------------------------------------------------------------


@role
async def publish_topics(face: Face, job: Job) -> None:
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


@role
async def subscribe_topics(face: Face, job: Job) -> None:
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


def topics(course: Course) -> Figures:
    """One publishing and one subscribing process."""
    seconds = course.effort.seconds
    publisher = course.start(publish_topics, seconds=seconds)
    subscriber = course.start(subscribe_topics)
    sent, cost, received = course.flow(publisher, subscriber, seconds)
    return rate_of(course, sent, cost, [received])


# --- a codec alone ----------------------------------------------------------------------


@role
async def code(face: Face, job: Job) -> None:
    encoding, decoding = face.it.alone(job.kind, job.seconds)
    job.say("alone", encoding=encoding, decoding=decoding)


def alone(course: Course) -> Figures:
    """A codec without a network: two processes could go no faster than the slower half."""
    child, size = course.start(code, seconds=course.effort.seconds), course.workload.size
    child.say("place", course.place)
    found = course.hear(child, "alone", course.effort.seconds)
    rate = min(found["encoding"], found["decoding"])
    return {
        "rate": rate,
        **({"mb_per_second": rate * size / 1e6} if size else {}),
        "encoding": found["encoding"],
        "decoding": found["decoding"],
        "cpu_per_million": 1e6 / found["encoding"] + 1e6 / found["decoding"],
    }
