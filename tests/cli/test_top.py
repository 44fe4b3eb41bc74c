"""`pubsub top`: its tables, its screens, and the command on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from pubsub import Peer
from pubsub.cli import top as command
from pubsub.cli.command import Failure
from pubsub.cli.top.app import Help, Process, Processes, Top, Topic, Topics, View
from pubsub.cli.top.tables import (
    ENDS,
    LINKS,
    PEERS,
    STREAMS,
    TOPICS,
    Column,
    Kind,
    Picture,
    about,
    order,
)
from pubsub.cli.top.widget import Table
from pubsub.stats import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.stats.cause import Cause
from pubsub.stats.views import PeerRow, peers, streams, topics
from pubsub.survey import Told
from tests.cli.processes import LONG, Start, execute

APP = Stats("app", "app.py", 1, "b", "b:1", "0.3", age=7.1, loop=LoopStats(0.001, 0.02, 0.84, 9))
MODEL = Stats("model", "model.py", 2, "b", "b:2", "0.3")
SLOW = "model.py (pid 2 on b) spends 41 ms in its code per message"


def rate(messages: float) -> Rates:
    return Rates(messages, messages, messages)


def pub(number: int, topic: str, messages: float = 0.0, **more: Any) -> PubStats:
    row = PubStats(number, topic, rate=rate(messages), byte_rate=rate(messages * 100), silent=0.5)
    return row._replace(**more)


def shop(*rates: float) -> list[Told]:
    """A process with as many Pubs as rates, on a/0, a/1, …, and one that takes the first slowly."""
    pubs = [pub(n, f"a/{n}", each) for n, each in enumerate(rates)]
    lagging = SubscriberStats("b:2#1", "model", 1, "attached", "unix", lag=212, unsent=12, lost=3)
    pubs[0] = pubs[0]._replace(subscribers=(lagging,))
    stream = StreamStats("b:1#0", "app", 0, "a/0", "attached", "unix", 9, lost=3)
    sub = SubStats(1, "a/0", rate=rate(24), handling=0.041, lost=3, streams=(stream,))
    link = LinkStats("subscriber", "model", True, "unix", 1, 2, rate(10), rate(2000), 0.0003)
    coordinators = (CoordinatorStats("c:7700", False, "connection refused"),)
    app = APP._replace(pubs=tuple(pubs), links=(link,), coordinators=coordinators)
    return [Told("b:1", app, at=100.0), Told("b:2", MODEL._replace(subs=(sub,)), at=100.0)]


# --- tables, without a terminal -------------------------------------------------------------------


def texts(kind: Kind[Any], row: Any) -> dict[str, str]:
    return {column.head: column.text(row) for column in kind.columns}


def test_a_row_of_topics_says_what_matters() -> None:
    (row,) = topics(shop(1234), [Cause("slow", SLOW, 65.0, "a/0", "", "model.py (pid 2 on b)")])
    assert texts(TOPICS, row) == {
        "TOPIC": "a/0",
        "PUBS": "1",
        "SUBS": "1",
        "MSG/S": "1,234",
        "BYTES/S": "121 KiB",
        "LAG": "212",
        "LOST": "3",
        "SILENT": "500 ms",
        "WHY": SLOW,
    }
    assert TOPICS.detail(row) == [
        "topic: a/0", f"why: {SLOW}", "lost by: model.py (pid 2 on b) 3",
    ]  # fmt: skip


def test_a_row_of_streams_says_how_one_stands() -> None:
    (row,) = streams(shop(30), "a/0")
    assert list(texts(STREAMS, row).values()) == [
        *("app.py (pid 1 on b)", "model.py (pid 2 on b)", "attached", "unix"),
        *("30", "24", "212", "12", "3", "41 ms", "500 ms", ""),
    ]


def test_what_there_is_not_is_said_so_in_every_table() -> None:
    told = [Told("b:9", trouble="no way leads to it")]
    (row,) = peers(told)
    assert list(texts(PEERS, row).values()) == ["b:9", *["-"] * 9, "no way leads to it"]
    assert about(row) == ["b:9", "trouble: no way leads to it"]
    (lonely,) = streams([Told("b:2", MODEL._replace(subs=(SubStats(1, "x"),)))], "x")
    assert texts(STREAMS, lonely)["PUBLISHER"] == "nobody"


def test_a_process_is_described() -> None:
    app, model = peers(shop(1))
    assert about(app) == [
        "app.py (pid 1 on b)  b:1  pubsubd 0.3  up 7.1 s",
        "loop late by 1.0 ms, p99 20 ms, most 840 ms",
        "coordinator c:7700: connection refused",
    ]
    assert "loop not measured yet" in about(model)


@pytest.mark.parametrize("kind", [TOPICS, STREAMS, PEERS, ENDS, LINKS], ids=lambda k: str(k.name))
def test_every_column_is_explained(kind: Kind[Any]) -> None:
    heads = [column.head for column in kind.columns]
    assert len(set(heads)) == len(heads)
    assert all(column.means for column in kind.columns)


def test_what_is_not_known_is_last_in_both_orders() -> None:
    column = Column("", lambda row: row, str, "")
    assert order([2, None, 3, 1], column, reverse=False) == [1, 2, 3, None]
    assert order([2, None, 3, 1], column, reverse=True) == [3, 2, 1, None]


# --- screens --------------------------------------------------------------------------------------


@dataclass
class Scene:
    """What there is to be seen, which a test changes."""

    told: list[Told]
    causes: list[Cause] = field(default_factory=list)
    now: float = 100.0

    def look(self) -> Picture:
        return Picture(tuple(self.told), tuple(self.causes), self.now)

    async def changes(self) -> AsyncIterator[None]:
        return
        yield


@dataclass
class Seen:
    """The program, as somebody at the terminal has it."""

    app: Top
    pilot: Pilot[int]
    scene: Scene

    @property
    def view(self) -> View:
        assert isinstance(self.app.screen, View)
        return self.app.screen

    @property
    def lines(self) -> list[str]:
        """Of the table in use: heads first."""
        table = self.view.table
        return [table.render_line(y).text.rstrip() for y in range(table.size.height)]

    @property
    def column(self) -> list[str]:
        """The first column, as far as it is seen."""
        return [line.split()[0] for line in self.lines[1:] if line]

    def text(self, what: str) -> str:
        return str(self.view.query_one(what, Static).render())

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def tell(self, told: list[Told]) -> None:
        self.scene.told = told
        self.app._draw()
        await self.pilot.pause()


@asynccontextmanager
async def shown(scene: Scene, size: tuple[int, int] = (150, 24)) -> AsyncIterator[Seen]:
    app = Top(scene.look, scene.changes)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield Seen(app, pilot, scene)


async def test_topics_are_shown_and_change_in_their_place() -> None:
    async with shown(Scene(shop(1, 2))) as seen:
        assert seen.lines[0].split()[0] == "TOPIC▲"
        assert seen.column == ["a/0", "a/1"]
        assert "2 topics  2 processes" in seen.text(".title")
        await seen.tell(shop(77, 2, 3))
        assert seen.column == ["a/0", "a/1", "a/2"]
        assert "77" in seen.lines[1]


async def test_from_a_topic_to_its_stream_to_the_processes_and_back() -> None:
    async with shown(Scene(shop(1), [Cause("slow", SLOW, 65.0, "a/0")])) as seen:
        await seen.press("enter")
        assert isinstance(seen.view, Topic)
        assert "topic a/0  1 stream" in seen.text(".title")
        assert SLOW in seen.text(".title")
        await seen.press("enter")
        assert isinstance(seen.view, Process)
        assert "model.py (pid 2 on b)" in seen.text(".title"), "Enter: who takes"
        await seen.press("escape", "u")
        assert "app.py (pid 1 on b)" in seen.text(".title"), "u: who puts"
        assert "connection refused" in seen.text(".title")
        await seen.press("tab", "enter")
        assert "model.py (pid 2 on b)" in seen.text(".title"), "the other end of the link"
        await seen.press("enter")
        assert isinstance(seen.view, Topic)
        await seen.press("p")
        assert isinstance(seen.view, Processes)
        assert [line.split()[0] for line in seen.lines[1:3]] == ["app.py", "model.py"]
        await seen.press("escape", "escape")
        assert isinstance(seen.view, Processes), "that is where one began"
        await seen.press("t")
        assert isinstance(seen.view, Topics)


async def test_a_sub_of_several_topics_leads_to_these() -> None:
    wide = SubStats(
        *(1, "a/*"),
        streams=tuple(StreamStats(f"b:1#{n}", "app", n, f"a/{n}", "attached") for n in (0, 1)),
    )
    told = [shop(1, 2, 3)[0], Told("b:2", MODEL._replace(subs=(wide,)), at=100.0)]
    async with shown(Scene(told)) as seen:
        await seen.press("p", "down", "enter", "enter")
        assert isinstance(seen.view, Topics)
        assert seen.column == ["a/0", "a/1"]


async def test_sorting_by_keys_and_by_clicks_on_the_heads() -> None:
    async with shown(Scene(shop(5, 9, 7))) as seen:
        await seen.press("4")
        assert "MSG/S▼" in seen.lines[0], "numbers begin with the largest"
        assert seen.column == ["a/1", "a/2", "a/0"]
        await seen.press("4")
        assert seen.column == ["a/0", "a/2", "a/1"]
        await seen.press("less_than_sign", "greater_than_sign")
        assert seen.column == ["a/1", "a/2", "a/0"]
        await seen.pilot.click(Table, offset=(1, 0))
        await seen.pilot.pause()
        assert "TOPIC▲" in seen.lines[0]
        await seen.press("r")
        assert seen.column == ["a/2", "a/1", "a/0"]


async def test_the_row_under_the_cursor_keeps_its_place_while_others_move() -> None:
    async with shown(Scene(shop(*range(100))), size=(120, 24)) as seen:
        await seen.press("4", "pagedown", "down", "down")
        table = seen.view.table
        topic = table.row.topic
        line = next(n for n, text in enumerate(seen.lines) if text.split()[:1] == [topic])
        await seen.tell(shop(*reversed(range(100))))
        assert table.row.topic == topic
        assert seen.lines[line].split()[0] == topic
        await seen.press("home")
        first = table.row.topic
        await seen.tell(shop(*range(100)))
        assert table.row.topic != first, "at the top, it is the top that stays"


async def test_held_rows_stay_and_new_ones_come_last() -> None:
    async with shown(Scene(shop(5, 9))) as seen:
        await seen.press("4", "o")
        assert "order held" in seen.text(".title")
        await seen.tell(shop(8, 2, 10))
        assert seen.column == ["a/1", "a/0", "a/2"]
        await seen.press("o")
        assert seen.column == ["a/2", "a/0", "a/1"]


async def test_a_filter_shows_what_contains_it_until_it_is_taken_back() -> None:
    async with shown(Scene(shop(1, 2, 3))) as seen:
        await seen.press("slash", *"A/1")
        assert seen.column == ["a/1"], "what is typed is for the filter, and case is of no matter"
        await seen.press("enter", "down", "up")
        assert "only with 'a/1'" in seen.text(".title")
        await seen.press("slash", "x")
        assert seen.column == []
        assert "no row contains 'a/1x'" in seen.text(".detail")
        await seen.press("escape")
        assert seen.column == ["a/0", "a/1", "a/2"]
        assert not seen.view.query_one(Input).display
        assert seen.view.table.row.topic == "a/1", "the one that was moved to"


async def test_a_pause_keeps_what_is_seen_on_all_screens() -> None:
    pictures = 0

    async with shown(Scene(shop(1))) as seen:
        look = seen.scene.look

        def counted() -> Picture:
            nonlocal pictures
            pictures += 1
            return look()

        seen.app._look = counted
        await seen.press("space")
        assert "PAUSED" in seen.text(".title")
        seen.scene.told = shop(1, 2)
        await seen.press("enter", "escape", "p", "t")
        assert (seen.column, pictures) == (["a/0"], 0)
        await seen.press("space")
        assert seen.column == ["a/0", "a/1"]


async def test_who_vanishes_shows_its_trouble_and_who_ends_is_said_to_have() -> None:
    async with shown(Scene(shop(1))) as seen:
        await seen.press("p", "enter")
        gone = shop(1)
        gone[0].trouble = "it has vanished without a goodbye"
        await seen.tell(gone)
        assert "it has vanished without a goodbye" in seen.text(".title")
        assert seen.column == ["Pub"], "and what it was is still there"
        await seen.tell(gone[1:])
        assert "it has ended" in seen.text(".title")


async def test_nothing_of_what_others_say_is_markup() -> None:
    name = "[red]x[/red] [@click=app.exit]"
    told = [Told("b:1", APP._replace(name=name, pubs=(pub(1, "t"),)), at=100.0)]
    async with shown(Scene(told, [Cause("loop", name, 60.0, "t")])) as seen:
        assert name in seen.lines[1]
        assert name in seen.text(".detail")
        await seen.press("enter")
        assert name in seen.lines[1]


async def test_a_terminal_of_any_size_will_do() -> None:
    async with shown(Scene(shop(*range(50))), size=(20, 4)) as seen:
        for size in ((200, 60), (1, 1), (40, 8), (8, 3), (120, 20)):
            await seen.pilot.resize_terminal(*size)
            await seen.press("end", "enter", "down", "escape")
        assert seen.column[-1] == "a/9", "the row under the cursor is seen"


async def test_columns_out_of_sight_are_reached() -> None:
    async with shown(Scene(shop(1), [Cause("slow", SLOW, 65.0, "a/0")]), size=(30, 20)) as seen:
        assert "WHY" not in seen.lines[0]
        await seen.press(*["right"] * 5)
        assert "WHY" in seen.lines[0]


async def test_nobody_there_is_said_with_the_way_out() -> None:
    async with shown(Scene([])) as seen:
        assert "0 processes" in seen.text(".title")
        assert "pubsub doctor" in seen.text(".detail")


async def test_the_help_has_all_keys_and_columns() -> None:
    async with shown(Scene(shop(1))) as seen:
        await seen.press("question_mark")
        assert isinstance(seen.app.screen, Help)
        text = str(seen.app.screen.query_one(Static).render())
        assert all(column.means in text for column in TOPICS.columns)
        await seen.press("escape")
        assert isinstance(seen.view, Topics)


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("ctrl+c", 130)])
async def test_q_and_ctrl_c_end_it(key: str, code: int) -> None:
    async with shown(Scene(shop(1))) as seen:
        await seen.press("slash") if key == "ctrl+c" else None
        await seen.press(key)
    assert seen.app.return_value == code


async def test_only_lines_that_are_seen_are_written_however_many_rows_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: set[Any] = set()
    line = Table._line

    def counted(table: Table, row: Any) -> Any:
        written.add(row.topic)
        return line(table, row)

    monkeypatch.setattr(Table, "_line", counted)
    async with shown(Scene(shop(*range(1000))), size=(120, 30)) as seen:
        await seen.tell(shop(*range(1, 1001)))
        assert len(seen.view.table.rows) == 1000
        assert len(written) <= 30


# --- the command ----------------------------------------------------------------------------------


def test_without_textual_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "textual"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("app", "widget"):
        monkeypatch.delitem(sys.modules, f"pubsub.cli.top.{name}")
    with pytest.raises(Failure, match=r"pip install 'pubsubd\[top\]'"):
        command._program()


def test_into_a_pipe_it_prints_one_table(coordinator: str, topic: str) -> None:
    with Peer(coordinator, name="the peer of this test") as peer:
        pub, sub = peer.pub(f"{topic}/a"), peer.sub(f"{topic}/b")
        pub.put(1)
        result = execute("pubsub", "top", coordinator=coordinator)
        assert (result.code, result.err) == (0, "")
        heads, *rows = result.lines
        assert heads.split() == [column.head for column in TOPICS.columns]
        assert [row.split()[:3] for row in rows if row.startswith(topic)] == [
            [f"{topic}/a", "1", "-"],
            [f"{topic}/b", "-", "1"],
        ]
        del pub, sub


def test_without_a_coordinator_one_line_says_so() -> None:
    result = execute("pubsub", "top", "--coordinator", "127.0.0.1:1")
    assert (result.code, result.out) == (1, b"")
    assert "no coordinator at 127.0.0.1:1" in result.err
    assert result.err.count("\n") == 1


class Terminal:
    """`pubsub top` on a terminal of its own."""

    def __init__(self, coordinator: str) -> None:
        self.mine, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pubsub.cli.pubsub", "top", "--coordinator", coordinator],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip

    def until(self, done: Callable[[str], bool]) -> None:
        """Read what it writes until that is so."""
        until = time.monotonic() + LONG
        while not done(self.text):
            left = until - time.monotonic()
            assert left > 0, self.text[-2000:]
            if select.select([self.mine], [], [], left)[0]:
                said = os.read(self.mine, 65536).decode(errors="replace")
                self.text += re.sub(r"\x1b\[[\d;?<>=]*[A-Za-z]", "", said)

    def press(self, keys: str) -> None:
        self.text = ""
        os.write(self.mine, keys.encode())

    def end(self) -> int:
        """Its exit code."""
        while self.process.poll() is None:  # what it still writes has to go somewhere
            if select.select([self.mine], [], [], 0.05)[0]:
                os.read(self.mine, 65536)
        return self.process.returncode


@contextmanager
def terminal(coordinator: str) -> Iterator[Terminal]:
    made = Terminal(coordinator)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.mine)
        os.close(made.theirs)


def test_on_a_real_terminal_of_real_processes(coordinator: str, start: Start, topic: str) -> None:
    code = f"from pubsub import Sub\nfor value in Sub({topic!r}): pass"
    taker = start("python", "-c", code, coordinator=coordinator)
    with Peer(coordinator, name="the peer of this test") as peer, peer.pub(topic) as pub:
        pub.wait_for_subscribers(timeout=LONG)
        pub.put("x")
        with terminal(coordinator) as shown:
            shown.until(lambda text: topic in text)
            shown.press("/")
            shown.until(lambda text: "what rows have to contain" in text)
            shown.press(f"{topic}\r")
            shown.until(lambda text: f"only with {topic!r}" in text)
            shown.press("\r")
            shown.until(lambda text: "PUBLISHER" in text and f"pid {taker.process.pid}" in text)
            shown.press("\r")
            shown.until(lambda text: "LINK WITH" in text)
            shown.press("q")
            assert shown.end() == 0
            assert termios.tcgetattr(shown.theirs) == shown.before, "it is as it was"


def test_a_signal_leaves_the_terminal_as_it_was(coordinator: str) -> None:
    with Peer(coordinator) as peer, peer.pub("t"), terminal(coordinator) as shown:
        shown.until(lambda text: "TOPIC" in text)
        shown.process.terminate()
        assert shown.end() == 143
        assert termios.tcgetattr(shown.theirs) == shown.before


def test_a_row_that_tells_nothing_has_no_tables() -> None:
    assert about(PeerRow(peers(shop(1))[0].process)) == ["app.py (pid 1 on b)"]
