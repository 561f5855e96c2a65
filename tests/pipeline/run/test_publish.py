"""What is published is complete, sorted, each photo once, and GeoParquet; what isn't complete isn't published."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import itertools
import json
import operator
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geoparquet_validator
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.published import geoparquet, records
from pipeline.published.records import RunRecord, read_record
from pipeline.run import publish as publish_module
from pipeline.run import sweep
from pipeline.run.photo_set import PhotoSet, UnaccountedError
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.schema import ErrorCode
from pipeline.storage import lease
from tests.support.photo_rows import NOON, failed_row, located_row, photos

Row = dict[str, Any]
PART_0 = "photos/run=r1/part-e1-00000.parquet"
LATER = NOON + dt.timedelta(hours=1)
CHANCE = random.Random(3)
LOCATED = [located_row(f"/{i:03d} ü", CHANCE.uniform(-80, 80), CHANCE.uniform(-180, 180)) for i in range(60)]
FAILED = [failed_row(f"/bad-{i}", code) for i, code in enumerate([ErrorCode.CORRUPT, ErrorCode.EMPTY, ErrorCode.EMPTY])]


def plan_and_stage(output: str, planned: Sequence[Row], *parts: Sequence[Row]) -> Stage:
    stage = Stage(output, "r1")
    rows = [{name: row.get(name) for name in schema.MANIFEST.names} for row in planned]
    table = pa.Table.from_pylist(rows, schema=schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(table))
    for part in parts:
        stage.put_rows(photos(part))
    return stage


def read_all(output: Path | str, paths: Sequence[str]) -> pa.Table:
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(f"{output}/{path}"))) for path in paths]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables])


def test_every_planned_photo_once_and_sorted_by_cell(tmp_path: Path) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED[:30] + FAILED[:1], LOCATED[30:] + FAILED[1:])
    published = publish(stage)
    assert (published.located, published.failed) == (60, 3)
    assert published.failed_by_code == {"corrupt": 1, "empty": 2}
    (file,) = published.files
    assert file.path == PART_0
    data = (tmp_path / file.path).read_bytes()
    assert (file.row_count, file.size_bytes) == (63, len(data))
    assert file.digest == hashlib.blake2b(data, digest_size=16).hexdigest()
    folded = functools.reduce(operator.xor, (int.from_bytes(row[schema.PHOTO_ID]) for row in LOCATED + FAILED))
    assert published.fingerprint == folded.to_bytes(16).hex()
    table = read_all(tmp_path, [file.path])
    cells = table.column(schema.CELL_ID).to_pylist()
    assert cells[:60] == sorted(row[schema.CELL_ID] for row in LOCATED)
    assert cells[60:] == [None] * 3
    numbered = {schema.RUN_SEQUENCE: stage.epoch}
    expected = {row[schema.PHOTO_ID]: row | numbered for row in photos(LOCATED + FAILED).to_pylist()}
    assert {row[schema.PHOTO_ID]: row for row in table.to_pylist()} == expected


def test_disagreeing_recorded_positions_are_counted(tmp_path: Path) -> None:
    apart_km = [None, 0.0, 1.0, 1.5, 7000.0]
    rows = [row | {schema.RECORDED_APART_KM: km} for row, km in zip(LOCATED, apart_km, strict=False)]
    assert publish(plan_and_stage(str(tmp_path), rows, rows)).recorded_apart == 2


@pytest.mark.parametrize("rows", [LOCATED + FAILED, FAILED], ids=["with places", "without any"])
def test_the_file_is_geoparquet_1_1(tmp_path: Path, rows: list[Row]) -> None:
    """By the GeoParquet project's own validator, and by what only we want in it."""
    publish(plan_and_stage(str(tmp_path), rows, rows))
    report = geoparquet_validator.check(str(tmp_path / PART_0))
    assert "1.1.0" in json.dumps(report)
    outcomes = [test for test in report["outcomes"] if test["id"].startswith("/conf/core/")]
    assert len([test for test in outcomes if test["status"] == "pass"]) >= 10
    assert geoparquet_validator.failed(report, "core") == []
    found = pq.read_schema(tmp_path / PART_0)
    assert found.equals(schema.PHOTOS)
    for field in schema.PHOTOS:  # documented and typed in the file itself
        assert field.metadata.items() <= found.field(field.name).metadata.items()
    column = json.loads(found.metadata[b"geo"])["columns"]["geometry"]
    places = [row for row in rows if row in LOCATED]
    if places:
        lons, lats = ([row[name] for row in places] for name in (schema.LON_DEG, schema.LAT_DEG))
        assert column["bbox"] == [min(lons), min(lats), max(lons), max(lats)]
    else:
        assert "bbox" not in column


