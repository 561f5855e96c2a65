"""The job as users run it: every photo accounted for, nothing done twice, and an exit code that tells the truth."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from jobs import run_command
from jobs.geotag_archive import ArchiveSettings, run
from pipeline import schema, storage
from pipeline.published.catalog import Catalog
from pipeline.run.staging import Stage
from tests.conftest import REPOSITORY, RayCluster, ray_environment
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg, encode, flower_jpeg, png_bomb

ARCHIVE: dict[str, tuple[bytes, str | None]] = {
    "plain.jpg": (china_jpeg(), None),
    "two words.jpg": (flower_jpeg(), None),
    "ünïcode 日本.jpg": (china_jpeg(), None),
    "100%.jpg": (china_jpeg(), None),
    "a%20b.jpg": (china_jpeg(), None),
    "x#1.jpg": (china_jpeg(), None),
    "new\nline.jpg": (china_jpeg(), None),
    "deep/er/[1]*?.jpg": (flower_jpeg(), None),
    "wrong extension.png": (china_jpeg(), None),
    "no extension": (encode(china_image(), "webp"), None),
    "turned.jpg": (camera_jpeg(china_image(), orientation=6, lat_deg=48.5, lon_deg=11.5), None),
    "one pixel.png": (encode(Image.new("RGB", (1, 1), "red"), "png"), None),
    "animated.gif": (
        encode(Image.new("P", (60, 40)), "gif", save_all=True, append_images=[Image.new("P", (60, 40), 7)]),
        None,
    ),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"This is text.\n", "unsupported_format"),
    "truncated.jpg": (china_jpeg()[:50_000], "truncated"),
    "bomb.png": (png_bomb(), "too_large"),
}
"""Each file's content and the error code that it must get."""


