"""The registry: who is told what, by example and against a model that scans everything."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import pubsub.coordinator.registry as registry_module
from pubsub.config import Address
from pubsub.coordinator import records
from pubsub.coordinator.registry import SWEEP, Push, Registry
from pubsub.core.rights import EVERYTHING, NONE, Rights
from pubsub.core.topics import STATS, STATS_STREAM, matches
from pubsub.errors import ProtocolError
from pubsub.wire.handshake import place_of, tcp
from pubsub.wire.messages import (
    Expect,
    ExpectedSub,
    Match,
    MatchedPub,
    Refused,
    Register,
    encode,
    parse,
)
from tests.wire.said import matched

INFO = {"name": "camera", "pid": 4711, "hostname": "box", "library": "1.0"}


def pub(id: int, topic: str = "t", *, renewed: bool = False) -> Register:
    return Register(id, "pub", topic, renewed, False)


def sub(id: int, topic: str = "t", *, renewed: bool = False, observer: bool = False) -> Register:
    return Register(id, "sub", topic, renewed, observer)


def match(
    id: int,
    added: Iterable[MatchedPub] = (),
    removed: Iterable[tuple[str, int]] = (),
    *,
    revision: int,
) -> Match:
    return Match(id, revision, True, tuple(added), tuple(removed))


def expect(
    id: int,
    added: Iterable[ExpectedSub] = (),
    removed: Iterable[tuple[str, int]] = (),
    *,
    revision: int,
) -> Expect:
    return Expect(id, revision, True, tuple(added), tuple(removed))


def row(
    peer_id: str, id: int, topic: str = "t", port: int = 1, *, before: bool = False
) -> MatchedPub:
    return matched(peer_id, f"{peer_id}.net", port, id, topic, before)


def connected(*peer_ids: str, registry: Registry | None = None, port: int = 1) -> Registry:
    registry = registry if registry is not None else Registry()
    for peer_id in peer_ids:
        assert registry.connect(peer_id, tcp(f"{peer_id}.net", port), INFO, 0.0) == []
    return registry


# --- who is told what ---------------------------------------------------------------------------


def test_a_first_sub_is_answered_though_nothing_matches() -> None:
    registry = connected("A")
    assert registry.register("A", sub(1), 0.0) == [("A", match(1, revision=1))]


def test_a_first_pub_is_answered_though_nothing_matches() -> None:
    registry = connected("A")
    assert registry.register("A", pub(1), 0.0) == [("A", expect(1, revision=1))]


def test_a_new_sub_is_told_its_publishers_and_these_to_expect_it() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    assert registry.register("B", sub(7, "*", observer=True), 0.0) == [
        ("B", match(7, [row("A", 1)], revision=2)),
        ("A", expect(1, [ExpectedSub("B", 7, False, True)], revision=2)),
    ]


def test_g4_a_sub_that_was_there_before_the_pub_is_marked_so() -> None:
    registry = connected("A", "B")
    registry.register("A", sub(1, "**"), 0.0)
    assert registry.register("B", pub(2), 0.0) == [
        ("B", expect(2, [ExpectedSub("A", 1, True, False)], revision=2)),
        ("A", match(1, [row("B", 2, before=True)], revision=2)),
    ]


@pytest.mark.parametrize(
    ("sub_first", "sub_renewed", "pub_renewed", "before"),
    [
        (True, False, False, True),
        (True, True, False, True),
        (True, False, True, True),
        (True, True, True, True),
        (False, False, False, False),
        (False, True, False, True),
        (False, False, True, False),
        (False, True, True, False),
    ],
)
def test_g4_a_sub_from_before_a_restart_is_older_than_a_pub_from_after_it(
    sub_first: bool, sub_renewed: bool, pub_renewed: bool, before: bool
) -> None:
    registry = connected("P", "S")
    calls = [("S", sub(1, renewed=sub_renewed)), ("P", pub(2, renewed=pub_renewed))]
    pushes: list[Push] = []
    for peer_id, message in calls if sub_first else reversed(calls):
        pushes += registry.register(peer_id, message, 0.0)
    (told,) = [m.added for _, m in pushes if isinstance(m, Expect) and m.added]
    assert told == (ExpectedSub("S", 1, before, False),)


def test_a_pub_and_a_sub_of_one_peer_match_like_all_others() -> None:
    registry = connected("A")
    registry.register("A", pub(1), 0.0)
    assert registry.register("A", sub(2), 0.0) == [
        ("A", match(2, [row("A", 1)], revision=2)),
        ("A", expect(1, [ExpectedSub("A", 2, False, False)], revision=2)),
    ]


def test_matches_come_oldest_first_in_every_run() -> None:
    registry = connected("A", "B")
    for id in range(50):
        registry.register("A", pub(id, f"t/{id % 7}"), 0.0)
    ((_, answer), *deltas) = registry.register("B", sub(1, "t/*"), 0.0)
    assert isinstance(answer, Match)
    assert [r.stream_id for r in answer.added] == list(range(50))
    assert [m.stream_id for _, m in deltas if isinstance(m, Expect)] == list(range(50))


@pytest.mark.parametrize(("count", "sizes"), [(499, [499]), (500, [500]), (1001, [500, 500, 1])])
def test_a_long_answer_comes_in_parts_of_which_only_the_last_is_complete(
    count: int, sizes: list[int]
) -> None:
    registry = connected("A", "B")
    for id in range(count):
        registry.register("A", pub(id), 0.0)
    pushes = registry.register("B", sub(1), 0.0)
    parts = [m for _, m in pushes if isinstance(m, Match)]
    assert [len(m.added) for m in parts] == sizes
    assert [m.complete for m in parts] == [False] * (len(sizes) - 1) + [True]
    assert {m.revision for m in parts} == {count + 1}
    assert all(m.complete for _, m in pushes if isinstance(m, Expect))


def test_what_is_closed_is_taken_from_those_who_matched() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.register("B", sub(2), 0.0)
    assert registry.unregister("B", 2) == [("A", expect(1, removed=[("B", 2)], revision=3))]
    registry.register("B", sub(3), 0.0)
    assert registry.unregister("A", 1) == [("B", match(3, removed=[("A", 1)], revision=5))]
    assert registry.unregister("A", 1) == []
    assert registry.unregister("nobody", 1) == []


def test_what_leaves_together_is_told_in_one_frame_to_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 2000)
    registry = connected("A", "B", "C")
    registry.register("A", sub(1, "**"), 0.0)
    registry.register("C", sub(1, "t/3"), 0.0)
    for id in range(600):
        registry.register("B", pub(id, f"t/{id}"), 0.0)
    pushes = registry.leave("B")
    assert pushes == [
        ("A", match(1, removed=[("B", id) for id in range(500)], revision=1202)),
        ("A", match(1, removed=[("B", id) for id in range(500, 600)], revision=1202)),
        ("C", match(1, removed=[("B", 3)], revision=1202)),
    ]
    assert [r["peer_id"] for r in registry.peers()] == ["A", "C"]
    assert registry.next_expiry() is None
    assert registry.leave("B") == []


class Told:
    """What is known by those who were told."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], set[tuple[str, int]]] = {}

    def hear(self, pushes: list[Push]) -> list[Push]:
        for peer_id, message in pushes:
            assert not isinstance(message, Refused)
            id = message.sub_id if isinstance(message, Match) else message.stream_id
            known = self.known.setdefault((peer_id, id), set())
            for row_ in message.added:
                known.add((row_[0], row_.stream_id if isinstance(row_, MatchedPub) else row_[1]))
            assert known.issuperset(message.removed)
            known.difference_update(message.removed)
        return pushes


