"""What a Sub of Dask's face takes from: the Sub behind it, or a thread that takes for loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, NamedTuple

import distributed

from pubsub import Closed, DecodeError, Sub
from pubsub.dask.homes import ENDED, Home

__all__ = ["Pump", "Source", "Timeout"]

AHEAD = 64
"""Messages that wait here, decoded, before the thread takes no more; what it takes at once."""

Timeout: type[Exception] = TimeoutError
"""Of all three kinds, which are one from Python 3.11 on."""
if not issubclass(TimeoutError, (asyncio.TimeoutError, distributed.TimeoutError)):
    _kinds = dict.fromkeys((asyncio.TimeoutError, distributed.TimeoutError, TimeoutError))
    Timeout = type("Timeout", tuple(_kinds), {"__doc__": "A time to wait is over."})


class Source:
    """The Sub behind that of the face. Where the scheduler was started anew, another one, in the
    next home, takes its place, whoever waits meanwhile."""

    def __init__(self, home: Home, topic: str) -> None:
        self.home = home
        self.topic = topic
        self.door = threading.Lock()
        self.sub: Sub | None = None
        self.ended = False
        self.told = 0  # lost, and it was said
        self._before: list[Sub] = []

    def open(self) -> None:
        self.sub = self.home.sub(self.topic, self)

    def get(self, timeout: float | None) -> Any:
        while True:
            sub = self._sub()
            try:
                return sub.get(timeout)
            except Closed:
                if sub is self.sub:
                    raise Closed(ENDED) from None
            except TimeoutError as error:
                raise Timeout(*error.args) from None

    def get_many(self, most: int) -> list[Any]:
        while True:
            sub = self._sub()
            try:
                found: list[Any] = sub.get_many(most)
                return found
            except Closed:
                if sub is self.sub:
                    raise Closed(ENDED) from None

    def _sub(self) -> Sub:
        if self.sub is None:
            raise Closed(f"the Sub on {self.topic!r} could not be opened")
        return self.sub

    def move(self, home: Home) -> None:
        """Go on there."""
        if self.ended or self.sub is None:
            return
        before, self.home = self.sub, home
        self.open()
        self._before.append(before)

    @property
    def lost(self) -> int:
        return sum(sub.lost for sub in (*self._before, self.sub) if sub is not None)

    @property
    def publishers(self) -> dict[str, dict[str, Any]]:
        return {} if self.sub is None else self.sub.publishers

    def drop(self) -> None:
        """Nobody holds it any more. (From a finalizer: it only tells the keeper.)"""
        self.ended = True
        self.home.dropped.put(self)

    def close(self) -> None:
        """See `Home.dropped`."""
        if self.sub is not None:
            self.sub.close()


class _Failed(NamedTuple):
    """In the place of a message that cannot be decoded."""

    error: DecodeError


class _Waiter:
    """Who waits for a message: a task of that loop, or, without one, a thread."""

    __slots__ = ("_event", "_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._future = None if loop is None else loop.create_future()
        self._event = threading.Event() if loop is None else None

    def wake(self) -> bool:
        """False: its loop is closed."""
        if self._loop is None:
            assert self._event is not None
            self._event.set()
            return True
        try:
            self._loop.call_soon_threadsafe(self._done)
        except RuntimeError:
            return False
        return True

    def _done(self) -> None:
        assert self._future is not None
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout: float | None) -> None:
        """Until then, or woken. A thread's suspends nothing."""
        if self._event is not None:
            self._event.wait(timeout)
        else:
            assert self._future is not None
            await asyncio.wait((self._future,), timeout=timeout)


