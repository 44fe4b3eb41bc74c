"""What shows at a prompt: a Pub, Sub or Peer has the names that its page explains, no others."""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pubsub import Peer, Pub, Sub
from tests.integration.support import coordinator_in_loop, coordinator_in_thread

pytestmark = pytest.mark.loop

PUB = "close closed empty flush put put_many subscribers wait_for_subscribers"
PUB_HAS = "buffer codec history overflow peer topic"
SUB = "close closed get get_many lost messages publishers"
SUB_HAS = "allow_pickle copy history keep observer peer topic window"
PEER = "address close closed peer_id pub stats sub"
PEER_HAS = "blocking coordinators settings"


def names(of: Any) -> list[str]:
    return [name for name in dir(of) if not name.startswith("_")]


def check(peer: Peer, pub: Pub, sub: Sub) -> None:
    for one, of_class, of_each in (
        (peer, PEER, PEER_HAS),
        (pub, PUB, PUB_HAS),
        (sub, SUB, SUB_HAS),
    ):
        assert names(type(one)) == of_class.split()
        assert names(one) == sorted(f"{of_class} {of_each}".split())
        with pytest.raises(TypeError, match="belongs to its process"):
            copy.copy(one)


@pytest.fixture
async def coordinator() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


async def test_the_names_of_what_belongs_to_an_event_loop(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        check(peer, peer.pub("t"), peer.sub("t"))


def test_the_names_of_what_blocks() -> None:
    with coordinator_in_thread() as server, Peer(server.address) as peer:
        check(peer, peer.pub("t"), peer.sub("t"))
    assert (names(Pub), names(Sub), names(Peer)) == (PUB.split(), SUB.split(), PEER.split())


def test_what_is_called_shows_its_options() -> None:
    for face, option in ((Pub, "overflow"), (Sub, "window"), (Peer, "coordinator")):
        assert option in inspect.signature(face).parameters
