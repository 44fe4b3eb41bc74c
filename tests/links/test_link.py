"""A link's own part in what it reads, and its states, on a transport that only takes note."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pubsub.config import Settings
from pubsub.errors import ProtocolError
from pubsub.links import link as link_module
from pubsub.links.link import READ_TURN, TRANSITIONS, Link, Lost, State
from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import Dialler, Identity, Refused
from pubsub.wire.messages import Goodbye, Ping, encode
from tests.links.ends import Nobody, Transport, hear, lose
from tests.wire.said import welcome


@pytest.fixture
async def link(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(FrameReader, "received", lambda self, size: ())
    link = Link(asyncio.get_running_loop(), None, Nobody(), Settings(), bytearray(100))
    link.connection_made(Transport())
    yield link
    link.connection_lost(None)


async def test_who_reads_much_lets_the_loop_run_and_reads_on(link: Link) -> None:
    for _ in range(3):
        link.buffer_updated(READ_TURN // 2)
        assert link.transport.reading
        link.buffer_updated(READ_TURN // 2)
        assert not link.transport.reading
        await asyncio.sleep(0)
        assert link.transport.reading


async def test_reading_on_is_not_in_the_way_of_those_who_stop_it(link: Link) -> None:
    link.buffer_updated(READ_TURN)
    link.transport.reading = True  # a transport takes two pauses for one
    link.listen(False)
    await asyncio.sleep(0)
    assert not link.transport.reading
    link.listen(True)
    assert link.transport.reading
    link.buffer_updated(READ_TURN)
    link.transport.closing = True
    await asyncio.sleep(0)
    assert not link.transport.reading
    link.buffer_updated(READ_TURN)


async def test_who_is_not_listened_to_is_not_taken_for_dead(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator with much to do does not read on: that is no fault of the other end."""
    monkeypatch.setattr(link, "_send", lambda message: None)
    link.listen(False)
    for _ in range(3 * link._heartbeat.TICKS):
        link._tick()
    assert not link.closing
    link.listen(True)
    for _ in range(2 * link._heartbeat.TICKS):
        link._tick()
    assert link.closing


def dialled(endpoint: Nobody) -> Link:
    """One that has said HELLO."""
    link = Link(asyncio.get_running_loop(), None, endpoint, Settings(), bytearray(1_000))
    link.connection_made(Transport())
    link.begin(Dialler(Identity("peer", "me"), "peer"))
    return link


def opened(endpoint: Nobody) -> Link:
    """One whose handshake is done."""
    link = dialled(endpoint)
    hear(link, encode(welcome("peer", "them")))
    return link


def fall_silent(link: Link) -> None:
    while not link.closing:
        link._tick()


ENDS: dict[str, tuple[Callable[[Link], object], type[Exception] | None, bool]] = {
    "goodbye": (lambda link: link.goodbye(), None, False),
    "its goodbye": (lambda link: hear(link, encode(Goodbye("closing", "bye"))), None, False),
    "its trouble": (lambda link: hear(link, encode(Goodbye("limit", ""))), ProtocolError, False),
    "what it cannot say": (lambda link: hear(link, b"GET / HTTP/1.1"), ProtocolError, True),
    "what it may not say": (lambda link: link.fail(ProtocolError("no")), ProtocolError, True),
    "trouble of our own": (
        lambda link: link.fail(ProtocolError("", code="internal")),
        ProtocolError,
        False,
    ),
    "silence": (fall_silent, Lost, False),
    "a reset": (lambda link: lose(link, OSError("reset")), OSError, False),
    "an end of file": (lose, Lost, False),
}


@pytest.mark.parametrize("how", ENDS)
async def test_whatever_ends_a_link_tells_its_endpoint_once(how: str) -> None:
    end, why, cut = ENDS[how]
    nobody = Nobody()
    link = opened(nobody)
    assert link.state.name == "OPEN"
    end(link)
    assert [type(error) for error in nobody.ends] == [why or type(None)]
    assert link.closing
    assert link.cut is cut
    written = link.transport.written
    for other, _, _ in ENDS.values():
        if link.state.name == "LEAVING":
            other(link)
    lose(link)
    assert link.state.name == "CLOSED"
    link.fail(ProtocolError("too late"))
    link.goodbye()
    link.send(Ping(1))
    link.write(b"x")
    link.flush()
    assert len(nobody.ends) == 1
    assert link.transport.written == written, "words behind the end"
    timer: Any = link._timer
    assert timer.cancelled()


