"""Measure Graticule against its alternatives, both in the same run: what counts is the ratio.

python -m jobs.benchmark s2 | partition
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from jobs import run_command
from model import s2
from training import partition


@dataclass(frozen=True)
class S2Benchmark:
    """Points encoded a second: our numpy encoder beside s2sphere, and how many times faster."""

    points: int = 1_000_000
    """Random points on Earth for our encoder; s2sphere encodes a twentieth of them."""
    repeats: int = 5
    """Each is timed this often in turn and the best time counts: the machine may be busy."""

    def measure(self) -> int:
        try:
            import s2sphere
        except ImportError as error:
            raise ValueError("this benchmark compares with s2sphere: pip install s2sphere") from error
        random = np.random.default_rng(0)
        lat_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, self.points)))
        lon_deg_N = random.uniform(-180, 180, self.points)
        pairs = list(zip(lat_deg_N[::20].tolist(), lon_deg_N[::20].tolist(), strict=True))

        def ours() -> list[int]:
            return [int(i) for i in s2.leaf_id_N(lat_deg_N, lon_deg_N)[::20]]

        def theirs() -> list[int]:
            from_degrees, from_lat_lng = s2sphere.LatLng.from_degrees, s2sphere.CellId.from_lat_lng
            return [from_lat_lng(from_degrees(*pair)).id() for pair in pairs]

        if ours() != theirs():
            raise ValueError("our S2 cells are not s2sphere's: a speed ratio would mean nothing")
        seconds = np.array(
            [[_seconds(lambda: s2.leaf_id_N(lat_deg_N, lon_deg_N)), _seconds(theirs)] for _ in range(self.repeats)]
        ).min(axis=0)
        ours_per_s, theirs_per_s = self.points / seconds[0], len(pairs) / seconds[1]
        print(f"numpy     {ours_per_s:>12,.0f} points/s  {1e6 / ours_per_s:6.3f} µs a point")
        print(f"s2sphere  {theirs_per_s:>12,.0f} points/s  {1e6 / theirs_per_s:6.3f} µs a point")
        print(f"ratio     {ours_per_s / theirs_per_s:>12.1f}")
        return 0


@dataclass(frozen=True)
class PartitionBenchmark:
    """Seconds and peak memory of building the paper's seven levels from as many photos as the paper's training set."""

    photos: int = 4_720_000
    """Synthetic photos, crowded in towns of very unequal size as real ones are."""

    def measure(self) -> int:
        random = np.random.default_rng(0)
        towns = 100_000
        lat_deg_T, lon_deg_T = np.degrees(np.arcsin(random.uniform(-1, 1, towns))), random.uniform(-180, 180, towns)
        town_N = np.minimum(random.pareto(0.5, self.photos), towns - 1).astype(np.int64)
        lat_deg_N = np.clip(lat_deg_T[town_N] + random.normal(0, 0.03, self.photos), -90, 90)
        lon_deg_N = lon_deg_T[town_N] + random.normal(0, 0.03, self.photos)
        start = time.perf_counter()
        hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, partition.PRESETS["paper7"])
        seconds = time.perf_counter() - start
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{self.photos:,} photos → cells {hierarchy.class_counts}: {seconds:.1f} s, process peak {peak_gb:.2f} GB"
        )
        return 0


@dataclass(frozen=True)
class Settings:
    """Measure Graticule against its alternatives."""

    benchmark: tyro.conf.OmitSubcommandPrefixes[
        Annotated[S2Benchmark, tyro.conf.subcommand("s2")]
        | Annotated[PartitionBenchmark, tyro.conf.subcommand("partition")]
    ]


def run(settings: Settings) -> int:
    return settings.benchmark.measure()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_command(Settings, run)
