"""GeoDecoder: one learned query per scene and hierarchy asks the image's tokens where it was taken.

Source: Clark et al., "Where We Are and What We're Looking At", CVPR 2023, arXiv 2303.04249.

Shapes: B batch · C, Y, X colours, rows, columns of pixels · N image tokens · D width · H hierarchies (levels)
· S scenes · K classes of one level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.backbones.backbone import Backbone, BackboneConfig, Preprocessing
from model.decoder import DependentLayer, IndependentLayer

ONE_SCENE = ("any",)
"""The scenes of a network that does not tell any apart."""

SCENES_3 = ("indoor", "natural", "urban")

SCENES_16 = (
    "shopping and dining",
    "workplace",
    "home or hotel",
    "transportation, indoor",
    "sports and leisure, indoor",
    "cultural, indoor",
    "water, ice, snow",
    "mountains, hills, desert, sky",
    "forest, field, jungle",
    "man-made elements in nature",
    "transportation, outdoor",
    "cultural or historical building",
    "sports fields, parks, leisure",
    "industrial and construction",
    "houses, cabins, gardens, farms",
    "commercial buildings, markets, towns",
)
"""The second level of the Places365 scene hierarchy: 0–5 indoor, 6–9 natural, 10–15 urban."""


@dataclass(frozen=True)
class GeoDecoderConfig:
    """Everything about the network that the hierarchy does not say: class counts are never written here.

    Raises:
        ValueError: a width that the heads don't divide, no layers or scenes, a dropout outside [0, 1), repeated scenes.
    """

    backbone: BackboneConfig
    preprocessing: Preprocessing
    scenes: tuple[str, ...]
    width: int
    heads: int
    feed_forward_width: int
    independent_layers: int
    dependent_layers: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if self.feed_forward_width < 1:
            raise ValueError(f"feed_forward_width must be positive, not {self.feed_forward_width}")
        layers = (self.independent_layers, self.dependent_layers)
        if min(layers) < 0 or sum(layers) < 1:
            raise ValueError("independent_layers and dependent_layers must not be negative, and one of them positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if not self.scenes or len(set(self.scenes)) != len(self.scenes):
            raise ValueError("scenes must be one or more different names")

    def to_json(self) -> dict[str, Any]:
        """This configuration as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> GeoDecoderConfig:
        """The configuration that `values` (parsed JSON) describes.

        Raises:
            ValueError: an unknown or missing key, a value of the wrong type, or one that the class refuses.
        """
        fields = checked_fields(cls, values, "model")
        fields["backbone"] = backbone_from_json(fields["backbone"])
        fields["preprocessing"] = preprocessing_from_json(fields["preprocessing"])
        if not all(isinstance(scene, str) for scene in fields["scenes"]):
            raise ValueError("model.scenes must be a list of names")
        fields["scenes"] = tuple(fields["scenes"])
        fields["dropout"] = _number(fields["dropout"], "model.dropout")
        return cls(**fields)


def backbone_from_json(values: Any) -> BackboneConfig:
    """The backbone that `values` (parsed JSON) describes; ValueError where they describe none."""
    return BackboneConfig(**checked_fields(BackboneConfig, values, "model.backbone"))


def preprocessing_from_json(values: Any) -> Preprocessing:
    """The preprocessing that `values` (parsed JSON) describes; ValueError where they describe none."""
    if isinstance(values, dict):
        values = {"framing": "centre"} | values  # as `Preprocessing.to_json` leaves it out
    fields = checked_fields(Preprocessing, values, "model.preprocessing")
    for key in ("mean_rgb", "std_rgb"):
        fields[key] = tuple(_number(value, f"model.preprocessing.{key}") for value in fields[key])
    return Preprocessing(**fields)


