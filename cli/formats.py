"""Values as lines of text.

JSON has no form for much of what a message may hold. What stands for it here follows what JSON
mappings elsewhere do where there is a custom (protobuf's for numbers that JSON lacks, everybody's
for dates), and is always valid JSON:

=======================================  ======================================================
value                                    in JSON
=======================================  ======================================================
None, bool, int, float, str, list, dict  as they are
NaN, Infinity, -Infinity                 ``"NaN"``, ``"Infinity"``, ``"-Infinity"``
bytes                                    ``{"base64": "…"}``
tuple; set, frozenset                    an array; of a set sorted
datetime, date, time                     a string in ISO 8601
timedelta                                a number of seconds
Decimal, UUID, complex                   a string
numpy array                              nested arrays
numpy scalar                             what the Python value of it is
keys of a dict that are no strings       their JSON as a string: ``1`` becomes ``"1"``
anything else (of a pickle)              its ``repr`` as a string
=======================================  ======================================================
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any

from pubsub import DecodeError, Message
from pubsub.cli.fields import Fields
from pubsub.cli.terminal import Screen

__all__ = ["FORMATS", "Formatter", "as_json", "as_raw", "as_repr", "iso"]

_LARGEST_INT = 10_000
"""Bits above which Python refuses to write an int as decimal digits (about 4,300 of them)."""


def as_json(value: Any) -> bytes:
    """A value as one line of JSON in UTF-8, without the line's end."""
    try:
        return _encode(value).encode()
    except (TypeError, ValueError, RecursionError):
        pass  # a key that is no string, a number that JSON lacks, a lone surrogate, a cycle …
    try:
        return _encode_ascii(_plain(value)).encode()
    except (TypeError, ValueError, RecursionError):
        return _encode_ascii(_repr(value)).encode()


def as_repr(value: Any) -> bytes:
    """A value as Python writes it, on one line."""
    return _repr(value).encode(errors="backslashreplace")


def as_raw(value: Any) -> bytes:
    """The bytes or the text itself; of any other value its JSON."""
    if type(value) is str:
        return value.encode(errors="surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return as_json(value)


_SEPARATORS = re.compile(rb"[\\\t\n\r]")


def _escaped(found: re.Match[bytes]) -> bytes:
    return {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n"}.get(found[0], b"\\r")


FORMATS: dict[str, Callable[[Any], bytes]] = {"json": as_json, "repr": as_repr, "raw": as_raw}


class Formatter:
    """Messages as lines of a form: ``json``, ``repr`` or ``raw``.

    With `times` (at which each was sent), `topics` or `headers`, JSON lines are objects of
    ``time``, ``topic``, ``headers`` and ``value``; in the other forms these stand before the value,
    each behind it a tab. Headers are JSON in all of them; null: they cannot be decoded. Of
    `fields`, JSON lines are objects too, and the other forms have a tab between them.

    Parameters:
        fields: the parts of a value that are shown; None: all of it.
        screen: makes lines fit for a terminal; None: they go elsewhere.
    """

    def __init__(
        self,
        form: str,
        *,
        times: bool = False,
        topics: bool = False,
        headers: bool = False,
        fields: Fields | None = None,
        screen: Screen | None = None,
    ) -> None:
        self._form = FORMATS[form]
        self._json = form == "json"
        self._times = times
        self._topics = topics
        self._headers = headers
        self._fields = fields
        self._screen = screen
        self._sent_at = math.nan
        self._time = b""

    def line(self, message: Message) -> bytes:
        """One line, with its end."""
        if self._json:
            line = self._json_of(message)
            return (line if self._screen is None else self._screen.json(line)) + b"\n"
        shown = self._plain if self._screen is None else self._screen.text
        time = shown(self._time_of(message), "time") + b"\t" if self._times else b""
        topic = shown(message.topic.encode(), "topic") + b"\t" if self._topics else b""
        if self._fields is None:
            value = self._form(message.value)
        else:
            value = b"\t".join(map(self._cell, self._fields.of(message.value).values()))
        headers = shown(_headers(message), "") + b"\t" if self._headers else b""
        return time + topic + headers + shown(value, "") + b"\n"

    def _json_of(self, message: Message) -> bytes:
        value = message.value
        text = as_json(value if self._fields is None else self._fields.of(value))
        if not (self._times or self._topics or self._headers):
            return text
        time = b'"time": "' + self._time_of(message) + b'", ' if self._times else b""
        topic = b'"topic": ' + as_json(message.topic) + b", " if self._topics else b""
        headers = b'"headers": ' + _headers(message) + b", " if self._headers else b""
        return b"{" + time + topic + headers + b'"value": ' + text + b"}"

    def _cell(self, part: Any) -> bytes:
        """One of several fields of a line: it ends neither the line nor the column."""
        if self._form is not as_raw:
            return self._form(part)
        return b"" if part is None else _SEPARATORS.sub(_escaped, as_raw(part))

    @staticmethod
    def _plain(text: bytes, style: str) -> bytes:
        return text

    def _time_of(self, message: Message) -> bytes:
        if message.sent_at != self._sent_at:  # the same for all messages of a batch
            self._sent_at = message.sent_at
            self._time = iso(message.sent_at)
        return self._time


def _headers(message: Message) -> bytes:
    try:
        return as_json(message.headers)
    except DecodeError:
        return b"null"


def iso(seconds: float) -> bytes:
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        return repr(seconds).encode()
    return local.isoformat(timespec="microseconds").encode()


def _plain(value: Any) -> Any:
    """The value with everything that JSON lacks replaced."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _LARGEST_INT else hex(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {_key(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(inner) for inner in value), key=_order)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if type(value).__module__ in ("decimal", "uuid") or isinstance(value, complex):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return _plain_numpy(value)
    return _repr(value)


def _plain_numpy(value: Any) -> Any:
    """A numpy array or scalar; numpy itself need not be imported for it."""
    if value.dtype.kind in "mM":  # `tolist` would make ints of nanoseconds
        return _plain(value.astype(str).tolist())
    plain = value.tolist()
    if hasattr(plain, "dtype"):  # what Python has no type for, such as a long double
        return str(value)
    return _plain(plain)


def _key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else _encode(plain)


def _order(plain: Any) -> tuple[str, Any]:
    """Numbers by size, all else by its JSON."""
    if isinstance(plain, (int, float)):
        return "", plain
    return type(plain).__name__, _encode(plain)


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # of a class that this process may never have seen
        return f"<{type(value).__qualname__} without a repr: {type(error).__name__}>"
    return re.sub(r"\s*\n\s*", " ", text) if "\n" in text else text


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode
_encode_ascii = json.JSONEncoder(allow_nan=False, default=_plain).encode
