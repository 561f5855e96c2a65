"""A finished run becomes few large GeoParquet files, sorted by cell and checked against its plan; its record is last.

First come the files, then the record, which is committed through the lease (see `layout`). A run counts once its
record exists, so whatever interrupts publishing leaves nothing that a reader takes for an
answer. The epoch is in the names so that a driver that slept through its lease never writes over its successor's.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import older_rows, schema, storage
from pipeline.published import geoparquet, layout, records
from pipeline.published.geoparquet import Bbox
from pipeline.published.records import PublishedFile, RunRecord
from pipeline.run import staging
from pipeline.run.photo_set import PhotoSet, UnaccountedError, id_bytes
from pipeline.storage.duckdb import connect

LEAST_ROWS_PER_FILE = 500_000
"""A file has so many rows to twice as many, if the run has: some 180 to 370 MB, which a writer holds in memory."""
APART_KM = 1.0
"""Recorded positions of one photo that are farther apart disagree: nearer ones are rounded, or of another fix."""
_NAMED_PHOTOS = 20
_ORDER = "ORDER BY cell_id NULLS LAST, photo_id"
_STAGED = schema.PHOTOS.append(pa.field("filename", pa.string())).append(pa.field("file_row_number", pa.int64()))


@dataclass(frozen=True)
class Published:
    """What a run published: its files, how many photos ended in which way, and the fingerprint of all of them.

    `fingerprint` is of the planned photos, which those in the files were checked to be: see `fingerprint`.
    `recorded_apart` counts the photos of which two recorded positions are more than `APART_KM` from each other.
    """

    files: tuple[PublishedFile, ...]
    located: int
    failed_by_code: dict[str, int]
    fingerprint: str
    undecided: int = 0
    recorded_apart: int = 0

    @property
    def failed(self) -> int:
        """Photos that could not be looked at."""
        return sum(self.failed_by_code.values())

    @property
    def photos(self) -> PhotoSet:
        """Which photos have a row."""
        return PhotoSet(self.located + self.undecided + self.failed, self.fingerprint)


@dataclass(frozen=True)
class FileRange:
    """What one file is to hold: `row_count` rows from the one with `first_key` on, in a box."""

    first_key: bytes
    row_count: int
    bbox: Bbox | None


@dataclass(frozen=True)
class Selection:
    """The staged rows to publish: all of `row_files` but those `dropped`, by their numbers in each file; and where."""

    row_files: tuple[str, ...]
    dropped: dict[str, list[int]]
    ranges: tuple[FileRange, ...]


def publish(
    stage: staging.Stage,
    write_elsewhere: Callable[[staging.Stage, Selection], Sequence[PublishedFile]] | None = None,
    elsewhere_above_rows: int = 0,
) -> Published:
    """Write the stage's rows as the run's published files, sorted by cell, each planned photo exactly once.

    Where a photo was staged twice (a retried task, a photo changed between two starts) the row of the highest epoch
    stands. More than `elsewhere_above_rows` rows are sorted and written by `write_elsewhere`, if given, else by DuckDB
    in this process.
    Raises UnaccountedError where planned photos and staged or written rows differ. Writes no record.
    """
    with contextlib.closing(_Accounts(stage)) as accounts:
        accounts.check("staged", "no row")
        photos = accounts.planned().fingerprint
        ranges = accounts.ranges()
        if not ranges:
            return Published((), 0, {}, photos)
        try:
            if write_elsewhere is not None and sum(part.row_count for part in ranges) > elsewhere_above_rows:
                files = tuple(write_elsewhere(stage, accounts.selection(ranges)))
            else:
                files = tuple(_write_here(stage, ranges, accounts.sorted_rows()))
            accounts.take_written(files)  # what readers will read, not what was to be written
            accounts.check("written", "no row", "several rows", "not planned")
        except BaseException:
            with contextlib.suppress(OSError):  # where the store is the reason, the next holder removes them
                discard(stage)
            raise
        outcomes, recorded_apart = accounts.outcomes(), accounts.recorded_apart()
    located, undecided = (outcomes.pop((status, None), 0) for status in ("located", "undecided"))
    failed_by_code = {str(code): count for (_, code), count in outcomes.items()}
    return Published(files, located, failed_by_code, photos, undecided, recorded_apart)


def put_file(stage: staging.Stage, index: int, groups: Iterable[pa.Table], bbox: Bbox | None) -> PublishedFile:
    """Write sorted row groups as the run's file number `index` in one atomic put.

    Row groups go through a local temporary file; then the whole compressed file is held in memory. The same rows make
    the same bytes under the same name: doing it again does no harm.
    """
    with tempfile.TemporaryDirectory(prefix="graticule-publish-") as folder:
        path = Path(folder) / "part.parquet"
        row_count = 0

        def counted() -> Iterable[pa.Table]:
            nonlocal row_count
            column = schema.PHOTOS.get_field_index(schema.RUN_SEQUENCE)
            for group in groups:
                row_count += group.num_rows
                sequence = pa.array(np.full(group.num_rows, stage.epoch, np.int64))
                yield group.set_column(column, schema.PHOTOS.field(column), sequence)

        geoparquet.write(path, counted(), bbox)
        data = path.read_bytes()
    uri = layout.published_file(stage.output, stage.run_id, stage.epoch, index)
    storage.write_bytes(uri, data)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return PublishedFile(uri.removeprefix(stage.output + "/"), row_count, len(data), digest)


def put_record(stage: staging.Stage, record: RunRecord) -> str:
    """Let a run count where nobody else can write to the output (else the lease's holder commits it); the record's URI.

    Removes the run's staging.
    """
    uri = records.put_record(stage.output, record)
    stage.delete()
    return uri


def check_all_published(published: Published, planned: PhotoSet, stage: staging.Stage) -> None:
    """Raise UnaccountedError, and remove what was published, where that is not what this process has planned.

    `publish` compares with the plan's files, which somebody could have removed since.
    """
    if published.photos != planned:
        discard(stage)
        raise UnaccountedError(
            f"{published.photos.count} photos would be published, and this run has planned {planned.count}, or other"
            f" ones: the plan below {stage.folder} was changed by somebody else. Nothing is published; run the same"
            " command again"
        )


def discard(stage: staging.Stage) -> None:
    """Remove the files that this epoch has written for the run: only where they certainly are not to count."""
    for entry in storage.list_files(layout.published_folder(stage.output, stage.run_id)):
        if layout.published_epoch(entry.uri) == stage.epoch:
            storage.delete(entry.uri)


def sort_keys(rows: pa.Table) -> np.ndarray:
    """Return a key of 24 bytes for each row: cell, none last, then photo; keys sort as the rows are published."""
    cells = rows.column(schema.CELL_ID).cast(pa.uint64())
    last = pa.scalar(2**64 - 1, pa.uint64())  # which names no cell
    cells_N = np.ascontiguousarray(cells.fill_null(last).to_numpy().astype(">u8"))
    keys_N24 = np.hstack([cells_N.view(np.uint8).reshape(-1, 8), id_bytes(rows.column(schema.PHOTO_ID))])
    return np.ascontiguousarray(keys_N24).view("S24").reshape(-1)


def file_index(rows: pa.Table, ranges: Sequence[FileRange]) -> np.ndarray:
    """Return for each row the number of the file that it belongs to."""
    starts = np.array([file.first_key for file in ranges], "S24")
    return np.searchsorted(starts, sort_keys(rows), side="right") - 1


def _write_here(
    stage: staging.Stage, ranges: Sequence[FileRange], rows: Iterable[pa.RecordBatch]
) -> Iterator[PublishedFile]:
    groups = geoparquet.cut(rows, (size for part in ranges for size in geoparquet.group_sizes(part.row_count)))
    for index, part in enumerate(ranges):
        own = itertools.islice(groups, len(geoparquet.group_sizes(part.row_count)))
        yield put_file(stage, index, own, part.bbox)


class _Accounts:
    """A stage's plan against its rows, in DuckDB: which are to be published, and whether any photo is amiss."""

    def __init__(self, stage: staging.Stage) -> None:
        self._stage = stage
        self._connection = connect(stage.folder)
        self._row_files = stage.row_files()
        self._view("plan", stage.plan_files(), schema.MANIFEST)
        self._view("staged", self._row_files, _STAGED)
        self._connection.execute(
            f"""
            CREATE TABLE planned AS SELECT DISTINCT photo_id FROM plan;
            -- Nearly always few: rows are told by file and number, so that no wide table is grouped.
            CREATE TABLE repeated AS SELECT photo_id FROM staged GROUP BY photo_id HAVING count(*) > 1;
            CREATE TABLE dropped AS
            SELECT filename, file_row_number FROM (
                SELECT filename, file_row_number, row_number() OVER (
                    PARTITION BY photo_id
                    ORDER BY {staging.EPOCH_SQL} DESC, filename, file_row_number) AS place
                FROM staged SEMI JOIN repeated USING (photo_id)) WHERE place > 1
            UNION
            SELECT filename, file_row_number FROM staged ANTI JOIN planned USING (photo_id);
            CREATE VIEW kept AS SELECT * FROM staged ANTI JOIN dropped USING (filename, file_row_number);
            """
        )

    def close(self) -> None:
        """Give back DuckDB's memory and its files."""
        self._connection.close()

    def check(self, rows: str, *problems: str) -> None:
        """Raise UnaccountedError, after writing the whole list below the stage, where `rows` have these problems."""
        queries = {
            "no row": f"""FROM plan SEMI JOIN (FROM planned ANTI JOIN {rows} USING (photo_id)) USING (photo_id)""",
            "several rows": f"""FROM {rows} SEMI JOIN (
                SELECT photo_id FROM {rows} GROUP BY photo_id HAVING count(*) > 1) USING (photo_id)""",
            "not planned": f"FROM {rows} ANTI JOIN planned USING (photo_id)",
        }
        listed = " UNION ALL ".join(
            f"(SELECT DISTINCT photo_id, uri, '{problem}' AS problem {queries[problem]})" for problem in problems
        )
        found = self._connection.sql(f"{listed} ORDER BY problem, uri").to_arrow_table()
        if not found.num_rows:
            return
        list_uri = storage.join(self._stage.folder, f"unaccounted-e{self._stage.epoch}.parquet")
        storage.write_bytes(list_uri, staging.parquet_bytes(found))
        named = "\n".join(
            f"  {row['problem']}: {schema.printable(row[schema.URI])}"
            for row in found.slice(0, _NAMED_PHOTOS).to_pylist()
        )
        raise UnaccountedError(
            f"{found.num_rows} photos are not accounted for among the {rows} rows; nothing is published. The first of"
            f" them, all of which {list_uri} names:\n{named}"
        )

    def planned(self) -> PhotoSet:
        """Return which photos the plan's files hold."""
        return PhotoSet.of(self._connection.sql("SELECT photo_id FROM planned").to_arrow_reader(1_000_000))

    def ranges(self) -> tuple[FileRange, ...]:
        """Return what each file is to hold: told by the rows' order, position and number alone, which are small."""
        ((row_count,),) = self._connection.sql("SELECT count(*) FROM kept").fetchall()
        if not row_count:
            return ()
        columns = ", ".join((schema.CELL_ID, schema.PHOTO_ID, schema.LAT_DEG, schema.LON_DEG))
        order = self._connection.sql(f"SELECT {columns} FROM kept {_ORDER}").to_arrow_reader(geoparquet.ROWS_PER_GROUP)
        sizes = geoparquet.even_parts(row_count, max(1, row_count // LEAST_ROWS_PER_FILE))
        return tuple(
            FileRange(bytes(sort_keys(rows.slice(0, 1))[0]), rows.num_rows, geoparquet.bbox_of(rows))
            for rows in geoparquet.cut(order, sizes)
        )

    def selection(self, ranges: tuple[FileRange, ...]) -> Selection:
        """Return which staged rows are to be published."""
        dropped = self._connection.sql(
            "SELECT filename, list(file_row_number ORDER BY file_row_number) FROM dropped GROUP BY filename"
        ).fetchall()
        assert {file for file, _ in dropped} <= set(self._row_files), "DuckDB names a file as we do"
        return Selection(tuple(self._row_files), dict(dropped), ranges)

    def sorted_rows(self) -> Iterable[pa.RecordBatch]:
        """Return the rows to publish, in order, as a stream; DuckDB sorts on disk what passes its memory limit."""
        columns = ", ".join(schema.PHOTOS.names)
        reader: Iterable[pa.RecordBatch] = self._connection.sql(f"SELECT {columns} FROM kept {_ORDER}").to_arrow_reader(
            geoparquet.ROWS_PER_GROUP
        )
        return reader

    def take_written(self, files: Sequence[PublishedFile]) -> None:
        """Make what was written the rows `written`."""
        self._view("written", [storage.join(self._stage.output, file.path) for file in files], schema.PHOTOS)

    def outcomes(self) -> dict[tuple[str, str | None], int]:
        """Return how many written rows have which status and error code."""
        counted = self._connection.sql(
            "SELECT status, error_code, count(*) FROM written GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return {(status, code): count for status, code, count in counted}

    def recorded_apart(self) -> int:
        """Return of how many written rows the recorded positions disagree."""
        ((count,),) = self._connection.sql(
            f"SELECT count(*) FROM written WHERE recorded_apart_km > {APART_KM}"
        ).fetchall()
        return int(count)

    def _view(self, name: str, files: Sequence[str], columns: pa.Schema) -> None:
        if files:
            is_staged = columns is _STAGED
            rows = self._connection.read_parquet(
                list(files), hive_partitioning=False, filename=is_staged, file_row_number=is_staged, union_by_name=True
            )
            if not set(columns.names) <= set(rows.columns):  # an older version staged them, or made the plan
                self._connection.register(f"no_{name}", columns.empty_table())
                rows.create_view(f"older_{name}")
                own = ", ".join(filter(None, (older_rows.column_sql(each, rows.columns) for each in columns.names)))
                rows = self._connection.sql(f"FROM no_{name} UNION ALL BY NAME SELECT {own} FROM older_{name}")
            rows.create_view(name)
        else:
            self._connection.register(name, columns.empty_table())
