"""Directed runs: what the seeds have found, step by step, and what no random run would measure."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from pubsub import Gap
from pubsub.core.cursor import Cursor
from pubsub.faces.account import timeout_text
from pubsub.links.link import GOODBYE_GRACE, Link
from pubsub.runtime import lingering, publisher_link
from pubsub.runtime.publisher_link import Remote
from pubsub.wire.messages import Match
from tests.simulation.model import Violation
from tests.simulation.processes import CoordinatorProcess, PeerProcess
from tests.simulation.world import Plan, World, run
from tests.wire.said import matched


class Stage(World):
    """A world in which nothing happens by itself.

    Parameters:
        settings: of all peers.
    """

    def __init__(self, latency: float = 0.01, **settings: Any) -> None:
        super().__init__(0, "calm")
        times = {"ping_interval": 1.0, "ping_timeout": 3.0}
        self.plan = Plan("chaos", {**times, **settings})
        self.network.latency = latency
        self.network.chop = 0.3
        self.calm = True
        coordinator = CoordinatorProcess(self)
        self.coordinators.append(coordinator)
        coordinator.start()

    @property
    def coordinator(self) -> CoordinatorProcess:
        return self.coordinators[0]

    async def peer(self) -> PeerProcess:
        """One more, connected."""
        self.start_peer()
        peer = self.peers[-1]
        await peer.begun
        return peer

    async def at(self, peer: PeerProcess, act: Callable[[], Any]) -> Any:
        """Do something in a peer's process; an awaitable is awaited."""

        async def go() -> Any:
            result = act()
            if inspect.isawaitable(result):
                return await result
            return result

        return await peer.process.spawn(go())

    async def sub(self, peer: PeerProcess, topic: str, **options: Any) -> Any:
        """A Sub that is ready."""

        async def make() -> Any:
            return await peer.peer.sub(topic, **options)

        return await self.at(peer, make)

    async def pub(self, peer: PeerProcess, topic: str, **options: Any) -> Any:
        """A Pub, ready or not."""

        async def make() -> Any:
            return [peer.peer.pub(topic, **options)]  # itself it is awaitable

        return (await self.at(peer, make))[0]

    async def all_of(self, peer: PeerProcess, sub: Any, seconds: float = 5.0) -> list[Any]:
        """What a Sub gets until nothing comes for a while."""

        async def take() -> list[Any]:
            found = []
            while True:
                try:
                    found.append(await sub.get(timeout=seconds))
                except TimeoutError:
                    return found

        found: list[Any] = await self.at(peer, take)
        return found

    def play(self, story: Coroutine[Any, Any, None]) -> None:
        """To the end."""
        run(self, story, "this test")


def test_g5_a_slow_link_on_which_a_large_message_is_written_is_not_taken_for_dead() -> None:
    """Its reader has nothing to say meanwhile but PING, and its writer's PING waits behind it."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        (link,) = here.peer.runtime.subscribers.served
        pipe = link.link.transport.out  # type: ignore[union-attr]
        pipe.room = 1_000  # bytes in 10 ms: the message takes 10 s
        large = b"x" * 1_000_000
        await stage.at(here, lambda: pub.put(large))
        assert await stage.all_of(there, sub, 60) == [large]
        assert not any("no sign of life" in line for line in stage.journal)

    stage.play(story())


def test_g4_an_older_sub_gets_the_first_message_though_the_coordinator_restarts_twice() -> None:
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub = await stage.sub(there, "t")
        stage.coordinator.kill()
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("first"))
        stage.network.block(there.process.host, stage.coordinator.host)
        stage.coordinator.start()
        await stage.at(here, pub._ready.wait)
        stage.coordinator.kill()
        stage.coordinator.start()
        await asyncio.sleep(3)  # the Pub is there before the Sub
        stage.network.unblock(there.process.host, stage.coordinator.host)
        assert await stage.all_of(there, sub) == ["first"]

    stage.play(story())


def test_g4_an_older_sub_gets_the_first_message_of_a_pub_made_while_the_coordinator_was_down() -> (
    None
):
    """However long: the Pub's time runs from the coordinator's answer, not from other timers."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub = await stage.sub(there, "t")
        stage.coordinator.kill()
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("first"))
        await asyncio.sleep(5)
        await stage.pub(here, "other")  # whose own time ends soon after the answer
        await asyncio.sleep(3)
        stage.network.block(there.process.host, stage.coordinator.host)
        stage.coordinator.start()
        await asyncio.sleep(3)
        stage.network.unblock(there.process.host, stage.coordinator.host)
        assert await stage.all_of(there, sub) == ["first"]

    stage.play(story())


