"""Memory of a pool in tests: nothing is mapped."""

from __future__ import annotations

__all__ = ["Fake"]


class Fake:
    """See `Memory`."""

    address = 0

    def __init__(self, size: int, *, write: bool = True) -> None:
        view = memoryview(bytearray(size))
        self.view = view if write else view.toreadonly()
