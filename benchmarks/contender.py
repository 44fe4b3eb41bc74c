"""What a library has to provide to be measured.

A contender names itself, says with which settings it runs, and opens publishers and subscribers,
in one of two forms: blocking or async. Everything else (probes, clocks, counting) is the
business of `roles`. The hot loops are the contender's own, written the way its users would write
them, so that no adapter's cost is counted as the contender's:

- `send_all`: each of these values as one message, serialised;
- `drain`: receive messages, decoded, until a false one comes; return how many, and the last;
- `each`: the same, and call a function with each of them.

Publishers, subscribers and pairs are used by one thread, or in one event loop.
"""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from benchmarks.workloads import Group, Workload

__all__ = [
    "ARRAYS",
    "PUBSUB",
    "AsyncContender",
    "AsyncPair",
    "AsyncPublisher",
    "AsyncSubscriber",
    "AsyncTopics",
    "BlockingContender",
    "BlockingPair",
    "BlockingPublisher",
    "BlockingSubscriber",
    "BlockingTopics",
    "Contender",
    "Kind",
    "Meeting",
    "environment_of",
    "found",
]

PUBSUB: frozenset[Group] = frozenset(
    ("throughput", "latency", "fan-out", "rate", "join", "idle"),
)
"""What everything with topics can do."""

ARRAYS: frozenset[Group] = frozenset(("arrays", "frames", "killed"))
"""What everything that sends arrays can do."""

Kind = Literal["ours", "peer", "local", "baseline", "ceiling"]


@dataclass(frozen=True)
class Meeting:
    """Where a publisher and its subscribers meet.

    Attributes:
        place: for who opens first (a publisher, the first end of a round trip): what the
            contender's service announced, or ``""`` without one. For the others: what the first
            announced, or else the same.
        topic: a name that no other measurement uses; names below it (``topic/…``) are free too.
        subscribers: how many there will be.
        announce: to be called at most once, while the first opens: where the others find it.
        large: whether messages will be of 64 KiB and more.
        topics: how many topics below `topic` there are; they are ``topic/0`` and so on.
        shape: of the arrays (of bytes) that are sent.
    """

    place: str
    topic: str
    subscribers: int
    announce: Callable[[str], None]
    large: bool = False
    topics: int = 0
    shape: tuple[int, ...] = ()


class BlockingPublisher(Protocol):
    """A publishing end."""

    def send_all(self, values: Sequence[Any]) -> None:
        """Send one message each; they are on their way when this returns, or soon after."""

    def close(self) -> None:
        """Let go of it."""


class BlockingSubscriber(Protocol):
    """A subscribing end."""

    def drain(self) -> tuple[int, Any]:
        """Receive until a message is false; how many came before it, and the last of them."""

    def each(self, note: Callable[[Any], object]) -> None:
        """Receive until a message is false; `note` each that comes before it."""

    def close(self) -> None:
        """Let go of it."""


class BlockingTopics(Protocol):
    """A publishing end with many topics."""

    def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        """Send each value to its topic."""

    def close(self) -> None:
        """Let go of it."""


class BlockingArrays(Protocol):
    """A publishing end for numpy arrays. One that can also has ``empty(shape)``: an array that is
    sent without a copy, once."""

    def send(self, array: Any) -> None:
        """Send it as it is now: its owner goes on with it."""

    def close(self) -> None:
        """Let go of it."""


class BlockingArraySubscriber(Protocol):
    """A subscribing end for them."""

    def take(self) -> Any:
        """Wait for the next one, which stays as it is as long as it is kept."""

    def close(self) -> None:
        """Let go of it."""


class BlockingPair(Protocol):
    """One end of a round trip."""

    def send(self, value: Any) -> None:
        """Send one message."""

    def receive(self) -> Any:
        """Wait for the next message."""

    def close(self) -> None:
        """Let go of it."""


class AsyncPublisher(Protocol):
    """The async form of `BlockingPublisher`."""

    async def send_all(self, values: Sequence[Any]) -> None: ...
    async def close(self) -> None: ...


class AsyncSubscriber(Protocol):
    """The async form of `BlockingSubscriber`."""

    async def drain(self) -> tuple[int, Any]: ...
    async def each(self, note: Callable[[Any], object]) -> None: ...
    async def close(self) -> None: ...


class AsyncTopics(Protocol):
    """The async form of `BlockingTopics`."""

    async def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None: ...
    async def close(self) -> None: ...


class AsyncArrays(Protocol):
    """The async form of `BlockingArrays`; its ``empty`` is not awaited."""

    async def send(self, array: Any) -> None: ...
    async def close(self) -> None: ...


class AsyncArraySubscriber(Protocol):
    """The async form of `BlockingArraySubscriber`."""

    async def take(self) -> Any: ...
    async def close(self) -> None: ...


