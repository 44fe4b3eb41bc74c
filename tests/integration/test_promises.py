"""The promises over real sockets, several peers in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections.abc import AsyncIterator

import pytest

from pubsub import Closed, Gap, Message, Peer
from pubsub.errors import AuthError
from pubsub.links import unix
from pubsub.links.link import UNSENT
from pubsub.runtime.turn import TURN_BYTES
from pubsub.trust.guard import IMPOSTOR
from tests.integration.support import LONG, break_links, coordinator_in_loop, eventually


def work(seconds: float) -> None:
    """Do something that keeps the event loop from running."""
    time.sleep(seconds)


@pytest.fixture
async def coordinator() -> AsyncIterator[str]:
    async with coordinator_in_loop() as address:
        yield address


async def test_g1_messages_arrive_in_the_order_of_the_puts(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        for i in range(10_000):
            pub.put(i)
        assert [await sub.get(timeout=10) for _ in range(10_000)] == list(range(10_000))
        assert sub.lost == 0


async def test_g3_what_leaves_the_buffer_is_counted_exactly(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=2_000)
        pub = await here.pub("t", buffer=100_000)
        await pub.wait_for_subscribers(1, timeout=10)
        n = 50_000
        for i in range(n):
            pub.put(i)
            if i % 1_000 == 0:
                await asyncio.sleep(0)
        pub.put("last")
        got: list[int] = []
        gaps: list[Gap] = []
        async for event in sub.messages():
            if isinstance(event, Gap):
                gaps.append(event)
                assert event.reason == "overflow"
            elif event.value == "last":
                break
            else:
                assert event.seq == event.value
                got.append(event.value)
        assert got == sorted(set(got))
        assert sub.lost > 0
        assert sub.lost == sum(gap.missed for gap in gaps)
        assert len(got) + sub.lost == n
        (how,) = pub.subscribers.values()
        assert how["lost"] == sub.lost


async def test_g3_delivered_is_what_was_taken_and_not_what_was_decoded(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t/*")
        for topic in ("t/a", "t/b"):
            (await here.pub(topic)).put_many(range(10))  # one batch
        taken = {"t/a": 0, "t/b": 0}
        async for message in sub.messages():
            assert isinstance(message, Message)
            taken[message.topic] += 1
            rows = {how["topic"]: how["delivered"] for how in sub.publishers.values()}
            assert rows == {topic: taken[topic] for topic in rows}
            if sum(taken.values()) == 20:
                break


@pytest.mark.parametrize("overflow", ["drop", "block"])
async def test_g3_what_is_too_large_for_a_sub_is_counted_at_once(
    coordinator: str, overflow: str
) -> None:
    async with (
        Peer(coordinator) as here,
        Peer(coordinator, max_message=100_000) as there,
        Peer(coordinator) as elsewhere,
    ):
        sub, other = await there.sub("t"), await elsewhere.sub("t")
        pub = await here.pub("t", overflow=overflow, buffer=2_000_000)
        await pub.wait_for_subscribers(2, timeout=10)
        large: list[object] = [b"x" * 300_000, ["y"] * 300_000, b"z" * 90_000]
        for value in large:
            await pub.put(value)
            await pub.flush(timeout=10)
        events = sub.messages()
        (publisher,) = sub.publishers
        assert [await anext(events) for _ in range(2)] == [
            Gap(publisher, "t", 1, "too large"),
            Gap(publisher, "t", 1, "too large"),
        ]
        event = await anext(events)
        assert isinstance(event, Message)
        assert event.value == large[2]
        await pub.put(large[0])  # the last one: nothing comes behind it to tell of it
        await eventually(lambda: sub.lost == 3)
        assert await anext(events) == Gap(publisher, "t", 1, "too large")
        assert [await other.get(timeout=10) for _ in range(4)] == [*large, large[0]]
        assert other.lost == 0
        assert sorted(how["lost"] for how in pub.subscribers.values()) == [0, 3]
        await eventually(lambda: len(pub._publication.log) == 0)


async def test_many_small_messages_go_to_a_sub_that_takes_only_small_ones(
    coordinator: str,
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator, max_message=1_000) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        for i in range(50_000):
            pub.put(i)
        assert [await sub.get(timeout=10) for _ in range(50_000)] == list(range(50_000))


async def test_g3_the_small_messages_around_one_that_is_too_large_arrive(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator, max_message=100_000) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        for value in ("before", b"x" * 300_000, "after", b"y" * 90_000, "end"):
            pub.put(value)
        expected = ["before", "after", b"y" * 90_000, "end"]
        assert [await sub.get(timeout=10) for _ in expected] == expected
        assert sub.lost == 1


async def test_g4_a_ready_sub_gets_what_is_put_next(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        pub = await here.pub("t")
        pub.put("before")
        sub = await there.sub("t")
        pub.put("after")
        assert await sub.get(timeout=10) == "after"


async def test_g4_a_sub_older_than_the_pub_gets_its_first_message(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = here.pub("t")
        pub.put("first")  # before the pub is ready
        assert await sub.get(timeout=10) == "first"


async def test_g3_nobody_comes_as_another(coordinator: str) -> None:
    """Neither to a publisher nor to a coordinator: who came first under an identity keeps it, and
    only the same process comes under it again."""
    async with (
        coordinator_in_loop() as elsewhere,
        Peer(f"{coordinator},{elsewhere}") as here,
        Peer(coordinator, linger=0) as victim,
    ):
        pub, sub = await here.pub("t"), await victim.sub("t")
        await pub.put(0)
        assert await sub.get(timeout=LONG) == 0
        [served] = here.runtime.subscribers.served
        async with Peer(elsewhere, linger=0) as thief, Peer(coordinator, linger=0) as bold:
            for other in (thief, bold):  # before the loop runs, and they say who they are
                other.runtime.peer_id = other.runtime.doors.peer_id = victim.peer_id
            if os.environ.get("PUBSUB_TEST_TRUST"):  # where a certificate says so, none lets it in
                for peer in (thief, bold):
                    with pytest.raises(AuthError, match="its certificate is that of another peer"):
                        await peer.sub("t")
            else:
                stolen = thief.sub("t")
                remotes = thief.runtime.publishers.remotes
                await eventually(lambda: [r for r in remotes.values() if r._backoff._attempts > 1])
                with pytest.raises(AuthError, match=IMPOSTOR):
                    await bold.sub("t")
                assert [how["state"] for how in stolen.publishers.values()] == ["connecting"]
            await pub.put(1)
            assert await sub.get(timeout=LONG) == 1
            assert [*here.runtime.subscribers.served] == [served]
            assert break_links(victim) == 1
            await pub.put("back")
            assert await sub.get(timeout=LONG) == "back"
            assert sub.lost == 0


async def test_g5_a_broken_link_loses_nothing(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        got: list[int] = []

        async def take() -> None:
            async for value in sub:
                got.append(value)
                if value == 20_000 - 1:
                    return

        taker = asyncio.create_task(take())
        for i in range(20_000):
            pub.put(i)
            if i % 100 == 0:
                await asyncio.sleep(0)
            if i % 2_500 == 1_250:
                breaker = there if i % 5_000 > 2_500 else here
                await eventually(lambda peer=breaker: break_links(peer))  # type: ignore[misc]
        await asyncio.wait_for(taker, 30)
        assert got == list(range(20_000))
        assert sub.lost == 0


async def test_a_sub_that_reconnects_keeps_its_name(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=10)
        name = f"{there.address}#{sub._inbox.sub_id}"
        assert {n: how["state"] for n, how in pub.subscribers.items()} == {name: "attached"}
        for server in here.runtime.doors.servers.values():
            server.close()  # it cannot come back
        break_links(here)
        await eventually(lambda: pub.subscribers[name]["state"] == "reconnecting")
        await pub.close(linger=0)


async def test_g5_what_left_the_log_while_the_link_was_down_is_a_counted_gap(
    coordinator: str,
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t", buffer=10_000)
        pub.put(0)
        assert await sub.get(timeout=10) == 0
        break_links(here)
        for i in range(1, 20_000):
            pub.put(i)
        pub.put("last")
        events = []
        async for event in sub.messages():
            events.append(event)
            if isinstance(event, Message) and event.value == "last":
                break
        assert isinstance(events[0], Gap)
        assert events[0].missed == sub.lost > 0
        assert len(events) - 1 + sub.lost == 20_000


async def test_g6_a_pub_holds_no_more_than_its_buffer(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", buffer=1_000_000)
        for i in range(5_000):
            pub.put(b"x" * 1_000)
            if i % 100 == 0:
                await asyncio.sleep(0)
                assert pub._publication.log.size <= 1_000_000
        assert sub._inbox.window.size == 1_000


async def test_g6_pubs_that_come_and_go_fill_no_more_than_the_window(coordinator: str) -> None:
    """They are of the Sub's own Peer, so that each has sent when it ends what it may."""
    async with Peer(coordinator) as peer:
        sub = await peer.sub("jobs/*", window=1_000_000)
        for i in range(50):
            pub = peer.pub(f"jobs/{i}")
            pub.put(b"x" * 100_000)
            pub._seal()
            peer.runtime.turn.run()
            await pub.close(linger=0)
        waiting = sub._inbox.window.received
        assert 1_000_000 <= waiting <= 1_101_000
        got = lost = 0
        async for event in sub.messages():
            if isinstance(event, Gap):
                assert event.reason == "closed"
                lost += event.missed
            else:
                got += 1
            if got + lost == 50:
                break
        assert got == 10
        assert lost == sub.lost == 40


