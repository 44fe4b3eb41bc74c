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
deaths     peers die, some with their hosts: those that live lose nothing, and where the host
           lives, hold nothing for the dead
chaos      all of these, at any length, and peers that die: what is lost is counted
keys       some of links or discovery, and keys that change, while strangers and thieves dial:
           nobody lets them in, and nothing is lost
rights     resets, coordinators that die, come back or lie, rights that change and are revoked:
           who has both rights gets all, and nobody else anything
========== ==================================================================================
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pubsub.core.rights import NONE, Rights
from pubsub.errors import ProtocolError
from pubsub.links import renewal
from pubsub.links.link import Link
from tests.simulation.credentials import Open, credentials_of
from tests.simulation.loop import Process, SimulatedLoop, Stuck
from tests.simulation.model import Model, PubRecord, SubRecord, Violation
from tests.simulation.network import Connection, Network
from tests.simulation.processes import CoordinatorProcess, PeerProcess, may
from tests.simulation.strangers import Stranger, Thief

__all__ = ["PROFILES", "Outcome", "Plan", "World", "run", "simulate"]

PROFILES = ("calm", "links", "walls", "discovery", "deaths", "chaos", "keys", "rights")
FORGOTTEN = 2.0
"""Seconds after the death of a process in which all forget it, where its host lives."""
TOLD = 4.0
"""Seconds in which a list of revoked certificates comes to all, beside the time in which a link is
found dead."""
HANDSHAKE = 6.0
"""Seconds after which every handshake is over: between two steps of a change there are minutes."""
RIGHTS = (("**",), ("**",), ("t/*",), ("t/a",), ("t/a", "u"), ("u",), ())
"""What certificates say."""
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
    lies: bool = False
    buffers: tuple[int, ...] = (1_000, 5_000, 30_000, 10_000_000, 10_000_000)

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
            "walls": links,
            "discovery": ("coordinator",),
            "deaths": ("crash",),
            "chaos": (*links, "coordinator", "crash", "leave"),
            "keys": (),
            "rights": ("reset", "coordinator"),
        }[profile]
        if profile == "keys":
            possible = random.choice(((), (), links, ("coordinator",)))
        plan.faults = tuple(f for f in possible if len(possible) == 1 or random.random() < 0.6)
        if profile in ("links", "walls"):
            plan.settings["resume_timeout"] = 60.0
            plan.settings["join_timeout"] = 60.0
            plan.buffers = (5_000, 10_000_000, 10_000_000, 10_000_000)  # what is dropped is no news
            plan.settle = random.choice((0.5, 0.5, 5.0))  # a Pub that is not settled keeps all
        elif profile == "chaos":
            plan.settings["resume_timeout"] = random.choice((0.5, 3.0, 30.0))
            plan.settings["join_timeout"] = random.choice((0.5, 3.0))
            plan.settings["linger"] = random.choice((0.0, 1.0, 5.0))
        elif profile == "keys":
            plan.settings["resume_timeout"] = 60.0
            plan.settings["join_timeout"] = 60.0
            plan.faults += ("rotate", "visit")
        elif profile == "rights":
            plan.settings["resume_timeout"] = 20.0
            plan.lies = random.random() < 0.4
            plan.faults += ("change", "revoke")
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
        self._late = Random(seed)
        self._seed = seed
        drawn = self.random.choice(("calm", "links", "discovery", "chaos"))  # what seeds mean stays
        if seed % 5 == 4:
            drawn = "deaths"
        self.plan = Plan.draw(self.random, profile or drawn)
        self.loop = SimulatedLoop(self.random)  # type: ignore[abstract]  # what is used is there
        self.loop.on_turn = self._inspect
        self.loop.host = self.loop.host._replace(
            wall_clock=self.loop.time,
            stopwatch=self.stopwatch,
            entropy=self.random.randbytes,
            process_id=lambda: 4711,
            name=lambda: "host",
            program=lambda: "program",
        )
        self.network = Network(self.loop, self.plan.latency, self.plan.chop)
        self.credentials = credentials_of(self.random, self.plan.profile)
        if self.plan.profile == "walls":
            self.network.walls = self._wall
        self.network.uneven = self.credentials.tls
        self.network.least = 8_000 if self.credentials.tls else 0
        self.strange: dict[str, None] = {}  # the addresses of who has no business here
        self.strangers: list[Stranger | Thief] = []
        self.revoked: dict[str, None] = {}
        self._rotated = False
        self._peers_with_rights: dict[str, None] = {}
        self.model = Model(
            clock=self.loop.time,
            lies=self.plan.lies,
            bounded=self.plan.profile != "chaos",
            calm=self.plan.profile == "calm",
            join_timeout=self.plan.settings.get("join_timeout", 5.0),
        )
        if self.plan.profile == "walls":
            self.model.book.walls = self._wall
        self.coordinators: list[CoordinatorProcess] = []
        self.peers: list[PeerProcess] = []
        self.by_process: dict[Process, PeerProcess] = {}
        self.deaths: list[asyncio.Future[None]] = []  # each until all have forgotten it
        self.calm = False  # the time of faults is over
        self.open_faults = 0
        self.faults = 0
        self.journal: list[str] = []
        self._hosts = 0

    def _wall(self, source: str, target: str) -> str:
        """Of each two peers one may be kept from dialling the other, for good: ``drop`` or
        ``refuse``; empty: it is not."""
        hosts = [peer.process.host for peer in self.peers]
        if source == target or source not in hosts or target not in hosts:
            return ""
        low, high = sorted((source, target))
        drawn = Random(f"{self._seed} {low} {high}")
        one, what = drawn.choice((low, high, "")), drawn.choice(("drop", "refuse"))
        return what if source == one else ""

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
        return f"{self.credentials.network}.{self._hosts}"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def stopwatch(self) -> float:
        """The time as one who measures how long a turn of the loop takes sees it: these take some
        here too, up to 20 ms."""
        return self.loop.time() + 0.02 * self._late.random()

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
        for task in (*nemesis, *self.deaths):
            await task
        self.say("calm")
        for peer in self.peers:
            peer.settle()
        for stranger in self.strangers:
            await stranger.leave()
        await self._rest()
        await self._last_words()
        await self._end()

    def start_peer(self) -> None:
        host = self.host()
        if self.plan.profile == "rights":
            self._issue(host)
        peer = PeerProcess(self, host)
        self.peers.append(peer)
        self.by_process[peer.process] = peer

    def _issue(self, host: str) -> None:
        """A certificate for a peer."""
        random = self.random
        rights = Rights(random.choice(RIGHTS), random.choice(RIGHTS))
        self.say(f"{host}: {rights}")
        before = self.credentials.may(host)
        self.credentials.issue(host, rights)
        now, book = self.loop.time(), self.model.book
        if host in self._peers_with_rights:  # a handshake that is under way shows the one before
            book.enter(host, now, before, rights)
            now += 2 * HANDSHAKE
        self._peers_with_rights[host] = None
        book.enter(host, now, rights)

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
        waits = self.plan.profile in ("links", "deaths", "chaos")
        await self.until(busy, 90.0 + (held if waits else 0.0))

        def leftover() -> tuple[str, str] | None:
            text = self.model.leftover()
            return None if text is None else ("leak", text)

        await self.until(leftover, 60.0 + held)
        await self.until(self.model.unsettled, 20.0)  # the last that came is taken
        self._check_standing()
        self.model.check()

    def _check_standing(self) -> None:
        """Nobody is connected by what counts no more, and what nobody may do is refused."""
        for peer in self.peers:
            self._check_links(peer, peer.peer.runtime.links())
            if peer.revoked or self.plan.lies:
                continue
            records: list[PubRecord | SubRecord] = [*peer.pubs, *peer.subs]
            for record in records:
                if record.state == "open" and not may(
                    record, self.credentials.may(peer.process.host)
                ):
                    self.fail("rights", f"{record} may do nothing, and is not refused")
        for coordinator in self.coordinators:
            self._check_links(coordinator, coordinator.coordinator.links)

    def _check_links(self, of: PeerProcess | CoordinatorProcess, links: list[Link]) -> None:
        for link in links:
            other = None if link.closing else link.other
            if other is not None and not of.guard.counts(other.standing):
                self.fail("auth", f"{link} of {of.process} stands on what is gone")

    async def _last_words(self) -> None:
        """Everybody is connected and ready: what is put now, all get."""
        for pub in self.model.pubs:
            if pub.state == "open":
                await pub.peer.run(pub.peer.put(pub))
        for peer in self.peers:
            await peer.run(peer.try_refused())
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
        """After each turn: memory is bounded, and nothing is torn where no link breaks."""
        peer = self.by_process.get(process)
        if peer is None:
            return
        if self.plan.profile == "rights":
            peer.notice_refusals()
            if not self.plan.lies:
                self._no_topic_leaks(peer)
        for pub in peer.pubs:
            log = pub.pub._publication.log
            if log.size > pub.buffer and len(log) > 1 and log.size > pub.buffer + pub.largest:
                self.fail("G6", f"{pub} holds {log.size} bytes")
        largest = self.model.largest + 65_536
        for sub in peer.subs:
            if sub.state != "open":
                continue
            if self.plan.profile in ("calm", "discovery", "deaths"):
                torn = self.model.torn(sub)
                if torn is not None:
                    self.fail(*torn)
            window = sub.sub.window
            total = 0
            for stream in sub.sub._inbox.streams.values():
                waits = stream.credit.received - stream.credit.consumed
                total += waits
                if waits > window + largest:
                    self.fail("G6", f"{sub} holds {waits} bytes of one stream")
            if total > 2 * window + len(sub.sub._inbox.streams) * largest:
                self.fail("G6", f"{sub} holds {total} bytes")

    def _no_topic_leaks(self, peer: PeerProcess) -> None:
        """A coordinator tells nobody of topics that he may not subscribe."""
        now = self.loop.time()
        for sub in peer.subs:
            if sub.state != "open":
                continue
            for key, stream in sub.sub._inbox.streams.items():
                if key.peer_id == peer.peer.peer_id:
                    continue
                had = self.model.book.all_of(peer.process.host, sub.created_at, now)
                if not any(rights.may_subscribe(stream.topic) for rights in had):
                    self.fail("rights", f"{sub} was told of a publisher of {stream.topic}")

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
        host_too = self.chance(0.3)
        peer.kill(host_too=host_too)
        if self.plan.profile == "deaths" and not host_too:
            self.deaths.append(asyncio.ensure_future(self._forgotten(peer)))
        await asyncio.sleep(random.uniform(0, 2))
        self.network.revive(peer.process.host)
        self.start_peer()

    async def _forgotten(self, dead: PeerProcess) -> None:
        await asyncio.sleep(FORGOTTEN)
        for pub in self.model.pubs:
            if pub.state == "open":
                for state, cursor in pub.pub._publication.cursors():
                    if cursor.key.peer_id == dead.peer.peer_id:
                        self.fail("G8", f"{pub} holds a place ({state}) for {dead.process}")

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

    # --- credentials that change --------------------------------------------------------

    async def _rotate(self) -> None:
        """All keys or certificates are changed, once."""
        if self._rotated:
            return
        self._rotated = True
        random, credentials = self.random, self.credentials
        for stage in range(1, credentials.stages + 1):
            processes: list[PeerProcess | CoordinatorProcess] = [*self.peers, *self.coordinators]
            random.shuffle(processes)
            for each in processes:
                if isinstance(each, PeerProcess):
                    await each.begun
                credentials.advance(each.process.host, stage)
                await self._renew(each)
                await asyncio.sleep(random.choice((0.0, 0.1, 0.5)) * random.random())
            await asyncio.sleep(HANDSHAKE)  # what was begun with the old one is over
        if credentials.old:
            self._visitor(Stranger(self, credentials.old))

    async def _renew(self, each: PeerProcess | CoordinatorProcess) -> None:
        """Have it look at its files, where it lives; else it does so when it starts."""
        process = each.process
        if not process.alive:
            return
        self.say(f"{process} looks at its files")

        async def look() -> None:
            each.renew()

        task = process.spawn(look())
        while process.alive and not task.done():
            await asyncio.wait({task}, timeout=0.5)

    async def _visit(self) -> None:
        """Somebody comes who has no business here."""
        random = self.random
        if len(self.strangers) >= 3:
            return
        calm = self.plan.faults == ("rotate", "visit")  # else who is known may be forgotten
        if calm and self.credentials.thieves and random.random() < 0.5:
            self._visitor(Thief(self, "thief"))
        elif self.credentials.strangers:
            self._visitor(Stranger(self, random.choice(self.credentials.strangers)))

    def _visitor(self, visitor: Stranger | Thief) -> None:
        self.say(f"{visitor.process} is about")
        self.strangers.append(visitor)

    async def _change(self) -> None:
        """A peer gets a certificate with other rights, and shows it to all."""
        if not self.credentials.changes:
            return
        peer = self.random.choice(self.peers)
        if peer.revoked:
            return
        await peer.begun

        async def change() -> None:
            self._issue(peer.process.host)
            peer.renew()

        await asyncio.wait({peer.process.spawn(change())})
        await asyncio.sleep(HANDSHAKE)
        await self._renew(peer)  # a minute later it looks again
        await asyncio.sleep(HANDSHAKE)

    async def _revoke(self) -> None:
        """The certificate of a peer is revoked: one is, in some worlds."""
        if not self.credentials.changes or self.revoked or self.chance(0.5):
            return
        peer = self.random.choice(self.peers)
        host = peer.process.host
        self.say(f"the certificate of {host} is revoked")
        self.revoked[host] = None
        self.credentials.revoke(host)
        within = TOLD + self.plan.settings["ping_timeout"] + 3.0
        self.model.book.unsteady(host, self.loop.time())
        self.model.book.enter(host, self.loop.time() + within, NONE)
        for coordinator in self.coordinators:
            await self._renew(coordinator)
        await asyncio.sleep(within)


