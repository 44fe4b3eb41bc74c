"""Account: what is known of a Sub's publishers, and of what has come for it, in words and rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pubsub.faces.sub import Sub

__all__ = ["timeout_text", "untaken", "what_is_unknown"]


def untaken(sub: Sub) -> Iterator[tuple[str, int, int, float]]:
    """What has come and was not handed out: of each batch or gap its topic, how many messages are
    left of it, how many were lost before them, and when it was put."""
    run = sub._run
    if run is not None:
        missed = sum(gap.missed for gap in sub._gaps)
        yield run.stream.topic, operator.length_hint(run.values), missed, run.sent_at
    run = sub._runs
    while run is not None:
        missed = sum(count for count, _ in run.gaps)
        yield run.stream.topic, operator.length_hint(run.values), missed, run.sent_at
        run = run.following
    for entry in sub._inbox.waiting():
        missed = sum(count for count, _ in entry.gaps)
        yield entry.stream.topic, entry.end - entry.first, missed, entry.sent_at


def timeout_text(sub: Sub, timeout: float | None) -> str:
    """What is so, where nothing came: who is connected, and who is not, for how long. (Whoever asks
    again and again whether something waits pays for no walk over all publishers.)"""
    if timeout == 0:
        return f"nothing waits on {sub.topic!r}"
    found: dict[str, list[float]] = {}
    for stream in (*list(sub._inbox.streams.values()), *list(sub._inbox.gone.values())):
        found.setdefault(stream.state, []).append(sub._away(stream))
    connected = len(found.pop("attached", ()))
    few = {0: "no publisher is", 1: "one publisher is"}
    who = [few.get(connected, f"{connected} publishers are") + " connected"]
    for state, text in _STATES.items():
        if away := found.get(state):
            who.append(f"{len(away)} {text.format(seconds=max(away))}")
    return f"nothing came on {sub.topic!r} within {timeout:g} s ({', '.join(who)})"


_STATES = {
    "reconnecting": "lost and dialled again, for {seconds:.0f} s",
    "connecting": "not reached yet, for {seconds:.0f} s",
    "vanished": "vanished",
    "unreachable": "never reached",
}


def what_is_unknown(vanished: int, unreachable: int) -> str:
    """The sentence over an account of what was lost: how many publishers may have had more."""
    parts = []
    if vanished:
        parts.append(f"{vanished} publisher{'s' if vanished > 1 else ''} vanished")
    if unreachable:
        whom = "" if vanished else " publisher" if unreachable == 1 else " publishers"
        was = "was" if unreachable == 1 else "were"
        parts.append(f"{unreachable}{whom} {was} never reached")
    if not parts:
        return ""
    it = "it" if vanished + unreachable == 1 else "they"
    what = f"{it} put" if not vanished else f"{it} had not sent"
    return f"{', '.join(parts)}: what {what} is not known"
