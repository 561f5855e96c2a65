"""One machine's executor gives the rows that Ray's gives, stops when it is told to, and tells a bug from a mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from model.checkpoint import Checkpoint
from pipeline import schema
from pipeline.cluster.flow import ClusterSettings, Flow
from pipeline.cluster.local_executor import LocalExecutor, is_busy
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import LocatorSettings
from pipeline.read.reader import ReaderSettings
from pipeline.run.plan import make_plan
from pipeline.run.staging import Stage
from tests.support.photo_samples import china_jpeg, flower_jpeg

PHOTOS = 12


def flow(model: Path, tmp_path: Path, **changed: Any) -> Flow:
    """A plan of distinct photos, a copy and a broken one, and what is to become of them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(PHOTOS):
        (photos / f"{index:02d}.jpg").write_bytes((china_jpeg() if index % 2 else flower_jpeg()) + b"%d" % index)
    (photos / "copy.jpg").write_bytes((photos / "00.jpg").read_bytes())
    (photos / "cut.jpg").write_bytes(china_jpeg()[:1000])
    checkpoint = Checkpoint.load(model)
    stage = Stage(str(tmp_path / "out"), "r1")
    plan = make_plan([str(photos)], stage, [], checkpoint.model_id, retry_failed=False, limit=None)
    settings: dict[str, Any] = {
        "plan_files": plan.files,
        "stage": stage,
        "reader": ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)),
        "locator": LocatorSettings(str(model), checkpoint.model_id, stage.run_id, batch_size=4),
        "cluster": ClusterSettings(rows_per_part=4),
        "size": LocalExecutor().start(),
    }
    return Flow(**settings | changed)


def names(files: Sequence[str]) -> list[str]:
    return sorted(uri.rsplit("/", 1)[1] for file in files for uri in pq.read_table(file).column(schema.URI).to_pylist())


def test_every_photo_is_staged_once_and_a_copy_waits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    work = flow(tiny_checkpoint, tmp_path)
    assert LocalExecutor().run(work) == 0
    rows, waiting = names(work.stage.row_files()), names(work.stage.copy_files())
    assert sorted([*rows, *waiting]) == sorted(
        [f"{index:02d}.jpg" for index in range(PHOTOS)] + ["copy.jpg", "cut.jpg"]
    )
    assert waiting in (["copy.jpg"], ["00.jpg"])
    assert not is_busy()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("read ", "locate", "stage"))]


def test_once_the_lease_is_lost_no_more_photos_are_begun(tiny_checkpoint: Path, tmp_path: Path) -> None:
    work = flow(tiny_checkpoint, tmp_path, stop_at_s=time.time() - 1)
    LocalExecutor().run(work)
    assert work.stage.row_files() == []


def test_a_bug_is_no_users_mistake_and_a_missing_engine_is_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    class Broken:
        def __init__(self, name: str, checkpoint: Checkpoint, **_: object) -> None:
            self.shape_HWC = checkpoint.config.preprocessing.shape_HWC

        def __call__(self, pixels_BHWC: object) -> object:
            raise ValueError("wrong")

    work = flow(tiny_checkpoint, tmp_path, load=Broken)
    with pytest.raises(RuntimeError, match="a bug in the thread 'locate': wrong"):
        LocalExecutor().run(work)

    def refuse(*_: object, **__: object) -> Broken:
        raise ValueError("this processor does not compute in bf16")

    for part in work.stage.row_files():
        Path(part).unlink()
    with pytest.raises(ValueError, match="does not compute in bf16"):
        LocalExecutor().run(Flow(**vars(work) | {"load": refuse}))


def test_one_machine_has_one_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    work = flow(tiny_checkpoint, tmp_path, cluster=ClusterSettings(locators=2))
    with pytest.raises(ValueError, match="--executor ray"):
        LocalExecutor().run(work)
