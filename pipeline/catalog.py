"""DuckDB over what is published: only runs whose record exists, only reading, nothing outside the output."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import publish, schema, storage
from pipeline.plan import connect


class Catalog:
    """The published photos of one output as SQL views.

    photos    the newest row of every photo
    failures  those of them without a place
    runs      one row a finished run
    """

    def __init__(self, output: str) -> None:
        """Open the output at `output`; ValueError where nothing is published there."""
        self.records = run_records(output)
        if not self.records:
            raise ValueError(f"nothing is published at {output}: run jobs.geotag_archive with --output {output} first")
        self.connection = connect(output)
        files = published_files(output, self.records)
        if files:
            # Which rows are the newest only matters once there are several runs; a plain scan can skip row groups.
            newest = "QUALIFY row_number() OVER (PARTITION BY photo_id ORDER BY processed_at DESC) = 1"
            literals = ", ".join("'" + file.replace("'", "''") + "'" for file in files)  # a view takes no parameters
            self.connection.execute(
                f"CREATE VIEW photos AS SELECT * FROM read_parquet([{literals}],"
                f" hive_partitioning = false) {newest if len(self.records) > 1 else ''}"
            )
        else:
            self.connection.register("no_photos", schema.PHOTOS.empty_table())
            self.connection.execute("CREATE VIEW photos AS FROM no_photos")
        self.connection.execute("CREATE VIEW failures AS FROM photos WHERE status = 'failed'")
        self.connection.execute(
            "CREATE TABLE runs (run_id VARCHAR, finished_at TIMESTAMPTZ, model_id VARCHAR,"
            " located BIGINT, failed BIGINT, record JSON)"
        )
        for record in self.records:
            photos = record["photos"]
            self.connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)",
                [
                    record["run_id"],
                    record["finished_at"],
                    record["model_id"],
                    photos["located"],
                    photos["failed"],
                    json.dumps(record),
                ],
            )
        self.connection.execute("SET allowed_directories = ?", [[storage.join(output, "")]])
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Return one query's result, not yet computed; ValueError where it isn't a query that reads."""
        with _as_value_error():
            statements = self.connection.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ValueError("give one SELECT: queries here only read")
            return self.connection.sql(query)

    def rows(self, query: str) -> pa.Table:
        """Return one query's whole result; ValueError with DuckDB's own words where it can't be computed."""
        with _as_value_error():
            return self.sql(query).to_arrow_table()

    def drawn(self, query: str, width_chars: int) -> str:
        """Return one query's whole result as DuckDB draws it, no row left out; ValueError as `rows`."""
        drawing = io.StringIO()
        with _as_value_error(), contextlib.redirect_stdout(drawing):
            self.sql(query).show(max_rows=2**31, max_width=width_chars)
        return drawing.getvalue()


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise ValueError(f"DuckDB can't run this query: {error}") from error


def run_records(output: str) -> list[dict[str, Any]]:
    """Return the records of the runs that count, oldest first."""
    entries = storage.list_files(storage.join(output, publish.RUNS_FOLDER))
    records = [json.loads(storage.read_bytes(entry.uri)) for entry in entries if entry.uri.endswith(".json")]
    return sorted(records, key=lambda record: str(record["finished_at"]))


def published_files(output: str, records: list[dict[str, Any]]) -> list[str]:
    """Return the URIs of the files that `records` name."""
    return [storage.join(output, file["path"]) for record in records for file in record["files"]]