def test_g2_a_restarted_coordinator_takes_back_no_subscription_that_is_under_way() -> None:
    """Its empty answer came while SUBSCRIBE was on its way; the stream was subscribed again."""
    stage = Stage(ping_timeout=60.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        other, sub = await stage.sub(there, "other"), await stage.sub(there, "t")
        await stage.pub(here, "other")  # there is a link
        await asyncio.sleep(1)
        back = here.process.host, there.process.host
        stage.network.block(*back)
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("once"))
        await asyncio.sleep(1)
        away = here.process.host, stage.coordinator.host
        stage.network.block(*away)
        stage.coordinator.kill()
        stage.coordinator.start()
        await asyncio.sleep(4)
        stage.network.unblock(*away)
        await asyncio.sleep(4)
        stage.network.unblock(*back)
        assert await stage.all_of(there, sub) == ["once"]
        assert len(sub.publishers) == len(other.publishers) == 1

    stage.play(story())


def test_g3_who_answers_at_the_address_of_a_dead_publisher_is_another() -> None:
    stage = Stage(port=9_000, resume_timeout=5.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("old"))
        await asyncio.sleep(1)
        here.kill()
        again = PeerProcess(stage, here.process.host)
        await again.begun
        pub = await stage.pub(again, "t")
        await stage.at(again, lambda: pub.put("new"))
        assert await stage.all_of(there, sub, 30) == ["old", "new"]
        assert again.peer.address == here.peer.address
        assert len(sub.publishers) == 1
        assert sub.lost == 0

    stage.play(story())


async def events_of(stage: Stage, peer: PeerProcess, sub: Any, seconds: float) -> list[Any]:
    """What a Sub sees within a time: values, and of gaps how many are missed, and why."""

    async def take() -> list[Any]:
        found: list[Any] = []

        async def go() -> None:
            async for event in sub.messages():
                gap = isinstance(event, Gap)
                found.append((event.missed, event.reason) if gap else event.value)

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(go(), seconds)
        return found

    found: list[Any] = await stage.at(peer, take)
    return found


def only_row(sub: Any) -> dict[str, Any]:
    (row,) = sub.publishers.values()
    return dict(row)


