"""Whether what is published is still what was published: every byte, row and record, at any later time.

A run's record says what its files held when they were checked against the plan (see `publish`); here both are compared
again, without the plan. What an older record doesn't say is not checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import older_rows, schema, storage
from pipeline.locate.precision import wkb_points
from pipeline.published import geoparquet, layout
from pipeline.published.geoparquet import Bbox
from pipeline.published.records import PublishedFile, RunRecord, as_rewritten, forgotten_list, read_record
from pipeline.run.photo_set import PhotoSet
from pipeline.run.retention import removed_files
from pipeline.run.tally import outcomes
from pipeline.storage import local_files
from pipeline.storage.duckdb import connect

_CHUNK_BYTES = 16 * 2**20
_ROWS_PER_BATCH = 65_536
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)
"""What reading a damaged Parquet file raises."""
_CODES = ", ".join(f"'{code}'" for code in schema.ErrorCode)
_IS_PROBABILITY = "BETWEEN 0 AND 1.000001"  # a sum of 32-bit numbers
_ROW_RULES = {
    "have a status that we don't know": "status NOT IN ('located', 'undecided', 'failed')",
    "are failed without an error code that we know": f"""
        status = 'failed' AND coalesce(error_code NOT IN ({_CODES}), true)""",
    "have not failed and have an error code": "status <> 'failed' AND error_code IS NOT NULL",
    "are failed and have a place": """
        status = 'failed' AND coalesce(lat_deg, lon_deg, radius_km, confidence, cell_id) IS NOT NULL""",
    "were looked at and have no position on Earth": """
        status <> 'failed' AND NOT coalesce(lat_deg BETWEEN -90 AND 90 AND lon_deg BETWEEN -180 AND 180, false)""",
    "were looked at and have no cell, radius or confidence": """
        status <> 'failed' AND (cell_id IS NULL OR NOT coalesce(radius_km >= 0, false) OR confidence IS NULL)""",
    "have half a context": """
        (context_lat_deg IS NULL) <> (context_photos IS NULL) OR (context_lat_deg IS NULL) <> (context_cell_id IS NULL)
        OR (context_lat_deg IS NULL) <> (context_lon_deg IS NULL)
        OR context_lat_deg IS NOT NULL AND NOT coalesce(context_radius_km >= 0
            AND context_lat_deg BETWEEN -90 AND 90 AND context_lon_deg BETWEEN -180 AND 180, false)
        OR context_lat_deg IS NOT NULL AND status = 'failed'""",
    "were looked at and have no levels": "status <> 'failed' AND coalesce(len(levels), 0) = 0",
    "have a probability that is none": f"""
        NOT coalesce(confidence {_IS_PROBABILITY}, true) OR NOT coalesce(context_confidence {_IS_PROBABILITY}, true)
        OR NOT coalesce(scene_probability {_IS_PROBABILITY}, true)
        OR len(list_filter(levels, lambda cell: NOT cell.probability {_IS_PROBABILITY})) > 0
        OR len(list_filter(alternatives, lambda cell: NOT cell.probability {_IS_PROBABILITY})) > 0""",
    "are of another run": "run_id <> $run_id",
    "are of another model": "model_id <> $model_id",
    "have another place in the order of runs": "run_sequence <> $sequence",
}
"""What no row may be, as the problem's words and a condition in SQL."""
_OFF_ITS_POINT = "have another geometry than position"


@dataclass(frozen=True)
class Problem:
    """Something amiss with what is published; `where` is relative to the output."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return it as one line, safe to print."""
        return schema.printable(f"{self.where}: {self.what}")


