"""What `pubsub tail` shows on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pubsub import Message, Peer
from pubsub.cli.formats import Formatter, as_json
from pubsub.cli.terminal import Color, Screen, printable, wants_color
from pubsub.faces.blockingpub import BlockingPub
from tests import secrecy
from tests.cli.processes import LONG

HOSTILE = ["\x1b[2J", "\x9b2J", "\x1b]0;title\x07", "\u202egnp.exe", "\x7f", "\u2028", "\r", "\b"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["json", "raw", "repr"])
def test_nothing_that_a_terminal_would_obey_is_shown(form: str, text: str) -> None:
    screen = Screen(color=False)
    for value in (text, [text], {text: text}, text.encode()):
        line = Formatter(form, screen=screen).line(Message(value, "t", "p#1", 0, 0.0)).decode()
        assert not set(line.rstrip("\n")) & {*HOSTILE, "\x1b", "\x9b", "\x07", "\u202e"}, line


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_the_same_json(text: str) -> None:
    value = {text: [text, 1.5, None, True]}
    assert json.loads(Screen(color=False).json(as_json(value))) == value


def test_what_is_no_utf8_is_shown_escaped() -> None:
    assert Screen(color=False).text(b"a\xffb\tc") == b"a\\xffb\tc"


def test_the_colors_of_json_are_all_that_is_added() -> None:
    line = rb'{"a\"b": [1, -2.5e3, "x: 1 null", true, null]}'
    colored = Screen(color=True).json(line)
    assert re.sub(rb"\x1b\[[\d;]+m", b"", colored) == line
    assert colored == (
        b'{\x1b[34;1m"a\\"b"\x1b[0m: [\x1b[33m1\x1b[0m, \x1b[33m-2.5e3\x1b[0m, '
        b'\x1b[32m"x: 1 null"\x1b[0m, \x1b[35mtrue\x1b[0m, \x1b[35mnull\x1b[0m]}'
    )


@pytest.mark.parametrize(
    ("choice", "terminal", "env", "wanted"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_who_wants_colors(choice: Color, terminal: bool, env: dict[str, str], wanted: bool) -> None:
    assert wants_color(choice, terminal=terminal, env=env) is wanted


def test_what_others_say_of_themselves_is_printable() -> None:
    assert printable("a\x1b[2J\u202eb\tc ü") == "a?[2J?b?c ü"


@pytest.fixture
def pub(coordinator: str, topic: str) -> Iterator[BlockingPub]:
    """One that keeps what it puts."""
    with Peer(coordinator) as peer, BlockingPub(topic, peer=peer, history=100) as made:
        yield made


def on_a_terminal(coordinator: str, *args: str, errors: bool = False, **env: str) -> bytes:
    """What a command writes to one, with its end of lines as a program writes it; `errors`: and
    what it says on standard error."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pubsub.cli.pubsub", *args],
            stdout=theirs,
            stderr=theirs if errors else subprocess.DEVNULL,
            env={**os.environ, "PUBSUB_COORDINATOR": coordinator, "TERM": "xterm", **env},
        )
    finally:
        os.close(theirs)
    found = b""
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # on Linux, how a terminal ends
                data = b""
            if not data:
                break
            found += data
        process.wait(LONG)
    finally:
        os.close(ours)
        process.kill()
        process.wait()
    secrecy.said(found)
    return found.replace(b"\r\n", b"\n")


def test_the_command_colors_on_a_terminal_and_lets_it_obey_nothing(
    pub: BlockingPub, coordinator: str
) -> None:
    pub.put({"evil": "\x1b[2J\x9b2J", "n": 1})
    given = ("tail", pub.topic, "--history", "all", "-n", "1")
    plain = b'{"evil": "\\u001b[2J\\u009b2J", "n": 1}\n'
    colored = on_a_terminal(coordinator, *given, NO_COLOR="")
    assert b'\x1b[34;1m"evil"\x1b[0m' in colored
    assert re.sub(rb"\x1b\[[\d;]+m", b"", colored) == plain
    assert on_a_terminal(coordinator, *given, NO_COLOR="1") == plain
    raw = on_a_terminal(coordinator, *given, "--format", "raw", "--color", "never")
    assert b"\x1b" not in raw


def test_who_waits_for_what_nobody_publishes_is_told_so(coordinator: str, topic: str) -> None:
    shown = on_a_terminal(coordinator, "tail", topic, "--timeout", "4", errors=True).decode()
    assert shown.splitlines() == [
        f"pubsub: nobody publishes {topic!r} yet: waiting (`pubsub doctor TOPIC` looks why)",
        "pubsub: received 0, lost 0; no publisher of it is known (`pubsub doctor TOPIC` says why)",
    ]


def test_rates_stand_in_their_place(coordinator: str, topic: str) -> None:
    """Nothing comes, so the timeout ends it, after more than one table."""
    shown = on_a_terminal(coordinator, "tail", topic, "--rate", "--timeout", "3")
    first, *more = shown.split(b"\x1b[2A\x1b[J")
    assert first.splitlines()[1] == b"nothing has come yet"
    assert set(more) == {first}
