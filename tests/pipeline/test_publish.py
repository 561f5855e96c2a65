"""What is published is complete, sorted, each photo once, and GeoParquet; what isn't complete isn't published."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import publish as publish_module
from pipeline import schema, storage
from pipeline.publish import UnaccountedError, geoparquet_metadata, publish, put_record
from pipeline.schema import ErrorCode
from pipeline.staging import Stage, parquet_bytes
from tests.photo_rows import NOON, failed_row, located_row, photos

Row = dict[str, Any]
LATER = NOON + dt.timedelta(hours=1)
CHANCE = random.Random(3)
LOCATED = [located_row(f"/{i:03d} ü", CHANCE.uniform(-80, 80), CHANCE.uniform(-180, 180)) for i in range(60)]
FAILED = [failed_row(f"/bad-{i}", code) for i, code in enumerate([ErrorCode.CORRUPT, ErrorCode.EMPTY, ErrorCode.EMPTY])]


def plan_and_stage(output: str, planned: Sequence[Row], *parts: Sequence[Row]) -> Stage:
    stage = Stage(output, "r1")
    rows = [{name: row[name] for name in schema.MANIFEST.names} for row in planned]
    table = pa.Table.from_pylist(rows, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))
    for part in parts:
        stage.put_rows(photos(part))
    return stage


def read_all(output: Path | str, paths: Sequence[str]) -> pa.Table:
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(f"{output}/{path}"))) for path in paths]
    return pa.concat_tables(tables, promote_options="none") if len(tables) == 1 else pa.concat_tables(tables)


def test_every_planned_photo_once_and_sorted_by_cell(tmp_path: Path) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED[:30] + FAILED[:1], LOCATED[30:] + FAILED[1:])
    published = publish(stage)
    assert (published.located, published.failed) == (60, 3)
    assert published.failed_by_code == {"corrupt": 1, "empty": 2}
    (file,) = published.files
    assert file.path == "photos/run=r1/part-00000.parquet"
    assert (file.row_count, file.size_bytes) == (63, (tmp_path / file.path).stat().st_size)
    table = read_all(tmp_path, [file.path])
    cells = table.column(schema.CELL_ID).to_pylist()
    assert cells[:60] == sorted(row[schema.CELL_ID] for row in LOCATED)
    assert cells[60:] == [None] * 3
    expected = {row[schema.PHOTO_ID]: row for row in photos(LOCATED + FAILED).to_pylist()}
    assert {row[schema.PHOTO_ID]: row for row in table.to_pylist()} == expected


def test_the_file_is_geoparquet_1_1(tmp_path: Path) -> None:
    publish(plan_and_stage(str(tmp_path), LOCATED, LOCATED))
    found = pq.read_schema(tmp_path / "photos/run=r1/part-00000.parquet")
    assert found.equals(schema.PHOTOS)
    for field in schema.PHOTOS:  # documented and typed in the file itself
        assert field.metadata.items() <= found.field(field.name).metadata.items()
    assert found.field(schema.GEOMETRY).metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"
    geo = json.loads(found.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Point"])
    lons, lats = ([row[name] for row in LOCATED] for name in (schema.LON_DEG, schema.LAT_DEG))
    assert column["bbox"] == [min(lons), min(lats), max(lons), max(lats)]


def test_geo_metadata_without_any_place_has_no_bbox() -> None:
    for rows in ([], FAILED):
        geo = json.loads(geoparquet_metadata(photos(rows))["geo"])
        assert "bbox" not in geo["columns"]["geometry"]


def test_large_runs_become_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "_ROWS_PER_FILE", 25)
    published = publish(plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED + FAILED))
    assert [file.row_count for file in published.files] == [25, 25, 13]
    cells = read_all(tmp_path, [file.path for file in published.files]).column(schema.CELL_ID).drop_null().to_pylist()
    assert cells == sorted(cells)
    for file in published.files:
        geo = json.loads(pq.read_schema(tmp_path / file.path).metadata[b"geo"])
        assert geo["columns"]["geometry"]["bbox"]


def test_photos_staged_twice_are_published_once_and_newest(tmp_path: Path) -> None:
    newer = [located_row(row[schema.URI], 1.0, 2.0, "v2", processed_at=LATER) for row in LOCATED[:5]]
    same = LOCATED[5:10]  # a retried task: the very same rows in another part
    publish(plan_and_stage(str(tmp_path), LOCATED, newer, LOCATED, same))
    table = read_all(tmp_path, ["photos/run=r1/part-00000.parquet"])
    assert table.num_rows == 60
    rows = {row[schema.URI]: row for row in table.to_pylist()}
    assert [rows[row[schema.URI]][schema.ETAG] for row in LOCATED[:6]] == ["v2"] * 5 + ["v1"]


def test_rows_that_are_not_planned_any_more_are_left_out(tmp_path: Path) -> None:
    published = publish(plan_and_stage(str(tmp_path), LOCATED[:10], LOCATED))
    assert published.located == 10


def test_a_missing_row_stops_everything(tmp_path: Path) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED[2:] + FAILED)
    with pytest.raises(UnaccountedError, match="2 planned photos have no row, for example /000 ü, /001 ü"):
        publish(stage)
    assert not (tmp_path / "photos").exists()
    assert not (tmp_path / "runs").exists()
    assert len(stage.row_files()) == 1


def test_no_row_at_all_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(UnaccountedError, match="no row is staged"):
        publish(plan_and_stage(str(tmp_path), LOCATED))


def test_publishing_again_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two files: the next start removes what it wrote (more files than now, even) and writes anew."""
    stage = plan_and_stage(str(tmp_path), LOCATED, LOCATED)
    monkeypatch.setattr(publish_module, "_ROWS_PER_FILE", 10)
    write, written = storage.write_bytes, []

    def killed_at_the_fourth(uri: str, data: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(uri)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        publish(stage)
    monkeypatch.undo()
    assert len(list(storage.list_files(f"{tmp_path}/photos"))) == 3
    published = publish(stage)
    assert [entry.uri for entry in storage.list_files(f"{tmp_path}/photos")] == [
        f"{tmp_path}/{published.files[0].path}"
    ]
    assert published.located == 60


def test_the_record_comes_last_and_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED, LOCATED)
    publish(stage)
    assert not (tmp_path / "runs").exists()

    def refused(uri: str, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage, "write_bytes", refused)
    with pytest.raises(OSError, match="disk full"):
        put_record(stage, {"run_id": "r1"})
    assert stage.row_files()  # nothing is lost: the next start publishes again
    monkeypatch.undo()
    uri = put_record(stage, {"run_id": "r1"})
    assert json.loads(Path(uri).read_text()) == {"run_id": "r1"}
    assert uri == f"{tmp_path}/runs/r1.json"
    assert list(storage.list_files(stage.folder)) == []


def test_a_run_without_work_publishes_nothing(tmp_path: Path) -> None:
    published = publish(Stage(str(tmp_path), "r1"))
    assert (published.files, published.located, published.failed) == ((), 0, 0)


@pytest.mark.s3
def test_on_s3(s3_bucket: str) -> None:
    output = f"s3://{s3_bucket}/publish it's ü%20"
    stage = plan_and_stage(output, LOCATED + FAILED, LOCATED, FAILED, LOCATED[:5])
    published = publish(stage)
    assert (published.located, published.failed) == (60, 3)
    put_record(stage, {"run_id": "r1"})
    names = {entry.uri.removeprefix(output) for entry in storage.list_files(output)}
    assert names == {"/photos/run=r1/part-00000.parquet", "/runs/r1.json"}
