"""Child processes: started, spoken to, listened to, and never left behind.

Children leave when their standard input closes (see `child`), so that even a parent that is
killed leaves none. Each is the head of a session of its own: Ctrl-C reaches the parent alone,
which then ends them, with whatever they have started.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender

__all__ = ["Child", "Failed", "Stage"]

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A measurement that came to nothing; the text says why."""


class Child:
    """One process."""

    def __init__(self, contender: Contender, role: str, events: queue.Queue[Event]) -> None:
        self.name = f"{contender.name} ({role})"
        self.heard: dict[str, dict[str, Any]] = {}
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (`end` closes it)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._listener.start()

    def _listen(self, events: queue.Queue[Event]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, json.loads(line)))
        code = self._process.wait()
        events.put((self, {"word": "exit", "code": code}))

    def say(self, word: str, what: Any = True) -> None:
        """Tell it something; it may be gone already, which shows elsewhere."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({word: what}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass

    def printed(self) -> str:
        """What it wrote to standard error (and output)."""
        self._stderr.seek(0)
        return self._stderr.read().strip()

    def end(self) -> None:
        """End it, with whatever it has started, if it is still there."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        self._listener.join(1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        self._stderr.close()


Event = tuple[Child, dict[str, Any]]


class Stage:
    """The children of one measurement, or of a service. Leaving it ends them all.

    Parameters:
        contender: all play roles of this one.
        patience: seconds to wait for whatever should take less than one.
    """

    def __init__(self, contender: Contender, patience: float) -> None:
        self.contender = contender
        self.patience = patience
        self._children: list[Child] = []
        self._events: queue.Queue[Event] = queue.Queue()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self._children:
            child.end()

    def start(self, role: str, **job: Any) -> Child:
        """Start a process with this role of the contender; it gets going when it is told the
        ``place``."""
        child = Child(self.contender, role, self._events)
        self._children.append(child)
        child.say(
            "job",
            {
                "module": type(self.contender).__module__,
                "contender": self.contender.name,
                "role": role,
                "job": job,
            },
        )
        return child

    def hear(self, child: Child, word: str, longer: float = 0.0) -> dict[str, Any]:
        """Wait until a child says this, for so many seconds longer than patience.

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
                    f"{_quoted(child)}"
                ) from None
            if what["word"] == "failed":
                raise Failed(f"{who.name}: {what['error'].strip()}{_quoted(who)}")
            if what["word"] == "exit" and (what["code"] or "done" not in who.heard):
                raise Failed(f"{who.name}: it ended with exit code {what['code']}{_quoted(who)}")
            who.heard[what["word"]] = what
        return child.heard[word]

    def finish(self) -> str:
        """Wait until all children have ended in order; returns what they had to remark."""
        for child in self._children:
            self.hear(child, "exit")
        return "\n".join(filter(None, map(_remark, self._children)))


def _quoted(child: Child) -> str:
    printed = child.printed()
    return f"\nIt wrote:\n{printed}" if printed else ""


def _remark(child: Child) -> str:
    printed = child.printed()
    return f"{child.name} wrote: {printed}" if printed else ""
