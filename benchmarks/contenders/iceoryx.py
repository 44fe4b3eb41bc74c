"""iceoryx2: shared memory with a core in Rust, and its Python package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

from benchmarks.contender import ARRAYS, BlockingContender, Meeting
from benchmarks.packing import packer, unpack
from benchmarks.workloads import KIB, WORKLOADS

__all__ = ["CONTENDERS"]

DEPTH, DEPTH_OF_LARGE, DEPTH_OF_ARRAYS = 1_024, 64, 4
"""Samples that a subscriber's buffer holds."""


@cache
def _iceoryx() -> Any:
    import iceoryx2

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    return iceoryx2


@cache
def _node() -> Any:
    iox = _iceoryx()
    return iox.NodeBuilder.new().create(iox.ServiceType.Ipc)


def _services(topic: str, subscribers: int, depth: int) -> tuple[Any, Any]:
    """Of the samples of a topic, and of the events that tell of them."""
    iox, node = _iceoryx(), _node()
    name = iox.ServiceName.new(topic)
    samples = (
        node.service_builder(name)
        .publish_subscribe(iox.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .max_publishers(1)
        .max_subscribers(subscribers + 1)  # one may come when another has been killed
        .subscriber_max_buffer_size(depth)
        .open_or_create()
    )
    events = node.service_builder(name).event().max_listeners(subscribers + 1).open_or_create()
    return samples, events


class _Out:
    """A publisher and its notifier."""

    def __init__(self, topic: str, subscribers: int, depth: int, most: int) -> None:
        iox = _iceoryx()
        samples, events = _services(topic, subscribers, depth)
        self._publisher = (
            samples.publisher_builder()
            .initial_max_slice_len(most)
            .allocation_strategy(iox.AllocationStrategy.PowerOfTwo)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._notifier = events.notifier_builder().create()

    def loan(self, size: int) -> tuple[Any, memoryview]:
        sample = self._publisher.loan_slice_uninit(size)
        return sample, sample.payload().as_memory_view().cast("B")

    def send(self, sample: Any) -> None:
        sample.assume_init().send()
        self._notifier.notify()

    def put(self, data: bytes) -> None:
        sample, memory = self.loan(len(data))
        memory[:] = data
        self.send(sample)


class _Into:
    """A subscriber and its listener."""

    def __init__(self, topic: str, subscribers: int, depth: int) -> None:
        samples, events = _services(topic, subscribers, depth)
        self._subscriber = samples.subscriber_builder().buffer_size(depth).create()
        self._listener = events.listener_builder().create()

    def take(self) -> Any:
        receive = self._subscriber.receive
        while (sample := receive()) is None:
            self._listener.blocking_wait()
        return sample

    def get(self) -> Any:
        """A message, which is copied out of the sample."""
        return unpack(bytes(self.take().payload().as_memory_view()))


class _Publisher:
    def __init__(self, out: _Out) -> None:
        self._out = out
        self._pack = packer()

    def send_all(self, values: Sequence[Any]) -> None:
        put, pack = self._out.put, self._pack
        for value in values:
            put(pack(value))

    def close(self) -> None:
        del self._out


class _LargePublisher(_Publisher):
    """Of bytes, as they are, behind one that says that there are some: no sample is empty."""

    def send_all(self, values: Sequence[Any]) -> None:
        for value in values:
            sample, memory = self._out.loan(1 + len(value))
            memory[0] = bool(value)
            memory[1:] = value
            self._out.send(sample)


class _Subscriber:
    def __init__(self, into: _Into) -> None:
        self._into = into

    def drain(self) -> tuple[int, Any]:
        get = self._into.get
        n, last = 0, None
        while value := get():
            n += 1
            last = value
        return n, last

    def each(self, note: Callable[[Any], object]) -> None:
        get = self._into.get
        while value := get():
            note(value)

    def close(self) -> None:
        del self._into


class _LargeSubscriber(_Subscriber):
    def drain(self) -> tuple[int, Any]:
        take = self._into.take
        n, last = 0, None
        while value := bytes(take().payload().as_memory_view()[1:]):
            n += 1
            last = value
        return n, last


class _Arrays:
    def __init__(self, out: _Out) -> None:
        self._out = out
        self._loan: tuple[Any, Any] = (None, None)

    def empty(self, shape: tuple[int, ...]) -> Any:
        import numpy as np

        sample, memory = self._out.loan(prod(shape))
        array = np.frombuffer(memory, np.uint8).reshape(shape)
        self._loan = sample, array
        return array

    def send(self, array: Any) -> None:
        sample, loaned = self._loan
        if loaned is not array:
            self.empty(array.shape)[:] = array
            sample, _ = self._loan
        self._loan = None, None
        self._out.send(sample)

    def close(self) -> None:
        del self._out


class _ArraySubscriber:
    def __init__(self, into: _Into, shape: tuple[int, ...]) -> None:
        self._into, self._shape = into, shape

    def take(self) -> Any:
        import numpy as np

        sample = self._into.take()
        # A sample's memory is the publisher's again once the sample is gone: the array keeps it.
        memory = (ctypes.c_uint8 * sample.payload().len()).from_address(sample.payload_ptr)
        memory.sample = sample
        return np.frombuffer(memory, np.uint8).reshape(self._shape)

    def close(self) -> None:
        del self._into


class _Pair:
    def __init__(self, out: _Out, into: _Into) -> None:
        self._out, self._into = out, into
        self._pack = packer()
        self.receive = into.get

    def send(self, value: Any) -> None:
        self._out.put(self._pack(value))

    def close(self) -> None:
        del self._out, self._into, self.receive


class Iceoryx(BlockingContender):
    """One node a process; no service of its own beside it."""

    name = "iceoryx2"
    title = "iceoryx2"
    how = (
        f"`Slice[c_uint8]`, safe overflow off, buffers of {DEPTH:,} samples ({DEPTH_OF_LARGE} of "
        f"64 KiB, {DEPTH_OF_ARRAYS} arrays), `RetryUntilDelivered`; an event service, notified for "
        "each sample, and `Listener.blocking_wait` where there is none. Arrays: "
        "`loan_slice_uninit` and one copy into it; what a subscriber takes is a view of the "
        "sample. 64 KiB: one copy into it and one out of it. Others: packed and unpacked besides."
    )
    kind = "local"
    packages = ("iceoryx2",)
    groups = ARRAYS | {"throughput", "latency"}
    workloads = frozenset(
        (
            *("small-dict", "1-kib", "64-kib", "round-trip"),
            *(w.name for w in WORKLOADS if w.group in ARRAYS),
        )
    )
    makes_arrays = True

    def open_publisher(self, meeting: Meeting) -> _Publisher:
        kind, depth, most = _Publisher, DEPTH, 2 * KIB
        if meeting.large:
            kind, depth, most = _LargePublisher, DEPTH_OF_LARGE, 64 * KIB + 1
        return kind(_Out(meeting.topic, meeting.subscribers, depth, most))

    def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        if meeting.large:
            return _LargeSubscriber(_Into(meeting.topic, meeting.subscribers, DEPTH_OF_LARGE))
        return _Subscriber(_Into(meeting.topic, meeting.subscribers, DEPTH))

    def open_arrays(self, meeting: Meeting) -> _Arrays:
        return _Arrays(
            _Out(meeting.topic, meeting.subscribers, DEPTH_OF_ARRAYS, prod(meeting.shape))
        )

    def open_array_subscriber(self, meeting: Meeting) -> _ArraySubscriber:
        into = _Into(meeting.topic, meeting.subscribers, DEPTH_OF_ARRAYS)
        return _ArraySubscriber(into, meeting.shape)

    def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        into = _Into(back if first else there, 1, DEPTH)
        return _Pair(_Out(there if first else back, 1, DEPTH, 1024), into)


CONTENDERS = (Iceoryx(),)
