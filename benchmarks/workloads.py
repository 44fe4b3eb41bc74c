"""The objects that are sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["WORKLOADS", "Group", "Workload"]

Group = Literal["throughput", "latency"]


@dataclass(frozen=True)
class Workload:
    """One kind of message, and what is measured with it.

    Attributes:
        name: for the command line and JSON.
        title: for the table.
        group: ``"throughput"`` (messages delivered a second) or ``"latency"`` (round trips).
        make: ``make(first, count)``: these messages of the endless row of them. All are true.
        marker: a message that is false: probes, and the end of a run. An ordinary message in
            every other respect, of the same type, so that every contender can send it.
    """

    name: str
    title: str
    group: Group
    make: Callable[[int, int], list[Any]]
    marker: Any


def _small_dicts(first: int, count: int) -> list[Any]:
    return [{"id": i, "v": 3.14, "s": "sensor-7"} for i in range(first, first + count)]


_KIB: Final = bytes(range(256)) * 4


def _kibibytes(first: int, count: int) -> list[Any]:
    return [_KIB] * count


WORKLOADS: Final = (
    Workload("small-dict", "small dict", "throughput", _small_dicts, {}),
    Workload("1-kib", "1 KiB bytes", "throughput", _kibibytes, b""),
    Workload("round-trip", "round trip of a small dict", "latency", _small_dicts, {}),
)
