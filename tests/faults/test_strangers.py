"""Everything that a hostile peer does, done by a stranger to those who have a key.

The attacks are those of `attacks.py`. A stranger does all of them to a coordinator and to a peer
that have a key, in each manner in which it could begin; it is served in nothing, and the honest
pair of `test_hostile` beside it notices nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pubsub import AuthError, Peer
from pubsub.config import parse_address
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from pubsub.trust.proof import NONCE
from pubsub.wire.frames import Data, Event
from pubsub.wire.handshake import Dialler, Identity
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, Welcome, encode
from tests.faults import attacks
from tests.faults.attacks import (
    ON_ANYONE,
    ON_COORDINATOR,
    ON_PUBLISHER,
    ON_SUBSCRIBER,
    Attack,
    Stranger,
    Target,
)
from tests.faults.flow import flow
from tests.faults.proxy import behind, proxy
from tests.faults.test_hostile import LIMITED, LIMITS, MIB, beside, memory
from tests.integration.support import coordinator_in_loop, default_guard, eventually, free_port
from tests.wire.said import hello, welcome

pytestmark = [pytest.mark.loop, pytest.mark.by_hand]

OVER = ("the connection is cut", "it is not let in")
"""How the line ends that says of a connection that it is refused."""


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks are many, and would share one limit of warnings."""
    for log in LIMITED:
        monkeypatch.setattr(log, "filters", [])


def use_key(path: Path, monkeypatch: pytest.MonkeyPatch, channel: str) -> Key:
    """All that is made from now on has this key."""
    key = Key.new()
    write_file(path, f"{key.text()}\n".encode())
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(path))
    if channel == "tls":
        monkeypatch.setenv("PUBSUB_ENCRYPT", "1")
    else:
        monkeypatch.delenv("PUBSUB_ENCRYPT", raising=False)
    return key


class Uninvited(Stranger):
    """A stranger that goes on as if it was let in, whatever it hears.

    Attributes:
        manner: how it begins: ``open``: as where everything is open; ``silent``: it asks for a
            proof, and shows none; ``forged``: it shows one that it has made up; ``stolen``: that
            of the other end, to its own question; ``tls``: with a certificate of another key.
        heard: all that any of them has heard.
    """

    manner: ClassVar[str]
    heard: ClassVar[list[Event]]

    def __init__(self, address: str | socket.socket, *, deaf: bool = False) -> None:
        super().__init__(address, deaf=deaf)
        if self.manner == "tls":
            from pubsub.trust.certificates import Pair, group_contexts

            context = group_contexts((Key.new(),), Pair.new()).client
            context.verify_mode = ssl.CERT_NONE  # it does not mind whom it speaks to
            try:
                self.socket = context.wrap_socket(self.socket)
            except OSError:
                self.socket.close()
                raise

    def send(self, *frames: Any) -> bool:
        try:
            return super().send(*frames)
        except OSError:  # an alert
            return False

    def next(self) -> Event | None:
        try:
            event = super().next()
        except OSError:
            return None
        if event is not None:
            self.heard.append(event)
        return event

    def data(self, channel: int, *what: Any) -> None:
        self.heard.append(Data(channel, *what))

    def hello(self, wants: str, host: str = "", port: int = 0, role: str = "peer") -> str:
        identity = secrets.token_hex(8)
        nonce = b"" if self.manner in ("open", "tls") else secrets.token_bytes(NONCE)
        said = hello(role, wants, identity, "", host, port, {"name": "stranger"})
        self.send(replace(said, nonce=nonce))
        if nonce and self.manner != "silent":
            asked = self.wait_for(Auth)
            assert isinstance(asked, Auth)
            proof = asked.proof if self.manner == "stolen" else secrets.token_bytes(64)
            self.send(Auth(role, identity, b"", proof))
        return identity


