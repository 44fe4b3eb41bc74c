"""Topics and patterns: what is a valid one, which match, and indices to find matches in.

A topic is segments split by ``/``. In a pattern the segment ``*`` stands for exactly one segment
and ``**`` for any number of them, also none, anywhere and as often as wanted: ``sensors/**``
matches ``sensors`` and ``sensors/kitchen/temp``.

Two indices answer the two questions that a registration raises. `PatternIndex` (which patterns
match this topic?) keeps the patterns in a trie and walks all of its matching paths at once.
`TopicIndex` (which topics match this pattern?) keeps for each place and segment the set of topics
that have it there, and intersects these sets, the smallest first; a trie would have to visit
every child where the pattern has a wildcard, so that ``*/rare`` would read all topics.
Both loop and never recurse, so depth is no danger; neither looks at what cannot match.
The functions and indices that match take texts that `check_topic` or `check_pattern` let pass.

Topics that begin with ``$`` are the runtime's own. No pattern matches them, as in MQTT: who wants
one names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator
from typing import Any, Generic, TypeVar

from pubsub.errors import TopicError

__all__ = [
    "MAX_TOPIC_BYTES",
    "MAX_TOPIC_SEGMENTS",
    "STATS",
    "STATS_STREAM",
    "PatternIndex",
    "TopicIndex",
    "check_pattern",
    "check_topic",
    "hears",
    "is_pattern",
    "is_reserved",
    "matches",
]

MAX_TOPIC_BYTES = 1024
"""Length that a topic or pattern may have, as UTF-8."""
MAX_TOPIC_SEGMENTS = 64
"""Segments that it may have. Each costs a coordinator an entry in an index."""

STATS = "$stats"
"""What each peer says of itself; see `pubsub.survey`."""
STATS_STREAM = 2**32 - 1
"""The number of that stream, in every peer."""

_ONE = "*"
_ANY = "**"

_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\ud800-\udfff"
_FORBIDDEN = re.compile(f"[{_UNPRINTABLE}]")
_LITERAL = f"[^/*{_UNPRINTABLE}]+"
_TOPIC = re.compile(f"{_LITERAL}(?:/{_LITERAL})*")
_PATTERN = re.compile(rf"(?:\*\*?|{_LITERAL})(?:/(?:\*\*?|{_LITERAL}))*")

K = TypeVar("K", bound=Hashable)
At = TypeVar("At", bound=Hashable)


def check_topic(topic: object) -> str:
    """The topic, if a Pub can have it.

    >>> check_topic("sensors/kitchen/temp")
    'sensors/kitchen/temp'

    Raises:
        TopicError: it is no str, is empty or has an empty segment, is longer than
            `MAX_TOPIC_BYTES`, has more than `MAX_TOPIC_SEGMENTS` segments, or has a wildcard, a
            control character or a lone surrogate.
    """
    return _checked(topic, "topic", _TOPIC)


def check_pattern(pattern: object) -> str:
    """The topic or pattern, if a Sub can have it.

    >>> check_pattern("sensors/*/temp")
    'sensors/*/temp'

    Raises:
        TopicError: as `check_topic` does, but only for wildcards that are part of a segment.
    """
    return _checked(pattern, "pattern", _PATTERN)


def _checked(text: object, what: str, valid: re.Pattern[str]) -> str:
    if not isinstance(text, str):
        raise TopicError(text, f"a {what} must be a str, not {type(text).__name__}")
    if len(text) > MAX_TOPIC_BYTES or not valid.fullmatch(text):
        raise TopicError(text, _problem(text, what))
    if len(text.encode()) > MAX_TOPIC_BYTES or text.count("/") >= MAX_TOPIC_SEGMENTS:
        raise TopicError(text, _problem(text, what))
    return str.__str__(text)  # a plain str also of an enum's member


def _problem(text: str, what: str) -> str:
    """What is wrong with a text that did not pass, in a sentence that fits into GOODBYE."""
    start = repr(text[:60])
    shown = f"{what} {start if len(text) <= 60 else start[:-1] + '…' + start[-1]}"
    if not text:
        return f"{shown} is empty: name at least one segment, such as 'sensors'"
    forbidden = _FORBIDDEN.search(text)
    if forbidden is not None:
        kind = "lone surrogate" if forbidden[0] >= "\ud800" else "control character"
        return f"{shown} has the {kind} {forbidden[0]!a}"
    size = len(text.encode())
    if size > MAX_TOPIC_BYTES:
        return f"{shown} is {size:,} bytes long, over {MAX_TOPIC_BYTES:,}"
    if "" in text.split("/"):
        return f"{shown} has an empty segment"
    segments = text.count("/") + 1
    if segments > MAX_TOPIC_SEGMENTS:
        return f"{shown} has {segments} segments, over {MAX_TOPIC_SEGMENTS}"
    if what == "topic":
        return f"{shown} has a wildcard: a Pub needs one topic; patterns are for Sub"
    by_dots = ", and '/' between segments" if ".*" in text or "*." in text else ""
    return f"{shown}: a wildcard stands for a whole segment: use '*' or '**'{by_dots}"


def is_pattern(text: str) -> bool:
    """Whether a checked topic or pattern has a wildcard."""
    return _ONE in text


def is_reserved(topic: str) -> bool:
    """Whether a topic is the runtime's own, which its name alone matches."""
    return topic.startswith("$")


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic or pattern matches a topic.

    >>> matches("sensors/*/temp", "sensors/kitchen/temp")
    True
    >>> matches("sensors/**", "sensors")
    True
    """
    return pattern == topic if is_reserved(topic) else _fits(pattern.split("/"), topic.split("/"))


def hears(subscribed: str, topic: str) -> bool:
    """Whether a Sub on that topic or pattern gets the messages of that topic."""
    return matches(subscribed, topic) if is_pattern(subscribed) else subscribed == topic


def _fits(pattern: list[str], topic: list[str]) -> bool:
    # The shortest stretch for each ** is enough to try: where the rest of the pattern up to the
    # next ** fits early, all that follows has the most room. So only the last ** is ever given
    # another segment, and the work is at most len(pattern) * len(topic).
    at = seen = 0
    after_any = -1  # in pattern: behind the last ** so far; in topic: where it stops
    any_until = 0
    while seen < len(topic):
        wanted = pattern[at] if at < len(pattern) else None
        if wanted == _ANY:
            at += 1
            after_any, any_until = at, seen
        elif wanted == _ONE or wanted == topic[seen]:
            at += 1
            seen += 1
        elif after_any >= 0:
            any_until += 1
            at, seen = after_any, any_until
        else:
            return False
    return all(segment == _ANY for segment in pattern[at:])


class _Multimap(Generic[At, K]):
    """Any number of items at each place.

    A single item, by far the most frequent case, is kept bare: that saves the 216 bytes of a set.
    An item is never a set itself, because a set has no hash.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[At, Any] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[At]:
        return iter(self._at)

    def add(self, at: At, item: K) -> bool:
        """Add an item; whether it is the first one there."""
        places = len(self._at)
        here = self._at.setdefault(at, item)
        if len(self._at) > places:
            return True
        if type(here) is set:
            here.add(item)
        elif here != item:
            self._at[at] = {here, item}
        return False

    def discard(self, at: At, item: K) -> bool:
        """Take an item away, if it is there; whether it was the last one."""
        if at not in self._at:
            return False
        here = self._at[at]
        if type(here) is set:
            here.discard(item)
            if len(here) == 1:
                self._at[at] = here.pop()
            return False
        if here != item:
            return False
        del self._at[at]
        return True

    def get(self, at: At) -> Collection[K]:
        """The items there; not to be kept, since it may change with the next call."""
        if at not in self._at:
            return ()
        here = self._at[at]
        return here if type(here) is set else (here,)


