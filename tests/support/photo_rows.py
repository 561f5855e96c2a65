"""Rows of `schema.PHOTOS` as the Locator makes them, without a model: what tests of the later stages are fed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.world import s2
from pipeline import schema
from pipeline.locate.precision import wkb_points
from pipeline.schema import ErrorCode, Media, RecordedBy, Status

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def located_row(uri: str, lat_deg: float, lon_deg: float, etag: str = "v1", **changed: Any) -> dict[str, Any]:
    """Return the row of a photo with a place: cells at S2 levels 3, 7 and 11, and EXIF a little beside it."""
    cells = [
        {
            schema.LEVEL: level,
            schema.S2_LEVEL: s2_level,
            schema.CELL_ID: int(s2.cell_id_N([lat_deg], [lon_deg], s2_level)[0]),
            schema.CELL_TOKEN: s2.token(int(s2.cell_id_N([lat_deg], [lon_deg], s2_level)[0])),
            schema.LAT_DEG: lat_deg,
            schema.LON_DEG: lon_deg,
            schema.PROBABILITY: 0.9 - 0.2 * level,
        }
        for level, s2_level in enumerate((3, 7, 11))
    ]
    alternative_names = (schema.CELL_ID, schema.LAT_DEG, schema.LON_DEG, schema.PROBABILITY)
    row = _row(uri, etag) | {
        schema.STATUS: str(Status.LOCATED),
        schema.CONTENT_HASH: schema.photo_id(uri + etag),
        schema.FORMAT: "jpeg",
        schema.MEDIA: str(Media.IMAGE),
        schema.WIDTH_PX: 640,
        schema.HEIGHT_PX: 480,
        schema.TAKEN_AT: dt.datetime(2020, 2, 29, 23, 59),
        schema.RECORDED_LAT_DEG: lat_deg + 0.0123,
        schema.RECORDED_LON_DEG: lon_deg + 0.0123,
        schema.RECORDED_BY: str(RecordedBy.EXIF),
        schema.LAT_DEG: lat_deg,
        schema.LON_DEG: lon_deg,
        schema.RADIUS_KM: 3.5,
        schema.CONFIDENCE: 0.5,
        schema.LEVELS: cells,
        schema.ALTERNATIVES: [{name: cells[-1][name] for name in alternative_names}],
        schema.SCENE: "outdoor",
        schema.SCENE_PROBABILITY: 0.75,
        schema.PRECISION: "street",
        schema.CELL_ID: int(s2.leaf_id_N([lat_deg], [lon_deg])[0]),
        schema.GEOMETRY: wkb_points(np.array([lat_deg]), np.array([lon_deg]))[0].as_py(),
    }
    return row | changed


def failed_row(uri: str, code: ErrorCode, etag: str = "v1", **changed: Any) -> dict[str, Any]:
    """Return the row of a photo without a place."""
    columns = {schema.STATUS: str(Status.FAILED), schema.ERROR_CODE: str(code), schema.ERROR_MESSAGE: f"it is {code}"}
    return _row(uri, etag) | columns | changed


def photos(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return `rows` as the table that is staged."""
    return pa.Table.from_pylist(list(rows), schema=schema.PHOTOS)


def _row(uri: str, etag: str) -> dict[str, Any]:
    return {
        schema.PHOTO_ID: schema.photo_id(uri),
        schema.URI: uri,
        schema.ETAG: etag,
        schema.SIZE_BYTES: 1000,
        schema.MODEL_ID: "m-1",
        schema.RUN_ID: "r1",
        schema.PROCESSED_AT: NOON,
    }
