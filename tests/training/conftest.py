"""A small archive of generated photos whose colour says where they were taken, and a tiny teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import openvino.opset13 as ops
import pytest
from PIL import Image

TOWNS = {"red": (48.85, 2.35), "green": (-33.9, 18.4), "blue": (35.7, 139.7)}
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PHOTOS_A_TOWN = 12


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 36 photos and photos.csv; each town has four photographers with three photos each."""
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    lines = ["path,lat,lon,photographer,scene"]
    for town, (lat_deg, lon_deg) in TOWNS.items():
        for number in range(PHOTOS_A_TOWN):
            noise = random.integers(-30, 31, (48, 60, 3))
            pixels = np.clip(np.array(COLOURS[town]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{town}{number}.png")
            # Photographers stand some 50 km apart, so that a split can take whole ones.
            lat = lat_deg + (number // 3) * 0.5
            scene = "urban" if town == "red" else "natural"
            lines.append(f"{town}{number}.png,{lat},{lon_deg},{town} {number // 3},{scene}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that says the mean and maximum of each colour: 6 features of a 16-pixel image."""

    image = ops.parameter([-1, 3, 16, 16], np.float32)
    features = ops.concat([reduce(image, [2, 3], False) for reduce in (ops.reduce_mean, ops.reduce_max)], 1)
    network = openvino.Model([features], [image])
    path = tmp_path_factory.mktemp("teacher") / "teacher.xml"
    openvino.save_model(network, path, compress_to_fp16=False)
    return path
