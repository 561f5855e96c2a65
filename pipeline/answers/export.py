"""Published photos as files for other programs: GeoJSON, GeoJSON lines, CSV and KML, a batch of rows at a time."""

from __future__ import annotations

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv

from pipeline import schema, storage
from pipeline.answers.csv_text import harmless_column
from pipeline.answers.xml_text import xml_text
from pipeline.published.catalog import Catalog
from pipeline.schema import RecordedBy

FileFormat = Literal["geojson", "geojsonl", "csv", "kml"]
Bbox = tuple[float, float, float, float]
"""West, south, east, north in degrees; west is more than east where the box crosses the antimeridian."""

PLACE_NAMES = [schema.COUNTRY_CODE, schema.COUNTRY, schema.REGION, schema.PLACE]
_MEASURES = (schema.RADIUS_KM, schema.CONFIDENCE, schema.PRECISION, schema.SCENE)
_ROWS_PER_BATCH = 10_000
_DIGITS = {schema.LAT_DEG: 6, schema.LON_DEG: 6, schema.RADIUS_KM: 3}
_DIGITS |= {schema.CONFIDENCE: 6, schema.COUNTRY_PROBABILITY: 6}
"""Decimals written: a millionth of a degree is a decimetre."""
_LEFT_OUT = "left_out"
_RECORDED = {
    RecordedBy.EXIF: "the camera wrote a position into the photo",
    RecordedBy.XMP: "its owner wrote a position into the photo (XMP)",
    RecordedBy.SIDECAR: "a sidecar has a position",
    RecordedBy.TAKEOUT: "Google Takeout has a position beside it",
    RecordedBy.VIDEO: "the camera wrote a position into the video",
}
"""Why a photo is left whose position is recorded."""


@dataclass(frozen=True)
class Selection:
    """Which of the published photos are taken."""

    where: str | None = None
    """A condition in SQL over the view photos."""
    min_confidence: float | None = None
    max_radius_km: float | None = None
    with_failed: bool = False
    with_undecided: bool = False
    """Take photos, too, whose best guess is not more likely right than not."""
    with_gone: bool = False
    """Take photos, too, that their sources list no more."""
    without_recorded_position: bool = False
    """Only photos of which neither camera nor owner has recorded a position."""

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"--min-confidence {self.min_confidence} is no probability: give 0 to 1")
        if self.max_radius_km is not None and not self.max_radius_km > 0:
            raise ValueError(f"--max-radius-km {self.max_radius_km}: give more than 0")

    def relation(self) -> str:
        """Return SQL for the photos with one column more: why each is left out, null where it is taken."""
        reasons = []
        if self.where is not None:
            reasons.append(f"WHEN NOT coalesce(({self.where}\n), false) THEN 'not --where'")  # it may end in a comment
        if not self.with_gone:
            reasons.append(
                "WHEN gone_since IS NOT NULL THEN 'gone: its source lists it no more (--with-gone takes it)'"
            )
        reasons.append("WHEN status = 'skipped' THEN 'skipped: no photo'")
        if not self.with_failed:
            reasons.append("WHEN status = 'failed' THEN 'failed, no place'")
        if not self.with_undecided:
            reasons.append("WHEN status = 'undecided' THEN 'undecided: no place is more likely right than not'")
        if self.without_recorded_position:
            for by, reason in _RECORDED.items():
                reasons.append(f"WHEN recorded_lat_deg IS NOT NULL AND recorded_by = '{by}' THEN '{reason}'")
            reasons.append("WHEN recorded_lat_deg IS NOT NULL THEN 'a position is recorded'")
        # As FLOAT, like the columns: 0.9 is not below 0.9.
        if self.min_confidence is not None:
            reason = f"confidence below {self.min_confidence:g}"
            reasons.append(f"WHEN confidence < {self.min_confidence!r}::DOUBLE::FLOAT THEN '{reason}'")
        if self.max_radius_km is not None:
            reason = f"radius above {self.max_radius_km:g} km"
            reasons.append(f"WHEN radius_km > '{self.max_radius_km!r}'::DOUBLE::FLOAT THEN '{reason}'")
        case = f"CASE {' '.join(reasons)} END" if reasons else "NULL"
        return f"(SELECT *, {case} AS {_LEFT_OUT} FROM photos)"


