"""An output that an older version wrote is read, verified, continued and cleaned up; its `make.py` says what it is."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema, storage
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.run import sweep
from pipeline.run.plan import make_plan
from pipeline.run.publish import check_all_published, publish
from pipeline.run.retention import remove_replaced_runs
from pipeline.run.staging import Stage, unfinished_runs
from pipeline.run.verify import verify_output
from pipeline.storage import lease
from tests.support.photo_rows import located_row, photos

WRITTEN = Path(__file__).parents[2] / "older_outputs"
UNFINISHED = "20260105T000000Z"
LISTED = {"a": "v2", "b": "v2", "c": "v2", "d": "v1", "e": "v1", "f": "v2", "g": "v1", "h": "v1", "i": "v1"}


@pytest.fixture(params=["8c44984"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(shutil.copytree(WRITTEN / request.param / "output", tmp_path / "out"))


def newest(output: str) -> dict[str, str]:
    rows = (
        Catalog(output).rows("SELECT parse_filename(uri, true) AS name, run_id FROM photos ORDER BY name").to_pylist()
    )
    return {row["name"]: row["run_id"] for row in rows}


def test_it_is_read_in_the_order_of_its_records_whatever_its_clocks_said(output: str) -> None:
    nightly = "nightly-2026-01-03"
    expected = {
        "a": nightly,
        "b": nightly,
        "c": "20260104T000000Z",
        "d": "20260102T000000Z",
        "e": nightly,
        "f": nightly,
    }
    assert newest(output) == expected


def test_it_is_verified(output: str) -> None:
    (problem,) = verify_output(output)
    assert problem.where == f"photos/run={UNFINISHED}/part-e6-00000.parquet"
    assert "run the job again, which finishes the run" in problem.what


def test_it_is_continued_and_cleaned_up(output: str, tmp_path: Path) -> None:
    manifest = str(tmp_path / "manifest.parquet")
    uris = [f"/photos/{name}.jpg" for name in LISTED]
    pq.write_table(pa.table({schema.URI: uris, schema.ETAG: list(LISTED.values())}), manifest)
    assert unfinished_runs(output) == [UNFINISHED]
    with records.held(output, UNFINISHED, lease.LeaseSettings()) as held:
        assert held.epoch == 7
        sweep.at_start(held, output)
        stage = Stage(output, UNFINISHED, held.epoch)
        assert stage.settings() == {"model_id": "m-1", "precision": "street"}
        published = records.published_files(output, records.run_records(output))
        plan = make_plan([manifest], stage, published, "m-1", retry_failed=False, limit=None)
        assert (plan.already_done, plan.staged, plan.todo) == (5, 2, 2)  # e, which failed in passing, and i
        own = {schema.RUN_ID: UNFINISHED, schema.MODEL_ID: "m-1"}
        stage.put_rows(photos([located_row(f"/photos/{name}.jpg", 60.0, 8.0, "v1", **own) for name in "ei"]))
        done = publish(stage)
        check_all_published(done, plan.photos, stage)
        held.commit(
            {
                "run_id": UNFINISHED,
                "sequence": held.epoch,
                "finished_at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC).isoformat(),  # by a clock that is behind
                "model_id": "m-1",
                "photos": {"located": done.located, "failed": done.failed, "fingerprint": done.fingerprint},
                "files": [asdict(file) for file in done.files],
            }
        )
        sweep.finished_run(stage)
    assert verify_output(output) == []
    assert [newest(output)[name] for name in "eghi"] == [UNFINISHED] * 4
    assert unfinished_runs(output) == []
    assert set(Catalog(output).rows("SELECT run_sequence FROM history").column(0).to_pylist()) == {None, 7}

    now = dt.timedelta(0)
    assert remove_replaced_runs(output, now, lease.LeaseSettings(), grace=now) == []
    assert list(storage.list_files(f"{output}/photos/run=20260101T000000Z")) == []  # it was let go of before
    assert verify_output(output) == []
    assert len(newest(output)) == 9


def test_its_cameras_positions_are_recorded_ones_by_exif(output: str) -> None:
    (row,) = Catalog(output).rows("FROM photos WHERE uri LIKE '%/d.jpg'").to_pylist()
    assert row[schema.RECORDED_BY] == "exif"
    assert row[schema.RECORDED_LAT_DEG] == pytest.approx(row[schema.LAT_DEG] + 0.0123)
    assert row[schema.MEDIA] is None
    accuracy = Catalog(output).rows("SELECT count(*) AS photos FROM accuracy WHERE recorded_by = 'exif'").to_pylist()
    assert accuracy == [{"photos": 5}]  # one of the six failed
