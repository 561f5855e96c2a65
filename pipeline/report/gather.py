"""What a report tells of a published output: counted in SQL, in memory that does not grow with the number of photos.

Places are counted by S2 cells of some 2 km, whose countries are looked up once each. Medians are t-digests, so
approximate. Nothing finer is told than the output's columns hold.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.world import s2
from pipeline import schema
from pipeline.locate.places import OPEN_SEA, Places, country_names
from pipeline.locate.precision import PRECISIONS
from pipeline.published.catalog import Catalog
from pipeline.report.map_bins import MapBins
from pipeline.report.reliability import Bin, BinCounts

THRESHOLDS_KM = (1, 25, 200, 750, 2500)
EXAMPLES = 12
"""Photos in each list of single ones."""
SLOWEST = 10
"""Photos in the list of those that took longest to read."""
WRONG_KM = 750
"""Farther off than this is clearly wrong."""
_CELL_SHIFT = 37
"""Drops a leaf cell's bits below S2 level 12, some 2 km."""
_FARTHEST_KM = 20_015.0
_STEPS_PER_DECADE = 10
_BATCH_ROWS = 100_000
_FAILURE_EXAMPLES = 3
_MOST_COLUMNS = 60
_MOST_MONTHS = 36

_HAS_PLACE = f"status = '{schema.Status.LOCATED}'"
_ERROR_KM = "distance_km(recorded_lat_deg, recorded_lon_deg, lat_deg, lon_deg)"
_IS_UNDECIDED = f"status = '{schema.Status.UNDECIDED}'"
_HAS_TRUTH = f"status <> '{schema.Status.FAILED}' AND {_ERROR_KM} IS NOT NULL"
"""The guesses of undecided photos among them: radius and confidence are to be true of these, too."""


@dataclass(frozen=True)
class Country:
    """Photos in one country; `code` None is the open sea."""

    code: str | None
    name: str
    photos: int


@dataclass(frozen=True)
class Failure:
    """One error code: how many photos, and some of them with their messages."""

    code: str
    photos: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Accuracy:
    """How far predictions are from where cameras say they were; over `photos` that have both.

    `curve`: (km, share within it), ascending; `inside_radius`: share within its own radius_km; `same_country`: share in
    the country of the camera's position, None where no row names countries.
    """

    photos: int
    median_km: float
    share_within: dict[int, float]
    curve: Sequence[tuple[float, float]]
    inside_radius: float
    same_country: float | None
    reliability: Sequence[Bin]


@dataclass(frozen=True)
class Example:
    """One photo of a list, with what its row says."""

    photo_id: bytes
    uri: str
    status: str
    lat_deg: float | None
    lon_deg: float | None
    radius_km: float | None
    confidence: float | None
    error_km: float | None
    country: str | None
    place: str | None


@dataclass(frozen=True)
class SlowPhoto:
    """A photo that took long to fetch and decode, and how large it is, as far as that could be read."""

    uri: str
    read_seconds: float
    size_bytes: int | None
    width_px: int | None
    height_px: int | None


@dataclass(frozen=True)
class Report:
    """All that the page shows. `photos_by_period` may begin with ("before YEAR", …)."""

    output: str
    where: str | None
    photos: int
    located: int
    undecided: int
    size_bytes: int
    models: Sequence[str]
    first_taken_at: dt.datetime | None
    last_taken_at: dt.datetime | None
    undated: int
    photos_by_period: Sequence[tuple[str, int]]
    periods_before: bool
    median_confidence: float | None
    median_radius_km: float | None
    photos_by_precision: dict[str, int]
    photos_by_confidence: Sequence[int]
    countries: Sequence[Country]
    bins: dict[str, list[float]]
    bins_depth: int
    failures: Sequence[Failure]
    accuracy: Accuracy | None
    wrong: Sequence[Example]
    at_sea: Sequence[Example]
    unsure: Sequence[Example]
    sample: Sequence[Example]
    slowest: Sequence[SlowPhoto]
    runs: Sequence[dict[str, Any]]

    @property
    def failed(self) -> int:
        """Photos that could not be looked at."""
        return self.photos - self.located - self.undecided

    @property
    def coarsened(self) -> list[str]:
        """Precisions that runs were limited to, other than the finest."""
        found = {run[schema.PRECISION] for run in self.runs} - {None, PRECISIONS[0]}
        return sorted(found)


