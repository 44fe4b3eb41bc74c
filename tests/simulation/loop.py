"""An event loop in which nothing is real: virtual time, simulated processes, one seed.

Every coroutine runs on behalf of a `Process`, which stands for one process of an operating
system: a queue of callbacks of its own, an address, sockets. It is carried by a context variable,
so that whatever a process starts (callbacks, timers, tasks, connections) is its own. A process
can be stopped, go on, and be killed; after that none of its code runs again, as after SIGKILL.

Callbacks of one process run in the order that asyncio guarantees. Which process runs next, and
everything else that no program may rely on, is drawn from the one `random.Random`. Time passes
only when nobody has anything to do: then it jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import inspect
import struct
import sys
import warnings
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from pubsub.support.host import Host, on_host

if TYPE_CHECKING:
    from tests.simulation.network import Listener, Network, Transport

__all__ = ["Process", "SimulatedLoop", "Stuck"]

T = TypeVar("T")

TURN = 20e-6
"""Seconds that one turn of a process takes."""

_current: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
_STEP = struct.Struct("<iid")


class Stuck(Exception):
    """Nothing can happen any more, or things happen without end."""


class Process:
    """One process. Made by `SimulatedLoop.process`."""

    def __init__(self, loop: SimulatedLoop, number: int, name: str, host: str) -> None:
        self.loop = loop
        self.number = number
        self.name = name
        self.host = host
        self.alive = True
        self.stopped = False
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.transports: dict[Transport, None] = {}
        self.listeners: dict[Listener, None] = {}
        self.context = contextvars.copy_context()
        self.context.run(_current.set, self)
        self.empty = contextvars.Context()
        self.empty.run(_current.set, self)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this process. What it raises ends the run."""
        task = self.context.run(self.loop.create_task, coroutine)
        task.add_done_callback(self._spawned, context=self.context)
        return task

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None and self.loop.failure is None:
            self.loop.failure = task.exception()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """What a real loop does when a socket is ready: run a callback of the process."""
        if self.alive:
            self.ready.append(asyncio.Handle(callback, args, self.loop, self.context))

    def kill(self) -> None:
        """End it: its code never runs again. Its sockets are the network's business."""
        self.alive = False
        self.ready.clear()
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<process {self.name}>"


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The loop, with as much of asyncio's interface as the package uses.

    Attributes:
        network: who carries bytes; set by `Network`.
        host: what all processes find around them.
        failure: raised at the next step, whatever the code that set it makes of its own exception.
        errors: what was given to `call_exception_handler`.
        turns: of processes, so far.
        trace: a checksum of all that happened; equal runs have equal ones.
        on_turn: called with each process after its turn.
    """

    network: Network

    def __init__(self, random: Random) -> None:
        self.random = random
        self.failure: BaseException | None = None
        self.errors: list[dict[str, Any]] = []
        self.turns = 0
        self.max_turns = 2_000_000
        self.trace = 0
        self.on_turn: Callable[[Process], None] = lambda process: None
        self.processes: list[Process] = []
        self._buried: list[Process] = []
        self._now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Process]] = []
        self._count = 0
        self._closed = False
        self._running = False
        self._generators: dict[int, AsyncGenerator[Any, Any]] = {}
        self.outside = self.process("outside", "")
        self.host = Host(
            source_of=lambda address: address,
            socket_of=lambda name: "",
            context=lambda: self.here().empty.copy(),
        )

    def process(self, name: str, host: str) -> Process:
        """Start a process: nothing runs in it yet."""
        process = Process(self, self._count, name, host)
        self._count += 1
        self.processes.append(process)
        return process

    def bury(self, process: Process) -> None:
        """A dead process is no longer looked at."""
        self.processes.remove(process)
        self._buried.append(process)

    def here(self) -> Process:
        """The process whose code runs now."""
        return _current.get(self.outside)

    def note(self, *what: int) -> None:
        """Make something part of the trace."""
        self.trace = zlib.crc32(repr(what).encode(), self.trace)

    def timers(self) -> list[tuple[Process, asyncio.TimerHandle]]:
        """Those that are set, of processes that live."""
        return [
            (process, timer)
            for _, _, timer, process in self._timers
            if process.alive and not timer.cancelled()
        ]

    # --- running ------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        task = asyncio.ensure_future(future, loop=self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._generator_began, self._generator_dropped)
        asyncio._set_running_loop(self)
        self._running = True
        try:
            with on_host(self.host):
                while not task.done():
                    self._step()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
        return task.result()

    def _step(self) -> None:
        """One turn of one process."""
        self._fire()
        ready = [p for p in self.processes if p.ready and not p.stopped]
        while not ready:
            while self._timers and (self._timers[0][2].cancelled() or not self._timers[0][3].alive):
                heapq.heappop(self._timers)
            if not self._timers:
                raise Stuck("nothing can happen any more, and not all is done")
            self._now = max(self._now, self._timers[0][0])
            self._fire()
            ready = [p for p in self.processes if p.ready and not p.stopped]
        process = ready[0] if len(ready) == 1 else self.random.choice(ready)
        queue = process.ready
        turn = len(queue)
        self.turns += 1
        if self.turns > self.max_turns:
            raise Stuck(f"{self.turns} turns and no end")
        self.trace = zlib.crc32(_STEP.pack(process.number, turn, self._now), self.trace)
        for _ in range(turn):
            if not queue or process.stopped:
                break
            handle = queue.popleft()
            if not handle.cancelled():
                handle._run()
                if self.failure is not None:
                    raise self.failure
        self.on_turn(process)
        if self.failure is not None:
            raise self.failure
        self._now += TURN

    def _fire(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self._now:
            _, _, timer, process = heapq.heappop(timers)
            if process.alive and not timer.cancelled():
                process.ready.append(timer)

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        process = self.here() if context is None else context.get(_current, self.outside)
        if process is not None and process.alive:
            process.ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        process = self.here() if context is None else context.get(_current, self.outside)
        assert process is not None
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer, process))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Any = None, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name)
        process = self.here()
        if len(process.tasks) > 200:
            process.tasks = [t for t in process.tasks if not t.done()]
        process.tasks.append(task)
        return task

    # --- the network --------------------------------------------------------------------

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **options: Any
    ) -> tuple[Any, Any]:
        return await self.network.connect(self.here(), protocol_factory, (host, port))

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **options: Any
    ) -> Listener:
        return self.network.listen(self.here(), protocol_factory, host, port)

    # --- the rest -----------------------------------------------------------------------

    def _generator_began(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[id(generator)] = generator

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.pop(id(generator), None)

    async def shutdown_asyncgens(self) -> None:
        generators = list(self._generators.values())
        self._generators.clear()
        for generator in generators:
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)
        if self.failure is None:
            error = context.get("exception")
            self.failure = RuntimeError(f"{context.get('message')}: {error!r}")
            self.failure.__cause__ = error

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._generators.clear()
        self._timers.clear()
        for process in (*self.processes, *self._buried):
            process.kill()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some never began
            for process in (*self.processes, *self._buried):
                for task in process.tasks:
                    coroutine = task.get_coro()
                    if not task.done() and inspect.iscoroutine(coroutine):
                        with contextlib.suppress(Exception):
                            coroutine.close()

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """There is nothing to debug."""
