"""Reach: a way for every pair, and nothing lost while it changes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pubsub import Gap, Message, Peer
from pubsub.config import Address, Settings, parse_address
from pubsub.coordinator.registry import Push, Registry
from pubsub.coordinator.server import Coordinator
from pubsub.core.inbox import Inbox
from pubsub.errors import ProtocolError
from pubsub.relay.server import Relay
from pubsub.runtime import publisher_link
from pubsub.runtime.calling import Callbacks
from pubsub.runtime.publisher_link import Remote
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from pubsub.wire.handshake import SUBSCRIBER, Other, tcp
from pubsub.wire.messages import Call, Called
from tests.faults.flow import flow
from tests.faults.proxy import behind
from tests.integration.support import LONG, coordinator_in_loop, default_guard, eventually
from tests.relay.meeting import a_relay

QUICK: dict[str, Any] = {"connect_timeout": 2.0, "resume_timeout": LONG, "ping_timeout": LONG}


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with coordinator_in_loop() as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better ways are looked for often."""
    monkeypatch.setattr(publisher_link, "BETTER", 0.2)


def remote_of(peer: Peer) -> Remote:
    (remote,) = peer.runtime.publishers.remotes.values()
    return remote


def way_of(peer: Peer) -> str:
    return remote_of(peer).address.kind


@pytest.mark.loop
async def test_g4_a_publisher_that_does_not_listen_dials_its_subscribers(address: str) -> None:
    async with Peer(address) as here, Peer(address, listen=False) as there:
        sub = await here.sub("t")
        pub = there.pub("t")
        pub.put("first")
        assert await sub.get(timeout=LONG) == "first"
        late = await here.sub("*")
        pub.put("second")
        assert [await each.get(timeout=LONG) for each in (sub, late)] == ["second"] * 2
        assert way_of(here) == "reverse"
        assert [row.way for row in there.runtime.snapshot().links] == ["reverse"]
        ways = [(row["way"], row["failed"]) for row in pub.subscribers.values()]
        assert ways == [("reverse", ["direct: this Peer does not listen"])] * 2
        assert (sub.lost, late.lost) == (0, 0)
        assert there.address == "", "nobody is told to dial it"
        assert not there.runtime.doors.servers


@pytest.mark.loop
async def test_g4_a_sub_is_ready_when_a_publisher_that_does_not_listen_has_dialled(
    address: str,
) -> None:
    async with Peer(address, listen=False) as there, Peer(address) as here:
        pub = await there.pub("t")
        pub.put("before")
        sub = await here.sub("t")
        pub.put("after")
        assert await sub.get(timeout=LONG) == "after"


@pytest.mark.loop
async def test_g5_a_link_that_a_publisher_dialled_is_dialled_again_by_it(address: str) -> None:
    async with Peer(address, listen=False) as there, Peer(address, **QUICK) as here:
        sub, pub = await here.sub("t"), await there.pub("t")
        async with flow(pub, sub) as flowing:
            for _ in range(3):
                await flowing.passes(20)
                link = remote_of(here).link
                assert link is not None
                link.abort()
            await flowing.passes(20)
            assert flowing.lost == 0


@pytest.mark.loop
@pytest.mark.usefixtures("soon")
async def test_g5_the_way_changes_under_flow_and_nothing_is_lost(address: str) -> None:
    """Direct, cut, reverse, and direct again as soon as that goes: in order, none twice."""
    async with behind(address, detour=True) as (there, proxy), Peer(address, **QUICK) as here:
        sub, pub = await here.sub("t"), await there.pub("t")
        large = await here.sub("large"), await there.pub("large")
        async with flow(pub, sub, rate=5_000) as flowing:
            for _ in range(3):
                await flowing.passes(100)
                assert way_of(here) == "direct"
                await proxy.down()
                await flowing.passes(100)
                assert way_of(here) == "reverse"
                blob = os.urandom(3_000_000)
                large[1].put(blob)
                proxy.up()
                await eventually(lambda: way_of(here) == "direct")
                assert await large[0].get(timeout=LONG) == blob
            await flowing.passes(100)
            assert flowing.lost == 0
            links = there.runtime.subscribers.served
            await eventually(lambda: len(links) == 1, "the one before has ended")


