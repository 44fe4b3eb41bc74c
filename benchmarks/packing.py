"""msgpack as the peers' users would set it up: one reused `Packer`, arrays by an extension type.

Arrays travel as dtype, shape and their bytes; what comes out shares the memory it came in. For
libraries that send a message in parts, `split` and `join` leave the large buffer of a message
uncopied beside the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

__all__ = ["join", "packer", "split", "unpack"]

_ARRAY = 1
unpackb = msgpack.unpackb


def packer() -> Callable[[Any], bytes]:
    """`pack` of a Packer that is kept."""
    pack: Callable[[Any], bytes] = msgpack.Packer(default=_array).pack
    return pack


def unpack(data: Any) -> Any:
    """One value."""
    return unpackb(data, ext_hook=_extension)


def _array(value: Any) -> msgpack.ExtType:
    head = msgpack.packb((value.dtype.str, value.shape))
    return msgpack.ExtType(_ARRAY, head + value.tobytes())


def _extension(code: int, data: bytes) -> Any:
    import numpy as np

    unpacker = msgpack.Unpacker()
    unpacker.feed(data[:64])
    dtype, shape = unpacker.unpack()
    return np.frombuffer(data, dtype=dtype, offset=unpacker.tell()).reshape(shape)


def split(value: Any) -> tuple[bytes, Any]:
    """A message of bytes, or a dict with one array in it, as a head and a buffer."""
    if isinstance(value, bytes):
        return b"", value
    if not value:
        return msgpack.packb(value), b""
    ((key, array),) = value.items()
    return msgpack.packb((key, array.dtype.str, array.shape)), array


def join(head: bytes, buffer: Any) -> Any:
    """What was split. An array shares the buffer; bytes are copied out of it."""
    if not head:
        return bytes(buffer)
    found = msgpack.unpackb(head)
    if not isinstance(found, list):
        return found
    import numpy as np

    key, dtype, shape = found
    return {key: np.frombuffer(buffer, dtype=dtype).reshape(shape)}
