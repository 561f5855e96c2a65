"""Films, discs and bombs beside photos, through the whole job on a cluster: a row each, and no process grows large."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from tests.conftest import RayCluster
from tests.integration.test_geotag import codes, geotag
from tests.pipeline.read.test_budget import write_flood, zip_bomb
from tests.pipeline.read.test_decoder_memory import BOMBS, resident_bytes
from tests.support.photo_samples import china_jpeg

MOST_BYTES = 1_600_000_000


@pytest.mark.ray
def test_every_healthy_photo_is_answered_and_the_job_ends(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    right = {f"{photos}/{name}": code for name, code in write_flood(photos).items()}
    for name, make in BOMBS.items():
        (photos / f"{name} bomb").write_bytes(make())
    # One larger than the budget whose beginning is a photo's, so that all of it is read; it ends in nothing.
    with (photos / "long.jpg").open("wb") as file:
        file.write(china_jpeg()[:-2])
        file.truncate(400 << 20)
    (tmp_path / "bomb.zip").write_bytes(zip_bomb(64, china_jpeg()[:60_000], 500 << 20))
    right |= {f"{tmp_path}/bomb.zip#{index:04d}.jpg": "corrupt" for index in range(64)}
    peaks: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for pid, title in anywhere.processes().items():
                with contextlib.suppress(OSError, ValueError):
                    peaks[title] = max(peaks.get(title, 0), resident_bytes(pid, "VmHWM"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        arguments = ["--photos", photos, "--photos", tmp_path / "bomb.zip", "--output", output]
        arguments += ["--model", tiny_checkpoint, "--max-failed-fraction", 1]
        answer = geotag(anywhere.environment, *arguments, timeout_s=300)
    finally:
        done.set()
        watcher.join()
    assert answer.returncode == 0, answer.stderr
    found = codes(output)
    others = {uri: code for uri, code in found.items() if uri not in right}
    assert {uri: code for uri, code in found.items() if uri in right} == right
    assert set(others) == {f"{photos}/{name} bomb" for name in BOMBS} | {f"{photos}/long.jpg"}
    assert set(others.values()) <= {"too_large", "truncated", "corrupt"}
    assert any("pipeline.read.isolation" in title for title in peaks), "no decoder was watched"
    assert {title: peak for title, peak in peaks.items() if peak > MOST_BYTES} == {}
    assert "oom" not in answer.stderr.lower()
