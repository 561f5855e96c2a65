"""Nights in a row, as a scheduler runs them: each date once, within its budget, and a killed night is made good."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.published.catalog import Catalog
from pipeline.run.staging import Stage
from pipeline.run.verify import verify_output
from tests.conftest import REPOSITORY, RayCluster
from tests.integration.test_geotag import codes
from tests.support.photo_samples import china_image, china_jpeg, encode

Night = dict[str, Any]


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Night]]]:
    """An address on this machine, and what was posted to it."""
    posted: list[Night] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret-path", posted
        server.shutdown()


def start(anywhere: RayCluster, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.nightly", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=anywhere.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def nightly(anywhere: RayCluster, *arguments: object) -> tuple[int, str, str]:
    process = start(anywhere, *arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def record(output: str, date: str) -> Night:
    found: Night = json.loads(storage.read_bytes(f"{output}/nights/{date}.json"))
    return found


def counted(night: Night) -> tuple[int, ...]:
    return tuple(night[name] for name in ("listed", "already_done", "located", "changed", "gone", "left"))


def put(path: Path, content: bytes, age_days: float = 0) -> None:
    path.write_bytes(content)
    at_s = time.time() - 86_400 * age_days
    os.utime(path, (at_s, at_s))


@pytest.mark.ray
def test_three_nights(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path, webhook: tuple[str, list[Night]]
) -> None:
    address, posted = webhook
    photos, output = tmp_path / "photos", f"{tmp_path}/out"
    photos.mkdir()
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint, "--webhook", address)

    for name in ("a", "b", "c"):
        put(photos / f"{name}.jpg", china_jpeg() + name.encode(), age_days=9)
    put(photos / "broken.jpg", china_jpeg()[:50_000], age_days=9)
    code, out, err = nightly(anywhere, *arguments, "--date", "2026-11-01", "--summary", tmp_path / "summary.txt")
    assert code == 0, err
    first = record(output, "2026-11-01")
    assert counted(first) == (4, 0, 3, 0, 0, 0)
    assert first["failed_by_code"] == {"truncated": 1}
    assert first["runs"] == ["nightly-2026-11-01"]
    assert [night["date"] for night in posted] == ["2026-11-01"]
    assert posted[0]["text"] in out
    assert (tmp_path / "summary.txt").read_text() == posted[0]["text"]
    assert posted[0]["text"].startswith(
        "Graticule, night of 2026-11-01: done; 3 photos located, 0 undecided, 1 failed\n\n"
    )
    assert "secret" not in out + err

    put(photos / "d.jpg", china_jpeg() + b"d")
    code, out, err = nightly(anywhere, *arguments, "--date", "2026-11-01")  # again: d is not looked at
    assert (code, len(posted)) == (0, 1), err
    assert "is done already" in out
    assert record(output, "2026-11-01") == first

    put(photos / "a.jpg", china_jpeg() + b"another a")  # changed
    (photos / "b.jpg").unlink()  # removed
    put(photos / "old.jpg", china_jpeg() + b"old", age_days=400)
    put(photos / "broken too.jpg", china_jpeg()[:40_000], age_days=1)
    jpeg = encode(china_image().resize((2400, 1600)), "jpeg")
    for index in range(300):
        put(photos / f"new {index}.jpg", jpeg + b"%d" % index, age_days=1)
    second = start(
        anywhere, *arguments, "--date", "2026-11-02", "--cluster.rows-per-part", 16, "--batch-size", 8,
        "--max-photos", 303,
    )  # fmt: skip
    stage = Stage(output, "nightly-2026-11-02")
    try:
        deadline_s = time.monotonic() + 120
        while not stage.row_files() and second.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert second.poll() is None, second.communicate()
    finally:
        second.send_signal(signal.SIGKILL)
        second.communicate()
    assert not storage.exists(f"{output}/nights/2026-11-02.json")

    put(photos / "e.jpg", china_jpeg() + b"e")
    code, out, err = nightly(anywhere, *arguments, "--date", "2026-11-03", "--max-photos", 304)
    assert code == 0, err
    third = record(output, "2026-11-03")
    # What the killed night had begun and its newest photos, all in one run; of 305 in all the oldest one is left.
    assert third["runs"] == ["nightly-2026-11-02"]
    assert counted(third) == (307, 2, 303, 1, 1, 1)
    assert third["failed_by_code"] == {"truncated": 1}
    assert f"{photos}/old.jpg" not in codes(output)
    code, out, err = nightly(anywhere, *arguments, "--date", "2026-11-04")
    assert code == 0, err
    assert counted(record(output, "2026-11-04")) == (307, 306, 1, 0, 1, 0)

    put(photos / "old.jpg", china_jpeg() + b"another old")  # the one photo of the night before
    code, out, err = nightly(
        anywhere,
        *arguments,
        "--date",
        "2026-11-05",
        "--retry-failed",
        "--keep-days",
        0,
        "--max-failed-fraction",
        0.5,
    )
    assert code == 3, err  # of three photos two are broken still
    assert "too many failures" in posted.pop()["text"]
    # Replaced whole; each of the older runs has a newest row.
    assert record(output, "2026-11-05")["removed_runs"] == ["nightly-2026-11-04"]
    assert "removed, all replaced     nightly-2026-11-04" in out

    expected: dict[str, str | None] = {f"{photos}/{path.name}": None for path in photos.iterdir()}
    expected |= dict.fromkeys((f"{photos}/broken.jpg", f"{photos}/broken too.jpg"), "truncated")
    expected |= {f"{photos}/b.jpg": None}  # removed, and it keeps its row
    assert codes(output) == expected
    assert verify_output(output) == []
    assert len(Catalog(output).records) == 3
    assert [night["date"] for night in posted] == ["2026-11-01", "2026-11-03", "2026-11-04"]


@pytest.mark.ray
def test_a_night_that_is_out_of_time_publishes_what_it_has(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", f"{tmp_path}/out"
    photos.mkdir()
    # A PNG is decoded whole: one reader would need more than a minute for all.
    png = encode(china_image().resize((4000, 3000)).quantize(16).convert("RGB"), "png")
    for index in range(500):
        put(photos / f"{index:03}.png", png + b"%d" % index, age_days=index)
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint, "--cluster.readers", 1)
    process = start(anywhere, *arguments, "--date", "2026-11-01", "--max-hours", 25 / 3600)
    out, err = process.communicate(timeout=400)
    night = record(output, "2026-11-01") if process.returncode == 0 else None
    assert night is not None, err
    assert 0 < night["left"] < 500, out
    assert night["located"] + night["left"] == 500
    assert f"left for the next night   {night['left']}" in out
    done = {int(Path(uri).stem) for uri in codes(output)}
    assert len(done) == night["located"]
    assert max(done) < night["located"] + 200  # newest first: what is read at once may overtake
    assert verify_output(output) == []


def test_refusals(tmp_path: Path) -> None:
    from jobs.geotag_archive import ArchiveSettings
    from jobs.nightly import NightlySettings, run

    archive = ArchiveSettings(photos=(str(tmp_path),), output=f"{tmp_path}/out")
    wrong: list[tuple[NightlySettings, str]] = [
        (NightlySettings(archive, date="tonight"), "give a date such as"),
        (NightlySettings(archive, max_photos=0), "give at least 1"),
        (NightlySettings(archive, keep_days=-1), "give 0 or more"),
        (NightlySettings(archive, webhook="ftp://x"), "begins with https"),
        (NightlySettings(ArchiveSettings(photos=(str(tmp_path),), output="o", run_id="x")), "leave out --run-id"),
        (NightlySettings(ArchiveSettings(photos=(str(tmp_path),), output="o", limit=3)), "as --max-photos"),
        (NightlySettings(ArchiveSettings(photos=(str(tmp_path),), output="")), "give --output"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            run(settings)


@pytest.mark.ray
@pytest.mark.soak
def test_a_night_that_is_told_to_stop_gives_its_lease_back(
    anywhere: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """SIGTERM, as from systemd or Kubernetes: exit 1 at once, and the next start waits for nobody.

    The short form is `ray job stop`, in test_ray_job.py.
    """
    photos, output = tmp_path / "photos", f"{tmp_path}/out"
    photos.mkdir()
    jpeg = encode(china_image().resize((4000, 3000)), "jpeg")
    for index in range(600):
        put(photos / f"{index}.jpg", jpeg + b"%d" % index)
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint, "--cluster.rows-per-part", 16)
    process = start(anywhere, *arguments, "--date", "2026-11-01")
    stage = Stage(output, "nightly-2026-11-01")
    deadline_s = time.monotonic() + 120
    while not stage.row_files() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "stopped: run the same command again" in err
    assert stage.row_files()
    assert json.loads(storage.read_bytes(f"{output}/lease.json"))["process"] == ""
    assert not storage.exists(f"{output}/nights/2026-11-01.json")
