"""Queries see what counts, newest first, and can do nothing but read it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.world import geodesy
from pipeline import schema, storage
from pipeline.published.catalog import Catalog
from pipeline.published.records import PhotoCounts, RunRecord, published_files, run_records
from pipeline.run.publish import put_record
from pipeline.run.staging import Stage
from pipeline.schema import ErrorCode
from tests.support.photo_rows import NOON, failed_row, located_row
from tests.support.published_rows import publish_run

Row = dict[str, Any]


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
    assert catalog.rows("FROM photos LIMIT 0").column_names == [
        *schema.PHOTOS.names,
        *schema.LAST_TRY.names,
        schema.GONE_SINCE,
    ]
    assert catalog.rows("FROM history LIMIT 0").column_names == schema.PHOTOS.names
    documented = catalog.sql("SELECT comment FROM duckdb_columns() WHERE table_name = 'photos'").fetchall()
    assert all(comment for (comment,) in documented)


def test_source_problems_are_a_table_with_each_runs_own(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)])
    catalog = Catalog(str(tmp_path))
    assert catalog.rows("FROM source_problems").column_names == schema.SOURCE_PROBLEMS.names
    assert catalog.rows("FROM source_problems").num_rows == 0
    problem = {"kind": "folder", "uri": "/photos/lost+found", "reason": "Permission denied"}
    record = {"run_id": "r2", "finished_at": NOON.isoformat(), "model_id": "m-1", "source_problems": [problem]}
    put_record(Stage(str(tmp_path), "r2"), RunRecord.from_json(record))
    assert Catalog(str(tmp_path)).rows("SELECT run_id, problem_kind, uri, reason FROM source_problems").to_pylist() == [
        {"run_id": "r2", "problem_kind": "folder", "uri": "/photos/lost+found", "reason": "Permission denied"}
    ]
    documented = catalog.sql("SELECT comment FROM duckdb_columns() WHERE table_name = 'source_problems'").fetchall()
    assert all(comment for (comment,) in documented)


def test_one_run_alone_and_a_run_of_nothing(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)])
    assert Catalog(str(tmp_path)).sql("SELECT count(*) FROM photos").fetchall() == [(1,)]
    put_record(
        Stage(str(tmp_path / "none"), "r1"),
        RunRecord(run_id="r1", finished_at=NOON.isoformat(), model_id="m", photos=PhotoCounts()),
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
        "WITH t AS (COPY (SELECT 1) TO 'OUTPUT/photos/x.csv') FROM t",
        "WITH u AS (SELECT 1), t AS (COPY runs TO 'OUTPUT/x.csv' (RETURN_FILES)) SELECT 1",
        "SELECT 1 UNION ALL (WITH t AS (COPY runs TO 'OUTPUT/x.csv') SELECT 2)",
        "WITH t AS (DELETE FROM runs RETURNING *) FROM t",
        "WITH t AS (INSERT INTO runs BY NAME SELECT 'r9' AS run_id RETURNING *) FROM t",
        "WITH t AS (UPDATE runs SET failed = 0 RETURNING *) FROM t",
        "WITH t AS (TRUNCATE runs) SELECT 1",
        "EXPLAIN ANALYZE COPY runs TO 'OUTPUT/x.csv'",
        "EXPORT DATABASE 'OUTPUT/x'",
        "IMPORT DATABASE 'OUTPUT/x'",
        "CALL pragma_version()",
        "PREPARE p AS SELECT 1",
        "USE memory",
        "SET VARIABLE x = 1",
        "RESET lock_configuration",
        "FROM enable_logging(storage = 'file', storage_path = 'FOLDER/log')",
        "FROM enable_profiling(save_location = 'FOLDER/profile.json')",
        "SELECT getenv('HOME')",
        "FROM read_text('/proc/self/environ')",
        "FROM read_csv('/dev/stdin')",
        "FROM read_blob('FOLDER/secret.txt')",
        "FROM read_json('FOLDER/secret.txt')",
        "FROM read_duckdb('FOLDER/secret.txt')",
        "FROM sniff_csv('FOLDER/secret.csv')",
        "FROM parquet_metadata('FOLDER/secret.txt')",
        "FROM duckdb_secrets()",
        "FROM a_python_variable",
        "SELECT ST_Buffer(geometry, 1) FROM photos",
    ],
)
def test_nothing_but_reading_what_is_published(tmp_path: Path, query: str) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    (tmp_path / "secret.csv").write_text("secret\n")
    a_python_variable = pa.table({"secret": [1]})
    publish_run(f"{tmp_path}/out", "r1", [located_row("/a", 1, 1)])
    catalog = Catalog(f"{tmp_path}/out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"give one SELECT|can't run this query"):
        catalog.rows(query.replace("FOLDER", str(tmp_path)).replace("OUTPUT", f"{tmp_path}/out"))
    assert sorted(tmp_path.rglob("*")) == before
    assert catalog.sql("SELECT run_id, located, failed FROM runs").fetchall() == [("r1", 1, 0)]
    assert a_python_variable.num_rows


@pytest.mark.parametrize(
    "query",
    [
        "WITH a AS (SELECT 1 AS x), b AS (FROM a) SELECT * FROM b;",
        "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t WHERE x < 3) FROM t -- a comment",
        "FROM photos SELECT unnest(levels, recursive := true), 'it''s', $$a$$",
        "SUMMARIZE runs",
        "DESCRIBE photos",
        "SHOW TABLES",
        "UNPIVOT (SELECT run_id, located, failed FROM runs) ON located, failed",
        "PIVOT runs ON model_id IN ('m-1') USING sum(located)",
        "VALUES (1)",
    ],
)
def test_what_only_reads_is_run(catalog: Catalog, query: str) -> None:
    assert catalog.rows(query).num_rows


def test_the_order_asked_for_is_kept(catalog: Catalog) -> None:
    hashes = catalog.rows("SELECT hash(x) AS h FROM range(300000) t(x) ORDER BY h").column(0).to_numpy()
    assert len(hashes) == 300_000
    assert (hashes[1:] >= hashes[:-1]).all()


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
    assert [record.run_id for record in records] == ["r1", "r2"]
    assert published_files(output, records) == [
        f"{output}/photos/run={run}/part-e1-00000.parquet" for run in ("r1", "r2")
    ]
    assert run_records(f"{output}/missing") == []


def test_a_run_that_has_not_finished_does_not_count(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)])
    (tmp_path / "runs" / "r2.json").write_text('{"run_id": "r2", "started_at": "2026-01-01T12:00:00+00:00"}')
    assert [record.run_id for record in run_records(str(tmp_path))] == ["r1"]


def test_history_levels_accuracy_and_runs(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 10, 20), failed_row("/b", ErrorCode.EMPTY)], precision="city")
    without_exif = {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
    far = {schema.RECORDED_LAT_DEG: 10.0, schema.RECORDED_LON_DEG: -178.0, schema.RADIUS_KM: 400.0}
    far |= {schema.RECORDED_COUNTRY: "Fiji", schema.COUNTRY: "open sea"}
    far |= {schema.CONTEXT_LAT_DEG: 10.0, schema.CONTEXT_LON_DEG: -179.0, schema.CONTEXT_RADIUS_KM: 100.0}
    publish_run(str(tmp_path), "r2", [located_row("/a", 10, 179, **far), located_row("/c", 1, 1, **without_exif)])
    catalog = Catalog(str(tmp_path))
    assert catalog.sql("SELECT uri, run_id FROM history ORDER BY ALL").fetchall() == [
        ("/a", "r1"),
        ("/a", "r2"),
        ("/b", "r1"),
        ("/c", "r2"),
    ]
    levels = catalog.sql("SELECT level, s2_level, lon_deg FROM levels WHERE uri = '/a' ORDER BY level").fetchall()
    assert levels == [(0, 3, 179.0), (1, 7, 179.0), (2, 11, 179.0)]
    [accuracy] = catalog.rows("FROM accuracy").to_pylist()
    assert accuracy["uri"] == "/a"
    assert accuracy["error_km"] == pytest.approx(geodesy.haversine_km(10, 179, 10, -178), rel=1e-12)
    assert [accuracy[f"within_{km}_km"] for km in (1, 25, 200, 750, 2500)] == [False, False, False, True, True]
    assert accuracy["inside_radius"]
    assert (accuracy["recorded_country"], accuracy["country"], accuracy["same_country"]) == ("Fiji", "open sea", False)
    assert accuracy["context_error_km"] == pytest.approx(geodesy.haversine_km(10, -179, 10, -178), rel=1e-12)
    assert accuracy["inside_context_radius"] is False
    runs = catalog.rows("SELECT * EXCLUDE (record) FROM runs ORDER BY run_id").to_pylist()
    assert runs[0]["failed_by_code"] == [("empty", 1)]
    assert runs[0]["started_at"] == NOON
    assert (runs[0]["wall_s"], runs[0]["precision"], runs[1]["precision"]) == (3600.0, "city", "street")


def test_a_run_of_an_older_version_has_null_for_new_columns(tmp_path: Path) -> None:
    publish_run(str(tmp_path), "r1", [located_row("/a", 1, 1)])
    publish_run(str(tmp_path), "r2", [located_row("/b", 2, 2)])
    [old] = published_files(str(tmp_path), run_records(str(tmp_path))[:1])
    pq.write_table(pq.read_table(old, partitioning=None).drop_columns([schema.SCENE, schema.LEVELS]), old)
    catalog = Catalog(str(tmp_path))
    assert catalog.rows("FROM history").column_names == schema.PHOTOS.names
    assert catalog.sql("SELECT uri, scene FROM photos ORDER BY uri").fetchall() == [("/a", None), ("/b", "outdoor")]
    assert catalog.sql("SELECT DISTINCT uri FROM levels").fetchall() == [("/b",)]


def shown(output: str) -> dict[str, list[Any]]:
    """What the view shows of each photo: ETag, latitude, run, and what became of it since."""
    columns = "uri, etag, lat_deg, run_id, last_error_code, last_error_message, last_tried_at"
    rows = Catalog(output).rows(f"SELECT {columns} FROM photos").to_pylist()
    assert len(rows) == len({row["uri"] for row in rows})
    return {row.pop("uri"): list(row.values()) for row in rows}


def test_no_clock_decides_which_row_is_the_newest(tmp_path: Path) -> None:
    """The worker of r1, and the driver of r4, had a clock that was years ahead."""
    output = str(tmp_path)
    publish_run(output, "r1", [located_row("/a", 1, 1, "v1")], sequence=4, clock_h=9999)
    publish_run(output, "r3", [located_row("/a", 3, 3, "v3")], sequence=9)
    publish_run(output, "r2", [located_row("/a", 2, 2, "v2")], sequence=8)
    assert shown(output) == {"/a": ["v3", 3.0, "r3", None, None, None]}
    assert [record.run_id for record in run_records(output)] == ["r1", "r2", "r3"]
    assert Catalog(output).sql("SELECT sequence FROM runs ORDER BY run_id").fetchall() == [(4,), (8,), (9,)]
    publish_run(output, "r4", [located_row("/a", 4, 4, "v4")], clock_h=99_999)  # of an older version: before all others
    assert shown(output)["/a"][0] == "v3"
    assert [record.run_id for record in run_records(output)] == ["r4", "r1", "r2", "r3"]


def test_among_runs_of_older_versions_their_records_tell_the_newest_and_not_their_rows(tmp_path: Path) -> None:
    output = str(tmp_path)
    ahead = {schema.PROCESSED_AT: NOON + dt.timedelta(days=400)}
    for run_id, etag in (("r1", "v1"), ("r2", "v2")):
        publish_run(output, run_id, [located_row("/a", int(run_id[1:]), 0, etag)])
    [old] = published_files(output, run_records(output)[:1])
    table = pq.read_table(old, partitioning=None)
    values = pa.array([ahead[schema.PROCESSED_AT]], table.schema.field(schema.PROCESSED_AT).type)
    pq.write_table(
        table.set_column(table.schema.get_field_index(schema.PROCESSED_AT), schema.PROCESSED_AT, values), old
    )
    assert shown(output)["/a"][:3] == ["v2", 2.0, "r2"]


@pytest.mark.parametrize("code", schema.FETCH_ERRORS)
def test_what_failed_to_be_fetched_hides_no_answer_of_the_same_version(tmp_path: Path, code: ErrorCode) -> None:
    """The photos' disk is away for one night, and comes back: the answers stayed, and say what happened."""
    output = str(tmp_path)
    publish_run(
        output,
        "r1",
        [
            located_row("/kept", 1, 1),
            located_row("/changed", 1, 1, "v1"),
            located_row("/back", 1, 1, "v1"),
            located_row("/kept, no version", 1, 1) | {schema.ETAG: None},
            failed_row("/never located", ErrorCode.CORRUPT),
            located_row("/undone", 1, 1),
        ],
    )
    publish_run(output, "r2", [located_row("/kept", 2, 2), located_row("/back", 2, 2, "v2")])
    publish_run(
        output,
        "r3",
        [
            failed_row("/kept", code),
            failed_row("/changed", code, "v2"),
            failed_row("/back", code, "v1"),
            failed_row("/kept, no version", code) | {schema.ETAG: None},
            failed_row("/never located", code),
            failed_row("/undone", ErrorCode.CORRUPT),
        ],
    )
    missed = [str(code), f"it is {code}", NOON + dt.timedelta(hours=3)]
    nothing = [None, None, None]
    assert shown(output) == {
        "/kept": ["v1", 2.0, "r2", *missed],
        "/changed": ["v2", None, "r3", *nothing],  # nothing is known of this version
        "/back": ["v1", 1.0, "r1", *missed],
        "/kept, no version": [None, 1.0, "r1", *missed],
        "/never located": ["v1", None, "r3", *nothing],
        "/undone": ["v1", None, "r3", *nothing],  # looked at, and no picture any more
    }
    assert Catalog(output).needed_runs() == {"r1", "r2", "r3"}
    publish_run(output, "r4", [failed_row("/kept", code), located_row("/back", 4, 4, "v1")])
    assert shown(output)["/kept"] == ["v1", 2.0, "r2", *missed[:2], NOON + dt.timedelta(hours=4)]
    assert shown(output)["/back"] == ["v1", 4.0, "r4", *nothing]
    assert Catalog(output).sql("SELECT count(*) FROM history").fetchall() == [(16,)]


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