@pytest.mark.parametrize("way", ["leave", "expire"])
def test_what_a_peer_had_goes_piece_by_piece(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 100)
    registry, told = connected("A", "B", "C"), Told()
    told.hear(registry.register("A", sub(1, "**"), 0.0))
    for id in range(300):
        told.hear(registry.register("B", pub(id, f"t/{id}"), 0.0))
    registry.lose("B", 0.0)
    (first,) = told.hear(registry.leave("B") if way == "leave" else registry.expire(5.0))
    assert isinstance(first[1], Match)
    assert len(first[1].removed) == 50, "a registration and a row each"
    assert [r["peer_id"] for r in registry.peers()] == ["A", "C"]
    assert registry.next_expiry() is None
    told.hear(registry.register("C", sub(1, "**"), 6.0))
    assert len(told.known["C", 1]) == 250, "what has not gone yet counts, and is told when it goes"
    assert told.hear(registry.unregister("C", 1)) == []
    told.hear(registry.register("C", sub(2, "t/299"), 6.0))
    while registry.sweeping:
        for _, message in told.hear(registry.sweep()):
            assert not isinstance(message, Refused)
            assert len(message.removed) <= 50
    assert told.known["A", 1] == told.known["C", 2] == set()
    assert [r["topic"] for r in registry.topics()] == ["**", "t/299"]
    assert registry.sweep() == []


def test_a_peer_that_goes_while_another_is_being_taken_away_waits_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 2)
    registry = connected("A", "B")
    for id in range(3):
        registry.register("A", pub(id), 0.0)
        registry.register("B", pub(id), 0.0)
    registry.leave("A")
    registry.leave("B")
    left = [next(iter(registry.topics()))["publishers"]]
    while registry.sweeping:
        registry.sweep()
        left += [r["publishers"] for r in registry.topics()]
    assert left == [4, 2]


def test_a_peer_that_comes_back_before_all_it_had_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 4)
    registry, told = connected("A", "B"), Told()
    told.hear(registry.register("A", sub(1, "**"), 0.0))
    for id in range(10):
        told.hear(registry.register("B", pub(id, f"t/{id}"), 0.0))
    told.hear(registry.leave("B"))
    assert len(told.known["A", 1]) == 8
    connected("B", registry=registry)
    assert not registry.sweeping
    assert registry.next_expiry() == 5.0
    assert len(registry.register("B", pub(0, "t/0"), 1.0)) == 2, "it is new, and told so"
    assert len(registry.register("B", pub(9, "t/9"), 1.0)) == 1, "it was not gone"
    told.hear(registry.expire(6.0))
    assert registry.sweeping
    registry.register("B", pub(8, "t/8", renewed=True), 6.0)
    while registry.sweeping:
        told.hear(registry.sweep())
    assert told.known["A", 1] == {("B", 9), ("B", 8)}
    assert [r["pubs"] for r in registry.peers()] == [0, 3]


def test_another_topic_or_role_under_the_same_id_replaces() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1, "old"), 0.0)
    registry.register("B", sub(5, "*"), 0.0)
    assert registry.register("A", pub(1, "new"), 0.0) == [
        ("B", match(5, removed=[("A", 1)], revision=3)),
        ("A", expect(1, [ExpectedSub("B", 5, True, False)], revision=4)),
        ("B", match(5, [row("A", 1, "new", before=True)], revision=4)),
    ]
    assert registry.register("A", sub(1, "new"), 0.0) == [
        ("B", match(5, removed=[("A", 1)], revision=5)),
        ("A", match(1, revision=6)),
    ]
    assert list(registry.topics()) == [
        {"topic": "*", "publishers": 0, "subscribers": 1},
        {"topic": "new", "publishers": 0, "subscribers": 2},
    ]


def test_a_sub_that_turns_into_an_observer_is_another_one() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.register("B", sub(2), 0.0)
    assert registry.register("B", sub(2, observer=True), 0.0) == [
        ("A", expect(1, removed=[("B", 2)], revision=3)),
        ("B", match(2, [row("A", 1)], revision=4)),
        ("A", expect(1, [ExpectedSub("B", 2, False, True)], revision=4)),
    ]


def test_registering_again_on_one_connection_is_answered_and_changes_nothing() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.register("B", sub(2), 0.0)
    answer = [("B", match(2, [row("A", 1)], revision=2))]
    assert registry.register("B", sub(2, renewed=True), 0.0) == answer
    assert registry.register("A", pub(1), 0.0) == [
        ("A", expect(1, [ExpectedSub("B", 2, False, False)], revision=2))
    ]


# --- peers that go and come ---------------------------------------------------------------------


def test_a_connection_that_breaks_is_told_to_nobody_within_the_grace() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.register("B", sub(2), 0.0)
    assert registry.lose("A", 10.0) == []
    assert registry.next_expiry() == 15.0
    assert registry.expire(14.9) == []
    assert registry.expire(15.0) == [("B", match(2, removed=[("A", 1)], revision=3))]
    assert registry.next_expiry() is None
    assert [r["peer_id"] for r in registry.peers()] == ["B"]


def test_a_new_sub_is_told_of_a_pub_whose_peer_is_away_for_a_moment() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.lose("A", 0.0)
    assert registry.register("B", sub(2), 1.0) == [("B", match(2, [row("A", 1)], revision=2))]
    connected("A", registry=registry)
    assert registry.register("A", pub(1, renewed=True), 2.0) == [
        ("A", expect(1, [ExpectedSub("B", 2, False, False)], revision=2))
    ]


@pytest.mark.parametrize("broken_first", [True, False], ids=["lost", "replaced"])
def test_a_returning_peer_keeps_its_revisions_and_gets_the_whole_answer(broken_first: bool) -> None:
    registry = connected("A", "B")
    registry.register("A", sub(1), 0.0)
    registry.register("B", pub(2), 0.0)
    if broken_first:
        registry.lose("A", 1.0)
    connected("A", registry=registry)
    # Not before it has registered: the first frame for a Sub must be its whole answer.
    assert registry.register("B", pub(3), 2.0) == [
        ("B", expect(3, [ExpectedSub("A", 1, True, False)], revision=3))
    ]
    assert registry.register("A", sub(1, renewed=True), 3.0) == [
        ("A", match(1, [row("B", 2, before=True), row("B", 3, before=True)], revision=3))
    ]
    assert registry.next_expiry() is None
    connected("B", registry=registry)
    assert registry.register("B", pub(2, renewed=True), 3.0) == [
        ("B", expect(2, [ExpectedSub("A", 1, True, False)], revision=3))
    ]


def test_renewed_counts_as_this_coordinator_first_heard_it() -> None:
    registry = connected("P", "S")
    registry.register("P", pub(1), 0.0)
    registry.register("S", sub(2), 0.0)
    connected("S", registry=registry)
    registry.register("S", sub(2, renewed=True), 1.0)
    connected("P", registry=registry)
    assert registry.register("P", pub(1, renewed=True), 1.0) == [
        ("P", expect(1, [ExpectedSub("S", 2, False, False)], revision=2))
    ]


