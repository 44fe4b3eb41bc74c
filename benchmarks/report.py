"""The report, in Markdown for people and as JSON for programs; made from the JSON, so that it can
be made again from a file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.contender import Contender
from benchmarks.goals import GOALS, judge
from benchmarks.measuring import Effort
from benchmarks.results import Result, Results, medians
from benchmarks.workloads import GROUPS, Group, Workload

__all__ = ["COLUMNS", "as_figures", "as_text", "results_of", "table", "wrapped"]

Figures = dict[str, Any]


def _count(value: float) -> str:
    if value >= 100_000:
        return f"{value / 1000:,.0f} k"
    return f"{value / 1000:,.1f} k" if value >= 10_000 else f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _fixed(value: float) -> str:
    return f"{value:.2f}"


def _spent(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


Column = tuple[str, str, Callable[[float], str]]
"""A figure, its heading, and how it is written."""

_CPU: Final[Column] = ("cpu_per_million", "CPU s per million", _spent)
_TIMES: Final[tuple[Column, ...]] = (
    ("p50", "p50 µs", _short),
    ("p99", "p99 µs", _short),
    ("p999", "p99.9 µs", _short),
)
_JOINS: Final[tuple[Column, ...]] = (
    ("p50", "median µs", _short),
    ("p99", "p99 µs", _short),
    ("cold", "first µs", _short),
)
COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "throughput": (("rate", "messages/s", _count), ("mb_per_second", "MB/s", _short), _CPU),
    "latency": _TIMES,
    "fan-out": (
        ("rate", "deliveries/s", _count),
        ("growth_mib", "publisher grew by MiB", _short),
        _CPU,
    ),
    "rate": (*_TIMES, _CPU),
    "topics": (("rate", "messages/s", _count), _CPU),
    "join": _JOINS,
    "start": _JOINS,
    "return": (
        ("last_after", "last back after s", _short),
        ("half_after", "half after s", _short),
        ("tried_in_vain", "attempts in vain", _count),
        ("connect_cpu_us", "coordinator's CPU µs a handshake", _short),
        ("link_kib", "coordinator's KiB a link", _short),
        ("peers", "peers", _count),
    ),
    "strangers": (
        ("silent_kib", "KiB of a silent one", _short),
        ("hello_kib", "KiB after a ClientHello", _short),
        ("most_kib", "KiB at most", _short),
    ),
    "circuits": (
        ("circuit_kib", "relay's KiB a circuit", _short),
        ("circuits", "circuits", _count),
    ),
    "idle": (("rss_mib", "resident MiB", _fixed),),
    "arrays": (
        ("rate", "arrays/s", _count),
        ("cpu_ms", "CPU ms an array", _spent),
        ("pss_mib", "MiB at most", _count),
    ),
    "frames": (
        *_TIMES[:2],
        ("cpu_share", "CPU, % of one", _short),
        ("pss_mib", "MiB at most", _count),
    ),
    "killed": (
        ("shm_kib", "KiB in /dev/shm", _count),
        ("descriptors", "descriptors", _count),
        ("mappings", "mappings", _count),
    ),
    "mixed": (
        ("delay_p99", "delay p99 µs", _short),
        ("behind_p50", "behind p50 µs", _short),
        ("alone_p50", "alone p50 µs", _short),
        ("delay_most", "longest delay µs", _short),
    ),
}
"""What the tables show. The first figure is the one that ratios and the chart are about."""

NOTES: Final[dict[Group, str]] = {
    "throughput": "From before the first send until the last message is in the hands of the "
    "subscriber's code, serialised on both sides. CPU: both processes together.",
    "latency": "A small dict there and back, one at a time, between two processes.",
    "fan-out": "Every subscriber is a process of its own. The publisher's growth is its highest "
    "resident memory above what it had before the first message.",
    "rate": "From just before the put to the subscriber's code, on one clock. CPU: both processes "
    "together.",
    "topics": "One publishing and one subscribing process.",
    "join": "A process makes one subscriber after the other while a publisher puts each "
    "millisecond, which alone makes half a millisecond in the mean. *first* includes connecting.",
    "idle": "The larger of two processes with a publisher and a subscriber each.",
    "mixed": "1,000 small dicts a second, and one message of 8 MiB each 100 ms on another topic "
    "of the same link. *behind*: put within 20 ms after the large one; *delay*: above the median "
    "of the others.",
    "arrays": "As fast as it goes, each array stamped before it is sent and checked when it is "
    "there. CPU and memory: all processes together, memory that they share counted once (PSS). "
    "*Made by the publisher's `empty`*: nothing is copied; 16 elements of each are stamped and "
    "checked, whatever its size.",
    "frames": "From the put to the array in the user's hand; of several subscribers, the slowest. "
    "CPU and memory: as of arrays.",
    "killed": "By SIGKILL, in the midst of it. Descriptors and mappings: what the publisher has "
    "12 s later more than before the killed subscriber came, and what shared memory the other "
    "subscribers have 12 s after the publisher was killed (also of their own), if it is not gone "
    "sooner. /dev/shm: when all are dead.",
    "tls": "The same face with other credentials. *First message*: from before a process is "
    "started to the first message of its Sub, while a publisher puts each millisecond. *Peers that "
    "come back*: all are connected, the coordinator is killed and started again at the same place; "
    "counted from when it listens, all handshakes in full; all peers are in one process.",
    "ways": "The same key and TLS throughout: what differs is who dials whom, and what stands "
    "between. *Through a forwarder*: direct, where the address that the publisher tells is the "
    "forwarder's. *First message*: from before a process is started to the first message of its "
    "Sub, while a publisher puts each millisecond. *Raw stream*: the blocks of two plain sockets, "
    "spliced. *Circuits at rest*: memory of a relay for each circuit, all of which have carried "
    "64 KiB each way.",
}


def as_figures(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    results: Results,
    left_out: dict[str, str],
    where: dict[str, Any],
    effort: Effort,
    judged: bool,
) -> Figures:
    """All of it, as JSON has it."""
    kinds = {c.name: c.kind for c in contenders}
    measured = {w.name for w in workloads}
    goals = [goal for goal in GOALS if goal.workload in measured] if judged else []
    return {
        **where,
        "effort": asdict(effort),
        "contenders": {
            c.name: {"title": c.title, "how": c.how, "kind": c.kind} for c in contenders
        },
        "workloads": [
            {"name": w.name, "title": w.title, "group": w.group, "course": w.measured_as}
            for w in workloads
        ],
        "left_out": left_out,
        "results": [{**asdict(result), "median": medians(result)} for result in results.values()],
        "goals": [asdict(verdict) for goal in goals for verdict in judge(goal, results, kinds)],
    }


def results_of(figures: Figures) -> Results:
    """The results again."""
    found = {}
    for each in figures["results"]:
        result = Result(**{name: value for name, value in each.items() if name != "median"})
        found[result.workload, result.contender] = result
    return found


def as_text(figures: Figures, level: int = 2) -> str:
    """Markdown that reads well as it is, with headings of this level."""
    machine, effort, results = figures["machine"], figures["effort"], results_of(figures)
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    load = machine["load_before"]
    parts = [
        wrapped(
            f"{figures['date']}; {machine['model']}, {machine['cpus']} CPUs (load before: {load}); "
            f"{machine['system']}; {figures['python']}; {versions}. "
            + ("One round" if effort["rounds"] == 1 else f"Medians of {effort['rounds']} rounds")
            + f" of {effort['seconds']:g} s each, all contenders in turn."
        )
    ]
    if load is not None and load > 0.25 * machine["cpus"]:
        parts.append(
            "**The machine was busy with other things when this began: what differs here may be "
            "their doing.**"
        )
    sign = "#" * level
    if figures["goals"]:
        parts += [f"{sign} Goals", _goals(figures)]
    if any(c["kind"] == "ours" for c in figures["contenders"].values()):
        parts.append(
            wrapped(
                "In the tables below, *async ÷* and *blocking ÷* are the figure of this library's "
                "face divided by that of the row, least–most is over the rounds, and a rate with "
                "loss is no rate."
            )
        )
    groups: dict[Group, list[dict[str, str]]] = {}
    for workload in figures["workloads"]:
        groups.setdefault(workload["group"], []).append(workload)
    for group, workloads in groups.items():
        parts += [f"{sign} {GROUPS[group][0].upper()}{GROUPS[group][1:]}", wrapped(NOTES[group])]
        for workload in workloads:
            columns = COLUMNS[workload.get("course", group)]
            table = _workload(workload["name"], columns, figures, results)
            parts += [f"**{workload['title']}**", table or "Not measured."]
    how = (f"- {c['title']}: {c['how']}" for c in figures["contenders"].values())
    parts += [f"{sign} How each was used", "\n".join(wrapped(line, "  ") for line in how)]
    parts += [f"Left out: {name} (missing: {why})." for name, why in figures["left_out"].items()]
    remarks = sorted({f"{r.contender}: {text}" for r in results.values() for text in r.remarks})
    parts += [f"Remark of {remark}" for remark in remarks]
    parts += [
        f"FAILED {r.workload}, {r.contender}: {text}"
        for r in results.values()
        for text in r.failures
    ]
    return "\n\n".join(parts)


def _workload(name: str, columns: Sequence[Column], figures: Figures, results: Results) -> str:
    contenders = figures["contenders"]
    columns = [
        column
        for column in columns
        if any(name == w and column[0] in medians(r) for (w, _), r in results.items())
    ] or columns[:1]
    main = columns[0][0]
    faces = [
        (face, result)
        for face, contender in contenders.items()
        if contender["kind"] == "ours" and (result := results.get((name, face)))
    ]
    several = figures["effort"]["rounds"] > 1
    heads = [""]
    for i, (_, head, _) in enumerate(columns):
        heads += [head, *(["least–most"] if several and i == 0 else [])]
    heads += [
        f"{contenders[face]['title'].removeprefix('pubsubd, ').removesuffix(' face')} ÷"
        for face, _ in faces
    ]
    rows = []
    for rival, contender in contenders.items():
        result = results.get((name, rival))
        if result is None:
            continue
        row = [contender["title"]]
        for i, (figure, _, written) in enumerate(columns):
            row.append(_cell(result, figure, written, i == 0))
            if several and i == 0:
                row.append(_range(result, figure, written))
        row += [_ratio(mine, main, result) if rival != face else "" for face, mine in faces]
        rows.append(row)
    return table(heads, rows) if rows else ""


def _cell(result: Result, figure: str, written: Callable[[float], str], first: bool) -> str:
    value = result.median(figure)
    if value is not None:
        return written(value)
    if not first:
        return ""
    return "FAILED" if result.failures else "; ".join(dict.fromkeys(result.no_rate))


def _range(result: Result, figure: str, written: Callable[[float], str]) -> str:
    if result.median(figure) is None:
        return ""
    found = [each[figure] for each in result.rounds]
    return f"{written(min(found))}–{written(max(found))}"


def _ratio(mine: Result, figure: str, theirs: Result) -> str:
    ratio = mine.ratio(figure, theirs)
    return "" if ratio is None else f"{ratio:.2f}"


def _goals(figures: Figures) -> str:
    titles = {name: c["title"] for name, c in figures["contenders"].items()}
    workloads = {w["name"]: w["title"] for w in figures["workloads"]}
    heads = ["", "face", "goal", "found", ""]
    rows = []
    for each in figures["goals"]:
        goal = each["goal"]
        face = titles[each["face"]].removeprefix("pubsubd, ").removesuffix(" face")
        sign = {"least": "≥", "most": "≤"}[goal["bound"]]
        if goal["strictly"]:
            sign = {"least": ">", "most": "<"}[goal["bound"]]
        if goal["unit"]:
            wanted = f"{sign} {goal['factor']:,g} {goal['unit']}"
            found = "" if each["ratio"] is None else f"{_short(each['ratio'])} {goal['unit']}"
        else:
            wanted = f"{sign} {goal['factor']:g} × {_rival(each, titles, workloads)}"
            found = "" if each["ratio"] is None else f"{each['ratio']:.2f} ×"
        met = {True: "met", False: "**not met**", None: "not judged: no figure"}[each["met"]]
        rows.append([goal["title"], face, wanted, found, met])
    met_ones = sum(each["met"] is True for each in figures["goals"])
    return f"{met_ones} of {len(rows)} are met.\n\n{table(heads, rows)}"


def _rival(each: dict[str, Any], titles: dict[str, str], workloads: dict[str, str]) -> str:
    goal = each["goal"]
    if tuple(goal["against"]) == ("self",):
        return f"itself with {workloads.get(goal['beside'], goal['beside'])}"
    if each["against"]:
        return titles[each["against"]]
    against = goal["against"]
    return against if isinstance(against, str) else " or ".join(titles.get(n, n) for n in against)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join((first, *others)) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join((line(heads), "| " + " | ".join(rule) + " |", *map(line, rows)))


def wrapped(text: str, indent: str = "") -> str:
    """Filled to the width of the report."""
    return textwrap.fill(text, 98, subsequent_indent=indent, break_on_hyphens=False)
