"""A long computation that says how far it is, and can be told what to do, while it runs.

    python examples/progress.py                              (one terminal)
    pubsub tail job/progress                                 (another)
    pubsub put job/control '{"step": 0.5}'
    pubsub put job/control stop

Two topics, one in each direction. `Sub(keep="latest")` is what a control wants: of several
commands that came meanwhile only the last counts. `get(timeout=0)` looks without waiting.
"""

from __future__ import annotations

import argparse
import time

from pubsub import Pub, Sub


def next_command(control: Sub) -> object:
    """What we were last told, or None."""
    try:
        return control.get(timeout=0)
    except TimeoutError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the golden ratio, slowly.")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two steps")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()

    step, x = 0.1, 10.0
    with Pub("job/progress", history=1) as progress, Sub("job/control", keep="latest") as control:
        for n in range(args.steps):
            command = next_command(control)
            if command == "stop":
                print("told to stop", flush=True)
                break
            if isinstance(command, dict):
                step = float(command.get("step", step))
                print(f"told to take steps of {step:g}", flush=True)
            x -= step * (x - (1 + 1 / x))
            progress.put({"done": n + 1, "of": args.steps, "x": x, "step": step})
            time.sleep(args.pause)
    print(f"x = {x:.6f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
