"""Galleries out of features of places: sorted into a hierarchy of their own, and read without having been calibrated.

Shapes: N places · B batch · D width of features · H levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.backbones.backbone import Preprocessing
from model.backbones.tower import Tower
from model.gallery import Gallery, GalleryConfig
from model.readout import RADIUS_PROBABILITY, Reading
from model.world import s2
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from training.data.dataset import PhotoSource
from training.evaluate.evaluation import BATCH_SIZE, as_input
from training.hierarchy import PartitionConfig, build_hierarchy

TAU_MAX = (5000, 1500, 500, 150, 50, 15)
"""Places that a cell may hold, coarse → fine: of GeoCLIP's 100,000 they make 17,855 cells on the finest level, as many
as the paper's hierarchy has; its places lie 1.45 km (median) from their cell's mean."""
FEWEST_PLACES = 100
PRIOR_SHARE = 0.01
"""Before it is fitted: so that no place is impossible, though the gallery has none there."""


def partition(places: int, tau_max: tuple[int, ...]) -> PartitionConfig:
    """Return how so many places are sorted into cells; thresholds that no cell could exceed are left out.

    Raises:
        ValueError: fewer than `FEWEST_PLACES`, or thresholds that don't fall.
    """
    if places < FEWEST_PLACES:
        raise ValueError(f"a gallery of {places} places would answer nothing: it takes {FEWEST_PLACES}")
    whole = PartitionConfig(0, tau_max)
    return replace(whole, tau_max=tuple(tau for tau in tau_max if tau < places) or tau_max[-1:])


def make_gallery(
    tower: Tower,
    preprocessing: Preprocessing,
    head: Sequence[tuple[Tensor, Tensor]],
    features_ND: Tensor,
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    scale: float,
    tau_max: tuple[int, ...],
) -> tuple[Gallery, Hierarchy]:
    """Return the network, and the hierarchy of its places.

    Args:
        head: weight and bias of each layer between the tower and the gallery.
        features_ND: of length 1, one row a place.
        scale: what cosines are multiplied by, before the softmax.
        tau_max: how many places a cell may hold, coarse → fine.

    Raises:
        ValueError: too few places, or thresholds that are none; `partition` tells beforehand.
    """
    hierarchy = build_hierarchy(lat_deg_N, lon_deg_N, partition(len(lat_deg_N), tau_max))
    widths = tuple(len(bias) for _, bias in head)
    gallery = Gallery(GalleryConfig(tower.config, preprocessing, head_widths=widths), hierarchy, tower)
    # A cell's places lie side by side on the curve, and cells are in its order.
    order_N = np.argsort(s2.leaf_id_N(lat_deg_N, lon_deg_N), kind="stable")
    state = {"gallery.weight": scale * features_ND[torch.from_numpy(order_N)]}
    for number, (weight, bias) in enumerate(head):
        state |= {f"head.{2 * number}.weight": weight, f"head.{2 * number}.bias": bias}
    wrong = gallery.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys
    assert all(key.startswith("tower.") for key in wrong.missing_keys)
    return gallery.eval(), hierarchy


def first_reading(hierarchy: Hierarchy, prior: Prior) -> Reading:
    """Return how a gallery is read before anything is fitted: as it is, with little of the prior."""
    levels = len(hierarchy.levels)
    return Reading(
        (1.0,) * levels, prior.levels(hierarchy), (PRIOR_SHARE,) * levels, RADIUS_PROBABILITY, combination="sum"
    )


@torch.no_grad()
def photo_features(
    tower: Tower, preprocessing: Preprocessing, store: PhotoSource, rows: Sequence[int]
) -> tuple[NDArray[np.int64], Tensor]:
    """Return (row_N, features_ND), features of length 1, of the photos that could be read."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    features = [torch.empty(0, tower.width)]
    for row_B, pixels_BHWC in store.batches(rows, BATCH_SIZE):
        if len(row_B):
            found.append(row_B)
            size_px = preprocessing.image_size_px
            squares_SSC = pixels_BHWC.reshape(-1, size_px, size_px, 3)
            features_SD = tower(as_input(preprocessing, squares_SSC, torch.device("cpu")))
            features.append(_of_views(features_SD, preprocessing.views))
    return np.concatenate(found), torch.nn.functional.normalize(torch.cat(features), dim=1)


def _of_views(features_SD: Tensor, views: int) -> Tensor:
    """The mean of the directions of each photo's views: its cosines are the means of theirs, as they are served."""
    if views == 1:
        return features_SD
    return torch.nn.functional.normalize(features_SD, dim=1).reshape(-1, views, features_SD.shape[1]).mean(dim=1)
