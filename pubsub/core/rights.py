"""What a process may do: the topics it may publish and subscribe, and the roles it may have.

Rights are patterns (`pubsub.core.topics`), so three questions come up. May it have this topic? One
of its patterns matches it. Could it have any topic of this pattern? One of its patterns
*overlaps*: some topic matches both. May it have all of them? Its patterns together *cover* it: no
topic that matches it is outside of them.

The last two follow all readings of the patterns at once, as bits of one number (`_Readings`).
That two patterns overlap is found in one walk along the one of them. That many cover one is, in
the worst case, a question whose work doubles with each segment, so it is given up after
`COVER_STEPS`, with the answer that errs on the careful side.

Rights travel in certificates, as URIs: ``pubsubd:publish:PATTERN``, ``pubsubd:subscribe:PATTERN``
(percent-encoded UTF-8), ``pubsubd:coordinator``, ``pubsubd:relay`` and ``pubsubd:list``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from pubsub.core.topics import STATS, check_pattern, is_pattern, is_reserved, matches
from pubsub.errors import TopicError

__all__ = [
    "ALL",
    "COVER_STEPS",
    "EVERYTHING",
    "NONE",
    "SHOWN",
    "Rights",
    "covers",
    "held",
    "in_words",
    "overlaps",
]

COVER_STEPS = 2_000
"""Steps after which `covers` gives up: some milliseconds. A pattern and rights that people
write need a few dozen."""

SHOWN = 8
"""Patterns of each kind that `Rights.may` names."""

_ROLES = ("coordinator", "relay", "list")
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")
"""Printable ASCII, where each ``%`` stands before two hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a process may do. Patterns are checked, whoever makes it.

    >>> rights = Rights(publish=["sensors/kitchen/**"], subscribe=["config/*"])
    >>> rights.may_publish("sensors/kitchen/temp"), rights.may_publish("sensors/attic/temp")
    (True, False)
    >>> str(rights)
    "may publish 'sensors/kitchen/**' and subscribe 'config/*'"

    Raises:
        TopicError: one of the patterns cannot be used.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    coordinator: bool = False
    """Whether peers take it for a coordinator."""
    relay: bool = False
    list: bool = False
    """Whether it may ask a coordinator for all its peers, and each of these for its `Stats`."""

    def __init__(
        self,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        coordinator: bool = False,
        relay: bool = False,
        list: bool = False,
    ) -> None:
        for name, value in (
            ("publish", tuple(dict.fromkeys(map(check_pattern, publish)))),
            ("subscribe", tuple(dict.fromkeys(map(check_pattern, subscribe)))),
            ("coordinator", coordinator),
            ("relay", relay),
            ("list", list),
        ):
            object.__setattr__(self, name, value)

    def may_publish(self, topic: str) -> bool:
        """Whether it may have a Pub on a topic. (Of itself everybody may tell.)"""
        return topic == STATS or any(matches(pattern, topic) for pattern in self.publish)

    def may_subscribe(self, topic: str) -> bool:
        """Whether it may have a Sub on a topic: one without wildcards. See `part` and `covers`."""
        return (
            self.list
            if topic == STATS
            else any(matches(pattern, topic) for pattern in self.subscribe)
        )

    def may_see(self, topic: str) -> bool:
        """Whether a topic, or all of a pattern, is within its rights, so that it may be told of
        it."""
        if is_reserved(topic):
            return False
        if is_pattern(topic):
            return covers(self.subscribe, topic) or covers(self.publish, topic)
        return self.may_subscribe(topic) or self.may_publish(topic)

    def part(self, pattern: str) -> tuple[str, ...]:
        """Its patterns for subscribing that have a topic with this one in common: a Sub on it gets
        what matches one of them as well. Empty: nothing ever."""
        return tuple(right for right in self.subscribe if overlaps(right, pattern))

    def covers(self, pattern: str) -> bool:
        """Whether it may subscribe every topic of a pattern; see the function `covers`."""
        return covers(self.subscribe, pattern)

    def may(self, verb: str, topic: str = "") -> str:
        """What it may ``publish`` or ``subscribe``, in words, cut to a few patterns; of the
        runtime's own `topic`, what gives a right to it."""
        if topic == STATS:
            return "may not list all peers (`pubsubd cert issue … --list`)"
        patterns = self.publish if verb == "publish" else self.subscribe
        return f"may {verb} {in_words(patterns, SHOWN)}"

    def __str__(self) -> str:
        """All of it in words."""
        if self == EVERYTHING:
            return "may do everything"
        words = f"may publish {in_words(self.publish)} and subscribe {in_words(self.subscribe)}"
        if not self.publish and not self.subscribe:
            words = "may publish and subscribe nothing"
        roles = [
            text
            for held, text in (
                (self.coordinator, "be a coordinator"),
                (self.relay, "be a relay"),
                (self.list, "list all peers"),
            )
            if held
        ]
        return "; may ".join((words, *roles))

    def to_uris(self) -> tuple[str, ...]:
        """As they stand in a certificate.

        >>> Rights(publish=["größe/*"], list=True).to_uris()
        ('pubsubd:publish:gr%C3%B6%C3%9Fe/*', 'pubsubd:list')
        """
        return (
            *(f"pubsubd:publish:{quote(pattern, safe='/*')}" for pattern in self.publish),
            *(f"pubsubd:subscribe:{quote(pattern, safe='/*')}" for pattern in self.subscribe),
            *(f"pubsubd:{role}" for role in _ROLES if getattr(self, role)),
        )

    @classmethod
    def from_uris(cls, uris: Iterable[str]) -> tuple[Rights, tuple[str, ...]]:
        """The rights that URIs of a certificate give, and a sentence for each that gives none.

        URIs of other schemes mean something to others and are passed over in silence.
        """
        patterns: dict[str, dict[str, None]] = {"publish": {}, "subscribe": {}}
        roles = dict.fromkeys(_ROLES, False)
        problems = []
        for uri in uris:
            scheme, _, right = uri.partition(":")
            if scheme.lower() != "pubsubd":
                continue
            kind, colon, text = right.partition(":")
            if kind in roles and not colon:
                roles[kind] = True
            elif kind in patterns and colon:
                try:
                    patterns[kind][_decoded(text)] = None
                except ValueError as error:  # TopicError and UnicodeDecodeError are, too
                    problems.append(f"{_quoted(uri)} gives no right: {error}")
            else:
                problems.append(f"{_quoted(uri)} gives no right: this version knows no such one")
        return cls(patterns["publish"], patterns["subscribe"], **roles), tuple(problems)