class _Node:
    """One segment of one or more patterns."""

    __slots__ = ("any", "literal", "one", "pattern")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] | None = None
        self.one: _Node | None = None
        self.any: _Node | None = None
        self.pattern: str | None = None
        """The pattern that ends here."""

    def child(self, segment: str) -> _Node | None:
        if segment == _ONE:
            return self.one
        if segment == _ANY:
            return self.any
        return self.literal.get(segment) if self.literal is not None else None

    def grow(self, segment: str) -> _Node:
        node = _Node()
        if segment == _ONE:
            self.one = node
        elif segment == _ANY:
            self.any = node
        elif self.literal is None:
            self.literal = {segment: node}
        else:
            self.literal[segment] = node
        return node

    def prune(self, segment: str) -> None:
        if segment == _ONE:
            self.one = None
        elif segment == _ANY:
            self.any = None
        else:
            assert self.literal is not None
            del self.literal[segment]
            if not self.literal:
                self.literal = None

    def is_empty(self) -> bool:
        return self.pattern is None and self.is_leaf()

    def is_leaf(self) -> bool:
        return self.literal is None and self.one is None and self.any is None


class PatternIndex(Generic[K]):
    """Keys under patterns, to be found by the topics that these match.

    A topic without a wildcard is a pattern too, and costs one entry of a dict.

    >>> index = PatternIndex()
    >>> index.add("sensors/*/temp", "first")
    >>> index.match("sensors/kitchen/temp")
    {'first'}
    """

    __slots__ = ("_keys", "_root")

    def __init__(self) -> None:
        self._keys: _Multimap[str, K] = _Multimap()
        self._root = _Node()

    def __len__(self) -> int:
        """How many different patterns there are."""
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        """The patterns, each once."""
        return iter(self._keys)

    def count(self, pattern: str) -> int:
        """How many keys this very pattern has."""
        return len(self._keys.get(pattern))

    def add(self, pattern: str, key: K) -> None:
        """Put a key under a pattern; once, however often it is added."""
        if not self._keys.add(pattern, key) or not is_pattern(pattern):
            return
        node = self._root
        for segment in pattern.split("/"):
            node = node.child(segment) or node.grow(segment)
        node.pattern = pattern

    def discard(self, pattern: str, key: K) -> None:
        """Take a key away from a pattern; nothing happens where it is not."""
        if not self._keys.discard(pattern, key) or not is_pattern(pattern):
            return
        node = self._root
        path: list[tuple[_Node, str]] = []
        for segment in pattern.split("/"):
            path.append((node, segment))
            child = node.child(segment)
            assert child is not None, f"{pattern!r} is in the keys and not in the trie"
            node = child
        node.pattern = None
        while path and node.is_empty():
            node, segment = path.pop()
            node.prune(segment)

    def match(self, topic: str) -> set[K]:
        """The keys of all patterns that match a topic, as a set of the caller's own."""
        found = set(self._keys.get(topic))
        if not self._root.is_leaf() and not is_reserved(topic):
            for pattern in self._patterns(topic):
                found.update(self._keys.get(pattern))
        return found

    def _patterns(self, topic: str) -> list[str]:
        # All nodes that some reading of the segments so far leads to. A ** that was reached once
        # takes every further segment, so these are kept apart and only ever grow. That also keeps
        # the nodes unique: any other node is reached by its parent in the step before, only.
        reached = [self._root]
        open_any: dict[_Node, None] = {}
        _open(self._root, open_any)
        for segment in topic.split("/"):
            ahead: list[_Node] = []
            for nodes in (reached, open_any):
                for node in nodes:
                    if node.literal is not None and (child := node.literal.get(segment)):
                        ahead.append(child)
                    if node.one is not None:
                        ahead.append(node.one)
            for node in ahead:
                if node.any is not None:
                    _open(node, open_any)
            reached = ahead
            if not reached and not open_any:
                break
        return [n.pattern for nodes in (reached, open_any) for n in nodes if n.pattern is not None]


