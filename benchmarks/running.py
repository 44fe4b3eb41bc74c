"""Rounds: all contenders, interleaved, each measurement in fresh processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TextIO

import click

from benchmarks.contender import Contender
from benchmarks.measuring import Effort, NoRate, measure
from benchmarks.results import Result
from benchmarks.roles import serve
from benchmarks.stage import Failed, Stage
from benchmarks.workloads import Workload

__all__ = ["Progress", "run_all"]


class Progress:
    """A bar on standard error: what runs now, of how much. Where that is no terminal, there is a
    line for each round instead."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._bar: Any = None
        if self._live:
            self._bar = click.progressbar(
                length=total,
                file=self._out,
                show_pos=True,
                width=24,
                item_show_func=lambda what: (what or "")[:60],
            )
            self._bar.__enter__()

    def round(self, number: int, of: int) -> None:
        """A round begins."""
        if not self._live:
            print(f"round {number} of {of} …", file=self._out, flush=True)

    def next(self, what: str) -> None:
        """A measurement begins."""
        if self._live:
            self._bar.update(0, what)
            self._bar.render_progress()

    def done(self) -> None:
        """A measurement is over."""
        if self._live:
            self._bar.update(1, self._bar.current_item)

    def failed(self, what: str, why: str) -> None:
        """A measurement came to nothing."""
        if self._live:
            self._out.write("\r\x1b[2K")
        print(f"FAILED: {what}: {why}", file=self._out, flush=True)

    def over(self) -> None:
        """There is nothing more to say."""
        if self._live:
            self._bar.__exit__(None, None, None)


def run_all(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    effort: Effort,
    out: TextIO | None = None,
) -> dict[tuple[str, str], Result]:
    """Measure everything, in rounds; results go by workload and contender."""
    names = {workload.name for workload in workloads}
    twins = [w for w in workloads if w.same_as in names]
    workloads = [w for w in workloads if w not in twins]
    pairs = [(w, c) for w in workloads for c in contenders if c.can(w)]
    results = {(w.name, c.name): Result(w.name, c.name) for w, c in pairs}
    progress = Progress(sum(1 if w.once else effort.rounds for w, _ in pairs), out)
    try:
        with ExitStack() as services:
            places = _serve(contenders, services, effort.patience)
            for number in range(effort.rounds):
                progress.round(number + 1, effort.rounds)
                for workload in workloads:
                    over = number and workload.once
                    able = [] if over else [c for c in contenders if c.can(workload)]
                    turn = number % max(1, len(able))
                    for contender in (*able[turn:], *able[:turn]):
                        what = f"{workload.title}: {contender.title}"
                        progress.next(f"round {number + 1}/{effort.rounds}, {what}")
                        result = results[workload.name, contender.name]
                        try:
                            place = places.get(contender.name, "")
                            figures, remarks = measure(contender, workload, place, effort)
                        except NoRate as reason:
                            result.no_rate.append(str(reason))
                        except Failed as failure:
                            result.failures.append(str(failure))
                            progress.failed(what, str(failure))
                        else:
                            result.rounds.append(figures)
                            if remarks:
                                result.remarks.append(remarks)
                        progress.done()
    finally:
        progress.over()
    for twin in twins:
        for contender in contenders:
            same = results.get((twin.same_as, contender.name))
            if same is not None and contender.can(twin):
                results[twin.name, contender.name] = replace(same, workload=twin.name, remarks=[])
    return results


def _serve(contenders: Sequence[Contender], services: ExitStack, patience: float) -> dict[str, str]:
    """Start what has to stand beside contenders; where it is, by contender."""
    started = []
    for contender in contenders:
        if contender.service:
            stage = services.enter_context(Stage(patience))
            name = contender.name
            service = stage.start(serve, type(contender).__module__, name, called=f"{name} (serve)")
            started.append((contender, stage, service))
    return {c.name: stage.hear(service, "at")["place"] for c, stage, service in started}
