"""Local paths where there is no cluster of several nodes (`tests/integration/test_three_hosts.py` has one), and a start
that hangs (`tests/integration/test_hung_start.py` has a real one)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline.cluster.flow import NamedPath
from pipeline.cluster.ray_cluster import _witness, check_paths


def test_nobody_is_asked_where_there_is_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_paths([NamedPath("--output", str(tmp_path))], is_shared=False, output=str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.1:6379")  # nobody is there
    check_paths([NamedPath("--output", "s3://bucket/out")], is_shared=False, output="s3://bucket/out")
    assert not ray.is_initialized()


def test_what_a_node_sees_at_a_path(tmp_path: Path) -> None:
    photo = tmp_path / "ü 1.jpg"
    photo.write_bytes(b"12345")
    assert _witness(str(photo)) == _witness(photo.as_uri()) == "a file of 5 bytes"
    assert _witness(str(tmp_path)) == _witness(f"{tmp_path}/*.tar") == "a folder"
    assert _witness(f"{tmp_path}/missing") == "nothing"


def test_a_start_that_hangs_with_pythons_lock_in_hand_ends_with_1() -> None:
    """As `ray.init` does where a process of the node dies early: no thread of Python gets its turn."""
    script = (
        "import ctypes; from pipeline.cluster import ray_cluster as cluster; cluster._LOCKED_LIMIT_S = 1.0\n"
        "with cluster._process_ends_after(1.0, 'it did not start'): ctypes.PyDLL(None).sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert ended.returncode == 1
    assert "Timeout (0:00:02)!" in ended.stderr
    assert "line 2 in <module>" in ended.stderr
