"""A publisher: a peer that Subs of ours want streams of, and the one link to it.

A `Remote` dials for as long as a stream is wanted, opens a channel for each, and brings them back,
from where they stand, when the link breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pubsub.config import KINDS, UNIX, Address, Way, is_loopback
from pubsub.core.lending import Borrowing
from pubsub.core.receiving import Receiving
from pubsub.core.rights import held
from pubsub.core.stream import Stream
from pubsub.errors import ProtocolError, PubSubError
from pubsub.links.keeping import Attempt, KeptLink, Trouble, explain
from pubsub.links.link import Core, Link
from pubsub.links.patience import Patience
from pubsub.links.resolving import nearness
from pubsub.runtime.coordinator_link import Session
from pubsub.support.logs import logger
from pubsub.trust.guard import IMPOSTOR, is_auth
from pubsub.wire.handshake import Authenticator, Dialler, Other
from pubsub.wire.liveness import Backoff
from pubsub.wire.messages import Call, RelayRow

if TYPE_CHECKING:
    from pubsub.runtime.publishers import Publishers

__all__ = ["Remote"]

log = logger("pubsub")
DETOUR = 0.5
"""Seconds after which one that was dialled in vain is asked to dial us."""
ANSWER = 5.0
"""Seconds that coordinators have to name relays."""
REVERSE_FAILED = "it was asked to dial this Peer, and has not"
NO_COORDINATOR = "no coordinator that lists it is there to pass on a call"
SEEK_AGAIN = 10.0
"""Seconds, at most, until it is asked again: some times while a place is held
(`resume_timeout`)."""
BETTER = 30.0
"""Seconds after which a better way is looked for than the one that it has."""
GONE = 2.0
"""Seconds for which a publisher that no coordinator lists may refuse connections where it was met
before it is taken to be gone. (Where nothing answers, that takes `resume_timeout`.)"""
IDLE_LINK_SECONDS = 1.0
"""Seconds that a link is kept when nothing is subscribed on it any more: whoever makes one Sub
after the other need not dial, and shake hands, for each."""


class Remote(KeptLink):
    """One publishing peer, and the link to it.

    Parameters:
        peer_id: of the peer.
        way: where it is; without a host: nowhere that this machine could dial.

    Attributes:
        met: where it was reached last, by dialling it by TCP.
        who: what it is called while it is nowhere; empty: it never was.
    """

    MISSED = "cannot reach the publisher at {trouble}; trying on"
    FOUND = "the publisher at {way} is reached now"
    QUIET = 2.0

    def __init__(
        self,
        owner: Publishers,
        peer_id: str,
        way: Way,
        scratch: bytearray,
        random: Callable[[], float],
    ) -> None:
        super().__init__(owner.loop, owner.settings, scratch, random, owner.guard)
        self.scratch = scratch
        self.peer_id = peer_id
        self._told = way
        self._last_ways: Sequence[Way] = (way,) if way.host else ()
        self._owner = owner
        self._streams: dict[Stream, Patience | None] = {}
        self._unused: asyncio.TimerHandle | None = None
        self._refused = False
        self._who: tuple[str, bytes] | None = None  # what it showed when it was met first
        self._kept_said = False
        self._missing = False  # it was not reached the last time
        self._receiving: Receiving | None = None
        self._before: tuple[Link, Receiving] | None = None  # until all go on by a better way
        self._moving: set[Stream] = set()
        self._borrowing: dict[Link, Borrowing] = {}  # by the link that it belongs to
        self._detour: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._better: asyncio.TimerHandle | None = None
        self._sought = False  # ways around it were looked for
        self._relays: asyncio.Future[Sequence[RelayRow]] | None = None  # asked for
        self._in_vain_at = 0  # relays at which it was not met, since it was at one
        self._unanswered = 0  # coordinators that were asked for relays, and have not answered
        self._troubles: dict[str, str] = {}
        self._shut = ""  # that it listens on its own machine only, in words
        self._met_here = False  # at its Unix socket
        self._strange_said = False
        self.met: Address | None = None
        self.who = ""

    @property
    def address(self) -> Way:
        """Where it is: the place that was dialled last."""
        return self._way or self._told

    def is_out_of_reach(self, who: str, topic: str, coordinator: Address) -> None:
        """It is nowhere: what to say, and what to do, where no other way leads there."""
        way_out = "Peer(host=…)"
        if not is_loopback(coordinator.host):
            way_out = f"PUBSUB_COORDINATOR={coordinator}, or with {way_out}"
        self._shut = (
            f"the publisher {who} on {topic!r} can be reached on its own machine only, because it "
            f"listens on loopback: start it with {way_out}"
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
                of=self,
            )

    @property
    def fields(self) -> dict[str, object]:
        """Of a log record that is about it."""
        return {"address": self.address, "peer": self.peer_id}

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
        owner, before = self._owner, self._streams[stream]
        if before is not None:  # it was asked for elsewhere, and has moved
            before.cancel()
        self._streams[stream] = Patience(
            owner.loop, owner.settings.join_timeout, lambda: owner.readiness.settled(stream)
        )

    def _settled(self, stream: Stream) -> None:
        """It was answered, or cannot be for now."""
        patience = self._streams.get(stream)
        if patience is not None:
            patience.cancel()
            self._streams[stream] = None
        self._owner.readiness.settled(stream)

    def remove(self, stream: Stream) -> None:
        """A stream is over."""
        patience = self._streams.pop(stream, None)
        if patience is not None:
            patience.cancel()
        self._moving.discard(stream)
        self._leave_before()
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
                log.warning("the publisher at %s is given up: %s", self.address, why, of=self)

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
        for what in (self._detour, self._better):
            if what is not None:
                what.cancel()
        self._cut_before()
        super().close()

    # --- the link that is kept ----------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        """All that the coordinators name, the nearest first; where none does any more, what they
        named last."""
        self._last_ways = self._owner.ways(self.peer_id) or self._last_ways
        if len(self._last_ways) > 1:
            self._last_ways = sorted(
                self._last_ways, key=lambda way: (way.kind != UNIX, -nearness(way.host))
            )
        return self._last_ways

    def _is_new(self, way: Way) -> bool:
        """A Unix socket answers or refuses at once, so that it is always tried first."""
        return way.kind != UNIX and super()._is_new(way)

    def _enough(self) -> bool:
        """Whether no better way is to be looked for than the one that it has."""
        best = UNIX if any(way.kind == UNIX for way in self._last_ways) else "direct"
        return not self._wanted() or (self.up and self.address.rank <= KINDS.index(best))

    async def _connect(self, way: Way, timeout: float) -> None:
        """At once where it was met, and showed who it is; elsewhere when it has its turn: what
        others say of where it is may be wrong. (A Unix socket is nobody's address but its own.)"""
        if way.kind == UNIX or way.address == self.met:
            await super()._connect(way, timeout)
            return
        again, self._missing = self._missing, True
        connect = super()._connect
        patience = Patience(self._loop, timeout, self._wait_no_longer)

        async def in_turn(seconds: float) -> None:
            patience.cancel()
            if not self._wanted():
                raise ConnectionError("nothing is wanted of it any more")
            await connect(way, seconds)

        try:
            await self._owner.dialling.dial(way.address, self, again, timeout, in_turn)
        finally:
            patience.cancel()
        self._missing = False

    def _wait_no_longer(self) -> None:
        """It waits for its turn: no Sub waits for it any longer to be ready."""
        for stream in self._streams:
            self._owner.readiness.settled(stream)

    async def _introduce(self, local_host: str, authenticator: Authenticator) -> Dialler:
        return Dialler(self._owner.identity(local_host), "peer", self.peer_id, authenticator)

    def _wanted(self) -> bool:
        return bool(self._streams) and not self._closed

    @property
    def in_vain(self) -> bool:
        """Whether every way was tried, and none leads there."""
        return not self.up and self._sought and bool(self._troubles.get("direct"))

    def troubles(self) -> list[str]:
        """Why the ways failed that are better than the one that it has; all of them, where it has
        none."""
        better = KINDS[: self.address.rank] if self.up else KINDS
        if UNIX not in self._troubles:  # it has none here
            better = tuple(kind for kind in better if kind != UNIX)
        return [f"{kind}: {self._troubles.get(kind, 'no answer yet')}" for kind in better]

    def _note(self, troubles: list[Trouble], way: Way, error: Exception) -> None:
        super()._note(troubles, way, error)
        if way.kind == UNIX:
            self._troubles[UNIX] = explain(error)
            if is_auth(error) and not self._strange_said:
                self._strange_said = True
                log.warning(
                    "the Unix socket of the publisher at %s is not used, but TCP: %s",
                    *(way.told_by, explain(error)),
                    of=self,
                )

    def _complain(self, troubles: Sequence[Trouble]) -> None:
        super()._complain(_by_tcp(troubles) or troubles)

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        """What cannot come any more is given up, the rest waits."""
        by_tcp = _by_tcp(troubles)
        self._troubles["direct"] = ", ".join(f"{way}: {explain(why)}" for way, why in by_tcp)
        if not troubles:
            self._troubles["direct"] = "nobody says where this machine could dial it"
        owner = self._owner
        gone = bool(by_tcp) and all(getattr(error, "code", "") == "identity" for _, error in by_tcp)
        # nothing listens any more where it was met, and no coordinator knows of it
        refused = all(isinstance(e, ConnectionRefusedError) for _, e in troubles) and any(
            way.address == self.met or (way.kind == UNIX and self._met_here) for way, _ in troubles
        )
        assert self._broken_at is not None
        over = owner.loop.time() - self._broken_at >= (
            GONE if refused else owner.settings.resume_timeout
        )
        seeks = self.nowhere and not self._sought  # there may be a way yet
        for stream in list(self._streams):
            listed = owner.listed(stream)
            if gone or (not listed and (over or stream.expected is None)):
                owner.give_up(stream)
            elif not seeks:
                owner.readiness.settled(stream)

    # --- ways around --------------------------------------------------------------------

    def _dial(self, delay: float = 0.0) -> None:
        super()._dial(delay)
        if self._detour is None:
            around = self.address.kind not in (UNIX, "direct")
            soon = 0.0 if self.nowhere or around else DETOUR  # what worked last, first
            self._detour = self._loop.call_later(delay + soon, self._go_around)

    def _go_around(self) -> None:
        self._detour = None
        if self._wanted() and not self.up:
            self._detour = self._loop.create_task(self._seek(), name="pubsub seek")
            self._detour.add_done_callback(self._is_sought)

    def _is_sought(self, task: asyncio.Task[None]) -> None:
        if self._detour is task:
            self._detour = None
        if not task.cancelled() and task.exception() is not None:  # never stop trying to dial
            log.error("internal error while seeking a way", exc_info=task.exception())

    async def _seek(self) -> None:
        """It was not reached: have it dial us, or meet it at a relay, for as long as it is not.
        Ends when it is reached, which cancels it."""
        backoff = Backoff(self._owner.random, DETOUR, SEEK_AGAIN)
        while self._wanted():
            reverse, relay = REVERSE_FAILED, ""
            if not self._settings.listen:
                reverse = "this Peer does not listen"
            elif self._call(False):
                self._owner.calling(self.peer_id)
                await asyncio.sleep(DETOUR)
            else:
                reverse = NO_COORDINATOR
            self._troubles["reverse"] = reverse
            try:
                await self._meet()
            except Exception as error:
                if not isinstance(error, (OSError, PubSubError, asyncio.TimeoutError)):
                    log.error("internal error while a relay was sought", exc_info=error)
                relay = explain(error)
            self._troubles["relay"] = relay
            if not self._sought:
                self._sought = True
                self._wait_no_longer()
            if self.in_vain:
                if self._shut and self.nowhere and not self._warned:
                    self._warned = True
                    log.error("%s", self._shut, of=self)
                for stream in self._streams:
                    stream.out_of_reach()
            await asyncio.sleep(backoff.delay())

    async def _meet(self) -> None:
        """Connect over a relay."""
        self._relays = relays = self._loop.create_future()
        self._unanswered = self._call(True)
        if not self._unanswered:
            raise ConnectionError(NO_COORDINATOR)
        done, _ = await asyncio.wait([relays], timeout=ANSWER)
        if not done:
            raise ConnectionError("no coordinator has named a relay in time")
        rows = relays.result()
        if not rows:
            raise ConnectionError("there is none (pubsubd relay, pubsubd coordinator --relay)")
        # one that can be reached, and gives no circuit, does not keep the pair from the next
        first = self._in_vain_at % len(rows)
        rows = [*rows[first:], *rows[:first]]
        self._in_vain_at += 1
        attempt = Attempt(self._loop, self._settings, self.scratch, self._met_at_a_relay)
        timeout = self._settings.connect_timeout
        met = self._owner.relays.connect(attempt.link, rows, self.peer_id, timeout)
        await attempt.make(met, self._introduce)

    def _met_at_a_relay(self, link: Link, other: Other) -> Core:
        self._in_vain_at -= 1  # the one that was first is so again
        host, port = link.peername[:2]
        return self.keep(link, Way(host, port, kind="relay"), other)

    def told_relays(self, rows: Sequence[RelayRow]) -> bool:
        """A coordinator names relays at which it can be met; returns whether that was asked."""
        if self._relays is None or self._relays.done():
            return False
        self._unanswered -= 1
        if rows or not self._unanswered:  # another coordinator may know of some
            self._relays.set_result(rows)
        return True

    def _call(self, relay: bool) -> int:
        """Ask those coordinators that list it to have it dial us, or meet us at a relay; returns
        how many there are."""
        called = 0
        for stream in self._streams:
            sub_id, key = stream.inbox.sub_id, stream.key
            for told in self._owner.directory.listing(sub_id, key):
                if isinstance(told, Session) and told.up:
                    told.send(Call(sub_id, key.peer_id, key.stream_id, relay))
                    called += 1
            if called:
                break
        return called

    def _look_for_better(self) -> None:
        """The way that it has is not the best one."""
        self._better = None
        if self.up and self._wanted() and not self._enough():
            self._dial()
            self._better = self._loop.call_later(BETTER, self._look_for_better)

    # --- the link that is kept ----------------------------------------------------------

    def check(self, other: Other) -> None:
        """Raise ProtocolError where it is not the one that was met first."""
        if self._who is not None and self._who != other.who:
            raise ProtocolError(IMPOSTOR, code="auth")

    def keep(self, link: Link, way: Way, other: Other) -> Core:
        """See `KeptLink`."""
        self.check(other)
        self._who = other.who
        return super().keep(link, way, other)

    def _another(self, link: Link, way: Way, other: Other) -> Core:
        """It has a link. By a better way, all streams go on, each when it was answered on the link
        before: what is asked there must not overtake what is asked here. That link ends when all
        were answered here: the publisher would else take them to be given up."""
        before, receiving = self.link, self._receiving
        if way.rank >= self.address.rank or before is None or receiving is None:
            return super()._another(link, way, other)
        self._cut_before()
        log.info(
            "the publisher at %s is reached by a better way now: %s",
            *(self.address, way),
            of=self,
        )
        self._before, self._moving = (before, receiving), set(self._streams)
        link.endpoint = self
        self.link, self._way = link, way
        self._opened_at = self._loop.time()
        self._remember(way)
        for stream in self._streams:
            if stream.open:
                receiving.release(stream)
        core = self._begin(link, other)
        self._leave_before()
        return core

    def _leave_before(self) -> None:
        if self._before is not None and not self._moving:
            link, _ = self._before
            self._before = None
            link.goodbye(reason="all goes on by a better way")

    def _cut_before(self) -> None:
        """All that is still asked there is asked here, or when there is a link again."""
        if self._before is None:
            return
        (link, receiving), self._before = self._before, None
        for stream in receiving.broken():
            if self._receiving is not None:
                self._subscribe(self._receiving, stream)
        link.abort()

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        borrowing = self._borrowing.pop(link, None)
        if borrowing is not None:
            self._owner.sharing.borrow_no_more(borrowing)
        if self._before is not None and link is self._before[0]:
            self._cut_before()
        if link is self.link and self._task is not None:
            # a better way may be tried still, and who is there may say nothing: not wait for that
            self._task.cancel()
            self._task = None
        super().closed(link, error)

    def _begin(self, link: Link, other: Other) -> Receiving:
        if self._detour is not None:
            self._detour.cancel()
            self._detour = None
        way = self.address
        if way.kind == UNIX:
            self._met_here = True
        elif way.kind == "direct":
            self.met = way.address
        if not self._enough() and self._better is None:
            self._better = self._loop.call_later(BETTER, self._look_for_better)
        borrowing = self._owner.sharing.borrow(link, way, partial(self._touch, link))
        if borrowing is not None:
            self._borrowing[link] = borrowing
        receiving = self._receiving = Receiving(
            self._output,
            self._answered,
            borrowing=borrowing,
            on_offer=partial(self._offered, link),
            rights=held(other.standing.rights),
            on_refused=self._kept,
            name=other.standing.name,
            vouched=other.standing.authenticated,
        )
        link.reader.sink = receiving
        for stream in self._streams:
            if stream.route is None:  # else it is asked on the link before
                self._subscribe(receiving, stream)
        return receiving

    def _output(self) -> None:
        if self.link is not None:
            self._owner.turn.touch(self.link)

    def _touch(self, link: Link) -> None:
        """What is held of its memory has gone."""
        if not link.closing:
            self._owner.turn.touch(link)

    def _offered(self, link: Link, ticket: bytes) -> None:
        borrowing = self._borrowing.get(link)
        if borrowing is not None:
            self._owner.sharing.come(borrowing, ticket)

    def _kept(self, stream: Stream, why: str) -> None:
        """A stream is refused, on either side, for want of a right. Said once: of a pattern's
        thousand topics, all have the same trouble."""
        say = log.debug if self._kept_said else log.warning
        self._kept_said = True
        say(
            "Sub(%r) gets no %r from %s: %s",
            stream.inbox.pattern,
            stream.topic,
            stream.publisher,
            why,
        )

    def _answered(self, stream: Stream) -> None:
        self._settled(stream)
        before = self._before
        if before is not None and stream.route is before[1] and self._receiving is not None:
            before[1].release(stream)
            self._subscribe(self._receiving, stream)
            return
        self._moving.discard(stream)
        self._leave_before()
        if stream.ended:
            self.remove(stream)

    def _over(self, link: Link, error: Exception | None) -> None:
        assert self._receiving is not None
        receiving, self._receiving = self._receiving, None
        self._cut_before()  # what was not answered here holds its place there, by this
        if error is None and not self._closed:
            receiving.closed()
            for stream in list(self._streams):
                self._owner.give_up(stream)
            return
        receiving.broken()
        if self._closed:
            return
        log.info("the link with the publisher at %s broke: %s", self.address, error, of=self)
        for stream in self._streams:
            if stream.since is None:
                stream.since = self._broken_at
            self._settled(stream)


def _by_tcp(troubles: Sequence[Trouble]) -> list[Trouble]:
    """Those that mean something to people: why a Unix socket is not there, nobody could mend."""
    return [(way, error) for way, error in troubles if way.kind != UNIX]
