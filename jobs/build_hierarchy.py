"""Build the hierarchy of cells that a model is to classify into, from the positions of its training photos.

python -m jobs.build_hierarchy --manifest photos.parquet --output s3://bucket/hierarchy --preset paper7
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from jobs import run_command
from model.world.hierarchy import Hierarchy
from pipeline import storage
from training import hierarchy as partition
from training.data import labelled


@dataclass(frozen=True)
class Settings:
    """Build a hierarchy of S2 cells from the coordinates in a Parquet or CSV table."""

    manifest: str
    """Table with latitude and longitude in degrees: a path or URI. Where it says parts, those of train are taken."""
    output: str
    """Folder or prefix for hierarchy.parquet and hierarchy.json: a path or URI."""
    preset: Literal["paper7", "isn3", "small", "hundreds"] = "paper7"
    """Thresholds for millions of photos (paper7, isn3), some hundred thousand (small), or hundreds."""
    tau_min: int | None = None
    """Keep cells with more photos than this, instead of the preset's."""
    tau_max: tuple[int, ...] | None = None
    """Split cells with more photos than this: one number a level, coarse to fine, instead of the preset's."""


def run(settings: Settings) -> int:
    """Build the hierarchy and write it; return the exit code."""
    preset = partition.PRESETS[settings.preset]
    config = partition.PartitionConfig(
        tau_min=preset.tau_min if settings.tau_min is None else settings.tau_min,
        tau_max=settings.tau_max or preset.tau_max,
    )
    table = labelled.read_table(settings.manifest)
    parts = labelled.parts(table, settings.manifest)
    if parts is not None:
        table = table.filter(pa.array([part == "train" for part in parts]))
    lat_deg_N, lon_deg_N = labelled.coordinates(table, settings.manifest)
    hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, config)
    try:
        for name, content in hierarchy.to_files().items():
            storage.write_bytes(storage.join(settings.output, name), content)
    except OSError as error:
        raise ValueError(f"cannot write to {settings.output}: {error}") from error
    print(describe(hierarchy, len(lat_deg_N), config.tau_max))
    print(f"{settings.output}: hierarchy {hierarchy.content_hash[:16]}")
    return 0


def describe(hierarchy: Hierarchy, photos: int, tau_max: tuple[int, ...]) -> str:
    """Return a table with a line for each level."""
    lines = [
        f"{'level':>5} {'tau_max':>8} {'cells':>8} {'S2 levels':>10} {'median spread km':>17} {'photos covered':>15}"
    ]
    for number, (level, threshold) in enumerate(zip(hierarchy.levels, tau_max, strict=True)):
        lines.append(
            f"{number:>5} {threshold:>8} {len(level):>8} {f'{level.s2_level_K.min()}–{level.s2_level_K.max()}':>10} "
            f"{np.median(level.spread_km_K):>17.2f} {level.photo_count_K.sum() / photos:>15.2%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(Settings, run)
