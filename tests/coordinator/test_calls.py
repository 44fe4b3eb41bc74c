"""Calls: who may have whom dial whom, how often, and at which relays two peers are to meet."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pubsub.config import Address
from pubsub.coordinator.records import CALLS, CALLS_A_SECOND
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.relays import MAX_RELAYS, TOLD
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.errors import ProtocolError
from pubsub.wire.handshake import tcp
from pubsub.wire.messages import (
    Answer,
    Call,
    Called,
    Goodbye,
    Load,
    Query,
    Register,
    RelayRow,
    encode,
)
from tests.coordinator.test_server import Caller, caller, coordinator_with
from tests.integration.support import eventually
from tests.wire.said import hello

S, P = tcp("s.net", 1), tcp("p.net", 2)
AT = Address("10.0.0.1", 7700)


def two(
    topic: str = "t", pattern: str = "t", rights: Rights = EVERYTHING, ways: Any = S
) -> Registry:
    """A subscriber ``s`` (Sub 1) and a publisher ``p`` (Pub 2) on two machines."""
    registry = Registry()
    registry.connect("s", ways, {}, 0.0, source="10.0.0.2", met_at=AT, rights=rights)
    registry.connect("p", P, {}, 0.0, source="10.0.0.3", met_at=AT)
    registry.register("s", Register(1, "sub", pattern, False, False), 0.0)
    registry.register("p", Register(2, "pub", topic, False, False), 0.0)
    return registry


def reverse(
    registry: Registry, call: Call | None = None, now: float = 0.0
) -> list[tuple[str, Called]]:
    return registry.call("s", call or Call(1, "p", 2, False), now)


def test_a_publisher_is_told_where_the_subscriber_is_that_calls_it() -> None:
    assert reverse(two()) == [("p", Called("s", S, ()))]
    assert reverse(two(topic="a/b", pattern="a/*")) == [("p", Called("s", S, ()))]


@pytest.mark.parametrize(
    "call",
    [
        Call(9, "p", 2, False),  # no such Sub
        Call(1, "p", 9, False),  # no such Pub
        Call(1, "x", 2, False),  # no such peer
        Call(1, "s", 1, False),  # itself
    ],
)
def test_a_call_for_what_is_not_registered_is_passed_to_nobody(call: Call) -> None:
    for relay in (False, True):
        asked = Call(call.sub_id, call.peer_id, call.stream_id, relay)
        assert reverse(two(), asked) == []


def test_a_call_for_what_does_not_match_is_passed_to_nobody() -> None:
    assert reverse(two(topic="other")) == []
    registry = two()
    assert registry.call("p", Call(2, "s", 1, False), 0.0) == []  # a Pub calls a Sub


def test_a_call_goes_no_further_than_rights_do() -> None:
    rights = Rights(subscribe=["a/c"])
    assert reverse(two("a/b", "a/*", rights)) == []
    assert reverse(two("a/c", "a/*", rights)) == [("p", Called("s", S, ()))]


@pytest.mark.parametrize("away", ["s", "p"])
def test_a_call_counts_only_where_both_are_here(away: str) -> None:
    registry = two()
    registry.lose(away, 1.0)
    assert reverse(registry) == []
    registry.connect(away, S if away == "s" else P, {}, 1.0, source="10.0.0.2", met_at=AT)
    assert reverse(registry) == []  # it is back, and has not registered it again
    message = ("sub", "t") if away == "s" else ("pub", "t")
    registry.register(away, Register(1 if away == "s" else 2, *message, True, False), 1.0)
    assert len(reverse(registry)) == 1


def test_loopback_of_another_machine_is_told_to_nobody_who_is_called() -> None:
    assert reverse(two(ways=tcp("127.0.0.1", 1))) == []
    assert reverse(two(ways=tcp("127.0.0.1", 1) + S)) == [("p", Called("s", S, ()))]


def crowd(registry: Registry, now: float) -> int:
    """Many subscribers call ``p``; returns how many of them are passed to it."""
    passed = 0
    for number in range(CALLS + 50):
        who = f"s{number}"
        registry.connect(who, S, {}, now, source="10.0.0.2", met_at=AT)
        registry.register(who, Register(1, "sub", "t", False, False), now)
        passed += len(registry.call(who, Call(1, "p", 2, False), now))
    return passed


def test_a_publisher_is_called_a_few_times_a_second() -> None:
    registry = two()
    assert crowd(registry, 0.0) == CALLS
    assert crowd(registry, 1.0) == CALLS_A_SECOND
    assert crowd(registry, 100.0) == CALLS
    registry.connect("q", P, {}, 0.0)  # each has its own
    registry.register("q", Register(2, "pub", "t", False, False), 0.0)
    assert reverse(registry, Call(1, "q", 2, False), 100.0) != []
    registry.relays.connect("r", tcp("r.net", 3), "", "")
    assert reverse(registry, Call(1, "p", 2, True), 100.0) == []


def test_a_caller_that_never_stops_leaves_room_for_others() -> None:
    registry = two()
    registry.relays.connect("r", tcp("r.net", 3), "", "")
    registry.connect("honest", S, {}, 0.0, source="10.0.0.4", met_at=AT)
    registry.register("honest", Register(1, "sub", "t", False, False), 0.0)
    for tenth in range(300):
        now = tenth / 10
        for relay in (False, True) * 20:
            reverse(registry, Call(1, "p", 2, relay), now)
        if tenth % 10 == 9:
            for relay in (False, True):
                assert registry.call("honest", Call(1, "p", 2, relay), now), now
    (publisher,) = [peer for peer in registry._peers.values() if peer.peer_id == "p"]
    assert len(publisher.callers) <= 4, "those of the last moment"


def test_both_are_told_the_same_relays_the_least_busy_first() -> None:
    registry = two()
    for number in range(TOLD + 2):
        registry.relays.connect(f"r{number}", tcp(f"r{number}.net", 3), "", "")
        registry.relays.load(f"r{number}", 10 - number)
    rows = tuple(RelayRow(f"r{n}", tcp(f"r{n}.net", 3)) for n in (4, 3, 2))
    pushes = reverse(registry, Call(1, "p", 2, True))
    assert pushes == [("s", Called("p", (), rows)), ("p", Called("s", (), rows))]
    registry.relays.lose("r4")
    r1 = (RelayRow("r1", tcp("r1.net", 3)),)
    pushes = reverse(registry, Call(1, "p", 2, True), 1.0)
    assert pushes[0] == ("s", Called("p", (), rows[1:] + r1))


def test_where_there_is_no_relay_the_subscriber_alone_is_told() -> None:
    assert reverse(two(), Call(1, "p", 2, True)) == [("s", Called("p", (), ()))]


def test_a_relay_on_loopback_is_none_for_who_is_elsewhere() -> None:
    registry = two()
    registry.relays.connect("r", tcp("127.0.0.1", 3), "10.0.0.2", "")  # on the subscriber's machine
    assert reverse(registry, Call(1, "p", 2, True)) == [("s", Called("p", (), ()))]
    registry.relays.connect("r", tcp("127.0.0.1", 3) + tcp("r.net", 3), "10.0.0.2", "")
    (_, mine), (_, theirs) = reverse(registry, Call(1, "p", 2, True))
    assert [way.host for way in mine.relays[0].ways] == ["127.0.0.1", "r.net"]
    assert [way.host for way in theirs.relays[0].ways] == ["r.net"]


def test_there_may_be_only_so_many_relays() -> None:
    registry = Registry()
    for number in range(MAX_RELAYS):
        registry.relays.connect(str(number), (), "", "")
    with pytest.raises(ProtocolError, match="and takes no more"):
        registry.relays.connect("one more", (), "", "")
    registry.relays.connect("0", (), "", "")  # it comes anew


# --- the server -------------------------------------------------------------------------------


async def rows(client: Caller, token: int = 1) -> list[dict[str, Any]]:
    client.writer.write(encode(Query(token, "relays")))
    answer = await client.hear()
    assert isinstance(answer, Answer)
    return list(answer.rows)


@pytest.mark.loop
@pytest.mark.insecure
async def test_relays_are_listed_with_their_load_for_as_long_as_they_are_connected() -> None:
    async with coordinator_with() as coordinator, caller(coordinator, "client", "c") as client:
        assert await rows(client) == []
        async with caller(coordinator, "relay", "relay-with-a-long-id", "127.0.0.1", 7) as relay:
            relay.writer.write(encode(Load(3)))

            def loaded() -> bool:
                return any(row["circuits"] == 3 for row in coordinator.registry.relay_rows())

            await eventually(loaded)
            (row,) = await rows(client, 2)
            assert row == {
                "peer_id": "relay-wi",
                "address": "127.0.0.1:7",
                "ways": ["127.0.0.1:7"],
                "name": "",
                "circuits": 3,
            }
        await eventually(lambda: not list(coordinator.registry.relay_rows()))


@pytest.mark.loop
@pytest.mark.insecure
async def test_a_call_goes_through_the_coordinator_and_only_peers_may_call() -> None:
    async with (
        coordinator_with() as coordinator,
        caller(coordinator, "peer", "s", "127.0.0.1", 1) as s,
        caller(coordinator, "peer", "p", "127.0.0.1", 2) as p,
    ):
        s.writer.write(encode(Register(1, "sub", "t", False, False)))
        await s.hear()
        p.writer.write(encode(Register(2, "pub", "t", False, False)))
        await p.hear()
        await s.hear()
        s.writer.write(encode(Call(1, "p", 2, False)))
        assert await p.hear() == Called("s", tcp("127.0.0.1", 1), ())
        async with caller(coordinator, "relay", "r", "127.0.0.1", 7) as relay:
            relay.writer.write(encode(Call(1, "p", 2, False)))
            assert await relay.hear() == Goodbye("protocol", "a CALL where a relay speaks")


@pytest.mark.loop
@pytest.mark.insecure
async def test_nobody_takes_the_identity_of_a_relay_that_is_connected() -> None:
    async with coordinator_with() as coordinator, caller(coordinator, "relay", "r"):
        port = coordinator.servers[0].sockets[0].getsockname()[1]
        other = Caller(*await asyncio.open_connection("127.0.0.1", port))
        said = replace(hello("relay", "coordinator", "r"), claim=b"another")
        other.writer.write(encode(said))
        answer = await other.hear()
        assert isinstance(answer, Goodbye)
        assert answer.code == "auth"
        other.writer.close()
