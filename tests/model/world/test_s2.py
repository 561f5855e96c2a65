"""Our vectorised S2 against s2sphere, point by point."""

import numpy as np
import pytest
import s2sphere
from numpy.typing import NDArray

from model.world import geodesy, s2

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def random_points(count: int) -> Points:
    random = np.random.default_rng(7)
    return np.degrees(np.arcsin(random.uniform(-1, 1, count))), random.uniform(-180, 180, count)


def edge_points() -> Points:
    """Poles, antimeridian, zeros of both signs, denormals, the cube's corners and edges, and their neighbours."""
    corner_deg = float(np.degrees(np.arctan(1 / np.sqrt(2))))
    lat = [0.0, 5e-324, 1e-300, 1e-15, 30, corner_deg, 45, 60, 89.999999, np.nextafter(90, 0), 90]
    lon = [0.0, 5e-324, 1e-300, 1e-16, 30, 45, 90, 135, np.nextafter(180, 0), 180, 360, 540]
    for deg in (corner_deg, 45.0):
        lat += [np.nextafter(deg, 90), np.nextafter(deg, 0)]
    for deg in (45.0, 90.0, 135.0):
        lon += [np.nextafter(deg, 180), np.nextafter(deg, 0)]
    both_lat, both_lon = np.array(lat + [-x for x in lat]), np.array(lon + [-x for x in lon])
    grid_lat, grid_lon = np.meshgrid(both_lat, both_lon)
    return grid_lat.ravel(), grid_lon.ravel()


def border_points(count: int) -> Points:
    """Corners and mid-edges of cells of every level, where rounding decides which cell is meant."""
    lat_deg, lon_deg = [], []
    for number, (lat, lon) in enumerate(zip(*(x.tolist() for x in random_points(count)), strict=True)):
        leaf = s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(lat, lon))
        cell = s2sphere.Cell(leaf.parent(number % 31))
        for point in (cell.get_vertex(0), cell.get_vertex(2), cell.get_vertex(0) + cell.get_vertex(1)):
            border = s2sphere.LatLng.from_point(point)
            lat_deg.append(border.lat().degrees)
            lon_deg.append(border.lng().degrees)
    return np.array(lat_deg), np.array(lon_deg)


def grid_points() -> Points:
    lat_deg, lon_deg = np.meshgrid(np.arange(-90, 90.1, 2.5), np.arange(-180, 180.1, 2.5))
    return lat_deg.ravel(), lon_deg.ravel()


def s2sphere_leaves(points: Points) -> NDArray[np.uint64]:
    lat_lngs = map(s2sphere.LatLng.from_degrees, points[0].tolist(), points[1].tolist())
    return np.array([s2sphere.CellId.from_lat_lng(x).id() for x in lat_lngs], np.uint64)


@pytest.mark.parametrize(
    "points",
    [random_points(80_000), edge_points(), border_points(4_000), grid_points()],
    ids=["random", "edge", "border", "grid"],
)
def test_leaf_cells_are_s2spheres(points: Points) -> None:
    ours, theirs = s2.leaf_id_N(*points), s2sphere_leaves(points)
    wrong = np.flatnonzero(ours != theirs)
    assert not len(wrong), [(points[0][k], points[1][k], ours[k], theirs[k]) for k in wrong[:5]]


def test_the_points_compared_are_100_000() -> None:
    assert 80_000 + len(edge_points()[0]) + 3 * 4_000 + len(grid_points()[0]) >= 100_000


def test_cells_parents_ranges_tokens_and_levels_are_s2spheres() -> None:
    lat_deg_N, lon_deg_N = random_points(31 * 40)
    levels = np.arange(31 * 40) % 31
    theirs = [
        s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(lat, lon)).parent(level)
        for lat, lon, level in zip(lat_deg_N.tolist(), lon_deg_N.tolist(), levels.tolist(), strict=True)
    ]
    ours = np.array([s2.cell_id_N(*x)[()] for x in zip(lat_deg_N, lon_deg_N, levels.tolist(), strict=True)])
    assert ours.tolist() == [cell.id() for cell in theirs]
    assert s2.is_valid_N(ours).all()
    assert s2.level_of_N(ours).tolist() == levels.tolist()
    assert s2.range_min_N(ours).tolist() == [cell.range_min().id() for cell in theirs]
    assert s2.range_max_N(ours).tolist() == [cell.range_max().id() for cell in theirs]
    assert [s2.token(cell) for cell in ours] == [cell.to_token() for cell in theirs]
    assert [s2.from_token(cell.to_token()) for cell in theirs] == ours.tolist()
    centres = [cell.to_lat_lng() for cell in theirs]
    error_km = geodesy.haversine_km(
        *s2.centre_deg_N(ours), [c.lat().degrees for c in centres], [c.lng().degrees for c in centres]
    )
    assert error_km.max() < 1e-8


def test_a_cells_centre_lies_in_it() -> None:
    leaves = s2.leaf_id_N(*random_points(1000))
    for level in range(31):
        cells = s2.parent_N(leaves, level)
        assert (s2.cell_id_N(*s2.centre_deg_N(cells), level) == cells).all()


def test_shape_is_kept_and_scalars_are_points() -> None:
    assert s2.leaf_id_N(np.zeros((2, 3)), 5.0).shape == (2, 3)
    assert s2.leaf_id_N(48.0, 2.0).shape == ()
    assert s2.leaf_id_N([], []).shape == (0,)


@pytest.mark.parametrize("point", [(90.0000001, 0), (-91, 0), (np.nan, 0), (0, np.inf), (0, np.nan)])
def test_points_not_on_earth_are_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="latitudes"):
        s2.leaf_id_N(*point)


@pytest.mark.parametrize("level", [-1, 31])
def test_levels_that_do_not_exist_are_refused(level: int) -> None:
    with pytest.raises(ValueError, match="levels are 0 to 30"):
        s2.parent_N(s2.leaf_id_N(0, 0), level)


@pytest.mark.parametrize("text", ["", "X", "g1", "0", "2", "d", "-1", "47a1cbd595522b39f", " 47a"])
def test_texts_that_are_no_tokens_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the token"):
        s2.from_token(text)


def test_numbers_that_are_no_cells_are_not_valid() -> None:
    assert not s2.is_valid_N(np.array([0, 2, 6 << 61 | 1, 1 << 61], np.uint64)).any()
