"""Unix sockets: two peers of one host have their link by one, with TCP behind it at once."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pubsub import Peer, Sub
from pubsub.config import LOCALHOST, Settings, Way
from pubsub.errors import AuthError
from pubsub.links import unix
from pubsub.links.doors import Doorman
from pubsub.links.keeping import explain
from pubsub.links.link import Link
from pubsub.links.listening import listen_at_socket
from pubsub.links.tls import TlsLayer
from pubsub.support.host import Host, on_host, this_host
from pubsub.trust import guard as guards
from pubsub.trust.files import write_file
from pubsub.trust.guard import Group, Guard, Private
from pubsub.trust.keys import Key
from pubsub.wire.handshake import Acceptor
from tests.integration.support import (
    LONG,
    break_links,
    coordinator_in_loop,
    eventually,
)

Warnings = Callable[[], list[str]]

pytestmark = pytest.mark.skipif(not unix.available(), reason="there are none on this system")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names")


@pytest.fixture(autouse=True, params=["abstract", "file"])
def names(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Of both kinds, on a system that has both; where their files lie."""
    if request.param == "abstract":
        if sys.platform != "linux":
            pytest.skip("no abstract names")
        yield Path()
        return
    with tempfile.TemporaryDirectory() as own:  # pytest's are too long to be names of sockets
        directory = Path(own) / "pubsubd"
        with on_host(Host(socket_of=lambda name: str(directory / name))):
            yield directory


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    """The warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A better way is looked for soon."""
    monkeypatch.setattr("pubsub.runtime.publisher_link.BETTER", 0.05)


def way_of(sub: Sub) -> str:
    """By which way its one stream comes."""
    (publisher,) = sub.publishers.values()
    return str(publisher["way"])


def name_of(peer: Peer) -> str:
    """Of its socket."""
    return peer.runtime.doors._name


def stop_listening(peer: Peer) -> None:
    """Its Unix socket is gone; TCP is there."""
    doors = peer.runtime.doors
    assert doors.here is not None
    doors.here.close()
    unix.forget(doors._name)
    doors.here = None


@asynccontextmanager
async def deaf() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Where somebody listens who says nothing, and what he has heard from each who came."""
    heard: list[bytes] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Silent(heard, False), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


# --- the way ---------------------------------------------------------------------------------


async def test_two_peers_of_one_host_have_their_link_by_a_unix_socket() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put_many([1, bytes(3_000_000), 2])
        assert [await sub.get(LONG), len(await sub.get(LONG)), await sub.get(LONG)] == [
            1,
            3_000_000,
            2,
        ]
        (publisher,) = sub.publishers.items()
        assert publisher[0].startswith(here.address), "for people, it is where TCP leads"
        assert (publisher[1]["way"], publisher[1]["failed"]) == ("unix", [])
        (served,) = here.runtime.subscribers.served
        assert served.way == "unix"
        (remote,) = there.runtime.publishers.remotes.values()
        assert str(remote.address) == f"unix {here.address}"


async def test_who_does_not_listen_has_no_unix_socket_and_dials_those_of_others() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, listen=False) as here,
        Peer(address) as there,
    ):
        sub, pub = await there.sub("t"), await here.pub("t")
        other, back = await here.sub("u"), await there.pub("u")
        pub.put(1)
        back.put(2)
        assert (await sub.get(LONG), await other.get(LONG)) == (1, 2)
        assert here.runtime.doors.here is None
        assert (way_of(sub), way_of(other)) == ("reverse", "unix")


async def test_peers_of_hosts_that_differ_dial_no_unix_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two network namespaces of one machine, say, or two machines with one home directory."""
    dialled = []
    connect = unix.connect

    async def note(loop: Any, way: Way, protocol: Any) -> None:
        dialled.append(way)
        await connect(loop, way, protocol)

    monkeypatch.setattr(unix, "connect", note)
    async with coordinator_in_loop() as address, Peer(address) as there:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(guards, "_machine", lambda: b"another")
            here = Peer(address)
        async with here:
            sub, pub = await there.sub("t"), await here.pub("t")
            await pub.wait_for_subscribers(1, LONG)
            pub.put(1)
            assert await sub.get(LONG) == 1
            assert (dialled, way_of(sub)) == ([], "direct")
            assert sub.publishers.popitem()[1]["failed"] == [], "nothing better was possible"


