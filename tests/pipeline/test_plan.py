"""What a run takes on: everything listed that has no good row yet, computed by the real DuckDB over real files."""

from __future__ import annotations

import csv
import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan as plan_module
from pipeline import schema
from pipeline.plan import Plan, make_plan
from pipeline.schema import ErrorCode
from pipeline.staging import Stage, parquet_bytes
from tests.photo_rows import NOON, failed_row, located_row, photos

Row = dict[str, Any]


class World:
    """An output with published files, a run's stage, and a CSV manifest as its source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stage = Stage(str(folder / "output"), "r1")
        self.published: list[str] = []
        self.source = folder / "m.csv"

    def list(self, *photos_listed: tuple[str, str | None]) -> World:
        with open(self.source, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("uri", "etag"), *((uri, etag or "") for uri, etag in photos_listed)])
        return self

    def publish(self, *rows: Row) -> World:
        path = self.folder / f"published-{len(self.published)}.parquet"
        path.write_bytes(parquet_bytes(photos(rows)))
        self.published.append(str(path))
        return self

    def staged(self, *rows: Row) -> World:
        self.stage.put_rows(photos(rows))
        return self

    def plan(self, model_id: str = "m-1", retry_failed: bool = False, limit: int | None = None) -> Plan:
        return make_plan([str(self.source)], self.stage, self.published, model_id, retry_failed, limit)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def todo(plan: Plan) -> list[str]:
    """URIs of the photos in the plan's files, which is what the readers get."""
    return [uri for file in plan.files for uri in pq.read_table(file).column(schema.URI).to_pylist()]


def later(minutes: int) -> dt.datetime:
    return NOON + dt.timedelta(minutes=minutes)


def test_a_new_archive_is_all_to_do(world: World) -> None:
    plan = world.list(("/b", "v1"), ("/a", None)).plan()
    assert (plan.listed, plan.duplicates, plan.already_done, plan.staged, plan.todo) == (2, 0, 0, 0, 2)
    assert todo(plan) == ["/a", "/b"]
    (file,) = plan.files
    assert pq.read_schema(file).equals(schema.MANIFEST)
    assert pq.read_table(file).column(schema.ETAG).to_pylist() == [None, "v1"]


def test_a_photo_listed_twice_is_one_photo(world: World) -> None:
    world.list(("/a", None), ("/a", "v1"), ("/b", "v1"), ("/a", "v1"))
    plan = make_plan([str(world.source)] * 2, world.stage, [], "m-1", False, None)
    assert (plan.listed, plan.duplicates, plan.todo) == (8, 6, 2)
    assert todo(plan) == ["/a", "/b"]


def test_done_means_this_version_under_this_model(world: World) -> None:
    world.publish(located_row("/same", 1, 1), located_row("/changed", 1, 1), failed_row("/bad", ErrorCode.CORRUPT))
    world.list(("/same", "v1"), ("/changed", "v2"), ("/bad", "v1"), ("/unversioned", None), ("/new", "v1"))
    world.publish(located_row("/unversioned", 1, 1))
    plan = world.plan()
    assert todo(plan) == ["/changed", "/new"]
    assert plan.already_done == 3
    assert todo(world.plan(model_id="m-2")) == ["/bad", "/changed", "/new", "/same", "/unversioned"]


def test_failures_of_the_moment_are_taken_again_and_others_when_asked(world: World) -> None:
    world.list(*((f"/{code}", "v1") for code in ErrorCode), ("/good", "v1"))
    world.publish(*(failed_row(f"/{code}", code) for code in ErrorCode), located_row("/good", 1, 1))
    assert todo(world.plan()) == ["/fetch_failed", "/fetch_timeout"]
    assert todo(world.plan(retry_failed=True)) == sorted(f"/{code}" for code in ErrorCode)


