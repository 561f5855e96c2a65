"""Networks on the synthetic globe: how they are built, taught and measured, for all studies of it.

Every network is asked for one thing only, where: the town nearest to its answer, and that town's country and climate.
So a network of one level and one of seven are measured alike.

Shapes: N photos; T towns; K cells of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.backbones.backbone import BackboneConfig, Preprocessing
from model.geodecoder import ONE_SCENE, GeoDecoder, GeoDecoderConfig
from model.readout import BEST_CELL, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from training.data.augment import AugmentConfig
from training.data.dataset import ArraySource
from training.fit.loop import train
from training.fit.objective import Labels
from training.fit.recipe import Recipe
from training.globe.synthetic_globe import SIZE_PX, Globe, GlobePhotos
from training.hierarchy import PartitionConfig, build_hierarchy
from training.loss import UNKNOWN

YARDSTICKS = ("climate", "country", "town")
PRODUCT, FINEST = "product", "finest"

_TOWNS_PER_CELL = {7: (12, 8, 6, 4, 3, 2, 1), 3: (12, 4, 1), 1: (1,)}


@dataclass(frozen=True)
class Variant:
    """A network: the numbers of its levels, of the scenes that it tells apart, and of its decoder's layers."""

    levels: int = 7
    scenes: int = 3
    independent_layers: int = 2
    dependent_layers: int = 2


@dataclass(frozen=True)
class Answer:
    """How good some places are: shares right by yardstick (climate, country, town), and the mean distance."""

    right: dict[str, float]
    mean_km: float


def network(variant: Variant, scenes: Sequence[str], width: int = 64) -> GeoDecoderConfig:
    """Return a variant's network: a Swin block over the picture's 16 blocks, and a decoder a sixteenth of the paper's
    width. Small, because these photos are read easily; what is hard is to learn from few of them what they mean.

    `scenes` are the names of those that it tells apart; a variant of one scene takes none of them.
    """
    swin = {
        "embed_dim": width,
        "depths": [1],
        "num_heads": [4],
        "window_size": 4,
        "patch_size": 8,
        "drop_path_rate": 0.0,
    }
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="swin", overrides=swin | {"drop_path_rate": 0.0}),
        preprocessing=Preprocessing(image_size_px=SIZE_PX, resize_px=SIZE_PX),
        scenes=tuple(scenes) if variant.scenes > 1 else ONE_SCENE,
        width=width,
        heads=4,
        feed_forward_width=2 * width,
        independent_layers=variant.independent_layers,
        dependent_layers=variant.dependent_layers,
    )


def hierarchy_of(photos: GlobePhotos, photos_per_town: int, levels: int) -> Hierarchy:
    """Return the adaptive S2 hierarchy of training photos; its finest level has a town a cell, however many levels."""
    tau_max = tuple(towns * photos_per_town for towns in _TOWNS_PER_CELL[levels])
    return build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, PartitionConfig(0, tau_max))


def recipe_of(seed: int, photos: int, draws: int) -> Recipe:
    """Return how a network is trained on so many photos, `draws` in all.

    There are no random views, for a picture's places and colours are its meaning.
    """
    return Recipe(
        epochs=max(1, round(draws / photos)),
        batch_size=32,
        learning_rate=2e-3,
        balance=0.0,
        seed=seed,
        augment=AugmentConfig(least_area=1.0, most_stretch=1.0, mirror=False, colour=0.0),
    )


def teach(model: GeoDecoder, hierarchy: Hierarchy, photos: GlobePhotos, recipe: Recipe) -> dict[str, float]:
    """Train a network on all of some photos and return its last losses. A network of one scene is told no scenes."""
    known_scene_N = photos.scene_N if len(model.config.scenes) > 1 else np.full(len(photos), UNKNOWN)
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, known_scene_N)
    return train(model, ArraySource(photos.pixels_NYXC), labels, np.arange(len(photos)), recipe).losses


def measure(
    model: GeoDecoder, hierarchy: Hierarchy, globe: Globe, photos: GlobePhotos
) -> tuple[float, dict[str, Answer]]:
    """Return the share of scenes told right, and how good each read-out is on some photos."""
    scene_right, best = best_cells(model, hierarchy, photos)
    finest = hierarchy.levels[-1]
    answers = {
        name: judge(globe, photos, finest.lat_deg_K[cell_N], finest.lon_deg_K[cell_N]) for name, cell_N in best.items()
    }
    return scene_right, answers


@torch.no_grad()
def best_cells(
    model: GeoDecoder, hierarchy: Hierarchy, photos: GlobePhotos
) -> tuple[float, dict[str, NDArray[np.int64]]]:
    """Return the share of scenes told right, and by read-out (the product over the levels, the finest level alone) the
    row of the finest level's best cell for each photo."""
    read_out = ReadOut(hierarchy, Reading.plain(len(hierarchy.levels), BEST_CELL))
    preprocessing = model.config.preprocessing
    mean_3, std_3 = torch.tensor(preprocessing.mean_rgb), torch.tensor(preprocessing.std_rgb)
    best: dict[str, list[NDArray[np.int64]]] = {PRODUCT: [], FINEST: []}
    scene_right = 0
    for row_B, pixels_BYXC in ArraySource(photos.pixels_NYXC).batches(range(len(photos)), 512):
        output = model(((torch.from_numpy(pixels_BYXC).float() / 255 - mean_3) / std_3).permute(0, 3, 1, 2))
        best[PRODUCT].append(read_out.log_probabilities(output.logits)[-1].argmax(dim=1).numpy())
        best[FINEST].append(output.logits[-1].argmax(dim=1).numpy())
        scene_right += int((output.scene_logits_BS.argmax(dim=1).numpy() == photos.scene_N[row_B]).sum())
    return scene_right / len(photos), {name: np.concatenate(parts) for name, parts in best.items()}


def judge(globe: Globe, photos: GlobePhotos, lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64]) -> Answer:
    """Return how good the given places are for some photos."""
    said_N = globe.nearest_town_N(lat_deg_N, lon_deg_N)
    right = {
        name: float((cell_T[said_N] == cell_T[photos.town_N]).mean()) for name, cell_T in yardsticks(globe).items()
    }
    distance_km_N = geodesy.haversine_km(lat_deg_N, lon_deg_N, photos.lat_deg_N, photos.lon_deg_N)
    return Answer(right, float(distance_km_N.mean()))


def yardsticks(globe: Globe) -> dict[str, NDArray[np.int64]]:
    """Return, for each of `YARDSTICKS`, which towns belong together."""
    return dict(zip(YARDSTICKS, (globe.climate_T, globe.country_T, np.arange(globe.towns)), strict=True))
