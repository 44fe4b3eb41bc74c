"""Times that `pubsub tail --since` takes, and what it says of shorter histories."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pubsub import Message
from pubsub.cli.since import Since, moment

NOW = datetime(2026, 5, 31, 12, 0, 0)


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("30s", NOW - timedelta(seconds=30)),
        ("5m", NOW - timedelta(minutes=5)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("1.5d", NOW - timedelta(hours=36)),
        ("0s", NOW),
        ("11:30", NOW - timedelta(minutes=30)),
        ("12:30", NOW - timedelta(hours=23, minutes=30)),  # yesterday
        ("2026-05-30", datetime(2026, 5, 30)),
        ("2026-05-30T08:15:01", datetime(2026, 5, 30, 8, 15, 1)),
        ("2026-05-30T08:15:00Z", datetime(2026, 5, 30, 8, 15, tzinfo=timezone.utc)),
        ("2026-05-30T08:15:00+02:00", datetime(2026, 5, 30, 6, 15, tzinfo=timezone.utc)),
    ],
)
def test_a_period_a_time_of_day_or_a_date(text: str, then: datetime) -> None:
    assert moment(text, NOW.timestamp()) == then.timestamp()


@pytest.mark.parametrize(
    "text", ["", "5", "12", "2026", "m", "5x", "-5m", "25:00", "yesterday", "2026-13-01"]
)
def test_anything_else_is_an_error_that_says_how_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time: it is written 30s, 5m"):
        moment(text, NOW.timestamp())


def test_a_moment_that_has_not_come_is_an_error() -> None:
    with pytest.raises(ValueError, match="has not come yet"):
        moment("2026-06-01", NOW.timestamp())


def test_a_period_longer_than_there_are_clocks_is_all_of_it() -> None:
    assert moment("99999999999d", NOW.timestamp()) < 0


def message(publisher: str, seq: int, sent_at: float) -> Message:
    return Message(None, "t", publisher, seq, sent_at)


def test_g3_a_history_that_is_shorter_is_said_once() -> None:
    since = Since(100.0)
    said = since.first(message("p#1", 5, 150.0))
    assert said.startswith("t from p#1 begins at ")
    assert said.endswith(": the 5 messages before that, Pub(history=…) does not keep")
    assert since.first(message("p#1", 6, 160.0)) == ""
    assert since.silent("p#1", "t", 7) == ""


@pytest.mark.parametrize(("seq", "sent_at"), [(0, 150.0), (5, 99.0)])
def test_one_that_is_long_enough_is_not(seq: int, sent_at: float) -> None:
    assert Since(100.0).first(message("p#1", seq, sent_at)) == ""


def test_g3_a_publisher_that_has_nothing_from_before_is_said_once() -> None:
    since = Since(100.0)
    said = (
        "t from p#1 has nothing from before: the message before that, Pub(history=…) does not keep"
    )
    assert since.silent("p#1", "t", 1) == said
    assert since.silent("p#1", "t", 1) == ""
    assert since.silent("p#2", "t", 0) == ""
    assert since.silent("p#3", "t", None) == ""
