"""The table of codecs: who encodes the values of a stream, and who decodes them.

=========  ========================================================================================
msgpack    What msgpack carries, and by its extension types (`extension_types`) tuples, sets, dates,
           numpy arrays and more. The same type comes back, with one exception that is
           msgpack's own: ``bytearray`` and ``memoryview`` come back as ``bytes``. Subclasses
           are refused, because they would come back as their base.
pickle     Any object; every value is one msgpack bin of its pickle (protocol 5).
raw        Bytes-like objects; every value is one msgpack bin. Comes back as ``bytes``.
=========  ========================================================================================

Beside these, a Pub or Sub may be given others (`own_codecs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

from pubsub.codec.decoder import (
    BesideDecoder,
    CodecDecoder,
    Decoder,
    MsgpackDecoder,
    PickleDecoder,
    RawDecoder,
)
from pubsub.codec.encoder import (
    BesideEncoder,
    CodecEncoder,
    Encoder,
    MsgpackEncoder,
    PickleEncoder,
    RawEncoder,
)
from pubsub.codec.own_codecs import Codec
from pubsub.errors import DecodeError

__all__ = ["CODECS", "Ends", "by_name", "codec_of", "decoder_of"]


class Ends(NamedTuple):
    """The two ends of one codec."""

    encoder: Callable[[str, int], Encoder]
    decoder: Callable[..., Decoder]


CODECS: Final[dict[str, Ends]] = {
    "msgpack": Ends(MsgpackEncoder, MsgpackDecoder),
    "pickle": Ends(PickleEncoder, PickleDecoder),
    "raw": Ends(RawEncoder, RawDecoder),
}

_NONE: Final[Mapping[str, Codec]] = MappingProxyType({})


def codec_of(codec: str | Codec) -> Ends:
    """The codec that a Pub is to use.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(codec, Codec):
        beside = codec.beside_msgpack
        return Ends(
            partial(BesideEncoder if beside else CodecEncoder, codec=codec),
            partial(BesideDecoder if beside else CodecDecoder, codec),
        )
    if not isinstance(codec, str) or codec not in CODECS:
        raise ValueError(
            f"codec {codec!r} is none of {', '.join(map(repr, CODECS))}, and no pubsub.Codec"
        )
    return CODECS[codec]


def by_name(codecs: Codec | Iterable[Codec]) -> dict[str, Codec]:
    """The own codecs that a Sub is given, by their names.

    Raises:
        TypeError: one of them is none.
        ValueError: two have one name.
    """
    found: dict[str, Codec] = {}
    for codec in (codecs,) if isinstance(codecs, (Codec, str)) else codecs:
        if not isinstance(codec, Codec):
            raise TypeError(
                f"codec={codec!r} is no pubsub.Codec (what is built in, a Sub decodes as it is)"
            )
        if found.setdefault(codec.name, codec) != codec:
            raise ValueError(f"two codecs of the name {codec.name!r}")
    return found


def decoder_of(
    codec: str,
    own: Mapping[str, Codec] = _NONE,
    *,
    allow_pickle: bool = False,
    copy: bool = False,
) -> Decoder:
    """A decoder for a stream, by the name of the codec that its publisher gave.

    Parameters:
        own: the own codecs that the Sub was given.
        allow_pickle, copy: see `Decoder`.

    Raises:
        DecodeError: the Sub does not know the codec, or does not allow it.
    """
    if codec in own:
        return codec_of(own[codec]).decoder(copy=copy)
    if codec not in CODECS:
        raise DecodeError(
            f"this stream uses the codec {codec[:40]!r}, which this Sub does not know "
            f"({', '.join((*CODECS, *own))}): give it that one too, with Sub(..., codec=…)"
        )
    return CODECS[codec].decoder(allow_pickle=allow_pickle, copy=copy)
