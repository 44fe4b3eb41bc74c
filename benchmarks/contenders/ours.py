"""This library, in both of its faces."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.contender import (
    ARRAYS,
    PUBSUB,
    AsyncContender,
    BlockingContender,
    Kind,
    Meeting,
    environment_of,
)
from benchmarks.loops import run
from pubsub.config import Settings
from pubsub.faces.asyncpub import AsyncPub
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.trust.credentials import credentials_from

if TYPE_CHECKING:
    from pubsub.coordinator.server import Coordinator

__all__ = ["CONTENDERS", "Async", "AsyncPair", "AsyncPublisher", "AsyncSubscriber", "use"]


FOUR = 4 * (8 * 1024 * 1024 + 1024)
"""Room for four arrays of 8 MiB, as all others have it."""


async def _coordinate(
    announce: Callable[[str], None],
    beside: Callable[[Coordinator, str], Awaitable[None]] | None = None,
) -> None:
    from pubsub.coordinator.server import Coordinator  # here: no peer needs it

    # as one that has run for a while: none of its peers is still on the way back
    guard = credentials_from(Settings(), os.environ).guard()
    coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=guard)
    place = str(await coordinator.start("127.0.0.1", 0))
    if beside is not None:
        await beside(coordinator, place)
    announce(place)
    await asyncio.Event().wait()


def use(place: str) -> None:
    """Have the Peer of this process, or of its loop, go there: to a coordinator, with what else
    follows it for the environment."""
    coordinator, *more = place.split()
    os.environ["PUBSUB_COORDINATOR"] = coordinator
    os.environ.update(environment_of(more))


# --- async ------------------------------------------------------------------------------


class AsyncPublisher:
    def __init__(self, pub: AsyncPub) -> None:
        self._pub = pub

    async def send_all(self, values: Sequence[Any]) -> None:
        put = self._pub.put
        for value in values:
            await put(value)

    async def close(self) -> None:
        await self._pub.close()


class AsyncSubscriber:
    def __init__(self, sub: AsyncSub) -> None:
        self._sub = sub

    async def drain(self) -> tuple[int, Any]:
        n, last = 0, None
        async for value in self._sub:
            if not value:
                break
            n += 1
            last = value
        return n, last

    async def each(self, note: Callable[[Any], object]) -> None:
        async for value in self._sub:
            if not value:
                break
            note(value)

    async def close(self) -> None:
        await self._sub.close()


class _AsyncTopics:
    def __init__(self, pubs: list[AsyncPub]) -> None:
        self._pubs = pubs
        self._puts = [pub.put for pub in pubs]

    async def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        puts = self._puts
        for topic, value in zip(topics, values, strict=True):
            await puts[topic](value)

    async def close(self) -> None:
        await asyncio.gather(*(pub.close() for pub in self._pubs))


class _AsyncArrays:
    def __init__(self, pub: AsyncPub) -> None:
        self._pub: Any = pub

    async def send(self, array: Any) -> None:
        await self._pub.put(array)

    async def close(self) -> None:
        await self._pub.close()

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self._pub.empty(shape, "u1")


class _AsyncArraySubscriber:
    def __init__(self, sub: AsyncSub) -> None:
        self._sub = sub

    async def take(self) -> Any:
        return await self._sub.get()

    async def close(self) -> None:
        await self._sub.close()


class AsyncPair:
    def __init__(self, pub: AsyncPub, sub: AsyncSub) -> None:
        self._pub = pub
        self._sub = sub
        self.receive = sub.get

    async def send(self, value: Any) -> None:
        self._pub.put(value)

    async def close(self) -> None:
        await self._sub.close()
        await self._pub.close()


class Async(AsyncContender):
    """The face inside an event loop."""

    name = "pubsub-async"
    title = "pubsubd, async face"
    how = (
        '`Pub(overflow="block")`; `await pub.put(value)` one by one; `async for value in sub`. '
        "Round trip: `pub.put(value)`, `await sub.get()`. Many topics: one Pub each, one "
        "Sub with a pattern. Arrays: `buffer` and `window` for four."
    )
    family = "pubsub"
    kind: ClassVar[Kind] = "ours"
    groups = PUBSUB | ARRAYS | {"topics", "mixed"}
    makes_arrays = hasattr(AsyncPub, "empty")
    service = True
    beside: Callable[[Coordinator, str], Awaitable[None]] | None = None
    """Starts what else has to stand beside the coordinator, before anybody comes."""

    def serve(self, announce: Callable[[str], None]) -> None:
        run(_coordinate(announce, self.beside))

    async def open_publisher(self, meeting: Meeting) -> AsyncPublisher:
        use(meeting.place)
        return AsyncPublisher(await AsyncPub(meeting.topic, overflow="block"))

    async def open_subscriber(self, meeting: Meeting) -> AsyncSubscriber:
        use(meeting.place)
        return AsyncSubscriber(await AsyncSub(meeting.topic))

    async def open_topics(self, meeting: Meeting) -> _AsyncTopics:
        use(meeting.place)
        pubs = [AsyncPub(f"{meeting.topic}/{i}", overflow="block") for i in range(meeting.topics)]
        for pub in pubs:
            await pub
        return _AsyncTopics(pubs)

    async def open_topics_subscriber(self, meeting: Meeting) -> AsyncSubscriber:
        use(meeting.place)
        return AsyncSubscriber(await AsyncSub(f"{meeting.topic}/*"))

    async def open_arrays(self, meeting: Meeting) -> _AsyncArrays:
        use(meeting.place)
        return _AsyncArrays(await AsyncPub(meeting.topic, overflow="block", buffer=FOUR))

    async def open_array_subscriber(self, meeting: Meeting) -> _AsyncArraySubscriber:
        use(meeting.place)
        return _AsyncArraySubscriber(await AsyncSub(meeting.topic, window=FOUR))

    async def open_pair(self, meeting: Meeting, first: bool) -> AsyncPair:
        use(meeting.place)
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        return AsyncPair(
            await AsyncPub(there if first else back), await AsyncSub(back if first else there)
        )


# --- blocking ---------------------------------------------------------------------------


class _BlockingPublisher:
    def __init__(self, pub: BlockingPub) -> None:
        self._pub = pub

    def send_all(self, values: Sequence[Any]) -> None:
        put = self._pub.put
        for value in values:
            put(value)

    def close(self) -> None:
        self._pub.close()


class _BlockingSubscriber:
    def __init__(self, sub: BlockingSub) -> None:
        self._sub = sub

    def drain(self) -> tuple[int, Any]:
        n, last = 0, None
        for value in self._sub:
            if not value:
                break
            n += 1
            last = value
        return n, last

    def each(self, note: Callable[[Any], object]) -> None:
        for value in self._sub:
            if not value:
                break
            note(value)

    def close(self) -> None:
        self._sub.close()


class _BlockingTopics:
    def __init__(self, pubs: list[BlockingPub]) -> None:
        self._pubs = pubs
        self._puts = [pub.put for pub in pubs]

    def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        puts = self._puts
        for topic, value in zip(topics, values, strict=True):
            puts[topic](value)

    def close(self) -> None:
        for pub in self._pubs:  # one after the other: none waits for a subscriber that is gone
            pub.close(linger=0)


class _BlockingArrays:
    def __init__(self, pub: BlockingPub) -> None:
        self._pub: Any = pub
        self.send = pub.put
        self.close = pub.close

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self._pub.empty(shape, "u1")


class _BlockingArraySubscriber:
    def __init__(self, sub: BlockingSub) -> None:
        self.take = sub.get
        self.close = sub.close


class _BlockingPair:
    def __init__(self, pub: BlockingPub, sub: BlockingSub) -> None:
        self._pub = pub
        self._sub = sub
        self.send = pub.put
        self.receive = sub.get

    def close(self) -> None:
        self._sub.close()
        self._pub.close()


class Blocking(BlockingContender):
    """The face outside event loops."""

    name = "pubsub-blocking"
    title = "pubsubd, blocking face"
    how = (
        '`Pub(overflow="block")`; `pub.put(value)` one by one; `for value in sub`. Round trip: '
        "`pub.put(value)`, `sub.get()`. Many topics: one Pub each, one Sub with a pattern. "
        "Arrays: `buffer` and `window` for four."
    )
    family = "pubsub"
    kind = "ours"
    groups = PUBSUB | ARRAYS | {"topics", "mixed"}
    makes_arrays = hasattr(BlockingPub, "empty")
    service = True

    def serve(self, announce: Callable[[str], None]) -> None:
        run(_coordinate(announce))

    def open_publisher(self, meeting: Meeting) -> _BlockingPublisher:
        use(meeting.place)
        return _BlockingPublisher(BlockingPub(meeting.topic, overflow="block"))

    def open_subscriber(self, meeting: Meeting) -> _BlockingSubscriber:
        use(meeting.place)
        return _BlockingSubscriber(BlockingSub(meeting.topic))

    def open_topics(self, meeting: Meeting) -> _BlockingTopics:
        use(meeting.place)
        pubs = [
            BlockingPub(f"{meeting.topic}/{i}", overflow="block") for i in range(meeting.topics)
        ]
        return _BlockingTopics(pubs)

    def open_topics_subscriber(self, meeting: Meeting) -> _BlockingSubscriber:
        use(meeting.place)
        return _BlockingSubscriber(BlockingSub(f"{meeting.topic}/*"))

    def open_arrays(self, meeting: Meeting) -> _BlockingArrays:
        use(meeting.place)
        return _BlockingArrays(BlockingPub(meeting.topic, overflow="block", buffer=FOUR))

    def open_array_subscriber(self, meeting: Meeting) -> _BlockingArraySubscriber:
        use(meeting.place)
        return _BlockingArraySubscriber(BlockingSub(meeting.topic, window=FOUR))

    def open_pair(self, meeting: Meeting, first: bool) -> _BlockingPair:
        use(meeting.place)
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        return _BlockingPair(
            BlockingPub(there if first else back), BlockingSub(back if first else there)
        )


CONTENDERS = (Async(), Blocking())
