"""Resolving names: in threads of ours, with the last good answer kept."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pubsub.links import resolving
from pubsub.links.resolving import host_of, numeric, resolve, resolve_blocking
from tests.integration.support import LONG

pytestmark = pytest.mark.loop

Answer = Callable[[], tuple[str, ...]]


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "_known", {})
    monkeypatch.setattr(resolving, "_asking", {})


class Names:
    """In place of the system's resolver."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Answer = lambda: ("10.0.0.1", "10.0.0.2")
        self.go = threading.Event()

    def ask(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        return self.answer()

    def hang(self) -> tuple[str, ...]:
        self.go.wait(LONG)
        return ("10.0.0.9",)

    def fail(self) -> tuple[str, ...]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(resolving, "ask", made.ask)
    yield made
    made.go.set()
    for thread in threading.enumerate():  # its answer would come into the next test
        if thread.name.startswith("pubsub resolve"):
            thread.join(LONG)


async def of(host: str, timeout: float = LONG) -> tuple[str, ...]:
    return await resolve(asyncio.get_running_loop(), host, timeout)


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("fe80::1%lo", "fe80::1%lo"),
        ("fe80::1%1", "fe80::1%lo"),
        ("localhost", ""),
        ("", ""),
        ("a..b", ""),
        ("\0", ""),
    ],
)
def test_a_numeric_address_is_told_from_a_name(host: str, found: str) -> None:
    assert numeric(host) == found


async def test_a_numeric_address_needs_no_thread(names: Names) -> None:
    assert await of("127.0.0.1") == ("127.0.0.1",)
    assert await of("fe80::1%lo") == ("fe80::1%lo",)
    assert resolve_blocking("::1", 0) == ("::1",)
    assert names.asked == []


async def test_a_name_means_all_its_addresses_and_is_asked_for_in_a_daemon_thread(
    names: Names,
) -> None:
    where = []

    def answer() -> tuple[str, ...]:
        where.append(threading.current_thread())
        return ("10.0.0.1", "10.0.0.2")

    names.answer = answer
    assert await of("head") == ("10.0.0.1", "10.0.0.2")
    assert where[0].daemon
    assert where[0] is not threading.main_thread()
    assert resolve_blocking("head", LONG) == ("10.0.0.1", "10.0.0.2")


async def test_those_who_ask_at_once_share_one_question(names: Names) -> None:
    names.answer = names.hang
    asking = [asyncio.ensure_future(of("head")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    names.go.set()
    assert await asyncio.gather(*asking[1:]) == [("10.0.0.9",)] * 4
    assert names.asked == ["head"]


async def test_a_name_server_that_does_not_answer_is_named_in_time(names: Names) -> None:
    names.answer = names.hang
    with pytest.raises(socket.gaierror, match="the name server does not answer"):
        await of("head", 0.01)
    names.go.set()
    assert await of("head") == ("10.0.0.9",), "the answer that came late is not lost"


@pytest.mark.parametrize("trouble", ["fails", "hangs", "no thread starts"])
async def test_where_a_name_cannot_be_asked_for_its_last_answer_counts(
    names: Names, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    await of("head")

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    if trouble == "no thread starts":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    names.answer = names.fail if trouble == "fails" else names.hang
    assert await of("head", 0.01) == ("10.0.0.1", "10.0.0.2")
    with pytest.raises(socket.gaierror):
        await of("tail", 0.01)


async def test_so_many_names_are_asked_for_at_once_and_no_more(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "AT_ONCE", 3)
    names.answer = names.hang
    asking = [asyncio.ensure_future(of(f"host{n}")) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(socket.gaierror, match="too many names"):
        await of("another")
    names.go.set()
    await asyncio.gather(*asking)
    assert await of("another") == ("10.0.0.9",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_parent_asks_for_does_not_count_in_a_forked_child(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "AT_ONCE", 3)
    names.answer = names.hang
    for n in range(3):
        with pytest.raises(socket.gaierror, match="does not answer"):
            resolve_blocking(f"host{n}", 0.01)
    pid = os.fork()
    if not pid:
        names.answer = lambda: ("10.0.0.1",)
        try:
            os._exit(resolve_blocking("another", LONG) != ("10.0.0.1",))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_no_host_name_or_no_interface_says_so() -> None:
    with pytest.raises(socket.gaierror, match="it is no host name"):
        resolving.ask("a..b")
    with pytest.raises(socket.gaierror, match=r"no network interface 'eth0\.99' here"):
        resolving.ask("fe80::1%eth0.99")


def test_a_sockets_name_keeps_its_zone() -> None:
    assert host_of(None) == ""
    assert host_of(("10.0.0.1", 80)) == "10.0.0.1"
    assert host_of(("::1", 80, 0, 0)) == "::1"
    assert host_of(("fe80::1", 80, 0, 1)) == "fe80::1%lo"
    assert host_of(("fe80::1", 80, 0, 99_999)) == "fe80::1%99999"
