"""A clock and a transport for a real link, which fail where it asks of them what none would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pubsub.links.link import Link

__all__ = ["Clock", "Transport"]


class Timer:
    """One of `Clock`."""

    def __init__(self, at: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at = at
        self.call = call
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """As much of a loop as a link needs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(at, call, args))
        return self.timers[-1]

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> Timer:
        return self.call_at(self.now + delay, call, *args)

    def call_soon(self, call: Callable[..., None], *args: Any) -> Timer:
        return self.call_at(self.now, call, *args)

    def set(self) -> list[Timer]:
        """Those whose time is still to come, the next one first."""
        self.timers = [timer for timer in self.timers if not timer.cancelled]
        self.timers.sort(key=lambda timer: timer.at)
        return self.timers

    def run(self, until: float) -> None:
        """Let time pass."""
        while self.set() and self.timers[0].at <= until:
            timer = self.timers.pop(0)
            self.now = max(self.now, timer.at)
            timer.call(*timer.args)
        self.now = until


class Transport:
    """A transport that holds the link to what transports demand of it, and keeps what it wrote."""

    def __init__(self, loop: Clock) -> None:
        self.loop = loop
        self.link: Link
        self.written = bytearray()
        self.stuck = False
        self.waiting = 0
        self.paused = self.closing = self.lost = self.eof = False
        self.reading = True

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, chunk: bytes) -> None:
        assert not self.eof, "a write behind the end of file"
        assert not self.closing, "a write on a transport that is closing"
        self.written += chunk
        if self.stuck:
            self.waiting += len(chunk)
            if self.waiting > self.high and not self.paused:
                self.paused = True
                self.link.pause_writing()

    def writelines(self, chunks: list[bytes]) -> None:
        self.write(b"".join(chunks))

    def unstick(self) -> None:
        """The other end reads."""
        self.stuck = False
        self.waiting = 0
        if self.paused and not self.lost:
            self.paused = False
            self.link.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.closing
        self.eof = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.reading = False
            if not self.waiting:
                self.loop.call_soon(self.lose)

    def abort(self) -> None:
        self.closing = True
        self.reading = False
        self.loop.call_soon(self.lose)

    def lose(self, error: Exception | None = None) -> None:
        self.closing = True
        self.reading = False
        if not self.lost:
            self.lost = True
            self.link.connection_lost(error)

    def pause_reading(self) -> None:
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return None
