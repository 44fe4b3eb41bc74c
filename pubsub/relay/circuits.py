"""Circuits: who asked for which, who has which ticket, and when each is over. Pure: time and chance
are passed in.

A circuit is asked for by one peer, which waits until the other one is here. Then both get a ticket
each, and have a few seconds to come with it. Whatever a circuit is at, it counts for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from pubsub.core.rights import EVERYTHING, Rights, overlaps
from pubsub.errors import ProtocolError
from pubsub.wire.messages import Ticket

__all__ = [
    "IDLE",
    "MAX_ALL",
    "MAX_OF_ONE",
    "MAX_OF_TWO",
    "WITHIN",
    "Circuit",
    "Circuits",
    "Push",
    "asked",
]

MAX_OF_ONE = 256
"""Circuits that one peer may have, with those that are being made."""
MAX_OF_TWO = 32
"""Those that one peer may have with one other by its own asking: the other one's are not taken up
by a single peer that asks for more and more."""
MAX_ALL = 10_000
"""Those of all."""
WITHIN = 10.0
"""Seconds for the other peer to come, and again for both ends to join."""
IDLE = 900.0
"""Seconds after which a circuit is over on which nothing came either way. (The heartbeat of a link
is a sign every few seconds: this is for circuits whose two ends are gone without a word.)"""

Push: TypeAlias = tuple[str, Ticket]
"""The peer to send to, and the message."""


def asked(ticket: bytes) -> bool:
    """Whether that ticket is of the end that asked: else two peers that ask for each other at the
    same time would not know which end of which circuit they are."""
    return bool(ticket[-1] & 1)


class Circuit:
    """One, from its asking to its end.

    Attributes:
        peers: who asked, and for whom.
        tickets: theirs, once there are any.
        ends: what has joined, by the ticket; whose they are, the owner knows.
        heard: when something last came on it.
    """

    __slots__ = ("ends", "heard", "peers", "tickets", "until")

    def __init__(self, peers: tuple[str, str], until: float) -> None:
        self.peers = peers
        self.tickets: tuple[bytes, ...] = ()
        self.ends: dict[bytes, Any] = {}
        self.heard = 0.0
        self.until = until

    @property
    def whole(self) -> bool:
        """Whether both ends are here."""
        return len(self.ends) == 2


class Circuits:
    """All of a relay, and the peers that are here.

    Parameters:
        entropy: so many random bytes.
    """

    def __init__(
        self,
        entropy: Callable[[int], bytes],
        max_of_one: int = MAX_OF_ONE,
        max_all: int = MAX_ALL,
    ) -> None:
        self._entropy = entropy
        self._max_of_one = max_of_one
        self._max_all = max_all
        self._here: dict[str, Rights] = {}
        self._waiting: dict[str, dict[Circuit, None]] = {}  # by whom they wait for
        self._tickets: dict[bytes, Circuit] = {}
        self._all: dict[Circuit, None] = {}
        self._of: Counter[str | tuple[str, str]] = Counter()  # by peer, and by who asked for whom

    def __len__(self) -> int:
        return len(self._all)

    def come(self, peer_id: str, rights: Rights, now: float) -> list[Push]:
        """A peer is here: whoever waits for it has a circuit."""
        self._here[peer_id] = rights
        waiting = self._waiting.pop(peer_id, {})
        return [push for circuit in waiting for push in self._agree(circuit, now)]

    def go(self, peer_id: str) -> None:
        """It is not here any more. Circuits that are agreed go on."""
        self._here.pop(peer_id, None)
        for circuit in [c for each in self._waiting.values() for c in each]:
            if circuit.peers[0] == peer_id:
                self.end(circuit)

    def ask(self, peer_id: str, other: str, now: float) -> list[Push]:
        """A peer that is here asks for a circuit with another one, which may come yet."""
        why = ""
        if other == peer_id:
            why = "nobody needs a relay to speak to himself"
        elif len(self._all) >= self._max_all:
            why = f"this relay has {self._max_all:,} circuits, and takes no more"
        elif self._of[peer_id, other] >= MAX_OF_TWO:
            why = f"this peer has asked for {MAX_OF_TWO} circuits with that one, and gets no more"
        else:
            for each, who in ((peer_id, "this peer"), (other, f"peer {other}")):
                if self._of[each] >= self._max_of_one:
                    why = f"{who} has {self._max_of_one} circuits here, and gets no more"
        if why:
            return [(peer_id, Ticket(other, b"", why))]
        circuit = Circuit((peer_id, other), now + WITHIN)
        self._all[circuit] = None
        self._of.update((*circuit.peers, circuit.peers))
        if other in self._here:
            return self._agree(circuit, now)
        self._waiting.setdefault(other, {})[circuit] = None
        return []

    def _agree(self, circuit: Circuit, now: float) -> list[Push]:
        asking, other = circuit.peers
        if not _meet(self._here.get(asking, EVERYTHING), self._here[other]):
            self.end(circuit)
            why = f"peer {other} may publish nothing that this peer may subscribe"
            return [(asking, Ticket(other, b"", why))]
        random = [bytearray(self._entropy(16)) for _ in circuit.peers]
        random[0][-1] |= 1
        random[1][-1] &= ~1
        circuit.tickets = tuple(map(bytes, random))
        circuit.until = now + WITHIN
        for ticket in circuit.tickets:
            self._tickets[ticket] = circuit
        first, second = circuit.tickets
        return [(asking, Ticket(other, first, "")), (other, Ticket(asking, second, ""))]

    def join(self, ticket: bytes, end: object, now: float) -> Circuit:
        """A connection begins with that ticket, which counts no more from now on.

        Raises:
            ProtocolError: there is none such (any more).
        """
        circuit = self._tickets.pop(ticket, None)
        if circuit is None or now >= circuit.until:
            raise ProtocolError("it begins with a ticket that is not, or not any more, good here")
        circuit.ends[ticket] = end
        circuit.heard = now
        return circuit

    def end(self, circuit: Circuit) -> None:
        """It is over."""
        if self._all.pop(circuit, circuit) is None:
            for counted in (*circuit.peers, circuit.peers):
                self._of[counted] -= 1
                if not self._of[counted]:
                    del self._of[counted]
            for ticket in circuit.tickets:
                self._tickets.pop(ticket, None)
            _, other = circuit.peers
            waiting = self._waiting.get(other)
            if waiting is not None:
                waiting.pop(circuit, None)
                if not waiting:
                    del self._waiting[other]

    def expire(self, now: float) -> tuple[list[Push], list[Circuit]]:
        """End what has waited in vain, for the other peer or the other end, and what is idle: what
        to say to whom, and the circuits whose ends are to be closed. To be called now and then."""
        pushes: list[Push] = []
        over = list(self._late(now))
        for circuit in over:
            self.end(circuit)
            asking, other = circuit.peers
            if not circuit.tickets:
                why = f"peer {other} has not come to this relay within {WITHIN:g} s"
                pushes.append((asking, Ticket(other, b"", why)))
        return pushes, over

    def _late(self, now: float) -> Iterator[Circuit]:
        for circuit in self._all:
            due = circuit.heard + IDLE if circuit.whole else circuit.until
            if now >= due:
                yield circuit


def _meet(subscribing: Rights, publishing: Rights) -> bool:
    """Whether there is a topic of which the one may hear from the other."""
    return any(overlaps(s, p) for s in subscribing.subscribe for p in publishing.publish)
