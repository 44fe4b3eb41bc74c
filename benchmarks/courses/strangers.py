"""What strangers cost a coordinator: the memory of each that stops before it has said who it is."""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from benchmarks.daemons import daemon
from benchmarks.stage import Failed, Stage

__all__ = ["cost_of_strangers"]

SETTLE = 0.3
"""Seconds in which what was set in motion comes to rest."""
CHAIN = 230
"""Certificates that one shows at most: together just below the 100 KiB that OpenSSL takes."""
HELD_BACK = 400
"""Bytes of them that never come."""


def cost_of_strangers(count: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """KiB for each of so many that say nothing; and over TLS, that send a ClientHello, and that
    send all but the end of a handshake with as many certificates as may be.

    Parameters:
        count: not more than may be in a TLS handshake at once.
        environment: the credentials of the coordinator.

    Raises:
        Failed: it came to nothing.
    """
    ways: dict[str, Callable[[socket.socket], None]] = {"silent_kib": lambda sock: None}
    if environment.get("PUBSUB_ENCRYPT") == "1":
        context = _context(environment["PUBSUB_KEY"])
        ways["hello_kib"] = lambda sock: _shake(sock, context, whole=False)
        ways["most_kib"] = lambda sock: _shake(sock, context, whole=True)
    try:
        return {name: _cost(count, environment, way) for name, way in ways.items()}
    except OSError as error:
        raise Failed(str(error)) from None


def _cost(
    count: int, environment: Mapping[str, str], stop: Callable[[socket.socket], None]
) -> float:
    with Stage() as stage, ExitStack() as stack:
        coordinator = daemon(stage, environment=environment)
        before = 0
        for number in range(1 + count):
            there = ("127.0.0.1", coordinator.port)
            stop(stack.enter_context(socket.create_connection(there)))
            if not number:  # imports, and what is made once
                time.sleep(SETTLE)
                before = coordinator.memory()
        time.sleep(SETTLE)
        return (coordinator.memory() - before) / count


def _shake(sock: socket.socket, context: ssl.SSLContext, *, whole: bool) -> None:
    """Handshake as far as this, and stop."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(into, out)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(out.read())
            into.write(sock.recv(65536))
            if not whole:
                return
        else:
            sock.sendall(out.read()[:-HELD_BACK])
            return


def _context(text: str) -> ssl.SSLContext:
    from pubsub.trust.authority import Authority, group_leaf, pem_of_key
    from pubsub.trust.keys import Key
    from pubsub.trust.pairs import new_key
    from pubsub.trust.reading import pem_of

    authority, key = Authority.of_group(Key.parse(text)), new_key()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem_of(group_leaf(authority, key.public_key())))
        file.write(pem_of(authority.certificate) * CHAIN + pem_of_key(key))
        file.flush()
        context.load_cert_chain(file.name)
    return context
