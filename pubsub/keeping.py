"""Keeping: one connection that is dialled again for as long as it is wanted.

What a session with a coordinator and the link to a publisher have in common: they try the places
where the other end may be, one after the other, wait longer after each time that none of them
answers, say once that there is trouble and once that it is over, and begin anew when the
connection breaks.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from pubsub.config import Settings, Way
from pubsub.core.handshake import Dialler, Other
from pubsub.core.liveness import Backoff
from pubsub.errors import ProtocolError, PubSubError
from pubsub.link import Core, Link, dial
from pubsub.logs import logger

__all__ = ["KeptLink", "explain"]

log = logger("pubsub")

Trouble = tuple[Way, Exception]
"""A place that was tried, and why in vain."""


class KeptLink:
    """The connection, and the endpoint of its link. Subclasses say what it is for.

    Attributes:
        link: the connection, from its dialling to its end.
        up: connected, handshake done.
    """

    WHO = "the other end"
    """Whom it connects to, for logs."""
    MISSED = "cannot reach {who} at {trouble}; trying on"
    FOUND = "{who} at {where} is reached now"
    AT_ONCE = True
    """Whether a link that was stable is dialled again without a delay."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        scratch: bytearray,
        random: Callable[[], float],
    ) -> None:
        self.link: Link | None = None
        self.up = False
        self._loop = loop
        self._settings = settings
        self._scratch = scratch
        self._backoff = Backoff(random)
        self._task: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[None] | None = None
        self._broken_at: float | None = None
        self._opened_at = 0.0
        self._warned = False
        self._closed = False

    # --- what subclasses say ------------------------------------------------------------

    def _ways(self) -> Sequence[Way]:
        """Where the other end may be; the best first."""
        raise NotImplementedError

    async def _introduce(self, local_host: str) -> Dialler:
        """What to say on a connection that was made from that address of ours."""
        raise NotImplementedError

    def _wanted(self) -> bool:
        """Whether to dial, and to dial again."""
        return not self._closed

    def _begin(self, link: Link, other: Other) -> Core:
        """It is up."""
        raise NotImplementedError

    def _missed(self, troubles: Sequence[Trouble]) -> None:
        """All places were tried in vain."""

    def _over(self, link: Link, error: Exception | None) -> None:
        """It was up and is not any more; without an error if it ended in order."""

    # --- dialling -----------------------------------------------------------------------

    def _dial(self, delay: float = 0.0) -> None:
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run(delay), name=f"pubsub dial {self.WHO}")

    async def _run(self, delay: float) -> None:
        while True:
            if delay:
                await asyncio.sleep(delay)
            troubles: list[Trouble] = []
            for way in self._ways():
                if not self._wanted():
                    return
                try:
                    await self._connect(way)
                except (OSError, PubSubError, asyncio.TimeoutError, ValueError) as error:
                    troubles.append((way, error))  # ValueError: a host that is no name
                except Exception as error:  # never stop trying
                    log.exception("internal error while dialling %s", way)
                    troubles.append((way, error))
                else:
                    break
            else:
                self._in_vain(troubles)
            if self.up or not self._wanted():
                return
            delay = self._backoff.delay()

    async def _connect(self, way: Way) -> None:
        answer = self._answer = self._loop.create_future()
        answer.add_done_callback(_look_at)
        link = self.link = Link(self._loop, None, self, self._settings, self._scratch)
        try:
            transport = await dial(link, way.host, way.port, self._settings.connect_timeout)
            local = transport.get_extra_info("sockname")
            link.begin(await self._introduce(local[0] if local else ""))
            await answer
        except BaseException:
            if not self.up:
                self.link = None
                link.abort()
            raise

    def _in_vain(self, troubles: Sequence[Trouble]) -> None:
        if not self._wanted():
            return
        if self._broken_at is None:
            self._broken_at = self._loop.time()
        if not self._warned and troubles:
            self._warned = True
            text = ", nor at ".join(f"{way}: {explain(error)}" for way, error in troubles)
            log.warning("%s", self.MISSED.format(who=self.WHO, trouble=text))
        self._missed(troubles)

    # --- the link's endpoint ------------------------------------------------------------

    def opened(self, link: Link, other: Other) -> Core:
        """See `Endpoint`."""
        self.up = True
        self._opened_at = self._loop.time()
        self._broken_at = None
        if self._warned:
            self._warned = False
            log.warning("%s", self.FOUND.format(who=self.WHO, where=self._ways()[0]))
        core = self._begin(link, other)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
        if self._closed:
            link.goodbye()
        return core

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        if link is not self.link:
            return
        self.link = None
        if not self.up:
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(error or ConnectionError("it said goodbye"))
            return
        self.up = False
        self._broken_at = self._loop.time()
        self._over(link, error)
        # one that opens and breaks at once, breaks the protocol or sends us away is dialled with
        # growing delays: two that displace each other have their turns
        unwanted = link.cut or isinstance(error, ProtocolError)
        stable = self._backoff.lived(0.0 if unwanted else self._broken_at - self._opened_at)
        if self._wanted():
            self._dial(0.0 if stable and self.AT_ONCE else self._backoff.delay())

    def close(self) -> None:
        """Say GOODBYE, and stop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self.link is not None:
            self.link.goodbye()


def _look_at(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting any more for an attempt that failed."""
    if not future.cancelled():
        future.exception()


def explain(error: Exception) -> str:
    """One short line of why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
