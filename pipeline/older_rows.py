"""What older versions stored, read as this version's rows: their names of columns, and what stands for missing ones."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema

_OLDER_LAT_DEG = "exif_lat_deg"
OLDER_NAMES = {
    schema.RECORDED_LAT_DEG: _OLDER_LAT_DEG,
    schema.RECORDED_LON_DEG: "exif_lon_deg",
    schema.RECORDED_COUNTRY_CODE: "exif_country_code",
    schema.RECORDED_COUNTRY: "exif_country",
    schema.RECORDED_REGION: "exif_region",
    schema.RECORDED_PLACE: "exif_place",
}
"""What older versions called a column, when they knew positions by EXIF only."""


def stored_columns(names: Collection[str]) -> pa.Schema:
    """Return the schema of a file of photos' rows, of this version or an older one, that has columns of these names."""
    fields = []
    for field in schema.PHOTOS:
        older = OLDER_NAMES.get(field.name)
        if older in names and field.name not in names:
            fields.append(field.with_name(older))
        elif field.name in names or field.name not in schema.ADDED_LATER:
            fields.append(field)
    return pa.schema(fields)


def column_sql(name: str, stored: Collection[str]) -> str | None:
    """Return SQL for a column of `PHOTOS` over rows that were stored with these columns, None where they lack it.

    They may be of several versions, read by name: then they have an older column and the one that stands for it now.
    """
    parts = [name] if name in stored else []
    older = OLDER_NAMES.get(name)
    if older is not None and older in stored:
        parts.append(older)
    if name == schema.RECORDED_BY and _OLDER_LAT_DEG in stored:
        parts.append(f"CASE WHEN {_OLDER_LAT_DEG} IS NOT NULL THEN '{schema.RecordedBy.EXIF}' END")
    if not parts:
        return None
    return f"{parts[0]} AS {name}" if len(parts) == 1 else f"coalesce({', '.join(parts)}) AS {name}"


def as_photos(stored: pa.Table) -> pa.Table:
    """Return rows that this version or an older one stored as rows of `PHOTOS`; other columns are lost."""
    columns = []
    for field in schema.PHOTOS:
        name = field.name if field.name in stored.column_names else OLDER_NAMES.get(field.name, "")
        if name in stored.column_names:
            columns.append(stored.column(name).cast(field.type))
        elif field.name == schema.RECORDED_BY and _OLDER_LAT_DEG in stored.column_names:
            by = pa.scalar(str(schema.RecordedBy.EXIF))
            is_known = pc.is_valid(stored.column(_OLDER_LAT_DEG))
            columns.append(pc.if_else(is_known, by, pa.scalar(None, pa.string())))
        else:
            assert field.name in schema.ADDED_LATER, f"stored without {field.name}"
            columns.append(pa.nulls(stored.num_rows, field.type))
    return pa.table(columns, schema=schema.PHOTOS)
