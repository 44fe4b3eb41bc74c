"""Loggers whose handlers cannot stop what logs.

Handlers are code of the program that uses this library. Where one raises, a session would end in
the middle of a reconnect, or a link before it is closed. Python's own handlers report their errors
on standard error by themselves; one that raises all the same has its error printed there.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

__all__ = ["logger"]

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _Log(_Adapter):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            try:
                self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
            except Exception:
                if logging.raiseExceptions and sys.stderr is not None:
                    traceback.print_exc()


def logger(name: str) -> _Log:
    """The logger of that name, for use in this library."""
    return _Log(logging.getLogger(name), {})
