"""The image encoder: pixels become tokens, by any Hugging Face vision model that returns a last hidden state.

Shapes: B batch · C 3 colours · H, W height and width in pixels · N image tokens · D token width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)

_NOT_ARCHITECTURE = (
    "model_type",
    "transformers_version",
    "architectures",
    "dtype",
    "_name_or_path",
    "id2label",
    "label2id",
    # Which feature maps a detector would take, derived from the depths:
    "stage_names",
    "out_features",
    "out_indices",
)


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes pixels; training and serving both read it from here.

    The shorter side is resized to `resize_px`, then a centre crop of `image_size_px` squared is taken; a channel's
    value is (x / 255 - mean) / std.

    Raises:
        ValueError: a crop larger than the resized photo, a standard deviation that is not positive.
    """

    image_size_px: int
    resize_px: int
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB
    std_rgb: tuple[float, float, float] = IMAGENET_STD_RGB

    def __post_init__(self) -> None:
        if not 1 <= self.image_size_px <= self.resize_px:
            raise ValueError(
                f"image_size_px {self.image_size_px} must be at least 1 and at most resize_px {self.resize_px}"
            )
        if len(self.mean_rgb) != 3 or len(self.std_rgb) != 3:
            raise ValueError("mean_rgb and std_rgb need three numbers each: red, green, blue")
        if not all(math.isfinite(x) for x in (*self.mean_rgb, *self.std_rgb)) or min(self.std_rgb) <= 0:
            raise ValueError(f"mean_rgb must be finite and std_rgb positive, not {self.mean_rgb} and {self.std_rgb}")


@dataclass(frozen=True)
class BackboneConfig:
    """Which encoder: either an architecture spelled inline, or a Hugging Face model by name or local folder.

    Inline (`model_type` and `overrides` of that type's defaults) needs no hub and starts from random weights. With
    `name` the architecture is read from a local folder or from the local Hugging Face cache, never from the network,
    and its weights too if `pretrained`.

    Raises:
        ValueError: not exactly one of `model_type` and `name`; `pretrained` without `name`.
    """

    model_type: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    pretrained: bool = False

    def __post_init__(self) -> None:
        if bool(self.model_type) == bool(self.name):
            raise ValueError("a backbone needs either model_type (an inline architecture) or name (a model or folder)")
        if self.pretrained and not self.name:
            raise ValueError(f"an inline {self.model_type} has no pretrained weights: give the backbone's name instead")


class Backbone(nn.Module):
    """pixels_BCHW (normalised floats) → tokens_BND; grids of convolutional networks are flattened row by row.

    `config` is always the inline form of what was built, so a checkpoint that stores it needs no hub; `width` is D.

    Raises:
        ValueError: an unknown architecture or setting; a named model that is not on this machine.

    Source: the token outputs of transformers' AutoModel, without its poolers and mask tokens, which this network would
    never use (and DistributedDataParallel rejects parameters without a gradient).
    """

    def __init__(self, config: BackboneConfig, image_size_px: int) -> None:
        super().__init__()
        architecture = _architecture(config, image_size_px)
        try:
            if config.pretrained:
                model = AutoModel.from_pretrained(config.name, config=architecture, local_files_only=True)
            else:
                model = AutoModel.from_config(architecture)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise ValueError(_not_here(config.name)) from error
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"cannot build the backbone {_label(config)}: {_short(error)}") from error
        self.model = _without_unused_parts(model)
        self.config = BackboneConfig(model_type=architecture.model_type, overrides=_settings(architecture))
        self.width = self._output_width(image_size_px)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixels_BCHW).last_hidden_state
        if hidden.ndim == 4:
            return hidden.flatten(2).transpose(1, 2)
        return hidden

    @torch.no_grad()
    def _output_width(self, image_size_px: int) -> int:
        # One forward pass tells the width for every family; transformers has no one name for it. In eval mode, so that
        # batch normalisation keeps its statistics.
        self.eval()
        try:
            tokens_BND = self(torch.zeros(1, 3, image_size_px, image_size_px))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the backbone {self.config.model_type} does not accept {image_size_px} px images: {_short(error)}"
            ) from error
        self.train()
        return int(tokens_BND.shape[-1])


def _architecture(config: BackboneConfig, image_size_px: int) -> Any:
    """The transformers configuration that `config` describes."""
    try:
        if config.name:
            architecture = AutoConfig.from_pretrained(config.name, local_files_only=True)
        else:
            architecture = AutoConfig.for_model(config.model_type)
    except OSError as error:
        raise ValueError(_not_here(config.name)) from error
    except (ValueError, KeyError) as error:
        if Path(config.name or "-").exists():
            raise ValueError(_not_here(config.name)) from error
        raise ValueError(f"transformers knows no backbone of type {_label(config)}") from error
    known = architecture.to_dict()
    unknown = sorted(set(config.overrides) - set(known))
    if unknown:
        # transformers itself would take any key and ignore it.
        raise ValueError(f"a {architecture.model_type} has no setting {', '.join(unknown)}")
    overrides = dict(config.overrides)
    if not config.name and "image_size" in known:
        overrides.setdefault("image_size", image_size_px)
    try:
        # Rebuilt, not assigned: some settings derive others (Swin's hidden size, stage names).
        inherited = architecture.to_diff_dict() if config.name else {}
        return type(architecture)(**{**inherited, **overrides})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"wrong setting for the backbone {_label(config)}: {_short(error)}") from error


def _settings(architecture: Any) -> dict[str, Any]:
    """What differs from the type's defaults, as plain JSON values; library versions and the like left out."""
    return {key: value for key, value in architecture.to_diff_dict().items() if key not in _NOT_ARCHITECTURE}


def _without_unused_parts(model: nn.Module) -> nn.Module:
    """Remove what the tokens don't depend on: the pooler, and the mask token of masked pretraining."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()
    embeddings: Any = getattr(model, "embeddings", None)
    if getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None
    return model


def _not_here(name: str) -> str:
    if Path(name).exists():
        return f"{name} is not a complete Hugging Face model folder: it needs config.json and model.safetensors"
    return f"the backbone {name} is not on this machine: download it first with `hf download {name}`"


def _label(config: BackboneConfig) -> str:
    return config.name or config.model_type


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
