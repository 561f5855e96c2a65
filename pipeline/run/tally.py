"""How far a run's processes have come: what metrics count, and what a watchdog takes for progress."""

from __future__ import annotations

import collections
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.decode import kinds
from pipeline.run import staging
from pipeline.storage.duckdb import connect, view_rows

_MOST_ENDINGS = 20
Outcomes = Mapping[tuple[str, str], int]
"""Photos by status and error code, "" where there is none."""


@dataclass(frozen=True)
class Fetches:
    """How photos came to be read: how many, the codes of those that failed to be fetched, and the words of one."""

    photos: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)
    example: str = ""

    @property
    def failed(self) -> int:
        """Photos that failed to be fetched."""
        return sum(self.failed_by_code.values())


@dataclass(frozen=True)
class Progress:
    """What was done so far. `counted_by` names the Tally that counted it: one that replaces a lost one begins anew.

    `waiting` are copies that have no answer yet; `engines` are those that have been loaded. Photos that were read or
    located again, because a process died, count again; staged ones do not. `last` is how the last ones came.
    """

    counted_by: str
    read: int
    located: int
    waiting: int
    engines: int
    outcomes: Outcomes
    last: Fetches = field(default_factory=Fetches)

    @property
    def staged(self) -> int:
        """Photos that have their row."""
        return sum(self.outcomes.values())


class Tally:
    """Counts what a run's processes tell it; lives for one start of the run.

    It remembers how the last `remembered` photos came, or a few more, as it is told of several at once.
    """

    def __init__(self, remembered: int = 200) -> None:
        self._id = uuid.uuid4().hex
        self._read = self._located = self._waiting = self._engines = 0
        self._outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self._parts: set[str] = set()
        self._remembered = remembered
        self._last: collections.deque[Fetches] = collections.deque()
        self._last_photos = 0

    def note_read(self, fetches: Fetches) -> None:
        """Count photos that were fetched and decoded, or failed to be."""
        self._read += fetches.photos
        self._last.append(fetches)
        self._last_photos += fetches.photos
        while self._last_photos - self._last[0].photos >= self._remembered:
            self._last_photos -= self._last.popleft().photos

    def note_engine(self) -> None:
        """Count an engine that is ready."""
        self._engines += 1

    def note_located(self, photos: int) -> None:
        """Count photos that the engine's stage let pass, failed ones and copies among them."""
        self._located += photos

    def note_staged(self, part: str, outcomes: Outcomes) -> None:
        """Count the rows of a part, once, whoever stages it again."""
        if part not in self._parts:
            self._parts.add(part)
            self._outcomes.update(outcomes)

    def note_waiting(self, part: str, photos: int) -> None:
        """Count the copies of a part, likewise."""
        if part not in self._parts:
            self._parts.add(part)
            self._waiting += photos

    def progress(self) -> Progress:
        """Return what was counted so far."""
        failed: collections.Counter[str] = collections.Counter()
        for fetches in self._last:
            failed.update(fetches.failed_by_code)
        example = next((fetches.example for fetches in reversed(self._last) if fetches.example), "")
        return Progress(
            self._id,
            self._read,
            self._located,
            self._waiting,
            self._engines,
            dict(self._outcomes),
            Fetches(self._last_photos, dict(failed), example),
        )


def outcomes(rows: pa.Table) -> Outcomes:
    """Return how the photos of rows of `schema.PHOTOS` ended."""
    counted = rows.group_by([schema.STATUS, schema.ERROR_CODE]).aggregate([([], "count_all")]).to_pylist()
    return {(row[schema.STATUS], row[schema.ERROR_CODE] or ""): row["count_all"] for row in counted}


def skipped_by_kind(rows: Iterable[pa.Table | pa.RecordBatch]) -> dict[str, dict[str, int]]:
    """Count rows of what was no photo by kind and by their names' endings, the most frequent first.

    Of each kind the endings beyond the first are gathered under `others`: anybody can make up as many as they like.
    """
    counted: dict[str, collections.Counter[str]] = {}
    for part in rows:
        is_skipped = pc.equal(part.column(schema.STATUS), str(schema.Status.SKIPPED))
        formats, uris = (part.filter(is_skipped).column(name).to_pylist() for name in (schema.FORMAT, schema.URI))
        for format_name, uri in zip(formats, uris, strict=True):
            counted.setdefault(kinds.group_of(format_name), collections.Counter())[kinds.ending_of(uri)] += 1
    by_kind = {}
    for kind, endings in sorted(counted.items(), key=lambda item: -item[1].total()):
        by_kind[str(kind)] = dict(sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:_MOST_ENDINGS])
        if rest := endings.total() - sum(by_kind[str(kind)].values()):
            by_kind[str(kind)]["others"] = rest
    return by_kind


def staged_outcomes(stage: staging.Stage) -> Outcomes:
    """Return how the photos ended that a run has staged, each once, by its newest row."""
    files = stage.row_files()
    if not files:
        return {}
    with connect(stage.folder) as connection:
        view_rows(connection, "staged", files)
        found = connection.sql(
            """
            SELECT status, coalesce(error_code, ''), count(*) FROM (
                SELECT photo_id, arg_max(status, file_index) AS status,
                    CASE WHEN arg_max(status, file_index) IN ('failed', 'skipped')
                        THEN arg_max(error_code, file_index) END AS error_code
                FROM staged GROUP BY photo_id)
            GROUP BY ALL
            """
        ).fetchall()
    return {(status, code): count for status, code, count in found}
