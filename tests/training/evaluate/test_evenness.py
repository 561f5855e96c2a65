"""The sampler against crowds whose even draw is known, and the number against sets that cover a known part."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.world import geodesy
from pipeline.locate.places import Places
from training.evaluate.evenness import EvennessConfig, EvennessMeter, Grid, Land, draw_evenly, even_points
from training.globe.land_map import LandMap, draw_maps

Photos = tuple[
    np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]], list[str | None]
]


@pytest.fixture(scope="module")
def places() -> Places:
    return Places()


@pytest.fixture(scope="module")
def land(places: Places) -> Land:
    return Land(places)


@pytest.fixture(scope="module")
def world(places: Places) -> Photos:
    """20,000 points all over the Earth, as many again crowded about Paris."""
    random = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = even_points(20_000)
    crowd = 48.8566 + random.normal(0, 0.1, 20_000), 2.3522 + random.normal(0, 0.1, 20_000)
    lat_deg_N, lon_deg_N = np.concatenate([lat_deg_N, crowd[0]]), np.concatenate([lon_deg_N, crowd[1]])
    return lat_deg_N, lon_deg_N, places.country_code_N(lat_deg_N, lon_deg_N)


def test_cells_are_of_like_size_and_hold_their_points() -> None:
    grid = Grid(200)
    lat_deg_S, lon_deg_S = even_points(200_000)
    counts = np.bincount(grid.cell_N(lat_deg_S, lon_deg_S))
    expected = 200_000 * 200**2 / (4 * np.pi * geodesy.EARTH_RADIUS_KM**2)
    assert np.percentile(counts, 5) > 0.85 * expected
    assert np.percentile(counts, 95) < 1.15 * expected
    for lat_deg, lon_deg in ((48.9, 2.4), (-89.9, 0.0), (90.0, 180.0), (0.0, -180.0), (-45.3, 179.99)):
        south, west, north, east = grid.box_deg(int(grid.cell_N([lat_deg], [lon_deg])[0]))
        assert south - 1e-9 <= lat_deg <= north + 1e-9
        assert west - 1e-9 <= lon_deg <= east + 1e-9


def test_the_land_is_as_large_as_it_is(land: Land) -> None:
    """In thousands of km²; 134,940 in all without Antarctica; Russia 17,098 with its lakes, Luxembourg 2.6."""
    by_country: Counter[str] = Counter()
    for (country, _), km2 in land.km2_of.items():
        by_country[country] += int(km2)
    assert sum(by_country.values()) == pytest.approx(134.94e6, rel=0.02)
    for country, km2 in {"RU": 17.1e6, "BR": 8.51e6, "FR": 0.55e6, "VN": 0.33e6, "LS": 0.0304e6}.items():
        assert by_country[country] == pytest.approx(km2, rel=0.06), country
    assert "AQ" not in by_country


def test_a_draw_is_even_where_all_the_world_is_crowded_by_one_town(land: Land, world: Photos) -> None:
    rows = draw_evenly(land, *world, count=2000, seed=1)
    meter = EvennessMeter(land, *world)
    before, chance = meter.measure(np.arange(40_000)), meter.measure(np.arange(0, 40_000, 20))
    after, best = meter.measure(rows), meter.best(2000)
    assert after.photos == 2000
    assert before.covered < 0.02
    assert chance.covered < 0.05
    assert 0.8 * best.covered < after.covered <= best.covered
    assert after.country_distance < 0.06 < 0.7 < before.country_distance
    assert np.mean([world[2][row] == "RU" for row in rows]) == pytest.approx(17.1 / 134.7, abs=0.02)
    # Each country with a photo has one, however small.
    assert {world[2][row] for row in rows} == set(world[2]) - {None, "AQ"}


def test_the_same_seed_draws_the_same_and_another_differs(land: Land, world: Photos) -> None:
    rows = draw_evenly(land, *world, count=300, seed=1)
    assert np.array_equal(rows, draw_evenly(land, *world, count=300, seed=1))
    other = draw_evenly(land, *world, count=300, seed=2)
    assert not np.array_equal(rows, other)
    assert len(set(rows.tolist()) & set(other.tolist())) < 150


def test_cells_have_photos_in_proportion_to_their_land(land: Land) -> None:
    """One country of four cells, each with plenty of photos: many draws come to each cell's share."""
    four = sorted((km2, cell) for (country, cell), km2 in land.km2_of.items() if country == "FR")[-60::20]
    only = replace_land(land, {("FR", cell): km2 for km2, cell in four})
    boxes = [land.grid.box_deg(cell) for _, cell in four]
    lat_deg_N = np.repeat([(south + north) / 2 for south, _, north, _ in boxes], 50)
    lon_deg_N = np.repeat([(west + east) / 2 for _, west, _, east in boxes], 50)
    config = EvennessConfig(most_per_cell=50)
    drawn: Counter[int] = Counter()
    for seed in range(200):
        rows = draw_evenly(only, lat_deg_N, lon_deg_N, ["FR"] * len(lat_deg_N), 7, seed, config)
        drawn.update(int(row) // 50 for row in rows)
    total = sum(km2 for km2, _ in four)
    for number, (km2, _) in enumerate(four):
        assert drawn[number] / (200 * 7) == pytest.approx(km2 / total, abs=0.03)


def replace_land(land: Land, km2_of: dict[tuple[str, int], float]) -> Land:
    other = object.__new__(Land)
    other.grid, other.km2_of = land.grid, km2_of
    return other


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400), st.integers(1, 5), st.integers(1, 5))
def test_the_limits_hold_and_nothing_is_drawn_twice(
    land: Land, seed: int, count: int, most_per_cell: int, most_per_photographer: int
) -> None:
    random = np.random.default_rng(seed)
    lat_deg_N, lon_deg_N = random.uniform(40, 50, 500), random.uniform(0, 10, 500)
    country_N = random.choice(np.array(["FR", "CH", "IT", None, "AQ"], object), 500).tolist()
    who_N = [None if who == 0 else f"p{who}" for who in random.integers(0, 60, 500)]
    config = EvennessConfig(most_per_cell=most_per_cell, most_per_photographer=most_per_photographer)
    rows = draw_evenly(land, lat_deg_N, lon_deg_N, country_N, count, seed, config, who_N)
    assert len(set(rows.tolist())) == len(rows) <= count
    assert {country_N[row] for row in rows} <= {"FR", "CH", "IT"}
    cells = land.grid.cell_N(lat_deg_N[rows], lon_deg_N[rows]).tolist()
    assert max(Counter(zip(cells, (country_N[row] for row in rows), strict=True)).values()) <= most_per_cell
    assert max(Counter(who_N[row] for row in rows if who_N[row]).values(), default=0) <= most_per_photographer
    if len(rows) < count:  # only where no photo is left that the limits allow
        left = sorted(set(range(500)) - set(rows.tolist()))
        by_cell = Counter(zip(cells, (country_N[row] for row in rows), strict=True))
        by_who = Counter(who_N[row] for row in rows if who_N[row])
        for row in left:
            cell = int(land.grid.cell_N(lat_deg_N[[row]], lon_deg_N[[row]])[0])
            assert (
                country_N[row] in (None, "AQ")
                or by_cell[cell, country_N[row]] >= most_per_cell
                or by_who[who_N[row]] >= most_per_photographer
            )