class Pump:
    """A thread that takes messages from a Source for those who await them, and does not outlive it.

    From its start on, all that is taken of a Sub passes here, also what a thread gets.
    """

    def __init__(self, source: Source) -> None:
        self.opened = threading.Event()  # or it cannot be
        self._source = source
        self._taken: deque[Any] = deque()
        self._error: BaseException | None = None  # nothing comes any more
        self._lock = threading.Lock()  # of the waiters; held for no call of anybody else's
        self._waiters: deque[_Waiter] = deque()
        self._room = threading.Event()
        threading.Thread(target=self._run, name="pubsub.dask sub", daemon=True).start()

    def _run(self) -> None:
        source = self._source
        try:
            if source.sub is None:
                source.open()
            self.opened.set()
            while not source.ended:
                try:
                    self._taken.extend(source.get_many(AHEAD))
                except DecodeError as error:
                    self._taken.append(_Failed(error))
                self._wake(len(self._taken))
                self._wait_for_room()
        except BaseException as error:
            self._error = error.with_traceback(None)  # which would keep this frame, and with it us
            self.opened.set()
            self._wake(len(self._waiters))
        if source.ended:  # while it was opened, maybe, so that the keeper found nothing to close
            source.close()

    def _wait_for_room(self) -> None:
        while len(self._taken) >= AHEAD and not self._source.ended:
            self._room.clear()
            if len(self._taken) < AHEAD:
                return
            self._room.wait(1.0)  # whether it has ended, nobody says

    def _wake(self, most: int) -> None:
        while most > 0:
            with self._lock:
                if not self._waiters:
                    return
                waiter = self._waiters.popleft()
            most -= waiter.wake()

    def _pop(self) -> Any:
        """The next message; raises IndexError where none is here."""
        try:
            value = self._taken.popleft()
        except IndexError:
            if (error := self._error) is not None and not self._taken:
                raise error.with_traceback(None) from None  # else each time makes it longer
            raise
        if not self._room.is_set():
            self._room.set()
        if type(value) is _Failed:
            raise value.error
        return value

    def _enlist(self, loop: asyncio.AbstractEventLoop | None) -> _Waiter:
        """One more waits. It is to look again before it does: something may have come before."""
        waiter = _Waiter(loop)
        with self._lock:
            self._waiters.append(waiter)
        return waiter

    def _withdraw(self, waiter: _Waiter) -> None:
        """It waits no more; where it had been woken for a message, the next one is."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                return
        if self._taken:
            self._wake(1)

    def get(self, timeout: float | None) -> Any:
        try:
            return self._pop()
        except IndexError:
            pass
        try:
            self._take(timeout, None).send(None)
        except StopIteration as taken:
            return taken.value
        raise AssertionError("a thread's wait suspends nothing")

    def aget(self, timeout: float | None) -> Coroutine[Any, Any, Any]:
        return self._take(timeout, asyncio.get_running_loop())

    async def _take(self, timeout: float | None, loop: asyncio.AbstractEventLoop | None) -> Any:
        """The next message, for a task of that loop; without one, for this thread, which runs it
        to its end at once."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._pop()
            except IndexError:
                waiter = self._enlist(loop)
            try:
                if not self._taken and self._error is None:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise Timeout(self._nothing(timeout))
                    await waiter.wait(left)
                return self._pop()
            except IndexError:
                pass
            finally:
                self._withdraw(waiter)

    def _nothing(self, timeout: float | None) -> str:
        if timeout == 0:  # who polls pays for no walk over all publishers
            return f"nothing waits on {self._source.topic!r}"
        states = [row["state"] for row in self._source.publishers.values()]
        return (
            f"nothing came on {self._source.topic!r} within {timeout:g} s "
            f"(publishers connected: {states.count('attached')} of {len(states)})"
        )

    async def ready(self) -> None:
        if not self.opened.is_set():
            await asyncio.to_thread(self.opened.wait)
        if self._error is not None and not self._taken:
            raise self._error.with_traceback(None)

    def __len__(self) -> int:
        return len(self._taken)

    def clear(self) -> None:
        """Give up all that waits here."""
        self._taken.clear()
        self._room.set()
