"""A client of a coordinator: asks what it knows, over a plain blocking socket."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from pubsub.config import Address
from pubsub.errors import CoordinatorUnavailable, ProtocolError, PubSubError
from pubsub.links.keeping import explain
from pubsub.links.resolving import resolve_blocking
from pubsub.support.about import about
from pubsub.wire.frames import SCRATCH_SIZE, Event, FrameReader
from pubsub.wire.handshake import Dialler, Identity, Refused
from pubsub.wire.messages import Answer, Goodbye, Ping, Pong, Query, encode

__all__ = ["ask"]

LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes that one frame of an answer may have; a long answer comes in many."""
TOKEN = 1


def ask(
    address: Address, what: Literal["topics", "peers"], *, timeout: float = 5.0
) -> list[dict[str, Any]]:
    """The rows that a coordinator has on a question. It has `timeout` seconds for the connection,
    and then for each piece of the answer; else it raises `CoordinatorUnavailable`."""
    try:
        with _connect(address, timeout) as connection:
            return list(_rows(connection, what))
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
    except (OSError, PubSubError) as error:
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


def _rows(connection: socket.socket, what: Literal["topics", "peers"]) -> Iterator[dict[str, Any]]:
    dialler = Dialler(Identity("client", secrets.token_hex(8), info=about()), "coordinator")
    reader = FrameReader(bytearray(SCRATCH_SIZE))
    hello = dialler.opening()
    assert hello is not None
    connection.sendall(encode(hello))
    other = None
    for event in _events(connection, reader):
        if other is None:
            _, other = dialler.receive(event)
            reader.max_payload = LARGEST_ANSWER
            connection.sendall(encode(Query(TOKEN, what)))
        elif isinstance(event, Answer) and event.token == TOKEN:
            yield from event.rows
            if event.complete:
                connection.sendall(encode(Goodbye("closing", "that was all")))
                return
        elif isinstance(event, Ping):
            connection.sendall(encode(Pong(event.token)))
        elif isinstance(event, Goodbye):
            raise Refused(event)
        elif not isinstance(event, Pong):
            raise ProtocolError(f"a {type(event).__name__.upper()} where an answer belongs")
    raise ProtocolError("the connection was closed without an answer")


def _events(connection: socket.socket, reader: FrameReader) -> Iterator[Event]:
    while True:
        size = connection.recv_into(reader.get_buffer())
        if not size:
            return
        for event in reader.received(size):
            if isinstance(event, ProtocolError):
                raise event
            yield event
