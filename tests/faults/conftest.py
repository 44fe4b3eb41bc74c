from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.processes import Start, daemon, processes


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and ends all of them after the test."""
    with processes() as start:
        yield start


@pytest.fixture
def address(start: Start) -> str:
    """Of a coordinator in a process of its own."""
    return daemon(start)[1]
