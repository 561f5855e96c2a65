"""After coarsening, no column holds or implies a position finer than allowed."""

from __future__ import annotations

import datetime as dt
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.world import s2
from model.world.geodesy import haversine_km
from pipeline import schema
from pipeline.locate.places import OPEN_SEA, Gazetteer
from pipeline.locate.precision import PRECISIONS, PrecisionName, coarsen, wkb_points
from pipeline.schema import ErrorCode
from tests.support.photo_rows import failed_row, located_row, photos

ALLOWED_S2_LEVEL = {"city": 9, "region": 6, "country": 4}
POINT_NAMES = (schema.COUNTRY_CODE, schema.COUNTRY, schema.REGION, schema.PLACE)
EXIF_NAMES = (schema.RECORDED_COUNTRY_CODE, schema.RECORDED_COUNTRY, schema.RECORDED_REGION, schema.RECORDED_PLACE)
PLACES = [(48.137, 11.575), (-17.7, 179.9999), (-17.7, -179.9999), (89.9, 12.0), (-90.0, 0.0), (0.0, 0.0)]


@pytest.fixture(scope="module")
def gazetteer() -> Gazetteer:
    return Gazetteer()


def named(row: dict[str, Any], gazetteer: Gazetteer) -> dict[str, Any]:
    """Return `row` with its positions' names, as the Locator puts them in."""
    for columns, lat, lon in (
        (POINT_NAMES, schema.LAT_DEG, schema.LON_DEG),
        (EXIF_NAMES, schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG),
    ):
        if row[lat] is not None:
            names = gazetteer.names_N([row[lat]], [row[lon]])
            row = row | {name: values[0].as_py() for name, values in zip(columns, names, strict=True)}
    return row


def rows() -> pa.Table:
    located = [located_row(f"/{index}", lat, lon) for index, (lat, lon) in enumerate(PLACES)]
    bare = located_row("/bare", 10, 10, **{schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None})
    only_exif = {schema.RECORDED_LAT_DEG: 48.13721, schema.RECORDED_LON_DEG: 11.57549}
    return photos([*located, bare, failed_row("/failed", ErrorCode.MODEL_FAILED, **only_exif)])


def context_of(lat_deg: float, lon_deg: float) -> dict[str, Any]:
    """What a row holds of the folder's other photos, as `pipeline.locate.context` puts it in."""
    return {
        schema.CONTEXT_LAT_DEG: lat_deg,
        schema.CONTEXT_LON_DEG: lon_deg,
        schema.CONTEXT_RADIUS_KM: 2.5,
        schema.CONTEXT_CONFIDENCE: 0.75,
        schema.CONTEXT_CELL_ID: int(s2.leaf_id_N([lat_deg], [lon_deg])[0]),
        schema.CONTEXT_PHOTOS: 3,
    }


def recorded_at(lat_deg: float, lon_deg: float) -> dict[str, Any]:
    """A position that the camera recorded."""
    return {schema.RECORDED_LAT_DEG: lat_deg, schema.RECORDED_LON_DEG: lon_deg}


def positions_deg(table: pa.Table) -> list[tuple[float, float]]:
    """Every position that the table holds, whichever column it is in."""
    found = []
    for row in table.to_pylist():
        found.append((row[schema.LAT_DEG], row[schema.LON_DEG]))
        found.append((row[schema.RECORDED_LAT_DEG], row[schema.RECORDED_LON_DEG]))
        found += [(c[schema.LAT_DEG], c[schema.LON_DEG]) for c in (row[schema.LEVELS] or [])]
        found += [(c[schema.LAT_DEG], c[schema.LON_DEG]) for c in (row[schema.ALTERNATIVES] or [])]
        if row[schema.GEOMETRY]:
            found.append(struct.unpack("<xIdd", row[schema.GEOMETRY])[:0:-1])
    return [(lat, lon) for lat, lon in found if lat is not None]