# --- a run ----------------------------------------------------------------------------------


CLOSES = ("closing waits", "closed after", "an event loop was closed")
"""What is said of a close that takes long (and of the loop of a world that has failed before)."""


class _Log(logging.Handler):
    """Hears what the package logs: honest peers understand each other, and nothing is internal."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        loop = self.world.loop
        self.world.say(f"log of {loop.here()}: {record.getMessage()}")
        if loop.failure is not None or loop.here().host in self.world.strange:
            return
        error = next((arg for arg in record.args or () if isinstance(arg, ProtocolError)), None)
        if self._of_strangers(record):
            if record.exc_info:
                loop.failure = Violation("error", record.getMessage())
            return
        if record.exc_info:
            loop.failure = Violation("error", record.getMessage())
            loop.failure.__cause__ = record.exc_info[1]
        elif (error is not None and error.code == "auth" and self.world.revoked) or (
            record.name == "pubsub.open" and isinstance(self.world.credentials, Open)
        ):
            pass
        elif error is not None and error.code not in HONEST:
            loop.failure = Violation("protocol", record.getMessage())
        elif record.getMessage().startswith(CLOSES):
            pass  # a Sub that is slower than its Pub had patience for
        elif "a put has waited" in record.getMessage():
            pass  # for a slow Sub, or for those that a new coordinator may still name
        elif self.world.plan.profile == "calm":
            loop.failure = Violation("error", f"nothing was wrong: {record.getMessage()}")
        elif self.world.plan.profile == "discovery" and "peer at" in record.getMessage():
            loop.failure = Violation("G7", record.getMessage())

    def _of_strangers(self, record: logging.LogRecord) -> bool:
        """Whether it is about a connection with one of them."""
        strange = self.world.strange
        for arg in record.args or ():
            if isinstance(arg, Link) and arg.peername and arg.peername[0] in strange:
                return True
        return False


class _AtOnce:
    """In the place of a thread: in a world there are none."""

    def __init__(self, target: Callable[[], None], **options: Any) -> None:
        self.start = target


def _loggers() -> list[logging.Logger]:
    """All of the package."""
    known = logging.getLogger().manager.loggerDict
    return [
        logging.getLogger(name) for name in known if name == "pubsub" or name.startswith("pubsub.")
    ]


@contextmanager
def sealed(world: World) -> Iterator[None]:
    """Nothing from outside: what was logged in other worlds limits nothing that is logged in this
    one. (Entropy, time and names come from its host.)"""
    log = logging.getLogger("pubsub")
    before = log.propagate, log.level, log.handlers
    filters = {each: each.filters for each in _loggers()}
    collecting = gc.isenabled()
    gc.disable()  # what it finalizes would come at times of its own
    log.propagate, log.handlers = False, [_Log(world)]
    log.setLevel(logging.WARNING)
    for each in filters:
        each.filters = []
    try:
        with patch.object(renewal, "threading", SimpleNamespace(Thread=_AtOnce)):
            yield
    finally:
        for each, kept in filters.items():
            each.filters = kept
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
            SimulatedLoop.close(world.loop)  # as it is: nothing of this world runs any more


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
