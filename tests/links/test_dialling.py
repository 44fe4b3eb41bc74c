"""Dialling: how many at a time, who first, and how soon where an attempt failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from pubsub.config import Address
from pubsub.links.dialling import AGAIN, AT_ONCE, HASTE, Dialling, TriedLately

HERE, THERE = Address("10.0.0.1", 1), Address("10.0.0.1", 2)


def dialling() -> Dialling:
    return Dialling(asyncio.get_running_loop(), lambda: 1.0)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def enter(turn: Dialling, count: int, again: bool = False) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(turn.enter(again)) for _ in range(count)]


def inside(tasks: Iterable[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def test_so_many_have_a_turn_and_the_next_when_one_leaves() -> None:
    turn = dialling()
    tasks = enter(turn, AT_ONCE + 2)
    await turns()
    assert inside(tasks) == AT_ONCE == turn.busy
    turn.leave(False)
    await turns()
    assert [task.done() for task in tasks] == [True] * (AT_ONCE + 1) + [False]
    for task in tasks:
        task.cancel()


async def test_who_was_not_reached_leaves_turns_to_the_others_and_is_not_forgotten() -> None:
    turn = dialling()
    again = enter(turn, AT_ONCE, again=True)
    await turns()
    assert inside(again) == AGAIN
    first = enter(turn, AT_ONCE)
    await turns()
    assert inside(first) == AT_ONCE - AGAIN
    for _ in range(AGAIN):
        turn.leave(True)
    await turns()
    assert (inside(first), inside(again)) == (AT_ONCE - 1, AGAIN + 1), "one of them at least"
    for task in (*first, *again):
        task.cancel()


@pytest.mark.parametrize("when", ["waiting", "called"])
async def test_who_is_cancelled_takes_no_turn_with_it(when: str) -> None:
    turn = dialling()
    tasks = enter(turn, AT_ONCE + 1)
    await turns()
    last = tasks[-1]
    if when == "called":
        turn.leave(False)  # it has its turn, and was not told yet
    last.cancel()
    await turns()
    assert last.cancelled()
    assert turn.busy == AT_ONCE - (when == "called")
    for _ in range(turn.busy):
        turn.leave(False)
    assert turn.busy == 0


async def test_the_first_attempt_is_short_where_others_wait() -> None:
    turn = dialling()
    assert turn.timeout(5.0, False) == 5.0
    tasks = enter(turn, AT_ONCE + 1)
    await turns()
    assert turn.timeout(5.0, False) == HASTE
    assert turn.timeout(0.5, False) == 0.5
    assert turn.timeout(5.0, True) == 5.0
    for task in tasks:
        task.cancel()


async def test_where_one_was_not_found_another_waits_and_it_does_not() -> None:
    turn = dialling()
    turn.begin(HERE, "A")
    turn.begin(HERE, "B")
    turn.failed(HERE, "A", "refused")
    with pytest.raises(TriedLately, match="another was looked for there a moment ago: refused"):
        turn.check(HERE, "C")
    turn.failed(HERE, "B", "refused")  # was under way
    turn.check(HERE, "A")  # by its own backoff
    turn.check(THERE, "C")
    await asyncio.sleep(0.06)  # the first delay is 50 ms, and only one counted
    turn.begin(HERE, "C")
    with pytest.raises(TriedLately):
        turn.check(HERE, "D")  # one at a time, for as long as that takes
    turn.worked(HERE)
    turn.check(HERE, "D")


async def test_what_failed_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pubsub.links.dialling.FORGOTTEN", -1.0)
    turn = dialling()
    for port in range(10_000):
        turn.failed(Address("10.0.0.1", port), "A", "refused")
    assert len(turn._failed) <= 128
