"""A disk that is full ends the run by one line; with room again the same command goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.run.verify import verify_output
from tests.conftest import RayCluster
from tests.integration.test_geotag import codes, geotag
from tests.support.photo_samples import china_jpeg

Resize = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A disk of its own, so small that a plan goes on it but no answers; and what gives it another size."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20k", "full", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk may be mounted here: {mounted.stderr.strip()}")
    yield (
        folder,
        lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None,
    )
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.ray
def test_a_full_disk_is_one_line_and_no_photo_is_lost(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path, disk: tuple[Path, Resize]
) -> None:
    folder, resize = disk
    uris = [f"{tmp_path}/photos/{index}.jpg" for index in range(9)]
    for uri in uris:
        storage.write_bytes(uri, china_jpeg() + uri.encode())
    output = f"{folder}/out"
    arguments = ("--photos", f"{tmp_path}/photos", "--output", output, "--model", tiny_checkpoint)
    full = geotag(anywhere.environment, *arguments)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    (said,) = (line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert said.startswith(f"error: No space left on device: {output}/staging/")
    assert "0 photos are staged and stay. Free some room there, and run the same command again" in said
    resize("size=10m")
    again = geotag(anywhere.environment, *arguments)
    assert again.returncode == 0, again.stderr
    assert codes(output) == dict.fromkeys(uris)
    assert verify_output(output) == []

    resize("ro")
    storage.write_bytes(f"{tmp_path}/photos/new.jpg", china_jpeg())
    read_only = geotag(anywhere.environment, *arguments)
    assert read_only.returncode == 2
    (said,) = (line for line in read_only.stderr.splitlines() if line.startswith("error: "))
    assert said.startswith(f"error: can't write to {output}: [Errno 30] Read-only file system")
