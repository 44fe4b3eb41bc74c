"""Where the coordinator is: known, or asked of the scheduler, and never by who would answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

from distributed import Client, LocalCluster

from pubsub import CoordinatorUnavailable
from pubsub.dask import PubSubPlugin, Sub, places
from pubsub.dask.pump import Source
from tests.dask import tasks
from tests.dask.tasks import LONG


def in_one_loop() -> Any:
    return LocalCluster(n_workers=1, processes=False, asynchronous=True, dashboard_address=":0")


async def test_where_the_scheduler_shares_the_loop_a_missing_plugin_is_said_at_once(
    name: str,
) -> None:
    async with in_one_loop() as made, Client(made, asynchronous=True):
        began = time.monotonic()
        with pytest.raises(CoordinatorUnavailable, match="register_plugin"):
            Sub(name)
        assert time.monotonic() - began < 1


async def test_making_a_sub_holds_up_the_loop_for_no_longer_than_that(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Source.open

    def slow(source: Source) -> None:
        time.sleep(2)  # a publisher that does not answer
        opening(source)

    async with in_one_loop() as made, Client(made, asynchronous=True) as client:
        await client.register_plugin(PubSubPlugin())
        monkeypatch.setattr(Source, "open", slow)
        began = time.monotonic()
        sub = Sub(name)
        assert time.monotonic() - began < 1.5
        await sub.ready()
        assert time.monotonic() - began >= 2
        await client.submit(tasks.put, name, 1)
        assert await sub.get(timeout=LONG) == 1


async def test_what_fails_while_a_sub_is_made_is_raised_to_who_waits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_one_loop() as made, Client(made, asynchronous=True) as client:
        await client.register_plugin(PubSubPlugin())

        def fails(source: Source) -> None:
            raise CoordinatorUnavailable("of a test")

        monkeypatch.setattr(Source, "open", fails)
        sub = Sub(name)
        for wait in (sub.get, sub.ready):
            with pytest.raises(CoordinatorUnavailable, match="of a test"):
                await asyncio.wait_for(wait(), LONG)


def forget_and_put(name: str) -> None:
    """As a worker whose plugin has not come yet."""
    from distributed import get_worker

    place = places._of_workers.pop(get_worker())
    assert places.where(get_worker())[:4] == place[:4]
    tasks.put(name, 1)


def test_a_worker_whose_plugin_is_late_asks_the_scheduler(client: Any, name: str) -> None:
    sub = Sub(name)
    client.submit(forget_and_put, name, pure=False).result()
    assert sub.get(timeout=LONG) == 1


def test_what_a_later_version_says_more_is_passed_over() -> None:
    place = places.Place("id", "host", 1, None, "/key")
    assert places.Place.of({**place._asdict(), "of a later version": 1}) == place
