"""Where and with what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

__all__ = ["describe", "distribution"]

ROOT = Path(__file__).resolve().parent.parent


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """The machine, Python, the versions of these packages, the commit, the date."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "cpus_usable": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "model": _model(),
            "system": platform.platform(),
            "load_before": _load(),
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: found for name in packages if (found := _version(name))},
        "commit": _commit(),
    }


def distribution(package: str) -> str:
    """What it is called where it is installed from."""
    names = packages_distributions().get(package)
    return names[0] if names else package


def _load() -> float | None:
    """Processes that wanted a CPU, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, text = line.partition(":")
            if name.strip() == "model name":
                return text.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit, with a ``+`` when there are changes on top of it; empty outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