def test_a_returning_peer_at_another_address_is_told_to_its_subscribers() -> None:
    registry = connected("A", "B", "C")
    registry.register("A", pub(1), 0.0)
    registry.register("B", sub(2), 0.0)
    registry.register("A", sub(9), 0.0)
    registry.lose("A", 0.0)
    connected("A", registry=registry, port=2)
    connected("A", registry=registry, port=2)  # the change is not forgotten over another try
    assert registry.register("C", sub(3), 1.0) == [
        ("C", match(3, [row("A", 1, port=2)], revision=4)),
    ]
    assert registry.register("A", pub(1, renewed=True), 1.0)[1:] == [
        ("B", match(2, [row("A", 1, port=2)], revision=4)),
        ("C", match(3, [row("A", 1, port=2)], revision=4)),
    ]
    assert len(registry.register("A", sub(9), 1.0)) == 1
    connected("A", registry=registry, port=2)
    assert len(registry.register("A", pub(1, renewed=True), 2.0)) == 1


def test_what_a_returning_peer_does_not_register_again_is_dropped_after_the_grace() -> None:
    registry = connected("A", "B")
    registry.register("A", pub(1), 0.0)
    registry.register("A", pub(2), 0.0)
    registry.register("B", sub(3), 0.0)
    registry.lose("A", 10.0)
    registry.connect("A", tcp("A.net", 1), INFO, 14.0)
    assert registry.next_expiry() == 19.0
    registry.register("A", pub(2, renewed=True), 16.0)
    assert registry.next_expiry() == 21.0, "each one that comes again gives the others time"
    assert registry.expire(20.9) == []
    assert registry.expire(21.0) == [("B", match(3, removed=[("A", 1)], revision=4))]
    assert registry.next_expiry() is None
    assert registry.expire(1000.0) == []
    (told,) = registry.register("A", pub(2), 1000.0)
    assert told == ("A", expect(2, [ExpectedSub("B", 3, False, False)], revision=4))


def test_a_peer_that_closes_the_last_one_to_come_again_has_nothing_to_lose() -> None:
    registry = connected("A")
    registry.register("A", pub(1), 0.0)
    registry.register("A", pub(2), 0.0)
    connected("A", registry=registry)
    registry.unregister("A", 1)
    assert registry.next_expiry() == 5.0
    registry.unregister("A", 2)
    assert registry.next_expiry() is None


def test_one_that_replaces_a_stale_one_is_not_stale() -> None:
    registry = connected("A")
    registry.register("A", pub(1), 0.0)
    connected("A", registry=registry)
    registry.register("A", pub(1, "other"), 0.0)
    assert registry.next_expiry() is None
    assert [r["topic"] for r in registry.topics()] == ["other"]


def test_peers_are_dropped_in_the_order_in_which_they_went() -> None:
    registry = connected("A", "B", "C", "D", registry=Registry(grace=2.0))
    registry.lose("B", 1.0)
    registry.lose("A", 2.0)
    registry.lose("C", 3.0)
    registry.lose("B", 4.0)  # it was away already
    connected("C", registry=registry)
    assert registry.next_expiry() == 3.0
    registry.expire(3.5)
    assert [r["peer_id"] for r in registry.peers()] == ["A", "C", "D"]
    assert registry.next_expiry() == 4.0
    registry.expire(100.0)
    assert [r["peer_id"] for r in registry.peers()] == ["C", "D"]


def test_nothing_is_sent_to_peers_that_are_away() -> None:
    registry = connected("A", "B", "C")
    registry.register("A", sub(1, "*"), 0.0)
    registry.register("B", sub(1), 0.0)
    registry.register("C", pub(1), 0.0)
    registry.lose("A", 0.0)
    pushes = registry.register("C", pub(2), 0.0) + registry.unregister("C", 1)
    assert {peer_id for peer_id, _ in pushes} == {"B", "C"}
    assert registry.lose("nobody", 0.0) == []


# --- whom an address leads where ----------------------------------------------------------------

HEAD = Address("10.77.1.1", 7700)
OWN = Address("127.0.0.1", 7700)


def reach(
    registry: Registry, peer_id: str, host: str, source: str, met_at: Address = HEAD
) -> Registry:
    """A peer that says that it listens at `host`, and comes from `source`."""
    ways = tcp(host, 1) if host else ()
    assert registry.connect(peer_id, ways, INFO, 0.0, source=source, met_at=met_at) == []
    return registry


@pytest.mark.parametrize("sub_at", ["10.77.1.99", "127.0.0.1", ""])
@pytest.mark.parametrize(
    ("host", "pub_from", "sub_from", "told"),
    [
        ("127.0.0.1", "127.0.0.1", "10.77.1.11", False),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", "10.77.1.1", True),  # the head node's own address
        ("127.0.0.1", "10.77.1.1", "127.0.0.1", True),
        ("127.0.0.1", "10.77.1.11", "10.77.1.11", True),  # both on one other machine
        ("127.0.0.1", "10.77.1.11", "10.77.1.12", False),
        ("127.0.0.1", "10.77.1.11", "127.0.0.1", False),
        ("127.0.1.1", "127.0.0.1", "10.77.1.11", False),
        ("::1", "::1", "fd77::11", False),
        ("0:0:0:0:0:0:0:1", "::1", "fd77::11", False),
        ("::ffff:127.0.0.1", "127.0.0.1", "10.77.1.11", False),
        ("localhost", "127.0.0.1", "10.77.1.11", False),
        ("app.localhost", "127.0.0.1", "10.77.1.11", False),
        ("10.77.1.1", "10.77.1.1", "10.77.1.11", True),
        ("10.77.1.1", "127.0.0.1", "10.77.1.11", True),
        ("127.example.net", "10.77.1.1", "10.77.1.11", True),
        ("localhost.example.net", "10.77.1.1", "10.77.1.11", True),
        ("127.0.0.1", "", "", True),  # nobody knows from where
    ],
)
def test_g3_a_loopback_address_is_told_on_its_own_machine_only(
    host: str, pub_from: str, sub_from: str, told: bool, sub_at: str
) -> None:
    """And where the publisher cannot dial the subscriber either, both are told why: each gets what
    the other's machine would need."""
    found = matched("P", host, 1, 1, "t", False)
    expected = ExpectedSub("S", 2, False, False)
    if not told:
        found = matched("P", "", 0, 1, "t", False, "camera (pid 4711 on box)")
        elsewhere = "" if sub_at == "10.77.1.99" else "10.77.1.1:7700"
        expected = ExpectedSub("S", 2, False, False, elsewhere)
    for pub_first in (True, False):
        registry = Registry()
        reach(registry, "P", host, pub_from, OWN if pub_from.startswith("127.") else HEAD)
        reach(registry, "S", sub_at, sub_from, OWN if sub_from.startswith("127.") else HEAD)
        calls = [("P", pub(1)), ("S", sub(2))]
        pushes: list[Push] = []
        for peer_id, message in calls if pub_first else reversed(calls):
            pushes += registry.register(peer_id, message, 0.0)
        rows = [
            row_
            for _, message in pushes
            if not isinstance(message, Refused)
            for row_ in message.added
        ]
        assert set(rows) in (
            {found, expected},
            {found._replace(before=True), expected._replace(before=True)},
        )
        if not told and "10.77" not in pub_from:
            assert not any(host in str(row_) for row_ in rows)