async def attempt(attack: Attack, target: Target) -> None:
    """Run it, to its end."""

    def run() -> None:
        try:
            attack.run(target)
        except OSError:  # it did not come as far as it wanted
            pass

    await asyncio.wait_for(asyncio.to_thread(run), 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channel", "manner"),
    [
        ("proof", "open"),
        ("proof", "silent"),
        ("proof", "forged"),
        ("proof", "stolen"),
        ("proof", "tls"),
        ("tls", "open"),
        ("tls", "forged"),
        ("tls", "tls"),
    ],
)
@pytest.mark.parametrize("victim", ["publisher", "coordinator"])
async def test_a_stranger_is_served_in_nothing(
    victim: str,
    channel: str,
    manner: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "tls" in (channel, manner):
        pytest.importorskip("cryptography")
    use_key(tmp_path / "key", monkeypatch, channel)
    monkeypatch.setattr(attacks, "Stranger", Uninvited)
    monkeypatch.setattr(Uninvited, "manner", manner, raising=False)
    monkeypatch.setattr(Uninvited, "heard", [], raising=False)
    async with beside() as pair:
        before = memory()
        if victim == "publisher":
            target = Target(pair.publisher.runtime.address, "peer", pair.stream_id)
            chosen = [*ON_ANYONE, *ON_PUBLISHER]
        else:
            target = Target(pair.address, "coordinator")
            chosen = [*ON_ANYONE, *ON_COORDINATOR]
        for start in range(0, len(chosen), 8):
            await asyncio.gather(*(attempt(a, target) for a in chosen[start : start + 8]))
        assert {type(event) for event in Uninvited.heard} <= {Auth, Goodbye}
        refused = [r.getMessage() for r in caplog.records if r.getMessage().endswith(OVER)]
        assert len(refused) >= len(chosen) * 0.8  # some have closed before they could be refused
        assert not [r for r in caplog.records if r.exc_info or "internal error" in r.getMessage()]
        assert len(list(pair.coordinator.registry.peers())) == 2
        places = pair.pub._publication.cursors()
        assert [state for state, _ in places] == ["attached"]
        assert memory() - before < 64 * MIB


class Trap:
    """Listens where an honest publisher is said to be, and does to who comes what it is told.

    Parameters:
        poses: what it answers to a HELLO, before all else.
        publish: called then.
    """

    def __init__(
        self,
        poses: Callable[[Hello], list[Auth | Welcome]],
        publish: Callable[[Stranger, int], None],
    ) -> None:
        self._poses = poses
        self._publish = publish
        self._server = socket.create_server(("127.0.0.1", 0))
        self._closed = False
        self.port = int(self._server.getsockname()[1])
        self.caught = 0
        self.heard: list[Event] = []

    def serve(self) -> None:
        """Until it is closed; in a thread."""
        while True:
            connection, _ = self._server.accept()
            if self._closed:
                connection.close()
                return
            try:
                with Stranger(connection) as stranger:
                    stranger.socket.settimeout(5)
                    event = stranger.next()
                    if isinstance(event, Hello):
                        stranger.send(*self._poses(event))
                        self._publish(stranger, 0)
                        event = stranger.next()
                    while event is not None:
                        self.heard.append(event)
                        event = stranger.next()
            except (OSError, StopIteration):
                pass
            self.caught += 1

    def close(self) -> None:
        self._closed = True
        socket.create_connection(("127.0.0.1", self.port)).close()


@asynccontextmanager
async def trap(*args: Any) -> AsyncIterator[Trap]:
    made = Trap(*args)
    serving = asyncio.ensure_future(asyncio.to_thread(made.serve))
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)
        await serving
        made._server.close()


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["proof", "tls"])
@pytest.mark.parametrize("manner", ["open", "forged", "echo"])
@pytest.mark.usefixtures("only_advertised")
async def test_a_stranger_where_a_publisher_was_gives_a_subscriber_nothing(
    channel: str,
    manner: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It knows the whole identity of the one whose place it takes."""
    use_key(tmp_path / "key", monkeypatch, channel)
    if channel == "tls":
        pytest.importorskip("cryptography")

    def poses(said: Hello) -> list[Auth | Welcome]:
        known = said.expects
        if manner == "open":
            return [welcome("peer", known)]
        nonce = said.nonce if manner == "echo" else secrets.token_bytes(NONCE)
        proof = secrets.token_bytes(64)
        welcomed = Welcome(PROTOCOL_VERSION, "peer", known, b"", "", 0.0, {})
        return [Auth("peer", known, nonce, proof), welcomed]

    todo = iter(ON_SUBSCRIBER)

    def publish(stranger: Stranger, channel: int) -> None:
        next(todo).publish(stranger, channel)

    async with beside() as pair:
        for attack in ON_SUBSCRIBER:
            # each at a place of its own: where one was refused, others are dialled with delays
            async with trap(poses, publish) as false:
                told = f"127.0.0.1:{false.port}"
                async with Peer(pair.address, advertise=told, **LIMITS) as bait:
                    pub = await bait.pub("t")
                    await eventually(lambda false=false: false.caught, attack.name)  # type: ignore[misc]
                    assert not pub.closed
                for goodbye in false.heard:
                    assert isinstance(goodbye, Goodbye)
                    assert goodbye.code == "auth"


# --- between the two ends -----------------------------------------------------------------------


async def test_a_relay_between_two_sockets_gets_nothing_through_the_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use_key(tmp_path / "key", monkeypatch, "proof")
    async with (
        coordinator_in_loop() as coordinator,
        proxy(lambda: parse_address(coordinator)) as between,
    ):
        async with Peer(between.address) as peer:
            with pytest.raises(
                AuthError, match=r"use TLS there, by encrypt=True or PUBSUB_ENCRYPT"
            ):
                await peer.sub("t")
            with pytest.raises(AuthError, match="sees other addresses"):
                await peer.pub("t")
        assert between.accepted
        async with Peer(coordinator) as here:
            assert (await here.sub("t")).publishers == {}
    assert any("use TLS there" in r.getMessage() for r in caplog.records)


async def test_a_relay_between_two_peers_gets_nothing_through_the_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use_key(tmp_path / "key", monkeypatch, "proof")
    async with (
        coordinator_in_loop() as coordinator,
        behind(coordinator, join_timeout=0.2) as (here, between),
        Peer(coordinator, join_timeout=0.2) as there,
    ):
        pub = await here.pub("t")
        sub = await there.sub("t")
        await eventually(lambda: between.accepted > 1)
        pub.put("never passed on")
        await eventually(lambda: any("use TLS there" in r.getMessage() for r in caplog.records))
        (how,) = sub.publishers.values()
        assert how["state"] in ("connecting", "unreachable")
        assert not sub._inbox.streams or how["delivered"] == 0
        assert not pub._publication.attached


async def test_a_relay_carries_tls_and_all_arrives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    use_key(tmp_path / "key", monkeypatch, "tls")
    async with (
        coordinator_in_loop() as coordinator,
        proxy(lambda: parse_address(coordinator)) as between,
        behind(between.address) as (here, to_publisher),
        Peer(between.address) as there,
    ):
        sub = await there.sub("t")
        pub = await here.pub("t")
        async with flow(pub, sub) as flowing:
            for _ in range(3):
                await flowing.passes(100)
                await to_publisher.reset()
                await between.reset()
            await flowing.passes(100)
        assert flowing.got == flowing.put
        assert sub.lost == 0


def dialled_from(port: int, address: str) -> Stranger:
    """A connection from that port of ours, which may have been used a moment ago."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.bind(("127.0.0.1", port))
    sock.settimeout(20)
    sock.connect(tuple(parse_address(address)))
    return Stranger(sock)


def introduce(address: str, port: int) -> list[bytes]:
    """What an honest peer says, until it is let in."""
    guard = default_guard()
    with dialled_from(port, address) as peer:
        ends = (peer.socket.getsockname(), peer.socket.getpeername())
        dialler = Dialler(
            Identity("peer", guard.new_id()),
            "coordinator",
            authenticator=guard.dials(ends, None),
        )
        opening = dialler.opening()
        assert opening is not None
        said = [encode(opening)]
        peer.send(said[0])
        other = None
        while other is None:
            event = peer.next()
            assert event is not None
            answer, other = dialler.receive(event)
            if answer is not None:
                said.append(encode(answer))
                peer.send(said[-1])
        return said


@pytest.mark.parametrize("how", ["at once", "when it is asked"])
async def test_what_an_honest_peer_has_said_is_worth_nothing_when_said_again(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the same port, to the same coordinator: only that one's nonce is another."""
    use_key(tmp_path / "key", monkeypatch, "proof")
    async with coordinator_in_loop() as coordinator:
        port = free_port()
        said = await asyncio.to_thread(introduce, coordinator, port)
        assert len(said) == 2

        def again() -> list[Event]:
            heard: list[Event] = []
            with dialled_from(port, coordinator) as stranger:
                if how == "at once":
                    stranger.send(*said)
                else:
                    stranger.send(said[0])
                    stranger.wait_for(Auth)
                    stranger.send(said[1])
                event = stranger.next()
                while event is not None:
                    heard.append(event)
                    event = stranger.next()
            return heard

        *asked, last = await asyncio.to_thread(again)
        assert [type(event) for event in asked] == ([Auth] if how == "at once" else [])
        assert isinstance(last, Goodbye)
        assert last.code == "auth"
        assert re.fullmatch(r"it does not have the key [0-9a-f]{8} of this group", last.reason)
    assert any(last.reason in r.getMessage() for r in caplog.records)
