"""Message and Gap: what a Sub hands out, beside plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pubsub.core.stream import Stream

__all__ = ["Gap", "Message", "Run"]


class Message(NamedTuple):
    """A message and where it comes from; see `Sub.messages`."""

    value: Any
    topic: str
    publisher: str
    """Address of the Pub: ``host:port#n``, with its number in its process."""
    seq: int
    """Its number in the stream of that Pub, from 0."""
    sent_at: float
    """Wall-clock time of the publisher when its batch was closed: seconds since 1970."""
    name: str = ""
    """Of the publisher's certificate, which has shown it; empty: none is used."""


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
    pairs: Iterator[tuple[Any, int]] | None = None
    """The same ones, each with how many are left behind it; an iterator of C, so that the two
    belong together though other threads take from `values`."""
    following: Run | None = None  # what else the same batch gave
