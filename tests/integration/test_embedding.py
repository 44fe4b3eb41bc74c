"""What programs do to whatever they embed: close standard input, end the main thread first, patch
threads, carry context variables, fork."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pubsub import Peer
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    eventually,
    free_port,
    run_python,
)

pytestmark = pytest.mark.loop


@pytest.fixture
def coordinator() -> Iterator[str]:
    with coordinator_in_thread() as server:
        yield server.address


GOT = """
    def got(value):
        assert value == 1
        if sys.stdout is not None:
            print("got", value, flush=True)
"""
BLOCKING = (
    GOT
    + """
    def use():
        with Sub("t") as sub, Pub("t") as pub:
            pub.put(1)
            got(sub.get(timeout=15))
"""
)
ASYNC = (
    GOT
    + """
    async def main():
        async with Sub("t") as sub, Pub("t") as pub:
            pub.put(1)
            got(await sub.get(timeout=15))
    def use():
        asyncio.run(main())
"""
)
FACES = pytest.mark.parametrize(
    "face", [pytest.param(BLOCKING, id="blocking"), pytest.param(ASYNC, id="async")]
)


# --- the end of the main thread ---------------------------------------------------------


@FACES
@pytest.mark.parametrize(
    "late",
    [
        pytest.param("threading.Thread(target=late).start()", id="a worker"),
        pytest.param("atexit.register(late)", id="an exit function"),
    ],
)
def test_g9_the_first_pub_may_come_after_the_main_thread(
    coordinator: str, face: str, late: str
) -> None:
    """Wherever Python still starts threads (not 3.12), or none is needed. What is put is sent."""
    with Peer(coordinator) as peer, peer.sub("more") as sub:
        loop = type(peer.runtime.loop).__module__
        out = run_python(
            f"""
    import asyncio, atexit, sys, threading
    from pubsub import Pub, Sub, WrongContext
    {face}
    def more():
        pub = Pub("more")
        pub.put_many(range(100))
        print(type(pub.peer.runtime.loop).__module__)
    async def async_more():
        more()
    def late():
        if threading.current_thread() is not threading.main_thread():
            threading.main_thread().join()
        try:
            use()
        except WrongContext as error:
            print(error)
        else:
            {"more()" if face is BLOCKING else "asyncio.run(async_more())"}
        try:
            threading.Thread(target=print, args=("starts threads",)).start()
        except RuntimeError:
            print("starts no threads")
    {late}
            """,
            PUBSUB_COORDINATOR=coordinator,
        )
        if face is BLOCKING and "starts no threads" in out:
            assert out.startswith("Python is ending and starts no thread any more: make the first")
        else:
            assert out.startswith(f"got 1\n{loop if face is BLOCKING else 'asyncio'}")
            assert [sub.get(LONG) for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("imported", ["", "import pubsub"])
def test_g3_a_pub_that_nobody_would_close_any_more_is_refused(imported: str) -> None:
    out = run_python(
        f"""
        import atexit, logging
        def late():
            import pubsub
            try:
                pubsub.Pub("t")
            except pubsub.WrongContext as error:
                print(error)
        atexit.register(late)
        {imported}
        """
    )
    assert out == (
        "the process is ending, and its Peers are closed already: an exit function that makes a "
        "Pub, Sub or Peer must be registered after `import pubsub`\n"
    )


# --- standard input, output and error ---------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("closed", "numbers"), [("<&-", [0]), ("<&- >&- 2>&-", [0, 1, 2])])
@FACES
def test_what_was_closed_of_standard_input_and_output_is_never_ours(
    coordinator: str, face: str, closed: str, numbers: list[int]
) -> None:
    code = f"""
    import asyncio, os, sys
    from pubsub import Pub, Sub
    {face}
    use()
    if {face is BLOCKING}:  # else it is the program's own loop that has them
        for number in {numbers}:
            assert os.readlink(f"/proc/self/fd/{{number}}") == os.devnull
    os._exit(7)
    """
    shell = f'exec "$0" -c "$1" {closed}'
    process = subprocess.run(
        ["sh", "-c", shell, sys.executable, textwrap.dedent(code)],
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
        timeout=LONG,
        check=False,
        stderr=None if "2>&-" in closed else subprocess.PIPE,
        text=True,
    )
    assert process.returncode == 7, process.stderr


# --- context variables ------------------------------------------------------------------

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


class Value:
    """Something large, of one request."""


def with_a_value(use: Any) -> tuple[Any, weakref.ref[Value]]:
    """What `use` returns, called where a context variable has a value."""

    def call() -> tuple[Any, weakref.ref[Value]]:
        value = Value()
        variable.set(value)
        return use(), weakref.ref(value)

    return contextvars.copy_context().run(call)


def collected(value: weakref.ref[Value]) -> bool:
    gc.collect()
    return value() is None


async def test_the_runtime_keeps_no_context_variable_of_its_callers() -> None:
    async with coordinator_in_loop() as address, Peer(address) as there:
        far = await there.sub("**")

        def use() -> Any:
            peer = Peer(address)
            return peer, peer.pub("t"), peer.sub("t"), peer.sub("far")

        (peer, pub, sub, other), value = with_a_value(use)
        await pub
        await sub
        await eventually(lambda: collected(value))
        _, value = with_a_value(lambda: (pub.put(1), other.close(), there.pub("far").put(2)))
        assert [await far.get(LONG), await far.get(LONG)] in ([1, 2], [2, 1])
        assert await sub.get(LONG) == 1
        await eventually(lambda: collected(value))
        await peer.close()


@pytest.mark.parametrize("kind", ["pub", "sub"])
async def test_what_waits_to_be_ready_keeps_no_context_variable_of_who_made_it(kind: str) -> None:
    async with Peer(f"127.0.0.1:{free_port()}", connect_timeout=500, linger=0) as peer:
        made, value = with_a_value(lambda: peer.pub("t") if kind == "pub" else peer.sub("t"))
        await eventually(lambda: collected(value))
        made.close()


async def test_a_link_that_breaks_in_its_callers_turn_keeps_no_context_variable_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with coordinator_in_loop() as at, Peer(at) as here, Peer(at) as there:
        pub, subs = await here.pub("t"), [await there.sub("t") for _ in range(2)]
        (remote,) = there.runtime.publishers.remotes.values()
        link = remote.link
        assert link is not None
        monkeypatch.setattr(link, "flush", lambda: 1 / 0)
        closing, value = with_a_value(subs[0].close)
        await closing
        await eventually(lambda: remote.link not in (None, link) and subs[1].publishers)
        await pub.put("on it goes")
        assert await subs[1].get(LONG) == "on it goes"
        await eventually(lambda: collected(value))


def test_the_runtime_of_a_thread_keeps_no_context_variable_of_its_callers(
    coordinator: str,
) -> None:
    def use() -> Any:
        peer = Peer(coordinator)
        pub, sub = peer.pub("t"), peer.sub("t")
        pub.put(1)
        assert sub.get(LONG) == 1
        return peer, pub, sub

    (peer, _, _), value = with_a_value(use)
    peer._call(lambda: None)
    asyncio.run(eventually(lambda: collected(value)))
    peer.close()


async def test_a_log_handler_sees_no_context_variable_of_who_made_the_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Any] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(variable.get(None))

    handler = Handler()
    logging.getLogger("pubsub").addHandler(handler)
    try:
        peer, _ = with_a_value(lambda: Peer(f"127.0.0.1:{free_port()}"))
        await eventually(lambda: seen)  # that there is no coordinator
        await peer.close()
    finally:
        logging.getLogger("pubsub").removeHandler(handler)
    assert set(seen) == {None}


# --- forks ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_forked_child_keeps_no_connection_of_its_parents_in_whatever_state() -> None:
    """Strangers at the doors of a Peer and of its embedded coordinator, who have said nothing."""
    out = run_python(
        f"""
        import os, socket, time, warnings
        warnings.simplefilter("ignore")
        import pubsub.config
        pubsub.config.DEFAULT_COORDINATOR = pubsub.config.Address("127.0.0.1", {free_port()})
        from pubsub import Peer
        peer, other = Peer(), Peer()
        sub, pub = peer.sub("t"), other.pub("t")
        pub.put("before"); assert sub.get(timeout=15) == "before"
        strangers = []
        for address in (peer.address, *map(str, peer.coordinators)):
            host, port = address.rsplit(":", 1)
            strangers.append(socket.create_connection((host, int(port))))
        embedded = peer.runtime.embedded.coordinator or other.runtime.embedded.coordinator
        while not (len(peer.runtime.doors.doorman) and len(embedded._doorman)):
            time.sleep(0.01)
        def sockets():
            found = set()
            for number in map(int, os.listdir("/proc/self/fd")):
                try:
                    with socket.socket(fileno=os.dup(number)) as sock:
                        if sock.family == socket.AF_INET:
                            found.add(number)
                except OSError:
                    pass
            return found - {{stranger.fileno() for stranger in strangers}}
        ours = sockets()
        assert len(ours) > 6
        pid = os.fork()
        if not pid:
            os._exit(len(sockets()) + any(map(os.get_inheritable, ours)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pub.put("on it goes")
        print(sub.get(timeout=15))
        """
    )
    assert out.startswith("on it goes\n")


# --- green threads ----------------------------------------------------------------------

PATCHES = {"gevent": "import gevent.monkey; gevent.monkey.patch_all(", "eventlet": ""}
PATCHES["eventlet"] = "import eventlet; eventlet.monkey_patch("


def green(kind: str, coordinator: str, code: str, options: str = "") -> str:
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    return run_python(
        f"""
    import asyncio, faulthandler, sys, warnings
    faulthandler.dump_traceback_later(20, exit=True)
    warnings.simplefilter("ignore")
    {PATCHES[kind]}{options})
    from pubsub import Peer, Pub, Sub, WrongContext
    {code}
        """,
        PUBSUB_COORDINATOR=coordinator,
    )


@pytest.mark.parametrize("kind", PATCHES)
@pytest.mark.parametrize("options", ["", "thread=False"])
def test_where_threads_are_replaced_what_blocks_says_so_at_once(
    coordinator: str, kind: str, options: str
) -> None:
    """Or where what a loop of plain asyncio waits by is. (uvloop does without.)"""
    code = """
    for make in (Peer, lambda: Pub("t"), lambda: Sub("t")):
        try:
            make()
        except WrongContext as error:
            print(error)
    """
    out = green(kind, coordinator, code, options).splitlines()
    if options and not out:
        return
    assert len(out) == 3
    assert set(out) == {out[0]}
    assert out[0].startswith(f"{kind} has replaced Python's threads")
    assert "(thread=False, select=False)" in out[0]


@pytest.mark.parametrize("kind", PATCHES)
@pytest.mark.parametrize(
    ("face", "options"), [(ASYNC, ""), (BLOCKING, "thread=False, select=False")]
)
def test_what_is_advised_where_threads_are_replaced_works(
    coordinator: str, kind: str, face: str, options: str
) -> None:
    assert green(kind, coordinator, f"{face}\n    use()", options) == "got 1\n"
