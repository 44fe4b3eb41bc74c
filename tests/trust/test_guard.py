"""What a connection stands on, where credentials change while it is made."""

from __future__ import annotations

from random import Random

import pytest

from pubsub.core.rights import EVERYTHING
from pubsub.trust.guard import Group, Guard, Holder
from pubsub.trust.keys import Key
from tests.simulation.credentials import issued

pytest.importorskip("cryptography", reason="certificates are made by it")

from pubsub.trust.authority import Authority, group_leaf, new_key
from pubsub.trust.certificates import Pair
from pubsub.trust.reading import der_of, identity_of_key


def stands(guard: Guard, der: bytes, peer_id: str, found: object) -> list[bool]:
    """Whether a connection counts whose handshake began before the credentials were changed to
    those, and one that began after."""
    before = guard.dials(((), ()), lambda: der)
    guard.renew(found)
    after = guard.dials(((), ()), lambda: der)
    return [guard.counts(asks.vouch("peer", peer_id)) for asks in (before, after)]


def test_a_handshake_that_began_with_the_certificate_before_does_not_stand_on_the_new_one() -> None:
    """The other end has seen the one before, with its rights: the next look ends that link."""
    authority, random = Authority.new("a CA"), Random(0)
    der = der_of(authority.issue("theirs", new_key().public_key(), EVERYTHING))
    before, after = (issued(authority, random, "ours") for _ in range(2))
    guard = Holder(lambda: (before, b""))
    assert stands(guard, der, "any", (after, b"")) == [False, True]


def test_a_handshake_that_began_with_the_key_before_does_not_stand_on_the_new_one() -> None:
    old, new = Key.new(), Key.new()
    theirs = new_key().public_key()
    der = der_of(group_leaf(Authority.of_group(new), theirs))
    guard = Group((old, new), lambda: (old, new), True, Pair.new())
    assert stands(guard, der, identity_of_key(theirs), (new,)) == [False, True]
