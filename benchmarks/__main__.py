"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import chart, machine, report, summary
from benchmarks import contenders as modules
from benchmarks.contender import Contender, found
from benchmarks.measuring import Effort
from benchmarks.running import run_all
from benchmarks.stage import Failed
from benchmarks.workloads import WORKLOADS, Workload

FULL = Effort(rounds=3, seconds=0.5, trips=6_000, warm_up=500, joins=40)
SMOKE = Effort(rounds=1, seconds=0.02, trips=100, warm_up=10, joins=3, peers=20)
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SUMMARY = "<!-- bench: begin -->", "<!-- bench: end -->"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure pubsubd and its peers side by side.",
        epilog="Exit code: 0 when everything was measured, whether or not a goal is met; 1 when "
        "anything failed or a message was lost; 2 for wrong arguments.",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,…",
        default="",
        help="workloads, or groups of them: "
        + ", ".join(_names_of_workloads())
        + " (default: all but those of tls and ways, and most of frames)",
    )
    parser.add_argument(
        "--peers",
        metavar="NAME,…",
        default="",
        help="whom to measure beside this library (default: all there are); a name with a dot is "
        "a module with CONTENDERS in it",
    )
    parser.add_argument(
        "--faces",
        metavar="NAME,…",
        default="",
        help="which of this library's own faces (default: all; none: none)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there too")
    parser.add_argument("--chart", metavar="FILE", type=Path, help="write the chart there (SVG)")
    parser.add_argument(
        "--write",
        metavar="FOLDER",
        type=Path,
        help="write benchmarks.md (the part between its markers), .svg and .json into this folder, "
        "and the README's figures beside it",
    )
    parser.add_argument(
        "--from",
        metavar="FILE",
        type=Path,
        dest="made",
        help="measure nothing: take the figures from what --json wrote",
    )
    parser.add_argument("--smoke", action="store_true", help="small counts: does it work at all?")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {FULL.rounds}")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"of each sending, default: {FULL.seconds:g}"
    )
    parser.add_argument(
        "--crowd",
        type=int,
        metavar="N",
        help=f"peers that come back to a coordinator, default: {FULL.peers:,}",
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="S",
        default=FULL.patience,
        help="seconds to wait for what should take less than one, default: %(default)g",
    )
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds} is below 1")
    if arguments.crowd is not None and arguments.crowd < 1:
        parser.error(f"--crowd {arguments.crowd} is below 1")
    if arguments.seconds is not None and not 0 < arguments.seconds <= 600:
        parser.error(f"--seconds {arguments.seconds:g} is not between 0 and 600")
    try:
        arguments.workloads = _pick_workloads(_split(arguments.only))
        arguments.contenders = _pick_contenders(_split(arguments.faces), _split(arguments.peers))
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _names_of_workloads() -> list[str]:
    return list(dict.fromkeys([w.group for w in WORKLOADS] + [w.name for w in WORKLOADS]))


def _pick_workloads(names: list[str]) -> list[Workload]:
    unknown = sorted(set(names) - set(_names_of_workloads()))
    if unknown:
        raise ValueError(
            f"--only: there is no {unknown[0]!r}; there are {', '.join(_names_of_workloads())}"
        )
    if not names:
        return [w for w in WORKLOADS if not w.asked_for]
    return [w for w in WORKLOADS if w.name in names or w.group in names]


def _pick_contenders(faces: list[str], names: list[str]) -> list[Contender]:
    """Of ours and of the others those that are named, or all."""
    known: dict[str, Contender] = {}
    for module in modules.MODULES:
        known.update(modules.load(module))
    picked = dict(known) if not names else {}
    for name in names:
        if family := {n: c for n, c in known.items() if c.family == name}:
            picked.update(family)
        elif name in known:
            picked[name] = known[name]
        elif "." in name:
            try:
                picked.update(modules.load(name))
            except ImportError as error:
                raise ValueError(f"--peers: {name!r} cannot be imported: {error}") from None
        else:
            names_there = [
                n for c in known.values() if c.kind != "ours" for n in (c.family, c.name)
            ]
            there = ", ".join(dict.fromkeys(filter(None, names_there)))
            raise ValueError(f"--peers: there is no {name!r}; there are {there}")
    ours = {c.name: c for c in known.values() if c.kind == "ours"}
    unknown = sorted(set(faces) - set(ours) - {"none"})
    if unknown:
        raise ValueError(f"--faces: there is no {unknown[0]!r}; there are {', '.join(ours)}")
    return [
        *(c for name, c in ours.items() if not faces or name in faces),
        *(c for c in picked.values() if c.kind != "ours"),
    ]


def _measure(arguments: argparse.Namespace) -> report.Figures:
    base = SMOKE if arguments.smoke else FULL
    effort = Effort(
        rounds=arguments.rounds or base.rounds,
        seconds=arguments.seconds or base.seconds,
        trips=base.trips,
        warm_up=base.warm_up,
        joins=base.joins,
        peers=arguments.crowd or base.peers,
        patience=arguments.patience,
    )
    wanted = [c for c in arguments.contenders if any(map(c.can, arguments.workloads))]
    left_out = {c.name: lack for c in wanted if (lack := c.missing())}
    contenders = [c for c in wanted if c.name not in left_out]
    workloads = [w for w in arguments.workloads if not w.needs or found(w.needs)]
    left_out |= {w.name: f"package {w.needs}" for w in arguments.workloads if w not in workloads}
    contenders = [c for c in contenders if any(c.can(w) for w in workloads)]
    packages = ["pubsubd", "msgpack", "uvloop", "numpy"]
    packages += (machine.distribution(p) for c in contenders for p in c.packages)
    where = machine.describe(dict.fromkeys(packages))
    results = run_all(contenders, workloads, effort)
    return report.as_figures(
        contenders, workloads, results, left_out, where, effort, not arguments.smoke
    )


def _write(folder: Path, figures: report.Figures) -> None:
    """Into the documentation: what is between the markers, the chart, the figures."""
    (folder / "benchmarks.svg").write_text(chart.as_svg(figures))
    (folder / "benchmarks.json").write_text(_json(figures))
    page = folder / "benchmarks.md"
    if not page.exists():
        page.write_text(f"# Benchmarks\n\n{BEGIN}\n{END}\n")
    image = (
        "![All figures as bars](benchmarks.svg)\n\n"
        "Orange: this library; blue: its peers; grey: the plain stream, and what this machine can."
    )
    _put_between(page, BEGIN, END, f"{image}\n\n{report.as_text(figures, 3)}")
    readme = folder.resolve().parent / "README.md"
    if readme.exists() and SUMMARY[0] in readme.read_text():
        _put_between(readme, *SUMMARY, summary.as_summary(figures))


def _put_between(page: Path, begin: str, end: str, text: str) -> None:
    before, found, rest = page.read_text().partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise ValueError(f"{page} has no lines {begin!r} and {end!r}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _json(figures: report.Figures) -> str:
    return json.dumps(figures, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Measure, report; see `_arguments` for the exit code."""
    arguments = _arguments()
    try:
        if arguments.made is not None:
            figures: report.Figures = json.loads(arguments.made.read_text())
        else:
            figures = _measure(arguments)
    except Failed as failure:  # a service did not start
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report.as_text(figures))
    if arguments.json is not None:
        arguments.json.write_text(_json(figures))
    if arguments.chart is not None:
        arguments.chart.write_text(chart.as_svg(figures))
    if arguments.write is not None:
        _write(arguments.write, figures)
    return 1 if any(result["failures"] for result in figures["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
