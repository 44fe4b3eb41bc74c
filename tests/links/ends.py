"""What is at the two ends of a link in its tests: a transport and an endpoint that take note."""

from __future__ import annotations

import asyncio
from typing import Any

from pubsub.errors import ProtocolError
from pubsub.links.link import Core, Link
from pubsub.wire.handshake import Other


class Transport(asyncio.Transport):
    """Reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closing = False
        self.written = b""
        self.protocol: Any = None
        """Who is told what comes, where it changes hands."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def hear(self, data: bytes) -> None:
        """Something comes for whoever has it now."""
        memoryview(self.protocol.get_buffer(-1))[: len(data)] = data
        self.protocol.buffer_updated(len(data))

    def write(self, data: Any) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closing = True

    abort = close


class Nobody:
    """An endpoint that has nothing to say, and its core."""

    def __init__(self) -> None:
        self.ends: list[Exception | None] = []
        self.welcome = asyncio.Event()

    def opened(self, link: Link, other: Other) -> Core:
        self.welcome.set()
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        self.ends.append(error)

    def receive(self, event: object) -> None:
        raise ProtocolError("nobody is here")

    def pump(self, budget: int) -> tuple[()]:
        return ()


def hear(link: Link, data: bytes) -> None:
    """Something comes."""
    memoryview(link.get_buffer(-1))[: len(data)] = data
    link.buffer_updated(len(data))


def lose(link: Link, error: Exception | None = None) -> None:
    """The connection is gone."""
    link.transport.closing = True
    link.connection_lost(error)
