"""From training photos' coordinates to a hierarchy: the adaptive S2 partition of the field, one for each threshold.

The rule, as the published cell tables behave (https://github.com/TIBHannover/GeoEstimation and the papers that reuse
it): start from the 96 cells of S2 level 2, split a cell into its four children while it holds more than τ_max photos,
stop at level 30, then keep the cells that hold more than τ_min photos.

Shapes: N photos, K cells of one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.world import geodesy, s2
from model.world.hierarchy import NO_PARENT, Hierarchy, Level

FIRST_S2_LEVEL = 2
SPREAD_SHARE = 0.9


@dataclass(frozen=True)
class PartitionConfig:
    """The thresholds of a hierarchy, `tau_max` from the coarsest level to the finest. ValueError if impossible.

    `tau_min` is at most a quarter of the least `tau_max`: of four parts of a cell with more than `tau_max` photos one
    has more than a quarter of them, so that no cell of any level is left without a part of it at the next one. (The
    product over levels would give such a cell's whole probability to cells elsewhere.)
    """

    tau_min: int
    tau_max: tuple[int, ...]

    def __post_init__(self) -> None:
        falling = all(coarse > fine for coarse, fine in zip(self.tau_max[:-1], self.tau_max[1:], strict=True))
        if not self.tau_max or not falling or not 0 <= self.tau_min < self.tau_max[-1]:
            raise ValueError(
                f"thresholds must satisfy 0 <= tau_min < tau_max with tau_max falling from level to level, "
                f"not tau_min {self.tau_min} and tau_max {self.tau_max}"
            )
        if 4 * self.tau_min > self.tau_max[-1]:
            raise ValueError(
                f"tau_min {self.tau_min} is more than a quarter of tau_max {self.tau_max[-1]}: a cell that is split "
                f"could lose all of its four parts; give a tau_min of {self.tau_max[-1] // 4} or less"
            )


PRESETS = {
    "paper7": PartitionConfig(tau_min=50, tau_max=(25_000, 10_000, 5_000, 2_000, 1_000, 750, 500)),
    "isn3": PartitionConfig(tau_min=50, tau_max=(5_000, 2_000, 1_000)),
    "small": PartitionConfig(tau_min=10, tau_max=(2_000, 500, 100)),
    "hundreds": PartitionConfig(tau_min=0, tau_max=(200, 50, 20, 5)),
}
"""`paper7`: GeoDecoder's, for millions of photos; `isn3`: the three published tables'; `small`: for some hundred
thousand photos; `hundreds`: for hundreds, every photo covered."""


def build_hierarchy(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike, config: PartitionConfig) -> Hierarchy:
    """Return the hierarchy of the photos at the given coordinates; the order of the photos does not matter.

    Sorts the photos along the S2 curve once; every level of every threshold is then found by binary search. Raises
    ValueError for coordinates that are not on Earth, and when no cell holds more than τ_min photos.
    """
    lat_deg, lon_deg = np.asarray(lat_deg_N, np.float64), np.asarray(lon_deg_N, np.float64)
    leaf_id_N = s2.leaf_id_N(lat_deg, lon_deg)
    order_N = np.lexsort(
        (lon_deg, lat_deg, leaf_id_N)
    )  # ties by coordinate: sums, and so the hash, do not depend on order
    leaf_id_N = leaf_id_N[order_N]
    vector_N3 = geodesy.unit_vectors_N3(lat_deg[order_N], lon_deg[order_N])
    levels: list[Level] = []
    for tau_max in config.tau_max:
        cell_id_K = adaptive_cells(leaf_id_N, config.tau_min, tau_max)
        if not len(cell_id_K):
            raise ValueError(
                f"none of the {len(leaf_id_N)} photos lies in a cell with more than tau_min = {config.tau_min} photos: "
                "give more photos or choose a preset for fewer photos"
            )
        levels.append(_describe(cell_id_K, levels[-1] if levels else None, leaf_id_N, vector_N3))
    return Hierarchy(
        tuple(levels),
        {
            "method": "adaptive S2 partition",
            "tau_min": config.tau_min,
            "tau_max": list(config.tau_max),
            "photos": len(leaf_id_N),
            "photos_covered": [int(level.photo_count_K.sum()) for level in levels],
        },
    )


def adaptive_cells(sorted_leaf_id_N: NDArray[np.uint64], tau_min: int, tau_max: int) -> NDArray[np.uint64]:
    """Return the cells of one adaptive partition, ascending, given the photos' leaf cells, ascending."""
    kept = []
    first_mark = np.uint64(1 << 2 * (s2.MAX_LEVEL - FIRST_S2_LEVEL))
    cell_id = np.arange(6 << 2 * FIRST_S2_LEVEL, dtype=np.uint64) * np.uint64(2) * first_mark + first_mark
    for s2_level in range(FIRST_S2_LEVEL, s2.MAX_LEVEL + 1):
        start, stop = _photo_ranges(cell_id, sorted_leaf_id_N)
        count = stop - start
        split = (count > tau_max) & (s2_level < s2.MAX_LEVEL)
        kept.append(cell_id[~split & (count > tau_min)])
        if not split.any():
            break
        child_mark = np.uint64(1 << 2 * (s2.MAX_LEVEL - s2_level - 1))
        first_child = cell_id[split] - np.uint64(3) * child_mark
        cell_id = (first_child[:, None] + np.arange(4, dtype=np.uint64) * np.uint64(2) * child_mark).ravel()
    return np.sort(np.concatenate(kept))


def _photo_ranges(
    cell_id_K: NDArray[np.uint64], sorted_leaf_id_N: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    start_K = np.searchsorted(sorted_leaf_id_N, s2.range_min_N(cell_id_K), side="left")
    stop_K = np.searchsorted(sorted_leaf_id_N, s2.range_max_N(cell_id_K), side="right")
    return start_K.astype(np.int64), stop_K.astype(np.int64)


def _describe(
    cell_id_K: NDArray[np.uint64],
    coarser: Level | None,
    sorted_leaf_id_N: NDArray[np.uint64],
    vector_N3: NDArray[np.float64],
) -> Level:
    """Return the level of the given cells, with means and spreads of the photos in them."""
    start_K, stop_K = _photo_ranges(cell_id_K, sorted_leaf_id_N)
    count_K = stop_K - start_K
    first_K = np.cumsum(count_K) - count_K  # where each cell's photos start once those outside all cells are left out
    cell_M = np.repeat(np.arange(len(cell_id_K)), count_K)
    photo_M = np.arange(len(cell_M)) - first_K[cell_M] + start_K[cell_M]
    vector_M3 = vector_N3[photo_M]
    mean_K3 = np.add.reduceat(vector_M3, first_K, axis=0)
    mean_K3 /= np.linalg.norm(mean_K3, axis=1, keepdims=True)
    chord_M = np.linalg.norm(vector_M3 - mean_K3[cell_M], axis=1)
    chord_M = chord_M[np.lexsort((chord_M, cell_M))]
    chord_K = chord_M[first_K + np.ceil(SPREAD_SHARE * count_K).astype(np.int64) - 1]
    lat_deg_K, lon_deg_K = geodesy.directions_deg(mean_K3)
    if coarser is None:
        parent_K = np.full(len(cell_id_K), NO_PARENT)
    else:
        parent_K = coarser.find_N(cell_id_K)
    return Level(
        cell_id_K=cell_id_K,
        s2_level_K=s2.level_of_N(cell_id_K),
        lat_deg_K=lat_deg_K,
        lon_deg_K=lon_deg_K,
        spread_km_K=(2 * geodesy.EARTH_RADIUS_KM * np.arcsin(np.minimum(chord_K / 2, 1))).astype(np.float32),
        photo_count_K=count_K,
        parent_K=parent_K.astype(np.int32),
    )
