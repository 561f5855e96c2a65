"""Old runs go in two steps, and neither a photo nor a reader loses anything by it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.published import records
from pipeline.published.catalog import Catalog
from pipeline.published.records import PublishedFile, RunRecord
from pipeline.run.publish import publish, put_record
from pipeline.run.retention import remove_replaced_runs
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.run.verify import verify_output
from pipeline.schema import ErrorCode
from pipeline.storage import lease
from pipeline.storage.lease import LeaseSettings
from tests.support.photo_rows import NOON, failed_row, located_row, photos

DAY = dt.timedelta(days=1)
NEVER = dt.timedelta(days=36_500)


def publish_run(
    output: str, day: int, uris: str, ahead: dt.timedelta = 0 * DAY, etag: str = "", is_found: bool = True
) -> None:
    """Publish a run of so many days after `NOON` over the photos that the letters name, with its workers' clock."""
    run_id, at = f"day-{day}", NOON + day * DAY
    facts = {"etag": etag or run_id, schema.RUN_ID: run_id, schema.PROCESSED_AT: at + ahead}
    rows: list[dict[str, Any]] = [
        located_row(f"/{uri}", 10, day, **facts) if is_found else failed_row(f"/{uri}", ErrorCode.NOT_FOUND, **facts)
        for uri in uris
    ]
    stage = Stage(output, run_id)
    plan = [{name: row.get(name) for name in schema.MANIFEST.names} for row in rows]
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(pa.Table.from_pylist(plan, schema=schema.MANIFEST)))
    stage.put_rows(photos(rows))
    published = publish(stage)
    record = {
        "run_id": run_id,
        "finished_at": at.isoformat(),
        "model_id": "m-1",
        "photos": {
            "located": published.located,
            "failed": published.failed,
            "failed_by_code": published.failed_by_code,
        },
        "files": [asdict(file) for file in published.files],
    }
    put_record(stage, RunRecord.from_json(record))


def newest(output: str) -> dict[str, str]:
    return dict(Catalog(output).sql("SELECT uri, run_id FROM photos ORDER BY uri").fetchall())


def notes(output: str) -> list[tuple[str, list[PublishedFile]]]:
    """Return the runs that are noted as removed, and the files of theirs that may be there yet."""
    return [(record.run_id, [*record.files]) for record in records.removed_records(output)]


def three_runs(output: str) -> str:
    """Day 1's every row is replaced, of day 2's one is left, day 3 is the newest."""
    for day, uris in ((1, "ab"), (2, "ac"), (3, "ab")):
        publish_run(output, day, uris)
    return output


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(three_runs(str(tmp_path_factory.mktemp("published") / "out")))


@pytest.fixture
def output(published: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(published, tmp_path / "out"))


