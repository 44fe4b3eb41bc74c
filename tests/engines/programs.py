"""Programs that these tests run as their users do: from a file, with the processes they start."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests import secrecy

__all__ = ["ENOUGH", "EXAMPLES", "run", "run_program"]

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
ENOUGH = 60.0
"""Seconds after which a program hangs. They take few; where others have the processors, more."""

QUIET_RAY = {
    "RAY_AUTH_MODE": "disabled",  # else it writes a token into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(*args: str | Path, code: int = 0, **env: str) -> list[str]:
    """Run a program to its end; returns the lines that it printed."""
    done = subprocess.run(
        [str(arg) for arg in args],
        env={**os.environ, **QUIET_RAY, "PYTHONPATH": _path(), **env},
        capture_output=True,
        timeout=ENOUGH,
    )
    secrecy.said(done.stdout + done.stderr)
    assert done.returncode == code, (done.stdout + done.stderr).decode()
    return done.stdout.decode().splitlines()


def _path() -> str:
    """Where the examples can be imported, also by the processes that a program starts."""
    return os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_program(folder: Path, source: str, *args: str) -> list[str]:
    """The same with a Python program that a test brings."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return run(sys.executable, path, *args)
