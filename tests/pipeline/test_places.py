"""Countries and land, at places that anyone can look up, and against Natural Earth where it is at hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.places import Places
from tests.conftest import SHARED

TOWNS = SHARED / "data" / "tables" / "natural_earth" / "ne_10m_populated_places_simple.json"


@pytest.fixture(scope="module")
def places() -> Places:
    return Places()


@pytest.mark.parametrize(
    ("place", "lat_deg", "lon_deg", "code"),
    [
        ("Paris", 48.8566, 2.3522, "FR"),
        ("Cayenne", 4.93, -52.33, "GF"),
        ("Hong Kong", 22.3, 114.17, "HK"),
        ("Busingen, German land inside Switzerland", 47.6961, 8.6898, "DE"),
        ("Llívia, Spanish land inside France", 42.4645, 1.9806, "ES"),
        ("Lesotho, inside South Africa", -29.5, 28.2, "LS"),
        ("Taveuni in Fiji, by the antimeridian", -16.85, -179.98, "FJ"),
        ("Hanoi, which keeps Bangkok's time", 21.0285, 105.8542, "VN"),
        ("Dien Bien Phu, by the border of Laos", 21.386, 103.017, "VN"),
        ("Vientiane", 17.9757, 102.6331, "LA"),
        ("Nakhon Phanom, at the eastern end of Thailand", 17.39, 104.77, "TH"),
        ("Bangkok", 13.7563, 100.5018, "TH"),
        ("Casey station", -66.2823, 110.5278, "AQ"),
        ("Esperanza base, on Argentina's time", -63.398, -56.996, "AQ"),
        ("South Pole", -90.0, 0.0, "AQ"),
        ("inland Antarctica, in no zone", -77.0, 20.0, "AQ"),
        ("off Nice, in French waters", 43.6, 7.3, "FR"),
        ("middle of the Atlantic", 30.0, -45.0, None),
        ("null island", 0.0, 0.0, None),
        ("Southern Ocean", -62.0, -150.0, None),
        ("North Pole", 90.0, 180.0, None),
    ],
)
def test_countries(place: str, lat_deg: float, lon_deg: float, code: str | None, places: Places) -> None:
    assert places.country_code_N([lat_deg], [lon_deg]) == [code], place


def test_land(places: Places) -> None:
    lat_deg_N = [48.86, 30.0, -80.0, 0.0, 61.0, 42.0, -90.0, 90.0]
    lon_deg_N = [2.35, -45.0, 0.0, 0.0, 31.5, 51.0, 180.0, -180.0]
    # Lake Ladoga is land; the Caspian, which GSHHG has as a lake, too.
    assert places.is_land_N(lat_deg_N, lon_deg_N).tolist() == [True, False, True, False, True, True, True, False]


def test_many_are_answered_as_one_by_one(places: Places) -> None:
    random = np.random.default_rng(0)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, 500))), random.uniform(-180, 180, 500)
    codes = places.country_code_N(lat_deg_N, lon_deg_N)
    assert codes == [places.country_code_N([lat], [lon])[0] for lat, lon in zip(lat_deg_N, lon_deg_N, strict=True)]
    assert all(code is None or (len(code) == 2 and code.isupper()) for code in codes)
    # 29 % of the Earth is land; of it no more than 2 % lies in no country here (ice shelves, rounding at coasts).
    land_N = places.is_land_N(lat_deg_N, lon_deg_N)
    assert 0.2 < land_N.mean() < 0.4
    assert sum(codes[row] is None for row in np.flatnonzero(land_N)) <= 3
    assert places.country_code_N([], []) == []
    assert places.is_land_N([], []).shape == (0,)


@pytest.mark.parametrize(("lat_deg", "lon_deg"), [(90.1, 0.0), (0.0, 180.1), (float("nan"), 0.0), (0.0, float("inf"))])
def test_what_is_no_position_is_refused(lat_deg: float, lon_deg: float, places: Places) -> None:
    for ask in (places.country_code_N, places.is_land_N):
        with pytest.raises(ValueError, match="latitudes must be numbers"):
            ask([lat_deg], [lon_deg])


@pytest.mark.skipif(not TOWNS.is_file(), reason=f"Natural Earth's towns are not at {TOWNS}")
def test_natural_earth_agrees(places: Places) -> None:
    towns = [feature["properties"] for feature in json.loads(TOWNS.read_text())["features"]]
    towns = [town for town in towns if town["iso_a2"] != "-99" and town["latitude"] != 0]  # one lies on null island
    said = places.country_code_N([town["latitude"] for town in towns], [town["longitude"] for town in towns])
    assert len(towns) > 7000
    assert None not in said
    # The rest are towns on a border, Western Sahara's (ISO: EH) and Crimea's.
    assert np.mean([code == town["iso_a2"] for code, town in zip(said, towns, strict=True)]) > 0.995
    on_land = places.is_land_N([town["latitude"] for town in towns], [town["longitude"] for town in towns])
    assert on_land.mean() > 0.95  # many towns are harbours
