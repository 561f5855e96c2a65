"""Which photos a run takes again: what failed in passing, later and later, and never what has its answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.published.catalog import Catalog
from pipeline.published.records import published_files, run_records
from pipeline.run import plan as plan_module
from pipeline.run.plan import make_plan
from pipeline.run.staging import Stage
from pipeline.schema import ErrorCode
from tests.support.photo_rows import failed_row, located_row
from tests.support.planning import OTHER, OURS, Row, World, later, todo
from tests.support.published_rows import publish_run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_photo_that_could_not_be_fetched_is_done_by_the_answer_that_the_view_shows(world: World) -> None:
    """A --retag whose photos were away: a normal night leaves them, and the next --retag takes them again."""
    names = [str(code) for code in schema.FETCH_ERRORS]
    world.list(*((f"/{name}", "v1") for name in names), ("/changed", "v2"), ("/unversioned", None))
    world.publish(*(located_row(f"/{name}", 1, 1) for name in (*names, "changed", "unversioned")))
    world.publish(
        *(failed_row(f"/{name}", ErrorCode(name), model_id=OTHER) for name in names),
        failed_row("/changed", ErrorCode.NOT_FOUND, "v2", model_id=OTHER),
        failed_row("/unversioned", ErrorCode.NOT_FOUND, model_id=OTHER),
    )
    for retry_failed in (False, True):
        plan = world.plan(retry_failed=retry_failed)
        assert (todo(plan), plan.already_done, plan.of_another_model) == (["/changed"], 5, 0)
        plan = world.plan(model_id=OTHER, retry_failed=retry_failed)
        assert (todo(plan), plan.already_done, plan.of_another_model) == (["/changed"], 5, 5)
        plan = world.plan(model_id=OTHER, retag=True, retry_failed=retry_failed)
        assert (len(todo(plan)), plan.already_done, plan.waiting) == (6, 0, 0)
    world.publish(*(located_row(f"/{name}", 1, 1, model_id=OTHER) for name in (*names, "unversioned")))
    assert todo(world.plan(model_id=OTHER, retag=True)) == ["/changed"]


def test_what_fails_in_passing_is_tried_later_and_later(world: World) -> None:
    """After k failures 2^(k-1) - 1 runs pass, at most 31; a new version, or --retry-failed, begins anew."""
    world.list(("/away", "v1"), ("/good", "v1")).publish(located_row("/good", 1, 1))
    codes = [ErrorCode.FETCH_FAILED, ErrorCode.NOT_FOUND, ErrorCode.FETCH_TIMEOUT]
    tries = []
    for run in range(1, 140):
        plan = world.plan()
        assert (plan.todo + plan.waiting, plan.already_done) == (1, 1)
        if plan.todo:
            tries.append(run)
        else:
            assert todo(world.plan(retry_failed=True)) == ["/away"]
        code = codes[run % 3]
        world.publish(failed_row("/away", code) if plan.todo else located_row("/other", 1, 1))
    assert tries == [1, 2, 4, 8, 16, 32, 64, 96, 128]
    plan = world.list(("/away", "v2"), ("/good", "v1")).plan()
    assert (todo(plan), plan.changed, plan.waiting) == (["/away"], 1, 0)
    world.publish(failed_row("/away", ErrorCode.FETCH_FAILED, "v2"))
    assert todo(world.plan()) == ["/away"]


def test_runs_that_published_nothing_count_too(world: World) -> None:
    """Else what waits in an archive where nothing else happens would wait for ever."""
    world.list(("/away", "v1"))
    for _ in range(3):
        world.publish(failed_row("/away", ErrorCode.FETCH_FAILED))
    waited = []
    for epoch in range(2, 7):
        world.stage = Stage(str(world.folder / "output"), "r1", epoch)
        waited.append(world.plan().waiting)
    assert waited == [1, 1, 1, 0, 0]


def test_a_restart_takes_again_what_its_run_had_begun(world: World) -> None:
    world.list(("/away", "v1"), ("/new", "v1"))
    for _ in range(2):
        world.publish(failed_row("/away", ErrorCode.FETCH_FAILED))
    assert (todo(world.plan()), world.plan().waiting) == (["/new"], 1)
    world.staged(failed_row("/away", ErrorCode.FETCH_FAILED))
    assert (todo(world.plan()), world.plan().waiting) == (["/new", "/away"], 0)
    world.staged(located_row("/away", 1, 1))
    plan = world.plan()
    assert (plan.staged + plan.todo, plan.waiting) == (2, 0)


@pytest.mark.parametrize("order", ["name", "newest"])
def test_failures_of_the_moment_starve_nothing(world: World, order: plan_module.Order) -> None:
    """Five nights of 100 photos, the first 100 of which always fail: 400 others are located."""
    uris = [f"/{index:04d}" for index in range(1000)]
    ages = pa.array([later(-index) for index in range(1000)], pa.timestamp("us", "UTC"))
    source = str(world.folder / "timed.parquet")
    pq.write_table(pa.table({schema.URI: uris, schema.ETAG: ["v"] * 1000, schema.MODIFIED_AT: ages}), source)
    located: list[str] = []
    for night in range(5):
        stage = Stage(str(world.folder / "output"), f"r{night}", night + 1)
        plan = make_plan([source], stage, world.published, OURS, False, 100, order=order)
        assert (plan.todo, len(todo(plan))) == (100, 100)
        good = [uri for uri in todo(plan) if int(uri[1:]) >= 100]
        bad = sorted(set(todo(plan)) - set(good))
        world.publish(
            *(located_row(uri, 1, 1, "v") for uri in good),
            *(failed_row(uri, ErrorCode.FETCH_FAILED, "v") for uri in bad),
        )
        located += good
    assert located == uris[100:500]
    plan = make_plan([source], world.stage, world.published, OURS, False, None, order=order)
    assert todo(plan) == [*uris[500:], *uris[:100]]  # last, but not never


def naive_todo(
    listed: Sequence[tuple[str, str | None]],
    published: Sequence[Sequence[Row]],
    staged: Sequence[Row],
    retry_failed: bool,
    retag: bool,
) -> tuple[set[str], set[str]]:
    """Say the plan's rule once more, a photo at a time: what is to do, and what waits."""
    taken, waiting = set(), set()
    for uri in {uri for uri, _ in listed}:
        etags = [etag for other, etag in listed if other == uri and etag]
        etag = max(etags) if etags else None
        rows = [(run, row) for run, rows in enumerate(published) for row in rows if row[schema.URI] == uri]
        own = next((row for row in staged if row[schema.URI] == uri), None)
        good, early = False, False
        if rows and etag in (None, rows[-1][1][schema.ETAG]):
            last_run, shown = rows[-1]
            version = [row for _, row in rows if row[schema.ETAG] == shown[schema.ETAG]]
            if shown[schema.ERROR_CODE] in schema.FETCH_ERRORS:
                failures = 0
                for _, row in rows[::-1]:
                    is_same = row[schema.ETAG] == shown[schema.ETAG] and row[schema.ERROR_CODE] in schema.FETCH_ERRORS
                    if not is_same:
                        break
                    failures += 1
                early = len(published) - 1 - last_run < 2 ** (failures - 1) - 1 and not retry_failed
                shown = next((row for row in version[::-1] if not row[schema.ERROR_CODE]), shown)
            good = shown[schema.ERROR_CODE] not in schema.TRANSIENT_ERRORS
            good = good and not (retry_failed and shown[schema.ERROR_CODE])
            good = good and not (retag and shown[schema.MODEL_ID] != OURS)
        is_own = own is not None and etag in (None, own[schema.ETAG])
        if not good and not (is_own and own and own[schema.ERROR_CODE] not in schema.FETCH_ERRORS):
            (waiting if early and not is_own else taken).add(uri)
    return taken, waiting


