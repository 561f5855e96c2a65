"""What a run takes on: everything listed that has no good row yet, computed by the real DuckDB over real files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.published.records import PublishedFile, RunRecord
from pipeline.run import plan as plan_module
from pipeline.run.photo_set import PhotoSet, UnaccountedError
from pipeline.run.plan import make_plan
from pipeline.run.staging import Stage, local_photos
from pipeline.schema import ErrorCode
from pipeline.sources.manifest import ListSettings
from pipeline.storage import duckdb
from pipeline.storage.duckdb import rebatched
from tests.support.photo_rows import NOON, failed_row, located_row, skipped_row
from tests.support.planning import OTHER, Row, World, later, todo


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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


def test_of_a_photo_listed_in_two_versions_the_same_one_is_always_taken(world: World) -> None:
    versions = [("v1", 10), ("v3", 30), (None, 99), ("v2", 20)]
    for order in (versions, versions[::-1]):
        rows = [{schema.URI: "/a", schema.ETAG: etag, schema.SIZE_BYTES: size_bytes} for etag, size_bytes in order]
        sources = [world.folder / "first.parquet", world.folder / "second.parquet"]
        for source, half in zip(sources, (rows[:2], rows[2:]), strict=True):
            pq.write_table(pa.Table.from_pylist(half), source)
        plan = make_plan([str(source) for source in sources], world.stage, world.published, "m-1", False, None)
        assert (plan.listed, plan.duplicates, plan.todo) == (4, 3, 1)
        (row,) = pq.read_table(plan.files[0]).to_pylist()
        assert (row[schema.ETAG], row[schema.SIZE_BYTES]) == ("v3", 30)
    assert make_plan(
        [str(source) for source in sources],
        world.stage,
        world.publish(located_row("/a", 1, 1, "v2")).published,
        "m-1",
        False,
        None,
    ).changed


RULES: list[tuple[str, str | None, Row, set[str] | None]] = [
    # name, ETag listed, the newest published row, what makes it be taken again: nothing (empty), a flag, all (None)
    ("same", "v1", located_row("", 1, 1), set()),
    ("changed", "v2", located_row("", 1, 1), None),
    ("listed without a version", None, located_row("", 1, 1), set()),
    ("published without a version", "v1", located_row("", 1, 1) | {schema.ETAG: None}, None),
    ("failed for good", "v1", failed_row("", ErrorCode.CORRUPT), {"retry_failed"}),
    ("failed for good, changed", "v2", failed_row("", ErrorCode.CORRUPT), None),
    ("failed for good, no version", None, failed_row("", ErrorCode.CORRUPT), {"retry_failed"}),
    ("failed for now", "v1", failed_row("", ErrorCode.FETCH_FAILED), None),
    ("failed for now, no version", None, failed_row("", ErrorCode.FETCH_FAILED), None),
    ("listed and not found", "v1", failed_row("", ErrorCode.NOT_FOUND), None),
    ("listed and not found, no version", None, failed_row("", ErrorCode.NOT_FOUND), None),
    ("refused", "v1", failed_row("", ErrorCode.FORBIDDEN), {"retry_failed"}),
    ("other model", "v1", located_row("", 1, 1, model_id=OTHER), {"retag"}),
    ("other model, changed", "v2", located_row("", 1, 1, model_id=OTHER), None),
    ("other model, no version", None, located_row("", 1, 1, model_id=OTHER), {"retag"}),
    ("other model, failed for good", "v1", failed_row("", ErrorCode.EMPTY, model_id=OTHER), {"retag", "retry_failed"}),
    ("other model, failed for now", "v1", failed_row("", ErrorCode.FETCH_TIMEOUT, model_id=OTHER), None),
]


@pytest.mark.parametrize(
    "flags",
    [set(), {"retag"}, {"retry_failed"}, {"retag", "retry_failed"}],
    ids=lambda flags: " ".join(sorted(flags)) or "none",
)
def test_what_counts_as_done(world: World, flags: set[str]) -> None:
    world.list(*((f"/{name}", etag) for name, etag, _, _ in RULES), ("/new", "v1"), ("/new, no version", None))
    gone = located_row("/gone from the listing", 1, 1)
    named = [row | {schema.URI: f"/{name}", schema.PHOTO_ID: schema.photo_id(f"/{name}")} for name, _, row, _ in RULES]
    plan = world.publish(*named, gone).plan(retag="retag" in flags, retry_failed="retry_failed" in flags)
    again = {f"/{name}" for name, _, _, by in RULES if by is None or by & flags}
    assert set(todo(plan)) == again | {"/new", "/new, no version"}
    assert plan.todo == len(again) + 2
    assert plan.already_done == len(RULES) - len(again)
    left = {f"/{name}" for name, _, row, _ in RULES if row[schema.MODEL_ID] == OTHER} - again
    assert plan.of_another_model == len(left)
    assert plan.changed == len([name for name, etag, row, _ in RULES if etag not in (None, row[schema.ETAG])])


def test_failures_of_the_moment_are_taken_again_and_others_when_asked(world: World) -> None:
    world.list(*((f"/{code}", "v1") for code in ErrorCode), ("/good", "v1"))
    world.publish(*(failed_row(f"/{code}", code) for code in ErrorCode), located_row("/good", 1, 1))
    assert todo(world.plan()) == ["/fetch_failed", "/fetch_timeout", "/not_found"]
    # What is no photo is none when failures are retried, either.
    assert todo(world.plan(retry_failed=True)) == sorted(f"/{code}" for code in ErrorCode if code != "not_a_photo")


def test_a_skipped_video_is_taken_again_once_videos_are_asked_for(world: World) -> None:
    world.list(*((f"/{name}", "v1") for name in ("a.jpg", "a.mp4", "x.xmp", "cut.mov", "new.mp4", "passed.mp4")))
    skipped = {name: skipped_row(f"/{name}", format_name) for name, format_name in (("a.mp4", "mp4"), ("x.xmp", "xmp"))}
    world.publish(*skipped.values(), located_row("/a.jpg", 1, 1), failed_row("/cut.mov", ErrorCode.CORRUPT))
    world.publish(skipped_row("/passed.mp4", "mp4"))
    world.publish(failed_row("/passed.mp4", ErrorCode.FETCH_FAILED))  # which says nothing against the row before
    assert todo(world.plan()) == ["/new.mp4"]
    assert todo(world.plan(retry_failed=True)) == ["/new.mp4", "/cut.mov"]
    assert set(todo(world.plan(videos=True))) == {"/new.mp4", "/a.mp4", "/passed.mp4"}
    world.publish(located_row("/a.mp4", 1, 1, format="mp4"), located_row("/passed.mp4", 1, 1, format="mp4"))
    assert todo(world.plan(videos=True)) == ["/new.mp4"]


def test_what_this_run_has_skipped_as_a_video_is_made_again_where_it_goes_on_with_videos(world: World) -> None:
    world.list(("/a.mp4", "v1"), ("/x.xmp", "v1")).staged(skipped_row("/a.mp4", "mp4"), skipped_row("/x.xmp", "xmp"))
    assert todo(world.plan()) == []
    assert todo(world.plan(videos=True)) == ["/a.mp4"]


def test_only_the_newest_row_counts(world: World) -> None:
    """Changed and changed back is changed; failed and later located is done; whatever a worker's clock said."""
    world.list(("/back", "v1"), ("/healed", "v1"), ("/broken", "v1"), ("/lost", "v1"))
    world.publish(
        located_row("/back", 1, 1, "v1", processed_at=later(600_000)),
        failed_row("/healed", ErrorCode.FETCH_FAILED, processed_at=later(600_000)),
        located_row("/broken", 1, 1),
        located_row("/lost", 1, 1, "v0"),
    )
    world.publish(
        located_row("/back", 2, 2, "v2"),
        located_row("/healed", 1, 1),
        failed_row("/broken", ErrorCode.CORRUPT),
        failed_row("/lost", ErrorCode.FETCH_TIMEOUT),
    )
    assert todo(world.plan()) == ["/back", "/lost"]
    assert todo(world.plan(retry_failed=True)) == ["/back", "/broken", "/lost"]


