"""The handshake: who may talk to whom, and what is said to those who may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.wire.frames import Data, Event
from pubsub.wire.handshake import (
    SUBSCRIBER,
    Acceptor,
    Dialler,
    Identity,
    Other,
    Refused,
    Standing,
    place_of,
    tcp,
)
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, Ping, WayRow
from tests.wire.said import hello, welcome

PEER = Identity(
    "peer", "one", tcp("10.0.0.1", 7001), {"name": "camera"}, host_id="here", secret=b"of one"
)
OTHER = Identity("peer", "two", info={"name": "display"}, host_id="there", secret=b"of two")
COORDINATOR = Identity("coordinator", "head")
CLIENT = Identity("client", "asking")


def meet(dialler: Dialler, acceptor: Acceptor) -> tuple[Other, Other]:
    """Run it; returns who the acceptor met, and who the dialler did."""
    said = dialler.opening()
    assert said is not None
    assert acceptor.opening() is None
    answer, met = acceptor.receive(said)
    assert answer is not None
    nothing, found = dialler.receive(answer)
    assert nothing is None
    assert met is not None
    assert found is not None
    return met, found


def test_peers_meet() -> None:
    met, found = meet(Dialler(PEER, "peer", "two"), Acceptor(OTHER, ("peer",)))
    ways, camera, display = tcp("10.0.0.1", 7001), {"name": "camera"}, {"name": "display"}
    me = Other("peer", "one", ways, camera, 0.0, PEER.claim("two"), True, "here", wants="peer")
    assert met == me
    assert (met.host, met.port) == ("10.0.0.1", 7001)
    assert found == Other("peer", "two", (), display, 0.0, OTHER.claim("one"), False, "there")
    assert (found.host, found.port) == ("", 0)


def test_a_publisher_that_was_called_meets_its_subscriber() -> None:
    met, found = meet(Dialler(PEER, SUBSCRIBER, "two"), Acceptor(OTHER, ("peer",)))
    assert (met.peer_id, met.wants, found.role) == ("one", SUBSCRIBER, "peer")
    with pytest.raises(ProtocolError, match="this is a coordinator, not a subscriber"):
        meet(Dialler(PEER, SUBSCRIBER), Acceptor(replace(OTHER, role="coordinator"), ("peer",)))


def test_the_first_way_that_this_version_knows_is_the_one_to_dial() -> None:
    ways = (WayRow("quic", "10.0.0.1", 1), *tcp("10.0.0.2", 2), *tcp("10.0.0.3", 3))
    assert place_of(ways) == ("10.0.0.2", 2)
    assert place_of(ways[:1]) == place_of(()) == ("", 0)
    assert tcp("10.0.0.1", 0) == ()


def test_a_claim_is_the_same_to_the_same_one_and_another_to_each_other() -> None:
    again, *others = (
        replace(PEER, info={}).claim("two"),
        PEER.claim("three"),
        replace(PEER, secret=b"another").claim("two"),
    )
    assert PEER.claim("two") == again
    assert again not in others
    assert "of one" not in repr(PEER)


def test_a_claim_to_a_coordinator_does_not_depend_on_which_one_answers() -> None:
    one, two = (
        meet(Dialler(PEER, "coordinator"), Acceptor(Identity("coordinator", name), ("peer",)))[0]
        for name in ("head", "another")
    )
    assert one.who == two.who == ("", PEER.claim("coordinator"))


@pytest.mark.parametrize("me", [PEER, CLIENT])
def test_a_coordinator_takes_peers_and_clients_and_says_how_long_it_settles(me: Identity) -> None:
    met, found = meet(Dialler(me, "coordinator"), Acceptor(COORDINATOR, ("peer", "client"), 2.5))
    assert (met.role, met.peer_id) == (me.role, me.peer_id)
    assert (found.role, found.peer_id, found.settle) == ("coordinator", "head", 2.5)


def test_the_hello_says_all_there_is_to_know() -> None:
    assert Dialler(PEER, "peer", "two").opening() == Hello(
        *(PROTOCOL_VERSION, "peer", "peer", "one", "two", b"", PEER.claim("two")),
        *(tcp("10.0.0.1", 7001), True, "here", {"name": "camera"}),
    )
    nowhere = Dialler(OTHER, "peer").opening()
    assert nowhere is not None
    assert (nowhere.ways, nowhere.listens) == ((), False)


HELLO = hello("peer", "peer", "one", "two")


@pytest.mark.parametrize(
    ("event", "code", "what"),
    [
        (replace(HELLO, wants="coordinator"), "role", "this is a peer, not a coordinator"),
        (replace(HELLO, role="client"), "role", "a peer does not serve a client"),
        (replace(HELLO, peer_id=""), "protocol", "a HELLO without a peer_id"),
        (replace(HELLO, expects="three"), "identity", "this is peer two, not three"),
        (Auth("peer", "x", b"", b""), "protocol", "an? AUTH where HELLO belongs"),
        (Ping(1), "protocol", "a PING where HELLO belongs"),
        (welcome("peer", "x"), "protocol", "a WELCOME where HELLO belongs"),
        (Data(0, 0, 0.0, 1, b"\x91\x01"), "protocol", "a DATA where HELLO belongs"),
    ],
)
def test_strangers_are_told_why(event: Event, code: str, what: str) -> None:
    with pytest.raises(ProtocolError, match=what) as it:
        Acceptor(OTHER, ("peer",)).receive(event)
    assert it.value.code == code


WELCOME = welcome("peer", "two")


@pytest.mark.parametrize(
    ("event", "code", "what"),
    [
        (
            replace(WELCOME, version=1),
            "version",
            "the other end speaks version 1 of the protocol, this one version 2",
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


def test_who_has_dialled_may_refuse_what_it_sees_before_it_says_hello() -> None:
    with pytest.raises(AuthError, match="it says of this side: you are no coordinator"):
        Acceptor(OTHER, ("peer",)).receive(Goodbye("auth", "you are no coordinator"))
    with pytest.raises(Refused, match="you are another") as it:
        Acceptor(OTHER, ("peer",)).receive(Goodbye("identity", "you are another"))
    assert it.value.code == "identity"


def test_nobody_may_say_that_it_is_the_one_it_dials() -> None:
    said = Dialler(replace(OTHER, peer_id="one"), "peer").opening()
    assert said is not None
    with pytest.raises(ProtocolError, match="it says that it is this very peer") as raised:
        Acceptor(PEER, ("peer",)).receive(said)
    assert raised.value.code == "identity"


class Riddle:
    """An authenticator: whoever is asked says what was asked, the other way round."""

    def __init__(self, question: bytes = b"") -> None:
        self.question = question
        self.shown = False

    def meet(self, role: str, peer_id: str) -> None:
        if peer_id == "another":
            raise ProtocolError("seen before it was greeted", code="identity")

    def nonce(self) -> bytes:
        return b"ask me"

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        assert hello.nonce == b"ask me"
        return Auth(me.role, me.peer_id, self.question, b"") if self.question else None

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        self.shown = True
        return Auth(me.role, me.peer_id, b"", question.nonce[::-1])

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        if answer.proof != self.question[::-1]:
            raise ProtocolError(f"{answer.proof!r} is wrong", code="auth")
        self.shown = True

    def vouch(self, role: str, peer_id: str) -> Standing:
        if self.question and not self.shown:
            raise ProtocolError("it has shown nothing", code="auth")
        return Standing(name=f"{role} {peer_id}", authenticated=self.shown)


RIDDLED = replace(HELLO, nonce=b"ask me")
QUESTION = Auth("peer", "two", b"abc", b"")


def test_who_is_seen_to_be_another_before_it_is_greeted_hears_nothing() -> None:
    with pytest.raises(ProtocolError, match="seen before it was greeted"):
        Dialler(PEER, "peer", "another", Riddle()).opening()
    assert Dialler(PEER, "peer", "two", Riddle()).opening() is not None


@pytest.mark.parametrize("question", [b"", b"abc"])
def test_an_authenticator_asks_before_the_welcome_and_says_what_the_other_has_shown(
    question: bytes,
) -> None:
    dialler = Dialler(PEER, "peer", authenticator=Riddle())
    acceptor = Acceptor(OTHER, ("peer",), authenticator=Riddle(question))
    said: Event | None = dialler.opening()
    met = found = None
    frames = 0
    while found is None:
        assert said is not None
        assert met is None
        said, met = acceptor.receive(said)
        assert said is not None
        said, found = dialler.receive(said)
        frames += 1
    assert frames == 1 + bool(question)
    assert met is not None
    assert met.standing == Standing(name="peer one", authenticated=bool(question))
    assert found.standing == Standing(name="peer two", authenticated=bool(question))
    assert met.who == ("peer one", PEER.claim("coordinator"))


def test_who_answers_wrong_or_something_else_is_refused() -> None:
    for answer in (Auth("peer", "one", b"", b"abc"), HELLO, Ping(1)):
        acceptor = Acceptor(OTHER, ("peer",), authenticator=Riddle(b"abc"))
        assert acceptor.receive(RIDDLED) == (QUESTION, None)
        with pytest.raises(ProtocolError) as it:
            acceptor.receive(answer)
        assert it.value.code == "auth"


def test_who_has_shown_nothing_is_not_told_who_this_is() -> None:
    """Not even that it is another one than was asked for."""
    acceptor = Acceptor(OTHER, ("peer",), authenticator=Riddle(b"abc"))
    assert acceptor.receive(replace(RIDDLED, expects="three"))[1] is None
    with pytest.raises(ProtocolError, match="is wrong") as it:
        acceptor.receive(Auth("peer", "one", b"", b"?"))
    assert it.value.code == "auth"


def test_who_welcomes_is_the_one_that_asked() -> None:
    for other in (replace(WELCOME, peer_id="three"), welcome("coordinator", "two")):
        dialler = Dialler(PEER, other.role, authenticator=Riddle())
        dialler.opening()
        dialler.receive(replace(QUESTION, role=other.role))
        with pytest.raises(ProtocolError, match="it has shown that it is another one") as it:
            dialler.receive(replace(other, peer_id="three"))
        assert it.value.code == "auth"


def test_nobody_is_asked_twice() -> None:
    dialler = Dialler(PEER, "peer", authenticator=Riddle())
    dialler.opening()
    assert dialler.receive(QUESTION) == (Auth("peer", "one", b"", b"cba"), None)
    with pytest.raises(ProtocolError, match="AUTH where WELCOME belongs"):
        dialler.receive(QUESTION)


@pytest.mark.parametrize(
    ("role", "peer_id", "code"), [("coordinator", "two", "role"), ("peer", "three", "identity")]
)
def test_who_asks_is_the_one_that_was_dialled(role: str, peer_id: str, code: str) -> None:
    dialler = Dialler(PEER, "peer", "two", Riddle())
    dialler.opening()
    with pytest.raises(ProtocolError) as it:
        dialler.receive(Auth(role, peer_id, b"abc", b""))
    assert it.value.code == code


def test_who_is_asked_and_has_no_authenticator_says_so() -> None:
    dialler = Dialler(PEER, "peer")
    dialler.opening()
    with pytest.raises(ProtocolError, match="it asks for credentials, and here are none") as it:
        dialler.receive(QUESTION)
    assert it.value.code == "auth"


def test_where_nobody_is_asked_nobody_has_shown_anything() -> None:
    met, found = meet(Dialler(PEER, "peer"), Acceptor(OTHER, ("peer",)))
    assert met.standing == found.standing == Standing()
    assert not met.standing.authenticated
