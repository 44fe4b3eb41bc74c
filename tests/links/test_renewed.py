"""Credentials that change while a connection is made: it stands on what the other end was shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")

from pubsub.config import Settings, Way
from pubsub.links import doors, keeping
from pubsub.links.doors import Doorman
from pubsub.links.keeping import KeptLink, dial
from pubsub.links.link import Link
from pubsub.trust.certificates import Pair
from pubsub.trust.guard import Group
from pubsub.trust.keys import Key
from pubsub.wire.handshake import Acceptor, Dialler, Identity, Other
from tests.integration.support import eventually

OLD, NEW = Key.new(), Key.new()
SETTINGS = Settings()


class End:
    """Of a link, either one."""

    def __init__(self) -> None:
        self.other: Other | None = None

    def opened(self, link: Link, other: Other) -> End:
        self.other = other
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        pass

    def receive(self, event: object) -> None:
        pass

    def pump(self, budget: int) -> tuple[bytes, ...]:
        return ()

    @property
    def stands_on(self) -> set[str]:
        return set() if self.other is None else set(self.other.standing.stands_on)


def group() -> Group:
    return Group((OLD, NEW), lambda: (OLD, NEW), True, Pair.new())


class Dialled:
    """One that listens, and who dials it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.there, self.here = group(), group()
        self.served, self.end = End(), End()
        me = Identity("peer", self.there.new_id())
        self.doorman = Doorman(
            *(self.loop, SETTINGS, bytearray(64 * 1024)),
            lambda authenticator: Acceptor(me, ("peer",), authenticator=authenticator),
            *(lambda other: self.served, self.there),
        )
        self.link = Link(self.loop, None, self.end, SETTINGS, bytearray(64 * 1024))

    async def dial(self) -> None:
        server = await self.loop.create_server(self.doorman.accept, "127.0.0.1", 0)
        try:
            way = Way("127.0.0.1", server.sockets[0].getsockname()[1])
            asks = await dial(self.link, way, 5, self.here)
            me = Identity("peer", self.here.new_id())
            self.link.begin(Dialler(me, "peer", self.there.new_id(), asks))
        finally:
            server.close()


@pytest.fixture
async def both() -> AsyncIterator[Dialled]:
    dialled = Dialled()
    yield dialled
    dialled.link.abort()
    for link in dialled.doorman.abort_all_but(()):
        await link.gone()


async def test_who_waited_is_shown_what_is_new(
    both: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "SHAKING", 0)
    await both.dial()
    anteroom = both.doorman._anteroom
    await eventually(lambda: bool(anteroom._waiting))
    both.there.renew((NEW, OLD))
    anteroom._begin(*anteroom._waiting.popitem())
    await eventually(lambda: bool(both.end.stands_on and both.served.stands_on))
    assert both.served.stands_on == {NEW.id, OLD.id}
    assert both.end.stands_on == {NEW.id, OLD.id}, "what it was shown"


async def test_a_dial_that_began_with_what_was_before_is_made_anew(
    both: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = keeping.connect

    async def slowly(*args: Any) -> None:
        await connect(*args)
        both.here.renew((NEW, OLD))

    monkeypatch.setattr(keeping, "connect", slowly)
    with pytest.raises(ConnectionError, match="changed meanwhile"):
        await both.dial()


@pytest.mark.parametrize("what", [keeping.Changed("it changed"), ConnectionRefusedError()])
async def test_that_credentials_changed_meanwhile_is_no_trouble(
    what: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Kept(KeptLink):
        def _ways(self) -> list[Way]:
            return [Way("127.0.0.1", 1)]

        async def _connect(self, way: Way, timeout: float) -> None:
            raise what

    loop = asyncio.get_running_loop()
    kept = Kept(loop, SETTINGS, bytearray(64), lambda: 0.5, group())
    assert not await kept._try_all(), "it is tried on"
    assert bool(caplog.records) == isinstance(what, ConnectionRefusedError)


@pytest.mark.loop
async def test_a_connection_that_is_closed_at_once_is_no_internal_error(
    both: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport of uvloop does not know its addresses any more."""
    connect = keeping.connect

    async def in_vain(*args: Any) -> None:
        await connect(*args)
        both.link.abort()
        await eventually(lambda: both.link.closing)

    monkeypatch.setattr(keeping, "connect", in_vain)
    await both.dial()  # the link's endpoint has heard of its end
    assert both.link.peername[0] == "127.0.0.1"
