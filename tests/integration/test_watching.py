"""What a run tells those who watch it: Ray's metrics, JSON lines, an alert in Prometheus; and a stalled run's end."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline import storage
from pipeline.run.staging import Stage
from tests.conftest import REPOSITORY, RayCluster, free_ports
from tests.infra.test_monitoring import RAYS
from tests.integration.test_geotag import codes
from tests.support.hosts import wait_until
from tests.support.photo_samples import china_image, china_jpeg, encode

GAUGES: dict[str, Any] = {
    "ray_graticule_photos_planned": 300,
    "ray_graticule_silence_limit_seconds": 90,
    "ray_graticule_lease_age_seconds": ANY,
}
"""What the stalled run says of itself."""
SILENCE = "ray_graticule_silent_seconds"
Samples = dict[tuple[str, ...], float]
_OF_RAYS_CORE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ [IWEC] \d+ \d+\] \w+\.cc:")
"""Ray's native code writes to standard error, past every logger."""
_METRICS_LIMIT_S = 60
"""Processes report every ten seconds."""


def start(cluster: RayCluster, log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Start the job; what it says goes to `log`."""
    command = [sys.executable, "-m", "jobs.geotag_archive", *map(str, arguments)]
    with open(log, "wb") as sink:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=cluster.environment, stdout=subprocess.DEVNULL, stderr=sink
        )


def discovered(cluster: RayCluster) -> Path:
    """Where Ray names its agents to Prometheus, once they are there."""
    path = cluster.folder / "prom_metrics_service_discovery.json"
    wait_until(lambda: path.exists() and json.loads(path.read_text())[0]["targets"] != [], "Ray names no agent")
    return path


def scrape(cluster: RayCluster, name: str, *labels: str) -> Samples:
    """Sum a metric's samples over all processes, by the values of labels."""
    found: Samples = collections.defaultdict(float)
    for target in json.loads(discovered(cluster).read_text())[0]["targets"]:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            lines = [
                line for line in answer.read().decode().splitlines() if line.startswith(name)
            ]  # all would take long
            for family in text_string_to_metric_families("\n".join(lines) + "\n"):
                for sample in family.samples:
                    if sample.name == name:
                        found[tuple(sample.labels.get(label, "") for label in labels)] += sample.value
    return dict(found)


def of_run(cluster: RayCluster, name: str, run_id: str, *labels: str) -> Samples:
    """The same, of one run."""
    return {key[1:]: value for key, value in scrape(cluster, name, "run_id", *labels).items() if key[0] == run_id}


@pytest.mark.ray
def test_metrics_agree_with_the_run_record(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photos, output, log = tmp_path / "photos", f"{tmp_path}/out", tmp_path / "log"
    photos.mkdir()
    sizes = 0
    for index in range(40):
        name, data = photos / f"{index}.jpg", china_jpeg() + b"%d" % index
        name.write_bytes(data)
        sizes += len(data)
    for name, data in (
        ("copy 1.jpg", china_jpeg() + b"7"),
        ("copy 2.jpg", china_jpeg() + b"7"),
        ("empty.jpg", b""),
        ("cut.jpg", china_jpeg()[:50_000]),
        ("cut too.jpg", china_jpeg()[:40_000]),
        ("no photo.jpg", b"This is text.\n"),
    ):
        (photos / name).write_bytes(data)
        sizes += len(data)
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint, "--run-id", "watched")
    run = start(ray_cluster, log, *arguments, "--log-format", "json", "--cluster.rows-per-part", 8)
    assert run.wait(180) == 0, log.read_text()

    def photos_counted() -> Samples:
        return of_run(ray_cluster, "ray_graticule_photos_total", "watched", "status", "error_code")

    record = json.loads(storage.read_bytes(f"{output}/runs/watched.json"))["photos"]
    assert (record["located"], record["copies"]) == (42, 2)
    wanted = {("failed", code): count for code, count in record["failed_by_code"].items()}
    wanted[("located", "")] = record["located"]
    wait_until(lambda: sum(photos_counted().values()) >= 46, "photos are not counted", _METRICS_LIMIT_S)
    assert photos_counted() == wanted

    def total(name: str, *labels: str) -> Samples:
        return of_run(ray_cluster, f"ray_graticule_{name}", "watched", *labels)

    wait_until(lambda: total("photos_read_total") == {(): 46}, "reads are not counted", _METRICS_LIMIT_S)
    assert total("fetched_bytes_total") == {(): sizes}
    wait_until(lambda: total("engine_photos_total") == {(): 40}, "the engine is not counted", _METRICS_LIMIT_S)
    assert total("engine_slots_total")[()] >= 40
    assert 0 < total("engine_busy_seconds_total")[()] < 100
    timed = total("stage_seconds_count", "stage")
    assert timed[("fetch",)] == 46
    assert timed[("decode",)] == 44  # what is empty, or says that it is text, is not decoded
    assert timed.keys() == {("fetch",), ("decode",), ("engine",), ("staging",)}
    written = [line for line in log.read_text().splitlines() if not _OF_RAYS_CORE.match(line)]
    lines = [json.loads(line) for line in written]
    assert {line["stage"] for line in lines} == {"driver"}
    assert lines[-1]["run_id"] == "watched"
    files = (ray_cluster.folder / "session_latest" / "logs").glob("worker-*.err")
    told = [line for path in files for line in path.read_text().splitlines() if '"run_id": "watched"' in line]
    engine = next(json.loads(line) for line in told if "was ready after" in line)
    assert (engine["stage"], engine["level"], engine["logger"]) == ("locate", "INFO", "pipeline.cluster.dataflow")
    assert engine.keys() == {"time", "level", "logger", "message", "run_id", "stage", "node"}


@pytest.fixture
def prometheus(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[str]:
    """Address of a Prometheus that watches the cluster by our files, in a hurry."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Debian's package prometheus")
    folder = REPOSITORY / "infra" / "monitoring"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    # A page after many runs takes over a second to fetch, and an interval is the fetch's time limit, too.
    config["global"] = {"scrape_interval": "5s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(discovered(ray_cluster))]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = yaml.safe_load((folder / "alerts.yml").read_text())
    (rule,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "GraticuleNoProgress")
    rule["expr"], count = re.subn(r"> 600$", "> 10", rule["expr"])
    assert count == 1
    rule["for"] = "2s"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    (port,) = free_ports(1)
    options = {
        "config.file": tmp_path / "prometheus.yml",
        "storage.tsdb.path": tmp_path / "tsdb",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with open(tmp_path / "prometheus.log", "wb") as log:
        server = subprocess.Popen(["prometheus", *(f"--{name}={value}" for name, value in options.items())], stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    """Ask Prometheus; nothing while it does not answer."""
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result
    return []


def workers(cluster: RayCluster) -> list[int]:
    """Every process of the cluster that works on photos; a node whose agents are gone ends itself."""
    return [
        pid
        for pid, title in cluster.processes().items()
        if (title.startswith("ray::") and "Agent" not in title) or "pipeline.read.isolation" in title
    ]


@pytest.mark.ray
def test_a_stalled_run_is_noticed_ends_by_itself_and_is_resumed(
    ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path, prometheus: str
) -> None:
    photos, output, log = tmp_path / "photos", f"{tmp_path}/out", tmp_path / "log"
    photos.mkdir()
    jpeg = encode(china_image().resize((2400, 1600)), "jpeg")
    for index in range(300):
        (photos / f"{index}.jpg").write_bytes(jpeg + b"%d" % index)
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint, "--cluster.rows-per-part", 16)
    stage = Stage(output, "stalled")
    run = start(ray_cluster, log, *arguments, "--run-id", "stalled", "--max-silence-minutes", 1.5)
    stopped: list[int] = []
    try:
        wait_until(lambda: bool(stage.row_files()) or run.poll() is not None, "nothing is staged")
        stopped = workers(ray_cluster)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert run.poll() is None, log.read_text()
        firing = 'ALERTS{alertname="GraticuleNoProgress",alertstate="firing",run_id="stalled"}'
        wait_until(lambda: ask(prometheus, firing) != [] or run.poll() is not None, "nothing fires")
        scrapes = {name: ask(prometheus, f"{name}[5m]") for name in ("up", "scrape_duration_seconds", SILENCE)}
        assert run.poll() is None, f"{scrapes}\n{log.read_text()}"
        asked = {name: ask(prometheus, f"max({name})") for name in [*GAUGES, *RAYS]}
        values = {name: float(found[0]["value"][1]) for name, found in asked.items() if found}
        assert values.keys() == asked.keys(), "what alerts and dashboard ask for is not there"
        assert {name: values[name] for name in GAUGES} == GAUGES
        assert 0 <= values["ray_graticule_lease_age_seconds"] < 60
        assert run.wait(180) == 1
    finally:
        run.kill()
        run.wait()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    told = log.read_text()
    assert "no photo was read, located or staged for 1.5 minutes" in told
    assert re.search(r"\d+ of 300 photos are staged; 1 nodes are alive, \d", told), told
    assert "it does not stop" not in told
    assert json.loads(storage.read_bytes(f"{output}/lease.json"))["process"] == ""
    assert 0 < stage.staged_count() < 300
    run = start(ray_cluster, log, *arguments)
    assert run.wait(180) == 0, log.read_text()
    assert "taking up unfinished run stalled" in log.read_text()
    assert list(codes(output).values()) == [None] * 300
