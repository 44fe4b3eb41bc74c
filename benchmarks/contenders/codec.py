"""msgpack without a network: no library that serialises by it goes faster."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.contender import BlockingContender, Meeting
from benchmarks.packing import packer, unpack
from benchmarks.workloads import Workload

__all__ = ["CONTENDERS"]


class Codec(BlockingContender):
    """Packs for half of the time, and unpacks for the other."""

    name = "msgpack"
    title = "msgpack alone, no network"
    how = (
        "a reused `Packer`, `unpackb`; one process, first packs, then unpacks, message by "
        "message; the rate is that of the slower."
    )
    kind = "ceiling"
    groups = frozenset(("throughput",))

    def alone(self, workload: Workload, seconds: float) -> tuple[float, float]:
        """Messages encoded, and decoded, a second."""
        pack = packer()
        values = workload.make(0, workload.chunk)
        packed = [pack(value) for value in values]
        return _rate(pack, values, seconds / 2), _rate(unpack, packed, seconds / 2)

    def open_publisher(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_subscriber(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_pair(self, meeting: Meeting, first: bool) -> Any:
        raise NotImplementedError


def _rate(call: Any, inputs: list[Any], seconds: float) -> float:
    clock = time.perf_counter
    start = clock()
    end = start + seconds
    n = 0
    while (now := clock()) < end or not n:
        for value in inputs:
            call(value)
        n += len(inputs)
    return n / (now - start)


CONTENDERS = (Codec(),)
