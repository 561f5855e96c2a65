"""Manifests as sources: photos that a list names, wherever they lie, whatever tool wrote it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, storage
from pipeline.sources.lists import columns, names, photo_names, values
from pipeline.sources.lists.columns import UnreadableListError
from pipeline.sources.lists.delimited import read_delimited
from pipeline.sources.lists.json_lines import read_json
from pipeline.sources.lists.lines import read_lines
from pipeline.sources.lists.parquet import read_parquet
from pipeline.sources.lists.reading import Reading
from pipeline.sources.lists.rows import Reader, Rows
from pipeline.sources.lists.text import PARQUET_MAGIC, magic, open_text
from pipeline.sources.search import Search

log = logging.getLogger(__name__)

_MAX_URI_BYTES = 32 << 10


@dataclass(frozen=True)
class Table:
    """A list of photos in a file, with a column `uri` (or as `columns` knows it); relative ones lie beside it.

    Where wanted it has `etag`, `size_bytes` and `modified_at` (UTC where it names no zone), too.
    """

    uri: str
    place: str = ""

    @classmethod
    def of(cls, uri: str) -> Table | None:
        """Return the list, if the file is there; ValueError for one of a kind that can't be read."""
        if names.is_other_list(uri) and storage.exists(uri):
            raise ValueError(
                f"{uri} is a list of a kind that can't be read: write Parquet, CSV, TSV, JSON lines or a name a line"
                " (.txt), plain or packed by gzip, bzip2, zstd, lz4 or xz"
            )
        return cls(uri) if names.is_list(uri) and storage.exists(uri) else None

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that it names, with canonical URIs; a row that can name none is a problem."""
        reading = Reading(self.uri, _folder_of(self.uri), search)
        try:
            yield from _taken(_checked(storage.head(self.uri), reading), reading)
        except UnreadableListError as error:
            raise ValueError(str(error)) from error
        reading.finish()


@dataclass(frozen=True)
class TableFolder:
    """A list of photos in parts, a folder as Spark, Dask and warehouses write it; relative names lie beside the folder.

    What such a folder is, `names.holds_parts` says.
    """

    uri: str

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that its parts name, as `Table` does; a part that can't be read is a problem."""
        if f"{search.output}/".startswith(f"{self.uri.rstrip('/')}/"):
            raise ValueError(f"--output {search.output} lies in the list {self.uri}: give a folder beside it")
        reading = Reading(self.uri, _folder_of(self.uri.rstrip("/")), search)
        log.info("%s holds parts of a list and nothing else: it is read as one", self.uri)
        for part in names.parts_of(self.uri):
            reading.part = part.uri
            try:
                yield from _taken(_checked(part, reading), reading)
            except (UnreadableListError, OSError) as error:
                reading.lose_part(str(error))
        reading.finish()


def _folder_of(uri: str) -> str:
    return storage.canonical(uri).rpartition("/")[0]


def _taken(checked: Iterator[pa.Table], reading: Reading) -> Iterator[pa.Table]:
    search, ours = reading.search, 0
    for rows in checked:
        if search.output:
            ours += pc.sum(pc.starts_with(rows.column(schema.URI), f"{search.output}/")).as_py() or 0
        yield search.take(rows, rows.column(schema.URI))
    if ours:
        log.warning("%s: %d of its photos lie below --output, where nothing is a photo", reading.part, ours)


