"""Dask's commands as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from tests.dask.tasks import LONG

__all__ = ["Running"]


class Running:
    """A command of Dask's."""

    def __init__(self, *args: str, prefix: Sequence[str] = (), **env: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "distributed.cli." + args[0], *args[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.lines.extend(iter(lines.readline, ""))

    def said(self, text: str) -> str:
        """The first line that has this, as soon as it is there."""
        deadline = time.monotonic() + LONG
        while True:
            for line in list(self.lines):
                if text in line:
                    return line
            assert time.monotonic() < deadline, (text, self.lines)
            time.sleep(0.02)

    def end(self, kill: bool = False) -> None:
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait(LONG)
