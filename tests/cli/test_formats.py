"""Values as lines: always one line, always valid JSON where JSON is asked for."""

from __future__ import annotations

import json
import math
import pickle
import uuid
from collections import namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub import Message
from pubsub.cli.formats import Formatter, as_json, as_raw, as_repr
from pubsub.codec.headers import BatchHeaders

np = pytest.importorskip("numpy")


def strict(text: bytes) -> Any:
    """Parsed by JSON's own rules: no NaN, no Infinity, UTF-8."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text.decode(), parse_constant=refuse)


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (-1.5, "-1.5"),
        (2**100, str(2**100)),
        ("grün ✓", '"grün ✓"'),
        ("two\nlines\t\x1b[31m", '"two\\nlines\\t\\u001b[31m"'),
        ([1, [2]], "[1, [2]]"),
        ({"a": {"b": []}}, '{"a": {"b": []}}'),
        (math.nan, '"NaN"'),
        ([math.inf, -math.inf], '["Infinity", "-Infinity"]'),
        (b"\xff\x00", '{"base64": "/wA="}'),
        ((1, (2, 3)), "[1, [2, 3]]"),
        (Point(1, 2), "[1, 2]"),
        ({3, 1, 2}, "[1, 2, 3]"),
        ({"b", 1, "a", None}, '[1, null, "a", "b"]'),
        (frozenset({(2, 1), (1, 2)}), "[[1, 2], [2, 1]]"),
        (datetime(2026, 11, 24, 1, 2, 3, 4), '"2026-11-24T01:02:03.000004"'),
        (datetime(2026, 11, 24, tzinfo=timezone.utc), '"2026-11-24T00:00:00+00:00"'),
        (date(2026, 11, 24), '"2026-11-24"'),
        (time(1, 2), '"01:02:00"'),
        (timedelta(minutes=1, milliseconds=500), "60.5"),
        (Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (1 + 2j, '"(1+2j)"'),
        (
            {2: "a", None: "b", True: "c", 1.5: "d"},
            '{"2": "a", "null": "b", "true": "c", "1.5": "d"}',
        ),
        ({2: 1}, '{"2": 1}'),
        ({(1, 2): 1}, '{"[1, 2]": 1}'),
        ({b"k": 1}, '{"{\\"base64\\": \\"aw==\\"}": 1}'),
        ({date(2026, 1, 2): math.nan}, '{"2026-01-02": "NaN"}'),
        ({math.nan: 1}, '{"NaN": 1}'),
        (np.arange(6).reshape(2, 3), "[[0, 1, 2], [3, 4, 5]]"),
        (np.array([1.5, np.nan]), '[1.5, "NaN"]'),
        (np.array([1 + 1j]), '["(1+1j)"]'),
        (np.array(["2026-11-24"], dtype="M8[ns]"), '["2026-11-24T00:00:00.000000000"]'),
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (np.datetime64("2026-11-24"), '"2026-11-24"'),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "[[1, 2.0]]"),
        (np.longdouble(0.5), None),
        pytest.param(10**5000, None, id="more digits than Python writes"),
        ("\ud800", '"\\ud800"'),  # only pickle brings it
        (slice(1, 2), '"slice(1, 2, None)"'),
    ],
)
def test_json_has_a_form_for_every_value(value: Any, text: str | None) -> None:
    line = as_json(value)
    strict(line)
    if text is not None:
        assert line.decode() == text


def test_json_of_what_has_no_end() -> None:
    endless: list[Any] = [math.nan]
    endless.append(endless)
    assert "..." in strict(as_json(endless))
    deep: Any = math.nan
    for _ in range(5_000):
        deep = [deep]
    assert isinstance(strict(as_json(deep)), str)


class Mute:
    """Only pickle brings such a thing."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_a_value_without_a_repr_is_shown_all_the_same() -> None:
    assert strict(as_json(Mute())) == "<Mute without a repr: RuntimeError>"
    assert as_repr([]) == b"[]"
    assert b"Mute" in as_repr(Mute())


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.timedeltas()
)
keys = st.text() | st.integers() | st.binary() | st.floats() | st.none() | st.tuples(st.integers())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


