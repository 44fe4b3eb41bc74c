"""Processes that fork, start others, and end at the worst moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.processes import Start, daemon
from tests.faults.worker import start_worker
from tests.integration.support import LONG, coordinator_in_thread, run_python

LINGER = 1.0
SLACK = 10.0
"""Seconds that a busy machine may be late by."""

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


# --- an end while something waits -------------------------------------------------------

HEAD = f"""
import asyncio, sys, threading, time
from pubsub import Closed, CoordinatorUnavailable, Peer, Pub, Sub
def spawn(call):
    def run():
        try:
            call()
        except (Closed, CoordinatorUnavailable, TimeoutError):  # what the end raises in threads
            pass
    threading.Thread(target=run, daemon=True).start()
def slowly():
    while True:
        yield b"x" * 1_000
        time.sleep(0.001)
def settings():
    return dict(coordinator=sys.argv[1], linger={LINGER}, connect_timeout=5)
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
    print("ending", flush=True)
"""
BLOCKING = """
peer = Peer(**settings())
sub, pub = peer.sub(sys.argv[2]), peer.pub(sys.argv[2], buffer=200_000)
block = peer.pub(sys.argv[2], overflow="block", buffer=10_000)
pub.wait_for_subscribers(1, timeout=30)
"""
ASYNC = """
async def loop_over(sub):
    async for _ in sub: pass
async def put_for_ever(pub):
    while True:
        await pub.put(b"x" * 1_000)
        await asyncio.sleep(0)
async def main():
    peer = Peer(**settings())
    sub, pub = await peer.sub(sys.argv[2]), await peer.pub(sys.argv[2], buffer=200_000)
    block = await peer.pub(sys.argv[2], overflow="block", buffer=10_000)
    await pub.wait_for_subscribers(1, timeout=30)
    task = asyncio.create_task({task})
    {and_}await asyncio.to_thread(ready)
    {end}