async def test_g6_pubs_that_wait_for_room_as_they_end_get_it(coordinator: str) -> None:
    """As soon as the Sub takes; and their ends wait for it."""
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("jobs/*", window=100_000)
        count = 60

        async def job(number: int) -> None:
            async with here.pub(f"jobs/{number}") as pub:
                pub.put([number, b"x" * 30_000])

        jobs = [asyncio.create_task(job(number)) for number in range(count)]
        await eventually(lambda: sub._inbox.window.received >= 100_000)
        got = [(await sub.get(timeout=10))[0] for _ in range(count)]
        assert sorted(got) == list(range(count))
        assert sub.lost == 0
        await asyncio.wait_for(asyncio.gather(*jobs), 10)


async def test_g8_a_stopped_sub_delays_no_other(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there, Peer(coordinator) as third:
        stopped = await there.sub("t", window=10_000)
        same_link = await there.sub("t")
        other = await third.sub("t")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(3, timeout=10)
        for i in range(20_000):
            pub.put(i)
            if i % 500 == 0:
                await asyncio.sleep(0)
        for sub in (same_link, other):
            assert [await sub.get(timeout=10) for _ in range(20_000)] == list(range(20_000))
        assert await stopped.get(timeout=10) == 0


async def test_g9_closing_a_pub_delivers_what_was_put(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        async with here.pub("t") as pub:
            for i in range(1_000):
                pub.put(i)
        assert [await sub.get(timeout=10) for _ in range(1_000)] == list(range(1_000))
        await eventually(lambda: not sub.publishers)


async def test_g9_closing_a_sub_ends_the_loop_over_it(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        got = []

        async def take() -> None:
            async for value in sub:
                got.extend([value])

        taker = asyncio.create_task(take())
        pub.put(1)
        await eventually(lambda: got)
        await sub.close()
        await asyncio.wait_for(taker, 10)
        await eventually(lambda: not pub.subscribers)


async def test_block_makes_put_wait_and_loses_nothing(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=10_000)
        pub = await here.pub("t", overflow="block", buffer=50_000)
        await pub.wait_for_subscribers(1, timeout=10)

        async def put() -> None:
            for i in range(20_000):
                await pub.put(i)

        putter = asyncio.create_task(put())
        await asyncio.sleep(0.2)
        assert not putter.done()
        assert pub._publication.log.size <= 50_000
        assert [await sub.get(timeout=10) for _ in range(20_000)] == list(range(20_000))
        await putter
        assert sub.lost == 0


async def test_g1_puts_that_wait_for_room_keep_their_order_also_when_nobody_awaits_them(
    coordinator: str,
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=10_000)
        pub = await here.pub("t", overflow="block", buffer=20_000)
        await pub.wait_for_subscribers(1, timeout=10)
        puts = [asyncio.ensure_future(pub.put((i, b"x" * (i % 7 * 100)))) for i in range(1_000)]
        cancelled = {i for i in range(500, 1_000, 3) if puts[i].cancel()}
        assert len(cancelled) > 100  # they waited; a put that is cancelled is not put
        expected = [i for i in range(1_000) if i not in cancelled]
        assert [(await sub.get(timeout=10))[0] for _ in expected] == expected
        await asyncio.wait(puts)
        assert all(put.cancelled() or put.result() is None for put in puts)
        assert sub.lost == 0


async def test_a_put_that_waits_for_room_fails_when_the_pub_is_closed(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", overflow="block", buffer=1_000)
        await pub.wait_for_subscribers(1, timeout=10)
        puts = [pub.put(b"x" * 900) for _ in range(4)]
        closing = pub.close(linger=0.1)
        with pytest.raises(Closed):
            await puts[-1]
        await closing
        for put in puts[:-1]:
            with contextlib.suppress(Closed):
                await put
        sub.close()


@pytest.mark.parametrize("size", [10_000, 70_000, 1_000_000])
@pytest.mark.parametrize("overflow", ["drop", "block"])
async def test_a_long_row_of_awaited_puts_lets_others_run(
    coordinator: str, overflow: str, size: int
) -> None:
    async with Peer(coordinator) as peer:
        pub = await peer.pub("t", overflow=overflow)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(max(40, 20 * TURN_BYTES // size)):
            await pub.put(b"x" * size)
        task.cancel()
        assert turns >= 15


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["for", "messages", "get", "get_many"])
async def test_g8_a_full_sub_lets_others_run_while_it_is_read(coordinator: str, form: str) -> None:
    """Nothing has to be waited for, and the loop runs all the same, as soon as 10 ms are over."""
    count, turns = 100, 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        for i in range(count):
            pub.put(i)
            await asyncio.sleep(0)  # each of them is a batch
        others = asyncio.ensure_future(count_turns())
        got = []

        def is_last(value: int) -> bool:
            got.append(value)
            work(0.006)
            return len(got) == count

        if form == "for":
            async for value in sub:
                if is_last(value):
                    break
        elif form == "messages":
            async for event in sub.messages():
                if is_last(event.value):
                    break
        elif form == "get":
            while not is_last(await sub.get()):
                pass
        else:
            while not is_last(*await sub.get_many(1)):
                pass
        others.cancel()
        assert got == list(range(count))
        assert turns >= count // 4


async def test_g8_a_row_of_get_many_lets_others_run_also_where_each_begins_within_a_batch(
    coordinator: str,
) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        for i in range(0, 150, 3):
            pub.put_many([i, i + 1, i + 2])
            await asyncio.sleep(0)
        others = asyncio.ensure_future(count_turns())
        got = [await sub.get()]
        while len(got) < 148:
            got += await sub.get_many(3)
            work(0.006)
        others.cancel()
        assert got == list(range(148))
        assert turns >= 12


async def test_a_get_that_may_not_wait_does_not(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        for i in range(100):
            pub.put(i)
            await asyncio.sleep(0)
        assert await sub.get() == 0
        turn = asyncio.ensure_future(asyncio.sleep(0))
        for i in range(1, 100):
            work(0.001)
            assert await sub.get(timeout=0) == i
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0)
        assert not turn.done()


async def test_closing_without_awaiting_is_no_fault(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        sub, pub = await peer.sub("t"), await peer.pub("t")
        pub.put(1)
        assert await sub.get(timeout=10) == 1
        pub.close()
        sub.close()
        gc.collect()


async def test_an_observer_never_makes_a_blocking_pub_wait(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000, observer=True)
        pub = await here.pub("t", overflow="block", buffer=50_000)
        await pub.wait_for_subscribers(1, timeout=10)
        for i in range(60_000):
            await asyncio.wait_for(pub.put(i), 10)
        await pub.put("last")
        got = 0
        async for value in sub:
            if value == "last":
                break
            got += 1
        assert sub.lost > 0
        assert got + sub.lost == 60_000


async def test_history_gives_what_both_sides_asked_for(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        pub = await here.pub("t", history=10)
        for i in range(100):
            pub.put(i)
        all_of_it = await there.sub("t", history="all")
        three = await there.sub("t", history=3)
        none = await there.sub("t")
        pub.put("new")
        assert [await all_of_it.get(timeout=10) for _ in range(11)] == [*range(90, 100), "new"]
        assert [await three.get(timeout=10) for _ in range(4)] == [97, 98, 99, "new"]
        assert await none.get(timeout=10) == "new"
        assert all_of_it.lost == three.lost == none.lost == 0


async def test_keep_latest_conflates_and_counts(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t/*", keep="latest")
        a, b = await here.pub("t/a"), await here.pub("t/b")
        for i in range(1_000):
            a.put(("a", i))
            b.put(("b", i))
        await asyncio.gather(a.flush(10), b.flush(10))
        assert {await sub.get(timeout=10), await sub.get(timeout=10)} == {("a", 999), ("b", 999)}
        assert sub.lost == 2 * 999


async def test_patterns_bring_every_topic_that_matches(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("sensors/**")
        pubs = [await here.pub(t) for t in ("sensors", "sensors/a", "sensors/a/b", "other")]
        for i, pub in enumerate(pubs):
            pub.put(i)
        assert sorted([await sub.get(timeout=10) for _ in range(3)]) == [0, 1, 2]
        with pytest.raises(TimeoutError, match=r"nothing came on 'sensors/\*\*' within 0\.05 s"):
            await sub.get(timeout=0.05)


async def test_a_pub_and_a_sub_of_one_peer_meet_without_a_socket(coordinator: str) -> None:
    async with Peer(coordinator) as peer:
        pub, sub = await peer.pub("t"), await peer.sub("t")
        value = {"list": [1]}
        pub.put(value)
        got = await sub.get(timeout=10)
        assert got == value
        assert got is not value
        assert not peer.runtime.subscribers.served
        assert list(pub.subscribers) == [f"local#{sub._inbox.sub_id}"]


async def test_a_cancelled_get_loses_no_message(coordinator: str) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        got = []
        for i in range(500):
            task = asyncio.create_task(sub.get())
            await asyncio.sleep(0)
            pub.put(i)
            if i % 3:
                await asyncio.sleep(0.0005 * (i % 5))
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                pass
        while len(got) < 500:
            got.append(await sub.get(timeout=10))
        assert got == list(range(500))


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="not on this system")
@pytest.mark.parametrize("way", ["direct", "unix"])
async def test_where_channels_share_a_link_the_kernel_is_given_no_more_than_it_can_soon_send(
    coordinator: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    level, option, short = socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * unix.SHORT  # it doubles it
    if way == "direct":
        request.getfixturevalue("by_tcp")
        level, option, short = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT
    else:  # all kernels allow as much as is short, and not all as much as this
        monkeypatch.setattr(unix, "BUFFER", unix.SHORT // 2)

    def unsent() -> int:
        [served] = here.runtime.subscribers.served
        assert served.link is not None
        assert served.way == way
        with served.link.sock.dup() as same:
            found: int = same.getsockopt(level, option)
        return found

    async with Peer(coordinator) as here, Peer(coordinator) as there:
        first = await there.sub("t")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=10)
        assert unsent() != short, "there is nobody to delay"
        second = await there.sub("t")
        await pub.wait_for_subscribers(2, timeout=10)
        await eventually(lambda: unsent() == short)
        await first.close()
        await second.close()


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_large_messages_travel_whole(coordinator: str, size: int) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t")
        pub = await here.pub("t")
        values = [bytes([i]) * (size + i) for i in range(5)]
        for value in values:
            pub.put({"data": value, "n": len(value)})
            pub.put("small")
        for value in values:
            assert await sub.get(timeout=10) == {"data": value, "n": len(value)}
            assert await sub.get(timeout=10) == "small"
        assert sub.lost == 0


async def test_a_message_above_the_window_and_the_buffer_still_goes_through(
    coordinator: str,
) -> None:
    async with Peer(coordinator) as here, Peer(coordinator) as there:
        sub = await there.sub("t", window=1_000)
        pub = await here.pub("t", buffer=1_000, overflow="block")
        await pub.wait_for_subscribers(1, timeout=10)
        for i in range(5):
            await pub.put([i, b"x" * 500_000])
            assert (await sub.get(timeout=10))[0] == i
