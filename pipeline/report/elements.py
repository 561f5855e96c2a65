"""What pages are made of, as their code gives it to the macros of `templates/macros.html.jinja`, which write the HTML.

Every text is plain here: the templates escape it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NONE = "–"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Noted:
    """A text with more of it in brackets, which a table shows in small print."""

    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.text} ({self.note})"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row. `kind`: its class in the style sheet, numbers or words."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Noted]]
    kind: str = "numbers"

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), self.caption


@dataclass(frozen=True)
class BarRow:
    """One count of a table of bars, its bar's length in percent of the column's, and its share of the whole."""

    label: str
    photos: int
    length_percent: float
    share: str


@dataclass(frozen=True)
class Bars:
    """A table that is its own chart: the bars are among the numbers, and grow with the screen."""

    caption: str
    what: str
    rows: Sequence[BarRow]

    @classmethod
    def of(
        cls, caption: str, what: str, counts: Iterable[tuple[str, int]], whole: int, longest: int | None = None
    ) -> Bars:
        """Return bars for (label, photos), shares of `whole`; `longest`: the photos of a full bar, else the most."""
        counts = list(counts)
        full = longest or max((count for _, count in counts), default=0) or 1
        return cls(caption, what, [BarRow(name, n, n / full * 100, percent(n, whole)) for name, n in counts])


@dataclass(frozen=True)
class Look:
    """What the model looked at in one photo: a JPEG contact sheet, and the same in words, one for each level."""

    name: str
    facts: str
    sheet_jpeg: bytes
    words_H: Sequence[str]

    @property
    def table(self) -> Table:
        """The words, level by level."""
        rows = [[f"level {level}", text] for level, text in enumerate(self.words_H)]
        return Table("Most looked at", ["level", "where"], rows, "words")


def percent(part: int, whole: int) -> str:
    """Return a part in percent of the whole; a dash where the whole is nothing."""
    return f"{part / whole:.1%}" if whole else NONE
