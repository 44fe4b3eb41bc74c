"""What every Pub put and every Sub got, and whether that is what was promised.

The model knows the promises and nothing of how they are kept. It is told of each put, each event
and each fault, and says `Violation` with the name of the promise that was broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import length_hint
from typing import TYPE_CHECKING, Any

from pubsub import Gap, Message
from pubsub.core.publication import STANDS
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.stream import StreamKey
from pubsub.core.topics import is_pattern, matches

if TYPE_CHECKING:
    from tests.simulation.processes import PeerProcess

__all__ = ["Book", "Faults", "Model", "PubRecord", "SubRecord", "View", "Violation"]

BATCH = 256 + 5
"""What a batch of one message counts for beyond the message."""


class Violation(AssertionError):
    """A promise was broken.

    Attributes:
        promise: ``G1`` to ``G9``; ``auth`` (somebody was let in who must not be); ``rights``
            (somebody got what he has no right to, or was refused what he has); ``leak``,
            ``error`` (an exception that nobody should have seen) or ``protocol`` (two honest
            peers did not understand each other).
    """

    def __init__(self, promise: str, text: str) -> None:
        self.promise = promise
        super().__init__(f"{promise}: {text}")


class Faults:
    """When something was wrong, and what."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float, str]] = []

    def add(self, kind: str, start: float, end: float) -> None:
        self._spans.append((start, end, kind))

    def ended(self, kind: str, start: float, end: float) -> None:
        """The one that began then is over."""
        self._spans.remove((start, float("inf"), kind))
        self._spans.append((start, end, kind))

    def only(self, kind: str) -> Faults:
        """Those of one kind."""
        some = Faults()
        some._spans = [span for span in self._spans if span[2] == kind]
        return some

    def clear(self, start: float, end: float, ignoring: frozenset[str] = frozenset()) -> bool:
        """Whether nothing was wrong between two times."""
        return not any(
            first <= end and start <= last
            for first, last, kind in self._spans
            if kind not in ignoring
        )


class PubRecord:
    """One Pub."""

    def __init__(self, uid: int, peer: PeerProcess, pub: Any, now: float) -> None:
        self.uid = uid
        self.peer = peer
        self.pub = pub
        self.topic: str = pub.topic
        self.block: bool = pub.overflow == "block"
        self.buffer: int = pub.buffer
        self.history: int = pub.history
        self.key = StreamKey(peer.peer.peer_id, pub._publication.stream_id)
        self.created_at = now
        self.ready_at: float | None = None
        self.put = 0
        self.under_way = 0
        self.times: list[float] = []  # of each message, when it was put at the latest
        self.bytes = 0
        self.largest = 0
        self.state = "open"  # open, closing, closed, dead, refused
        self.hurried = False  # the close did not wait until all was received
        self.took = 0.0  # seconds that the close took
        self.stopping = False
        self.older: dict[SubRecord, None] = {}

    def writes(self, size: int, now: float) -> None:
        """A message is being put."""
        self.under_way = 1
        self.times += [now] * (self.put + 1 - len(self.times))
        self.largest = max(self.largest, size + BATCH)

    def wrote(self, size: int) -> None:
        """A message was put."""
        self.under_way = 0
        self.put += 1
        self.bytes += size + BATCH

    def __str__(self) -> str:
        kind = "block" if self.block else "drop"
        return (
            f"pub {self.uid} on {self.topic} ({kind}, buffer {self.buffer}, history "
            f"{self.history}, {self.peer.process.name}, {self.state}, {self.put} put)"
        )


class View:
    """What one Sub has seen of one Pub."""

    def __init__(self) -> None:
        self.start: int | None = None  # the first number that was due, known with the first message
        self.position = 0  # the number that comes next
        self.delivered = 0
        self.last = -1
        self.numbers: set[int] = set()
        self.gaps: Counter[str] = Counter()
        self.told: Counter[str] = Counter()  # that the publisher is gone, and how
        self.bereft = False  # it was connected when its publisher died
        self.most_start: int | None = None  # what is promised of `start`
        self.why = ""
        self.least_start = 0  # what nobody asked for

    @property
    def missed(self) -> int:
        return self.gaps.total()


