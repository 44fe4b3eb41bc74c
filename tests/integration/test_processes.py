"""Real processes: the end of a process, fork, and who may start whom."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pubsub import Peer
from tests.integration.support import LONG, coordinator_in_thread, python, run_python

BLOCKING = """
    from pubsub import Pub
    pub = Pub("t")
    for i in range(1000): pub.put(i)
"""
ASYNC = """
    import asyncio
    from pubsub import Pub
    async def main():
        pub = Pub("t")
        for i in range(1000): pub.put(i)
    asyncio.run(main())
"""
EXIT = """
    import sys
    from pubsub import Pub
    pub = Pub("t")
    for i in range(1000): pub.put(i)
    sys.exit(0)
"""
DROPPED = """
    from pubsub import Peer
    def work():
        pub = Peer().pub("t")
        for i in range(1000): pub.put(i)
    work()
"""
DROPPED_IN_A_LOOP = """
    import asyncio
    from pubsub import Peer
    async def main():
        pub = Peer().pub("t")
        for i in range(1000): pub.put(i)
    asyncio.run(main())
"""
NOT_AWAITED = """
    import asyncio
    from pubsub import Peer
    async def main():
        peer = Peer()
        pub = peer.pub("t")
        for i in range(1000): pub.put(i)
        peer.close()
    asyncio.run(main())
"""
CANCELLED = """
    import asyncio, contextlib
    from pubsub import Peer
    async def main():
        peer = Peer()
        pub = await peer.pub("t")
        await pub.wait_for_subscribers()
        for i in range(1000): pub.put(i)
        first, second = (asyncio.ensure_future(peer.close()) for _ in range(2))
        first.cancel()
        await second
        assert not first.done() or first.cancelled()
        assert peer.runtime.subscribers.closed
    asyncio.run(main())
"""
IN_A_THREAD = """
    import threading
    from pubsub import Peer
    peer = Peer()
    pub = peer.pub("t")
    for i in range(1000): pub.put(i)
    threading.Thread(target=peer.close, daemon=True).start()
    peer.close()
    assert peer.runtime.subscribers.closed
"""
TAKE = """
    from pubsub import Sub
    sub = Sub("t")
    print("ready", flush=True)
    got = [sub.get(timeout=30) for _ in range(1000)]
    assert got == list(range(1000)), got
    assert sub.lost == 0
    print("all", flush=True)
"""


@pytest.fixture
def coordinator() -> Iterator[str]:
    with coordinator_in_thread() as coordinator:
        yield coordinator.address


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(BLOCKING, id="blocking"),
        pytest.param(ASYNC, id="async"),
        pytest.param(EXIT, id="exit"),
        pytest.param(DROPPED, id="a Peer that nobody holds"),
        pytest.param(DROPPED_IN_A_LOOP, id="a Peer in a loop that nobody holds"),
        pytest.param(NOT_AWAITED, id="a close that is not awaited"),
        pytest.param(CANCELLED, id="a close of which one caller is cancelled"),
        pytest.param(IN_A_THREAD, id="a close in another thread"),
    ],
)
def test_g9_a_process_that_puts_and_ends_has_sent_everything(coordinator: str, script: str) -> None:
    subscriber = python(TAKE, PUBSUB_COORDINATOR=coordinator)
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline() == "ready\n"
    assert run_python(script, PUBSUB_COORDINATOR=coordinator) == ""
    out, err = subscriber.communicate(timeout=30)
    assert (out, err) == ("all\n", "")


MAIN = """
import asyncio, logging, sys, threading
logging.getLogger("asyncio").setLevel("ERROR")  # a callback that is slow is no news
from pubsub import Pub, Sub
async def main():
    global pub  # which nobody closes
    pub = await Pub("t")
    for i in range(1000): pub.put([i, b"x" * 20_000])
"""
RUNNERS = {
    "a loop that stands still": "asyncio.new_event_loop().run_until_complete(main())",
    "a loop that is closed": """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
""",
    "a loop that is stopped": """
loop = asyncio.new_event_loop()
task = loop.create_task(main())
task.add_done_callback(lambda task: loop.stop())
loop.run_forever()
""",
    "a loop that is left by sys.exit": """
async def leave():
    await main()
    sys.exit()
