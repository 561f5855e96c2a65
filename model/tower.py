"""One vector for each photo: CLIP's projected features, or the mean of any other backbone's tokens.

Shapes: B batch · C, Y, X colours, rows, columns of pixels · D width of the vector.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers import logging as transformers_logging
from transformers.utils.hub import cached_file

from model.backbone import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, Backbone, BackboneConfig, Preprocessing

CLIP_VISION = "clip_vision_model"
CLIP_MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD_RGB = (0.26862954, 0.26130258, 0.27577711)
_PREPROCESSING_FILE = "preprocessor_config.json"
_SHAPE_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "projection_dim",
    "hidden_act",
    "layer_norm_eps",
)
_SETTINGS = {*_SHAPE_SETTINGS, "num_channels", "attention_dropout", "initializer_range", "initializer_factor"}


class Tower(nn.Module):
    """pixels_BCYX (normalised) → vector_BD, of any length.

    Of `clip_vision_model` the vector is the projected one, which CLIP compares with texts; of every other architecture
    the mean of the tokens that `Backbone` gives. `config` is the inline form of what was built, `width` is D.
    """

    def __init__(self, model: nn.Module, config: BackboneConfig, width: int) -> None:
        super().__init__()
        self.model, self.config, self.width = model, config, width

    @classmethod
    def build(cls, config: BackboneConfig, image_size_px: int) -> Tower:
        """Return the tower that a configuration describes; ValueError for an unknown architecture or setting."""
        if config.model_type == CLIP_VISION:
            architecture = _clip_architecture(config.overrides, image_size_px)
            return cls(CLIPVisionModelWithProjection(architecture), config, int(architecture.projection_dim))
        backbone = Backbone(config, image_size_px)
        return cls(backbone, backbone.config, backbone.width)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        if isinstance(self.model, Backbone):
            tokens_BND: Tensor = self.model(pixels_BCYX)
            return tokens_BND.mean(dim=1)
        vector_BD: Tensor = self.model(pixel_values=pixels_BCYX).image_embeds
        return vector_BD


def load_tower(name: str) -> tuple[Tower, Preprocessing]:
    """Return the vision tower in a Hugging Face folder, or in the local cache by its hub name, and how it is fed.

    Of a folder with two towers, CLIP's for pictures and texts, the one for pictures is taken. Nothing is downloaded.

    Raises:
        ValueError: in one line, what was found there and what is needed: no model, no tower for pictures, weights that
            are missing, cut short or of another shape.
    """
    described = _described(name)
    with _quiet():
        if described.model_type in ("clip", CLIP_VISION):
            return _load_clip(name, described)
        if described.model_type.startswith("clip_text"):
            raise ValueError(f"{name} is CLIP's tower for texts alone: it takes the one for pictures, or both")
        size = getattr(getattr(described, "vision_config", described), "image_size", None)
        preprocessing = _preprocessing(name, size, is_clip=False)
        try:
            tower = Tower.build(BackboneConfig(name=name, pretrained=True), preprocessing.image_size_px)
        except (SafetensorError, EOFError) as error:
            raise ValueError(_damaged(name, error)) from error
    return tower.eval(), preprocessing


def is_clip(tower: Tower) -> bool:
    """Return whether a tower is CLIP's, with its projection."""
    return tower.config.model_type == CLIP_VISION


def clip_shape(tower: Tower) -> dict[str, Any]:
    """Return what decides whether the weights of one CLIP could be those of another: sizes, activation, epsilon."""
    assert isinstance(tower.model, CLIPVisionModelWithProjection)
    return {name: getattr(tower.model.config, name) for name in _SHAPE_SETTINGS}


def _described(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if Path(name).exists():
            raise ValueError(f"{name} is no Hugging Face model: it needs config.json and model.safetensors") from error
        raise ValueError(f"{name} is not on this machine: `hf download {name}` first, or give a folder") from error


def _load_clip(name: str, described: Any) -> tuple[Tower, Preprocessing]:
    vision = described
    if described.model_type == "clip":
        # A two-tower model says the width of its projection for both, whatever the vision half's own setting is.
        vision = described.vision_config
        vision.projection_dim = described.projection_dim
    load: Any = CLIPVisionModelWithProjection.from_pretrained
    try:
        model, found = load(name, config=vision, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise ValueError(f"{name} has a config.json and no weights: it needs model.safetensors, too") from error
    except (SafetensorError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(_damaged(name, error)) from error
    missing = sorted(found["missing_keys"])
    if missing:
        # Transformers would go on with random numbers in their place.
        raise ValueError(f"{name} lacks {len(missing)} of the tower's tensors, such as {missing[0]}: download it again")
    settings = {key: value for key, value in vision.to_diff_dict().items() if key in _SETTINGS}
    tower = Tower(model, BackboneConfig(CLIP_VISION, settings), int(vision.projection_dim))
    return tower.eval(), _preprocessing(name, vision.image_size, is_clip=True)


def _clip_architecture(settings: dict[str, Any], image_size_px: int) -> CLIPVisionConfig:
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise ValueError(f"a {CLIP_VISION} has no setting {', '.join(unknown)}")
    try:
        return CLIPVisionConfig(**{"image_size": image_size_px, **settings})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"wrong setting for a {CLIP_VISION}: {' '.join(str(error).split())[:200]}") from error


def _preprocessing(name: str, image_size: Any, *, is_clip: bool) -> Preprocessing:
    """What the folder's preprocessor_config.json says, or else what its family's models were trained with."""
    values: dict[str, Any] = {}
    path = cached_file(
        name, _PREPROCESSING_FILE, local_files_only=True,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    try:
        if path is not None:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        image_px = _pixels(values.get("crop_size")) or _pixels(image_size) or _pixels(values.get("size")) or 224
        resize_px = max(image_px, _pixels(values.get("size")) or image_px)
        mean = values.get("image_mean") or (CLIP_MEAN_RGB if is_clip else IMAGENET_MEAN_RGB)
        std = values.get("image_std") or (CLIP_STD_RGB if is_clip else IMAGENET_STD_RGB)
        (mean_r, mean_g, mean_b), (std_r, std_g, std_b) = map(float, mean), map(float, std)
        return Preprocessing(image_px, resize_px, (mean_r, mean_g, mean_b), (std_r, std_g, std_b))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{_PREPROCESSING_FILE} of {name} can't be understood: {error}") from error


def _pixels(size: Any) -> int | None:
    """A size as preprocessors write it: a number, {"shortest_edge": n} or {"height": n, "width": n}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    if isinstance(size, list | tuple):
        size = size[0]
    return int(size) if size else None


def _damaged(name: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the weights in {name} are cut short, or another model's ({said}): download it again"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own tables and bars: what is wrong is said by our errors."""
    logs: Any = transformers_logging
    verbosity = logs.get_verbosity()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        logs.enable_progress_bar()
