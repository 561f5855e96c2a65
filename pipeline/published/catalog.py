"""DuckDB over what is published: only runs whose record exists, only reading, nothing outside the output."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import older_rows, schema, storage
from pipeline.published import catalog_sql, gone, records
from pipeline.published.records import RunRecord
from pipeline.storage.duckdb import connect

_RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("started_at", pa.string()),
        pa.field("finished_at", pa.string()),
        pa.field("wall_s", pa.float64()),
        pa.field("model_id", pa.string()),
        pa.field("precision", pa.string()),
        pa.field("located", pa.int64()),
        pa.field("undecided", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("failed_by_code", pa.map_(pa.string(), pa.int64())),
        pa.field("record", pa.string()),
    ]
)


@dataclass(frozen=True)
class Reading:
    """What a query read: row groups, of those in the files that it opened; and rows that its filters let pass there."""

    rows: int
    row_groups: int
    row_groups_in_files: int


class Catalog:
    """The published photos of one output as SQL views and macros; `catalog_sql` has them.

    photos    the newest row of every photo; or its answer, if all that is newer failed to fetch the same version again,
              and in `last_error_code` and so on what happened then
    photos_here  those of them that were not found gone from their sources: `gone_since` is null
    history   every row, of older runs too
    failures  photos without a place
    levels    a row for each photo and geographic level
    accuracy  photos whose file says where they were taken: how far the answer is off
    runs      one row a finished run
    source_problems  parts of sources that runs could not list

    distance_km(lat1, lon1, lat2, lon2) is a function; within_km(lat, lon, km), bbox(west, south, east, north) and
    in_cell(token) are the photos of a region. These, like comparisons of lat_deg, lon_deg and cell_id with numbers,
    read the files and row groups that can have such photos, and no others.
    """

    def __init__(self, output: str) -> None:
        """Open the output at `output`; ValueError where nothing is published there."""
        self.records = records.run_records(output)
        if not self.records:
            raise ValueError(f"nothing is published at {output}: run jobs.geotag_archive with --output {output} first")
        self.connection = connect(output)
        self.connection.register("no_photos", schema.PHOTOS.empty_table())
        self.connection.execute("CREATE SCHEMA internal; CREATE TABLE internal.empty AS FROM no_photos")
        self.connection.unregister("no_photos")
        self._gone = gone.newest_list(self.records)
        self._make_photos(output)
        self._make_runs()
        self._make_source_problems()
        self.connection.execute(catalog_sql.DEFINITIONS)
        for column in schema.PHOTOS:
            doc = _literal(column.metadata[b"doc"].decode())
            for view in ("photos", "photos_here", "history", "failures"):
                self.connection.execute(f"COMMENT ON COLUMN {view}.{column.name} IS {doc}")
        for column in schema.SOURCE_PROBLEMS:
            doc = _literal(column.metadata[b"doc"].decode())
            self.connection.execute(f"COMMENT ON COLUMN source_problems.{column.name} IS {doc}")
        for column in (*schema.LAST_TRY, schema.GONE.field(schema.GONE_SINCE)):
            doc = _literal(column.metadata[b"doc"].decode())
            for view in ("photos", "photos_here"):
                self.connection.execute(f"COMMENT ON COLUMN {view}.{column.name} IS {doc}")
        self.connection.execute("SET python_enable_replacements = false")
        self.connection.execute("SET allowed_directories = ?", [[storage.join(output, "")]])
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Return one query's result, not yet computed; ValueError where it isn't a query that reads."""
        with _as_value_error():
            self._check(query)
            return self.connection.sql(query)

    def rows(self, query: str) -> pa.Table:
        """Return one query's whole result; ValueError with DuckDB's own words where it can't be computed."""
        with _as_value_error():
            return self.sql(query).to_arrow_table()

    def drawn(self, query: str, width_chars: int, max_rows: int = 2**31) -> str:
        """Return one query's result as DuckDB draws it; what exceeds `max_rows` it counts. ValueError as `rows`."""
        drawing = io.StringIO()
        with _as_value_error(), contextlib.redirect_stdout(drawing):
            self.sql(query).show(max_rows=max_rows, max_width=width_chars)
        # DuckDB escapes most of what would move a terminal's cursor, but not the 8-bit control characters.
        return "\n".join(schema.printable(line) for line in drawing.getvalue().split("\n"))

    def reading(self, query: str) -> Reading:
        """Compute one query and return what it read; ValueError as `rows`."""
        with _as_value_error():
            self._check(query)
            [(_, profile)] = self.connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) {query}").fetchall()
        scans = list(_scans(json.loads(profile)["operator"]))
        names = ("rows_scanned", "row_groups_scanned", "total_row_groups_to_scan")
        return Reading(*(sum(int(scan[name]) for scan in scans) for name in names))

    def needed_runs(self) -> set[str]:
        """Return the runs that a photo's answer, its newest row, or the list of what is gone, is from."""
        query = "SELECT DISTINCT run_id FROM photos UNION SELECT run_id FROM internal.superseded WHERE is_newest"
        needed = {str(run_id) for (run_id,) in self.connection.sql(query).fetchall()}
        return needed | {record.run_id for record in self.records if record.gone and record.gone == self._gone}

    def interrupt(self) -> None:
        """Stop the query that another thread is computing, if one is."""
        self.connection.interrupt()

    def _check(self, query: str) -> None:
        """Raise where `query` is more than one query or does more than read."""
        statements = self.connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ValueError("give one SELECT: queries here only read")
        # A SELECT may begin with WITH t AS (COPY … TO …) or (DELETE …): inside another query DuckDB refuses those.
        self.connection.sql(f"FROM query({_literal(query)})")

    def _make_photos(self, output: str) -> None:
        """Make the views `history` and `photos`."""
        with_rows = [record for record in self.records if record.files]
        self.connection.execute(f"CREATE VIEW history AS {self._all_rows(output, with_rows)}")
        self.connection.execute("CREATE TABLE internal.run_order (run_id VARCHAR, run_index BIGINT)")
        order = [(record.run_id, index) for index, record in enumerate(self.records)]
        self.connection.executemany("INSERT INTO internal.run_order VALUES (?, ?)", order)
        if len(with_rows) > 1:
            largest = max(with_rows, key=lambda record: record.counts.published)
            self.connection.execute(catalog_sql.SUPERSEDED, {"largest_run": largest.run_id})
        else:
            self.connection.execute(catalog_sql.NONE_SUPERSEDED)
        self.connection.execute(catalog_sql.MISSED)
        # No window over all rows: what a query asks of a place goes past these joins to the files.
        [(superseded,)] = self.connection.sql("SELECT count(*) FROM internal.superseded").fetchall()
        shown = "history ANTI JOIN internal.superseded USING (photo_id, run_id)" if superseded else "history"
        since, gone_photos = f"NULL::TIMESTAMPTZ AS {schema.GONE_SINCE}", ""
        if self._gone is not None:
            listed = _literal(storage.join(output, self._gone.path))
            self.connection.execute(
                f"CREATE TABLE internal.gone AS SELECT photo_id, gone_since FROM read_parquet({listed})"
            )
            since, gone_photos = schema.GONE_SINCE, "LEFT JOIN internal.gone USING (photo_id)"
        self.connection.execute(
            f"CREATE VIEW photos AS SELECT history.*, {', '.join(schema.LAST_TRY.names)}, {since}"
            f" FROM {shown} LEFT JOIN internal.missed USING (photo_id) {gone_photos}"
        )

    def _all_rows(self, output: str, with_rows: list[RunRecord]) -> str:
        """Return the query for the rows of runs, where null stands for what an older version had no column for."""
        files_by_columns: dict[frozenset[str], list[str]] = {}
        for record in with_rows:
            files = record.file_uris(output)
            names = self.connection.execute("SELECT name FROM parquet_schema(?)", [files[0]]).fetchall()
            files_by_columns.setdefault(frozenset(name for (name,) in names), []).extend(files)
        types = self.connection.execute("SELECT column_name, column_type FROM (DESCRIBE internal.empty)").fetchall()
        queries = [
            "SELECT {} FROM read_parquet([{}], hive_partitioning = false)".format(
                ", ".join(older_rows.column_sql(name, columns) or f"NULL::{kind} AS {name}" for name, kind in types),
                ", ".join(map(_literal, files)),
            )
            for columns, files in files_by_columns.items()
        ]
        return " UNION ALL ".join(queries or ["FROM internal.empty"])

    def _make_runs(self) -> None:
        rows = [
            {
                "run_id": record.run_id,
                "sequence": record.sequence,
                "started_at": record.started_at,
                "finished_at": record.finished_at,
                "wall_s": record.wall_s,
                "model_id": record.model_id,
                "precision": record.setting("precision"),
                "located": record.counts.located,
                "undecided": record.counts.undecided,
                "failed": record.counts.failed,
                "failed_by_code": list((record.counts.failed_by_code or {}).items()),
                "record": json.dumps(record.to_json()),
            }
            for record in self.records
        ]
        self.connection.register("records", pa.Table.from_pylist(rows, schema=_RUNS))
        self.connection.execute(
            "CREATE TABLE runs AS SELECT * REPLACE ("
            "started_at::TIMESTAMPTZ AS started_at, finished_at::TIMESTAMPTZ AS finished_at, record::JSON AS record)"
            " FROM records"
        )
        self.connection.unregister("records")

    def _make_source_problems(self) -> None:
        rows = [
            {
                schema.RUN_ID: record.run_id,
                schema.PROBLEM_KIND: problem.kind,
                schema.URI: problem.uri,
                schema.REASON: problem.reason,
            }
            for record in self.records
            for problem in record.source_problems
        ]
        self.connection.register("problems", pa.Table.from_pylist(rows, schema=schema.SOURCE_PROBLEMS))
        self.connection.execute("CREATE TABLE source_problems AS FROM problems")
        self.connection.unregister("problems")


def _scans(operators: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a profile's readings of files."""
    for operator in operators:
        if operator.get("extra_info", {}).get("Function") == "READ_PARQUET":
            yield operator
        yield from _scans(operator.get("children", []))


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise ValueError(f"DuckDB can't run this query: {error}") from error


def _literal(text: str) -> str:
    """Return `text` as SQL writes it: a view takes no parameters."""
    return "'" + text.replace("'", "''") + "'"
