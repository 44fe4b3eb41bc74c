"""A process that has imported asyncio, uvloop and msgpack: what an idle one is held against."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import msgpack

from benchmarks.contender import BlockingContender, Meeting

__all__ = ["CONTENDERS"]


class _Pair:
    def __init__(self) -> None:
        self.imported = (asyncio, msgpack, importlib.import_module("uvloop"))

    def send(self, value: Any) -> None:
        pass

    def receive(self) -> Any:
        return {}

    def close(self) -> None:
        pass


class Bare(BlockingContender):
    """Nothing at all."""

    name = "bare"
    title = "a Python process, nothing else"
    how = "`import asyncio, uvloop, msgpack`, and nothing done with them."
    kind = "ceiling"
    packages = ("uvloop",)
    groups = frozenset(("idle",))

    def open_publisher(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_subscriber(self, meeting: Meeting) -> Any:
        raise NotImplementedError

    def open_pair(self, meeting: Meeting, first: bool) -> _Pair:
        return _Pair()


CONTENDERS = (Bare(),)
