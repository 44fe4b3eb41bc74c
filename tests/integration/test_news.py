"""What people are told: warnings that name whom and what they are about, and mistakes in calls."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pubsub import Closed, Peer, Pub, Sub, WrongContext
from pubsub.coordinator import server
from pubsub.links.keeping import dial, explain
from tests.integration.support import (
    LONG,
    break_links,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
    free_port,
)

pytestmark = pytest.mark.loop


@pytest.fixture
async def coordinator() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings so far."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]


Warnings = Callable[[], list[str]]


# --- a Pub's end ------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["the Pub's", "the Peer's"])
async def test_g9_an_end_that_gave_up_says_who_lacks_how_much(
    coordinator: str, warnings: Warnings, whose: str
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        pub.put_many([b"x" * 70_000] * 10)  # each a batch of its own
        await (pub if whose == "the Pub's" else here).close(linger=0.3)
        (said,) = warnings()
        assert said == (
            "closed after 0.3 s (linger=0.3): 9 messages of Pub('t') are not known to have been "
            f"received by {there.address}#1 (attached, 9 behind)"
        )
        await eventually(lambda: sub.lost == 9, "the number is the exact one")
        sub.close()


def test_g9_an_end_that_gave_up_says_it_in_blocking_code_too(warnings: Warnings) -> None:
    with coordinator_in_thread() as server:
        address = server.address
        with Peer(address) as here, Peer(address) as there:
            sub = there.sub("t", window=1_000)
            pub = here.pub("t")
            pub.wait_for_subscribers(1, timeout=LONG)
            pub.put_many([b"x" * 70_000] * 10)  # each a batch of its own
            pub.close(linger=0.3)
            (said,) = warnings()
            assert f"{there.address}#1 (attached, " in said
            sub.close()


@pytest.mark.parametrize("whose", ["the Pub's", "the Peer's"])
async def test_g9_a_close_that_takes_long_says_once_for_whom_it_waits(
    coordinator: str, warnings: Warnings, whose: str
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        pub.put_many([b"x" * 70_000] * 10)
        closing = asyncio.ensure_future((pub if whose == "the Pub's" else here).close(linger=LONG))
        await eventually(warnings)
        (said,) = warnings()
        assert re.sub("up to 2. s", "up to 29 s", said) == (
            "closing waits up to 29 s more (linger=30): 9 messages of Pub('t') are not known to "
            f"have been received by {there.address}#1 (attached, 9 behind)"
        )
        for _ in range(10):
            await sub.get(timeout=LONG)
        await closing
        assert (len(warnings()), sub.lost) == (1, 0), "nothing was left"


@pytest.mark.usefixtures("only_advertised")
async def test_g3_who_was_expected_and_did_not_come_is_said_to_lack_what_was_put(
    coordinator: str, warnings: Warnings
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    async with (
        Peer(coordinator, advertise=nowhere, join_timeout=0.3) as here,
        Peer(coordinator) as there,
    ):
        subs = await there.sub("t"), await there.sub("t", observer=True)
        pub = await here.pub("t")
        pub.put_many(range(3))
        await pub.close(linger=LONG)  # it ends with the time in which the Sub was expected
        said = [text for text in warnings() if "join_timeout" in text]
        assert said == [
            "Pub('t'): a subscriber that was expected has not come within 0.3 s (join_timeout): "
            f"peer {there.runtime.peer_id}#1 lacks 3 messages; others are told to dial {nowhere}"
        ], "nobody waits for observers"
        assert [sub.lost for sub in subs] == [0, 0]


async def test_g3_who_was_expected_and_comes_late_counts_what_was_put_meanwhile(
    coordinator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was stopped, say."""
    goes_on = asyncio.Event()

    async def slow(*args: Any) -> Any:
        await goes_on.wait()
        return await dial(*args)

    async with (
        Peer(coordinator, join_timeout=0.3) as here,
        Peer(coordinator, join_timeout=0.3) as there,
    ):
        sub = await there.sub("t")
        monkeypatch.setattr("pubsub.links.keeping.dial", slow)
        pub = await here.pub("t")
        pub.put_many(range(3))
        publication = pub._publication
        await eventually(lambda: publication._late and not len(publication.log))
        goes_on.set()
        await pub.wait_for_subscribers(1, timeout=LONG)
        pub.put("after")
        events = sub.messages()
        gap, message = await events.__anext__(), await events.__anext__()
        assert (gap.missed, gap.reason, message.value, message.seq) == (3, "overflow", "after", 3)
        assert sub.lost == 3


