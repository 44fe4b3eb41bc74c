"""Watching: what a process tells of itself, to its program and to others, while somebody asks.

What is told is read from what the cores count anyway. Rates, what has stood still for how long,
and how late the loop is, are measured once somebody has asked, and until nobody has for
`ASKED` seconds. Others ask by subscribing the stream of stats that each peer has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgpack

from pubsub.core.publication import Publication
from pubsub.core.topics import STATS, STATS_STREAM
from pubsub.runtime import collecting
from pubsub.stats.rates import Lateness, Ring, Standing
from pubsub.stats.rows import Stats
from pubsub.support.apart import apart
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.wire.frames import array_header

if TYPE_CHECKING:
    from pubsub.runtime.runtime import Runtime

__all__ = ["Watching"]

log = logger("pubsub")

ASKED = 120.0
"""Seconds for which it is measured after somebody has asked."""
EVERY = 1.0
"""Seconds between two samples."""
LOOK = 0.05
"""Seconds between two looks at how late the loop is."""
AT_ONCE = 0.1
"""Seconds, at least, between two tellings: however many subscribe, and however often."""
BUFFER = 1024 * 1024
"""Bytes of stats that wait for somebody who takes them slowly."""


class Watching:
    """See the module. In the loop's thread, but for what says otherwise.

    Parameters:
        runtime: what is watched.

    Attributes:
        on: it is measured now.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = loop = runtime.loop
        self._made = loop.time()
        self._ring = Ring()
        self._standing = Standing()
        self._lateness = Lateness(round(60.0 / LOOK))
        self.on = False
        self._until = 0.0
        self._asked = False
        self._sampling: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._telling: Publication | None = None
        self._wall_clock: Callable[[], float] = this_host().wall_clock
        self._look_at = 0.0
        self._told_at = -AT_ONCE
        self._first: asyncio.TimerHandle | None = None
        self._closed = False

    # --- asking -------------------------------------------------------------------------

    def ask(self) -> Stats:
        """All of it, as it is now; it is measured from now on. May be called from any thread."""
        stats = self.stats()
        self._until = self._loop.time() + ASKED
        if self._sampling is None and not self._asked and not self._closed:
            self._asked = True  # once, however often, where the loop does not run
            try:
                self._loop.call_soon_threadsafe(self._begin)
            except RuntimeError:
                pass  # the loop is closed, and with it everything else
        return stats

    def stats(self) -> Stats:
        """All of it, as it is now, and nothing is begun in the loop, which may be a closed one. May
        be called from any thread."""
        now = self._loop.time()
        return collecting.stats(
            self._runtime,
            self._ring.lately(now),
            self._standing,
            self._lateness.stats(),
            wall=self._wall_clock(),
            age=now - self._made,
            watched=self._ring.since(now),
        )

    @apart
    def _begin(self) -> None:
        self._asked = False
        if self._sampling is None and not self._closed:
            self.on = True
            self._until = max(self._until, self._loop.time() + ASKED)
            self._sample()
            self._look_at = self._loop.time() + LOOK
            self._looking = self._loop.call_at(self._look_at, self._look)

    def _sample(self) -> None:
        now = self._loop.time()
        if self._telling is not None and self._telling.attached:
            self._until = now + ASKED
        if now > self._until:
            self._stop()
            return
        self._sampling = self._loop.call_later(EVERY, self._sample)  # whatever happens now
        counts, marks = collecting.counts(self._runtime)
        self._ring.note(now, counts)
        self._standing.look(now, marks)
        self._tell()

    def _look(self) -> None:
        now = self._loop.time()
        self._lateness.note(now - self._look_at)
        self._look_at = now + LOOK
        self._looking = self._loop.call_at(self._look_at, self._look)

    def _stop(self) -> None:
        for timer in (self._sampling, self._looking):
            if timer is not None:
                timer.cancel()
        self._sampling = self._looking = None
        self.on = False
        self._ring.clear()
        self._standing.look(0.0, {})
        self._lateness.clear()

    # --- telling others -----------------------------------------------------------------

    def stream(self) -> Publication | None:
        """The stream of stats; None: it is over."""
        if self._telling is None and not self._closed:
            runtime = self._runtime
            now = runtime.clock.now()
            made = self._telling = Publication(
                STATS_STREAM,
                STATS,
                buffer=BUFFER,
                join_timeout=0.0,
                resume_timeout=runtime.settings.resume_timeout,
                now=now,
                holding=runtime.subscribers.holding,
            )
            made.answered(now)
            made.settle()
            made.on_due = runtime.clock.arm
            made.watchers.append(self._subscribed)
        return self._telling

    def _subscribed(self) -> None:
        """Somebody is here: tell at once, and then each second."""
        if not self._closed and self._first is None:
            soon = max(0.0, self._told_at + AT_ONCE - self._loop.time())
            self._first = self._loop.call_later(soon, self._tell_first)

    def _tell_first(self) -> None:
        self._first = None
        if self._sampling is None:
            self._begin()  # which tells
        else:
            self._tell()

    def _tell(self) -> None:
        telling = self._telling
        if telling is None or not telling.attached or self._closed:
            return
        self._told_at = self._loop.time()
        try:
            body = array_header(1) + msgpack.packb(self.stats())
        except Exception:  # one of a program's own texts cannot be encoded, say
            log.exception("internal error while this process was to tell of itself")
            return
        telling.append(1, body, (), self._wall_clock())

    def close(self) -> None:
        """Tell nobody any more."""
        if not self._closed:
            self._closed = True
            self._stop()
            if self._first is not None:
                self._first.cancel()
            if self._telling is not None:
                self._telling.end("closed", "the Peer is closed")