class GeoDecoderOutput(NamedTuple):
    """What the network says: logits of each level's classes, coarse → fine, and of the scenes."""

    logits: tuple[Tensor, ...]
    """One tensor BK a level."""
    scene_logits_BS: Tensor

    def averaged(self, views: int) -> GeoDecoderOutput:
        """The mean, in fp32, of every `views` rows that follow each other: those of one photo."""
        if views == 1:
            return self
        *logits, scene_logits_BS = (
            rows_VK.float().reshape(-1, views, rows_VK.shape[1]).mean(dim=1)
            for rows_VK in (*self.logits, self.scene_logits_BS)
        )
        return GeoDecoderOutput(tuple(logits), scene_logits_BS)


class GeoDecoder(nn.Module):
    """pixels_BCYX (normalised) → logits of every level and of the scenes.

    One query per (hierarchy, scene), drawn at random and learned, goes through the hierarchy-independent and then the
    hierarchy-dependent layers. A scene's logit is channel 0 of its output queries, averaged over the hierarchies. One
    scene's queries, one per hierarchy, go to one linear classifier per hierarchy.

    `config.backbone` of the built network is always inline, so it can be built again without a hub.

    Args:
        class_counts: cells of each level, coarse → fine: `Hierarchy.class_counts`.

    Raises:
        ValueError: a backbone that cannot be built here, or no classes.
    """

    def __init__(self, config: GeoDecoderConfig, class_counts: tuple[int, ...]) -> None:
        super().__init__()
        if not class_counts or min(class_counts) < 1:
            raise ValueError(f"every level of the hierarchy needs a cell, but the counts are {class_counts}")
        self.backbone = Backbone(config.backbone, config.preprocessing.image_size_px)
        self.config = dataclasses.replace(config, backbone=self.backbone.config)
        self.class_counts = class_counts
        width, levels = config.width, len(class_counts)
        self.projection = nn.Linear(self.backbone.width, width) if self.backbone.width != width else nn.Identity()
        # Backbones end in whatever scale they like (MobileNetV2 in a ReLU6); attention wants unit scale.
        self.token_norm = nn.LayerNorm(width)
        self.queries_HSD = nn.Parameter(torch.randn(levels, len(config.scenes), width))
        self.independent_layers = nn.ModuleList(
            IndependentLayer(width, config.heads, config.feed_forward_width, config.dropout)
            for _ in range(config.independent_layers)
        )
        self.dependent_layers = nn.ModuleList(
            DependentLayer(levels, width, config.heads, config.feed_forward_width, config.dropout)
            for _ in range(config.dependent_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classifiers = nn.ModuleList(nn.Linear(width, count) for count in class_counts)

    def forward(self, pixels_BCYX: Tensor, scene_B: Tensor | None = None) -> GeoDecoderOutput:
        """Logits for normalised pixels; see `forward_tokens` for `scene_B`."""
        return self.forward_tokens(self.backbone(pixels_BCYX), scene_B)

    def forward_tokens(self, tokens_BND: Tensor, scene_B: Tensor | None = None) -> GeoDecoderOutput:
        """Logits for the backbone's tokens.

        Args:
            tokens_BND: what `backbone` returns, of the backbone's width.
            scene_B: int64; where it is 0 or more that scene's queries are classified ("labelled" routing, for
                training); where it is negative, and without it, the most confident scene's ("predicted" routing).
        """
        tokens_BND = self.token_norm(self.projection(tokens_BND))
        # Until they meet the image, queries are the same for all photos: a batch of 1, which compilers fold into a
        # constant. In training each photo draws its own dropout.
        x_BHSD = self.queries_HSD.expand(tokens_BND.shape[0] if self.training else 1, -1, -1, -1)
        for layer in (*self.independent_layers, *self.dependent_layers):
            x_BHSD = layer(x_BHSD, tokens_BND)
        x_BHSD = self.norm(x_BHSD)
        scene_logits_BS = x_BHSD[..., 0].mean(dim=1)
        chosen_B = scene_logits_BS.argmax(dim=1)
        if scene_B is not None:
            chosen_B = torch.where(scene_B >= 0, scene_B, chosen_B)
        index_BH1D = chosen_B[:, None, None, None].expand(-1, x_BHSD.shape[1], 1, x_BHSD.shape[3])
        chosen_BHD = x_BHSD.gather(2, index_BH1D).squeeze(2)
        logits = tuple(classifier(chosen_BHD[:, level]) for level, classifier in enumerate(self.classifiers))
        return GeoDecoderOutput(logits, scene_logits_BS)

    def forward_views(self, tokens_BND: Tensor, scene_B: Tensor | None = None) -> GeoDecoderOutput:
        """Logits for the tokens of all views of each photo, one view's after the other's, averaged over the views."""
        views = tokens_BND.shape[1] // self.backbone.tokens
        each_view = tokens_BND.reshape(-1, self.backbone.tokens, tokens_BND.shape[2])
        scene = scene_B.repeat_interleave(views) if scene_B is not None else None
        return self.forward_tokens(each_view, scene).averaged(views)


def paper_swin_b() -> GeoDecoderConfig:
    """The published network, for a hierarchy of 7 levels: Swin-B at 224 px (49 tokens of 1024), 16 scenes.

    Its weights start at random; for microsoft/swin-base-patch4-window7-224-in22k give that name as the backbone.
    """
    swin_b = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7}
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="swin", overrides=swin_b),
        preprocessing=Preprocessing(image_size_px=224, resize_px=256),
        scenes=SCENES_16,
        width=1024,
        heads=16,
        feed_forward_width=2048,
        independent_layers=6,
        dependent_layers=2,
        dropout=0.1,
    )


