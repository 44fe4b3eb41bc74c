"""`make bench` works: every contender with every workload, in small; nothing about speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guarantees

ROOT = Path(__file__).resolve().parent.parent

LIARS = '''
"""Contenders that do not do what they should."""

import os
import socket
import sys
import time

from benchmarks.contenders import stream


class _Publisher(stream._Publisher):
    async def send_all(self, values):
        await super().send_all([v for v in values if v.get("id") != 100])


class Lossy(stream.Stream):
    name = "lossy"

    async def open_publisher(self, meeting):
        return _Publisher(await stream._accept(meeting))


class Hanging(stream.Stream):
    name = "hanging"

    async def open_subscriber(self, meeting):
        print("I shall sleep", file=sys.stderr)
        time.sleep(1000)


class Crashing(stream.Stream):
    name = "crashing"

    async def open_subscriber(self, meeting):
        raise RuntimeError("no such luck")


class Dying(stream.Stream):
    name = "dying"

    async def open_subscriber(self, meeting):
        os._exit(7)


class Missing(stream.Stream):
    name = "missing"
    packages = ("no_such_package",)
    programs = ("no-such-program",)


CONTENDERS = (Lossy(), Hanging(), Crashing(), Dying(), Missing())
'''


def bench(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module", autouse=True)
def runs(folder: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The two runs that take long, at once: one waits most of its time."""
    (folder / "theirs").mkdir()
    (folder / "theirs" / "__init__.py").touch()
    (folder / "theirs" / "liars.py").write_text(LIARS)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ("--smoke", "--faces=none", "--only=small-dict", "--patience=2.5")
    started = {
        "smoke": bench("--smoke", "--json", str(folder / "figures.json")),
        "liars": bench(*options, "--peers=theirs.liars,stream", PYTHONPATH=paths),
    }
    yield started
    for run in started.values():
        run.kill()
        run.communicate()


def test_smoke(runs: dict[str, subprocess.Popen[str]], folder: Path) -> None:
    run = runs["smoke"]
    out, err = run.communicate(timeout=50)
    assert run.returncode == 0, err
    assert "FAILED" not in out
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    assert figures["machine"]["cpus"] == os.cpu_count()
    assert {"pubsubd", "msgpack"} <= set(figures["versions"])
    contenders, left_out = figures["contenders"], figures["left_out"]
    assert {"pubsub-async", "pubsub-blocking", "sockets"} <= set(contenders)
    assert "stream" in contenders or left_out == {"stream": "package uvloop"}
    for contender in contenders.values():
        assert contender["title"] in out
        assert contender["how"]
    done = {(result["workload"], result["contender"]) for result in figures["results"]}
    for workload in ("small-dict", "1-kib", "round-trip"):
        for face in ("pubsub-async", "pubsub-blocking"):
            assert (workload, face) in done
    for result in figures["results"]:
        assert not result["failures"]
        (measured,) = result["rounds"]
        if result["workload"] == "round-trip":
            assert measured["trips"] == 100
            assert 0 < measured["p50"] <= measured["p99"] <= measured["p999"]
        else:
            assert measured["rate"] > 0
            assert measured["messages"] > 0
            assert measured["seconds"] >= 0.02
            assert measured["publisher"]["cpu_seconds"] > 0
            assert measured["subscriber"]["cpu_seconds"] > 0


def test_failures_are_told_from_figures(runs: dict[str, subprocess.Popen[str]]) -> None:
    pytest.importorskip("uvloop")
    run = runs["liars"]
    out, err = run.communicate(timeout=50)
    assert run.returncode == 1, err
    lines = out.splitlines()
    (lossy,) = [line for line in lines if line.startswith("FAILED small-dict, lossy")]
    assert ": 1 of " in lossy
    assert "loss is no rate" in lossy
    assert "FAILED small-dict, hanging: hanging (subscribe): no 'proven' within 2.5 s" in out
    assert "I shall sleep" in out
    assert "FAILED small-dict, crashing" in out
    assert "RuntimeError: no such luck" in out
    assert "FAILED small-dict, dying: dying (subscribe): it ended with exit code 7" in out
    assert "Left out: missing (missing: package no_such_package, program no-such-program)" in out
    assert "FAILED small-dict, stream" not in out


def test_wrong_arguments() -> None:
    complaints = {
        "--only=speed": "there is no 'speed'; there are throughput, latency",
        "--peers=zmq": "there is no 'zmq'",
        "--peers=no.such.module": "'no.such.module' cannot be imported",
        "--faces=upper": "there is no 'upper'; there are pubsub-async, pubsub-blocking",
        "--rounds=0": "--rounds 0 is below 1",
    }
    started = {argument: bench(argument) for argument in complaints}
    for argument, run in started.items():
        out, err = run.communicate(timeout=50)
        assert run.returncode == 2
        assert complaints[argument] in err
        assert not out


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_no_process_is_left_behind() -> None:
    pytest.importorskip("uvloop")
    options = ("--faces=none", "--peers=stream", "--only=small-dict", "--seconds=100")
    ways = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    started = {way: bench(*options) for way in ways}
    try:
        for way, run in started.items():
            children: list[int] = []
            while len(children) < 2:  # the publisher and the subscriber
                assert run.poll() is None
                time.sleep(0.01)
                children = _children(run.pid)
            run.send_signal(way)
            _, err = run.communicate(timeout=20)
            if way == signal.SIGINT:
                assert run.returncode == 130
                assert err.splitlines()[-1] == "interrupted"
            while any(map(_alive, children)):
                time.sleep(0.01)
    finally:
        for run in started.values():
            run.kill()
            run.communicate()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, file.read_text().split())
    return found


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_the_figures_of_the_guarantees_can_be_measured() -> None:
    """With few subscribers and little time: whether it works, not what comes out."""
    few = guarantees.memory(20)
    assert few["subscribers"] == 20
    assert set(few["a_connection_each"]) == {"attached_kib", "after_messages_kib"}
    found = guarantees.isolation(seconds=0.5, rounds=1)
    assert found["rate_alone"] > 0
    assert found["rate_beside_slow_ones"] > 0
