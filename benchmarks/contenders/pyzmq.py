"""ØMQ by pyzmq: PUB and SUB sockets, blocking and on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from benchmarks.contender import (
    ARRAYS,
    PUBSUB,
    AsyncContender,
    BlockingContender,
    Meeting,
)
from benchmarks.packing import join, packer, split, unpack
from benchmarks.workloads import WORKLOADS

__all__ = ["CONTENDERS"]

_THROUGHPUT = tuple(w.name for w in WORKLOADS if w.group == "throughput")
HWM = 10_000
"""Messages that a socket holds, where it does not drop."""


@cache
def _zmq() -> Any:
    import zmq

    return zmq


@cache
def _context(asynchronous: bool) -> Any:
    if not asynchronous:
        return _zmq().Context()
    import zmq.asyncio

    return zmq.asyncio.Context()


def _socket(name: str, asynchronous: bool, no_drop: bool, hwm: int | None) -> Any:
    zmq = _zmq()
    socket = _context(asynchronous).socket(getattr(zmq, name))
    socket.linger = 0
    if hwm is not None:
        socket.set_hwm(hwm)
    if name == "PUB" and no_drop:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
    if name == "SUB":
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    return socket


def _bind(socket: Any) -> str:
    socket.bind("tcp://127.0.0.1:*")
    endpoint: bytes = socket.getsockopt(_zmq().LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode()


# --- blocking ---------------------------------------------------------------------------


class _Publisher:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._pack = packer()

    def send_all(self, values: Sequence[Any]) -> None:
        send, pack = self._socket.send, self._pack
        for value in values:
            send(pack(value))

    def close(self) -> None:
        self._socket.close()


class _LargePublisher(_Publisher):
    def send_all(self, values: Sequence[Any]) -> None:
        send = self._socket.send_multipart
        for value in values:
            send(split(value), copy=False)


class _Topics(_Publisher):
    def __init__(self, socket: Any, topics: int) -> None:
        super().__init__(socket)
        self._names = [b"%d/" % i for i in range(topics)]

    def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        send, pack, names = self._socket.send, self._pack, self._names
        for topic, value in zip(topics, values, strict=True):
            send(names[topic] + pack(value))


class _Subscriber:
    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def drain(self) -> tuple[int, Any]:
        recv = self._socket.recv
        n, last = 0, None
        while value := unpack(recv()):
            n += 1
            last = value
        return n, last

    def each(self, note: Callable[[Any], object]) -> None:
        recv = self._socket.recv
        while value := unpack(recv()):
            note(value)

    def close(self) -> None:
        self._socket.close()


class _LargeSubscriber(_Subscriber):
    def drain(self) -> tuple[int, Any]:
        recv = self._socket.recv_multipart
        n, last = 0, None
        while True:
            head, body = recv(copy=False)
            value = join(head.bytes, body.buffer)
            if not value:
                return n, last
            n += 1
            last = value


class _TopicsSubscriber(_Subscriber):
    def drain(self) -> tuple[int, Any]:
        recv = self._socket.recv
        n, last = 0, None
        while value := unpack(recv().partition(b"/")[2]):
            n += 1
            last = value
        return n, last


class _Arrays:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.close = socket.close

    def send(self, array: Any) -> None:
        self._socket.send(array.copy(), copy=False)


class _ArraySubscriber:
    def __init__(self, socket: Any, shape: tuple[int, ...]) -> None:
        self._socket, self._shape = socket, shape
        self.close = socket.close

    def take(self) -> Any:
        import numpy as np

        return np.frombuffer(self._socket.recv(copy=False).buffer, np.uint8).reshape(self._shape)


class _Pair:
    def __init__(self, out: Any, into: Any) -> None:
        self._out, self._into = out, into
        self._pack = packer()

    def send(self, value: Any) -> None:
        self._out.send(self._pack(value))

    def receive(self) -> Any:
        return unpack(self._into.recv())

    def close(self) -> None:
        self._out.close()
        self._into.close()


class NoDrop(BlockingContender):
    """A full queue makes the publisher wait."""

    name = "pyzmq-nodrop"
    family = "pyzmq"
    title = "pyzmq blocking, no-drop"
    how = (
        f"PUB/SUB over TCP, `XPUB_NODROP`, SNDHWM and RCVHWM {HWM:,}; one frame a message, "
        "`socket.send(packer.pack(value))`, `unpackb(socket.recv())`; large ones: head and buffer "
        "as two frames, `copy=False` on both sides. Arrays on one host: SNDHWM and RCVHWM 4, "
        "`socket.send(array.copy(), copy=False)`, since the publisher goes on with its array."
    )
    packages = ("zmq",)
    groups = PUBSUB | ARRAYS | {"topics"}
    no_drop = True
    hwm: int | None = HWM

    def _socket(self, name: str, large: bool = False) -> Any:
        # so many large messages would be a queue without limit
        return _socket(name, False, self.no_drop, None if large else self.hwm)

    def open_publisher(self, meeting: Meeting) -> _Publisher:
        socket = self._socket("PUB", meeting.large)
        meeting.announce(_bind(socket))
        return _LargePublisher(socket) if meeting.large else _Publisher(socket)

    def open_subscriber(self, meeting: Meeting) -> _Subscriber:
        socket = self._socket("SUB", meeting.large)
        socket.connect(meeting.place)
        return _LargeSubscriber(socket) if meeting.large else _Subscriber(socket)

    def open_topics(self, meeting: Meeting) -> _Topics:
        socket = self._socket("PUB")
        meeting.announce(_bind(socket))
        return _Topics(socket, meeting.topics)

    def open_topics_subscriber(self, meeting: Meeting) -> _Subscriber:
        socket = self._socket("SUB")
        socket.connect(meeting.place)
        return _TopicsSubscriber(socket)

    def open_arrays(self, meeting: Meeting) -> _Arrays:
        socket = _socket("PUB", False, True, 4)
        meeting.announce(_bind(socket))
        return _Arrays(socket)

    def open_array_subscriber(self, meeting: Meeting) -> _ArraySubscriber:
        socket = _socket("SUB", False, True, 4)
        socket.connect(meeting.place)
        return _ArraySubscriber(socket, meeting.shape)

    def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        return _Pair(*_two(self._socket("PUB"), self._socket("SUB"), meeting, first))


def _two(out: Any, into: Any, meeting: Meeting, first: bool) -> tuple[Any, Any]:
    """Both sockets of one end; the first end binds both."""
    if first:
        meeting.announce(f"{_bind(out)} {_bind(into)}")
    else:
        theirs, mine = meeting.place.split()
        out.connect(mine)
        into.connect(theirs)
    return out, into


class Default(NoDrop):
    """A full queue drops."""

    name = "pyzmq-default"
    title = "pyzmq blocking"
    how = "the same with the defaults: queues of 1,000 messages, and what finds them full is lost."
    groups = frozenset(("throughput", "fan-out"))
    # not with 32 subscribers: what takes long, and loses messages every time, shows nothing new
    workloads = frozenset((*_THROUGHPUT, "fan-out-1", "fan-out-8"))
    lossy = True
    no_drop = False
    hwm = None


# --- asyncio ----------------------------------------------------------------------------


async def _send_later(send: Callable[..., Any], *message: Any, **how: Any) -> None:
    """A PUB socket always polls as writable, so that `zmq.asyncio` cannot wait for room where
    nothing is to be dropped: it raises `Again`."""
    again = _zmq().Again
    while True:
        try:
            await send(*message, **how)
            return
        except again:
            await asyncio.sleep(0.001)


class _AsyncPublisher:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._pack = packer()

    async def send_all(self, values: Sequence[Any]) -> None:
        send, pack, again = self._socket.send, self._pack, _zmq().Again
        for value in values:
            data = pack(value)
            try:
                await send(data)
            except again:
                await _send_later(send, data)

    async def close(self) -> None:
        self._socket.close()


class _AsyncLargePublisher(_AsyncPublisher):
    async def send_all(self, values: Sequence[Any]) -> None:
        send = self._socket.send_multipart
        for value in values:
            await _send_later(send, split(value), copy=False)


class _AsyncSubscriber:
    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def drain(self) -> tuple[int, Any]:
        recv = self._socket.recv
        n, last = 0, None
        while value := unpack(await recv()):
            n += 1
            last = value
        return n, last

    async def each(self, note: Callable[[Any], object]) -> None:
        recv = self._socket.recv
        while value := unpack(await recv()):
            note(value)

    async def close(self) -> None:
        self._socket.close()


class _AsyncLargeSubscriber(_AsyncSubscriber):
    async def drain(self) -> tuple[int, Any]:
        recv = self._socket.recv_multipart
        n, last = 0, None
        while True:
            head, body = await recv(copy=False)
            value = join(head.bytes, body.buffer)
            if not value:
                return n, last
            n += 1
            last = value


class _EagerPublisher(_AsyncPublisher):
    """Sends without waiting as long as that goes."""

    async def send_all(self, values: Sequence[Any]) -> None:
        zmq = _zmq()
        send, pack = zmq.Socket.shadow(self._socket).send, self._pack
        no_wait, again = zmq.NOBLOCK, zmq.Again
        for value in values:
            data = pack(value)
            try:
                send(data, no_wait)
            except again:
                await _send_later(self._socket.send, data)


class _EagerSubscriber(_AsyncSubscriber):
    """Takes all that is there before it waits."""

    async def drain(self) -> tuple[int, Any]:
        zmq = _zmq()
        recv = zmq.Socket.shadow(self._socket).recv
        no_wait, again = zmq.NOBLOCK, zmq.Again
        n, last = 0, None
        while True:
            try:
                value = unpack(recv(no_wait))
            except again:
                value = unpack(await self._socket.recv())
            if not value:
                return n, last
            n += 1
            last = value


class _AsyncPair:
    def __init__(self, out: Any, into: Any) -> None:
        self._out, self._into = out, into
        self._pack = packer()

    async def send(self, value: Any) -> None:
        await self._out.send(self._pack(value))

    async def receive(self) -> Any:
        return unpack(await self._into.recv())

    async def close(self) -> None:
        self._out.close()
        self._into.close()


class Asyncio(AsyncContender):
    """`zmq.asyncio`."""

    name = "pyzmq-asyncio"
    family = "pyzmq"
    title = "pyzmq asyncio on uvloop, no-drop"
    how = (
        "as blocking, no-drop, with `zmq.asyncio`: `await socket.send(…)`, again after 1 ms where "
        "the queue is full; `await socket.recv()`."
    )
    packages = ("zmq", "uvloop")

    def _socket(self, name: str, large: bool = False) -> Any:
        return _socket(name, True, True, None if large else HWM)

    async def open_publisher(self, meeting: Meeting) -> _AsyncPublisher:
        socket = self._socket("PUB", meeting.large)
        meeting.announce(_bind(socket))
        return _AsyncLargePublisher(socket) if meeting.large else _AsyncPublisher(socket)

    async def open_subscriber(self, meeting: Meeting) -> _AsyncSubscriber:
        socket = self._socket("SUB", meeting.large)
        socket.connect(meeting.place)
        return _AsyncLargeSubscriber(socket) if meeting.large else _AsyncSubscriber(socket)

    async def open_pair(self, meeting: Meeting, first: bool) -> _AsyncPair:
        return _AsyncPair(*_two(self._socket("PUB"), self._socket("SUB"), meeting, first))


class Eager(Asyncio):
    """`zmq.asyncio`, but only to wait."""

    name = "pyzmq-eager"
    title = "pyzmq asyncio, drained by hand"
    how = (
        "the same, but `zmq.asyncio` only where there is nothing to take, or no room: else a plain "
        "`Socket.shadow` of the socket with `NOBLOCK`."
    )
    groups = frozenset(("throughput", "fan-out"))
    workloads = frozenset(("small-dict", "int", "1-kib", "fan-out-1", "fan-out-8", "fan-out-32"))

    async def open_publisher(self, meeting: Meeting) -> _AsyncPublisher:
        socket = self._socket("PUB")
        meeting.announce(_bind(socket))
        return _EagerPublisher(socket)

    async def open_subscriber(self, meeting: Meeting) -> _AsyncSubscriber:
        socket = self._socket("SUB")
        socket.connect(meeting.place)
        return _EagerSubscriber(socket)


CONTENDERS = (Default(), NoDrop(), Asyncio(), Eager())