def test_large_runs_become_several_files_of_like_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "LEAST_ROWS_PER_FILE", 20)
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 8)
    published = publish(plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED[:40], LOCATED[40:] + FAILED))
    assert [file.row_count for file in published.files] == [21, 21, 21]
    table = read_all(tmp_path, [file.path for file in published.files])
    keys = [(row[schema.CELL_ID] or 2**64, row[schema.PHOTO_ID]) for row in table.to_pylist()]
    assert keys == sorted(keys)
    for index, file in enumerate(published.files):
        parquet = pq.ParquetFile(tmp_path / file.path)
        groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
        assert [group.num_rows for group in groups] == [7, 7, 7]
        leaves = {leaf.path_in_schema: leaf for leaf in map(groups[0].column, range(groups[0].num_columns))}
        assert leaves[schema.CELL_ID].statistics.has_min_max
        geo = json.loads(parquet.schema_arrow.metadata[b"geo"])
        rows = table.slice(21 * index, 21)
        assert tuple(geo["columns"]["geometry"]["bbox"]) == geoparquet.bbox_of(rows)


def test_the_same_place_many_times_is_spread_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "LEAST_ROWS_PER_FILE", 10)
    rows = [located_row(f"/{index}", 1.0, 2.0) for index in range(25)]
    published = publish(plan_and_stage(str(tmp_path), rows, rows))
    assert [file.row_count for file in published.files] == [12, 13]


def test_keys_sort_as_rows_are_published(tmp_path: Path) -> None:
    """Else what is sorted elsewhere, by key, would lie in other files than what DuckDB sorts here."""
    south_pole = located_row("/last cell", -90.0, 0.0)
    rows = [
        *FAILED,
        *LOCATED,
        south_pole,
        located_row("/the same cell", *[south_pole[n] for n in (schema.LAT_DEG, schema.LON_DEG)]),
    ]
    publish(plan_and_stage(str(tmp_path), rows, rows))
    published = read_all(tmp_path, [PART_0])
    keys = publish_module.sort_keys(published)
    assert keys.tolist() == sorted(keys.tolist())
    assert len(set(keys.tolist())) == len(rows)
    assert published.column(schema.CELL_ID).to_pylist()[-3:] == [None] * 3
    ranges = [publish_module.FileRange(bytes(keys[start]), 20, None) for start in (0, 20, 40)]
    assert publish_module.file_index(published, ranges).tolist() == [0] * 20 + [1] * 20 + [2] * 25


def test_of_photos_staged_twice_the_row_of_the_latest_holder_is_published(tmp_path: Path) -> None:
    """Whatever the clocks say that made the rows: the later holder's was behind."""
    newer = [located_row(row[schema.URI], 1.0, 2.0, "v2", processed_at=NOON) for row in LOCATED[:5]]
    same = LOCATED[5:10]  # a retried task: the very same rows in another part
    older = [row | {schema.PROCESSED_AT: LATER} for row in LOCATED]
    stage = plan_and_stage(str(tmp_path), LOCATED, older, same)
    for epoch, rows in ((10, newer), (9, older[:5])):
        replace(stage, epoch=epoch).put_rows(photos(rows))
    publish(stage)
    table = read_all(tmp_path, [PART_0])
    assert table.num_rows == 60
    rows = {row[schema.URI]: row for row in table.to_pylist()}
    assert [rows[row[schema.URI]][schema.ETAG] for row in LOCATED[:6]] == ["v2"] * 5 + ["v1"]


@pytest.mark.parametrize("old_parts", [1, 2])
def test_rows_staged_by_an_older_version_have_null_for_columns_added_since(tmp_path: Path, old_parts: int) -> None:
    named = [row | {schema.COUNTRY: "Poland"} for row in LOCATED[:2]]
    stage = plan_and_stage(str(tmp_path), named, named[:1], named[1:])
    for file in stage.row_files()[:old_parts]:
        pq.write_table(pq.read_table(file, partitioning=None).drop_columns(sorted(schema.ADDED_LATER)), file)
    published = publish(stage)
    table = read_all(tmp_path, [file.path for file in published.files])
    assert table.schema.equals(schema.PHOTOS, check_metadata=False)
    assert table.column(schema.COUNTRY).null_count == old_parts
    assert table.column(schema.LAT_DEG).null_count == 0


def test_rows_that_are_not_planned_any_more_are_left_out(tmp_path: Path) -> None:
    published = publish(plan_and_stage(str(tmp_path), LOCATED[:10], LOCATED))
    assert published.located == 10


def test_missing_rows_stop_everything_and_are_listed(tmp_path: Path) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED + FAILED, LOCATED[25:] + FAILED)
    with pytest.raises(UnaccountedError, match="25 photos are not accounted for") as raised:
        publish(stage)
    assert "  no row: /000 ü\n" in str(raised.value)
    assert str(raised.value).count("no row: ") == 20
    listed = pq.read_table(f"{stage.folder}/unaccounted-e1.parquet").to_pylist()
    assert [(row[schema.URI], row["problem"]) for row in listed] == [
        (row[schema.URI], "no row") for row in LOCATED[:25]
    ]
    assert not (tmp_path / "photos").exists()
    assert not (tmp_path / "runs").exists()
    assert len(stage.row_files()) == 1


def test_no_row_at_all_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(UnaccountedError, match="60 photos are not accounted for"):
        publish(plan_and_stage(str(tmp_path), LOCATED))


