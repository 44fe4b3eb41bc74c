"""Peeking: the newest messages of a topic, as text, now and then.

It is an observer that takes the newest message there is, four times a second at most: no publisher
waits for it, and what comes meanwhile is overtaken, and counted.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncGenerator
from typing import Any

from pubsub import DecodeError, Gap, Peer, Sub

__all__ = ["LONGEST", "peek", "shown"]

EVERY = 0.25
"""Seconds from one message to the next."""
LASTS = 120.0
"""Seconds after which a peek ends: it carries all messages of the topic to here."""
WINDOW = 1024 * 1024
"""Bytes that may wait."""
LONGEST = 4000
"""Characters that are shown of a value."""


async def peek(peer: Peer, topic: str) -> AsyncGenerator[dict[str, Any], None]:
    """What is to be shown of the messages of a topic, one after the other; the last says why there
    is no more.

    Parameters:
        peer: what it may see is what its key or certificate may.
        topic: a topic or pattern.

    Raises:
        PubSubError, ValueError: it cannot be subscribed, or may not be.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + LASTS
    overtaken = 0
    async with Sub(topic, peer=peer, observer=True, keep="latest", window=WINDOW) as sub:
        yield {"ready": True}
        events = sub.messages()
        while (left := until - loop.time()) > 0:
            try:
                event = await asyncio.wait_for(anext(events), left)
            except asyncio.TimeoutError:
                break
            except DecodeError as error:
                yield {"refused": str(error)}
                events = sub.messages()
                continue
            if isinstance(event, Gap):
                overtaken += event.missed
                if event.reason in ("vanished", "unreachable", "reached"):
                    yield {"gap": f"{event.publisher}: {event.reason}"}
                continue
            yield {
                "at": event.sent_at,
                "topic": event.topic,
                "publisher": event.publisher,
                "seq": event.seq,
                "value": shown(event.value),
                "overtaken": overtaken,
            }
            overtaken = 0
            await asyncio.sleep(EVERY)
    yield {
        "end": f"it ends after {LASTS:.0f} s, because it has all messages of the topic sent here"
    }


class _Short(reprlib.Repr):
    """As `repr`, which makes visible what is no plain text, but only as long as people read."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LONGEST
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 50
        self.maxdeque = self.maxarray = 50
        self.maxlevel = 8

    def repr_str(self, x: str, level: int) -> str:
        return _cut(x)

    def repr_bytes(self, x: bytes, level: int) -> str:
        return _cut(x)

    repr_bytearray = repr_bytes


def _cut(text: Any) -> str:
    """The beginning of a text: all of it would be written before it is cut."""
    if len(text) <= LONGEST:
        return repr(text)
    return f"({len(text):,} in all) {text[:LONGEST]!r}"


def shown(value: Any) -> str:
    """A value as text, of bounded length, in which nothing is hidden.

    >>> shown({"x": 1, "text": "left\u202eright"})
    "{'x': 1, 'text': 'left\\\\u202eright'}"
    """
    try:
        text = _Short().repr(value)
    except Exception as error:  # a number with too many digits, a type whose repr fails
        return f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    cut = text[:LONGEST]
    if len(text) > LONGEST:
        cut += "…"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cut)
