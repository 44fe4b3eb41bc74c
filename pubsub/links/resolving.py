"""Resolving: which addresses a host means.

A name is asked for in a daemon thread of ours, never in the event loop's executor: the end of a
program waits for that one, and nothing can end a question to a name server that does not answer.
What a name meant the last time is kept, for when it cannot be asked (no thread starts any more when
the interpreter ends) or is not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from concurrent.futures import Future
from ipaddress import ip_address
from threading import Thread
from typing import Any

from pubsub.links.patience import Patience
from pubsub.support.host import this_host

__all__ = ["ask", "host_of", "nearness", "numeric", "resolve", "resolve_blocking"]

AT_ONCE = 64
"""Names that may be asked for at once: those of publishers come from whoever can register one."""
REMEMBERED = 1024
"""Names whose last answer is kept."""
KNOWN_WAIT = 1.0
"""Seconds to wait for the answer where the last one is known."""

_asking: dict[str, tuple[int, Future[tuple[str, ...]]]] = {}
"""Under way, and in which process: a fork takes no thread along."""
_known: dict[str, tuple[str, ...]] = {}


def host_of(name: Any) -> str:
    """The host in a socket's name, with the zone that an IPv6 address of one network needs."""
    if not name:
        return ""
    host: str = name[0]
    if len(name) < 4 or not name[3] or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(name[3])}"
    except OSError:
        return f"{host}%{name[3]}"


def numeric(host: str) -> str:
    """The address that is written there, in its usual form; empty: it is a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return ""
    return host_of(found[0][4])


def ask(host: str) -> tuple[str, ...]:
    """The addresses of a name, as the system says; waits for as long as that takes.

    Raises:
        OSError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except ValueError:  # a part of it is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is no host name") from None
    except OSError:
        address, _, zone = host.partition("%")
        if zone and ":" in address:
            why = f"there is no network interface {zone!r} here"
            raise socket.gaierror(socket.EAI_NONAME, why) from None
        raise
    return tuple(dict.fromkeys(host_of(name) for *_, name in found))


def _asked(host: str) -> Future[tuple[str, ...]]:
    """The answer to come: one question at a time for each name."""
    here = os.getpid()
    process, asked = _asking.get(host, (0, None))
    if asked is not None and process == here:
        return asked
    future: Future[tuple[str, ...]] = Future()
    future.set_running_or_notify_cancel()
    for other, (process, _) in list(_asking.items()):
        if process != here:
            _asking.pop(other, None)
    if len(_asking) >= AT_ONCE:
        future.set_exception(_unanswered("too many names are being asked for"))
        return future
    _asking[host] = here, future

    def run() -> None:
        try:
            found = ask(host)
        except Exception as error:
            _asking.pop(host, None)
            future.set_exception(error)
        else:
            _known.pop(host, None)
            _known[host] = found
            if len(_known) > REMEMBERED:
                _known.pop(next(iter(_known)), None)
            _asking.pop(host, None)
            future.set_result(found)

    try:
        Thread(target=run, name=f"pubsub resolve {host}", daemon=True).start()
    except RuntimeError:  # the interpreter ends
        _asking.pop(host, None)
        future.set_exception(_unanswered("Python is ending, and starts no thread any more"))
    return future


def _unanswered(why: str) -> OSError:
    return socket.gaierror(socket.EAI_AGAIN, why)


def _result(host: str, future: Future[tuple[str, ...]]) -> tuple[str, ...]:
    """The answer, or the last one where there is none."""
    try:
        if not future.done():
            raise _unanswered("the name server does not answer")
        return future.result()
    except OSError:
        if host in _known:
            return _known[host]
        raise


def _wait(host: str, timeout: float) -> float:
    return min(timeout, KNOWN_WAIT) if host in _known else timeout


async def resolve(loop: asyncio.AbstractEventLoop, host: str, timeout: float) -> tuple[str, ...]:
    """The addresses that a host means, the best first.

    Raises:
        OSError: it means none, or its name server did not answer within `timeout` seconds.
    """
    if address := numeric(host):
        return (address,)
    future = _asked(host)
    waiter = loop.create_future()

    def over() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def answered(future: Future[tuple[str, ...]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(over)

    future.add_done_callback(answered)
    patience = Patience(loop, _wait(host, timeout), over)
    try:
        await waiter
    finally:
        patience.cancel()
    return _result(host, future)


def resolve_blocking(host: str, timeout: float) -> tuple[str, ...]:
    """The same, where no event loop runs."""
    if address := numeric(host):
        return (address,)
    future = _asked(host)
    with contextlib.suppress(Exception):
        future.result(_wait(host, timeout))
    return _result(host, future)


def nearness(host: str) -> int:
    """How near an address is, by the one from which this machine would dial it (RFC 6724, rule 9).
    2: on one of its own networks, as far as can be told; 1: beyond, or a name; 0: no way leads
    there."""
    address = numeric(host)
    if not address:
        return 1
    source = this_host().source_of(address)
    try:
        here, there = (ip_address(each.partition("%")[0]) for each in (source, address))
    except ValueError:  # the machine has none
        return 0
    if here.version != there.version:
        return 0
    shift = 64 if here.version == 6 else 8
    return 2 if int(here) >> shift == int(there) >> shift else 1
