"""What the tests with real sockets share: coordinators to start, stop and restart, and waiting."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from pubsub import Peer
from pubsub.config import Address, Settings, parse_advertise
from pubsub.coordinator.server import Coordinator
from pubsub.links.doors import Doors
from pubsub.links.listening import stop_accepting
from pubsub.runtime.thread import _cancel_all
from pubsub.trust.credentials import credentials_from
from pubsub.trust.guard import Guard

__all__ = [
    "CoordinatorThread",
    "break_links",
    "coordinator_in_loop",
    "coordinator_in_thread",
    "default_guard",
    "eventually",
    "free_port",
    "python",
    "run_python",
    "with_little_stack",
]

LONG = 30.0
"""Seconds after which something that must happen is taken not to happen."""


def _ports() -> Iterator[int]:
    """Numbers below those that systems give to whoever asks for any port, or connects: nobody gets
    one of these by chance while a test has nothing there. Each worker of a parallel run has its
    own, and begins somewhere among them, so that two runs on one machine hardly ever meet."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = range(10_000 + worker, 32_000, workers)
    start = random.randrange(len(mine))
    return itertools.cycle([*mine[start:], *mine[:start]])


_next_ports = _ports()


def free_port() -> int:
    """A port on which nothing listens now, and that will not be given to anybody else."""
    for port in itertools.islice(_next_ports, 1_000):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:  # whoever has it does so on purpose
                continue
            return port
    raise AssertionError("a thousand ports, and none is free")


def default_guard() -> Guard:
    """That of a process of which nobody says otherwise, as of each `Peer` here: the secret of this
    user; none where everything is open."""
    return credentials_from(Settings(), os.environ).guard()


@asynccontextmanager
async def coordinator_in_loop(
    port: int = 0, *, settle: float = 0.0, **settings: Any
) -> AsyncIterator[str]:
    """A coordinator in the running loop; yields its ``host:port``."""
    coordinator = Coordinator(
        asyncio.get_running_loop(),
        settings=Settings(**settings),
        settle=settle,
        guard=default_guard(),
    )
    address = await coordinator.start("127.0.0.1", port)
    try:
        yield str(address)
    finally:
        await coordinator.close()


class CoordinatorThread:
    """A coordinator on a thread of its own, which can be stopped and come back empty."""

    def __init__(self, settle: float = 0.0, **settings: Any) -> None:
        self.port = free_port()
        self.settle = settle
        self.settings = Settings(**settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, empty, on the same port."""
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()

        async def begin() -> Coordinator:
            coordinator = Coordinator(
                loop, settings=self.settings, settle=self.settle, guard=default_guard()
            )
            await coordinator.start("127.0.0.1", self.port)
            return coordinator

        self.coordinator = asyncio.run_coroutine_threadsafe(begin(), loop).result(LONG)

    def stop(self, *, rudely: bool = False) -> None:
        """Stop; rudely: as if the process was killed, without a word."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None

        async def end() -> None:
            if rudely:
                await stop_accepting(loop, self.coordinator.servers)
                for link in list(self.coordinator._links):
                    link.abort()
            await self.coordinator.close()
            await _cancel_all()  # who was about to be asked whether it lives has a socket still

        asyncio.run_coroutine_threadsafe(end(), loop).result(LONG)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def coordinator_in_thread(settle: float = 0.0, **settings: Any) -> Iterator[CoordinatorThread]:
    """A `CoordinatorThread`, stopped at the end."""
    coordinator = CoordinatorThread(settle, **settings)
    try:
        yield coordinator
    finally:
        coordinator.stop()


async def eventually(condition: Callable[[], Any], what: str = "") -> None:
    """Wait until something that must happen has happened."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONG
    while not condition():
        assert loop.time() < deadline, what or "it did not happen"
        await asyncio.sleep(0.005)


def break_links(peer: Peer) -> int:
    """Cut every link of a peer to other peers, as a reset would; returns how many."""
    runtime = peer.runtime
    links = [s.link for s in runtime.subscribers.served] + [
        r.link for r in runtime.publishers.remotes.values()
    ]
    found = [link for link in links if link is not None]
    for link in found:
        link.abort()
    return len(found)


def with_little_stack(room: int, call: Callable[[], None]) -> None:
    """Call, where the stack has room for about so many calls within each other. (What tests before
    have left is not collected there: its destructors would fail, and this one be blamed for it.)"""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]  # None at the end
    limit, dive = sys.getrecursionlimit(), max(0, 200 - room)

    def go(down: int) -> None:
        if down:
            go(down - 1)
        else:
            call()

    gc.disable()
    sys.setrecursionlimit(depth + 200)
    try:
        go(dive)
    finally:
        sys.setrecursionlimit(limit)
        gc.enable()


def python(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def run_python(code: str, *args: str, **env: str) -> str:
    """Run `code` in a Python process to its end; returns what it printed."""
    process = python(code, *args, **env)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    return out + err


def told_only(doors: Doors, place: Address) -> list[Address]:
    """In place of `Doors.told`: see the fixture `only_advertised`."""
    text = doors._settings.advertise
    return parse_advertise(text, place.port) if text else [place]
