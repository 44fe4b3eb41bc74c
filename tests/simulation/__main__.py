"""The soak: as many seeds as asked for, or one again.

python -m tests.simulation --seeds 1000 [--first 0] [--profile chaos]
python -m tests.simulation --seed 17
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.model import Violation
from tests.simulation.world import PROFILES, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--profile", choices=PROFILES, help="default: drawn from the seed")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    began = time.monotonic()
    failed: list[int] = []
    put = got = faults = 0
    seconds = 0.0
    for seed in seeds:
        journal: list[str] = []
        try:
            outcome = simulate(seed, options.profile, journal)
        except Violation as violation:
            failed.append(seed)
            if len(seeds) == 1:
                print(*journal, sep="\n")
            print(f"seed {seed}: {violation}", flush=True)
            if violation.__cause__ is not None and len(seeds) == 1:
                traceback.print_exception(violation.__cause__)
            continue
        put += outcome.put
        got += outcome.got
        faults += outcome.faults
        seconds += outcome.seconds
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds in {took:.1f} s ({len(seeds) / took:.1f} a second): {put:,} messages "
        f"put, {got:,} taken, {faults:,} faults, {seconds / 3600:.1f} simulated hours; "
        f"{len(failed)} failed {failed[:20] or ''}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
