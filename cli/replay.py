"""``pubsub replay``: what was recorded, published again, each batch at its time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pubsub import Gap, Peer, PubSubError
from pubsub.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    TIMED_OUT,
    Failure,
    after_ctrl_c,
    make_peer,
    say,
)
from pubsub.cli.put import PATIENCE, Audience, Terminated, deliver, sigterm
from pubsub.cli.recordings import counted, needs_mcap
from pubsub.config import FOREVER
from pubsub.stats.words import count, duration

if TYPE_CHECKING:
    from pubsub.record import Recording
    from pubsub.record.replaying import Due, Key

__all__ = ["Wanted", "replay"]

LATE = 0.001
"""Seconds from which on a batch is late."""
SWITCH = 0.0005
"""Seconds for which the thread that reads may hold up the one that puts."""


@dataclass(frozen=True)
class Wanted:
    """What is to be published again, and how."""

    paths: Sequence[str]
    topics: Sequence[str] = ()
    coordinator: str | None = None
    rate: float = 1.0  # infinite: as fast as subscribers take it
    loop: bool = False
    wait: int = 0  # subscribers to wait for before the first message
    timeout: float | None = None
    remap: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False


def replay(wanted: Wanted) -> int:
    """Publish it again, see it delivered, and return the exit code."""
    with needs_mcap():
        from pubsub import record
        from pubsub.record.replaying import keys
    sys.setswitchinterval(SWITCH)
    with ExitStack() as opened, sigterm():
        recordings = [
            opened.enter_context(record.open(path, topics=wanted.topics)) for path in wanted.paths
        ]
        recordings.sort(key=lambda recording: recording.start)
        for recording in recordings:
            if not recording.finished:
                say(f"{recording.path} is not finished: what is whole of it is replayed")
        wants = keys(recordings, wanted.remap)
        if not wants:
            what = f" of {', '.join(wanted.topics)}" if wanted.topics else ""
            raise Failure(f"there is no message{what} in {', '.join(wanted.paths)}")
        for topic in wanted.remap:
            if not any(topic in recording.topics for recording in recordings):
                raise Failure(f"--remap {topic}=…: no such topic: {_topics(recordings)}")
        name = f"pubsub replay {' '.join(wanted.paths)}"
        with make_peer(name, wanted.coordinator, wanted.timeout) as peer:
            return _Replay(wanted, recordings, peer, wants).run()


def _topics(recordings: Sequence[Recording]) -> str:
    names = sorted({topic for recording in recordings for topic in recording.topics})
    if not names:
        return "there is no message in it"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"its topics are {', '.join(names[:5])}{more}"


class _Replay:
    def __init__(
        self, wanted: Wanted, recordings: Sequence[Recording], peer: Peer, wants: Sequence[Key]
    ) -> None:
        from pubsub.faces.undecoded import UndecodedPub

        self._wanted = wanted
        self._recordings = recordings
        self._peer = peer
        self._messages = self._batches = self._lost = 0
        self._late = 0  # batches that were late
        self._latest = 0.0  # seconds by which the latest was
        patience = PATIENCE if wanted.timeout is None else wanted.timeout
        self._pubs = {}
        for key in wants:
            pub = UndecodedPub(key.topic, codec=key.codec, peer=peer, overflow="block")
            self._pubs[key] = pub, Audience(pub, patience, waited=wanted.wait > 0)

    def run(self) -> int:
        code = OK
        try:
            if self._wanted.wait and not self._wait():
                return TIMED_OUT
            for _, audience in self._pubs.values():
                audience.meet()
            began = time.monotonic()
            try:
                self._play()
            finally:
                self._account(time.monotonic() - began)
        except KeyboardInterrupt:
            after_ctrl_c()
            code = INTERRUPTED
        except Terminated:
            code = TERMINATED
        except (PubSubError, OSError, ValueError):
            self._deliver()  # what came before the trouble
            raise
        return code if self._deliver() else code or FAILED

    def _wait(self) -> bool:
        """Wait for subscribers, of all topics together; False: time ran out."""
        wanted = self._wanted
        until = time.monotonic() + (FOREVER if wanted.timeout is None else wanted.timeout)
        said = not sys.stderr.isatty()
        while (there := self._attached()) < wanted.wait:
            if time.monotonic() >= until:
                say(
                    f"{there} of {wanted.wait} subscribers after {wanted.timeout:g} s; "
                    "nothing was replayed"
                )
                return False
            if not said:
                said = True
                whom = "a subscriber" if wanted.wait == 1 else f"{wanted.wait} subscribers"
                say(f"waiting for {whom} …")
            time.sleep(0.01)
        return True

    def _attached(self) -> int:
        return len(
            {
                who
                for pub, _ in self._pubs.values()
                for who, how in pub.subscribers.items()
                if how["state"] == "attached"
            }
        )

    def _events(self) -> Iterator[Due | Gap]:
        from pubsub.record.replaying import due

        offset = 0.0
        while True:
            batches, last = 0, 0.0
            for event in due(self._recordings, self._wanted.remap, self._wanted.rate):
                if isinstance(event, Gap):
                    yield event
                    continue
                batches += 1
                last = event.at
                yield event._replace(at=offset + last)
            if not self._wanted.loop or not batches:
                return
            # it begins again in its own rhythm: behind what is mostly between two of its batches
            offset += last * batches / (batches - 1) if batches > 1 else 1 / self._wanted.rate

    def _play(self) -> None:
        from pubsub.record.replaying import Ahead, put

        path = ", ".join(self._wanted.paths)
        ahead = Ahead(self._events(), _size)
        began: float | None = None
        for _, audience in self._pubs.values():
            audience.about_to_put()
        try:
            for event in ahead:
                if isinstance(event, Gap):
                    self._lost += event.missed
                    continue
                if began is None:
                    began = time.monotonic()
                left = began + event.at - time.monotonic()
                if left > 0:
                    time.sleep(left)
                pub, audience = self._pubs[event.key]
                late = time.monotonic() - began - event.at
                if late > LATE:
                    self._late += 1
                    self._latest = max(self._latest, late)
                size = put(pub, event.batch, path)
                audience.put(size, event.batch.messages)
                self._messages += event.batch.messages
                self._batches += 1
        finally:
            ahead.close()

    def _deliver(self) -> bool:
        return deliver(self._peer, [audience for _, audience in self._pubs.values()])

    def _account(self, seconds: float) -> None:
        if self._wanted.quiet:
            return
        topics = len({key.topic for key in self._pubs})
        text = (
            f"replayed {counted(self._messages, self._batches)} on {count(topics, 'topic')} "
            f"in {duration(seconds)}"
        )
        if self._late and self._wanted.rate < math.inf:
            text += f"; {self._late:,} came late, by up to {self._latest * 1000:,.1f} ms"
        if self._lost:
            text += f"; {self._lost:,} messages were lost when it was recorded"
        say(text)


def _size(event: Due | Gap) -> int:
    if isinstance(event, Gap):
        return 256
    return 256 + len(event.batch.body) + sum(map(len, event.batch.buffers))
