"""The process with the peers: sessions with the coordinator, as many as peers are wanted.

A session (`pubsub.runtime.coordinator_link.Session`) dials, shakes hands, registers, answers PING,
and dials again after a delay of its own when it is cut off; here, as in every peer. What is behind
it is not a whole peer but an account of what it has registered and has yet to be told.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from benchmarks.child import Control, obey
from benchmarks.coordinator.plan import EXTRA, SITE, Account, Entry, Plan
from benchmarks.loops import run
from pubsub._version import __version__
from pubsub.config import Address, Settings
from pubsub.links.keeping import explain
from pubsub.runtime.coordinator_link import Session
from pubsub.trust.credentials import credentials_from
from pubsub.wire.frames import SCRATCH_SIZE
from pubsub.wire.handshake import Identity, tcp
from pubsub.wire.messages import (
    Called,
    Expect,
    Match,
    Refused,
    Register,
    Revoked,
    Unregister,
    encode,
)

BATCH = 20
"""Registrations that go out in one write where the plan does not say."""
SLICE = 20
"""Peers that register in one turn of the loop."""
DIAL = 100
"""Peers that connect at once when there is no hurry."""
ACTIVE = 100
"""Peers that take part where only some do; no more, so that all sizes compare."""


PROBES = 20
"""New Subs whose wait is measured, at least: one in ten is on a pattern."""


class _Peer:
    """What a session serves: what one peer has, and what it must still be told."""

    __slots__ = ("account", "identity", "session", "sessions", "world")

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.identity = Identity(
            *("peer", f"{world.prefix}{number:08x}"),
            *(tcp("127.0.0.1", 1 + number % 65535), world.info),
        )
        self.account = Account(world.plan.of(number))
        self.session = Session(
            *(world.loop, world.address, self, world.settings, world.scratch, world.random),
            world.guard,
        )
        self.sessions = [self.session]

    # --- see `Directed` -----------------------------------------------------------------

    async def identify(self, local_host: str) -> Identity:
        return self.identity

    def registrations(self, session: Session) -> Iterable[Register]:
        if not self.world.registered:
            return ()
        entries = self.account.entries.values()
        return [Register(e.id, e.role, e.topic, True, False) for e in entries]

    def replaced(self, session: Session, by: Session | None) -> None:
        """Never here: each has one session."""

    def revoked(self, revoked: Revoked) -> None:
        """Never here: there are no certificates."""

    def called(self, session: Session, called: Called) -> None:
        """Never here: nobody calls."""

    def connected(self, session: Session, settle: float) -> None:
        self.account.expect_all()
        self.world.connected(self)

    def disconnected(self, session: Session) -> bool:
        self.world.disconnected(session)
        return False

    def matched(self, session: Session, match: Match) -> None:
        for row in match.added:
            if row.stream_id >= EXTRA:
                self.world.announced(row.peer_id, row.stream_id)
        self._told(match.sub_id, match)

    def expected(self, session: Session, expect: Expect) -> None:
        for row in expect.added:
            if row.sub_id >= EXTRA:
                self.world.announced(row.peer_id, row.sub_id)
        self._told(expect.stream_id, expect)

    def refused(self, session: Session, refused: Refused) -> None:
        raise AssertionError(refused.reason)

    def _told(self, id: int, message: Match | Expect) -> None:
        world = self.world
        if id >= EXTRA:
            if message.complete:
                world.answered(self.identity.peer_id, id)
            world.progress(self.identity.peer_id, id, message.complete + len(message.added))
            return
        for pair in message.removed:
            world.removed += pair[1] >= EXTRA
        answered, whole = self.account.told(id, message)
        if answered:
            world.answers[int(time.monotonic() * 10)] += 1
        world.whole += whole


_Done: TypeAlias = Callable[[float, float], None]
"""What to do when all is told: seconds to the answer, and to the last one who was told of it."""


class _Extra:
    """A registration beside the plan, under way."""

    __slots__ = ("answered", "done", "left", "since")

    def __init__(self, left: int, done: _Done | None) -> None:
        self.left = left
        self.done = done
        self.since = time.perf_counter()
        self.answered = 0.0


class World:
    """All peers of this process, and what is going on."""

    def __init__(
        self,
        control: Control,
        loop: asyncio.AbstractEventLoop,
        port: int,
        plan: Plan,
        numbers: range,
    ) -> None:
        self.control = control
        self.loop = loop
        self.plan = plan
        self.address = Address("127.0.0.1", port)
        self.settings = Settings()
        self.guard = credentials_from(self.settings, os.environ).guard()
        self.prefix = f"{self.guard.new_id()}-"
        """All are one process, and so one holder: as its own questions to peers do, they come under
        identities that begin with that one's."""
        self.scratch = bytearray(SCRATCH_SIZE)
        self.random = random.random
        self.chance = random.Random(1)
        self.info = {
            "name": "crowd",
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "library": __version__,
        }
        self.registered = False
        self.up = self.whole = self.removed = 0
        self.came: list[float] = []
        self.answers: Counter[int] = Counter()
        """By the tenth of a second."""
        self.failures: Counter[tuple[int, str]] = Counter()
        """By the tenth of a second and the reason."""
        self.extras: dict[tuple[str, int], _Extra] = {}
        self.next_id = EXTRA
        self.standing: deque[tuple[_Peer, int]] = deque()
        """Those beside the plan that are still registered."""
        self.peers = [_Peer(self, number) for number in numbers]

    # --- what the peers tell ------------------------------------------------------------

    def connected(self, peer: _Peer) -> None:
        self.up += 1
        self.came.append(time.monotonic())

    def disconnected(self, session: Session) -> None:
        assert session.failure is not None
        self.failures[int(time.monotonic() * 10), explain(session.failure)] += 1

    def announced(self, peer_id: str, id: int) -> None:
        """An extra one was told of to one that it matches."""
        self.progress(peer_id, id, 1)

    def answered(self, peer_id: str, id: int) -> None:
        """It knows all its matches, though these may not know of it yet."""
        extra = self.extras.get((peer_id, id))
        if extra is not None and not extra.answered:
            extra.answered = time.perf_counter() - extra.since

    def progress(self, peer_id: str, id: int, told: int) -> None:
        """So much of what belongs to an extra one was told."""
        extra = self.extras.get((peer_id, id))
        if extra is None:
            return
        extra.left -= told
        if extra.left == 0:
            del self.extras[peer_id, id]
            if extra.done is not None:
                extra.done(extra.answered, time.perf_counter() - extra.since)

    # --- what it is told to do ----------------------------------------------------------

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  (an Event would have to be set at every frame)
            await asyncio.sleep(0.002)

    async def connect(self) -> dict[str, Any]:
        """All peers, a slice at a time: whoever dials hundreds at once is slow to greet."""
        start = time.monotonic()
        for at in range(0, len(self.peers), DIAL):
            started = self.peers[: at + DIAL]
            for peer in started[at:]:
                peer.session.start()
            while self.up < len(started):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        gc.collect()
        gc.freeze()  # a pause of ours would look like one of the coordinator's
        return {"seconds": time.monotonic() - start, "failures": self._failures()}

    async def register(self, each: int) -> dict[str, Any]:
        """All that the plan has; `each`: so many of a peer in one write, then those of the next;
        0: all of them."""
        self.registered = True
        frames = []
        # in no order: neighbours have their matches with the same others
        peers = self.chance.sample(self.peers, len(self.peers))
        for peer in peers:
            peer.account.expect_all()
            frames.append([encode(_register(entry)) for entry in peer.account.entries.values()])
        most = max(map(len, frames))
        cpu = time.process_time()
        start = time.perf_counter()
        for at in range(0, most, each or most):
            for number, peer in enumerate(peers):
                part = frames[number][at : at + (each or most)]
                if part:
                    _write(peer, b"".join(part))
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
        await self.until(lambda: self.whole == len(self.peers))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "cpu": time.process_time() - cpu}

    def extra(
        self, topic: str, role: str, peer: _Peer, told: int, done: _Done | None = None
    ) -> tuple[int, bytes]:
        """One more registration, which has an answer and is told of, in all, so many times."""
        id = self.next_id
        self.next_id += 1
        frame = encode(Register(id, role, topic, False, False))
        self.extras[peer.identity.peer_id, id] = _Extra(1 + told, done)
        return id, frame

    async def more(self, count: int) -> dict[str, Any]:
        """So many Subs with one publisher each, and Pubs with one subscriber, for a while."""
        active = self.peers[: min(ACTIVE, len(self.peers))]
        sites = max(1, min(ACTIVE, self.plan.topics) // SITE)
        made: list[tuple[_Peer, int]] = []
        took = []
        for role in ("sub", "pub"):
            batches: dict[int, list[bytes]] = {}
            for n in range(count // 2):
                if role == "sub":
                    topic = self.plan.topic(n % (sites * SITE))
                else:
                    topic = f"site-{n % sites}/extra-{n}/temp"
                peer = active[n // BATCH % len(active)]
                id, frame = self.extra(topic, role, peer, 2)
                made.append((peer, id))
                batches.setdefault(n // BATCH, []).append(frame)
            start = time.perf_counter()
            for number, batch in batches.items():
                _write(active[number % len(active)], b"".join(batch))
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
            await self.until(lambda: not self.extras)
            took.append(time.perf_counter() - start)
        return {"seconds": sum(took), "made": await self._fewer(made)}

    async def _fewer(self, made: list[tuple[_Peer, int]]) -> int:
        self.removed = 0
        for number, (peer, id) in enumerate(made):
            _write(peer, encode(Unregister(id)))
            if number % BATCH == BATCH - 1:
                await asyncio.sleep(0)
        await self.until(lambda: self.removed == len(made))
        return len(made)

    async def match(self, seconds: float, rate: float, every: float) -> dict[str, Any]:
        """How long new Subs wait, while so many registrations a second go on."""
        delays: list[tuple[bool, float, float]] = []
        """Of each: whether it was on a pattern; until it knew its publishers; until they did."""
        late: list[float] = []
        background, probes = [0], [0]
        half = self.plan.patterns // 2
        sites = range(half, self.plan.patterns)
        standing = self.standing
        end = time.perf_counter() + seconds

        def pick() -> _Peer:
            return self.chance.choice(self.peers)

        def more(_: float = 0.0) -> None:
            peer, n = pick(), background[0]
            if n % 2:
                topic, role = self.plan.topic(self.chance.randrange(self.plan.topics)), "sub"
            else:
                topic, role = f"site-{self.chance.choice(sites)}/new-{n}/temp", "pub"
            id, frame = self.extra(topic, role, peer, 2)
            _write(peer, frame)
            standing.append((peer, id))
            background[0] += 1
            if len(standing) > rate:
                old, gone = standing.popleft()
                _write(old, encode(Unregister(gone)))

        def probe() -> None:
            peer = pick()
            probes[0] += 1
            if probes[0] % 10 == 0:
                topic, matching = self.plan.pattern(self.chance.randrange(half)), SITE
            else:
                topic, matching = self.plan.topic(self.chance.randrange(self.plan.topics)), 1

            def done(answered: float, all_told: float) -> None:
                delays.append((matching > 1, answered, all_told))
                _write(peer, encode(Unregister(number)))

            number, frame = self.extra(topic, "sub", peer, 2 * matching, done)
            _write(peer, frame)

        async def again(what: Callable[[], None], mean: float) -> None:
            due = time.perf_counter()
            # on a busy machine for longer, so that there is something of each kind
            while (now := time.perf_counter()) < end or probes[0] < PROBES:
                late.append(now - due)
                what()
                due += self.chance.expovariate(1 / mean)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        await asyncio.gather(again(more, 1 / rate), again(probe, every))
        await self.until(lambda: not self.extras)
        late.sort()
        return {
            "delays": delays,
            "registered": background[0],
            "late_p99": late[int(len(late) * 0.99)],
        }

    async def recover(self) -> dict[str, Any]:
        """The coordinator is about to be killed: say when all is as it was, with another."""
        self.whole = self.up = 0
        self.came.clear()
        self.answers.clear()
        self.failures.clear()
        self.control.say("ready")
        await self.until(lambda: self.whole == len(self.peers))
        end = time.monotonic()
        return {
            "end": end,
            "came": self.came,
            "answers": sorted(self.answers.items()),
            "failures": self._failures(),
        }

    def _failures(self) -> list[tuple[int, str, int]]:
        return sorted((at, why, count) for (at, why), count in self.failures.items())


def _register(entry: Entry) -> Register:
    return Register(entry.id, entry.role, entry.topic, False, False)


def _write(peer: _Peer, frames: bytes) -> None:
    link = peer.session.link
    assert link is not None
    link.write(frames)


async def _main(control: Control, port: int, plan: Plan, numbers: range) -> None:
    await obey(control, World(control, asyncio.get_running_loop(), port, plan, numbers))


def crowd(control: Control, port: int, *plan: int) -> None:
    """What a child runs: the last two numbers are those of its peers."""
    logging.getLogger("pubsub").setLevel(logging.CRITICAL)  # of failures there is an account
    *sizes, first, behind = plan
    run(_main(control, port, Plan(*sizes), range(first, behind)))
