"""No secret in any output: what the tests and their processes say is looked through.

Each key that is made in the process of the tests is noted, in the forms in which it might be seen:
as a line of text, in hexadecimal, and as Python shows bytes. The keys of other processes are found
by their form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pubsub.errors import AuthError
from pubsub.trust.keys import Key

__all__ = ["found_in", "has_secret", "said", "said_by_processes", "watch"]

_WORD = re.compile(r"[A-Za-z0-9_\-]{43,}={0,2}")
_ESCAPED = re.compile(r"""b(["'])(?:\\.|(?!\1).){32,140}?\1""")
_KEY = re.compile(r"pubsubd-key-1:[A-Za-z0-9_\-]{48}")

_noted: set[str] = set()
_said: list[str] = []


def watch() -> None:
    """Note each key that is made from now on."""
    make = Key.__init__

    def noting(self: Key, secret: bytes) -> None:
        make(self, secret)
        secret = bytes(secret)
        if len(set(secret)) > 16:  # else one that a test has written down itself
            _noted.update((self.text().rpartition(":")[2], secret.hex(), repr(secret)))

    Key.__init__ = noting  # type: ignore[method-assign]


def said(line: bytes) -> None:
    """A process has said that. It is kept only where there is a secret in it."""
    text = line.decode(errors="replace")
    if has_secret(text):
        _said.append(text)


def said_by_processes() -> str:
    """Those lines, since this was asked last."""
    lines = "".join(_said)
    _said.clear()
    return lines


def has_secret(text: str) -> bool:
    """Whether somebody who reads that has a key."""
    for found in _KEY.findall(text):
        try:
            Key.parse(found)
        except AuthError:
            continue
        return True
    words = (*_WORD.findall(text), *(match[0] for match in _ESCAPED.finditer(text)))
    return not _noted.isdisjoint(words)


def found_in(sections: Iterable[tuple[str, Any]]) -> list[str]:
    """Which of these, each with its name, have one."""
    return [name for name, text in sections if has_secret(str(text))]
