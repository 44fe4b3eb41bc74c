"""``pubsub put``: one message, or one for each line of standard input."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from pubsub import EncodeError, MessageTooLarge, Peer, PubSubError
from pubsub.cli.asking import find_default
from pubsub.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    TIMED_OUT,
    after_ctrl_c,
    guard_of_command,
    make_peer,
    say,
)
from pubsub.config import FOREVER
from pubsub.core.publication import Leaver
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.pub import flush
from pubsub.runtime.snapshot import PubRow, SubscriberRow

__all__ = [
    "PATIENCE",
    "Audience",
    "Sending",
    "Terminated",
    "deliver",
    "from_json_lines",
    "from_lines",
    "from_text",
    "put",
    "sigterm",
]

PATIENCE = 10.0
"""Seconds for which a subscriber may take nothing before it is no longer waited for."""
FAR_AHEAD = 16 * 1024 * 1024
"""Bytes that an observer may be behind: well within a Pub's buffer, so that it loses nothing."""
LOOK_EVERY = 256 * 1024
"""Bytes after which the subscribers are looked at …"""
LOOK_SECONDS = 0.1
"""… and seconds."""
SAY_AFTER = 1.0
"""Seconds after which it is said for whom it waits at the end."""


@dataclass(frozen=True)
class Sending:
    """Where the messages go, and how."""

    topic: str
    coordinator: str | None = None
    rate: float | None = None  # messages per second, at most
    wait: int = 0  # subscribers to wait for before the first message
    headers: dict[str, str | bytes] | None = None  # of every message
    timeout: float | None = None
    """Seconds to wait for these (None: for ever), and for one that takes nothing (None:
    `PATIENCE`)."""


def from_text(text: str) -> Any:
    """The value of an argument: JSON, or else the text itself."""
    try:
        return _parse(text)
    except ValueError:
        return _text(os.fsencode(text))


