"""Photos of a region: which they are, and how little of the files is read for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.query import publish_synthetic
from model.world import geodesy, s2
from pipeline.published import geoparquet
from pipeline.published.catalog import Catalog, Reading
from pipeline.published.records import published_files, run_records
from pipeline.run import publish

ROWS = 200_000
AGAIN = range(0, ROWS, 20)
Places = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of four files of ten row groups each."""
    folder = str(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(publish, "LEAST_ROWS_PER_FILE", 50_000)
        smaller.setattr(geoparquet, "ROWS_PER_GROUP", 5_000)
        publish_synthetic(folder, "r1", range(ROWS))
    return folder


@pytest.fixture(scope="module")
def catalog(world: str) -> Catalog:
    return Catalog(world)


@pytest.fixture(scope="module")
def places(catalog: Catalog) -> Places:
    columns = catalog.rows("SELECT uri, lat_deg, lon_deg, cell_id FROM photos WHERE status = 'located'")
    return {name: columns.column(name).to_numpy() for name in columns.column_names}


def uris(catalog: Catalog, region: str) -> list[str]:
    found: list[str] = sorted(catalog.rows(f"SELECT uri FROM {region}").column(0).to_pylist())
    return found


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg", "km"),
    [
        (50.06, 19.94, 200),
        (50.06, 379.94, 200),
        (0, 180, 700),
        (-17, -179.9, 1500),
        (89, 30, 500),
        (-90, 0, 1000),
        (75, -100, 1667),  # just short of the pole, then just beyond it
        (75, -100, 1668),
        (10, 20, 11_000),
        (10, 20, 20_100),
    ],
)
def test_within_km(catalog: Catalog, places: Places, lat_deg: float, lon_deg: float, km: float) -> None:
    is_near = geodesy.haversine_km(lat_deg, lon_deg, places["lat_deg"], places["lon_deg"]) <= km
    assert is_near.any()
    assert uris(catalog, f"within_km({lat_deg}, {lon_deg}, {km})") == sorted(places["uri"][is_near])


def test_within_no_distance_is_the_place_itself(catalog: Catalog, places: Places) -> None:
    lat_deg, lon_deg, uri = float(places["lat_deg"][0]), float(places["lon_deg"][0]), str(places["uri"][0])
    assert uris(catalog, f"within_km({lat_deg!r}, {lon_deg!r}, 0)") == [uri]


def test_within_km_of_each_row(catalog: Catalog, places: Places) -> None:
    counts = catalog.sql(
        "SELECT (SELECT count(*) FROM within_km(towns.y, towns.x, 300)) FROM (VALUES (50, 20), (0, 180)) towns(y, x)"
    ).fetchall()
    distances_km = [geodesy.haversine_km(*town, places["lat_deg"], places["lon_deg"]) for town in ((50, 20), (0, 180))]
    assert sorted(counts) == sorted(((km <= 300).sum(),) for km in distances_km)


@pytest.mark.parametrize(
    ("west", "south", "east", "north"),
    [(19, 49, 21, 51), (170, -30, -170, 10), (-180, -90, 180, 90), (179, 60, 180, 90), (-10, -90, 10, -80)],
)
def test_bbox(catalog: Catalog, places: Places, west: float, south: float, east: float, north: float) -> None:
    lon_deg, lat_deg = places["lon_deg"], places["lat_deg"]
    is_between = (lon_deg >= west) & (lon_deg <= east) if west <= east else (lon_deg >= west) | (lon_deg <= east)
    inside = is_between & (lat_deg >= south) & (lat_deg <= north)
    assert inside.any()
    assert uris(catalog, f"bbox({west}, {south}, {east}, {north})") == sorted(places["uri"][inside])


