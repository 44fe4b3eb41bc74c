"""``pubsub tail``: messages as lines on standard output, for as long as anybody wants them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pubsub import DecodeError, Gap, Peer
from pubsub.cli.command import OK, TIMED_OUT, Failure, end_signals, say
from pubsub.cli.formats import Formatter
from pubsub.cli.output import Output
from pubsub.core.topics import matches
from pubsub.sub import AsyncSub

__all__ = ["Wanted", "tail"]

LAST_LINES = 2.0
"""Seconds that there are at the end to show what has come, and for a reader to take it."""


@dataclass(frozen=True)
class Wanted:
    """What is to be shown, and for how long."""

    patterns: Sequence[str]
    coordinator: str | None = None
    count: int | None = None
    """End after so many messages."""
    timeout: float | None = None
    """End after so many seconds without a message."""
    history: int | Literal["all"] = 0
    form: str = "json"
    times: bool = False
    topics: bool = False
    allow_pickle: bool = False
    quiet: bool = False


async def tail(wanted: Wanted) -> int:
    """Show messages until something ends it; returns the exit code."""
    return await _Tail(wanted, sys.stdout.fileno()).run()


class _Tail:
    def __init__(self, wanted: Wanted, descriptor: int) -> None:
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = self._loop.create_future()
        self._output = Output(descriptor, self._output_ended)
        self._line = Formatter(wanted.form, times=wanted.times, topics=wanted.topics).line
        self._patterns = tuple(dict.fromkeys(wanted.patterns))
        self._first: dict[str, int] = {}
        self._received = 0
        self._lost = 0
        self._last = 0.0
        self._reader_gone = False
        self._held_back = 0  # Subs with more to show than the output takes
        self._caught_up = asyncio.Event()
        self._stopped_at = 0.0  # wall-clock time of a signal
        self._deadline = 0.0

    async def run(self) -> int:
        with end_signals(self._stop):
            peer = Peer(
                self._wanted.coordinator,
                name=f"pubsub tail {' '.join(self._patterns)}"[:80],
            )
            work = self._loop.create_task(self._work(peer))
            work.add_done_callback(self._failed)
            try:
                await asyncio.wait([self._end])
            finally:
                work.cancel()
                await asyncio.wait([work])
                left = self._deadline - self._loop.time() if self._stopped_at else LAST_LINES
                written = await self._output.drain(max(0.1, left))
                await peer.close(linger=0)
        code = self._end.result()
        if not self._reader_gone:
            if not written:
                say(f"the last lines could not be written within {LAST_LINES:g} s")
            if not self._wanted.quiet:
                say(f"received {self._received}, lost {self._lost}")
        return code

    async def _work(self, peer: Peer) -> None:
        wanted = self._wanted
        subs = [
            AsyncSub(
                pattern,
                peer=peer,
                history=wanted.history,
                observer=True,
                allow_pickle=wanted.allow_pickle,
            )
            for pattern in self._patterns
        ]
        for sub in subs:
            await sub
        self._last = self._loop.time()
        tasks = [asyncio.ensure_future(self._follow(sub, n)) for n, sub in enumerate(subs)]
        if wanted.timeout is not None:
            tasks.append(asyncio.ensure_future(self._watch(wanted.timeout)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, sub: AsyncSub, number: int) -> None:
        """Show what one Sub receives."""
        shared = len(self._patterns) > 1
        count = self._wanted.count
        while not self._end.done():
            try:
                async for event in sub.messages():
                    if shared and self._first_match(event.topic) != number:
                        continue  # another Sub of ours shows it
                    if isinstance(event, Gap):
                        self._show_gap(event)
                        continue
                    if 0 < self._stopped_at < event.sent_at:
                        return
                    full = self._output.write(self._line(event))
                    self._received += 1
                    self._last = self._loop.time()
                    if self._received == count:
                        self._finish(OK)
                        return
                    if full:
                        await self._room()
                        if self._end.done():
                            return
            except DecodeError as error:
                say(str(error))

    async def _room(self) -> None:
        self._held_back += 1
        self._caught_up.clear()
        await self._output.room()
        self._held_back -= 1
        if not self._held_back:
            self._caught_up.set()

    def _first_match(self, topic: str) -> int:
        """Which pattern shows a topic: the first one that matches, so that it is shown once."""
        first = self._first.get(topic)
        if first is None:
            if len(self._first) > 10_000:
                self._first.clear()
            first = next(n for n, p in enumerate(self._patterns) if matches(p, topic))
            self._first[topic] = first
        return first

    def _show_gap(self, gap: Gap) -> None:
        self._lost += gap.missed
        messages = "1 message" if gap.missed == 1 else f"{gap.missed} messages"
        say(f"lost {messages} of {gap.topic} from {gap.publisher} ({gap.reason})")

    async def _watch(self, timeout: float) -> None:
        """End after `timeout` seconds without a message."""
        left = timeout
        while left > 0:
            await asyncio.sleep(left)
            left = self._last + timeout - self._loop.time()
        self._finish(OK if self._wanted.count is None else TIMED_OUT)

    def _stop(self, code: int) -> None:
        """A signal: show what has come until now (whoever put it may think that we have it), and
        end."""
        self._stopped_at = time.time()
        self._deadline = self._loop.time() + LAST_LINES
        self._stopping = self._loop.create_task(self._run_out(code))

    async def _run_out(self, code: int) -> None:
        self._loop.call_at(self._deadline, self._finish, code)
        await asyncio.sleep(0)
        while self._held_back:
            await self._caught_up.wait()
        self._finish(code)

    def _failed(self, work: asyncio.Task[None]) -> None:
        """By itself the work ends only with an error."""
        error = None if work.cancelled() else work.exception()
        if error is not None and not self._end.done():
            self._end.set_exception(error)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _output_ended(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            self._reader_gone = True
            self._finish(OK)
        elif not self._end.done():
            self._end.set_exception(Failure(f"standard output: {error.strerror or error}"))
