"""How a command ends when it is told to stop: by a last word and exit code 1, wherever that finds it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

STOPPED_IN_DUCKDB = """
import datetime as dt, os, signal, threading
from dataclasses import dataclass

import duckdb
import fsspec

from jobs import run_command
from pipeline import cluster
from pipeline.shared_file import SharedFile


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
        cluster.start_ray()
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
