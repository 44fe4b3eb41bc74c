"""What the coordinators say of publishers: the union, kept per coordinator and per Sub.

A coordinator that came back empty first repeats, row by row, what its peers tell it again. Until
its first answer for a Sub is complete, what it said before it went away still counts.
"""

from __future__ import annotations

from typing import TypeAlias

from pubsub.config import LOCALHOST, UNIX, Address, Way, name_here
from pubsub.core.inbox import MAX_STREAMS
from pubsub.core.stream import StreamKey
from pubsub.wire.messages import Match

__all__ = ["Directory"]

_Listing: TypeAlias = dict[StreamKey, bool]
"""One coordinator's rows for one Sub, and whether they are stale: it said them before it went away,
and has not said them again."""


class _Told:
    """What one coordinator says of one peer."""

    __slots__ = ("rows", "ways")

    def __init__(self, ways: tuple[Way, ...]) -> None:
        self.ways = ways
        self.rows = 0
        """How often it is listed, over all Subs."""


class Directory:
    """The publishers that any coordinator lists for each Sub, and where they are.

    Parameters:
        most: rows that each of them may have for one Sub; what it says beyond is not heard.
        host_id: of this host (see `Hello.host_id`); empty: its peers have no Unix sockets.
    """

    def __init__(self, most: int = MAX_STREAMS, host_id: str = "") -> None:
        self._most = most
        self._host_id = host_id
        self._listings: dict[object, dict[int, _Listing]] = {}
        self._told: dict[str, dict[object, _Told]] = {}

    def restart(self, source: object) -> None:
        """A coordinator is connected anew: what it said counts until it has said it again."""
        for listing in self._listings.get(source, {}).values():
            listing.update(dict.fromkeys(listing, True))

    def match(self, source: object, match: Match) -> list[StreamKey]:
        """Take what a coordinator says; returns the streams that it no longer lists."""
        listing = self._listings.setdefault(source, {}).setdefault(match.sub_id, {})
        for row in match.added:
            key = StreamKey(row.peer_id, row.stream_id)
            ways = tuple(Way(w.host, w.port, source) for w in row.ways if w.kind == "tcp")
            if ways and self._host_id and row.host_id == self._host_id:
                host = name_here(row.host_id, row.peer_id) + LOCALHOST
                ways = (Way(host, 0, ways[0], UNIX), *ways)
            if key not in listing:
                if len(listing) >= self._most:
                    continue
                self._tell(source, key, ways)
            self._told[row.peer_id][source].ways = ways
            listing[key] = False
        gone = {StreamKey(*pair): None for pair in match.removed}
        if match.complete:
            gone.update({key: None for key, stale in listing.items() if stale})
        taken = [key for key in gone if key in listing]
        for key in taken:
            del listing[key]
            self._untell(source, key)
        return [key for key in taken if not self.listed(match.sub_id, key)]

    def _tell(self, source: object, key: StreamKey, ways: tuple[Way, ...]) -> None:
        self._told.setdefault(key.peer_id, {}).setdefault(source, _Told(ways)).rows += 1

    def _untell(self, source: object, key: StreamKey) -> None:
        by_source = self._told[key.peer_id]
        told = by_source[source]
        told.rows -= 1
        if not told.rows:
            del by_source[source]
            if not by_source:
                del self._told[key.peer_id]

    def listed(self, sub_id: int, key: StreamKey) -> bool:
        """Whether any coordinator lists this stream for this Sub."""
        return bool(self.listing(sub_id, key))

    def listing(self, sub_id: int, key: StreamKey) -> list[object]:
        """Which coordinators list this stream for this Sub."""
        return [told for told, subs in self._listings.items() if key in subs.get(sub_id, ())]

    def ways(self, peer_id: str) -> list[Way]:
        """Where a peer is, as each coordinator that lists anything of it has told it last."""
        ways: dict[Address, Way] = {}
        for told in self._told.get(peer_id, {}).values():
            for way in told.ways:
                ways.setdefault(way.address, way)
        return list(ways.values())

    def drop(self, sub_id: int) -> None:
        """The Sub is closed."""
        for source, subs in self._listings.items():
            for key in subs.pop(sub_id, ()):
                self._untell(source, key)

    def hand_over(self, source: object, to: object = None) -> None:
        """Nothing more comes from this source. What it said counts until `to`, which has just been
        connected and is the same coordinator, has said it again; without one, no longer."""
        for sub_id, listing in self._listings.pop(source, {}).items():
            for key in listing:
                ways = self._told[key.peer_id][source].ways
                self._untell(source, key)
                if to is not None:
                    theirs = self._listings.setdefault(to, {}).setdefault(sub_id, {})
                    if key not in theirs:
                        self._tell(to, key, tuple(_told_by(to, way) for way in ways))
                        theirs[key] = True


def _told_by(source: object, way: Way) -> Way:
    if isinstance(way.told_by, Way):
        return way._replace(told_by=_told_by(source, way.told_by))
    return way._replace(told_by=source)
