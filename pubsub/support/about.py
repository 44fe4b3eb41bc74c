"""What other people are told of this process: its name, number and machine.

All of it is decoration. Whatever it is made of may be missing or broken (embedded interpreters,
names of programs and machines that are no UTF-8), and nothing may fail because of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pubsub._version import __version__
from pubsub.support.host import this_host

__all__ = ["about", "plain"]

LONGEST = 255
"""Characters of a name."""


def about(name: str = "") -> dict[str, Any]:
    """The `info` of a HELLO or WELCOME.

    Parameters:
        name: what the program calls itself; empty: by its file.
    """
    host = this_host()
    program = _asked(lambda: os.path.basename(host.program()))  # type: ignore[call-overload]
    return {
        "name": plain(name) or program or "python",
        "pid": host.process_id(),
        "hostname": _asked(host.name),
        "library": __version__,
    }


def plain(text: object, longest: int = LONGEST) -> str:
    """A text that can be encoded, and printed in one line; empty for what is no text."""
    if not isinstance(text, str):
        return ""
    text = text[:longest]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:longest]


def _asked(what: Callable[[], object]) -> str:
    try:
        return plain(what())
    except Exception:  # there is no argv, or no text in it; a name that is not UTF-8
        return ""
