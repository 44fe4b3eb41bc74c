"""Liveness: after how much silence to ask, to give up, and to dial again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.wire.liveness import STABLE, Backoff, Heartbeat, Pulse


def ticks(heartbeat: Heartbeat, most: int = 1000) -> list[Pulse]:
    """What it says in silence, until the end."""
    said = []
    for _ in range(most):
        said.append(heartbeat.tick())
        if said[-1] is Pulse.DEAD:
            break
    return said


def test_silence_is_asked_about_and_then_ends_it() -> None:
    heartbeat = Heartbeat(5.0, 15.0)
    assert heartbeat.tick_every == 3.0
    assert ticks(heartbeat) == [
        Pulse.NOTHING,
        Pulse.PING,
        Pulse.NOTHING,
        Pulse.PING,
        Pulse.DEAD,
    ]


def test_any_sign_of_life_begins_anew() -> None:
    heartbeat = Heartbeat(5.0, 15.0)
    for _ in range(100):
        assert [heartbeat.tick() for _ in range(4)][-1] is Pulse.PING
        heartbeat.silent = 0
    assert ticks(heartbeat)[-1] is Pulse.DEAD


def test_it_asks_also_while_much_comes() -> None:
    """The other side may hear nothing else from us."""
    heartbeat = Heartbeat(5.0, 15.0)
    said = []
    for _ in range(10):
        heartbeat.silent = 0
        said.append(heartbeat.tick())
    assert said == [Pulse.NOTHING, Pulse.PING] * 5


@given(st.floats(0.01, 1000), st.floats(1.01, 1000))
def test_it_is_dead_about_when_the_timeout_says_and_never_unasked(
    interval: float, times: float
) -> None:
    timeout = interval * times
    heartbeat = Heartbeat(interval, timeout)
    said = ticks(heartbeat, 10_000)
    assert said[-1] is Pulse.DEAD
    assert Pulse.PING in said
    silence = len(said) * heartbeat.tick_every
    slack = heartbeat.tick_every * 1.001
    assert timeout - slack <= silence <= timeout + slack
    first_ping = (1 + said.index(Pulse.PING)) * heartbeat.tick_every
    assert first_ping <= interval + slack


@pytest.mark.parametrize("pause", [1, 2, 4])
def test_a_pause_on_this_side_does_not_make_the_other_side_look_dead(pause: int) -> None:
    """A process that was stopped for hours has at most one tick due, then reads what waits."""
    heartbeat = Heartbeat(5.0, 15.0)
    for _ in range(10):
        for _ in range(pause):
            assert heartbeat.tick() is not Pulse.DEAD
        heartbeat.silent = 0


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(lambda: 1.0, 0.05, 2.0)
    delays = [backoff.delay() for _ in range(9)]
    assert delays == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert not backoff.lived(STABLE / 2)
    assert backoff.delay() == pytest.approx(2.0)
    assert backoff.lived(STABLE)
    assert backoff.delay() == pytest.approx(0.05)


def test_delays_stay_the_longest_for_ever() -> None:
    backoff = Backoff(lambda: 1.0, 1.0, 60.0)
    assert max(backoff.delay() for _ in range(5000)) == 60.0


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_delays_are_spread_between_half_and_all(random: list[float]) -> None:
    numbers = iter(random)
    backoff = Backoff(lambda: next(numbers))
    for attempt, number in enumerate(random):
        longest = min(2.0, 0.05 * 2**attempt)
        delay = backoff.delay()
        assert longest / 2 <= delay <= longest
        assert delay == pytest.approx(longest * (0.5 + number / 2))
