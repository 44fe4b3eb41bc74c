"""The dashboard with real processes' Peers: what viewers are told, for how long, and how many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("aiohttp", reason="the dashboard is served by aiohttp")

from pubsub import Peer
from pubsub.core.rights import Rights
from pubsub.dashboard import peeking, server, watching
from pubsub.dashboard.moments import Past
from pubsub.dashboard.peeking import LONGEST, shown
from tests.dashboard.staging import LONG, Staged, crowd, staged
from tests.integration.support import eventually
from tests.integration.test_rights import Given

HOSTILE = "<img src=x onerror=alert(1)></script>"


async def until(events: AsyncIterator[Any], right: Callable[[Any], bool]) -> Any:
    """The first event that is so, with all rows that were told."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LONG
    rows: dict[str, Any] = {}
    async for event in events:
        if "rows" in event:
            rows.update(event["rows"])
            for key in event["gone"]:
                rows.pop(key, None)
            event["rows"] = rows
        if right(event):
            return event
        assert loop.time() < end, event
    raise AssertionError("the stream has ended")


async def test_a_viewer_sees_topics_come_flow_and_go() -> None:
    async with staged() as dash, Peer(dash.coordinator, name="app.py") as peer:
        await dash.enter()
        sub, pub = peer.sub(f"a/{HOSTILE}"), peer.pub(f"a/{HOSTILE}")
        await sub
        async with dash.events("page=topics") as events:
            pub.put(1)
            event = await until(events, lambda event: f"a/{HOSTILE}" in event["rows"])
            assert event["rows"][f"a/{HOSTILE}"]["subs"] == 1
            assert event["coordinators"][0]["address"] == dash.coordinator
            await pub.close()
            await sub.close()
            await until(events, lambda event: f"a/{HOSTILE}" not in event["rows"])


async def test_a_fault_appears_and_goes() -> None:
    async with staged() as dash, Peer(dash.coordinator, name="app.py") as peer:
        await dash.enter()
        other = await peer.pub("sensors/temp")
        async with dash.events("page=topics") as events:
            async with await peer.sub("sensor/temp"):
                event = await until(events, lambda event: event["wrong"])
                assert "sensor/temp" in event["wrong"][0]["text"]
                assert event["rows"]["sensor/temp"]["health"] == "bad"
            await until(events, lambda event: not event["wrong"])
        await other.close()


async def test_two_viewers_see_the_same_and_one_who_leaves_is_no_loss_for_the_other() -> None:
    async with staged() as dash:
        await dash.enter()
        async with dash.events("page=peers") as one:
            async with dash.events("page=peers") as other:
                first, second = await anext(one), await anext(other)
                assert first["rows"].keys() == second["rows"].keys() != set()
            seen = (await anext(one))["n"]
            assert (await anext(one))["n"] > seen
        await eventually(lambda: dash.dashboard._viewers == 0)


async def test_viewers_are_bounded_and_who_is_refused_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MOST_VIEWERS", 2)
    async with staged() as dash:
        await dash.enter()
        path = f"{dash.access.place}events?page=topics"
        async with dash.events("page=topics") as one, dash.events("page=graph") as two:
            assert await dash.get(path) == (503, "2 look at it already\n")
            await anext(one)
            await anext(two)
        await eventually(lambda: dash.dashboard._viewers == 0)
        async with dash.events("page=topics") as again:
            await anext(again)


async def test_what_there_is_not_is_no_page() -> None:
    async with staged() as dash:
        await dash.enter()
        for path in ("events?page=nothing", "../server.py", "..%2fserver.py", "static/app.js"):
            assert (await dash.get(f"{dash.access.place}{path}"))[0] in (401, 404), path


async def test_a_slow_viewer_is_told_the_newest_holds_nothing_up_and_is_cut_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """He reads nothing: what waits for him is one event, and what the kernel takes."""
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    told = crowd(3_000, 100)
    async with staged() as dash:
        await dash.enter()
        number = 0

        async def pictures() -> None:
            nonlocal number
            while True:  # faster than once a second
                number += 1
                dash.dashboard._watching._number = number
                dash.dashboard._watching._show(past, told)
                await asyncio.sleep(0.01)

        past = Past()
        cookie = next(iter(dash.client.cookie_jar))
        _, writer = await asyncio.open_connection("127.0.0.1", dash.port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(
            f"GET {dash.access.place}events?page=topics HTTP/1.1\r\nHost: localhost\r\n"
            f"Cookie: {cookie.key}={cookie.value}\r\n\r\n".encode()
        )
        await eventually(lambda: dash.dashboard._viewers == 1)
        showing = asyncio.ensure_future(pictures())
        async with dash.events("page=peers") as events:
            await until(events, lambda event: event["n"] > 20)
        await eventually(lambda: dash.dashboard._viewers == 0)
        showing.cancel()
        writer.close()


async def test_nothing_is_asked_of_anybody_while_nobody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "KEPT", 0.0)
    async with staged() as dash, Peer(dash.coordinator, name="app.py") as peer:
        await dash.enter()
        assert dash.dashboard._watching._task is None
        async with dash.events("page=peers") as events:
            await until(events, lambda event: event["peer_count"] == 2)
            assert dash.dashboard._watching._task is not None
        await eventually(lambda: dash.dashboard._watching._task is None)
        async with dash.events("page=peers") as events:  # and anew
            await until(events, lambda event: event["peer_count"] == 2)
        del peer


