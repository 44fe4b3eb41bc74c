"""Probing: whether a peer that went without a goodbye still lives where it said that it does.

Nothing listens there, or somebody else does: it is gone, when that is so twice. It answers, or
nobody does: it may come back. Why, and who is asked: see docs/architecture.md, "Probing".
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from pubsub.config import UNIX, Address, Settings, Way, is_loopback
from pubsub.errors import AuthError, ProtocolError
from pubsub.links.keeping import dial
from pubsub.links.link import Link
from pubsub.links.patience import Patience
from pubsub.links.resolving import host_of
from pubsub.support.host import this_host
from pubsub.trust.guard import Guard
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Dialler, Identity, Other, Refused

__all__ = ["Answer", "Prober", "home"]

AGAIN = 0.4
"""Seconds from the first time that a peer seems to be gone to the second question."""
RETRY = 0.2
"""Seconds until it is asked again whoever did not answer, or lives; twice as many each time."""
MAX_RETRY = 5.0
WITHIN = 1.0
"""Seconds for connecting, and for the answer."""
MAX_QUESTIONS = 32
"""Questions at a time; the others wait. So many may die at once, and the sockets are few."""


class Answer(Enum):
    """What was found at a peer's address."""

    GONE = "gone"
    ALIVE = "alive"
    NONE = "no answer"


def home(link: Link, other: Other) -> Address | None:
    """Where the peer at the other end of an accepted link lives; None: not known to be there.

    It may say any address. The host is its own where the link comes from it, or where both are
    this one. Nobody can have us dial another.
    """
    name = link.peername
    source = _packed(name[0]) if name else None
    for way in other.ways:
        if link.kind == UNIX and way.kind == "tcp" and _is_here(way.host):
            return Address(way.host, way.port)
        if source is not None and way.kind == "tcp" and _packed(way.host) == source:
            return Address(host_of(name), way.port)
    return None


def _is_here(host: str) -> bool:
    """Whether a numeric address is one of this machine."""
    packed = _packed(host)
    return packed is not None and (
        is_loopback(host) or _packed(this_host().source_of(host)) == packed
    )


def _packed(host: str) -> bytes | None:
    """A numeric address as bytes, whichever way it is written; None: it is a name."""
    host = host.partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            return socket.inet_pton(family, host).removeprefix(b"\0" * 10 + b"\xff" * 2)
    return None


class _Question:
    """One connection that asks; its endpoint and its core."""

    def __init__(self, answer: asyncio.Future[None]) -> None:
        self._answer = answer

    def opened(self, link: Link, other: Other) -> _Question:
        """See `Endpoint`."""
        if not self._answer.done():
            self._answer.set_result(None)
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("it said goodbye"))
            self._answer.exception()  # nobody may be waiting any more

    def receive(self, event: Event) -> None:
        """See `Core`: nothing that it says is of interest."""

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`."""
        return ()


@dataclass(slots=True, eq=False)
class _Suspect:
    """A peer that may be gone."""

    peer_id: str
    address: Address
    until: float
    gone: Callable[[str], None]
    retry: float
    refused: bool = False  # it seemed to be gone when it was last asked
    wait: Patience | None = None  # until it is asked again


class Prober:
    """Asks at the addresses of those that went without a goodbye, until each is known to be gone,
    has come back, or is of interest no more. `peer_id` is of whoever asks, `guard` says how."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peer_id: str,
        settings: Settings,
        scratch: bytearray,
        guard: Guard,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._scratch = scratch
        self._guard = guard
        self._within = min(WITHIN, settings.handshake_timeout / 2)  # before the link gives up
        # an identity of its own: whoever is asked does not take it for a subscriber come back
        self._me = Identity("peer", f"{peer_id}-probe")
        self._suspects: dict[str, _Suspect] = {}
        self._due: deque[_Suspect] = deque()
        self._asking: dict[asyncio.Task[Answer], _Suspect] = {}
        self._links: dict[Link, None] = {}
        self._closed = False

    def suspect(
        self, peer_id: str, address: Address, seconds: float, gone: Callable[[str], None]
    ) -> None:
        """Ask now, and go on for so many seconds; call `gone` when it is known to be gone."""
        if self._closed:
            return
        until = self._loop.time() + seconds
        known = self._suspects.get(peer_id)
        if known is not None:  # another link with it broke too: it is one question
            known.until = until
            return
        suspect = self._suspects[peer_id] = _Suspect(peer_id, address, until, gone, RETRY)
        self._ask(suspect)

    def clear(self, peer_id: str) -> None:
        """It has come back: what was found out until now does not count."""
        suspect = self._suspects.pop(peer_id, None)
        if suspect is not None and suspect.wait is not None:
            suspect.wait.cancel()

    def close(self) -> list[Link]:
        """Ask no more; returns the links that are closing."""
        self._closed = True
        for peer_id in list(self._suspects):
            self.clear(peer_id)
        self._due.clear()
        for task in list(self._asking):
            task.cancel()
        links = self.links
        for link in links:
            link.abort()
        return links

    @property
    def links(self) -> list[Link]:
        """The connections of all questions."""
        return list(self._links)

    def _ask(self, suspect: _Suspect) -> None:
        self._due.append(suspect)
        self._go_on()

    def _go_on(self) -> None:
        while self._due and len(self._asking) < MAX_QUESTIONS:
            suspect = self._due.popleft()
            if self._suspects.get(suspect.peer_id) is not suspect:
                continue  # it came back while it waited
            if self._loop.time() >= suspect.until:
                del self._suspects[suspect.peer_id]
                continue
            name = f"pubsub probe {suspect.address}"
            task = self._loop.create_task(self._question(suspect), name=name)
            self._asking[task] = suspect
            task.add_done_callback(self._answered)

    async def _question(self, suspect: _Suspect) -> Answer:
        answer: asyncio.Future[None] = self._loop.create_future()
        link = Link(self._loop, None, _Question(answer), self._settings, self._scratch)
        self._links[link] = None
        try:
            asks = await dial(link, Way(*suspect.address), self._within, self._guard)
            link.begin(Dialler(self._me, "peer", suspect.peer_id, asks))
            await asyncio.wait({answer}, timeout=self._within)
            if not answer.done():
                return Answer.NONE
            answer.result()
            link.goodbye()
            await link.gone()
            return Answer.ALIVE
        except ConnectionRefusedError:
            return Answer.GONE
        except (Refused, ProtocolError) as error:  # it says so, or shows it
            return Answer.GONE if error.code == "identity" else Answer.NONE
        except (OSError, AuthError, asyncio.TimeoutError):
            return Answer.NONE
        finally:
            link.abort()
            del self._links[link]

    def _answered(self, task: asyncio.Task[Answer]) -> None:
        suspect = self._asking.pop(task)
        if self._closed:
            return
        # one that was cancelled: `asyncio.run` ends all tasks before the Peer has its end
        answer = Answer.NONE if task.cancelled() else task.result()
        if self._suspects.get(suspect.peer_id) is suspect:
            if answer is not Answer.GONE:
                suspect.refused = False
                wait, suspect.retry = suspect.retry, min(2 * suspect.retry, MAX_RETRY)
                suspect.wait = Patience(self._loop, wait, lambda: self._ask(suspect))
            elif not suspect.refused:
                suspect.refused = True
                suspect.wait = Patience(self._loop, AGAIN, lambda: self._ask(suspect))
            else:
                del self._suspects[suspect.peer_id]
                suspect.gone(suspect.peer_id)
        self._go_on()
