"""Where photos are taken: every cell's probability against one counted photo by photo, and the file it is kept in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s2sphere
from numpy.typing import NDArray

from model.world import s2
from model.world.hierarchy import Hierarchy
from model.world.prior import ANYWHERE, S2_LEVEL, WORLD, Prior
from tests.conftest import SHARED

WORLD_HASH = "b3520b19d43070c1"


def places(count: int = 500, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Photos around the antimeridian and both poles, and in three towns, where many share a cell."""
    rng = np.random.default_rng(seed)
    towns = np.array([(-17.7, 178.0), (48.8, 2.3), (40.7, -74.0)])[rng.integers(3, size=count)]
    lat_deg_N, lon_deg_N = (towns + rng.normal(0, 0.03, (count, 2))).T
    fifth = count // 5
    lat_deg_N[:fifth], lon_deg_N[:fifth] = rng.normal(-17, 1, fifth), rng.choice([-180.0, 180.0, 179.999], fifth)
    lat_deg_N[fifth : 2 * fifth] = rng.choice([-90.0, 90.0, 89.99], fifth)
    lon_deg_N[fifth : 2 * fifth] = rng.uniform(-180, 180, fifth)
    return lat_deg_N, lon_deg_N


def cells_of(lat_deg: float, lon_deg: float) -> list[s2sphere.CellId]:
    """The point's cell of every S2 level, coarse → fine."""
    leaf = s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(lat_deg, lon_deg))
    return [leaf.parent(level) for level in range(31)]


def test_a_cell_has_the_share_of_the_photos_in_it_and_a_little_of_its_area() -> None:
    lat_deg_N, lon_deg_N = places()
    prior = Prior.of(lat_deg_N, lon_deg_N)
    own_N = [cells_of(*place)[S2_LEVEL] for place in zip(lat_deg_N.tolist(), lon_deg_N.tolist(), strict=True)]
    rng = np.random.default_rng(1)
    for place in rng.choice(len(lat_deg_N), 40, replace=False).tolist():
        for level, cell in enumerate(cells_of(lat_deg_N[place], lon_deg_N[place])):
            if level <= S2_LEVEL:
                photos = sum(cell.contains(own) for own in own_N)
            else:
                photos = own_N.count(cell.parent(S2_LEVEL)) / 4 ** (level - S2_LEVEL)
            expected = (1 - ANYWHERE) * photos / len(own_N) + ANYWHERE / 6 / 4**level
            found = prior.probability_K(np.array([cell.id()], np.uint64))
            assert found.item() == pytest.approx(expected, rel=1e-9), (level, place)
    for lat_deg, lon_deg in ((0.0, -140.0), (-60.0, 100.0)):  # nobody was there
        for level, cell in enumerate(cells_of(lat_deg, lon_deg)[4:], start=4):
            found = prior.probability_K(np.array([cell.id()], np.uint64))
            assert found.item() == pytest.approx(ANYWHERE / 6 / 4**level, rel=1e-9)


@pytest.mark.parametrize("level", [0, 1, 4, 7])
def test_the_cells_of_a_level_add_up_to_one(level: int) -> None:
    every_K = np.arange(6 * 4**level, dtype=np.uint64) * np.uint64(2) + np.uint64(1) << np.uint64(60 - 2 * level)
    assert s2.is_valid_N(every_K).all()
    assert (s2.level_of_N(every_K) == level).all()
    assert Prior.of(*places()).probability_K(every_K).sum() == pytest.approx(1, rel=1e-9)
    assert Prior.world().probability_K(every_K).sum() == pytest.approx(1, rel=1e-9)


def test_cells_coarser_and_finer_than_the_tables_add_up_to_one_together() -> None:
    """The world, of which only the cells around one photo are divided, down to 13 cm."""
    lat_deg_N, lon_deg_N = places()
    around = cells_of(lat_deg_N[-1], lon_deg_N[-1])[:27]
    faces = [s2sphere.CellId.from_face_pos_level(face, 0, 0) for face in range(6)]
    cover = [face for face in faces if face != around[0]]
    for cell in around[:-1]:
        cover += [child for child in cell.children() if child not in around]
    cover.append(around[-1])
    cell_id_K = np.array(sorted(cell.id() for cell in cover), np.uint64)
    probability_K = Prior.of(lat_deg_N, lon_deg_N).probability_K(cell_id_K)
    assert len(cell_id_K) == 5 + 3 * 26 + 1
    assert (probability_K > 0).all()
    assert probability_K.sum() == pytest.approx(1, rel=1e-9)


def test_levels_of_a_hierarchy_add_up_to_one_each(make_world: Callable[..., Hierarchy]) -> None:
    prior = Prior.of(*places())
    hierarchy = make_world((1, 3, 12, 14))
    levels = prior.levels(hierarchy)
    assert tuple(map(len, levels)) == hierarchy.class_counts
    for level, probability_K in zip(hierarchy.levels, levels, strict=True):
        assert (probability_K > 0).all()
        assert probability_K.sum() == pytest.approx(1, rel=1e-12)
        inside_K = prior.probability_K(level.cell_id_K)  # what lies outside the level's cells is left out
        np.testing.assert_allclose(probability_K, inside_K / inside_K.sum())


