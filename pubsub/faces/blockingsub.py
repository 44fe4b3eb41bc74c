"""The face of a Sub outside event loops, for any thread."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from pubsub.config import seconds, whole
from pubsub.core.window import Credit
from pubsub.errors import Closed, WrongContext
from pubsub.faces.account import timeout_text
from pubsub.faces.face import Blocking
from pubsub.faces.message import Gap, Message
from pubsub.faces.process import stay_at_exit
from pubsub.faces.sub import NOTHING, Sub, take_more
from pubsub.support.reentry import running_loop

__all__ = ["BlockingSub"]


class BlockingSub(Blocking, Sub, blocking=True):
    """A Sub outside event loops, for any thread."""

    def _open(self) -> None:
        self.peer._refuse_in_loop("Sub(peer=…)")
        self._taking: Any = threading.RLock()  # it knows who holds it; nobody takes it twice
        self._arrived: SimpleQueue[None] = SimpleQueue()  # a token for the one that waits
        self._waiting = False
        super()._open()

    def _on_consumed(self) -> Callable[[Credit, int], None]:
        call_soon, consumed = self.peer._call_soon, self._runtime.turn.consumed
        return lambda credit, stage: call_soon(consumed, credit, stage)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting = False
            self._arrived.put(None)

    def _refill(self, deadline: float | None) -> bool:
        """Have messages to hand out; False: time ran out. Raises as `get` does."""
        if running_loop() is not None:
            self.peer._refuse_in_loop("this Sub")
        taking = self._taking
        if taking._is_owned():
            raise WrongContext(
                f"a get on Sub({self.topic!r}) from within another get on the same Sub (from a "
                "signal handler or a destructor): it would have to wait for the one that it "
                "interrupts"
            )
        left = None if deadline is None else _left(deadline)
        try:  # inside `try`, no interrupt leaves the lock behind
            if not taking.acquire(timeout=-1 if left is None else max(0, left)):
                return False
            while True:
                if operator.length_hint(self._values) or self._gaps:
                    return True  # another thread has been here
                self._check()
                if self._advance():
                    return True
                if self._taken_at:
                    self._idle()
                self._waiting = True
                try:
                    if self._inbox.empty and self._over is None:
                        left = None if deadline is None else _left(deadline)
                        if left is not None and left <= 0:
                            return False
                        self._arrived.get(timeout=left)  # may be one token too many: then again
                except Empty:
                    pass
                finally:
                    self._waiting = False
        finally:
            try:  # at once: a call of ours might be interrupted before it does anything
                taking.release()
            except RuntimeError:  # it was interrupted while it waited for the lock
                pass
            if self._over is not None:  # closed meanwhile, by who could not wait for us
                self._try_discard()

    def _unless_taking(self, do: Callable[..., None], *args: Any) -> None:
        """Do that, unless somebody is taking."""
        taking = self._taking
        if taking._is_owned():
            return
        try:
            if taking.acquire(blocking=False):
                do(*args)
        finally:
            try:
                taking.release()
            except RuntimeError:
                pass

    def _try_discard(self) -> None:
        """Give up what waits, unless somebody is taking: who does will do it then."""
        self._unless_taking(self._discard)

    def get(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout is not self._timeout:
            seconds("timeout", timeout)  # what is no time is refused before anything is taken
            self._timeout = timeout
        deadline: float | None = None
        while True:
            value = next(self._values, NOTHING)
            if value is not NOTHING:
                return value
            self._gaps.clear()
            if timeout is not None and deadline is None:
                timeout = seconds("timeout", timeout)
                deadline = time.monotonic() + timeout  # type: ignore[operator]  # it is not None
            try:
                if not self._refill(deadline):
                    raise TimeoutError(timeout_text(self, timeout))
            except Closed:
                stay_at_exit()
                raise

    def get_many(self, max: int = 1000, timeout: float | None = None) -> list[Any]:
        max = whole("max", max, 1)
        found = [self.get(timeout)]
        try:  # where another thread is taking, it waits for what comes next
            self._unless_taking(take_more, self, found, max)
        except BaseException:  # a signal handler's
            self._drop(found)
            raise
        finally:
            if self._over is not None:
                self._try_discard()
        return found

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[Iterator[Any]]:
        """What is decoded, again and again: its messages are then handed out in C."""
        while True:
            yield self._values
            self._gaps.clear()
            try:
                self._refill(None)
            except Closed:
                return

    def messages(self) -> Iterator[Message | Gap]:
        while True:
            while (event := self._event()) is not None:
                yield event
            try:
                self._refill(None)
            except Closed:
                return

    def close(self) -> None:
        if self._dead is not None:
            return
        sub_id = self._inbox.sub_id
        try:
            self.peer._call(self._runtime.close_sub, sub_id)
        except WrongContext:  # it would wait for what it interrupts: done soon
            self._runtime.drop_sub(sub_id)
        except Closed:  # the Peer is, and with it everything
            pass
        self._finalizer.detach()  # not before: an interrupt may have prevented it
        self._abandon(Closed(f"Sub({self.topic!r}) is closed"))

    def _abandon(self, error: Exception) -> None:
        """See `Sink`. It waits for nobody: the loop's thread calls it, and signal handlers."""
        if isinstance(error, WrongContext):  # after a fork: whoever held a lock is not here
            self._taking = threading.RLock()
            self._arrived = SimpleQueue()
        self._stop(error)
        self._try_discard()
        self._wake()

    def __aiter__(self) -> NoReturn:
        raise WrongContext(
            "this Sub was made outside an event loop: iterate it by `for`, or make it inside the "
            "loop for `async for`"
        )


def _left(deadline: float) -> float:
    """Seconds until then, as many as a thread can wait."""
    return min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
