"""The screens of ``pubsub top``: topics, one topic, processes, one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input, Static

from pubsub.cli.command import INTERRUPTED, OK
from pubsub.cli.top.tables import (
    ENDS,
    LINKS,
    PEERS,
    STREAMS,
    TOPICS,
    Ends,
    Kind,
    Picture,
    about,
)
from pubsub.cli.top.widget import Table
from pubsub.stats import Stats
from pubsub.stats.views import LinkRow, PeerRow, StreamRow, TopicRow, links, peers, streams
from pubsub.stats.views import topics as topics_of

__all__ = ["Top"]

EVERY = 0.5
"""Seconds between two pictures at least. Each process tells once a second."""
SHARE = 0.2
"""Part of the time that drawing pictures may take: where there is much to draw, they are fewer."""


class View(Screen[None]):
    """A screen with tables, a line above them that says what they are, and lines below that say
    more of the row under the cursor."""

    KINDS: ClassVar[tuple[Kind[Any], ...]] = ()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "back", "Back"),
    ]
    app: Top
    _used: Table | None = None

    def compose(self) -> ComposeResult:
        yield Static(classes="title")
        for kind in self.KINDS:
            yield Table(kind)
        yield Static(classes="detail")
        wanted = "what rows have to contain; Enter keeps it, Esc shows all"
        yield Input(placeholder=wanted, select_on_focus=False)
        yield Footer()

    def on_mount(self) -> None:
        self.tables[0].focus()
        self.look(self.app.picture)

    @property
    def tables(self) -> list[Table]:
        return list(self.query(Table))

    @property
    def table(self) -> Table:
        """The one that has the focus, or had it last."""
        return self._used or self.tables[0]

    # --- what it shows --------------------------------------------------------------------------

    def rows(self, picture: Picture) -> Sequence[Sequence[Any]]:
        """Of each of its tables."""
        raise NotImplementedError

    def heading(self, picture: Picture) -> list[str]:
        """What stands above them."""
        raise NotImplementedError

    def look(self, picture: Picture) -> None:
        """So it is now."""
        if tables := self.tables:  # else it is only about to be there
            for table, rows in zip(tables, self.rows(picture), strict=True):
                table.show(rows)

    def on_table_moved(self, event: Table.Moved) -> None:
        self.say_more()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if isinstance(event.widget, Table):
            self._used = event.widget
            self.say_more()

    def say_more(self) -> None:
        """What is in no table."""
        table = self.table
        column, reverse = table.sorted_by
        facts = [
            f"by {column.head.lower() or 'kind'} {'▼' if reverse else '▲'}",
            *(["order held"] if table.held else []),
            *([f"only with {table.wanted!r}"] if table.wanted else []),
            *(["PAUSED"] if self.app.paused else []),
        ]
        first, *more = self.heading(self.app.picture)
        title = "\n".join((f"{first}  ·  {'  ·  '.join(facts)}", *more))
        self.query_one(".title", Static).update(Text(title))
        detail = table.kind.detail(table.row) if table.row is not None else [self.nothing()]
        self.query_one(".detail", Static).update(Text("\n".join(detail)))

    def nothing(self) -> str:
        """What is said where there is no row."""
        if self.table.wanted:
            return f"no row contains {self.table.wanted!r}: Esc shows all"
        return "nothing is here"

    # --- keys -----------------------------------------------------------------------------------

    def action_filter(self) -> None:
        entry = self.query_one(Input)
        entry.value = self.table.wanted
        entry.display = True
        self.set_focus(entry)  # at once: what is typed next is for it

    def on_input_changed(self, event: Input.Changed) -> None:
        for table in self.tables:
            table.filter(event.value)

    def on_input_submitted(self) -> None:
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one(Input).display = False
        self.set_focus(self._used)

    def action_back(self) -> None:
        """From the filter to all rows, from there to where one came from."""
        entry = self.query_one(Input)
        if entry.display or self.table.wanted:
            entry.value = ""
            for table in self.tables:
                table.filter("")
            self._close_filter()
        elif len(self.app.screen_stack) > 2:
            self.app.pop_screen()
            top = self.app.screen
            if isinstance(top, View):
                top.look(self.app.picture)


class Topics(View):
    """Topics.

    Parameters:
        only: of these; None: all that there are.
        title: what is said of them.
    """

    KINDS = (TOPICS,)

    def __init__(self, only: Iterable[str] | None = None, title: str = "") -> None:
        super().__init__()
        self._only = None if only is None else frozenset(only)
        self._title = title

    def rows(self, picture: Picture) -> Sequence[Sequence[Any]]:
        found = topics_of(*picture)
        return [[row for row in found if self._only is None or row.topic in self._only]]

    def heading(self, picture: Picture) -> list[str]:
        what = self._title or _processes(picture)
        return [f"{_so_many(self.table.rows, 'topic')}  {what}"]

    def nothing(self) -> str:
        if self.table.wanted:
            return super().nothing()
        return "nobody has a Pub or Sub: `pubsub doctor` says what may be wrong"

    def on_table_opened(self, event: Table.Opened) -> None:
        row: TopicRow = event.row
        self.app.push_screen(Topic(row.topic))


class Topic(View):
    """The streams of one topic."""

    KINDS = (STREAMS,)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "publisher", "Publisher"),
    ]

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic

    def rows(self, picture: Picture) -> Sequence[Sequence[Any]]:
        return [streams(picture.told, self._topic, *picture[1:])]

    def heading(self, picture: Picture) -> list[str]:
        whys = dict.fromkeys(row.why for row in self.table.rows if row.why)
        return [f"topic {self._topic}  {_so_many(self.table.rows, 'stream')}", *whys]

    def nothing(self) -> str:
        return super().nothing() if self.table.wanted else "nobody has this topic any more"

    def on_table_opened(self, event: Table.Opened) -> None:
        row: StreamRow = event.row
        end = row.subscriber if row.subscriber.key else row.publisher
        self.app.push_screen(Process(end.key))

    def action_publisher(self) -> None:
        row: StreamRow | None = self.table.row
        if row is not None and row.publisher.key:
            self.app.push_screen(Process(row.publisher.key))


class Processes(View):
    """All processes."""

    KINDS = (PEERS,)

    def rows(self, picture: Picture) -> Sequence[Sequence[Any]]:
        return [peers(*picture)]

    def heading(self, picture: Picture) -> list[str]:
        return [_processes(picture)]

    def on_table_opened(self, event: Table.Opened) -> None:
        row: PeerRow = event.row
        self.app.push_screen(Process(row.process.key))


class Process(View):
    """One process."""

    KINDS = (ENDS, LINKS)

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self._row: PeerRow | None = None

    def rows(self, picture: Picture) -> Sequence[Sequence[Any]]:
        found = (row for row in peers(*picture) if row.process.key == self._key)
        self._row = next(found, None)
        stats = (self._row.stats if self._row else None) or Stats()
        ends = [Ends(pub) for pub in stats.pubs] + [Ends(sub) for sub in stats.subs]
        ends.sort(key=lambda end: (end.topic, end.key))
        return [ends, links(picture.told, stats.peer_id, *picture[2:])]

    def heading(self, picture: Picture) -> list[str]:
        return about(self._row) if self._row else [f"{self._key}: it has ended"]

    def on_table_opened(self, event: Table.Opened) -> None:
        row: Ends | LinkRow = event.row
        if isinstance(row, LinkRow):
            self.app.push_screen(Process(row.other.key))
        elif len(row.topics) == 1:
            self.app.push_screen(Topic(*row.topics))
        else:
            self.app.push_screen(Topics(row.topics, f"that {row.topic} gets"))


class Help(ModalScreen[None]):
    """Which keys there are, and what the columns mean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "app.pop_screen", "Back"),
    ]
    KEYS: ClassVar[dict[str, str]] = {
        "↑ ↓ PgUp PgDn": "move; a row that was moved to keeps its place while others change",
        "Home": "the first row, whichever that is",
        "Enter": "more of the row: topic, its streams, the subscriber's process",
        "u": "of a stream: the publisher's process",
        "Esc": "back; or all rows again, where some are filtered out",
        "t, p": "all topics; all processes",
        "Tab": "the next table",
        "1 … 9, 0": "sort by that column; again: the other way round",
        "< >": "sort by the column beside; a click on its head does so, too",
        "o": "hold the order: rows stay where they are",
        "/": "show only rows that contain a text",
        "Space": "pause: nothing changes until it is pressed again",
        "← →": "columns that are out of sight",
        "q": "end",
    }

    def __init__(self, kinds: Iterable[Kind[Any]]) -> None:
        super().__init__()
        self._kinds = kinds

    def compose(self) -> ComposeResult:
        rows = list(self.KEYS.items())
        for kind in self._kinds:
            rows += [("", ""), (kind.name.upper(), "")]
            rows += [(column.head, column.means) for column in kind.columns]
        text = Text("\n".join(f"{head:<14} {means}".rstrip() for head, means in rows))
        with VerticalScroll():
            yield Static(text)


