"""What a daemon tells systemd, and how its lines stand in the journal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pubsub.cli.systemd import Formatter
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests.cli.processes import LONG, Start, execute
from tests.integration.support import free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="systemd is Linux's")


@contextmanager
def manager(where: str) -> Iterator[socket.socket]:
    """What stands behind NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{where[1:]}" if where.startswith("@") else where)
        sock.settimeout(LONG)
        yield sock


def told(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


@pytest.mark.parametrize("kind", ["path", "abstract"])
@pytest.mark.parametrize("what", ["coordinator", "relay"])
def test_systemd_hears_when_it_listens_reloads_and_ends(
    start: Start, tmp_path: Path, kind: str, what: str
) -> None:
    if kind == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    where = f"@pubsubd-{tmp_path}" if kind == "abstract" else str(tmp_path / "s")
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    with manager(where) as sock:
        process = start(
            *("pubsubd", what, "--port", "0", "--key-file", str(tmp_path / "key")),
            NOTIFY_SOCKET=where,
        )
        ready, status = told(sock)
        assert ready == "READY=1"
        said = process.err()  # it is there before systemd goes on
        assert status == f"STATUS={said.removeprefix('pubsubd: ')}"
        with socket.create_connection(("127.0.0.1", _port(status)), LONG):
            pass
        process.signal(signal.SIGHUP)
        reloading, at = told(sock)
        assert reloading == "RELOADING=1"
        assert at.startswith("MONOTONIC_USEC=")
        assert told(sock) == ["READY=1"]
        process.signal(signal.SIGTERM)
        assert told(sock) == ["STOPPING=1", "STATUS="]
        assert process.wait() == 0


def _port(status: str) -> int:
    return int(status.partition(" on ")[2].split(",")[0].split(" ")[0].rpartition(":")[2])


def test_the_relay_beside_a_coordinator_tells_systemd_nothing(start: Start, tmp_path: Path) -> None:
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    with manager(str(tmp_path / "s")) as sock:
        process = start(
            *("pubsubd", "coordinator", "--port", "0", "--relay"),
            *("--key-file", str(tmp_path / "key")),
            NOTIFY_SOCKET=str(tmp_path / "s"),
        )
        while not process.err().startswith("pubsubd: relay on "):
            pass
        assert told(sock)[0] == "READY=1"
        process.signal(signal.SIGTERM)
        assert told(sock)[0] == "STOPPING=1"
        assert process.wait() == 0
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(4096)


def test_one_who_cannot_be_told_stops_nothing(start: Start, tmp_path: Path) -> None:
    process = start("pubsubd", "coordinator", "--port", "0", NOTIFY_SOCKET=str(tmp_path / "none"))
    assert process.err().startswith("pubsubd: coordinator on ")
    assert "NOTIFY_SOCKET cannot be told: " in process.err()
    process.signal(signal.SIGTERM)
    assert process.end()[0] == 0


def test_in_the_journal_lines_have_a_priority_and_no_time() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, socket.create_server(("127.0.0.1", 0)) as taken:
            status = os.fstat(theirs.fileno())
            port = str(taken.getsockname()[1])
            done = subprocess.run(
                [sys.executable, "-m", "pubsub.cli.pubsubd", "coordinator", "--port", port],
                stderr=theirs.fileno(),
                env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
                timeout=LONG,
            )
        assert done.returncode == 1
        assert ours.recv(4096).decode() == (
            f"<3>pubsubd: 127.0.0.1:{port} is in use: another coordinator may be running\n"
        )
    # where standard error was redirected afterwards, the variable says nothing
    result = execute("pubsubd", "health", f"127.0.0.1:{free_port()}", JOURNAL_STREAM="1:2")
    assert result.err.startswith("pubsubd: ")


def test_each_line_of_a_record_has_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("pubsub", logging.WARNING, "", 0, "one\n%s", ("two",), None)
    monkeypatch.setattr("pubsub.cli.systemd.prefix", lambda level: "<4>")
    assert Formatter().format(record) == "<4>pubsub: one\n<4>two"
    monkeypatch.setattr("pubsub.cli.systemd.prefix", lambda level: "")
    assert Formatter().format(record).endswith(" WARNING pubsub: one\ntwo")
