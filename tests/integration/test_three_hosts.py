"""Three machines that share nothing but a network and an object store: a head without work, and two that work.

They are Linux namespaces (see `tests.support.hosts`). Jobs come from a fourth place, through the dashboard's address,
with the token; the power of one machine fails half-way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published.catalog import Catalog
from pipeline.run.staging import Stage
from pipeline.run.verify import verify_output
from tests.support.hosts import REPOSITORY, Host, Switch, assert_dashboard, start_head, start_worker, wait_until
from tests.support.photo_samples import china_image, encode
from training.fit.journal import read_journal
from training.globe.synthetic_globe import Globe, GlobeConfig, write_archive

PHOTOS = 384
STEPS = 12
SHARED = Path("/mnt")
"""A file system that every host has mounted."""
ASK = """
import ray, sys
from pipeline.cluster.flow import NamedPath
from pipeline.cluster.ray_cluster import Driver, check_paths
for output, photos in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        check_paths([NamedPath("--output", output), NamedPath("--photos", photos)], True, output)
        print(output, photos, "are seen")
    except ValueError as error:
        print(error)
driver = Driver.here(uses_local_paths=True)
driver.check()
try:
    ray.get(ray.remote(num_cpus=1)(lambda: driver.check()).remote())  # which this node has not
except RuntimeError as error:
    print(str(error).splitlines()[-1])
"""
pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(900)]


@dataclass
class Site:
    """The machines, and what a user elsewhere needs to submit a job."""

    switch: Switch
    folder: Path
    environment: dict[str, str]
    head: Host
    workers: list[Host]
    address: str

    def add_worker(self, number: int, instead: dict[Path, Path] | None = None) -> Host:
        host = self.switch.host(
            number, self.folder, self.environment, {SHARED: self.folder / "shared"} | (instead or {})
        )
        start_worker(host, self.address)
        self.workers.append(host)
        return host

    def submit(self, *entrypoint: str) -> subprocess.Popen[str]:
        """Submit a job from outside, as README says."""
        assert_dashboard(self.head)
        command = [str(Path(sys.executable).parent / "ray"), "job", "submit"]
        command += ["--address", f"http://{self.head.address}:8265", "--working-dir", ".", "--", "python", *entrypoint]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finished(self, job: subprocess.Popen[str]) -> str:
        """Wait for a job's end and return its output."""
        out, _ = job.communicate(timeout=400)
        assert job.returncode == 0, out[-6000:]
        return out


