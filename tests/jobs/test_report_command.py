"""The command writes a page about a real output, with pictures of its photos, and says what is wrong otherwise."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from jobs.report import ReportSettings, run
from model.checkpoint import Checkpoint
from pipeline import schema, storage
from pipeline.report.thumbnails import SIDE_PX, thumbnails
from tests.conftest import REPOSITORY, published_output
from tests.support.photo_samples import china_jpeg


@pytest.fixture(scope="module")
def output(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos with a place and an empty file without one."""
    folder = tmp_path_factory.mktemp("published") / "out"
    published_output(folder, tiny_checkpoint)
    return folder


def test_a_page_with_pictures(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "report.html"
    assert run(ReportSettings(str(output), str(to), title="Two & a half", thumbnails=10)) == 0
    assert str(to) in capsys.readouterr().out
    page = to.read_text(encoding="utf-8")
    assert "<h1>Two &amp; a half</h1>" in page
    assert {"china.jpg", "flower.jpg", "empty.jpg"} <= set(re.findall(r"<b>([^<]*)</b>", page))
    assert len(set(re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page))) == 2
    assert "no picture: " in page
    assert to.stat().st_size < 1_000_000


def test_pictures_are_asked_for(output: Path, tmp_path: Path) -> None:
    run(ReportSettings(str(output), str(tmp_path / "report.html")))
    assert "data:image" not in re.sub("<script.*", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)


def test_what_the_model_looked_at(output: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    to = tmp_path / "report.html"
    settings = ReportSettings(str(output), str(to), attention=1, model=str(tiny_checkpoint))
    assert run(settings) == 0
    page = to.read_text(encoding="utf-8")
    (sheet,) = re.findall(r'<figure class="look">.*?base64,([^"]*)".*?</figure>', page, re.DOTALL)
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        levels = len(Checkpoint.load(tiny_checkpoint).hierarchy.levels)
        assert picture.width == (32 + 4) * (levels + 1) - 4  # the photo and its overlays at the model's size
    assert len(re.findall(r"times the even share", page)) == levels
    assert "taken for the scene" in page
    with pytest.raises(ValueError, match="give that checkpoint as --model"):
        run(dataclasses.replace(settings, model="bundled"))


@pytest.mark.s3
def test_a_page_in_a_bucket(output: Path, s3_bucket: str) -> None:
    to = f"s3://{s3_bucket}/report/page.html"
    assert run(ReportSettings(str(output), to, where="status = 'located'")) == 0
    assert b"Only photos for which" in storage.read_bytes(to)


def test_pictures_of_photos_in_archives(tmp_path: Path) -> None:
    (tmp_path / "china.jpg").write_bytes(china_jpeg())
    with tarfile.open(tmp_path / "a#b.tar", "w") as tar, zipfile.ZipFile(tmp_path / "c.zip", "w") as zipped:
        tar.add(tmp_path / "china.jpg", "in/china#1.jpg")
        zipped.write(tmp_path / "china.jpg", "china.jpg")
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    names = ["a#b.tar#in/china#1.jpg", "c.zip#china.jpg", "china.jpg", "c.zip#missing.jpg", "broken.tar#china.jpg"]
    uris = [f"{tmp_path}/{name}" for name in names]
    found = [thumbnails(uris)[schema.photo_id(uri)] for uri in uris]
    assert found[0] == found[1] == found[2]
    jpeg = found[0]
    assert isinstance(jpeg, bytes)
    assert jpeg.startswith(b"\xff\xd8")
    assert SIDE_PX.to_bytes(2, "big") * 2 in jpeg  # the frame header's height and width
    assert "missing.jpg" in str(found[3])
    assert "damaged" in str(found[4])


def test_mistakes_are_told(output: Path, tmp_path: Path) -> None:
    to = str(tmp_path / "report.html")
    with pytest.raises(ValueError, match="no_column"):
        run(ReportSettings(str(output), to, where="no_column"))
    with pytest.raises(ValueError, match="give 0 or more"):
        run(ReportSettings(str(output), to, thumbnails=-1))
    with pytest.raises(ValueError, match="can't write --to"):
        run(ReportSettings(str(output), str(output / "runs" / "r1.json" / "report.html")))
    command = [sys.executable, "-m", "jobs.report", str(tmp_path / "nothing"), "--to", to]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing is published" in done.stderr
    assert not Path(to).exists()
