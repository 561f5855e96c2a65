"""A gallery of places: a photo's features beside those of many places, the softmax added up in the hierarchy's cells.

GeoCLIP is one (Vivanco Cepeda et al., NeurIPS 2023, arXiv 2309.16020): CLIP's features of a photo, through a
perceptron, beside those that another network makes of 100,000 positions. Photos whose places are known are another.

Shapes: B batch · C, Y, X colours, rows, columns of pixels · D width of features · N places of the gallery · K cells of
one level · G neighbouring columns that are added up together, at most W of them each.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.backbones.backbone import Backbone, BackboneConfig, Preprocessing
from model.backbones.tower import Tower
from model.geodecoder import ONE_SCENE, GeoDecoderOutput, backbone_from_json, checked_fields, preprocessing_from_json
from model.world.hierarchy import Hierarchy

MOST_PLACES = 1 << 22
_ADDED_AT_ONCE = 16


@dataclass(frozen=True)
class GalleryConfig:
    """Everything about the network that the hierarchy does not say; there are as many places as it counts photos.

    Attributes:
        head_widths: of the perceptron's layers between the tower and the gallery, (768, 512) in GeoCLIP; none where the
            gallery is of the tower's own features.

    Raises:
        ValueError: a layer without width, several scenes.
    """

    backbone: BackboneConfig
    preprocessing: Preprocessing
    scenes: tuple[str, ...] = ONE_SCENE
    head_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in self.head_widths):
            raise ValueError(f"head_widths must be positive whole numbers, not {self.head_widths}")
        if len(self.scenes) != 1:
            raise ValueError(f"a gallery tells no scenes apart, so it has one, not {self.scenes}")

    def to_json(self) -> dict[str, Any]:
        """This configuration as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> GalleryConfig:
        """The configuration that `values` (parsed JSON) describes; ValueError where they describe none."""
        fields = checked_fields(cls, values, "model")
        fields["backbone"] = backbone_from_json(fields["backbone"])
        fields["preprocessing"] = preprocessing_from_json(fields["preprocessing"])
        if not all(isinstance(scene, str) for scene in fields["scenes"]):
            raise ValueError("model.scenes must be a list of names")
        fields["scenes"], fields["head_widths"] = tuple(fields["scenes"]), tuple(fields["head_widths"])
        return cls(**fields)


class Gallery(nn.Module):
    """pixels_BCYX (normalised) → logits of every level: the logarithms of the gallery's softmax, summed by cell.

    The gallery is one linear layer, `gallery`: a row for each place, in the order of the S2 curve and so of the finest
    level's cells, its features of length 1 times the scale of the softmax. By torch all that follows the tower is
    computed in fp32, whatever the tower is in, as cosines of neighbouring places differ in the third digit. OpenVINO
    chooses itself where it computes in bf16: probabilities of GeoCLIP's cells then differ by up to 0.005.

    Raises:
        ValueError: a backbone that cannot be built here, or a hierarchy with cells without a place.
    """

    def __init__(self, config: GalleryConfig, hierarchy: Hierarchy, tower: Tower | None = None) -> None:
        super().__init__()
        self.tower = tower or Tower(Backbone(config.backbone, config.preprocessing.image_size_px))
        self.config = dataclasses.replace(config, backbone=self.tower.config)
        self.class_counts = hierarchy.class_counts
        widths = (self.tower.width, *config.head_widths)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.ReLU()] if layers else []
            layers.append(nn.Linear(before, after))
        self.head = nn.Sequential(*layers)
        self.gallery = nn.Linear(widths[-1], places(hierarchy), bias=False)
        finest = hierarchy.levels[-1]
        self.cells = LogSums(finest.photo_count_K)
        counts = zip(hierarchy.levels[1:], hierarchy.class_counts[:-1], strict=True)
        self.parents = nn.ModuleList(LogSums(np.bincount(fine.parent_K, minlength=count)) for fine, count in counts)

    def forward(self, pixels_BCYX: Tensor) -> GeoDecoderOutput:
        logits_BN: Tensor = self.gallery(self.features(pixels_BCYX))
        levels: list[Tensor] = [self.cells(logits_BN)]
        for sums in reversed(self.parents):
            levels.append(sums(levels[-1]))
        return GeoDecoderOutput(tuple(reversed(levels)), torch.zeros_like(levels[-1][:, :1]))

    def features(self, pixels_BCYX: Tensor) -> Tensor:
        """features_BD, of length 1: what is compared with the gallery's."""
        features_BD = self.head(self.tower(pixels_BCYX).float())
        return nn.functional.normalize(features_BD, dim=1)


class LogSums(nn.Module):
    """logits_BN → logits_BK: the logarithm of the sum of the exponentials of as many neighbouring columns as each count
    says.

    Columns are added up 16 at a time, beside the greatest of them, until there is one left of each. Differences of one
    running sum over all N, in fp32, would lose every cell below a millionth of the whole; a product with a matrix of 0
    and 1 would be computed in bf16 by engines that are told to.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, count_K: NDArray[np.int64]) -> None:
        super().__init__()
        if not len(count_K) or count_K.min() < 1:
            raise ValueError("every cell of a gallery needs a place: build its hierarchy from the gallery's own places")
        self.rounds = 0
        while count_K.max() > 1:
            column_GW, is_one_GW, count_K = _groups(count_K)
            self.register_buffer(f"column_{self.rounds}_GW", torch.from_numpy(column_GW), persistent=False)
            self.register_buffer(f"weight_{self.rounds}_GW", torch.from_numpy(is_one_GW).float(), persistent=False)
            self.rounds += 1

    def forward(self, logits_BN: Tensor) -> Tensor:
        for number in range(self.rounds):
            column_GW, weight_GW = self.get_buffer(f"column_{number}_GW"), self.get_buffer(f"weight_{number}_GW")
            logits_BGW = logits_BN.index_select(1, column_GW.flatten()).reshape(-1, *column_GW.shape)
            greatest_BG1 = logits_BGW.amax(dim=2, keepdim=True)
            sum_BG = ((logits_BGW - greatest_BG1).exp() * weight_GW).sum(dim=2)
            logits_BN = sum_BG.log() + greatest_BG1[:, :, 0]
        return logits_BN


def places(hierarchy: Hierarchy) -> int:
    """Return how many places a gallery of this hierarchy has; ValueError for more than anybody could keep."""
    count = int(hierarchy.levels[-1].photo_count_K.astype(object).sum())
    if count > MOST_PLACES:
        raise ValueError(f"a gallery may have {MOST_PLACES} places, not {count}")
    return count


def _groups(count_K: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return (column_GW, is_one_GW, count_K): what to add up first, and how many sums of each that leaves.

    Where a group is not full, its first column stands in the rest, and counts for nothing there.
    """
    width = min(_ADDED_AT_ONCE, int(count_K.max()))
    groups_K = -(-count_K // width)
    number_G = np.arange(groups_K.sum()) - np.repeat(np.cumsum(groups_K) - groups_K, groups_K)
    first_G = np.repeat(np.cumsum(count_K) - count_K, groups_K) + number_G * width
    size_G = np.minimum(np.repeat(count_K, groups_K) - number_G * width, width)
    is_one_GW = np.arange(width) < size_G[:, None]
    return first_G[:, None] + np.where(is_one_GW, np.arange(width), 0), is_one_GW, groups_K
