"""A test set drawn evenly over the land and its countries, and how even any set of photos is.

Photo collections crowd at landmarks, in cities and where their makers live, so a model can do well on them without
knowing the rest of the world. The idea is Google-World-Streets-15k's (Clark et al., CVPR 2023, arXiv 2303.04249): take
countries by their area, then places within a country, however many photos there are of each.

The land is cut into cells of like size. A set is perfectly even if each cell's share of its photos is the cell's share
of the land. Antarctica is left out: no country, and hardly a photo.

Shapes: N photos, K cells, P pairs of a cell and a country, S sample points.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.world import geodesy
from pipeline.locate.places import ANTARCTICA, Places

_SAMPLE_POINTS = 1_000_000
_POINT_KM2 = 4 * math.pi * geodesy.EARTH_RADIUS_KM**2 / _SAMPLE_POINTS
_KM_A_DEGREE = math.pi * geodesy.EARTH_RADIUS_KM / 180


@dataclass(frozen=True)
class EvennessConfig:
    """How to draw. Cells are about `cell_km` wide (200 km: what the field calls a region). No cell and no photographer
    gives more than so many photos, even if fewer are drawn for it. Raises ValueError for what is not positive."""

    cell_km: float = 200.0
    most_per_cell: int = 10
    most_per_photographer: int = 10

    def __post_init__(self) -> None:
        if not 20 <= self.cell_km <= 2000:
            raise ValueError(f"cells {self.cell_km:g} km wide: give 20 to 2000")
        if min(self.most_per_cell, self.most_per_photographer) < 1:
            raise ValueError("at least one photo must be allowed from a cell and from a photographer")


class Grid:
    """The Earth in bands of equal height, each cut into so many columns that cells are about square."""

    def __init__(self, cell_km: float) -> None:
        self.bands = max(2, round(180 * _KM_A_DEGREE / cell_km))
        self.height_deg = 180 / self.bands
        middle_deg = -90 + self.height_deg * (np.arange(self.bands) + 0.5)
        self._columns = np.maximum(1, np.rint(360 * np.cos(np.radians(middle_deg)) / self.height_deg)).astype(np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._columns)])

    def cell_N(self, lat_deg_N: ArrayLike, lon_deg_N: ArrayLike) -> NDArray[np.int64]:
        """Return the number of the cell that each position is in."""
        lat_deg, lon_deg = np.asarray(lat_deg_N, np.float64), np.asarray(lon_deg_N, np.float64)
        band = np.clip(((lat_deg + 90) / self.height_deg).astype(np.int64), 0, self.bands - 1)
        columns = self._columns[band]
        column = np.clip(((lon_deg + 180) / 360 * columns).astype(np.int64), 0, columns - 1)
        return np.asarray(self._first[band] + column)

    def box_deg(self, cell: int) -> tuple[float, float, float, float]:
        """Return a cell's (south, west, north, east)."""
        band = int(np.searchsorted(self._first, cell, side="right")) - 1
        width_deg = 360 / int(self._columns[band])
        west = -180 + width_deg * (cell - int(self._first[band]))
        south = -90 + self.height_deg * band
        return south, west, south + self.height_deg, west + width_deg


