"""What a process tells of itself: to its program, and to others that may ask."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pubsub import Gap, Peer, Pub, Sub, TopicError
from pubsub.runtime import collecting, watching
from pubsub.runtime.members import OpenPub
from pubsub.runtime.runtime import Runtime
from pubsub.runtime.watching import Watching
from pubsub.stats import PastStats, Rates, Stats
from pubsub.survey import Survey, here
from tests.integration.support import LONG, coordinator_in_loop, coordinator_in_thread, eventually

pytestmark = pytest.mark.loop


async def test_stats_say_how_pubs_subs_links_and_coordinators_stand() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t", history=2)
        sub = await there.sub("*")
        for i in range(10):
            pub.put(i)
        assert await sub.get(timeout=LONG) == 0
        assert await sub.get(timeout=LONG) == 1
        await eventually(lambda: here.stats().pubs[0].subscribers[0].lag == 0)

        stats = here.stats()
        (row,) = stats.pubs
        assert (row.topic, row.put, row.kept, row.overflow) == ("t", 10, 10, "drop")
        assert 10 <= row.bytes < 100  # each is one byte, and a batch has a head
        assert row.kept_bytes > 0
        assert row.silent is not None
        assert row.oldest is not None
        (one,) = row.subscribers
        assert (one.state, one.lag, one.unsent, one.lost) == ("attached", 0, 0, 0)
        assert (one.peer_id, one.sub_id) == (there.peer_id, sub._inbox.sub_id)
        assert (one.full, one.observer) == (False, False)
        (link,) = stats.links
        assert (link.role, link.peer_id, link.up) == ("subscriber", there.peer_id, True)
        assert link.bytes_out > 0 < link.bytes_in
        assert [each.up for each in stats.coordinators] == [True]
        assert (stats.peer_id, stats.address) == (here.peer_id, here.address)

        (mine,) = there.stats().subs
        assert (mine.pattern, mine.delivered, mine.waiting, mine.lost) == ("*", 2, 8, 0)
        (stream,) = mine.streams
        assert (stream.publisher, stream.state) == (next(iter(sub.publishers)), "attached")
        assert (stream.peer_id, stream.stream_id) == (here.peer_id, row.stream_id)


async def test_the_first_answer_has_means_since_each_was_made_and_says_so() -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub = await peer.pub("t")
        pub.put_many(range(100))
        await eventually(lambda: pub._publication.log.next_seq == 100)
        stats = peer.stats()
        row = stats.pubs[0]
        assert stats.watched == 0
        assert row.rate.second == row.rate.ten == row.rate.minute > 0
        await eventually(lambda: peer.stats().watched > 1)
        assert peer.stats().pubs[0].rate.second == 0  # nothing was put since


async def test_nothing_is_measured_before_somebody_asks_nor_when_nobody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "ASKED", 0.2)
    monkeypatch.setattr(watching, "EVERY", 0.05)
    async with coordinator_in_loop() as address, Peer(address) as peer:
        of: Watching = peer.runtime.watching
        assert of._sampling is None is of._looking
        peer.stats()
        await eventually(lambda: of._sampling is not None)
        assert of._looking is not None
        await eventually(lambda: of._sampling is None)
        assert of._looking is None
        assert not of.on  # a Sub reads no clock any more
        assert peer.stats().watched == 0


async def test_a_subscriber_of_the_stats_is_told_at_once_and_keeps_them_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "ASKED", 0.1)
    monkeypatch.setattr(watching, "EVERY", 0.05)
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t")
        sub = await there.sub("$stats", observer=True)
        told: list[Stats] = []
        while sum(stats.peer_id == here.peer_id for stats in told) < 10:
            told.append(Stats.from_rows(await sub.get(timeout=LONG)))
        assert {stats.peer_id for stats in told} == {here.peer_id, there.peer_id}
        assert told[-1].subs == ()  # that somebody looks is no news
        assert {row.topic for stats in told for row in stats.pubs} == {pub.topic}
        await sub.close()
        await eventually(lambda: here.runtime.watching._sampling is None)


async def test_however_often_somebody_subscribes_it_is_told_ten_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        of = here.runtime.watching
        told: list[Watching] = []
        stats = Watching.stats

        def count(self: Watching) -> Stats:
            told.append(self)
            return stats(self)

        monkeypatch.setattr(Watching, "stats", count)
        began = asyncio.get_running_loop().time()
        for _ in range(30):
            async with there.sub("$stats", observer=True) as sub:
                await sub.get(timeout=LONG)
        seconds = asyncio.get_running_loop().time() - began
        assert told.count(of) <= 2 + seconds * 11


async def test_no_pattern_matches_what_is_the_runtimes_own() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        async with there.sub("**") as all_of_them, there.sub("*") as one:
            pub = await here.pub("t")
            pub.put(1)
            assert await all_of_them.get(timeout=LONG) == await one.get(timeout=LONG) == 1
            assert [row["topic"] for row in all_of_them.publishers.values()] == ["t"]
            assert [row["topic"] for row in one.publishers.values()] == ["t"]
        with pytest.raises(TopicError, match="begins with '\\$'"):
            here.pub("$stats")


async def test_how_long_a_program_takes_over_a_message_is_told() -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub, sub = await peer.pub("t"), await peer.sub("t")
        now = [100.0]
        sub._stopwatch = lambda: now[0]
        assert peer.stats().subs[0].handling is None
        await eventually(lambda: peer.runtime.watching.on)
        for _ in range(4):
            pub.put(0)
        await asyncio.sleep(0)
        for _ in range(4):  # one batch
            await sub.get(timeout=LONG)
            now[0] += 0.5
        assert peer.stats().subs[0].handling == 0.5
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0.001)  # it waits, as long as that takes
        now[0] += 1000
        assert peer.stats().subs[0].handling == 0.5
        pub.put(0)
        await sub.get(timeout=LONG)
        now[0] += 8.0  # it is at it
        assert peer.stats().subs[0].handling == 2.0


async def test_what_a_program_did_while_nobody_asked_is_not_in_its_time() -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub, sub = await peer.pub("t"), await peer.sub("t")
        now, of = [100.0], peer.runtime.watching
        sub._stopwatch = lambda: now[0]
        for on, seconds in ((True, 0.5), (False, 1000.0), (True, 0.5)):
            of.on = on
            pub.put(0)
            await asyncio.sleep(0)
            await sub.get(timeout=0)
            now[0] += seconds
        with pytest.raises(TimeoutError):
            await sub.get(timeout=0.001)
        assert peer.stats().subs[0].handling == 0.5


async def test_of_very_many_some_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST", 3)
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pubs = [await peer.pub(f"t/{n}") for n in range(5)]
        sub = await peer.sub("t/*")
        stats = peer.stats()
        assert [len(row.subscribers) for row in stats.pubs] == [0, 0, 0]
        assert [len(row.streams) for row in stats.subs] == [2]
        assert stats.left_out == 2 + 3 + 3  # Pubs, the subscribers of the others, streams
        assert len(pubs) == len(sub.publishers)


async def test_the_last_heartbeat_says_how_long_a_round_trip_takes() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, ping_interval=0.05) as here,
        Peer(address) as there,
    ):
        pub, sub = await here.pub("t"), await there.sub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        await eventually(lambda: here.stats().links[0].round_trip)
        assert 0 < (here.stats().links[0].round_trip or 0) < LONG
        assert not sub.closed


async def test_a_program_that_takes_no_more_is_told_for_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.05)
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub, sub = await peer.pub("t"), await peer.sub("t")
        pub.put_many(range(3))
        assert await sub.get(timeout=LONG) == 0
        assert peer.stats().subs[0].stuck is None
        await eventually(lambda: peer.stats().subs[0].stuck)
        assert peer.stats().subs[0].waiting == 2
        assert await sub.get_many(timeout=LONG) == [1, 2]
        assert peer.stats().subs[0].stuck is None


async def test_a_put_that_waits_for_room_says_for_whom() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub = await there.sub("t", window=1)
        pub = await here.pub("t", overflow="block", buffer=1)
        await pub.wait_for_subscribers(1, timeout=LONG)
        pub.put(b"x" * 1000)
        pub.put(b"x" * 1000)
        waits = asyncio.ensure_future(pub.put(b"x" * 1000))
        await eventually(lambda: here.stats().pubs[0].waiting)
        (row,) = here.stats().pubs
        (whom,) = row.waits_for
        assert next(iter(pub.subscribers)) in whom
        await eventually(lambda: here.stats().pubs[0].waited > 0)
        for _ in range(3):
            await sub.get(timeout=LONG)
        await waits
        assert here.stats().pubs[0].waits_for == ()


async def test_a_survey_knows_all_peers_and_forgets_who_has_ended() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="looks") as looks,
        Peer(address, name="stays") as stays,
        Survey(looks) as survey,
    ):
        goes = Peer(address, name="goes")
        await goes.pub("t")
        await survey.settled(LONG)

        def names() -> set[str]:
            return {told.stats.name for told in survey.peers.values() if told.stats}

        changes = survey.changes()
        while names() != {"looks", "stays", "goes"}:
            await asyncio.wait_for(changes.__anext__(), LONG)
        assert all(not told.trouble for told in survey.peers.values())
        await goes.close()
        while names() != {"looks", "stays"}:
            await asyncio.wait_for(changes.__anext__(), LONG)
        await survey.settled(LONG, rates=True)
        assert all(told.stats and told.stats.watched for told in survey.peers.values())
        assert stays.peer_id in {told.peer_id for told in survey.peers.values()}


def test_stats_may_be_asked_for_in_any_thread() -> None:
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        with Pub("t", peer=peer) as pub, Sub("t", peer=peer) as sub:
            found: list[Any] = []

            def ask() -> None:
                while not found or found[-1].subs[0].delivered < 50:
                    found.append(peer.stats())

            threads = [threading.Thread(target=ask) for _ in range(2)]
            for thread in threads:
                thread.start()
            for i in range(50):
                pub.put(i)
                assert sub.get(timeout=LONG) == i
            for thread in threads:
                thread.join(LONG)
            assert found[-1].subs[0].delivered == 50
        assert peer.stats().pubs == ()
    assert peer.stats().watched == 0  # a closed one measures nothing


async def test_what_is_lost_is_told_by_its_reason() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub = await there.sub("t", keep="latest")
        pub = await here.pub("t")
        await pub.wait_for_subscribers(1, timeout=LONG)
        for i in range(5):
            pub.put(i)
        await pub.flush(timeout=LONG)
        (row,) = there.stats().subs
        assert row.lost_by == (("conflated", 4),)
        assert isinstance(await sub.messages().__anext__(), Gap)
        assert row.keep == "latest"
        assert row.rate == Rates()


async def test_what_was_taken_and_lost_stays_counted_when_the_other_end_is_gone() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t", buffer=1_000)
        slow = await there.sub("t", window=1_000)
        for _ in range(100):
            pub.put(bytes(100))
            await asyncio.sleep(0)  # a batch of its own
        await eventually(lambda: here.stats().pubs[0].lost)
        missed = here.stats().pubs[0].lost
        await slow.get(timeout=LONG)
        assert there.stats().subs[0].delivered == 1
        await slow.close()
        await eventually(lambda: not here.stats().pubs[0].subscribers)
        assert here.stats().pubs[0].lost >= missed

        sub = await there.sub("other")
        async with here.pub("other") as other:
            other.put(1)
            assert await sub.get(timeout=LONG) == 1
        await eventually(lambda: not sub.publishers)
        assert there.stats().subs[0].delivered == 1


async def test_what_closed_pubs_and_subs_had_counted_is_told_as_past() -> None:
    async with coordinator_in_loop() as address:
        peer = Peer(address)
        for _ in range(2):
            async with peer.sub("t") as sub, peer.pub("t") as pub:
                for i in range(5):
                    pub.put(i)
                for _ in range(3):
                    await sub.get(timeout=LONG)
            del pub, sub
        pub_row, sub_row = sorted(peer.stats().past)
        assert (pub_row.role, pub_row.topic, pub_row.messages, pub_row.lost) == ("pub", "t", 10, 0)
        assert (sub_row.role, sub_row.topic, sub_row.messages, sub_row.lost) == ("sub", "t", 6, 0)
        assert 0 < sub_row.age <= peer.stats().age
        kept = peer.pub("t")
        kept.put(1)
        await peer.close()  # what a closed Peer had counted it still tells
        rows = {row.role: row.messages for row in peer.stats().counted()}
        assert rows == {"pub": 11, "sub": 6}


async def test_however_often_is_asked_before_the_loop_runs_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Watching] = []
    begin = Watching._begin

    def count(self: Watching) -> None:
        begun.append(self)
        begin(self)

    monkeypatch.setattr(Watching, "_begin", count)
    async with coordinator_in_loop() as address, Peer(address) as peer:
        for _ in range(100):
            peer.stats()
        await eventually(lambda: peer.runtime.watching.on)
        assert len(begun) == 1


async def test_one_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.01)
    looks: list[object] = []
    counts = collecting.counts

    def fail_once(runtime: Runtime) -> Any:
        looks.append(runtime)
        if len(looks) == 2:
            raise RuntimeError("a fault of ours")
        return counts(runtime)

    monkeypatch.setattr(collecting, "counts", fail_once)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with coordinator_in_loop() as address, Peer(address) as peer:
        peer.stats()
        await eventually(lambda: len(looks) > 3)


def test_a_log_handler_may_ask_while_a_pub_ends_and_another_thread_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends, asks = threading.Event(), threading.Event()
    over, counted = collecting.pub_is_over, Watching.ask

    def ask_within(pub: OpenPub, now: float) -> PastStats:
        ends.set()
        assert asks.wait(LONG)
        here()  # as a log handler, or the destructor of some object, may
        return over(pub, now)

    def ask(self: Watching) -> Stats:
        if threading.current_thread() is other:
            asks.set()
        return counted(self)

    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        pub = peer.pub("t")
        other = threading.Thread(target=here, daemon=True)
        closes = threading.Thread(target=pub.close, daemon=True)
        monkeypatch.setattr(collecting, "pub_is_over", ask_within)
        monkeypatch.setattr(Watching, "ask", ask)
        closes.start()
        assert ends.wait(LONG)
        other.start()
        for thread in (other, closes):
            thread.join(LONG)
            assert not thread.is_alive()
        monkeypatch.undo()