def test_covering_half_the_land_evenly_measures_one_half(land: Land, places: Places) -> None:
    lat_deg_N, lon_deg_N = even_points(400_000)
    country_N = places.country_code_N(lat_deg_N, lon_deg_N)
    meter = EvennessMeter(land, lat_deg_N, lon_deg_N, country_N)
    on_land = np.flatnonzero(places.is_land_N(lat_deg_N, lon_deg_N) & (lat_deg_N > -60))
    everything = meter.measure(on_land)
    assert everything.covered > 0.97
    assert everything.country_distance < 0.01
    middle = np.median(lon_deg_N[on_land])
    assert meter.measure(on_land[lon_deg_N[on_land] < middle]).covered == pytest.approx(0.5, abs=0.02)
    assert meter.best(1_000_000).covered > 0.99
    nowhere = meter.measure(np.flatnonzero([country is None for country in country_N]))
    assert (nowhere.covered, nowhere.cells, nowhere.countries) == (0.0, 0, 0)
    assert nowhere.off_land > 200_000
    assert set(meter.unreached()[1]) <= {"AD", "LI"}  # smaller than the 1,300 km² between points


def test_what_no_photo_shows_is_named(land: Land) -> None:
    meter = EvennessMeter(land, np.array([48.86, 30.0, -78.46]), np.array([2.35, -45.0, 106.84]), ["FR", None, "AQ"])
    share, countries = meter.unreached()
    assert share > 0.99
    assert "FR" not in countries
    assert {"RU", "BR", "LS"} <= set(countries)
    found = meter.measure(np.arange(3))
    assert (found.photos, found.off_land, found.cells, found.countries) == (3, 2, 1, 1)


@pytest.mark.parametrize("wrong", [{"cell_km": 1.0}, {"most_per_cell": 0}, {"most_per_photographer": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give 20 to 2000|at least one photo"):
        replace(EvennessConfig(), **wrong)


def test_maps_are_one_file_with_every_cell_and_escaped_words(places: Places) -> None:
    grid = Grid(500)
    cell_K = np.arange(6)
    photos_K = np.array([0, 1, 4, 5, 1000, 0])
    words = "<script>alert('x')</script> & \"y\""
    text = draw_maps(words, [LandMap(words, words, cell_K, photos_K)] * 2, grid, places)
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{name}title").text == words  # type: ignore[union-attr]
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert len(root.findall(f".//{name}use")) == 2
    boxes = [path.get("d", "").count("z") for path in root.findall(f".//{name}path") if path.get("class", "")[0] == "c"]
    assert boxes == [1, 1, 1, 1] * 2  # four of six cells have photos, each another colour
    assert "prefers-color-scheme: dark" in text
