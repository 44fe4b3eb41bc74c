"""The table of codecs: who encodes the values of a stream, and who decodes them.

=========  ========================================================================================
msgpack    What msgpack carries, and by its extension types (`extension_types`) tuples, sets, dates,
           numpy arrays and more. The same type comes back, with one exception that is
           msgpack's own: ``bytearray`` and ``memoryview`` come back as ``bytes``. Subclasses
           are refused, because they would come back as their base.
pickle     Any object; every value is one msgpack bin of its pickle (protocol 5).
raw        Bytes-like objects; every value is one msgpack bin. Comes back as ``bytes``.
=========  ========================================================================================
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pubsub.codec.decoder import Decoder, MsgpackDecoder, PickleDecoder, RawDecoder
from pubsub.codec.encoder import Encoder, MsgpackEncoder, PickleEncoder, RawEncoder
from pubsub.errors import DecodeError

__all__ = ["CODECS", "Codec", "codec_of", "decoder_of"]


class Codec(NamedTuple):
    """The two ends of one codec."""

    encoder: type[Encoder]
    decoder: type[Decoder]


CODECS: Final[dict[str, Codec]] = {
    "msgpack": Codec(MsgpackEncoder, MsgpackDecoder),
    "pickle": Codec(PickleEncoder, PickleDecoder),
    "raw": Codec(RawEncoder, RawDecoder),
}


def codec_of(name: str) -> Codec:
    """The codec that a Pub is to use.

    Raises:
        ValueError: there is none of this name.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise ValueError(f"codec {name!r} is none of {', '.join(map(repr, CODECS))}")
    return CODECS[name]


def decoder_of(codec: str, *, allow_pickle: bool = False) -> Decoder:
    """A decoder for a stream, by the name of the codec that its publisher gave.

    Raises:
        DecodeError: this version does not know the codec, or the Sub does not allow it.
    """
    if codec not in CODECS:
        raise DecodeError(
            f"this stream uses the codec {codec[:40]!r}, which this version does not know "
            f"({', '.join(CODECS)})"
        )
    return CODECS[codec].decoder(allow_pickle=allow_pickle)