def verify_output(output: str) -> list[Problem]:
    """Return all that is amiss with the runs published at `output`; empty if nothing is. Reads every byte.

    Raises ValueError where nothing is published, and OSError where the store fails: that says nothing about the files.
    """
    output = storage.absolute(output)
    listing = _Listing(output)  # before the records: what a run commits meanwhile is no stray
    problems: list[Problem] = []
    records: dict[str, RunRecord] = {}
    for entry in storage.list_files(storage.join(output, layout.RUNS)):
        where = entry.uri.removeprefix(output + "/")
        if where.endswith(".json"):
            try:
                record = read_record(entry.uri)
                if not record.model_id and record.forgetting is None:
                    raise ValueError("says no model, files or photos")
                for file in record.files:
                    if not layout.is_published_file(file.path, record.run_id):
                        raise ValueError(f"names a file that can't be the run's: {file.path}")
            except ValueError as error:
                problems.append(Problem(where, str(error)))
            else:
                records[where] = record
    if not records and not problems and not listing.published:
        raise ValueError(f"nothing is published at {output}: run jobs.geotag_archive with --output {output} first")

    named = removed_files(output)
    if (forgotten := forgotten_list(output) if not problems else None) is not None:
        named.add(forgotten.path)
        problems += list_problems(output, forgotten, schema.FORGOTTEN)
    rewritten = as_rewritten(list(records.values()))
    for record in rewritten:
        where = layout.record("", record.run_id).lstrip("/")
        named |= {file.path for file in record.objects}
        problems += _Run(output, where, record).problems()
    problems += listing.problems(named, {record.run_id for record in records.values()})
    return problems


def list_problems(output: str, file: PublishedFile, columns: pa.Schema) -> list[Problem]:
    """Return what is amiss with a list of photos that a record names."""
    try:
        data = storage.read_bytes(storage.join(output, file.path))
    except FileNotFoundError:
        return [Problem(file.path, "is missing")]
    if hashlib.blake2b(data, digest_size=16).hexdigest() != file.digest:
        return [Problem(file.path, "its bytes are not those that were written")]
    is_right = pq.read_schema(pa.BufferReader(data)).equals(columns)
    return [] if is_right else [Problem(file.path, "has other columns than lists of photos have")]


class _Listing:
    """The output's objects, but for what an unfinished run has staged."""

    def __init__(self, output: str) -> None:
        self.published: list[str] = []
        self._lists: list[str] = []
        self._others: list[str] = []
        self._staged_runs: set[str] = set()
        for entry in storage.list_files(output):
            path = entry.uri.removeprefix(output + "/")
            folder, _, below = path.partition("/")
            if folder == layout.GONE and path.endswith(".parquet"):
                self._lists.append(path)
            elif folder == layout.PHOTOS and path.endswith(".parquet"):
                self.published.append(path)
            elif folder == layout.STAGING and below:
                self._staged_runs.add(layout.run_of(path))
            else:
                self._others.append(path)

    def problems(self, named: set[str], finished_runs: set[str]) -> Iterator[Problem]:
        """Yield what no record names and what was left over."""
        unfinished = self._staged_runs - finished_runs
        for path in self.published:
            if path not in named:
                is_unfinished = layout.run_of(path) in unfinished
                advice = "run the job again, which finishes the run" if is_unfinished else "remove the file"
                what = f"no run's record names it, but whoever reads all of {layout.PHOTOS}/ would count it: {advice}"
                yield Problem(path, what)
        for path in self._lists:
            if path not in named:
                yield Problem(path, "no run's record names it: the next run removes it")
        for path in self._others:
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".tmp") and layout.is_swept(path):
                yield Problem(path, "left over from a process that was killed: the next run removes it")
            elif name.endswith(".tmp") or name.startswith(".graticule-probe-") or path.startswith(f"{layout.PHOTOS}/"):
                yield Problem(path, "left over, and not ours to keep: remove it")
        for run_id in sorted(self._staged_runs & finished_runs):
            yield Problem(f"{layout.STAGING}/{run_id}", "left over from a finished run: the next run removes it")


