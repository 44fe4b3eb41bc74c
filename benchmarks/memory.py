"""What memory a process has."""

from __future__ import annotations

import resource
from pathlib import Path

__all__ = ["most", "now"]


def now() -> int:
    """KiB that are resident; 0 where that is not known."""
    return _status("VmRSS")


def most() -> int:
    """KiB that were resident at the highest. (What `getrusage` says of a child includes what its
    parent had when it forked: only a last resort.)"""
    return _status("VmHWM") or int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)
