from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Start, daemon, processes
from tests.faults.proxy import WAY

HERE = Path(__file__).parent
KEYED = (
    "test_doctor.py",
    "test_ends.py",
    "test_holders.py",
    "test_machines.py",
    "test_memory.py",
    "test_networks.py",
    "test_renewal.py",
    "test_resources.py",
    "test_rotation.py",
    "test_security.py",
    "test_signals.py",
    "test_strangers.py",
    "test_users.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Here strangers speak, and proxies lie between the two ends of a connection: everything is
    open, but where keys are what is tested."""
    for item in items:
        if HERE in item.path.parents and item.path.name not in KEYED:
            item.add_marker(pytest.mark.insecure)


@pytest.fixture(autouse=True)
def _by_tcp(request: pytest.FixtureRequest) -> None:
    """What fails here is TCP, unless ``PUBSUB_TEST_WAY=unix`` says otherwise: of this process and
    (see `worker`) of others."""
    if WAY != "unix" and "by_unix" not in request.fixturenames:
        request.getfixturevalue("by_tcp")


@pytest.fixture
def by_unix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the processes that the test starts, peers have Unix sockets."""
    monkeypatch.setenv("PUBSUB_TEST_WAY", "unix")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and ends all of them after the test."""
    with processes() as start:
        yield start


@pytest.fixture
def address(start: Start) -> str:
    """Of a coordinator in a process of its own."""
    return daemon(start)[1]
