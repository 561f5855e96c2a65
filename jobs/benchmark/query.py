"""How much of an archive's answers a question about a place reads, and how long it takes beside reading all of them.

`python -m jobs.benchmark query` is the command.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.benchmark.figure import Figure
from model.world import geodesy, s2
from pipeline import schema, storage
from pipeline.locate.precision import wkb_points
from pipeline.published.catalog import Catalog
from pipeline.published.records import PhotoCounts, RunRecord
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage, parquet_bytes
from pipeline.schema import ErrorCode, Status

_ROWS_PER_PART = 100_000
_S2_LEVELS = (3, 6, 9)
_ALTERNATIVE_S2_LEVELS = (9, 9, 9, 9, 9)
_TOWNS, _TOWN_KM = 5000, 30.0
_SOURCES = {
    "all photos": "photos",
    "bbox, 2° × 2°": "bbox(19, 49, 21, 51)",
    "bbox across the antimeridian": "bbox(179, -20, -179, -10)",
    "within_km, 50 km": "within_km(50.06, 19.94, 50)",
    "in_cell, S2 level 6": "in_cell('4717')",
    "in_cell, a face": "in_cell('5')",
    "one country": f"photos WHERE {schema.COUNTRY_CODE} = 'NJ'",
}


@dataclass(frozen=True)
class QueryBenchmark:
    """Time and row groups of questions about a box, a circle, an S2 cell, beside the same of all photos."""

    rows: int = 1_000_000
    """Synthetic photos, published as the job publishes; four in five lie around towns, the others anywhere."""
    again: float = 0.0
    """This share of them is published once more by a second run, whose rows then count."""
    repeats: int = 7
    """Each question is asked so often, in turn with the others, and the median time counts."""

    def measure(self) -> list[Figure]:
        """Print a line for each question; return the figures."""
        if self.rows < 1 or self.repeats < 1 or not 0 <= self.again <= 1:
            raise ValueError("give --rows and --repeats of 1 or more, and a share from 0 to 1 as --again")
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
            publish_synthetic(folder, "r1", range(self.rows))
            if again := int(self.rows * self.again):
                publish_synthetic(folder, "r2", range(again))
            start_s = time.perf_counter()
            catalog = Catalog(folder)
            opening_s = time.perf_counter() - start_s
            queries = {name: f"SELECT count(*), max(uri) FROM {source}" for name, source in _SOURCES.items()}
            taken_s: dict[str, list[float]] = {name: [] for name in queries}
            for _ in range(self.repeats):
                for name, query in queries.items():
                    start_s = time.perf_counter()
                    catalog.rows(query)
                    taken_s[name].append(time.perf_counter() - start_s)
            files = [file for record in catalog.records for file in record.files]
            size_mb = sum(file.size_bytes or 0 for file in files) / 1e6
            print(f"{self.rows:,} photos in {len(files)} files of {size_mb:,.0f} MB, opened in {opening_s:.2f} s")
            print(f"{'':<30}{'photos':>10}{'row groups':>12}{'ms':>9}{'÷ all':>8}")
            figures = []
            all_s = float(np.median(taken_s["all photos"]))
            for name, query in queries.items():
                median_s = float(np.median(taken_s[name]))
                count = catalog.rows(query).column(0)[0].as_py()
                reading = catalog.reading(query)
                groups = f"{reading.row_groups} of {reading.row_groups_in_files}"
                print(f"{name:<30}{count:>10,}{groups:>12}{1000 * median_s:>9.1f}{median_s / all_s:>8.2f}")
                figures.append(
                    Figure(f"query, {self.rows:,} rows", f"{name} ÷ all photos", 1000 * median_s, 1000 * all_s,
                           median_s / all_s, "ms")
                )  # fmt: skip
            return figures


def publish_synthetic(output: str, run_id: str, numbers: Sequence[int]) -> None:
    """Publish synthetic photos with these numbers as the run `run_id`, as the job does; a later run has newer rows."""
    stage = Stage(output, run_id)
    for start in range(0, len(numbers), _ROWS_PER_PART):
        rows = synthetic_rows(numbers[start : start + _ROWS_PER_PART], run_id)
        listed = {field.name: pa.nulls(rows.num_rows, field.type) for field in schema.MANIFEST}
        listed |= {name: rows.column(name) for name in schema.MANIFEST.names if name in rows.column_names}
        plan = pa.table(listed, schema=schema.MANIFEST)
        storage.write_bytes(stage.plan_uri("todo", start // _ROWS_PER_PART), parquet_bytes(plan))
        stage.put_rows(rows)
    published = publish(stage)
    put_record(
        stage,
        RunRecord(
            run_id=run_id,
            finished_at=dt.datetime.now(dt.UTC).isoformat(),
            model_id="synthetic",
            photos=PhotoCounts(located=published.located, failed=published.failed),
            files=published.files,
        ),
    )


def synthetic_rows(numbers: Sequence[int], run_id: str) -> pa.Table:
    """Return the rows of photos with these numbers, the same places each time; one in a hundred has none."""
    count = len(numbers)
    random = np.random.default_rng(numbers[0])
    towns = random.integers(0, _TOWNS, count)
    town_lat_deg, town_lon_deg = _anywhere(np.random.default_rng(0), _TOWNS)
    away_km, bearing_deg = _TOWN_KM * np.sqrt(random.uniform(size=count)), random.uniform(0, 360, count)
    near = geodesy.destination_point(town_lat_deg[towns], town_lon_deg[towns], bearing_deg, away_km)
    in_town = random.uniform(size=count) < 0.8
    lat_deg, lon_deg = (np.where(in_town, *pair) for pair in zip(near, _anywhere(random, count), strict=True))
    has_none = random.uniform(size=count) < 0.01
    recorded_lat_deg, recorded_lon_deg = geodesy.destination_point(
        lat_deg, lon_deg, bearing_deg, random.exponential(50, count)
    )
    uris = [f"s3://photos-of-the-archive/2024/{number // 10_000:06d}/IMG_{number:012d}.jpg" for number in numbers]
    probability = random.uniform(size=count).astype(np.float32)
    values = {
        schema.PHOTO_ID: [schema.photo_id(uri) for uri in uris],
        schema.URI: uris,
        schema.ETAG: [f"{number:032x}" for number in numbers],
        schema.SIZE_BYTES: random.integers(100_000, 5_000_000, count),
        schema.CONTENT_HASH: [random.bytes(16) for _ in uris],
        schema.STATUS: np.where(has_none, str(Status.FAILED), str(Status.LOCATED)),
        schema.ERROR_CODE: pa.array(np.full(count, str(ErrorCode.CORRUPT)), mask=~has_none),
        schema.FORMAT: ["jpeg"] * count,
        schema.WIDTH_PX: np.full(count, 4000, np.int32),
        schema.HEIGHT_PX: np.full(count, 3000, np.int32),
        schema.RECORDED_LAT_DEG: recorded_lat_deg,
        schema.RECORDED_LON_DEG: recorded_lon_deg,
        schema.LAT_DEG: pa.array(lat_deg, mask=has_none),
        schema.LON_DEG: pa.array(lon_deg, mask=has_none),
        schema.RADIUS_KM: pa.array(random.exponential(100, count).astype(np.float32), mask=has_none),
        schema.CONFIDENCE: pa.array(probability, mask=has_none),
        schema.LEVELS: _cells(schema.LEVELS, lat_deg, lon_deg, probability, _S2_LEVELS),
        schema.ALTERNATIVES: _cells(schema.ALTERNATIVES, lat_deg, lon_deg, probability, _ALTERNATIVE_S2_LEVELS),
        schema.CELL_ID: pa.array(s2.leaf_id_N(lat_deg, lon_deg), mask=has_none),
        schema.GEOMETRY: pc.if_else(pa.array(has_none), None, wkb_points(lat_deg, lon_deg)),
        schema.COUNTRY_CODE: pa.array(_squares(lat_deg, lon_deg), mask=has_none),
        schema.COUNTRY: pa.array(_squares(lat_deg, lon_deg), mask=has_none),
        schema.MODEL_ID: ["synthetic"] * count,
        schema.RUN_ID: [run_id] * count,
        schema.PROCESSED_AT: [dt.datetime.now(dt.UTC)] * count,
    }
    absent = [None] * count
    return pa.table({name: values.get(name, absent) for name in schema.PHOTOS.names}, schema=schema.PHOTOS)


def _squares(lat_deg_N: np.ndarray, lon_deg_N: np.ndarray) -> list[str]:
    """Return the made-up country of each point: a square of 15°."""
    squares = zip((lon_deg_N // 15 + 12).astype(int), (lat_deg_N // 15 + 6).astype(int), strict=True)
    return [chr(65 + x) + chr(65 + y) for x, y in squares]


def _anywhere(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes of points spread evenly over the sphere."""
    return np.degrees(np.arcsin(random.uniform(-1, 1, count))), random.uniform(-180, 180, count)


