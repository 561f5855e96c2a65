"""What the Airflow DAG calls, on a real cluster with token authentication; Airflow itself is not installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, RayCluster
from tests.support.photo_samples import china_jpeg

AIRFLOW = REPOSITORY / "infra" / "airflow"


def night(cluster: RayCluster, name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    script = (
        f"from submitted_night import run_night; run_night({cluster.dashboard_url!r}, {name!r}, {arguments!r}, 0.5)"
    )
    environment = {key: value for key, value in cluster.environment.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=AIRFLOW, env=environment, capture_output=True, text=True, check=False,
        timeout=400,
    )  # fmt: skip


@pytest.mark.ray
def test_a_night_submitted_by_airflow(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(china_jpeg())
    arguments = ["--photos", str(photos), "--output", str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    done = night(ray_cluster, "night-1", [*arguments, "--date", "2026-11-25"])
    assert done.returncode == 0, done.stderr
    assert "night of 2026-11-25: done; 1 photos located" in done.stdout
    assert json.loads((tmp_path / "out" / "nights" / "2026-11-25.json").read_text())["located"] == 1

    failed = night(ray_cluster, "night-2", [*arguments, "--date", "never"])
    assert failed.returncode == 1
    assert "RuntimeError: night-2 failed" in failed.stderr
    assert "give a date such as" in failed.stderr
