"""`ray job submit --working-dir . -- python jobs/geotag_archive.py …`: the cluster runs the code that was shipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, RayCluster
from tests.integration.test_geotag import codes
from tests.photo_samples import china_jpeg


def submit(cluster: RayCluster, entrypoint: list[str]) -> subprocess.CompletedProcess[str]:
    """Submit a job from the repository as a user does, and wait for its end."""
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard_url]
    command += ["--working-dir", ".", "--", *entrypoint]
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


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
