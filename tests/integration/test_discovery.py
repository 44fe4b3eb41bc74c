"""Coordinators that come and go, several of them, and the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

import pytest

from pubsub import CoordinatorUnavailable, Gap, Peer, Pub, Sub
from pubsub.cli.asking import find_default
from pubsub.config import Address, Settings, parse_address
from pubsub.coordinator.server import Coordinator
from pubsub.core.rights import Rights
from pubsub.errors import AuthError
from pubsub.links.link import Link
from pubsub.runtime.coordinator_link import PORTS, Session
from pubsub.trust.credentials import Credentials
from pubsub.trust.guard import Private
from pubsub.trust.keys import Key
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Acceptor, Identity, Other
from pubsub.wire.messages import Subscribe, encode
from tests.integration.support import (
    LONG,
    CoordinatorThread,
    break_links,
    coordinator_in_loop,
    coordinator_in_thread,
    default_guard,
    eventually,
    free_port,
    run_python,
)
from tests.wire.said import welcome


async def _restart(coordinator: CoordinatorThread, *, rudely: bool = True) -> None:
    await asyncio.to_thread(coordinator.stop, rudely=rudely)
    await asyncio.to_thread(coordinator.start)


@pytest.mark.parametrize("rudely", [True, False])
async def test_g7_streams_go_on_while_the_coordinator_is_down(rudely: bool) -> None:
    with coordinator_in_thread() as coordinator:
        async with Peer(coordinator.address) as here, Peer(coordinator.address) as there:
            sub = await there.sub("t")
            pub = await here.pub("t")
            pub.put(0)
            assert await sub.get(timeout=10) == 0
            await asyncio.to_thread(coordinator.stop, rudely=rudely)
            await eventually(lambda: not here.runtime.sessions[0].up)
            await eventually(lambda: not there.runtime.sessions[0].up)
            for i in range(1, 1_000):
                pub.put(i)
                assert await sub.get(timeout=10) == i
            assert break_links(here)  # and a break while it is down heals too
            for i in range(1_000, 2_000):
                pub.put(i)
            for i in range(1_000, 2_000):
                assert await sub.get(timeout=10) == i
            assert sub.lost == 0


async def test_g7_a_restarted_coordinator_learns_everything_again() -> None:
    with coordinator_in_thread() as coordinator:
        async with Peer(coordinator.address) as here, Peer(coordinator.address) as there:
            sub = await there.sub("t")
            pub = await here.pub("t")
            pub.put(0)
            assert await sub.get(timeout=10) == 0
            (link,) = [r.link for r in there.runtime.publishers.remotes.values()]
            await _restart(coordinator)
            new_pub, new_sub = here.pub("new"), there.sub("new")
            await asyncio.gather(new_pub, new_sub)
            new_pub.put("match")
            assert await new_sub.get(timeout=10) == "match"
            await eventually(lambda: len(list(coordinator.coordinator.registry.topics())) == 2)
            pub.put(1)
            assert await sub.get(timeout=10) == 1
            assert [r.link for r in there.runtime.publishers.remotes.values()] == [
                link
            ]  # never torn down


@asynccontextmanager
async def restarted_meanwhile(there: Peer, coordinator: CoordinatorThread) -> AsyncIterator[None]:
    """The coordinator is started anew, and this Peer comes back only afterwards."""
    await asyncio.to_thread(coordinator.stop, rudely=True)
    await eventually(lambda: not there.runtime.sessions[0].up)
    there.runtime.sessions[0].close()
    await asyncio.to_thread(coordinator.start)
    yield
    session = Session(
        there.runtime.loop,
        there.runtime.sessions[0].address,
        there.runtime,
        there.settings,
        there.runtime._scratch,
        there.runtime._random,
        there.runtime.guard,
    )
    there.runtime.sessions[0] = session
    session.start()


async def test_g4_a_sub_that_returns_after_a_restart_gets_a_new_pubs_first_message() -> None:
    with coordinator_in_thread(settle=20) as coordinator:
        async with Peer(coordinator.address) as there:
            sub = await there.sub("t")
            async with AsyncExitStack() as stack:
                async with restarted_meanwhile(there, coordinator):
                    here = await stack.enter_async_context(Peer(coordinator.address))
                    pub = await here.pub("t")
                    pub.put("first")
                    await asyncio.sleep(0.1)
                assert await sub.get(timeout=10) == "first"


@pytest.mark.parametrize(
    ("gone", "told", "number"), [("the Pub", "closed", 1), ("its process", "unreachable", 0)]
)
async def test_g3_a_sub_that_returns_after_a_restart_hears_of_a_pub_that_came_and_went(
    gone: str, told: str, number: int
) -> None:
    with coordinator_in_thread(settle=20) as coordinator:
        async with Peer(coordinator.address) as there:
            sub = await there.sub("*")
            async with AsyncExitStack() as stack:
                async with restarted_meanwhile(there, coordinator):
                    here = await stack.enter_async_context(Peer(coordinator.address))
                    pub = await here.pub("t")
                    pub.put("first")
                    await (pub if gone == "the Pub" else here).close()
                gap = await asyncio.wait_for(anext(sub.messages()), 10)
                assert isinstance(gap, Gap)
                assert (gap.topic, gap.reason, gap.missed) == ("t", told, number)


async def test_each_coordinator_alone_is_enough() -> None:
    with coordinator_in_thread() as one, coordinator_in_thread() as two:
        both = f"{one.address},{two.address}"
        async with Peer(both) as here, Peer(both) as there:
            sub = await there.sub("t")
            pub = await here.pub("t")
            pub.put(1)
            assert await sub.get(timeout=10) == 1
            assert sub.lost == 0
            await asyncio.to_thread(one.stop)
            await eventually(lambda: not here.runtime.sessions[0].up)
            await eventually(lambda: not there.runtime.sessions[0].up)
            late = await asyncio.wait_for(_ready(there.sub("t")), 10)
            pub.put(2)
            assert await sub.get(timeout=10) == 2
            assert await late.get(timeout=10) == 2


async def _ready(waited: Pub | Sub) -> Any:
    return await waited


async def test_peers_that_vanish_leave_the_maps() -> None:
    async with coordinator_in_loop(ping_interval=0.05, ping_timeout=0.2) as address:
        here = Peer(address)
        pub = await here.pub("t")
        async with Peer(address) as watcher:
            sub = watcher.sub("t")
            await sub
            assert sub.publishers
            for session in here.runtime.sessions:
                assert session.link is not None
                session.link.transport.pause_reading()  # half-open: it answers no more
                session.close = lambda: None  # type: ignore[method-assign]
                session._closed = True
            await eventually(
                lambda: (
                    not watcher.runtime.publishers.directory.listed(
                        sub._inbox.sub_id, next(iter(sub._inbox.streams))
                    )
                )
            )
            assert sub.publishers  # its link is healthy: nothing is torn down
            assert not pub.closed
        await here.close()


async def test_a_dead_publisher_that_is_still_listed_does_not_hold_up_readiness() -> None:
    async with coordinator_in_loop() as address:
        dead = Peer(address)
        pub = await dead.pub("t")
        for server in dead.runtime.doors.servers.values():
            server.close()
        async with Peer(address, join_timeout=2 * LONG) as peer:
            await asyncio.wait_for(_ready(peer.sub("t")), LONG)
        assert not pub.closed
        await dead.close()


class _Hung:
    """Endpoint of a publisher that shakes hands and then hangs."""

    def __init__(self) -> None:
        self.got: list[Event] = []

    def opened(self, link: Link, other: Other) -> _Hung:
        """See `Endpoint`."""
        return self

    def receive(self, event: Event) -> None:
        """See `Core`."""
        self.got.append(event)

    def pump(self, budget: int) -> tuple[bytes, ...]:
        """See `Core`."""
        return ()

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""


@pytest.mark.insecure  # the publisher's side of the handshake is one made here
async def test_a_publisher_that_hangs_holds_up_readiness_for_the_join_timeout_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hung = _Hung()
    async with coordinator_in_loop() as address, Peer(address) as publisher:
        runtime = publisher.runtime

        def accept() -> Link:
            acceptor = Acceptor(Identity("peer", runtime.peer_id), ("peer",))
            return Link(runtime.loop, acceptor, hung, runtime.settings, runtime._scratch)

        monkeypatch.setattr(runtime.doors.doorman, "accept", accept)
        pub = await publisher.pub("t")
        async with Peer(address, join_timeout=0.2) as peer:
            sub = peer.sub("t")
            await asyncio.wait_for(_ready(sub), 5)
            assert [how["state"] for how in sub.publishers.values()] == ["connecting"]
            assert [type(event) for event in hung.got] == [Subscribe]
        assert not pub.closed


async def test_a_coordinator_that_fails_after_the_handshake_is_dialled_with_growing_delays() -> (
    None
):
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(encode(welcome("coordinator", "head")))
        writer.close()

    server = await asyncio.start_server(fail, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Peer(f"127.0.0.1:{port}") as peer:
        (session,) = peer.runtime.sessions
        await eventually(lambda: session._backoff._attempts >= 4)
    server.close()


async def test_what_is_no_coordinator_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Peer(f"127.0.0.1:{port}", connect_timeout=30) as peer:
        with pytest.raises(CoordinatorUnavailable, match="another protocol"):
            await asyncio.wait_for(_ready(peer.sub("t")), 10)


async def test_a_peer_is_not_taken_for_a_coordinator() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here:
        await here.pub("t")
        async with Peer(here.address, connect_timeout=30) as peer:
            with pytest.raises(CoordinatorUnavailable, match="this is a peer, not a coordinator"):
                await asyncio.wait_for(_ready(peer.pub("t")), 10)


async def test_the_way_out_fits_where_the_address_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PUBSUB_COORDINATOR", where)
    for given, advice in ((where, "give the address"), (None, "set PUBSUB_COORDINATOR to")):
        async with Peer(given, connect_timeout=0.1) as peer:
            with pytest.raises(CoordinatorUnavailable, match=f"or {advice} where it runs$"):
                await asyncio.wait_for(_ready(peer.sub("t")), LONG)


async def test_what_accepts_and_says_nothing_is_said_to_be_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = "{}:{}".format(*silent.getsockname())
        async with Peer(where, connect_timeout=0.2, handshake_timeout=LONG) as peer:
            with pytest.raises(CoordinatorUnavailable, match="something listens there, but it"):
                await asyncio.wait_for(_ready(peer.sub("t")), LONG)


async def test_a_wrong_address_to_advertise_names_the_variable_only_where_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PUBSUB_ADVERTISE", "foo:bar")
    with pytest.raises(ValueError, match=r"^PUBSUB_ADVERTISE 'foo:bar' is not"):
        Peer("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"^advertise 'foo:baz' is not"):
        Peer("127.0.0.1:1", advertise="foo:baz")
    async with Peer("127.0.0.1:1", advertise="localhost"):
        pass


async def test_the_embedded_coordinator_is_taken_over_when_its_peer_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setattr("pubsub.config.DEFAULT_COORDINATOR", Address("127.0.0.1", port))
    first = Peer()
    pub = await first.pub("warm-up")
    assert first.runtime.embedded.coordinator is not None
    others = [Peer() for _ in range(3)]
    subs = [await peer.sub("t") for peer in others]
    assert not any(peer.runtime.embedded.coordinator for peer in others)
    await pub.close()
    await first.close()
    await eventually(lambda: all(peer.runtime.sessions[0].up for peer in others))
    assert sum(peer.runtime.embedded.coordinator is not None for peer in others) == 1
    late = Peer()
    async with late.pub("t") as pub:
        pub.put("found")
        for sub in subs:
            assert await sub.get(timeout=10) == "found"
    for peer in (late, *others):
        await peer.close()


async def test_what_is_advertised_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async with coordinator_in_loop() as address:
        async with Peer(address, advertise="localhost") as peer:
            await peer.pub("t")
            assert peer.address.startswith("localhost:")
        monkeypatch.setenv("PUBSUB_ADVERTISE", "example.invalid:1234")
        async with Peer(address) as peer:
            await peer.pub("t")
            assert peer.address == "example.invalid:1234"
        async with Peer(address, listen=False) as peer:
            await peer.pub("t")
            assert peer.address == ""


async def test_g4_a_thousand_fresh_pairs_of_peers_lose_no_first_message() -> None:
    """Sub first or Pub first, ready or not, at changing distances in time."""
    async with coordinator_in_loop() as address:

        async def pair(n: int) -> None:
            topic = f"pair/{n}"
            here, there = Peer(address), Peer(address)
            if n % 2:
                sub = await there.sub(topic)
                pub = here.pub(topic)
                if n % 4 == 1:
                    await asyncio.sleep(0.001 * (n % 7))
            else:
                pub = here.pub(topic)
                if n % 4 == 0:
                    await pub
                sub = await there.sub(topic)
            for i in range(3):
                pub.put(i)
            assert [await sub.get(timeout=30) for _ in range(3)] == [0, 1, 2]
            assert sub.lost == 0
            await asyncio.gather(here.close(), there.close())

        for start in range(0, 1000, 50):
            await asyncio.gather(*map(pair, range(start, start + 50)))


async def test_g4_a_publisher_whose_loop_is_blocked_loses_no_first_message() -> None:
    """For longer than everything at the beginning may take, in whatever turn of its loop: who
    blocked it does not find that the others were too slow."""

    def take(address: str, ready: threading.Event) -> list[int]:
        with Peer(address) as there:
            sub = there.sub("*")
            ready.set()
            return [sub.get(timeout=LONG) for _ in numbers]

    numbers = range(0, 50, 7)
    with coordinator_in_thread() as coordinator:
        ready = threading.Event()
        taking = asyncio.create_task(asyncio.to_thread(take, coordinator.address, ready))
        assert await asyncio.to_thread(ready.wait, LONG)
        for turns in numbers:
            async with Peer(coordinator.address, connect_timeout=0.6, join_timeout=0.6) as here:
                pub = here.pub(f"t{turns}")
                pub.put(turns)
                for _ in range(turns):
                    await asyncio.sleep(0)
                time.sleep(1.2)  # noqa: ASYNC251  # as a user's code does
                await pub
                await pub.flush(timeout=LONG)
        assert sorted(await taking) == list(numbers)


async def test_a_peer_and_a_coordinator_that_close_leave_no_connection_open() -> None:
    """Neither those that were cut off a moment ago, nor those that have said nothing yet."""
    coordinator = Coordinator(asyncio.get_running_loop(), guard=default_guard())
    address = await coordinator.start("127.0.0.1", 0)
    peer = Peer(str(address))
    await peer.pub("t")
    strangers = []
    for at in (str(address), peer.address):
        host, port = parse_address(at)
        for first in (b"", b"GET / HTTP/1.1"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(first)
            strangers.append((reader, writer))
    gates = (coordinator._doorman, peer.runtime.doors.doorman)
    await eventually(lambda: all(len(gate._open) >= 2 for gate in gates))
    await asyncio.sleep(0.05)
    await peer.close()
    await coordinator.close()
    assert not any(gate._open for gate in gates)
    for _, writer in strangers:
        writer.close()


async def test_what_is_closed_while_connections_come_in_leaves_none_of_them_open() -> None:
    """Whatever turn of the loop they have got to."""
    loop = asyncio.get_running_loop()

    async def end_of(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(sock, 1024):
                pass

    for turns in range(6):
        coordinator = Coordinator(
            loop, settings=Settings(handshake_timeout=2 * LONG), guard=default_guard()
        )
        address = await coordinator.start("127.0.0.1", 0)
        strangers = [socket.socket() for _ in range(20)]
        for sock in strangers:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((address.host, address.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        await coordinator.close()
        try:
            await asyncio.wait_for(asyncio.gather(*map(end_of, strangers)), LONG)
        finally:
            for sock in strangers:
                sock.close()


async def test_a_peer_that_is_closed_while_it_begins_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a port where it listens nor a connection, whatever turn of the loop it has got to."""
    async with coordinator_in_loop() as address, Peer(address) as there:
        pub = await there.pub("t")
        for turns in itertools.count():
            port = free_port()
            peer = Peer(address, port=port, handshake_timeout=0.1)
            sub = peer.sub("t")
            for _ in range(turns):
                await asyncio.sleep(0)
            began = [publisher["state"] for publisher in sub.publishers.values()] == ["attached"]
            await asyncio.wait_for(peer.close(linger=0), LONG)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            if began:
                break
        await asyncio.sleep(0.2)  # whatever waits for a handshake is given up now
        await pub.close()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def test_a_program_that_ends_while_its_peer_begins_does_not_hang() -> None:
    """`asyncio.run` cancels every task, in whatever turn of the loop they are."""
    code = """
        import asyncio, sys
        from pubsub import Peer
        try:
            import uvloop
        except ImportError:
            pass
        else:
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

        async def main(turns):
            peer = Peer(sys.argv[1])
            sub = peer.sub("t")
            for _ in range(turns):
                await asyncio.sleep(0)

        for turns in range(30):
            asyncio.run(main(turns))
        print("ended")
    """
    with coordinator_in_thread() as coordinator:
        assert await asyncio.to_thread(run_python, code, coordinator.address) == "ended\n"


