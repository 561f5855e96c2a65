"""What the tests of the network share: a small world and a tiny checkpoint in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoder, tiny
from model.readout import Reading
from model.world import s2
from model.world.geodesy import mean_point
from model.world.hierarchy import Hierarchy, Level


def world(s2_levels: tuple[int, ...] = (1, 2, 4), photos: int = 400, seed: int = 0) -> Hierarchy:
    """A hierarchy over random photos: half anywhere on Earth, half within some 200 km of the antimeridian at Fiji."""
    rng = np.random.default_rng(seed)
    half = photos // 2
    lat_deg_N = np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, half))), rng.normal(-17.0, 1.5, photos - half)])
    lon_deg_N = np.concatenate([rng.uniform(-180, 180, half), 180.0 + rng.normal(0.0, 1.5, photos - half)])
    lon_deg_N = (lon_deg_N + 180.0) % 360.0 - 180.0
    levels: list[Level] = []
    for s2_level in s2_levels:
        cell_of_N = s2.cell_id_N(lat_deg_N, lon_deg_N, s2_level)
        cell_id_K, row_of_N, count_K = np.unique(cell_of_N, return_inverse=True, return_counts=True)
        means = [mean_point(lat_deg_N[row_of_N == row], lon_deg_N[row_of_N == row]) for row in range(len(cell_id_K))]
        levels.append(
            Level(
                cell_id_K=cell_id_K,
                s2_level_K=np.full(len(cell_id_K), s2_level, np.int8),
                lat_deg_K=np.array([lat for lat, _ in means]),
                lon_deg_K=np.array([lon for _, lon in means]),
                spread_km_K=rng.uniform(0.0, 150.0, len(cell_id_K)).astype(np.float32),
                photo_count_K=count_K,
                parent_K=levels[-1].find_N(cell_id_K).astype(np.int32) if levels else np.full(len(cell_id_K), -1),
            )
        )
    return Hierarchy(tuple(levels))


torch.set_num_threads(1)  # on tensors this small a second thread costs more than it gives


@pytest.fixture(scope="session")
def make_world() -> Callable[..., Hierarchy]:
    return world


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    return world()


@pytest.fixture(scope="session")
def checkpoint(hierarchy: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny Swin with random weights; do not change its folder."""
    torch.manual_seed(0)
    model = GeoDecoder(tiny(), hierarchy.class_counts)
    folder = Path(tmp_path_factory.mktemp("tiny"))
    return Checkpoint.save(folder, model, hierarchy, Reading((1.0, 1.5, 0.7)), {"photos": 400}, "tiny")