@pytest.mark.parametrize("host_too", [False, True], ids=["with a reset", "without a reset"])
def test_g3_a_publisher_that_dies_is_said_to_have_vanished_once(host_too: bool) -> None:
    """Its sockets are closed by its kernel, or, where the host died, nobody answers any more."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("last"))
        await asyncio.sleep(1)
        assert only_row(sub)["state"] == "attached"
        assert only_row(sub)["since"] is None
        died_at = stage.loop.time()
        here.kill(host_too=host_too)
        found_out = 4.0 if host_too else 0.5  # with a reset, it is known to be gone after 2 s
        await asyncio.sleep(found_out)
        assert only_row(sub)["state"] == "reconnecting"
        assert died_at <= only_row(sub)["since"] < died_at + found_out
        assert "no publisher is connected, 1 lost and dialled again, for" in timeout_text(sub, 1)
        assert await events_of(stage, there, sub, 120) == ["last", (0, "vanished")]
        assert stage.loop.time() - died_at > 100
        assert (only_row(sub)["state"], only_row(sub)["delivered"], sub.lost) == ("vanished", 1, 0)
        assert repr(sub) == (
            "<Sub 't': 0 publishers, 0 lost; 1 publisher vanished: what it had not sent is not "
            "known>"
        )
        assert timeout_text(sub, 1).endswith("(no publisher is connected, 1 vanished)")

    stage.play(story())


def test_g3_a_publisher_that_refuses_where_it_was_met_is_soon_taken_to_be_gone() -> None:
    """As soon as no coordinator lists it; where nothing answers, it may be the network."""
    stage = Stage()

    async def story() -> None:
        for host_too, seconds, events in (
            (False, 12, [(0, "vanished")]),
            (True, 30, []),
            (True, 45, [(0, "vanished")]),
        ):
            here, there = await stage.peer(), await stage.peer()
            sub, _ = await stage.sub(there, "t"), await stage.pub(here, "t")
            await asyncio.sleep(1)
            here.kill(host_too=host_too)
            assert await events_of(stage, there, sub, seconds) == events

    stage.play(story())


def test_g3_a_publisher_that_ends_in_order_has_not_vanished() -> None:
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub = await stage.sub(there, "t")
        for _ in range(3):
            pub = await stage.pub(here, "t")
            await stage.at(here, lambda: pub.put("last"))  # noqa: B023
            await stage.at(here, lambda: pub.close())  # noqa: B023
        pub = await stage.pub(here, "t")  # puts nothing, and is gone before it is reached
        await stage.at(here, lambda: pub.close())
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("the end"))
        await stage.at(here, lambda: here.peer.close())
        assert await events_of(stage, there, sub, 60) == ["last"] * 3 + ["the end"]
        assert sub.publishers == {}
        assert repr(sub) == "<Sub 't': 0 publishers, 0 lost>"

    stage.play(story())


def test_g3_a_publisher_that_comes_back_after_all_goes_on_with_exact_counts() -> None:
    stage = Stage(resume_timeout=6.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub = await stage.sub(there, "t")
        pub = await stage.pub(here, "t", overflow="drop", buffer=3_000)
        await stage.at(here, lambda: pub.put_many(range(3)))
        assert await events_of(stage, there, sub, 1) == [0, 1, 2]
        others = there.process.host, stage.coordinator.host
        for other in others:  # so that no coordinator lists it either
            stage.network.block(here.process.host, other)
            stage.network.block(other, here.process.host)
        assert await events_of(stage, there, sub, 30) == [(0, "vanished")]
        assert only_row(sub)["state"] == "vanished"

        async def put_all() -> None:
            for i in range(3, 53):
                pub.put(i)
                await asyncio.sleep(0)

        await stage.at(here, put_all)
        for other in others:
            stage.network.unblock(here.process.host, other)
            stage.network.unblock(other, here.process.host)
        (missed, reason), *rest = await events_of(stage, there, sub, 30)
        assert (reason, rest) == ("overflow", list(range(3 + missed, 53)))
        row = only_row(sub)
        assert (row["state"], row["since"]) == ("attached", None)
        assert (row["delivered"], row["lost"]) == (3 + len(rest), missed)
        assert sub.lost == missed > 0
        assert "vanished" not in repr(sub)

    stage.play(story())


def test_g3_a_publisher_that_never_was_reached_is_said_to_be_unreachable() -> None:
    """Its Sub is older, and due its first message, or there was trouble for long enough."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        older = await stage.sub(there, "t")
        stage.network.block(there.process.host, here.process.host)
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put("lost"))
        younger = there.peer.sub("t", observer=True)
        await asyncio.sleep(4)
        assert only_row(older)["state"] == only_row(younger)["state"] == "connecting"
        assert "no publisher is connected, 1 not reached yet, for" in timeout_text(older, 1)
        here.kill()
        for sub in (older, younger):
            assert await events_of(stage, there, sub, 60) == [(0, "unreachable")]
            assert only_row(sub)["state"] == "unreachable"
            assert repr(sub) == (
                "<Sub 't': 0 publishers, 0 lost; 1 publisher was never reached: what it put is "
                "not known>"
            )

    stage.play(story())


def test_g3_a_sub_that_is_older_counts_what_a_pub_had_put_that_ended_before_it_was_reached() -> (
    None
):
    stage = Stage(linger=0.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub = await stage.sub(there, "t")
        stage.network.block(there.process.host, here.process.host)
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put_many(range(10)))
        await asyncio.sleep(1)  # the Sub hears of it
        await stage.at(here, lambda: pub.close())
        await asyncio.sleep(1)  # and that it is no more
        stage.network.unblock(there.process.host, here.process.host)
        assert await events_of(stage, there, sub, 60) == [(10, "closed")]
        assert (sub.lost, sub.publishers) == (10, {})

    stage.play(story())