def small() -> GeoDecoderConfig:
    """Swin-T at 224 px (49 tokens of 768) and a decoder a quarter as wide as the paper's; 16 scenes."""
    swin_t = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="swin", overrides=swin_t),
        preprocessing=Preprocessing(image_size_px=224, resize_px=256),
        scenes=SCENES_16,
        width=256,
        heads=8,
        feed_forward_width=1024,
        independent_layers=3,
        dependent_layers=1,
        dropout=0.1,
    )


def bundled(scenes: tuple[str, ...] = SCENES_3) -> GeoDecoderConfig:
    """The network that ships with Graticule: MobileNetV2 1.0 at 192 px (36 tokens of 1280), about 12 MB as fp32.

    `tf_padding` is off: convolutions pad symmetrically, as in torchvision's MobileNetV2.
    """
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="mobilenet_v2", overrides={"tf_padding": False, "layer_norm_eps": 1e-5}),
        preprocessing=Preprocessing(image_size_px=192, resize_px=208),
        scenes=scenes,
        width=128,
        heads=4,
        feed_forward_width=256,
        independent_layers=2,
        dependent_layers=1,
        dropout=0.1,
    )


def tiny() -> GeoDecoderConfig:
    """A Swin so small that tests build, train and export it in a moment: 32 px, 16 tokens of 32, 3 scenes."""
    swin = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "drop_path_rate": 0.0}
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="swin", overrides=swin),
        preprocessing=Preprocessing(image_size_px=32, resize_px=36),
        scenes=SCENES_3,
        width=24,
        heads=4,
        feed_forward_width=48,
        independent_layers=1,
        dependent_layers=1,
    )


_JSON_TYPES: Mapping[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (object, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
    "Framing": (str, "a text"),
}


def checked_fields(kind: Any, values: Any, where: str) -> dict[str, Any]:
    """`values` as keyword arguments of the dataclass `kind`; ValueError for other keys, or types that can't be."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    unknown, missing = sorted(set(values) - set(fields)), sorted(set(fields) - set(values))
    if unknown:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}")
    if missing:
        raise ValueError(f"{where} lacks the key {missing[0]!r}")
    for name, annotation in fields.items():
        default = (list, "a list") if annotation.startswith("tuple") else (dict, "a JSON object")
        expected, label = _JSON_TYPES.get(annotation, default)
        value = values[name]
        if isinstance(value, tuple) and expected is list:
            value = list(value)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise ValueError(f"{where}.{name} must be {label}, not {values[name]!r}")
    return dict(values)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number, not {value!r}")
    return float(value)
