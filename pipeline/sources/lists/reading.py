"""One reading of a list, of one file or of all its parts: what it had, and which of its rows are wrong, and how."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import ProblemKind
from pipeline.sources.lists.rows import Rows
from pipeline.sources.lists.values import WANTED, Understood, shown
from pipeline.sources.search import Search

log = logging.getLogger(__name__)


class Reading:
    """Counts a list's rows, and keeps of each thing that is wrong how often it is, and where first.

    `folder` is where relative names lie; `part` the file that is read just now.
    """

    def __init__(self, source: str, folder: str, search: Search) -> None:
        self.source, self.folder, self.search = source, folder, search
        self.part = source
        self.rows = self.windows_names = 0
        self._dropped, self._unreadable, self._unread_parts = 0, 0, 0
        self._why_dropped, self._why_unreadable, self._why_unread = "", "", ""
        self._odd: dict[str, tuple[int, str]] = {}
        self._given: dict[str, int] = {}

    def where(self, number: int) -> str:
        """Return which row that is, with its file where there are several."""
        return f"row {number}" if self.part == self.source else f"row {number} of {self._part_name}"

    @property
    def _part_name(self) -> str:
        return self.part.removeprefix(f"{self.source.rstrip('/')}/")

    def drop(self, is_dropped: pa.Array, rows: Rows, reason: str) -> None:
        """Count rows that name no photo at all, so that none can have a row of its own."""
        count = is_dropped.true_count
        if count and not self._why_dropped:
            self._why_dropped = f"{self.where(rows.number_of(pc.index(is_dropped, True).as_py()))} {reason}"
        self._dropped += count

    def lose(self, number: int, reason: str) -> None:
        """Count a row that could not be taken apart."""
        self._why_dropped = self._why_dropped or f"{self.where(number)} {reason}"
        self._dropped += 1
        self.rows += 1

    def lose_part(self, reason: str) -> None:
        """Count a part that can't be read, or not to its end."""
        self._why_unread = self._why_unread or reason
        self._unread_parts += 1

    def note_no_text(self, index: int, rows: Rows) -> None:
        """Keep where a name is no text: what names no photo is counted as such."""
        where = self.where(rows.number_of(index))
        self._why_dropped = self._why_dropped or f"{where} has a uri that is no UTF-8: save the list as UTF-8"

    def note_unreadable(self, index: int, rows: Rows, reason: str) -> None:
        """Count a row whose photo can't be read, as its name alone says: it fails as any other, if not all do."""
        self._why_unreadable = self._why_unreadable or f"{self.where(rows.number_of(index))}: {reason}"
        self._unreadable += 1

    def understood(self, meaning: str, given: pa.Array, rows: Rows, found: Understood) -> pa.Array:
        """Count values that can't be understood, and return the others."""
        self._given[meaning] = self._given.get(meaning, 0) + len(given) - given.null_count
        if found.odd:
            count, why = self._odd.get(meaning, (0, ""))
            if not count:
                odd = found.odd[0]
                why = f"in {self.where(rows.number_of(odd))} it is {shown(given[odd])}: {WANTED[meaning]}"
            self._odd[meaning] = count + len(found.odd), why
        return found.values

    def finish(self) -> None:
        """Say what was wrong; ValueError where no row is right, so that it must be meant otherwise."""
        if self._unread_parts and not self.rows:
            raise ValueError(self._why_unread)
        if not self.rows:
            raise ValueError(f"no photos in {self.source}: the manifest has no rows")
        if self._dropped == self.rows:
            raise ValueError(f"{self.source}, {self._why_dropped}, and so it is with every row")
        if self._unreadable and self._unreadable + self._dropped == self.rows:
            raise ValueError(f"{self.source}, {self._why_unreadable}")
        for meaning, (count, why) in self._odd.items():
            if count == self._given[meaning]:
                raise ValueError(f"{self.source}: column {meaning} can't be understood: {why}. So it is with every row")
        self._note()

    def _note(self) -> None:
        note, source = self.search.note, self.source
        if self._unread_parts:
            note(ProblemKind.ROW, source, f"{self._unread_parts} of its files can't be read: {self._why_unread}")
        if self._dropped:
            note(ProblemKind.ROW, source, f"{self._dropped} of its rows name no photo: {self._why_dropped}")
        for meaning, (count, why) in self._odd.items():
            note(ProblemKind.ROW, source, f"{count} of its rows are listed without their {meaning}: {why}")
        if self._unreadable:
            log.warning("%s: %d photos can't be read; %s", source, self._unreadable, self._why_unreadable)
        if self.windows_names:
            log.info("%s: %d names with backslashes are taken for Windows' paths", source, self.windows_names)
