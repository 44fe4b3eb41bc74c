"""What brings pubsubd into a Dask cluster: a plugin of the scheduler, or a preload.

It starts the coordinator and the relay, hands workers their place by a plugin of theirs, and tells
clients by a handler of the scheduler's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from typing import Any

import dask
import psutil
from distributed import Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from distributed.protocol.pickle import dumps

from pubsub import Coordinator, new_key
from pubsub.config import is_loopback, is_wildcard
from pubsub.dask.homes import homes, leave
from pubsub.dask.names import key_of
from pubsub.dask.places import OP, Place, aside, host_of, learn, unlearn

__all__ = ["PubSubPlugin", "dask_setup", "dask_teardown", "info"]

log = logging.getLogger("pubsub.dask")

NAME = "pubsub"
CLEAR = ("tcp", "ws", "ucx", "ucxx")
"""Protocols of Dask's that hide nothing from who can read the network."""


class PubSubPlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Brings `pubsub.dask.Pub` and `Sub` into a cluster, and takes them down with it.

    Registering it again, from another client or with another version, changes nothing.

    Parameters:
        port: where the coordinator listens, on the scheduler's host; 0, the default: any free one.
        key_file: a file with a key (``pubsubd key new``), at this path on every machine. Without
            it, one is made, and handed out over Dask's own connections.
        relay: the port of a relay, for clients that can reach the scheduler's machine alone. True,
            the default where the scheduler can be reached from other machines: the one above
            `port`, or any free one. False: none.
        advertise: the host by which others dial the scheduler's machine; default: the one that
            workers are told.

    What is not given is taken from Dask's configuration (``pubsub.port`` and so on, or
    ``DASK_PUBSUB__PORT``), which is how a preload is told.

    Example:
        >>> client.register_plugin(PubSubPlugin())  # doctest: +SKIP
    """

    name = NAME
    idempotent = True

    def __init__(
        self,
        port: int | None = None,
        *,
        key_file: str | None = None,
        relay: bool | int | None = None,
        advertise: str | None = None,
    ) -> None:
        given = {"port": port, "key_file": key_file, "relay": relay, "advertise": advertise}
        self.options = {name: value for name, value in given.items() if value is not None}
        self._scheduler: Any = None

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = weakref.ref(scheduler)
        running = _running.get(scheduler)
        if running is None:
            running = _running[scheduler] = Running(scheduler, self.options)
        try:
            await asyncio.shield(running.started)  # by whoever came first
        except BaseException:
            if running.started.done() and _running.get(scheduler) is running:
                del _running[scheduler]  # so that the next one tries anew
            raise

    async def close(self) -> None:
        scheduler = None if self._scheduler is None else self._scheduler()
        running = _running.pop(scheduler, None) if scheduler is not None else None
        if running is not None:
            await running.close()


class Running:
    """What runs beside a scheduler."""

    def __init__(self, scheduler: Scheduler, options: dict[str, Any]) -> None:
        self.coordinator: Coordinator | None = None
        self.place: Place | None = None
        self.started = asyncio.ensure_future(self._begin(scheduler, options))

    async def _begin(self, scheduler: Scheduler, options: dict[str, Any]) -> None:
        try:
            await self._start(scheduler, options)
        except BaseException:
            scheduler.worker_plugins.pop(NAME, None)
            await self.close()
            raise

    async def _start(self, scheduler: Scheduler, options: dict[str, Any]) -> None:
        def option(name: str, default: Any) -> Any:
            return options.get(name, dask.config.get(f"pubsub.{name}", default))

        host, listening = host_of(scheduler.address), host_of(scheduler.listen_address)
        if not host:  # all of it is in this process
            host = listening = "127.0.0.1"
        hosts = [host]
        if is_wildcard(listening) and is_loopback(
            host
        ):  # Dask finds none, where no route leads out
            hosts = _addresses() or hosts
        here_alone = is_loopback(listening)
        port, key_file = _port("port", option("port", 0)), option("key_file", None)
        relay = option("relay", not here_alone)
        if relay is True:
            relay = port + 1 if port else 0
        advertised = option("advertise", None) or ",".join(hosts[:7])
        key = new_key() if key_file is None else None
        trust: dict[str, Any] = {"key": key} if key_file is None else {"key_file": key_file}
        if relay is not False:
            trust.update(relay=_port("relay", relay), advertise=advertised)
        self.coordinator = await aside(lambda: Coordinator(listening or "0.0.0.0", port, **trust))
        place = self.place = Place(
            scheduler.id, advertised.split(",")[0], self.coordinator.port, key, key_file
        )
        if key is not None and not here_alone and scheduler.address.split(":")[0] in CLEAR:
            log.warning(
                "the key of pubsub.dask's connections goes to workers and clients over Dask's own, "
                "which are not encrypted (%s): who can read that network can take part. Use Dask's "
                "TLS, or give PubSubPlugin(key_file=…)",
                scheduler.address,
            )
        learn(place)
        scheduler.handlers[OP] = self.where
        try:
            answers = await scheduler.register_worker_plugin(
                comm=None, plugin=dumps(Introduction(place._asdict())), name=NAME, idempotent=False
            )
        except OSError as error:  # of a worker that goes at this moment; the others ask
            log.warning("not all workers could be told of pubsub.dask: %s", error)
        except Exception as error:  # what a worker raised, of which Dask says no more than its text
            raise RuntimeError(
                f"a worker does not take the plugin of pubsub.dask ({error}): install "
                "pubsubd[dask] on all workers"
            ) from error
        else:
            for worker, answer in answers.items():
                if answer.get("status") != "OK":
                    log.warning("the worker %s does not take the plugin of pubsub.dask", worker)
        log.info("pubsub.dask: its coordinator is at %s port %d", place.host, place.port)

    def _relays(self) -> list[dict[str, Any]]:
        assert self.coordinator is not None
        return self.coordinator.relays()

    async def where(self) -> dict[str, Any]:
        """What a scheduler answers to `OP`."""
        assert self.place is not None
        relays = await aside(self._relays)
        ports = [int(row["address"].rpartition(":")[2]) for row in relays]
        return {"coordinator": self.place._replace(relay=max(ports, default=0))._asdict()}

    async def close(self) -> None:
        if asyncio.current_task() is not self.started:
            self.started.cancel()
        if self.place is not None:
            unlearn(self.place)
        for home in homes():
            if self.place is not None and home.place.scheduler == self.place.scheduler:
                await aside(home.close)
        if self.coordinator is not None:
            await aside(self.coordinator.close)


def _port(option: str, given: Any) -> int:
    """What was given to the plugin, or stands in Dask's configuration."""
    try:
        return int(given)
    except (TypeError, ValueError):
        raise ValueError(
            f"{option} {given!r} of PubSubPlugin (or pubsub.{option} in Dask's configuration) is "
            "no port: give a number, 0 for any free one"
        ) from None


