"""Wildcards of other systems: which are found, and that it is said once."""

from __future__ import annotations

import logging

import pytest

from pubsub import Peer
from pubsub.faces.foreign import foreign_wildcard, warn_of_foreign_wildcards
from tests.integration.support import coordinator_in_loop


@pytest.mark.parametrize(
    ("topic", "wildcard", "ours"),
    [
        ("sensors/#", "#", "sensors/**"),
        ("#", "#", "**"),
        ("a/+", "+", "a/*"),
        ("+/a/+/b", "+", "*/a/*/b"),
        ("a/>", ">", "a/**"),
        (">", ">", "**"),
        ("a.b.>", ">", "a/b/**"),
        ("a.#", "#", "a/**"),
    ],
)
def test_one_of_another_system_is_found(topic: str, wildcard: str, ours: str) -> None:
    said = f"{topic!r}: {wildcard!r} is no wildcard here, write {ours!r}"
    assert foreign_wildcard(topic) == said


@pytest.mark.parametrize(
    "topic", ["a", "a/b", "a/*", "**", "c#", "c++/a", "a.b", "v1.2/>=3", "a+b", "a.b+", "x/a.>"]
)
def test_what_may_be_meant_is_let_be(topic: str) -> None:
    assert foreign_wildcard(topic) == ""


async def test_it_is_said_once_for_each_and_the_sub_is_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_foreign_wildcards.cache_clear()
    with caplog.at_level(logging.WARNING, "pubsub.foreign"):
        async with coordinator_in_loop() as coordinator, Peer(coordinator) as peer:
            for _ in range(2):
                sub, pub = await peer.sub("sensors/#"), await peer.pub("a/+")
            await peer.sub("sensors/**")
            assert (sub.topic, pub.topic) == ("sensors/#", "a/+")
    said = [record.getMessage() for record in caplog.records if record.name == "pubsub.foreign"]
    assert said == [
        "'sensors/#': '#' is no wildcard here, write 'sensors/**'",
        "'a/+': '+' is no wildcard here, write 'a/*'",
    ]
