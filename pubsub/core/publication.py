"""A publication: what the publishing side decides about one stream, its log and its cursors.

It is long because its parts are one: whatever happens to a subscriber (it attaches, acknowledges,
is cut off, runs out of time) changes its cursor, what the log may drop, for whom a place is held
and which flush is done, in one step. Parted, these would hand each other the cursors at every ACK.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pubsub.core.cursor import Cursor, Outlet, SubKey
from pubsub.core.log import Batch, Log
from pubsub.core.standing import Holder, State, listed
from pubsub.errors import ProtocolError
from pubsub.wire.buffers import Buffer
from pubsub.wire.frames import BATCH_COST
from pubsub.wire.messages import Subscribe, Subscribed

__all__ = ["MAX_LEAVERS", "Leaver", "Publication", "Waiter"]

_NEWBORN = SubKey("", -1)
"""The key of the cursor that holds a new Pub's first messages until the coordinators have said
which subscribers are older than the Pub."""
_END_OF_TIME = 2**63
STANDS = 1.0
"""Seconds for which an observer may receive nothing before a close waits for it no longer."""
MAX_DETACHED = 65_536
"""Subscribers that are expected or reconnecting for which places are held: no more are, so that
nobody can fill the memory by coming and going under ever new names."""
MAX_LEAVERS = 100
"""Subscribers that lacked something when they were gone, of which that is remembered."""

MAX_LATE = 4096
"""Subscribers that were expected in vain, of which each Pub remembers from where on they lack
something."""


How = Literal["closed", "away", "absent", "shut", "end"]


class Leaver(NamedTuple):
    """A subscriber that is gone, or was there at the end, and did not have all that was put."""

    name: str
    how: How
    """``closed`` (it said so), ``away`` (its link broke, and it did not come back in time),
    ``absent`` (it was expected, and never came), ``shut`` (it was attached, and let nothing be sent
    to it for too long) or ``end`` (of the Pub)."""
    lacks: int
    """Messages put until then that it had not taken; at the end, that it is not known to have
    received."""
    lost: int
    """As `Cursor.lost`."""
    observer: bool


@dataclass(slots=True, eq=False)
class Waiter:
    """A flush: done when every cursor that it waits for has received what was put before."""

    target: int
    observers: bool
    hurries: bool
    callback: Callable[[], None]
    pending: dict[Cursor, None] = field(default_factory=dict)
    """In the order of joining, the same in every run."""
    stood: dict[Cursor, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    """How far they were, and since when."""

    def add(self, cursor: Cursor) -> None:
        """Wait for this one too, if it concerns us."""
        if cursor.received < self.target and (self.observers or not cursor.observer):
            self.pending[cursor] = None

    def stands(self, cursor: Cursor, now: float) -> bool:
        """Whether it has taken nothing for `STANDS` seconds, as far as was looked."""
        far = cursor.received, cursor.acked, cursor.sent, cursor.pieces
        before, since = self.stood.get(cursor, ((), now))
        if far != before:
            self.stood[cursor] = far, now
            return False
        return now - since >= STANDS


class Publication:
    """One stream, on its publishing side.

    Parameters:
        stream_id: its number in this peer.
        topic: where its messages go.
        codec: how its values are encoded.
        block: True: a full buffer makes `put` wait; False: it drops the oldest messages.
        buffer: bytes that the log may hold (one batch is always admitted).
        history: messages kept for subscribers that ask for them.
        join_timeout, resume_timeout: seconds that a detached cursor holds its place.
        now: the present time in seconds; only differences matter.
        holding: the publications that hold places for who is away; this one enters and leaves.

    Attributes:
        on_room: called when there may be room (set by whoever waits for it).
        on_absent: called with one that was expected, never came, and lacks something.
        on_shut: called with one that is cut off because it let nothing be sent to it.
        on_due: called with a time at which `expire` has something to do, where that is news.
        watchers: called after a subscriber attached, and at the end.
        leavers: the last `MAX_LEAVERS` that are gone and lacked something.
        reached: how many that are gone had received something.
        missed: messages that those that are gone had lost here, in all.
    """

    def __init__(
        self,
        stream_id: int,
        topic: str,
        *,
        codec: str = "msgpack",
        block: bool = False,
        buffer: int,
        history: int = 0,
        join_timeout: float,
        resume_timeout: float,
        now: float,
        holding: dict[Publication, None] | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.topic = topic
        self.codec = codec
        self.block = block
        self.buffer = buffer
        self.history = history
        self.join_timeout = join_timeout
        self.resume_timeout = resume_timeout
        self.log = Log()
        self.ended = False
        self.on_room: Callable[[], None] | None = None
        self.on_absent: Callable[[Leaver], None] | None = None
        self.on_shut: Callable[[Leaver], None] | None = None
        self.on_due: Callable[[float], None] | None = None
        self.watchers: list[Callable[[], None]] = []
        self.leavers: deque[Leaver] = deque(maxlen=MAX_LEAVERS)
        self.reached = 0
        self.missed = 0
        self._cursors: dict[SubKey, Cursor] = {}
        self._attached: dict[SubKey, Cursor] = {}
        self._away: dict[str, dict[SubKey, Cursor]] = {}  # by peer: those with a deadline
        self._shut: dict[Cursor, int] = {}  # who lets nothing be sent; what its outlet has taken
        self._late: dict[SubKey, int] = {}  # who was expected in vain, and from where on
        self._holding = {} if holding is None else holding
        self._waiters: list[Waiter] = []
        self._heard = False
        newborn = self._cursors[_NEWBORN] = Cursor(_NEWBORN, self.log, 0, observer=False)
        self._hold(newborn, now + join_timeout)

    # --- putting ------------------------------------------------------------------------

    def append(
        self,
        count: int,
        body: bytes,
        buffers: tuple[Buffer, ...],
        sent_at: float,
        headers: bytes = b"",
    ) -> Batch:
        """Put a batch; every attached cursor is queued at its outlet.

        What is over `buffer` leaves at the old end; a blocking publication lets only go what no
        firm cursor needs (its caller asked `room` before).
        """
        log = self.log
        batch = log.append(count, body, buffers, sent_at, headers)
        while log.size > self.buffer and len(log) > 1:
            if self.block and log.firm.at(log.first_number):
                break
            log.drop_first()
        if self.history or not self._cursors:
            log.trim(self.history)
        for cursor in self._attached.values():
            if not cursor.queued:  # attached ones have an outlet
                cursor.queued = cursor.outlet.offer(cursor, batch)  # type: ignore[union-attr]
        return batch

    def room(self, size: int) -> bool:
        """Whether `size` more bytes may be put now; False only where a blocking put must wait.

        Where it says True, they have their room: what only observers and `history` need is let go
        for them. For what has to wait, and may never come, nothing is.
        """
        log = self.log
        if not self.block:
            return True
        over = log.size + size - self.buffer
        going = 0
        for batch in log:
            if over <= 0:
                break
            if log.firm.at(batch.number):
                return False
            over -= batch.size
            going += 1
        for _ in range(going):
            log.drop_first()
        return True

    # --- who subscribes -----------------------------------------------------------------

    def expect(self, key: SubKey, *, before: bool, observer: bool, now: float) -> None:
        """A coordinator says that this Sub matches and will come: hold its place.

        `before`: it is older than the Pub and due its first message, as long as the first
        messages are still being kept.
        """
        if self.ended or key in self._cursors:
            return
        newborn = self._cursors.get(_NEWBORN)
        seq = newborn.due if before and newborn is not None else self.log.next_seq
        if self._is_crowded():
            self._is_late(key, seq)
            return
        cursor = self._cursors[key] = Cursor(key, self.log, seq, observer=observer)
        self._hold(cursor, now + self.join_timeout)
        for waiter in self._waiters:
            waiter.add(cursor)

    def unexpect(self, key: SubKey) -> None:
        """A coordinator says that this Sub is gone; ends nothing that ever was attached."""
        self._late.pop(key, None)
        cursor = self._cursors.get(key)
        if cursor is not None and cursor.outlet is None and cursor.channel < 0:
            self._drop(cursor)

    def refuse(self, key: SubKey) -> None:
        """This Sub has no right to the stream: no place is held for it. (One that is attached came
        on another link, which had the right, and ends with that.)"""
        self._late.pop(key, None)
        cursor = self._cursors.get(key)
        if cursor is not None and cursor.outlet is None:
            if cursor.channel >= 0:
                self._leave(cursor, "away")
            self._drop(cursor)

    def answered(self, now: float) -> None:
        """Every coordinator that can be reached has named the subscribers that it knows."""
        newborn = self._cursors.get(_NEWBORN)
        if newborn is not None:
            if not self._heard and not self.block:  # until now, nobody who is older could come
                newborn.deadline = now + self.join_timeout
            newborn.arrived(_END_OF_TIME)  # no flush waits for those still to be named
            self.progress(newborn)
        self._heard = True

    def settle(self) -> None:
        """No subscriber older than this Pub can turn up any more."""
        self.give_up(_NEWBORN)

    @property
    def settled(self) -> bool:
        """Whether the first messages are no longer kept for subscribers still to be named."""
        return _NEWBORN not in self._cursors

    def cursor(self, key: SubKey) -> Cursor | None:
        """The place of that subscriber; None: it has none."""
        return self._cursors.get(key)

    def attach(
        self,
        key: SubKey,
        outlet: Outlet,
        asked: Subscribe,
        *,
        now: float | None = None,
        from_now: bool = False,
    ) -> tuple[Cursor, Subscribed]:
        """A subscriber is here: open its cursor, or give it back the one that waited. Returns the
        cursor, and the answer. `from_now`: what was put before is not sent; it is a gap. `now`: the
        time; None: it is of this process, and is waited for whatever it does.

        Raises:
            ProtocolError: it wants to resume behind the end.
        """
        log, resume = self.log, asked.resume
        if resume is not None and resume > log.next_seq:
            raise ProtocolError(f"a resume at {resume} of a stream of {log.next_seq} messages")
        cursor = self._cursors.get(key)
        if cursor is not None and cursor.outlet is not None:
            cursor.outlet.taken_over(cursor)
            self._attached.pop(key, None)
        self._is_back(key)
        if resume is not None:
            due = resume
        else:
            back = self.history if asked.history is None else min(asked.history, self.history)
            due = max(log.next_seq - back, log.start)
            if cursor is not None:
                due = min(due, cursor.due)
            newborn = self._cursors.get(_NEWBORN)
            if asked.before and newborn is not None:  # it may be faster than the EXPECT
                due = newborn.due
            due = min(due, self._late.get(key, due))
        self._late.pop(key, None)
        first = log.next_seq if from_now else due
        if cursor is None:
            cursor = self._cursors[key] = Cursor(key, log, first, observer=asked.observer)
        else:
            cursor.place(first)
        for waiter in self._waiters:  # it may be due what was put before: a close waits for it too
            waiter.add(cursor)
        cursor.due = due
        cursor.miss(due)
        cursor.outlet = outlet
        cursor.address = outlet.address
        cursor.channel = asked.channel
        cursor.deadline = None
        cursor.sent = cursor.asked = 0
        cursor.limit = asked.limit
        cursor.largest = asked.max_batch + BATCH_COST
        if asked.limit:
            self._let(cursor)
        elif self.block and now is not None and not (cursor.granted or asked.observer):
            self._shuts(cursor, outlet, now)
        outlet.enqueue(cursor)
        cursor.queued = True
        self._attached[key] = cursor
        self._trimmed()  # a resume says what arrived, as an ACK does
        self.progress(cursor)
        for watcher in list(self.watchers):
            watcher()
        every = self.buffer // 4
        return cursor, Subscribed(asked.channel, self.topic, self.codec, due, cursor.next, every)

    def detach(self, cursor: Cursor, now: float) -> None:
        """Its link broke: for `resume_timeout` it holds its place, behind what it acknowledged."""
        if self._attached.pop(cursor.key, None) is None:
            return
        cursor.outlet = None
        cursor.queued = False
        self._shut.pop(cursor, None)
        self._hold(cursor, now + self.resume_timeout)
        if self._is_crowded():
            self._drop(cursor, "away")

    def is_away(self, peer_id: str) -> bool:
        """Whether a place is held for a Sub of that process."""
        return peer_id in self._away

    def leave(self, peer_id: str) -> None:
        """That process is known to be gone: no place is held for it any more. (What is attached is
        another's with the same name, or it lives after all: its link decides.)"""
        for cursor in list(self._away.get(peer_id, {}).values()):
            # one that never came was gone before it was there
            self._drop(cursor, "away" if cursor.channel >= 0 else None)

    def _hold(self, cursor: Cursor, until: float) -> None:
        """It is detached, and holds its place until then."""
        cursor.deadline = until
        if not self._away:
            self._holding[self] = None
        self._away.setdefault(cursor.key.peer_id, {})[cursor.key] = cursor

    def _is_back(self, key: SubKey) -> None:
        """It is detached no more."""
        away = self._away.get(key.peer_id)
        if away is not None and away.pop(key, None) is not None and not away:
            del self._away[key.peer_id]
            self._is_due_nothing()

    def _is_due_nothing(self) -> None:
        """Where no time is kept that could run out, nobody looks."""
        if not self._away and not self._shut:
            self._holding.pop(self, None)

    def _shuts(self, cursor: Cursor, outlet: Outlet, now: float) -> None:
        """It lets nothing be sent to it, not even one message, and puts will wait for it: so long,
        and no longer, however often it comes anew. (One whose window is full has had something.)"""
        if cursor.shut_until is None:
            cursor.shut_until = now + self.resume_timeout
        cursor.deadline = cursor.shut_until
        self._shut[cursor] = outlet.taken
        self._holding[self] = None
        if self.on_due is not None:
            self.on_due(cursor.deadline)

    def _let(self, cursor: Cursor) -> None:
        """It lets something be sent to it."""
        cursor.granted = True
        cursor.shut_until = cursor.deadline = None
        if self._shut.pop(cursor, None) is not None:
            self._is_due_nothing()

    def _look_at_shut(self, now: float) -> float | None:
        """Cut off who lets nothing be sent to it for too long, and is due something; returns when
        the next is. A process that takes messages of other streams of ours is spared: it may have
        no room for this one yet."""
        due: float | None = None
        for cursor, taken in list(self._shut.items()):
            outlet = cursor.outlet
            assert outlet is not None
            assert cursor.shut_until is not None
            if cursor.shut_until <= now and outlet.taken == taken and not cursor.at_end:
                why = f"it has let nothing be sent to it for {self.resume_timeout:g} s"
                outlet.end(cursor, 0, "refused", f"{why}, and the Pub waits for its subscribers")
                gone = self._leave(cursor, "shut")
                self._drop(cursor)
                if gone is not None and self.on_shut is not None:
                    self.on_shut(gone)
                continue
            if cursor.shut_until <= now:
                self._shut[cursor] = outlet.taken
                cursor.deadline = cursor.shut_until = now + self.resume_timeout
            due = cursor.shut_until if due is None else min(due, cursor.shut_until)
        return due

    def _is_late(self, key: SubKey, due: int) -> None:
        """No place is held for one that was expected. Should it come after all, it is told from
        where on it lacks something."""
        self._late.setdefault(key, due)
        if len(self._late) > MAX_LATE:
            del self._late[next(iter(self._late))]

    def _is_crowded(self) -> bool:
        return len(self._cursors) - len(self._attached) > MAX_DETACHED

    def remove(self, cursor: Cursor) -> None:
        """Its subscriber is done."""
        if self._cursors.get(cursor.key) is cursor:
            self._drop(cursor, "closed")

    def give_up(self, key: SubKey) -> None:
        """Nothing is kept for that subscriber, if there is one, in whatever state."""
        cursor = self._cursors.get(key)
        if cursor is not None:
            self._drop(cursor)

    def ack(self, cursor: Cursor, seq: int, limit: int) -> None:
        """See `Cursor.ack`; trims the log and opens the cursor's window."""
        cursor.ack(seq, limit)
        if cursor.deadline is not None and limit:
            self._let(cursor)
        self._trimmed()
        if cursor.outlet is not None and not cursor.queued and not cursor.at_end:
            cursor.outlet.enqueue(cursor)
            cursor.queued = True
        self.progress(cursor)

    def expire(self, now: float) -> float | None:
        """Give up detached cursors whose time has passed; returns the next deadline, if any."""
        due = self._look_at_shut(now)
        for cursor in [cursor for away in self._away.values() for cursor in away.values()]:
            if cursor.key is _NEWBORN and not self._heard and not self.block:
                continue  # nobody to ask yet, and keeping it harms nobody
            assert cursor.deadline is not None
            if cursor.deadline <= now:
                if cursor.key is not _NEWBORN:
                    if cursor.channel < 0:
                        self._is_late(cursor.key, cursor.due)
                    gone = self._leave(cursor, "away" if cursor.channel >= 0 else "absent")
                    if gone is not None and gone.how == "absent" and self.on_absent is not None:
                        self.on_absent(gone)
                self._drop(cursor)
            elif due is None or cursor.deadline < due:
                due = cursor.deadline
        return due

    def leave_waiting(self) -> None:
        """Nobody who waits now is called back any more, but who hurries."""
        self.watchers.clear()
        self._waiters = [waiter for waiter in self._waiters if waiter.hurries]

    def end(self, code: str, reason: str) -> None:
        """The Pub is closed: tell everyone, forget everything."""
        self.ended = True
        for _, cursor in self.cursors():
            self._leave(cursor, "end")
        for cursor in self._attached.values():
            if cursor.outlet is not None:
                cursor.outlet.end(cursor, self.log.next_seq, code, reason)
        self._attached.clear()
        for cursor in self._cursors.values():
            cursor.outlet = None
            cursor.release()
        self.missed += sum(cursor.lost for cursor in self._cursors.values())
        self._cursors.clear()
        self._away.clear()
        self._shut.clear()
        self._late.clear()
        self._holding.pop(self, None)
        while len(self.log):
            self.log.drop_first()
        if self.on_room is not None:
            self.on_room()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback()
        for watcher in list(self.watchers):
            watcher()

    def _leave(self, cursor: Cursor, how: How) -> Leaver | None:
        """It is gone: keep what there is to know; None: it lacks nothing."""
        if cursor.received > cursor.due:
            self.reached += 1
        lacks = self.log.next_seq - (cursor.received if how == "end" else cursor.acked)
        if not lacks and not cursor.lost:
            return None
        leaver = Leaver(cursor.name, how, lacks, cursor.lost, cursor.observer)
        self.leavers.append(leaver)
        return leaver

    def _drop(self, cursor: Cursor, how: How | None = None) -> None:
        if how is not None:
            self._leave(cursor, how)
        self.missed += cursor.lost
        del self._cursors[cursor.key]
        self._attached.pop(cursor.key, None)
        self._shut.pop(cursor, None)
        self._is_back(cursor.key)
        self._is_due_nothing()
        cursor.outlet = None
        cursor.release()
        self._trimmed()
        self.progress(cursor, gone=True)

    def _trimmed(self) -> None:
        self.log.trim(self.history)
        if self.on_room is not None:
            self.on_room()

    # --- waiting for it to arrive -------------------------------------------------------

    def when_received(
        self, callback: Callable[[], None], *, observers: bool, hurries: bool = False
    ) -> Waiter | None:
        """Call back once all that is in the log now has been received by every subscriber that
        is attached, expected or reconnecting (those that run out of time are not waited for, and
        where it `hurries`, neither are those that `hurry` finds).

        Returns None where that is true already, and else a handle for `forget_waiter`.
        """
        waiter = Waiter(self.log.next_seq, observers, hurries, callback)
        for cursor in self._cursors.values():
            waiter.add(cursor)
        if not waiter.pending:
            return None
        self._waiters.append(waiter)
        for cursor in waiter.pending:
            self._ask(cursor, waiter.target)
        return waiter

    def forget_waiter(self, waiter: Waiter) -> None:
        """The flush was given up."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def hurry(self, now: float, *, named: bool) -> None:
        """What hurries waits no longer for observers that are away or stand still, nor, unless
        subscribers are `named` by some coordinator, for those that none has named yet. To be
        called again and again."""
        for waiter in [waiter for waiter in self._waiters if waiter.hurries]:
            for cursor in list(waiter.pending):
                if cursor.key is _NEWBORN:
                    over = not named
                else:
                    over = cursor.observer and (_is_away(cursor) or waiter.stands(cursor, now))
                if over:
                    del waiter.pending[cursor]
            if not waiter.pending:
                self._waiters.remove(waiter)
                waiter.callback()

    def progress(self, cursor: Cursor, *, gone: bool = False) -> None:
        """A cursor received something, or is gone: call back the flushes that are done by it."""
        if not self._waiters:
            return
        done = []
        for waiter in self._waiters:
            if cursor in waiter.pending and (gone or cursor.received >= waiter.target):
                waiter.pending.pop(cursor, None)
                if not waiter.pending:
                    done.append(waiter)
            elif cursor in waiter.pending:
                self._ask(cursor, waiter.target)
        for waiter in done:
            self._waiters.remove(waiter)
        for waiter in done:
            waiter.callback()

    def _ask(self, cursor: Cursor, target: int) -> None:
        """Have the outlet find out when everything below `target` has arrived."""
        if cursor.confirm is None or target < cursor.confirm:
            cursor.confirm = target
        if cursor.outlet is not None and not cursor.queued:
            cursor.outlet.enqueue(cursor)
            cursor.queued = True

    # --- for people ---------------------------------------------------------------------

    @property
    def lends(self) -> bool:
        """Whether somebody is lent what lies in the pool. May be called from any thread."""
        for cursor in list(self._attached.values()):
            outlet = cursor.outlet
            if outlet is not None and outlet.lends:
                return True
        return False

    @property
    def attached(self) -> int:
        """How many subscribers are connected."""
        return len(self._attached)

    def unreceived(self, put: int) -> int:
        """How many, of so many messages put, somebody is due who is not known to have received
        them. Observers that are away are due nothing: nobody waits for them."""
        due = [cursor for cursor in list(self._cursors.values()) if not _is_away(cursor)]
        return max([0, *(put - cursor.received for cursor in due)])

    def behind(self, put: int) -> str:
        """Who is not known to have received all of so many messages, and how much each may lack."""
        return listed(
            f"{cursor.name} ({state}, {put - cursor.received:,} behind)"
            for state, cursor in self.cursors()
            if cursor.received < put and not _is_away(cursor)
        )

    def holds(self, cursor: Cursor) -> bool:
        """Whether the oldest batch is kept for that subscriber."""
        return len(self.log) > 0 and cursor.held <= self.log.first_number

    def holding(self, now: float) -> list[Holder]:
        """Those for whom a put that waits for room waits. May be called from any thread."""
        newborn = self._cursors.get(_NEWBORN)
        found: list[tuple[State, Cursor]] = [] if newborn is None else [("unnamed", newborn)]
        found += self.cursors()
        return [
            Holder(state, cursor, cursor.held_for(now), cursor.acked)
            for state, cursor in found
            if not cursor.observer and self.holds(cursor)
        ]

    def cursors(self) -> Iterable[tuple[Literal["attached", "expected", "reconnecting"], Cursor]]:
        """All subscribers and how they stand. May be called from any thread."""
        for key, cursor in list(self._cursors.items()):
            if key is _NEWBORN:
                continue
            if cursor.outlet is not None:
                yield "attached", cursor
            else:
                yield ("reconnecting" if cursor.channel >= 0 else "expected"), cursor


def _is_away(cursor: Cursor) -> bool:
    """An observer that was attached and is not any more."""
    return cursor.observer and cursor.outlet is None and cursor.channel >= 0
