"""Peers that tell of themselves what is not so, or cannot be read: whoever looks at all of them
goes on to see the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgpack
import pytest

from pubsub import Peer
from pubsub.stats import Stats
from pubsub.survey import Survey, Told
from pubsub.wire.frames import array_header
from tests.integration.support import LONG, coordinator_in_loop, eventually

pytestmark = pytest.mark.loop


def lies(peer: Peer, make: Callable[[Stats], bytes], codec: str = "msgpack") -> None:
    """Have a peer tell that of itself."""
    watching = peer.runtime.watching
    stream = watching.stream()
    assert stream is not None
    stream.codec = codec

    def tell() -> None:
        if stream.attached:
            stream.append(1, array_header(1) + make(watching.stats()), (), 1e9)

    watching._tell = tell  # type: ignore[method-assign]


async def until(survey: Survey, found: Callable[[], object]) -> None:
    """Look until that is so."""

    async def look() -> None:
        async for _ in survey.changes():
            if found():
                return

    await asyncio.wait_for(look(), LONG)
    assert found()


@pytest.mark.parametrize(
    ("make", "codec"),
    [
        (lambda stats: msgpack.packb(stats), "pickle"),
        (lambda stats: msgpack.packb(stats), "nobody's"),
        (lambda stats: msgpack.packb(stats), "raw"),
        (lambda stats: b"\xc1", "msgpack"),
        (lambda stats: b"\x91" * 1000 + b"\x90", "msgpack"),
        (lambda stats: msgpack.packb(msgpack.ExtType(99, b"x")), "msgpack"),
        (lambda stats: msgpack.packb(stats._replace(age=1e308)), "msgpack"),
        (lambda stats: msgpack.packb(stats._replace(peer_id="")), "msgpack"),
    ],
)
async def test_a_peer_that_tells_nonsense_hides_no_other(
    make: Callable[[Stats], bytes], codec: str
) -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="liar") as liar,
        Peer(address, name="looks") as looks,
    ):
        lies(liar, make, codec)
        async with Survey(looks) as survey:
            await survey.settled(LONG)
            async with Peer(address, name="later") as later:
                await until(survey, lambda: later.peer_id in heard(survey))
                assert liar.peer_id not in heard(survey)
                of_liar = [t for t in survey.peers.values() if t.publisher == liar.address]
                assert all("cannot be read" in told.trouble for told in of_liar)


def heard(survey: Survey) -> dict[str, Told]:
    return {told.peer_id: told for told in survey.peers.values() if told.stats}


async def test_no_peer_can_tell_in_the_name_of_another() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="honest") as honest,
        Peer(address, name="liar") as liar,
        Peer(address, name="looks") as looks,
    ):
        lies(liar, lambda stats: msgpack.packb(stats._replace(peer_id=honest.peer_id)))
        async with Survey(looks) as survey:
            await until(survey, lambda: liar.address in survey.peers)
            await until(survey, lambda: survey.peers[liar.address].trouble)
            assert "another peer" in survey.peers[liar.address].trouble
            await until(survey, lambda: honest.peer_id in heard(survey))
            assert heard(survey)[honest.peer_id].publisher == honest.address


async def test_of_a_peer_that_tells_without_end_little_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="liar") as liar,
        Peer(address, name="looks") as looks,
    ):
        read: list[str] = []
        from_rows = Stats.from_rows

        def count(rows: list[object]) -> Stats:
            read.append(str(rows[0]))
            return from_rows(rows)

        monkeypatch.setattr(Stats, "from_rows", count)
        monkeypatch.setattr("pubsub.survey.PART", 1e-9)  # any time is too much
        async with Survey(looks) as survey:
            await until(survey, lambda: liar.peer_id in heard(survey))
            for _ in range(100):
                liar.runtime.watching._tell()
            stream = liar.runtime.watching.stream()
            assert stream is not None
            (cursor,) = (cursor for _, cursor in stream.cursors())
            await eventually(lambda: not cursor.lag)
            assert read.count(liar.peer_id) == 1
