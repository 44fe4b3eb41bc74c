"""A remote: a publishing peer that Subs of ours want streams of, and the one link to it.

It dials for as long as a stream is wanted, opens a channel for each, and brings them back, from
where they stand, when the link breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from pubsub.config import Address, Settings, Way, is_loopback
from pubsub.core.receiving import Receiving
from pubsub.core.stream import Stream
from pubsub.links.keeping import KeptLink, Trouble
from pubsub.links.link import Link
from pubsub.links.patience import Patience
from pubsub.runtime.turn import Turn
from pubsub.support.logs import logger
from pubsub.wire.handshake import Dialler, Identity, Other, Refused

__all__ = ["Remote", "SubscribingPeer"]

log = logger("pubsub")


GONE = 2.0
"""Seconds for which a publisher that no coordinator lists may refuse connections where it was met
before it is taken to be gone. (Where nothing answers, that takes `resume_timeout`.)"""
IDLE_LINK_SECONDS = 1.0
"""Seconds that a link is kept when nothing is subscribed on it any more: whoever makes one Sub
after the other need not dial, and shake hands, for each."""


class SubscribingPeer(Protocol):
    """The runtime as the side that wants streams: what a remote asks of it."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    turn: Turn

    def identity(self, local_host: str) -> Identity:
        """Who we are to whom we dial from that address of ours."""

    def settled(self, stream: Stream) -> None:
        """A subscription was answered, or cannot be made now."""

    def ways(self, peer_id: str) -> Sequence[Way]:
        """Where the coordinators say that a peer is."""

    def listed(self, stream: Stream) -> bool:
        """Whether any coordinator knows of the stream."""

    def give_up(self, stream: Stream) -> None:
        """The stream's publisher is gone."""

    def forget(self, remote: Remote) -> None:
        """Nothing is wanted of that peer any more."""


class Remote(KeptLink):
    """One publishing peer, and the link to it.

    Parameters:
        peer_id: of the peer.
        way: where it is; without a host: nowhere that this machine could dial.
    """

    MISSED = "cannot reach the publisher at {trouble}; trying on"
    FOUND = "the publisher at {way} is reached now"
    QUIET = 2.0

    def __init__(
        self,
        owner: SubscribingPeer,
        peer_id: str,
        way: Way,
        scratch: bytearray,
        random: Callable[[], float],
    ) -> None:
        super().__init__(owner.loop, owner.settings, scratch, random)
        self.peer_id = peer_id
        self._told = way
        self._last_ways: Sequence[Way] = (way,) if way.host else ()
        self._owner = owner
        self._streams: dict[Stream, Patience | None] = {}
        self._receiving: Receiving | None = None
        self._unused: asyncio.TimerHandle | None = None
        self._refused = False
        self._met: Address | None = None  # where it was reached last

    @property
    def address(self) -> Way:
        """Where it is: the place that was dialled last."""
        return self._way or self._told

    @property
    def met(self) -> Address | None:
        """Where it was reached last."""
        return self._met

    def is_out_of_reach(self, who: str, topic: str, coordinator: Address) -> None:
        """Say that it is nowhere, and what to do."""
        if not self._warned:
            self._warned = True
            way_out = "Peer(host=…)"
            if not is_loopback(coordinator.host):
                way_out = f"PUBSUB_COORDINATOR={coordinator}, or with {way_out}"
            log.error(
                "the publisher %s on %r can be reached on its own machine only, because it listens "
                "on loopback: start it with %s",
                *(who, topic, way_out),
            )

    @property
    def nowhere(self) -> bool:
        """Whether no coordinator knows an address of it that this machine can dial."""
        return not self._ways()

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
            self._unused = self._owner.loop.call_later(IDLE_LINK_SECONDS, self._leave_if_unused)

    def give_up(self, stream: Stream) -> None:
        """A stream cannot come any more, as far as we can tell."""
        self.remove(stream)
        if self._warned and not self._streams:
            self._warned = False
            why = "it is gone"
            if not self._opened_at:
                why = "it was never reached, and no coordinator knows of it any more"
            if not self.nowhere:
                log.warning("the publisher at %s is given up: %s", self.address, why)

    def _leave_if_unused(self) -> None:
        self._unused = None
        if not self._streams:
            self.close()

    def close(self) -> None:
        """Say GOODBYE."""
        if self._closed:
            return
        if self._unused is not None:
            self._unused.cancel()
        self._owner.forget(self)
        super().close()

    # --- the link that is kept ----------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        """All that the coordinators name; where none does any more, what they named last."""
        self._last_ways = self._owner.ways(self.peer_id) or self._last_ways
        return self._last_ways

    async def _introduce(self, local_host: str) -> Dialler:
        return Dialler(self._owner.identity(local_host), "peer", self.peer_id)

    def _wanted(self) -> bool:
        return bool(self._streams) and not self._closed

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        """What cannot come any more is given up, the rest waits."""
        owner = self._owner
        gone = bool(troubles) and all(
            isinstance(e, Refused) and e.code == "identity" for _, e in troubles
        )
        # nothing listens any more where it was met, and no coordinator knows of it
        refused = all(isinstance(e, ConnectionRefusedError) for _, e in troubles) and any(
            way.address == self._met for way, _ in troubles
        )
        assert self._broken_at is not None
        over = owner.loop.time() - self._broken_at >= (
            GONE if refused else owner.settings.resume_timeout
        )
        for stream in list(self._streams):
            listed = owner.listed(stream)
            if gone or (not listed and (over or stream.expected is None)):
                owner.give_up(stream)
            else:
                owner.settled(stream)

    def _begin(self, link: Link, other: Other) -> Receiving:
        self._met = self.address.address
        receiving = self._receiving = Receiving(self._output, self._answered)
        link.reader.sink = receiving
        for stream in self._streams:
            self._subscribe(receiving, stream)
        return receiving

    def _output(self) -> None:
        if self.link is not None:
            self._owner.turn.touch(self.link)

    def _answered(self, stream: Stream) -> None:
        self._settled(stream)
        if stream.ended:
            self.remove(stream)

    def _over(self, link: Link, error: Exception | None) -> None:
        assert self._receiving is not None
        receiving, self._receiving = self._receiving, None
        if error is None and not self._closed:
            receiving.closed()
            for stream in list(self._streams):
                self._owner.give_up(stream)
            return
        receiving.broken()
        if self._closed:
            return
        log.info("the link with the publisher at %s broke: %s", self.address, error)
        for stream in self._streams:
            if stream.since is None:
                stream.since = self._broken_at
            self._settled(stream)
