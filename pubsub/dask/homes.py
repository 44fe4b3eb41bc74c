"""Homes: one blocking Peer for each process and cluster, and what Dask's faces share of it.

A home lives as long as a worker or client of this process that has used it is alive. One thread
keeps it (`Home._keep`): finalizers, which may run in the middle of anything, only tell it what was
dropped. Those of the user's own may publish, also in a thread that holds one of the locks here
(hence they can be taken again), or in one that the holder waits for (who asks there is refused).

All Pubs of one name in a process share one Pub, which stays for some seconds after the last of
them is gone. A task that makes a Pub, puts once and returns is the common case: so thousands of
them cost one registration and one stream, whose order is that of their puts, and what they put is
sent though their Pub was collected at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from distributed import Worker, get_client, get_worker
from distributed.core import Status

from pubsub import Codec, Peer, Pub, PubSubError, Sub
from pubsub.config import Address, is_loopback
from pubsub.dask.names import name_of
from pubsub.dask.places import (
    TIMEOUT,
    Place,
    held,
    host_of,
    in_thread,
    scheduler_id,
    where,
    workers,
)
from pubsub.errors import CoordinatorUnavailable

if TYPE_CHECKING:
    from pubsub.dask.pump import Source

__all__ = ["Home", "home_of", "homes", "leave", "member_of", "peer"]

log = logging.getLogger("pubsub.dask")

IDLE = 10.0
"""Seconds for which a Pub is kept that nobody holds."""
TICK = 1.0
"""Seconds after which the keeper looks again who is alive."""

ENDED = "the Dask cluster, or the last client of it in this process, has ended"
"""Why a face is closed: who uses it knows of no Peer."""

VALUES = Codec.cloudpickle()
"""What msgpack cannot carry goes by cloudpickle: all of a cluster trust each other already."""

_lock = threading.RLock()
_homes: dict[tuple[int, str], Home] = {}  # by process (a fork's child has others) and scheduler


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # whoever held it is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Shared:
    """A Pub, and how many hold it."""

    __slots__ = ("holders", "pub")

    def __init__(self, pub: Pub) -> None:
        self.pub = pub
        self.holders = 0


class Home:
    """See the module."""

    def __init__(self, place: Place, address: Address, member: Any) -> None:
        self.place = place
        self.successor: Home | None = None  # the scheduler was started anew, and this is the next
        self.closed = False
        self.dropped: SimpleQueue[Any] = SimpleQueue()  # names of Pubs, sources of Subs
        self._lock = threading.RLock()
        self._making = threading.RLock()  # a Pub; that may wait for the coordinator
        self._members: weakref.WeakSet[Any] = weakref.WeakSet([member])
        self._pubs: dict[str, _Shared] = {}
        self._idle: dict[str, float] = {}  # since when nobody does
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self.peer = in_thread(lambda: _peer(place, address, member))
        threading.Thread(target=self._keep, name="pubsub.dask keeper", daemon=True).start()

    def join(self, member: Any) -> None:
        with self._lock:
            self._members.add(member)

    def pub(self, topic: str) -> Pub:
        """The Pub of that topic that all share. Who has it no more says so by `dropped`."""
        pub = self._held(topic)
        if pub is None:
            with held(self._making):
                pub = self._held(topic)
                if pub is None:
                    made = Pub(topic, peer=self.peer, codec=VALUES)
                    with self._lock:
                        self._pubs.setdefault(topic, _Shared(made))
                        pub = self._held(topic)
                        assert pub is not None
        return pub

    def _held(self, topic: str) -> Pub | None:
        """The one that there is, held once more."""
        with self._lock:
            shared = self._pubs.get(topic)
            if shared is None:
                return None
            shared.holders += 1
            self._idle.pop(topic, None)
            return shared.pub

    def sub(self, topic: str, source: Source) -> Sub:
        """A Sub, for a source that is told where to go on. Whoever got an array of Dask's could
        write to it."""
        sub = Sub(topic, peer=self.peer, codec=VALUES, copy=True)
        with self._lock:
            self._sources.add(source)
        return sub

    def topics(self) -> dict[str, dict[str, int]]:
        """What this process has of each: ``publishers``, ``subscribers``, and messages ``lost``."""
        with self._lock:
            topics, sources = list(self._pubs), list(self._sources)
        found = {topic: {"publishers": 1, "subscribers": 0, "lost": 0} for topic in topics}
        for source in sources:
            if not source.ended:
                row = found.setdefault(source.topic, {"publishers": 0, "subscribers": 0, "lost": 0})
                row["subscribers"] += 1
                row["lost"] += source.lost
        return found

    def close(self) -> None:
        """Send what is due, and end. May be called again."""
        self._withdraw()
        self.dropped.put(None)
        self.peer.close()

    def _withdraw(self) -> None:
        """Nobody is given this any more."""
        with _lock:
            self.closed = True
            if _homes.get((os.getpid(), self.place.scheduler)) is self:
                del _homes[os.getpid(), self.place.scheduler]

    def close_if_unused(self, without: Any = None) -> None:
        """Close it, if no worker or client that lives has used it, but for that one, which ends."""
        with _lock:  # who is given it joins at once
            with self._lock:
                if without is not None:
                    self._members.discard(without)
                used = any(map(_alive, self._members))
            if not used:
                self._withdraw()
        if not used:
            self.close()

    def _keep(self) -> None:
        """The keeper's thread."""
        next_look = time.monotonic() + TICK
        while not self.closed:
            try:
                try:
                    self._release(self.dropped.get(timeout=max(0, next_look - time.monotonic())))
                except Empty:
                    pass
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + TICK
                    self._give_up_idle()
                    self._say_lost()
                    self._look()
            except Exception:
                if not self.closed:
                    log.exception("while the Peer of a Dask cluster was kept")

    def _release(self, dropped: Any) -> None:
        if not isinstance(dropped, str):
            if dropped is not None:
                dropped.close()
            return
        with self._lock:
            shared = self._pubs[dropped]
            shared.holders -= 1
            if shared.holders == 0:
                self._idle[dropped] = time.monotonic()

    def _give_up_idle(self) -> None:
        with self._lock:
            until = time.monotonic() - IDLE
            for topic in [topic for topic, since in list(self._idle.items()) if since <= until]:
                self._idle.pop(topic, None)
                if self._pubs[topic].holders == 0:
                    del self._pubs[topic]  # what is dropped sends what is due

    def _say_lost(self) -> None:
        """Tell of messages that were lost, at first and whenever they are twice as many: most who
        hold a Sub look at nothing but what it gives."""
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            lost = source.lost
            if lost > 2 * source.told:
                source.told = lost
                log.warning(
                    "a Sub of %r has lost %s so far: put faster than it took them, or not to be "
                    "decoded (sub.lost counts them)",
                    name_of(source.topic),
                    "1 message" if lost == 1 else f"{lost:,} messages",
                )

    def _look(self) -> None:
        """Whether anybody needs this, and whether the scheduler is another one."""
        with self._lock:
            members = [member for member in self._members if _alive(member)]
        if not members:
            self.close_if_unused()
        for member in members:
            if scheduler_id(member) not in ("", self.place.scheduler):
                try:
                    self.successor = successor = home_of(member)
                except PubSubError as error:  # not there yet, or without the plugin
                    log.debug("%s", error)
                    return
                with self._lock:
                    sources = list(self._sources)
                for source in sources:
                    source.move(successor)
                self.close()
                return


