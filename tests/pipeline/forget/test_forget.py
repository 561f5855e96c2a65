"""A forgotten photo leaves no byte below its output, whatever dies meanwhile, and does not come back by itself."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.forget.forget import chosen_by, chosen_in, forget, look, remember
from pipeline.published import layout, records
from pipeline.published.catalog import Catalog
from pipeline.run import retention, sweep
from pipeline.run.staging import Stage
from pipeline.run.verify import verify_output
from pipeline.storage.lease import Lease, LeaseLostError, LeaseSettings
from tests.support.bytes_below import traces
from tests.support.nights import Nights, put, remove
from tests.support.photo_rows import failed_row, located_row, photos
from tests.support.published_rows import publish_run

SETTINGS = LeaseSettings()


class Archive:
    """Three runs over three photos, one of which has a row in each; an unfinished run; a night; what is gone."""

    def __init__(self, root: str, folder: Path) -> None:
        self.nights, self.folder, self.output = Nights(f"{root}/out"), folder, f"{root}/out"
        self.secret = f"{folder}/secret.jpg"
        put(folder, "a.jpg", "b.jpg", "c.jpg", "secret.jpg")
        self.nights.run(str(folder))
        self.nights.run(str(folder), include=[self.secret, "a.jpg"])
        put(folder, "secret.jpg", "b.jpg", version="2")
        self.nights.run(str(folder))
        remove(folder, "secret.jpg")
        self.nights.run(str(folder))
        stage = Stage(self.output, "unfinished", 5)
        stage.put_settings({})
        stage.put_rows(photos([located_row(self.secret, 1, 1), located_row(f"{folder}/a.jpg", 1, 1)]))
        stage.put_rows(photos([located_row(f"{folder}/c.jpg", 1, 1)]))
        night = {"date": "2026-01-01", "runs": ["r1"], "set_aside": [self.secret]}
        storage.write_bytes(layout.night(self.output, "2026-01-01"), json.dumps(night).encode())

    @property
    def chosen(self) -> pa.Table:
        """The secret photo."""
        return chosen_by(self.output, "uri LIKE '%/secret.jpg'")

    def traces(self) -> list[str]:
        """Where the secret photo's name or id is found."""
        return traces(self.output, self.secret, schema.photo_id(self.secret))

    def rows(self) -> list[str]:
        """Every row of every run, by the photo's last name."""
        rows = Catalog(self.output).rows("SELECT uri FROM history ORDER BY uri").column(0).to_pylist()
        return [uri.rsplit("/", 1)[1] for uri in rows]


