"""A small world of whole peers and coordinators, the faults that befall it, and its story.

`simulate(seed)` runs it: processes start, open and close Pubs and Subs, put and take, while things
go wrong; then all faults end, everything comes to rest, and the model checks every account. At
the end all is closed, and nothing may be left.

Profiles say which faults there are, and so how much may be demanded:

========== ==================================================================================
calm       none but delays: nothing is lost, nobody joins late
links      resets, black holes, partitions, stopped processes, each shorter than the time for
           which a Pub holds places: nothing is lost
discovery  coordinators die and come back: established streams notice nothing
chaos      all of these, at any length, and peers that die: what is lost is counted
========== ==================================================================================
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

import msgpack

from pubsub import Closed, CoordinatorUnavailable, Gap, Peer, PubSubError
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.errors import ProtocolError
from tests.simulation.loop import Process, SimulatedLoop, Stuck
from tests.simulation.model import Model, PubRecord, SubRecord, Violation
from tests.simulation.network import Connection, Network

__all__ = ["PROFILES", "CoordinatorProcess", "Outcome", "PeerProcess", "Plan", "World"]
__all__ += ["run", "simulate"]

PROFILES = ("calm", "links", "discovery", "chaos")
TOPICS = ("t/a", "t/b", "u")
PATTERNS = ("t/*", "**", "t/a", "t/a", "t/b", "u")
HONEST = frozenset({"timeout", "identity", "busy"})
"""Why honest peers may cut a connection."""


@dataclass
class Plan:
    """What the seed says of the whole run."""

    profile: str
    settings: dict[str, Any] = field(default_factory=dict)
    peers: int = 2
    coordinators: int = 1
    settle: float = 5.0
    duration: float = 8.0
    latency: float = 0.001
    chop: float = 0.3
    faults: tuple[str, ...] = ()
    cancel: float = 0.0

    @classmethod
    def draw(cls, random: Random, profile: str) -> Plan:
        """A plan of a profile."""
        plan = cls(profile)
        plan.peers = random.randint(2, 4)
        plan.coordinators = 2 if random.random() < 0.25 else 1
        plan.duration = random.uniform(3, 10)
        plan.latency = random.choice((0.0002, 0.002, 0.01, 0.04))
        plan.chop = random.choice((0.0, 0.2, 0.6))
        plan.cancel = random.choice((0.0, 0.1, 0.4))
        interval = random.choice((0.5, 1.0, 2.0))
        plan.settings = {
            "ping_interval": interval,
            "ping_timeout": interval * random.choice((2, 3)),
            "ack_delay": random.choice((0.0, 0.02, 0.1)),
        }
        links = ("reset", "hole", "partition", "stop")
        possible = {
            "calm": (),
            "links": links,
            "discovery": ("coordinator",),
            "chaos": (*links, "coordinator", "crash", "leave"),
        }[profile]
        plan.faults = tuple(f for f in possible if len(possible) == 1 or random.random() < 0.6)
        if profile == "links":
            plan.settings["resume_timeout"] = 60.0
            plan.settings["join_timeout"] = 60.0
        elif profile == "chaos":
            plan.settings["resume_timeout"] = random.choice((0.5, 3.0, 30.0))
            plan.settings["join_timeout"] = random.choice((0.5, 3.0))
            plan.settings["linger"] = random.choice((0.0, 1.0, 5.0))
        return plan


@dataclass
class Outcome:
    """What a run came to."""

    trace: int
    turns: int
    put: int
    got: int
    faults: int
    seconds: float


class World:
    """All of it.

    Parameters:
        seed: of every choice.
        profile: see the module; None: drawn too.
    """

    def __init__(self, seed: int, profile: str | None = None) -> None:
        self.random = Random(seed)
        drawn = self.random.choice(PROFILES)
        self.plan = Plan.draw(self.random, profile or drawn)
        self.loop = SimulatedLoop(self.random)  # type: ignore[abstract]  # what is used is there
        self.loop.on_turn = self._inspect
        self.network = Network(self.loop, self.plan.latency, self.plan.chop)
        self.model = Model(
            bounded=self.plan.profile != "chaos",
            calm=self.plan.profile == "calm",
            join_timeout=self.plan.settings.get("join_timeout", 5.0),
        )
        self.coordinators: list[CoordinatorProcess] = []
        self.peers: list[PeerProcess] = []
        self.by_process: dict[Process, PeerProcess] = {}
        self.calm = False  # the time of faults is over
        self.open_faults = 0
        self.faults = 0
        self.journal: list[str] = []
        self._hosts = 0

    def say(self, text: object) -> None:
        """Enter something into the journal, which is shown when one seed is run again."""
        self.journal.append(f"{self.loop.time() - 1000:9.4f}  {text}")

    def fail(self, promise: str, text: str) -> None:
        """End the run with a violation, wherever this is called."""
        if self.loop.failure is None:
            self.loop.failure = Violation(promise, text)
        raise self.loop.failure

    def host(self) -> str:
        self._hosts += 1
        return f"10.0.0.{self._hosts}"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # --- the story ----------------------------------------------------------------------

    async def story(self) -> None:
        """From the start to the end."""
        random, plan = self.random, self.plan
        for _ in range(plan.coordinators):
            coordinator = CoordinatorProcess(self)
            self.coordinators.append(coordinator)
            coordinator.start()
        await asyncio.sleep(random.choice((0.0, 0.01, 6.0)))
        for _ in range(plan.peers):
            self.start_peer()
        nemesis = [asyncio.ensure_future(self._nemesis(kind)) for kind in plan.faults]
        await asyncio.sleep(plan.duration)
        self.calm = True
        for task in nemesis:
            await task
        self.say("calm")
        for peer in self.peers:
            peer.settle()
        await self._rest()
        await self._last_words()
        await self._end()

    def start_peer(self) -> None:
        peer = PeerProcess(self, self.host())
        self.peers.append(peer)
        self.by_process[peer.process] = peer

    async def until(self, condition: Callable[[], tuple[str, str] | None], limit: float) -> None:
        """Wait until a condition has nothing to say any more."""
        deadline = self.loop.time() + limit
        while True:
            broken = condition()
            if broken is None:
                return
            if self.loop.time() > deadline:
                self.fail(broken[0], f"{broken[1]}, {limit:g} s after the last fault")
            await asyncio.sleep(0.1)

    async def _rest(self) -> None:
        """Everything comes to rest."""
        settings = self.plan.settings

        def busy() -> tuple[str, str] | None:
            for pub in self.model.pubs:
                if pub.state == "closing":
                    return "G9", f"{pub} does not close"
                if pub.state == "open" and pub.under_way:
                    return "G8", f"{pub} waits in put"
            for peer in self.peers:
                if peer.opening:
                    return "G7", f"{peer.opening} Pubs and Subs of {peer.process} are not ready"
            return self.model.unsettled()

        # a Pub may wait for what died, and for a Sub that was closed while its link was broken
        held = max(settings.get("resume_timeout", 30.0), settings.get("join_timeout", 5.0))
        waits = self.plan.profile in ("links", "chaos")
        await self.until(busy, 90.0 + (held if waits else 0.0))

        def leftover() -> tuple[str, str] | None:
            text = self.model.leftover()
            return None if text is None else ("leak", text)

        await self.until(leftover, 60.0 + held)
        self.model.check()

    async def _last_words(self) -> None:
        """Everybody is connected and ready: what is put now, all get."""
        for pub in self.model.pubs:
            if pub.state == "open":
                await pub.peer.run(pub.peer.put(pub))
        before = {pair: pair[1].view(pair[0]).missed for pair in self.model.pairs()}
        await self.until(self.model.unsettled, 20.0)
        self.model.check()
        for pub, sub in self.model.pairs():
            view = sub.view(pub)
            if sub.latest:  # of all Pubs on a topic, it has the newest message
                continue
            if view.last != pub.put - 1 or view.missed != before[pub, sub]:
                self.fail("G4", f"{sub} was ready and did not get the last message of {pub}")

    async def _end(self) -> None:
        """Close everything, in some order; nothing is left."""
        model, random = self.model, self.random
        pairs = model.pairs()
        closing = [pub for pub in model.pubs if pub.state == "open"]
        random.shuffle(closing)
        for pub in closing:
            if self.chance(0.7):
                await pub.peer.run(pub.peer.close_pub(pub))
        closed = [(pub, sub) for pub, sub in pairs if pub.state == "closed"]

        def ended() -> tuple[str, str] | None:
            for pub, sub in closed:
                if pub.key in sub.sub._inbox.streams:
                    return "G9", f"{sub} does not hear that {pub} was closed"
            return model.unsettled()

        await self.until(ended, 10.0)
        for pub, sub in closed:
            model.check_closed(pub, sub)
        for sub in model.subs:
            if sub.state == "open" and self.chance(0.5):
                await sub.peer.run(sub.peer.close_sub(sub))
        peers = list(self.peers)
        random.shuffle(peers)
        for peer in peers:
            await peer.run(peer.leave())

        def known() -> tuple[str, str] | None:
            for coordinator in self.coordinators:
                left = list(coordinator.coordinator.registry.peers())
                if left:
                    return "leak", f"a coordinator still knows {left}"
            return None

        await self.until(known, 30.0)
        for coordinator in self.coordinators:
            await coordinator.stop()
        await asyncio.sleep(15.0)
        self._nothing_left()

    def _nothing_left(self) -> None:
        for process in self.loop.processes:
            if process is self.loop.outside or not process.alive:
                continue
            tasks = [task for task in process.tasks if not task.done()]
            if tasks:
                self.fail("leak", f"{process} still has {tasks}")
            if process.transports or process.listeners:
                self.fail("leak", f"{process} still has sockets: {list(process.transports)}")
        timers = [t for p, t in self.loop.timers() if p is not self.loop.outside]
        if timers:
            self.fail("leak", f"timers are still set: {timers}")

    def _inspect(self, process: Process) -> None:
        """After each turn: memory is bounded."""
        peer = self.by_process.get(process)
        if peer is None:
            return
        for pub in peer.pubs:
            log = pub.pub._publication.log
            if log.size > pub.buffer and len(log) > 1 and log.size > pub.buffer + pub.largest:
                self.fail("G6", f"{pub} holds {log.size} bytes")
        largest = self.model.largest + 65_536
        for sub in peer.subs:
            if sub.state != "open":
                continue
            window = sub.sub.window
            total = 0
            for stream in sub.sub._inbox.streams.values():
                waits = stream.received_bytes - stream.consumed_bytes
                total += waits
                if waits > window + largest:
                    self.fail("G6", f"{sub} holds {waits} bytes of one stream")
            if total > 2 * window + len(sub.sub._inbox.streams) * largest:
                self.fail("G6", f"{sub} holds {total} bytes")

    # --- what goes wrong ----------------------------------------------------------------

    async def _nemesis(self, kind: str) -> None:
        """One kind of fault, again and again until it is time to rest."""
        random = self.random
        while True:
            await asyncio.sleep(random.expovariate(0.7 if kind != "reset" else 2.0))
            if self.calm:
                return
            start = self.loop.time()
            self.faults += 1
            self.model.faults.add(kind, start, float("inf"))
            await getattr(self, f"_{kind}")()
            # until the last consequences are over: found out, dialled again, subscribed anew
            over = self.loop.time() + self.plan.settings["ping_timeout"] + 3.0
            self.model.faults.ended(kind, start, over)

    def _some_connection(self) -> Connection | None:
        connections = list(self.network.connections)
        return self.random.choice(connections) if connections else None

    async def _reset(self) -> None:
        connection = self._some_connection()
        if connection is not None:
            self.say(f"reset {connection}")
            connection.reset()

    async def _hole(self) -> None:
        connection = self._some_connection()
        if connection is not None:
            self.say(f"hole {connection}")
            connection.stalled = True

    async def _partition(self) -> None:
        random = self.random
        hosts = [p.process.host for p in self.peers]
        hosts += [c.host for c in self.coordinators]
        one = random.choice(hosts)
        others = [host for host in hosts if host != one]
        if self.chance(0.5):
            others = [random.choice(others)]
        pairs = [(one, other) for other in others]
        direction = random.random()
        if direction < 0.5:
            pairs += [(other, one) for other in others]
        elif direction < 0.75:
            pairs = [(other, one) for other in others]
        self.say(f"blocked: {pairs}")
        for pair in pairs:
            self.network.block(*pair)
        await asyncio.sleep(random.choice((0.05, 0.5, 3.0, 5.0)) * random.random())
        self.say(f"open again: {pairs}")
        for pair in pairs:
            self.network.unblock(*pair)

    async def _stop(self) -> None:
        random = self.random
        processes = [p.process for p in self.peers]
        processes += [c.process for c in self.coordinators if c.process.alive]
        process = random.choice(processes)
        if not process.stopped:
            process.stopped = True
            self.say(f"{process} is stopped")
            await asyncio.sleep(random.choice((0.01, 0.5, 8.0)) * random.random())
            process.stopped = False
            self.say(f"{process} goes on")

    async def _coordinator(self) -> None:
        random = self.random
        coordinator = random.choice(self.coordinators)
        if not coordinator.process.alive:
            return
        how = random.random()
        if how < 0.3:
            await coordinator.stop()
        coordinator.kill(host_too=how > 0.8 and self.plan.profile == "chaos")
        await asyncio.sleep(random.choice((0.0, 0.3, 4.0)) * random.random())
        coordinator.start()

    async def _crash(self) -> None:
        random = self.random
        peer = random.choice(self.peers)
        if peer.leaving:
            return
        self.peers.remove(peer)
        peer.kill(host_too=self.chance(0.3))
        await asyncio.sleep(random.uniform(0, 2))
        self.network.revive(peer.process.host)
        self.start_peer()

    async def _leave(self) -> None:
        peer = self.random.choice(self.peers)
        if peer.leaving:
            return
        self.peers.remove(peer)
        self.start_peer()
        task = peer.process.spawn(peer.leave())
        done, _ = await asyncio.wait([task], timeout=60.0)
        if not done and peer.process.alive:
            self.fail("G9", f"{peer.process} does not close")


class CoordinatorProcess:
    """A coordinator that dies and comes back, at one address."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = world.host()
        self.address = f"{self.host}:7700"
        self.down_since: float | None = None
        self.process: Process
        self.coordinator: Coordinator

    def start(self) -> None:
        """A new process, which knows nothing."""
        world = self.world
        world.say(f"coordinator {self.host} starts")
        if self.down_since is not None:
            world.model.faults.add("down", self.down_since, world.loop.time())
        self.world.network.revive(self.host)
        self.process = self.world.loop.process(f"coordinator {self.host}", self.host)
        self.process.spawn(self._run())

    async def _run(self) -> None:
        plan = self.world.plan
        times = {n: v for n, v in plan.settings.items() if n.startswith("ping")}
        self.coordinator = Coordinator(
            self.world.loop, settings=Settings(**times), settle=plan.settle
        )
        await self.coordinator.start(self.host, 7700)

    async def stop(self) -> None:
        """As by SIGTERM."""
        self.world.say(f"coordinator {self.host} is told to stop")
        await asyncio.wait([self.process.spawn(self.coordinator.close())], timeout=10.0)

    def kill(self, *, host_too: bool = False) -> None:
        """As by SIGKILL."""
        self.world.say(f"coordinator {self.host} dies")
        self.down_since = self.world.loop.time()
        self.world.network.kill(self.process, host_too=host_too)
        self.world.loop.bury(self.process)


