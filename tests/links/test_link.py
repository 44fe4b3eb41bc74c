"""A link's own part in what it reads, on a transport that only takes note."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pubsub.config import Settings
from pubsub.links.link import READ_TURN, Core, Link
from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import Other


class Transport(asyncio.Transport):
    """Reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closing = False

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


class Nobody:
    """An endpoint that nothing comes to."""

    def opened(self, link: Link, other: Other) -> Core:
        raise NotImplementedError

    def closed(self, link: Link, error: Exception | None) -> None:
        raise NotImplementedError


@pytest.fixture
async def link(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(FrameReader, "received", lambda self, size: ())
    link = Link(asyncio.get_running_loop(), None, Nobody(), Settings(), bytearray(100))
    link.connection_made(Transport())
    yield link
    assert link._timer is not None
    link._timer.cancel()


async def test_who_reads_much_lets_the_loop_run_and_reads_on(link: Link) -> None:
    for _ in range(3):
        link.buffer_updated(READ_TURN // 2)
        assert link.transport.reading
        link.buffer_updated(READ_TURN // 2)
        assert not link.transport.reading
        await asyncio.sleep(0)
        assert link.transport.reading


async def test_reading_on_is_not_in_the_way_of_those_who_stop_it(link: Link) -> None:
    link.buffer_updated(READ_TURN)
    link.transport.reading = True  # a transport takes two pauses for one
    link.listen(False)
    await asyncio.sleep(0)
    assert not link.transport.reading
    link.listen(True)
    assert link.transport.reading
    link.buffer_updated(READ_TURN)
    link.transport.closing = True
    await asyncio.sleep(0)
    assert not link.transport.reading
    link.buffer_updated(READ_TURN)


async def test_who_is_not_listened_to_is_not_taken_for_dead(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator with much to do does not read on: that is no fault of the other end."""
    lost: list[bool] = []
    monkeypatch.setattr(link, "abort", lambda: lost.append(True))
    monkeypatch.setattr(link, "_send", lambda message: None)
    link.listen(False)
    for _ in range(3 * link._heartbeat.TICKS):
        link._tick()
    assert not lost
    link.listen(True)
    for _ in range(2 * link._heartbeat.TICKS):
        link._tick()
    assert lost
