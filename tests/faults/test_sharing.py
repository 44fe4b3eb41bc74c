"""Processes that share memory, and are killed: at each step, and at any time (see `sharing`).

The soak itself is ``python -m tests.faults.sharing --kills 1000``.
"""

from __future__ import annotations

import re

import pytest

from pubsub.links import memory
from tests.cli.processes import execute

pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.skipif(not memory.available(), reason="no memory is shared on this system"),
    pytest.mark.usefixtures("by_unix"),
]


def sharing(*args: str) -> tuple[int, str]:
    """Run it; how many were killed, and which steps were never reached."""
    run = execute("python", "-m", "tests.faults.sharing", *args)
    assert run.code == 0, run.err[-4000:] + run.text
    found = re.search(r"(\d+) kills.*\nnot reached: (.*)", run.text)
    assert found is not None, run.text
    return int(found[1]), found[2]


@pytest.mark.parametrize(("role", "steps"), [("pub", 30), ("sub", 20)])
def test_a_process_that_is_killed_at_any_step_of_lending_leaves_nothing(
    role: str, steps: int
) -> None:
    """No loan, block, mapping or descriptor with those that live on, and their account is exact."""
    killed, missed = sharing("--steps", role)
    assert killed == steps
    assert len(missed.split()) <= steps // 2


def test_killed_frozen_and_forked_at_any_time_nothing_is_lost_and_no_view_changes() -> None:
    killed, _ = sharing("--kills", "15", "--each", "15", "--seed", "7")
    assert killed >= 15
