"""The examples of docs/engines.md, as their readers run them."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.processes import processes
from tests.engines.programs import ENOUGH, EXAMPLES, run
from tests.integration.support import free_port

pytestmark = pytest.mark.timeout(ENOUGH + 30)

SQUARES = str([0, 1, 4, 9])


def progress_of(*tasks: int) -> list[str]:
    return [str({"task": task, "step": step}) for task in tasks for step in (1, 2, 3)]


@pytest.mark.parametrize("engine", ["multiprocessing", "executor", "joblib", "ray"])
def test_tasks_of_a_pool_say_how_far_they_are(engine: str) -> None:
    if engine in ("joblib", "ray"):
        pytest.importorskip(engine)
    shown = run(sys.executable, EXAMPLES / f"{engine}_progress.py")
    *progress, results = (line for line in shown if line.startswith(("{", "[0")))
    assert sorted(progress) == progress_of(0, 1, 2, 3)
    assert results == SQUARES


def test_ranks_of_mpi_say_how_far_they_are() -> None:
    pytest.importorskip("cryptography", reason="TLS certificates are made by it")
    here = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=here) or shutil.which("mpiexec")
    if mpiexec is None or find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py, and an MPI's mpiexec")
    shown = run(mpiexec, "-n", "3", sys.executable, EXAMPLES / "mpi_progress.py")
    assert sorted(shown) == progress_of(1, 2)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_ranks_that_torchrun_starts_say_how_far_they_are(
    order: tuple[int, ...], tmp_path: Path
) -> None:
    """torchrun itself is large: what the example has of it are these variables."""
    pytest.importorskip("cryptography", reason="TLS certificates are made by it")
    key_file = tmp_path / "pubsub.key"
    run(sys.executable, "-m", "pubsub.cli.pubsubd", "key", "new", key_file)
    port = free_port()
    common = {
        "WORLD_SIZE": str(len(order)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port - 1),
        "PUBSUB_KEY_FILE": str(key_file),
    }
    with processes() as start:
        ranks = {}
        for rank in order:
            env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks[rank] = start("python", str(EXAMPLES / "torchrun_progress.py"), **env)
            if rank and rank == order[0]:  # it is early, and says that it waits
                assert "trying on" in ranks[rank].err()
        assert sorted(ranks[0].out() for _ in range(6)) == progress_of(1, 2)
        for running in ranks.values():
            running.wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_in_workers_of_xdist_say_what_they_measure(workers: int, tmp_path: Path) -> None:
    shown = pytest_run(workers, tmp_path)
    measured = [match[1] for line in shown if (match := re.match(r"\{'exponent': (\d)", line))]
    assert sorted(measured) == ["3", "4", "5", "6"]


def pytest_run(workers: int, folder: Path, *args: str, code: int = 0) -> list[str]:
    """Run a copy of the example, which does not have this project's settings."""
    pytest.importorskip("xdist")
    copy = folder / "xdist"
    shutil.copytree(EXAMPLES / "xdist", copy, dirs_exist_ok=True)
    (copy / "pytest.ini").write_text("[pytest]\n")
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio")
    return run(*command, "-n", str(workers), copy, *args, code=code)


def test_a_worker_of_xdist_that_crashes_is_replaced_and_the_next_one_says_what_it_measures(
    tmp_path: Path,
) -> None:
    (tmp_path / "xdist").mkdir()
    (tmp_path / "xdist" / "test_a_crash.py").write_text(
        "import os\ndef test_crash(measured):\n    os._exit(1)\n"
    )
    shown = pytest_run(1, tmp_path, code=1)
    assert any("replacing crashed worker" in line for line in shown)
    measured = [match[1] for line in shown if (match := re.match(r"\{'exponent': (\d)", line))]
    assert sorted(measured) == ["3", "4", "5", "6"]
