"""The kinds of network that a checkpoint can hold, behind one face: pixels in, logits of every level and scene out.

geodecoder  the hierarchical scene-query network (`model.geodecoder`)
gallery     features of many places, with which a photo's are compared (`model.gallery`)
prior       no network at all: every photo gets the prior's answer

Shapes: B batch · C, Y, X colours, rows, columns of pixels · K classes of one level · S scenes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from model.backbones.backbone import Preprocessing
from model.gallery import Gallery, GalleryConfig
from model.geodecoder import SCENES_3, GeoDecoder, GeoDecoderConfig, GeoDecoderOutput, preprocessing_from_json
from model.world.hierarchy import Hierarchy

Kind = Literal["geodecoder", "gallery", "prior"]


class NetworkConfig(Protocol):
    """What every kind of network says of itself: how its pixels are made, and the names of its scenes."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How a photo becomes its pixels."""

    @property
    def scenes(self) -> tuple[str, ...]:
        """The kinds of scene that it tells apart."""

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""


@dataclass(frozen=True)
class PriorConfig:
    """A model without a network. Photos are decoded all the same, so that a broken one is found."""

    preprocessing: Preprocessing = Preprocessing(image_size_px=32, resize_px=32)  # noqa: RUF009 - it is frozen
    scenes: tuple[str, ...] = SCENES_3

    def to_json(self) -> dict[str, Any]:
        """This configuration as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> PriorConfig:
        """The configuration that `values` (parsed JSON) describes; ValueError where they describe none."""
        if not isinstance(values, dict) or set(values) != {"preprocessing", "scenes"}:
            raise ValueError("model must have the keys preprocessing and scenes, and no others")
        if not isinstance(values["scenes"], list) or not all(isinstance(scene, str) for scene in values["scenes"]):
            raise ValueError("model.scenes must be a list of names")
        return cls(preprocessing_from_json(values["preprocessing"]), tuple(values["scenes"]))


class PriorNetwork(nn.Module):
    """pixels_BCYX → the same logit for every cell and scene: what is read out is the prior alone."""

    def __init__(self, config: PriorConfig, class_counts: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.class_counts = config, class_counts

    def forward(self, pixels_BCYX: Tensor) -> GeoDecoderOutput:
        # Of the pixels only their number counts; they are looked at so that every runtime keeps them as an input.
        nothing_B1 = pixels_BCYX.flatten(1).sum(dim=1, keepdim=True) * 0.0
        return GeoDecoderOutput(
            tuple(nothing_B1.expand(-1, count) for count in self.class_counts),
            nothing_B1.expand(-1, len(self.config.scenes)),
        )


Network = GeoDecoder | Gallery | PriorNetwork
Config = GeoDecoderConfig | GalleryConfig | PriorConfig


def config_from_json(kind: str, values: Any) -> Config:
    """Return the configuration of a network of some kind; ValueError for an unknown kind or wrong values."""
    if kind == "geodecoder":
        return GeoDecoderConfig.from_json(values)
    if kind == "gallery":
        return GalleryConfig.from_json(values)
    if kind == "prior":
        return PriorConfig.from_json(values)
    raise ValueError(f"a model of the kind {kind!r:.50} is not known here: upgrade Graticule")


def build(config: Config, hierarchy: Hierarchy) -> Network:
    """Return the network that a configuration describes, its weights at random."""
    if isinstance(config, GeoDecoderConfig):
        return GeoDecoder(config, hierarchy.class_counts)
    if isinstance(config, GalleryConfig):
        return Gallery(config, hierarchy)
    return PriorNetwork(config, hierarchy.class_counts)


def kind_of(config: Config) -> Kind:
    """Return the kind of network that a configuration describes."""
    if isinstance(config, GeoDecoderConfig):
        return "geodecoder"
    return "gallery" if isinstance(config, GalleryConfig) else "prior"


def in_dtype(network: Network, dtype: torch.dtype) -> Network:
    """Return the network computing in `dtype`; a gallery's comparison stays in fp32, its tower does not."""
    if isinstance(network, Gallery):
        network.tower.to(dtype)
        return network
    return network.to(dtype)
