"""Child processes: started, spoken to, listened to, and never left behind.

Everything that is measured here runs so: a child is a function of some module, called with a
`Control` and what it is given. Children leave when their standard input closes (see `child`), so
that even a parent that is killed leaves none. Each is the head of a session of its own: Ctrl-C
reaches the parent alone, which then ends them, with whatever they have started.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Child", "Failed", "Stage"]

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 100.0


class Failed(Exception):
    """A measurement that came to nothing; the text says why."""


class Child:
    """One process.

    Attributes:
        heard: what it said that nobody has taken yet, by word.
        ended: whether it was ended on purpose.
        port: where it listens, of a daemon.
    """

    def __init__(
        self, name: str, events: queue.Queue[Event], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.heard: dict[str, dict[str, Any]] = {}
        self.ended = False
        self.port = 0
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (`end` closes it)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._listener.start()

    def _listen(self, events: queue.Queue[Event]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        code = self.process.wait()
        events.put((self, {"word": "exit", "code": code}))

    def say(self, word: str, what: Any = True) -> None:
        """Tell it something; it may be gone already, which shows elsewhere."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({word: what}) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass

    def printed(self) -> str:
        """What it wrote to standard error (and output)."""
        # by `pread`: to seek would move the place where the child writes
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace").strip()

    def prints(self, pattern: str) -> re.Match[str]:
        """Wait until it has written this.

        Raises:
            Failed: it has not, and never will.
        """
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.printed())) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.name}: it does not start{quoted(self)}")
            time.sleep(0.002)
        return found

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def memory(self, file: str = "status", field: str = "VmRSS") -> int:
        """KiB that are resident, or what else /proc says of it; 0 of one that is gone."""
        try:
            lines = Path(f"/proc/{self.process.pid}/{file}").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)

    def end(self) -> None:
        """End it, with whatever it has started, if it is still there."""
        self.ended = True
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self._listener.join(1)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        self._stderr.close()


Event = tuple[Child, dict[str, Any]]


class Stage:
    """The children of one measurement, or of a service. Leaving it ends them all, the last first.

    Parameters:
        patience: seconds to wait for whatever should take less than one.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.children: list[Child] = []
        self._events: queue.Queue[Event] = queue.Queue()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        for child in reversed(self.children):
            child.end()

    def start(
        self,
        role: Callable[..., Any],
        *args: Any,
        called: str = "",
        environment: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Child:
        """Start a process with this function."""
        child = Child(called or role.__name__, self._events, environment or {})
        self.children.append(child)
        module = role.__module__
        if module == "__main__":  # which is another one in the child
            spec = sys.modules[module].__spec__
            module = spec.name if spec is not None else module
        child.say("job", {"module": module, "role": role.__name__, "args": args, "how": how})
        return child

    def hear(self, child: Child, word: str, longer: float = 0.0) -> dict[str, Any]:
        """Wait until a child says this, for so many seconds longer than patience, and take it.

        Raises:
            Failed: it does not, or one of the children fails meanwhile.
        """
        patience = self.patience + longer
        deadline = time.monotonic() + patience
        while word not in child.heard:
            try:
                who, what = self._events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                said = ", ".join(child.heard) or "nothing"
                raise Failed(
                    f"{child.name}: no {word!r} within {patience:g} s (it said: {said})"
                    f"{quoted(child)}"
                ) from None
            if who.ended:
                continue
            if what["word"] == "failed":
                raise Failed(f"{who.name}: {what['error'].strip()}{quoted(who)}")
            if what["word"] == "exit" and (what["code"] or "done" not in who.heard):
                raise Failed(f"{who.name}: it ended with exit code {what['code']}{quoted(who)}")
            who.heard[what["word"]] = what
        return child.heard.pop(word)

    def ask(self, child: Child, order: str, word: str = "answer", **how: Any) -> dict[str, Any]:
        """Have a child that takes orders (see `child.obey`) do something; what came of it."""
        self.order(child, order, **how)
        return self.hear(child, word)

    def order(self, child: Child, order: str, **how: Any) -> None:
        """The same, not waiting for it."""
        child.say("do", {"order": order, **how})

    def finish(self) -> str:
        """Wait until all children have ended in order; returns what they had to remark."""
        for child in self.children:
            if not child.ended:
                self.hear(child, "exit")
        return "\n".join(filter(None, map(_remark, self.children)))


def quoted(child: Child) -> str:
    """What it wrote, for a text about it."""
    printed = child.printed()
    return f"\nIt wrote:\n{printed}" if printed else ""


def _remark(child: Child) -> str:
    printed = "" if child.ended else child.printed()
    return f"{child.name} wrote: {printed}" if printed else ""
