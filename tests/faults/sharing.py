"""Processes that share memory, killed and frozen under flow: ``python -m tests.faults.sharing``.

Publishers put arrays and bytes of 64 KiB to 10 MiB, each full of a number of its own; subscribers
hold some of them for a while, and check each when it comes and when it is let go. Meanwhile they
are killed, at any time or at a given step (`STEPS`), stopped, forked, and their links are cut. A
round ends with the account: of all that the Pubs which are left had put, each Sub that is left has
every message once, in order, or has counted it as lost; and no loan, block, mapping or descriptor
is left of anything.

All processes are forks of this one, which has no loop: so a kill costs little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from pubsub import Gap, Message, Peer
from pubsub.config import MIB
from pubsub.core import lending, pool
from pubsub.links import memory
from tests.cli.processes import daemon, processes
from tests.integration.support import break_links, eventually

__all__ = ["STEPS", "Round", "soak"]

try:
    import uvloop  # noqa: F401  # a loop is made in the processes
except ModuleNotFoundError:
    UVLOOP = False
else:
    UVLOOP = True

LONG = 40.0
STEPS: dict[str, tuple[type, str]] = {
    f"{kind.__name__}.{name}": (kind, name)
    for kind, names in {
        pool.Pool: ("grow", "back", "retire"),
        pool.Share: ("block", "_back"),
        lending.Lending: ("lend", "mapped", "returned", "retired", "_unmap"),
        lending.Borrowing: ("map", "unmap", "block", "_back", "pump"),
        memory.Passing: ("offer", "joined", "_send"),
        memory.Catching: ("come", "_read", "_take"),
        memory.Mapping: ("__init__", "__del__"),
    }.items()
    for name in names
}
"""Where a process may be killed: before or after one of these."""
OF_PUB = ("Pool", "Share", "Lending", "Passing", "Mapping")
OF_SUB = ("Borrowing", "Catching", "Mapping")


class Plan(NamedTuple):
    """What one process does."""

    role: str
    topic: str
    address: str
    blocking: bool
    uvloop: bool
    peer: dict[str, Any]
    options: dict[str, Any]
    seed: int
    step: str = ""
    """At which it is killed; empty: at none."""
    after: bool = False
    at: int = 0
    calm: bool = False
    """It forks not, and cuts no links."""


# --- in the processes ------------------------------------------------------------------------


def die_at(plan: Plan) -> None:
    """Be killed before, or after, the so-manieth call of that step."""
    if not plan.step:
        return
    kind, name = STEPS[plan.step]
    whole, left = getattr(kind, name), [plan.at]

    def step(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0] and not plan.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*args, **kwargs)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, name, step)


def same(value: Any, tag: int) -> bool:
    """Whether each page of it, and its end, has that number."""
    items = np.frombuffer(value, np.uint32) if type(value) is bytes else value.reshape(-1)
    return bool((items[::1024] == tag).all() and items[-1] == tag and items[len(items) // 2] == tag)


def mappings() -> int:
    """Of shared memory of ours."""
    with open("/proc/self/maps") as lines:
        return sum("memfd:pubsubd" in line for line in lines)


def descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}").split(":")[0])
    return sorted(found)


class Process:
    """What both roles have."""

    def __init__(self, plan: Plan, tell: int, before: list[str]) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.tell_to = tell
        self.stopping = False
        self.last = False
        self.children: list[int] = []
        self.messages = 0
        self.before = before
        self.pub: Any = None
        self.sub: Any = None
        self.peer = Peer(plan.address, **plan.peer)

    def tell(self, **what: Any) -> None:
        os.write(self.tell_to, (json.dumps(what) + "\n").encode())

    def in_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.peer._call(function, *args) if self.plan.blocking else function(*args)

    def sometimes(self, chance: float) -> bool:
        return self.chance.random() < chance

    def trouble(self, shown: Callable[[], bool]) -> None:
        """A fork, whose child looks at what there is for a while, or links cut."""
        self.reap(os.WNOHANG)
        if self.plan.calm:
            return
        if self.sometimes(0.004):
            self.in_loop(break_links, self.peer)
        if self.sometimes(0.006) and len(self.children) < 3:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    signal.alarm(20)
                    for _ in range(5):
                        time.sleep(self.chance.random() / 10)
                        if not shown():
                            os._exit(code)
                    code = 0
                finally:
                    os._exit(code)
            self.children.append(pid)

    def reap(self, how: int = 0) -> None:
        for pid in list(self.children):
            found, status = os.waitpid(pid, how)
            if found:
                self.children.remove(pid)
                if status != signal.SIGKILL:  # at its parent's step
                    assert not status, f"a child saw something change: {status}"

    def rest(self) -> dict[str, Any]:
        """What it has of the memory of others, and of its own."""
        gc.collect()
        sharing = self.peer.runtime.sharing

        def look() -> dict[str, Any]:
            own = sharing.pool
            if own is not None:
                now = sharing._loop.time()
                own.look(now)
                own.look(now + pool.IDLE)
            return {
                "total": own.total if own is not None else 0,
                "segments": len(own.segments) if own is not None else 0,
                "used": sum(s.used for s in own.segments) if own is not None else 0,
                "loans": sum(lending.loans for lending, _ in sharing._lent.values()),
                "held": sum(borrowing.held for borrowing in sharing._borrowed),
                "mappings": mappings(),
            }

        return dict(self.in_loop(look))

    def run(self, listen: int) -> None:
        raise NotImplementedError

    async def run_async(self, listen: int) -> None:
        raise NotImplementedError

    def left(self) -> dict[str, Any]:
        """The Peer is closed."""
        self.pub = self.sub = None  # the log, with its history
        gc.collect()
        here = Counter(descriptors()) - Counter(self.before)
        return {
            "descriptors": sorted(here.elements()),
            "mappings": mappings(),
            "messages": self.messages,
        }


class Publisher(Process):
    def __init__(self, plan: Plan, tell: int, before: list[str]) -> None:
        super().__init__(plan, tell, before)
        self.pub = self.peer.pub(plan.topic, **plan.options)
        self.other: Any = None
        self.put = 0
        self.of_other = 0
        self.kept: list[tuple[Any, int]] = []
        self.low = self.chance.choice([64 * 1024, 64 * 1024, 1 * MIB])

    def value(self) -> tuple[Any, int]:
        """The next value; what is put of it is the same for as long as it lives."""
        tag = self.chance.randrange(2**32)
        count = int(self.low * (10 * MIB / self.low) ** (self.chance.random() ** 3)) // 4
        kind = self.chance.randrange(4)
        if kind == 0:
            data: Any = tag.to_bytes(4, sys.byteorder) * count
        elif kind == 1:
            data = np.full(count, tag, np.uint32)
        else:
            data = self.pub.empty(count, np.uint32)
            data[:] = tag
            if self.sometimes(0.1):
                self.kept.append((data, tag))
        if kind and self.kept and self.sometimes(0.1):
            data, tag = self.chance.choice(self.kept)  # once more
        while len(self.kept) > 4:
            self.kept.pop(0)
        return data, tag

    def shown(self) -> bool:
        return all(same(data, tag) for data, tag in self.kept)

    def pause(self) -> float:
        if self.sometimes(0.01):
            return self.chance.random() / 4
        return self.chance.choice([0.0, 0.001, 0.005])

    def next(self) -> tuple[Any, Any]:
        """The next Pub that puts, and what."""
        self.messages += 1
        self.trouble(self.shown)
        data, tag = self.value()
        if self.other is not None and self.sometimes(0.3):
            self.of_other += 1
            return self.other, {
                "n": self.of_other - 1,
                "tag": tag,
                "data": data,
                "life": os.getpid(),
            }
        self.put += 1
        return self.pub, {"n": self.put - 1, "tag": tag, "data": data, "life": os.getpid()}

    def final(self) -> dict[str, Any]:
        tag = b"\1\1\1\1"
        return {"n": self.put - 1, "tag": 0x01010101, "data": tag, "life": os.getpid()}

    def new_other(self) -> bool:
        return self.other is None and self.sometimes(0.01)

    def run(self, listen: int) -> None:
        threading.Thread(target=self.listen, args=(listen,), daemon=True).start()
        while not self.peer.address:
            time.sleep(0.01)
        while not self.stopping:
            pub, value = self.next()
            pub.put(value)
            del value
            if self.new_other():
                self.other, self.of_other = self.peer.pub(self.plan.topic, **self.plan.options), 0
            elif self.other is not None and self.sometimes(0.03):
                self.other = self.other.close()
            time.sleep(self.pause())
        if self.other is not None:
            self.other = self.other.close()
        self.finish()
        while not self.last:
            time.sleep(0.01)
        self.pub.put(self.final())
        self.pub.flush(LONG)
        self.counted()
        self.at_rest(time.sleep)
        self.pub.close()
        self.peer.close()

    async def run_async(self, listen: int) -> None:
        threading.Thread(target=self.listen, args=(listen,), daemon=True).start()
        await self.pub
        while not self.stopping:
            pub, value = self.next()
            await pub.put(value)
            del value
            if self.new_other():
                self.other, self.of_other = self.peer.pub(self.plan.topic, **self.plan.options), 0
            elif self.other is not None and self.sometimes(0.03):
                await self.other.close()
                self.other = None
            await asyncio.sleep(self.pause())
        if self.other is not None:
            await self.other.close()
            self.other = None
        self.finish()
        await eventually(lambda: self.last)
        await self.pub.put(self.final())
        await self.pub.flush(LONG)
        self.counted()
        await eventually(self._rests)
        await self.pub.close()
        await self.peer.close()

    def listen(self, listen: int) -> None:
        with open(listen, closefd=False) as lines:
            lines.readline()
            self.stopping = True
            lines.readline()
            self.last = True

    def finish(self) -> None:
        self.reap()
        self.put += 1
        self.kept.clear()
        self.counted()

    def counted(self) -> None:
        stream = self.pub._publication.stream_id
        self.tell(put={f"{self.peer.address}#{stream}": self.put})
        self.until = time.monotonic() + LONG / 2

    def _rests(self) -> bool:
        found = self.rest()
        held = self.plan.options.get("history", 0)
        clean = not found["loans"] and found["used"] <= held and (held or not found["total"])
        if clean or time.monotonic() > self.until:
            self.tell(rest=found, clean=bool(clean))
            return True
        return False

    def at_rest(self, sleep: Callable[[float], None]) -> None:
        while not self._rests():
            sleep(0.05)


class Subscriber(Process):
    def __init__(self, plan: Plan, tell: int, before: list[str]) -> None:
        super().__init__(plan, tell, before)
        self.kept: list[tuple[float, Any, int]] = []
        self.due: dict[str, int] = {}
        self.got: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.awaited: dict[str, int] = {}
        self.watched: list[str] = []
        self.asked = 0.0
        self.steady = plan.calm
        self.most = self.chance.choice([0, 3, 10, 30])
        self.slow = self.chance.choice([0, 0, 0, 0.003, 0.02])

    def begin(self) -> Any:
        self.due, self.got, self.lost = {}, {}, {}
        self.highest: dict[str, int] = {}
        self.lives: dict[str, int] = {}
        self.seen: deque[Any] = deque(maxlen=20)
        self.sub = self.peer.sub(self.plan.topic, **self.plan.options)
        return self.sub

    def take(self, event: Any) -> float:
        """How long it does nothing then."""
        who = event.publisher
        if isinstance(event, Gap):
            self.seen.append(event)
            if event.missed:
                self.lost[who] = self.lost.get(who, 0) + event.missed
                if who in self.due:
                    self.due[who] += event.missed
            return 0
        assert isinstance(event, Message)
        self.messages += 1
        value = event.value
        self.seen.append((who, event.seq))
        if self.lives.setdefault(who, value["life"]) != value["life"]:  # it has a dead one's port
            self.lives[who] = value["life"]
            for account in self.due, self.got, self.lost, self.highest:
                account.pop(who, None)
        due = self.due.setdefault(who, event.seq)
        latest = self.plan.options.get("keep") == "latest"  # its gaps may come before their place
        place = event.seq > self.highest.get(who, -1) if latest else event.seq == due
        assert value["n"] == event.seq, (who, value["n"], event.seq)
        assert place, (who, event.seq, due, list(self.seen), self.sub.publishers)
        self.highest[who] = event.seq
        self.due[who] += 1
        self.got[who] = self.got.get(who, 0) + 1
        data, tag = value["data"], value["tag"]
        assert same(data, tag), f"{who} {event.seq}: it came with another's"
        now = time.monotonic()
        if len(self.kept) < self.most and self.sometimes(0.3):
            self.kept.append((now + self.chance.choice([0.05, 0.5, 3]), data, tag))
        self.let_go(now)
        del data, value, event
        if self.awaited:
            return 0
        self.trouble(self.shown)
        if self.sometimes(0.003):
            return 1.0
        return self.slow

    def shown(self) -> bool:
        return all(same(data, tag) for _, data, tag in self.kept)

    def let_go(self, now: float) -> None:
        for entry in list(self.kept):
            if entry[0] < now:
                assert same(entry[1], entry[2]), "it changed while it was held"
                self._drop(entry)

    def _drop(self, entry: tuple[float, Any, int]) -> None:
        self.kept = [other for other in self.kept if other is not entry]

    @property
    def complete(self) -> bool:
        if self.watched and not self.awaited:
            states = self.sub.publishers
            if all(states.get(who, {}).get("state") == "attached" for who in self.watched):
                self.watched.clear()
                self.tell(attached=True)
            else:
                self.asked = self.asked or time.monotonic()
                assert time.monotonic() < self.asked + LONG, (self.watched, states)
        return bool(self.awaited) and all(
            self.due.get(who, 0) >= count for who, count in self.awaited.items()
        )

    def listen(self, listen: int) -> None:
        with open(listen, closefd=False) as lines:
            watched = json.loads(lines.readline())["watch"]
            self.steady = True
            self.watched = watched
            self.awaited = json.loads(lines.readline())["due"]

    def account(self) -> None:
        self.reap()
        self.let_go(time.monotonic() + 1000)
        self.tell(
            due={who: self.due.get(who, 0) for who in self.awaited},
            got={who: self.got.get(who, 0) for who in self.awaited},
            lost={who: self.lost.get(who, 0) for who in self.awaited},
        )
        self.until = time.monotonic() + LONG / 2

    def _rests(self) -> bool:
        found = self.rest()
        clean = not found["held"]
        if clean or time.monotonic() > self.until:
            self.tell(rest=found, clean=clean)
            return True
        return False

    def run(self, listen: int) -> None:
        threading.Thread(target=self.listen, args=(listen,), daemon=True).start()
        self.begin()
        last = None
        deadline = 0.0
        while not self.complete:
            if self.awaited:
                deadline = deadline or time.monotonic() + LONG
                assert time.monotonic() < deadline, (self.due, self.awaited, self.sub.publishers)
            try:
                event = self.next_event(0.2)
            except TimeoutError:
                continue
            pause = self.take(event)
            del event
            if pause:
                time.sleep(pause)
            if self.sometimes(0.003) and not self.steady:
                self.sub.close()
                self.begin()
        self.account()
        del last
        while not self._rests():
            time.sleep(0.05)
        self.sub.close()
        self.peer.close()

    def next_event(self, timeout: float) -> Any:
        """As `messages`, for so long."""
        event = self.sub._event()
        if event is None:
            self.sub._refill(time.monotonic() + timeout)
            event = self.sub._event()
        if event is None:
            raise TimeoutError
        return event

    async def run_async(self, listen: int) -> None:
        threading.Thread(target=self.listen, args=(listen,), daemon=True).start()
        while not self.complete:
            again = asyncio.Event()
            taking = asyncio.ensure_future(self._take_each(self.begin(), again))
            deadline = 0.0
            while not (again.is_set() or taking.done() or self.complete):
                await asyncio.sleep(0.02)
                if self.awaited:
                    deadline = deadline or time.monotonic() + LONG
                    assert time.monotonic() < deadline, (
                        *(self.due, self.awaited),
                        self.sub.publishers,
                    )
            if taking.done():
                await taking
            if self.complete:
                break
            taking.cancel()
            await asyncio.wait([taking])
            await self.sub.close()
        self.account()
        await eventually(self._rests)
        taking.cancel()
        await asyncio.wait([taking])
        await self.sub.close()
        await self.peer.close()

    async def _take_each(self, sub: Any, again: asyncio.Event) -> None:
        async for event in sub.messages():
            pause = self.take(event)
            del event
            if self.sometimes(0.003) and not self.steady:
                again.set()
            if pause:
                await asyncio.sleep(pause)


def live(plan: Plan, listen: int, tell: int) -> NoReturn:
    """What the process does in its life."""
    faulthandler.register(signal.SIGUSR1)
    code, errors = 3, []
    try:
        logging.getLogger("pubsub.open").disabled = True
        logs = logging.Handler(logging.ERROR)
        logs.emit = lambda record: errors.append(logs.format(record))  # type: ignore[method-assign]
        for name in "pubsub", "asyncio":
            logging.getLogger(name).addHandler(logs)
        if not plan.uvloop:
            sys.modules["uvloop"] = None  # type: ignore[assignment]
        die_at(plan)
        role = {"pub": Publisher, "sub": Subscriber}[plan.role]
        if plan.uvloop:  # libuv's own pipes, once in a process
            import uvloop

            uvloop.new_event_loop().close()
        before = descriptors()
        if plan.blocking:
            process = role(plan, tell, before)
            process.run(listen)
        else:

            async def main() -> Process:
                process = role(plan, tell, before)
                await process.run_async(listen)
                return process

            if plan.uvloop:
                process = uvloop.run(main())
            else:
                process = asyncio.run(main())
        process.tell(left=process.left() | {"errors": errors})
        code = 0
    except BaseException:
        sys.stderr.write(f"{plan}\n{traceback.format_exc()}")
        sys.stderr.flush()
    finally:
        os._exit(code)


# --- who starts and kills them ---------------------------------------------------------------


class Child:
    """One of them, as it is seen from outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        theirs, self._to = os.pipe()
        self._from, told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._to)
            os.close(self._from)
            live(plan, theirs, told)
        os.close(theirs)
        os.close(told)
        self._said = b""

    def say(self, **what: Any) -> None:
        os.write(self._to, (json.dumps(what) + "\n").encode())

    def hear(self, key: str) -> Any:
        """Its next word, which is of that kind."""
        while b"\n" not in self._said:
            if not select.select([self._from], [], [], 2 * LONG)[0]:
                self.kill(signal.SIGUSR1)
                time.sleep(1)
                raise AssertionError(f"nothing of {key!r} was said: {self.plan}")
            said = os.read(self._from, 65536)
            assert said, f"it is gone: {self.plan}"
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        found = json.loads(line)
        assert key in found, (found, self.plan)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self, wait: bool = False) -> bool:
        """Whether it is; by a signal that was meant for it."""
        pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            os.close(self._from)
            os.close(self._to)
            assert code in (0, -signal.SIGKILL), (code, self.plan)
            assert code or wait, ("it ended by itself", self.plan)
        return bool(pid)