asyncio.run(main())
"""


def blocking(spawned: str, end: str = "") -> str:
    return f"{BLOCKING}spawn({spawned})\nready()\n{end}"


def in_loop(task: str, and_: str = "", end: str = "") -> str:
    return ASYNC.replace("{task}", task).replace("{and_}", and_).replace("{end}", end)


ENDS = {
    "a for loop waits": blocking("lambda: list(sub)"),
    "a get waits": blocking("sub.get"),
    "a flush is due": blocking("lambda: [pub.put(b'x' * 100_000), pub.flush()]"),
    "a put waits for room": blocking("lambda: block.put_many(slowly())"),
    "threads put and take": blocking(
        "lambda: list(sub)", "for n in range(3): spawn(lambda: pub.put_many(slowly()))"
    ),
    "sys.exit in a for loop": blocking("lambda: 0", "pub.put(1)\nfor _ in sub: sys.exit()"),
    "Subs are being made": blocking(
        "lambda: 0", "spawn(lambda: [Sub('x', peer=peer) for _ in range(100)])"
    ),
    "async: a for loop waits": in_loop("loop_over(sub)"),
    "async: a get waits": in_loop("sub.get()"),
    "async: a flush is due": in_loop("pub.flush()", "pub.put(b'x' * 100_000); "),
    "async: a put waits for room": in_loop("put_for_ever(block)"),
    "async: sys.exit in a for loop": in_loop(
        "asyncio.sleep(60)", "", "pub.put(1)\n    async for _ in sub: sys.exit()"
    ),
}


@posix
@pytest.mark.parametrize("state", ["the subscriber is stopped", "the coordinator is killed"])
def test_g9_a_process_ends_in_bounded_time(start: Start, state: str) -> None:
    coordinator, address = daemon(start)
    there = start_worker(start, address)
    there.peer(name="a")
    there.sub(name="a", topic="end/*")
    running = {
        what: start("python", "-c", HEAD + code, address, f"end/{n}")
        for n, (what, code) in enumerate(ENDS.items())
    }
    for process in running.values():
        assert process.out() == "ready"
    if state == "the subscriber is stopped":
        there.freeze()
    else:
        coordinator.kill()
    began = time.monotonic()
    for process in running.values():
        process.send("\n")
    for what, process in running.items():
        code, out, err = process.end()
        assert time.monotonic() - began < LINGER + SLACK, what
        assert (code, out) == (0, ["ending"]), (what, err)
        news = ("no coordinator at", "closed after", "Pub(")  # who waits, who has not all
        assert [line for line in err if not line.startswith(news)] == [], what


@posix
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_g9_ctrl_c_ends_a_for_loop(start: Start, kind: str) -> None:
    with coordinator_in_thread() as coordinator:
        loop = (
            "print('ready', flush=True)\nfor _ in Peer(**settings()).sub('t'): pass"
            if kind == "blocking"
            else "async def main():\n"
            "    sub = await Peer(**settings()).sub('t')\n"
            "    print('ready', flush=True)\n"
            "    async for _ in sub: pass\n"
            "asyncio.run(main())"
        )
        process = start("python", "-c", HEAD + loop, coordinator.address)
        assert process.out() == "ready"
        time.sleep(0.2)  # whether it waits already or not, it has to end
        process.interrupt()
        code, _, err = process.end()
        assert code == -signal.SIGINT
        assert err[-1] == "KeyboardInterrupt"


def test_g9_an_end_by_an_exception_has_sent_everything(start: Start) -> None:
    """However long it takes: the subscriber needs a tenth of a second of a processor, and may have
    a tenth of one here."""
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t")
        process = start(
            "python",
            "-c",
            HEAD
            + "pub = Peer(**settings() | {'linger': 30}).pub('t')\n"
            + "for i in range(100_000): pub.put(i)\n1 / 0",
            coordinator.address,
        )
        code, _, err = process.end()
        assert code == 1
        assert err[-1] == "ZeroDivisionError: division by zero"
        report = there.report(name="a")
        assert list(report["got"].values()) == [100_000]
        assert report["lost"] == 0


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_g9_what_was_put_with_a_peer_that_nobody_holds_is_sent(start: Start, kind: str) -> None:
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t")
        put = "pub = Peer(**settings()).pub('t')\n    for i in range(1_000): pub.put(i)\n"
        code = {
            "blocking": f"def main():\n    {put}main()",
            "async": "async def main():\n"
            "    asyncio.get_running_loop().slow_callback_duration = 60  # late is no news\n"
            f"    {put}asyncio.run(main())",
        }
        process = start("python", "-X", "dev", "-c", HEAD + code[kind], coordinator.address)
        assert process.end() == (0, [], [])
        report = there.report(name="a")
        assert list(report["got"].values()) == [1_000]


# --- an end that waits ------------------------------------------------------------------

STUCK_IN_LOOP = """
async def main():
    global pub
    pub = await Peer(**settings() | {"linger": 60}).pub("t", overflow="block", buffer=1_000)
    await pub.wait_for_subscribers(1, timeout=30)
    await asyncio.to_thread(ready)
    while True: await pub.put(b"x" * 200)
"""
WAITING = {
    "blocking": """
pub = Peer(**settings() | {"linger": 60}).pub("t", overflow="block", buffer=1_000)
pub.wait_for_subscribers(1, timeout=30)
ready()
while True: pub.put(b"x" * 200)
""",
    "asyncio.run": f"{STUCK_IN_LOOP}asyncio.run(main())",
    "a loop that stands still": f"""{STUCK_IN_LOOP}
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
""",
    "a loop that is closed": f"""{STUCK_IN_LOOP}
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main())
finally:
    loop.close()
""",
}


@posix
@pytest.mark.parametrize("kind", WAITING)
def test_g9_an_end_says_for_whom_it_waits_and_a_second_ctrl_c_ends_it(
    start: Start, kind: str
) -> None:
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t", window=1_000)
        process = start("python", "-c", HEAD + WAITING[kind], coordinator.address)
        assert process.out() == "ready"
        there.freeze()
        process.send("\n")
        assert process.out() == "ending"
        time.sleep(0.2)  # wherever it is in its puts, it has to end
        process.interrupt()
        waits = process.err()
        while not waits.startswith(
            "closing waits up to 59 s more (linger=60), and Ctrl-C ends it: "
        ):
            waits = process.err()  # of the traceback, where that comes first
        began = time.monotonic()
        process.interrupt()
        code, _, err = process.end()
        assert time.monotonic() - began < SLACK
        (said,) = [line for line in err if line.startswith("closing was interrupted: ")]
        assert re.fullmatch(
            r"closing was interrupted: [1-9]\d* messages? of Pub\('t'\) (is|are) not known to have "
            r"been received by 127.0.0.1:\d+#1 \(attached, [1-9]\d* behind\)",
            said,
        )
        assert not any("Exception ignored" in line or "never retrieved" in line for line in err)
        assert code == -signal.SIGINT


@posix
def test_g9_an_end_that_a_signal_handler_breaks_off_says_what_was_left(start: Start) -> None:
    """(Where a loop runs in the main thread, asyncio may log it and go on.)"""
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t", window=1_000)
        handler = """