def test_a_publisher_that_comes_back_within_reach_is_told_with_its_address() -> None:
    registry = reach(Registry(), "P", "127.0.0.1", "127.0.0.1", OWN)
    reach(registry, "S", "10.77.1.11", "10.77.1.11")
    registry.register("P", pub(1), 0.0)
    registry.register("S", sub(2), 0.0)
    reach(registry, "P", "10.77.1.1", "10.77.1.1")
    assert registry.register("P", pub(1, renewed=True), 1.0) == [
        ("P", expect(1, [ExpectedSub("S", 2, False, False)], revision=2)),
        ("S", match(2, [matched("P", "10.77.1.1", 1, 1, "t", False)], revision=2)),
    ]


def test_a_subscriber_that_comes_back_from_another_machine_is_told_anew_to_those_it_concerns() -> (
    None
):
    registry = reach(Registry(), "P", "127.0.0.1", "127.0.0.1", OWN)
    reach(registry, "Q", "10.77.1.1", "10.77.1.1")
    reach(registry, "S", "127.0.0.1", "127.0.0.1", OWN)
    for peer_id in "PQ":
        registry.register(peer_id, pub(1), 0.0)
    registry.register("S", sub(2), 0.0)
    reach(registry, "S", "127.0.0.1", "10.77.1.11")
    who = "camera (pid 4711 on box)"
    q = matched("Q", "10.77.1.1", 1, 1, "t", False)
    assert registry.register("S", sub(2, renewed=True), 1.0) == [
        ("S", match(2, [matched("P", "", 0, 1, "t", False, who), q], revision=3)),
        ("P", expect(1, [ExpectedSub("S", 2, False, False, "10.77.1.1:7700")], revision=3)),
    ]


def test_who_calls_itself_by_a_very_long_name_is_told_with_a_part_of_it() -> None:
    registry = Registry()
    info = {"name": "n" * 3000, "hostname": "h" * 3000, "pid": 10**18}
    registry.connect("P", tcp("127.0.0.1", 1), info, 0.0, source="127.0.0.1", met_at=OWN)
    reach(registry, "S", "10.77.1.11", "10.77.1.11")
    registry.register("P", pub(1), 0.0)
    for _, message in registry.register("S", sub(2), 0.0):
        assert parse(msgpack.unpackb(encode(message)[4:])) == message


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (pub(1, "a//b"), "pub 1: topic 'a//b' has an empty segment"),
        (sub(2, "a//b"), "sub 2: pattern 'a//b' has an empty segment"),
        (pub(3, "a/*"), "pub 3: topic 'a/*' has a wildcard"),
        (sub(4, "sens*"), "sub 4: pattern 'sens*': a wildcard stands for a whole segment"),
        (sub(5, "\x00" * 1024), "control character"),
    ],
)
def test_a_bad_topic_is_named_and_nothing_changes(message: Register, problem: str) -> None:
    registry = connected("A", "B")
    registry.register("A", pub(message.id, "good"), 0.0)
    registry.register("B", sub(1, "**"), 0.0)
    with pytest.raises(ProtocolError) as caught:
        registry.register("A", message, 0.0)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 1024, "it must fit into GOODBYE"
    assert caught.value.code == "protocol"
    assert [r["topic"] for r in registry.topics()] == ["**", "good"]


def test_a_peer_that_is_not_connected_cannot_register() -> None:
    registry = connected("A")
    registry.lose("A", 0.0)
    for peer_id in ("A", "nobody"):
        with pytest.raises(ProtocolError, match=f"peer '{peer_id}' registers and is not connected"):
            registry.register(peer_id, pub(1), 0.0)


def test_one_peer_may_not_have_too_many() -> None:
    registry = connected("A", "B", registry=Registry(max_registrations=2))
    registry.register("A", pub(1), 0.0)
    registry.register("A", sub(2), 0.0)
    with pytest.raises(ProtocolError, match="one more than the 2 Pubs and Subs") as caught:
        registry.register("A", pub(3), 0.0)
    assert caught.value.code == "limit"
    registry.register("A", pub(2, "instead"), 0.0)
    registry.register("B", pub(3), 0.0)
    registry.unregister("A", 1)
    registry.register("A", pub(3), 0.0)


def test_the_topics_of_one_peer_may_not_have_too_many_segments() -> None:
    registry = connected("A", "B", registry=Registry(max_segments=10))
    registry.register("A", pub(1, "a/b/c/d"), 0.0)
    registry.register("A", sub(2, "**/x"), 0.0)
    registry.register("A", pub(1, "a/b/c/d/e"), 0.0)
    registry.register("B", pub(1, "a/b/c/d/e/f/g/h"), 0.0)
    with pytest.raises(ProtocolError, match="may have 10 segments in all") as caught:
        registry.register("A", pub(3, "a/b/c/d"), 0.0)
    assert caught.value.code == "limit"
    registry.unregister("A", 2)
    registry.register("A", pub(3, "a/b/c/d"), 0.0)
    assert len(list(registry.topics())) == 3


def test_there_may_be_so_many_peers_and_one_that_is_known_is_never_refused() -> None:
    registry = connected("A", "B", registry=Registry(max_peers=2))
    with pytest.raises(ProtocolError, match="knows 2 peers, and takes no more") as caught:
        connected("C", registry=registry)
    assert caught.value.code == "limit"
    registry.register("A", pub(1), 0.0)
    registry.lose("A", 0.0)
    connected("A", registry=registry)  # from away
    connected("A", registry=registry)  # in the place of its own connection
    registry.leave("B")
    connected("C", registry=registry)
    with pytest.raises(ProtocolError):
        connected("B", registry=registry)
    assert {row["peer_id"] for row in registry.peers()} == {"A", "C"}


def test_a_peer_that_is_being_taken_away_still_counts_and_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "SWEEP", 1)
    registry = connected("A", registry=Registry(max_peers=1))
    for number in range(3):
        registry.register("A", pub(number), 0.0)
    registry.leave("A")
    assert registry.sweeping
    with pytest.raises(ProtocolError, match="takes no more"):
        connected("B", registry=registry)
    connected("A", registry=registry)


def test_all_together_may_not_have_too_many_and_what_is_there_stays() -> None:
    registry = connected("A", "B", registry=Registry(max_all=2))
    registry.register("A", pub(1), 0.0)
    registry.register("A", sub(2), 0.0)
    why = "this coordinator has 2 Pubs and Subs, and takes no more"
    assert registry.register("B", pub(1), 0.0) == [("B", Refused(1, "limit", why))]
    registry.register("A", pub(2, "instead"), 0.0)
    assert registry.topics().__next__()["publishers"] == 1
    registry.lose("A", 0.0)
    connected("A", registry=registry)
    [(_, again)] = registry.register("A", pub(1), 0.0)  # known already
    assert isinstance(again, Expect)
    registry.unregister("A", 2)
    [(_, answer)] = registry.register("B", pub(1, "now"), 0.0)
    assert isinstance(answer, Expect)