async def test_an_advertised_proxy_is_not_between_two_of_one_host() -> None:
    async with (
        deaf() as (proxy, heard),
        coordinator_in_loop() as address,
        Peer(address, advertise=proxy) as here,
        Peer(address) as there,
    ):
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert (await sub.get(LONG), way_of(sub), heard) == (1, "unix", [])


async def test_with_encrypt_a_unix_socket_has_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("PUBSUB_ENCRYPT", "1")
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(LONG) == 1
        (served,) = here.runtime.subscribers.served
        assert served.link is not None
        assert isinstance(served.link.transport, TlsLayer)
        assert way_of(sub) == "unix"


# --- what is promised --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["publisher", "subscriber"])
async def test_g1_g2_g3_all_comes_in_order_and_once_while_unix_sockets_break(which: str) -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, LONG)
        for i in range(6):
            assert way_of(sub) == "unix"
            for j in range(100):
                await pub.put((i * 100 + j, bytes(j % 7 * 10_000)))
                if j == 50:
                    assert break_links(here if which == "publisher" else there) == 1
            for j in range(100):
                assert (await sub.get(LONG))[0] == i * 100 + j
        assert sub.lost == 0


async def test_g1_g2_g3_all_comes_in_order_and_once_where_the_socket_goes_and_comes_back(
    soon: None,
) -> None:
    """TCP at once, and the better way again when it is there."""
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        due, ways = 0, []

        async def flow() -> None:
            nonlocal due
            for i in range(due, due + 50):
                await pub.put(i)
            for i in range(due, due + 50):
                assert await sub.get(LONG) == i
            due += 50

        for _ in range(3):
            await flow()
            ways.append(way_of(sub))
            stop_listening(here)
            break_links(there)
            before = asyncio.get_running_loop().time()
            await flow()
            assert asyncio.get_running_loop().time() - before < 2, "nothing waits"
            ways.append(way_of(sub))
            (publisher,) = sub.publishers.values()
            assert publisher["failed"] == ["unix: nothing listens there (connection refused)"]
            await here.runtime.doors.listen_here()
            while way_of(sub) != "unix":
                await flow()
            assert len(here.runtime.subscribers.served) <= 2  # that before says GOODBYE
            await flow()
        assert ways == ["unix", "direct"] * 3
        assert sub.lost == 0
        await eventually(lambda: len(here.runtime.subscribers.served) == 1)


async def test_g5_a_publisher_that_was_met_there_and_is_gone_is_given_up_soon() -> None:
    """As over TCP: nobody waits `resume_timeout` for one that refuses connections."""
    async with coordinator_in_loop() as address, Peer(address) as there:
        here = Peer(address)
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(LONG) == 1
        (remote,) = there.runtime.publishers.remotes.values()
        assert (remote.met, way_of(sub)) == (None, "unix")
        here.runtime.cut()  # as a kill does
        began = asyncio.get_running_loop().time()
        await eventually(lambda: not there.runtime.publishers.remotes)
        assert asyncio.get_running_loop().time() - began < 10
        sub.close()


