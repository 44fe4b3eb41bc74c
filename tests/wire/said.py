"""Frames and rows that tests say, as one says them that shows no credentials."""

from __future__ import annotations

from typing import Any

from pubsub.wire.handshake import tcp
from pubsub.wire.messages import PROTOCOL_VERSION, Hello, MatchedPub, Welcome

__all__ = ["hello", "matched", "welcome"]


def hello(
    role: str,
    wants: str,
    peer_id: str,
    expects: str = "",
    host: str = "",
    port: int = 0,
    info: dict[str, Any] | None = None,
) -> Hello:
    """A HELLO of one that is dialled there; port 0: nowhere."""
    ways = tcp(host, port)
    who = (role, wants, peer_id, expects)
    return Hello(PROTOCOL_VERSION, *who, b"", b"", ways, bool(ways), "", info or {})


def welcome(
    role: str, peer_id: str, settle: float = 0.0, info: dict[str, Any] | None = None
) -> Welcome:
    """A WELCOME."""
    return Welcome(PROTOCOL_VERSION, role, peer_id, b"", "", settle, info or {})


def matched(
    peer_id: str,
    host: str,
    port: int,
    stream_id: int,
    topic: str,
    before: bool,
    who: str = "",
    *,
    listens: bool = True,
) -> MatchedPub:
    """A row of MATCH; port 0: nowhere that this subscriber could dial."""
    return MatchedPub(peer_id, tcp(host, port), listens, "", stream_id, topic, before, who)
