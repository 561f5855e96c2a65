"""The adaptive S2 partition against a plain recursion with s2sphere and against the published cell tables."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import s2sphere
from numpy.typing import NDArray

from model.world import geodesy, s2
from training import hierarchy as partition
from training.hierarchy import PartitionConfig

CELLS = Path(__file__).parents[3] / "shared" / "data" / "tables" / "cells"
needs_tables = pytest.mark.skipif(not CELLS.is_dir(), reason=f"the published cell tables are not at {CELLS}")

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def crowded_points(count: int) -> Points:
    """Towns of very unequal size, some across the antimeridian and at a pole, and one spot photographed 600 times."""
    random = np.random.default_rng(11)
    towns = 200
    lat, lon = np.degrees(np.arcsin(random.uniform(-1, 1, towns))), random.uniform(-180, 180, towns)
    lat[:3], lon[:3] = [-17.0, 89.99, 48.8583], [180.0, 0.0, 2.2944]
    town = np.minimum(random.pareto(0.6, count), towns - 1).astype(int)
    lat_deg = np.clip(lat[town] + random.normal(0, 0.2, count), -90, 90)
    lon_deg = (lon[town] + random.normal(0, 0.2, count) + 180) % 360 - 180
    lat_deg[:600], lon_deg[:600] = 48.8583, 2.2944
    return lat_deg, lon_deg


def plain_cells(points: Points, tau_min: int, taus_max: Sequence[int]) -> list[set[int]]:
    """The rule by s2sphere alone, photo by photo and cell by cell; the cells of each threshold."""
    lat_lngs = map(s2sphere.LatLng.from_degrees, points[0].tolist(), points[1].tolist())
    leaves = [s2sphere.CellId.from_lat_lng(x) for x in lat_lngs]
    photos_in = Counter(leaf.parent(level).id() for leaf in leaves for level in range(2, 31))
    kept: list[set[int]] = []

    def visit(cell: s2sphere.CellId, tau_max: int) -> None:
        photos = photos_in[cell.id()]
        if photos > tau_max and cell.level() < 30:
            for child in cell.children():
                visit(child, tau_max)
        elif photos > tau_min:
            kept[-1].add(cell.id())

    for tau_max in taus_max:
        kept.append(set())
        for first in {leaf.parent(2) for leaf in leaves}:
            visit(first, tau_max)
    return kept


@pytest.mark.parametrize("config", [PartitionConfig(0, (400, 100, 20)), PartitionConfig(7, (500, 150, 30))])
def test_every_level_is_the_plain_recursions(config: PartitionConfig) -> None:
    points = crowded_points(2_500)
    hierarchy = partition.build_hierarchy(*points, config)
    expected = plain_cells(points, config.tau_min, config.tau_max)
    for level, cells in zip(hierarchy.levels, expected, strict=True):
        assert set(level.cell_id_K.tolist()) == cells
        assert level.s2_level_K.max() == 30  # the one spot, at every threshold below 600
    assert hierarchy.class_counts[0] < hierarchy.class_counts[-1]


def test_the_papers_levels_of_fifty_thousand_photos_are_the_plain_recursions() -> None:
    points, config = crowded_points(50_000), partition.PRESETS["paper7"]
    hierarchy = partition.build_hierarchy(*points, config)
    assert len(set(hierarchy.class_counts)) > 4
    expected = plain_cells(points, config.tau_min, config.tau_max)
    assert [set(level.cell_id_K.tolist()) for level in hierarchy.levels] == expected


def test_means_counts_and_spreads_are_the_photos() -> None:
    lat_deg, lon_deg = crowded_points(6_000)
    hierarchy = partition.build_hierarchy(lat_deg, lon_deg, PartitionConfig(5, (500, 60)))
    label_NH = hierarchy.label_NH(lat_deg, lon_deg)
    for number, level in enumerate(hierarchy.levels):
        for row in range(len(level)):
            inside = label_NH[:, number] == row
            assert level.photo_count_K[row] == inside.sum() > 5
            mean = geodesy.mean_point(lat_deg[inside], lon_deg[inside])
            assert geodesy.haversine_km(*mean, level.lat_deg_K[row], level.lon_deg_K[row]) < 1e-6
            distance_km = geodesy.haversine_km(*mean, lat_deg[inside], lon_deg[inside])
            assert (distance_km <= level.spread_km_K[row] + 1e-3).mean() >= 0.9
            assert (distance_km < level.spread_km_K[row] - 1e-3).mean() < 0.9
    across = np.abs(hierarchy.levels[0].lon_deg_K) > 179
    assert across.any()  # a cell whose photos lie on both sides of the antimeridian has its mean there, not at 0°


def test_exactly_tau_max_stays_whole_one_more_splits() -> None:
    lat_deg, lon_deg = np.repeat([10.0, 11.0], [20, 30]), np.repeat([10.0, 11.0], [20, 30])
    together = s2.leaf_id_N(lat_deg, lon_deg)
    assert len(set(s2.parent_N(together, 2).tolist())) == 1
    assert len(partition.adaptive_cells(np.sort(together), 0, 50)) == 1
    assert len(partition.adaptive_cells(np.sort(together), 0, 49)) == 2


def test_exactly_tau_min_is_dropped_one_more_is_kept() -> None:
    leaves = np.sort(s2.leaf_id_N(np.repeat([10.0, -40.0], [20, 21]), np.repeat([10.0, 100.0], [20, 21])))
    kept = partition.adaptive_cells(leaves, 20, 1000)
    assert kept.tolist() == [int(s2.cell_id_N(-40, 100, 2))]


def test_the_order_of_the_photos_does_not_matter() -> None:
    lat_deg, lon_deg = crowded_points(3_000)
    shuffled = np.random.default_rng(0).permutation(3_000)
    config = PartitionConfig(0, (100, 10))
    ours = partition.build_hierarchy(lat_deg, lon_deg, config)
    assert ours.content_hash == partition.build_hierarchy(lat_deg[shuffled], lon_deg[shuffled], config).content_hash


@pytest.mark.parametrize(
    ("tau_min", "tau_max"), [(0, ()), (0, (5, 5)), (0, (5, 10)), (-1, (5,)), (5, (10, 5)), (26, (400, 100)), (2, (7,))]
)
def test_thresholds_that_make_no_sense_are_refused(tau_min: int, tau_max: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"thresholds|more than a quarter"):
        PartitionConfig(tau_min, tau_max)


def test_too_few_photos_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="preset for fewer"):
        partition.build_hierarchy([1.0, 2.0], [1.0, 2.0], partition.PRESETS["paper7"])


@needs_tables
def test_real_photos_fall_into_the_plain_recursions_cells() -> None:
    table = pyarrow.csv.read_csv(CELLS / "geoclip_coordinates_100K.csv").slice(0, 15_000)
    points = table["LAT"].to_numpy(), table["LON"].to_numpy()
    hierarchy = partition.build_hierarchy(*points, PartitionConfig(10, (1000, 200)))
    assert set(hierarchy.levels[1].cell_id_K.tolist()) == plain_cells(points, 10, (200,))[0]


@needs_tables
def test_a_sample_of_the_published_training_set_gives_about_the_published_number_of_cells() -> None:
    """A 47th of the photos with a 47th of the thresholds: the published 3298, 7202 and 12893 cells within a tenth."""
    table = pyarrow.csv.read_csv(CELLS / "geoclip_coordinates_100K.csv")
    hierarchy = partition.build_hierarchy(table["LAT"], table["LON"], PartitionConfig(1, (106, 42, 21)))
    assert hierarchy.class_counts == pytest.approx((3298, 7202, 12893), rel=0.1)


@needs_tables
def test_the_published_tables_have_the_structure_we_build() -> None:
    coarser: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None
    for tau_max in (5000, 2000, 1000):
        as_text = pyarrow.csv.ConvertOptions(column_types={"hex_id": "string"})
        table = pyarrow.csv.read_csv(CELLS / f"cells_50_{tau_max}.csv", convert_options=as_text)
        cell_id = np.array([s2.from_token(x) for x in table["hex_id"].to_pylist()], np.uint64)
        photos = table["imgs_per_cell"].to_numpy()
        mean_leaf = s2.leaf_id_N(table["latitude_mean"], table["longitude_mean"])
        low, high = s2.range_min_N(cell_id), s2.range_max_N(cell_id)
        assert ((low <= mean_leaf) & (mean_leaf <= high)).all()  # only if tokens are decoded right
        assert min(Counter(s2.level_of_N(cell_id).tolist())) == 2
        assert photos.min() == 51
        assert photos[s2.level_of_N(cell_id) < 30].max() <= tau_max
        low, high = np.sort(low), np.sort(high)
        assert (high[:-1] < low[1:]).all()
        if coarser is not None:
            parent = np.searchsorted(coarser[0], low, side="right") - 1
            assert (parent >= 0).all()
            assert (high <= coarser[1][parent]).all()
        coarser = low, high
