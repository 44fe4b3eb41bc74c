"""The proof: who has the key is let in, in both directions, and nobody else by any trick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack
import pytest

from pubsub.core.rights import EVERYTHING
from pubsub.errors import AuthError, ProtocolError
from pubsub.trust.guard import Guard
from pubsub.trust.keys import Key
from pubsub.trust.proof import NONCE, SIZE, Ends, Proof
from pubsub.wire.handshake import Acceptor, Authenticator, Dialler, Identity, Other, tcp
from pubsub.wire.messages import Auth, Goodbye, Hello, Welcome, encode, parse
from tests.wire.said import welcome

ENDS: Ends = (("127.0.0.1", 40123), ("127.0.0.1", 7700))
ELSEWHERE: Ends = (("127.0.0.1", 40124), ("127.0.0.1", 7701))
KEY, OTHER_KEY = Key.new(), Key.new()
ONE = Identity("peer", "one", tcp("127.0.0.1", 7001), {"name": "camera"}, "here", b"of one")
TWO = Identity("peer", "two", info={"name": "display"}, host_id="here", secret=b"of two")

NOT_THE_KEY = "it does not have the key of FILE"
OTHER_ENDS = (
    "it has the key, but sees other addresses (a forwarded port or a tunnel lies between, or "
    "somebody does): use TLS there, by encrypt=True or PUBSUB_ENCRYPT=1"
)
NOTHING_ASKED = "it shows no credentials, and does not ask for the key of FILE"
NOTHING_SHOWN = (
    "no credentials were shown, and a key or secret is asked for here: set PUBSUB_KEY_FILE to the "
    "same key on both sides, or start both as the same user"
)
_nonces = iter(range(10**6))


def proof(*keys: Key, ends: Ends = ENDS) -> Proof:
    """Of a new connection."""
    nonce = next(_nonces).to_bytes(NONCE, "big")
    return Proof(keys or (KEY,), ends, nonce, "the key of FILE")


def dialler(authenticator: Authenticator | None = None, me: Identity = ONE) -> Dialler:
    return Dialler(me, "peer", "two", authenticator or proof())


def acceptor(authenticator: Authenticator | None = None) -> Acceptor:
    return Acceptor(TWO, ("peer",), 0.0, authenticator or proof())


def carried(message: Any) -> Any:
    """As it is read at the other end."""
    return parse(msgpack.unpackb(encode(message)[4:]))


class Said(NamedTuple):
    """What was said on a connection, and who each side met."""

    hello: Hello
    question: Auth
    answer: Auth
    met: Other
    found: Other


def meet(dialler: Dialler, acceptor: Acceptor) -> Said:
    hello = carried(dialler.opening())
    question, met = acceptor.receive(hello)
    assert met is None
    answer, found = dialler.receive(carried(question))
    assert found is None
    last, met = acceptor.receive(carried(answer))
    nothing, found = dialler.receive(carried(last))
    assert nothing is None
    assert isinstance(question, Auth)
    assert isinstance(answer, Auth)
    assert isinstance(last, Welcome)
    assert met is not None
    assert found is not None
    return Said(hello, question, answer, met, found)


def refused(receive: Callable[[Any], Any], event: Any, why: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        receive(event)
    assert (caught.value.code, str(caught.value)) == ("auth", why)


# --- who has the key ------------------------------------------------------------------------------


def test_two_that_have_the_key_meet() -> None:
    said = meet(dialler(), acceptor())
    for other, who in ((said.met, "one"), (said.found, "two")):
        assert other.peer_id == who
        assert other.standing.authenticated
        assert other.standing.rights is EVERYTHING
        assert other.standing.stands_on == {KEY.id}
        assert other.standing.until == float("inf")
    assert (said.question.role, said.question.peer_id) == ("peer", "two")
    assert (said.answer.role, said.answer.peer_id, said.answer.nonce) == ("peer", "one", b"")
    assert len(said.question.proof) == len(said.answer.proof) == 2 * SIZE


def test_names_that_are_shown_in_another_way_than_they_are_said_do_no_harm() -> None:
    """A HELLO is not as it was said once it was read: so a proof is of what was read."""
    odd = replace(ONE, ways=(*tcp("lo\ncal", 7001),), info={"name": "a\x1b[2J"})
    assert meet(dialler(me=odd), acceptor()).met.host == "lo\\ncal"


@pytest.mark.parametrize(
    ("dials", "takes"),
    [
        ((KEY, OTHER_KEY), (KEY,)),
        ((KEY,), (OTHER_KEY, KEY)),
        ((KEY, OTHER_KEY), (OTHER_KEY, KEY)),
        ((OTHER_KEY, KEY), (KEY, OTHER_KEY)),
    ],
)
def test_while_keys_change_each_side_shows_its_first_and_takes_any(
    dials: tuple[Key, ...], takes: tuple[Key, ...]
) -> None:
    if not set(takes[:1]) <= set(dials):  # what it shows first, the other does not have yet
        refused(*_first_auth(dials, takes), NOT_THE_KEY)
        return
    said = meet(dialler(proof(*dials)), acceptor(proof(*takes)))
    used = {dials[0].id, takes[0].id}
    assert said.met.standing.stands_on == said.found.standing.stands_on == used


def _first_auth(dials: tuple[Key, ...], takes: tuple[Key, ...]) -> tuple[Any, Any]:
    here = dialler(proof(*dials))
    question, _ = acceptor(proof(*takes)).receive(carried(here.opening()))
    return here.receive, carried(question)


def test_the_same_connection_looks_the_same_from_both_ends_however_it_is_written() -> None:
    v4, mapped = ENDS, (("::ffff:127.0.0.1", 40123, 0, 0), ("::ffff:127.0.0.1", 7700, 0, 0))
    meet(dialler(proof(ends=v4)), acceptor(proof(ends=mapped)))
    zones = [(("fe80::1%" + zone, 1, 0, 2), ("fe80::2%" + zone, 2, 0, 2)) for zone in ("a", "b")]
    meet(dialler(proof(ends=zones[0])), acceptor(proof(ends=zones[1])))


# --- who has not ----------------------------------------------------------------------------------


def test_another_key_is_found_out_by_the_side_that_dialled_before_it_shows_anything() -> None:
    refused(*_first_auth((KEY,), (OTHER_KEY,)), NOT_THE_KEY)


def test_who_dials_with_another_key_is_refused() -> None:
    there, here = acceptor(), dialler(proof(OTHER_KEY, KEY))
    question, _ = there.receive(carried(here.opening()))
    answer, _ = here.receive(carried(question))
    refused(there.receive, carried(answer), NOT_THE_KEY)


def test_a_key_that_trusts_more_than_it_shows_is_refused_where_what_it_shows_is_not_trusted() -> (
    None
):
    refused(*_first_auth((KEY,), (OTHER_KEY, Key.new())), NOT_THE_KEY)


@pytest.mark.parametrize("made_up", [b"", bytes(SIZE), bytes(2 * SIZE)])
def test_a_proof_that_is_none_is_refused_on_both_sides(made_up: bytes) -> None:
    here, there = dialler(), acceptor()
    question, _ = there.receive(carried(here.opening()))
    assert isinstance(question, Auth)
    refused(here.receive, replace(question, proof=made_up), NOT_THE_KEY)
    refused(there.receive, Auth("peer", "one", b"", made_up), NOT_THE_KEY)


def test_the_proof_of_one_side_is_none_of_the_other() -> None:
    """An echo: who has no key says to each what that has said itself."""
    here, there = dialler(), acceptor()
    question, _ = there.receive(carried(here.opening()))
    assert isinstance(question, Auth)
    refused(there.receive, replace(question, role="peer", peer_id="one", nonce=b""), NOT_THE_KEY)
    answer, _ = here.receive(carried(question))
    assert isinstance(answer, Auth)
    again = dialler()
    again.opening()
    refused(again.receive, replace(question, proof=answer.proof), NOT_THE_KEY)


def test_what_was_said_once_counts_on_no_other_connection() -> None:
    said = meet(dialler(), acceptor())
    there = acceptor()
    there.receive(said.hello)
    refused(there.receive, said.answer, NOT_THE_KEY)
    here = dialler()
    here.opening()
    refused(here.receive, said.question, NOT_THE_KEY)


def test_who_sits_between_two_connections_passes_nothing_on() -> None:
    here, there = dialler(proof(ends=ENDS)), acceptor(proof(ends=ELSEWHERE))
    question, _ = there.receive(carried(here.opening()))
    refused(here.receive, carried(question), OTHER_ENDS)
    # and the side that was dialled, too, finds it out, by what such a dialler would say
    careless = dialler(proof(ends=ENDS))
    there = acceptor(proof(ends=ELSEWHERE))
    question, _ = there.receive(carried(careless.opening()))
    assert isinstance(question, Auth)
    fooled = replace(question, proof=_shown_at(ENDS, careless, question))
    answer, _ = careless.receive(fooled)
    refused(there.receive, carried(answer), OTHER_ENDS)


def _shown_at(ends: Ends, dialler: Dialler, question: Auth) -> bytes:
    """What the side that was dialled would show there."""
    assert dialler._hello is not None
    return proof(ends=ends)._prove("of who was dialled", carried(dialler._hello), question)


@pytest.mark.parametrize(
    "change",
    [
        {"ways": tcp("10.66.6.6", 7001)},
        {"ways": ()},
        {"peer_id": "somebody"},
        {"claim": b"another claim"},
        {"expects": ""},
        {"host_id": "there"},
        {"listens": False},
        {"info": {}},
        {"nonce": bytes(NONCE)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_hello_that_is_changed_on_the_way_is_none(change: dict[str, Any]) -> None:
    here, there = dialler(), acceptor()
    question, _ = there.receive(replace(carried(here.opening()), **change))
    refused(here.receive, carried(question), NOT_THE_KEY)
    # whoever cannot change what comes back does not get in by what the dialler says to it, either
    here, honest = dialler(), acceptor()
    hello = carried(here.opening())
    question, _ = honest.receive(hello)
    answer, _ = here.receive(carried(question))
    there = acceptor(proof())
    there.receive(replace(hello, **change))
    there._authenticator._question = question  # type: ignore[attr-defined]  # the same nonce, even
    refused(there.receive, carried(answer), NOT_THE_KEY)


@pytest.mark.parametrize("change", [{"peer_id": "three"}, {"role": "coordinator"}])
def test_an_auth_that_is_changed_on_the_way_is_none(change: dict[str, Any]) -> None:
    here, there = dialler(), acceptor()
    question, _ = there.receive(carried(here.opening()))
    assert isinstance(question, Auth)
    refused(here.receive, replace(question, **change), NOT_THE_KEY)


def test_a_welcome_that_comes_at_once_shows_nothing() -> None:
    here = dialler()
    here.opening()
    refused(here.receive, welcome("peer", "two"), NOTHING_ASKED)


def test_who_dialled_does_not_get_in_without_an_answer() -> None:
    there = acceptor()
    hello = carried(dialler().opening())
    there.receive(hello)
    refused(there.receive, hello, "a HELLO where AUTH belongs")


@pytest.mark.parametrize("nonce", [b"", b"x", bytes(NONCE - 1)])
def test_a_nonce_is_long_enough(nonce: bytes) -> None:
    refused(acceptor().receive, replace(carried(dialler().opening()), nonce=nonce), NOTHING_SHOWN)
    here, there = dialler(), acceptor()
    question, _ = there.receive(carried(here.opening()))
    assert isinstance(question, Auth)
    refused(here.receive, replace(question, nonce=nonce), "its AUTH has no nonce")


# --- open, and another version --------------------------------------------------------------------


def test_an_open_side_and_one_with_a_key_tell_each_other_so() -> None:
    everybody = Guard()
    open_dialler = dialler(everybody.dials(ENDS, None))
    refused(acceptor().receive, carried(open_dialler.opening()), NOTHING_SHOWN)
    refused(
        acceptor(everybody.takes(ENDS, None)).receive,
        carried(dialler().opening()),
        "here everything is open (--insecure, PUBSUB_INSECURE), and who has credentials speaks to "
        "nobody without: give both sides the same",
    )


def test_an_open_side_that_is_asked_says_what_to_set() -> None:
    here, there = dialler(Guard().dials(ENDS, None)), acceptor()
    here.opening()
    question, _ = there.receive(carried(dialler().opening()))
    refused(
        here.receive,
        carried(question),
        "it asks for credentials, and here everything is open: set PUBSUB_KEY_FILE to its key, and "
        "not PUBSUB_INSECURE",
    )


def test_a_refusal_is_an_auth_error_at_the_other_end() -> None:
    here = dialler()
    here.opening()
    with pytest.raises(AuthError, match="it does not have the key of FILE"):
        here.receive(Goodbye("auth", NOT_THE_KEY))


def test_version_1_is_told_of_the_version_and_not_of_keys() -> None:
    with pytest.raises(ProtocolError, match="speaks version 1 of the protocol") as caught:
        parse([1, 1, "peer", "peer", "one", "two", "127.0.0.1", 7001, {}])
    assert caught.value.code == "version"


def test_nothing_that_is_shown_of_a_proof_shows_the_key() -> None:
    secret = KEY.text().partition(":")[2]
    said = meet(dialler(), acceptor())
    assert secret not in repr(said) + repr(proof()) + str(vars(proof()))
