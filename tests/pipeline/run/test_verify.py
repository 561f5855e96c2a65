"""Damage of every kind to what is published is found and named; what is whole is found whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.locate.precision import wkb_points
from pipeline.published import geoparquet
from pipeline.published.records import RunRecord
from pipeline.run import publish as publish_module
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.run.verify import verify_output
from pipeline.schema import ErrorCode
from tests.support.photo_rows import failed_row, located_row, photos

Row = dict[str, Any]
CHANCE = random.Random(5)
LOCATED = [located_row(f"/{i:03d} ü", CHANCE.uniform(-80, 80), CHANCE.uniform(-180, 180)) for i in range(60)]
FAILED = [failed_row(f"/bad-{i}", code) for i, code in enumerate([ErrorCode.CORRUPT, ErrorCode.EMPTY, ErrorCode.EMPTY])]
PARTS = tuple(f"photos/run=r1/part-e1-{index:05d}.parquet" for index in range(3))
RECORD = "runs/r1.json"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run published in three files of 21 rows, in row groups of 7."""
    monkeypatch.setattr(publish_module, "LEAST_ROWS_PER_FILE", 20)
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 8)
    publish_run(str(tmp_path / "out"), "r1")
    return tmp_path / "out"


def publish_run(output: str, run_id: str) -> None:
    rows = [row | {schema.RUN_ID: run_id} for row in LOCATED + FAILED]
    stage = Stage(output, run_id)
    plan = pa.Table.from_pylist([{n: row.get(n) for n in schema.MANIFEST.names} for row in rows], schema.MANIFEST)
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(plan))
    stage.put_rows(photos(rows))
    published = publish(stage)
    record = {
        "run_id": run_id,
        "finished_at": "2026-01-01T00:00:00+00:00",
        "model_id": "m-1",
        "photos": {
            "located": published.located,
            "failed": published.failed,
            "failed_by_code": published.failed_by_code,
            "fingerprint": published.fingerprint,
        },
        "files": [asdict(file) for file in published.files],
    }
    put_record(stage, RunRecord.from_json(record))


def problems(output: Path | str) -> list[str]:
    return [str(problem) for problem in verify_output(str(output))]


def edit_record(output: Path, edit: Callable[[Row], object]) -> None:
    record = json.loads((output / RECORD).read_text())
    edit(record)
    (output / RECORD).write_text(json.dumps(record))


def make_old(record: Row) -> None:
    """Take out what records did not say before."""
    del record["photos"]
    for file in record["files"]:
        del file["digest"], file["size_bytes"]


def rewrite(path: Path, edit: Callable[[list[Row]], object]) -> None:
    """Change a file's rows, with all else as it should be."""
    rows = pq.read_table(path).to_pylist()
    edit(rows)
    table = photos(rows)
    geoparquet.write(path, [table], geoparquet.bbox_of(table))


def test_what_is_whole_has_no_problem(output: Path) -> None:
    assert [str(path.relative_to(output)) for path in sorted(output.rglob("*.parquet"))] == list(PARTS)
    publish_run(str(output), "r2")
    assert problems(output) == []
    edit_record(output, make_old)
    assert problems(output) == []


def test_an_empty_run_is_whole_and_nothing_at_all_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is published"):
        verify_output(str(tmp_path))
    record = {"run_id": "r0", "model_id": "m-1", "files": [], "photos": {"located": 0, "failed": 0}}
    storage.write_bytes(f"{tmp_path}/runs/r0.json", json.dumps(record).encode())
    assert problems(tmp_path) == []


def test_every_flipped_byte_is_found(output: Path) -> None:
    data = (output / PARTS[1]).read_bytes()
    for position in random.Random(1).sample(range(len(data)), 5):
        (output / PARTS[1]).write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        assert problems(output) == [f"{PARTS[1]}: its bytes are not those that were written"]


def test_without_a_digest_a_damaged_row_group_is_found(output: Path) -> None:
    edit_record(output, make_old)
    data = bytearray((output / PARTS[1]).read_bytes())
    group = pq.ParquetFile(output / PARTS[1]).metadata.row_group(1).column(1)  # `uri`
    start = group.data_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    (output / PARTS[1]).write_bytes(data)
    (found,) = problems(output)
    assert found.startswith(f"{PARTS[1]}: row group 1 can't be read: ")


@pytest.mark.parametrize("data", [b"", b"PAR1 no, not really PAR1"])
def test_without_a_digest_what_is_no_parquet_is_found(output: Path, data: bytes) -> None:
    edit_record(output, make_old)
    (output / PARTS[1]).write_bytes(data)
    (found,) = problems(output)
    assert found.startswith(f"{PARTS[1]}: can't be read as Parquet: ")


