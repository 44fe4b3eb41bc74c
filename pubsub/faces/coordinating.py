"""Coordinator: one in this process, for programs that start others and bring their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NoReturn

from pubsub.config import Address, is_wildcard, whole
from pubsub.errors import AuthError, Closed, WrongContext
from pubsub.faces.elsewhere import refuse_inside
from pubsub.faces.peer import cannot_travel, settings_of
from pubsub.faces.process import end_last, ended, refuse_at_exit
from pubsub.links import descriptors
from pubsub.links.listening import is_exposed
from pubsub.relay.child import Child
from pubsub.runtime.thread import LoopThread
from pubsub.support.logs import logger
from pubsub.trust.credentials import credentials_from
from pubsub.trust.keys import Key

__all__ = ["Coordinator", "new_key"]

log = logger("pubsub.coordinator")


def new_key() -> str:
    """A new key for a group of processes, as ``pubsubd key new`` writes it: 256 random bits.

    For a program that starts others, and hands it to them by a way that nobody else reads: all who
    have it trust each other. ``Peer(key=…)`` and ``Coordinator(key=…)`` take it.
    """
    return Key.new().text()


class Coordinator:
    """A coordinator in this process, on a thread and an event loop of its own.

    For programs that start others, such as the head of a cluster's job: it is there when the
    constructor returns, until it is closed, or the process ends. It does what ``pubsubd
    coordinator`` does, and knows nothing of this process's own Peers: they name it like any other.

    Parameters:
        host: where it listens; ``"0.0.0.0"`` for other machines, which needs a key, a certificate
            or ``insecure=True``. Default: this machine alone.
        port: 0, the default, takes a free one.
        key: a key itself, such as `new_key` makes.
        relay: the port of a relay (``pubsubd relay``) beside it, as a process of its own that ends
            with it, for Peers that cannot dial each other; 0: any free one. Default: none.
        advertise: how others reach this machine, which is what they are told of the relay; to be
            given where `host` stands for all addresses of the machine. Default: `host`.
        settings: ``key_file``, ``cert``, ``insecure``, ``encrypt``, and the times of
            `pubsub.config.Settings`; without any, what the environment says of credentials, as
            with a Peer.

    Attributes:
        address: ``host:port``, for ``Peer(address)`` and ``PUBSUB_COORDINATOR``. (Where it listens
            at all addresses of a machine, say one of them to others, with this port.)
        port: the port.

    Raises:
        TypeError, ValueError: a setting that cannot be used.
        AuthError: no credentials, or they do not make a coordinator; or the host can be reached
            from other machines, and nothing says who may connect.
        OSError: it cannot listen there.
        WrongContext: no place for it, as with a Peer.

    Example:
        >>> from pubsub import Coordinator, Peer, new_key
        >>> key = new_key()
        >>> with Coordinator(key=key) as coordinator, Peer(coordinator.address, key=key) as peer:
        ...     sub = peer.sub("topic")
        ...     peer.pub("topic").put(1)
        ...     sub.get(timeout=5)
        1
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str | None = None,
        relay: int | None = None,
        advertise: str | None = None,
        **settings: Any,
    ) -> None:
        from pubsub.coordinator.server import Coordinator as Server  # a Peer needs none of it

        refuse_inside("Coordinator")
        refuse_at_exit()
        for name, given in (("port", port), ("relay", relay)):
            if given is not None and whole(name, given, 0) > 65535:
                raise ValueError(f"{name} {given} is not between 0 and 65535")
        if relay is not None and is_wildcard(host) and advertise is None:
            raise ValueError(f"a relay at {host} needs advertise=, how others reach this machine")
        times = settings_of("Coordinator", settings)
        credentials = credentials_from(times, os.environ, key)
        guard = credentials.guard()
        exposed = is_exposed(host)
        if guard.local and exposed:
            raise AuthError(
                f"a Coordinator at {host} can be reached from other machines, and no key says who "
                "may connect from there: give it one (key=new_key(), key_file=, or insecure=True "
                "where everyone on that network may publish and subscribe)"
            )
        guard.check_coordinator(exposed=exposed)
        descriptors.fill_standard()
        self._thread = LoopThread()
        self._relay: Child | None = None
        with ExitStack() as undone:
            undone.callback(self._thread.stop)
            loop = self._thread.start()
            self._server = self._thread.call(Server, loop, settings=times, guard=guard)
            undone.callback(self._thread.call, self._server.cut)
            self._thread.call(self._server.renewal.start)
            try:
                found = self._thread.run(self._server.start(host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise OSError(
                    error.errno, f"a Coordinator cannot listen on {host}:{port}: it is in use"
                ) from None
            if relay is not None:
                where = "127.0.0.1" if is_wildcard(host) else host
                options, environ = credentials.for_command(os.environ)
                options += ["--host", host, "--port", str(relay), "--advertise", advertise or host]
                child = self._relay = Child(
                    *("relay", Address(where, found.port), options), environ=environ, say=log.info
                )
                undone.callback(lambda: self._thread.run(child.close()))
                self._thread.call(child.start)
            undone.pop_all()
        self.address = str(found)
        self.port = found.port
        self._closed = False
        self._pid = os.getpid()
        end_last(self.close)

    def close(self) -> None:
        """Say goodbye to all that are connected, and stop. Streams between them go on. May be
        called again. In a forked child it does nothing: the parent's goes on."""
        if not self._closed and os.getpid() == self._pid:  # the thread is not in a child
            self._closed = True
            ended(self.close)
            try:
                if self._relay is not None:
                    self._thread.run(self._relay.close())
                self._thread.run(self._server.close())
            finally:
                self._thread.stop()

    def topics(self) -> list[dict[str, Any]]:
        """A row for each topic and pattern, as ``pubsub topics`` shows them: ``topic``,
        ``publishers`` and ``subscribers``."""
        return self._rows(self._server.registry.topics)

    def peers(self) -> list[dict[str, Any]]:
        """A row for each Peer, as ``pubsub peers --json`` shows them: ``name``, ``address``,
        ``pid``, ``hostname``, ``pubs``, ``subs``, ``state`` and more."""
        return self._rows(self._server.registry.peers)

    def relays(self) -> list[dict[str, Any]]:
        """A row for each relay: ``address``, ``name``, ``circuits`` and more."""
        return self._rows(self._server.registry.relay_rows)

    def _rows(self, of: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
        if self._closed:
            raise Closed("this Coordinator is closed")
        if os.getpid() != self._pid:  # the thread that would answer is not here
            raise WrongContext(
                "this Coordinator was made before a fork and runs in the parent process: ask there"
            )
        return self._thread.call(lambda: list(of()))

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise cannot_travel("Coordinator")

    def __repr__(self) -> str:
        return f"<Coordinator {'closed' if self._closed else f'at {self.address}'}>"