class AsyncPair(Protocol):
    """The async form of `BlockingPair`."""

    async def send(self, value: Any) -> None: ...
    async def receive(self) -> Any: ...
    async def close(self) -> None: ...


class Contender(ABC):
    """Who is measured.

    Attributes:
        name: for the command line and JSON.
        title: for the table.
        how: the settings and calls it is used with, for the notes below the table.
        family: what several contenders are called together on the command line.
        kind: ``"ours"``; a ``"peer"``; one that is ``"local"``, reaching nobody beyond its
            host; the ``"baseline"`` that all are compared with; a
            ``"ceiling"``, which shows what the machine can do and is no messaging at all.
        packages, programs: what must be installed.
        groups: of workloads that it can do.
        workloads: the names of those of them that it can do; None: all.
        makes_arrays: whether those of its publishers that send arrays have an ``empty``.
        lossy: whether losing messages is its way, and no failure. It has no rate then, either.
        service: whether `serve` is to run in a process of its own beside the others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    how: ClassVar[str]
    family: ClassVar[str] = ""
    kind: ClassVar[Kind] = "peer"
    packages: ClassVar[tuple[str, ...]] = ()
    programs: ClassVar[tuple[str, ...]] = ()
    groups: ClassVar[frozenset[Group]] = PUBSUB
    workloads: ClassVar[frozenset[str] | None] = None
    makes_arrays: ClassVar[bool] = False
    lossy: ClassVar[bool] = False
    service: ClassVar[bool] = False

    def missing(self) -> str:
        """What it lacks here; empty when it can run."""
        lacking = [f"package {name}" for name in self.packages if not found(name)]
        lacking += [f"program {name}" for name in self.programs if shutil.which(name) is None]
        return ", ".join(lacking)

    def can(self, workload: Workload) -> bool:
        """Whether it is made for this workload."""
        return (
            workload.group in self.groups
            and (self.workloads is None or workload.name in self.workloads)
            and (self.makes_arrays or not workload.empty)
        )

    def serve(self, announce: Callable[[str], None]) -> None:
        """Be what publishers and subscribers need beside them (a coordinator, a broker):
        announce where, and run until the process is ended."""
        raise NotImplementedError


class BlockingContender(Contender):
    """A contender whose calls block."""

    @abstractmethod
    def open_publisher(self, meeting: Meeting) -> BlockingPublisher:
        """A publisher that loses nothing, if there is a choice."""

    @abstractmethod
    def open_subscriber(self, meeting: Meeting) -> BlockingSubscriber:
        """A subscriber that is connected, as far as that can be known."""

    def open_topics(self, meeting: Meeting) -> BlockingTopics:
        """A publisher of many topics."""
        raise NotImplementedError

    def open_topics_subscriber(self, meeting: Meeting) -> BlockingSubscriber:
        """A subscriber to all of them."""
        raise NotImplementedError

    def open_arrays(self, meeting: Meeting) -> BlockingArrays:
        """A publisher of arrays, of which it loses none."""
        raise NotImplementedError

    def open_array_subscriber(self, meeting: Meeting) -> BlockingArraySubscriber:
        """A subscriber to them."""
        raise NotImplementedError

    @abstractmethod
    def open_pair(self, meeting: Meeting, first: bool) -> BlockingPair:
        """One end of a round trip over two topics; the first opens without waiting for the
        other, except after it has announced where it is."""


class AsyncContender(Contender):
    """A contender whose calls are awaited; it runs on uvloop where that is installed."""

    @abstractmethod
    async def open_publisher(self, meeting: Meeting) -> AsyncPublisher:
        """See `BlockingContender`."""

    @abstractmethod
    async def open_subscriber(self, meeting: Meeting) -> AsyncSubscriber:
        """See `BlockingContender`."""

    async def open_topics(self, meeting: Meeting) -> AsyncTopics:
        """See `BlockingContender`."""
        raise NotImplementedError

    async def open_topics_subscriber(self, meeting: Meeting) -> AsyncSubscriber:
        """See `BlockingContender`."""
        raise NotImplementedError

    async def open_arrays(self, meeting: Meeting) -> AsyncArrays:
        """See `BlockingContender`."""
        raise NotImplementedError

    async def open_array_subscriber(self, meeting: Meeting) -> AsyncArraySubscriber:
        """See `BlockingContender`."""
        raise NotImplementedError

    @abstractmethod
    async def open_pair(self, meeting: Meeting, first: bool) -> AsyncPair:
        """See `BlockingContender`."""


def environment_of(assignments: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as `os.environ` has it."""
    return {name: value for name, _, value in (each.partition("=") for each in assignments)}


def found(package: str) -> bool:
    """Whether this package could be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
