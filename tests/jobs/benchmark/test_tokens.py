"""The benchmark of kept tokens: both ways train, and its figures are of what was timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from jobs.benchmark import __main__ as benchmark
from jobs.benchmark import figure


def test_it_measures_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    words = f"tokens --photos {tmp_path}/photos --network tiny --batch-size 3 --repeats 1 --epochs 4".split()
    settings = tyro.cli(benchmark.Settings, args=["--to", str(tmp_path / "found.json"), *words])
    assert benchmark.run(settings) == 0
    epoch, whole = figure.read(tmp_path / "found.json")
    assert epoch.ratio == pytest.approx(epoch.value / epoch.comparator)
    assert whole.comparator == pytest.approx(epoch.comparator)
    assert whole.value < epoch.value  # making them takes its time
    printed = capsys.readouterr().out
    assert "swin, 32 px, 16 tokens of 32; 6 photos, batches of 3, 1 threads" in printed
    few = tyro.cli(benchmark.Settings, args=[word.replace("3", "7") if word == "3" else word for word in words])
    with pytest.raises(ValueError, match="6 photos could be read, and a batch has 7: give more"):
        benchmark.run(few)