class Land:
    """How much land each country has in each cell, Antarctica apart, counted on a million points spread evenly."""

    def __init__(self, places: Places, cell_km: float = 200.0) -> None:
        self.grid = Grid(cell_km)
        lat_deg_S, lon_deg_S = even_points(_SAMPLE_POINTS)
        on_land_S = places.is_land_N(lat_deg_S, lon_deg_S)
        lat_deg_S, lon_deg_S = lat_deg_S[on_land_S], lon_deg_S[on_land_S]
        country_S = places.country_code_N(lat_deg_S, lon_deg_S)
        pairs = Counter(zip(country_S, self.grid.cell_N(lat_deg_S, lon_deg_S).tolist(), strict=True))
        self.km2_of: dict[tuple[str, int], float] = {
            (country, cell): points * _POINT_KM2
            for (country, cell), points in pairs.items()
            if country is not None and country != ANTARCTICA
        }

    def with_photos(self, pairs: set[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Return km² of land by (country, cell), where photos are at least half a sample point: islets, coasts."""
        return dict.fromkeys(sorted(pairs), _POINT_KM2 / 2) | self.km2_of


def even_points(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (lat_deg_S, lon_deg_S) of points spread evenly over the sphere: a Fibonacci lattice."""
    step_S = np.arange(count) + 0.5
    golden = (1 + math.sqrt(5)) / 2
    lat_deg_S: NDArray[np.float64] = np.degrees(np.arcsin(1 - 2 * step_S / count))
    return lat_deg_S, np.asarray(360 * step_S / golden % 360 - 180, np.float64)


def draw_evenly(
    land: Land,
    lat_deg_N: NDArray[np.float64],
    lon_deg_N: NDArray[np.float64],
    country_N: Sequence[str | None],
    count: int,
    seed: int = 0,
    config: EvennessConfig | None = None,
    photographer_N: Sequence[str | None] = (),
) -> NDArray[np.int64]:
    """Return the rows of `count` photos, ascending, or of as many as there are within the config's limits.

    Countries take turns: the next photo is that of the country with the fewest photos for its area, so each country
    with a photo has one before the large ones fill up. Within a country it is that of the cell with the fewest for its
    land, ties falling at random; within a cell, any. Photos without a country (the open sea) and in Antarctica are
    never drawn, and none twice. The same seed and photos give the same rows.
    """
    config = config or EvennessConfig()
    random = np.random.default_rng(seed)
    waiting: dict[tuple[str, int], list[int]] = {}
    cell_N = land.grid.cell_N(lat_deg_N, lon_deg_N).tolist()
    for row in random.permutation(len(lat_deg_N)).tolist():
        country = country_N[row]
        if country is not None and country != ANTARCTICA:
            waiting.setdefault((country, cell_N[row]), []).append(row)
    km2_of = land.with_photos(set(waiting))
    country_km2: defaultdict[str, float] = defaultdict(float)
    for (country, _), km2 in km2_of.items():
        country_km2[country] += km2

    # Drawing by the smallest (n + u) / km², u from [0, 1) once a cell, gives a cell km² · t photos on average by the
    # time that all have come to t; with u = 0, a country has its first photo at once.
    cells: dict[str, list[tuple[float, float, int, int]]] = {}
    for country, cell in sorted(waiting):
        offset = random.random()
        cells.setdefault(country, []).append((offset / km2_of[country, cell], offset, 0, cell))
    for heap in cells.values():
        heapq.heapify(heap)
    turns = [(0.0, -country_km2[country], 0, country) for country in cells]
    heapq.heapify(turns)
    taken_by: Counter[str] = Counter()
    rows: list[int] = []
    while turns and len(rows) < count:
        _, _, drawn, country = heapq.heappop(turns)
        row = _next_photo(cells[country], waiting, country, km2_of, config, photographer_N, taken_by)
        if row is not None:
            rows.append(row)
            heapq.heappush(turns, ((drawn + 1) / country_km2[country], -country_km2[country], drawn + 1, country))
    return np.array(sorted(rows), np.int64)


def _next_photo(
    heap: list[tuple[float, float, int, int]],
    waiting: dict[tuple[str, int], list[int]],
    country: str,
    km2_of: dict[tuple[str, int], float],
    config: EvennessConfig,
    photographer_N: Sequence[str | None],
    taken_by: Counter[str],
) -> int | None:
    """Take a photo from the cell of the country whose turn it is; None if none is left that may be taken."""
    while heap:
        _, offset, drawn, cell = heapq.heappop(heap)
        photos = waiting[country, cell]
        while photos:
            row = photos.pop()
            who = photographer_N[row] if len(photographer_N) else None
            if who and taken_by[who] >= config.most_per_photographer:
                continue
            taken_by[who or ""] += 1
            if drawn + 1 < config.most_per_cell:
                heapq.heappush(heap, ((drawn + 1 + offset) / km2_of[country, cell], offset, drawn + 1, cell))
            return row
    return None


@dataclass(frozen=True)
class Evenness:
    """How evenly photos lie on the land.

    `covered`: the headline, from 0 to 1: exp(−Σ p ln(p/q)) for cells' shares p of the photos and q of the land. Photos
    spread perfectly over a part of the land and missing elsewhere cover just that part. `cells`: cells with a photo, of
    `land_cells`. `fullest_share`: share of the photos in the fullest hundredth of the land cells. `country_distance`:
    the share of the photos that would have to move to other countries for each to have as its land is large.
    `off_land`: photos on the open sea and in Antarctica, which are not counted in the rest.
    """

    photos: int
    covered: float
    cells: int
    land_cells: int
    fullest_share: float
    countries: int
    country_distance: float
    off_land: int


class EvennessMeter:
    """Measures parts of one collection of photos, so that all are measured on the same cells."""

    def __init__(
        self,
        land: Land,
        lat_deg_N: NDArray[np.float64],
        lon_deg_N: NDArray[np.float64],
        country_N: Sequence[str | None],
    ) -> None:
        cell_N = land.grid.cell_N(lat_deg_N, lon_deg_N)
        self._country_N = [None if country == ANTARCTICA else country for country in country_N]
        pairs = {(who, cell) for who, cell in zip(self._country_N, cell_N.tolist(), strict=True) if who is not None}
        cell_km2: defaultdict[int, float] = defaultdict(float)
        self._country_km2: defaultdict[str, float] = defaultdict(float)
        for (country, cell), km2 in land.with_photos(pairs).items():
            cell_km2[cell] += km2
            self._country_km2[country] += km2
        self.cell_K = np.array(sorted(cell_km2), np.int64)
        self._share_K = np.array([cell_km2[cell] for cell in self.cell_K.tolist()])
        self._share_K /= self._share_K.sum()
        known_N = np.array([who is not None for who in self._country_N], np.bool_)
        self._index_N = np.where(known_N, np.searchsorted(self.cell_K, cell_N), -1)

    def photos_K(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the photos in these rows each of `cell_K` has."""
        index = self._index_N[rows]
        return np.bincount(index[index >= 0], minlength=len(self.cell_K))

    def measure(self, rows: NDArray[np.int64]) -> Evenness:
        """Return how even the photos in these rows are."""
        countries = Counter(who for who in (self._country_N[row] for row in rows.tolist()) if who is not None)
        return self._evenness(self.photos_K(rows), countries, int((self._index_N[rows] < 0).sum()))

    def best(self, count: int) -> Evenness:
        """Return how even so many photos can be at best: as many in each cell and country as their land is large."""
        countries = list(self._country_km2)
        shares = np.array([self._country_km2[country] for country in countries]) / sum(self._country_km2.values())
        quota = dict(zip(countries, _apportion(shares, count).tolist(), strict=True))
        return self._evenness(_apportion(self._share_K, count), Counter(quota), 0)

    def unreached(self) -> tuple[float, list[str]]:
        """Return what no photo of the collection shows: the share of the land in cells without, and the countries."""
        empty_K = self.photos_K(np.arange(len(self._index_N))) == 0
        return float(self._share_K[empty_K].sum()), sorted(set(self._country_km2) - set(filter(None, self._country_N)))

    def _evenness(self, photos_K: NDArray[np.int64], countries: Counter[str], off_land: int) -> Evenness:
        total = int(photos_K.sum())
        if not total:
            return Evenness(0, 0.0, 0, len(self.cell_K), 0.0, 0, 1.0, off_land)
        share_K = photos_K / total
        some = photos_K > 0
        covered = math.exp(-float((share_K[some] * np.log(share_K[some] / self._share_K[some])).sum()))
        fullest = np.sort(share_K)[::-1][: max(1, round(len(share_K) / 100))]
        land = sum(self._country_km2.values())
        distance = sum(abs(countries[who] / total - km2 / land) for who, km2 in self._country_km2.items()) / 2
        return Evenness(
            photos=total + off_land,
            covered=covered,
            cells=int(some.sum()),
            land_cells=len(self.cell_K),
            fullest_share=float(fullest.sum()),
            countries=sum(n > 0 for n in countries.values()),
            country_distance=distance,
            off_land=off_land,
        )


def _apportion(share_K: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return whole numbers as near to the shares of `count` as can be, by systematic sampling."""
    ticks = (np.arange(count) + 0.5) / count
    places = np.minimum(np.searchsorted(np.cumsum(share_K), ticks), len(share_K) - 1)
    return np.bincount(places, minlength=len(share_K))