@pytest.mark.parametrize("level", [0, 1, 2, 6, 13, 30])
def test_in_cell(catalog: Catalog, places: Places, level: int) -> None:
    parents = s2.parent_N(places["cell_id"], level)
    cells = np.unique(parents)
    assert level > 0 or len(cells) == 6
    for cell_id in cells[:: -(-len(cells) // 6)].tolist():
        for token in (s2.token(cell_id), s2.token(cell_id).upper()):
            assert uris(catalog, f"in_cell('{token}')") == sorted(places["uri"][parents == cell_id])


@pytest.mark.parametrize(
    "region",
    [
        *("in_cell('')", "in_cell('X')", "in_cell('d')", "in_cell('2')", "in_cell('47 16')", "in_cell('0')"),
        *("in_cell('10000000000000001')", "bbox(170, 0, 190, 1)", "bbox(0, 2, 1, 1)"),
        *("bbox(180.5, 0, 1, 1)", "bbox(-180.5, 0, 1, 1)", "bbox(0, 0, -180.5, 1)", "bbox(0, 0, 180.5, 1)"),
        *("within_km(91, 0, 1)", "within_km(0, 0, -1)"),
    ],
)
def test_a_region_that_is_none_is_an_error(catalog: Catalog, region: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid Input Error: {region.split('(')[0]}"):
        catalog.rows(f"SELECT count(*) FROM {region}")


def test_distances_are_the_models(catalog: Catalog) -> None:
    random = np.random.default_rng(1)
    lat_deg, lon_deg = np.degrees(np.arcsin(random.uniform(-1, 1, (2, 2000)))), random.uniform(-180, 180, (2, 2000))
    lat_deg[:, :4] = [[0, 90, -90, 45], [0, -90, -90, -45]]
    lon_deg[:, :4] = [[0, 0, 10, 30], [180, 50, -70, -150]]
    corners = (lat_deg[0], lon_deg[0], lat_deg[1], lon_deg[1])
    rows = ", ".join(map(str, zip(range(2000), *(x.tolist() for x in corners), strict=True)))
    query = f"SELECT distance_km(a, b, c, d) FROM (VALUES {rows}) points(i, a, b, c, d) ORDER BY i"
    found = catalog.rows(query).column(0).to_numpy()
    np.testing.assert_allclose(found, geodesy.haversine_km(*corners), rtol=1e-13, atol=1e-9)
    assert catalog.sql("SELECT distance_km(1, 2, NULL, 3)").fetchall() == [(None,)]


@pytest.mark.parametrize(
    ("region", "most_groups"),
    [
        ("bbox(19, 49, 21, 51)", 2),
        ("bbox(179, -20, -179, -10)", 4),
        ("within_km(50.06, 19.94, 50)", 2),
        ("in_cell('4717')", 1),
        ("in_cell('5')", 8),
        ("photos WHERE lat_deg > 85", 4),
        ("accuracy WHERE lat_deg BETWEEN 49 AND 51 AND lon_deg BETWEEN 19 AND 21", 2),
    ],
)
def test_little_is_read(world: str, catalog: Catalog, region: str, most_groups: int) -> None:
    files = published_files(world, run_records(world))
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [10] * 4
    reading = catalog.reading(f"SELECT count(*), max(uri) FROM {region}")
    assert 0 < reading.row_groups <= most_groups
    assert reading.row_groups_in_files == 40
    assert catalog.reading("SELECT max(uri) FROM photos") == Reading(ROWS, 40, 40)


def test_little_is_read_of_several_runs_too(world: str, catalog: Catalog, tmp_path: Path) -> None:
    """One photo in twenty was taken again: which rows are the newest is known before any query."""
    both = str(tmp_path / "both")
    shutil.copytree(world, both)
    publish_synthetic(both, "r2", AGAIN)
    again = Catalog(both)
    counts = "SELECT count(*), count(DISTINCT photo_id), count(*) FILTER (run_id = 'r2') FROM photos"
    assert again.sql(counts).fetchall() == [(ROWS, ROWS, len(AGAIN))]
    for region in ("bbox(-10, 30, 10, 50)", "in_cell('5')", "within_km(0, 180, 2000)"):
        query = f"SELECT count(*), max(uri) FROM {region}"
        alone, together = catalog.reading(query), again.reading(query)
        assert alone.row_groups <= together.row_groups <= alone.row_groups + 1  # the second run has one row group
        assert together.row_groups_in_files == 41
        assert again.sql(f"SELECT count(*) FILTER (run_id = 'r2') > 0 FROM {region}").fetchall() == [(True,)]