def test_g3_a_coordinator_that_is_late_has_nothing_counted_again_that_came() -> None:
    """It still lists a Pub that has ended in order; asked for again, all of it would be lost."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.put_many(range(10)))
        await stage.at(here, lambda: pub.close())
        assert await events_of(stage, there, sub, 5) == list(range(10))
        host, _, port = here.peer.address.rpartition(":")
        number = pub._publication.stream_id
        row = matched(here.peer.runtime.peer_id, host, int(port), number, "t", True)
        match = Match(sub._inbox.sub_id, 99, True, (row,), ())
        runtime = there.peer.runtime
        await stage.at(there, lambda: runtime.matched(runtime.sessions[0], match))
        assert await events_of(stage, there, sub, 60) == []
        assert (sub.lost, sub.publishers) == (0, {})

    stage.play(story())


def test_a_connection_that_breaks_while_its_peer_closes_leaves_no_timer() -> None:
    """One that had not said who it is, and is cut at the end as if its link had broken."""
    stage = Stage()

    async def story() -> None:
        here, stranger = await stage.peer(), stage.loop.process("stranger", "10.0.9.9")
        pub = await stage.pub(here, "t")
        await stage.at(here, pub._ready.wait)
        await asyncio.sleep(10)  # no timer is set any more that would do
        host, _, port = here.peer.address.rpartition(":")

        async def connect() -> None:
            await stage.loop.create_connection(asyncio.BufferedProtocol, host, int(port))

        await stranger.spawn(connect())
        await asyncio.sleep(0.1)
        assert len(here.peer.runtime.doors.doorman) == 1
        await stage.at(here, lambda: here.peer.close())
        await asyncio.sleep(1)
        assert [timer for process, timer in stage.loop.timers() if process is here.process] == []

    stage.play(story())


def test_nothing_is_written_behind_a_goodbye() -> None:
    """A PONG waits for a full socket, which has room again when GOODBYE was said."""
    stage = Stage(ping_timeout=60.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        (served,) = here.peer.runtime.subscribers.served
        link = served.link
        assert link is not None
        pipe = link.transport.out
        pipe.room = 0
        await stage.at(here, lambda: pub.put(b"x" * 1_000_000))
        await asyncio.sleep(3)  # PINGs of the subscribing peer come
        assert link.paused
        assert link._pong is not None
        closing = asyncio.ensure_future(stage.at(here, lambda: here.peer.close(linger=0)))
        await asyncio.sleep(0.1)
        pipe.free(10_000_000)
        await closing
        assert not link.paused
        assert not sub.publishers

    stage.play(story())


def test_g5_a_subscriber_that_was_held_up_cuts_off_nobody_for_the_pings_that_wait() -> None:
    """However often its publisher has flushed meanwhile. The two heed one number."""
    stage = Stage(ping_timeout=60.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        (served,) = here.peer.runtime.subscribers.served
        served.link.transport.out.room = 10_000_000  # type: ignore[union-attr]

        async def flush_on_and_on() -> None:
            for number in range(1_500):
                pub.put(number)
                with pytest.raises(TimeoutError):
                    await pub.flush(timeout=0.001)

        there.process.stopped = True
        await stage.at(here, flush_on_and_on)
        there.process.stopped = False
        await stage.at(here, lambda: pub.flush(timeout=5.0))
        assert await stage.all_of(there, sub) == list(range(1_500))
        assert list(here.peer.runtime.subscribers.served) == [served]

    stage.play(story())


def test_g7_an_hour_without_a_coordinator() -> None:
    """Then, within one heartbeat, those who are new find each other again."""
    heartbeat = 5.0
    stage = Stage(ping_interval=heartbeat, ping_timeout=15.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        (served,) = here.peer.runtime.subscribers.served
        link = served.link
        stage.coordinator.kill()
        for minute in range(60):
            await stage.at(here, partial(pub.put, minute))
            await asyncio.sleep(60)
            assert await stage.at(there, lambda: sub.get(timeout=0.0)) == minute
        assert list(here.peer.runtime.subscribers.served) == [served]
        assert served.link is link
        new = await stage.at(there, lambda: [there.peer.sub("new/*")])
        late = await stage.pub(here, "new/x")
        began = stage.loop.time()
        stage.coordinator.start()
        # Which of the two registers first is chance, and no coordinator has known either: so what
        # was put before they have found each other is promised to nobody.
        await stage.at(here, lambda: late.wait_for_subscribers(1, timeout=heartbeat))
        await stage.at(here, lambda: late.put("first"))
        assert await stage.at(there, lambda: new[0].get(timeout=heartbeat)) == "first"
        assert stage.loop.time() - began < 2.5  # it is dialled at least every 2 s
        assert sub.lost == new[0].lost == 0
        assert served.link is link

    stage.play(story())


@pytest.mark.parametrize("times", [(1.0, 3.0), (5.0, 15.0), (2.0, 2.5)])
def test_g5_a_half_open_link_is_found_dead_within_its_heartbeats_bound(
    times: tuple[float, float],
) -> None:
    """Not before `ping_timeout` has passed, and not more than a tick later; on both sides."""
    interval, timeout = times
    stage = Stage(ping_interval=interval, ping_timeout=timeout)
    tick = min(interval, timeout / 5)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        (remote,) = there.peer.runtime.publishers.remotes.values()
        (served,) = here.peer.runtime.subscribers.served
        link = remote.link
        await asyncio.sleep(1.7 * timeout)  # it lives, though nothing is sent
        assert remote.link is link
        for connection in stage.network.connections:
            if {connection.client.process, connection.server.process} == {
                here.process,
                there.process,
            }:
                connection.stalled = True
        began = stage.loop.time()
        found: dict[str, float] = {}
        while len(found) < 2:
            await asyncio.sleep(0.01)
            if remote.link is not link:
                found.setdefault("subscriber", stage.loop.time() - began)
            if served not in here.peer.runtime.subscribers.served:
                found.setdefault("publisher", stage.loop.time() - began)
        for side, took in found.items():  # the last sign of life may be an interval old
            assert timeout - interval - tick - 0.1 <= took <= timeout + tick + 0.1, side
        await stage.at(here, lambda: pub.put("again"))
        assert await stage.all_of(there, sub) == ["again"]

    stage.play(story())


@pytest.mark.parametrize("ablation", [None, "at once"])
def test_g5_streams_move_to_a_better_way_when_they_were_answered_on_the_one_before(
    ablation: str | None,
) -> None:
    """What is asked on the link before, and comes late, would else take the stream back to where it
    was when that was asked: from now on, as a Sub that has nothing yet. (Seeds of `links` found
    it, one in a hundred.)"""
    stage = Stage(ping_interval=20.0, ping_timeout=60.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        pub = await stage.pub(there, "t")
        await asyncio.sleep(10)  # no Sub older than it can turn up any more
        hosts = here.process.host, there.process.host
        stage.network.walls = lambda *way: "refuse" if way == hosts else ""
        held: list[Link] = []
        begin, another = Remote._begin, Remote._another

        def slowly(self: Remote, link: Link, other: Any) -> Any:
            """The first link comes by a detour, and then nothing gets through for a while."""
            if not held:
                assert self.address.kind == "reverse"
                held.append(link)
                link.transport.connection.stalled = True
                stage.network.walls = lambda *way: ""
            return begin(self, link, other)

        def at_once(self: Remote, link: Link, way: Any, other: Any) -> Any:
            if self._receiving is not None and way.rank < self.address.rank:
                for stream in self._streams:
                    self._receiving.release(stream)
            return another(self, link, way, other)

        with (
            patch.object(publisher_link, "BETTER", 0.2),
            patch.object(Remote, "_begin", slowly),
            patch.object(Remote, "_another", at_once if ablation else another),
        ):

            async def make() -> Any:
                return [here.peer.sub("t", window=1_000)]  # itself it is awaitable

            [sub] = await stage.at(here, make)
            await asyncio.sleep(5.0)
            (remote,) = here.peer.runtime.publishers.remotes.values()
            assert remote.address.kind == "direct"
            connection = held[0].transport.connection
            for number in range(100):
                await stage.at(there, partial(pub.put, [number, b"x" * 100]))
            connection.stalled = False
            stage.network._reopen()
            await asyncio.sleep(5.0)
            for number in range(100, 200):
                await stage.at(there, partial(pub.put, [number, b"x" * 100]))
            found = [number for number, _ in await stage.all_of(here, sub)]
        if ablation:
            assert sub.lost == 200 - len(found) > 0
        else:
            assert (found, sub.lost) == (list(range(200)), 0)

    stage.play(story())


@pytest.mark.parametrize("seconds", [10, 29])
def test_g5_a_place_is_held_for_resume_timeout_and_that_is_30_s(seconds: int) -> None:
    """With the times that everybody has who sets none."""
    stage = Stage()
    stage.plan.settings.clear()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        hosts = here.process.host, there.process.host
        stage.network.block(*hosts)
        stage.network.block(*reversed(hosts))
        for connection in list(stage.network.connections):
            if {connection.client.process.host, connection.server.process.host} == set(hosts):
                for end in (connection.client, connection.server):
                    end.process.call_soon(end.abort)
        await asyncio.sleep(0.1)
        assert not here.peer.runtime.subscribers.served
        began = stage.loop.time()
        for number in range(seconds * 10):
            await stage.at(here, partial(pub.put, number))
            await asyncio.sleep(0.0999)
        [(state, _)] = pub._publication.cursors()
        assert state == "reconnecting"
        assert seconds - 0.5 < stage.loop.time() - began < seconds + 0.5
        pub._publication.expire(stage.loop.time())  # as the timer does
        stage.network.unblock(*hosts)
        stage.network.unblock(*reversed(hosts))
        assert await stage.all_of(there, sub) == list(range(seconds * 10))
        assert sub.lost == 0

    stage.play(story())


@pytest.mark.parametrize("ablation", [None, "_delivered"])
def test_g9_a_runner_that_stops_and_runs_on_at_its_end_has_sent_everything(
    ablation: str | None,
) -> None:
    """As `run_until_complete` does; its links live for less long without it. A peer that would not
    wait at its end would lose them all."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))

        def put_and_stop() -> None:
            for i in range(1_000):
                pub.put(i)
            here.process.stopped = True  # at once: not even the turn of these puts ends

        here.process.call_soon(put_and_stop)
        await asyncio.sleep(20.0)
        here.process.stopped = False
        closing = here.process.spawn(here.leave())
        found = await stage.all_of(there, sub, 10.0)
        await closing
        assert (found, sub.lost) == (([] if ablation else list(range(1_000))), 0)

    async def at_once(loop: Any, pub: Any, by: float) -> None:
        pub.source.seal()

    with patch.object(lingering, ablation, at_once) if ablation else nullcontext():
        stage.play(story())


