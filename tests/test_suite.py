"""The suite is the same however it is started, and in however many workers it runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.integration import support

ROOT = Path(__file__).resolve().parent.parent


def test_no_signal_is_ignored() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_no_signal_is_ignored_either_where_the_suite_is_started_so() -> None:
    """As by `nohup make test &`."""
    run = subprocess.run(
        [
            *("/bin/sh", "-c", 'trap "" INT TERM; exec "$@"', "sh", sys.executable, "-m", "pytest"),
            *("-p", "no:cacheprovider", f"{__file__}::{test_no_signal_is_ignored.__name__}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_workers_take_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[int] = set()
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        found |= set(islice(support._ports(), 5_000))
    assert len(found) == 15_000
    assert 10_000 <= min(found) <= max(found) < 32_000


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    port, other = support.free_port(), support.free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(support, "_next_ports", iter([port, other]))
        assert support.free_port() == other
