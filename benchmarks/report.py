"""The table for people and the JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.contender import Contender
from benchmarks.measuring import Effort
from benchmarks.results import Result, Verdict, medians
from benchmarks.workloads import Workload

__all__ = ["as_json", "as_text"]

Results = dict[tuple[str, str], Result]


def as_text(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    results: Results,
    verdicts: Sequence[Verdict],
    left_out: dict[str, str],
    where: dict[str, Any],
    effort: Effort,
) -> str:
    """Markdown that reads well as it is."""
    machine = where["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    parts = [
        f"{machine['model']}, {machine['cpus']} CPUs (load before: {machine['load_before']}); "
        f"{machine['system']}; {where['python']}; {versions}; {where['date']}"
    ]
    baseline = next((c for c in contenders if c.kind == "baseline"), None)
    throughput = [w for w in workloads if w.group == "throughput"]
    latency = [w for w in workloads if w.group == "latency"]
    if throughput:
        parts.append(
            f"Messages delivered a second, publisher to subscriber in another process, "
            f"{effort.seconds:g} s each, {_rounds(effort)}:"
        )
        parts.append(_rates(contenders, throughput, results, baseline))
    if latency:
        parts.append(
            f"Round trip between two processes over two topics, {effort.trips:,} each, "
            f"{_rounds(effort)}, in µs:"
        )
        parts.append(_trips(contenders, latency, results, baseline))
    parts.append("\n".join(_wrapped(f"- {c.title}: {c.how}") for c in contenders))
    parts += [f"Left out: {name} (missing: {why})." for name, why in left_out.items()]
    remarks = sorted({f"{r.contender}: {text}" for r in results.values() for text in r.remarks})
    parts += [f"Remark of {remark}" for remark in remarks]
    failures = [
        f"FAILED {r.workload}, {r.contender}: {text}"
        for r in results.values()
        for text in r.failures
    ]
    parts += failures
    titles = {c.name: c.title for c in contenders}
    if verdicts:
        parts.append("\n".join(_verdict(verdict, titles) for verdict in verdicts))
    return "\n\n".join(parts)


def _rounds(effort: Effort) -> str:
    return "one round" if effort.rounds == 1 else f"median of {effort.rounds} rounds (least–most)"


def _rates(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    results: Results,
    baseline: Contender | None,
) -> str:
    heads = [""]
    for workload in workloads:
        heads += [workload.title, *([f"× {baseline.name}"] if baseline else [])]
    rows = []
    for contender in contenders:
        row = [contender.title]
        for workload in workloads:
            result = results.get((workload.name, contender.name))
            row.append(_cell(result, "rate"))
            if baseline:
                row.append(_ratio(result, "rate", results.get((workload.name, baseline.name))))
        rows.append(row)
    return _table(heads, [row for row in rows if any(row[1:])])


def _trips(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    results: Results,
    baseline: Contender | None,
) -> str:
    heads = [""]
    for _ in workloads:
        heads += ["p50", *([f"× {baseline.name}"] if baseline else []), "p99", "p99.9"]
    rows = []
    for contender in contenders:
        row = [contender.title]
        for workload in workloads:
            result = results.get((workload.name, contender.name))
            row.append(_cell(result, "p50"))
            if baseline:
                row.append(_ratio(result, "p50", results.get((workload.name, baseline.name))))
            row += [_cell(result, "p99"), _cell(result, "p999")]
        rows.append(row)
    return _table(heads, [row for row in rows if any(row[1:])])


def _cell(result: Result | None, figure: str) -> str:
    if result is None:
        return ""
    value = result.median(figure)
    if value is None:
        return "FAILED"
    of_rounds = [each[figure] for each in result.rounds]
    if len(of_rounds) == 1:
        return f"{value:,.0f}"
    return f"{value:,.0f} ({_short(min(of_rounds))}–{_short(max(of_rounds))})"


def _short(value: float) -> str:
    return f"{value / 1000:,.0f}k" if value >= 100_000 else f"{value:,.0f}"


def _ratio(result: Result | None, figure: str, to: Result | None) -> str:
    ratio = result.ratio(figure, to) if result is not None else None
    return "" if ratio is None else f"{ratio:.2f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join((first, *others)) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join((line(heads), "| " + " | ".join(rule) + " |", *map(line, rows)))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 98, subsequent_indent="  ", break_on_hyphens=False)


def _verdict(verdict: Verdict, titles: dict[str, str]) -> str:
    goal = verdict.goal
    sign = "≥" if goal.bound == "least" else "≤"
    against = titles.get(goal.against, goal.against)
    wanted = f"Floor, {goal.title}: {goal.faces} face {sign} {goal.factor:g} × {against}"
    if verdict.met is None:
        return f"{wanted}: NOT JUDGED, for want of a figure."
    best = sorted(verdict.ratios, key=verdict.ratios.__getitem__, reverse=goal.bound == "least")
    found = ", ".join(f"{titles[name]} {verdict.ratios[name]:.2f} ×" for name in best)
    return f"{wanted}: {'met' if verdict.met else 'NOT MET'} ({found})."


def as_json(
    contenders: Sequence[Contender],
    results: Results,
    verdicts: Sequence[Verdict],
    left_out: dict[str, str],
    where: dict[str, Any],
    effort: Effort,
) -> dict[str, Any]:
    """All of it."""
    return {
        **where,
        "effort": asdict(effort),
        "contenders": {
            c.name: {"title": c.title, "how": c.how, "kind": c.kind} for c in contenders
        },
        "left_out": left_out,
        "results": [{**asdict(result), "median": medians(result)} for result in results.values()],
        "goals": [asdict(verdict) for verdict in verdicts],
    }
