"""Sources become manifest rows: a folder or object prefix (every object below it), a Parquet or a CSV manifest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import schema, storage

_URI_NAMES = (schema.URI, "path", "url")
_ROWS_PER_BATCH = 10_000


def read_manifest(source: str) -> Iterator[pa.RecordBatch]:
    """Yield the photos of `source` as batches of `schema.MANIFEST`, in the source's order, duplicates and all.

    A name ending in `.parquet` or `.csv` is a manifest with a column `uri` (or `path`; relative ones lie beside the
    manifest) and, where wanted, `etag` and `size_bytes`. Anything else is a folder or prefix: every object below it is
    a photo, whatever its name. Raises ValueError where the source is missing, can't be listed or isn't what it says.
    """
    try:
        if source.lower().endswith((".parquet", ".csv")) and storage.exists(source):
            yield from _batches(_manifest_rows(source))
        else:
            yield from _batches(_folder_rows(source))
    except OSError as error:
        raise ValueError(f"can't read --photos {source}: {error}") from error


_Row = tuple[str, str | None, int | None]


def _batches(rows: Iterable[_Row]) -> Iterator[pa.RecordBatch]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _ROWS_PER_BATCH)):
        uris, etags, sizes = zip(*chunk, strict=True)
        columns = [[schema.photo_id(uri) for uri in uris], uris, etags, sizes]
        yield pa.record_batch(
            [pa.array(values, field.type) for values, field in zip(columns, schema.MANIFEST, strict=True)],
            schema=schema.MANIFEST,
        )


def _folder_rows(source: str) -> Iterator[_Row]:
    found = False
    for entry in storage.list_files(source):
        found = True
        yield entry.uri, entry.etag, entry.size_bytes
    if not found:
        raise ValueError(f"no photos at {source}: the folder or prefix is empty or missing")


def _manifest_rows(source: str) -> Iterator[_Row]:
    folder = source.rsplit("/", 1)[0]
    row = 0
    for batch in _manifest_batches(source):
        name = next((name for name in _URI_NAMES if name in batch.schema.names), None)
        if name is None:
            names = ", ".join(batch.schema.names[:20])
            raise ValueError(f"{source} has no column named {' or '.join(_URI_NAMES)}; its columns are: {names}")
        uris = _column(batch, name, pa.string(), source)
        etags = _column(batch, schema.ETAG, pa.string(), source)
        sizes = _column(batch, schema.SIZE_BYTES, pa.int64(), source)
        for uri, etag, size_bytes in zip(uris, etags, sizes, strict=True):
            row += 1
            if not uri:
                raise ValueError(f"{source} has a photo without a {name} (row {row}): give every row one")
            is_relative = not storage.is_remote(uri) and not uri.startswith(("/", "file://"))
            yield storage.canonical(storage.join(folder, uri) if is_relative else uri), _unquoted(etag), size_bytes
    if not row:
        raise ValueError(f"no photos in {source}: the manifest has no rows")


def _unquoted(etag: str | None) -> str | None:
    """Return an ETag as `storage` gives it: some listings keep HTTP's quotes around it."""
    return etag.strip('"') if etag else None


def _column(batch: pa.RecordBatch, name: str, kind: pa.DataType, source: str) -> list[Any]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    try:
        values: list[Any] = batch.column(name).cast(kind).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{source}: column {name} must be {kind}: {error}") from error
    return values


def _manifest_batches(source: str) -> Iterator[pa.RecordBatch]:
    data = pa.BufferReader(storage.read_bytes(source))
    try:
        if source.lower().endswith(".parquet"):
            yield from pq.ParquetFile(data).iter_batches(_ROWS_PER_BATCH)
        else:
            wanted = {name: pa.string() for name in (*_URI_NAMES, schema.ETAG)} | {schema.SIZE_BYTES: pa.int64()}
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            present = pa.csv.open_csv(data, parse_options=parsing).schema.names
            data.seek(0)
            converting = pa.csv.ConvertOptions(
                column_types=wanted,  # not guessed: a photo named "007" keeps its name
                include_columns=[name for name in wanted if name in present] or None,
                strings_can_be_null=True,
                null_values=[""],  # and not "NA" or "null", which can be names
            )
            yield from pa.csv.open_csv(data, parse_options=parsing, convert_options=converting)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source} is not a readable manifest: {error}") from error