asyncio.new_event_loop().run_until_complete(leave())
""",
    "a loop that was run in a thread": """
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
thread.start()
thread.join()
""",
    "a loop that runs in a daemon thread": """
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(main(), loop).result()
""",
    "asyncio.run in a daemon thread, where tasks wait": """
put = threading.Event()
async def take():
    async with Sub("nothing") as sub: await sub.get()
async def loop_over():
    async for value in await Sub("nothing"): print(value)
async def wait():
    await Pub("nobody").wait_for_subscribers()
async def go_on():
    tasks = [asyncio.ensure_future(task()) for task in (take, loop_over, wait)]
    await main()
    put.set()
    await asyncio.gather(*tasks)
threading.Thread(target=asyncio.run, args=(go_on(),), daemon=True).start()
put.wait()
""",
    "asyncio.run in a daemon thread, which ends at the same time": """
put = threading.Event()
async def tell():
    await main()
    await pub.wait_for_subscribers()
    put.set()
threading.Thread(target=asyncio.run, args=(tell(),), daemon=True).start()
put.wait()
while not pub.peer.runtime.shut_down: pass  # from here on, its loop waits for the subscriber
""",
    "uvloop.run": "import uvloop; uvloop.run(main())",
    "a loop of uvloop's that stands still": """
import uvloop
uvloop.new_event_loop().run_until_complete(main())
""",
    "a loop of uvloop's that is closed": """
import uvloop
loop = uvloop.new_event_loop()
loop.run_until_complete(main())
loop.close()
""",
    "nest_asyncio": "import nest_asyncio; nest_asyncio.apply(); asyncio.run(main())",
}
TAKE_FROM_RUNNER = TAKE.replace("sub.get(timeout=30)", "sub.get(timeout=30)[0]")


@pytest.mark.parametrize("runner", RUNNERS)
def test_g9_whatever_ran_its_loop_a_process_has_sent_everything(
    coordinator: str, runner: str
) -> None:
    for optional in ("uvloop", "nest_asyncio"):
        if optional in runner:
            pytest.importorskip(optional)
    subscriber = python(TAKE_FROM_RUNNER, PUBSUB_COORDINATOR=coordinator)
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline() == "ready\n"
    # in the development mode, which tells what is left open
    run = python(MAIN + RUNNERS[runner], PUBSUB_COORDINATOR=coordinator, PYTHONDEVMODE="1")
    assert run.communicate(timeout=LONG) == ("", "")
    out, err = subscriber.communicate(timeout=LONG)
    assert (run.returncode, out, err) == (0, "all\n", "")


def test_g9_what_is_put_at_an_asyncio_prompt_is_sent(coordinator: str) -> None:
    subscriber = python(TAKE, PUBSUB_COORDINATOR=coordinator)
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline() == "ready\n"
    prompt = subprocess.run(
        [sys.executable, "-m", "asyncio"],
        input="from pubsub import Pub\n"
        "pub = await Pub('t')\n"
        "await pub.put_many(list(range(1000)))\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
        timeout=LONG,
    )
    out, err = subscriber.communicate(timeout=LONG)
    assert (prompt.returncode, out, err) == (0, "all\n", "")


CLOSED = """
import asyncio, sys
from pubsub import Pub
async def main(subscribers):
    global pub
    pub = await Pub("t")
    await pub.wait_for_subscribers(subscribers)
    for i in range(1000): pub.put(i)
loop = asyncio.new_event_loop()
loop.run_until_complete(main(int(sys.argv[1])))
type(loop).close(loop)  # without what `close` of this loop does first
"""
NEXT = """
async def other():
    await Pub("other")
    print("made")
