"""Tracing: where a tracer is told of every put and every take, and where nobody else pays for it.

Without one nothing is asked at a put, since the methods themselves are replaced, and a Sub looks
once for each batch. `pubsub.otel` is such a tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Protocol

from pubsub.codec.headers import Headers
from pubsub.faces.asyncpub import AsyncPub
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.message import Message
from pubsub.faces.pub import PLAIN, Pub
from pubsub.faces.sub import Sub

__all__ = ["Tracer", "trace"]

_PUTS: dict[type[Pub], Callable[..., Any]] = {
    AsyncPub: AsyncPub.put,
    BlockingPub: BlockingPub.put,
}


class Tracer(Protocol):
    """Who is told."""

    def put(self, topic: str, headers: Headers | None, put: Callable[[Headers | None], Any]) -> Any:
        """A message is put on a topic: call `put` with the headers that it is to have, and return
        what that does."""

    def took(self, message: Message) -> None:
        """A message is being handed out, in the thread or task that takes it. What this raises is
        logged."""


def trace(tracer: Tracer | None) -> None:
    """Have all puts and takes of this process told to a tracer, from now on; None: to nobody.

    What `put_many` puts is told message by message. What was decoded before is not told.
    """
    for form, plain in _PUTS.items():
        form.put = plain if tracer is None else _told(plain, tracer)  # type: ignore[method-assign]
    Pub._plain = PLAIN if tracer is None else ()
    Sub._tracer = tracer


def _told(plain: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    @wraps(plain)
    def put(self: Pub, value: Any, headers: Headers | None = None) -> Any:
        return tracer.put(self.topic, headers, partial(plain, self, value))

    return put