def test_g7_what_comes_again_to_a_coordinator_that_is_full_is_not_refused_for_good() -> None:
    """REFUSED would end a Pub whose streams go on; to be sent away is as if it were down."""
    registry = connected("A", "B", registry=Registry(max_all=1))
    registry.register("A", pub(1), 0.0)
    with pytest.raises(ProtocolError, match="has 1 Pubs and Subs, and takes no more") as caught:
        registry.register("B", pub(1, renewed=True), 0.0)
    assert caught.value.code == "limit"


def test_what_each_peer_tells_of_itself_counts_against_no_limit_and_is_not_shown() -> None:
    registry = connected(
        "A", "B", registry=Registry(max_all=1, max_registrations=1, max_segments=1)
    )
    for peer in "AB":
        [(_, answer)] = registry.register(peer, pub(STATS_STREAM, STATS, renewed=True), 0.0)
        assert isinstance(answer, Expect)
    registry.register("A", sub(1, "**"), 0.0)
    assert [row["topic"] for row in registry.topics()] == ["**"]
    assert [(row["pubs"], row["subs"]) for row in registry.peers()] == [(0, 1), (0, 0)]
    [(_, refused)] = registry.register("B", sub(1, STATS), 0.0)
    assert isinstance(refused, Refused)
    registry.unregister("A", 1)
    [(_, match)] = registry.register("B", sub(1, STATS), 0.0)[:1]
    assert isinstance(match, Match)
    assert {row.peer_id for row in match.added} == {"A", "B"}


def test_what_goes_with_its_peer_counts_no_more() -> None:
    registry = connected("A", "B", registry=Registry(max_all=3))
    for number in range(3):
        registry.register("A", pub(number), 0.0)
    registry.leave("A")
    while registry.sweeping:
        registry.sweep()
    for number in range(3):
        [(_, answer)] = registry.register("B", pub(number), 0.0)
        assert isinstance(answer, Expect)


# --- what people ask ----------------------------------------------------------------------------


def test_topics_lists_topics_and_patterns_with_their_counts() -> None:
    registry = connected("A", "B")
    for id, topic in enumerate(["t/a", "t/a", "t/b", "u"]):
        registry.register("A", pub(id, topic), 0.0)
    for id, topic in enumerate(["t/*", "t/a", "v", "**", "w/*", "w/*"]):
        registry.register("B", sub(id, topic), 0.0)
    assert [tuple(r.values()) for r in registry.topics()] == [
        ("**", 4, 1),
        ("t/*", 3, 1),
        ("t/a", 2, 3),
        ("t/b", 1, 2),
        ("u", 1, 1),
        ("v", 0, 2),
        ("w/*", 0, 2),
    ]
    assert list(next(registry.topics())) == ["topic", "publishers", "subscribers"]


def test_topics_can_be_read_while_they_change() -> None:
    registry = connected("A", "B")
    for id in range(4):
        registry.register("A", pub(id, f"t/{id}"), 0.0)
    rows = registry.topics()
    assert next(rows)["topic"] == "t/0"
    registry.unregister("A", 1)
    registry.register("A", pub(2, "new"), 0.0)
    assert [r["topic"] for r in rows] == ["t/3"]


def test_peers_lists_who_is_connected_and_who_is_away() -> None:
    registry = connected("B", "A")
    registry.connect("v6", tcp("fe80::1", 7), {**INFO, "name": "a"}, 0.0)
    registry.connect("nowhere", tcp("", 0), {"name": 5, "pid": "x", "hostname": None}, 0.0)
    for id in range(3):
        registry.register("A", pub(id), 0.0)
    registry.register("A", sub(9), 0.0)
    registry.lose("B", 0.0)
    rest = {"name": "camera", "pid": 4711, "hostname": "box"}
    assert list(registry.peers()) == [
        {"peer_id": "nowhere", "address": "", "ways": [], "name": "", "pid": 0, "hostname": ""}
        | {"pubs": 0, "subs": 0, "state": "connected"},
        {"peer_id": "v6", "address": "[fe80::1]:7", "ways": ["[fe80::1]:7"], **rest, "name": "a"}
        | {"pubs": 0, "subs": 0, "state": "connected"},
        {
            "peer_id": "A",
            "address": "A.net:1",
            "ways": ["A.net:1"],
            **rest,
            "pubs": 3,
            "subs": 1,
            "state": "connected",
        },
        {
            "peer_id": "B",
            "address": "B.net:1",
            "ways": ["B.net:1"],
            **rest,
            "pubs": 0,
            "subs": 0,
            "state": "away",
        },
    ]


# --- cost ---------------------------------------------------------------------------------------


def fill(registry: Registry, count: int) -> None:
    for number in range(count):
        topic = f"site-{number % 50}/machine-{number // 2}/temp"
        message = sub(1000 + number, topic) if number % 2 else pub(1000 + number, topic)
        registry.register(f"peer-{number % 100}", message, 0.0)


@pytest.mark.timeout(240)  # each allocation is traced: on a busy machine that takes its time
def test_a_registration_is_kept_in_less_than_1_5_kib_and_given_back() -> None:
    registry = connected(*(f"peer-{n}" for n in range(100)))
    count = 10_000
    tracemalloc.start()
    try:
        left = []
        for _ in range(4):
            fill(registry, count)
            assert tracemalloc.get_traced_memory()[0] / count < 1536
            for number in range(100):
                registry.leave(f"peer-{number}")
                while registry.sweeping:
                    registry.sweep()
                registry.connect(f"peer-{number}", tcp("h", 1), INFO, 0.0)
            gc.collect()  # peers that have left and their registrations know each other
            left.append(tracemalloc.get_traced_memory()[0])
        kept = 3 * count * 512  # by those of the other rounds, if they were not given back
        assert left[3] < left[0] + kept / 3, "only the room in emptied dicts stays, for the next"
    finally:
        tracemalloc.stop()


def test_the_steps_of_a_registration_do_not_grow_with_what_is_known() -> None:
    def steps(size: int) -> int:
        """Lines of Python run for some registrations that have one match each."""
        registry = connected(*(f"peer-{n}" for n in range(100)), "new")
        fill(registry, size)
        for number in range(size // 10):
            registry.register("peer-0", sub(number, f"site-{number}/*/x"), 0.0)
            registry.register("peer-1", sub(number, f"*/machine-{number}/x/**"), 0.0)
        lines = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            registry.register("new", pub(1, "site-7/machine-new/temp"), 0.0)
            registry.register("new", sub(2, "site-0/machine-0/temp"), 0.0)
            registry.register("new", sub(3, "*/machine-1/*"), 0.0)
            registry.register("new", sub(4, "**/machine-2/**"), 0.0)
            registry.register("new", sub(5, "nowhere/**"), 0.0)
            registry.lose("new", 0.0)
            registry.expire(9.0)
        finally:
            sys.settrace(before)
        return lines

    small, large = steps(200), steps(20_000)
    assert large < 1.2 * small


# --- rights -------------------------------------------------------------------------------------


def allowed(registry: Registry, peer_id: str, rights: Rights, who: str = "") -> None:
    """It is connected, anew if it was."""
    ways = tcp(f"{peer_id}.net", 1)
    registry.connect(peer_id, ways, INFO, 0.0, rights=rights, who=(who, b"claim"))


def rows_for(pushes: list[Push]) -> dict[str, list[Any]]:
    """Who is told of whom."""
    told: dict[str, list[Any]] = {}
    for peer_id, message in pushes:
        assert not isinstance(message, Refused)
        told.setdefault(peer_id, []).extend(row_[0] for row_ in message.added)
    return told


KITCHEN = Rights(["kitchen/**"], ["config/*"])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pub(1, "attic/temp"), "may not publish 'attic/temp': it may publish 'kitchen/**'"),
        (pub(1, "config/a"), "may not publish 'config/a': it may publish 'kitchen/**'"),
        (sub(1, "kitchen/temp"), "may not subscribe 'kitchen/temp': it may subscribe 'config/*'"),
        (sub(1, "config/a/b"), "may not subscribe 'config/a/b': it may subscribe 'config/*'"),
        (sub(1, "kitchen/**"), "may not subscribe 'kitchen/**': it may subscribe 'config/*'"),
        (sub(1, "*/a/b"), "may not subscribe '*/a/b': it may subscribe 'config/*'"),
    ],
)
@pytest.mark.parametrize("who", ["", "stove"])
def test_who_has_no_right_is_refused_and_nothing_is_registered(
    message: Register, reason: str, who: str
) -> None:
    registry = Registry()
    allowed(registry, "A", KITCHEN, who)
    said = Refused(1, "auth", f"{who!r} {reason}" if who else f"this peer {reason}")
    assert registry.register("A", message, 0.0) == [("A", said)]
    assert list(registry.topics()) == []
    assert [(r["pubs"], r["subs"], r["state"]) for r in registry.peers()] == [(0, 0, "connected")]
    assert registry.register("A", pub(1, "kitchen/temp"), 0.0) == [("A", expect(1, revision=1))]


