"""Sizes and times as people write them."""

from __future__ import annotations

import re

__all__ = ["bytes_of", "period", "seconds_of"]

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PERIOD = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"([\d.]+)(ms|[smhd])")


def bytes_of(text: str) -> int:
    """How many bytes are meant: ``500000``, ``10MB``, ``1.5GiB``.

    Raises:
        ValueError: it is no size above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is not None:
        number, prefix, binary = found.groups()
        size = float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
        if 1 <= size < 2**63:
            return int(size)
    raise ValueError(f"{text!r} is no size: it is written 500000, 100MB or 1.5GiB")


def period(text: str) -> float | None:
    """How many seconds ``500ms``, ``5m`` or ``1h30m`` are; None: it is none of that form."""
    if not _PERIOD.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def seconds_of(text: str) -> float:
    """The same, or the number itself where it has no unit.

    Raises:
        ValueError: it is no time above 0.
    """
    seconds = float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else period(text)
    if seconds is None or not 0 < seconds < 1e9:
        raise ValueError(f"{text!r} is no time: it is written 90, 500ms, 5m or 1h30m")
    return seconds
