"""What a run leaves alone, and says so: unfinished runs of other settings, and photos whose time has not come yet."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from jobs import geotag_archive
from jobs.geotag_archive import ArchiveSettings
from jobs.nightly import NightlySettings, run
from pipeline import schema, storage
from pipeline.run.staging import Stage, unfinished_runs
from pipeline.sources.manifest import read_manifest
from tests.conftest import published_output
from tests.support.photo_rows import failed_row, located_row, photos
from tests.support.published_rows import publish_run

OTHERS: dict[str, object] = {"model_id": "another-1", "precision": "street"}


@pytest.fixture
def archive(tiny_checkpoint: Path, tmp_path: Path) -> ArchiveSettings:
    """Settings over an archive whose every photo is done, so that nothing here needs Ray."""
    published_output(tmp_path / "out", tiny_checkpoint)
    return ArchiveSettings((str(tmp_path / "out-photos"),), output=f"{tmp_path}/out", model=str(tiny_checkpoint))


def begin(archive: ArchiveSettings, run_id: str, settings: dict[str, object]) -> str:
    """Leave a run unfinished with one staged row; that row's file."""
    stage = Stage(archive.output, run_id)
    stage.put_settings(settings)
    return stage.put_rows(photos([located_row("/staged.jpg", 1, 1)]))


def ours(archive: ArchiveSettings) -> dict[str, object]:
    """What a run of these settings notes of them."""
    (record,) = storage.list_files(f"{archive.output}/runs")
    return {"model_id": json.loads(storage.read_bytes(record.uri))["model_id"], "precision": "street"}


def test_a_run_without_a_name_takes_up_only_one_of_its_own_settings(
    archive: ArchiveSettings, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [begin(archive, "other-1", OTHERS), begin(archive, "z-other", OTHERS | {"precision": "city"})]
    begin(archive, "mine", ours(archive))
    with caplog.at_level(logging.INFO):
        assert geotag_archive.run(archive) == 0
    assert "taking up unfinished run mine" in caplog.text
    assert "left as it is: unfinished run other-1 was started with" in caplog.text
    assert "by jobs.geotag_archive with --run-id z-other and those, or remove" in caplog.text
    assert all(storage.exists(uri) for uri in kept)
    assert unfinished_runs(archive.output) == ["other-1", "z-other"]
    assert geotag_archive.run(archive) == 0  # a new one
    assert unfinished_runs(archive.output) == ["other-1", "z-other"]


def test_a_night_sets_aside_what_was_begun_with_other_settings(
    archive: ArchiveSettings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of an earlier night, and of this one: started by another command in between."""
    kept = [begin(archive, f"nightly-2026-11-0{day}", OTHERS) for day in (1, 2)]
    begin(archive, "nightly-2026-10-30", ours(archive))
    assert run(NightlySettings(archive, date="2026-11-02")) == 0
    night = json.loads(storage.read_bytes(f"{archive.output}/nights/2026-11-02.json"))
    assert night["set_aside"] == ["nightly-2026-11-01", "nightly-2026-11-02"]
    assert (night["listed"], night["already_done"], night["left"], night["waiting"]) == (3, 3, 0, 0)
    assert "set aside, other settings nightly-2026-11-01\n" in capsys.readouterr().out
    assert "set aside: unfinished run nightly-2026-11-02 was started with" in caplog.text
    assert all(storage.exists(uri) for uri in kept)
    assert unfinished_runs(archive.output) == ["nightly-2026-11-01", "nightly-2026-11-02"]
    assert run(NightlySettings(archive, date="2026-11-03")) == 0  # and so every night


def test_photos_that_failed_in_passing_and_wait_are_told(
    archive: ArchiveSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = archive.photos
    storage.write_bytes(f"{source}/away.jpg", b"")
    (listed,) = (
        row for batch in read_manifest(source) for row in batch.to_pylist() if row[schema.URI].endswith("away.jpg")
    )
    for run_id in ("r2", "r3"):
        failed = failed_row(listed[schema.URI], schema.ErrorCode.NOT_FOUND, listed[schema.ETAG])
        publish_run(archive.output, run_id, [failed], clock_h=999_999)
    assert geotag_archive.run(archive) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Nothing to do: 3 photos have their row at {archive.output}")
    assert said.endswith("1 more failed in passing; later runs try them again (--retry-failed does so now).\n")