def _checked(entry: storage.Entry, reading: Reading) -> Iterator[pa.Table]:
    """Yield the rows of a file with canonical URIs; UnreadableListError where it is no list."""
    try:
        for rows in _reader_of(entry, reading)(entry, reading.lose):
            reading.rows += len(rows.columns[schema.URI])
            yield _columns(rows, reading)
    except (pa.ArrowException, UnicodeError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UnreadableListError(f"{entry.uri} is not a readable manifest: {reason}") from error


def _reader_of(entry: storage.Entry, reading: Reading) -> Reader:
    """Return who reads a file: what it is, its first bytes say where they can, and else its name, or its folder's."""
    kind = names.kind_of(entry.uri) or names.kind_of(reading.source)
    if magic(entry).startswith(PARQUET_MAGIC):
        return read_parquet
    if kind in ("parquet", "parq", "pq"):
        if entry.size_bytes or reading.part == reading.source:
            raise UnreadableListError(f"{entry.uri} is not a readable manifest: it is no Parquet file, or a packed one")
        return lambda entry, lose: iter(())  # an empty part
    if kind in ("json", "jsonl", "ndjson") or (not kind and open_text(entry).head.lstrip().startswith("{")):
        return read_json
    if kind in ("txt", "lst", "list"):
        return read_lines
    return functools.partial(read_delimited, kind=kind)


def _columns(rows: Rows, reading: Reading) -> pa.Table:
    """Return the columns of the manifest, for the rows that name a photo."""
    uris = _uris(rows, reading)
    lengths = pc.fill_null(pc.binary_length(uris), 0)
    reading.drop(is_empty := pc.equal(lengths, 0), rows, "has no uri: give every row one")
    reading.drop(is_long := pc.greater(lengths, _MAX_URI_BYTES), rows, f"has a uri longer than {_MAX_URI_BYTES} bytes")
    is_named = pc.invert(pc.or_(is_empty, is_long))
    found = {schema.URI: photo_names.canonical(pc.if_else(is_named, uris, "/"), is_named, rows, reading)}
    given = rows.columns
    if schema.ETAG in given:
        found[schema.ETAG] = values.etags(_valid(given[schema.ETAG]))
    if schema.SIZE_BYTES in given:
        sizes = values.sizes(_valid(given[schema.SIZE_BYTES]))
        sizes_bytes = reading.understood(schema.SIZE_BYTES, given[schema.SIZE_BYTES], rows, sizes)
        is_negative = pc.fill_null(pc.less(sizes_bytes, 0), False)
        if is_negative.true_count:
            where = reading.where(rows.number_of(pc.index(is_negative, True).as_py()))
            log.warning("%s: %s is negative in %s, which says nothing", reading.source, schema.SIZE_BYTES, where)
        found[schema.SIZE_BYTES] = pc.if_else(is_negative, pa.scalar(None, pa.int64()), sizes_bytes)
    if schema.MODIFIED_AT in given:
        times = values.times(_valid(given[schema.MODIFIED_AT]))
        found[schema.MODIFIED_AT] = reading.understood(schema.MODIFIED_AT, given[schema.MODIFIED_AT], rows, times)
    return pa.table(found).filter(is_named)


def _uris(rows: Rows, reading: Reading) -> pa.Array:
    """Return what names the photos, as texts; a bucket and a key make one name."""
    uris = _valid(rows.columns[schema.URI], lambda index: reading.note_no_text(index, rows))
    if columns.BUCKET not in rows.columns:
        return uris
    buckets = pc.utf8_trim_whitespace(_valid(rows.columns[columns.BUCKET]))
    buckets = pc.replace_substring_regex(buckets, r"\A(?:arn:aws[a-z-]*:s3:::|s3[an]?://)?(.*?)/*\z", r"\1")
    is_given = pc.and_(pc.greater(pc.binary_length(buckets), 0), pc.greater(pc.binary_length(uris), 0))
    has_scheme = pc.match_substring(buckets, "://")
    places = pc.if_else(has_scheme, buckets, pc.binary_join_element_wise("s3:/", buckets, "/"))
    return pc.if_else(is_given, pc.binary_join_element_wise(places, uris, "/"), pa.scalar(None, pa.string()))


def _valid(column: pa.Array, lose: Callable[[int], None] | None = None) -> pa.Array:
    """Return a column whose texts are UTF-8: of those that are not, `lose` is told, or their odd bytes are escaped."""
    if not values.is_text(column.type):
        return column
    texts = column.cast(pa.string(), safe=False)
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        pass
    found: list[str | None] = []
    for index, value in enumerate(texts.cast(pa.binary()).to_pylist()):
        try:
            found.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            found.append(None if lose else value.decode("utf-8", "backslashreplace"))
            if lose is not None:
                lose(index)
    return pa.array(found, pa.string())
