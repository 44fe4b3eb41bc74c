"""The parts of a value that ``--fields`` picks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["MISSING", "Fields"]

MISSING: Any = object()
"""Stands for a part that a value does not have."""


class Fields:
    """Paths into a value: keys of dicts and indices of lists, with dots between them.

    >>> Fields("room,temps.0,by").of({"room": "attic", "temps": [20.5, 21.0]})
    {'room': 'attic', 'temps.0': 20.5, 'by': None}

    Raises:
        ValueError: one of them is empty.
    """

    def __init__(self, text: str) -> None:
        self._paths = {path: path.split(".") for path in map(str.strip, text.split(","))}
        if not all(map(all, self._paths.values())):
            raise ValueError(
                f"--fields {text!r} has an empty name: it is written a,b.c,d.0, with commas "
                "between the fields and dots between the keys and indices of each"
            )

    def of(self, value: Any) -> dict[str, Any]:
        """The parts, each by its path; None: there is none."""
        picked = {path: pick(value, names) for path, names in self._paths.items()}
        return {path: None if part is MISSING else part for path, part in picked.items()}


def pick(value: Any, names: list[str]) -> Any:
    """The part of a value to which names lead one after the other, or `MISSING`."""
    for name in names:
        value = inner(value, name)
        if value is MISSING:
            break
    return value


def inner(value: Any, name: str) -> Any:
    """What a dict has under a key, or a list, tuple or array at an index; or `MISSING`."""
    index = None
    with suppress(ValueError):
        index = int(name)
    if isinstance(value, Mapping):
        return value.get(name, MISSING if index is None else value.get(index, MISSING))
    if index is not None and (isinstance(value, (list, tuple)) or hasattr(value, "dtype")):
        with suppress(IndexError):
            return value[index]
    return MISSING
