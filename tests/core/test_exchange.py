"""The publishing and the subscribing end against each other, over links that chop, delay and break.

A state machine puts, pumps, delivers, takes, acknowledges, breaks, reconnects, expires, closes and
flushes in any order. Beside it goes a model that knows only what was put, who was told to expect
whom, and which subscribers were given up. After every step the two agree on what each Sub has got,
is owed and has lost (G1, G2, G3), on what is held for whom (G5) and on how much memory that takes
(G6); at the end everything that is still due arrives, without anybody's help (no deadlock).
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Iterator
from unittest.mock import patch

import msgpack
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import pubsub.core.serving as serving_module
from pubsub.codec.headers import BatchHeaders, Headed, headers_of, pack_headers
from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication, Waiter
from pubsub.core.receiving import Receiving
from pubsub.core.serving import Serving
from pubsub.core.stream import Entry, Stream, StreamKey
from pubsub.core.window import Credit
from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST, Event, FrameReader, array_header, buffers_cost
from pubsub.wire.messages import End, Ping, Pong, Subscribe, Subscribed, Unsubscribe, encode
from tests.wire.buffers import contents, whole

PUBLISHER = "publisher"
JOIN, RESUME = 5.0, 30.0
MAX_MESSAGE = 100_000
PLENTY = 10**6
"""A buffer that nothing here fills."""


class Source:
    """One Pub, and all that was ever put there."""

    def __init__(self, number: int, block: bool, buffer: int, history: int) -> None:
        self.number = number
        self.block = block
        self.history = history
        self.publication = Publication(
            number,
            f"topic/{number % 2}",
            block=block,
            buffer=buffer,
            history=history,
            join_timeout=JOIN,
            resume_timeout=RESUME,
            now=0.0,
        )
        self.put = 0
        self.bytes = 0
        self.largest = 0
        self.values: list[list[object]] = []
        self.buffers: dict[int, tuple[bytes, ...]] = {}  # by the number behind their batch
        self.newborn = True
        self.newborn_until = JOIN
        self.heard = False
        self.waiting: deque[tuple[list[int], list[int]]] = deque()  # puts that wait for room
        self.may_retry = False
        self.publication.on_room = self._on_room

    @property
    def overflowed(self) -> bool:
        """Whether its buffer may ever have been too small."""
        return self.bytes > self.publication.buffer

    def _on_room(self) -> None:
        self.may_retry = True

    def put_batch(self, sizes: list[int], buffers: list[int]) -> None:
        """Put a batch; in a blocking Pub it may have to wait, and others behind it."""
        if self.waiting or not self._offer(sizes, buffers):
            self.waiting.append((sizes, buffers))

    def retry(self) -> bool:
        """There may be room, the publication said."""
        if self.publication.ended:
            self.waiting.clear()
        moved = False
        while self.may_retry and self.waiting:
            self.may_retry = moved = self._offer(*self.waiting[0])
            if moved:
                self.waiting.popleft()
        return moved

    def _offer(self, sizes: list[int], buffers: list[int]) -> bool:
        values: list[list[object]] = [
            [self.number, self.put + i, b"." * size] for i, size in enumerate(sizes)
        ]
        body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
        large = tuple(
            bytes([(self.put + i + size) % 256]) * size for i, size in enumerate(buffers, 1)
        )
        headers = headers_of(
            [
                Headed(b"", pack_headers(of_one, "t")) if of_one else b""
                for of_one in (headers_of_one(self.put + i) for i in range(len(values)))
            ],
            len(values),
        )
        size = BATCH_COST + len(body) + len(headers) + buffers_cost(whole(*large))
        if not self.publication.room(size):
            assert self.block
            return False
        self.publication.append(len(values), body, whole(*large), 12.5, headers)
        self.values += values
        self.put += len(values)
        self.buffers[self.put] = large
        self.bytes += size
        self.largest = max(self.largest, size)
        return True


def headers_of_one(seq: int) -> dict[str, str | bytes]:
    """Those of each third message."""
    return {"n": str(seq), "long": bytes(seq % 40)} if seq % 3 == 1 else {}


class Account:
    """What the model knows of one Sub × one Pub."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.stream: Stream | None = None
        self.due: int | None = None  # as the first SUBSCRIBED said
        self.position = 0  # the Sub has seen all below, as message or as gap
        self.left = False  # the Sub's side stopped trying
        self.delivered = 0
        self.last = -1
        self.gaps: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()  # how often it was given up since it was open
        self.said = ""
        self.told: Counter[str] = Counter()  # and the Sub was told so
        # the publisher's side: from where its place is kept, until when, whether it was given up
        self.kept_from: int | None = None
        self.late: int | None = None  # it was expected in vain: from where on it lacks something
        self.deadline: float | None = None
        self.met = False
        self.given_up = 0
        self.wire: Wire | None = None


