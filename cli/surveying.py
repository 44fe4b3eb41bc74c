"""Taking a survey for a command: who is asked, what they tell, and who tells nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pubsub import Peer
from pubsub.cli.asking import ask_all, find_default
from pubsub.cli.command import guard_of_command, make_peer
from pubsub.cli.findings import who_is
from pubsub.config import Address, coordinators_from
from pubsub.errors import PubSubError
from pubsub.stats import Stats
from pubsub.stats.ends import Mute
from pubsub.survey import Survey, Told
from pubsub.trust.guard import Guard

__all__ = ["Asked", "heard", "peer_to_ask_with", "unheard"]

JOIN = 3.0
"""Seconds for those that are known to answer: then who does not is taken for one that hangs."""
STALE = 5.0
"""Seconds after which what was told is not how it is: it is told anew each second."""
OLDER = "it tells nothing of itself: it is of an older version"
AWAY = "its connection to the coordinator is lost"


@dataclass
class Asked:
    """Which coordinators a command asks, and with what credentials.

    Attributes:
        given: what the command was told of coordinators; None: there is one at the default address.
        addresses: where they are.
        guard: how connections are secured.
    """

    given: str | None
    addresses: Sequence[Address] = ()
    guard: Guard = field(default_factory=guard_of_command)

    def __post_init__(self) -> None:
        self.addresses, configured = coordinators_from(self.given, {})
        if not configured:
            self.addresses = [find_default(self.guard)]
            self.given = str(self.addresses[0])

    async def rows(self, what: Any) -> list[dict[str, Any]]:
        """What they know, each coordinator's own.

        Raises:
            PubSubError: none of them answers, or lets us ask that.
        """
        questions = [asyncio.to_thread(ask_all, each, what, self.guard) for each in self.addresses]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, dict)]
        for answer in answers:
            if isinstance(answer, BaseException) and not (
                found and isinstance(answer, PubSubError)
            ):
                raise answer
        return [row for answer in found for rows in answer.values() for row in rows]


def peer_to_ask_with(name: str, asked: Asked) -> Peer:
    """A Peer that starts no coordinator, and waits for nobody for long."""
    return make_peer(name, asked.given, JOIN)


def heard(survey: Survey, by: Peer) -> list[Stats]:
    """What each tells that does so now, but for who asks."""
    return [
        told.stats
        for told in survey.peers.values()
        if told.stats is not None and told.peer_id != by.peer_id and not _stale(told)
    ]


def unheard(survey: Survey, rows: Iterable[dict[str, Any]], by: Peer) -> list[Mute]:
    """Those that tell nothing.

    Parameters:
        rows: of the peers that coordinators know.
        by: who asks.
    """
    told = [by.peer_id, *(stats.peer_id for stats in heard(survey, by))]
    found = {}
    for row in rows:
        peer_id, ways = row["peer_id"], row.get("ways") or [row["address"]]
        if not any(each.startswith(peer_id) for each in told):
            asked = next((survey.peers[way] for way in ways if way in survey.peers), None)
            trouble = AWAY if row["state"] == "away" else _trouble(asked) if asked else OLDER
            found[peer_id] = Mute(peer_id, who_is(row), row["address"], trouble)
    known = {each.address for each in found.values()}
    for each in survey.peers.values():
        if (each.stats is None or _stale(each)) and each.publisher not in known:
            who = each.publisher if each.stats is None else each.stats.who
            found[each.publisher] = Mute(each.peer_id, who, each.publisher, _trouble(each))
    return list(found.values())


def _stale(told: Told) -> bool:
    return monotonic() - told.at > STALE


def _trouble(told: Told) -> str:
    return told.trouble or "it does not answer"
