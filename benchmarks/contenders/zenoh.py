"""Zenoh: two peers, one TCP connection, no scouting."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

from benchmarks.contender import ARRAYS, PUBSUB, BlockingContender, Meeting
from benchmarks.packing import packer, unpack
from benchmarks.workloads import WORKLOADS

__all__ = ["CONTENDERS"]

CAPACITY = 10_000
"""Samples that the handler holds; when it is full, the transport waits."""
OF_ARRAYS = 4
"""The same of arrays."""
PROVIDED, ARRAYS_PROVIDED = 32 * 1024 * 1024, 16
"""The bytes of a provider, or how many arrays one has room for. (To collect garbage among more
small ones takes longer than it saves.)"""


@cache
def _zenoh() -> Any:
    import zenoh

    return zenoh


class _Publisher:
    def __init__(self, session: Any, topics: Sequence[str]) -> None:
        self._session = session
        block = _zenoh().CongestionControl.BLOCK
        self._publishers = [
            session.declare_publisher(topic, congestion_control=block) for topic in topics
        ]
        self._puts = [publisher.put for publisher in self._publishers]
        self._pack = packer()

    def send_all(self, values: Sequence[Any]) -> None:
        put, pack = self._puts[0], self._pack
        for value in values:
            put(pack(value))

    def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        puts, pack = self._puts, self._pack
        for topic, value in zip(topics, values, strict=True):
            puts[topic](pack(value))

    def close(self) -> None:
        self._session.close()


class _Subscriber:
    def __init__(self, session: Any, topic: str) -> None:
        self._subscriber = session.declare_subscriber(
            topic, _zenoh().handlers.FifoChannel(CAPACITY)
        )

    def drain(self) -> tuple[int, Any]:
        recv = self._subscriber.recv
        n, last = 0, None
        while value := unpack(recv().payload.to_bytes()):
            n += 1
            last = value
        return n, last

    def each(self, note: Callable[[Any], object]) -> None:
        recv = self._subscriber.recv
        while value := unpack(recv().payload.to_bytes()):
            note(value)

    def close(self) -> None:
        self._subscriber.undeclare()


def _memory_of(array: Any) -> bytearray | bytes:
    """The memory of an array, as zenoh takes it: without a copy where it is all of a bytearray."""
    base = array
    while getattr(base, "base", None) is not None:
        base = base.base
    memory: Any = base.obj if isinstance(base, memoryview) else base
    whole = isinstance(memory, bytearray) and len(memory) == array.nbytes
    data: bytearray | bytes = memory if whole else array.tobytes()
    return data


class _Arrays:
    def __init__(self, session: Any, topic: str) -> None:
        self._session = session
        block = _zenoh().CongestionControl.BLOCK
        self._publisher = session.declare_publisher(topic, congestion_control=block)

    def send(self, array: Any) -> None:
        self._publisher.put(_memory_of(array))

    def close(self) -> None:
        self._session.close()


class _ProvidedArrays(_Arrays):
    def __init__(self, session: Any, topic: str, size: int) -> None:
        super().__init__(session, topic)
        from zenoh import shm

        self._size = size
        self._provider = shm.ShmProvider.default_backend(ARRAYS_PROVIDED * size)
        self._policy = shm.BlockOn(shm.GarbageCollect())

    def send(self, array: Any) -> None:
        memory = self._provider.alloc(self._size, self._policy)
        memory[:] = _memory_of(array)
        self._publisher.put(memory)


class _Provided(_Publisher):
    """Of bytes, as they are."""

    def __init__(self, session: Any, topics: Sequence[str]) -> None:
        super().__init__(session, topics)
        from zenoh import shm

        self._provider = shm.ShmProvider.default_backend(PROVIDED)
        self._policy = shm.BlockOn(shm.GarbageCollect())

    def send_all(self, values: Sequence[Any]) -> None:
        put, alloc, policy = self._puts[0], self._provider.alloc, self._policy
        for value in values:
            if not value:
                put(value)
                continue
            memory = alloc(len(value), policy)
            memory[:] = value
            put(memory)


class _PlainSubscriber(_Subscriber):
    def drain(self) -> tuple[int, Any]:
        recv = self._subscriber.recv
        n, last = 0, None
        while value := recv().payload.to_bytes():
            n += 1
            last = value
        return n, last


class _ArraySubscriber:
    def __init__(self, session: Any, meeting: Meeting) -> None:
        self._shape = meeting.shape
        self._subscriber = session.declare_subscriber(
            meeting.topic, _zenoh().handlers.FifoChannel(OF_ARRAYS)
        )

    def take(self) -> Any:
        import numpy as np

        data = self._subscriber.recv().payload.to_bytes()
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def close(self) -> None:
        self._subscriber.undeclare()


class _Pair:
    def __init__(self, session: Any, out: str, into: str) -> None:
        self._session = session
        block = _zenoh().CongestionControl.BLOCK
        self._publisher = session.declare_publisher(out, congestion_control=block)
        self._subscriber = session.declare_subscriber(into, _zenoh().handlers.FifoChannel(CAPACITY))
        self._pack = packer()

    def send(self, value: Any) -> None:
        self._publisher.put(self._pack(value))

    def receive(self) -> Any:
        return unpack(self._subscriber.recv().payload.to_bytes())

    def close(self) -> None:
        self._session.close()


class Zenoh(BlockingContender):
    """Zenoh over TCP."""

    name = "zenoh-tcp"
    family = "zenoh"
    title = "zenoh, fifo handler"
    how = (
        "two peers over TCP, no scouting, shared memory off; congestion control BLOCK, a "
        f"`FifoChannel` of {CAPACITY:,}; `publisher.put(packer.pack(value))`, "
        "`unpackb(subscriber.recv().payload.to_bytes())`."
    )
    packages = ("zenoh",)
    groups = PUBSUB | {"topics"}
    settings: tuple[tuple[str, Any], ...] = (("transport/shared_memory/enabled", False),)

    def __init__(self) -> None:
        self._joined: Any = None

    def _session(self, **endpoints: str) -> Any:
        config = _zenoh().Config()
        settings = [
            ("mode", "peer"),
            ("scouting/multicast/enabled", False),
            ("listen/endpoints", [endpoints["listen"]] if "listen" in endpoints else []),
            ("connect/endpoints", [endpoints["connect"]] if "connect" in endpoints else []),
            *self.settings,
        ]
        for key, value in settings:
            config.insert_json5(key, json.dumps(value))
        return _zenoh().open(config)

    def _listen(self, meeting: Meeting) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"tcp/127.0.0.1:{server.getsockname()[1]}"
        session = self._session(listen=endpoint)
        meeting.announce(endpoint)
        return session

    def _join(self, meeting: Meeting) -> Any:
        if self._joined is None:  # one session of a process, however many subscribers
            self._joined = self._session(connect=meeting.place)
        return self._joined

    def open_publisher(self, meeting: Meeting) -> _Publisher:
        return _Publisher(self._listen(meeting), [meeting.topic])

    def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        return _Subscriber(self._join(meeting), meeting.topic)

    def open_topics(self, meeting: Meeting) -> _Publisher:
        topics = [f"{meeting.topic}/{i}" for i in range(meeting.topics)]
        return _Publisher(self._listen(meeting), topics)

    def open_topics_subscriber(self, meeting: Meeting) -> _Subscriber:
        return _Subscriber(self._join(meeting), f"{meeting.topic}/*")

    def open_arrays(self, meeting: Meeting) -> _Arrays:
        return _Arrays(self._listen(meeting), meeting.topic)

    def open_array_subscriber(self, meeting: Meeting) -> _ArraySubscriber:
        return _ArraySubscriber(self._join(meeting), meeting)

    def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        session = self._listen(meeting) if first else self._join(meeting)
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        return _Pair(session, *((there, back) if first else (back, there)))


class LowLatency(Zenoh):
    """Its low-latency transport."""

    name = "zenoh-low-latency"
    title = "zenoh, low-latency mode"
    how = "the same with `transport/unicast/lowlatency` on and QoS off."
    groups = frozenset(("latency", "rate"))
    settings = (
        *Zenoh.settings,
        ("transport/unicast/lowlatency", True),
        ("transport/unicast/qos/enabled", False),
    )


class SharedMemory(Zenoh):
    """Its default where both ends are on one machine."""

    name = "zenoh-shm"
    title = "zenoh, shared memory"
    how = "the same with shared memory on, as is the default: no TCP from 3 KiB on."
    groups = ARRAYS | {"throughput"}
    workloads = frozenset(
        ("64-kib", "8-mib", "8-mib-array", *(w.name for w in WORKLOADS if w.group in ARRAYS))
    )
    settings = ()


class Provider(SharedMemory):
    """Shared memory of the publisher's own."""

    name = "zenoh-provider"
    title = "zenoh, explicit provider"
    how = (
        f"the same, where the publisher has a `ShmProvider` of {PROVIDED >> 20} MiB, or of "
        f"{ARRAYS_PROVIDED} arrays: `alloc` with `BlockOn(GarbageCollect())`, one copy into it, "
        "and `put` of that. `to_bytes` copies it out; bytes travel as they are."
    )
    workloads = SharedMemory.workloads - {"8-mib-array"}

    def open_publisher(self, meeting: Meeting) -> _Publisher:
        return _Provided(self._listen(meeting), [meeting.topic])

    def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        return _PlainSubscriber(self._join(meeting), meeting.topic)

    def open_arrays(self, meeting: Meeting) -> _Arrays:
        return _ProvidedArrays(self._listen(meeting), meeting.topic, prod(meeting.shape))


CONTENDERS = (Zenoh(), LowLatency(), SharedMemory(), Provider())