class Sink:
    """One Sub, and what it has got."""

    def __init__(
        self,
        number: int,
        latest: bool,
        window: int,
        history: int | None,
        observer: bool,
        threaded: bool,
        max_batch: int,
    ) -> None:
        self.inbox = Inbox(
            number, "topic/*", latest=latest, window=window, history=history, observer=observer
        )
        self.threaded = threaded
        self.max_batch = max_batch
        self.inbox.window.on_consumed = self._on_consumed
        self.accounts: dict[StreamKey, Account] = {}
        self.posted: list[tuple[Credit, int]] = []
        self.slow: list[Credit] = []
        self.closed = False
        self.entries = 0

    def _on_consumed(self, credit: Credit, stage: int) -> None:
        if self.threaded:  # the other thread hears of it later
            self.posted.append((credit, stage))
        else:
            self._consumed(credit, stage)

    def _consumed(self, credit: Credit, stage: int) -> None:
        if stage == 1:
            self.slow.append(credit)
        else:
            credit.acknowledge()

    def run_posted(self) -> bool:
        posted, self.posted = self.posted, []
        for credit, stage in posted:
            self._consumed(credit, stage)
        return bool(posted)

    def ack_timer(self) -> bool:
        slow, self.slow = self.slow, []
        for credit in slow:
            credit.acknowledge()
        return bool(slow)

    def take(self) -> bool:
        entry = self.inbox.take()
        if entry is None:
            return False
        account = self.accounts[entry.stream.key]
        for count, reason in entry.gaps:
            if reason in ("vanished", "unreachable"):
                assert count == 0
                account.told[reason] += 1
                if reason == "unreachable" and entry.first == entry.end == 0:
                    return True  # it may have been reached since, and begin anywhere
            else:
                account.gaps[reason] += count
        self.check_content(account, entry)
        if self.inbox.latest:
            if entry.first < entry.end:
                assert entry.end == entry.first + 1
                assert entry.first > account.last, "a message again, or out of order"
                account.last = entry.first
        else:
            assert entry.first == account.position + sum(count for count, _ in entry.gaps)
            account.position = entry.end
        account.delivered += entry.end - entry.first
        return True

    def check_content(self, account: Account, entry: Entry) -> None:
        if entry.first == entry.end:
            assert entry.gaps
            return
        assert entry.size - BATCH_COST <= self.max_batch
        values = msgpack.unpackb(entry.body)[entry.skip :]
        assert values == account.source.values[entry.first : entry.end]
        assert tuple(map(contents, entry.buffers)) == account.source.buffers[entry.end]
        assert entry.sent_at == 12.5
        seqs = range(entry.first, entry.end)
        expected = [headers_of_one(seq) for seq in seqs]
        if entry.headers:
            found = BatchHeaders(entry.headers, entry.first - entry.skip, "t", "p")
            assert [found.of(seq) for seq in seqs] == expected
        else:
            assert not any(expected)

    # --- what must hold at any time -----------------------------------------------------

    def check(self) -> None:
        inbox = self.inbox
        waiting = {key: [0, 0] for key in self.accounts}  # messages, lost messages
        position = {key: account.position for key, account in self.accounts.items()}
        for entry in inbox._entries:
            key = entry.stream.key
            if not entry.end and (0, "unreachable") in entry.gaps:
                continue
            gap = sum(count for count, _ in entry.gaps)
            assert entry.first == position[key] + gap
            position[key] = entry.end
            waiting[key][0] += entry.end - entry.first
            waiting[key][1] += gap
        for entry in (slot.entry for slot in inbox._newest):
            assert entry.end == entry.first + 1
            waiting[entry.stream.key][0] += 1
        for entry in (slot.entry for slot in inbox._passed):
            waiting[entry.stream.key][1] += sum(count for count, _ in entry.gaps)
        lost = 0
        for key, account in self.accounts.items():
            stream_ = account.stream
            if account.due is None or stream_ is None:
                continue
            messages, missed = waiting[key]
            shown = account.gaps.total() + missed
            lost += shown
            assert stream_.expected == account.due + account.delivered + shown + messages
            if not inbox.latest:
                assert position[key] == stream_.expected
            self.check_window(account, stream_)
        assert inbox.lost == lost
        self.check_total_window()

    def check_window(self, account: Account, stream: Stream) -> None:
        assert (
            0
            <= stream.credit.received - stream.credit.consumed
            <= (self.inbox.window.size + account.source.largest)
        )
        assert (
            stream.credit.received
            <= stream.credit.limit + self.inbox.window.size + account.source.largest
        )

    def check_total_window(self) -> None:
        """All streams together: while there were fewer of them, each had a larger share."""
        accounts = [a for a in self.accounts.values() if a.stream is not None]
        if not accounts:
            return
        waiting = sum(
            a.stream.credit.received - a.stream.credit.consumed for a in accounts if a.stream
        )
        doublings = math.ceil(math.log2(len(accounts)))
        assert waiting <= self.inbox.window.size * (1 + doublings / 2) + sum(
            a.source.largest for a in accounts
        )