def test_missing_cut_and_stray_files_are_found(output: Path) -> None:
    (output / PARTS[0]).unlink()
    data = (output / PARTS[1]).read_bytes()
    (output / PARTS[1]).write_bytes(data[:-1])
    stray = "photos/run=r1/part-e0-00000.parquet"
    (output / stray).write_bytes((output / PARTS[2]).read_bytes())
    (output / "photos/run=r1/.0123.tmp").write_bytes(b"half a put")
    (output / "runs/.4567.tmp").write_bytes(b"half a put")
    (output / ".89.tmp").write_bytes(b"half a put")
    (output / ".graticule-probe-1").write_bytes(b"")
    (output / "notes.txt").write_bytes(b"the user's own")
    staged = Stage(str(output), "r1").put_rows(photos(LOCATED[:1]))
    unfinished = "photos/run=r9/part-e1-00000.parquet"
    storage.write_bytes(f"{output}/{unfinished}", b"of a run that goes on")
    Stage(str(output), "r9").put_rows(photos(LOCATED[:1]))
    counted = "no run's record names it, but whoever reads all of photos/ would count it"
    assert sorted(problems(output)) == sorted(
        [
            f"{PARTS[0]}: is missing",
            f"{PARTS[1]}: has {len(data) - 1} bytes, not {len(data)}",
            f"{stray}: {counted}: remove the file",
            f"{unfinished}: {counted}: run the job again, which finishes the run",
            "photos/run=r1/.0123.tmp: left over, and not ours to keep: remove it",
            ".89.tmp: left over, and not ours to keep: remove it",
            ".graticule-probe-1: left over, and not ours to keep: remove it",
            "runs/.4567.tmp: left over from a process that was killed: the next run removes it",
            "staging/r1: left over from a finished run: the next run removes it",
        ]
    )
    assert Path(staged).exists()  # it looks only


def drop_row(rows: list[Row]) -> None:
    del rows[3]


def repeat_row(rows: list[Row]) -> None:
    rows[3] = rows[4]


def replace_row(rows: list[Row]) -> None:
    rows[3] = located_row("/somebody else's", 1.0, 2.0)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (
            drop_row,
            [
                f"{PARTS[1]}: has 20 rows, not 21",
                f"{RECORD}: says located: 60; its files say 59",
                f"{RECORD}: the photos in its files are not those that were planned",
            ],
        ),
        (
            repeat_row,
            [
                f"{RECORD}: 1 photos have several rows in its files, for example",
                f"{RECORD}: the photos in its files are not those that were planned",
            ],
        ),
        (replace_row, [f"{RECORD}: the photos in its files are not those that were planned"]),
    ],
)
def test_rows_that_are_not_the_planned_ones_are_found(
    output: Path, edit: Callable[[list[Row]], object], found: list[str]
) -> None:
    """By somebody who knew to leave no wrong digest behind."""
    rewrite(output / PARTS[1], edit)
    edit_record(output, lambda record: [file.pop("digest") and file.pop("size_bytes") for file in record["files"]])
    for problem, wanted in zip(problems(output), found, strict=True):
        assert problem.startswith(wanted)


BAD_LEVELS = [LOCATED[0][schema.LEVELS][0] | {schema.PROBABILITY: 1.5}]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({schema.STATUS: "copied"}, "have a status that we don't know"),
        ({schema.ERROR_CODE: "empty"}, "have not failed and have an error code"),
        ({schema.LEVELS: []}, "were looked at and have no levels"),
        ({schema.LEVELS: None}, "were looked at and have no levels"),
        ({schema.LEVELS: BAD_LEVELS}, "have a probability that is none"),
        ({schema.CONFIDENCE: float("nan")}, "have a probability that is none"),
        ({schema.SCENE_PROBABILITY: -0.1}, "have a probability that is none"),
        ({schema.RADIUS_KM: None}, "were looked at and have no cell, radius or confidence"),
        ({schema.GEOMETRY: LOCATED[0][schema.GEOMETRY]}, "have another geometry than position"),
        ({schema.GEOMETRY: b"\x01\x02"}, "have another geometry than position"),
        ({schema.GEOMETRY: None}, "have another geometry than position"),
        ({schema.RUN_ID: "r2"}, "are of another run"),
        ({schema.MODEL_ID: "m-2"}, "are of another model"),
        ({schema.RUN_SEQUENCE: 8}, "have another place in the order of runs"),
    ],
)
def test_each_rule_of_a_row_is_checked(output: Path, changed: Row, found: str) -> None:
    edit_record(output, lambda record: (make_old(record), record.update(sequence=1)))
    uris = []

    def edit(rows: list[Row]) -> None:
        for row in rows[4:6]:
            uris.append(row[schema.URI])
            row.update(changed)

    rewrite(output / PARTS[1], edit)
    assert problems(output) == [f"{PARTS[1]}: 2 rows {found}, for example {min(uris)}"]


