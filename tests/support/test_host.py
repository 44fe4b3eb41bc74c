"""The host: what a process finds around it, or is given."""

from __future__ import annotations

import os
import time

import pytest

from pubsub import Peer
from pubsub.links.unix import available
from pubsub.support.about import about
from pubsub.support.apart import nothing
from pubsub.support.host import Host, on_host, this_host
from pubsub.trust.proof import NONCE
from tests.integration.support import coordinator_in_loop


def test_by_itself_it_is_the_one_that_this_process_runs_on() -> None:
    host = this_host()
    assert abs(host.wall_clock() - time.time()) < 60
    assert host.process_id() == os.getpid()
    assert len(host.entropy(8)) == 8
    assert not nothing()


def test_another_one_counts_for_a_while_whatever_ends_it() -> None:
    host, before = Host(name=lambda: "elsewhere", process_id=lambda: 5), this_host()
    with pytest.raises(KeyboardInterrupt), on_host(host):
        assert this_host() is host
        assert (about("me")["hostname"], about("me")["pid"]) == ("elsewhere", 5)
        raise KeyboardInterrupt
    assert this_host() is before


async def test_a_peer_and_its_pubs_and_subs_take_all_from_the_host_that_they_are_given() -> None:
    taken = []

    def entropy(size: int) -> bytes:
        taken.append(size)
        return bytes([len(taken)]) * size

    async with coordinator_in_loop() as address:
        with on_host(Host(wall_clock=lambda: 7.0, entropy=entropy)):
            async with Peer(address) as here, Peer(address) as there:
                assert {here.peer_id, there.peer_id} == {"01" * 8, "04" * 8}
                sub, pub = await there.sub("t"), await here.pub("t")
                pub.put(1)
                async for event in sub.messages():
                    assert event.sent_at == 7.0
                    break
    each = [8, 8, 16]  # its identity, the time between attempts, what its claims are made of
    assert taken[:6] == each * 2
    names = {16} if available() else set()  # of who dials a Unix socket
    assert {*taken[6:]} == {NONCE} | names, "one for each connection"
