"""`jobs.train` on a real Ray cluster: any number of workers gives the same curve, and nothing that dies changes it.

The photos are a synthetic globe's; the network has no dropout and no batch normalisation, so all that can differ is the
order in which numbers are added up. Tolerance: losses and validation figures within 0.002 (relative) of those of one
process, after 24 steps; in practice they differ in the sixth digit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import Checkpoint
from tests.conftest import REPOSITORY, RayCluster
from training.fit.journal import read_journal
from training.globe.synthetic_globe import Globe, GlobeConfig, write_archive

STEPS = 24
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    globe = Globe(GlobeConfig(climates=3, countries=2, towns=2))
    return write_archive(globe, str(tmp_path_factory.mktemp("globe")), {"train": 16, "validation": 4})


def command(manifest: str, output: Path, *more: str) -> list[str]:
    """Return a command line: 192 photos, batches of 48, so 4 steps an epoch."""
    options = (
        f"--manifest {manifest} --output {output} --network tiny --preset hundreds --log-steps 1 --snapshot-steps 3"
    )
    recipe = "--recipe.epochs 6 --recipe.batch-size 48 --recipe.learning-rate 0.003 --recipe.average 0.9 --threads 1"
    return [sys.executable, "-m", "jobs.train", *options.split(), *recipe.split(), *more]


def finish(line: list[str], environment: dict[str, str] | None = None) -> str:
    answer = subprocess.run(
        line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def curve(output: Path) -> list[dict[str, Any]]:
    """Return the journal without what hangs on the machine."""
    unlike = {"samples_per_s", "workers"}
    return [{k: v for k, v in record.items() if k not in unlike} for record in read_journal(str(output))]


def numbers(value: Any) -> list[float]:
    """Return the numbers in a record, but for kilometres: they jump where rounding decides between two cells."""
    if isinstance(value, dict):
        return [number for name, item in value.items() if not name.endswith("_km") for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def assert_same(output: Path, undisturbed: Path) -> None:
    one, other = curve(output), curve(undisturbed)
    assert [(x["kind"], x["step"]) for x in one] == [(x["kind"], x["step"]) for x in other]
    assert len([x for x in one if x["kind"] == "step"]) == STEPS
    assert numbers(one) == pytest.approx(numbers(other), rel=TOLERANCE, abs=1e-5)
    checkpoints = [Checkpoint.load(folder) for folder in (output, undisturbed)]
    assert checkpoints[0].reading.temperatures == pytest.approx(checkpoints[1].reading.temperatures, rel=0.02)
    assert checkpoints[0].training["identity"] == checkpoints[1].training["identity"]
    best = [checkpoint.training["progress"]["best"] for checkpoint in checkpoints]
    assert best[0]["step"] == best[1]["step"]


def wait_for_step(output: Path, step: int, process: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and process.poll() is None:
        if max((record["step"] for record in read_journal(str(output))), default=0) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached (exit code {process.poll()})")


def worker_pids(cluster: RayCluster) -> list[int]:
    """Return the processes of Ray Train's workers."""
    return [pid for pid, title in cluster.processes().items() if "RayTrainWorker" in title]


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, from start to end."""
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    finish(command(manifest, output))
    return output


@pytest.mark.ray
@pytest.mark.soak  # the short forms are below: two workers of which one is killed, and some that are sharded
@pytest.mark.parametrize(
    "workers",
    [
        ("--num-workers", "2"),
        ("--num-workers", "4"),
        ("--num-workers", "2", "--workers.sharding", "fsdp"),
    ],
    ids=["two", "four", "two sharded"],
)
def test_any_number_of_workers_gives_the_same_curve(
    ray_cluster: RayCluster, manifest: str, undisturbed: Path, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    output = tmp_path / "model"
    finish(command(manifest, output, *workers, "--workers.cpus-each", "1"), ray_cluster.environment)
    assert {x["workers"] for x in read_journal(str(output)) if x["kind"] == "step"} == {int(workers[1])}
    assert_same(output, undisturbed)


def killed(manifest: str, output: Path, environment: dict[str, str], kill: Callable[[int], None]) -> int:
    """Start two workers, kill something after step 7 (mid-epoch, mid-way between snapshots); return the exit code."""
    line = command(manifest, output, "--num-workers", "2", "--workers.cpus-each", "1")
    process = subprocess.Popen(
        line, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_step(output, 7, process)
        kill(process.pid)
        return process.wait(300)
    finally:
        process.kill()
        process.wait()


@pytest.mark.ray
def test_a_killed_worker_costs_nothing_but_time(
    ray_cluster: RayCluster, manifest: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"

    def kill_a_worker(_: int) -> None:
        os.kill(worker_pids(ray_cluster)[0], signal.SIGKILL)

    assert killed(manifest, output, ray_cluster.environment, kill_a_worker) == 0
    assert_same(output, undisturbed)


@pytest.mark.ray
def test_a_killed_driver_costs_nothing_but_time(
    ray_cluster: RayCluster, manifest: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    code = killed(manifest, output, ray_cluster.environment, lambda pid: os.kill(pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert not (output / "config.json").exists()
    assert json.loads((output / "run.json").read_text())["state"] == "running"
    # The same command again, even with another number of workers, goes on.
    finish(command(manifest, output, "--num-workers", "1"), ray_cluster.environment)
    assert_same(output, undisturbed)
    record = json.loads((output / "run.json").read_text())
    assert record["state"] == "finished"
    assert [attempt["workers"] for attempt in record["attempts"]] == [2, 1]
    assert record["attempts"][1]["from_step"] >= 6
    assert "Nothing to do" in finish(command(manifest, output))


@pytest.mark.ray
def test_as_many_workers_as_can_be_had(
    ray_cluster: RayCluster, manifest: str, undisturbed: Path, tmp_path: Path
) -> None:
    """The cluster has four processors: of three workers with two each only one or two fit. They are sharded, too."""
    output = tmp_path / "model"
    elastic = ("--num-workers", "3", "--workers.least", "1", "--workers.cpus-each", "2", "--workers.sharding", "fsdp")
    finish(command(manifest, output, *elastic), ray_cluster.environment)
    workers = {x["workers"] for x in read_journal(str(output)) if x["kind"] == "step"}
    assert workers <= {1, 2}
    assert_same(output, undisturbed)


@pytest.mark.ray
def test_what_the_user_has_to_mend_ends_the_run_with_2(ray_cluster: RayCluster, manifest: str, tmp_path: Path) -> None:
    """All photos of the manifest are gone, on every worker: no retry would help."""
    table = tmp_path / "photos.csv"
    table.write_text(Path(manifest).read_text())
    line = command(str(table), tmp_path / "model", "--num-workers", "2", "--workers.cpus-each", "1")
    answer = subprocess.run(
        line, cwd=REPOSITORY, env=ray_cluster.environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "could not be read or decoded" in answer.stderr


@pytest.mark.ray
def test_the_benchmark_prints_its_ratios(ray_cluster: RayCluster) -> None:
    """With its packaged photos and a tiny network; how large the ratios are is not for a test to say."""
    options = "train --network tiny --batch-size 4 --steps 8 --repeats 1"
    out = finish([sys.executable, "-m", "jobs.benchmark", *options.split()], ray_cluster.environment)
    speeds = {name: float(speed) for name, speed in re.findall(r"^(\w.*?) +([\d.]+) photos/s$", out, re.MULTILINE)}
    assert len(speeds) == 4
    ingest, network, together, doubled = speeds.values()
    ratios = [float(x) for x in re.findall(r"(?:two|worker) +([\d.]+)$", out, re.MULTILINE)]
    assert ratios == pytest.approx([together / min(ingest, network), doubled / together], abs=0.02, rel=0.02)
