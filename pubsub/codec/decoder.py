"""Decoders: the batches of one stream back to values. Each codec has its own (see `codecs`).

No function here may be called while another call on the same object runs: the caller locks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgpack

from pubsub.codec import extension_types, numpy_types, own_types
from pubsub.codec.explain import brief
from pubsub.codec.extension_types import (
    BUFFER,
    CODED,
    CONTAINERS,
    DATA_IN_BUFFER,
    MAX_NESTING,
    NDARRAY,
    NDARRAY_OUT_OF_BAND,
    NUMPY_SCALAR,
    OWN,
)
from pubsub.codec.own_codecs import Codec
from pubsub.errors import DecodeError
from pubsub.wire.buffers import FOR_LARGE, Buffer, reuse_memory

__all__ = [
    "BesideDecoder",
    "CodecDecoder",
    "Decoder",
    "MsgpackDecoder",
    "PickleDecoder",
    "RawDecoder",
]

_UNPACKER_SIZE: Final = 4 * 1024
"""Memory of the unpackers that a decoder keeps for tuples and sets."""

_UNCHECKED: Final = 1024
"""Bodies up to this size are decoded without a look at their structure first: what an array in
them may announce costs little. The look costs 1 µs and 8 % of decoding."""

_BROKEN: Final = (ValueError, msgpack.UnpackException)
"""What msgpack raises for bytes that are no msgpack."""


class Decoder:
    """Decodes the batches of one stream, and trusts none of their bytes.

    - The structure of a body is walked in C before anything is built of it, so that an array
      cannot announce what is not there; msgpack itself limits the nesting of arrays and maps to
      1,024, the nesting of extension types ends at 32.
    - Every buffer is given out once at most, whatever the body says.
    - pickle is not imported, except with ``allow_pickle``.

    Parameters:
        allow_pickle: trust every publisher of this topic with pickle, which runs their code.
        copy: numpy arrays are to be written to.

    Raises:
        DecodeError: the codec is not allowed.
    """

    __slots__ = ("_finish", "_readers", "_unpack", "_waiting")

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self._waiting: list[Buffer | None] = []  # buffers not yet given out
        # makes the values of what msgpack makes of a body; None: that is the values already
        self._finish: Callable[[list[Any]], list[Any]] | None = None
        self._readers: dict[int, Callable[[bytes], Any]] = {BUFFER: self._read_buffer}
        self._unpack = partial(
            msgpack.unpackb, ext_hook=self._read_ext, strict_map_key=False, timestamp=3
        )

    def decode(
        self, body: bytes | bytearray | memoryview, buffers: Sequence[Buffer] = ()
    ) -> list[Any]:
        """The values of a batch.

        Parameters:
            body: one msgpack array.
            buffers: the out-of-band buffers of its last value. None is copied, but what is not for
                one reader alone: as bytes, and with `copy` for an array.

        Raises:
            DecodeError: anything is wrong with any of them; `decode_each` tells them apart.
        """
        if not buffers:
            return self._decode(body)
        reuse_memory(FOR_LARGE)
        self._waiting = list(buffers)
        try:
            values = self._decode(body)
            if any(buffer is not None for buffer in self._waiting):
                raise DecodeError("a batch with buffers that belong to no value")
        finally:
            self._waiting = []
        return values

    def _decode(self, body: bytes | bytearray | memoryview) -> list[Any]:
        try:
            if len(body) > _UNCHECKED:
                _check_structure(body)
            values: list[Any] = self._unpack(body)
            if type(values) is not list:
                raise DecodeError("a batch that is no array")
            return values if self._finish is None else self._finish(values)
        except (DecodeError, KeyboardInterrupt):
            raise
        except BaseException as error:  # also what a value's own code raises: SystemExit, a panic
            raise DecodeError(_reason(error)) from error

    def decode_each(
        self, body: bytes | bytearray | memoryview, buffers: Sequence[Buffer] = ()
    ) -> list[Any]:
        """The values of a batch that `decode` refused, with a DecodeError in place of each that
        cannot be decoded; where the structure breaks, in place of all that would follow.

        Raises:
            DecodeError: not even their number can be told, or it cannot be true.
        """
        size = len(body)
        unpacker = msgpack.Unpacker(max_buffer_size=max(size, 1))
        try:
            unpacker.feed(body)
            count = unpacker.read_array_header()
        except _BROKEN as error:
            raise DecodeError("a batch that is no array") from error
        if count > size:
            raise DecodeError(f"a batch that announces {count:,} values in {size:,} bytes")
        values: list[Any] = []
        errors: dict[str, DecodeError] = {}
        view = memoryview(body)
        self._waiting = list(buffers)
        try:
            while len(values) < count:
                start = unpacker.tell()
                try:
                    unpacker.skip()
                except _BROKEN:  # and nothing else: what a signal handler raises is no fault of it
                    broken = DecodeError("a batch that is broken from here on")
                    values.extend([broken] * (count - len(values)))
                    break
                values.append(self._decode_one(view[start : unpacker.tell()], errors))
        finally:
            self._waiting = []
        return values

    def _decode_one(self, part: memoryview, errors: dict[str, DecodeError]) -> Any:
        waiting = list(self._waiting)
        for last in (False, True):  # an error that does not come again is a signal handler's
            try:
                value = self._unpack(part)
                return value if self._finish is None else self._finish([value])[0]
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if not last:
                    self._waiting = list(waiting)
                    continue
                # One error object for each text, and few texts: a batch may be millions of them.
                # Without a traceback, which would keep frames and their locals alive.
                text = str(error) if isinstance(error, DecodeError) else _reason(error)
        if len(errors) >= 100:
            text = "a message that cannot be decoded"
        return errors.setdefault(text, DecodeError(text))

    def _read_ext(self, code: int, payload: bytes) -> Any:
        """unpackb's hook."""
        reader = self._readers.get(code)
        if reader is None:
            raise DecodeError(f"a message with a value of an unknown type (extension {code})")
        try:
            return reader(payload)
        except DecodeError:
            raise
        except Exception as error:
            name = extension_types.NAMES[code]
            raise DecodeError(f"a message with a broken {name} ({brief(error)})") from error

    def _read_buffer(self, payload: bytes) -> bytes:
        if len(payload) != 4:
            raise ValueError("no index")
        return self._take(payload).take_bytes()

    def _take(self, payload: bytes) -> Buffer:
        """The buffer of the index that a payload begins with. Once only: a hundred references
        would make a hundred copies."""
        index = int.from_bytes(payload[:4], "big")
        buffer = self._waiting[index] if index < len(self._waiting) else None
        if buffer is None:
            raise ValueError("its buffer is missing")
        self._waiting[index] = None
        return buffer

    def _read_coded(self, payload: bytes) -> _Coded:
        head, start = int.from_bytes(payload[:4], "big"), 4
        end = start + 4 * (head & ~DATA_IN_BUFFER)
        if end > len(payload):
            raise ValueError("no such number of buffers")
        memory: list[memoryview | bytearray] = []
        for place in range(start, end, 4):
            view = self._take(payload[place : place + 4]).view()
            # What is read-only is not for one reader alone: others may have it, too.
            memory.append(bytearray(view) if view.readonly else view)
        data = payload[end:]
        return _Coded(self._read_buffer(data) if head & DATA_IN_BUFFER else data, memory)


