"""What networks learn of the synthetic globe, one idea of GeoDecoder at a time, beside the best that could be known.

Every variant is trained by the project's own loop on the same photos, for the same number of draws, and asked for one
thing only, where: the town nearest to its answer, and that town's country and climate. So a network of one level and
one of seven are measured alike. A seed is another globe, other photos and another network.

Shapes: N photos; T towns; K cells of the finest level.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model import geodesy
from model.backbone import BackboneConfig, Preprocessing
from model.geodecoder import GeoDecoder, GeoDecoderConfig
from model.hierarchy import Hierarchy
from model.readout import BEST_CELL, Reading, ReadOut
from training.augment import AugmentConfig
from training.dataset import ArraySource
from training.loop import train
from training.loss import UNKNOWN
from training.objective import Labels
from training.partition import PartitionConfig, build_hierarchy
from training.recipe import Recipe
from training.synthetic_globe import SIZE_PX, Globe, GlobeConfig, GlobePhotos

YARDSTICKS = ("climate", "country", "town")
PRODUCT, FINEST = "product", "finest"

_TEST_PHOTOS_PER_TOWN = 30
_TRAINING, _TEST = 0, 1  # draws of photos
_SEEN_BEFORE = 0.3  # what counts start from; 0.03 to 1 give the same accuracies within a percent or two
_TOWNS_PER_CELL = {7: (12, 8, 6, 4, 3, 2, 1), 3: (12, 4, 1), 1: (1,)}


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained; what differs from the first of `VARIANTS` is put to the test."""

    levels: int = 7
    scenes: bool = True
    level_weights: tuple[float, ...] = ()
    scene_weight: float = 0.5
    routing: Literal["labelled", "predicted"] = "predicted"
    independent_layers: int = 2
    dependent_layers: int = 2


VARIANTS = {
    "base: 7 levels, scenes, N = 2, E = 2": Variant(),
    "3 levels": Variant(levels=3),
    "1 level": Variant(levels=1),
    "finest level counts as all others": Variant(level_weights=(1, 1, 1, 1, 1, 1, 6)),
    "one set of queries for all scenes": Variant(scenes=False),
    "queries per scene, no scene loss": Variant(scene_weight=0.0),
    "queries of the labelled scene taught": Variant(routing="labelled"),
    "E = 0, N = 4": Variant(independent_layers=4, dependent_layers=0),
    "shallow: E = 1, N = 0": Variant(independent_layers=0, dependent_layers=1),
    "deep: E = 2, N = 6": Variant(independent_layers=6),
}


@dataclass(frozen=True)
class Answer:
    """How good the places are that one way of reading out a network gives: shares right on test photos by yardstick
    (climate, country, town), mean distance, and the share of towns right on the photos that it was trained on."""

    right: dict[str, float]
    mean_km: float
    trained_town: float


@dataclass(frozen=True)
class Result:
    """One variant trained once. `answers` by read-out: the product over the levels, the finest level alone."""

    variant: str
    seed: int
    photos_per_town: int
    answers: dict[str, Answer]
    scene: float
    losses: dict[str, float]
    seconds: float


def network(variant: Variant, scenes: Sequence[str]) -> GeoDecoderConfig:
    """Return a variant's network: a Swin block over the picture's 16 blocks, and a decoder a sixteenth of the paper's
    width. Small, because these photos are read easily; what is hard is to learn from few of them what they mean."""
    swin = {"embed_dim": 64, "depths": [1], "num_heads": [4], "window_size": 4, "patch_size": 8, "drop_path_rate": 0.0}
    return GeoDecoderConfig(
        backbone=BackboneConfig(model_type="swin", overrides=swin),
        preprocessing=Preprocessing(image_size_px=SIZE_PX, resize_px=SIZE_PX),
        scenes=tuple(scenes) if variant.scenes else ("any",),
        width=64,
        heads=4,
        feed_forward_width=128,
        independent_layers=variant.independent_layers,
        dependent_layers=variant.dependent_layers,
    )


def hierarchy_of(photos: GlobePhotos, photos_per_town: int, levels: int) -> Hierarchy:
    """Return the adaptive S2 hierarchy of training photos; its finest level has a town a cell, however many levels."""
    tau_max = tuple(towns * photos_per_town for towns in _TOWNS_PER_CELL[levels])
    return build_hierarchy(photos.lat_deg_N, photos.lon_deg_N, PartitionConfig(0, tau_max))


def study(name: str, seed: int, photos_per_town: int, draws: int) -> Result:
    """Train one of `VARIANTS` on `photos_per_town` photos of every town, `draws` photos in all, and measure it.

    The same arguments give the same result on one machine with one thread. Raises ValueError for an unknown variant.
    """
    if name not in VARIANTS:
        raise ValueError(f"there is no variant {name!r}: take one of {', '.join(map(repr, VARIANTS))}")
    start, variant = time.monotonic(), VARIANTS[name]
    globe = Globe(GlobeConfig(seed=seed))
    photos, test = globe.photos(photos_per_town, _TRAINING), globe.photos(_TEST_PHOTOS_PER_TOWN, _TEST)
    hierarchy = hierarchy_of(photos, photos_per_town, variant.levels)
    torch.manual_seed(seed)
    model = GeoDecoder(network(variant, globe.config.scenes), hierarchy.class_counts)
    losses = teach(model, hierarchy, photos, recipe_of(variant, seed, len(photos), draws))
    scene, answers = measure(model, hierarchy, globe, test)
    for read_out, learnt in measure(model, hierarchy, globe, photos)[1].items():
        answers[read_out] = dataclasses.replace(answers[read_out], trained_town=learnt.right["town"])
    return Result(name, seed, photos_per_town, answers, scene, losses, round(time.monotonic() - start, 1))


