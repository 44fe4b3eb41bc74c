"""Which relays there are, and which of them two peers are to meet at. Pure, and soft, as all that a
coordinator knows: a relay that is not connected is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pubsub.config import Address, is_loopback
from pubsub.errors import ProtocolError
from pubsub.wire.messages import RelayRow, WayRow

__all__ = ["MAX_RELAYS", "TOLD", "Relays", "ways_for"]

TOLD = 3
"""Relays that two peers are told: the next one for where the first cannot be reached."""
MAX_RELAYS = 1_000
"""Relays that may be connected: each is looked at for every call."""


def ways_for(ways: tuple[WayRow, ...], machine: str, asking: str) -> tuple[WayRow, ...]:
    """Those by which another machine may dial whoever has them: loopback means itself there."""
    if machine == asking:
        return ways
    return tuple(way for way in ways if not is_loopback(way.host))


@dataclass(slots=True, eq=False)
class _Relay:
    peer_id: str
    who: tuple[str, bytes]  # what only it can show
    ways: tuple[WayRow, ...]
    machine: str  # see the registry's peers
    name: str
    circuits: int = 0


class Relays:
    """Those that are connected."""

    def __init__(self) -> None:
        self._relays: dict[str, _Relay] = {}

    def knows(self, peer_id: str, who: tuple[str, bytes]) -> bool:
        """Whether that is the one that is connected under this identity, or nobody is."""
        known = self._relays.get(peer_id)
        return known is None or known.who == who

    def connect(
        self,
        peer_id: str,
        ways: tuple[WayRow, ...],
        machine: str,
        name: str,
        who: tuple[str, bytes] = ("", b""),
    ) -> None:
        """A relay has connected, at these ways.

        Raises:
            ProtocolError: there are too many.
        """
        if len(self._relays) >= MAX_RELAYS and peer_id not in self._relays:
            raise ProtocolError(
                f"this coordinator knows {MAX_RELAYS:,} relays, and takes no more", code="limit"
            )
        self._relays[peer_id] = _Relay(peer_id, who, ways, machine, name)

    def lose(self, peer_id: str) -> None:
        """It is gone, until it comes again."""
        self._relays.pop(peer_id, None)

    def load(self, peer_id: str, circuits: int) -> None:
        """So many circuits it has now."""
        known = self._relays.get(peer_id)
        if known is not None:
            known.circuits = circuits

    def best(self, caller: str, called: str) -> tuple[tuple[RelayRow, ...], tuple[RelayRow, ...]]:
        """The same relays for two machines, each with the ways that it can dial: those that both
        can, the least busy first."""
        found: list[tuple[RelayRow, RelayRow]] = []
        for relay in sorted(self._relays.values(), key=attrgetter("circuits")):
            pair = [ways_for(relay.ways, relay.machine, machine) for machine in (caller, called)]
            if all(pair):
                found.append((RelayRow(relay.peer_id, pair[0]), RelayRow(relay.peer_id, pair[1])))
                if len(found) == TOLD:
                    break
        return tuple(row for row, _ in found), tuple(row for _, row in found)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each, sorted by name and id: ``peer_id``, ``address``, ``ways`` (all its
        addresses), ``name`` and ``circuits``."""
        for relay in sorted(self._relays.values(), key=attrgetter("name", "peer_id")):
            ways = [str(Address(way.host, way.port)) for way in relay.ways if way.kind == "tcp"]
            yield {
                "peer_id": relay.peer_id,
                "address": ways[0] if ways else "",
                "ways": ways,
                "name": relay.name,
                "circuits": relay.circuits,
            }
