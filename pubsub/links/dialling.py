"""Dialling: how many places that others have named are dialled at a time, and how soon again.

A coordinator says where publishers are, and may be wrong, or lie: it could name ten thousand at the
address of somebody who has nothing to do with them. So all that is dialled at its word waits here
for its turn; and where one attempt at an address failed, the next one has to wait, whomever it is
for. Who was met at an address, and showed there who it is, is dialled there again without: no lie
names such a place, and a thousand publishers are to come back at once when their network does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from pubsub.config import Address
from pubsub.links.keeping import explain
from pubsub.wire.liveness import Backoff

__all__ = ["AT_ONCE", "Dialling", "TriedLately"]

AT_ONCE = 8
"""Attempts that are under way at a time."""
AGAIN = 4
"""Those of them, at most, of whoever was not reached the last time: hosts that swallow what they
are sent keep nobody else waiting for longer than the first attempt takes."""
HASTE = 1.0
"""Seconds that the first attempt has to connect, where others wait."""
FORGOTTEN = 10.0
"""Seconds after which it does not count any more that an attempt failed there."""


class TriedLately(ConnectionError):
    """Somebody else was looked for at that address in vain, a moment ago."""


class _Failed:
    """The attempts at one address that failed."""

    __slots__ = ("backoff", "by", "until", "why")

    def __init__(self, random: Callable[[], float]) -> None:
        self.backoff = Backoff(random)
        self.until = 0.0
        self.by: object = None
        self.why = ""


class Dialling:
    """The turns of all who dial.

    Parameters:
        loop: theirs.
        random: for the time between attempts.

    Attributes:
        busy: how many attempts are under way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Callable[[], float]) -> None:
        self.busy = 0
        self._loop = loop
        self._random = random
        self._again = 0  # of those that are busy
        self._waiting: dict[bool, dict[asyncio.Future[None], None]] = {False: {}, True: {}}
        self._failed: dict[Address, _Failed] = {}
        self._look_at = 64  # so many are looked through for what may be forgotten

    async def dial(
        self,
        address: Address,
        who: object,
        again: bool,
        timeout: float,
        connect: Callable[[float], Awaitable[None]],
    ) -> None:
        """Dial it for that one, when it has its turn: `connect` is told how long that may take.

        Raises:
            TriedLately: not yet.
        """
        self.check(address, who)
        await self.enter(again)
        try:
            self.begin(address, who)
            try:
                await connect(self.timeout(timeout, again))
            except BaseException as error:
                self.failed(address, who, explain(error), getattr(error, "code", "") == "identity")
                raise
            self.worked(address)
        finally:
            self.leave(again)

    async def enter(self, again: bool) -> None:
        """Wait for a turn, and have it until `leave`. `again`: it was not reached the last time."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting[again][waiter] = None
        self._give()
        try:
            await waiter
        except BaseException:
            if self._waiting[again].pop(waiter, self) is self:  # it was given
                self.leave(again)
            raise

    def leave(self, again: bool) -> None:
        """The turn is over."""
        self.busy -= 1
        self._again -= again
        self._give()

    def _give(self) -> None:
        while self.busy < AT_ONCE:
            first, again = self._waiting[False], self._waiting[True]
            late = bool(again) and (not self._again or (not first and self._again < AGAIN))
            if not late and not first:
                return
            queue = again if late else first
            waiter = next(iter(queue))
            del queue[waiter]
            self.busy += 1
            self._again += late
            if waiter.cancelled():
                continue  # it gives back what it got
            waiter.set_result(None)

    def timeout(self, seconds: float, again: bool) -> float:
        """For how long whoever has its turn may try to connect."""
        return seconds if again or not self._waiting[False] else min(seconds, HASTE)

    def check(self, address: Address, who: object) -> None:
        """Whether it may be dialled for that one.

        Raises:
            TriedLately: not yet.
        """
        failed = self._failed.get(address)
        if failed is not None and failed.by is not who and self._loop.time() < failed.until:
            raise TriedLately(f"another was looked for there a moment ago: {failed.why}")

    def begin(self, address: Address, who: object) -> None:
        """It is dialled for that one, which has its turn. Where an attempt failed, there is one at
        a time: others wait until it is known how this one ends.

        Raises:
            TriedLately: not yet.
        """
        self.check(address, who)
        failed = self._failed.get(address)
        if failed is not None:
            failed.by, failed.until = who, math.inf

    def failed(self, address: Address, who: object, why: str, another: bool = False) -> None:
        """An attempt was in vain. `another`: somebody else lives there, as after a restart, who may
        be wanted too: he is dialled soon."""
        now = self._loop.time()
        if len(self._failed) >= self._look_at:
            kept = {a: f for a, f in self._failed.items() if now < f.until + FORGOTTEN}
            self._failed, self._look_at = kept, 64 + 2 * len(kept)
        failed = self._failed.get(address)
        if failed is None:
            failed = self._failed[address] = _Failed(self._random)
        if failed.by is who or now >= failed.until:  # of those that were under way, one counts
            failed.by, failed.why = who, why
            if another:
                failed.backoff = Backoff(self._random)
            failed.until = now + failed.backoff.delay()

    def worked(self, address: Address) -> None:
        """Somebody was met there."""
        self._failed.pop(address, None)
