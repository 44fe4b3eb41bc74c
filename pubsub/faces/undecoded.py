"""What comes for a Sub, taken as it came: for who counts messages and looks into none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from pubsub.errors import Closed
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.message import Gap

__all__ = ["Batch", "undecoded"]


class Batch(NamedTuple):
    """A batch of one stream, behind what was lost before it."""

    topic: str
    messages: int
    size: int
    """Bytes of the encoded values and headers."""
    gaps: tuple[Gap, ...]
    sent_at: float


async def undecoded(sub: AsyncSub) -> AsyncGenerator[Batch, None]:
    """Take all that comes for a Sub, batch by batch, until it is closed; nobody else may take of
    it.

    Raises:
        DecodeError: a publisher's codec is not allowed here; begun again, it goes on.
        CoordinatorUnavailable: none could be reached.
    """
    while True:
        if sub._long_enough():
            await asyncio.sleep(0)
        if isinstance(sub._dead, Closed):
            return
        sub._check()
        entry = sub._inbox.take()
        if entry is None:
            await sub._arrival()
            continue
        if entry.error is not None:
            raise entry.error
        stream = entry.stream
        messages = entry.end - entry.first
        stream.delivered += messages
        gaps = (Gap(stream.publisher, stream.topic, *gap) for gap in entry.gaps)
        size = len(entry.body) + len(entry.headers) + sum(map(len, entry.buffers))
        yield Batch(stream.topic, messages, size, tuple(gaps), entry.sent_at)