@pytest.fixture(scope="module")
def site(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A head and two workers; skips where there are no namespaces."""
    store = urllib.parse.urlsplit(s3_server)
    if store.scheme != "http":
        pytest.skip("the hosts reach the S3 server through a forwarder, which speaks no TLS")
    folder = tmp_path_factory.mktemp("hosts")
    kept = ("LANG", "LC_ALL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A machine whose plug is pulled says nothing: the head is to notice within seconds, not a minute, and whoever
        # waits for an answer from there after half a minute, not seven.
        "RAY_grpc_client_keepalive_time_ms": "15000",
        "RAY_grpc_client_keepalive_timeout_ms": "10000",
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
    }
    switch = Switch()
    try:
        switch.__enter__()
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        environment["AWS_ENDPOINT_URL"] = f"http://{switch.network}.1:{store.port}"
        switch.forward(store.port or 80, (store.hostname or "", store.port or 80))
        (folder / "shared").mkdir()
        head = switch.host(2, folder, environment, {SHARED: folder / "shared"})
        found = Site(switch, folder, environment, head, [], start_head(head))
        for number in (3, 4):
            found.add_worker(number)
        yield found
    finally:
        switch.__exit__()


def test_a_local_path_is_refused(site: Site) -> None:
    """Nobody has written anything yet, and there is no model to be had: the path is what counts."""
    job = site.submit("jobs/geotag_archive.py", "--photos", "s3://a/photos", "--output", "/tmp/answers")
    out, _ = job.communicate(timeout=240)
    assert job.returncode != 0
    assert "error: --output /tmp/answers: the cluster has 3 nodes, and a local path is another place on each" in out
    assert "--shared-filesystem if every node has this path mounted" in out
    assert "exit code 2" in out


def test_a_path_that_is_said_to_be_shared_is_looked_for_on_every_node(site: Site) -> None:
    """/mnt is shared; /tmp is everybody's own, and only the head has a photo there."""
    (site.folder / "shared" / "photos").mkdir()
    (site.folder / "host2" / "tmp" / "1.jpg").write_bytes(b"12345")
    site.head.environment["RAY_ADDRESS"] = site.address
    pairs = [("/mnt/out", "/mnt/photos"), ("/tmp/out", "/mnt/photos"), ("/mnt/out", "/tmp/1.jpg")]
    code, out = site.head.run([sys.executable, "-c", ASK, *(path for pair in pairs for path in pair)])
    assert code == 0, out
    assert "/mnt/out /mnt/photos are seen" in out
    assert re.search(r"^--output /tmp/out: is not shared with the node 10\.\S+\.[34]: ", out, re.M), out
    sees = "the node 10\\.\\S+\\.[34] sees nothing there, and this one a file of 5 bytes"
    assert re.search(f"^--photos /tmp/1.jpg: {sees}: mount the same", out, re.M), out
    assert re.search(r"the node 10\.\S+\.[34] has joined the cluster, and does not see the local paths", out), out
    assert list((site.folder / "shared" / "out").iterdir()) == []  # the probes are gone


def test_an_archive_though_a_machine_loses_its_power(site: Site, s3_bucket: str, tiny_checkpoint: Path) -> None:
    root = f"s3://{s3_bucket}/hosts"
    jpeg = encode(china_image().resize((800, 600)), "jpeg")
    for index in range(PHOTOS):
        storage.write_bytes(f"{root}/photos/{index:03}.jpg", jpeg + b"%d" % index)
    for path in tiny_checkpoint.iterdir():
        storage.write_bytes(f"{root}/model/{path.name}", path.read_bytes())
    options = f"--photos {root}/photos --output {root}/out --model {root}/model --run-id r1 --cluster.rows-per-part 16"
    options += " --engine torch"  # each host would have to compile another one for itself
    job = site.submit("jobs/geotag_archive.py", *options.split())
    try:
        stage = Stage(f"{root}/out", "r1")
        wait_until(lambda: bool(stage.row_files()) or job.poll() is not None, "no photo was staged")
        assert job.poll() is None, job.communicate()
        for host in site.workers:  # an engine takes so little of a node that two could lie on one
            assert host.processes("_LocatorActor") == 1
        lost = site.workers.pop()
        lost.cut_off()
        staged = stage.staged_count()
        assert 0 < staged < PHOTOS
        out = site.finished(job)
    finally:
        job.kill()
        job.wait()
    assert f"{PHOTOS} photos processed" in out
    catalog = Catalog(f"{root}/out")
    counted = "count(*), count(DISTINCT photo_id), count(*) FILTER (status <> 'failed')"
    assert catalog.sql(f"SELECT {counted} FROM history").fetchall() == [(PHOTOS,) * 3]
    assert verify_output(f"{root}/out") == []
    assert not list(storage.list_files(f"{root}/out/staging"))


@pytest.fixture(scope="module")
def other_worker(site: Site) -> Host:
    """A machine that comes new, with other code of its own."""
    changed = site.folder / "pipeline"
    shutil.copytree(REPOSITORY / "pipeline", changed)
    with open(changed / "schema.py", "a") as file:
        file.write("# a version of its own\n")
    return site.add_worker(5, {REPOSITORY / "pipeline": changed})


@pytest.mark.soak
@pytest.mark.usefixtures("other_worker")
def test_a_training_on_two_machines(site: Site, s3_bucket: str) -> None:
    """One of them with other code of its own: the job brings its code along."""
    while len(site.workers) > 2:  # run by itself: nobody has lost power yet
        site.workers.pop(0).cut_off()
    root = f"s3://{s3_bucket}/hosts-training"
    manifest = write_archive(
        Globe(GlobeConfig(climates=3, countries=2, towns=2)), f"{root}/globe", {"train": 16, "validation": 4}
    )
    options = f"--manifest {manifest} --output {root}/model --network tiny --preset hundreds --log-steps 1"
    options += " --snapshot-steps 5 --recipe.epochs 1 --recipe.batch-size 16 --recipe.learning-rate 0.003"
    job = site.submit("jobs/train.py", *options.split(), "--num-workers", "2", "--workers.cpus-each", "3")
    try:
        for host in site.workers:
            wait_until(lambda host=host: host.processes("RayTrainWorker") > 0 or job.poll() is not None, "no worker")
            assert job.poll() is None, job.communicate()
        out = site.finished(job)
    finally:
        job.kill()
        job.wait()
    assert "192 photos drawn (1.0 epochs)" in out
    steps = [record for record in read_journal(f"{root}/model") if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert {record["workers"] for record in steps} == {2}
    assert storage.exists(f"{root}/model/config.json")


def test_other_code_is_refused(site: Site, other_worker: Host, s3_bucket: str) -> None:
    """A driver on the head that brings nothing along meets the node's own code."""
    root = f"s3://{s3_bucket}/hosts-code"
    storage.write_bytes(f"{root}/photos/empty.jpg", b"")
    command = [sys.executable, "-m", "jobs.geotag_archive", "--photos", f"{root}/photos", "--output", f"{root}/out"]
    site.head.environment["RAY_ADDRESS"] = site.address
    code, out = site.head.run(command)
    assert code == 1, out
    assert re.search(
        rf"^error: the node {re.escape(other_worker.address)} runs other code than this run's driver", out, re.M
    )
    assert "Traceback" not in out
    # The lease was given back: the next run does not wait.
    assert b'"process": ""' in storage.read_bytes(f"{root}/out/lease.json")
