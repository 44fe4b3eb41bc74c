"""The handshake: who may talk to whom, and what is said to those who may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.wire.frames import Data, Event
from pubsub.wire.handshake import EVERYTHING, Acceptor, Dialler, Identity, Other, Refused
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, Ping, Welcome

PEER = Identity("peer", "one", "10.0.0.1", 7001, {"name": "camera"})
OTHER = Identity("peer", "two", info={"name": "display"})
COORDINATOR = Identity("coordinator", "head")
CLIENT = Identity("client", "asking")


def meet(dialler: Dialler, acceptor: Acceptor) -> tuple[Other, Other]:
    """Run it; returns who the acceptor met, and who the dialler did."""
    hello = dialler.opening()
    assert hello is not None
    assert acceptor.opening() is None
    welcome, met = acceptor.receive(hello)
    assert welcome is not None
    nothing, found = dialler.receive(welcome)
    assert nothing is None
    assert met is not None
    assert found is not None
    return met, found


def test_peers_meet() -> None:
    met, found = meet(Dialler(PEER, "peer", "two"), Acceptor(OTHER, ("peer",)))
    assert met == Other("peer", "one", "10.0.0.1", 7001, {"name": "camera"}, 0.0)
    assert found == Other("peer", "two", "", 0, {"name": "display"}, 0.0)


@pytest.mark.parametrize("me", [PEER, CLIENT])
def test_a_coordinator_takes_peers_and_clients_and_says_how_long_it_settles(me: Identity) -> None:
    met, found = meet(Dialler(me, "coordinator"), Acceptor(COORDINATOR, ("peer", "client"), 2.5))
    assert (met.role, met.peer_id) == (me.role, me.peer_id)
    assert (found.role, found.peer_id, found.settle) == ("coordinator", "head", 2.5)


def test_the_hello_says_all_there_is_to_know() -> None:
    assert Dialler(PEER, "peer", "two").opening() == Hello(
        PROTOCOL_VERSION, "peer", "peer", "one", "two", "10.0.0.1", 7001, {"name": "camera"}
    )


HELLO = Hello(PROTOCOL_VERSION, "peer", "peer", "one", "two", "", 0, {})


@pytest.mark.parametrize(
    ("event", "code", "what"),
    [
        (replace(HELLO, wants="coordinator"), "role", "this is a peer, not a coordinator"),
        (replace(HELLO, role="client"), "role", "a peer does not serve a client"),
        (replace(HELLO, peer_id=""), "protocol", "a HELLO without a peer_id"),
        (replace(HELLO, expects="three"), "identity", "this is peer two, not three"),
        (Auth("password", "x"), "auth", "authentication is not part of this version"),
        (Ping(1), "protocol", "a PING where HELLO belongs"),
        (Welcome(1, "peer", "x", 0.0, {}), "protocol", "a WELCOME where HELLO belongs"),
        (Data(0, 0, 0.0, 1, b"\x91\x01"), "protocol", "a DATA where HELLO belongs"),
        (Goodbye("closing", "bye"), "protocol", "a GOODBYE where HELLO belongs"),
    ],
)
def test_strangers_are_told_why(event: Event, code: str, what: str) -> None:
    with pytest.raises(ProtocolError, match=what) as it:
        Acceptor(OTHER, ("peer",)).receive(event)
    assert it.value.code == code


WELCOME = Welcome(PROTOCOL_VERSION, "peer", "two", 0.0, {})


@pytest.mark.parametrize(
    ("event", "code", "what"),
    [
        (
            replace(WELCOME, version=2),
            "version",
            "the other end speaks version 2 of the protocol, this one version 1",
        ),
        (replace(WELCOME, role="coordinator"), "role", "it is a coordinator, not a peer"),
        (replace(WELCOME, peer_id="three"), "identity", "it is another peer than the one asked"),
        (Ping(1), "protocol", "a PING where WELCOME belongs"),
        (HELLO, "protocol", "a HELLO where WELCOME belongs"),
    ],
)
def test_whoever_answers_must_be_who_was_asked_for(event: Event, code: str, what: str) -> None:
    with pytest.raises(ProtocolError, match=what) as it:
        Dialler(PEER, "peer", "two").receive(event)
    assert it.value.code == code


def test_any_identity_will_do_where_none_is_expected() -> None:
    _, found = Dialler(PEER, "peer").receive(replace(WELCOME, peer_id="whoever"))
    assert found is not None
    assert found.peer_id == "whoever"


def test_a_refusal_says_the_other_ends_reason() -> None:
    with pytest.raises(Refused, match="this is peer two, not three") as it:
        Dialler(PEER, "peer").receive(Goodbye("identity", "this is peer two, not three"))
    assert it.value.code == "identity"
    assert isinstance(it.value, PubSubError)


def test_a_refusal_for_want_of_authentication_is_an_error_of_its_own() -> None:
    with pytest.raises(AuthError, match="who are you"):
        Dialler(PEER, "peer").receive(Goodbye("auth", "who are you"))


def test_nobody_may_say_that_it_is_the_one_it_dials() -> None:
    hello = Dialler(replace(OTHER, peer_id="one"), "peer").opening()
    assert hello is not None
    with pytest.raises(ProtocolError, match="it says that it is this very peer") as raised:
        Acceptor(PEER, ("peer",)).receive(hello)
    assert raised.value.code == "identity"


class Riddles:
    """An authenticator: whoever is asked for a number says the next one, and so may do so much."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.asked = 0
        self.rights: frozenset[str] = frozenset()

    def challenge(self, hello: Hello) -> Auth | None:
        if not self.numbers:
            return None
        self.asked = self.numbers.pop(0)
        return Auth("riddle", self.asked)

    def answer(self, auth: Auth) -> Auth | None:
        if not self.asked:  # the side that is asked
            return Auth("riddle", auth.payload + 1)
        if auth.payload != self.asked + 1:
            raise ProtocolError(f"{auth.payload} is wrong", code="auth")
        self.rights |= {str(auth.payload)}
        return self.challenge(HELLO)


