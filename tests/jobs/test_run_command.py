"""How a command ends when it is told to stop: by a last word and exit code 1, wherever that finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

STOPPED_IN_DUCKDB = """
import datetime as dt, os, signal, threading
from dataclasses import dataclass

import duckdb
import fsspec

from jobs import run_command
from pipeline.cluster import ray_cluster
from pipeline.storage.shared_file import SharedFile


class Stopping(fsspec.AbstractFileSystem):
    # A store whose objects are asked for as the process is told to stop.
    protocol = "stopping"
    data = b"number\\n1\\n"

    def info(self, path, **_):
        return {"name": path, "size": len(self.data), "type": "file"}

    def modified(self, path):
        return dt.datetime(2026, 1, 1)

    def glob(self, path, **_):
        return [path]

    def _open(self, path, *_, **__):
        return SharedFile(self._range)

    def _range(self, start, size):
        print("reading", flush=True)
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGTERM)
        return self.data[start : start + size]


@dataclass(frozen=True)
class Settings:
    ray: bool = False


def run(settings):
    if settings.ray:
        ray_cluster.start_ray()
    connection = duckdb.connect()
    connection.register_filesystem(Stopping())
    print(connection.sql("FROM read_csv('stopping://it')").fetchall())
    return 0


run_command(Settings, run)
"""


@pytest.mark.parametrize("options", [(), pytest.param(("--ray",), marks=pytest.mark.ray)], ids=["alone", "beside Ray"])
def test_a_stop_that_finds_duckdb_reading_is_no_crash(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", STOPPED_IN_DUCKDB, *options]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert ended.stdout.startswith("reading\n"), ended.stderr
    assert ended.returncode == 1
    assert "stopped: run the same command again to go on where it stopped" in ended.stderr
    assert "Traceback" not in ended.stderr


REFUSED = """
import resource, sys
from dataclasses import dataclass
from pathlib import Path

import duckdb

from jobs import run_command
from pipeline import storage
from pipeline.storage.clients import AskerRefusedError


@dataclass(frozen=True)
class Settings:
    case: str
    folder: str


def run(settings):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    if settings.case == "put":
        storage.write_bytes(f"{settings.folder}/rows", bytes(10_000))
    elif settings.case == "duckdb":
        connection = duckdb.connect(f"{settings.folder}/plan.duckdb")
        connection.execute("CREATE TABLE numbers AS FROM range(1000000)")
    elif settings.case == "store":
        raise AskerRefusedError("ExpiredToken, 403 Forbidden: s3://bucket/rows")
    elif settings.case == "missing":
        storage.read_bytes(f"{settings.folder}/missing")
    else:
        raise KeyError("a bug")
    return 0


run_command(Settings, run)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("put", "File too large: {folder}/rows. Raise the limit of a file's size (ulimit -f)"),
        ("duckdb", 'Could not write file "{folder}/plan.duckdb"'),
        ("store", "ExpiredToken, 403 Forbidden: s3://bucket/rows. See that the store is there and takes the"),
    ],
)
def test_what_a_disk_or_store_refuses_is_one_line(tmp_path: Path, case: str, said: str) -> None:
    ended = refused(tmp_path, case)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert said.format(folder=tmp_path) in ended.stderr
    assert "run the same command again" in ended.stderr


@pytest.mark.parametrize("case", ["missing", "bug"])
def test_a_bug_keeps_its_traceback(tmp_path: Path, case: str) -> None:
    ended = refused(tmp_path, case)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def refused(folder: Path, case: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSED, "--case", case, "--folder", str(folder)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100)
