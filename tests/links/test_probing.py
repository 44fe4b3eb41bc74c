"""Probing: who is taken for gone, on what evidence, and how many are asked at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import pubsub.links.probing as probing
from pubsub import Peer
from pubsub.config import Address, Settings
from pubsub.links.probing import MAX_QUESTIONS, Answer, Prober, home
from pubsub.support.host import Host, on_host
from pubsub.wire.handshake import Other, tcp
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    default_guard,
    eventually,
    free_port,
)

pytestmark = pytest.mark.loop


@pytest.fixture
async def prober(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Prober]:
    monkeypatch.setattr(probing, "AGAIN", 0.05)
    monkeypatch.setattr(probing, "RETRY", 0.02)
    made = Prober(asyncio.get_running_loop(), "me", Settings(), bytearray(65536), default_guard())
    yield made
    made.close()
    await eventually(lambda: not made._asking and not made.links)


class Stranger(asyncio.Protocol):
    """Whoever listens there is no peer."""

    def __init__(self, all_: set[Stranger], greeting: bytes | None) -> None:
        self.all = all_
        self.greeting = greeting

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.all.add(self)
        if self.greeting is None:
            transport.abort()
        else:
            transport.write(self.greeting)

    def connection_lost(self, error: Exception | None) -> None:
        self.all.discard(self)


@asynccontextmanager
async def stranger(greeting: bytes | None = b"") -> AsyncIterator[Address]:
    """Something that listens; it greets, or hangs up at once (None)."""
    strangers: set[Stranger] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stranger(strangers, greeting), "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for one in list(strangers):
            one.transport.abort()
        await eventually(lambda: not strangers)


class Found:
    """What a prober finds of one suspect."""

    def __init__(self, prober: Prober, address: Address, peer_id: str = "it") -> None:
        self.gone: list[str] = []
        self.answers: list[Answer] = []
        ask = prober._question

        async def question(suspect: Any) -> Answer:
            answer = await ask(suspect)
            self.answers.append(answer)
            return answer

        prober._question = question  # type: ignore[method-assign]
        prober.suspect(peer_id, address, LONG, self.gone.append)


async def test_where_nothing_listens_it_is_gone_when_that_is_so_twice(prober: Prober) -> None:
    found = Found(prober, Address("127.0.0.1", free_port()))
    await eventually(lambda: found.gone)
    assert found.answers == [Answer.GONE, Answer.GONE]
    assert found.gone == ["it"]
    assert not prober._suspects


async def test_where_another_peer_lives_it_is_gone(prober: Prober) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator) as other:
        await other.sub("t")
        host, port = other.address.split(":")
        found = Found(prober, Address(host, int(port)))
        await eventually(lambda: found.gone)
        assert set(found.answers) == {Answer.GONE}


async def test_one_that_lives_says_so_and_takes_the_question_for_no_subscriber(
    prober: Prober,
) -> None:
    async with coordinator_in_loop() as coordinator, Peer(coordinator) as other:
        await other.pub("t")
        host, port = other.address.split(":")
        found = Found(prober, Address(host, int(port)), other.peer_id)
        await eventually(lambda: len(found.answers) > 3)
        assert set(found.answers) == {Answer.ALIVE}
        assert not found.gone
        prober.close()
        await eventually(lambda: not other.runtime.subscribers.served)


@pytest.mark.parametrize("greeting", [b"", None, b"220 mail.example.com ESMTP\r\n"])
async def test_whatever_else_is_there_is_no_answer(prober: Prober, greeting: bytes | None) -> None:
    """A process that is stopped or busy, one whose connections are reset, something else."""
    prober._within = 0.1
    async with stranger(greeting) as address:
        found = Found(prober, address)
        await eventually(lambda: len(found.answers) > 2)
        assert set(found.answers) == {Answer.NONE}
    await eventually(lambda: found.gone)  # now nothing listens there


async def test_one_that_comes_back_between_the_questions_is_not_gone(prober: Prober) -> None:
    address = Address("127.0.0.1", free_port())
    found = Found(prober, address)
    await eventually(lambda: found.answers)
    prober.clear("it")
    assert not prober._suspects
    other = Found(prober, address, "other")
    await eventually(lambda: other.gone)  # takes as long as its second question would
    assert not found.gone


async def test_one_that_came_back_and_is_suspected_anew_is_asked_twice_anew(prober: Prober) -> None:
    address = Address("127.0.0.1", free_port())
    found = Found(prober, address)
    await eventually(lambda: len(found.answers) == 1)
    prober.clear("it")
    prober.suspect("it", address, LONG, found.gone.append)
    await eventually(lambda: found.gone)
    assert len(found.answers) == 3


async def test_those_who_ask_about_the_same_peer_share_one_question(prober: Prober) -> None:
    address = Address("127.0.0.1", free_port())
    found = Found(prober, address)
    prober.suspect("it", address, LONG, found.gone.append)
    await eventually(lambda: found.gone)
    assert len(found.answers) == 2
    assert found.gone == ["it"]


async def test_g8_a_thousand_that_die_together_are_asked_a_few_at_a_time(prober: Prober) -> None:
    address = Address("127.0.0.1", free_port())
    gone: list[str] = []
    most = 0
    for number in range(1_000):
        prober.suspect(f"peer {number}", address, LONG, gone.append)

    def all_gone() -> bool:
        nonlocal most
        most = max(most, len(prober._asking), len(prober.links))
        return len(gone) == 1_000

    await eventually(all_gone)
    assert 1 < most <= MAX_QUESTIONS


async def test_whoever_is_of_interest_no_more_is_not_asked(prober: Prober) -> None:
    prober._within = 0.05
    async with stranger() as address:
        found = Found(prober, address)
        prober._suspects["it"].until = 0.0
        await eventually(lambda: not prober._suspects)
    assert len(found.answers) == 1
    assert not found.gone


async def test_the_end_of_all_tasks_is_no_answer_and_it_is_asked_again(prober: Prober) -> None:
    """As `asyncio.run` ends them, before the Peer lingers."""
    async with stranger() as address:
        found = Found(prober, address)
        await eventually(lambda: prober.links and prober.links[0].transport)
        (task,) = prober._asking
        task.cancel()
        await eventually(lambda: prober._asking and task not in prober._asking)
    await eventually(lambda: found.gone)


async def test_the_end_of_a_prober_leaves_nothing(prober: Prober) -> None:
    async with stranger() as address:
        found = Found(prober, address)
        await eventually(lambda: prober.links and prober.links[0].transport)
        (task,), (link,) = prober._asking, prober.links
        assert prober.close() == [link]
        await asyncio.wait([task])
        await link.gone()
        assert not prober.links
        prober.suspect("it", address, LONG, found.gone.append)
        assert not prober._suspects


class FromThere:
    """A link whose other end has that address."""

    def __init__(self, host: str | None, kind: str = "direct") -> None:
        self.peername = None if host is None else (host, 40_000)
        self.kind = kind


@pytest.mark.parametrize(
    ("says", "comes_from", "known"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("10.0.0.1", "10.0.0.2", False),  # behind a router that translates addresses
        ("::1", "127.0.0.1", False),
        ("its.name", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1", False),
        ("", "10.0.0.1", False),
        ("10.0.0.1", None, False),
        ("10.0.0.1\0", "10.0.0.1", False),
        ("ä", "10.0.0.1", False),
    ],
)
def test_an_address_is_a_peers_own_where_its_link_comes_from_that_host(
    says: str, comes_from: str | None, known: bool
) -> None:
    other = Other("peer", "it", tcp(says, 4_000), {}, 0.0)
    link: Any = FromThere(comes_from)
    assert home(link, other) == (Address(str(comes_from), 4_000) if known else None)
    assert home(link, other._replace(ways=())) is None  # it does not listen


@pytest.mark.parametrize(
    ("says", "known"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.0.0.1", True),  # of an interface of this host
        ("10.0.0.2", False),
        ("its.name", False),
        ("0.0.0.0", False),
    ],
)
def test_an_address_is_a_peers_own_where_it_comes_by_a_unix_socket_and_that_is_this_host(
    says: str, known: bool
) -> None:
    """Else it would not be asked whether it lives where it was killed, and its places were held for
    longer than over TCP."""
    other = Other("peer", "it", tcp("10.9.9.9", 1) + tcp(says, 4_000), {}, 0.0)
    link: Any = FromThere("5e.localhost", "unix")
    with on_host(Host(source_of=lambda address: "10.0.0.1")):
        assert home(link, other) == (Address(says, 4_000) if known else None)
