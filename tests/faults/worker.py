"""A process with peers in it, which does what it is told: ``python -m tests.faults.worker``.

Commands are lines of JSON on standard input, ``{"do": "sub", …}`` with the arguments of the method
of that name; the answer is one line of JSON. `Worker` is its remote control, for tests. Its Pubs
put numbers at a steady rate, and its Subs check each message that comes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pubsub import Gap, Peer, Pub, Sub
from pubsub.faces.account import untaken
from pubsub.links import unix
from tests.cli.processes import LONG, Running, Start
from tests.faults.proxy import WAY
from tests.integration.support import break_links, eventually

__all__ = ["Worker", "start_worker", "until"]

TURN = 0.005
"""Seconds between two bursts of puts."""


class _Taker:
    """What one Sub got, stream by stream."""

    def __init__(self, sub: Sub) -> None:
        self.sub = sub
        self.due: dict[str, int] = {}
        self.got: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.reasons: list[str] = []
        self.silence = 0.0
        self.heard = time.monotonic()
        self.task = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async for event in self.sub.messages():
            who = event.publisher
            self.listen()
            if isinstance(event, Gap) and not event.missed:
                self.reasons.append(event.reason)
                continue
            if isinstance(event, Gap):
                self.lost[who] = self.lost.get(who, 0) + event.missed
                self.reasons.append(event.reason)
                if who in self.due:
                    self.due[who] += event.missed
                continue
            due = self.due.setdefault(who, event.seq)
            assert event.value == event.seq == due, (who, event.value, event.seq, due)
            self.due[who] += 1
            self.got[who] = self.got.get(who, 0) + 1

    @property
    def behind(self) -> bool:
        """Whether something has come that it has not taken."""
        return any(messages for _, messages, _, _ in untaken(self.sub))

    def listen(self) -> None:
        """Measure how long nothing was taken."""
        now = time.monotonic()
        self.silence = max(self.silence, now - self.heard)
        self.heard = now


class _Process:
    """The commands."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self.pubs: dict[str, Pub] = {}
        self.putters: dict[str, asyncio.Task[None]] = {}
        self.put: dict[str, int] = {}
        self.takers: dict[str, _Taker] = {}
        self.files: list[int] = []
        self.limits = (0, 0)
        self.logged: list[str] = []
        keeper = logging.Handler()
        logging.getLogger("pubsub.open").disabled = True  # that everything is open, tests know
        keeper.emit = lambda record: self.logged.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("pubsub").addHandler(keeper)

    async def peer(self, name: str, **settings: Any) -> None:
        self.peers[name] = Peer(**settings)

    async def pub(self, name: str, topic: str, rate: float = 0, **options: Any) -> str:
        """A Pub on the peer of that name, ready; it puts `rate` numbers a second."""
        pub = self.pubs[name] = self.peers[name].pub(topic, **options)
        self.put[name] = 0
        if rate:
            self.putters[name] = asyncio.ensure_future(self._put(name, pub, rate))
        await pub
        return f"{self.peers[name].address}#{pub._publication.stream_id}"

    async def _put(self, name: str, pub: Pub, rate: float) -> None:
        loop = asyncio.get_running_loop()
        began, done = loop.time(), 0
        while True:
            burst = int((loop.time() - began) * rate) - done
            if burst > rate:  # we were away: do not catch up with all of it
                began += burst / rate
            else:
                for _ in range(burst):
                    await self._put_next(name, pub)
                    done += 1
            await asyncio.sleep(TURN)

    async def puts(self, name: str, count: int) -> int:
        """Put so many at once; how many that are in all."""
        pub = self.pubs[name]
        for _ in range(count):
            await self._put_next(name, pub)
        return self.put[name]

    async def flood(self, name: str, count: int, size: int) -> None:
        """Put so many values of that many bytes, as fast as it goes. (A `sub` takes numbers.)"""
        pub, value = self.pubs[name], bytes(size)
        for _ in range(count):
            await pub.put(value)

    async def _put_next(self, name: str, pub: Pub) -> None:
        """Put the next number; while this one waits, another may be put."""
        turn = pub.put(self.put[name])
        self.put[name] += 1
        try:
            await turn
        except asyncio.CancelledError:
            if isinstance(turn, asyncio.Future) and turn.cancelled():
                self.put[name] -= 1  # it waited for room, and was not put
            raise

    async def stop(self) -> dict[str, int]:
        """Put no more; how many were put."""
        for putter in self.putters.values():
            if putter.done():
                await putter
            putter.cancel()
        if self.putters:
            await asyncio.wait(self.putters.values())
        self.putters.clear()
        return self.put

    async def subscribers(self, name: str) -> dict[str, Any]:
        return self.pubs[name].subscribers

    async def attached(self, name: str, n: int) -> None:
        """Wait until so many Subs are connected."""
        await self.pubs[name].wait_for_subscribers(n, LONG)

    async def sub(self, name: str, topic: str, **options: Any) -> None:
        """A Sub on the peer of that name, ready, and a task that takes what comes."""
        sub = self.peers[name].sub(topic, **options)
        await sub
        self.takers[name] = _Taker(sub)

    async def report(self, name: str) -> dict[str, Any]:
        """What the Sub of the peer of that name has got, with all that has come."""
        taker = self.takers[name]
        await eventually(lambda: taker.task.done() or not taker.behind)
        if taker.task.done():
            await taker.task
        return {
            "got": taker.got,
            "gaps": taker.lost,
            "due": taker.due,
            "reasons": taker.reasons,
            "lost": taker.sub.lost,
            "publishers": taker.sub.publishers,
        }

    async def reach(self, name: str, due: dict[str, int]) -> dict[str, Any]:
        """Wait until all below these numbers has come, or is known to be lost."""
        taker = self.takers[name]
        deadline = asyncio.get_running_loop().time() + LONG - 5
        while any(taker.due.get(who, 0) < count for who, count in due.items()):
            if taker.task.done() or asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"{await self.report(name)} where {due} was due")
            await asyncio.sleep(0.005)
        return await self.report(name)

    async def counts(self) -> dict[str, int]:
        return self.put

    async def exhaust(self, cut: str | None = None) -> None:
        """Use up all file descriptors; then cut the links of that peer, and use up those too."""
        import resource

        if not self.files:
            self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.open(os.devnull, os.O_RDONLY)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, self.limits[1]))
        self._use_up()
        if cut is not None:
            break_links(self.peers[cut])
            for _ in range(5):
                self._use_up()
                await asyncio.sleep(0)

    def _use_up(self) -> None:
        try:
            while True:
                self.files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass

    async def release(self) -> None:
        """Have them again."""
        import resource

        while self.files:
            os.close(self.files.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)

    async def silences(self) -> dict[str, float]:
        """The longest time for which each Sub took nothing, since this was asked last."""
        found = {}
        for name, taker in self.takers.items():
            taker.listen()
            found[name], taker.silence = taker.silence, 0.0
        return found

    async def connections(self) -> list[str]:
        """Both ends of the links that its peers have with others."""
        found = []
        for peer in self.peers.values():
            runtime = peer.runtime
            links = [served.link for served in runtime.subscribers.served]
            links += [remote.link for remote in runtime.publishers.remotes.values()]
            found += [
                f"{link.sockname} {link.peername}"
                for link in links
                if link is not None and not link.closing
            ]
        return sorted(found)

    async def embedded(self, name: str) -> bool:
        """Whether the coordinator is in this process."""
        return self.peers[name].runtime.embedded.coordinator is not None

    async def default_coordinator(self, port: int) -> None:
        """Where peers look for a coordinator, and start one, if nobody says otherwise."""
        import pubsub.config

        pubsub.config.DEFAULT_COORDINATOR = pubsub.config.Address("127.0.0.1", port)

    async def session(self, name: str, up: bool) -> None:
        """Wait until the coordinator is known to be there, or not to be."""
        sessions = self.peers[name].runtime.sessions
        await eventually(lambda: all(session.up is up for session in sessions))

    async def renew(self, name: str) -> None:
        """Look at its credentials now, as it does each minute."""
        guard = self.peers[name].runtime.guard
        found = guard.read()
        self.peers[name].runtime.renewal.look()
        await eventually(lambda: guard._keys == found)  # type: ignore[attr-defined]  # a Group's

    async def log_has(self, text: str) -> None:
        """Wait until it has logged this, since it was asked last."""
        await eventually(lambda: any(text in line for line in self.logged))
        self.logged.clear()

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self.peers.values()))


