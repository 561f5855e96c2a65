"""From a table of photos to a checkpoint and its measured errors, by the two commands a user would type."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import evaluate, train
from jobs.evaluate import SHARED
from model.checkpoint import Checkpoint
from pipeline.locator import BUNDLED_MODEL
from training.loop import LoopConfig
from training.split import SplitConfig

# Sixteen towns on a line to the east, each its own shade from black to white; four photographers in each.
TOWNS, PHOTOS_A_TOWN = 16, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    lines = ["path,lat,lon,photographer"]
    for town in range(TOWNS):
        for number in range(PHOTOS_A_TOWN):
            pixels = np.clip(town * 16 + random.integers(-3, 4, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{town}-{number}.png")
            lines.append(f"{town}-{number}.png,10,{town * 10},{town}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def settings(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> train.Settings:
    return train.Settings(
        manifest=str(archive / "photos.csv"),
        output=str(tmp_path_factory.mktemp("model") / "checkpoint"),
        network="tiny",
        name="shades",
        split=SplitConfig(seed=1, test_share=0.25, validation_share=0.1),
        loop=LoopConfig(epochs=40, batch_size=12, learning_rate=3e-3),
    )


@pytest.fixture(scope="module")
def checkpoint(settings: train.Settings) -> Checkpoint:
    assert train.run(settings) == 0
    return Checkpoint.load(Path(settings.output))


def shares(line: str) -> list[float]:
    return [float(x) for x in re.findall(r"([\d.]+)%", line)]


def test_the_checkpoint_remembers_split_and_training(checkpoint: Checkpoint) -> None:
    assert checkpoint.model_id.startswith("shades-")
    parts = checkpoint.training["parts"]
    assert [parts[part]["photos"] for part in ("train", "validation", "test")] == [44, 4, 16]
    assert checkpoint.training["progress"]["draws"] == 40 * 44
    assert checkpoint.config.scenes == ("any",)  # the table has no scenes
    assert len(set(checkpoint.temperatures)) == 1


def test_evaluate_prints_the_model_beside_the_commonest_cell(
    settings: train.Settings, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        evaluate.run(evaluate.Settings(manifest=settings.manifest, model=str(checkpoint.folder), engine="torch")) == 0
    )
    out = capsys.readouterr().out
    model, commonest = (
        next(line for line in out.splitlines() if line.startswith(name)) for name in ("shades", "always")
    )
    assert "16 photos (test), 0 more could not be read" in out
    assert len(shares(model)) == len(shares(commonest)) == 5
    # The towns tested were never seen; a neighbour of like shade is within 2500 km, one town of sixteen is mostly not.
    assert shares(model)[0] == 0
    assert shares(model)[4] > shares(commonest)[4]
    assert re.search(r"inside the radius meant to hold 90 %: [\d.]+%", out)


def test_evaluate_refuses_another_table_unless_told_that_it_is_one(
    settings: train.Settings, checkpoint: Checkpoint, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = archive / "fewer.csv"
    fewer.write_text("\n".join(Path(settings.manifest).read_text().splitlines()[:30]) + "\n")
    other = evaluate.Settings(manifest=str(fewer), model=str(checkpoint.folder), engine="torch")
    with pytest.raises(ValueError, match=r"not the table that .* was trained with"):
        evaluate.run(other)
    assert evaluate.run(replace(other, part="all")) == 0
    assert "29 photos (all)" in capsys.readouterr().out


def test_evaluate_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --manifest"):
        evaluate.run(evaluate.Settings(model=str(tmp_path)))
    with pytest.raises(ValueError, match=r"not a checkpoint"):
        evaluate.run(evaluate.Settings(model=str(tmp_path), manifest="x.csv"))


def test_train_reads_a_hierarchy_that_was_built_before(settings: train.Settings, checkpoint: Checkpoint) -> None:
    again = replace(
        settings,
        hierarchy=str(checkpoint.folder),
        output=f"{settings.output} again",
        loop=LoopConfig(epochs=1, batch_size=12),
    )
    assert train.run(again) == 0
    assert Checkpoint.load(Path(again.output)).hierarchy.content_hash == checkpoint.hierarchy.content_hash


@pytest.mark.s3
def test_a_checkpoint_may_live_on_s3(
    settings: train.Settings,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    output = f"s3://{s3_bucket}/models/shades"
    assert train.run(replace(settings, output=output, loop=LoopConfig(epochs=1, batch_size=12))) == 0
    assert evaluate.run(evaluate.Settings(manifest=settings.manifest, model=output, engine="torch")) == 0
    assert "16 photos (test)" in capsys.readouterr().out


def test_train_refuses_what_it_cannot_train_on(settings: train.Settings, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the hierarchy"):
        train.run(replace(settings, hierarchy=str(tmp_path / "none"), output=str(tmp_path / "out")))
    scenes = tmp_path / "scenes.csv"
    scenes.write_text("path,scene\n1-0.png,moon\n")
    with pytest.raises(ValueError, match="no scene 'moon'"):
        train.run(replace(settings, scenes=str(scenes), output=str(tmp_path / "out")))
    broken = archive / "broken.csv"
    broken.write_text(Path(settings.manifest).read_text().replace("-0.png", "-missing.png"))
    with pytest.raises(ValueError, match="could not be read"):
        train.run(replace(settings, manifest=str(broken), output=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the photos of the bundled model are not at {SHARED}")
def test_the_bundled_model_is_measured_on_photos_it_never_saw(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the nearest neighbours, for which all training photos would have to be decoded."""
    photos = {"manifest": str(SHARED / "photos.csv"), "root": str(SHARED / "photos"), "only": "scene_ok"}
    assert evaluate.run(evaluate.Settings(**photos)) == 0  # type: ignore[arg-type]
    out = capsys.readouterr().out
    held_out = Checkpoint.load(BUNDLED_MODEL).training["parts"]["test"]["photos"]
    assert f"{held_out} photos (test)" in out
    for name in ("graticule", "always the commonest cell"):
        assert len(shares(next(line for line in out.splitlines() if line.startswith(name)))) == 5
