"""No bytes that a stranger sends raise anything but the documented errors, hang, or fill memory.

A few seconds of it run with the other tests. ``make fuzz`` runs it for longer: with atheris, which
follows the coverage, where that is installed; else these tests, again and again with other bytes.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

# Run again and again, each run must be another one.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
anew: Any = {"derandomize": False, "database": None} if SECONDS else {}


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


scripts = st.binary(max_size=300) | st.builds(
    _noise, st.integers(0, 2**32), st.integers(100, 2_000)
)


@pytest.mark.timeout(60 + 2 * SECONDS)
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=300,
        suppress_health_check=list(HealthCheck),
        **anew,
    )
    @given(scripts)
    @example(b"")
    def run(raw: bytes) -> None:
        target(raw)

    end = time.monotonic() + SECONDS / len(TARGETS)
    run()
    while time.monotonic() < end:
        run()
