"""Names as Dask had them, as topics: any text, and what else msgpack carries as a name."""

from __future__ import annotations

import ast
import hashlib
import re
from typing import Any
from urllib.parse import unquote

__all__ = ["key_of", "name_of", "topic_of"]

PREFIX = "dask/"
LONGEST = 900
"""Bytes of an encoded name; for a longer one its digest stands. (A topic has room for 1,024.)"""

# What cannot stand in one segment of a topic, and the sign that stands for it.
_REFUSED = re.compile("[%/*\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TEXT, _OTHER, _DIGEST = "", "%:", "%#"  # no text begins so: its own "%" is "%25"


def topic_of(name: Any) -> str:
    """The topic of a name, by which a plain `pubsub.Pub` or `pubsub.Sub` meets those of this face.

    >>> topic_of("loss/epoch*")
    'dask/loss%2Fepoch%2A'
    >>> topic_of(1) == topic_of("1")
    False
    """
    kind, text = (_TEXT, name) if isinstance(name, str) else (_OTHER, repr(name))
    encoded = kind + (_REFUSED.sub(_quoted, text) or "%-")
    raw = encoded.encode()
    if len(raw) > LONGEST:
        encoded = _DIGEST + hashlib.sha256(raw).hexdigest()
    return PREFIX + encoded


def name_of(topic: str) -> Any:
    """The name of such a topic. Of one that was too long, and of any other topic, the topic.

    >>> name_of(topic_of("loss/epoch*")), name_of(topic_of(("a", 1)))
    ('loss/epoch*', ('a', 1))
    """
    encoded = topic.removeprefix(PREFIX)
    if encoded == topic or encoded.startswith(_DIGEST):
        return topic
    if encoded == "%-":
        return ""
    text = unquote(encoded.removeprefix(_OTHER), errors="surrogatepass")
    if not encoded.startswith(_OTHER):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # of a type of the user's own
        return text


def key_of(topic: str) -> Any:
    """The name, or its text where it cannot be the key of a dict."""
    name = name_of(topic)
    return repr(name) if isinstance(name, (list, dict, set, tuple)) else name


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors="surrogatepass"))
