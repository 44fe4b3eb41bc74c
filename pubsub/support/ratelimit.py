"""A limit on how often a logger says the same thing, so that nobody outside can flood the log."""

from __future__ import annotations

import logging

__all__ = ["RateLimit"]


class RateLimit(logging.Filter):
    """Lets the first records of each text pass in a period; the next one that passes says how many
    did not.

    Parameters:
        most: records of one text (before its arguments are filled in) that pass in a period.
        period: seconds.
    """

    def __init__(self, most: int = 10, period: float = 60.0) -> None:
        super().__init__()
        self._most = most
        self._period = period
        self._seen: dict[str, tuple[float, int]] = {}
        """Of each text: when its period began, and how many records came in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.levelno < logging.INFO:
            return True  # who wants these wants all of them
        text = record.msg
        began, count = self._seen.get(text, (record.created, 0))
        left_out = 0
        if not began <= record.created < began + self._period:
            left_out = count - self._most
            began, count = record.created, 0
        self._seen[text] = (began, count + 1)
        if left_out > 0:
            record.msg = f"{text} (and {left_out} more like this were not logged)"
        return count < self._most
