"""The chart: bars for every workload, as an SVG that needs nothing else."""

from __future__ import annotations

from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.report import COLUMNS, results_of

__all__ = ["as_svg"]

_COLOURS: Final = {
    "ours": "#d9480f",
    "peer": "#4c6ef5",
    "local": "#4c6ef5",
    "baseline": "#868e96",
    "ceiling": "#ced4da",
}
_WIDTH, _LABEL, _BAR, _VALUE = 520, 210, 220, 80
_ROW, _HEAD, _GAP, _PER_LINE = 18, 30, 18, 2


def as_svg(figures: dict[str, Any]) -> str:
    """One panel for each workload that was measured, with a bar for each contender."""
    panels = [panel for workload in figures["workloads"] if (panel := _panel(workload, figures))]
    columns = [0.0] * _PER_LINE
    placed = []
    for lines, height in panels:  # into the column that is shortest so far
        column = columns.index(min(columns))
        x, y = column * (_WIDTH + _GAP), columns[column]
        placed.append(f'<g transform="translate({x + _GAP},{y + _GAP})">{"".join(lines)}</g>')
        columns[column] += height + _GAP
    width = _PER_LINE * (_WIDTH + _GAP) + _GAP
    height = max(columns) + 2 * _GAP
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
            f'width="{width}" height="{height:.0f}" font-family="system-ui, sans-serif" '
            f'font-size="12" fill="#212529">',
            "<title>pubsubd and its peers, measured side by side</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *placed,
            "</svg>",
            "",
        )
    )


def _panel(workload: dict[str, str], figures: dict[str, Any]) -> tuple[list[str], float] | None:
    results = results_of(figures)
    columns = COLUMNS[workload.get("course", workload["group"])]
    named = {name: (heading, written) for name, heading, written in columns}
    found = {
        name: result
        for name in figures["contenders"]
        if (result := results.get((workload["name"], name))) is not None
    }
    sized = any("mb_per_second" in each for r in found.values() for each in r.rounds)
    figure = "mb_per_second" if sized else columns[0][0]
    heading, written = named[figure]
    values = {name: result.median(figure) for name, result in found.items()}
    most = max((value for value in values.values() if value is not None), default=0.0)
    if not most:
        return None
    better = "more" if columns[0][0] == "rate" else "less"
    title = f"{workload['title']}: {heading} ({better} is better)"
    lines = [f'<text x="0" y="14" font-weight="600" font-size="13">{escape(title)}</text>']
    y = _HEAD
    for name, value in values.items():
        contender = figures["contenders"][name]
        size = max(1.0, _BAR * max(0.0, value or 0.0) / most)
        told = written(value) if value is not None else ("; ".join(found[name].no_rate) or "failed")
        weight = ' font-weight="600"' if contender["kind"] == "ours" else ""
        lines.append(
            f'<text x="{_LABEL - 6}" y="{y + 10}" text-anchor="end"{weight}>'
            f"{escape(_cut(contender['title']))}</text>"
            f'<rect x="{_LABEL}" y="{y}" width="{size:.1f}" height="{_ROW - 5}" rx="2" '
            f'fill="{_COLOURS[contender["kind"]]}"/>'
            f'<text x="{_LABEL + size + 5:.1f}" y="{y + 10}">{escape(told)}</text>'
        )
        y += _ROW
    return lines, float(y)


def _cut(text: str) -> str:
    return text if len(text) <= 34 else text[:33] + "…"
