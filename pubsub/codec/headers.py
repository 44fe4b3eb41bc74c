"""Headers: names and texts beside a message's value, which are read without the value.

Of a batch in which any message has some, they are one msgpack map behind the values: the message's
number in the batch → its headers. Nothing of it is decoded before somebody looks at the headers of
one of its messages.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgpack

from pubsub.codec.explain import brief, short, type_name, with_article
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge

__all__ = ["MAX_HEADERS", "BatchHeaders", "Headed", "Headers", "headers_of", "pack_headers"]

Headers: TypeAlias = Mapping[str, str | bytes]

MAX_HEADERS: Final = 64 * 1024
"""Bytes that the headers of one message may have, packed."""

_MAP = struct.Struct(">BI")  # map32 | how many, and the same for a number in it: uint32
_MAP32: Final = 0xDF
_U32: Final = 0xCE
_HEAD: Final = 2 * _MAP.size
"""Bytes of a batch of one message's headers, beside these."""

# As in `messages`: one for all, where packing runs no Python code.
_pack = msgpack.packb if msgpack.Packer.__module__ == "msgpack.fallback" else msgpack.Packer().pack


class Headed(bytes):
    """An encoded message that has headers. ``len()`` is what it counts for, with its headers: all
    that asks for the size of a message is so right of it, and pays nothing for those without."""

    headers: bytes

    def __new__(cls, data: bytes, headers: bytes) -> Headed:
        made = super().__new__(cls, data)
        made.headers = headers
        return made

    def __len__(self) -> int:
        return super().__len__() + len(self.headers) + _HEAD


def pack_headers(headers: Headers, topic: str) -> bytes:
    """The headers of one message as bytes.

    Parameters:
        topic: named in errors.

    Raises:
        EncodeError: they are no dict of str to str or bytes.
        MessageTooLarge: they are above `MAX_HEADERS`.
    """
    if type(headers) is not dict:
        if not isinstance(headers, Mapping):
            raise _refusal(
                f"headers on topic {topic!r} are {with_article(type(headers))}: give a dict, such "
                'as {"content-type": "image/png"}',
                *(topic, headers),
            )
        headers = dict(headers)
    size = 0
    for name, value in headers.items():
        if type(name) is not str:
            raise _refusal(
                f"the header {short(name)} on topic {topic!r} has "
                f"{with_article(type(name))} for a name: names are str",
                *(topic, name),
            )
        if type(value) is not str and type(value) is not bytes:
            raise _refusal(
                f"the header {short(name)} on topic {topic!r} is {with_article(type(value))}: "
                "a header is str or bytes, and all else belongs into the value",
                *(topic, value),
            )
        size += len(name) + len(value)
    if size <= MAX_HEADERS:  # else what packs would keep the memory for it
        try:
            packed: bytes = _pack(headers)
        except UnicodeEncodeError as error:
            raise _refusal(
                f"a header on topic {topic!r} is no text ({brief(error)}): give it as bytes",
                *(topic, ""),
            ) from None
        if len(packed) <= MAX_HEADERS:
            return packed
        size = len(packed)
    raise MessageTooLarge(topic=topic, size=size, limit=MAX_HEADERS, headers=len(headers))


def _refusal(message: str, topic: str, culprit: object) -> EncodeError:
    return EncodeError(message, topic=topic, type_name=type_name(type(culprit)))


def headers_of(parts: Sequence[bytes], count: int) -> bytes:
    """The headers of a batch of these messages, of which the first `count` count; empty: there are
    none."""
    found = [(i, part.headers) for i, part in enumerate(parts[:count]) if type(part) is Headed]
    if not found:
        return b""
    pairs = (piece for i, packed in found for piece in (_MAP.pack(_U32, i), packed))
    return b"".join((_MAP.pack(_MAP32, len(found)), *pairs))


class BatchHeaders:
    """The headers of a batch that came, not decoded before they are asked for.

    Parameters:
        raw: as `headers_of` has made them, or a stranger.
        first: the sequence number of the batch's first value.
        topic, publisher: named in errors.
    """

    __slots__ = ("_first", "_found", "_publisher", "_raw", "_topic")

    def __init__(self, raw: bytes | memoryview, first: int, topic: str, publisher: str) -> None:
        self._raw = raw
        self._first = first
        self._topic = topic
        self._publisher = publisher
        self._found: dict[Any, Any] | None = None

    def of(self, seq: int) -> dict[str, str | bytes]:
        """The headers of the message of that number; empty: it has none.

        Raises:
            DecodeError: they are not as they should be, and it says whose fault that is.
        """
        try:
            if self._found is None:
                self._found = _unpack(self._raw)
            found = self._found.get(seq - self._first)
            if found is None:
                return {}
            if type(found) is not dict or not (
                set(map(type, found)) <= {str} and set(map(type, found.values())) <= {str, bytes}
            ):
                raise ValueError("no map of names to texts or bytes")
        except Exception as error:  # whatever msgpack makes of hostile bytes
            raise DecodeError(
                f"the headers of message {seq} from {self._publisher} on {self._topic!r} cannot be "
                f"decoded ({brief(error)})",
                topic=self._topic,
                publisher=self._publisher,
            ) from None
        return dict(found)


def _unpack(raw: bytes | memoryview) -> dict[Any, Any]:
    """What is in there holds no array and no extension type, so that it announces nothing that is
    not there."""
    found = msgpack.unpackb(raw, strict_map_key=False, max_array_len=0, max_ext_len=0)
    if type(found) is not dict or set(map(type, found)) - {int}:
        raise ValueError("no map of numbers to headers")
    return found