def _alive(member: Any) -> bool:
    if isinstance(member, Worker):
        return member.status not in (Status.closed, Status.failed)
    return member.status not in ("closing", "closed")


def _peer(place: Place, address: Address, member: Any) -> Peer:
    """The Peer of this process in that cluster, whose coordinator is reached at that address."""
    settings: dict[str, Any] = {"name": _name(member)}
    if isinstance(member, Worker) and not is_loopback(place.host):
        host = host_of(member.contact_address or member.address)
        if _is_ours(host):
            settings["host"] = host
        else:  # of something before this machine, that passes on what comes there
            settings.update(host="::" if ":" in host else "0.0.0.0", advertise=host)
    return Peer(
        str(address),
        key=place.key,
        **{"key_file": place.key_file} if place.key is None else {},
        **settings,
    )


def _name(member: Any) -> str:
    if isinstance(member, Worker):
        return f"dask worker {member.name} at {member.address}"
    return f"dask client {member.id}"


def _is_ours(host: str) -> bool:
    """Whether this machine has that address."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _reachable(place: Place, member: Any) -> Address:
    """Where the coordinator can be reached: at the host that all are told of, or at that by which
    this process reaches the scheduler.

    Raises:
        CoordinatorUnavailable: nowhere; with what is to be opened.
    """
    hosts = [place.host]
    if (dialled := host_of(member.scheduler.address)) not in ("", place.host):
        hosts.append(dialled)
    why = ""
    for host in hosts:
        try:
            socket.create_connection((host, place.port), TIMEOUT / 2 / len(hosts)).close()
        except OSError as error:
            why = why or f"{error.strerror or error}"
        else:
            return Address(host, place.port)
    relay = f", and {place.relay} for its relay" if place.relay else ""
    raise CoordinatorUnavailable(
        f"the coordinator of this Dask cluster at {place.host} port {place.port} cannot be reached "
        f"from here ({why}): messages do not pass over Dask's own connection. Open or forward to "
        f"{place.host} the port {place.port}{relay} (PubSubPlugin(port=…) fixes them), or use "
        "pubsub.dask in tasks only"
    )


def member_of(worker: Any = None, client: Any = None) -> Any:
    """The worker or client in whose cluster who calls takes part: that one, or the worker whose
    task this is, the current client, or a worker of this process, whose task began this thread.

    Raises:
        ValueError: there is none.
    """
    if (given := worker or client) is not None:
        return given
    try:
        return get_worker()
    except ValueError:
        pass
    try:
        return get_client()
    except ValueError:
        pass
    for known in workers():
        if _alive(known):
            return known
    raise ValueError(
        "no Dask worker or client here: make a Client first, or give one (client=, worker=)"
    )


def home_of(member: Any) -> Home:
    """The home of this process in the cluster of that worker or client.

    Raises:
        CoordinatorUnavailable: nobody says where the coordinator is, or it cannot be reached.
        WrongContext: this interrupts the making of one.
    """
    place = where(member)
    here = os.getpid(), place.scheduler
    if here not in _homes:
        address = _reachable(place, member)  # not under the lock: it may take seconds
    with held(_lock):
        home = _homes.get(here)
        if home is None:
            home = _homes[here] = Home(place, address, member)
        home.join(member)
    return home


def homes() -> list[Home]:
    """Those of this process."""
    with _lock:
        return [home for (pid, _), home in _homes.items() if pid == os.getpid()]


def leave(member: Any) -> None:
    """A worker or client ends: what it alone has used is closed."""
    for home in homes():
        home.close_if_unused(without=member)


def peer(worker: Any = None, client: Any = None) -> Peer:
    """The Peer of this process in its Dask cluster, for `pubsub.Pub` and `pubsub.Sub` with all that
    they can do: ``pubsub.Pub("topic", peer=pubsub.dask.peer(), overflow="block")``.

    Raises:
        ValueError: there is no worker or client here.
        CoordinatorUnavailable: nobody says where the coordinator is, or it cannot be reached.
    """
    return home_of(member_of(worker, client)).peer