async def test_the_time_for_others_stands_still_where_the_loop_is_blocked() -> None:
    async with coordinator_in_loop() as address, Peer(address, join_timeout=10) as peer:
        pub = peer.pub("t", overflow="block")
        times = []
        for _ in range(4):
            times.append(peer.runtime.clock.now())
            time.sleep(0.6)  # noqa: ASYNC251  # as a user's code does
        times.append(peer.runtime.clock.now())
        await pub
        times.append(peer.runtime.clock.now())
        assert times == sorted(times)
        assert times[-1] - times[0] < 1.2
        await asyncio.sleep(0.6)
        assert peer.runtime.clock.now() - times[-1] >= 0.5


async def test_a_coordinator_whose_close_is_cancelled_has_ended_its_connections() -> None:
    coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=default_guard())
    async with Peer(str(await coordinator.start("127.0.0.1", 0))) as peer:
        await peer.pub("t")
        closing = asyncio.create_task(coordinator.close())
        await asyncio.sleep(0)
        closing.cancel()
        await eventually(lambda: not peer.runtime.sessions[0].up)
        await coordinator.close()


async def test_a_coordinator_that_is_cut_ends_all_at_once() -> None:
    """Those who have joined and those who have said nothing, and its port."""
    coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=default_guard())
    address = await coordinator.start("127.0.0.1", 0)
    async with Peer(str(address)) as peer:
        await peer.pub("t")
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await eventually(lambda: len(coordinator._doorman) == 1)
        coordinator.cut()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), LONG) == b""
        writer.close()
        await eventually(lambda: not peer.runtime.sessions[0].up)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)