@pytest.mark.parametrize("is_remote", [False, pytest.param(True, marks=pytest.mark.s3)])
def test_only_what_is_replaced_whole_goes_and_its_files_later(
    is_remote: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = f"s3://{request.getfixturevalue('s3_bucket')}/retention" if is_remote else str(tmp_path)
    output = three_runs(f"{folder}/out")
    before = newest(output)
    assert before == {"/a": "day-3", "/b": "day-3", "/c": "day-2"}
    reader = Catalog(output)
    assert remove_replaced_runs(output, NEVER, LeaseSettings()) == []
    assert remove_replaced_runs(output, DAY, LeaseSettings()) == ["day-1"]
    assert newest(output) == before
    assert [record.run_id for record in Catalog(output).records] == ["day-2", "day-3"]
    assert verify_output(output) == []  # its files are there yet, and are known to be on their way out
    assert reader.sql("SELECT count(*) FROM history").fetchall() == [(6,)]  # opened before: it reads day 1, too
    assert dict(reader.sql("SELECT uri, run_id FROM photos").fetchall()) == before

    assert remove_replaced_runs(output, DAY, LeaseSettings()) == []  # within the grace
    assert len(list(storage.list_files(f"{output}/photos/run=day-1"))) == 1
    assert remove_replaced_runs(output, DAY, LeaseSettings(), grace=dt.timedelta(0)) == []
    assert list(storage.list_files(f"{output}/photos/run=day-1")) == []
    assert notes(output) == [("day-1", [])]
    assert newest(output) == before
    assert verify_output(output) == []


@pytest.mark.parametrize("puts_and_removals", range(5))
def test_whatever_interrupts_it_the_next_call_goes_on(
    output: str, monkeypatch: pytest.MonkeyPatch, puts_and_removals: int
) -> None:
    before, left = newest(output), puts_and_removals

    def counted(done: Any) -> Any:
        def call(uri: str, *rest: Any) -> None:
            nonlocal left
            if lease.FILE not in uri:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            done(uri, *rest)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", counted(storage.write_bytes))
        patched.setattr(storage, "create_bytes", counted(storage.create_bytes))
        patched.setattr(storage, "delete", counted(storage.delete))
        if puts_and_removals < 4:  # all that there is to do: a note, a record, a file, the note again
            with pytest.raises(KeyboardInterrupt):
                remove_replaced_runs(output, DAY, LeaseSettings(), grace=dt.timedelta(0))
        else:
            remove_replaced_runs(output, DAY, LeaseSettings(), grace=dt.timedelta(0))
    assert newest(output) == before
    assert verify_output(output) == []
    remove_replaced_runs(output, DAY, LeaseSettings(), grace=dt.timedelta(0))
    assert [record.run_id for record in Catalog(output).records] == ["day-2", "day-3"]
    assert list(storage.list_files(f"{output}/photos/run=day-1")) == []
    assert notes(output) == [("day-1", [])]
    assert newest(output) == before
    assert verify_output(output) == []


def test_a_clock_that_was_ahead_removes_no_right_row(tmp_path: Path) -> None:
    output = str(tmp_path)
    publish_run(output, 1, "a", ahead=400 * DAY)
    publish_run(output, 2, "a")
    assert remove_replaced_runs(output, DAY, LeaseSettings()) == ["day-1"]
    assert newest(output) == {"/a": "day-2"}


def test_an_answer_stays_that_a_newer_run_failed_to_make_again(tmp_path: Path) -> None:
    """The photos' disk was away for two nights: neither the answers go, nor what happened last."""
    output = str(tmp_path)
    publish_run(output, 1, "ab", etag="v1")
    publish_run(output, 2, "ab", etag="v1", is_found=False)
    publish_run(output, 3, "ab", etag="v1", is_found=False)
    assert remove_replaced_runs(output, DAY, LeaseSettings()) == ["day-2"]
    assert newest(output) == {"/a": "day-1", "/b": "day-1"}
    (row,) = Catalog(output).rows("SELECT DISTINCT status, last_error_code, last_tried_at FROM photos").to_pylist()
    assert list(row.values()) == ["located", "not_found", NOON + 3 * DAY]
    assert verify_output(output) == []


def test_a_run_that_was_let_go_does_not_count_though_its_record_is_still_there(output: str) -> None:
    """Killed between the note and the record's removal; or by one that slept the record was put once more."""
    before = newest(output)
    record = storage.read_bytes(f"{output}/runs/day-1.json")
    assert remove_replaced_runs(output, DAY, LeaseSettings()) == ["day-1"]
    storage.write_bytes(f"{output}/runs/day-1.json", record)
    assert [record.run_id for record in Catalog(output).records] == ["day-2", "day-3"]
    assert remove_replaced_runs(output, NEVER, LeaseSettings()) == []
    assert not storage.exists(f"{output}/runs/day-1.json")
    assert newest(output) == before
    assert verify_output(output) == []


def test_files_of_a_run_that_counts_stay_whatever_is_noted(output: str) -> None:
    """Somebody has copied a record into the wrong folder, under another name."""
    before = newest(output)
    noted = json.loads(storage.read_bytes(f"{output}/runs/day-3.json")) | {"removed_at": NOON.isoformat()}
    storage.write_bytes(f"{output}/removed/copy.json", json.dumps(noted | {"run_id": "copy"}).encode())
    assert remove_replaced_runs(output, NEVER, LeaseSettings(), grace=dt.timedelta(0)) == []
    assert newest(output) == before
    assert verify_output(output) == []


def test_nothing_goes_while_a_run_is_at_work(output: str, caplog: pytest.LogCaptureFixture) -> None:
    with records.held(output, "r9", LeaseSettings()):
        assert remove_replaced_runs(output, DAY, LeaseSettings()) == []
    assert "old runs stay for now: run r9" in caplog.text
    assert len(Catalog(output).records) == 3


def test_no_file_is_removed_to_which_a_link_leads(tmp_path: Path) -> None:
    output, home = tmp_path / "output", tmp_path / "home"
    publish_run(str(output), 0, "a")
    publish_run(str(output), 1, "a")
    assert remove_replaced_runs(str(output), DAY, LeaseSettings()) == ["day-0"]
    (output / "photos/run=day-0").rename(home)
    (output / "photos/run=day-0").symlink_to(home)
    kept = sorted(path for path in home.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match=r"removed/day-0\.json names .* a link leads out of the output"):
        remove_replaced_runs(str(output), DAY, LeaseSettings(), grace=0 * DAY)
    assert sorted(path for path in home.rglob("*") if path.is_file()) == kept
