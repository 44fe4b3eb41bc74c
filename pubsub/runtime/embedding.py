"""The coordinator that a process starts within itself, where none is named and none is there."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from pubsub.config import Address, Settings
from pubsub.links.link import Link
from pubsub.links.renewal import Renewal
from pubsub.support.logs import logger
from pubsub.trust.guard import Guard

if TYPE_CHECKING:
    from pubsub.coordinator.server import Coordinator

__all__ = ["Embedded"]

log = logger("pubsub")


class Embedded:
    """The coordinator of this process, if it has become one.

    Parameters:
        loop, settings, guard: of the process.
        renewal: looks at its credentials; a coordinator tells others what it found revoked.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        guard: Guard,
        renewal: Renewal,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._guard = guard
        self._renewal = renewal
        self.coordinator: Coordinator | None = None

    async def start(self, address: Address) -> bool:
        """Start a coordinator in this process; True also where another one was faster. It is one
        at most, and none that nobody would take for one: both would only keep the port from others.
        """
        from pubsub.coordinator.server import Coordinator  # only where it is needed

        if self.coordinator is not None or not self._guard.rights.coordinator:
            return False
        coordinator = Coordinator(self._loop, settings=self._settings, guard=self._guard.twin())
        try:
            await coordinator.start(address.host, address.port)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        self.coordinator = coordinator
        self._renewal.on_review = coordinator.tell_revoked
        log.info(
            "nothing listened on %s: this process is the coordinator now", address, address=address
        )
        return True

    @property
    def links(self) -> list[Link]:
        """All connections with it."""
        return [] if self.coordinator is None else self.coordinator.links

    @property
    def guards(self) -> list[Guard]:
        """How these are secured."""
        return [] if self.coordinator is None else [self.coordinator.guard]

    async def close(self) -> None:
        """End it in order."""
        if self.coordinator is not None:
            await self.coordinator.close()

    def cut(self) -> None:
        """End it, and wait for nothing."""
        if self.coordinator is not None:
            self.coordinator.cut()