@dataclass(frozen=True)
class Counted:
    """How many photos are taken, and how many are left out for which reason, most first."""

    taken: int
    left_out: dict[str, int]


def count(catalog: Catalog, selection: Selection) -> Counted:
    """Count what `selection` takes; ValueError, in DuckDB's words, for a condition that can't be computed."""
    rows = catalog.rows(
        f"SELECT {_LEFT_OUT} AS reason, count(*) AS photos FROM {selection.relation()} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    counts = dict(zip(rows.column("reason").to_pylist(), rows.column("photos").to_pylist(), strict=True))
    return Counted(counts.pop(None, 0), counts)


def columns_of(catalog: Catalog, wanted: list[str]) -> list[str]:
    """Return those of the `wanted` columns that the output has."""
    present = catalog.sql("FROM photos LIMIT 0").columns
    return [name for name in wanted if name in present]


def taken_rows(catalog: Catalog, selection: Selection, columns: list[str]) -> pa.RecordBatchReader:
    """Return a reader of the photos that `selection` takes, in the order of their URIs.

    Numbers are rounded; a time is ISO 8601 text, in the camera's own time.
    """
    expressions = []
    for name in columns:
        if name in _DIGITS:
            expressions.append(f"round({name}::DOUBLE, {_DIGITS[name]}) AS {name}")
        elif name == schema.TAKEN_AT:
            expressions.append(f"strftime({name}, '%Y-%m-%dT%H:%M:%S') AS {name}")
        else:
            expressions.append(name)
    query = f"SELECT {', '.join(expressions)} FROM {selection.relation()} WHERE {_LEFT_OUT} IS NULL ORDER BY uri"
    return catalog.sql(query).to_arrow_reader(_ROWS_PER_BATCH)


def export(catalog: Catalog, selection: Selection, file_format: FileFormat, to: str) -> int:
    """Write what `selection` takes to `to`, in one put, over whatever is there; return how many bytes that is.

    Columns: `uri`, with failed photos `status` and `error_code`, position and measures, place names, `model_id`.
    Raises OSError where `to` can't be written.
    """
    status = [schema.STATUS] if selection.with_failed or selection.with_undecided else []
    status += [schema.ERROR_CODE] if selection.with_failed else []
    position = [schema.LAT_DEG, schema.LON_DEG]
    wanted = [schema.URI, *status, *position, *_MEASURES, schema.TAKEN_AT, *PLACE_NAMES]
    wanted += [schema.COUNTRY_PROBABILITY, schema.MODEL_ID]
    columns = columns_of(catalog, wanted)
    bbox = _bbox(catalog, selection) if file_format == "geojson" else None  # first: DuckDB has one open answer
    rows = taken_rows(catalog, selection, columns)
    with tempfile.TemporaryFile(prefix="graticule-export-") as file:
        if file_format == "geojson":
            _write_geojson(rows, file, bbox)
        elif file_format == "geojsonl":
            for feature in _features(rows):
                file.write(feature + b"\n")
        elif file_format == "csv":
            _write_csv(rows, file)
        else:
            _write_kml(rows, file)
        file.flush()
        size_bytes = os.fstat(file.fileno()).st_size
        if not size_bytes:  # no lines; nothing can't be mapped
            storage.write_bytes(to, b"")
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            storage.write_bytes(to, data)  # type: ignore[arg-type] # read as bytes are, from the disk
    return size_bytes


def _bbox(catalog: Catalog, selection: Selection) -> Bbox | None:
    """Return the box around the photos taken, None without any that has a place."""
    query = f"""
        SELECT min(lon_deg) AS west, max(lon_deg) AS east, min(lat_deg) AS south, max(lat_deg) AS north FROM (
            SELECT round(lon_deg, 6) AS lon_deg, round(lat_deg, 6) AS lat_deg FROM {selection.relation()}
            WHERE {_LEFT_OUT} IS NULL AND lat_deg IS NOT NULL
        ) GROUP BY floor(lon_deg) ORDER BY 1
    """
    bands = catalog.rows(query).to_pylist()
    if not bands:
        return None
    south, north = min(band["south"] for band in bands), max(band["north"] for band in bands)
    west, east = bands[0]["west"], bands[-1]["east"]
    if east - west > 180 and len(bands) > 1:
        # RFC 7946, 5.2: photos on both sides of the antimeridian have a box across it, not one around the world.
        gaps = [(after["west"] - band["east"], index) for index, (band, after) in enumerate(pairwise(bands))]
        widest_deg, index = max(gaps)
        if widest_deg > 180:
            west, east = bands[index + 1]["west"], bands[index]["east"]
    return west, south, east, north


def _write_geojson(rows: pa.RecordBatchReader, file: BinaryIO, bbox: Bbox | None) -> None:
    """Write a FeatureCollection, a feature a line."""
    file.write(b'{"type":"FeatureCollection",')
    if bbox is not None:
        file.write(b'"bbox":' + _json(bbox) + b",")
    file.write(b'"features":[')
    separator = b"\n"
    for feature in _features(rows):
        file.write(separator + feature)
        separator = b",\n"
    file.write(b"\n]}\n")


def _features(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    for batch in rows:
        for row in batch.to_pylist():
            lat_deg, lon_deg = row[schema.LAT_DEG], row[schema.LON_DEG]
            point = None if lat_deg is None else {"type": "Point", "coordinates": [lon_deg, lat_deg]}
            yield _json({"type": "Feature", "geometry": point, "properties": row})


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _write_csv(rows: pa.RecordBatchReader, file: BinaryIO) -> None:
    """Write a line a photo, texts in quotes, numbers plain, what is not known empty.

    A URI begins with a slash or a scheme, and is the line's first cell and in quotes, so nothing in a name can begin a
    cell that a spreadsheet computes; any other text that would has a `'` in front.
    """
    with pa.csv.CSVWriter(file, rows.schema, write_options=_CSV) as writer:
        for batch in rows:
            writer.write(pa.record_batch([harmless_column(column) for column in batch.columns], schema=batch.schema))


_CSV = pa.csv.WriteOptions(quoting_style="needed")
"""Arrow's "needed" means: every text, no number and no null."""


def _write_kml(rows: pa.RecordBatchReader, file: BinaryIO) -> None:
    """Write a Placemark a photo, elements in the order that the KML 2.2 schema gives them.

    By hand and tested against a parser: the KML libraries build the whole document in memory.
    """
    file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"><Document>\n')
    for batch in rows:
        for row in batch.to_pylist():
            file.write(_placemark(row).encode())
    file.write(b"</Document></kml>\n")


def _placemark(row: dict[str, object]) -> str:
    uri, taken_at = str(row[schema.URI]), row[schema.TAKEN_AT]
    name = uri.rpartition("/")[2]
    if re.match("file://", uri, re.IGNORECASE):
        name = unquote(name, errors="replace")
    data = "".join(
        f'<Data name="{name}"><value>{xml_text(str(value))}</value></Data>'
        for name, value in row.items()
        if value is not None and name not in (schema.LAT_DEG, schema.LON_DEG, schema.TAKEN_AT)
    )
    time = f"<TimeStamp><when>{taken_at}</when></TimeStamp>" if taken_at is not None else ""
    point = ""
    if row[schema.LAT_DEG] is not None:
        point = f"<Point><coordinates>{row[schema.LON_DEG]:.6f},{row[schema.LAT_DEG]:.6f}</coordinates></Point>"
    return f"<Placemark><name>{xml_text(name)}</name>{time}<ExtendedData>{data}</ExtendedData>{point}</Placemark>\n"
