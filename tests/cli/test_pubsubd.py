"""`pubsubd coordinator` as a process: how it starts, how it refuses to, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pubsub import Peer
from pubsub.cli import pubsubd
from pubsub.cli.pubsubd import _how_to_reach, _in_use
from pubsub.config import Address
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests.cli.processes import Start, daemon, execute
from tests.integration.support import free_port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_quietly(start: Start, number: int) -> None:
    process, where = daemon(start)
    with Peer(where) as peer:
        assert peer.pub("t").topic == "t"
        process.signal(number)
        assert process.end() == (0, [], [])


def test_it_comes_back_on_its_port(start: Start) -> None:
    port = free_port()
    first, where = daemon(start, port)
    with Peer(where) as peer:
        sub = BlockingSub("t", peer=peer)
        first.signal(signal.SIGKILL)
        first.wait()
        daemon(start, port)
        with Peer(where) as other:
            pub = BlockingPub("t", peer=other)
            pub.wait_for_subscribers(timeout=30)
            pub.put("again")
            assert sub.get(timeout=30) == "again"


def test_a_port_in_use_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = execute("pubsubd", "coordinator", "--port", str(port))
    assert (result.code, result.out) == (1, b"")
    assert result.err == (
        f"pubsubd: 127.0.0.1:{port} is in use: another coordinator may be running\n"
    )


def test_who_may_have_the_default_port_is_said_and_what_to_do() -> None:
    text = _in_use(Address("127.0.0.1", 7700))
    assert text.startswith("127.0.0.1:7700 is in use: another coordinator may be running, or ")
    assert "a program that uses the default address has taken over as coordinator" in text
    assert "set PUBSUB_COORDINATOR=127.0.0.1:7700 for the programs" in text


def test_a_program_with_the_variable_does_not_take_over(start: Start, topic: str) -> None:
    """What the message and the help of `pubsubd coordinator` advise."""
    default = """
import sys
import pubsub.config, pubsub.cli.pubsub
pubsub.config.DEFAULT_COORDINATOR = pubsub.config.parse_address(sys.argv.pop(1))
pubsub.cli.pubsub.main()
"""
    for variable in (True, False):
        port = free_port()
        first, where = daemon(start, port)
        tail = start(
            *("python", "-c", default, where, "tail", topic), coordinator=where if variable else ""
        )
        with Peer(where) as peer:
            BlockingPub(topic, peer=peer).wait_for_subscribers(timeout=30)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        lines = [tail.err()]
        while not re.search("trying on|is the coordinator now", lines[-1]):
            lines.append(tail.err())
        if variable:
            assert lines[-1].endswith("trying on")
            daemon(start, port)
        else:
            assert lines[-1].endswith("this process is the coordinator now")
            result = execute("pubsubd", "coordinator", "--port", str(port))
            assert result.code == 1
            assert "is in use" in result.err


def test_it_takes_all_file_descriptors_that_it_may_have() -> None:
    pytest.importorskip("resource")
    source = """
import asyncio, resource
from pubsub.cli import pubsubd
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
pubsubd.run = lambda serving: print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
pubsubd._serve = lambda *args: None
pubsubd.pubsubd(["coordinator"])
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_other_machines_are_let_in_only_with_a_key_or_insecure(host: str) -> None:
    result = execute("pubsubd", "coordinator", "--port", "0", "--host", host)
    assert (result.code, result.out) == (2, b"")
    assert len(result.err.splitlines()) == 1
    assert "add --insecure" in result.err
    assert "no key says who may connect from there" in result.err
    assert "pubsubd key new FILE" in result.err


def test_insecure_says_so(start: Start) -> None:
    process = start(*("pubsubd", "coordinator", "--port", "0", "--host", "0.0.0.0", "--insecure"))
    line = process.err()
    assert line.startswith("pubsubd: coordinator on 0.0.0.0:")
    assert line.endswith(", open to everyone who can reach it (--insecure)")
    port = line.split(",")[0].rpartition(":")[2]
    way = re.escape(
        "pubsubd: programs on this machine and others reach it with PUBSUB_COORDINATOR="
    )
    said = re.fullmatch(rf"{way}([^\s:;]+):{port}(; or at \S.*)?", process.err())
    assert said
    assert not said[1].startswith(("127.", "0.0.0.0"))


