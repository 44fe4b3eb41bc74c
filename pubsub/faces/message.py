"""Message and Gap: what a Sub hands out, beside plain values."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

from pubsub.codec.headers import BatchHeaders
from pubsub.core.stream import Stream
from pubsub.errors import DecodeError
from pubsub.support.logs import logger

__all__ = ["Gap", "Message", "Observed", "Run", "message_of", "pairs_of"]

log = logger("pubsub.sub")


class _Five(NamedTuple):
    """What unpacking a `Message` gives: it stays so, and whatever comes is an attribute."""

    value: Any
    topic: str
    publisher: str
    """Address of the Pub: ``host:port#n``, with its number in its process."""
    seq: int
    """Its number in the stream of that Pub, from 0."""
    sent_at: float
    """Wall-clock time of the publisher when its batch was closed: seconds since 1970."""


class Message(_Five):
    """A message and where it comes from; see `Sub.messages`.

    It is a tuple of five, ``value, topic, publisher, seq, sent_at``; the rest is there by name. Two
    messages are equal where all of it is.

    Parameters:
        name: of the publisher's certificate.
        headers: those that were put with it.

    Example:
        >>> from pubsub import Message
        >>> message = Message(21.5, "temp", "10.0.0.7:4711#0", 0, 1.5, headers={"unit": "C"})
        >>> value, topic, publisher, seq, sent_at = message
        >>> message.headers["unit"]
        'C'
    """

    _name = ""
    _headers: BatchHeaders | dict[str, str | bytes] | None = None

    def __new__(
        cls,
        value: Any,
        topic: str,
        publisher: str,
        seq: int,
        sent_at: float,
        *,
        name: str = "",
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Message:
        made = super().__new__(cls, value, topic, publisher, seq, sent_at)
        if name:
            made._name = name
        if headers:
            made._headers = dict(headers)
        return made

    @property
    def name(self) -> str:
        """Of the publisher's certificate, which has shown it; empty: none is used."""
        return self._name

    @property
    def headers(self) -> dict[str, str | bytes]:
        """What was put beside the value: ``put(value, headers=…)``; empty: nothing was.

        Raises:
            DecodeError: its publisher has sent something else in their place (an honest one never
                does). They are decoded when they are asked for first.
        """
        headers = self._headers
        if headers is None:
            return {}
        if isinstance(headers, BatchHeaders):
            headers = self._headers = headers.of(self.seq)
        return headers

    def _replace(self, **changes: Any) -> Message:
        """The same message with other fields."""
        fields = {**self._asdict(), "name": self.name, "headers": self.headers, **changes}
        return type(self)(**fields)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Message) and (self.name, self.headers) != (other.name, other.headers):
            return False
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), name=self.name, headers=self.headers), tuple(self)

    def __repr__(self) -> str:
        said = super().__repr__()
        if self.name:
            said = f"{said[:-1]}, name={self.name!r})"
        try:
            return f"{said[:-1]}, headers={self.headers!r})" if self.headers else said
        except DecodeError as error:
            return f"{said[:-1]}, headers=<{error}>)"


_five: Callable[[tuple[Any, str, str, int, float]], Message] = partial(tuple.__new__, Message)


def message_of(run: Run, value: Any, seq: int) -> Message:
    """A message that was taken. (To call the class would take longer by half.)"""
    stream = run.stream
    message = _five((value, stream.topic, stream.publisher, seq, run.sent_at))
    if stream.name:
        message._name = stream.name
    if run.headers is not None:
        message._headers = run.headers
    return message


class Gap(NamedTuple):
    """Messages of a stream that this Sub will never get, in their place; see `Sub.messages`. A
    stream whose publisher is gone without a word ends with one that says so."""

    publisher: str
    """Address of the Pub; ``several publishers``, with the topic of the Sub, where more than 1,000
    gaps have waited for somebody to look at them: of the further ones only the sums are kept."""
    topic: str
    missed: int
    """How many messages; 0 where that is not known: `reason` is ``vanished`` or ``unreachable``, or
    ``reached``, where it is known again."""
    reason: str
    """``overflow`` (they had left the publisher's buffer), ``closed`` (the Pub was closed before
    it could send them), ``too large`` (above this Peer's `max_message`, or in one batch with such
    a message), ``conflated`` (overtaken, with ``keep="latest"``) or ``undecodable``. Of a stream
    that has ended: ``vanished`` (its link broke and did not come back: what the publisher had not
    sent is not known) or ``unreachable`` (it never was reached, or refused: what was put is not
    known). Should it be reached after all, it goes on, and what is lost is counted. Of one that
    lives, and to which no way leads for now: ``unreachable`` when that begins, and ``reached`` when
    it is over."""


@dataclass(eq=False, slots=True)
class Run:
    """Decoded messages of consecutive numbers, behind what was lost before them."""

    stream: Stream
    gaps: tuple[tuple[int, str], ...]
    end: int
    values: Iterator[Any]  # those that were not taken yet
    sent_at: float
    headers: BatchHeaders | None = None
    """Of all messages of the batch; None: none has any."""
    pairs: Iterator[tuple[Any, int]] | None = None
    """The same ones, each with how many are left behind it; an iterator of C, so that the two
    belong together though other threads take from `values`."""
    following: Run | None = None  # what else the same batch gave


def pairs_of(values: Iterator[Any]) -> Iterator[tuple[Any, int]]:
    """See `Run.pairs`."""
    return zip(values, map(operator.length_hint, repeat(values)), strict=False)


class Observed:
    """A run's values, each shown to somebody as a message when it is taken.

    Parameters:
        observe: is shown them; what it raises is logged.
        dropped: gets an item for a message that nobody gets, because a signal handler raised
            while it was shown.
    """

    __slots__ = ("_pairs", "_values")

    def __init__(self, run: Run, observe: Callable[[Message], None], dropped: deque[bool]) -> None:
        def show(pair: tuple[Any, int]) -> tuple[Any, int]:
            value, left = pair
            try:
                observe(message_of(run, value, run.end - 1 - left))
            except Exception:
                log.exception("who observes what Subs take failed")
            except BaseException:
                dropped.append(True)
                raise
            return pair

        self._values = run.values
        self._pairs = run.pairs = map(show, pairs_of(run.values))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._pairs)[0]

    def __length_hint__(self) -> int:
        return operator.length_hint(self._values)