def _cells(
    name: str, lat_deg_N: np.ndarray, lon_deg_N: np.ndarray, probability_N: np.ndarray, s2_levels: tuple[int, ...]
) -> pa.Array:
    """Return the column `name`, a list of the cells around each point."""
    cell_ids_NL = np.stack([s2.cell_id_N(lat_deg_N, lon_deg_N, level) for level in s2_levels], axis=1)
    lat_deg, lon_deg = s2.centre_deg_N(cell_ids_NL.ravel())
    count, levels = cell_ids_NL.shape
    values = {
        schema.LEVEL: np.tile(np.arange(levels, dtype=np.int8), count),
        schema.S2_LEVEL: np.tile(np.array(s2_levels, np.int8), count),
        schema.CELL_ID: cell_ids_NL.ravel(),
        schema.LAT_DEG: lat_deg,
        schema.LON_DEG: lon_deg,
        schema.PROBABILITY: np.repeat(probability_N, levels),
    }
    if name == schema.LEVELS:
        values[schema.CELL_TOKEN] = [s2.token(cell_id) for cell_id in cell_ids_NL.ravel().tolist()]
    kind = schema.PHOTOS.field(name).type
    fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
    structs = pa.StructArray.from_arrays([pa.array(values[field.name], field.type) for field in fields], fields=fields)
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * levels, structs, type=kind)