def geotag(
    environment: Mapping[str, str], *arguments: object, cwd: Path = REPOSITORY, timeout_s: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run the job to its end, as a process of its own."""
    command = [sys.executable, "-m", "jobs.geotag_archive", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=dict(environment), capture_output=True, text=True, check=False, timeout=timeout_s
    )


def codes(output: str) -> dict[str, str | None]:
    """Every published row of every run that counts: uri → error code. Fails where a photo has two rows in a run."""
    catalog = Catalog(output)
    for run_id, rows, photos in catalog.sql(
        "SELECT run_id, count(*), count(DISTINCT photo_id) FROM photos GROUP BY run_id"
    ).fetchall():
        assert rows == photos, run_id
    return dict(catalog.sql("SELECT uri, error_code FROM photos").fetchall())


def write_archive(folder: str) -> dict[str, str | None]:
    """Write ARCHIVE below `folder` and return what `codes` must find."""
    for name, (data, _) in ARCHIVE.items():
        storage.write_bytes(f"{folder}/{name}", data)
    return {f"{folder}/{name}": code for name, (_, code) in ARCHIVE.items()}


@pytest.mark.ray
def test_an_archive_from_first_run_to_changes(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photos, output = f"{tmp_path}/photos it's", f"{tmp_path}/out [1]"
    arguments = ("--photos", photos, "--output", output, "--model", tiny_checkpoint)
    expected = write_archive(photos)
    failed = sum(code is not None for code in expected.values())

    first = geotag(ray_cluster.environment, *arguments, "--max-failed-fraction", "0.1", "--run-id", "first")
    assert first.returncode == 3, first.stderr
    assert f"{failed} of {len(expected)} photos failed, more than --max-failed-fraction allows" in first.stderr
    assert codes(output) == expected
    located = Catalog(output).rows("SELECT * FROM photos WHERE status <> 'failed'").to_pylist()
    assert all(row[schema.LEVELS] and row[schema.GEOMETRY] and row[schema.RADIUS_KM] > 0 for row in located)
    (turned,) = (row for row in located if row[schema.URI].endswith("turned.jpg"))
    assert (turned[schema.WIDTH_PX], turned[schema.HEIGHT_PX]) == (640, 427)
    assert turned[schema.RECORDED_LAT_DEG] == pytest.approx(48.5)
    assert not list(storage.list_files(f"{output}/staging"))
    record = json.loads(storage.read_bytes(f"{output}/runs/first.json"))
    assert record["photos"]["failed"] == failed
    assert (record["plan"]["todo"], record["plan"]["already_done"]) == (len(expected), 0)
    assert record["photos"]["failed_by_code"] == dict(collections.Counter(filter(None, expected.values())))

    again = geotag(ray_cluster.environment, *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"Nothing to do: all {len(expected)} photos have their row")
    assert len(list(storage.list_files(f"{output}/runs"))) == 1

    storage.write_bytes(f"{photos}/added.jpg", flower_jpeg())
    storage.write_bytes(f"{photos}/empty.jpg", china_jpeg())  # changed, and well by now
    changed = geotag(ray_cluster.environment, *arguments)
    assert changed.returncode == 0, changed.stderr
    assert "2 photos processed" in changed.stdout
    assert codes(output) == expected | {f"{photos}/added.jpg": None, f"{photos}/empty.jpg": None}
    by_run = Catalog(output).sql("SELECT located + undecided, failed FROM runs ORDER BY finished_at").fetchall()
    assert by_run == [(len(expected) - failed, failed), (2, 0)]


@pytest.mark.ray
def test_a_copy_is_decided_by_its_own_runs_rule(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its bytes are known from a run that asked for less: that answer is not its."""
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    arguments = ("--photos", str(photos), "--output", output, "--model", str(tiny_checkpoint))
    (photos / "one.jpg").write_bytes(china_jpeg())
    assert geotag(ray_cluster.environment, *arguments, "--at-least", "any").returncode == 0
    (photos / "two.jpg").write_bytes(china_jpeg())
    assert geotag(ray_cluster.environment, *arguments, "--at-least", "street").returncode == 0
    query = "SELECT parse_filename(uri) AS photo, status, precision FROM photos ORDER BY photo"
    (one, first, precision), (two, second, _) = Catalog(output).sql(query).fetchall()
    assert precision != "street", "the network is too sure to tell anything here"
    assert ((one, first), (two, second)) == (("one.jpg", "located"), ("two.jpg", "undecided"))


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_stopped(ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; and on the way there: decoding and the engine have processes of their own."""
    photos, stage = tmp_path / "photos", Stage(f"{tmp_path}/out", "r1")
    photos.mkdir()
    jpeg = encode(china_image().resize((2400, 1600)), "jpeg")
    for index in range(640):
        (photos / f"{index}.jpg").write_bytes(jpeg + b"%d" % index)  # no copies: those wait for the first one's answer
    arguments = ["--photos", photos, "--output", stage.output, "--model", tiny_checkpoint, "--run-id", "r1"]
    arguments += ["--cluster.rows-per-part", 16, "--batch-size", 8]
    command = [sys.executable, "-m", "jobs.geotag_archive", *map(str, arguments)]
    titles: set[str] = set()
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(command, cwd=REPOSITORY, env=ray_cluster.environment, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + 120
            while not stage.row_files() and driver.poll() is None and time.monotonic() < deadline_s:
                titles |= set(ray_cluster.processes().values())
                time.sleep(0.05)
            assert driver.poll() is None, (tmp_path / "log").read_text()
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    ours = {title for title in titles if title.startswith("ray::")}
    assert any("_LocatorActor" in title for title in ours), ours
    assert any("_read_rows" in title for title in ours), ours
    assert not any("_LocatorActor" in title and "_read_rows" in title for title in ours), ours

    staged = wait_until_still(stage, ray_cluster)
    assert 0 < len(staged) < 640
    with pytest.raises(ValueError, match="nothing is published"):
        Catalog(stage.output)
    second = geotag(ray_cluster.environment, *arguments[:-6], "--cluster.rows-per-part", 16)  # finds the run by itself
    assert second.returncode == 0, second.stderr
    assert "taking up unfinished run r1" in second.stderr
    assert f"{640 - len(staged)} photos processed" in second.stdout
    table = Catalog(stage.output).rows("SELECT photo_id, processed_at FROM photos")
    rows = {row[schema.PHOTO_ID]: row[schema.PROCESSED_AT] for row in table.to_pylist()}
    assert len(rows) == 640 == sum(file.row_count for file in Catalog(stage.output).records[0].files)
    for photo_id, processed_at in staged.items():
        assert rows[photo_id] == processed_at  # not done again


def wait_until_still(stage: Stage, cluster: RayCluster) -> dict[bytes, object]:
    """Return what is staged (photo → when it was processed) once the killed driver's workers have stopped writing."""
    files: list[str] = []
    for _ in range(60):
        time.sleep(1)
        before, files = files, stage.row_files()
        if files == before and not any("_LocatorActor" in title for title in cluster.processes().values()):
            break
    tables = [pq.read_table(file, columns=[schema.PHOTO_ID, schema.PROCESSED_AT]) for file in files]
    return {row[schema.PHOTO_ID]: row[schema.PROCESSED_AT] for table in tables for row in table.to_pylist()}


@pytest.mark.ray
def test_a_bug_stops_the_run_and_publishes_nothing(
    ray_cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A copy of the code with a bug in its reader: not a user's mistake (2), not a photo's failure (0 or 3)."""
    for package in ("jobs", "model", "pipeline", "training"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("bundled"))
    reader = tmp_path / "pipeline" / "read" / "reader.py"
    code, line = reader.read_text(), "                batch.add((row, outcomes.pop(0), fetch_s))\n"
    assert line in code
    reader.write_text(code.replace(line, line + "                raise ValueError('a bug in the reader')\n"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(china_jpeg())
    arguments = ["--photos", tmp_path / "photos", "--output", tmp_path / "out", "--model", tiny_checkpoint]
    answer = geotag(ray_cluster.environment | {"PYTHONPATH": str(tmp_path)}, *arguments, cwd=tmp_path)
    assert answer.returncode == 1, answer.stderr
    assert "a bug in the reader" in answer.stderr
    assert not (tmp_path / "out" / "runs").exists()
    assert not (tmp_path / "out" / "photos").exists()


@pytest.mark.ray
def test_without_a_cluster_the_job_starts_its_own(tiny_checkpoint: Path, cache_home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(china_jpeg())
    (tmp_path / "m.csv").write_text("path\na.jpg\na.jpg\nmissing.jpg\n")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= ray_environment(tmp_path / "token") | {"XDG_CACHE_HOME": str(cache_home)}
    arguments = ("--photos", tmp_path / "m.csv", "--output", tmp_path / "out", "--model", tiny_checkpoint)
    answer = geotag(environment, *arguments, "--precision", "country")
    assert answer.returncode == 0, answer.stderr
    assert "1 rows of the manifest repeat a photo" in answer.stderr
    assert codes(f"{tmp_path}/out") == {f"{tmp_path}/a.jpg": None, f"{tmp_path}/missing.jpg": "not_found"}
    finest = "SELECT max(list_max(list_transform(levels, lambda cell: cell.s2_level))) FROM photos"
    assert Catalog(f"{tmp_path}/out").sql(finest).fetchall()[0][0] <= 4


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_shared_collection_gives_one_row_a_file(
    ray_cluster: RayCluster, tiny_checkpoint: Path, shared_data: Path, tmp_path: Path
) -> None:
    photos = shared_data / "photos"
    arguments = ("--photos", photos, "--output", tmp_path / "out", "--model", tiny_checkpoint)
    answer = geotag(ray_cluster.environment, *arguments, timeout_s=1700)
    assert answer.returncode == 0, answer.stderr
    files = {str(path) for path in photos.rglob("*") if path.is_file()}
    assert set(codes(f"{tmp_path}/out")) == files


class TestUsageErrors:
    """Exit 2 with one sentence that says what to do, before any work: Ray is not started, no run is published."""

    @pytest.fixture(autouse=True)
    def photos(self, tmp_path: Path) -> Iterator[Path]:
        storage.write_bytes(f"{tmp_path}/photos/a.jpg", china_jpeg())
        yield tmp_path / "photos"
        assert not ray.is_initialized()
        assert not (tmp_path / "out" / "runs").exists()

    def usage_error(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
    ) -> str:
        monkeypatch.setattr(sys, "argv", ["geotag_archive", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_command(ArchiveSettings, run)
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (["--limit", "0"], "error: --limit 0: give at least 1"),
            (["--batch-size", "-1"], "error: --batch-size -1: give at least 1"),
            (["--max-failed-fraction", "2"], "error: --max-failed-fraction 2.0: give a share between 0 and 1"),
            (["--run-id", "../x"], "error: --run-id '../x': use letters, digits, - and _ only"),
            (["--run-id", ""], "error: --run-id '': use letters, digits, - and _ only"),
            (["--model", "TMP/no-model"], "error: TMP/no-model"),
            (["--output", "TMP/photos/a.jpg"], "error: can't write to TMP/photos/a.jpg: "),
            (["--output", "http://host/x"], "error: can't read 'http://host/x': use a local path or one of"),
            (["--photos", "TMP/missing"], "error: no photos at TMP/missing: the folder or prefix is empty or missing"),
            (["--photos", "TMP/empty"], "error: no photos at TMP/empty: the folder or prefix is empty or missing"),
            (["--photos", "TMP/photos/*.png"], "error: no photos match TMP/photos/*.png: "),
            (["--precision", "house"], "invalid choice 'house'"),
            (["--no-such-option", "1"], "no-such-option"),
            (["--limit", "many"], "many"),
        ],
    )
    def test_one_sentence(
        self,
        changed: list[str],
        message: str,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "empty").mkdir()
        options = {"--photos": tmp_path / "photos", "--output": tmp_path / "out", "--model": tiny_checkpoint}
        name, value = changed[0], changed[1].replace("TMP", str(tmp_path))
        flat = [part for pair in (options | {name: value}).items() for part in pair]
        error = self.usage_error(capsys, monkeypatch, *flat)
        assert message.replace("TMP", str(tmp_path)) in error
        assert "Traceback" not in error

    def test_required_options(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        assert "--output" in self.usage_error(capsys, monkeypatch, "--photos", "x")

    def test_a_damaged_model(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
        with open(model / "weights.safetensors", "r+b") as file:
            file.seek(5000)
            file.write(b"damage")
        options = ("--photos", tmp_path / "photos", "--output", tmp_path / "out", "--model", model)
        assert "weights.safetensors is damaged" in self.usage_error(capsys, monkeypatch, *options)

    def test_a_run_may_not_change_its_mind_half_way(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        Stage(f"{tmp_path}/out", "r1").put_settings({"model_id": "other-1", "precision": "street"})
        options = ("--photos", tmp_path / "photos", "--output", tmp_path / "out", "--model", tiny_checkpoint)
        options = (*options, "--run-id", "r1")
        assert "unfinished run r1 was started with" in self.usage_error(capsys, monkeypatch, *options)

    def test_as_a_process(self, tmp_path: Path) -> None:
        answer = geotag(os.environ, "--photos", tmp_path, "--output", tmp_path / "out", "--limit", "0")
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.splitlines() == ["error: --limit 0: give at least 1"]