def recipe_of(variant: Variant, seed: int, photos: int, draws: int) -> Recipe:
    """Return how a variant is trained: no random views, for a picture's places and colours are its meaning."""
    return Recipe(
        epochs=max(1, round(draws / photos)),
        batch_size=32,
        learning_rate=2e-3,
        level_weights=variant.level_weights,
        scene_weight=variant.scene_weight,
        routing=variant.routing,
        balance=0.0,
        seed=seed,
        augment=AugmentConfig(least_area=1.0, most_stretch=1.0, mirror=False, colour=0.0),
    )


def teach(model: GeoDecoder, hierarchy: Hierarchy, photos: GlobePhotos, recipe: Recipe) -> dict[str, float]:
    """Train a network on all of some photos and return its last losses. A network of one scene is told no scenes."""
    known_scene_N = photos.scene_N if len(model.config.scenes) > 1 else np.full(len(photos), UNKNOWN)
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, known_scene_N)
    return train(model, ArraySource(photos.pixels_NYXC), labels, np.arange(len(photos)), recipe).losses


@torch.no_grad()
def measure(
    model: GeoDecoder, hierarchy: Hierarchy, globe: Globe, photos: GlobePhotos
) -> tuple[float, dict[str, Answer]]:
    """Return the share of scenes told right, and how good each read-out is on some photos."""
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
    finest = hierarchy.levels[-1]
    answers = {}
    for name, parts in best.items():
        cell_N = np.concatenate(parts)
        answers[name] = judge(globe, photos, finest.lat_deg_K[cell_N], finest.lon_deg_K[cell_N])
    return scene_right / len(photos), answers


def judge(globe: Globe, photos: GlobePhotos, lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64]) -> Answer:
    """Return how good the given places are for some photos."""
    said_N = globe.nearest_town_N(lat_deg_N, lon_deg_N)
    right = {
        name: float((cell_T[said_N] == cell_T[photos.town_N]).mean()) for name, cell_T in yardsticks(globe).items()
    }
    distance_km_N = geodesy.haversine_km(lat_deg_N, lon_deg_N, photos.lat_deg_N, photos.lon_deg_N)
    return Answer(right, float(distance_km_N.mean()), float("nan"))


def yardsticks(globe: Globe) -> dict[str, NDArray[np.int64]]:
    """Return, for each of `YARDSTICKS`, which towns belong together."""
    return dict(zip(YARDSTICKS, (globe.climate_T, globe.country_T, np.arange(globe.towns)), strict=True))


def counted(seed: int, photos_per_town: int, pooled: bool) -> Answer:
    """Return how good it is to count the training photos' symbols, which are read off their pixels without an error.

    Naive Bayes: how often a look of a scene shows each symbol in a town; `pooled` counts colours over a town's climate
    and signs over its country, as one may who knows which towns belong together. What that adds is what a hierarchy
    could be worth to those who learn from so few photos.
    """
    globe = Globe(GlobeConfig(seed=seed))
    photos, test = globe.photos(photos_per_town, _TRAINING), globe.photos(_TEST_PHOTOS_PER_TOWN, _TEST)
    town_T = np.arange(globe.towns)
    groups = (globe.climate_T, globe.country_T, town_T) if pooled else (town_T,) * 3
    log_NT = np.zeros((len(test), globe.towns))
    for cue, (group_T, symbols) in enumerate(zip(groups, globe.shape_O[1:], strict=True), start=1):
        count_GSA = np.full((group_T.max() + 1, globe.shape_O[0], symbols), _SEEN_BEFORE)
        np.add.at(count_GSA, (group_T[photos.town_N], photos.symbol_N4[:, 0], photos.symbol_N4[:, cue]), 1)
        share_GSA = count_GSA / count_GSA.sum(axis=2, keepdims=True)
        log_NT += np.log(share_GSA[group_T][:, test.symbol_N4[:, 0], test.symbol_N4[:, cue]]).T
    best_N = log_NT.argmax(axis=1)
    return judge(globe, test, globe.lat_deg_T[best_N], globe.lon_deg_T[best_N])


def bayes(seed: int) -> tuple[dict[str, float], Answer, float]:
    """Return the optimum by yardstick, the most probable town's quality on the test photos, and the scene's optimum.

    The optimum asks each yardstick by itself; the most probable town can lie in another country than the most probable
    country, so a single answer reaches the optimum at one yardstick only."""
    globe = Globe(GlobeConfig(seed=seed))
    test = globe.photos(_TEST_PHOTOS_PER_TOWN, _TEST)
    town_N = globe.posterior_NT(test.symbol_N4).argmax(axis=1)
    optima = {name: globe.optimum(cell_T) for name, cell_T in yardsticks(globe).items()}
    return optima, judge(globe, test, globe.lat_deg_T[town_N], globe.lon_deg_T[town_N]), globe.optimum_scene()