asyncio.run(other())
"""


@pytest.mark.parametrize("when", ["at the end", "when the next is made"])
def test_g9_a_loop_that_was_closed_too_early_says_how_many_were_not_sent(
    coordinator: str, when: str
) -> None:
    with Peer(coordinator) as peer:
        sub = peer.sub("t")
        again = when != "at the end"
        out = run_python(CLOSED + again * NEXT, "1", PUBSUB_COORDINATOR=coordinator)
        assert out == again * "made\n" + (
            "an event loop was closed before all was sent (`await pub.close()` before that, or "
            "asyncio.run, sends it): 1,000 messages of Pub('t') are not known to have been "
            f"received by {peer.address}#1 (attached, 1,000 behind)\n"
        )
        sub.close()
    assert run_python(CLOSED, "0", PUBSUB_COORDINATOR=coordinator) == "", "nothing was due"


@pytest.mark.parametrize(
    "wait", ["list(sub)", "sub.get()", "sub.get(timeout=60)", "sub.get_many()"]
)
def test_g9_a_process_ends_while_a_thread_waits_in_get(coordinator: str, wait: str) -> None:
    out = run_python(
        f"""
        import threading
        from pubsub import Sub
        sub = Sub("t")
        threading.Thread(target=lambda: {wait}, daemon=True).start()
        print("done")
        """,
        PUBSUB_COORDINATOR=coordinator,
    )
    assert out == "done\n"


def test_g9_an_async_process_ends_with_everything_open(coordinator: str) -> None:
    out = run_python(
        """
        import asyncio
        from pubsub import Pub, Sub
        async def main():
            pub, sub = await Pub("a"), await Sub("b")
            asyncio.ensure_future(sub.get())
            await asyncio.sleep(0)
            print("done")
        asyncio.run(main())
        """,
        PUBSUB_COORDINATOR=coordinator,
    )
    assert out == "done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_after_a_fork_the_child_makes_its_own_and_the_parents_is_refused(coordinator: str) -> None:
    out = run_python(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from pubsub import Pub, Sub, WrongContext
        pub, sub = Pub("t"), Sub("t")
        pub.put("before")
        pid = os.fork()
        if not pid:
            refused = lambda: pub.put(1), lambda: sub.get(timeout=1), pub.flush, pub.peer.stats
            for call in refused:
                try:
                    call()
                except WrongContext as error:
                    assert "fork" in str(error)
                else:
                    os._exit(1)
            mine = Pub("t")
            mine.put("from the child")
            mine.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [sub.get(timeout=10), sub.get(timeout=10)] == ["before", "from the child"]
        print("done")
        """,
        PUBSUB_COORDINATOR=coordinator,
    )
    assert out == "done\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX start methods")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_g9_a_multiprocessing_child_delivers_what_it_put(
    coordinator: str, method: str, tmp_path: object
) -> None:
    script = os.path.join(str(tmp_path), "main.py")
    with open(script, "w") as file:
        file.write(
            """
import multiprocessing, sys, warnings
from pubsub import Pub, Sub

def child():
    pub = Pub("t")
    for i in range(100):
        pub.put(i)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sub = Sub("t")
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    assert [sub.get(timeout=30) for _ in range(100)] == list(range(100))
    process.join()
    print("done")
"""
        )
    out = run_python(
        f"import runpy, sys; sys.argv = ['main.py', {method!r}]; "
        f"runpy.run_path({script!r}, run_name='__main__')"
        if method == "fork"
        else f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, {script!r}, "
        f"{method!r}]))",
        PUBSUB_COORDINATOR=coordinator,
    )
    assert out == "done\n"


def test_without_a_daemon_the_first_process_is_the_coordinator() -> None:
    out = run_python(
        """
        import pubsub.config
        from tests.integration.support import free_port
        pubsub.config.DEFAULT_COORDINATOR = pubsub.config.Address("127.0.0.1", free_port())
        from pubsub import Pub, Sub
        sub, pub = Sub("t"), Pub("t")
        pub.put({"x": 1})
        print(sub.get(timeout=10))
        """,
        PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    )
    assert out == "{'x': 1}\n"


ONE_LARGE_PUT_EACH = """
    import asyncio, os, sys
    from pubsub import Pub

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    async def main():
        values = {
            "bytes": b"x" * 900_000,
            "text": "x" * 900_000,
            "both": {"bytes": b"x" * 100_000, "text": "x" * 900_000},
        }
        pubs = [await Pub(f"t/{number}") for number in range(300)]
        before = resident()
        for pub in pubs:
            await pub.put(values[sys.argv[1]])
            await asyncio.sleep(0)
        assert not any(pub._publication.log.size for pub in pubs)
        print(resident() - before)

    asyncio.run(main())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize("value", ["bytes", "text", "both"])
def test_g6_a_pub_that_has_put_something_large_keeps_nothing_of_it(value: str) -> None:
    """300 of them kept 260 to 530 MiB of what they had packed it in; malloc may keep 62 of it."""
    with coordinator_in_thread() as coordinator:
        said = run_python(ONE_LARGE_PUT_EACH, value, PUBSUB_COORDINATOR=coordinator.address)
    assert int(said) < 130
