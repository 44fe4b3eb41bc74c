"""The filter of `pubsub tail --where`."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from pubsub import Message
from pubsub.cli.where import Where


def message(value: Any, topic: str = "t", sent_at: float = 1_800_000_000.0) -> Message:
    return Message(value, topic, "127.0.0.1:1#1", 0, sent_at)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('temp > 30 and room == "kitchen"', {"temp": 31.5, "room": "kitchen"}),
        ("temp > 30 or alarm", {"temp": 3, "alarm": True}),
        ("not muted", {"muted": False}),
        ("20 <= temp < 30", {"temp": 20}),
        ('a.b["c d"][0].e == 1', {"a": {"b": {"c d": [{"e": 1}]}}}),
        ("order.items > 2 and order.keys == 1", {"order": {"items": 3, "keys": 1}}),
        ('room in ["attic", "kitchen"]', {"room": "attic"}),
        ('"red" in tags', {"tags": ("red", "blue")}),
        ("value > 3", 4),
        ("value == 1", {"value": 1}),
        ("gone is None and gone == null", {"gone": None}),
        ("on == true", {"on": True}),
        ('topic == "t"', "whatever"),
        ('date("2026-01-01") < at', {"at": datetime(2026, 5, 31)}),
        ('time > date("2020-01-01T00:00+00:00")', {}),
        ("len(items) == 2 and lower(name) == 'ann'", {"items": [1, 2], "name": "Ann"}),
        (r'search("^k\w+n$", room)', {"room": "kitchen"}),
        ("price > 0.1", {"price": Decimal("0.2")}),
        ("data[1] == 2.5 and len(data) == 3", {"data": np.array([1.0, 2.5, 3.0])}),
        ("n % 2 == 1", {"n": 3}),
    ],
)
def test_what_is_true_of_a_value_is_wanted(text: str, value: Any) -> None:
    where = Where(text)
    assert where(message(value))
    assert where.unfit == 0


@pytest.mark.parametrize(
    ("text", "value", "why"),
    [
        ("temp > 30", {}, "'temp' is missing"),
        ("a.b > 30", {"a": {}}, "'a.b' is missing"),
        ("temp > 30", {"temp": "hot"}, "'>' not supported"),
        ("temp > 30", {"temp": None}, "'>' not supported"),
        ("temp > 30", [1, 2], "'temp' is missing"),
        ("a.__class__ == 1", {"a": 1}, "'a.__class__' is missing"),
        ("a[3] == 1", {"a": [1]}, "index out of range"),
        ("data > 1", {"data": np.arange(3)}, "ambiguous"),
        ('at > date("2026-01-01")', {"at": datetime.now(timezone.utc)}, "offset-naive"),
        ("text % 5 == 1", {"text": "%99999999999d"}, "text has no remainder"),
        ("text * 1000000 == 1", {"text": "x" * 1000}, "that long"),
        ("1 / n > 2", {"n": 0}, "division by zero"),
    ],
)
def test_a_value_that_it_does_not_fit_is_not_wanted_and_counted(
    text: str, value: Any, why: str
) -> None:
    where = Where(text)
    assert not where(message(value))
    assert not where(message(value))
    assert where.unfit == 2
    assert why in where.why


def test_a_value_that_is_nested_very_deep_ends_nothing() -> None:
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    where = Where("len(a) == 1")
    wanted = where(message({"a": deep}))
    assert wanted is (where.unfit == 0)  # versions of the package differ in what they look through


def test_false_is_no_misfit() -> None:
    where = Where("temp > 30")
    assert not where(message({"temp": float("nan")}))
    assert where.unfit == 0


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("temp > > 30", "column 8, before '> 30'"),
        ("temp >", "column 7, at its end"),
        ("temp = 30", "column 6, before '= 30'"),
        ("a && b", "column 4, before '& b'"),
        ("", "column 1, at its end"),
        ("temp > (3", "column 8, before '(3'"),
        ("ü > f(3)", "only len, lower, search, date can be called, column 5, before 'f(3)'"),
        ("a.clear()", "only len, lower, search, date can be called"),
        ("len(*a)", "Starred is not possible here, column 5, before '*a)'"),
        ("[x for x in a]", "ListComp is not possible here, column 1"),
        ("lambda: 1", "Lambda is not possible here"),
        ("2 ** a", "Pow is not possible here"),
        ('f"{a}"', "JoinedStr is not possible here"),
        ("a := 1", "column 3, before ':= 1'"),
        ("a\x00", "null bytes"),
    ],
)
def test_a_wrong_expression_is_an_error_that_says_where(text: str, where: str) -> None:
    with pytest.raises(ValueError) as raised:
        Where(text)
    assert where in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpleeval", None)
    with pytest.raises(ImportError, match=r"pip install 'pubsubd\[cli\]'"):
        Where("a > 1")