def test_only_the_newest_row_counts(world: World) -> None:
    """Changed and changed back is changed; failed and later located is done; located, later failed for now is not."""
    world.list(("/back", "v1"), ("/healed", "v1"), ("/lost", "v1"))
    world.publish(
        located_row("/back", 1, 1, "v1"),
        failed_row("/healed", ErrorCode.FETCH_FAILED),
        located_row("/lost", 1, 1),
    )
    world.publish(
        located_row("/back", 2, 2, "v2", processed_at=later(1)),
        located_row("/healed", 1, 1, processed_at=later(1)),
        failed_row("/lost", ErrorCode.FETCH_TIMEOUT, processed_at=later(1)),
    )
    assert todo(world.plan()) == ["/back", "/lost"]


def test_a_row_of_another_model_neither_helps_nor_hides(world: World) -> None:
    world.list(("/a", "v1")).publish(located_row("/a", 1, 1))
    world.publish(located_row("/a", 1, 1, "v0", model_id="m-2", processed_at=later(1)))
    assert todo(world.plan()) == []
    assert todo(world.plan(model_id="m-2")) == ["/a"]


def test_an_interrupted_run_goes_on_where_it_stopped(world: World) -> None:
    world.list(("/a", "v1"), ("/b", "v1"), ("/c", "v2"), ("/d", "v1"), ("/e", "v1"))
    world.staged(located_row("/a", 1, 1), failed_row("/b", ErrorCode.EMPTY), located_row("/c", 1, 1, "v1"))
    world.staged(failed_row("/d", ErrorCode.FETCH_FAILED), located_row("/gone", 1, 1))
    for retry_failed in (False, True):  # what this run has tried itself is not tried again
        plan = world.plan(retry_failed=retry_failed)
        assert todo(plan) == ["/c", "/d", "/e"]
        assert (plan.staged, plan.todo) == (2, 3)
    planned = [uri for file in world.stage.plan_files() for uri in pq.read_table(file).column(schema.URI).to_pylist()]
    assert sorted(planned) == ["/a", "/b", "/c", "/d", "/e"]  # publishing checks against all of them


def test_a_plan_of_an_earlier_start_is_gone(world: World) -> None:
    world.list(*((f"/{index:03d}", "v1") for index in range(200))).plan()
    plan = world.list(("/only", "v1")).plan()
    assert world.stage.plan_files() == list(plan.files)


def test_limit_counts_what_is_staged(world: World) -> None:
    world.list(*((f"/{name}", "v1") for name in "abcde")).staged(located_row("/e", 1, 1))
    plan = world.plan(limit=3)
    assert (plan.staged, plan.todo) == (1, 2)
    assert todo(plan) == ["/a", "/b"]
    assert todo(world.plan(limit=1)) == []


def test_tasks_are_small_for_small_archives_and_few_for_large_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.list(*((f"/{index:05d}", None) for index in range(1000)))
    sizes = [pq.read_metadata(file).num_rows for file in world.plan().files]
    assert sizes == [64] * 15 + [40]
    monkeypatch.setattr(plan_module, "_TASKS", 7)
    plan = world.plan()
    assert [pq.read_metadata(file).num_rows for file in plan.files] == [143] * 6 + [142]
    assert todo(plan) == [f"/{index:05d}" for index in range(1000)]
    monkeypatch.setattr(plan_module, "_ROWS_PER_TASK", (64, 100))
    assert [pq.read_metadata(file).num_rows for file in world.plan().files] == [100] * 10


def test_rebatch_cuts_across_what_comes_in() -> None:
    reader = pa.table({"n": list(range(25))}).to_reader(max_chunksize=7)
    assert [part.column("n").to_pylist() for part in plan_module._rebatch(reader, 10)] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]


def test_odd_names_and_folders_come_through(tmp_path: Path) -> None:
    world = World(tmp_path / "it's [a] *?# ü%20")
    world.folder.mkdir()
    beside = World(tmp_path / "it's a xx# ü%20")  # what the name above would find, were it a pattern
    beside.folder.mkdir()
    beside.list(("/other", "v1")).staged(located_row("/it's", 2, 2)).plan()
    names = ["/new\nline", "/it's", '/"', "/ü", "/100%", "/[a]*", "/\\"]
    world.list(*((name, "v1") for name in names)).publish(located_row("/it's", 1, 1)).staged(located_row('/"', 1, 1))
    assert todo(world.plan()) == sorted(set(names) - {"/it's", '/"'})