class _Coded(NamedTuple):
    """What an own codec has written."""

    data: bytes
    memory: list[memoryview | bytearray]


class MsgpackDecoder(Decoder):
    __slots__ = ("_copy", "_depth", "_idle")

    def __init__(self, *, allow_pickle: bool = False, copy: bool = False) -> None:
        super().__init__()
        self._copy = copy
        self._depth = 0
        self._idle: list[Any] = []  # Unpackers for tuples and sets
        self._readers.update(extension_types.READERS)
        for kind, code in CONTAINERS.items():
            self._readers[code] = partial(self._read_nested, kind)
        self._readers[NDARRAY] = partial(numpy_types.read_array, copy=copy)
        self._readers[NDARRAY_OUT_OF_BAND] = self._read_array_out_of_band
        self._readers[NUMPY_SCALAR] = numpy_types.read_scalar
        self._readers[OWN] = self._read_own

    def _read_own(self, payload: bytes) -> Any:
        end = 1 + payload[0]
        name = payload[1:end]
        own = own_types.BY_NAME.get(name)
        if own is None:
            shown = name.decode("utf-8", "replace")
            raise DecodeError(
                f"a message with a value of the type {shown!r}, which is not known here: "
                f"pubsub.register(..., {shown!r}) before it comes"
            )
        wire = self._read_nested(None, memoryview(payload)[end:])
        try:
            return own.from_wire(wire)
        except Exception as error:
            text = f"a message with a {own.name!r} whose from_wire raised {brief(error)}"
            raise DecodeError(text) from error

    def _read_nested(
        self, kind: Callable[[list[Any]], Any] | None, payload: bytes | memoryview
    ) -> Any:
        """The value in a payload; with `kind` it is an array, and the items of that."""
        depth = self._depth
        if depth == MAX_NESTING:
            raise DecodeError("a message with tuples, sets and own types nested too deep")
        size = len(payload)
        small = size <= _UNPACKER_SIZE
        if small and self._idle:
            unpacker = self._idle.pop()
        else:
            # Not unpackb, which takes 40 KiB of the C stack each time.
            unpacker = msgpack.Unpacker(
                ext_hook=self._read_ext,
                strict_map_key=False,
                timestamp=3,
                read_size=max(size, _UNPACKER_SIZE),
                max_buffer_size=0,
            )
        self._depth = depth + 1
        try:
            start = unpacker.tell()
            unpacker.feed(payload)
            unpacker.skip()  # as in `_check_structure`
            if unpacker.tell() - start != size:
                raise ValueError("bytes left over")
            unpacker.feed(payload)
            value = unpacker.unpack()
            if small:
                self._idle.append(unpacker)
            if kind is None:
                return value
            if type(value) is not list:
                raise ValueError("no array")
            return kind(value)
        finally:
            self._depth = depth

    def _read_array_out_of_band(self, payload: bytes) -> Any:
        return numpy_types.build_array(payload, 4, self._take(payload), copy=self._copy)


