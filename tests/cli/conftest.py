"""A coordinator process for each test module, and processes that end with the test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.cli.processes import Start, daemon, processes


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as starter:
        yield starter


@pytest.fixture(scope="module")
def coordinator() -> Iterator[str]:
    """Where a `pubsubd coordinator` listens."""
    with processes() as starter:
        yield daemon(starter)[1]


@pytest.fixture
def topic() -> str:
    """A topic that no other test has: a coordinator remembers killed processes for a while."""
    return f"test/{secrets.token_hex(4)}"
