"""A client of a coordinator: asks what it knows, over a plain blocking socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from pubsub.config import DEFAULT_COORDINATOR, Address
from pubsub.errors import AuthError, CoordinatorUnavailable, ProtocolError, PubSubError
from pubsub.links.keeping import explain
from pubsub.links.refusals import explain_tls
from pubsub.links.resolving import resolve_blocking
from pubsub.runtime.coordinator_link import PORTS, is_foreign
from pubsub.support.about import about
from pubsub.support.host import this_host
from pubsub.trust.guard import Guard, is_auth
from pubsub.wire.frames import SCRATCH_SIZE, Event, FrameReader
from pubsub.wire.handshake import Dialler, Identity, Refused
from pubsub.wire.messages import Answer, Goodbye, Ping, Pong, Query, encode

__all__ = ["What", "ask", "find_default"]

What = Literal["topics", "peers", "relays"]
LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes that one frame of an answer may have; a long answer comes in many."""
TOKEN = 1


def find_default(guard: Guard, timeout: float = 1.0) -> Address:
    """Where the coordinator is that nobody named: the first from the default port on that is one of
    ours (others of this machine may have theirs before); the default where there is none."""
    for port in range(DEFAULT_COORDINATOR.port, DEFAULT_COORDINATOR.port + PORTS):
        address = Address(DEFAULT_COORDINATOR.host, port)
        try:
            with _connect(address, timeout) as connection:
                for _ in _rows(connection, None, guard):
                    pass
        except ConnectionRefusedError:
            continue
        except (OSError, PubSubError) as error:
            if is_foreign(error):
                continue
        return address
    return DEFAULT_COORDINATOR


def ask(
    address: Address, what: What, guard: Guard, *, timeout: float = 5.0
) -> list[dict[str, Any]]:
    """The rows that a coordinator has on a question. It has `timeout` seconds for the connection,
    and then for each piece of the answer.

    Raises:
        CoordinatorUnavailable: there is none, or it does not answer.
        AuthError: it does not let us in, or does not show that it is one of ours.
    """
    try:
        with _connect(address, timeout) as connection:
            return list(_rows(connection, what, guard))
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
    except (OSError, PubSubError) as error:
        if is_auth(error):
            raise AuthError(f"the coordinator at {address}: {error}") from None
        problem = explain(error)
        if isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError):
            problem = error.strerror or problem
    text = f"no coordinator at {address}: {problem}"
    raise CoordinatorUnavailable(text, addresses=(str(address),))


def _connect(address: Address, timeout: float) -> socket.socket:
    """To the first that answers of all that the name means."""
    *others, last = resolve_blocking(address.host, timeout)
    for host in others:
        with suppress(OSError):
            return socket.create_connection((host, address.port), timeout)
    return socket.create_connection((last, address.port), timeout)


def _secure(connection: socket.socket, guard: Guard) -> tuple[socket.socket, Dialler]:
    """By the channel that the guard says; and what to say on it."""
    ends = (connection.getsockname(), connection.getpeername())
    context = guard.context(ends[1][0])
    der = None
    if context is not None:
        secured = connection = context.wrap_socket(connection)
        der = lambda: secured.getpeercert(True) or b""  # noqa: E731
    me = Identity("client", guard.new_id(), info=about())
    return connection, Dialler(me, "coordinator", authenticator=guard.dials(ends, der))


def _rows(connection: socket.socket, what: What | None, guard: Guard) -> Iterator[dict[str, Any]]:
    try:
        secured, dialler = _secure(connection, guard)
        with secured:  # the one below has given up its descriptor
            yield from _conversation(secured, dialler, what)
    except ssl.SSLError as error:
        raise AuthError(
            explain_tls(error, now=this_host().wall_clock(), grouped=guard.grouped)
        ) from None


def _conversation(
    connection: socket.socket, dialler: Dialler, what: What | None
) -> Iterator[dict[str, Any]]:
    reader = FrameReader(bytearray(SCRATCH_SIZE))
    with _telling(connection):
        hello = dialler.opening()
    assert hello is not None
    connection.sendall(encode(hello))
    other = None
    for event in _events(connection, reader):
        if other is None:
            with _telling(connection):
                answer, other = dialler.receive(event)
            if answer is not None:
                connection.sendall(encode(answer))
            if other is not None:
                if what is None:
                    break
                reader.max_payload = LARGEST_ANSWER
                connection.sendall(encode(Query(TOKEN, what)))
        elif isinstance(event, Answer) and event.token == TOKEN:
            yield from event.rows
            if event.complete:
                break
        elif isinstance(event, Ping):
            connection.sendall(encode(Pong(event.token)))
        elif isinstance(event, Goodbye):
            raise Refused(event)
        elif not isinstance(event, Pong):
            raise ProtocolError(f"a {type(event).__name__.upper()} where an answer belongs")
    else:
        raise ProtocolError("the connection was closed without an answer")
    connection.sendall(encode(Goodbye("closing", "that was all")))


@contextmanager
def _telling(connection: socket.socket) -> Iterator[None]:
    """What keeps us from talking to the other end is said to it: else nobody there would know who
    came in vain, and why."""
    try:
        yield
    except ProtocolError as error:
        connection.sendall(encode(Goodbye.because(error.code, str(error))))
        raise


def _events(connection: socket.socket, reader: FrameReader) -> Iterator[Event]:
    while True:
        size = connection.recv_into(reader.get_buffer())
        if not size:
            return
        for event in reader.received(size):
            if isinstance(event, ProtocolError):
                raise event
            yield event
