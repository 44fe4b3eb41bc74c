"""The process with the bare sockets: all connections at one moment.

No event loop and no backoff stand between them and the coordinator. Each sends HELLO and all that
it registers as soon as it is connected, and reads until it has its WELCOME or its GOODBYE, and as
many answers as it has registrations.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.coordinator.plan import Plan
from pubsub.core.frames import FrameReader
from pubsub.core.messages import (
    PROTOCOL_VERSION,
    Expect,
    Goodbye,
    Hello,
    Match,
    Register,
    Welcome,
    encode,
)

PATIENCE = 60.0


class _Socket:
    def __init__(self, plan: Plan, number: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        hello = Hello(PROTOCOL_VERSION, "peer", "coordinator", f"{number:016x}", "", "", 0, {})
        entries = list(plan.of(number))
        self.hello = encode(hello)
        self.rest = b"".join(encode(Register(e.id, e.role, e.topic, False, False)) for e in entries)
        self.reader = FrameReader(bytearray(64 * 1024))
        self.missing = len(entries)
        self.end = ""

    def readable(self) -> None:
        try:
            data = self.sock.recv(64 * 1024)
        except BlockingIOError:
            return
        except OSError as error:
            self.end = type(error).__name__
            return
        if not data:
            self.end = "closed"
        for event in self.reader.feed(data):
            if isinstance(event, Welcome):
                self.reader.max_payload = 1 << 20
                self.sock.sendall(self.rest)
            elif isinstance(event, Goodbye):
                self.end = f"goodbye: {event.code}"
            elif isinstance(event, (Match, Expect)):
                self.missing -= event.complete and not event.removed and self.missing > 0
        if not self.missing and not self.end:
            self.end = "served"


def rush(port: int, plan: Plan) -> dict[str, Any]:
    """Connect all, and see what becomes of them."""
    sockets = [_Socket(plan, number) for number in range(plan.peers)]
    poll = select.epoll()
    by_fd = {each.sock.fileno(): each for each in sockets}
    start = time.monotonic()
    for each in sockets:
        try:
            each.sock.connect(("127.0.0.1", port))
        except BlockingIOError:
            pass
        poll.register(each.sock.fileno(), select.EPOLLOUT | select.EPOLLIN)
    dialled = time.monotonic() - start
    left = len(sockets)
    while left and time.monotonic() < start + PATIENCE:
        for fd, events in poll.poll(1):
            each = by_fd[fd]
            if events & select.EPOLLOUT and each.hello:
                try:
                    each.sock.sendall(each.hello)
                except OSError as error:
                    each.end = type(error).__name__
                each.hello = b""
                poll.modify(fd, select.EPOLLIN)
            if not each.end and events & ~select.EPOLLOUT:
                each.readable()
            if each.end:
                poll.unregister(fd)  # and stays open
                left -= 1
    return {
        "seconds": round(time.monotonic() - start, 2),
        "dialled_in": round(dialled, 2),
        "ends": dict(Counter(each.end or "no answer" for each in sockets)),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        json.loads(line)
        print(json.dumps(rush(int(sys.argv[1]), Plan(*map(int, sys.argv[2:5])))), flush=True)
    os._exit(1)
