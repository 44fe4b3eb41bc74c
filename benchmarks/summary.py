"""The figures that the README shows: a few workloads, and the peers that most would pick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from benchmarks.report import Figures, results_of, table, wrapped
from benchmarks.results import Results

__all__ = ["as_summary"]

COLUMNS: Final = (
    ("pubsub-async", "pubsubd, async"),
    ("pubsub-blocking", "pubsubd, blocking"),
    ("pyzmq-nodrop", "pyzmq blocking"),
    ("pyzmq-asyncio", "pyzmq asyncio"),
    ("zenoh-tcp", "zenoh"),
    ("nats-py", "nats-py"),
    ("redis-py", "redis-py"),
    ("stream", "plain uvloop stream"),
)


def _thousands(value: float) -> str:
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value / 1000:,.1f} k"


def _megabytes(value: float) -> str:
    return f"{value:,.0f} MB"


def _microseconds(value: float) -> str:
    return f"{value:,.0f} µs"


ROWS: Final[tuple[tuple[str, str, str, Callable[[float], str]], ...]] = (
    ("small dicts a second", "small-dict", "rate", _thousands),
    ("ints a second", "int", "rate", _thousands),
    ("1 KiB bytes a second", "1-kib", "rate", _thousands),
    ("64 KiB bytes: per second", "64-kib", "mb_per_second", _megabytes),
    ("8 MiB bytes: per second", "8-mib", "mb_per_second", _megabytes),
    ("small dicts to 8 subscribers: deliveries a second", "fan-out-8", "rate", _thousands),
    ("round trip, p50", "round-trip", "p50", _microseconds),
)


def as_summary(figures: Figures) -> str:
    """Markdown: what was measured where, and a table; columns without any figure are left out."""
    results = results_of(figures)
    wanted = [(workload, figure) for _, workload, figure, _ in ROWS]
    shown = [
        (name, head)
        for name, head in COLUMNS
        if any(_figure(results, w, name, figure) is not None for w, figure in wanted)
    ]
    rows = []
    for title, workload, figure, written in ROWS:
        row = [title]
        for name, _ in shown:
            value = _figure(results, workload, name, figure)
            row.append("" if value is None else written(value))
        if any(row[1:]):
            rows.append(row)
    machine, effort = figures["machine"], figures["effort"]
    about = (
        f"Publisher and subscriber in processes of their own, on {machine['cpus']} shared virtual "
        f"CPUs ({machine['model']}), {figures['python']}, {figures['date'][:10]}; medians of "
        f"{effort['rounds']} rounds in which all took turns. Values are packed and unpacked by "
        "msgpack on both sides, and every message is accounted for. Differences below 15 % are "
        "ties."
    )
    return f"{wrapped(about)}\n\n{table(['', *(head for _, head in shown)], rows)}"


def _figure(results: Results, workload: str, contender: str, figure: str) -> float | None:
    result: Any = results.get((workload, contender))
    return None if result is None else result.median(figure)
