"""Readiness: whether a Pub or Sub is ready, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pubsub.config import Settings
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication
from pubsub.core.stream import Stream
from pubsub.errors import AuthError, CoordinatorUnavailable
from pubsub.links.patience import Patience
from pubsub.runtime.clock import Clock
from pubsub.runtime.coordinator_link import Session
from pubsub.support.logs import logger
from pubsub.trust.guard import is_auth

__all__ = ["Readiness", "Ready"]

log = logger("pubsub")

MUTE_WAITS = 5
"""How often `connect_timeout` is waited again for what accepts the connection and does not answer:
it may be busy."""
LONELY = 5.0
"""Seconds for which a Sub may know of no publisher before the embedded coordinator is said to be a
likely reason."""


class Ready:
    """Whether a Pub or Sub is, which has that number, and who waits for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, number: int, of: Publication | Inbox
    ) -> None:
        self._loop = loop
        self.number = number
        self.of = of
        self.done = False
        self.error: Exception | None = None  # why it cannot be, for now
        self._waiters: list[asyncio.Future[None]] = []
        self.timer: Patience | None = None
        self.waited = 0  # how often for a coordinator that does not answer
        self.unsettled: set[Stream] = set()  # those of a Sub whose publishers are to answer

    def set(self, error: Exception | None = None) -> None:
        """It is, or cannot be for now."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.done = error is None
        self.error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        """Return when ready, or raise why it cannot be."""
        while not self.done:
            if self.error is not None:
                raise self.error.with_traceback(None)  # else each time makes it longer
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter


class Readiness:
    """All that is or will be ready in one process.

    Parameters:
        loop, settings, clock: of the runtime.
        sessions: with all coordinators; the list changes with what their names mean.
        given: the program names the coordinators, and the environment does not change that.
        alone: tells whether this process is its own coordinator, which is to be said once where a
            Sub may wait in vain for that; None: it never is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        sessions: list[Session],
        clock: Clock,
        *,
        given: bool,
        alone: Callable[[], bool] | None,
    ) -> None:
        self.mute_waits = MUTE_WAITS
        self._loop = loop
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._given = given
        self._alone = alone
        self._all: dict[int, Ready] = {}
        self._answers: dict[Session, set[int]] = {}
        self._contact = False  # some coordinator was reached once
        self._closing = False
        self._settle_timer: Patience | None = None
        self._lonely_timer: asyncio.TimerHandle | None = None

    # --- Pubs and Subs ------------------------------------------------------------------

    def add(self, number: int, of: Publication | Inbox) -> Ready:
        """It is registered now; fails where no coordinator was ever reached in time."""
        ready = self._all[number] = Ready(self._loop, number, of)
        if all(session.not_a_coordinator for session in self._sessions):
            self._loop.call_soon(self._give_up_on, ready)
        else:
            self._have_patience(ready)
        if self._alone and self._lonely_timer is None and isinstance(of, Inbox):
            self._lonely_timer = self._loop.call_later(LONELY, self._look_for_lonely, number)
        return ready

    def remove(self, number: int, why: Exception | None) -> None:
        """It is closed; `why` is for those who still wait. (None: they stay where they are.)"""
        ready = self._all.pop(number, None)
        for answered in self._answers.values():
            answered.discard(number)
        if ready is not None and not ready.done and why is not None:
            ready.set(why)

    def wait_for(self, stream: Stream) -> None:
        """Its Sub, unless it is ready, waits for that publisher too."""
        ready = self._all.get(stream.inbox.sub_id)
        if ready is not None and not ready.done:
            ready.unsettled.add(stream)

    def settled(self, stream: Stream) -> None:
        """A publisher has answered a subscription, or cannot be reached."""
        ready = self._all.get(stream.inbox.sub_id)
        if ready is not None and stream in ready.unsettled:
            ready.unsettled.discard(stream)
            self._check(ready)

    # --- coordinators -------------------------------------------------------------------

    def connected(self, session: Session) -> None:
        """It is up, and has still to answer."""
        self._contact = True
        self._answers[session] = set()
        for ready in self._all.values():
            ready.error = None  # there is hope again

    def answered(self, session: Session, number: int) -> None:
        """It has said all that it knows for that Pub or Sub."""
        self._answers.get(session, set()).add(number)
        ready = self._all.get(number)
        if ready is not None:  # else its making, and the undoing, were interrupted
            self._check(ready)

    def disconnected(self, session: Session) -> bool:
        """It is not up, and not waited for; returns whether all Pubs and Subs raise why, those that
        are made later too."""
        self.replaced(session)
        hopeless = not self._contact and all(s.not_a_coordinator for s in self._sessions)
        if hopeless:
            for ready in self._all.values():
                self._give_up_on(ready)
        for ready in list(self._all.values()):
            self._check(ready)
        return hopeless

    def replaced(self, session: Session) -> None:
        """Another one has its place."""
        self._answers.pop(session, None)

    def _have_patience(self, ready: Ready) -> None:
        timeout = self._settings.connect_timeout
        ready.timer = Patience(self._loop, timeout, lambda: self._give_up_on(ready))

    def _give_up_on(self, ready: Ready) -> None:
        if ready.done or ready.error is not None or self._closing:
            return
        mute = [session for session in self._sessions if session.mute]
        if mute and ready.waited < self.mute_waits:  # it will answer, or go
            ready.waited += 1
            self._have_patience(ready)
            if self._skip_silent_coordinators(ready):
                return
            for session in mute:
                session.complain_of_silence()
            return
        ready.set(self._unreachable())
        if isinstance(ready.of, Inbox):
            ready.of.on_entry()  # whoever waits for a message waits in vain

    def _unreachable(self) -> Exception:
        """Why nothing can be ready: no coordinator, or trouble of our own."""
        sessions = self._sessions
        for session in sessions:
            if session.own and session.failure is not None:
                return session.failure
        if all(s.failure is not None and is_auth(s.failure) for s in sessions):
            return AuthError("; ".join(f"the coordinator at {s}: {s.failure}" for s in sessions))
        why = "; ".join(f"{session}: {session.trouble}" for session in sessions)
        where = "give the address where" if self._given else "set PUBSUB_COORDINATOR to where"
        way_out = f"start one with `pubsubd coordinator`, or {where} it runs"
        if any(session.mute for session in sessions):
            way_out = f"have it go on, or end it; or {where} another one runs"
        return CoordinatorUnavailable(
            f"no coordinator could be reached ({why})",
            addresses=tuple(dict.fromkeys(str(session.address) for session in sessions)),
            way_out=way_out,
        )

    def _skip_silent_coordinators(self, ready: Ready) -> bool:
        """Where one coordinator has answered, one that is connected and does not is waited for no
        longer."""
        if not any(ready.number in answered for answered in self._answers.values()):
            return False
        for session, answered in self._answers.items():
            if ready.number not in answered:
                answered.add(ready.number)
                log.warning(
                    "the coordinator at %s has not answered for %g s; going on without it",
                    *(session, self._settings.connect_timeout),
                    address=session,
                )
        self._check(ready)
        return True

    # --- ready --------------------------------------------------------------------------

    def _answered_by_all(self, ready: Ready) -> bool:
        """Whether each coordinator that is up has said all it knows, and at least one is."""
        return (
            bool(self._answers)
            and all(session.tried for session in self._sessions)
            and all(ready.number in answered for answered in self._answers.values())
        )

    def _check(self, ready: Ready) -> None:
        if not self._answered_by_all(ready):
            return
        if not ready.done and not ready.unsettled:
            ready.set()
        if isinstance(ready.of, Publication):
            now = self._clock.now()
            ready.of.answered(now)
            self._settle(ready.of)
            if not ready.of.settled:
                self._clock.arm(now + self._settings.join_timeout)

    def _settle(self, publication: Publication) -> None:
        """Stop keeping a Pub's first messages once no older Sub can turn up."""
        if publication.settled or any(session.awaited for session in self._sessions):
            return  # where a coordinator is down, the join timeout ends it
        wait = max(s.settled_at for s in self._sessions if s.up) - self._loop.time()
        if wait <= 0:
            publication.settle()
        elif self._settle_timer is None:
            self._settle_timer = Patience(self._loop, wait, self._settle_all)

    def _settle_all(self) -> None:
        self._settle_timer = None
        for ready in list(self._all.values()):
            if isinstance(ready.of, Publication) and self._answered_by_all(ready):
                self._settle(ready.of)

    def _look_for_lonely(self, oldest: int) -> None:
        """Say of a Sub that still knows of no publisher that they may be registered elsewhere.
        `oldest`: the Subs from there on came since the timer was set, the first of them with it."""
        self._lonely_timer = None
        lonely = {
            number: ready.of.pattern
            for number, ready in self._all.items()
            if number >= oldest and isinstance(ready.of, Inbox) and ready.of.lonely
        }
        pattern = lonely.pop(oldest, None)
        if pattern is not None and self._alone is not None and self._alone():
            self._alone = None
            log.warning(
                "nothing publishes on %r and this process is its own coordinator (nothing listened "
                "on %s): set PUBSUB_COORDINATOR to where the others' runs",
                pattern,
                self._sessions[0].address,
                topic=pattern,
                address=self._sessions[0].address,
            )
        elif lonely:
            self._lonely_timer = self._loop.call_later(LONELY, self._look_for_lonely, min(lonely))

    # --- the end ------------------------------------------------------------------------

    def close(self) -> None:
        """Nobody is given up any more: soon all is closed."""
        self._closing = True

    def stop(self) -> None:
        """All is closed."""
        for timer in (self._settle_timer, self._lonely_timer):
            if timer is not None:
                timer.cancel()
