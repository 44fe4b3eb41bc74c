"""``--since``: a moment, and how far back publishers go."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import datetime, time, timedelta

from pubsub import Message
from pubsub.cli.quantities import period

__all__ = ["Since", "moment"]


def moment(text: str, now: float) -> float:
    """The time that is meant, in seconds since 1970: ``5m`` or ``1h30m`` before now, the time of
    day at which a clock here showed ``12:30`` last, or a date or time in ISO 8601.

    Raises:
        ValueError: it is none of these, or has not come yet.
    """
    ago = period(text)
    then = _on_the_clock(text, now) if ago is None else now - ago
    if not math.isfinite(then) or then > now:
        raise ValueError(f"--since {text!r} has not come yet")
    return then


def _on_the_clock(text: str, now: float) -> float:
    iso = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text  # Python 3.10 takes no Z
    with suppress(ValueError):
        if ":" not in text[:3]:  # Python 3.11 and later read 2026 as 20:26
            raise ValueError
        here = datetime.fromtimestamp(now)
        then = datetime.combine(here.date(), time.fromisoformat(iso))
        if then.timestamp() > now:
            then -= timedelta(days=1)
        return then.timestamp()
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(iso).timestamp()
    raise ValueError(
        f"--since {text!r} is no time: it is written 30s, 5m, 2h, 1d, 12:30, 2026-05-31 or "
        "2026-05-31T12:30"
    )


class Since:
    """What was sent after a moment, and whether publishers have kept all of it.

    Parameters:
        after: the moment, in seconds since 1970.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._seen: set[str] = set()  # publishers whose first message has come

    def wants(self, message: Message) -> bool:
        """Whether it was sent after that."""
        return message.sent_at >= self._after

    def first(self, message: Message) -> str:
        """What is to be said where this is the first message of a stream, and there were others
        that may have been sent after that moment; else empty."""
        if message.publisher in self._seen:
            return ""
        self._seen.add(message.publisher)
        if not message.seq or not self.wants(message):
            return ""
        begins = datetime.fromtimestamp(message.sent_at).isoformat(" ", "seconds")
        return (
            f"{message.topic} from {message.publisher} begins at {begins}: {_before(message.seq)}"
        )

    def silent(self, publisher: str, topic: str, due: int | None) -> str:
        """The same where nothing of a stream has come, of which the message `due` comes next."""
        if publisher in self._seen or not due:
            return ""
        self._seen.add(publisher)
        return f"{topic} from {publisher} has nothing from before: {_before(due)}"


def _before(count: int) -> str:
    messages = "the message" if count == 1 else f"the {count:,} messages"
    return f"{messages} before that, Pub(history=…) does not keep"
