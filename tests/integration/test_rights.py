"""Rights between whole peers and coordinators: who is refused what, how it is told, what goes on.

Who has which rights is decided here, in the place of credentials.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pubsub import Gap, Peer
from pubsub.cli.asking import ask
from pubsub.config import Address
from pubsub.core.rights import Rights
from pubsub.errors import AuthError
from pubsub.wire.handshake import Acceptor, Dialler, Other
from tests.integration.support import (
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
)

COORDINATOR = "the coordinator"


class Given:
    """The rights that each has in the eyes of each: by the name of a peer, or its identity, or
    `COORDINATOR`. Who is not named has all."""

    def __init__(self) -> None:
        self._rights: dict[tuple[str, str], Rights] = {}

    def give(self, whom: str, rights: Rights, *by: str) -> None:
        for one in by or (COORDINATOR,):
            self._rights[one, whom] = rights

    def seen_by(self, me: Any, other: Other | None) -> Other | None:
        if other is None:
            return None
        eyes = COORDINATOR if me.role == "coordinator" else me.info["name"]
        whom = other.info["name"] if other.role == "peer" else other.role
        rights: Any = self._rights.get((me.peer_id, whom)) or self._rights.get((eyes, whom))
        if rights is None:
            return other
        return other._replace(standing=other.standing._replace(rights=rights))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    found = Given()
    for side in (Acceptor, Dialler):

        def receive(self: Any, event: Any, receive: Any = side.receive) -> Any:
            answer, other = receive(self, event)
            return answer, found.seen_by(self.me, other)

        monkeypatch.setattr(side, "receive", receive)
    return found


KITCHEN = Rights(["kitchen/**"], ["config/*"])
NO_PUB = "this peer may not publish 'attic/a': it may publish 'kitchen/\\*\\*'"
NO_SUB = "this peer may not subscribe 'kitchen/a': it may subscribe 'config/\\*'"


async def test_a_pub_and_a_sub_without_the_right_raise_and_the_connection_stays(
    given: Given,
) -> None:
    given.give("stove", KITCHEN)
    async with coordinator_in_loop() as address, Peer(address, name="stove") as stove:
        pub = await stove.pub("kitchen/a")
        link = stove.runtime.sessions[0].link
        with pytest.raises(AuthError, match=f"'attic/a'.* refused by .*{address}: {NO_PUB}"):
            await stove.pub("attic/a")
        with pytest.raises(AuthError, match=f"'kitchen/a'.* refused by .*{address}: {NO_SUB}"):
            await stove.sub("kitchen/a")
        with pytest.raises(AuthError, match="may not subscribe"):
            async with stove.sub("kitchen/**"):
                pass
        await stove.sub("config/a")
        assert stove.runtime.sessions[0].link is link
        assert link is not None
        assert not pub.closed
        async with Peer(address, name="other") as other, other.sub("kitchen/*") as sub:
            pub.put("goes on")
            assert await sub.get(timeout=10) == "goes on"


def test_constructors_that_block_raise(given: Given) -> None:
    given.give("stove", KITCHEN)
    with coordinator_in_thread() as coordinator, Peer(coordinator.address, name="stove") as stove:
        with pytest.raises(AuthError, match=NO_PUB):
            stove.pub("attic/a")
        with pytest.raises(AuthError, match=NO_SUB):
            stove.sub("kitchen/a")
        stove.pub("kitchen/a").close()
        assert stove.runtime.snapshot().pubs[-1].topic == "kitchen/a"


async def test_a_pub_that_nobody_awaited_raises_at_its_next_put_and_says_what_was_lost(
    given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    given.give("stove", KITCHEN)
    async with coordinator_in_loop() as address, Peer(address, name="stove") as stove:
        pub = stove.pub("attic/a")
        for value in range(3):
            pub.put(value)
        await eventually(lambda: pub.closed)
        for _ in range(2):
            with pytest.raises(AuthError, match=NO_PUB):
                pub.put("more")
        with pytest.raises(AuthError, match=NO_PUB):
            await pub.flush()
        with pytest.raises(AuthError, match=NO_PUB):
            await pub
        await pub.close()
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].endswith("; not delivered: 3 messages")


async def test_a_sub_that_nobody_awaited_raises_for_who_waits_for_a_message(given: Given) -> None:
    given.give("stove", KITCHEN)
    async with coordinator_in_loop() as address, Peer(address, name="stove") as stove:
        with pytest.raises(AuthError, match=NO_SUB):
            await stove.sub("kitchen/a").get(timeout=10)
        with pytest.raises(AuthError, match=NO_SUB):
            async for _ in stove.sub("kitchen/a"):
                raise AssertionError
        with pytest.raises(AuthError, match=NO_SUB):
            async for _ in stove.sub("kitchen/a").messages():
                raise AssertionError


async def test_refused_by_one_coordinator_is_refused(given: Given) -> None:
    with coordinator_in_thread() as one, coordinator_in_thread() as two:
        given.give("stove", KITCHEN, two.coordinator.peer_id)
        async with (
            Peer(one.address, name="stove") as alone,
            Peer([one.address, two.address], name="stove") as both,
        ):
            pubs = [await alone.pub("attic/a"), await both.pub("kitchen/a")]
            with pytest.raises(AuthError, match=f"refused by .*{two.address}: {NO_PUB}"):
                await both.pub("attic/a")
            registry = one.coordinator.registry
            await eventually(lambda: [r["pubs"] for r in registry.peers()] == [1, 1])
            assert not any(pub.closed for pub in pubs)


async def test_a_right_that_is_lost_raises_in_a_get_and_in_a_put_that_waits(given: Given) -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="stove") as stove,
        Peer(address, name="other") as other,
    ):
        pub = await stove.pub("attic/a", overflow="block", buffer=1)
        sub = await stove.sub("kitchen/a")
        reader = await other.sub("attic/a", window=1)
        await pub.put(b"x" * 100_000)
        waiting_put = asyncio.ensure_future(_put_until_it_raises(pub))
        waiting_get = asyncio.ensure_future(sub.get())
        await eventually(lambda: pub._queue)
        given.give("stove", KITCHEN)
        stove.runtime.sessions[0].link.abort()  # type: ignore[union-attr]
        with pytest.raises(AuthError, match=NO_PUB):
            await asyncio.wait_for(waiting_put, 10)
        with pytest.raises(AuthError, match=NO_SUB):
            await asyncio.wait_for(waiting_get, 10)
        assert await reader.get(timeout=10) == b"x" * 100_000


async def _put_until_it_raises(pub: Any) -> None:
    while True:
        await pub.put(b"x" * 100_000)


async def test_a_publisher_refuses_whom_a_coordinator_sends_without_the_right(
    given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    given.give("display", KITCHEN, "stove")
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="stove") as stove,
        Peer(address, name="display") as display,
    ):
        pub = await stove.pub("kitchen/a")
        sub = await display.sub("kitchen/**")
        pub.put("secret")
        gap = await asyncio.wait_for(anext_(sub.messages()), 10)
        assert isinstance(gap, Gap)
        assert (gap.missed, gap.reason) == (0, "unreachable")
        other = await stove.pub("kitchen/b")
        await eventually(lambda: len(sub.publishers) == 2)
        await eventually(lambda: {p["state"] for p in sub.publishers.values()} == {"unreachable"})
        assert pub.subscribers == other.subscribers == {}
        await asyncio.wait_for(pub.flush(), 10)  # nobody is waited for
    said = [r.getMessage() for r in caplog.records if "gets no" in r.getMessage()]
    (warning,) = [text for text in said if "kitchen/a" in text]
    assert warning.startswith("Sub('kitchen/**') gets no 'kitchen/a' from 127.0.0.1:")
    assert warning.endswith("it may not subscribe this topic: it may subscribe 'config/*'")


async def anext_(messages: Any) -> Any:
    return await messages.__anext__()


async def test_a_subscriber_takes_nothing_from_who_may_not_publish_it(
    given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    given.give("liar", KITCHEN, "display")
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="liar") as liar,
        Peer(address, name="stove") as stove,
        Peer(address, name="display") as display,
    ):
        sub = await display.sub("attic/**")
        false, true = await liar.pub("attic/a"), await stove.pub("attic/a")
        await true.wait_for_subscribers(timeout=10)
        await eventually(lambda: "unreachable" in str(sub.publishers))
        false.put("false")
        true.put("true")
        assert await sub.get(timeout=10) == "true"
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0)
        await eventually(lambda: not false.subscribers)
    said = [r.getMessage() for r in caplog.records if "gets no" in r.getMessage()]
    assert len(said) == 1
    assert "it may not publish this topic: it may publish 'kitchen/**'" in said[0]


async def test_a_pattern_wider_than_the_right_is_told_once_what_is_covered(
    given: Given, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.give("display", KITCHEN)
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="stove") as stove,
        Peer(address, name="display") as display,
    ):
        monkeypatch.setattr(type(display.runtime.guard), "rights", KITCHEN)
        inside, outside = await stove.pub("config/a"), await stove.pub("secret/a")
        sub = await display.sub("**")
        await display.sub("config/*")
        inside.put("within")
        outside.put("beyond")
        assert await sub.get(timeout=10) == "within"
        assert [p["topic"] for p in sub.publishers.values()] == ["config/a"]
        assert outside.subscribers == {}
    said = [r.getMessage() for r in caplog.records if "gets only" in r.getMessage()]
    assert said == ["Sub('**') gets only what this process may subscribe as well: 'config/*'"]


async def test_who_asks_is_told_what_is_within_its_rights(given: Given) -> None:
    given.give("client", KITCHEN)
    async with coordinator_in_loop() as address, Peer(address, name="stove") as stove:
        pubs = [await stove.pub("kitchen/a"), await stove.pub("secret/a")]
        guard = stove.runtime.guard.twin()
        at = Address("127.0.0.1", int(address.rpartition(":")[2]))
        rows = await asyncio.to_thread(ask, at, "topics", guard)
        assert [row["topic"] for row in rows] == ["kitchen/a"]
        with pytest.raises(AuthError, match=f"the coordinator at {address}: .*cert issue … --list"):
            await asyncio.to_thread(ask, at, "peers", guard)
        given.give("client", Rights(list=True))
        assert [row["name"] for row in await asyncio.to_thread(ask, at, "peers", guard)] == [
            "stove"
        ]
        assert not any(pub.closed for pub in pubs)