def gather(catalog: Catalog, output: str, where: str | None = None, with_gone: bool = False) -> Report:
    """Return the report on the photos for which the SQL condition `where` is true; ValueError for a bad one.

    Those that their sources list no more are among them only `with_gone`.
    """
    return _Gathering(catalog, where, "photos" if with_gone else "photos_here").report(output)


class _Gathering:
    def __init__(self, catalog: Catalog, where: str | None, view: str) -> None:
        self._catalog = catalog
        # The line break ends a comment that the condition may end with.
        self._photos = f"(SELECT * FROM {view} WHERE ({where}\n))" if where else view
        self._where = where
        self._names = country_names()
        self._places = Places()

    def report(self, output: str) -> Report:
        """Count everything."""
        counted = self._row(
            f"""count(*) AS photos, count(*) FILTER (WHERE {_HAS_PLACE}) AS located,
            count(*) FILTER (WHERE {_IS_UNDECIDED}) AS undecided,
            coalesce(sum(size_bytes), 0)::BIGINT AS total, min(taken_at) AS first, max(taken_at) AS last,
            count(*) FILTER (WHERE taken_at IS NULL) AS undated, approx_quantile(confidence, 0.5) AS sure,
            approx_quantile(radius_km, 0.5) AS radius"""
        )
        bins, countries, sea_cells = self._where_they_are()
        periods, before = self._periods(counted["first"], counted["last"])
        return Report(
            output=output,
            where=self._where,
            photos=counted["photos"],
            located=counted["located"],
            undecided=counted["undecided"],
            size_bytes=counted["total"],
            models=[
                row["model"] for row in self._rows("model_id AS model, count(*) AS n", "GROUP BY 1 ORDER BY 2 DESC")
            ],
            first_taken_at=counted["first"],
            last_taken_at=counted["last"],
            undated=counted["undated"],
            photos_by_period=periods,
            periods_before=before,
            median_confidence=counted["sure"],
            median_radius_km=counted["radius"],
            photos_by_precision=self._precisions(),
            photos_by_confidence=self._confidences(),
            countries=countries,
            bins=bins.columns(),
            bins_depth=bins.depth,
            failures=self._failures(),
            accuracy=self._accuracy(),
            wrong=self._examples(f"{_HAS_TRUTH} AND {_ERROR_KM} > {WRONG_KM}", "confidence DESC, photo_id"),
            at_sea=self._at_sea(sea_cells),
            unsure=self._examples(_HAS_PLACE, "confidence, photo_id"),
            sample=self._examples("true", "photo_id ASC"),  # an id is a hash: as good as drawn by lot
            slowest=self._slowest(),
            runs=catalog_runs(self._catalog),
        )

    def _rows(self, columns: str, rest: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._catalog.rows(f"SELECT {columns} FROM {self._photos} {rest}").to_pylist()
        return found

    def _row(self, columns: str, rest: str = "") -> dict[str, Any]:
        (row,) = self._rows(columns, rest)
        return row

    def _batches(self, columns: str, rest: str) -> Iterator[pa.RecordBatch]:
        yield from self._catalog.sql(f"SELECT {columns} FROM {self._photos} {rest}").to_arrow_reader(_BATCH_ROWS)

    def _where_they_are(self) -> tuple[MapBins, list[Country], list[int]]:
        """Return bins, countries by the numbers that bins have for them, and the cells at sea of the surest photos."""
        bins = MapBins()
        numbers: dict[str | None, int] = {}
        photos_in: dict[str | None, int] = {}
        sea: list[tuple[float, int]] = []
        columns = (
            f"(cell_id >> {_CELL_SHIFT})::BIGINT AS cell, country_code, country, count(*) AS n,"
            " sum(lat_deg) AS lat, sum(lon_deg) AS lon, sum(confidence::DOUBLE) AS sure, max(confidence) AS surest"
        )
        for batch in self._batches(columns, f"WHERE {_HAS_PLACE} GROUP BY 1, 2, 3"):
            cell_K, lat_K, lon_K, photos_K, sure_K, surest_K = (
                batch.column(name).to_numpy() for name in ("cell", "lat", "lon", "n", "sure", "surest")
            )
            lat_deg_K, lon_deg_K = lat_K / photos_K, lon_K / photos_K
            known, named = (batch.column(name).to_pylist() for name in (schema.COUNTRY_CODE, schema.COUNTRY))
            codes = self._countries(known, named, lat_deg_K, lon_deg_K)
            for code, photos in zip(codes, photos_K.tolist(), strict=True):
                numbers.setdefault(code, len(numbers))
                photos_in[code] = photos_in.get(code, 0) + photos
            bins.add(lat_K, lon_K, photos_K, sure_K, [numbers[code] for code in codes])
            is_sea_K = np.array([code is None for code in codes]) & ~self._places.is_land_N(lat_deg_K, lon_deg_K)
            sea += zip(surest_K[is_sea_K].tolist(), cell_K[is_sea_K].tolist(), strict=True)
            sea = sorted(sea, reverse=True)[:EXAMPLES]
        countries = [Country(code, self._name(code), photos_in[code]) for code in numbers]
        return bins, countries, [cell for _, cell in sea]

    def _countries(
        self,
        codes: list[str | None],
        names: list[str | None],
        lat_deg_K: NDArray[np.float64],
        lon_deg_K: NDArray[np.float64],
    ) -> list[str | None]:
        """Return each cell's country: as the output has it; looked up where an older version named none."""
        missing = [row for row, name in enumerate(names) if name is None]
        found = self._places.country_code_N(lat_deg_K[missing], lon_deg_K[missing])
        codes = list(codes)
        for row, code in zip(missing, found, strict=True):
            codes[row] = code
        return codes

    def _name(self, code: str | None) -> str:
        return OPEN_SEA if code is None else self._names.get(code, code)

    def _periods(self, first: dt.datetime | None, last: dt.datetime | None) -> tuple[list[tuple[str, int]], bool]:
        """Return photos by month, or by year where that would be too many; and whether the first gathers older ones."""
        if first is None or last is None:
            return [], False
        months = (last.year - first.year) * 12 + last.month - first.month + 1
        is_monthly = months <= _MOST_MONTHS
        index = "year(taken_at) * 12 + month(taken_at) - 1" if is_monthly else "year(taken_at)"
        rows = self._rows(f"{index} AS period, count(*) AS n", "WHERE taken_at IS NOT NULL GROUP BY 1 ORDER BY 1")
        photos = {row["period"]: row["n"] for row in rows}
        label: Callable[[int], str] = (lambda x: f"{x // 12}-{x % 12 + 1:02}") if is_monthly else str
        low, high = min(photos), max(photos)
        if high - low < _MOST_COLUMNS:
            return [(label(period), photos.get(period, 0)) for period in range(low, high + 1)], False
        kept = sorted(photos)[-(_MOST_COLUMNS - 1) :]
        older = sum(count for period, count in photos.items() if period < kept[0])
        listed = [(label(period), photos[period]) for period in kept]
        return ([(f"before {kept[0]}", older), *listed], True) if older else (listed, False)

    def _precisions(self) -> dict[str, int]:
        rows = self._rows("precision AS p, count(*) AS n", f"WHERE {_HAS_PLACE} GROUP BY 1")
        photos = {row["p"]: row["n"] for row in rows}
        counted = {name: photos.pop(name, 0) for name in PRECISIONS}
        return counted | {"none of them": sum(photos.values())}

    def _confidences(self) -> list[int]:
        rows = self._rows(
            "least(floor(confidence * 20), 19)::INTEGER AS step, count(*) AS n", f"WHERE {_HAS_PLACE} GROUP BY 1"
        )
        photos = {row["step"]: row["n"] for row in rows}
        return [photos.get(step, 0) for step in range(20)]

    def _failures(self) -> list[Failure]:
        rows = self._rows(
            "error_code AS code, count(*) AS n,"
            f" min_by({{'u': uri, 'm': error_message}}, uri, {_FAILURE_EXAMPLES}) AS examples",
            f"WHERE status = '{schema.Status.FAILED}' GROUP BY 1 ORDER BY 2 DESC, 1",
        )
        return [Failure(row["code"], row["n"], [(x["u"], x["m"] or "") for x in row["examples"]]) for row in rows]

    def _accuracy(self) -> Accuracy | None:
        within = ", ".join(f"avg((e <= {km})::INTEGER) AS within_{km}" for km in THRESHOLDS_KM)
        source = f"(SELECT {_ERROR_KM} AS e, radius_km AS r, recorded_country = country AS c"
        source += f" FROM {self._photos} WHERE {_HAS_TRUTH})"
        (found,) = self._catalog.rows(
            f"SELECT count(*) AS n, approx_quantile(e, 0.5) AS median, avg((e <= r)::INTEGER) AS inside,"
            f" avg(c::INTEGER) AS same_country, {within}"
            f" FROM {source}"
        ).to_pylist()
        if not found["n"]:
            return None
        steps = self._catalog.rows(
            f"SELECT ceil(log10(greatest(e, 0.1)) * {_STEPS_PER_DECADE})::INTEGER AS step, count(*) AS n"
            f" FROM {source} GROUP BY 1 ORDER BY 1"
        ).to_pylist()
        photos = {row["step"]: row["n"] for row in steps}
        curve, so_far = [], 0
        for step in range(-_STEPS_PER_DECADE, max(photos) + 1):
            so_far += photos.get(step, 0)
            curve.append((min(10 ** (step / _STEPS_PER_DECADE), _FARTHEST_KM), so_far / found["n"]))
        shares = {km: found[f"within_{km}"] for km in THRESHOLDS_KM}
        return Accuracy(
            photos=found["n"],
            median_km=found["median"],
            share_within=shares,
            curve=curve,
            inside_radius=found["inside"],
            same_country=found["same_country"],
            reliability=self._reliability(),
        )

    def _reliability(self) -> Sequence[Bin]:
        """Compare the finest level's confidence with how often the camera's position is in the cell that it is about.

        That is the best cell's: a photo's point may be elsewhere (--point).
        """
        counts = BinCounts()
        answer = "levels[-1].probability AS said, levels[-1].cell_id AS cell"
        columns = f"{answer}, recorded_lat_deg AS lat, recorded_lon_deg AS lon"
        for batch in self._batches(columns, f"WHERE {_HAS_TRUTH} AND len(levels) > 0"):
            said_N, cell_N, lat_N, lon_N = (batch.column(name).to_numpy() for name in ("said", "cell", "lat", "lon"))
            leaf_N = s2.leaf_id_N(lat_N, lon_N)
            counts.add(said_N, (leaf_N >= s2.range_min_N(cell_N)) & (leaf_N <= s2.range_max_N(cell_N)))
        return counts.bins()

    def _at_sea(self, cells: list[int]) -> list[Example]:
        if not cells:
            return []
        listed = ", ".join(map(str, cells))
        return self._examples(f"{_HAS_PLACE} AND cell_id >> {_CELL_SHIFT} IN ({listed})", "confidence DESC, photo_id")

    def _slowest(self) -> list[SlowPhoto]:
        rows = self._rows(
            "uri, read_seconds, size_bytes, width_px, height_px",
            f"WHERE read_seconds IS NOT NULL ORDER BY read_seconds DESC, photo_id LIMIT {SLOWEST}",
        )
        return [SlowPhoto(**row) for row in rows]

    def _examples(self, condition: str, order: str) -> list[Example]:
        rows = self._rows(
            "photo_id AS id, uri, status, lat_deg AS lat, lon_deg AS lon, radius_km AS radius, confidence AS sure,"
            f" {_ERROR_KM} AS error, country_code, country, place",
            f"WHERE {condition} ORDER BY {order} LIMIT {EXAMPLES}",
        )
        placed = [row for row in rows if row["lat"] is not None]
        lat_deg_K, lon_deg_K = (np.array([row[name] for row in placed], np.float64) for name in ("lat", "lon"))
        known, named = ([row[name] for row in placed] for name in (schema.COUNTRY_CODE, schema.COUNTRY))
        codes = self._countries(known, named, lat_deg_K, lon_deg_K)
        for row, code in zip(placed, codes, strict=True):
            row["country"] = self._name(code)
        return [
            Example(
                row["id"],
                row["uri"],
                row["status"],
                row["lat"],
                row["lon"],
                row["radius"],
                row["sure"],
                row["error"],
                row["country"],
                row["place"],
            )
            for row in rows
        ]


def catalog_runs(catalog: Catalog) -> list[dict[str, Any]]:
    """Return the finished runs, newest first."""
    found: list[dict[str, Any]] = catalog.rows(
        "SELECT run_id, finished_at, model_id, precision, located, failed, wall_s FROM runs"
        " ORDER BY sequence DESC NULLS LAST, finished_at DESC"
    ).to_pylist()
    return found