def at(lat_deg: float, lon_deg: float) -> Row:
    point = wkb_points(np.array([lat_deg]), np.array([lon_deg]))[0].as_py()
    return {schema.LAT_DEG: lat_deg, schema.LON_DEG: lon_deg, schema.GEOMETRY: point}


def context(lat_deg: float, lon_deg: float, **changed: Any) -> Row:
    values = (lat_deg, lon_deg, 0.0, 1.0, 1, 0)
    return dict(zip(schema.CONTEXT, values, strict=True)) | changed


NOWHERE, HALF = "were looked at and have no position on Earth", "have half a context"
NO_PLACE, NO_PROBABILITY = "were looked at and have no cell, radius or confidence", "have a probability that is none"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (at(90, 180), None),
        (at(-90, -180), None),
        (at(90.001, 0), NOWHERE),
        (at(-90.001, 0), NOWHERE),
        (at(0, 180.001), NOWHERE),
        (at(0, -180.001), NOWHERE),
        ({schema.RADIUS_KM: 0.0, schema.CONFIDENCE: 1.0, schema.SCENE_PROBABILITY: 0.0}, None),
        ({schema.RADIUS_KM: -0.001}, NO_PLACE),
        ({schema.CELL_ID: None}, NO_PLACE),
        ({schema.CONFIDENCE: None}, NO_PLACE),
        ({schema.CONFIDENCE: 1.001}, NO_PROBABILITY),
        (context(90, 180), None),
        (context(-90, -180), None),
        (context(90.001, 0), HALF),
        (context(-90.001, 0), HALF),
        (context(0, 180.001), HALF),
        (context(0, -180.001), HALF),
        (context(0, 0, **{schema.CONTEXT_RADIUS_KM: -0.001}), HALF),
        (context(0, 0, **{schema.CONTEXT_RADIUS_KM: None}), HALF),
        (context(0, 0, **{schema.CONTEXT_LAT_DEG: None}), HALF),
        (context(0, 0, **{schema.CONTEXT_LON_DEG: None}), HALF),
        (context(0, 0, **{schema.CONTEXT_CELL_ID: None}), HALF),
        (context(0, 0, **{schema.CONTEXT_PHOTOS: None}), HALF),
        ({schema.CONTEXT_CONFIDENCE: -0.001}, NO_PROBABILITY),
    ],
)
def test_limits_are_inclusive_and_nothing_beyond_them_is_whole(output: Path, changed: Row, found: str | None) -> None:
    edit_record(output, make_old)
    uris = []

    def edit(rows: list[Row]) -> None:
        uris.append(rows[4][schema.URI])
        rows[4].update(changed)

    rewrite(output / PARTS[1], edit)
    assert problems(output) == ([f"{PARTS[1]}: 1 rows {found}, for example {uris[0]}"] if found else [])


def test_a_context_of_a_photo_that_failed_is_found(output: Path) -> None:
    edit_record(output, make_old)
    rewrite(output / PARTS[2], lambda rows: rows[-1].update(context(0, 0)))
    (found,) = problems(output)
    assert found.startswith(f"{PARTS[2]}: 1 rows have half a context, for example /bad-")


def test_rules_of_failed_rows_and_positions(output: Path) -> None:
    edit_record(output, make_old)

    def edit(rows: list[Row]) -> None:
        rows[0][schema.LAT_DEG] = 91.0
        assert rows[-1][schema.STATUS] == rows[-2][schema.STATUS] == "failed"
        rows[-1][schema.ERROR_CODE] = None
        rows[-2][schema.ERROR_CODE] = "no such code"
        rows[-3][schema.CONFIDENCE] = 0.5

    rewrite(output / PARTS[2], edit)
    found = [problem.removeprefix(f"{PARTS[2]}: ").split(", for")[0] for problem in problems(output)]
    assert found == [
        "2 rows are failed without an error code that we know",
        "1 rows are failed or skipped and have a place",
        "1 rows were looked at and have no position on Earth",
        "1 rows have another geometry than position",
    ]


