"""``pubsub tail``: messages as lines on standard output, for as long as anybody wants them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pubsub import DecodeError, Gap, Message, Peer
from pubsub.cli.command import (
    FAILED,
    OK,
    TIMED_OUT,
    UNREACHED,
    Failure,
    end_signals,
    make_peer,
    say,
)
from pubsub.cli.fields import Fields
from pubsub.cli.formats import Formatter
from pubsub.cli.output import Output
from pubsub.cli.rate import Meter, Table, as_lines
from pubsub.cli.since import Since
from pubsub.cli.terminal import Color, Screen, wants_color
from pubsub.cli.where import Where
from pubsub.core.topics import matches
from pubsub.faces.account import untaken, what_is_unknown
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.undecoded import undecoded

__all__ = ["Wanted", "tail"]

HISTORY = 2.0
"""Seconds after which what is to come from before would have begun to come."""
NOBODY = 2.0
"""Seconds after which it is said that nobody publishes what is waited for."""
TICK = 1.0
"""Seconds between two lines of `--rate`."""
LAST_LINES = 2.0
"""Seconds that there are after a signal to show what has come, and for a reader to take it."""


@dataclass(frozen=True)
class Wanted:
    """What is to be shown, and for how long."""

    patterns: Sequence[str]
    coordinator: str | None = None
    count: int | None = None  # end after so many messages
    timeout: float | None = None  # end after so many seconds without a message
    history: int | Literal["all"] = 0
    since: float | None = None  # seconds since 1970; then all history is asked for
    where: Where | None = None
    fields: Fields | None = None
    rate: bool = False  # show how much comes instead
    form: str = "json"
    color: Color = "auto"
    times: bool = False
    topics: bool = False
    headers: bool = False
    allow_pickle: bool = False
    allow_pickle_of_anyone: bool = False
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
        self._terminal = os.isatty(descriptor)
        color = wants_color(wanted.color, terminal=self._terminal)
        self._line = Formatter(
            wanted.form,
            times=wanted.times,
            topics=wanted.topics,
            headers=wanted.headers,
            fields=wanted.fields,
            screen=Screen(color=color) if color or self._terminal else None,
        ).line
        self._since = None if wanted.since is None else Since(wanted.since)
        self._chosen = self._since is not None or wanted.where is not None
        self._meter = Meter(self._loop.time())
        self._patterns = tuple(dict.fromkeys(wanted.patterns))
        self._subs: list[AsyncSub] = []
        self._events = 0
        self._received = self._shown = 0
        self._lost = 0
        self._last = 0.0
        self._refused = 0  # streams that may not be read
        self._reader_gone = False
        self._failure: Failure | None = None  # of the output
        self._held_back = 0  # Subs with more to show than the output takes
        self._stopped_at = 0.0  # wall-clock time of a signal
        self._stopped_by: int | None = None  # the exit code that it means
        self._left_out = 0  # messages that had come, and time was up
        self._known = 0  # publishers
        self._vanished = self._unreached = 0  # publishers of which it is not known what they had

    async def run(self) -> int:
        with end_signals(self._stop):
            name = f"pubsub tail {' '.join(self._patterns)}"
            peer = make_peer(name, self._wanted.coordinator, self._wanted.timeout)
            work = self._loop.create_task(self._work(peer))
            work.add_done_callback(self._failed)
            try:
                await asyncio.wait([self._end])
                self._look_who_is_gone(peer)
            except asyncio.CancelledError:
                self._output.give_up()
                raise
            finally:
                work.cancel()
                await asyncio.wait([work])
                closing = peer.close(linger=0)  # at once: no publisher is to wait for our reader
                unwritten = await self._output.finish()
                await closing
        code = self._end.result()
        if self._failure is not None:
            raise self._failure
        if self._refused or self._lost or self._vanished:
            code = FAILED
        elif self._unreached:
            code = UNREACHED
        elif self._stopped_by is not None:
            code = self._stopped_by
        if self._reader_gone:
            return code
        if not self._wanted.quiet:
            say(self._account())
        unwritten += self._left_out
        if unwritten:
            lines = "the last line" if unwritten == 1 else f"up to {unwritten} of the last lines"
            raise Failure(f"{lines} could not be written within {LAST_LINES:g} s")
        return code

    def _account(self) -> str:
        shown = f" shown {self._shown}," if self._chosen else ""
        text = f"received {self._received},{shown} lost {self._lost}"
        if self._refused:
            text += f", refused {self._refused} stream{'s' if self._refused > 1 else ''}"
        if not self._received and not self._known:
            text += "; no publisher of it is known (`pubsub doctor TOPIC` says why)"
        where = self._wanted.where
        if where is not None and where.unfit:
            text += f"; --where did not fit {where.unfit} (the first: {where.why})"
        unknown = what_is_unknown(self._vanished, self._unreached)
        return f"{text}; {unknown}" if unknown else text

    def _look_who_is_gone(self, peer: Peer) -> None:
        """Count the publishers of which nobody knows what they had for us: those that were given
        up, and, unless all that was wanted has come, those that are away or not reached now."""
        done = self._shown == self._wanted.count
        for number, sub in enumerate(peer.runtime.snapshot().subs):
            for stream in sub.streams:
                if self._shows(number, stream.topic):
                    self._known += 1
                    fate = stream.state if done else stream.fate
                    self._vanished += fate == "vanished"
                    self._unreached += fate == "unreachable"

    async def _work(self, peer: Peer) -> None:
        wanted = self._wanted
        anyone = wanted.allow_pickle_of_anyone or wanted.rate  # which unpickles nothing
        subs = self._subs = [
            AsyncSub(
                pattern,
                peer=peer,
                history=wanted.history if self._since is None else "all",
                observer=True,
                allow_pickle="anyone" if anyone else wanted.allow_pickle,
            )
            for pattern in self._patterns
        ]
        for sub in subs:
            await sub
        self._last = self._loop.time()
        tasks = [asyncio.ensure_future(self._follow(sub, n)) for n, sub in enumerate(subs)]
        if wanted.timeout is not None:
            tasks.append(asyncio.ensure_future(self._watch(wanted.timeout)))
        if self._since is not None:
            tasks.append(asyncio.ensure_future(self._look_who_has_nothing(peer, self._since)))
        if not wanted.rate and sys.stderr is not None and sys.stderr.isatty():
            tasks.append(asyncio.ensure_future(self._look_whether_anybody_is_there(peer)))
        if wanted.rate:
            tasks.append(asyncio.ensure_future(self._tick()))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, sub: AsyncSub, number: int) -> None:
        """Show what one Sub receives."""
        while not self._end.done():
            try:
                await (self._measure if self._wanted.rate else self._show)(sub, number)
                return
            except DecodeError as error:
                if self._shows(number, error.topic):
                    self._refused += 1
                    text = str(error).replace(
                        "use Sub(..., allow_pickle=True)", "use --allow-pickle"
                    )
                    say(
                        text.replace(
                            'use Sub(..., allow_pickle="anyone")', "use --allow-pickle-of-anyone"
                        )
                    )

    async def _show(self, sub: AsyncSub, number: int) -> None:
        """Show messages, until the end or a stream that cannot be read."""
        count = self._wanted.count
        async for event in sub.messages():
            if self._end.done():
                return
            self._events += 1
            if not self._shows(number, event.topic):
                continue  # another Sub of ours shows it
            if isinstance(event, Gap):
                self._show_gap(event, sub)
                continue
            if 0 < self._stopped_at < event.sent_at:
                return
            self._received += 1
            if self._chosen and not self._chooses(event):
                continue
            full = self._output.write(self._line(event))
            self._shown += 1
            self._last = self._loop.time()
            if self._shown == count:
                self._finish(OK)
                return
            if full:
                await self._room()
                if self._end.done():
                    return

    def _chooses(self, message: Message) -> bool:
        """Whether a message is one of those that are wanted."""
        if self._since is not None:
            if begins := self._since.first(message):
                say(begins)
            if not self._since.wants(message):
                return False
        where = self._wanted.where
        if where is None:
            return True
        fitted = not where.unfit
        wanted = where(message)
        if fitted and where.unfit and not self._shown:  # perhaps it never fits
            say(f"--where does not fit the first message that comes: {where.why}")
        return wanted

    async def _look_whether_anybody_is_there(self, peer: Peer) -> None:
        """Say to who sits there and waits that it is in vain so far."""
        await asyncio.sleep(NOBODY)
        if not self._events and not any(sub.streams for sub in peer.runtime.snapshot().subs):
            topics = " or ".join(map(repr, self._patterns))
            say(f"nobody publishes {topics} yet: waiting (`pubsub doctor TOPIC` looks why)")

    async def _look_who_has_nothing(self, peer: Peer, since: Since) -> None:
        """Say of which publishers nothing comes that was sent before now, though there was."""
        await asyncio.sleep(HISTORY)
        if self._held_back:
            return  # it is there, and waits
        for number, sub in enumerate(peer.runtime.snapshot().subs):
            for stream in sub.streams:
                if self._shows(number, stream.topic) and not stream.delivered + stream.lost:
                    nothing = since.silent(stream.publisher, stream.topic, stream.due)
                    if nothing:
                        say(nothing)

    async def _measure(self, sub: AsyncSub, number: int) -> None:
        """Count messages, until the end or a stream that cannot be read."""
        async for batch in undecoded(sub):
            if self._end.done():
                return
            self._events += 1
            if not self._shows(number, batch.topic):
                continue
            lost = self._lost
            for gap in batch.gaps:
                self._show_gap(gap, sub)
            if 0 < self._stopped_at < batch.sent_at:
                return
            now = self._loop.time()
            if batch.messages:
                self._received += batch.messages
                self._last = now
            self._meter.add(batch.topic, batch.messages, batch.size, self._lost - lost, now)

    async def _tick(self) -> None:
        """Show each second what has come in it."""
        in_place = self._terminal and os.environ.get("TERM") != "dumb"
        drawn = Table() if in_place else None
        due = self._loop.time()
        while not self._end.done():
            due = max(due + TICK, self._loop.time())
            await asyncio.sleep(due - self._loop.time())
            rows = self._meter.read(self._loop.time())
            text = as_lines(rows, time.time()) if drawn is None else drawn.draw(rows)
            if text and self._output.write(text):
                await self._room()

    async def _room(self) -> None:
        self._held_back += 1
        await self._output.room()
        self._held_back -= 1

    def _shows(self, number: int, topic: str) -> bool:
        """Whether it is for this Sub to show a topic: the first whose pattern matches does."""
        return len(self._patterns) == 1 or _first_match(self._patterns, topic) == number

    def _show_gap(self, gap: Gap, of: AsyncSub) -> None:
        if gap.reason in _GONE:
            say(f"the publisher of {gap.topic} at {gap.publisher} {_GONE[gap.reason]}")
            if gap.reason == "unreachable":
                for why in of.publishers.get(gap.publisher, {}).get("failed", ()):
                    say(f"  {why}")
            return
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
        self._stopped_by = code
        self._loop.call_later(LAST_LINES, self._give_up, code)
        self._stopping = self._loop.create_task(self._run_out(code))

    async def _run_out(self, code: int) -> None:
        """Wait until no Sub has more to show. One that has and is not held back shows something in
        every turn of the loop."""
        shown = -1
        while not self._end.done() and (self._held_back or shown != self._events):
            shown = self._events
            await self._output.room()
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # it may have been woken only now
        self._finish(code)

    def _give_up(self, code: int) -> None:
        """Time is up for the last lines: account for those that were still to be shown."""
        if not self._end.done():
            for number, sub in enumerate(self._subs):
                for topic, messages, missed, sent_at in untaken(sub):
                    if self._shows(number, topic):
                        self._lost += missed
                        self._left_out += messages if sent_at <= self._stopped_at else 0
            if self._wanted.count is not None:
                self._left_out = min(self._left_out, self._wanted.count - self._shown)
        self._output.give_up()
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
        else:  # also when the last message has come, and is only now to be written
            self._failure = Failure(f"standard output: {error.strerror or error}")
        self._finish(OK)


@lru_cache(10_000)
def _first_match(patterns: tuple[str, ...], topic: str) -> int:
    return next(n for n, pattern in enumerate(patterns) if matches(pattern, topic))


_GONE = {
    "vanished": "vanished: what it had not sent is not known",
    "unreachable": "is not reached: what it puts is not known",
    "reached": "is reached now",
}
