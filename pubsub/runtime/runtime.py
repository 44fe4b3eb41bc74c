"""One process's runtime, bound to one event loop: it brings the cores and the connections together.

It owns the listening sockets, the links in both directions, the sessions with the coordinators,
and the publications and inboxes of all Pubs and Subs of the peer. Everything in it runs in its
loop's thread. What is to be written is collected during a turn of the loop and written at its
end (see `turn`): one batch per Pub, one write per link.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import Any, ParamSpec, Protocol

from pubsub.config import (
    Address,
    Settings,
    Way,
    is_loopback,
    is_wildcard,
)
from pubsub.core.cursor import SubKey
from pubsub.core.directory import Directory
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Leaver, Publication
from pubsub.core.stream import Stream, StreamKey
from pubsub.core.topics import is_pattern, matches
from pubsub.errors import Closed, CoordinatorUnavailable, WrongContext
from pubsub.links.doors import Doors
from pubsub.links.link import Link
from pubsub.links.listening import REQUEST_SCRATCH
from pubsub.links.patience import HELD_UP, Patience
from pubsub.links.probing import Prober
from pubsub.runtime.coordinator_link import Session
from pubsub.runtime.publisher_link import Remote
from pubsub.runtime.readiness import Ready
from pubsub.runtime.snapshot import CoordinatorRow, LinkRow, PubRow, Snapshot, SubRow
from pubsub.runtime.subscriber_link import Served
from pubsub.runtime.turn import Source, Turn
from pubsub.support.apart import apart
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit
from pubsub.support.reentry import running_loop
from pubsub.wire.buffers import FOR_BATCHES, reuse_memory
from pubsub.wire.frames import SCRATCH_SIZE
from pubsub.wire.messages import (
    Expect,
    Match,
    MatchedPub,
    Register,
    Unregister,
)

__all__ = ["Runtime", "Sink"]

log = logger("pubsub")
absent_log = logger("pubsub.absent")
for _log in (log, absent_log):
    _log.logger.addFilter(RateLimit())  # a Peer may have a thousand Pubs with the same trouble

P = ParamSpec("P")

LOOK_AGAIN = 0.25
"""Seconds after which a close looks again for whom it waits in vain …"""
SAY_AFTER = 1.0
"""… and after which it says for whom it waits."""
NAMED = 5
"""Pubs that a message for people names at most."""
MUTE_WAITS = 5
"""How often `connect_timeout` is waited again for what accepts the connection and does not answer:
it may be busy."""
REMEMBERED = 4096
"""Closed Pubs whose counts are remembered."""
TROUBLE = 2.0
"""Seconds after which a publisher that is not reached is in trouble. One that ended just when it
was to be reached is not: it is soon listed no more."""
LONELY = 5.0
"""Seconds for which a Sub may know of no publisher before the embedded coordinator is said to be a
likely reason."""


class Sink(Protocol):
    """What drains an inbox: a Sub."""

    def abandon(self, error: Exception) -> None:
        """Refuse every further call, with this error."""


class _Pub:
    """What the runtime knows of a Pub."""

    def __init__(self, publication: Publication, source: Source, ready: Ready) -> None:
        self.id = publication.stream_id
        self.publication = publication
        self.source = source
        self.ready = ready
        self.out_of_reach = False  # for a subscriber, and that was said


class _Sub:
    """What the runtime knows of a Sub."""

    def __init__(self, inbox: Inbox, sink: Sink, ready: Ready) -> None:
        self.id = inbox.sub_id
        self.inbox = inbox
        self.sink = sink
        self.ready = ready
        self.acknowledged = False
        self.unsettled: set[Stream] = set()


class Runtime:
    """See the module.

    Parameters:
        loop: whose thread everything runs in.
        coordinators: the addresses; see `coordinators_from`.
        configured: False: the addresses are the default, where this process may start a
            coordinator itself.
        settings: times, sizes, addresses.
        given: True: the program names the addresses, and the environment does not change that.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coordinators: tuple[Address, ...],
        configured: bool,
        settings: Settings,
        *,
        given: bool = False,
    ) -> None:
        self.loop = loop
        self.thread = 0
        self.settings = settings
        self.peer_id = os.urandom(8).hex()  # `secrets` would take 0.9 MiB
        self.closing = False  # nothing new is made
        self.why_closed = "this Peer is closed"
        self.exiting = False  # the process ends: who waits for anything stays where it is
        self.shut_down = False  # by its loop, as `asyncio.run` does last
        self._close_task: asyncio.Task[None] | None = None
        self._close_by = self._close_linger = 0.0
        self._ended_all = False  # lingering is over: nobody is let in
        self._random = random.Random(os.urandom(8)).random
        self._scratch = bytearray(SCRATCH_SIZE)
        self._request_scratch = bytearray(REQUEST_SCRATCH)
        self.doors = Doors(
            loop, settings, self._request_scratch, self.peer_id, lambda other: Served(self)
        )
        self.identity, self.identify = self.doors.identity, self.doors.identify
        self._pubs: dict[int, _Pub] = {}
        self._subs: dict[int, _Sub] = {}
        self._ended: dict[int, Publication] = {}
        self._holding: dict[Publication, None] = {}  # those with a place for somebody who is away
        self._next_id = 1
        self._remotes: dict[str, Remote] = {}
        self._served: dict[Served, None] = {}
        self._prober = Prober(loop, self.peer_id, settings, self._request_scratch)
        self._directory = Directory()
        self.turn = Turn(loop, self.peer_id, settings.ack_delay)
        self._answers: dict[Session, set[int]] = {}
        self._embedded: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.mute_waits = MUTE_WAITS
        self._given = given
        self._contact = False  # some coordinator was reached once
        self._expiry: asyncio.TimerHandle | None = None
        self._absent: list[tuple[str, Leaver]] = []  # who was expected and did not come: to be said
        self._look_at = 0.0
        self._held_up = 0.0
        self._settle_timer: Patience | None = None
        self._lonely_timer: asyncio.TimerHandle | None = None
        self._may_be_alone = not configured  # which is to be said once
        embed = None if configured else self._embed
        self.sessions = [
            Session(loop, address, self, settings, self._scratch, self._random, embed)
            for address in coordinators
        ]

    @apart
    def start(self) -> None:
        """Begin to connect to the coordinators; called in the loop's thread."""
        self.thread = get_ident()
        reuse_memory(FOR_BATCHES)
        for session in self.sessions:
            session.start()

    # --- Pubs ---------------------------------------------------------------------------

    @apart
    def add_pub(
        self, source: Source, topic: str, *, codec: str, block: bool, buffer: int, history: int
    ) -> tuple[Publication, Ready]:
        """Open a stream: local Subs join at once, others when the coordinators name them."""
        self._check_open()
        publication = Publication(
            self._new_id(),
            topic,
            codec=codec,
            block=block,
            buffer=buffer,
            history=history,
            join_timeout=self.settings.join_timeout,
            resume_timeout=self.settings.resume_timeout,
            now=self.now(),
            holding=self._holding,
        )
        publication.on_absent = lambda who: self._absent.append((topic, who))
        pub = _Pub(publication, source, Ready(self.loop))
        self._pubs[publication.stream_id] = pub
        for sub in self._subs.values():
            if _wants(sub.inbox.pattern, topic):
                self._join_locally(publication, sub)
        self._arm_expiry(self.now() + self.settings.join_timeout)
        self._announce(Register(publication.stream_id, "pub", topic, False, False))
        self._await_contact(pub)
        return publication, pub.ready

    async def close_pub(self, stream_id: int, linger: float | None = None) -> None:
        """Close a stream: wait up to `linger` seconds until every subscriber has received what
        it is due, then end it."""
        pub = self._pubs.get(stream_id)
        if pub is not None:
            if linger is None:
                linger = self.settings.linger
            await self._linger([pub], linger, self.loop.time() + linger)
            pub.source.abandon(Closed(f"Pub({pub.publication.topic!r}) is closed"))
            self.end_pub(stream_id)

    async def _linger(
        self, pubs: Sequence[_Pub], linger: float, by: float, *, last: bool = False
    ) -> None:
        """Wait until `by`, which is `linger` seconds after the beginning, until what waits for room
        has been put and every subscriber has received all of it. One line says for whom it waits,
        when that takes long (while a Peer is being closed, only its own close, the `last`, does),
        and one who lacks what at the end."""
        began = self.loop.time()
        said = linger <= SAY_AFTER
        timer: asyncio.Handle | Patience

        def look() -> None:
            nonlocal said, timer
            timer = Patience(self.loop, LOOK_AGAIN, look)
            now = self.loop.time()
            named = not all(session.tried and not session.up for session in self.sessions)
            for pub in pubs:
                pub.publication.hurry(now, named=named)
            if now - began >= SAY_AFTER and not said and (last or not self.closing):
                said = True
                log.warning(
                    "closing waits up to %.0f s more (linger=%g)%s: %s",
                    by - now,
                    linger,
                    ", and Ctrl-C ends it" if self.exiting or self.shut_down else "",
                    self.unreceived(pubs),
                )

        tasks = [self.loop.create_task(self._delivered(pub, by)) for pub in pubs]
        timer = self.loop.call_soon(look)
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            timer.cancel()
        for error in results:
            if isinstance(error, Exception):  # one Pub's trouble is no other's
                log.error("internal error while a Pub was ended", exc_info=error)
        left = self.unreceived(pub for pub in pubs if not pub.publication.ended)
        if left and linger > 0:
            took = self.loop.time() - began
            log.warning("closed after %.1f s (linger=%g): %s", took, linger, left)

    async def _delivered(self, pub: _Pub, by: float) -> None:
        """Wait until then for one Pub."""
        pub.source.seal()
        queued = pub.source.queued()
        if queued is not None and by > self.loop.time():
            await asyncio.wait({queued}, timeout=by - self.loop.time())
        left = max(0, by - self.loop.time())
        await self.received(pub.publication, left, observers=True, hurries=True)

    def unreceived(self, pubs: Iterable[_Pub] | None = None) -> str:
        """How many messages of which Pubs are not known to have been received, and by whom; empty:
        there are none. May be called from any thread."""
        found = []
        for pub in list(self._pubs.values()) if pubs is None else pubs:
            publication = pub.publication
            put = max(publication.log.next_seq, pub.source.count())
            count = publication.unreceived(put)
            if count:
                whom = publication.behind(put) or "subscribers that no coordinator has named yet"
                found.append((count, f"{_messages(count)} of Pub({publication.topic!r})", whom))
        more = sum(count for count, _, _ in found[NAMED:])
        named = "; ".join(
            f"{what} {'is' if count == 1 else 'are'} not known to have been received by {whom}"
            for count, what, whom in found[:NAMED]
        )
        if more:
            named += f"; nor {_messages(more)} of {len(found) - NAMED} more Pubs"
        return named

    def drop_pub(self, stream_id: int) -> None:
        """A Pub was dropped without being closed: close it in the background. Thread-safe."""
        self._from_anywhere(self._close_dropped, stream_id)

    def _close_dropped(self, stream_id: int) -> None:
        if not self.closing and stream_id in self._pubs:
            task = self.loop.create_task(self.close_pub(stream_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def drop_sub(self, sub_id: int) -> None:
        """A Sub was dropped without being closed. Thread-safe."""
        self._from_anywhere(self.close_sub, sub_id)

    def _from_anywhere(self, call: Callable[[int], None], number: int) -> None:
        if not self.closing:
            try:
                self.loop.call_soon_threadsafe(call, number)
            except RuntimeError:
                pass  # the loop is closed, and with it everything else

    def cut_pub(self, stream_id: int) -> None:
        """End a stream at once, because its close was interrupted."""
        pub = self._pubs.get(stream_id)
        if pub is not None:
            self._say_interrupted([pub])
            self.end_pub(stream_id)

    def _say_interrupted(self, pubs: Iterable[_Pub] | None = None) -> None:
        left = self.unreceived(pubs)
        if left:
            log.warning("closing was interrupted: %s", left)

    def end_pub(self, stream_id: int) -> None:
        pub = self._pubs.pop(stream_id, None)
        if pub is None:
            return
        pub.source.seal()
        pub.publication.end("closed", "the Pub was closed")
        self._ended[stream_id] = pub.publication
        for answered in self._answers.values():
            answered.discard(stream_id)
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        for session in self.sessions:
            session.send(Unregister(stream_id))
        if not pub.ready.done and not self.exiting:
            pub.ready.set(Closed(f"Pub({pub.publication.topic!r}) is closed"))

    async def received(
        self,
        publication: Publication,
        timeout: float | None,
        *,
        observers: bool = False,
        hurries: bool = False,
    ) -> bool:
        """Wait until all that is in the log has been received; False when time ran out."""
        arrived: asyncio.Future[None] = self.loop.create_future()

        def done() -> None:
            if not arrived.done():
                arrived.set_result(None)

        waiter = publication.when_received(done, observers=observers, hurries=hurries)
        if waiter is None:
            return True
        timer = None if timeout is None else self.loop.call_later(timeout, done)
        try:
            await arrived
        finally:
            publication.forget_waiter(waiter)
            if timer is not None:
                timer.cancel()
        return not waiter.pending

    def find(self, stream_id: int) -> Publication | None:
        """The stream of that id, with all that was put by now in its log; None: there is none."""
        pub = self._pubs.get(stream_id)
        if pub is None:
            return self._ended.get(stream_id)
        pub.source.seal()
        return pub.publication

    # --- Subs ---------------------------------------------------------------------------

    @apart
    def add_sub(self, sink: Sink, make: Callable[[int], Inbox]) -> tuple[Inbox, Ready]:
        """Open an inbox: local Pubs are joined at once, others when the coordinators name them."""
        self._check_open()
        inbox = make(self._new_id())
        sub = self._subs[inbox.sub_id] = _Sub(inbox, sink, Ready(self.loop))
        for pub in self._pubs.values():
            if _wants(inbox.pattern, pub.publication.topic):
                pub.source.seal()
                self._join_locally(pub.publication, sub)
        self._announce(Register(inbox.sub_id, "sub", inbox.pattern, False, inbox.observer))
        self._await_contact(sub)
        if self._may_be_alone and self._lonely_timer is None:
            self._lonely_timer = self.loop.call_later(LONELY, self._look_for_lonely, inbox.sub_id)
        return inbox, sub.ready

    def _look_for_lonely(self, oldest: int) -> None:
        """Say of a Sub that still knows of no publisher that they may be registered elsewhere.

        `oldest`: the Subs from there on came since the timer was set, the first of them with it.
        """
        self._lonely_timer = None
        young = [sub for sub in self._subs.values() if sub.inbox.lonely and sub.id > oldest]
        sub = self._subs.get(oldest)
        if sub is not None and sub.inbox.lonely and self._embedded is not None:
            self._may_be_alone = False
            log.warning(
                "nothing publishes on %r and this process is its own coordinator (nothing listened "
                "on %s): set PUBSUB_COORDINATOR to where the others' runs",
                sub.inbox.pattern,
                self.sessions[0].address,
            )
        elif young:
            self._lonely_timer = self.loop.call_later(LONELY, self._look_for_lonely, young[0].id)

    def close_sub(self, sub_id: int) -> None:
        """Close an inbox: whatever waits in it is given up."""
        sub = self._subs.pop(sub_id, None)
        if sub is None:
            return
        for stream in sub.inbox.close():
            if stream.route is not None:
                stream.route.unsubscribe(stream)
            remote = self._remotes.get(stream.key.peer_id)
            stream.finish()
            if remote is not None:
                remote.remove(stream)
        self._directory.drop(sub_id)
        for answered in self._answers.values():
            answered.discard(sub_id)
        for session in self.sessions:
            session.send(Unregister(sub_id))
        if not sub.ready.done and not self.exiting:
            sub.ready.set(Closed(f"Sub({sub.inbox.pattern!r}) is closed"))

    def _join_locally(self, publication: Publication, sub: _Sub) -> None:
        key = StreamKey(self.peer_id, publication.stream_id)
        stream = Stream(
            sub.inbox,
            key,
            publication.topic,
            f"{self.address or 'local'}#{publication.stream_id}",
            self.settings.max_batch,
        )
        sub.inbox.add(stream)
        self.turn.local.join(publication, stream)

    def undo(self, made_for: Source | Sink) -> None:
        """The constructor of that Pub or Sub was interrupted, wherever it was."""
        for stream_id, pub in list(self._pubs.items()):
            if pub.source is made_for:
                self.end_pub(stream_id)
        for sub_id, sub in list(self._subs.items()):
            if sub.sink is made_for:
                self.close_sub(sub_id)
                for pub in self._pubs.values():  # a join that was interrupted is half made
                    pub.publication.give_up(SubKey(self.peer_id, sub_id))

    # --- what the coordinators say (Directed) -------------------------------------------

    @property
    def address(self) -> str:
        """``host:port`` that others are told; empty before a coordinator was reached."""
        return self.doors.address

    def registrations(self, session: Session) -> Iterable[Register]:
        """See `Directed`."""
        for stream_id, pub in self._pubs.items():
            publication = pub.publication
            # while its first messages are kept, it counts as new wherever it registers
            yield Register(stream_id, "pub", publication.topic, publication.settled, False)
        for sub_id, sub in self._subs.items():
            inbox = sub.inbox
            yield Register(sub_id, "sub", inbox.pattern, sub.acknowledged, inbox.observer)

    def connected(self, session: Session, settle: float) -> None:
        """See `Directed`."""
        self._contact = True
        self._answers[session] = set()
        self._directory.restart(session)
        for pub in self._pubs.values():
            pub.ready.retry()
        for sub in self._subs.values():
            sub.ready.retry()

    def disconnected(self, session: Session) -> None:
        """See `Directed`."""
        self._answers.pop(session, None)
        if not self._contact and all(s.not_a_coordinator for s in self.sessions):
            self._give_up_contact()
        for sub in list(self._subs.values()):
            self._check_sub(sub)
        for pub in list(self._pubs.values()):
            self._check_pub(pub)

    def replaced(self, session: Session, by: Session | None) -> None:
        """See `Directed`."""
        self._answers.pop(session, None)
        self._directory.hand_over(session, by)

    def matched(self, session: Session, match: Match) -> None:
        """See `Directed`."""
        sub = self._subs.get(match.sub_id)
        if sub is None:
            return
        gone = self._directory.match(session, match)
        for row in match.added:
            self._want(session, sub, row)
        for key in gone:
            stream = sub.inbox.streams.get(key)
            if (
                stream is not None
                and stream.route is None
                and stream.expected is None
                and not stream.before  # its process, if that lives, says how much it has put
            ):
                self.give_up(stream)  # it never was there, and now it need not be
        if match.complete:
            self._answers.get(session, set()).add(match.sub_id)
            sub.acknowledged = True
            self._check_sub(sub)

    def expected(self, session: Session, expect: Expect) -> None:
        """See `Directed`."""
        pub = self._pubs.get(expect.stream_id)
        if pub is None:
            return
        publication = pub.publication
        if expect.added:
            pub.source.seal()
        now = self.now()
        for row in expect.added:
            if row.elsewhere:
                self._is_out_of_reach(pub, row.elsewhere)
            elif row.peer_id != self.peer_id:
                publication.expect(
                    SubKey(row.peer_id, row.sub_id),
                    before=row.before,
                    observer=row.observer,
                    now=now,
                )
        for pair in expect.removed:
            publication.unexpect(SubKey(*pair))
        if expect.added:
            self._arm_expiry(now + self.settings.join_timeout)
        if expect.complete:
            self._answers.get(session, set()).add(expect.stream_id)
            self._check_pub(pub)

    def _is_out_of_reach(self, pub: _Pub, coordinator: str) -> None:
        """A subscriber on another machine, which reaches the coordinator there, cannot reach us."""
        hosts = [identity.host for identity in self.doors.identities.values()]
        if pub.out_of_reach or not all(map(is_loopback, hosts)):
            return
        pub.out_of_reach = True
        if self.settings.advertise:
            way_out = f"advertise={self.settings.advertise!r} must be what others can dial"
        elif self.settings.host and not is_wildcard(self.settings.host):
            way_out = f"Peer(host={self.settings.host!r}) must be an address that others can dial"
        elif self._given:
            way_out = f"name its coordinator as {coordinator}"
        else:
            way_out = f"start it with PUBSUB_COORDINATOR={coordinator}, or with Peer(host=…)"
        log.error(
            "a subscriber on another machine wants %r, and this Peer can be reached on its own "
            "machine only, because it listens on %s: %s",
            *(pub.publication.topic, " and ".join(hosts), way_out),
        )

    def _announce(self, register: Register) -> None:
        for session in self.sessions:
            session.send(register)

    def _want(self, session: Session, sub: _Sub, row: MatchedPub) -> None:
        """A publisher matches: have its stream, unless we do."""
        inbox, key = sub.inbox, StreamKey(row.peer_id, row.stream_id)
        if row.peer_id == self.peer_id or inbox.over(key):
            return
        way = Way(row.host, row.port, session)
        remote = self._remotes.get(row.peer_id)
        if remote is None:
            remote = self._remotes[row.peer_id] = Remote(
                self, row.peer_id, way, self._scratch, self._random
            )
        who = str(way) if row.host else row.who or f"peer {row.peer_id}"
        if remote.nowhere:
            remote.is_out_of_reach(who, row.topic, session.reached)
        if key in inbox.streams:
            return
        publisher = f"{who}#{row.stream_id}"
        full = remote.streams >= self.settings.max_channels
        if full:
            remote.refuse()
            if key in inbox.gone:
                return
        stream = inbox.returned(key)
        if stream is None:
            stream = Stream(inbox, key, row.topic, publisher, self.settings.max_batch)
            stream.before = row.before
            stream.since = self.loop.time()
            if full:
                stream.vanish(trouble=True)
                return
            inbox.add(stream)
        stream.publisher = publisher
        if not sub.ready.done:
            sub.unsettled.add(stream)
        remote.add(stream)

    # --- readiness ----------------------------------------------------------------------

    def _await_contact(self, entity: _Pub | _Sub) -> None:
        """Fail what is not ready when no coordinator was ever reached in time."""
        if all(session.not_a_coordinator for session in self.sessions):
            self.loop.call_soon(self._give_up_on, entity)
        else:
            self._have_patience(entity)

    def _have_patience(self, entity: _Pub | _Sub) -> None:
        entity.ready.timer = Patience(
            self.loop, self.settings.connect_timeout, lambda: self._give_up_on(entity)
        )

    def _give_up_contact(self) -> None:
        for pub in self._pubs.values():
            self._give_up_on(pub)
        for sub in self._subs.values():
            self._give_up_on(sub)

    def _give_up_on(self, entity: _Pub | _Sub) -> None:
        ready = entity.ready
        if ready.done or ready.error is not None or self.closing:
            return
        mute = [session for session in self.sessions if session.mute]
        if mute and ready.waited < self.mute_waits:  # it will answer, or go
            ready.waited += 1
            self._have_patience(entity)
            if self._skip_silent_coordinators(entity):
                return
            for session in mute:
                session.complain_of_silence()
            return
        error = self._unreachable()
        ready.set(error)
        if isinstance(entity, _Sub):
            entity.inbox.on_entry()  # whoever waits for a message waits in vain

    def _unreachable(self) -> Exception:
        """Why nothing can be ready: no coordinator, or trouble of our own."""
        for session in self.sessions:
            if session.own and session.failure is not None:
                return session.failure
        addresses = tuple(str(session.address) for session in self.sessions)
        why = "; ".join(f"{session}: {session.trouble}" for session in self.sessions)
        where = "give the address where" if self._given else "set PUBSUB_COORDINATOR to where"
        way_out = f"start one with `pubsubd coordinator`, or {where} it runs"
        if any(session.mute for session in self.sessions):
            way_out = f"have it go on, or end it; or {where} another one runs"
        return CoordinatorUnavailable(
            f"no coordinator could be reached ({why})",
            addresses=tuple(dict.fromkeys(addresses)),
            way_out=way_out,
        )

    def _skip_silent_coordinators(self, entity: _Pub | _Sub) -> bool:
        """Where one coordinator has answered, one that is connected and does not is waited for no
        longer."""
        if not any(entity.id in answered for answered in self._answers.values()):
            return False
        for session, answered in self._answers.items():
            if entity.id not in answered:
                answered.add(entity.id)
                log.warning(
                    "the coordinator at %s has not answered for %g s; going on without it",
                    session,
                    self.settings.connect_timeout,
                )
        if isinstance(entity, _Sub):
            self._check_sub(entity)
        else:
            self._check_pub(entity)
        return True

    def _answered_by_all(self, entity: int) -> bool:
        """Whether each coordinator that is up has said all it knows, and at least one is."""
        return (
            bool(self._answers)
            and all(session.tried for session in self.sessions)
            and all(entity in answered for answered in self._answers.values())
        )

    def _check_sub(self, sub: _Sub) -> None:
        if not sub.ready.done and not sub.unsettled and self._answered_by_all(sub.inbox.sub_id):
            sub.ready.set()

    def _check_pub(self, pub: _Pub) -> None:
        publication = pub.publication
        if not self._answered_by_all(publication.stream_id):
            return
        if not pub.ready.done:
            pub.ready.set()
        publication.answered(self.now())
        self._settle(publication)
        if not publication.settled:
            self._arm_expiry(self.now() + self.settings.join_timeout)

    def _settle(self, publication: Publication) -> None:
        """Stop keeping a Pub's first messages once no older Sub can turn up."""
        if publication.settled or any(session.awaited for session in self.sessions):
            return  # where a coordinator is down, the join timeout ends it
        wait = max(s.settled_at for s in self.sessions if s.up) - self.loop.time()
        if wait <= 0:
            publication.settle()
        elif self._settle_timer is None:
            self._settle_timer = Patience(self.loop, wait, self._settle_all)

    def _settle_all(self) -> None:
        self._settle_timer = None
        for pub in list(self._pubs.values()):
            if self._answered_by_all(pub.publication.stream_id):
                self._settle(pub.publication)

    def settled(self, stream: Stream) -> None:
        """A publisher has answered a subscription, or cannot be reached."""
        sub = self._subs.get(stream.inbox.sub_id)
        if sub is not None and stream in sub.unsettled:
            sub.unsettled.discard(stream)
            self._check_sub(sub)

    # --- links --------------------------------------------------------------------------

    def ways(self, peer_id: str) -> list[Way]:
        """Where the coordinators say that a peer is."""
        return [_in_zone(way) for way in self._directory.ways(peer_id)]

    def listed(self, stream: Stream) -> bool:
        """Whether any coordinator still knows of this stream."""
        return self._directory.listed(stream.inbox.sub_id, stream.key)

    def give_up(self, stream: Stream) -> None:
        """A publisher is gone for good, as far as we can tell."""
        remote = self._remotes.get(stream.key.peer_id)
        stream.vanish(self.in_trouble(stream))
        if remote is not None:
            remote.give_up(stream)
        self.settled(stream)

    def in_trouble(self, stream: Stream) -> bool:
        """Whether its publisher has not been connected for longer than that takes, or cannot be."""
        remote = self._remotes.get(stream.key.peer_id)
        if remote is not None and remote.nowhere:
            return True
        return stream.since is not None and self.loop.time() - stream.since >= TROUBLE

    def forget(self, remote: Remote) -> None:
        """Nothing is wanted of that peer any more."""
        if self._remotes.get(remote.peer_id) is remote:
            del self._remotes[remote.peer_id]

    def joined(self, served: Served) -> bool:
        """See `PublishingPeer`."""
        self._served[served] = None
        self._prober.clear(served.peer_id)
        return not self._ended_all

    def left(self, served: Served, *, broken: bool) -> None:
        """See `PublishingPeer`."""
        self._served.pop(served, None)
        if broken and not self._ended_all:  # else there is nothing left whose time could run out
            self._arm_expiry(self.now() + self.settings.resume_timeout)
            self._suspect(served)

    def _suspect(self, served: Served) -> None:
        """Ask whether a subscriber still lives whose place is held, where it is known to live."""
        peer_id, home = served.peer_id, served.home
        remote = self._remotes.get(peer_id)
        if home is None and remote is not None:
            home = remote.met
        if home is not None and self._is_away(peer_id):
            self._prober.suspect(peer_id, home, self.settings.resume_timeout, self._is_gone)

    def _is_away(self, peer_id: str) -> bool:
        return any(publication.is_away(peer_id) for publication in self._holding)

    def _is_gone(self, peer_id: str) -> None:
        """A process that subscribed has ended without a goodbye: nobody waits for it."""
        log.info("peer %s is gone without a goodbye: no place is held for it any more", peer_id)
        for publication in list(self._holding):
            publication.leave(peer_id)

    def now(self) -> float:
        """The time for what subscribers must do: the loop's, without what it was held up. It stands
        still where the loop is late."""
        time = self.loop.time()
        if self._expiry is not None:
            time = min(time, self._look_at + HELD_UP)
        return time - self._held_up

    def _arm_expiry(self, at: float) -> None:
        """Look then, and often before: only so it can be told that the loop was held up."""
        look_at = self.loop.time() + min(at - self.now(), HELD_UP)
        if self._expiry is not None and self._look_at <= look_at:
            return
        timer = self.loop.call_at(look_at, self._expire)
        if self._expiry is not None:
            self._expiry.cancel()
        self._look_at, self._expiry = look_at, timer

    def _expire(self) -> None:
        self._expiry = None
        late = self.loop.time() - self._look_at
        if late > HELD_UP:  # what has come meanwhile is to be read first
            self._held_up += late - HELD_UP
            self._arm_expiry(self.now() + HELD_UP)
            return
        now = self.now()
        dues = [publication.expire(now) for publication in list(self._holding)]
        due = min((at for at in dues if at is not None), default=None)
        if due is not None:
            self._arm_expiry(due)
        absent, self._absent = self._absent, []
        for topic, who in absent:  # one that comes later begins with what is put then
            if not who.observer:
                absent_log.warning(
                    "Pub(%r): a subscriber that was expected has not come within %g s "
                    "(join_timeout): %s lacks %s",
                    *(topic, self.settings.join_timeout, who.name, _messages(who.lacks)),
                )

    def snapshot(self) -> Snapshot:
        """How everything stands, in the order of its making. May be called from any thread."""
        pubs = [*self._ended.values(), *(pub.publication for pub in list(self._pubs.values()))]
        subs = [sub.inbox for sub in list(self._subs.values())]
        links = [LinkRow("publisher", r.peer_id, r.up) for r in list(self._remotes.values())]
        links += [LinkRow("subscriber", served.peer_id, True) for served in list(self._served)]
        return Snapshot(
            tuple(PubRow.of(publication) for publication in pubs),
            tuple(SubRow.of(inbox, self.in_trouble) for inbox in subs),
            tuple(links),
            tuple(
                CoordinatorRow(str(session), session.up, "" if session.up else session.trouble)
                for session in list(self.sessions)
            ),
        )

    # --- the embedded coordinator -------------------------------------------------------

    async def _embed(self, address: Address) -> bool:
        """Start a coordinator in this process; True also where another one was faster."""
        from pubsub.coordinator.server import Coordinator  # only where it is needed

        coordinator = Coordinator(self.loop, settings=self.settings)
        try:
            await coordinator.start(address.host, address.port)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        self._embedded = coordinator
        log.info("nothing listened on %s: this process is the coordinator now", address)
        return True

    # --- the end ------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closing:
            raise Closed(self.why_closed)
        self.check_place("this Peer")

    def check_place(self, what: str) -> None:
        """Raise `WrongContext` where something that belongs to this loop is used elsewhere: it
        would not be done, or not before this loop runs again. In its thread it may be used while
        no loop runs there, as between two runs of this one."""
        running = running_loop()
        if running is self.loop:
            return
        if self.loop.is_closed():
            raise WrongContext(
                f"{what} belongs to an event loop that has ended: make a new one in the loop that "
                "runs now"
            )
        if get_ident() != self.thread:
            raise WrongContext(
                f"{what} belongs to the event loop of another thread: use it there, or make one "
                "outside of any loop, which all threads may use"
            )
        if running is not None:
            raise WrongContext(
                f"{what} belongs to another event loop: use it there, or make a new one in the "
                "loop that runs now"
            )

    def _new_id(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number

    def close(self, linger: float | None = None) -> asyncio.Future[None]:
        """Give subscribers up to `linger` seconds to receive what they are due, then end
        everything in order. It is done once: all who call it wait for the same end, and
        cancelling one of them cancels no other's."""
        if not self.closing:
            self.closing = True
            self._close_linger = self.settings.linger if linger is None else linger
            self._close_by = self.loop.time() + self._close_linger
        if self._close_task is None or self._close_task.cancelled():  # by the end of `asyncio.run`
            self._close_task = self.loop.create_task(self._close(), name="pubsub close")
        return asyncio.shield(self._close_task)

    async def _close(self) -> None:
        if self._pubs and self._close_by > self.loop.time():
            for session in self.sessions:
                session.start()  # asyncio.run has cancelled every task by now
            pubs = list(self._pubs.values())
            await self._linger(pubs, self._close_linger, self._close_by, last=True)
        links = self.end()
        await self._gone([*links, *await self.doors.close(links)])
        if self._embedded is not None:
            await self._embedded.close()

    @property
    def finished(self) -> bool:
        """Whether nothing of it runs any more."""
        closing = self._close_task
        done = closing is not None and closing.done() and not closing.cancelled()
        return done or self.loop.is_closed()

    def bury(self) -> None:
        """Its loop was closed: where that came before its end, and somebody lacks something, say
        so."""
        left = "" if self._ended_all else self.unreceived()
        if left and self.closing:
            self._say_interrupted()
        elif left:
            log.warning(
                "an event loop was closed before all was sent (`await pub.close()` before that, or "
                "asyncio.run, sends it): %s",
                left,
            )
        self._ended_all = True
        for task in asyncio.all_tasks(self.loop):
            if task.get_name().startswith("pubsub "):  # that it never ended is no news
                task._log_destroy_pending = False  # type: ignore[attr-defined]

    def end(self) -> list[Link]:
        """End everything now but the servers, whatever is still due to whom; returns the links that
        are closing."""
        self._ended_all = True
        closed = Closed(self.why_closed)
        if self.exiting:  # who waits for anything stays where it is
            for pub in self._pubs.values():
                pub.publication.leave_waiting()
            for sub in self._subs.values():
                sub.inbox.on_entry = lambda: None
        for stream_id, pub in list(self._pubs.items()):
            _alone(pub.source.abandon, closed)  # first: nothing is put behind what is sent
            _alone(self.end_pub, stream_id)
        for sub_id, sub in list(self._subs.items()):
            _alone(self.close_sub, sub_id)
            _alone(sub.sink.abandon, closed)
        self.turn.run()
        self.turn.close()
        links = [served.link for served in self._served if served.link is not None]
        links += [remote.link for remote in self._remotes.values() if remote.link is not None]
        links += self._prober.close()
        for session in self.sessions:
            if session.link is not None:
                links.append(session.link)
            _alone(session.close)
        for served in list(self._served):
            if served.link is not None:
                _alone(served.link.goodbye)
        for remote in list(self._remotes.values()):
            _alone(remote.close)
        for timer in (self._expiry, self._settle_timer, self._lonely_timer):
            if timer is not None:
                timer.cancel()
        return links

    def cut(self) -> None:
        """End everything and wait for nothing: all is closed in the next turn."""
        self._say_interrupted()
        for link in self.end():
            link.abort()
        self.doors.cut()
        if self._embedded is not None:
            self._embedded.cut()

    async def _gone(self, links: Sequence[Link]) -> None:
        """Wait until the other ends have closed; each link aborts by itself when they do not."""
        for link in links:
            await link.gone()

    def abandon_after_fork(self, error: Exception) -> None:
        """In a child after a fork: the loop and its threads are the parent's. Refuse every call."""
        self.closing = True
        for pub in self._pubs.values():
            _alone(pub.source.abandon, error)
        for sub in self._subs.values():
            _alone(sub.sink.abandon, error)


def _alone(step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """A step of the end: one's trouble, half made or broken as it may be, is no other's."""
    try:
        step(*args, **kwargs)
    except Exception:
        log.exception("internal error while a Peer was ended")


def _in_zone(way: Way) -> Way:
    """An address that counts on one network only is on the one where its coordinator is."""
    zone = way.told_by.zone if isinstance(way.told_by, Session) else ""
    if zone and way.host.lower().startswith("fe80:") and "%" not in way.host:
        return way._replace(host=f"{way.host}%{zone}")
    return way


def _wants(pattern: str, topic: str) -> bool:
    return matches(pattern, topic) if is_pattern(pattern) else pattern == topic


def _messages(count: int) -> str:
    return f"{count:,} message{'s' if count > 1 else ''}"
