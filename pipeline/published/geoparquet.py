"""One published file's format: GeoParquet 1.1, row groups of a size that DuckDB can skip, points in `geometry`.

Source: the GeoParquet 1.1.0 specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema

ROWS_PER_GROUP = 100_000
"""Rows that are held while a file is written, some 120 MB; cells of one group lie close together."""
_VERSION = "1.1.0"

Bbox = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


def bbox_of(rows: pa.Table) -> Bbox | None:
    """Return the box around the points of `rows`, or None where none has a place."""
    longitudes, latitudes = (pc.min_max(rows.column(name)).as_py() for name in (schema.LON_DEG, schema.LAT_DEG))
    if longitudes["min"] is None:
        return None
    return longitudes["min"], latitudes["min"], longitudes["max"], latitudes["max"]


def metadata(bbox: Bbox | None) -> dict[str, Any]:
    """Return a file's `geo` metadata: one column of points in longitude and latitude (OGC:CRS84, the default)."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    if bbox is not None:
        column["bbox"] = list(bbox)
    return {"version": _VERSION, "primary_column": schema.GEOMETRY, "columns": {schema.GEOMETRY: column}}


def write(path: Path, tables: Iterable[pa.Table], bbox: Bbox | None, columns: pa.Schema = schema.PHOTOS) -> None:
    """Write sorted `tables` of `columns`, each a row group, as one local file whose points lie in `bbox`."""
    # It belongs into the schema, not only beside it: pyarrow's readers, geopandas among them, look there.
    with_geo = columns.with_metadata({"geo": json.dumps(metadata(bbox))})
    order = pq.SortingColumn.from_ordering(columns, [(schema.CELL_ID, "ascending")], null_placement="at_end")
    with pq.ParquetWriter(path, with_geo, compression="zstd", sorting_columns=order) as writer:
        for table in tables:
            # The same rows make the same bytes, in whatever pieces they come.
            writer.write_table(table.combine_chunks().cast(with_geo), row_group_size=ROWS_PER_GROUP)


def even_parts(rows: int, parts: int) -> list[int]:
    """Return the sizes of `parts` parts of `rows` rows that differ by one at most."""
    return [rows * (index + 1) // parts - rows * index // parts for index in range(parts)]


def group_sizes(rows: int) -> list[int]:
    """Return the sizes of a file's row groups."""
    return even_parts(rows, -(-rows // ROWS_PER_GROUP))


def cut(reader: Iterable[pa.RecordBatch], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the reader's rows, in order, in tables of exactly `sizes`, which are none of them zero."""
    batches = iter(reader)
    rest: pa.RecordBatch | None = None
    for size in sizes:
        held: list[pa.RecordBatch] = []
        missing = size
        while missing:
            batch = next(batches) if rest is None else rest
            held.append(batch.slice(0, missing))
            rest = batch.slice(missing) if batch.num_rows > missing else None
            missing -= held[-1].num_rows
        yield pa.Table.from_batches(held)