@pytest.mark.parametrize("seed", range(12))
def test_against_the_rule_said_naively(world: World, seed: int) -> None:
    chance = random.Random(seed)
    uris = [f"/{index}" for index in range(25)]

    def random_rows(most: int) -> list[Row]:
        rows = []
        for uri in chance.sample(uris, most):
            code = chance.choice([None, ErrorCode.CORRUPT, *schema.FETCH_ERRORS, *schema.FETCH_ERRORS])
            facts = {"processed_at": later(chance.randrange(1000)), "model_id": chance.choice(["m-1", "m-1", "m-2"])}
            etag = chance.choice(["v1"] * 5 + ["v2"])
            row = located_row(uri, 1, 1, etag, **facts) if code is None else failed_row(uri, code, etag, **facts)
            rows.append({schema.ERROR_CODE: None} | row)
        return rows

    listed = [(chance.choice(uris), chance.choice([None, "v1", "v1", "v2"])) for _ in range(30)]
    published, staged = [random_rows(12) for _ in range(7)], random_rows(8)
    world.list(*listed).staged(*staged)
    for rows in published:
        world.publish(*rows)
    waited = 0
    for retry_failed, retag in ((False, False), (False, True), (True, False), (True, True)):
        plan = world.plan(retry_failed=retry_failed, retag=retag)
        taken, waiting = naive_todo(listed, published, staged, retry_failed, retag)
        assert set(todo(plan)) == taken
        assert (len(todo(plan)), plan.waiting) == (plan.todo, len(waiting))
        assert plan.already_done + plan.staged + plan.todo + plan.waiting == plan.listed - plan.duplicates
        waited += plan.waiting
    assert waited


def test_the_plan_and_the_view_agree_on_what_a_photo_is_known_by(world: World) -> None:
    """A photo that the view shows located, in the version listed, is done; any other is not."""
    chance = random.Random(1)
    uris = [f"/{index}" for index in range(60)]
    output = str(world.folder / "output")
    for run in range(1, 6):
        rows = []
        for uri in chance.sample(uris, 30):
            etag, code = chance.choice(["v1", "v2"]), chance.choice([None, *schema.FETCH_ERRORS])
            rows.append(located_row(uri, 1, 1, etag) if code is None else failed_row(uri, code, etag))
        publish_run(output, f"r{run}", rows, sequence=run)
    world.list(*((uri, "v1") for uri in uris))
    world.stage = Stage(output, "r9", 99)
    files = published_files(output, run_records(output))
    plan = make_plan([str(world.source)], world.stage, files, OURS, True, None)
    found = Catalog(output).sql("SELECT uri FROM photos WHERE status = 'located' AND etag = 'v1'").fetchall()
    assert len(found) > 5
    assert set(todo(plan)) == set(uris) - {uri for (uri,) in found}
