"""Encoders: the values of one Pub to bytes. Each codec has its own (see `codecs`).

The body of a batch is one msgpack array of its values, whatever the codec. Large buffers (from
`LARGE` on) travel out of band: in the body stands their number, an extension type.

No function here may be called while another call on the same object runs: the caller locks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgpack

from pubsub.codec import numpy_types, own_types
from pubsub.codec.explain import (
    PICKLE_INSTEAD,
    Fault,
    brief,
    find_fault,
    find_unpicklable,
    refusal,
    type_name,
    with_article,
)
from pubsub.codec.extension_types import (
    BUFFER,
    CODED,
    CONTAINERS,
    DATA_IN_BUFFER,
    LAYOUTS,
    MAX_NESTING,
    NDARRAY,
    NDARRAY_OUT_OF_BAND,
    NUMPY_SCALAR,
    OWN,
    Failed,
    Unencodable,
)
from pubsub.codec.own_codecs import Codec
from pubsub.errors import EncodeError, MessageTooLarge, PubSubError, WrongContext
from pubsub.wire.buffers import FOR_LARGE, Block, Buffer, WholeBuffer, reuse_memory

__all__ = [
    "LARGE",
    "BesideEncoder",
    "CodecEncoder",
    "Encoder",
    "MsgpackEncoder",
    "PickleEncoder",
    "RawEncoder",
]

LARGE: Final = 64 * 1024
"""Buffers from this size on travel out of band."""

_LARGEST_BIN: Final = 2**32 - 1

_SPARE: Final = LARGE
"""Packers keep the memory of their largest value: those above this are let go. (Were it 1 MiB, 300
Pubs would keep 300 MiB after one large put each. It is had again faster than it is filled.)"""

_HOLDS_BYTES: Final = frozenset((bytes, bytearray, memoryview, dict, list, tuple))
_BUFFER_HEADER: Final = bytes((0xD6, BUFFER))  # fixext 4

# ExtType's own __new__ checks in Python what is right here anyway: 0.2 instead of 0.5 µs.
_ext = partial(tuple.__new__, msgpack.ExtType)


class Encoder:
    """Encodes the values of one Pub: what the codecs have in common.

    Parameters:
        topic: named in errors.
        max_message: bytes; a value that is larger is refused before its buffers are copied, as
            far as that shows. The caller looks at the size of the whole message.

    Attributes:
        pack: the value as bytes, in the form that it has in a body. Raises whatever it raises,
            which `pack_again` takes; then that must be called before anything else. With msgpack
            it is mostly a C method, and not always the same one. Whoever calls it puts `refuse` in
            its place until `take` was called too: code of others may run in the middle of it (a
            value's own, a destructor, a signal handler), and a packer that packs must not be
            called.
        refuse: see there.
        buffers: the buffers that belong to the value just packed. The caller takes them before
            it packs the next.
        memory: a block of that size for a large buffer, where others on this host see it without a
            copy; None: the buffer gets memory of its own.
        owns: whether a block is of that memory, and an array on it can be put as it is.
    """

    __slots__ = (
        *("_frozen", "_max_message", "_taken", "_topic"),
        *("buffers", "memory", "owns", "pack", "refuse"),
    )

    pack: Callable[[Any], bytes]

    def __init__(self, topic: str, max_message: int) -> None:
        self.buffers: list[Buffer] = []
        self.memory: Callable[[int], Block | None] = _nowhere
        self.owns: Callable[[Block], bool] = _not_ours
        self._frozen: list[Any] = []  # arrays that lie in the pool, and are put as they are
        self.refuse = self._refuse
        self._topic = topic
        self._max_message = max_message
        self._taken = 0  # bytes in buffers

    def take(self) -> tuple[Buffer, ...]:
        """The buffers of the value just packed; they are the caller's now."""
        taken = tuple(self.buffers)
        self.buffers.clear()
        while self._frozen:
            numpy_types.freeze(self._frozen.pop())
        return taken

    def let_go(self, size: int) -> None:
        """Give back the memory of a packer that has packed so much: it would keep it."""

    def expect_large(self, on: bool) -> None:
        """Whether `pack` looks for large bytes before it packs, as `pack_out_of_band` does: for
        whoever expects the next value to have some. (To pack them first, and put them aside only
        then, copies them twice for nothing.)"""

    def pack_out_of_band(self, value: Any, packed: bytes | None = None) -> bytes:
        """Like `pack`, but large bytes in the value's dicts, lists and tuples go to `buffers`.

        ``bytes`` are taken as they are, a ``bytearray`` or ``memoryview`` as a copy, so that
        nobody sees what its owner does to it later. `packed`: what `pack` has made of the value
        already, which is it if nothing in it is large.
        """
        self.buffers.clear()
        return self.pack(value) if packed is None else packed

    def pack_again(self, exc: Exception, value: Any) -> bytes:
        """The value in another way, after `pack` has raised this. `pack` is another one then.

        Raises:
            PubSubError: there is none; see `error`.
        """
        raise self.error(exc, value) from None

    def error(self, exc: BaseException, value: Any) -> PubSubError:
        """The error to raise in place of what `pack` raised for this value.

        It names the part of the value that is at fault, its place, the topic and the way out.
        """
        if isinstance(exc, WrongContext) and self.pack is self.refuse:
            return exc  # the put around this one goes on
        self.buffers.clear()
        self._frozen.clear()
        self._begin_anew()
        if isinstance(exc, PubSubError):
            return exc
        pack, self.pack = self.pack, self.refuse
        try:
            fault = self._fault(exc, value)
        except PubSubError as error:
            return error
        except Exception:  # a value that changes while it is walked, a strange repr, …
            fault = None
        finally:
            self.pack = pack
        self.buffers.clear()
        if fault is None:
            text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
            message = f"value on topic {self._topic!r} cannot be encoded ({text})"
            return EncodeError(message, topic=self._topic, type_name=type_name(type(value)))
        return self._told(fault)

    def _told(self, fault: Fault) -> EncodeError:
        why = fault.why
        remedy = f"{why.remedy}, {PICKLE_INSTEAD}" if why.pickle else why.remedy
        return EncodeError(
            f"{fault.place} on topic {self._topic!r} {why.problem}: {remedy}",
            topic=self._topic,
            type_name=type_name(type(fault.culprit)),
        )

    def _begin_anew(self) -> None:
        """Packing has failed somewhere: what was under way is not."""

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        """The part of the value for which packing raised this; None: none is found."""
        raise NotImplementedError

    def _refuse(self, value: Any) -> bytes:
        """Stands for `pack` while it runs."""
        raise WrongContext(
            f"a put on {self._topic!r} from within another put on the same Pub, which encodes its "
            "value at this moment (from a destructor, a signal handler, or the value's own code)"
        )

    def _check_size(self, size: int) -> None:
        if size > self._max_message:
            raise MessageTooLarge(topic=self._topic, size=size, limit=self._max_message)

    def _reserve(self, size: int) -> None:
        """Fail before a copy is made that would be too large."""
        if not self.buffers:
            self._taken = 0
        self._taken += size
        self._check_size(self._taken)

    def _put_out(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take this out of band; returns its number as the payloads have it. ``bytes`` stay what
        they are, unless others on this host can see a copy of them."""
        size = data.nbytes if type(data) is memoryview else len(data)
        block = self.memory(size)
        if block is None:
            return self._keep(WholeBuffer(data if type(data) is bytes else bytes(data)))
        block.room[:] = data.cast("B") if type(data) is memoryview else data
        return self._keep(block)

    def _keep(self, buffer: Buffer) -> bytes:
        """This one is out of band; returns its number as the payloads have it."""
        index = len(self.buffers)
        self.buffers.append(buffer)
        return index.to_bytes(4, "big")

    def _dump(self, codec: Codec, value: Any) -> tuple[bytes, list[bytes]]:
        """What an own codec makes of a value, and the numbers of the buffers that it left aside."""
        indices: list[bytes] = []

        def keep(buffer: Any) -> bool:
            """Its `buffer_callback`: true for what is to stay in the bytes."""
            try:
                memory = buffer.raw()
            except BufferError:  # it is not contiguous
                return True
            with memory:
                if memory.nbytes < LARGE:
                    return True
                self._reserve(memory.nbytes)
                indices.append(self._put_out(memory))
            return False

        try:
            data = codec.dumps(value, buffer_callback=keep) if codec.buffers else codec.dumps(value)
        except PubSubError:
            raise
        except Exception as error:
            raise _not_encoded(codec, value, brief(error)) from error
        if type(data) is not bytes:
            why = f"dumps gave {with_article(type(data))}, not bytes"
            raise _not_encoded(codec, value, why)
        return data, indices

    def _coded(self, data: bytes, indices: list[bytes]) -> Any:
        """The same as an extension type."""
        head = len(indices)
        if len(data) >= LARGE:
            self._reserve(len(data))
            head |= DATA_IN_BUFFER
            data = self._put_out(data)
        return _ext((CODED, b"".join((head.to_bytes(4, "big"), *indices, data))))


def _nowhere(size: int) -> None:
    """The memory of who shares none."""


def _not_ours(block: Block) -> bool:
    return False


def _not_encoded(codec: Codec, value: Any, why: str) -> Failed:
    problem = f"is {with_article(type(value))}, which codec {codec.name!r} cannot encode ({why})"
    return Failed(value, problem, "leave it out, or convert it")


class MsgpackEncoder(Encoder):
    __slots__ = ("_depth", "_idle", "_looking", "_plain")

    def __init__(self, topic: str, max_message: int) -> None:
        super().__init__(topic, max_message)
        self._depth = 0  # tuples and sets that are being packed around this moment
        self._idle: list[Callable[[Any], bytes]] = []  # packers for tuples and sets
        self._looking = False
        self.pack = self._plain = self._new_packer()

    def let_go(self, size: int) -> None:
        if size > _SPARE:
            self._renew()

    def expect_large(self, on: bool) -> None:
        if on is not self._looking:
            self._looking = on
            self.pack = self.pack_out_of_band if on else self._plain
            reuse_memory(FOR_LARGE)

    def pack_out_of_band(self, value: Any, packed: bytes | None = None) -> bytes:
        self.buffers.clear()
        if type(value) is bytes and len(value) >= LARGE:  # as below, at once
            self._reserve(len(value))
            return _BUFFER_HEADER + self._put_out(value)
        detached = self._detach_all(value)
        if detached is value and packed is not None:
            return packed
        return self._plain(detached)

    def _renew(self) -> None:
        self._plain = self._new_packer()
        if not self._looking:
            self.pack = self._plain

    def _begin_anew(self) -> None:
        self._depth = 0
        self._looking = False
        self._renew()

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        return find_fault(value, self._examine, MAX_NESTING)

    def _new_packer(self, buf_size: int = 256 * 1024) -> Callable[[Any], bytes]:
        pack: Callable[[Any], bytes] = msgpack.Packer(
            default=self._default,
            strict_types=True,
            use_bin_type=True,
            autoreset=True,
            buf_size=buf_size,
        ).pack
        return pack

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
                self._plain(part)
        except Exception as error:
            return error
        return None

    def _default(self, value: Any) -> Any:
        """The packer's hook: the extension type of a value that msgpack has no type for."""
        kind = type(value)
        try:
            layout = LAYOUTS.get(kind)
            if layout is not None:
                return _ext((layout[0], layout[1](value)))
            code = CONTAINERS.get(kind)
            if code is not None:
                return _ext((code, self._pack_nested(list(value))))
            np = sys.modules.get("numpy")  # never imported: then nothing can be numpy's
            if kind is getattr(np, "ndarray", None):
                return self._array(value)
            own = own_types.BY_TYPE.get(kind)
            if own is not None:
                return self._own(own, value)
            if isinstance(value, getattr(np, "generic", ())):
                return _ext((NUMPY_SCALAR, numpy_types.pack_scalar(value)))
        except Unencodable as why:  # a dtype of objects, a tzinfo without a name, …
            return self._without_form(value, why)
        return self._without_form(value, None)

    def _without_form(self, value: Any, why: Unencodable | None) -> Any:
        raise refusal(value) if why is None else why

    def _own(self, own: own_types.OwnType, value: Any) -> Any:
        try:
            wire = own.to_wire(value)
        except Exception as error:
            problem = f"is {with_article(own.kind)}, whose to_wire raised {brief(error)}"
            raise Failed(value, problem, "mend it, or leave the value out") from error
        return _ext((OWN, own.head + self._pack_nested(self._detach_all(wire))))

    def _pack_nested(self, value: Any) -> bytes:
        """A value by a packer that is not the one that called the hook.

        A packer that is packing must not be called, and a new one for each tuple would cost
        more than the tuple: hence some are kept.
        """
        depth = self._depth
        if depth == MAX_NESTING:
            raise ValueError("nested too deep")
        pack = self._idle.pop() if self._idle else self._new_packer(1024)
        self._depth = depth + 1
        try:
            packed = pack(value)
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
        block = numpy_types.block_of(array)
        if block is not None and self.owns(block):  # it lies where it should
            self._frozen.append(array)
            return _ext((NDARRAY_OUT_OF_BAND, self._keep(block) + head))
        block = self.memory(size)
        if block is None:
            return _ext((NDARRAY_OUT_OF_BAND, self._keep(WholeBuffer(array.tobytes(order))) + head))
        numpy_types.fill(block.room, array, order)
        return _ext((NDARRAY_OUT_OF_BAND, self._keep(block) + head))

    def _detach_all(self, value: Any) -> Any:
        """`_detach`; a value that is deeper than that goes, perhaps not than `pack` goes, is left
        as it is."""
        before, taken = len(self.buffers), self._taken
        try:
            return self._detach(value)
        except RecursionError:
            del self.buffers[before:]
            self._taken = taken
            return value

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
        return _ext((BUFFER, self._put_out(value)))


class BesideEncoder(MsgpackEncoder):
    """msgpack, and an own codec for what that cannot carry."""

    __slots__ = ("_codec",)

    def __init__(self, topic: str, max_message: int, codec: Codec) -> None:
        super().__init__(topic, max_message)
        self._codec = codec

    def _without_form(self, value: Any, why: Unencodable | None) -> Any:
        if isinstance(why, Failed):
            raise why
        return self._coded(*self._dump(self._codec, value))

    def _examine(self, part: object) -> Exception | None:
        error = super()._examine(part)
        if isinstance(error, Unencodable) and not isinstance(error, Failed):
            try:  # an array was looked at, and not packed
                self._plain(part)
            except Exception as packing:
                return packing
            return None
        return error

    def pack_again(self, exc: Exception, value: Any) -> bytes:
        """As a whole, where what failed was not one part of it."""
        if isinstance(exc, (PubSubError, Unencodable, MemoryError)):
            return super().pack_again(exc, value)
        self.buffers.clear()
        self._begin_anew()
        pack, self.pack = self.pack, self.refuse
        try:
            return pack(self._without_form(value, None))
        except PubSubError:
            self.buffers.clear()
            raise
        except Failed as why:
            self.buffers.clear()
            raise self._told(Fault("value", value, why)) from None
        finally:
            self.pack = pack


class _BinEncoder(Encoder):
    """Makes one msgpack bin of each value."""

    __slots__ = ("_bin",)

    def __init__(self, topic: str, max_message: int) -> None:
        super().__init__(topic, max_message)
        self._bin: Callable[[bytes], bytes] = msgpack.Packer().pack
        self.pack = self._pack

    def _pack(self, value: Any) -> bytes:
        raise NotImplementedError

    def _pack_bin(self, data: bytes) -> bytes:
        if len(data) < LARGE:
            return self._bin(data)
        self._reserve(len(data))
        return _BUFFER_HEADER + self._put_out(data)


class PickleEncoder(_BinEncoder):
    __slots__ = ("_dumps",)

    def __init__(self, topic: str, max_message: int) -> None:
        import pickle

        super().__init__(topic, max_message)
        self._dumps = partial(pickle.dumps, protocol=5)

    def _pack(self, value: Any) -> bytes:
        return self._pack_bin(self._dumps(value))

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        return find_unpicklable(value, self._dumps, exc)


class CodecEncoder(_BinEncoder):
    """An own codec for each value as a whole."""

    __slots__ = ("_codec",)

    def __init__(self, topic: str, max_message: int, codec: Codec) -> None:
        super().__init__(topic, max_message)
        self._codec = codec

    def _pack(self, value: Any) -> bytes:
        data, indices = self._dump(self._codec, value)
        return self._bin(self._coded(data, indices)) if indices else self._pack_bin(data)

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        return Fault("value", value, exc) if isinstance(exc, Unencodable) else None


class RawEncoder(_BinEncoder):
    __slots__ = ()

    def _pack(self, value: Any) -> bytes:
        if type(value) is not bytes:
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise TypeError("not bytes")
            with memoryview(value) as view:
                self._check_size(view.nbytes)
                value = view.tobytes()
        return self._pack_bin(value)

    def _fault(self, exc: BaseException, value: Any) -> Fault | None:
        why = Unencodable(
            f'is {with_article(type(value))}, and codec="raw" carries only bytes, '
            "bytearray and memoryview",
            'encode it first, or use Pub(..., codec="msgpack")',
            pickle=False,
        )
        return Fault("value", value, why)
