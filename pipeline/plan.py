"""manifest − what is already published or staged = a run's work, computed in DuckDB with bounded memory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import manifest, schema, staging, storage

log = logging.getLogger(__name__)

_TASKS = 1024
_ROWS_PER_TASK = (64, 65_536)
"""A file of the plan is a task: small ones spread a small archive, large ones keep a billion photos' plan short."""
_MEMORY_LIMIT = "3GB"


@dataclass(frozen=True)
class Plan:
    """A run's work: what its sources list, what of it is done, and the files that hold the rest.

    `listed` counts manifest rows, `duplicates` those that repeat a photo, `already_done` the photos that have their row
    from an earlier run, `staged` those this run staged before it was interrupted, `todo` those to process
    now, which `files` hold.
    """

    listed: int
    duplicates: int
    already_done: int
    staged: int
    todo: int
    files: tuple[str, ...]


def connect(*uris: str) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that spills to disk, knows UTC only, and can read every scheme among `uris`."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
    connection.execute("SET temp_directory = ?", [str(Path(tempfile.gettempdir()) / "graticule-duckdb")])
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET TimeZone = 'UTC'")
    for uri in uris:
        storage.let_duckdb_read(connection, uri)
    return connection


def make_plan(
    sources: Sequence[str],
    stage: staging.Stage,
    published_files: Sequence[str],
    model_id: str,
    retry_failed: bool,
    limit: int | None,
) -> Plan:
    """List `sources`, leave out what is done, write the rest as the stage's plan, and say what was counted.

    A photo is done when this version of it (same URI, same ETag) has a row under this model that isn't a transient
    failure, or, with `retry_failed`, any failure. `limit` bounds how many photos this run takes on.
    Raises ValueError for a source that can't be read.
    """
    with connect(stage.folder) as connection:
        connection.execute("CREATE TABLE listed (photo_id BLOB, uri VARCHAR, etag VARCHAR, size_bytes BIGINT)")
        for source in sources:
            for batch in manifest.read_manifest(source):
                connection.register("batch", batch)
                connection.execute("INSERT INTO listed SELECT * FROM batch")
        own = "DELETE FROM listed WHERE starts_with(uri, $output || '/') RETURNING uri"
        if ours := len(connection.execute(own, {"output": stage.output}).fetchall()):
            log.info("%d files of the output lie below a source and are no photos of the archive", ours)
        _load_rows(connection, "published", published_files)
        _load_rows(connection, "staged", stage.row_files())
        connection.execute(
            f"CREATE TABLE transient AS SELECT unnest({[str(code) for code in schema.TRANSIENT_ERRORS]}) AS code"
        )
        # Only the newest row counts: a photo that was changed and changed back is a changed photo. (Plain arg_max
        # passes over rows without an error code, so that a photo once failed would stay failed.)
        # Rows staged for a photo that was changed since are made again: the newer wins when the run is published.
        connection.execute(
            """
            CREATE TABLE plan AS
            WITH photos AS (
                SELECT photo_id, any_value(uri) AS uri, max(etag) AS etag, max(size_bytes) AS size_bytes
                FROM listed GROUP BY photo_id),
            done AS (
                SELECT photo_id, arg_max_null(etag, processed_at) AS etag,
                    arg_max_null(error_code, processed_at) AS error_code
                FROM published WHERE model_id = $model_id GROUP BY photo_id),
            staged_done AS (
                SELECT photo_id, arg_max_null(etag, processed_at) AS etag,
                    arg_max_null(error_code, processed_at) AS error_code
                FROM staged GROUP BY photo_id)
            SELECT photos.*,
                EXISTS (FROM staged_done s WHERE s.photo_id = photos.photo_id
                    AND (photos.etag IS NULL OR s.etag = photos.etag)
                    AND (s.error_code IS NULL OR s.error_code NOT IN (FROM transient))) AS is_staged,
                EXISTS (FROM done d WHERE d.photo_id = photos.photo_id
                    AND (photos.etag IS NULL OR d.etag = photos.etag)
                    AND (d.error_code IS NULL OR NOT ($retry_failed OR d.error_code IN (FROM transient)))) AS is_done
            FROM photos
            """,
            {"model_id": model_id, "retry_failed": retry_failed},
        )
        (listed,) = _one_row(connection, "SELECT count(*) FROM listed")
        distinct, done = _one_row(connection, "SELECT count(*), count(*) FILTER (is_done) FROM plan")
        if listed > distinct:
            log.info("%d rows of the manifest repeat a photo: each photo gets one row", listed - distinct)
        limit_sql = f"LIMIT {limit}" if limit is not None else ""
        connection.execute(
            f"CREATE TABLE taken AS FROM plan WHERE NOT is_done ORDER BY is_staged DESC, uri {limit_sql}"
        )
        planned, staged = _one_row(connection, "SELECT count(*), count(*) FILTER (is_staged) FROM taken")
        return Plan(
            listed=listed,
            duplicates=listed - distinct,
            already_done=done,
            staged=staged,
            todo=planned - staged,
            files=_write_plan(connection, stage, planned - staged),
        )


def _load_rows(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[str]) -> None:
    wanted = "photo_id, etag, error_code, model_id, processed_at"
    if files:
        connection.execute(
            f"CREATE TABLE {name} AS SELECT {wanted} FROM read_parquet($files)",
            {"files": list(files)},
        )
    else:
        connection.register("no_rows", schema.PHOTOS.empty_table())
        connection.execute(f"CREATE TABLE {name} AS SELECT {wanted} FROM no_rows")


def _write_plan(connection: duckdb.DuckDBPyConnection, stage: staging.Stage, todo: int) -> tuple[str, ...]:
    """Write what this run takes on, the staged rows too (publishing checks against all), and return the files to do."""
    stage.delete_plan()
    files: list[str] = []
    rows_per_task = min(max(-(-todo // _TASKS), _ROWS_PER_TASK[0]), _ROWS_PER_TASK[1])
    for name, condition, rows_per_file in (
        ("staged", "is_staged", _ROWS_PER_TASK[1]),
        ("todo", "NOT is_staged", rows_per_task),
    ):
        rows = connection.sql(f"SELECT photo_id, uri, etag, size_bytes FROM taken WHERE {condition} ORDER BY uri")
        for index, batch in enumerate(_rebatch(rows.to_arrow_reader(_ROWS_PER_TASK[1]), rows_per_file)):
            uri = stage.plan_uri(name, index)
            storage.write_bytes(uri, staging.parquet_bytes(batch.cast(schema.MANIFEST)))
            if name == "todo":
                files.append(uri)
    return tuple(files)


def _rebatch(reader: pa.RecordBatchReader, rows_per_batch: int) -> Iterator[pa.Table]:
    """Yield the reader's rows in tables of exactly `rows_per_batch`, the last one maybe shorter."""
    held: list[pa.RecordBatch] = []
    for batch in reader:
        while batch.num_rows:
            room = rows_per_batch - sum(part.num_rows for part in held)
            held.append(batch.slice(0, room))
            batch = batch.slice(min(room, batch.num_rows))
            if sum(part.num_rows for part in held) == rows_per_batch:
                yield pa.Table.from_batches(held)
                held = []
    if held:
        yield pa.Table.from_batches(held)


def _one_row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[int, ...]:
    (row,) = connection.sql(sql).fetchall()
    return tuple(row)
