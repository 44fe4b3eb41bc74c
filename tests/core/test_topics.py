"""Topics and patterns: what is valid, what matches, and the indices against brute force."""

from __future__ import annotations

import enum
import itertools
import tracemalloc
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import pubsub.core.topics as topics_module
from pubsub.core.topics import (
    MAX_TOPIC_BYTES,
    MAX_TOPIC_SEGMENTS,
    PatternIndex,
    TopicIndex,
    check_pattern,
    check_topic,
    hears,
    is_pattern,
    matches,
)
from pubsub.errors import TopicError

# A tiny alphabet, so that what is drawn often meets.
topics = st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map("/".join)
patterns = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6).map("/".join)


def fits_by_definition(pattern: str, topic: str) -> bool:
    """What the words say, tried in every way there is."""
    wanted, given_ = pattern.split("/"), topic.split("/")

    @cache
    def fits(p: int, t: int) -> bool:
        if p == len(wanted):
            return t == len(given_)
        if wanted[p] == "**":
            return any(fits(p + 1, until) for until in range(t, len(given_) + 1))
        return t < len(given_) and wanted[p] in ("*", given_[t]) and fits(p + 1, t + 1)

    return fits(0, 0)


# --- what is valid ------------------------------------------------------------------------------

VALID = [
    "a",
    "sensors/kitchen/temp",
    "with space/and\u00a0another",
    "größe/温度/🌡️",
    ".",
    "a.b:c-d_e",
    "x" * MAX_TOPIC_BYTES,
    "/".join("a" * MAX_TOPIC_SEGMENTS),
    "é" * (MAX_TOPIC_BYTES // 2),
]

INVALID = [
    ("", "topic '' is empty: name at least one segment, such as 'sensors'"),
    ("a//b", "topic 'a//b' has an empty segment"),
    ("/a", "topic '/a' has an empty segment"),
    ("a/", "topic 'a/' has an empty segment"),
    ("/", "topic '/' has an empty segment"),
    ("a\nb", r"topic 'a\nb' has the control character '\n'"),
    ("a\x00", r"topic 'a\x00' has the control character '\x00'"),
    ("a\x7f", r"topic 'a\x7f' has the control character '\x7f'"),
    ("a\x85", r"topic 'a\x85' has the control character '\x85'"),
    ("a\ud800", r"topic 'a\ud800' has the lone surrogate '\ud800'"),
    ("x" * 1025, f"topic '{'x' * 60}…' is 1,025 bytes long, over 1,024"),
    ("é" * 513, f"topic '{'é' * 60}…' is 1,026 bytes long, over 1,024"),
    ("/".join("a" * 65), f"topic '{'a/' * 30}…' has 65 segments, over 64"),
]


@pytest.mark.parametrize("topic", VALID)
def test_any_printable_segments_make_a_topic_and_a_pattern(topic: str) -> None:
    assert check_topic(topic) == topic
    assert check_pattern(topic) == topic
    assert not is_pattern(topic)


@pytest.mark.parametrize(("topic", "problem"), INVALID)
def test_a_bad_topic_is_refused_with_its_name_and_its_problem(topic: str, problem: str) -> None:
    with pytest.raises(TopicError) as caught:
        check_topic(topic)
    assert str(caught.value) == caught.value.problem == problem
    assert caught.value.topic == topic


@pytest.mark.parametrize(("topic", "problem"), INVALID)
def test_what_is_no_topic_is_no_pattern(topic: str, problem: str) -> None:
    with pytest.raises(TopicError) as caught:
        check_pattern(topic)
    assert str(caught.value) == "pattern" + problem.removeprefix("topic")


@pytest.mark.parametrize("topic", ["*", "**", "a/*", "**/a", "sens*", "a/***"])
def test_a_pub_needs_a_topic_without_wildcards(topic: str) -> None:
    with pytest.raises(TopicError) as caught:
        check_topic(topic)
    assert str(caught.value) == (
        f"topic '{topic}' has a wildcard: a Pub needs one topic; patterns are for Sub"
    )


@pytest.mark.parametrize("pattern", ["*", "**", "a/*", "**/a/**", "*/*/**/**", "a/**/*/b"])
def test_wildcards_may_stand_anywhere_in_a_pattern(pattern: str) -> None:
    assert check_pattern(pattern) == pattern
    assert is_pattern(pattern)


@pytest.mark.parametrize("pattern", ["sens*", "*a", "a/b*c", "***", "a/****", "**a/b"])
def test_a_wildcard_in_a_part_of_a_segment_is_refused(pattern: str) -> None:
    with pytest.raises(TopicError) as caught:
        check_pattern(pattern)
    assert str(caught.value) == (
        f"pattern '{pattern}': a wildcard stands for a whole segment: use '*' or '**'"
    )


def test_who_splits_by_dots_is_told_what_splits() -> None:
    with pytest.raises(TopicError, match=r"use '\*' or '\*\*', and '/' between segments"):
        check_pattern("a.b.*")


@pytest.mark.parametrize("given_", [None, b"topic", 1, ["a"], object()])
def test_only_a_str_is_a_topic(given_: object) -> None:
    name = type(given_).__name__
    with pytest.raises(TopicError, match=f"^a topic must be a str, not {name}$") as caught:
        check_topic(given_)
    assert caught.value.topic is given_
    with pytest.raises(TopicError, match=f"^a pattern must be a str, not {name}$"):
        check_pattern(given_)


def test_a_str_of_a_subclass_comes_back_as_a_plain_str() -> None:
    class Named(str, enum.Enum):
        TEMP = "sensors/temp"

    assert check_topic(Named.TEMP) == "sensors/temp"
    assert type(check_topic(Named.TEMP)) is str


@given(st.text())
def test_any_text_is_taken_or_refused_with_a_topic_error_that_fits_into_goodbye(text: str) -> None:
    for check in (check_topic, check_pattern):
        refused = None
        try:
            assert check(text) == text
        except TopicError as error:
            refused = error
        if refused is not None:
            assert refused.topic == text
            assert 0 < len(str(refused).encode()) < 900
        else:
            assert len(text.encode()) <= MAX_TOPIC_BYTES
            assert all(text.split("/"))
            assert len(text.split("/")) <= MAX_TOPIC_SEGMENTS


@given(st.text(alphabet=st.characters(), min_size=60))
def test_a_message_about_a_long_text_stays_short(text: str) -> None:
    with pytest.raises(TopicError) as caught:
        check_topic(text * 30)
    assert len(str(caught.value)) < 900


def test_a_long_text_of_almost_valid_segments_is_refused_at_once() -> None:
    text = "a" * 1021 + "/a*"
    with pytest.raises(TopicError, match="a wildcard stands for a whole segment"):
        check_pattern(text)
    with pytest.raises(TopicError, match="512 segments"):
        check_pattern("a/" * 511 + "a*")


# --- what matches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("a/b", ["a/b"], ["a", "b", "a/b/c", "a/c"]),
        ("*", ["a", "b"], ["a/b"]),
        ("a/*", ["a/b", "a/c"], ["a", "a/b/c", "b/a"]),
        ("*/b", ["a/b"], ["b", "a/a/b"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("a/**", ["a", "a/b", "a/b/c"], ["b", "b/a"]),
        ("**/c", ["c", "b/c", "a/b/c"], ["c/a", "a"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/b/c", "a/c/c"], ["a", "c", "a/c/b", "b/c"]),
        ("**/b/**", ["b", "a/b", "b/a", "a/b/a"], ["a", "a/a"]),
        ("a/*/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("**/*", ["a", "a/b"], []),
        ("**/**", ["a", "a/b"], []),
        ("*/**/*", ["a/b", "a/b/c"], ["a"]),
    ],
)
def test_star_is_one_segment_and_double_star_any_number(
    pattern: str, hits: list[str], misses: list[str]
) -> None:
    assert [topic for topic in hits + misses if matches(pattern, topic)] == hits


@given(patterns, topics)
@settings(max_examples=1000)
def test_matches_does_what_the_words_say(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == fits_by_definition(pattern, topic)


def test_every_short_pattern_matches_just_what_it_should() -> None:
    shapes = [
        "/".join(p) for n in (1, 2, 3, 4) for p in itertools.product(["a", "*", "**"], repeat=n)
    ]
    names = ["/".join(t) for n in (1, 2, 3, 4) for t in itertools.product("ab", repeat=n)]
    topic_index: TopicIndex[str] = TopicIndex()
    pattern_index: PatternIndex[str] = PatternIndex()
    for name in names:
        topic_index.add(name, name)
    for shape in shapes:
        pattern_index.add(shape, shape)
    expected = {(s, n) for s in shapes for n in names if fits_by_definition(s, n)}
    assert {(s, n) for s in shapes for n in names if matches(s, n)} == expected
    assert {(s, n) for s in shapes for n in topic_index.match(s)} == expected
    assert {(s, n) for n in names for s in pattern_index.match(n)} == expected


# --- the indices --------------------------------------------------------------------------------

segments = st.sampled_from(["a", "b", "c"])
keys = st.integers(0, 3)


class Indices(RuleBasedStateMachine):
    """Both indices against plain sets of what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.topic_index: TopicIndex[int] = TopicIndex()
        self.pattern_index: PatternIndex[int] = PatternIndex()
        self.topics: set[tuple[str, int]] = set()
        self.patterns: set[tuple[str, int]] = set()

    @rule(topic=topics, key=keys)
    def add_topic(self, topic: str, key: int) -> None:
        self.topic_index.add(topic, key)
        self.topics.add((topic, key))

    @rule(pattern=topics | patterns, key=keys)
    def add_pattern(self, pattern: str, key: int) -> None:
        self.pattern_index.add(pattern, key)
        self.patterns.add((pattern, key))

    @rule(topic=topics, key=keys)
    def discard_any_topic(self, topic: str, key: int) -> None:
        self.topic_index.discard(topic, key)
        self.topics.discard((topic, key))

    @rule(pattern=topics | patterns, key=keys)
    def discard_any_pattern(self, pattern: str, key: int) -> None:
        self.pattern_index.discard(pattern, key)
        self.patterns.discard((pattern, key))

    @rule(data=st.data())
    def discard_a_known_one(self, data: st.DataObject) -> None:
        if self.topics:
            topic, key = data.draw(st.sampled_from(sorted(self.topics)))
            self.discard_any_topic(topic, key)
        if self.patterns:
            pattern, key = data.draw(st.sampled_from(sorted(self.patterns)))
            self.discard_any_pattern(pattern, key)

    @rule(pattern=topics | patterns)
    def match_a_pattern(self, pattern: str) -> None:
        expected = {key for topic, key in self.topics if fits_by_definition(pattern, topic)}
        assert self.topic_index.match(pattern) == expected

    @rule(topic=topics)
    def match_a_topic(self, topic: str) -> None:
        expected = {key for pattern, key in self.patterns if fits_by_definition(pattern, topic)}
        assert self.pattern_index.match(topic) == expected

    @invariant()
    def both_list_and_count_what_they_hold(self) -> None:
        for index, held in ((self.topic_index, self.topics), (self.pattern_index, self.patterns)):
            names = {name for name, _ in held}
            assert set(index) == names
            assert len(index) == len(names)
            for name in names | {"c"}:
                assert index.count(name) == sum(other == name for other, _ in held)

    def teardown(self) -> None:
        for topic, key in self.topics:
            self.topic_index.discard(topic, key)
        for pattern, key in self.patterns:
            self.pattern_index.discard(pattern, key)
        assert is_bare(self.topic_index, self.pattern_index)


def is_bare(topic_index: TopicIndex[int], pattern_index: PatternIndex[int]) -> bool:
    return (
        not topic_index._places
        and not topic_index._depths
        and not len(topic_index)
        and not len(pattern_index)
        and pattern_index._root.is_empty()
    )


TestIndices = Indices.TestCase
TestIndices.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_match_returns_belongs_to_the_caller() -> None:
    topic_index: TopicIndex[int] = TopicIndex()
    pattern_index: PatternIndex[int] = PatternIndex()
    for key in (1, 2):
        topic_index.add("a", key)
        pattern_index.add("a", key)
        pattern_index.add("*", key)
    for found in (topic_index.match("a"), topic_index.match("*"), pattern_index.match("a")):
        found.clear()
    assert topic_index.match("a") == topic_index.match("*") == pattern_index.match("a") == {1, 2}


def test_none_is_a_key_like_any_other() -> None:
    index: TopicIndex[int | None] = TopicIndex()
    index.discard("a", None)
    index.add("a", None)
    assert index.match("*") == {None}
    index.discard("a", 1)
    index.discard("a", None)
    assert not len(index)


def test_the_deepest_topics_and_patterns_need_no_recursion() -> None:
    topic = "/".join("a" * 512)
    stars = "/".join("*" * 512)
    topic_index: TopicIndex[int] = TopicIndex()
    pattern_index: PatternIndex[int] = PatternIndex()
    topic_index.add(topic, 1)
    for key, pattern in enumerate([topic, stars, "**", "**/" + "/".join("a" * 510)]):
        assert matches(pattern, topic)
        pattern_index.add(pattern, key)
        assert topic_index.match(pattern) == {1}
    assert pattern_index.match(topic) == {0, 1, 2, 3}
    assert pattern_index.match(topic + "/a") == {2, 3}
    for key, pattern in enumerate([topic, stars, "**", "**/" + "/".join("a" * 510)]):
        pattern_index.discard(pattern, key)
    topic_index.discard(topic, 1)
    assert is_bare(topic_index, pattern_index)


@pytest.mark.parametrize(
    "pattern", ["/".join(["**"] * 341), "/".join(["**", "a"] * 204) + "/b", "**/*/" * 170 + "b"]
)
def test_many_double_stars_do_not_blow_up(pattern: str) -> None:
    # An exponential or cubic way would not end while anybody waits for it.
    topic = "/".join("a" * 512)
    expected = not pattern.endswith("b")
    topic_index: TopicIndex[int] = TopicIndex()
    pattern_index: PatternIndex[int] = PatternIndex()
    topic_index.add(topic, 1)
    pattern_index.add(pattern, 1)
    assert matches(pattern, topic) == expected
    assert topic_index.match(pattern) == ({1} if expected else set())
    assert pattern_index.match(topic) == ({1} if expected else set())


@pytest.mark.parametrize(
    "pattern",
    [
        "**/room-7/**",
        "*/room-7/**",
        "*/room-7/**/temp",
        "site-7/**/room-7/*",
        "**/temp/**/room-7",
        "**/room-7/**/temp",
        "site-7/room-7/**",
        "*/*/**/site-7",
        "**/*/site-7",
    ],
)
def test_a_pattern_tries_no_more_topics_than_have_its_rarest_segment(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: TopicIndex[int] = TopicIndex()
    for number in range(1000):
        index.add(f"site-{number % 10}/room-{number}/temp", number)
    tried = []

    def counted(wanted: list[str], topic: list[str]) -> bool:
        tried.append(topic)
        return fits(wanted, topic)

    fits = topics_module._fits
    monkeypatch.setattr(topics_module, "_fits", counted)
    expected = {7} if matches(pattern, "site-7/room-7/temp") else set()
    tried.clear()
    assert index.match(pattern) == expected
    assert len(tried) <= 1


def test_what_is_discarded_leaves_no_memory_behind() -> None:
    topic_index: TopicIndex[int] = TopicIndex()
    pattern_index: PatternIndex[int] = PatternIndex()

    def churn(start: int) -> None:
        for number in range(start, start + 2000):
            name = f"{number}/x/{number}"
            topic_index.add(name, number)
            pattern_index.add(f"{name}/**", number)
            topic_index.discard(name, number)
            pattern_index.discard(f"{name}/**", number)

    churn(0)
    tracemalloc.start()
    try:
        churn(2000)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()
    assert is_bare(topic_index, pattern_index)


@pytest.mark.parametrize("topic", ["$stats", "$dead/letters"])
def test_no_pattern_matches_what_is_the_runtimes_own(topic: str) -> None:
    patterns_ = ["*", "**", "*/*", "**/letters", "*/letters", "$dead/*", "**/**"]
    assert [pattern for pattern in patterns_ if matches(pattern, topic)] == []
    assert matches(topic, topic)
    assert hears(topic, topic)
    index: PatternIndex[str] = PatternIndex()
    of_topics: TopicIndex[str] = TopicIndex()
    for pattern in (*patterns_, topic):
        index.add(pattern, pattern)
    of_topics.add(topic, topic)
    of_topics.add("plain/letters", "plain")
    assert index.match(topic) == {topic}
    assert {each for pattern in patterns_ for each in of_topics.match(pattern)} == {"plain"}
    assert of_topics.match(topic) == {topic}
    of_topics.discard(topic, topic)
    assert of_topics.match(topic) == set()
    assert len(of_topics) == 1
