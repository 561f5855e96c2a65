"""Coarsening: `--precision` keeps nothing finer than the user allows, in any column that holds or implies a place."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.world import s2
from pipeline import schema
from pipeline.locate.places import Gazetteer

PrecisionName = Literal["street", "city", "region", "country"]
PRECISIONS: tuple[PrecisionName, ...] = ("street", "city", "region", "country")
"""Fine → coarse: within 1, 25, 200 and 750 km, the thresholds of the field's benchmarks."""

_FINEST_S2_LEVEL = {"city": 9, "region": 6, "country": 4}
"""Cells of about 18, 144 and 575 km across; `street` leaves everything as it is."""
_POINT_NAMES = (schema.COUNTRY_CODE, schema.REGION, schema.PLACE)
_EXIF_NAMES = (schema.RECORDED_COUNTRY_CODE, schema.RECORDED_REGION, schema.RECORDED_PLACE)
_TOO_FINE_WORDS = (schema.CAPTION, schema.KEYWORDS, schema.IPTC_CITY, schema.IPTC_REGION)
"""The owner's words, fine → coarse: a caption or a keyword may name a street, so only `street` keeps it."""
_TOO_FINE_FROM = {"city": 2, "region": 3, "country": 4}
_CELL_RADIUS_KM = {"city": 18.0, "region": 144.0, "country": 575.0}


def coarsen(rows: pa.Table, precision: PrecisionName, gazetteer: Gazetteer) -> pa.Table:
    """Return `rows` of `schema.PHOTOS` with every position moved to the centre of its cell of the allowed size.

    Cells finer than that become their ancestor; `radius_km` grows to at least the cell's own size. Countries stay, as
    the coarsest there is to allow: a cell's centre may be in another, or at sea. Region and town are those of the
    centre, within the country, and null where finer than allowed; so are the owner's words, which are places or may
    hold some. A time in UTC that the position's zone told is null, since a zone's border may run through a cell.
    """
    if precision == "street":
        return rows
    level = _FINEST_S2_LEVEL[precision]
    point = _Snapped(rows.column(schema.LAT_DEG), rows.column(schema.LON_DEG), level)
    exif = _Snapped(rows.column(schema.RECORDED_LAT_DEG), rows.column(schema.RECORDED_LON_DEG), level)
    context = _Snapped(rows.column(schema.CONTEXT_LAT_DEG), rows.column(schema.CONTEXT_LON_DEG), level)
    finer = pa.array(PRECISIONS[: PRECISIONS.index(precision)], pa.string())
    named = rows.column(schema.PRECISION)
    columns = {
        schema.LAT_DEG: point.lat_deg,
        schema.LON_DEG: point.lon_deg,
        schema.CELL_ID: point.leaf_id,
        schema.GEOMETRY: point.wkb,
        schema.RECORDED_LAT_DEG: exif.lat_deg,
        schema.RECORDED_LON_DEG: exif.lon_deg,
        schema.RADIUS_KM: _at_least(rows, schema.RADIUS_KM, schema.LAT_DEG, _CELL_RADIUS_KM[precision]),
        schema.CONTEXT_LAT_DEG: context.lat_deg,
        schema.CONTEXT_LON_DEG: context.lon_deg,
        schema.CONTEXT_CELL_ID: context.leaf_id,
        schema.CONTEXT_RADIUS_KM: _at_least(
            rows, schema.CONTEXT_RADIUS_KM, schema.CONTEXT_LAT_DEG, _CELL_RADIUS_KM[precision]
        ),
        schema.PRECISION: pc.if_else(pc.is_in(named, finer), precision, named),
        schema.LEVELS: _coarsen_cells(rows.column(schema.LEVELS), level),
        schema.ALTERNATIVES: _coarsen_cells(rows.column(schema.ALTERNATIVES), level),
    }
    too_fine = _TOO_FINE_WORDS[: _TOO_FINE_FROM[precision]]
    columns |= {name: pa.nulls(rows.num_rows, rows.schema.field(name).type) for name in too_fine}
    columns |= _without_zone_times(rows)
    columns |= _names(rows, _POINT_NAMES, point, precision, gazetteer)
    columns |= _names(rows, _EXIF_NAMES, exif, precision, gazetteer)
    for name, values in columns.items():
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(name), values)
    return rows


def cell_count(cell_ids: np.ndarray, precision: PrecisionName) -> int:
    """Return how many of a level's cells can be told apart after coarsening."""
    return len(np.unique(cell_ids if precision == "street" else _no_finer(cell_ids, _FINEST_S2_LEVEL[precision])))


