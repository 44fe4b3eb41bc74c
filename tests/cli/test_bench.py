"""`pubsub bench`, between its two processes."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from pubsub.cli.measuring import WINDOW, Flood, limit_of, own_name, percentiles
from pubsub.core.rights import Rights
from pubsub.trust.guard import Guard
from tests.cli.processes import Start, execute
from tests.integration.support import default_guard


def test_it_measures_and_leaves_nothing(coordinator: str) -> None:
    result = execute("pubsub", "bench", "--seconds", "0.2", coordinator=coordinator)
    assert (result.code, result.err) == (0, "")
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.lines)
    assert list(lines) == ["throughput", "round trip", "lost", "messages", "way", "limit"]
    assert re.fullmatch(r"[\d,]+ messages/s, [\d.]+ [kMG]?B/s", lines["throughput"])
    assert re.fullmatch(r"0 of [\d,]+", lines["lost"])
    assert execute("pubsub", "topics", "--json", coordinator=coordinator).text.count("bench") == 0


def test_json_is_for_programs(coordinator: str) -> None:
    result = execute(
        *("pubsub", "bench", "-n", "250", "--size", "100000", "--json"), coordinator=coordinator
    )
    assert result.code == 0
    row = json.loads(result.text)
    assert (row["messages"], row["size"], row["lost"]) == (250, 100_000, 0)
    assert 0 < row["round_trip_p50"] <= row["round_trip_p99"]
    assert row["bytes_per_second"] == pytest.approx(row["messages_per_second"] * 100_000, rel=0.01)
    assert row["way"] in ("unix", "direct")


def test_the_two_sides_may_be_started_by_hand(start: Start, coordinator: str) -> None:
    there = start("pubsub", "bench", "--answer", coordinator=coordinator)
    said = re.fullmatch(r"pubsub: answers; start .* `pubsub bench --with (\S+)`", there.err())
    assert said is not None
    here = execute("pubsub", "bench", "--with", said[1], "-n", "10", coordinator=coordinator)
    assert (here.code, here.err) == (0, "")
    assert "0 of 10" in here.text
    assert there.end() == (0, [], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_its_other_process_does_too(
    start: Start, coordinator: str, number: int
) -> None:
    bench = start("pubsub", "bench", "--seconds", "600", coordinator=coordinator)
    while "pubsub bench --answer" not in execute("pubsub", "peers", coordinator=coordinator).text:
        pass
    children = Path(f"/proc/{bench.process.pid}/task/{bench.process.pid}/children")
    if not children.exists():
        pytest.skip("no /proc here")
    (child,) = children.read_text().split()
    bench.signal(number)
    code = bench.wait()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(signal.Signals(number), -number)
    while "pubsub bench --answer" in _command(child):
        pass


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_whom_it_waits_for_is_said(start: Start, coordinator: str) -> None:
    bench = start("pubsub", "bench", "--with", "nobody", coordinator=coordinator)
    assert (
        bench.err() == "pubsub: measures with `pubsub bench --answer nobody`, once that is there …"
    )
    bench.interrupt()
    assert bench.end() == (130, [], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--answer", "x", "--with", "x"], "--answer and --with exclude each other"),
        (["--answer", "--size", "3"], "--answer and --size exclude each other"),
        (["-n", "3", "--seconds", "3"], "--seconds and --count exclude each other"),
        (["--with", "a//b"], "topic 'a//b' has an empty segment"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(options: list[str], said: str) -> None:
    result = execute("pubsub", "bench", *options)
    assert (result.code, result.out) == (2, b"")
    assert f" bench: {said}" in result.err


def test_nobody_is_there(coordinator: str) -> None:
    result = execute("pubsub", "bench", "--coordinator", "127.0.0.1:1")
    assert (result.code, result.out) == (1, b"")
    assert "no coordinator could be reached" in result.err.splitlines()[-1]


def with_rights(publish: tuple[str, ...], subscribe: tuple[str, ...]) -> Guard:
    class Limited:
        rights = Rights(publish=publish, subscribe=subscribe)

    return Limited()  # type: ignore[return-value]


def test_its_topics_are_ones_that_a_certificate_allows() -> None:
    free = own_name(default_guard(), "pubsub-bench")
    assert free is not None
    assert re.fullmatch(r"pubsub-bench/pubsub-bench-[0-9a-f]{16}", free)
    some = own_name(with_rights(("a/*/c", "b/*"), ("b/**",)), "pubsub-bench")
    assert some is not None
    assert some.startswith("b/pubsub-bench-")
    assert own_name(with_rights(("a/**",), ("b/**",)), "pubsub-bench") is None


@pytest.mark.parametrize(
    ("flood", "size", "turn", "limit"),
    [
        (Flood(10, 0, 1.0, 0.97, 0.5), 100, 0.001, "the publisher keeps one 97% busy"),
        (Flood(10, 0, 1.0, 0.5, 1.02), 100, 0.001, "the subscriber keeps one 100% busy"),
        (Flood(WINDOW // 1000, 0, 0.1, 0.2, 0.1), 1000, 0.1, "the window: 8 MiB"),
        (Flood(10, 0, 1.0, 0.2, 0.1), 1000, 0.001, "what is between them, or other programs"),
    ],
)
def test_what_limits_is_said(flood: Flood, size: int, turn: float, limit: str) -> None:
    assert limit in limit_of(flood, size, turn)


def test_percentiles() -> None:
    assert percentiles([1.0]) == (1.0, 1.0)
    median, most = percentiles([float(n) for n in range(1, 102)])
    assert (median, most) == (51.0, 100.0)