def test_the_newest_row_counts_whatever_model_made_it(world: World) -> None:
    world.list(("/a", "v1"), ("/b", "v1")).publish(located_row("/a", 1, 1), located_row("/b", 1, 1))
    world.publish(
        located_row("/a", 1, 1, "v0", model_id=OTHER),
        located_row("/b", 1, 1, model_id=OTHER),
    )
    plan = world.plan()
    assert (todo(plan), plan.changed, plan.of_another_model) == (["/a"], 1, 1)
    assert todo(world.plan(retag=True)) == ["/a", "/b"]  # else /b's answer would stay the other model's
    assert todo(world.plan(model_id=OTHER, retag=True)) == ["/a"]


def test_a_new_model_takes_on_only_what_is_new_until_asked_to_retag(world: World) -> None:
    world.list(("/a", "v1"), ("/b", "v1")).publish(located_row("/a", 1, 1), failed_row("/b", ErrorCode.CORRUPT))
    world.list(("/a", "v1"), ("/b", "v1"), ("/c", "v1"))
    plan = world.plan(model_id=OTHER)
    assert (todo(plan), plan.already_done, plan.of_another_model) == (["/c"], 2, 2)
    world.publish(located_row("/c", 1, 1, model_id=OTHER))
    plan = world.plan(model_id=OTHER, retag=True)
    assert (todo(plan), plan.already_done, plan.of_another_model) == (["/a", "/b"], 1, 0)
    world.publish(
        *(located_row(uri, 1, 1, model_id=OTHER) for uri in ("/a", "/b")),
    )
    plan = world.plan(model_id=OTHER, retag=True)
    assert (todo(plan), plan.already_done, plan.of_another_model) == ([], 3, 0)


