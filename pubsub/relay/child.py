"""What a coordinator has beside itself, each as a process of its own: a relay, a dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from io import FileIO

from pubsub.config import Address
from pubsub.links import descriptors
from pubsub.wire.liveness import Backoff

__all__ = ["Child"]

PATIENCE = 3.0
"""Seconds that it has to end when its coordinator does."""


class Child:
    """A command beside a coordinator, as a process of its own: what it has to do is no work for the
    coordinator's.

    Parameters:
        command: ``"relay"`` or ``"dashboard"``, of ``pubsubd``.
        coordinator: where it finds it.
        args: what else the command is told.
        environ: its environment; None: that of this process.
        say: is called with a line about what becomes of it.
    """

    def __init__(
        self,
        command: str,
        coordinator: Address,
        args: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        say: Callable[[str], None],
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "pubsub.cli.pubsubd", command, "--while-stdin"),
            *("--coordinator", str(coordinator), *args),
        ]
        self._name = command
        self._environ = environ
        self._say = say
        self._backoff = Backoff(random.random)
        self._process: asyncio.subprocess.Process | None = None
        self.sock: FileIO | None = None
        """Our end of its standard input (see `descriptors.Connection`): it ends when this process
        does, and nobody else may have it."""
        descriptors.connected(self)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it, and again whenever it is gone."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                process = await self._spawn()
                self._say(f"its {self._name} is process {process.pid}")
                how = f"ended with {await process.wait()}"
            except OSError as error:
                how = f"cannot be started: {error.strerror or error}"
            self._backoff.lived(loop.time() - began)
            delay = self._backoff.delay()
            self._say(f"its {self._name} {how}, and is started anew")
            await asyncio.sleep(delay)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._let_go()
        theirs, ours = os.pipe()
        self.sock = FileIO(ours, "w")
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(*self._command, stdin=theirs, env=self._environ)
        )
        try:
            process = self._process = await asyncio.shield(spawning)
        except asyncio.CancelledError:  # else it would be nobody's, and `close` not end it
            with contextlib.suppress(OSError):
                self._process = await spawning
            raise
        finally:
            os.close(theirs)
        return process

    def _let_go(self) -> None:
        ours, self.sock = self.sock, None
        if ours is not None:
            ours.close()

    def renew(self) -> None:
        """It is to read its credentials anew, too."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def close(self) -> None:
        """End it, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            waiting = asyncio.ensure_future(process.wait())
            await asyncio.wait({waiting}, timeout=PATIENCE)
            if not waiting.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await waiting
        self._let_go()