@pytest.mark.usefixtures("soon")
async def test_g5_a_better_way_that_breaks_while_streams_move_to_it_loses_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link that opens is cut before, or amid, the answers to what is subscribed on it."""
    async with behind(address, detour=True) as (there, proxy), Peer(address, **QUICK) as here:
        sub, pub = await here.sub("t"), await there.pub("t")
        others = [await here.sub("t") for _ in range(20)]
        await proxy.down()
        async with flow(pub, sub, rate=2_000) as flowing:
            await flowing.passes(100)
            assert way_of(here) == "reverse"
            for cut in (600, 900, 1_600, 2_500):
                proxy.reset_at = cut
                proxy.up()
                await eventually(lambda: proxy.resets > 0)
                await proxy.down()
                proxy.resets = 0
                await flowing.passes(50)
            proxy.reset_at = None
            proxy.up()
            await eventually(lambda: way_of(here) == "direct")
            await flowing.passes(50)
            assert flowing.lost == 0
            assert [other.lost for other in others] == [0] * len(others)


# --- over a relay -----------------------------------------------------------------------


@asynccontextmanager
async def meeting_place(*coordinators: str) -> AsyncIterator[Relay]:
    """A relay that these coordinators know."""
    async with a_relay(default_guard(), tuple(map(parse_address, coordinators))) as relay:
        await eventually(lambda: all(kept.up for kept in relay.coordinators))
        yield relay


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All have a key: over a relay there is TLS, for which that of a user on one machine has no
    certificates."""
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    monkeypatch.delenv("PUBSUB_INSECURE", raising=False)
    path = tmp_path / "key"
    write_file(path, f"{Key.new().text()}\n".encode())
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(path))
    monkeypatch.setenv("PUBSUB_ENCRYPT", "1")  # a proxy lies between


@pytest.fixture
async def keyed_address(keyed: None) -> AsyncIterator[str]:
    async with coordinator_in_loop() as made:
        yield made


HIDDEN: dict[str, Any] = {"listen": False, "resume_timeout": LONG}


@pytest.mark.loop
async def test_g4_two_peers_that_nobody_can_dial_meet_at_a_relay(keyed_address: str) -> None:
    address = keyed_address
    async with (
        meeting_place(address) as relay,
        Peer(address, **HIDDEN) as here,
        Peer(address, **HIDDEN) as there,
    ):
        sub = await here.sub("t")
        pub = there.pub("t")
        pub.put("first")
        assert await sub.get(timeout=LONG) == "first"
        assert way_of(here) == "relay"
        assert [row.way for row in there.runtime.snapshot().links] == ["relay"]
        blob = os.urandom(5_000_000)
        pub.put(blob)
        assert await sub.get(timeout=LONG) == blob
        assert len(relay.circuits) == 1
        (publisher,) = sub.publishers.values()
        assert publisher["way"] == "relay"
        assert [why.partition(":")[0] for why in publisher["failed"]] == ["direct", "reverse"]
        (subscriber,) = pub.subscribers.values()
        assert subscriber["way"] == "relay"
        assert subscriber["failed"] == [
            "direct: this Peer does not listen",
            "reverse: it does not listen",
        ]


@pytest.mark.loop
async def test_g5_a_relay_that_dies_is_a_broken_link_and_another_one_is_taken(
    keyed_address: str,
) -> None:
    address = keyed_address
    async with Peer(address, **HIDDEN) as here, Peer(address, **HIDDEN) as there:
        async with meeting_place(address) as first:
            sub, pub = await here.sub("t"), await there.pub("t")
            pub.put("x")
            assert await sub.get(timeout=LONG) == "x"
            assert len(first.circuits) == 1
        pub.put("y")
        async with meeting_place(address) as second:
            assert await sub.get(timeout=LONG) == "y"
            assert len(second.circuits) == 1
            assert sub.lost == 0


@pytest.mark.usefixtures("soon")
async def test_g5_the_way_changes_from_direct_to_a_relay_and_back_under_flow(
    keyed_address: str,
) -> None:
    address = keyed_address
    async with (
        meeting_place(address),
        behind(address, detour=True) as (there, proxy),
        Peer(address, **HIDDEN) as here,
    ):
        sub, pub = await here.sub("t"), await there.pub("t")
        async with flow(pub, sub, rate=20_000) as flowing:
            for _ in range(2):
                await flowing.passes(1_000)
                assert way_of(here) == "direct"
                await proxy.down()
                await flowing.passes(1_000)
                assert way_of(here) == "relay"
                proxy.up()
                await eventually(lambda: way_of(here) == "direct")
            await flowing.passes(1_000)
            assert flowing.lost == 0


async def test_what_failed_is_said_where_there_is_no_way(address: str) -> None:
    async with Peer(address, **HIDDEN) as here, Peer(address, **HIDDEN) as there:
        sub, pub = await here.sub("t"), await there.pub("t")
        pub.put(1)
        await eventually(
            lambda: [row["state"] for row in sub.publishers.values()] == ["unreachable"]
        )
        ((called, publisher),) = sub.publishers.items()
        assert re.fullmatch(rf".+ \(pid {os.getpid()} on .+\)#1", called)
        assert publisher["way"] == ""
        assert publisher["failed"] == [
            "direct: nobody says where this machine could dial it",
            "reverse: this Peer does not listen",
            "relay: there is none (pubsubd relay, pubsubd coordinator --relay)",
        ]


