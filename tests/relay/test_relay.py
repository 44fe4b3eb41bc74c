"""The relay: two peers meet there, and nothing else gets through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")

from pubsub.core.rights import Rights
from pubsub.errors import AuthError, ProtocolError
from pubsub.links import splice
from pubsub.relay import circuits
from pubsub.runtime import relay_link
from pubsub.trust.certificates import Pair, file_contexts
from pubsub.trust.guard import Group, Guard, Holder, Private
from pubsub.trust.issuing import init, issue
from pubsub.trust.keys import Key
from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import tcp
from pubsub.wire.messages import (
    Circuit,
    Goodbye,
    Join,
    Ping,
    Query,
    RelayRow,
    Subscribed,
    Ticket,
    Welcome,
    encode,
)
from tests.integration.support import LONG, eventually
from tests.relay.meeting import Door, Heard, a_relay, meeting, row
from tests.wire.said import hello

pytestmark = pytest.mark.loop

KEY = Key.new()


def group(encrypt: bool | None = None) -> Group:
    return Group((KEY,), lambda: (KEY,), encrypt, Pair.new())


class Certificates:
    """Of one CA, made as they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        init(directory)

    def __call__(self, name: str, **rights: Any) -> Holder:
        path = issue(self._directory, name, Rights(**rights), days=30).path
        return Holder(lambda: (file_contexts(str(path)), b""))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ca")


async def talks(subscriber: Heard, publisher: Heard) -> None:
    """Something said at each end is heard at the other."""
    for one, other in ((subscriber, publisher), (publisher, subscriber)):
        assert one.link is not None
        said = Subscribed(len(other.events), "t" * 900, "msgpack", 0, 0, 0)
        one.link.send(said)
        await eventually(lambda said=said, other=other: said in other.events)  # type: ignore[misc]


@pytest.mark.parametrize("make", [Guard, group])
async def test_two_peers_meet_and_know_each_other(make: Callable[[], Guard]) -> None:
    async with meeting(make) as (relay, s, p):
        p.relays.meet([row(relay)], "a coordinator")
        end = await s.reach(p, row(relay))
        (served,) = p.served
        assert end.other is not None
        assert served.other is not None
        assert (end.other.peer_id, served.other.peer_id) == (p.peer_id, s.peer_id)
        assert end.other.standing.authenticated is (make is group)
        await talks(end, served)
        assert end.link is not None
        end.link.goodbye()
        await eventually(lambda: served.ended == [None])
        await eventually(lambda: not len(relay.circuits))


async def test_the_publisher_may_come_after_it_was_asked_for() -> None:
    async with meeting(group) as (relay, s, p):
        reaching = asyncio.ensure_future(s.reach(p, row(relay)))
        await eventually(lambda: len(relay.circuits) == 1)
        p.relays.meet([row(relay)], None)
        await talks(await reaching, p.served[0])


async def test_two_that_ask_for_each_other_at_the_same_time_have_two_circuits() -> None:
    async with meeting(group) as (relay, s, p):
        for each in (s, p):
            each.relays.meet([row(relay)], None)
        await eventually(lambda: len(relay.sessions) == 2)
        there, back = await asyncio.gather(s.reach(p, row(relay)), p.reach(s, row(relay)))
        await talks(there, p.served[0])
        await talks(back, s.served[0])


async def test_with_certificates_rights_have_to_meet(certificates: Certificates) -> None:
    relay_guard = certificates("relay", relay=True)
    publisher = certificates("p", publish=["kitchen/**"])
    s_ok, s_not = certificates("s", subscribe=["kitchen/*"]), certificates("n", subscribe=["attic"])
    async with meeting(lambda: relay_guard, s_ok, publisher) as (relay, s, p):
        p.relays.meet([row(relay)], None)
        end = await s.reach(p, row(relay))
        assert end.other is not None
        assert end.other.standing.name == "p"
        await talks(end, p.served[0])
        other = Door(s_not)
        with pytest.raises(ConnectionError, match="may publish nothing that this peer may subs"):
            await other.reach(p, row(relay))
        await other.close()