def test_a_pattern_is_taken_where_anything_could_match_both() -> None:
    registry = Registry()
    allowed(registry, "A", KITCHEN)
    for id, pattern in enumerate(("**", "*/*", "config/**", "**/x")):
        ((_, answer),) = registry.register("A", sub(id, pattern), 0.0)
        assert isinstance(answer, Match)


def test_the_longest_topic_and_rights_fit_into_a_refusal() -> None:
    registry = Registry()
    many = Rights([f"{n}{'x' * 1000}" for n in range(100)])
    allowed(registry, "A", many, "w" * 10_000)
    ((_, refused),) = registry.register("A", pub(1, "é" * 512), 0.0)
    assert isinstance(refused, Refused)
    assert parse(msgpack.unpackb(encode(refused)[4:])) == refused


@pytest.mark.parametrize("pub_first", [True, False])
def test_a_pair_is_told_of_each_other_only_where_both_have_the_right(pub_first: bool) -> None:
    registry = connected("P")
    allowed(registry, "S", KITCHEN)
    calls = [("P", pub(1, "config/a")), ("P", pub(2, "secret/a")), ("S", sub(1, "**"))]
    told: dict[str, list[Any]] = {}
    for peer_id, message in calls if pub_first else reversed(calls):
        for to, rows in rows_for(registry.register(peer_id, message, 0.0)).items():
            told.setdefault(to, []).extend(rows)
    assert told == {"P": ["S"], "S": ["P"]}
    gone = registry.unregister("P", 2)
    assert gone == [], "of what it was not told, it is not told that it is gone"
    assert [peer_id for peer_id, _ in registry.unregister("P", 1)] == ["S"]
    registry.register("P", pub(3, "secret/a"), 0.0)
    assert registry.unregister("S", 1) == []


@pytest.mark.parametrize("pattern", ["*/a", "**/a", "config/**", "**"])
def test_a_limited_sub_gets_what_matches_both_and_nothing_else(pattern: str) -> None:
    registry = connected("P")
    topics = ["a", "config/a", "config/b", "secret/a", "config/a/b", "kitchen/a"]
    for id, topic in enumerate(topics):
        registry.register("P", pub(id, topic), 0.0)
    rights = Rights(subscribe=["config/*", "*/a", "kitchen/**"])
    allowed(registry, "S", rights)
    (_, answer), *_ = registry.register("S", sub(1, pattern), 0.0)
    assert isinstance(answer, Match)
    assert [r.topic for r in answer.added] == [
        topic for topic in topics if matches(pattern, topic) and rights.may_subscribe(topic)
    ]


def test_other_rights_make_another_registration() -> None:
    registry = connected("P")
    registry.register("P", pub(1, "config/a"), 0.0)
    registry.register("P", pub(2, "secret/a"), 0.0)
    allowed(registry, "S", EVERYTHING)
    assert rows_for(registry.register("S", sub(1, "**"), 0.0)) == {"S": ["P", "P"], "P": ["S", "S"]}
    allowed(registry, "S", KITCHEN)
    pushes = registry.register("S", sub(1, "**", renewed=True), 0.0)
    lost = [message.stream_id for _, message in pushes if isinstance(message, Expect)]
    assert lost == [1, 2, 1], "both publishers hear that it is gone, and the one that it is there"
    (answer,) = [message for _, message in pushes if isinstance(message, Match)]
    assert [r.topic for r in answer.added] == ["config/a"]
    assert registry.next_expiry() is None, "it is current"
    allowed(registry, "S", NONE)
    *gone, (to, refused) = registry.register("S", sub(1, "**", renewed=True), 0.0)
    assert (to, type(refused)) == ("S", Refused)
    assert gone == [("P", expect(1, removed=[("S", 1)], revision=6))]
    assert registry.next_expiry() is None


def test_the_same_rights_in_another_object_renew() -> None:
    registry = Registry()
    allowed(registry, "A", Rights(["kitchen/**"], ["config/*"]))
    registry.register("A", sub(1, "config/*"), 0.0)
    allowed(registry, "A", Rights(["kitchen/**"], ["config/*"]))
    assert registry.register("A", sub(1, "config/*"), 0.0) == [("A", match(1, revision=1))]


def test_a_pub_that_lost_its_right_goes_for_those_who_had_it() -> None:
    registry = connected("S")
    registry.register("S", sub(1, "kitchen/a"), 0.0)
    allowed(registry, "P", KITCHEN)
    registry.register("P", pub(1, "kitchen/a"), 0.0)
    allowed(registry, "P", Rights(["attic/*"]))
    lost, (to, refused) = registry.register("P", pub(1, "kitchen/a", renewed=True), 0.0)
    assert lost == ("S", match(1, removed=[("P", 1)], revision=3))
    assert (to, type(refused)) == ("P", Refused)


def test_topics_are_told_within_the_rights_of_who_asks() -> None:
    registry = connected("A", "B")
    allowed(registry, "C", KITCHEN)
    topics = ["kitchen/a", "secret/a", "config/a"]
    for id, topic in enumerate(topics):
        registry.register("A", pub(id, topic), 0.0)
    for id, pattern in enumerate(("**", "kitchen/*", "config/*", "config/**", "secret/*")):
        registry.register("B", sub(id, pattern), 0.0)
    registry.register("C", sub(1, "**"), 0.0)
    assert [tuple(r.values()) for r in registry.topics(KITCHEN)] == [
        ("config/*", 1, 1),
        ("config/a", 1, 4),
        ("kitchen/*", 1, 1),
        ("kitchen/a", 1, 2),
    ]
    assert list(registry.topics(NONE)) == []
    assert [r["topic"] for r in registry.topics()] == sorted(
        {"**", "kitchen/*", "config/*", "config/**", "secret/*", *topics}
    )


