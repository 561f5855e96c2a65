"""GeoCLIP's tensors, out of the wheel that publishes them, and the features of its gallery: without running its code.

Source: Vivanco Cepeda, Nayak & Shah, "GeoCLIP: Clip-Inspired Alignment between Locations and Images for Effective
Worldwide Geo-localization", NeurIPS 2023, arXiv 2309.16020; the wheel `geoclip` 1.3.0 (MIT). A place's features are the
sum of what three perceptrons say of it, each of the place's coordinates in the Equal Earth projection through random
Fourier features of another scale (σ = 1, 16, 256; the published frequencies have σ in them). A photo's are CLIP's
projected ones through a perceptron. Their cosine, times a scale, is the logit of the place.

Shapes: N places · F frequencies · D width of features · 2 coordinates in the projection's plane.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, normalize, relu

from model.backbones.tower import CLIP_VISION
from training.data.labelled import coordinates, table_from_bytes

log = logging.getLogger(__name__)

WHEEL = "geoclip-1.3.0-py3-none-any.whl"
WHEEL_SHA256 = "08a93791166a279d52b95c466a952c75f17f654cc61bdf6ab20355325b564dec"
HOW_TO_GET_IT = f"`pip download --no-deps geoclip==1.3.0` brings {WHEEL}"
PUBLISHED_ON_IM2GPS3K = {"1 km": 14.1, "25 km": 34.5, "200 km": 50.7, "750 km": 69.7, "2500 km": 83.8}
"""Per cent of photos, as its authors publish them: of the likeliest of 100,000 places, not of a cell's mean."""
CLIP_VIT_L_14: dict[str, Any] = {
    "model_type": CLIP_VISION,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The shape of openai/clip-vit-large-patch14, whose features GeoCLIP was trained on."""
SIGMAS = (1, 16, 256)

_MLP, _LOCATION, _SCALE, _PLACES = (
    "geoclip/model/weights/image_encoder_mlp_weights.pth",
    "geoclip/model/weights/location_encoder_weights.pth",
    "geoclip/model/weights/logit_scale_weights.pth",
    "geoclip/model/gps_gallery/coordinates_100K.csv",
)
_MOST_BYTES = 1 << 28
_AT_ONCE = 8192
_EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)
"""The polynomial's coefficients, of θ, θ³, θ⁷ and θ⁹. Source: Šavrič, Patterson & Jenny, "The Equal Earth map
projection", 2018."""
_PLANE = 66.50336 / 180
"""GeoCLIP's unit in the projection's plane."""


Layers = tuple[tuple[Tensor, Tensor], ...]
"""Weight and bias of each layer of a perceptron, first to last."""


@dataclass(frozen=True, eq=False)
class GeoClip:
    """What the wheel holds.

    Attributes:
        head: the image perceptron.
        location: frequencies and layers of each of the three location perceptrons.
        scale: what cosines are multiplied by.
        lat_deg_N, lon_deg_N: the places of the gallery.
        sha256: of the wheel.
    """

    head: Layers
    location: tuple[tuple[Tensor, Layers], ...]
    scale: float
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    sha256: str

    @property
    def head_widths(self) -> tuple[int, ...]:
        """The widths of the image perceptron's layers."""
        return tuple(len(bias) for _, bias in self.head)

    @property
    def clip_width(self) -> int:
        """How wide CLIP's projected features have to be."""
        return int(self.head[0][0].shape[1])


def read_wheel(path: Path) -> GeoClip:
    """Read GeoCLIP's tensors and places; no code of the wheel runs, and its pickles may hold nothing but tensors.

    Raises:
        ValueError: in one line, what the file is instead, and how to get the right one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--weights {path} cannot be read ({error.strerror or error}): {HOW_TO_GET_IT}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            members = {name: _member(wheel, name) for name in (_MLP, _LOCATION, _SCALE, _PLACES)}
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        said = " ".join(str(error).split())[:200].strip("'\"")
        raise ValueError(f"--weights {path} is not GeoCLIP's wheel, or cut short ({said}): {HOW_TO_GET_IT}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != WHEEL_SHA256:
        log.warning("%s is not the wheel of version 1.3.0 that this was written for: its hash is another one", path)
    try:
        mlp, location = _tensors(members[_MLP]), _tensors(members[_LOCATION])
        scale = _tensors(members[_SCALE])
        if not isinstance(mlp, dict) or not isinstance(location, dict) or not isinstance(scale, Tensor):
            raise ValueError("its weights are not laid out as version 1.3.0's")
        head = _layers(mlp, ("0", "2"))
        encoders = tuple(_encoder(location, f"LocEnc{number}", head[-1][1]) for number in range(len(SIGMAS)))
        if len(location) != 9 * len(SIGMAS) or scale.numel() != 1:
            raise ValueError(f"it has {len(location)} tensors of the location encoder instead of {9 * len(SIGMAS)}")
        lat_deg_N, lon_deg_N = coordinates(table_from_bytes(members[_PLACES], _PLACES), _PLACES)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"--weights {path} is not GeoCLIP's wheel of 1.3.0 ({said}): {HOW_TO_GET_IT}") from error
    return GeoClip(head, encoders, float(scale.detach().double().exp()), lat_deg_N, lon_deg_N, sha256)


def needed_shape(geoclip: GeoClip) -> dict[str, Any]:
    """Return the shape of the CLIP whose features the image perceptron takes: all of it for the published one's."""
    published, width = CLIP_VIT_L_14, geoclip.clip_width
    of_another = {"model_type": published["model_type"], "projection_dim": width}
    return published if width == published["projection_dim"] else of_another


def location_features(geoclip: GeoClip, lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64]) -> Tensor:
    """features_ND of places, of length 1."""
    parts = []
    for start in range(0, len(lat_deg_N), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        plane_N2 = torch.from_numpy(equal_earth_N2(lat_deg_N[rows], lon_deg_N[rows]))
        parts.append(normalize(sum_of_encoders(geoclip, plane_N2), dim=1))
    return torch.cat(parts)


def sum_of_encoders(geoclip: GeoClip, plane_N2: Tensor) -> Tensor:
    """features_ND of points of the plane (fp64): the sum of what the location perceptrons say, in fp32.

    Phases reach thousands of turns, so they are computed in fp64.
    """
    total_ND = torch.zeros(())
    for frequency_F2, layers in geoclip.location:
        phase_NF = 2 * math.pi * (plane_N2 @ frequency_F2.double().T)
        hidden_ND = torch.cat([phase_NF.cos(), phase_NF.sin()], dim=1).float()
        for weight, bias in layers[:-1]:
            hidden_ND = relu(linear(hidden_ND, weight, bias))
        total_ND = total_ND + linear(hidden_ND, *layers[-1])
    return total_ND


def equal_earth_N2(lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (x, y) of places in the Equal Earth projection, in GeoCLIP's unit."""
    a1, a2, a3, a4 = _EQUAL_EARTH
    theta = np.arcsin(math.sqrt(3) / 2 * np.sin(np.radians(lat_deg_N)))
    slope = a1 + 3 * a2 * theta**2 + 7 * a3 * theta**6 + 9 * a4 * theta**8
    x = 2 * math.sqrt(3) / 3 * np.radians(lon_deg_N) * np.cos(theta) / slope
    y = theta * (a1 + a2 * theta**2 + a3 * theta**6 + a4 * theta**8)
    return _PLANE * np.stack([x, y], axis=-1)


def _member(wheel: zipfile.ZipFile, name: str) -> bytes:
    if wheel.getinfo(name).file_size > _MOST_BYTES:
        raise KeyError(f"{name} would have more than {_MOST_BYTES} bytes")
    return wheel.read(name)


def _tensors(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _encoder(tensors: dict[str, Tensor], name: str, like_D: Tensor) -> tuple[Tensor, Layers]:
    frequency_F2 = tensors[f"{name}.capsule.0.b"]
    layers = _layers(tensors, tuple(f"{name}.{layer}" for layer in ("capsule.1", "capsule.3", "capsule.5", "head.0")))
    if frequency_F2.ndim != 2 or frequency_F2.shape[1] != 2 or layers[0][0].shape[1] != 2 * len(frequency_F2):
        raise ValueError(f"{name}'s frequencies have the shape {tuple(frequency_F2.shape)}")
    if layers[-1][1].shape != like_D.shape:
        raise ValueError(f"places have {len(layers[-1][1])} features, photos {len(like_D)}")
    return frequency_F2.float(), layers


def _layers(tensors: dict[str, Tensor], names: tuple[str, ...]) -> Layers:
    """The layers of a perceptron, each one's input as wide as the output before."""
    layers = tuple((tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()) for name in names)
    for (weight, bias), name in zip(layers, names, strict=True):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"the layer {name} has the shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
        if not bool(weight.isfinite().all() & bias.isfinite().all()):
            raise ValueError(f"the layer {name} has numbers that are not finite")
    for (before, _), (after, _), name in zip(layers[:-1], layers[1:], names[1:], strict=True):
        if after.shape[1] != before.shape[0]:
            raise ValueError(f"the layer {name} takes {after.shape[1]} numbers, and gets {before.shape[0]}")
    return layers