async def _main() -> None:
    loop = asyncio.get_running_loop()
    process = _Process()
    reader = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        command = json.loads(line)
        try:
            answer = {"answer": await getattr(process, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    await process.close()


def until(condition: Callable[[], Any]) -> None:
    """Wait, outside of any loop, until what must happen has happened."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Worker:
    """Tells such a process what to do: ``worker.sub(name="a", topic="t")``."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def __getattr__(self, do: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.tell(do, **arguments)
            return self.answer()

        return call

    def tell(self, do: str, **arguments: Any) -> None:
        """The same without waiting for the answer."""
        self.running.send(json.dumps({"do": do, **arguments}) + "\n")

    def answer(self) -> Any:
        answer = json.loads(self.running.out())
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    def freeze(self) -> None:
        self.running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.running.signal(signal.SIGCONT)

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes that the process has in memory now, or (``VmHWM``) had at most."""
        for line in Path(f"/proc/{self.running.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(what)

    def kill(self) -> None:
        self.running.signal(signal.SIGKILL)
        self.running.process.wait(LONG)

    def end(self) -> list[str]:
        """Have it end by itself; returns what it logged."""
        self.running.close_input()
        code, out, err = self.running.end()
        assert (code, out) == (0, []), err
        return err


def start_worker(
    start: Start, coordinator: str | None = None, prefix: tuple[str, ...] = (), **env: str
) -> Worker:
    """A new one; see `Running`."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return Worker(
        start(
            "python",
            "-m",
            "tests.faults.worker",
            coordinator=coordinator,
            PYTHONPATH=os.pathsep.join(paths),
            prefix=prefix,
            **env,
        )
    )


def become(uid: int) -> None:
    """Be that user from now on. What is imported late is imported now: he may not read it."""
    import encodings.idna  # noqa: F401

    import pubsub.cli.pubsub
    import pubsub.coordinator.server
    import pubsub.trust.certificates  # noqa: F401

    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


if __name__ == "__main__":
    if os.environ.get("PUBSUB_TEST_UID"):
        become(int(os.environ["PUBSUB_TEST_UID"]))
    if WAY != "unix":
        unix.available = lambda: False
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        import uvloop
    except ImportError:
        asyncio.run(_main())
    else:
        uvloop.run(_main())
