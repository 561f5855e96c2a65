"""GeoCLIP's wheel for tests: the real one where it can be had, a small one of the same layout; and CLIPs for them."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from training.geoclip import WHEEL, WHEEL_SHA256

WEIGHTS = "geoclip/model/weights"
PLACES = "geoclip/model/gps_gallery/coordinates_100K.csv"


SMALL_CLIP = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 28,
}


def real_wheel(config: pytest.Config) -> Path:
    """The published wheel, downloaded into pytest's cache once; the test is skipped where that can't be done."""
    assert config.cache is not None
    cache = Path(config.cache.mkdir("geoclip"))
    path = cache / WHEEL
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--timeout", "20"]
        try:
            subprocess.run([*command, "--dest", cache, "geoclip==1.3.0"], check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"GeoCLIP's wheel can't be had here: {error}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == WHEEL_SHA256
    return path


def small_tensors(clip_width: int = 16, width: int = 8) -> dict[str, Any]:
    """Tensors as the wheel has them, but narrow: what each file of weights holds."""
    torch.manual_seed(0)
    location: dict[str, Tensor] = {}
    for number, sigma in enumerate((1, 16, 256)):
        name = f"LocEnc{number}"
        location[f"{name}.capsule.0.b"] = sigma * torch.randn(6, 2)
        for layer, shape in (("capsule.1", (20, 12)), ("capsule.3", (20, 20)), ("capsule.5", (20, 20))):
            location |= _layer(f"{name}.{layer}", *shape)
        location |= _layer(f"{name}.head.0", width, 20)
    return {
        "image_encoder_mlp_weights.pth": _layer("0", 24, clip_width) | _layer("2", width, 24),
        "location_encoder_weights.pth": location,
        "logit_scale_weights.pth": torch.nn.Parameter(torch.tensor(3.0)),
    }


def write_wheel(path: Path, tensors: dict[str, Any], places: int = 300) -> Path:
    random = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, places))), random.uniform(-180, 180, places)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, value in tensors.items():
            sink = io.BytesIO()
            torch.save(value, sink)
            wheel.writestr(f"{WEIGHTS}/{name}", sink.getvalue())
        lines = (f"{lat:.6f},{lon:.6f}\n" for lat, lon in zip(lat_deg_N, lon_deg_N, strict=True))
        wheel.writestr(PLACES, "LAT,LON\n" + "".join(lines))
    return path


def two_towers(vision: dict[str, Any], projection: int) -> CLIPModel:
    """CLIP with random weights, its tower for texts a stump."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)).eval()


def _layer(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs) / inputs**0.5, f"{name}.bias": torch.randn(outputs) / 10}
