"""What a terminal is shown: nothing that it would obey, and colours where they are wanted.

What a message holds, and what another process says of itself, may be written by anybody. A program
that reads the output gets it as it is; a terminal gets escapes for control characters and for those
that turn the direction of text around, which hide what stands there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

__all__ = ["Color", "Screen", "printable", "wants_color"]

Color = Literal["auto", "always", "never"]

_TURNS = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_OBEYED = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_TURNS}]")  # not: tab, line feed
_UNPRINTABLE = re.compile(rf"[^\S ]|[\x00-\x1f\x7f-\x9f\ud800-\udfff{_TURNS}]")

_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=:)|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<number>-?\d[\d.eE+-]*)|(?P<word>true|false|null)"
)
_STYLES = {"key": "34;1", "text": "32", "number": "33", "word": "35", "time": "2", "topic": "36"}


def printable(text: str) -> str:
    """What another process said of itself, with nothing in it that a terminal would obey."""
    return _UNPRINTABLE.sub("?", text)


def wants_color(choice: Color, *, terminal: bool, env: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour: by itself on a terminal that can, unless NO_COLOR (no-color.org) says
    otherwise."""
    if choice != "auto":
        return choice == "always"
    return terminal and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


class Screen:
    """Makes lines fit for a terminal, with or without `color`."""

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def json(self, line: bytes) -> bytes:
        """A line of JSON, which stays the same JSON but for its colours."""
        text = _OBEYED.sub(_in_json, line.decode(errors="backslashreplace"))
        if self._color:
            text = _TOKEN.sub(_painted, text)
        return text.encode()

    def text(self, value: bytes, style: str = "") -> bytes:
        """Any other text; what is no UTF-8 becomes ``\\xff``."""
        shown = _OBEYED.sub(_in_text, value.decode(errors="backslashreplace"))
        if style and self._color:
            shown = _paint(shown, style)
        return shown.encode()


def _paint(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _painted(token: re.Match[str]) -> str:
    assert token.lastgroup is not None
    return _paint(token[0], token.lastgroup)


def _in_json(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _in_text(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", errors="surrogatepass").decode()
