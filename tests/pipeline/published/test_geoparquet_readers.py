"""Published files, opened by the tools that people open GeoParquet with: the same points, CRS and boxes in each."""

from __future__ import annotations

import json
import shutil
import subprocess

import _duckdb
import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely

from pipeline import schema
from pipeline.published import geoparquet
from pipeline.run import publish
from pipeline.schema import ErrorCode
from tests.pipeline.published.test_catalog import publish_run
from tests.support.photo_rows import failed_row, located_row

PLACES = {"/krakow": (50.06, 19.94), "/fiji": (-17.8, 178.1), "/samoa": (-13.8, -171.8), "/pole": (-89.9, 0.5)}
WEST, SOUTH, EAST, NORTH = 10.0, 40.0, 30.0, 60.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files of one run: places in row groups of their own, and a photo without a place."""
    output = tmp_path_factory.mktemp("readers")
    rows = [located_row(uri, *place) for uri, place in PLACES.items()]
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(publish, "LEAST_ROWS_PER_FILE", 2)
        smaller.setattr(geoparquet, "ROWS_PER_GROUP", 1)
        publish_run(str(output), "r1", [*rows, failed_row("/none", ErrorCode.CORRUPT)])
    files = sorted(str(file) for file in output.rglob("*.parquet"))
    assert len(files) == 2
    return files


def expected_box(file: str) -> tuple[float, ...]:
    """Return west, south, east, north of a file's points, told by its other columns."""
    columns = pq.read_table(file, columns=[schema.LON_DEG, schema.LAT_DEG], partitioning=None)
    lon_deg, lat_deg = (column.drop_null().to_numpy() for column in columns.columns)
    return lon_deg.min(), lat_deg.min(), lon_deg.max(), lat_deg.max()


def test_duckdb_core(files: list[str]) -> None:
    with duckdb.connect() as connection:
        connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
        rows = connection.read_parquet(files, hive_partitioning=False)
        assert str(rows.select(schema.GEOMETRY).types[0]) == "GEOMETRY('OGC:CRS84')"
        texts = dict(rows.filter("geometry IS NOT NULL").project("uri, ST_AsText(geometry)").fetchall())
        assert texts == {uri: f"POINT ({lon_deg} {lat_deg})" for uri, (lat_deg, lon_deg) in PLACES.items()}
        assert rows.filter("geometry IS NULL").project("uri").fetchall() == [("/none",)]
        assert rows.filter("geometry IS NOT NULL").project("ST_CRS(geometry)").distinct().fetchall() == [("OGC:CRS84",)]
        ring = f"{WEST} {SOUTH}, {EAST} {SOUTH}, {EAST} {NORTH}, {WEST} {NORTH}, {WEST} {SOUTH}"
        box = f"'POLYGON (({ring}))'::GEOMETRY('OGC:CRS84')"
        inside = rows.filter(f"ST_Intersects_Extent(geometry, {box})").project("uri")
        assert inside.fetchall() == [("/krakow",)]
        for file in files:
            [(geo,)] = connection.execute(
                "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'geo'", [file]
            ).fetchall()
            assert json.loads(geo)["columns"]["geometry"]["bbox"] == list(expected_box(file))


def test_geopandas(files: list[str]) -> None:
    found = {}
    for file in files:
        frame = geopandas.read_parquet(file)
        assert frame.crs == pyproj.CRS.from_user_input("OGC:CRS84")
        assert frame.geometry.name == schema.GEOMETRY
        np.testing.assert_array_equal(frame.total_bounds, expected_box(file))
        points = frame[frame.geometry.notna()]
        found |= dict(zip(points[schema.URI], zip(points.geometry.y, points.geometry.x, strict=True), strict=True))
        assert set(frame[schema.URI][frame.geometry.isna()]) <= {"/none"}
        inside = frame.cx[WEST:EAST, SOUTH:NORTH]
        assert set(inside[schema.URI]) == ({"/krakow"} if "/krakow" in set(frame[schema.URI]) else set())
    assert found == PLACES


def test_gdal_through_duckdb(files: list[str]) -> None:
    """pyogrio's wheel has no Parquet driver, but an ADBC one, which takes DuckDB's library to read Parquet."""
    for file in files:
        about = pyogrio.read_info(f"ADBC:{file}", ADBC_DRIVER=_duckdb.__file__, force_total_bounds=True)
        assert about["driver"] == "ADBC"
        assert (about["geometry_name"], about["geometry_type"]) == (schema.GEOMETRY, "Point")
        # What OGC:CRS84 is, longitude first, GDAL calls EPSG:4326.
        crs = pyproj.CRS.from_user_input(about["crs"])
        assert crs.equals(pyproj.CRS.from_user_input("OGC:CRS84"), ignore_axis_order=True)
        np.testing.assert_allclose(about["total_bounds"], expected_box(file), rtol=0, atol=1e-12)
        in_file = dict.fromkeys(pq.read_table(file, columns=[schema.URI], partitioning=None).column(0).to_pylist())
        _, _, wkb, (uris,) = pyogrio.raw.read(
            f"ADBC:{file}", columns=[schema.URI], bbox=(WEST, SOUTH, EAST, NORTH), ADBC_DRIVER=_duckdb.__file__
        )
        assert list(uris) == [uri for uri in in_file if uri == "/krakow"]
        assert [shapely.from_wkb(point) for point in wkb] == [shapely.Point(19.94, 50.06) for _ in uris]


def test_gdal_command(files: list[str]) -> None:
    ogrinfo = shutil.which("ogrinfo")
    formats = (
        subprocess.run([ogrinfo, "--formats"], capture_output=True, text=True, check=True).stdout if ogrinfo else ""
    )
    if not ogrinfo or "Parquet" not in formats:
        pytest.skip(
            "no ogrinfo with GDAL's Parquet driver on the path (Debian's gdal-bin has none; conda-forge's does)"
        )
    for file in files:
        answer = subprocess.run([ogrinfo, "-json", "-ro", file], capture_output=True, text=True, check=True).stdout
        [layer] = json.loads(answer)["layers"]
        [geometry] = layer["geometryFields"]
        assert (geometry["name"], geometry["type"]) == (schema.GEOMETRY, "Point")
        assert geometry["coordinateSystem"]["projjson"]["id"] == {"authority": "OGC", "code": "CRS84"}
        np.testing.assert_allclose(geometry["extent"], expected_box(file))
