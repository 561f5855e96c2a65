"""What a run is trusted with stays in its environment: in no log, record, answer, file of Ray's or process list."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipeline import storage
from tests.conftest import REPOSITORY, forget_s3_clients, ray_environment
from tests.support.photo_samples import china_jpeg

SECRETS = {
    name: f"{name.lower().replace('_', '-')}-{uuid.uuid4().hex}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "GRATICULE_WEBHOOK")
} | {"AWS_ACCESS_KEY_ID": f"AKIA{uuid.uuid4().hex[:16].upper()}"}
SECRETS["GRATICULE_WEBHOOK"] = f"http://127.0.0.1:9/{SECRETS['GRATICULE_WEBHOOK']}"  # nobody listens: that is logged


@pytest.fixture
def open_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that takes any key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name, value in SECRETS.items():
        if name.startswith("AWS"):
            monkeypatch.setenv(name, value)
    forget_s3_clients()
    yield
    server.stop()
    forget_s3_clients()


@contextlib.contextmanager
def process_list() -> Iterator[set[bytes]]:
    """Every command line that any process of this machine has meanwhile."""
    seen: set[bytes] = set()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        finished.set()
        watcher.join()


def told(data: bytes) -> list[str]:
    """The secrets that are in it."""
    secrets = SECRETS | {"GRATICULE_WEBHOOK": SECRETS["GRATICULE_WEBHOOK"].rpartition("/")[2]}
    return [name for name, value in secrets.items() if value.encode() in data]


def text_of(data: bytes) -> bytes:
    """What is stored, uncompressed where it is Parquet."""
    if data[:4] != b"PAR1":
        return data
    file = pq.ParquetFile(pa.BufferReader(data))
    return f"{file.read().to_pylist()} {file.schema_arrow.metadata}".encode()


@pytest.mark.ray
@pytest.mark.usefixtures("open_s3")
def test_secrets_stay_where_they_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket="archive")
    storage.write_bytes("s3://archive/photos/one.jpg", china_jpeg())
    storage.write_bytes("s3://archive/photos.csv", b"uri\ns3://archive/photos/one.jpg\ns3://no-such-bucket/two.jpg\n")
    # Not under pytest's folder: the path of a Unix socket has at most 107 bytes.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    environment = os.environ | ray_environment(tmp_path / "token") | SECRETS
    environment |= {"RAY_TMPDIR": str(ray_folder), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "jobs.nightly", "--photos", "s3://archive/photos.csv"]
    command += [
        "--output",
        "s3://archive/out",
        "--model",
        str(tiny_checkpoint),
        "--engine",
        "torch",
        "--executor",
        "ray",
    ]
    command += ["--summary", str(tmp_path / "summary.txt")]
    try:
        with process_list() as command_lines:
            start_s = time.monotonic()
            run = subprocess.run(
                command, cwd=REPOSITORY, env=environment, capture_output=True, check=False, timeout=400
            )
        assert run.returncode == 0, run.stderr.decode()
        assert b"could not be posted" in run.stderr
        assert b"fetch_failed" in run.stdout

        assert told(run.stdout + run.stderr) == []
        ours = [line for line in command_lines if b"jobs.nightly" in line or b"raylet" in line]
        assert len(ours) >= 2, f"only {len(command_lines)} processes were seen in {time.monotonic() - start_s:.0f} s"
        assert {line: told(line) for line in command_lines if told(line)} == {}

        objects = {entry.uri: storage.read_bytes(entry.uri) for entry in storage.list_files("s3://archive/out")}
        assert [uri for uri in objects if uri.endswith(".parquet")]
        assert [uri for uri in objects if "/runs/" in uri]
        assert [uri for uri in objects if "/nights/" in uri]
        assert {uri: told(text_of(data)) for uri, data in objects.items() if told(text_of(data))} == {}

        written = [path for folder in (ray_folder, tmp_path) for path in folder.rglob("*") if path.is_file()]
        assert any(path.name.startswith("raylet") for path in written)  # Ray's logs are among them
        assert {str(path): told(path.read_bytes()) for path in written if told(path.read_bytes())} == {}
        assert told(b"\0".join(text_of(data) for data in objects.values())) == []
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_the_search_would_find_them(tmp_path: Path) -> None:
    table = pa.table({"error_message": [f"no answer from {SECRETS['AWS_SESSION_TOKEN']}"] * 100})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    assert told(text_of((tmp_path / "rows.parquet").read_bytes())) == ["AWS_SESSION_TOKEN"]
    child = [sys.executable, "-c", "import time; time.sleep(2)", SECRETS["RAY_AUTH_TOKEN"]]
    with process_list() as command_lines:
        subprocess.run(child, check=True)
    assert ["RAY_AUTH_TOKEN"] in [told(line) for line in command_lines]
