"""TLS: stub."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["TlsLayer"]


class TlsLayer(asyncio.BufferedProtocol):
    peer_der = b""

    def __init__(
        self, loop: Any, context: Any, link: Any, *, server_side: bool, scratch: Any
    ) -> None:
        raise NotImplementedError

    def take_over(self, transport: Any, first: bytes) -> None: ...
