"""How well a model places photos it has not seen, beside what costs nothing to say: by the serving engine and decode.

Shapes: N photos, H levels, M photos that were trained on, D width of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.engines import Engine
from model.geodecoder import GeoDecoder
from model.hierarchy import Hierarchy
from training.augment import resize
from training.dataset import PhotoStore
from training.loss import masked_cross_entropy
from training.teacher import Teacher

BATCH_SIZE = 32
_FEWEST_TO_CALIBRATE = 10


@dataclass(frozen=True, eq=False)
class Predictions:
    """What an engine says of the photos that could be read: `row_N` are their rows in the store."""

    row_N: NDArray[np.int64]
    best_NH: NDArray[np.int64]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    radius_km_N: NDArray[np.float64]


def predict(engine: Engine, hierarchy: Hierarchy, store: PhotoStore, rows: Sequence[int]) -> Predictions:
    """Place the photos of some rows. Raises ValueError as the store does, and if none could be read."""
    parts = [(row_B, engine(pixels_BHWC)) for row_B, pixels_BHWC in store.batches(rows, BATCH_SIZE)]
    if not parts:
        raise ValueError("none of the photos could be read")
    finest_N = np.concatenate([answers.top_index_BT[:, 0] for _, answers in parts])
    return Predictions(
        row_N=np.concatenate([row_B for row_B, _ in parts]),
        best_NH=np.concatenate([answers.level_index_BH for _, answers in parts]).astype(np.int64),
        lat_deg_N=hierarchy.levels[-1].lat_deg_K[finest_N],
        lon_deg_N=hierarchy.levels[-1].lon_deg_K[finest_N],
        radius_km_N=np.concatenate([answers.radius_km_B for _, answers in parts]).astype(np.float64),
    )


def commonest_cell(hierarchy: Hierarchy) -> tuple[float, float]:
    """Return (lat_deg, lon_deg) of the coarsest level's cell with most training photos: the answer that needs no photo.

    The coarsest level, because its commonest cell holds more photos than any other and so is right most often."""
    level = hierarchy.levels[0]
    row = int(np.argmax(level.photo_count_K))
    return float(level.lat_deg_K[row]), float(level.lon_deg_K[row])


def teacher_features(
    teacher: Teacher, store: PhotoStore, rows: Sequence[int]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Return (row_N, features_ND), features of length 1, of the photos that could be read."""
    found, features = [], []
    for row_B, pixels_BHWC in store.batches(rows, BATCH_SIZE):
        rgb_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255
        found.append(row_B)
        features.append(torch.nn.functional.normalize(teacher(resize(rgb_BCHW, teacher.size_px)), dim=1))
    if not found:
        raise ValueError("none of the photos could be read")
    return np.concatenate(found), torch.cat(features)


def nearest_neighbour(features_ND: torch.Tensor, known_MD: torch.Tensor) -> NDArray[np.int64]:
    """Return for each photo which of the M known ones has the most similar features (of length 1: by cosine)."""
    return (features_ND @ known_MD.T).argmax(dim=1).numpy()


def fit_temperature(model: GeoDecoder, store: PhotoStore, label_NH: NDArray[np.int64], rows: Sequence[int]) -> float:
    """Return the number that makes all levels' logits, divided by it, fit some photos' labels best (1 for few labels).

    One for all levels, not one each: held-out places have labels at few of the finer levels. Source: Guo et al. 2017.
    """
    preprocessing = model.config.preprocessing
    logits: list[list[torch.Tensor]] = [[] for _ in model.class_counts]
    kept = []
    with torch.no_grad():
        for row_B, pixels_BHWC in store.batches(rows, BATCH_SIZE):
            rgb_BHWC = torch.from_numpy(pixels_BHWC).float() / 255
            normalised_BHWC = (rgb_BHWC - torch.tensor(preprocessing.mean_rgb)) / torch.tensor(preprocessing.std_rgb)
            kept.append(row_B)
            for level, logits_BK in zip(logits, model(normalised_BHWC.permute(0, 3, 1, 2)).logits, strict=True):
                level.append(logits_BK)
    if not kept:
        return 1.0
    label = torch.from_numpy(label_NH[np.concatenate(kept)])
    known_H = (label >= 0).sum(dim=0)
    if int(known_H.sum()) < _FEWEST_TO_CALIBRATE:
        return 1.0
    temperatures = np.geomspace(0.5, 20, 75)
    losses = [
        sum(
            float(masked_cross_entropy(torch.cat(level) / temperature, label[:, h]) * known_H[h])
            for h, level in enumerate(logits)
        )
        for temperature in temperatures.tolist()
    ]
    return round(float(temperatures[int(np.argmin(losses))]), 3)
