"""What earlier holders left is removed, and never what a later one, or a run that counts, may need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published import records
from pipeline.run import sweep
from pipeline.run.staging import Stage
from pipeline.storage import lease
from pipeline.storage.lease import LeaseLostError, LeaseSettings
from tests.support.photo_rows import located_row, photos

ROWS = photos([located_row("/a", 1.0, 2.0)])


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def held(output: str) -> Iterator[lease.Lease]:
    """The third holder of the output's lease."""
    for _ in range(2):
        with records.held(output, "earlier", LeaseSettings()):
            pass
    with records.held(output, "mine", LeaseSettings()) as held:
        assert held.epoch == 3
        yield held


def names(output: str) -> set[str]:
    found = {entry.uri.removeprefix(f"{output}/") for entry in storage.list_files(output)}
    return found - {lease.FILE}


def put(output: str, *paths: str) -> None:
    for path in paths:
        storage.write_bytes(f"{output}/{path}", b"")


def put_record(output: str, folder: str, run_id: str, *paths: str) -> None:
    record = {"run_id": run_id, "finished_at": "2026-01-01", "files": [{"path": path} for path in paths]}
    storage.write_bytes(f"{output}/{folder}/{run_id}.json", json.dumps(record).encode())


def test_published_files_that_no_record_names_go_unless_a_later_holder_wrote_them(
    output: str, held: lease.Lease
) -> None:
    named, of_removed = "photos/run=a/part-e1-00000.parquet", "photos/run=b/part-e1-00000.parquet"
    stays = {named, of_removed, "photos/run=a/part-e3-00000.parquet", "photos/run=c/part-e12-00000.parquet"}
    stays |= {"photos/run=a/notes.parquet", "photos/run=c/part-e2-00000.parquet.bak"}  # not ours to remove
    put(output, *stays, "photos/run=a/part-e2-00000.parquet", "photos/run=c/part-00000.parquet")
    put_record(output, "runs", "a", named)
    put_record(output, "removed", "b", of_removed)
    sweep.at_start(held, output)
    assert names(output) == stays | {"runs/a.json", "removed/b.json"}


def test_what_was_staged_for_a_finished_run_goes(output: str, held: lease.Lease) -> None:
    for run_id in ("a", "b", "c"):
        Stage(output, run_id).put_rows(ROWS)
    put_record(output, "runs", "a")
    put_record(output, "removed", "b")
    sweep.at_start(held, output)
    assert {name.split("/")[1] for name in names(output) if name.startswith("staging/")} == {"c"}


def test_the_record_of_a_removed_run_that_one_who_slept_put_again_goes(output: str, held: lease.Lease) -> None:
    for folder in ("runs", "removed"):
        put_record(output, folder, "a")
    put_record(output, "runs", "b")
    sweep.at_start(held, output)
    assert names(output) == {"removed/a.json", "runs/b.json"}


def test_a_run_without_work_loses_what_was_staged_but_by_later_holders(output: str, held: lease.Lease) -> None:
    for epoch in (1, 3, 4):
        replace(Stage(output, "r"), epoch=epoch).put_rows(ROWS)
    put(output, "staging/r/run.json", "staging/r/rows/00ff-1.parquet")  # of an older version
    sweep.unneeded_run(held, Stage(output, "r", 3))
    (left,) = names(output)
    assert left.startswith("staging/r/rows/e4-")


def test_a_holder_that_woke_up_late_removes_only_what_it_wrote(output: str, held: lease.Lease) -> None:
    for epoch in (1, 2, 4):
        replace(Stage(output, "r"), epoch=epoch).put_rows(ROWS)
    before = names(output)
    held._renewed_s -= 100  # it slept
    storage.write_bytes(f"{output}/{lease.FILE}", b'{"epoch": 4, "nonce": "theirs"}')
    with pytest.raises(LeaseLostError):
        sweep.unneeded_run(held, Stage(output, "r", 3))
    assert names(output) == before