def _decoded(text: str) -> str:
    if not _ENCODED.fullmatch(text):
        raise ValueError("it is not percent-encoded")
    try:
        return check_pattern(unquote_to_bytes(text).decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except TopicError as error:
        raise ValueError(error.problem) from None


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 200 else f"{text[:200]}…")


def in_words(patterns: tuple[str, ...], most: int | None = None) -> str:
    """Patterns, the first so many of them."""
    if not patterns:
        return "nothing"
    if "**" in patterns:
        return "everything"
    shown = [repr(pattern) for pattern in patterns[:most]]
    if len(shown) < len(patterns):
        shown.append(f"{len(patterns) - len(shown)} more")
    return " and ".join(", ".join(shown).rsplit(", ", 1)) if len(shown) == 2 else ", ".join(shown)


EVERYTHING = Rights(["**"], ["**"], coordinator=True, relay=True, list=True)
"""Of who has the group's key, or the user's secret, or where nobody is asked who he is."""
ALL = EVERYTHING
NONE = Rights()
"""Of a certificate that gives none."""


def held(rights: Rights | None) -> Rights:
    """The rights of who has shown these; None: nobody is asked for any."""
    return EVERYTHING if rights is None else rights


class _Readings:
    """Where one may stand in some patterns, after the segments so far: a bit for each place.

    The patterns lie one behind the other; behind the last segment of each is the place where it
    matched. Bits of different patterns never meet, because nothing leads on from there.
    """

    __slots__ = ("any", "done", "forever", "literal", "one", "start")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.any = self.one = self.done = self.start = self.forever = 0
        self.literal: dict[str, int] = {}
        bit = 1
        for pattern in patterns:
            segments = _segments(pattern)
            self.start |= bit
            for segment in segments:
                if segment == "**":
                    self.any |= bit
                elif segment == "*":
                    self.one |= bit
                else:
                    self.literal[segment] = self.literal.get(segment, 0) | bit
                bit <<= 1
            if segments[-1] == "**":
                self.forever |= bit >> 1
            self.done |= bit
            bit <<= 1
        self.start = self.opened(self.start)

    def opened(self, at: int) -> int:
        """With the places behind a ``**`` that stands for nothing; no two ``**`` are neighbours."""
        return at | (at & self.any) << 1

    def after(self, at: int, segment: str | None) -> int:
        """Where one may stand after a segment; None is one that no pattern names."""
        here = self.one if segment is None else self.one | self.literal.get(segment, 0)
        return self.opened((at & here) << 1 | at & self.any)

    def after_one(self, at: int) -> int:
        """Where one may stand after a segment of which nothing is known."""
        return self.opened((at & ~self.any & ~self.done) << 1 | at & self.any)

    def after_any(self, at: int) -> int:
        """Where one may stand in a single pattern after any number of segments: from the first
        place on, everywhere."""
        return at and (self.done << 1) - (at & -at)


