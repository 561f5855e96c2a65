"""Every family of backbones by one flag: from its folder through training, checkpoint and every engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import train
from model.checkpoint import Checkpoint
from model.engines import EngineName, load_engine
from model.geodecoder import GeoDecoderConfig
from tests.backbone_folders import FAMILIES, SIZE_PX
from training.recipe import Recipe

ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
TOLERANCE = 1e-4
PHOTOS = {"train": 24, "validation": 12}
TOWNS = ((48.8, 2.3), (-33.9, 18.4), (35.7, 139.7))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Photos of three towns, each town its colour."""
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    lines = ["path,lat,lon,part"]
    for part, count in PHOTOS.items():
        for number in range(count):
            town = number % 3
            colour = np.eye(3)[town] * 120 + 60
            pixels = np.clip(colour + random.integers(-30, 31, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}{number}.png")
            lines.append(f"{part}{number}.png,{TOWNS[town][0] + number / 100},{TOWNS[town][1]},{part}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "photos.csv")


def settings(manifest: str, backbone: str, output: Path, **more: object) -> train.Settings:
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=3e-3)
    return train.Settings(
        manifest=manifest,
        output=str(output),
        backbone=backbone,
        network="tiny",
        recipe=recipe,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_each_family_is_trained_stored_and_served(name: str, manifest: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    family.write(tmp_path / "downloaded")
    assert train.run(settings(manifest, str(tmp_path / "downloaded"), tmp_path / "model")) == 0
    checkpoint = Checkpoint.load(tmp_path / "model")
    assert isinstance(checkpoint.config, GeoDecoderConfig)
    assert checkpoint.config.backbone.model_type == (family.stored_type or family.model_type)
    assert checkpoint.config.backbone.name == ""
    assert checkpoint.config.preprocessing.image_size_px == SIZE_PX
    assert checkpoint.training["backbone"] == "downloaded"
    (tmp_path / "downloaded" / "model.safetensors").unlink()  # the checkpoint needs it no more
    photos_BHWC = np.random.default_rng(1).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    expected = load_engine("torch", checkpoint, precision="fp32")(photos_BHWC)
    assert expected.finite_B.all()
    for engine in ENGINES:
        answers = load_engine(engine, checkpoint, precision="fp32", cache_dir=tmp_path)(photos_BHWC)
        for field in ("level_probability_BH", "top_probability_BT", "mass_within_B4", "scene_probability_B"):
            one, other = getattr(answers, field), getattr(expected, field)
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE, err_msg=f"{engine} {field}")