def test_a_blocking_peer_whose_close_is_interrupted_does_not_go_on_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(coroutine: Coroutine[Any, Any, Any]) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    port = free_port()
    with coordinator_in_thread() as coordinator:
        peer = Peer(coordinator.address, port=port)
        peer.sub("t")
        assert peer.address == f"127.0.0.1:{port}"
        monkeypatch.setattr(peer._thread, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            peer.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


async def test_a_link_outlives_its_last_sub_for_a_moment() -> None:
    """Whoever makes one Sub after the other keeps the connection, and leaves it in the end."""
    async with (
        coordinator_in_loop() as coordinator,
        Peer(coordinator) as here,
        Peer(coordinator) as there,
    ):
        pub = await here.pub("t")
        links = set()
        for i in range(3):
            async with there.sub("t") as sub:
                pub.put(i)
                assert await sub.get(timeout=LONG) == i
                (remote,) = there.runtime.publishers.remotes.values()
                links.add(remote.link)
        assert len(links) == 1
        await eventually(lambda: not there.runtime.publishers.remotes)
        await eventually(lambda: not here.runtime.subscribers.served)


async def test_a_sub_that_waits_beside_its_own_coordinator_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the real coordinator's address was forgotten, nothing is wrong, and nothing comes."""
    monkeypatch.setattr("pubsub.runtime.readiness.LONELY", 0.2)
    port = free_port()
    monkeypatch.setattr("pubsub.config.DEFAULT_COORDINATOR", Address("127.0.0.1", port))

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "its own coordinator" in r.getMessage()]

    async with Peer() as peer, peer.pub("served"), peer.sub("served"):
        lonely = await peer.sub("lonely")
        await eventually(said)
        for _ in range(3):
            await peer.sub("more")
        assert peer.runtime.readiness._lonely_timer is None
        await lonely.close()
    assert said() == [
        "nothing publishes on 'lonely' and this process is its own coordinator (nothing listened "
        f"on 127.0.0.1:{port}): set PUBSUB_COORDINATOR to where the others' runs"
    ]


