"""Subscribers: the peers that have dialled us for streams of our Pubs, and the link of each (whose
other end is a `Remote`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pubsub.config import Address, Settings
from pubsub.core.cursor import Cursor
from pubsub.core.publication import Leaver, Publication
from pubsub.core.rights import held
from pubsub.core.serving import Serving
from pubsub.errors import ProtocolError
from pubsub.links.link import Link
from pubsub.links.probing import Prober, home
from pubsub.runtime.clock import Clock
from pubsub.runtime.lingering import messages
from pubsub.runtime.sharing import Sharing
from pubsub.runtime.snapshot import LinkRow
from pubsub.runtime.turn import Turn
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit
from pubsub.trust.guard import IMPOSTOR
from pubsub.wire.handshake import Other
from pubsub.wire.messages import MAX_REQUEST_PAYLOAD

__all__ = ["Served", "Subscribers"]

log = logger("pubsub")
absent_log = logger("pubsub.absent")
absent_log.logger.addFilter(RateLimit())  # a Peer may have a thousand Pubs with the same trouble

MAX_UNCALLED = 256
"""Subscribers of which it is known why they cannot be dialled."""


class Subscribers:
    """All peers that subscribe, and how long a place is held for one that is away.

    Parameters:
        loop, settings, turn: of the runtime.
        prober: asks whether those live who are away.
        find: a stream of ours, with all that was put so far.
        met: where a peer was reached, if it was; it may be a publisher too.
        told: where others are told to dial this process, in words.
        sharing: what memory they are lent.

    Attributes:
        served: those that are connected.
        holding: the publications that hold a place for somebody who is away.
        absent: the topic of each Pub, and who was expected there and did not come: to be said.
        clock: by which they do.
        closed: lingering is over: nobody is let in any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        turn: Turn,
        prober: Prober,
        find: Callable[[int], Publication | None],
        met: Callable[[str], Address | None],
        told: Callable[[], str],
        sharing: Sharing,
    ) -> None:
        self.settings = settings
        self.sharing = sharing
        self.turn = turn
        self.prober = prober
        self.find = find
        self.served: dict[Served, None] = {}
        self.holding: dict[Publication, None] = {}
        self.absent: list[tuple[str, Leaver]] = []
        self.clock = Clock(loop, self._expire)
        self.closed = False
        self._met = met
        self._told = told
        self._known: dict[str, _Known] = {}
        self._uncalled: dict[str, str] = {}  # why they cannot be dialled; the oldest first

    def rows(self) -> list[LinkRow]:
        """The links."""
        return [
            LinkRow("subscriber", served.peer_id, True, served.way) for served in list(self.served)
        ]

    def called_back(self, peer_id: str, trouble: str) -> None:
        """That peer was dialled, as it had asked; `trouble`: why in vain, empty: it was reached."""
        self._uncalled.pop(peer_id, None)
        if trouble:
            self._uncalled[peer_id] = trouble
            if len(self._uncalled) > MAX_UNCALLED:
                del self._uncalled[next(iter(self._uncalled))]

    def way_of(self, cursor: Cursor) -> dict[str, Any]:
        """By which way one has come, and why better ones failed, as far as is known here. May be
        called from any thread."""
        outlet = cursor.outlet
        way, failed = "" if outlet is None else outlet.way, []
        if way in ("reverse", "relay") and not self.settings.listen:
            failed.append("direct: this Peer does not listen")
        uncalled = self._uncalled.get(cursor.key.peer_id)
        if way == "relay" and uncalled:
            failed.append(f"reverse: {uncalled}")
        return {"way": way, "failed": failed}

    def admit(self, other: Other) -> None:
        """Raise ProtocolError where it is not the one that has come under its identity before."""
        known = self._known.get(other.peer_id)
        if known is not None and known.who != other.who:
            raise ProtocolError(IMPOSTOR, code="auth")

    def joined(self, served: Served, other: Other) -> bool:
        """It is connected; returns whether it may stay."""
        self._known.setdefault(other.peer_id, _Known(other.who)).links += 1
        self.served[served] = None
        self.prober.clear(other.peer_id)
        return not self.closed

    def departed(self, served: Served, *, broken: bool) -> None:
        """It is not connected any more; `broken`: and its cursors hold their places."""
        if served in self.served:
            del self.served[served]
            known = self._known[served.peer_id]
            known.links -= 1
            self._forget_if_gone(served.peer_id, known)
        if broken and not self.closed:  # else no time is kept that could run out
            self.clock.arm(self.clock.now() + self.settings.resume_timeout)
            home = served.home or self._met(served.peer_id)  # where it is known to live
            if home is not None and self._is_away(served.peer_id):
                self.prober.suspect(
                    served.peer_id, home, self.settings.resume_timeout, self._is_gone
                )

    def _forget_if_gone(self, peer_id: str, known: _Known) -> None:
        """An identity for which nothing is held is nobody's any more."""
        if not known.links and not self._is_away(peer_id):
            del self._known[peer_id]

    def _is_away(self, peer_id: str) -> bool:
        return any(publication.is_away(peer_id) for publication in self.holding)

    def _is_gone(self, peer_id: str) -> None:
        """A process that subscribed has ended without a goodbye: nobody waits for it."""
        log.info(
            "peer %s is gone without a goodbye: no place is held for it any more",
            peer_id,
            peer=peer_id,
        )
        for publication in list(self.holding):
            publication.leave(peer_id)

    def _expire(self, now: float) -> float | None:
        """No place is held for longer."""
        dues = [publication.expire(now) for publication in list(self.holding)]
        for peer_id, known in list(self._known.items()):
            self._forget_if_gone(peer_id, known)
        absent, self.absent = self.absent, []
        for topic, who in absent:  # should it come after all, it counts that as lost
            if not who.observer:
                absent_log.warning(
                    "Pub(%r): a subscriber that was expected has not come within %g s "
                    "(join_timeout): %s lacks %s; others are told to dial %s",
                    *(topic, self.settings.join_timeout, who.name, messages(who.lacks)),
                    self._told(),
                    topic=topic,
                    address=who.name,
                )
        return min((at for at in dues if at is not None), default=None)

    def close(self) -> list[Link]:
        """Hold no place any more, and ask for nobody; returns the links that asked."""
        self.clock.stop()
        return self.prober.close()