class _Run:
    """One run's record against its files."""

    def __init__(self, output: str, where: str, record: RunRecord) -> None:
        self._output, self._where, self._record = output, where, record
        self._connection = connect()
        self._connection.execute("CREATE TABLE ids (photo_id BLOB)")
        self._counts: dict[tuple[str, str], int] = {}
        self._problems: list[Problem] = []

    def problems(self) -> list[Problem]:
        """Return all that is amiss."""
        with self._connection:
            if self._record.gone is not None:
                self._problems += list_problems(self._output, self._record.gone, schema.GONE)
            unread = [file.path for file in self._record.files if not self._check_file(file)]
            if not unread:  # else the sums would only say again that something is missing
                self._check_sums()
        return self._problems

    def _found(self, where: str, what: str) -> bool:
        self._problems.append(Problem(where, what))
        return False

    def _check_file(self, file: PublishedFile) -> bool:
        """Check one file by itself; return whether all of its rows could be read."""
        path = file.path
        try:
            with _local_copy(storage.join(self._output, path)) as (local, size_bytes, digest):
                if file.size_bytes not in (None, size_bytes):
                    return self._found(path, f"has {size_bytes} bytes, not {file.size_bytes}")
                if file.digest not in (None, digest):
                    return self._found(path, "its bytes are not those that were written")
                return self._check_content(path, local, file.row_count)
        except FileNotFoundError:
            return self._found(path, "is missing")
        except storage.ChangedError:
            return self._found(path, "was changed while it was read")

    def _check_content(self, path: str, local: Path, row_count: int | None) -> bool:
        try:
            parquet = pq.ParquetFile(local)
        except _UNREADABLE as error:
            return self._found(path, f"can't be read as Parquet: {error}")
        with parquet:
            if not parquet.schema_arrow.equals(older_rows.stored_columns(parquet.schema_arrow.names)):
                return self._found(path, "has other columns than published photos have")
            if row_count is not None and parquet.metadata.num_rows != row_count:
                self._found(path, f"has {parquet.metadata.num_rows} rows, not {row_count}")
            rules = _RowRules(self._record)
            is_whole = True
            for group in range(parquet.num_row_groups):
                try:
                    for batch in parquet.iter_batches(_ROWS_PER_BATCH, row_groups=[group]):
                        batch.validate(full=True)
                        rows = older_rows.as_photos(pa.Table.from_batches([batch]))
                        rules.take(rows)
                        self._take(rows)
                except _UNREADABLE as error:
                    is_whole = self._found(path, f"row group {group} can't be read: {error}")
            for what in rules.broken():
                self._found(path, what)
            if is_whole and not _is_geo(parquet.metadata.metadata, rules.bbox):
                self._found(path, "its `geo` metadata is not what GeoParquet asks for these rows")
        return is_whole

    def _take(self, rows: pa.Table) -> None:
        self._connection.register("batch", rows.select([schema.PHOTO_ID]))
        self._connection.execute("INSERT INTO ids FROM batch")
        for (status, code), count in outcomes(rows).items():
            self._counts[status, code] = self._counts.get((status, code), 0) + count

    def _check_sums(self) -> None:
        said = {} if self._record.photos is None else asdict(self._record.photos)
        by_code = {code: count for (_, code), count in sorted(self._counts.items()) if code}
        counted: dict[str, object] = {"failed": sum(by_code.values()), "failed_by_code": by_code}
        for status in (schema.Status.LOCATED, schema.Status.UNDECIDED):
            counted[status] = self._counts.get((status, ""), 0)
        for name, count in counted.items():
            if said.get(name) not in (None, count):
                self._found(self._where, f"says {name}: {said[name]}; its files say {count}")
        ((repeated, examples),) = self._connection.sql(
            """
            SELECT count(*), (list(hex(photo_id)))[:3] FROM (
                SELECT photo_id FROM ids GROUP BY photo_id HAVING count(*) > 1)
            """
        ).fetchall()
        if repeated:
            self._found(self._where, f"{repeated} photos have several rows in its files, for example {examples}")
        found = PhotoSet.of(self._connection.sql("SELECT photo_id FROM ids").to_arrow_reader(1_000_000)).fingerprint
        if said.get("fingerprint") not in (None, found):
            self._found(self._where, "the photos in its files are not those that were planned")


