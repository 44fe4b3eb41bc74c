"""A real log of 100,000 lines goes through `pubsub put` and `pubsub tail`, byte for byte."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Start, daemon, execute, processes

LINES = 100_000


def make_log(path: Path) -> None:
    """Lines as services write them: of all lengths, some empty, some with carriage returns,
    colours, bytes that are no UTF-8, NUL."""
    chance = random.Random(7700)
    words = "GET /index.html 200 INFO worker déjà-vu ✓ \x1b[32mok\x1b[0m took ms user= 🙂 \t".split(
        " "
    )
    with path.open("wb") as log:
        for number in range(LINES):
            text = " ".join(chance.choices(words, k=chance.randrange(24)))
            line = f"{1_795_000_000 + number * 0.01:.2f} {text}".encode()
            if number % 997 == 0:
                line = b""
            elif number % 499 == 0:
                line += bytes(chance.randrange(256) for _ in range(40)).replace(b"\n", b"")
            elif number % 10_007 == 0:
                line *= 2_000  # a stack trace, a dump of a request
            log.write(line + (b"\r\n" if number % 13 == 0 else b"\n"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "some.log"
    make_log(path)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as starter:
        yield starter


def test_a_log_of_100_000_lines_comes_back_as_the_same_bytes(
    start: Start, log: Path, tmp_path: Path
) -> None:
    _, where = daemon(start)
    copy = tmp_path / "copy.log"
    with copy.open("wb") as stdout:
        tail = start("pubsub", "tail", "logs", "--format", "raw", coordinator=where, stdout=stdout)
        put = execute(
            *("pubsub", "put", "logs", "-", "--wait", "1"),
            coordinator=where,
            stdin=log.read_bytes(),
        )
        assert (put.code, put.out, put.err) == (0, b"", "")
        tail.signal(signal.SIGINT)  # `put` has ended: the tail has it all
        assert tail.wait() == 130
    assert tail.rest_of_errors() == [f"pubsub: received {LINES}, lost 0"]
    assert copy.read_bytes() == log.read_bytes()


def test_two_tails_with_different_eyes_see_the_same_log(start: Start, log: Path) -> None:
    _, where = daemon(start)
    count = str(LINES)
    tails = [
        start("pubsub", "tail", pattern, "-n", count, "-q", "--format", "raw", coordinator=where)
        for pattern in ("logs/app", "**")
    ]
    put = start("pubsub", "put", "logs/app", "-", "--wait", "2", coordinator=where)
    put.send(log.read_bytes())
    put.close_input()
    assert put.end() == (0, [], [])
    expected = log.read_bytes()
    for tail in tails:
        assert tail.wait() == 0
        assert tail.rest_of_output() == expected
