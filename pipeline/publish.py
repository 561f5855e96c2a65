"""A finished run becomes few large GeoParquet files, checked against its plan; its record is written last.

Layout: `photos/run=<run_id>/part-00000.parquet …`, then `runs/<run_id>.json`. A run counts once its record exists, so
whatever interrupts publishing leaves nothing that a reader takes for an answer.
Source of the file format: GeoParquet 1.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema, staging, storage
from pipeline.plan import connect

RUNS_FOLDER = "runs"
_ROWS_PER_FILE = 1_000_000


@dataclass(frozen=True)
class PublishedFile:
    """One published file; `path` is relative to the output."""

    path: str
    row_count: int
    size_bytes: int


@dataclass(frozen=True)
class Published:
    """What a run published: its files, and how many photos ended in which way."""

    files: tuple[PublishedFile, ...]
    located: int
    failed_by_code: dict[str, int]

    @property
    def failed(self) -> int:
        """Photos without a place."""
        return sum(self.failed_by_code.values())


class UnaccountedError(Exception):
    """Planned and staged photos differ: a bug or a damaged staging folder; nothing was published."""


def publish(stage: staging.Stage) -> Published:
    """Write the stage's rows as the run's published files, sorted by cell, each planned photo exactly once.

    Where a photo was staged twice (a retried task, a photo changed between two starts) the newer row stands.
    Raises UnaccountedError before anything is written where planned and staged photos differ.
    """
    storage.delete_folder(_folder(stage))  # what an interrupted publishing of this same run left
    with connect(stage.folder) as connection:
        plan_files, row_files = stage.plan_files(), stage.row_files()
        if not plan_files:
            return Published((), 0, {})
        connection.execute(
            "CREATE TABLE planned AS SELECT photo_id, uri FROM read_parquet($files)",
            {"files": plan_files},
        )
        if not row_files:
            raise UnaccountedError("photos are planned but no row is staged")
        connection.execute(
            """
            CREATE TABLE newest AS SELECT photo_id, max(processed_at) AS processed_at
            FROM read_parquet($files) GROUP BY photo_id
            """,
            {"files": row_files},
        )
        missing = connection.sql("SELECT uri FROM planned ANTI JOIN newest USING (photo_id) ORDER BY uri").fetchall()
        if missing:
            examples = ", ".join(schema.printable(uri) for (uri,) in missing[:5])
            raise UnaccountedError(f"{len(missing)} planned photos have no row, for example {examples}")
        rows = connection.sql(
            """
            SELECT * FROM read_parquet($files) SEMI JOIN planned USING (photo_id)
            SEMI JOIN newest USING (photo_id, processed_at)
            QUALIFY row_number() OVER (PARTITION BY photo_id) = 1
            ORDER BY cell_id NULLS LAST, photo_id
            """,
            params={"files": row_files},
        )
        files = tuple(_put_files(stage, rows.to_arrow_reader(_ROWS_PER_FILE)))
        planned = connection.sql("SELECT count(DISTINCT photo_id) FROM planned").fetchall()[0][0]
        uris = [storage.join(stage.output, file.path) for file in files]
        rows_written, distinct = connection.sql(
            "SELECT count(*), count(DISTINCT photo_id) FROM read_parquet($files)", params={"files": uris}
        ).fetchall()[0]
        if not planned == rows_written == distinct:
            raise UnaccountedError(f"{planned} photos planned, {rows_written} rows of {distinct} photos written")
        outcomes = connection.sql(
            "SELECT error_code, count(*) FROM read_parquet($files) GROUP BY error_code", params={"files": uris}
        ).fetchall()
    located = sum(count for code, count in outcomes if code is None)
    return Published(files, located, {code: count for code, count in sorted(outcomes, key=str) if code is not None})


def put_record(stage: staging.Stage, record: dict[str, object]) -> str:
    """Write the run's record, which makes the run count, then remove its staging; return the record's URI."""
    uri = storage.join(stage.output, RUNS_FOLDER, f"{stage.run_id}.json")
    storage.write_bytes(uri, json.dumps(record, indent=2).encode())
    stage.delete()
    return uri


def geoparquet_metadata(table: pa.Table) -> dict[str, str]:
    """Return the `geo` file metadata of `table` (GeoParquet 1.1): one column of points in longitude and latitude."""
    column: dict[str, object] = {"encoding": "WKB", "geometry_types": ["Point"]}
    longitudes, latitudes = table.column(schema.LON_DEG), table.column(schema.LAT_DEG)
    if longitudes.null_count < len(longitudes):
        bounds = [pa.compute.min_max(values).as_py() for values in (longitudes, latitudes)]
        column["bbox"] = [bounds[0]["min"], bounds[1]["min"], bounds[0]["max"], bounds[1]["max"]]
    geo = {"version": "1.1.0", "primary_column": schema.GEOMETRY, "columns": {schema.GEOMETRY: column}}
    return {"geo": json.dumps(geo)}


def _folder(stage: staging.Stage) -> str:
    return storage.join(stage.output, "photos", f"run={stage.run_id}")


def _put_files(stage: staging.Stage, reader: pa.RecordBatchReader) -> Iterator[PublishedFile]:
    for index, batch in enumerate(reader):
        table = pa.Table.from_batches([batch]).cast(schema.PHOTOS)
        table = table.replace_schema_metadata(geoparquet_metadata(table))
        data = staging.parquet_bytes(table)
        uri = storage.join(_folder(stage), f"part-{index:05d}.parquet")
        storage.write_bytes(uri, data)
        yield PublishedFile(uri.removeprefix(stage.output + "/"), table.num_rows, len(data))