async def test_a_relay_must_have_the_role(certificates: Certificates) -> None:
    no_relay, peer = certificates("relay", publish=["a"]), certificates("s", subscribe=["a"])
    async with meeting(lambda: no_relay, peer, certificates("p", publish=["a"])) as (relay, s, p):
        with pytest.raises(ConnectionError, match="does not make it a relay"):
            await s.reach(p, row(relay))


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        (lambda: Private(KEY), "over a relay there is always TLS, and the secret of this user"),
        (lambda: group(False), "over a relay there is always TLS, and encrypt=False"),
    ],
)
async def test_without_tls_there_is_no_relay_and_that_is_said(
    guard: Callable[[], Guard], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Door(guard()), Door(guard())
    with pytest.raises(AuthError, match=says):
        await one.reach(other, RelayRow("r", ()))
    with caplog.at_level(logging.WARNING):
        other.relays.accept(other.relays._at(RelayRow("r", ())), bytes(16))
    assert says in caplog.text
    await one.close()
    await other.close()


async def test_a_relay_that_is_gone_is_passed_over_for_the_next() -> None:
    async with meeting(group) as (relay, s, p):
        p.relays.meet([row(relay)], None)
        gone = RelayRow("nobody", row(relay, 1).ways)
        await talks(await s.reach(p, gone, row(relay)), p.served[0])
        with pytest.raises(ConnectionError, match="connection refused"):
            await s.reach(p, gone)
        with pytest.raises(ConnectionError, match="there is no relay"):
            await s.reach(p)


async def test_a_relay_that_is_gone_is_not_looked_for_until_it_is_named_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_link.RelayLink, "QUIET", 0.0)
    async with meeting() as (relay, s, p):
        p.relays.meet([row(relay)], None)
        await s.reach(p, row(relay))
        (session,) = p.relays.kept.values()
        await relay.close()
        await eventually(lambda: not session.up)
        assert not s.relays.kept
        assert not p.relays.kept
        await asyncio.sleep(0.5)
        assert "cannot reach the relay" not in caplog.text
        async with a_relay(Guard()) as other:
            p.relays.meet([row(other)], None)
            await s.reach(p, row(other))


async def test_a_circuit_that_breaks_is_a_broken_link_at_both_ends() -> None:
    async with meeting(group) as (relay, s, p):
        p.relays.meet([row(relay)], None)
        end = await s.reach(p, row(relay))
        for each in list(relay._ends):
            each.abort()
        for heard in (end, p.served[0]):
            await eventually(lambda heard=heard: len(heard.ended) == 1)  # type: ignore[misc]
            assert isinstance(heard.ended[0], ConnectionError)


# --- what a relay refuses ------------------------------------------------------------------------