@pytest.mark.parametrize("whose", ["the Pub's", "the Peer's"])
@pytest.mark.parametrize("linger", [0.5, None, 12.0])
def test_g9_a_close_waits_for_linger_and_no_longer(whose: str, linger: float | None) -> None:
    """With a subscriber that is stopped; None: the default, which is 5 s."""
    stage = Stage(ping_interval=500.0, ping_timeout=600.0)
    seconds = 5.0 if linger is None else linger

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        await stage.sub(there, "t")
        pub = await stage.pub(here, "t")
        await stage.at(here, lambda: pub.wait_for_subscribers(1))
        there.process.stopped = True
        await stage.at(here, lambda: pub.put(1))
        began = stage.loop.time()
        closed = pub if whose == "the Pub's" else here.peer
        await stage.at(here, lambda: closed.close(linger))
        took = stage.loop.time() - began
        # a Peer also gives those who do not close their ends a second to do so
        slack = 0.1 if whose == "the Pub's" else GOODBYE_GRACE + 0.1
        assert seconds <= took <= seconds + slack

    stage.play(story())


def test_g6_memory_is_bounded_by_buffer_and_windows_however_many_do_not_take() -> None:
    stage = Stage()

    async def story() -> None:
        here, there, third = await stage.peer(), await stage.peer(), await stage.peer()
        subs = [
            await stage.sub(peer, "t", window=3_000) for peer in (here, there, third) for _ in "123"
        ]
        pub = await stage.pub(here, "t", buffer=20_000)
        await stage.at(here, lambda: pub.wait_for_subscribers(9))
        log = pub._publication.log

        async def put_all() -> None:
            for i in range(2_000):
                pub.put([i, b"x" * 100])
                await asyncio.sleep(0.001)
                assert log.size <= 20_000

        await stage.at(here, put_all)
        assert log.size > 15_000
        for sub in subs:
            (stream,) = sub._inbox.streams.values()
            assert 2_000 < stream.credit.received - stream.credit.consumed <= 3_000 + 400

    stage.play(story())