def test_a_source_that_can_not_be_read_is_a_usage_error(world: World) -> None:
    with pytest.raises(ValueError, match=r"no photos at .*missing"):
        make_plan([str(world.folder / "missing")], world.stage, [], "m-1", False, None)


@pytest.mark.s3
def test_plan_rows_and_answers_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.stage = Stage(f"s3://{s3_bucket}/plan it's ü%20", "r1")
    world.list(("/a", "v1"), ("/b", "v1")).staged(located_row("/a", 1, 1))
    plan = world.plan()
    assert plan.staged == 1
    assert [file.startswith("s3://") for file in plan.files] == [True]


@pytest.mark.s3
def test_a_remote_output_that_duckdb_can_not_name_is_refused(s3_bucket: str, world: World) -> None:
    for name in ("[1]", "a*", "a?", "a#b"):
        world.stage = Stage(f"s3://{s3_bucket}/{name}", "r1")
        with pytest.raises(ValueError, match="choose one without"):
            world.list(("/a", "v1")).plan()


def naive_todo(
    listed: Sequence[tuple[str, str | None]], published: Sequence[Row], staged: Sequence[Row], retry_failed: bool
) -> set[str]:
    """Say the plan's rule once more, a photo at a time."""

    def newest(rows: Sequence[Row], uri: str) -> Row | None:
        mine = [row for row in rows if row[schema.URI] == uri]
        return max(mine, key=lambda row: row[schema.PROCESSED_AT]) if mine else None

    taken = set()
    for uri in {uri for uri, _ in listed}:
        etags = [etag for other, etag in listed if other == uri and etag]
        etag = max(etags) if etags else None
        old, own = newest([row for row in published if row[schema.MODEL_ID] == "m-1"], uri), newest(staged, uri)
        good = old and etag in (None, old[schema.ETAG]) and old[schema.ERROR_CODE] not in schema.TRANSIENT_ERRORS
        good = good and not (retry_failed and old[schema.ERROR_CODE])
        own_good = own and etag in (None, own[schema.ETAG]) and own[schema.ERROR_CODE] not in schema.TRANSIENT_ERRORS
        if not good and not own_good:
            taken.add(uri)
    return taken


@pytest.mark.parametrize("seed", range(12))
def test_against_the_rule_said_naively(world: World, seed: int) -> None:
    chance = random.Random(seed)
    uris = [f"/{index}" for index in range(25)]

    def random_rows(count: int) -> list[Row]:
        rows = []
        for minute in chance.sample(range(1000), count):
            code = chance.choice([None, None, ErrorCode.CORRUPT, ErrorCode.FETCH_FAILED])
            facts = {"processed_at": later(minute), "model_id": chance.choice(["m-1", "m-1", "m-2"])}
            uri, etag = chance.choice(uris), chance.choice(["v1", "v2"])
            row = located_row(uri, 1, 1, etag, **facts) if code is None else failed_row(uri, code, etag, **facts)
            rows.append({schema.ERROR_CODE: None} | row)
        return rows

    listed = [(chance.choice(uris), chance.choice([None, "v1", "v2"])) for _ in range(30)]
    published, staged = random_rows(60), random_rows(8)
    world.list(*listed).publish(*published[:30]).publish(*published[30:]).staged(*staged)
    retry_failed = chance.random() < 0.5
    plan = world.plan(retry_failed=retry_failed)
    assert set(todo(plan)) == naive_todo(listed, published, staged, retry_failed)
    assert len(todo(plan)) == plan.todo
    assert plan.already_done + plan.staged + plan.todo == plan.listed - plan.duplicates
