"""Served: a peer that subscribes to Pubs of ours, over a link that it dialled (as `remote` is the
other end)."""

from __future__ import annotations

import asyncio
from typing import Protocol

from pubsub.config import Address, Settings
from pubsub.core.publication import Publication
from pubsub.core.serving import Serving
from pubsub.links.link import Link
from pubsub.links.probing import home
from pubsub.runtime.clock import Clock
from pubsub.runtime.turn import Turn
from pubsub.wire.handshake import Other
from pubsub.wire.messages import MAX_REQUEST_PAYLOAD

__all__ = ["PublishingPeer", "Served"]


class PublishingPeer(Protocol):
    """The runtime as the side that has streams: what a served peer asks of it."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    turn: Turn
    clock: Clock

    def find(self, stream_id: int) -> Publication | None:
        """A stream of ours, with all that was put so far."""

    def joined(self, served: Served) -> bool:
        """It is connected; returns whether it may stay."""

    def left(self, served: Served, *, broken: bool) -> None:
        """It is not any more; `broken`: and its cursors hold their places."""


class Served:
    """Endpoint of an accepted link.

    Attributes:
        peer_id: of the other end.
        home: where it lives; None: not known.
    """

    def __init__(self, owner: PublishingPeer) -> None:
        self.link: Link | None = None
        self.peer_id = ""
        self.home: Address | None = None
        self._owner = owner
        self._serving: Serving | None = None
        self._shared = False  # by several channels, at some time

    def opened(self, link: Link, other: Other) -> Serving:
        """See `Endpoint`."""
        self.link = link
        self.peer_id = other.peer_id
        self.home = home(link, other)
        link.reader.max_payload = MAX_REQUEST_PAYLOAD
        address = str(Address(other.host, other.port)) if other.port else f"peer {other.peer_id}"
        serving = self._serving = Serving(
            other.peer_id,
            address,
            self._owner.find,
            self._output,
            max_channels=self._owner.settings.max_channels,
        )
        if not self._owner.joined(self):
            link.goodbye()
        return serving

    def _output(self) -> None:
        link, serving = self.link, self._serving
        if link is not None:
            self._owner.turn.touch(link)
            if not self._shared and serving is not None and serving.channels > 1:
                self._shared = True
                link.keep_short()

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        self.link = None
        broken = error is not None and not link.cut
        if self._serving is not None:
            if broken:
                self._serving.broken(self._owner.clock.now())
            else:
                self._serving.closed()
        self._owner.left(self, broken=broken)
