"""`connect`: what the default Peers of a process are made with."""

from __future__ import annotations

import os
from typing import Any

import pytest

import pubsub
from pubsub import AuthError, Coordinator, new_key
from tests.integration.support import run_python

BEGIN = """
import asyncio, os
from pubsub import Coordinator, Peer, Pub, Sub, connect, new_key
def exchange():
    with Sub("topic") as sub, Pub("topic") as pub:
        pub.put(os.getpid())
        assert sub.get(timeout=20) == os.getpid()
        return pub.peer
"""


def test_plain_pubs_and_subs_go_there_whatever_the_environment_says() -> None:
    out = run_python(
        BEGIN
        + """
key = new_key()
with Coordinator(key=key) as coordinator, Peer(coordinator.address, key=key) as other:
    heard = other.sub("from/*")
    connect(coordinator.address, key, name="worker")
    with Pub("from/thread") as pub:
        pub.put(pub.peer.settings.name)
    async def main():
        async with Pub("from/loop") as pub:
            await pub.put(pub.peer.settings.name)
    asyncio.run(main())
    print(heard.get(timeout=20), heard.get(timeout=20), key in os.environ.values())
    pub.peer.close()
""",
        PUBSUB_COORDINATOR="127.0.0.1:1",
        PUBSUB_KEY=new_key(),
    )
    assert out == "worker worker False\n"


def test_again_with_the_same_it_changes_nothing_and_with_another_what_is_there_stays() -> None:
    out = run_python(
        BEGIN
        + """
one, two = Coordinator(), Coordinator()
connect(one.address)
older, sub = Pub("topic"), Sub("topic")
connect(one.address)
print(exchange() is older.peer)
connect(two.address)
newer = exchange()
print(newer is older.peer, str(newer.coordinators[0]) == two.address)
async def main():
    async with Sub("t") as first:
        connect(one.address)
        async with Sub("t") as second:
            for sub_, coordinator in ((first, two), (second, one)):
                print(str(sub_.peer.coordinators[0]) == coordinator.address)
asyncio.run(main())
older.put("still")
while sub.get(timeout=20) != "still": pass
"""
    )
    assert out.splitlines() == ["True", "False True", "True", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_goes_there_too() -> None:
    out = run_python(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
"""
        + BEGIN
        + """
import sys
key = new_key()
with Coordinator(key=key) as coordinator, Peer(coordinator.address, key=key) as other:
    heard = other.sub("topic")
    connect(coordinator.address, key)
    with Pub("topic") as pub: pub.put(1)
    child = os.fork()
    if child == 0:
        with Pub("topic") as pub: pub.put(2)
        os._exit(0)
    os.waitpid(child, 0)
    print(heard.get(timeout=20), heard.get(timeout=20))
    pub.peer.close()
"""
    )
    assert out == "1 2\n"


@pytest.mark.parametrize(
    ("given", "kind", "why"),
    [
        (("head",), ValueError, "'head' is not host:port"),
        (("head:1", "password"), AuthError, "the key is no key"),
        (("head:1", b"bytes"), TypeError, "key= is bytes"),
        (("head:1", 1), TypeError, "key= is int"),
    ],
)
def test_what_cannot_be_used_is_named_at_once(
    given: tuple[Any, ...], kind: type[Exception], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[object] = []
    monkeypatch.setattr("pubsub.faces.peer.default_by", set_to.append)
    with pytest.raises(kind, match=why):
        pubsub.connect(*given)
    with pytest.raises(TypeError, match="connect has no setting 'keys'; it has key, host"):
        pubsub.connect("head:1", keys="x")
    assert not set_to
    with Coordinator() as coordinator:
        pubsub.connect(coordinator.address, linger=1)
    assert set_to == [{"coordinator": coordinator.address, "key": None, "linger": 1}]
