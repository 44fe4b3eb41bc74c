"""What other people are told of this process: its name, number and machine.

All of it is decoration. Whatever it is made of may be missing or broken (embedded interpreters,
names of programs and machines that are no UTF-8), and nothing may fail because of that.
"""

from __future__ import annotations

import os
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
    return {
        "name": plain(name) or plain(_program()) or "python",
        "pid": this_host().process_id(),
        "hostname": plain(_hostname()),
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


def _program() -> object:
    try:
        return os.path.basename(this_host().program())  # type: ignore[call-overload]
    except Exception:  # there is no argv, or it is no list, or holds no text
        return ""


def _hostname() -> object:
    try:
        return this_host().name()
    except Exception:  # it cannot be asked for, or is not UTF-8
        return ""