async def test_publishers_that_say_the_same_of_themselves_are_told_apart(address: str) -> None:
    """As the first processes of containers do, which nobody can dial."""
    async with Peer(address) as here, AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(Peer(address, name="worker", listen=False))
            for _ in range(2)
        ]
        sub = await here.sub("t")
        pubs = [await peer.pub("t") for peer in peers]
        for pub in pubs:
            pub.put(1)
        said = [event async for event in _first(sub, 2)]
        called = set(sub.publishers)
        assert {event.publisher for event in said} == called
        assert len(called) == 2
        assert all(name.startswith(f"worker (pid {os.getpid()} on ") for name in called)


async def _first(sub: Any, count: int) -> AsyncIterator[Message | Gap]:
    async for event in sub.messages():
        yield event
        count -= 1
        if not count:
            return


@pytest.mark.parametrize("attached", [False, True])
async def test_g9_a_pub_that_lingers_stays_listed_for_who_cannot_reach_it_yet(
    address: str, attached: bool
) -> None:
    """One that is expected, or was cut off."""
    async with (
        behind(address, detour=True, linger=LONG, join_timeout=LONG) as (there, proxy),
        Peer(address, connect_timeout=1.0, **HIDDEN) as here,
    ):
        if not attached:
            await proxy.down()
        sub, pub = here.sub("t"), await there.pub("t")
        if attached:
            await pub.wait_for_subscribers(timeout=LONG)
            await proxy.down()
        await eventually(lambda: len(pub.subscribers) == 1)
        pub.put_many(range(3))
        closing = asyncio.ensure_future(pub.close())
        await eventually(lambda: remote_of(here).in_vain)
        assert not closing.done()
        proxy.up()
        await closing
        got = [event async for event in _first(sub, 3 if attached else 5)]
        assert [event.value for event in got if isinstance(event, Message)] == [0, 1, 2]
        assert [event.reason for event in got if isinstance(event, Gap)] == (
            [] if attached else ["unreachable", "reached"]
        )
        assert sub.lost == 0
        sub.close()


class _Apart(Registry):
    """A registry to which the peer of the name ``far`` comes from another machine."""

    def connect(
        self, peer_id: str, ways: Any, info: dict[str, Any], now: float, **more: Any
    ) -> list[Push]:
        if info["name"] == "far":
            more["source"], more["met_at"] = "10.77.1.11", Address("10.77.1.1", 7700)
        return super().connect(peer_id, ways, info, now, **more)