def test_peers_are_told_to_who_may_list_them() -> None:
    registry = connected("A")
    with pytest.raises(ProtocolError, match="cert issue … --list") as it:
        registry.peers(KITCHEN)
    assert it.value.code == "auth"
    assert [r["peer_id"] for r in registry.peers(Rights(list=True))] == ["A"]


# --- any sequence of calls, against a model -----------------------------------------------------


@dataclass
class Entry:
    """A registration as the model keeps it."""

    message: Register
    order: int
    renewed: bool
    stale: bool = False
    moved: bool = False
    """Its peer has come back at another address, and it has not come again yet."""


@dataclass
class Peer:
    """What a peer is, and what it has been told on this connection, by the id of its own."""

    address: tuple[str, int]
    at_head: bool = True
    """On the coordinator's machine, and not on the other one."""
    connected: bool = True
    due: float = 0.0
    entries: dict[int, Entry] = field(default_factory=dict)
    told: dict[int, dict[tuple[str, int], MatchedPub | ExpectedSub]] = field(default_factory=dict)
    answered: dict[int, bool] = field(default_factory=dict)


ids = st.integers(0, 3)
peer_ids = st.sampled_from("ABC")
names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
shapes = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=3).map("/".join)


class RegistryMachine(RuleBasedStateMachine):
    """All pushes, applied by the peers they go to, give each exactly its matches."""

    GRACE = 5.0
    LIMIT = 3

    @initialize(rows=st.sampled_from([1, 2, 500]), sweep=st.sampled_from([1, 3, 250]))
    def start(self, rows: int, sweep: int) -> None:
        self.sweep = registry_module.SWEEP
        registry_module.SWEEP = sweep
        self.rows_per_frame = registry_module.ROWS_PER_FRAME
        registry_module.ROWS_PER_FRAME = rows
        self.registry = Registry(self.GRACE, self.LIMIT)
        self.peers: dict[str, Peer] = {}
        self.now = 0.0
        self.order = 0
        self.revision = 0

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            registry_module.ROWS_PER_FRAME = self.rows_per_frame
            registry_module.SWEEP = self.sweep

    # what the peers do with what they are sent

    def apply(self, pushes: list[Push], answer: tuple[str, int] | None = None) -> None:
        for peer_id, message in pushes:
            encode(message)
            assert not isinstance(message, Refused)
            peer = self.peers[peer_id]
            assert peer.connected
            id = message.sub_id if isinstance(message, Match) else message.stream_id
            entry = peer.entries[id]
            assert not entry.stale
            assert entry.message.role == ("sub" if isinstance(message, Match) else "pub")
            assert message.revision >= self.revision
            self.revision = message.revision
            assert len(message.added) + len(message.removed) <= registry_module.ROWS_PER_FRAME
            told = peer.told[id]
            if not peer.answered[id]:
                assert (peer_id, id) == answer, "its first frames are those of its answer"
                assert not message.removed
                assert message.complete or len(message.added) == registry_module.ROWS_PER_FRAME
                peer.answered[id] = message.complete
            else:
                assert message.complete
                assert message.added or message.removed
            for row_ in message.added:
                key = (row_[0], row_.stream_id if isinstance(row_, MatchedPub) else row_[1])
                news = told.get(key) != row_
                assert news or self.peers[key[0]].entries[key[1]].moved, "it knew that"
                told[key] = row_
            for key in message.removed:
                del told[key]

    # calls

    @rule(
        peer_id=peer_ids,
        host=st.sampled_from(["10.0.0.1", "127.0.0.1"]),
        source=st.sampled_from(["127.0.0.1", "10.0.0.1", "10.0.0.2"]),
        pause=st.sampled_from([0.0, 1.0]),
    )
    def connect(self, peer_id: str, host: str, source: str, pause: float) -> None:
        self.now += pause
        peer = self.peers.setdefault(peer_id, Peer(("", 0)))
        at_head = source != "10.0.0.2"
        moved = (peer.address, peer.at_head) != ((host, 1), at_head)
        peer.address, peer.at_head = (host, 1), at_head
        peer.connected = True
        peer.due = self.now + self.GRACE
        peer.told.clear()
        peer.answered.clear()
        for entry in peer.entries.values():
            entry.stale = True
            entry.moved |= moved
        met_at = Address("10.0.0.1", 7700)
        self.apply(
            self.registry.connect(
                peer_id, tcp(host, 1), INFO, self.now, source=source, met_at=met_at
            )
        )

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), id=ids, name=names, renewed=st.booleans())
    def register_pub(self, data: st.DataObject, id: int, name: str, renewed: bool) -> None:
        self.register(data.draw(st.sampled_from(self.connected())), pub(id, name, renewed=renewed))

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), id=ids, shape=shapes, renewed=st.booleans(), observer=st.booleans())
    def register_sub(
        self, data: st.DataObject, id: int, shape: str, renewed: bool, observer: bool
    ) -> None:
        message = sub(id, shape, renewed=renewed, observer=observer)
        self.register(data.draw(st.sampled_from(self.connected())), message)

    @precondition(lambda self: self.known())
    @rule(data=st.data(), pause=st.sampled_from([0.0, 2.0]))
    def register_again(self, data: st.DataObject, pause: float) -> None:
        peer_id, id = data.draw(st.sampled_from(self.known()))
        self.now += pause
        if self.peers[peer_id].connected:
            first = self.peers[peer_id].entries[id].message
            again = Register(id, first.role, first.topic, True, first.observer)
            self.register(peer_id, again)

    def register(self, peer_id: str, message: Register) -> None:
        peer = self.peers[peer_id]
        entry = peer.entries.get(message.id)
        if entry is None and len(peer.entries) >= self.LIMIT:
            with pytest.raises(ProtocolError):
                self.registry.register(peer_id, message, self.now)
            return
        same = entry is not None and (
            (entry.message.role, entry.message.topic, entry.message.observer)
            == (message.role, message.topic, message.observer)
        )
        if entry is None or not same:
            self.order += 1
            peer.entries[message.id] = Entry(message, self.order, message.renewed)
        elif entry.stale:
            entry.stale = False
            peer.due = self.now + self.GRACE
        peer.told[message.id] = {}
        peer.answered[message.id] = False
        self.apply(self.registry.register(peer_id, message, self.now), answer=(peer_id, message.id))
        assert peer.answered[message.id]
        peer.entries[message.id].moved = False

    @rule(peer_id=peer_ids, id=ids)
    def unregister_any(self, peer_id: str, id: int) -> None:
        if peer_id in self.peers:
            self.forget(self.peers[peer_id], id)
        self.apply(self.registry.unregister(peer_id, id))

    @rule(peer_id=peer_ids)
    def leave(self, peer_id: str) -> None:
        self.peers.pop(peer_id, None)
        self.apply(self.registry.leave(peer_id))
        self.sweep_all()

    @rule(peer_id=peer_ids, pause=st.sampled_from([0.0, 1.0]))
    def lose(self, peer_id: str, pause: float) -> None:
        self.now += pause
        peer = self.peers.get(peer_id)
        if peer is not None and peer.connected:
            peer.connected = False
            peer.due = self.now + self.GRACE
        self.apply(self.registry.lose(peer_id, self.now))

    @rule(pause=st.sampled_from([0.0, 1.0, 3.0, 6.0]))
    def expire(self, pause: float) -> None:
        self.now += pause
        for peer_id, peer in list(self.peers.items()):
            if peer.due <= self.now and not peer.connected:
                del self.peers[peer_id]
            elif peer.due <= self.now:
                for id in [id for id, entry in peer.entries.items() if entry.stale]:
                    self.forget(peer, id)
        self.apply(self.registry.expire(self.now))
        self.sweep_all()

    def sweep_all(self) -> None:
        while self.registry.sweeping:
            self.apply(self.registry.sweep())

    def forget(self, peer: Peer, id: int) -> None:
        for where in (peer.entries, peer.told, peer.answered):
            where.pop(id, None)

    def connected(self) -> list[str]:
        return [peer_id for peer_id, peer in self.peers.items() if peer.connected]

    def known(self) -> list[tuple[str, int]]:
        return [(peer_id, id) for peer_id, peer in self.peers.items() for id in peer.entries]

    # promises

    @invariant()
    def each_peer_has_been_told_exactly_its_matches(self) -> None:
        for peer in self.peers.values():
            for id, entry in peer.entries.items():
                if not peer.connected or entry.stale:
                    continue
                told = peer.told[id]
                for (other_id, other_entity), other in self.others(entry):
                    row_ = told.pop((other_id, other_entity))
                    if isinstance(row_, MatchedPub):
                        assert row_.topic == other.message.topic
                        assert row_.before == (
                            entry.order < other.order or (entry.renewed and not other.renewed)
                        )
                        apart = self.apart(self.peers[other_id], peer)
                        address = ("", 0) if apart else self.peers[other_id].address
                        assert other.stale or place_of(row_.ways) == address
                    else:
                        assert row_.observer == other.message.observer
                        assert row_.before == (
                            other.order < entry.order or (other.renewed and not entry.renewed)
                        )
                        apart = self.apart(peer, self.peers[other_id])
                        deaf = self.peers[other_id].address[0] == "127.0.0.1"
                        assert other.stale or bool(row_.elsewhere) == (apart and deaf)
                    told[(other_id, other_entity)] = row_
                assert len(told) == len(self.others(entry))

    @staticmethod
    def apart(pub: Peer, sub: Peer) -> bool:
        return pub.address[0] == "127.0.0.1" and pub.at_head != sub.at_head

    def others(self, entry: Entry) -> list[tuple[tuple[str, int], Entry]]:
        found = []
        for peer_id, peer in self.peers.items():
            for id, other in peer.entries.items():
                one, two = entry.message, other.message
                if one.role == "pub":
                    one, two = two, one
                if (one.role, two.role) == ("sub", "pub") and matches(one.topic, two.topic):
                    found.append(((peer_id, id), other))
        return found

    @invariant()
    def the_next_expiry_is_that_of_the_first_who_has_something_to_lose(self) -> None:
        due = [
            peer.due
            for peer in self.peers.values()
            if not peer.connected or any(entry.stale for entry in peer.entries.values())
        ]
        assert self.registry.next_expiry() == min(due, default=None)

    @invariant()
    def the_tables_say_what_is_there(self) -> None:
        assert {
            r["peer_id"]: (r["pubs"], r["subs"], r["state"]) for r in self.registry.peers()
        } == {
            peer_id: (
                sum(entry.message.role == "pub" for entry in peer.entries.values()),
                sum(entry.message.role == "sub" for entry in peer.entries.values()),
                "connected" if peer.connected else "away",
            )
            for peer_id, peer in self.peers.items()
        }
        entries = [entry for peer in self.peers.values() for entry in peer.entries.values()]
        rows = list(self.registry.topics())
        assert [r["topic"] for r in rows] == sorted({entry.message.topic for entry in entries})
        for r in rows:
            own = [entry for entry in entries if entry.message.topic == r["topic"]]
            pubs = [e for e in entries if e.message.role == "pub"]
            subs = [e for e in entries if e.message.role == "sub"]
            if "*" in r["topic"]:
                assert r["subscribers"] == len(own)
                assert r["publishers"] == sum(matches(r["topic"], e.message.topic) for e in pubs)
            else:
                assert r["publishers"] == sum(e in pubs for e in own)
                assert r["subscribers"] == sum(matches(e.message.topic, r["topic"]) for e in subs)


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_peer_that_leaves_while_its_stale_registrations_go_takes_each_away_once() -> None:
    registry = connected("watcher", "peer")
    registry.register("watcher", sub(1, "**"), 0.0)
    count = 3 * SWEEP
    for number in range(count):
        registry.register("peer", pub(number, f"t/{number}"), 0.0)
    registry.lose("peer", 1.0)
    registry.connect("peer", tcp("h", 1), INFO, 1.5)  # and registers nothing again
    pushes = registry.expire(10.0)
    assert registry.sweeping
    pushes += registry.leave("peer")
    while registry.sweeping:
        pushes += registry.sweep()
    told = [row for peer, message in pushes if peer == "watcher" for row in message.removed]
    assert sorted(told) == sorted(("peer", number) for number in range(count))


