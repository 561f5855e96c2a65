"""Queries see what counts, newest first, and can do nothing but read it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.catalog import Catalog, published_files, run_records
from pipeline.publish import publish, put_record
from pipeline.schema import ErrorCode
from pipeline.staging import Stage, parquet_bytes
from tests.conftest import REPOSITORY
from tests.photo_rows import NOON, failed_row, located_row, photos

Row = dict[str, Any]


def publish_run(output: str, run_id: str, rows: Sequence[Row], commit: bool = True) -> None:
    """Publish `rows` as the run `run_id`, an hour after run r0 for each of its number, as the job does."""
    hour = dt.timedelta(hours=int(run_id[1:]))
    stage = Stage(output, run_id)
    planned = [{name: row[name] for name in schema.MANIFEST.names} for row in rows]
    table = pa.Table.from_pylist(planned, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))
    stage.put_rows(photos([row | {schema.RUN_ID: run_id, schema.PROCESSED_AT: NOON + hour} for row in rows]))
    published = publish(stage)
    if commit:
        record = {
            "run_id": run_id,
            "finished_at": (NOON + hour).isoformat(),
            "model_id": "m-1",
            "photos": {"located": published.located, "failed": published.failed},
            "files": [{"path": file.path} for file in published.files],
        }
        put_record(stage, record)


def two_runs(output: str) -> None:
    """Run r1: /a, /b and a failed /c. Run r2: /a changed, /c healed, /d failed. Run r3 never finished."""
    publish_run(
        output, "r2", [located_row("/a", 50, 10, "v2"), located_row("/c", 3, 3), failed_row("/d", ErrorCode.EMPTY)]
    )
    publish_run(
        output, "r1", [located_row("/a", 1, 1), located_row("/b", 2, 2), failed_row("/c", ErrorCode.FETCH_FAILED)]
    )
    publish_run(output, "r3", [located_row("/orphan", 9, 9), located_row("/a", 9, 9)], commit=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = f'{tmp_path_factory.mktemp("catalog")}/it\'s [x] *?# ü "q"'
    two_runs(folder)
    return folder


@pytest.fixture
def catalog(output: str) -> Catalog:
    return Catalog(output)


def check_views(catalog: Catalog) -> None:
    rows = catalog.rows("SELECT uri, lat_deg, run_id FROM photos ORDER BY uri").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("/a", 50.0, "r2"),
        ("/b", 2.0, "r1"),
        ("/c", 3.0, "r2"),
        ("/d", None, "r2"),
    ]
    assert catalog.rows("SELECT uri, error_code FROM failures").to_pylist() == [{"uri": "/d", "error_code": "empty"}]
    runs = catalog.rows("SELECT run_id, located, failed FROM runs ORDER BY finished_at").to_pylist()
    assert [tuple(run.values()) for run in runs] == [("r1", 2, 1), ("r2", 2, 1)]


def test_the_newest_row_of_runs_that_count(catalog: Catalog) -> None:
    check_views(catalog)


def test_columns_are_the_documented_ones(catalog: Catalog) -> None:
    assert catalog.rows("FROM photos LIMIT 0").column_names == schema.PHOTOS.names


def test_one_run_alone_and_a_run_of_nothing(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)])
    assert Catalog(str(tmp_path)).sql("SELECT count(*) FROM photos").fetchall() == [(1,)]
    put_record(
        Stage(str(tmp_path / "none"), "r1"),
        {
            "run_id": "r1",
            "finished_at": NOON.isoformat(),
            "model_id": "m",
            "photos": {"located": 0, "failed": 0},
            "files": [],
        },
    )
    assert Catalog(str(tmp_path / "none")).sql("SELECT count(*) FROM photos").fetchall() == [(0,)]


def test_nothing_published_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is published at .*: run jobs\.geotag_archive"):
        Catalog(str(tmp_path))
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)], commit=False)
    with pytest.raises(ValueError, match="nothing is published"):
        Catalog(str(tmp_path))


@pytest.mark.parametrize(
    "query",
    [
        "CREATE TABLE t AS SELECT 1",
        "DELETE FROM runs",
        "INSERT INTO runs SELECT * FROM runs",
        "DROP VIEW photos",
        "COPY photos TO 'FOLDER/stolen.csv'",
        "COPY (SELECT 1) TO 'OUTPUT/photos/x.parquet' (FORMAT parquet)",
        "ATTACH 'FOLDER/x.db'",
        "INSTALL spatial",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '1TB'",
        "PRAGMA database_list",
        "SELECT 1; SELECT 2",
        "",
        "SELECT * FROM read_text('FOLDER/secret.txt')",
        "SELECT * FROM read_csv('FOLDER/secret.txt', header = false)",
        "SELECT * FROM glob('FOLDER/*')",
        "FROM 'FOLDER/secret.txt'",
        "SELECT * FROM read_text('OUTPUT/../secret.txt')",
        "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
        "FROM query('COPY photos TO ''FOLDER/stolen.csv''')",
    ],
)
def test_nothing_but_reading_what_is_published(tmp_path: Path, query: str) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    (tmp_path / "secret.csv").write_text("secret\n")
    publish_run(f"{tmp_path}/out", "r1", [located_row("/a", 1, 1)])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"give one SELECT|can't run this query"):
        Catalog(f"{tmp_path}/out").rows(query.replace("FOLDER", str(tmp_path)).replace("OUTPUT", f"{tmp_path}/out"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT missing FROM photos", "SELECT uri::INTEGER FROM photos"])
def test_a_wrong_query_is_a_usage_error_in_duckdbs_words(catalog: Catalog, query: str) -> None:
    for run in (catalog.rows, lambda query: catalog.drawn(query, 80)):
        with pytest.raises(ValueError, match=r"DuckDB can't run this query: .+"):
            run(query)


def test_every_row_is_drawn(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row(f"/{index:04d}", 1, 1) for index in range(300)])
    drawing = Catalog(str(tmp_path)).drawn("SELECT uri FROM photos", 80)
    assert all(f"/{index:04d}" in drawing for index in range(300))


def test_records_and_files(output: str) -> None:
    records = run_records(output)
    assert [record["run_id"] for record in records] == ["r1", "r2"]
    assert published_files(output, records) == [f"{output}/photos/run={run}/part-00000.parquet" for run in ("r1", "r2")]
    assert run_records(f"{output}/missing") == []


@pytest.mark.s3
def test_the_same_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    output = f"s3://{s3_bucket}/catalog it's ü%20"
    two_runs(output)
    catalog = Catalog(output)
    check_views(catalog)
    (tmp_path / "secret.txt").write_text("secret\n")
    storage.write_bytes(f"s3://{s3_bucket}/catalog-secret.csv", b"a\n1\n")
    for name in (f"s3://{s3_bucket}/catalog-secret.csv", f"{tmp_path}/secret.txt"):
        with pytest.raises(ValueError, match="can't run this query"):
            catalog.rows(f"SELECT * FROM read_csv('{name}')")


class TestQueryJob:
    """`python -m jobs.query`, as people and scripts call it."""

    def query(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "jobs.query", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)

    def test_formats(self, output: str, tmp_path: Path) -> None:
        sql = "SELECT uri, photo_id, lat_deg, processed_at, levels, 'a,\"b\"' AS odd FROM photos ORDER BY uri"
        table = self.query(output, sql)
        assert table.returncode == 0, table.stderr
        assert "/a" in table.stdout.decode()

        rows = json.loads(self.query(output, sql, "--format", "json").stdout)
        assert [row["uri"] for row in rows] == ["/a", "/b", "/c", "/d"]
        assert rows[0]["photo_id"] == schema.photo_id("/a").hex()
        assert rows[0]["levels"][2]["s2_level"] == 11
        assert dt.datetime.fromisoformat(rows[0]["processed_at"]) == NOON + dt.timedelta(hours=2)
        assert rows[3]["lat_deg"] is None

        lines = list(csv.DictReader(io.StringIO(self.query(output, sql, "--format", "csv").stdout.decode())))
        assert [line["uri"] for line in lines] == ["/a", "/b", "/c", "/d"]
        assert (lines[0]["odd"], lines[0]["lat_deg"], lines[3]["lat_deg"]) == ('a,"b"', "50.0", "")
        assert json.loads(lines[0]["levels"]) == rows[0]["levels"]

        target = tmp_path / "answer.parquet"
        written = self.query(output, sql, "--format", "parquet", "--to", str(target))
        assert (written.returncode, written.stdout) == (0, b"")
        assert pq.read_table(target).column("uri").to_pylist() == ["/a", "/b", "/c", "/d"]

    def test_mistakes_exit_with_2_and_one_sentence(self, output: str, tmp_path: Path) -> None:
        for arguments, message in (
            ((output, "SELECT 1", "--format", "parquet"), "--format parquet needs a file: add --to FILE.parquet"),
            ((output, "DROP VIEW photos"), "give one SELECT: queries here only read"),
            ((str(tmp_path), "SELECT 1"), f"nothing is published at {tmp_path}"),
            (
                (output, "SELECT 1", "--format", "csv", "--to", f"{tmp_path}/no/such/x.csv"),
                f"can't write --to {tmp_path}/no/such/x.csv",
            ),
        ):
            answer = self.query(*arguments)
            assert answer.returncode == 2, answer.stderr
            assert answer.stdout == b""
            assert message in answer.stderr.decode()
            assert b"Traceback" not in answer.stderr
