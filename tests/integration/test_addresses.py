"""Where coordinators and peers listen, and what address others are told."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import pytest

from pubsub import Peer
from pubsub.config import Address, Settings
from pubsub.coordinator.registry import Push, Registry
from pubsub.coordinator.server import Coordinator
from pubsub.links import listening
from pubsub.links.listening import listen, stop_accepting
from pubsub.runtime import reports
from pubsub.runtime.coordinator_link import Session
from pubsub.wire.handshake import tcp
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    default_guard,
    eventually,
    free_port,
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@asynccontextmanager
async def _listening(host: str, port: int = 0) -> AsyncIterator[list[Address]]:
    loop = asyncio.get_running_loop()
    servers = await listen(loop, asyncio.Protocol, host, port, 10)
    try:
        yield [Address(*server.sockets[0].getsockname()[:2]) for server in servers]
    finally:
        await stop_accepting(loop, servers)


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@ipv6
@pytest.mark.parametrize(
    ("host", "v4", "v6"), [("::", True, True), ("", True, True), ("0.0.0.0", True, False)]
)
async def test_a_wildcard_is_all_addresses_of_its_families(host: str, v4: bool, v6: bool) -> None:
    async with _listening(host) as (address,):
        assert await _answers("127.0.0.1", address.port) == v4
        assert await _answers("::1", address.port) == v6


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name ``both`` has two of them, as ``localhost`` has on many a machine."""
    usual = listening._addresses

    async def addresses(loop: asyncio.AbstractEventLoop, host: str) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"] if host == "both" else await usual(loop, host)

    monkeypatch.setattr(listening, "_addresses", addresses)


