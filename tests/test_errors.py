"""The tree of exceptions: each fits its built-in, carries its fields, and survives a pickle."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

from pubsub import errors
from pubsub.errors import (
    AuthError,
    Closed,
    CoordinatorUnavailable,
    DecodeError,
    EncodeError,
    MessageTooLarge,
    ProtocolError,
    PubSubError,
    RecordingError,
    TopicError,
    WrongContext,
)
from pubsub.wire.handshake import Refused
from pubsub.wire.messages import Goodbye

ALL = [getattr(errors, name) for name in errors.__all__]


def test_every_exception_is_listed_and_derives_from_the_root() -> None:
    defined = [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if member.__module__ == errors.__name__
    ]
    assert set(defined) == set(ALL)
    for kind in ALL:
        assert issubclass(kind, PubSubError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (TopicError, ValueError),
        (EncodeError, TypeError),
        (DecodeError, ValueError),
        (MessageTooLarge, ValueError),
        (WrongContext, RuntimeError),
        (CoordinatorUnavailable, ConnectionError),
        (AuthError, PermissionError),
        (RecordingError, ValueError),
    ],
)
def test_the_builtin_that_fits_catches_it(
    kind: type[PubSubError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)


def test_the_docstring_of_the_module_draws_every_class() -> None:
    assert errors.__doc__ is not None
    for kind in ALL:
        assert kind.__name__ in errors.__doc__


def test_topic_error_carries_the_topic() -> None:
    error = TopicError("a//b", "topic 'a//b' has an empty segment")
    assert error.topic == "a//b"
    assert str(error) == "topic 'a//b' has an empty segment"


def test_encode_error_carries_topic_and_type() -> None:
    error = EncodeError("value on topic 't' is a Foo", topic="t", type_name="Foo")
    assert (error.topic, error.type_name) == ("t", "Foo")
    assert str(error) == "value on topic 't' is a Foo"


def test_decode_error_carries_topic_and_publisher_where_they_are_known() -> None:
    error = DecodeError("broken")
    assert (str(error), error.topic, error.publisher) == ("broken", "", "")
    error = DecodeError("broken", topic="t", publisher="10.0.0.1:5")
    assert (error.topic, error.publisher) == ("t", "10.0.0.1:5")


def test_message_too_large_says_how_large_and_what_to_do() -> None:
    error = MessageTooLarge(topic="t", size=3_000_000, limit=1_000_000)
    assert (error.topic, error.size, error.limit) == ("t", 3_000_000, 1_000_000)
    assert str(error) == (
        "a message of 3,000,000 bytes on topic 't' is over max_message (1,000,000 bytes): "
        "send it in parts, or raise Peer(max_message=…) at both ends"
    )


def test_coordinator_unavailable_carries_the_addresses() -> None:
    error = CoordinatorUnavailable("nobody listens", addresses=("a:1", "b:2"))
    assert error.addresses == ("a:1", "b:2")
    assert CoordinatorUnavailable("nobody listens").addresses == ()


def test_coordinator_unavailable_says_what_is_wrong_and_what_to_do() -> None:
    error = CoordinatorUnavailable("nobody listens", way_out="start one")
    assert (error.problem, str(error)) == ("nobody listens", "nobody listens: start one")


def test_protocol_error_carries_the_code_of_its_goodbye() -> None:
    assert ProtocolError("bad").code == "protocol"
    assert ProtocolError("old", code="version").code == "version"


@pytest.mark.parametrize("kind", [Closed, WrongContext, AuthError, PubSubError])
def test_the_plain_ones_take_a_text(kind: type[PubSubError]) -> None:
    assert str(kind("why")) == "why"


class _Own(MessageTooLarge):
    """An error of a user's own."""


@pytest.mark.parametrize(
    "error",
    [
        PubSubError("why"),
        TopicError("a//b", "topic 'a//b' has an empty segment"),
        EncodeError("why", topic="t", type_name="Foo"),
        DecodeError("why", topic="t", publisher="10.0.0.1:5"),
        MessageTooLarge(topic="t", size=3, limit=2),
        _Own(topic="t", size=3, limit=2),
        Closed("why"),
        WrongContext("why"),
        CoordinatorUnavailable("why", addresses=("a:1",)),
        AuthError("why"),
        ProtocolError("why", code="limit"),
        RecordingError("run.mcap", "it is broken"),
        Refused(Goodbye("busy", "why")),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_every_one_survives_a_pickle_and_a_copy(
    error: PubSubError, again: Callable[[PubSubError], PubSubError]
) -> None:
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
