"""Every byte that an output keeps, raw and decoded: where a photo's name must not be found any more."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage


def traces(output: str, uri: str, photo_id: bytes) -> list[str]:
    """Return the objects below an output, in temporary files too, that hold a photo's name or id in any form."""
    wanted = (uri.encode(), photo_id, photo_id.hex().encode())
    found = []
    for entry in storage.list_files(output):
        data = storage.read_bytes(entry.uri)
        pieces = [entry.uri.encode(), data, *(_decoded(data) if entry.uri.endswith(".parquet") else ())]
        if any(each in piece for each in wanted for piece in pieces):
            found.append(entry.uri.removeprefix(output + "/"))
    return found


def _decoded(data: bytes) -> Iterator[bytes]:
    """Yield a Parquet file's values, statistics and metadata, each as bytes."""
    with pq.ParquetFile(io.BytesIO(data)) as parquet:
        for name, column in zip(parquet.schema_arrow.names, parquet.read().columns, strict=True):
            yield name.encode()
            yield repr(column.to_pylist()).encode()
            for value in column.to_pylist():
                yield value if isinstance(value, bytes) else str(value).encode()
        for key, value in (parquet.metadata.metadata or {}).items():
            yield key + value
            if key == b"ARROW:schema":
                yield str(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value)))).encode()
        for group in range(parquet.metadata.num_row_groups):
            for index in range(parquet.metadata.num_columns):
                statistics = parquet.metadata.row_group(group).column(index).statistics
                if statistics is not None and statistics.has_min_max:
                    for value in (statistics.min, statistics.max):
                        yield value if isinstance(value, bytes) else str(value).encode()
