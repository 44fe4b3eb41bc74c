"""Wildcards of other systems, which are names like any other here.

``sensors/#`` and ``a/+`` are MQTT's, ``a.>`` is NATS's, ``a.#`` AMQP's. A Sub with one of them
would wait for ever for a topic of that very name, so it is said, and how it is written here.
"""

from __future__ import annotations

from functools import lru_cache

from pubsub.support.logs import logger

__all__ = ["foreign_wildcard", "warn_of_foreign_wildcards"]

log = logger("pubsub.foreign")

OURS = {"#": "**", ">": "**", "+": "*"}
SPLIT_BY_DOTS = ("#", ">", "*")
"""Those of systems that split topics by dots (``+`` is MQTT's alone)."""


def foreign_wildcard(topic: str) -> str:
    """A sentence on a topic or pattern that looks as if it were another system's; else empty.

    >>> foreign_wildcard("sensors/#")
    "'sensors/#': '#' is no wildcard here, write 'sensors/**'"
    >>> foreign_wildcard("a.b.>")
    "'a.b.>': '>' is no wildcard here, write 'a/b/**'"
    >>> foreign_wildcard("c#/+1/**")
    ''
    """
    parts = topic.split("/")
    found = next((part for part in parts if part in OURS), "")
    if not found and "/" not in topic and "." in topic:
        parts = topic.split(".")
        found = next((part for part in parts if part in SPLIT_BY_DOTS), "")
    if not found:
        return ""
    ours = "/".join(OURS.get(part, part) for part in parts)
    return f"{topic!r}: {found!r} is no wildcard here, write {ours!r}"


@lru_cache(1024)
def warn_of_foreign_wildcards(topic: str) -> None:
    """Warn, once for each topic or pattern, of one that looks as if it were another system's."""
    if sentence := foreign_wildcard(topic):
        log.warning("%s", sentence)