async def test_a_name_of_two_addresses_has_one_port(
    two_addresses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the one that the first address was given is taken at the second."""
    usual, tried = listening._listen_at, list[Any]()

    async def listen_at(*args: Any) -> asyncio.Server:
        if len(tried) == 1:
            tried.append(None)
            raise OSError(errno.EADDRINUSE, "taken")
        server = await usual(*args)
        tried.append(server)
        return server

    monkeypatch.setattr(listening, "_listen_at", listen_at)
    async with _listening("both") as (one, two):
        assert (one.host, two.host) == ("127.0.0.1", "127.0.0.2")
        assert one.port == two.port
    first, *others = tried
    abandoned = first.is_serving()
    for server in tried:
        if server is not None:
            server.close()
    assert not abandoned
    assert len(others) == 3
    tried[:] = [None]
    with pytest.raises(OSError, match="taken"):  # a port that was asked for is not given up
        async with _listening("both", free_port()):
            pass


async def test_an_address_that_is_not_there_is_left_out_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = ["192.0.2.77", "127.0.0.1"]

    async def addresses(loop: asyncio.AbstractEventLoop, host: str) -> list[str]:
        return hosts

    monkeypatch.setattr(listening, "_addresses", addresses)
    async with _listening("name") as (address,):
        assert address.host == "127.0.0.1"
    hosts.pop()
    with pytest.raises(OSError, match="assign"):
        async with _listening("name"):
            pass


@asynccontextmanager
async def _coordinator(
    host: str, registry: Registry | None = None
) -> AsyncIterator[tuple[Address, ...]]:
    """A coordinator; yields where it listens."""
    coordinator = Coordinator(
        asyncio.get_running_loop(), registry=registry, settle=0, guard=default_guard()
    )
    first = await coordinator.start(host, 0)
    assert coordinator.addresses[0] == first
    try:
        yield tuple(coordinator.addresses)
    finally:
        await coordinator.close()


async def test_a_coordinator_says_all_addresses_of_its_name(two_addresses: None) -> None:
    async with _coordinator("both") as (one, two):
        assert two == Address("127.0.0.2", one.port)
        for address in (one, two):
            async with Peer(str(address)) as peer:
                await peer.pub("t")


@ipv6
@pytest.mark.parametrize(("host", "servers"), [("0.0.0.0", 2), ("::", 1), ("", 1)])
async def test_g3_a_wildcard_is_told_as_the_address_from_which_each_coordinator_is_reached(
    host: str, servers: int
) -> None:
    async with (
        coordinator_in_loop() as v4,
        _coordinator("::1") as (v6,),
        Peer(f"{v4},{v6}", host=host) as here,
    ):
        pub = here.pub("t")
        await eventually(lambda: all(session.up for session in here.runtime.sessions))
        told = {identity.place[0] for identity in here.runtime.doors.identities.values()}
        assert told == {"127.0.0.1", "::1"}
        assert len(here.runtime.doors.servers) == servers
        for where in (v4, str(v6)):
            async with Peer(where) as there, there.sub("t") as sub:
                pub.put(where)
                assert await sub.get(timeout=LONG) == where


async def test_a_name_that_is_loopback_here_is_told_as_such(two_addresses: None) -> None:
    """To others the name may mean another address, at which nobody listens."""
    async with coordinator_in_loop() as address, Peer(address, host="both") as peer:
        await peer.pub("t")
        assert peer.address.startswith("127.0.0.1:")
        assert len(peer.runtime.doors.servers) == 2


class _TwoMachines(Registry):
    """A registry to which peers of the name ``far`` come from another machine."""

    def connect(
        self, peer_id: str, ways: Any, info: dict[str, Any], now: float, **more: Any
    ) -> list[Push]:
        if info["name"] == "far":
            more["source"], more["met_at"] = "10.77.1.11", Address("10.77.1.1", 7700)
        return super().connect(peer_id, ways, info, now, **more)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({}, "name its coordinator as 10.77.1.1:7700"),
        ({"host": "0.0.0.0"}, "name its coordinator as 10.77.1.1:7700"),
        ({"host": "127.0.0.1"}, "Peer(host='127.0.0.1') must be an address that others can dial"),
        ({"advertise": "localhost"}, "advertise='localhost' must be what others can dial"),
    ],
)
async def test_g3_who_cannot_be_reached_from_another_machine_is_not_dialled_and_both_say_so(
    options: dict[str, str],
    way_out: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Session, "reached", Address("10.77.1.1", 7700))
    monkeypatch.setattr(reports, "MEET", 0.5)
    async with (
        _coordinator("127.0.0.1", _TwoMachines()) as (coordinator,),
        Peer(address := str(coordinator), name="far") as there,
        Peer(address, name="near") as near,
        Peer(address, name="app", join_timeout=LONG, **options) as here,
    ):
        subs = [await there.sub("*"), await near.sub("*")]
        pub = await here.pub("t")
        pub.put(1)
        another = await here.pub("t")  # one word for both, at the subscriber
        assert await subs[1].get(timeout=LONG) == 1
        assert await pub.flush(timeout=LONG) is None  # nobody waits for who will not come
        await eventually(lambda: len(subs[0].publishers) == 2)
        assert {p["state"] for p in subs[0].publishers.values()} == {"connecting"}
        assert all(who.startswith("app (pid ") for who in subs[0].publishers)
        assert [remote.link for remote in there.runtime.publishers.remotes.values()] == [None]
        late = await asyncio.wait_for(_ready(there.sub("t")), LONG)  # nor is it waited for
        assert len(late.publishers) == 2
        await eventually(lambda: len(_errors(caplog)) == 3)
        said = _errors(caplog)
        told = [line for line in said if line.startswith("the publisher app (pid ")]
        assert len(told) == 1
        assert told[0].endswith(
            "on 't' can be reached on its own machine only, because it listens on loopback: start "
            "it with PUBSUB_COORDINATOR=10.77.1.1:7700, or with Peer(host=…)"
        )
        assert sum(line.endswith(way_out) for line in said) == 2  # each of the Pubs
        for each in (pub, another):
            assert list(each.subscribers) == [f"{near.address}#1"]
            await each.close()
        for sub in (subs[0], late):  # no "lost 0" stands over what nobody knows
            await eventually(partial(_is_unreachable, sub))


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def _is_unreachable(sub: Any) -> bool:
    return {how["state"] for how in sub.publishers.values()} == {"unreachable"}


async def _ready(sub: Any) -> Any:
    return await sub


async def test_g3_who_comes_back_within_reach_is_dialled() -> None:
    async with (
        _coordinator("127.0.0.1", _TwoMachines()) as (coordinator,),
        Peer(address := str(coordinator), name="far") as there,
        Peer(address, name="app") as here,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        pub.put("not due")
        await eventually(lambda: sub.publishers)
        assert not pub.subscribers
        (session,) = here.runtime.sessions
        identities = here.runtime.doors.identities
        (known,) = identities.items()  # that it leads here, one would not know by it
        identities[known[0]] = dataclasses.replace(known[1], ways=tcp("127.1", known[1].place[1]))
        assert session.link is not None
        session.link.abort()
        await pub.wait_for_subscribers(timeout=LONG)
        pub.put("due")
        assert await sub.get(timeout=LONG) == "due"
        assert sub.lost == 0


async def test_a_publisher_is_told_the_address_that_fits_and_no_loopback_of_another_machine() -> (
    None
):
    async with coordinator_in_loop() as address, Peer(address) as peer:
        await peer.pub("t")
        runtime = peer.runtime
        mine = runtime.identity("127.0.0.1")
        host, port = mine.place
        assert (host, bool(port)) == ("127.0.0.1", True)
        assert runtime.identity("::1") == runtime.identity("::ffff:127.0.0.1") == mine
        nowhere = runtime.identity("10.77.1.1")
        assert (nowhere.place, nowhere.peer_id) == (("", 0), mine.peer_id)
        for host in ("10.77.1.1", "10.77.1.2"):
            runtime.doors.identities[host] = dataclasses.replace(mine, ways=tcp(host, port))
        assert [runtime.identity(f"10.77.1.{n}").place[0][-1] for n in (1, 2, 3)] == ["1", "2", "1"]


@pytest.mark.parametrize("advertise", ["0.0.0.0", "[::]:7700", "::", "0.0.0.0:80"])
def test_all_addresses_are_no_address_to_advertise(advertise: str) -> None:
    with pytest.raises(ValueError, match="stands for all addresses of a machine"):
        Settings(advertise=advertise)


async def test_an_address_that_is_not_there_is_told_where_the_loop_names_no_number() -> None:
    """As plain asyncio does not, on Python 3.13."""
    loop = AsyncMock()
    loop.create_server.side_effect = OSError("could not bind on any address out of …")
    with pytest.raises(OSError) as raised:
        await listening._listen_at(loop, asyncio.Protocol, "192.0.2.1", 0, 1)
    assert raised.value.errno == errno.EADDRNOTAVAIL
