"""The field's measures: the share of photos placed within 1, 25, 200, 750 and 2500 km, the median error, and more.

Distances are great circles on the sphere of `geodesy.EARTH_RADIUS_KM`; a photo exactly at a threshold counts as within.

Shapes: N photos, H levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.hierarchy import NO_CELL

THRESHOLDS_KM = {"street": 1.0, "city": 25.0, "region": 200.0, "country": 750.0, "continent": 2500.0}


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1, by threshold name, and the median error."""

    photos: int
    share_within: dict[str, float]
    median_km: float


def accuracy(distance_km_N: NDArray[np.float64]) -> Accuracy:
    """Return the measures of some photos' errors. Raises ValueError for none, or for one that is no number."""
    if not len(distance_km_N) or not np.isfinite(distance_km_N).all():
        raise ValueError("accuracy needs the distances of one photo or more, each a number")
    return Accuracy(
        photos=len(distance_km_N),
        share_within={name: float((distance_km_N <= km).mean()) for name, km in THRESHOLDS_KM.items()},
        median_km=float(np.median(distance_km_N)),
    )


def level_accuracy(best_NH: NDArray[np.int64], label_NH: NDArray[np.int64]) -> list[tuple[int, float]]:
    """Return for each level (photos that lie in one of its cells, share of them whose best cell is that cell).

    The share is NaN where no photo lies in a cell, as on held-out places finer levels have none.
    """
    result = []
    for best_N, label_N in zip(best_NH.T, label_NH.T, strict=True):
        known_N = label_N != NO_CELL
        share = float((best_N[known_N] == label_N[known_N]).mean()) if known_N.any() else float("nan")
        result.append((int(known_N.sum()), share))
    return result
