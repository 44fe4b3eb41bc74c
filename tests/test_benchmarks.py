"""`make bench` works: every contender with every workload, in small; nothing about speed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import guarantees
from benchmarks.__main__ import BEGIN, END, SUMMARY
from benchmarks.contenders import MODULES, load
from benchmarks.coordinator.report import judged
from benchmarks.courses.arrays import HEAD, PAGE, look, stamp
from benchmarks.goals import GOALS, Goal, judge
from benchmarks.goals import PEERS as PEERS_ALL
from benchmarks.packing import join, packer, split, unpack
from benchmarks.report import COLUMNS
from benchmarks.results import Result
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent

LIARS = '''
"""Contenders that do not do what they should."""

import os
import socket
import sys
import time

from benchmarks.contenders import sockets, stream


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


class _Skipping(sockets.Publisher):
    def send(self, array):
        number = array[:8].view("i8")[0]
        if number != 1:
            self._connections[0].sendall(array)


class _Tearing(sockets.Publisher):
    def send(self, array):
        if array[:8].view("i8")[0] == 1:
            array[-4096:] = 0
        self._connections[0].sendall(array)


class Skipping(sockets.Sockets):
    name = "skipping"
    kind = "peer"
    groups = frozenset(("arrays",))
    workloads = frozenset(("array-1",))
    arrays = _Skipping

    def open_arrays(self, meeting):
        return self.arrays(sockets._accept(meeting))

    def open_array_subscriber(self, meeting):
        import numpy as np

        subscriber = sockets.Subscriber(sockets._connect(meeting))

        def take():
            array = np.empty(meeting.shape, np.uint8)
            subscriber._read(memoryview(array))
            return array

        subscriber.take = take
        return subscriber


class Tearing(Skipping):
    name = "tearing"
    arrays = _Tearing


CONTENDERS = (Lossy(), Hanging(), Crashing(), Dying(), Missing(), Skipping(), Tearing())
'''


PEERS = "stream,sockets,msgpack,pyzmq-nodrop,zenoh-tcp,iceoryx2,nats-py,redis-py"


ONLY = "1-kib,64-kib,fan-out-1,rate-1k,topics-each,join,idle"


CHANNELS = "tls-small-dict,tls-round-trip,tls-first-message,tls-return,tls-strangers"


ARRAYS = "array-3,frames-120-1,killed"


OF_ARRAYS = "pyzmq-nodrop,zenoh-shm,zenoh-provider,iceoryx2,cyclonedds"


WAYS = "ways-small-dict,ways-round-trip,ways-first-message,ways-stream,ways-circuits"


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
    """The runs that take long, at once: one waits most of its time."""
    (folder / "theirs").mkdir()
    (folder / "theirs" / "__init__.py").touch()
    (folder / "theirs" / "liars.py").write_text(LIARS)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ("--smoke", "--faces=none", "--only=small-dict,array-1", "--patience=12")
    names = ("ours", "peers", "channels", "ways", "arrays", "others")
    ours, peers, channels, ways, arrays, others = (
        ("--write", str(folder / name)) for name in names
    )
    for name in names:
        (folder / name).mkdir()
    started = {
        # 8 MiB and many processes take their time even in small; `make bench` has them.
        "peers": bench("--smoke", "--only=small-dict,round-trip", "--peers=" + PEERS, *peers),
        "ours": bench("--smoke", "--only=" + ONLY, "--peers=protocol,bare", *ours),
        "channels": bench("--smoke", "--only=" + CHANNELS, "--peers=protocol", *channels),
        "ways": bench("--smoke", "--only=" + WAYS, "--peers=forwarder", *ways),
        "arrays": bench("--smoke", "--only=" + ARRAYS, "--peers=protocol", *arrays),
        "others": bench(
            "--smoke", "--faces=none", "--only=array-1", "--peers=" + OF_ARRAYS, *others
        ),
        "liars": bench(*options, "--peers=theirs.liars,stream", PYTHONPATH=paths),
    }
    yield started
    for run in started.values():
        run.kill()
        run.communicate()


_outputs: dict[int, tuple[str, str]] = {}


def _ended(run: subprocess.Popen[str]) -> tuple[str, str]:
    """What it has written; several tests may ask."""
    if run.pid not in _outputs:
        _outputs[run.pid] = run.communicate(timeout=55)
    return _outputs[run.pid]


def _figures(runs: dict[str, subprocess.Popen[str]], folder: Path, name: str) -> dict[str, Any]:
    """Of a run that must have gone well."""
    out, err = _ended(runs[name])
    assert runs[name].returncode == 0, err
    assert "FAILED" not in out
    figures: dict[str, Any] = json.loads((folder / name / "benchmarks.json").read_text())
    for contender in figures["contenders"].values():
        assert contender["title"] in out
        assert contender["how"]
    return figures


def test_every_contender_works(runs: dict[str, subprocess.Popen[str]], folder: Path) -> None:
    figures = _figures(runs, folder, "peers")
    assert figures["machine"]["cpus"] == os.cpu_count()
    assert {"pubsubd", "msgpack"} <= set(figures["versions"])
    contenders, left_out = figures["contenders"], figures["left_out"]
    assert {"pubsub-async", "pubsub-blocking", "sockets", "msgpack"} <= set(contenders)
    for name in PEERS.split(","):
        assert name in contenders or "package" in left_out[name] or "program" in left_out[name]
    for name in contenders:
        assert any(result["contender"] == name for result in figures["results"])
    _check(figures)


def test_every_kind_of_workload_works(runs: dict[str, subprocess.Popen[str]], folder: Path) -> None:
    figures = _figures(runs, folder, "ours")
    done = {(result["workload"], result["contender"]) for result in figures["results"]}
    for workload in figures["workloads"]:
        for face in ("pubsub-async", "pubsub-blocking"):
            assert (workload["name"], face) in done
    _check(figures)


def test_plain_proof_and_tls_are_measured_side_by_side(
    runs: dict[str, subprocess.Popen[str]], folder: Path
) -> None:
    pytest.importorskip("cryptography")
    figures = _figures(runs, folder, "channels")
    found = {(r["workload"], r["contender"]): r for r in figures["results"]}
    names = ("pubsub-plain", "pubsub-proof", "pubsub-tls")
    assert set(found) == {(workload, name) for workload in CHANNELS.split(",") for name in names}
    for (workload, name), result in found.items():
        (measured,) = result["rounds"]
        assert not result["failures"]
        if workload == "tls-return":
            assert measured["peers"] == 20
            assert measured["last_after"] >= measured["half_after"] > 0
        elif workload == "tls-strangers":
            assert ("most_kib" in measured) == (name == "pubsub-tls")
        else:
            assert measured.get("rate", measured.get("p50")) > 0


def test_the_ways_are_measured_side_by_side(
    runs: dict[str, subprocess.Popen[str]], folder: Path
) -> None:
    pytest.importorskip("cryptography")
    figures = _figures(runs, folder, "ways")
    found = {(r["workload"], r["contender"]): r for r in figures["results"]}
    names = {"pubsub-direct", "pubsub-reverse", "pubsub-relay", "pubsub-forwarded"}
    between = {("ways-stream", "relay"), ("ways-stream", "forwarder"), ("ways-circuits", "relay")}
    if not (shutil.which("socat") or shutil.which("haproxy")):
        for name in ("pubsub-forwarded", "forwarder"):
            assert "program socat or haproxy" in figures["left_out"][name]
        names.remove("pubsub-forwarded")
        between.remove(("ways-stream", "forwarder"))
    messages = WAYS.split(",")[:3]
    assert set(found) == {(workload, name) for workload in messages for name in names} | between
    for (workload, _), result in found.items():
        (measured,) = result["rounds"]
        assert not result["failures"]
        if workload == "ways-circuits":
            assert measured["circuits"] == 20
            assert measured["circuit_kib"] >= 0
        else:
            assert measured.get("rate", measured.get("p50")) > 0


def test_arrays_are_measured_and_checked(
    runs: dict[str, subprocess.Popen[str]], folder: Path
) -> None:
    pytest.importorskip("numpy")
    figures = _figures(runs, folder, "arrays")
    found = {(r["workload"], r["contender"]): r for r in figures["results"]}
    faces = ("pubsub-async", "pubsub-blocking")
    assert set(found) == {(workload, face) for workload in ARRAYS.split(",") for face in faces}
    for (workload, _), result in found.items():
        (measured,) = result["rounds"]
        assert not result["failures"]
        if workload == "killed":
            assert measured["descriptors"] == measured["mappings"] == 0
        else:
            assert measured["messages"] > 0
            assert 0 < measured["p50"] <= measured["p99"]
            assert measured["cpu_ms"] > 0
    others = _figures(runs, folder, "others")
    done = {result["contender"] for result in others["results"]}
    for name in OF_ARRAYS.split(","):
        assert name in done or "package" in others["left_out"][name]
    assert not any(result["failures"] for result in others["results"])


def test_torn_arrays_are_found_out() -> None:
    np = pytest.importorskip("numpy")
    array = np.ones((300, 64, 3), np.uint8)
    for number in (-1, 0, 5, 1000):
        stamp(array, number, PAGE)
        assert look(array, PAGE)[0] == number
    array.reshape(-1)[HEAD + 3 * PAGE] += 1
    with pytest.raises(RuntimeError, match="array 1000 is torn"):
        look(array, PAGE)


def _check(figures: dict[str, Any]) -> None:
    """Every measurement has plausible figures."""
    groups = {workload["name"]: workload["group"] for workload in figures["workloads"]}
    for result in figures["results"]:
        assert not result["failures"]
        assert not result["no_rate"]
        (measured,) = result["rounds"]
        if groups[result["workload"]] == "idle":
            assert measured["rss_mib"] > 0
        elif "p50" in measured:
            assert measured["count"] >= 3
            assert 0 < measured["p50"] <= measured["p99"] <= measured["p999"]
        else:
            assert measured["rate"] > 0
            if result["contender"] != "msgpack":
                assert measured["messages"] > 0
                assert measured["seconds"] >= 0.02
                assert measured["publisher"]["cpu_seconds"] > 0
                assert measured["subscriber"]["cpu_seconds"] > 0


def test_the_documentation_is_written(
    runs: dict[str, subprocess.Popen[str]], folder: Path, tmp_path: Path
) -> None:
    """From the figures alone it comes out the same, and the page keeps what others wrote."""
    _figures(runs, folder, "ours")
    made = folder / "ours"
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmarks.md").write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\nmore\n")
    begin, end = SUMMARY
    (tmp_path / "README.md").write_text(f"# Mine\n\n{begin}\nold\n{end}\nmore\n")
    again = bench("--from", str(made / "benchmarks.json"), "--write", str(docs))
    out, err = again.communicate(timeout=50)
    assert again.returncode == 0, err
    for name in ("benchmarks.json", "benchmarks.svg"):
        assert (docs / name).read_text() == (made / name).read_text()
    page = (docs / "benchmarks.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    for text, last in ((page, END), (readme, end)):
        assert text.startswith("# Mine\n")
        assert text.endswith(f"{last}\nmore\n")
        assert "old" not in text
    assert "| 1 KiB bytes a second" in readme
    assert "pubsubd, async" in readme
    assert page.partition(BEGIN)[2].partition(END)[0] in (made / "benchmarks.md").read_text()
    assert "**1 KiB bytes**" in out
    root = ElementTree.fromstring((made / "benchmarks.svg").read_text())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pubsubd, async face", "1 KiB bytes: MB/s (more is better)"} <= texts


def _result(workload: str, contender: str, *rates: float, **more: Any) -> Result:
    return Result(workload, contender, [{"rate": rate} for rate in rates], **more)


def test_goals_are_judged_against_the_best_rival() -> None:
    kinds = {"pubsub-async": "ours", "a": "peer", "b": "peer", "ceiling": "ceiling"}
    goal = Goal("it", "w", "rate", "least", 2.0, PEERS_ALL)
    results = {
        ("w", "pubsub-async"): _result("w", "pubsub-async", 10, 30, 20),
        ("w", "a"): _result("w", "a", 5, 5, 9),
        ("w", "b"): _result("w", "b", 8, 8, 8),
        ("w", "ceiling"): _result("w", "ceiling", 1000),
    }
    (verdict,) = judge(goal, results, kinds)
    assert (verdict.against, verdict.ours, verdict.theirs) == ("b", 20, 8)
    assert verdict.ratio == 2.5
    assert verdict.met
    results["w", "b"] = _result("w", "b", 800, 800, no_rate=["lost 3%"])  # which is no rate
    (verdict,) = judge(goal, results, kinds)
    assert (verdict.against, verdict.ratio) == ("a", 4)
    results["w", "pubsub-async"] = _result("w", "pubsub-async", 9, failures=["no"])
    (verdict,) = judge(goal, results, kinds)
    assert verdict.met is None


def test_goals_of_each_round() -> None:
    kinds = {"pubsub-async": "ours", "a": "peer"}
    goal = Goal("it", "w", "rate", "least", 1.6, ("a",), each_round=True)
    results = {
        ("w", "pubsub-async"): _result("w", "pubsub-async", 20, 20, 15),
        ("w", "a"): _result("w", "a", 10, 10, 10),
    }
    (verdict,) = judge(goal, results, kinds)
    assert (verdict.ratio, verdict.met) == (1.5, False)
    results["w", "a"].rounds[2]["rate"] = 9
    (verdict,) = judge(goal, results, kinds)
    assert verdict.met


def test_goals_without_a_rival() -> None:
    kinds = {"pubsub-async": "ours", "bare": "ceiling"}
    results = {
        ("w", "pubsub-async"): _result("w", "pubsub-async", 30),
        ("v", "pubsub-async"): _result("v", "pubsub-async", 60),
        ("w", "bare"): _result("w", "bare", 25),
    }
    (above,) = judge(Goal("it", "w", "rate", "most", 6, unit="MiB", less="bare"), results, kinds)
    assert (above.ratio, above.met) == (5, True)
    (own,) = judge(Goal("it", "w", "rate", "least", 0.6, ("self",), "v"), results, kinds)
    assert (own.ratio, own.met) == (0.5, False)
    (below,) = judge(Goal("it", "w", "rate", "most", 1, ("self",), strictly=True), results, kinds)
    assert (below.ratio, below.met) == (1, False)
    assert judge(Goal("it", "w", "rate", "most", 1, faces=("other",)), results, kinds) == []


def test_every_goal_can_be_judged() -> None:
    workloads = {workload.name for workload in WORKLOADS}
    contenders = {name for module in MODULES for name in load(module)}
    for goal in GOALS:
        assert {goal.workload, goal.beside or goal.workload} <= workloads
        assert goal.less in {"", *contenders}
        if goal.against != PEERS_ALL:
            assert set(goal.against) <= {"self", *contenders}
        figures = {column[0] for columns in COLUMNS.values() for column in columns}
        assert goal.figure in figures


@pytest.mark.parametrize("value", [{"id": 1}, 7, b"x" * 100_000, {}, 0, b""])
def test_what_is_packed_comes_out_again(value: Any) -> None:
    assert unpack(packer()(value)) == value
    if not isinstance(value, int) and value != {"id": 1}:
        head, body = split(value)
        assert join(head, memoryview(body)) == value


def test_arrays_are_packed() -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(20_000, dtype=np.float32).reshape(100, 200)
    for found in (unpack(packer()({"a": array})), join(*split({"a": array}))):
        assert (found["a"] == array).all()
        assert found["a"].dtype == array.dtype


def test_failures_are_told_from_figures(runs: dict[str, subprocess.Popen[str]]) -> None:
    pytest.importorskip("uvloop")
    run = runs["liars"]
    out, err = _ended(run)
    assert run.returncode == 1, err
    lines = out.splitlines()
    (lossy,) = [line for line in lines if line.startswith("FAILED small-dict, lossy")]
    assert ": 1 of " in lossy
    assert "loss is no rate" in lossy
    assert "FAILED small-dict, hanging: hanging (subscribe): no 'proven' within 12 s" in out
    assert "I shall sleep" in out
    assert "FAILED small-dict, crashing" in out
    assert "RuntimeError: no such luck" in out
    assert "FAILED small-dict, dying: dying (subscribe): it ended with exit code 7" in out
    assert "Left out: missing (missing: package no_such_package, program no-such-program)" in out
    assert "FAILED small-dict, stream" not in out
    if "Left out: array-1" not in out:  # without numpy
        assert "array 2 came where 1 was due" in out
        assert "array 1 is torn" in out


def test_wrong_arguments() -> None:
    complaints = {
        "--only=speed": "there is no 'speed'; there are throughput, latency",
        "--peers=mqtt": "there is no 'mqtt'",
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


def test_the_figures_of_the_guarantees_can_be_measured(tmp_path: Path) -> None:
    """With few subscribers and little time: whether it works, not what comes out."""
    file = tmp_path / "figures.json"
    how = ("memory", "--subscribers", "20", "--json", str(file))
    command = [sys.executable, "-m", "benchmarks.guarantees", *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    few = json.loads(file.read_text())["memory"]
    assert few["subscribers"] == 20
    assert set(few["a_connection_each"]) == {"attached_kib", "after_messages_kib"}
    found = guarantees.isolation(seconds=0.5, rounds=1)
    assert found["rate_alone"] > 0
    assert found["rate_beside_slow_ones"] > 0
    sent = guarantees.deliveries(5, 10)
    assert set(sent["a_connection_each"]) == {"us_with_8_bytes", "us_with_60000_bytes"}


def test_the_coordinators_benchmark_works(tmp_path: Path) -> None:
    """With few peers and little time: whether it works, not what comes out."""
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.coordinator", "--small", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["goals"] == [], "so few are no ground to judge"
    for way in ("together", "one_by_one"):
        assert figures["registrations"][way]["per_second"] > 0
    for name in ("sub_knows", "its_publisher_knows", "all_100_publishers_know"):
        told = figures["matching"][name]
        assert 0 < told["p50_ms"] <= told["p99_ms"] <= told["most_ms"]
    assert figures["memory"]["with_registrations_mib"] > 0
    (restarted,) = figures["restart"]["restarts"]
    assert sum(restarted["came"]) == 20
    assert sum(restarted["registered"]) == 402
    assert not restarted["failed_while_up"]
    assert figures["herd"]["ends"] == {"served": 20}
    for line in figures["curve"].values():
        assert all(point["cpu_us"] > 0 for point in line)
    assert figures["topic"]["subs"]
    for heading in ("registrations", "CPU µs", "peers back, by tenths of a second"):
        assert heading in done.stdout


def test_the_coordinators_goals_are_judged() -> None:
    few = {
        "registrations": {"together": {"per_second": 29_999}},
        "memory": {"registration_kib": 1.5, "peer_kib": 20.1},
    }
    assert [(goal["found"], goal["met"]) for goal in judged(few)] == [
        (29_999, False),
        (1.5, True),
        (20.1, False),
    ]


def test_the_coordinators_benchmark_names_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.coordinator", "speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 2
    assert "there is no 'speed'; there are registrations, matching" in done.stderr
