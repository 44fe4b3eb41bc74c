"""What Peers have with their process: the default ones, the end of it, and a fork.

How a process ends in order (promise G9), whatever runs its loops: `asyncio.run` shuts down the
asynchronous generators of its loop last, and a Peer in a loop holds one that closes it; a loop that
is closed otherwise closes its Peers first (`_close_loop`). All that are left are closed together by
one function, which `atexit` calls (or, in a multiprocessing child, its finalizers): a loop that
runs in a thread is asked and waited for, and one that stands still is run on. Where it is too late
for that, a line says what was not sent.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from pubsub.errors import Closed, WrongContext
from pubsub.links import descriptors
from pubsub.stats.past import Past
from pubsub.stats.rows import Stats
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.support.reentry import running_loop

if TYPE_CHECKING:
    from pubsub.faces.peer import Peer
    from pubsub.runtime.runtime import Runtime

__all__ = [
    "all_stats",
    "default_by",
    "default_peer",
    "end_last",
    "end_with_loop",
    "end_with_process",
    "ended",
    "forget",
    "refuse_at_exit",
    "stay_at_exit",
]

log = logger("pubsub")

# --- the default Peers ------------------------------------------------------------------

_peers: set[Peer] = set()
"""All that are not done with closing: one that nobody holds any more has still to be closed at the
end of its loop or process, because its Pubs may have put what is still on its way."""
_past = Past()
"""What those had counted that are over."""
_counting = threading.RLock()
"""Held while one goes from `_peers` to there, and while nothing is asked that has a lock, too: what
a program is asked by (a log handler, a destructor) may run where that one is held."""
_last: list[Callable[[], None]] = []
_abandoned: list[Any] = []
_lock = threading.RLock()  # a signal handler may come while it is held
_making: set[asyncio.AbstractEventLoop | None] = set()
"""Of which loops (None: of the process) the default Peer is being made."""
_of_process: Peer | None = None
_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Peer] = weakref.WeakKeyDictionary()
_arguments: dict[str, Any] = {}
"""With which they are made; a forked child has them, too."""


def default_by(arguments: dict[str, Any]) -> None:
    """Have the default Peers made with these arguments from now on. One that was made with others
    is no default any more, and goes on for those that have it.

    Raises:
        WrongContext: this interrupts the making of one.
    """
    global _arguments, _of_process
    with _lock:
        if _making:
            raise _interrupts()
        if arguments != _arguments:
            _arguments = arguments
            _of_process = None
            _of_loops.clear()


def _interrupts() -> WrongContext:
    return WrongContext(
        "the default Peer is being made at this moment, and this code interrupts it (a "
        "signal handler, say): make the Pub, Sub or Peer later, or the first one before"
    )


def default_peer(make: Callable[..., Peer]) -> Peer:
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
            raise _interrupts()
        _making.add(loop)
        try:
            if loop is None:
                peer = _of_process = make(**_arguments)
            else:
                for other in list(_of_loops):  # a Peer keeps its loop alive: no key goes by itself
                    if other.is_closed():
                        _of_loops.pop(other, None)
                peer = _of_loops[loop] = make(**_arguments)
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


def refuse_at_exit() -> None:
    """Raise `WrongContext` where nothing would close a new Peer any more: what its Pubs put would
    be lost without a word."""
    if _exiting:
        stay_at_exit()
        raise WrongContext(
            "the process is ending, and its Peers are closed already: an exit function that makes "
            "a Pub, Sub or Peer must be registered after `import pubsub`"
        )


def end_with_process(peer: Peer) -> None:
    """Have a Peer closed with its process, unless it is by then; also at the end of a
    multiprocessing child, where no atexit function runs."""
    process = sys.modules.get("multiprocessing.process")
    if (
        process is not None
        and process.parent_process() is not None
        and "multiprocessing" not in _registered
    ):
        _registered.add("multiprocessing")
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=100)
    for other in list(_peers):
        if other.runtime.finished:
            stats = other.runtime.watching.stats()
            with _counting:
                if other in _peers:
                    _past.take(stats)
                    _peers.discard(other)
            other.runtime.bury()
    _peers.add(peer)


def all_stats() -> list[Stats]:
    """What each Peer tells, and last, without a peer_id, what those had counted that are over. May
    be called from any thread."""
    with _counting:
        now = this_host().wall_clock()
        peers, past = list(_peers), _past.rows(now)
    return [*(peer.stats() for peer in peers), Stats(time=now, past=past)]


def end_last(close: Callable[[], None]) -> None:
    """Have this called at the end of the process, when its Peers are closed: a loop's thread that
    still ran when Python ends could crash it."""
    _last.append(close)


def ended(close: Callable[[], None]) -> None:
    """It was called already."""
    if close in _last:  # in a forked child it is not
        _last.remove(close)


def forget(peer: Peer) -> None:
    """It was never made: nobody closes it."""
    _peers.discard(peer)


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
    with contextlib.suppress(KeyboardInterrupt):
        while _last:
            _last.pop()()


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


def end_with_loop(runtime: Runtime) -> AsyncGenerator[None, None]:
    """Have a runtime closed with its loop: what this returns is to be held until then. A loop that
    is closed closes its Peers first: for all that it has run there may be messages that only wait
    for it to run on."""
    guard = _guard(runtime)
    with contextlib.suppress(StopIteration):
        guard.__anext__().send(None)  # to its `yield`, which is where the loop gets to know of it
    loop = runtime.loop
    close = loop.close
    if not (isinstance(close, functools.partial) and close.func is _close_loop):
        with contextlib.suppress(AttributeError):  # a loop that has no room for it
            loop.close = functools.partial(_close_loop, loop, close)  # type: ignore[method-assign]
    return guard


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


def _after_fork() -> None:
    """In the child: nothing of the parent's Peers may be used, and nothing of them may run."""
    global _of_process, _lock, _counting, _past, _exiting
    _exiting = False
    _lock, _counting = threading.RLock(), threading.RLock()
    _past = Past()
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
    _last.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
