"""A pretrained backbone by one name: what is stored of it in a checkpoint, how its pixels are made, and its weights.

Names are a Hugging Face folder, a model of the hub that is in the local cache, or `efficientnet-lite0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.backbones import efficientnet_lite, hugging_face
from model.backbones.backbone import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, Backbone, BackboneConfig, Preprocessing

_USUAL_SIZE_PX = 224
_USUAL_RESIZE = 256 / 224
_LEAST_UNCROPPED_PX = 384
"""From this size on, ConvNeXt's and ResNet's preprocessors, which have a `crop_pct`, show whole pictures."""


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A backbone that has learned: its inline configuration, its preprocessing, and the state dict of `Backbone`."""

    config: BackboneConfig
    preprocessing: Preprocessing
    weights: dict[str, Tensor]


def pretrained(name: str, image_size_px: int = 0) -> Pretrained:
    """Return the backbone of some name, for images of its own size unless another one is given.

    Raises:
        ValueError: a name that nothing here has, a file of another kind, weights that are missing or do not fit.
    """
    if name.endswith((".onnx", ".pt", ".pth", ".bin", ".safetensors", ".gguf")):
        raise ValueError(
            f"{name} is one file, and a backbone has to be stored in a checkpoint and served by every engine: give the "
            "Hugging Face folder (config.json and model.safetensors) that it was made from"
        )
    preprocessing = read_preprocessing(name, image_size_px)
    backbone = Backbone(BackboneConfig(name=name, pretrained=True), preprocessing.image_size_px)
    return Pretrained(backbone.config, preprocessing, backbone.state_dict())


def read_preprocessing(name: str, image_size_px: int = 0) -> Preprocessing:
    """Return how the pixels of a named model are made, as its preprocessor_config.json says.

    Where there is none: the image size of its config.json, else 224 px, the shorter side resized to 8/7 of it, and
    ImageNet's mean and standard deviation. With `image_size_px` the sizes are scaled to it.

    Raises:
        ValueError: a file that says something else, such as images that are not square.
    """
    if name == efficientnet_lite.NAME:
        size_px = image_size_px or efficientnet_lite.IMAGE_SIZE_PX
        mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
        return Preprocessing(size_px, round(size_px * _USUAL_RESIZE), (mean,) * 3, (std,) * 3)
    values = hugging_face.image_processor(name)
    try:
        own_px, resize_px = _sizes_px(values, hugging_face.image_size_px(name))
        mean_rgb, std_rgb = _colours(values)
        size_px = image_size_px or own_px
        return Preprocessing(size_px, round(resize_px * size_px / own_px), mean_rgb, std_rgb)
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"the preprocessor of {name} cannot be followed here: {error}") from error


def _sizes_px(values: dict[str, Any], configured_px: int | None) -> tuple[int, int]:
    """The image's size, and what the shorter side is resized to before it is cut out."""
    size_px = _side_px(values.get("size"))
    cut_px = _side_px(values.get("crop_size")) if values.get("do_center_crop", True) else None
    if cut_px is not None:
        return cut_px, max(cut_px, size_px or cut_px)
    if size_px is None:
        size_px = configured_px or _USUAL_SIZE_PX
        return size_px, round(size_px * _USUAL_RESIZE)
    share = values.get("crop_pct") if size_px < _LEAST_UNCROPPED_PX else None
    return size_px, round(size_px / share) if share else size_px


def _side_px(size: Any) -> int | None:
    """A size as preprocessors write it: 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if size is None:
        return None
    if isinstance(size, dict):
        sides = {size["shortest_edge"]} if "shortest_edge" in size else {size["height"], size["width"]}
    else:
        sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ValueError(f"its images are not square ({sorted(sides)} px)")
    return int(sides.pop())


def _colours(values: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of (x / 255 - mean) / std, whatever scale and offset x has before."""
    is_scaled = values.get("do_rescale", True)
    scale = 255 * float(values.get("rescale_factor", 1 / 255)) if is_scaled else 255.0
    offset = 1.0 if is_scaled and values.get("rescale_offset", False) else 0.0
    is_normalised = values.get("do_normalize", True)
    means = _three(values.get("image_mean") or IMAGENET_MEAN_RGB) if is_normalised else (0.0,) * 3
    stds = _three(values.get("image_std") or IMAGENET_STD_RGB) if is_normalised else (1.0,) * 3
    red, green, blue = ((mean + offset) / scale for mean in means)
    return (red, green, blue), (stds[0] / scale, stds[1] / scale, stds[2] / scale)


def _three(numbers: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, numbers if isinstance(numbers, list | tuple) else [numbers] * 3)
    return red, green, blue