class _RowRules:
    """Counts the rows of one file that are not as a row must be, a batch at a time."""

    def __init__(self, record: RunRecord) -> None:
        self._ids = {"run_id": record.run_id, "model_id": record.model_id, "sequence": record.sequence}
        self._connection = connect()
        self._broken: dict[str, tuple[int, str]] = {}
        self.bbox: Bbox | None = None

    def take(self, rows: pa.Table) -> None:
        """Count what is wrong in `rows` and widen `bbox`."""
        self._connection.register("batch", rows.drop_columns([schema.GEOMETRY]))  # which DuckDB would want to parse
        columns = ", ".join(f"count(*) FILTER ({rule}), min(uri) FILTER ({rule})" for rule in _ROW_RULES.values())
        (counted,) = self._connection.execute(f"SELECT {columns} FROM batch", self._ids).fetchall()
        for index, what in enumerate(_ROW_RULES):
            self._count(what, *counted[2 * index : 2 * index + 2])
        strays = rows.column(schema.URI).filter(pa.array(~_is_at_its_point(rows))).to_pylist()
        self._count(_OFF_ITS_POINT, len(strays), min(strays, default=None))
        self.bbox = _union(self.bbox, geoparquet.bbox_of(rows))

    def broken(self) -> Iterator[str]:
        """Yield each rule that rows break, with how many and which is the first."""
        for what in (*_ROW_RULES, _OFF_ITS_POINT):
            if what in self._broken:
                rows, example = self._broken[what]
                yield f"{rows} rows {what}, for example {example}"

    def _count(self, what: str, rows: int, example: str | None) -> None:
        if rows:
            before, first = self._broken.get(what, (0, str(example)))
            self._broken[what] = (before + rows, min(first, str(example)))


def _is_at_its_point(rows: pa.Table) -> np.ndarray:
    """Return for each row whether its geometry is the WKB of its position; both null is right, too."""
    lat_deg, lon_deg = (rows.column(name) for name in (schema.LAT_DEG, schema.LON_DEG))
    is_null = pc.or_(pc.is_null(lat_deg), pc.is_null(lon_deg))
    points = wkb_points(lat_deg.fill_null(0.0).to_numpy(), lon_deg.fill_null(0.0).to_numpy())
    geometry = rows.column(schema.GEOMETRY)
    is_equal = pc.fill_null(pc.equal(geometry, points), False)
    return np.asarray(pc.if_else(is_null, pc.is_null(geometry), is_equal).to_numpy())


def _is_geo(file_metadata: dict[bytes, bytes] | None, bbox: Bbox | None) -> bool:
    try:
        return bool(json.loads((file_metadata or {})[b"geo"]) == geoparquet.metadata(bbox))
    except (KeyError, ValueError):
        return False


def _union(one: Bbox | None, other: Bbox | None) -> Bbox | None:
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


@contextlib.contextmanager
def _local_copy(uri: str) -> Iterator[tuple[Path, int, str]]:
    """Read the whole object at `uri`; give a local file of it (itself, if it is one), its size and its digest."""
    entry = storage.head(uri)
    digest = hashlib.blake2b(digest_size=16)
    with tempfile.TemporaryDirectory(prefix="graticule-verify-") as folder:
        copy = Path(folder) / "part.parquet"
        with copy.open("wb") as file:
            for start in range(0, entry.size_bytes, _CHUNK_BYTES):
                chunk = storage.read_range(uri, start, min(_CHUNK_BYTES, entry.size_bytes - start), entry.etag)
                digest.update(chunk)
                if storage.is_remote(uri):
                    file.write(chunk)
        local = copy if storage.is_remote(uri) else Path(os.fsdecode(local_files.path_of(uri)))
        yield local, entry.size_bytes, digest.hexdigest()