async def test_who_may_not_list_is_told_that(given: Given) -> None:
    given.give("dashboard", Rights(subscribe=["a/*"]))
    async with staged() as dash:
        await dash.enter()
        async with dash.events("page=topics") as events:
            event = await until(events, lambda event: event["trouble"])
            assert "may not list all peers" in event["trouble"]
            assert event["rows"] == {}


# --- peeking -----------------------------------------------------------------------------------


def peeking_at(dash: Staged, topic: str) -> Any:
    return dash.events(f"topic={quote(topic, safe='')}", "peek")


async def test_a_peek_shows_messages_as_text_of_bounded_length() -> None:
    async with staged() as dash, Peer(dash.coordinator) as peer:
        await dash.enter()
        pub = await peer.pub("a")
        values = [HOSTILE, "x" * 2**20, {"deep": [HOSTILE, b"\x00" * 10**6]}, "left\u202eright"]
        async with peeking_at(dash, "a") as events:
            assert await anext(events) == {"ready": True}
            for value in values:
                pub.put(value)
                event = await anext(events)
                assert event["topic"] == "a"
                assert len(event["value"]) <= LONGEST + 100
                assert event["value"] == shown(value)
                assert "\u202e" not in event["value"]
        await eventually(lambda: dash.dashboard._peeks == 0)


async def test_a_peek_takes_a_few_of_many_and_no_publisher_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is over 2 s long behind: a publisher that waits for it would be held up by that."""
    monkeypatch.setattr(peeking, "EVERY", 2.0)
    async with staged() as dash, Peer(dash.coordinator) as peer:
        await dash.enter()
        pub = await peer.pub("a", overflow="block", buffer=65536)
        async with peeking_at(dash, "a") as events:
            await anext(events)
            await pub.put(-1)
            assert (await anext(events))["value"] == "-1"
            for number in range(2_000):
                await asyncio.wait_for(pub.put([number, "x" * 1000]), 1.0)
            event = await anext(events)
            assert event["overtaken"] > 0


async def test_a_peek_ends_by_itself_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peeking, "LASTS", 0.05)
    async with staged() as dash:
        await dash.enter()
        async with peeking_at(dash, "a") as events:
            assert [sorted(event) for event in [each async for each in events]] == [
                ["ready"],
                ["end"],
            ]


async def test_peeks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_PEEKS", 1)
    async with staged() as dash:
        await dash.enter()
        async with peeking_at(dash, "a") as events:
            await anext(events)
            status, text = await dash.get(f"{dash.access.place}peek?topic=a")
            assert (status, text) == (503, "1 peeks are open already\n")
        await eventually(lambda: dash.dashboard._peeks == 0)


@pytest.mark.parametrize(
    ("topic", "why"), [("", "empty"), ("a//b", "empty segment"), ("$stats", "")]
)
async def test_what_is_no_topic_is_refused_in_words(topic: str, why: str) -> None:
    async with staged() as dash:
        await dash.enter()
        async with peeking_at(dash, topic) as events:
            event = await anext(events)
            if topic != "$stats":
                assert why in event["end"]


async def test_rights_apply_to_a_peek(given: Given) -> None:
    given.give("dashboard", Rights(subscribe=["kitchen/**"], list=True))
    async with staged() as dash:
        await dash.enter()
        async with peeking_at(dash, "attic/a") as events:
            assert "may not subscribe 'attic/a'" in (await anext(events))["end"]
        async with peeking_at(dash, "kitchen/a") as events:
            assert await anext(events) == {"ready": True}


async def test_pickled_messages_are_not_opened() -> None:
    async with staged() as dash, Peer(dash.coordinator) as peer:
        await dash.enter()
        pub = await peer.pub("a", codec="pickle")
        async with peeking_at(dash, "a") as events:
            pub.put({"anything": 1})
            event = await until(events, lambda event: "refused" in event)
            assert "pickle" in event["refused"]


@pytest.mark.parametrize(
    "value",
    [10**5000, float("nan"), {1: {2: {3: {}}}}, [[[[[[[[[[1]]]]]]]]]], "\ud800", None, ...],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown(value: Any) -> None:
    text = shown(value)
    assert 0 < len(text) <= LONGEST + 100
    json.dumps(text).encode()
    text.encode()


def test_a_value_whose_repr_fails_is_shown_as_that() -> None:
    class Wrong:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "cannot be shown" in shown([Wrong()]) or "instance at" in shown([Wrong()])
