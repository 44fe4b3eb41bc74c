"""A remote: a publishing peer that Subs of ours want streams of, and the one link to it.

It dials for as long as a stream is wanted, opens a channel for each, and brings them back, from
where they stand, when the link breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from pubsub.config import Address, Settings
from pubsub.core.handshake import Dialler, Identity, Other, Refused
from pubsub.core.liveness import Backoff
from pubsub.core.receiving import Receiving
from pubsub.core.stream import Stream
from pubsub.discovery import _look_at, explain
from pubsub.errors import AuthError, ProtocolError
from pubsub.link import Link, dial
from pubsub.logs import logger
from pubsub.patience import Patience
from pubsub.turn import Turn

__all__ = ["Owner", "Remote"]

log = logger("pubsub")


KEPT = 1.0
"""Seconds that a link is kept when nothing is subscribed on it any more: whoever makes one Sub
after the other need not dial, and shake hands, for each."""


class Owner(Protocol):
    """The runtime, as a remote sees it."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    turn: Turn

    def identity(self) -> Identity:
        """Who we are."""

    def settled(self, stream: Stream) -> None:
        """A subscription was answered, or cannot be made now."""

    def listed(self, stream: Stream) -> bool:
        """Whether any coordinator knows of the stream."""

    def give_up(self, stream: Stream) -> None:
        """The stream's publisher is gone."""

    def forget(self, remote: Remote) -> None:
        """Nothing is wanted of that peer any more."""


