"""The examples do what they say, and README's lines of Python do, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published.catalog import Catalog
from tests.conftest import REPOSITORY, RayCluster
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg, flower_jpeg

EXAMPLES = REPOSITORY / "jobs" / "examples"
pytestmark = pytest.mark.ray


@pytest.fixture
def environment(ray_cluster: RayCluster) -> dict[str, str]:
    """The cluster's, with this interpreter's commands first on the path, as in an activated environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), ray_cluster.environment["PATH"]])
    return ray_cluster.environment | {"PATH": path, "PYTHONPATH": str(REPOSITORY)}


def run(environment: dict[str, str], *words: object, folder: Path = REPOSITORY) -> str:
    answer = subprocess.run(
        [*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "china.jpg").write_bytes(china_jpeg())
    (folder / "flower.jpg").write_bytes(flower_jpeg())
    (folder / "gps.jpg").write_bytes(camera_jpeg(china_image(), lat_deg=48.5, lon_deg=11.5))
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def test_every_example_is_listed_and_run_here() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text())) == names
    assert {name for name in names if f'"{name}"' in Path(__file__).read_text()} == names


def test_a_folder_from_python(environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    said = run(environment, sys.executable, EXAMPLES / "tag_a_folder.py", photos, tmp_path / "out")
    assert said.splitlines() == [
        "china.jpg: can't tell",
        "empty.jpg: empty (failed)",
        "flower.jpg: can't tell",
        "gps.jpg: can't tell",
    ]
    # README's own lines, beside a folder `photos`; what has its row already is not looked at again.
    (lines,) = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "out").rename(tmp_path / "geotags")
    said = run(environment, sys.executable, "-c", lines, folder=tmp_path)
    assert "undecided" in said


def test_a_map_and_a_night(environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    said = run(environment, sys.executable, EXAMPLES / "map_of_my_photos.py", photos, tmp_path)
    assert "Germany" in said
    assert "My photos" in (tmp_path / "report.html").read_text()
    assert len(json.loads((tmp_path / "photos.geojson").read_text())["features"]) == 3
    (photos / "new.jpg").write_bytes(flower_jpeg() + b"new")
    said = run(environment, EXAMPLES / "every_night.sh", photos, tmp_path / "geotags")
    assert "empty" in said
    assert len(Catalog(str(tmp_path / "geotags")).rows("FROM photos")) == 5


@pytest.mark.s3
def test_a_bucket(environment: dict[str, str], s3_bucket: str) -> None:
    root = f"s3://{s3_bucket}/example"
    storage.write_bytes(f"{root}/photos/a.jpg", china_jpeg())
    storage.write_bytes(f"{root}/photos/b.jpg", b"")
    said = run(environment, EXAMPLES / "tag_a_bucket.sh", f"{root}/photos", f"{root}/geotags")
    assert "Nothing to do" in said
    assert re.search(r"undecided .* 1 ", said), said


def test_fine_tuning_on_ones_own_photos(environment: dict[str, str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(240):  # towns far apart: a place's photos are all in one part
        lat_deg, lon_deg = -50.5 + 2.5 * (index // 6), 6.0 * (index // 6) - 100.5
        image = china_image().rotate(index).resize((160, 107))
        (photos / f"{index:03}.jpg").write_bytes(camera_jpeg(image, lat_deg=lat_deg, lon_deg=lon_deg))
    geotags, folder = tmp_path / "geotags", tmp_path / "tuned"
    run(environment, "graticule", "geotag-archive", "--photos", photos, "--output", geotags)
    words = ("--recipe.epochs", 1, "--recipe.batch-size", 24, "--threads", 1)
    said = run(environment, EXAMPLES / "fine_tune.sh", geotags, folder, *words)
    assert (folder / "model" / "config.json").is_file()
    assert "prior" in said
