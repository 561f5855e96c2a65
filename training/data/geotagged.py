"""Photos that say where they were taken, as archives and published tables have them, and which of these to believe.

A source is an output of jobs.geotag_archive, whose positions are those that cameras wrote, or a table as
`training.data.labelled` reads it; but here a row may lack a position or have one that can't be.

Shapes: N photos.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.world import geodesy, s2
from pipeline import schema, storage
from pipeline.locate.places import Places
from pipeline.published import catalog, records
from training.data import labelled

NULL_ISLAND_DEG = 0.1
"""Half the side of the square around 0° N 0° E where no photo is believed: 11 km, in an ocean 570 km from any shore. It
takes in the truncated and rounded zeros of broken GPS units. A single zero is left alone: Greenwich is at 0° E."""

POLE_DEG = 0.01
"""How near a pole no photo is believed: 1.1 km. The few true photos of the South Pole's station go, too: nothing tells
them from a broken ±90."""

SAME_PLACE_KM = 1.0
"""Rows of one photo that are farther apart contradict each other."""

_TOWN_S2_LEVEL = 7  # cells of some 70 km
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Drop(enum.StrEnum):
    """Why a photo is left out: a closed set, exactly one for each such photo, the first that applies."""

    UNNAMED = "unnamed"
    UNREADABLE = "unreadable"
    COARSENED = "coarsened"
    MISSING_COORDINATES = "missing_coordinates"
    SWAPPED = "swapped"
    OUT_OF_RANGE = "out_of_range"
    NULL_ISLAND = "null_island"
    ON_POLE = "on_pole"
    SWAPPED_AT_SEA = "swapped_at_sea"
    CONTRADICTORY = "contradictory"
    REPEATED = "repeated"


MEANINGS = {
    Drop.UNNAMED: "the row names no photo",
    Drop.UNREADABLE: "the photo could not be read when it was tagged",
    Drop.COARSENED: "its run kept coarse positions only (--precision)",
    Drop.MISSING_COORDINATES: "latitude or longitude is missing or no number",
    Drop.SWAPPED: "beyond ±90° of latitude, but a position if latitude and longitude change places",
    Drop.OUT_OF_RANGE: "beyond ±90° of latitude or ±180° of longitude",
    Drop.NULL_ISLAND: f"within {NULL_ISLAND_DEG}° of 0° N 0° E, in the open ocean",
    Drop.ON_POLE: f"within {POLE_DEG}° of a pole",
    Drop.SWAPPED_AT_SEA: "on the open sea, but near the photographer's other photos if exchanged",
    Drop.CONTRADICTORY: f"named more than once, at places over {SAME_PLACE_KM:g} km apart",
    Drop.REPEATED: "named before",
}


@dataclass(frozen=True, eq=False)
class GeotaggedPhotos:
    """Photos as a source lists them; sequences of length N.

    `name_N`: the source's own words, None where it has none; `uri_N`: where each can be read; positions are NaN where
    missing; `photographer_N` and `scene_N`: None where unknown; `part_N`: None where the source has no parts; `drop_N`:
    a `Drop`, or "" where the source itself gives no reason against a photo. `is_archive`: an output of
    jobs.geotag_archive, which knows no photographers; `is_unnamed`: a table of positions only, whose rows are told
    apart by the table's URI with #1, #2 … after it.
    """

    name_N: list[str | None]
    uri_N: list[str]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    photographer_N: list[str | None]
    scene_N: list[str | None]
    part_N: list[str | None]
    drop_N: NDArray[np.object_]
    is_archive: bool = False
    is_unnamed: bool = False

    def __len__(self) -> int:
        return len(self.name_N)

    def folder(self, row: int) -> str:
        """Return the folder or prefix that a photo lies in."""
        return self.uri_N[row].rpartition("/")[0]


def read_geotagged(source: str, root: str = "", scenes: int = 0) -> GeotaggedPhotos:
    """Read an output of jobs.geotag_archive or a table, which need not name its photos.

    `root`: where relative names lie, beside the table if empty. `scenes`: 16 or 3, to take the published numbers of so
    many scenes where a table has no names for them. What a model took a scene for is no label: an archive has none.
    Raises ValueError for what is neither, and for a table without positions.
    """
    source = storage.absolute(source)
    if storage.exists(source):
        return _of_table(source, root, scenes)
    if not records.run_records(source):
        raise ValueError(f"{source} is neither a table nor an output of jobs.geotag_archive with a finished run")
    return _of_archive(source)


def _of_table(uri: str, root: str, scenes: int) -> GeotaggedPhotos:
    table = labelled.read_table(uri)
    numbered = labelled.find_column(table, labelled.SCENE_NUMBER_NAMES.get(scenes, ()))
    vocabulary = labelled.published_scenes(scenes) if numbered else ()
    nothing: list[str | None] = [None] * table.num_rows
    is_unnamed = labelled.find_column(table, labelled.URI_NAMES) is None
    name_N: list[str | None] = (
        [f"{uri}#{row}" for row in range(1, table.num_rows + 1)]
        if is_unnamed
        else labelled.texts(table, labelled.URI_NAMES, uri)
    )
    root = storage.absolute(root) if root else ""
    return GeotaggedPhotos(
        name_N=name_N,
        uri_N=[labelled.beside(name, uri, root) if name else "" for name in name_N],
        lat_deg_N=_degrees(table, labelled.LATITUDE_NAMES, uri),
        lon_deg_N=_degrees(table, labelled.LONGITUDE_NAMES, uri),
        photographer_N=labelled.photographers(table) or nothing,
        scene_N=labelled.scene_names(table, vocabulary, uri) or nothing,
        part_N=labelled.parts(table, uri) or nothing,
        drop_N=np.array([("" if name else Drop.UNNAMED) for name in name_N], object),
        is_unnamed=is_unnamed,
    )


def _degrees(table: pa.Table, names: Sequence[str], uri: str) -> NDArray[np.float64]:
    """Return a column of degrees, NaN for what is no number."""
    column = labelled.trimmed(table[labelled.require_column(table, names, uri)])
    if labelled.is_text(column):
        column = pc.if_else(pc.match_substring_regex(column, _NUMBER), column, None)
    try:
        degrees_N = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f"{' or '.join(names)} of {uri} is not made of numbers: {error}") from error
    return np.where(np.isfinite(degrees_N), degrees_N, np.nan)


def _of_archive(output: str) -> GeotaggedPhotos:
    published = catalog.Catalog(output)
    photos = published.rows(
        f"SELECT {schema.URI}, {schema.RECORDED_LAT_DEG}, {schema.RECORDED_LON_DEG}, {schema.STATUS}, {schema.RUN_ID}"
        f" FROM photos ORDER BY {schema.URI}"
    )
    # Where a run was told to keep nothing finer than a city, the positions are the centres of cells.
    precision = {record.run_id: record.setting("precision") for record in published.records}
    coarse = {run for run, name in precision.items() if name not in (None, "street")}
    failed_N = pc.equal(photos[schema.STATUS], schema.Status.FAILED).to_numpy()
    coarse_N = pc.is_in(photos[schema.RUN_ID], pa.array(sorted(coarse), pa.string())).to_numpy()
    uri_N: list[str] = photos[schema.URI].to_pylist()
    nothing: list[str | None] = [None] * len(uri_N)
    return GeotaggedPhotos(
        name_N=[*uri_N],
        uri_N=uri_N,
        lat_deg_N=photos[schema.RECORDED_LAT_DEG].to_numpy(),
        lon_deg_N=photos[schema.RECORDED_LON_DEG].to_numpy(),
        photographer_N=nothing,
        scene_N=nothing,
        part_N=nothing,
        drop_N=np.where(failed_N, Drop.UNREADABLE, np.where(coarse_N, Drop.COARSENED, "")).astype(object),
        is_archive=True,
    )


def implausible(photos: GeotaggedPhotos, kin_N: Sequence[str], places: Places) -> NDArray[np.object_]:
    """Return the reason to leave each photo out, "" where there is none.

    `kin_N`: who took each photo, or what stands for it, "" where unknown. Photos on the sea stay: there are ships and
    beaches. Exchanged coordinates are found where latitude is beyond ±90°, and where a position on the open sea, once
    exchanged, is in a cell of some 70 km where the same photographer took a photo that is not on the open sea. Others
    can't be told from true ones by their position, and stay. Of rows that repeat a photo the first stays, none if they
    contradict each other.
    """
    drop_N = photos.drop_N.copy()

    def mark(reason: Drop, bad_N: NDArray[np.bool_]) -> None:
        drop_N[bad_N & (drop_N == "")] = reason

    lat_deg_N, lon_deg_N = photos.lat_deg_N, photos.lon_deg_N
    north_deg_N, east_deg_N = np.abs(lat_deg_N), np.abs(lon_deg_N)
    mark(Drop.MISSING_COORDINATES, np.isnan(lat_deg_N) | np.isnan(lon_deg_N))
    mark(Drop.SWAPPED, (north_deg_N > 90) & (north_deg_N <= 180) & (east_deg_N <= 90))
    mark(Drop.OUT_OF_RANGE, (north_deg_N > 90) | (east_deg_N > 180))
    mark(Drop.NULL_ISLAND, (north_deg_N <= NULL_ISLAND_DEG) & (east_deg_N <= NULL_ISLAND_DEG))
    mark(Drop.ON_POLE, north_deg_N >= 90 - POLE_DEG)
    mark(Drop.SWAPPED_AT_SEA, _swapped_at_sea(photos, np.flatnonzero(drop_N == ""), kin_N, places))
    contradictory_N, repeated_N = _repeats(photos, np.flatnonzero(drop_N == ""))
    mark(Drop.CONTRADICTORY, contradictory_N)
    mark(Drop.REPEATED, repeated_N)
    return drop_N


def _swapped_at_sea(
    photos: GeotaggedPhotos, rows: NDArray[np.int64], kin_N: Sequence[str], places: Places
) -> NDArray[np.bool_]:
    swapped_N = np.zeros(len(photos), np.bool_)
    rows = rows[[bool(kin_N[row]) for row in rows.tolist()]] if len(rows) else rows
    lat_deg, lon_deg = photos.lat_deg_N[rows], photos.lon_deg_N[rows]
    at_sea = np.array([country is None for country in places.country_code_N(lat_deg, lon_deg)], np.bool_)
    towns = s2.cell_id_N(lat_deg[~at_sea], lon_deg[~at_sea], _TOWN_S2_LEVEL)
    known = {(kin_N[row], town) for row, town in zip(rows[~at_sea].tolist(), towns.tolist(), strict=True)}
    suspects = at_sea & (np.abs(lon_deg) <= 90)
    exchanged = s2.cell_id_N(lon_deg[suspects], lat_deg[suspects], _TOWN_S2_LEVEL)
    for row, town in zip(rows[suspects].tolist(), exchanged.tolist(), strict=True):
        swapped_N[row] = (kin_N[row], town) in known
    return swapped_N


def _repeats(photos: GeotaggedPhotos, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which photos are named at several places, and which are named before."""
    first: dict[str, int] = {}
    first_N = np.arange(len(photos))
    for row in rows.tolist():
        first_N[row] = first.setdefault(photos.uri_N[row], row)
    again = np.flatnonzero(first_N != np.arange(len(photos)))
    ahead = first_N[again]
    apart_km = geodesy.haversine_km(
        photos.lat_deg_N[again], photos.lon_deg_N[again], photos.lat_deg_N[ahead], photos.lon_deg_N[ahead]
    )
    repeated_N = np.zeros(len(photos), np.bool_)
    repeated_N[again] = True
    return np.isin(first_N, ahead[apart_km > SAME_PLACE_KM]), repeated_N
