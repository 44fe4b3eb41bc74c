"""What the tests of the dashboard share: one that runs, whoever asks it, and processes made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from pubsub import Peer
from pubsub.dashboard import Access, Dashboard
from pubsub.stats import (
    CoordinatorStats,
    LoopStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.survey import Told
from tests.integration.support import coordinator_in_loop

__all__ = ["LONG", "TOKEN", "Staged", "crowd", "staged", "staged_at"]

TOKEN = "only-whoever-started-it-knows-this"
LONG = 30.0
"""Seconds after which what must happen is taken not to happen."""


@dataclass
class Staged:
    """A dashboard, and a client that may be let in."""

    url: str
    port: int
    dashboard: Dashboard
    access: Access
    client: aiohttp.ClientSession
    coordinator: str

    def __post_init__(self) -> None:
        self.place = self.url + self.access.place

    async def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        """Status and text, of a path of the host."""
        async with self.client.get(self.url + path, headers=headers, allow_redirects=False) as got:
            return got.status, await got.text()

    async def enter(self) -> None:
        """Show the token, as who opens the link."""
        async with self.client.get(f"{self.url}/?token={TOKEN}") as got:
            assert got.status == 200

    @asynccontextmanager
    async def events(self, query: str, path: str = "events") -> AsyncIterator[AsyncIterator[Any]]:
        """What a viewer is told."""
        async with self.client.get(f"{self.place}{path}?{query}") as got:
            assert got.status == 200, await got.text()
            assert got.content_type == "text/event-stream"
            yield _told(got)


async def _told(got: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    while True:
        line = await asyncio.wait_for(got.content.readuntil(b"\n"), LONG)
        if not line:
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@asynccontextmanager
async def staged(**access: Any) -> AsyncIterator[Staged]:
    """A coordinator, a dashboard, and a client."""
    async with coordinator_in_loop() as coordinator, staged_at(coordinator, **access) as found:
        yield found


@asynccontextmanager
async def staged_at(coordinator: str, **access: Any) -> AsyncIterator[Staged]:
    """A dashboard of what that coordinator knows, and a client."""
    async with Peer(coordinator, name="dashboard", linger=0) as peer:
        found = Access(TOKEN, ["localhost"], **access)
        dashboard = Dashboard(peer, found)
        ((_, port),) = await dashboard.start("127.0.0.1", 0)
        jar = aiohttp.CookieJar(unsafe=True)  # which takes cookies of a number
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        try:
            async with aiohttp.ClientSession(
                cookie_jar=jar, connector=connector, read_bufsize=2**24
            ) as client:
                url = f"http://127.0.0.1:{port}"
                yield Staged(url, port, dashboard, found, client, coordinator)
        finally:
            await dashboard.close()


def crowd(topics: int, processes: int, turn: int = 0, slow: bool = False) -> list[Told]:
    """So many processes, half of which publish, half subscribe; with other numbers each turn.

    Parameters:
        topics: each has one Pub, and one Sub.
        processes: at least 2.
        turn: of the numbers.
        slow: one of the subscribers is slow.
    """
    half = processes // 2
    pubs: list[list[PubStats]] = [[] for _ in range(half)]
    subs: list[list[SubStats]] = [[] for _ in range(half)]
    for n in range(topics):
        at, to = n % half, (n * 7) % half
        topic = f"room {n % 40}/sensor {n}"
        per_second = float((n * 37 + turn * 11) % 97)
        count = 1000 * n + turn * 100
        lags = slow and n == 0
        rates = Rates(per_second, per_second, per_second)
        cursor = SubscriberStats(
            f"b:{5000 + to}#{n}", f"sub{to}", n, "attached", "direct", lag=300 if lags else n % 3
        )
        pub = PubStats(n, topic, put=count, rate=rates, byte_rate=rates, silent=0.1, age=100.0)
        pubs[at].append(pub._replace(subscribers=(cursor,)))
        stream = StreamStats(
            f"a:{4000 + at}#{n}", f"pub{at}", n, topic, "attached", "direct", count
        )
        sub = SubStats(n, topic, delivered=count, rate=rates, age=100.0, streams=(stream,))
        if lags:
            taken = Rates(2.0, 2.0, 2.0)
            sub = sub._replace(handling=0.5, waiting=300, oldest=9.0, rate=taken)
        subs[to].append(sub)
    at_one = CoordinatorStats("127.0.0.1:7700", True)
    told = []
    for n in range(half):
        for side, rows in (("pub", {"pubs": pubs[n]}), ("sub", {"subs": subs[n]})):
            stats = Stats(
                peer_id=f"{side}{n}",
                name=f"{'camera' if side == 'pub' else 'model'} {n}.py",
                pid=100 + n,
                host="ab"[side == "sub"],
                time=1e9 + turn,
                age=100.0,
                watched=60.0,
                loop=LoopStats(0.001, 0.004, 0.01, 60),
                coordinators=(at_one,),
                **{name: tuple(found) for name, found in rows.items()},  # type: ignore[arg-type]
            )
            key = f"a:{4000 + n}" if side == "pub" else f"b:{5000 + n}"
            told.append(Told(key, stats, at=float(turn)))
    return told
