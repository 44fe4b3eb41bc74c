"""Strangers in a TLS handshake: so many at once, and the others wait for their turn."""

from __future__ import annotations

import asyncio
import ssl

import pytest

pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")

from pubsub.config import Settings
from pubsub.links import doors
from pubsub.links.doors import Doorman
from pubsub.links.link import Link
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Acceptor, Identity
from tests.integration.support import eventually
from tests.links.certificates import CA
from tests.links.ends import Nobody, Transport

TLS = 0x16
MIB = 2**20


class Tls(Guard):
    """TLS for whoever wants it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def takes_tls(self) -> ssl.SSLContext:
        return self._context


@pytest.fixture(scope="module")
def ca() -> CA:
    return CA()


@pytest.fixture
async def doorman(ca: CA) -> Doorman:
    loop, me = asyncio.get_running_loop(), Identity("peer", "me")
    return Doorman(
        *(loop, Settings(), bytearray(64 * 1024)),
        lambda authenticator: Acceptor(me, ("peer",), authenticator=authenticator),
        lambda other: Nobody(),
        Tls(ca.context(server=True, shows=ca.issue())),
    )


@pytest.fixture
def hello(ca: CA) -> bytes:
    """What a client begins with."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ca.context(server=False, shows=None).wrap_bio(into, out).do_handshake()
    return out.read()


def come(doorman: Doorman, first: bytes) -> tuple[Link, Transport]:
    """A connection, and its first bytes."""
    entry, transport = doorman.accept(), Transport()
    transport.protocol = entry
    entry.connection_made(transport)
    transport.hear(first)
    return entry._link, transport


def lose(link: Link, transport: Transport) -> None:
    """The connection is gone."""
    transport.closing = True
    link.connection_lost(None)


def begun(transport: Transport) -> bool:
    """Whether OpenSSL has answered."""
    return transport.written[:1] == bytes([TLS])


async def test_one_handshake_more_than_there_is_room_for_waits_for_its_turn(
    doorman: Doorman, hello: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "SHAKING", 2)
    came = [come(doorman, hello) for _ in range(5)]
    transports = [transport for _, transport in came]
    assert [begun(t) for t in transports] == [True, True, False, False, False]
    assert [t.reading for t in transports] == [True, True, False, False, False], "it costs nothing"
    lose(*came[3])
    lose(*came[1])
    assert [begun(t) for t in transports] == [True, True, True, False, False]
    lose(*came[0])
    assert [begun(t) for t in transports] == [True, True, True, False, True]
    assert transports[4].reading
    for number in (2, 4):
        lose(*came[number])
    assert len(doorman) == 0
    assert begun(come(doorman, hello)[1]), "there is room again"


async def test_who_stops_in_the_midst_of_a_handshake_has_to_go_for_one_that_waits(
    doorman: Doorman, hello: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "SHAKING", 2)
    monkeypatch.setattr(doors, "HASTE", 0.01)
    silent = [come(doorman, hello)[0] for _ in range(2)]
    await asyncio.sleep(0.03)
    assert not any(link.closing for link in silent), "nobody waits"
    link, transport = come(doorman, hello)
    await eventually(lambda: begun(transport))
    assert [each.closing for each in silent] == [True, False], "the oldest, and no more of them"
    assert not link.closing


async def test_who_waits_may_not_have_sent_much(
    doorman: Doorman, hello: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "SHAKING", 0)
    link, transport = come(doorman, hello + bytes(doors.FIRST))
    assert link.closing
    assert b"more than 2,048 bytes of TLS" in transport.written


def test_all_strangers_together_stay_below_128_mib() -> None:
    """By what one of them takes at most, as `make bench ONLY=tls-strangers` measures it."""
    shaking, waiting = 190 * 1024, 8 * 1024
    others = Settings().max_unauthenticated - doors.SHAKING
    assert doors.SHAKING * shaking + others * waiting <= 128 * MIB
