"""Pictures: what viewers are told of one moment.

A viewer is told what has changed since the last picture where he has that one, and all there is
where he has not. So nothing is kept for a viewer but the number of what he has seen, however slow
he is; and what is told is written once for all who look at the same page.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from pubsub.dashboard.moments import PAGES, Moment, Row, Rows
from pubsub.stats import Stats

__all__ = ["Page", "Picture"]


class Page(NamedTuple):
    """What a viewer looks at."""

    kind: str
    """One of `PAGES`."""
    name: str = ""
    """Of the topic; of a process `Told.publisher`."""


class Picture:
    """What viewers are told of a moment.

    Parameters:
        number: of the picture, from 1.
        moment: that it is of.
        before: the picture before it, which is to have none before it any more.
    """

    def __init__(self, number: int, moment: Moment, before: Picture | None = None) -> None:
        self.number = number
        self._moment = moment
        self._before = before
        self._rows: dict[Page, tuple[Rows, Row]] = {}
        self._written: dict[tuple[Page, bool], bytes] = {}

    def age(self) -> None:
        """Another has taken its place: of the one before it nothing is needed any more."""
        self._before = None

    @property
    def stats(self) -> list[Stats]:
        """Of all that tell."""
        return self._moment.stats

    def write(self, page: Page, seen: int) -> bytes:
        """What a viewer of a page is told, as an event of a stream.

        Parameters:
            page: that he looks at.
            seen: the number of the picture that he has of it; 0: none.
        """
        before = self._before
        change = before is not None and seen == before.number and page in before._rows
        found = self._written.get((page, change))
        if found is None:
            rows, more = self._of(page)
            known = before._rows[page][0] if change and before is not None else {}
            event = {
                "n": self.number,
                "full": not change,
                "at": round(self._moment.at, 1),
                **self._moment.head,
                "more": more,
                "rows": {key: row for key, row in rows.items() if known.get(key) != row},
                "gone": [key for key in known if key not in rows],
            }
            if not change and page.kind in ("topics", "topic"):
                names = rows if page.kind == "topics" else [page.name]
                event["past"] = {name: [*self._moment.past.rates.get(name, ())] for name in names}
            text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
            # A lone half of a pair, which JSON carries as \ud800, is no text in UTF-8.
            found = b"data: %s\n\n" % text.encode(errors="replace")
            self._written[page, change] = found
        return found

    def _of(self, page: Page) -> tuple[Rows, Row]:
        if page not in self._rows:
            self._rows[page] = PAGES[page.kind](self._moment, page.name)
        return self._rows[page]
