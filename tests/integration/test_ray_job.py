"""`ray job submit --working-dir . -- python jobs/geotag_archive.py …`: the cluster runs the code that was shipped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.run.staging import Stage
from tests.conftest import REPOSITORY, RayCluster
from tests.integration.test_geotag import codes, geotag
from tests.support.hosts import wait_until
from tests.support.photo_samples import china_image, china_jpeg, encode


def ray_job(cluster: RayCluster, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `ray job ACTION` in the repository as a user does."""
    command = [str(Path(sys.executable).parent / "ray"), "job", action, "--address", cluster.dashboard_url, *arguments]
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def submit(cluster: RayCluster, entrypoint: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Submit a job and, unless the options say otherwise, wait for its end."""
    return ray_job(cluster, "submit", "--working-dir", ".", *options, "--", *entrypoint)


@pytest.mark.ray
def test_a_submitted_job(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("one", "two"):
        (photos / f"{name}.jpg").write_bytes(china_jpeg())
    options = ["--photos", str(photos), "--output", str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    answer = submit(ray_cluster, ["python", "jobs/geotag_archive.py", *options])
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 photos processed" in answer.stdout
    assert codes(str(tmp_path / "out")) == {str(photos / "one.jpg"): None, str(photos / "two.jpg"): None}


@pytest.mark.ray
def test_a_night_that_is_stopped_stages_what_is_done(
    ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Though no part of the default size is full, by far; and within the 30 s that Ray is told to wait."""
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    jpeg = encode(china_image().resize((4000, 3000)), "jpeg")
    for index in range(1500):
        (photos / f"{index:04}.jpg").write_bytes(jpeg + b"%d" % index)
    options = ["--photos", str(photos), "--output", output, "--model", str(tiny_checkpoint), "--date", "2026-11-01"]
    options += ["--cluster.readers", "1"]  # two would be through with them before the stop arrives
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "one.jpg").write_bytes(jpeg)
    # The engine is compiled once, here: that would take longer than reading all photos.
    arguments = ("--photos", tmp_path / "first", "--output", tmp_path / "first out", "--model", tiny_checkpoint)
    answer = geotag(ray_cluster.environment, *arguments)
    assert answer.returncode == 0, answer.stderr
    waiting = ["--no-wait", "--submission-id", "to-be-stopped", "--runtime-env-json"]
    waiting.append(json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}))
    answer = submit(ray_cluster, ["python", "jobs/nightly.py", *options], *waiting)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    def log() -> str:
        return ray_job(ray_cluster, "logs", "to-be-stopped").stdout

    wait_until(lambda: "was ready after" in log(), "the engine was not loaded")
    time.sleep(1)  # photos are on their way by now
    stage = Stage(output, "nightly-2026-11-01")
    assert not stage.row_files()
    answer = ray_job(ray_cluster, "stop", "to-be-stopped")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "was stopped" in answer.stdout + answer.stderr
    assert 0 < stage.staged_count() < 1500, log()
    assert "told to stop: what is begun is staged first" in log()
    assert "stopped: run the same command again" in log()
    assert json.loads(storage.read_bytes(f"{output}/lease.json"))["process"] == ""
    assert not storage.exists(f"{output}/nights/2026-11-01.json")


@pytest.mark.ray
def test_every_module_is_shipped_and_the_shipped_ones_run(ray_cluster: RayCluster) -> None:
    """An unanchored line in an ignore file would drop modules silently, and an installed copy would hide that."""
    names = sorted(
        str(path.relative_to(REPOSITORY)) for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")
    )
    script = (
        "import pathlib, pipeline.schema as s; root = pathlib.Path.cwd(); "
        "assert pathlib.Path(s.__file__).is_relative_to(root), s.__file__; "
        f"missing = [n for n in {names!r} if not (root / n).is_file()]; assert not missing, missing; print('all here')"
    )
    answer = submit(ray_cluster, ["python", "-c", f'"{script}"'])
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "all here" in answer.stdout


@pytest.mark.ray
def test_nobody_submits_without_the_token(ray_cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    stranger = RayCluster(
        ray_cluster.address,
        ray_cluster.dashboard_url,
        ray_cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
    )
    answer = submit(stranger, ["python", "-c", "print(1)"])
    assert answer.returncode != 0
    assert "authentication" in (answer.stdout + answer.stderr).lower()


PACKAGES = ("jobs", "model", "pipeline", "training")
