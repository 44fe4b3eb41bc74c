"""Circuits of a relay as peers have them, by hand: tickets, and sockets that join with them.

Everything is open to everybody: a relay looks at nothing of what it splices, and what two peers do
in a circuit costs it the same whether that is TLS or not.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from benchmarks.daemons import allow_files, daemon
from benchmarks.stage import Child, Failed, Stage
from pubsub._version import __version__
from pubsub.errors import ProtocolError
from pubsub.relay.circuits import MAX_OF_TWO
from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import Dialler, Identity
from pubsub.wire.messages import Circuit, Goodbye, Join, Ticket, Welcome, encode

__all__ = ["a_relay", "cost_of_circuits", "join", "tickets"]

CARRIED = 64 * 1024
"""Bytes that each circuit has carried each way before it is at rest."""
SETTLE = 0.5
"""Seconds in which what was set in motion comes to rest."""
SPARE = 100
"""File descriptors that are none of a circuit."""
PATIENCE = 30.0
"""Seconds for each word of the relay."""

T = TypeVar("T")


@contextmanager
def a_relay() -> Iterator[Child]:
    """A `pubsubd relay`, and the coordinator that it tells of itself."""
    with Stage() as stage:
        place = f"127.0.0.1:{daemon(stage).port}"
        yield daemon(stage, command=("relay", "--coordinator", place))


class _Session:
    """One peer's session with the relay."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.peer_id = secrets.token_hex(8)
        self._reader = FrameReader(bytearray(64 * 1024))
        self._heard: list[Any] = []
        info = {"name": "circuits", "pid": 1, "hostname": "", "library": __version__}
        opening = Dialler(Identity("peer", self.peer_id, info=info), "relay").opening()
        assert opening is not None
        self.say(opening)
        self.hear(Welcome)

    def say(self, message: Any) -> None:
        self.sock.sendall(encode(message))

    def hear(self, kind: type[T]) -> T:
        """The next of this kind."""
        while True:
            while self._heard:
                event = self._heard.pop(0)
                if isinstance(event, kind):
                    return event
                if isinstance(event, (Goodbye, ProtocolError)):
                    raise Failed(f"the relay: {event}")
            data = self.sock.recv(65536)
            if not data:
                raise Failed("the relay has closed a session")
            self._heard += self._reader.feed(data)


def tickets(port: int, count: int) -> list[tuple[bytes, bytes]]:
    """Those of so many circuits of one peer, with as many others as it takes, one for each end.
    They are good for some seconds."""
    with ExitStack() as stack:

        def session() -> _Session:
            made = _Session(port)
            stack.callback(made.sock.close)
            return made

        asking, pairs = session(), list[tuple[Ticket, Ticket]]()
        while len(pairs) < count:
            other, more = session(), min(MAX_OF_TWO, count - len(pairs))
            for _ in range(more):
                asking.say(Circuit(other.peer_id))
            pairs += [(asking.hear(Ticket), other.hear(Ticket)) for _ in range(more)]
    for ticket in pairs[0]:
        if not ticket.ticket:
            raise Failed(f"the relay gives no ticket: {ticket.reason}")
    return [(one.ticket, another.ticket) for one, another in pairs]


def join(port: int, ticket: bytes) -> socket.socket:
    """One end of a circuit."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(encode(Join(ticket)))
    return sock


def cost_of_circuits(count: int) -> dict[str, Any]:
    """KiB of a relay for each of so many circuits at rest.

    Raises:
        Failed: it came to nothing.
    """
    if allow_files(2 * count + SPARE) < 2 * count + SPARE:
        raise Failed(f"{count} circuits take more file descriptors than there may be here")
    try:
        with a_relay() as relay, ExitStack() as stack:
            _rest(relay.port, 1, stack)  # what is made once
            time.sleep(SETTLE)
            before = relay.memory()
            _rest(relay.port, count, stack)
            time.sleep(SETTLE)
            return {"circuit_kib": (relay.memory() - before) / count, "circuits": count}
    except OSError as error:
        raise Failed(str(error)) from None


def _rest(port: int, count: int, stack: ExitStack) -> None:
    """So many circuits that have carried something, and stay."""
    for pair in tickets(port, count):
        ends = [stack.enter_context(join(port, ticket)) for ticket in pair]
        for source, sink in (ends, reversed(ends)):
            sink.settimeout(PATIENCE)
            source.sendall(bytes(CARRIED))
            left = CARRIED
            while left:
                came = len(sink.recv(left))
                if not came:
                    raise Failed("the relay has closed a circuit")
                left -= came
