"""What two Peers give each other: one sends and measures, the other answers.

`pubsub doctor` has both in its process, for a moment; `pubsub bench` has each in one of its own.
They meet under a name that is nobody else's: messages go there on one topic of it and back on
another.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any, NamedTuple

from pubsub import Peer
from pubsub.config import MIB
from pubsub.core.topics import is_pattern
from pubsub.trust.guard import Guard

__all__ = ["Flood", "Measuring", "answer", "limit_of", "own_name"]

WINDOW = 8 * MIB
"""Bytes that may be on the way, and as many that wait to be sent."""
PIECE = MIB
"""Bytes that are put at once, and no more than 100 messages."""
SILENCE = 10.0
"""Seconds without any progress after which the other one is taken to be gone."""
BUSY = 0.85
"""The part of a processor from which on a process that has one thread is said to be the limit."""


def own_name(guard: Guard, program: str) -> str | None:
    """A name whose two topics these credentials may publish and subscribe; None: there is none."""
    rights = guard.rights
    name = f"{program}-{secrets.token_hex(8)}"
    for pattern in (f"{program}/**", *rights.publish, *rights.subscribe):
        found = "/".join(name if part in ("*", "**") else part for part in pattern.split("/"))
        may = (rights.may_publish(t) and rights.may_subscribe(t) for t in _topics(found))
        if is_pattern(pattern) and all(may):
            return found
    return None


def _topics(name: str) -> tuple[str, str]:
    return f"{name}-there", f"{name}-back"


async def answer(peer: Peer, name: str) -> None:
    """Answer whoever measures under this name, until that one has enough: send back what comes,
    or count it, as it says."""
    there, back = _topics(name)
    into, out = peer.sub(there, window=WINDOW), peer.pub(back)
    await into
    echoes = False
    messages, began = 0, 0.0
    while True:
        for value in await into.get_many():
            if type(value) is bytes:
                messages += 1
                if echoes:
                    out.put(value)
            elif value == ["end"]:
                return
            elif value == ["count", "done"]:
                spent = process_time() - began
                out.put({"messages": messages, "lost": into.lost, "processor": spent})
            else:
                echoes = value == ["echo"]
                messages, began = 0, process_time()


class Flood(NamedTuple):
    """What came through when as much was put as went."""

    messages: int
    """That arrived."""
    lost: int
    seconds: float
    publisher: float
    """How busy its process was: the part of one processor."""
    subscriber: float


class Measuring:
    """The side that measures. See `between`.

    Parameters:
        size: bytes of each message.
    """

    def __init__(self, out: Any, answers: Any, size: int) -> None:
        self._out = out
        self._answers = answers
        self._size = size

    @classmethod
    @asynccontextmanager
    async def between(cls, peer: Peer, name: str, size: int) -> AsyncIterator[Measuring]:
        """Within: somebody answers under that name."""
        there, back = _topics(name)
        out, answers = peer.pub(there, overflow="block", buffer=WINDOW), peer.sub(back)
        await answers
        await out.wait_for_subscribers(1)
        try:
            yield cls(out, answers, size)
        finally:
            out.put(["end"])
            await out.close(linger=1.0)

    @property
    def way(self) -> Mapping[str, Any]:
        """By which ``way`` the answers come, and why better ones ``failed``."""
        found: Mapping[str, Any] = next(iter(self._answers.publishers.values()))
        return found

    async def turns(self, most: int, seconds: float) -> list[float]:
        """Seconds that messages take there and back, one after the other."""
        payload = b"x" * self._size
        self._out.put(["echo"])
        found: list[float] = []
        end = perf_counter() + seconds
        while len(found) < most and (not found or perf_counter() < end):
            began = perf_counter()
            self._out.put(payload)
            await self._answers.get(SILENCE)
            found.append(perf_counter() - began)
        return found

    async def flood(self, most: int | None, seconds: float) -> Flood:
        """As many messages as go through, for so long, or so many."""
        piece = [b"x" * self._size] * max(1, min(100, PIECE // max(self._size, 1)))
        self._out.put(["count"])
        began, spent = perf_counter(), process_time()
        put = 0
        while perf_counter() - began < seconds if most is None else put < most:
            some = piece if most is None else piece[: most - put]
            await self._out.put_many(some)
            put += len(some)
        self._out.put(["count", "done"])
        told = await self._told()
        took = perf_counter() - began
        return Flood(
            *(told["messages"], told["lost"], took),
            *((process_time() - spent) / took, told["processor"] / took),
        )

    async def _told(self) -> Mapping[str, Any]:
        """What the other one counted, once it has taken all: as long as it takes more."""

        def lag() -> list[int]:
            return [each["lag"] for each in self._out.subscribers.values()]

        before = lag()
        while True:
            try:
                found: Mapping[str, Any] = await self._answers.get(SILENCE)
                return found
            except TimeoutError:
                if lag() in (before, []):
                    raise
                before = lag()


def percentiles(turns: list[float]) -> tuple[float, float]:
    """The median, and what 99 of 100 do not exceed."""
    if len(turns) < 2:
        return turns[0], turns[0]
    hundredths = quantiles(turns, n=100, method="inclusive")
    return hundredths[49], hundredths[98]


def limit_of(flood: Flood, size: int, turn: float) -> str:
    """What kept more from coming through.

    Parameters:
        turn: seconds that a message takes there and back.
    """
    busiest = max(flood.publisher, flood.subscriber)
    if busiest >= BUSY:
        whose = "publisher" if flood.publisher == busiest else "subscriber"
        return f"the processor: the {whose} keeps one {min(busiest, 1):.0%} busy"
    if size * flood.messages / flood.seconds > 0.5 * WINDOW / turn:
        return (
            f"the window: {WINDOW // MIB} MiB may be on the way, and a message takes "
            f"{turn * 1000:.1f} ms there and back"
        )
    return (
        "what is between them, or other programs: the publisher keeps a processor "
        f"{flood.publisher:.0%} busy, the subscriber {flood.subscriber:.0%}"
    )
