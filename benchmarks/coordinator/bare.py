"""The process with the bare peers: the protocol on sockets, without an event loop in between.

A session of its own costs each attempt to dial so much that one process cannot be ten thousand
peers which lost their coordinator. These here cost a tenth of that, and dial as a `Session` does:
with the same `Backoff`, the same time limits, and everything registered in one write.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import time
from collections import Counter
from typing import Any

from benchmarks.child import Control
from benchmarks.coordinator.plan import Account, Plan
from pubsub._version import __version__
from pubsub.config import Settings
from pubsub.errors import ProtocolError
from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import Dialler, Identity, tcp
from pubsub.wire.liveness import Backoff
from pubsub.wire.messages import Expect, Goodbye, Match, Ping, Pong, Register, Welcome, encode

__all__ = ["bare"]

PATIENCE = 60.0
LOOK = 0.02
"""Seconds between two looks for an order."""
MIB = 1 << 20


class _Peer:
    """One of them."""

    __slots__ = (
        "account",
        "attempt",
        "backoff",
        "end",
        "frames",
        "hello",
        "index",
        "reader",
        "since",
        "sock",
        "state",
    )

    def __init__(self, plan: Plan, index: int, number: int, info: dict[str, Any]) -> None:
        self.index = index
        me = Identity("peer", f"{number:016x}", tcp("127.0.0.1", 1 + number % 65535), info)
        opening = Dialler(me, "coordinator").opening()
        assert opening is not None
        self.hello = encode(opening)
        self.account = Account(plan.of(number))
        self.frames = b"".join(
            encode(Register(e.id, e.role, e.topic, True, False))
            for e in self.account.entries.values()
        )
        self.backoff = Backoff(random.random)
        self.sock: socket.socket | None = None
        self.reader: FrameReader | None = None
        self.state = ""
        """``dialling``, ``greeting``, ``up`` or nothing."""
        self.attempt = 0
        self.since = 0.0
        """When it was dialled; of one that is up: when it was."""
        self.end = ""


class _World:
    """All of them, and what is going on."""

    def __init__(self, control: Control, port: int, plan: Plan, numbers: range) -> None:
        self.control = control
        self.at = ("127.0.0.1", port)
        self.settings = Settings()
        self.scratch = bytearray(64 * 1024)
        self.poll = select.epoll()
        self.by_fd: dict[int, _Peer] = {}
        self.timers: list[tuple[float, int, str, int]] = []
        info = {
            "name": "bare",
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "library": __version__,
        }
        self.peers = [_Peer(plan, *each, info) for each in enumerate(numbers)]
        self.again = True
        """Whether to dial again."""
        self.reset()

    def reset(self) -> None:
        self.whole = 0
        self.came: list[float] = []
        self.answers: Counter[int] = Counter()
        self.failures: Counter[tuple[int, str]] = Counter()
        """By the tenth of a second in which it was dialled, and the reason."""

    # --- one peer -----------------------------------------------------------------------

    def dial(self, peer: _Peer) -> None:
        sock = peer.sock = socket.socket()
        sock.setblocking(False)
        peer.attempt += 1
        peer.state = "dialling"
        peer.since = time.monotonic()
        peer.reader = FrameReader(self.scratch)
        self.by_fd[sock.fileno()] = peer
        try:
            sock.connect(self.at)
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(peer, error.strerror or str(error))
            return
        self.poll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLIN)
        self.after(self.settings.connect_timeout, peer, peer.state)

    def after(self, seconds: float, peer: _Peer, state: str) -> None:
        """Look whether it still is in this state then."""
        due = time.monotonic() + seconds
        heapq.heappush(self.timers, (due, peer.index, state, peer.attempt))

    def fail(self, peer: _Peer, why: str) -> None:
        """It is not connected, or not any more."""
        assert peer.sock is not None
        self.by_fd.pop(peer.sock.fileno(), None)
        peer.sock.close()
        peer.end = why
        if peer.state == "up":
            peer.backoff.lived(time.monotonic() - peer.since)
        else:
            self.failures[int(peer.since * 10), why] += 1
        peer.state = ""
        if self.again:
            self.after(peer.backoff.delay(), peer, "")

    def ready(self, peer: _Peer, events: int) -> None:
        assert peer.sock is not None
        if peer.state == "dialling":
            error = peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.fail(peer, os.strerror(error))
                return
            if events & select.EPOLLOUT:
                peer.sock.send(peer.hello)
                peer.state = "greeting"
                self.poll.modify(peer.sock.fileno(), select.EPOLLIN)
                self.after(self.settings.handshake_timeout, peer, peer.state)
            return
        try:
            data = peer.sock.recv(len(self.scratch))
        except OSError as error:
            self.fail(peer, error.strerror or str(error))
            return
        if not data:
            self.fail(peer, "closed")
            return
        assert peer.reader is not None
        for event in peer.reader.feed(data):
            if isinstance(event, Match):
                self.told(peer, event.sub_id, event)
            elif isinstance(event, Expect):
                self.told(peer, event.stream_id, event)
            elif isinstance(event, Welcome):
                peer.state = "up"
                peer.since = time.monotonic()
                peer.end = ""
                peer.reader.max_payload = MIB
                peer.account.expect_all()
                self.came.append(peer.since)
                peer.sock.send(peer.frames)
            elif isinstance(event, Ping):
                peer.sock.send(encode(Pong(event.token)))
            elif isinstance(event, (Goodbye, ProtocolError)):
                self.fail(peer, str(event))
                return

    def told(self, peer: _Peer, id: int, message: Match | Expect) -> None:
        answered, whole = peer.account.told(id, message)
        if answered:
            self.answers[int(time.monotonic() * 10)] += 1
        self.whole += whole

    def turn(self, deadline: float) -> None:
        """What comes next."""
        if self.timers:
            deadline = min(deadline, self.timers[0][0])
        for fd, events in self.poll.poll(max(0.0, deadline - time.monotonic())):
            peer = self.by_fd.get(fd)
            if peer is not None:
                self.ready(peer, events)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, index, state, attempt = heapq.heappop(self.timers)
            peer = self.peers[index]
            if peer.attempt == attempt and peer.state == state:
                if state:
                    self.fail(peer, f"{state}: no answer in time")
                else:
                    self.dial(peer)

    # --- all of them --------------------------------------------------------------------

    def until_whole(self) -> dict[str, Any]:
        while self.whole < len(self.peers):
            self.turn(time.monotonic() + 1)
        return {
            "end": time.monotonic(),
            "came": self.came,
            "answers": sorted(self.answers.items()),
            "failures": sorted((at, why, count) for (at, why), count in self.failures.items()),
        }

    def start(self) -> dict[str, Any]:
        """All of them, at one moment."""
        for peer in self.peers:
            self.dial(peer)
        return self.until_whole()

    def rush(self) -> dict[str, Any]:
        """The same, and none dials again."""
        self.again = False
        start = time.monotonic()
        for peer in self.peers:
            self.dial(peer)
        dialled = time.monotonic()
        ended = False
        while not ended and time.monotonic() < start + PATIENCE:
            self.turn(time.monotonic() + 1)
            ended = self.whole + sum(self.failures.values()) >= len(self.peers)
        ends = Counter(peer.end or "served" for peer in self.peers)
        return {
            "seconds": round(time.monotonic() - start, 2),
            "dialled_in": round(dialled - start, 2),
            "ends": dict(ends),
        }

    def recover(self) -> dict[str, Any]:
        """The coordinator is about to be killed."""
        self.reset()
        self.control.say("ready")
        return self.until_whole()


def bare(control: Control, port: int, *plan: int) -> None:
    """What a child runs: the last two numbers are those of its peers."""
    *sizes, first, behind = plan
    world = _World(control, port, Plan(*sizes), range(first, behind))
    while True:
        world.turn(time.monotonic() + LOOK)
        if not control.orders.empty():
            control.say("answer", **getattr(world, control.orders.get()["order"])())