class Raw:
    """A connection whose bytes are the test's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = FrameReader(bytearray(65536))

    async def hear(self) -> Any:
        while True:
            data = await asyncio.wait_for(self.reader.read(65536), LONG)
            assert data, "closed"
            for event in self._frames.feed(data):
                if not isinstance(event, Ping):
                    return event

    async def ended(self) -> bool:
        try:
            return not await asyncio.wait_for(self.reader.read(65536), LONG)
        except ConnectionError:
            return True


_raw: list[Raw] = []


@pytest.fixture(autouse=True)
async def _no_connection_is_left() -> AsyncIterator[None]:
    yield
    while _raw:
        writer = _raw.pop().writer
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def raw(relay: Any, first: bytes = b"") -> Raw:
    way = row(relay).ways[0]
    found = Raw(*await asyncio.open_connection(way.host, way.port))
    _raw.append(found)
    found.writer.write(first)
    return found


async def session(relay: Any, peer_id: str) -> Raw:
    found = await raw(relay, encode(hello("peer", "relay", peer_id)))
    assert isinstance(await found.hear(), Welcome)
    return found


async def test_a_join_with_a_ticket_that_nobody_was_given_is_closed() -> None:
    async with a_relay(Guard()) as relay:
        for ticket in (bytes(16), b"\xff" * 16):
            one = await raw(relay, encode(Join(ticket)) + b"and more")
            assert await one.ended()
        assert not relay.doors.doorman._open


async def tickets(relay: Any) -> tuple[Raw, Raw, bytes, bytes]:
    """Two sessions, and what they are given."""
    one, other = await session(relay, "s"), await session(relay, "p")
    one.writer.write(encode(Circuit("p")))
    mine, theirs = await one.hear(), await other.hear()
    assert (mine.peer_id, theirs.peer_id) == ("p", "s")
    assert circuits.asked(mine.ticket)
    assert not circuits.asked(theirs.ticket)
    return one, other, mine.ticket, theirs.ticket


async def test_a_ticket_counts_once_and_a_join_may_come_byte_by_byte() -> None:
    async with a_relay(Guard()) as relay:
        *_, mine, theirs = await tickets(relay)
        one = await raw(relay)
        for byte in encode(Join(mine)):
            one.writer.write(bytes([byte]))
            await one.writer.drain()
            await asyncio.sleep(0.001)
        one.writer.write(b"early")
        await eventually(lambda: len(relay._ends) == 1)
        again = await raw(relay, encode(Join(mine)))
        assert await again.ended()
        other = await raw(relay, encode(Join(theirs)) + b"too")
        assert await asyncio.wait_for(other.reader.readexactly(5), LONG) == b"early"
        assert await asyncio.wait_for(one.reader.readexactly(3), LONG) == b"too"


async def test_one_that_does_not_join_keeps_the_other_end_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuits, "WITHIN", 0.2)
    async with a_relay(Guard()) as relay:
        *_, mine, theirs = await tickets(relay)
        one = await raw(relay, encode(Join(mine)))
        assert await one.ended()
        assert not len(relay.circuits)
        late = await raw(relay, encode(Join(theirs)))
        assert await late.ended()


async def test_a_circuit_on_which_nothing_comes_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "IDLE", 0.5)
    async with a_relay(Guard()) as relay:
        *_, mine, theirs = await tickets(relay)
        one, other = await raw(relay, encode(Join(mine))), await raw(relay, encode(Join(theirs)))
        for _ in range(8):
            one.writer.write(b"x")
            assert await asyncio.wait_for(other.reader.readexactly(1), LONG) == b"x"
            await asyncio.sleep(0.2)
        assert await one.ended()
        assert await other.ended()


async def test_an_end_that_does_not_take_its_last_bytes_counts_until_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice, "GRACE", 0.5)
    async with a_relay(Guard()) as relay:
        *_, mine, theirs = await tickets(relay)
        one, other = await raw(relay, encode(Join(mine))), await raw(relay, encode(Join(theirs)))
        other.writer.write_eof()
        assert await one.ended()
        while not any(end._transport.get_write_buffer_size() for end in relay._ends):
            one.writer.write(bytes(4096))
            await asyncio.sleep(0.001)
        one.writer.close()
        await eventually(lambda: len(relay._ends) == 1)
        assert len(relay.circuits) == 1
        await eventually(lambda: not relay._ends)
        assert not len(relay.circuits)


async def test_only_so_many_sessions_with_relays_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator could name any number of them."""
    monkeypatch.setattr(relay_link, "MAX_KEPT", 8)
    async with meeting() as (relay, s, p):
        (way,) = tcp("127.0.0.1", 9)
        p.relays.meet([row(relay)], None)
        await talks(await s.reach(p, row(relay)), p.served[0])
        for number in range(100):
            s.relays.meet([RelayRow(f"named {number}", (way,))], None)
            assert len(s.relays.kept) <= 8
        assert relay.peer_id in s.relays.kept, "it is reached, and they are not"
        await s.reach(p, row(relay))


