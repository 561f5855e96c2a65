"""Identical bytes are inferred once, and every name gets its row all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import Checkpoint
from pipeline import schema
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import Locator, LocatorSettings
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.run import copies
from pipeline.run.content_index import ContentIndex, claims, without_copies
from pipeline.run.staging import Stage
from pipeline.schema import ErrorCode
from tests.support.photo_rows import NOON, failed_row, photos
from tests.support.photo_samples import china_jpeg, flower_jpeg


def test_the_first_to_claim_answers_and_again_when_its_task_is_retried() -> None:
    index = ContentIndex(10, known=[b"known"])
    assert index.claim([b"x", b"y", b"x", b"known"], [b"1", b"2", b"3", b"4"]) == [True, True, False, False]
    assert index.claim([b"x", b"x"], [b"3", b"1"]) == [False, True]
    assert index.overflow() == 0


def test_what_can_not_be_remembered_is_inferred_and_counted() -> None:
    index = ContentIndex(1)
    assert index.claim([b"x", b"y", b"y", b"x"], [b"1", b"2", b"3", b"4"]) == [True, True, True, False]
    assert index.overflow() == 2


def rows_of(folder: Path, checkpoint_folder: Path, files: dict[str, bytes], index: ContentIndex) -> pa.Table:
    """Read and locate files as the dataflow does."""
    checkpoint = Checkpoint.load(checkpoint_folder)
    listed = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        uri = str(folder / name)
        listed.append({schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri, schema.ETAG: f"v-{name}"})
    plan = pa.Table.from_pylist(listed, schema=schema.MANIFEST)
    read = Reader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))(plan)
    rows_N, contents, photo_ids = claims(read)
    read = without_copies(read, rows_N, index.claim(contents, photo_ids))
    return Locator(LocatorSettings(str(checkpoint_folder), checkpoint.model_id, "r1", engine="torch"))(read)


def stage_as_the_dataflow_does(stage: Stage, rows: pa.Table) -> None:
    is_copy = pa.compute.equal(rows.column(schema.STATUS), schema.COPIED)
    stage.put_copies(rows.filter(is_copy))
    stage.put_rows(rows.filter(pa.compute.invert(is_copy)))


def staged(stage: Stage) -> dict[str, dict[str, object]]:
    rows = [row for file in stage.row_files() for row in pq.read_table(file, schema=schema.PHOTOS).to_pylist()]
    assert len(rows) == len({row[schema.URI] for row in rows})
    return {str(row[schema.URI]).rsplit("/", 1)[1]: row for row in rows}


def test_copies_get_the_answer_under_their_own_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = {"a": china_jpeg(), "b": china_jpeg(), "c": flower_jpeg(), "d": china_jpeg(), "e": b"", "f": b""}
    rows = rows_of(tmp_path, tiny_checkpoint, files, ContentIndex(10))
    statuses = rows.column(schema.STATUS).to_pylist()
    assert statuses == ["located", schema.COPIED, "located", schema.COPIED, "failed", "failed"]
    stage = Stage(f"{tmp_path}/out", "r1")
    stage_as_the_dataflow_does(stage, rows)
    assert copies.count(stage) == 0
    assert copies.settle(stage, []) == 2
    assert copies.count(stage) == 2
    found = staged(stage)
    assert sorted(found) == ["a", "b", "c", "d", "e", "f"]
    own = {schema.PHOTO_ID, schema.URI, schema.ETAG, schema.PROCESSED_AT, schema.READ_SECONDS}
    for name in ("b", "d"):
        assert {k: v for k, v in found[name].items() if k not in own} == {
            k: v for k, v in found["a"].items() if k not in own
        }
        assert found[name][schema.PHOTO_ID] == schema.photo_id(f"{tmp_path}/{name}")
        assert found[name][schema.ETAG] == f"v-{name}"
    assert copies.settle(stage, []) == 0  # once


def test_a_run_without_copies_or_rows_has_no_copies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg()}, ContentIndex(10))
    stage = Stage(f"{tmp_path}/out", "r1")
    assert copies.count(stage) == copies.settle(stage, []) == 0
    stage.put_rows(rows)
    assert copies.count(stage) == copies.settle(stage, []) == 0
    only_copies = Stage(f"{tmp_path}/out", "r2")
    only_copies.put_copies(rows)
    assert copies.count(only_copies) == copies.settle(only_copies, []) == 0


def test_an_answer_of_an_earlier_run_will_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    earlier = Stage(f"{tmp_path}/out", "r0")
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg()}, ContentIndex(10))
    published = [earlier.put_rows(rows)]
    stage = Stage(f"{tmp_path}/out", "r1")
    (tmp_path / "new").mkdir()
    later = rows_of(tmp_path / "new", tiny_checkpoint, {"b": china_jpeg()}, ContentIndex(10, [content_of(rows)]))
    stage.put_copies(later)
    assert copies.settle(stage, []) == 0  # nobody answers: it stays without a row
    assert copies.settle(stage, published) == 1
    assert staged(stage)["b"][schema.RUN_ID] == "r1"
    assert staged(stage)["b"][schema.LAT_DEG] == rows.column(schema.LAT_DEG)[0].as_py()


def test_the_newest_staged_row_is_told_by_the_holder_that_staged_it_and_by_no_clock(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A copy is settled by a row as new as itself: one that an earlier start staged says nothing of it."""
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg(), "b": china_jpeg()}, ContentIndex(10))
    answer, copy = rows.slice(0, 1), rows.slice(1, 1)
    assert copy.column(schema.STATUS).to_pylist() == [schema.COPIED]
    for copied_in, staged_in, settled in ((10, 9, 1), (9, 10, 0), (9, 9, 0)):
        stage = Stage(f"{tmp_path}/{copied_in}-{staged_in}", "r1", 11)
        replace(stage, epoch=9).put_rows(answer)
        replace(stage, epoch=copied_in).put_copies(copy)
        ahead = failed_row(f"{tmp_path}/b", ErrorCode.FETCH_FAILED, processed_at=NOON.replace(year=2099))
        replace(stage, epoch=staged_in).put_rows(photos([ahead]))
        assert copies.settle(stage, []) == settled
        assert copies.settle(stage, []) == 0
        kept = [row for file in stage.row_files() for row in pq.read_table(file, schema=schema.PHOTOS).to_pylist()]
        ours = [row[schema.STATUS] for row in kept if row[schema.URI] == f"{tmp_path}/b"]
        assert ours[-1] == ("located" if settled else "failed")


