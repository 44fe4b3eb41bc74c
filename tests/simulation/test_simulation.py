"""The promises, in simulated worlds: every seed another one. See `world.py` for the profiles.

`make soak SEEDS=10000` runs more of them. A failure prints the command that runs its seed again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.simulation.seeds import SEEDS
from tests.simulation.world import PROFILES, World, simulate

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = 50
"""Of each profile. What a test runs is the same every time; `make soak` goes further."""


@pytest.mark.parametrize("seed", range(RUNS))
def test_g4_g9_nothing_is_lost_where_nothing_is_wrong(seed: int) -> None:
    """G1 to G4, G6 and G9: with slow networks and Subs, small buffers and cancelled awaits."""
    simulate(seed, "calm")


@pytest.mark.parametrize("seed", range(RUNS))
def test_g5_links_that_break_lose_nothing(seed: int) -> None:
    """Resets in the middle of frames, black holes, partitions, stopped processes."""
    simulate(seed, "links")


@pytest.mark.parametrize("seed", range(RUNS))
def test_g5_where_not_everybody_can_dial_everybody_nothing_is_lost(seed: int) -> None:
    """Of many pairs, one cannot dial the other: it is refused, or never answered."""
    simulate(seed, "walls")


@pytest.mark.parametrize("seed", range(RUNS))
def test_g7_streams_go_on_while_coordinators_die_and_come_back(seed: int) -> None:
    """And a Sub that was ready before is due the first message of every new Pub (G4)."""
    simulate(seed, "discovery")


@pytest.mark.parametrize("seed", range(RUNS))
def test_g8_those_that_die_take_no_place_with_them(seed: int) -> None:
    """With a reset, where their hosts live; and those that live lose nothing, with or without."""
    simulate(seed, "deaths")


@pytest.mark.parametrize("seed", range(RUNS))
def test_g1_g2_g3_every_message_is_accounted_for_whatever_happens(seed: int) -> None:
    """All faults at once, for any time, and peers that die."""
    simulate(seed, "chaos")


@pytest.mark.parametrize("seed", range(RUNS))
def test_nobody_is_let_in_without_the_key_and_a_change_of_it_loses_nothing(seed: int) -> None:
    """Nor in the place of another. With proofs, with TLS, and with certificates."""
    pytest.importorskip("cryptography", reason="some worlds have TLS")
    simulate(seed, "keys")


@pytest.mark.parametrize("seed", range(RUNS))
def test_who_has_both_rights_gets_all_and_nobody_else_anything(seed: int) -> None:
    """Whatever coordinators say, and while rights change and are revoked."""
    pytest.importorskip("cryptography", reason="some worlds have TLS")
    simulate(seed, "rights")


@pytest.mark.parametrize("profile", ["keys", "rights"])
def test_a_seed_is_the_same_run_every_time_with_tls(profile: str) -> None:
    """Though its keys, and the lengths of its signatures, are others each time."""
    pytest.importorskip("cryptography", reason="these worlds have TLS")
    secured = (seed for seed in range(RUNS) if World(seed, profile).credentials.tls)
    for seed in islice(secured, 3):
        assert simulate(seed, profile) == simulate(seed, profile), seed


@pytest.mark.parametrize(("seed", "profile"), SEEDS)
def test_what_a_seed_once_found_stays_found(seed: int, profile: str) -> None:
    simulate(seed, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_is_the_same_run_every_time(profile: str) -> None:
    if profile in ("keys", "rights"):
        pytest.importorskip("cryptography", reason="some worlds have TLS")
    first = simulate(7, profile)
    rubbish = [bytearray(n) for n in range(1000)]  # other addresses, so other orders in sets
    assert simulate(7, profile) == first
    assert len(rubbish) == 1000
    assert simulate(8, profile).trace != first.trace


def test_a_seed_is_the_same_run_whatever_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loggers have let through in other worlds, whose times were the same, leaves no
    warning of this one unheard."""
    first: list[str] = []
    again: list[str] = []
    simulate(7, "chaos", first)
    assert any(" log of " in line for line in first)
    for name in ("pubsub", "pubsub.link", "pubsub.sub"):
        logger = logging.getLogger(name)
        assert logger.filters
        monkeypatch.setattr(logger, "filters", [lambda record: False])
    simulate(7, "chaos", again)
    assert again == first
    assert not logging.getLogger("pubsub").filter(logging.makeLogRecord({}))  # they are back


def test_a_seed_is_the_same_run_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where strings have other hashes, and so sets of them another order; and where the program
    has another name, as that which runs a seed again has."""
    code = "from tests.simulation.world import simulate; print(simulate(7, 'chaos').trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    monkeypatch.setattr(sys, "argv", ["another-program-with-a-longer-name"])
    assert traces == {str(simulate(7, "chaos").trace)}
