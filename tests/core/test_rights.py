"""Rights: what they allow, how they are written, and covering and overlapping by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pubsub.core.rights as rights_module
from pubsub.core.rights import ALL, EVERYTHING, NONE, Rights, covers, overlaps
from pubsub.core.topics import MAX_TOPIC_SEGMENTS, STATS, matches
from pubsub.errors import TopicError

LONGEST = 4
patterns = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=LONGEST).map(
    "/".join
)
# Every topic of a, b and a segment that no pattern names, up to a length at which each pattern
# has met each place of another one.
TOPICS = [
    "/".join(topic)
    for length in range(1, 2 * LONGEST)
    for topic in itertools.product("abz", repeat=length)
]


# --- what is allowed ----------------------------------------------------------------------------


def test_rights_allow_the_topics_of_their_patterns_and_no_others() -> None:
    rights = Rights(["sensors/kitchen/**"], ["config/*"])
    assert rights.may_publish("sensors/kitchen/temp")
    assert not rights.may_publish("sensors/attic/temp")
    assert not rights.may_publish("config/a")
    assert rights.may_subscribe("config/a")
    assert not rights.may_subscribe("config/a/b")
    assert not rights.may_subscribe("sensors/kitchen/temp")
    assert rights.may_see("config/a")
    assert rights.may_see("sensors/kitchen/temp")
    assert not rights.may_see("other")
    assert rights.may_see("config/*")
    assert rights.may_see("sensors/kitchen/*/x")
    assert not rights.may_see("config/**")
    assert not EVERYTHING.may_see(STATS)  # no listing shows it, whoever may have it


def test_everything_and_none() -> None:
    assert EVERYTHING.may_publish("a/b")
    assert EVERYTHING.may_subscribe("a/b")
    assert EVERYTHING.covers("**")
    assert (EVERYTHING.coordinator, EVERYTHING.relay, EVERYTHING.list) == (True,) * 3
    assert ALL is EVERYTHING
    assert not NONE.may_publish("a")
    assert not NONE.may_subscribe("a")
    assert not NONE.part("**")
    assert not NONE.covers("a")
    assert (NONE.coordinator, NONE.relay, NONE.list) == (False,) * 3


def test_the_part_of_a_pattern_is_what_both_can_match() -> None:
    rights = Rights(subscribe=["sensors/kitchen/**", "*/attic", "config/*"])
    assert rights.part("sensors/*") == ("sensors/kitchen/**", "*/attic")
    assert rights.part("log/**") == ("*/attic",)
    assert rights.part("log") == ()
    assert not rights.covers("sensors/*")
    assert rights.covers("sensors/kitchen/*/x")


def test_patterns_are_checked_and_kept_once() -> None:
    assert Rights(["a", "a", "b"]).publish == ("a", "b")
    with pytest.raises(TopicError, match="empty segment"):
        Rights(subscribe=["a//b"])


def test_rights_do_not_change_and_compare_by_what_they_allow() -> None:
    rights = Rights(["a"], ["b"], list=True)
    assert rights == Rights(("a",), ("b",), list=True)
    assert rights != Rights(["a"], ["b"])
    assert len({rights, Rights(["a"], ["b"], list=True)}) == 1
    assert pickle.loads(pickle.dumps(rights)) == rights
    with pytest.raises(dataclasses.FrozenInstanceError):
        rights.list = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        (EVERYTHING, "may do everything"),
        (NONE, "may publish and subscribe nothing"),
        (Rights(["**"]), "may publish everything and subscribe nothing"),
        (
            Rights(["a", "b/*"], ["c", "d", "e"], coordinator=True, relay=True, list=True),
            "may publish 'a' and 'b/*' and subscribe 'c', 'd', 'e'; may be a coordinator; "
            "may be a relay; may list all peers",
        ),
    ],
)
def test_rights_in_words(rights: Rights, words: str) -> None:
    assert str(rights) == words


def test_many_patterns_are_told_by_their_number() -> None:
    rights = Rights([f"a{n}" for n in range(100)])
    assert rights.may("publish").startswith("may publish 'a0', 'a1', ")
    assert rights.may("publish").endswith(", 92 more")
    assert rights.may("subscribe") == "may subscribe nothing"
    assert "'a99'" in str(rights)


# --- as URIs ------------------------------------------------------------------------------------


@given(
    st.builds(
        Rights,
        st.lists(st.sampled_from(["a", "größe/**", "a b/%", "*/温度", "x?y#z", "a:b"])),
        st.lists(st.sampled_from(["**", "100%/*", '"quoted"', "a\\b", "a+b&c"])),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
)
def test_uris_bring_back_what_was_written(rights: Rights) -> None:
    uris = rights.to_uris()
    assert all(uri.isascii() and " " not in uri for uri in uris)
    assert Rights.from_uris(uris) == (rights, ())


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("pubsubd:publish:a%ff", "not UTF-8"),
        ("pubsubd:publish:a%c3", "not UTF-8"),
        ("pubsubd:publish:a%ed%a0%80", "not UTF-8"),  # a lone surrogate
        ("pubsubd:publish:a%2", "not percent-encoded"),
        ("pubsubd:publish:a%zz", "not percent-encoded"),
        ("pubsubd:publish:größe", "not percent-encoded"),
        ("pubsubd:publish:a b", "not percent-encoded"),
        ("pubsubd:publish:", "not percent-encoded"),
        ("pubsubd:publish:a%00", "control character"),
        ("pubsubd:publish:a//b", "empty segment"),
        ("pubsubd:publish:a*", "wildcard stands for a whole segment"),
        ("pubsubd:publish", "knows no such one"),
        ("pubsubd:list:", "knows no such one"),
        ("pubsubd:Publish:a", "knows no such one"),
        ("PUBSUBD:write:a", "knows no such one"),
        ("pubsubd:", "knows no such one"),
    ],
)
def test_a_uri_that_does_not_decode_gives_no_right_and_is_reported(uri: str, problem: str) -> None:
    rights, problems = Rights.from_uris([uri, "pubsubd:subscribe:b"])
    assert rights == Rights(subscribe=["b"])
    (said,) = problems
    assert ascii(uri) in said
    assert problem in said


def test_uris_of_others_are_passed_over() -> None:
    assert Rights.from_uris(["spiffe://example/a", "https://pubsubd:publish:a", ""]) == (NONE, ())


# --- overlapping and covering -------------------------------------------------------------------


@given(patterns, patterns)
@example("**", "**")
@example("a/**", "**/a")
@example("*/**", "a")
@settings(max_examples=600)
def test_patterns_overlap_where_some_topic_matches_both(first: str, second: str) -> None:
    expected = any(matches(first, topic) and matches(second, topic) for topic in TOPICS)
    assert overlaps(first, second) is expected
    assert overlaps(second, first) is expected


@given(st.lists(patterns, max_size=3), patterns)
@example(["*/**"], "**")
@example(["a/*/**"], "a/**/a/*")
@example(["**/a/*"], "a/**/a/*")
@example(["*", "*/*/**"], "**")
@example(["a", "a/*/**"], "a/**")
@example([], "a")
@settings(max_examples=600)
def test_rights_cover_a_pattern_where_no_topic_of_it_is_outside(
    rights: list[str], pattern: str
) -> None:
    outside = [
        topic
        for topic in TOPICS
        if matches(pattern, topic) and not any(matches(right, topic) for right in rights)
    ]
    assert covers(rights, pattern) is (not outside)


def test_covering_gives_up_on_what_doubles_with_each_segment() -> None:
    hard = "/".join(["**", "a", *["*"] * (MAX_TOPIC_SEGMENTS - 3)])
    assert covers([hard], hard) is False  # true, and not shown within the steps
    assert covers([hard, "**"], hard)


def test_the_steps_are_what_bounds_covering(monkeypatch: pytest.MonkeyPatch) -> None:
    assert covers(["**/a/*/*"], "**/a/*/*")
    monkeypatch.setattr(rights_module, "COVER_STEPS", 3)
    assert not covers(["**/a/*/*"], "**/a/*/*")


def test_the_longest_patterns_overlap_at_once() -> None:
    first = "/".join(["**", "*"] * (MAX_TOPIC_SEGMENTS // 2))
    second = "/".join(["**", "a"] * (MAX_TOPIC_SEGMENTS // 2))
    assert overlaps(first, second)
    assert not overlaps(f"{first[:-2]}/b", second)
