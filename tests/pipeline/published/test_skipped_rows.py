"""Files that are no photos have rows, and count nowhere among photos: in reports, exports, records and verdicts."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.geotag_archive import has_too_many_failures, skipped_text
from jobs.nightly import summary_text
from pipeline import schema
from pipeline.answers import export
from pipeline.forget import forget
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.published.records import PhotoCounts, RunRecord
from pipeline.report.gather import gather
from pipeline.report.page import page
from pipeline.run import publish, verify
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.schema import ErrorCode
from pipeline.storage import write_bytes
from pipeline.storage.lease import LeaseSettings
from tests.support.photo_rows import failed_row, located_row, photos, skipped_row

ROWS = [
    located_row("/p/a.jpg", 48.85, 2.35),
    located_row("/p/b.jpg", 41.9, 12.5),
    failed_row("/p/c.jpg", ErrorCode.TRUNCATED),
    skipped_row("/p/a.jpg.json", "json"),
    skipped_row("/p/a.xmp", "xmp"),
    skipped_row("/p/b.xmp", "xmp"),
    skipped_row("/p/film.mp4", "mp4"),
]
BY_KIND = {"sidecars": {".xmp": 2, ".json": 1}, "videos": {".mp4": 1}}


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Return an output whose one run has located, failed and skipped rows, published as runs do."""
    stage = Stage(str(tmp_path / "out"), "r1")
    plan = [{name: row.get(name) for name in schema.MANIFEST.names} for row in ROWS]
    write_bytes(stage.plan_uri("todo", 0), parquet_bytes(pa.Table.from_pylist(plan, schema=schema.MANIFEST)))
    stage.put_rows(photos(ROWS))
    published = publish.publish(stage)
    counts = PhotoCounts(
        located=published.located,
        failed=published.failed,
        failed_by_code=published.failed_by_code,
        fingerprint=published.fingerprint,
        skipped=published.skipped,
        skipped_by_kind=published.skipped_by_kind,
    )
    finished_at = "2026-11-30T12:00:00+00:00"
    record = RunRecord(
        run_id="r1", sequence=1, finished_at=finished_at, model_id="m-1", photos=counts, files=published.files
    )
    publish.put_record(stage, record)
    return stage.output


def test_a_record_has_them_by_kind_and_verify_counts_them(output: str) -> None:
    (record,) = records.run_records(output)
    assert record.counts.skipped_by_kind == BY_KIND
    assert (record.counts.published, record.counts.photos, record.counts.skipped) == (7, 3, 4)
    assert verify.verify_output(output) == []


def test_verify_knows_what_a_skipped_row_may_not_be(tmp_path: Path, output: str) -> None:
    (record,) = records.run_records(output)
    path = Path(output) / record.files[0].path
    rows = photos([*ROWS[:5], ROWS[5] | {schema.LAT_DEG: 1.0}, ROWS[6] | {schema.ERROR_CODE: "truncated"}])
    path.write_bytes(parquet_bytes(rows))
    found = " ".join(map(str, verify.verify_output(output)))
    assert "its bytes are not those that were written" in found or "bytes, not" in found
    rules = verify._RowRules(record)
    rules.take(rows)
    broken = " ".join(rules.broken())
    assert "1 rows are skipped for another reason than that they are no photos" in broken
    assert "1 rows are failed or skipped and have a place" in broken


def test_the_catalogue_has_a_view_of_them_and_of_runs_their_number(output: str) -> None:
    catalog = Catalog(output)
    assert catalog.sql("SELECT count(*), count(DISTINCT format) FROM skipped").fetchall() == [(4, 3)]
    assert catalog.sql("SELECT count(*) FROM failures").fetchall() == [(1,)]
    assert catalog.sql("SELECT located, failed, skipped FROM runs").fetchall() == [(2, 1, 4)]


def test_a_report_counts_photos_alone_and_says_what_was_skipped(output: str) -> None:
    report = gather(Catalog(output), output)
    assert (report.photos, report.located, report.failed, report.skipped) == (3, 2, 1, 4)
    assert report.skipped_by_kind == BY_KIND
    assert [failure.code for failure in report.failures] == ["truncated"]
    assert not any(photo.status == "skipped" for photo in report.sample)
    assert "files that are no photos" in page(report, "title", {}, dt.datetime.now(dt.UTC))
    assert gather(Catalog(output), output, "uri LIKE '%.xmp' -- all").skipped == 2


def test_exports_leave_them_out_whatever_is_asked_for(output: str) -> None:
    selection = export.Selection(with_failed=True, with_undecided=True, with_gone=True)
    counted = export.count(Catalog(output), selection)
    assert (counted.taken, counted.left_out) == (3, {"skipped: no photo": 4})


def test_a_forgotten_file_is_counted_no_more(output: str) -> None:
    uris = ["/p/a.xmp", "/p/film.mp4"]
    ids = pa.array([schema.photo_id(uri) for uri in uris], pa.binary(16))
    chosen = pa.table([ids, pa.array(uris)], schema=forget.PHOTOS)
    forget.forget(output, chosen, LeaseSettings(6.0))
    (record,) = records.run_records(output)
    assert record.counts.skipped == 2
    assert record.counts.skipped_by_kind == {"sidecars": {".xmp": 1, ".json": 1}}
    assert verify.verify_output(output) == []


def test_the_share_of_failures_is_one_of_photos() -> None:
    record = RunRecord(run_id="r", photos=PhotoCounts(located=9, failed=1, skipped=90))
    assert has_too_many_failures(record, 0.05)
    assert not has_too_many_failures(record, 0.1)
    assert not has_too_many_failures(RunRecord(run_id="r", photos=PhotoCounts(skipped=90)), 0)


def test_what_was_skipped_is_said_by_kind_and_ending() -> None:
    assert skipped_text(BY_KIND) == "3 sidecars (.xmp 2, .json 1), 1 video (.mp4)"
    assert skipped_text({"documents": {"": 2, ".pdf": 1}}) == "3 documents (no ending 2, .pdf 1)"


def test_a_night_says_it_and_older_nights_say_nothing_of_it() -> None:
    night: dict[str, Any] = {
        "date": "2026-11-30",
        "exit_code": 0,
        "located": 2,
        "undecided": 0,
        "failed_by_code": {"truncated": 1},
        "listed": 7,
        "already_done": 0,
        "changed": 0,
        "gone": 0,
        "left": 0,
        "hours": 0.1,
        "runs": ["r1"],
    }
    assert "skipped" not in summary_text(night)
    said = summary_text(night | {"skipped": 4, "skipped_by_kind": BY_KIND})
    assert "4: 3 sidecars (.xmp 2, .json 1), 1 video (.mp4)" in said
    assert "2 photos located, 0 undecided, 1 failed" in said
