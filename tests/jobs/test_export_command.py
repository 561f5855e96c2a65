"""`python -m jobs.export`, as people and scripts call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from geojson_pydantic import FeatureCollection

from jobs.export import ExportSettings, run
from pipeline import schema, storage
from pipeline.schema import ErrorCode
from tests.conftest import REPOSITORY
from tests.support.photo_rows import failed_row, located_row
from tests.support.photo_samples import china_jpeg, flower_jpeg
from tests.support.published_rows import publish_rows, publish_run


@pytest.fixture
def archive(tmp_path: Path) -> tuple[str, Path]:
    """An output, and the folder of its photos: one sure, one that knows its place, one unsure, one broken."""
    photos = tmp_path / "photos"
    rows = []
    for index, name in enumerate(("sure.jpg", "camera.jpg", "unsure.jpg")):
        uri = str(photos / name)
        storage.write_bytes(uri, china_jpeg() if index else flower_jpeg())
        row = located_row(uri, 10.5 + index, 20, storage.head(uri).etag)
        rows.append(
            row if name == "camera.jpg" else row | {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
        )
    rows[2] |= {schema.CONFIDENCE: 0.2}
    rows.append(failed_row(str(photos / "broken.jpg"), ErrorCode.CORRUPT))
    publish_rows(str(tmp_path / "out"), rows)
    return str(tmp_path / "out"), photos


def test_a_map_file(archive: tuple[str, Path], tmp_path: Path) -> None:
    to = tmp_path / "photos.geojson"
    command = [sys.executable, "-m", "jobs.export", archive[0], "--format", "geojson", "--to", str(to)]
    answer = subprocess.run([*command, "--min-confidence", "0.4"], cwd=REPOSITORY, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.decode().splitlines() == [
        f"2 photos written to {to} ({to.stat().st_size:,} bytes)",
        "           1  left out: confidence below 0.4",
        "           1  left out: failed, no place",
    ]
    assert len(FeatureCollection.model_validate_json(to.read_bytes()).features) == 2
    wrong = subprocess.run([*command, "--where", "SELEC"], cwd=REPOSITORY, capture_output=True, check=False)
    assert wrong.returncode == 2
    assert b"DuckDB can't run this query" in wrong.stderr
    assert b"Traceback" not in wrong.stderr


def test_what_the_model_cannot_tell_is_on_no_map_unless_asked_for(
    archive: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor in a sidecar; but a sidecar from when it seemed sure can still be taken away."""
    output, photos = archive
    assert run(ExportSettings(output, "xmp", write=True)) == 0
    unsure = located_row(str(photos / "sure.jpg"), 1, 2, **{schema.STATUS: "undecided", schema.COUNTRY: None})
    publish_run(output, "r2", [unsure | {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}])
    capsys.readouterr()
    to = tmp_path / "photos.csv"
    told = []
    for options in ({}, {"undecided": True}, {"all": True}):
        assert run(ExportSettings(output, "csv", to=str(to), **options)) == 0  # type: ignore[arg-type]
        lines = capsys.readouterr().out.splitlines()
        told.append((lines[0].split(" ")[0], [" ".join(line.split()) for line in lines[1:]]))
    undecided, failed = "1 left out: undecided: no place is more likely right than not", "1 left out: failed, no place"
    assert told == [("2", [failed, undecided]), ("3", [failed]), ("4", [])]
    assert ",undecided,corrupt" not in to.read_text()
    assert "undecided" in to.read_text()
    assert run(ExportSettings(output, "xmp", min_confidence=0)) == 0
    assert undecided in " ".join(capsys.readouterr().out.split())
    assert (photos / "sure.jpg.xmp").exists()
    assert run(ExportSettings(output, "xmp", undo=True, write=True)) == 0
    assert not (photos / "sure.jpg.xmp").exists()


def test_sidecars_dry_first_then_written_then_undone(
    archive: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output, photos = archive
    before = {file: file.read_bytes() for file in photos.iterdir()}
    assert run(ExportSettings(output, "xmp")) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "1 photos with a confidence of at least 0.5 within at most 25 km",
        "           1  new sidecar",
        f"              {photos}/sure.jpg.xmp",
        "           1  left out: confidence below 0.5",
        "           1  left out: failed, no place",
        "           1  left out: the camera wrote a position into the photo",
        "This was a dry run, nothing was written. Add --write to do it.",
    ]
    assert {file: file.read_bytes() for file in photos.iterdir()} == before
    assert run(ExportSettings(output, "xmp", write=True)) == 0
    assert capsys.readouterr().out.splitlines() == told[:-1]
    assert {file.name for file in photos.iterdir()} == {file.name for file in before} | {"sure.jpg.xmp"}
    assert {file: file.read_bytes() for file in before} == before
    assert run(ExportSettings(output, "xmp", undo=True, write=True)) == 0
    assert "1  sidecar removed" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in photos.iterdir()} == before


def test_sidecars_that_could_not_be_written_exit_with_3(
    archive: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output, photos = archive
    (photos / "sure.jpg.xmp").mkdir()
    assert run(ExportSettings(output, "xmp", write=True)) == 3
    assert "1  left: could not be read or written\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, r"needs a file: add --to FILE\.csv"),
        ({"format": "csv", "to": "x/"}, r"needs a file"),
        ({"format": "csv", "to": "x.csv", "write": True}, "--write is for --format xmp only"),
        ({"format": "csv", "to": "x.csv", "min_confidence": 50}, "no probability"),
        ({"format": "xmp", "all": True}, "--all is not for"),
        ({"format": "xmp", "undecided": True}, "--undecided is not for"),
        ({"format": "xmp", "relative_to": "/x"}, "add --to"),
        ({"format": "xmp", "undo": True, "min_confidence": 0.5}, "--undo looks at every photo"),
        ({"format": "csv", "to": "FOLDER"}, "can't write --to"),
    ],
)
def test_mistakes_say_what_to_type(archive: tuple[str, Path], options: dict[str, object], message: str) -> None:
    given = {name: str(archive[1]) if value == "FOLDER" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        run(ExportSettings(archive[0], **given))  # type: ignore[arg-type]


@pytest.mark.s3
def test_everything_on_s3(s3_bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    top = f"s3://{s3_bucket}/export-job"
    uri = f"{top}/photos/a b.jpg"
    storage.write_bytes(uri, china_jpeg())
    row = located_row(uri, 10.5, 20, storage.head(uri).etag, recorded_lat_deg=None, recorded_lon_deg=None)
    publish_rows(f"{top}/out", [row])
    assert run(ExportSettings(f"{top}/out", "geojsonl", to=f"{top}/photos.geojsonl")) == 0
    assert json.loads(storage.read_bytes(f"{top}/photos.geojsonl"))["properties"]["uri"] == uri
    assert run(ExportSettings(f"{top}/out", "xmp", write=True)) == 0
    mirrored = ExportSettings(f"{top}/out", "xmp", to=f"{top}/mirror", relative_to=f"{top}/photos", write=True)
    assert run(mirrored) == 0
    assert storage.read_bytes(f"{uri}.xmp") == storage.read_bytes(f"{top}/mirror/a b.jpg.xmp")
    assert f"{top}/mirror/a b.jpg.xmp" in capsys.readouterr().out
