"""Listening: sockets that take connections, and how many of them in a turn of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection
from typing import Any

from pubsub.config import is_loopback, is_wildcard
from pubsub.links import descriptors
from pubsub.links.resolving import resolve, resolve_blocking

__all__ = [
    "REQUEST_SCRATCH",
    "accept_more",
    "is_exposed",
    "listen",
    "listen_at_socket",
    "stop_accepting",
]

REQUEST_SCRATCH = 32 * 1024
"""Read buffer of accepted connections. What they send is small; less read at a time means that
one who floods its connection holds up the others by less."""
ACCEPTS = 8
"""Connections that a listening socket may accept in one turn of the loop."""
NAME_TIMEOUT = 5.0
"""Seconds to wait for what a name to listen on means."""
PORTS_TO_TRY = 10
"""How often to ask for any port where it must be free at several addresses."""
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def is_exposed(host: str) -> bool:
    """Whether other machines may reach who listens there. (Where no event loop runs: it asks for
    what a name means.)

    Raises:
        OSError: it means nothing.
    """
    return is_wildcard(host) or not all(map(is_loopback, resolve_blocking(host, NAME_TIMEOUT)))


async def listen(
    loop: asyncio.AbstractEventLoop,
    accept: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    backlog: int,
) -> list[asyncio.Server]:
    """Listen at every address that a host has, under one port; as many as `backlog` connections
    may wait in the kernel.

    ``::`` and ``""`` are all addresses of this machine, of IPv4 and IPv6 alike.

    Raises:
        OSError: the port is in use, or the address is not this machine's.
    """
    hosts = await _addresses(loop, host)
    tries = 1 if port or len(hosts) == 1 else PORTS_TO_TRY
    while True:
        tries -= 1
        try:
            return await _listen_at_all(loop, accept, hosts, port, backlog)
        except OSError as error:  # what is free at one address may be taken at the next
            if error.errno != errno.EADDRINUSE or not tries:
                raise


async def _addresses(loop: asyncio.AbstractEventLoop, host: str) -> list[str]:
    """The addresses of a host: a name may have several."""
    if not host:
        return ["::" if socket.has_dualstack_ipv6() else "0.0.0.0"]
    return list(await resolve(loop, host, NAME_TIMEOUT))


async def _listen_at_all(
    loop: asyncio.AbstractEventLoop,
    accept: Callable[[], asyncio.BaseProtocol],
    hosts: list[str],
    port: int,
    backlog: int,
) -> list[asyncio.Server]:
    servers: list[asyncio.Server] = []
    try:
        for host in hosts:
            try:
                server = await _listen_at(loop, accept, host, port, backlog)
            except OSError as error:
                # a name may have an address of a family that is switched off here
                if error.errno not in _NOT_HERE or (host == hosts[-1] and not servers):
                    raise
            else:
                servers.append(server)
                port = server.sockets[0].getsockname()[1]
    except BaseException:
        for server in servers:
            server.close()
        raise
    return servers


async def _listen_at(
    loop: asyncio.AbstractEventLoop,
    accept: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    backlog: int,
) -> asyncio.Server:
    """Listen at one address.

    In one turn of the loop, plain asyncio accepts `ACCEPTS` of them, and uvloop one (see
    `accept_more`).

    asyncio takes its `backlog` also for how often to accept in one turn, and goes on when no file
    descriptor is left, with a traceback in the log for each: a thousand of them a second leave no
    time for the streams that are there. So it is told a small number, and the kernel the other.
    """
    plain = isinstance(loop, asyncio.BaseEventLoop)
    at: dict[str, Any] = {"host": host, "port": port}
    if is_wildcard(host) and ":" in host and socket.has_dualstack_ipv6():
        # loops make a socket of IPv6 alone
        at = {
            "sock": socket.create_server(
                (host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        }
    try:
        server = await loop.create_server(
            accept, **at, backlog=ACCEPTS if plain else backlog, start_serving=not plain
        )
    except BaseException as error:
        if "sock" in at:
            at["sock"].close()
        if isinstance(error, OSError) and error.errno is None:  # Python 3.13 says no more than that
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from None
        raise
    await _begin(loop, server, backlog)
    return server


async def listen_at_socket(
    loop: asyncio.AbstractEventLoop,
    accept: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    backlog: int,
) -> asyncio.Server:
    """Listen at a Unix socket, as at an address."""
    plain = isinstance(loop, asyncio.BaseEventLoop)
    try:
        server = await loop.create_unix_server(
            accept, sock=sock, backlog=ACCEPTS if plain else backlog, start_serving=not plain
        )
    except BaseException:
        sock.close()
        raise
    await _begin(loop, server, backlog)
    return server


async def _begin(loop: asyncio.AbstractEventLoop, server: asyncio.Server, backlog: int) -> None:
    """Have it accept, with so many in the kernel."""
    if isinstance(server, asyncio.Server):  # not uvloop's, nor a simulated one
        try:
            await server.start_serving()
            for sock in server.sockets:
                with sock.dup() as same:
                    same.listen(backlog)
        except BaseException:  # cancelled, or no descriptor is left
            server.close()
            raise
    descriptors.listening(loop, server)


async def stop_accepting(loop: asyncio.AbstractEventLoop, servers: Collection[Any]) -> None:
    """Close these servers; those whom they have accepted are known to their doorman then.

    Between both there are one or two turns of the loop. Plain asyncio starts a task for each
    connection that it accepts, and where the server is closed before that has run, the socket stays
    open and nobody knows of it. So it is made deaf first, and closed then.
    """
    if not servers:
        return
    for server in servers:
        if isinstance(server, asyncio.Server):
            for sock in server.sockets:
                with contextlib.suppress(NotImplementedError):  # a loop of Windows
                    loop.remove_reader(sock.fileno())
        else:
            server.close()
    try:
        await asyncio.sleep(0)  # tasks run
        await asyncio.sleep(0)  # protocols hear of their connections
    finally:
        for server in servers:
            server.close()


async def accept_more(
    loop: asyncio.AbstractEventLoop,
    accept: Callable[[], asyncio.BaseProtocol],
    servers: Collection[asyncio.Server],
    backlog: int,
) -> list[asyncio.Server]:
    """Have uvloop, too, accept `ACCEPTS` connections in one turn, by listening to the socket under
    so many descriptors; returns what must be closed beside the servers.

    For those to whom thousands may come at once, with much to do for each. Those who are in make
    the turns long; with one let in by each turn, the others wait at the door for longer than their
    handshake may take.
    """
    more: list[asyncio.Server] = []
    if type(loop).__module__.partition(".")[0] == "uvloop" and _has_descriptors():
        for listening in [sock for server in servers for sock in server.sockets]:
            for _ in range(ACCEPTS - 1):
                try:
                    same = socket.fromfd(listening.fileno(), listening.family, listening.type)
                except OSError:  # no descriptor is left: then with fewer
                    return more
                server = await loop.create_server(accept, sock=same, backlog=backlog)
                more.append(server)
                descriptors.listening(loop, server)
    return more


def _has_descriptors() -> bool:
    """Whether this process may have so many that some may be spent."""
    try:
        import resource
    except ImportError:
        return False
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft == resource.RLIM_INFINITY or soft >= 64 * ACCEPTS
