"""What others are told of this process is decoration: it prevents nothing."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import pytest

from pubsub import Peer
from pubsub.support.about import about, plain
from pubsub.support.occupants import occupant
from tests.integration.support import coordinator_in_loop, python, run_python

pytestmark = pytest.mark.loop

BROKEN: dict[str, Any] = {
    "empty": [],
    "missing": None,
    "no text": [None],
    "bytes": [b"/x/a.py"],
    "an empty name": [""],
    "not UTF-8": ["/x/\udcff.py"],
    "newline and ESC": ["a\x1b[31m\nb.py"],
    "long": ["\N{GRINNING FACE}" * 5_000],
}


def unlucky() -> str:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("hostname", [lambda: "h\udcff\n", unlucky], ids=["not UTF-8", "raises"])
async def test_a_name_that_is_broken_prevents_no_connection(
    monkeypatch: pytest.MonkeyPatch, kind: str, hostname: Any
) -> None:
    if BROKEN[kind] is None:
        monkeypatch.delattr(sys, "argv")
    else:
        monkeypatch.setattr(sys, "argv", BROKEN[kind])
    monkeypatch.setattr(socket, "gethostname", hostname)
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), await here.pub("t")
        pub.put(1)
        assert await sub.get(timeout=30) == 1


def test_a_name_of_a_peer_may_be_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/prog.py"])
    assert about()["name"] == "prog.py"
    assert about("me")["name"] == "me"
    assert about("\udcff\n")["name"] == r"\udcff\n"
    assert about()["pid"] == os.getpid()


def test_plain_text_can_be_encoded_and_stands_in_one_line() -> None:
    for text in ("a\nb", "\x1b[31m", "\udcff", "x" * 5_000, "\u2028", "größe", 5, None):
        found = plain(text)
        assert (found.encode() and found.isprintable()) or not isinstance(text, str)
        assert len(found) <= 255
    assert plain("größe") == "größe"


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="no /proc: it cannot be found out")
def test_the_process_that_listens_at_a_port_is_found() -> None:
    code = """
        import socket, sys
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()
    """
    process = python(code)
    assert process.stdout is not None
    assert process.stdin is not None
    port = int(process.stdout.readline())
    assert occupant(port).startswith(f"pid {process.pid} '{os.path.basename(sys.executable)} -c ")
    process.communicate()
    assert occupant(port) == "the process that listens there"


def test_a_command_of_a_program_without_a_name_asks_as_well() -> None:
    code = """
        import sys
        del sys.argv
        from pubsub.cli.asking import ask
        from pubsub.errors import CoordinatorUnavailable
        from pubsub.config import Address
        from pubsub.trust.guard import Guard
        try:
            ask(Address("127.0.0.1", 1), "topics", Guard())
        except CoordinatorUnavailable as error:
            print(error)
    """
    assert "nothing listens there" in run_python(code)