def _so_many(rows: Sequence[object], what: str) -> str:
    return f"{len(rows):,} {what}{'' if len(rows) == 1 else 's'}"


def _processes(picture: Picture) -> str:
    silent = sum(each.stats is None for each in picture.told)
    text = f"{len(picture.told):,} process{'' if len(picture.told) == 1 else 'es'}"
    return f"{text}, {silent:,} of which tell nothing" if silent else text


class Top(App[int]):
    """The program; its result is an exit code.

    Parameters:
        look: how it is now.
        changes: goes on whenever that may have changed.
    """

    TITLE = "pubsub top"
    CSS = """
    View > .title { height: auto; max-height: 40%; }
    View > .detail { height: auto; max-height: 6; border-top: solid $panel; }
    View > Input { display: none; height: 1; border: none; padding: 0; }
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 90%; max-width: 100; height: 90%; padding: 0 1; background: $panel;
    }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "topics", "Topics"),
        Binding("p", "processes", "Processes"),
        Binding("space", "pause", "Pause"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "interrupt", "Interrupt", show=False, priority=True),
    ]

    def __init__(
        self, look: Callable[[], Picture], changes: Callable[[], AsyncIterator[None]]
    ) -> None:
        super().__init__()
        self.picture = Picture()
        self.paused = False
        self._look = look
        self._changes = changes

    def on_mount(self) -> None:
        # A Peer, whose loop this is too, begins its tasks at the end of a turn, as it expects.
        asyncio.get_running_loop().set_task_factory(None)
        self._draw()
        self.push_screen(Topics())
        self.run_worker(self._follow(), exit_on_error=True)

    async def _follow(self) -> None:
        async for _ in self._changes():
            began = time.perf_counter()
            if not self.paused:
                self._draw()
            await asyncio.sleep(max(EVERY, (time.perf_counter() - began) / SHARE))

    def _draw(self) -> None:
        """Look, and show it."""
        self.picture = self._look()
        for screen in reversed(self.screen_stack):
            if isinstance(screen, View):
                screen.look(self.picture)
                break

    def _begin_with(self, screen: View) -> None:
        while len(self.screen_stack) > 2:
            self.pop_screen()
        self.switch_screen(screen)

    def action_topics(self) -> None:
        self._begin_with(Topics())

    def action_processes(self) -> None:
        self._begin_with(Processes())

    def action_pause(self) -> None:
        self.paused = not self.paused
        if not self.paused:
            self._draw()
        elif isinstance(self.screen, View):
            self.screen.say_more()

    def action_help(self) -> None:
        if isinstance(self.screen, View):
            self.push_screen(Help(self.screen.KINDS))

    async def action_quit(self) -> None:
        self.exit(OK)

    def action_interrupt(self) -> None:
        self.exit(INTERRUPTED)
