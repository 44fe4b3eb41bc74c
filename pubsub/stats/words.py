"""Amounts in words: times, sizes and rates as people read them."""

from __future__ import annotations

__all__ = ["count", "duration", "rate", "size"]

SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0.00014, 0.041, 7.1, 12.4, 180.0, 90_000.0)]
    ['140 µs', '41 ms', '7.1 s', '12 s', '3 min', '25 h']
    """
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.00995 else 1}f} ms"
    if seconds < 119.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f} s"
    if seconds < 7170:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"


def size(number: float) -> str:
    """
    >>> [size(number) for number in (12, 3_145_728, 67_108_864)]
    ['12 bytes', '3.0 MiB', '64 MiB']
    """
    unit = 0
    while number >= 999.5 and unit < len(SIZES) - 1:
        number /= 1024
        unit += 1
    return f"{number:,.{1 if unit and number < 9.95 else 0}f} {SIZES[unit]}"


def rate(a_second: float) -> str:
    """
    >>> [rate(each) for each in (0.0, 0.04, 2.5, 1234.0)]
    ['0', '0.04', '2.5', '1,234']
    """
    if a_second >= 9.95 or a_second < 0.005:
        return f"{a_second:,.0f}"
    return f"{a_second:.{1 if a_second >= 0.1 else 2}f}"


def count(number: int, what: str) -> str:
    """
    >>> count(1, "message"), count(1200, "message")
    ('1 message', '1,200 messages')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
