"""A run's record says the same after it was stored, whichever version wrote it; what is no record is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.published import layout
from pipeline.published.records import (
    FORGETTING_VERSION,
    RECORD_VERSION,
    AlbumCounts,
    Forgetting,
    PhotoCounts,
    PlanCounts,
    PublishedFile,
    RunLedger,
    RunRecord,
    encoded,
    forgotten_list,
    put_record,
    read_record,
    removed_records,
    run_records,
    to_rewrite,
)
from pipeline.schema import SourceProblem

FILE = PublishedFile("photos/run=r1/part-e7-00000.parquet", 3, 4096, "00ff")
RECORD = RunRecord(
    run_id="r1",
    sequence=7,
    started_at="2026-01-01T00:00:00+00:00",
    finished_at="2026-01-01T01:00:00+00:00",
    wall_s=3600.0,
    dataflow_s=3000.0,
    sources=("/photos", "s3://bucket/photos"),
    model_id="m-1",
    model_uri="bundled",
    hierarchy_sha256="0a",
    settings={"precision": "street", "limit": None, "album": {"gap_h": 2.0}},
    versions={"code": "1"},
    plan=PlanCounts(listed=4, duplicates=1, todo=3, gone=0),
    photos=PhotoCounts(2, 0, 1, {"empty": 1}, "00" * 16, 1, 0, AlbumCounts(1, 1, 0)),
    files=(FILE,),
)
WRITTEN: dict[str, Any] = {"run_id": "r1", "model_id": "m-1", "files": [{"path": FILE.path}], "photos": {"located": 3}}


def test_a_record_comes_back_as_it_was_put(tmp_path: Path) -> None:
    uri = put_record(str(tmp_path), RECORD)
    assert uri == f"{tmp_path}/runs/r1.json"
    assert read_record(uri) == RECORD
    assert run_records(str(tmp_path)) == [RECORD]
    assert RECORD.file_uris("s3://out") == [f"s3://out/{FILE.path}"]
    document = json.loads(storage.read_bytes(uri))
    assert document["record_version"] == RECORD_VERSION
    assert document["settings"]["limit"] is None  # a setting that is none is said, as the command line's other ones


def test_an_older_record_says_less_and_is_written_as_it_was() -> None:
    record = RunRecord.from_json(WRITTEN)
    assert (record.record_version, record.sequence, record.plan, record.setting("precision")) == (0, None, None, None)
    assert record.counts == PhotoCounts(located=3)
    assert record.to_json() == WRITTEN | {"photos": {"located": 3, "undecided": 0, "failed": 0, "skipped": 0}}


def test_what_a_newer_version_says_besides_is_kept_and_one_that_would_be_misunderstood_is_refused() -> None:
    newer = RECORD.to_json() | {"weather": "fine"}
    assert RunRecord.from_json(newer).to_json() == newer
    with pytest.raises(ValueError, match=rf"version {FORGETTING_VERSION + 1}, and this Graticule reads .*: update it"):
        RunRecord.from_json(newer | {"record_version": FORGETTING_VERSION + 1})


def test_a_forgetting_stands_for_the_records_that_it_has_rewritten(tmp_path: Path) -> None:
    output = str(tmp_path)
    listed = PublishedFile("forgotten/e9.parquet", 1, 100, "00")
    new = replace(RECORD, files=(), gone=PublishedFile("gone/e9.parquet", 1, 100, "00"), rewritten_by=9)
    forgetting = RunRecord(
        run_id="forget-9",
        sequence=9,
        finished_at="2026-01-02T00:00:00+00:00",
        record_version=FORGETTING_VERSION,
        forgetting=Forgetting(photos=1, rows_by_run={"r1": 3}, list=listed, rewritten=(new,)),
    )
    put_record(output, RECORD)
    assert read_record(put_record(output, forgetting)) == forgetting
    assert run_records(output) == [new]
    assert to_rewrite(output) == [new]
    assert forgotten_list(output) == listed
    storage.write_bytes(layout.record(output, "r1"), encoded(new))
    assert run_records(output) == [new]
    assert to_rewrite(output) == []


def test_records_are_read_again_where_a_forgetting_came_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own record was not there when the folder was listed, and one that it has rewritten was read afterwards."""
    output, other = str(tmp_path), replace(RECORD, run_id="r0", sequence=6)
    new = [replace(record, files=(), rewritten_by=9) for record in (other, RECORD)]
    forgetting = Forgetting(rewritten=tuple(new))
    for record in (other, RECORD):
        put_record(output, record)
    read = storage.read_bytes

    def read_late(uri: str) -> bytes:
        data = read(uri)
        if uri.endswith("/r0.json"):
            put_record(output, RunRecord(run_id="z", sequence=9, finished_at="2026-01-02", forgetting=forgetting))
            for record in new:
                storage.write_bytes(layout.record(output, record.run_id), encoded(record))
        return data

    monkeypatch.setattr(storage, "read_bytes", read_late)
    assert run_records(output) == new


