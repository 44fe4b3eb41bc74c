"""``pubsub tail --rate``: how much comes on each topic, second by second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from pubsub.cli.formats import iso
from pubsub.cli.listing import table

__all__ = ["Meter", "Table", "as_lines"]

REMEMBERED = 60.0
"""Seconds after which a topic on which nothing came is shown no more."""


@dataclass(slots=True)
class _Count:
    last: float
    messages: int = 0
    size: int = 0
    lost: int = 0
    total: int = 0


class Meter:
    """Counts what comes.

    Parameters:
        now: the time at which it begins, in seconds of any clock.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._counts: dict[str, _Count] = {}

    def add(self, topic: str, messages: int, size: int, lost: int, now: float) -> None:
        """So many messages of so many bytes have come, and so many were lost."""
        count = self._counts.get(topic)
        if count is None:
            count = self._counts[topic] = _Count(now)
        count.last = now
        count.messages += messages
        count.size += size
        count.lost += lost
        count.total += messages

    def read(self, now: float) -> dict[str, dict[str, float]]:
        """By topic what came in a second since it was read last, what was lost since then, and
        what came in all."""
        seconds = max(now - self._since, 1e-9)
        self._since = now
        rows = {}
        for topic, count in sorted(self._counts.items()):
            if now - count.last > REMEMBERED:
                del self._counts[topic]
                continue
            rows[topic] = {
                "messages_per_second": round(count.messages / seconds, 1),
                "bytes_per_second": round(count.size / seconds, 1),
                "lost": count.lost,
                "total": count.total,
            }
            count.messages = count.size = count.lost = 0
        return rows


def as_lines(rows: Mapping[str, Mapping[str, float]], at: float) -> bytes:
    """For programs: an object of JSON for each topic."""
    time = iso(at).decode()
    objects = ({"time": time, "topic": topic, **row} for topic, row in rows.items())
    return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in objects)


class Table:
    """For people: a table that stands in its place on a terminal."""

    def __init__(self) -> None:
        self._height = 0

    def draw(self, rows: Mapping[str, Mapping[str, float]]) -> bytes:
        """What puts it there, over the one before; of more topics than there is room for, those
        on which the most comes."""
        width, height = shutil.get_terminal_size()
        room = max(height - 3, 1)
        by_rate = sorted(rows, key=lambda topic: -rows[topic]["messages_per_second"])
        shown = sorted(by_rate[:room])
        cells = [
            {
                "topic": topic,
                "messages/s": f"{rows[topic]['messages_per_second']:,.0f}",
                "bytes/s": in_bytes(rows[topic]["bytes_per_second"]),
                "lost": f"{rows[topic]['lost']:,}",
                "total": f"{rows[topic]['total']:,}",
            }
            for topic in shown
        ]
        lines = table(("topic", "messages/s", "bytes/s", "lost", "total"), cells)
        if len(rows) > room:
            lines.append(f"… and {len(rows) - room:,} more topics")
        elif not rows:
            lines.append("nothing has come yet")
        back = f"\x1b[{self._height}A\x1b[J" if self._height else ""
        self._height = len(lines)
        return (back + "".join(f"{line[: width - 1]}\n" for line in lines)).encode()


def in_bytes(count: float) -> str:
    """Bytes for people: ``1.5 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