def test_an_interrupted_run_goes_on_where_it_stopped(world: World) -> None:
    world.list(("/a", "v1"), ("/b", "v1"), ("/c", "v2"), ("/d", "v1"), ("/e", "v1"))
    world.staged(located_row("/a", 1, 1), failed_row("/b", ErrorCode.EMPTY), located_row("/c", 1, 1, "v1"))
    world.staged(failed_row("/d", ErrorCode.FETCH_FAILED), located_row("/gone", 1, 1))
    for retry_failed in (False, True):  # what this run has tried itself is not tried again
        plan = world.plan(retry_failed=retry_failed)
        assert todo(plan) == ["/c", "/e", "/d"]  # what this run has failed at comes last
        assert (plan.staged, plan.todo) == (2, 3)
    planned = [uri for file in world.stage.plan_files() for uri in pq.read_table(file).column(schema.URI).to_pylist()]
    assert sorted(planned) == ["/a", "/b", "/c", "/d", "/e"]  # publishing checks against all of them


def test_what_an_interrupted_retag_has_made_is_published_even_if_the_restart_does_not_ask_for_it(world: World) -> None:
    world.list(("/a", "v1"), ("/b", "v1")).publish(located_row("/a", 1, 1), located_row("/b", 1, 1))
    world.staged(located_row("/a", 1, 1, model_id=OTHER))
    plan = world.plan(model_id=OTHER)
    assert (plan.staged, plan.todo, plan.already_done, plan.of_another_model) == (1, 0, 1, 1)
    plan = world.plan(model_id=OTHER, retag=True)
    assert (plan.staged, plan.todo, plan.already_done, plan.of_another_model) == (1, 1, 0, 0)


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
    assert [part.column("n").to_pylist() for part in rebatched(reader, 10)] == [
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


def test_a_row_without_a_name_stops_no_other(world: World) -> None:
    plan = world.list(*((f"/{index}", "v1") for index in range(30_000)), ("", "v1")).plan()
    assert (plan.listed, plan.source_problems, plan.is_complete) == (30_000, 1, False)
    assert [str(problem) for problem in plan.problems] == [
        f"row {world.source}: 1 of its rows name no photo: row 30001 has no uri: give every row one"
    ]


def test_what_the_output_holds_is_no_photo(world: World) -> None:
    (world.folder / "a.jpg").write_bytes(b"1")
    world.staged(located_row(str(world.folder / "a.jpg"), 1, 1, "v0"))
    plan = make_plan([str(world.folder)], world.stage, [], "m-1", False, None)
    assert (plan.listed, plan.todo, todo(plan)) == (1, 1, [str(world.folder / "a.jpg")])


def test_a_folder_whose_name_begins_with_the_outputs_is_part_of_the_archive(world: World) -> None:
    sibling = Path(f"{world.stage.output}-2024")
    sibling.mkdir()
    (sibling / "a.jpg").write_bytes(b"1")
    (world.folder / "output.jpg").write_bytes(b"1")
    plan = make_plan([str(world.folder)], world.stage, [], "m-1", False, None)
    assert todo(plan) == [str(sibling / "a.jpg"), str(world.folder / "output.jpg")]


def test_patterns_leave_out_and_are_counted(world: World) -> None:
    folders = [world.folder / "one", world.folder / "two"]
    for folder in folders:
        folder.mkdir()
        for name in ("a.jpg", "b.jpg", "c.txt"):
            (folder / name).write_bytes(b"1")
    sources = [str(folder) for folder in folders]
    plan = make_plan(sources, world.stage, [], "m-1", False, None, listing=ListSettings(["*.jpg"], ["/b.jpg"]))
    assert (plan.listed, plan.excluded, todo(plan)) == (2, 4, [str(folder / "a.jpg") for folder in folders])


def test_a_plan_larger_than_memory_spills_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb, "_MEMORY_LIMIT", "120MB")  # fails where it may not spill
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    world, count = World(tmp_path), 300_000
    uris = [f"s3://bucket/a/folder/of/the/archive/photo-{index:08d}.jpg" for index in range(count)]
    etags = [f"{index * 0x9E3779B97F4A7C15 % 2**128:032x}" for index in range(count)]
    source = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({schema.URI: uris, schema.ETAG: etags}), source)
    values = {
        schema.PHOTO_ID: pa.array([schema.photo_id(uri) for uri in uris], pa.binary(16)),
        schema.ETAG: pa.array(["other" if index % 100 == 0 else etag for index, etag in enumerate(etags)]),
        schema.PROCESSED_AT: pa.array([NOON] * count, pa.timestamp("us", tz="UTC")),
        schema.MODEL_ID: pa.array(["m-1"] * count),
        schema.ERROR_CODE: pa.nulls(count, pa.string()),
    }
    pq.write_table(pa.table(values), tmp_path / "published.parquet")
    plan = make_plan([source, source], world.stage, [str(tmp_path / "published.parquet")], "m-1", False, None)
    assert (plan.listed, plan.duplicates, plan.already_done) == (2 * count, count, count * 99 // 100)
    assert todo(plan) == uris[::100]
    with pytest.raises(ValueError, match="no photos at"):
        make_plan([source, str(tmp_path / "missing")], world.stage, [], "m-1", False, None)
    assert list((tmp_path / "temporary").glob("graticule-plan-*")) == []


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


def test_the_order_says_which_photos_come_first(world: World) -> None:
    """Newest first, oldest first or by name, without a time last: in the plan's files, and for what a limit takes."""
    times = {"/a": 3, "/b": None, "/c": 9, "/d": 1}
    source = world.folder / "timed.parquet"
    rows = [{schema.URI: uri, schema.MODIFIED_AT: None if time is None else later(time)} for uri, time in times.items()]
    pq.write_table(
        pa.Table.from_pylist(
            rows, pa.schema([schema.MANIFEST.field(schema.URI), schema.MANIFEST.field(schema.MODIFIED_AT)])
        ),
        source,
    )
    orders: dict[plan_module.Order, str] = {"name": "/a/b/c/d", "newest": "/c/a/d/b", "oldest": "/d/a/c/b"}
    for order, expected in orders.items():
        assert "".join(todo(make_plan([str(source)], world.stage, [], "m-1", False, None, order=order))) == expected
        limited = make_plan([str(source)], world.stage, [], "m-1", False, 2, order=order)
        assert "".join(todo(limited)) == expected[:4]
        assert limited.todo == 2


def test_photos_that_are_listed_no_more_are_counted_where_records_say_who_listed_them(world: World) -> None:
    world.list(("/a", "v1")).publish(located_row("/a", 1, 1), located_row("/gone", 1, 1), located_row("/too", 1, 1))
    world.publish(located_row("/gone", 2, 2))
    assert world.plan().gone is None
    source = str(world.source)
    files = [[PublishedFile(path)] for path in world.published]
    records = [RunRecord(run_id="r", sources=(source,), files=tuple(file)) for file in files]
    assert make_plan([source], world.stage, world.published, "m-1", False, None, records=records).gone == 2


def test_a_plan_is_cut_to_what_is_staged(world: World) -> None:
    """A run that is out of time publishes what it has: staged before or since, copies and all; the rest is counted."""
    world.list(*((f"/{name}", "v1") for name in "abcdef")).staged(located_row("/a", 1, 1))
    plan = world.plan()
    assert (plan.staged, plan.todo) == (1, 5)
    world.staged(located_row("/c", 1, 1), failed_row("/e", ErrorCode.CORRUPT))
    left, photos = plan_module.cut_to_staged(world.stage, plan.photos)
    assert left == 3
    rows = [row for file in world.stage.plan_files() for row in pq.read_table(file).to_pylist()]
    assert sorted(row[schema.URI] for row in rows) == ["/a", "/c", "/e"]
    assert pq.read_schema(world.stage.plan_files()[0]).equals(schema.MANIFEST)
    assert photos == PhotoSet.of([pa.Table.from_pylist(rows, schema=schema.MANIFEST)])
    assert plan_module.cut_to_staged(world.stage, photos) == (0, photos)  # nothing is left to cut
    with pytest.raises(UnaccountedError, match="does not hold the 6 photos that this run has planned"):
        plan_module.cut_to_staged(world.stage, plan.photos)


def test_a_plan_without_any_row_is_cut_to_nothing(world: World) -> None:
    plan = world.list(("/a", "v1"), ("/b", "v1")).plan()
    assert plan_module.cut_to_staged(world.stage, plan.photos) == (2, PhotoSet.of([]))
    assert world.stage.plan_files() == []


def test_local_photos_of_a_plan_are_found(world: World) -> None:
    world.list(("s3://b/1.jpg", "e"), ("/photos/2.jpg", "e"), ("file:///photos/%FF.jpg", "e")).plan()
    assert sorted(local_photos(world.stage, 9)) == ["/photos/2.jpg", "file:///photos/%FF.jpg"]
    assert len(local_photos(world.stage, 1)) == 1
    assert local_photos(world.stage, 9, ["/photos/2.jpg"]) == ["/photos/2.jpg"]
    assert local_photos(world.stage, 9, ["/other/"]) == []
    world.list(("s3://b/1.jpg", "e"), ("gs://b/2.jpg", "e")).plan()
    assert local_photos(world.stage, 9) == []
