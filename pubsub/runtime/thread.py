"""The thread of a blocking Peer: it runs an event loop of its own, uvloop's where there is one."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import selectors
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pubsub.errors import Closed, WrongContext
from pubsub.support.apart import apart

try:  # what uvloop imports and could not any more once the main thread has ended
    import concurrent.futures.thread
except RuntimeError:
    pass  # it has, and this package is imported by an exit function

__all__ = ["LoopThread", "in_one", "new_loop", "refuse_green"]

T = TypeVar("T")
P = ParamSpec("P")

GREEN = {
    "gevent": "gevent.monkey.patch_all(thread=False, select=False)",
    "eventlet": "eventlet.monkey_patch(thread=False, select=False)",
}
ENDING = (
    "Python is ending and starts no thread any more: make the first Pub, Sub or Peer before the "
    "main thread ends"
)

_here = threading.local()
"""`is_ours`: this thread runs the loop of a Peer."""


def in_one() -> bool:
    """Whether this thread is one of these."""
    return getattr(_here, "is_ours", False)


class LoopThread:
    """See the module."""

    def __init__(self) -> None:
        refuse_green()
        self._begun = False  # or failed to begin
        self._failure: RuntimeError | None = None
        self._stopped = False
        self._door = threading.RLock()  # nothing is given to the loop after it was told to stop
        # Made by who calls: it may have greenlets (eventlet's sockets do), and those of a thread
        # that ends soon can take the process with them.
        self.loop = new_loop()
        self.loop.call_soon(self._enter)
        # No function of ours lies below all that runs there: see `interrupts_the_core`.
        self._thread = threading.Thread(target=self.loop.run_forever, name="pubsub", daemon=True)

    def start(self) -> asyncio.AbstractEventLoop:
        """Run the loop; returns it."""
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
            if not threading.main_thread().is_alive():
                raise WrongContext(ENDING) from self._failure  # Python 3.12 starts none then
            raise self._failure
        return self.loop

    def _begin(self, begun: _thread.LockType) -> None:
        """Start the thread. Not in the main thread: a signal handler that raises within that leaves
        it half started, and whoever waits for it would wait for ever."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._failure = error
        finally:
            self._begun = True
            begun.release()

    def _enter(self) -> None:
        _here.is_ours = True
        asyncio.set_event_loop(self.loop)

    @property
    def here(self) -> bool:
        """Whether it is this thread that asks."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
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
            if self._stopped:
                return
            self._stopped = True
        if self._begun and self._failure is None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result()
            self.loop.call_soon_threadsafe(self.loop.stop)
            if threading.current_thread() is self._thread:
                return
            self._thread.join()
        self.loop.close()


def refuse_green(needed: Any = None) -> None:
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
def new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform != "win32":
        try:
            import uvloop
        except (ImportError, RuntimeError):  # see the import of concurrent.futures.thread
            pass
        else:
            return uvloop.new_event_loop()
    refuse_green(selectors.DefaultSelector)
    return asyncio.new_event_loop()
