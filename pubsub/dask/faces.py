"""Pub and Sub with the face that they had in Dask."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, NoReturn

from dask.utils import parse_timedelta
from distributed import Client, Worker

from pubsub import Closed, WrongContext
from pubsub import Pub as PlainPub
from pubsub.dask.homes import ENDED, home_of, member_of
from pubsub.dask.names import topic_of
from pubsub.dask.pump import Pump, Source

__all__ = ["Pub", "Sub"]

_running_loop = asyncio._get_running_loop

PATIENCE = 0.5
"""Seconds for which the making of a Sub may hold up an event loop."""


class _Face:
    """What both have."""

    def __init__(self, name: Any, worker: Worker | None, client: Client | None) -> None:
        member = member_of(worker, client)
        self.name = name
        self.worker = member if isinstance(member, Worker) else None
        self.client = None if self.worker is not None else member
        self._topic = topic_of(name)
        self._home = home_of(member)

    def __reduce__(self) -> NoReturn:  # else Dask would tell of the parts that cannot be pickled
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} belongs to its process and cannot be pickled or copied: hand on the name, "
            f"and make a {kind} in the task: {kind}({self.name!r})"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    __str__ = __repr__


class Pub(_Face):
    """Publishes in a Dask cluster: to all Subs of that name, in tasks, actors and clients.

    Parameters:
        name: any text, or what else msgpack carries.
        worker: default: the worker whose task this is.
        client: default: the current client.

    Raises:
        ValueError: there is no worker or client here.
        CoordinatorUnavailable: the cluster has no plugin, or it cannot be reached from here.

    Example:
        >>> from pubsub.dask import Pub  # doctest: +SKIP
        >>> Pub("progress").put({"epoch": 1})  # doctest: +SKIP
    """

    _pub: PlainPub

    def __init__(
        self, name: Any, worker: Worker | None = None, client: Client | None = None
    ) -> None:
        super().__init__(name, worker, client)
        self._pub = self._home.pub(self._topic)

    def put(self, msg: Any) -> None:
        """Publish a value. It is encoded now, and what is done to it later changes nothing.

        Raises:
            TypeError: it cannot be pickled.
            Closed: the cluster is.
        """
        while True:
            try:
                self._pub.put(msg)
                return
            except Closed:
                home = self._home.successor  # the scheduler was started anew: we go on there
                if home is None:
                    raise Closed(ENDED) from None
                self._pub = home.pub(self._topic)
                self._home = home  # not before we hold one of its Pubs, which we drop in the end

    @property
    def subscribers(self) -> dict[str, dict[str, Any]]:
        """The Subs that get this: address → how each stands; see `pubsub.Pub.subscribers`."""
        return self._pub.subscribers

    def __del__(self) -> None:
        if "_pub" in self.__dict__:
            self._home.dropped.put(self._topic)


class Sub(_Face):
    """Subscribes in a Dask cluster to all Pubs of that name.

    Made in a thread, it is ready when the constructor returns: what is put from then on arrives.
    Made where an event loop runs, it is ready soon; ``await sub.ready()`` waits for it.

    Parameters:
        name, worker, client: as with `Pub`.

    Raises:
        ValueError, CoordinatorUnavailable: as with `Pub`.

    Example:
        >>> from pubsub.dask import Sub  # doctest: +SKIP
        >>> for message in Sub("progress"):  # doctest: +SKIP
        ...     print(message)
    """

    def __init__(
        self, name: Any, worker: Worker | None = None, client: Client | None = None
    ) -> None:
        super().__init__(name, worker, client)
        self._source = Source(self._home, self._topic)
        self._pump: Pump | None = None
        if _running_loop() is None:
            self._source.open()
        else:
            self._pumped().opened.wait(PATIENCE)  # mostly some milliseconds

    def _pumped(self) -> Pump:
        if self._pump is None:
            with self._source.door:
                if self._pump is None:
                    self._pump = Pump(self._source)
        return self._pump

    def _awaits(self) -> bool:
        """Whether `get` is to be awaited here: where an event loop runs, but for a client that
        blocks (which a notebook has beside its loop)."""
        return _running_loop() is not None and (self.client is None or self.client.asynchronous)

    def get(self, timeout: float | str | timedelta | None = None) -> Any:
        """The next message. Where an event loop runs (an async client's, an async task's, a
        worker's), an awaitable of it; cancelled, it loses none.

        Parameters:
            timeout: seconds, or a text such as ``"100ms"``, or a timedelta; None: for ever.

        Raises:
            TimeoutError: nothing came; that of asyncio, of distributed and Python's own alike.
            DecodeError: a publisher's codec is not known here.
            Closed: the cluster is.
        """
        seconds = parse_timedelta(timeout)
        if self._awaits():
            return self._pumped().aget(seconds)
        if self._pump is None and _running_loop() is None:
            return self._source.get(seconds)
        return self._pumped().get(seconds)

    next = get

    def __next__(self) -> Any:
        try:
            return self.get()
        except Closed:
            raise StopIteration from None

    def __iter__(self) -> Sub:
        if (
            self._awaits()
        ):  # else it would be coroutines without end, and the loop would stand still
            raise WrongContext("in an event loop iterate a Sub by `async for`, not `for`")
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._pumped().aget(None)
        except Closed:
            raise StopAsyncIteration from None

    def __aiter__(self) -> Sub:
        return self

    async def ready(self) -> None:
        """Wait until whatever is put from now on arrives."""
        await self._pumped().ready()

    @property
    def buffer(self) -> Pump:
        """What waits here: it has a length, and ``clear()``."""
        return self._pumped()

    @property
    def lost(self) -> int:
        """Messages that were due to this Sub and will never come; see `pubsub.Sub.lost`."""
        return self._source.lost

    @property
    def publishers(self) -> dict[str, dict[str, Any]]:
        """The Pubs whose messages this gets; see `pubsub.Sub.publishers`."""
        return self._source.publishers

    def __del__(self) -> None:
        if "_source" in self.__dict__:
            self._source.drop()
