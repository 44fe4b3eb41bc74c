"""The face of a Sub inside an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from operator import length_hint
from typing import TYPE_CHECKING, Any, NoReturn

from pubsub.config import seconds, whole
from pubsub.core.window import Credit
from pubsub.errors import Closed, WrongContext
from pubsub.faces.account import timeout_text
from pubsub.faces.elsewhere import DONE, begin, elsewhere
from pubsub.faces.face import InLoop
from pubsub.faces.message import Gap, Message
from pubsub.faces.sub import NOTHING, Sub, take_more
from pubsub.support.reentry import running_loop

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncSub"]

TAKE_SLICE_SECONDS = 0.01
"""Seconds for which batches that wait already are handed out before the loop runs. Nothing else
runs meanwhile: no timer, no heartbeat, and no acknowledgement, which publishers wait for."""


class AsyncSub(InLoop, Sub, blocking=False):
    """A Sub inside an event loop."""

    def _open(self) -> None:
        self._waiting: set[asyncio.Future[bool]] = set()
        self._in_a_row = 0  # batches that were taken since it has waited
        self._began = 0.0  # when more than one was for the first time; 0: not yet
        super()._open()

    def _on_consumed(self) -> Callable[[Credit, int], None]:
        return self._runtime.turn.consumed

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(True)
        self._waiting.clear()

    async def _arrival(self, deadline: float | None = None) -> bool:
        """Wait until something may be there; False: time ran out. Cancelling it loses nothing:
        messages are taken only after it."""
        runtime = self._runtime
        loop = runtime.loop
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = None
        if self._taken_at:
            self._idle()
        try:
            self._waiting.add(waiter)
            runtime.turn.hasten()
            if deadline is not None:
                timer = loop.call_at(deadline, _time_out, waiter)
            return await waiter
        finally:
            self._began = self._in_a_row = 0
            self._waiting.discard(waiter)
            if timer is not None:
                timer.cancel()

    def _check(self) -> None:
        if self._dead is not None or self._held is not None or self._ready.error is not None:
            super()._check()
        if running_loop() is not self._runtime.loop:
            self._check_place()

    def _long_enough(self) -> bool:
        """Whether it is time to let the loop run, before the next batch is taken: asked once for
        each, whatever the answer, so that a loop that is always late stops nobody. (Not behind it:
        who takes a batch hands it out at once, lest another task, which runs meanwhile, takes the
        next one in its place.)"""
        now = self._stopwatch()
        began = self._began
        if began and now - began < TAKE_SLICE_SECONDS:
            return False
        self._began = now
        return began > 0

    async def get(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout is not self._timeout:
            seconds("timeout", timeout)  # what is no time is refused before anything is taken
            self._timeout = timeout
        waits = timeout is None or timeout > 0
        deadline = None
        while True:
            value = next(self._values, NOTHING)
            if value is not NOTHING:
                return value
            if self._in_a_row > 1 and waits and self._long_enough():
                await asyncio.sleep(0)
                if length_hint(self._values):
                    continue
            self._gaps.clear()
            self._check()
            if self._advance():
                self._in_a_row += 1
                continue
            if timeout is not None:
                timeout = seconds("timeout", timeout)
            if waits and timeout is not None and deadline is None:
                deadline = self._runtime.loop.time() + timeout
            if not (waits and await self._arrival(deadline)):
                raise TimeoutError(timeout_text(self, timeout))

    async def get_many(self, max: int = 1000, timeout: float | None = None) -> list[Any]:
        max = whole("max", max, 1)
        timeout = seconds("timeout", timeout)
        waits = timeout is None or timeout > 0
        self._in_a_row += 1  # `take_more` goes over batches, and `get` would not ask for any
        if self._in_a_row > 1 and waits and self._long_enough():
            await asyncio.sleep(0)
        found = [await self.get(timeout)]
        try:
            take_more(self, found, max)
        except BaseException:  # a signal handler's
            self._drop(found)
            raise
        return found

    def __aiter__(self) -> AsyncIterator[Any]:
        return _AsyncIterator(self._each_value)

    def messages(self) -> AsyncIterator[Message | Gap]:
        return _AsyncIterator(self._each_event)

    async def _each_value(self, of: weakref.ref[_AsyncIterator]) -> AsyncGenerator[Any, None]:
        try:
            while True:
                for value in self._values:
                    yield value
                if self._in_a_row > 1 and self._long_enough():
                    await asyncio.sleep(0)
                if length_hint(self._values):
                    continue  # meanwhile, another task has gone on to the next batch
                self._gaps.clear()
                if isinstance(self._dead, Closed):
                    return
                self._check()
                if self._advance():
                    self._in_a_row += 1
                else:
                    await self._arrival()
        except GeneratorExit:
            raise
        except BaseException:
            _failed(of)
            raise

    async def _each_event(
        self, of: weakref.ref[_AsyncIterator]
    ) -> AsyncGenerator[Message | Gap, None]:
        try:
            while True:
                while (event := self._event()) is not None:
                    yield event
                if self._in_a_row > 1 and self._long_enough():
                    await asyncio.sleep(0)
                    if self._gaps or length_hint(self._values):
                        continue
                if isinstance(self._dead, Closed):
                    return
                self._check()
                if self._advance():
                    self._in_a_row += 1
                else:
                    await self._arrival()
        except GeneratorExit:
            raise
        except BaseException:
            _failed(of)
            raise

    def close(self) -> Awaitable[None]:
        if self._dead is None:
            runtime = self._runtime
            if elsewhere(runtime.loop, runtime.thread):
                return begin(runtime.loop, self.close)
            runtime.close_sub(self._inbox.sub_id)
            self._finalizer.detach()
            self._abandon(Closed(f"Sub({self.topic!r}) is closed"))
        return DONE

    def _abandon(self, error: Exception) -> None:
        self._stop(error)
        self._discard()
        if not self._runtime.exiting:  # else who waits stays where it is, as in a daemon thread
            self._wake()

    def __iter__(self) -> NoReturn:
        raise WrongContext("in an event loop iterate a Sub by `async for`, not `for`")


class _AsyncIterator:
    """Goes over a Sub by an asynchronous generator, and by a new one when that has ended by an
    exception: a wait that is cancelled ends a generator, and must not end the iteration.

    What calls `__anext__` looks it up in the class, finds a slot, and so calls what this has: the
    generator's own, all of it in C. A message costs 14 ns more than with the generator alone, where
    an `async def __anext__` would cost 35 ns more.
    """

    __slots__ = ("__anext__", "__weakref__", "_each", "_generator")

    if TYPE_CHECKING:

        async def __anext__(self) -> Any: ...

    def __init__(
        self, each: Callable[[weakref.ref[_AsyncIterator]], AsyncGenerator[Any, None]]
    ) -> None:
        self._each = each
        self._begin()

    def _begin(self) -> None:
        self._generator = self._each(weakref.ref(self))
        self.__anext__ = self._generator.__anext__  # type: ignore[method-assign]

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """End the iteration."""
        await self._generator.aclose()


def _failed(of: weakref.ref[_AsyncIterator]) -> None:
    """A generator ends by an exception: whoever goes on has a new one."""
    iterator = of()
    if iterator is not None:
        iterator._begin()


def _time_out(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
