"""Settings: what is taken, and what is refused with an error that names it."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pubsub.config import (
    FOREVER,
    Address,
    Settings,
    Way,
    advertise_from,
    coordinators_from,
    parse_advertise,
    seconds,
    whole,
)

HEAD = Address("head", 7700)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("head:7700", (HEAD,)),
        (" tcp://head:7700 ", (HEAD,)),
        ("head:7700, [::1]:1,head:7700", (HEAD, Address("::1", 1))),
        (("head", 7700), (HEAD,)),
        (("head", "7700"), (HEAD,)),
        (HEAD, (HEAD,)),
        (("::1", 7700), (Address("::1", 7700),)),
        ("[fe80::1%eth0]:7700", (Address("fe80::1%eth0", 7700),)),
        ("[fe80::1%br-lan.5]:1", (Address("fe80::1%br-lan.5", 1),)),
        (["head:7700", "tail:1"], (HEAD, Address("tail", 1))),
        (("head:7700", "tail:1"), (HEAD, Address("tail", 1))),
    ],
)
def test_a_coordinator_may_be_given_in_many_ways(given: Any, found: tuple[Address, ...]) -> None:
    assert coordinators_from(given, {"PUBSUB_COORDINATOR": "other:1"}) == (found, True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("head", "coordinator 'head' is not host:port"),
        ("head:99999", "coordinator 'head:99999': port 99999 is not between 1 and 65535"),
        (("head", 99999), "coordinator 'head:99999': port 99999 is not between 1 and 65535"),
        (("head", 0), "coordinator 'head:0': port 0 is not between 1 and 65535"),
        (("head", -1), "coordinator 'head:-1' is not host:port"),
        (("head", True), "coordinator 'head:True' is not host:port"),
        (("head", "x"), "coordinator 'head:x' is not host:port"),
        (("", 7700), "coordinator ':7700' is not host:port"),
        ("::1:7711", "an IPv6 address stands in brackets, as in [::1]:7711"),
        ("tcp://fe80::1%eth0:80", "as in [fe80::1%eth0]:80"),
        ("fe80::1%br-lan.5:80", "as in [fe80::1%br-lan.5]:80"),
        ("[fe80::1%]:80", "coordinator '[fe80::1%]:80' is not host:port"),
        ("2001:db8::5", "as in [2001:db8::5]:7700"),
        ("::1", "as in [::1]:7700"),
        ("a:b:c", "coordinator 'a:b:c' is not host:port, such as 127.0.0.1:7700"),
        (":1:2", "coordinator ':1:2' is not host:port, such as 127.0.0.1:7700"),
        ([], "coordinator [] names no host:port"),
        (",", "coordinator ',' names no host:port"),
    ],
)
def test_what_is_no_coordinator_is_named(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        coordinators_from(given, {})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("head", Address("head", 5)),
        (" 10.0.0.1 ", Address("10.0.0.1", 5)),
        ("head:80", Address("head", 80)),
        ("::1", Address("::1", 5)),
        ("fe80::1%eth0", Address("fe80::1%eth0", 5)),
        ("fe80::1%br-lan.5", Address("fe80::1%br-lan.5", 5)),
        ("[::1]:80", Address("::1", 80)),
    ],
)
def test_a_host_or_an_address_may_be_advertised(given: str, found: Address) -> None:
    assert parse_advertise(given, 5) == [found]
    assert parse_advertise(f"{given}, 10.9.9.9:9", 5) == [found, Address("10.9.9.9", 9)]
    assert Settings(advertise=given).advertise == given


def test_who_does_not_listen_is_reached_nowhere() -> None:
    assert Settings(listen=False).listen is False
    for told in ({"host": "10.0.0.1"}, {"port": 7}, {"advertise": "head"}):
        with pytest.raises(ValueError, match=r"^listen=False: nobody can dial this Peer"):
            Settings(listen=False, **told)
    with pytest.raises(TypeError, match="listen=None is neither True nor False"):
        Settings(listen=None)  # type: ignore[arg-type]


def test_a_way_is_shown_by_the_name_that_was_told() -> None:
    told = Way("head", 7700, "a coordinator")
    assert str(told) == "head:7700"
    assert str(Way("10.0.0.1", 7700, told)) == "head:7700 (10.0.0.1)"
    assert str(Way("::1", 7700, Way("::1", 7700))) == "[::1]:7700"
    assert told.address == HEAD


@pytest.mark.parametrize(
    "given",
    ["", " ", "head:", ":80", "head:x", "head:99999", "a b", "[::1]", "http://head", "x:y:z"],
)
def test_what_cannot_be_advertised_is_refused_at_once(given: str) -> None:
    with pytest.raises(ValueError, match=f"advertise {re.escape(repr(given.strip()))}"):
        Settings(advertise=given)


def test_the_environment_is_named_where_it_says_what_cannot_be_advertised() -> None:
    assert advertise_from({}) is None
    assert advertise_from({"PUBSUB_ADVERTISE": ""}) is None
    assert advertise_from({"PUBSUB_ADVERTISE": "head:80"}) == "head:80"
    with pytest.raises(ValueError, match="PUBSUB_ADVERTISE 'foo:bar' is not host:port"):
        advertise_from({"PUBSUB_ADVERTISE": "foo:bar"})
    with pytest.raises(ValueError, match=r"PUBSUB_ADVERTISE 'x+'… has 256 characters"):
        advertise_from({"PUBSUB_ADVERTISE": "x" * 256})


def test_what_is_too_long_or_no_text_cannot_be_advertised() -> None:
    with pytest.raises(ValueError, match="has 256 characters"):
        Settings(advertise="x" * 256)
    with pytest.raises(TypeError, match="advertise=5 is not a string"):
        Settings(advertise=5)  # type: ignore[arg-type]


def test_a_coordinator_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="coordinator 7700 is neither"):
        coordinators_from(7700, {})  # type: ignore[arg-type]


def test_a_name_has_its_limits() -> None:
    assert Settings(name="x" * 255).name
    with pytest.raises(ValueError, match="has 256 characters, over 255"):
        Settings(name="x" * 256)
    with pytest.raises(TypeError, match="name=7 is not a string"):
        Settings(name=7)  # type: ignore[arg-type]


TAKEN: list[tuple[Any, float]] = [
    (3, 3.0),
    (0.5, 0.5),
    (Fraction(1, 2), 0.5),
    (Decimal("0.5"), 0.5),
    (np.float32(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.int8(30), 30.0),
    (np.float32(20.5), 20.5),
    (Fraction(41, 2), 20.5),
    (Decimal("20.5"), 20.5),
    (0, 0.0),
    (-1, 0.0),
    (-math.inf, 0.0),
    (-(10**400), 0.0),
    (math.inf, FOREVER),
    (Decimal("inf"), FOREVER),
    (10**400, FOREVER),
    (Fraction(10**400), FOREVER),
]
NO_TIMES: list[Any] = ["5s", "5", b"5", True, False, np.True_, 1j, [1], timedelta(1), np.zeros(1)]
NANS: list[Any] = [math.nan, np.float32("nan"), Decimal("nan"), Decimal("snan")]


@pytest.mark.parametrize("name", ["linger", "resume_timeout", "ping_timeout"])
def test_settings_take_times_as_calls_do_but_none_below_0(name: str) -> None:
    options: Any
    for value, taken in TAKEN:
        if value > 10:
            options = {name: value}
            assert getattr(Settings(**options), name) == taken
    for value, error in ((float("nan"), ValueError), (-1, ValueError), (None, TypeError)):
        options = {name: value}
        with pytest.raises(error, match=f"^{name}="):
            Settings(**options)


@pytest.mark.parametrize(("value", "taken"), TAKEN)
def test_a_time_to_wait_is_any_real_number(value: Any, taken: float) -> None:
    assert seconds("timeout", value) == taken


@pytest.mark.parametrize("value", NO_TIMES)
def test_what_is_no_number_is_no_time(value: Any) -> None:
    with pytest.raises(TypeError, match="is not a number of seconds"):
        seconds("timeout", value)


@pytest.mark.parametrize("value", NANS)
def test_nan_is_no_time(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds: it is NaN"):
        seconds("linger", value)


def test_no_time_is_none_at_all() -> None:
    assert seconds("timeout", None) is None


def test_a_count_is_any_whole_number() -> None:
    value: Any
    for value in (3, np.int64(3)):
        assert type(whole("max", value, 1)) is int
    for value in (2.5, 3.0, None, "3", True, np.float64(3), Decimal(3)):
        with pytest.raises(TypeError, match="is not a whole number"):
            whole("max", value, 1)
    with pytest.raises(ValueError, match="max=0 is below 1"):
        whole("max", 0, 1)
