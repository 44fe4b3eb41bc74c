"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import contenders as modules
from benchmarks import machine, report
from benchmarks.contender import Contender
from benchmarks.measuring import Effort
from benchmarks.results import FLOOR, judge
from benchmarks.running import run_all
from benchmarks.stage import Failed
from benchmarks.workloads import WORKLOADS, Workload

FULL = Effort(rounds=3, seconds=1.5, trips=10_000, warm_up=1_000)
SMOKE = Effort(rounds=1, seconds=0.02, trips=100, warm_up=10)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure pubsubd and its peers side by side.",
        epilog="Exit code: 0 when everything was measured, whether or not a floor is met; 1 when "
        "anything failed or a message was lost; 2 for wrong arguments.",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,…",
        default="",
        help="workloads, or groups of them: " + ", ".join(_names_of_workloads()),
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
    parser.add_argument("--smoke", action="store_true", help="small counts: does it work at all?")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {FULL.rounds}")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"of each sending, default: {FULL.seconds:g}"
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
    return [w for w in WORKLOADS if not names or w.name in names or w.group in names]


def _pick_contenders(faces: list[str], names: list[str]) -> list[Contender]:
    """Of ours and of the others those that are named, or all."""
    known: dict[str, Contender] = {}
    for module in modules.MODULES:
        known.update(modules.load(module))
    picked = dict(known) if not names else {}
    for name in names:
        if name in known:
            picked[name] = known[name]
        elif "." in name:
            try:
                picked.update(modules.load(name))
            except ImportError as error:
                raise ValueError(f"--peers: {name!r} cannot be imported: {error}") from None
        else:
            there = ", ".join(n for n, c in known.items() if c.kind != "ours")
            raise ValueError(f"--peers: there is no {name!r}; there are {there}")
    ours = {c.name: c for c in known.values() if c.kind == "ours"}
    unknown = sorted(set(faces) - set(ours) - {"none"})
    if unknown:
        raise ValueError(f"--faces: there is no {unknown[0]!r}; there are {', '.join(ours)}")
    return [
        *(c for name, c in ours.items() if not faces or name in faces),
        *(c for c in picked.values() if c.kind != "ours"),
    ]


def main() -> int:
    """Measure, report; see `_arguments` for the exit code."""
    arguments = _arguments()
    base = SMOKE if arguments.smoke else FULL
    effort = Effort(
        rounds=arguments.rounds or base.rounds,
        seconds=arguments.seconds or base.seconds,
        trips=base.trips,
        warm_up=base.warm_up,
        patience=arguments.patience,
    )
    left_out = {c.name: lack for c in arguments.contenders if (lack := c.missing())}
    contenders = [c for c in arguments.contenders if c.name not in left_out]
    packages = ["pubsubd", "msgpack", "uvloop", *(p for c in contenders for p in c.packages)]
    where = machine.describe(dict.fromkeys(packages))
    try:
        results = run_all(contenders, arguments.workloads, effort)
    except Failed as failure:  # a service did not start
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    ours = [c.name for c in contenders if c.kind == "ours"]
    measured = {workload.name for workload in arguments.workloads}
    verdicts = [judge(goal, results, ours) for goal in FLOOR if goal.workload in measured]
    if arguments.smoke:
        verdicts = []
    workloads = arguments.workloads
    print(report.as_text(contenders, workloads, results, verdicts, left_out, where, effort))
    if arguments.json is not None:
        content = report.as_json(contenders, results, verdicts, left_out, where, effort)
        arguments.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return 1 if any(result.failures for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