import signal
class Stop(BaseException): pass
def stop(number, frame): raise Stop
signal.signal(signal.SIGTERM, stop)
"""
        process = start("python", "-c", HEAD + handler + WAITING["blocking"], coordinator.address)
        assert process.out() == "ready"
        there.freeze()
        process.send("\n")
        assert process.out() == "ending"
        time.sleep(0.2)  # wherever it is in its puts, it has to end
        process.interrupt()
        while not process.err().startswith("closing waits up to 59 s more (linger=60)"):
            pass
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        _, _, err = process.end()
        assert time.monotonic() - began < SLACK
        assert [line for line in err if line.startswith("closing was interrupted: ")] != [], err
        assert err[-1].startswith(("Stop", "__main__.Stop")), err


@posix
def test_g9_all_peers_of_a_process_end_together(start: Start) -> None:
    """One after the other, forty of them would take more than a minute."""
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t")
        process = start(
            "python",
            "-c",
            HEAD
            + "pubs = [Peer(**settings()).pub('t') for _ in range(20)]\n"
            + "for pub in pubs: pub.wait_for_subscribers(1, timeout=30)\n"
            + "async def make():\n"
            + "    pubs.append(await Peer(**settings()).pub('t'))\n"
            + "    await pubs[-1].wait_for_subscribers(1, timeout=30)\n"
            + "for _ in range(20): asyncio.new_event_loop().run_until_complete(make())\n"
            + "ready()\n"
            + "for pub in pubs: pub.put(1)",
            coordinator.address,
        )
        assert process.out() == "ready"
        there.freeze()
        process.send("\n")
        began = time.monotonic()
        code, _, err = process.end()
        assert time.monotonic() - began < 2 * LINGER + SLACK
        assert code == 0
        assert len(err) == 10  # of the same text, no more are logged in a minute
        assert all("1 message of Pub('t') is not known to have been received" in e for e in err)


@posix
@pytest.mark.parametrize("kind", ["blocking", "async"])
@pytest.mark.parametrize("state", ["stopped", "killed"])
def test_g9_an_observer_holds_up_no_end(start: Start, kind: str, state: str) -> None:
    with coordinator_in_thread() as coordinator:
        there = start_worker(start, coordinator.address)
        there.peer(name="a")
        there.sub(name="a", topic="t", observer=True)
        linger = "Peer(**settings() | {'linger': 600}).pub('t')"
        code = {
            "blocking": f"pub = {linger}\npub.wait_for_subscribers(1, timeout=30)\nready()\n"
            "for i in range(1_000): pub.put(i)\n",
            "async": "async def main():\n    global pub\n"
            f"    pub = await {linger}\n"
            "    await pub.wait_for_subscribers(1, timeout=30)\n"
            "    await asyncio.to_thread(ready)\n"
            "    for i in range(1_000): pub.put(i)\nasyncio.run(main())",
        }
        process = start("python", "-c", HEAD + code[kind], coordinator.address)
        assert process.out() == "ready"
        there.freeze()
        if state == "killed":
            there.kill()
        process.send("\n")
        exit_code, out, err = process.end()
        assert (exit_code, out) == (0, ["ending"])
        left = "1,000 messages of Pub('t') are not known to have been received by "
        if state == "killed":
            assert err == []
        else:
            waits, gave_up = err
            assert waits.startswith("closing waits up to 59")
            assert gave_up.startswith("closed after ")
            assert left in waits
            assert left in gave_up


@posix
def test_an_end_waits_for_no_coordinator_that_is_not_there(start: Start) -> None:
    process = start(
        "python",
        "-c",
        HEAD
        + "async def main():\n"
        + "    pub = Peer(**settings() | {'linger': 600}).pub('t')\n"
        + "    pub.put(1)\n"
        + "asyncio.run(main())\nprint('ended')",
        "127.0.0.1:1",
    )
    code, out, err = process.end()
    assert (code, out) == (0, ["ended"])
    left = (
        "1 message of Pub('t') is not known to have been received by subscribers that no "
        "coordinator has named yet"
    )
    assert sum(line.endswith(left) for line in err) == 1


# --- fork and multiprocessing -----------------------------------------------------------


@posix
def test_forks_in_mid_flow_disturb_neither_parent_nor_child() -> None:
    """Threads put and take while the process forks: the child's end ends nothing of the parent's,
    and what the children put with Pubs of their own arrives."""
    with coordinator_in_thread() as coordinator:
        out = run_python(
            """
            import os, sys, threading, warnings
            warnings.simplefilter("ignore")
            from pubsub import Peer, Pub, Sub
            CHILDREN, EACH = 8, 50
            here, there = Peer(), Peer()
            sub, children = there.sub("flow"), there.sub("children")
            pub = here.pub("flow")
            stop = threading.Event()
            put = 0
            def putting():
                global put
                while not stop.is_set():
                    pub.put(put)
                    put += 1
                    if put % 100 == 0:
                        stop.wait(0.001)
            got = []
            def taking():
                got.extend(sub)
            threads = [threading.Thread(target=t) for t in (putting, taking)]
            for thread in threads:
                thread.start()
            pids = []
            for child in range(CHILDREN):
                pid = os.fork()
                if not pid:
                    try:
                        mine = Pub("children")
                        for i in range(EACH):
                            mine.put((child, i))
                        mine.close()
                        grandchild = os.fork()
                        if not grandchild:
                            with Peer() as peer:
                                assert peer.peer_id not in (here.peer_id, there.peer_id)
                            os._exit(0)
                        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
                    except BaseException:
                        import traceback
                        traceback.print_exc()
                        os._exit(1)
                pids.append(pid)
            for pid in pids:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            stop.set()
            threads[0].join()
            pub.flush(30)
            while len(got) < put:
                pass
            assert got == list(range(put)), (len(got), put)
            assert sub.lost == 0
            theirs = [children.get(timeout=30) for _ in range(CHILDREN * EACH)]
            for child in range(CHILDREN):
                assert [i for c, i in theirs if c == child] == list(range(EACH))
            sub.close()
            threads[1].join()
            here.close()
            there.close()
            print("done")
            """,
            PUBSUB_COORDINATOR=coordinator.address,
        )
    assert out == "done\n"


@posix
def test_a_fork_inside_an_event_loop_leaves_the_parent_whole() -> None:
    with coordinator_in_thread() as coordinator:
        out = run_python(
            """
            import asyncio, os, warnings
            warnings.simplefilter("ignore")
            from pubsub import Peer, Pub, Sub, WrongContext
            async def main():
                async with Peer() as here, Peer() as there:
                    sub, pub = await there.sub("t"), await here.pub("t")
                    for i in range(100):
                        pub.put(i)
                        if i % 20 == 10:
                            pid = os.fork()
                            if not pid:
                                try:
                                    pub.put(i)
                                except WrongContext:
                                    os._exit(0)
                                os._exit(1)
                            assert os.waitpid(pid, 0)[1] == 0
                        assert await sub.get(timeout=30) == i
                    assert sub.lost == 0
            asyncio.run(main())
            print("done")
            """,
            PUBSUB_COORDINATOR=coordinator.address,
        )
    assert out == "done\n"


POOL = """
import multiprocessing, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from pubsub import Peer, Pub, Sub

