"""Ways: several addresses of one publisher, or of one coordinator, and names that mean several."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from pubsub import CoordinatorUnavailable, Peer
from pubsub.config import Way
from pubsub.coordinator import server
from pubsub.coordinator.server import Coordinator
from pubsub.links import resolving
from pubsub.links.keeping import dial
from pubsub.runtime import readiness
from pubsub.runtime.coordinator_link import MOST
from pubsub.runtime.publisher_link import Remote
from pubsub.trust.guard import Guard
from pubsub.wire.handshake import Authenticator, tcp
from pubsub.wire.messages import Register
from tests.conftest import LOOP
from tests.integration.support import (
    LONG,
    break_links,
    coordinator_in_loop,
    coordinator_in_thread,
    default_guard,
    eventually,
    free_port,
    python,
    run_python,
)

pytestmark = pytest.mark.usefixtures("by_tcp")
Warnings = Callable[[], list[str]]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    """The warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """What names mean; one that is not in it means nothing."""
    table: dict[str, tuple[str, ...]] = {}

    def ask(host: str) -> tuple[str, ...]:
        if host in table:
            return table[host]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolving, "ask", ask)
    monkeypatch.setattr(resolving, "_known", {})
    return table


@asynccontextmanager
async def at(host: str, port: int) -> AsyncIterator[Coordinator]:
    """A coordinator at that address."""
    coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=default_guard())
    await coordinator.start(host, port)
    try:
        yield coordinator
    finally:
        await coordinator.close()


async def ready(made: Any) -> Any:
    """Await it; the returned Pub or Sub is not awaited again."""
    await asyncio.wait_for(made._ready.wait(), LONG)
    return made


def up(peer: Peer) -> list[str]:
    return [str(session) for session in peer.runtime.sessions if session.up]


# --- publishers ---------------------------------------------------------------------------


@asynccontextmanager
async def told_twice(
    wrong: int, **settings: Any
) -> AsyncIterator[tuple[Peer, Peer, Any, Any, Coordinator]]:
    """A publisher and a subscriber with two coordinators, of which the second says that the
    publisher is at another port."""
    loop = asyncio.get_running_loop()
    port = free_port()
    async with coordinator_in_loop() as one:
        other = Coordinator(loop, settle=0.0, guard=default_guard())
        async with Peer(one) as here, Peer(f"{one},127.0.0.1:{port}", **settings) as there:
            sub, pub = await there.sub("t"), await here.pub("t")
            pub.put(0)
            assert await sub.get(timeout=LONG) == 0
            other.registry.connect(here.peer_id, tcp("127.0.0.1", wrong), {}, loop.time())
            stream = pub._publication.stream_id
            other.registry.register(
                here.peer_id, Register(stream, "pub", "t", True, False), loop.time()
            )
            other.registry._due.clear()
            try:
                await other.start("127.0.0.1", port)
                (remote,) = there.runtime.publishers.remotes.values()
                await eventually(lambda: len(remote._ways()) == 2)
                yield here, there, pub, sub, other
            finally:
                await other.close()


async def test_g5_an_address_that_one_coordinator_has_wrong_hides_none_that_works() -> None:
    async with told_twice(free_port()) as (here, there, pub, sub, _):
        for i in range(1, 4):
            assert break_links(there)
            pub.put(i)
            assert await sub.get(timeout=LONG) == i
        assert sub.lost == 0
        (remote,) = there.runtime.publishers.remotes.values()
        assert str(remote.address) == here.address


async def test_the_address_that_worked_last_is_dialled_first() -> None:
    came = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        writer.close()

    wrong = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = wrong.sockets[0].getsockname()[1]
    async with wrong, told_twice(port) as (_, there, pub, sub, _other):
        (remote,) = there.runtime.publishers.remotes.values()
        told = there.runtime.publishers.directory._told[remote.peer_id]
        told.update([told.popitem(), told.popitem()])  # the wrong one is named first
        assert remote._ways()[0].port == port
        for i in range(1, 4):
            assert break_links(there)
            pub.put(i)
            assert await sub.get(timeout=LONG) == i
        assert came == 0


async def test_an_address_that_its_coordinator_withdraws_is_no_way_any_more() -> None:
    async with told_twice(free_port()) as (here, there, _pub, _sub, other):
        other.push(other.registry.leave(here.peer_id))
        (remote,) = there.runtime.publishers.remotes.values()
        await eventually(lambda: [str(way) for way in remote._ways()] == [here.address])


