"""What every reader of a list hands over: rows as they stand in a file, and rows that it could not take apart."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import storage


@dataclass(frozen=True)
class Rows:
    """Some rows of a list in its order.

    Attributes:
        columns: by `schema.URI` (always) and so on, and `columns.BUCKET`; of any type that `values` takes.
        first: the number of the first row, as a person would count them.
        missing: numbers, ascending, of rows from there on that are none of these: lost ones, comments, headers.
        is_from_windows: whether the file's line ends are those of Windows, so that a backslash stands between folders.
    """

    columns: dict[str, pa.Array]
    first: int
    missing: Sequence[int] = ()
    is_from_windows: bool = False

    def number_of(self, index: int) -> int:
        """Return the number of a row in its file."""
        number = self.first + index
        at = bisect.bisect_left(self.missing, self.first)
        while at < len(self.missing) and self.missing[at] <= number:
            number += 1
            at += 1
        return number


Lose = Callable[[int, str], None]
"""Takes note of a row, by its number, that could not be taken apart, and why."""
Reader = Callable[[storage.Entry, Lose], Iterator[Rows]]
"""Yields the rows of a file; raises `columns.UnreadableListError` where it is not the list that it should be."""