def test_all_addresses_are_said_and_one_of_them_is_to_be_copied() -> None:
    hosts = ["127.0.0.1", "10.77.1.1", "::1", "fd77::1"]
    assert _how_to_reach([Address(host, 7700) for host in hosts]) == (
        "programs on this machine and others reach it with PUBSUB_COORDINATOR=10.77.1.1:7700; "
        "or at [fd77::1]:7700"
    )


def test_a_machine_that_knows_no_address_of_its_own_has_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pubsubd, "_own_addresses", lambda *, ipv6: ["127.0.1.1"])
    monkeypatch.setattr(socket, "gethostname", lambda: "head")
    assert _how_to_reach([Address("0.0.0.0", 7700)]).endswith(" PUBSUB_COORDINATOR=head:7700")


def test_a_name_for_loopback_is_loopback(start: Start) -> None:
    _, where = daemon(start, 0, "--host", "localhost")
    assert where.startswith(("127.", "[::1]"))


@pytest.mark.parametrize(
    ("host", "why"), [("no.such.host.invalid", "--host no.such.host.invalid: "), ("8.8.8.8", "")]
)
def test_an_address_that_is_not_ours_is_one_line_and_exit_code_1(host: str, why: str) -> None:
    result = execute(*("pubsubd", "coordinator", "--host", host, "--port", "0", "--insecure"))
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(f"pubsubd: {why or 'cannot listen on 8.8.8.8:0: '}")


def test_it_logs_what_it_is_asked_to(start: Start) -> None:
    process = start("pubsubd", "coordinator", "--port", "0", "--log-level", "INFO")
    assert "INFO pubsub.coordinator: listening on 127.0.0.1:" in process.err()


def test_garbage_is_cut_off_and_logged_in_a_line(start: Start) -> None:
    process, where = daemon(start)
    host, _, port = where.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while connection.recv(4096):
            pass
    line = process.err()
    assert "WARNING pubsub.link: " in line
    assert line.endswith("; the connection is cut")


# --- pubsubd health ---------------------------------------------------------------------------


def health(*args: str, coordinator: str | None = None) -> tuple[int, str]:
    result = execute("pubsubd", "health", *args, coordinator=coordinator)
    assert result.out == b""
    return result.code, result.err


def test_health_is_good_where_a_coordinator_answers(start: Start) -> None:
    process, where = daemon(start)
    assert health(where) == (0, "")
    assert health(coordinator=where) == (0, "")
    assert health(f"127.0.0.1:1,{where}") == (0, "")
    process.signal(signal.SIGSTOP)
    assert health(where, "--timeout", "0.5") == (
        1,
        f"pubsubd: no coordinator at {where}: no answer within 0.5 s\n",
    )
    process.signal(signal.SIGCONT)
    assert health(where) == (0, "")
    process.kill()
    assert health(where) == (
        1,
        f"pubsubd: no coordinator at {where}: nothing listens there (connection refused)\n",
    )


def test_health_is_bad_where_something_else_answers(start: Start, tmp_path: Path) -> None:
    _, where = daemon(start)
    with Peer(where) as peer:
        sub = peer.sub("t")
        code, said = health(peer.address)
        assert code == 1
        assert "this is a peer, not a coordinator" in said
        del sub
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    code, said = health(where, "--key-file", str(tmp_path / "key"))
    assert code == 1
    assert said.startswith(f"pubsubd: the coordinator at {where}: ")
    assert said.count("\n") == 1


def test_health_takes_no_longer_than_it_may() -> None:
    """One who answers a little now and then takes no more time than one who is silent."""

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            for _ in range(300):
                connection.sendall(b"\0")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            with suppress(OSError):
                drip(listening.accept()[0])

        threading.Thread(target=serve, daemon=True).start()
        began = time.monotonic()
        code, said = health(f"127.0.0.1:{port}", "--timeout", "1")
        assert code == 1
        assert said.startswith(f"pubsubd: no coordinator at 127.0.0.1:{port}: ")
        assert time.monotonic() - began < 15