class Wire:
    """One connection: two directions of bytes, each end alive until it notices the break."""

    def __init__(self, world: World, peer: Peer) -> None:
        self.world = world
        self.peer = peer
        self.down = bytearray()
        self.up = bytearray()
        self.serving_dirty = self.receiving_dirty = False
        self.publisher_alive = self.subscriber_alive = True
        self.silenced = False
        self.alone = 0
        self.serving = Serving(
            *(peer.name, f"{peer.name}:1", world.find, self._serving_output),
            max_channels=100,
            write_now=self._write_now,
        )
        self.receiving = Receiving(self._receiving_output, lambda stream: None)
        self.from_publisher = FrameReader(world.scratch, self.receiving)
        self.from_subscriber = FrameReader(world.scratch)
        self.from_publisher.max_payload = self.from_subscriber.max_payload = MAX_MESSAGE + 1024
        self.promised: dict[int, int] = {}  # channel → `due`
        self.opened: dict[int, Account] = {}

    def _serving_output(self) -> None:
        self.serving_dirty = True

    def _write_now(self, frame: bytes) -> bool:
        """Every other batch that might take the short road does."""
        self.alone += 1
        if self.alone % 2:
            self.down += frame
        return self.alone % 2 == 1

    def _receiving_output(self) -> None:
        self.receiving_dirty = True

    def pump(self, budget: int) -> bool:
        """Write a part of what each end has; nothing unless it had said so."""
        moved = False
        if self.publisher_alive and self.serving_dirty:
            chunks = self.serving.pump(budget)
            self.serving_dirty = bool(chunks)
            self.down += b"".join(chunks)
            moved = True
        if self.subscriber_alive and self.receiving_dirty:
            requests = self.receiving.pump(budget)
            self.receiving_dirty = bool(requests)
            self.up += b"".join(requests)
            moved = True
        return moved

    def deliver_down(self, size: int) -> bool:
        if not self.subscriber_alive or not self.down:
            return False
        data = bytes(self.down[:size])
        del self.down[:size]
        for event in read(self.from_publisher, data):
            if isinstance(event, Ping):
                self.up += encode(Pong(event.token))
                continue
            if isinstance(event, Subscribed):
                self._subscribed(event)
            elif isinstance(event, End):
                self._ended(event)
            self.receiving.receive(event)
        return True

    def _subscribed(self, event: Subscribed) -> None:
        stream = self.receiving._channels.get(event.channel)
        if stream is None:
            return
        account = self.world.account_of(stream)
        account.said = ""
        if account.due is None:
            assert event.due == self.promised[event.channel]
            account.due = account.position = event.due

    def _ended(self, event: End) -> None:
        """One that is older than the Pub was due all of it, though it never was connected."""
        stream = self.receiving._channels.get(event.channel)
        if stream is not None and stream.before:
            account = self.world.account_of(stream)
            if account.due is None:
                account.due = 0

    def deliver_up(self, size: int) -> bool:
        if not self.publisher_alive or self.silenced or not self.up:
            return False
        self.world.silence_older(self)
        data = bytes(self.up[:size])
        del self.up[:size]
        for event in read(self.from_subscriber, data):
            if isinstance(event, Subscribe):
                self.world.subscribe_arrived(self, event)
            elif isinstance(event, Unsubscribe):
                self._unsubscribe_arrived(event)
            self.serving.receive(event)
        return True

    def _unsubscribe_arrived(self, event: Unsubscribe) -> None:
        account = self.opened.get(event.channel)
        if account is not None and account.wire is self:
            account.kept_from = account.wire = None

    def break_subscriber(self) -> None:
        self.subscriber_alive = False
        self.receiving.broken()
        self.down.clear()

    def break_publisher(self) -> None:
        self.publisher_alive = False
        self.serving.broken(self.world.now)
        self.up.clear()
        for account in self.world.all_accounts():
            if account.wire is self:
                account.wire = None
                account.deadline = self.world.now + RESUME


