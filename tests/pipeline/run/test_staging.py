"""A stage keeps rows in atomic parts whose names are a function of their photos, and forgets everything at the end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.run.staging import EPOCH_SQL, Stage, epoch_of, parquet_bytes, unfinished_runs
from pipeline.schema import ErrorCode
from pipeline.storage.duckdb import connect
from tests.support.photo_rows import failed_row, located_row, photos


def test_a_part_comes_back_as_it_was_put(tmp_path: Path) -> None:
    rows = photos([located_row("/ü\n.jpg", 48.1, 11.5), failed_row("/b", ErrorCode.CORRUPT)])
    stage = Stage(str(tmp_path), "r1")
    uri = stage.put_rows(rows)
    assert stage.row_files() == [uri]
    assert pq.read_table(uri, schema=schema.PHOTOS).equals(rows)
    assert stage.staged_count() == 2


def test_copies_wait_beside_the_rows_and_count_for_none(tmp_path: Path) -> None:
    rows = photos([located_row("/a", 1, 1)])
    stage = Stage(str(tmp_path), "r1")
    uri = stage.put_copies(rows)
    assert stage.copy_files() == [uri]
    assert pq.read_table(uri, schema=schema.PHOTOS).equals(rows)
    assert (stage.row_files(), stage.staged_count()) == ([], 0)
    assert stage.put_rows(rows) != uri


def test_a_retried_task_writes_over_its_first_try(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), "r1")
    one, two = located_row("/a", 1, 1), located_row("/b", 2, 2)
    assert stage.put_rows(photos([one, two])) == stage.put_rows(photos([two, one]))
    stage.put_rows(photos([one]))
    assert len(stage.row_files()) == 2


def test_half_written_files_of_a_killed_process_are_no_rows(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), "r1")
    uri = stage.put_rows(photos([located_row("/a", 1, 1)]))
    Path(uri).with_name(".0123.tmp").write_bytes(b"half")
    assert stage.row_files() == [uri]
    assert stage.staged_count() == 1
    stage.delete()
    assert unfinished_runs(str(tmp_path)) == []


def test_settings(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), "r1")
    assert stage.settings() == {}
    stage.put_settings({"model_id": "m-1"})
    assert Stage(str(tmp_path), "r1").settings() == {"model_id": "m-1"}
    assert Stage(str(tmp_path), "r2").settings() == {}


def test_unfinished_runs_in_order_until_deleted(tmp_path: Path) -> None:
    assert unfinished_runs(str(tmp_path)) == []
    for run_id in ("20260102T0", "20260101T0"):
        Stage(str(tmp_path), run_id).put_settings({})
    assert unfinished_runs(str(tmp_path)) == ["20260101T0", "20260102T0"]
    Stage(str(tmp_path), "20260101T0").delete()
    assert unfinished_runs(str(tmp_path)) == ["20260102T0"]
    assert os.listdir(tmp_path / "staging") == ["20260102T0"]


def test_delete_plan_keeps_the_rows(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), "r1")
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(schema.MANIFEST.empty_table()))
    stage.put_rows(photos([located_row("/a", 1, 1)]))
    stage.delete_plan()
    assert stage.plan_files() == []
    assert len(stage.row_files()) == 1


def test_parts_are_named_by_the_holder_that_staged_them(tmp_path: Path) -> None:
    """Of a photo that is in several parts the last one's row is the newest; parts of older versions come first."""
    stage = Stage(str(tmp_path), "r1")
    uris = [replace(stage, epoch=epoch).put_rows(photos([located_row("/a", epoch, 1)])) for epoch in (10, 9)]
    assert [epoch_of(uri) for uri in uris] == [10, 9]
    old = f"{stage.folder}/rows/{'e' + 31 * '1'}-1.parquet"  # a digest that looks like an epoch, and is none
    storage.write_bytes(old, parquet_bytes(photos([located_row("/a", 0, 1)])))
    assert stage.row_files() == [old, *uris[::-1]]
    assert stage.staged_count() == 3
    with connect(stage.folder) as connection:
        query = f"SELECT {EPOCH_SQL}, max(lat_deg) FROM read_parquet(?, filename = true) GROUP BY ALL ORDER BY ALL"
        found = connection.execute(query, [stage.row_files()]).fetchall()
    assert found == [(0, 0), (9, 9), (10, 10)]