def test_photos_on_the_antimeridian_and_the_poles_are_where_they_are() -> None:
    prior = Prior.of([-17.0, -17.0, 90.0, 90.0, -90.0], [180.0, -180.0, 0.0, 123.0, -50.0])
    assert prior.photos == 5
    faces_K = np.arange(6, dtype=np.uint64) * np.uint64(2) + np.uint64(1) << np.uint64(60)
    shares = (prior.probability_K(faces_K) - ANYWHERE / 6) / (1 - ANYWHERE)
    np.testing.assert_allclose(shares, [0, 0, 0.4, 0.4, 0, 0.2], atol=1e-12)
    lat_deg_N, lon_deg_N = prior.points()
    assert len(lat_deg_N) == 5
    assert np.abs(np.abs(lon_deg_N[np.abs(lat_deg_N) < 20]) - 180).max() < 0.1
    assert (np.abs(lat_deg_N) > 89.9).sum() == 3


def test_the_file_holds_all_of_it() -> None:
    prior = Prior.of(*places(), source="a test's", licence="none")
    again = Prior.from_bytes(prior.to_bytes(), "prior.parquet")
    np.testing.assert_array_equal(again.cell_id_M, prior.cell_id_M)
    np.testing.assert_array_equal(again.photo_count_M, prior.photo_count_M)
    assert again.provenance == {"source": "a test's", "licence": "none"}
    assert again.content_hash == prior.content_hash
    assert Prior.of(*places(seed=1)).content_hash != prior.content_hash
    assert prior.to_bytes() == again.to_bytes()


def _parquet(about: bytes = b"{}", **columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({b"graticule-prior": about}), sink)
    return sink.getvalue()


PARIS = s2.cell_id_N([48.8, 49.8], [2.3, 2.3], S2_LEVEL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "prior"),
        (Prior.of(*places()).to_bytes()[:-9], "prior"),
        (Prior.of(*places()).to_bytes()[:40] + b"\xff" * 40 + Prior.of(*places()).to_bytes()[80:], "prior"),
        (_parquet(cell_id=PARIS), "photos"),
        (_parquet(cell_id=PARIS[:0], photos=np.zeros(0, int)), "one cell or more"),
        (_parquet(cell_id=PARIS, photos=[1, 0]), "one photo or more"),
        (_parquet(cell_id=PARIS, photos=[1, -5]), "one photo or more"),
        (_parquet(cell_id=PARIS, photos=[1, None]), "without a number or a count"),
        (_parquet(cell_id=PARIS, photos=[1.5, 2.0]), "prior"),
        (_parquet(cell_id=PARIS, photos=[2**62, 2**62]), "so many photos"),
        (_parquet(cell_id=PARIS[::-1], photos=[1, 1]), "ascending"),
        (_parquet(cell_id=PARIS[[0, 0]], photos=[1, 1]), "ascending"),
        (_parquet(cell_id=[6, 7], photos=[1, 1]), "S2 cells of one level"),
        (_parquet(cell_id=np.append(s2.parent_N(PARIS[:1], 3), PARIS[:1]), photos=[1, 1]), "S2 cells of one level"),
        (_parquet(b"5", cell_id=PARIS, photos=[1, 1]), "prior"),
        (_parquet(b"[" * 100_000, cell_id=PARIS, photos=[1, 1]), "prior"),
        (_parquet(cell_id=["a", "b"], photos=[1, 1]), "prior"),
        (_parquet(cell_id=pa.nulls(40_000_000, pa.uint64()), photos=pa.nulls(40_000_000, pa.int64())), "40000000"),
    ],
)
def test_what_is_no_prior_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Prior.from_bytes(data, "here/prior.parquet")
    assert str(refused.value).startswith("here/prior.parquet is not a prior that jobs.build_prior wrote: ")
    assert "\n" not in str(refused.value)


def test_a_prior_of_nothing_or_of_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="one cell or more"):
        Prior.of([], [])
    with pytest.raises(ValueError, match="latitudes"):
        Prior.of([91.0], [0.0])


def test_the_worlds_prior_is_small_and_the_one_that_models_were_made_with() -> None:
    """Every model that was trained with it carries its hash: another table here would be another world's."""
    world = Prior.world()
    assert WORLD.stat().st_size < 100_000
    assert world.photos == 100_000
    assert world.content_hash.startswith(WORLD_HASH)
    assert hashlib.sha256(world.cell_id_M.tobytes() + world.photo_count_M.tobytes()).hexdigest() == world.content_hash
    assert "MIT" in world.provenance["licence"]


def test_the_worlds_prior_is_made_of_the_published_positions() -> None:
    table = SHARED / "data" / "tables" / "cells" / "geoclip_coordinates_100K.csv"
    if not table.is_file():
        pytest.skip(f"no table at {table}")
    lat_deg_N, lon_deg_N = np.loadtxt(table, delimiter=",", skiprows=1).T
    assert Prior.of(lat_deg_N, lon_deg_N).content_hash == Prior.world().content_hash
