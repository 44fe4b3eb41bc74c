"""``pubsub doctor``: says why nothing arrives, for people and for programs."""

from __future__ import annotations

import json
import logging

import click

from pubsub.cli.command import FAILED, OK, say
from pubsub.cli.examining import Examination
from pubsub.cli.findings import Finding
from pubsub.cli.terminal import printable

__all__ = ["doctor"]

MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


async def doctor(topic: str | None, coordinator: str | None, as_json: bool) -> int:
    """Look at everything and print what was found; returns the exit code."""
    for name in ("pubsub", "asyncio"):  # what they have to tell, a finding says
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            for line in lines(finding):
                click.echo(line)

    await Examination(topic, coordinator, tell, say).run()
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        rows = [finding._asdict() for finding in found]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif wrong:
        say("1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong")
    else:
        notes = "; see the notes" if any(each.state == "note" for each in found) else ""
        say(f"nothing is wrong, as far as can be seen from here{notes}")
    return FAILED if wrong else OK


def lines(finding: Finding) -> list[str]:
    """A finding as people read it: what others say of themselves is in it."""
    shown = [f"{MARKS[finding.state]}  {printable(f'{finding.subject}: {finding.text}')}"]
    if finding.way_out:
        shown.append(f"       → {printable(finding.way_out)}")
    return shown