async def test_a_sub_that_waits_for_publishers_of_another_coordinator_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pubsub.runtime.readiness.LONELY", 0.05)
    port = free_port()
    monkeypatch.setattr("pubsub.config.DEFAULT_COORDINATOR", Address("127.0.0.1", port))
    async with coordinator_in_loop(port) as address, Peer(address) as given, Peer() as other:
        await given.sub("t")
        assert given.runtime.readiness._lonely_timer is None
        await other.sub("t")
        await eventually(lambda: other.runtime.readiness._lonely_timer is None)
    assert "its own coordinator" not in caplog.text


class NoCoordinator(Private):
    """Credentials that make nobody a coordinator."""

    @property
    def rights(self) -> Rights:
        return Rights(["**"], ["**"])


@pytest.mark.parametrize("right", [False, True])
async def test_who_may_not_be_a_coordinator_occupies_no_port_for_one(
    monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    port = free_port()
    monkeypatch.setattr("pubsub.config.DEFAULT_COORDINATOR", Address("127.0.0.1", port))
    made: list[Address] = []
    start = Coordinator.start

    async def started(self: Coordinator, host: str, port: int) -> Address:
        made.append(Address(host, port))
        return await start(self, host, port)

    monkeypatch.setattr(Coordinator, "start", started)
    guard = Private(Key.new()) if right else NoCoordinator(Key.new())
    monkeypatch.setattr(Credentials, "guard", lambda self: guard)
    if right:  # and others refuse it all the same, as one whose certificate was revoked

        def refuse(self: Private, *args: object) -> NoReturn:
            raise AuthError("refused")

        monkeypatch.setattr(Private, "dials", refuse)
    async with Peer() as peer:
        (session,) = peer.runtime.sessions
        await eventually(lambda: session.tried)
        await asyncio.sleep(0.2)
    assert made == ([Address("127.0.0.1", port)] if right else [])


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 16, b"SSH-2.0-x\r\n"]
)
async def test_another_program_at_the_default_port_keeps_nobody_from_the_next(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    # not among the ports that the system gives to whoever dials: the next ones are to be free
    port = random.randrange(12_000, 30_000, PORTS)
    squatter = await asyncio.start_server(answer, "127.0.0.1", port)
    for module in ("pubsub.config", "pubsub.cli.asking"):
        monkeypatch.setattr(f"{module}.DEFAULT_COORDINATOR", Address("127.0.0.1", port))
    async with squatter, Peer() as first, Peer() as second:
        async with second.sub("t") as sub, first.pub("t") as pub:
            pub.put(1)
            assert await sub.get(timeout=10) == 1
        (found,) = {peer.runtime.sessions[0].reached for peer in (first, second)}
        assert port < found.port < port + PORTS
        assert await asyncio.to_thread(find_default, default_guard()) == found