@pytest.mark.parametrize("riddles", [(), (1,), (1, 5, 9)])
def test_an_authenticator_asks_before_the_welcome_and_says_what_the_other_may(
    riddles: tuple[int, ...],
) -> None:
    dialler = Dialler(PEER, "peer", authenticator=Riddles())
    acceptor = Acceptor(OTHER, ("peer",), authenticator=Riddles(*riddles))
    said: Event | None = dialler.opening()
    met = found = None
    frames = 0
    while found is None:
        assert said is not None
        said, met = acceptor.receive(said)
        assert said is not None
        said, found = dialler.receive(said)
        frames += 1
    assert frames == 1 + len(riddles)
    assert met is not None
    assert (met.peer_id, found.peer_id) == ("one", "two")
    assert met.rights == {str(number + 1) for number in riddles}


def test_who_answers_wrong_or_something_else_is_refused() -> None:
    for answer in (Auth("riddle", 7), HELLO, Ping(1)):
        acceptor = Acceptor(OTHER, ("peer",), authenticator=Riddles(1))
        assert acceptor.receive(HELLO) == (Auth("riddle", 1), None)
        with pytest.raises(ProtocolError) as it:
            acceptor.receive(answer)
        assert it.value.code == "auth"


def test_who_is_asked_and_has_no_authenticator_says_so() -> None:
    with pytest.raises(ProtocolError, match="a AUTH where WELCOME belongs"):
        Dialler(PEER, "peer").receive(Auth("riddle", 1))


def test_where_nobody_is_asked_everybody_may_do_everything() -> None:
    assert {one.rights for one in meet(Dialler(PEER, "peer"), Acceptor(OTHER, ("peer",)))} == {
        EVERYTHING
    }