def _open(node: _Node, open_any: dict[_Node, None]) -> None:
    below = node.any
    while below is not None and below not in open_any:
        open_any[below] = None
        below = below.any


class TopicIndex(Generic[K]):
    """Keys under topics, to be found by the patterns that match these.

    A topic is found in one step by its own name. For a pattern the work grows with the topics
    that share its rarest segment, which may be more than match it, but never are all topics
    unless each has every segment that the pattern names.

    >>> index = TopicIndex()
    >>> index.add("sensors/kitchen/temp", "first")
    >>> index.match("sensors/**")
    {'first'}
    """

    __slots__ = ("_depths", "_keys", "_places")

    def __init__(self) -> None:
        self._keys: _Multimap[str, K] = _Multimap()
        self._places: list[_Multimap[str, str]] = []
        """By place, counted from the start: segment → the topics that have it there."""
        self._depths: _Multimap[int, str] = _Multimap()
        """Number of segments → the topics that have so many."""

    def __len__(self) -> int:
        """How many different topics there are."""
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        """The topics, each once."""
        return iter(self._keys)

    def count(self, topic: str) -> int:
        """How many keys this very topic has."""
        return len(self._keys.get(topic))

    def add(self, topic: str, key: K) -> None:
        """Put a key under a topic; once, however often it is added."""
        if not self._keys.add(topic, key) or is_reserved(topic):
            return
        segments = topic.split("/")
        self._depths.add(len(segments), topic)
        while len(self._places) < len(segments):
            self._places.append(_Multimap())
        for place, segment in zip(self._places, segments, strict=False):
            place.add(segment, topic)

    def discard(self, topic: str, key: K) -> None:
        """Take a key away from a topic; nothing happens where it is not."""
        if not self._keys.discard(topic, key) or is_reserved(topic):
            return
        segments = topic.split("/")
        self._depths.discard(len(segments), topic)
        for place, segment in zip(self._places, segments, strict=False):
            place.discard(segment, topic)
        while self._places and not self._places[-1]:
            self._places.pop()

    def match(self, pattern: str) -> set[K]:
        """The keys of all topics that a topic or pattern matches, as a set of the caller's own."""
        if not is_pattern(pattern):
            return set(self._keys.get(pattern))
        found: set[K] = set()
        for topic in self._topics(pattern.split("/")):
            found.update(self._keys.get(topic))
        return found

    def _topics(self, pattern: list[str]) -> Collection[str]:
        fixed = pattern.index(_ANY) if _ANY in pattern else len(pattern)
        having = [
            self._places[place].get(segment) if place < len(self._places) else ()
            for place, segment in enumerate(pattern[:fixed])
            if segment != _ONE
        ]
        if fixed == len(pattern):  # without a ** the depth is known, and each segment's place
            return _common([*having, self._depths.get(fixed)])
        floating = self._rarest(pattern, fixed)
        if floating is None and not having:  # only wildcards: the depth decides
            least = sum(segment != _ANY for segment in pattern)
            deep = [self._depths.get(depth) for depth in self._depths if depth >= least]
            return [topic for topics in deep for topic in topics]
        if floating is not None:
            # To try a topic takes some 20 times as long as to look it up in a set.
            size = sum(map(len, floating))
            if not having or size < 10 * min(map(len, having)):
                having.append(set().union(*floating))
        found = _common(having)
        if fixed == len(pattern) - 1 and pattern[fixed - 1] != _ONE:  # a/*/b/**
            return found
        return [topic for topic in found if _fits(pattern, topic.split("/"))]

    def _rarest(self, pattern: list[str], fixed: int) -> list[Collection[str]] | None:
        """The topics with the rarest segment behind the first ``**``, by the place they have it."""
        best: list[Collection[str]] | None = None
        least = 0
        earliest = fixed
        for segment in pattern[fixed:]:
            if segment == _ANY:
                continue
            if segment != _ONE:
                topics = [place.get(segment) for place in self._places[earliest:]]
                size = sum(map(len, topics))
                if best is None or size < least:
                    best, least = topics, size
            earliest += 1
        return best


def _common(sources: list[Collection[str]]) -> set[str]:
    smallest, *others = sorted(sources, key=len)
    return set(smallest).intersection(*others)
