"""What a connection stands on, where credentials change while it is made."""

from __future__ import annotations

from random import Random

import pytest

from pubsub.core.rights import EVERYTHING
from pubsub.errors import ProtocolError
from pubsub.trust.guard import Group, Guard, Holder, Private
from pubsub.trust.keys import Key
from pubsub.wire.handshake import Authenticator, Standing
from tests.simulation.credentials import issued

pytest.importorskip("cryptography", reason="certificates are made by it")

from pubsub.trust.authority import Authority, group_leaf
from pubsub.trust.certificates import Pair
from pubsub.trust.pairs import new_key
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
    peer_id = holder(authority, "theirs").new_id()
    before, after = (issued(authority, random, "ours") for _ in range(2))
    guard = Holder(lambda: (before, b""))
    assert stands(guard, der, peer_id, (after, b"")) == [False, True]


def holder(authority: Authority, name: str) -> Holder:
    own = issued(authority, Random(name), name)
    return Holder(lambda: (own, b""))


def shown(guard: Holder, issuer: Authority, name: str) -> list[Authenticator]:
    """What it asks who shows such a certificate, where it has dialled and where it was dialled."""
    der = der_of(issuer.issue(name, new_key().public_key(), EVERYTHING))
    return [guard.dials(((), ()), lambda: der), guard.takes(((), ()), lambda: der)]


@pytest.mark.parametrize("role", ["peer", "coordinator", "client"])
def test_an_identity_is_for_those_alone_who_have_its_name(role: str) -> None:
    """So one who learns it cannot come first under it. It lasts when the certificate is issued
    anew, and does not depend on who has issued it."""
    authority, other = Authority.new("a CA"), Authority.new("of another PKI")
    ours = holder(authority, "ours")
    peer_id = holder(authority, "theirs").new_id()
    assert len(f"{peer_id}-probe") <= 64
    assert holder(authority, "theirs").new_id() != peer_id, "each process has one of its own"

    for issuer, name in ((authority, "theirs"), (other, "theirs")):
        for asks in shown(ours, issuer, name):
            assert asks.vouch(role, peer_id).name == name
    for name in ("ours", "Theirs", "", peer_id[:32]):
        for asks in shown(ours, authority, name):
            with pytest.raises(ProtocolError, match="that of another peer") as raised:
                asks.vouch(role, peer_id)
            assert raised.value.code == "auth"


def test_a_handshake_that_began_with_the_key_before_does_not_stand_on_the_new_one() -> None:
    old, new = Key.new(), Key.new()
    theirs = new_key().public_key()
    der = der_of(group_leaf(Authority.of_group(new), theirs))
    guard = Group((old, new), lambda: (old, new), True, Pair.new())
    assert stands(guard, der, identity_of_key(theirs), (new,)) == [False, True]


@pytest.mark.parametrize(
    ("host", "source", "objects"),
    [
        ("10.0.0.7", "10.0.0.7", ""),
        ("fd00:0:0::7", "fd00::7", ""),
        ("10.0.0.8", "10.0.0.7", "all but keys"),
        ("gate.example", "10.0.0.7", "open"),
        ("Gate.Example", "10.0.0.7", "open"),
        ("127.0.0.1", "127.0.0.1", ""),
        ("127.0.0.1", "10.0.0.7", "all but keys"),
        ("10.0.0.8", "127.0.0.1", "certificates"),
    ],
)
def test_which_addresses_others_are_told_to_dial(host: str, source: str, objects: str) -> None:
    authority, random = Authority.new("a CA"), Random(0)
    own = issued(authority, random, "ours")
    standing = Standing(name="lamp", hosts=("gate.example",))
    said = {
        "open": Guard().objection(host, source, standing),
        "certificates": Holder(lambda: (own, b"")).objection(host, source, standing),
    }
    assert Private(Key.new()).objection(host, source, standing) == ""
    assert [mode for mode, why in said.items() if why] == (
        list(said) if objects == "all but keys" else [objects] if objects else []
    )
    assert not said["open"] or "--trust-advertise" in said["open"]
    assert not said["certificates"] or f"'lamp' with --advertise {host}" in said["certificates"]