@pytest.mark.usefixtures("only_advertised")
async def test_a_publisher_is_dialled_at_all_addresses_of_its_name(
    names: dict[str, tuple[str, ...]],
) -> None:
    names["worker"] = ("127.0.0.3", "127.0.0.1")
    async with (
        coordinator_in_loop() as address,
        Peer(address, advertise="worker") as here,
        Peer(address) as there,
    ):
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        (remote,) = there.runtime.publishers.remotes.values()
        assert str(remote.address) == f"{here.address} (127.0.0.1)"


async def test_a_publisher_is_missed_for_a_while_before_anybody_is_told(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Remote.QUIET == 2.0
    monkeypatch.setattr(Remote, "QUIET", LONG)
    async with coordinator_in_loop() as address, Peer(address) as there, Peer(address) as here:
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        (remote,) = there.runtime.publishers.remotes.values()
        (listening,) = here.runtime.doors.servers.values()
        listening.close()
        break_links(here)
        await eventually(lambda: remote._backoff._attempts >= 3)
        assert warnings() == []
        assert remote._broken_at is not None
        remote._broken_at -= LONG
        await eventually(warnings)
        assert warnings()[0].startswith(f"cannot reach the publisher at {here.address}: nothing")
        sub.close()


@pytest.mark.usefixtures("only_advertised")
async def test_a_publisher_that_was_never_reached_is_not_said_to_be_gone(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remote, "QUIET", 0.0)
    where = f"127.0.0.1:{free_port()}"
    async with coordinator_in_loop() as address, Peer(address) as there:
        here = Peer(address, advertise=where)
        pub, sub = await here.pub("t"), await there.sub("t")
        await eventually(warnings)
        await pub.close()
        await here.close(linger=0)
        await eventually(lambda: len(warnings()) == 2)
        sub.close()
    assert warnings()[1] == (
        f"the publisher at {where} is given up: it was never reached, and no coordinator knows of "
        "it any more"
    )


# --- coordinators --------------------------------------------------------------------------


async def test_one_coordinator_under_two_names_has_one_session(
    names: dict[str, tuple[str, ...]], warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []
    join = Coordinator.joined

    def note(self: Coordinator, connection: Any, link: Any, other: Any) -> None:
        joined.append(other.peer_id)
        join(self, connection, link, other)

    monkeypatch.setattr(Coordinator, "joined", note)
    names["head"] = ("127.0.0.1",)
    async with coordinator_in_loop() as address, Peer(address) as there:
        port = address.split(":")[1]
        async with Peer(f"{address},head:{port}") as here:
            await ready(here.pub("t"))
            one, two = here.runtime.sessions
            await eventually(lambda: (one.twin, two.twin) in ((two, None), (None, one)))
            for i in range(20):  # both had time to be thrown out, and back
                sub, pub = await there.sub(f"t{i}"), await here.pub(f"t{i}")
                pub.put(i)
                assert await sub.get(timeout=LONG) == i
            assert joined.count(here.peer_id) == 2
            assert len(up(here)) == 1
            rests = one if two.up else two
            assert rests.trouble.startswith("it is the same coordinator as the one at ")
            assert warnings() == []

            (stays,) = (session for session in (one, two) if session.up)
            assert stays.link is not None
            monkeypatch.setattr(stays, "_dial", lambda delay=0.0: None)  # its way is gone
            stays.link.abort()
            await eventually(lambda: rests.up)
            assert stays.twin is rests
            sub, pub = await there.sub("late"), await here.pub("late")
            pub.put("on it goes")
            assert await sub.get(timeout=LONG) == "on it goes"


async def test_a_session_that_is_thrown_out_while_it_dials_dials_when_the_twin_is_lost_at_once(
    names: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dialling is still being cancelled then."""
    names["head"] = ("127.0.0.1",)

    async def silence(*args: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    async with coordinator_in_loop() as address, Peer(address) as here:
        await ready(here.pub("t"))
        (twin,) = here.runtime.sessions
        monkeypatch.setattr("pubsub.links.keeping.dial", silence)
        session = twin._make(Way("127.0.0.1", 1))
        session.start()
        await eventually(lambda: session.link is not None)
        session.rest(twin)
        session.twin = None
        monkeypatch.undo()
        session._dial()
        await eventually(lambda: isinstance(session.failure, ConnectionRefusedError))
        session.close()


async def test_a_session_that_its_twin_has_thrown_out_dials_when_the_twin_is_lost(
    names: dict[str, tuple[str, ...]],
) -> None:
    names["head"] = ("127.0.0.1",)
    port = free_port()
    async with Peer(f"127.0.0.1:{port},head:{port}") as here:
        for _ in range(2):  # each time it is another coordinator
            async with at("127.0.0.1", port):
                await ready(here.pub("t"))
                await eventually(lambda: any(s.twin for s in here.runtime.sessions))
            await eventually(lambda: not any(s.twin for s in here.runtime.sessions))


async def test_each_address_of_a_name_has_a_session(
    names: dict[str, tuple[str, ...]], warnings: Warnings
) -> None:
    names["head"] = ("127.0.0.1", "127.0.0.2")
    port = free_port()
    async with (
        at("127.0.0.1", port),
        at("127.0.0.2", port),
        Peer(f"head:{port}") as here,
        Peer(f"127.0.0.1:{port}") as there,
        Peer(f"127.0.0.2:{port}") as elsewhere,
    ):
        pub = await here.pub("t")
        await eventually(lambda: len(up(here)) == 2)
        assert up(here) == [f"head:{port} (127.0.0.1)", f"head:{port} (127.0.0.2)"]
        for sub in (await there.sub("t"), await elsewhere.sub("t")):
            pub.put(1)
            assert await sub.get(timeout=LONG) == 1
        assert warnings() == []


async def test_two_addresses_of_one_coordinator_under_one_name_have_one_session(
    names: dict[str, tuple[str, ...]], warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `localhost` has them, and a pod with an address of each family."""
    monkeypatch.setattr("pubsub.runtime.coordinator_link.FOLLOW", 0.02)
    names["head"] = ("127.0.0.1", "127.0.0.2")
    port = free_port()
    async with (
        at("127.0.0.3", port),
        at("head", port),
        Peer(f"head:{port}") as here,
        Peer(f"127.0.0.3:{port}") as there,
    ):
        await ready(here.pub("t"))
        sessions = here.runtime.sessions
        await eventually(lambda: any(session.twin for session in sessions))
        assert (len(sessions), len(up(here))) == (2, 1)
        # the one that rests is where the name points no more, and another coordinator has come
        (stays,) = (session for session in sessions if session.up)
        assert stays.place is not None
        names["head"] = (stays.place.host, "127.0.0.3")
        await eventually(lambda: up(here) == [str(stays), f"head:{port} (127.0.0.3)"])
        assert len(sessions) == 2
        sub, pub = await there.sub("u"), await here.pub("u")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        assert warnings() == []


async def test_of_a_name_with_many_addresses_all_machines_use_the_same_few(
    names: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pubsub.runtime.coordinator_link.FOLLOW", 0.02)
    many = [f"127.0.1.{n}" for n in range(10, 10 + 3 * MOST)]
    used = many[:MOST]
    names["head"] = tuple(many)
    port = free_port()
    async with at("0.0.0.0", port), Peer(f"head:{port}") as here:
        await ready(here.pub("t"))
        asked = 0
        ask = resolving.ask

        def turned(host: str) -> tuple[str, ...]:
            """A name server names another one first each time."""
            nonlocal asked
            asked += 1
            many.append(many.pop(0))
            names["head"] = tuple(many)
            return ask(host)

        monkeypatch.setattr(resolving, "ask", turned)
        await eventually(lambda: asked > len(many))
        places = [session.place for session in here.runtime.sessions]
        assert sorted(place.host for place in places if place is not None) == used


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_an_address_of_a_name_that_is_dead_holds_up_nobody_and_is_no_trouble(
    names: dict[str, tuple[str, ...]],
    warnings: Warnings,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    names["head"] = ("127.0.0.9", "127.0.0.1")

    async def swallow(link: Any, way: Way, timeout: float, guard: Guard) -> Authenticator:
        if way.host == "127.0.0.9":
            await asyncio.sleep(timeout)
        return await dial(link, way, timeout, guard)

    if how == "is silent":
        monkeypatch.setattr("pubsub.links.keeping.dial", swallow)
    port = free_port()
    async with at("127.0.0.1", port), Peer(f"head:{port}", connect_timeout=10 * LONG) as here:
        sub, pub = await ready(here.sub("t")), await ready(here.pub("t"))
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        assert pub._publication.settled, "nor do its first messages wait for it"
        dead = here.runtime.sessions[0]
        if how == "refuses":
            await eventually(lambda: dead._backoff._attempts >= 2)
        assert warnings() == []


async def test_a_name_of_which_no_address_answers_is_missed_once(
    names: dict[str, tuple[str, ...]], warnings: Warnings
) -> None:
    names["head"] = ("127.0.0.8", "127.0.0.9")
    port = free_port()
    refused = "nothing listens there (connection refused)"
    async with Peer(f"head:{port}") as here:
        sub = here.sub("t")
        await eventually(lambda: all(s._backoff._attempts >= 3 for s in here.runtime.sessions))
        async with at("127.0.0.9", port):
            await ready(sub)
        assert warnings() == [
            f"no coordinator at head:{port} (127.0.0.8): {refused}, nor at head:{port} "
            f"(127.0.0.9): {refused}; trying on",
            f"the coordinator at head:{port} (127.0.0.9) answers now",
        ]


async def test_what_a_name_means_is_followed(
    names: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pubsub.runtime.coordinator_link.FOLLOW", 0.02)
    names["head"] = ("127.0.0.1", "127.0.0.9")
    port = free_port()
    async with (
        at("127.0.0.1", port) as first,
        at("127.0.0.2", port),
        Peer(f"head:{port}") as here,
    ):
        await ready(here.pub("t"))
        assert len(here.runtime.sessions) == 2
        names["head"] = ("127.0.0.2",)
        one, two = f"head:{port} (127.0.0.1)", f"head:{port} (127.0.0.2)"
        await eventually(lambda: up(here) == [one, two], "what is connected stays")
        assert len(here.runtime.sessions) == 2, "the other one has taken the new address"
        await first.close()
        await eventually(lambda: [str(session) for session in here.runtime.sessions] == [two])
        del names["head"]  # its server has forgotten it
        session = here.runtime.sessions[0]
        assert session.link is not None
        session.link.abort()
        await eventually(lambda: not session.up)
        await eventually(lambda: up(here) == [two])


async def test_a_name_is_asked_for_again_when_its_session_is_lost(
    names: dict[str, tuple[str, ...]],
) -> None:
    names["head"] = ("127.0.0.1",)
    port = free_port()
    async with Peer(f"head:{port}") as here:
        async with at("127.0.0.1", port):
            await ready(here.pub("t"))
            names["head"] = ("127.0.0.2",)
        async with at("127.0.0.2", port):  # it has moved
            await ready(here.pub("u"))
            await eventually(lambda: up(here) == [f"head:{port} (127.0.0.2)"])
            assert len(here.runtime.sessions) == 1


DNS = """
    import asyncio, sys, threading
    from pubsub import CoordinatorUnavailable, Peer, Pub, Sub
    from pubsub.links import resolving
    resolving.ask = lambda host: threading.Event().wait(600)
"""


@pytest.mark.parametrize("form", ["blocking", "async", "default"])
def test_g9_a_name_server_that_does_not_answer_holds_up_no_end(form: str) -> None:
    code = {
        "blocking": """
            try:
                Peer("head:7700", connect_timeout=0.5).pub("t")
            except CoordinatorUnavailable as error:
                print(error)
        """,
        "async": """
            async def main():
                try:
                    await Peer("head:7700", connect_timeout=0.5).pub("t")
                except CoordinatorUnavailable as error:
                    print(error)
            asyncio.run(main())
        """,
        "default": """
            async def main():
                Pub("t").put(1)
            asyncio.run(main())
            print("the name server does not answer")
        """,
    }[form]
    code = textwrap.dedent(DNS) + textwrap.dedent(code)
    out = run_python(code, PUBSUB_COORDINATOR="head:7700")  # within LONG, and 600 s are longer
    assert "the name server does not answer" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("form", ["blocking", "async"])
def test_g9_a_name_to_listen_on_that_is_not_answered_holds_up_no_end(form: str) -> None:
    code = """
        import asyncio, socket, sys, threading
        from pubsub import Peer

        real = socket.getaddrinfo

        def silent(host, *args, **more):
            if host == "this-machine" and "flags" not in more:
                threading.Event().wait(600)
            return real(host, *args, **more)

        socket.getaddrinfo = silent

        def blocking():
            Peer(sys.argv[1], host="this-machine").pub("t")

        async def main():
            await Peer(sys.argv[1], host="this-machine").pub("t")

        try:
            blocking() if sys.argv[2] == "blocking" else asyncio.run(main())
        except OSError as error:
            print(error)
    """
    with coordinator_in_thread() as coordinator:
        out = run_python(code, coordinator.address, form)  # within LONG, and 600 s are longer
    assert "cannot listen on this-machine:0: the name server does not answer" in out
    assert "Traceback" not in out


# --- IPv6 ------------------------------------------------------------------------------------


ZONE = """
    import asyncio, sys
    from pubsub import Peer
    from pubsub.coordinator.server import Coordinator
    from pubsub.links import unix

    unix.available = lambda: False

    async def main():
        coordinator = Coordinator(asyncio.get_running_loop(), settle=0)
        port = (await coordinator.start("fe80::77%a-0.5", 0)).port
        where = f"[fe80::77%a-0.5]:{port}"
        async with Peer(where) as here, Peer(where) as there:
            sub, pub = await there.sub("t"), await here.pub("t")
            pub.put("it came")
            print(await sub.get(timeout=20), here.address.rpartition(":")[0])
            for remote in there.runtime.publishers.remotes.values():
                print(remote.address.host)
        await coordinator.close()

    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    asyncio.run(main())
"""


@contextmanager
def host_with_zone() -> Iterator[str]:
    """A network namespace with a network `a-0.5`, in which this host is fe80::77."""
    name = f"pbways{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        other = f"{name}x"
        ip("netns", "add", other)
        try:
            ip(
                "link",
                "add",
                "a-0.5",
                "netns",
                name,
                "type",
                "veth",
                "peer",
                "name",
                "b",
                "netns",
                other,
            )
            ip("-n", name, "addr", "add", "fe80::77/64", "dev", "a-0.5", "nodad")
            ip("-n", name, "link", "set", "dev", "lo", "up")
            ip("-n", name, "link", "set", "dev", "a-0.5", "up")
            ip("-n", other, "link", "set", "dev", "b", "up")
            yield name
        finally:
            ip("netns", "del", other)
    finally:
        ip("netns", "del", name)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="makes a network namespace, which takes root and iproute2",
)
def test_an_ipv6_address_with_a_zone_works_as_any_other() -> None:
    with host_with_zone() as host:
        done = subprocess.run(
            ["ip", "netns", "exec", host, sys.executable, "-c", textwrap.dedent(ZONE), LOOP],
            capture_output=True,
            text=True,
            timeout=2 * LONG,
            env={**os.environ, "PUBSUB_INSECURE": "1"},  # it is no loopback
        )
    assert done.stdout == "it came [fe80::77]\nfe80::77%a-0.5\n", done.stderr


# --- trouble of one's own -------------------------------------------------------------------


async def test_who_cannot_listen_is_told_so_at_once_and_by_every_call(
    warnings: Warnings,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for settings, number, text in (
            ({"port": port}, errno.EADDRINUSE, f"cannot listen on 127.0.0.1:{port}: it is in use"),
            ({"host": "192.0.2.77"}, errno.EADDRNOTAVAIL, "cannot listen on 192.0.2.77:0: Cannot"),
            ({"host": "a..b"}, errno.EINVAL, r"cannot listen on a\.\.b:0: "),
        ):
            async with (
                coordinator_in_loop() as address,
                Peer(address, connect_timeout=10 * LONG, **settings) as peer,
            ):
                for wait in (peer.pub("t").__aenter__, peer.sub("u").get, peer.pub("t").__aenter__):
                    with pytest.raises(OSError, match=text) as raised:
                        await asyncio.wait_for(wait(), LONG)
                    assert raised.value.errno == number
                    assert not isinstance(raised.value, ConnectionError)
    assert len(warnings()) == 3
    assert all(text.startswith("cannot listen on ") for text in warnings())


async def test_a_process_without_descriptors_does_not_say_that_there_is_no_coordinator(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = True

    async def no_socket(link: Any, way: Way, timeout: float, guard: Guard) -> Authenticator:
        if spent:
            raise OSError(errno.EMFILE, "Too many open files")
        return await dial(link, way, timeout, guard)

    monkeypatch.setattr("pubsub.links.keeping.dial", no_socket)
    text = "cannot open a connection: Too many open files"
    async with coordinator_in_loop() as address, Peer(address, connect_timeout=0.1) as peer:
        sub = peer.sub("t")
        with pytest.raises(OSError, match=text) as raised:
            await asyncio.wait_for(sub._ready.wait(), LONG)
        assert not isinstance(raised.value, ConnectionError)
        spent = False
        await eventually(lambda: sub._ready.done)
    assert warnings()[0].startswith(text)
    assert warnings()[1:] == [f"the coordinator at {address} answers now"]


def test_who_cannot_listen_is_told_so_in_blocking_code_too() -> None:
    code = """
        import socket, sys
        from pubsub import Peer
        taken = socket.create_server(("127.0.0.1", 0))
        with Peer(sys.argv[1], port=taken.getsockname()[1]) as peer:
            for make in (peer.pub, peer.sub):
                try:
                    make("t")
                except OSError as error:
                    print(error.strerror)
    """

    async def main() -> str:
        async with coordinator_in_loop() as address:
            return await asyncio.to_thread(run_python, code, address)

    assert asyncio.run(main()).count("it is in use; choose another port") == 3


async def test_a_port_that_becomes_free_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with coordinator_in_loop() as address, Peer(address, port=port) as peer:
            pub = peer.pub("t")
            with pytest.raises(OSError, match="it is in use"):
                await asyncio.wait_for(pub._ready.wait(), LONG)
            taken.close()
            await eventually(lambda: up(peer))
            await ready(pub)
            assert peer.address == f"127.0.0.1:{port}"


# --- coordinators that are busy ---------------------------------------------------------------


BUSY = """
    import sys
    from pubsub import Pub
    import pubsub.config
    pubsub.config.DEFAULT_COORDINATOR = pubsub.config.Address("127.0.0.1", int(sys.argv[1]))
    pub = Pub("t")
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who listens")
async def test_g8_who_waits_for_a_busy_coordinator_says_for_whom_and_waits_on(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP is what C code that holds the interpreter lock looks like from outside."""
    monkeypatch.setattr(readiness, "MUTE_WAITS", 100)
    port = free_port()
    busy = python(BUSY, str(port))
    assert busy.stdout is not None
    try:
        assert await asyncio.to_thread(busy.stdout.readline) == "up\n"
        busy.send_signal(signal.SIGSTOP)
        async with Peer(f"127.0.0.1:{port}", connect_timeout=0.5, handshake_timeout=0.5) as peer:
            pub = peer.pub("u")
            await eventually(warnings)
            assert warnings()[0].startswith(
                f"the coordinator at 127.0.0.1:{port} has accepted the connection and does not "
                f"answer for 0.5 s: it is busy or stopped (pid {busy.pid} "
            )
            await eventually(lambda: peer.runtime.sessions[0]._backoff._attempts >= 2)
            busy.send_signal(signal.SIGCONT)
            await ready(pub)
            assert warnings()[1:] == [f"the coordinator at 127.0.0.1:{port} answers now"]
            busy.send_signal(signal.SIGSTOP)
        monkeypatch.undo()
        async with Peer(f"127.0.0.1:{port}", connect_timeout=0.1, handshake_timeout=0.3) as peer:
            with pytest.raises(CoordinatorUnavailable, match=rf"busy or stopped \(pid {busy.pid} "):
                await ready(peer.pub("v"))
    finally:
        busy.send_signal(signal.SIGCONT)
        busy.communicate()


async def test_g8_a_lone_coordinator_that_is_connected_and_mute_is_waited_for_and_named(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = server._Connection._act
    mute = True
    held: list[Any] = []

    def answer(self: server._Connection, request: Any) -> None:
        if mute:
            held.append((self, request))
        else:
            act(self, request)

    monkeypatch.setattr(server._Connection, "_act", answer)
    async with coordinator_in_loop() as address, Peer(address, connect_timeout=0.1) as peer:
        sub = peer.sub("t")
        for wait in (sub._ready.wait, sub.get):
            with pytest.raises(CoordinatorUnavailable, match="it is connected, and has not answer"):
                await asyncio.wait_for(wait(), LONG)
        (said,) = warnings()
        assert "does not answer for 0.1 s: it is busy or stopped" in said
        mute = False
        for connection, request in held:
            act(connection, request)
        await eventually(lambda: sub._ready.done)
        async with peer.pub("t") as pub:
            pub.put(1)
            assert await sub.get(timeout=LONG) == 1
        assert warnings()[1:] == [f"the coordinator at {address} answers now"]