class PeerProcess:
    """A process with one Peer: Pubs that put and Subs that take."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.random = world.random
        self.process = world.loop.process(f"peer {host}", host)
        self.pubs: list[PubRecord] = []
        self.subs: list[SubRecord] = []
        self.opening = 0
        self.leaving = False
        self.peer: Peer
        self.begun: asyncio.Future[None] = world.loop.create_future()
        self.process.spawn(self._start())
        self.process.spawn(self._live())

    async def _start(self) -> None:
        addresses = ",".join(c.address for c in self.world.coordinators)
        self.peer = Peer(addresses, name=self.process.name, **self.world.plan.settings)
        self.begun.set_result(None)

    async def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something of it in its process, and wait for it."""
        task = self.process.spawn(coroutine)
        await asyncio.wait([task], timeout=60.0)
        if not task.done():
            self.world.fail("G9", f"{coroutine} does not end")

    async def _live(self) -> None:
        """Open and close things."""
        world, random = self.world, self.random
        await asyncio.sleep(random.choice((0.0, 0.5)) * random.random())
        while not world.calm and not self.leaving:
            open_pubs = [pub for pub in self.pubs if pub.state == "open"]
            open_subs = [sub for sub in self.subs if sub.state == "open"]
            what = random.random()
            if what < 0.35 and len(open_pubs) < 2:
                self.process.spawn(self._publish())
            elif what < 0.75 and len(open_subs) < 2:
                self.process.spawn(self._subscribe())
            elif what < 0.85 and open_pubs:
                self.process.spawn(self.close_pub(random.choice(open_pubs)))
            elif what < 0.92 and open_subs:
                self.process.spawn(self.close_sub(random.choice(open_subs)))
            elif what < 0.97 and open_pubs:
                self.process.spawn(self._flush(random.choice(open_pubs)))
            await asyncio.sleep(random.expovariate(1.5))

    @property
    def stays(self) -> bool:
        """Whether it lives and is not about to end."""
        return self.process.alive and not self.leaving

    def settle(self) -> None:
        """No more new messages; take what there is."""
        for sub in self.subs:
            sub.pace = 0.0
        for pub in self.pubs:
            pub.stopping = True

    async def patiently(self, make: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        """Await something, perhaps cancelling it; returns whether it came to its end."""
        if not self.world.chance(self.world.plan.cancel):
            return True, await make()

        async def go() -> Any:
            return await make()

        task = asyncio.ensure_future(go())
        await asyncio.wait([task], timeout=self.random.choice((0.0, 0.001, 0.03, 0.3)))
        task.cancel()
        try:
            return True, await task
        except asyncio.CancelledError:
            return False, None

    async def _ready(self, it: Any) -> bool:
        """Wait until a Pub or Sub is ready; False: it was closed before."""
        self.opening += 1
        try:
            while True:
                try:
                    done, _ = await self.patiently(it._ready.wait)
                    if done:
                        return True
                except Closed:
                    return False
                except CoordinatorUnavailable:
                    await asyncio.sleep(0.5)
        finally:
            self.opening -= 1

    # --- Pubs ---------------------------------------------------------------------------

    async def _publish(self) -> None:
        random, world = self.random, self.world
        pub = self.peer.pub(
            random.choice(TOPICS),
            overflow=random.choice(("drop", "drop", "block")),
            buffer=random.choice((1_000, 5_000, 30_000, 10_000_000, 10_000_000)),
            history=random.choice((0, 0, 0, 3, 20)),
        )
        record = PubRecord(len(world.model.pubs), self, pub, world.loop.time())
        world.model.pub_opened(record)
        world.say(f"{record} opens as {record.key}")
        self.pubs.append(record)
        self.process.spawn(self._put_on(record))
        if await self._ready(pub):
            record.ready_at = world.loop.time()
            world.say(f"{record} is ready")

    async def _put_on(self, record: PubRecord) -> None:
        random = self.random
        most = random.choice((20, 100, 200))
        pause = random.choice((0.0, 0.01, 0.1))
        if self.world.chance(0.5):
            await asyncio.sleep(pause)
        while not record.stopping and record.put < most:
            for _ in range(random.choice((1, 1, 2, 10))):
                if record.stopping:
                    return
                try:
                    await self.put(record)
                except PubSubError:
                    return
            if self.world.chance(0.03):
                await self._flush(record)
            await asyncio.sleep(pause * random.uniform(0, 2))

    async def put(self, record: PubRecord) -> None:
        """Put the next message, perhaps after attempts that are cancelled."""
        random = self.random
        size = random.choice((0, 0, 10, 10, 100, 1_000))
        if self.world.chance(0.01):
            size = random.choice((70_000, 200_000))
        value = [record.uid, record.put, b"." * size]
        size = len(msgpack.packb(value))
        record.writes(size)
        self.world.model.largest = max(self.world.model.largest, record.largest)
        try:
            done = not record.block
            if done:
                record.pub.put(value)
            while not done:
                done, _ = await self.patiently(lambda: record.pub.put(value))
            record.wrote(size)
        finally:
            record.under_way = 0

    async def _flush(self, record: PubRecord) -> None:
        """Flush; afterwards all that was put before must have been received."""
        model = self.world.model
        before = record.put
        streams = {
            sub: sub.sub._inbox.streams.get(record.key)
            for sub in model.subs
            if sub.state == "open" and not sub.observer and model.must_be_whole(record, sub)
        }
        open_ones = {sub: s for sub, s in streams.items() if s is not None and s.open}
        try:
            done, _ = await self.patiently(lambda: record.pub.flush(self.random.uniform(0.1, 5)))
        except (PubSubError, TimeoutError):
            return
        for sub, stream in open_ones.items():
            whole = sub.state == "open" and model.must_be_whole(record, sub)
            if done and whole and stream.open and stream.expected < before:
                self.world.fail(
                    "G9", f"a flush of {record} ended, and {sub} has {stream.expected} of {before}"
                )

    async def close_pub(self, record: PubRecord) -> None:
        """Close one, as a program does."""
        if record.state != "open":
            return
        record.state = "closing"
        record.stopping = True
        began = self.world.loop.time()
        linger = self.random.choice((None, None, 0.5, 20.0))
        await record.pub.close(linger)
        took = self.world.loop.time() - began
        most = self.world.plan.settings.get("linger", 5.0) if linger is None else linger
        record.hurried = took >= most - 0.001
        record.state = "closed"
        self.world.say(f"{record}: it took {took:g} s to close")
        stopped = not self.world.model.faults.only("stop").clear(began, began + took)
        if took > most + 1.0 and not stopped and not self.leaving:
            self.world.fail("G9", f"closing {record} took {took:g} s, over {most:g} s")

    # --- Subs ---------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        random, world = self.random, self.world
        sub = self.peer.sub(
            random.choice(PATTERNS),
            keep=random.choice(("all", "all", "all", "latest")),
            history=random.choice((0, 0, 0, 2, "all")),
            window=random.choice((500, 3_000, 8_000_000)),
            observer=world.chance(0.15),
        )
        record = SubRecord(len(world.model.subs), self, sub, world.chance(0.7), world.loop.time())
        record.pace = random.choice((0.0, 0.0, 0.001, 0.05, 0.5))
        if world.calm:
            record.pace = 0.0
        world.model.sub_opened(record)
        self.subs.append(record)
        world.say(f"{record} opens")
        self.process.spawn(self._take(record))
        if await self._ready(sub) and record.state == "open":
            world.model.sub_ready(record, world.loop.time())
            world.say(f"{record} is ready")

    async def _take(self, record: SubRecord) -> None:
        await asyncio.sleep(record.pace)
        take = self._take_events if record.events else self._take_values
        while True:
            try:
                await self.patiently(lambda: take(record))
            except Closed:
                return
            except CoordinatorUnavailable:
                await asyncio.sleep(0.5)
            if record.sub.closed:
                return

    async def _take_events(self, record: SubRecord) -> None:
        model = self.world.model
        async for event in record.sub.messages():
            try:
                if isinstance(event, Gap):
                    model.gap(record, event)
                else:
                    model.message(record, event)
            except Violation as violation:
                self.world.fail(violation.promise, str(violation))
            if record.pace:
                await asyncio.sleep(record.pace * self.random.random())

    async def _take_values(self, record: SubRecord) -> None:
        model, random, sub = self.world.model, self.random, record.sub
        while True:
            try:
                if random.random() < 0.3:
                    found = await sub.get_many(random.choice((1, 5, 1000)))
                else:
                    found = [await sub.get(random.choice((None, None, 0.0, 0.01)))]
            except TimeoutError:
                await asyncio.sleep(0.01)
                continue
            try:
                for value in found:
                    model.value(record, value)
            except Violation as violation:
                self.world.fail(violation.promise, str(violation))
            if record.pace:
                await asyncio.sleep(record.pace * random.random())

    async def close_sub(self, record: SubRecord) -> None:
        """Close one, as a program does."""
        if record.state == "open":
            record.state = "closed"
            self.world.say(f"{record} closes")
            await record.sub.close()

    # --- the end ------------------------------------------------------------------------

    async def leave(self) -> None:
        """End the process in order."""
        self.leaving = True
        self.world.say(f"{self.process} is told to end")
        for pub in self.pubs:
            pub.stopping = True
        began = self.world.loop.time()
        await self.peer.close()
        took = self.world.loop.time() - began
        stopped = not self.world.model.faults.only("stop").clear(began, began + took)
        if took > self.peer.settings.linger + 3.0 and not stopped:
            self.world.fail("G9", f"closing {self.process} took {took:g} s")
        self._over("closed")
        runtime = self.peer.runtime
        await asyncio.sleep(0.1)
        if runtime._pubs or runtime._subs or runtime._remotes or runtime._served:
            self.world.fail("leak", f"{self.process} still has {vars(runtime)}")

    def kill(self, *, host_too: bool = False) -> None:
        """As by SIGKILL, or by the end of its host."""
        self.world.say(f"{self.process} dies{', with its host' if host_too else ''}")
        self.leaving = True
        self.peer.runtime.closing = True  # nothing of it runs again, not even at the loop's end
        self.world.network.kill(self.process, host_too=host_too)
        self.world.loop.bury(self.process)
        self._over("dead")

    def _over(self, state: str) -> None:
        self.opening = 0
        for pub in self.pubs:
            if pub.state in ("open", "closing"):
                pub.state = state
                pub.under_way = 0
        for sub in self.subs:
            if sub.state == "open":
                sub.state = state


# --- a run ----------------------------------------------------------------------------------


class _Log(logging.Handler):
    """Hears what the package logs: honest peers understand each other, and nothing is internal."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        loop = self.world.loop
        self.world.say(f"log of {loop.here()}: {record.getMessage()}")
        if loop.failure is not None:
            return
        error = next((arg for arg in record.args or () if isinstance(arg, ProtocolError)), None)
        if record.exc_info:
            loop.failure = Violation("error", record.getMessage())
            loop.failure.__cause__ = record.exc_info[1]
        elif error is not None and error.code not in HONEST:
            loop.failure = Violation("protocol", record.getMessage())
        elif self.world.plan.profile == "calm":
            loop.failure = Violation("error", f"nothing was wrong: {record.getMessage()}")
        elif self.world.plan.profile == "discovery" and "peer at" in record.getMessage():
            loop.failure = Violation("G7", record.getMessage())


@contextmanager
def sealed(world: World) -> Iterator[None]:
    """Nothing from outside: entropy, time and names come from the world."""
    random, loop = world.random, world.loop
    log = logging.getLogger("pubsub")
    before = log.propagate, log.level, log.handlers
    collecting = gc.isenabled()
    gc.disable()  # what it finalizes would come at times of its own
    with (
        patch.object(
            secrets, "token_hex", lambda size: f"{random.getrandbits(8 * size):0{2 * size}x}"
        ),
        patch.object(secrets, "randbits", random.getrandbits),
        patch.object(os, "getpid", lambda: 4711),
        patch.object(socket, "gethostname", lambda: "host"),
        patch.object(time, "time", loop.time),
    ):
        log.propagate, log.handlers = False, [_Log(world)]
        log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            log.propagate, log.handlers = before[0], before[2]
            log.setLevel(before[1])
            if collecting:
                gc.enable()


def run(world: World, story: Coroutine[Any, Any, None], again: str) -> None:
    """Play a story in a world.

    Raises:
        Violation: a promise was broken; `again` says how to see that again.
    """
    with sealed(world):
        try:
            world.loop.run_until_complete(story)
        except Exception as error:
            violation = _as_violation(world, error)
            violation.args = (f"{violation.args[0]}\n{world.plan}\nAgain: {again}",)
            raise violation from violation.__cause__
        finally:
            world.loop.close()


def simulate(seed: int, profile: str | None = None, journal: list[str] | None = None) -> Outcome:
    """One run. What happens is entered into the journal.

    Raises:
        Violation: a promise was broken; it says how to run it again.
    """
    world = World(seed, profile)
    if journal is not None:
        world.journal = journal
    again = f"make soak SEED={seed}" + (f" PROFILE={profile}" if profile else "")
    run(world, world.story(), again)
    model = world.model
    return Outcome(
        world.loop.trace,
        world.loop.turns,
        sum(pub.put for pub in model.pubs),
        model.checked,
        world.faults,
        world.loop.time() - 1000.0,
    )


def _as_violation(world: World, error: Exception) -> Violation:
    failure = world.loop.failure or error
    if isinstance(failure, Violation):
        return failure
    cause = failure.__cause__
    if isinstance(cause, Violation):
        return cause
    promise = "G9" if isinstance(failure, Stuck) else "error"
    violation = Violation(promise, f"{type(failure).__name__}: {failure}")
    violation.__cause__ = cause or failure
    return violation
