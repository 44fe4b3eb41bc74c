"""What `pubsub tail --rate` counts and shows."""

from __future__ import annotations

import json

import pytest

from pubsub.cli.rate import REMEMBERED, Meter, Table, as_lines, in_bytes


def test_it_is_by_the_second_since_it_was_read_last() -> None:
    meter = Meter(10.0)
    meter.add("b", 4, 400, 0, 10.5)
    meter.add("a", 1, 10, 3, 11.0)
    meter.add("b", 4, 400, 0, 11.5)
    rows = meter.read(12.0)
    assert list(rows) == ["a", "b"]
    assert rows["b"] == {
        "messages_per_second": 4.0,
        "bytes_per_second": 400.0,
        "lost": 0,
        "total": 8,
    }
    assert rows["a"]["lost"] == 3
    again = meter.read(13.0)
    assert again["b"] == {
        "messages_per_second": 0.0,
        "bytes_per_second": 0.0,
        "lost": 0,
        "total": 8,
    }


def test_a_topic_on_which_nothing_comes_is_forgotten() -> None:
    meter = Meter(0.0)
    meter.add("t", 1, 1, 0, 1.0)
    assert meter.read(1.0 + REMEMBERED) != {}
    assert meter.read(1.5 + REMEMBERED) == {}


def test_lines_are_json() -> None:
    meter = Meter(0.0)
    meter.add("ü", 3, 30, 0, 1.0)
    (line,) = as_lines(meter.read(2.0), 0.0).decode().splitlines()
    row = json.loads(line)
    assert (row["topic"], row["messages_per_second"], row["total"]) == ("ü", 1.5, 3)
    assert as_lines({}, 0.0) == b""


def test_a_table_is_drawn_over_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    meter = Meter(0.0)
    meter.add("t", 12_345, 2_000_000, 0, 1.0)
    drawn = Table()
    first = drawn.draw(meter.read(1.0)).decode()
    assert first == (
        "TOPIC  MESSAGES/S  BYTES/S  LOST   TOTAL\nt          12,345   2.0 MB     0  12,345\n"
    )
    assert drawn.draw(meter.read(2.0)).decode().startswith("\x1b[2A\x1b[JTOPIC")


def test_of_many_topics_those_with_the_most_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    meter = Meter(0.0)
    for n in range(5):
        meter.add(f"t{n}", n, 1, 0, 1.0)
    lines = Table().draw(meter.read(1.0)).decode().splitlines()
    assert [line[:2] for line in lines] == ["TO", "t3", "t4", "… "]
    assert max(map(len, lines)) < 20


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (7e12, "7000.0 GB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert in_bytes(count) == text