async def test_where_tcp_is_used_no_address_is_dialled_beside_it_any_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing answers at the first one. It does not keep one of the few places for dialling from
    others, though the Unix socket, which was refused, would still be better than what there is."""
    monkeypatch.setattr("pubsub.runtime.publisher_link.BETTER", LONG)
    loop = asyncio.get_running_loop()
    async with (
        deaf() as (nowhere, heard),
        coordinator_in_loop() as address,
        Peer(address, advertise=nowhere) as here,
        Peer(address) as there,
    ):
        pub = await here.pub("t")
        stop_listening(here)
        sub = await there.sub("t")
        pub.put(1)
        assert (await sub.get(LONG), way_of(sub)) == (1, "direct")
        assert len(heard) == 1, "it was dialled first"
        (remote,) = there.runtime.publishers.remotes.values()
        before = loop.time()
        await eventually(lambda: remote._task is None or remote._task.done())
        took = loop.time() - before
    assert took < 1, "it ended by itself, at the end of its time"


async def test_a_unix_socket_says_nothing_of_addresses_and_what_worked_before_is_dialled_first(
    soon: None,
) -> None:
    """One that leads nowhere is named first. It was passed over once, and is so when TCP is needed
    again after a Unix socket."""
    async with (
        deaf() as (nowhere, heard),
        coordinator_in_loop() as address,
        Peer(address, advertise=nowhere) as here,
        Peer(address) as there,
    ):
        pub = await here.pub("t")
        stop_listening(here)
        sub = await there.sub("t")
        pub.put(1)
        assert (await sub.get(LONG), way_of(sub), len(heard)) == (1, "direct", 1)
        await here.runtime.doors.listen_here()
        await eventually(lambda: way_of(sub) == "unix")
        stop_listening(here)
        break_links(there)
        pub.put(2)
        assert (await sub.get(LONG), way_of(sub), len(heard)) == (2, "direct", 1)


# --- strangers ---------------------------------------------------------------------------------


@asynccontextmanager
async def stranger(name: str, accept: Callable[[], asyncio.BaseProtocol]) -> AsyncIterator[None]:
    """Somebody has that name before the peer whose it is."""
    loop = asyncio.get_running_loop()
    server = await listen_at_socket(loop, accept, unix.bound(name), 8)
    try:
        yield
    finally:
        server.close()
        unix.forget(name)


class Silent(asyncio.Protocol):
    """Takes note of what comes, and says nothing, or (`rude`) hangs up."""

    def __init__(self, heard: list[bytes], rude: bool) -> None:
        self.heard, self.rude = heard, rude

    def connection_made(self, transport: Any) -> None:
        self.heard.append(b"")
        if self.rude:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard[-1] += data


def lacking(warnings: list[str]) -> list[str]:
    """Those about Unix sockets."""
    return [text for text in warnings if "Unix socket" in text]


async def test_who_has_no_name_because_a_stranger_has_it_is_reached_by_tcp(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    async with coordinator_in_loop() as address, Peer(address) as there:
        here = Peer(address)
        async with stranger(name_of(here), lambda: Silent(heard, True)), here:
            sub, pub = await there.sub("t"), await here.pub("t")
            pub.put("a secret")
            assert await sub.get(LONG) == "a secret"
            assert here.runtime.doors.here is None
            assert way_of(sub) == "direct"
            assert not any(b"a secret" in said for said in heard)
            assert len(heard) == 1
        assert lacking(warnings()) == [
            "no Unix socket for the peers of this host, which come by TCP instead: somebody else "
            "has taken its name"
        ]


@pytest.mark.parametrize("rude", [True, False], ids=["hangs up", "is silent"])
async def test_a_stranger_at_the_name_costs_no_more_than_that_tcp_is_used(
    rude: bool, soon: None
) -> None:
    heard: list[bytes] = []
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t")
        stop_listening(here)
        async with stranger(name_of(here), lambda: Silent(heard, rude)):
            began = asyncio.get_running_loop().time()
            sub = await there.sub("t")
            pub.put_many(["a secret", 2])
            assert [await sub.get(LONG), await sub.get(LONG)] == ["a secret", 2]
            assert asyncio.get_running_loop().time() - began < 2
            assert way_of(sub) == "direct"
            break_links(there)
            pub.put(3)
            assert await sub.get(LONG) == 3
            assert way_of(sub) == "direct"
            assert not any(b"a secret" in said for said in heard)
            assert heard


@pytest.mark.by_hand
async def test_a_stranger_who_speaks_and_has_not_the_secret_is_said_once_and_not_believed(
    soon: None, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He knows the `peer_id`, and says HELLO and AUTH as it does."""
    monkeypatch.delenv("PUBSUB_INSECURE", raising=False)
    met = 0
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t")
        stop_listening(here)
        posing = Private(Key.new())

        def greet(authenticator: Any) -> Acceptor:
            nonlocal met
            met += 1
            return Acceptor(here.runtime.doors.me(), ("peer",), authenticator=authenticator)

        doorman = Doorman(
            *(here.runtime.loop, Settings(), bytearray(65536), greet),
            *(lambda other: pytest.fail("he is let in"), posing),
        )
        async with stranger(name_of(here), doorman.accept):
            sub = await there.sub("t")
            for i in range(100):
                pub.put(i)
                assert await sub.get(LONG) == i
            await eventually(lambda: met >= 3)
            assert way_of(sub) == "direct"
            where = here.address
            (publisher,) = sub.publishers.values()
            assert publisher["failed"] == ["unix: it does not have the secret of this user"]
        doorman.abort_all_but(())
    said = [text for text in lacking(warnings()) if "is not used" in text]
    assert said == [
        f"the Unix socket of the publisher at {where} is not used, but TCP: it does not have the "
        "secret of this user"
    ]


