"""Limits for strangers, between whole peers: each with its refusal, and honest ones beside it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pubsub import CoordinatorUnavailable, Peer
from pubsub.coordinator.registry import Registry
from pubsub.links.dialling import AT_ONCE
from pubsub.wire.messages import (
    End,
    Match,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
)
from tests.faults.attacks import Stranger, register
from tests.faults.test_hostile import LIMITED, beside, hostile_publisher, said
from tests.integration.support import eventually
from tests.wire.said import hello, matched

pytestmark = pytest.mark.loop


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for log in (*LIMITED, logging.getLogger("pubsub")):
        monkeypatch.setattr(log, "filters", [])


# --- a coordinator ------------------------------------------------------------------------------


async def test_a_coordinator_that_knows_too_many_peers_says_so_to_one_more() -> None:
    async with (
        beside(Registry(max_peers=2)) as pair,
        Peer(pair.address, connect_timeout=0.5) as third,
    ):
        with pytest.raises(CoordinatorUnavailable, match="knows 2 peers, and takes no more"):
            await third.pub("t")


async def test_one_pub_too_many_is_refused_and_the_others_of_its_peer_stay() -> None:
    async with beside(Registry(max_all=3)) as pair:  # of which each peer's stats are none
        newcomer = await pair.publisher.pub("another")
        with pytest.raises(CoordinatorUnavailable, match=r"has 3 Pubs and Subs, and takes no more"):
            await pair.publisher.pub("t")
        await newcomer.close()  # there is room for the one that is made last


# --- a Sub --------------------------------------------------------------------------------------


async def test_g6_a_sub_has_so_many_streams_and_is_told_of_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pubsub.runtime.publishers.MAX_STREAMS", 100)
    async with (
        beside() as pair,
        hostile_publisher(pair.address, "t", lambda stranger, channel: None) as hostile,
    ):
        hostile.session.send(*(register(number, "pub", "t") for number in range(2, 301)))
        await eventually(lambda: len(pair.sub.publishers) == 301)
        assert len(pair.sub._inbox.streams) == 100
        states = [how["state"] for how in pair.sub.publishers.values()]
        assert states.count("unreachable") == 201
        assert sum("has 100 streams" in r.getMessage() for r in caplog.records) == 1
        await asyncio.to_thread(hostile.close)


async def test_g6_a_coordinator_that_lies_fills_no_memory_with_publishers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pubsub.runtime.publishers.MAX_STREAMS", 50)
    async with beside() as pair:
        publishers = pair.subscriber.runtime.publishers
        publishers.directory._most = 50
        tell(pair, *(matched(f"{n:016x}", "127.0.0.1", 1, 1, "t", False) for n in range(5_000)))
        inbox = pair.sub._inbox
        assert len(inbox.streams) == 50
        assert len(publishers.remotes) == 50
        assert len(publishers.directory._told) == 50
        assert said(caplog, "Sub('t') has 50 streams, and more publishers match")


def tell(pair: Any, *rows: Any) -> None:
    """What a coordinator could say to the honest subscriber."""
    runtime = pair.subscriber.runtime
    inbox = pair.sub._inbox
    match = Match(inbox.sub_id, 2**40, True, rows, ())
    runtime.publishers.matched(runtime.sessions[0], match, inbox, runtime.peer_id)


# --- a Pub --------------------------------------------------------------------------------------


async def test_g6_who_asks_for_history_again_and_again_draws_no_more_of_it() -> None:
    size, asks = 10_000, 3_000

    def attack(stranger: Stranger, stream_id: int) -> tuple[int, int]:
        stranger.hello("peer")
        drawn = refused = 0
        for channel in range(asks):
            asked = Subscribe(channel, stream_id, channel, None, None, 2**40, False, False, 2**28)
            stranger.send(asked, Unsubscribe(channel))
            while refused + drawn <= channel:  # it reads the answers, or it would be cut off
                event = stranger.next()
                assert event is not None
                drawn += isinstance(event, Subscribed)
                if isinstance(event, End):
                    assert event.code == "refused"
                    assert "too often" in event.reason
                    refused += 1
        return drawn, refused

    async with beside() as pair:
        kept = await pair.publisher.pub("kept", history=1)
        kept.put(b"x" * size)
        stream_id = kept._publication.stream_id
        with Stranger(pair.publisher.runtime.address) as stranger:
            drawn, refused = await asyncio.to_thread(attack, stranger, stream_id)
        assert 256 <= drawn <= 256 + 60  # one more in each second that this takes
        assert refused == asks - drawn
        honest = [await pair.subscriber.sub("kept", history=1) for _ in range(200)]
        for sub in honest:
            assert await sub.get(timeout=20) == b"x" * size


@pytest.mark.parametrize("limit", [0, 1], ids=["shut", "slow"])
async def test_g8_who_lets_nothing_be_sent_is_cut_off_from_a_blocking_pub_and_who_is_slow_is_not(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(resume_timeout=2.0) as pair:
        pub = await pair.publisher.pub("waits", overflow="block", buffer=10_000)
        with Stranger(pair.publisher.runtime.address) as stranger:
            await asyncio.to_thread(stranger.hello, "peer")
            stranger.subscribe(0, pub._publication.stream_id, limit)
            await asyncio.to_thread(stranger.wait_for, Subscribed)
            pub.put(b"x" * 9_000)
            waiting = asyncio.ensure_future(pub.put(b"x" * 9_000))
            if limit:
                await eventually(lambda: said(caplog, "has taken nothing for"))
                await asyncio.wait([waiting], timeout=4.0)
                assert not waiting.done()
                assert pub._publication.attached == 1
            else:
                await eventually(lambda: said(caplog, "it lets nothing be sent to it; until"))
                end = await asyncio.to_thread(stranger.wait_for, End)
                assert isinstance(end, End)
                assert end.code == "refused"
                assert "has let nothing be sent to it for 2 s" in end.reason
                await asyncio.wait_for(waiting, 20)
                assert said(caplog, "is cut off, because it has let nothing be sent to it for 2 s")
        await pub.close(linger=20)


async def test_a_channel_that_another_link_displaces_is_told_and_ended() -> None:
    async with beside() as pair:
        identity = "0123456789abcdef"
        address, stream_id = pair.publisher.runtime.address, pair.stream_id

        def displace() -> End:
            with Stranger(address) as old, Stranger(address) as new:
                for stranger in (old, new):
                    stranger.send(hello("peer", "peer", identity))
                    stranger.wait_for(Welcome)
                    stranger.subscribe(0, stream_id)
                    stranger.wait_for(Subscribed)
                found = old.wait_for(End)
                assert isinstance(found, End)
                return found

        end = await asyncio.to_thread(displace)
        assert (end.channel, end.code) == (0, "elsewhere")


# --- a peer that is told where to dial ----------------------------------------------------------


class Third:
    """Somebody who has nothing to do with it all, and is dialled."""

    def __init__(self, mute: bool) -> None:
        self.mute = mute
        self.came = self.here = self.most = 0

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._came, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        self.here += 1
        self.most = max(self.most, self.here)
        if self.mute:
            while await reader.read(1000):
                pass
        self.here -= 1
        writer.close()


@pytest.mark.parametrize("mute", [False, True], ids=["closes", "mute"])
async def test_whatever_it_is_told_a_peer_dials_few_at_a_time_and_few_where_it_was_in_vain(
    mute: bool,
) -> None:
    third = Third(mute)
    port = await third.start()
    loop = asyncio.get_running_loop()
    async with beside(handshake_timeout=1.0) as pair:
        began = loop.time()
        tell(pair, *(matched(f"{n:016x}", "127.0.0.1", port, 1, "t", False) for n in range(2_000)))
        await eventually(lambda: third.came >= AT_ONCE + 1)  # one after the first ones failed
        async with Peer(pair.address) as fresh:  # an honest publisher is found all the same
            pub = await fresh.pub("t")
            await eventually(
                lambda: any(
                    how["state"] == "attached" and at.startswith(fresh.address)
                    for at, how in pair.sub.publishers.items()
                )
            )
            await pub.close()
        assert third.most <= AT_ONCE
        # at first delays of 50 ms, which double up to 2 s; half of that by chance
        assert third.came <= AT_ONCE + 12 + (loop.time() - began)
    third.server.close()
