"""What has changed over the last seconds, and what has not."""

from __future__ import annotations

import pytest

from pubsub.stats.rates import Lateness, Ring, Standing
from pubsub.stats.rows import LoopStats, Rates


def test_before_anything_was_noted_a_rate_is_the_mean_since_it_was_made() -> None:
    ring = Ring()
    assert ring.since(100.0) == 0
    assert ring.lately(100.0).rates("a", 0, 500, made=50.0) == Rates(10.0, 10.0, 10.0)
    assert ring.lately(100.0).rates("a", 0, 500, made=100.0) == Rates()  # just now


def test_rates_are_means_over_1_10_and_60_seconds() -> None:
    ring = Ring()
    count = 0
    for second in range(61):  # 10 a second, but 100 in the last ten seconds and 1000 in the last
        ring.note(float(second), {"a": (count,)})
        count += 1000 if second == 59 else 100 if second >= 50 else 10
    count -= 100
    rates = ring.lately(60.0).rates("a", 0, count, made=-1000.0)
    assert rates == pytest.approx((1000.0, (9 * 100 + 1000) / 10, (500 + 900 + 1000) / 60))
    assert ring.since(60.0) == 60.0


def test_a_rate_over_longer_than_was_watched_is_over_what_was() -> None:
    ring = Ring()
    ring.note(10.0, {"a": (5,)})
    ring.note(11.0, {"a": (6,)})
    ring.note(12.0, {"a": (8,)})
    assert ring.lately(12.5).rates("a", 0, 10, made=0.0) == Rates(4 / 1.5, 2.0, 2.0)


def test_what_was_made_meanwhile_has_its_mean_since() -> None:
    ring = Ring()
    ring.note(10.0, {})
    ring.note(20.0, {"new": (10,)})
    assert ring.lately(21.0).rates("new", 0, 20, made=19.0) == Rates(10.0, 10.0, 10.0)


def test_what_nobody_asked_for_meanwhile_is_not_compared() -> None:
    ring = Ring()
    ring.note(10.0, {"a": (0,)})
    ring.clear()
    ring.note(1000.0, {"a": (990,)})
    assert ring.lately(1001.0).rates("a", 0, 1000, made=0.0) == Rates(10.0, 10.0, 10.0)
    assert ring.since(1001.0) == 1.0


def test_only_a_minute_is_kept() -> None:
    ring = Ring()
    for second in range(1000):
        ring.note(float(second), {"a": (second,)})
    assert ring.since(1000.0) == 61.0


def test_for_how_long_something_stands_still() -> None:
    standing = Standing()
    standing.look(1.0, {"x": 7, "y": 1})
    standing.look(2.0, {"x": 7, "y": 2})
    assert standing.seconds("x", 7, 3.5) == 2.5
    assert standing.seconds("y", 2, 3.5) == 1.5
    assert standing.seconds("y", 3, 3.5) == 0  # it has moved since
    assert standing.seconds("z", 0, 3.5) == 0  # never seen
    standing.look(4.0, {"y": 2})
    standing.look(5.0, {"x": 7, "y": 2})
    assert standing.seconds("x", 7, 6.0) == 1.0  # it was away


def test_how_late_a_loop_was() -> None:
    late = Lateness(100)
    assert late.stats() == LoopStats()
    for n in range(200):
        late.note(n / 1000)
    late.note(-1.0)  # a clock that goes back
    stats = late.stats()
    assert (stats.p50, stats.p99, stats.most, stats.measured) == (0.149, 0.198, 0.199, 100)
