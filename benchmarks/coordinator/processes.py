"""The processes of a measurement: started, told, heard and ended; what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Crowd", "Daemon", "Failed", "allow_files"]

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 100.0


class Failed(Exception):
    """A measurement that came to nothing; the text says why."""


def allow_files(count: int) -> int:
    """Have so many file descriptors, or as many as may be; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < count:
        for limit in ((count, max(count, hard)), (min(count, hard), hard)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
                break
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft >= 0 else count


OPEN = {"PUBSUB_INSECURE": "1"}
"""Some peers speak the protocol by hand, and know no credentials."""


class _Process:
    """A child. It ends when its standard input is closed, whatever has become of its parent."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self.name = module.rpartition(".")[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        self.printed: list[str] = []
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._said.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._print)),
        ]
        for reader in self._readers:
            reader.daemon = True
            reader.start()

    def _read(self, stream: Any, take: Any) -> None:
        for line in stream:
            take(line)
        take("")

    def _print(self, line: str) -> None:
        self.printed.append(line)

    def end(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def resident(self) -> int:
        """KiB of memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise Failed(f"{self.name}: it is gone")


class Daemon(_Process):
    """The coordinator, or what else `pubsubd` runs.

    Parameters:
        command: which, and what it is told beside its port.
    """

    def __init__(
        self,
        port: int = 0,
        environment: Mapping[str, str] = OPEN,
        command: Sequence[str] = ("coordinator",),
    ) -> None:
        super().__init__(
            *("benchmarks.coordinator.daemon", *command, "--port", str(port)),
            "--log-level=info",
            environment=environment,
        )
        self.port = int(self._wait(rf"{command[0]} on 127\.0\.0\.1:(\d+)")[1])

    def _print(self, line: str) -> None:
        super()._print(line)
        self._said.put(line)

    def _wait(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._said.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name}: it does not start") from None
            found = re.search(pattern, line)
            if found:
                return found
            if not line and self.process.poll() is not None:
                raise Failed(f"{self.name}: it ended\n{''.join(self.printed)}")

    def complaints(self) -> list[str]:
        """What it logged of connections that it cut or turned away."""
        return [line.strip() for line in self.printed if " WARNING " in line or " ERROR " in line]


class Crowd(_Process):
    """The peers, or the herd: told by a line of JSON, it answers with one."""

    def __init__(self, module: str, *arguments: Any, environment: Mapping[str, str] = OPEN) -> None:
        super().__init__(
            f"benchmarks.coordinator.{module}", *map(str, arguments), environment=environment
        )

    def tell(self, what: str, **more: Any) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # `hear` says what it died of
            self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
            self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What came of it."""
        try:
            line = self._said.get(timeout=PATIENCE)
        except queue.Empty:
            raise Failed(f"{self.name}: no answer in {PATIENCE:g} s") from None
        if not line:
            self._readers[1].join(5)
            raise Failed(f"{self.name}: it ended\n{''.join(self.printed)}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Both."""
        self.tell(what, **more)
        return self.hear()


def usable_cpus() -> int:
    """Processors that these may run on."""
    return len(os.sched_getaffinity(0))