OTHERS = ["a.jpg", "b.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path), tmp_path / "photos")


def check_forgotten(archive: Archive) -> None:
    assert archive.traces() == []
    assert verify_output(archive.output) == []
    assert archive.rows() == OTHERS
    assert [record.run_id for record in records.run_records(archive.output)] == ["r1", "r2", "r3", "r4"]


def test_no_byte_of_a_forgotten_photo_stays(archive: Archive) -> None:
    before = set(archive.traces())
    assert {path.split("/")[0] for path in before} == {"photos", "runs", "gone", "staging", "nights"}
    found = forget(archive.output, archive.chosen, SETTINGS)
    assert found.rows_by_run == {"r1": 1, "r3": 1}
    assert found.photos == 1
    check_forgotten(archive)
    counts = [record.counts.located for record in records.run_records(archive.output)]
    assert counts == [3, 0, 1, 0]
    assert archive.nights.gone() == {}
    staged = Stage(archive.output, "unfinished", 5).row_files()
    assert len(staged) == 1  # the part that had it is done again, the other one stays


@pytest.mark.s3
def test_the_same_on_an_object_store(s3_bucket: str, tmp_path: Path) -> None:
    archive = Archive(f"s3://{s3_bucket}/forget it's ü", tmp_path / "photos")
    assert archive.traces()
    forget(archive.output, archive.chosen, SETTINGS)
    check_forgotten(archive)


def test_a_forgotten_photo_is_left_out_and_counted_until_it_is_asked_for(archive: Archive) -> None:
    forget(archive.output, archive.chosen, SETTINGS)
    put(archive.folder, "secret.jpg")
    record = archive.nights.run(str(archive.folder))
    assert record.plan is not None
    assert (record.plan.forgotten, record.plan.listed, record.plan.todo) == (1, 3, 0)
    assert archive.traces() == []
    assert remember(archive.output, chosen_of(f"{archive.folder}/a.jpg"), SETTINGS) == 0
    assert remember(archive.output, chosen_of(archive.secret), SETTINGS) == 1
    assert remember(archive.output, None, SETTINGS) == 0
    record = archive.nights.run(str(archive.folder))
    assert record.plan is not None
    assert (record.plan.forgotten, record.plan.todo) == (0, 1)
    assert "secret.jpg" in archive.nights.here()
    assert verify_output(archive.output) == []


def chosen_of(*uris: str) -> pa.Table:
    return pa.table({"photo_id": pa.array([schema.photo_id(uri) for uri in uris], pa.binary(16)), "uri": list(uris)})


def test_photos_are_named_by_a_file(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text(f"photos/secret.jpg\r\n\nfile://{archive.folder}/a.jpg\ns3://b/never-seen.jpg\n")
    chosen = chosen_in(str(names))
    assert chosen.column("uri").to_pylist() == [archive.secret, f"{archive.folder}/a.jpg", "s3://b/never-seen.jpg"]
    assert look(archive.output, chosen).rows_by_run == {"r1": 2, "r3": 1}
    names.write_text("\n")
    with pytest.raises(ValueError, match="names no photo"):
        chosen_in(str(names))
    with pytest.raises(ValueError, match="can't read --photos"):
        chosen_in(str(tmp_path / "none.txt"))
    table = tmp_path / "names.csv"
    table.write_text(f"uri\n{archive.secret}\n")
    assert chosen_in(str(table)).column("uri").to_pylist() == [archive.secret]


def test_all_photos_can_be_forgotten(archive: Archive) -> None:
    forget(archive.output, chosen_by(archive.output, "true"), SETTINGS)
    assert archive.rows() == []
    assert verify_output(archive.output) == []
    assert [entry.uri for entry in storage.list_files(f"{archive.output}/photos")] == []
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        uri = f"{archive.folder}/{name}"
        assert traces(archive.output, uri, schema.photo_id(uri)) == [
            path for path in traces(archive.output, uri, schema.photo_id(uri)) if path.startswith("staging/")
        ]
    record = archive.nights.run(str(archive.folder))
    assert record.plan is not None
    assert (record.plan.forgotten, record.plan.todo) == (3, 0)


def test_photos_are_forgotten_one_after_the_other(archive: Archive) -> None:
    forget(archive.output, archive.chosen, SETTINGS)
    forget(archive.output, chosen_of(f"{archive.folder}/b.jpg"), SETTINGS)
    assert archive.rows() == ["a.jpg", "c.jpg"]
    assert verify_output(archive.output) == []
    assert archive.traces() == []
    listed = [entry.uri for entry in storage.list_files(f"{archive.output}/forgotten")]
    assert len(listed) == 1
    assert remember(archive.output, None, SETTINGS) == 2


def test_runs_that_were_let_go_lose_their_files_and_names_too(archive: Archive) -> None:
    put(archive.folder, "secret.jpg", "b.jpg", version="3")
    archive.nights.run(str(archive.folder))
    gone = retention.remove_replaced_runs(archive.output, dt.timedelta(0), SETTINGS)
    assert "r3" in gone
    assert any(path.startswith("removed/") or "run=r3" in path for path in archive.traces())
    forget(archive.output, archive.chosen, SETTINGS)
    assert archive.traces() == []
    assert verify_output(archive.output) == []


def test_files_of_older_versions_keep_their_columns(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    publish_run(
        output, "r1", [located_row("/a", 1, 1), located_row("/secret", 2, 2), failed_row("/f", schema.ErrorCode.EMPTY)]
    )
    forget(output, chosen_of("/secret", "/f"), SETTINGS)
    assert Catalog(output).rows("SELECT uri FROM history").column(0).to_pylist() == ["/a"]
    assert verify_output(output) == []


class Died(BaseException):
    """What ends a process here."""


class Dying:
    """Lets a process die at a change of the store; `last` is how many are done before."""

    def __init__(self, patched: pytest.MonkeyPatch, last: int) -> None:
        self._left = last
        for name in ("write_bytes", "delete", "replace_bytes", "create_bytes"):
            patched.setattr(storage, name, functools.partial(self._change, getattr(storage, name)))
        patched.setattr(Lease, "release", lambda lease: (lease._finished.set(), lease._keeper.join()))

    def _change(self, change: Callable[..., Any], *arguments: Any) -> Any:
        if self._left == 0:
            raise Died
        self._left -= 1
        return change(*arguments)


@pytest.mark.parametrize("first", range(4))
def test_a_crash_anywhere_leaves_the_old_state_or_the_new_one(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Each start goes on where the one before it was killed, some changes later."""
    old, chosen = archive.rows(), archive.chosen
    for last in itertools.count(first, 4):
        with monkeypatch.context() as patched:
            Dying(patched, last)
            try:
                forget(archive.output, chosen, SETTINGS)
                break
            except Died:
                pass
        assert archive.rows() in (old, OTHERS)
        lease_uri = f"{archive.output}/{layout.LEASE}"
        if storage.exists(lease_uri):  # its process is dead
            state = json.loads(storage.read_bytes(lease_uri))
            storage.write_bytes(lease_uri, json.dumps(state | {"process": "", "host": ""}).encode())
    assert last >= 12
    check_forgotten(archive)


def test_the_next_holder_finishes_what_was_committed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = sweep.at_start
    calls = 0

    def at_start(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise LeaseLostError("as if it had died there")
        swept(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "at_start", at_start)
    with pytest.raises(LeaseLostError):
        forget(archive.output, archive.chosen, SETTINGS)
    assert archive.rows() == OTHERS  # it counts
    assert archive.traces()
    retention.remove_replaced_runs(archive.output, dt.timedelta(days=999), SETTINGS)
    check_forgotten(archive)
