"""The parts of a value that `pubsub tail --fields` shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pubsub import Message
from pubsub.cli.fields import Fields
from pubsub.cli.formats import Formatter

VALUE = {"a": 1, "b": {"c": [10, {"d": 2}], "0": "zero"}, "n": {7: "seven"}, "t": "x\ty\\z\n"}


def test_they_come_by_their_paths_in_the_order_in_which_they_were_given() -> None:
    picked = Fields("b.c.1.d, a,b.c.-2,b.0,n.7,no,b.c.9,a.b,t.0").of(VALUE)
    assert list(picked.items()) == [
        *(("b.c.1.d", 2), ("a", 1), ("b.c.-2", 10), ("b.0", "zero"), ("n.7", "seven")),
        *(("no", None), ("b.c.9", None), ("a.b", None), ("t.0", None)),
    ]


@pytest.mark.parametrize("value", [None, 3, "text", b"bytes", [1], object(), np.arange(0)])
def test_any_other_value_has_none_of_them(value: Any) -> None:
    assert Fields("a,5").of(value) == {"a": None, "5": None}


def test_arrays_have_indices() -> None:
    assert Fields("1").of(np.arange(3)) == {"1": 1}


@pytest.mark.parametrize("text", ["", "a,", "a..b", ".a", ","])
def test_an_empty_name_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="has an empty name"):
        Fields(text)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("json", b'{"a": 1, "t": "x\\ty\\\\z\\n", "no": null}\n'),
        ("raw", b"1\tx\\ty\\\\z\\n\t\n"),
        ("repr", b"1\t'x\\ty\\\\z\\n'\tNone\n"),
    ],
)
def test_a_line_of_them_has_as_many_columns_whatever_is_in_them(form: str, line: bytes) -> None:
    message = Message(VALUE, "t", "127.0.0.1:1#1", 0, 0.0)
    assert Formatter(form, fields=Fields("a,t,no")).line(message) == line
