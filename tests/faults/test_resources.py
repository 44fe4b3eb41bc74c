"""No file descriptors left, no disk left for the logs, and a clock that jumps."""

from __future__ import annotations

import os

import pytest

from tests.cli.processes import Start
from tests.faults.test_signals import pair, passes, settle, wait_for
from tests.faults.worker import start_worker, until
from tests.integration.support import coordinator_in_thread, free_port, run_python

needs_limits = pytest.mark.skipif(os.name != "posix", reason="needs limits of resources")
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


# --- file descriptors -------------------------------------------------------------------


@needs_limits
def test_g5_a_subscriber_without_descriptors_dials_on_and_loses_nothing(
    start: Start, address: str
) -> None:
    here, there, stream = pair(start, address)
    passes(here, there, stream)
    for _ in range(2):
        there.exhaust()
        passes(here, there, stream)
        there.exhaust(cut="a")
        wait_for(here, "reconnecting")
        there.log_has(text="Too many open files; trying on")
        assert there.report(name="a")["publishers"][stream]["state"] == "reconnecting"
        there.release()
        passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0


@needs_limits
def test_g5_a_publisher_without_descriptors_goes_on_and_lets_others_in_later(
    start: Start, address: str
) -> None:
    # the late one has its place for as long as this takes: else it counts what it missed
    here, there, stream = pair(start, address, join_timeout=60)
    passes(here, there, stream)
    here.exhaust()
    late = start_worker(start, address)
    late.peer(name="a")
    late.sub(name="a", topic="t")  # a publisher that cannot be reached holds up nobody
    passes(here, there, stream)
    here.exhaust(cut="a")
    there.log_has(text="cannot reach the publisher")
    assert there.report(name="a")["publishers"][stream]["state"] == "reconnecting"
    here.release()
    passes(here, there, stream)
    assert settle(here, there, stream)["lost"] == 0
    until(lambda: late.report(name="a")["publishers"][stream]["state"] == "attached")
    put = here.puts(name="a", count=100)
    late.reach(name="a", due={stream: put})
    assert late.report(name="a")["lost"] == 0


@needs_limits
def test_a_coordinator_without_descriptors_lets_peers_in_when_others_have_gone(
    start: Start,
) -> None:
    port = free_port()
    start(
        "python",
        "-c",
        "import resource, runpy, sys;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20));"
        f"sys.argv = ['pubsubd', 'coordinator', '--port', '{port}'];"
        "runpy.run_module('pubsub.cli.pubsubd', run_name='__main__')",
    ).err()
    out = run_python(
        """
        import asyncio, sys
        from pubsub import Peer
        async def main():
            peers = [Peer(sys.argv[1], connect_timeout=30) for _ in range(30)]
            pubs = [peer.pub("t") for peer in peers]
            ready = [asyncio.ensure_future(pub._ready.wait()) for pub in pubs]
            while sum(r.done() for r in ready) < 5:
                await asyncio.sleep(0.01)
            for peer, r in zip(peers, ready):
                if r.done():
                    await r
                    await peer.close(linger=0)
            while not all(r.done() for r in ready):
                for peer, r in zip(peers, ready):
                    if r.done() and not peer.closed:
                        await peer.close(linger=0)
                await asyncio.sleep(0.01)
            for peer, r in zip(peers, ready):
                await r
                await peer.close(linger=0)
            print("all")
        asyncio.run(main())
        """,
        f"127.0.0.1:{port}",
    )
    assert out.splitlines()[0] == "all"


# --- disk -------------------------------------------------------------------------------


@needs_full
def test_g5_a_full_disk_under_the_logs_disturbs_nothing() -> None:
    with coordinator_in_thread() as coordinator:
        out = run_python(
            """
            import logging, os
            from logging.handlers import RotatingFileHandler
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
            logging.basicConfig(level=logging.DEBUG, handlers=[
                logging.FileHandler("/dev/full"), logging.StreamHandler(),
            ])
            from pubsub import Peer
            from tests.integration.support import break_links
            with Peer(ping_interval=0.1, ping_timeout=0.3, linger=0.2) as here, Peer() as there:
                sub, pub = there.sub("t"), here.pub("t")
                for i in range(3):
                    pub.put(i)
                    assert sub.get(timeout=30) == i
                    here._call(break_links, here)
                for server in here.runtime.doors.servers.values():
                    here._call(server.close)  # nobody can be reached any more: that is logged
                here._call(break_links, here)
                late = there.sub("t")
                assert sub.lost == 0
            print("done")
            """,
            PUBSUB_COORDINATOR=coordinator.address,
            PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        )
    assert out == "done\n"


@needs_full
def test_g7_a_coordinator_with_a_full_disk_under_its_log_goes_on(start: Start) -> None:
    port = free_port()
    process = start(
        "python",
        "-c",
        "import os, runpy, sys;"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2);"
        f"sys.argv = ['pubsubd', 'coordinator', '--port', '{port}', '--log-level', 'debug'];"
        "runpy.run_module('pubsub.cli.pubsubd', run_name='__main__')",
    )
    out = run_python(
        """
        import sys
        from pubsub import Peer
        for _ in range(3):
            with Peer(sys.argv[1], connect_timeout=30) as here, Peer(sys.argv[1]) as there:
                sub, pub = there.sub("t"), here.pub("t")
                pub.put(1)
                print(sub.get(timeout=30))
        """,
        f"127.0.0.1:{port}",
    )
    assert out.split("\n")[0] == "1"
    assert process.process.poll() is None
    process.interrupt()
    assert process.wait() == 0


# --- clock ------------------------------------------------------------------------------


def test_g5_only_monotonic_time_decides() -> None:
    """The wall clock of the process in which both peers are goes to 1901, 1970 and 2100 and back,
    and that of the coordinator's process does not."""
    with coordinator_in_thread() as coordinator:
        out = run_python(
            """
            import random, time
            now, chance = time.time, random.Random(1)
            jumps = [-4e9, -now(), 0, -86_400, 86_400, 2e9, 4e9]
            time.time = lambda: now() + chance.choice(jumps)
            from pubsub import Message, Peer
            from tests.integration.support import break_links
            settings = dict(ping_interval=0.1, ping_timeout=5, resume_timeout=10)
            with Peer(**settings) as here, Peer(**settings) as there:
                sub, pub = there.sub("t"), here.pub("t")
                pub.wait_for_subscribers(1, timeout=30)
                messages = sub.messages()
                (link,) = [remote.link for remote in there.runtime.publishers.remotes.values()]
                sent = set()
                for i in range(1_000):
                    pub.put(i)
                    message = next(messages)
                    assert message.seq == message.value == i
                    sent.add(message.sent_at > now())
                    if i == 800:
                        assert [r.link for r in there.runtime.publishers.remotes.values()] == [link]
                        here._call(break_links, here)
                    time.sleep(0.001)
                assert sent == {True, False}
                begin = time.monotonic()
                try:
                    sub.get(timeout=0.2)
                except TimeoutError:
                    assert 0.19 < time.monotonic() - begin < 10
                pub.flush(timeout=30)
                assert sub.lost == 0
            print("done")
            """,
            PUBSUB_COORDINATOR=coordinator.address,
            PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        )
    assert out == "done\n"
