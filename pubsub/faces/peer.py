"""Peer: one process's place among all the others, and where Pubs and Subs run.

A `Peer` made inside a running event loop belongs to it; one made elsewhere runs a loop of its own
on a background thread, and what is made with it blocks. Most programs never make one: the first
`Pub` or `Sub` makes the default Peer of the process, or of the running loop.

How a process ends in order (promise G9), whatever runs its loops: `asyncio.run` shuts down the
asynchronous generators of its loop last, and a Peer in a loop holds one that closes it; a loop that
is closed otherwise closes its Peers first (`_close_loop`). All that are left are closed together by
one function, which `atexit` calls (or, in a multiprocessing child, its finalizers): a loop that
runs in a thread is asked and waited for, and one that stands still is run on. Where it is too late
for that, a line says what was not sent.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import selectors
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

from pubsub.config import Settings, advertise_from, coordinators_from, seconds
from pubsub.errors import Closed, PubSubError, WrongContext
from pubsub.faces.elsewhere import DONE, begin, elsewhere
from pubsub.links import descriptors
from pubsub.runtime.runtime import Runtime
from pubsub.support.apart import apart
from pubsub.support.logs import logger
from pubsub.support.reentry import calls_of, interrupts_the_core, running_loop

try:  # what uvloop imports and could not any more once the main thread has ended
    import concurrent.futures.thread
except RuntimeError:
    pass  # it has, and this package is imported by an exit function

__all__ = ["Peer", "default_peer", "running_loop", "stay_at_exit"]

log = logger("pubsub")

faces: dict[str, Callable[..., Any]] = {}
"""``pub`` and ``sub``: the classes, which stand above this module and enter themselves."""

T = TypeVar("T")
P = ParamSpec("P")


class Peer:
    """A runtime of its own: an event loop's, or a background thread's.

    It runs until it is closed: by `close()`, at the end of its ``with``, or by the end of its event
    loop or process, also when nobody holds it any more.

    Parameters:
        coordinator: ``"host:port"``, several separated by commas or in a list; default: the
            environment's ``PUBSUB_COORDINATOR``, else ``127.0.0.1:7700``, where the first process
            of the machine starts a coordinator in itself.
        settings: the fields of `pubsub.config.Settings` by name: ``host``, ``port``,
            ``advertise`` (default: the environment's ``PUBSUB_ADVERTISE``), ``name``,
            ``ping_interval``, ``ping_timeout``, ``connect_timeout``, ``join_timeout``,
            ``resume_timeout``, ``linger``, ``max_message`` …

    Raises:
        TypeError, ValueError: a setting, or an address, that cannot be used.
        WrongContext: no place for it: in the middle of the work of a Peer (in a signal handler, a
            destructor or a log handler), where threads are replaced (gevent, eventlet), or where
            Python is ending and starts no thread any more.

    Example:
        >>> from pubsub import Peer
        >>> with Peer(name="example") as peer:
        ...     sub = peer.sub("topic")
        ...     peer.pub("topic").put(1)
        ...     sub.get(timeout=5)
        1
    """

    def __init__(
        self,
        coordinator: str | tuple[str, int] | list[str] | None = None,
        **settings: Any,
    ) -> None:
        refuse_inside("Peer")
        coordinators, configured = coordinators_from(coordinator, os.environ)
        advertise = None if "advertise" in settings else advertise_from(os.environ)
        try:
            self.settings = Settings(**{"advertise": advertise, **settings})
        except TypeError as error:
            unknown = sorted(set(settings) - set(Settings.__dataclass_fields__))
            if unknown:
                known = ", ".join(Settings.__dataclass_fields__)
                raise TypeError(f"Peer has no setting {unknown[0]!r}; it has {known}") from None
            raise error from None
        self.coordinators = coordinators
        self._dead: Exception | None = None
        self._ending = threading.RLock()
        loop = running_loop()
        self.blocking = loop is None
        self._thread: _LoopThread | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        if loop is None:
            _refuse_after_the_end()
        descriptors.fill_standard()
        try:
            if loop is None:
                self._thread = _LoopThread()
                loop = self._thread.start()
            self.runtime = Runtime(
                loop, coordinators, configured, self.settings, given=coordinator is not None
            )
            if self._thread is not None:
                self._thread.call(self.runtime.start)
            else:
                self.runtime.start()
                self._guard = _guard(self.runtime)
                _begin(self._guard)
                _watch(loop)
            _at_exit()
            for peer in list(_peers):
                if peer.runtime.finished:
                    _peers.discard(peer)
                    peer.runtime.bury()
            _peers.add(self)
        except BaseException:  # a signal handler's, maybe, from any of these
            self._undo()
            raise

    def _undo(self) -> None:
        """The constructor was interrupted, wherever it was: nobody will have this Peer."""
        _peers.discard(self)
        runtime: Runtime | None = self.__dict__.get("runtime")
        if self._thread is not None:
            if runtime is not None:
                self._thread.call(runtime.cut)
            self._thread.stop()
        elif runtime is not None:
            runtime.cut()

    # --- what users call ----------------------------------------------------------------

    def pub(self, topic: str, **options: Any) -> Any:
        """A `Pub` of this Peer; see there for the options."""
        return faces["pub"](topic, peer=self, **options)

    def sub(self, topic: str, **options: Any) -> Any:
        """A `Sub` of this Peer; see there for the options."""
        return faces["sub"](topic, peer=self, **options)

    @property
    def address(self) -> str:
        """``host:port`` that other peers dial; empty before a coordinator was reached."""
        return self.runtime.address

    @property
    def peer_id(self) -> str:
        """Its identity."""
        return self.runtime.peer_id

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._dead is not None

    def close(self, linger: float | None = None) -> Awaitable[None]:
        """Close all its Pubs and Subs and stop; subscribers have `linger` seconds (default: the
        setting) to receive what they are due.

        In an event loop it begins at once, and what it returns is to be awaited for the end. May
        be called again, also meanwhile: every call waits for the one end, and cancelling one that
        waits ends nothing early.
        """
        linger = seconds("linger", linger)
        if self._thread is None:
            if self.runtime.loop.is_closed() or isinstance(self._dead, WrongContext):
                self._dead = self._dead or Closed("this Peer is closed")
                return DONE
            runtime = self.runtime
            away = elsewhere(runtime.loop, runtime.thread)
            if not away:
                runtime.check_place("this Peer")
            self._dead = self._dead or Closed("this Peer is closed")
            return begin(runtime.loop, runtime.close, linger) if away else runtime.close(linger)
        self.refuse_in_loop("Peer.close()")
        if self._dead is None:
            self.refuse_in_put()
        with self._ending:  # whoever comes second waits for the end
            if self._dead is None:
                self._dead = Closed("this Peer is closed")
                try:
                    self._thread.run(self._close(linger))
                except BaseException:  # no more lingering
                    self._thread.call(self.runtime.cut)
                    raise
                finally:
                    self._thread.stop()
        return DONE

    async def _close(self, linger: float | None) -> None:
        await self.runtime.close(linger)

    def __enter__(self) -> Peer:
        if self._thread is None:
            raise WrongContext("in an event loop a Peer is entered by `async with`, not `with`")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Peer:
        if self._thread is not None:
            raise WrongContext("this Peer was made outside an event loop: enter it by `with`")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise cannot_travel(self)

    def __repr__(self) -> str:
        where = self.address or "not connected yet"
        state = "closed" if self.closed else where
        coordinators = ",".join(map(str, self.coordinators))
        return f"<Peer {self.peer_id} at {state}, coordinator {coordinators}>"

    # --- what Pub and Sub call ----------------------------------------------------------

    def _alive(self) -> _LoopThread:
        if self._dead is not None:
            raise self._dead
        assert self._thread is not None
        _refuse_green()
        self.refuse_in_put()
        return self._thread

    @property
    def here(self) -> bool:
        """Whether this is the Peer's own thread."""
        return self._thread is not None and self._thread.here

    def refuse_in_put(self) -> None:
        """Raise `WrongContext` where a put, interrupted by who calls, and the loop's thread would
        wait for each other."""
        if any(pub.peer is self and pub.putting() for pub in calls_of("pubsub.faces.blockingpub")):
            raise WrongContext(
                "a call that waits, from within a put of the same Peer (from a signal handler or a "
                "destructor): the put would wait for it, and it for the put"
            )

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the loop's thread and wait for it."""
        return self._alive().call(function, *args, **kwargs)

    def try_call(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """The same, unless the Peer is closed."""
        with contextlib.suppress(PubSubError):
            self.call(function, *args, **kwargs)

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function run in the loop's thread; not waited for. Harmless after the end."""
        thread = self._thread
        if thread is not None:
            try:
                thread.loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                if not thread.loop.is_closed():
                    raise

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread and wait for it."""
        try:
            thread = self._alive()
        except PubSubError:
            coroutine.close()
            raise
        if thread.here:  # in a destructor, say, that the collector runs there
            coroutine.close()
            raise WrongContext("this would wait for the thread that it runs in")
        return thread.run(coroutine)

    def refuse_in_loop(self, what: str) -> None:
        """Raise `WrongContext` where waiting would block a running event loop."""
        _refuse_green()
        if running_loop() is not None:
            raise WrongContext(
                f"{what} blocks, and an event loop is running here: make the Pub, Sub or Peer "
                "inside the loop and await it, or call it in asyncio.to_thread"
            )

    def _abandon_after_fork(self) -> None:
        error = WrongContext(
            "this Peer, and every Pub and Sub of it, was made before a fork and belongs to the "
            "parent process: make new ones in the child"
        )
        self._dead = error
        self._ending = threading.RLock()  # whoever held it is not here
        self.runtime.abandon_after_fork(error)


GREEN = {
    "gevent": "gevent.monkey.patch_all(thread=False, select=False)",
    "eventlet": "eventlet.monkey_patch(thread=False, select=False)",
}
ENDING = (
    "Python is ending and starts no thread any more: make the first Pub, Sub or Peer before the "
    "main thread ends"
)


class _LoopThread:
    """A background thread that runs an event loop: uvloop where it exists."""

    def __init__(self) -> None:
        _refuse_green()
        self.loop: asyncio.AbstractEventLoop
        self._begun = False  # or failed to begin
        self._failure: BaseException | None = None
        self._stopped = False
        self._door = threading.RLock()  # nothing is given to the loop after it was told to stop
        self._thread = threading.Thread(target=self._run, name="pubsub", daemon=True)

    def start(self) -> asyncio.AbstractEventLoop:
        """Make the loop, and run it; returns it."""
        begun = _thread.allocate_lock()
        begun.acquire()
        try:
            try:
                _thread.start_new_thread(self._begin, (begun,))
            except RuntimeError as error:
                self._failure, self._begun = error, True
            else:
                begun.acquire()
        except BaseException:  # a signal handler's: it runs, or soon will
            while not self._begun:
                time.sleep(0.001)
            raise
        if self._failure is not None:
            if isinstance(self._failure, RuntimeError) and not threading.main_thread().is_alive():
                raise WrongContext(ENDING) from self._failure  # Python 3.12 starts none then
            raise self._failure
        return self.loop

    def _begin(self, begun: _thread.LockType) -> None:
        """Make the loop, and have it run. Not in the main thread: a signal handler that raises
        within the making of a loop or the start of a thread leaves either half made, and whoever
        waits for it would wait for ever."""
        try:
            self.loop = _new_loop()
            try:
                self._thread.start()
            except BaseException:
                self.loop.close()
                raise
        except BaseException as error:
            self._failure = error
        finally:
            self._begun = True
            begun.release()

    def _run(self) -> None:
        _here.is_ours = True
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def here(self) -> bool:
        """Whether it is this thread that asks."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.here:
            return function(*args, **kwargs)
        result: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result.set_result(function(*args, **kwargs))
            except BaseException as error:
                result.set_exception(error)

        with self._door:
            self._check_open()
            self.loop.call_soon_threadsafe(run)
        return result.result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._door:
            try:
                self._check_open()
            except Closed:
                coroutine.close()
                raise
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("this Peer was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def _check_open(self) -> None:
        if self._stopped:
            raise Closed("this Peer is closed")

    def stop(self) -> None:
        with self._door:
            if self._stopped or not self._begun or self._failure is not None:
                return
            self._stopped = True
        asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self.loop.close()


def _refuse_green(needed: Any = None) -> None:
    """Raise `WrongContext` where threads are no threads (or what else is `needed` was replaced): a
    greenlet that waits for another thread waits for ever, and one that runs a loop lets nobody else
    run."""
    kind = (needed or _thread.start_new_thread).__module__.partition(".")[0]
    if kind in GREEN:
        raise WrongContext(
            f"{kind} has replaced Python's threads, and a Pub, Sub or Peer that blocks needs real "
            f"ones: patch by {GREEN[kind]}, or make it inside asyncio.run"
        )


async def _cancel_all() -> None:
    """End the tasks that are left, and let the transports say that they are closed."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)


@apart  # a loop keeps callbacks of its own from its making on
def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform != "win32":
        try:
            import uvloop
        except (ImportError, RuntimeError):  # see the import of concurrent.futures.thread
            pass
        else:
            return uvloop.new_event_loop()
    _refuse_green(selectors.DefaultSelector)
    return asyncio.new_event_loop()


# --- the default Peers ------------------------------------------------------------------

_peers: set[Peer] = set()
"""All that are not done with closing: one that nobody holds any more has still to be closed at the
end of its loop or process, because its Pubs may have put what is still on its way."""
_abandoned: list[Any] = []
_here = threading.local()
"""`is_ours`: this thread runs the loop of a Peer."""
_lock = threading.RLock()  # a signal handler may come while it is held
_making: set[asyncio.AbstractEventLoop | None] = set()
"""Of which loops (None: of the process) the default Peer is being made."""
_of_process: Peer | None = None
_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Peer] = weakref.WeakKeyDictionary()


def check_peer(peer: Any) -> Peer:
    """Raise TypeError where something else was given."""
    if not isinstance(peer, Peer):
        raise TypeError(f"peer={peer!r} is not a Peer; one is made by Peer('host:port')")
    return peer


def cannot_travel(of: object) -> TypeError:
    """Why neither pickle nor copy can have it."""
    what = next(name for name in ("Pub", "Sub", "Peer") if name in type(of).__name__)
    return TypeError(
        f"a {what} belongs to its process and cannot be pickled or copied: hand on the topic or "
        f"the address, and make a {what} there"
    )


def refuse_inside(what: str) -> None:
    """Raise `WrongContext` where nothing can be made, because the code that asks for it interrupts
    the work of a Peer, or runs in the middle of it. (Outside of event loops, that work is done in
    another thread.)"""
    inside = running_loop() is not None and interrupts_the_core()
    if inside or getattr(_here, "is_ours", False):
        raise WrongContext(
            f"a {what} cannot be made here, in the middle of the work of a Peer (by a signal "
            "handler, a destructor or a log handler): have it noted here (set a flag, or "
            "loop.call_soon_threadsafe), and made outside"
        )


def default_peer() -> Peer:
    """The Peer of the running loop, or where none runs the process's; made on first use.

    Raises:
        WrongContext: this interrupts its making.
    """
    global _of_process
    loop = running_loop()
    with _lock:
        peer = _of_process if loop is None else _of_loops.get(loop)
        if peer is not None and not peer.closed:
            return peer
        if loop in _making:
            raise WrongContext(
                "the default Peer is being made at this moment, and this code interrupts it (a "
                "signal handler, say): make the Pub, Sub or Peer later, or the first one before"
            )
        _making.add(loop)
        try:
            if loop is None:
                peer = _of_process = Peer()
            else:
                for other in list(_of_loops):  # a Peer keeps its loop alive: no key goes by itself
                    if other.is_closed():
                        _of_loops.pop(other, None)
                peer = _of_loops[loop] = Peer()
        finally:
            _making.discard(loop)
        return peer


# --- the end of the process -------------------------------------------------------------

MARGIN = 2.0
"""Seconds that a loop may take beyond `linger` for its Peer's end."""
MOMENT = 0.05
"""Seconds for which one loop is waited for, or run, before the next."""

_registered: set[str] = set()
_exiting = (  # imported by an exit function, behind whose back ours would not run any more
    threading.current_thread() is threading.main_thread() and not threading.main_thread().is_alive()
)


def _refuse_after_the_end() -> None:
    """Raise `WrongContext` where nothing would close a new Peer any more: what its Pubs put would
    be lost without a word."""
    if _exiting:
        stay_at_exit()
        raise WrongContext(
            "the process is ending, and its Peers are closed already: an exit function that makes "
            "a Pub, Sub or Peer must be registered after `import pubsub`"
        )


def _at_exit() -> None:
    """Have all Peers closed also at the end of a multiprocessing child, where no atexit function
    runs."""
    process = sys.modules.get("multiprocessing.process")
    if (
        process is not None
        and process.parent_process() is not None
        and "multiprocessing" not in _registered
    ):
        _registered.add("multiprocessing")
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=100)


def stay_at_exit() -> None:
    """Called by who has nothing but `Closed` to tell. In a daemon thread, when the process ends,
    that would be printed as an error, though nobody did anything wrong: like one that waits for
    anything else, such a thread stays where it is."""
    if _exiting and threading.current_thread().daemon:
        threading.Event().wait()


class _End:
    """The end of a Peer with that of the process, seen from outside of its loop."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._loop = peer.runtime.loop
        self._over = threading.Event()
        self._stops = False  # the loop, when it is over
        self._by = time.monotonic() + peer.settings.linger + MARGIN
        peer.runtime.exiting = True
        self._soon(self._begin)
        if peer.runtime.shut_down and not self._loop.is_running():  # Ctrl-C has ended that
            self.cut()

    def _soon(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # it was closed
            self._loop.call_soon_threadsafe(call)

    def _begin(self) -> None:
        if not self.peer.blocking:
            _loop_ended(self.peer.runtime)
            self.peer._dead = self.peer._dead or Closed("this Peer is closed")
        self.peer.runtime.close().add_done_callback(self._ended)

    def _ended(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, Exception):
            log.error("closing %r at the end of the process failed", self.peer, exc_info=error)
        self._over.set()
        if self._stops:
            self._loop.stop()

    def cut(self) -> None:
        """Linger no longer."""
        self._by = time.monotonic() + MARGIN
        self._soon(self.peer.runtime.cut)

    def go_on(self) -> bool:
        """Wait for a moment, or where nobody runs the loop, run it for one. Returns whether there
        is nothing more to wait for."""
        loop, runtime = self._loop, self.peer.runtime
        here = running_loop()
        if loop.is_closed() or here is loop or (here is not None and not loop.is_running()):
            runtime.bury()  # it runs no more, or not before we return
            return True
        try:
            if not loop.is_running():
                self._run(loop, runtime)
            else:
                self._over.wait(MOMENT)
        except SystemExit:  # of other code that it runs
            pass
        except RuntimeError:  # meanwhile somebody runs it, or has closed it
            self._over.wait(MOMENT)
        if not self._over.is_set():
            if time.monotonic() < self._by:
                return False
            runtime.bury()
        elif self.peer.blocking:
            with contextlib.suppress(Exception):  # it was logged
                self.peer.close()  # its thread, too
        return True

    def _run(self, loop: asyncio.AbstractEventLoop, runtime: Runtime) -> None:
        runtime.thread = threading.get_ident()
        timer = loop.call_later(MOMENT, loop.stop)
        self._stops = True
        try:
            if not self._over.is_set():
                loop.run_forever()
        finally:
            self._stops = False
            timer.cancel()


def _close_all() -> None:
    """At the end of the process. Ctrl-C ends the waiting, and not with a traceback."""
    global _exiting
    _exiting = True
    with contextlib.suppress(KeyboardInterrupt):
        _end(list(_peers))


def _end(peers: list[Peer]) -> None:
    """Close them together."""
    ends: list[_End] = []
    try:
        for peer in peers:
            if peer.runtime.loop.is_closed():
                peer.runtime.bury()
            elif not peer.runtime.finished:
                ends.append(_End(peer))
        _go_on(ends)
    except BaseException:  # Ctrl-C, or whatever else a signal handler raises
        for end in ends:
            end.cut()
        _go_on(ends)
        raise


def _go_on(ends: list[_End]) -> None:
    while ends:
        ends[:] = [end for end in ends if not end.go_on()]


def _watch(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop that is closed close its Peers first: for all that it has run there may be
    messages that only wait for it to run on."""
    close = loop.close
    if not (isinstance(close, functools.partial) and close.func is _close_loop):
        with contextlib.suppress(AttributeError):  # a loop that has no room for it
            loop.close = functools.partial(_close_loop, loop, close)  # type: ignore[method-assign]


def _close_loop(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    try:
        if not loop.is_running() and running_loop() is None:
            _end([peer for peer in list(_peers) if peer.runtime.loop is loop])
    finally:
        close()


atexit.register(_close_all)  # at once: exit functions that are registered later may still publish


async def _guard(runtime: Runtime) -> AsyncGenerator[None, None]:
    """Closes the runtime when its loop shuts down its asynchronous generators."""
    try:
        yield
    finally:
        _loop_ended(runtime)
        runtime.shut_down = True
        await runtime.close()


def _loop_ended(runtime: Runtime) -> None:
    if not runtime.closing:
        runtime.why_closed = (
            "the event loop in which this was made has ended (at the end of asyncio.run, say): "
            "make a new one in the loop that runs now"
        )


def _begin(generator: AsyncGenerator[None, None]) -> None:
    """Run it to its `yield`, which is where the loop gets to know of it."""
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)


def _after_fork() -> None:
    """In the child: nothing of the parent's Peers may be used, and nothing of them may run."""
    global _of_process, _lock, _exiting
    _exiting = False
    _lock = threading.RLock()
    _making.clear()
    _of_process = None
    _registered.clear()
    for peer in list(_peers):
        _abandoned.append(peer)  # its loop is never collected: that would touch the parent's
        _abandoned.extend(list(_of_loops.keys()))
        peer._abandon_after_fork()
    descriptors.leave_to_parent()
    _peers.clear()
    _of_loops.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
