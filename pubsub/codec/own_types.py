"""The table of own types: what `register` has taught this process to send and to receive.

One table for all Pubs and Subs. On the wire a value of an own type is its name and a value that
msgpack carries; which class that becomes, the receiver's own table says.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from enum import Enum, Flag
from typing import Any, Final, NamedTuple, TypeVar

import msgpack

from pubsub.codec.extension_types import CONTAINERS, LAYOUTS

__all__ = ["BY_NAME", "BY_TYPE", "OwnType", "has_converter", "register"]

T = TypeVar("T")

_HAVE_A_FORM: Final = frozenset(
    (
        *(type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict),
        *(msgpack.ExtType, msgpack.Timestamp, *LAYOUTS, *CONTAINERS),
    )
)
_LONGEST_NAME: Final = 255


class OwnType(NamedTuple):
    """One line of the table."""

    kind: type
    name: str
    head: bytes
    """u8 size of the name, the name: what stands before the value on the wire."""
    to_wire: Callable[[Any], Any]
    from_wire: Callable[[Any], Any]


BY_TYPE: Final[dict[type, OwnType]] = {}
BY_NAME: Final[dict[bytes, OwnType]] = {}


def register(
    type: type[T],
    name: str | None = None,
    to_wire: Callable[[T], Any] | None = None,
    from_wire: Callable[[Any], T] | None = None,
) -> type[T]:
    """Teach this process an own type: its values travel in messages, alone and within others.

    It must be registered under the same name where it is sent and where it is received; no class
    is ever imported by a name that came in a message. A value is of the type itself: subclasses
    are registered on their own. A class that is defined again (a reloaded module, a notebook's
    cell) takes the place of the one before.

    Parameters:
        type: the class. Alone, as a class decorator too, it is enough for a dataclass, an Enum, a
            pydantic model and an attrs class. Of these travel the fields that make a new one,
            each as it is (a nested one is registered as well); of an Enum's member its name, of a
            Flag its value.
        name: 1 to 255 bytes of UTF-8. Default: the class's module and qualified name; in the
            program that Python was started with that is ``__main__.…``, so give a name where
            another program is to receive it.
        to_wire: gives for a value another one that can be sent: of own types too, arrays, large
            bytes. It may be called more than once for one put.
        from_wire: makes the value of what `to_wire` gave. What it raises costs that message alone.
            It runs wherever the messages are taken, on whatever a publisher has sent.

    Returns:
        the class.

    Raises:
        TypeError: it is no class, or has a form on the wire already; or it is none of the kinds
            above, and `to_wire` and `from_wire` are not both given.
        ValueError: the name is taken by another type, or the type has another name; or the name is
            empty or too long.

    Example:
        >>> import pubsub
        >>> from dataclasses import dataclass
        >>> @pubsub.register
        ... @dataclass
        ... class Point:
        ...     x: int
        ...     y: int
        >>> _ = pubsub.register(range, "range", lambda r: (r.start, r.stop, r.step),
        ...                     lambda wire: range(*wire))
        >>> sub = pubsub.Sub("shapes")
        >>> pub = pubsub.Pub("shapes")
        >>> pub.put([Point(1, 2), range(3)])
        >>> sub.get(timeout=5)
        [Point(x=1, y=2), range(0, 3)]
        >>> pub.close(); sub.close()
    """
    if not issubclass(_type(type), _type):  # isinstance takes list[int] for one, in Python 3.10
        raise TypeError(f"register() takes a class, and {type!r} is none")
    full_name = _full_name(type)
    if type in _HAVE_A_FORM or _of_numpy(type):
        raise TypeError(f"{full_name} has a form on the wire already, and cannot be registered")
    if to_wire is None and from_wire is None:
        to_wire, from_wire = _converter_of(type)
    if not callable(to_wire) or not callable(from_wire):
        raise TypeError(
            f"register({full_name}) needs both ways: "
            f"register({type.__name__}, name, to_wire, from_wire)"
        )
    if name is None:
        name = full_name
    if not isinstance(name, str):
        raise TypeError(f"the name of {full_name} is no str: {name!r}")
    encoded = name.encode("utf-8")
    if not 0 < len(encoded) <= _LONGEST_NAME:
        raise ValueError(
            f"the name of {full_name} has {len(encoded)} bytes, and not 1 to {_LONGEST_NAME}"
        )
    known = BY_TYPE.get(type)
    if known is not None and known.name != name:
        raise ValueError(
            f"{full_name} is registered as {known.name!r}, and cannot be {name!r} as well"
        )
    other = BY_NAME.get(encoded)
    if other is not None and other.kind is not type and not _defined_again(type, other.kind):
        raise ValueError(
            f"the name {name!r} is that of {_full_name(other.kind)}, and cannot be that of "
            f"{full_name} as well"
        )
    own = OwnType(type, name, bytes((len(encoded),)) + encoded, to_wire, from_wire)
    BY_TYPE[type] = BY_NAME[encoded] = own
    return type


_type = type


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _defined_again(kind: type, before: type) -> bool:
    # What one function makes, call by call, are different classes of one name.
    return _full_name(kind) == _full_name(before) and "<locals>" not in kind.__qualname__


def _of_numpy(kind: type) -> bool:
    np = sys.modules.get("numpy")  # never imported: then nothing can be numpy's
    if kind is getattr(np, "ndarray", None):
        return True
    generic = getattr(np, "generic", None)
    return generic is not None and issubclass(kind, generic) and kind.__module__ == "numpy"


# --- what a class needs no converter for ------------------------------------------------

_Converter = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def _is_model(kind: type) -> bool:
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and issubclass(kind, base) and hasattr(kind, "model_validate")


def has_converter(kind: type) -> bool:
    """Whether `register` needs nothing but the type."""
    return (
        issubclass(kind, Enum)
        or _is_model(kind)
        or dataclasses.is_dataclass(kind)
        or hasattr(kind, "__attrs_attrs__")
    )


def _converter_of(kind: Any) -> _Converter:
    if issubclass(kind, Flag):  # several at once have no name of their own
        return (lambda member: member.value), kind
    if issubclass(kind, Enum):
        return (lambda member: member.name), kind.__getitem__
    if _is_model(kind):
        return _of_model(kind)
    if hasattr(kind, "__attrs_attrs__"):
        fields = {
            field.name: getattr(field, "alias", None) or field.name.lstrip("_")
            for field in kind.__attrs_attrs__
            if field.init
        }
        return _of_fields(kind, fields)
    if dataclasses.is_dataclass(kind):
        return _of_fields(kind, {f.name: f.name for f in dataclasses.fields(kind) if f.init})
    raise TypeError(
        f"{_full_name(kind)} is no dataclass, Enum, pydantic model or attrs class, so say how it "
        f"travels: register({kind.__name__}, name, to_wire, from_wire)"
    )


def _of_fields(kind: Any, fields: dict[str, str]) -> _Converter:
    """By the arguments of its ``__init__``: attribute → argument."""
    parameters = inspect.signature(kind).parameters
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in fields.values()
    ]
    unknown = [name for name in fields.values() if name not in parameters]
    if missing or unknown:
        raise TypeError(
            f"{_full_name(kind)} is not made of its fields alone ({', '.join(missing + unknown)}), "
            f"so say how it travels: register({kind.__name__}, name, to_wire, from_wire)"
        )

    def to_wire(value: Any) -> Any:
        return {argument: getattr(value, name) for name, argument in fields.items()}

    return to_wire, lambda wire: kind(**wire)


def _of_model(kind: Any) -> _Converter:
    """A pydantic model. Not by model_dump(), which makes dicts of nested models, and drops what
    those that are subclasses have more."""
    if getattr(kind, "__pydantic_root_model__", False):
        return (lambda model: model.root), kind.model_validate
    # By the names of its fields, which are in `__dict__`, whatever aliases they have.
    knows = "by_name" in inspect.signature(kind.model_validate).parameters
    how = {"by_alias": False, "by_name": True} if knows else {}  # since pydantic 2.11

    def to_wire(model: Any) -> Any:
        fields = {name: model.__dict__[name] for name in kind.model_fields}
        return {**fields, **(model.__pydantic_extra__ or {})}

    return to_wire, lambda wire: kind.model_validate(wire, **how)
