"""``pubsub topics`` and ``pubsub peers``: what coordinators know, for people and for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import click

from pubsub.cli.asking import ask_all
from pubsub.cli.command import FAILED, OK, say, way_out
from pubsub.cli.terminal import printable
from pubsub.config import Address
from pubsub.core.rights import EVERYTHING
from pubsub.errors import AuthError, CoordinatorUnavailable
from pubsub.trust.guard import Guard

__all__ = ["show", "table"]

COLUMNS = {
    "topics": ("topic", "publishers", "subscribers"),
    "peers": ("name", "address", "pid", "hostname", "pubs", "subs", "state"),
}


def show(
    what: Literal["topics", "peers"],
    addresses: Sequence[Address],
    guard: Guard,
    *,
    as_json: bool,
) -> int:
    """Ask every coordinator and print the rows of those that answered; returns the exit code.

    Where there are several, each row says by ``coordinator`` who told it: they know nothing of
    each other, and a difference between them is worth seeing.
    """
    told: dict[Address, list[dict[str, Any]]] = {}
    failed = 0
    with ThreadPoolExecutor(max_workers=min(32, len(addresses))) as pool:
        answers = [pool.submit(ask_all, address, what, guard) for address in addresses]
    for answer in answers:
        try:
            told.update(answer.result())
        except AuthError as error:
            failed += 1
            say(str(error))
        except CoordinatorUnavailable as error:
            failed += 1
            say(f"{error}: {way_out()}" if failed == len(addresses) else str(error))
    several = len(told) + failed > 1
    rows: list[dict[str, Any]] = []
    for address, found in told.items():
        if not found and not as_json:
            limits = "" if guard.rights == EVERYTHING else " that this certificate has a right to"
            say(f"the coordinator at {address} knows no {what}{limits}")
        rows += [{**({"coordinator": str(address)} if several else {}), **row} for row in found]
    if as_json:
        if rows or not failed:
            click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        columns = ("coordinator", *COLUMNS[what]) if several else COLUMNS[what]
        for line in table(columns, rows):
            click.echo(line)
    return FAILED if failed else OK


def table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> list[str]:
    """Rows as aligned lines below a heading; numbers stand to the right."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    heads = [column.upper() for column in columns]
    padded = []
    for column in zip(heads, *cells, strict=True):
        numbers = len(column) > 1 and all(map(_NUMBER.fullmatch, column[1:]))
        pad = str.rjust if numbers else str.ljust
        padded.append([pad(cell, max(map(len, column))) for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


_NUMBER = re.compile(r"-|\d[\d,.]*|\d[\d.]* [kMG]?B")