class Remote:
    """One publishing peer; the endpoint of the link to it.

    Parameters:
        peer_id, address: of the peer.
    """

    def __init__(
        self,
        owner: Owner,
        peer_id: str,
        address: Address,
        scratch: bytearray,
        random: Callable[[], float],
    ) -> None:
        self.peer_id = peer_id
        self.address = address
        self.link: Link | None = None
        self._owner = owner
        self._scratch = scratch
        self._streams: dict[Stream, Patience | None] = {}
        self._receiving: Receiving | None = None
        self._backoff = Backoff(random)
        self._task: asyncio.Task[None] | None = None
        self._unused: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[None] | None = None
        self._broken_at: float | None = None
        self._closed = False
        self._warned = False
        self._refused = False
        self._opened_at = 0.0

    def moved(self, address: Address) -> None:
        """A coordinator says where it is."""
        self.address = address

    @property
    def streams(self) -> int:
        """How many of its streams are wanted."""
        return len(self._streams)

    def refuse(self) -> None:
        """It has more streams than one link may carry channels: those are left out."""
        if not self._refused:
            self._refused = True
            log.warning(
                "the peer at %s has more than %d streams for us (max_channels): the others are "
                "not subscribed",
                self.address,
                self._owner.settings.max_channels,
            )

    def add(self, stream: Stream) -> None:
        """A Sub wants a stream."""
        self._streams[stream] = None
        if self._receiving is not None:
            self._subscribe(self._receiving, stream)
        else:
            self._dial()

    def _subscribe(self, receiving: Receiving, stream: Stream) -> None:
        """Ask for it. A publisher that hangs does not hold up readiness until its heartbeat ends
        the link: whoever waits for a subscriber waits for `join_timeout`, in both directions."""
        receiving.subscribe(stream)
        owner = self._owner
        self._streams[stream] = Patience(
            owner.loop, owner.settings.join_timeout, lambda: owner.settled(stream)
        )

    def _settled(self, stream: Stream) -> None:
        """It was answered, or cannot be for now."""
        patience = self._streams.get(stream)
        if patience is not None:
            patience.cancel()
            self._streams[stream] = None
        self._owner.settled(stream)

    def remove(self, stream: Stream) -> None:
        """A stream is over."""
        patience = self._streams.pop(stream, None)
        if patience is not None:
            patience.cancel()
        if not self._streams and self._unused is None:
            self._unused = self._owner.loop.call_later(KEPT, self._leave_if_unused)

    def give_up(self, stream: Stream) -> None:
        """A stream cannot come any more, as far as we can tell."""
        self.remove(stream)
        if self._warned and not self._streams:
            self._warned = False
            log.warning("the publisher at %s is given up: it is gone", self.address)

    def _leave_if_unused(self) -> None:
        self._unused = None
        if not self._streams:
            self.close()

    def close(self) -> None:
        """Say GOODBYE."""
        if self._closed:
            return
        self._closed = True
        if self._unused is not None:
            self._unused.cancel()
        self._owner.forget(self)
        if self._task is not None:
            self._task.cancel()
        if self.link is not None:
            self.link.goodbye()

    # --- dialling -----------------------------------------------------------------------

    def _dial(self, delay: float = 0.0) -> None:
        if self._task is None or self._task.done():
            self._task = self._owner.loop.create_task(
                self._run(delay), name=f"pubsub dial {self.address}"
            )

    async def _run(self, delay: float) -> None:
        if delay:
            await asyncio.sleep(delay)
        while self._streams and not self._closed:
            try:
                await self._connect()
                if self._receiving is not None:
                    return
            except (OSError, ProtocolError, AuthError, Refused, asyncio.TimeoutError) as error:
                self._failed(error)
            except ValueError as error:  # a host that is no name: whoever registered it says it
                self._failed(error)
            except Exception as error:  # never stop trying
                log.exception("internal error while dialling %s", self.address)
                self._failed(error)
            await asyncio.sleep(self._backoff.delay())

    async def _connect(self) -> None:
        owner = self._owner
        answer = self._answer = owner.loop.create_future()
        answer.add_done_callback(_look_at)
        handshake = Dialler(owner.identity(), "peer", self.peer_id)
        link = Link(owner.loop, handshake, self, owner.settings, self._scratch)
        self.link = link
        try:
            await dial(link, *self.address, owner.settings.connect_timeout)
            await answer
        except BaseException:
            if self._receiving is None:
                self.link = None
                link.abort()
            raise

    def _failed(self, error: Exception) -> None:
        """An attempt failed: what cannot come any more is given up, the rest waits."""
        owner = self._owner
        now = owner.loop.time()
        gone = isinstance(error, Refused) and error.code == "identity"
        if self._broken_at is None:
            self._broken_at = now
        if not self._warned:
            self._warned = True
            log.warning(
                "cannot reach the publisher at %s: %s; trying on", self.address, explain(error)
            )
        over = now - self._broken_at >= owner.settings.resume_timeout
        for stream in list(self._streams):
            listed = owner.listed(stream)
            if gone or (not listed and (over or stream.expected is None)):
                owner.give_up(stream)
            else:
                owner.settled(stream)

    # --- the link's endpoint ------------------------------------------------------------

    def opened(self, link: Link, other: Other) -> Receiving:
        """See `Endpoint`."""
        self._opened_at = self._owner.loop.time()
        self._broken_at = None
        if self._warned:
            self._warned = False
            log.warning("the publisher at %s is reached now", self.address)
        receiving = self._receiving = Receiving(self._output, self._answered)
        link.reader.place = receiving.place
        link.reader.data = receiving.data
        link.reader.buffer = receiving.buffer
        for stream in self._streams:
            self._subscribe(receiving, stream)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
        if self._closed:
            link.goodbye()
        return receiving

    def _output(self) -> None:
        if self.link is not None:
            self._owner.turn.touch(self.link)

    def _answered(self, stream: Stream) -> None:
        self._settled(stream)
        if stream.ended:
            self.remove(stream)

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if link is not self.link:
            return
        self.link = None
        if self._receiving is None:  # never opened
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(error or ConnectionError("it said goodbye"))
            return
        self._receiving.lost()
        self._receiving = None
        if self._closed:
            return
        if error is None:  # it has said goodbye: what was to come has come
            for stream in list(self._streams):
                self._owner.give_up(stream)
            return
        log.info("the link with the publisher at %s broke: %s", self.address, error)
        self._broken_at = self._owner.loop.time()
        for stream in self._streams:
            self._settled(stream)
        # one that opens and breaks at once, or breaks the protocol, is dialled with growing delays
        stable = self._backoff.lived(0.0 if link.cut else self._broken_at - self._opened_at)
        self._dial(0.0 if stable else self._backoff.delay())
