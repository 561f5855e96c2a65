"""Model folders as users have them, one for each family of backbones: tiny, their weights at random.

Two-tower models are whole, text half and all, since that is what is downloaded; a model with a classifier or a head of
its own has it; beside config.json and model.safetensors lies the preprocessor_config.json that the family's has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

SIZE_PX = 32
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": SIZE_PX,
}
_DINO = {key: value for key, value in _VIT.items() if key != "intermediate_size"}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIZE_PX}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_SQUARE = {"size": {"height": SIZE_PX, "width": SIZE_PX}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CUT = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIZE_PX, "width": SIZE_PX}, "do_center_crop": True}
_CUT |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
_SHARE = {"size": {"shortest_edge": SIZE_PX}, "crop_pct": 0.875}


@dataclass(frozen=True)
class Family:
    """A family's tiny member.

    Attributes:
        model_class: transformers' name of the class whose folder users have.
        stored_type: the type that a checkpoint names, if not the folder's own.
        tokens, width: of an image of `SIZE_PX`.
    """

    model_type: str
    settings: dict[str, Any]
    model_class: str
    tokens: int
    width: int
    preprocessor: dict[str, Any] = field(default_factory=dict)
    stored_type: str = ""

    def write(self, folder: Path) -> nn.Module:
        """Save a member with random weights, and return it in eval mode."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.settings)
        model: nn.Module = getattr(transformers, self.model_class)(config).eval()
        for norm in model.modules():
            # Else one that is left out would not be missed; and EfficientNet's begin so small that nothing passes.
            if isinstance(norm, nn.LayerNorm | nn.BatchNorm2d):
                nn.init.normal_(norm.weight, 1.0, 0.3)
                nn.init.normal_(norm.bias, 0.0, 0.3)
        transformers.logging.disable_progress_bar()
        model.save_pretrained(folder)
        if self.preprocessor:
            (folder / "preprocessor_config.json").write_text(json.dumps(self.preprocessor))
        return model


FAMILIES = {
    "clip": Family(
        "clip",
        {"vision_config": _VIT, "text_config": _TEXT, "projection_dim": 8},
        "CLIPModel",
        17,
        16,
        _CUT,
        "clip_vision_model",
    ),
    "siglip": Family(
        "siglip",
        {"vision_config": _VIT, "text_config": _TEXT},
        "SiglipModel",
        16,
        16,
        _SQUARE,
        "siglip_vision_model",
    ),
    "dinov2": Family("dinov2", _DINO, "Dinov2Model", 17, 16, _CUT),
    "dinov2 with registers": Family("dinov2_with_registers", _DINO, "Dinov2WithRegistersModel", 21, 16, _CUT),
    "dinov3 vit": Family("dinov3_vit", _VIT | {"num_register_tokens": 2}, "DINOv3ViTModel", 19, 16, _SQUARE),
    "dinov3 convnext": Family("dinov3_convnext", _STAGES, "DINOv3ConvNextModel", 17, 16, _SQUARE),
    "vit": Family("vit", _VIT, "ViTForImageClassification", 17, 16, _SQUARE),
    "deit": Family("deit", _VIT, "DeiTForImageClassificationWithTeacher", 18, 16, _CUT),
    "convnext": Family("convnext", _STAGES | {"num_stages": 2}, "ConvNextForImageClassification", 16, 16, _SHARE),
    "convnextv2": Family("convnextv2", _STAGES | {"num_stages": 2}, "ConvNextV2ForImageClassification", 16, 16, _SHARE),
    "swin": Family("swin", _SWIN, "SwinForImageClassification", 16, 16, _SQUARE),
    "swinv2": Family("swinv2", _SWIN, "Swinv2ForImageClassification", 16, 16, _SQUARE),
    "efficientnet": Family(
        "efficientnet",
        {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": SIZE_PX},
        "EfficientNetForImageClassification",
        1,
        128,
        _SQUARE,
    ),
    "resnet": Family(
        "resnet",
        _STAGES | {"embedding_size": 8, "layer_type": "basic"},
        "ResNetForImageClassification",
        16,
        16,
        _SHARE,
    ),
    "mobilenet v1": Family(
        "mobilenet_v1", {"depth_multiplier": 0.25}, "MobileNetV1ForImageClassification", 1, 256, _CUT
    ),
    "mobilenet v2": Family(
        "mobilenet_v2", {"depth_multiplier": 0.25}, "MobileNetV2ForImageClassification", 1, 1280, _CUT
    ),
}


def without_head(model: Any) -> Any:
    """The part of a model that has a last hidden state; of two towers, the one for pictures."""
    if hasattr(model, "vision_model"):
        return model.vision_model
    return model if type(model).__name__.endswith("Model") else getattr(model, model.base_model_prefix)


@torch.no_grad()
def expected_tokens(model: nn.Module, pixels_BCHW: Tensor) -> Tensor:
    """What the family's own code says of each token; what it would normalise a pooled token with, applied to all."""
    base = without_head(model)
    hidden: Tensor = base(pixel_values=pixels_BCHW).last_hidden_state
    if hidden.ndim == 4:
        hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
    if type(model).__name__ == "CLIPModel":
        return base.post_layernorm(hidden)  # type: ignore[no-any-return]
    if type(model).__name__.startswith("ConvNext"):
        return base.layernorm(hidden)  # type: ignore[no-any-return]
    return hidden