class SubRecord:
    """One Sub."""

    def __init__(self, uid: int, peer: PeerProcess, sub: Any, events: bool, now: float) -> None:
        self.uid = uid
        self.peer = peer
        self.sub = sub
        self.events = events
        self.latest: bool = sub.keep == "latest"
        self.observer: bool = sub.observer
        self.created_at = now
        self.ready_at: float | None = None
        self.state = "open"  # open, closed, dead, refused
        self.pace = 0.0
        self.views: dict[PubRecord, View] = {}
        self.streams: dict[StreamKey, Any] = {}  # that were open once

    def wants(self, topic: str) -> bool:
        """Whether it is a Sub of that topic."""
        pattern: str = self.sub.topic
        return matches(pattern, topic) if is_pattern(pattern) else pattern == topic

    def drained(self) -> bool:
        """Whether all that has come was taken."""
        sub = self.sub
        return bool(
            sub._inbox.empty and not sub._runs and not sub._gaps and not length_hint(sub._values)
        )

    def view(self, pub: PubRecord) -> View:
        return self.views.setdefault(pub, View())

    def __str__(self) -> str:
        how = "latest" if self.latest else "all"
        events = "messages()" if self.events else "get()"
        observer = ", observer" if self.observer else ""
        return (
            f"sub {self.uid} on {self.sub.topic} ({how}, {events}, window {self.sub.window}, "
            f"history {self.sub.history}{observer}, {self.peer.process.name}, {self.state})"
        )


