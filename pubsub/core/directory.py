"""What the coordinators say of publishers: the union, kept per coordinator and per Sub.

A coordinator that came back empty first repeats, row by row, what its peers tell it again. Until
its first answer for a Sub is complete, what it said before it went away still counts.
"""

from __future__ import annotations

from pubsub.core.messages import Match, MatchedPub
from pubsub.core.stream import StreamKey

__all__ = ["Directory"]


class _Listing:
    """One coordinator's rows for one Sub."""

    __slots__ = ("rows", "stale")

    def __init__(self) -> None:
        self.rows: dict[StreamKey, MatchedPub] = {}
        self.stale: dict[StreamKey, MatchedPub] = {}


class Directory:
    """The publishers that any coordinator lists for each Sub."""

    def __init__(self) -> None:
        self._listings: dict[tuple[object, int], _Listing] = {}
        self._sources: dict[object, set[int]] = {}

    def restart(self, source: object) -> None:
        """A coordinator is connected anew: what it said counts until it has said it again."""
        for sub_id in self._sources.get(source, ()):
            listing = self._listings[source, sub_id]
            listing.stale = {**listing.stale, **listing.rows}
            listing.rows = {}

    def match(self, source: object, match: Match) -> list[StreamKey]:
        """Take what a coordinator says; returns the streams that it no longer lists."""
        listing = self._listings.setdefault((source, match.sub_id), _Listing())
        self._sources.setdefault(source, set()).add(match.sub_id)
        gone = []
        for row in match.added:
            key = StreamKey(row.peer_id, row.stream_id)
            listing.rows[key] = row
            listing.stale.pop(key, None)
        for pair in match.removed:
            key = StreamKey(*pair)
            if (listing.rows.pop(key, None) or listing.stale.pop(key, None)) is not None:
                gone.append(key)
        if match.complete:
            gone += listing.stale
            listing.stale = {}
        return [key for key in gone if not self.listed(match.sub_id, key)]

    def listed(self, sub_id: int, key: StreamKey) -> bool:
        """Whether any coordinator lists this stream for this Sub."""
        for source in self._sources:
            listing = self._listings.get((source, sub_id))
            if listing is not None and (key in listing.rows or key in listing.stale):
                return True
        return False

    def drop(self, sub_id: int) -> None:
        """The Sub is closed."""
        for source, subs in self._sources.items():
            if sub_id in subs:
                subs.discard(sub_id)
                del self._listings[source, sub_id]
