"""The shrink benchmark compares with a full decode, and a crop moved by a pixel is worse than a decode that is full."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs.benchmark.shrink import ShrinkBenchmark
from pipeline.decode.photo import SHRINK_MARGIN
from tests.support.photo_samples import china_image, encode


def test_prints_a_line_for_each_margin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = china_image().resize((2560, 1708), Image.Resampling.BICUBIC)
    for index, picture in enumerate((large, large.crop((300, 200, 2300, 1700)))):
        (tmp_path / f"{index}.jpg").write_bytes(encode(picture, "jpeg", quality=92))
    (tmp_path / "small.jpg").write_bytes(encode(china_image().resize((300, 220)), "jpeg"))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    ShrinkBenchmark(photos=str(tmp_path), margins=(1.0, 2.0)).measure()
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2 photos that are shrunk first, by graticule-first-light")
    by_name = {line[:24].strip(): line[24:].split() for line in lines}
    assert list(by_name) == [
        *(f"margin {margin:g}{' (ours)' if margin == SHRINK_MARGIN else ''}" for margin in (1.0, 2.0)),
        "full decode",
        "full, crop moved 1 px",
    ]
    assert by_name["full decode"][:3] == ["0.00%", "0.0000", "0.0"]
    assert float(by_name["full, crop moved 1 px"][1]) > 0


def test_refuses_what_would_measure_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--margins"):
        ShrinkBenchmark(margins=(0.5,)).measure()
    (tmp_path / "small.jpg").write_bytes(encode(china_image().resize((300, 220)), "jpeg"))
    with pytest.raises(ValueError, match="no photo there is large enough"):
        ShrinkBenchmark(photos=str(tmp_path)).measure()