async def test_a_link_whose_transport_waits_in_vain_to_close_is_cut_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other end has said its end of file, and takes nothing of what is under way."""
    monkeypatch.setattr(link_module, "GOODBYE_GRACE", 0.0)
    link = opened(Nobody())
    cut = asyncio.Event()
    monkeypatch.setattr(link.transport, "abort", cut.set)
    link.transport.close()
    link.goodbye()
    await asyncio.wait_for(cut.wait(), 10)
    lose(link)


async def test_a_refusal_ends_a_link_that_was_never_open() -> None:
    nobody = Nobody()
    link = dialled(nobody)
    hear(link, encode(Goodbye("identity", "this is somebody else")))
    (error,) = nobody.ends
    assert isinstance(error, Refused)
    assert link.state.name == "LEAVING"
    lose(link)
    assert nobody.ends == [error]


async def test_where_nobody_is_known_yet_a_goodbye_is_only_the_end() -> None:
    nobody = Nobody()
    link = dialled(nobody)
    written = link.transport.written
    link.goodbye()
    assert link.transport.closing
    assert link.transport.written == written
    lose(link)
    assert [type(error) for error in nobody.ends] == [Lost]


class Shutting(Nobody):
    """Has more to say than the socket takes; then the other end is gone."""

    def __init__(self, there: socket.socket) -> None:
        super().__init__()
        self.there = there
        self.said = 0

    def pump(self, budget: int) -> Any:
        self.said += 1
        if self.said > 1:
            self.there.close()
        return (bytes(16_000_000),) if self.said == 1 else (b"x",) if self.said == 2 else ()


async def test_a_link_ends_once_where_a_write_fails_that_its_transport_has_asked_for() -> None:
    """Plain asyncio would else end the connection in that very call and again after it, with a
    traceback for the log."""
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    core = Shutting(there)
    link = Link(loop, None, core, Settings(), bytearray(1_000))
    await loop.create_connection(lambda: link, sock=here)
    link.begin(Dialler(Identity("peer", "me"), "peer"))
    hear(link, encode(welcome("peer", "them")))
    assert link.paused
    while there.fileno() >= 0:
        with contextlib.suppress(BlockingIOError):
            there.recv(1 << 20)
        await asyncio.sleep(0)
    await asyncio.wait_for(link.gone(), 10)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (errors, len(core.ends)) == ([], 1)


async def test_nobody_is_told_of_a_connection_that_was_disowned() -> None:
    nobody = Nobody()
    link = Link(asyncio.get_running_loop(), None, nobody, Settings(), bytearray(100))
    link.disown()
    transport = Transport()
    link.connection_made(transport)
    assert transport.closing
    link.connection_lost(None)
    await link.gone()
    assert nobody.ends == []


async def test_each_change_of_state_is_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pubsub.link"):
        link = opened(Nobody())
        link.goodbye()
        lose(link)
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert said == ["handshake", "open", "leaving", "closed"]


def test_the_picture_of_the_states_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/architecture.md"
    (picture,) = re.findall(r"```mermaid\nstateDiagram(.*?)```", page.read_text("utf-8"), re.S)
    drawn = re.findall(r"^ *(\S+) --> (\w+|\[\*\])", picture, re.M)
    table = [(one.name, other.name) for one, after in TRANSITIONS.items() for other in after]
    last = [one.name for one, after in TRANSITIONS.items() if not after]
    first = next(iter(State)).name
    assert sorted(drawn) == sorted([("[*]", first), *table, *((one, "[*]") for one in last)])


async def test_what_is_told_of_a_link_for_how_long_it_could_not_write(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    with monkeypatch.context() as frozen:
        frozen.setattr(link, "loop", Frozen(now))
        assert link.pauses() == (0.0, 0.0)
        link.pause_writing()
        now[0] += 3
        assert link.pauses() == (3.0, 3.0)
        link.resume_writing()
        now[0] += 5
        link.pause_writing()
        now[0] += 1
        assert link.pauses() == (1.0, 4.0)
        link.resume_writing()


class Frozen:
    """A loop whose time is given."""

    def __init__(self, now: list[float]) -> None:
        self._now = now

    def time(self) -> float:
        return self._now[0]

    def call_soon(self, call: Callable[..., Any], *args: Any) -> None: ...
