import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.world import geodesy

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)


@pytest.mark.parametrize(
    ("start", "end", "expected_km"),
    [
        ((0, 0), (0, 0), 0.0),
        ((0, 0), (0, 180), math.pi * 6371),
        ((90, 12), (-90, -77), math.pi * 6371),
        ((0, 179.5), (0, -179.5), math.pi * 6371 / 180),
        ((90, 0), (90, 123), 0.0),
        ((48.8566, 2.3522), (51.5074, -0.1278), 343.556),  # Paris – London on this sphere
    ],
)
def test_haversine_km_of_known_pairs(start: tuple[float, float], end: tuple[float, float], expected_km: float) -> None:
    assert geodesy.haversine_km(*start, *end) == pytest.approx(expected_km, abs=5e-4)


def test_haversine_km_keeps_precision_at_a_metre() -> None:
    one_metre_deg = math.degrees(0.001 / geodesy.EARTH_RADIUS_KM)
    assert geodesy.haversine_km(45, 7, 45 + one_metre_deg, 7) == pytest.approx(0.001, rel=1e-6)


def test_haversine_km_broadcasts() -> None:
    distance_km = geodesy.haversine_km(np.zeros((3, 1)), 0.0, np.zeros((1, 2)), [0.0, 1.0])
    assert distance_km.shape == (3, 2)
    assert (distance_km[:, 0] == 0).all()


@given(latitudes, longitudes, st.floats(0, 360), st.floats(0, 20000))
def test_destination_point_lies_at_its_distance(lat: float, lon: float, bearing: float, distance_km: float) -> None:
    end_lat, end_lon = geodesy.destination_point(lat, lon, bearing, distance_km)
    assert geodesy.haversine_km(lat, lon, end_lat, end_lon) == pytest.approx(distance_km, abs=1e-3)


def test_destination_point_goes_clockwise_from_north() -> None:
    quarter_km = math.pi / 2 * geodesy.EARTH_RADIUS_KM
    lat_deg, lon_deg = geodesy.destination_point([0, 0, 0], [0, 0, 170], [0, 90, 90], [quarter_km, 100, 3000])
    assert lat_deg[0] == pytest.approx(90)
    assert lat_deg[1:] == pytest.approx([0, 0])
    assert lon_deg[1] > 0
    assert -180 <= lon_deg[2] < -160  # across the antimeridian


def test_mean_point_across_the_antimeridian_and_at_the_pole() -> None:
    lat_deg, lon_deg = geodesy.mean_point([10, 10], [179, -179])
    assert lat_deg == pytest.approx(10.0015, abs=1e-3)
    assert abs(lon_deg) == pytest.approx(180)
    lat_deg, _ = geodesy.mean_point([89, 89, 89, 89], [0, 90, 180, -90])
    assert lat_deg == pytest.approx(90)


@pytest.mark.parametrize("points", [([], []), ([0, 0], [0, 180]), ([90, -90], [5, 5])])
def test_mean_point_of_nothing_or_of_antipodes_is_an_error(points: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="no mean"):
        geodesy.mean_point(*points)


@given(latitudes, longitudes)
def test_directions_undo_unit_vectors(lat: float, lon: float) -> None:
    vector_3 = geodesy.unit_vectors_N3(lat, lon)
    assert np.linalg.norm(vector_3) == pytest.approx(1)
    back_lat, back_lon = geodesy.directions_deg(vector_3)
    assert geodesy.haversine_km(lat, lon, back_lat, back_lon) < 1e-6
