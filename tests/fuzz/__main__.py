"""``python -m tests.fuzz [SECONDS]``: fuzz every target; ``… NAME FILE``: replay one input.

With atheris where it is installed, each target in a process of its own, because libFuzzer ends
with the first failure and never returns. Without it, the hypothesis tests run for as long.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HINT = "pip install -e '.[fuzz]' (CPython 3.10 to 3.14, Linux on x86-64)"


def with_atheris(name: str, seconds: str, folder: str) -> None:
    """Fuzz one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["pubsub"]):
        from tests.fuzz.targets import TARGETS

    corpus = Path(folder, name)
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=1024"]
    quiet = ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={folder}/{name}-"]
    atheris.Setup([sys.argv[0], *options, *quiet, str(corpus)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Run what the arguments say; the exit code."""
    if len(sys.argv) == 5 and sys.argv[1] == "--atheris":
        with_atheris(*sys.argv[2:5])
    from tests.fuzz.targets import TARGETS

    if len(sys.argv) == 3:
        TARGETS[sys.argv[1]](Path(sys.argv[2]).read_bytes())
        print(f"{sys.argv[1]}: nothing wrong with {sys.argv[2]}")
        return 0
    seconds = float(sys.argv[1]) if len(sys.argv) == 2 else 60.0
    if find_spec("atheris") is None:
        print(f"atheris is not installed ({HINT}): the hypothesis tests run for {seconds:g} s")
        command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz"]
        return subprocess.call(command, env={**os.environ, "FUZZ_SECONDS": str(seconds)})
    folder = tempfile.mkdtemp(prefix="pubsubd-fuzz-")
    each = max(1, round(seconds / len(TARGETS)))
    failed = []
    for name in TARGETS:
        print(f"== {name}: {each} s with atheris")
        command = [sys.executable, "-m", "tests.fuzz", "--atheris", name, str(each), folder]
        ran = subprocess.run(command, text=True, capture_output=True, check=False)
        lines = ran.stderr.splitlines() + ran.stdout.splitlines()
        if ran.returncode:
            failed.append(name)
        else:
            lines = [line for line in lines if "executed_units" in line or "peak_rss" in line]
        print("\n".join(line for line in lines if not line.startswith("INFO")))
    for name in failed:
        for found in sorted(Path(folder).glob(f"{name}-*")):
            print(f"replay with: python -m tests.fuzz {name} {found}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
