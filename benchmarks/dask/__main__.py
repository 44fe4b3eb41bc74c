"""``python -m benchmarks.dask OLD``: both, in turns, and how they compare.

``OLD`` is the Python of an environment with distributed 2025.3.0 (`make bench-dask` makes it).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.dask.course import ARRAYS, SMALL, TRIP

COURSE = Path(__file__).with_name("course.py")
GOALS = {SMALL: 20.0, ARRAYS: 3.0, TRIP: 0.2}
"""Times as many a second, or of a round trip's time at most."""
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def run(python: str, module: str, scale: float) -> dict[str, Any]:
    """What one of them finds, in a process of its own."""
    ran = subprocess.run(
        [python, "-W", "ignore", str(COURSE), module, "--scale", str(scale)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        raise SystemExit(f"{module}: exit code {ran.returncode}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def in_words(what: str, seconds: float, size: int) -> str:
    """A figure, as people say it."""
    if what.startswith(TRIP):
        return f"{seconds * 1000:.2f} ms"
    return f"{size / seconds:,.0f}/s"


def table(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """The lines of a table in Markdown, of the medians of all rounds."""
    versions = old[0]["distributed"], new[0]["distributed"]
    lines = [
        f"| | distributed {versions[0]}'s own | `pubsub.dask`, distributed {versions[1]} | ratio "
        "(of each round) | goal |",
        "|---|---:|---:|---:|---:|",
    ]
    for what in [name for name in new[0] if isinstance(new[0][name], dict)]:
        size = new[0][what]["size"]
        before, after = ([found[what]["median"] for found in each] for each in (old, new))
        trip = what.startswith(TRIP)
        ratios = [b / a if trip else a / b for a, b in zip(before, after, strict=True)]
        goal = next(goal for kind, goal in GOALS.items() if what.startswith(kind))
        lines.append(
            f"| {what} | {in_words(what, statistics.median(before), size)} "
            f"| {in_words(what, statistics.median(after), size)} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {'≤' if trip else '≥'} {goal:g} |"
        )
    hung = sum(each["hung"] for found in old for each in found.values() if isinstance(each, dict))
    about = machine.describe(())
    lines += [
        "",
        f"{len(old)} rounds of both, in turns; medians. {about['machine']['cpus_usable']} × "
        f"{about['machine']['model']}, {about['python']}.",
    ]
    if hung:
        lines.append(f"The old one hung at its start {hung} times, and was started again.")
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask", description=__doc__)
    parser.add_argument("old", help="the Python of an environment with distributed 2025.3.0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of messages")
    parser.add_argument("--write", type=Path, help="put the table into this file, where it is now")
    asked = parser.parse_args()
    old, new = [], []
    for number in range(asked.rounds):
        print(f"round {number + 1} of {asked.rounds} …", file=sys.stderr, flush=True)
        old.append(run(asked.old, "distributed", asked.scale))
        new.append(run(sys.executable, "pubsub.dask", asked.scale))
    text = "\n".join(table(old, new))
    print(text)
    if asked.write is not None:
        page = asked.write.read_text()
        inner = f"{BEGIN}\n{text}\n{END}"
        asked.write.write_text(
            re.sub(f"{BEGIN}.*{END}", lambda _: inner, page, count=1, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