def test_who_leaves_keeps_its_identity_until_all_that_it_had_is_taken_away() -> None:
    """Until then all of it counts for others, who would be told that it is where the thief is."""
    registry = Registry()
    own, thief = ("", b"own"), ("", b"thief")
    registry.connect("a", tcp("10.0.0.1", 1), INFO, 0.0, who=own)
    for number in range(SWEEP + 2):
        registry.register("a", pub(number), 0.0)
    registry.leave("a")
    assert registry.sweeping
    assert (registry.knows("a", own), registry.knows("a", thief)) == (True, False)
    while registry.sweeping:
        registry.sweep()
    assert registry.knows("a", thief)


# --- peers that come back to a coordinator that has just started --------------------------------


def test_who_comes_back_hears_of_new_pubs_that_came_and_went_meanwhile() -> None:
    registry = connected("P", "Q", "S")
    registry.settling = True
    registry.register("P", pub(1, "a/x"), 0.0)
    registry.register("P", pub(2, "a/y", renewed=True), 0.0)  # it waits for nobody any more
    registry.register("P", pub(3, "b"), 0.0)
    registry.register("Q", pub(1, "a/z"), 0.0)
    for id in (1, 2, 3):
        registry.unregister("P", id)
    registry.leave("Q")
    told = registry.register("S", sub(4, "a/*", renewed=True), 1.0)
    (_, added), (_, removed) = told[1:]
    assert isinstance(added, Match)
    assert isinstance(removed, Match)
    assert [(row.topic, row.before) for row in added.added] == [("a/x", True), ("a/z", True)]
    assert removed.removed == (("P", 1), ("Q", 1))
    # one that is new was due none of it
    assert len(registry.register("S", sub(5, "a/*"), 1.0)) == 1
    registry.settled()
    assert len(registry.register("S", sub(6, "a/*", renewed=True), 1.0)) == 1


def test_of_those_that_came_and_went_a_bounded_number_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MAX_DEPARTED", 3)
    registry = connected("P", "S")
    registry.settling = True
    for id in range(5):
        registry.register("P", pub(id, f"a/{id}"), 0.0)
        registry.unregister("P", id)
    _, (_, added), _ = registry.register("S", sub(9, "**", renewed=True), 1.0)
    assert isinstance(added, Match)
    assert len(added.added) == 3
