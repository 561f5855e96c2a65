"""A node whose memory does not suffice ends the run with one plain line, and no task is begun again for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline.cluster import dataflow
from pipeline.cluster.dataflow import NoMemoryError
from pipeline.run.staging import Stage
from tests.conftest import REPOSITORY
from tests.support.photo_rows import located_row, photos


@pytest.mark.parametrize(
    "error", [ray.exceptions.OutOfMemoryError("long words of Ray's"), ray.exceptions.WorkerCrashedError()]
)
def test_the_run_ends_and_says_what_to_change(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(str(tmp_path), "r1")
    stage.put_rows(photos([located_row("/a.jpg", 10.0, 20.0)]))
    with pytest.raises(NoMemoryError) as caught, dataflow._plain_errors(stage):
        raise error
    assert caught.value.__suppress_context__, "Ray's trace would be printed"
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("a node's memory is too short: a process of this run was killed again and again. Give nodes")
    assert "--fetch.budget-bytes" in line
    assert line.endswith("1 photos are staged and stay: the next run goes on from there.")


@pytest.mark.parametrize("module", ["jobs.geotag_archive", "jobs.nightly", "pipeline.geotag"])
def test_ray_is_told_before_it_is_imported(module: str) -> None:
    """It reads its settings then, and never again; whoever set another number is left it."""
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            print(os.environ.get("RAY_task_oom_retries"))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Finder())
import {module}
import pipeline.cluster.dataflow
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout == "8\n"
