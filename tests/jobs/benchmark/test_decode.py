"""The decode benchmark measures what it says, of every format, and names what it lacks."""

from __future__ import annotations

import sys

import pytest

from jobs.benchmark.decode import DecodeBenchmark

EXTRA = ("opencv", "pyvips", "imagecodecs")


def test_prints_a_line_for_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    formats = ("jpeg-640", "jpeg-640-progressive", "heic", "png", "raw", "video")
    DecodeBenchmark(formats=formats, without=EXTRA, sample=1, repeats=1).measure()
    without, _, header, *lines = capsys.readouterr().out.splitlines()
    assert without == "without opencv, pyvips, imagecodecs"
    assert header.split()[:4] == ["ours", "bare", "call", "simplejpeg"]
    assert tuple(line.split()[0] for line in lines) == formats
    for line in lines:
        _, ours, bare, simplejpeg, _, ratio, _, fastest = line.split()
        assert float(ratio) == pytest.approx(float(ours) / float(bare), abs=0.06)
        assert (simplejpeg == "–") == line.startswith(("heic", "png"))
        assert fastest in ("simplejpeg", "PIL")


def test_each_library_makes_the_same_picture() -> None:
    """`measure` compares them itself and raises where one does not."""
    for module in ("cv2", "pyvips", "imagecodecs"):
        pytest.importorskip(module, reason='pip install "graticule[bench]"')
    DecodeBenchmark(formats=("jpeg-640", "webp", "avif", "tiff"), sample=1, repeats=1).measure()


def test_a_missing_library_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless, or say --without opencv"):
        DecodeBenchmark().measure()


def test_refuses_what_would_measure_nothing() -> None:
    with pytest.raises(ValueError, match="--repeats"):
        DecodeBenchmark(repeats=0).measure()
    with pytest.raises(ValueError, match="--sample wants 99"):
        DecodeBenchmark(without=EXTRA, sample=99).measure()