def from_lines(stream: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """Each line without its end, and its size: a str, or bytes where it is not UTF-8."""
    for line in stream:
        yield _text(line[:-1] if line.endswith(b"\n") else line), len(line)


def from_json_lines(stream: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """The value of each line, and its size; blank lines are passed over.

    Raises:
        ValueError: a line is not JSON.
    """
    before = ""
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                value = _parse(line.decode().rstrip("\r\n"))
            except ValueError as error:
                raise ValueError(
                    f"line {number} of standard input is not JSON ({error}){before}"
                ) from None
            yield value, len(line)
            before = "; the lines before it were put"


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_json)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


class Terminated(BaseException):
    """SIGTERM."""


def put(sending: Sending, values: Iterable[tuple[Any, int]]) -> int:
    """Put every value, see it delivered, and return the exit code."""
    with sigterm(), _peer(sending) as peer:
        pub = BlockingPub(sending.topic, peer=peer, overflow="block")
        patience = PATIENCE if sending.timeout is None else sending.timeout
        audience = Audience(pub, patience, waited=sending.wait > 0)
        code = OK
        try:
            if sending.wait and not _wait(pub, sending):
                return TIMED_OUT
            audience.meet()
            _put_all(pub, values, sending, audience)
        except KeyboardInterrupt:
            after_ctrl_c()
            code = INTERRUPTED
        except Terminated:
            code = TERMINATED
        except (PubSubError, OSError, ValueError):
            deliver(peer, [audience])  # what came before the trouble
            raise
        everything = deliver(peer, [audience])
    return code if everything else code or FAILED


def _peer(sending: Sending) -> Peer:
    name = f"pubsub put {sending.topic}"
    if sending.coordinator is None and not sending.wait:
        # Where nobody listens at the default address nobody can be subscribed: a coordinator of
        # our own, for the blink of an eye, would serve no one.
        found = str(find_default(guard_of_command()))
        return make_peer(name, found, sending.timeout, connect_timeout=1.0)
    return make_peer(name, sending.coordinator, sending.timeout)


@contextmanager
def sigterm() -> Iterator[None]:
    """Within: SIGTERM raises, as Ctrl-C does."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Terminated:
        sys.exit(TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(pub: BlockingPub, sending: Sending) -> bool:
    """Wait for subscribers; False: time ran out."""
    if sys.stderr.isatty() and len(pub.subscribers) < sending.wait:
        whom = "a subscriber" if sending.wait == 1 else f"{sending.wait} subscribers"
        say(f"waiting for {whom} on {sending.topic!r} …")
    until = time.monotonic() + (FOREVER if sending.timeout is None else sending.timeout)
    while True:
        left = max(0.0, until - time.monotonic())
        try:  # in short steps, because a signal that comes as one begins is noticed at its end
            pub.wait_for_subscribers(sending.wait, timeout=min(left, 0.5))
            return True
        except TimeoutError:
            if left > 0.5:
                continue
        there = sum(how["state"] == "attached" for how in pub.subscribers.values())
        say(
            f"{there} of {sending.wait} subscribers on {sending.topic!r} after "
            f"{sending.timeout:g} s; nothing was put"
        )
        return False


def _put_all(
    pub: BlockingPub, values: Iterable[tuple[Any, int]], sending: Sending, audience: Audience
) -> None:
    rate, headers = sending.rate, sending.headers
    due = time.monotonic()
    for value, size in values:
        if rate is not None:
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
            due = max(due, now - 1.0) + 1.0 / rate  # what was late is not all caught up at once
        audience.about_to_put()
        try:
            pub.put(value, headers)
        except (EncodeError, MessageTooLarge) as error:
            if not audience.count:
                raise
            raise ValueError(
                f"message {audience.count + 1}: {error}; those before it were put"
            ) from error
        audience.put(size)


def deliver(peer: Peer, audiences: Sequence[Audience]) -> bool:
    """Wait until all has been received, for as long as it goes on; returns whether it was."""

    def close() -> None:
        for audience in audiences:
            with suppress(PubSubError):
                peer._wait(flush(audience.pub, timeout=None, observers=True))
                audience.pub.close()

    for audience in audiences:
        audience.look()
    closing = threading.Thread(target=close, name="closing", daemon=True)
    closing.start()
    say_at = time.monotonic() + SAY_AFTER
    try:
        closing.join(0.02)
        while closing.is_alive():
            behind = [stands for audience in audiences for stands in audience.behind()]
            if behind and all(behind):
                peer.close(linger=0)
            elif time.monotonic() >= say_at:
                say_at = math.inf
                if left := peer.runtime.unreceived():
                    say(f"waiting (Ctrl-C gives up): {left}")
            closing.join(0.1)
    except BaseException:
        left = peer.runtime.unreceived()
        peer.close(linger=0)
        if left:
            say(f"gave up: {left}")
        raise
    unheard = [repr(audience.pub.topic) for audience in audiences if audience.unheard()]
    if unheard:
        more = f" and {len(unheard) - 3} more" if len(unheard) > 3 else ""
        say(f"nobody was listening on {', '.join(unheard[:3])}{more}")
    complete = [audience.report() for audience in audiences]  # each says what it has to say
    return all(complete)


class Audience:
    """Who listens to a Pub, and how far behind they are.

    An observer such as ``pubsub tail`` never makes a Pub wait, and loses what leaves the buffer
    before it could be sent. So that a whole file reaches it, this waits for observers too, as
    long as each of them goes on taking messages: one that takes nothing for `patience` seconds
    is left behind. The other Subs make the Pub itself wait, for as long as they live.
    """

    def __init__(self, pub: BlockingPub, patience: float, waited: bool) -> None:
        self.pub = pub
        self._waited = waited  # for subscribers, before anything was put
        self._patience = patience
        self.count = 0  # messages put
        self._bytes = 0
        self._unseen = 0
        self._looked = 0.0
        self._marks: deque[tuple[int, int]] = deque()  # messages and bytes put until then
        self._standing: dict[str, tuple[int, float]] = {}  # messages taken, and since when
        self._left: set[str] = set()  # takes nothing
        self._named = False
        self._came = False

    def meet(self) -> None:
        """Wait for the first of those that the coordinator says are there."""
        if self.pub.subscribers:
            self._named = True
            with suppress(TimeoutError):
                self.pub.wait_for_subscribers(1, timeout=self.pub.peer.settings.join_timeout)
                self._came = True

    def about_to_put(self) -> None:
        """See who is there for the first message: one that wants no more may take it and leave
        before anybody looks again."""
        if not self.count:
            self._standing.clear()
            self.look()

    def put(self, size: int, messages: int = 1) -> None:
        """Something was put; waits where an observer is too far behind."""
        self.count += messages
        self._bytes += size
        self._unseen += size
        if self._unseen < LOOK_EVERY and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._unseen = 0
        self._marks.append((self.count, self._bytes))
        while self._ahead() > FAR_AHEAD:
            time.sleep(0.005)

    def _ahead(self) -> int:
        """Bytes that the slowest observer that is waited for has not taken."""
        taken = self.look()
        if taken is None:
            self._marks.clear()
            return 0
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= taken:
            marks.popleft()
        return self._bytes - marks[0][1] if marks[0][0] <= taken else self._bytes

    def look(self) -> int | None:
        """See how they stand; returns what the slowest observer that is waited for has taken."""
        now = self._looked = time.monotonic()
        slowest = None
        subscribers = self._row().subscribers
        self._named |= bool(subscribers)
        for who in subscribers:
            self._came |= who.state != "expected"
            before, since = self._standing.get(who.name, (-1, now))
            if who.taken > before or who.taken >= self.count:
                self._standing[who.name] = who.taken, now
                self._left.discard(who.name)
            elif now - since > self._patience and who.name not in self._left:
                self._left.add(who.name)
                self._say_stuck(who)
            if who.observer and who.name not in self._left:
                slowest = who.taken if slowest is None else min(slowest, who.taken)
        return slowest

    def _row(self) -> PubRow:
        """How the Pub stands."""
        return PubRow.of(self.pub._publication)

    def _say_stuck(self, who: SubscriberRow) -> None:
        is_so = "has taken nothing" if who.state == "attached" else "has not been connected"
        then = "going on without it" if who.observer else "waiting on (Ctrl-C gives up)"
        behind = self.count - who.taken
        say(f"{who.name} {is_so} for {self._patience:g} s, {behind} messages behind: {then}")

    def behind(self) -> list[bool]:
        """Of each that still lacks something, whether it is no longer waited for: an observer that
        takes nothing."""
        self.look()
        lacking = [who for who in self._row().subscribers if who.taken < self.count]
        return [who.observer and who.name in self._left for who in lacking]

    @staticmethod
    def _lacking(row: PubRow) -> list[Leaver]:
        return [x for x in row.leavers if x.lost or not (x.observer and x.how == "closed")]

    def unheard(self) -> bool:
        """Whether something was put, and no subscriber ever was known."""
        row = self._row()
        return self.count > 0 and not (self._named or self._lacking(row) or row.reached)

    def report(self) -> bool:
        """Say what did not arrive, once the Pub is closed. Returns whether it went as it should:
        whoever was there has all of it, and where some were waited for, anybody has something.

        An observer that leaves had enough: that is no more to be said than of ``| head``.
        """
        topic, row, put = self.pub.topic, self._row(), self.count
        leavers = self._lacking(row)
        reached = row.reached > 0
        if not put:
            return True
        if self.unheard():
            pass
        elif not (self._came or reached or any(x.how != "absent" for x in leavers)):
            say(f"the subscribers of {topic!r} did not come: nobody has received it")
            return False
        elif not reached:
            say(f"nobody is known to have received what was put on {topic!r}")
        for who, how, lacks, lost, observer in leavers:
            if lost:
                say(f"{who} has lost {lost} of {put} messages")
            if how == "closed" and lacks and not observer:
                say(f"{who} has left, with {lacks} of {put} messages not taken")
            elif how == "away" and lacks:
                say(f"{who} has gone without a word: it may lack {lacks} of {put} messages")
            elif how == "shut" and lacks:
                say(f"{who} let nothing be sent to it: it lacks {lacks} of {put} messages")
            elif how == "absent" and lacks:
                say(f"{who} did not come: it lacks {lacks} of {put} messages")
            elif how == "end" and lacks and who not in self._left:  # of those it was said
                say(f"{who} may lack {lacks} of {put} messages")
        return not (leavers or self._left or (self._waited and not reached))
