"""Loggers whose handlers cannot stop what logs.

Handlers are code of the program that uses this library. Where one raises, a session would end in
the middle of a reconnect, or a link before it is closed. Python's own handlers report their errors
on standard error by themselves; one that raises all the same has its error printed there.

What a record is about stands in its text, and for programs that read logs in fields of the record:
see `FIELDS`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

__all__ = ["FIELDS", "logger"]

FIELDS = ("topic", "address", "peer")
"""What every record has, as texts; empty: it is about none. The topic or pattern of a Pub or Sub;
the address of the other process, or of the Pub or Sub there; the identity of the other process."""

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _Log(_Adapter):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Of the keywords, those of `FIELDS` become fields of the record, and so does what an
        object says of itself that is given as `of`: its attribute ``fields``."""
        if self.isEnabledFor(level):
            try:
                of = getattr(kwargs.pop("of", None), "fields", {})
                extra = {name: str(kwargs.pop(name, of.get(name, ""))) for name in FIELDS}
                self.logger.log(level, msg, *args, stacklevel=2, extra=extra, **kwargs)
            except Exception:
                if logging.raiseExceptions and sys.stderr is not None:
                    traceback.print_exc()


def logger(name: str) -> _Log:
    """The logger of that name, for use in this library."""
    return _Log(logging.getLogger(name), {})
