"""Where the coordinator of a cluster is: known in this process, or asked of the scheduler.

The scheduler is asked over a connection of Dask's own kind, with the credentials of who asks, from
a thread and loop made for that: never in the caller's loop, which may be the one that would answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from distributed import Client, Scheduler, Worker
from distributed.comm import connect, get_address_host
from distributed.utils import TimeoutError as DaskTimeoutError

from pubsub.config import Address
from pubsub.errors import CoordinatorUnavailable, WrongContext

__all__ = [
    "OP",
    "TIMEOUT",
    "Place",
    "aside",
    "held",
    "in_thread",
    "learn",
    "unlearn",
    "where",
    "workers",
]

log = logging.getLogger("pubsub.dask")

OP = "pubsub_where"
"""What the scheduler is asked."""
TIMEOUT = 5.0
"""Seconds for the answer, and for the connection to what it names."""

THREAD = "pubsub.dask"
"""The name of threads that are made for one call."""

T = TypeVar("T")


class Place(NamedTuple):
    """What a Peer needs to take part.

    Attributes:
        scheduler: the id of the scheduler beside which it is; a restarted one has another.
        host: how others reach the coordinator's machine.
        port: where it listens.
        key: the key itself; None: each reads it in `key_file`.
        key_file: a path that is valid on every machine.
        relay: the port of the relay; 0: there is none.
    """

    scheduler: str
    host: str
    port: int
    key: str | None
    key_file: str | None
    relay: int = 0

    def __repr__(self) -> str:
        return f"<Place of {self.scheduler}: {self.host} port {self.port}>"  # never the key

    @property
    def address(self) -> Address:
        """The coordinator's."""
        return Address(self.host, self.port)

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Place:
        """What a scheduler said. One of another version may say more."""
        return cls(**{name: answer[name] for name in cls._fields if name in answer})


_known: dict[str, Place] = {}  # by the scheduler's id: the last that were heard of
_of_workers: weakref.WeakKeyDictionary[Any, Place] = weakref.WeakKeyDictionary()


def learn(place: Place, worker: Any = None) -> None:
    """Remember it, from the plugin of the scheduler or of a worker of this process."""
    _known[place.scheduler] = place
    while len(_known) > 16:  # a process that outlives many clusters
        _known.pop(next(iter(_known)), None)
    if worker is not None:
        _of_workers[worker] = place


def workers() -> list[Any]:
    """Those of this process that know their place."""
    return list(_of_workers)


def unlearn(place: Place) -> None:
    """Its cluster is gone."""
    _known.pop(place.scheduler, None)


def scheduler_id(member: Any) -> str:
    """The id of the scheduler that a client is connected to; empty: not known. A worker ends with
    its scheduler, and a client goes on with another one at the same address."""
    if isinstance(member, Client):
        return str(member._scheduler_identity.get("id", ""))
    return ""


def where(member: Any) -> Place:
    """Where the coordinator is, for a worker or client.

    Raises:
        CoordinatorUnavailable: nobody says so; with what is missing.
    """
    if isinstance(member, Worker):
        if (place := _of_workers.get(member)) is not None:
            return place
    elif (place := _known.get(scheduler_id(member))) is not None:
        return place
    address = _scheduler_address(member)
    for scheduler in list(Scheduler._instances):
        if scheduler.address_safe == address:  # asked, it might wait for us
            if (place := _known.get(scheduler.id)) is None:
                raise _unregistered(address)
            return place
    place = in_thread(lambda: asyncio.run(_ask(address, member)))
    learn(place, member if isinstance(member, Worker) else None)
    return place


def _scheduler_address(member: Any) -> str:
    scheduler = member.scheduler
    if scheduler is None:
        raise CoordinatorUnavailable(f"{member!r} is not connected to a scheduler")
    return str(scheduler.address)


async def _ask(address: str, member: Any) -> Place:
    """Ask the scheduler. One that does not know the question answers with None."""
    role = "worker" if isinstance(member, Worker) else "client"
    try:
        answer = await asyncio.wait_for(
            _said(address, member.security.get_connection_args(role)), TIMEOUT
        )
    except (TimeoutError, asyncio.TimeoutError, DaskTimeoutError, OSError) as error:
        raise CoordinatorUnavailable(
            f"the scheduler at {address} does not say within {TIMEOUT:g} s where the coordinator "
            f"of pubsub.dask is ({error or type(error).__name__})"
        ) from None
    if not isinstance(answer, dict) or "coordinator" not in answer:
        raise _unregistered(address)
    found: dict[str, Any] = answer["coordinator"]
    return Place.of(found)


async def _said(address: str, connection_args: dict[str, Any]) -> Any:
    comm = await connect(address, timeout=TIMEOUT, **connection_args)
    try:
        await comm.write({"op": OP, "reply": True})
        return await comm.read()
    finally:
        comm.abort()


def _unregistered(address: str) -> CoordinatorUnavailable:
    return CoordinatorUnavailable(
        f"the scheduler at {address} has no PubSubPlugin: register it once, by "
        "client.register_plugin(pubsub.dask.PubSubPlugin()), or start the scheduler with --preload "
        "pubsub.dask"
    )


def host_of(address: str) -> str:
    """The host of an address of Dask's; empty: it has none, and is within this process."""
    return "" if address.startswith("inproc://") else str(get_address_host(address))


def in_thread(call: Callable[[], T]) -> T:
    """Call it in a thread of its own, in which no event loop runs, and wait for it."""
    return _begun(call).result()


async def aside(call: Callable[[], T]) -> T:
    """The same for an event loop, which runs on. (Of the loop's own threads there are none any
    more when a cluster is closed by the end of Python.)"""
    return await asyncio.wrap_future(_begun(call))


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Hold it. Code that runs unasked in such a thread, or in that of a Peer, a destructor's, is
    refused where it would wait for another thread, which may wait for this one."""
    if not lock.acquire(blocking=False):
        if threading.current_thread().name in (THREAD, "pubsub"):
            raise WrongContext(
                "a Pub or Sub of pubsub.dask cannot be made here, in the middle of the making of "
                "another one (by a destructor, say): have it noted here, and made outside"
            )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _begun(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()  # who gives up waiting does not end it
    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return future
