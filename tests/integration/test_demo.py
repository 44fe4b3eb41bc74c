"""What `make demo` runs, and the other examples, as their readers run them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import LONG, Start, daemon, execute, processes
from tests.integration.support import free_port

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as starter:
        yield starter


def example(name: str, *args: str, coordinator: str | None = None) -> str:
    """Run an example to its end; returns what it printed."""
    env = {**os.environ}
    if coordinator is not None:
        env["PUBSUB_COORDINATOR"] = coordinator
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LONG,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    return run.stdout


def test_the_demo_loses_nothing() -> None:
    shown = example("demo.py", str(free_port()))
    received = r"\s+(\d+)\s+(\d+)\n"
    rows = re.findall(
        f"with the coordinator{received}.*without any coordinator{received}"
        f".*with the new coordinator{received}.*in all{received}",
        shown,
        re.DOTALL,
    )
    numbers = [int(number) for number in rows[0]]
    assert numbers[1::2] == [0, 0, 0, 0]
    assert sum(numbers[0:6:2]) == numbers[6]
    assert numbers[2] > 20
    assert f"pubsub: received {numbers[6]}, lost 0" in shown
    assert "kill -9" in shown
    assert "Nothing was lost." in shown


def descendants(pid: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return {child for child, parent in pairs if parent == pid}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_leaves_no_process_behind(number: int) -> None:
    demo = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py"), str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if '"n": ' in line:
                break
        children = descendants(demo.pid)
        assert len(children) == 3
        demo.send_signal(number)
        assert demo.wait(LONG) == 130
        assert not [pid for pid in children if alive(pid)]
        assert demo.stderr is not None
        assert "Traceback" not in demo.stderr.read()
    finally:
        demo.kill()
        demo.communicate()


@pytest.fixture(scope="module")
def coordinator() -> Iterator[str]:
    with processes() as starter:
        yield daemon(starter)[1]


def test_counters_are_real_numbers(start: Start, coordinator: str) -> None:
    pattern = "machine/*/counters"
    tail = start("pubsub", "tail", pattern, "-n", "3", coordinator=coordinator)
    while f'"{pattern}"' not in execute("pubsub", "topics", "--json", coordinator=coordinator).text:
        time.sleep(0.02)  # from then on it gets every Pub's first message
    example("counters.py", "--count", "3", "--rate", "20", coordinator=coordinator)
    first = tail.out()
    for name in ("n", "cpu_%", "mem_MB", "in_kB/s", "out_kB/s", "load"):
        assert f'"{name}": ' in first
    assert tail.wait() == 0


def test_counters_do_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import counters  # type: ignore[import-not-found]

    monkeypatch.setattr(counters, "PROC", tmp_path / "none")
    row = counters.Counters().read()
    assert row["cpu_%"] is row["mem_MB"] is row["in_kB/s"] is None


def test_the_blocking_pair(coordinator: str) -> None:
    shown = example("blocking.py", coordinator=coordinator)
    assert shown.splitlines()[-1] == "together 30"
    assert len(shown.splitlines()) == 6


def test_the_asynchronous_pair(coordinator: str) -> None:
    shown = example("asynchronous.py", coordinator=coordinator)
    assert len(re.findall("^Message", shown, re.MULTILINE)) == 10


def test_progress_and_control(start: Start, coordinator: str) -> None:
    tail = start("pubsub", "tail", "job/progress", coordinator=coordinator)
    job = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "progress.py"), "--pause", "0.05", "--steps", "2000"],
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert '"step": 0.1}' in tail.out()
        control = start("pubsub", "put", "job/control", '{"step": 0.5}', coordinator=coordinator)
        assert control.end() == (0, [], [])
        while '"step": 0.5}' not in tail.out():
            pass
        control = start("pubsub", "put", "job/control", "stop", coordinator=coordinator)
        assert control.end() == (0, [], [])
        shown, _ = job.communicate(timeout=LONG)
    finally:
        job.kill()
        job.communicate()
    assert shown.splitlines()[:2] == ["told to take steps of 0.5", "told to stop"]
