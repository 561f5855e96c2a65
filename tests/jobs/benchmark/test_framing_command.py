"""Trainings begin with whole pictures, go on with what they began with, and are compared by one command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import evaluate, train
from jobs.benchmark.framing import FramingBenchmark
from model.checkpoint import Checkpoint
from pipeline.locate.locator import BUNDLED_MODEL
from training.fit.recipe import Recipe

TOWNS = ((48.8, 2.3), (-33.9, 18.4), (35.7, 139.7))
PARTS = ("train",) * 24 + ("validation",) * 12 + ("test",) * 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Photos twice as wide as high, grey but for their ends, which have their town's colour."""
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    lines = ["path,lat,lon,photographer,part"]
    for number, part in enumerate(PARTS):
        town = number % 3
        pixels = random.integers(100, 140, (40, 80, 3)).astype(np.uint8)
        pixels[:, :8] = pixels[:, 72:] = np.eye(3)[town] * 250
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{TOWNS[town][0] + number / 100},{TOWNS[town][1]},p{number},{part}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "photos.csv")


def trained(manifest: str, output: Path, **more: object) -> Checkpoint:
    recipe = Recipe(epochs=1, batch_size=8)
    settings = train.Settings(manifest, str(output), network="tiny", recipe=recipe, **more)  # type: ignore[arg-type]
    assert train.run(settings) == 0
    return Checkpoint.load(output)


def test_from_training_to_the_comparison(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = trained(manifest, tmp_path / "new")
    assert new.config.preprocessing.framing == train.NEW_FRAMING
    tokens = {"freeze": True, "cache_tokens": str(tmp_path / "tokens")}
    squares = trained(manifest, tmp_path / "squares", framing="squares", **tokens)
    assert squares.config.preprocessing.shape_HWC == (64, 32, 3)
    assert "tokens: 32 of 32" in capsys.readouterr().out
    tuned = trained(manifest, tmp_path / "tuned", init=str(tmp_path / "squares"), hierarchy="auto")
    assert tuned.config.preprocessing.framing == "squares"

    for crops in (1, 10):
        assert evaluate.run(evaluate.Settings(manifest, str(tmp_path / "squares"), crops=crops)) == 0  # type: ignore[arg-type]

    capsys.readouterr()
    figures = FramingBenchmark(manifest, (str(tmp_path / "squares"), str(tmp_path / "tuned"))).measure()
    assert {figure.name for figure in figures} == {
        "decode, 2: squares ÷ 1: squares",
        "network, 2: squares ÷ 1: squares",
    }
    FramingBenchmark(manifest, (str(tmp_path / "new"),)).measure()
    out = capsys.readouterr().out
    assert "12 photos (test), 12 of them not square" in out
    assert all(f"\n{framing} " in out for framing in ("centre", "letterbox", "squares"))


def test_the_bundled_model_is_fine_tuned_as_it_is_served() -> None:
    start = Checkpoint.load(BUNDLED_MODEL)
    settings = train.Settings("photos.csv", "out", init="bundled")
    assert train._config(settings, start, None).preprocessing == start.config.preprocessing
