"""After coarsening, no column holds or implies a position finer than allowed."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest

from model import s2
from model.geodesy import haversine_km
from pipeline import schema
from pipeline.precision import PRECISIONS, PrecisionName, coarsen, wkb_points
from pipeline.schema import ErrorCode
from tests.photo_rows import failed_row, located_row, photos

ALLOWED_S2_LEVEL = {"city": 9, "region": 6, "country": 4}
PLACES = [(48.137, 11.575), (-17.7, 179.9999), (-17.7, -179.9999), (89.9, 12.0), (-90.0, 0.0), (0.0, 0.0)]


def rows() -> pa.Table:
    located = [located_row(f"/{index}", lat, lon) for index, (lat, lon) in enumerate(PLACES)]
    bare = located_row("/bare", 10, 10, **{schema.EXIF_LAT_DEG: None, schema.EXIF_LON_DEG: None})
    only_exif = {schema.EXIF_LAT_DEG: 48.13721, schema.EXIF_LON_DEG: 11.57549}
    return photos([*located, bare, failed_row("/failed", ErrorCode.MODEL_FAILED, **only_exif)])


def positions_deg(table: pa.Table) -> list[tuple[float, float]]:
    """Every position that the table holds, whichever column it is in."""
    found = []
    for row in table.to_pylist():
        found.append((row[schema.LAT_DEG], row[schema.LON_DEG]))
        found.append((row[schema.EXIF_LAT_DEG], row[schema.EXIF_LON_DEG]))
        found += [(c[schema.LAT_DEG], c[schema.LON_DEG]) for c in (row[schema.LEVELS] or [])]
        found += [(c[schema.LAT_DEG], c[schema.LON_DEG]) for c in (row[schema.ALTERNATIVES] or [])]
        if row[schema.GEOMETRY]:
            found.append(struct.unpack("<xIdd", row[schema.GEOMETRY])[:0:-1])
    return [(lat, lon) for lat, lon in found if lat is not None]


def test_street_changes_nothing() -> None:
    assert coarsen(rows(), "street").equals(rows())


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_every_position_is_the_centre_of_an_allowed_cell(precision: PrecisionName) -> None:
    level = ALLOWED_S2_LEVEL[precision]
    coarse_cells_only = rows().schema.get_field_index(schema.LEVELS)
    table = coarsen(rows(), precision)
    lists = table.column(coarse_cells_only).to_pylist()
    kept = {(c[schema.LAT_DEG], c[schema.LON_DEG]) for cells in lists if cells for c in cells if c["s2_level"] < level}
    checked = [position for position in positions_deg(table) if position not in kept]
    assert len(checked) > 3 * len(PLACES)
    for lat_deg, lon_deg in checked:
        centre = s2.centre_deg_N(s2.cell_id_N([lat_deg], [lon_deg], level))
        assert haversine_km(lat_deg, lon_deg, centre[0][0], centre[1][0]) < 1e-3


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_no_cell_is_finer_than_allowed(precision: PrecisionName) -> None:
    level = ALLOWED_S2_LEVEL[precision]
    for row, before in zip(coarsen(rows(), precision).to_pylist(), rows().to_pylist(), strict=True):
        if row[schema.STATUS] == "failed":
            assert row[schema.LEVELS] is row[schema.ALTERNATIVES] is row[schema.CELL_ID] is row[schema.GEOMETRY] is None
            continue
        for cell, old in zip(row[schema.LEVELS], before[schema.LEVELS], strict=True):
            assert cell[schema.S2_LEVEL] == s2.level_of_N([cell[schema.CELL_ID]])[0] == min(old[schema.S2_LEVEL], level)
            assert cell[schema.CELL_TOKEN] == s2.token(cell[schema.CELL_ID])
            assert cell[schema.CELL_ID] == s2.parent_N([old[schema.CELL_ID]], cell[schema.S2_LEVEL])[0]
            assert (cell[schema.LEVEL], cell[schema.PROBABILITY]) == (old[schema.LEVEL], old[schema.PROBABILITY])
            if old[schema.S2_LEVEL] <= level:
                assert cell == old
        for cell in row[schema.ALTERNATIVES]:
            assert s2.level_of_N([cell[schema.CELL_ID]])[0] <= level
        # The point's own cell must be a leaf (a join needs that), but that of the coarse point.
        assert row[schema.CELL_ID] == s2.leaf_id_N([row[schema.LAT_DEG]], [row[schema.LON_DEG]])[0]
        assert s2.parent_N([row[schema.CELL_ID]], level) == s2.parent_N([before[schema.CELL_ID]], level)


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_two_photos_of_one_cell_can_not_be_told_apart_by_place(precision: PrecisionName) -> None:
    """Whatever differs between two photos a few metres apart is gone: nothing finer hides in any column."""
    exif = {schema.EXIF_LAT_DEG: 48.1, schema.EXIF_LON_DEG: 11.5}
    near = {schema.EXIF_LAT_DEG: 48.1001, schema.EXIF_LON_DEG: 11.5001}
    one, two = (
        coarsen(photos([row]), precision).to_pylist()[0]
        for row in (located_row("/a", 48.1, 11.5, **exif), located_row("/a", 48.1001, 11.5001, **near))
    )
    for cell_of_one, cell_of_two in zip(one[schema.LEVELS], two[schema.LEVELS], strict=True):
        if cell_of_one[schema.S2_LEVEL] < ALLOWED_S2_LEVEL[precision]:
            # The test's rows have the photo's position there; a model's have the cell's own mean.
            cell_of_one[schema.LAT_DEG] = cell_of_two[schema.LAT_DEG]
            cell_of_one[schema.LON_DEG] = cell_of_two[schema.LON_DEG]
    assert one == two


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_radius_and_named_precision_are_honest(precision: PrecisionName) -> None:
    cell_km = {"city": 18, "region": 144, "country": 575}[precision]
    table = photos(
        [
            located_row("/small", 1, 1),
            located_row("/large", 1, 1, radius_km=9000.0, precision="country"),
            located_row("/none", 1, 1, precision=None),
            failed_row("/failed", ErrorCode.EMPTY),
        ]
    )
    coarse = coarsen(table, precision)
    assert coarse.column(schema.RADIUS_KM).to_pylist() == [cell_km, 9000.0, cell_km, None]
    assert coarse.column(schema.PRECISION).to_pylist() == [precision, "country", None, None]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_schema_stays_and_other_columns_are_untouched(precision: PrecisionName) -> None:
    for table in (rows(), rows().slice(0, 0), rows().slice(2, 3), pa.concat_tables([rows(), rows().slice(1)])):
        coarse = coarsen(table, precision)
        assert coarse.schema.equals(schema.PHOTOS, check_metadata=True)
        coarse.validate(full=True)
        assert coarse.num_rows == table.num_rows
        for name in (schema.URI, schema.ERROR_CODE, schema.SCENE, schema.CONFIDENCE, schema.TAKEN_AT):
            assert coarse.column(name).equals(table.column(name))


def test_a_coarse_point_lies_near_the_fine_one() -> None:
    for precision, cell_km in (("city", 18), ("region", 144), ("country", 575)):
        table = coarsen(rows(), precision)  # type: ignore[arg-type]
        for (lat, lon), row in zip(PLACES, table.to_pylist(), strict=False):
            assert haversine_km(lat, lon, row[schema.LAT_DEG], row[schema.LON_DEG]) <= cell_km


def test_wkb_is_a_little_endian_point_longitude_first() -> None:
    (first, _) = wkb_points(np.array([48.5, 0.0]), np.array([-11.25, 0.0])).to_pylist()
    assert first == b"\x01\x01\x00\x00\x00" + struct.pack("<dd", -11.25, 48.5)