async def test_g9_an_end_names_the_first_pubs_and_counts_all(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("*", window=1)
        for n in range(8):
            pub = await here.pub(f"t{n}")
            await pub.wait_for_subscribers(1, timeout=LONG)
            pub.put_many([b"x" * 70_000] * (n + 2))  # one of each goes into the window
        await here.close(linger=0.3)
        (said,) = warnings()
        assert said.startswith(
            "closed after 0.3 s (linger=0.3): 1 message of Pub('t0') is not known to have been "
            f"received by {there.address}#1 (attached, 1 behind); 2 messages of Pub('t1') are not "
        )
        assert said.endswith("behind); nor 21 messages of 3 more Pubs")
        sub.close()


async def test_g9_a_close_waits_for_an_observer_that_goes_on_taking(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000, observer=True)
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        for i in range(30):
            pub.put([i, b"x" * 70_000])
        closing = asyncio.ensure_future(here.close(linger=LONG))
        for i in range(30):
            assert (await sub.get(timeout=LONG))[0] == i
            await asyncio.sleep(0.05)  # in all, more than the second for which it may stand still
        await closing
        assert sub.lost == 0


async def test_an_end_that_waits_for_nobody_warns_of_nothing(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=10_000)
        for linger in (0, LONG):
            pub = await here.pub("t")
            await pub.wait_for_subscribers(1, timeout=LONG)
            pub.put(b"x" * 2_000)
            await pub.close(linger=linger)
        assert warnings() == []
        sub.close()


# --- puts that nobody awaits ------------------------------------------------------------


async def test_g9_a_close_waits_for_puts_that_wait_for_room_and_that_nobody_awaits(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=5_000)
        for closes in (lambda pub: pub.close(LONG), lambda pub: here.close(LONG)):
            pub = await here.pub("t", overflow="block", buffer=10_000)
            await pub.wait_for_subscribers(1, timeout=LONG)
            for i in range(1_000):
                pub.put([i, b"x" * 100])
            closing = asyncio.ensure_future(closes(pub))
            assert [(await sub.get(LONG))[0] for _ in range(1_000)] == list(range(1_000))
            await closing
        assert sub.lost == 0
        assert warnings() == []


@pytest.mark.filterwarnings("error")
async def test_a_close_says_once_how_many_puts_it_gave_up(
    coordinator: str, warnings: Warnings, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", overflow="block", buffer=1_000)
        await pub.wait_for_subscribers(1, timeout=LONG)
        puts = [pub.put(b"x" * 900) for _ in range(50)]
        awaited = asyncio.ensure_future(wait_for(puts[-1]))
        await asyncio.sleep(0)
        await pub.close(linger=0.1)
        assert isinstance(await awaited, Closed)
        given_up = sum(put.done() and put.exception() is not None for put in puts[1:])
        assert 40 < given_up < 50
        del puts, awaited
        (said,) = [text for text in warnings() if "were never put" in text]
        assert said.startswith(f"{given_up - 1} messages of Pub('t', overflow='block') were never")
        assert "never retrieved" not in caplog.text
        sub.close()


async def wait_for(put: Any) -> BaseException | None:
    try:
        await put
    except Closed as error:
        return error
    return None


async def test_g6_puts_that_nobody_awaits_have_an_end(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t", overflow="block", buffer=10_000)
        await pub.wait_for_subscribers(1, timeout=LONG)
        put = 0
        with pytest.raises(WrongContext, match=r"nobody waits for them: `await pub\.put\(...\)`"):
            for _ in range(10_000):
                pub.put([put, b"x" * 1_000])
                put += 1
        assert 800 < put < 1_100
        assert [(await sub.get(LONG))[0] for _ in range(put)] == list(range(put))
        await pub.put("and on it goes")
        assert await sub.get(LONG) == "and on it goes"


async def test_puts_of_many_tasks_wait_for_room_as_many_as_they_are(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t", overflow="block", buffer=10_000)
        await pub.wait_for_subscribers(1, timeout=LONG)

        async def put(i: int) -> None:
            await pub.put([i, b"x" * 10_000])

        tasks = [asyncio.ensure_future(put(i)) for i in range(300)]  # 3 MB in all
        assert sorted([(await sub.get(LONG))[0] for _ in tasks]) == list(range(300))
        await asyncio.gather(*tasks)


# --- coordinators and publishers that are away ------------------------------------------


async def test_who_was_told_of_a_missing_coordinator_is_told_when_it_answers(
    warnings: Warnings,
) -> None:
    port = free_port()
    async with Peer(f"127.0.0.1:{port}") as peer:
        sub = peer.sub("t")
        await eventually(warnings)
        async with coordinator_in_loop(port):
            await sub
            assert warnings() == [
                f"no coordinator at 127.0.0.1:{port}: nothing listens there (connection refused); "
                "trying on",
                f"the coordinator at 127.0.0.1:{port} answers now",
            ]


@pytest.mark.usefixtures("no_detour")
async def test_who_was_told_of_a_missing_publisher_is_told_when_it_is_reached(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        (server,) = here.runtime.doors.servers.values()
        host, port = server.sockets[0].getsockname()
        server.close()
        break_links(here)
        await eventually(warnings)
        server = await here.runtime.loop.create_server(
            here.runtime.doors.doorman.accept, host, port
        )
        pub.put(1)
        assert await sub.get(LONG) == 1
        first, second = warnings()
        assert first.startswith(f"cannot reach the publisher at {host}:{port}: nothing listens")
        assert second == f"the publisher at {host}:{port} is reached now"
        server.close()


@pytest.mark.usefixtures("no_detour")
async def test_who_was_told_of_a_missing_publisher_is_told_when_it_is_given_up(
    coordinator: str, warnings: Warnings
) -> None:
    async with Peer(coordinator, resume_timeout=0.5) as there:
        here = Peer(coordinator)
        sub, pub = await there.sub("t"), await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        (server,) = here.runtime.doors.servers.values()
        host, port = server.sockets[0].getsockname()
        server.close()
        break_links(here)
        await eventually(warnings)
        await here.close(linger=0)  # the coordinator hears of it
        await eventually(lambda: len(warnings()) == 2)
        assert warnings()[1] == f"the publisher at {host}:{port} is given up: it is gone"
        sub.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "x"), "nothing listens there (connection refused)"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "its name cannot be resolved (Name or service not known)",
        ),
        (asyncio.TimeoutError(), "no answer in time"),
        (OSError("several things"), "several things"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_a_failed_connection_is_explained_without_numbers(error: Exception, text: str) -> None:
    assert explain(error) == text


# --- mistakes in calls ------------------------------------------------------------------


def test_what_is_no_time_no_number_or_no_peer_is_named() -> None:
    with coordinator_in_thread() as server, Peer(server.address) as peer:
        pub, sub = peer.pub("t"), peer.sub("t")
        mistakes: list[tuple[Callable[[], Any], str]] = [
            (lambda: sub.get(timeout="5s"), "timeout='5s' is not a number of seconds"),
            (lambda: sub.get_many(3, "5s"), "timeout='5s' is not a number of seconds"),
            (lambda: pub.flush("5s"), "timeout='5s' is not a number of seconds"),
            (lambda: pub.close("5s"), "linger='5s' is not a number of seconds"),
            (lambda: peer.close("5s"), "linger='5s' is not a number of seconds"),  # type: ignore[arg-type]
            (lambda: pub.wait_for_subscribers("2"), "n='2' is not a whole number"),
            (lambda: pub.wait_for_subscribers(1, "2"), "timeout='2' is not a number of seconds"),
            (lambda: Pub("t", peer="head:7700"), "peer='head:7700' is not a Peer"),  # type: ignore[arg-type]
            (lambda: Sub("t", peer="head:7700"), "peer='head:7700' is not a Peer"),  # type: ignore[arg-type]
        ]
        for call, text in mistakes:
            with pytest.raises(TypeError) as raised:
                call()
            assert text in str(raised.value)
        pub.put(1)
        assert sub.get(timeout=LONG) == 1, "nothing was harmed"


async def test_what_is_no_time_is_named_in_an_event_loop(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        pub, sub = await peer.pub("t"), await peer.sub("t")
        mistakes: list[Callable[[], Any]] = [
            lambda: sub.get("5s"),
            lambda: sub.get_many(3, "5s"),
            lambda: pub.flush("5s"),
            lambda: pub.wait_for_subscribers(1, "5s"),
            lambda: pub.close("5s"),
            lambda: peer.close("5s"),  # type: ignore[arg-type]
        ]
        for call in mistakes:
            with pytest.raises(TypeError, match="='5s' is not a number of seconds"):
                await call()
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1


def test_neither_pub_nor_sub_nor_peer_is_sent_to_another_process() -> None:
    with coordinator_in_thread() as server, Peer(server.address) as peer:
        for thing, name in [(peer.pub("t"), "Pub"), (peer.sub("t"), "Sub"), (peer, "Peer")]:
            for send in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"a {name} belongs to its process"):
                    send(thing)


def test_a_pub_of_a_loop_that_has_ended_says_so() -> None:
    with coordinator_in_thread() as server:

        async def make() -> tuple[Pub, Sub, Peer]:
            peer = Peer(server.address)
            return await peer.pub("t"), await peer.sub("t"), peer

        async def use(call: Callable[[], Any]) -> None:
            with pytest.raises(Closed, match="the event loop in which this was made has ended"):
                await call()

        pub, sub, peer = asyncio.run(make())
        for call in (lambda: pub.put(1), lambda: sub.get(), lambda: peer.pub("t")):
            asyncio.run(use(call))


# --- handlers that raise ----------------------------------------------------------------


class Broken(logging.Handler):
    """A handler whose server is away, say."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log server is away")


async def test_g7_a_log_handler_that_raises_stops_no_session(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pubsub"), "handlers", [Broken()])
    port = free_port()
    async with Peer(f"127.0.0.1:{port}") as peer:
        sub = peer.sub("t")
        await eventually(lambda: "the log server is away" in capsys.readouterr().err)
        async with coordinator_in_loop(port):
            await asyncio.wait_for(sub.__aenter__(), LONG)


async def test_a_coordinator_that_does_not_answer_holds_up_nobody_beside_one_that_does(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinator_in_loop() as good, coordinator_in_loop() as mute:
        act = server._Connection._act

        def answer(self: server._Connection, request: Any) -> None:
            if str(self.coordinator.servers[0].sockets[0].getsockname()[1]) != mute.split(":")[1]:
                act(self, request)

        monkeypatch.setattr(server._Connection, "_act", answer)
        async with Peer(f"{good},{mute}", connect_timeout=0.5) as peer:
            sub, pub = peer.sub("t"), peer.pub("t")
            await asyncio.wait_for(sub.__aenter__(), LONG)
            await asyncio.wait_for(pub.__aenter__(), LONG)
            pub.put(1)
            await pub.flush(LONG)
            assert await sub.get(LONG) == 1
        text = f"the coordinator at {mute} has not answered for 0.5 s; going on without it"
        assert warnings() == [text] * 2