def test_source_problems_are_kept_and_a_listing_with_any_is_not_complete() -> None:
    problems = (SourceProblem("folder", "/photos/lost+found", "Permission denied"),)
    record = dataclasses.replace(RECORD, source_problems=problems, plan=PlanCounts(listed=4, source_problems=1))
    found = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert found == record
    assert found.plan is not None
    assert not found.plan.is_complete
    assert PlanCounts(listed=4).is_complete


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "no record of a run"),
        ({"files": []}, "no record of a run"),
        (WRITTEN | {"files": 3}, "says no model, files or photos"),
        (WRITTEN | {"model_id": 3}, "says no model, files or photos"),
        (WRITTEN | {"files": [{"path": "photos/part-e7-00000.parquet"}]}, "can't be the run's: photos/part"),
        (WRITTEN | {"files": [{"path": "photos/run=r1/../../../other"}]}, r"can't be the run's: photos/run=r1/\.\."),
        (WRITTEN | {"files": ["photos"]}, "can't be the run's: None"),
        (WRITTEN | {"source_problems": [{"kind": "folder"}]}, "says no source problems"),
        (WRITTEN | {"gone": {"path": "gone/../photos/e1.parquet"}}, "names a list that can't be one"),
        (WRITTEN | {"gone": "gone/e1.parquet"}, "names a list that can't be one: None"),
        (WRITTEN | {"forgetting": [1]}, "forgets what can't be forgotten"),
        (WRITTEN | {"forgetting": {"rewritten": [{"run_id": "r1", "files": 3}]}}, "says no model, files or photos"),
        (WRITTEN | {"forgetting": {"list": {"path": "/etc/e1.parquet"}}}, "names a list that can't be one"),
    ],
)
def test_what_is_no_record_is_refused(document: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunRecord.from_json(document)


@pytest.mark.parametrize("folder", [layout.RUNS, layout.REMOVED])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "r1.json"
    path.parent.mkdir()
    path.write_text(json.dumps(WRITTEN | {"run_id": "r2"}))
    with pytest.raises(ValueError, match=rf"{path} is no record of a run r1\. See what .*--verify"):
        (run_records if folder == layout.RUNS else removed_records)(str(tmp_path))


def test_a_commit_is_entered_once_below_the_output(tmp_path: Path) -> None:
    ledger = RunLedger(f"{tmp_path}/out")
    ledger.enter(RECORD.to_json())
    ledger.enter(RECORD.to_json() | {"sequence": 8})
    assert [ledger.has({"run_id": "r1"}, epoch) for epoch in (7, 8)] == [True, False]
    assert ledger.highest_epoch() == 7
    storage.write_bytes(f"{tmp_path}/out/removed/r2.json", b"{}")
    assert not ledger.has({"run_id": "r2"}, 8)
    with pytest.raises(ValueError, match="commits a run that can't be one"):
        ledger.enter({"run_id": "../../r1"})