class Passing(asyncio.Protocol):
    """One end of two connections, of which each is passed what the other says."""

    def __init__(self, transport: Any = None) -> None:
        self.to = transport
        self.transport: Any = None
        self.kept = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.to is None:
            self.kept += data
        else:
            self.to.write(data)

    def join(self, other: Passing) -> None:
        self.to, other.to = other.transport, self.transport
        for one in (self, other):
            one.to.write(one.kept)


async def between(front: str, back: Passing, sub: Sub, there: Peer) -> tuple[Passing, list[str]]:
    """Have who lies at that name pass all on to that connection; returns what came of it."""
    came: list[Passing] = []

    def accept() -> Passing:
        came.append(Passing())
        return came[-1]

    async with stranger(front, accept):
        break_links(there)
        await eventually(lambda: came and came[0].transport is not None)
        came[0].join(back)
        await eventually(lambda: way_of(sub) == "direct")
        (remote,) = there.runtime.publishers.remotes.values()
        await eventually(lambda: "unix" in remote._troubles)
        return came[0], remote.troubles()


@on_linux
@pytest.mark.by_hand
async def test_a_proof_is_not_passed_on_between_two_unix_sockets(
    names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger has connected while the peer listened, took the name when it did so no more, and
    passes on what comes to that connection: both ends have the key, and see the same name dialled,
    but not the same one dialling."""
    if not name_is_abstract():
        pytest.skip("nobody else has files in that directory")
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(LONG) == 1
        loop = asyncio.get_running_loop()
        back = Passing()
        await unix.connect(loop, Way(name_of(here) + LOCALHOST, 0), back)
        await eventually(lambda: len(here.runtime.doors.doorman) == 1)
        stop_listening(here)
        front, troubles = await between(name_of(here), back, sub, there)
        assert front.to is not None
        assert troubles == [
            "unix: it has the key, but sees other addresses (a forwarded port or a tunnel lies "
            "between, or somebody does): use TLS there, by encrypt=True or PUBSUB_ENCRYPT=1"
        ]
        pub.put(2)
        assert await sub.get(LONG) == 2


def name_is_abstract() -> bool:
    return this_host().socket_of("-").startswith("\0")


@pytest.mark.by_hand
@pytest.mark.parametrize("side", ["dials", "is dialled"])
async def test_a_process_of_another_user_comes_by_tcp(
    side: str, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the secret (how, is his affair), so that TCP is what it was before."""
    prepare = unix.prepare

    def another(sock: Any) -> int:
        prepare(sock)
        dials: bool = sock.getsockname() != listens
        return os.geteuid() + (dials == (side == "dials"))

    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t")
        assert here.runtime.doors.here is not None
        listens = here.runtime.doors.here.sockets[0].getsockname()
        monkeypatch.setattr(unix, "prepare", another)
        sub = await there.sub("t")
        for i in range(10):
            pub.put(i)
            assert await sub.get(LONG) == i
        assert way_of(sub) == "direct"
        (publisher,) = sub.publishers.values()
        sub.close()
    (why,) = publisher["failed"]
    assert "it is a process of another user, or in another user namespace" in why
    said = [text for text in warnings() if "another user namespace" in text]
    assert len([text for text in said if "is not used, but TCP" in text]) == 1
    assert len(said) == 1 + (side == "is dialled"), "there, too"


@pytest.mark.parametrize(
    ("user", "taken"), [(1000, True), (0, True), (1001, False), (65534, False), (None, True)]
)
def test_a_users_secret_lets_in_his_processes_and_roots(
    user: int | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(guards, "_nobody", lambda: 65534)
    guard = Private(Key.new())
    if taken:
        guard.check_user(user)
    else:
        with pytest.raises(AuthError, match=f"another user namespace .uid {user}, not 1000."):
            guard.check_user(user)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(AuthError):  # he may be any user of another namespace
        guard.check_user(65534)
    for other in (Guard(), Group((Key.new(),), lambda: (), None, None)):
        other.check_user(1001)  # whoever has the key, or everybody


# --- the socket --------------------------------------------------------------------------------


async def test_who_says_nothing_counts_as_at_any_door() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, max_unauthenticated=2, handshake_timeout=LONG) as here,
    ):
        await here.pub("t")
        doorman = here.runtime.doors.doorman
        heard = [Passing() for _ in range(4)]
        loop = asyncio.get_running_loop()
        for one in heard:
            await unix.connect(loop, Way(name_of(here) + LOCALHOST, 0), one)
        await eventually(lambda: sum(bool(one.kept) for one in heard) == 2)
        assert len(doorman) == 2
        assert b"too many connections that say nothing" in heard[0].kept
        for one in heard:
            one.transport.abort()


