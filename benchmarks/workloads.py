"""The objects that are sent, and what is measured with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any, Final, Literal

__all__ = ["GROUPS", "KIB", "MIB", "WORKLOADS", "Group", "Workload"]

Group = Literal[
    "throughput",
    "latency",
    "fan-out",
    "rate",
    "topics",
    "join",
    "idle",
    "mixed",
    "arrays",
    "frames",
    "killed",
    "tls",
    "ways",
]

GROUPS: Final[dict[Group, str]] = {
    "throughput": "messages delivered a second, one publisher to one subscriber",
    "latency": "round trips over two topics",
    "fan-out": "deliveries a second, one publisher to several subscriber processes",
    "rate": "one-way latency and CPU time at a fixed rate",
    "topics": "messages delivered a second over many topics between two processes",
    "join": "from making a subscriber to its first message",
    "idle": "memory of a process that publishes and subscribes, but does nothing",
    "mixed": "what a large message on the same link costs a small one",
    "arrays": "arrays a second, one publisher to subscribers on its host",
    "frames": "frames of 1920 × 1080 × 3 bytes at a fixed rate, on one host",
    "killed": "what is left of arrays when processes are killed",
    "tls": "plain, proof only and TLS side by side",
    "ways": "direct, reverse and over a relay side by side",
}

KIB: Final = 1024
MIB: Final = 1024 * KIB


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other)


@dataclass(frozen=True)
class Workload:
    """One kind of message, and what is measured with it.

    Attributes:
        name: for the command line and JSON.
        title: for the table.
        group: what is measured, see `GROUPS`.
        make: ``make(first, count)``: these messages of the endless row of them. All are true.
        marker: a message that is false: probes, and the end of a run. An ordinary message in
            every other respect, of the same type, so that every contender can send it.
        same: whether two of the messages are equal.
        size: bytes of payload in a message, where that says more than their number.
        chunk: messages between two looks at the clock.
        subscribers: processes that subscribe.
        rate: messages a second that the publisher keeps to (rate).
        topics: how many there are (topics).
        run: how many messages go to one topic before the next (topics).
        shape: of arrays of bytes (arrays, frames, killed).
        empty: whether the publisher's `empty` makes them, so that none is copied.
        needs: a package that it takes to make the messages.
        same_as: a workload with the very same course; its figures are taken where it is measured.
        once: whether one round of it says all.
        asked_for: whether it is measured only where it or its group is named.
        course: how it is measured, where its group does not say that: as another group is, or in a
            way of its own.
    """

    name: str
    title: str
    group: Group
    make: Callable[[int, int], list[Any]]
    marker: Any
    same: Callable[[Any, Any], bool] = _equal
    size: int = 0
    chunk: int = 256
    subscribers: int = 1
    rate: int = 0
    topics: int = 0
    run: int = 1
    shape: tuple[int, ...] = ()
    empty: bool = False
    needs: str = ""
    same_as: str = ""
    once: bool = False
    asked_for: bool = False
    course: str = ""

    @property
    def measured_as(self) -> str:
        """See `course`."""
        return self.course or self.group


def small_dict(number: int) -> dict[str, Any]:
    """The small dict of this number."""
    return {"id": number, "v": 3.14, "s": "sensor-7"}


def _small_dicts(first: int, count: int) -> list[Any]:
    return [{"id": i, "v": 3.14, "s": "sensor-7"} for i in range(first, first + count)]


def _ints(first: int, count: int) -> list[Any]:
    return list(range(first + 1, first + 1 + count))


@cache
def _payload(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def _bytes_of(size: int) -> Callable[[int, int], list[Any]]:
    def make(first: int, count: int) -> list[Any]:
        return [_payload(size)] * count

    return make


@cache
def _array() -> Any:
    import numpy as np

    return np.arange(MIB, dtype=np.float64)


def _arrays(first: int, count: int) -> list[Any]:
    return [{"a": _array()}] * count


def _array_workload(name: str, title: str, group: Group, *shape: int, **more: Any) -> Workload:
    """One whose messages are arrays of their own making (see `courses.arrays`)."""
    size = prod(shape)
    return Workload(name, title, group, _none, b"", size=size, shape=shape, needs="numpy", **more)


def _none(first: int, count: int) -> list[Any]:
    raise NotImplementedError("arrays are made and checked by the course")


def _same_array(one: Any, other: Any) -> bool:
    return bool((one["a"] == other["a"]).all())


_WORKLOADS: Final = (
    Workload("small-dict", "small dict", "throughput", _small_dicts, {}),
    Workload("int", "one int", "throughput", _ints, 0),
    Workload("1-kib", "1 KiB bytes", "throughput", _bytes_of(KIB), b"", size=KIB),
    Workload(
        "64-kib", "64 KiB bytes", "throughput", _bytes_of(64 * KIB), b"", size=64 * KIB, chunk=16
    ),
    Workload("8-mib", "8 MiB bytes", "throughput", _bytes_of(8 * MIB), b"", size=8 * MIB, chunk=1),
    Workload(
        "8-mib-array",
        "8 MiB numpy array, in a dict",
        "throughput",
        _arrays,
        {},
        same=_same_array,
        size=8 * MIB,
        chunk=1,
        needs="numpy",
    ),
    Workload("round-trip", "round trip of a small dict", "latency", _small_dicts, {}),
    Workload(
        "fan-out-1",
        "small dict to 1 subscriber",
        "fan-out",
        _small_dicts,
        {},
        same_as="small-dict",
    ),
    Workload(
        "fan-out-8", "small dict to 8 subscribers", "fan-out", _small_dicts, {}, subscribers=8
    ),
    Workload(
        "fan-out-32", "small dict to 32 subscribers", "fan-out", _small_dicts, {}, subscribers=32
    ),
    Workload("rate-1k", "1,000 small dicts a second", "rate", _small_dicts, {}, rate=1_000),
    Workload("rate-100k", "100,000 small dicts a second", "rate", _small_dicts, {}, rate=100_000),
    Workload(
        "topics-runs",
        "1,000 topics, in runs of 100 messages",
        "topics",
        _small_dicts,
        {},
        chunk=1000,
        topics=1000,
        run=100,
    ),
    Workload(
        "topics-each",
        "1,000 topics, each message to another",
        "topics",
        _small_dicts,
        {},
        chunk=1000,
        topics=1000,
    ),
    Workload("first-message", "first message of a new subscriber", "join", _small_dicts, {}),
    Workload("idle", "memory of an idle process", "idle", _small_dicts, {}),
    Workload(
        "behind-8-mib",
        "small dict beside 8 MiB messages on one link",
        "mixed",
        _small_dicts,
        {},
        rate=1_000,
    ),
    *(
        _array_workload(
            f"array-{count}",
            f"8 MiB numpy array to {count} subscriber{'s' * (count > 1)}",
            "arrays",
            8 * MIB,
            subscribers=count,
        )
        for count in (1, 3)
    ),
    *(
        _array_workload(
            f"empty-{size // KIB}",
            f"made by the publisher's `empty`: {text}",
            "arrays",
            size,
            empty=True,
        )
        for text, size in (
            ("64 KiB", 64 * KIB),
            ("1 MiB", MIB),
            ("8 MiB", 8 * MIB),
            ("32 MiB", 32 * MIB),
        )
    ),
    *(
        _array_workload(
            f"frames-{rate}-{count}",
            f"{rate} Hz to {count} subscriber{'s' * (count > 1)}",
            "frames",
            *(1080, 1920, 3),
            rate=rate,
            subscribers=count,
            asked_for=(rate, count) != (30, 3),
        )
        for rate in (30, 120)
        for count in (1, 3, 8)
    ),
    _array_workload(
        "killed",
        "frames at 120 Hz to 3 subscribers, one of which is killed, then the publisher, then all",
        "killed",
        *(1080, 1920, 3),
        rate=120,
        subscribers=2,
        once=True,
    ),
)
_CHANNELS: Final = (
    *("small-dict", "1-kib", "64-kib", "8-mib-array", "round-trip", "behind-8-mib"),
)
"""What is measured over each channel as well."""
_WAYS: Final = ("small-dict", "64-kib", "round-trip")
"""What is measured over each way as well."""

WORKLOADS: Final = (
    *_WORKLOADS,
    *(
        replace(each, name=f"tls-{each.name}", group="tls", course=each.group, asked_for=True)
        for each in _WORKLOADS
        if each.name in _CHANNELS
    ),
    Workload(
        "tls-first-message",
        "first message of a new process",
        "tls",
        _small_dicts,
        {},
        course="start",
        asked_for=True,
    ),
    Workload(
        "tls-return",
        "peers that come back to a coordinator at once",
        "tls",
        _small_dicts,
        {},
        course="return",
        asked_for=True,
    ),
    Workload(
        "tls-strangers",
        "strangers that stop in the midst of a handshake with a coordinator",
        "tls",
        _small_dicts,
        {},
        course="strangers",
        asked_for=True,
    ),
    *(
        replace(each, name=f"ways-{each.name}", group="ways", course=each.group, asked_for=True)
        for each in _WORKLOADS
        if each.name in _WAYS
    ),
    Workload(
        "ways-first-message",
        "first message of a new process",
        "ways",
        _small_dicts,
        {},
        course="start",
        asked_for=True,
    ),
    Workload(
        "ways-stream",
        "raw stream through what stands between",
        "ways",
        _bytes_of(64 * KIB),
        b"",
        size=64 * KIB,
        chunk=16,
        course="throughput",
        asked_for=True,
    ),
    Workload(
        "ways-circuits",
        "circuits at rest",
        "ways",
        _small_dicts,
        {},
        course="circuits",
        asked_for=True,
    ),
)
