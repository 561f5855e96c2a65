"""A raylet that goes silent while Ray starts must not keep the run, and its lease, waiting for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, ray_environment
from tests.support.processes import processes_with

_START = "import logging; from pipeline.cluster import ray_cluster as ray; ray._START_LIMIT_S = 20.0; ray.start_ray()"


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_start_that_hangs_ends_with_1(tmp_path: Path) -> None:
    mark = f"GRATICULE_HUNG_START={os.getpid()}"
    environment = os.environ | ray_environment(tmp_path / "token") | dict([mark.split("=")])
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", _START]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as driver:
        raylets: list[int] = []
        try:
            while not raylets and driver.poll() is None:
                time.sleep(0.01)
                raylets = [pid for pid, title in processes_with(mark).items() if "/raylet " in title]
            for raylet in raylets:
                os.kill(raylet, signal.SIGSTOP)
            _, told = driver.communicate(timeout=120)
        finally:
            driver.kill()
            for raylet in raylets:
                os.kill(raylet, signal.SIGKILL)
    assert raylets
    assert driver.returncode == 1, told
    assert "Ray did not start within 20 s" in told
