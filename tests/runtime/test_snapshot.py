"""The snapshot: rows of all that a process has."""

from __future__ import annotations

from operator import attrgetter

from pubsub import Peer
from pubsub.core.inbox import Inbox
from pubsub.core.stream import Stream, StreamKey
from pubsub.links.unix import available
from pubsub.runtime.snapshot import CoordinatorRow, LinkRow, StreamRow, SubRow
from tests.integration.support import LONG, coordinator_in_loop, eventually


async def test_a_snapshot_shows_pubs_subs_links_and_coordinators() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t")
        sub = await there.sub("*")
        pub.put(1)
        assert await sub.get(timeout=LONG) == 1
        await eventually(lambda: here.runtime.snapshot().pubs[0].subscribers[0].taken == 1)

        way = "unix" if available() else "direct"
        ours, theirs = here.runtime.snapshot(), there.runtime.snapshot()
        (row,) = ours.pubs
        assert (row.topic, row.open, row.leavers, row.reached) == ("t", True, (), 0)
        (who,) = row.subscribers
        assert {who.name} == set(pub.subscribers)
        assert (who.state, who.lost, who.observer) == ("attached", 0, False)
        assert (ours.subs, theirs.pubs) == ((), ())
        (publisher,) = sub.publishers
        stream = StreamRow(publisher, "t", "attached", "", 1, 0, 1)
        assert theirs.subs == (SubRow("*", 0, (stream,)),)
        assert ours.links == (LinkRow("subscriber", there.peer_id, True, way),)
        assert theirs.links == (LinkRow("publisher", here.peer_id, True, way),)
        assert ours.coordinators == theirs.coordinators == (CoordinatorRow(address, True, ""),)

        await sub.close()
        await pub.close()
        row = here.runtime.snapshot().pubs[0]
        assert (row.open, row.subscribers, row.reached) == (False, (), 1)
        assert there.runtime.snapshot().subs == ()


def test_a_stream_in_a_snapshot_says_what_giving_it_up_means() -> None:
    inbox = Inbox(1, "*", window=1000)
    for number, topic in enumerate(("young", "old", "broken", "given up")):
        stream = Stream(inbox, StreamKey("peer", number), topic, f"p#{number}", 1000)
        stream.before = topic == "old"
        stream.expected = 5 if topic in ("broken", "given up") else None
        inbox.add(stream)
    stream.vanish(trouble=False)
    rows = SubRow.of(inbox, lambda stream: False, attrgetter("state")).streams
    assert {row.topic: (row.state, row.fate) for row in rows} == {
        "young": ("connecting", ""),
        "old": ("connecting", "unreachable"),
        "broken": ("reconnecting", "vanished"),
        "given up": ("vanished", "vanished"),
    }
    rows = SubRow.of(inbox, lambda stream: True, attrgetter("state")).streams
    assert next(row.fate for row in rows if row.topic == "young") == "unreachable"
