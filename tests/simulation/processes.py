"""The processes of a simulated world: coordinators, and peers whose Pubs put and Subs take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgpack

from pubsub import Closed, CoordinatorUnavailable, Gap, Peer, PubSubError
from pubsub.config import Settings
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator
from pubsub.core.rights import Rights
from pubsub.core.topics import is_pattern
from pubsub.errors import AuthError
from pubsub.trust.guard import Guard
from tests.simulation.lies import Liar
from tests.simulation.loop import Process
from tests.simulation.model import PubRecord, SubRecord, Violation
from tests.simulation.strangers import guarded

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["CoordinatorProcess", "PeerProcess"]

TOPICS = ("t/a", "t/b", "u")
PATTERNS = ("t/*", "**", "t/a", "t/a", "t/b", "u")


class CoordinatorProcess:
    """A coordinator that dies and comes back, at one address."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = world.host()
        self.address = f"{self.host}:7700"
        world.credentials.issue(self.host, Rights(coordinator=True))
        self.down_since: float | None = None
        self.process: Process
        self.guard: Guard
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
        self.guard = self.world.credentials.guard(self.host)
        lies = Liar(self.world.random) if plan.lies else Registry()
        self.coordinator = Coordinator(
            self.world.loop,
            settings=Settings(**times),
            registry=lies,
            settle=plan.settle,
            guard=self.guard,
        )
        await self.coordinator.start(self.host, 7700)

    def renew(self) -> None:
        """Its files are others now."""
        self.guard.renew(self.world.credentials.found(self.host))
        self.coordinator.renewal.review()

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
        self.guard: Guard
        self.begun: asyncio.Future[None] = world.loop.create_future()
        self.process.spawn(self._start())
        self.process.spawn(self._live())

    async def _start(self) -> None:
        addresses = ",".join(c.address for c in self.world.coordinators)
        self.guard = self.world.credentials.guard(self.process.host)
        self.peer = guarded(
            self.guard, addresses, name=self.process.name, **self.world.plan.settings
        )
        self.begun.set_result(None)

    def renew(self) -> None:
        """Its files are others now."""
        self.guard.renew(self.world.credentials.found(self.process.host))
        self.peer.runtime.renewal.review()

    @property
    def revoked(self) -> bool:
        """Whether nobody lets it in any more."""
        return self.process.host in self.world.revoked

    def notice_refusals(self) -> None:
        """Which Pubs and Subs were refused: by right, or not."""
        runtime, model = self.peer.runtime, self.world.model
        if self.leaving or runtime.closing:
            return
        for pub in self.pubs:
            if pub.state == "open" and pub.key.stream_id not in runtime.pubs:
                self._refused(pub, pub.pub._dead, "may publish", model)
        for sub in self.subs:
            if sub.state == "open" and sub.sub._inbox.sub_id not in runtime.subs:
                self._refused(sub, sub.sub._dead, "may subscribe", model)

    def _refused(self, record: Any, why: Exception | None, what: str, model: Any) -> None:
        self.world.say(f"{record} is refused: {why}")
        if not isinstance(why, AuthError):
            self.world.fail("error", f"{record} is gone: {why!r}")
        had = model.book.all_of(self.process.host, record.created_at, self.world.loop.time())
        if all(may(record, rights) for rights in had):
            self.world.fail("rights", f"{record} {what} that, and is refused: {why}")
        record.state = "refused"

    async def try_refused(self) -> None:
        """What is refused says so to whoever uses it."""
        records: list[PubRecord | SubRecord] = [*self.pubs, *self.subs]
        for record in records:
            if record.state == "refused":
                try:
                    if isinstance(record, SubRecord):
                        while True:
                            await record.sub.get(0.0)  # what came before stays
                    elif record.block:
                        await record.pub.put(None)
                    else:
                        record.pub.put(None)
                except AuthError:
                    continue
                except Exception as error:
                    self.world.fail("rights", f"{record} was refused, and says {error!r}")
                self.world.fail("rights", f"{record} was refused, and does not say so")

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
                    if self.revoked:
                        return False
                    await asyncio.sleep(0.5)
                except AuthError as error:
                    return self._not_allowed(error)
        finally:
            self.opening -= 1

    def _not_allowed(self, error: AuthError) -> bool:
        """It was refused, or nobody lets this process in any more. Returns False."""
        if not self.revoked and "refused" not in str(error):
            self.world.fail("auth", f"{self.process} is not let in: {error}")
        return False

    # --- Pubs ---------------------------------------------------------------------------

    async def _publish(self) -> None:
        random, world = self.random, self.world
        pub = self.peer.pub(
            random.choice(TOPICS),
            overflow=random.choice(("drop", "drop", "block")),
            buffer=random.choice(world.plan.buffers),
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
        record.writes(size, self.world.loop.time())
        self.world.model.largest = max(self.world.model.largest, record.largest)
        try:
            done = not record.block
            if done:
                record.pub.put(value)
            before = _put_by(record.pub)
            while not done:
                done, _ = await self.patiently(lambda: record.pub.put(value))
                done = done or _put_by(record.pub) > before  # it only let the loop run
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
        record.took = took = self.world.loop.time() - began
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
            except (Closed, AuthError) as error:
                if isinstance(error, AuthError):
                    self._not_allowed(error)
                    if record.state == "open" and self.revoked:
                        await asyncio.sleep(0.5)
                        continue
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
        for pub in self.pubs:
            if pub.state != "closed":
                pub.took = took
        stopped = not self.world.model.faults.only("stop").clear(began, began + took)
        if took > self.peer.settings.linger + 3.0 and not stopped:
            self.world.fail("G9", f"closing {self.process} took {took:g} s")
        self._over("closed")
        runtime = self.peer.runtime
        await asyncio.sleep(0.1)
        if runtime.pubs or runtime.subs or runtime.publishers.remotes or runtime.subscribers.served:
            self.world.fail("leak", f"{self.process} still has {vars(runtime)}")

    def kill(self, *, host_too: bool = False) -> None:
        """As by SIGKILL, or by the end of its host."""
        self.world.say(f"{self.process} dies{', with its host' if host_too else ''}")
        self.leaving = True
        runtime = self.peer.runtime  # nothing of it runs again, not even at the loop's end
        runtime.closing = runtime.subscribers.closed = True
        self.world.network.kill(self.process, host_too=host_too)
        self.world.loop.bury(self.process)
        self._over("dead")

    def _over(self, state: str) -> None:
        self.opening = 0
        for pub in self.pubs:
            if state == "dead" and pub.state == "open":
                self.world.model.died(pub)
            if pub.state in ("open", "closing"):
                pub.state = state
                pub.under_way = 0
        for sub in self.subs:
            if sub.state == "open":
                sub.state = state


def _put_by(pub: Any) -> int:
    """How many messages a Pub has taken."""
    put: int = pub._count()
    return put


def may(record: PubRecord | SubRecord, rights: Any) -> bool:
    """Whether there is anything to it for whoever has those rights."""
    if isinstance(record, PubRecord):
        return bool(rights.may_publish(record.topic))
    pattern = record.sub.topic
    return bool(rights.part(pattern) if is_pattern(pattern) else rights.may_subscribe(pattern))