def test_what_was_written_is_read_back_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that loses rows, repeats one and brings a strange one: found, and nothing is left to read."""
    stage = plan_and_stage(str(tmp_path), LOCATED, LOCATED)
    write = storage.write_bytes

    def garbling(uri: str, data: bytes) -> None:
        if "/photos/" in uri:
            rows = LOCATED[2:] + LOCATED[5:6] + [located_row("/strange", 1.0, 2.0)]
            data = parquet_bytes(photos(rows))
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", garbling)
    with pytest.raises(UnaccountedError, match="4 photos"):
        publish(stage)
    listed = pq.read_table(f"{stage.folder}/unaccounted-e1.parquet").to_pylist()
    assert [(row["problem"], row[schema.URI]) for row in listed] == [
        ("no row", "/000 ü"),
        ("no row", "/001 ü"),
        ("not planned", "/strange"),
        ("several rows", "/005 ü"),
    ]
    assert list(storage.list_files(f"{tmp_path}/photos")) == []


def unnumbered(output: str, path: str) -> pa.Table:
    """Return a file's rows without the number of the run, which another holder of the lease makes another."""
    return read_all(output, [path]).drop_columns([schema.RUN_SEQUENCE])


class Killed(BaseException):
    """What happens to a process that is killed, as far as one can do that to oneself."""


def test_killed_at_any_step_the_next_start_publishes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "LEAST_ROWS_PER_FILE", 20)
    rows, parts = LOCATED + FAILED, (LOCATED[:40], LOCATED[30:] + FAILED)
    undisturbed = publish(plan_and_stage(f"{tmp_path}/undisturbed", rows, *parts))
    wanted = [unnumbered(f"{tmp_path}/undisturbed", file.path) for file in undisturbed.files]
    output, put, delete = f"{tmp_path}/killed", storage.write_bytes, storage.delete
    for steps in itertools.count():
        stage = plan_and_stage(output, rows, *parts)
        left = steps

        def step(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:  # and whatever is tried afterwards does nothing either
                raise Killed

        def killed_put(uri: str, data: bytes) -> None:
            step()
            put(uri, data)

        def killed_delete(uri: str) -> None:
            step()
            delete(uri)

        monkeypatch.setattr(storage, "write_bytes", killed_put)
        monkeypatch.setattr(storage, "delete", killed_delete)
        with contextlib.suppress(Killed):
            publish(stage)
        monkeypatch.setattr(storage, "write_bytes", put)
        monkeypatch.setattr(storage, "delete", delete)
        with records.held(output, "r1", lease.LeaseSettings()) as held:
            again = replace(stage, epoch=held.epoch)
            sweep.at_start(held, output)
        table = pa.Table.from_pylist([{n: row.get(n) for n in schema.MANIFEST.names} for row in rows], schema.MANIFEST)
        put(again.plan_uri("todo", 0), parquet_bytes(table))
        published = publish(again)
        assert [unnumbered(output, file.path) for file in published.files] == wanted
        assert published.fingerprint == undisturbed.fingerprint
        found = {entry.uri.removeprefix(f"{output}/") for entry in storage.list_files(f"{output}/photos")}
        assert found == {file.path for file in published.files}
        if left > 0:  # it was not killed any more
            break
    assert steps > 3


def test_a_late_holder_leaves_its_successors_files_alone(tmp_path: Path) -> None:
    older = plan_and_stage(str(tmp_path), LOCATED, LOCATED)
    theirs = f"{tmp_path}/photos/run=r1/part-e10-00000.parquet"
    storage.write_bytes(theirs, b"of its successor")
    publish(older)
    publish_module.discard(older)
    assert [entry.uri for entry in storage.list_files(f"{tmp_path}/photos")] == [theirs]


def test_what_this_process_has_not_planned_is_not_published(tmp_path: Path) -> None:
    """Somebody has removed the plan's files, or put others in their place, since it was made."""
    stage = plan_and_stage(str(tmp_path), LOCATED[:30], LOCATED)
    for planned in (LOCATED[:31], LOCATED[1:31]):
        photo_set = PhotoSet.of([photos(planned)])
        published = publish(stage)
        with pytest.raises(UnaccountedError, match=rf"30 photos would be published, and .* has planned {len(planned)}"):
            publish_module.check_all_published(published, photo_set, stage)
        assert list(storage.list_files(f"{tmp_path}/photos")) == []
    publish_module.check_all_published(publish(stage), PhotoSet.of([photos(LOCATED[:30])]), stage)


def test_the_record_comes_last_and_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = plan_and_stage(str(tmp_path), LOCATED, LOCATED)
    publish(stage)
    assert not (tmp_path / "runs").exists()

    def refused(uri: str, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage, "create_bytes", refused)
    with pytest.raises(OSError, match="disk full"):
        put_record(stage, RunRecord(run_id="r1"))
    assert stage.row_files()  # nothing is lost: the next start publishes again
    monkeypatch.undo()
    uri = put_record(stage, RunRecord(run_id="r1"))
    assert read_record(uri) == RunRecord(run_id="r1")
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
    put_record(stage, RunRecord(run_id="r1"))
    names = {entry.uri.removeprefix(output) for entry in storage.list_files(output)}
    assert names == {f"/{PART_0}", "/runs/r1.json"}
