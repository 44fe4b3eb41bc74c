"""Why a value could not be encoded: the part that is at fault, its place, and the way out.

All of this runs only after packing has failed, so that the fast path need not keep track of
where it is: the value is walked again, in the order in which it is packed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MappingView, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from os import PathLike
from types import FunctionType
from typing import Any, Final, NamedTuple
from uuid import UUID

from pubsub.codec import own_types
from pubsub.codec.extension_types import CONTAINERS, Failed, Unencodable

__all__ = ["Fault", "brief", "find_fault", "find_unpicklable", "refusal", "short", "with_article"]

PICKLE_INSTEAD: Final = 'or use Pub(..., codec="pickle") with Sub(..., allow_pickle=True)'

_LEVELS: Final = 1024
"""How deep lists and dicts may nest in what msgpack packs at one go."""

_CANNOT_FAIL: Final = frozenset((type(None), bool, float))
_MEMBER_OF: Final = "a member of"
_KEY_OF: Final = "a key of"
_WIRE_OF: Final = ".to_wire()"
"""Not a method, but what its `to_wire` has given."""


class Fault(NamedTuple):
    """The part of a value that could not be encoded."""

    place: str
    """Such as ``value['a'][3]``."""
    culprit: object
    why: Unencodable


# --- what is wrong with one object ------------------------------------------------------


def type_name(kind: type) -> str:
    """As it would be imported: ``collections.OrderedDict``, but ``dict``."""
    if kind.__module__ in ("builtins", None):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def with_article(kind: type) -> str:
    """``a dict``, ``an int``."""
    name = type_name(kind)
    return f"an {name}" if name[:1] in tuple("aeioAEIO") else f"a {name}"


# A subclass before its base; what to call for those that convert by a call.
_BASES: Final = (
    *(int, float, complex, str, bytes, bytearray, dict, list, tuple, set, frozenset),
    *(Decimal, UUID, datetime, date, time, timedelta),
)
_NO_CALL: Final = frozenset((UUID, datetime, date, time, timedelta))


def refusal(value: object) -> Unencodable:
    """Says why a type that has no form on the wire is refused, and what to do."""
    kind = type(value)
    is_a = f"is {with_article(kind)}"
    np = sys.modules.get("numpy")
    array = getattr(np, "ndarray", None)
    if array is not None and isinstance(value, array):
        return Unencodable(
            f"{is_a}, which would come back as a numpy.ndarray",
            "convert it with numpy.asarray(...)",
        )
    for base in _BASES:
        if isinstance(value, base):
            if isinstance(value, Enum):
                remedy = f"send its .value, {_register(kind)}"
            elif hasattr(kind, "_asdict"):
                remedy = "convert it with tuple(...) or ._asdict()"
            elif base in _NO_CALL:
                remedy = f"convert it to {with_article(base)}"
            else:
                remedy = f"convert it with {type_name(base).rpartition('.')[2]}(...)"
            return Unencodable(f"{is_a}, which would come back as {with_article(base)}", remedy)
    problem = f"{is_a}, which msgpack cannot carry"
    if isinstance(value, Awaitable):
        return Unencodable(problem, "await it first", pickle=False)
    if isinstance(value, (Iterator, MappingView)):
        return Unencodable(problem, "convert it with list(...)", pickle=False)
    if isinstance(value, FunctionType):  # pickle carries the name alone, and of a lambda nothing
        remedy = "send its name, or give Pub and Sub codec=pubsub.Codec.cloudpickle()"
        return Unencodable(problem, remedy, pickle=False)
    if isinstance(value, Enum):
        remedy = f"send its .value, {_register(kind)}"
    elif dataclasses.is_dataclass(kind):
        remedy = f"convert it with dataclasses.asdict(...), {_register(kind)}"
    elif hasattr(kind, "__attrs_attrs__"):
        remedy = f"convert it with attrs.asdict(...), {_register(kind)}"
    elif callable(getattr(kind, "model_dump", None)):
        remedy = f"convert it with .model_dump(), {_register(kind)}"
    elif isinstance(value, PathLike):
        remedy = "convert it with str(...)"
    elif callable(getattr(kind, "to_dict", None)):
        remedy = f"convert it with .to_dict(), {_register(kind)}"
    elif isinstance(value, Mapping):
        remedy = "convert it with dict(...)"
    elif isinstance(value, (Sequence, deque)):
        remedy = "convert it with list(...)"
    elif kind.__module__ == "builtins" or isinstance(value, type):
        remedy = "convert it"
    else:
        remedy = f"convert it, {_register(kind)}"
    return Unencodable(problem, remedy)


def _register(kind: type) -> str:
    more = "" if own_types.has_converter(kind) else ", name, to_wire, from_wire"
    return f"teach both sides pubsub.register({kind.__name__}{more})"


def _of_exception(error: Exception, culprit: object) -> Unencodable:
    """The same from what packing this one object raised."""
    if isinstance(error, Unencodable):
        return error
    is_a = f"is {with_article(type(culprit))}"
    if isinstance(error, UnicodeEncodeError):
        return Unencodable(
            f"{is_a} with a lone surrogate at index {error.start}, which UTF-8 cannot carry",
            'clean it with .encode("utf-8", "replace").decode()',
        )
    if isinstance(culprit, memoryview) and isinstance(error, BufferError):
        problem = f"{is_a} of memory that is not contiguous"
        return Unencodable(problem, "convert it with bytes(...)", pickle=False)
    return Unencodable(f"{is_a} that cannot be packed ({brief(error)})", "convert it")


def brief(error: BaseException) -> str:
    """What was raised, on one line."""
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__


# --- where it is ------------------------------------------------------------------------


def find_fault(
    value: object, examine: Callable[[object], Exception | None], max_nesting: int
) -> Fault | None:
    """The first part of a value that msgpack cannot carry; None where none is found.

    Parameters:
        examine: packs an object that holds no others, and returns what that raises.
        max_nesting: how many tuples and sets may lie in each other.
    """
    steps: list[str] = []
    walks: list[Iterator[tuple[str, object]]] = [iter((("", value),))]
    opened: list[tuple[int, int, int]] = []  # of each container: id, levels, nesting
    inside: set[int] = set()
    while walks:
        for step, part in walks[-1]:
            kind = type(part)
            if kind in _CANNOT_FAIL:
                continue
            steps.append(step)
            own = kind in own_types.BY_TYPE
            if own:
                error = examine(part)
                if isinstance(error, Failed) and error.culprit is part:
                    return Fault(_place(steps), part, error)
            if own or kind in (list, dict) or kind in CONTAINERS:
                is_a = f"is {with_article(kind)}"
                if id(part) in inside:
                    why = Unencodable(f"{is_a} that contains itself", "break the cycle")
                    return Fault(_place(steps), part, why)
                _, levels, nesting = opened[-1] if opened else (0, 0, 0)
                apart = own or kind in CONTAINERS
                levels, nesting = (1, nesting + 1) if apart else (levels + 1, nesting)
                if levels > _LEVELS:
                    problem = f"{is_a} nested more than {_LEVELS:,} levels deep"
                    why = Unencodable(problem, "flatten it", pickle=False)
                    return Fault(_place(steps), part, why)
                if nesting > max_nesting:
                    problem = f"{is_a} within more than {max_nesting} tuples, sets and own types"
                    return Fault(_place(steps), part, Unencodable(problem, "use lists"))
                opened.append((id(part), levels, nesting))
                inside.add(id(part))
                walks.append(_parts(part))
                break
            error = examine(part)
            if error is not None:
                return Fault(_place(steps), part, _of_exception(error, part))
            steps.pop()
        else:
            walks.pop()
            if opened:
                inside.discard(opened.pop()[0])
                steps.pop()
    return None


def find_unpicklable(
    value: object, dumps: Callable[[object], object], error: BaseException
) -> Fault:
    """The innermost part of lists, dicts, tuples and sets that cannot be pickled."""
    steps: list[str] = []
    part = value
    while len(steps) < 100:
        for step, inner in _parts(part):
            try:
                dumps(inner)
            except Exception as inner_error:
                steps.append(step)
                part, error = inner, inner_error
                break
        else:
            break
    problem = f"is {with_article(type(part))}, which cannot be pickled ({brief(error)})"
    remedy = "leave it out, or teach its class to be pickled"
    return Fault(_place(steps), part, Unencodable(problem, remedy, pickle=False))


def _parts(holder: object) -> Iterator[tuple[str, object]]:
    """What a container holds, each with the step that leads there, in the order of packing."""
    kind = type(holder)
    if isinstance(holder, dict) and kind is dict:
        for key, item in holder.items():
            yield _KEY_OF, key
            yield f"[{short(key)}]", item
    elif isinstance(holder, (list, tuple)) and kind in (list, tuple):
        for index, item in enumerate(holder):
            yield f"[{index}]", item
    elif isinstance(holder, (set, frozenset)) and kind in (set, frozenset):
        for item in holder:
            yield _MEMBER_OF, item
    elif kind in own_types.BY_TYPE:
        yield _WIRE_OF, own_types.BY_TYPE[kind].to_wire(holder)


def short(key: Any) -> str:
    """A key or name in an error message, whatever it is."""
    if type(key) in (str, bytes):
        return repr(key) if len(key) <= 40 else f"{key[:40]!r}…"
    if type(key) is int and key.bit_length() > 128:
        return "<int>"
    if type(key) in (int, float, bool, type(None)):
        return repr(key)
    return f"<{type(key).__qualname__}>"


def _place(steps: list[str]) -> str:
    if len(steps) > 40:
        steps = [*steps[:20], "…", *steps[-10:]]
    place = "value"
    for step in steps:
        place = f"({step} {place})" if step in (_KEY_OF, _MEMBER_OF) else place + step
    return place[1:-1] if place[0] == "(" and place[-1] == ")" else place