@pytest.mark.parametrize("overflow", ["drop", "block"])
def test_g8_a_stopped_subscriber_changes_nothing_for_the_others(overflow: str) -> None:
    """A Pub with overflow="block" waits only once its buffer is full, which it never is here."""

    def times(stop: bool) -> tuple[list[float], list[float]]:
        stage = Stage()
        stage.network.chop = 0.0  # by chance, reads that get little fall behind for a second
        stage.network.least = 65_536  # and so does a connection that holds less than a message
        put: list[float] = []
        got: list[float] = []

        async def story() -> None:
            here, there, third = await stage.peer(), await stage.peer(), await stage.peer()
            sub = await stage.sub(there, "t")
            await stage.sub(third, "t", window=10_000)
            pub = await stage.pub(here, "t", overflow=overflow)
            await stage.at(here, lambda: pub.wait_for_subscribers(2))
            third.process.stopped = stop

            async def put_all() -> None:
                for _ in range(200):
                    await pub.put(b"x" * 1_000)
                    put.append(stage.loop.time())
                    await asyncio.sleep(0.01)

            async def take_all() -> None:
                for _ in range(200):
                    await sub.get()
                    got.append(stage.loop.time())

            taking = asyncio.ensure_future(stage.at(there, take_all))
            await stage.at(here, put_all)
            await taking

        stage.play(story())
        return put, got

    put, got = times(False)
    put_then, got_then = times(True)
    assert put_then[-1] - put_then[0] == pytest.approx(put[-1] - put[0], rel=0.05)
    assert got_then[-1] - put_then[-1] < 0.2 > got[-1] - put[-1]


