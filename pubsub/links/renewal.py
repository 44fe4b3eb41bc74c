"""Renewal: credentials that change while a process runs.

Their files are read in a thread of our own, once a minute or when told to. What is good there from
then on counts for new connections; those that stand on what is not there any more are ended, and
dialled again under what is. What is missing or wrong changes nothing, and is warned of.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from pubsub.errors import AuthError
from pubsub.links.link import Link
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard

__all__ = ["EVERY", "Renewal"]

log = logger("pubsub")

EVERY = 60.0
"""Seconds between two looks at the files."""
SOON = 14 * 86_400.0
"""Seconds before its end in which a certificate is warned of, once a day."""
DAY = 86_400.0


class Renewal:
    """Looks after the credentials of some guards, and the links that stand on them.

    Parameters:
        loop: whose timer it is.
        guards: those that are to have what is read, the first of them reads.
        links: those that may have to end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        guards: Callable[[], list[Guard]],
        links: Callable[[], Iterable[Link]],
    ) -> None:
        self._loop = loop
        self._guards = guards
        self._links = links
        self.on_review: Callable[[], object] = lambda: None
        """Called when what counts may be another than before."""
        self._reading = False
        self._warned_of_end = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on. Nothing is there to look at where no file was configured."""
        if self._guards()[0].renews:
            self._timer = self._loop.call_later(EVERY, self._again)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._timer = self._loop.call_later(EVERY, self._again)
        self.look()

    def look(self) -> None:
        """Read the files, and act on what is there; not waited for."""
        guard = self._guards()[0]
        if self._reading or not guard.renews:
            return
        self._reading = True
        process = os.getpid()

        def read() -> None:
            found: Any
            try:
                found = guard.read()
            except Exception as error:  # else nobody would look again, at anything
                found = error
            if os.getpid() == process:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._act, found)

        try:
            threading.Thread(target=read, name="pubsub credentials", daemon=True).start()
        except RuntimeError:  # the interpreter ends
            self._reading = False

    def _act(self, found: Any) -> None:
        self._reading = False
        try:
            if isinstance(found, Exception):
                raise found
            for guard in self._guards():
                guard.renew(found)
        except (AuthError, OSError, ValueError) as error:
            log.warning("%s; what was read before still counts", error)
        except Exception:
            log.exception("internal error while credentials were read; those before still count")
        self._warn_of_end()
        self.review()

    def review(self) -> None:
        """End the links that stand on what does not count any more."""
        self.on_review()
        now = this_host().wall_clock()
        for link in list(self._links()):
            if link.other is None or link.closing:
                continue
            standing = link.other.standing
            if now > standing.until:
                log.warning("%s: the certificate of %r has expired", link, standing.name, of=link)
                link.renew()
            elif not self._guards()[0].counts(standing):
                log.info("%s: what it stands on counts no more", link, of=link)
                link.renew()

    def _warn_of_end(self) -> None:
        until = self._guards()[0].until
        now = this_host().wall_clock()
        if until - now < SOON and now - self._warned_of_end >= DAY:
            self._warned_of_end = now
            days = max(0, int((until - now) // DAY))
            log.warning(
                "the certificate of this process ends in %d days: issue a new one in its place "
                "(pubsubd cert issue); no program needs to be started anew",
                days,
            )
