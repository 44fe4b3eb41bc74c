"""Goals and tables, from the figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.report import table, wrapped

__all__ = ["as_text", "judged"]

Figures = dict[str, Any]


class _Goal(NamedTuple):
    title: str
    measure: str
    found: Callable[[Any], float]
    sign: str
    bound: float
    unit: str


def _steepest(curve: Any) -> float:
    """The dearest registration over the cheapest, along either line."""
    lines: list[list[float]] = [[point["cpu_us"] for point in line] for line in curve.values()]
    return max(line[-1] / line[0] for line in lines)


def _turned_away(restart: Any) -> float:
    away: list[int] = [
        sum(each["failed_while_up"].values()) + len(each["complaints"])
        for each in restart["restarts"]
    ]
    return sum(away)


GOALS = (
    _Goal(
        "registrations a second",
        "registrations",
        lambda found: found["together"]["per_second"],
        "≥",
        30_000,
        "",
    ),
    _Goal(
        "a new Sub matched with its publishers, p99, beside 1,000 registrations a second",
        "matching",
        lambda found: found["sub_knows"]["p99_ms"],
        "≤",
        5,
        "ms",
    ),
    _Goal("memory of a registration", "memory", lambda f: f["registration_kib"], "≤", 1.5, "KiB"),
    _Goal("memory of a peer", "memory", lambda f: f["peer_kib"], "≤", 20, "KiB"),
    _Goal("all matched again after a restart", "restart", lambda f: f["seconds"], "≤", 10, "s"),
    _Goal("peers turned away or cut at a restart", "restart", _turned_away, "≤", 0, ""),
    _Goal(
        "processor time of a registration, most topics or peers over fewest",
        "curve",
        _steepest,
        "≤",
        1.5,
        "×",
    ),
)


def judged(figures: Figures) -> list[dict[str, Any]]:
    """Each goal that was measured, what was found, and whether that is good enough."""
    verdicts = []
    for goal in GOALS:
        if goal.measure in figures:
            found = goal.found(figures[goal.measure])
            met = found >= goal.bound if goal.sign == "≥" else found <= goal.bound
            wanted = f"{goal.sign} {goal.bound:,g} {goal.unit}".strip()
            verdicts.append(
                {
                    "title": goal.title,
                    "wanted": wanted,
                    "found": found,
                    "unit": goal.unit,
                    "met": met,
                }
            )
    return verdicts


def as_text(figures: Figures) -> str:
    """Markdown that reads well as it is."""
    machine, plan = figures["machine"], figures["plan"]
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    parts = [
        wrapped(
            f"{figures['date']}; {machine['model']}, {machine['cpus']} CPUs (load before: "
            f"{machine['load_before']}); {machine['system']}; {figures['python']}; {versions}. "
            f"{plan['peers']:,} peers, {plan['topics']:,} topics with a Pub and a Sub each, "
            f"{plan['patterns']:,} patterns; rounds: {figures['rounds']}."
        )
    ]
    if figures["goals"]:
        rows = [
            [
                goal["title"],
                goal["wanted"],
                f"{goal['found']:,.5g} {goal['unit']}".strip(),
                "met" if goal["met"] else "**not met**",
            ]
            for goal in figures["goals"]
        ]
        parts.append(table(["goal", "wanted", "found", ""], rows))
    for name, write in _PARTS.items():
        if name in figures:
            parts.append(write(figures[name]))
    return "\n\n".join(parts)


def _registrations(found: Any) -> str:
    rows = [
        [
            title,
            f"{found[name]['per_second']:,.0f}",
            _range(found[name]["rounds"], "per_second"),
            f"{found[name]['cpu_us']:.1f}",
            _range(found[name]["rounds"], "coordinator_busy"),
            _range(found[name]["rounds"], "peers_busy"),
        ]
        for name, title in (
            ("together", "all of a peer's in one write"),
            ("one_by_one", "one at a time from each peer"),
        )
    ]
    heads = ["registrations", "a second", "least–most", "CPU µs each"]
    return table([*heads, "coordinator's share of a CPU", "peers' share of a CPU"], rows)


def _range(rounds: list[dict[str, Any]], figure: str) -> str:
    values = [each[figure] for each in rounds]
    return f"{min(values):,}–{max(values):,}"


def _matching(found: Any) -> str:
    titles = {
        "sub_knows": "a new Sub knows all its publishers",
        "its_publisher_knows": "… and its one publisher knows of it",
        "all_100_publishers_know": "… and each of its 100 publishers does",
    }
    figures = ("p50_ms", "p99_ms", "p999_ms", "most_ms")
    rounds = ", ".join(f"{each['sub_knows']['p99_ms']:.2f}" for each in found["rounds"])
    rows = [
        [title, f"{found[name]['subs']:,}", *(f"{found[name][figure]:.2f}" for figure in figures)]
        for name, title in titles.items()
    ]
    return (
        table(["median round", "Subs", "p50 ms", "p99 ms", "p99.9 ms", "longest ms"], rows)
        + "\n\n"
        + wrapped(
            f"Beside {found['registrations_per_second']:,} registrations a second and as many "
            f"removals. The coordinator used {found['coordinator_busy']:.0%} of a CPU. The "
            f"measuring process, which is all publishers, was itself late by "
            f"{found['timer_late_p99_ms']} ms (p99 of its timers). The p99 of the first row, by "
            f"rounds: {rounds}."
        )
    )


def _memory(found: Any) -> str:
    return wrapped(
        f"Resident: {found['without_peers_mib']} MiB without peers, {found['with_peers_mib']} MiB "
        f"with all connected, {found['with_registrations_mib']} MiB with all registered: "
        f"{found['peer_kib']} KiB a peer, {found['registration_kib']} KiB a registration. To "
        f"connect a peer takes {found['connect_cpu_us']} µs of CPU; all of them, idle, use "
        f"{found['idle_cpu_share']:.1%} of a CPU ({found['idle_cpu_us_per_peer_second']} µs a peer "
        f"and second)."
    )


def _restart(found: Any) -> str:
    parts = []
    for each in found["restarts"]:
        away = sum(each["failed_while_up"].values())
        vain = sum(each["failed_while_down"].values())
        parts.append(
            wrapped(
                f"Down for {each['down']:g} s, then all matched again {each['seconds']} s after "
                f"the start of the new process, which listened after {each['listening_after']} s. "
                f"The first peer was back after {each['came_first']} s, the last after "
                f"{each['came_last']} s; {vain:,} attempts failed before it listened, {away} "
                f"after. The real sessions were matched after {each['sessions_seconds']} s. The "
                f"coordinator used {each['coordinator_busy']:.0%} of a CPU."
            )
        )
        parts.append(
            "    peers back, by tenths of a second:  "
            + " ".join(map(str, each["came"]))
            + "\n    registrations answered:             "
            + " ".join(map(str, each["registered"]))
        )
        parts += [f"    {why}: {count}" for why, count in each["failed_while_up"].items()]
        parts += [f"    {line}" for line in each["complaints"]]
    return "\n\n".join(parts)


def _herd(found: Any) -> str:
    ends = ", ".join(f"{count:,} {end}" for end, count in found["ends"].items())
    return "\n\n".join(
        [
            wrapped(
                f"All connections opened within {found['dialled_in']} s by bare sockets: {ends}, "
                f"after {found['seconds']} s."
            ),
            *(f"    {line}" for line in found["complaints"]),
        ]
    )


def _curve(found: Any) -> str:
    rows = [
        [
            f"{point['topics']:,} topics, {point['peers']:,} peers, {point['patterns']:,} patterns",
            f"{point['cpu_us']:.1f}",
            f"{point['least']:.1f}–{point['most']:.1f}",
        ]
        for line in found.values()
        for point in line
    ]
    return table(["beside", "CPU µs for a registration and its removal", "least–most"], rows)


def _topic(found: Any) -> str:
    rows = [
        [
            f"{point['subs']:,}",
            f"{point['busy_ms']:,.1f}",
            f"{point['answer_kib']:,.1f}",
            f"{point['told_kib']:,.1f}",
        ]
        for point in found["subs"]
    ]
    heads = ["Subs on the topic of a new Pub", "busy for ms", "KiB to its peer", "KiB to all"]
    return table(heads, rows)


_PARTS: dict[str, Callable[[Any], str]] = {
    "registrations": _registrations,
    "matching": _matching,
    "memory": _memory,
    "restart": _restart,
    "herd": _herd,
    "curve": _curve,
    "topic": _topic,
}
