"""Codecs: values to bytes and back.

=========  ========================================================================================
msgpack    What msgpack carries, and by its extension types (`extension_types`) tuples, sets, dates,
           numpy arrays and more. The same type comes back, with one exception that is
           msgpack's own: ``bytearray`` and ``memoryview`` come back as ``bytes``. Subclasses
           are refused, because they would come back as their base.
pickle     Any object; every value is one msgpack bin of its pickle (protocol 5).
raw        Bytes-like objects; every value is one msgpack bin. Comes back as ``bytes``.
=========  ========================================================================================

The body of a batch is one msgpack array of its values, whatever the codec. Large buffers (from
`LARGE` on) travel out of band: in the body stands their number, an extension type.

What keeps it fast: one `msgpack.Packer` per Encoder and its C method given out as `Encoder.pack`;
`msgpack.unpackb` once per batch. What keeps hostile bytes harmless: see `Decoder`.

No function here may be called while another call on the same object runs: the caller locks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import msgpack

from pubsub.codec import extension_types, numpy_types
from pubsub.codec.explain import (
    PICKLE_INSTEAD,
    Fault,
    find_fault,
    find_unpicklable,
    refusal,
    type_name,
    with_article,
)
from pubsub.codec.extension_types import (
    BUFFER,
    CONTAINERS,
    LAYOUTS,
    NDARRAY,
    NDARRAY_OUT_OF_BAND,
    NUMPY_SCALAR,
    Unencodable,
)
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge, PubSubError, WrongContext
from pubsub.wire.buffers import FOR_LARGE, LargeBuffer, reuse_memory

__all__ = ["CODECS", "LARGE", "Decoder", "Encoder"]

CODECS: Final = ("msgpack", "pickle", "raw")

LARGE: Final = 64 * 1024
"""Buffers from this size on travel out of band."""

_MAX_NESTING: Final = 32
"""How deep tuples and sets may lie in each other: each is packed, and read, on its own."""

_LARGEST_BIN: Final = 2**32 - 1

_SPARE: Final = LARGE
"""Packers keep the memory of their largest value: those above this are let go. (Were it 1 MiB, 300
Pubs would keep 300 MiB after one large put each. It is had again faster than it is filled.)"""

_UNPACKER_SIZE: Final = 4 * 1024
"""Memory of the unpackers that a Decoder keeps for tuples and sets."""

_UNCHECKED: Final = 1024
"""Bodies up to this size are decoded without a look at their structure first: what an array in
them may announce costs little. The look costs 1 µs and 8 % of decoding."""

# ExtType's own __new__ checks in Python what is right here anyway: 0.2 instead of 0.5 µs.
_ext = partial(tuple.__new__, msgpack.ExtType)


class Encoder:
    """Encodes the values of one Pub.

    Parameters:
        codec: ``"msgpack"``, ``"pickle"`` or ``"raw"``.
        topic: named in errors.
        max_message: bytes; a value that is larger is refused before its buffers are copied, as
            far as that shows. The caller looks at the size of the whole message.

    Attributes:
        name: the codec.
        pack: the value as bytes, in the form that it has in a body. Raises whatever it raises,
            which `error` explains; then it must be called before anything else. With msgpack it
            is mostly a C method, and not always the same one. Whoever calls it puts `refuse` in
            its place until `take` was called too: code of others may run in the middle of it (a
            value's own, a destructor, a signal handler), and a packer that packs must not be
            called.
        refuse: see there.
        buffers: the buffers that belong to the value just packed. The caller takes them before
            it packs the next.

    Raises:
        ValueError: the codec is none of the three.
    """

    __slots__ = (
        "_bin",
        "_depth",
        "_dumps",
        "_idle",
        "_looking",
        "_max_message",
        "_plain",
        "_taken",
        "_topic",
        "buffers",
        "name",
        "pack",
        "refuse",
    )

    pack: Callable[[Any], bytes]
    refuse: Callable[[Any], bytes]
    buffers: list[bytes]

    def __init__(self, codec: str, topic: str, max_message: int) -> None:
        self.name = codec
        self.buffers = []
        self.refuse = self._refuse
        self._topic = topic
        self._max_message = max_message
        self._taken = 0  # bytes in buffers
        self._depth = 0  # tuples and sets that are being packed around this moment
        self._idle: list[Callable[[Any], bytes]] = []  # packers for tuples and sets
        self._looking = False
        if codec == "msgpack":
            self.pack = self._plain = self._new_packer()
        elif codec == "pickle":
            import pickle

            self._dumps = partial(pickle.dumps, protocol=5)
            self._bin: Callable[[bytes], bytes] = msgpack.Packer().pack
            self.pack = self._plain = self._pack_pickle
        elif codec == "raw":
            self._bin = msgpack.Packer().pack
            self.pack = self._plain = self._pack_raw
        else:
            raise ValueError(f'codec {codec!r} is none of "msgpack", "pickle" and "raw"')

    def take(self) -> tuple[bytes, ...]:
        """The buffers of the value just packed; they are the caller's now."""
        taken = tuple(self.buffers)
        self.buffers.clear()
        return taken

    def let_go(self, size: int) -> None:
        """Give back the memory of a packer that has packed so much: it would keep it."""
        if size > _SPARE and self.name == "msgpack":
            self._renew()

    def look(self, on: bool) -> None:
        """Whether `pack` looks for large bytes before it packs, as `pack_out_of_band` does: for
        whoever expects the next value to have some. (To pack them first, and put them aside only
        then, copies them twice for nothing.)"""
        if on is not self._looking and self.name == "msgpack":
            self._looking = on
            self.pack = self.pack_out_of_band if on else self._plain
            reuse_memory(FOR_LARGE)

    def pack_out_of_band(self, value: Any, packed: bytes | None = None) -> bytes:
        """Like `pack`, but large bytes in the value's dicts, lists and tuples go to `buffers`.

        ``bytes`` are taken as they are, a ``bytearray`` or ``memoryview`` as a copy, so that
        nobody sees what its owner does to it later. `packed`: what `pack` has made of the value
        already, which is it if nothing in it is large.
        """
        self.buffers.clear()
        detached = value
        if self.name == "msgpack":
            try:
                detached = self._detach(value)
            except RecursionError:  # deeper than `_detach` goes, perhaps not than `pack` goes
                self.buffers.clear()
        if detached is value and packed is not None:
            return packed
        return self._plain(detached)

    def _renew(self) -> None:
        self._plain = self._new_packer()
        if not self._looking:
            self.pack = self._plain

    def error(self, exc: BaseException, value: Any) -> PubSubError:
        """The error to raise in place of what `pack` raised for this value.

        It names the part of the value that is at fault, its place, the topic and the way out.
        """
        if isinstance(exc, WrongContext) and self.pack is self.refuse:
            return exc  # the put around this one goes on
        self.buffers.clear()
        self._depth = 0
        if self.name == "msgpack":
            self._looking = False
            self._renew()
        if isinstance(exc, PubSubError):
            return exc
        try:
            fault = self._fault(exc, value)
        except PubSubError as error:
            return error
        except Exception:  # a value that changes while it is walked, a strange repr, …
            fault = None
        self.buffers.clear()
        if fault is None:
            text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
            message = f"value on topic {self._topic!r} cannot be encoded ({text})"
            return EncodeError(message, topic=self._topic, type_name=type_name(type(value)))
        why = fault.why
        remedy = f"{why.remedy}, {PICKLE_INSTEAD}" if why.pickle else why.remedy
        return EncodeError(
            f"{fault.place} on topic {self._topic!r} {why.problem}: {remedy}",
            topic=self._topic,
            type_name=type_name(type(fault.culprit)),
        )

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        if self.name == "pickle":
            return find_unpicklable(value, self._dumps, exc)
        if self.name == "raw":
            why = Unencodable(
                f'is {with_article(type(value))}, and codec="raw" carries only bytes, '
                "bytearray and memoryview",
                'encode it first, or use Pub(..., codec="msgpack")',
                pickle=False,
            )
            return Fault("value", value, why)
        return find_fault(value, self._examine, _MAX_NESTING)

    def _examine(self, part: object) -> Exception | None:
        """What packing this part alone raises, if anything."""
        kind = type(part)
        if isinstance(part, (bytes, bytearray, str)):
            self._check_size(len(part))
            if kind in (bytes, bytearray) and len(part) <= _LARGEST_BIN:
                return None
        try:
            if kind is getattr(sys.modules.get("numpy"), "ndarray", None):
                numpy_types.array_head(part)  # type: ignore[arg-type]  # it is one
            else:
                self.pack(part)
        except Exception as error:
            return error
        return None

    def _check_size(self, size: int) -> None:
        if size > self._max_message:
            raise MessageTooLarge(topic=self._topic, size=size, limit=self._max_message)

    # --- msgpack ------------------------------------------------------------------------

    def _new_packer(self, buf_size: int = 256 * 1024) -> Callable[[Any], bytes]:
        pack: Callable[[Any], bytes] = msgpack.Packer(
            default=self._default,
            strict_types=True,
            use_bin_type=True,
            autoreset=True,
            buf_size=buf_size,
        ).pack
        return pack

    def _refuse(self, value: Any) -> bytes:
        """Stands for `pack` while it runs."""
        raise WrongContext(
            f"a put on {self._topic!r} from within another put on the same Pub, which encodes its "
            "value at this moment (from a destructor, a signal handler, or the value's own code)"
        )

    def _default(self, value: Any) -> Any:
        """The packer's hook: the extension type of a value that msgpack has no type for."""
        kind = type(value)
        layout = LAYOUTS.get(kind)
        if layout is not None:
            return _ext((layout[0], layout[1](value)))
        code = CONTAINERS.get(kind)
        if code is not None:
            return _ext((code, self._pack_nested(list(value))))
        np = sys.modules.get("numpy")  # never imported: then nothing can be numpy's
        if kind is getattr(np, "ndarray", None):
            return self._array(value)
        if isinstance(value, getattr(np, "generic", ())):
            return _ext((NUMPY_SCALAR, numpy_types.pack_scalar(value)))
        raise refusal(value)

    def _pack_nested(self, items: list[Any]) -> bytes:
        """The items as an array, by a packer that is not the one that called the hook.

        A packer that is packing must not be called, and a new one for each tuple would cost
        more than the tuple: hence some are kept.
        """
        depth = self._depth
        if depth == _MAX_NESTING:
            raise ValueError("nested too deep")
        pack = self._idle.pop() if self._idle else self._new_packer(1024)
        self._depth = depth + 1
        try:
            packed = pack(items)
        finally:
            self._depth = depth
        if len(packed) <= _SPARE:
            self._idle.append(pack)
        return packed

    def _array(self, array: Any) -> Any:
        head, order = numpy_types.array_head(array)
        size = array.nbytes
        if size < LARGE:
            return _ext((NDARRAY, head + array.tobytes(order)))
        self._reserve(size)
        index = self._put_out(array.tobytes(order))
        return _ext((NDARRAY_OUT_OF_BAND, index + head))

    def _detach(self, value: Any) -> Any:
        """The value with its large bytes put out; copied only as far as that changes it."""
        kind = type(value)
        if kind is dict:
            if not _HOLDS_BYTES.isdisjoint(map(type, value.values())):
                changed = {}
                for key, part in value.items():
                    new = self._detach(part)
                    if new is not part:
                        changed[key] = new
                if changed:
                    return {**value, **changed}
        elif kind is list or kind is tuple:
            if not _HOLDS_BYTES.isdisjoint(map(type, value)):
                parts = list(map(self._detach, value))
                if any(new is not part for new, part in zip(parts, value, strict=True)):
                    return parts if kind is list else tuple(parts)
        elif kind is bytes or kind is bytearray:
            if len(value) >= LARGE:
                return self._detached(value, len(value))
        elif kind is memoryview and value.nbytes >= LARGE and value.c_contiguous:
            return self._detached(value, value.nbytes)
        return value

    def _detached(self, value: bytes | bytearray | memoryview, size: int) -> Any:
        self._reserve(size)
        return _ext((BUFFER, self._put_out(value if type(value) is bytes else bytes(value))))

    # --- pickle and raw -----------------------------------------------------------------

    def _pack_pickle(self, value: Any) -> bytes:
        return self._pack_bin(self._dumps(value))

    def _pack_raw(self, value: Any) -> bytes:
        if type(value) is not bytes:
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise TypeError("not bytes")
            with memoryview(value) as view:
                self._check_size(view.nbytes)
                value = view.tobytes()
        return self._pack_bin(value)

    def _pack_bin(self, data: bytes) -> bytes:
        if len(data) < LARGE:
            return self._bin(data)
        self._reserve(len(data))
        index = self._put_out(data)
        return _BUFFER_HEADER + index

    # --- out of band --------------------------------------------------------------------

    def _reserve(self, size: int) -> None:
        """Fail before a copy is made that would be too large."""
        if not self.buffers:
            self._taken = 0
        self._taken += size
        self._check_size(self._taken)

    def _put_out(self, data: bytes) -> bytes:
        """Take this out of band; returns its number as the payloads have it."""
        index = len(self.buffers)
        self.buffers.append(data)
        return index.to_bytes(4, "big")


Buffer: TypeAlias = bytes | LargeBuffer
_BROKEN: Final = (ValueError, msgpack.UnpackException)
"""What msgpack raises for bytes that are no msgpack."""
_HOLDS_BYTES: Final = frozenset((bytes, bytearray, memoryview, dict, list, tuple))
_BUFFER_HEADER: Final = bytes((0xD6, BUFFER))  # fixext 4


class Decoder:
    """Decodes the batches of one stream, and trusts none of their bytes.

    - The structure of a body is walked in C before anything is built of it, so that an array
      cannot announce what is not there; msgpack itself limits the nesting of arrays and maps to
      1,024, the nesting of extension types ends at 32.
    - Every buffer is given out once at most, whatever the body says.
    - pickle is not imported, except with ``allow_pickle``.

    Parameters:
        codec: of the stream, as its publisher named it.
        allow_pickle: trust every publisher of this topic with pickle, which runs their code.

    Raises:
        DecodeError: a codec that is unknown or not allowed.
    """

    __slots__ = ("_depth", "_finish", "_idle", "_readers", "_unpack", "_waiting")

    def __init__(self, codec: str, *, allow_pickle: bool = False) -> None:
        self._waiting: list[Buffer | None] = []  # buffers not yet given out
        self._depth = 0
        self._idle: list[Any] = []  # Unpackers for tuples and sets
        self._finish: Callable[[list[Any]], list[Any]] | None = None
        self._readers: dict[int, Callable[[bytes], Any]] = {BUFFER: self._read_buffer}
        if codec == "msgpack":
            self._readers.update(extension_types.READERS)
            for kind, code in CONTAINERS.items():
                self._readers[code] = partial(self._read_container, kind)
            self._readers[NDARRAY] = numpy_types.read_array
            self._readers[NDARRAY_OUT_OF_BAND] = self._read_array_out_of_band
            self._readers[NUMPY_SCALAR] = numpy_types.read_scalar
        elif codec == "pickle":
            if not allow_pickle:
                raise DecodeError(
                    'this stream is pickled (codec="pickle"), which lets its publisher run code '
                    "here: use Sub(..., allow_pickle=True) if you trust every publisher of "
                    "this topic"
                )
            self._finish = _unpickle
        elif codec == "raw":
            self._finish = _only_bytes
        else:
            raise DecodeError(
                f"this stream uses the codec {codec[:40]!r}, which this version does not know "
                f"({', '.join(CODECS)})"
            )
        self._unpack = partial(
            msgpack.unpackb, ext_hook=self._read_ext, strict_map_key=False, timestamp=3
        )

    def decode(
        self, body: bytes | bytearray | memoryview, buffers: Sequence[Buffer] = ()
    ) -> list[Any]:
        """The values of a batch.

        Parameters:
            body: one msgpack array.
            buffers: the out-of-band buffers of its last value. What comes in a LargeBuffer is not
                copied.

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
        except DecodeError:
            raise
        except Exception as error:
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
            except Exception as error:
                if not last:
                    self._waiting = list(waiting)
                    continue
                # One error object for each text, and few texts: a batch may be millions of them.
                # Without a traceback, which would keep frames and their locals alive.
                text = str(error) if isinstance(error, DecodeError) else _reason(error)
        if len(errors) >= 100:
            text = "a message that cannot be decoded"
        return errors.setdefault(text, DecodeError(text))

    # --- extension types ----------------------------------------------------------------

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
            raise DecodeError(f"a message with a broken {name} ({_brief(error)})") from error

    def _read_container(self, kind: Callable[[list[Any]], Any], payload: bytes) -> Any:
        depth = self._depth
        if depth == _MAX_NESTING:
            raise DecodeError("a message with tuples and sets nested too deep")
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
            items = unpacker.unpack()
            if type(items) is not list:
                raise ValueError("no array")
            if small:
                self._idle.append(unpacker)
            return kind(items)
        finally:
            self._depth = depth

    def _read_buffer(self, payload: bytes) -> bytes:
        if len(payload) != 4:
            raise ValueError("no index")
        buffer = self._take(payload)
        return buffer.take_bytes() if isinstance(buffer, LargeBuffer) else buffer

    def _read_array_out_of_band(self, payload: bytes) -> Any:
        buffer = self._take(payload)
        items = buffer.take_memory() if isinstance(buffer, LargeBuffer) else buffer
        return numpy_types.build_array(payload, 4, items)

    def _take(self, payload: bytes) -> Buffer:
        """The buffer of the index that a payload begins with. Once only: a hundred references
        would make a hundred copies."""
        index = int.from_bytes(payload[:4], "big")
        buffer = self._waiting[index] if index < len(self._waiting) else None
        if buffer is None:
            raise ValueError("its buffer is missing")
        self._waiting[index] = None
        return buffer


def _check_structure(body: bytes | bytearray | memoryview) -> None:
    """Raise if this is not one whole msgpack value."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), read_size=len(body))
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise DecodeError("a batch with bytes left over")


def _unpickle(values: list[Any]) -> list[Any]:
    import pickle

    found = []
    for value in values:
        if type(value) is not bytes:
            raise DecodeError("a message that is not a pickle")
        try:
            found.append(pickle.loads(value))
        except Exception as error:
            raise DecodeError(f"a message that cannot be unpickled ({_brief(error)})") from error
    return found


def _only_bytes(values: list[Any]) -> list[Any]:
    if not set(map(type, values)) <= {bytes}:
        raise DecodeError('a message that is not bytes, in a stream of codec="raw"')
    return values


def _reason(error: Exception) -> str:
    return f"a message that cannot be decoded ({_brief(error)})"


def _brief(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
