"""This library over each of its channels: plain, plain with a proof, and TLS."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import ClassVar

from benchmarks.contender import Meeting, environment_of
from benchmarks.contenders.ours import Async, use
from pubsub.trust.keys import Key

__all__ = ["CONTENDERS", "Channel"]

PROGRAM = """\
import sys, time
from pubsub import Sub
with Sub(sys.argv[1]) as sub:
    sub.get()
    print(time.monotonic_ns())
"""


class Channel(Async):
    """The async face, with the credentials that lead to this channel on loopback. All processes of
    a run have them from the service, which makes a key for it."""

    family = "channels"
    groups = frozenset(("tls",))
    credentials: ClassVar[tuple[str, ...]]
    """For the environment; ``{key}`` is the key."""

    def serve(self, announce: Callable[[str], None]) -> None:
        there = " ".join(self.credentials).format(key=Key.new().text())
        os.environ.update(environment_of(there.split()))
        super().serve(lambda place: announce(f"{place} {there}"))

    def program(self, meeting: Meeting) -> list[str]:
        """The command of a program with the blocking face that subscribes, takes one message, and
        prints when that was."""
        use(meeting.place)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # its imports are compiled, as usual
        return [sys.executable, "-c", PROGRAM, meeting.topic]


class Plain(Channel):
    """Open to everybody."""

    name = "pubsub-plain"
    title = "pubsubd, plain"
    how = "`PUBSUB_INSECURE=1`. First message: a script with the blocking face."
    credentials = ("PUBSUB_INSECURE=1",)


class Proof(Channel):
    """What a key means on loopback."""

    name = "pubsub-proof"
    title = "pubsubd, proof only"
    how = "`PUBSUB_KEY` and `PUBSUB_ENCRYPT=0`: both ends prove that they have it, and go on plain."
    credentials = ("PUBSUB_KEY={key}", "PUBSUB_ENCRYPT=0")


class Tls(Channel):
    """What a key means between machines."""

    name = "pubsub-tls"
    title = "pubsubd, TLS"
    how = "`PUBSUB_KEY` and `PUBSUB_ENCRYPT=1`: TLS 1.3, where both ends show a certificate."
    packages = ("cryptography",)
    credentials = ("PUBSUB_KEY={key}", "PUBSUB_ENCRYPT=1")


CONTENDERS = (Plain(), Proof(), Tls())
