"""Own codecs: what a program that has its own way to write values gives to its Pubs and Subs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from pubsub.errors import EncodeError

__all__ = ["BUILT_IN", "Codec"]

BUILT_IN: Final = ("msgpack", "pickle", "raw")
"""The names that are ours."""

_LONGEST_NAME: Final = 32


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec: ``Pub(topic, codec=it)`` encodes with it, ``Sub(topic, codec=it)`` (or a list of
    several) decodes the streams that bear its name.

    Parameters:
        name: what the wire calls it, 1 to 32 printable characters, and none of ``msgpack``,
            ``pickle`` and ``raw``. Streams of this name must mean the same everywhere.
        dumps: ``dumps(value)`` gives the bytes of a value. What it raises is an EncodeError.
        loads: ``loads(data)`` gives the value back. What it raises costs that message alone.
        beside_msgpack: values are encoded as by msgpack, as fast, and only what msgpack has no form
            for goes through `dumps`: each such part alone, so that an object that two of them
            share comes back as two. A value that msgpack cannot carry for another reason (it
            contains itself, is nested too deep, has a lone surrogate) goes through it as a whole.
        buffers: it takes large memory out of band, as pickle's protocol 5 does: `dumps` is called
            with ``buffer_callback=f`` too, and calls that with a `pickle.PickleBuffer` for each
            buffer; where that returns true (it is small) the buffer belongs into the bytes. `loads`
            is called with ``buffers=`` the list of those that do not, memory that is its own.
        runs_code: decoding runs code that the publisher chose, as with pickle. Then a Sub decodes
            it only from publishers that have shown who they are, or with
            ``allow_pickle="anyone"`` from all.

    Raises:
        TypeError, ValueError: one of these is not what it must be.

    Example:
        >>> import json
        >>> from pubsub import Codec, Pub, Sub
        >>> text = Codec("json", lambda value: json.dumps(value).encode(), json.loads)
        >>> sub = Sub("texts", codec=text)
        >>> pub = Pub("texts", codec=text)
        >>> pub.put({"a": (1, 2)})
        >>> sub.get(timeout=5)
        {'a': [1, 2]}
        >>> pub.close(); sub.close()
    """

    name: str
    dumps: Callable[..., bytes]
    loads: Callable[..., Any]
    _: KW_ONLY
    beside_msgpack: bool = False
    buffers: bool = False
    runs_code: bool = False

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str):
            raise TypeError(f"the name of a codec is no str: {name!r}")
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise ValueError(
                f"the name of a codec has 1 to {_LONGEST_NAME} printable characters: {name!r}"
            )
        if name in BUILT_IN:
            raise ValueError(f"the codec {name!r} is a built-in one: give yours another name")
        for what in ("dumps", "loads"):
            if not callable(getattr(self, what)):
                raise TypeError(f"codec {name!r}: {what} cannot be called")

    @classmethod
    def cloudpickle(cls) -> Codec:
        """Anything: as by msgpack, and what that has no form for by cloudpickle, functions and
        classes of ``__main__`` included. Large arrays within travel without being pickled.

        Putting needs the package cloudpickle (``pip install "pubsubd[cloudpickle]"``), and
        receiving only what the value itself needs.
        """
        how = {"beside_msgpack": True, "buffers": True, "runs_code": True}
        return cls("cloudpickle", _dump_by_cloudpickle, _load_pickle, **how)


def _dump_by_cloudpickle(value: Any, buffer_callback: Callable[[Any], Any]) -> bytes:
    try:  # (which may or may not be there where types are checked)
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise EncodeError(
            f"the codec 'cloudpickle' needs the package of that name ({error}): "
            'pip install "pubsubd[cloudpickle]"',
            topic="",
            type_name=f"{type(value).__module__}.{type(value).__qualname__}",
        ) from None
    dumped: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=buffer_callback)
    return dumped


def _load_pickle(data: bytes, buffers: list[memoryview]) -> Any:
    import pickle

    return pickle.loads(data, buffers=buffers)