@pytest.mark.parametrize(
    "geo", [None, "{", geoparquet.metadata((-1.0, -1.0, 1.0, 1.0)), geoparquet.metadata(None)], ids=str
)
def test_wrong_geo_metadata_is_found(output: Path, geo: object) -> None:
    edit_record(output, make_old)
    text = geo if isinstance(geo, str) else json.dumps(geo)
    table = pq.read_table(output / PARTS[0]).replace_schema_metadata({"geo": text} if geo is not None else None)
    pq.write_table(table, output / PARTS[0])
    assert problems(output) == [f"{PARTS[0]}: its `geo` metadata is not what GeoParquet asks for these rows"]


def test_files_of_an_older_version_are_whole_without_the_columns_added_since(output: Path) -> None:
    edit_record(output, make_old)
    for part in PARTS:
        table = pq.read_table(output / part, partitioning=None)
        older = table.drop_columns(sorted(schema.ADDED_LATER))
        pq.write_table(older, output / part, sorting_columns=None)
    assert problems(output) == []


def test_other_columns_are_found(output: Path) -> None:
    edit_record(output, make_old)
    table = pq.read_table(output / PARTS[0])
    pq.write_table(table.drop_columns([schema.SCENE]), output / PARTS[0])
    assert problems(output) == [f"{PARTS[0]}: has other columns than published photos have"]


def test_values_that_no_reader_could_use_are_found(output: Path) -> None:
    """A text that is no UTF-8: Parquet takes it as it is, and so do its readers, until somebody prints it."""
    edit_record(output, make_old)
    table = pq.read_table(output / PARTS[1], partitioning=None)
    texts = [b"outdoor"] * table.num_rows
    texts[9] = b"out\xffdoor"
    scenes = pa.array(texts, pa.binary()).view(pa.string())
    table = table.set_column(table.schema.get_field_index(schema.SCENE), schema.PHOTOS.field(schema.SCENE), scenes)
    geoparquet.write(output / PARTS[1], [table], geoparquet.bbox_of(table))
    (found,) = problems(output)
    assert found.startswith(f"{PARTS[1]}: row group 1 can't be read: ")
    assert "UTF8" in found


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda record: record.update(run_id="r7"), "is no record of a run r1"),
        (lambda record: record.update(files="many"), "says no model, files or photos"),
        (lambda record: record["files"][0].update(path="../secret"), "names a file that can't be the run's: ../secret"),
        (lambda record: record["files"][0].update(path=7), "names a file that can't be the run's: 7"),
    ],
)
def test_a_record_that_is_none_is_found(output: Path, edit: Callable[[Row], object], found: str) -> None:
    edit_record(output, edit)
    assert problems(output)[0] == f"{RECORD}: {found}"
    assert len(problems(output)) == 4  # and nobody knows whose the files are


def test_an_edited_record_is_found(output: Path) -> None:
    def edit(record: Row) -> None:
        record["photos"]["failed_by_code"]["empty"] = 3
        record["photos"]["fingerprint"] = "00" * 16
        record["files"][1]["row_count"] = 22

    edit_record(output, edit)
    assert problems(output) == [
        f"{PARTS[1]}: has 21 rows, not 22",
        f"{RECORD}: says failed_by_code: {{'corrupt': 1, 'empty': 3}}; its files say {{'corrupt': 1, 'empty': 2}}",
        f"{RECORD}: the photos in its files are not those that were planned",
    ]


def test_a_record_that_is_no_json_is_found(output: Path) -> None:
    publish_run(str(output), "r2")
    (output / RECORD).write_bytes(b"{\xff")
    assert problems(output)[0].startswith(f"{RECORD}: is no JSON: ")
    assert len(problems(output)) == 4


def test_a_file_that_is_named_twice_is_found(output: Path) -> None:
    edit_record(output, lambda record: record["files"].append(record["files"][0]))
    assert any("21 photos have several rows" in problem for problem in problems(output))
    publish_run(str(output), "r2")
    path = PARTS[0].replace("r1", "r2")
    edit_record(output, lambda record: record["files"][-1].update(path=path))
    assert problems(output)[0] == f"{RECORD}: names a file that can't be the run's: {path}"


@pytest.mark.s3
def test_on_s3(s3_bucket: str) -> None:
    output = f"s3://{s3_bucket}/verify it's ü%20"
    publish_run(output, "r1")
    assert problems(output) == []
    data = storage.read_bytes(f"{output}/{PARTS[0]}")
    storage.write_bytes(f"{output}/{PARTS[0]}", data[:2000] + b"?" + data[2001:])
    assert problems(output) == [f"{PARTS[0]}: its bytes are not those that were written"]
    storage.delete(f"{output}/{PARTS[0]}")
    assert problems(output) == [f"{PARTS[0]}: is missing"]