def wkb_points(lat_deg_N: np.ndarray, lon_deg_N: np.ndarray) -> pa.Array:
    """Return points as little-endian WKB (OGC Simple Features, 8.2), x = longitude, y = latitude."""
    points = np.empty(len(lat_deg_N), dtype=[("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])
    points["order"], points["kind"], points["x"], points["y"] = 1, 1, lon_deg_N, lat_deg_N
    return pa.Array.from_buffers(pa.binary(21), len(points), [None, pa.py_buffer(points)]).cast(pa.binary())


class _Snapped:
    """Positions moved to the centres of their S2 cells of `level`; null stays null."""

    def __init__(self, lat_deg: pa.ChunkedArray, lon_deg: pa.ChunkedArray, level: int) -> None:
        missing = np.asarray(pc.is_null(lat_deg).to_numpy())
        lat_deg_N, lon_deg_N = (values.fill_null(0.0).to_numpy() for values in (lat_deg, lon_deg))
        lat_deg_N, lon_deg_N = s2.centre_deg_N(s2.cell_id_N(lat_deg_N, lon_deg_N, level))
        self.known_N = np.flatnonzero(~missing)
        self.lat_deg_N, self.lon_deg_N = lat_deg_N, lon_deg_N
        self.lat_deg = pa.array(lat_deg_N, mask=missing)
        self.lon_deg = pa.array(lon_deg_N, mask=missing)
        self.leaf_id = pa.array(s2.leaf_id_N(lat_deg_N, lon_deg_N), mask=missing)
        self.wkb = pc.if_else(pa.array(missing), pa.scalar(None, pa.binary()), wkb_points(lat_deg_N, lon_deg_N))


def _at_least(rows: pa.Table, radius: str, place: str, least_km: float) -> pa.ChunkedArray:
    """Return the column `radius` with `least_km` for all that is smaller, null where there is no place."""
    radius_km = pc.max_element_wise(rows.column(radius), pa.scalar(least_km, pa.float32()))
    return pc.if_else(pc.is_valid(rows.column(place)), radius_km, None)


def _without_zone_times(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the columns of times in UTC without those that the exact position told."""
    by_zone = str(schema.UtcBy.ZONE_OF_POSITION)
    is_told = pc.fill_null(pc.equal(rows.column(schema.TAKEN_AT_UTC_BY), by_zone), False)
    names = (schema.TAKEN_AT_UTC, schema.TAKEN_AT_UTC_BY)
    return {
        name: pc.if_else(is_told, pa.scalar(None, rows.schema.field(name).type), rows.column(name)) for name in names
    }


def _names(
    rows: pa.Table, columns: tuple[str, str, str], at: _Snapped, precision: PrecisionName, gazetteer: Gazetteer
) -> dict[str, pa.Array]:
    """Return the columns of region and town at coarse positions, by those of country, region and town."""
    code_column, region_column, place_column = columns
    region_row, place_row = np.full((2, rows.num_rows), -1)
    known_N = at.known_N
    codes = rows.column(code_column).take(pa.array(known_N)).to_pylist()
    names = gazetteer.names_within_N(codes, at.lat_deg_N[known_N], at.lon_deg_N[known_N])
    if precision != "country":
        region_row[known_N] = np.arange(len(known_N))
    if precision == "city":
        place_row[known_N] = np.arange(len(known_N))
    return {
        region_column: names.region.take(pa.array(region_row, mask=region_row < 0)),
        place_column: names.place.take(pa.array(place_row, mask=place_row < 0)),
    }


def _coarsen_cells(lists: pa.ChunkedArray, level: int) -> pa.Array:
    """Return `lists` of cells (levels or alternatives) with every cell finer than `level` as its ancestor there."""
    column = lists.combine_chunks()
    cells = column.values
    cell_ids = cells.field(schema.CELL_ID).to_numpy(zero_copy_only=False)
    s2_levels = s2.level_of_N(cell_ids)
    is_finer = s2_levels > level
    coarse_ids = _no_finer(cell_ids, level)
    lat_deg_N, lon_deg_N = s2.centre_deg_N(coarse_ids)
    replaced = {
        schema.CELL_ID: pa.array(coarse_ids),
        schema.LAT_DEG: pa.array(np.where(is_finer, lat_deg_N, cells.field(schema.LAT_DEG))),
        schema.LON_DEG: pa.array(np.where(is_finer, lon_deg_N, cells.field(schema.LON_DEG))),
        schema.S2_LEVEL: pa.array(np.minimum(s2_levels, level).astype(np.int8)),
        schema.CELL_TOKEN: pa.array([s2.token(int(cell_id)) for cell_id in coarse_ids], pa.string()),
    }
    fields = list(column.type.value_type)
    values = pa.StructArray.from_arrays([replaced.get(f.name, cells.field(f.name)) for f in fields], fields=fields)
    return pa.ListArray.from_arrays(column.offsets, values, type=column.type, mask=column.is_null())


def _no_finer(cell_ids: np.ndarray, level: int) -> np.ndarray:
    """Return the cells with those finer than `level` as their ancestor there."""
    is_finer = s2.level_of_N(cell_ids) > level
    ancestors = s2.parent_N(np.where(is_finer, cell_ids, s2.cell_id_N([0.0], [0.0], 30)), level)
    return np.where(is_finer, ancestors, cell_ids).astype(np.uint64)
