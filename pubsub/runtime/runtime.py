"""One process's runtime, bound to one event loop: it brings the cores and the connections together.

It owns the publications and inboxes of all Pubs and Subs of the peer, the sessions with the
coordinators, and who keeps the rest: `Doors`, `Publishers`, `Subscribers`, `Readiness`, `Embedded`.
Everything in it runs in its loop's thread. What is to be written is collected during a turn of the
loop and written at its end (see `turn`): one batch per Pub, one write per link. (It is a little
long because it is where all of them meet; what is decided is decided in their modules.)
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, ParamSpec

from pubsub.config import Address, Settings
from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication
from pubsub.core.stream import Stream, StreamKey
from pubsub.core.topics import STATS, STATS_STREAM, hears, is_pattern, is_reserved
from pubsub.errors import AuthError, Closed, CoordinatorUnavailable, ProtocolError, PubSubError
from pubsub.links.doors import Doors
from pubsub.links.keeping import KeptLink
from pubsub.links.link import Endpoint, Link
from pubsub.links.listening import REQUEST_SCRATCH
from pubsub.links.probing import Prober
from pubsub.links.renewal import Renewal
from pubsub.runtime import collecting, lingering, reports
from pubsub.runtime.calling import Callbacks
from pubsub.runtime.coordinator_link import Session
from pubsub.runtime.embedding import Embedded
from pubsub.runtime.members import OpenPub, OpenSub, Sink, Source
from pubsub.runtime.publisher_link import Remote
from pubsub.runtime.publishers import Publishers
from pubsub.runtime.readiness import Readiness, Ready
from pubsub.runtime.sharing import Sharing
from pubsub.runtime.snapshot import CoordinatorRow, PubRow, Snapshot, SubRow
from pubsub.runtime.subscriber_link import Served, Subscribers
from pubsub.runtime.turn import Turn
from pubsub.runtime.watching import Watching
from pubsub.stats.past import Past
from pubsub.support.apart import apart
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.support.place import check_place
from pubsub.support.ratelimit import RateLimit
from pubsub.trust.guard import Guard
from pubsub.wire.buffers import FOR_BATCHES, reuse_memory
from pubsub.wire.frames import SCRATCH_SIZE
from pubsub.wire.handshake import SUBSCRIBER, Other
from pubsub.wire.messages import Called, Expect, Match, Refused, Register, Revoked, Unregister

__all__ = ["Runtime"]

log = logger("pubsub")
log.logger.addFilter(RateLimit())  # a Peer may have a thousand Pubs with the same trouble

P = ParamSpec("P")

REMEMBERED = 4096
"""Closed Pubs whose counts are remembered."""


class Runtime:
    """See the module.

    Parameters:
        loop: whose thread everything runs in.
        coordinators: the addresses; see `coordinators_from`.
        configured: False: the addresses are the default, where this process may start a
            coordinator itself.
        settings: times, sizes, addresses.
        given: True: the program names the addresses, and the environment does not change that.
        guard: how its connections are secured; None: all are open.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coordinators: tuple[Address, ...],
        configured: bool,
        settings: Settings,
        *,
        given: bool = False,
        guard: Guard | None = None,
    ) -> None:
        self.loop = loop
        self.guard = guard = guard or Guard()
        self.thread = 0
        self.settings = settings
        entropy = this_host().entropy
        self.peer_id = guard.new_id()
        self.closing = False  # nothing new is made
        self.why_closed = "this Peer is closed"
        self.exiting = False  # the process ends: who waits for anything stays where it is
        self.shut_down = False  # by its loop, as `asyncio.run` does last
        self._close_task: asyncio.Task[None] | None = None
        self._close_by = self._close_linger = 0.0
        self._random = random.Random(entropy(8)).random
        self._scratch = bytearray(SCRATCH_SIZE)
        self._request_scratch = bytearray(REQUEST_SCRATCH)
        self.doors = Doors(
            loop,
            settings,
            self._request_scratch,
            self.peer_id,
            self._seat,
            guard,
            lambda other: self._who_serves(other).admit(other),
        )
        self.identity, self.identify = self.doors.identity, self.doors.identify
        self.pubs: dict[int, OpenPub] = {}
        self.subs: dict[int, OpenSub] = {}
        self.past = Past()
        self.ending = threading.RLock()
        """Held while one goes from there to here: who counts sees it in one of them."""
        self._ended: dict[int, Publication] = {}
        self._numbers = count(1)  # of Pubs and Subs
        self.turn = Turn(loop, self.peer_id, settings.ack_delay)
        self.sharing = Sharing(loop, settings)
        self.doors.doorman.on_join = self.sharing.joined
        self.subscribers = Subscribers(
            loop,
            settings,
            self.turn,
            Prober(loop, self.peer_id, settings, self._request_scratch, guard),
            self.find,
            lambda peer_id: self.publishers.met(peer_id),
            self.doors.told_to_others,
            self.sharing,
        )
        self.clock = self.subscribers.clock
        self.renewal = Renewal(loop, self._guards, self.links)
        self.embedded = Embedded(loop, settings, guard, self.renewal)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._given = given
        embed = None if configured else self.embedded.start
        self.sessions = [
            Session(loop, address, self, settings, self._scratch, self._random, guard, embed)
            for address in coordinators
        ]
        alone = None if configured else lambda: self.embedded.coordinator is not None
        self.readiness = Readiness(
            loop, settings, self.sessions, self.clock, given=given, alone=alone
        )
        self.publishers: Publishers = Publishers(
            loop,
            settings,
            self.turn,
            self.readiness,
            self.identity,
            self._scratch,
            self._random,
            guard,
            self.doors.doorman,
            self.sharing,
        )
        self.callbacks = Callbacks(
            *(loop, settings, guard, self.subscribers, self.publishers.dialling),
            *(self.identity, self._request_scratch),
        )
        self.watching = Watching(self)

    def _who_serves(self, other: Other) -> Publishers | Subscribers:
        """Whom a link belongs to depends on what was said, and not on who dialled."""
        return self.publishers if other.wants == SUBSCRIBER else self.subscribers

    def _seat(self, other: Other) -> Endpoint:
        if other.wants == SUBSCRIBER:
            return self.publishers.arrived(other)
        return Served(self.subscribers)

    @apart
    def start(self) -> None:
        """Begin to connect to the coordinators; called in the loop's thread."""
        self.thread = threading.get_ident()
        reuse_memory(FOR_BATCHES)
        self.renewal.start()
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
            next(self._numbers),
            topic,
            codec=codec,
            block=block,
            buffer=buffer,
            history=history,
            join_timeout=self.settings.join_timeout,
            resume_timeout=self.settings.resume_timeout,
            now=self.clock.now(),
            holding=self.subscribers.holding,
        )
        publication.on_absent = lambda who: self.subscribers.absent.append((topic, who))
        publication.on_shut = lambda who: reports.say_shut(topic, who, self.settings)
        publication.on_due = self.clock.arm
        self.pubs[publication.stream_id] = OpenPub(publication, source, self.loop.time())
        for sub in self.subs.values():
            if hears(sub.inbox.pattern, topic):
                self._join_locally(publication, sub)
        self.clock.arm(self.clock.now() + self.settings.join_timeout)
        self._tell(Register(publication.stream_id, "pub", topic, False, False))
        return publication, self.readiness.add(publication.stream_id, publication)

    async def close_pub(self, stream_id: int, linger: float | None = None) -> None:
        """Close a stream: wait up to `linger` seconds until every subscriber has received what
        it is due, then end it."""
        pub = self.pubs.get(stream_id)
        if pub is not None:
            if linger is None:
                linger = self.settings.linger
            await lingering.linger(self, [pub], linger, self.loop.time() + linger)
            pub.source.abandon(Closed(f"Pub({pub.publication.topic!r}) is closed"))
            self.end_pub(stream_id)

    def unreceived(self) -> str:
        """Which messages are not known to have been received by whom; empty: there are none. May
        be called from any thread."""
        return lingering.unreceived(list(self.pubs.values()))

    def drop_pub(self, stream_id: int) -> None:
        """A Pub was dropped without being closed: close it in the background. Thread-safe."""
        self._from_anywhere(self._close_dropped, stream_id)

    def _close_dropped(self, stream_id: int) -> None:
        if not self.closing and stream_id in self.pubs:
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
        pub = self.pubs.get(stream_id)
        if pub is not None:
            lingering.say_interrupted([pub])
            self.end_pub(stream_id)

    def end_pub(self, stream_id: int) -> None:
        with self.ending:
            pub = self.pubs.pop(stream_id, None)
            if pub is None:
                return
            pub.source.seal()
            self.past.add(collecting.pub_is_over(pub, self.loop.time()), self.loop.time())
        self._say_apart(pub)
        pub.publication.end("closed", "the Pub was closed")
        self._ended[stream_id] = pub.publication
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self._close_registration(stream_id, f"Pub({pub.publication.topic!r})")

    def find(self, stream_id: int) -> Publication | None:
        """The stream of that id, with all that was put by now in its log; None: there is none."""
        if stream_id == STATS_STREAM:
            return self.watching.stream()
        pub = self.pubs.get(stream_id)
        if pub is None:
            return self._ended.get(stream_id)
        pub.source.seal()
        return pub.publication

    # --- Subs ---------------------------------------------------------------------------

    @apart
    def add_sub(self, sink: Sink, make: Callable[[int], Inbox]) -> tuple[Inbox, Ready]:
        """Open an inbox: local Pubs are joined at once, others when the coordinators name them."""
        self._check_open()
        inbox = make(next(self._numbers))
        sub = self.subs[inbox.sub_id] = OpenSub(inbox, sink, self.loop.time())
        for pub in self.pubs.values():
            if hears(inbox.pattern, pub.publication.topic):
                pub.source.seal()
                self._join_locally(pub.publication, sub)
        if inbox.pattern == STATS and (own := self.watching.stream()) is not None:
            self._join_locally(own, sub)
        self._tell(Register(inbox.sub_id, "sub", inbox.pattern, False, inbox.observer))
        if is_pattern(inbox.pattern):
            reports.say_what_is_covered(inbox.pattern, self.guard.rights)
        return inbox, self.readiness.add(inbox.sub_id, inbox)

    def close_sub(self, sub_id: int) -> None:
        """Close an inbox: whatever waits in it is given up."""
        with self.ending:
            sub = self.subs.pop(sub_id, None)
            if sub is None:
                return
            if not is_reserved(sub.inbox.pattern):
                self.past.add(collecting.sub_is_over(sub, self.loop.time()), self.loop.time())
        for stream in sub.inbox.close():
            if stream.route is not None:
                stream.route.unsubscribe(stream)
            stream.finish()
            self.publishers.remove(stream)
        self.publishers.directory.drop(sub_id)
        self._close_registration(sub_id, f"Sub({sub.inbox.pattern!r})")

    def _join_locally(self, publication: Publication, sub: OpenSub) -> None:
        key = StreamKey(self.peer_id, publication.stream_id)
        stream = Stream(
            sub.inbox,
            key,
            publication.topic,
            f"{self.address or 'local'}#{publication.stream_id}",
            self.settings.max_batch,
            name=self.guard.name,
            vouched=True,
        )
        sub.inbox.add(stream)
        self.turn.local.join(publication, stream)

    def undo(self, made_for: Source | Sink) -> None:
        """The constructor of that Pub or Sub was interrupted, wherever it was."""
        for stream_id, pub in list(self.pubs.items()):
            if pub.source is made_for:
                self.end_pub(stream_id)
        for sub_id, sub in list(self.subs.items()):
            if sub.sink is made_for:
                self.close_sub(sub_id)
                for pub in self.pubs.values():  # a join that was interrupted is half made
                    pub.publication.give_up(SubKey(self.peer_id, sub_id))

    # --- what the coordinators say (Directed) -------------------------------------------

    @property
    def address(self) -> str:
        """``host:port`` that others are told; empty before a coordinator was reached."""
        return self.doors.address

    def registrations(self, session: Session) -> Iterable[Register]:
        """See `Directed`."""
        yield Register(STATS_STREAM, "pub", STATS, True, False)
        for stream_id, pub in self.pubs.items():
            publication = pub.publication
            # while its first messages are kept, it counts as new wherever it registers
            yield Register(stream_id, "pub", publication.topic, publication.settled, False)
        for sub_id, sub in self.subs.items():
            inbox = sub.inbox
            yield Register(sub_id, "sub", inbox.pattern, sub.acknowledged, inbox.observer)

    def connected(self, session: Session, settle: float) -> None:
        """See `Directed`."""
        self.readiness.connected(session)
        self.publishers.directory.restart(session)

    def disconnected(self, session: Session) -> bool:
        """See `Directed`."""
        return self.readiness.disconnected(session)

    def replaced(self, session: Session, by: Session | None) -> None:
        """See `Directed`."""
        self.readiness.replaced(session)
        self.publishers.directory.hand_over(session, by)

    def matched(self, session: Session, match: Match) -> None:
        """See `Directed`."""
        sub = self.subs.get(match.sub_id)
        if sub is None:
            return
        self.publishers.matched(session, match, sub.inbox, self.peer_id)
        if match.complete:
            sub.acknowledged = True
            self.readiness.answered(session, match.sub_id)

    def expected(self, session: Session, expect: Expect) -> None:
        """See `Directed`."""
        pub = self.pubs.get(expect.stream_id)
        if pub is None:
            return
        publication = pub.publication
        if expect.added:
            pub.source.seal()
        now = self.clock.now()
        for row in expect.added:
            if row.elsewhere:  # it comes, where there is a relay
                if not pub.apart:
                    self.loop.call_later(reports.MEET, self._say_apart, pub)
                pub.apart[SubKey(row.peer_id, row.sub_id)] = row.elsewhere
            elif row.peer_id != self.peer_id:
                publication.expect(
                    SubKey(row.peer_id, row.sub_id),
                    before=row.before,
                    observer=row.observer,
                    now=now,
                )
        for pair in expect.removed:
            publication.unexpect(SubKey(*pair))
            pub.apart.pop(SubKey(*pair), None)
        if expect.added:
            self.clock.arm(now + self.settings.join_timeout)
        if expect.complete:
            self.readiness.answered(session, expect.stream_id)

    def _say_apart(self, pub: OpenPub) -> None:
        """Of those that no other way leads to, some were not met at a relay either."""
        apart, pub.apart = pub.apart, {}
        hosts = [each.place[0] for each in self.doors.identities.values()]
        for key, coordinator in apart.items():
            if pub.publication.cursor(key) is None:
                reports.say_out_of_reach(pub, hosts, coordinator, self.settings, given=self._given)

    def refused(self, session: Session, refused: Refused) -> None:
        """See `Directed`. Another coordinator may know of other rights, and one that refuses is
        enough: whoever is to receive it might be registered there."""
        if not refused.id:  # of no Pub or Sub: an address of ours
            log.warning("the coordinator at %s: %s", session, refused.reason, address=session)
            return
        number, why = refused.id, f"refused by the coordinator at {session}: {refused.reason}"

        def error_of(what: str) -> PubSubError:
            if refused.code == "limit":
                return CoordinatorUnavailable(f"{what} is {why}", addresses=(str(session),))
            return AuthError(f"{what} is {why}")

        pub, sub = self.pubs.get(number), self.subs.get(number)
        if pub is not None:
            topic = pub.publication.topic
            error = error_of(f"Pub({topic!r})")
            pub.source.seal()
            lacking = pub.publication.unreceived(pub.source.count())
            self.readiness.remove(number, error)  # before it hears that it is closed
            pub.source.abandon(error)
            self.end_pub(number)
            if lacking:
                log.error("%s; not delivered: %s", error, lingering.messages(lacking))
        elif sub is not None:
            error = error_of(f"Sub({sub.inbox.pattern!r})")
            self.readiness.remove(number, error)
            self.close_sub(number)
            sub.sink.abandon(error)

    def called(self, session: Session, called: Called) -> None:
        """See `Directed`."""
        remote = self.publishers.remotes.get(called.peer_id)
        if called.ways:
            self.callbacks.called(called.peer_id, called.ways)
        elif remote is None or not remote.told_relays(called.relays):
            self.publishers.relays.meet(called.relays, session)

    def revoked(self, revoked: Revoked) -> None:
        """See `Directed`."""
        try:
            newer = self.guard.learn(revoked.list)
        except AuthError as error:
            raise ProtocolError(str(error)) from None
        if newer:
            self.renewal.review()

    def _close_registration(self, number: int, what: str) -> None:
        self._tell(Unregister(number))
        self.readiness.remove(number, None if self.exiting else Closed(f"{what} is closed"))

    def _tell(self, message: Register | Unregister) -> None:
        for session in self.sessions:
            session.send(message)

    def snapshot(self) -> Snapshot:
        """How everything stands, in the order of its making. May be called from any thread."""
        pubs = [*self._ended.values(), *(pub.publication for pub in list(self.pubs.values()))]
        subs = [sub.inbox for sub in list(self.subs.values())]
        return Snapshot(
            tuple(PubRow.of(publication) for publication in pubs),
            tuple(
                SubRow.of(inbox, self.publishers.in_trouble, self.publishers.state_of)
                for inbox in subs
            ),
            (*self.publishers.rows(), *self.subscribers.rows()),
            tuple(
                CoordinatorRow(str(session), session.up, "" if session.up else session.trouble)
                for session in list(self.sessions)
            ),
        )

    def links(self) -> list[Link]:
        """All connections that are open, or about to be."""
        kept: list[KeptLink] = [*self.publishers.remotes.values(), *self.sessions]
        ends: list[Served | KeptLink] = [*self.subscribers.served, *kept]
        links = [end.link for end in ends if end.link is not None]
        return links + self.publishers.relays.links + self.embedded.links

    def _guards(self) -> list[Guard]:
        return [self.guard, *self.embedded.guards]

    # --- the end ------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closing:
            raise Closed(self.why_closed)
        self.check_place("this Peer")

    def check_place(self, what: str) -> None:
        """Raise `WrongContext` where that, which belongs to this loop, is used elsewhere."""
        check_place(self.loop, self.thread, what)

    def close(self, linger: float | None = None) -> asyncio.Future[None]:
        """Give subscribers up to `linger` seconds to receive what they are due, then end
        everything in order. It is done once: all who call it wait for the same end, and
        cancelling one of them cancels no other's."""
        if not self.closing:
            self.closing = True
            self.readiness.close()
            self._close_linger = self.settings.linger if linger is None else linger
            self._close_by = self.loop.time() + self._close_linger
        if self._close_task is None or self._close_task.cancelled():  # by the end of `asyncio.run`
            self._close_task = self.loop.create_task(self._close(), name="pubsub close")
        return asyncio.shield(self._close_task)

    async def _close(self) -> None:
        if self.pubs and self._close_by > self.loop.time():
            for session in self.sessions:
                session.start()  # asyncio.run has cancelled every task by now
            pubs = list(self.pubs.values())
            await lingering.linger(self, pubs, self._close_linger, self._close_by, last=True)
        links = self.end()
        for link in (*links, *await self.doors.close(links)):
            await link.gone()  # each aborts by itself where the other end does not close
        await self.embedded.close()

    @property
    def finished(self) -> bool:
        """Whether nothing of it runs any more."""
        closing = self._close_task
        done = closing is not None and closing.done() and not closing.cancelled()
        return done or self.loop.is_closed()

    def bury(self) -> None:
        """Its loop was closed: where that came before its end, and somebody lacks something, say
        so."""
        if not self.subscribers.closed:
            say = lingering.say_interrupted if self.closing else lingering.say_unsent
            say(list(self.pubs.values()))
        self.subscribers.closed = True
        for task in asyncio.all_tasks(self.loop):
            if task.get_name().startswith("pubsub "):  # that it never ended is no news
                task._log_destroy_pending = False  # type: ignore[attr-defined]

    def end(self) -> list[Link]:
        """End everything now but the servers, whatever is still due to whom; returns the links that
        are closing."""
        self.subscribers.closed = True
        closed = Closed(self.why_closed)
        if self.exiting:  # who waits for anything stays where it is
            for pub in self.pubs.values():
                pub.publication.leave_waiting()
            for sub in self.subs.values():
                sub.inbox.on_entry = lambda: None
        for stream_id, pub in list(self.pubs.items()):
            _alone(pub.source.abandon, closed)  # first: nothing is put behind what is sent
            _alone(self.end_pub, stream_id)
        for sub_id, sub in list(self.subs.items()):
            _alone(self.close_sub, sub_id)
            _alone(sub.sink.abandon, closed)
        _alone(self.watching.close)
        self.turn.run()
        self.turn.close()
        self.renewal.stop()
        self.sharing.close()
        peers: list[Served | Remote] = [*self.subscribers.served]
        peers += self.publishers.remotes.values()
        links = [end.link for end in (*peers, *self.sessions) if end.link is not None]
        links += [*self.subscribers.close(), *self.callbacks.close()]
        links += self.publishers.relays.links
        _alone(self.publishers.relays.close)
        for end in (*self.sessions, *peers):
            _alone(end.close)
        self.readiness.stop()
        return links

    def cut(self) -> None:
        """End everything and wait for nothing: all is closed in the next turn."""
        lingering.say_interrupted(self.pubs.values())
        for link in self.end():
            link.abort()
        self.doors.cut()
        self.embedded.cut()

    def abandon_after_fork(self, error: Exception) -> None:
        """In a child after a fork: the loop and its threads are the parent's. Refuse every call."""
        self.closing = True
        self.ending = threading.RLock()  # another thread may have held it
        self.sharing.abandon_after_fork()
        for pub in self.pubs.values():
            _alone(pub.source.abandon, error)
        for sub in self.subs.values():
            _alone(sub.sink.abandon, error)


def _alone(step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """A step of the end: one's trouble, half made or broken as it may be, is no other's."""
    try:
        step(*args, **kwargs)
    except Exception:
        log.exception("internal error while a Peer was ended")