def _segments(pattern: str) -> tuple[str, ...]:
    """Segments of a pattern, without a ``**`` next to another one, which adds nothing."""
    found: list[str] = []
    for segment in pattern.split("/"):
        if segment != "**" or not found or found[-1] != "**":
            found.append(segment)
    return tuple(found)


def overlaps(first: str, second: str) -> bool:
    """Whether some topic matches both of two topics or patterns.

    >>> overlaps("sensors/*/temp", "sensors/kitchen/**"), overlaps("a/*", "a/*/c")
    (True, False)
    """
    readings = _Readings([second])
    at = readings.start
    for segment in _segments(first):
        if segment == "**":
            at = readings.after_any(at)
        elif segment == "*":
            at = readings.after_one(at)
        else:
            at = readings.after(at, segment)
    return bool(at & readings.done)


def covers(rights: Iterable[str], pattern: str) -> bool:
    """Whether every topic that matches a pattern matches one of some others.

    False also where that is not shown within `COVER_STEPS`.

    >>> covers(["sensors/**"], "sensors/*/temp"), covers(["a/b", "a/c"], "a/*")
    (True, False)
    >>> covers(["*", "*/*/**"], "**")  # together, and neither of them alone
    True
    """
    readings = _Readings(rights)
    segments = _segments(pattern)
    if segments == ("**",):
        segments = ("*", "**")  # a topic has at least one segment
    # Each step stands at a place of the pattern, with all places of the rights that the same
    # segments lead to. One that is not covered is where the pattern has matched and no right has.
    steps = [(0, readings.start)]
    seen = set(steps)
    while steps:
        place, at = steps.pop()
        if at & readings.forever:
            continue
        if not at or (place == len(segments) and not at & readings.done):
            return False
        if place == len(segments):
            continue
        if len(seen) > COVER_STEPS:
            return False
        wanted = segments[place]
        following: list[tuple[int, int]] = []
        if wanted == "**":
            following.append((place + 1, at))
        if wanted in ("*", "**"):
            ahead = place + (wanted == "*")
            following.append((ahead, readings.after(at, None)))
            for segment, places in readings.literal.items():
                if places & at:
                    following.append((ahead, readings.after(at, segment)))
        else:
            following.append((place + 1, readings.after(at, wanted)))
        for step in following:
            if step not in seen:
                seen.add(step)
                steps.append(step)
    return True