def observed() -> None:
    """A Pub that blocks, and an observer that takes nothing."""
    stage = Stage()

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        await stage.sub(there, "t", window=1_000, observer=True)
        pub = await stage.pub(here, "t", overflow="block", buffer=10_000)
        await stage.at(here, lambda: pub.wait_for_subscribers(1))

        async def put_all() -> None:
            for i in range(500):
                await pub.put(i)
                await asyncio.sleep(0.001)

        await asyncio.sleep(10)  # until no older Sub can turn up any more
        putting = asyncio.ensure_future(stage.at(here, put_all))
        await asyncio.wait([putting], timeout=2.0)
        if not putting.done():
            raise Violation("G8", "the Pub waits for an observer")

    stage.play(story())


def test_g8_an_observer_that_takes_nothing_makes_no_pub_wait() -> None:
    observed()


def test_g8_without_its_safeguard_an_observer_makes_a_pub_wait() -> None:
    init = Cursor.__init__

    def firm(self: Cursor, *args: Any, observer: bool) -> None:
        init(self, *args, observer=False)

    with patch.object(Cursor, "__init__", firm), pytest.raises(Violation):
        observed()


def test_g9_a_peer_that_closes_has_sent_what_was_due() -> None:
    stage = Stage(latency=0.1, linger=60.0)

    async def story() -> None:
        here, there = await stage.peer(), await stage.peer()
        sub, pub = await stage.sub(there, "t"), await stage.pub(here, "t")
        values = [[i, b"x" * 1_000] for i in range(500)]
        await stage.at(here, lambda: pub.put_many(values))
        await stage.at(here, lambda: here.peer.close())
        assert [value[0] for value in await stage.all_of(there, sub)] == list(range(500))
        assert sub.lost == 0
        assert not sub.publishers

    stage.play(story())