@given(values)
def test_every_line_is_one_line_of_valid_json(value: Any) -> None:
    line = as_json(value)
    assert b"\n" not in line
    strict(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_what_json_has_comes_back_as_it_was(value: Any) -> None:
    assert strict(as_json(value)) == value


@given(values)
def test_a_repr_is_one_line(value: Any) -> None:
    assert b"\n" not in as_repr(value)


def test_a_repr_over_several_lines_becomes_one() -> None:
    assert as_repr(np.zeros((2, 2))) == b"array([[0., 0.], [0., 0.]])"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("grün\r", "grün\r".encode()),
        (b"\xff\x00", b"\xff\x00"),
        (bytearray(b"ab"), b"ab"),
        ({"a": 1}, b'{"a": 1}'),
        (None, b"null"),
        ("\udcff", b"\xed\xb3\xbf"),
    ],
)
def test_raw_is_the_bytes_or_the_text_itself_and_else_json(value: Any, data: bytes) -> None:
    assert as_raw(value) == data


AT = 1_795_000_000.25
MESSAGE = Message({"v": 1}, 'a/"b"', "127.0.0.1:1#1", 0, AT)


def test_json_lines_with_time_and_topic_are_objects() -> None:
    line = Formatter("json", times=True, topics=True).line(MESSAGE)
    assert line.endswith(b"\n")
    row = strict(line)
    assert list(row) == ["time", "topic", "value"]
    assert row["topic"] == 'a/"b"'
    assert row["value"] == {"v": 1}
    shown = datetime.fromisoformat(row["time"])
    assert shown.tzinfo is not None
    assert shown.timestamp() == AT


def test_json_lines_with_only_one_of_them() -> None:
    assert list(strict(Formatter("json", times=True).line(MESSAGE))) == ["time", "value"]
    assert list(strict(Formatter("json", topics=True).line(MESSAGE))) == ["topic", "value"]
    assert Formatter("json").line(MESSAGE) == b'{"v": 1}\n'


def test_headers_are_json_before_the_value() -> None:
    headed = MESSAGE._replace(headers={"unit": "C", "raw": b"ab"})
    row = strict(Formatter("json", headers=True).line(headed))
    assert row == {"headers": {"unit": "C", "raw": {"base64": "YWI="}}, "value": {"v": 1}}
    assert list(row) == ["headers", "value"]
    assert Formatter("raw", headers=True).line(MESSAGE) == b'{}\t{"v": 1}\n'
    escape = MESSAGE._replace(headers={"\x1b[31m": "\n"})
    assert Formatter("raw", headers=True).line(escape).startswith(b'{"\\u001b[31m": "\\n"}\t')


def test_headers_that_cannot_be_decoded_are_null() -> None:
    message = MESSAGE._replace()
    message._headers = BatchHeaders(b"\xc1", 0, "t", "p")
    assert strict(Formatter("json", headers=True).line(message))["headers"] is None


@pytest.mark.parametrize(("form", "value"), [("repr", "{'v': 1}"), ("raw", '{"v": 1}')])
def test_other_lines_have_time_and_topic_in_front(form: str, value: str) -> None:
    line = Formatter(form, times=True, topics=True).line(MESSAGE).decode()
    shown, topic, rest = line.split("\t")
    assert datetime.fromisoformat(shown).timestamp() == AT
    assert topic == 'a/"b"'
    assert rest == f"{value}\n"


@pytest.mark.parametrize("at", [math.nan, math.inf, -1e30, 1e30])
def test_a_time_that_is_none_is_shown_as_the_number_that_it_is(at: float) -> None:
    row = strict(Formatter("json", times=True).line(MESSAGE._replace(sent_at=at)))
    assert row["time"] == repr(at)


def test_times_of_messages_do_not_stick() -> None:
    line = Formatter("json", times=True).line
    first = line(MESSAGE)
    second = line(MESSAGE._replace(sent_at=AT + 1))
    assert first != second
    assert line(MESSAGE) == first


def test_values_of_pickles_survive(tmp_path: Any) -> None:
    assert as_json(pickle.loads(pickle.dumps(Point(1, 2)))) == b"[1, 2]"
