"""Liveness: when to ask the other end for life, when to call it dead, when to dial again."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

__all__ = ["HEARTBEAT_TOKEN", "Backoff", "Heartbeat", "Pulse"]

HEARTBEAT_TOKEN = 0
"""The token of PINGs that only ask for life; all others ask whether data arrived."""
STABLE = 0.1
"""Seconds after which a connection counts as one that works."""


class Pulse(Enum):
    """What a heartbeat's tick says to do."""

    NOTHING = "nothing"
    PING = "ping"
    DEAD = "dead"


class Heartbeat:
    """Counts ticks in which nothing came, and says when to PING.

    Every `interval` has its PING, also where much comes: the other side may hear nothing else from
    us, as while one large message takes longer than `timeout` to arrive and nothing can be
    acknowledged. (Its own PING would wait behind that message.)

    It counts ticks, not seconds since the last byte: after this process was stopped or its loop
    was held up, bytes that wait in the socket are read before enough ticks have passed, so a
    pause on our side never makes the other side look dead.

    Parameters:
        interval: seconds between two PINGs.
        timeout: seconds of silence before the connection is dead.

    Attributes:
        silent: ticks since something came; set to 0 whenever something does.
    """

    TICKS = 5

    def __init__(self, interval: float, timeout: float) -> None:
        self.tick_every = min(interval, timeout / self.TICKS)
        self._ping_at = max(1, round(interval / self.tick_every))
        self._dead_at = max(self._ping_at + 1, round(timeout / self.tick_every))
        self.silent = 0
        self._unasked = 0  # ticks since the last PING

    def tick(self) -> Pulse:
        """`tick_every` seconds have passed."""
        self.silent += 1
        self._unasked += 1
        if self.silent >= self._dead_at:
            return Pulse.DEAD
        if self._unasked >= self._ping_at:
            self._unasked = 0
            return Pulse.PING
        return Pulse.NOTHING


class Backoff:
    """Growing, jittered delays between attempts.

    Parameters:
        first, most: seconds of the first and of the longest delay, before jitter.
        random: a source of numbers in [0, 1).
    """

    def __init__(self, random: Callable[[], float], first: float = 0.05, most: float = 2.0) -> None:
        self._random = random
        self._first = first
        self._most = most
        self._attempts = 0

    def lived(self, seconds: float) -> bool:
        """A connection has ended after so long. Returns whether it was a stable one, after which
        the delays begin anew; one that opens and breaks at once is dialled with growing ones."""
        stable = seconds >= STABLE
        if stable:
            self._attempts = 0
        return stable

    def delay(self) -> float:
        """Seconds to wait now: between half and all of a delay that doubles each time."""
        longest = min(self._most, self._first * 2.0**self._attempts)
        if longest < self._most:
            self._attempts += 1
        return longest * (0.5 + 0.5 * self._random())