class Round:
    """So many kills, and the account."""

    def __init__(self, number: int, address: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.number = number
        self.address = address
        chance = self.chance
        self.overflow = chance.choice(["block", "block", "drop"])
        self.history = chance.choice([0, 0, 3])
        self.shared = -1
        self.uvloop = UVLOOP
        self.quick = chance.choice([True, False])
        self.kills = 0
        self.stops = 0
        self.missed: list[str] = []
        self.messages = 0
        self.pubs: list[Child] = []
        self.subs: list[Child] = []

    def start(self, role: str, step: str = "", **more: Any) -> None:
        """One more of them; `more`: of its plan."""
        chance = self.chance
        peer: dict[str, Any] = {
            "shared_memory": chance.choice([0, 4 * MIB, 24 * MIB, 64 * MIB, 64 * MIB]),
            "resume_timeout": 3.0,
        }
        if self.quick:
            peer |= {"ping_interval": 0.5, "ping_timeout": 1.5}
        if role == "pub":
            options: dict[str, Any] = {"overflow": self.overflow, "history": self.history}
            options["buffer"] = 32 * MIB
            if step:
                peer["shared_memory"] = 24 * MIB
        else:
            options = {"window": chance.choice([1, 8, 32]) * MIB}
            if self.overflow == "drop" and chance.random() < 0.3:
                options["keep"] = "latest"
            if chance.random() < 0.2:
                options["history"] = 2
            if chance.random() < 0.1:
                options["copy"] = True
        if self.shared >= 0:
            peer["shared_memory"] = self.shared
        plan = Plan(
            role=role,
            topic=f"sharing/{self.number}",
            address=self.address,
            blocking=chance.random() < 0.4,
            uvloop=self.uvloop and chance.random() < 0.6,
            peer=peer,
            options=options,
            seed=chance.randrange(2**32),
            step=step,
            after=chance.random() < 0.5,
            at=chance.choice([1, 1, 2, 3, 7, 20, 60]),
        )._replace(**more)
        (self.pubs if role == "pub" else self.subs).append(Child(plan))

    def step_for(self, role: str) -> str:
        names = OF_PUB if role == "pub" else OF_SUB
        return self.chance.choice([step for step in STEPS if step.split(".")[0] in names])

    def replace(self, dead: Child) -> None:
        self.kills += 1
        group = self.pubs if dead in self.pubs else self.subs
        group.remove(dead)
        role = dead.plan.role
        step = self.step_for(role) if self.chance.random() < 0.5 else ""
        self.start(role, step)

    def reap(self) -> None:
        for child in self.pubs + self.subs:
            if child.ended():
                self.replace(child)

    def run(self, kills: int, pubs: int = 2, subs: int = 3) -> None:
        chance = self.chance
        for _ in range(pubs):
            self.start("pub")
        for _ in range(subs):
            self.start("sub")
        while self.kills < kills:
            time.sleep(chance.choice([0.02, 0.1, 0.3]))
            self.reap()
            if chance.random() < 0.5:
                child = chance.choice(self.pubs + self.subs)
                stopped = chance.random() < 0.3
                if stopped:
                    self.stops += 1
                    child.kill(signal.SIGSTOP)
                    time.sleep(chance.choice([0.01, 0.2, 0.5, 2.5 if self.quick else 0.1]))
                if chance.random() < 0.7:
                    child.kill()
                    child.ended(wait=True)
                    self.replace(child)
                elif stopped:
                    child.kill(signal.SIGCONT)
        self.settle()

    def each_step(self, role: str) -> None:
        """Of one role, a process is killed at each step, before it and after it; those of the other
        live on."""
        self.overflow, self.history, self.quick, self.shared = "block", 0, False, 24 * MIB
        for _ in range(2):
            self.start("pub", calm=True)
            self.start("sub", calm=True)
        group = self.pubs if role == "pub" else self.subs
        names = OF_PUB if role == "pub" else OF_SUB
        for step in STEPS:
            for after in (False, True) if step.split(".")[0] in names else ():
                self.start(role, step, after=after, at=1)
                child = group[-1]
                until = time.monotonic() + 1
                while not child.ended():
                    if time.monotonic() > until:  # it never came there, or at its end
                        self.missed.append(step)
                        child.kill()
                        until += LONG
                    time.sleep(0.005)
                group.remove(child)
                self.kills += 1
        self.settle()

    def settle(self) -> None:
        """Nobody is killed any more; the account."""
        for group in self.pubs, self.subs:
            for child in list(group):  # those that wait for a step to be killed at
                if child.plan.step:
                    child.kill()
                    child.ended(wait=True)
                    group.remove(child)
                    self.start(child.plan.role, calm=True)
        for pub in self.pubs:
            pub.say(stop=True)
        put: dict[str, int] = {}
        for pub in self.pubs:
            put |= pub.hear("put")["put"]
        for sub in self.subs:
            sub.say(watch=list(put))
        for sub in self.subs:
            sub.hear("attached")
        for pub in self.pubs:
            pub.say(last=True)
        for pub in self.pubs:
            put |= pub.hear("put")["put"]
        for sub in self.subs:
            sub.say(due=put)
        for sub in self.subs:
            told = sub.hear("due")
            assert told["due"] == put, (told, put, sub.plan)
            lossless = self.overflow == "block" and "keep" not in sub.plan.options
            assert not (lossless and any(told["lost"].values())), (told, sub.plan)
        for child in self.subs + self.pubs:
            told = child.hear("rest")
            assert told["clean"], (told, child.plan)
        for child in self.subs + self.pubs:
            told = child.hear("left")["left"]
            for what in "mappings", "descriptors", "errors":
                assert not told[what], (told, child.plan)
            self.messages += told["messages"]
            child.ended(wait=True)

    def end(self) -> None:
        for child in self.pubs + self.subs:
            with contextlib.suppress(OSError):
                child.kill()


def soak(given: argparse.Namespace) -> None:
    """So many kills, or minutes; or one at each step."""
    began, kills, messages, stops, number = time.monotonic(), 0, 0, 0, 0
    in_shm = set(os.listdir("/dev/shm"))
    with processes() as start:
        address = daemon(start)[1]
        while kills < given.kills and time.monotonic() - began < given.minutes * 60:
            number += 1
            turn = Round(number, address, given.seed + number)
            try:
                if given.steps:
                    turn.each_step(given.steps)
                    given.kills = 0
                else:
                    turn.run(min(given.each, given.kills - kills))
            except BaseException:
                print(f"round {number} with seed {given.seed + number} failed", flush=True)
                raise
            finally:
                turn.end()
            kills, messages, stops = (
                kills + turn.kills,
                messages + turn.messages,
                stops + turn.stops,
            )
            took = time.monotonic() - began
            print(f"{took:.0f} s: {kills} kills, {stops} stops, {messages} messages", flush=True)
            print(f"not reached: {turn.missed}", flush=True)
    assert not {name for name in set(os.listdir("/dev/shm")) - in_shm if "pubsub" in name}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--each", type=int, default=25, help="kills of a round")
    parser.add_argument("--steps", choices=["pub", "sub"], help="kill at each step of these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20)
    soak(parser.parse_args())