def test_of_several_answers_the_one_of_the_newest_run_is_copied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg()}, ContentIndex(10))
    published = []
    for run, scene in enumerate(("older", "newer")):
        clock = pa.array([NOON.replace(year=2099 - run)], schema.PHOTOS.field(schema.PROCESSED_AT).type)
        for name, value in ((schema.SCENE, pa.array([scene])), (schema.PROCESSED_AT, clock)):
            index = rows.schema.get_field_index(name)
            rows = rows.set_column(index, schema.PHOTOS.field(name), value)
        published.append(Stage(f"{tmp_path}/out", f"r{run}").put_rows(rows))
    (tmp_path / "new").mkdir()
    copy = rows_of(tmp_path / "new", tiny_checkpoint, {"b": china_jpeg()}, ContentIndex(10, [content_of(rows)]))
    for order, scene in ((published, "newer"), (published[::-1], "older")):
        stage = Stage(f"{tmp_path}/out", f"with-{scene}")
        stage.put_copies(copy)
        assert copies.settle(stage, order) == 1
        assert staged(stage)["b"][schema.SCENE] == scene


def test_an_answer_without_names_of_an_older_version_is_not_copied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg(), "c": flower_jpeg()}, ContentIndex(10))
    published = [Stage(f"{tmp_path}/out", "r0").put_rows(rows.slice(index, 1)) for index in (0, 1)]
    pq.write_table(pq.read_table(published[0]).drop_columns(sorted(schema.ADDED_LATER)), published[0])
    stage = Stage(f"{tmp_path}/out", "r1")
    sizes = (len(china_jpeg()), len(flower_jpeg()))
    planned = [{schema.PHOTO_ID: b"0" * 16, schema.URI: "u", schema.SIZE_BYTES: size} for size in sizes]
    pq.write_table(pa.Table.from_pylist(planned, schema=schema.MANIFEST), _made(Path(stage.plan_uri("todo", 0))))
    model_id = rows.column(schema.MODEL_ID)[0].as_py()
    for files, known in ((published, 1), (published[::-1], 1), (published[:1], 0)):
        assert len(copies.answered_contents(stage, files, model_id, 10)) == known
    (tmp_path / "new").mkdir()
    stage.put_copies(
        rows_of(tmp_path / "new", tiny_checkpoint, {"b": china_jpeg()}, ContentIndex(10, [content_of(rows)]))
    )
    assert copies.settle(stage, published) == 0


def content_of(rows: pa.Table) -> bytes:
    content: bytes = rows.column(schema.CONTENT_HASH)[0].as_py()
    return content


def test_only_contents_that_can_occur_are_looked_up(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, tiny_checkpoint, {"a": china_jpeg(), "c": flower_jpeg()}, ContentIndex(10))
    published = [Stage(f"{tmp_path}/out", "r0").put_rows(rows)]
    stage = Stage(f"{tmp_path}/out", "r1")
    row = {schema.PHOTO_ID: b"0" * 16, schema.URI: "u", schema.SIZE_BYTES: len(china_jpeg())}
    plan = pa.Table.from_pylist([row], schema=schema.MANIFEST)
    pq.write_table(plan, _made(Path(stage.plan_uri("todo", 0))))
    model_id = rows.column(schema.MODEL_ID)[0].as_py()
    assert copies.answered_contents(stage, published, model_id, 10) == [content_of(rows)]
    assert copies.answered_contents(stage, published, "another", 10) == []
    assert copies.answered_contents(stage, published, model_id, 0) == []


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path
