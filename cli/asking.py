"""A client of a coordinator: asks what it knows, over a plain blocking socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any, Literal, TypeAlias, TypeVar

from pubsub.config import DEFAULT_COORDINATOR, Address
from pubsub.errors import AuthError, CoordinatorUnavailable, ProtocolError, PubSubError
from pubsub.links.keeping import explain
from pubsub.links.refusals import explain_tls
from pubsub.links.resolving import resolve_blocking
from pubsub.runtime.coordinator_link import MOST, PORTS, is_foreign, most_of
from pubsub.support.about import about
from pubsub.support.host import this_host
from pubsub.trust.guard import Guard, is_auth
from pubsub.wire.frames import SCRATCH_SIZE, Event, FrameReader
from pubsub.wire.handshake import Dialler, Identity, Refused
from pubsub.wire.messages import Answer, Goodbye, Ping, Pong, Query, encode

__all__ = ["What", "ask", "ask_all", "check", "find_default"]

T = TypeVar("T")

What = Literal["topics", "peers", "relays"]
Asked: TypeAlias = Literal["topics", "peers", "relays", "ping"] | None
"""``ping``: the smallest question, which all may ask who are let in; None: the handshake is all."""
Rows: TypeAlias = list[dict[str, Any]]
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
                _talk(connection, None, guard)
        except ConnectionRefusedError:
            continue
        except (OSError, PubSubError) as error:
            if is_foreign(error):
                continue
        return address
    return DEFAULT_COORDINATOR


def ask(address: Address, what: What, guard: Guard, *, timeout: float = 5.0) -> Rows:
    """The rows that a coordinator has on a question. It has `timeout` seconds for the connection,
    and then for each piece of the answer.

    Raises:
        CoordinatorUnavailable: there is none, or it does not answer.
        AuthError: it does not let us in, or does not show that it is one of ours.
    """
    return _ask(address, what, guard, timeout)[1]


def ask_all(
    address: Address, what: What, guard: Guard, *, timeout: float = 5.0
) -> dict[Address, Rows]:
    """The same, of every coordinator that a name means, each once: of those that are several, by
    the address of each. One that does not answer is no trouble where another does, as for a `Peer`.
    """
    hosts: Sequence[str] = ()
    with suppress(OSError):  # it is told below
        hosts = most_of(resolve_blocking(address.host, timeout))
    if len(hosts) < 2:
        return {address: ask(address, what, guard, timeout=timeout)}
    places = [Address(host, address.port) for host in hosts]
    with ThreadPoolExecutor(MOST) as pool:
        answers = [pool.submit(_ask, place, what, guard, timeout) for place in places]
    found: dict[str, tuple[Address, Rows]] = {}
    for place, answer in zip(places, answers, strict=True):
        with suppress(PubSubError):
            identity, rows = answer.result()
            found.setdefault(identity, (place, rows))
    if not found:
        answers[0].result()  # raises why
    if len(found) == 1:
        ((_, rows),) = found.values()
        return {address: rows}
    return dict(found.values())


def _ask(address: Address, what: Asked, guard: Guard, timeout: float) -> tuple[str, Rows]:
    """See `ask`; and which coordinator it is."""
    try:
        with _connect(address, timeout) as connection:
            return _talk(connection, what, guard)
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


def check(addresses: Sequence[Address], guard: Guard, timeout: float) -> None:
    """Return as soon as one of these coordinators has let us in and answered.

    Raises:
        CoordinatorUnavailable, AuthError: none has within `timeout` seconds; of the first of them.
    """
    until = monotonic() + timeout
    asked = [_apart(partial(_ask, each, "ping", guard, timeout)) for each in addresses]
    left = set(asked)
    while left:
        done, left = wait(left, max(0.0, until - monotonic()), FIRST_COMPLETED)
        if any(each.exception() is None for each in done):
            return
        if not done:
            break
    if asked[0].done():
        asked[0].result()  # raises why
    text = f"no coordinator at {addresses[0]}: no answer within {timeout:g} s"
    raise CoordinatorUnavailable(text, addresses=tuple(map(str, addresses)))


def _apart(call: Callable[[], T]) -> Future[T]:
    """Call it in a daemon thread, for which no end of a program waits: one who answers a little now
    and then, or a name server that is silent, would have more time than there is."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


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


def _talk(connection: socket.socket, what: Asked, guard: Guard) -> tuple[str, Rows]:
    try:
        secured, dialler = _secure(connection, guard)
        with secured:  # the one below has given up its descriptor
            return _conversation(secured, dialler, what)
    except ssl.SSLError as error:
        raise AuthError(
            explain_tls(error, now=this_host().wall_clock(), grouped=guard.grouped)
        ) from None


def _conversation(connection: socket.socket, dialler: Dialler, what: Asked) -> tuple[str, Rows]:
    """Who the other end is, and its answer."""
    reader = FrameReader(bytearray(SCRATCH_SIZE))
    with _telling(connection):
        hello = dialler.opening()
    assert hello is not None
    connection.sendall(encode(hello))
    other = None
    rows: Rows = []
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
                connection.sendall(encode(Ping(TOKEN) if what == "ping" else Query(TOKEN, what)))
        elif isinstance(event, Answer) and event.token == TOKEN:
            rows += event.rows
            if event.complete:
                break
        elif isinstance(event, Ping):
            connection.sendall(encode(Pong(event.token)))
        elif isinstance(event, Goodbye):
            raise Refused(event)
        elif isinstance(event, Pong):
            if what == "ping" and event.token == TOKEN:
                break
        else:
            raise ProtocolError(f"a {type(event).__name__.upper()} where an answer belongs")
    else:
        raise ProtocolError("the connection was closed without an answer")
    connection.sendall(encode(Goodbye("closing", "that was all")))
    assert other is not None
    return other.peer_id, rows


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
