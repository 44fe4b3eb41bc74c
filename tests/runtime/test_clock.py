"""The clock for what others must do: it does not count what held up the loop."""

from __future__ import annotations

from random import Random

from pubsub.links.patience import HELD_UP
from pubsub.runtime.clock import Clock
from tests.simulation.loop import SimulatedLoop


def loop_and_clock(dues: list[float]) -> tuple[SimulatedLoop, Clock, list[float]]:
    loop = SimulatedLoop(Random(1))  # type: ignore[abstract]  # what is used is there
    looked: list[float] = []

    def expire(now: float) -> float | None:
        looked.append(now)
        return next((due for due in dues if due > now), None)

    return loop, Clock(loop, expire), looked


def run_until(loop: SimulatedLoop, time: float) -> None:
    """Let the loop run, and be on time."""
    reached = loop.create_future()
    loop.call_at(time, reached.set_result, None)
    loop.run_until_complete(reached)


def test_it_looks_when_something_is_due_and_no_more_when_nothing_is() -> None:
    loop, clock, looked = loop_and_clock([1001.0])
    clock.arm(1001.0)
    run_until(loop, 1003.0)
    assert [now >= 1001.0 for now in looked] == [False] * (len(looked) - 1) + [True]
    assert 1003.0 - clock.now() < 0.01


def test_a_loop_that_was_held_up_takes_no_time_from_others() -> None:
    loop, clock, looked = loop_and_clock([1005.0])
    clock.arm(1005.0)
    loop._now += 10.0  # a call that blocks
    assert clock.now() <= 1000.0 + 2 * HELD_UP
    run_until(loop, 1010.0 + HELD_UP)
    assert clock.now() < 1001.0
    assert max(looked) < 1001.0
    run_until(loop, 1015.1)
    assert max(looked) >= 1005.0


def test_what_is_stopped_looks_no_more() -> None:
    loop, clock, looked = loop_and_clock([1001.0])
    clock.arm(1001.0)
    clock.stop()
    run_until(loop, 1003.0)
    assert looked == []
