"""One vector for each photo: CLIP's projected features, or the mean of any other backbone's tokens.

Shapes: B batch · N image tokens · C, Y, X colours, rows, columns of pixels · D width of the vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.backbones import hugging_face
from model.backbones.backbone import Backbone, BackboneConfig, Preprocessing
from model.backbones.pretrained import read_preprocessing

CLIP_VISION = "clip_vision_model"
CLIP_MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD_RGB = (0.26862954, 0.26130258, 0.27577711)
_USUAL_SIZE_PX = 224
_SHAPE = (
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


class Tower(nn.Module):
    """pixels_BCYX (normalised) → vector_BD, of any length.

    Of `clip_vision_model` the vector is the first token, projected to where CLIP compares it with texts; of every other
    architecture it is the mean of the tokens. `config` is the inline form of what was built, `width` is D.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.config, self.width = backbone, backbone.config, backbone.width
        self.projection: nn.Linear | None = None
        if self.config.model_type == CLIP_VISION:
            architecture: Any = backbone.model.config
            self.width = int(architecture.projection_dim)
            self.projection = nn.Linear(backbone.width, self.width, bias=False)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        tokens_BND: Tensor = self.backbone(pixels_BCYX)
        if self.projection is None:
            return tokens_BND.mean(dim=1)
        vector_BD: Tensor = self.projection(tokens_BND[:, 0])
        return vector_BD


def load_tower(name: str) -> tuple[Tower, Preprocessing]:
    """Return the vision tower in a Hugging Face folder, or in the local cache by its hub name, and how it is fed.

    Of a folder with two towers, CLIP's for pictures and texts, the one for pictures is taken. Nothing is downloaded.

    Raises:
        ValueError: in one line, what was found there and what is needed: no model, no tower for pictures, weights that
            are missing, cut short or of another shape.
    """
    preprocessing = read_preprocessing(name)
    tower = Tower(Backbone(BackboneConfig(name=name, pretrained=True), preprocessing.image_size_px))
    if tower.projection is not None:
        with torch.no_grad():
            tower.projection.weight.copy_(hugging_face.clip_projection(name))
        if not hugging_face.image_processor(name):
            size_px = preprocessing.image_size_px
            preprocessing = Preprocessing(size_px, size_px, CLIP_MEAN_RGB, CLIP_STD_RGB)
    return tower.eval(), preprocessing


def tower_shape(name: str) -> dict[str, Any]:
    """Return the type that a folder's config.json gives its network and, of CLIP, what decides whether weights fit.

    That is sizes, activation and epsilon. Raises ValueError where there is no such folder.
    """
    size_px = hugging_face.image_size_px(name) or _USUAL_SIZE_PX
    found = hugging_face.architecture("", name, {}, size_px)
    shape = _SHAPE if found.model_type == CLIP_VISION else ()
    return {"model_type": found.model_type} | {setting: getattr(found, setting) for setting in shape}
