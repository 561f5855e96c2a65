"""Parquet lists, read a part at a time, as the file is laid out."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.sources.lists import columns, values
from pipeline.sources.lists.rows import Lose, Rows
from pipeline.storage.ranged_file import RangedFile

_ROWS_PER_BATCH = 10_000
_READ_BYTES = 4 << 20
_KINDS = {
    schema.SIZE_BYTES: (values.is_size, "int64"),
    schema.MODIFIED_AT: (values.is_time, "timestamp[us, tz=UTC]"),
}
"""What a column must be, where that is not a text."""


def read_parquet(entry: storage.Entry, lose: Lose) -> Iterator[Rows]:
    """Yield the rows; UnreadableListError for columns of other types than they should have."""
    # A part at a time and as the file is laid out: a column's part of a row group can be larger than memory.
    with pq.ParquetFile(
        RangedFile(entry),
        buffer_size=_READ_BYTES,
        pre_buffer=False,
        arrow_extensions_enabled=False,
        coerce_int96_timestamp_unit="us",  # Spark's old type for times, which goes beyond nanoseconds' years
    ) as table:
        names = table.schema_arrow.names
        chosen = columns.choose(names, entry.uri).names
        for meaning, name in chosen.items():
            kind = table.schema_arrow.field(names.index(name)).type
            is_right, expected = _KINDS.get(meaning, (values.is_text, "string"))
            if not is_right(kind):
                raise columns.UnreadableListError(
                    f"{entry.uri}: column {name} must be {expected}, and is {str(kind)[:200]}"
                )
        first = 1
        for batch in table.iter_batches(_ROWS_PER_BATCH, columns=list(chosen.values()), use_threads=False):
            yield Rows({meaning: _column(batch, name) for meaning, name in chosen.items()}, first)
            first += batch.num_rows


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))
