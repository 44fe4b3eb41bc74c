"""The machine's own limit: blocking TCP sockets on loopback, and next to nothing around them.

Throughput is that of blocks of many messages, made once and sent again and again; nothing is
serialised, and what comes is counted, not taken apart. A round trip is one `send` and one `recv`
on each side, with the message packed and unpacked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgpack

from benchmarks.contender import BlockingContender, Kind, Meeting

__all__ = ["CONTENDERS", "Publisher", "Sockets", "Subscriber"]


class Publisher:
    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections = connections
        self._values: Sequence[bytes] = ()
        self._block = b""

    def send_all(self, values: Sequence[bytes]) -> None:
        if not self._block or values != self._values:
            body = b"".join(values)
            count = len(values) if body else 0
            self._values = values
            self._block = len(body).to_bytes(8, "big") + count.to_bytes(4, "big") + body
        for connection in self._connections:
            connection.sendall(self._block)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class Subscriber:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._head = memoryview(bytearray(12))
        self._body = memoryview(bytearray(1024 * 1024))

    def drain(self) -> tuple[int, Any]:
        n, size, end = 0, 0, 0
        while True:
            self._read(self._head)
            count = int.from_bytes(self._head[8:], "big")
            if not count:
                return n, bytes(self._body[end - size : end])
            end = int.from_bytes(self._head[:8], "big")
            if end > len(self._body):
                self._body = memoryview(bytearray(end))
            self._read(self._body[:end])
            n += count
            size = end // count

    def each(self, note: Callable[[Any], object]) -> None:
        raise NotImplementedError("blocks are not taken apart")

    def _read(self, into: memoryview) -> None:
        while into:
            count = self._connection.recv_into(into)
            if not count:
                raise EOFError("the publisher is gone")
            into = into[count:]

    def close(self) -> None:
        self._connection.close()


class _Pair:
    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._pack = msgpack.Packer().pack
        self._rest = b""

    def send(self, value: Any) -> None:
        data = self._pack(value)
        self._connection.sendall(bytes((len(data),)) + data)

    def receive(self) -> Any:
        data = self._rest or self._connection.recv(256)
        if not data:
            raise EOFError("the other end is gone")
        end = 1 + data[0]
        self._rest = data[end:]
        return msgpack.unpackb(data[1:end])

    def close(self) -> None:
        self._connection.close()


class Sockets(BlockingContender):
    """One TCP connection for each subscriber; a round trip uses both directions of one."""

    name = "sockets"
    title = "raw blocking sockets"
    how = (
        "blocking TCP sockets. Throughput: `sendall` of one block of 256 messages again and again "
        "(of large ones: 1 MiB, or one), nothing serialised; bytes counted by `recv_into`. Round "
        "trip: `sendall` and `recv`, packed by msgpack."
    )
    kind: ClassVar[Kind] = "ceiling"
    workloads = frozenset(("1-kib", "64-kib", "8-mib", "round-trip"))

    def open_publisher(self, meeting: Meeting) -> Publisher:
        return Publisher(_accept(meeting))

    def open_subscriber(self, meeting: Meeting) -> Subscriber:
        return Subscriber(_connect(meeting))

    def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        return _Pair(_accept(meeting)[0] if first else _connect(meeting))


def _accept(meeting: Meeting) -> list[socket.socket]:
    """The connections of all subscribers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meeting.announce(str(listener.getsockname()[1]))
        return [listener.accept()[0] for _ in range(meeting.subscribers)]


def _connect(meeting: Meeting) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(meeting.place)))


CONTENDERS = (Sockets(),)
