"""Publishing on a real Ray cluster gives the very files that publishing in one process gives."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.cluster import dataflow
from pipeline.run import publish as publish_module
from pipeline.run.publish import publish
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.schema import ErrorCode
from tests.conftest import REPOSITORY, RayCluster
from tests.support.photo_rows import failed_row, located_row, photos

LEAST_ROWS_PER_FILE = 700
DRIVER = """
import dataclasses, json, os, sys
import ray
from pipeline.cluster import dataflow
from pipeline.run import publish
from pipeline.run.staging import Stage

publish.LEAST_ROWS_PER_FILE = int(sys.argv[2])
# A file's rows must come together however small Ray wants its blocks.
ray.data.DataContext.get_current().target_max_block_size = 100_000
CHANGE
published = dataflow.publish_on_ray(Stage(sys.argv[1], "r1"), above_rows=2999)
print(json.dumps(dataclasses.asdict(published)))
"""
FORGETFUL = """
select = publish._Accounts.selection
publish._Accounts.selection = lambda self, ranges: dataclasses.replace(select(self, ranges), dropped={})
"""
DYING = """
write = dataflow._write_file

def dying(rows, stage, ranges):
    answer = write(rows, stage, ranges)
    try:
        open(stage.output + "/died", "x").close()
    except FileExistsError:
        return answer
    os._exit(1)

dataflow._write_file = dying
"""


def staged(output: str) -> Stage:
    """Stage 3000 planned photos, a tenth failed, many at one place, some twice, some not planned any more."""
    stage = Stage(output, "r1")
    chance = random.Random(11)
    rows = []
    for index in range(3100):
        lat_deg, lon_deg = (1.0, 2.0) if index % 3 else (chance.uniform(-80, 80), chance.uniform(-180, 180))
        is_failed = index % 10 == 0
        rows.append(
            failed_row(f"/{index}", ErrorCode.EMPTY) if is_failed else located_row(f"/{index}", lat_deg, lon_deg)
        )
    plan = [{name: row.get(name) for name in schema.MANIFEST.names} for row in rows[:3000]]
    storage.write_bytes(stage.plan_uri("todo", 0), parquet_bytes(pa.Table.from_pylist(plan, schema.MANIFEST)))
    for part in range(20):
        stage.put_rows(photos(rows[part::20]))
    stage.put_rows(photos([*rows[:5], located_row("/7", 3.0, 4.0, "v0")]))
    return stage


def publish_on_cluster(cluster: RayCluster, stage: Stage, change: str) -> subprocess.CompletedProcess[str]:
    """Publish in a driver of its own."""
    command = [sys.executable, "-c", DRIVER.replace("CHANGE", change), stage.output, LEAST_ROWS_PER_FILE]
    return subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.ray
def test_the_cluster_writes_the_same_files(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a worker dies after it has written its file, before it could say so."""
    stage = staged(f"{tmp_path}/out it's [1]")
    monkeypatch.setattr(publish_module, "LEAST_ROWS_PER_FILE", LEAST_ROWS_PER_FILE)
    here = publish(stage)
    assert [file.row_count for file in here.files] == [750, 750, 750, 750]
    assert (here.located, here.failed) == (2700, 300)

    publish_module.discard(stage)

    answer = publish_on_cluster(ray_cluster, stage, DYING)
    assert answer.returncode == 0, answer.stderr
    assert storage.exists(f"{stage.output}/died")
    there = json.loads(answer.stdout.splitlines()[-1])
    left = [entry.uri.removeprefix(f"{stage.output}/") for entry in storage.list_files(f"{stage.output}/photos")]
    assert left == [file["path"] for file in there["files"]]
    assert there == json.loads(json.dumps(asdict(here)))  # to the last byte of each file, by their digests


@pytest.mark.ray
def test_a_sort_that_goes_wrong_publishes_nothing(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """One that forgets which rows are to be dropped: files would have more rows than they are to have."""
    stage = staged(str(tmp_path))
    answer = publish_on_cluster(ray_cluster, stage, FORGETFUL)
    assert answer.returncode == 1
    assert "rows, not 750" in answer.stderr
    assert list(storage.list_files(f"{tmp_path}/photos")) == []


def test_up_to_the_limit_the_cluster_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataflow, "start_ray", None)
    assert dataflow.publish_on_ray(staged(str(tmp_path)), above_rows=3000).located == 2700