def test_street_changes_nothing(gazetteer: Gazetteer) -> None:
    assert coarsen(rows(), "street", gazetteer).equals(rows())


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_every_position_is_the_centre_of_an_allowed_cell(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    level = ALLOWED_S2_LEVEL[precision]
    coarse_cells_only = rows().schema.get_field_index(schema.LEVELS)
    table = coarsen(rows(), precision, gazetteer)
    lists = table.column(coarse_cells_only).to_pylist()
    kept = {(c[schema.LAT_DEG], c[schema.LON_DEG]) for cells in lists if cells for c in cells if c["s2_level"] < level}
    checked = [position for position in positions_deg(table) if position not in kept]
    assert len(checked) > 3 * len(PLACES)
    for lat_deg, lon_deg in checked:
        centre = s2.centre_deg_N(s2.cell_id_N([lat_deg], [lon_deg], level))
        assert haversine_km(lat_deg, lon_deg, centre[0][0], centre[1][0]) < 1e-3


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_no_cell_is_finer_than_allowed(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    level = ALLOWED_S2_LEVEL[precision]
    for row, before in zip(coarsen(rows(), precision, gazetteer).to_pylist(), rows().to_pylist(), strict=True):
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
def test_two_photos_of_one_cell_can_not_be_told_apart_by_place(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    """Whatever differs between two photos a few metres apart is gone: nothing finer hides in any column."""
    places = ((48.1, 11.5), (48.1001, 11.5001))
    rows_before = [
        located_row(
            "/a", lat, lon, **{schema.RECORDED_LAT_DEG: lat, schema.RECORDED_LON_DEG: lon}, **context_of(lat, lon)
        )
        for lat, lon in places
    ]
    told_apart = {name for name in rows_before[0] if rows_before[0][name] != rows_before[1][name]}
    implied = ("_deg", "cell_id", schema.GEOMETRY, schema.LEVELS, schema.ALTERNATIVES)
    assert told_apart == {name for name in schema.PHOTOS.names if name.endswith(implied)}, "give them all a place here"
    one, two = (coarsen(photos([named(row, gazetteer)]), precision, gazetteer).to_pylist()[0] for row in rows_before)
    for cell_of_one, cell_of_two in zip(one[schema.LEVELS], two[schema.LEVELS], strict=True):
        if cell_of_one[schema.S2_LEVEL] < ALLOWED_S2_LEVEL[precision]:
            # The test's rows have the photo's position there; a model's have the cell's own mean.
            cell_of_one[schema.LAT_DEG] = cell_of_two[schema.LAT_DEG]
            cell_of_one[schema.LON_DEG] = cell_of_two[schema.LON_DEG]
    assert one == two


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_radius_and_named_precision_are_honest(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    cell_km = {"city": 18, "region": 144, "country": 575}[precision]
    table = photos(
        [
            located_row("/small", 1, 1),
            located_row("/large", 1, 1, radius_km=9000.0, precision="country"),
            located_row("/none", 1, 1, precision=None),
            failed_row("/failed", ErrorCode.EMPTY),
            located_row("/context", 1, 1, **context_of(1, 1)),
            located_row("/vague context", 1, 1, **context_of(1, 1) | {schema.CONTEXT_RADIUS_KM: 8000.0}),
        ]
    )
    coarse = coarsen(table, precision, gazetteer)
    assert coarse.column(schema.RADIUS_KM).to_pylist() == [cell_km, 9000.0, cell_km, None, cell_km, cell_km]
    assert coarse.column(schema.CONTEXT_RADIUS_KM).to_pylist() == [None] * 4 + [cell_km, 8000.0]
    assert coarse.column(schema.PRECISION).to_pylist() == [precision, "country", None, None, precision, precision]


@pytest.mark.parametrize("precision", ["city", "region", "country"])
def test_the_cell_of_a_context_is_that_of_its_coarse_point(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    level = ALLOWED_S2_LEVEL[precision]
    table = photos([located_row("/a", 1, 1), located_row("/b", 1, 1, **context_of(48.13721, 11.57549))])
    bare, row = coarsen(table, precision, gazetteer).to_pylist()
    assert {bare[name] for name in schema.CONTEXT} == {None}
    point = [row[schema.CONTEXT_LAT_DEG]], [row[schema.CONTEXT_LON_DEG]]
    assert row[schema.CONTEXT_CELL_ID] == s2.leaf_id_N(*point)[0]
    assert (
        haversine_km(point[0][0], point[1][0], *(deg[0] for deg in s2.centre_deg_N(s2.cell_id_N(*point, level)))) < 1e-3
    )
    assert s2.parent_N([row[schema.CONTEXT_CELL_ID]], level) == s2.cell_id_N([48.13721], [11.57549], level)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_schema_stays_and_other_columns_are_untouched(precision: PrecisionName, gazetteer: Gazetteer) -> None:
    for table in (rows(), rows().slice(0, 0), rows().slice(2, 3), pa.concat_tables([rows(), rows().slice(1)])):
        coarse = coarsen(table, precision, gazetteer)
        assert coarse.schema.equals(schema.PHOTOS, check_metadata=True)
        coarse.validate(full=True)
        assert coarse.num_rows == table.num_rows
        for name in (schema.URI, schema.ERROR_CODE, schema.SCENE, schema.CONFIDENCE, schema.TAKEN_AT):
            assert coarse.column(name).equals(table.column(name))


def test_names_are_no_finer_than_the_position(gazetteer: Gazetteer) -> None:
    """The country stays; region and town are what is nearest to the coarse position there, or gone."""
    place = located_row("/a", 50.0617, 19.937, **{schema.RECORDED_LAT_DEG: 51.155, schema.RECORDED_LON_DEG: 14.985})
    before = named(place, gazetteer)
    assert [before[name] for name in POINT_NAMES] == ["PL", "Poland", "Lesser Poland", "Kraków"]
    assert [before[name] for name in EXIF_NAMES] == ["DE", "Germany", "Saxony", "Görlitz"]
    for precision, kept in (("city", 4), ("region", 3), ("country", 2)):
        [row] = coarsen(photos([before]), precision, gazetteer).to_pylist()  # type: ignore[arg-type]
        for columns, lat, lon, code in (
            (POINT_NAMES, schema.LAT_DEG, schema.LON_DEG, "PL"),
            (EXIF_NAMES, schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG, "DE"),
        ):
            names = gazetteer.names_within_N([code], [row[lat]], [row[lon]])
            expected = [values[0].as_py() for values in names]
            assert [row[name] for name in columns] == expected[:kept] + [None] * (4 - kept)


def test_the_open_sea_stays_open_sea_and_what_has_no_names_gets_none(gazetteer: Gazetteer) -> None:
    """The centre of a coarse cell may be a country's where the point is not, and the other way round."""
    at_sea = named(located_row("/sea", 40.0, -6.0 - 20.0), gazetteer)
    bare = failed_row("/failed", ErrorCode.CORRUPT)
    for row in coarsen(photos([at_sea, bare]), "city", gazetteer).to_pylist():
        is_sea = row[schema.URI] == "/sea"
        for columns in (POINT_NAMES, EXIF_NAMES):
            assert [row[name] for name in columns] == [None, OPEN_SEA if is_sea else None, None, None]


def test_a_coarse_point_lies_near_the_fine_one(gazetteer: Gazetteer) -> None:
    for precision, cell_km in (("city", 18), ("region", 144), ("country", 575)):
        table = coarsen(rows(), precision, gazetteer)  # type: ignore[arg-type]
        for (lat, lon), row in zip(PLACES, table.to_pylist(), strict=False):
            assert haversine_km(lat, lon, row[schema.LAT_DEG], row[schema.LON_DEG]) <= cell_km


def test_wkb_is_a_little_endian_point_longitude_first() -> None:
    (first, _) = wkb_points(np.array([48.5, 0.0]), np.array([-11.25, 0.0])).to_pylist()
    assert first == b"\x01\x01\x00\x00\x00" + struct.pack("<dd", -11.25, 48.5)


@pytest.mark.parametrize(
    ("precision", "kept"),
    [
        ("street", {"iptc_city", "iptc_region", "caption", "keywords"}),
        ("city", {"iptc_city", "iptc_region"}),
        ("region", {"iptc_region"}),
        ("country", set()),
    ],
)
def test_the_owners_words_are_no_finer_than_allowed(
    precision: PrecisionName, kept: set[str], gazetteer: Gazetteer
) -> None:
    words = {schema.IPTC_CITY: "Paris", schema.IPTC_REGION: "Île-de-France", schema.IPTC_COUNTRY: "France"}
    words |= {schema.IPTC_COUNTRY_CODE: "FRA", schema.CAPTION: "5 rue Cler", schema.KEYWORDS: ["rue Cler"]}
    (row,) = coarsen(photos([located_row("/a", 48.85, 2.35, **words)]), precision, gazetteer).to_pylist()
    kept = kept | {schema.IPTC_COUNTRY, schema.IPTC_COUNTRY_CODE}
    assert {name: row[name] for name in schema.IPTC} == {name: words[name] if name in kept else None for name in words}


@pytest.mark.parametrize(("by", "is_kept"), [("zone_of_position", False), ("offset_time", True), (None, True)])
def test_a_time_that_the_exact_position_told_is_not_kept(by: str | None, is_kept: bool, gazetteer: Gazetteer) -> None:
    at = None if by is None else dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    row = located_row("/a", 48.85, 2.35, **{schema.TAKEN_AT_UTC: at, schema.TAKEN_AT_UTC_BY: by})
    (found,) = coarsen(photos([row]), "city", gazetteer).to_pylist()
    assert (found[schema.TAKEN_AT_UTC], found[schema.TAKEN_AT_UTC_BY]) == ((at, by) if is_kept else (None, None))
