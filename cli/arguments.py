"""What the arguments of ``pubsub`` mean, and what is said of one that means nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import CompletionItem

from pubsub.cli.command import guard_of_command, say
from pubsub.cli.quantities import bytes_of, seconds_of
from pubsub.config import FOREVER, coordinators_from
from pubsub.core.topics import check_topic
from pubsub.errors import PubSubError, TopicError
from pubsub.faces.foreign import foreign_wildcard

__all__ = [
    "PERIOD",
    "POSITIVE",
    "SIZE",
    "Header",
    "History",
    "Read",
    "Topic",
    "TopicOrFile",
    "fields_of",
    "fsync",
    "moment",
    "rate_of",
    "remap",
    "where_of",
]

if TYPE_CHECKING:
    from pubsub.cli.fields import Fields
    from pubsub.cli.where import Where

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # before click 8.4 no generic


class Topic(ParamType):
    """A topic, or a pattern where one may be."""

    name = "topic"

    def __init__(self, check: Callable[[Any], str], *, warns: bool = True) -> None:
        self._check = check
        self._warns = warns

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            topic = self._check(value)
        except TopicError as error:
            raise click.UsageError(str(error), ctx) from None
        foreign = foreign_wildcard(topic)
        if foreign and self._warns:
            say(foreign)
        return topic

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The topics that the coordinator knows."""
        from pubsub.cli.asking import ask

        try:
            addresses, _ = coordinators_from(ctx.params.get("coordinator"), {})
            guard = guard_of_command()
            rows = ask(addresses[0], "topics", guard, timeout=0.5)
        except (PubSubError, ValueError):
            return []
        return [CompletionItem(row["topic"]) for row in rows if row["topic"].startswith(incomplete)]


class TopicOrFile(Topic):
    """The same, or a recording."""

    def convert(  # type: ignore[override]  # it gives a Path, too
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        if value.endswith(".mcap") or os.path.isfile(value):
            return Path(value)
        return super().convert(value, param, ctx)


class History(ParamType):
    """How many messages, or all."""

    name = "N|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["all"]:
        if value == "all":
            return "all"
        with suppress(ValueError):
            if int(value) >= 0:
                return int(value)
        raise click.UsageError(
            f"--history {value!r} is neither a number of messages nor 'all'", ctx
        )


class Read(ParamType):
    """What a function reads out of the text; its ValueError says what is wrong."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None
        except ImportError as error:
            raise click.ClickException(str(error)) from None


def moment(text: str) -> float:
    from pubsub.cli.since import moment as moment_of

    return moment_of(text, time.time())


def fields_of(text: str) -> Fields:
    from pubsub.cli.fields import Fields

    return Fields(text)


def where_of(text: str) -> Where:
    from pubsub.cli.where import Where

    return Where(text)


def fsync(text: str) -> str | float:
    return text if text in ("never", "chunk") else seconds_of(text)


def rate_of(text: str) -> float:
    if text == "max":
        return math.inf
    with suppress(ValueError):
        rate = float(text.removesuffix("x"))
        if 0 < rate < math.inf:
            return rate
    raise ValueError(f"{text!r} is no rate: it is written 2x, 0.5x or max")


def remap(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} names no other topic: it is written old/topic=new/topic")
    return check_topic(old), check_topic(new)


class _Positive(click.FloatRange):
    """A number above 0; one without end is as much as there can be."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return min(number, FOREVER)


POSITIVE = _Positive(min=0, min_open=True)
SIZE = Read("size", bytes_of)
PERIOD = Read("time", seconds_of)


class Header(ParamType):
    """A name and a text."""

    name = "NAME=TEXT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | bytes]:
        name, sign, text = value.partition("=")
        if not sign or not name:
            raise click.UsageError(f"--header {value!r} is not NAME=TEXT, such as unit=C", ctx)
        try:
            text.encode()
        except UnicodeEncodeError:  # what the shell has given is no UTF-8
            return name, os.fsencode(text)
        return name, text
