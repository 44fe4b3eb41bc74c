"""Who is let in, and whose an accepted connection is."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from pubsub.config import Settings
from pubsub.links.doors import Doorman, Doors
from pubsub.links.link import Link
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Acceptor, Identity, Other
from pubsub.wire.messages import Goodbye, encode
from tests.links.ends import Nobody, Transport, lose
from tests.wire.said import hello

ROLES = ("peer", "client")


class Seats:
    """An endpoint for each role, and for nobody else."""

    def __init__(self) -> None:
        self.of = {role: Nobody() for role in ROLES}

    def __call__(self, other: Other) -> Nobody:
        return self.of[other.role]


@pytest.fixture
def seats() -> Seats:
    return Seats()


@pytest.fixture
async def doorman(seats: Seats) -> Doorman:
    me = Identity("peer", "me")
    settings = Settings(max_unauthenticated=2)
    loop = asyncio.get_running_loop()
    return Doorman(
        loop,
        settings,
        bytearray(1_000),
        lambda authenticator: Acceptor(me, ROLES, authenticator=authenticator),
        seats,
        Guard(),
    )


def let_in(doorman: Doorman) -> Link:
    """A connection, as its server makes it; returns its link."""
    entry = doorman.accept()
    transport = Transport()
    transport.protocol = entry
    entry.connection_made(transport)
    return entry._link


def say_hello(link: Link, role: str) -> None:
    link.transport.hear(encode(hello(role, "peer", f"a {role}")))


async def test_who_it_is_decides_who_serves_a_connection(doorman: Doorman, seats: Seats) -> None:
    links = {role: let_in(doorman) for role in ROLES}
    assert len(doorman) == 2
    for role, link in links.items():
        say_hello(link, role)
        assert link.endpoint is seats.of[role]
    assert len(doorman) == 0
    links["client"].transport.hear(encode(Goodbye("closing", "")))
    assert (seats.of["peer"].ends, seats.of["client"].ends) == ([], [None])
    for link in links.values():
        lose(link)
    assert len(seats.of["peer"].ends) == 1


async def test_of_too_many_that_say_nothing_the_oldest_goes(doorman: Doorman, seats: Seats) -> None:
    talker, *silent = [let_in(doorman) for _ in range(2)]
    say_hello(talker, "peer")
    silent += [let_in(doorman) for _ in range(2)]
    assert [link.closing for link in (talker, *silent)] == [False, True, False, False]
    assert b"too many connections that say nothing" in silent[0].transport.written
    assert len(doorman) == 2
    assert doorman.abort_all_but([talker]) == silent
    for link in silent:
        lose(link)
    assert doorman.abort_all_but([talker]) == []
    assert len(doorman) == 0
    assert not any(seat.ends for seat in seats.of.values()), "nobody was told of what is nobody's"
    lose(talker)


@pytest.fixture
async def doors(seats: Seats) -> AsyncIterator[Doors]:
    doors = Doors(asyncio.get_running_loop(), Settings(), bytearray(1_000), "me", seats, Guard())
    yield doors
    await doors.close(())


async def test_who_asks_second_where_we_listen_is_told_though_the_first_is_cancelled(
    doors: Doors,
) -> None:
    """Two coordinators are dialled, and one of them is given up at that moment."""
    first, second = (asyncio.ensure_future(doors.identify("127.0.0.1")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).place[1] > 0
    assert first.cancelled()
    assert len(doors.servers) == 1


async def test_who_asks_after_a_failure_where_we_listen_tries_again(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pubsub.links.doors.listen", Mock(side_effect=OSError(errno.EADDRINUSE, "")))
        asked = [doors.identify("127.0.0.1") for _ in range(2)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all("cannot listen on 127.0.0.1:0: it is in use" in str(e) for e in found)
    assert (await doors.identify("127.0.0.1")).place[1] > 0


async def test_nothing_listens_any_more_that_was_about_to_when_doors_close(doors: Doors) -> None:
    asked = asyncio.ensure_future(doors.identify("127.0.0.1"))
    await asyncio.sleep(0)
    await doors.close(())
    [found] = await asyncio.gather(asked, return_exceptions=True)
    assert isinstance(found, asyncio.CancelledError)
    assert not any(server.sockets for server in doors.servers.values())
