"""Rounds: all contenders, interleaved, each measurement in fresh processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TextIO

from benchmarks.contender import Contender
from benchmarks.measuring import Effort, measure
from benchmarks.results import Result
from benchmarks.stage import Failed, Stage
from benchmarks.workloads import Workload

__all__ = ["Progress", "run_all"]


class Progress:
    """One line on standard error: what runs now, of how much. On a terminal it is written over
    again and again; elsewhere there is a line for each round."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self._total = total
        self._done = 0
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._began = time.monotonic()

    def round(self, number: int, of: int) -> None:
        """A round begins."""
        if not self._live:
            print(f"round {number} of {of} …", file=self._out, flush=True)

    def next(self, what: str) -> None:
        """A measurement begins."""
        if self._live:
            left = ""
            if self._done:
                each = (time.monotonic() - self._began) / self._done
                left = f", {each * (self._total - self._done):.0f} s to go"
            self._write(f"[{self._done + 1}/{self._total}{left}] {what}")
        self._done += 1

    def failed(self, what: str, why: str) -> None:
        """A measurement came to nothing."""
        self._write("")
        print(f"FAILED: {what}: {why}", file=self._out, flush=True)

    def over(self) -> None:
        """There is nothing more to say."""
        self._write("")

    def _write(self, text: str) -> None:
        if self._live:
            self._out.write(f"\r\x1b[2K{text[:110]}")
            self._out.flush()


def run_all(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    effort: Effort,
    out: TextIO | None = None,
) -> dict[tuple[str, str], Result]:
    """Measure everything, in rounds; results go by workload and contender."""
    pairs = [(w, c) for w in workloads for c in contenders if c.can(w)]
    results = {(w.name, c.name): Result(w.name, c.name) for w, c in pairs}
    progress = Progress(effort.rounds * len(pairs), out)
    try:
        with ExitStack() as services:
            places = _serve(contenders, services, effort.patience)
            for number in range(effort.rounds):
                progress.round(number + 1, effort.rounds)
                for workload in workloads:
                    able = [c for c in contenders if c.can(workload)]
                    turn = number % max(1, len(able))
                    for contender in (*able[turn:], *able[:turn]):
                        what = f"{workload.title}: {contender.title}"
                        progress.next(f"round {number + 1}/{effort.rounds}, {what}")
                        result = results[workload.name, contender.name]
                        try:
                            place = places.get(contender.name, "")
                            figures, remarks = measure(contender, workload, place, effort)
                        except Failed as failure:
                            result.failures.append(str(failure))
                            progress.failed(what, str(failure))
                        else:
                            result.rounds.append(figures)
                            if remarks:
                                result.remarks.append(remarks)
    finally:
        progress.over()
    return results


def _serve(contenders: Sequence[Contender], services: ExitStack, patience: float) -> dict[str, str]:
    """Start what has to stand beside contenders; where it is, by contender."""
    started = []
    for contender in contenders:
        if contender.service:
            stage = services.enter_context(Stage(contender, patience))
            service = stage.start("serve")
            service.say("place", "")
            started.append((contender, stage, service))
    return {c.name: stage.hear(service, "at")["place"] for c, stage, service in started}