class _Known:
    """What a peer showed when it came first, which nobody else can show, and how many links it
    has now."""

    __slots__ = ("links", "who")

    def __init__(self, who: tuple[str, bytes]) -> None:
        self.who = who
        self.links = 0


class Served:
    """Endpoint of an accepted link.

    Attributes:
        peer_id: of the other end.
        home: where it lives; None: not known.
        way: of which kind the way to it is (see `Way.kind`).
    """

    def __init__(self, owner: Subscribers) -> None:
        self.link: Link | None = None
        self.peer_id = ""
        self.home: Address | None = None
        self.way = ""
        self._owner = owner
        self._serving: Serving | None = None
        self._shared = False  # by several channels, at some time

    def opened(self, link: Link, other: Other) -> Serving:
        """See `Endpoint`."""
        stays = self._owner.joined(self, other)
        self.link = link
        self.way = link.kind
        self.peer_id = other.peer_id
        self.home = home(link, other)
        if link.kind == "relay" and not other.listens:
            self._owner.called_back(other.peer_id, "it does not listen")
        link.reader.max_payload = MAX_REQUEST_PAYLOAD
        address = str(Address(other.host, other.port)) if other.port else f"peer {other.peer_id}"
        serving = self._serving = Serving(
            other.peer_id,
            address,
            self._owner.find,
            self._output,
            max_channels=self._owner.settings.max_channels,
            write_now=self._write_now,
            way=link.kind,
            rights=held(other.standing.rights),
            now=self._owner.clock.now,
        )
        self._owner.sharing.lend(link, serving)
        if not stays:
            link.goodbye()
        return serving

    def _output(self) -> None:
        link, serving = self.link, self._serving
        if link is not None:
            self._owner.turn.touch(link)
            if not self._shared and serving is not None and serving.channels > 1:
                self._shared = True
                link.keep_short()

    def _write_now(self, frame: bytes) -> bool:
        link, turn = self.link, self._owner.turn
        if not turn.lone or link is None or not link.write_now(frame):
            return False
        turn.lone = False  # what else is put in this turn leaves together
        return True

    def close(self) -> None:
        """Say GOODBYE."""
        if self.link is not None:
            self.link.goodbye()

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        self.link = None
        broken = error is not None and not link.cut
        if self._serving is not None:
            self._owner.sharing.lend_no_more(self._serving)
            if broken:
                self._serving.broken(self._owner.clock.now())
            else:
                self._serving.closed()
        self._owner.departed(self, broken=broken)