def work(number):
    pub = Pub("results")
    for i in range(20):
        pub.put((number, i))
    pub.close()
    return number

def answer(topic):
    with Pub(topic + "/back") as back, Sub(topic) as sub:
        back.put("ready")
        back.put(sub.get(timeout=30))

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context(sys.argv[1])
    results = Sub("results")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert sorted(pool.map(work, range(6))) == list(range(6))
    got = [results.get(timeout=30) for _ in range(6 * 20)]
    for number in range(6):
        assert [i for n, i in got if n == number] == list(range(20))
    back, pub = Sub("question/back"), Pub("question")
    process = context.Process(target=answer, args=("question",))
    process.start()
    assert back.get(timeout=30) == "ready"
    pub.put({"x": 1})
    assert back.get(timeout=30) == {"x": 1}
    process.join(30)
    assert process.exitcode == 0
    print("done")
"""


@posix
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_and_processes_of_every_start_method_talk_both_ways(
    method: str, tmp_path: Path
) -> None:
    script = tmp_path / "main.py"
    script.write_text(POOL)
    with coordinator_in_thread() as coordinator:
        done = subprocess.run(
            [sys.executable, str(script), method],
            env={**os.environ, "PUBSUB_COORDINATOR": coordinator.address},
            capture_output=True,
            text=True,
            timeout=2 * LONG,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
