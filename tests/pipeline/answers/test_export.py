"""Exported files say what the catalogue says, to parsers that are not ours, whatever is in a name."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import duckdb
import pytest
from geojson_pydantic import FeatureCollection

from pipeline import schema, storage
from pipeline.answers.export import FileFormat, Selection, count, export
from pipeline.answers.xml_text import xml_text
from pipeline.published.catalog import Catalog
from pipeline.schema import ErrorCode
from pipeline.storage import local_files
from tests.conftest import published_output
from tests.support.photo_rows import failed_row, located_row
from tests.support.published_rows import publish_rows

KML = "{http://www.opengis.net/kml/2.2}"
HOSTILE = (
    "/p/plain.jpg",
    "/p/=cmd|' /C calc'!A0.jpg",
    "/p/quote \" and ' and , and ;=1+1.jpg",
    "/p/line\nfeed\r\nreturn\ttab.jpg",
    "/p/]]><b>&amp;</b>&lt;<!--.jpg",
    "/p/\x00\x01\x1b[31m\x7f\x85\u2028\ufffe\uffff.jpg",
    "/p/\u202egpj.exe \U0001f469\u200d\U0001f680 é e\u0301.jpg",
    local_files.uri_of(b"/p/\xff\xfe<&\n.jpg"),
    "s3://bucket/a b%20c#d?e.jpg",
    "/p/photos.zip#in/side.jpg",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    rows = [located_row(uri, 10.5 + index, -20 - index) for index, uri in enumerate(HOSTILE)]
    rows.append(failed_row("/p/<failed>.jpg", ErrorCode.EMPTY))
    return publish_rows(str(tmp_path_factory.mktemp("hostile")), rows)


def exported(catalog: Catalog, tmp_path: Path, file_format: FileFormat, selection: Selection | None = None) -> bytes:
    to = tmp_path / f"new folder/photos.{file_format}"
    size_bytes = export(catalog, selection or Selection(), file_format, str(to))
    assert size_bytes == to.stat().st_size
    assert not [name for name in os.listdir(to.parent) if not name.startswith("photos.")]
    return to.read_bytes()


def test_a_real_output_as_valid_geojson(tiny_checkpoint: Path, tmp_path: Path) -> None:
    published_output(tmp_path / "out", tiny_checkpoint)
    catalog = Catalog(str(tmp_path / "out"))
    located = catalog.rows("FROM photos WHERE status = 'located' ORDER BY uri").to_pylist()
    assert len(located) == 2
    collection = FeatureCollection.model_validate_json(exported(catalog, tmp_path, "geojson"))
    for feature, row in zip(collection.features, located, strict=True):
        assert feature.geometry is not None
        assert tuple(feature.geometry.coordinates) == pytest.approx((row["lon_deg"], row["lat_deg"]), abs=1e-6)
        properties: Any = feature.properties
        assert properties["uri"] == row["uri"]
        assert properties["radius_km"] == pytest.approx(row["radius_km"], abs=1e-3)
        assert properties["confidence"] == pytest.approx(row["confidence"], abs=1e-6)
        assert (properties["precision"], properties["model_id"]) == (row["precision"], row["model_id"])
    everything = json.loads(exported(catalog, tmp_path, "geojson", Selection(with_failed=True)))
    assert FeatureCollection.model_validate(everything)
    (failed,) = (feature for feature in everything["features"] if feature["geometry"] is None)
    assert failed["properties"]["uri"].endswith("/empty.jpg")
    assert (failed["properties"]["status"], failed["properties"]["error_code"]) == ("failed", "empty")


def test_hostile_names_in_geojson_lines(hostile: Catalog, tmp_path: Path) -> None:
    whole = json.loads(exported(hostile, tmp_path, "geojson"))
    FeatureCollection.model_validate(whole)
    lines = exported(hostile, tmp_path, "geojsonl").split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == whole["features"]
    positions = {feature["properties"]["uri"]: feature["geometry"]["coordinates"] for feature in whole["features"]}
    assert positions == {uri: [-20 - index, 10.5 + index] for index, uri in enumerate(HOSTILE)}
    assert whole["bbox"] == [-29, 10.5, -20, 19.5]


def test_hostile_names_in_csv(hostile: Catalog, tmp_path: Path) -> None:
    data = exported(hostile, tmp_path, "csv", Selection(with_failed=True))
    lines = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert {line["uri"] for line in lines} == {*HOSTILE, "/p/<failed>.jpg"}
    for line in lines:
        if line["status"] == "located":
            index = HOSTILE.index(line["uri"])
            assert (float(line["lat_deg"]), float(line["lon_deg"])) == (10.5 + index, -20 - index)
            assert line["taken_at"] == "2020-02-29T23:59:00"
        else:
            assert (line["error_code"], line["lat_deg"], line["radius_km"]) == ("empty", "", "")
    read = duckdb.sql(f"SELECT * FROM read_csv('{tmp_path}/new folder/photos.csv', new_line = '\\n')")
    assert {name: str(kind) for name, kind in zip(read.columns, read.types, strict=True)}["lat_deg"] == "DOUBLE"
    assert {row[0] for row in read.fetchall()} == {*HOSTILE, "/p/<failed>.jpg"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_of_a_spreadsheet_is_a_formula(hostile: Catalog, tmp_path: Path, separator: str) -> None:
    """However it is cut: spreadsheets of some countries cut at semicolons."""
    data = exported(hostile, tmp_path, "csv").decode()
    for line in csv.reader(io.StringIO(data, newline=""), delimiter=separator):
        for cell in line:
            assert cell[:1] not in ("=", "+", "@", "\t", "\r")
            assert not cell.startswith("-") or math.isfinite(float(cell))


def test_texts_that_would_be_formulas_are_defused(tmp_path: Path) -> None:
    catalog = publish_rows(str(tmp_path / "out"), [located_row("/a", 1, 2, scene='=HYPERLINK("x")')])
    (line,) = csv.DictReader(io.StringIO(exported(catalog, tmp_path, "csv").decode(), newline=""))
    assert line["scene"] == '\'=HYPERLINK("x")'


def test_hostile_names_in_kml(hostile: Catalog, tmp_path: Path) -> None:
    root = ET.fromstring(exported(hostile, tmp_path, "kml", Selection(with_failed=True)))
    marks = root.findall(f"{KML}Document/{KML}Placemark")
    positions = {}
    for mark in marks:
        uri = mark.findtext(f"{KML}ExtendedData/{KML}Data[@name='uri']/{KML}value")
        positions[uri] = mark.findtext(f"{KML}Point/{KML}coordinates")
    shown = [uri.replace("\x00\x01\x1b", r"\x00\x01\x1b").replace("\ufffe\uffff", r"\ufffe\uffff") for uri in HOSTILE]
    wanted = {uri: f"{-20 - index:.6f},{10.5 + index:.6f}" for index, uri in enumerate(shown)}
    assert positions == wanted | {"/p/<failed>.jpg": None}
    assert marks[0].findtext(f"{KML}TimeStamp/{KML}when") == "2020-02-29T23:59:00"
    assert "\ufffd\ufffd<&\n.jpg" in [mark.findtext(f"{KML}name") for mark in marks]


def test_any_character_at_all_is_xml() -> None:
    every = "".join(map(chr, range(0x110000)))
    read = ET.fromstring(f'<a b="{xml_text(every)}">{xml_text(every)}</a>')
    assert read.text == read.get("b")
    assert (read.text or "").startswith(r"\x00\x01")
    assert "\t\n\x0b"[:2] in (read.text or "")
    assert r"\ud800" in (read.text or "")


@pytest.mark.parametrize(
    ("points", "bbox"),
    [
        ([(-16, -178), (-20, 177), (-18, 179.5)], [177, -20, -178, -16]),  # Fiji, as in RFC 7946, 5.2
        ([(0, -180), (1, 180)], [180, 0, -180, 1]),
        ([(50, 10)], [10, 50, 10, 50]),
        ([(0, -170), (5, 0), (1, 170)], [-170, 0, 170, 5]),
    ],
)
def test_the_box_is_around_the_photos_not_the_world(
    tmp_path: Path, points: list[tuple[float, float]], bbox: list[float]
) -> None:
    catalog = publish_rows(
        str(tmp_path / "out"), [located_row(f"/{index}", *point) for index, point in enumerate(points)]
    )
    assert json.loads(exported(catalog, tmp_path, "geojson"))["bbox"] == bbox


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        located_row("/near", 1, 1, confidence=0.9, radius_km=2.5),
        located_row("/far", 1, 2, confidence=0.9, radius_km=2.6),
        located_row("/unsure", 1, 3, confidence=0.89, radius_km=2.5),
        located_row("/elsewhere", 1, 4),
        failed_row("/failed", ErrorCode.EMPTY),
    ]
    catalog = publish_rows(str(tmp_path / "out"), rows)
    selection = Selection("uri <> '/elsewhere' -- a comment", 0.9, 2.5)
    counted = count(catalog, selection)
    assert counted.taken == 1
    assert counted.left_out == dict.fromkeys(
        ("confidence below 0.9", "failed, no place", "not --where", "radius above 2.5 km"), 1
    )
    (feature,) = json.loads(exported(catalog, tmp_path, "geojson", selection))["features"]
    assert feature["properties"]["uri"] == "/near"
    with pytest.raises(ValueError, match="DuckDB can't run this query"):
        count(catalog, Selection("nonsense = 1"))
    with pytest.raises(ValueError, match="no probability"):
        Selection(min_confidence=50)


def test_nothing_taken_is_an_empty_file_of_its_kind(hostile: Catalog, tmp_path: Path) -> None:
    nothing = Selection("false")
    assert json.loads(exported(hostile, tmp_path, "geojson", nothing)) == {"type": "FeatureCollection", "features": []}
    assert exported(hostile, tmp_path, "geojsonl", nothing) == b""
    assert exported(hostile, tmp_path, "csv", nothing).startswith(b'"uri","lat_deg"')
    assert ET.fromstring(exported(hostile, tmp_path, "kml", nothing)).find(f".//{KML}Placemark") is None


def test_place_names_are_in_every_format(tmp_path: Path) -> None:
    names = {schema.COUNTRY_CODE: "TR", schema.COUNTRY: "Türkiye", schema.PLACE: "+ünlü & <b>"}
    row = located_row("/a", 1, 1, **names, **{schema.COUNTRY_PROBABILITY: 0.75})
    catalog = publish_rows(str(tmp_path / "out"), [row, located_row("/without", 1, 1)])
    line, without = csv.DictReader(io.StringIO(exported(catalog, tmp_path, "csv").decode(), newline=""))
    assert (line["country_code"], line["country"], line["place"]) == ("TR", "Türkiye", "'+ünlü & <b>")
    assert (line["region"], line["country_probability"], without["country"]) == ("", "0.75", "")
    [feature, _] = json.loads(exported(catalog, tmp_path, "geojson"))["features"]
    assert {name: feature["properties"][name] for name in names} == names
    root = ET.fromstring(exported(catalog, tmp_path, "kml"))
    found = {data.attrib["name"]: data.findtext(f"{KML}value") for data in root.iter(f"{KML}Data")}
    assert {name: found[name] for name in names} == names


@pytest.mark.s3
def test_the_same_on_s3(s3_bucket: str) -> None:
    catalog = publish_rows(f"s3://{s3_bucket}/export/out", [located_row("/a", 1, 2)])
    to = f"s3://{s3_bucket}/export/photos it's ü.geojson"
    size_bytes = export(catalog, Selection(), "geojson", to)
    data = storage.read_bytes(to)
    assert len(data) == size_bytes
    assert FeatureCollection.model_validate_json(data).bbox == (2, 1, 2, 1)