def read(reader: FrameReader, data: bytes) -> Iterator[Event]:
    """What a link does with bytes that come."""
    while data:
        room = reader.get_buffer()
        size = min(len(room), len(data))
        room[:size] = data[:size]
        data = data[size:]
        for event in reader.received(size):
            if isinstance(event, ProtocolError):
                raise event
            yield event


class Peer:
    """A subscribing process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sinks: list[Sink] = []
        self.streams: list[Stream] = []
        self.wire: Wire | None = None


class Flush:
    """A `when_received`, and for whom it waits."""

    def __init__(self, source: Source, waits_for: list[Account]) -> None:
        self.source = source
        self.target = source.put
        self.waits_for = [(account, account.given_up) for account in waits_for]
        self.calls = 0
        self.waiter: Waiter | None = None

    def called(self) -> None:
        self.calls += 1
        assert self.calls == 1
        self.check()

    def check(self) -> None:
        publication = self.source.publication
        for account, given_up in self.waits_for:
            if publication.ended or account.kept_from is None or account.given_up > given_up:
                continue
            if publication.log.start >= self.target:
                continue
            assert account.stream is not None
            assert account.stream.expected is not None
            assert account.stream.expected >= self.target


class World(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.scratch = bytearray(0)
        self.sources: dict[int, Source] = {}
        self.peers: list[Peer] = []
        self.sinks: list[Sink] = []
        self.wires: list[Wire] = []
        self.flushes: list[Flush] = []
        self.pieces = patch.multiple(serving_module, BUFFER_PIECE=64, SHARED_PIECE=48)
        self.pieces.start()

    @initialize(
        scratch=st.sampled_from([48, 300, 8192]),
        sources=st.lists(
            st.tuples(
                st.booleans(),
                st.sampled_from([PLENTY, 1, 1000, 3000]),
                st.sampled_from([0, 2, 100]),
            ),
            min_size=1,
            max_size=3,
        ),
        sinks=st.lists(
            st.tuples(
                st.booleans(),
                st.sampled_from([1, 600, 2000, 50_000]),
                st.sampled_from([0, 1, None]),
                st.booleans(),
                st.booleans(),
                st.sampled_from([MAX_MESSAGE, 500]),
            ),
            min_size=1,
            max_size=3,
        ),
        peers=st.integers(1, 2),
        wanted=st.booleans(),
    )
    def begin(
        self,
        scratch: int,
        sources: list[tuple[bool, int, int]],
        sinks: list[tuple[bool, int, int | None, bool, bool, int]],
        peers: int,
        wanted: bool,
    ) -> None:
        self.scratch = bytearray(scratch)
        self.sources = {i: Source(i, *options) for i, options in enumerate(sources, 1)}
        self.peers = [Peer(f"subscriber{i}") for i in range(peers)]
        for number, options in enumerate(sinks, 1):
            sink = Sink(number, *options)
            self.sinks.append(sink)
            self.peers[number % peers].sinks.append(sink)
        if wanted:
            for which in range(peers):
                self.connect(which)
            for who in range(len(sinks)):
                for which in range(len(sources)):
                    self.want(who, which, before=False)

    # --- lookups ------------------------------------------------------------------------

    def source(self, index: int) -> Source:
        return self.sources[1 + index % len(self.sources)]

    def sink(self, index: int) -> Sink:
        return self.sinks[index % len(self.sinks)]

    def peer(self, index: int) -> Peer:
        return self.peers[index % len(self.peers)]

    def peer_of(self, sink: Sink) -> Peer:
        return next(peer for peer in self.peers if sink in peer.sinks)

    def wire(self, index: int) -> Wire:
        return self.wires[index % len(self.wires)]

    def find(self, stream_id: int) -> Publication | None:
        return self.sources[stream_id].publication

    def key_of(self, sink: Sink) -> SubKey:
        return SubKey(self.peer_of(sink).name, sink.inbox.sub_id)

    def account(self, sink: Sink, source: Source) -> Account:
        key = StreamKey(PUBLISHER, source.number)
        if key not in sink.accounts:
            sink.accounts[key] = Account(source)
        return sink.accounts[key]

    def account_of(self, stream: Stream) -> Account:
        sink = next(sink for sink in self.sinks if sink.inbox is stream.inbox)
        return sink.accounts[stream.key]

    def all_accounts(self) -> list[Account]:
        return [account for sink in self.sinks for account in sink.accounts.values()]

    # --- the Pubs -----------------------------------------------------------------------

    @rule(
        which=st.integers(0, 2),
        sizes=st.lists(st.sampled_from([0, 1, 40, 700]), min_size=1, max_size=3),
        buffers=st.one_of(
            st.just([]), st.lists(st.sampled_from([1, 64, 200, 2500]), min_size=1, max_size=2)
        ),
    )
    def put(self, which: int, sizes: list[int], buffers: list[int]) -> None:
        source = self.source(which)
        if not source.publication.ended:
            source.put_batch(sizes, buffers)

    @rule(which=st.integers(0, 2))
    def retry(self, which: int) -> None:
        self.source(which).retry()

    @rule(which=st.integers(0, 2), observers=st.booleans())
    def flush(self, which: int, observers: bool) -> None:
        source = self.source(which)
        publication = source.publication
        if publication.ended:
            return
        known = {cursor.key for _, cursor in publication.cursors()}
        waits_for = [
            self.account(sink, source)
            for sink in self.sinks
            if self.key_of(sink) in known and (observers or not sink.inbox.observer)
        ]
        waits_for = [a for a in waits_for if a.kept_from is not None and a.kept_from < source.put]
        flush = Flush(source, waits_for)
        flush.waiter = publication.when_received(flush.called, observers=observers)
        if flush.waiter is None:
            flush.check()
        else:
            self.flushes.append(flush)

    @precondition(lambda self: self.flushes)
    @rule(which=st.integers(0, 3))
    def give_up_flush(self, which: int) -> None:
        flush = self.flushes.pop(which % len(self.flushes))
        assert flush.waiter is not None
        for source in self.sources.values():
            source.publication.forget_waiter(flush.waiter)

    @rule(which=st.integers(0, 2))
    def answered(self, which: int) -> None:
        source = self.source(which)
        source.publication.answered(self.now)
        if not source.heard and not source.block:
            source.newborn_until = self.now + JOIN
        source.heard = True

    @rule(which=st.integers(0, 2))
    def settle(self, which: int) -> None:
        source = self.source(which)
        source.publication.settle()
        source.newborn = False

    @rule(which=st.integers(0, 2), chance=st.integers(0, 3))
    def end(self, which: int, chance: int) -> None:
        source = self.source(which)
        if chance or source.publication.ended:
            return
        source.publication.end("closed", "the Pub was closed")
        assert len(source.publication.log) == 0

    # --- who subscribes -----------------------------------------------------------------

    @rule(who=st.integers(0, 2), which=st.integers(0, 2), before=st.booleans())
    def expect(self, who: int, which: int, before: bool) -> None:
        sink, source = self.sink(who), self.source(which)
        publication = source.publication
        publication.expect(
            self.key_of(sink), before=before, observer=sink.inbox.observer, now=self.now
        )
        account = self.account(sink, source)
        if account.kept_from is None and not publication.ended:
            account.kept_from = 0 if before and source.newborn else source.put
            account.deadline = self.now + JOIN
            account.met = False

    @rule(who=st.integers(0, 2), which=st.integers(0, 2))
    def unexpect(self, who: int, which: int) -> None:
        sink, source = self.sink(who), self.source(which)
        account = self.account(sink, source)
        if account.kept_from is not None and not account.met:
            self._give_up(account)
        source.publication.unexpect(self.key_of(sink))
        account.late = None

    def _give_up(self, account: Account) -> None:
        account.kept_from = account.deadline = None
        account.given_up += 1

    @rule(who=st.integers(0, 2), which=st.integers(0, 2), before=st.booleans())
    def want(self, who: int, which: int, before: bool) -> None:
        """The Sub asks for the stream, for the first time or again after it was given up."""
        sink, source = self.sink(who), self.source(which)
        account = self.account(sink, source)
        if sink.closed or (account.stream is not None and not account.stream.ended):
            return
        key = StreamKey(PUBLISHER, source.number)
        if sink.inbox.over(key):
            return
        gone = account.stream is not None and account.stream.gone != ""
        stream = sink.inbox.returned(key)
        assert (stream is not None) == gone
        if stream is None:
            stream = Stream(
                sink.inbox, key, source.publication.topic, "publisher:1", sink.max_batch
            )
            stream.before = before
            sink.inbox.add(stream)
        account.stream = stream
        account.left = False
        peer = self.peer_of(sink)
        peer.streams.append(stream)
        if peer.wire is not None:
            peer.wire.receiving.subscribe(stream)

    @rule(who=st.integers(0, 2), which=st.integers(0, 2), trouble=st.booleans())
    def give_up(self, who: int, which: int, trouble: bool) -> None:
        """The Sub's peer stops trying to reach the publisher."""
        sink = self.sink(who)
        account = self.account(sink, self.source(which))
        if self.peer_of(sink).wire is None and account.stream and not account.stream.ended:
            stream = account.stream
            stream.vanish(trouble)
            self.peer_of(sink).streams.remove(stream)
            if account.due is not None:
                assert stream.gone == "vanished"
            else:
                trouble = trouble or account.said != ""
                assert stream.gone == ("unreachable" if stream.before or trouble else "")
            if stream.gone and stream.gone != account.said:
                account.gone[stream.gone] += 1
                account.said = stream.gone
            account.left = True

    def subscribe_arrived(self, wire: Wire, event: Subscribe) -> None:
        """What the publisher owes to it from now on."""
        sink = next(sink for sink in self.sinks if sink.inbox.sub_id == event.sub_id)
        source = self.sources[event.stream_id]
        if source.publication.ended:
            return
        account = self.account(sink, source)
        if event.resume is None:
            back = source.history if event.history is None else min(source.history, event.history)
            due = max(source.put - back, source.publication.log.start)
            if account.kept_from is not None:
                due = min(due, account.kept_from)
            if event.before and source.newborn:
                due = 0
            if account.late is not None:
                due = min(due, account.late)
            wire.promised[event.channel] = account.kept_from = due
        else:
            account.kept_from = event.resume
        account.deadline = account.late = None
        account.met = True
        account.wire = wire
        wire.opened[event.channel] = account

    @rule(who=st.integers(0, 2), chance=st.integers(0, 3))
    def close(self, who: int, chance: int) -> None:
        sink = self.sink(who)
        if chance or sink.closed:
            return
        newest = (slot.entry for slot in sink.inbox._newest)
        waiting = sum(e.end - e.first for e in (*sink.inbox._entries, *newest))
        lost = sink.inbox.lost
        sink.closed = True
        for stream in sink.inbox.close():
            if stream.route is not None:
                stream.route.unsubscribe(stream)
            stream.finish()
        sink.inbox.discard()
        assert sink.inbox.lost == lost + waiting
        assert sink.inbox.take() is None

    # --- the links ----------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def connect(self, which: int) -> None:
        peer = self.peer(which)
        if peer.wire is None:
            peer.wire = Wire(self, peer)
            self.wires.append(peer.wire)
            peer.streams = [stream for stream in peer.streams if not stream.ended]
            for stream in peer.streams:
                peer.wire.receiving.subscribe(stream)

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5), budget=st.sampled_from([1, 500, 10**6]))
    def pump(self, which: int, budget: int) -> None:
        self.wire(which).pump(budget)

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5), size=st.one_of(st.integers(1, 50), st.just(10**6)))
    def deliver_down(self, which: int, size: int) -> None:
        self.wire(which).deliver_down(size)

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5), size=st.one_of(st.integers(1, 20), st.just(10**6)))
    def deliver_up(self, which: int, size: int) -> None:
        self.wire(which).deliver_up(size)

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5))
    def run_wire(self, which: int) -> None:
        """Everything goes through, as it mostly does."""
        wire = self.wire(which)
        while wire.pump(10**6) | wire.deliver_up(10**6) | wire.deliver_down(10**6):
            pass

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5))
    def break_subscriber(self, which: int) -> None:
        wire = self.wire(which)
        if wire.subscriber_alive:
            wire.break_subscriber()
            wire.peer.wire = None
        self._bury()

    @precondition(lambda self: self.wires)
    @rule(which=st.integers(0, 5))
    def break_publisher(self, which: int) -> None:
        wire = self.wire(which)
        if wire.publisher_alive:
            wire.break_publisher()
        self._bury()

    def silence_older(self, wire: Wire) -> None:
        """A peer that comes on a new link has given up the one before: what is still on its way
        there is not listened to any more. (That the old link is broken may show later.)"""
        for older in self.wires[: self.wires.index(wire)]:
            if older.peer is wire.peer:
                older.silenced = True

    def _bury(self) -> None:
        self.wires = [w for w in self.wires if w.publisher_alive or w.subscriber_alive]

    # --- the Subs -----------------------------------------------------------------------

    @rule(who=st.integers(0, 2), count=st.integers(1, 3))
    def take(self, who: int, count: int) -> None:
        for _ in range(count):
            self.sink(who).take()

    @rule(who=st.integers(0, 2))
    def run_posted(self, who: int) -> None:
        self.sink(who).run_posted()

    @rule(who=st.integers(0, 2))
    def ack_timer(self, who: int) -> None:
        self.sink(who).ack_timer()

    # --- time ---------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 6.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for source in self.sources.values():
            dues = []
            for sink in self.sinks:
                account = self.account(sink, source)
                if account.deadline is None or source.publication.ended:
                    continue
                if account.deadline <= self.now:
                    if not account.met and account.late is None:
                        account.late = account.kept_from
                    self._give_up(account)
                else:
                    dues.append(account.deadline)
            if source.newborn and (source.heard or source.block):
                if self.now >= source.newborn_until:
                    source.newborn = False
                elif not source.publication.ended:
                    dues.append(source.newborn_until)
            assert source.publication.expire(self.now) == min(dues, default=None)

    # --- what must hold at any time -----------------------------------------------------

    @invariant()
    def pubs_hold_what_is_needed_and_no_more(self) -> None:
        for source in self.sources.values():
            publication = source.publication
            log = publication.log
            assert log.size <= publication.buffer or len(log) == 1
            assert log.size == sum(batch.size for batch in log._batches)
            cursors = list(publication._cursors.values())
            places = Counter(max(cursor.held, log.first_number) for cursor in cursors)
            assert log.holds._at == places
            firm = Counter(max(c.held, log.first_number) for c in cursors if not c.observer)
            assert log.firm._at == firm
            known = {cursor.key for _, cursor in publication.cursors()}
            for cursor in publication._attached.values():
                if cursor.confirm is not None and not cursor.queued:
                    assert cursor.next < cursor.confirm, "nobody is asked what has arrived"
            assert known == {
                self.key_of(sink)
                for sink in self.sinks
                if not publication.ended and self.account(sink, source).kept_from is not None
            }

    @invariant()
    def subs_have_an_account_of_everything(self) -> None:
        for sink in self.sinks:
            if not sink.closed:
                sink.check()

    @invariant()
    def nothing_is_lost_that_was_held(self) -> None:
        """G3, G4, G5: no overflow where the buffer was large enough, or the Pub waited; nothing
        is too large where nothing was."""
        for sink in self.sinks:
            for account in sink.accounts.values():
                source = account.source
                safe = not source.overflowed or (source.block and not sink.inbox.observer)
                if safe and not account.given_up:
                    assert not account.gaps["overflow"]
                if source.largest - BATCH_COST <= sink.max_batch:
                    assert not account.gaps["too large"]

    # --- at rest ------------------------------------------------------------------------

    def run_until_nothing_moves(self) -> None:
        for _ in range(1000):
            moved = False
            for wire in self.wires:
                if wire.subscriber_alive and not wire.publisher_alive:  # it notices at last
                    wire.break_subscriber()
                    wire.peer.wire = None
            self._bury()
            for which, peer in enumerate(self.peers):
                if peer.wire is None:
                    self.connect(which)
                    moved = True
            for source in self.sources.values():
                moved |= source.retry()
            for wire in self.wires:
                moved |= wire.pump(10**6) | wire.deliver_down(10**6) | wire.deliver_up(10**6)
            for sink in self.sinks:
                moved |= sink.run_posted() | sink.ack_timer()
                while sink.take():
                    moved = True
            if not moved:
                return
            self.subs_have_an_account_of_everything()
            self.pubs_hold_what_is_needed_and_no_more()
        pytest.fail("it never comes to rest")

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is not None:
                return  # a step has failed: that is what to report
            self.run_until_nothing_moves()
            self.nothing_is_lost_that_was_held()
            for sink in self.sinks:
                self._check_at_rest(sink)
                if not sink.closed:
                    self._check_told(sink)
            self._check_that_all_is_let_go()
        finally:
            self.pieces.stop()

    def _check_at_rest(self, sink: Sink) -> None:
        """G3: put = delivered + lost."""
        for account in sink.accounts.values():
            source = account.source
            if sink.closed or account.stream is None:
                continue
            assert account.stream.ended == (account.left or source.publication.ended)
            if account.left or account.due is None:
                continue
            assert account.delivered + account.gaps.total() == source.put - account.due

    def _check_told(self, sink: Sink) -> None:
        """Of each stream that was given up, each time; of those that ended in order, never."""
        for account in sink.accounts.values():
            for fate in ("vanished", "unreachable"):
                if sink.inbox.latest:  # which puts together what is not taken
                    assert bool(account.told[fate]) == bool(account.gone[fate])
                else:
                    assert account.told[fate] == account.gone[fate]

    def _check_that_all_is_let_go(self) -> None:
        for wire in list(self.wires):
            if wire.peer.wire is not wire:
                wire.break_publisher()  # half-open for so long: it holds nothing any more
        for which, source in enumerate(self.sources.values()):
            self.answered(which)
            self.settle(which)
            assert source.publication.attached == sum(
                account.source is source and account.stream is not None and account.stream.open
                for account in self.all_accounts()
            )
        self.pass_time(100.0)
        self.run_until_nothing_moves()
        assert not any(source.waiting for source in self.sources.values())
        for flush in self.flushes:
            assert flush.calls == 1
        for source in self.sources.values():
            log = source.publication.log
            self.pubs_hold_what_is_needed_and_no_more()
            if len(log):
                assert source.put - next(iter(log)).end < source.history
            for _, cursor in source.publication.cursors():
                assert cursor.acked == cursor.received == cursor.next == source.put
                assert cursor.lag == 0
            assert source.publication.room(10**9)


TestExchange = World.TestCase
TestExchange.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