class Book:
    """Who had which rights when, by the address of the process."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, tuple[Rights, ...]]]] = {}
        self._unsteady: dict[str, float] = {}

    def enter(self, host: str, since: float, *either: Rights) -> None:
        """Whatever connects from there may do what one of these says, from then on."""
        self._spans.setdefault(host, []).append((since, either))

    def unsteady(self, host: str, since: float) -> None:
        """From then on it is not said which rights it has, until the next entry counts."""
        self._unsteady[host] = since

    def of(self, host: str, since: float, until: float) -> list[tuple[float, tuple[Rights, ...]]]:
        """All that it had between two times, and from when on."""
        spans = self._spans.get(host)
        if spans is None:
            return [(since, (EVERYTHING,))]
        before = [span for span in spans if span[0] <= since][-1:]
        return before + [span for span in spans if since < span[0] <= until]

    def all_of(self, host: str, since: float, until: float) -> list[Rights]:
        """The same, one after the other."""
        return [rights for _, either in self.of(host, since, until) for rights in either]

    def now(self, host: str, now: float) -> tuple[Rights, ...]:
        """Those that it has; several: it is not yet told to all."""
        return self.of(host, now, now)[-1][1]

    def may(self, pub: PubRecord, sub: SubRecord, since: float, now: float) -> list[bool]:
        """Whether a Sub was entitled to what a Pub puts, in each span of that time. What a process
        says to itself is its own."""
        if pub.peer is sub.peer:
            return [True]
        here, there = pub.peer.process.host, sub.peer.process.host
        times = {since, *(at for host in (here, there) for at, _ in self.of(host, since, now))}
        topic = pub.topic
        return [
            any(rights.may_publish(topic) for rights in self.now(here, at))
            and any(rights.may_subscribe(topic) for rights in self.now(there, at))
            for at in sorted(times)
            if at >= since
        ]

    def steady(self, pub: PubRecord, sub: SubRecord, now: float) -> bool:
        """Whether it was so all the time since both are there."""
        hosts = (pub.peer.process.host, sub.peer.process.host)
        if any(host in self._unsteady for host in hosts):
            return False
        if pub.peer is sub.peer:
            return True
        here, there = (
            self.all_of(host, min(pub.created_at, sub.created_at), now) for host in hosts
        )
        return all(rights.may_publish(pub.topic) for rights in here) and all(
            rights.may_subscribe(pub.topic) for rights in there
        )


class Model:
    """All records, and the checks.

    Parameters:
        clock: tells the time.
        bounded: every fault ends before the time for which a Pub holds a place runs out, so that
            nothing may be lost but by a full buffer.
        calm: nothing goes wrong at all.
        join_timeout: seconds for which a Pub waits for who is expected.
        lies: coordinators do.
    """

    def __init__(
        self,
        *,
        bounded: bool,
        calm: bool,
        join_timeout: float,
        clock: Callable[[], float],
        lies: bool = False,
    ) -> None:
        self.lies = lies
        self.clock = clock
        self.book = Book()
        self.bounded = bounded
        self.calm = calm
        self.join_timeout = join_timeout
        self.pubs: list[PubRecord] = []
        self._by_key: dict[StreamKey, PubRecord] = {}
        self.subs: list[SubRecord] = []
        self.faults = Faults()
        self.checked = 0
        self.largest = 0  # of all messages that were put

    # --- who is owed what ---------------------------------------------------------------

    def pub_opened(self, pub: PubRecord) -> None:
        """A Pub was made. Subs that were ready before are due its first message (G4)."""
        self.pubs.append(pub)
        self._by_key[pub.key] = pub
        for sub in self.subs:
            if sub.ready_at is not None and sub.state == "open" and sub.wants(pub.topic):
                pub.older[sub] = None

    def sub_opened(self, sub: SubRecord) -> None:
        """A Sub was made. What was put before, it gets only as far as both sides ask for it."""
        self.subs.append(sub)
        for pub in self.pubs:
            if pub.ready_at is not None and sub.wants(pub.topic):
                history = sub.sub.history
                back = pub.history if history == "all" else min(history, pub.history)
                sub.view(pub).least_start = max(0, pub.put - back)

    def sub_ready(self, sub: SubRecord, now: float) -> None:
        """A Sub is ready: what is put from now on, it is due (G4)."""
        sub.ready_at = now
        if not self.faults.clear(sub.created_at, now):
            return
        for pub in self.pubs:
            if (
                pub.state == "open"
                and pub.ready_at is not None
                and pub.ready_at < sub.created_at
                and sub.wants(pub.topic)
                and self.book.steady(pub, sub, now)
            ):
                view = sub.view(pub)
                view.most_start = pub.put + pub.under_way
                view.why = "it was ready then"

    def settle_older(self) -> None:
        """Faults are known: tell the views of Subs that are older than their Pub."""
        for pub in self.pubs:
            for sub in pub.older:
                # coordinators may die; but a Sub must find one again before the Pub's patience
                # with who is older ends, and may need 2 s between two attempts
                since, until = pub.created_at, pub.created_at + self.join_timeout
                if pub.ready_at is not None and not pub.block:
                    until = pub.ready_at + self.join_timeout
                ignoring = frozenset({"coordinator", "down"})
                late = self.faults.only("down")
                if not self.book.steady(pub, sub, self.clock()):
                    continue
                if self.faults.clear(since, until, ignoring) and late.clear(until - 3.5, until):
                    view = sub.view(pub)
                    view.most_start = 0
                    view.why = "it is older than the Pub"

    # --- what comes ---------------------------------------------------------------------

    def message(self, sub: SubRecord, message: Message) -> None:
        """A Sub got a message, with its number."""
        uid, number, _ = message.value
        pub = self._pub(sub, uid)
        if number != message.seq or pub.topic != message.topic:
            raise Violation("G1", f"{sub} got message {number} as {message} of {pub}")
        self._got(sub, pub, number)

    def value(self, sub: SubRecord, value: Any) -> None:
        """A Sub got a message, without its number."""
        uid, number, _ = value
        self._got(sub, self._pub(sub, uid), number)

    def _pub(self, sub: SubRecord, uid: int) -> PubRecord:
        if uid < 0:
            raise Violation("auth", f"{sub} got a message of a stranger")
        return self.pubs[uid]

    def _got(self, sub: SubRecord, pub: PubRecord, number: int) -> None:
        self.checked += 1
        if not sub.wants(pub.topic):
            raise Violation("G1", f"{sub} got a message of {pub}")
        since = pub.times[number] if number < len(pub.times) else pub.created_at
        if not any(self.book.may(pub, sub, since, self.clock())):
            raise Violation("rights", f"{sub} got message {number} of {pub}")
        view = sub.view(pub)
        if number <= view.last:
            raise Violation(
                "G2" if number in view.numbers else "G1",
                f"{sub} got {number} after {view.last} of {pub}",
            )
        exact = sub.events and not sub.latest
        if view.start is None:
            view.start = number - view.missed if exact else number
        elif exact and number < view.position:
            raise Violation("G2", f"{sub} got {number} of {pub}, which a gap had counted")
        elif exact and number > view.position:
            raise Violation(
                "G3", f"{sub} got {number} of {pub} where {view.position} came next, without a gap"
            )
        view.last = number
        view.numbers.add(number)
        view.position = number + 1
        view.delivered += 1

    def gap(self, sub: SubRecord, gap: Gap) -> None:
        """A Sub was told of a gap."""
        pub = self._find(sub, gap.publisher)
        view = sub.view(pub)
        if gap.reason in ("vanished", "unreachable") and not gap.missed:
            view.told[gap.reason] += 1
            vanished = gap.reason == "vanished" and pub.peer.process.alive  # END may go with it
            steady = self.book.steady(pub, sub, self.clock())
            if self.calm or (self.bounded and vanished and steady):
                raise Violation("G3", f"{sub} was told of {gap}, of {pub}")
            return
        if gap.reason == "reached" and not gap.missed:
            view.told["reached"] += 1
            if view.told["reached"] > view.told["unreachable"]:
                raise Violation(
                    "G3", f"{sub} was told of {gap}, of {pub}, which it was not to miss"
                )
            return
        if self.lies and not sub.wants(pub.topic) and gap.reason == "closed":
            view.gaps[gap.reason] += gap.missed  # a stream that is over says no topic any more
            return
        if gap.missed < 1 or gap.topic != pub.topic:
            raise Violation("G3", f"{sub} was told of {gap}, of {pub}")
        view.gaps[gap.reason] += gap.missed
        view.position += gap.missed

    def _find(self, sub: SubRecord, publisher: str) -> PubRecord:
        """The Pub that a Sub calls by an address."""
        where, _, number = publisher.rpartition("#")
        for pub in self.pubs:
            if pub.key.stream_id == int(number) and (
                pub.peer.peer.address == where or (where == "local" and pub.peer is sub.peer)
            ):
                return pub
        raise Violation("G3", f"{sub} was told of a gap of {publisher}, which never was")

    def died(self, pub: PubRecord) -> None:
        """A Pub is gone without a word: who is connected must be told (G3)."""
        for sub in self.subs:
            stream = sub.sub._inbox.streams.get(pub.key)
            sub.view(pub).bereft = stream is not None and stream.open

    # --- at any time --------------------------------------------------------------------

    def torn(self, sub: SubRecord) -> tuple[str, str] | None:
        """Where no link breaks, a stream that is established stays so, the very same one, until one
        of its ends is closed."""
        now = sub.sub._inbox.streams
        for key, stream in list(sub.streams.items()):
            if now.get(key) is not stream or not stream.open:
                del sub.streams[key]
                pub = self._by_key[key]
                if pub.state == "open" and not pub.peer.leaving and not sub.peer.leaving:
                    return "G7", f"{sub} no longer has the stream of {pub}"
        for key, stream in now.items():
            if stream.open:
                sub.streams[key] = stream
        return None

    # --- at rest ------------------------------------------------------------------------

    def pairs(self) -> list[tuple[PubRecord, SubRecord]]:
        """Pubs and Subs that should be connected. (A coordinator that knows no rights tells nobody
        of what has become possible.)"""
        now = self.clock()
        return [
            (pub, sub)
            for pub, sub in self._matching()
            if self.entitled(pub, sub) and (not self.lies or self.book.steady(pub, sub, now))
        ]

    def _matching(self) -> list[tuple[PubRecord, SubRecord]]:
        return [
            (pub, sub)
            for pub in self.pubs
            if pub.state == "open"
            for sub in self.subs
            if sub.state == "open" and sub.wants(pub.topic)
        ]

    def entitled(self, pub: PubRecord, sub: SubRecord) -> bool:
        """Whether both may do what they do to each other now. (What is revoked may wait for its
        coordinator, and so for what it says to itself.)"""
        if sub.peer.revoked or pub.peer.revoked:
            return False
        now = self.clock()
        return self.book.may(pub, sub, now, now)[-1]

    def _steady_pairs(self) -> list[tuple[PubRecord, SubRecord]]:
        now = self.clock()
        return [pair for pair in self.pairs() if self.book.steady(*pair, now)]

    def unsettled(self) -> tuple[str, str] | None:
        """What is not at rest: the promise that it would break for ever, and how."""
        for pub, sub in self.pairs():
            stream = sub.sub._inbox.streams.get(pub.key)
            if stream is None or not stream.open:
                return "G7", f"{sub} is not connected with {pub}"
            if stream.expected != pub.put:
                return "G5", f"{sub} has {stream.expected} of {pub}"
        for sub in self.subs:
            if sub.state == "open" and not sub.peer.revoked and not sub.drained():
                return "G3", f"{sub} does not take what is there"
        for pub, sub in self._matching():
            stream = sub.sub._inbox.streams.get(pub.key)
            if stream is None or not stream.open or self.entitled(pub, sub):
                continue
            if pub.peer is not sub.peer:
                return "rights", f"{sub} has the stream of {pub}"
        return None

    def leftover(self) -> str | None:
        """What should be forgotten by now."""
        alive = {pub.key for pub in self.pubs if pub.state == "open"}
        subs = {
            (sub.peer.peer.peer_id, sub.sub._inbox.sub_id)
            for sub in self.subs
            if sub.state == "open"
        }
        for sub in self.subs:
            if sub.state == "open" and not sub.peer.revoked:  # nobody tells him
                for key in sub.sub._inbox.streams:
                    if key not in alive:
                        return f"{sub} still has a stream of {key}, which is no more"
        for pub in self.pubs:
            if pub.state == "open":
                for state, cursor in pub.pub._publication.cursors():
                    if tuple(cursor.key) not in subs:
                        return f"{pub} still has a cursor ({state}) of {cursor.key}"
                    if state != "attached":
                        return f"{pub} has a cursor of {cursor.key} that is {state}"
        return None

    def check(self) -> None:
        """Everything is at rest: every account must close."""
        self.settle_older()
        for pub, sub in self._steady_pairs():
            self._check_pair(pub, sub, pub.put)
            if sub.events:
                self._check_publishers_count(pub, sub)
        for pub in self.pubs:
            if pub.state == "closed" and pub.peer.stays and self.bounded:
                for sub in self.subs:
                    if not self.book.steady(pub, sub, self.clock()):
                        continue
                    if sub.state == "open" and pub in sub.views and sub.view(pub).delivered:
                        self._check_pair(pub, sub, pub.put)
        for sub in self.subs:
            if sub.state == "open" and sub.events and not sub.peer.revoked:
                seen = sum(view.missed for view in sub.views.values())
                if seen != sub.sub.lost:
                    raise Violation(
                        "G3", f"{sub} was told of {seen} lost messages and counts {sub.sub.lost}"
                    )
        for pub in self.pubs:
            for sub in self.subs:
                if pub.state == "dead" and sub.state == "open" and sub.view(pub).bereft:
                    self._check_told(pub, sub)

    def _check_told(self, pub: PubRecord, sub: SubRecord) -> None:
        """What a Pub that died had not sent, nobody knows; but that it died, its Subs do."""
        row = sub.sub.publishers.get(f"{pub.peer.peer.address}#{pub.key.stream_id}", {})
        told = sub.view(pub).told["vanished"]
        if row.get("state") != "vanished" or (sub.events and not told):
            raise Violation("G3", f"{sub} was told {told} times that {pub} is gone, and says {row}")

    def _check_publishers_count(self, pub: PubRecord, sub: SubRecord) -> None:
        """What the Pub's own `subscribers` says that a Sub lost is what that Sub was told of; less
        where its place was given up once, with the count."""
        for state, cursor in pub.pub._publication.cursors():
            if tuple(cursor.key) == (sub.peer.peer.peer_id, sub.sub._inbox.sub_id):
                gaps = sub.view(pub).gaps
                lost = pub.pub.subscribers[cursor.name]["lost"]
                told = gaps["overflow"] + gaps["too large"]
                if lost > told or (self.bounded and lost != told):
                    raise Violation(
                        "G3", f"{pub} counts {lost} lost ({state}) where {sub} was told of {told}"
                    )

    def check_closed(self, pub: PubRecord, sub: SubRecord) -> None:
        """A Pub was closed in order, and a Sub that was connected to it has heard of it."""
        if self.book.steady(pub, sub, self.clock()):
            self._check_pair(pub, sub, pub.put)

    def _check_pair(self, pub: PubRecord, sub: SubRecord, put: int) -> None:
        view = sub.view(pub)
        how = f"{sub} of {pub}: due from {view.start}, {view.delivered} got, gaps {dict(view.gaps)}"
        exact = sub.events and not sub.latest
        if view.start is None and sub.events:
            start = put - view.missed
        elif exact and view.start is not None:
            start = view.start
            if view.position != put:
                raise Violation("G3", f"{how}: {view.position} of {put} accounted for")
        elif sub.events:
            start = put - view.delivered - view.missed
        else:
            stream = sub.sub._inbox.streams.get(pub.key)
            if stream is None:  # get() tells of no gaps, and nobody remembers them
                return
            # what was lost before it was given up and came back is in one sum with other streams
            start = put - view.delivered - stream.lost
            before = sub.sub.lost - sum(s.lost for s in sub.sub._inbox.streams.values())
            first = put if view.start is None else view.start
            start -= min(before, max(0, start - first))
        if not 0 <= start <= put or (view.start is not None and start > view.start):
            raise Violation("G3", f"{how}: accounts begin at {start}")
        if self.calm and start < view.least_start:
            raise Violation("G3", f"{how}: begins at {start}, before {view.least_start}")
        if view.most_start is not None and start > view.most_start:
            raise Violation("G4", f"{how}: begins at {start}, not {view.most_start}; {view.why}")
        if self.must_be_whole(pub, sub):
            begin = start if view.start is None else view.start
            lost = view.missed if sub.events else put - begin - view.delivered
            if lost:
                cut_off = pub.state == "closed" and view.last < put - 1
                promise = "G9" if view.gaps.get("closed") or cut_off else "G5"
                raise Violation(promise, f"{how}: {lost} lost, without a reason")

    def must_be_whole(self, pub: PubRecord, sub: SubRecord) -> bool:
        """Whether nothing of a stream may be lost to a Sub."""
        if not self.bounded or sub.latest or pub.hurried:
            return False
        if not self.book.steady(pub, sub, self.clock()):
            return False
        if sub.observer and pub.state == "closed" and (not self.calm or pub.took >= STANDS):
            return False  # a close waits for no observer that is away or stands still
        return pub.bytes <= pub.buffer or (pub.block and not sub.observer)
