"""The filter of ``--where``: an expression over the value of a message.

It is read as Python reads it, and evaluated by `simpleeval`, which knows no statement and nothing
of this process. What it is let do here is less still: behind a dot stands a key, never an attribute
of an object, and nothing is called but what `_FUNCTIONS` lists.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pubsub import Message
from pubsub.cli.fields import MISSING, inner

if TYPE_CHECKING:
    from simpleeval import EvalWithCompoundTypes

__all__ = ["Where"]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "lower": lambda text: str.lower(text),
    "search": lambda pattern, text: re.search(pattern, text) is not None,
    "date": datetime.fromisoformat,
}

_WORDS = {"true": True, "false": False, "null": None}
"""What JSON calls them; no names of fields."""

_OF_MESSAGE: dict[str, Callable[[Message], Any]] = {
    "value": lambda message: message.value,
    "topic": lambda message: message.topic,
    "time": lambda message: datetime.fromtimestamp(message.sent_at).astimezone(),
}
"""What names mean that are no keys of the value."""

_ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.Is, ast.IsNot, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod),
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.Load, ast.Call),
    *(ast.List, ast.Tuple, ast.Set, ast.IfExp),
)


class Where:
    """Which messages are wanted.

    Parameters:
        text: such as ``temp > 30 and room == "kitchen"``.

    Attributes:
        unfit: of how many messages it could not be said.
        why: what was wrong with the first of them.

    Raises:
        ValueError: it is not an expression, or not one of those that are taken.
        ImportError: `simpleeval` is not installed.
    """

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._tree = _parsed(self._text)
        self._evaluator = _evaluator(self._named)
        self._message: Message | None = None
        self.unfit = 0
        self.why = ""

    def __call__(self, message: Message) -> bool:
        """Whether it holds; a value that it does not fit is not wanted."""
        self._message = message
        try:
            return bool(self._evaluator.eval(self._text, previously_parsed=self._tree))
        except Exception as error:  # whatever a value of any type does when it is compared
            self.unfit += 1
            if not self.why:
                self.why = str(error) or type(error).__name__
            return False

    def _named(self, node: ast.Name) -> Any:
        name = node.id
        assert self._message is not None
        found = inner(self._message.value, name)
        if found is not MISSING:
            return found
        if name in _OF_MESSAGE:
            return _OF_MESSAGE[name](self._message)
        if name in _WORDS:
            return _WORDS[name]
        raise LookupError(f"{name!r} is missing")


def _parsed(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        at = error.offset - 1 if error.lineno == 1 and error.offset else len(text)  # 0: its end
        raise _wrong(text, at, error.msg) from None
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, too many brackets
        raise ValueError(f"--where cannot be read: {error}") from None
    for node in ast.walk(tree):
        at = len(text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        if not isinstance(node, _ALLOWED):
            raise _wrong(text, at, f"{type(node).__name__} is not possible here")
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        ):
            raise _wrong(text, at, f"only {', '.join(_FUNCTIONS)} can be called")
    return tree.body


def _wrong(text: str, at: int, why: str) -> ValueError:
    where = f"before {text[at:]!r}" if text[at:].strip() else "at its end"
    return ValueError(
        f"--where: {why}, column {at + 1}, {where}; it is written as in Python: "
        'temp > 30 and room == "kitchen"'
    )


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, (str, bytes)):  # it would format, and "%99999999999d" takes all memory
        raise TypeError("text has no remainder")
    return left % right


def _evaluator(named: Callable[[ast.Name], Any]) -> EvalWithCompoundTypes:
    try:
        from simpleeval import EvalWithCompoundTypes
    except ImportError as error:
        raise ImportError(
            "--where needs the package `simpleeval`, which cannot be imported here "
            f"({error}): pip install 'pubsubd[cli]'"
        ) from error
    evaluator = EvalWithCompoundTypes(functions=dict(_FUNCTIONS), names=named)
    evaluator.operators[ast.Mod] = _remainder

    def attribute(node: ast.Attribute) -> Any:
        found = inner(evaluator._eval(node.value), node.attr)
        if found is MISSING:
            raise LookupError(f"{ast.unparse(node)!r} is missing")
        return found

    evaluator.nodes[ast.Attribute] = attribute
    return evaluator