class BesideDecoder(MsgpackDecoder):
    """msgpack, and an own codec for what that cannot carry."""

    __slots__ = ()

    def __init__(self, codec: Codec, *, allow_pickle: bool = False, copy: bool = False) -> None:
        super().__init__(copy=copy)
        self._readers[CODED] = lambda payload: _load(codec, self._read_coded(payload))


class CodecDecoder(Decoder):
    """An own codec for each value as a whole."""

    __slots__ = ()

    def __init__(self, codec: Codec, *, allow_pickle: bool = False, copy: bool = False) -> None:
        super().__init__()
        self._readers[CODED] = self._read_coded
        self._finish = partial(_load_each, codec)


class PickleDecoder(Decoder):
    __slots__ = ()

    def __init__(self, *, allow_pickle: bool = False, copy: bool = False) -> None:
        if not allow_pickle:
            raise DecodeError(
                'this stream is pickled (codec="pickle"), which lets its publisher run code '
                "here: use Sub(..., allow_pickle=True) if you trust every publisher of "
                "this topic"
            )
        super().__init__()
        self._finish = _unpickle


class RawDecoder(Decoder):
    __slots__ = ()

    def __init__(self, *, allow_pickle: bool = False, copy: bool = False) -> None:
        super().__init__()
        self._finish = _only_bytes


def _check_structure(body: bytes | bytearray | memoryview) -> None:
    """Raise if this is not one whole msgpack value."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), read_size=len(body))
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise DecodeError("a batch with bytes left over")


def _load(codec: Codec, coded: _Coded) -> Any:
    try:
        if codec.buffers:
            return codec.loads(coded.data, buffers=coded.memory)
        if coded.memory:
            raise ValueError("buffers that it does not take")
        return codec.loads(coded.data)
    except Exception as error:
        text = f"a message that codec {codec.name!r} cannot decode ({brief(error)})"
        raise DecodeError(text) from error


def _load_each(codec: Codec, values: list[Any]) -> list[Any]:
    found = []
    for value in values:
        if type(value) is bytes:
            value = _Coded(value, [])
        elif type(value) is not _Coded:
            raise DecodeError(f"a message that is not of codec {codec.name!r}")
        found.append(_load(codec, value))
    return found


def _unpickle(values: list[Any]) -> list[Any]:
    import pickle

    found = []
    for value in values:
        if type(value) is not bytes:
            raise DecodeError("a message that is not a pickle")
        try:
            found.append(pickle.loads(value))
        except Exception as error:
            raise DecodeError(f"a message that cannot be unpickled ({brief(error)})") from error
    return found


def _only_bytes(values: list[Any]) -> list[Any]:
    if not set(map(type, values)) <= {bytes}:
        raise DecodeError('a message that is not bytes, in a stream of codec="raw"')
    return values


def _reason(error: BaseException) -> str:
    return f"a message that cannot be decoded ({brief(error)})"
