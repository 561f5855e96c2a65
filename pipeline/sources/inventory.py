"""AWS S3 Inventory: a bucket's listing that S3 writes itself, as a source of photos.

Layout: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import posixpath
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.sources.lists.columns import plain
from pipeline.sources.search import Search
from pipeline.storage.ranged_file import RangedFile
from pipeline.storage.store import is_plain

MANIFEST_NAME = "manifest.json"
_ROWS_PER_BATCH = 10_000
_COPIED_AT_ONCE_BYTES = 4 << 20
_MAX_MANIFEST_BYTES = 256 << 20


_KEY, _SIZE, _ETAG, _MODIFIED, _IS_LATEST, _IS_DELETE_MARKER = (
    plain(name) for name in ("Key", "Size", "ETag", "LastModifiedDate", "IsLatest", "IsDeleteMarker")
)
_KINDS = {
    _KEY: pa.string(),
    _SIZE: pa.int64(),
    _ETAG: pa.string(),
    _MODIFIED: pa.timestamp("us", "UTC"),
    _IS_LATEST: pa.bool_(),
    _IS_DELETE_MARKER: pa.bool_(),
}


@dataclass(frozen=True)
class Inventory:
    """An S3 Inventory, by its `manifest.json`."""

    uri: str
    place: str = ""

    @classmethod
    def of(cls, uri: str) -> Inventory | None:
        """Return the inventory, if the file is there."""
        return cls(uri) if uri.rpartition("/")[2] == MANIFEST_NAME and storage.exists(uri) else None

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that it lists."""
        for rows in read_inventory(self.uri):
            yield search.take(rows, rows.column(schema.URI))


def read_inventory(source: str) -> Iterator[pa.Table]:
    """Yield the objects that the inventory at `source`, its manifest.json, lists: their newest versions, with
    ETag, size and time.

    Raises ValueError where the inventory isn't one, or a data file is missing or not the one that the manifest names.
    """
    inventory = _parsed(source)
    try:
        bucket, files = (
            str(inventory["sourceBucket"]),
            [(str(f["key"]), str(f["MD5checksum"])) for f in inventory["files"]],
        )
        file_format, file_schema = str(inventory["fileFormat"]), str(inventory["fileSchema"])
        destination = str(inventory["destinationBucket"]).rpartition(":")[2]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is no manifest of an S3 Inventory: {error} is missing or wrong") from error
    read = {"CSV": _read_csv, "Parquet": _read_parquet, "ORC": _read_orc}.get(file_format)
    if read is None:
        raise ValueError(f"{source}: an S3 Inventory as {file_format!r} can't be read, only CSV, Parquet and ORC")
    for key, md5 in files:
        uri = _data_uri(source, destination, key)
        with _copied(source, uri, md5) as file:
            try:
                for batch in read(file, file_schema):
                    yield _photos(batch, bucket)
            except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeError, ValueError, KeyError) as error:
                raise ValueError(f"{source}: its data file {uri} can't be read: {error}") from error


def _parsed(source: str) -> dict[str, Any]:
    if storage.head(source).size_bytes > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{source} is too large for the manifest of an S3 Inventory")
    try:
        inventory = json.loads(storage.read_bytes(source))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{source} is no manifest of an S3 Inventory, nor other JSON: {error}. Call a list of photos otherwise"
        ) from error
    if not isinstance(inventory, dict):
        raise ValueError(
            f"{source} is no manifest of an S3 Inventory: it holds no object. Call a list of photos otherwise"
        )
    return inventory


def _data_uri(source: str, destination: str, key: str) -> str:
    """Return where the data file `key` is: in the destination bucket, or below a folder of a local copy of it."""
    if storage.is_remote(source):
        return f"{source.split('://', 1)[0]}://{destination}/{key}"
    if is_plain(posixpath.normpath(key)):  # a destination prefix that ends in / makes a double one
        for folder in PurePosixPath(source).parents:
            if storage.exists(uri := storage.join(str(folder), key)):
                return uri
    raise ValueError(
        f"{source}: its data file {key} is missing: lay the whole inventory there, folders as in the bucket"
    )


@contextlib.contextmanager
def _copied(source: str, uri: str, md5: str) -> Iterator[IO[bytes]]:
    """Open a local copy of a data file, which is the one with this MD5: nothing of another one is listed."""
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile(prefix="graticule-inventory-") as copy:
        try:
            file = RangedFile(storage.head(uri))
            while block := file.read(_COPIED_AT_ONCE_BYTES):
                digest.update(block)
                copy.write(block)
        except FileNotFoundError as error:
            raise ValueError(f"{source}: its data file {uri} is missing") from error
        if digest.hexdigest() != md5.lower():
            raise ValueError(f"{source}: its data file {uri} is not the one that was written: its MD5 is another")
        copy.seek(0)
        yield copy


def _read_csv(file: IO[bytes], file_schema: str) -> Iterator[pa.RecordBatch]:
    names = [plain(name) for name in file_schema.split(",")]
    with gzip.open(file) as unpacked:
        if not unpacked.peek(1):
            return
        reader = pa.csv.open_csv(
            unpacked,
            read_options=pa.csv.ReadOptions(column_names=names),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=_KINDS,
                include_columns=[name for name in _KINDS if name in names],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        for batch in reader:
            keys = [unquote_plus(key, errors="strict") for key in batch.column(_KEY).to_pylist()]
            yield batch.set_column(batch.schema.get_field_index(_KEY), _KEY, pa.array(keys, pa.string()))


def _read_parquet(file: IO[bytes], file_schema: str) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    names = [name for name in parquet.schema_arrow.names if plain(name) in _KINDS]
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False):
        yield batch.rename_columns([plain(name) for name in batch.schema.names])


def _read_orc(file: IO[bytes], file_schema: str) -> Iterator[pa.RecordBatch]:
    orc = pa.orc.ORCFile(file)
    names = [name for name in orc.schema.names if plain(name) in _KINDS]
    for stripe in range(orc.nstripes):
        batch = orc.read_stripe(stripe, columns=names)
        yield batch.rename_columns([plain(name) for name in batch.schema.names])


def _photos(batch: pa.RecordBatch, bucket: str) -> pa.Table:
    columns = {
        name: batch.column(name).cast(kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
        for name, kind in _KINDS.items()
    }
    if columns[_KEY].null_count:
        raise ValueError("it has an object without a key, or no column of them")
    is_photo = pc.and_(
        pc.fill_null(columns[_IS_LATEST], True), pc.invert(pc.fill_null(columns[_IS_DELETE_MARKER], False))
    )
    is_marker = pc.and_(pc.ends_with(columns[_KEY], "/"), pc.equal(pc.fill_null(columns[_SIZE], -1), 0))
    uris = pc.binary_join_element_wise(f"s3://{bucket}", columns[_KEY], "/")
    etags = pc.ascii_trim(columns[_ETAG], '"')
    photos = pa.table(
        {
            schema.URI: uris,
            schema.ETAG: etags,
            schema.SIZE_BYTES: columns[_SIZE],
            schema.MODIFIED_AT: columns[_MODIFIED],
        }
    )
    return photos.filter(pc.and_(is_photo, pc.invert(is_marker)))
