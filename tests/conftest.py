"""What tests of every package share: a tiny checkpoint, an S3 bucket, a Ray cluster. None of it starts unasked."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoint import Checkpoint
from model.engines import openvino_engine  # noqa: F401 - before any test imports openvino: it silences its telemetry
from model.geodecoder import GeoDecoder, tiny
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import Locator, LocatorSettings
from pipeline.published.records import RunRecord
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.run.plan import make_plan
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage
from pipeline.storage import clients
from tests.support.photo_samples import china_jpeg, flower_jpeg
from tests.support.processes import processes_with
from training.hierarchy import PartitionConfig, build_hierarchy

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole checkpoint: a tiny network with random weights over a small world. Do not change it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def write_tiny_checkpoint(folder: Path) -> Path:
    """Write the tiny checkpoint, the same each time, and return its folder."""
    rng = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(rng.uniform(-1, 1, 3000))), rng.uniform(-180, 180, 3000)
    hierarchy = build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(tau_min=2, tau_max=(400, 100, 20)))
    torch.manual_seed(0)
    Checkpoint.save(folder, GeoDecoder(tiny(), hierarchy.class_counts), hierarchy, name="tiny")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The photo collection beside the checkout, where there is one."""
    if not (SHARED / "data" / "photos").is_dir():
        pytest.skip(f"no photo collection at {SHARED / 'data'}")
    return SHARED / "data"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of the S3 server that the environment names, else of moto's, which the environment then names."""
    with pytest.MonkeyPatch.context() as environment, contextlib.ExitStack() as cleanup:
        if not os.environ.get("AWS_ENDPOINT_URL"):
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            cleanup.callback(server.stop)
            host, port = server.get_host_and_port()
            environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            environment.setenv("AWS_ACCESS_KEY_ID", "testing")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            environment.setenv("AWS_REGION", "us-east-1")
        forget_s3_clients()
        yield os.environ["AWS_ENDPOINT_URL"]
    forget_s3_clients()


@pytest.fixture(scope="session")
def s3_bucket(s3_server: str) -> Iterator[str]:
    """Name of a fresh bucket on a real S3 server; each test takes a prefix of its own in it."""
    with fresh_bucket() as name:
        yield name


@contextlib.contextmanager
def fresh_bucket() -> Iterator[str]:
    """Make a bucket on the environment's S3 server, yield its name, and remove it with all that is in it."""
    name = f"graticule-test-{uuid.uuid4().hex[:12]}"
    client = boto3.Session().client("s3", region_name=os.environ.get("AWS_REGION", "us-east-1"))
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for item in page.get("Contents", ()):
                client.delete_object(Bucket=name, Key=item["Key"])
        client.delete_bucket(Bucket=name)


def forget_s3_clients() -> None:
    """Make `storage` read the environment again."""
    clients.store.cache_clear()
    clients.s3_client.cache_clear()


def published_output(output: Path, checkpoint_folder: Path) -> None:
    """Publish two photos and an empty file below `output`, as the job does but in this process, without Ray."""
    photos = output.parent / f"{output.name}-photos"
    for name, data in (("china.jpg", china_jpeg()), ("flower.jpg", flower_jpeg()), ("empty.jpg", b"")):
        storage.write_bytes(str(photos / name), data)
    publish_photos(photos, checkpoint_folder, output)


def publish_photos(photos: Path, checkpoint_folder: Path, output: Path) -> None:
    """Publish the answers for a folder's photos, as the job does but in this process, without Ray."""
    checkpoint, stage = Checkpoint.load(checkpoint_folder), Stage(str(output), "r1")
    plan = make_plan([str(photos)], stage, [], checkpoint.model_id, retry_failed=False, limit=None)
    read = Reader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
    locate = Locator(LocatorSettings(str(checkpoint_folder), checkpoint.model_id, stage.run_id, engine="torch"))
    for file in plan.files:
        stage.put_rows(locate(read(pq.read_table(file, schema=schema.MANIFEST))))
    published = publish(stage)
    record = {
        "run_id": stage.run_id,
        "finished_at": dt.datetime.now(dt.UTC).isoformat(),
        "model_id": checkpoint.model_id,
        "model_uri": str(checkpoint_folder),
        "sources": [str(photos)],
        "photos": {
            "located": published.located,
            "undecided": published.undecided,
            "failed": published.failed,
        },
        "files": [asdict(file) for file in published.files],
    }
    put_record(stage, RunRecord.from_json(record))


@dataclass(frozen=True)
class RayCluster:
    """A running cluster and the environment in which a job finds it; no address: this machine alone does the work."""

    address: str
    dashboard_url: str
    environment: dict[str, str]
    folder: Path = Path("/nowhere")
    """Where Ray keeps its logs, and names its agents to Prometheus."""

    def processes(self) -> dict[int, str]:
        """Return what runs of this cluster, drivers too: each process by its number, with its command line."""
        return processes_with(f"RAY_AUTH_TOKEN_PATH={self.environment['RAY_AUTH_TOKEN_PATH']}")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh XDG_CACHE_HOME for clusters, one for all of pytest's processes: compiling an engine takes a core 15 s."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str, cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """One head node in processes of its own, as `ray start --head` makes it, token authentication and all."""
    # Not under pytest's folder: the path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    # Else the first start would write a token into the home folder of whoever runs the tests.
    environment = os.environ | ray_environment(tmp_path_factory.mktemp("token") / "token")
    environment["XDG_CACHE_HOME"] = str(cache_home)
    # As in an activated environment: the `python` of a submitted job is the one that the cluster's shell would find.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("RAY_ADDRESS", None)
    port, dashboard_port, client_port, agent_port = free_ports(4)
    options = {
        "port": port,
        "dashboard-port": dashboard_port,
        "ray-client-server-port": client_port,
        "dashboard-agent-listen-port": agent_port,
        "num-cpus": 4,
        "object-store-memory": 500_000_000,
        "temp-dir": folder,
        # Any free port, as each of pytest's processes has a cluster of its own and the default is a range.
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--disable-usage-stats"]
    log = open(folder / "start.log", "wb")  # noqa: SIM115 - open as long as the process is
    # `ray stop` would end every cluster of the machine: this one is a process group, and ends as one.
    head = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait_for_port(dashboard_port, head, folder / "start.log")
        address = f"127.0.0.1:{port}"
        yield RayCluster(address, f"http://127.0.0.1:{dashboard_port}", environment | {"RAY_ADDRESS": address}, folder)
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def this_machine(s3_server: str, cache_home: Path, tmp_path: Path) -> RayCluster:
    """No cluster: a job that is started in its environment does its work by itself."""
    environment = os.environ | ray_environment(tmp_path / "token") | {"XDG_CACHE_HOME": str(cache_home)}
    environment.pop("RAY_ADDRESS", None)
    return RayCluster("", "", environment)


@pytest.fixture(params=["local", "ray"])
def anywhere(request: pytest.FixtureRequest) -> RayCluster:
    """Where jobs do their work: on this machine alone, then on a cluster."""
    found: RayCluster = request.getfixturevalue("this_machine" if request.param == "local" else "ray_cluster")
    return found


def ray_environment(token_path: Path) -> dict[str, str]:
    """Return what a Ray of our own needs in its environment: its token, and no telemetry."""
    token_path.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
    token_path.chmod(0o600)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path), "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 90) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.2)
    pytest.fail(f"ray start --head did not come up: {log.read_text(errors='replace')[-2000:]}")
