"""The command line of the coordinator's benchmark: see the package."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import benchmarks.coordinator as package
from benchmarks.coordinator.measuring import MEASURES, SMALL, Effort
from benchmarks.coordinator.report import as_text, judged
from benchmarks.daemons import allow_files
from benchmarks.machine import describe
from benchmarks.stage import Failed

SPARE = 200
"""File descriptors that are none of a connection."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coordinator",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", help=f"{', '.join(MEASURES)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--small", action="store_true", help="whether it works, with a few peers")
    parser.add_argument("--rounds", type=int, help="of each (default 3)")
    args = parser.parse_args()
    wanted = args.what or list(MEASURES)
    for what in wanted:
        if what not in MEASURES:
            parser.error(f"there is no {what!r}; there are {', '.join(MEASURES)}")
    effort = SMALL if args.small else Effort()
    if args.rounds is not None:
        if args.rounds < 1:
            parser.error(f"--rounds {args.rounds} is below 1")
        effort = replace(effort, rounds=args.rounds)
    files = allow_files(effort.plan.peers + SPARE)
    if files < effort.plan.peers + SPARE:
        peers = max(1, files - SPARE)
        print(f"Only {files:,} files may be open here: {peers:,} peers.", file=sys.stderr)
        effort = replace(effort, plan=replace(effort.plan, peers=peers))
    figures = describe(("msgpack", "uvloop"))
    figures["plan"] = asdict(effort.plan)
    figures["rounds"] = effort.rounds
    try:
        for what in wanted:
            figures[what] = MEASURES[what](effort)
    except Failed as error:
        print(f"FAILED {what}: {error}", file=sys.stderr)
        return 1
    figures["goals"] = [] if args.small else judged(figures)
    print(as_text(figures))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