@pytest.mark.parametrize("met", [True, False])
async def test_a_publisher_on_loopback_says_that_it_is_out_of_reach_of_nobody_whom_it_meets(
    keyed: None, met: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a relay, to which both have dialled. (127.1 is an address that the same machine has.)"""
    loop = asyncio.get_running_loop()
    coordinator = Coordinator(loop, registry=_Apart(), settle=0.0, guard=default_guard())
    where = await coordinator.start("127.0.0.1", 0)
    on_all = Settings(host="127.0.0.1", advertise="127.1")
    async with (
        a_relay(default_guard(), (where,), on_all) as relay,
        Peer(str(where), name="far", **HIDDEN) as there,
        Peer(str(where), name="app") as here,
    ):
        await eventually(lambda: all(kept.up for kept in relay.coordinators))
        if not met:
            monkeypatch.setattr(Remote, "_meet", _never)
        sub, pub = there.sub("t"), await here.pub("t")
        if met:
            await pub.wait_for_subscribers(timeout=LONG)
            assert [row["way"] for row in pub.subscribers.values()] == ["relay"]
            (open_pub,) = here.runtime.pubs.values()
            assert open_pub.apart
            here.runtime._say_apart(open_pub)  # the time is over
        else:
            (open_pub,) = here.runtime.pubs.values()
            await eventually(lambda: bool(open_pub.apart))
        await pub.close()
        sub.close()
    await coordinator.close()
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert any("on another machine wants 't'" in line for line in said) == (not met)


async def _never(remote: Remote) -> None:
    raise ConnectionError("there is none")


async def test_g3_a_publisher_to_which_no_way_leads_is_said_and_again_when_one_does(
    keyed_address: str,
) -> None:
    """What is put before it is reached is delivered, or counted: it is known since when the Sub was
    due it."""
    address = keyed_address
    async with (
        Peer(address, **HIDDEN) as here,
        Peer(address, join_timeout=0.5, **HIDDEN) as there,
    ):
        sub = await here.sub("t")
        pub = await there.pub("t", overflow="drop", buffer=1_000_000)
        pub.put("kept")
        events = sub.messages()
        event = await asyncio.wait_for(anext(events), LONG)
        assert isinstance(event, Gap)
        assert (event.missed, event.reason) == (0, "unreachable")
        await asyncio.sleep(1.0)  # nobody holds its place any more
        async with meeting_place(address):
            event = await asyncio.wait_for(anext(events), LONG)
            assert isinstance(event, Gap)
            due = [event]
            while due[-1].reason != "reached":
                event = await asyncio.wait_for(anext(events), LONG)
                assert isinstance(event, Gap)
                due.append(event)
            assert sum(each.missed for each in due) == sub.lost == 1
            pub.put("new")
            message = await asyncio.wait_for(anext(events), LONG)
            assert isinstance(message, Message)
            assert message.value == "new"


async def test_nobody_is_dialled_by_a_publisher_that_it_has_not_called(address: str) -> None:
    async with Peer(address) as here, Peer(address) as there:
        sub, pub = await here.sub("t"), await there.pub("t")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        other = Other("peer", there.peer_id, (), {}, 0.0, wants=SUBSCRIBER)
        for peer_id in (there.peer_id, "stranger"):
            with pytest.raises(ProtocolError, match="nobody here has called") as refused:
                here.runtime.publishers.admit(other._replace(peer_id=peer_id))
            assert refused.value.code == "role"


async def test_a_publisher_that_was_called_and_comes_late_has_done_nothing_wrong(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dialled: list[str] = []
    done = Callbacks._done

    def is_done(self: Callbacks, peer_id: str, task: asyncio.Task[None]) -> None:
        done(self, peer_id, task)
        dialled.append(peer_id)

    monkeypatch.setattr(Callbacks, "_done", is_done)
    monkeypatch.setattr(publisher_link, "DETOUR", 0.0)  # both dial
    async with Peer(address) as here, Peer(address) as there:
        pub, sub = await there.pub("t"), await here.sub("t")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        await eventually(lambda: dialled == [here.peer_id])
        await eventually(lambda: len(there.runtime.subscribers.served) == 1)
        pub.put(2)
        assert await sub.get(timeout=LONG) == 2
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_peer_that_is_called_too_often_dials_each_caller_once_at_a_time(
    address: str,
) -> None:
    async with Peer(address) as here, Peer(address, listen=False) as there:
        sub, pub = await here.sub("t"), await there.pub("t")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        (session,) = here.runtime.sessions
        inbox: Inbox = sub._inbox
        (key,) = inbox.streams
        for _ in range(200):
            session.send(Call(inbox.sub_id, key.peer_id, key.stream_id, False))
        callbacks = there.runtime.callbacks
        most = 0
        for _ in range(50):
            await asyncio.sleep(0.01)
            most = max(most, len(callbacks._tasks))
        assert most <= 1
        pub.put(2)
        assert await sub.get(timeout=LONG) == 2


async def test_where_many_callers_are_named_at_one_address_it_is_dialled_as_for_one(
    address: str,
) -> None:
    """A coordinator that lies has a publisher dial nobody more often than whoever fails there."""
    dialled = 0

    async def victim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(victim, "127.0.0.1", 0)
    ways = tcp(*server.sockets[0].getsockname()[:2])
    async with server, Peer(address) as there:
        await there.pub("t")
        (session,) = there.runtime.sessions
        for number in range(1_000):
            there.runtime.called(session, Called(f"caller {number}", ways, ()))
            await asyncio.sleep(0.001)
        assert 0 < dialled < 30


async def test_g4_a_relay_that_answers_nobody_does_not_keep_a_pair_from_the_next(
    keyed_address: str,
) -> None:
    address = keyed_address
    async with meeting_place(address) as mute, meeting_place(address) as other:
        mute.ask = lambda peer_id, other: None  # type: ignore[method-assign]
        async with (
            Peer(address, connect_timeout=1.0, **HIDDEN) as here,
            Peer(address, **HIDDEN) as there,
        ):
            sub, pub = await here.sub("t"), await there.pub("t")
            pub.put("x")
            assert await sub.get(timeout=LONG) == "x"
            assert len(other.circuits) == 1
            assert mute.peer_id in here.runtime.publishers.relays.kept, "which was tried first"


async def test_a_session_with_a_relay_ends_with_what_it_stands_on(keyed_address: str) -> None:
    address = keyed_address
    async with (
        meeting_place(address),
        Peer(address, **HIDDEN) as here,
        Peer(address, **HIDDEN) as there,
    ):
        sub, pub = await here.sub("t"), await there.pub("t")
        pub.put("x")
        assert await sub.get(timeout=LONG) == "x"
        for peer in (here, there):
            (kept,) = peer.runtime.publishers.relays.kept.values()
            link = kept.link
            assert link is not None
            peer.runtime.guard.counts = lambda standing: False  # type: ignore[method-assign]
            peer.runtime.renewal.review()
            assert link.closing