def _addresses() -> list[str]:
    """Those of this machine that others may dial."""
    found = [address for each in psutil.net_if_addrs().values() for address in each]
    texts = [each.address for each in found if each.family in (socket.AF_INET, socket.AF_INET6)]
    return [text for text in texts if not is_loopback(text) and not text.startswith("fe80:")]


_running: weakref.WeakKeyDictionary[Any, Running] = weakref.WeakKeyDictionary()


class Introduction(WorkerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Tells a worker where the coordinator is, and ends what it used when it ends."""

    name = NAME

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place  # as a dict: a worker's version may have other fields

    def setup(self, worker: Worker) -> None:
        learn(Place.of(self.place), worker)

    async def teardown(self, worker: Worker) -> None:
        await aside(lambda: leave(worker))


async def dask_setup(server: Any) -> None:
    """``--preload pubsub.dask``: a scheduler has the plugin, and a worker hears from it."""
    if isinstance(server, Scheduler):
        plugin = PubSubPlugin()
        await plugin.start(server)
        server.add_plugin(plugin, name=NAME, idempotent=True)


async def dask_teardown(server: Any) -> None:
    """What a worker alone has used is closed with it; a scheduler closes its plugins itself."""
    if isinstance(server, Worker):
        await aside(lambda: leave(server))


def info(dask_scheduler: Any = None) -> dict[str, Any]:
    """What there is: ``client.run_on_scheduler(info)`` tells of the cluster, ``client.run(info)``
    of each worker's process, and ``info()`` of this one.

    Returns:
        a dict with ``coordinator`` (``host:port``; of a process: those that it uses), ``topics``
        (of each name, how many ``publishers`` and ``subscribers`` there are; the Pubs of one name
        in one process are one), and ``peers`` and ``relays`` of the cluster, or ``lost`` of the
        process: messages that its Subs were due and will never get, of each topic and in all.
    """
    running = None if dask_scheduler is None else _running.get(dask_scheduler)
    if running is None or running.coordinator is None or running.place is None:
        topics = {key_of(topic): row for home in homes() for topic, row in home.topics().items()}
        return {
            "coordinator": ",".join(str(home.place.address) for home in homes()),
            "topics": topics,
            "lost": sum(row["lost"] for row in topics.values()),
        }
    return {
        "coordinator": str(running.place.address),
        "topics": {key_of(row.pop("topic")): row for row in running.coordinator.topics()},
        "peers": running.coordinator.peers(),
        "relays": running.coordinator.relays(),
    }
