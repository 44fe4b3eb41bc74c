"""A log says the same thing only so often, and how often it did not."""

from __future__ import annotations

import logging

from pubsub.support.ratelimit import RateLimit


def shown(
    limit: RateLimit,
    at: float,
    text: str = "%s is broken",
    who: str = "it",
    level: int = logging.WARNING,
) -> str | None:
    record = logging.LogRecord("pubsub", level, "", 0, text, (who,), None)
    record.created = at
    return record.getMessage() if limit.filter(record) else None


def test_the_first_ones_pass_and_the_rest_is_counted() -> None:
    limit = RateLimit(most=2, period=60.0)
    assert [shown(limit, at, who=f"link {at}") for at in range(5)] == [
        "link 0 is broken",
        "link 1 is broken",
        None,
        None,
        None,
    ]
    assert shown(limit, 59.9) is None
    assert shown(limit, 60.0) == "it is broken (and 4 more like this were not logged)"
    assert shown(limit, 61.0) == "it is broken"
    assert shown(limit, 62.0) is None


def test_each_text_has_a_count_of_its_own() -> None:
    limit = RateLimit(most=1)
    assert shown(limit, 0.0, "%s is broken") == "it is broken"
    assert shown(limit, 0.0, "%s is gone") == "it is gone"
    assert shown(limit, 0.0, "%s is gone") is None


def test_where_little_was_logged_nothing_was_left_out() -> None:
    limit = RateLimit(most=2, period=60.0)
    assert [shown(limit, at) for at in (0.0, 100.0, 110.0, 200.0)] == ["it is broken"] * 4


def test_a_clock_that_goes_back_silences_nothing() -> None:
    limit = RateLimit(most=1, period=60.0)
    assert shown(limit, 1000.0) == "it is broken"
    assert shown(limit, 10.0) == "it is broken"


def test_what_is_only_said_where_it_was_asked_for_is_all_said() -> None:
    limit = RateLimit(most=1)
    assert [shown(limit, 0.0, level=logging.DEBUG) for _ in range(2)] == ["it is broken"] * 2
    assert shown(limit, 0.0) == "it is broken"
