"""A table on a terminal whose rows keep their place under the cursor while they change.

Only the lines that can be seen are rendered, so that it costs the same for ten rows and thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from pubsub.cli.top.tables import Column, Kind, order

__all__ = ["Table"]

WIDEST = 40
"""Cells that a column has at most, but for the last: that has what is left, and more."""
ASIDE = 10
"""Cells by which one key moves what is seen."""
APART = 2
"""Cells between two columns."""


class Table(ScrollView, can_focus=True):
    """Rows of one `Kind`.

    Parameters:
        kind: what its rows are.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--head",
        "table--cursor",
        "table--trouble",
        "table--bad",
        "table--why",
    }
    DEFAULT_CSS = """
    Table {
        height: 1fr;
        scrollbar-size-horizontal: 0;
        scrollbar-size-vertical: 1;
        & > .table--head { text-style: bold; color: $text-primary; background: $panel; }
        & > .table--cursor { background: $surface-lighten-1; }
        & > .table--trouble { color: $text-disabled; }
        & > .table--bad { color: $text-error; }
        & > .table--why { color: $text-warning; }
        &:focus > .table--cursor { background: $primary-muted; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
        Binding("left,h", "beside(-1)", "Left", show=False),
        Binding("right,l", "beside(1)", "Right", show=False),
        Binding("enter", "open", "Open"),
        Binding("less_than_sign", "sort_beside(-1)", "Sort <", show=False),
        Binding("greater_than_sign", "sort_beside(1)", "Sort", key_display="< >"),
        Binding("r", "turn", "Reverse", show=False),
        Binding("o", "hold", "Hold order", show=False),
        *(Binding(str(n), f"sort({n - 1})", f"Column {n}", show=False) for n in range(1, 10)),
        Binding("0", "sort(9)", "Column 10", show=False),
    ]

    class Opened(Message):
        """Somebody wants to see more of a row."""

        def __init__(self, table: Table, row: Any) -> None:
            super().__init__()
            self.table, self.row = table, row

    class Moved(Message):
        """Another row may be under the cursor, or what it says has changed."""

        def __init__(self, table: Table) -> None:
            super().__init__()
            self.table = table

    def __init__(self, kind: Kind[Any], **more: Any) -> None:
        super().__init__(**more)
        self.kind = kind
        self.wanted = ""
        """Only rows are shown in which this stands."""
        self.held = False
        """Rows stay in their order, whatever their values do."""
        self._all: Sequence[Any] = ()
        self._rows: list[Any] = []
        self._cursor = 0
        self._follows: Any = None  # the key of the row that keeps its place; None: nobody moved yet
        self._sort = 0
        self._reverse = False
        self._widths = [0] * len(kind.columns)
        self._right = [column.write is not None for column in kind.columns]

    # --- what it shows --------------------------------------------------------------------------

    @property
    def row(self) -> Any:
        """The row under the cursor; None: there are none."""
        return self._rows[self._cursor] if self._rows else None

    @property
    def rows(self) -> Sequence[Any]:
        """Those that are shown, in their order."""
        return self._rows

    @property
    def sorted_by(self) -> tuple[Column, bool]:
        """By which column, and whether the largest is first."""
        return self.kind.columns[self._sort], self._reverse

    def show(self, rows: Sequence[Any]) -> None:
        """These are its rows now."""
        self._all = rows
        self._arrange()

    def filter(self, wanted: str) -> None:
        """Show only rows in which this stands, in whatever case."""
        self.wanted = wanted.casefold()
        self._arrange()

    def _arrange(self) -> None:
        key = self.kind.key
        found = [row for row in self._all if self._is_wanted(row)]
        if self.held:
            place = {key(row): n for n, row in enumerate(self._rows)}
            found.sort(key=lambda row: place.get(key(row), len(place)))
        else:
            found = order(found, self.kind.columns[self._sort], reverse=self._reverse)
        above = self._cursor - self.scroll_offset.y
        self._rows = found
        if self._follows is not None:
            self._cursor = next(
                (n for n, row in enumerate(found) if key(row) == self._follows), self._cursor
            )
        self._cursor = max(0, min(self._cursor, len(found) - 1))
        self._resize()
        if self._follows is not None:
            self.scroll_to(y=max(0, self._cursor - above), animate=False)
        self.refresh()
        self.post_message(self.Moved(self))

    def _is_wanted(self, row: Any) -> bool:
        if not self.wanted:
            return True
        texts = (c.text(row) for c in self.kind.columns if c.write is None)
        return any(self.wanted in text.casefold() for text in texts)

    # --- how it looks ---------------------------------------------------------------------------

    def _resize(self) -> None:
        """Make room for what can be seen. No column becomes narrower: a table that trembles cannot
        be read."""
        top = self.scroll_offset.y
        seen = self._rows[top : top + max(self.size.height, 1)]
        for n, column in enumerate(self.kind.columns):
            longest = max((cell_len(column.text(row)) for row in seen), default=0)
            most = 1000 if n == len(self.kind.columns) - 1 else WIDEST
            head = cell_len(column.head) + 1  # and the mark of the order
            self._widths[n] = max(self._widths[n], min(longest, most), head)
        width = sum(self._widths) + APART * (len(self._widths) - 1)
        self.virtual_size = Size(width, len(self._rows) + 1)

    def on_resize(self) -> None:
        self._resize()
        self._show_cursor()

    def render_line(self, y: int) -> Strip:
        """A line as it is seen: the first says what the columns are."""
        left, top = self.scroll_offset
        width = self.size.width
        at = top + y - 1
        if y == 0:
            strip, style = self._head(), self.get_component_rich_style("table--head")
        elif at < len(self._rows):
            here = at == self._cursor
            strip = self._line(self._rows[at])
            style = self.get_component_rich_style("table--cursor") if here else self.rich_style
        else:
            return Strip.blank(width, self.rich_style)
        return strip.crop(left, left + width).extend_cell_length(width).apply_style(style)

    def _head(self) -> Strip:
        marked = []
        for n, column in enumerate(self.kind.columns):
            mark = ("▼" if self._reverse else "▲") if n == self._sort else ""
            marked.append((f"{column.head}{mark}", None))
        return self._strip(marked)

    def _line(self, row: Any) -> Strip:
        lost = bool(self.kind.trouble(row))
        dim = self._foreground("table--trouble") if lost else None
        cells = []
        for column in self.kind.columns:
            text = column.text(row)
            style = self._foreground(f"table--{column.style}") if column.style else dim
            cells.append((text, style if text != "-" else dim))
        return self._strip(cells)

    def _foreground(self, name: str) -> Style:
        return Style(color=self.get_component_rich_style(name, partial=True).color)

    def _strip(self, cells: Sequence[tuple[str, Style | None]]) -> Strip:
        segments = []
        last = len(cells) - 1
        for n, (text, style) in enumerate(cells):
            width = self._widths[n]
            if cell_len(text) > width:
                text = set_cell_size(text, width - 1) + "…"
            pad = " " * (width - cell_len(text))
            padded = pad + text if self._right[n] else text + pad
            segments.append(Segment(padded + (" " * APART if n < last else ""), style))
        return Strip(segments)

    # --- keys and mouse -------------------------------------------------------------------------

    def _go(self, to: int) -> None:
        self._cursor = max(0, min(to, len(self._rows) - 1))
        self._follows = self.kind.key(self.row) if self._rows else None
        self._show_cursor()
        self.refresh()
        self.post_message(self.Moved(self))

    def _show_cursor(self) -> None:
        """Scroll as far as is needed to see it below the heads."""
        if self._rows and self.size.height > 1:
            top, seen = self.scroll_offset.y, self.size.height - 1
            to = min(max(top, self._cursor - seen + 1), self._cursor)
            self.scroll_to(y=to, animate=False)
            self._resize()

    def action_move(self, by: int) -> None:
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        self._go(self._cursor + by * max(1, self.size.height - 2))

    def action_beside(self, by: int) -> None:
        self.scroll_to(x=self.scroll_offset.x + by * ASIDE, animate=False)

    def action_first(self) -> None:
        """To the top, and stay there whichever row that is."""
        self._go(0)
        self._follows = None

    def action_last(self) -> None:
        self._go(len(self._rows) - 1)

    def action_open(self) -> None:
        if self._rows:
            self.post_message(self.Opened(self, self.row))

    def action_sort(self, column: int) -> None:
        """By a column; once more: the other way round. Numbers begin with the largest."""
        if column < len(self.kind.columns):
            again = column == self._sort
            self._reverse = not self._reverse if again else self._right[column]
            self._sort, self.held = column, False
            self._arrange()

    def action_sort_beside(self, by: int) -> None:
        self.action_sort((self._sort + by) % len(self.kind.columns))

    def action_turn(self) -> None:
        self.action_sort(self._sort)

    def action_hold(self) -> None:
        self.held = not self.held
        self._arrange()

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            at = event.x + self.scroll_offset.x
            for n, width in enumerate(self._widths):
                if at < width + APART or n == len(self._widths) - 1:
                    self.action_sort(n)
                    return
                at -= width + APART
        clicked = self.scroll_offset.y + event.y - 1
        if clicked < len(self._rows):
            self._go(clicked)
            if event.chain == 2:
                self.action_open()
