"""Eclipse Cyclone DDS by its Python package, whose wheel has no shared memory: over loopback."""

from __future__ import annotations

import os
from functools import cache
from math import prod
from typing import Any

from benchmarks.contender import ARRAYS, BlockingContender, Meeting

__all__ = ["CONTENDERS"]

DEPTH = 4
"""Samples that a writer or a reader holds."""
CONFIGURATION = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface address='127.0.0.1'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast><MaxMessageSize>65500B</MaxMessageSize></General>"
    "<Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>"
    "<Peers><Peer address='127.0.0.1'/></Peers></Discovery>"
    "<Internal><SocketReceiveBufferSize max='10MB'/></Internal></Domain></CycloneDDS>"
)


@cache
def _kind(size: int) -> Any:
    """The type of a message: bytes of a fixed size, which come as bytes."""
    from dataclasses import make_dataclass

    from cyclonedds.idl import IdlStruct
    from cyclonedds.idl.types import array, uint8

    name = f"Bytes{size}"
    body = ("body", array[uint8, size])
    return make_dataclass(name, [body], bases=(IdlStruct,))


def _topic(meeting: Meeting) -> tuple[Any, Any, Any, Any]:
    os.environ["CYCLONEDDS_URI"] = CONFIGURATION
    from cyclonedds.domain import DomainParticipant
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration

    qos = Qos(
        Policy.Reliability.Reliable(duration(seconds=100)),
        Policy.History.KeepAll,
        Policy.ResourceLimits(max_samples=DEPTH),
    )
    participant, kind = DomainParticipant(0), _kind(prod(meeting.shape))
    return participant, Topic(participant, meeting.topic.replace("/", "_"), kind), qos, kind


class _Arrays:
    def __init__(self, meeting: Meeting) -> None:
        from cyclonedds.pub import DataWriter

        participant, topic, qos, self._kind = _topic(meeting)
        self._writer = DataWriter(participant, topic, qos=qos)

    def send(self, array: Any) -> None:
        self._writer.write(self._kind(body=memoryview(array.reshape(-1))))

    def close(self) -> None:
        del self._writer


class _ArraySubscriber:
    def __init__(self, meeting: Meeting) -> None:
        from cyclonedds.sub import DataReader

        participant, topic, qos, _ = _topic(meeting)
        self._shape = meeting.shape
        self._samples = DataReader(participant, topic, qos=qos).take_iter()

    def take(self) -> Any:
        import numpy as np

        return np.frombuffer(next(self._samples).body, np.uint8).reshape(self._shape)

    def close(self) -> None:
        del self._samples


class Cyclone(BlockingContender):
    """One participant a process."""

    name = "cyclonedds"
    title = "Cyclone DDS"
    how = (
        f"`array[uint8, N]`, reliable, keep-all, at most {DEPTH} samples in writer and reader; over"
        " loopback without multicast, messages of 64 KiB, socket buffers of 10 MB; `take_iter`. "
        "The wheel has no shared-memory plugin."
    )
    packages = ("cyclonedds",)
    groups = ARRAYS

    def open_publisher(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_subscriber(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_arrays(self, meeting: Meeting) -> _Arrays:
        return _Arrays(meeting)

    def open_array_subscriber(self, meeting: Meeting) -> _ArraySubscriber:
        return _ArraySubscriber(meeting)

    def open_pair(self, meeting: Meeting, first: bool) -> Any:
        raise NotImplementedError


CONTENDERS = (Cyclone(),)
