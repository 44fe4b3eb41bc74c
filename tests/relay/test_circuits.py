"""Circuits: who has which, what bounds them, and when they are over."""

from __future__ import annotations

from itertools import count

import pytest

from pubsub.core.rights import EVERYTHING, Rights
from pubsub.errors import ProtocolError
from pubsub.relay.circuits import (
    IDLE,
    MAX_ALL,
    MAX_OF_ONE,
    MAX_OF_TWO,
    WITHIN,
    Circuit,
    Circuits,
    Push,
    asked,
)
from pubsub.wire.messages import Ticket


def circuits(*here: str, max_of_one: int = MAX_OF_ONE, max_all: int = MAX_ALL) -> Circuits:
    numbers = count(2)
    made = Circuits(lambda size: next(numbers).to_bytes(size, "big"), max_of_one, max_all)
    for peer_id in here:
        made.come(peer_id, EVERYTHING, 0.0)
    return made


def both(pushes: list[Push]) -> tuple[bytes, bytes]:
    """The tickets of both."""
    (_, one), (_, other) = pushes
    assert one.ticket
    assert other.ticket
    return one.ticket, other.ticket


def refused(pushes: list[Push]) -> str:
    """What the one who asked is told."""
    ((who, ticket),) = pushes
    assert (who, ticket.ticket) == ("s", b"")
    return ticket.reason


def test_both_get_a_ticket_and_know_which_of_them_has_asked() -> None:
    pushes = circuits("s", "p").ask("s", "p", 0.0)
    (one, first), (other, second) = pushes
    assert (one, first.peer_id, other, second.peer_id) == ("s", "p", "p", "s")
    assert first.ticket != second.ticket
    assert (asked(first.ticket), asked(second.ticket)) == (True, False)
    assert isinstance(first, Ticket)
    assert len(first.ticket) == len(second.ticket) == 16


def test_who_is_not_here_is_waited_for() -> None:
    made = circuits("s")
    assert made.ask("s", "p", 0.0) == []
    both(made.come("p", EVERYTHING, WITHIN - 0.1))
    assert made.ask("s", "q", 0.0) == []
    pushes, over = made.expire(WITHIN - 0.1)
    assert (pushes, over) == ([], [])
    pushes, _ = made.expire(WITHIN)
    assert refused(pushes) == "peer q has not come to this relay within 10 s"
    assert made.come("q", EVERYTHING, WITHIN) == []


def test_nobody_waits_for_one_who_asked_and_is_gone() -> None:
    made = circuits("s")
    made.ask("s", "p", 0.0)
    made.go("s")
    assert len(made) == 0
    assert made.come("p", EVERYTHING, 1.0) == []


@pytest.mark.parametrize(
    ("subscribe", "publish", "meet"),
    [
        (["a/*"], ["a/b", "x"], True),
        (["**"], ["x"], True),
        (["a/*"], ["a/b/c"], False),
        ([], ["**"], False),
        (["**"], [], False),
    ],
)
def test_rights_meet_where_one_may_hear_from_the_other(
    subscribe: list[str], publish: list[str], meet: bool
) -> None:
    made = circuits()
    made.come("s", Rights(["**"], subscribe), 0.0)
    made.come("p", Rights(publish, ["**"]), 0.0)
    pushes = made.ask("s", "p", 0.0)
    if meet:
        both(pushes)
    else:
        assert "may publish nothing that this peer may subscribe" in refused(pushes)
        assert len(made) == 0


def test_one_peer_has_so_many_circuits_whichever_end_it_is() -> None:
    made = circuits("s", "p", "q", max_of_one=2)
    for _ in range(2):
        both(made.ask("s", "p", 0.0))
    assert "this peer has 2 circuits here" in refused(made.ask("s", "q", 0.0))
    ((who, ticket),) = made.ask("q", "p", 0.0)
    assert (who, ticket.ticket) == ("q", b"")
    assert "peer p has 2 circuits here" in ticket.reason
    made.expire(WITHIN)  # none of them was joined
    both(made.ask("s", "q", WITHIN))


def test_those_that_are_waited_for_count_too() -> None:
    made = circuits("s", max_of_one=2)
    assert made.ask("s", "p", 0.0) == made.ask("s", "q", 0.0) == []
    assert "this peer has 2 circuits here" in refused(made.ask("s", "r", 0.0))


def test_one_peer_takes_only_some_of_what_another_may_have() -> None:
    made = circuits("s", "p", "q")
    for _ in range(MAX_OF_TWO):
        both(made.ask("s", "p", 0.0))
    assert "this peer has asked for 32 circuits with that one" in refused(made.ask("s", "p", 0.0))
    both(made.ask("q", "p", 0.0))
    both(made.ask("p", "s", 0.0))  # which s has not asked for
    made.expire(WITHIN)
    both(made.ask("s", "p", WITHIN))
    made.expire(2 * WITHIN)
    assert not made._of


def test_there_are_only_so_many_in_all() -> None:
    made = circuits("s", "p", "q", max_all=1)
    both(made.ask("p", "q", 0.0))
    assert "takes no more" in refused(made.ask("s", "p", 0.0))
    assert refused(made.ask("s", "s", 0.0)) == "nobody needs a relay to speak to himself"


def joined(made: Circuits) -> tuple[Circuit, bytes, bytes]:
    one, other = both(made.ask("s", "p", 0.0))
    assert not made.join(one, "one", 1.0).whole
    circuit = made.join(other, "other", 2.0)
    assert circuit.whole
    assert list(circuit.ends.values()) == ["one", "other"]
    return circuit, one, other


def test_a_ticket_is_good_once_and_for_a_time() -> None:
    made = circuits("s", "p")
    _, one, other = joined(made)
    for ticket in (one, other, bytes(16), b""):
        with pytest.raises(ProtocolError):
            made.join(ticket, "again", 3.0)
    late, _ = both(made.ask("s", "p", 100.0))
    with pytest.raises(ProtocolError):
        made.join(late, "late", 100.0 + WITHIN)


def test_a_circuit_that_one_end_never_joined_is_over_and_its_ticket_too() -> None:
    made = circuits("s", "p")
    one, other = both(made.ask("s", "p", 0.0))
    circuit = made.join(one, "one", 1.0)
    assert made.expire(WITHIN - 0.1) == ([], [])
    assert made.expire(WITHIN) == ([], [circuit])
    assert len(made) == 0
    with pytest.raises(ProtocolError):
        made.join(other, "other", WITHIN - 1)


def test_a_whole_circuit_is_over_when_nothing_comes_for_long() -> None:
    made = circuits("s", "p")
    circuit, *_ = joined(made)
    assert made.expire(2.0 + IDLE - 1) == ([], [])
    circuit.heard = 2.0 + IDLE - 1
    assert made.expire(2.0 + IDLE) == ([], [])
    assert made.expire(circuit.heard + IDLE) == ([], [circuit])


def test_a_circuit_goes_on_without_the_sessions_and_nothing_is_left_of_it() -> None:
    made = circuits("s", "p")
    circuit, *_ = joined(made)
    made.go("s")
    made.go("p")
    assert len(made) == 1
    made.end(circuit)
    made.end(circuit)  # by the other end, too
    assert len(made) == 0
    assert not made._of
    assert not made._tickets
    assert not made._waiting