async def test_a_socket_at_which_too_many_wait_is_refused_at_once() -> None:
    """A loop would wait until it can be written to, and take that for being connected."""
    loop = asyncio.get_running_loop()
    sock = unix.bound("1f-full")
    sock.listen(0)
    came = []
    try:
        with pytest.raises(BlockingIOError) as caught:
            for _ in range(10):
                came.append(Passing())
                await unix.connect(loop, Way(f"1f-full{LOCALHOST}", 0), came[-1])
        assert explain(caught.value) == "Resource temporarily unavailable"
    finally:
        sock.close()
        unix.forget("1f-full")
        for one in came[:-1]:
            one.transport.abort()


async def test_g4_where_too_many_dial_at_once_the_others_come_by_tcp_until_there_is_room(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Unix socket refuses where TCP would have them wait."""
    refused = 0
    connect = unix.connect

    async def note(loop: Any, way: Way, protocol: Any) -> None:
        nonlocal refused
        try:
            await connect(loop, way, protocol)
        except BlockingIOError:
            refused += 1
            raise

    monkeypatch.setattr(unix, "connect", note)
    monkeypatch.setattr("pubsub.links.doors.BACKLOG", 1)
    async with coordinator_in_loop() as address, Peer(address) as here, AsyncExitStack() as stack:
        there = [await stack.enter_async_context(Peer(address)) for _ in range(30)]
        subs = [await peer.sub("t") for peer in there]
        pub = await here.pub("t")
        await pub.wait_for_subscribers(len(subs), LONG)
        assert refused, "they dial in one turn of the loop"
        for i in range(3):
            pub.put(i)
        for sub in subs:
            assert [await sub.get(LONG) for _ in range(3)] == [0, 1, 2]
        await eventually(lambda: {way_of(sub) for sub in subs} == {"unix"})
        pub.put(3)
        assert {await sub.get(LONG) for sub in subs} == {3}
        assert {sub.lost for sub in subs} == {0}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nobody tells what is open")
async def test_g9_peers_that_come_and_go_leave_neither_descriptors_nor_names(names: Path) -> None:
    def open_now() -> tuple[int, int]:
        listed = Path("/proc/net/unix").read_text()
        files = 0 if name_is_abstract() or not names.exists() else len(os.listdir(names))
        return len(os.listdir("/proc/self/fd")), listed.count(begin) + files

    async def come_and_go() -> None:
        async with Peer(address) as here, Peer(address) as there:
            sub, pub = await there.sub("t"), await here.pub("t")
            pub.put(1)
            assert (await sub.get(LONG), way_of(sub)) == (1, "unix")

    async with coordinator_in_loop() as address:
        begin = f"@{name_of(Peer(address)).partition('-')[0]}-"
        await come_and_go()  # what is opened once, is opened
        await asyncio.sleep(0.1)
        before = open_now()
        for _ in range(20):
            await come_and_go()
        await eventually(lambda: open_now() == before)


async def test_the_user_at_the_other_end_is_known_though_no_descriptor_is_left() -> None:
    """Else he would be taken for another one, and the log would say so."""
    resource = pytest.importorskip("resource")
    one, other = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (one.fileno(), hard))
        user = unix.prepare(one)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with one, other:
        assert user in (os.geteuid(), None)
        one.send(b"x")  # it is still open
        assert other.recv(1) == b"x"


async def test_a_name_that_nobody_has_is_refused_at_once() -> None:
    with pytest.raises(ConnectionRefusedError):
        await unix.connect(asyncio.get_running_loop(), Way(f"1f-none{LOCALHOST}", 0), Passing())


async def test_whatever_name_a_stranger_gives_his_socket_an_end_is_a_host_on_loopback() -> None:
    for name in ("", None, b"\0\n\x1b[31m", "/a/b", b"\0pubsubd-1", b"\xff"):
        host, port = unix.end_of(name)
        assert host.endswith("localhost")
        assert host.replace(".", "").isalnum()
        assert port == 0
    assert unix.end_of(b"\0a") != unix.end_of(b"\0b")


async def test_a_link_by_a_unix_socket_has_a_name_for_people() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, LONG)
        assert way_of(sub) == "unix"
        (remote,) = there.runtime.publishers.remotes.values()
        assert isinstance(remote.link, Link)
        assert str(remote.link) == "a process of this host"


# --- files -------------------------------------------------------------------------------------


def left(directory: Path, *, mode: int = 0o700) -> set[str]:
    """The files there, where only their user can enter."""
    assert directory.stat().st_mode & 0o777 == mode
    return {path.name for path in directory.iterdir()}


def age(*paths: Path) -> None:
    """What is a name of no socket that anybody is about to listen at."""
    for path in paths:
        if not path.exists():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        os.utime(path, (time.time() - 3600,) * 2)


async def test_a_file_goes_with_its_peer_and_those_of_the_dead_when_one_starts(
    names: Path,
) -> None:
    if name_is_abstract():
        pytest.skip("it leaves none")
    async with coordinator_in_loop() as address, Peer(address) as here:
        await here.pub("t")
        begin, own = name_of(here).partition("-")[0], name_of(here)
        assert left(names) == {own}
        age(names / f"{begin}-1", names / "feedbeef-1", names / own)
        with socket.socket(socket.AF_UNIX) as young:
            young.bind(str(names / f"{begin}-2"))
        kept = {own, f"{begin}-2", "feedbeef-1"}  # the last is of another host
        async with Peer(address) as there:
            await there.pub("u")
            assert left(names) == {*kept, name_of(there)}
        assert left(names) == kept
    assert left(names) == {f"{begin}-2", "feedbeef-1"}


async def test_a_directory_that_others_may_enter_has_no_sockets(names: Path) -> None:
    if name_is_abstract():
        pytest.skip("there is none")
    os.makedirs(names)
    os.chmod(names, 0o755)
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(LONG) == 1
        assert way_of(sub) == "direct"
        assert left(names, mode=0o755) == set()


async def test_where_there_are_none_all_goes_by_tcp() -> None:
    """As on Windows, and in the simulation."""
    with on_host(Host(socket_of=lambda name: "")):
        async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
            sub, pub = await there.sub("t"), await here.pub("t")
            pub.put(1)
            assert await sub.get(LONG) == 1
            assert (way_of(sub), here.runtime.doors.here) == ("direct", None)
