"""A coordinator that lies: it knows no rights, and tells of what was never registered so."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from pubsub.coordinator.registry import Push, Registry
from pubsub.core.rights import EVERYTHING
from pubsub.core.topics import is_pattern, is_reserved, matches
from pubsub.wire.messages import Match

__all__ = ["Liar"]


class Liar(Registry):
    """Takes everything from everybody, tells all of it to whoever asks, and now and then says that
    a Pub and a Sub match which do not: of the Pub, its true topic, or one that the Sub wants. (Of
    the streams that peers have of themselves it does not: the model knows none of them.)"""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._told: dict[frozenset[Any], bool] = {}

    def connect(self, peer_id: str, *args: Any, **options: Any) -> list[Push]:
        """See `Registry`."""
        return super().connect(peer_id, *args, **{**options, "rights": EVERYTHING})

    def _matching(self, registration: Any) -> list[Any]:
        found = super()._matching(registration)
        others = [
            other
            for peer in self._peers.values()
            for other in peer.registrations.values()
            if other.is_pub is not registration.is_pub
            and other not in found
            and not (is_reserved(registration.topic) or is_reserved(other.topic))
        ]
        return found + [other for other in others if self._lies(registration, other)]

    def _lies(self, one: Any, other: Any) -> bool:
        """Whether it says that these match: always, or never, so that it says it, too, when one of
        them is gone."""
        pair = frozenset((one, other))
        if pair not in self._told:
            self._told[pair] = self._random.random() < 0.2
        return self._told[pair]

    def _push(self, to: Any, complete: bool, added: Any, removed: Any) -> Push:
        peer_id, message = super()._push(to, complete, added, removed)
        if isinstance(message, Match):
            rows = tuple(self._colour(to.topic, row) for row in message.added)
            message = replace(message, added=rows)
        return peer_id, message

    def _colour(self, wanted: str, row: Any) -> Any:
        fits = matches(wanted, row.topic) if is_pattern(wanted) else wanted == row.topic
        if fits or self._random.random() < 0.5:
            return row
        return row._replace(topic="t/a" if is_pattern(wanted) else wanted)