async def test_who_asks_for_nobody_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "WITHIN", 0.2)
    async with a_relay(Guard()) as relay:
        one = await session(relay, "s")
        one.writer.write(encode(Circuit("nobody")))
        assert await one.hear() == Ticket(
            "nobody", b"", "peer nobody has not come to this relay within 0.2 s"
        )


async def test_a_session_that_says_what_no_peer_says_to_a_relay_is_cut() -> None:
    async with a_relay(Guard()) as relay:
        one = await session(relay, "s")
        one.writer.write(encode(Query(1, "peers")))
        assert await one.hear() == Goodbye("protocol", "a QUERY where a peer asks a relay")
        client = await raw(relay, encode(hello("client", "relay", "c")))
        assert (await client.hear()).code == "role"


async def test_a_session_that_does_not_read_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async with a_relay(Guard()) as relay:
        one = await session(relay, "s")
        one.writer.write(encode(Circuit("s")))
        assert isinstance(await one.hear(), Ticket)
        one.writer.write(encode(Circuit("s")) * 500_000)
        await eventually(lambda: not relay.sessions)
        assert "it does not read what it is told" in caplog.text


async def test_a_stranger_gets_no_session_and_no_circuit() -> None:
    async with meeting(group) as (relay, _s, p):
        p.relays.meet([row(relay)], None)
        stranger = Door(Group((Key.new(),), lambda: (), True, Pair.new()))
        with pytest.raises((AuthError, ConnectionError)):
            await stranger.reach(p, row(relay), timeout=5)
        await stranger.close()
        assert set(relay.sessions) <= {p.peer_id}


async def test_nobody_takes_the_session_of_another_peer() -> None:
    async with a_relay(Guard()) as relay:
        await session(relay, "s")
        from dataclasses import replace

        other = await raw(relay, encode(replace(hello("peer", "relay", "s"), claim=b"another")))
        assert (await other.hear()).code == "auth"


# --- a relay that is hostile ---------------------------------------------------------------------


class Bad:
    """A relay that passes on sessions, and alters what comes on circuits."""

    def __init__(self, relay: Any, after: int) -> None:
        self.way = row(relay).ways[0]
        self.after = after
        self.altered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(65536)
        there, to = await asyncio.open_connection(self.way.host, self.way.port)
        to.write(first)
        circuit = first.startswith(encode(Join(bytes(16)))[:8])

        async def carry(come: asyncio.StreamReader, go: asyncio.StreamWriter, alter: bool) -> None:
            passed = 0
            try:
                while data := await come.read(65536):
                    if alter and passed <= self.after < passed + len(data):
                        at = self.after - passed
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                        self.altered += 1
                    passed += len(data)
                    go.write(data)
            except ConnectionError:
                pass
            go.close()

        await asyncio.gather(carry(reader, to, circuit), carry(there, writer, False))


@pytest.mark.parametrize("after", [300, 6_000])
async def test_what_a_relay_alters_is_a_broken_link_and_nothing_false_is_heard(after: int) -> None:
    """Before TLS is up, and behind it."""
    async with meeting(lambda: group(True)) as (relay, s, p):
        bad = Bad(relay, after)
        server = await asyncio.start_server(bad.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            p.relays.meet([row(relay)], None)
            said = [Subscribed(n, "t" * 900, "msgpack", 0, 0, 0) for n in range(20)]
            try:
                end = await s.reach(p, row(relay, port), timeout=5)
            except (OSError, AuthError, ProtocolError):
                assert after == 300
            else:
                assert end.link is not None
                for each in said:
                    end.link.send(each)
                await eventually(lambda: bool(end.ended))
                await eventually(lambda: bool(p.served[0].ended))
                assert p.served[0].ended[0] is not None
                assert p.served[0].events == said[: len(p.served[0].events)]
        finally:
            server.close()
        assert bad.altered
